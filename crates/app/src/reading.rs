//! From a proven block to what the ledger takes: whose transfers matter, and what proves them.
//!
//! Everything is prepared outside the transaction, from a snapshot. The transaction looks again at the recipients that were
//! nobody's in that snapshot, so that an invoice made in between is not missed.

use std::collections::BTreeSet;

use domain::chain::{Address, Asset, BlockLink, EvidenceLevel, TransferKey};
use durable::store::claim::{self, ClaimRow};
use durable::store::{Query, ReadOnly, StoreError, Tx, block, invoice, payment};
use outside::chain::{DisputedClaim, ProvenBlock, Watch};

use crate::ledger::{self, Seen, Settled, Sighted};
use crate::reactions;
use domain::chain::{ChainId, Confirmations, Heights};

/// A proven block, prepared for the ledger.
#[derive(Debug, Clone)]
pub struct ReadBlock {
    /// Its place in the chain.
    pub link: BlockLink,
    /// How it is known.
    pub level: EvidenceLevel,
    /// Transfers to recipients of ours, with their evidence.
    pub ours: Vec<Sighted>,
    /// What the evidence of these has in common.
    pub evidence: Vec<u8>,
    /// Recipients of watched assets that were nobody's, also of claims that were not asked about for that reason.
    pub strangers: BTreeSet<Address>,
    /// Logs that some assert and others deny.
    pub disputed: Vec<DisputedClaim>,
}

/// What applying a block did.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Transfers that were counted before.
    pub duplicates: u64,
    /// What was settled at once.
    pub settled: Settled,
}

/// What to look for on a chain: every transfer of these assets, since whoever was paid may become ours later; but
/// of what providers dispute only what concerns recipients of ours.
pub fn watch(store: &ReadOnly, chain: ChainId, assets: &[Asset]) -> Watch {
    let store = store.clone();
    Watch::all(assets.iter().copied()).claims_to(move |recipients| {
        let reading = store.clone();
        Box::pin(async move {
            let known = reading.read(move |query| ours_among(query, chain, recipients)).await;
            known.inspect_err(|error| tracing::warn!(%chain, %error, "recipients cannot be looked up")).ok()
        })
    })
}

fn ours_among(
    query: &impl Query,
    chain: ChainId,
    recipients: BTreeSet<Address>,
) -> Result<BTreeSet<Address>, StoreError> {
    let mut ours = BTreeSet::new();
    for recipient in recipients {
        if invoice::knows_recipient(query, chain, &recipient)? {
            ours.insert(recipient);
        }
    }
    Ok(ours)
}

/// Prepares proven blocks: finds whose transfers matter and collects their evidence.
///
/// # Errors
/// The store's.
pub async fn prepare(store: &ReadOnly, blocks: Vec<ProvenBlock>) -> Result<Vec<ReadBlock>, StoreError> {
    store.read(move |query| blocks.into_iter().map(|block| prepare_one(query, &block)).collect()).await
}

fn prepare_one(query: &impl Query, block: &ProvenBlock) -> Result<ReadBlock, StoreError> {
    let mut strangers = block.unasked.clone();
    let mut keys: BTreeSet<TransferKey> = BTreeSet::new();
    let mut known = BTreeSet::new();
    for transfer in &block.transfers {
        // A transfer of nothing pays nothing; anybody can have one made in anybody's name.
        if transfer.amount.is_zero() {
            continue;
        }
        let recipient = transfer.recipient;
        if known.contains(&recipient) || invoice::knows_recipient(query, transfer.key.chain, &recipient)? {
            known.insert(recipient);
            keys.insert(transfer.key);
        } else {
            strangers.insert(recipient);
        }
    }
    let kept = block.keep(&keys);
    let ours = kept
        .own
        .into_iter()
        .map(|(transfer, evidence)| Sighted { transfer, level: block.level, evidence })
        .collect();
    Ok(ReadBlock {
        link: block.link,
        level: block.level,
        ours,
        evidence: kept.block,
        strangers,
        disputed: block.disputed.clone(),
    })
}

/// Remembers what is disputed of a block, and has each claim asked about until it is decided.
///
/// # Errors
/// The store's.
pub fn open_claims(tx: &mut Tx, read: &ReadBlock) -> Result<(), StoreError> {
    for dispute in &read.disputed {
        let row = ClaimRow {
            transfer: dispute.transfer,
            claimants: dispute.claimants.join(","),
            opened_at: tx.now(),
            closed_at: None,
            verdict: None,
        };
        claim::open(tx, &row)?;
        reactions::recheck(tx, &dispute.transfer.key)?;
    }
    Ok(())
}

/// Counts a block's transfers, and remembers whom else it paid. A stranger who has become ours meanwhile has the
/// block read again. With `heights`, what they confirm is confirmed at once (see [`ledger::see_and_confirm`]).
///
/// # Errors
/// The store's.
pub fn apply(
    tx: &mut Tx,
    chain: ChainId,
    read: &ReadBlock,
    confirmations: Confirmations,
    heights: Option<Heights>,
) -> Result<Applied, StoreError> {
    let applied = count(tx, chain, read, confirmations, heights)?;
    let number = read.link.block.number;
    let mut again = false;
    for stranger in &read.strangers {
        again |= invoice::knows_recipient(tx, chain, stranger)?;
        block::insert_sighting(tx, chain, stranger, number)?;
    }
    if again {
        reactions::look_back(tx, chain, number)?;
    }
    Ok(applied)
}

/// Counts a block's transfers to recipients of ours, and keeps their evidence.
///
/// # Errors
/// The store's.
pub fn count(
    tx: &mut Tx,
    chain: ChainId,
    read: &ReadBlock,
    confirmations: Confirmations,
    heights: Option<Heights>,
) -> Result<Applied, StoreError> {
    let mut applied = Applied::default();
    let mut is_kept = false;
    for sighted in &read.ours {
        let seen = match heights {
            Some(heights) => {
                ledger::see_and_confirm(tx, sighted, confirmations, heights, &mut applied.settled)?
            }
            None => ledger::see(tx, sighted, confirmations)?,
        };
        match seen {
            Seen::Duplicate => applied.duplicates = applied.duplicates.saturating_add(1),
            Seen::New | Seen::Returned if !is_kept => {
                payment::save_block_evidence(tx, chain, &read.link.block.hash, &read.evidence)?;
                is_kept = true;
            }
            Seen::New | Seen::Returned => {}
        }
    }
    Ok(applied)
}

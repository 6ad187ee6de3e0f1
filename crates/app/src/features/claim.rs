//! Deciding disputed claims: asking about them again until evidence closes them.
//!
//! Guarantees: an open claim freezes only the invoices it could touch; it is closed when `k` groups have it (its block is then
//! read again), when `k` groups deny it at a finalized block, or when its block has left the chain. Never by time.

use std::collections::BTreeMap;
use std::time::Duration;

use domain::chain::{ChainId, TransferKey};
use domain::payment::Stage;
use durable::engine::{AfterCrash, Attempt, Next, Recording, Trouble, Work};
use durable::store::block::ChainCursor;
use durable::store::claim::ClaimRow;
use durable::store::{Query, ReadOnly, StoreError, Tx, block, claim, invoice, payment};
use outside::chain::{ChainReader, ClaimOutcome, DisputedClaim};
use serde::{Deserialize, Serialize};

use crate::ledger::{self, LedgerError};
use crate::reactions;

/// On a chain without a finalized tag, a denial this deep is for good.
const DEPTH_FOR_FINALITY: u64 = 256;
/// How often a claim that stays disputed is asked about.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How soon a claim is asked about again whose block was just asked to be read anew.
const UNTIL_COUNTED: Duration = Duration::from_secs(1);

/// The work of asking about one claim again.
pub struct Recheck {
    /// The chains that can be asked.
    pub chains: BTreeMap<ChainId, ChainReader>,
}

/// Which claim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RecheckInput {
    /// The chain.
    pub chain: ChainId,
    /// The transaction.
    pub tx: domain::chain::B256,
    /// The place in it.
    pub ordinal: i64,
}

impl RecheckInput {
    fn key(&self) -> TransferKey {
        TransferKey { chain: self.chain, tx: self.tx, ordinal: self.ordinal }
    }
}

/// What was found out of each open claim on the transfer.
pub type RecheckFact = Vec<(ClaimRow, ClaimOutcome)>;

impl Work for Recheck {
    const KIND: &'static str = "recheck_claim";
    const AFTER_CRASH: AfterCrash = AfterCrash::Rerun;
    type Input = RecheckInput;
    type Fact = RecheckFact;

    async fn perform(
        &self,
        input: &RecheckInput,
        _attempt: &Attempt,
        store: &ReadOnly,
    ) -> Result<RecheckFact, Trouble> {
        let again = |why: String| Trouble::Again { after: None, why };
        let (chain, key) = (input.chain, input.key());
        let open = store
            .read(move |query| claim::list_open_on(query, &key))
            .await
            .map_err(|error: StoreError| again(error.to_string()))?;
        let Some(reader) = self.chains.get(&chain) else {
            return Err(again("the chain is not configured".to_owned()));
        };
        let mut found = Vec::new();
        for row in open {
            let claimants = row.claimants.split(',').map(str::to_owned).collect();
            let dispute = DisputedClaim { transfer: row.transfer, claimants };
            let outcome = reader.recheck(&dispute).await.map_err(|stall| again(stall.to_string()))?;
            found.push((row, outcome));
        }
        Ok(found)
    }

    fn record(
        recording: &mut Recording<'_>,
        input: &RecheckInput,
        _attempt: &Attempt,
        outcome: Result<&RecheckFact, &Trouble>,
    ) -> Result<Next, StoreError> {
        let mut wait = ASK_EVERY;
        let Ok(found) = outcome else { return Ok(Next::Again { at: recording.now() + wait }) };
        let cursor = block::find_cursor(recording, input.chain)?;
        let settled = cursor.as_ref().map_or(0, settled_height);
        for (row, outcome) in found {
            let transfer = &row.transfer;
            let verdict = match outcome {
                ClaimOutcome::Confirmed if is_counted(recording, row)? => Some("accepted"),
                ClaimOutcome::Confirmed => {
                    wait = UNTIL_COUNTED;
                    reactions::look_back(recording, input.chain, transfer.block.number)?;
                    None
                }
                ClaimOutcome::Denied if transfer.block.number <= settled => Some("rejected"),
                ClaimOutcome::Gone => Some("off_chain"),
                ClaimOutcome::Denied | ClaimOutcome::Open => None,
            };
            if let Some(verdict) = verdict {
                claim::close(recording, transfer, verdict)?;
            }
        }
        if !claim::list_open_on(recording, &input.key())?.is_empty() {
            return Ok(Next::Again { at: recording.now() + wait });
        }
        if let Some(cursor) = cursor {
            release(recording, &cursor)?;
        }
        Ok(Next::Done)
    }
}

/// What the claim had held back is settled now, not only with the next block.
fn release(tx: &mut Tx, cursor: &ChainCursor) -> Result<(), StoreError> {
    if cursor.frozen.is_some() {
        return Ok(());
    }
    match ledger::advance(tx, cursor.chain, cursor.heights()) {
        Ok(_) => Ok(()),
        Err(LedgerError::Store(error)) => Err(error),
        Err(LedgerError::Refused(refusal)) => Err(StoreError::damaged(refusal)),
    }
}

/// Below this height a denial is for good: finality, or on a chain that has no such tag a depth that stands for it.
fn settled_height(cursor: &ChainCursor) -> u64 {
    if cursor.finalized > 0 {
        cursor.finalized
    } else {
        cursor.block.number.saturating_sub(DEPTH_FOR_FINALITY)
    }
}

/// Whether the claimed transfer is a payment of ours now, or nobody's business of ours.
fn is_counted(query: &impl Query, row: &ClaimRow) -> Result<bool, StoreError> {
    let transfer = &row.transfer;
    if !invoice::knows_recipient(query, transfer.key.chain, &transfer.recipient)? {
        return Ok(true);
    }
    let payment = payment::find_by_transfer(query, &transfer.key)?;
    Ok(payment.is_some_and(|payment| payment.stage != Stage::Reverted))
}

//! A block and the transfers in it, from checked data to what a feature may act on.
//!
//! Guarantees: a body exists only for receipts (and, where something matched, transactions) whose
//! roots are those of the header; a transfer's hash, indices and amounts come from those bytes alone.
//! A log that does not look like a transfer is passed over, never an error: one poisoned row does not
//! stop the block for others.
//!
//! Deliberately absent: invoices. Whether a transfer pays anything is not known here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use alloy_consensus::{EMPTY_ROOT_HASH, Header};
use alloy_primitives::{Address, B256, Bloom, Bytes, Log, U256};
use domain::chain::{Asset, BlockLink, ChainId, EvidenceLevel, Transfer, TransferKey};
use domain::money::Amount;
use futures::future::BoxFuture;

use super::evidence::{Evidence, EvidenceBlock, EvidenceItem, Voter};
use super::profile::ChainProfile;
use super::proof::{ConsensusReceipt, TRANSFER_TOPIC, may_hold_transfer, ordered_paths, ordered_root};
use super::provider::FaultKind;
use super::votes::DisputedClaim;
use super::wire::{BlockTransactions, SeenReceipt};

/// Whose payments are of interest.
#[derive(Clone)]
pub enum Recipients {
    /// Everybody's.
    Everyone,
    /// Those for whom the function says so. It is asked for every transfer of a watched asset, so it
    /// has to be quick.
    Where(Arc<dyn Fn(&Address) -> bool + Send + Sync>),
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Everyone => "Everyone",
            Self::Where(_) => "Where(..)",
        })
    }
}

/// Answers which of some recipients are ours; none when that cannot be said now.
type OursAmong = dyn Fn(BTreeSet<Address>) -> BoxFuture<'static, Option<BTreeSet<Address>>> + Send + Sync;

/// Which disputed claims everybody is asked about, where transfers are believed by vote.
#[derive(Clone)]
pub enum Claims {
    /// All of them.
    All,
    /// Those to recipients of ours. Asked once for a block that has any, with all their recipients.
    ToOurs(Arc<OursAmong>),
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "All",
            Self::ToOurs(_) => "ToOurs(..)",
        })
    }
}

/// Which transfers to look for. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watch {
    /// ERC-20 contracts.
    pub tokens: Arc<BTreeSet<Address>>,
    /// Whether top-level transfers of the chain's own coin count.
    pub native: bool,
    /// To whom.
    pub recipients: Recipients,
    /// Which of the claims that too few groups show are settled.
    pub claims: Claims,
}

impl Watch {
    /// Every transfer of these assets.
    #[must_use]
    pub fn all(assets: impl IntoIterator<Item = Asset>) -> Self {
        let (mut tokens, mut native) = (BTreeSet::new(), false);
        for asset in assets {
            match asset {
                Asset::Native => native = true,
                Asset::Token(token) => {
                    tokens.insert(token);
                }
            }
        }
        Self { tokens: Arc::new(tokens), native, recipients: Recipients::Everyone, claims: Claims::All }
    }

    /// The same, for recipients of whom `is_ours` says so.
    #[must_use]
    pub fn only_to(self, is_ours: impl Fn(&Address) -> bool + Send + Sync + 'static) -> Self {
        Self { recipients: Recipients::Where(Arc::new(is_ours)), ..self }
    }

    /// The same, with disputed claims asked about only where `ours_among` says that they concern one of ours. It may
    /// take its time; when it cannot say, all are asked about.
    #[must_use]
    pub fn claims_to(
        self,
        ours_among: impl Fn(BTreeSet<Address>) -> BoxFuture<'static, Option<BTreeSet<Address>>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self { claims: Claims::ToOurs(Arc::new(ours_among)), ..self }
    }

    /// Those of the claims' recipients for whom it is worth asking.
    pub(super) async fn ours_among(&self, recipients: BTreeSet<Address>) -> BTreeSet<Address> {
        match &self.claims {
            Claims::ToOurs(ours_among) if !recipients.is_empty() => {
                ours_among(recipients.clone()).await.unwrap_or(recipients)
            }
            Claims::All | Claims::ToOurs(_) => recipients,
        }
    }

    fn wants(&self, recipient: &Address) -> bool {
        match &self.recipients {
            Recipients::Everyone => true,
            Recipients::Where(is_ours) => is_ours(recipient),
        }
    }

    /// Whether a header leaves open that its block holds something of interest.
    #[must_use]
    pub(super) fn is_open_for(&self, header: &Header, profile: &ChainProfile) -> bool {
        if header.transactions_root == EMPTY_ROOT_HASH && header.receipts_root == EMPTY_ROOT_HASH {
            return false;
        }
        self.native
            || !profile.bloom_trusted && !self.tokens.is_empty()
            || self.may_hold_token(&header.logs_bloom)
    }

    pub(super) fn may_hold_token(&self, bloom: &Bloom) -> bool {
        self.tokens.iter().any(|token| may_hold_transfer(bloom, *token))
    }

    /// Reads a log as an ERC-20 transfer of interest: three topics (an ERC-721 transfer has four),
    /// addresses without rubbish in front of them, and one word of data.
    #[must_use]
    pub(super) fn read_log(&self, log: &Log) -> Option<TokenTransfer> {
        let [topic, from, to] = log.data.topics() else { return None };
        if *topic != TRANSFER_TOPIC || !self.tokens.contains(&log.address) {
            return None;
        }
        let amount = U256::from_be_bytes(<[u8; 32]>::try_from(log.data.data.as_ref()).ok()?);
        let (payer, recipient) = (address_in(from)?, address_in(to)?);
        self.wants(&recipient).then_some(TokenTransfer {
            token: log.address,
            payer,
            recipient,
            amount: Amount::new(amount),
        })
    }

    /// Whether a successful transaction with this target and value is a transfer of interest.
    #[must_use]
    pub(super) fn wants_value(&self, to: Option<Address>, value: U256) -> Option<Address> {
        to.filter(|to| self.native && !value.is_zero() && self.wants(to))
    }
}

/// The address in a topic, if nothing but zeros comes before it.
pub(super) fn address_in(topic: &B256) -> Option<Address> {
    topic[..12].iter().all(|byte| *byte == 0).then(|| Address::from_word(*topic))
}

/// What an ERC-20 log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TokenTransfer {
    pub(super) token: Address,
    pub(super) payer: Address,
    pub(super) recipient: Address,
    pub(super) amount: Amount,
}

/// Receipts whose root is that of a header.
#[derive(Debug, Clone)]
pub(super) struct Receipts {
    pub(super) list: Vec<ConsensusReceipt>,
    pub(super) bytes: Vec<Bytes>,
}

impl Receipts {
    /// Checks receipts against `header`.
    pub(super) fn check(header: &Header, seen: Vec<SeenReceipt>) -> Result<Self, FaultKind> {
        let list: Vec<ConsensusReceipt> = seen.into_iter().map(|receipt| receipt.consensus).collect();
        let bytes: Vec<Bytes> = list.iter().map(|receipt| receipt.encode().into()).collect();
        if ordered_root(&bytes) == header.receipts_root {
            Ok(Self { list, bytes })
        } else {
            Err(FaultKind::ReceiptsRoot)
        }
    }

    /// Whether the header's filter covers what was watched for, as it must wherever we conclude absence
    /// from it.
    pub(super) fn are_covered_by(&self, bloom: &Bloom, watch: &Watch) -> bool {
        let watched = |log: &&Log| watch.tokens.contains(&log.address);
        self.list.iter().all(|receipt| receipt.logs.iter().filter(watched).all(|log| bloom.contains_log(log)))
    }

    /// Whether any log is a transfer of interest.
    pub(super) fn hold(&self, watch: &Watch) -> bool {
        self.list.iter().any(|receipt| receipt.logs.iter().any(|log| watch.read_log(log).is_some()))
    }
}

/// Checks transactions against `header`.
pub(super) fn check_transactions(header: &Header, transactions: &BlockTransactions) -> Result<(), FaultKind> {
    let bytes: Vec<&Bytes> = transactions.list.iter().map(|(_, bytes)| bytes).collect();
    if ordered_root(&bytes) == header.transactions_root { Ok(()) } else { Err(FaultKind::TransactionsRoot) }
}

/// What was proven of a block beyond its header.
#[derive(Debug, Clone)]
pub(super) struct Body {
    pub(super) receipts: Receipts,
    /// Present wherever a receipt matched or the native coin is watched.
    pub(super) transactions: Option<BlockTransactions>,
}

impl Body {
    /// The transfers of interest, in the order of the block.
    pub(super) fn transfers(&self, chain: ChainId, link: &BlockLink, watch: &Watch) -> Vec<Transfer> {
        let Some(transactions) = &self.transactions else { return Vec::new() };
        let mut transfers = Vec::new();
        let mut log_index = 0_u64;
        for (index, (receipt, (transaction, bytes))) in
            (0_u64..).zip(self.receipts.list.iter().zip(&transactions.list))
        {
            let mut hash = None;
            let mut key = |ordinal| TransferKey {
                chain,
                tx: *hash.get_or_insert_with(|| alloy_primitives::keccak256(bytes)),
                ordinal,
            };
            let base = |key, log_index, asset, payer, recipient, amount| Transfer {
                key,
                block: link.block,
                time: link.time,
                tx_index: index,
                log_index,
                asset,
                payer,
                recipient,
                amount,
            };
            if receipt.succeeded()
                && let Some(recipient) = watch.wants_value(transaction.to(), transaction.value())
                && let Ok(payer) = transaction.sender()
            {
                let amount = Amount::new(transaction.value());
                transfers.push(base(key(TransferKey::NATIVE), None, Asset::Native, payer, recipient, amount));
            }
            for (ordinal, log) in (0_i64..).zip(&receipt.logs) {
                if let Some(TokenTransfer { token, payer, recipient, amount }) = watch.read_log(log) {
                    transfers.push(base(
                        key(ordinal),
                        Some(log_index),
                        Asset::Token(token),
                        payer,
                        recipient,
                        amount,
                    ));
                }
                log_index = log_index.saturating_add(1);
            }
        }
        transfers
    }
}

/// A block that may be acted on.
#[derive(Debug, Clone)]
pub struct ProvenBlock {
    /// The block, its parent and its time.
    pub link: BlockLink,
    /// How its transfers are known.
    pub level: EvidenceLevel,
    /// The transfers that were watched for, in the order of the block. With
    /// [`EvidenceLevel::Verified`] there are no others.
    pub transfers: Vec<Transfer>,
    /// Who agreed on the header, by the time of the verdict.
    pub voters: Vec<Voter>,
    /// Logs that fewer than `k` groups showed and that could not be settled: freeze what they touch.
    pub disputed: Vec<DisputedClaim>,
    /// Recipients of claims that nobody was asked about, since they were not ours. For one who becomes ours the
    /// block has to be read again.
    pub unasked: BTreeSet<Address>,
    pub(super) header_rlp: Option<Bytes>,
    /// Who showed each transfer, where they were believed by vote.
    pub(super) supporters: BTreeMap<TransferKey, Vec<Voter>>,
    pub(super) body: Option<Arc<Body>>,
}

impl ProvenBlock {
    /// The evidence for those transfers of the block that are in `wanted`.
    #[must_use]
    pub fn evidence(&self, wanted: &[TransferKey]) -> Vec<Evidence> {
        let transfers: Vec<&Transfer> =
            self.transfers.iter().filter(|transfer| wanted.contains(&transfer.key)).collect();
        let indices: Vec<usize> =
            transfers.iter().filter_map(|transfer| usize::try_from(transfer.tx_index).ok()).collect();
        let paths = |items: &[Bytes]| ordered_paths(items, &indices).1;
        let (receipts, transactions) = match self.body.as_deref() {
            Some(Body { receipts, transactions: Some(transactions) }) => {
                let bytes: Vec<Bytes> = transactions.list.iter().map(|(_, bytes)| bytes.clone()).collect();
                (Some((&receipts.bytes, paths(&receipts.bytes))), Some((paths(&bytes), bytes)))
            }
            _ => (None, None),
        };
        transfers
            .into_iter()
            .map(|transfer| {
                let index = usize::try_from(transfer.tx_index).unwrap_or(usize::MAX);
                let item = |bytes: Option<&Bytes>, path: Option<&Vec<Bytes>>| {
                    Some(EvidenceItem { bytes: bytes?.clone(), path: path?.clone() })
                };
                Evidence::new(
                    transfer,
                    self.level,
                    EvidenceBlock { link: self.link, header_rlp: self.header_rlp.clone() },
                    transactions
                        .as_ref()
                        .and_then(|(paths, bytes)| item(bytes.get(index), paths.get(&index))),
                    receipts.as_ref().and_then(|(bytes, paths)| item(bytes.get(index), paths.get(&index))),
                    self.supporters.get(&transfer.key).unwrap_or(&self.voters).clone(),
                )
            })
            .collect()
    }
}

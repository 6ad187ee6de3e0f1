//! The evidence of one transfer: pure data that a third party checks offline.
//!
//! Guarantees: [`verify`] believes nothing that the bundle merely says. The header's bytes give the
//! block's hash, number and time; the paths bind the transaction and the receipt to its roots and to
//! one index; the transfer is read again from those bytes and has to equal the claim in every field.
//! What cannot be proven this way is named in the result.
//!
//! Deliberately absent: that the block is the chain's. A made-up header can carry made-up roots; only an
//! anchor (a block hash the checker trusts) or a trusted signature over the bundle rules that out.

use alloy_primitives::{Address, B256, Bytes, keccak256};
use domain::chain::{Asset, BlockLink, BlockRef, ChainId, EvidenceLevel, Transfer, TransferKey};
use domain::money::Amount;
use domain::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::block::{Recipients, Watch};
use super::proof::{ConsensusReceipt, decode_header, verify_inclusion};
use super::wire::ConsensusTransaction;

/// The only version there is.
const VERSION: u32 = 1;

/// A value that is spelt as its text.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Who agreed on the block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Voter {
    /// The group that voted.
    pub group: String,
    /// The provider that spoke for it.
    pub provider: String,
    /// When its answer arrived.
    pub at: Timestamp,
}

/// The block of the transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceBlock {
    /// Its place in the chain.
    pub link: BlockLink,
    /// The RLP of its header, where the hash is the hash of that.
    pub header_rlp: Option<Bytes>,
}

/// One item of an ordered trie, and its path from the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceItem {
    /// The item as the trie holds it.
    pub bytes: Bytes,
    /// The nodes from the root to the item.
    pub path: Vec<Bytes>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockForm {
    number: u64,
    hash: B256,
    parent: B256,
    time: Timestamp,
    header_rlp: Option<Bytes>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TransferForm {
    tx: B256,
    ordinal: i64,
    tx_index: u64,
    log_index: Option<u64>,
    asset: Asset,
    payer: Address,
    recipient: Address,
    amount: Amount,
}

/// The evidence of one transfer. Its JSON form is the inner part of a signed bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    version: u32,
    chain: ChainId,
    #[serde(with = "as_text")]
    level: EvidenceLevel,
    transfer: TransferForm,
    block: BlockForm,
    transaction: Option<EvidenceItem>,
    receipt: Option<EvidenceItem>,
    voters: Vec<Voter>,
}

/// Why evidence does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Made by another version of the format.
    #[error("evidence version {0} is not known")]
    Version(u32),
    /// The level promises a proof that is not there.
    #[error("the evidence says VERIFIED but holds no {0}")]
    Missing(&'static str),
    /// The header's bytes are no header, or not the one with this hash.
    #[error("the header does not have the block's hash")]
    Header,
    /// The header says otherwise.
    #[error("the header has another {0}")]
    HeaderField(&'static str),
    /// The path does not lead from the header's root to the item.
    #[error("the {0} is not in the block at this index")]
    NotIncluded(&'static str),
    /// The bytes are no transaction or receipt.
    #[error("the {0} cannot be decoded")]
    Undecodable(&'static str),
    /// The proven bytes say otherwise than the claim.
    #[error("the proven bytes show another {0}")]
    Claim(&'static str),
    /// The block is not the one the checker trusts.
    #[error("the block is not the anchor")]
    Anchor,
}

/// Evidence that holds, and how far it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedTransfer {
    /// The transfer as claimed.
    pub transfer: Transfer,
    /// How its issuer knew of it.
    pub level: EvidenceLevel,
    /// Whether the block is one the checker trusts.
    pub anchored: bool,
    /// The parts that follow from the bytes.
    pub proven: Vec<&'static str>,
    /// The parts that rest on the issuer's word alone.
    pub unproven: Vec<&'static str>,
}

impl VerifiedTransfer {
    /// Whether payer, recipient, asset and amount follow from the bytes of the block.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proven.contains(&"transfer")
    }
}

impl Evidence {
    pub(super) fn new(
        transfer: &Transfer,
        level: EvidenceLevel,
        block: EvidenceBlock,
        transaction: Option<EvidenceItem>,
        receipt: Option<EvidenceItem>,
        voters: Vec<Voter>,
    ) -> Self {
        let EvidenceBlock { link, header_rlp } = block;
        Self {
            version: VERSION,
            chain: transfer.key.chain,
            level,
            transfer: TransferForm {
                tx: transfer.key.tx,
                ordinal: transfer.key.ordinal,
                tx_index: transfer.tx_index,
                log_index: transfer.log_index,
                asset: transfer.asset,
                payer: transfer.payer,
                recipient: transfer.recipient,
                amount: transfer.amount,
            },
            block: BlockForm {
                number: link.block.number,
                hash: link.block.hash,
                parent: link.parent,
                time: link.time,
                header_rlp,
            },
            transaction,
            receipt,
            voters,
        }
    }

    /// The transfer as claimed.
    #[must_use]
    pub fn transfer(&self) -> Transfer {
        let TransferForm { tx, ordinal, tx_index, log_index, asset, payer, recipient, amount } =
            self.transfer;
        Transfer {
            key: TransferKey { chain: self.chain, tx, ordinal },
            block: BlockRef { number: self.block.number, hash: self.block.hash },
            time: self.block.time,
            tx_index,
            log_index,
            asset,
            payer,
            recipient,
            amount,
        }
    }

    /// How the issuer knew of it.
    #[must_use]
    pub fn level(&self) -> EvidenceLevel {
        self.level
    }

    /// Who agreed on the block.
    #[must_use]
    pub fn voters(&self) -> &[Voter] {
        &self.voters
    }
}

/// Checks evidence offline. `anchor` is the hash of the block as the checker knows it from elsewhere.
///
/// # Errors
/// The first contradiction; see [`EvidenceError`]. A level below VERIFIED is no contradiction: what it
/// leaves open is listed as unproven.
pub fn verify(evidence: &Evidence, anchor: Option<B256>) -> Result<VerifiedTransfer, EvidenceError> {
    if evidence.version != VERSION {
        return Err(EvidenceError::Version(evidence.version));
    }
    if anchor.is_some_and(|anchor| anchor != evidence.block.hash) {
        return Err(EvidenceError::Anchor);
    }
    let mut result = VerifiedTransfer {
        transfer: evidence.transfer(),
        level: evidence.level,
        anchored: anchor.is_some(),
        proven: Vec::new(),
        unproven: vec!["voters"],
    };
    if evidence.transfer.log_index.is_some() {
        result.unproven.push("log_index");
    }
    match &evidence.block.header_rlp {
        Some(rlp) => {
            check_header(&evidence.block, rlp)?;
            result.proven.extend(["block.number", "block.parent", "block.time"]);
        }
        None => result.unproven.extend(["block.number", "block.parent", "block.time"]),
    }
    if evidence.level < EvidenceLevel::Verified {
        result.unproven.extend(["chain", "transaction", "receipt", "transfer"]);
        return Ok(result);
    }
    let (transaction, receipt) = included(evidence)?;
    match transaction.chain_id() {
        Some(number) if number == evidence.chain.number() => result.proven.push("chain"),
        Some(_) => return Err(EvidenceError::Claim("chain")),
        None => result.unproven.push("chain"),
    }
    check_transfer(&evidence.transfer, &transaction, &receipt)?;
    result.proven.extend(["transaction", "receipt", "transfer"]);
    Ok(result)
}

fn check_header(block: &BlockForm, rlp: &Bytes) -> Result<(), EvidenceError> {
    if keccak256(rlp) != block.hash {
        return Err(EvidenceError::Header);
    }
    let header = decode_header(rlp).map_err(|_| EvidenceError::Header)?;
    match () {
        () if header.number != block.number => Err(EvidenceError::HeaderField("number")),
        () if header.parent_hash != block.parent => Err(EvidenceError::HeaderField("parent")),
        () if Timestamp::from_seconds(header.timestamp) != block.time => {
            Err(EvidenceError::HeaderField("time"))
        }
        () => Ok(()),
    }
}

/// The transaction and the receipt at the claimed index, proven to be there.
fn included(evidence: &Evidence) -> Result<(ConsensusTransaction, ConsensusReceipt), EvidenceError> {
    let rlp = evidence.block.header_rlp.as_ref().ok_or(EvidenceError::Missing("header"))?;
    let header = decode_header(rlp).map_err(|_| EvidenceError::Header)?;
    let transaction = evidence.transaction.as_ref().ok_or(EvidenceError::Missing("transaction"))?;
    let receipt = evidence.receipt.as_ref().ok_or(EvidenceError::Missing("receipt"))?;
    let index = evidence.transfer.tx_index;
    verify_inclusion(header.transactions_root, index, &transaction.bytes, &transaction.path)
        .map_err(|_| EvidenceError::NotIncluded("transaction"))?;
    verify_inclusion(header.receipts_root, index, &receipt.bytes, &receipt.path)
        .map_err(|_| EvidenceError::NotIncluded("receipt"))?;
    if keccak256(&transaction.bytes) != evidence.transfer.tx {
        return Err(EvidenceError::Claim("transaction hash"));
    }
    Ok((
        ConsensusTransaction::decode(&transaction.bytes)
            .map_err(|_| EvidenceError::Undecodable("transaction"))?,
        ConsensusReceipt::decode(&receipt.bytes).map_err(|_| EvidenceError::Undecodable("receipt"))?,
    ))
}

/// Reads the transfer again, from proven bytes.
fn check_transfer(
    claim: &TransferForm,
    transaction: &ConsensusTransaction,
    receipt: &ConsensusReceipt,
) -> Result<(), EvidenceError> {
    let watch = Watch { recipients: Recipients::Everyone, ..Watch::all([claim.asset]) };
    let (payer, recipient, amount) = if claim.ordinal == TransferKey::NATIVE {
        if claim.asset != Asset::Native || claim.log_index.is_some() {
            return Err(EvidenceError::Claim("asset"));
        }
        if !receipt.succeeded() {
            return Err(EvidenceError::Claim("status"));
        }
        let recipient =
            watch.wants_value(transaction.to(), transaction.value()).ok_or(EvidenceError::Claim("value"))?;
        let payer = transaction.sender().map_err(|_| EvidenceError::Undecodable("signature"))?;
        (payer, recipient, Amount::new(transaction.value()))
    } else {
        let ordinal = usize::try_from(claim.ordinal).map_err(|_| EvidenceError::Claim("log"))?;
        let log = receipt.logs.get(ordinal).ok_or(EvidenceError::Claim("log"))?;
        let read = watch.read_log(log).ok_or(EvidenceError::Claim("log"))?;
        if claim.log_index.is_none() {
            return Err(EvidenceError::Claim("log"));
        }
        (read.payer, read.recipient, read.amount)
    };
    match () {
        () if payer != claim.payer => Err(EvidenceError::Claim("payer")),
        () if recipient != claim.recipient => Err(EvidenceError::Claim("recipient")),
        () if amount != claim.amount => Err(EvidenceError::Claim("amount")),
        () => Ok(()),
    }
}

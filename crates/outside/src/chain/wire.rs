//! What an endpoint sends, decoded strictly and only as far as it can be checked.
//!
//! Guarantees: a decoded value has the shape and the bounds the protocol allows (topics ≤ 4, indices
//! in a block's range, one block per list), and header hashes are recomputed where the chain lets us.
//! A transaction is carried as the bytes that consensus covers, never as the fields an endpoint shows.
//!
//! Deliberately absent: belief. Decoding says "well formed", the roots and votes say "true".

use std::collections::BTreeSet;

use alloy_consensus::transaction::SignerRecoverable;
use alloy_consensus::{
    Eip658Value, EthereumTxEnvelope, Header, SignableTransaction as _, Transaction as _, TxEip1559,
    TxEip2930, TxEip4844, TxEip7702, TxLegacy,
};
use alloy_eips::eip2718::{Decodable2718, Encodable2718};
use alloy_eips::eip2930::AccessList;
use alloy_eips::eip7702::SignedAuthorization;
use alloy_primitives::{Address, B256, Bloom, Bytes, Log, LogData, Signature, TxKind, U256};
use domain::chain::{BlockLink, BlockRef};
use domain::time::Timestamp;
use op_alloy_consensus::{OpTxEnvelope, TxDeposit};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;

use super::error::RpcError;
use super::profile::{ChainProfile, RootMode};
use super::proof::{ConsensusReceipt, DEPOSIT_TYPE, Undecodable, header_rlp};

/// No block holds more: at 21,000 gas each this would be a block of more than 2·10^9 gas.
const MAX_TRANSACTIONS: usize = 100_000;
/// No block holds more logs: at 375 gas each this would be a block of more than 3.7·10^8 gas.
const MAX_LOGS: usize = 1_000_000;

const fn malformed(what: &'static str) -> RpcError {
    RpcError::Malformed(what)
}

fn parse<T: DeserializeOwned>(raw: &RawValue, what: &'static str) -> Result<T, RpcError> {
    match serde_json::from_str::<Option<T>>(raw.get()) {
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err(RpcError::NotFound),
        Err(_) => Err(malformed(what)),
    }
}

/// A number in JSON-RPC "quantity" form.
///
/// # Errors
/// [`RpcError::NotFound`] for `null`, else malformed.
pub fn decode_quantity(raw: &RawValue) -> Result<u64, RpcError> {
    #[derive(Deserialize)]
    struct Quantity(#[serde(with = "alloy_serde::quantity")] u64);
    parse::<Quantity>(raw, "quantity").map(|quantity| quantity.0)
}

/// A header as one endpoint served it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenHeader {
    /// The block's hash: recomputed, or claimed on chains where it cannot be.
    pub hash: B256,
    /// The header.
    pub header: Header,
}

impl SeenHeader {
    /// What a chain of blocks needs of it.
    #[must_use]
    pub fn link(&self) -> BlockLink {
        BlockLink {
            block: BlockRef { number: self.header.number, hash: self.hash },
            parent: self.header.parent_hash,
            time: Timestamp::from_seconds(self.header.timestamp),
        }
    }

    /// The header's RLP, if its hash is the hash of that.
    #[must_use]
    pub fn rlp(&self) -> Option<Bytes> {
        (self.header.hash_slow() == self.hash).then(|| header_rlp(&self.header))
    }
}

#[derive(Deserialize)]
struct JsonBlock<T> {
    hash: B256,
    #[serde(default = "Vec::new")]
    transactions: Vec<T>,
    #[serde(flatten)]
    header: Header,
}

fn checked_header<T>(block: &JsonBlock<T>, profile: &ChainProfile) -> Result<SeenHeader, RpcError> {
    if profile.header_hash_recomputed && block.header.hash_slow() != block.hash {
        return Err(malformed("header hash"));
    }
    // Larger numbers than these cannot be stored as signed 64-bit integers anywhere.
    if i64::try_from(block.header.number).is_err() || i64::try_from(block.header.timestamp).is_err() {
        return Err(malformed("header range"));
    }
    Ok(SeenHeader { hash: block.hash, header: block.header.clone() })
}

/// Decodes the answer of `eth_getBlockBy…(…, false)`.
///
/// # Errors
/// [`RpcError::NotFound`] for `null`; malformed also when the hash is not that of the header.
pub fn decode_header_answer(raw: &RawValue, profile: &ChainProfile) -> Result<SeenHeader, RpcError> {
    let block: JsonBlock<IgnoredAny> = parse(raw, "header")?;
    checked_header(&block, profile)
}

/// Decodes the answer of `eth_getBlockByHash(…, false)` as far as the block and the hashes of its transactions.
///
/// # Errors
/// [`RpcError::NotFound`] for `null`; malformed also when the hash is not that of the header.
pub fn decode_contents(
    raw: &RawValue,
    profile: &ChainProfile,
) -> Result<(BlockRef, BTreeSet<B256>), RpcError> {
    let block: JsonBlock<B256> = parse(raw, "block")?;
    let seen = checked_header(&block, profile)?;
    Ok((seen.link().block, block.transactions.into_iter().collect()))
}

/// A transaction by the bytes that consensus covers.
#[derive(Debug, Clone)]
pub enum ConsensusTransaction {
    /// A type that Ethereum knows.
    Eth(EthereumTxEnvelope<TxEip4844>),
    /// A type that the OP stack knows.
    Op(OpTxEnvelope),
}

impl ConsensusTransaction {
    /// Decodes EIP-2718 bytes.
    ///
    /// # Errors
    /// Anything that is not exactly one transaction of a known type.
    pub fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        const WHAT: Undecodable = Undecodable("transaction");
        let mut rest = bytes;
        let transaction = if bytes.first() == Some(&DEPOSIT_TYPE) {
            Self::Op(OpTxEnvelope::decode_2718(&mut rest).map_err(|_| WHAT)?)
        } else {
            Self::Eth(EthereumTxEnvelope::decode_2718(&mut rest).map_err(|_| WHAT)?)
        };
        if rest.is_empty() && transaction.encode() == bytes { Ok(transaction) } else { Err(WHAT) }
    }

    /// The EIP-2718 bytes that the transactions trie holds.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Eth(transaction) => transaction.encoded_2718(),
            Self::Op(transaction) => transaction.encoded_2718(),
        }
    }

    /// The EIP-155 chain the sender signed for; none for old and for deposit transactions.
    #[must_use]
    pub fn chain_id(&self) -> Option<u64> {
        match self {
            Self::Eth(transaction) => transaction.chain_id(),
            Self::Op(transaction) => transaction.chain_id(),
        }
    }

    /// Whom it calls; none when it creates a contract.
    #[must_use]
    pub fn to(&self) -> Option<Address> {
        match self {
            Self::Eth(transaction) => transaction.to(),
            Self::Op(transaction) => transaction.to(),
        }
    }

    /// The native coin it carries.
    #[must_use]
    pub fn value(&self) -> U256 {
        match self {
            Self::Eth(transaction) => transaction.value(),
            Self::Op(transaction) => transaction.value(),
        }
    }

    /// Who sent it: recovered from the signature, or named in a deposit's own bytes.
    ///
    /// # Errors
    /// When the signature yields no key.
    pub fn sender(&self) -> Result<Address, Undecodable> {
        const WHAT: Undecodable = Undecodable("signature");
        match self {
            Self::Eth(transaction) => transaction.recover_signer_unchecked().map_err(|_| WHAT),
            Self::Op(OpTxEnvelope::Deposit(deposit)) => Ok(deposit.from),
            Self::Op(transaction) => transaction.recover_signer_unchecked().map_err(|_| WHAT),
        }
    }
}

/// The transactions of a block, in order, with the bytes they encode to.
#[derive(Debug, Clone)]
pub struct BlockTransactions {
    /// The hash the endpoint gave for the block that holds them.
    pub block: B256,
    /// Each transaction and its EIP-2718 bytes.
    pub list: Vec<(ConsensusTransaction, Bytes)>,
}

/// A transaction of any type, as JSON-RPC shows it. Read field by field: an enum tagged by `type` would be
/// buffered whole before it is read, which costs more than everything else we do with it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonTransaction {
    #[serde(rename = "type", default, with = "alloy_serde::quantity::opt")]
    tx_type: Option<u8>,
    #[serde(default, with = "alloy_serde::quantity::opt")]
    chain_id: Option<u64>,
    #[serde(default, with = "alloy_serde::quantity::opt")]
    nonce: Option<u64>,
    #[serde(default, with = "alloy_serde::quantity::opt")]
    gas_price: Option<u128>,
    #[serde(default, with = "alloy_serde::quantity::opt")]
    max_fee_per_gas: Option<u128>,
    #[serde(default, with = "alloy_serde::quantity::opt")]
    max_priority_fee_per_gas: Option<u128>,
    #[serde(default, with = "alloy_serde::quantity::opt")]
    max_fee_per_blob_gas: Option<u128>,
    #[serde(with = "alloy_serde::quantity")]
    gas: u64,
    #[serde(default)]
    to: Option<Address>,
    value: U256,
    input: Bytes,
    #[serde(default)]
    access_list: Option<AccessList>,
    #[serde(default)]
    blob_versioned_hashes: Option<Vec<B256>>,
    #[serde(default)]
    authorization_list: Option<Vec<SignedAuthorization>>,
    #[serde(default, with = "alloy_serde::quantity::opt")]
    v: Option<u64>,
    #[serde(default, with = "alloy_serde::quantity::opt")]
    y_parity: Option<u64>,
    #[serde(default)]
    r: U256,
    #[serde(default)]
    s: U256,
    // OP-stack deposits.
    #[serde(default)]
    from: Option<Address>,
    #[serde(default)]
    source_hash: Option<B256>,
    #[serde(default, with = "alloy_serde::quantity::opt")]
    mint: Option<u128>,
    #[serde(default)]
    is_system_tx: Option<bool>,
}

impl JsonTransaction {
    /// The transaction; none when a field of its type is missing or the type is not one of `mode`.
    fn into_consensus(self, mode: RootMode) -> Option<ConsensusTransaction> {
        let to = self.to.map_or(TxKind::Create, TxKind::Call);
        let (gas_limit, value) = (self.gas, self.value);
        let access_list = self.access_list.unwrap_or_default();
        let tx_type = self.tx_type.unwrap_or(0);
        if tx_type == DEPOSIT_TYPE && mode == RootMode::Op {
            let deposit = TxDeposit {
                source_hash: self.source_hash?,
                from: self.from?,
                to,
                mint: self.mint.unwrap_or(0),
                value,
                gas_limit,
                is_system_transaction: self.is_system_tx.unwrap_or(false),
                input: self.input,
            };
            return Some(ConsensusTransaction::Op(deposit.into()));
        }
        let nonce = self.nonce?;
        let input = self.input;
        let signed = |parity| Signature::new(self.r, self.s, parity);
        let typed = || match self.y_parity.or(self.v)? {
            0 => Some(signed(false)),
            1 => Some(signed(true)),
            _ => None,
        };
        let envelope = match tx_type {
            0 => {
                // EIP-155 folds the chain into v.
                let (chain_id, parity) = match self.v? {
                    v @ 27..=28 => (None, v == 28),
                    v @ 35.. => (Some((v - 35) / 2), (v - 35) % 2 == 1),
                    _ => return None,
                };
                let tx =
                    TxLegacy { chain_id, nonce, gas_price: self.gas_price?, gas_limit, to, value, input };
                EthereumTxEnvelope::Legacy(tx.into_signed(signed(parity)))
            }
            1 => {
                let (chain_id, gas_price) = (self.chain_id?, self.gas_price?);
                let tx = TxEip2930 { chain_id, nonce, gas_price, gas_limit, to, value, access_list, input };
                EthereumTxEnvelope::Eip2930(tx.into_signed(typed()?))
            }
            2 => {
                let tx = TxEip1559 {
                    chain_id: self.chain_id?,
                    nonce,
                    gas_limit,
                    max_fee_per_gas: self.max_fee_per_gas?,
                    max_priority_fee_per_gas: self.max_priority_fee_per_gas?,
                    to,
                    value,
                    access_list,
                    input,
                };
                EthereumTxEnvelope::Eip1559(tx.into_signed(typed()?))
            }
            3 => {
                let tx = TxEip4844 {
                    chain_id: self.chain_id?,
                    nonce,
                    gas_limit,
                    max_fee_per_gas: self.max_fee_per_gas?,
                    max_priority_fee_per_gas: self.max_priority_fee_per_gas?,
                    to: self.to?,
                    value,
                    access_list,
                    blob_versioned_hashes: self.blob_versioned_hashes?,
                    max_fee_per_blob_gas: self.max_fee_per_blob_gas?,
                    input,
                };
                EthereumTxEnvelope::Eip4844(tx.into_signed(typed()?))
            }
            4 => {
                let tx = TxEip7702 {
                    chain_id: self.chain_id?,
                    nonce,
                    gas_limit,
                    max_fee_per_gas: self.max_fee_per_gas?,
                    max_priority_fee_per_gas: self.max_priority_fee_per_gas?,
                    to: self.to?,
                    value,
                    access_list,
                    authorization_list: self.authorization_list?,
                    input,
                };
                EthereumTxEnvelope::Eip7702(tx.into_signed(typed()?))
            }
            _ => return None,
        };
        Some(ConsensusTransaction::Eth(envelope))
    }
}

/// Decodes the answer of `eth_getBlockByHash(…, true)` as far as the transactions.
///
/// # Errors
/// [`RpcError::NotFound`] for `null`; malformed also for a transaction type that the chain's mode does not
/// have.
pub fn decode_transactions(raw: &RawValue, profile: &ChainProfile) -> Result<BlockTransactions, RpcError> {
    let block: JsonBlock<JsonTransaction> = parse(raw, "block")?;
    let seen = checked_header(&block, profile)?;
    if block.transactions.len() > MAX_TRANSACTIONS {
        return Err(RpcError::TooLarge);
    }
    let list = block
        .transactions
        .into_iter()
        .map(|transaction| {
            let transaction =
                transaction.into_consensus(profile.root_mode).ok_or(malformed("transaction"))?;
            let bytes = transaction.encode().into();
            Ok((transaction, bytes))
        })
        .collect::<Result<_, RpcError>>()?;
    Ok(BlockTransactions { block: seen.hash, list })
}

/// A receipt as one endpoint served it.
#[derive(Debug, Clone)]
pub struct SeenReceipt {
    /// The part that the receipts root covers.
    pub consensus: ConsensusReceipt,
    /// Claimed, not covered by the root.
    pub tx_hash: B256,
    /// Claimed, not covered by the root.
    pub tx_index: u64,
    /// Claimed, not covered by the root.
    pub block: BlockRef,
    /// Claimed index in the block of the first log, if it has any.
    pub first_log_index: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonReceipt {
    #[serde(rename = "type", default, with = "alloy_serde::quantity::opt")]
    tx_type: Option<u8>,
    #[serde(default, with = "alloy_serde::quantity::opt")]
    status: Option<u64>,
    #[serde(default)]
    root: Option<B256>,
    #[serde(with = "alloy_serde::quantity")]
    cumulative_gas_used: u64,
    #[serde(default)]
    logs_bloom: Option<Bloom>,
    logs: Vec<JsonLog>,
    transaction_hash: B256,
    #[serde(with = "alloy_serde::quantity")]
    transaction_index: u64,
    block_hash: B256,
    #[serde(with = "alloy_serde::quantity")]
    block_number: u64,
    #[serde(default, with = "alloy_serde::quantity::opt")]
    deposit_nonce: Option<u64>,
    #[serde(default, with = "alloy_serde::quantity::opt")]
    deposit_receipt_version: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonLog {
    address: Address,
    topics: Vec<B256>,
    data: Bytes,
    #[serde(default)]
    block_hash: Option<B256>,
    #[serde(default, with = "alloy_serde::quantity::opt")]
    block_number: Option<u64>,
    #[serde(default)]
    transaction_hash: Option<B256>,
    #[serde(default, with = "alloy_serde::quantity::opt")]
    transaction_index: Option<u64>,
    #[serde(default, with = "alloy_serde::quantity::opt")]
    log_index: Option<u64>,
    #[serde(default)]
    removed: bool,
}

fn seen_receipt(json: JsonReceipt) -> Result<SeenReceipt, RpcError> {
    if json.logs.iter().any(|log| log.topics.len() > 4) {
        return Err(malformed("log topics"));
    }
    let contiguous = json.logs.windows(2).all(|pair| match (pair[0].log_index, pair[1].log_index) {
        (Some(low), Some(high)) => low.checked_add(1) == Some(high),
        _ => true,
    });
    let first_log_index = json.logs.first().and_then(|log| log.log_index);
    if !contiguous || first_log_index.is_some_and(|index| index > MAX_LOGS as u64) {
        return Err(malformed("log index"));
    }
    let status = match (json.status, json.root) {
        (Some(0), _) => Eip658Value::Eip658(false),
        (Some(1), _) => Eip658Value::Eip658(true),
        (None, Some(root)) => Eip658Value::PostState(root),
        _ => return Err(malformed("receipt status")),
    };
    let logs: Vec<Log> = json
        .logs
        .into_iter()
        .map(|log| Log { address: log.address, data: LogData::new_unchecked(log.topics, log.data) })
        .collect();
    let bloom = json.logs_bloom.unwrap_or_else(|| logs.iter().collect());
    Ok(SeenReceipt {
        consensus: ConsensusReceipt {
            tx_type: json.tx_type.unwrap_or(0),
            status,
            cumulative_gas_used: json.cumulative_gas_used,
            bloom,
            logs,
            deposit_nonce: json.deposit_nonce,
            deposit_receipt_version: json.deposit_receipt_version,
        },
        tx_hash: json.transaction_hash,
        tx_index: json.transaction_index,
        block: BlockRef { number: json.block_number, hash: json.block_hash },
        first_log_index,
    })
}

/// Decodes the answer of `eth_getBlockReceipts`.
///
/// # Errors
/// [`RpcError::NotFound`] for `null`, else malformed.
pub fn decode_receipts(raw: &RawValue) -> Result<Vec<SeenReceipt>, RpcError> {
    let list: Vec<JsonReceipt> = parse(raw, "receipts")?;
    if list.len() > MAX_TRANSACTIONS
        || list.iter().map(|receipt| receipt.logs.len()).sum::<usize>() > MAX_LOGS
    {
        return Err(RpcError::TooLarge);
    }
    list.into_iter().map(seen_receipt).collect()
}

/// Decodes the answer of `eth_getTransactionReceipt`.
///
/// # Errors
/// [`RpcError::NotFound`] for `null` (unknown or pending), else malformed.
pub fn decode_receipt(raw: &RawValue) -> Result<SeenReceipt, RpcError> {
    seen_receipt(parse(raw, "receipt")?)
}

/// A log as one endpoint served it, with everything a vote needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenLog {
    /// The block it is claimed to be in.
    pub block: BlockRef,
    /// The transaction it is claimed to be from.
    pub tx: B256,
    /// Index of that transaction.
    pub tx_index: u64,
    /// Index of the log in the block.
    pub log_index: u64,
    /// Its content.
    pub log: Log,
}

/// Decodes the answer of `eth_getLogs` for one block. An empty list is an answer.
///
/// # Errors
/// Malformed when a log lacks a field, is marked `removed`, is of another block than `block`, or when
/// two logs share an index.
pub fn decode_logs(raw: &RawValue, block: BlockRef) -> Result<Vec<SeenLog>, RpcError> {
    let list: Vec<JsonLog> = parse(raw, "logs")?;
    if list.len() > MAX_LOGS {
        return Err(RpcError::TooLarge);
    }
    let mut logs = Vec::with_capacity(list.len());
    for log in list {
        let (Some(hash), Some(number), Some(tx), Some(tx_index), Some(log_index)) =
            (log.block_hash, log.block_number, log.transaction_hash, log.transaction_index, log.log_index)
        else {
            return Err(malformed("log fields"));
        };
        if log.removed || (BlockRef { number, hash }) != block {
            return Err(malformed("log of another block"));
        }
        if log.topics.len() > 4 || log_index > MAX_LOGS as u64 || tx_index > MAX_TRANSACTIONS as u64 {
            return Err(malformed("log range"));
        }
        let log = Log { address: log.address, data: LogData::new_unchecked(log.topics, log.data) };
        logs.push(SeenLog { block, tx, tx_index, log_index, log });
    }
    logs.sort_unstable_by_key(|log| log.log_index);
    if logs
        .windows(2)
        .any(|pair| pair[0].log_index == pair[1].log_index || pair[0].tx_index > pair[1].tx_index)
    {
        return Err(malformed("log order"));
    }
    Ok(logs)
}

/// What a transaction is claimed to be, where its bytes cannot be checked against a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimedTransaction {
    /// Its hash.
    pub hash: B256,
    /// Its index in the block.
    pub index: u64,
    /// Its sender.
    pub from: Address,
    /// Whom it calls; none when it creates a contract.
    pub to: Option<Address>,
    /// The native coin it carries.
    pub value: U256,
}

/// Decodes the answer of `eth_getBlockByHash(…, true)` where no root can be checked.
///
/// # Errors
/// [`RpcError::NotFound`] for `null`; malformed when the block or an index is another than asked for.
pub fn decode_claimed_transactions(
    raw: &RawValue,
    profile: &ChainProfile,
    block: BlockRef,
) -> Result<Vec<ClaimedTransaction>, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct JsonTransaction {
        hash: B256,
        #[serde(with = "alloy_serde::quantity")]
        transaction_index: u64,
        from: Address,
        #[serde(default)]
        to: Option<Address>,
        value: U256,
    }
    let answer: JsonBlock<JsonTransaction> = parse(raw, "block")?;
    let seen = checked_header(&answer, profile)?;
    if seen.link().block != block {
        return Err(malformed("another block than asked for"));
    }
    answer
        .transactions
        .into_iter()
        .enumerate()
        .map(|(position, tx)| {
            if usize::try_from(tx.transaction_index) != Ok(position) {
                return Err(malformed("transaction index"));
            }
            Ok(ClaimedTransaction {
                hash: tx.hash,
                index: tx.transaction_index,
                from: tx.from,
                to: tx.to,
                value: tx.value,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_eips::eip2930::AccessListItem;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    /// One transaction of each type, with nothing left at its default.
    fn one_of_each() -> Vec<ConsensusTransaction> {
        let signature = |parity| Signature::new(U256::from(11), U256::from(12), parity);
        let to = Address::repeat_byte(3);
        let access_list =
            AccessList(vec![AccessListItem { address: to, storage_keys: vec![B256::repeat_byte(9)] }]);
        let value = U256::from(77);
        let input = Bytes::from_static(b"data");
        let legacy = |chain_id| TxLegacy {
            chain_id,
            nonce: 1,
            gas_price: 2,
            gas_limit: 3,
            to: TxKind::Call(to),
            value,
            input: input.clone(),
        };
        let fees = TxEip1559 {
            chain_id: 5,
            nonce: 1,
            gas_limit: 3,
            max_fee_per_gas: 4,
            max_priority_fee_per_gas: 2,
            to: TxKind::Create,
            value,
            access_list: access_list.clone(),
            input: input.clone(),
        };
        let blobs = TxEip4844 {
            chain_id: 5,
            nonce: 1,
            gas_limit: 3,
            max_fee_per_gas: 4,
            max_priority_fee_per_gas: 2,
            to,
            value,
            access_list: access_list.clone(),
            blob_versioned_hashes: vec![B256::repeat_byte(1)],
            max_fee_per_blob_gas: 9,
            input: input.clone(),
        };
        let listed = TxEip2930 {
            chain_id: 5,
            nonce: 1,
            gas_price: 2,
            gas_limit: 3,
            to: TxKind::Call(to),
            value,
            access_list: access_list.clone(),
            input: input.clone(),
        };
        let authorization =
            alloy_eips::eip7702::Authorization { chain_id: U256::from(5), address: to, nonce: 8 };
        let setting = TxEip7702 {
            chain_id: 5,
            nonce: 1,
            gas_limit: 3,
            max_fee_per_gas: 4,
            max_priority_fee_per_gas: 2,
            to,
            value,
            access_list,
            authorization_list: vec![authorization.into_signed(signature(true))],
            input: input.clone(),
        };
        vec![
            ConsensusTransaction::Eth(EthereumTxEnvelope::Legacy(legacy(None).into_signed(signature(true)))),
            ConsensusTransaction::Eth(EthereumTxEnvelope::Legacy(
                legacy(Some(5)).into_signed(signature(false)),
            )),
            ConsensusTransaction::Eth(EthereumTxEnvelope::Eip2930(listed.into_signed(signature(true)))),
            ConsensusTransaction::Eth(EthereumTxEnvelope::Eip1559(fees.into_signed(signature(false)))),
            ConsensusTransaction::Eth(EthereumTxEnvelope::Eip4844(blobs.into_signed(signature(true)))),
            ConsensusTransaction::Eth(EthereumTxEnvelope::Eip7702(setting.into_signed(signature(true)))),
        ]
    }

    #[test]
    fn every_type_of_transaction_comes_back_from_its_json() {
        for transaction in one_of_each() {
            let ConsensusTransaction::Eth(envelope) = &transaction else { panic!("not Ethereum's") };
            let json = serde_json::to_string(envelope).unwrap();
            let read: JsonTransaction = serde_json::from_str(&json).unwrap();
            let read = read.into_consensus(RootMode::Eth).unwrap_or_else(|| panic!("{json}"));
            assert_eq!(read.encode(), transaction.encode(), "{json}");
            let decoded = ConsensusTransaction::decode(&transaction.encode()).unwrap();
            assert_eq!((decoded.value(), decoded.to()), (transaction.value(), transaction.to()));
        }
    }

    #[test]
    fn a_transaction_that_lacks_a_field_of_its_type_is_malformed() {
        for transaction in one_of_each() {
            let ConsensusTransaction::Eth(envelope) = &transaction else { panic!("not Ethereum's") };
            let mut json = serde_json::to_value(envelope).unwrap();
            for field in ["nonce", "v", "yParity", "gasPrice", "maxFeePerGas"] {
                json.as_object_mut().unwrap().remove(field);
            }
            let read: JsonTransaction = serde_json::from_value(json).unwrap();
            assert!(read.into_consensus(RootMode::Eth).is_none());
        }
    }

    #[test]
    fn logs_of_another_block_removed_or_out_of_order_are_malformed() {
        let block = BlockRef { number: 7, hash: B256::repeat_byte(7) };
        let log = |hash: B256, log_index: u64, tx_index: u64, removed: bool, topics: usize| {
            let topics = vec![B256::ZERO; topics];
            serde_json::json!({
                "address": Address::ZERO, "topics": topics, "data": "0x", "blockHash": hash, "blockNumber": "0x7",
                "transactionHash": B256::repeat_byte(1), "transactionIndex": format!("0x{tx_index:x}"),
                "logIndex": format!("0x{log_index:x}"), "removed": removed,
            })
        };
        let decode =
            |logs: &[serde_json::Value]| decode_logs(&raw(&serde_json::to_string(logs).unwrap()), block);
        assert_eq!(decode(&[]).unwrap(), []);
        assert_eq!(
            decode(&[log(block.hash, 1, 1, false, 3), log(block.hash, 0, 0, false, 4)]).unwrap().len(),
            2
        );
        for bad in [
            vec![log(B256::ZERO, 0, 0, false, 3)],
            vec![log(block.hash, 0, 0, true, 3)],
            vec![log(block.hash, 0, 0, false, 5)],
            vec![log(block.hash, 0, 0, false, 3), log(block.hash, 0, 0, false, 3)],
            vec![log(block.hash, 0, 1, false, 3), log(block.hash, 1, 0, false, 3)],
            // An index that ran below zero in 32 bits, as a node once served and a vote once believed.
            vec![log(block.hash, 0xffff_ffff, 0, false, 3)],
        ] {
            assert!(matches!(decode(&bad), Err(RpcError::Malformed(_))), "{bad:?}");
        }
        assert_eq!(decode_logs(&raw("null"), block), Err(RpcError::NotFound), "null is not an empty list");
    }
}

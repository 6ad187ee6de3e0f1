//! What can be wrong with a provider: one value, settable at run time and over RPC.
//!
//! [`Faults::default`] is an honest provider. All fields combine; the scope fields say which requests
//! are hit. The lies come in three strengths: answers that contradict themselves (a receipt that does not
//! fit its root), omissions that leave no trace in the answer, and a whole made-up branch whose every hash
//! is right ([`Faults::forge_blocks`]). Chance is drawn from the face's own seeded source.
//!
//! This file only describes; `face.rs` plays the transport faults and `rpc.rs` tells the lies.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, TxHash, U256};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The faults of a face.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    // Scope: which requests are hit.
    /// Only calls of these methods; a batch is hit if one of its calls is, and lies concern only those.
    pub only: Option<Vec<String>>,
    /// Only this share of the requests, in percent.
    pub percent: Option<u8>,
    /// Only every n-th request within the scope.
    pub every_nth: Option<u32>,
    /// Only the next n requests within the scope; honest afterwards.
    pub for_requests: Option<u32>,

    // Transport.
    /// The answer is computed at once and handed out this much later.
    pub latency_ms: u64,
    /// Plus up to this much.
    pub jitter_ms: u64,
    /// Never answers, and does nothing.
    pub hang: bool,
    /// Answers with this HTTP status instead of executing.
    pub status: Option<HttpStatus>,
    /// Answers with a web page instead of JSON (status 200 unless `status` is set).
    pub html: bool,
    /// Answers every call with this JSON-RPC error, in an HTTP 200, instead of executing.
    pub rpc_error: Option<RpcFault>,
    /// Hands out only the first half of the body.
    pub truncate: Option<Truncate>,
    /// Hands the body out in small pieces.
    pub drip: Option<Drip>,
    /// Executes, then closes the connection without a word.
    pub lose_response: bool,
    /// Answers under other ids than asked.
    pub ids: Option<IdFault>,
    /// The content type to claim.
    pub content_type: Option<String>,

    // Another view of the chain.
    /// This many blocks behind, consistently in every method.
    pub lag: u64,
    /// Up to this many more blocks behind, anew for every request: backends behind a load balancer.
    pub lag_jitter: u64,
    /// Knows no block above this height.
    pub stuck_at: Option<u64>,
    /// `eth_getLogs` finds nothing yet in this many of the newest visible blocks: the log index lags.
    pub logs_lag: u64,
    /// Receipts are not there yet (`null`) for this many of the newest visible blocks.
    pub receipts_lag: u64,
    /// Follows the branch that ends in this block, also if the chain has dropped it.
    pub follow: Option<B256>,
    /// The chain id to claim.
    pub chain_id: Option<u64>,

    // Limits that real providers have.
    /// The widest block range of `eth_getLogs`.
    pub log_range_cap: Option<u64>,
    /// The most logs in one answer.
    pub log_result_cap: Option<usize>,
    /// The most calls in one batch.
    pub batch_cap: Option<usize>,
    /// Ranges beyond the head are clipped in silence instead of refused.
    pub clip_ranges: bool,
    /// Unknown block hashes in `eth_getLogs` answer `[]` instead of an error.
    pub unknown_hash_is_empty: bool,
    /// Methods that are not offered.
    pub unsupported: Vec<String>,

    // Lies about logs.
    /// `eth_getLogs` answers `[]`.
    pub empty_logs: bool,
    /// Logs that are left out.
    pub omit_logs: Vec<LogPick>,
    /// Logs that are made up.
    pub forge_logs: Vec<ForgedLog>,
    /// Logs whose amount is changed.
    pub alter_amounts: Vec<AlteredAmount>,
    /// Every log is told twice.
    pub duplicate_logs: bool,
    /// Added to the log index of every log.
    pub shift_log_index: Option<u64>,
    /// Where these lies are told.
    pub reach: Reach,

    // Other lies.
    /// What `eth_getBlockReceipts` and `eth_getTransactionReceipt` answer.
    pub receipts: Option<ReceiptsLie>,
    /// Blocks are served under a hash that is not theirs.
    pub swap_block_hash: bool,
    /// A header field is changed.
    pub forge_header: Option<HeaderLie>,
    /// A whole alternative branch is made up, from the lowest of these blocks on.
    pub forge_blocks: Vec<ForgedBlock>,
    /// Transactions that are unknown here (by hash, and their receipts).
    pub hide_transactions: Vec<TxHash>,
    /// `eth_sendRawTransaction` answers the hash and forgets the transaction.
    pub swallow_sends: bool,
    /// Fixed results by method, whatever the parameters.
    pub results: BTreeMap<String, Value>,
}

/// An HTTP refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpStatus {
    /// The status code.
    pub code: u16,
    /// `Retry-After` in seconds.
    #[serde(default)]
    pub retry_after_secs: Option<u64>,
}

/// A JSON-RPC error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RpcFault {
    /// The code.
    pub code: i64,
    /// The text.
    pub message: String,
}

/// How a body is cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncate {
    /// The connection closes before the announced length.
    Connection,
    /// The length is right, the JSON is not.
    Json,
}

/// A slow body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drip {
    /// Bytes per piece.
    pub bytes: usize,
    /// Milliseconds between pieces.
    pub every_ms: u64,
}

/// What is wrong with the ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdFault {
    /// An id nobody used.
    Garbage,
    /// Every answer of a batch has the id of the first.
    Duplicate,
    /// No id at all.
    Missing,
    /// The answers of a batch in reverse order, with the right ids: legal.
    Reversed,
}

/// Which logs: every given condition must hold; none given means every log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogPick {
    /// The height.
    pub block: Option<u64>,
    /// The index within the block.
    pub log_index: Option<u64>,
    /// The emitting contract.
    pub address: Option<Address>,
    /// One of the topics.
    pub topic: Option<B256>,
    /// The transaction.
    pub transaction: Option<TxHash>,
}

/// A transfer that did not happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgedLog {
    /// The block it is put into.
    pub block: u64,
    /// The transaction it is attached to; default: the last of the block, or a made-up hash.
    #[serde(default)]
    pub transaction: Option<TxHash>,
    /// The token.
    pub token: Address,
    /// The alleged payer.
    pub from: Address,
    /// The alleged payee.
    pub to: Address,
    /// Base units.
    pub value: U256,
}

/// A real log with another amount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlteredAmount {
    /// Which logs.
    pub pick: LogPick,
    /// What they claim.
    pub value: U256,
}

/// Where lies about logs are told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// In `eth_getLogs` alone: the receipts of the same node tell the truth.
    #[default]
    Logs,
    /// In receipts alone.
    Receipts,
    /// In both. Receipts then do not fit the receipts root.
    Both,
}

/// A lie about receipts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReceiptsLie {
    /// `[]` for blocks, `null` for transactions.
    Empty,
    /// `null`.
    Null,
    /// The last receipt of a block is missing.
    DropLast,
    /// Failed transactions are said to have succeeded, and the reverse.
    FlipStatus,
}

/// A changed header field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderLie {
    /// From this height on.
    pub from_block: u64,
    /// Which field.
    pub field: HeaderField,
    /// Whether the hash is recomputed: the header then is consistent, and of another block.
    pub rehash: bool,
}

/// The header fields that may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderField {
    /// The parent hash.
    Parent,
    /// The receipts root.
    ReceiptsRoot,
    /// The transactions root.
    TransactionsRoot,
    /// The logs bloom, emptied.
    LogsBloom,
    /// The time, one second later.
    Timestamp,
}

/// A block that never was. It and all blocks after it get consistent hashes, roots and links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgedBlock {
    /// Its height.
    pub number: u64,
    /// Transfers it claims, each in a made-up transaction.
    #[serde(default)]
    pub transfers: Vec<ForgedTransfer>,
    /// Whether the real transactions of the block are left out.
    #[serde(default)]
    pub drop_transactions: bool,
}

/// A transfer in a made-up block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgedTransfer {
    /// The token; the zero address means native coin.
    pub token: Address,
    /// The alleged payer of a token (of native coin it is the forger's own address).
    pub from: Address,
    /// The alleged payee.
    pub to: Address,
    /// Base units.
    pub value: U256,
}

impl Faults {
    /// Is nothing wrong?
    pub fn is_honest(&self) -> bool {
        *self == Self::default()
    }

    /// Does the scope cover this method?
    pub(crate) fn covers(&self, method: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|name| name == method))
    }
}

/// Sets every listed field of `$base` that differs from the default in `$over`.
macro_rules! overlay {
    ($base:ident, $over:ident, $($field:ident),+ $(,)?) => {{
        let honest = Faults::default();
        $(if $over.$field != honest.$field {
            $base.$field = $over.$field.clone();
        })+
    }};
}

impl Faults {
    /// What several rules that hit the same call make together: of each field, the last rule that sets it.
    pub(crate) fn combined<'a>(rules: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut all = Self::default();
        for rule in rules {
            overlay!(
                all,
                rule,
                latency_ms,
                jitter_ms,
                hang,
                status,
                html,
                rpc_error,
                truncate,
                drip,
                lose_response,
                ids,
                content_type,
                lag,
                lag_jitter,
                logs_lag,
                receipts_lag,
                duplicate_logs,
                stuck_at,
                follow,
                chain_id,
                log_range_cap,
                log_result_cap,
                batch_cap,
                clip_ranges,
                unknown_hash_is_empty,
                unsupported,
                empty_logs,
                omit_logs,
                forge_logs,
                alter_amounts,
                shift_log_index,
                reach,
                receipts,
                swap_block_hash,
                forge_header,
                forge_blocks,
                hide_transactions,
                swallow_sends,
                results,
            );
        }
        all
    }
}

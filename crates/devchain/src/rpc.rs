//! The JSON-RPC methods, answered from one provider's view of the chain.
//!
//! A [`View`] is the chain as a face shows it: truncated by lag, on an abandoned branch, or with made-up
//! blocks at its end; every method reads through it, so a view is consistent in all of them. Names,
//! shapes and error texts are those of go-ethereum. Lies about single answers (a log left out, a receipt
//! changed) are applied to the answer of the method, not to the view.
//!
//! Not offered: filters and subscriptions (`eth_newFilter`, websockets), tracing, `pending` blocks
//! (`pending` reads as `latest`, except for nonces).

use std::sync::Arc;

use alloy_consensus::{EMPTY_ROOT_HASH, Header};
use alloy_eips::eip1559::BaseFeeParams;
use alloy_eips::{BlockId, BlockNumberOrTag};
use alloy_primitives::{Address, B256, Bloom, Bytes, KECCAK256_EMPTY, TxHash, U64, U256, keccak256};
use alloy_rpc_types_eth as rpc;
use revm::context::result::{ExecutionResult, HaltReason};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::block::Block;
use crate::chain::{Inner, revert_reason};
use crate::execute;
use crate::fault::{Faults, HeaderField, LogPick, Reach, ReceiptsLie};
use crate::state::State;
use crate::token;

/// One call of a request.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Call {
    #[serde(default)]
    pub(crate) id: Option<Value>,
    pub(crate) method: String,
    #[serde(default)]
    pub(crate) params: Value,
}

/// A JSON-RPC error object.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RpcError {
    pub(crate) code: i64,
    pub(crate) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<Value>,
}

impl RpcError {
    pub(crate) fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    pub(crate) fn server(message: impl Into<String>) -> Self {
        Self::new(-32_000, message)
    }

    pub(crate) fn params(message: impl Into<String>) -> Self {
        Self::new(-32_602, message)
    }

    pub(crate) fn unknown_method(method: &str) -> Self {
        Self::new(-32_601, format!("the method {method} does not exist/is not available"))
    }
}

pub(crate) type Answer = Result<Box<RawValue>, RpcError>;

/// The chain as one provider shows it for one request.
pub(crate) struct View<'a> {
    pub(crate) chain: &'a Inner,
    pub(crate) faults: &'a Faults,
    /// The height of the newest visible block.
    pub(crate) head: u64,
    /// Blocks that replace the canonical ones, from this height on without a gap up to the head.
    pub(crate) overlay: &'a [Arc<Block>],
}

impl View<'_> {
    fn overlay_start(&self) -> Option<u64> {
        self.overlay.first().map(|block| block.number())
    }

    fn block(&self, number: u64) -> Option<&Arc<Block>> {
        if number > self.head {
            return None;
        }
        match self.overlay_start() {
            Some(start) if number >= start => {
                self.overlay.get(usize::try_from(number.checked_sub(start)?).ok()?)
            }
            _ => self.chain.at(number),
        }
    }

    fn by_hash(&self, hash: &B256) -> Option<&Arc<Block>> {
        if let Some(block) = self.overlay.iter().find(|block| block.hash() == *hash) {
            return (block.number() <= self.head).then_some(block);
        }
        // Only what this view has on its own branch.
        let number = self.chain.blocks.get(hash)?.number();
        self.block(number).filter(|block| block.hash() == *hash)
    }

    fn locate(&self, hash: &TxHash) -> Option<(&Arc<Block>, usize)> {
        if self.faults.hide_transactions.contains(hash) {
            return None;
        }
        let in_overlay = self
            .overlay
            .iter()
            .filter(|block| block.number() <= self.head)
            .find_map(|block| Some((block, block.position(hash)?)));
        in_overlay.or_else(|| {
            let (number, index) = *self.chain.located.get(hash)?;
            let block = self.block(number)?;
            let is_here = block.transactions().get(index).is_some_and(|tx| tx.tx_hash() == hash);
            is_here.then_some((block, index))
        })
    }

    fn tag(&self, tag: BlockNumberOrTag) -> u64 {
        let truth = self.chain.head().number();
        let behind = truth.saturating_sub(self.head);
        match tag {
            BlockNumberOrTag::Number(number) => number,
            BlockNumberOrTag::Earliest => 0,
            BlockNumberOrTag::Latest | BlockNumberOrTag::Pending => self.head,
            BlockNumberOrTag::Safe => self.chain.safe.saturating_sub(behind).min(self.head),
            BlockNumberOrTag::Finalized => self.chain.finalized.saturating_sub(behind).min(self.head),
        }
    }

    fn find(&self, id: BlockId) -> Option<&Arc<Block>> {
        match id {
            BlockId::Hash(hash) => self.by_hash(&hash.block_hash),
            BlockId::Number(tag) => self.block(self.tag(tag)),
        }
    }

    /// The state after a block. A made-up block has that of the true block at its height.
    fn state(&self, block: &Block) -> Option<&State> {
        self.chain.state(&block.hash()).or_else(|| {
            let truth = self.chain.at(block.number())?;
            self.chain.state(&truth.hash())
        })
    }

    fn block_and_state(&self, id: Option<BlockId>) -> Result<(&Arc<Block>, &State), RpcError> {
        let block = self.find(id.unwrap_or_default()).ok_or_else(|| RpcError::server("header not found"))?;
        let state = self.state(block).ok_or_else(|| {
            RpcError::server(format!(
                "missing trie node {:x} (path ) state is not available",
                block.header().state_root
            ))
        })?;
        Ok((block, state))
    }

    /// Answers a call that only reads.
    pub(crate) fn answer(&self, call: &Call) -> Answer {
        let params = Params::new(&call.params)?;
        match call.method.as_str() {
            "eth_chainId" => raw(&U64::from(self.chain_id())),
            "net_version" => raw(&self.chain_id().to_string()),
            "web3_clientVersion" => raw(&concat!("devchain/", env!("CARGO_PKG_VERSION"))),
            "eth_syncing" => raw(&false),
            "eth_accounts" => raw(&self.chain.accounts.iter().map(|a| a.address()).collect::<Vec<_>>()),
            "eth_blockNumber" => raw(&U64::from(self.head)),
            "eth_getBlockByNumber" => {
                let block = self.block(self.tag(params.get(0)?));
                self.rpc_block(block, params.or_default(1)?)
            }
            "eth_getBlockByHash" => self.rpc_block(self.by_hash(&params.get(0)?), params.or_default(1)?),
            "eth_getBlockTransactionCountByNumber" => {
                raw(&self.block(self.tag(params.get(0)?)).map(|b| U64::from(b.transactions().len())))
            }
            "eth_getBlockTransactionCountByHash" => {
                raw(&self.by_hash(&params.get(0)?).map(|b| U64::from(b.transactions().len())))
            }
            "eth_getBlockReceipts" => self.block_receipts(params.get(0)?),
            "eth_getTransactionReceipt" => self.transaction_receipt(&params.get(0)?),
            "eth_getTransactionByHash" => self.transaction(&params.get(0)?),
            "eth_getTransactionByBlockNumberAndIndex" => {
                let index: U64 = params.get(1)?;
                let block = self.block(self.tag(params.get(0)?));
                raw(&block.and_then(|block| block.rpc_transaction(usize::try_from(index).ok()?)))
            }
            "eth_getTransactionByBlockHashAndIndex" => {
                let index: U64 = params.get(1)?;
                let block = self.by_hash(&params.get(0)?);
                raw(&block.and_then(|block| block.rpc_transaction(usize::try_from(index).ok()?)))
            }
            "eth_getLogs" => self.logs(&params.get(0)?),
            "eth_call" => self.call(params.get(0)?, params.optional(1)?),
            "eth_estimateGas" => self.estimate_gas(params.get(0)?, params.optional(1)?),
            "eth_getBalance" => {
                let (_, state) = self.block_and_state(params.optional(1)?)?;
                raw(&state.balance(params.get(0)?))
            }
            "eth_getCode" => {
                let (_, state) = self.block_and_state(params.optional(1)?)?;
                raw(&state.code(params.get(0)?))
            }
            "eth_getStorageAt" => {
                let (_, state) = self.block_and_state(params.optional(2)?)?;
                raw(&B256::from(state.storage(params.get(0)?, params.get(1)?)))
            }
            "eth_getProof" => {
                self.proof(params.get(0)?, &params.or_default::<Vec<U256>>(1)?, params.optional(2)?)
            }
            "eth_getTransactionCount" => self.transaction_count(params.get(0)?, params.optional(1)?),
            "eth_gasPrice" => {
                let tip = self.chain.config.tip;
                raw(&U256::from(u128::from(self.chain.next_base_fee()).saturating_add(tip)))
            }
            "eth_maxPriorityFeePerGas" => raw(&U256::from(self.chain.config.tip)),
            "eth_feeHistory" => {
                self.fee_history(params.get(0)?, params.get(1)?, &params.or_default::<Vec<f64>>(2)?)
            }
            other => Err(RpcError::unknown_method(other)),
        }
    }

    fn chain_id(&self) -> u64 {
        self.faults.chain_id.unwrap_or(self.chain.config.chain_id)
    }

    // Blocks and transactions.

    fn rpc_block(&self, block: Option<&Arc<Block>>, full: bool) -> Answer {
        let Some(block) = block else { return raw(&()) };
        let (hash, header) = self.told_header(block);
        let transactions = if full {
            let all = (0..block.transactions().len()).filter_map(|index| block.rpc_transaction(index));
            rpc::BlockTransactions::Full(all.collect())
        } else {
            rpc::BlockTransactions::Hashes(block.transactions().iter().map(|tx| *tx.tx_hash()).collect())
        };
        let size = block_size(block);
        raw(&rpc::Block {
            header: rpc::Header { hash, inner: header, total_difficulty: None, size: Some(size) },
            uncles: Vec::new(),
            transactions,
            withdrawals: Some(Default::default()),
        })
    }

    /// The header as this provider tells it, and the hash it claims for it.
    fn told_header(&self, block: &Block) -> (B256, Header) {
        let (mut hash, mut header) = (block.hash(), block.header().clone());
        if let Some(lie) = self.faults.forge_header
            && header.number >= lie.from_block
        {
            match lie.field {
                HeaderField::Parent => header.parent_hash = keccak256(header.parent_hash),
                HeaderField::ReceiptsRoot => header.receipts_root = keccak256(header.receipts_root),
                HeaderField::TransactionsRoot => {
                    header.transactions_root = keccak256(header.transactions_root);
                }
                HeaderField::LogsBloom => header.logs_bloom = Bloom::ZERO,
                HeaderField::Timestamp => header.timestamp = header.timestamp.saturating_add(1),
            }
            if lie.rehash {
                hash = header.hash_slow();
            }
        }
        if self.faults.swap_block_hash {
            hash = keccak256(hash);
        }
        (hash, header)
    }

    fn transaction(&self, hash: &TxHash) -> Answer {
        if let Some((block, index)) = self.locate(hash) {
            return raw(&block.rpc_transaction(index));
        }
        let waiting = self.chain.pool.get(hash).filter(|_| !self.faults.hide_transactions.contains(hash));
        raw(&waiting
            .map(|tx| rpc::Transaction::from_transaction((**tx).clone(), rpc::TransactionInfo::default())))
    }

    fn transaction_count(&self, address: Address, id: Option<BlockId>) -> Answer {
        let (_, state) = self.block_and_state(id)?;
        let nonce = state.nonce(address);
        if id == Some(BlockId::pending()) {
            return raw(&U64::from(self.chain.pool.nonce_after(address, nonce)));
        }
        raw(&U64::from(nonce))
    }

    // Receipts.

    fn block_receipts(&self, id: BlockId) -> Answer {
        let Some(block) = self.find(id).filter(|block| self.has_receipts(block)) else { return raw(&()) };
        match self.faults.receipts {
            Some(ReceiptsLie::Empty) => return raw::<[(); 0]>(&[]),
            Some(ReceiptsLie::Null) => return raw(&()),
            _ => {}
        }
        let mut receipts = self.told_receipts(block);
        if self.faults.receipts == Some(ReceiptsLie::DropLast) {
            receipts.pop();
        }
        raw(&receipts)
    }

    fn transaction_receipt(&self, hash: &TxHash) -> Answer {
        let Some((block, index)) = self.locate(hash).filter(|(block, _)| self.has_receipts(block)) else {
            return raw(&());
        };
        if matches!(self.faults.receipts, Some(ReceiptsLie::Empty | ReceiptsLie::Null)) {
            return raw(&());
        }
        raw(&self.told_receipts(block).into_iter().nth(index))
    }

    /// A node may know a block before it has its receipts.
    fn has_receipts(&self, block: &Block) -> bool {
        self.head.saturating_sub(block.number()) >= self.faults.receipts_lag
    }

    fn told_receipts(&self, block: &Block) -> Vec<rpc::TransactionReceipt> {
        let mut receipts = block.rpc_receipts();
        if self.faults.receipts == Some(ReceiptsLie::FlipStatus) {
            for receipt in &mut receipts {
                let status = !receipt.inner.status();
                rewrite(receipt, status, receipt.inner.logs().to_vec());
            }
        }
        if self.faults.reach == Reach::Logs {
            return receipts;
        }
        let told = self.lie_about_logs(block, block.logs());
        for receipt in &mut receipts {
            let own: Vec<rpc::Log> = told
                .iter()
                .filter(|log| log.transaction_hash == Some(receipt.transaction_hash))
                .cloned()
                .collect();
            if own != receipt.inner.logs() {
                rewrite(receipt, receipt.inner.status(), own);
            }
        }
        receipts
    }

    // Logs.

    fn logs(&self, filter: &rpc::Filter) -> Answer {
        if self.faults.empty_logs {
            return raw::<[(); 0]>(&[]);
        }
        let logs = match self.log_range(filter)? {
            None => Vec::new(),
            Some((from, to)) => self.matching_logs(filter, from, to)?,
        };
        raw(&logs)
    }

    /// The heights a filter asks for; `None` when nothing can match.
    fn log_range(&self, filter: &rpc::Filter) -> Result<Option<(u64, u64)>, RpcError> {
        if let Some(hash) = filter.get_block_hash() {
            return match self.by_hash(&hash) {
                Some(block) => Ok(Some((block.number(), block.number()))),
                None if self.faults.unknown_hash_is_empty => Ok(None),
                None => Err(RpcError::server("unknown block")),
            };
        }
        let (from, to) = filter.block_option.as_range();
        let from = self.tag(from.copied().unwrap_or_default());
        let to = self.tag(to.copied().unwrap_or_default());
        if from > to {
            return Err(RpcError::params("invalid block range params"));
        }
        if to > self.head && !self.faults.clip_ranges {
            return Err(RpcError::params("block range extends beyond current head block"));
        }
        if let Some(cap) = self.faults.log_range_cap
            && to.saturating_sub(from) >= cap
        {
            return Err(RpcError::params(format!(
                "eth_getLogs is limited to a {cap} block range, consider narrowing it"
            )));
        }
        let to = to.min(self.head);
        Ok((from <= to).then_some((from, to)))
    }

    fn matching_logs(&self, filter: &rpc::Filter, from: u64, to: u64) -> Result<Vec<rpc::Log>, RpcError> {
        let lies = self.lies_in_logs();
        let mut logs = Vec::new();
        let indexed = self.head.saturating_add(1).saturating_sub(self.faults.logs_lag);
        for block in (from..=to).filter(|n| *n < indexed).filter_map(|number| self.block(number)) {
            if !lies && !filter.matches_bloom(block.header().logs_bloom) {
                continue;
            }
            let mut told = block.logs();
            if lies && self.faults.reach != Reach::Receipts {
                told = self.lie_about_logs(block, told);
            }
            logs.extend(told.into_iter().filter(|log| filter.matches(&log.inner)));
            if let Some(cap) = self.faults.log_result_cap
                && logs.len() > cap
            {
                let fits = block.number().saturating_sub(1).max(from);
                return Err(RpcError::new(
                    -32_005,
                    format!(
                        "query returned more than {cap} results. Try with this block range [{from:#x}, {fits:#x}]."
                    ),
                ));
            }
        }
        Ok(logs)
    }

    fn lies_in_logs(&self) -> bool {
        let faults = self.faults;
        !faults.omit_logs.is_empty()
            || !faults.forge_logs.is_empty()
            || !faults.alter_amounts.is_empty()
            || faults.shift_log_index.is_some()
            || faults.duplicate_logs
    }

    /// All logs of a block as this provider tells them.
    fn lie_about_logs(&self, block: &Block, mut logs: Vec<rpc::Log>) -> Vec<rpc::Log> {
        for altered in &self.faults.alter_amounts {
            for log in logs.iter_mut().filter(|log| picks(&altered.pick, log)) {
                log.inner.data.data = B256::from(altered.value).into();
            }
        }
        let next_index = u64::try_from(logs.len()).unwrap_or(u64::MAX);
        logs.retain(|log| !self.faults.omit_logs.iter().any(|pick| picks(pick, log)));
        let forged = self.faults.forge_logs.iter().filter(|forged| forged.block == block.number());
        for (log_index, forged) in (next_index..).zip(forged) {
            let last = block.transactions().last().map(|tx| *tx.tx_hash());
            let hash = forged.transaction.or(last).unwrap_or_else(|| keccak256(block.hash()));
            let position = block.position(&hash).and_then(|index| u64::try_from(index).ok());
            let log = token::transfer_log(forged.token, forged.from, forged.to, forged.value);
            logs.push(block.rpc_log(log, hash, position.unwrap_or_default(), log_index));
        }
        if self.faults.duplicate_logs {
            logs = logs.into_iter().flat_map(|log| [log.clone(), log]).collect();
        }
        if let Some(shift) = self.faults.shift_log_index {
            for log in &mut logs {
                log.log_index = log.log_index.map(|index| index.wrapping_add(shift));
            }
        }
        logs
    }

    // Execution.

    fn run(
        &self,
        request: &rpc::TransactionRequest,
        gas: Option<u64>,
        id: Option<BlockId>,
    ) -> Result<ExecutionResult<HaltReason>, RpcError> {
        let (block, state) = self.block_and_state(id)?;
        execute::call(
            state.clone(),
            self.chain.config.chain_id,
            block.header(),
            &|number| self.block(number).map_or(B256::ZERO, |block| block.hash()),
            execute::Call {
                from: request.from.unwrap_or_default(),
                to: request.to.and_then(|kind| kind.to().copied()),
                value: request.value.unwrap_or_default(),
                data: request.input.input().cloned().unwrap_or_default(),
                gas: gas.or(request.gas),
                access_list: request.access_list.clone().unwrap_or_default(),
            },
        )
        .map_err(|error| {
            RpcError::server(format!(
                "err: {error} (supplied gas {})",
                gas.or(request.gas).unwrap_or_default()
            ))
        })
    }

    fn call(&self, request: rpc::TransactionRequest, id: Option<BlockId>) -> Answer {
        raw(&output(self.run(&request, None, id)?)?)
    }

    /// The least gas that suffices, found by bisection as nodes do.
    fn estimate_gas(&self, request: rpc::TransactionRequest, id: Option<BlockId>) -> Answer {
        let cap = request.gas.unwrap_or(self.chain.config.gas_limit);
        let first = self.run(&request, Some(cap), id)?;
        let used = first.tx_gas_used();
        output(first)?;
        let suffices = |gas| self.run(&request, Some(gas), id).is_ok_and(|result| result.is_success());
        // Most calls need no more than they use; the others need a margin for inner calls and refunds.
        if suffices(used) {
            return raw(&U64::from(used));
        }
        let (mut short, mut enough) = (used, cap);
        // 1.5 % is close enough, as in go-ethereum.
        while enough.saturating_sub(short).saturating_mul(1000) > enough.saturating_mul(15) {
            let middle = short.midpoint(enough);
            if suffices(middle) {
                enough = middle;
            } else {
                short = middle;
            }
        }
        raw(&U64::from(enough))
    }

    fn proof(&self, address: Address, keys: &[U256], id: Option<BlockId>) -> Answer {
        let (_, state) = self.block_and_state(id)?;
        let account = state.account(address);
        let storage_proof: Vec<Value> = keys
            .iter()
            .map(|key| {
                json!({
                    "key": key,
                    "value": state.storage(address, *key),
                    "proof": state.storage_proof(address, *key),
                })
            })
            .collect();
        raw(&json!({
            "address": address,
            "balance": state.balance(address),
            "nonce": U64::from(state.nonce(address)),
            "codeHash": account.map_or(KECCAK256_EMPTY, |account| account.code_hash),
            "storageHash": account.map_or(EMPTY_ROOT_HASH, |account| account.storage_root()),
            "accountProof": state.account_proof(address),
            "storageProof": storage_proof,
        }))
    }

    #[expect(
        clippy::float_arithmetic,
        clippy::cast_precision_loss,
        reason = "the method is defined to answer ratios as floating point numbers"
    )]
    fn fee_history(&self, count: U64, newest: BlockNumberOrTag, percentiles: &[f64]) -> Answer {
        let newest = self.tag(newest);
        if newest > self.head {
            return Err(RpcError::server(format!(
                "request beyond head block: requested {newest}, head {}",
                self.head
            )));
        }
        let count = u64::try_from(count).unwrap_or(u64::MAX).clamp(1, 1024).min(newest.saturating_add(1));
        let oldest = newest.saturating_add(1).saturating_sub(count);
        let blocks: Vec<&Arc<Block>> = (oldest..=newest).filter_map(|number| self.block(number)).collect();
        let mut base_fee_per_gas: Vec<u128> =
            blocks.iter().map(|block| block.header().base_fee_per_gas.unwrap_or_default().into()).collect();
        let next =
            blocks.last().and_then(|block| block.header().next_block_base_fee(BaseFeeParams::ethereum()));
        base_fee_per_gas.push(next.unwrap_or_default().into());
        raw(&rpc::FeeHistory {
            base_fee_per_gas,
            gas_used_ratio: blocks
                .iter()
                .map(|block| block.header().gas_used as f64 / block.header().gas_limit.max(1) as f64)
                .collect(),
            base_fee_per_blob_gas: vec![1; blocks.len().saturating_add(1)],
            blob_gas_used_ratio: vec![0.0; blocks.len()],
            oldest_block: oldest,
            reward: (!percentiles.is_empty())
                .then(|| blocks.iter().map(|block| rewards(block, percentiles)).collect()),
        })
    }
}

/// The tips paid at the given percentiles of the block's gas.
#[expect(
    clippy::float_arithmetic,
    clippy::cast_precision_loss,
    reason = "percentiles are floating point numbers by definition of the method"
)]
fn rewards(block: &Block, percentiles: &[f64]) -> Vec<u128> {
    let base_fee = u128::from(block.header().base_fee_per_gas.unwrap_or_default());
    let mut paid: Vec<(u128, u64)> = block
        .receipts()
        .iter()
        .map(|receipt| (receipt.effective_gas_price.saturating_sub(base_fee), receipt.gas_used))
        .collect();
    paid.sort_unstable();
    percentiles
        .iter()
        .map(|percentile| {
            let threshold = block.header().gas_used as f64 * percentile / 100.0;
            let mut gas = 0u64;
            let at = paid.iter().find(|(_, used)| {
                gas = gas.saturating_add(*used);
                gas as f64 >= threshold
            });
            at.or(paid.last()).map_or(0, |(tip, _)| *tip)
        })
        .collect()
}

/// The result of a call, or the error a node would answer.
fn output(result: ExecutionResult<HaltReason>) -> Result<Bytes, RpcError> {
    match result {
        ExecutionResult::Success { output, .. } => Ok(output.into_data()),
        ExecutionResult::Revert { output, .. } => Err(RpcError {
            code: 3,
            message: match revert_reason(&output) {
                Some(reason) => format!("execution reverted: {reason}"),
                None => "execution reverted".into(),
            },
            data: Some(json!(output)),
        }),
        ExecutionResult::Halt { reason: HaltReason::OutOfGas(_), .. } => Err(RpcError::server("out of gas")),
        ExecutionResult::Halt { reason, .. } => Err(RpcError::server(reason.to_string())),
    }
}

fn picks(pick: &LogPick, log: &rpc::Log) -> bool {
    pick.block.is_none_or(|block| log.block_number == Some(block))
        && pick.log_index.is_none_or(|index| log.log_index == Some(index))
        && pick.address.is_none_or(|address| log.inner.address == address)
        && pick.topic.is_none_or(|topic| log.inner.topics().contains(&topic))
        && pick.transaction.is_none_or(|hash| log.transaction_hash == Some(hash))
}

fn rewrite(receipt: &mut rpc::TransactionReceipt, status: bool, logs: Vec<rpc::Log>) {
    let content = alloy_consensus::Receipt {
        status: status.into(),
        cumulative_gas_used: receipt.inner.cumulative_gas_used(),
        logs,
    };
    receipt.inner = rpc::ReceiptEnvelope::from_typed(receipt.inner.tx_type(), content.with_bloom());
}

fn block_size(block: &Block) -> U256 {
    use alloy_eips::eip2718::Encodable2718;
    use alloy_rlp::Encodable;
    let transactions: usize = block.transactions().iter().map(|tx| tx.inner().encode_2718_len()).sum();
    U256::from(block.header().length().saturating_add(transactions))
}

pub(crate) fn raw<T: Serialize + ?Sized>(value: &T) -> Answer {
    to_raw_value(value).map_err(|error| RpcError::new(-32_603, error.to_string()))
}

/// Positional parameters.
pub(crate) struct Params<'a>(&'a [Value]);

impl<'a> Params<'a> {
    pub(crate) fn new(params: &'a Value) -> Result<Self, RpcError> {
        match params {
            Value::Null => Ok(Self(&[])),
            Value::Array(values) => Ok(Self(values)),
            _ => Err(RpcError::params("non-array args")),
        }
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, index: usize) -> Result<T, RpcError> {
        let value = self
            .0
            .get(index)
            .ok_or_else(|| RpcError::params(format!("missing value for required argument {index}")))?;
        T::deserialize(value).map_err(|error| RpcError::params(format!("invalid argument {index}: {error}")))
    }

    pub(crate) fn optional<T: DeserializeOwned>(&self, index: usize) -> Result<Option<T>, RpcError> {
        match self.0.get(index) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.get(index).map(Some),
        }
    }

    pub(crate) fn or_default<T: DeserializeOwned + Default>(&self, index: usize) -> Result<T, RpcError> {
        Ok(self.optional(index)?.unwrap_or_default())
    }
}

//! Blocks: assembling headers whose every commitment holds, and the made-up blocks of a lying provider.
//!
//! A block built here passes the checks an independent client can make: the header hashes to its hash,
//! links to its parent, and commits to its transactions, receipts, logs bloom, withdrawals and state.
//! A block made up by [`Block::forged`] passes all of those too, except that its state root belongs to
//! the true block and its hash is not on the chain: that is exactly what a lie can achieve.

use std::sync::Arc;

use alloy_consensus::proofs::{calculate_receipt_root, calculate_transaction_root};
use alloy_consensus::transaction::{Recovered, TransactionInfo};
use alloy_consensus::{
    EMPTY_ROOT_HASH, Header, Receipt as ConsensusReceipt, ReceiptEnvelope, Transaction as _, TxEnvelope,
    TxReceipt, TxType,
};
use alloy_eips::eip7685::EMPTY_REQUESTS_HASH;
use alloy_primitives::{Address, B256, Bloom, Log, TxHash, keccak256};
use alloy_rpc_types_eth as rpc;

/// A signed transaction and who signed it.
pub type Transaction = Recovered<TxEnvelope>;

/// What a transaction did, beside the part of the receipt that the block commits to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The receipt as the receipts root commits to it.
    pub envelope: ReceiptEnvelope,
    /// Gas of this transaction alone.
    pub gas_used: u64,
    /// Wei per gas that was paid.
    pub effective_gas_price: u128,
    /// The contract that was created, if one was.
    pub contract_address: Option<Address>,
}

impl Receipt {
    /// Whether the transaction succeeded; a reverted one moved nothing but its fee.
    pub fn succeeded(&self) -> bool {
        self.envelope.status()
    }

    /// The logs, in order.
    pub fn logs(&self) -> &[Log] {
        self.envelope.logs()
    }
}

/// A block with its transactions and receipts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    hash: B256,
    header: Header,
    transactions: Arc<[Arc<Transaction>]>,
    receipts: Arc<[Receipt]>,
}

impl Block {
    /// Fills in what `header` commits to and seals it. `header` brings the rest: parent, number, time,
    /// state root, gas used, base fee, extra data.
    pub(crate) fn seal(
        mut header: Header,
        transactions: Vec<Arc<Transaction>>,
        receipts: Vec<Receipt>,
        opaque_receipts_root: bool,
    ) -> Self {
        header.transactions_root = transactions_root(&transactions);
        header.receipts_root = receipts_root(&receipts);
        if opaque_receipts_root {
            header.receipts_root = keccak256(header.receipts_root);
        }
        header.logs_bloom =
            receipts.iter().fold(Bloom::ZERO, |bloom, receipt| bloom | receipt.envelope.bloom());
        header.withdrawals_root = Some(EMPTY_ROOT_HASH);
        header.requests_hash = Some(EMPTY_REQUESTS_HASH);
        header.blob_gas_used = Some(0);
        header.excess_blob_gas = Some(0);
        Self {
            hash: header.hash_slow(),
            header,
            transactions: transactions.into(),
            receipts: receipts.into(),
        }
    }

    /// The hash of the header.
    pub fn hash(&self) -> B256 {
        self.hash
    }

    /// The height.
    pub fn number(&self) -> u64 {
        self.header.number
    }

    /// Seconds since the epoch.
    pub fn timestamp(&self) -> u64 {
        self.header.timestamp
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The transactions, in order.
    pub fn transactions(&self) -> &[Arc<Transaction>] {
        &self.transactions
    }

    /// The receipts, in the order of the transactions.
    pub fn receipts(&self) -> &[Receipt] {
        &self.receipts
    }

    /// The position of a transaction in this block.
    pub fn position(&self, hash: &TxHash) -> Option<usize> {
        self.transactions.iter().position(|tx| tx.tx_hash() == hash)
    }

    /// The logs as RPC objects, in order, with their index in the block.
    pub fn logs(&self) -> Vec<rpc::Log> {
        let mut logs = Vec::new();
        for (index, (tx, receipt)) in (0u64..).zip(self.transactions.iter().zip(self.receipts.iter())) {
            for log in receipt.logs() {
                let log_index = u64::try_from(logs.len()).unwrap_or(u64::MAX);
                logs.push(self.rpc_log(log.clone(), *tx.tx_hash(), index, log_index));
            }
        }
        logs
    }

    /// A log as an RPC object that claims to belong to this block.
    pub(crate) fn rpc_log(
        &self,
        log: Log,
        transaction_hash: TxHash,
        transaction_index: u64,
        log_index: u64,
    ) -> rpc::Log {
        rpc::Log {
            inner: log,
            block_hash: Some(self.hash),
            block_number: Some(self.number()),
            block_timestamp: Some(self.timestamp()),
            transaction_hash: Some(transaction_hash),
            transaction_index: Some(transaction_index),
            log_index: Some(log_index),
            removed: false,
        }
    }

    /// The receipts as RPC objects, in order.
    pub fn rpc_receipts(&self) -> Vec<rpc::TransactionReceipt> {
        let mut logs = self.logs().into_iter();
        (0u64..)
            .zip(self.transactions.iter().zip(self.receipts.iter()))
            .map(|(index, (tx, receipt))| {
                let own = receipt.logs().len();
                rpc::TransactionReceipt {
                    inner: rpc_envelope(&receipt.envelope, logs.by_ref().take(own).collect()),
                    transaction_hash: *tx.tx_hash(),
                    transaction_index: Some(index),
                    block_hash: Some(self.hash),
                    block_number: Some(self.number()),
                    gas_used: receipt.gas_used,
                    effective_gas_price: receipt.effective_gas_price,
                    blob_gas_used: None,
                    blob_gas_price: None,
                    from: tx.signer(),
                    to: tx.to(),
                    contract_address: receipt.contract_address,
                }
            })
            .collect()
    }

    /// One transaction as an RPC object.
    pub fn rpc_transaction(&self, index: usize) -> Option<rpc::Transaction> {
        let tx = self.transactions.get(index)?;
        Some(rpc::Transaction::from_transaction(
            (**tx).clone(),
            TransactionInfo {
                hash: Some(*tx.tx_hash()),
                index: u64::try_from(index).ok(),
                block_hash: Some(self.hash),
                block_number: Some(self.number()),
                base_fee: self.header.base_fee_per_gas,
                block_timestamp: Some(self.timestamp()),
            },
        ))
    }

    /// This block as a liar tells it: with `extra` transactions and receipts at its end, on top of
    /// `parent` instead of its own, every commitment recomputed.
    pub(crate) fn forged(
        &self,
        parent: Option<B256>,
        keep_transactions: bool,
        extra: Vec<(Arc<Transaction>, Receipt)>,
        opaque_receipts_root: bool,
    ) -> Self {
        let mut header = self.header.clone();
        if let Some(parent) = parent {
            header.parent_hash = parent;
        }
        if keep_transactions && extra.is_empty() {
            return Self {
                hash: header.hash_slow(),
                header,
                transactions: Arc::clone(&self.transactions),
                receipts: Arc::clone(&self.receipts),
            };
        }
        let (mut transactions, mut receipts) = (Vec::new(), Vec::new());
        if keep_transactions {
            transactions.extend(self.transactions.iter().cloned());
            receipts.extend(self.receipts.iter().cloned());
        }
        for (tx, receipt) in extra {
            transactions.push(tx);
            receipts.push(receipt);
        }
        header.gas_used = receipts.last().map_or(0, |receipt| receipt.envelope.cumulative_gas_used());
        Self::seal(header, transactions, receipts, opaque_receipts_root)
    }
}

/// The receipt of a transaction that used `gas_used` after `before` gas of the block.
pub(crate) fn receipt(
    tx_type: TxType,
    succeeded: bool,
    logs: Vec<Log>,
    before: u64,
    gas_used: u64,
) -> ReceiptEnvelope {
    let receipt = ConsensusReceipt {
        status: succeeded.into(),
        cumulative_gas_used: before.saturating_add(gas_used),
        logs,
    };
    ReceiptEnvelope::from_typed(tx_type, receipt.with_bloom())
}

fn rpc_envelope(envelope: &ReceiptEnvelope, logs: Vec<rpc::Log>) -> ReceiptEnvelope<rpc::Log> {
    let receipt = ConsensusReceipt {
        status: envelope.status().into(),
        cumulative_gas_used: envelope.cumulative_gas_used(),
        logs,
    };
    ReceiptEnvelope::from_typed(envelope.tx_type(), receipt.with_bloom())
}

fn transactions_root(transactions: &[Arc<Transaction>]) -> B256 {
    let envelopes: Vec<&TxEnvelope> = transactions.iter().map(|tx| tx.inner()).collect();
    calculate_transaction_root(&envelopes)
}

fn receipts_root(receipts: &[Receipt]) -> B256 {
    let envelopes: Vec<&ReceiptEnvelope> = receipts.iter().map(|r| &r.envelope).collect();
    calculate_receipt_root(&envelopes)
}

/// A hash that depends on nothing but its arguments: where a real chain would have consensus data.
pub(crate) fn derived(seed: u64, purpose: &str, number: u64) -> B256 {
    let mut preimage = purpose.as_bytes().to_vec();
    preimage.extend_from_slice(&seed.to_be_bytes());
    preimage.extend_from_slice(&number.to_be_bytes());
    keccak256(preimage)
}

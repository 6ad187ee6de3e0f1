//! What a client can check about a block without trusting who served it.

use alloy_consensus::ReceiptEnvelope;
use alloy_consensus::proofs::{calculate_receipt_root, calculate_transaction_root};
use alloy_primitives::{Bloom, Log};
use alloy_rpc_types_eth as rpc;

/// The first check that fails, by name.
pub(crate) fn block(block: &rpc::Block, receipts: &[rpc::TransactionReceipt]) -> Result<(), &'static str> {
    let header = &block.header;
    if header.inner.hash_slow() != header.hash {
        return Err("header hash");
    }
    let transactions = block.transactions.as_transactions().unwrap();
    for tx in transactions {
        if tx.block_hash != Some(header.hash) || tx.block_number != Some(header.number) {
            return Err("transaction position");
        }
    }
    let envelopes: Vec<_> = transactions.iter().map(|tx| tx.inner.inner().clone()).collect();
    if calculate_transaction_root(&envelopes) != header.transactions_root {
        return Err("transactions root");
    }
    receipts_fit(block, receipts)
}

fn receipts_fit(block: &rpc::Block, receipts: &[rpc::TransactionReceipt]) -> Result<(), &'static str> {
    let header = &block.header;
    let consensus: Vec<ReceiptEnvelope<Log>> =
        receipts.iter().map(|receipt| receipt.inner.clone().into_primitives_receipt()).collect();
    if calculate_receipt_root(&consensus) != header.receipts_root {
        return Err("receipts root");
    }
    let bloom: Bloom = consensus.iter().flat_map(|receipt| receipt.logs()).collect();
    if bloom != header.logs_bloom {
        return Err("logs bloom");
    }
    let hashes: Vec<_> = block.transactions.hashes().collect();
    if receipts.iter().map(|receipt| receipt.transaction_hash).ne(hashes) {
        return Err("receipt order");
    }
    let mut log_index = 0;
    for (index, receipt) in (0..).zip(receipts) {
        if receipt.block_hash != Some(header.hash) || receipt.transaction_index != Some(index) {
            return Err("receipt position");
        }
        for log in receipt.inner.logs() {
            if log.log_index != Some(log_index) || log.transaction_hash != Some(receipt.transaction_hash) {
                return Err("log position");
            }
            log_index += 1;
        }
    }
    Ok(())
}

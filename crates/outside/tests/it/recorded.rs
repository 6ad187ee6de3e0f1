//! Blocks of real chains, recorded, read with the same code as live ones: the header's hash and both roots
//! have to come out as the chain has them. `recorded/README.md` says where each block is from.

use alloy_primitives::{Bloom, keccak256};
use outside::chain::profile::{ChainProfile, RootMode};
use outside::chain::proof::{ConsensusReceipt, ordered_paths, ordered_root, verify_inclusion};
use outside::chain::wire::{
    ConsensusTransaction, decode_header_answer, decode_receipts, decode_transactions,
};
use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Recorded {
    mode: String,
    block: Box<RawValue>,
    receipts: Box<RawValue>,
}

impl Recorded {
    fn read(text: &str) -> (Self, ChainProfile) {
        let recorded: Self = serde_json::from_str(text).unwrap();
        let mode: RootMode = recorded.mode.parse().unwrap();
        (recorded, ChainProfile::of(mode))
    }
}

/// Everything the reader concludes from a block, checked against the block. Gives the number of receipts.
fn check(text: &str) -> usize {
    let receipts = check_receipts(text);
    let (recorded, profile) = Recorded::read(text);
    let header = decode_header_answer(&recorded.block, &profile).unwrap().header;
    let transactions = decode_transactions(&recorded.block, &profile).unwrap();
    let bytes: Vec<_> = transactions.list.iter().map(|(_, bytes)| bytes.clone()).collect();
    assert_eq!(ordered_root(&bytes), header.transactions_root, "transactions root");
    let seen = decode_receipts(&recorded.receipts).unwrap();
    assert_eq!(seen.len(), bytes.len());
    for (receipt, bytes) in seen.iter().zip(&bytes) {
        assert_eq!(keccak256(bytes), receipt.tx_hash);
        assert!(ConsensusTransaction::decode(bytes).unwrap().sender().is_ok());
    }
    receipts
}

/// The part that needs no transactions.
fn check_receipts(text: &str) -> usize {
    let (recorded, profile) = Recorded::read(text);
    // Decoding fails unless the recomputed hash is the recorded one.
    let header = decode_header_answer(&recorded.block, &profile).unwrap().header;
    let seen = decode_receipts(&recorded.receipts).unwrap();
    let encoded: Vec<Vec<u8>> = seen.iter().map(|receipt| receipt.consensus.encode()).collect();
    assert_eq!(ordered_root(&encoded), header.receipts_root, "receipts root");
    let every: Vec<usize> = (0..seen.len()).collect();
    let (_, paths) = ordered_paths(&encoded, &every);
    for (index, receipt) in seen.iter().enumerate() {
        assert_eq!(ConsensusReceipt::decode(&encoded[index]).unwrap().logs, receipt.consensus.logs);
        assert_eq!(receipt.consensus.bloom, receipt.consensus.logs.iter().collect::<Bloom>());
        assert!(header.logs_bloom.contains(&receipt.consensus.bloom));
        let position = u64::try_from(index).unwrap();
        verify_inclusion(header.receipts_root, position, &encoded[index], &paths[&index]).unwrap();
    }
    seen.len()
}

#[test]
fn an_op_stack_block_with_a_deposit_verifies() {
    assert_eq!(check(include_str!("recorded/unichain-sepolia-35535698.json")), 6);
}

#[test]
fn ethereum_blocks_verify() {
    assert_eq!(check(include_str!("recorded/ethereum-46147.json")), 1);
    assert_eq!(check(include_str!("recorded/anvil-1.json")), 4);
}

#[test]
fn an_op_stack_block_does_not_verify_as_an_ethereum_block() {
    let text = include_str!("recorded/unichain-sepolia-35535698.json").replacen("\"op\"", "\"eth\"", 1);
    assert!(std::panic::catch_unwind(|| check(&text)).is_err());
}

#[test]
fn the_deposit_nonce_and_version_are_under_the_root() {
    let text = include_str!("recorded/unichain-sepolia-35535698.json");
    for (field, other) in [
        ("\"depositNonce\": \"0x21e3b52\"", "\"depositNonce\": \"0x21e3b53\""),
        ("\"depositReceiptVersion\": \"0x1\"\n  }", "\"depositReceiptVersion\": \"0x2\"\n  }"),
    ] {
        assert!(text.contains(field), "{field}");
        let changed = text.replacen(field, other, 1);
        assert!(std::panic::catch_unwind(|| check(&changed)).is_err(), "{field}");
    }
}

/// Checks whatever blocks lie in `RECORDED_BLOCKS`, in the form of the recorded ones. Where the block lists
/// its transactions by hash alone, only the receipts are checked.
#[test]
#[ignore = "needs a directory of recorded blocks in RECORDED_BLOCKS"]
fn recorded_blocks_of_a_directory_verify() {
    let directory = std::env::var("RECORDED_BLOCKS").unwrap();
    let mut receipts = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let block: serde_json::Value = serde_json::from_str(&text).unwrap();
        let whole = block["block"]["transactions"]
            .as_array()
            .is_some_and(|list| list.iter().all(|tx| tx.is_object()));
        receipts += if whole { check(&text) } else { check_receipts(&text) };
    }
    assert!(receipts > 0);
}

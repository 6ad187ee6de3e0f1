//! Reorganisations, seen through the truth and through faces.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{Address, B256, TxHash, U256};
use alloy_rpc_types_eth::Filter;
use devchain::token::{CONTRACTS, TRANSFER_EVENT};
use devchain::{ChainError, Config, Devchain, Faults, Reorg, Replay};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::{dollars, payee, served, verify};

/// Four blocks with a payment each, from different payers.
fn paid(chain: &Devchain) -> Vec<TxHash> {
    (0..4)
        .map(|index| {
            let hash = chain.send_token(CONTRACTS.dollar, index, payee(1), dollars(1)).unwrap();
            chain.mine();
            hash
        })
        .collect()
}

#[test]
fn what_becomes_of_the_dropped_transactions_is_chosen() {
    let balance = |chain: &Devchain| chain.token_balance(CONTRACTS.dollar, payee(1));
    let cases: [(Replay, u64, usize, usize); 4] = [
        (Replay::All, 4, 0, 0),
        (Replay::Shuffled, 4, 0, 0),
        (Replay::Nothing, 2, 2, 0),
        (Replay::Pool, 2, 2, 2),
    ];
    for (replay, paid_dollars, lost, waiting) in cases {
        let chain = Devchain::new(Config::default());
        let hashes = paid(&chain);
        let old: Vec<B256> = (3..=4).map(|n| chain.block(n).unwrap().hash()).collect();
        let fork = chain.block(2).unwrap().hash();
        let reorged = chain.reorg(2, replay.clone()).unwrap();
        assert_eq!(reorged.fork, fork);
        assert_eq!(reorged.dropped, old);
        assert_eq!(reorged.added.len(), 3);
        assert_eq!(chain.head().number, 5);
        assert!(old.iter().all(|hash| !chain.is_canonical(*hash)));
        assert_eq!(balance(&chain), dollars(paid_dollars), "{replay:?}");
        assert_eq!(reorged.lost.len(), lost, "{replay:?}");
        assert_eq!(chain.pending().len(), waiting, "{replay:?}");
        assert!(hashes[..2].iter().all(|hash| chain.locate(*hash).is_some()));
    }
}

#[test]
fn a_lost_transaction_can_be_sent_again_and_a_waiting_one_is_mined_again() {
    let chain = Devchain::new(Config::default());
    let hashes = paid(&chain);
    let only = BTreeSet::from([hashes[3]]);
    let reorged = chain.reorg(2, Replay::Only(only)).unwrap();
    assert_eq!(reorged.lost, [hashes[2]]);
    assert!(chain.receipt(hashes[2]).is_none());
    assert!(chain.receipt(hashes[3]).is_some());
    let again = chain.send_token(CONTRACTS.dollar, 2, payee(1), dollars(1)).unwrap();
    chain.mine();
    assert!(chain.receipt(again).unwrap().status());

    chain.reorg(1, Replay::Pool).unwrap();
    assert_eq!(chain.pending(), [again]);
    chain.mine();
    assert_eq!(chain.token_balance(CONTRACTS.dollar, payee(1)), dollars(4));
}

#[test]
fn the_same_payment_moves_to_another_block_and_is_counted_once() {
    let chain = Devchain::new(Config::default());
    let hashes = paid(&chain);
    let before: Vec<_> = hashes.iter().map(|hash| chain.receipt(*hash).unwrap()).collect();
    // Everything but the first new block is empty, so the two payments end in one block.
    chain.reorg_with(Reorg { depth: 2, new_length: 1, replay: Replay::All }).unwrap();
    assert_eq!(chain.head().number, 3);
    chain.mine();
    let after: Vec<_> = hashes.iter().map(|hash| chain.receipt(*hash).unwrap()).collect();
    assert_eq!(after[0], before[0]);
    for (old, new) in before.iter().zip(&after).skip(2) {
        assert_ne!(old.block_hash, new.block_hash);
    }
    assert_eq!(chain.token_balance(CONTRACTS.dollar, payee(1)), dollars(4));
}

#[test]
fn a_branch_may_be_shorter_and_finality_never_falls() {
    let chain = Devchain::new(Config { safe_lag: 1, finalized_lag: 2, ..Config::default() });
    chain.mine_n(10);
    assert_eq!((chain.safe(), chain.finalized()), (9, 8));
    chain.reorg_with(Reorg { depth: 5, new_length: 1, replay: Replay::Nothing }).unwrap();
    assert_eq!(chain.head().number, 6);
    assert_eq!((chain.safe(), chain.finalized()), (9, 8));
    chain.mine_n(6);
    assert_eq!((chain.safe(), chain.finalized()), (11, 10));
}

#[test]
fn below_the_kept_history_nothing_can_be_dropped() {
    let chain = Devchain::new(Config { history: 5, ..Config::default() });
    chain.mine_n(3);
    assert_eq!(chain.reorg(4, Replay::All), Err(ChainError::TooDeep { depth: 4, limit: 3 }));
    chain.mine_n(7);
    assert_eq!(chain.reorg(5, Replay::All), Err(ChainError::TooDeep { depth: 5, limit: 4 }));
    chain.reorg(4, Replay::All).unwrap();
    assert_eq!(chain.head().number, 11);
}

#[tokio::test]
async fn after_a_reorganisation_faces_know_only_the_new_branch() {
    let (chain, _face, rpc) = served(Config::default()).await;
    let hashes = paid(&chain);
    let old = chain.head().hash;
    assert!(rpc.receipts(old).await.is_some());
    chain.reorg(1, Replay::Nothing).unwrap();
    assert_eq!(rpc.receipts(old).await, None);
    assert_eq!(rpc.result("eth_getBlockByHash", json!([old, false])).await, Value::Null);
    assert_eq!(rpc.result("eth_getTransactionReceipt", json!([hashes[3]])).await, Value::Null);
    assert_eq!(rpc.result("eth_getTransactionByHash", json!([hashes[3]])).await, Value::Null);
    assert_eq!(
        rpc.error("eth_getLogs", json!([{"blockHash": old}])).await,
        (-32_000, "unknown block".into())
    );
    for number in 0..=5 {
        let block = rpc.block(number).await.unwrap();
        let receipts = rpc.receipts(block.header.hash).await.unwrap();
        assert_eq!(verify::block(&block, &receipts), Ok(()));
    }
}

#[tokio::test]
async fn a_face_may_stay_on_the_branch_that_was_dropped() {
    let (chain, face, rpc) = served(Config::default()).await;
    let hashes = paid(&chain);
    let old = chain.head();
    let fork = chain.block(2).unwrap().hash();
    chain.reorg(2, Replay::Nothing).unwrap();
    face.set_faults(Faults { follow: Some(old.hash), ..Faults::default() });

    assert_eq!(rpc.get::<U256>("eth_blockNumber", json!([])).await, U256::from(old.number));
    let mut hash = old.hash;
    for number in (3..=old.number).rev() {
        let block = rpc.block(number).await.unwrap();
        assert_eq!(block.header.hash, hash);
        let receipts = rpc.receipts(hash).await.unwrap();
        assert_eq!(verify::block(&block, &receipts), Ok(()));
        assert_eq!(rpc.logs_at(hash).await.len(), 1);
        hash = block.header.parent_hash;
    }
    assert_eq!(hash, fork);
    assert!(rpc.result("eth_getTransactionReceipt", json!([hashes[3]])).await.is_object());
    let balance: U256 = rpc
        .get(
            "eth_call",
            json!([{"to": CONTRACTS.dollar, "data": devchain::token::balance_of(payee(1))}, "latest"]),
        )
        .await;
    assert_eq!(balance, dollars(4));
    // The new branch is unknown to it.
    assert_eq!(rpc.receipts(chain.head().hash).await, None);
    face.heal();
    assert!(rpc.receipts(chain.head().hash).await.is_some());
}

/// What must hold whatever happened.
fn check_books(chain: &Devchain, payees: &[Address]) {
    let mut parent = B256::ZERO;
    let mut time = 0;
    let mut seen = BTreeSet::new();
    let mut sent: BTreeMap<Address, u64> = BTreeMap::new();
    for number in 0..=chain.head().number {
        let block = chain.block(number).unwrap();
        assert_eq!(block.header().hash_slow(), block.hash());
        assert_eq!((block.number(), block.header().parent_hash), (number, parent));
        assert!(block.timestamp() > time);
        for (index, tx) in block.transactions().iter().enumerate() {
            assert!(seen.insert(*tx.tx_hash()), "a transaction is in two blocks");
            let (found, at) = chain.locate(*tx.tx_hash()).unwrap();
            assert_eq!((found.hash(), at), (block.hash(), index));
            *sent.entry(tx.signer()).or_default() += 1;
        }
        (parent, time) = (block.hash(), block.timestamp());
    }
    assert_eq!(parent, chain.head().hash);
    assert!(chain.pending().iter().all(|hash| !seen.contains(hash) && chain.locate(*hash).is_none()));

    let accounts: Vec<Address> = chain.accounts().iter().map(|account| account.address()).collect();
    for account in &accounts {
        assert_eq!(chain.nonce(*account), sent.get(account).copied().unwrap_or_default());
    }
    for payee in payees {
        let filter =
            Filter::new().address(CONTRACTS.dollar).event_signature(TRANSFER_EVENT).topic2(payee.into_word());
        let told: U256 = chain
            .logs(0, u64::MAX, &filter)
            .iter()
            .map(|log| U256::from_be_slice(&log.inner.data.data))
            .sum();
        assert_eq!(chain.token_balance(CONTRACTS.dollar, *payee), told);
    }
    let holders = accounts.iter().chain(payees).chain([&CONTRACTS.wallet]);
    let held: U256 = holders.map(|holder| chain.token_balance(CONTRACTS.dollar, *holder)).sum();
    assert_eq!(held, chain.config().token_balance * U256::from(accounts.len() + 1));
}

#[test]
fn any_sequence_of_sends_blocks_and_reorganisations_keeps_the_books() {
    let payees: Vec<Address> = (1..4).map(payee).collect();
    for seed in 0..4 {
        let chain = Devchain::new(Config { seed, accounts: 4, history: 12, ..Config::default() });
        let mut chance = StdRng::seed_from_u64(seed);
        let mut reorgs = 0;
        for _ in 0..120 {
            match chance.random_range(0..10) {
                0..5 => {
                    let (from, to) = (chance.random_range(0..4), payees[chance.random_range(0..3)]);
                    let value = dollars(chance.random_range(1..9));
                    // An account whose earlier transaction was lost has a gap; refusals are fine too.
                    let _ = chain.send_token(CONTRACTS.dollar, from, to, value);
                }
                5..8 => {
                    chain.mine();
                }
                _ => {
                    let all = chain.pending();
                    let replay = match chance.random_range(0..5) {
                        0 => Replay::All,
                        1 => Replay::Shuffled,
                        2 => Replay::Nothing,
                        3 => Replay::Pool,
                        _ => Replay::Only(all.into_iter().step_by(2).collect()),
                    };
                    let depth = chance.random_range(0..8);
                    let new_length = chance.random_range(0..9);
                    reorgs += usize::from(chain.reorg_with(Reorg { depth, new_length, replay }).is_ok());
                }
            }
            check_books(&chain, &payees);
        }
        assert!(reorgs > 5, "seed {seed}: {reorgs}");
        assert!(chain.head().number > 5, "seed {seed}");
    }
}

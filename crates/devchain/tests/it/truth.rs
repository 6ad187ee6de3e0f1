//! Blocks whose every commitment holds.

use alloy_consensus::{
    EMPTY_ROOT_HASH, SignableTransaction, TxEip2930, TxEip7702, TxLegacy, TypedTransaction,
};
use alloy_eips::eip2718::Encodable2718;
use alloy_eips::eip2930::{AccessList, AccessListItem};
use alloy_eips::eip7702::Authorization;
use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_rpc_types_eth as rpc;
use alloy_trie::proof::verify_proof;
use alloy_trie::{Nibbles, TrieAccount};
use devchain::token::{self, CONTRACTS, Payment};
use devchain::{Config, Devchain, Include};
use serde_json::{Value, json};

use crate::{dollars, payee, served, verify};

/// Transactions of every outcome: transfers, several logs in one, a revert, an internal native payment.
fn busy_block(chain: &Devchain) {
    chain.send_token(CONTRACTS.dollar, 0, payee(1), dollars(5)).unwrap();
    chain.send_native(1, payee(2), U256::from(77)).unwrap();
    chain.send_token(CONTRACTS.dollar, 2, payee(3), U256::MAX).unwrap();
    let payments = [
        Payment { token: CONTRACTS.dollar, to: payee(4), value: dollars(1) },
        Payment { token: CONTRACTS.plain, to: payee(5), value: U256::from(9) },
        Payment { token: Address::ZERO, to: payee(6), value: U256::from(10) },
        Payment { token: CONTRACTS.dollar, to: payee(4), value: dollars(2) },
    ];
    chain.send_payments(3, &payments).unwrap();
    chain
        .call_contract(
            4,
            CONTRACTS.impostor,
            U256::ZERO,
            token::claim_transfer(payee(8), payee(9), dollars(1000)),
        )
        .unwrap();
    chain.mine();
}

#[tokio::test]
async fn an_independent_client_can_verify_every_block() {
    let (chain, _face, rpc) = served(Config::default()).await;
    chain.mine();
    busy_block(&chain);
    for index in 0..16 {
        chain.send_token(CONTRACTS.plain, index, payee(7), U256::from(index + 1)).unwrap();
    }
    chain.mine();

    let mut parent = B256::ZERO;
    for number in 0..=chain.head().number {
        let block = rpc.block(number).await.unwrap();
        let receipts = rpc.receipts(block.header.hash).await.unwrap();
        assert_eq!(verify::block(&block, &receipts), Ok(()), "block {number}");
        assert_eq!(block.header.parent_hash, parent);
        assert_eq!(block.header.withdrawals_root, Some(EMPTY_ROOT_HASH));
        parent = block.header.hash;
    }
    assert_eq!(parent, chain.head().hash);
    assert_eq!(rpc.block(4).await, None);
}

#[tokio::test]
async fn the_verifier_used_here_notices_what_does_not_fit() {
    let (chain, _face, rpc) = served(Config::default()).await;
    busy_block(&chain);
    let block = rpc.block(1).await.unwrap();
    let receipts = rpc.receipts(block.header.hash).await.unwrap();
    assert_eq!(verify::block(&block, &receipts[1..]), Err("receipts root"));
    let mut other = block.clone();
    other.header.inner.timestamp += 1;
    assert_eq!(verify::block(&other, &receipts), Err("header hash"));
}

#[tokio::test]
async fn effects_and_receipts_agree() {
    let (chain, _face, rpc) = served(Config::default()).await;
    busy_block(&chain);
    let receipts = rpc.receipts(chain.head().hash).await.unwrap();
    let outcomes: Vec<(bool, usize)> =
        receipts.iter().map(|receipt| (receipt.status(), receipt.inner.logs().len())).collect();
    assert_eq!(outcomes, [(true, 1), (true, 0), (false, 0), (true, 3), (true, 1)]);
    assert_eq!(chain.token_balance(CONTRACTS.dollar, payee(1)), dollars(5));
    assert_eq!(chain.balance(payee(2)), U256::from(77));
    assert_eq!(chain.token_balance(CONTRACTS.dollar, payee(3)), U256::ZERO);
    assert_eq!(chain.token_balance(CONTRACTS.dollar, payee(4)), dollars(3));
    assert_eq!(chain.token_balance(CONTRACTS.plain, payee(5)), U256::from(9));
    assert_eq!(chain.balance(payee(6)), U256::from(10));
    // The impostor's event is there, and moved nothing.
    assert_eq!(receipts[4].inner.logs()[0].address(), CONTRACTS.impostor);
    assert_eq!(chain.token_balance(CONTRACTS.dollar, payee(9)), U256::ZERO);
    // Native coin is conserved but for the burnt base fee.
    let fees: U256 =
        receipts.iter().map(|r| U256::from(r.gas_used) * U256::from(r.effective_gas_price)).sum();
    let sender = chain.account(1).address();
    assert!(chain.balance(sender) < Config::default().native_balance - U256::from(77));
    assert!(fees > U256::ZERO);
}

#[tokio::test]
async fn the_state_root_proves_accounts_and_storage() {
    let (chain, _face, rpc) = served(Config::default()).await;
    busy_block(&chain);
    let block: rpc::Block = rpc.get("eth_getBlockByNumber", json!(["latest", false])).await;
    for address in [chain.account(0).address(), CONTRACTS.dollar, payee(0x99)] {
        let proof: rpc::EIP1186AccountProofResponse =
            rpc.get("eth_getProof", json!([address, ["0x2"], "latest"])).await;
        let account = TrieAccount::new(proof.nonce, proof.balance, proof.storage_hash, proof.code_hash);
        let exists = account != TrieAccount::default();
        assert_eq!(exists, address != payee(0x99));
        verify_proof(
            block.header.state_root,
            Nibbles::unpack(keccak256(address)),
            exists.then(|| alloy_rlp::encode(account)),
            &proof.account_proof,
        )
        .unwrap();
        let slot = &proof.storage_proof[0];
        verify_proof(
            proof.storage_hash,
            Nibbles::unpack(keccak256(B256::from(U256::from(2)))),
            (!slot.value.is_zero()).then(|| alloy_rlp::encode(slot.value)),
            &slot.proof,
        )
        .unwrap();
        // Slot 2 of the tokens is their supply.
        assert_eq!(slot.value.is_zero(), address != CONTRACTS.dollar);
    }
}

#[test]
fn the_same_seed_and_calls_give_the_same_chain_and_another_seed_another() {
    let run = |seed| {
        let chain = Devchain::new(Config { seed, ..Config::default() });
        busy_block(&chain);
        chain.reorg(1, devchain::Replay::Shuffled).unwrap();
        chain.head().hash
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn the_base_fee_follows_the_gas_used() {
    let chain = Devchain::new(Config { gas_limit: 200_000, ..Config::default() });
    chain.send_token(CONTRACTS.dollar, 0, payee(1), dollars(1)).unwrap();
    chain.mine();
    let fee = |n| chain.block(n).unwrap().header().base_fee_per_gas.unwrap();
    assert_eq!(fee(0), 1_000_000_000);
    assert_eq!(fee(1), 875_000_000);
    chain.mine();
    let used = chain.block(1).unwrap().header().gas_used;
    assert!(used > 50_000 && used < 100_000, "{used}");
    assert_eq!(fee(2), 875_000_000 - 875_000_000 * (100_000 - used) / 100_000 / 8);
}

#[test]
fn a_block_takes_what_fits_and_the_rest_waits() {
    let chain = Devchain::new(Config { gas_limit: 200_000, ..Config::default() });
    let hashes: Vec<_> = (0..5)
        .map(|index| chain.send_token(CONTRACTS.dollar, index, payee(1), dollars(1)).unwrap())
        .collect();
    chain.mine();
    // Each asks for 120,000 gas and uses less; what is left decides.
    let first = chain.block(1).unwrap().transactions().len();
    assert!((2..5).contains(&first), "{first}");
    assert_eq!(chain.pending(), hashes[first..]);
    chain.mine_n(3);
    assert!(chain.pending().is_empty());
    assert_eq!(chain.token_balance(CONTRACTS.dollar, payee(1)), dollars(5));
}

#[test]
fn blocks_can_take_chosen_transactions_at_chosen_times() {
    let chain = Devchain::new(Config::default());
    let first = chain.send_native(0, payee(1), U256::from(1)).unwrap();
    let second = chain.send_native(1, payee(1), U256::from(1)).unwrap();
    let time = chain.head().timestamp;
    chain.mine_with(Some(time + 100), &Include::Only([second].into())).unwrap();
    assert_eq!(chain.pending(), [first]);
    assert_eq!(chain.head().timestamp, time + 100);
    assert!(chain.mine_at(time + 100).is_err());
    chain.mine_with(None, &Include::Nothing).unwrap();
    assert!(chain.locate(first).is_none());
    assert!(chain.drop_pending(first));
    chain.mine();
    assert!(chain.locate(first).is_none());
    assert_eq!(chain.balance(payee(1)), U256::from(1));
}

#[tokio::test]
async fn old_states_answer_within_the_history_and_are_refused_beyond() {
    let (chain, _face, rpc) = served(Config { history: 10, ..Config::default() }).await;
    chain.send_native(0, payee(1), U256::from(5)).unwrap();
    chain.mine_n(5);
    let at = |n: u64| json!([payee(1), format!("{n:#x}")]);
    assert_eq!(rpc.get::<U256>("eth_getBalance", at(0)).await, U256::ZERO);
    assert_eq!(rpc.get::<U256>("eth_getBalance", at(1)).await, U256::from(5));
    chain.mine_n(10);
    let (code, message) = rpc.error("eth_getBalance", at(1)).await;
    assert_eq!(code, -32_000);
    assert!(message.contains("missing trie node"), "{message}");
    let (_, message) = rpc.error("eth_getBalance", at(16)).await;
    assert_eq!(message, "header not found");
    // Bodies stay.
    let receipts: Value = rpc.result("eth_getBlockReceipts", json!(["0x1"])).await;
    assert_eq!(receipts.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn all_kinds_of_transactions_fit_the_roots() {
    let (chain, _face, rpc) = served(Config::default()).await;
    let chain_id = chain.config().chain_id;
    let sign = |index: usize, tx: TypedTransaction| {
        let signature = chain.account(index).sign_digest(&tx.signature_hash());
        tx.into_envelope(signature).encoded_2718()
    };
    let (gas_limit, gas_price, to, value) = (30_000, 5_000_000_000, payee(1).into(), U256::from(1));
    let legacy =
        |chain_id| TxLegacy { chain_id, nonce: 0, gas_price, gas_limit, to, value, ..Default::default() };
    let access_list = AccessList(vec![AccessListItem { address: payee(3), storage_keys: vec![B256::ZERO] }]);
    let authority = chain.account(9);
    let delegation = Authorization { chain_id: U256::from(chain_id), address: CONTRACTS.wallet, nonce: 0 };
    let signature = authority.sign_digest(&delegation.signature_hash());
    let transactions: Vec<TypedTransaction> = vec![
        legacy(None).into(),
        legacy(Some(chain_id)).into(),
        TxEip2930 { chain_id, gas_price, gas_limit, to, value, access_list, ..Default::default() }.into(),
        TxEip7702 {
            chain_id,
            gas_limit: 100_000,
            max_fee_per_gas: gas_price,
            to: payee(1),
            value,
            authorization_list: vec![delegation.into_signed(signature)],
            ..Default::default()
        }
        .into(),
    ];
    for (index, tx) in transactions.into_iter().enumerate() {
        chain.send_raw(&sign(index, tx)).unwrap();
    }
    chain.send_native(8, payee(1), value).unwrap();
    chain.mine();
    let block = rpc.block(1).await.unwrap();
    let receipts = rpc.receipts(block.header.hash).await.unwrap();
    assert_eq!(verify::block(&block, &receipts), Ok(()));
    let types: Vec<u8> = receipts.iter().map(|receipt| receipt.transaction_type() as u8).collect();
    assert_eq!(types, [0, 0, 1, 4, 2]);
    assert_eq!(chain.balance(payee(1)), U256::from(5));
    // EIP-7702: the account now runs the wallet's code.
    let code: Bytes = rpc.get("eth_getCode", json!([authority.address(), "latest"])).await;
    assert_eq!(code[..3], [0xef, 0x01, 0x00]);
    assert_eq!(code[3..], CONTRACTS.wallet[..]);
}

#[tokio::test]
async fn on_some_chains_receipts_prove_nothing() {
    let (chain, _face, rpc) = served(Config { opaque_receipts_root: true, ..Config::default() }).await;
    busy_block(&chain);
    let block = rpc.block(1).await.unwrap();
    let receipts = rpc.receipts(block.header.hash).await.unwrap();
    assert_eq!(block.header.inner.hash_slow(), block.header.hash);
    assert_eq!(verify::block(&block, &receipts), Err("receipts root"));
}

//! The methods, their shapes, and the errors a node answers.

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_rpc_types_eth as rpc;
use devchain::token::{self, CONTRACTS};
use devchain::{Config, Draft};
use serde_json::{Value, json};

use crate::{dollars, payee, served};

#[tokio::test]
async fn requests_that_are_none_get_the_errors_of_the_standard() {
    let (_chain, _face, rpc) = served(Config::default()).await;
    let code = |raw: crate::client::Raw| -> i64 {
        let body: Value = serde_json::from_slice(&raw.body.unwrap()).unwrap();
        assert!(body.get("result").is_none());
        body["error"]["code"].as_i64().unwrap()
    };
    assert_eq!(code(rpc.post(&json!([])).await.unwrap()), -32_600);
    assert_eq!(code(rpc.post(&json!({"id": 1})).await.unwrap()), -32_600);
    assert_eq!(
        rpc.error("eth_newFilter", json!([{}])).await,
        (-32_601, "the method eth_newFilter does not exist/is not available".into())
    );
    assert_eq!(rpc.error("eth_getBalance", json!([])).await.0, -32_602);
    assert_eq!(rpc.error("eth_getBalance", json!(["nonsense"])).await.0, -32_602);
    assert_eq!(rpc.error("eth_getLogs", json!({"fromBlock": "0x0"})).await.0, -32_602);
}

#[tokio::test]
async fn batches_answer_every_call_under_its_own_id() {
    let (chain, face, rpc) = served(Config::default()).await;
    chain.mine_n(3);
    let batch = json!([
        {"jsonrpc": "2.0", "id": "a", "method": "eth_blockNumber", "params": []},
        {"jsonrpc": "2.0", "id": 2, "method": "eth_nonsense"},
        {"jsonrpc": "2.0", "id": 3, "method": "eth_chainId"},
    ]);
    let raw = rpc.post(&batch).await.unwrap();
    assert_eq!(raw.headers["content-type"], "application/json");
    let body: Value = serde_json::from_slice(&raw.body.unwrap()).unwrap();
    assert_eq!(body[0], json!({"jsonrpc": "2.0", "id": "a", "result": "0x3"}));
    assert_eq!(body[1]["id"], 2);
    assert_eq!(body[1]["error"]["code"], -32_601);
    assert_eq!(body[2], json!({"jsonrpc": "2.0", "id": 3, "result": "0x7a69"}));
    assert_eq!(face.requests_of("eth_blockNumber"), 1);
    assert_eq!(face.calls().len(), 3);
}

#[tokio::test]
async fn sends_are_refused_in_the_words_of_a_node() {
    let (chain, _face, rpc) = served(Config::default()).await;
    let send = |raw: Bytes| {
        let rpc = &rpc;
        async move { rpc.error("eth_sendRawTransaction", json!([raw])).await.1 }
    };
    let to = Some(payee(1));
    let gas = Some(21_000);
    let draft = Draft { to, gas_limit: gas, ..Draft::default() };

    let first = chain.sign(0, draft.clone()).unwrap();
    assert_eq!(rpc.result("eth_sendRawTransaction", json!([first.raw])).await, json!(first.hash));
    assert_eq!(send(first.raw.clone()).await, "already known");
    let same_nonce = chain.sign(0, Draft { nonce: Some(0), value: U256::from(1), ..draft.clone() }).unwrap();
    assert_eq!(send(same_nonce.raw).await, "replacement transaction underpriced");
    let fee = |bid: u128| Draft {
        nonce: Some(0),
        value: U256::from(1),
        max_fee_per_gas: Some(bid * 10),
        max_priority_fee_per_gas: Some(bid),
        ..draft.clone()
    };
    let almost = chain.sign(0, fee(1_099_999_999)).unwrap();
    assert_eq!(send(almost.raw).await, "replacement transaction underpriced");
    let bumped = chain.sign(0, fee(1_100_000_000)).unwrap();
    assert_eq!(rpc.result("eth_sendRawTransaction", json!([bumped.raw])).await, json!(bumped.hash));
    assert_eq!(chain.pending(), [bumped.hash]);
    chain.mine();
    assert!(chain.receipt(first.hash).is_none());
    assert_eq!(send(first.raw.clone()).await, "nonce too low: next nonce 1, tx nonce 0");

    let rich = chain.sign(0, Draft { value: U256::MAX / U256::from(2), ..draft.clone() }).unwrap();
    assert!(send(rich.raw).await.starts_with("insufficient funds for gas * price + value: balance "));
    let starved = chain.sign(0, Draft { gas_limit: Some(20_000), ..draft.clone() }).unwrap();
    assert_eq!(send(starved.raw).await, "intrinsic gas too low: gas 20000, minimum needed 21000");
    let heavy = chain.sign(0, Draft { data: Bytes::from(vec![1; 100]), ..draft.clone() }).unwrap();
    assert_eq!(send(heavy.raw).await, "intrinsic gas too low: gas 21000, minimum needed 25000");
    let huge = chain.sign(0, Draft { gas_limit: Some(60_000_001), ..draft.clone() }).unwrap();
    assert_eq!(send(huge.raw).await, "exceeds block gas limit");
    let odd = Draft { max_fee_per_gas: Some(1), max_priority_fee_per_gas: Some(2), ..draft.clone() };
    assert_eq!(
        send(chain.sign(0, odd).unwrap().raw).await,
        "max priority fee per gas higher than max fee per gas"
    );
    let (other, _face, _rpc) = served(Config { chain_id: 5, ..Config::default() }).await;
    assert_eq!(send(other.sign(0, draft.clone()).unwrap().raw).await, "invalid sender");
    assert!(send(Bytes::from_static(b"\x02\xff")).await.starts_with("rlp: "));
    let mut trailing = first.raw.to_vec();
    trailing.push(0);
    assert!(send(trailing.into()).await.starts_with("rlp: "));
}

#[tokio::test]
async fn nonces_count_what_waits_without_a_gap() {
    let (chain, _face, rpc) = served(Config::default()).await;
    let sender = chain.account(0).address();
    let count = |tag: &'static str| {
        let rpc = &rpc;
        async move { rpc.get::<U256>("eth_getTransactionCount", json!([sender, tag])).await }
    };
    chain.send_native(0, payee(1), U256::from(1)).unwrap();
    let gap = Draft { to: Some(payee(1)), nonce: Some(2), gas_limit: Some(21_000), ..Draft::default() };
    let gap = chain.send(0, gap).unwrap();
    assert_eq!(count("latest").await, U256::ZERO);
    assert_eq!(count("pending").await, U256::from(1));
    chain.mine();
    assert_eq!(count("latest").await, U256::from(1));
    assert_eq!(chain.pending(), [gap]);
    let waiting: rpc::Transaction = rpc.get("eth_getTransactionByHash", json!([gap])).await;
    assert_eq!(waiting.block_hash, None);
    assert_eq!(rpc.result("eth_getTransactionReceipt", json!([gap])).await, Value::Null);
    chain.send_native(0, payee(1), U256::from(1)).unwrap();
    assert_eq!(count("pending").await, U256::from(3));
    chain.mine();
    assert!(chain.pending().is_empty());
    assert_eq!(count("latest").await, U256::from(3));
}

#[tokio::test]
async fn a_transaction_below_the_base_fee_waits_until_it_is_replaced() {
    let (chain, _face, rpc) = served(Config::default()).await;
    let cheap = Draft {
        to: Some(payee(1)),
        gas_limit: Some(21_000),
        max_fee_per_gas: Some(5),
        max_priority_fee_per_gas: Some(1),
        ..Draft::default()
    };
    let stuck = chain.send(0, cheap.clone()).unwrap();
    chain.mine_n(3);
    assert_eq!(chain.pending(), [stuck]);
    let price: u128 = rpc.get::<U256>("eth_gasPrice", json!([])).await.to();
    let bump =
        Draft { nonce: Some(0), max_fee_per_gas: Some(price), max_priority_fee_per_gas: Some(2), ..cheap };
    let bumped = chain.send(0, bump).unwrap();
    chain.mine();
    assert!(chain.receipt(bumped).is_some());
    assert!(chain.pending().is_empty());
}

#[tokio::test]
async fn logs_are_found_by_range_hash_address_and_topics() {
    let (chain, _face, rpc) = served(Config::default()).await;
    for (index, to) in [(0, payee(1)), (1, payee(2)), (2, payee(1))] {
        chain.send_token(CONTRACTS.dollar, index, to, dollars(1)).unwrap();
        chain.send_token(CONTRACTS.plain, index, to, U256::from(1)).unwrap();
        chain.mine();
    }
    let count = |filter: Value| {
        let rpc = &rpc;
        async move { rpc.get::<Vec<rpc::Log>>("eth_getLogs", json!([filter])).await.len() }
    };
    let to = |index: u8| payee(index).into_word();
    assert_eq!(count(json!({})).await, 2);
    assert_eq!(count(json!({"fromBlock": "0x0", "toBlock": "latest"})).await, 6);
    assert_eq!(count(json!({"fromBlock": "0x1", "toBlock": "0x2"})).await, 4);
    assert_eq!(count(json!({"fromBlock": "earliest", "address": CONTRACTS.dollar})).await, 3);
    assert_eq!(count(json!({"fromBlock": "0x0", "address": [CONTRACTS.dollar, CONTRACTS.plain]})).await, 6);
    assert_eq!(count(json!({"fromBlock": "0x0", "topics": [token::TRANSFER_EVENT, null, to(1)]})).await, 4);
    assert_eq!(count(json!({"fromBlock": "0x0", "topics": [null, null, [to(1), to(2)]]})).await, 6);
    assert_eq!(count(json!({"fromBlock": "0x0", "topics": [[B256::ZERO]]})).await, 0);
    assert_eq!(
        count(json!({"blockHash": chain.block(2).unwrap().hash(), "topics": [null, null, to(2)]})).await,
        2
    );

    assert_eq!(
        rpc.error("eth_getLogs", json!([{"fromBlock": "0x0", "toBlock": "0x4"}])).await,
        (-32_602, "block range extends beyond current head block".into())
    );
    assert_eq!(
        rpc.error("eth_getLogs", json!([{"fromBlock": "0x2", "toBlock": "0x1"}])).await,
        (-32_602, "invalid block range params".into())
    );
    assert_eq!(
        rpc.error("eth_getLogs", json!([{"blockHash": B256::ZERO}])).await,
        (-32_000, "unknown block".into())
    );
    let both = json!([{"blockHash": B256::ZERO, "fromBlock": "0x0"}]);
    assert_eq!(rpc.error("eth_getLogs", both).await.0, -32_602);
    // The truth agrees.
    let filter = rpc::Filter::new().address(CONTRACTS.dollar);
    assert_eq!(chain.logs(0, 9, &filter).len(), 3);
}

#[tokio::test]
async fn calls_revert_with_reason_and_data_and_gas_is_estimated_to_suffice() {
    let (chain, _face, rpc) = served(Config::default()).await;
    let from = chain.account(0).address();
    let data = token::transfer(payee(1), U256::MAX);
    let call = json!([{"from": from, "to": CONTRACTS.dollar, "data": data}, "latest"]);
    let response = rpc.response("eth_call", call.clone()).await;
    assert_eq!(response["error"]["code"], 3);
    assert_eq!(response["error"]["message"], "execution reverted: transfer exceeds balance");
    assert!(response["error"]["data"].as_str().unwrap().starts_with("0x08c379a0"));
    assert_eq!(rpc.error("eth_estimateGas", call).await.0, 3);

    let data = token::transfer(payee(1), dollars(1));
    let call = json!({"from": from, "to": CONTRACTS.dollar, "input": data});
    let gas: u64 = rpc.get::<U256>("eth_estimateGas", json!([call])).await.to();
    for (limit, succeeds) in [(gas, true), (gas * 9 / 10, false)] {
        let draft = Draft {
            to: Some(CONTRACTS.dollar),
            data: data.clone(),
            gas_limit: Some(limit),
            ..Draft::default()
        };
        let hash = chain.send(0, draft).unwrap();
        chain.mine();
        let receipt = chain.receipt(hash).unwrap();
        assert_eq!(receipt.status(), succeeds, "{limit}");
        assert!(receipt.gas_used <= limit);
        // Balances are warm storage afterwards: the second payment would cost less.
        if succeeds {
            chain.reorg(1, devchain::Replay::Nothing).unwrap();
        }
    }
    let plain: U256 =
        rpc.get("eth_estimateGas", json!([{"from": from, "to": payee(2), "value": "0x1"}])).await;
    assert_eq!(plain, U256::from(21_000));
}

#[tokio::test]
async fn code_storage_creation_and_tags() {
    let (chain, _face, rpc) = served(Config { safe_lag: 2, finalized_lag: 4, ..Config::default() }).await;
    chain.mine_n(9);
    let number = |tag: &'static str| {
        let rpc = &rpc;
        async move {
            let block: rpc::Block = rpc.get("eth_getBlockByNumber", json!([tag, false])).await;
            block.header.number
        }
    };
    assert_eq!(number("latest").await, 9);
    assert_eq!(number("safe").await, 7);
    assert_eq!(number("finalized").await, 5);
    assert_eq!(number("earliest").await, 0);
    let code: Bytes = rpc.get("eth_getCode", json!([CONTRACTS.dollar, "latest"])).await;
    assert!(code.len() > 3000);
    assert_eq!(rpc.result("eth_getCode", json!([payee(1), "latest"])).await, json!("0x"));
    // The supply of the token is in slot 2.
    let holders = U256::from(chain.config().accounts + 1);
    let supply: U256 = rpc.get("eth_getStorageAt", json!([CONTRACTS.plain, "0x2", "latest"])).await;
    assert_eq!(supply, chain.config().token_balance * holders);

    // Runtime code of one STOP.
    let create = Draft {
        data: Bytes::from_static(&alloy_primitives::hex!("600160005360016000f3")),
        ..Draft::default()
    };
    let hash = chain.send(0, create).unwrap();
    chain.mine();
    let receipt: rpc::TransactionReceipt = rpc.get("eth_getTransactionReceipt", json!([hash])).await;
    let created = receipt.contract_address.unwrap();
    assert_eq!(receipt.to, None);
    assert_eq!(rpc.result("eth_getCode", json!([created, "latest"])).await, json!("0x01"));
    assert_ne!(created, Address::ZERO);
}

#[tokio::test]
async fn fee_history_has_one_more_base_fee_than_blocks() {
    let (chain, _face, rpc) = served(Config::default()).await;
    chain.send_native(0, payee(1), U256::from(1)).unwrap();
    chain.mine_n(4);
    let history: rpc::FeeHistory = rpc.get("eth_feeHistory", json!(["0x3", "0x2", [10, 90]])).await;
    assert_eq!(history.oldest_block, 0);
    assert_eq!(history.gas_used_ratio.len(), 3);
    let fees: Vec<u128> =
        (0..=3).map(|n| chain.block(n).unwrap().header().base_fee_per_gas.unwrap().into()).collect();
    assert_eq!(history.base_fee_per_gas, fees);
    let tip = chain.config().tip;
    assert_eq!(history.reward, Some(vec![vec![0, 0], vec![tip, tip], vec![0, 0]]));
    assert!(
        rpc.error("eth_feeHistory", json!(["0x1", "0x9", []]))
            .await
            .1
            .starts_with("request beyond head block")
    );
}

#[tokio::test]
async fn shapes_are_those_of_a_node() {
    let (chain, _face, rpc) = served(Config::default()).await;
    chain.send_token(CONTRACTS.dollar, 0, payee(1), dollars(1)).unwrap();
    chain.mine();
    let keys = |value: &Value| -> Vec<String> {
        let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    let block = rpc.result("eth_getBlockByNumber", json!(["0x1", true])).await;
    assert_eq!(
        keys(&block),
        [
            "baseFeePerGas",
            "blobGasUsed",
            "difficulty",
            "excessBlobGas",
            "extraData",
            "gasLimit",
            "gasUsed",
            "hash",
            "logsBloom",
            "miner",
            "mixHash",
            "nonce",
            "number",
            "parentBeaconBlockRoot",
            "parentHash",
            "receiptsRoot",
            "requestsHash",
            "sha3Uncles",
            "size",
            "stateRoot",
            "timestamp",
            "transactions",
            "transactionsRoot",
            "uncles",
            "withdrawals",
            "withdrawalsRoot",
        ]
    );
    let receipt = &rpc.result("eth_getBlockReceipts", json!(["0x1"])).await[0];
    assert_eq!(
        keys(receipt),
        [
            "blockHash",
            "blockNumber",
            "contractAddress",
            "cumulativeGasUsed",
            "effectiveGasPrice",
            "from",
            "gasUsed",
            "logs",
            "logsBloom",
            "status",
            "to",
            "transactionHash",
            "transactionIndex",
            "type",
        ]
    );
    assert_eq!(
        keys(&receipt["logs"][0]),
        [
            "address",
            "blockHash",
            "blockNumber",
            "blockTimestamp",
            "data",
            "logIndex",
            "removed",
            "topics",
            "transactionHash",
            "transactionIndex",
        ]
    );
    assert_eq!(receipt["contractAddress"], Value::Null);
    assert_eq!(receipt["type"], "0x2");
    assert_eq!(
        keys(&block["transactions"][0]),
        [
            "accessList",
            "blockHash",
            "blockNumber",
            "blockTimestamp",
            "chainId",
            "from",
            "gas",
            "gasPrice",
            "hash",
            "input",
            "maxFeePerGas",
            "maxPriorityFeePerGas",
            "nonce",
            "r",
            "s",
            "to",
            "transactionIndex",
            "type",
            "v",
            "value",
            "yParity",
        ]
    );
}

#[tokio::test]
async fn another_process_can_drive_the_chain() {
    let (chain, face, rpc) = served(Config::default()).await;
    rpc.result("devchain_sendToken", json!([CONTRACTS.dollar, 0, payee(1), "0xf4240"])).await;
    let hash: B256 = rpc.get("devchain_mine", json!([])).await;
    assert_eq!(hash, chain.head().hash);
    assert_eq!(chain.token_balance(CONTRACTS.dollar, payee(1)), dollars(1));
    rpc.result("devchain_mine", json!(["0x2"])).await;
    let reorged = rpc.result("devchain_reorg", json!([{"depth": 3, "replay": "nothing"}])).await;
    assert_eq!(reorged["dropped"].as_array().unwrap().len(), 3);
    assert_eq!(reorged["added"].as_array().unwrap().len(), 4);
    assert_eq!(chain.token_balance(CONTRACTS.dollar, payee(1)), U256::ZERO);
    rpc.result("devchain_setFaults", json!([{"hang": true}])).await;
    assert!(face.faults().hang);
    // Even from a provider that answers nothing else.
    rpc.result("devchain_setFaults", json!([[]])).await;
    assert!(face.faults().is_honest());
    assert!(rpc.error("devchain_setFaults", json!([{"hnag": true}])).await.1.contains("argument 0"));
}

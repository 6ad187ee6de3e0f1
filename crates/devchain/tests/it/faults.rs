//! Each way in which a face can fail or lie, as a client meets it.

use std::time::Duration;

use alloy_primitives::{B256, U256};
use alloy_rpc_types_eth as rpc;
use devchain::token::{self, CONTRACTS};
use devchain::{
    AlteredAmount, Config, Devchain, Drip, Face, Faults, ForgedBlock, ForgedLog, ForgedTransfer, HeaderField,
    HeaderLie, HttpStatus, IdFault, LogPick, Outcome, Provider, Reach, ReceiptsLie, RpcFault, Truncate,
    serve_face,
};
use serde_json::{Value, json};

use crate::client::Rpc;
use crate::{dollars, payee, served, verify};

const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"eth_blockNumber","params":[]}"#;

fn call() -> Value {
    serde_json::from_str(CALL).unwrap()
}

async fn height(rpc: &Rpc) -> u64 {
    rpc.get::<U256>("eth_blockNumber", json!([])).await.to()
}

/// Three blocks; the second holds two payments to payee 1 and one to payee 2.
async fn with_payments() -> (Devchain, Face, Rpc) {
    let (chain, face, rpc) = served(Config::default()).await;
    chain.mine();
    chain.send_token(CONTRACTS.dollar, 0, payee(1), dollars(1)).unwrap();
    chain.send_token(CONTRACTS.dollar, 1, payee(2), dollars(2)).unwrap();
    chain.send_token(CONTRACTS.dollar, 2, payee(1), dollars(3)).unwrap();
    chain.mine();
    chain.mine();
    (chain, face, rpc)
}

// Transport.

#[tokio::test]
async fn http_refusals_web_pages_and_wrong_content_types() {
    let (_chain, face, rpc) = served(Config::default()).await;
    for code in [500, 503, 429] {
        let status = Some(HttpStatus { code, retry_after_secs: (code == 429).then_some(7) });
        face.set_faults(Faults { status, ..Faults::default() });
        let raw = rpc.post(&call()).await.unwrap();
        assert_eq!(raw.status, code);
        assert_eq!(raw.headers.get("retry-after").is_some(), code == 429);
    }
    face.set_faults(Faults { html: true, ..Faults::default() });
    let raw = rpc.post(&call()).await.unwrap();
    assert_eq!(raw.status, 200);
    assert_eq!(raw.headers["content-type"], "text/html; charset=utf-8");
    assert!(raw.body.unwrap().starts_with(b"<!DOCTYPE html>"));
    face.set_faults(Faults { content_type: Some("text/plain".into()), ..Faults::default() });
    let raw = rpc.post(&call()).await.unwrap();
    assert_eq!(raw.headers["content-type"], "text/plain");
    assert!(raw.body.unwrap().ends_with(b"}"));
    assert_eq!(face.requests_of("eth_blockNumber"), 5);
}

#[tokio::test]
async fn errors_inside_a_good_response_and_missing_methods() {
    let (_chain, face, rpc) = served(Config::default()).await;
    let fault = RpcFault { code: -32_005, message: "daily request count exceeded".into() };
    face.set_faults(Faults { rpc_error: Some(fault), ..Faults::default() });
    assert_eq!(rpc.error("eth_chainId", json!([])).await, (-32_005, "daily request count exceeded".into()));
    face.set_faults(Faults { unsupported: vec!["eth_getBlockReceipts".into()], ..Faults::default() });
    assert_eq!(rpc.error("eth_getBlockReceipts", json!(["latest"])).await.0, -32_601);
    assert_eq!(height(&rpc).await, 0);
}

#[tokio::test]
async fn bodies_are_cut_at_the_connection_or_in_the_json() {
    let (_chain, face, rpc) = served(Config::default()).await;
    face.set_faults(Faults { truncate: Some(Truncate::Connection), ..Faults::default() });
    assert!(rpc.post(&call()).await.unwrap().body.is_err());
    face.set_faults(Faults { truncate: Some(Truncate::Json), ..Faults::default() });
    let body = rpc.post(&call()).await.unwrap().body.unwrap();
    assert!(!body.is_empty());
    assert!(serde_json::from_slice::<Value>(&body).is_err());
    face.set_faults(Faults { drip: Some(Drip { bytes: 3, every_ms: 1 }), ..Faults::default() });
    assert_eq!(height(&rpc).await, 0);
}

#[tokio::test]
async fn a_lost_response_was_carried_out_and_a_hung_one_was_not() {
    let (chain, face, rpc) = served(Config::default()).await;
    let send = |nonce| {
        let draft = devchain::Draft {
            to: Some(payee(1)),
            gas_limit: Some(21_000),
            nonce: Some(nonce),
            ..Default::default()
        };
        let signed = chain.sign(0, draft).unwrap();
        let body =
            json!({"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransaction", "params": [signed.raw]});
        (signed.hash, body)
    };
    let (lost, body) = send(0);
    face.set_faults(Faults { lose_response: true, ..Faults::default() });
    assert!(rpc.post(&body).await.is_err());
    assert_eq!(chain.pending(), [lost]);

    let (_, body) = send(1);
    face.set_faults(Faults { hang: true, ..Faults::default() });
    let waiting = tokio::spawn({
        let rpc = Rpc::new(face.url());
        async move { rpc.post(&body).await.is_ok() }
    });
    face.wait_for("eth_sendRawTransaction", 2).await;
    assert!(!waiting.is_finished());
    assert_eq!(chain.pending(), [lost]);

    let (swallowed, body) = send(1);
    face.set_faults(Faults { swallow_sends: true, ..Faults::default() });
    let answer: Value = serde_json::from_slice(&rpc.post(&body).await.unwrap().body.unwrap()).unwrap();
    assert_eq!(answer["result"], json!(swallowed));
    assert_eq!(chain.pending(), [lost]);
    // Only the end of the connection ends the wait.
    face.stop().await;
    assert!(!waiting.await.unwrap());
}

#[tokio::test]
async fn a_stopped_face_refuses_and_comes_back_on_its_port() {
    let (_chain, face, rpc) = served(Config::default()).await;
    assert_eq!(height(&rpc).await, 0);
    let url = face.url();
    face.stop().await;
    face.stop().await;
    let refused = rpc.post(&call()).await.err().unwrap();
    assert!(refused.contains("ConnectionRefused"), "{refused}");
    face.start().await.unwrap();
    face.start().await.unwrap();
    assert_eq!(face.url(), url);
    assert_eq!(height(&rpc).await, 0);
}

#[test]
fn latency_is_reported_with_jitter_from_the_seed() {
    let delays = |name: &str| -> Vec<u128> {
        let provider = Provider::new(&Devchain::new(Config::default()), name);
        provider.set_faults(Faults { latency_ms: 100, jitter_ms: 50, ..Faults::default() });
        (0..20).map(|_| provider.ask(CALL.as_bytes()).delay.as_millis()).collect()
    };
    let first = delays("alpha");
    assert!(first.iter().all(|ms| (100..=150).contains(ms)));
    assert!(first.iter().any(|ms| *ms != first[0]));
    assert_eq!(first, delays("alpha"));
    assert_ne!(first, delays("beta"));
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the face plays its faults in real time")]
async fn a_slow_answer_takes_its_time() {
    let (_chain, face, rpc) = served(Config::default()).await;
    face.set_faults(Faults { latency_ms: 60, ..Faults::default() });
    let start = std::time::Instant::now();
    assert_eq!(height(&rpc).await, 0);
    assert!(start.elapsed() >= Duration::from_millis(60));
}

#[tokio::test]
async fn ids_can_be_wrong() {
    let (_chain, face, rpc) = served(Config::default()).await;
    let batch = json!([
        {"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber"},
        {"jsonrpc": "2.0", "id": 2, "method": "eth_chainId"},
    ]);
    for (fault, ids) in [
        (IdFault::Garbage, [json!("0xbad1d"), json!("0xbad1d")]),
        (IdFault::Duplicate, [json!(1), json!(1)]),
        (IdFault::Missing, [Value::Null, Value::Null]),
        (IdFault::Reversed, [json!(2), json!(1)]),
    ] {
        face.set_faults(Faults { ids: Some(fault), ..Faults::default() });
        let body: Value = serde_json::from_slice(&rpc.post(&batch).await.unwrap().body.unwrap()).unwrap();
        assert_eq!([body[0]["id"].clone(), body[1]["id"].clone()], ids, "{fault:?}");
    }
    face.set_faults(Faults { batch_cap: Some(1), ..Faults::default() });
    let body: Value = serde_json::from_slice(&rpc.post(&batch).await.unwrap().body.unwrap()).unwrap();
    assert_eq!(body["error"]["message"], "batch too large");
}

// Scope.

#[test]
fn scopes_choose_methods_counts_turns_and_shares() {
    let chain = Devchain::new(Config::default());
    let fails = |provider: &Provider, method: &str| {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method}).to_string();
        match provider.ask(body.as_bytes()).outcome {
            Outcome::Respond { status, .. } => status == 503,
            other => panic!("{other:?}"),
        }
    };
    let down =
        || Faults { status: Some(HttpStatus { code: 503, retry_after_secs: None }), ..Faults::default() };
    let provider = Provider::new(&chain, "alpha");

    provider.set_faults(Faults { only: Some(vec!["eth_chainId".into()]), ..down() });
    assert!(fails(&provider, "eth_chainId"));
    assert!(!fails(&provider, "eth_blockNumber"));

    provider.set_faults(Faults { for_requests: Some(2), only: Some(vec!["eth_chainId".into()]), ..down() });
    assert!(!fails(&provider, "eth_blockNumber"));
    let hits: Vec<bool> = (0..4).map(|_| fails(&provider, "eth_chainId")).collect();
    assert_eq!(hits, [true, true, false, false]);

    provider.set_faults(Faults { every_nth: Some(3), ..down() });
    let hits: Vec<bool> = (0..6).map(|_| fails(&provider, "eth_chainId")).collect();
    assert_eq!(hits, [false, false, true, false, false, true]);

    provider.set_faults(Faults { percent: Some(30), ..down() });
    let hits = (0..1000).filter(|_| fails(&provider, "eth_chainId")).count();
    assert!((240..360).contains(&hits), "{hits}");

    provider.set_rules(vec![
        Faults { only: Some(vec!["eth_chainId".into()]), ..down() },
        Faults { only: Some(vec!["eth_blockNumber".into()]), latency_ms: 9, ..Faults::default() },
    ]);
    assert!(fails(&provider, "eth_chainId"));
    assert!(!fails(&provider, "eth_blockNumber"));
    assert_eq!(provider.ask(CALL.as_bytes()).delay, Duration::from_millis(9));
    provider.heal();
    assert_eq!(provider.ask(CALL.as_bytes()).delay, Duration::ZERO);
}

#[test]
fn faults_survive_json_and_unknown_names_are_refused() {
    let faults = Faults {
        percent: Some(5),
        forge_blocks: vec![ForgedBlock { number: 3, transfers: vec![], drop_transactions: true }],
        reach: Reach::Both,
        receipts: Some(ReceiptsLie::DropLast),
        ..Faults::default()
    };
    let text = serde_json::to_string(&faults).unwrap();
    assert_eq!(serde_json::from_str::<Faults>(&text).unwrap(), faults);
    assert!(serde_json::from_str::<Faults>(r#"{"lagg": 3}"#).is_err());
}

// Another view.

#[tokio::test]
async fn a_lagging_face_lags_in_everything() {
    let (chain, face, rpc) = with_payments().await;
    let hidden = chain.block(2).unwrap();
    let payment = *hidden.transactions()[0].tx_hash();
    face.set_faults(Faults { lag: 2, ..Faults::default() });
    assert_eq!(height(&rpc).await, 1);
    let latest: rpc::Block = rpc.get("eth_getBlockByNumber", json!(["latest", false])).await;
    assert_eq!(latest.header.number, 1);
    assert_eq!(rpc.block(2).await, None);
    assert_eq!(rpc.receipts(hidden.hash()).await, None);
    assert_eq!(rpc.result("eth_getTransactionReceipt", json!([payment])).await, Value::Null);
    assert_eq!(rpc.error("eth_getLogs", json!([{"blockHash": hidden.hash()}])).await.1, "unknown block");
    assert_eq!(rpc.error("eth_getLogs", json!([{"fromBlock": "0x0", "toBlock": "0x2"}])).await.0, -32_602);
    assert_eq!(rpc.error("eth_getBalance", json!([payee(1), "0x2"])).await.1, "header not found");
    let balance: U256 = rpc
        .get("eth_call", json!([{"to": CONTRACTS.dollar, "data": token::balance_of(payee(1))}, "latest"]))
        .await;
    assert_eq!(balance, U256::ZERO);

    // Nodes that clip in silence, or say nothing about blocks they do not have.
    face.set_faults(Faults { lag: 2, clip_ranges: true, unknown_hash_is_empty: true, ..Faults::default() });
    assert_eq!(rpc.result("eth_getLogs", json!([{"fromBlock": "0x0", "toBlock": "0x2"}])).await, json!([]));
    assert!(rpc.logs_at(hidden.hash()).await.is_empty());
    face.heal();
    assert_eq!(rpc.logs_at(hidden.hash()).await.len(), 3);
}

#[tokio::test]
async fn tags_lag_with_the_head_and_a_stuck_face_stays() {
    let (chain, face, rpc) = served(Config { safe_lag: 1, finalized_lag: 3, ..Config::default() }).await;
    chain.mine_n(10);
    face.set_faults(Faults { lag: 4, ..Faults::default() });
    let tag = |name: &'static str| {
        let rpc = &rpc;
        async move {
            let block: rpc::Block = rpc.get("eth_getBlockByNumber", json!([name, false])).await;
            block.header.number
        }
    };
    assert_eq!((tag("latest").await, tag("safe").await, tag("finalized").await), (6, 5, 3));
    face.set_faults(Faults { stuck_at: Some(7), ..Faults::default() });
    assert_eq!(height(&rpc).await, 7);
    chain.mine_n(5);
    assert_eq!(height(&rpc).await, 7);
    face.set_faults(Faults { lag_jitter: 3, ..Faults::default() });
    let mut heights = Vec::new();
    for _ in 0..40 {
        heights.push(height(&rpc).await);
    }
    heights.sort_unstable();
    heights.dedup();
    assert_eq!(heights, [12, 13, 14, 15]);
    face.set_faults(Faults { chain_id: Some(1), ..Faults::default() });
    assert_eq!(rpc.result("eth_chainId", json!([])).await, "0x1");
    assert_eq!(rpc.result("net_version", json!([])).await, "1");
}

#[tokio::test]
async fn providers_cap_ranges_and_results() {
    let (chain, face, rpc) = with_payments().await;
    let range = |to: u64| json!([{"fromBlock": "0x0", "toBlock": format!("{to:#x}")}]);
    face.set_faults(Faults { log_range_cap: Some(2), ..Faults::default() });
    assert_eq!(rpc.result("eth_getLogs", range(1)).await, json!([]));
    let (code, message) = rpc.error("eth_getLogs", range(2)).await;
    assert_eq!(code, -32_602);
    assert!(message.contains("2 block range"), "{message}");
    face.set_faults(Faults { log_result_cap: Some(2), ..Faults::default() });
    let (code, message) = rpc.error("eth_getLogs", range(3)).await;
    assert_eq!(code, -32_005);
    assert!(message.contains("more than 2 results"), "{message}");
    assert_eq!(face.requests_of("eth_getLogs"), 3);
    assert_eq!(face.calls().last().unwrap().params, range(3));
    assert_eq!(chain.head().number, 3);
}

// Lies.

#[tokio::test]
async fn omitted_and_empty_logs_leave_no_trace_unless_receipts_are_checked() {
    let (chain, face, rpc) = with_payments().await;
    let hash = chain.block(2).unwrap().hash();
    let block = rpc.block(2).await.unwrap();
    face.set_faults(Faults { empty_logs: true, ..Faults::default() });
    assert!(rpc.logs_at(hash).await.is_empty());
    assert_eq!(verify::block(&block, &rpc.receipts(hash).await.unwrap()), Ok(()));

    let to_one = LogPick { topic: Some(payee(1).into_word()), ..LogPick::default() };
    let omit = |reach| Faults { omit_logs: vec![to_one.clone()], reach, ..Faults::default() };
    face.set_faults(omit(Reach::Logs));
    assert_eq!(rpc.logs_at(hash).await.len(), 1);
    assert_eq!(verify::block(&block, &rpc.receipts(hash).await.unwrap()), Ok(()));
    face.set_faults(omit(Reach::Both));
    assert_eq!(rpc.logs_at(hash).await.len(), 1);
    assert_eq!(verify::block(&block, &rpc.receipts(hash).await.unwrap()), Err("receipts root"));
    face.set_faults(omit(Reach::Receipts));
    assert_eq!(rpc.logs_at(hash).await.len(), 3);
    assert_eq!(verify::block(&block, &rpc.receipts(hash).await.unwrap()), Err("receipts root"));

    let second = LogPick { block: Some(2), log_index: Some(1), ..LogPick::default() };
    face.set_faults(Faults { omit_logs: vec![second], ..Faults::default() });
    let indices: Vec<_> = rpc.logs_at(hash).await.iter().map(|log| log.log_index.unwrap()).collect();
    assert_eq!(indices, [0, 2]);
}

#[tokio::test]
async fn forged_and_altered_logs_do_not_fit_the_roots() {
    let (chain, face, rpc) = with_payments().await;
    let block = rpc.block(2).await.unwrap();
    let hash = block.header.hash;
    let forged = |block| ForgedLog {
        block,
        transaction: None,
        token: CONTRACTS.dollar,
        from: payee(8),
        to: payee(9),
        value: dollars(1000),
    };
    face.set_faults(Faults { forge_logs: vec![forged(2)], reach: Reach::Both, ..Faults::default() });
    let logs = rpc.logs_at(hash).await;
    assert_eq!(logs.len(), 4);
    assert_eq!(logs[3].log_index, Some(3));
    assert_eq!(logs[3].inner, token::transfer_log(CONTRACTS.dollar, payee(8), payee(9), dollars(1000)));
    let filter = json!([{"fromBlock": "0x0", "topics": [null, null, payee(9).into_word()]}]);
    assert_eq!(rpc.get::<Vec<rpc::Log>>("eth_getLogs", filter).await.len(), 1);
    let receipts = rpc.receipts(hash).await.unwrap();
    assert_eq!(receipts[2].inner.logs().len(), 2);
    assert_eq!(verify::block(&block, &receipts), Err("receipts root"));

    // In an empty block there is no transaction to hang it on.
    face.set_faults(Faults { forge_logs: vec![forged(3)], ..Faults::default() });
    let log = &rpc.logs_at(chain.head().hash).await[0];
    let hung_on = log.transaction_hash.unwrap();
    assert_eq!(rpc.result("eth_getTransactionReceipt", json!([hung_on])).await, Value::Null);

    let altered =
        AlteredAmount { pick: LogPick { log_index: Some(0), ..LogPick::default() }, value: dollars(50) };
    face.set_faults(Faults { alter_amounts: vec![altered], reach: Reach::Both, ..Faults::default() });
    let log = &rpc.logs_at(hash).await[0];
    assert_eq!(U256::from_be_slice(&log.inner.data.data), dollars(50));
    assert_eq!(verify::block(&block, &rpc.receipts(hash).await.unwrap()), Err("receipts root"));
    face.set_faults(Faults { shift_log_index: Some(u64::MAX), ..Faults::default() });
    let indices: Vec<_> = rpc.logs_at(hash).await.iter().map(|log| log.log_index.unwrap()).collect();
    assert_eq!(indices, [u64::MAX, 0, 1]);
}

#[tokio::test]
async fn an_index_may_lag_behind_its_own_node_and_logs_may_come_twice() {
    let (chain, face, rpc) = with_payments().await;
    let hash = chain.block(2).unwrap().hash();
    for (lag, found) in [(1, true), (2, false)] {
        face.set_faults(Faults { logs_lag: lag, ..Faults::default() });
        assert_eq!(height(&rpc).await, 3);
        assert_eq!(rpc.logs_at(hash).await.len(), if found { 3 } else { 0 });
        assert_eq!(rpc.receipts(hash).await.unwrap().len(), 3);
        face.set_faults(Faults { receipts_lag: lag, ..Faults::default() });
        assert_eq!(rpc.receipts(hash).await.is_some(), found);
        assert_eq!(rpc.logs_at(hash).await.len(), 3);
    }
    face.set_faults(Faults { duplicate_logs: true, ..Faults::default() });
    let logs = rpc.logs_at(hash).await;
    assert_eq!(logs.len(), 6);
    assert_eq!(logs[0], logs[1]);
}

#[tokio::test]
async fn receipts_can_be_missing_short_or_inverted() {
    let (_chain, face, rpc) = with_payments().await;
    let block = rpc.block(2).await.unwrap();
    let hash = block.header.hash;
    let tx = block.transactions.hashes().next().unwrap();
    let lie = |lie| Faults { receipts: Some(lie), ..Faults::default() };
    face.set_faults(lie(ReceiptsLie::Empty));
    assert_eq!(rpc.receipts(hash).await, Some(vec![]));
    face.set_faults(lie(ReceiptsLie::Null));
    assert_eq!(rpc.receipts(hash).await, None);
    assert_eq!(rpc.result("eth_getTransactionReceipt", json!([tx])).await, Value::Null);
    for (told, length) in [(ReceiptsLie::DropLast, 2), (ReceiptsLie::FlipStatus, 3)] {
        face.set_faults(lie(told));
        let receipts = rpc.receipts(hash).await.unwrap();
        assert_eq!(receipts.len(), length);
        assert_eq!(verify::block(&block, &receipts), Err("receipts root"));
    }
    face.set_faults(Faults { hide_transactions: vec![tx], ..Faults::default() });
    assert_eq!(rpc.result("eth_getTransactionByHash", json!([tx])).await, Value::Null);
    assert_eq!(rpc.result("eth_getTransactionReceipt", json!([tx])).await, Value::Null);
}

#[tokio::test]
async fn headers_can_be_wrong_with_and_without_a_fitting_hash() {
    let (chain, face, rpc) = with_payments().await;
    let truth = chain.block(2).unwrap().hash();
    face.set_faults(Faults { swap_block_hash: true, ..Faults::default() });
    let block = rpc.block(2).await.unwrap();
    assert_ne!(block.header.hash, truth);
    assert_ne!(block.header.inner.hash_slow(), block.header.hash);
    for field in [
        HeaderField::Parent,
        HeaderField::ReceiptsRoot,
        HeaderField::TransactionsRoot,
        HeaderField::LogsBloom,
        HeaderField::Timestamp,
    ] {
        for rehash in [false, true] {
            let lie = HeaderLie { from_block: 2, field, rehash };
            face.set_faults(Faults { forge_header: Some(lie), ..Faults::default() });
            let block = rpc.block(2).await.unwrap();
            let consistent = block.header.inner.hash_slow() == block.header.hash;
            assert_eq!(consistent, rehash, "{field:?}");
            assert_eq!(block.header.hash == truth, !rehash, "{field:?}");
            assert_eq!(rpc.block(1).await.unwrap().header.hash, chain.block(1).unwrap().hash());
        }
    }
}

#[tokio::test]
async fn a_made_up_branch_is_consistent_in_every_method_and_only_its_hashes_betray_it() {
    let (chain, face, rpc) = with_payments().await;
    let transfers = vec![
        ForgedTransfer { token: CONTRACTS.dollar, from: payee(8), to: payee(9), value: dollars(1000) },
        ForgedTransfer {
            token: alloy_primitives::Address::ZERO,
            from: payee(8),
            to: payee(9),
            value: U256::from(5),
        },
    ];
    let plan = vec![ForgedBlock { number: 2, transfers, drop_transactions: false }];
    face.set_faults(Faults { forge_blocks: plan, ..Faults::default() });

    assert_eq!(height(&rpc).await, 3);
    let told = walk(&rpc, 3).await;
    assert_eq!(told[..2], [chain.block(0).unwrap().hash(), chain.block(1).unwrap().hash()]);
    for number in [2, 3] {
        let index = usize::try_from(number).unwrap();
        assert_ne!(told[index], chain.block(number).unwrap().hash());
        assert_eq!(
            rpc.result("eth_getBlockByHash", json!([chain.block(number).unwrap().hash(), false])).await,
            Value::Null
        );
    }
    let receipts = rpc.receipts(told[2]).await.unwrap();
    assert_eq!(receipts.len(), 5);
    let forged = receipts[3].transaction_hash;
    let tx: rpc::Transaction = rpc.get("eth_getTransactionByHash", json!([forged])).await;
    assert_eq!(tx.block_hash, Some(told[2]));
    let receipt: rpc::TransactionReceipt = rpc.get("eth_getTransactionReceipt", json!([forged])).await;
    assert_eq!(receipt, receipts[3]);
    let filter =
        json!([{"fromBlock": "0x0", "toBlock": "latest", "topics": [null, null, payee(9).into_word()]}]);
    let logs: Vec<rpc::Log> = rpc.get("eth_getLogs", filter).await;
    assert_eq!(logs.len(), 1);
    assert_eq!(logs[0].block_hash, Some(told[2]));

    // It grows with the chain, keeps its past, and is gone when the face is healed.
    chain.mine();
    assert_eq!(walk(&rpc, 4).await[..4], told);
    face.heal();
    assert_eq!(walk(&rpc, 4).await[4], chain.head().hash);
}

#[tokio::test]
async fn a_made_up_block_may_leave_out_what_really_happened() {
    let (chain, face, rpc) = with_payments().await;
    let plan = vec![ForgedBlock { number: 2, transfers: vec![], drop_transactions: true }];
    face.set_faults(Faults { forge_blocks: plan, ..Faults::default() });
    let told = walk(&rpc, 3).await;
    assert_eq!(rpc.receipts(told[2]).await, Some(vec![]));
    let payment = *chain.block(2).unwrap().transactions()[0].tx_hash();
    assert_eq!(rpc.result("eth_getTransactionReceipt", json!([payment])).await, Value::Null);
}

/// Verifies the blocks up to `last` and their links; their hashes.
async fn walk(rpc: &Rpc, last: u64) -> Vec<B256> {
    let mut hashes: Vec<B256> = Vec::new();
    for number in 0..=last {
        let block = rpc.block(number).await.unwrap();
        let receipts = rpc.receipts(block.header.hash).await.unwrap();
        assert_eq!(verify::block(&block, &receipts), Ok(()), "block {number}");
        assert_eq!(block.header.parent_hash, hashes.last().copied().unwrap_or_default());
        hashes.push(block.header.hash);
    }
    hashes
}

#[tokio::test]
async fn results_can_be_replaced_and_faces_do_not_share_faults() {
    let (chain, face, rpc) = served(Config::default()).await;
    let other = serve_face(&chain, "beta").await.unwrap();
    let honest = Rpc::new(other.url());
    face.set_faults(Faults {
        results: [("eth_blockNumber".to_owned(), json!("0xffff"))].into(),
        ..Faults::default()
    });
    assert_eq!(height(&rpc).await, 0xffff);
    assert_eq!(height(&honest).await, 0);
    assert_eq!(other.requests_of("eth_blockNumber"), 1);
    assert!(chain.block(0).unwrap().receipts().iter().all(|receipt| receipt.envelope.logs().is_empty()));
}

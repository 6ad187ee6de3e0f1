//! How fast it is. Not part of the ordinary run: times depend on the machine.
//! `cargo test -p devchain --test it -- --ignored --nocapture speed`

use std::time::{Duration, Instant};

use alloy_primitives::U256;
use devchain::token::CONTRACTS;
use devchain::{Config, Devchain, Provider, Replay};
use serde_json::json;

use crate::{dollars, payee};

#[expect(clippy::disallowed_methods, reason = "this measures real time")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

#[expect(clippy::print_stdout, reason = "the figures are the point")]
fn report(what: &str, took: Duration) {
    println!("{what:<60} {took:?}");
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    let (chain, took) = timed(|| Devchain::new(Config { accounts: 2000, ..Config::default() }));
    report("genesis with 2000 accounts", took);
    let fill = |round: u64| {
        for index in 0..200 {
            let to = payee(u8::try_from(index % 250).unwrap());
            chain.send_token(CONTRACTS.dollar, index, to, dollars(1 + round)).unwrap();
        }
    };
    let ((), took) = timed(|| fill(0));
    report("sign and send 200 token transfers", took);
    let (_, took) = timed(|| chain.mine());
    report("mine a block of 200 token transfers, 2000 accounts", took);
    for round in 1..10 {
        fill(round);
        chain.mine();
    }
    fill(10);
    let (_, took) = timed(|| chain.mine());
    report("the same, 11th block", took);
    assert_eq!(chain.block(11).unwrap().transactions().len(), 200);

    let provider = Provider::new(&chain, "alpha");
    let ask = |what: &str, method: &str, params: serde_json::Value| {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let (_, took) = timed(|| provider.ask(body.as_bytes()));
        report(what, took);
    };
    ask("eth_getBlockByNumber, hashes", "eth_getBlockByNumber", json!(["latest", false]));
    ask("eth_getBlockReceipts, 200 receipts", "eth_getBlockReceipts", json!(["latest"]));
    ask("eth_getLogs, 1 block, 200 logs", "eth_getLogs", json!([{}]));
    ask("eth_getLogs, 11 blocks, 2200 logs", "eth_getLogs", json!([{"fromBlock": "0x0"}]));
    let (_, took) = timed(|| chain.reorg(5, Replay::Shuffled).unwrap());
    report("reorganise 5 blocks of 200", took);
    let (_, took) = timed(|| chain.mine_n(1000));
    report("mine 1000 empty blocks", took);
    assert!(chain.token_balance(CONTRACTS.dollar, payee(1)) > U256::ZERO);
}

//! What a read costs in waiting, on a clock that only moves when somebody waits: the figures are exact.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::U256;
use devchain::token::CONTRACTS;
use devchain::{Config, Devchain, Faults, Outcome, Provider, ReceiptsLie};
use domain::chain::ChainId;
use domain::chance::Chance;
use domain::time::Clock;
use futures::future::BoxFuture;
use outside::chain::rpc::read_response;
use outside::chain::{Call, ChainProfile, ChainReader, ProviderSetup, ReaderSetup, RootMode, Rpc, RpcError};
use serde_json::value::RawValue;

use super::chain::{amounts, dollars, payee};
use super::manual::ManualClock;

/// A devchain provider without a network.
struct InMemory {
    provider: Arc<Provider>,
    clock: ManualClock,
}

impl Rpc for InMemory {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Box<RawValue>, RpcError>> {
        let body =
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{}","params":{}}}"#, call.method, call.params);
        let reply = self.provider.ask(body.as_bytes());
        Box::pin(async move {
            self.clock.sleep(reply.delay).await;
            match reply.outcome {
                Outcome::Respond { status: 200, body, .. } => read_response(&body, 1),
                Outcome::Respond { status, .. } => Err(RpcError::Http(status)),
                Outcome::Lost => Err(RpcError::Transport { maybe_delivered: true }),
                Outcome::Hang => std::future::pending().await,
            }
        })
    }
}

/// Reads one block with one payment; gives how long it took. The providers are at 20, 40 and 80 ms.
fn read_with(faults: [Faults; 3]) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _entered = runtime.enter();
    let clock = ManualClock::default();
    let chain = Devchain::new(Config::default());
    let mut providers = Vec::new();
    let mut setups = Vec::new();
    for (index, latency_ms) in [20, 40, 80].into_iter().enumerate() {
        let provider = Arc::new(Provider::new(&chain, &format!("p{index}")));
        provider.set_faults(Faults { latency_ms, ..Faults::default() });
        let rpc = InMemory { provider: Arc::clone(&provider), clock: clock.clone() };
        setups.push(ProviderSetup::new(format!("p{index}"), format!("g{index}"), Arc::new(rpc)));
        providers.push(provider);
    }
    let reader = ChainReader::new(ReaderSetup {
        chain: ChainId::eip155(chain.config().chain_id),
        quorum: 2,
        profile: ChainProfile::of(RootMode::Eth),
        providers: setups,
        clock: Arc::new(clock.clone()),
        chance: Chance::from_seed(1),
        tags_every: Duration::from_secs(10),
    })
    .unwrap();
    clock.run(reader.check_chain_ids()).unwrap();
    for ((provider, faults), latency_ms) in providers.iter().zip(faults).zip([20, 40, 80]) {
        provider.set_faults(Faults { latency_ms, ..faults });
    }
    chain.send_token(CONTRACTS.dollar, 0, payee(1), U256::from(7)).unwrap();
    chain.mine();
    let started = clock.monotonic();
    let block = clock.run(reader.read_block(1, &dollars())).unwrap();
    assert_eq!(amounts(&block.transfers, payee(1)), ["7"]);
    clock.monotonic() - started
}

const HONEST: fn() -> Faults = Faults::default;

fn hanging() -> Faults {
    Faults { hang: true, ..Faults::default() }
}

fn empty() -> Faults {
    Faults { empty_logs: true, receipts: Some(ReceiptsLie::Empty), ..Faults::default() }
}

#[test]
fn honest_providers_cost_the_second_fastest() {
    assert_eq!(read_with([HONEST(), HONEST(), HONEST()]), Duration::from_millis(40));
}

#[test]
fn a_hanging_provider_costs_what_it_would_without_it() {
    assert_eq!(read_with([hanging(), HONEST(), HONEST()]), Duration::from_millis(80));
    assert_eq!(read_with([HONEST(), HONEST(), hanging()]), Duration::from_millis(40));
    assert_eq!(read_with([HONEST(), hanging(), HONEST()]), Duration::from_millis(80));
}

#[test]
fn two_that_return_nothing_cost_one_more_question() {
    // 40 ms to the first refuted body, then everybody else at once: the only honest one is at 80 ms.
    assert_eq!(read_with([empty(), empty(), HONEST()]), Duration::from_millis(120));
    assert_eq!(read_with([HONEST(), empty(), empty()]), Duration::from_millis(40));
}

#[test]
fn a_body_that_hangs_is_asked_of_the_next_after_its_usual_time() {
    let bodies = || Some(vec!["eth_getBlockReceipts".to_owned(), "eth_getBlockByHash".to_owned()]);
    let took = read_with([Faults { only: bodies(), hang: true, ..Faults::default() }, HONEST(), HONEST()]);
    // Header at 20 ms, patience of twice that, then the next provider.
    assert!(took <= Duration::from_millis(100), "{took:?}");
}

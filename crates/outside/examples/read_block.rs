//! What reading one block costs over HTTP, with providers at 20, 40 and 80 ms, and what of that is ours.
//!
//! `cargo run --release -p outside --example read_block [rounds]` prints a table. The chain is in memory
//! (`devchain`); each round mines a block with 200 token payments and reads it with a quorum of 2.

#![expect(clippy::print_stdout, reason = "a table for a person is the point")]
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on stops")]

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, U256};
use devchain::token::CONTRACTS;
use devchain::{Config, Devchain, Face, Faults, ReceiptsLie, serve_face};
use domain::chain::{Asset, ChainId};
use domain::chance::Chance;
use domain::time::Clock;
use outside::chain::profile::{ChainProfile, RootMode};
use outside::chain::proof::ordered_root;
use outside::chain::wire::{decode_receipts, decode_transactions};
use outside::chain::{Call, ChainReader, HttpRpc, ProviderSetup, ReaderSetup, Rpc, Watch};
use outside::clock::SystemClock;
use outside::http::{AddressPolicy, Client, ClientOptions};
use serde_json::value::RawValue;

const PAYMENTS: usize = 200;
const LATENCIES: [u64; 3] = [20, 40, 80];

#[tokio::main]
async fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(60);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    println!(
        "| providers at 20/40/80 ms, {PAYMENTS} payments a block | p50 ms | p95 ms | worst ms | all found |"
    );
    println!("|---|---|---|---|---|");
    let hang = || Faults { hang: true, ..Faults::default() };
    let empty = || Faults { empty_logs: true, receipts: Some(ReceiptsLie::Empty), ..Faults::default() };
    bare(rounds, &clock).await;
    measure("honest", [Faults::default(), Faults::default(), Faults::default()], rounds, &clock).await;
    measure("fastest hangs", [hang(), Faults::default(), Faults::default()], rounds, &clock).await;
    measure("slowest hangs", [Faults::default(), Faults::default(), hang()], rounds, &clock).await;
    measure("two fastest return []", [empty(), empty(), Faults::default()], rounds, &clock).await;
    compute(rounds, &clock).await;
}

async fn serve(chain: &Devchain, faults: [Faults; 3]) -> Vec<Face> {
    let mut faces = Vec::new();
    for (index, (faults, latency_ms)) in faults.into_iter().zip(LATENCIES).enumerate() {
        let face = serve_face(chain, &format!("p{index}")).await.unwrap();
        face.provider().set_faults(Faults { latency_ms, ..faults });
        faces.push(face);
    }
    faces
}

fn reader(chain: &Devchain, faces: &[Face], clock: &Arc<dyn Clock>) -> ChainReader {
    let http =
        Arc::new(Client::new(ClientOptions::new(AddressPolicy::unrestricted()), Arc::clone(clock)).unwrap());
    let provider = |(index, face): (usize, &Face)| {
        let rpc = HttpRpc::new(http.clone(), Arc::clone(clock), face.url().parse().unwrap());
        ProviderSetup::new(format!("p{index}"), format!("g{index}"), Arc::new(rpc))
    };
    ChainReader::new(ReaderSetup {
        chain: ChainId::eip155(chain.config().chain_id),
        quorum: 2,
        profile: ChainProfile::of(RootMode::Eth),
        providers: faces.iter().enumerate().map(provider).collect(),
        clock: Arc::clone(clock),
        chance: Chance::from_seed(1),
        tags_every: Duration::from_secs(10),
    })
    .unwrap()
}

fn mine(chain: &Devchain) -> u64 {
    for payment in 0..PAYMENTS {
        let payee = Address::with_last_byte(u8::try_from(payment % 250).unwrap() + 1);
        chain.send_token(CONTRACTS.dollar, payment % 16, payee, U256::from(payment + 1)).unwrap();
    }
    chain.mine();
    chain.head().number
}

async fn measure(name: &str, faults: [Faults; 3], rounds: usize, clock: &Arc<dyn Clock>) {
    let chain = Devchain::new(Config::default());
    let faces = serve(&chain, Default::default()).await;
    let reader = reader(&chain, &faces, clock);
    reader.check_chain_ids().await.unwrap();
    for ((face, faults), latency_ms) in faces.iter().zip(faults).zip(LATENCIES) {
        face.provider().set_faults(Faults { latency_ms, ..faults });
    }
    let watch = Watch::all([Asset::Token(CONTRACTS.dollar)]);
    let mut spans = Vec::new();
    let mut found = 0;
    for _ in 0..rounds {
        let number = mine(&chain);
        let started = clock.monotonic();
        let block = reader.read_block(number, &watch).await.unwrap();
        spans.push(clock.monotonic().saturating_sub(started));
        found += usize::from(block.transfers.len() == PAYMENTS);
        // What is late has to end before the next round, so that rounds do not lean on each other.
        clock.sleep(Duration::from_millis(120)).await;
    }
    spans.sort_unstable();
    let at = |percent: usize| millis(spans[(spans.len() * percent / 100).min(spans.len() - 1)]);
    println!("| {name} | {} | {} | {} | {found} of {rounds} |", at(50), at(95), at(100));
}

/// The floor: the questions that an honest read waits for, asked of the same faces over the same client, and
/// nothing done with the answers.
async fn bare(rounds: usize, clock: &Arc<dyn Clock>) {
    let chain = Devchain::new(Config::default());
    let faces = serve(&chain, Default::default()).await;
    for (face, latency_ms) in faces.iter().zip(LATENCIES) {
        face.provider().set_faults(Faults { latency_ms, ..Faults::default() });
    }
    let http =
        Arc::new(Client::new(ClientOptions::new(AddressPolicy::unrestricted()), Arc::clone(clock)).unwrap());
    let rpcs: Vec<HttpRpc> = faces
        .iter()
        .map(|face| HttpRpc::new(http.clone(), Arc::clone(clock), face.url().parse().unwrap()))
        .collect();
    let deadline = Duration::from_secs(5);
    let ask = |rpc: usize, method, params: String| {
        rpcs[rpc].call(Call { deadline, ..Call::new(method, params).block_sized() })
    };
    let mut spans = Vec::new();
    for _ in 0..rounds {
        let number = mine(&chain);
        let hash = chain.head().hash;
        let started = clock.monotonic();
        let header = || format!(r#"["0x{number:x}",false]"#);
        let body = async {
            ask(0, "eth_getBlockByNumber", header()).await.unwrap();
            let receipts = ask(0, "eth_getBlockReceipts", format!(r#"["{hash}"]"#));
            let block = ask(0, "eth_getBlockByHash", format!(r#"["{hash}",true]"#));
            futures::join!(receipts, block)
        };
        let _answers = futures::join!(body, ask(1, "eth_getBlockByNumber", header()));
        spans.push(clock.monotonic().saturating_sub(started));
        clock.sleep(Duration::from_millis(120)).await;
    }
    spans.sort_unstable();
    let at = |percent: usize| millis(spans[(spans.len() * percent / 100).min(spans.len() - 1)]);
    println!("| (the same questions, bare) | {} | {} | {} | – |", at(50), at(95), at(100));
}

/// What is computed, without any waiting: decoding and both roots of a block.
async fn compute(rounds: usize, clock: &Arc<dyn Clock>) {
    let chain = Devchain::new(Config::default());
    let number = mine(&chain);
    let provider = devchain::Provider::new(&chain, "p");
    let ask = |method: &str, params: &str| -> Box<RawValue> {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
        let devchain::Outcome::Respond { body, .. } = provider.ask(body.as_bytes()).outcome else {
            panic!("no answer")
        };
        outside::chain::rpc::read_response(&body, 1).unwrap()
    };
    let profile = ChainProfile::of(RootMode::Eth);
    let receipts = ask("eth_getBlockReceipts", &format!(r#"["0x{number:x}"]"#));
    let block = ask("eth_getBlockByNumber", &format!(r#"["0x{number:x}",true]"#));
    let started = clock.monotonic();
    for _ in 0..rounds {
        let seen = decode_receipts(&receipts).unwrap();
        let bytes: Vec<Vec<u8>> = seen.iter().map(|receipt| receipt.consensus.encode()).collect();
        std::hint::black_box(ordered_root(&bytes));
    }
    let for_receipts = clock.monotonic().saturating_sub(started) / u32::try_from(rounds).unwrap();
    let started = clock.monotonic();
    for _ in 0..rounds {
        let seen = decode_transactions(&block, &profile).unwrap();
        let bytes: Vec<_> = seen.list.iter().map(|(_, bytes)| bytes.clone()).collect();
        std::hint::black_box(ordered_root(&bytes));
    }
    let for_transactions = clock.monotonic().saturating_sub(started) / u32::try_from(rounds).unwrap();
    println!();
    println!(
        "computed for {PAYMENTS} receipts ({} kB): {} ms; for their transactions ({} kB): {} ms",
        receipts.get().len() / 1000,
        millis(for_receipts),
        block.get().len() / 1000,
        millis(for_transactions),
    );
}

fn millis(span: Duration) -> String {
    let micros = span.as_micros();
    format!("{}.{:02}", micros / 1000, micros % 1000 / 10)
}

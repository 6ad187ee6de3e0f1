//! How long it takes to read and prove one block through three providers, while they are honest, hang or return nothing.
//!
//! The providers answer after 20, 40 and 80 ms (±10 %) over HTTP on loopback; the quorum is 2; a block holds five transfers. A read
//! ends when two groups agree on the header and its receipts and transactions are proven, or says that it cannot. What
//! the slower of the two fastest providers needs to answer one bare question is the floor.
//!
//! ```text
//! cargo run --release -p sim --bin bench_read -- [--reads 90] [--json]
//! bench_read rpc N     # as an adapter of a comparison; PEER_URLS, PEER_BLOCK, PEER_ADDR, PEER_EXPECT say what to read
//! ```

#![expect(clippy::print_stdout, reason = "this is a program, and the figures are its result")]

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, U256};
use clap::{Parser, ValueEnum};
use devchain::token::CONTRACTS;
use devchain::{Devchain, Face, Faults, ReceiptsLie, serve_face};
use domain::chain::{Asset, ChainId};
use domain::chance::Chance;
use domain::time::Clock;
use outside::chain::{
    Call, ChainProfile, ChainReader, HttpRpc, ProviderSetup, ReaderSetup, RootMode, Rpc, Watch,
};
use outside::clock::SystemClock;
use outside::http::{AddressPolicy, Client, ClientOptions, Http};
use serde_json::json;
use sim::figures::{Figures, Target};

const CHAIN: ChainId = ChainId::eip155(31_337);
const TRANSFERS: usize = 5;
/// Milliseconds, and how far they vary to either side.
const LATENCIES: [(u64, u64); 3] = [(20, 2), (40, 4), (80, 8)];
/// Reads before the measured ones: connections are open and latencies known then.
const WARM_UP: usize = 25;
/// What is late from one read has to be over before the next.
const PAUSE: Duration = Duration::from_millis(100);

/// Reads blocks through providers that are slow, hang or return nothing, and prints how long it takes.
#[derive(Parser)]
struct Options {
    /// As an adapter of a comparison: what to measure.
    mode: Option<Mode>,
    /// As an adapter of a comparison: how many reads.
    #[arg(requires = "mode")]
    count: Option<usize>,
    /// How many reads in each case.
    #[arg(long, default_value_t = 90)]
    reads: usize,
    /// One line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Rpc,
}

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let client = ClientOptions::new(AddressPolicy::unrestricted());
    let http: Arc<dyn Http> = Arc::new(Client::new(client, Arc::clone(&clock))?);
    if options.mode.is_some() {
        return adapt(&clock, &http, options.count.unwrap_or(30)).await;
    }
    let mut figures =
        Figures::new("Reading and proving one block; providers at 20, 40, 80 ms ±10 %, quorum 2");
    figures.setting("reads in each case", options.reads);
    figures.setting("transfers in a block", TRANSFERS);
    let honest = Faults::default;
    let hangs = || Faults { hang: true, ..Faults::default() };
    let empty = || Faults { receipts: Some(ReceiptsLie::Empty), empty_logs: true, ..Faults::default() };
    let cases = [
        ("honest", [honest(), honest(), honest()], 1, 2),
        ("fastest hangs", [hangs(), honest(), honest()], 2, 5),
        ("slowest hangs", [honest(), honest(), hangs()], 1, 2),
        ("two return []", [empty(), empty(), honest()], 1, 0),
    ];
    let mut wrong = 0;
    for (name, faults, kth, allowed_over) in cases {
        let seen = measure(&clock, &http, faults, kth, options.reads).await?;
        let over = Duration::from_millis(allowed_over);
        let target = match allowed_over {
            0 => Target::None,
            _ => Target::AtMost(millis(seen.floor + over)),
        };
        figures.millis(format!("{name}: bare answer of the k-th fastest, p50"), seen.floor, Target::None);
        figures.millis(format!("{name}: read, p50"), seen.at(50), target);
        figures.millis(format!("{name}: read, p95"), seen.at(95), Target::None);
        figures.millis(format!("{name}: read, worst"), seen.at(100), Target::None);
        wrong += seen.wrong;
        figures.add(format!("{name}: gave up, and said so"), f64::from(seen.refused), "", Target::None);
    }
    figures.add("silently wrong, in all", f64::from(wrong), "", Target::AtMost(0.0));
    println!("{}", figures.render(options.json));
    Ok(())
}

struct Seen {
    floor: Duration,
    /// In order of length.
    spans: Vec<Duration>,
    wrong: u32,
    refused: u32,
}

impl Seen {
    fn at(&self, percent: usize) -> Duration {
        let last = self.spans.len().saturating_sub(1);
        self.spans.get((self.spans.len() * percent / 100).min(last)).copied().unwrap_or_default()
    }
}

#[expect(clippy::float_arithmetic, reason = "a figure for reading")]
fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

fn with_latency(faults: Faults, (millis, varies): (u64, u64)) -> Faults {
    Faults { latency_ms: millis - varies, jitter_ms: 2 * varies, ..faults }
}

async fn measure(
    clock: &Arc<dyn Clock>,
    http: &Arc<dyn Http>,
    faults: [Faults; 3],
    kth: usize,
    reads: usize,
) -> Result<Seen, Failure> {
    let chain = Devchain::new(devchain::Config::default());
    let mut faces: Vec<Face> = Vec::new();
    for (index, latency) in LATENCIES.into_iter().enumerate() {
        let face = serve_face(&chain, &format!("p{index}")).await?;
        face.set_faults(with_latency(Faults::default(), latency));
        faces.push(face);
    }
    let urls: Vec<String> = faces.iter().map(Face::url).collect();
    let reader = reader(clock, http, &urls)?;
    let watch = Watch::all([Asset::Token(CONTRACTS.dollar)]);
    for _ in 0..WARM_UP {
        mine(&chain)?;
        reader.read_block(chain.head().number, &watch).await?;
    }
    for ((face, faults), latency) in faces.iter().zip(faults).zip(LATENCIES) {
        face.set_faults(with_latency(faults, latency));
    }
    let mut seen = Seen { floor: Duration::ZERO, spans: Vec::new(), wrong: 0, refused: 0 };
    for _ in 0..reads {
        mine(&chain)?;
        let began = clock.monotonic();
        let read = reader.read_block(chain.head().number, &watch).await;
        seen.spans.push(clock.monotonic().saturating_sub(began));
        match read {
            Ok(block) if block.transfers.len() == TRANSFERS => {}
            Ok(_) => seen.wrong += 1,
            Err(_) => seen.refused += 1,
        }
        clock.sleep(PAUSE).await;
    }
    seen.spans.sort_unstable();
    seen.floor = bare(clock, http, urls.get(kth).ok_or("no such provider")?, reads).await?;
    Ok(seen)
}

/// What one provider needs to answer one question.
async fn bare(
    clock: &Arc<dyn Clock>,
    http: &Arc<dyn Http>,
    url: &str,
    times: usize,
) -> Result<Duration, Failure> {
    let rpc = HttpRpc::new(Arc::clone(http), Arc::clone(clock), url.parse()?);
    let mut spans = Vec::new();
    for _ in 0..times {
        let call = Call::new("eth_getBlockByNumber", r#"["latest",false]"#);
        let began = clock.monotonic();
        rpc.call(Call { deadline: Duration::from_secs(5), ..call }).await?;
        spans.push(clock.monotonic().saturating_sub(began));
    }
    spans.sort_unstable();
    Ok(spans.get(spans.len() / 2).copied().unwrap_or_default())
}

fn reader(clock: &Arc<dyn Clock>, http: &Arc<dyn Http>, urls: &[String]) -> Result<ChainReader, Failure> {
    let mut providers = Vec::new();
    for (index, url) in urls.iter().enumerate() {
        let rpc = HttpRpc::new(Arc::clone(http), Arc::clone(clock), url.parse()?);
        providers.push(ProviderSetup::new(format!("p{index}"), format!("g{index}"), Arc::new(rpc)));
    }
    Ok(ChainReader::new(ReaderSetup {
        chain: CHAIN,
        quorum: 2,
        profile: ChainProfile::of(RootMode::Eth),
        providers,
        clock: Arc::clone(clock),
        chance: Chance::from_seed(1),
        tags_every: Duration::from_secs(10),
    })?)
}

fn mine(chain: &Devchain) -> Result<(), Failure> {
    for number in 0..TRANSFERS {
        let to = Address::with_last_byte(u8::try_from(number)? + 1);
        chain.send_token(CONTRACTS.dollar, number, to, U256::from(number + 1))?;
    }
    chain.mine();
    Ok(())
}

fn setting(name: &str) -> Result<String, Failure> {
    std::env::var(name).map_err(|_| format!("{name} is not set").into())
}

/// The comparison's own node behind its own fault proxies: one block, again and again.
async fn adapt(clock: &Arc<dyn Clock>, http: &Arc<dyn Http>, count: usize) -> Result<(), Failure> {
    let urls: Vec<String> = setting("PEER_URLS")?.split(',').map(str::to_owned).collect();
    let text = setting("PEER_BLOCK")?;
    let block = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16)?,
        None => text.parse()?,
    };
    let expected: usize = setting("PEER_EXPECT")?.parse()?;
    let watch = Watch::all([Asset::Token(setting("PEER_ADDR")?.parse()?)]);
    let reader = reader(clock, http, &urls)?;
    // The others connect before the span as well.
    reader.head().await?;
    println!("#phase rpc");
    let (mut spans, mut answers, mut wrong) = (Vec::new(), BTreeMap::<String, u32>::new(), 0_u32);
    for _ in 0..count {
        let began = clock.monotonic();
        let read = reader.read_block(block, &watch).await;
        spans.push(clock.monotonic().saturating_sub(began));
        let answer = match read {
            Ok(block) => {
                wrong += u32::from(block.transfers.len() != expected);
                format!("{} logs", block.transfers.len())
            }
            Err(stall) => format!("stall {}", stall.kind.as_str()),
        };
        *answers.entry(answer).or_default() += 1;
    }
    println!("#end");
    spans.sort_unstable();
    let seen = Seen { floor: Duration::ZERO, spans, wrong, refused: 0 };
    let at = |percent| millis(seen.at(percent));
    println!(
        "{}",
        json!({
            "n": count,
            "ms": { "p50": at(50), "p95": at(95), "p99": at(99), "max": at(100) },
            "answers": answers,
            "silently_wrong": seen.wrong,
        })
    );
    Ok(())
}

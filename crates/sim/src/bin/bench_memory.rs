//! What a million open invoices cost: resident memory, and the time of one block at ten thousand, a hundred thousand, a million.
//!
//! The invoices are made in one process and counted by another, so that the memory shown is that of watching and not of making
//! them. A block holds payments to recipients of ours, spread over all invoices, and payments to strangers, which have to be looked
//! up too. Its cost is from the proven block to the committed cursor, with every commit synced.
//!
//! ```text
//! cargo run --release -p sim --bin bench_memory -- [--invoices 1000000] [--json]
//! ```

#![expect(clippy::print_stdout, reason = "this is a program, and the figures are its result")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, U256, keccak256};
use app::features::invoice::{self, InvoiceError, NewInvoice};
use app::ledger;
use app::reading::{self, ReadBlock};
use clap::Parser;
use devchain::token::CONTRACTS;
use devchain::{Devchain, Provider};
use domain::chain::{Asset, B256, BlockLink, BlockRef, ChainId, Confirmations, EvidenceLevel, Heights};
use domain::chance::Chance;
use domain::money::Amount;
use domain::time::{Clock, Timestamp};
use durable::store::block::ChainCursor;
use durable::store::{Query, Store, StoreError, StoreOptions, Tx, block};
use outside::chain::{ChainProfile, ChainReader, ProviderSetup, ReaderSetup, RootMode, Watch};
use outside::clock::SystemClock;
use serde::{Deserialize, Serialize};
use sim::figures::{Figures, Target};
use sim::local::LocalRpc;

const CHAIN: ChainId = ChainId::eip155(31_337);
/// Invoices made in one transaction.
const BATCH: u64 = 1_000;
/// Payments in a block to recipients of ours.
const OURS: u64 = 20;
/// Payments in a block to strangers.
const STRANGERS: u64 = 180;

/// Measures memory and the cost of a block at three sizes.
#[derive(Parser)]
struct Options {
    /// How many open invoices at most; also measured are a tenth and a hundredth of them.
    #[arg(long, default_value_t = 1_000_000)]
    invoices: u64,
    /// How many blocks are measured at each size.
    #[arg(long, default_value_t = 60)]
    blocks: u64,
    /// Where the database is put; default: a temporary directory.
    #[arg(long)]
    data: Option<PathBuf>,
    /// One line of JSON.
    #[arg(long)]
    json: bool,
    /// What the process that measures is told: how many invoices there are.
    #[arg(long, hide = true)]
    watch: Option<u64>,
}

type Failure = Box<dyn Error + Send + Sync>;

/// What the process that watches found.
#[derive(Debug, Serialize, Deserialize)]
struct Watched {
    resident_kib: u64,
    block_micros_p50: u64,
    block_micros_p95: u64,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let directory = tempfile::tempdir()?;
    let data = options.data.clone().unwrap_or_else(|| directory.path().to_owned());
    if let Some(invoices) = options.watch {
        let watched = watch(&data, invoices, options.blocks).await?;
        println!("{}", serde_json::to_string(&watched)?);
        return Ok(());
    }
    let mut figures = Figures::new("Open invoices: memory and the cost of a block (synchronous=FULL)");
    figures.setting("payments in a block", format!("{OURS} to recipients of ours, {STRANGERS} to strangers"));
    figures.setting("blocks at each size", options.blocks);
    let mut made = 0;
    let mut first = None;
    for size in [options.invoices / 100, options.invoices / 10, options.invoices] {
        make(&data, made, size).await?;
        made = size;
        let watched = in_another_process(&data, size, options.blocks)?;
        let smallest = *first.get_or_insert(watched.block_micros_p50);
        let flat = Target::AtMost(millis(smallest.saturating_mul(2)));
        figures.add(
            format!("{size} invoices: resident"),
            mebibytes(watched.resident_kib),
            "MB",
            Target::AtMost(250.0),
        );
        figures.add(format!("{size} invoices: a block, p50"), millis(watched.block_micros_p50), "ms", flat);
        figures.add(
            format!("{size} invoices: a block, p95"),
            millis(watched.block_micros_p95),
            "ms",
            Target::None,
        );
    }
    println!("{}", figures.render(options.json));
    Ok(())
}

#[expect(clippy::float_arithmetic, clippy::cast_precision_loss, reason = "a figure for reading")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

#[expect(clippy::float_arithmetic, clippy::cast_precision_loss, reason = "a figure for reading")]
fn mebibytes(kibibytes: u64) -> f64 {
    kibibytes as f64 * 1.024 / 1000.0
}

fn in_another_process(data: &Path, invoices: u64, blocks: u64) -> Result<Watched, Failure> {
    let output = Command::new(std::env::current_exe()?)
        .arg("--data")
        .arg(data)
        .args(["--watch", &invoices.to_string(), "--blocks", &blocks.to_string()])
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn open(data: &Path, clock: &Arc<dyn Clock>) -> Result<Store, Failure> {
    let path = data.join("memory.db");
    Ok(Store::open(path, StoreOptions::default(), Arc::clone(clock), Chance::from_system()?)?)
}

fn recipient(number: u64) -> Address {
    Address::from_word(keccak256(number.to_be_bytes()))
}

/// Makes the invoices from the `from`-th up to the `to`-th.
async fn make(data: &Path, from: u64, to: u64) -> Result<(), Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let store = open(data, &clock)?;
    if from == 0 {
        store.write(|tx| block::save_cursor(tx, &cursor(&genesis(), tx.now()))).await?;
    }
    let expires_at = store.now() + Duration::from_secs(30 * 24 * 3600);
    let mut next = from;
    while next < to {
        let some = next..(next + BATCH).min(to);
        next = some.end;
        store
            .write(move |tx| {
                some.clone().try_for_each(|number| {
                    let new = NewInvoice {
                        chain: CHAIN,
                        asset: Asset::Token(CONTRACTS.dollar),
                        amount: Amount::from(1_000_000 + number),
                        recipient: recipient(number),
                        payer: None,
                        confirmations: Confirmations::Depth(2),
                        expires_at,
                        reference: Some(format!("order {number}")),
                        metadata: None,
                    };
                    invoice::create(tx, &new).map(|_| ())
                })
            })
            .await
            .map_err(|error: InvoiceError| error.to_string())?;
    }
    Ok(())
}

/// Reads and applies blocks, as the watcher does.
async fn watch(data: &Path, invoices: u64, blocks: u64) -> Result<Watched, Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let store = open(data, &clock)?;
    let chain = pay(invoices, blocks)?;
    let reader = reader(&chain, &clock)?;
    let watch = Watch::all([Asset::Token(CONTRACTS.dollar)]);
    let mut spans = Vec::new();
    for number in 1..=blocks {
        let proven = reader.read_block(number, &watch).await?;
        let began = clock.monotonic();
        let mut read = reading::prepare(store.read_only(), vec![proven]).await?;
        let read = read.pop().ok_or("a block was lost")?;
        let link = read.link;
        store.write(move |tx| settle(tx, &read, &link)).await?;
        spans.push(u64::try_from(clock.monotonic().saturating_sub(began).as_micros())?);
    }
    // The next size begins where this one did.
    store.write(|tx| block::remove_above(tx, CHAIN, 0).map(|_| ())).await?;
    spans.sort_unstable();
    let at = |percent: usize| {
        spans.get((spans.len() * percent / 100).min(spans.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    Ok(Watched { resident_kib: resident_kib()?, block_micros_p50: at(50), block_micros_p95: at(95) })
}

/// A chain whose blocks pay some of ours, spread over all, and many strangers.
fn pay(invoices: u64, blocks: u64) -> Result<Devchain, Failure> {
    // Another seed at each size: the payments of the sizes before are other transactions.
    let config = devchain::Config { seed: invoices, ..devchain::Config::default() };
    let payers = config.accounts;
    let chain = Devchain::new(config);
    let mut sent = 0_u64;
    for block in 0..blocks {
        for number in 0..OURS + STRANGERS {
            let to = if number < OURS {
                recipient((block * OURS + number).wrapping_mul(7_919) % invoices.max(1))
            } else {
                recipient(u64::MAX - block * STRANGERS - number)
            };
            chain.send_token(CONTRACTS.dollar, usize::try_from(sent % payers)?, to, U256::from(1_000))?;
            sent += 1;
        }
        chain.mine();
    }
    Ok(chain)
}

fn reader(chain: &Devchain, clock: &Arc<dyn Clock>) -> Result<ChainReader, Failure> {
    let providers = ["a", "b", "c"].map(|name| {
        let provider = Arc::new(Provider::new(chain, name));
        ProviderSetup::new(name, name, Arc::new(LocalRpc::new(provider, Arc::clone(clock))))
    });
    Ok(ChainReader::new(ReaderSetup {
        chain: CHAIN,
        quorum: 2,
        profile: ChainProfile::of(RootMode::Eth),
        providers: providers.into(),
        clock: Arc::clone(clock),
        chance: Chance::from_seed(1),
        tags_every: Duration::from_secs(60),
    })?)
}

/// What the watcher writes for a proven block.
fn settle(tx: &mut Tx, read: &ReadBlock, link: &BlockLink) -> Result<(), StoreError> {
    block::insert(tx, CHAIN, link)?;
    let heights = Heights { head: link.block.number, safe: 0, finalized: 0 };
    reading::apply(tx, CHAIN, read, Confirmations::Depth(2), Some(heights))?;
    ledger::advance(tx, CHAIN, heights).map_err(StoreError::damaged)?;
    ledger::expire(tx, CHAIN, link.time).map_err(StoreError::damaged)?;
    block::save_cursor(tx, &cursor(link, tx.now()))
}

fn cursor(link: &BlockLink, now: Timestamp) -> ChainCursor {
    ChainCursor {
        chain: CHAIN,
        block: link.block,
        time: link.time,
        safe: 0,
        finalized: 0,
        head: link.block.number,
        level: EvidenceLevel::Verified,
        frozen: None,
        stalled: None,
        advanced_at: now,
    }
}

fn genesis() -> BlockLink {
    BlockLink { block: BlockRef { number: 0, hash: B256::ZERO }, parent: B256::ZERO, time: Timestamp::EPOCH }
}

/// The most memory this process ever had resident, as Linux counts it.
fn resident_kib() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmHWM")?;
    Ok(number.parse()?)
}

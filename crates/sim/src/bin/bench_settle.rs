//! How many invoices are settled a second: from proven blocks to committed rows, without network.
//!
//! Every invoice has a recipient of its own and is paid by one token transfer in a transaction of its own. What is counted
//! is all that settling means: the payment, its evidence, both of the invoice's states, both events, a delivery of each and the
//! job that sends the first, and the cursor, in SQLite with every commit synced. Reading and proving the blocks from an
//! in-memory provider is measured beside it, and is not part of the rate.
//!
//! ```text
//! cargo run --release -p sim --bin bench_settle -- [--invoices 20000] [--per-block 500] [--json]
//! ```

#![expect(clippy::print_stdout, reason = "this is a program, and the figures are its result")]

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, U256, keccak256};
use app::features::endpoint::{self, EndpointError, NewEndpoint};
use app::features::invoice::{self, InvoiceError, NewInvoice};
use app::ledger;
use app::reading::{self, ReadBlock};
use clap::Parser;
use devchain::token::CONTRACTS;
use devchain::{Devchain, Provider};
use domain::chain::{Asset, B256, BlockLink, BlockRef, ChainId, Confirmations, EvidenceLevel, Heights};
use domain::chance::Chance;
use domain::event::Subscription;
use domain::invoice::Status;
use domain::money::Amount;
use domain::time::{Clock, Timestamp};
use durable::store::block::ChainCursor;
use durable::store::{Query, Store, StoreError, StoreOptions, Tx, block, claim};
use outside::chain::{ChainProfile, ChainReader, ProvenBlock, ProviderSetup, ReaderSetup, RootMode, Watch};
use outside::clock::SystemClock;
use outside::http::AddressPolicy;
use sim::figures::{Figures, Target};
use sim::local::LocalRpc;

const CHAIN: ChainId = ChainId::eip155(31_337);
/// Invoices made in one transaction.
const BATCH: usize = 500;

/// Settles invoices from proven blocks and prints how many a second.
#[derive(Parser)]
struct Options {
    /// How many invoices.
    #[arg(long, default_value_t = 20_000)]
    invoices: usize,
    /// How many are paid in one block.
    #[arg(long, default_value_t = 500)]
    per_block: usize,
    /// How many blocks are written in one transaction, as the watcher does while it catches up.
    #[arg(long, default_value_t = 8)]
    blocks_at_once: usize,
    /// Webhook endpoints that are told of everything.
    #[arg(long, default_value_t = 1)]
    endpoints: usize,
    /// Blocks that confirm a payment, its own included.
    #[arg(long, default_value_t = 1)]
    confirmations: u32,
    /// Where the database is put; default: a temporary directory.
    #[arg(long)]
    data: Option<PathBuf>,
    /// One line of JSON.
    #[arg(long)]
    json: bool,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let options = Options::parse();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let directory = tempfile::tempdir()?;
    let path = options.data.clone().unwrap_or_else(|| directory.path().to_owned()).join("settle.db");
    let chance = Chance::from_seed(1);
    let store = Store::open(&path, StoreOptions::default(), Arc::clone(&clock), chance.clone())?;

    let recipients: Vec<Address> = (0..options.invoices).map(recipient).collect();
    let made = clock.monotonic();
    store.write(|tx| block::save_cursor(tx, &cursor(&genesis(), tx.now()))).await?;
    register(&store, options.endpoints).await?;
    make_invoices(&store, &recipients, options.confirmations).await?;
    let making = clock.monotonic().saturating_sub(made);

    let chain = pay(&recipients, options.per_block)?;
    let began = clock.monotonic();
    let proven = prove(&chain, &clock, &chance).await?;
    let proving = clock.monotonic().saturating_sub(began);

    let commits_before = store.commit_stats();
    let (cpu_before, written_before) = (cpu_time(), written_bytes());
    let began = clock.monotonic();
    let mut preparing = Duration::ZERO;
    let mut blocks = proven.into_iter();
    loop {
        let some: Vec<ProvenBlock> = blocks.by_ref().take(options.blocks_at_once.max(1)).collect();
        if some.is_empty() {
            break;
        }
        let prepared = clock.monotonic();
        let read = reading::prepare(store.read_only(), some).await?;
        preparing += clock.monotonic().saturating_sub(prepared);
        store.write(move |tx| read.iter().try_for_each(|read| settle(tx, read))).await?;
    }
    let took = clock.monotonic().saturating_sub(began);
    let written = written_bytes().saturating_sub(written_before);
    let cpu = cpu_time().saturating_sub(cpu_before);
    let commits = store.commit_stats().commits - commits_before.commits;

    let settled = settled(&store)?;
    let paid = u64::try_from(recipients.len())?;
    if settled != paid && options.confirmations == 1 {
        return Err(format!("{settled} of {paid} invoices are settled").into());
    }
    let mut figures = Figures::new("Settling, from proven blocks to committed rows (synchronous=FULL)");
    figures.setting("invoices", options.invoices);
    figures.setting("transfers in a block", options.per_block);
    figures.setting("blocks in a transaction", options.blocks_at_once);
    figures.setting("endpoints", options.endpoints);
    figures.rate("settled invoices", settled, took, Target::AtLeast(15_000.0));
    figures.rate("of that, evidence alone would allow", settled, preparing, Target::None);
    figures.rate(
        "of that, the ledger alone would allow",
        settled,
        took.saturating_sub(preparing),
        Target::None,
    );
    figures.rate("if a processor of its own did nothing but this", settled, cpu, Target::None);
    figures.add("written to disk for each", ratio(written, settled), "bytes", Target::None);
    figures.add("commits", ratio(commits, 1), "", Target::None);
    figures.rate("beside it: transfers read and proven", paid, proving, Target::None);
    figures.rate("beside it: invoices made", paid, making, Target::None);
    println!("{}", figures.render(options.json));
    Ok(())
}

#[expect(clippy::float_arithmetic, clippy::cast_precision_loss, reason = "a figure for reading")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// Bytes this process has had written to storage so far, as Linux counts them; 0 elsewhere.
fn written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// The processor time of this process so far, as Linux counts it (in hundredths of a second); zero elsewhere.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Past the name, which may hold spaces: user and system time are the 12th and 13th fields after it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks.saturating_mul(10))
}

fn recipient(number: usize) -> Address {
    Address::from_word(keccak256(number.to_be_bytes()))
}

async fn register(store: &Store, endpoints: usize) -> Outcome<()> {
    for number in 0..endpoints {
        let new = NewEndpoint {
            url: format!("https://merchant-{number}.example/hook"),
            subscriptions: vec![Subscription::All],
            description: None,
        };
        let targets = AddressPolicy::unrestricted();
        store
            .write(move |tx| endpoint::create(tx, &new, &targets).map(|_| ()))
            .await
            .map_err(|error: EndpointError| error.to_string())?;
    }
    Ok(())
}

async fn make_invoices(store: &Store, recipients: &[Address], confirmations: u32) -> Outcome<()> {
    let expires_at = store.now() + Duration::from_secs(30 * 24 * 3600);
    for some in recipients.chunks(BATCH) {
        let some = some.to_vec();
        store
            .write(move |tx| {
                some.iter().try_for_each(|recipient| {
                    let new = NewInvoice {
                        chain: CHAIN,
                        asset: Asset::Token(CONTRACTS.dollar),
                        amount: Amount::from(2_500_000),
                        recipient: *recipient,
                        payer: None,
                        confirmations: Confirmations::Depth(confirmations),
                        expires_at,
                        reference: Some("order 4711".to_owned()),
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

/// A chain on which every recipient was paid.
fn pay(recipients: &[Address], per_block: usize) -> Outcome<Devchain> {
    let config = devchain::Config { gas_limit: 1_000_000_000, ..devchain::Config::default() };
    let payers = usize::try_from(config.accounts)?;
    let chain = Devchain::new(config);
    for some in recipients.chunks(per_block.max(1)) {
        for (number, recipient) in some.iter().enumerate() {
            chain.send_token(CONTRACTS.dollar, number % payers, *recipient, U256::from(2_500_000))?;
        }
        chain.mine();
    }
    if chain.pending().is_empty() { Ok(chain) } else { Err("not every transfer fits its block".into()) }
}

async fn prove(chain: &Devchain, clock: &Arc<dyn Clock>, chance: &Chance) -> Outcome<Vec<ProvenBlock>> {
    let providers = ["a", "b", "c"].map(|name| {
        let provider = Arc::new(Provider::new(chain, name));
        let setup = ProviderSetup::new(name, name, Arc::new(LocalRpc::new(provider, Arc::clone(clock))));
        ProviderSetup { timeout: Duration::from_secs(30), ..setup }
    });
    let reader = ChainReader::new(ReaderSetup {
        chain: CHAIN,
        quorum: 2,
        profile: ChainProfile::of(RootMode::Eth),
        providers: providers.into(),
        clock: Arc::clone(clock),
        chance: chance.clone(),
        tags_every: Duration::from_secs(60),
    })?;
    let watch = Watch::all([Asset::Token(CONTRACTS.dollar)]);
    let mut blocks = Vec::new();
    for number in 1..=chain.head().number {
        blocks.push(reader.read_block(number, &watch).await?);
    }
    Ok(blocks)
}

/// What the watcher writes for a proven block: its link, its payments, what they settle, and the cursor.
fn settle(tx: &mut Tx, read: &ReadBlock) -> Result<(), StoreError> {
    let confirmations = Confirmations::Depth(1);
    block::insert(tx, CHAIN, &read.link)?;
    let heights = Heights { head: read.link.block.number, safe: 0, finalized: 0 };
    let at_once = (!claim::any_open(tx, CHAIN)?).then_some(heights);
    reading::apply(tx, CHAIN, read, confirmations, at_once)?;
    ledger::advance(tx, CHAIN, heights).map_err(StoreError::damaged)?;
    ledger::expire(tx, CHAIN, Timestamp::EPOCH).map_err(StoreError::damaged)?;
    block::save_cursor(tx, &cursor(&read.link, tx.now()))
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

/// Where reading begins: invoices know at which height they were made.
fn genesis() -> BlockLink {
    BlockLink { block: BlockRef { number: 0, hash: B256::ZERO }, parent: B256::ZERO, time: Timestamp::EPOCH }
}

fn settled(store: &Store) -> Result<u64, StoreError> {
    let counts = store.read_now(durable::store::invoice::count_by_status)?;
    Ok(counts.iter().filter(|(status, _)| *status == Status::Settled).map(|(_, count)| *count).sum())
}

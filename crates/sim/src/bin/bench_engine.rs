//! How many jobs a second go from enqueued to finished, each step durable before it is acknowledged.
//!
//! A lifecycle is four logical transactions: the caller's enqueue, the claim, the record and the finish (the last two
//! are one). Every commit is synced (SQLite WAL, `synchronous=FULL`); what is shared is the sync. The
//! handler does nothing and the payload has 256 bytes, so the figure is the engine's own cost.
//!
//! ```text
//! cargo run --release -p sim --bin bench_engine -- [--n 200000] [--callers 256] [--json]
//! bench_engine single|batch|latency N     # as an adapter of a comparison; PEER_DB names the database file
//! ```

#![expect(clippy::print_stdout, reason = "this is a program, and the figures are its result")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use domain::chance::Chance;
use domain::time::Clock;
use durable::engine::{
    AfterCrash, Attempt, Catalog, Engine, EngineOptions, EnqueueOptions, Next, Policy, Recording, Trouble,
    Work, enqueue,
};
use durable::params;
use durable::store::{ReadOnly, Store, StoreError, StoreOptions};
use hdrhistogram::Histogram;
use outside::clock::SystemClock;

/// Jobs enqueued in one transaction by the batch mode.
const BATCH: u64 = 500;
/// Jobs performed before the measured span.
const WARM_UP: u64 = 1_000;
/// Bytes of a job's payload, as JSON.
const PAYLOAD: usize = 256;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measures the engine and prints how many jobs a second it finishes.
#[derive(Parser)]
struct Options {
    /// Play one mode of a comparison instead of all.
    mode: Option<Mode>,
    /// How many jobs, for such a mode.
    count: Option<u64>,
    /// How many jobs.
    #[arg(long, default_value_t = 200_000)]
    n: u64,
    /// Callers at the same time, each waiting for its own durable acknowledgement.
    #[arg(long, default_value_t = 256)]
    callers: u64,
    /// Jobs performed at the same time.
    #[arg(long, default_value_t = 2048)]
    concurrency: u32,
    /// Write a row when a job is recorded, as a real kind of work does.
    #[arg(long)]
    rows: bool,
    /// The database file; a temporary one if not given.
    #[arg(long, env = "PEER_DB")]
    db: Option<PathBuf>,
    /// Threads of the runtime, beside the store's one writer.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// How jobs are offered.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// One job a call, many callers, each waits for its acknowledgement.
    Single,
    /// Many jobs a call, one caller.
    Batch,
    /// One job each 10 ms, whatever happens.
    Latency,
}

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Batch => "batch",
            Self::Latency => "latency",
        }
    }
}

/// Does nothing, and notes how long the job waited for it.
struct Nothing {
    clock: Arc<SystemClock>,
    pickup: Arc<Mutex<Histogram<u64>>>,
}

/// The same, and its record writes a row.
struct Row(Nothing);

/// When it was sent, in microseconds on the clock of this process, and a filler.
type Payload = (u64, String);

fn payload(clock: &SystemClock) -> Payload {
    (micros(clock), "x".repeat(PAYLOAD - 20))
}

fn micros(clock: &SystemClock) -> u64 {
    u64::try_from(clock.monotonic().as_micros()).unwrap_or(u64::MAX)
}

impl Work for Nothing {
    const KIND: &'static str = "nothing";
    const AFTER_CRASH: AfterCrash = AfterCrash::Rerun;
    type Input = Payload;
    type Fact = ();

    async fn perform(&self, input: &Payload, _: &Attempt, _: &ReadOnly) -> Result<(), Trouble> {
        let waited = micros(&self.clock).saturating_sub(input.0);
        self.pickup.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(waited);
        Ok(())
    }

    fn record(
        _: &mut Recording<'_>,
        _: &Payload,
        _: &Attempt,
        outcome: Result<&(), &Trouble>,
    ) -> Result<Next, StoreError> {
        Ok(Recording::usual(outcome))
    }
}

impl Work for Row {
    const KIND: &'static str = "row";
    const AFTER_CRASH: AfterCrash = AfterCrash::Rerun;
    type Input = Payload;
    type Fact = ();

    async fn perform(&self, input: &Payload, attempt: &Attempt, store: &ReadOnly) -> Result<(), Trouble> {
        self.0.perform(input, attempt, store).await
    }

    fn record(
        recording: &mut Recording<'_>,
        input: &Payload,
        attempt: &Attempt,
        outcome: Result<&(), &Trouble>,
    ) -> Result<Next, StoreError> {
        recording
            .execute("insert into bench_row (id, word) values ($1, $2)", params![attempt.job, input.1])?;
        Ok(Recording::usual(outcome))
    }
}

/// One engine on one file, and what it was seen to do.
struct Bench {
    store: Store,
    engine: Engine,
    clock: Arc<SystemClock>,
    pickup: Arc<Mutex<Histogram<u64>>>,
    rows: bool,
}

/// What a run brought.
struct Figures {
    mode: Mode,
    jobs: u64,
    took: Duration,
    pickup: Histogram<u64>,
    mean_group: u64,
    mean_commit: Duration,
}

impl Bench {
    async fn open(path: &std::path::Path, options: &Options) -> Result<Self, Failure> {
        let clock = Arc::new(SystemClock::new());
        let store = Store::open(
            path,
            StoreOptions::default(),
            Arc::clone(&clock) as Arc<dyn Clock>,
            Chance::from_system()?,
        )?;
        if options.rows {
            let table = "create table if not exists bench_row (id blob primary key, word text) without rowid";
            store.write(move |tx| tx.execute(table, params![])).await?;
        }
        let pickup = Arc::new(Mutex::new(Histogram::new_with_bounds(1, 60_000_000, 3)?));
        let policy = Policy { concurrency: options.concurrency, ..Policy::default() };
        let nothing = || Nothing { clock: Arc::clone(&clock), pickup: Arc::clone(&pickup) };
        let mut catalog = Catalog::new();
        catalog.register(nothing(), policy)?;
        catalog.register(Row(nothing()), policy)?;
        let engine =
            Engine::start(store.clone(), catalog, EngineOptions { concurrency: options.concurrency }).await?;
        Ok(Self { store, engine, clock, pickup, rows: options.rows })
    }

    /// Offers `count` jobs and waits until all are recorded.
    async fn run(&self, mode: Mode, count: u64, callers: u64) -> Result<Figures, Failure> {
        let done_before = self.engine.counters().done;
        let before = self.store.commit_stats();
        self.pickup.lock().unwrap_or_else(PoisonError::into_inner).reset();
        let started = self.clock.monotonic();
        match mode {
            Mode::Single => self.offer_singly(count, callers).await?,
            Mode::Batch => self.offer_in_batches(count).await?,
            Mode::Latency => self.offer_slowly(count).await?,
        }
        while self.engine.counters().done - done_before < count {
            self.clock.sleep(Duration::from_millis(1)).await;
        }
        let took = self.clock.monotonic().saturating_sub(started);
        let after = self.store.commit_stats();
        let commits = (after.commits - before.commits).max(1);
        Ok(Figures {
            mode,
            jobs: count,
            took,
            pickup: self.pickup.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            mean_group: (after.writes - before.writes) / commits,
            mean_commit: (after.commit_time.saturating_sub(before.commit_time)) / u32::try_from(commits)?,
        })
    }

    async fn offer_singly(&self, count: u64, callers: u64) -> Result<(), Failure> {
        let left = Arc::new(AtomicU64::new(count));
        let mut tasks = Vec::new();
        for _ in 0..callers {
            let (left, store, clock, rows) =
                (Arc::clone(&left), self.store.clone(), Arc::clone(&self.clock), self.rows);
            tasks.push(tokio::spawn(async move {
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    .is_ok()
                {
                    let job = payload(&clock);
                    store.write(move |tx| offer(tx, rows, &job)).await?;
                }
                Ok::<_, StoreError>(())
            }));
        }
        for task in tasks {
            task.await??;
        }
        Ok(())
    }

    async fn offer_in_batches(&self, count: u64) -> Result<(), Failure> {
        let rows = self.rows;
        let mut left = count;
        while left > 0 {
            let batch = left.min(BATCH);
            left -= batch;
            let clock = Arc::clone(&self.clock);
            self.store
                .write(move |tx| (0..batch).try_for_each(|_| offer(tx, rows, &payload(&clock))))
                .await?;
        }
        Ok(())
    }

    async fn offer_slowly(&self, count: u64) -> Result<(), Failure> {
        let rows = self.rows;
        let started = self.clock.monotonic();
        for n in 0..u32::try_from(count)? {
            let due = started + Duration::from_millis(10) * n;
            self.clock.sleep(due.saturating_sub(self.clock.monotonic())).await;
            let job = payload(&self.clock);
            self.store.write(move |tx| offer(tx, rows, &job)).await?;
        }
        Ok(())
    }
}

fn offer(tx: &mut durable::store::Tx, rows: bool, payload: &Payload) -> Result<(), StoreError> {
    if rows {
        enqueue::<Row>(tx, payload, EnqueueOptions::default())?;
    } else {
        enqueue::<Nothing>(tx, payload, EnqueueOptions::default())?;
    }
    Ok(())
}

impl Figures {
    #[expect(clippy::float_arithmetic, reason = "a rate for people, not money")]
    fn per_second(&self) -> f64 {
        f64::from(u32::try_from(self.jobs).unwrap_or(u32::MAX)) / self.took.as_secs_f64()
    }

    #[expect(clippy::float_arithmetic, reason = "milliseconds for people, not money")]
    fn pickup_ms(&self) -> serde_json::Value {
        let ms = |micros: u64| f64::from(u32::try_from(micros).unwrap_or(u32::MAX)) / 1000.0;
        let at = |quantile| ms(self.pickup.value_at_quantile(quantile));
        serde_json::json!({ "p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": ms(self.pickup.max()) })
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "mode": self.mode.name(),
            "n": self.jobs,
            "jobs_per_s": self.per_second(),
            "pickup_ms": self.pickup_ms(),
            "mean_group": self.mean_group,
            "mean_commit_us": u64::try_from(self.mean_commit.as_micros()).unwrap_or(u64::MAX),
        })
    }
}

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(options.threads).enable_all().build()?;
    runtime.block_on(async {
        match options.mode {
            Some(mode) => play_one(&options, mode).await,
            None => play_all(&options).await,
        }
    })
}

/// As an adapter of a comparison: `#phase`, `#end`, one line of JSON.
async fn play_one(options: &Options, mode: Mode) -> Result<(), Failure> {
    let place = tempfile::tempdir()?;
    let path = options.db.clone().unwrap_or_else(|| place.path().join("bench.db"));
    let bench = Bench::open(&path, options).await?;
    bench.run(Mode::Batch, WARM_UP.min(100), 1).await?;
    println!("#phase {}", mode.name());
    let figures = bench.run(mode, options.count.unwrap_or(options.n), options.callers.min(32)).await?;
    println!("#end");
    println!("{}", figures.to_json());
    bench.engine.stop(Duration::from_secs(5)).await;
    Ok(())
}

/// Both ways of offering, each on a fresh file.
async fn play_all(options: &Options) -> Result<(), Failure> {
    let mut all = Vec::new();
    for mode in [Mode::Single, Mode::Batch] {
        let place = tempfile::tempdir()?;
        let path = options.db.clone().unwrap_or_else(|| place.path().join("bench.db"));
        let bench = Bench::open(&path, options).await?;
        bench.run(Mode::Batch, WARM_UP, 1).await?;
        let figures = bench.run(mode, options.n, options.callers).await?;
        bench.engine.stop(Duration::from_secs(5)).await;
        if options.json {
            all.push(figures.to_json());
            continue;
        }
        let how = match mode {
            Mode::Single => format!("{} callers, each with its own durable acknowledgement", options.callers),
            Mode::Batch | Mode::Latency => format!("{BATCH} jobs a call"),
        };
        println!(
            "{:>7.0} lifecycles/s   {} jobs in {:.2?}, {how}; {} writes a commit, {:.0?} a commit; pickup {}",
            figures.per_second(),
            figures.jobs,
            figures.took,
            figures.mean_group,
            figures.mean_commit,
            figures.pickup_ms(),
        );
    }
    if options.json {
        println!("{}", serde_json::Value::Array(all));
    }
    Ok(())
}

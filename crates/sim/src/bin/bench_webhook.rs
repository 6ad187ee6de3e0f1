//! How many webhooks a second reach a merchant on loopback, durable before and after, and how late they are at 200 a second.
//!
//! The whole product runs: an event, its delivery and its job are one synced transaction; the engine claims, the client
//! signs and sends, the attempt is recorded under its fence. The merchant answers 200 at once and checks no signature. Latency is
//! from the moment at which an event was due to be told of until the merchant has read it (no coordinated omission).
//!
//! ```text
//! cargo run --release -p sim --bin bench_webhook -- [--n 20000] [--json]
//! bench_webhook drain|open N     # as an adapter of a comparison; PEER_DB names the database file
//! ```

#![expect(clippy::print_stdout, reason = "this is a program, and the figures are its result")]

use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use app::compose::{App, Ports};
use app::config::{self, Config, Provider};
use app::features::endpoint::{self, EndpointError, NewEndpoint};
use app::reactions;
use clap::{Parser, ValueEnum};
use devchain::Devchain;
use domain::event::{EventType, Subscription};
use domain::time::Clock;
use durable::store::StoreError;
use hdrhistogram::Histogram;
use outside::chain::Rpc;
use outside::clock::SystemClock;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sim::figures::{Figures, Target};
use sim::local::LocalRpc;
use sim::receiver::{Behaviour, Receiver};

const PATH: &str = "/hook";
/// Events told of in one transaction when a backlog is made.
const BATCH: u64 = 500;
/// Webhooks before the measured span.
const WARM_UP: u64 = 200;
/// Nothing takes longer than this.
const PATIENCE: Duration = Duration::from_secs(120);

/// Sends webhooks to a merchant on loopback and prints how many a second, and how late.
#[derive(Parser)]
struct Options {
    /// As an adapter of a comparison: what to measure.
    mode: Option<Mode>,
    /// As an adapter of a comparison: how many.
    #[arg(requires = "mode")]
    count: Option<u64>,
    /// How many webhooks wait when the backlog is measured.
    #[arg(long, default_value_t = 20_000)]
    n: u64,
    /// How many a second, and for how many seconds, when latency is measured.
    #[arg(long, default_value_t = 200)]
    rate: u64,
    /// See `rate`.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Attempts under way at once.
    #[arg(long, default_value_t = 64)]
    concurrency: u32,
    /// Where the database is put; default: a temporary directory.
    #[arg(long)]
    data: Option<PathBuf>,
    /// One line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
enum Mode {
    Drain,
    Open,
}

type Failure = Box<dyn Error + Send + Sync>;

/// What an event says here: which it is, and when it was due.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Told {
    i: u64,
    due_micros: u64,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let directory = tempfile::tempdir()?;
    let database = match std::env::var_os("PEER_DB") {
        Some(path) => PathBuf::from(path),
        None => options.data.clone().unwrap_or_else(|| directory.path().to_owned()).join("webhook.db"),
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let bench = Bench::start(&database, options.concurrency, clock).await?;
    bench.backlog(0, WARM_UP).await?;
    bench.all_arrived(WARM_UP).await?;
    match (options.mode, options.count) {
        (Some(mode), count) => bench.adapt(mode, count.unwrap_or(4_000), options.rate).await,
        (None, _) => bench.print(&options).await,
    }
}

struct Bench {
    app: Arc<App>,
    receiver: Receiver,
    clock: Arc<dyn Clock>,
}

/// What one span showed.
struct Shown {
    took: Duration,
    received: u64,
    unique: usize,
    /// In microseconds.
    latency: Histogram<u64>,
}

impl Bench {
    async fn start(database: &Path, concurrency: u32, clock: Arc<dyn Clock>) -> Result<Self, Failure> {
        let receiver = Receiver::start(Arc::clone(&clock)).await?;
        receiver.behave(PATH, Behaviour::Accept);
        let config = config(database, concurrency)?;
        let app = App::start(config.clone(), ports(&config, &clock)?).await?;
        let new = NewEndpoint {
            url: receiver.url(PATH),
            subscriptions: vec![Subscription::All],
            description: None,
        };
        let targets = app.targets.clone();
        let made = app.store.write(move |tx| endpoint::create(tx, &new, &targets).map(|_| ())).await;
        made.map_err(|error: EndpointError| error.to_string())?;
        Ok(Self { app, receiver, clock })
    }

    async fn tell(&self, events: Vec<Told>) -> Result<(), StoreError> {
        self.app
            .store
            .write(move |tx| {
                events.iter().try_for_each(|told| reactions::tell(tx, EventType::QuorumRestored, told))
            })
            .await
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_micros()).unwrap_or(u64::MAX)
    }

    /// Makes `count` events at once.
    async fn backlog(&self, from: u64, count: u64) -> Result<(), Failure> {
        let mut next = from;
        while next < from + count {
            let until = (next + BATCH).min(from + count);
            let due_micros = self.micros();
            self.tell((next..until).map(|i| Told { i, due_micros }).collect()).await?;
            next = until;
        }
        Ok(())
    }

    /// Makes events one by one, each at its moment, however long the others take.
    async fn open_loop(self: &Arc<Self>, from: u64, count: u64, rate: u64) -> Result<(), Failure> {
        let begins = self.clock.monotonic();
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..count {
            let due = begins + Duration::from_micros(number * 1_000_000 / rate);
            let early = due.saturating_sub(self.clock.monotonic());
            if !early.is_zero() {
                self.clock.sleep(early).await;
            }
            let told = Told { i: from + number, due_micros: u64::try_from(due.as_micros())? };
            let bench = Arc::clone(self);
            tasks.spawn(async move { bench.tell(vec![told]).await });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// Waits until the merchant has them and the store knows.
    async fn all_arrived(&self, count: u64) -> Result<(), Failure> {
        let arrived = async {
            self.receiver.until_accepted(count).await;
            while self.app.engine.in_flight() > 1 || self.work_is_left().await? {
                self.clock.sleep(Duration::from_millis(2)).await;
            }
            Ok::<_, Failure>(())
        };
        tokio::select! {
            arrived = arrived => arrived,
            () = self.clock.sleep(PATIENCE) => Err("not everything arrived in time".into()),
        }
    }

    async fn work_is_left(&self) -> Result<bool, Failure> {
        let counts = self.app.engine.stats().await?.jobs;
        Ok(counts.iter().any(|count| count.kind == "webhook" && count.jobs > 0))
    }

    async fn drain(&self, count: u64) -> Result<Shown, Failure> {
        self.receiver.forget();
        let began = self.clock.monotonic();
        self.backlog(WARM_UP, count).await?;
        self.all_arrived(count).await?;
        self.shown(began)
    }

    async fn open(self: &Arc<Self>, count: u64, rate: u64) -> Result<Shown, Failure> {
        self.receiver.forget();
        let began = self.clock.monotonic();
        self.open_loop(WARM_UP, count, rate).await?;
        self.all_arrived(count).await?;
        self.shown(began)
    }

    fn shown(&self, began: Duration) -> Result<Shown, Failure> {
        #[derive(Deserialize)]
        struct Body {
            data: Told,
        }
        let took = self.clock.monotonic().saturating_sub(began);
        let mut latency = Histogram::new_with_bounds(1, 600_000_000, 3)?;
        let mut unique = BTreeSet::new();
        let mut received = 0;
        for arrival in self.receiver.arrivals() {
            let told = serde_json::from_slice::<Body>(&arrival.body)?.data;
            let arrived = u64::try_from(arrival.monotonic.as_micros())?;
            latency.saturating_record(arrived.saturating_sub(told.due_micros).max(1));
            unique.insert(told.i);
            received += 1;
        }
        Ok(Shown { took, received, unique: unique.len(), latency })
    }

    async fn print(self, options: &Options) -> Result<(), Failure> {
        let bench = Arc::new(self);
        let drained = bench.drain(options.n).await?;
        let count = options.rate * options.seconds;
        let open = bench.open(count, options.rate).await?;
        bench.app.stop().await;
        let mut figures = Figures::new("Webhooks to one merchant on loopback (synchronous=FULL)");
        figures.setting("backlog", options.n);
        figures.setting("attempts at once", options.concurrency);
        figures.setting("open loop", format!("{} a second for {} s", options.rate, options.seconds));
        figures.rate("delivered from a backlog", options.n, drained.took, Target::AtLeast(2_000.0));
        for (name, quantile, target) in
            [("p50", 0.5, Target::None), ("p95", 0.95, Target::AtMost(30.0)), ("p99", 0.99, Target::None)]
        {
            let span = Duration::from_micros(open.latency.value_at_quantile(quantile));
            figures.millis(format!("latency in the open loop, {name}"), span, target);
        }
        let twice = drained.received + open.received - options.n - count;
        figures.rate("delivered more than once", twice, Duration::from_secs(1), Target::AtMost(0.0));
        println!("{}", figures.render(options.json));
        Ok(())
    }

    async fn adapt(self, mode: Mode, count: u64, rate: u64) -> Result<(), Failure> {
        let bench = Arc::new(self);
        println!("#phase {}", if mode == Mode::Drain { "drain" } else { "open" });
        let shown = match mode {
            Mode::Drain => bench.drain(count).await?,
            Mode::Open => bench.open(count, rate).await?,
        };
        println!("#end");
        bench.app.stop().await;
        let at = |quantile| millis(shown.latency.value_at_quantile(quantile));
        println!(
            "{}",
            json!({
                "n": count,
                "seconds": shown.took.as_secs_f64(),
                "deliveries_per_s": per_second(count, shown.took),
                "failed": 0,
                "sink": {
                    "received": shown.received,
                    "unique": shown.unique,
                    "p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": millis(shown.latency.max()),
                },
            })
        );
        Ok(())
    }
}

#[expect(clippy::float_arithmetic, clippy::cast_precision_loss, reason = "a figure for reading")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

#[expect(clippy::float_arithmetic, clippy::cast_precision_loss, reason = "a figure for reading")]
fn per_second(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn config(database: &Path, concurrency: u32) -> Result<Config, Failure> {
    let text = format!(
        "[store]\nurl = \"sqlite://{}\"\n[[chain]]\nid = \"eip155:31337\"\nquorum = 2\nroot_mode = \"eth\"\n\
         poll_ms = 60000\nrpc_endpoints = [\n{{ url = \"http://127.0.0.1:1/\", group = \"a\" }},\n\
         {{ url = \"http://127.0.0.1:2/\", group = \"b\" }},\n]\n[webhook]\nallow_http = true\n\
         allow_networks = [\"127.0.0.0/8\"]\nendpoint_concurrency = {concurrency}\n",
        database.display()
    );
    Ok(config::parse("bench.toml", &text, Path::new("/"), &[])?.config)
}

/// The real ports, but for the chain, which is not the subject.
fn ports(config: &Config, clock: &Arc<dyn Clock>) -> Result<Ports, Failure> {
    let chain = Devchain::new(devchain::Config::default());
    let of_clock = Arc::clone(clock);
    let rpc = move |provider: &Provider| {
        let provider = Arc::new(devchain::Provider::new(&chain, &provider.name));
        Arc::new(LocalRpc::new(provider, Arc::clone(&of_clock))) as Arc<dyn Rpc>
    };
    Ok(Ports { rpc: Arc::new(rpc), ..Ports::system(config)? })
}

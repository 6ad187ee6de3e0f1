//! What the process tells its operators: every metric's name and help, and every field of the log, in one place.
//!
//! Two kinds of metrics. *Canonical instruments* (`quittance_…`) follow Prometheus' naming advice and can be summed
//! over instances. *Named views* carry the short names that people ask for (`rpc_quorum_failure_rate` …); they are
//! computed here over the last [`WINDOW`] and say in their help what is divided by what.
//!
//! Guarantees: labels are bounded (no id of an invoice, transaction or endpoint is ever a label), amounts are never
//! measured, and no verb takes a secret. Deliberately absent: decisions. Nothing reads a metric to act on it.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::chain::ChainId;
use domain::event::EventType;
use domain::invoice::Status;
use domain::time::Clock;
use durable::store::CommitStats;
use hdrhistogram::Histogram as Spread;
use outside::chain::{ProviderState, ProviderStatus};
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::config::{Log, LogFormat};

/// How far back the named views look.
pub const WINDOW: Duration = Duration::from_secs(300);

/// The names of the fields that log lines carry wherever they apply.
pub mod field {
    /// The invoice, by its id.
    pub const INVOICE: &str = "invoice_uuid";
    /// The transaction, by its hash.
    pub const TX: &str = "tx_hash";
    /// The block, by its number.
    pub const BLOCK: &str = "block";
    /// Which attempt it is, from 1.
    pub const ATTEMPT: &str = "attempt";
}

/// How a round of asking for agreement ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuorumOutcome {
    /// Enough groups agreed.
    Agreed,
    /// Enough groups answered, and they did not agree.
    Disagreed,
    /// Too few groups answered.
    NoQuorum,
}

impl QuorumOutcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Agreed => "agreed",
            Self::Disagreed => "disagreed",
            Self::NoQuorum => "no_quorum",
        }
    }
}

/// What is counted from the store at the moment of a scrape.
#[derive(Debug, Clone, Default)]
pub struct Gauges {
    /// Invoices by status.
    pub invoices: Vec<(Status, u64)>,
    /// Payments that wait for a person, by why (`ambiguous`, `unmatched`).
    pub unresolved_payments: Vec<(&'static str, u64)>,
    /// Jobs by kind and state.
    pub jobs: Vec<(String, &'static str, u64)>,
    /// Deliveries that were given up and not replayed.
    pub dead_letters: u64,
    /// Age of the oldest job that is due.
    pub oldest_due: Duration,
    /// Deliveries that became dead letters since the database was made, by reason.
    pub dead_lettered: Vec<(String, u64)>,
    /// What came again and was not counted twice since the database was made, by source.
    pub duplicates: Vec<(String, u64)>,
    /// Deliveries that ended in the last [`WINDOW`]: with a 2xx answer, and in all.
    pub finished_lately: (u64, u64),
}

type Labels = Vec<(&'static str, Cow<'static, str>)>;
type Spans = Family<Labels, Histogram, fn() -> Histogram>;
type Real = Gauge<f64, AtomicU64>;

/// The instruments of one process.
pub struct Telemetry {
    clock: Arc<dyn Clock>,
    registry: Registry,
    canonical: Canonical,
    views: Views,
    recent: Mutex<Recent>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Telemetry")
    }
}

struct Canonical {
    quorum_rounds: Family<Labels, Counter>,
    provider_latency: Family<Labels, Real>,
    provider_calls: Family<Labels, Counter>,
    provider_failures: Family<Labels, Counter>,
    provider_faults: Family<Labels, Counter>,
    provider_state: Family<Labels, Gauge>,
    provider_head: Family<Labels, Gauge>,
    chain_height: Family<Labels, Gauge>,
    chain_frozen: Family<Labels, Gauge>,
    reorgs: Family<Labels, Counter>,
    reorged_blocks: Family<Labels, Counter>,
    duplicates: Family<Labels, Counter>,
    verification: Spans,
    events: Family<Labels, Counter>,
    attempts: Family<Labels, Counter>,
    deliveries: Family<Labels, Counter>,
    dead_letters: Family<Labels, Counter>,
    dead_letter_depth: Gauge,
    invoices: Family<Labels, Gauge>,
    unresolved: Family<Labels, Gauge>,
    jobs: Family<Labels, Gauge>,
    oldest_due: Real,
    commits: Counter,
    commit_writes: Counter,
    commit_reruns: Counter,
    commit_seconds: Counter<f64, AtomicU64>,
    wal_pages: Gauge,
    requests: Family<Labels, Counter>,
    request_seconds: Spans,
}

struct Views {
    quorum_failure_rate: Family<Labels, Real>,
    provider_latency_ms: Family<Labels, Real>,
    duplicates_dropped: Family<Labels, Counter>,
    delivery_success_rate: Real,
    dead_letters: Counter,
    verification_p95: Real,
}

/// What the views are computed from.
#[derive(Default)]
struct Recent {
    rounds: BTreeMap<ChainId, Ratio>,
    deliveries: (u64, u64),
    verifications: Percentile,
}

impl Telemetry {
    /// Fresh instruments. Every view exists from the start for the given chains and their providers' names.
    #[must_use]
    pub fn new<'a>(clock: Arc<dyn Clock>, chains: impl IntoIterator<Item = (ChainId, Vec<&'a str>)>) -> Self {
        let mut registry = Registry::default();
        let canonical = Canonical::register(&mut registry);
        let views = Views::register(&mut registry);
        let mut recent = Recent::default();
        for (chain, providers) in chains {
            recent.rounds.entry(chain).or_default();
            for provider in providers {
                views.provider_latency_ms.get_or_create(&of_provider(chain, provider)).set(0.0);
            }
        }
        let _ = views.duplicates_dropped.get_or_create(&vec![("source", "chain".into())]);
        Self { clock, registry, canonical, views, recent: Mutex::new(recent) }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One round of asking a chain's groups for agreement ended.
    pub fn quorum_round(&self, chain: ChainId, outcome: QuorumOutcome) {
        let labels = vec![of_chain(chain), ("outcome", outcome.as_str().into())];
        self.canonical.quorum_rounds.get_or_create(&labels).inc();
        let now = self.clock.monotonic();
        self.recent().rounds.entry(chain).or_default().add(now, outcome != QuorumOutcome::Agreed);
    }

    /// A provider said something that is proven false. `fault` is one of a closed list of words.
    pub fn provider_faulty(&self, chain: ChainId, provider: &str, fault: &'static str) {
        let mut labels = of_provider(chain, provider);
        labels.push(("fault", fault.into()));
        self.canonical.provider_faults.get_or_create(&labels).inc();
    }

    /// Takes over what a chain's reader knows of a provider.
    pub fn provider(&self, chain: ChainId, status: &ProviderStatus) {
        let canonical = &self.canonical;
        let labels = of_provider(chain, &status.name);
        let with = |key: &'static str, word: &'static str| {
            let mut labels = labels.clone();
            labels.push((key, word.into()));
            labels
        };
        raise(&canonical.provider_calls.get_or_create(&labels), status.calls);
        for (class, count) in &status.failures {
            raise(&canonical.provider_failures.get_or_create(&with("class", class)), *count);
        }
        for (kind, count) in &status.faults {
            raise(&canonical.provider_faults.get_or_create(&with("fault", kind.as_str())), *count);
        }
        let level = match status.state {
            ProviderState::Healthy => 0,
            ProviderState::Suspect | ProviderState::Probing => 1,
            ProviderState::Resting(_) | ProviderState::Tripped(_) => 2,
            ProviderState::Excluded => 3,
        };
        canonical.provider_state.get_or_create(&labels).set(level);
        if let Some(head) = status.head {
            canonical.provider_head.get_or_create(&labels).set(to_gauge(head));
        }
        let (p50, p95, p99) =
            status.latency.map_or_else(Default::default, |latency| (latency.p50, latency.p95, latency.p99));
        for (quantile, span) in [("0.5", p50), ("0.95", p95), ("0.99", p99)] {
            canonical.provider_latency.get_or_create(&with("quantile", quantile)).set(span.as_secs_f64());
        }
        self.views.provider_latency_ms.get_or_create(&labels).set(millis(p95));
    }

    /// A chain's heights. `kind` is `head`, `processed`, `safe` or `finalized`.
    pub fn chain_height(&self, chain: ChainId, kind: &'static str, height: u64) {
        let labels = vec![of_chain(chain), ("kind", kind.into())];
        self.canonical.chain_height.get_or_create(&labels).set(to_gauge(height));
    }

    /// Whether settling on a chain is stopped.
    pub fn chain_frozen(&self, chain: ChainId, frozen: bool) {
        self.canonical.chain_frozen.get_or_create(&vec![of_chain(chain)]).set(i64::from(frozen));
    }

    /// A chain replaced its last `depth` blocks.
    pub fn reorg(&self, chain: ChainId, depth: u64) {
        self.canonical.reorgs.get_or_create(&vec![of_chain(chain)]).inc();
        self.canonical.reorged_blocks.get_or_create(&vec![of_chain(chain)]).inc_by(depth);
    }

    /// An invoice was verified as paid and its settlement committed, `latency` after the time of its last payment's block.
    pub fn invoice_verified(&self, chain: ChainId, latency: Duration) {
        self.canonical.verification.get_or_create(&vec![of_chain(chain)]).observe(latency.as_secs_f64());
        let now = self.clock.monotonic();
        self.recent().verifications.add(now, latency);
    }

    /// Takes over events from the log, each of which is counted once in this process.
    pub fn events(&self, kinds: impl IntoIterator<Item = EventType>) {
        for kind in kinds {
            self.canonical.events.get_or_create(&vec![("type", kind.as_str().into())]).inc();
        }
    }

    /// One attempt at a delivery ended. `outcome` is one of a closed list of words: `delivered`, `failed`.
    pub fn delivery_attempt(&self, outcome: &'static str) {
        self.canonical.attempts.get_or_create(&vec![("outcome", outcome.into())]).inc();
    }

    /// A delivery reached its end with a 2xx answer.
    pub fn delivered(&self) {
        self.canonical.deliveries.get_or_create(&vec![("outcome", "delivered".into())]).inc();
    }

    /// Takes over what the store's writer has done.
    pub fn commits(&self, stats: &CommitStats) {
        let canonical = &self.canonical;
        raise(&canonical.commits, stats.commits);
        raise(&canonical.commit_writes, stats.writes);
        raise(&canonical.commit_reruns, stats.reruns);
        canonical.commit_seconds.inner().store(stats.commit_time.as_secs_f64().to_bits(), Ordering::Relaxed);
        canonical.wal_pages.set(i64::from(stats.wal_pages));
    }

    /// A request was answered. `route` is the pattern that matched, never the path.
    pub fn request(&self, method: &str, route: &str, status: u16, span: Duration) {
        // A method is the caller's word: what is not a usual one is counted as one.
        let method = ["GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS"]
            .into_iter()
            .find(|known| *known == method)
            .unwrap_or("other");
        let of_route: Labels = vec![("method", method.into()), ("route", route.to_owned().into())];
        self.canonical.request_seconds.get_or_create(&of_route).observe(span.as_secs_f64());
        let mut labels = of_route;
        labels.push(("status", status.to_string().into()));
        self.canonical.requests.get_or_create(&labels).inc();
    }

    /// Takes over what was counted from the store.
    pub fn gauges(&self, gauges: &Gauges) {
        let canonical = &self.canonical;
        for status in Status::ALL {
            let count = gauges.invoices.iter().find(|(of, _)| *of == status).map_or(0, |(_, count)| *count);
            let labels = vec![("status", status.as_str().into())];
            canonical.invoices.get_or_create(&labels).set(to_gauge(count));
        }
        for (why, count) in &gauges.unresolved_payments {
            canonical.unresolved.get_or_create(&vec![("why", (*why).into())]).set(to_gauge(*count));
        }
        canonical.jobs.clear();
        for (kind, state, count) in &gauges.jobs {
            let labels = vec![("kind", kind.clone().into()), ("state", (*state).into())];
            canonical.jobs.get_or_create(&labels).set(to_gauge(*count));
        }
        canonical.dead_letter_depth.set(to_gauge(gauges.dead_letters));
        canonical.oldest_due.set(gauges.oldest_due.as_secs_f64());
        self.take_over_counters(gauges);
    }

    /// Counters that are rows of the store survive restarts; here they are only shown.
    fn take_over_counters(&self, gauges: &Gauges) {
        for (source, count) in &gauges.duplicates {
            let labels = vec![("source", source.clone().into())];
            raise(&self.canonical.duplicates.get_or_create(&labels), *count);
            raise(&self.views.duplicates_dropped.get_or_create(&labels), *count);
        }
        let mut dead = 0_u64;
        for (reason, count) in &gauges.dead_lettered {
            raise(
                &self.canonical.dead_letters.get_or_create(&vec![("reason", reason.clone().into())]),
                *count,
            );
            dead = dead.saturating_add(*count);
        }
        raise(&self.views.dead_letters, dead);
        raise(&self.canonical.deliveries.get_or_create(&vec![("outcome", "dead".into())]), dead);
        self.recent().deliveries = gauges.finished_lately;
    }

    /// Everything in the Prometheus text format (version 0.0.4).
    #[must_use]
    pub fn render(&self) -> String {
        self.refresh_views();
        let mut text = String::new();
        if encode_registry(&mut text, &self.registry).is_err() {
            return String::new();
        }
        in_classic_format(&text)
    }

    /// A page of the views' present values, for people: name, labels, value.
    #[must_use]
    pub fn views(&self) -> Vec<(String, String)> {
        let text = self.render();
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("quittance_"));
        samples.filter_map(|line| line.rsplit_once(' ')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    fn refresh_views(&self) {
        let now = self.clock.monotonic();
        let views = &self.views;
        let mut recent = self.recent();
        for (chain, rounds) in &mut recent.rounds {
            let rate = rounds.share(now).unwrap_or(0.0);
            views.quorum_failure_rate.get_or_create(&vec![of_chain(*chain)]).set(rate);
        }
        views.delivery_success_rate.set(share(recent.deliveries).unwrap_or(1.0));
        views.verification_p95.set(recent.verifications.p95(now).as_secs_f64());
    }
}

impl Canonical {
    fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("quittance");
        let build: Family<Labels, Gauge> =
            added(registry, "build_info", "Always 1; the version is a label", Family::default());
        build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").into())]).set(1);
        Self {
            quorum_rounds: added(
                registry,
                "rpc_quorum_rounds",
                "Rounds of asking a chain's provider groups for agreement, by how they ended",
                Family::default(),
            ),
            provider_latency: added(
                registry,
                "rpc_provider_latency_seconds",
                "Time to an answer of an RPC provider in the last 5 minutes, by quantile",
                Family::default(),
            ),
            provider_calls: added(
                registry,
                "rpc_provider_calls",
                "Calls to an RPC provider",
                Family::default(),
            ),
            provider_failures: added(
                registry,
                "rpc_provider_failures",
                "Calls to an RPC provider that gave no usable answer, by class",
                Family::default(),
            ),
            provider_faults: added(
                registry,
                "rpc_provider_faults",
                "Answers of an RPC provider that are proven false, by fault",
                Family::default(),
            ),
            provider_state: added(
                registry,
                "rpc_provider_state",
                "State of an RPC provider: 0 healthy, 1 suspect or probing, 2 resting or tripped, 3 excluded",
                Family::default(),
            ),
            provider_head: added(
                registry,
                "rpc_provider_head",
                "The highest block an RPC provider reported last",
                Family::default(),
            ),
            chain_height: added(
                registry,
                "chain_height",
                "Heights of a chain: head agreed on, last block processed, safe, finalized",
                Family::default(),
            ),
            chain_frozen: added(
                registry,
                "chain_frozen",
                "1 while settling on the chain is stopped",
                Family::default(),
            ),
            reorgs: added(
                registry,
                "reorgs",
                "Reorganisations of a chain that were followed",
                Family::default(),
            ),
            reorged_blocks: added(
                registry,
                "reorged_blocks",
                "Blocks that reorganisations took back",
                Family::default(),
            ),
            duplicates: added(
                registry,
                "duplicate_events_dropped",
                "What came again and was not counted twice, by source. Also known as: duplicate_events_dropped_total",
                Family::default(),
            ),
            verification: added(
                registry,
                "invoice_verification_latency_seconds",
                "Time from the timestamp of the block that holds the last payment of an invoice to the commit of its settlement",
                Family::new_with_constructor(verification_seconds),
            ),
            events: added(registry, "events", "Events committed, by type", Family::default()),
            attempts: added(
                registry,
                "webhook_attempts",
                "Attempts at webhook deliveries, by outcome",
                Family::default(),
            ),
            deliveries: added(
                registry,
                "webhook_deliveries",
                "Webhook deliveries that reached their end, by outcome",
                Family::default(),
            ),
            dead_letters: added(
                registry,
                "webhook_dlq",
                "Deliveries that became dead letters, by reason. Also known as: webhook_dlq_total",
                Family::default(),
            ),
            dead_letter_depth: added(registry, "webhook_dlq_depth", "Dead letters now", Gauge::default()),
            invoices: added(registry, "invoices", "Invoices by status", Family::default()),
            unresolved: added(
                registry,
                "payments_unresolved",
                "Payments that wait for a person, by why",
                Family::default(),
            ),
            jobs: added(registry, "jobs", "Jobs by kind and state", Family::default()),
            oldest_due: added(
                registry,
                "oldest_due_job_age_seconds",
                "How long the oldest due job has been due",
                Gauge::default(),
            ),
            commits: added(registry, "db_commits", "Commits that reached the disk", Counter::default()),
            commit_writes: added(registry, "db_writes", "Transactions in those commits", Counter::default()),
            commit_reruns: added(
                registry,
                "db_reruns",
                "Groups of transactions that were run again because one of them was undone",
                Counter::default(),
            ),
            commit_seconds: added(
                registry,
                "db_commit_seconds",
                "Time spent in commits, sync included",
                Counter::default(),
            ),
            wal_pages: added(
                registry,
                "db_wal_pages",
                "Pages in the write-ahead log after the last commit",
                Gauge::default(),
            ),
            requests: added(
                registry,
                "http_requests",
                "Requests answered, by method, route and status",
                Family::default(),
            ),
            request_seconds: added(
                registry,
                "http_request_duration_seconds",
                "Time to the answer of a request",
                Family::new_with_constructor(network_seconds),
            ),
        }
    }
}

impl Views {
    fn register(registry: &mut Registry) -> Self {
        Self {
            quorum_failure_rate: added(
                registry,
                "rpc_quorum_failure_rate",
                "View, 0 to 1, per chain. Numerator: quorum rounds that ended without agreement (disagreed or too few answers). Denominator: all quorum rounds. Window: the last 5 minutes, sliding; 0 when there was no round. Derived from quittance_rpc_quorum_rounds_total",
                Family::default(),
            ),
            provider_latency_ms: added(
                registry,
                "rpc_provider_latency_ms",
                "View, milliseconds, per chain and provider: 95th percentile of the time to an answer. Numerator: calls answered within the value (95 %). Denominator: all answered calls, good or bad. Window: the last 5 minutes, sliding; 0 when there was none. Same as quittance_rpc_provider_latency_seconds{quantile=0.95}",
                Family::default(),
            ),
            duplicates_dropped: added(
                registry,
                "duplicate_events_dropped",
                "View. Numerator: things that came again and were not counted twice, by source. Denominator: none, it is a count. Window: since the process started. Same as quittance_duplicate_events_dropped_total",
                Family::default(),
            ),
            delivery_success_rate: added(
                registry,
                "webhook_delivery_success_rate",
                "View, 0 to 1. Numerator: webhook deliveries (not attempts) that ended with a 2xx answer. Denominator: deliveries that ended, delivered or dead-lettered. Window: the last 5 minutes, sliding; 1 when none ended. Derived from quittance_webhook_deliveries_total",
                Real::default(),
            ),
            dead_letters: added(
                registry,
                "webhook_dlq",
                "View. Numerator: deliveries that became dead letters. Denominator: none, it is a count that only grows; quittance_webhook_dlq_depth says how many there are now. Window: since the database was made. Sum of quittance_webhook_dlq_total",
                Counter::default(),
            ),
            verification_p95: added(
                registry,
                "invoice_verification_latency_p95",
                "View, seconds: 95th percentile of the time from the timestamp of the block that holds the last payment of an invoice to the commit of its settlement, confirmations included. Numerator: invoices settled within the value (95 %). Denominator: all invoices settled. Window: the last 5 minutes, sliding; 0 when there was none. Derived from quittance_invoice_verification_latency_seconds",
                Real::default(),
            ),
        }
    }
}

/// Lifts a counter to a total that somebody else counts.
fn raise(counter: &Counter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// Registers a metric and hands it back.
fn added<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn of_chain(chain: ChainId) -> (&'static str, Cow<'static, str>) {
    ("chain", chain.to_string().into())
}

fn of_provider(chain: ChainId, provider: &str) -> Labels {
    vec![of_chain(chain), ("provider", provider.to_owned().into())]
}

fn to_gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn network_seconds() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

fn verification_seconds() -> Histogram {
    Histogram::new([0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0])
}

/// The encoder speaks `OpenMetrics`, where a counter's family is named without `_total`. The older format that every
/// scraper reads names it with, so `HELP` and `TYPE` of counters are renamed.
fn in_classic_format(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        let (Some(name), Some(kind)) = (
            line.strip_prefix("# HELP ").and_then(|rest| rest.split(' ').next()),
            lines
                .peek()
                .and_then(|next| next.strip_prefix("# TYPE "))
                .and_then(|rest| rest.split(' ').nth(1)),
        ) else {
            let _ = writeln!(text, "{line}");
            continue;
        };
        let suffix = if kind == "counter" { "_total" } else { "" };
        let help = &line["# HELP ".len() + name.len()..];
        let _ = writeln!(text, "# HELP {name}{suffix}{help}\n# TYPE {name}{suffix} {kind}");
        lines.next();
    }
    text
}

/// Yes and no over the last [`WINDOW`], in slots of ten seconds.
#[derive(Default)]
struct Ratio {
    slots: VecDeque<(u64, u64, u64)>,
}

const RATIO_SLOT: Duration = Duration::from_secs(10);

impl Ratio {
    fn add(&mut self, now: Duration, yes: bool) {
        let slot = slot_of(now, RATIO_SLOT);
        self.forget(slot);
        match self.slots.back_mut() {
            Some((newest, yeses, all)) if *newest == slot => {
                *yeses += u64::from(yes);
                *all += 1;
            }
            _ => self.slots.push_back((slot, u64::from(yes), 1)),
        }
    }

    fn forget(&mut self, slot: u64) {
        let kept = slots_in_window(RATIO_SLOT);
        while self.slots.front().is_some_and(|(oldest, ..)| oldest + kept <= slot) {
            self.slots.pop_front();
        }
    }

    /// The share of yes; nothing when there was neither.
    fn share(&mut self, now: Duration) -> Option<f64> {
        self.forget(slot_of(now, RATIO_SLOT));
        share(self.slots.iter().fold((0u64, 0u64), |(y, a), (_, yes, all)| (y + yes, a + all)))
    }
}

/// The share of `yes` in `all`; nothing when there was nothing.
#[expect(clippy::float_arithmetic, reason = "a share for operators; no money is computed")]
fn share((yes, all): (u64, u64)) -> Option<f64> {
    (all > 0).then(|| yes as f64 / all as f64)
}

/// Spans over the last [`WINDOW`], in slots of one minute.
#[derive(Default)]
struct Percentile {
    slots: VecDeque<(u64, Spread<u32>)>,
}

const PERCENTILE_SLOT: Duration = Duration::from_secs(60);
/// Spans are held in microseconds with two digits; what is longer than an hour counts as an hour.
const LONGEST_MICROS: u64 = 3_600_000_000;

impl Percentile {
    fn add(&mut self, now: Duration, span: Duration) {
        let slot = slot_of(now, PERCENTILE_SLOT);
        self.forget(slot);
        if self.slots.back().is_none_or(|(newest, _)| *newest != slot)
            && let Ok(spread) = Spread::new_with_bounds(1, LONGEST_MICROS, 2)
        {
            self.slots.push_back((slot, spread));
        }
        let micros = u64::try_from(span.as_micros()).unwrap_or(LONGEST_MICROS);
        if let Some((_, spread)) = self.slots.back_mut() {
            spread.saturating_record(micros);
        }
    }

    fn forget(&mut self, slot: u64) {
        let kept = slots_in_window(PERCENTILE_SLOT);
        while self.slots.front().is_some_and(|(oldest, _)| oldest + kept <= slot) {
            self.slots.pop_front();
        }
    }

    fn p95(&mut self, now: Duration) -> Duration {
        self.forget(slot_of(now, PERCENTILE_SLOT));
        let mut slots = self.slots.iter().map(|(_, spread)| spread);
        let Some(mut all) = slots.next().cloned() else { return Duration::ZERO };
        for spread in slots {
            if all.add(spread).is_err() {
                return Duration::ZERO;
            }
        }
        Duration::from_micros(all.value_at_quantile(0.95))
    }
}

fn slot_of(now: Duration, slot: Duration) -> u64 {
    now.as_secs() / slot.as_secs()
}

fn slots_in_window(slot: Duration) -> u64 {
    WINDOW.as_secs() / slot.as_secs()
}

#[expect(clippy::float_arithmetic, reason = "a unit for operators; no money is computed")]
fn millis(span: Duration) -> f64 {
    // From whole microseconds, so that no digits are shown that were never measured.
    f64::from(u32::try_from(span.as_micros()).unwrap_or(u32::MAX)) / 1000.0
}

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("the log could not be set up: {0}")]
pub struct LogFailed(String);

/// Sends the process's log to stderr. Call it once.
///
/// # Errors
/// When the filter is not valid, or the log was set up before.
pub fn start_log(log: &Log) -> Result<(), LogFailed> {
    let filter: tracing_subscriber::EnvFilter =
        log.level.parse().map_err(|error| LogFailed(format!("{error}")))?;
    let pretty = match log.format {
        LogFormat::Pretty => true,
        LogFormat::Json => false,
        LogFormat::Auto => std::io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if pretty {
        builder.with_ansi(false).compact().try_init()
    } else {
        builder.json().flatten_event(true).with_span_list(false).try_init()
    };
    started.map_err(|error| LogFailed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_share_forgets_what_is_older_than_the_window() {
        let mut ratio = Ratio::default();
        assert_eq!(ratio.share(at(0)), None);
        ratio.add(at(0), true);
        ratio.add(at(200), false);
        assert_eq!(ratio.share(at(200)), Some(0.5));
        assert_eq!(ratio.share(at(300)), Some(0.0));
        assert_eq!(ratio.share(at(510)), None);
    }

    #[test]
    fn a_percentile_forgets_what_is_older_than_the_window() {
        let mut spans = Percentile::default();
        for _ in 0..19 {
            spans.add(at(0), Duration::from_millis(10));
        }
        spans.add(at(1), Duration::from_secs(2));
        spans.add(at(1), Duration::from_secs(2));
        assert!(spans.p95(at(2)) >= Duration::from_secs(2));
        spans.add(at(250), Duration::from_millis(10));
        assert!(spans.p95(at(310)) < Duration::from_millis(11));
        assert_eq!(spans.p95(at(900)), Duration::ZERO);
    }

    #[test]
    fn counters_are_named_with_their_suffix() {
        let text = in_classic_format(
            "# HELP a_b Words here.\n# TYPE a_b counter\na_b_total 1\n# HELP c D.\n# TYPE c gauge\nc 1\n",
        );
        assert_eq!(
            text,
            "# HELP a_b_total Words here.\n# TYPE a_b_total counter\na_b_total 1\n# HELP c D.\n# TYPE c gauge\nc 1\n"
        );
    }
}

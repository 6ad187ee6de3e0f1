//! One provider: an endpoint, the group it belongs to, and what we have learned of both.
//!
//! Guarantees: every call is bounded by the provider's deadline, its breaker, its places and its rate;
//! a call that is not made says why; every outcome is counted, also that of calls nobody waits for any
//! more. The retry is one, jittered, and only for failures that may pass.
//!
//! Deliberately absent: what an answer means. A provider can be fast, healthy and a liar; the quorum
//! and the proofs deal with that, and report the faults they found here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy_primitives::B256;
use domain::backoff::Backoff;
use domain::breaker::{Breaker, BreakerPolicy};
use domain::chain::ChainId;
use domain::chance::Chance;
use domain::time::{Clock, Timestamp};
use serde_json::value::RawValue;

use super::error::RpcError;
use super::rpc::{Call, Rpc};
use super::wire::decode_quantity;
use crate::guard::deadline::within;

const BREAKER: BreakerPolicy =
    BreakerPolicy { trip_after: 5, pause: Duration::from_secs(1), pause_cap: Duration::from_secs(60) };
const RETRY: Backoff =
    Backoff { initial: Duration::from_millis(25), cap: Duration::from_millis(250), jitter_percent: 50 };
/// A provider found at fault is asked last for bodies during this time.
const SUSPICION: Duration = Duration::from_secs(600);
/// Before a provider has shown how fast it is, it is taken to be this fast.
const UNKNOWN_LATENCY: Duration = Duration::from_millis(100);

/// What is needed to ask a provider.
#[derive(Clone)]
pub struct ProviderSetup {
    /// How it is called in logs, metrics and evidence. Unique.
    pub name: String,
    /// Whose it is: the unit that votes.
    pub group: String,
    /// The endpoint.
    pub rpc: Arc<dyn Rpc>,
    /// The deadline of any call.
    pub timeout: Duration,
    /// How many calls may be under way at once.
    pub places: u32,
    /// Calls a second, in bursts of as many; unlimited when none.
    pub calls_per_second: Option<u32>,
}

impl ProviderSetup {
    /// A provider with a deadline of two seconds, 32 places and no rate limit.
    #[must_use]
    pub fn new(name: impl Into<String>, group: impl Into<String>, rpc: Arc<dyn Rpc>) -> Self {
        Self {
            name: name.into(),
            group: group.into(),
            rpc,
            timeout: Duration::from_secs(2),
            places: 32,
            calls_per_second: None,
        }
    }
}

impl std::fmt::Debug for ProviderSetup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProviderSetup")
            .field("name", &self.name)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

/// What a provider was caught at. Each is a contradiction between two things that cannot both be true,
/// not an opinion about its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// It serves another chain.
    WrongChain,
    /// It served a header for the height that `k` groups did not agree on. Near the head this may be a
    /// fork that lost.
    OtherHeader,
    /// Its receipts do not have the root of the agreed header.
    ReceiptsRoot,
    /// Its transactions do not have the root of the agreed header.
    TransactionsRoot,
    /// It left out a log that `k` groups hold.
    OmittedLog,
    /// It showed a log that `k` groups deny.
    ForgedLog,
    /// It sent what the protocol does not allow.
    Malformed,
}

impl FaultKind {
    /// The word for metrics and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WrongChain => "wrong_chain",
            Self::OtherHeader => "other_header",
            Self::ReceiptsRoot => "receipts_root",
            Self::TransactionsRoot => "transactions_root",
            Self::OmittedLog => "omitted_log",
            Self::ForgedLog => "forged_log",
            Self::Malformed => "malformed",
        }
    }
}

/// The last time a provider was caught.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// When we noticed.
    pub at: Timestamp,
    /// At what.
    pub kind: FaultKind,
    /// The height it was about, if any.
    pub block: Option<u64>,
    /// What it said, where that is a hash.
    pub said: Option<B256>,
    /// What was agreed or proven instead.
    pub agreed: Option<B256>,
}

/// Whether a provider is being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderState {
    /// It is.
    Healthy,
    /// It is, and was caught at a fault a short while ago.
    Suspect,
    /// It asked to be left alone until then.
    Resting(Timestamp),
    /// Its breaker is open until then.
    Tripped(Timestamp),
    /// Its breaker lets single calls through to see whether it is back.
    Probing,
    /// It is not asked: it serves another chain.
    Excluded,
}

impl ProviderState {
    /// The word for metrics and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Suspect => "suspect",
            Self::Resting(_) => "resting",
            Self::Tripped(_) => "tripped",
            Self::Probing => "probing",
            Self::Excluded => "excluded",
        }
    }
}

/// How long calls took, over the last few hundred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LatencySummary {
    /// Calls in the summary.
    pub calls: u64,
    /// Half took at most this long.
    pub p50: Duration,
    /// 95 of 100 took at most this long.
    pub p95: Duration,
    /// 99 of 100 took at most this long.
    pub p99: Duration,
}

/// Everything we know of a provider, for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderStatus {
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: String,
    /// Whether it is being asked.
    pub state: ProviderState,
    /// The highest block it reported last.
    pub head: Option<u64>,
    /// When it last answered well.
    pub answered_at: Option<Timestamp>,
    /// Latencies.
    pub latency: LatencySummary,
    /// Calls made.
    pub calls: u64,
    /// Calls that ended without an answer, or were not made, by class ([`RpcError::class`]).
    pub failures: BTreeMap<&'static str, u64>,
    /// Faults, by kind.
    pub faults: BTreeMap<FaultKind, u64>,
    /// The last fault.
    pub last_disagreement: Option<Disagreement>,
    /// The longest range of blocks it serves logs for, as far as it told us.
    pub range_cap: Option<u64>,
}

/// The last calls' durations, in a ring.
#[derive(Debug, Default)]
struct Latencies {
    ring: Vec<Duration>,
    next: usize,
}

impl Latencies {
    const KEPT: usize = 256;

    fn add(&mut self, span: Duration) {
        if self.ring.len() < Self::KEPT {
            self.ring.push(span);
        } else {
            self.ring[self.next] = span;
        }
        self.next = (self.next + 1) % Self::KEPT;
    }

    fn summary(&self) -> LatencySummary {
        let mut sorted = self.ring.clone();
        sorted.sort_unstable();
        let at = |percent: usize| match sorted.len() {
            0 => Duration::ZERO,
            len => sorted[(len * percent).div_ceil(100).saturating_sub(1)],
        };
        LatencySummary { calls: sorted.len() as u64, p50: at(50), p95: at(95), p99: at(99) }
    }
}

/// Whether the endpoint serves our chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Membership {
    #[default]
    Unknown,
    Confirmed,
    OfAnotherChain,
}

#[derive(Debug, Default)]
struct Known {
    breaker: Breaker,
    under_way: u32,
    resting_until: Option<Timestamp>,
    membership: Membership,
    head: Option<u64>,
    answered_at: Option<Timestamp>,
    latencies: Latencies,
    calls: u64,
    failures: BTreeMap<&'static str, u64>,
    faults: BTreeMap<FaultKind, u64>,
    last_disagreement: Option<Disagreement>,
    range_cap: Option<u64>,
    unsupported: Vec<&'static str>,
    /// GCRA: the theoretical arrival time of the next call, on the monotonic clock.
    next_arrival: Duration,
}

/// A provider at work. See the module.
pub struct Provider {
    setup: ProviderSetup,
    clock: Arc<dyn Clock>,
    chance: Chance,
    known: Mutex<Known>,
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.setup.fmt(f)
    }
}

/// A call's place; given back when the call ends or is dropped.
struct Place<'a>(&'a Provider);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut known = self.0.known();
        known.under_way = known.under_way.saturating_sub(1);
    }
}

impl Provider {
    /// A provider that has not been asked anything yet.
    #[must_use]
    pub fn new(setup: ProviderSetup, clock: Arc<dyn Clock>, chance: Chance) -> Self {
        Self { setup, clock, chance, known: Mutex::default() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.setup.name
    }

    /// Its group.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.setup.group
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, and reads the answer with `decode`. What does not decode counts against the provider as
    /// what did not arrive does.
    ///
    /// # Errors
    /// Why there is no answer; see [`RpcError`].
    pub async fn ask<T>(
        &self,
        call: Call,
        decode: impl FnOnce(&RawValue) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let place = self.admit(call.method)?;
        let started = self.clock.monotonic();
        let method = call.method;
        let answer = self.attempt(call).await;
        let took = self.clock.monotonic().saturating_sub(started);
        let outcome = answer.and_then(|raw| decode(&raw));
        drop(place);
        self.learn(method, &outcome.as_ref().map(|_| ()).map_err(|error| *error), took);
        outcome
    }

    /// Why no call may be made now, or a place for one.
    fn admit(&self, method: &'static str) -> Result<Place<'_>, RpcError> {
        let now = self.clock.now();
        let arrival = self.clock.monotonic();
        let mut known = self.known();
        let refusal = if known.membership == Membership::OfAnotherChain {
            Some(RpcError::Excluded)
        } else if known.unsupported.contains(&method) {
            Some(RpcError::Unsupported)
        } else if known.resting_until.is_some_and(|until| now < until) {
            Some(RpcError::RateLimited { retry_after: None })
        } else if known.breaker.closed_until(now).is_some() {
            Some(RpcError::BreakerOpen)
        } else if known.under_way >= known.breaker.allowance(now, self.setup.places) {
            Some(RpcError::Busy)
        } else {
            self.next_arrival(&known, arrival).err()
        };
        if let Some(refusal) = refusal {
            *known.failures.entry(refusal.class()).or_insert(0) += 1;
            return Err(refusal);
        }
        known.next_arrival = self.next_arrival(&known, arrival)?;
        known.breaker = known.breaker.begin(now);
        known.under_way = known.under_way.saturating_add(1);
        known.calls = known.calls.saturating_add(1);
        Ok(Place(self))
    }

    /// GCRA with a burst of one second's calls: when the next call is due if one is made at `now`.
    fn next_arrival(&self, known: &Known, now: Duration) -> Result<Duration, RpcError> {
        let Some(rate) = self.setup.calls_per_second else {
            return Ok(Duration::ZERO);
        };
        let interval = Duration::from_secs(1) / rate.max(1);
        let due = known.next_arrival.max(now).saturating_add(interval);
        if due.saturating_sub(now) > Duration::from_secs(1) {
            Err(RpcError::RateLimited { retry_after: None })
        } else {
            Ok(due)
        }
    }

    async fn attempt(&self, call: Call) -> Result<Box<RawValue>, RpcError> {
        let whole = call.deadline.min(self.setup.timeout);
        let started = self.clock.monotonic();
        let mut attempt = 1;
        loop {
            let left = whole.saturating_sub(self.clock.monotonic().saturating_sub(started));
            let asked = self.setup.rpc.call(Call { deadline: left, ..call.clone() });
            let outcome = within(self.clock.as_ref(), left, asked).await.unwrap_or(Err(RpcError::Timeout));
            let again = matches!(outcome, Err(error) if error.is_transient()) && attempt < call.attempts;
            let pause = RETRY.wait(attempt, &self.chance);
            if !again || self.clock.monotonic().saturating_sub(started).saturating_add(pause) >= whole {
                return outcome;
            }
            self.clock.sleep(pause).await;
            attempt = attempt.saturating_add(1);
        }
    }

    fn learn(&self, method: &'static str, outcome: &Result<(), RpcError>, took: Duration) {
        let now = self.clock.now();
        let mut known = self.known();
        match outcome {
            Ok(()) => {
                known.answered_at = Some(now);
                known.latencies.add(took);
                known.breaker = known.breaker.succeeded(self.setup.places);
            }
            Err(error) => {
                *known.failures.entry(error.class()).or_insert(0) += 1;
                if error.counts_against_endpoint() {
                    // A wait that was given up says at least that it was this long.
                    if matches!(error, RpcError::Timeout) {
                        known.latencies.add(took);
                    }
                    known.breaker = known.breaker.failed(now, &BREAKER, None);
                } else {
                    // It answered: what it said is about the question, not about its health.
                    known.answered_at = Some(now);
                    known.breaker = known.breaker.succeeded(self.setup.places);
                }
                self.learn_limits(&mut known, method, *error, now);
            }
        }
    }

    fn learn_limits(&self, known: &mut Known, method: &'static str, error: RpcError, now: Timestamp) {
        match error {
            RpcError::RateLimited { retry_after: Some(rest) } => known.resting_until = Some(now + rest),
            RpcError::RangeTooLarge { suggested: Some(span) } => {
                known.range_cap = Some(known.range_cap.map_or(span, |cap| cap.min(span)));
            }
            // Only methods that not every node offers; a parameter refused once is no lack for good.
            RpcError::Unsupported if method == "eth_getBlockReceipts" => known.unsupported.push(method),
            RpcError::Malformed(_) => {
                *known.faults.entry(FaultKind::Malformed).or_insert(0) += 1;
                known.last_disagreement = Some(Disagreement {
                    at: now,
                    kind: FaultKind::Malformed,
                    block: None,
                    said: None,
                    agreed: None,
                });
                tracing::warn!(provider = %self.setup.name, %method, %error, "malformed answer");
            }
            _ => {}
        }
    }

    /// The provider reported `head` as its highest block.
    pub fn saw_head(&self, head: u64) {
        self.known().head = Some(head);
    }

    /// The provider was caught.
    pub fn caught(&self, kind: FaultKind, block: Option<u64>, said: Option<B256>, agreed: Option<B256>) {
        let at = self.clock.now();
        let mut known = self.known();
        *known.faults.entry(kind).or_insert(0) += 1;
        known.last_disagreement = Some(Disagreement { at, kind, block, said, agreed });
        tracing::warn!(provider = %self.setup.name, group = %self.setup.group, fault = kind.as_str(), block, "provider at fault");
    }

    /// Makes sure, once, that the endpoint serves `chain`: before that its answers are worth nothing.
    ///
    /// # Errors
    /// [`RpcError::WrongChain`], after which every call is refused as [`RpcError::Excluded`]; or why the
    /// question had no answer.
    pub async fn confirm_chain(&self, chain: ChainId) -> Result<(), RpcError> {
        match self.known().membership {
            Membership::Confirmed => return Ok(()),
            Membership::OfAnotherChain => return Err(RpcError::Excluded),
            Membership::Unknown => {}
        }
        let found = self.ask(Call::new("eth_chainId", "[]"), decode_quantity).await?;
        if found == chain.number() {
            self.known().membership = Membership::Confirmed;
            return Ok(());
        }
        self.known().membership = Membership::OfAnotherChain;
        self.caught(FaultKind::WrongChain, None, None, None);
        Err(RpcError::WrongChain { expected: chain.number(), found })
    }

    /// Forgets what is known of the endpoint's chain, so that it is asked again.
    pub fn forget_chain(&self) {
        self.known().membership = Membership::Unknown;
    }

    /// The order in which providers are asked for bodies: unsuspected first, then by speed.
    pub(super) fn rank(&self) -> (bool, Duration) {
        let now = self.clock.now();
        let known = self.known();
        let latency = known.latencies.summary();
        (is_suspect(&known, now), if latency.calls == 0 { UNKNOWN_LATENCY } else { latency.p50 })
    }

    /// How long to wait for a body before another provider is asked as well: its p95, if it has shown
    /// one, else twice what its header took.
    pub(super) fn patience(&self, header_took: Duration) -> Duration {
        let latency = self.known().latencies.summary();
        let usual = if latency.calls >= 20 { latency.p95 } else { header_took.saturating_mul(2) };
        usual.clamp(Duration::from_millis(10), self.setup.timeout)
    }

    /// Everything we know of it.
    #[must_use]
    pub fn status(&self) -> ProviderStatus {
        let now = self.clock.now();
        let known = self.known();
        let state = if known.membership == Membership::OfAnotherChain {
            ProviderState::Excluded
        } else if let Some(until) = known.breaker.closed_until(now) {
            ProviderState::Tripped(until)
        } else if let Some(until) = known.resting_until.filter(|until| now < *until) {
            ProviderState::Resting(until)
        } else if matches!(known.breaker, Breaker::Probing { .. } | Breaker::Tripped { .. }) {
            ProviderState::Probing
        } else if is_suspect(&known, now) {
            ProviderState::Suspect
        } else {
            ProviderState::Healthy
        };
        ProviderStatus {
            name: self.setup.name.clone(),
            group: self.setup.group.clone(),
            state,
            head: known.head,
            answered_at: known.answered_at,
            latency: known.latencies.summary(),
            calls: known.calls,
            failures: known.failures.clone(),
            faults: known.faults.clone(),
            last_disagreement: known.last_disagreement.clone(),
            range_cap: known.range_cap,
        }
    }
}

fn is_suspect(known: &Known, now: Timestamp) -> bool {
    known.last_disagreement.as_ref().is_some_and(|last| now.since(last.at) < SUSPICION)
}

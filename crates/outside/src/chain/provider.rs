//! One provider: an endpoint, the group it belongs to, and what we have learned of both.
//!
//! Guarantees: every call is bounded by the provider's deadline, its breaker, its places and its rate;
//! a call that is not made says why; every outcome is counted, also that of calls nobody waits for any
//! more. The retry is one, jittered, and only for failures that may pass.
//!
//! Deliberately absent: what an answer means. A provider can be fast, healthy and a liar; the quorum
//! and the proofs deal with that, and report the faults they found here.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
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
use crate::guard::breaker::BreakerRules;
use crate::guard::latency::Percentiles;
use crate::guard::rate::Rate;
use crate::guard::retry::{Judged, RetryPolicy, Verdict};
use crate::guard::{Guard, GuardError, GuardPolicy};

const BREAKER: BreakerPolicy =
    BreakerPolicy { trip_after: 5, pause: Duration::from_secs(1), pause_cap: Duration::from_secs(60) };
const RETRY: Backoff =
    Backoff { initial: Duration::from_millis(25), cap: Duration::from_millis(250), jitter_percent: 50 };
/// A provider found at fault is asked last for bodies during this time.
const SUSPICION: Duration = Duration::from_secs(600);
/// Before a provider has shown how fast it is, it is taken to be this fast.
const UNKNOWN_LATENCY: Duration = Duration::from_millis(100);
/// Nobody is hurried more than this.
const LEAST_PATIENCE: Duration = Duration::from_millis(10);
const LATENCY_WINDOW: Duration = Duration::from_secs(300);

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
    /// How long calls took lately; none if there were none.
    pub latency: Option<Percentiles>,
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
    membership: Membership,
    head: Option<u64>,
    answered_at: Option<Timestamp>,
    resting_until: Option<Timestamp>,
    calls: u64,
    failures: BTreeMap<&'static str, u64>,
    faults: BTreeMap<FaultKind, u64>,
    last_disagreement: Option<Disagreement>,
    range_cap: Option<u64>,
    unsupported: Vec<&'static str>,
}

/// A provider at work. See the module.
pub struct Provider {
    setup: ProviderSetup,
    clock: Arc<dyn Clock>,
    guard: Guard,
    known: Mutex<Known>,
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.setup.fmt(f)
    }
}

/// A failure that says something about the endpoint, as the guard judges it.
struct Failure {
    error: RpcError,
    may_repeat: bool,
}

impl Judged for Failure {
    fn verdict(&self) -> Verdict {
        let wish = match self.error {
            RpcError::RateLimited { retry_after } => retry_after,
            _ => None,
        };
        Verdict { is_the_targets: true, may_retry: self.may_repeat && self.error.is_transient(), wish }
    }
}

impl Provider {
    /// A provider that has not been asked anything yet.
    #[must_use]
    pub fn new(setup: ProviderSetup, clock: Arc<dyn Clock>, chance: Chance) -> Self {
        let rate = setup.calls_per_second.and_then(NonZeroU32::new);
        let policy = GuardPolicy {
            rate: rate.map(|calls| Rate::new(calls, Duration::from_secs(1), calls)),
            breaker: BreakerRules { policy: BREAKER, share: None, most: setup.places },
            deadline: setup.timeout,
            retry: RetryPolicy { attempts: 2, backoff: RETRY },
            retry_percent: 10,
            retry_reserve: 10,
            latency_window: LATENCY_WINDOW,
        };
        let guard = Guard::new(&policy, Arc::clone(&clock), chance);
        Self { setup, clock, guard, known: Mutex::default() }
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
        decode: impl Fn(&RawValue) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let method = call.method;
        let outcome = match self.refusal(method) {
            Some(refusal) => Err(refusal),
            None => self.ask_guarded(call, decode).await,
        };
        self.learn(method, outcome.as_ref().err().copied());
        outcome
    }

    async fn ask_guarded<T>(
        &self,
        call: Call,
        decode: impl Fn(&RawValue) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let answer = self.guard.call(|attempt| {
            let once = Call { deadline: attempt.remaining.min(call.deadline), ..call.clone() };
            let (rpc, decode) = (&self.setup.rpc, &decode);
            async move {
                match rpc.call(once).await.and_then(|raw| decode(&raw)) {
                    Err(error) if error.counts_against_endpoint() => {
                        Err(Failure { error, may_repeat: call.repeatable })
                    }
                    // An answer, if only that it has none: the endpoint is well.
                    other => Ok(other),
                }
            }
        });
        match answer.await {
            Ok(outcome) => outcome,
            Err(GuardError::Failed(failure)) => Err(failure.error),
            Err(GuardError::DeadlinePassed) => Err(RpcError::Timeout),
            Err(GuardError::Throttled { .. }) => Err(RpcError::RateLimited { retry_after: None }),
            Err(GuardError::Tripped { .. }) => Err(RpcError::BreakerOpen),
            Err(GuardError::Full) => Err(RpcError::Busy),
        }
    }

    /// Why the endpoint is not asked this, whatever its health.
    fn refusal(&self, method: &'static str) -> Option<RpcError> {
        let now = self.clock.now();
        let known = self.known();
        match () {
            () if known.membership == Membership::OfAnotherChain => Some(RpcError::Excluded),
            () if known.unsupported.contains(&method) => Some(RpcError::Unsupported),
            () if known.resting_until.is_some_and(|until| now < until) => {
                Some(RpcError::RateLimited { retry_after: None })
            }
            () => None,
        }
    }

    fn learn(&self, method: &'static str, error: Option<RpcError>) {
        let now = self.clock.now();
        let mut known = self.known();
        known.calls = known.calls.saturating_add(1);
        let Some(error) = error else {
            known.answered_at = Some(now);
            return;
        };
        *known.failures.entry(error.class()).or_insert(0) += 1;
        match error {
            RpcError::RateLimited { retry_after: Some(rest) } => known.resting_until = Some(now + rest),
            RpcError::RangeTooLarge { suggested: Some(span) } => {
                known.range_cap = Some(known.range_cap.map_or(span, |cap| cap.min(span)));
            }
            // Only what not every node offers: a refusal in passing must not silence a provider.
            RpcError::Unsupported
                if method == "eth_getBlockReceipts" && !known.unsupported.contains(&method) =>
            {
                known.unsupported.push(method);
            }
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
        let suspect = is_suspect(&self.known(), now);
        (suspect, self.guard.percentiles().map_or(UNKNOWN_LATENCY, |latency| latency.p50))
    }

    /// How long to wait for a body before another provider is asked as well: its p95, if it has shown
    /// one, else twice what its header took.
    pub(super) fn patience(&self, header_took: Duration) -> Duration {
        let usual = match self.guard.percentiles() {
            Some(latency) if latency.calls >= 20 => latency.p95,
            _ => header_took.saturating_mul(2),
        };
        usual.max(LEAST_PATIENCE).min(self.setup.timeout)
    }

    /// Everything we know of it.
    #[must_use]
    pub fn status(&self) -> ProviderStatus {
        let now = self.clock.now();
        let breaker = self.guard.state();
        let known = self.known();
        let state = if known.membership == Membership::OfAnotherChain {
            ProviderState::Excluded
        } else if let Some(until) = breaker.closed_until(now) {
            ProviderState::Tripped(until)
        } else if let Some(until) = known.resting_until.filter(|until| now < *until) {
            ProviderState::Resting(until)
        } else if matches!(breaker, Breaker::Probing { .. } | Breaker::Tripped { .. }) {
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
            latency: self.guard.percentiles(),
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

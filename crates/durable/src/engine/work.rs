//! What a kind of work is: perform outside, record inside, and what may follow.
//!
//! Guarantees: [`Work::perform`] is given nothing that can write, [`Work::record`] nothing that can wait
//! or reach the network: it has no `self`. So no transaction is ever open while the world is asked.
//!
//! Deliberately absent: how jobs are stored and claimed (`queue.rs`), and every concrete kind.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use domain::backoff::Backoff;
use domain::breaker::BreakerPolicy;
use domain::id::JobId;
use domain::time::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::recording::Recording;
use crate::store::{ReadOnly, StoreError};

/// One kind of durable work: look or act outside, then write down what was learnt.
pub trait Work: Send + Sync + 'static {
    /// The name in the job table. Never renamed while jobs of it may exist.
    const KIND: &'static str;
    /// What may be done with a job whose lease ended without an outcome.
    const AFTER_CRASH: AfterCrash;
    /// What the job says, kept as JSON. Fields are only ever added, with a default.
    type Input: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What was learnt outside.
    type Fact: Send + 'static;

    /// May read, and may cross the network. May be run twice if [`Work::AFTER_CRASH`] says so.
    ///
    /// # Errors
    /// The trouble that kept it from learning a fact.
    fn perform(
        &self,
        input: &Self::Input,
        attempt: &Attempt,
        store: &ReadOnly,
    ) -> impl Future<Output = Result<Self::Fact, Trouble>> + Send;

    /// May write, also about trouble. Runs in the transaction that retires or reschedules the job, and
    /// only if the lease is still valid; may be run again before it is committed.
    ///
    /// # Errors
    /// What the database refuses. The job then counts as crashed.
    fn record(
        recording: &mut Recording<'_>,
        input: &Self::Input,
        attempt: &Attempt,
        outcome: Result<&Self::Fact, &Trouble>,
    ) -> Result<Next, StoreError>;
}

/// What may be done with a job that may or may not have had its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterCrash {
    /// It may simply run again: performing twice is harmless.
    Rerun,
    /// It is parked as unknown, and work of this kind is enqueued with the same input. It finds out
    /// what happened, and it alone may release the parked job. It must be harmless to run twice.
    Resolve(&'static str),
}

/// One lease of a job, as its work sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The job.
    pub job: JobId,
    /// Counted from 1. Crashes and releases do not count.
    pub attempt: u32,
    /// Leases in a row, before this one, that ended without an outcome.
    pub crashes: u32,
    /// Whether a retry after this attempt is refused.
    pub last: bool,
    /// If set, the job was not performed and dies with this attempt; `record` may say what that means.
    pub condemned: Option<Condemned>,
    /// For a resolver: the parked job that it may release.
    pub resolves: Option<JobId>,
    /// When the job was enqueued.
    pub created_at: Timestamp,
}

/// Why a job is not performed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condemned {
    /// Its leases ended without an outcome too often.
    CrashLoop,
    /// Its target was closed for longer than the kind's policy allows.
    HeldTooLong,
}

impl Condemned {
    /// The class of the dead letter.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CrashLoop => "crash_loop",
            Self::HeldTooLong => "held_too_long",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::CrashLoop, Self::HeldTooLong].into_iter().find(|known| known.as_str() == text)
    }
}

/// Why performing brought no fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing happened; trying again may help.
    Again {
        /// How long the other side asks us to wait, if it said so. [`Next::Retry`] waits that long at
        /// least, within the cap of the kind's backoff.
        after: Option<Duration>,
        /// For people.
        why: String,
    },
    /// Nothing happened, and trying again cannot help.
    GiveUp {
        /// A word to count and filter by.
        class: Cow<'static, str>,
        /// For people.
        why: String,
    },
    /// It may have happened. The job is parked, whatever `record` answers, unless that is [`Next::Done`].
    Unknown {
        /// For people.
        why: String,
        /// Who finds out.
        resolver: Resolver,
    },
}

impl Trouble {
    /// The words for people.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Again { why, .. } | Self::GiveUp { why, .. } | Self::Unknown { why, .. } => why,
        }
    }
}

/// Work that finds out what became of a parked job, and alone may release it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    pub(super) kind: &'static str,
    pub(super) input: Vec<u8>,
}

impl Resolver {
    /// Work of kind `W` with this input.
    ///
    /// # Errors
    /// When the input cannot be written as JSON.
    pub fn of<W: Work>(input: &W::Input) -> Result<Self, StoreError> {
        Ok(Self { kind: W::KIND, input: encode(input)? })
    }
}

/// What becomes of the job, decided by [`Work::record`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It is finished and forgotten. If it was enqueued again under its unique key meanwhile, it is due
    /// once more.
    Done,
    /// It went well and is due again then; attempts count from 1 again. For recurring work.
    Again {
        /// When.
        at: Timestamp,
    },
    /// It failed; the kind's policy says when it is due again, or that it is dead.
    Retry,
    /// It failed and is due again then, unless this was the last attempt.
    RetryAt {
        /// When.
        at: Timestamp,
    },
    /// It neither went well nor failed: it is due again then, and this attempt does not count.
    Released {
        /// When.
        at: Timestamp,
    },
    /// It is given up and kept as a dead letter.
    Dead {
        /// A word to count and filter by.
        class: Cow<'static, str>,
        /// For people.
        why: String,
    },
    /// It may have happened: it stays parked until this resolver releases it.
    Park(Resolver),
}

/// How one kind of work is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// When to try again after a failure.
    pub backoff: Backoff,
    /// After this many failures the job is dead.
    pub max_attempts: u32,
    /// After this many leases in a row without an outcome the job is condemned.
    pub max_crashes: u32,
    /// How long `perform` may take. After that it is dropped: trouble, or unknown if the kind must
    /// be resolved after a crash.
    pub deadline: Duration,
    /// How many are performed at the same time.
    pub concurrency: u32,
    /// How targets are protected, for kinds whose jobs have one.
    pub target: Option<TargetPolicy>,
}

/// How the target of a job is protected. Kinds that share targets should agree on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetPolicy {
    /// How many jobs of one target are performed at the same time while it is healthy.
    pub concurrency: u32,
    /// When the target is left alone, and for how long.
    pub breaker: BreakerPolicy,
    /// A job that its target kept waiting for longer than this is condemned.
    pub held_at_most: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            backoff: Backoff {
                initial: Duration::from_secs(1),
                cap: Duration::from_secs(300),
                jitter_percent: 20,
            },
            max_attempts: 20,
            max_crashes: 5,
            deadline: Duration::from_secs(60),
            concurrency: 64,
            target: None,
        }
    }
}

/// All kinds that this process performs.
#[derive(Default)]
pub struct Catalog {
    kinds: BTreeMap<&'static str, Arc<Kind>>,
}

/// Two kinds of work have the same name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("two kinds of work are called {0}")]
pub struct SameKind(pub &'static str);

impl Catalog {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a kind.
    ///
    /// # Errors
    /// When a kind of this name is already there.
    pub fn register<W: Work>(&mut self, work: W, policy: Policy) -> Result<(), SameKind> {
        let kind =
            Kind { name: W::KIND, policy, resolver: resolver_kind::<W>(), handler: Box::new(Erased(work)) };
        match self.kinds.insert(W::KIND, Arc::new(kind)) {
            None => Ok(()),
            Some(_) => Err(SameKind(W::KIND)),
        }
    }

    pub(super) fn into_kinds(self) -> Vec<Arc<Kind>> {
        self.kinds.into_values().collect()
    }
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.kinds.keys()).finish()
    }
}

/// A registered kind of work.
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) policy: Policy,
    pub(super) resolver: Option<&'static str>,
    handler: Box<dyn Handler>,
}

impl Kind {
    /// Performs the job and keeps what is to be recorded.
    pub(super) async fn perform(&self, input: &[u8], attempt: &Attempt, store: &ReadOnly) -> Performed {
        self.handler.perform(input, attempt, store).await
    }

    /// What is to be recorded when the job is not performed, or not to its end.
    pub(super) fn conclude(&self, input: &[u8], trouble: Trouble) -> Performed {
        self.handler.conclude(input, trouble)
    }
}

pub(super) fn resolver_kind<W: Work>() -> Option<&'static str> {
    match W::AFTER_CRASH {
        AfterCrash::Rerun => None,
        AfterCrash::Resolve(kind) => Some(kind),
    }
}

pub(super) fn encode<T: Serialize>(input: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(input).map_err(StoreError::damaged)
}

/// What is to be recorded, or why the stored input cannot be read.
pub(super) type Performed = Result<Box<dyn Record>, String>;

/// An outcome that knows how to record itself. May be asked more than once.
pub(super) trait Record: Send {
    fn record(&self, recording: &mut Recording<'_>, attempt: &Attempt) -> Result<Next, StoreError>;
    fn trouble(&self) -> Option<&Trouble>;
}

/// A kind of work whose types are forgotten.
trait Handler: Send + Sync {
    fn perform<'a>(
        &'a self,
        input: &'a [u8],
        attempt: &'a Attempt,
        store: &'a ReadOnly,
    ) -> Pin<Box<dyn Future<Output = Performed> + Send + 'a>>;
    fn conclude(&self, input: &[u8], trouble: Trouble) -> Performed;
}

struct Erased<W>(W);

struct Outcome<W: Work> {
    input: W::Input,
    outcome: Result<W::Fact, Trouble>,
    // Not `W` itself: an outcome does not hold the work, and is `Send` without it.
    work: PhantomData<fn() -> W>,
}

impl<W: Work> Handler for Erased<W> {
    fn perform<'a>(
        &'a self,
        input: &'a [u8],
        attempt: &'a Attempt,
        store: &'a ReadOnly,
    ) -> Pin<Box<dyn Future<Output = Performed> + Send + 'a>> {
        Box::pin(async move {
            let input: W::Input = serde_json::from_slice(input).map_err(|e| e.to_string())?;
            let outcome = self.0.perform(&input, attempt, store).await;
            Ok(Box::new(Outcome::<W> { input, outcome, work: PhantomData }) as Box<dyn Record>)
        })
    }

    fn conclude(&self, input: &[u8], trouble: Trouble) -> Performed {
        let input: W::Input = serde_json::from_slice(input).map_err(|e| e.to_string())?;
        Ok(Box::new(Outcome::<W> { input, outcome: Err(trouble), work: PhantomData }))
    }
}

impl<W: Work> Record for Outcome<W> {
    fn record(&self, recording: &mut Recording<'_>, attempt: &Attempt) -> Result<Next, StoreError> {
        W::record(recording, &self.input, attempt, self.outcome.as_ref())
    }

    fn trouble(&self) -> Option<&Trouble> {
        self.outcome.as_ref().err()
    }
}

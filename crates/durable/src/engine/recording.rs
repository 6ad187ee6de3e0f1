//! A transaction as a kind of work sees it, and enqueueing with or without a job around it.
//!
//! Guarantees: a job is enqueued in the transaction that makes it necessary, or not at all; enqueueing
//! the same id, or a live unique key, twice is once; whoever waits for work hears of it after the commit.
//!
//! Deliberately absent: a way to reach the network, or to touch the lease of the job being recorded.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use domain::id::JobId;
use domain::time::Timestamp;

use super::gate;
use super::queue::{self, NewJob};
use super::work::{Next, TargetPolicy, Trouble, Work, encode, resolver_kind};
use crate::store::{Param, Query, Row, StoreError, Topic, Tx};

/// How a job is enqueued. The default: a new id, due at once, no target, not unique.
#[derive(Debug, Clone, Default)]
pub struct EnqueueOptions {
    /// The job's id, to make enqueueing idempotent; else a new one.
    pub id: Option<JobId>,
    /// When it is due; else at once.
    pub due_at: Option<Timestamp>,
    /// What it leans on: jobs of one target are bounded and broken off together. Counts only for kinds
    /// whose policy has a [`TargetPolicy`].
    pub target: Option<String>,
    /// At most one live job of the kind has this key. If that one is being performed at the moment, it
    /// will be due once more afterwards, since it may have missed what this one is about.
    pub unique_key: Option<String>,
}

/// What became of the wish to enqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    /// A job was made.
    New(JobId),
    /// There was a live job with this id or unique key.
    Existing(JobId),
}

impl Enqueued {
    /// The job, new or not.
    #[must_use]
    pub const fn job(self) -> JobId {
        match self {
            Self::New(job) | Self::Existing(job) => job,
        }
    }
}

/// Enqueues work in this transaction.
///
/// # Errors
/// When the input cannot be written as JSON, and what the database refuses.
pub fn enqueue<W: Work>(
    tx: &mut Tx,
    input: &W::Input,
    options: EnqueueOptions,
) -> Result<Enqueued, StoreError> {
    let input = encode(input)?;
    let now = tx.now();
    let due_at = options.due_at.unwrap_or(now);
    let id = options.id.unwrap_or_else(|| JobId::mint(now, tx.chance()));
    let job = NewJob {
        id,
        kind: W::KIND,
        due_at,
        // An id may come back after its job has ended; a lease from its first life must not fit the second.
        epoch: if options.id.is_some() { tx.chance().below(1 << 47) } else { 0 },
        target: options.target.as_deref(),
        unique_key: options.unique_key.as_deref(),
        resolver: resolver_kind::<W>(),
        resolves: None,
        input: &input,
    };
    let enqueued = if queue::insert(tx, &job)? { Enqueued::New(id) } else { queue::meet_existing(tx, &job)? };
    queue::announce_if_soon(tx, due_at);
    Ok(enqueued)
}

/// Makes sure that a recurring job exists: at boot, or when its subject appears. Unlike [`enqueue`]
/// it leaves an existing one as it is.
///
/// # Errors
/// As [`enqueue`].
pub fn ensure<W: Work>(tx: &mut Tx, unique_key: &str, input: &W::Input) -> Result<Enqueued, StoreError> {
    if let Some(job) = queue::find_unique(tx, W::KIND, unique_key)? {
        return Ok(Enqueued::Existing(job));
    }
    enqueue::<W>(
        tx,
        input,
        EnqueueOptions { unique_key: Some(unique_key.to_owned()), ..EnqueueOptions::default() },
    )
}

/// Brings the live job with this unique key forward to `at`, if it waits for a later time; one that is being
/// performed is due once more. Answers whether there is one.
///
/// # Errors
/// What the database refuses.
pub fn hasten<W: Work>(tx: &mut Tx, unique_key: &str, at: Timestamp) -> Result<bool, StoreError> {
    let found = queue::hasten(tx, W::KIND, unique_key, at)?;
    tx.announce(Topic::Jobs);
    Ok(found)
}

/// Removes a live job, whatever its state. A worker that holds it finds its lease gone and writes nothing.
///
/// # Errors
/// What the database refuses.
pub fn cancel(tx: &mut Tx, job: JobId) -> Result<bool, StoreError> {
    queue::delete(tx, job)
}

/// What a resolver found out about the parked job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Release {
    /// It did not happen: perform it again, then.
    Rerun {
        /// When.
        at: Timestamp,
    },
    /// It happened, or needs no job any more.
    Done,
    /// It did not happen and is given up.
    Dead {
        /// A word to count and filter by.
        class: String,
        /// For people.
        why: String,
    },
}

/// The transaction in which an outcome is recorded. Dereferences to [`Tx`].
#[derive(Debug)]
pub struct Recording<'a> {
    tx: &'a mut Tx,
    target: Option<(&'a str, &'a TargetPolicy)>,
    resolves: Option<(JobId, u64)>,
    pub(super) released: bool,
}

impl<'a> Recording<'a> {
    pub(super) fn new(
        tx: &'a mut Tx,
        target: Option<(&'a str, &'a TargetPolicy)>,
        resolves: Option<(JobId, u64)>,
    ) -> Self {
        Self { tx, target, resolves, released: false }
    }

    /// Enqueues further work in this transaction.
    ///
    /// # Errors
    /// As [`enqueue`].
    pub fn enqueue<W: Work>(
        &mut self,
        input: &W::Input,
        options: EnqueueOptions,
    ) -> Result<Enqueued, StoreError> {
        enqueue::<W>(self.tx, input, options)
    }

    /// The target answered as a healthy one does, whatever the answer means.
    ///
    /// # Errors
    /// What the database refuses.
    pub fn target_succeeded(&mut self) -> Result<(), StoreError> {
        match self.target {
            Some((target, policy)) => gate::succeeded(self.tx, target, policy.concurrency),
            None => Ok(()),
        }
    }

    /// The target failed in a way that says something about it, not about this job; `retry_after` is
    /// how long it asked to be left alone.
    ///
    /// # Errors
    /// What the database refuses.
    pub fn target_failed(&mut self, retry_after: Option<Duration>) -> Result<(), StoreError> {
        match self.target {
            Some((target, policy)) => gate::failed(self.tx, target, &policy.breaker, retry_after),
            None => Ok(()),
        }
    }

    /// Releases the parked job that this job resolves. Answers `false` if it is no longer parked as it
    /// was when this resolver was made.
    ///
    /// # Errors
    /// [`StoreError::NoRow`] if this job is not a resolver; else what the database refuses.
    pub fn release(&mut self, release: &Release) -> Result<bool, StoreError> {
        let (job, epoch) = self.resolves.ok_or(StoreError::NoRow)?;
        self.released = true;
        self.tx.announce(Topic::Jobs);
        queue::release_parked(self.tx, job, epoch, release)
    }

    /// What usually follows: done after a fact, a retry after trouble, the end after giving up, parked
    /// after the unknown.
    #[must_use]
    pub fn usual<F>(outcome: Result<&F, &Trouble>) -> Next {
        match outcome {
            Ok(_) => Next::Done,
            Err(Trouble::Again { .. }) => Next::Retry,
            Err(Trouble::GiveUp { class, why }) => Next::Dead { class: class.clone(), why: why.clone() },
            Err(Trouble::Unknown { resolver, .. }) => Next::Park(resolver.clone()),
        }
    }
}

impl Deref for Recording<'_> {
    type Target = Tx;
    fn deref(&self) -> &Tx {
        self.tx
    }
}

impl DerefMut for Recording<'_> {
    fn deref_mut(&mut self) -> &mut Tx {
        self.tx
    }
}

impl Query for Recording<'_> {
    fn now(&self) -> Timestamp {
        self.tx.now()
    }

    fn query<T>(
        &self,
        sql: &str,
        params: &[Param<'_>],
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        self.tx.query(sql, params, read)
    }

    fn query_opt<T>(
        &self,
        sql: &str,
        params: &[Param<'_>],
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        self.tx.query_opt(sql, params, read)
    }
}

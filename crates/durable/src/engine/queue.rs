//! The job table: every statement that moves a job, in one place.
//!
//! Guarantees: the epoch grows by one on every way into and out of a lease, and [`holds`] is asked first
//! in every transaction of a worker; so of two that believe they hold a job at most one can write.
//! Expiry alone revokes nothing: only a rescuer's bump of the epoch does, under a predicate that is part
//! of the statement itself.
//!
//! Deliberately absent: deciding. What a lease's outcome means is `conclude.rs`'s business, whom a target admits
//! is decided in `claim.rs`.

use domain::id::{Incarnation, JobId};
use domain::time::Timestamp;

use super::recording::{Enqueued, Release};
use super::work::Resolver;
use super::{BACKSTOP, dead_letter};
use crate::params;
use crate::store::{Column, FromColumn, Query, Row, StoreError, Topic, Tx};

/// Where a job stands. Stored as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobState {
    /// Due, now or later.
    Ready,
    /// Being performed.
    Leased,
    /// Due, but its target admits no more at the moment.
    Held,
    /// It may have happened; only its resolver may release it.
    Parked,
}

impl JobState {
    const ALL: [Self; 4] = [Self::Ready, Self::Leased, Self::Held, Self::Parked];

    /// The word operators see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Leased => "leased",
            Self::Held => "held",
            Self::Parked => "parked",
        }
    }
}

impl FromColumn for JobState {
    const EXPECTED: &'static str = "job state";
    fn from_column(column: Column<'_>) -> Option<Self> {
        usize::from_column(column).and_then(|number| Self::ALL.get(number).copied())
    }
}

/// A job as it is enqueued.
pub(super) struct NewJob<'a> {
    pub(super) id: JobId,
    pub(super) kind: &'a str,
    pub(super) due_at: Timestamp,
    /// Where the fence begins.
    pub(super) epoch: u64,
    pub(super) target: Option<&'a str>,
    pub(super) unique_key: Option<&'a str>,
    pub(super) resolver: Option<&'a str>,
    pub(super) resolves: Option<(JobId, u64)>,
    pub(super) input: &'a [u8],
}

/// A due job, as a claim finds it.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) id: JobId,
    pub(super) epoch: u64,
    pub(super) attempt: u32,
    pub(super) crashes: u32,
    pub(super) target: Option<String>,
    pub(super) resolves: Option<(JobId, u64)>,
    pub(super) condemned: Option<String>,
    pub(super) created_at: Timestamp,
    pub(super) kind: String,
    pub(super) input: Vec<u8>,
}

macro_rules! due_columns {
    ($tail:literal) => {
        concat!(
            "select id, epoch, attempt, crashes, target, resolves, resolves_epoch, condemned, created_at, kind,
                    input from job ",
            $tail
        )
    };
}

fn read_due(row: &Row<'_>) -> Result<Due, StoreError> {
    Ok(Due {
        id: row.get(0)?,
        epoch: row.get(1)?,
        attempt: row.get(2)?,
        crashes: row.get(3)?,
        target: row.get(4)?,
        resolves: row.get::<Option<JobId>>(5)?.zip(row.get(6)?),
        condemned: row.get(7)?,
        created_at: row.get(8)?,
        kind: row.get(9)?,
        input: row.get(10)?,
    })
}

/// Adds a job; answers whether there was none with its id or live unique key.
pub(super) fn insert(tx: &mut Tx, job: &NewJob<'_>) -> Result<bool, StoreError> {
    let now = tx.now();
    let inserted = tx.execute(
        "insert into job (id, kind, state, due_at, epoch, attempt, crashes, target, unique_key,
                          resolver, resolves, resolves_epoch, created_at, input)
         values ($1, $2, 0, $3, $4, 0, 0, $5, $6, $7, $8, $9, $10, $11)
         on conflict do nothing",
        params![
            job.id,
            job.kind,
            job.due_at,
            job.epoch,
            job.target,
            job.unique_key,
            job.resolver,
            job.resolves.map(|(parked, _)| parked),
            job.resolves.map(|(_, epoch)| epoch),
            now,
            job.input,
        ],
    )?;
    Ok(inserted == 1)
}

/// Finds the job that kept `job` from being added. If that is being performed under the same unique
/// key, it will be due once more.
pub(super) fn meet_existing(tx: &mut Tx, job: &NewJob<'_>) -> Result<Enqueued, StoreError> {
    let same_id = tx.query_opt("select id from job where id = $1", params![job.id], |row| row.get(0))?;
    if let Some(existing) = same_id {
        return Ok(Enqueued::Existing(existing));
    }
    let key = job.unique_key.ok_or(StoreError::NoRow)?;
    let existing = find_unique(tx, job.kind, key)?.ok_or(StoreError::NoRow)?;
    mark_for_another_run(tx, existing, job.due_at)?;
    Ok(Enqueued::Existing(existing))
}

fn mark_for_another_run(tx: &mut Tx, job: JobId, at: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "update job set again_at = case when again_at is null or again_at > $2 then $2 else again_at end
         where id = $1 and state in (1, 3)",
        params![job, at],
    )?;
    Ok(())
}

/// The live job of this kind and unique key.
pub(super) fn find_unique(query: &impl Query, kind: &str, key: &str) -> Result<Option<JobId>, StoreError> {
    query.query_opt("select id from job where kind = $1 and unique_key = $2", params![kind, key], |row| {
        row.get(0)
    })
}

/// See [`super::hasten`].
pub(super) fn hasten(tx: &mut Tx, kind: &str, key: &str, at: Timestamp) -> Result<bool, StoreError> {
    let Some(job) = find_unique(tx, kind, key)? else { return Ok(false) };
    tx.execute("update job set due_at = $2 where id = $1 and state = 0 and due_at > $2", params![job, at])?;
    mark_for_another_run(tx, job, at)?;
    Ok(true)
}

/// Up to `limit` jobs of `kind` that are due, the longest due first.
pub(super) fn due(query: &impl Query, kind: &str, limit: u32) -> Result<Vec<Due>, StoreError> {
    let now = query.now();
    query.query(
        due_columns!("where kind = $1 and state = 0 and due_at <= $2 order by due_at, id limit $3"),
        params![kind, now, limit],
        read_due,
    )
}

/// Up to `limit` jobs that wait for `target`, the longest due first.
pub(super) fn held(query: &impl Query, target: &str, limit: u32) -> Result<Vec<Due>, StoreError> {
    query.query(
        due_columns!("where target = $1 and state = 2 order by due_at, id limit $2"),
        params![target, limit],
        read_due,
    )
}

/// When the next job of `kind` is or was due.
pub(super) fn next_due(query: &impl Query, kind: &str) -> Result<Option<Timestamp>, StoreError> {
    query.query_opt(
        "select due_at from job where kind = $1 and state = 0 order by due_at limit 1",
        params![kind],
        |row| row.get(0),
    )
}

/// When the next job of `kind` is due that is not due yet.
pub(super) fn next_due_after(query: &impl Query, kind: &str) -> Result<Option<Timestamp>, StoreError> {
    let now = query.now();
    query.query_opt(
        "select due_at from job where kind = $1 and state = 0 and due_at > $2 order by due_at limit 1",
        params![kind, now],
        |row| row.get(0),
    )
}

/// Leases a job that is ready or held. The caller read it in this transaction.
pub(super) fn lease(
    tx: &mut Tx,
    job: JobId,
    epoch: u64,
    worker: Incarnation,
    until: Timestamp,
) -> Result<(), StoreError> {
    let leased = tx.execute(
        "update job set state = 1, epoch = epoch + 1, worker = $3, lease_until = $4
         where id = $1 and epoch = $2 and state in (0, 2)",
        params![job, epoch, worker, until],
    )?;
    if leased == 1 { Ok(()) } else { Err(StoreError::damaged("a job changed while it was claimed")) }
}

/// Sets a ready job aside until its target admits it.
pub(super) fn hold(tx: &mut Tx, job: JobId) -> Result<(), StoreError> {
    let now = tx.now();
    tx.execute(
        "update job set state = 2, held_since = coalesce(held_since, $2) where id = $1 and state = 0",
        params![job, now],
    )?;
    Ok(())
}

/// What the row of a valid lease says.
pub(super) struct Held {
    pub(super) again_at: Option<Timestamp>,
}

/// The fence: asked before anything else that a worker writes. `None` means stale: write nothing.
pub(super) fn holds(query: &impl Query, job: JobId, epoch: u64) -> Result<Option<Held>, StoreError> {
    query.query_opt(
        "select again_at from job where id = $1 and epoch = $2 and state = 1",
        params![job, epoch],
        |row| Ok(Held { again_at: row.get(0)? }),
    )
}

/// Forgets a job.
pub(super) fn delete(tx: &mut Tx, job: JobId) -> Result<bool, StoreError> {
    Ok(tx.execute("delete from job where id = $1", params![job])? == 1)
}

/// How a job goes back among the ready.
pub(super) struct Return<'a> {
    pub(super) due_at: Timestamp,
    pub(super) attempt: u32,
    pub(super) crashes: u32,
    pub(super) why: Option<&'a str>,
}

/// Ends a lease that [`holds`]: the job is ready again.
pub(super) fn put_back(tx: &mut Tx, job: JobId, back: &Return<'_>) -> Result<(), StoreError> {
    tx.execute(
        "update job set state = 0, epoch = epoch + 1, due_at = $2, attempt = $3, crashes = $4, last_error = $5,
                        worker = null, lease_until = null, held_since = null, again_at = null
         where id = $1",
        params![job, back.due_at, back.attempt, back.crashes, back.why],
    )?;
    announce_if_soon(tx, back.due_at);
    Ok(())
}

/// What is due within the engine's polling interval is told at once; the rest is found by polling.
pub(super) fn announce_if_soon(tx: &mut Tx, due_at: Timestamp) {
    if due_at <= tx.now() + BACKSTOP {
        tx.announce(Topic::Jobs);
    }
}

/// Ends a lease that [`holds`]: the job stays parked until `resolver`, enqueued here, releases it.
/// `crashes` are added to its own.
pub(super) fn park(
    tx: &mut Tx,
    job: JobId,
    resolver: &Resolver,
    why: &str,
    crashes: u32,
) -> Result<(), StoreError> {
    let epoch = tx.query_one(
        "update job set state = 3, epoch = epoch + 1, crashes = crashes + $3, last_error = $2,
                        worker = null, lease_until = null
         where id = $1 returning epoch",
        params![job, why, crashes],
        |row| row.get(0),
    )?;
    enqueue_resolver(tx, resolver.kind, (job, epoch), &resolver.input)
}

fn enqueue_resolver(tx: &mut Tx, kind: &str, resolves: (JobId, u64), input: &[u8]) -> Result<(), StoreError> {
    let now = tx.now();
    let id = JobId::mint(now, tx.chance());
    let resolver = NewJob {
        id,
        kind,
        due_at: now,
        epoch: 0,
        target: None,
        unique_key: None,
        resolver: None,
        resolves: Some(resolves),
        input,
    };
    insert(tx, &resolver)?;
    tx.announce(Topic::Jobs);
    Ok(())
}

/// Whether the job is still parked as it was at `epoch`.
pub(super) fn is_parked(query: &impl Query, job: JobId, epoch: u64) -> Result<bool, StoreError> {
    let found = query.query_opt(
        "select 1 from job where id = $1 and epoch = $2 and state = 3",
        params![job, epoch],
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}

/// See [`super::Recording::release`].
pub(super) fn release_parked(
    tx: &mut Tx,
    job: JobId,
    epoch: u64,
    release: &Release,
) -> Result<bool, StoreError> {
    if !is_parked(tx, job, epoch)? {
        return Ok(false);
    }
    let again_at: Option<Timestamp> =
        tx.query_one("select again_at from job where id = $1", params![job], |row| row.get(0))?;
    let due_at = match (release, again_at) {
        (Release::Rerun { at }, _) => *at,
        (Release::Done, Some(at)) => at,
        (Release::Dead { class, why }, _) => {
            bury(tx, job, class, why, 0)?;
            return Ok(true);
        }
        (Release::Done, None) => {
            delete(tx, job)?;
            return Ok(true);
        }
    };
    tx.execute(
        "update job set state = 0, epoch = epoch + 1, due_at = $2, held_since = null, again_at = null
         where id = $1",
        params![job, due_at],
    )?;
    Ok(true)
}

/// Moves a job to the dead letters; `failures` are added to its attempts.
pub(super) fn bury(tx: &mut Tx, job: JobId, class: &str, why: &str, failures: u32) -> Result<(), StoreError> {
    let now = tx.now();
    // A job that was enqueued again under the id of a dead one may die, too.
    dead_letter::discard(tx, job)?;
    tx.execute(
        "insert into dead_letter (id, kind, class, reason, epoch, attempt, crashes, target, unique_key,
                                  resolver, resolves, resolves_epoch, created_at, died_at, input)
         select id, kind, $2, $3, epoch + 1, attempt + $4, crashes, target, unique_key,
                resolver, resolves, resolves_epoch, created_at, $5, input from job where id = $1",
        params![job, class, why, failures, now],
    )?;
    delete(tx, job)?;
    Ok(())
}

/// A job that died had been enqueued again under its unique key: a fresh one takes its place.
pub(super) fn succeed(tx: &mut Tx, dead: JobId, due_at: Timestamp) -> Result<(), StoreError> {
    let now = tx.now();
    let id = JobId::mint(now, tx.chance());
    tx.execute(
        "insert into job (id, kind, state, due_at, epoch, attempt, crashes, target, unique_key,
                          resolver, resolves, resolves_epoch, created_at, input)
         select $2, kind, 0, $3, 0, 0, 0, target, unique_key,
                resolver, resolves, resolves_epoch, $4, input from dead_letter where id = $1
         on conflict do nothing",
        params![dead, id, due_at, now],
    )?;
    announce_if_soon(tx, due_at);
    Ok(())
}

/// Ends, at boot and before the first claim, every lease there is: the lock on the database proves that
/// whoever held them is gone.
pub(super) fn rescue_earlier(tx: &mut Tx) -> Result<u64, StoreError> {
    let rescued = tx.query(
        "update job set state = case when resolver is null then 0 else 3 end, epoch = epoch + 1,
                        crashes = crashes + 1, worker = null, lease_until = null,
                        last_error = 'the process ended'
         where state = 1
         returning id, epoch, resolver, case when resolver is null then null else input end",
        params![],
        read_rescued,
    )?;
    enqueue_resolvers(tx, &rescued)
}

/// Ends leases that are past their time, or whose incarnation has not beaten since `dead_before`.
pub(super) fn rescue_expired(
    tx: &mut Tx,
    me: Incarnation,
    dead_before: Timestamp,
) -> Result<u64, StoreError> {
    let now = tx.now();
    let rescued = tx.query(
        "update job set state = case when resolver is null then 0 else 3 end, epoch = epoch + 1,
                        crashes = crashes + 1, worker = null, lease_until = null,
                        last_error = 'the lease ran out'
         where state = 1 and (lease_until <= $1 or (worker <> $2 and not exists
             (select 1 from incarnation where incarnation.id = job.worker and incarnation.beat_at > $3)))
         returning id, epoch, resolver, case when resolver is null then null else input end",
        params![now, me, dead_before],
        read_rescued,
    )?;
    enqueue_resolvers(tx, &rescued)
}

struct Rescued {
    resolves: (JobId, u64),
    resolver: Option<(String, Vec<u8>)>,
}

fn read_rescued(row: &Row<'_>) -> Result<Rescued, StoreError> {
    let resolver = row.get::<Option<String>>(2)?.zip(row.get(3)?);
    Ok(Rescued { resolves: (row.get(0)?, row.get(1)?), resolver })
}

fn enqueue_resolvers(tx: &mut Tx, rescued: &[Rescued]) -> Result<u64, StoreError> {
    for Rescued { resolves, resolver } in rescued {
        if let Some((kind, input)) = resolver {
            enqueue_resolver(tx, kind, *resolves, input)?;
        }
    }
    Ok(u64::try_from(rescued.len()).unwrap_or(u64::MAX))
}

/// Marks up to `limit` jobs of `kind` that have been held since before `since`, and makes them claimable
/// once more, to be recorded as dead.
pub(super) fn condemn_held(tx: &mut Tx, kind: &str, since: Timestamp, limit: u32) -> Result<u64, StoreError> {
    tx.execute(
        "update job set state = 0, condemned = 'held_too_long' where id in
             (select id from job where kind = $1 and state = 2 and held_since <= $2 order by held_since limit $3)",
        params![kind, since, limit],
    )
}

/// The targets that some job waits for.
pub(super) fn waited_for(query: &impl Query) -> Result<Vec<String>, StoreError> {
    // Steps from one target to the next through the index, however many jobs wait for each.
    query.query(
        "with recursive step (target) as (
             select min(target) from job where state = 2
             union all
             select (select min(target) from job where state = 2 and job.target > step.target)
             from step where step.target is not null)
         select target from step where target is not null",
        params![],
        |row| row.get(0),
    )
}

/// Says that this incarnation lives.
pub(super) fn beat(tx: &mut Tx, me: Incarnation) -> Result<(), StoreError> {
    let now = tx.now();
    tx.execute(
        "insert into incarnation (id, started_at, beat_at) values ($1, $2, $2)
         on conflict (id) do update set beat_at = excluded.beat_at",
        params![me, now],
    )?;
    Ok(())
}

/// Forgets incarnations that have not beaten since `before`.
pub(super) fn forget_incarnations(tx: &mut Tx, before: Timestamp) -> Result<(), StoreError> {
    tx.execute("delete from incarnation where beat_at < $1", params![before])?;
    Ok(())
}

/// A live job as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Its kind.
    pub kind: String,
    /// Where it stands.
    pub state: JobState,
    /// When it is due.
    pub due_at: Timestamp,
    /// The fence.
    pub epoch: u64,
    /// Attempts that failed.
    pub attempt: u32,
    /// Leases in a row that ended without an outcome.
    pub crashes: u32,
    /// What it leans on.
    pub target: Option<String>,
    /// Its unique key.
    pub unique_key: Option<String>,
    /// For a resolver: the parked job.
    pub resolves: Option<JobId>,
    /// When it was enqueued.
    pub created_at: Timestamp,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}

fn read_job(row: &Row<'_>) -> Result<Job, StoreError> {
    Ok(Job {
        id: row.get(0)?,
        kind: row.get(1)?,
        state: row.get(2)?,
        due_at: row.get(3)?,
        epoch: row.get(4)?,
        attempt: row.get(5)?,
        crashes: row.get(6)?,
        target: row.get(7)?,
        unique_key: row.get(8)?,
        resolves: row.get(9)?,
        created_at: row.get(10)?,
        last_error: row.get(11)?,
    })
}

macro_rules! job_columns {
    ($tail:literal) => {
        concat!(
            "select id, kind, state, due_at, epoch, attempt, crashes, target, unique_key, resolves, created_at,
                    last_error from job ",
            $tail
        )
    };
}

/// The live job with this id. A finished job has no row, a dead one is a dead letter.
///
/// # Errors
/// What the database refuses.
pub fn find(query: &impl Query, job: JobId) -> Result<Option<Job>, StoreError> {
    query.query_opt(job_columns!("where id = $1"), params![job], read_job)
}

/// Up to `limit` live jobs after `after`, in order of their ids, that is, of their making.
///
/// # Errors
/// What the database refuses.
pub fn list(query: &impl Query, after: Option<JobId>, limit: u32) -> Result<Vec<Job>, StoreError> {
    let after = after.unwrap_or(JobId::from_bytes([0; 16]));
    query.query(job_columns!("where id > $1 order by id limit $2"), params![after, limit], read_job)
}

/// How many live jobs of one kind are in one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// The kind.
    pub kind: String,
    /// The state.
    pub state: JobState,
    /// How many.
    pub jobs: u64,
    /// When the first of them was or is due.
    pub oldest_due: Timestamp,
}

/// Counts live jobs by kind and state.
///
/// # Errors
/// What the database refuses.
pub fn count(query: &impl Query) -> Result<Vec<Count>, StoreError> {
    let mut counts = Vec::new();
    // One statement per state, so that each runs over the index of that state alone.
    for sql in [
        "select kind, 0, count(*), min(due_at) from job where state = 0 group by kind",
        "select kind, 1, count(*), min(due_at) from job where state = 1 group by kind",
        "select kind, 2, count(*), min(held_since) from job where state = 2 group by kind",
        "select kind, 3, count(*), min(due_at) from job where state = 3 group by kind",
    ] {
        let of_state = query.query(sql, params![], |row| {
            Ok(Count { kind: row.get(0)?, state: row.get(1)?, jobs: row.get(2)?, oldest_due: row.get(3)? })
        })?;
        counts.extend(of_state);
    }
    Ok(counts)
}

//! Work that was given up: listed, brought back, or thrown away by an operator.
//!
//! Guarantees: a dead letter holds all that its job was; a revived job goes on with a higher epoch, so that
//! no lease from before its death can write. Deliberately absent: giving up, which is `conclude.rs`'s.

use domain::id::JobId;
use domain::time::Timestamp;

use crate::params;
use crate::store::{Query, Row, StoreError, Topic, Tx};

/// A job that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The job.
    pub id: JobId,
    /// Its kind.
    pub kind: String,
    /// A word to count and filter by.
    pub class: String,
    /// Why, for people.
    pub reason: String,
    /// Attempts that failed.
    pub attempt: u32,
    /// Leases in a row that ended without an outcome.
    pub crashes: u32,
    /// What it leant on.
    pub target: Option<String>,
    /// When it was enqueued.
    pub created_at: Timestamp,
    /// When it was given up.
    pub died_at: Timestamp,
    /// What it said, as JSON.
    pub input: Vec<u8>,
}

macro_rules! columns {
    ($tail:literal) => {
        concat!(
            "select id, kind, class, reason, attempt, crashes, target, created_at, died_at, input from dead_letter ",
            $tail
        )
    };
}

fn read(row: &Row<'_>) -> Result<DeadLetter, StoreError> {
    Ok(DeadLetter {
        id: row.get(0)?,
        kind: row.get(1)?,
        class: row.get(2)?,
        reason: row.get(3)?,
        attempt: row.get(4)?,
        crashes: row.get(5)?,
        target: row.get(6)?,
        created_at: row.get(7)?,
        died_at: row.get(8)?,
        input: row.get(9)?,
    })
}

/// The dead letter of this job.
///
/// # Errors
/// What the database refuses.
pub fn find(query: &impl Query, job: JobId) -> Result<Option<DeadLetter>, StoreError> {
    query.query_opt(columns!("where id = $1"), params![job], read)
}

/// Up to `limit` dead letters of all kinds, the oldest death first, after the one given by its time and id.
///
/// # Errors
/// What the database refuses.
pub fn list(
    query: &impl Query,
    after: Option<(Timestamp, JobId)>,
    limit: u32,
) -> Result<Vec<DeadLetter>, StoreError> {
    let (died_at, id) = after.unwrap_or((Timestamp::EPOCH, JobId::from_bytes([0; 16])));
    query.query(
        columns!("where (died_at, id) > ($1, $2) order by died_at, id limit $3"),
        params![died_at, id, limit],
        read,
    )
}

/// How many there are, by kind.
///
/// # Errors
/// What the database refuses.
pub fn count(query: &impl Query) -> Result<Vec<(String, u64)>, StoreError> {
    query.query("select kind, count(*) from dead_letter group by kind order by kind", params![], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
}

/// What became of the wish to bring a job back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revived {
    /// It is due now, with all its attempts before it.
    Yes,
    /// There is no such dead letter.
    NotFound,
    /// A live job has its id or unique key; the dead letter stays.
    Superseded,
}

/// Brings a job back.
///
/// # Errors
/// What the database refuses.
pub fn revive(tx: &mut Tx, job: JobId) -> Result<Revived, StoreError> {
    if find(tx, job)?.is_none() {
        return Ok(Revived::NotFound);
    }
    let now = tx.now();
    let revived = tx.execute(
        "insert into job (id, kind, state, due_at, epoch, attempt, crashes, target, unique_key,
                          resolver, resolves, resolves_epoch, created_at, input)
         select id, kind, 0, $2, epoch + 1, 0, 0, target, unique_key,
                resolver, resolves, resolves_epoch, created_at, input from dead_letter where id = $1
         on conflict do nothing",
        params![job, now],
    )?;
    if revived == 0 {
        return Ok(Revived::Superseded);
    }
    discard(tx, job)?;
    tx.announce(Topic::Jobs);
    Ok(Revived::Yes)
}

/// Throws a dead letter away; answers whether there was one.
///
/// # Errors
/// What the database refuses.
pub fn discard(tx: &mut Tx, job: JobId) -> Result<bool, StoreError> {
    Ok(tx.execute("delete from dead_letter where id = $1", params![job])? == 1)
}

//! The breakers of targets, kept as rows so that a restart does not forget that someone is down.
//!
//! Guarantees: a breaker moves in the transaction that records why; a target without a row passes.
//! Deliberately absent: what a breaker does (`domain::breaker`), and how many jobs of a target are
//! under way (that is the engine's, and begins at zero with each process).

use domain::breaker::{Breaker, BreakerPolicy};
use domain::time::Timestamp;

use crate::params;
use crate::store::{Query, Row, StoreError, Tx};

/// A target's breaker as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// The target.
    pub target: String,
    /// Its breaker.
    pub breaker: Breaker,
    /// When it last moved.
    pub changed_at: Timestamp,
}

/// The breaker of `target`.
///
/// # Errors
/// What the database refuses.
pub fn find(query: &impl Query, target: &str) -> Result<Breaker, StoreError> {
    let stored = query.query_opt(
        "select state, failures, until, trips, allowance from gate where target = $1",
        params![target],
        |row| read(row, 0),
    )?;
    Ok(stored.unwrap_or_default())
}

/// All breakers that do not simply pass.
///
/// # Errors
/// What the database refuses.
pub fn list(query: &impl Query) -> Result<Vec<Gate>, StoreError> {
    query.query(
        "select target, changed_at, state, failures, until, trips, allowance from gate order by target",
        params![],
        |row| Ok(Gate { target: row.get(0)?, changed_at: row.get(1)?, breaker: read(row, 2)? }),
    )
}

/// Sets the breaker of `target`, as an operator may. Held jobs hear of it within seconds.
///
/// # Errors
/// What the database refuses.
pub fn set(tx: &mut Tx, target: &str, breaker: Breaker) -> Result<(), StoreError> {
    if breaker == Breaker::default() {
        tx.execute("delete from gate where target = $1", params![target])?;
        return Ok(());
    }
    let (mut failures, mut until, mut trips, mut allowance) = (0, Timestamp::EPOCH, 0, 0);
    match breaker {
        Breaker::Passing { failures: so_far } => failures = so_far,
        Breaker::Tripped { until: end, trips: so_far } => (until, trips) = (end, so_far),
        Breaker::Probing { trips: so_far } => trips = so_far,
        Breaker::Ramping { allowance: at_a_time } => allowance = at_a_time,
    }
    let now = tx.now();
    tx.execute(
        "insert into gate (target, state, failures, until, trips, allowance, changed_at)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (target) do update set
             state = excluded.state, failures = excluded.failures, until = excluded.until,
             trips = excluded.trips, allowance = excluded.allowance, changed_at = excluded.changed_at",
        params![target, breaker.as_str(), failures, until, trips, allowance, now],
    )?;
    Ok(())
}

/// Moves the breaker of `target` and stores it if it moved.
fn turn(tx: &mut Tx, target: &str, turn: impl FnOnce(Breaker) -> Breaker) -> Result<(), StoreError> {
    let before = find(tx, target)?;
    let after = turn(before);
    if after == before { Ok(()) } else { set(tx, target, after) }
}

/// A call to `target` ended well.
pub(super) fn succeeded(tx: &mut Tx, target: &str, most: u32) -> Result<(), StoreError> {
    turn(tx, target, |breaker| breaker.succeeded(most))
}

/// A call to `target` failed in a way that says something about the target.
pub(super) fn failed(
    tx: &mut Tx,
    target: &str,
    policy: &BreakerPolicy,
    retry_after: Option<std::time::Duration>,
) -> Result<(), StoreError> {
    let now = tx.now();
    turn(tx, target, |breaker| breaker.failed(now, policy, retry_after))
}

/// A call to `target` begins: a pause that is over turns into a probe.
pub(super) fn begin(tx: &mut Tx, target: &str) -> Result<(), StoreError> {
    let now = tx.now();
    turn(tx, target, |breaker| breaker.begin(now))
}

fn read(row: &Row<'_>, first: usize) -> Result<Breaker, StoreError> {
    let state: String = row.get(first)?;
    Ok(match state.as_str() {
        "passing" => Breaker::Passing { failures: row.get(first + 1)? },
        "tripped" => Breaker::Tripped { until: row.get(first + 2)?, trips: row.get(first + 3)? },
        "probing" => Breaker::Probing { trips: row.get(first + 3)? },
        "ramping" => Breaker::Ramping { allowance: row.get(first + 4)? },
        other => return Err(StoreError::damaged(format_args!("no breaker is {other}"))),
    })
}

//! One answer per Idempotency-Key.
//!
//! Guarantees: of several requests with one key and scope, one is [`Begun::Fresh`] and does the work;
//! the others get its answer, or hear that it is still under way, or that they asked something else.
//! [`finish`] belongs into the transaction that does the work: then an answer exists exactly if the
//! effect does, and a row that an earlier run of the process left in flight stands for no effect and
//! may be released at start. Answers are kept for 24 hours.
//!
//! Deliberately absent: what a request is. The caller hashes it.

use std::time::Duration;

use domain::id::Incarnation;

use super::db::{Query, Tx};
use super::error::StoreError;
use crate::params;

/// How long an answer is replayed.
pub const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// An HTTP answer as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names and values of the headers worth replaying.
    pub headers: Vec<(String, String)>,
    /// The body, byte for byte.
    pub body: Vec<u8>,
}

/// What [`begin`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// Nobody has asked this before: do it.
    Fresh,
    /// This was answered.
    Replay(Answer),
    /// Another request with this key is being worked on.
    InFlight,
    /// The key was used for a different request.
    Mismatch,
}

/// Claims `key` within `scope` for a request with this `fingerprint` (a SHA-256).
///
/// # Errors
/// What the database refuses.
pub fn begin(
    tx: &mut Tx,
    incarnation: Incarnation,
    scope: &str,
    key: &str,
    fingerprint: &[u8; 32],
) -> Result<Begun, StoreError> {
    let now = tx.now();
    tx.execute(
        "delete from idempotency where scope = $1 and key = $2 and expires_at <= $3",
        params![scope, key, now],
    )?;
    let claimed = tx.execute(
        "insert into idempotency (scope, key, fingerprint, incarnation, expires_at) values ($1, $2, $3, $4, $5)
         on conflict do nothing",
        params![scope, key, fingerprint, incarnation, now + KEPT],
    )?;
    if claimed == 1 {
        return Ok(Begun::Fresh);
    }
    tx.query_one(
        "select fingerprint, status, headers, body from idempotency where scope = $1 and key = $2",
        params![scope, key],
        |row| {
            if row.get::<Vec<u8>>(0)? != fingerprint {
                return Ok(Begun::Mismatch);
            }
            let Some(status) = row.get(1)? else { return Ok(Begun::InFlight) };
            let headers = serde_json::from_str(&row.get::<String>(2)?).map_err(StoreError::damaged)?;
            Ok(Begun::Replay(Answer { status, headers, body: row.get(3)? }))
        },
    )
}

/// Keeps the answer to a request that was [`Begun::Fresh`] in this run of the process.
///
/// # Errors
/// [`StoreError::NoRow`] if the key is not in flight here.
pub fn finish(
    tx: &mut Tx,
    incarnation: Incarnation,
    scope: &str,
    key: &str,
    answer: &Answer,
) -> Result<(), StoreError> {
    let headers = serde_json::to_string(&answer.headers).map_err(StoreError::damaged)?;
    let kept_until = tx.now() + KEPT;
    let finished = tx.execute(
        "update idempotency set incarnation = null, status = $4, headers = $5, body = $6, expires_at = $7
         where scope = $1 and key = $2 and incarnation = $3",
        params![scope, key, incarnation, answer.status, headers, answer.body, kept_until],
    )?;
    if finished == 1 { Ok(()) } else { Err(StoreError::NoRow) }
}

/// Gives the key back: the request ended without an effect, so asking again may do the work.
///
/// # Errors
/// What the database refuses.
pub fn release(tx: &mut Tx, incarnation: Incarnation, scope: &str, key: &str) -> Result<(), StoreError> {
    tx.execute(
        "delete from idempotency where scope = $1 and key = $2 and incarnation = $3",
        params![scope, key, incarnation],
    )?;
    Ok(())
}

/// Releases, before anything is begun, what earlier runs of the process left in flight; answers how many.
///
/// # Errors
/// What the database refuses.
pub(super) fn release_abandoned(tx: &mut Tx) -> Result<u64, StoreError> {
    tx.execute("delete from idempotency where incarnation is not null", params![])
}

/// Forgets up to `limit` answers that are older than [`KEPT`]; answers how many.
///
/// # Errors
/// What the database refuses.
pub fn forget_expired(tx: &mut Tx, limit: u32) -> Result<u64, StoreError> {
    let now = tx.now();
    tx.execute(
        "delete from idempotency where (scope, key) in
             (select scope, key from idempotency where expires_at <= $1 order by expires_at limit $2)",
        params![now, limit],
    )
}

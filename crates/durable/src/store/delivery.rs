//! Deliveries as rows: one event on its way to one endpoint, and every attempt at it.
//!
//! A lane is an endpoint and an invoice. Its deliveries go out in the order of their events: only the first unfinished one is
//! pending; the others are queued and wake one after the other. Lanes do not wait for each other.

use domain::delivery::{DeadReason, DeliveryState};
use domain::id::{DeliveryId, EndpointId};
use domain::time::Timestamp;

use super::{Query, Row, StoreError, Tx};
use crate::params;

super::db::text_columns!(DeliveryState, DeadReason);

/// A delivery as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    /// Its id.
    pub id: DeliveryId,
    /// To whom.
    pub endpoint: EndpointId,
    /// The event, by its position in the log.
    pub event_position: u64,
    /// The lane in whose order it goes out.
    pub lane: Lane,
    /// Where it stands.
    pub state: DeliveryState,
    /// Attempts made.
    pub attempts: u32,
    /// Of these, answers that refused it for good.
    pub rejections: u32,
    /// When the event happened.
    pub created_at: Timestamp,
    /// When it was delivered or given up.
    pub finished_at: Option<Timestamp>,
    /// Why it was given up.
    pub dead_reason: Option<DeadReason>,
    /// The last status code that was read.
    pub last_status: Option<u16>,
    /// What went wrong last, in a few words that carry no secret.
    pub last_error: Option<String>,
    /// Sent again by a person, out of order.
    pub replayed: bool,
}

/// The 32 bytes that name a lane: the endpoint, and the invoice or the event itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lane(pub [u8; 32]);

impl Lane {
    /// The lane of `subject` (the bytes of an invoice's id, or of an event's that has none) at an endpoint.
    #[must_use]
    pub fn new(endpoint: EndpointId, subject: &[u8; 16]) -> Self {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(endpoint.as_bytes());
        bytes[16..].copy_from_slice(subject);
        Self(bytes)
    }
}

/// One attempt at a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// The how-manieth, from 1.
    pub number: u32,
    /// When the request was begun.
    pub started_at: Timestamp,
    /// When its outcome was known.
    pub ended_at: Timestamp,
    /// The status code, if one was read.
    pub status: Option<u16>,
    /// `delivered`, or the class of the failure.
    pub outcome: String,
    /// The beginning of the answer's body, or what went wrong.
    pub detail: Option<String>,
}

const COLUMNS: &str = "id, endpoint_id, event_position, lane, state, attempts, created_at, finished_at, dead_reason, \
     last_status, last_error, replayed, rejections";

/// Stores a new delivery.
///
/// # Errors
/// The store's.
pub fn insert(tx: &mut Tx, row: &DeliveryRow) -> Result<(), StoreError> {
    tx.execute(
        "insert into delivery (id, endpoint_id, event_position, lane, state, attempts, rejections, created_at, replayed) \
         values ($1, $2, $3, $4, $5, 0, 0, $6, $7)",
        params![
            row.id,
            row.endpoint,
            row.event_position,
            row.lane.0,
            row.state,
            row.created_at,
            row.replayed
        ],
    )?;
    Ok(())
}

/// Writes where a delivery stands now.
///
/// # Errors
/// The store's.
pub fn save(tx: &mut Tx, row: &DeliveryRow) -> Result<(), StoreError> {
    tx.execute(
        "update delivery set state = $2, attempts = $3, finished_at = $4, dead_reason = $5, last_status = $6, \
         last_error = $7, replayed = $8, rejections = $9 where id = $1",
        params![
            row.id,
            row.state,
            row.attempts,
            row.finished_at,
            row.dead_reason,
            row.last_status,
            row.last_error,
            row.replayed,
            row.rejections,
        ],
    )?;
    Ok(())
}

/// Keeps one attempt.
///
/// # Errors
/// The store's.
pub fn insert_attempt(tx: &mut Tx, delivery: DeliveryId, attempt: &AttemptRow) -> Result<(), StoreError> {
    tx.execute(
        "insert into delivery_attempt (delivery_id, number, started_at, ended_at, status, outcome, detail) \
         values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing",
        params![
            delivery,
            attempt.number,
            attempt.started_at,
            attempt.ended_at,
            attempt.status,
            attempt.outcome,
            attempt.detail,
        ],
    )?;
    Ok(())
}

/// The attempts at a delivery, in order.
///
/// # Errors
/// The store's.
pub fn list_attempts(query: &impl Query, delivery: DeliveryId) -> Result<Vec<AttemptRow>, StoreError> {
    query.query(
        "select number, started_at, ended_at, status, outcome, detail from delivery_attempt \
         where delivery_id = $1 order by number limit 1000",
        params![delivery],
        |row| {
            Ok(AttemptRow {
                number: row.get(0)?,
                started_at: row.get(1)?,
                ended_at: row.get(2)?,
                status: row.get(3)?,
                outcome: row.get(4)?,
                detail: row.get(5)?,
            })
        },
    )
}

/// The delivery, if there is one.
///
/// # Errors
/// The store's.
pub fn find(query: &impl Query, id: DeliveryId) -> Result<Option<DeliveryRow>, StoreError> {
    query.query_opt(&format!("select {COLUMNS} from delivery where id = $1"), params![id], read)
}

/// Whether an earlier delivery of the lane is unfinished.
///
/// # Errors
/// The store's.
pub fn lane_is_busy(query: &impl Query, lane: Lane) -> Result<bool, StoreError> {
    Ok(query
        .query_opt(
            "select 1 from delivery where lane = $1 and state in ('queued', 'pending') and replayed = 0 limit 1",
            params![lane.0],
            |row| row.get::<i64>(0),
        )?
        .is_some())
}

/// The first queued delivery of a lane.
///
/// # Errors
/// The store's.
pub fn next_in_lane(query: &impl Query, lane: Lane) -> Result<Option<DeliveryRow>, StoreError> {
    query.query_opt(
        &format!(
            "select {COLUMNS} from delivery where lane = $1 and state in ('queued', 'pending') \
             and state = 'queued' order by event_position limit 1"
        ),
        params![lane.0],
        read,
    )
}

/// What a list of deliveries is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those to this endpoint.
    pub endpoint: Option<EndpointId>,
    /// Only those in this state.
    pub state: Option<DeliveryState>,
}

/// Deliveries from newest to oldest, those before `before` if given, at most `limit`.
///
/// # Errors
/// The store's.
pub fn list(
    query: &impl Query,
    filter: &Filter,
    before: Option<DeliveryId>,
    limit: u32,
) -> Result<Vec<DeliveryRow>, StoreError> {
    let before = before.unwrap_or(DeliveryId::from_bytes([0xff; 16]));
    let any = EndpointId::from_bytes([0; 16]);
    query.query(
        &format!(
            "select {COLUMNS} from delivery where id < $1 and ($3 = 1 or endpoint_id = $4) \
             and ($5 = '' or state = $5) order by id desc limit $2"
        ),
        params![
            before,
            limit,
            filter.endpoint.is_none(),
            filter.endpoint.unwrap_or(any),
            filter.state.map_or("", DeliveryState::as_str),
        ],
        read,
    )
}

/// Dead letters that were given up at or after `since`, oldest first, after the cursor (time and id) if given.
///
/// # Errors
/// The store's.
pub fn list_dead(
    query: &impl Query,
    since: Timestamp,
    after: Option<(Timestamp, DeliveryId)>,
    limit: u32,
) -> Result<Vec<DeliveryRow>, StoreError> {
    let (time, id) = after.unwrap_or((since, DeliveryId::from_bytes([0; 16])));
    query.query(
        &format!(
            "select {COLUMNS} from delivery where state = 'dead' and finished_at >= $1 \
             and (finished_at, id) > ($2, $3) order by finished_at, id limit $4"
        ),
        params![since, time, id, limit],
        read,
    )
}

/// How many deliveries are dead letters now.
///
/// # Errors
/// The store's.
pub fn count_dead(query: &impl Query) -> Result<u64, StoreError> {
    query.query_one("select count(*) from delivery where state = 'dead'", params![], |row| row.get(0))
}

/// How many deliveries ended in each state at or after `since`.
///
/// # Errors
/// The store's.
pub fn count_finished(query: &impl Query, since: Timestamp) -> Result<Vec<(DeliveryState, u64)>, StoreError> {
    query.query(
        "select state, count(*) from delivery where finished_at is not null and finished_at >= $1 group by state",
        params![since],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

fn read(row: &Row<'_>) -> Result<DeliveryRow, StoreError> {
    Ok(DeliveryRow {
        id: row.get(0)?,
        endpoint: row.get(1)?,
        event_position: row.get(2)?,
        lane: Lane(row.get(3)?),
        state: row.get(4)?,
        attempts: row.get(5)?,
        created_at: row.get(6)?,
        finished_at: row.get(7)?,
        dead_reason: row.get(8)?,
        last_status: row.get(9)?,
        last_error: row.get(10)?,
        replayed: row.get(11)?,
        rejections: row.get(12)?,
    })
}

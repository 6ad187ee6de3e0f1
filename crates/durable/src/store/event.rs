//! The durable event log: what happened, in the order in which it was committed.
//!
//! `position` is the cursor by which the log is followed; `sequence` counts without gaps within one subject. The body is
//! stored as the bytes that are signed and sent, and never changes.

use domain::event::EventType;
use domain::id::{EventId, InvoiceId};
use domain::time::Timestamp;

use super::{Query, Row, StoreError, Tx};
use crate::params;

super::db::text_columns!(EventType);

/// An event as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Its place in the log, from 1.
    pub position: u64,
    /// Its id, the same in every delivery.
    pub id: EventId,
    /// What happened.
    pub kind: EventType,
    /// To which invoice, if to one.
    pub subject: Option<InvoiceId>,
    /// The how-manieth event of its subject; 0 without a subject.
    pub sequence: u64,
    /// When.
    pub created_at: Timestamp,
    /// The frozen JSON body.
    pub body: Vec<u8>,
}

const COLUMNS: &str = "position, id, type, subject, sequence, created_at, body";

/// Appends an event; its position is the next one. The log has one writer at a time.
///
/// # Errors
/// The store's.
pub fn append(tx: &mut Tx, event: &EventRow) -> Result<u64, StoreError> {
    let last = match tx.memo().last_event {
        Some(last) => last,
        None => last_position(tx)?,
    };
    let position = last.saturating_add(1);
    tx.execute(
        "insert into event (position, id, type, subject, sequence, created_at, body) \
         values ($1, $2, $3, $4, $5, $6, $7)",
        params![
            position,
            event.id,
            event.kind.as_str(),
            event.subject,
            event.sequence,
            event.created_at,
            event.body,
        ],
    )?;
    tx.memo().last_event = Some(position);
    Ok(position)
}

/// The position of the last event; 0 when there is none.
///
/// # Errors
/// The store's.
pub fn last_position(query: &impl Query) -> Result<u64, StoreError> {
    let last =
        query.query_opt("select position from event order by position desc limit 1", params![], |row| {
            row.get(0)
        })?;
    Ok(last.unwrap_or(0))
}

/// The events after a position, in order, at most `limit`.
///
/// # Errors
/// The store's.
pub fn list_after(query: &impl Query, position: u64, limit: u32) -> Result<Vec<EventRow>, StoreError> {
    query.query(
        &format!("select {COLUMNS} from event where position > $1 order by position limit $2"),
        params![position, limit],
        read,
    )
}

/// The event at a position.
///
/// # Errors
/// The store's.
pub fn find(query: &impl Query, position: u64) -> Result<Option<EventRow>, StoreError> {
    query.query_opt(&format!("select {COLUMNS} from event where position = $1"), params![position], read)
}

/// The events of an invoice, in order.
///
/// # Errors
/// The store's.
pub fn list_of_invoice(query: &impl Query, invoice: InvoiceId) -> Result<Vec<EventRow>, StoreError> {
    query.query(
        &format!("select {COLUMNS} from event where subject = $1 order by sequence limit 1000"),
        params![invoice],
        read,
    )
}

fn read(row: &Row<'_>) -> Result<EventRow, StoreError> {
    Ok(EventRow {
        position: row.get(0)?,
        id: row.get(1)?,
        kind: row.get(2)?,
        subject: row.get(3)?,
        sequence: row.get(4)?,
        created_at: row.get(5)?,
        body: row.get(6)?,
    })
}

//! Webhook endpoints as rows: where merchants want to be told, and with which secret.
//!
//! A deleted endpoint stays as a row without being listed, so that its past deliveries still have a name. Secrets
//! are shown by no `Debug`.

use std::sync::Arc;

use domain::event::{EventType, Subscription};
use domain::id::EndpointId;
use domain::time::Timestamp;

use super::secret::SecretBytes;
use super::{Query, Row, StoreError, Tx};
use crate::params;

/// An endpoint as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointRow {
    /// Its id.
    pub id: EndpointId,
    /// Where to send.
    pub url: String,
    /// What to send.
    pub subscriptions: Vec<Subscription>,
    /// The merchant's own words.
    pub description: Option<String>,
    /// Signs every delivery.
    pub secret: SecretBytes,
    /// Rotated away; each signs too, until the time beside it.
    pub old_secrets: Vec<(SecretBytes, Timestamp)>,
    /// Why it is no longer delivered to, if it is not.
    pub disabled: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was deleted.
    pub deleted_at: Option<Timestamp>,
}

impl EndpointRow {
    /// Whether an event of this type goes to this endpoint.
    #[must_use]
    pub fn wants(&self, kind: EventType) -> bool {
        self.deleted_at.is_none() && self.subscriptions.iter().any(|subscription| subscription.wants(kind))
    }
}

const COLUMNS: &str = "id, url, event_types, description, secret, disabled, created_at, deleted_at";

/// Stores a new endpoint.
///
/// # Errors
/// The store's.
pub fn insert(tx: &mut Tx, row: &EndpointRow) -> Result<(), StoreError> {
    tx.memo().endpoints = None;
    tx.execute(
        "insert into endpoint (id, url, event_types, description, secret, created_at) values ($1, $2, $3, $4, $5, $6)",
        params![row.id, row.url, spell(&row.subscriptions), row.description, row.secret.expose(), row.created_at],
    )?;
    Ok(())
}

/// Writes a changed endpoint.
///
/// # Errors
/// The store's.
pub fn save(tx: &mut Tx, row: &EndpointRow) -> Result<(), StoreError> {
    tx.memo().endpoints = None;
    tx.execute(
        "update endpoint set url = $2, event_types = $3, description = $4, secret = $5, disabled = $6, \
         deleted_at = $7 where id = $1",
        params![
            row.id,
            row.url,
            spell(&row.subscriptions),
            row.description,
            row.secret.expose(),
            row.disabled,
            row.deleted_at,
        ],
    )?;
    Ok(())
}

/// Keeps a secret that was rotated away until its time, and forgets those whose time is over.
///
/// # Errors
/// The store's.
pub fn keep_old_secret(
    tx: &mut Tx,
    id: EndpointId,
    secret: &SecretBytes,
    until: Timestamp,
) -> Result<(), StoreError> {
    let now = tx.now();
    tx.execute("delete from endpoint_old_secret where endpoint_id = $1 and until <= $2", params![id, now])?;
    tx.execute(
        "insert into endpoint_old_secret (endpoint_id, secret, until) values ($1, $2, $3) on conflict do nothing",
        params![id, secret.expose(), until],
    )?;
    Ok(())
}

/// The endpoint, deleted or not.
///
/// # Errors
/// The store's.
pub fn find(query: &impl Query, id: EndpointId) -> Result<Option<EndpointRow>, StoreError> {
    let found =
        query.query_opt(&format!("select {COLUMNS} from endpoint where id = $1"), params![id], read)?;
    found
        .map(|row| {
            let old_secrets = query.query(
                "select secret, until from endpoint_old_secret where endpoint_id = $1 order by until desc",
                params![id],
                |row| Ok((SecretBytes::from(row.get::<Vec<u8>>(0)?), row.get(1)?)),
            )?;
            Ok(EndpointRow { old_secrets, ..row })
        })
        .transpose()
}

/// Every endpoint that was not deleted, oldest first; without the secrets that were rotated away.
///
/// # Errors
/// The store's.
pub fn list(query: &impl Query) -> Result<Vec<EndpointRow>, StoreError> {
    query.query(
        &format!("select {COLUMNS} from endpoint where deleted_at is null order by id"),
        params![],
        read,
    )
}

/// As [`list`], read once in each transaction: for those who ask at every event.
///
/// # Errors
/// The store's.
pub fn listed(tx: &mut Tx) -> Result<Arc<[EndpointRow]>, StoreError> {
    if let Some(endpoints) = &tx.memo().endpoints {
        return Ok(Arc::clone(endpoints));
    }
    let endpoints: Arc<[EndpointRow]> = list(tx)?.into();
    tx.memo().endpoints = Some(Arc::clone(&endpoints));
    Ok(endpoints)
}

/// As [`list`], with the secrets that were rotated away.
///
/// # Errors
/// The store's.
pub fn list_whole(query: &impl Query) -> Result<Vec<EndpointRow>, StoreError> {
    let rows = list(query)?;
    rows.into_iter().filter_map(|row| find(query, row.id).transpose()).collect()
}

fn spell(subscriptions: &[Subscription]) -> String {
    subscriptions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn read(row: &Row<'_>) -> Result<EndpointRow, StoreError> {
    let subscriptions: String = row.get(2)?;
    Ok(EndpointRow {
        id: row.get(0)?,
        url: row.get(1)?,
        subscriptions: subscriptions
            .split(' ')
            .map(|word| {
                word.parse().map_err(|_| StoreError::damaged("an endpoint's event types do not parse"))
            })
            .collect::<Result<_, _>>()?,
        description: row.get(3)?,
        secret: SecretBytes::from(row.get::<Vec<u8>>(4)?),
        old_secrets: Vec::new(),
        disabled: row.get(5)?,
        created_at: row.get(6)?,
        deleted_at: row.get(7)?,
    })
}

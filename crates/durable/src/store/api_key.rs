//! Who may use the API.
//!
//! Guarantees: only the SHA-256 of a key is kept; a revoked key is never found by its digest; using a
//! key writes at most once a minute. Deliberately absent: making and hashing keys, and what a scope
//! permits: that is the API's business.

use std::time::Duration;

use domain::id::KeyId;
use domain::time::Timestamp;

use super::db::{Query, Row, Tx};
use super::error::StoreError;
use crate::params;

/// A key as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id, which is no secret.
    pub id: KeyId,
    /// What its owner calls it.
    pub name: String,
    /// What it may be used for.
    pub scopes: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Since when it is refused.
    pub revoked_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
}

const COLUMNS: &str = "id, name, scopes, created_at, revoked_at, last_used_at";

/// How exact `last_used_at` is.
const USE_RESOLUTION: Duration = Duration::from_secs(60);

fn read(row: &Row<'_>) -> Result<ApiKey, StoreError> {
    Ok(ApiKey {
        id: row.get(0)?,
        name: row.get(1)?,
        scopes: row.get::<String>(2)?.split_whitespace().map(str::to_owned).collect(),
        created_at: row.get(3)?,
        revoked_at: row.get(4)?,
        last_used_at: row.get(5)?,
    })
}

/// Keeps a new key whose secret has this SHA-256.
///
/// # Errors
/// A unique violation if the secret is already somebody's.
pub fn insert(tx: &mut Tx, name: &str, scopes: &[String], digest: &[u8; 32]) -> Result<ApiKey, StoreError> {
    let key = ApiKey {
        id: KeyId::mint(tx.now(), tx.chance()),
        name: name.to_owned(),
        scopes: scopes.to_vec(),
        created_at: tx.now(),
        revoked_at: None,
        last_used_at: None,
    };
    tx.execute(
        "insert into api_key (id, name, sha256, scopes, created_at) values ($1, $2, $3, $4, $5)",
        params![key.id, key.name, digest, key.scopes.join(" "), key.created_at],
    )?;
    Ok(key)
}

/// The key whose secret has this SHA-256, unless it is revoked.
///
/// # Errors
/// What the database refuses.
pub fn find_by_digest(query: &impl Query, digest: &[u8; 32]) -> Result<Option<ApiKey>, StoreError> {
    let sql = format!("select {COLUMNS} from api_key where sha256 = $1 and revoked_at is null");
    query.query_opt(&sql, params![digest], read)
}

/// All keys, oldest first.
///
/// # Errors
/// What the database refuses.
pub fn list(query: &impl Query) -> Result<Vec<ApiKey>, StoreError> {
    query.query(&format!("select {COLUMNS} from api_key order by id"), params![], read)
}

/// Refuses the key from now on; answers whether there was one that was not refused before.
///
/// # Errors
/// What the database refuses.
pub fn revoke(tx: &mut Tx, id: KeyId) -> Result<bool, StoreError> {
    let now = tx.now();
    let revoked = tx.execute(
        "update api_key set revoked_at = $2 where id = $1 and revoked_at is null",
        params![id, now],
    )?;
    Ok(revoked == 1)
}

/// Notes that the key was used, if that was not noted within the last minute.
///
/// # Errors
/// What the database refuses.
pub fn touch(tx: &mut Tx, id: KeyId) -> Result<(), StoreError> {
    let now = tx.now();
    tx.execute(
        "update api_key set last_used_at = $2 where id = $1 and coalesce(last_used_at, 0) <= $3",
        params![id, now, now - USE_RESOLUTION],
    )?;
    Ok(())
}

//! Secret bytes of our own, by name: the key that signs evidence, for instance.
//!
//! Guarantees: a secret is made once, in the transaction that first asks for it, and never shown by
//! `Debug`. Deliberately absent: encryption at rest. Whoever can read the database file can read these;
//! keys that move money do not live here.

use super::db::{Query, Tx};
use super::error::StoreError;
use crate::params;

/// Bytes that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// The bytes themselves.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for SecretBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretBytes")
    }
}

/// The secret of this name.
///
/// # Errors
/// What the database refuses.
pub fn find(query: &impl Query, name: &str) -> Result<Option<SecretBytes>, StoreError> {
    query.query_opt("select bytes from secret where name = $1", params![name], |row| {
        row.get(0).map(SecretBytes)
    })
}

/// The secret of this name, or 32 fresh random bytes if there was none.
///
/// # Errors
/// What the database refuses.
pub fn find_or_make(tx: &mut Tx, name: &str) -> Result<SecretBytes, StoreError> {
    if let Some(secret) = find(tx, name)? {
        return Ok(secret);
    }
    let made = SecretBytes(tx.chance().bytes::<32>().to_vec());
    put(tx, name, &made)?;
    Ok(made)
}

/// Sets the secret of this name, replacing an earlier one.
///
/// # Errors
/// What the database refuses.
pub fn put(tx: &mut Tx, name: &str, secret: &SecretBytes) -> Result<(), StoreError> {
    let now = tx.now();
    tx.execute(
        "insert into secret (name, bytes, created_at) values ($1, $2, $3)
         on conflict (name) do update set bytes = excluded.bytes, created_at = excluded.created_at",
        params![name, secret.0, now],
    )?;
    Ok(())
}

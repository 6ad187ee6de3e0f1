//! Counters that only grow and survive a restart, for what happens seldom and must be counted exactly.
//!
//! A counter changes in the transaction of what it counts: it is neither ahead of the rows nor behind them.

use super::{Query, StoreError, Tx};
use crate::params;

/// One counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// What is counted.
    pub name: String,
    /// Its one label's value.
    pub label: String,
    /// How often.
    pub value: u64,
}

/// Counts `more` of something.
///
/// # Errors
/// The store's.
pub fn add(tx: &mut Tx, name: &str, label: &str, more: u64) -> Result<(), StoreError> {
    tx.execute(
        "insert into counter (name, label, value) values ($1, $2, $3) \
         on conflict (name, label) do update set value = counter.value + excluded.value",
        params![name, label, more],
    )?;
    Ok(())
}

/// Every counter.
///
/// # Errors
/// The store's.
pub fn list(query: &impl Query) -> Result<Vec<Counter>, StoreError> {
    query.query("select name, label, value from counter order by name, label", params![], |row| {
        Ok(Counter { name: row.get(0)?, label: row.get(1)?, value: row.get(2)? })
    })
}

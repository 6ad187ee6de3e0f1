//! Whether the database file is sound, as the database itself can tell.
//!
//! Reads everything, so it takes as long as reading the file. Deliberately absent: whether the books
//! agree with each other, which is for those who know what the rows mean.

use super::db::Query;
use super::error::StoreError;
use crate::params;

/// Everything that is wrong with the file, in the database's words; nothing when it is sound.
///
/// # Errors
/// What the database refuses.
pub fn check(query: &impl Query) -> Result<Vec<String>, StoreError> {
    let mut found: Vec<String> = query.query("pragma integrity_check(100)", params![], |row| row.get(0))?;
    found.retain(|line| line != "ok");
    Ok(found)
}

//! What can go wrong with a store, told apart by what a caller can do about it.
//!
//! Guarantees: every error is cheap to clone, so that all waiters of one failed commit get the same
//! words; none carries a bound value, since values may be secret. The driver's own error types stay
//! inside `db.rs`.

use std::path::PathBuf;
use std::sync::Arc;

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A commit, a sync or the disk failed. Nothing is written after that: the process should end
    /// and be started again, since after a failed sync the state of the file's pages is not known.
    #[error("the store has stopped, nothing more is written: {0}")]
    Failed(Arc<str>),
    /// The store was closed while the request was on its way.
    #[error("the store is closed")]
    Closed,
    /// Another process kept the write lock for too long. Nothing was written; asking again is safe.
    #[error("another process holds the write lock of the store")]
    Busy,
    /// A constraint of the schema refused a row. Prefer `on conflict do nothing`, which is cheaper.
    #[error("a constraint refused the row: {what}")]
    Constraint {
        /// Which, in the database's words: table and columns, never values.
        what: Arc<str>,
        /// Whether a unique or primary key was violated.
        unique: bool,
    },
    /// A statement that the database does not understand: a mistake in the program.
    #[error("the database refused a statement: {0}")]
    Statement(Arc<str>),
    /// A stored value is not what the program expects in that place.
    #[error("column {index} holds no {expected}")]
    Column {
        /// Counted from 0, in the order of the statement.
        index: usize,
        /// The type that was asked for.
        expected: &'static str,
    },
    /// A stored value, taken together with its neighbours, makes no sense.
    #[error("stored data is damaged: {0}")]
    Damaged(Arc<str>),
    /// A number does not fit a 64-bit signed column.
    #[error("a number is too large for a column")]
    TooLarge,
    /// A row that must exist does not.
    #[error("there is no such row")]
    NoRow,
    /// The function passed to the store panicked. Its writes were undone, those of others kept.
    #[error("a transaction panicked: {0}")]
    Panicked(Arc<str>),
    /// Another process runs on this database.
    #[error("{} is in use by another running process", .0.display())]
    Locked(PathBuf),
    /// The database was written by a newer version of this program.
    #[error("the database has migration {found}, this program knows up to {known}: run a newer version")]
    Newer {
        /// The highest migration in the database.
        found: i64,
        /// The highest migration built into the program.
        known: i64,
    },
    /// A migration that was applied differs from the one built into the program.
    #[error("migration {0} was applied with other contents than this program holds")]
    Changed(i64),
    /// A guest found a database that its owner has not brought up to date.
    #[error("the database is not up to date (migration {found} of {known}): start the owner first")]
    Outdated {
        /// The highest migration in the database.
        found: i64,
        /// The highest migration built into the program.
        known: i64,
    },
    /// The file could not be opened or prepared.
    #[error("cannot open {}: {why}", path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// In the system's words.
        why: Arc<str>,
    },
}

impl StoreError {
    /// Whether a unique or primary key was violated.
    #[must_use]
    pub const fn is_unique_violation(&self) -> bool {
        matches!(self, Self::Constraint { unique: true, .. })
    }

    /// For stored data that does not parse, or contradicts itself.
    pub fn damaged(what: impl std::fmt::Display) -> Self {
        Self::Damaged(what.to_string().into())
    }
}

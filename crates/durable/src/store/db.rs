//! The database itself: connections, statements, parameters, rows. The only file that knows a driver.
//!
//! Guarantees: [`Tx`] and [`Reader`] read through one interface, [`Query`]; statements are one text for
//! both dialects (`$1` placeholders, `returning`, `on conflict`); values are of a narrow palette
//! (bigint, text, blob). A disk that fails during any statement is remembered, whatever the function
//! that met it makes of the error, so that the transaction cannot be committed afterwards.
//!
//! Deliberately absent: threads, queues and the decision when to commit (`committer.rs`). No type of
//! the driver is visible outside, and no method of it is called outside.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes};
use domain::chain::Asset;
use domain::chance::Chance;
use domain::time::Timestamp;
use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::endpoint::EndpointRow;
use super::error::StoreError;

/// SQLite before this can corrupt a database when two connections write and checkpoint at once
/// (the WAL-reset bug, fixed in 3.51.3).
const OLDEST_SQLITE: i32 = 3_051_003;

/// How many prepared statements a connection keeps.
const STATEMENTS_KEPT: usize = 512;

/// Bytes of a page. An event with its body fits a page beside others, and trees are less deep than with SQLite's usual
/// 4096: a tenth more settlements a second, and an eighth less written for each.
const PAGE_BYTES: i64 = 8_192;

/// How long a write waits for another process (a command-line tool) before it is refused.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// What an acknowledged write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Power loss: every commit is synced to the disk.
    #[default]
    PowerLoss,
    /// Only the end of the process: nothing is synced. For simulation, where the disk is not the subject.
    ProcessExit,
}

/// One value on its way into a statement.
#[derive(Debug, Clone)]
pub enum Param<'a> {
    /// No value.
    Null,
    /// A `bigint` column: counts, heights, times in milliseconds, booleans as 0 and 1.
    Int(i64),
    /// A `text` column.
    Text(&'a str),
    /// A `text` column, spelt for this statement.
    Spelt(String),
    /// A `blob` column: ids, hashes, addresses, stored bytes.
    Blob(&'a [u8]),
    /// A number that no column can hold; the statement is refused with [`StoreError::TooLarge`].
    TooLarge,
}

/// A value that can be written to a column.
pub trait ToParam {
    /// The value as the database takes it.
    fn to_param(&self) -> Param<'_>;
}

/// A value that can be read from a column.
pub trait FromColumn: Sized {
    /// What a column must hold, for the error that says it does not.
    const EXPECTED: &'static str;
    /// The value, or `None` if the column holds something else.
    fn from_column(column: Column<'_>) -> Option<Self>;
}

/// One value on its way out of a row.
#[derive(Debug, Clone, Copy)]
pub enum Column<'a> {
    /// No value.
    Null,
    /// From a `bigint` column.
    Int(i64),
    /// From a `text` column.
    Text(&'a str),
    /// From a `blob` column.
    Blob(&'a [u8]),
}

/// A list of parameters: `params![id, amount, "open"]`.
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        &[$($crate::store::ToParam::to_param(&$value)),*] as &[$crate::store::Param<'_>]
    };
}

impl<T: ToParam + ?Sized> ToParam for &T {
    fn to_param(&self) -> Param<'_> {
        (**self).to_param()
    }
}

impl<T: ToParam> ToParam for Option<T> {
    fn to_param(&self) -> Param<'_> {
        self.as_ref().map_or(Param::Null, ToParam::to_param)
    }
}

impl<T: FromColumn> FromColumn for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    fn from_column(column: Column<'_>) -> Option<Self> {
        match column {
            Column::Null => Some(None),
            present => T::from_column(present).map(Some),
        }
    }
}

macro_rules! integers {
    ($($name:ty),+) => {$(
        impl ToParam for $name {
            fn to_param(&self) -> Param<'_> {
                i64::try_from(*self).map_or(Param::TooLarge, Param::Int)
            }
        }
        impl FromColumn for $name {
            const EXPECTED: &'static str = stringify!($name);
            fn from_column(column: Column<'_>) -> Option<Self> {
                match column {
                    Column::Int(number) => Self::try_from(number).ok(),
                    _ => None,
                }
            }
        }
    )+};
}
integers!(i64, i32, u8, u16, u32, u64, usize);

impl ToParam for bool {
    fn to_param(&self) -> Param<'_> {
        Param::Int(i64::from(*self))
    }
}

impl FromColumn for bool {
    const EXPECTED: &'static str = "boolean (0 or 1)";
    fn from_column(column: Column<'_>) -> Option<Self> {
        match column {
            Column::Int(0) => Some(false),
            Column::Int(1) => Some(true),
            _ => None,
        }
    }
}

impl ToParam for Timestamp {
    fn to_param(&self) -> Param<'_> {
        Param::Int(self.as_millis())
    }
}

impl FromColumn for Timestamp {
    const EXPECTED: &'static str = "time in milliseconds";
    fn from_column(column: Column<'_>) -> Option<Self> {
        match column {
            Column::Int(millis) if (0..=Self::MAX.as_millis()).contains(&millis) => {
                Some(Self::from_millis(millis))
            }
            _ => None,
        }
    }
}

impl ToParam for str {
    fn to_param(&self) -> Param<'_> {
        Param::Text(self)
    }
}

impl ToParam for String {
    fn to_param(&self) -> Param<'_> {
        Param::Text(self)
    }
}

impl FromColumn for String {
    const EXPECTED: &'static str = "text";
    fn from_column(column: Column<'_>) -> Option<Self> {
        match column {
            Column::Text(text) => Some(text.to_owned()),
            _ => None,
        }
    }
}

impl ToParam for [u8] {
    fn to_param(&self) -> Param<'_> {
        Param::Blob(self)
    }
}

impl ToParam for Vec<u8> {
    fn to_param(&self) -> Param<'_> {
        Param::Blob(self)
    }
}

impl<const N: usize> ToParam for [u8; N] {
    fn to_param(&self) -> Param<'_> {
        Param::Blob(self)
    }
}

impl FromColumn for Vec<u8> {
    const EXPECTED: &'static str = "bytes";
    fn from_column(column: Column<'_>) -> Option<Self> {
        match column {
            Column::Blob(bytes) => Some(bytes.to_vec()),
            _ => None,
        }
    }
}

impl<const N: usize> FromColumn for [u8; N] {
    const EXPECTED: &'static str = "bytes of the right length";
    fn from_column(column: Column<'_>) -> Option<Self> {
        match column {
            Column::Blob(bytes) => bytes.try_into().ok(),
            _ => None,
        }
    }
}

impl ToParam for Bytes {
    fn to_param(&self) -> Param<'_> {
        Param::Blob(self)
    }
}

impl FromColumn for Bytes {
    const EXPECTED: &'static str = "bytes";
    fn from_column(column: Column<'_>) -> Option<Self> {
        Vec::from_column(column).map(Self::from)
    }
}

macro_rules! fixed_bytes {
    ($($name:ty = $expected:literal),+ $(,)?) => {$(
        impl ToParam for $name {
            fn to_param(&self) -> Param<'_> {
                Param::Blob(self.as_slice())
            }
        }
        impl FromColumn for $name {
            const EXPECTED: &'static str = $expected;
            fn from_column(column: Column<'_>) -> Option<Self> {
                <_>::from_column(column).map(Self::new)
            }
        }
    )+};
}
fixed_bytes!(Address = "address of 20 bytes", B256 = "hash of 32 bytes");

macro_rules! id_columns {
    ($($name:ident),+ $(,)?) => {$(
        impl ToParam for domain::id::$name {
            fn to_param(&self) -> Param<'_> {
                Param::Blob(self.as_bytes())
            }
        }
        impl FromColumn for domain::id::$name {
            const EXPECTED: &'static str = concat!(stringify!($name), " of 16 bytes");
            fn from_column(column: Column<'_>) -> Option<Self> {
                <_>::from_column(column).map(Self::from_bytes)
            }
        }
    )+};
}
id_columns!(InvoiceId, PaymentId, EventId, EndpointId, DeliveryId, JobId, KeyId, Incarnation);

/// Stores a value of the domain as its `Display` form and reads it back through `FromStr`.
macro_rules! text_columns {
    ($($name:ty),+ $(,)?) => {$(
        impl $crate::store::ToParam for $name {
            fn to_param(&self) -> $crate::store::Param<'_> {
                $crate::store::Param::Spelt(self.to_string())
            }
        }
        impl $crate::store::FromColumn for $name {
            const EXPECTED: &'static str = stringify!($name);
            fn from_column(column: $crate::store::Column<'_>) -> Option<Self> {
                match column {
                    $crate::store::Column::Text(text) => text.parse().ok(),
                    _ => None,
                }
            }
        }
    )+};
}
pub(crate) use text_columns;
text_columns!(
    domain::money::Amount,
    domain::chain::ChainId,
    domain::chain::EvidenceLevel,
    domain::chain::Confirmations,
);

impl ToParam for Asset {
    /// In lower case: a checksum is for people who copy addresses by hand, and costs a hash each time.
    fn to_param(&self) -> Param<'_> {
        match self {
            Self::Native => Param::Text("native"),
            Self::Token(address) => Param::Spelt(format!("{address:#x}")),
        }
    }
}

impl FromColumn for Asset {
    const EXPECTED: &'static str = "asset";
    fn from_column(column: Column<'_>) -> Option<Self> {
        match column {
            Column::Text("native") => Some(Self::Native),
            Column::Text(text) => text.parse().ok().map(Self::Token),
            _ => None,
        }
    }
}

/// One row of an answer.
#[derive(Debug)]
pub struct Row<'a>(&'a rusqlite::Row<'a>);

impl Row<'_> {
    /// The value of the column at `index`, counted from 0 in the order of the statement.
    ///
    /// # Errors
    /// [`StoreError::Column`] when the column holds something else, or does not exist.
    pub fn get<T: FromColumn>(&self, index: usize) -> Result<T, StoreError> {
        let wrong = StoreError::Column { index, expected: T::EXPECTED };
        let column = match self.0.get_ref(index) {
            Ok(ValueRef::Null) => Column::Null,
            Ok(ValueRef::Integer(number)) => Column::Int(number),
            Ok(ValueRef::Text(bytes)) => match std::str::from_utf8(bytes) {
                Ok(text) => Column::Text(text),
                Err(_) => return Err(wrong),
            },
            Ok(ValueRef::Blob(bytes)) => Column::Blob(bytes),
            Ok(ValueRef::Real(_)) | Err(_) => return Err(wrong),
        };
        T::from_column(column).ok_or(wrong)
    }
}

/// Reading, the same way within a transaction and outside of one.
pub trait Query {
    /// The time of this transaction or snapshot, taken once.
    fn now(&self) -> Timestamp;

    /// All rows of the answer, in order.
    ///
    /// # Errors
    /// What the database or `read` refuses.
    fn query<T>(
        &self,
        sql: &str,
        params: &[Param<'_>],
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError>;

    /// The first row of the answer, if there is one.
    ///
    /// # Errors
    /// What the database or `read` refuses.
    fn query_opt<T>(
        &self,
        sql: &str,
        params: &[Param<'_>],
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError>;

    /// The first row of the answer.
    ///
    /// # Errors
    /// [`StoreError::NoRow`] if there is none; else what the database or `read` refuses.
    fn query_one<T>(
        &self,
        sql: &str,
        params: &[Param<'_>],
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.query_opt(sql, params, read)?.ok_or(StoreError::NoRow)
    }
}

/// Something to tell those who listen, once a transaction is committed. A hint that makes them fast;
/// they poll to be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// There is work to claim.
    Jobs,
    /// There are new events to publish.
    Events,
}

impl Topic {
    pub(super) const COUNT: usize = 2;

    pub(super) const fn index(self) -> usize {
        match self {
            Self::Jobs => 0,
            Self::Events => 1,
        }
    }
}

/// A write transaction, as the function passed to [`Store::write`](super::Store::write) sees it.
///
/// Everything is synchronous. The function may be run again, on another state of the database, if
/// a neighbour in the same commit had to be undone: its effects belong into rows, or into what it returns.
#[derive(Debug)]
pub struct Tx {
    db: Connection,
    now: Timestamp,
    chance: Chance,
    wrote: Cell<bool>,
    broken: RefCell<Option<StoreError>>,
    announced: [bool; Topic::COUNT],
    afterwards: Afterwards,
    memo: Memo,
    wal_pages: Arc<AtomicU32>,
}

/// What a transaction has read and would read again for each of many events. Nobody else writes meanwhile; whoever
/// changes the rows behind it keeps it true.
#[derive(Debug, Default)]
pub(super) struct Memo {
    /// The position of the last event.
    pub(super) last_event: Option<u64>,
    /// The endpoints that were not deleted.
    pub(super) endpoints: Option<Arc<[EndpointRow]>>,
}

/// What is to be done once the transaction is durable.
#[derive(Default)]
pub(super) struct Afterwards(Vec<Box<dyn FnOnce() + Send>>);

impl Afterwards {
    /// Does it all.
    pub(super) fn run(self) {
        for task in self.0 {
            // What is committed is committed, whatever a counter makes of it.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(task)).is_err() {
                tracing::error!("something to be done after a commit panicked");
            }
        }
    }
}

impl std::fmt::Debug for Afterwards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Afterwards({})", self.0.len())
    }
}

impl Tx {
    /// Runs a statement that returns no rows; answers how many it touched.
    ///
    /// # Errors
    /// What the database refuses.
    pub fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Result<u64, StoreError> {
        self.wrote.set(true);
        let touched = (|| {
            let mut statement = self.db.prepare_cached(sql).map_err(|e| wrap(&e))?;
            bind(&mut statement, params)?;
            statement.raw_execute().map_err(|e| wrap(&e))
        })();
        self.noticed(touched).map(|rows| u64::try_from(rows).unwrap_or(u64::MAX))
    }

    /// Tells the listeners of `topic` after this transaction is committed.
    pub fn announce(&mut self, topic: Topic) {
        if let Some(flag) = self.announced.get_mut(topic.index()) {
            *flag = true;
        }
    }

    /// Does `task` once this transaction is durable, exactly once, however often the function is run; never if
    /// the function refuses or the commit fails. For counters: it runs on the writer's thread and must be short.
    pub fn after_commit(&mut self, task: impl FnOnce() + Send + 'static) {
        self.afterwards.0.push(Box::new(task));
    }

    /// What this transaction remembers.
    pub(super) const fn memo(&mut self) -> &mut Memo {
        &mut self.memo
    }

    /// The store's source of chance, for new ids.
    #[must_use]
    pub const fn chance(&self) -> &Chance {
        &self.chance
    }

    /// A disk that has failed must not be forgotten by a function that swallows the error.
    fn noticed<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error @ StoreError::Failed(_)) = &result {
            self.broken.borrow_mut().get_or_insert_with(|| error.clone());
        }
        result
    }
}

impl Query for Tx {
    fn now(&self) -> Timestamp {
        self.now
    }

    fn query<T>(
        &self,
        sql: &str,
        params: &[Param<'_>],
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        self.noticed(collect(&self.db, &self.wrote, sql, params, usize::MAX, read))
    }

    fn query_opt<T>(
        &self,
        sql: &str,
        params: &[Param<'_>],
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        self.noticed(first(&self.db, &self.wrote, sql, params, read))
    }
}

/// What `committer.rs` needs of the connection.
impl Tx {
    /// Opens the writing connection.
    pub(super) fn open(path: &Path, durability: Durability, chance: Chance) -> Result<Self, StoreError> {
        let refused = |why: String| StoreError::Open { path: path.to_owned(), why: why.into() };
        if rusqlite::version_number() < OLDEST_SQLITE {
            return Err(refused(format!("SQLite {} has a known corruption bug", rusqlite::version())));
        }
        let mut db = Connection::open(path).map_err(|e| refused(e.to_string()))?;
        let wal_pages = Arc::new(AtomicU32::new(0));
        let synchronous = match durability {
            Durability::PowerLoss => "FULL",
            Durability::ProcessExit => "OFF",
        };
        let prepare = |db: &mut Connection| -> rusqlite::Result<String> {
            db.busy_timeout(BUSY_TIMEOUT)?;
            // Takes effect when the file is made: whoever opened it before keeps what it has.
            db.pragma_update(None, "page_size", PAGE_BYTES)?;
            let mode = db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
            db.pragma_update(None, "synchronous", synchronous)?;
            db.pragma_update(None, "foreign_keys", "OFF")?;
            db.pragma_update(None, "temp_store", "MEMORY")?;
            db.pragma_update(None, "cache_size", -65_536)?;
            db.pragma_update_and_check(None, "journal_size_limit", 256 << 20, |_| Ok(()))?;
            db.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
            db.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
            let pages = Arc::clone(&wal_pages);
            db.wal_hook(Some(move |_: &mut _, length: i32| {
                pages.store(u32::try_from(length).unwrap_or(0), Ordering::Relaxed);
                Ok(())
            }))?;
            Ok(mode)
        };
        let mode = prepare(&mut db).map_err(|e| refused(e.to_string()))?;
        if !mode.eq_ignore_ascii_case("wal") {
            return Err(refused(format!("journal mode is {mode}, this file system may not support WAL")));
        }
        Ok(Self {
            db,
            now: Timestamp::EPOCH,
            chance,
            wrote: Cell::new(false),
            broken: RefCell::new(None),
            announced: [false; Topic::COUNT],
            afterwards: Afterwards::default(),
            memo: Memo::default(),
            wal_pages,
        })
    }

    /// Starts a transaction that holds the write lock.
    pub(super) fn begin(&mut self) -> Result<(), StoreError> {
        self.announced = [false; Topic::COUNT];
        self.afterwards.0.clear();
        self.memo = Memo::default();
        self.control("begin immediate")
    }

    /// Makes the transaction durable. Any failure here is the end of the store.
    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        self.control("commit").map_err(|error| match error {
            failed @ StoreError::Failed(_) => failed,
            other => StoreError::Failed(other.to_string().into()),
        })
    }

    /// Undoes the transaction.
    pub(super) fn rollback(&mut self) -> Result<(), StoreError> {
        self.announced = [false; Topic::COUNT];
        self.memo = Memo::default();
        self.control("rollback")
    }

    /// Marks a place to which [`Tx::undo_part`] returns.
    pub(super) fn begin_part(&mut self) -> Result<(), StoreError> {
        self.control("savepoint part")
    }

    /// Keeps what was done since [`Tx::begin_part`].
    pub(super) fn end_part(&mut self) -> Result<(), StoreError> {
        self.control("release part")
    }

    /// Undoes what was done since [`Tx::begin_part`].
    pub(super) fn undo_part(&mut self) -> Result<(), StoreError> {
        self.memo = Memo::default();
        self.control("rollback to part")?;
        self.control("release part")
    }

    /// Before each function: its time, and a clean slate to see whether it writes.
    pub(super) fn turn_to(&mut self, now: Timestamp) {
        self.now = now;
        self.wrote.set(false);
    }

    /// Whether anything was written since [`Tx::turn_to`].
    pub(super) fn wrote(&self) -> bool {
        self.wrote.get()
    }

    /// The failure of the disk that some statement met.
    pub(super) fn broken(&self) -> Option<StoreError> {
        self.broken.borrow().clone()
    }

    /// How much is to be done after the commit so far.
    pub(super) fn afterwards_planned(&self) -> usize {
        self.afterwards.0.len()
    }

    /// Forgets what a function that refused wanted done.
    pub(super) fn forget_afterwards(&mut self, planned_before: usize) {
        self.afterwards.0.truncate(planned_before);
    }

    /// What is to be done after the commit.
    pub(super) fn take_afterwards(&mut self) -> Afterwards {
        std::mem::take(&mut self.afterwards)
    }

    /// What was announced since [`Tx::begin`].
    pub(super) const fn announced(&self) -> [bool; Topic::COUNT] {
        self.announced
    }

    /// Pages in the write-ahead log after the last commit.
    pub(super) fn wal_pages(&self) -> u32 {
        self.wal_pages.load(Ordering::Relaxed)
    }

    /// Copies what no reader needs from the write-ahead log into the database, waiting for nobody.
    /// Answers whether all of the log was copied, so that it starts over.
    pub(super) fn checkpoint(&mut self) -> Result<bool, StoreError> {
        match self.db.wal_checkpoint_v2(Some(rusqlite::MAIN_DB), CheckpointMode::PASSIVE) {
            Ok((log, copied)) => Ok(log == copied),
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(false),
            Err(e) => Err(wrap(&e)),
        }
    }

    /// Runs a script of several statements, as migrations are.
    pub(super) fn script(&mut self, sql: &str) -> Result<(), StoreError> {
        self.db.execute_batch(sql).map_err(|e| wrap(&e))
    }

    /// Makes the next commits fail, as a full or broken disk would.
    #[cfg(test)]
    pub(super) fn refuse_commits(&mut self) {
        self.db.commit_hook(Some(|| true)).unwrap();
    }

    /// A database with the engine's tables, for the tests of this crate.
    #[cfg(test)]
    pub(crate) fn scratch(path: &Path, chance: Chance) -> Self {
        let mut tx = Self::open(path, Durability::ProcessExit, chance).unwrap();
        tx.script(include_str!("../../migrations/sqlite/0001_engine.sql")).unwrap();
        tx
    }

    /// What follows happens at `now`.
    #[cfg(test)]
    pub(crate) fn at(&mut self, now: Timestamp) -> &mut Self {
        self.turn_to(now);
        self
    }

    fn control(&mut self, sql: &str) -> Result<(), StoreError> {
        let done = (|| {
            let mut statement = self.db.prepare_cached(sql).map_err(|e| wrap(&e))?;
            statement.raw_execute().map_err(|e| wrap(&e))
        })();
        self.noticed(done).map(|_| ())
    }
}

/// A read-only view of one committed state of the database.
#[derive(Debug)]
pub struct Reader {
    db: Connection,
    now: Timestamp,
}

impl Reader {
    /// Opens a reading connection.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let refused =
            |e: rusqlite::Error| StoreError::Open { path: path.to_owned(), why: e.to_string().into() };
        let flags =
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let db = Connection::open_with_flags(path, flags).map_err(refused)?;
        let prepare = || -> rusqlite::Result<()> {
            db.busy_timeout(BUSY_TIMEOUT)?;
            db.pragma_update(None, "query_only", "ON")?;
            db.pragma_update(None, "temp_store", "MEMORY")?;
            db.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
            db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            db.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
            Ok(())
        };
        prepare().map_err(refused)?;
        Ok(Self { db, now: Timestamp::EPOCH })
    }

    /// Runs `read` on one state of the database: what is committed meanwhile is not seen.
    pub(super) fn snapshot<T, E: From<StoreError>>(
        &mut self,
        now: Timestamp,
        read: impl FnOnce(&Self) -> Result<T, E>,
    ) -> Result<T, E> {
        self.now = now;
        self.control("begin")?;
        let outcome = read(self);
        self.control("rollback")?;
        outcome
    }

    /// Whether no snapshot is open, so that the connection can be used again.
    pub(super) fn is_idle(&self) -> bool {
        self.db.is_autocommit()
    }

    fn control(&self, sql: &str) -> Result<(), StoreError> {
        let mut statement = self.db.prepare_cached(sql).map_err(|e| wrap(&e))?;
        statement.raw_execute().map(|_| ()).map_err(|e| wrap(&e))
    }
}

impl Query for Reader {
    fn now(&self) -> Timestamp {
        self.now
    }

    fn query<T>(
        &self,
        sql: &str,
        params: &[Param<'_>],
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        collect(&self.db, &Cell::new(false), sql, params, usize::MAX, read)
    }

    fn query_opt<T>(
        &self,
        sql: &str,
        params: &[Param<'_>],
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        first(&self.db, &Cell::new(false), sql, params, read)
    }
}

fn collect<T>(
    db: &Connection,
    wrote: &Cell<bool>,
    sql: &str,
    params: &[Param<'_>],
    most: usize,
    mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = db.prepare_cached(sql).map_err(|e| wrap(&e))?;
    if !statement.readonly() {
        wrote.set(true);
    }
    bind(&mut statement, params)?;
    let mut rows = statement.raw_query();
    let mut answer = Vec::new();
    while answer.len() < most
        && let Some(row) = rows.next().map_err(|e| wrap(&e))?
    {
        answer.push(read(&Row(row))?);
    }
    Ok(answer)
}

/// A writing statement is run to its end (`insert … returning` may have more rows than are wanted).
fn first<T>(
    db: &Connection,
    wrote: &Cell<bool>,
    sql: &str,
    params: &[Param<'_>],
    mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    let mut statement = db.prepare_cached(sql).map_err(|e| wrap(&e))?;
    let readonly = statement.readonly();
    if !readonly {
        wrote.set(true);
    }
    bind(&mut statement, params)?;
    let mut rows = statement.raw_query();
    let Some(row) = rows.next().map_err(|e| wrap(&e))? else { return Ok(None) };
    let answer = read(&Row(row))?;
    while !readonly && rows.next().map_err(|e| wrap(&e))?.is_some() {}
    Ok(Some(answer))
}

/// What the first placeholders are called, by their places.
const NAMES: [&str; 28] = [
    "", "$1", "$2", "$3", "$4", "$5", "$6", "$7", "$8", "$9", "$10", "$11", "$12", "$13", "$14", "$15",
    "$16", "$17", "$18", "$19", "$20", "$21", "$22", "$23", "$24", "$25", "$26", "$27",
];

/// SQLite numbers `$N` placeholders by first appearance, not by N; so each is bound by its name.
fn bind(statement: &mut rusqlite::Statement<'_>, params: &[Param<'_>]) -> Result<(), StoreError> {
    let count = statement.parameter_count();
    if count != params.len() {
        let why = format!("{} parameters given, {count} expected", params.len());
        return Err(StoreError::Statement(why.into()));
    }
    for place in 1..=count {
        let number = match statement.parameter_name(place) {
            // Mostly they come in order.
            Some(name) if NAMES.get(place) == Some(&name) => Some(place),
            Some(name) => name.get(1..).and_then(|digits| digits.parse().ok()),
            None => None,
        };
        let Some(param) = number.and_then(|number| params.get(number.checked_sub(1)?)) else {
            return Err(StoreError::Statement("placeholders must be $1, $2, … without gaps".into()));
        };
        match param {
            Param::Null => statement.raw_bind_parameter(place, rusqlite::types::Null),
            Param::Int(number) => statement.raw_bind_parameter(place, number),
            Param::Text(text) => statement.raw_bind_parameter(place, text),
            Param::Spelt(text) => statement.raw_bind_parameter(place, text),
            Param::Blob(bytes) => statement.raw_bind_parameter(place, bytes),
            Param::TooLarge => return Err(StoreError::TooLarge),
        }
        .map_err(|e| wrap(&e))?;
    }
    Ok(())
}

/// The driver's error in the terms of a caller. What says that the disk or the file is no longer
/// to be trusted becomes [`StoreError::Failed`].
fn wrap(error: &rusqlite::Error) -> StoreError {
    let Some(code) = error.sqlite_error_code() else {
        return StoreError::Statement(error.to_string().into());
    };
    match code {
        ErrorCode::ConstraintViolation => StoreError::Constraint {
            what: error.to_string().into(),
            unique: error.sqlite_error().is_some_and(|e| {
                [rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE, rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY]
                    .contains(&e.extended_code)
            }),
        },
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => StoreError::Busy,
        ErrorCode::DiskFull
        | ErrorCode::SystemIoFailure
        | ErrorCode::DatabaseCorrupt
        | ErrorCode::NotADatabase
        | ErrorCode::OutOfMemory
        | ErrorCode::CannotOpen
        | ErrorCode::PermissionDenied
        | ErrorCode::FileLockingProtocolFailed
        | ErrorCode::InternalMalfunction => StoreError::Failed(error.to_string().into()),
        _ => StoreError::Statement(error.to_string().into()),
    }
}

//! Rows that survive: one writer, many readers, durable before acknowledged.
//!
//! Guarantees: [`Store::write`] returns after the disk has the rows; writes are serial, so what a
//! function read in its transaction is still true when it writes. [`Store::read`] sees committed rows
//! only, of one moment. Two owners cannot open one file. After a failed commit or a full disk every
//! write is refused and [`Store::failed`] wakes, so that the process can end.
//!
//! Deliberately absent: anything asynchronous inside a transaction, connection strings, and knowledge
//! of the engine. Each noun has its own file of functions over [`Tx`] and [`Query`].
//!
//! On SQLite the time of a transaction is the process's clock, asked once per function; SQL itself
//! never asks for it.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use domain::chance::Chance;
use domain::id::Incarnation;
use domain::time::{Clock, Timestamp};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

mod committer;
mod db;
mod error;
mod migration;

pub mod api_key;
pub mod block;
pub mod claim;
pub mod counter;
pub mod delivery;
pub mod endpoint;
pub mod event;
pub mod health;
pub mod idempotency;
pub mod invoice;
pub mod payment;
pub mod secret;

use committer::{Board, Committer, Pending, QUEUE, Request};

pub use committer::CommitStats;
pub(crate) use committer::panic_text;
pub use db::{Column, Durability, FromColumn, Param, Query, Reader, Row, ToParam, Topic, Tx};
pub use error::StoreError;

/// Most reads at the same time; more wait.
const READERS: usize = 4;

/// Who runs the functions passed to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Threading {
    /// One thread writes, reads run on the runtime's blocking threads.
    #[default]
    Threads,
    /// The caller runs everything itself, one at a time: no threads, hence a deterministic order.
    Inline,
}

/// In what role a process opens the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// The one process that runs the engine. Brings the schema up to date.
    #[default]
    Owner,
    /// A command-line tool beside it: reads, and short writes that take the database's write lock
    /// for a moment. Must not run an engine.
    Guest,
}

/// How to open a store.
#[derive(Debug, Clone, Copy, Default)]
pub struct StoreOptions {
    /// Who runs transactions.
    pub threading: Threading,
    /// In what role.
    pub access: Access,
    /// What an acknowledged write survives.
    pub durability: Durability,
}

/// A handle on the store; cheap to clone. The last one to be dropped waits for the writes under way.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    writer: Writer,
    board: Arc<Board>,
    reads: ReadOnly,
    incarnation: Incarnation,
    access: Access,
    clock: Arc<dyn Clock>,
    chance: Chance,
    /// Held for as long as the store is open, released by the system when the process ends.
    _lock: Option<File>,
}

enum Writer {
    Thread { queue: Option<mpsc::Sender<Box<dyn Pending>>>, thread: Option<JoinHandle<()>> },
    Inline(Box<Mutex<Committer>>),
}

impl Store {
    /// Opens the database file `path`, creating it for an owner.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another owner runs, [`StoreError::Newer`], [`StoreError::Changed`] or
    /// [`StoreError::Outdated`] if the schema does not suit, [`StoreError::Open`] if the file does not.
    pub fn open(
        path: impl AsRef<Path>,
        options: StoreOptions,
        clock: Arc<dyn Clock>,
        chance: Chance,
    ) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let lock = match options.access {
            Access::Owner => Some(lock(path)?),
            Access::Guest => None,
        };
        create(path)?;
        let mut tx = Tx::open(path, options.durability, chance.clone())?;
        let mode = match options.access {
            Access::Owner => migration::Mode::Apply,
            Access::Guest => migration::Mode::Check,
        };
        migration::run(&mut tx, migration::SQLITE, mode, clock.now())?;

        let incarnation = Incarnation::mint(clock.now(), &chance);
        let board = Arc::new(Board::new());
        let mut committer = Committer::new(tx, Arc::clone(&clock), Arc::clone(&board));
        if options.access == Access::Owner {
            committer.run_alone(idempotency::release_abandoned)?;
        }
        Ok(Self(Arc::new(Inner {
            writer: Writer::start(committer, options.threading)?,
            board,
            reads: ReadOnly::new(path, options.threading, Arc::clone(&clock)),
            incarnation,
            access: options.access,
            clock,
            chance,
            _lock: lock,
        })))
    }

    /// Runs `change` in a transaction and waits until it is durable. If `change` refuses, nothing
    /// of it is kept. It may be run more than once; it must not call the store itself. Once queued it is
    /// run to its end, also if the returned future is dropped.
    ///
    /// # Errors
    /// What `change` refuses, or what [`StoreError`] says.
    pub async fn write<T, E, F>(&self, change: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnMut(&mut Tx) -> Result<T, E> + Send + 'static,
    {
        let (answer, outcome) = oneshot::channel();
        self.submit(change, move |result| drop(answer.send(result))).await?;
        outcome.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }

    /// As [`Store::write`], for code that is on a thread of its own and may block.
    ///
    /// # Panics
    /// On a thread that runs asynchronous tasks, which must not block.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn write_now<T, E, F>(&self, change: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnMut(&mut Tx) -> Result<T, E> + Send + 'static,
    {
        self.0.board.check()?;
        let (answer, outcome) = oneshot::channel();
        let request = Box::new(Request::new(change, move |result| drop(answer.send(result))));
        match &self.0.writer {
            Writer::Thread { queue: Some(queue), .. } => {
                queue.blocking_send(request).map_err(|_| StoreError::Closed)?;
            }
            Writer::Thread { queue: None, .. } => return Err(StoreError::Closed.into()),
            Writer::Inline(committer) => run_inline(committer, request),
        }
        outcome.blocking_recv().unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }

    /// Queues `change` and returns; `done` is called with its outcome once that is durable, on the
    /// writer's thread, so it must be short and must not wait.
    ///
    /// # Errors
    /// When the store has failed or is closed; `done` is then never called.
    pub(crate) async fn submit<T, E, F, D>(&self, change: F, done: D) -> Result<(), StoreError>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnMut(&mut Tx) -> Result<T, E> + Send + 'static,
        D: FnOnce(Result<T, E>) + Send + 'static,
    {
        self.0.board.check()?;
        let request = Box::new(Request::new(change, done));
        match &self.0.writer {
            Writer::Thread { queue: Some(queue), .. } => {
                queue.send(request).await.map_err(|_| StoreError::Closed)
            }
            Writer::Thread { queue: None, .. } => Err(StoreError::Closed),
            Writer::Inline(committer) => {
                run_inline(committer, request);
                Ok(())
            }
        }
    }

    /// Runs `read` on one committed state of the database.
    ///
    /// # Errors
    /// What `read` refuses, or what [`StoreError`] says.
    pub async fn read<T, E, F>(&self, read: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Reader) -> Result<T, E> + Send + 'static,
    {
        self.0.reads.read(read).await
    }

    /// As [`Store::read`], for code that is on a thread of its own and may block.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn read_now<T, E: From<StoreError>>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, E>,
    ) -> Result<T, E> {
        self.0.reads.read_now(read)
    }

    /// A handle that can read and nothing else.
    #[must_use]
    pub fn read_only(&self) -> &ReadOnly {
        &self.0.reads
    }

    /// Waits until the store has failed, and says why. After that the process should end.
    pub async fn failed(&self) -> StoreError {
        let mut failure = self.0.board.watch_failure();
        match failure.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or(StoreError::Closed),
            Err(_) => StoreError::Closed,
        }
    }

    /// Listens for what transactions announce.
    #[must_use]
    pub fn listen(&self, topic: Topic) -> Listener {
        Listener(self.0.board.listen(topic))
    }

    /// What the writer has done so far.
    #[must_use]
    pub fn commit_stats(&self) -> CommitStats {
        self.0.board.stats()
    }

    /// The id of this run of the process; a new one at each open.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.0.incarnation
    }

    /// In what role the store was opened.
    #[must_use]
    pub fn access(&self) -> Access {
        self.0.access
    }

    /// The clock the store was opened with.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    /// The chance the store was opened with.
    #[must_use]
    pub fn chance(&self) -> &Chance {
        &self.0.chance
    }

    /// The wall clock's time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.0.reads.0.path).finish_non_exhaustive()
    }
}

impl Writer {
    fn start(committer: Committer, threading: Threading) -> Result<Self, StoreError> {
        match threading {
            Threading::Inline => Ok(Self::Inline(Box::new(Mutex::new(committer)))),
            Threading::Threads => {
                let (queue, requests) = mpsc::channel(QUEUE);
                let thread = std::thread::Builder::new()
                    .name("store-writer".into())
                    .spawn(move || committer.serve(requests))
                    .map_err(|e| StoreError::Failed(e.to_string().into()))?;
                Ok(Self::Thread { queue: Some(queue), thread: Some(thread) })
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Writer::Thread { queue, thread } = &mut self.writer {
            drop(queue.take());
            // The last handle may be dropped by the writer itself, with a function that held it.
            if let Some(thread) = thread.take()
                && thread.thread().id() != std::thread::current().id()
                && thread.join().is_err()
            {
                tracing::error!("the store's writer ended by a panic");
            }
        }
    }
}

fn run_inline(committer: &Mutex<Committer>, request: Box<dyn Pending>) {
    let mut batch = vec![request];
    let verdict = {
        let mut committer = committer.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = committer.commit(&mut batch);
        committer.checkpoint_if_due();
        verdict
    };
    for pending in batch {
        pending.settle(verdict.clone());
    }
}

/// For files that only their owner may read, since the database holds secrets. SQLite gives its side files the
/// mode of the database.
fn private() -> OpenOptions {
    let mut options = File::options();
    options.create(true).write(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Makes the database file, so that it is private from the beginning.
fn create(path: &Path) -> Result<(), StoreError> {
    let refused = |e: std::io::Error| StoreError::Open { path: path.to_owned(), why: e.to_string().into() };
    private().open(path).map(drop).map_err(refused)
}

/// Keeps a second owner out. The file stays behind, only its lock matters.
fn lock(path: &Path) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let refused = |e: std::io::Error| StoreError::Open { path: path.to_owned(), why: e.to_string().into() };
    let file = private().open(name).map_err(refused)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(path.to_owned())),
        Err(TryLockError::Error(e)) => Err(refused(e)),
    }
}

/// Hears what committed transactions announce. Announcements that come close together are heard as one.
#[derive(Debug)]
pub struct Listener(Option<watch::Receiver<u64>>);

impl Listener {
    /// Waits for an announcement that was not heard yet; for ever, once the store is closed.
    pub async fn heard(&mut self) {
        let open = match &mut self.0 {
            Some(announcements) => announcements.changed().await.is_ok(),
            None => false,
        };
        if !open {
            std::future::pending::<()>().await;
        }
    }
}

/// Reading without the power to write. What is read is committed and of one moment.
#[derive(Clone)]
pub struct ReadOnly(Arc<Pool>);

struct Pool {
    path: PathBuf,
    threading: Threading,
    clock: Arc<dyn Clock>,
    idle: Mutex<Vec<Reader>>,
    permits: Arc<Semaphore>,
}

impl ReadOnly {
    fn new(path: &Path, threading: Threading, clock: Arc<dyn Clock>) -> Self {
        let permits = Arc::new(Semaphore::new(READERS));
        Self(Arc::new(Pool { path: path.to_owned(), threading, clock, idle: Mutex::default(), permits }))
    }

    /// As [`Store::read`].
    ///
    /// # Errors
    /// As [`Store::read`].
    pub async fn read<T, E, F>(&self, read: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Reader) -> Result<T, E> + Send + 'static,
    {
        if self.0.threading == Threading::Inline {
            return self.read_now(read);
        }
        let permit = Arc::clone(&self.0.permits).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let pool = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let outcome = pool.read_now(read);
            drop(permit);
            outcome
        });
        match reading.await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => {
                Err(StoreError::Panicked(panic_text(error.into_panic().as_ref()).into()).into())
            }
            Err(_) => Err(StoreError::Closed.into()),
        }
    }

    /// As [`Store::read_now`].
    ///
    /// # Errors
    /// As [`Store::read_now`].
    pub fn read_now<T, E: From<StoreError>>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, E>,
    ) -> Result<T, E> {
        let idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut reader = match idle {
            Some(reader) => reader,
            None => Reader::open(&self.0.path)?,
        };
        // A reader whose function panics is dropped, and its snapshot with it.
        let outcome = reader.snapshot(self.0.clock.now(), read);
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < READERS && reader.is_idle() {
            idle.push(reader);
        }
        outcome
    }
}

impl std::fmt::Debug for ReadOnly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadOnly").field("path", &self.0.path).finish_non_exhaustive()
    }
}

//! Group commit: what queued up while the last commit reached the disk is committed together.
//!
//! Guarantees: an answer is given only after the commit that holds it returned. A function that
//! refuses after having written, or panics, is undone alone; its neighbours are run again, this time
//! each in a savepoint, so that many bad ones cost no more than one. After a failed commit nothing is
//! written any more: a failed sync is never tried again, since the kernel may have dropped the pages.
//!
//! Deliberately absent: a timer. Batches form by themselves when the disk is the bottleneck, and a lone
//! write waits for nobody.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use domain::time::Clock;
use tokio::sync::{mpsc, watch};

use super::db::{Topic, Tx};
use super::error::StoreError;

/// Most functions in one commit. Bounds the wait of the first of them and the work of an undo.
pub(super) const BATCH: usize = 512;

/// Most functions that wait for a commit; whoever comes after that waits to be queued.
pub(super) const QUEUE: usize = 4096;

/// Write-ahead log pages (8 KiB each) after which they are copied into the database. The log file
/// keeps its size: overwriting allocated blocks syncs faster than growing a file.
const CHECKPOINT_PAGES: u32 = 2000;

/// How often a group waits for the write lock (five seconds each) before it is refused.
const BEGINS: u32 = 6;

/// A queued write whose types are forgotten.
pub(super) trait Pending: Send {
    /// Runs the function; answers whether it accepted. May be called again.
    fn run(&mut self, tx: &mut Tx) -> bool;
    /// Answers the one who waits: the function's own outcome, or what went wrong around it.
    fn settle(self: Box<Self>, verdict: Result<(), StoreError>);
}

/// A function, and where its outcome goes.
pub(super) struct Request<T, E, F, D> {
    run: F,
    outcome: Option<Result<T, E>>,
    done: D,
}

impl<T, E, F, D> Request<T, E, F, D> {
    pub(super) const fn new(run: F, done: D) -> Self {
        Self { run, outcome: None, done }
    }
}

impl<T, E, F, D> Pending for Request<T, E, F, D>
where
    T: Send,
    E: From<StoreError> + Send,
    F: FnMut(&mut Tx) -> Result<T, E> + Send,
    D: FnOnce(Result<T, E>) + Send,
{
    fn run(&mut self, tx: &mut Tx) -> bool {
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.run)(tx)))
            .unwrap_or_else(|panic| Err(StoreError::Panicked(panic_text(panic.as_ref()).into()).into()));
        self.outcome.insert(outcome).is_ok()
    }

    fn settle(self: Box<Self>, verdict: Result<(), StoreError>) {
        let Self { outcome, done, .. } = *self;
        done(match verdict {
            Ok(()) => outcome.unwrap_or_else(|| Err(StoreError::Closed.into())),
            Err(error) => Err(error.into()),
        });
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without words")
}

/// What has happened in the writer, for metrics. Counts are since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommitStats {
    /// Commits that reached the disk.
    pub commits: u64,
    /// Functions in them; divided by `commits`, the mean size of a group.
    pub writes: u64,
    /// Groups that had to be run again because one of them was undone.
    pub reruns: u64,
    /// Time spent in commits, sync included.
    pub commit_time: Duration,
    /// Pages in the write-ahead log after the last commit.
    pub wal_pages: u32,
}

#[derive(Debug, Default)]
struct Meter {
    commits: AtomicU64,
    writes: AtomicU64,
    reruns: AtomicU64,
    commit_nanos: AtomicU64,
    wal_pages: AtomicU64,
}

/// What the writer shows to everybody else.
#[derive(Debug)]
pub(super) struct Board {
    failure: watch::Sender<Option<StoreError>>,
    topics: [watch::Sender<u64>; Topic::COUNT],
    meter: Meter,
}

impl Board {
    pub(super) fn new() -> Self {
        Self {
            failure: watch::Sender::new(None),
            topics: std::array::from_fn(|_| watch::Sender::new(0)),
            meter: Meter::default(),
        }
    }

    /// # Errors
    /// With the failure, once there was one.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.failure.borrow().clone().map_or(Ok(()), Err)
    }

    pub(super) fn watch_failure(&self) -> watch::Receiver<Option<StoreError>> {
        self.failure.subscribe()
    }

    pub(super) fn listen(&self, topic: Topic) -> Option<watch::Receiver<u64>> {
        self.topics.get(topic.index()).map(watch::Sender::subscribe)
    }

    pub(super) fn stats(&self) -> CommitStats {
        let meter = &self.meter;
        CommitStats {
            commits: meter.commits.load(Ordering::Relaxed),
            writes: meter.writes.load(Ordering::Relaxed),
            reruns: meter.reruns.load(Ordering::Relaxed),
            commit_time: Duration::from_nanos(meter.commit_nanos.load(Ordering::Relaxed)),
            wal_pages: u32::try_from(meter.wal_pages.load(Ordering::Relaxed)).unwrap_or(u32::MAX),
        }
    }

    fn fail(&self, error: &StoreError) {
        tracing::error!(%error, "the store has stopped");
        self.failure.send_replace(Some(error.clone()));
    }

    fn tell(&self, announced: [bool; Topic::COUNT]) {
        for (topic, announced) in self.topics.iter().zip(announced) {
            if announced {
                topic.send_modify(|count| *count = count.wrapping_add(1));
            }
        }
    }
}

/// Makes a panic of the writer itself known as the failure of the store.
struct EndOfThread(Arc<Board>);

impl Drop for EndOfThread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(&StoreError::Failed("the writer panicked".into()));
        }
    }
}

/// The owner of the writing connection.
pub(super) struct Committer {
    tx: Tx,
    clock: Arc<dyn Clock>,
    board: Arc<Board>,
    checkpoint_at: u32,
}

impl Committer {
    pub(super) const fn new(tx: Tx, clock: Arc<dyn Clock>, board: Arc<Board>) -> Self {
        Self { tx, clock, board, checkpoint_at: CHECKPOINT_PAGES }
    }

    /// Runs and commits one function before anybody is served.
    pub(super) fn run_alone<T: Send + 'static>(
        &mut self,
        change: impl FnMut(&mut Tx) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, outcome) = std::sync::mpsc::sync_channel(1);
        let mut batch: [Box<dyn Pending>; 1] =
            [Box::new(Request::new(change, move |result| drop(answer.send(result))))];
        let verdict = self.commit(&mut batch);
        for pending in batch {
            pending.settle(verdict.clone());
        }
        outcome.recv().unwrap_or(Err(StoreError::Closed))
    }

    /// Serves the queue until it is closed and empty.
    pub(super) fn serve(mut self, mut queue: mpsc::Receiver<Box<dyn Pending>>) {
        let _guard = EndOfThread(Arc::clone(&self.board));
        let mut batch = Vec::with_capacity(BATCH);
        while queue.blocking_recv_many(&mut batch, BATCH) > 0 {
            let verdict = self.commit(&mut batch);
            for pending in batch.drain(..) {
                pending.settle(verdict.clone());
            }
            self.checkpoint_if_due();
        }
    }

    /// Runs and commits a group, all of it or nothing; those undone alone keep their own error.
    pub(super) fn commit(&mut self, batch: &mut [Box<dyn Pending>]) -> Result<(), StoreError> {
        self.board.check()?;
        let verdict = self.run_and_commit(batch);
        match &verdict {
            Ok(()) => {
                self.tx.take_afterwards().run();
                self.board.tell(self.tx.announced());
            }
            Err(StoreError::Busy) => tracing::error!("gave up waiting for another process's write"),
            Err(error) => self.board.fail(error),
        }
        verdict
    }

    fn run_and_commit(&mut self, batch: &mut [Box<dyn Pending>]) -> Result<(), StoreError> {
        self.begin()?;
        // From here on, no error but a function's own is ordinary.
        self.run_all(batch).and_then(|()| self.sync(batch.len())).map_err(|error| match error {
            failed @ StoreError::Failed(_) => failed,
            other => StoreError::Failed(other.to_string().into()),
        })
    }

    /// Waits for another process's write, but not for ever.
    fn begin(&mut self) -> Result<(), StoreError> {
        let mut begun = self.tx.begin();
        for _ in 1..BEGINS {
            if begun != Err(StoreError::Busy) {
                break;
            }
            tracing::warn!("another process holds the write lock of the store");
            begun = self.tx.begin();
        }
        begun
    }

    fn run_all(&mut self, batch: &mut [Box<dyn Pending>]) -> Result<(), StoreError> {
        let Some(spoilt) = self.run_plainly(batch)? else { return Ok(()) };
        self.board.meter.reruns.fetch_add(1, Ordering::Relaxed);
        self.tx.rollback()?;
        self.tx.begin()?;
        self.run_in_parts(batch, spoilt)
    }

    /// Runs one after the other; stops at the first whose writes have to be undone.
    fn run_plainly(&mut self, batch: &mut [Box<dyn Pending>]) -> Result<Option<usize>, StoreError> {
        for (place, pending) in batch.iter_mut().enumerate() {
            if self.run_leaves_traces(pending)? {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    /// Runs all but the one that spoilt the first pass. Also those that refused without writing are
    /// asked again: they may have refused because of what is now undone.
    fn run_in_parts(&mut self, batch: &mut [Box<dyn Pending>], spoilt: usize) -> Result<(), StoreError> {
        for (place, pending) in batch.iter_mut().enumerate() {
            if place == spoilt {
                continue;
            }
            self.tx.begin_part()?;
            if self.run_leaves_traces(pending)? {
                self.tx.undo_part()?;
            } else {
                self.tx.end_part()?;
            }
        }
        Ok(())
    }

    /// Runs one function; answers whether it refused and yet wrote.
    fn run_leaves_traces(&mut self, pending: &mut Box<dyn Pending>) -> Result<bool, StoreError> {
        self.tx.turn_to(self.clock.now());
        let planned = self.tx.afterwards_planned();
        let accepted = pending.run(&mut self.tx);
        if !accepted {
            self.tx.forget_afterwards(planned);
        }
        match self.tx.broken() {
            Some(failure) => Err(failure),
            None => Ok(!accepted && self.tx.wrote()),
        }
    }

    fn sync(&mut self, writes: usize) -> Result<(), StoreError> {
        let before = self.clock.monotonic();
        self.tx.commit()?;
        let took = self.clock.monotonic().saturating_sub(before);
        let meter = &self.board.meter;
        meter.commits.fetch_add(1, Ordering::Relaxed);
        meter.writes.fetch_add(u64::try_from(writes).unwrap_or(u64::MAX), Ordering::Relaxed);
        meter.commit_nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        meter.wal_pages.store(u64::from(self.tx.wal_pages()), Ordering::Relaxed);
        Ok(())
    }

    /// Between groups, after their answers: nobody waits for a checkpoint but the next group.
    pub(super) fn checkpoint_if_due(&mut self) {
        let pages = self.tx.wal_pages();
        if pages < self.checkpoint_at || self.board.check().is_err() {
            return;
        }
        self.checkpoint_at = match self.tx.checkpoint() {
            Ok(true) => CHECKPOINT_PAGES,
            // A reader holds an old state; trying again at once would copy the same pages again.
            Ok(false) => pages.saturating_add(CHECKPOINT_PAGES),
            Err(error) => {
                self.board.fail(&error);
                u32::MAX
            }
        };
    }

    #[cfg(test)]
    pub(super) fn tx(&mut self) -> &mut Tx {
        &mut self.tx
    }
}

#[cfg(test)]
mod tests {
    use domain::chance::Chance;
    use domain::time::{Sleep, Timestamp};

    use super::super::db::{Durability, Query};
    use super::*;
    use crate::params;

    struct Still;

    impl Clock for Still {
        fn now(&self) -> Timestamp {
            Timestamp::EPOCH
        }
        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
        fn sleep(&self, _: Duration) -> Sleep {
            Box::pin(std::future::pending())
        }
    }

    #[test]
    fn a_refused_commit_is_the_end_and_is_never_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let tx = Tx::open(&dir.path().join("db"), Durability::PowerLoss, Chance::from_seed(1)).unwrap();
        let board = Arc::new(Board::new());
        let mut committer = Committer::new(tx, Arc::new(Still), Arc::clone(&board));
        committer.run_alone(|tx| tx.execute("create table t (n bigint)", params![])).unwrap();
        committer.tx().refuse_commits();

        let ran = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&ran);
        let insert = move |tx: &mut Tx| {
            counted.fetch_add(1, Ordering::Relaxed);
            tx.execute("insert into t (n) values (1)", params![])
        };
        assert!(matches!(committer.run_alone(insert.clone()), Err(StoreError::Failed(_))));
        assert!(board.check().is_err());
        assert!(matches!(committer.run_alone(insert), Err(StoreError::Failed(_))));
        assert_eq!(ran.load(Ordering::Relaxed), 1, "the second was not even run");
        let rows = committer.tx().query("select n from t", params![], |_| Ok(())).unwrap();
        assert!(rows.is_empty());
    }
}

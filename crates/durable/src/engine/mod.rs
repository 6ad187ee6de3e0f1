//! Work still to do: claimed under a fence, performed outside any transaction, recorded in one.
//!
//! Guarantees: a job is performed at least once and recorded at most once per lease; of two that believe they
//! hold a job only one can write. What an earlier run of the process left is taken up at start. The unknown
//! is parked and never guessed. A target that is down costs its jobs no attempts and others no time.
//!
//! Deliberately absent: any concrete kind of work, HTTP, and consensus: nodes that shared a database would
//! need no more than the same fence.

mod claim;
mod conclude;
mod desk;
mod queue;
mod recording;
mod work;

pub mod dead_letter;
pub mod gate;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use domain::time::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use claim::{Claimed, Lease, Order};
use conclude::{Concluded, Ended, conclude};
use desk::Desk;
use work::{Kind, Performed};

pub use queue::{Count, Job, JobState, count, find, list};
pub use recording::{EnqueueOptions, Enqueued, Recording, Release, cancel, enqueue, ensure, hasten};
pub use work::{
    AfterCrash, Attempt, Catalog, Condemned, Next, Policy, Resolver, SameKind, TargetPolicy, Trouble, Work,
};

use crate::store::idempotency;
use crate::store::{Access, Listener, Query as _, Store, StoreError, Topic, Tx, panic_text};

/// Most jobs in one claim.
const CLAIM: u32 = 256;

/// Most targets looked at in one claim.
const LOOKS: usize = 64;

/// How often is polled for what no notification told.
const BACKSTOP: Duration = Duration::from_secs(1);

/// How often the engine says that it lives and cleans up.
const UPKEEP: Duration = Duration::from_secs(5);

/// An incarnation that has not beaten for so long is dead.
const DEAD_AFTER: Duration = Duration::from_secs(20);

/// How long a lease outlasts the deadline of its kind before a rescuer may end it.
const LEASE_MARGIN: Duration = Duration::from_secs(30);

/// How long the row of a dead incarnation is kept, for whoever reads the table.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);

/// Most rows cleaned up in one transaction, so that nobody waits long behind it.
const SWEEP: u32 = 500;

/// How the engine is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// How many jobs of all kinds are performed at the same time.
    pub concurrency: u32,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { concurrency: 1024 }
    }
}

/// Why the engine does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The store was opened by a guest, who must not claim work.
    #[error("only the owner of the database may run its engine")]
    Guest,
    /// The store does not work.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the engine has done since it was started, and what there is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Live jobs by kind and state.
    pub jobs: Vec<Count>,
    /// Dead letters by kind.
    pub dead: Vec<(String, u64)>,
    /// Jobs under way in this process by kind.
    pub in_flight: Vec<(&'static str, u32)>,
    /// What happened here.
    pub counters: Counters,
}

/// How leases ended in this process. Each grows only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Leases taken.
    pub claimed: u64,
    /// Ended well.
    pub done: u64,
    /// Failed and due again.
    pub retried: u64,
    /// Given back without a failure.
    pub released: u64,
    /// Parked as unknown.
    pub parked: u64,
    /// Given up.
    pub dead: u64,
    /// Panicked, or could not be recorded.
    pub crashed: u64,
    /// Came too late: the lease had been taken away and nothing was written.
    pub stale: u64,
    /// Leases of others that were ended here.
    pub rescued: u64,
}

#[derive(Debug, Default)]
struct Meter {
    claimed: AtomicU64,
    done: AtomicU64,
    retried: AtomicU64,
    released: AtomicU64,
    parked: AtomicU64,
    dead: AtomicU64,
    crashed: AtomicU64,
    stale: AtomicU64,
    rescued: AtomicU64,
}

impl Meter {
    fn note(&self, concluded: Concluded) {
        let counter = match concluded {
            Concluded::Done => &self.done,
            Concluded::Retried => &self.retried,
            Concluded::Released => &self.released,
            Concluded::Parked => &self.parked,
            Concluded::Dead => &self.dead,
            Concluded::Crashed => &self.crashed,
            Concluded::Stale => &self.stale,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Counters {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            claimed: of(&self.claimed),
            done: of(&self.done),
            retried: of(&self.retried),
            released: of(&self.released),
            parked: of(&self.parked),
            dead: of(&self.dead),
            crashed: of(&self.crashed),
            stale: of(&self.stale),
            rescued: of(&self.rescued),
        }
    }
}

/// The engine of a store. Dropping it without [`Engine::stop`] interrupts what is under way.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    dispatcher: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    store: Store,
    kinds: Vec<Arc<Kind>>,
    options: EngineOptions,
    desk: Arc<Desk>,
    meter: Meter,
    /// Rung when the dispatcher has something to do that the store does not announce.
    bell: Notify,
    /// Rung when the last lease has ended.
    idle: Notify,
    stopping: AtomicBool,
    /// Set when performs are not waited for any longer.
    cut: watch::Sender<bool>,
    next_upkeep: Mutex<Duration>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("in_flight", &self.desk.in_flight()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Takes up what earlier runs of the process left, and works until [`Engine::stop`].
    ///
    /// # Errors
    /// [`EngineError::Guest`] for a guest's store; else what the store refuses.
    pub async fn start(store: Store, catalog: Catalog, options: EngineOptions) -> Result<Self, EngineError> {
        let announcements = store.listen(Topic::Jobs);
        let engine = Self::prepare(store, catalog, options).await?;
        let dispatcher = tokio::spawn(dispatch(Arc::clone(&engine.shared), announcements));
        *engine.dispatcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(dispatcher);
        Ok(engine)
    }

    /// Takes up what earlier runs left, and then works only when [`Engine::step`] is called.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub async fn prepare(
        store: Store,
        catalog: Catalog,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        if store.access() == Access::Guest {
            return Err(EngineError::Guest);
        }
        let kinds = catalog.into_kinds();
        let shared = Arc::new(Shared {
            desk: Arc::new(Desk::new(kinds.len())),
            kinds,
            options,
            meter: Meter::default(),
            bell: Notify::new(),
            idle: Notify::new(),
            stopping: AtomicBool::new(false),
            cut: watch::Sender::new(false),
            next_upkeep: Mutex::new(store.clock().monotonic() + UPKEEP),
            store,
        });
        shared.take_up().await?;
        Ok(Self { shared, dispatcher: Mutex::new(None) })
    }

    /// Claims what is due and works it off, one after the other, in the order it was claimed. Answers
    /// how many jobs that were. With a store that runs inline, everything happens on the caller's
    /// thread and in one order.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn step(&self) -> Result<usize, StoreError> {
        let round = self.shared.round().await?;
        let taken = round.leases.len();
        for lease in round.leases {
            Box::pin(work_off(Arc::clone(&self.shared), Arc::new(lease))).await;
        }
        self.shared.all_ended().await;
        self.shared.bury_broken().await?;
        Ok(taken)
    }

    /// When the next job is due: in the past, if it is due already.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        let kinds: Vec<&'static str> = self.shared.kinds.iter().map(|kind| kind.name).collect();
        self.shared
            .store
            .read(move |reader| {
                let mut soonest = None;
                for kind in kinds {
                    let due = queue::next_due(reader, kind)?;
                    soonest = soonest.into_iter().chain(due).min();
                }
                Ok(soonest)
            })
            .await
    }

    /// Looks for work now. Enqueueing does that by itself, in this process.
    pub fn wake(&self) {
        self.shared.bell.notify_one();
    }

    /// Claims nothing more, waits for what is under way up to `grace`, and gives the rest back without
    /// counting an attempt; what may have had an effect is parked with its resolver instead.
    pub async fn stop(&self, grace: Duration) {
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::SeqCst);
        shared.bell.notify_one();
        let dispatcher = self.dispatcher.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(dispatcher) = dispatcher
            && let Err(error) = dispatcher.await
        {
            tracing::error!(%error, "the dispatcher ended by a panic");
        }
        tokio::select! {
            biased;
            () = shared.all_ended() => {}
            () = shared.store.clock().sleep(grace) => {
                shared.cut.send_replace(true);
                shared.all_ended().await;
            }
        }
        if let Err(error) = shared.bury_broken().await {
            tracing::warn!(%error, "leases were left to the next start");
        }
    }

    /// What has been done and what there is to do.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn stats(&self) -> Result<Stats, StoreError> {
        let (jobs, dead) = self
            .shared
            .store
            .read(|reader| Ok::<_, StoreError>((count(reader)?, dead_letter::count(reader)?)))
            .await?;
        let names = self.shared.kinds.iter().map(|kind| kind.name);
        let in_flight = names.zip(self.shared.desk.in_flight_by_kind()).collect();
        Ok(Stats { jobs, dead, in_flight, counters: self.counters() })
    }

    /// How leases ended here so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.meter.read()
    }

    /// How many jobs are under way here.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.shared.desk.in_flight()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.cut.send_replace(true);
        self.shared.bell.notify_one();
    }
}

/// Claims and starts work until the engine stops or the store fails.
async fn dispatch(shared: Arc<Shared>, mut announcements: Listener) {
    while !shared.stopping.load(Ordering::SeqCst) {
        let wait = match shared.round().await {
            Ok(round) => {
                for lease in round.leases {
                    tokio::spawn(work_off(Arc::clone(&shared), Arc::new(lease)));
                }
                round.wait
            }
            Err(StoreError::Failed(_) | StoreError::Closed) => return,
            Err(error) => {
                tracing::warn!(%error, "claiming failed");
                BACKSTOP
            }
        };
        if wait.is_zero() {
            continue;
        }
        tokio::select! {
            biased;
            () = shared.bell.notified() => {}
            () = announcements.heard() => {}
            () = shared.store.clock().sleep(wait) => {}
        }
    }
}

/// Performs a leased job and hands its outcome to the writer, without waiting for it.
async fn work_off(shared: Arc<Shared>, lease: Arc<Lease>) {
    let Some(kind) = shared.kinds.get(lease.kind).map(Arc::clone) else { return };
    let ended = perform(&shared, &kind, &lease).await;
    let record = {
        let (lease, chance) = (Arc::clone(&lease), shared.store.chance().clone());
        move |tx: &mut Tx| conclude(tx, &kind, &lease, &ended, &chance)
    };
    let done = {
        let (shared, lease) = (Arc::clone(&shared), Arc::clone(&lease));
        move |result| shared.concluded(lease, result)
    };
    if let Err(error) = shared.store.submit(record, done).await {
        shared.concluded(lease, Err(error));
    }
}

/// Performs within the deadline of the kind, and until the engine cuts it short.
async fn perform(shared: &Shared, kind: &Kind, lease: &Lease) -> Ended {
    let (input, attempt) = (&lease.input, &lease.attempt);
    if let Some(condemned) = attempt.condemned {
        let why = format!("{} after {} crashes", condemned.as_str(), attempt.crashes);
        return ended(kind.conclude(input, Trouble::GiveUp { class: condemned.as_str().into(), why }));
    }
    let performing = catch_panic(kind.perform(input, attempt, shared.store.read_only()));
    let deadline = async { shared.store.clock().sleep(kind.policy.deadline).await };
    let cut = async { drop(shared.cut.subscribe().wait_for(|cut| *cut).await) };
    tokio::select! {
        biased;
        performed = performing => match performed {
            Ok(performed) => ended(performed),
            Err(panic) => Ended::Crashed(panic),
        },
        () = deadline => ended(kind.conclude(input, overdue(kind, input))),
        () = cut => Ended::Interrupted,
    }
}

fn ended(performed: Performed) -> Ended {
    match performed {
        Ok(record) => Ended::Outcome(record),
        Err(why) => Ended::Unreadable(why),
    }
}

/// What was dropped in the middle may have had its effect, if the kind says that this matters.
fn overdue(kind: &Kind, input: &[u8]) -> Trouble {
    let why = format!("not performed within {:?}", kind.policy.deadline);
    match kind.resolver {
        Some(resolver) => {
            Trouble::Unknown { why, resolver: Resolver { kind: resolver, input: input.to_vec() } }
        }
        None => Trouble::Again { after: None, why },
    }
}

/// Turns a panic of `future` into an answer, so that it takes nobody else down.
async fn catch_panic<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = pin!(future);
    std::future::poll_fn(move |context| {
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(panic) => Poll::Ready(Err(panic_text(panic.as_ref()).to_owned())),
        }
    })
    .await
}

/// What one look at the queue brought.
struct Round {
    leases: Vec<Lease>,
    /// How long until the next look, if nobody rings. Zero: at once.
    wait: Duration,
}

impl Shared {
    /// One look at the queue: cleans up if that is due, and leases what there is room for.
    async fn round(&self) -> Result<Round, StoreError> {
        self.bury_broken().await?;
        self.keep_up().await?;
        let now = self.store.now();
        let (kinds, left) = self.desk.room(&self.kinds, self.options.concurrency);
        let looks = self.desk.looks(now, LOOKS);
        let claimed = if left == 0 {
            Claimed { short: (0..kinds.len()).collect(), ..Claimed::default() }
        } else {
            let order = Order { me: self.store.incarnation(), most: left.min(CLAIM), kinds, looks };
            let desk = Arc::clone(&self.desk);
            self.store.write(move |tx| claim::claim(tx, &desk, &order)).await?
        };
        let at_once = self.desk.take(&claimed, &self.kinds, self.options.concurrency, now);
        self.meter
            .claimed
            .fetch_add(u64::try_from(claimed.leases.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let next = claimed.next_due.into_iter().chain(self.desk.next_look(now)).min();
        let wait = next.map_or(BACKSTOP, |at| at.since(self.store.now()).min(BACKSTOP));
        Ok(Round { leases: claimed.leases, wait: if at_once { Duration::ZERO } else { wait } })
    }

    /// At boot: what earlier incarnations held is released at once, not when its leases run out.
    async fn take_up(&self) -> Result<(), StoreError> {
        let me = self.store.incarnation();
        let (rescued, waited_for) = self
            .store
            .write(move |tx| {
                queue::beat(tx, me)?;
                Ok::<_, StoreError>((queue::rescue_earlier(tx)?, queue::waited_for(tx)?))
            })
            .await?;
        self.meter.rescued.fetch_add(rescued, Ordering::Relaxed);
        self.desk.look_at_all(waited_for);
        Ok(())
    }

    /// Now and then: says that this incarnation lives, ends what is past its time, cleans up.
    async fn keep_up(&self) -> Result<(), StoreError> {
        let now = self.store.clock().monotonic();
        {
            let mut next = self.next_upkeep.lock().unwrap_or_else(PoisonError::into_inner);
            if now < *next {
                return Ok(());
            }
            *next = now + UPKEEP;
        }
        let me = self.store.incarnation();
        let patience: Vec<(&'static str, Duration)> = self
            .kinds
            .iter()
            .filter_map(|kind| kind.policy.target.map(|target| (kind.name, target.held_at_most)))
            .collect();
        let (rescued, waited_for) = self
            .store
            .write(move |tx| {
                let now = tx.now();
                queue::beat(tx, me)?;
                let rescued = queue::rescue_expired(tx, me, now - DEAD_AFTER)?;
                for (kind, held_at_most) in &patience {
                    queue::condemn_held(tx, kind, now - *held_at_most, SWEEP)?;
                }
                queue::forget_incarnations(tx, now - REMEMBERED)?;
                idempotency::forget_expired(tx, SWEEP)?;
                Ok::<_, StoreError>((rescued, queue::waited_for(tx)?))
            })
            .await?;
        self.meter.rescued.fetch_add(rescued, Ordering::Relaxed);
        self.desk.look_at_all(waited_for);
        Ok(())
    }

    /// The writer's answer to an outcome. Runs on its thread.
    fn concluded(&self, lease: Arc<Lease>, result: Result<Concluded, StoreError>) {
        let wanted = match result {
            Ok(concluded) => {
                self.meter.note(concluded);
                self.desk.give_back(&lease)
            }
            Err(StoreError::Failed(_) | StoreError::Closed) => self.desk.give_back(&lease),
            Err(error) => {
                tracing::error!(job = %lease.attempt.job, %error, "an outcome could not be recorded");
                self.desk.set_broken(lease, error.to_string());
                true
            }
        };
        if wanted {
            self.bell.notify_one();
        }
        if self.desk.all_ended() {
            self.idle.notify_waiters();
        }
    }

    /// Ends the leases whose outcome could not be recorded, as crashes.
    async fn bury_broken(&self) -> Result<(), StoreError> {
        for (lease, why) in self.desk.take_broken() {
            let Some(kind) = self.kinds.get(lease.kind).map(Arc::clone) else { continue };
            let (ended, chance, theirs) =
                (Ended::Crashed(why.clone()), self.store.chance().clone(), Arc::clone(&lease));
            match self.store.write(move |tx| conclude(tx, &kind, &theirs, &ended, &chance)).await {
                Ok(concluded) => {
                    self.meter.note(concluded);
                    self.desk.give_back(&lease);
                }
                Err(error) => {
                    self.desk.set_broken(lease, why);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Waits until every lease has ended, or waits only to be buried.
    async fn all_ended(&self) {
        loop {
            let mut rung = pin!(self.idle.notified());
            rung.as_mut().enable();
            if self.desk.all_ended() {
                return;
            }
            rung.await;
        }
    }
}

//! Leases, fences, targets, the unknown, and what a crash leaves behind.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use domain::backoff::Backoff;
use domain::breaker::{Breaker, BreakerPolicy};
use domain::chance::Chance;
use domain::id::{Incarnation, JobId};
use domain::time::{Clock, Timestamp};
use durable::engine::dead_letter::{self, DeadLetter, Revived};
use durable::engine::{
    AfterCrash, Attempt, Catalog, Condemned, Engine, EngineError, EngineOptions, EnqueueOptions, Enqueued,
    Job, JobState, Next, Policy, Recording, Release, Resolver, TargetPolicy, Trouble, Work, cancel, enqueue,
    ensure, find, gate, hasten, list,
};
use durable::params;
use durable::store::{Access, Query, ReadOnly, Store, StoreError, StoreOptions, Threading, Tx};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::time::HandClock;
use crate::{breathe, fresh, reopen};

/// What a probe does, decided by the name in its input.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Act {
    Succeed,
    Fail,
    FailTarget(Option<Duration>),
    GiveUp,
    BeUnsure,
    Panic,
    /// Waits until the test rings.
    Hang,
    Recur(Duration),
    GiveBack(Duration),
}

/// The test's side of all probes.
#[derive(Default)]
struct Stage {
    acts: Mutex<BTreeMap<String, Act>>,
    performed: Mutex<Vec<(String, Attempt)>>,
    verdicts: Mutex<BTreeMap<String, Release>>,
    bell: Notify,
    started: Notify,
}

impl Stage {
    fn set(&self, name: &str, act: Act) {
        self.acts.lock().unwrap().insert(name.to_owned(), act);
    }

    fn find_out(&self, name: &str, release: Release) {
        self.verdicts.lock().unwrap().insert(name.to_owned(), release);
    }

    fn performed(&self) -> Vec<String> {
        self.performed.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
    }

    fn forget_performed(&self) {
        self.performed.lock().unwrap().clear();
    }

    fn attempts(&self, name: &str) -> Vec<u32> {
        let performed = self.performed.lock().unwrap();
        performed.iter().filter(|(other, _)| other == name).map(|(_, attempt)| attempt.attempt).collect()
    }

    async fn act(&self, name: &str, attempt: &Attempt) -> Result<Act, Trouble> {
        self.performed.lock().unwrap().push((name.to_owned(), attempt.clone()));
        self.started.notify_one();
        let act = self.acts.lock().unwrap().get(name).cloned().unwrap_or(Act::Succeed);
        match act {
            Act::Succeed | Act::Recur(_) | Act::GiveBack(_) => Ok(act),
            Act::Fail => Err(Trouble::Again { after: None, why: "try later".into() }),
            Act::FailTarget(after) => Err(Trouble::Again { after, why: "target down".into() }),
            Act::GiveUp => Err(Trouble::GiveUp { class: "refused".into(), why: "never".into() }),
            Act::BeUnsure => Err(Trouble::Unknown {
                why: "no answer".into(),
                resolver: Resolver::of::<FindOut>(&name.to_owned()).unwrap(),
            }),
            Act::Panic => panic!("stumbled"),
            Act::Hang => {
                self.bell.notified().await;
                Ok(Act::Succeed)
            }
        }
    }
}

trait Named: Send + Sync + 'static {
    const KIND: &'static str;
    const AFTER_CRASH: AfterCrash = AfterCrash::Rerun;
}

struct Plain;
impl Named for Plain {
    const KIND: &'static str = "plain";
}

struct Call;
impl Named for Call {
    const KIND: &'static str = "call";
}

struct Send1;
impl Named for Send1 {
    const KIND: &'static str = "send";
    const AFTER_CRASH: AfterCrash = AfterCrash::Resolve(FindOut::KIND);
}

struct Probe<N>(Arc<Stage>, PhantomData<N>);

impl<N: Named> Work for Probe<N> {
    const KIND: &'static str = N::KIND;
    const AFTER_CRASH: AfterCrash = N::AFTER_CRASH;
    type Input = String;
    type Fact = Act;

    async fn perform(&self, name: &String, attempt: &Attempt, _: &ReadOnly) -> Result<Act, Trouble> {
        self.0.act(name, attempt).await
    }

    fn record(
        recording: &mut Recording<'_>,
        name: &String,
        attempt: &Attempt,
        outcome: Result<&Act, &Trouble>,
    ) -> Result<Next, StoreError> {
        let word = match (outcome, attempt.condemned) {
            (_, Some(condemned)) => condemned.as_str(),
            (Ok(_), None) => "ok",
            (Err(_), None) => "trouble",
        };
        note(recording, name, word)?;
        assert_ne!(name, "unrecordable", "record stumbled");
        match outcome {
            Ok(_) => recording.target_succeeded()?,
            Err(Trouble::Again { after, why }) if why == "target down" => recording.target_failed(*after)?,
            Err(_) => {}
        }
        if name == "hasty" {
            return Ok(Next::Retry);
        }
        Ok(match outcome {
            Ok(Act::Recur(span)) => Next::Again { at: recording.now() + *span },
            Ok(Act::GiveBack(span)) => Next::Released { at: recording.now() + *span },
            other => Recording::usual(other),
        })
    }
}

fn note(tx: &mut Tx, name: &str, word: &str) -> Result<(), StoreError> {
    tx.execute("insert into ledger (name, word) values ($1, $2)", params![name, word]).map(|_| ())
}

/// Finds out what became of a parked job, when the test knows it.
struct FindOut(Arc<Stage>);

impl Work for FindOut {
    const KIND: &'static str = "find_out";
    const AFTER_CRASH: AfterCrash = AfterCrash::Rerun;
    type Input = String;
    type Fact = Option<Release>;

    async fn perform(&self, name: &String, _: &Attempt, _: &ReadOnly) -> Result<Option<Release>, Trouble> {
        Ok(self.0.verdicts.lock().unwrap().get(name).cloned())
    }

    fn record(
        recording: &mut Recording<'_>,
        _: &String,
        _: &Attempt,
        outcome: Result<&Option<Release>, &Trouble>,
    ) -> Result<Next, StoreError> {
        if let Ok(Some(release)) = outcome {
            recording.release(release)?;
        }
        // Also without a verdict: the engine must not let it end like that.
        Ok(Next::Done)
    }
}

/// So short that no deadline passes while a test waits.
const MOMENT: Duration = Duration::from_micros(200);

const SECOND: Duration = Duration::from_secs(1);

fn policy() -> Policy {
    Policy {
        backoff: Backoff { initial: SECOND, cap: 60 * SECOND, jitter_percent: 0 },
        max_attempts: 4,
        max_crashes: 3,
        deadline: 10 * SECOND,
        ..Policy::default()
    }
}

fn target_policy() -> TargetPolicy {
    TargetPolicy {
        concurrency: 8,
        breaker: BreakerPolicy { trip_after: 3, pause: 30 * SECOND, pause_cap: 600 * SECOND },
        held_at_most: 3600 * SECOND,
    }
}

fn catalog(stage: &Arc<Stage>, target: TargetPolicy) -> Catalog {
    let mut catalog = Catalog::new();
    let calling = Policy { target: Some(target), ..policy() };
    catalog.register(Probe::<Plain>(Arc::clone(stage), PhantomData), policy()).unwrap();
    catalog.register(Probe::<Call>(Arc::clone(stage), PhantomData), calling).unwrap();
    catalog.register(Probe::<Send1>(Arc::clone(stage), PhantomData), policy()).unwrap();
    catalog.register(FindOut(Arc::clone(stage)), policy()).unwrap();
    catalog
}

/// An engine that moves only when told to.
struct Bench {
    stage: Arc<Stage>,
    store: Store,
    clock: Arc<HandClock>,
    engine: Engine,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        Self::with(target_policy()).await
    }

    async fn with(target: TargetPolicy) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, clock) = fresh(&dir, Threading::Inline);
        ledger(&store).await;
        let stage = Arc::<Stage>::default();
        let engine =
            Engine::prepare(store.clone(), catalog(&stage, target), EngineOptions::default()).await.unwrap();
        Self { stage, store, clock, engine, _dir: dir }
    }

    async fn enqueue<N: Named>(&self, name: &str, options: EnqueueOptions) -> Enqueued {
        let name = name.to_owned();
        self.store.write(move |tx| enqueue::<Probe<N>>(tx, &name, options.clone())).await.unwrap()
    }

    async fn plain(&self, name: &str) -> JobId {
        self.enqueue::<Plain>(name, EnqueueOptions::default()).await.job()
    }

    async fn call(&self, name: &str, target: &str) -> JobId {
        self.enqueue::<Call>(
            name,
            EnqueueOptions { target: Some(target.into()), ..EnqueueOptions::default() },
        )
        .await
        .job()
    }

    /// Steps until nothing is due.
    async fn settle(&self) {
        while self.engine.step().await.unwrap() > 0 {}
    }

    async fn pass(&self, span: Duration) {
        self.clock.advance(span);
        self.settle().await;
    }

    fn job(&self, id: JobId) -> Option<Job> {
        self.store.read_now(|r| find(r, id)).unwrap()
    }

    fn jobs(&self) -> Vec<Job> {
        self.store.read_now(|r| list(r, None, 10_000)).unwrap()
    }

    fn dead(&self) -> Vec<DeadLetter> {
        self.store.read_now(|r| dead_letter::list(r, None, 100)).unwrap()
    }

    fn ledger(&self) -> Vec<(String, String)> {
        read_ledger(&self.store)
    }

    fn breaker(&self, target: &str) -> Breaker {
        self.store.read_now(|r| gate::find(r, target)).unwrap()
    }
}

async fn ledger(store: &Store) {
    store
        .write(|tx| tx.execute("create table if not exists ledger (name text, word text)", params![]))
        .await
        .unwrap();
}

fn read_ledger(store: &Store) -> Vec<(String, String)> {
    store
        .read_now(|r| {
            r.query("select name, word from ledger order by rowid", params![], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
        })
        .unwrap()
}

fn row(name: &str, word: &str) -> (String, String) {
    (name.into(), word.into())
}

// ---- leases and fences -------------------------------------------------------------------------

#[tokio::test]
async fn a_stolen_lease_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _clock) = fresh(&dir, Threading::Threads);
    ledger(&store).await;
    let stage = Arc::<Stage>::default();
    stage.set("slow", Act::Hang);
    let engine = Engine::start(store.clone(), catalog(&stage, target_policy()), EngineOptions::default())
        .await
        .unwrap();
    let job = store
        .write(|tx| enqueue::<Probe<Plain>>(tx, &"slow".into(), EnqueueOptions::default()))
        .await
        .unwrap()
        .job();
    stage.started.notified().await;

    // Somebody believes this worker dead and takes the lease; the first holder comes back late.
    store
        .write(move |tx| {
            let thief = Incarnation::mint(tx.now(), &Chance::from_seed(99));
            tx.execute("update job set epoch = epoch + 1, worker = $2 where id = $1", params![job, thief])
        })
        .await
        .unwrap();
    stage.bell.notify_one();
    engine.stop(Duration::from_secs(3600)).await;

    assert_eq!(read_ledger(&store), []);
    assert_eq!(engine.counters().stale, 1);
    let after = store.read_now(|r| find(r, job)).unwrap().unwrap();
    assert_eq!((after.state, after.epoch, after.attempt), (JobState::Leased, 2, 0));
}

#[tokio::test]
async fn a_cancelled_job_is_gone_and_its_worker_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _clock) = fresh(&dir, Threading::Threads);
    ledger(&store).await;
    let stage = Arc::<Stage>::default();
    stage.set("slow", Act::Hang);
    let engine = Engine::start(store.clone(), catalog(&stage, target_policy()), EngineOptions::default())
        .await
        .unwrap();
    let job = store
        .write(|tx| enqueue::<Probe<Plain>>(tx, &"slow".into(), EnqueueOptions::default()))
        .await
        .unwrap()
        .job();
    stage.started.notified().await;
    assert_eq!(store.write(move |tx| cancel(tx, job)).await, Ok(true));
    assert_eq!(store.write(move |tx| cancel(tx, job)).await, Ok(false));
    stage.bell.notify_one();
    engine.stop(Duration::from_secs(3600)).await;
    assert_eq!(read_ledger(&store), []);
    assert_eq!(engine.counters().stale, 1);
}

#[tokio::test]
async fn what_an_earlier_run_held_is_taken_up_at_boot() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = fresh(&dir, Threading::Inline);
    ledger(&store).await;
    let (rerun, resolve) = store
        .write(|tx| {
            let rerun = enqueue::<Probe<Plain>>(tx, &"rerun".into(), EnqueueOptions::default())?.job();
            let resolve = enqueue::<Probe<Send1>>(tx, &"resolve".into(), EnqueueOptions::default())?.job();
            // As a run leaves it that was killed while it performed.
            let gone = Incarnation::mint(tx.now(), &Chance::from_seed(99));
            tx.execute(
                "update job set state = 1, epoch = 1, worker = $1, lease_until = $2",
                params![gone, tx.now() + Duration::from_secs(3600)],
            )?;
            Ok::<_, StoreError>((rerun, resolve))
        })
        .await
        .unwrap();
    let stage = Arc::<Stage>::default();
    let engine = Engine::prepare(store.clone(), catalog(&stage, target_policy()), EngineOptions::default())
        .await
        .unwrap();
    assert_eq!(engine.counters().rescued, 2);

    // No time has passed, and it works.
    while engine.step().await.unwrap() > 0 {}
    assert_eq!(stage.performed(), ["rerun"]);
    let attempt = stage.performed.lock().unwrap()[0].1.clone();
    assert_eq!((attempt.job, attempt.attempt, attempt.crashes), (rerun, 1, 1));

    // The other may have had its effect: it is parked until somebody knows.
    let parked = store.read_now(|r| find(r, resolve)).unwrap().unwrap();
    assert_eq!((parked.state, parked.crashes), (JobState::Parked, 1));
    stage.find_out("resolve", Release::Rerun { at: clock.now() });
    clock.advance(SECOND);
    while engine.step().await.unwrap() > 0 {}
    assert_eq!(stage.performed(), ["rerun", "resolve"]);
    assert_eq!(store.read_now(|r| list(r, None, 10)).unwrap(), []);
}

#[tokio::test]
async fn a_lease_of_a_dead_incarnation_is_rescued_and_that_of_a_living_one_is_not() {
    let bench = Bench::new().await;
    let (dead, alive) = (bench.plain("dead").await, bench.plain("alive").await);
    let lease = |tx: &mut Tx, job: JobId, seed: u64| {
        let worker = Incarnation::mint(tx.now(), &Chance::from_seed(seed));
        let until = tx.now() + Duration::from_secs(3600);
        tx.execute(
            "update job set state = 1, epoch = 1, worker = $2, lease_until = $3 where id = $1",
            params![job, worker, until],
        )?;
        Ok::<_, StoreError>(worker)
    };
    let beat = |tx: &mut Tx, worker: Incarnation| {
        let now = tx.now();
        tx.execute("insert into incarnation (id, started_at, beat_at) values ($1, $2, $2) on conflict (id) do update set beat_at = $2", params![worker, now])
    };
    let living = bench
        .store
        .write(move |tx| {
            lease(tx, dead, 101)?;
            let living = lease(tx, alive, 102)?;
            beat(tx, living)?;
            Ok::<_, StoreError>(living)
        })
        .await
        .unwrap();
    for _ in 0..5 {
        bench.store.write(move |tx| beat(tx, living)).await.unwrap();
        bench.pass(6 * SECOND).await;
    }
    assert_eq!(bench.stage.performed(), ["dead"]);
    assert_eq!(bench.job(alive).unwrap().state, JobState::Leased);
    bench.pass(30 * SECOND).await;
    assert_eq!(bench.stage.performed(), ["dead", "alive"]);
}

#[tokio::test]
async fn after_a_kill_every_acknowledged_job_is_recorded_exactly_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut acknowledged = Vec::new();
    for round in 1..=3usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["engine::child_that_is_killed", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, &path)
            .env("DURABLE_TEST_CHILD_ROUND", round.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut heard = 0;
        while heard < 200 * round {
            let line = lines.next().expect("the child speaks until it is killed").unwrap();
            if let Some((_, name)) = line.rsplit_once("ack ") {
                acknowledged.push(name.to_owned());
                heard += 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let store = reopen(&path, Threading::Inline, &HandClock::new());
    let stage = Arc::<Stage>::default();
    let engine = Engine::prepare(store.clone(), catalog(&stage, target_policy()), EngineOptions::default())
        .await
        .unwrap();
    while engine.step().await.unwrap() > 0 {}
    let mut recorded: BTreeMap<String, u32> = BTreeMap::new();
    for (name, word) in read_ledger(&store) {
        assert_eq!(word, "ok");
        *recorded.entry(name).or_default() += 1;
    }
    let wrong: Vec<_> = acknowledged.iter().filter(|name| recorded.get(*name) != Some(&1)).collect();
    assert!(wrong.is_empty(), "lost or doubled: {wrong:?}");
    assert!(recorded.values().all(|count| *count == 1));
    assert_eq!(store.read_now(|r| list(r, None, 10)).unwrap(), []);
}

const CHILD: &str = "DURABLE_TEST_ENGINE_CHILD_DB";

/// Not a test of its own: the child's body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_is_killed() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let round = std::env::var("DURABLE_TEST_CHILD_ROUND").unwrap();
    let chance = Chance::from_system().unwrap();
    let store = Store::open(path, StoreOptions::default(), HandClock::new(), chance).unwrap();
    ledger(&store).await;
    let stage = Arc::<Stage>::default();
    let _engine = Engine::start(store.clone(), catalog(&stage, target_policy()), EngineOptions::default())
        .await
        .unwrap();
    let mut callers = Vec::new();
    for caller in 0..16 {
        let (store, round) = (store.clone(), round.clone());
        callers.push(tokio::spawn(async move {
            for n in 0.. {
                let name = format!("{round}-{caller}-{n}");
                let input = name.clone();
                store
                    .write(move |tx| enqueue::<Probe<Plain>>(tx, &input, EnqueueOptions::default()))
                    .await
                    .unwrap();
                let mut out = std::io::stdout().lock();
                writeln!(out, "ack {name}").unwrap();
                out.flush().unwrap();
            }
        }));
    }
    for caller in callers {
        caller.await.unwrap();
    }
}

#[tokio::test]
async fn only_the_owner_runs_an_engine() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = fresh(&dir, Threading::Inline);
    let options =
        StoreOptions { access: Access::Guest, threading: Threading::Inline, ..StoreOptions::default() };
    let guest = Store::open(dir.path().join("db"), options, clock, Chance::from_seed(1)).unwrap();
    let refused = Engine::prepare(guest, Catalog::new(), EngineOptions::default()).await;
    assert_eq!(refused.err(), Some(EngineError::Guest));
    drop(store);
}

// ---- outcomes ----------------------------------------------------------------------------------

#[tokio::test]
async fn failures_are_retried_after_the_backoff_and_end_as_a_dead_letter() {
    let bench = Bench::new().await;
    bench.stage.set("bad", Act::Fail);
    let job = bench.plain("bad").await;
    bench.settle().await;
    assert_eq!(bench.job(job).unwrap().last_error.as_deref(), Some("try later"));
    for wait in [1, 2, 4] {
        let tries = bench.stage.attempts("bad").len();
        bench.pass(wait * SECOND - Duration::from_millis(1)).await;
        assert_eq!(bench.stage.attempts("bad").len(), tries, "not before its time");
        bench.pass(Duration::from_millis(1)).await;
    }
    assert_eq!(bench.stage.attempts("bad"), [1, 2, 3, 4]);
    let dead = bench.dead();
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].id, dead[0].class.as_str(), dead[0].attempt), (job, "exhausted", 4));
    assert_eq!(bench.job(job), None);

    bench.stage.set("bad", Act::Succeed);
    assert_eq!(bench.store.write(move |tx| dead_letter::revive(tx, job)).await, Ok(Revived::Yes));
    assert_eq!(bench.store.write(move |tx| dead_letter::revive(tx, job)).await, Ok(Revived::NotFound));
    bench.settle().await;
    assert_eq!(bench.stage.attempts("bad"), [1, 2, 3, 4, 1]);
    assert_eq!(bench.dead(), []);
}

#[tokio::test]
async fn a_revived_job_has_a_higher_epoch_than_any_lease_before_its_death() {
    let bench = Bench::new().await;
    bench.stage.set("bad", Act::GiveUp);
    let job = bench.plain("bad").await;
    bench.settle().await;
    assert_eq!(bench.dead()[0].class, "refused");
    assert_eq!(bench.job(job), None);
    bench.store.write(move |tx| dead_letter::revive(tx, job)).await.unwrap();
    assert_eq!(bench.job(job).unwrap().epoch, 3, "leased as 1, buried as 2");
}

#[tokio::test]
async fn a_panic_is_a_crash_and_too_many_of_them_condemn_the_job() {
    let bench = Bench::new().await;
    bench.stage.set("mine", Act::Panic);
    let job = bench.plain("mine").await;
    bench.clock.advance(Duration::from_millis(1));
    bench.plain("other").await;
    bench.settle().await;
    assert_eq!(bench.stage.performed(), ["mine", "other"], "a panic takes nobody else down");
    let after = bench.job(job).unwrap();
    assert_eq!((after.attempt, after.crashes, after.last_error.as_deref()), (0, 1, Some("stumbled")));
    for _ in 0..4 {
        bench.pass(10 * SECOND).await;
    }
    assert_eq!(bench.stage.attempts("mine"), [1, 1, 1], "crashes are not attempts, and have their cap");
    assert_eq!(
        bench.ledger(),
        [row("other", "ok"), row("mine", "crash_loop")],
        "the noun hears of its death"
    );
    assert_eq!(bench.dead()[0].class, "crash_loop");
}

#[tokio::test]
async fn an_outcome_that_cannot_be_recorded_is_undone_and_counts_as_a_crash() {
    let bench = Bench::new().await;
    let job = bench.plain("unrecordable").await;
    bench.settle().await;
    let after = bench.job(job).unwrap();
    assert_eq!((after.state, after.crashes), (JobState::Ready, 1));
    assert!(after.last_error.unwrap().contains("record stumbled"));
    for _ in 0..4 {
        bench.pass(10 * SECOND).await;
    }
    assert_eq!(bench.ledger(), []);
    assert_eq!(bench.dead()[0].class, "crash_loop", "also when even its death cannot be recorded");
    assert_eq!(bench.engine.in_flight(), 0);
}

#[tokio::test]
async fn input_that_cannot_be_read_is_a_dead_letter() {
    let bench = Bench::new().await;
    let job = bench.plain("x").await;
    bench
        .store
        .write(move |tx| tx.execute("update job set input = $2 where id = $1", params![job, b"{".as_slice()]))
        .await
        .unwrap();
    bench.settle().await;
    assert_eq!(bench.dead()[0].class, "unreadable_input");
    assert_eq!(bench.stage.performed(), Vec::<String>::new());
}

#[tokio::test]
async fn recurring_and_released_work_comes_back_without_counting() {
    let bench = Bench::new().await;
    bench.stage.set("tick", Act::Recur(60 * SECOND));
    bench.stage.set("later", Act::GiveBack(60 * SECOND));
    bench.plain("tick").await;
    bench.plain("later").await;
    bench.settle().await;
    for _ in 0..9 {
        bench.pass(60 * SECOND).await;
    }
    assert_eq!(bench.stage.attempts("tick"), [1; 10]);
    assert_eq!(bench.stage.attempts("later"), [1; 10]);
    assert_eq!(bench.dead(), []);
}

#[tokio::test]
async fn due_jobs_are_performed_in_the_order_they_were_due_and_no_sooner() {
    let bench = Bench::new().await;
    let now = bench.clock.now();
    for (name, due) in [("third", 3), ("first", 1), ("second", 2)] {
        let due_at = Some(now + due * SECOND);
        bench.enqueue::<Plain>(name, EnqueueOptions { due_at, ..EnqueueOptions::default() }).await;
    }
    bench.settle().await;
    assert_eq!(bench.stage.performed(), Vec::<String>::new());
    assert_eq!(bench.engine.next_due().await.unwrap(), Some(now + SECOND));
    bench.pass(10 * SECOND).await;
    assert_eq!(bench.stage.performed(), ["first", "second", "third"]);
}

#[tokio::test]
async fn kinds_that_nobody_registered_are_left_alone() {
    let bench = Bench::new().await;
    let job = bench.plain("x").await;
    bench
        .store
        .write(move |tx| tx.execute("update job set kind = 'from the future'", params![]))
        .await
        .unwrap();
    bench.pass(3600 * SECOND).await;
    assert_eq!(bench.job(job).unwrap().state, JobState::Ready);
}

// ---- enqueueing --------------------------------------------------------------------------------

#[tokio::test]
async fn the_same_id_or_live_unique_key_is_enqueued_once() {
    let bench = Bench::new().await;
    let id = JobId::mint(Timestamp::EPOCH, &Chance::from_seed(3));
    let with_id = EnqueueOptions { id: Some(id), ..EnqueueOptions::default() };
    assert_eq!(bench.enqueue::<Plain>("a", with_id.clone()).await, Enqueued::New(id));
    assert_eq!(bench.enqueue::<Plain>("a", with_id).await, Enqueued::Existing(id));
    let keyed = EnqueueOptions { unique_key: Some("k".into()), ..EnqueueOptions::default() };
    let first = bench.enqueue::<Plain>("b", keyed.clone()).await;
    assert_eq!(bench.enqueue::<Plain>("b", keyed.clone()).await, Enqueued::Existing(first.job()));
    assert!(matches!(bench.enqueue::<Call>("b", keyed.clone()).await, Enqueued::New(_)), "another kind");
    bench.settle().await;
    assert_eq!(bench.stage.performed().len(), 3);
    assert!(matches!(bench.enqueue::<Plain>("b", keyed).await, Enqueued::New(_)), "no longer live");
}

#[tokio::test]
async fn an_id_that_comes_back_does_not_fit_a_lease_of_its_first_life() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = fresh(&dir, Threading::Threads);
    ledger(&store).await;
    let stage = Arc::<Stage>::default();
    stage.set("slow", Act::Hang);
    let engine = Engine::start(store.clone(), catalog(&stage, target_policy()), EngineOptions::default())
        .await
        .unwrap();
    let id = JobId::mint(Timestamp::EPOCH, &Chance::from_seed(3));
    let enqueue = || {
        let options = EnqueueOptions { id: Some(id), ..EnqueueOptions::default() };
        store.write(move |tx| enqueue::<Probe<Plain>>(tx, &"slow".into(), options.clone()))
    };
    enqueue().await.unwrap();
    until(&clock, MOMENT, || stage.performed().len() == 1).await;
    store.write(move |tx| cancel(tx, id)).await.unwrap();
    assert_eq!(enqueue().await.unwrap(), Enqueued::New(id));
    until(&clock, MOMENT, || stage.performed().len() == 2).await;
    // The first of the two to wait is the one whose job was cancelled.
    stage.bell.notify_one();
    until(&clock, MOMENT, || engine.counters().stale == 1).await;
    assert_eq!(read_ledger(&store), []);
    stage.bell.notify_one();
    until(&clock, MOMENT, || engine.counters().done == 1).await;
    assert_eq!(read_ledger(&store), [row("slow", "ok")]);
    engine.stop(SECOND).await;
}

#[tokio::test]
async fn many_waiting_targets_all_get_their_turn() {
    let bench = Bench::new().await;
    let names: Vec<String> = (0..300).map(|n| format!("shop{n:03}")).collect();
    for name in &names {
        let target = name.clone();
        bench
            .store
            .write(move |tx| {
                let until = tx.now() + 30 * SECOND;
                gate::set(tx, &target, Breaker::Tripped { until, trips: 1 })
            })
            .await
            .unwrap();
        bench.call(name, name).await;
    }
    bench.settle().await;
    assert_eq!(bench.stage.performed(), Vec::<String>::new());
    bench.clock.advance(30 * SECOND);
    for _ in 0..10 {
        bench.engine.step().await.unwrap();
    }
    assert_eq!(bench.stage.performed().len(), 300);
}

#[tokio::test]
async fn a_wish_that_comes_while_the_job_is_performed_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _clock) = fresh(&dir, Threading::Threads);
    ledger(&store).await;
    let stage = Arc::<Stage>::default();
    stage.set("poll", Act::Hang);
    let engine = Engine::start(store.clone(), catalog(&stage, target_policy()), EngineOptions::default())
        .await
        .unwrap();
    let keyed = EnqueueOptions { unique_key: Some("k".into()), ..EnqueueOptions::default() };
    let enqueue = || {
        let keyed = keyed.clone();
        store.write(move |tx| enqueue::<Probe<Plain>>(tx, &"poll".into(), keyed.clone()))
    };
    let job = enqueue().await.unwrap().job();
    stage.started.notified().await;
    assert_eq!(enqueue().await.unwrap(), Enqueued::Existing(job));
    assert_eq!(enqueue().await.unwrap(), Enqueued::Existing(job));
    stage.set("poll", Act::Succeed);
    stage.bell.notify_one();
    stage.started.notified().await;
    engine.stop(Duration::from_secs(3600)).await;
    assert_eq!(stage.attempts("poll"), [1, 1], "once more, not twice more");
    assert_eq!(store.read_now(|r| list(r, None, 10)).unwrap(), []);
}

#[tokio::test]
async fn recurring_jobs_are_ensured_once_and_can_be_hastened() {
    let bench = Bench::new().await;
    bench.stage.set("tick", Act::Recur(3600 * SECOND));
    for _ in 0..2 {
        bench.store.write(|tx| ensure::<Probe<Plain>>(tx, "the tick", &"tick".into())).await.unwrap();
    }
    bench.settle().await;
    assert_eq!(bench.stage.attempts("tick").len(), 1);
    let soon = bench.clock.now() + 5 * SECOND;
    assert_eq!(bench.store.write(move |tx| hasten::<Probe<Plain>>(tx, "the tick", soon)).await, Ok(true));
    assert_eq!(bench.store.write(move |tx| hasten::<Probe<Plain>>(tx, "no tick", soon)).await, Ok(false));
    bench.pass(5 * SECOND).await;
    assert_eq!(bench.stage.attempts("tick").len(), 2);
}

// ---- the unknown -------------------------------------------------------------------------------

#[tokio::test]
async fn the_unknown_is_parked_and_only_its_resolver_releases_it() {
    let bench = Bench::new().await;
    bench.stage.set("pay", Act::BeUnsure);
    let job = bench.enqueue::<Send1>("pay", EnqueueOptions::default()).await.job();
    for _ in 0..3 {
        bench.pass(3600 * SECOND).await;
    }
    assert_eq!(bench.job(job).unwrap().state, JobState::Parked, "age changes nothing");
    assert_eq!(bench.stage.attempts("pay"), [1], "while unknown, nothing is retried");

    bench.stage.find_out("pay", Release::Done);
    bench.store.write(|tx| tx.execute("update job set due_at = 0 where state = 0", params![])).await.unwrap();
    let resolvers = bench.jobs().len();
    bench.settle().await;
    if bench.jobs().is_empty() {
        return;
    }
    // The resolver was given up meanwhile: its dead letter can be brought back.
    assert_eq!(resolvers, 1);
    let resolver = bench.dead()[0].id;
    assert_eq!(bench.dead()[0].kind, "find_out");
    bench.store.write(move |tx| dead_letter::revive(tx, resolver)).await.unwrap();
    bench.settle().await;
    assert_eq!(bench.jobs(), []);
    assert_eq!(bench.stage.attempts("pay"), [1]);
}

#[tokio::test]
async fn a_record_that_would_retry_the_unknown_is_overruled() {
    let bench = Bench::new().await;
    bench.stage.set("hasty", Act::BeUnsure);
    let job = bench.enqueue::<Send1>("hasty", EnqueueOptions::default()).await.job();
    bench.pass(3600 * SECOND).await;
    assert_eq!(bench.job(job).unwrap().state, JobState::Parked);
    assert_eq!(bench.stage.attempts("hasty"), [1]);
}

#[tokio::test]
async fn a_resolver_without_a_verdict_looks_again() {
    let bench = Bench::new().await;
    bench.stage.set("pay", Act::BeUnsure);
    let job = bench.enqueue::<Send1>("pay", EnqueueOptions::default()).await.job();
    bench.settle().await;
    let resolver = bench.jobs().into_iter().find(|job| job.kind == "find_out").unwrap();
    assert_eq!((resolver.resolves, resolver.state, resolver.attempt), (Some(job), JobState::Ready, 1));
    bench.stage.find_out("pay", Release::Dead { class: "reverted".into(), why: "on chain".into() });
    bench.pass(SECOND).await;
    assert_eq!(bench.jobs(), []);
    assert_eq!(bench.dead()[0].class, "reverted");
}

#[tokio::test]
async fn a_resolver_of_an_earlier_doubt_cannot_settle_a_later_one() {
    let bench = Bench::new().await;
    bench.stage.set("pay", Act::BeUnsure);
    let job = bench.enqueue::<Send1>("pay", EnqueueOptions::default()).await.job();
    bench.settle().await;
    // As if the job had been released, performed and parked again behind the resolver's back.
    bench
        .store
        .write(move |tx| tx.execute("update job set epoch = epoch + 2 where id = $1", params![job]))
        .await
        .unwrap();
    bench.stage.find_out("pay", Release::Done);
    bench.pass(SECOND).await;
    assert_eq!(bench.job(job).unwrap().state, JobState::Parked);
}

#[tokio::test]
async fn a_crash_or_a_deadline_of_what_may_have_an_effect_is_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = fresh(&dir, Threading::Threads);
    ledger(&store).await;
    let stage = Arc::<Stage>::default();
    stage.set("slow", Act::Hang);
    stage.set("mine", Act::Panic);
    let engine = Engine::start(store.clone(), catalog(&stage, target_policy()), EngineOptions::default())
        .await
        .unwrap();
    let job = |name: &'static str| {
        store.write(move |tx| enqueue::<Probe<Send1>>(tx, &name.into(), EnqueueOptions::default()))
    };
    let (slow, mine) = (job("slow").await.unwrap().job(), job("mine").await.unwrap().job());
    let state = |job| store.read_now(|r| find(r, job)).unwrap().unwrap().state;
    until(&clock, SECOND / 10, || state(slow) == JobState::Parked && state(mine) == JobState::Parked).await;
    assert_eq!(stage.attempts("slow"), [1]);
    engine.stop(SECOND).await;
}

/// Lets time pass, and others run, until something holds.
async fn until(clock: &HandClock, step: Duration, holds: impl Fn() -> bool) {
    for _ in 0..30_000 {
        if holds() {
            return;
        }
        clock.advance(step);
        tokio::task::spawn_blocking(breathe).await.unwrap();
    }
    panic!("it never came to hold");
}

// ---- targets -----------------------------------------------------------------------------------

#[tokio::test]
async fn a_tripped_breaker_holds_jobs_without_costing_attempts_and_lets_them_go_gradually() {
    let bench = Bench::new().await;
    for n in 0..3 {
        bench.stage.set(&format!("bad{n}"), Act::FailTarget(None));
        bench.call(&format!("bad{n}"), "shop").await;
    }
    bench.settle().await;
    assert!(matches!(bench.breaker("shop"), Breaker::Tripped { trips: 1, .. }));
    bench.stage.forget_performed();
    let mut held = Vec::new();
    for n in 0..20 {
        held.push(bench.call(&format!("held{n:02}"), "shop").await);
        bench.clock.advance(Duration::from_millis(1));
    }
    bench.pass(20 * SECOND).await;
    assert_eq!(bench.stage.performed(), Vec::<String>::new(), "no call while it is tripped");
    assert!(held.iter().all(|job| bench.job(*job).unwrap().state == JobState::Held));

    // The pause ends; who waits longest is the probe, and it fails.
    bench.stage.set("held00", Act::FailTarget(None));
    bench.clock.advance(15 * SECOND);
    assert_eq!(bench.engine.step().await.unwrap(), 1);
    assert_eq!(bench.stage.performed(), ["held00"]);
    assert!(matches!(bench.breaker("shop"), Breaker::Tripped { trips: 2, .. }));
    assert_eq!(bench.engine.step().await.unwrap(), 0);
    bench.stage.forget_performed();
    bench.stage.set("held00", Act::Succeed);

    // The next probe is good: two at a time, four, and then all.
    for n in 0..3 {
        bench.stage.set(&format!("bad{n}"), Act::Succeed);
    }
    bench.clock.advance(61 * SECOND);
    let mut waves = Vec::new();
    loop {
        let wave = bench.engine.step().await.unwrap();
        if wave == 0 {
            break;
        }
        waves.push(wave);
    }
    assert_eq!(waves[0], 1, "{waves:?}");
    assert_eq!(waves[1], 2, "{waves:?}");
    assert!(waves.iter().all(|wave| *wave <= 8), "{waves:?}");
    assert_eq!(bench.jobs(), []);
    assert_eq!(bench.breaker("shop"), Breaker::default());
    for n in 1..20 {
        assert_eq!(bench.stage.attempts(&format!("held{n:02}")), [1], "waiting cost no attempt");
    }
    let order: Vec<_> = bench.stage.performed().into_iter().filter(|name| name.starts_with("held")).collect();
    assert!(order[..19].is_sorted(), "the oldest first: {order:?}");
}

#[tokio::test]
async fn a_breaker_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = fresh(&dir, Threading::Inline);
    ledger(&store).await;
    let stage = Arc::<Stage>::default();
    store
        .write(|tx| {
            let until = tx.now() + 30 * SECOND;
            gate::set(tx, "shop", Breaker::Tripped { until, trips: 1 })?;
            enqueue::<Probe<Call>>(
                tx,
                &"a".into(),
                EnqueueOptions { target: Some("shop".into()), ..EnqueueOptions::default() },
            )
        })
        .await
        .unwrap();
    let engine = Engine::prepare(store.clone(), catalog(&stage, target_policy()), EngineOptions::default())
        .await
        .unwrap();
    while engine.step().await.unwrap() > 0 {}
    drop((engine, store));
    let store = reopen(&dir.path().join("db"), Threading::Inline, &clock);
    let engine = Engine::prepare(store.clone(), catalog(&stage, target_policy()), EngineOptions::default())
        .await
        .unwrap();
    clock.advance(29 * SECOND);
    while engine.step().await.unwrap() > 0 {}
    assert_eq!(stage.performed(), Vec::<String>::new());
    assert_eq!(store.read_now(gate::list).unwrap().len(), 1);
    clock.advance(SECOND);
    while engine.step().await.unwrap() > 0 {}
    assert_eq!(stage.performed(), ["a"]);
}

#[tokio::test]
async fn one_slow_target_starves_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = fresh(&dir, Threading::Threads);
    ledger(&store).await;
    let stage = Arc::<Stage>::default();
    let target = TargetPolicy { concurrency: 2, ..target_policy() };
    let options = EngineOptions { concurrency: 8 };
    let engine = Engine::start(store.clone(), catalog(&stage, target), options).await.unwrap();
    for n in 0..300 {
        stage.set(&format!("slow{n}"), Act::Hang);
    }
    store
        .write(|tx| {
            for n in 0..300 {
                let options = EnqueueOptions { target: Some("slow".into()), ..EnqueueOptions::default() };
                enqueue::<Probe<Call>>(tx, &format!("slow{n}"), options)?;
            }
            for n in 0..50 {
                let options =
                    EnqueueOptions { target: Some(format!("quick{}", n % 3)), ..EnqueueOptions::default() };
                enqueue::<Probe<Call>>(tx, &format!("quick{n:02}"), options)?;
                enqueue::<Probe<Plain>>(tx, &format!("plain{n:02}"), EnqueueOptions::default())?;
            }
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
    let count = |prefix: &str| stage.performed().iter().filter(|name| name.starts_with(prefix)).count();
    until(&clock, MOMENT, || count("quick") == 50 && count("plain") == 50).await;
    assert_eq!(count("slow"), 2, "no more than its policy allows");
    let most = store.read_now(|r| {
        r.query_one("select count(*) from job where state = 2", params![], |row| row.get::<u32>(0))
    });
    assert_eq!(most, Ok(298), "set aside, each once");
    // As one of its jobs ends, the next of them begins.
    stage.bell.notify_one();
    until(&clock, MOMENT, || count("slow") == 3).await;
    stage.acts.lock().unwrap().clear();
    stage.bell.notify_waiters();
    until(&clock, MOMENT, || store.read_now(|r| list(r, None, 10)).unwrap().is_empty()).await;
    engine.stop(SECOND).await;
    assert_eq!(engine.in_flight(), 0);
}

#[tokio::test]
async fn what_is_held_too_long_dies_with_a_word_and_without_a_call() {
    let bench = Bench::new().await;
    bench
        .store
        .write(|tx| {
            let until = tx.now() + 100_000 * SECOND;
            gate::set(tx, "shop", Breaker::Tripped { until, trips: 1 })
        })
        .await
        .unwrap();
    bench.call("late", "shop").await;
    bench.settle().await;
    bench.pass(3599 * SECOND).await;
    assert_eq!(bench.dead(), []);
    bench.pass(6 * SECOND).await;
    bench.settle().await;
    assert_eq!(bench.ledger(), [row("late", "held_too_long")]);
    assert_eq!(bench.dead()[0].class, Condemned::HeldTooLong.as_str());
    assert_eq!(bench.stage.performed(), Vec::<String>::new());
}

#[tokio::test]
async fn an_operators_reset_is_heard_within_seconds() {
    let bench = Bench::new().await;
    bench
        .store
        .write(|tx| {
            let until = tx.now() + 100_000 * SECOND;
            gate::set(tx, "shop", Breaker::Tripped { until, trips: 1 })
        })
        .await
        .unwrap();
    bench.call("a", "shop").await;
    bench.settle().await;
    bench.store.write(|tx| gate::set(tx, "shop", Breaker::default())).await.unwrap();
    bench.pass(5 * SECOND).await;
    assert_eq!(bench.stage.performed(), ["a"]);
}

// ---- stopping ----------------------------------------------------------------------------------

#[tokio::test]
async fn a_stop_waits_for_the_grace_and_then_gives_back_without_burning_an_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = fresh(&dir, Threading::Threads);
    ledger(&store).await;
    let stage = Arc::<Stage>::default();
    for name in ["plain", "send"] {
        stage.set(name, Act::Hang);
    }
    let engine = Arc::new(
        Engine::start(store.clone(), catalog(&stage, target_policy()), EngineOptions::default())
            .await
            .unwrap(),
    );
    let plain = store
        .write(|tx| enqueue::<Probe<Plain>>(tx, &"plain".into(), EnqueueOptions::default()))
        .await
        .unwrap()
        .job();
    let send = store
        .write(|tx| enqueue::<Probe<Send1>>(tx, &"send".into(), EnqueueOptions::default()))
        .await
        .unwrap()
        .job();
    until(&clock, MOMENT, || stage.performed().len() == 2).await;

    let stopping = tokio::spawn({
        let engine = Arc::clone(&engine);
        async move { engine.stop(5 * SECOND).await }
    });
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert!(!stopping.is_finished());
    until(&clock, SECOND / 10, || stopping.is_finished()).await;
    stopping.await.unwrap();

    let find = |job| store.read_now(|r| find(r, job)).unwrap().unwrap();
    let back = find(plain);
    assert_eq!((back.state, back.attempt, back.crashes), (JobState::Ready, 0, 0));
    assert_eq!(find(send).state, JobState::Parked, "it may have had its effect");
    store.write(|tx| enqueue::<Probe<Plain>>(tx, &"late".into(), EnqueueOptions::default())).await.unwrap();
    clock.advance(60 * SECOND);
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    assert_eq!(stage.performed().len(), 2, "nothing is claimed after a stop");
}

#[tokio::test]
async fn counts_say_what_there_is() {
    let bench = Bench::new().await;
    bench.stage.set("bad", Act::GiveUp);
    bench.stage.set("pay", Act::BeUnsure);
    bench.plain("bad").await;
    bench.enqueue::<Send1>("pay", EnqueueOptions::default()).await;
    bench.settle().await;
    let stats = bench.engine.stats().await.unwrap();
    let mut counted: Vec<_> =
        stats.jobs.iter().map(|c| (c.kind.as_str(), c.state.as_str(), c.jobs)).collect();
    counted.sort_unstable();
    assert_eq!(counted, [("find_out", "ready", 1), ("send", "parked", 1)]);
    assert_eq!(stats.dead, [("plain".to_owned(), 1)]);
    assert_eq!((stats.counters.claimed, stats.counters.dead, stats.counters.parked), (3, 1, 1));
    assert_eq!(bench.engine.in_flight(), 0);
}

// ---- any sequence ------------------------------------------------------------------------------

/// What a worker, a rescuer or an operator may do next, in any order.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Move {
    Enqueue,
    Step,
    /// Leases of a random holder are declared dead.
    Rescue,
    Restart,
    Advance(u16),
    Cancel(u8),
    Turn(u8),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        3 => Just(Move::Enqueue),
        5 => Just(Move::Step),
        1 => Just(Move::Rescue),
        1 => Just(Move::Restart),
        3 => (0u16..30_000).prop_map(Move::Advance),
        1 => any::<u8>().prop_map(Move::Cancel),
        2 => any::<u8>().prop_map(Move::Turn),
    ];
    prop::collection::vec(one, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: every success is recorded once, and in the end nothing hangs.
    #[test]
    fn after_any_storm_all_is_recorded_once(moves in moves(), seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(moves, seed))?;
    }
}

async fn run(moves: Vec<Move>, seed: u64) -> Result<(), TestCaseError> {
    let chance = Chance::from_seed(seed);
    let mut bench = Bench::with(TargetPolicy { concurrency: 2, ..target_policy() }).await;
    let mut made = Vec::new();
    let mut cancelled = Vec::new();
    for step in moves {
        match step {
            Move::Enqueue => {
                let name = format!("job{}", made.len());
                let act =
                    [Act::Succeed, Act::Fail, Act::FailTarget(None), Act::BeUnsure, Act::Panic, Act::GiveUp];
                let place = usize::try_from(chance.below(6)).unwrap();
                bench.stage.set(&name, act[place].clone());
                let job = match chance.below(3) {
                    0 => bench.plain(&name).await,
                    1 => {
                        bench.call(&name, ["left", "right"][usize::try_from(chance.below(2)).unwrap()]).await
                    }
                    _ => bench.enqueue::<Send1>(&name, EnqueueOptions::default()).await.job(),
                };
                made.push((name, job));
            }
            Move::Step => {
                bench.engine.step().await.unwrap();
            }
            Move::Rescue => {
                bench.clock.advance(Duration::from_secs(60));
            }
            Move::Restart => {
                let Bench { stage, store, clock, engine, _dir } = bench;
                let path = _dir.path().join("db");
                drop((engine, store));
                let store = reopen(&path, Threading::Inline, &clock);
                let kinds = catalog(&stage, TargetPolicy { concurrency: 2, ..target_policy() });
                let engine = Engine::prepare(store.clone(), kinds, EngineOptions::default()).await.unwrap();
                bench = Bench { stage, store, clock, engine, _dir };
            }
            Move::Advance(millis) => bench.clock.advance(Duration::from_millis(millis.into())),
            Move::Cancel(n) => {
                if let Some((_, job)) = made.get(usize::from(n)) {
                    let job = *job;
                    if bench.store.write(move |tx| cancel(tx, job)).await.unwrap() {
                        cancelled.push(job);
                    }
                }
            }
            Move::Turn(n) => {
                if let Some((name, _)) = made.get(usize::from(n) % made.len().max(1)) {
                    bench.stage.set(name, Act::Succeed);
                    bench.stage.find_out(name, Release::Rerun { at: bench.clock.now() });
                }
            }
        }
    }

    // After the storm: everything succeeds, every doubt is settled, and time passes.
    for (name, _) in &made {
        bench.stage.set(name, Act::Succeed);
        bench.stage.find_out(name, Release::Rerun { at: bench.clock.now() });
    }
    for _ in 0..40 {
        bench.pass(600 * SECOND).await;
        for letter in bench.dead() {
            bench.store.write(move |tx| dead_letter::revive(tx, letter.id)).await.unwrap();
        }
    }
    bench.settle().await;
    prop_assert_eq!(bench.jobs(), vec![]);
    prop_assert_eq!(bench.dead(), vec![]);
    prop_assert_eq!(bench.engine.in_flight(), 0);
    let ledger = bench.ledger();
    for (name, job) in &made {
        let oks = ledger.iter().filter(|line| **line == row(name, "ok")).count();
        let expected = usize::from(!cancelled.contains(job));
        prop_assert_eq!(oks, expected, "{}", name);
    }
    Ok(())
}

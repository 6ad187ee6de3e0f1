//! Group commit, fail stop, exclusion, and the store's own nouns.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use domain::chance::Chance;
use durable::params;
use durable::store::idempotency::{self, Answer, Begun};
use durable::store::{
    Access, Param, Query, Store, StoreError, StoreOptions, Threading, Topic, Tx, api_key, secret,
};

use crate::time::HandClock;
use crate::{fresh, reopen};

async fn table(store: &Store) {
    store
        .write(|tx| tx.execute("create table t (n bigint primary key, word text)", params![]))
        .await
        .unwrap();
}

fn insert(tx: &mut Tx, n: i64) -> Result<(), StoreError> {
    tx.execute("insert into t (word, n) values ($2, $1)", params![n, "w"]).map(|_| ())
}

async fn numbers(store: &Store) -> Vec<i64> {
    store.read(|r| r.query("select n from t order by n", params![], |row| row.get(0))).await.unwrap()
}

#[derive(Debug, PartialEq)]
enum Refusal {
    TooMany,
    Store(StoreError),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Holds the writer up until enough is queued, so that the test decides what is in one group.
async fn in_one_group<T: Send + 'static>(
    store: &Store,
    writes: Vec<impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let held = store.clone();
    let holding = tokio::spawn(async move {
        let mut held_up = false;
        let hold = move |_: &mut Tx| {
            if !std::mem::replace(&mut held_up, true) {
                gate.recv().map_err(StoreError::damaged)?;
            }
            Ok::<_, StoreError>(())
        };
        held.write(hold).await
    });
    tokio::task::yield_now().await;
    let tasks: Vec<_> = writes.into_iter().map(tokio::spawn).collect();
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    open.send(()).unwrap();
    holding.await.unwrap().unwrap();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    outcomes
}

#[tokio::test]
async fn a_bad_one_among_many_is_undone_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _clock) = fresh(&dir, Threading::Threads);
    table(&store).await;
    let before = store.commit_stats();
    let writes = (0..40)
        .map(|n| {
            let store = store.clone();
            async move {
                store
                    .write(move |tx| {
                        insert(tx, n)?;
                        match n {
                            7 | 8 => Err(Refusal::TooMany),
                            9 => panic!("nine"),
                            _ => Ok(n),
                        }
                    })
                    .await
            }
        })
        .collect();
    let outcomes = in_one_group(&store, writes).await;
    for (n, outcome) in (0..).zip(outcomes) {
        match n {
            7 | 8 => assert_eq!(outcome, Err(Refusal::TooMany)),
            9 => assert_eq!(outcome, Err(Refusal::Store(StoreError::Panicked("nine".into())))),
            _ => assert_eq!(outcome, Ok(n)),
        }
    }
    assert_eq!(numbers(&store).await, (0..40).filter(|n| ![7, 8, 9].contains(n)).collect::<Vec<_>>());
    let after = store.commit_stats();
    assert_eq!(after.reruns - before.reruns, 1, "many bad ones cost one undo");
    assert!(after.commits - before.commits <= 4, "{after:?}");
}

#[tokio::test]
async fn who_refused_because_of_an_undone_neighbour_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _clock) = fresh(&dir, Threading::Threads);
    table(&store).await;
    let attempt = |fails: bool| {
        let store = store.clone();
        async move {
            store
                .write(move |tx| {
                    if tx.query_opt("select n from t where n = 1", params![], |_| Ok(()))?.is_some() {
                        return Err(Refusal::TooMany);
                    }
                    insert(tx, 1)?;
                    if fails { Err(Refusal::Store(StoreError::NoRow)) } else { Ok(()) }
                })
                .await
        }
    };
    let outcomes = in_one_group(&store, vec![attempt(true), attempt(false), attempt(false)]).await;
    assert_eq!(outcomes, [Err(Refusal::Store(StoreError::NoRow)), Ok(()), Err(Refusal::TooMany)]);
    assert_eq!(numbers(&store).await, [1]);
}

#[tokio::test]
async fn a_refusal_without_a_write_undoes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _clock) = fresh(&dir, Threading::Threads);
    table(&store).await;
    let outcome: Result<(), Refusal> = store.write(|_| Err(Refusal::TooMany)).await;
    assert_eq!(outcome, Err(Refusal::TooMany));
    assert_eq!(store.commit_stats().reruns, 0);
}

#[tokio::test]
async fn readers_see_committed_rows_of_one_moment_and_cannot_write() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _clock) = fresh(&dir, Threading::Threads);
    table(&store).await;
    let (entered, inside) = std::sync::mpsc::channel();
    let (leave, left) = std::sync::mpsc::channel();
    let reading = store.clone();
    let snapshot = tokio::spawn(async move {
        reading
            .read(move |r| {
                let count = |r: &durable::store::Reader| {
                    r.query_one("select count(*) from t", params![], |row| row.get::<i64>(0))
                };
                let before = count(r)?;
                entered.send(()).unwrap();
                left.recv().unwrap();
                Ok::<_, StoreError>((before, count(r)?))
            })
            .await
    });
    tokio::task::spawn_blocking(move || inside.recv().unwrap()).await.unwrap();
    store.write(|tx| insert(tx, 1)).await.unwrap();
    leave.send(()).unwrap();
    assert_eq!(snapshot.await.unwrap().unwrap(), (0, 0));
    assert_eq!(numbers(&store).await, [1]);

    let written = store
        .read(|r| r.query("insert into t (n) values (2) returning n", params![], |row| row.get::<i64>(0)))
        .await;
    assert!(matches!(written, Err(StoreError::Statement(_))), "{written:?}");

    let uncommitted = store
        .write({
            let reads = store.read_only().clone();
            move |tx| {
                insert(tx, 3)?;
                reads.read_now(|r| r.query("select n from t", params![], |row| row.get::<i64>(0)))
            }
        })
        .await;
    assert_eq!(uncommitted, Ok(vec![1]));
}

#[tokio::test]
async fn a_full_disk_stops_all_writing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _clock) = fresh(&dir, Threading::Threads);
    table(&store).await;
    store.write(|tx| insert(tx, 1)).await.unwrap();
    store.write(|tx| tx.query("pragma max_page_count = 1", params![], |_| Ok(()))).await.unwrap();
    let filled = store
        .write(|tx| {
            for n in 10..10_000 {
                // The error is swallowed on purpose: the store must notice anyway.
                if insert(tx, n).is_err() {
                    break;
                }
            }
            Ok::<_, StoreError>(())
        })
        .await;
    assert!(matches!(filled, Err(StoreError::Failed(_))), "{filled:?}");
    assert!(matches!(store.failed().await, StoreError::Failed(_)));
    let later = store.write(|tx| insert(tx, 2)).await;
    assert!(matches!(later, Err(StoreError::Failed(_))), "{later:?}");
    assert_eq!(numbers(&store).await, [1], "reading goes on, and sees what was acknowledged");
}

#[tokio::test]
async fn announcements_come_after_the_commit_and_only_then() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _clock) = fresh(&dir, Threading::Inline);
    table(&store).await;
    let mut listener = store.listen(Topic::Events);
    let refused: Result<(), StoreError> = store
        .write(|tx| {
            insert(tx, 1)?;
            tx.announce(Topic::Events);
            Err(StoreError::NoRow)
        })
        .await;
    assert!(refused.is_err());
    let heard = |listener: &mut durable::store::Listener| {
        let mut waiting = Box::pin(listener.heard());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        waiting.as_mut().poll(&mut context).is_ready()
    };
    assert!(!heard(&mut listener));
    store
        .write(|tx| {
            tx.announce(Topic::Events);
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
    assert!(heard(&mut listener));
    assert!(!heard(&mut listener));
}

#[tokio::test]
async fn values_come_back_as_they_went_or_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _clock) = fresh(&dir, Threading::Inline);
    table(&store).await;
    let too_large = store.write(|tx| tx.execute("insert into t (n) values ($1)", params![u64::MAX])).await;
    assert_eq!(too_large, Err(StoreError::TooLarge));
    let miscounted = store.write(|tx| tx.execute("insert into t (n) values ($1)", params![1, 2])).await;
    assert!(matches!(miscounted, Err(StoreError::Statement(_))), "{miscounted:?}");
    store
        .write(|tx| tx.execute("insert into t (word, n) values ($2, $1)", params![-1, Some("x")]))
        .await
        .unwrap();
    let get =
        |sql: &'static str| store.read_now(move |r| r.query_one(sql, params![], |row| row.get::<u32>(0)));
    assert_eq!(get("select n from t"), Err(StoreError::Column { index: 0, expected: "u32" }));
    assert_eq!(get("select word from t"), Err(StoreError::Column { index: 0, expected: "u32" }));
    assert_eq!(get("select n from t where n = 5"), Err(StoreError::NoRow));
    let again = store.write(|tx| tx.execute("insert into t (n) values (-1)", &[] as &[Param<'_>])).await;
    assert!(again.unwrap_err().is_unique_violation());
}

#[test]
fn two_owners_cannot_open_one_file_but_a_guest_may_look_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let clock = HandClock::new();
    let guest_options =
        StoreOptions { access: Access::Guest, threading: Threading::Inline, ..StoreOptions::default() };
    let too_early = Store::open(&path, guest_options, Arc::clone(&clock) as _, Chance::from_seed(1));
    assert!(matches!(too_early, Err(StoreError::Outdated { found: 0, .. })), "{too_early:?}");

    let owner = reopen(&path, Threading::Threads, &clock);
    let second = Store::open(&path, StoreOptions::default(), Arc::clone(&clock) as _, Chance::from_seed(2));
    assert_eq!(second.err(), Some(StoreError::Locked(path.clone())));

    let guest = Store::open(&path, guest_options, Arc::clone(&clock) as _, Chance::from_seed(3)).unwrap();
    guest.write_now(|tx| secret::find_or_make(tx, "signing")).unwrap();
    assert!(owner.read_now(|r| secret::find(r, "signing")).unwrap().is_some());

    drop(owner);
    drop(reopen(&path, Threading::Threads, &clock));
}

#[cfg(unix)]
#[test]
fn only_the_owner_of_the_files_may_read_them() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (store, _clock) = fresh(&dir, Threading::Inline);
    store.write_now(|tx| secret::find_or_make(tx, "signing")).unwrap();
    for name in ["db", "db-wal", "db-shm", "db.lock"] {
        let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn one_answer_per_idempotency_key() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = fresh(&dir, Threading::Inline);
    let begin = |store: &Store, print: u8| {
        let me = store.incarnation();
        store.write_now(move |tx| idempotency::begin(tx, me, "me:POST /things", "k", &[print; 32])).unwrap()
    };
    let answer =
        Answer { status: 201, headers: vec![("location".into(), "/x".into())], body: b"{}".to_vec() };
    assert_eq!(begin(&store, 1), Begun::Fresh);
    assert_eq!(begin(&store, 1), Begun::InFlight);
    assert_eq!(begin(&store, 2), Begun::Mismatch);

    // A crash, and a new start: what was in flight stood for no effect.
    let path = dir.path().join("db");
    drop(store);
    clock.advance(Duration::from_secs(1));
    let store = reopen(&path, Threading::Inline, &clock);
    assert_eq!(begin(&store, 1), Begun::Fresh);
    let finish = |store: &Store| {
        let (me, answer) = (store.incarnation(), answer.clone());
        store.write_now(move |tx| idempotency::finish(tx, me, "me:POST /things", "k", &answer))
    };
    finish(&store).unwrap();
    assert_eq!(finish(&store), Err(StoreError::NoRow), "an answer is given once");
    assert_eq!(begin(&store, 1), Begun::Replay(answer.clone()));
    assert_eq!(begin(&store, 2), Begun::Mismatch);

    clock.advance(idempotency::KEPT);
    assert_eq!(store.write_now(|tx| idempotency::forget_expired(tx, 10)), Ok(1));
    assert_eq!(begin(&store, 2), Begun::Fresh);
    let me = store.incarnation();
    store.write_now(move |tx| idempotency::release(tx, me, "me:POST /things", "k")).unwrap();
    assert_eq!(begin(&store, 3), Begun::Fresh);
}

#[test]
fn a_revoked_key_is_not_found_and_use_is_noted_to_the_minute() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = fresh(&dir, Threading::Inline);
    let key =
        store.write_now(|tx| api_key::insert(tx, "ops", &["read".into(), "write".into()], &[5; 32])).unwrap();
    let find = || store.read_now(|r| api_key::find_by_digest(r, &[5; 32])).unwrap();
    assert_eq!(find(), Some(key.clone()));
    assert!(
        store.write_now(|tx| api_key::insert(tx, "twin", &[], &[5; 32])).unwrap_err().is_unique_violation()
    );

    let first = clock_now(&clock);
    store.write_now(move |tx| api_key::touch(tx, key.id)).unwrap();
    clock.advance(Duration::from_secs(59));
    store.write_now(move |tx| api_key::touch(tx, key.id)).unwrap();
    assert_eq!(find().unwrap().last_used_at, Some(first));

    assert_eq!(store.write_now(move |tx| api_key::revoke(tx, key.id)), Ok(true));
    assert_eq!(store.write_now(move |tx| api_key::revoke(tx, key.id)), Ok(false));
    assert_eq!(find(), None);
    assert_eq!(store.read_now(api_key::list).unwrap().len(), 1);
}

fn clock_now(clock: &Arc<HandClock>) -> domain::time::Timestamp {
    domain::time::Clock::now(clock.as_ref())
}

/// Names the database for the child that [`kill_9_loses_no_acknowledged_write`] starts and kills.
const CHILD: &str = "DURABLE_TEST_CHILD_DB";

/// Not a test of its own: the child's body. Acknowledges each durable number on its output.
#[test]
fn child_that_is_killed() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let store = Arc::new(reopen(path.as_ref(), Threading::Threads, &HandClock::new()));
    let next = Arc::new(AtomicU32::new(0));
    let start = store
        .write_now(|tx| {
            tx.execute("create table if not exists t (n bigint primary key, word text)", params![])?;
            tx.query_one("select coalesce(max(n), 0) + 1 from t", params![], |row| row.get::<u32>(0))
        })
        .unwrap();
    next.store(start, Ordering::SeqCst);
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let (store, next) = (Arc::clone(&store), Arc::clone(&next));
            std::thread::spawn(move || {
                for _ in 0..1_000_000 {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    store.write_now(move |tx| insert(tx, n.into())).unwrap();
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "ack {n}").unwrap();
                    out.flush().unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
}

#[test]
fn kill_9_loses_no_acknowledged_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut acknowledged = Vec::new();
    for round in 1..=4usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["store::child_that_is_killed", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut heard = 0;
        while heard < round * 150 {
            let line = lines.next().expect("the child speaks until it is killed").unwrap();
            if let Some(n) = line.rsplit_once("ack ").and_then(|(_, n)| n.parse::<i64>().ok()) {
                acknowledged.push(n);
                heard += 1;
            }
        }
        child.kill().unwrap();
        // What was still in the pipe was acknowledged, too. The last line may be torn.
        for line in lines.map_while(Result::ok) {
            if let Some(n) = line.strip_prefix("ack ").and_then(|n| n.parse::<i64>().ok()) {
                acknowledged.push(n);
            }
        }
        child.wait().unwrap();

        let store = reopen(&path, Threading::Inline, &HandClock::new());
        let kept: std::collections::BTreeSet<i64> = store
            .read_now(|r| r.query("select n from t", params![], |row| row.get(0)))
            .unwrap()
            .into_iter()
            .collect();
        let lost: Vec<_> = acknowledged.iter().filter(|n| !kept.contains(n)).collect();
        assert!(lost.is_empty(), "lost {lost:?}");
    }
    assert!(acknowledged.len() >= 1500);
}

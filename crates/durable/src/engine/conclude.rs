//! What the end of a lease means for its job.
//!
//! Guarantees: the fence is asked before anything is written; a stale lease writes nothing, not even
//! what `record` would have said. The unknown is parked, whatever `record` answers short of done. Every job
//! ends finished, ready, parked or as a dead letter, with a reason.
//!
//! Deliberately absent: performing (`mod.rs`) and statements (`queue.rs`).

use domain::chance::Chance;
use domain::time::Timestamp;

use super::claim::Lease;
use super::queue::{self, Held, Return};
use super::recording::Recording;
use super::work::{Kind, Next, Record, Resolver, Trouble};
use crate::store::{Query, StoreError, Tx};

/// How a lease ended.
pub(super) enum Ended {
    /// With a fact or with trouble.
    Outcome(Box<dyn Record>),
    /// The stored input is not what the kind expects.
    Unreadable(String),
    /// `perform` panicked, or its outcome could not be recorded.
    Crashed(String),
    /// The process is stopping.
    Interrupted,
}

/// What became of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Concluded {
    /// Finished, or to be done again after it went well.
    Done,
    /// Failed, and due again.
    Retried,
    /// Given back without a failure.
    Released,
    /// Parked as unknown.
    Parked,
    /// A dead letter.
    Dead,
    /// Crashed, and due again.
    Crashed,
    /// The lease had been taken away: nothing was written.
    Stale,
}

/// Records the end of a lease, if the lease is still valid.
pub(super) fn conclude(
    tx: &mut Tx,
    kind: &Kind,
    lease: &Lease,
    ended: &Ended,
    chance: &Chance,
) -> Result<Concluded, StoreError> {
    let Some(held) = queue::holds(tx, lease.attempt.job, lease.epoch)? else { return Ok(Concluded::Stale) };
    let mut conclusion = Conclusion { tx, kind, lease, held, chance };
    match ended {
        Ended::Outcome(record) => conclusion.record(record.as_ref()),
        Ended::Unreadable(why) => conclusion.bury("unreadable_input", why),
        Ended::Crashed(why) => conclusion.crash(why),
        Ended::Interrupted => conclusion.interrupt(),
    }
}

struct Conclusion<'a> {
    tx: &'a mut Tx,
    kind: &'a Kind,
    lease: &'a Lease,
    held: Held,
    chance: &'a Chance,
}

impl Conclusion<'_> {
    fn record(&mut self, record: &dyn Record) -> Result<Concluded, StoreError> {
        let target = self.lease.target.as_deref().zip(self.kind.policy.target.as_ref());
        let mut recording = Recording::new(self.tx, target, self.lease.resolves);
        let wish = record.record(&mut recording, &self.lease.attempt)?;
        let released = recording.released;
        let trouble = record.trouble();
        match self.overrule(wish, trouble, released)? {
            Next::Done => self.done(),
            Next::Again { at } => {
                let due_at = self.held.again_at.map_or(at, |sooner| sooner.min(at));
                self.put_back(due_at, 0, None, Concluded::Done)
            }
            Next::Retry => {
                let due_at = self.after_backoff(trouble);
                self.retry(due_at, trouble)
            }
            Next::RetryAt { at } => self.retry(at, trouble),
            Next::Released { at } => {
                let attempt = self.failures_before();
                self.put_back(at, attempt, trouble.map(Trouble::why), Concluded::Released)
            }
            Next::Dead { class, why } => self.bury(&class, &why),
            Next::Park(resolver) => {
                let why = trouble.map_or("parked", Trouble::why);
                self.park(&resolver, why, 0)
            }
        }
    }

    /// Where `record` has no say: the unknown, the condemned, and a resolver that resolved nothing.
    fn overrule(&self, wish: Next, trouble: Option<&Trouble>, released: bool) -> Result<Next, StoreError> {
        if let (Some(condemned), false) =
            (self.lease.attempt.condemned, matches!(wish, Next::Done | Next::Dead { .. }))
        {
            let why = trouble.map_or_else(String::new, |trouble| trouble.why().to_owned());
            return Ok(Next::Dead { class: condemned.as_str().into(), why });
        }
        if let (Some(Trouble::Unknown { resolver, .. }), false) =
            (trouble, matches!(wish, Next::Done | Next::Park(_)))
        {
            return Ok(Next::Park(resolver.clone()));
        }
        if let (Next::Done, Some((parked, epoch)), false) = (&wish, self.lease.resolves, released)
            && queue::is_parked(self.tx, parked, epoch)?
        {
            return Ok(Next::Retry);
        }
        Ok(wish)
    }

    fn done(&mut self) -> Result<Concluded, StoreError> {
        match self.held.again_at {
            Some(at) => self.put_back(at, 0, None, Concluded::Done),
            None => {
                queue::delete(self.tx, self.lease.attempt.job)?;
                Ok(Concluded::Done)
            }
        }
    }

    fn retry(&mut self, due_at: Timestamp, trouble: Option<&Trouble>) -> Result<Concluded, StoreError> {
        let why = trouble.map_or("to be retried", Trouble::why);
        if self.lease.attempt.last {
            return self.bury("exhausted", why);
        }
        self.put_back(due_at, self.lease.attempt.attempt, Some(why), Concluded::Retried)
    }

    fn after_backoff(&self, trouble: Option<&Trouble>) -> Timestamp {
        let backoff = &self.kind.policy.backoff;
        let asked = match trouble {
            Some(Trouble::Again { after: Some(span), .. }) => (*span).min(backoff.cap),
            _ => std::time::Duration::ZERO,
        };
        self.tx.now() + backoff.wait(self.lease.attempt.attempt, self.chance).max(asked)
    }

    fn crash(&mut self, why: &str) -> Result<Concluded, StoreError> {
        let crashes = self.lease.attempt.crashes.saturating_add(1);
        if let Some(condemned) = self.lease.attempt.condemned {
            return self.bury(condemned.as_str(), why);
        }
        if let Some(resolver) = self.resolver() {
            return self.park(&resolver, why, 1);
        }
        let due_at = self.tx.now() + self.kind.policy.backoff.wait(crashes, self.chance);
        let back = Return { due_at, attempt: self.failures_before(), crashes, why: Some(why) };
        queue::put_back(self.tx, self.lease.attempt.job, &back)?;
        Ok(Concluded::Crashed)
    }

    /// A stop in the middle of `perform`: no failure, but perhaps an effect.
    fn interrupt(&mut self) -> Result<Concluded, StoreError> {
        if let Some(resolver) = self.resolver() {
            return self.park(&resolver, "interrupted by a stop", 0);
        }
        let (job, crashes) = (self.lease.attempt.job, self.lease.attempt.crashes);
        let back = Return { due_at: self.tx.now(), attempt: self.failures_before(), crashes, why: None };
        queue::put_back(self.tx, job, &back)?;
        Ok(Concluded::Released)
    }

    fn put_back(
        &mut self,
        due_at: Timestamp,
        attempt: u32,
        why: Option<&str>,
        meaning: Concluded,
    ) -> Result<Concluded, StoreError> {
        queue::put_back(self.tx, self.lease.attempt.job, &Return { due_at, attempt, crashes: 0, why })?;
        Ok(meaning)
    }

    fn park(&mut self, resolver: &Resolver, why: &str, crashes: u32) -> Result<Concluded, StoreError> {
        queue::park(self.tx, self.lease.attempt.job, resolver, why, crashes)?;
        Ok(Concluded::Parked)
    }

    fn bury(&mut self, class: &str, why: &str) -> Result<Concluded, StoreError> {
        let job = self.lease.attempt.job;
        queue::bury(self.tx, job, class, why, 1)?;
        if let Some(at) = self.held.again_at {
            queue::succeed(self.tx, job, at)?;
        }
        Ok(Concluded::Dead)
    }

    fn resolver(&self) -> Option<Resolver> {
        self.kind.resolver.map(|kind| Resolver { kind, input: self.lease.input.clone() })
    }

    fn failures_before(&self) -> u32 {
        self.lease.attempt.attempt.saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    use domain::id::{Incarnation, JobId};
    use proptest::prelude::*;

    use super::super::claim::{Order, Room, claim};
    use super::super::desk::Desk;
    use super::super::recording::{EnqueueOptions, enqueue};
    use super::super::work::{AfterCrash, Attempt, Catalog, Policy, Work};
    use super::*;
    use crate::params;
    use crate::store::ReadOnly;

    struct Tally;

    impl Work for Tally {
        const KIND: &'static str = "tally";
        const AFTER_CRASH: AfterCrash = AfterCrash::Rerun;
        type Input = ();
        type Fact = bool;

        async fn perform(&self, (): &(), _: &Attempt, _: &ReadOnly) -> Result<bool, Trouble> {
            Ok(true)
        }

        fn record(
            recording: &mut Recording<'_>,
            (): &(),
            attempt: &Attempt,
            _: Result<&bool, &Trouble>,
        ) -> Result<Next, StoreError> {
            recording.execute("insert into written (job) values ($1)", params![attempt.job])?;
            // Due again at once: the same job is leased over and over.
            Ok(Next::Again { at: recording.now() })
        }
    }

    /// What two workers, a rescuer and an operator may do, in any order. Numbers choose among what is there.
    #[derive(Debug, Clone)]
    enum Move {
        Claim { worker: bool },
        Conclude(usize, End),
        Rescue,
        Cancel(usize),
        Enqueue,
        Pass(u64),
    }

    #[derive(Debug, Clone, Copy)]
    enum End {
        Record,
        Crash,
        Interrupt,
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let end = prop_oneof![Just(End::Record), Just(End::Crash), Just(End::Interrupt)];
        let one = prop_oneof![
            3 => any::<bool>().prop_map(|worker| Move::Claim { worker }),
            5 => (any::<usize>(), end).prop_map(|(lease, end)| Move::Conclude(lease, end)),
            2 => Just(Move::Rescue),
            1 => any::<usize>().prop_map(Move::Cancel),
            2 => Just(Move::Enqueue),
            2 => (0u64..200).prop_map(Move::Pass),
        ];
        prop::collection::vec(one, 1..80)
    }

    /// The engine's rows, moved by hand, and a model of who may write.
    struct Rows {
        tx: Tx,
        kind: Arc<Kind>,
        now: Timestamp,
        chance: Chance,
        /// Every lease ever given, the valid and the stale: late workers come back.
        leases: Vec<(Incarnation, Lease)>,
        /// Which lease of each job is the valid one, by the model.
        valid: BTreeMap<JobId, u64>,
        _dir: tempfile::TempDir,
    }

    impl Rows {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let chance = Chance::from_seed(1);
            let mut tx = Tx::scratch(&dir.path().join("db"), chance.clone());
            tx.execute("create table written (job blob)", params![]).unwrap();
            let mut catalog = Catalog::new();
            let policy = Policy { max_crashes: u32::MAX, ..Policy::default() };
            catalog.register(Tally, policy).unwrap();
            let kind = catalog.into_kinds().pop().unwrap();
            let now = Timestamp::from_seconds(1_000_000);
            Self { tx, kind, now, chance, leases: Vec::new(), valid: BTreeMap::new(), _dir: dir }
        }

        fn written(&self) -> usize {
            self.tx.query("select job from written", params![], |_| Ok(())).unwrap().len()
        }

        fn turn(&mut self, step: &Move, workers: [Incarnation; 2]) -> Result<(), TestCaseError> {
            self.tx.at(self.now);
            match step {
                Move::Claim { worker } => self.claim(workers[usize::from(*worker)])?,
                Move::Conclude(which, end) => self.conclude(*which, *end)?,
                Move::Rescue => {
                    // All workers are silent: whoever is past the time to be heard loses its leases.
                    let nobody = Incarnation::mint(self.now, &self.chance);
                    queue::rescue_expired(&mut self.tx, nobody, self.now).unwrap();
                    self.valid.clear();
                }
                Move::Cancel(which) => {
                    if let Some(job) = self.valid.keys().nth(which % self.valid.len().max(1)).copied() {
                        queue::delete(&mut self.tx, job).unwrap();
                        self.valid.remove(&job);
                    }
                }
                Move::Enqueue => {
                    enqueue::<Tally>(&mut self.tx, &(), EnqueueOptions::default()).unwrap();
                }
                Move::Pass(seconds) => self.now = self.now + Duration::from_secs(*seconds),
            }
            Ok(())
        }

        fn claim(&mut self, me: Incarnation) -> Result<(), TestCaseError> {
            let room = Room { kind: Arc::clone(&self.kind), index: 0, free: 2 };
            let order = Order { me, kinds: vec![room], most: 2, looks: Vec::new() };
            for lease in claim(&mut self.tx, &Desk::new(1), &order).unwrap().leases {
                let (job, epoch) = (lease.attempt.job, lease.epoch);
                prop_assert!(!self.valid.contains_key(&job), "leased while leased");
                let before =
                    self.leases.iter().filter(|(_, old)| old.attempt.job == job).map(|(_, old)| old.epoch);
                // Out of the lease and into the next: one step each.
                prop_assert!(before.max().is_none_or(|before| before + 2 == epoch), "{epoch}");
                self.valid.insert(job, epoch);
                self.leases.push((me, lease));
            }
            Ok(())
        }

        fn conclude(&mut self, which: usize, end: End) -> Result<(), TestCaseError> {
            let Some((_, lease)) = self.leases.get(which % self.leases.len().max(1)) else { return Ok(()) };
            let ended = match end {
                End::Record => Ended::Outcome(
                    self.kind
                        .conclude(&lease.input, Trouble::Again { after: None, why: String::new() })
                        .unwrap(),
                ),
                End::Crash => Ended::Crashed("crash".into()),
                End::Interrupt => Ended::Interrupted,
            };
            let before = self.written();
            let concluded = conclude(&mut self.tx, &self.kind, lease, &ended, &self.chance).unwrap();
            let wrote = self.written() - before;
            if self.valid.get(&lease.attempt.job) == Some(&lease.epoch) {
                prop_assert_ne!(concluded, Concluded::Stale);
                prop_assert_eq!(wrote, usize::from(matches!(end, End::Record)));
                self.valid.remove(&lease.attempt.job);
            } else {
                prop_assert_eq!(concluded, Concluded::Stale);
                prop_assert_eq!(wrote, 0, "a stale lease wrote");
            }
            Ok(())
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

        /// A job has at most one valid (job, epoch) holder; no other ever writes.
        #[test]
        fn only_the_valid_holder_of_an_epoch_writes(moves in moves()) {
            let mut rows = Rows::new();
            let workers = [Incarnation::mint(rows.now, &rows.chance), Incarnation::mint(rows.now, &rows.chance)];
            for step in &moves {
                rows.turn(step, workers)?;
            }
        }
    }
}

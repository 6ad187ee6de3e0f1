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

//! Which due jobs are leased now, and which have to wait for their target.
//!
//! Guarantees: a kind never has more leases than its policy allows; a target never more than its breaker
//! and policy allow; jobs of one target are admitted in the order they were due. A job whose target is at its
//! allowance is set aside once, keeps its attempts, and is not met by the scan again, so that one slow
//! target neither fills the slots nor lengthens the claims of others.
//!
//! Deliberately absent: memory between claims, which is `desk.rs`'s. A claim may be run again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use domain::breaker::Breaker;
use domain::id::{Incarnation, JobId};
use domain::time::Timestamp;

use super::desk::Desk;
use super::queue::{self, Due};
use super::work::{Attempt, Condemned, Kind, TargetPolicy};
use super::{LEASE_MARGIN, gate};
use crate::store::{Query, StoreError, Tx};

/// A kind with a target is read at least this deep, to set aside in few steps what cannot be admitted.
const SCAN: u32 = 64;

/// What a claim is asked for.
#[derive(Clone)]
pub(super) struct Order {
    pub(super) me: Incarnation,
    /// All kinds, in the order they are served.
    pub(super) kinds: Vec<Room>,
    /// Most leases altogether.
    pub(super) most: u32,
    /// Targets whose waiting jobs may have become admissible.
    pub(super) looks: Vec<Arc<str>>,
}

/// How many more of a kind may be performed.
#[derive(Clone)]
pub(super) struct Room {
    pub(super) kind: Arc<Kind>,
    pub(super) index: usize,
    pub(super) free: u32,
}

/// A job that this process may perform until someone bumps its epoch.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) kind: usize,
    pub(super) epoch: u64,
    pub(super) attempt: Attempt,
    /// Only if it counts among the target's jobs under way.
    pub(super) target: Option<Arc<str>>,
    pub(super) resolves: Option<(JobId, u64)>,
    pub(super) input: Vec<u8>,
}

/// What a claim brought.
#[derive(Debug, Default)]
pub(super) struct Claimed {
    pub(super) leases: Vec<Lease>,
    pub(super) targets: BTreeMap<Arc<str>, Seen>,
    /// Kinds of which more may be due than was taken.
    pub(super) short: BTreeSet<usize>,
    /// When the next job is due that was not due yet.
    pub(super) next_due: Option<Timestamp>,
}

/// What a claim saw of a target.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// Jobs at a time.
    pub(super) allowance: u32,
    pub(super) closed_until: Option<Timestamp>,
    /// Whether jobs still wait for it.
    pub(super) waiting: bool,
    /// Whether it would have admitted a job for which there was no slot.
    pub(super) no_slot: bool,
}

struct View {
    breaker: Breaker,
    most: u32,
    under_way: u32,
    waiting: bool,
    no_slot: bool,
}

impl View {
    fn room(&self, now: Timestamp) -> u32 {
        self.breaker.allowance(now, self.most).saturating_sub(self.under_way)
    }
}

struct Claim<'a> {
    tx: &'a mut Tx,
    desk: &'a Desk,
    order: &'a Order,
    now: Timestamp,
    free: Vec<u32>,
    most: u32,
    views: BTreeMap<Arc<str>, View>,
    claimed: Claimed,
}

/// Leases what is due and has room.
pub(super) fn claim(tx: &mut Tx, desk: &Desk, order: &Order) -> Result<Claimed, StoreError> {
    let now = tx.now();
    let free = order.kinds.iter().map(|room| room.free).collect();
    let mut claim = Claim {
        tx,
        desk,
        order,
        now,
        free,
        most: order.most,
        views: BTreeMap::new(),
        claimed: Claimed::default(),
    };
    for target in &order.looks {
        claim.admit_waiting(target)?;
    }
    for place in 0..order.kinds.len() {
        claim.take_due(place)?;
    }
    Ok(claim.finish())
}

impl Claim<'_> {
    /// Leases jobs that wait for `target`, as far as it admits them.
    fn admit_waiting(&mut self, target: &Arc<str>) -> Result<(), StoreError> {
        let first = queue::held(self.tx, target, 1)?.pop();
        let policy = first.as_ref().and_then(|job| self.target_policy(self.place_of(&job.kind)?));
        let Some(policy) = policy else {
            // Nobody waits, or for work that this process does not know.
            let seen = Seen { allowance: 0, closed_until: None, waiting: first.is_some(), no_slot: false };
            self.claimed.targets.insert(Arc::clone(target), seen);
            return Ok(());
        };
        let (now, view) = (self.now, self.view(target, &policy)?);
        view.waiting = true;
        let room = view.room(now);
        if room == 0 {
            return Ok(());
        }
        let waiting = queue::held(self.tx, target, room.saturating_add(1))?;
        let mut left = waiting.len();
        for job in waiting {
            let Some(place) = self.place_of(&job.kind) else { continue };
            if self.view(target, &policy)?.room(now) == 0 {
                break;
            }
            if self.has_slot(place) {
                self.lease(place, job, Some(target), None)?;
                left -= 1;
            } else {
                self.view(target, &policy)?.no_slot = true;
                self.claimed.short.extend(self.order.kinds.get(place).map(|room| room.index));
            }
        }
        self.view(target, &policy)?.waiting = left > 0;
        Ok(())
    }

    /// Leases due jobs of one kind, and sets those aside whose target admits no more.
    fn take_due(&mut self, place: usize) -> Result<(), StoreError> {
        let Some(room) = self.order.kinds.get(place) else { return Ok(()) };
        let kind = Arc::clone(&room.kind);
        let index = room.index;
        let free = self.slots(place);
        if free == 0 {
            self.claimed.short.insert(index);
            return Ok(());
        }
        let depth = if kind.policy.target.is_some() { free.max(SCAN) } else { free };
        let due = queue::due(self.tx, kind.name, depth)?;
        if u32::try_from(due.len()).is_ok_and(|found| found == depth) {
            self.claimed.short.insert(index);
        } else if let Some(at) = queue::next_due_after(self.tx, kind.name)? {
            self.claimed.next_due = Some(self.claimed.next_due.map_or(at, |known| known.min(at)));
        }
        for job in due {
            if !self.has_slot(place) {
                self.claimed.short.insert(index);
                break;
            }
            self.lease_or_hold(place, &kind, job)?;
        }
        Ok(())
    }

    fn lease_or_hold(&mut self, place: usize, kind: &Kind, job: Due) -> Result<(), StoreError> {
        if let Some(condemned) = sentence(kind, &job) {
            return self.lease(place, job, None, Some(condemned));
        }
        let (Some(policy), Some(target)) = (kind.policy.target, job.target.as_deref()) else {
            return self.lease(place, job, None, None);
        };
        let target: Arc<str> = target.into();
        // Whoever waits already comes first.
        let others_wait = self.desk.is_waited_for(&target);
        let (now, view) = (self.now, self.view(&target, &policy)?);
        if others_wait || view.waiting || view.room(now) == 0 {
            view.waiting = true;
            queue::hold(self.tx, job.id)
        } else {
            self.lease(place, job, Some(&target), None)
        }
    }

    fn lease(
        &mut self,
        place: usize,
        job: Due,
        target: Option<&Arc<str>>,
        condemned: Option<Condemned>,
    ) -> Result<(), StoreError> {
        let Some(room) = self.order.kinds.get(place) else { return Ok(()) };
        let policy = &room.kind.policy;
        queue::lease(self.tx, job.id, job.epoch, self.order.me, self.now + policy.deadline + LEASE_MARGIN)?;
        if let Some(target) = target {
            self.begin(target)?;
        }
        self.most = self.most.saturating_sub(1);
        if let Some(free) = self.free.get_mut(place) {
            *free = free.saturating_sub(1);
        }
        let attempt = job.attempt.saturating_add(1);
        self.claimed.leases.push(Lease {
            kind: room.index,
            epoch: job.epoch.saturating_add(1),
            attempt: Attempt {
                job: job.id,
                attempt,
                crashes: job.crashes,
                last: attempt >= policy.max_attempts,
                condemned,
                resolves: job.resolves.map(|(parked, _)| parked),
                created_at: job.created_at,
            },
            target: target.map(Arc::clone),
            resolves: job.resolves,
            input: job.input,
        });
        Ok(())
    }

    fn begin(&mut self, target: &Arc<str>) -> Result<(), StoreError> {
        let now = self.now;
        if let Some(view) = self.views.get_mut(target) {
            view.under_way = view.under_way.saturating_add(1);
            if view.breaker.begin(now) != view.breaker {
                view.breaker = view.breaker.begin(now);
                gate::begin(self.tx, target)?;
            }
        }
        Ok(())
    }

    fn view(&mut self, target: &Arc<str>, policy: &TargetPolicy) -> Result<&mut View, StoreError> {
        if !self.views.contains_key(target) {
            let view = View {
                breaker: gate::find(self.tx, target)?,
                most: policy.concurrency,
                under_way: self.desk.under_way(target),
                waiting: false,
                no_slot: false,
            };
            self.views.insert(Arc::clone(target), view);
        }
        self.views.get_mut(target).ok_or(StoreError::NoRow)
    }

    fn place_of(&self, kind: &str) -> Option<usize> {
        self.order.kinds.iter().position(|room| room.kind.name == kind)
    }

    fn target_policy(&self, place: usize) -> Option<TargetPolicy> {
        self.order.kinds.get(place)?.kind.policy.target
    }

    fn slots(&self, place: usize) -> u32 {
        self.free.get(place).copied().unwrap_or(0).min(self.most)
    }

    fn has_slot(&self, place: usize) -> bool {
        self.slots(place) > 0
    }

    fn finish(self) -> Claimed {
        let Self { views, mut claimed, now, .. } = self;
        for (target, view) in views {
            let seen = Seen {
                allowance: view.breaker.allowance(now, view.most),
                closed_until: view.breaker.closed_until(now),
                waiting: view.waiting,
                no_slot: view.no_slot,
            };
            claimed.targets.insert(target, seen);
        }
        claimed
    }
}

/// Whether the job is not to be performed any more, and why.
fn sentence(kind: &Kind, job: &Due) -> Option<Condemned> {
    if job.crashes >= kind.policy.max_crashes {
        return Some(Condemned::CrashLoop);
    }
    job.condemned.as_deref().and_then(Condemned::parse)
}

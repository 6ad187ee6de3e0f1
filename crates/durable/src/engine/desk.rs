//! What the engine knows without asking the database: slots in use, and who waits for whom.
//!
//! Guarantees: losing it (with the process) loses nothing: slots begin free, and who waits is read from
//! rows again. All of it changes under one lock that is never held across a statement or a wait.
//!
//! Deliberately absent: breakers, which are rows (`gate.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use domain::time::Timestamp;

use super::claim::{Claimed, Lease, Room};
use super::work::Kind;

/// Slots and waiting targets.
#[derive(Debug)]
pub(super) struct Desk(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Leases of each kind that have not ended.
    kinds: Vec<u32>,
    all: u32,
    /// Leases of each target that have not ended; no entry means none.
    targets: BTreeMap<Arc<str>, u32>,
    /// Targets that jobs wait for, and when to look at them again.
    waited_for: BTreeMap<Arc<str>, Look>,
    /// Whether the last claim left due jobs for want of slots.
    starved: bool,
    /// Where the next round of kinds begins, so that each gets its turn at scarce slots.
    turn: usize,
    /// Leases whose outcome could not be recorded, and why.
    broken: Vec<(Arc<Lease>, String)>,
}

/// When a target is to be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Now,
    /// When its pause is over.
    At(Timestamp),
    /// When one of its jobs ends.
    TargetFree,
    /// When any job ends.
    SlotFree,
}

impl Look {
    fn is_due(self, now: Timestamp) -> bool {
        match self {
            Self::Now => true,
            Self::At(at) => at <= now,
            Self::TargetFree | Self::SlotFree => false,
        }
    }
}

impl Desk {
    pub(super) fn new(kinds: usize) -> Self {
        Self(Mutex::new(State {
            kinds: vec![0; kinds],
            all: 0,
            targets: BTreeMap::new(),
            waited_for: BTreeMap::new(),
            starved: false,
            turn: 0,
            broken: Vec::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many more of each kind may be leased, and how many altogether.
    pub(super) fn room(&self, kinds: &[Arc<Kind>], most: u32) -> (Vec<Room>, u32) {
        let mut state = self.state();
        let mut rooms: Vec<Room> = (0..)
            .zip(kinds)
            .zip(&state.kinds)
            .map(|((index, kind), taken)| Room {
                kind: Arc::clone(kind),
                index,
                free: kind.policy.concurrency.saturating_sub(*taken),
            })
            .collect();
        if !rooms.is_empty() {
            state.turn = state.turn.wrapping_add(1) % rooms.len();
            rooms.rotate_left(state.turn);
        }
        (rooms, most.saturating_sub(state.all))
    }

    /// Up to `most` targets to look at now.
    pub(super) fn looks(&self, now: Timestamp, most: usize) -> Vec<Arc<str>> {
        let state = self.state();
        let due = state.waited_for.iter().filter(|(_, look)| look.is_due(now));
        due.map(|(target, _)| Arc::clone(target)).take(most).collect()
    }

    /// When the next pause of a waited-for target is over.
    pub(super) fn next_look(&self, now: Timestamp) -> Option<Timestamp> {
        let ends = |look: &Look| match look {
            Look::At(at) if *at > now => Some(*at),
            _ => None,
        };
        self.state().waited_for.values().filter_map(ends).min()
    }

    pub(super) fn is_waited_for(&self, target: &str) -> bool {
        self.state().waited_for.contains_key(target)
    }

    pub(super) fn under_way(&self, target: &str) -> u32 {
        self.state().targets.get(target).copied().unwrap_or(0)
    }

    /// Looks at these targets, and at all that are known to be waited for, at the next claim.
    pub(super) fn look_at_all(&self, waited_for: Vec<String>) {
        let mut state = self.state();
        let found: BTreeSet<Arc<str>> = waited_for.into_iter().map(Arc::from).collect();
        state.waited_for = found.into_iter().map(|target| (target, Look::Now)).collect();
    }

    /// Takes the slots of what was claimed, and notes when to look at targets again. Answers whether to
    /// claim again at once.
    pub(super) fn take(&self, claimed: &Claimed, kinds: &[Arc<Kind>], most: u32, now: Timestamp) -> bool {
        let mut state = self.state();
        for lease in &claimed.leases {
            state.all = state.all.saturating_add(1);
            if let Some(taken) = state.kinds.get_mut(lease.kind) {
                *taken = taken.saturating_add(1);
            }
            if let Some(target) = &lease.target {
                let under_way = state.targets.entry(Arc::clone(target)).or_default();
                *under_way = under_way.saturating_add(1);
            }
        }
        for (target, seen) in &claimed.targets {
            if !seen.waiting {
                state.waited_for.remove(target);
                continue;
            }
            // One of its jobs may have ended since the claim counted them: then look again at once.
            let under_way = state.targets.get(target).copied().unwrap_or(0);
            let look = match seen.closed_until {
                Some(until) => Look::At(until),
                None if seen.no_slot => Look::SlotFree,
                None if under_way < seen.allowance => Look::Now,
                None => Look::TargetFree,
            };
            state.waited_for.insert(Arc::clone(target), look);
        }
        // More targets may be due for a look than one claim looks at.
        let mut at_once = state.all < most && state.waited_for.values().any(|look| look.is_due(now));
        for index in &claimed.short {
            let taken = state.kinds.get(*index).copied().unwrap_or(u32::MAX);
            let room =
                kinds.get(*index).is_some_and(|kind| taken < kind.policy.concurrency) && state.all < most;
            // Slots may have become free since the claim counted them, and nobody rang for them.
            at_once |= room;
            state.starved |= !room;
        }
        at_once
    }

    /// Gives the slots of a lease back. Answers whether somebody waits for them.
    pub(super) fn give_back(&self, lease: &Lease) -> bool {
        let mut state = self.state();
        state.all = state.all.saturating_sub(1);
        if let Some(taken) = state.kinds.get_mut(lease.kind) {
            *taken = taken.saturating_sub(1);
        }
        let mut wanted = std::mem::take(&mut state.starved);
        if wanted {
            for look in state.waited_for.values_mut().filter(|look| **look == Look::SlotFree) {
                *look = Look::Now;
            }
        }
        if let Some(target) = &lease.target {
            if let Some(under_way) = state.targets.get_mut(target) {
                *under_way = under_way.saturating_sub(1);
                if *under_way == 0 {
                    state.targets.remove(target);
                }
            }
            if let Some(look) = state.waited_for.get_mut(target) {
                *look = Look::Now;
                wanted = true;
            }
        }
        wanted
    }

    /// Whether no lease is left but those that wait to be buried.
    pub(super) fn all_ended(&self) -> bool {
        let state = self.state();
        usize::try_from(state.all).is_ok_and(|all| all <= state.broken.len())
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.state().all
    }

    pub(super) fn in_flight_by_kind(&self) -> Vec<u32> {
        self.state().kinds.clone()
    }

    pub(super) fn set_broken(&self, lease: Arc<Lease>, why: String) {
        self.state().broken.push((lease, why));
    }

    pub(super) fn take_broken(&self) -> Vec<(Arc<Lease>, String)> {
        std::mem::take(&mut self.state().broken)
    }
}

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
    waited_for: BTreeMap<Arc<str>, Timestamp>,
    /// Whether the last claim left due jobs for want of slots.
    starved: bool,
    /// Where the next round of kinds begins, so that each gets its turn at scarce slots.
    turn: usize,
    /// Leases whose outcome could not be recorded, and why.
    broken: Vec<(Arc<Lease>, String)>,
}

/// Room for more leases.
pub(super) struct Rooms {
    /// Kinds with room, in the order they are to be served.
    pub(super) kinds: Vec<Room>,
    /// Leases altogether.
    pub(super) left: u32,
    /// Kinds without room.
    pub(super) full: Vec<usize>,
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

    /// Which kinds have room, and how many leases there may be more altogether.
    pub(super) fn room(&self, kinds: &[Arc<Kind>], most: u32) -> Rooms {
        let mut state = self.state();
        state.turn = state.turn.wrapping_add(1);
        let rooms = (0..).zip(kinds).zip(&state.kinds).map(|((index, kind), taken)| Room {
            kind: Arc::clone(kind),
            index,
            free: kind.policy.concurrency.saturating_sub(*taken),
        });
        let (mut kinds, full): (Vec<Room>, Vec<Room>) = rooms.partition(|room| room.free > 0);
        if !kinds.is_empty() {
            let first = state.turn % kinds.len();
            kinds.rotate_left(first);
        }
        let left = most.saturating_sub(state.all);
        let full = full.iter().chain(kinds.iter().filter(|_| left == 0)).map(|room| room.index).collect();
        Rooms { kinds, left, full }
    }

    /// Targets to look at now.
    pub(super) fn looks(&self, now: Timestamp, most: usize) -> Vec<Arc<str>> {
        let state = self.state();
        let due = state.waited_for.iter().filter(|(_, at)| **at <= now);
        due.map(|(target, _)| Arc::clone(target)).take(most).collect()
    }

    /// When the next target is to be looked at that is not to be looked at now.
    pub(super) fn next_look(&self, now: Timestamp) -> Option<Timestamp> {
        self.state().waited_for.values().copied().filter(|at| *at > now).min()
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
        state.waited_for = found.into_iter().map(|target| (target, Timestamp::EPOCH)).collect();
    }

    /// Takes the slots of what was claimed, and notes when to look at targets again. `full` are the kinds
    /// that were not even asked for. Answers whether to claim again at once.
    pub(super) fn take(&self, claimed: &Claimed, full: &[usize], kinds: &[Arc<Kind>], most: u32) -> bool {
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
            let at = match seen.closed_until {
                Some(until) => until,
                None if under_way < seen.allowance => Timestamp::EPOCH,
                None => Timestamp::MAX,
            };
            state.waited_for.insert(Arc::clone(target), at);
        }
        let mut at_once = claimed.progressed && state.waited_for.values().any(|at| *at == Timestamp::EPOCH);
        for index in claimed.short.iter().chain(full) {
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
        if let Some(target) = &lease.target {
            if let Some(under_way) = state.targets.get_mut(target) {
                *under_way = under_way.saturating_sub(1);
                if *under_way == 0 {
                    state.targets.remove(target);
                }
            }
            if let Some(at) = state.waited_for.get_mut(target) {
                *at = Timestamp::EPOCH;
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

//! One target's breaker, shared by all who ask it.
//!
//! ```text
//! passing ──failures in a row, or too many of the last──► tripped ──pause over──► probing
//!    ▲                                                       ▲                      │  │
//!    │                                                       └──────probe fails─────┘  │
//!    └──────allowance whole again── ramping ◄───────────────────────probe succeeds─────┘
//! ```
//!
//! Guarantees: while tripped nothing is let through; while probing one call is. A permit that is dropped
//! without a verdict (its caller was cancelled) gives its place back, so that a probe that vanishes cannot
//! block the target for ever; a verdict from before the last change of state is not taken for the probe's.
//!
//! Deliberately absent: the rules of tripping and ramping, which are [`domain::breaker`], and durability.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::breaker::{Breaker, BreakerPolicy};
use domain::time::Timestamp;

/// Trips on a share of failures, for targets that fail and succeed in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailureShare {
    /// Over this span, held as two halves.
    pub window: Duration,
    /// Not before this many calls.
    pub min_calls: u32,
    /// 1 to 100.
    pub percent: u32,
}

/// When a target is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerRules {
    /// Failures in a row, and pauses.
    pub policy: BreakerPolicy,
    /// A share of failures.
    pub share: Option<FailureShare>,
    /// Calls under way at once when all is well.
    pub most: u32,
}

/// Why a call is not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotNow {
    /// The target is left alone until then.
    Tripped {
        /// When a probe may be made.
        until: Timestamp,
    },
    /// As many calls as allowed are under way.
    Full,
}

/// The breaker of one target.
#[derive(Debug)]
pub struct BreakerCell {
    rules: BreakerRules,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    breaker: Breaker,
    under_way: u32,
    /// Grows whenever the breaker trips, is reset or turns to probing: verdicts of older calls are void.
    era: u64,
    /// Calls and failures in this half of the window and in the one before.
    halves: [Half; 2],
    half_began: Timestamp,
}

#[derive(Debug, Clone, Copy, Default)]
struct Half {
    calls: u32,
    failures: u32,
}

/// Leave to make one call. Say how it went; dropping it says nothing.
#[derive(Debug)]
pub struct Permit<'a> {
    cell: &'a BreakerCell,
    era: u64,
}

impl BreakerCell {
    /// All is well so far.
    #[must_use]
    pub fn new(rules: BreakerRules) -> Self {
        let state = State {
            breaker: Breaker::default(),
            under_way: 0,
            era: 0,
            halves: [Half::default(); 2],
            half_began: Timestamp::EPOCH,
        };
        Self { rules, state: Mutex::new(state) }
    }

    /// Asks to make a call at `now`.
    ///
    /// # Errors
    /// [`NotNow`].
    pub fn ask(&self, now: Timestamp) -> Result<Permit<'_>, NotNow> {
        let mut state = self.lock();
        if let Some(until) = state.breaker.closed_until(now) {
            return Err(NotNow::Tripped { until });
        }
        if state.breaker.begin(now) != state.breaker {
            state.breaker = state.breaker.begin(now);
            state.era = state.era.wrapping_add(1);
            // Calls from before the pause may still hang; they are not what the probe waits for.
            state.under_way = 0;
        }
        if state.under_way >= state.breaker.allowance(now, self.rules.most) {
            return Err(NotNow::Full);
        }
        state.under_way = state.under_way.saturating_add(1);
        Ok(Permit { cell: self, era: state.era })
    }

    /// What it is now.
    #[must_use]
    pub fn breaker(&self) -> Breaker {
        self.lock().breaker
    }

    /// Leaves the target alone until then, by hand.
    pub fn trip(&self, until: Timestamp) {
        self.enter(Breaker::Tripped { until, trips: 1 });
    }

    /// Forgets all failures, by hand.
    pub fn reset(&self) {
        self.enter(Breaker::default());
    }

    fn enter(&self, breaker: Breaker) {
        let mut state = self.lock();
        state.breaker = breaker;
        state.begin_era();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begin_era(&mut self) {
        self.era = self.era.wrapping_add(1);
        self.under_way = 0;
        self.halves = [Half::default(); 2];
    }

    fn count(&mut self, now: Timestamp, share: &FailureShare, failed: bool) {
        let half = share.window / 2;
        let age = now.since(self.half_began);
        if age >= half {
            let [current, _] = self.halves;
            self.halves = [Half::default(), if age >= share.window { Half::default() } else { current }];
            self.half_began = now;
        }
        if let Some(current) = self.halves.first_mut() {
            current.calls = current.calls.saturating_add(1);
            current.failures = current.failures.saturating_add(u32::from(failed));
        }
    }

    fn fails_too_often(&self, share: &FailureShare) -> bool {
        let sum = |of: fn(&Half) -> u32| self.halves.iter().map(|half| u64::from(of(half))).sum::<u64>();
        let (calls, failures) = (sum(|half| half.calls), sum(|half| half.failures));
        calls >= u64::from(share.min_calls)
            && failures.saturating_mul(100) >= calls.saturating_mul(share.percent.into())
    }
}

impl Permit<'_> {
    /// The call went well.
    pub fn succeeded(self, now: Timestamp) {
        let mut state = self.cell.lock();
        if state.era != self.era {
            return;
        }
        if let Some(share) = &self.cell.rules.share {
            state.count(now, share, false);
        }
        state.breaker = state.breaker.succeeded(self.cell.rules.most);
    }

    /// The call failed in a way that says something about the target. `wish` is its `Retry-After`.
    pub fn failed(self, now: Timestamp, wish: Option<Duration>) {
        let mut state = self.cell.lock();
        if state.era != self.era {
            return;
        }
        let rules = &self.cell.rules;
        let mut before = state.breaker;
        if let Some(share) = &rules.share {
            state.count(now, share, true);
            if state.fails_too_often(share) && matches!(before, Breaker::Passing { .. }) {
                before = Breaker::Passing { failures: u32::MAX };
            }
        }
        state.breaker = before.failed(now, &rules.policy, wish);
        if state.breaker.closed_until(now).is_some() {
            state.begin_era();
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut state = self.cell.lock();
        if state.era == self.era {
            state.under_way = state.under_way.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_seconds(1_000_000 + seconds)
    }

    fn cell(share: Option<FailureShare>) -> BreakerCell {
        let policy = BreakerPolicy {
            trip_after: 3,
            pause: Duration::from_secs(10),
            pause_cap: Duration::from_secs(60),
        };
        BreakerCell::new(BreakerRules { policy, share, most: 8 })
    }

    fn fail(cell: &BreakerCell, times: usize, now: Timestamp) {
        for _ in 0..times {
            cell.ask(now).unwrap().failed(now, None);
        }
    }

    #[test]
    fn nothing_passes_while_tripped_and_one_while_probing() {
        let cell = cell(None);
        fail(&cell, 3, at(0));
        for second in 0..10 {
            assert_eq!(cell.ask(at(second)).unwrap_err(), NotNow::Tripped { until: at(10) });
        }
        let probe = cell.ask(at(10)).unwrap();
        assert_eq!(cell.ask(at(10)).unwrap_err(), NotNow::Full);
        probe.succeeded(at(11));
        let ramp: Vec<_> = (0..2).map(|_| cell.ask(at(11)).unwrap()).collect();
        assert_eq!(cell.ask(at(11)).unwrap_err(), NotNow::Full, "the ramp begins with two");
        for permit in ramp {
            permit.succeeded(at(12));
        }
        assert_eq!(cell.breaker(), Breaker::default());
    }

    #[test]
    fn a_probe_that_vanishes_gives_its_place_back() {
        let cell = cell(None);
        fail(&cell, 3, at(0));
        drop(cell.ask(at(10)).unwrap());
        cell.ask(at(10)).unwrap().succeeded(at(10));
        assert_eq!(cell.breaker().as_str(), "ramping");
    }

    #[test]
    fn a_verdict_from_before_the_pause_does_not_decide_the_probe() {
        let cell = cell(None);
        let late_failure = cell.ask(at(0)).unwrap();
        let late_success = cell.ask(at(0)).unwrap();
        let dropped = cell.ask(at(0)).unwrap();
        fail(&cell, 3, at(0));
        let probe = cell.ask(at(10)).unwrap();
        late_success.succeeded(at(10));
        assert_eq!(cell.breaker().as_str(), "probing");
        late_failure.failed(at(10), None);
        drop(dropped);
        assert_eq!(cell.breaker().as_str(), "probing");
        assert_eq!(cell.ask(at(10)).unwrap_err(), NotNow::Full, "the old permits gave no place back");
        probe.failed(at(10), None);
        assert_eq!(cell.breaker(), Breaker::Tripped { until: at(30), trips: 2 });
    }

    #[test]
    fn trips_on_a_share_of_failures() {
        let share = FailureShare { window: Duration::from_secs(60), min_calls: 10, percent: 50 };
        let flapping = cell(Some(share));
        for turn in 0..9 {
            let permit = flapping.ask(at(turn)).unwrap();
            if turn % 2 == 0 { permit.failed(at(turn), None) } else { permit.succeeded(at(turn)) }
        }
        assert_eq!(flapping.breaker().as_str(), "passing", "nine calls are too few to judge");
        flapping.ask(at(9)).unwrap().succeeded(at(9));
        flapping.ask(at(9)).unwrap().failed(at(9), None);
        assert_eq!(flapping.breaker().as_str(), "tripped");

        let slow = cell(Some(share));
        for turn in 0..40 {
            let now = at(turn * 61);
            let permit = slow.ask(now).unwrap();
            if turn % 2 == 0 { permit.failed(now, None) } else { permit.succeeded(now) }
        }
        assert_eq!(slow.breaker().as_str(), "passing", "what lies outside the window does not count");
    }

    #[test]
    fn by_hand() {
        let cell = cell(None);
        cell.trip(at(100));
        assert_eq!(cell.ask(at(99)).unwrap_err(), NotNow::Tripped { until: at(100) });
        cell.reset();
        assert!(cell.ask(at(99)).is_ok());
    }
}

//! When to leave a failing target alone, and how to come back: passing → tripped → probing → ramping.
//!
//! A pure value asked with `now`: the caller decides where it lives. While tripped nothing is
//! allowed; when the pause is over exactly one probe is; after a good probe the allowance doubles with each
//! success until it is whole again, so that a backlog does not knock the target over at once.

use std::time::Duration;

use crate::time::Timestamp;

/// When a breaker trips and how long it stays tripped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Consecutive failures that trip it.
    pub trip_after: u32,
    /// The first pause. Each failed probe doubles it.
    pub pause: Duration,
    /// No pause is longer.
    pub pause_cap: Duration,
}

/// The breaker of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breaker {
    /// All is allowed; this many failures in a row so far.
    Passing {
        /// Failures since the last success.
        failures: u32,
    },
    /// Nothing is allowed before `until`.
    Tripped {
        /// When a probe may be made.
        until: Timestamp,
        /// How many pauses in a row, this one included.
        trips: u32,
    },
    /// One probe is under way.
    Probing {
        /// How many pauses came before.
        trips: u32,
    },
    /// The probe was good: this many at a time, doubling.
    Ramping {
        /// Allowed at a time.
        allowance: u32,
    },
}

impl Default for Breaker {
    fn default() -> Self {
        Self::Passing { failures: 0 }
    }
}

impl Breaker {
    /// How many calls may be under way at once, of the `most` that the target allows when healthy.
    #[must_use]
    pub fn allowance(&self, now: Timestamp, most: u32) -> u32 {
        match *self {
            Self::Passing { .. } => most,
            Self::Tripped { until, .. } => u32::from(now >= until).min(most),
            Self::Probing { .. } => 1.min(most),
            Self::Ramping { allowance } => allowance.min(most),
        }
    }

    /// When something may be tried again, if nothing may be now.
    #[must_use]
    pub fn closed_until(&self, now: Timestamp) -> Option<Timestamp> {
        match *self {
            Self::Tripped { until, .. } if now < until => Some(until),
            _ => None,
        }
    }

    /// A call begins. A tripped breaker whose pause is over turns to probing.
    #[must_use]
    pub fn begin(self, now: Timestamp) -> Self {
        match self {
            Self::Tripped { until, trips } if now >= until => Self::Probing { trips },
            other => other,
        }
    }

    /// A call ended well. `most` is the full allowance, at which ramping ends.
    #[must_use]
    pub fn succeeded(self, most: u32) -> Self {
        match self {
            Self::Probing { .. } | Self::Tripped { .. } => Self::Ramping { allowance: 2 },
            Self::Ramping { allowance } if allowance.saturating_mul(2) < most => {
                Self::Ramping { allowance: allowance.saturating_mul(2) }
            }
            _ => Self::Passing { failures: 0 },
        }
    }

    /// A call failed in a way that says something about the target. `wish` is its `Retry-After`, if it
    /// sent one; it can lengthen the pause up to the cap, never shorten it.
    #[must_use]
    pub fn failed(self, now: Timestamp, policy: &BreakerPolicy, wish: Option<Duration>) -> Self {
        let trips = match self {
            Self::Passing { failures } if failures.saturating_add(1) < policy.trip_after => {
                return Self::Passing { failures: failures.saturating_add(1) };
            }
            Self::Passing { .. } | Self::Ramping { .. } => 1,
            Self::Tripped { until, .. } if now < until => return self,
            Self::Tripped { trips, .. } | Self::Probing { trips } => trips.saturating_add(1),
        };
        let doubled = policy.pause.saturating_mul(1 << trips.saturating_sub(1).min(30));
        let pause = doubled.max(wish.unwrap_or_default()).min(policy.pause_cap);
        Self::Tripped { until: now + pause, trips }
    }

    /// The word operators see.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Passing { .. } => "passing",
            Self::Tripped { .. } => "tripped",
            Self::Probing { .. } => "probing",
            Self::Ramping { .. } => "ramping",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: BreakerPolicy =
        BreakerPolicy { trip_after: 3, pause: Duration::from_secs(10), pause_cap: Duration::from_secs(60) };

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn trips_probes_once_and_ramps() {
        let mut breaker = Breaker::default();
        for _ in 0..2 {
            breaker = breaker.failed(at(0), &POLICY, None);
        }
        assert_eq!(breaker.allowance(at(0), 8), 8);
        breaker = breaker.failed(at(0), &POLICY, None);
        assert_eq!(breaker.allowance(at(9), 8), 0);
        assert_eq!(breaker.closed_until(at(9)), Some(at(10)));
        assert_eq!(breaker.allowance(at(10), 8), 1);
        breaker = breaker.begin(at(10));
        assert_eq!(breaker, Breaker::Probing { trips: 1 });
        breaker = breaker.failed(at(11), &POLICY, None);
        assert_eq!(breaker, Breaker::Tripped { until: at(31), trips: 2 });
        breaker = breaker.begin(at(31)).succeeded(8);
        assert_eq!(breaker.allowance(at(31), 8), 2);
        breaker = breaker.succeeded(8).succeeded(8);
        assert_eq!(breaker, Breaker::default());
    }

    #[test]
    fn a_wish_lengthens_the_pause_within_the_cap() {
        let tripped = |wish| {
            let worn = Breaker::Passing { failures: 2 };
            worn.failed(at(0), &POLICY, wish).closed_until(at(0))
        };
        assert_eq!(tripped(Some(Duration::from_secs(30))), Some(at(30)));
        assert_eq!(tripped(Some(Duration::from_secs(1))), Some(at(10)));
        assert_eq!(tripped(Some(Duration::MAX)), Some(at(60)));
    }

    #[test]
    fn a_late_failure_does_not_lengthen_a_pause_under_way() {
        let tripped = Breaker::Tripped { until: at(10), trips: 1 };
        assert_eq!(tripped.failed(at(5), &POLICY, None), tripped);
    }
}

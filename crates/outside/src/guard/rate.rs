//! How often a target may be asked: a token bucket as one number.
//!
//! ```text
//! open ──tokens run out──► waiting ──time passes──► open
//!   └────the target asks for quiet────► held ──its span passes──► open
//! ```
//!
//! Guarantees: in any span `t` at most `burst + rate · t` tokens are granted (the generic cell rate algorithm,
//! ITU-T I.371: the state is the *theoretical arrival time* of the next token). Spans are rounded against
//! the caller, never for it.
//!
//! Deliberately absent: waiting, and durability. A refusal says when to come back.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A rate and a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds that one token costs.
    per_token: i64,
    /// Nanoseconds by which tokens may come early: `burst − 1` of them.
    tolerance: i64,
}

/// The theoretical arrival time of the next token, in nanoseconds on the caller's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Arrival(i64);

impl Arrival {
    /// As a number that can be stored.
    #[must_use]
    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    /// From a stored number.
    #[must_use]
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }
}

impl Rate {
    /// `tokens` in each `span`, of which `burst` may come at once. Too much for 64 bits of
    /// nanoseconds is held at their end.
    #[must_use]
    pub fn new(tokens: NonZeroU32, span: Duration, burst: NonZeroU32) -> Self {
        let per_token = nanos(span).saturating_add(i64::from(tokens.get()) - 1) / i64::from(tokens.get());
        let per_token = per_token.max(1);
        Self { per_token, tolerance: per_token.saturating_mul(i64::from(burst.get()) - 1) }
    }

    /// Takes a token at `now`.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn take(&self, next: Arrival, now: i64) -> Result<Arrival, Duration> {
        let due = next.0.max(now);
        let early = due.saturating_sub(now).saturating_sub(self.tolerance);
        if early > 0 {
            return Err(Duration::from_nanos(early.unsigned_abs()));
        }
        Ok(Arrival(due.saturating_add(self.per_token)))
    }

    /// No token before `quiet` has passed.
    #[must_use]
    pub fn hold(&self, next: Arrival, now: i64, quiet: Duration) -> Arrival {
        Arrival(next.0.max(now.saturating_add(nanos(quiet)).saturating_add(self.tolerance)))
    }
}

/// The tokens of one target, shared by all who ask it.
#[derive(Debug)]
pub struct RateCell {
    rate: Rate,
    next: Mutex<Arrival>,
}

impl RateCell {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, next: Mutex::new(Arrival(i64::MIN)) }
    }

    /// Takes a token at `now`, a monotonic reading.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn take(&self, now: Duration) -> Result<(), Duration> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = self.rate.take(*next, nanos(now))?;
        Ok(())
    }

    /// The target asked to be left alone for `quiet`.
    pub fn hold(&self, now: Duration, quiet: Duration) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = self.rate.hold(*next, nanos(now), quiet);
    }
}

fn nanos(span: Duration) -> i64 {
    i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(tokens: u32, seconds: u64, burst: u32) -> Rate {
        Rate::new(
            NonZeroU32::new(tokens).unwrap(),
            Duration::from_secs(seconds),
            NonZeroU32::new(burst).unwrap(),
        )
    }

    #[test]
    fn a_burst_then_one_at_a_time() {
        let cell = RateCell::new(rate(10, 1, 3));
        let at = Duration::from_millis;
        for _ in 0..3 {
            assert_eq!(cell.take(at(1000)), Ok(()));
        }
        assert_eq!(cell.take(at(1000)), Err(at(100)));
        assert_eq!(cell.take(at(1099)), Err(at(1)));
        assert_eq!(cell.take(at(1100)), Ok(()));
        assert_eq!(cell.take(at(1100)), Err(at(100)));
        cell.hold(at(1100), at(5000));
        assert_eq!(cell.take(at(6000)), Err(at(100)));
        assert_eq!(cell.take(at(6100)), Ok(()), "the quiet is over");
        assert_eq!(cell.take(at(6100)), Err(at(100)), "and no burst was saved up meanwhile");
    }

    #[test]
    fn extremes_do_not_overflow() {
        let slow = Rate::new(NonZeroU32::MIN, Duration::MAX, NonZeroU32::MAX);
        let cell = RateCell::new(slow);
        assert_eq!(cell.take(Duration::MAX), Ok(()));
        cell.hold(Duration::MAX, Duration::MAX);
        let _refused_or_not = cell.take(Duration::ZERO);
        assert_eq!(RateCell::new(rate(u32::MAX, 0, 1)).take(Duration::ZERO), Ok(()));
    }

    proptest! {
        /// The promise itself, for every window between two grants.
        #[test]
        fn any_window_grants_at_most_burst_plus_rate_times_time(
            tokens in 1u32..50, burst in 1u32..20, steps in proptest::collection::vec(0u64..300_000_000, 1..300),
        ) {
            let cell = RateCell::new(rate(tokens, 1, burst));
            let mut now = 0u64;
            let mut grants = Vec::new();
            for step in steps {
                now += step;
                if cell.take(Duration::from_nanos(now)).is_ok() {
                    grants.push(now);
                }
            }
            for (from, start) in grants.iter().enumerate() {
                for (upto, end) in grants.iter().enumerate().skip(from) {
                    let granted = u128::try_from(upto - from + 1).unwrap();
                    let allowed = u128::from(burst) + u128::from(tokens) * u128::from(end - start) / 1_000_000_000;
                    prop_assert!(granted <= allowed, "{granted} > {allowed}");
                }
            }
        }

        /// Who waits as long as told gets a token then, and not a nanosecond earlier.
        #[test]
        fn the_wait_is_exact(tokens in 1u32..1000, burst in 1u32..20, takes in 1usize..60) {
            let rate = rate(tokens, 1, burst);
            let mut next = Arrival(0);
            for _ in 0..takes {
                match rate.take(next, 0) {
                    Ok(later) => next = later,
                    Err(wait) => {
                        let wait = i64::try_from(wait.as_nanos()).unwrap();
                        prop_assert!(rate.take(next, wait - 1).is_err());
                        prop_assert!(rate.take(next, wait).is_ok());
                    }
                }
            }
        }
    }
}

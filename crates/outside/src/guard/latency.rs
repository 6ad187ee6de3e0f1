//! How long a target takes, over the recent past.
//!
//! ```text
//! [ earlier half | current half ] ──half a window passes──► [ current half | empty ]
//! ```
//!
//! Guarantees: percentiles cover at least half of the window and at most all of it; memory does not grow with the
//! number of calls (HDR histograms, two significant digits, one microsecond to ten minutes).
//!
//! Deliberately absent: averages.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

const LONGEST_MICROS: u64 = 600_000_000;

/// What the recent calls took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Percentiles {
    /// Half of the calls took no longer.
    pub p50: Duration,
    /// 95 of 100 calls took no longer.
    pub p95: Duration,
    /// 99 of 100 calls took no longer.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
    /// How many calls.
    pub calls: u64,
}

/// The latencies of one target.
#[derive(Debug)]
pub struct Latency {
    half: Duration,
    halves: Mutex<Option<Halves>>,
}

#[derive(Debug)]
struct Halves {
    earlier: Histogram<u64>,
    current: Histogram<u64>,
    /// When the current half began, by the monotonic clock.
    began: Duration,
}

impl Latency {
    /// Over this span.
    #[must_use]
    pub fn over(window: Duration) -> Self {
        Self { half: window / 2, halves: Mutex::new(None) }
    }

    /// A call that ended at `now`, a monotonic reading, took `span`.
    pub fn record(&self, now: Duration, span: Duration) {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        if halves.is_none() {
            *halves = Halves::starting(now);
        }
        let Some(halves) = halves.as_mut() else { return };
        halves.turn(now, self.half);
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        halves.current.saturating_record(micros.clamp(1, LONGEST_MICROS));
    }

    /// The recent calls at `now`; `None` if there were none.
    #[must_use]
    pub fn percentiles(&self, now: Duration) -> Option<Percentiles> {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        let halves = halves.as_mut()?;
        halves.turn(now, self.half);
        let mut all = halves.earlier.clone();
        all.add(&halves.current).ok()?;
        let at = |quantile| Duration::from_micros(all.value_at_quantile(quantile));
        let percentiles = || Percentiles {
            p50: at(0.50),
            p95: at(0.95),
            p99: at(0.99),
            max: Duration::from_micros(all.max()),
            calls: all.len(),
        };
        (!all.is_empty()).then(percentiles)
    }
}

impl Halves {
    fn starting(now: Duration) -> Option<Self> {
        let empty = Histogram::new_with_bounds(1, LONGEST_MICROS, 2).ok()?;
        Some(Self { earlier: empty.clone(), current: empty, began: now })
    }

    fn turn(&mut self, now: Duration, half: Duration) {
        let age = now.saturating_sub(self.began);
        if age < half {
            return;
        }
        std::mem::swap(&mut self.earlier, &mut self.current);
        self.current.reset();
        if age >= half.saturating_mul(2) {
            self.earlier.reset();
        }
        self.began = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_the_recent_past() {
        let latency = Latency::over(Duration::from_secs(60));
        let at = Duration::from_secs;
        assert_eq!(latency.percentiles(at(0)), None);
        for millis in 1..=100 {
            latency.record(at(0), Duration::from_millis(millis));
        }
        let seen = latency.percentiles(at(1)).unwrap();
        assert_eq!(seen.calls, 100);
        let near = |span: Duration, millis: u64| {
            span.as_micros().abs_diff(u128::from(millis) * 1000) <= 10 * u128::from(millis)
        };
        assert!(
            near(seen.p50, 50) && near(seen.p95, 95) && near(seen.p99, 99) && near(seen.max, 100),
            "{seen:?}"
        );

        latency.record(at(35), Duration::from_millis(500));
        assert_eq!(latency.percentiles(at(35)).unwrap().calls, 101, "the earlier half still counts");
        assert_eq!(latency.percentiles(at(66)).unwrap().calls, 1, "and then no more");
        assert_eq!(latency.percentiles(at(200)), None);
    }

    #[test]
    fn extremes_are_held_not_lost() {
        let latency = Latency::over(Duration::from_secs(60));
        latency.record(Duration::ZERO, Duration::ZERO);
        latency.record(Duration::ZERO, Duration::MAX);
        assert_eq!(latency.percentiles(Duration::ZERO).unwrap().calls, 2);
    }
}

//! When to try again: exponential, capped, with jitter that is passed in.

use std::time::Duration;

use crate::chance::Chance;

/// Exponential backoff: `initial · 2^(attempt − 1)`, at most `cap`, spread by ±`jitter_percent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first failed attempt.
    pub initial: Duration,
    /// No wait is longer, jitter included.
    pub cap: Duration,
    /// 0 to 100: how far chance may move the wait, so that failures do not come back in step.
    pub jitter_percent: u8,
}

impl Backoff {
    /// The wait after the `attempt`-th failed attempt (1 for the first), without jitter. Saturates.
    #[must_use]
    pub fn nominal(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(63);
        let initial = u64::try_from(self.initial.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(initial.saturating_mul(1 << doublings)).min(self.cap)
    }

    /// The wait after the `attempt`-th failed attempt, with jitter. Never above `cap`.
    #[must_use]
    pub fn wait(&self, attempt: u32, chance: &Chance) -> Duration {
        let nominal = u64::try_from(self.nominal(attempt).as_millis()).unwrap_or(u64::MAX);
        let spread = nominal / 100 * u64::from(self.jitter_percent.min(100))
            + nominal % 100 * u64::from(self.jitter_percent.min(100)) / 100;
        let moved =
            (nominal - spread).saturating_add(chance.below(spread.saturating_mul(2).saturating_add(1)));
        Duration::from_millis(moved).min(self.cap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BACKOFF: Backoff =
        Backoff { initial: Duration::from_secs(5), cap: Duration::from_secs(14_400), jitter_percent: 20 };

    #[test]
    fn doubles_up_to_the_cap() {
        let waits: Vec<u64> = (1..=4).map(|attempt| BACKOFF.nominal(attempt).as_secs()).collect();
        assert_eq!(waits, [5, 10, 20, 40]);
        assert_eq!(BACKOFF.nominal(u32::MAX), BACKOFF.cap);
    }

    proptest! {
        #[test]
        fn jitter_stays_within_its_band(attempt in 1u32..200, seed: u64) {
            let nominal = BACKOFF.nominal(attempt);
            let wait = BACKOFF.wait(attempt, &Chance::from_seed(seed));
            prop_assert!(wait >= nominal * 4 / 5 && wait <= (nominal * 6 / 5).min(BACKOFF.cap));
        }
    }
}

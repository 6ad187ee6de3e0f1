//! Whether a failed call is made again, and when.
//!
//! ```text
//! tried ──may be tried again, attempts left, budget left──► waiting ──► tried
//!   └─────otherwise──► given up
//! ```
//!
//! Guarantees: attempts are bounded per call, and over all calls of a target retries stay below a share of
//! the calls, so that an outage is not answered with a multiple of the usual load.
//!
//! Deliberately absent: the judgement whether a call is safe to repeat. The error says so ([`Judged`]).

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use domain::backoff::Backoff;
use domain::chance::Chance;

use crate::http::{HttpError, HttpErrorKind, Phase, Sent};

/// What a failure means for the next attempt and for the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it says something about the target.
    pub is_the_targets: bool,
    /// Whether another attempt is safe and may help.
    pub may_retry: bool,
    /// How long the target asked to be left alone.
    pub wish: Option<Duration>,
}

/// An error that can be judged.
pub trait Judged {
    /// What it means.
    fn verdict(&self) -> Verdict;
}

impl Judged for HttpError {
    /// Another attempt is safe only where nothing was sent: whether a request may be repeated is not known here.
    fn verdict(&self) -> Verdict {
        let passing = matches!(
            self.kind,
            HttpErrorKind::NameLookupFailed
                | HttpErrorKind::ConnectRefused
                | HttpErrorKind::ConnectFailed
                | HttpErrorKind::Reset
                | HttpErrorKind::Timeout(Phase::Resolve | Phase::Connect | Phase::Tls | Phase::Send)
        );
        Verdict {
            is_the_targets: self.kind.is_the_targets(),
            may_retry: self.sent == Sent::Not && passing,
            wish: None,
        }
    }
}

/// How often one call is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all; 1 is no retry.
    pub attempts: u32,
    /// The waits between them.
    pub backoff: Backoff,
}

impl RetryPolicy {
    /// One attempt.
    pub const NEVER: Self = Self {
        attempts: 1,
        backoff: Backoff { initial: Duration::ZERO, cap: Duration::ZERO, jitter_percent: 0 },
    };

    /// How long to wait after the `attempt`-th attempt (1 for the first) failed; `None` to give up. A wish
    /// lengthens the wait and never shortens it.
    #[must_use]
    pub fn wait(&self, attempt: u32, verdict: Verdict, chance: &Chance) -> Option<Duration> {
        if !verdict.may_retry || attempt >= self.attempts {
            return None;
        }
        Some(self.backoff.wait(attempt, chance).max(verdict.wish.unwrap_or_default()))
    }
}

/// The retries that a target's calls have earned together.
#[derive(Debug)]
pub struct RetryBudget {
    percent: u32,
    most: u64,
    /// In hundredths of a retry.
    balance: Mutex<u64>,
}

impl RetryBudget {
    /// Each call earns `percent` hundredths of a retry; at most `most` retries can be saved up, and that many are
    /// there at the start.
    #[must_use]
    pub fn new(percent: u32, most: u32) -> Self {
        let most = u64::from(most).saturating_mul(100);
        Self { percent, most, balance: Mutex::new(most) }
    }

    /// A call was begun.
    pub fn earn(&self) {
        let mut balance = self.balance.lock().unwrap_or_else(PoisonError::into_inner);
        *balance = balance.saturating_add(self.percent.into()).min(self.most);
    }

    /// Takes one retry, if there is one.
    #[must_use]
    pub fn spend(&self) -> bool {
        let mut balance = self.balance.lock().unwrap_or_else(PoisonError::into_inner);
        let left = balance.checked_sub(100);
        *balance = left.unwrap_or(*balance);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGAIN: Verdict = Verdict { is_the_targets: true, may_retry: true, wish: None };

    #[test]
    fn attempts_end() {
        let backoff =
            Backoff { initial: Duration::from_millis(10), cap: Duration::from_secs(1), jitter_percent: 0 };
        let policy = RetryPolicy { attempts: 3, backoff };
        let chance = Chance::from_seed(1);
        let wait = |attempt, verdict| policy.wait(attempt, verdict, &chance);
        assert_eq!(wait(1, AGAIN), Some(Duration::from_millis(10)));
        assert_eq!(wait(2, AGAIN), Some(Duration::from_millis(20)));
        assert_eq!(wait(3, AGAIN), None);
        assert_eq!(wait(1, Verdict { may_retry: false, ..AGAIN }), None);
        assert_eq!(
            wait(1, Verdict { wish: Some(Duration::from_secs(9)), ..AGAIN }),
            Some(Duration::from_secs(9))
        );
        assert_eq!(RetryPolicy::NEVER.wait(1, AGAIN, &chance), None);
    }

    #[test]
    fn an_outage_is_not_answered_with_a_multiple_of_the_load() {
        let budget = RetryBudget::new(20, 10);
        let mut retries = 0;
        for _ in 0..1000 {
            budget.earn();
            for _ in 0..3 {
                retries += u32::from(budget.spend());
            }
        }
        assert_eq!(
            retries,
            10 + 200 - 1,
            "the start's ten, less the first earning that had no room, and a fifth"
        );
    }

    #[test]
    fn what_may_have_been_sent_is_not_repeated() {
        let again = |kind, sent| HttpError::new(kind, sent, "").verdict().may_retry;
        assert!(again(HttpErrorKind::Reset, Sent::Not));
        assert!(!again(HttpErrorKind::Reset, Sent::Maybe));
        assert!(again(HttpErrorKind::Timeout(Phase::Connect), Sent::Not));
        assert!(!again(HttpErrorKind::Timeout(Phase::Head), Sent::Maybe));
        assert!(!again(HttpErrorKind::InvalidRequest, Sent::Not));
    }
}

//! One event on its way to one endpoint: what an answer means, and when to try again.
//!
//! A 2xx answer is success and nothing else is. An error never proves that the receiver did not act, so every retry
//! carries the same id and the same bytes. What can heal is retried by the schedule; what
//! will hardly heal is retried seldom and few times; what the receiver asks for (410, `Retry-After`) is honoured within bounds.

use std::time::Duration;

use crate::backoff::Backoff;
use crate::chance::Chance;

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryState {
    /// An earlier event of the same lane is not finished.
    Queued,
    /// Due, waiting, or being tried.
    Pending,
    /// A 2xx answer came.
    Delivered,
    /// Given up, with a reason; kept and replayable.
    Dead,
}

impl DeliveryState {
    /// The spelling outside.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }
}

impl std::fmt::Display for DeliveryState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for DeliveryState {
    type Err = crate::chain::InvalidWord;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Queued, Self::Pending, Self::Delivered, Self::Dead]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or(crate::chain::InvalidWord)
    }
}

/// Why a delivery was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeadReason {
    /// Every attempt failed in a way that could have healed.
    AttemptsExhausted,
    /// The receiver refused it for good (4xx, a redirect, an unusable answer).
    Rejected,
    /// The receiver answered 410 Gone; the endpoint is disabled.
    Gone,
    /// The endpoint's address is one we do not send to.
    TargetRefused,
    /// The endpoint was down for longer than an event is held.
    EndpointDown,
    /// The endpoint was disabled or deleted.
    EndpointDisabled,
    /// The process died during the attempt, again and again.
    CrashLoop,
}

impl DeadReason {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::AttemptsExhausted,
        Self::Rejected,
        Self::Gone,
        Self::TargetRefused,
        Self::EndpointDown,
        Self::EndpointDisabled,
        Self::CrashLoop,
    ];

    /// The spelling outside.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::Rejected => "rejected",
            Self::Gone => "gone",
            Self::TargetRefused => "target_refused",
            Self::EndpointDown => "endpoint_down",
            Self::EndpointDisabled => "endpoint_disabled",
            Self::CrashLoop => "crash_loop",
        }
    }
}

impl std::fmt::Display for DeadReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for DeadReason {
    type Err = crate::chain::InvalidWord;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text).ok_or(crate::chain::InvalidWord)
    }
}

/// What came of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A status line was read.
    Status {
        /// The status code.
        code: u16,
        /// `Retry-After`, already bounded.
        retry_after: Option<Duration>,
    },
    /// No status came: connection, TLS, timeout, protocol.
    NoAnswer,
    /// The address is one we do not send to.
    TargetRefused,
}

/// What follows from an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Done.
    Delivered,
    /// Try again after this wait. `target_at_fault` says whether the endpoint as a whole seems ill.
    Again {
        /// The wait.
        after: Duration,
        /// Counts towards the endpoint's breaker.
        target_at_fault: bool,
        /// The receiver's own wish, for the breaker's pause.
        wish: Option<Duration>,
    },
    /// Give up.
    Dead(DeadReason),
    /// Give up, and stop delivering to this endpoint.
    Disable,
}

/// How often and when a delivery is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeliveryPolicy {
    /// Attempts before it becomes a dead letter.
    pub max_attempts: u32,
    /// The waits between them.
    pub backoff: Backoff,
    /// The longest `Retry-After` that is honoured.
    pub retry_after_cap: Duration,
}

/// A refusal that will hardly heal is tried this often, at waits ten times as long: enough to
/// outlive a deployment, too little to hammer.
const REJECTED_ATTEMPTS: u32 = 5;
const REJECTED_STRETCH: u32 = 10;

impl DeliveryPolicy {
    /// What follows from the answer to the `attempt`-th attempt (1 for the first), after `rejections` earlier answers that
    /// refused it.
    #[must_use]
    pub fn judge(&self, answer: Answer, attempt: u32, rejections: u32, chance: &Chance) -> Verdict {
        let wait = self.backoff.wait(attempt, chance);
        match answer {
            Answer::Status { code: 200..=299, .. } => Verdict::Delivered,
            Answer::Status { code: 410, .. } => Verdict::Disable,
            Answer::Status { code: 408 | 425 | 500..=599, .. }
            | Answer::NoAnswer
            | Answer::Status { code: 429, .. } => self.again(answer, attempt, wait),
            Answer::Status { .. }
                if attempt >= self.max_attempts || rejections.saturating_add(1) >= REJECTED_ATTEMPTS =>
            {
                Verdict::Dead(DeadReason::Rejected)
            }
            Answer::Status { .. } => Verdict::Again {
                after: wait.saturating_mul(REJECTED_STRETCH).min(self.backoff.cap),
                target_at_fault: false,
                wish: None,
            },
            Answer::TargetRefused => Verdict::Dead(DeadReason::TargetRefused),
        }
    }

    /// Whether an answer refuses the delivery in a way that will hardly heal.
    #[must_use]
    pub const fn is_rejection(answer: Answer) -> bool {
        !matches!(
            answer,
            Answer::Status { code: 200..=299 | 408 | 410 | 425 | 429 | 500..=599, .. }
                | Answer::NoAnswer
                | Answer::TargetRefused
        )
    }

    fn again(&self, answer: Answer, attempt: u32, wait: Duration) -> Verdict {
        if attempt >= self.max_attempts {
            return Verdict::Dead(DeadReason::AttemptsExhausted);
        }
        let wish = match answer {
            Answer::Status { code: 429 | 503, retry_after } => {
                retry_after.map(|wish| wish.min(self.retry_after_cap))
            }
            _ => None,
        };
        // A receiver that says "slow down" is well: only this delivery waits.
        let target_at_fault = !matches!(answer, Answer::Status { code: 429, .. });
        Verdict::Again { after: wait.max(wish.unwrap_or_default()), target_at_fault, wish }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: DeliveryPolicy = DeliveryPolicy {
        max_attempts: 28,
        backoff: Backoff {
            initial: Duration::from_secs(5),
            cap: Duration::from_secs(14_400),
            jitter_percent: 0,
        },
        retry_after_cap: Duration::from_secs(3600),
    };

    fn judge(code: u16, attempt: u32) -> Verdict {
        POLICY.judge(Answer::Status { code, retry_after: None }, attempt, attempt - 1, &Chance::from_seed(0))
    }

    #[test]
    fn only_2xx_is_success() {
        for code in [200, 201, 204, 299] {
            assert_eq!(judge(code, 1), Verdict::Delivered);
        }
        for code in [100, 199, 301, 302, 304, 307, 308, 400, 404, 429, 500, 503, 600, 999, 0] {
            assert_ne!(judge(code, 1), Verdict::Delivered, "{code}");
        }
        assert_eq!(judge(410, 1), Verdict::Disable);
    }

    #[test]
    fn what_can_heal_is_retried_to_the_end() {
        assert!(matches!(judge(500, 27), Verdict::Again { .. }));
        assert_eq!(judge(500, 28), Verdict::Dead(DeadReason::AttemptsExhausted));
        let silent = POLICY.judge(Answer::NoAnswer, 1, 0, &Chance::from_seed(0));
        assert!(matches!(silent, Verdict::Again { target_at_fault: true, .. }));
    }

    #[test]
    fn a_rejection_is_not_hammered() {
        assert_eq!(
            judge(400, 1),
            Verdict::Again { after: Duration::from_secs(50), target_at_fault: false, wish: None }
        );
        assert_eq!(judge(302, 5), Verdict::Dead(DeadReason::Rejected));
    }

    #[test]
    fn a_rejection_after_an_outage_has_attempts_of_its_own() {
        let late =
            POLICY.judge(Answer::Status { code: 404, retry_after: None }, 20, 0, &Chance::from_seed(0));
        assert!(matches!(late, Verdict::Again { .. }));
    }

    #[test]
    fn retry_after_is_honoured_within_bounds() {
        let wish = |code, seconds| {
            let retry_after = Some(Duration::from_secs(seconds));
            match POLICY.judge(Answer::Status { code, retry_after }, 1, 0, &Chance::from_seed(0)) {
                Verdict::Again { after, target_at_fault, .. } => (after.as_secs(), target_at_fault),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(wish(429, 60), (60, false));
        assert_eq!(wish(503, 60), (60, true));
        assert_eq!(wish(503, 1), (5, true));
        assert_eq!(wish(429, 9_999_999), (3600, false));
        assert_eq!(wish(500, 60), (5, true));
    }
}

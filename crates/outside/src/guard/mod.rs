//! The policies around any call to the outside, and their order.
//!
//! [`Guard::call`] is that order, for all attempts of one call: rate → breaker → deadline → retry. Guarantees: a call ends by
//! its deadline; a tripped target is not asked, save by its probe; waiting for a token or for the
//! next attempt never outlasts the deadline, the call ends instead.
//!
//! Deliberately absent: knowledge of what is called. Each policy is a small machine of its own, asked with `now`.

pub mod breaker;
pub mod deadline;
pub mod latency;
pub mod rate;
pub mod retry;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use domain::breaker::Breaker;
use domain::chance::Chance;
use domain::time::{Clock, Timestamp};

use breaker::{BreakerCell, BreakerRules, NotNow};
use deadline::{Deadline, DeadlinePassed};
use latency::{Latency, Percentiles};
use rate::{Rate, RateCell};
use retry::{Judged, RetryBudget, RetryPolicy, Verdict};

/// The policies of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardPolicy {
    /// How often it may be asked, attempts counted singly.
    pub rate: Option<Rate>,
    /// When it is left alone.
    pub breaker: BreakerRules,
    /// The whole time of a call, waits and attempts together.
    pub deadline: Duration,
    /// How often one call is tried.
    pub retry: RetryPolicy,
    /// Retries per hundred calls, over all calls.
    pub retry_percent: u32,
    /// Retries that can be saved up.
    pub retry_reserve: u32,
    /// The span that percentiles cover.
    pub latency_window: Duration,
}

/// Why a guarded call has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuardError<E> {
    /// The rate allows nothing before the deadline. Nothing was asked.
    #[error("the rate limit allows nothing for {} ms", after.as_millis())]
    Throttled {
        /// How long until it does.
        after: Duration,
    },
    /// The target is left alone. Nothing was asked.
    #[error("the target is left alone until {until}")]
    Tripped {
        /// When a probe may be made.
        until: Timestamp,
    },
    /// As many calls as allowed are under way. Nothing was asked.
    #[error("too many calls are under way")]
    Full,
    /// The deadline passed while an attempt was under way: it may have had its effect.
    #[error("the deadline passed during the call")]
    DeadlinePassed,
    /// The last attempt failed.
    #[error(transparent)]
    Failed(E),
}

/// One attempt of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// 1 for the first.
    pub number: u32,
    /// What is left of the call's deadline.
    pub remaining: Duration,
}

/// The policies of one target at work, shared by all who ask it.
pub struct Guard {
    clock: Arc<dyn Clock>,
    chance: Chance,
    rate: Option<RateCell>,
    breaker: BreakerCell,
    deadline: Duration,
    retry: RetryPolicy,
    budget: RetryBudget,
    latency: Latency,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("breaker", &self.breaker.breaker()).finish_non_exhaustive()
    }
}

impl Guard {
    /// A target of which nothing is known yet.
    #[must_use]
    pub fn new(policy: &GuardPolicy, clock: Arc<dyn Clock>, chance: Chance) -> Self {
        Self {
            clock,
            chance,
            rate: policy.rate.map(RateCell::new),
            breaker: BreakerCell::new(policy.breaker),
            deadline: policy.deadline,
            retry: policy.retry,
            budget: RetryBudget::new(policy.retry_percent, policy.retry_reserve),
            latency: Latency::over(policy.latency_window),
        }
    }

    /// Makes a call: as many attempts as the policies allow.
    ///
    /// # Errors
    /// [`GuardError`]. If an attempt was made and failed, and another was wanted but not allowed, that
    /// attempt's failure.
    pub async fn call<T, E, F, W>(&self, mut make: F) -> Result<T, GuardError<E>>
    where
        E: Judged,
        F: FnMut(Attempt) -> W,
        W: Future<Output = Result<T, E>>,
    {
        let ends = self.clock.monotonic().saturating_add(self.deadline);
        let mut deadline = Deadline::after(&*self.clock, self.deadline);
        self.budget.earn();
        let mut number = 1;
        let mut last = None;
        loop {
            let remaining = ends.saturating_sub(self.clock.monotonic());
            let attempt = self.attempt(&mut deadline, &mut make, Attempt { number, remaining }).await;
            let failure = match attempt {
                Ok(value) => return Ok(value),
                Err(GuardError::Failed(failure)) => failure,
                Err(
                    refused @ (GuardError::Throttled { .. } | GuardError::Tripped { .. } | GuardError::Full),
                ) => {
                    return Err(last.map_or(refused, GuardError::Failed));
                }
                Err(passed) => return Err(passed),
            };
            let Some(wait) = self.retry.wait(number, failure.verdict(), &self.chance) else {
                return Err(GuardError::Failed(failure));
            };
            let in_time = wait < ends.saturating_sub(self.clock.monotonic());
            if !in_time || !self.budget.spend() || deadline.race(self.clock.sleep(wait)).await.is_err() {
                return Err(GuardError::Failed(failure));
            }
            last = Some(failure);
            number = number.saturating_add(1);
        }
    }

    /// The breaker, for showing it and for setting it by hand.
    #[must_use]
    pub fn breaker(&self) -> &BreakerCell {
        &self.breaker
    }

    /// What the breaker says now.
    #[must_use]
    pub fn state(&self) -> Breaker {
        self.breaker.breaker()
    }

    /// What attempts took recently, failed ones included.
    #[must_use]
    pub fn percentiles(&self) -> Option<Percentiles> {
        self.latency.percentiles(self.clock.monotonic())
    }

    async fn attempt<T, E, F, W>(
        &self,
        deadline: &mut Deadline,
        make: &mut F,
        attempt: Attempt,
    ) -> Result<T, GuardError<E>>
    where
        E: Judged,
        F: FnMut(Attempt) -> W,
        W: Future<Output = Result<T, E>>,
    {
        let asked = self.clock.monotonic();
        self.token(deadline, attempt.remaining).await?;
        let permit = self.breaker.ask(self.clock.now()).map_err(|not_now| match not_now {
            NotNow::Tripped { until } => GuardError::Tripped { until },
            NotNow::Full => GuardError::Full,
        })?;
        let started = self.clock.monotonic();
        let remaining = attempt.remaining.saturating_sub(started.saturating_sub(asked));
        let outcome = deadline.race(make(Attempt { remaining, ..attempt })).await;
        let ended = self.clock.monotonic();
        self.latency.record(ended, ended.saturating_sub(started));
        match outcome {
            Ok(Ok(value)) => {
                permit.succeeded(self.clock.now());
                Ok(value)
            }
            Ok(Err(failure)) => {
                let Verdict { is_the_targets, wish, .. } = failure.verdict();
                if let (Some(rate), Some(quiet)) = (&self.rate, wish) {
                    rate.hold(ended, quiet);
                }
                if is_the_targets {
                    permit.failed(self.clock.now(), wish);
                }
                Err(GuardError::Failed(failure))
            }
            Err(DeadlinePassed) => {
                permit.failed(self.clock.now(), None);
                Err(GuardError::DeadlinePassed)
            }
        }
    }

    /// Waits for a token, unless that would outlast the call.
    async fn token<E>(&self, deadline: &mut Deadline, remaining: Duration) -> Result<(), GuardError<E>> {
        let Some(rate) = &self.rate else { return Ok(()) };
        let ends = self.clock.monotonic().saturating_add(remaining);
        while let Err(after) = rate.take(self.clock.monotonic()) {
            let in_time = after < ends.saturating_sub(self.clock.monotonic());
            if !in_time || deadline.race(self.clock.sleep(after)).await.is_err() {
                return Err(GuardError::Throttled { after });
            }
        }
        Ok(())
    }
}

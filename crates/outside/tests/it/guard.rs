//! The order of the policies around a call.

use std::cell::Cell;
use std::future::pending;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use domain::backoff::Backoff;
use domain::breaker::BreakerPolicy;
use domain::chance::Chance;
use domain::time::Clock;
use outside::guard::breaker::BreakerRules;
use outside::guard::deadline::{Deadline, DeadlinePassed, within};
use outside::guard::rate::Rate;
use outside::guard::retry::{Judged, RetryPolicy, Verdict};
use outside::guard::{Guard, GuardError, GuardPolicy};

use crate::manual::ManualClock;

#[derive(Debug, Clone, PartialEq)]
enum Fault {
    Passing,
    Lasting,
    NotTheirs,
    Asks(Duration),
}

impl Judged for Fault {
    fn verdict(&self) -> Verdict {
        Verdict {
            is_the_targets: *self != Self::NotTheirs,
            may_retry: matches!(self, Self::Passing | Self::Asks(_)),
            wish: if let Self::Asks(wish) = self { Some(*wish) } else { None },
        }
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn policy() -> GuardPolicy {
    GuardPolicy {
        rate: None,
        breaker: BreakerRules {
            policy: BreakerPolicy { trip_after: 3, pause: millis(10_000), pause_cap: millis(60_000) },
            share: None,
            most: 4,
        },
        deadline: millis(1000),
        retry: RetryPolicy {
            attempts: 3,
            backoff: Backoff { initial: millis(100), cap: millis(400), jitter_percent: 0 },
        },
        retry_percent: 20,
        retry_reserve: 10,
        latency_window: millis(60_000),
    }
}

fn guard(policy: &GuardPolicy) -> (ManualClock, Guard) {
    let clock = ManualClock::default();
    let guard = Guard::new(policy, Arc::new(clock.clone()), Chance::from_seed(1));
    (clock, guard)
}

#[test]
fn a_deadline_covers_its_steps_together_and_work_that_is_ready_wins() {
    let clock = ManualClock::default();
    let mut deadline = Deadline::after(&clock, millis(100));
    assert_eq!(clock.run(deadline.race(clock.sleep(millis(60)))), Ok(()));
    assert_eq!(clock.run(deadline.race(clock.sleep(millis(60)))), Err(DeadlinePassed));
    assert_eq!(clock.monotonic(), millis(100));
    assert_eq!(clock.run(deadline.race(async {})), Err(DeadlinePassed), "what has passed stays passed");
    assert_eq!(clock.run(within(&clock, Duration::ZERO, async { 7 })), Ok(7));
}

#[test]
fn a_call_that_hangs_ends_at_its_deadline_is_dropped_and_counts() {
    struct Flag<'a>(&'a Cell<u32>);
    impl Drop for Flag<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    let (clock, guard) = guard(&policy());
    let dropped = Cell::new(0);
    for _ in 0..3 {
        let outcome = clock.run(guard.call(|_| async {
            let _flag = Flag(&dropped);
            pending::<Result<(), Fault>>().await
        }));
        assert_eq!(outcome, Err(GuardError::DeadlinePassed));
    }
    assert_eq!(dropped.get(), 3);
    assert_eq!(clock.monotonic(), millis(3000));
    assert_eq!(guard.percentiles().unwrap().calls, 3);
    assert_eq!(guard.state().as_str(), "tripped");
}

#[test]
fn a_passing_fault_is_retried_with_growing_waits() {
    let (clock, guard) = guard(&policy());
    let mut seen = Vec::new();
    let outcome = clock.run(guard.call(|attempt| {
        seen.push((attempt.number, attempt.remaining, clock.monotonic()));
        std::future::ready(if attempt.number < 3 { Err(Fault::Passing) } else { Ok("done") })
    }));
    assert_eq!(outcome, Ok("done"));
    let expected =
        [(1, millis(1000), millis(0)), (2, millis(900), millis(100)), (3, millis(700), millis(300))];
    assert_eq!(seen, expected);
    assert_eq!(guard.state().as_str(), "passing");
}

#[test]
fn what_lasts_is_not_retried_and_a_wish_beyond_the_deadline_ends_the_call_at_once() {
    for fault in [Fault::Lasting, Fault::NotTheirs, Fault::Asks(millis(1000))] {
        let (clock, guard) = guard(&policy());
        let made = Cell::new(0);
        let outcome = clock.run(guard.call(|_| {
            made.set(made.get() + 1);
            std::future::ready(Err::<(), _>(fault.clone()))
        }));
        assert_eq!(outcome, Err(GuardError::Failed(fault)));
        assert_eq!((made.get(), clock.monotonic()), (1, Duration::ZERO));
    }
}

#[test]
fn a_tripped_target_is_not_asked_until_its_probe() {
    let (clock, guard) = guard(&policy());
    let made = Cell::new(0);
    let call = |result: Result<(), Fault>| {
        clock.run(guard.call(|_| {
            made.set(made.get() + 1);
            std::future::ready(result.clone())
        }))
    };
    for _ in 0..3 {
        assert!(call(Err(Fault::Lasting)).is_err());
    }
    for _ in 0..5 {
        assert!(matches!(call(Ok(())), Err(GuardError::Tripped { .. })));
    }
    assert_eq!(made.get(), 3);
    clock.advance(millis(10_000));
    assert_eq!(call(Ok(())), Ok(()));
    assert_eq!(guard.state().as_str(), "ramping");
}

#[test]
fn a_call_whose_retry_is_refused_tells_what_failed() {
    let (clock, guard) = guard(&policy());
    for _ in 0..2 {
        let _counted = clock.run(guard.call(|_| std::future::ready(Err::<(), _>(Fault::Lasting))));
    }
    let made = Cell::new(0);
    let outcome = clock.run(guard.call(|_| {
        made.set(made.get() + 1);
        std::future::ready(Err::<(), _>(Fault::Passing))
    }));
    assert_eq!(
        (outcome, made.get()),
        (Err(GuardError::Failed(Fault::Passing)), 1),
        "the first attempt tripped it"
    );
}

#[test]
fn faults_that_are_not_the_targets_do_not_trip_it() {
    let (clock, guard) = guard(&policy());
    for _ in 0..20 {
        assert!(clock.run(guard.call(|_| std::future::ready(Err::<(), _>(Fault::NotTheirs)))).is_err());
    }
    assert_eq!(guard.state().as_str(), "passing");
}

#[test]
fn an_abandoned_probe_does_not_block_the_target() {
    let (clock, guard) = guard(&policy());
    for _ in 0..3 {
        let _counted = clock.run(guard.call(|_| std::future::ready(Err::<(), _>(Fault::Lasting))));
    }
    clock.advance(millis(10_000));
    {
        let mut probe = std::pin::pin!(guard.call(|_| pending::<Result<(), Fault>>()));
        let mut cx = std::task::Context::from_waker(futures::task::noop_waker_ref());
        assert!(probe.as_mut().poll(&mut cx).is_pending());
        let beside = clock.run(guard.call(|_| std::future::ready(Ok::<_, Fault>(()))));
        assert_eq!(beside, Err(GuardError::Full));
    }
    assert_eq!(clock.run(guard.call(|_| std::future::ready(Ok::<_, Fault>(())))), Ok(()));
}

#[test]
fn the_rate_delays_within_the_deadline_and_refuses_beyond_it() {
    let rate = Rate::new(NonZeroU32::MIN, millis(600), NonZeroU32::MIN);
    let (clock, guard) = guard(&GuardPolicy { rate: Some(rate), ..policy() });
    let good = || clock.run(guard.call(|_| std::future::ready(Ok::<_, Fault>(()))));
    assert_eq!(good(), Ok(()));
    assert_eq!(good(), Ok(()));
    assert_eq!(clock.monotonic(), millis(600));
    let asked = clock.run(guard.call(|_| std::future::ready(Err::<(), _>(Fault::Asks(millis(5000))))));
    assert_eq!(asked, Err(GuardError::Failed(Fault::Asks(millis(5000)))));
    let before = clock.monotonic();
    assert_eq!(
        good(),
        Err(GuardError::Throttled { after: millis(5000) }),
        "the target's wish holds for everyone"
    );
    assert_eq!(clock.monotonic(), before, "a call that cannot be in time does not wait");
}

#[test]
fn retries_stay_below_their_share_of_the_calls() {
    let breaker = BreakerRules {
        policy: BreakerPolicy { trip_after: u32::MAX, pause: millis(1), pause_cap: millis(1) },
        ..policy().breaker
    };
    let (clock, guard) = guard(&GuardPolicy { breaker, retry_percent: 10, retry_reserve: 5, ..policy() });
    let made = Cell::new(0);
    for _ in 0..100 {
        let _failed = clock.run(guard.call(|_| {
            made.set(made.get() + 1);
            std::future::ready(Err::<(), _>(Fault::Passing))
        }));
    }
    assert!((110..=115).contains(&made.get()), "100 calls, 5 retries saved up and a tenth: {}", made.get());
}

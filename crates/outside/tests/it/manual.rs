//! A clock that moves only when it is told to.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use domain::time::{Clock, Sleep, Timestamp};
use futures::task::noop_waker_ref;

/// 2026-01-31T12:00:00Z, when every manual clock starts.
pub(crate) const START: Timestamp = Timestamp::from_millis(1_769_860_800_000);

#[derive(Clone, Default)]
pub(crate) struct ManualClock(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    passed: Duration,
    alarms: BTreeMap<(Duration, u64), Option<Waker>>,
    count: u64,
}

impl ManualClock {
    /// Lets time pass and wakes whoever waited for it.
    pub(crate) fn advance(&self, span: Duration) {
        let mut inner = self.0.lock().unwrap();
        inner.passed += span;
        let passed = inner.passed;
        let due = {
            let later = inner.alarms.split_off(&(passed + Duration::from_nanos(1), 0));
            std::mem::replace(&mut inner.alarms, later)
        };
        drop(inner);
        due.into_values().flatten().for_each(Waker::wake);
    }

    /// Runs `work` alone, skipping to the next alarm whenever it waits. For work that waits for nothing but time.
    pub(crate) fn run<W: Future>(&self, work: W) -> W::Output {
        let mut work = pin!(work);
        loop {
            if let Poll::Ready(output) = work.as_mut().poll(&mut Context::from_waker(noop_waker_ref())) {
                return output;
            }
            let next = self.0.lock().unwrap().alarms.keys().next().map(|(at, _)| *at);
            let next = next.expect("the work waits for something that is not time");
            let passed = self.monotonic();
            self.advance(next.saturating_sub(passed));
        }
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        START + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        self.0.lock().unwrap().passed
    }

    fn sleep(&self, span: Duration) -> Sleep {
        let clock = self.clone();
        let mut inner = self.0.lock().unwrap();
        inner.count += 1;
        let key = (inner.passed.saturating_add(span), inner.count);
        drop(inner);
        let forget = Forget { clock: clock.clone(), key };
        Box::pin(std::future::poll_fn(move |cx| {
            let mut inner = clock.0.lock().unwrap();
            if inner.passed >= forget.key.0 {
                return Poll::Ready(());
            }
            inner.alarms.insert(forget.key, Some(cx.waker().clone()));
            Poll::Pending
        }))
    }
}

/// An alarm nobody waits for any more must not be skipped to.
struct Forget {
    clock: ManualClock,
    key: (Duration, u64),
}

impl Drop for Forget {
    fn drop(&mut self) {
        self.clock.0.lock().unwrap().alarms.remove(&self.key);
    }
}

//! A clock that stands still until nobody can do anything but wait, and then jumps to whoever wakes first.
//!
//! Guarantees: sleepers wake in the order of their instants, and of falling asleep where those are equal; so a run that
//! begins the same goes on the same. Hours of waiting cost no time.
//!
//! Deliberately absent: threads. The clock is turned by the one thread whose runtime has nothing to do
//! ([`SimClock::turn`]), never while a task could still run.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use domain::time::{Clock, Sleep, Timestamp};
use tokio::sync::Notify;

/// When a sleeper wakes, and the how-manieth it was to fall asleep.
type Place = (Duration, u64);

/// The simulated clock; clones are the same clock.
#[derive(Clone)]
pub struct SimClock(Arc<Inner>);

struct Inner {
    begins: Timestamp,
    state: Mutex<State>,
    stuck: Notify,
}

#[derive(Default)]
struct State {
    elapsed: Duration,
    slept: u64,
    sleepers: BTreeMap<Place, Waker>,
}

impl std::fmt::Debug for SimClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimClock").field("elapsed", &self.monotonic()).finish_non_exhaustive()
    }
}

impl SimClock {
    /// A clock whose wall time is `begins` now.
    #[must_use]
    pub fn new(begins: Timestamp) -> Self {
        Self(Arc::new(Inner { begins, state: Mutex::default(), stuck: Notify::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Jumps to the first sleeper and wakes everybody whose instant has come. To be called when nothing else can
    /// run; a run in which nobody sleeps then is stuck, and [`SimClock::stuck`] ends.
    pub fn turn(&self) {
        let mut state = self.state();
        let Some(((at, _), _)) = state.sleepers.first_key_value() else {
            drop(state);
            self.0.stuck.notify_one();
            return;
        };
        state.elapsed = state.elapsed.max(*at);
        let now = state.elapsed;
        let later = state.sleepers.split_off(&(now, u64::MAX));
        let woken = std::mem::replace(&mut state.sleepers, later);
        drop(state);
        woken.into_values().for_each(Waker::wake);
    }

    /// Lets time pass while nobody is there to sleep.
    pub fn skip(&self, span: Duration) {
        let mut state = self.state();
        state.elapsed = state.elapsed.saturating_add(span);
    }

    /// Ends when nobody can run and nobody will wake.
    pub async fn stuck(&self) {
        self.0.stuck.notified().await;
    }

    /// Ends at `instant` of the monotonic reading, at once if that has passed.
    pub async fn until(&self, instant: Duration) {
        self.sleep(instant.saturating_sub(self.monotonic())).await;
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        self.0.begins + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        self.state().elapsed
    }

    fn sleep(&self, span: Duration) -> Sleep {
        let mut state = self.state();
        state.slept = state.slept.saturating_add(1);
        let place = (state.elapsed.saturating_add(span), state.slept);
        Box::pin(Sleeping { clock: self.clone(), place })
    }
}

struct Sleeping {
    clock: SimClock,
    place: Place,
}

impl Future for Sleeping {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.clock.state();
        if state.elapsed >= self.place.0 {
            return Poll::Ready(());
        }
        state.sleepers.insert(self.place, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleeping {
    fn drop(&mut self) {
        // A dropped waker must not run under the lock: it may drop a task, and that another sleeper.
        let waker = self.clock.state().sleepers.remove(&self.place);
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_in_the_order_of_instants_and_of_falling_asleep() {
        let clock = SimClock::new(Timestamp::EPOCH);
        let turned = clock.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .on_thread_park(move || turned.turn())
            .build()
            .unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        runtime.block_on(async {
            let sleepers = [(30, 'c'), (10, 'a'), (30, 'd'), (20, 'b')].map(|(seconds, name)| {
                let (clock, order) = (clock.clone(), Arc::clone(&order));
                tokio::spawn(async move {
                    clock.sleep(Duration::from_secs(seconds)).await;
                    order.lock().unwrap().push(name);
                })
            });
            for sleeper in sleepers {
                sleeper.await.unwrap();
            }
        });
        assert_eq!(*order.lock().unwrap(), ['a', 'b', 'c', 'd']);
        assert_eq!(clock.monotonic(), Duration::from_secs(30));
    }

    #[test]
    fn nobody_to_wake_is_noticed() {
        let clock = SimClock::new(Timestamp::EPOCH);
        let turned = clock.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .on_thread_park(move || turned.turn())
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::select! {
                biased;
                () = clock.stuck() => {}
                () = std::future::pending() => {}
            }
        });
    }
}

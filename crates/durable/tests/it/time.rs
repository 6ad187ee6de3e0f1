//! A clock that moves when a test says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use domain::time::{Clock, Sleep, Timestamp};
use tokio::sync::oneshot;

/// Starts in 2026 and stands still until [`HandClock::advance`].
#[derive(Debug, Default)]
pub(crate) struct HandClock(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    elapsed: Duration,
    sleepers: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
    count: u64,
}

const START: Timestamp = Timestamp::from_millis(1_767_225_600_000);

impl HandClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Moves on by `span` and wakes whoever slept until then.
    pub(crate) fn advance(&self, span: Duration) {
        let mut state = self.0.lock().unwrap();
        state.elapsed += span;
        let still_asleep = (state.elapsed + Duration::from_nanos(1), 0);
        let later = state.sleepers.split_off(&still_asleep);
        for (_, sleeper) in std::mem::replace(&mut state.sleepers, later) {
            let _ = sleeper.send(());
        }
    }
}

impl HandClock {
    /// Another number each time: what seeds one run of a process must not seed the next.
    pub(crate) fn seed(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        state.count += 1;
        state.count
    }
}

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        START + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        self.0.lock().unwrap().elapsed
    }

    fn sleep(&self, span: Duration) -> Sleep {
        let mut state = self.0.lock().unwrap();
        let (wake, woken) = oneshot::channel();
        state.count += 1;
        let at = (state.elapsed.saturating_add(span), state.count);
        if span.is_zero() {
            return Box::pin(std::future::ready(()));
        }
        state.sleepers.insert(at, wake);
        Box::pin(async move {
            let _ = woken.await;
        })
    }
}

//! The real clock: the one implementation of [`Clock`] that a running process uses.
//!
//! Guarantees: the monotonic reading never steps back and starts near zero; sleeping is on the
//! runtime's timer, so thousands of sleepers cost one thread.
//!
//! Deliberately absent: anything that moves time. A simulation brings a clock of its own.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use domain::time::{Clock, Sleep, Timestamp};

/// The machine's clock and the runtime's timer. Make one per process.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock whose monotonic reading starts at zero now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this file is where time enters the process")]
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::disallowed_methods, reason = "this file is where time enters the process")]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    fn monotonic(&self) -> Duration {
        Instant::now().saturating_duration_since(self.started)
    }

    fn sleep(&self, span: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(span))
    }
}

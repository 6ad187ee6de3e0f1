//! Racing work against the clock: the only place where a future is given up because time passed.
//!
//! ```text
//! running ──work ends first──► its output
//!    └─────alarm rings first──► DeadlinePassed, and the work is dropped where it stood
//! ```
//!
//! Guarantees: work that is ready when the alarm rings still counts; one [`Deadline`] covers several
//! steps with a single timer, so that slow steps cannot add up to more than the whole.
//!
//! Deliberately absent: any opinion about what the dropped work did on the other side. The caller
//! must know how far it had come.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use domain::time::{Clock, Sleep};
use futures::future::{Either, select};

/// Time was over before the work was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed")]
pub struct DeadlinePassed;

/// One span of time, shared by steps that run one after the other.
pub struct Deadline {
    alarm: Option<Sleep>,
}

impl std::fmt::Debug for Deadline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deadline").field("passed", &self.has_passed()).finish()
    }
}

impl Deadline {
    /// Starts now and passes after `span`.
    #[must_use]
    pub fn after(clock: &dyn Clock, span: Duration) -> Self {
        Self { alarm: Some(clock.sleep(span)) }
    }

    /// Whether a race was already lost to this deadline.
    #[must_use]
    pub fn has_passed(&self) -> bool {
        self.alarm.is_none()
    }

    /// Runs `work` until it ends or the deadline passes, whichever is first.
    ///
    /// # Errors
    /// [`DeadlinePassed`]; `work` is dropped. Once passed, every later race is lost at once.
    pub async fn race<W: Future>(&mut self, work: W) -> Result<W::Output, DeadlinePassed> {
        let Some(alarm) = self.alarm.as_mut() else {
            return Err(DeadlinePassed);
        };
        match select(pin!(work), alarm).await {
            Either::Left((output, _)) => Ok(output),
            Either::Right(((), _)) => {
                self.alarm = None;
                Err(DeadlinePassed)
            }
        }
    }
}

/// Runs `work` for at most `span`.
///
/// # Errors
/// [`DeadlinePassed`] when `span` is over first; `work` is dropped.
pub async fn within<W: Future>(
    clock: &dyn Clock,
    span: Duration,
    work: W,
) -> Result<W::Output, DeadlinePassed> {
    Deadline::after(clock, span).race(work).await
}

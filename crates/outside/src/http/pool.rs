//! Open connections that wait for their next request.
//!
//! Guarantees: a connection is lent to one exchange at a time and comes back only when its last answer
//! was read whole; it is not lent again after lying idle too long, or, so that a changed DNS answer comes
//! to be seen, after its maximum age. Both the connections of one origin and of all are capped.
//!
//! Deliberately absent: sharing between clients. A client is one policy, and a pool belongs to one client.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use tokio::task::AbortHandle;

use super::metered::Meter;
use super::target::Origin;

/// An open connection. Dropping it closes it at once, whatever is under way.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Full<Bytes>>,
    pub(super) meter: Arc<Meter>,
    pub(super) peer: SocketAddr,
    /// When it was opened, by the monotonic clock.
    pub(super) opened: Duration,
    /// Moves the bytes.
    pub(super) driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// How many connections wait, and how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct PoolLimits {
    pub(super) idle_for: Duration,
    pub(super) max_age: Duration,
    pub(super) per_origin: usize,
    pub(super) in_all: usize,
}

/// The waiting connections of one client.
pub(super) struct Pool {
    limits: PoolLimits,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    of: HashMap<Origin, Vec<Waiting>>,
    count: usize,
    swept: Duration,
}

struct Waiting {
    connection: Connection,
    since: Duration,
}

impl Pool {
    pub(super) fn new(limits: PoolLimits) -> Self {
        Self { limits, idle: Mutex::default() }
    }

    /// The connection to `origin` that was used last, if one is still good.
    pub(super) fn take(&self, origin: &Origin, now: Duration) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let waiting = idle.of.get_mut(origin)?.pop();
            let Some(waiting) = waiting else {
                idle.of.remove(origin);
                return None;
            };
            idle.count = idle.count.saturating_sub(1);
            if self.is_good(&waiting, now) {
                return Some(waiting.connection);
            }
        }
    }

    /// Keeps a connection whose last answer was read whole, if there is room.
    pub(super) fn put(&self, origin: Origin, connection: Connection, now: Duration) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(idle.swept) > self.limits.idle_for {
            self.sweep(&mut idle, now);
        }
        if idle.count >= self.limits.in_all {
            return;
        }
        let waiting = idle.of.entry(origin).or_default();
        if waiting.len() < self.limits.per_origin {
            waiting.push(Waiting { connection, since: now });
            idle.count = idle.count.saturating_add(1);
        }
    }

    /// Without this, connections to origins that are never asked again would wait for ever.
    fn sweep(&self, idle: &mut Idle, now: Duration) {
        idle.of.retain(|_, waiting| {
            waiting.retain(|one| self.is_good(one, now));
            !waiting.is_empty()
        });
        idle.count = idle.of.values().map(Vec::len).sum();
        idle.swept = now;
    }

    fn is_good(&self, waiting: &Waiting, now: Duration) -> bool {
        waiting.connection.sender.is_ready()
            && !waiting.connection.sender.is_closed()
            && now.saturating_sub(waiting.since) < self.limits.idle_for
            && now.saturating_sub(waiting.connection.opened) < self.limits.max_age
    }
}

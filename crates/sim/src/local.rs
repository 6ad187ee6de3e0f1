//! Providers of a development chain without a network between, for measuring what is not the network.
//!
//! Guarantees: the question is spelt and the answer read as over HTTP; only the wire is missing. An answer comes after
//! the provider's delay, by the clock that was passed in.
//!
//! Deliberately absent: everything that goes wrong on a wire; [`crate::world`] has that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devchain::{Outcome, Provider};
use domain::time::Clock;
use futures::future::BoxFuture;
use outside::chain::rpc::read_response;
use outside::chain::{Call, Rpc, RpcError};
use serde_json::value::RawValue;

/// A provider asked directly.
pub struct LocalRpc {
    provider: Arc<Provider>,
    clock: Arc<dyn Clock>,
    next_id: AtomicU64,
}

impl std::fmt::Debug for LocalRpc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalRpc").field("provider", &self.provider.name()).finish_non_exhaustive()
    }
}

impl LocalRpc {
    /// Asks `provider`.
    #[must_use]
    pub fn new(provider: Arc<Provider>, clock: Arc<dyn Clock>) -> Self {
        Self { provider, clock, next_id: AtomicU64::new(1) }
    }
}

impl Rpc for LocalRpc {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Box<RawValue>, RpcError>> {
        Box::pin(async move {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":{id},"method":"{}","params":{}}}"#,
                call.method, call.params
            );
            let reply = self.provider.ask(body.as_bytes());
            if !reply.delay.is_zero() {
                self.clock.sleep(reply.delay).await;
            }
            match reply.outcome {
                Outcome::Hang => std::future::pending().await,
                Outcome::Lost => Err(RpcError::Transport { maybe_delivered: true }),
                Outcome::Respond { status: 200, body, .. } => read_response(&body, id),
                Outcome::Respond { status, .. } => Err(RpcError::Http(status)),
            }
        })
    }
}

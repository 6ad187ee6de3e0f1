//! Accepting connections: HTTP/1.1 with a bounded number of them, a deadline for request heads, and an orderly end.
//!
//! Guarantees: a client that never finishes its request head is let go; when the process stops nothing new is accepted,
//! answers under way may finish within the grace, streams are ended so that their followers come back elsewhere.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use outside::guard::deadline::within;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{AppState, router};

/// Connections at the same time; more wait to be accepted.
const MOST_CONNECTIONS: usize = 4096;
/// How long a client may take over its request head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Headers of one request.
const MOST_HEADERS: usize = 64;
/// Bytes of a request head.
const HEAD_BYTES: usize = 16 * 1024;
/// After a failed accept (out of files, mostly) the next one waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}")]
pub struct ServeError {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    pub error: io::Error,
}

/// Answers requests until `stop` ends, then lets what is under way finish within the configured grace.
pub async fn serve(state: AppState, listener: TcpListener, stop: impl Future<Output = ()>) {
    let router = router(Arc::clone(&state));
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        let stream = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    state.clock.sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let connection = talk(Arc::clone(&state), router.clone(), stream);
        connections.spawn(async move {
            connection.await;
            drop(place);
        });
    }
    state.begin_to_stop();
    drop(listener);
    let grace = state.config.server.shutdown_grace;
    let finished = within(&*state.clock, grace, async { while connections.join_next().await.is_some() {} });
    if finished.await.is_err() {
        tracing::warn!("some connections were cut: they did not finish within the grace");
    }
}

async fn talk(state: AppState, router: Router, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .max_headers(MOST_HEADERS)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = state.stopping() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

//! Asking others over HTTP without trusting them.
//!
//! [`Http`] is the port; [`Client`] the implementation: HTTP/1.1 over TLS or plain, written for targets
//! that strangers chose. Guarantees: every resolved address is vetted and only a vetted one is
//! connected to; one deadline covers everything from the name to the last byte; heads, bodies and the
//! bytes on the wire are capped; a request is written at most once.
//!
//! Deliberately absent: redirects, proxies, cookies, decompression, caching and retries. A caller that
//! wants another attempt makes one, and knows it.

mod client;
mod connect;
mod error;
mod metered;
mod pool;
mod resolve;
pub mod retry_after;
mod target;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ::http::{HeaderMap, Method, StatusCode};
use bytes::Bytes;
use futures::future::BoxFuture;
use url::Url;

pub use client::{Client, ClientOptions, InvalidClient};
pub use connect::Trust;
pub use error::{HttpError, HttpErrorKind, Phase, ProtocolFault, Sent, TlsFault};
pub use resolve::{MOST_LOOKUPS, Resolve, ResolveError, SystemResolver};
pub use target::{AddressPolicy, MAX_URL_BYTES, Ports, TargetRefused, check_url};

/// How an HTTP request is made. The process has one real kind, [`Client`]; simulation has a second.
pub trait Http: Send + Sync + 'static {
    /// Sends `request` once and waits for the answer, within the request's deadline.
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response, HttpError>>;
}

/// What to ask, and how long and how much to listen.
#[derive(Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The target. Its fragment is not sent.
    pub url: Url,
    /// Headers. `Host`, lengths and connection headers belong to the client and are refused here.
    pub headers: HeaderMap,
    /// The body, byte for byte.
    pub body: Bytes,
    /// The whole time, from resolving the name to the last byte of the answer.
    pub deadline: Duration,
    /// No more of the answer's body is read, in bytes. The status counts all the same.
    pub max_response_bytes: usize,
}

impl Request {
    /// Fifteen seconds, as receivers of webhooks are commonly given.
    pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(15);
    /// 64 KiB.
    pub const DEFAULT_MAX_RESPONSE_BYTES: usize = 64 * 1024;

    /// A request with the default deadline and limit, without headers.
    #[must_use]
    pub fn new(method: Method, url: Url, body: Bytes) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            body,
            deadline: Self::DEFAULT_DEADLINE,
            max_response_bytes: Self::DEFAULT_MAX_RESPONSE_BYTES,
        }
    }

    /// A GET.
    #[must_use]
    pub fn get(url: Url) -> Self {
        Self::new(Method::GET, url, Bytes::new())
    }

    /// A POST.
    #[must_use]
    pub fn post(url: Url, body: impl Into<Bytes>) -> Self {
        Self::new(Method::POST, url, body.into())
    }
}

impl fmt::Debug for Request {
    /// Without path, query and header values: they hold keys and signatures.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("scheme", &self.url.scheme())
            .field("host", &self.url.host_str().unwrap_or_default())
            .field("body_bytes", &self.body.len())
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// How the body of an answer ended. Whichever it is, the status was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BodyEnd {
    /// All of it was read.
    Whole,
    /// More was there than we read.
    CutAtLimit,
    /// The connection or its framing broke.
    Broken,
    /// The deadline passed.
    OutOfTime,
}

/// How long each step took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// Whether an open connection was used; the next three are zero then.
    pub reused: bool,
    /// Resolving the name.
    pub resolve: Duration,
    /// Opening the connection.
    pub connect: Duration,
    /// The TLS handshake.
    pub tls: Duration,
    /// From handing the request over to its status and headers.
    pub head: Duration,
    /// Everything, to the last byte of the body.
    pub total: Duration,
}

/// An answer.
#[derive(Clone)]
pub struct Response {
    /// 100 to 999, as the other side sent it.
    pub status: StatusCode,
    /// At most 100 fields.
    pub headers: HeaderMap,
    /// What was read of the body.
    pub body: Bytes,
    /// How the body ended.
    pub ended: BodyEnd,
    /// How long it took.
    pub timings: Timings,
    /// Who answered. For logs, not for the owner of the target.
    pub peer: SocketAddr,
}

impl Response {
    /// Whether `body` is not all that was meant: cut, broken or out of time.
    #[must_use]
    pub const fn truncated(&self) -> bool {
        !matches!(self.ended, BodyEnd::Whole)
    }
}

impl fmt::Debug for Response {
    /// Without header values and body: they may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("body_bytes", &self.body.len())
            .field("ended", &self.ended)
            .field("timings", &self.timings)
            .finish_non_exhaustive()
    }
}

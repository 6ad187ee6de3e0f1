//! The hardened client: one exchange from the URL to the last byte.
//!
//! Guarantees: those of [`super::Http`]. A kept connection that turns out to be closed before anything was
//! written is replaced; once a byte was written, the attempt is over when it fails.
//!
//! Deliberately absent: HTTP/2. One answer per connection at a time keeps the accounting of bytes and of what
//! was sent exact.

use std::sync::Arc;
use std::time::Duration;

use ::http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, PROXY_AUTHORIZATION,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use domain::time::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use url::Url;

use super::connect::{Connector, Opened, Trust, tls_config};
use super::error::{HttpError, HttpErrorKind, Phase, ProtocolFault, Sent};
use super::metered::{Meter, Metered};
use super::pool::{Connection, Pool, PoolLimits};
use super::resolve::{Resolve, SystemResolver};
use super::target::{AddressPolicy, Origin, TargetRefused, path_and_query};
use super::{BodyEnd, Http, Request, Response, Timings};
use crate::guard::deadline::{Deadline, within};

/// Everything that may come in before the body, informational answers included, in bytes.
const MAX_HEAD_BYTES: u32 = 64 * 1024;
/// How long a connection gets to become ready for its next request after an answer.
const SETTLING: Duration = Duration::from_secs(1);

/// Headers that decide how a message is framed or routed; a caller's would contradict the client's.
const OWNED_HEADERS: [HeaderName; 9] =
    [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, TE, TRAILER, UPGRADE, EXPECT, PROXY_AUTHORIZATION];

/// The rules and limits of one client.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Whom it may ask.
    pub policy: AddressPolicy,
    /// Whom it believes.
    pub trust: Trust,
    /// How long resolving a name may take, within a request's deadline.
    pub resolve_limit: Duration,
    /// How long opening a connection may take, within a request's deadline.
    pub connect_limit: Duration,
    /// How long a TLS handshake may take, within a request's deadline.
    pub tls_limit: Duration,
    /// How long a connection may lie idle.
    pub idle_for: Duration,
    /// How old a connection may become.
    pub max_age: Duration,
    /// Idle connections per scheme, host and port.
    pub idle_per_origin: usize,
    /// Idle connections in all.
    pub idle_in_all: usize,
    /// The `User-Agent`, unless a request brings one.
    pub user_agent: String,
}

impl ClientOptions {
    /// The usual limits under this policy.
    #[must_use]
    pub fn new(policy: AddressPolicy) -> Self {
        Self {
            policy,
            trust: Trust::default(),
            resolve_limit: Duration::from_secs(5),
            connect_limit: Duration::from_secs(5),
            tls_limit: Duration::from_secs(5),
            idle_for: Duration::from_secs(30),
            max_age: Duration::from_secs(300),
            idle_per_origin: 32,
            idle_in_all: 1024,
            user_agent: concat!("Quittance/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// The options do not make a client. The text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidClient(String);

/// An HTTP client under one policy, with connections of its own. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    connector: Connector,
    pool: Pool,
    user_agent: HeaderValue,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("policy", &self.shared.connector.policy).finish_non_exhaustive()
    }
}

impl Http for Client {
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response, HttpError>> {
        exchange(&self.shared, request).boxed()
    }
}

impl Client {
    /// A client that resolves names as the system does.
    ///
    /// # Errors
    /// When the extra roots or the user agent cannot be used.
    pub fn new(options: ClientOptions, clock: Arc<dyn Clock>) -> Result<Self, InvalidClient> {
        Self::with_resolver(options, clock, Arc::new(SystemResolver::default()))
    }

    /// A client that resolves names as it is told.
    ///
    /// # Errors
    /// When the extra roots or the user agent cannot be used.
    pub fn with_resolver(
        options: ClientOptions,
        clock: Arc<dyn Clock>,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, InvalidClient> {
        let tls = tls_config(&options.trust, Arc::clone(&clock)).map_err(InvalidClient)?;
        let user_agent = HeaderValue::from_str(&options.user_agent)
            .map_err(|_| InvalidClient("the user agent is not a header value".to_owned()))?;
        let connector = Connector {
            policy: options.policy,
            resolver,
            clock,
            tls: Arc::new(tls),
            resolve_limit: options.resolve_limit,
            connect_limit: options.connect_limit,
            tls_limit: options.tls_limit,
        };
        let pool = Pool::new(PoolLimits {
            idle_for: options.idle_for,
            max_age: options.max_age,
            per_origin: options.idle_per_origin,
            in_all: options.idle_in_all,
        });
        Ok(Self { shared: Arc::new(Shared { connector, pool, user_agent }) })
    }
}

/// One exchange, as its steps.
async fn exchange(shared: &Arc<Shared>, request: Request) -> Result<Response, HttpError> {
    let clock = &*shared.connector.clock;
    let started = clock.monotonic();
    let mut deadline = Deadline::after(clock, request.deadline);

    let origin = shared.connector.policy.admit(&request.url)?;
    let message = message(&request, &origin, &shared.user_agent)?;
    let readable = readable_bytes(request.max_response_bytes);

    let (mut connection, head, mut timings) =
        answer_head(shared, &origin, message, readable, &mut deadline).await?;
    let (head, body) = head.into_parts();
    let read = read_body(body, request.max_response_bytes, &connection.meter, &mut deadline).await;
    timings.total = clock.monotonic().saturating_sub(started);
    let peer = connection.peer;

    if read.ended == BodyEnd::Whole && !connection.sender.is_closed() {
        if connection.sender.is_ready() {
            shared.pool.put(origin, connection, clock.monotonic());
        } else {
            let shared = Arc::clone(shared);
            // The end of the body can be seen a moment before the connection has put itself in order.
            tokio::spawn(async move {
                let clock = &*shared.connector.clock;
                if let Ok(Ok(())) = within(clock, SETTLING, connection.sender.ready()).await {
                    shared.pool.put(origin, connection, clock.monotonic());
                }
            });
        }
    }
    Ok(Response {
        status: head.status,
        headers: head.headers,
        body: read.bytes,
        ended: read.ended,
        timings,
        peer,
    })
}

/// What may come in for one answer. Framing may double a body that is sent in tiny chunks.
fn readable_bytes(max_response_bytes: usize) -> u64 {
    u64::try_from(max_response_bytes)
        .unwrap_or(u64::MAX)
        .saturating_mul(2)
        .saturating_add(2 * u64::from(MAX_HEAD_BYTES))
}

/// The request as it is written.
fn message(
    request: &Request,
    origin: &Origin,
    user_agent: &HeaderValue,
) -> Result<::http::Request<Full<Bytes>>, HttpError> {
    if let Some(owned) = OWNED_HEADERS.iter().find(|name| request.headers.contains_key(*name)) {
        return Err(HttpError::unsent(
            HttpErrorKind::InvalidRequest,
            format!("{owned} belongs to the client"),
        ));
    }
    let mut message = ::http::Request::new(Full::new(request.body.clone()));
    *message.method_mut() = request.method.clone();
    *message.uri_mut() = path_and_query(&request.url)?;
    let host =
        HeaderValue::from_str(&origin.to_string()).map_err(|_| HttpError::from(TargetRefused::Malformed))?;
    let headers = message.headers_mut();
    headers.insert(HOST, host);
    headers.insert(USER_AGENT, user_agent.clone());
    if let Some(credentials) = basic_credentials(&request.url) {
        headers.insert(AUTHORIZATION, credentials);
    }
    for name in request.headers.keys() {
        headers.remove(name);
    }
    for (name, value) in &request.headers {
        headers.append(name.clone(), value.clone());
    }
    Ok(message)
}

/// A URL's user name and password as RFC 7617 writes them.
fn basic_credentials(url: &Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let decode = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
    let mut pair = decode(url.username());
    pair.push(b':');
    pair.extend(decode(url.password().unwrap_or_default()));
    let text = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Writes the request on a kept or a new connection and waits for the status and headers.
async fn answer_head(
    shared: &Shared,
    origin: &Origin,
    mut message: ::http::Request<Full<Bytes>>,
    readable: u64,
    deadline: &mut Deadline,
) -> Result<(Connection, ::http::Response<Incoming>, Timings), HttpError> {
    let clock = &*shared.connector.clock;
    loop {
        let kept = shared.pool.take(origin, clock.monotonic());
        let was_kept = kept.is_some();
        let (mut connection, mut timings) = match kept {
            Some(connection) => (connection, Timings { reused: true, ..Timings::default() }),
            None => open(shared, origin, readable, deadline).await?,
        };
        connection.meter.begin(readable);
        let handed_over = clock.monotonic();
        let outcome = deadline.race(connection.sender.try_send_request(message)).await;
        timings.head = clock.monotonic().saturating_sub(handed_over);
        match outcome {
            Ok(Ok(head)) => return Ok((connection, head, timings)),
            Ok(Err(mut failed)) => match failed.take_message() {
                Some(unsent) if was_kept && connection.meter.written() == 0 => message = unsent,
                _ => return Err(exchange_error(&failed.into_error(), &connection.meter)),
            },
            Err(_) => {
                let sent = sent(&connection.meter);
                let phase = if sent == Sent::Not { Phase::Send } else { Phase::Head };
                return Err(HttpError::new(
                    HttpErrorKind::Timeout(phase),
                    sent,
                    format!("peer {}", connection.peer),
                ));
            }
        }
    }
}

/// A new connection, its driver running.
async fn open(
    shared: &Shared,
    origin: &Origin,
    readable: u64,
    deadline: &mut Deadline,
) -> Result<(Connection, Timings), HttpError> {
    let Opened { stream, peer, timings } = shared.connector.open(origin, deadline).await?;
    let meter = Arc::new(Meter::new(readable));
    let stream = TokioIo::new(Metered::new(stream, Arc::clone(&meter)));
    let (sender, driver) = http1::Builder::new()
        .max_buf_size(usize::try_from(MAX_HEAD_BYTES).unwrap_or(usize::MAX))
        .handshake(stream)
        .await
        .map_err(|error| HttpError::unsent(HttpErrorKind::ConnectFailed, error.to_string()))?;
    // How the connection ends is told to whoever waits for an answer on it.
    let driver = tokio::spawn(driver.map(|_| ())).abort_handle();
    let opened = shared.connector.clock.monotonic();
    Ok((Connection { sender, meter, peer, opened, driver }, timings))
}

fn sent(meter: &Meter) -> Sent {
    if meter.written() == 0 { Sent::Not } else { Sent::Maybe }
}

/// The class of a failure between handing the request over and the status.
fn exchange_error(error: &hyper::Error, meter: &Meter) -> HttpError {
    let kind = if meter.is_exhausted() || error.is_parse_too_large() {
        HttpErrorKind::Protocol(ProtocolFault::TooLarge)
    } else if error.is_parse() {
        HttpErrorKind::Protocol(ProtocolFault::Malformed)
    } else if error.is_user() {
        HttpErrorKind::InvalidRequest
    } else {
        HttpErrorKind::Reset
    };
    HttpError::new(kind, sent(meter), error.to_string())
}

struct Read {
    bytes: Bytes,
    ended: BodyEnd,
}

/// Reads a body up to `limit` bytes. The status is known by now, so whatever happens is no error.
async fn read_body(mut body: Incoming, limit: usize, meter: &Meter, deadline: &mut Deadline) -> Read {
    let mut bytes = BytesMut::new();
    let ended = loop {
        match deadline.race(body.frame()).await {
            Err(_) => break BodyEnd::OutOfTime,
            Ok(None) => break BodyEnd::Whole,
            Ok(Some(Err(_))) if meter.is_exhausted() => break BodyEnd::CutAtLimit,
            Ok(Some(Err(_))) => break BodyEnd::Broken,
            Ok(Some(Ok(frame))) => {
                let Some(data) = frame.data_ref() else { continue };
                let room = limit.saturating_sub(bytes.len());
                bytes.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
                if data.len() > room {
                    break BodyEnd::CutAtLimit;
                }
            }
        }
    };
    Read { bytes: bytes.freeze(), ended }
}

//! A merchant that receives webhooks, on loopback: well-behaved, slow, failing or hostile, as each path is told.
//!
//! Guarantees: every request is remembered in the order in which it came, with its body, the status it was given and
//! whether its Standard Webhooks signature holds, checked by the reference library and not by our own code. It
//! can be taken down, with all its connections, and come up again at the same address.
//!
//! Deliberately absent: TLS, and any knowledge of who sends.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use domain::time::{Clock, Timestamp};
use futures::stream;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use standardwebhooks::Webhook;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

/// Larger bodies are answered with 413.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
/// How far a signed timestamp may be from the receiver's clock, in seconds, as Standard Webhooks advises.
const TOLERANCE_SECONDS: i64 = 300;

/// How requests to a path are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// 200 at once.
    Accept,
    /// 200 after this long.
    AcceptAfter(Duration),
    /// This status, so many times for each `webhook-id`, then 200.
    FailFirst {
        /// How many times.
        times: u32,
        /// With what.
        status: u16,
    },
    /// Fails and accepts in turn, beginning with a 500.
    Flap,
    /// Always this status.
    Answer(u16),
    /// 429 with this `Retry-After`, whatever it says, as long as the path behaves so.
    Throttle(String),
    /// 410: the endpoint is gone for good.
    Gone,
    /// 302 to this place.
    Redirect(String),
    /// 200, and a body of which a byte comes after each pause, for ever.
    DripBody(Duration),
    /// 200, and a body that does not end.
    EndlessBody,
    /// No answer, ever.
    Silence,
    /// The connection is closed instead of an answer.
    HangUp,
}

/// Whether a request was signed as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signature {
    /// The path has no secret to check with.
    Unchecked,
    /// It holds, and its timestamp is recent.
    Valid,
    /// It does not; why.
    Invalid(&'static str),
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// When, by the wall clock.
    pub at: Timestamp,
    /// When, by the monotonic clock.
    pub monotonic: Duration,
    /// The path, with its query.
    pub path: String,
    /// The `webhook-id`; empty without one.
    pub id: String,
    /// The `Idempotency-Key`; empty without one.
    pub idempotency_key: String,
    /// The body.
    pub body: Bytes,
    /// Whether it was signed well.
    pub signature: Signature,
    /// What it is answered with; `None` for no answer.
    pub status: Option<u16>,
}

/// All that came with one `webhook-id` to one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// When it came first.
    pub first_seen: Timestamp,
    /// How often it came.
    pub count: u64,
    /// How often it was answered with a 2xx.
    pub accepted: u64,
    /// Whether all its bodies were the same, byte for byte.
    pub same_body: bool,
}

/// A merchant that receives webhooks.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: Mutex<Option<Serving>>,
}

struct Serving {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    book: Mutex<Book>,
    accepted: watch::Sender<u64>,
}

#[derive(Default)]
struct Book {
    behaviours: HashMap<String, Behaviour>,
    secrets: HashMap<String, Vec<Webhook>>,
    attempts: HashMap<(String, String), u32>,
    turns: HashMap<String, u64>,
    arrivals: Vec<Arrival>,
}

/// The secret is not a Standard Webhooks secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a secret of the form whsec_ and base64")]
pub struct InvalidSecret;

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Receiver {
    /// Listens on loopback, at a free port. Every path accepts until it is told otherwise.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(clock: Arc<dyn Clock>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { clock, book: Mutex::default(), accepted: watch::Sender::new(0) });
        let receiver = Self { address, shared, serving: Mutex::default() };
        receiver.serve(listener);
        Ok(receiver)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path (`/hook`).
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on, requests to `path` are answered so.
    pub fn behave(&self, path: &str, behaviour: Behaviour) {
        self.shared.book().behaviours.insert(path.to_owned(), behaviour);
    }

    /// From now on, requests to `path` are checked with this secret, or any other trusted there.
    ///
    /// # Errors
    /// [`InvalidSecret`].
    pub fn trust(&self, path: &str, secret: &str) -> Result<(), InvalidSecret> {
        let secret = Webhook::new(secret).map_err(|_| InvalidSecret)?;
        self.shared.book().secrets.entry(path.to_owned()).or_default().push(secret);
        Ok(())
    }

    /// Stops listening and breaks all connections; when it returns, nobody is there. What came before stays
    /// remembered.
    pub async fn take_down(&self) {
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Serving { stop, task }) = serving {
            // Both fail only if the task has ended, which is what is wanted.
            let _stopped = stop.send(());
            let _ended = task.await;
        }
    }

    /// Listens again, at the same address.
    ///
    /// # Errors
    /// When somebody else took the port.
    pub async fn bring_up(&self) -> io::Result<()> {
        self.take_down().await;
        let listener = TcpListener::bind(self.address).await?;
        self.serve(listener);
        Ok(())
    }

    /// Everything that came, in order.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.shared.book().arrivals.clone()
    }

    /// What came, by path and `webhook-id`.
    #[must_use]
    pub fn messages(&self) -> HashMap<(String, String), Message> {
        let mut messages: HashMap<(String, String), (Message, Bytes)> = HashMap::new();
        for arrival in &self.shared.book().arrivals {
            let key = (arrival.path.clone(), arrival.id.clone());
            let first = || {
                let message = Message { first_seen: arrival.at, count: 0, accepted: 0, same_body: true };
                (message, arrival.body.clone())
            };
            let (message, body) = messages.entry(key).or_insert_with(first);
            message.count += 1;
            message.accepted += u64::from(arrival.status.is_some_and(|status| (200..300).contains(&status)));
            message.same_body &= *body == arrival.body;
        }
        messages.into_iter().map(|(key, (message, _))| (key, message)).collect()
    }

    /// Forgets what came, for the next measurement.
    pub fn forget(&self) {
        let mut book = self.shared.book();
        book.arrivals.clear();
        book.attempts.clear();
        book.turns.clear();
        self.shared.accepted.send_replace(0);
    }

    /// How many requests were answered with a 2xx, repeated ones counted each time.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        *self.shared.accepted.borrow()
    }

    /// Ends when at least `count` requests were answered with a 2xx. Race it with a deadline.
    pub async fn until_accepted(&self, count: u64) {
        let mut accepted = self.shared.accepted.subscribe();
        // The sender lives as long as this receiver does.
        let _reached = accepted.wait_for(|accepted| *accepted >= count).await;
    }

    fn serve(&self, listener: TcpListener) {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept(listener, Arc::clone(&self.shared), stopped));
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = Some(Serving { stop, task });
    }
}

/// Ends, and with it every connection, when it is told to or when the receiver is dropped.
async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(converse(stream, Arc::clone(&shared)))),
                // Out of file descriptors, say: there will be some when connections end.
                Err(_) => shared.clock.sleep(Duration::from_millis(10)).await,
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
    connections.shutdown().await;
}

async fn converse(stream: TcpStream, shared: Arc<Shared>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let answer = service_fn(|request| receive(request, Arc::clone(&shared)));
    // How a connection ends is the sender's business.
    let _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("hung up on purpose")]
struct HungUp;

async fn receive(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Body>, HungUp> {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MAX_BODY_BYTES).collect().await else {
        return Ok(plain(StatusCode::PAYLOAD_TOO_LARGE));
    };
    let path = head.uri.path_and_query().map_or_else(String::new, ToString::to_string);
    let behaviour = shared.note(path, &head.headers, body.to_bytes());
    perform(behaviour, &shared).await
}

/// What is done about one request.
enum Conduct {
    Status(u16),
    Later(Duration),
    With(StatusCode, http::HeaderName, String),
    Drip(Duration),
    Endless,
    Silence,
    HangUp,
}

impl Conduct {
    fn status(&self) -> Option<u16> {
        match self {
            Self::Status(status) => Some(*status),
            Self::With(status, ..) => Some(status.as_u16()),
            Self::Later(_) | Self::Drip(_) | Self::Endless => Some(200),
            Self::Silence | Self::HangUp => None,
        }
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a request and decides what is done about it.
    fn note(&self, path: String, headers: &HeaderMap, body: Bytes) -> Conduct {
        let text = |name: &str| {
            headers
                .get(name)
                .map_or_else(String::new, |value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let at = self.clock.now();
        let id = text("webhook-id");
        let mut book = self.book();
        let signature = book.judge(&path, headers, &body, at);
        let conduct = book.decide(&path, &id);
        let status = conduct.status();
        book.arrivals.push(Arrival {
            at,
            monotonic: self.clock.monotonic(),
            path,
            id,
            idempotency_key: text("idempotency-key"),
            body,
            signature,
            status,
        });
        drop(book);
        if status.is_some_and(|status| (200..300).contains(&status)) {
            self.accepted.send_modify(|accepted| *accepted += 1);
        }
        conduct
    }
}

impl Book {
    fn decide(&mut self, path: &str, id: &str) -> Conduct {
        match self.behaviours.get(path).unwrap_or(&Behaviour::Accept).clone() {
            Behaviour::Accept => Conduct::Status(200),
            Behaviour::AcceptAfter(pause) => Conduct::Later(pause),
            Behaviour::FailFirst { times, status } => {
                let attempts = self.attempts.entry((path.to_owned(), id.to_owned())).or_default();
                *attempts = attempts.saturating_add(1);
                Conduct::Status(if *attempts <= times { status } else { 200 })
            }
            Behaviour::Flap => {
                let turn = self.turns.entry(path.to_owned()).or_default();
                *turn += 1;
                Conduct::Status(if *turn % 2 == 1 { 500 } else { 200 })
            }
            Behaviour::Answer(status) => Conduct::Status(status),
            Behaviour::Throttle(wish) => Conduct::With(StatusCode::TOO_MANY_REQUESTS, RETRY_AFTER, wish),
            Behaviour::Gone => Conduct::Status(410),
            Behaviour::Redirect(to) => Conduct::With(StatusCode::FOUND, LOCATION, to),
            Behaviour::DripBody(pause) => Conduct::Drip(pause),
            Behaviour::EndlessBody => Conduct::Endless,
            Behaviour::Silence => Conduct::Silence,
            Behaviour::HangUp => Conduct::HangUp,
        }
    }

    /// Compares with what the reference library would have signed. Its own check reads the machine's clock,
    /// which is not the clock of a simulation.
    fn judge(&self, path: &str, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Signature {
        let Some(secrets) = self.secrets.get(path) else { return Signature::Unchecked };
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let (Some(id), Some(timestamp), Some(signatures)) =
            (text("webhook-id"), text("webhook-timestamp"), text("webhook-signature"))
        else {
            return Signature::Invalid("a header is missing");
        };
        let Ok(timestamp) = timestamp.parse::<i64>() else {
            return Signature::Invalid("the timestamp is not a number");
        };
        if now.as_seconds().abs_diff(timestamp) > TOLERANCE_SECONDS.unsigned_abs() {
            return Signature::Invalid("the timestamp is too far from now");
        }
        let mut expected = secrets.iter().filter_map(|secret| secret.sign(id, timestamp, body).ok());
        if expected.any(|expected| signatures.split(' ').any(|given| given == expected)) {
            Signature::Valid
        } else {
            Signature::Invalid("no signature fits")
        }
    }
}

async fn perform(conduct: Conduct, shared: &Arc<Shared>) -> Result<Response<Body>, HungUp> {
    match conduct {
        Conduct::Status(status) => {
            Ok(plain(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)))
        }
        Conduct::Later(pause) => {
            shared.clock.sleep(pause).await;
            Ok(plain(StatusCode::OK))
        }
        Conduct::With(status, name, value) => {
            let mut response = plain(status);
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
            Ok(response)
        }
        Conduct::Drip(pause) => {
            let shared = Arc::clone(shared);
            let drops = stream::unfold(shared, move |shared| async move {
                shared.clock.sleep(pause).await;
                Some((Ok(Frame::data(Bytes::from_static(b"."))), shared))
            });
            Ok(Response::new(StreamBody::new(drops).boxed_unsync()))
        }
        Conduct::Endless => {
            let flood = stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[b'.'; 16 * 1024]))));
            Ok(Response::new(StreamBody::new(flood).boxed_unsync()))
        }
        Conduct::Silence => std::future::pending().await,
        Conduct::HangUp => Err(HungUp),
    }
}

fn plain(status: StatusCode) -> Response<Body> {
    let body = if status == StatusCode::NO_CONTENT {
        Empty::new().boxed_unsync()
    } else {
        Full::new(Bytes::from_static(b"{}")).boxed_unsync()
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

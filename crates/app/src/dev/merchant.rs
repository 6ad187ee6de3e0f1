//! The demo merchant: receives webhooks as a careful shop should, and can be slow, ill or away.
//!
//! It checks every signature itself (Standard Webhooks 1.0, `v1`), not with the server's own code, keeps the ids it has
//! seen, acts on an event once, and remembers every attempt with its bytes. Away means that its port is closed.
//!
//! Deliberately absent: persistence. The merchant is the judge here and does not crash.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use domain::time::Clock;
use hmac::{Hmac, KeyInit, Mac};
use outside::guard::deadline::within;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::claims::Stuck;

/// How far a signed time may be from the merchant's clock, as Standard Webhooks advises.
const TOLERANCE_SECONDS: i64 = 300;
/// How many messages are shown to people.
const LATEST: usize = 10;
/// How long connections may take to end when the merchant goes away.
const CLOSING: Duration = Duration::from_secs(5);

/// How the merchant behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behaviour {
    /// Acts and answers at once.
    Well,
    /// Acts at once and answers after a while.
    Slow(Duration),
    /// Acts, and then fails to say so: 500.
    FailsAfterActing,
}

/// An event, as the merchant received it first.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// The `webhook-id`.
    pub(super) id: String,
    /// Its type.
    pub(super) kind: String,
    /// The invoice it is about, if it is about one.
    pub(super) invoice: Option<String>,
    /// Its place among the events of that invoice.
    pub(super) sequence: u64,
    /// The bytes that were signed.
    pub(super) body: Bytes,
    /// When it came, on the monotonic clock.
    pub(super) at: Duration,
    /// How often it came.
    pub(super) attempts: u32,
}

/// Everything the merchant knows.
#[derive(Debug, Default)]
pub(super) struct Books {
    secret: Option<Vec<u8>>,
    behaviour: Option<Behaviour>,
    /// Events in the order in which they were acted on.
    pub(super) inbox: Vec<Message>,
    /// Requests whose signature did not hold, and why.
    pub(super) refused: Vec<String>,
    /// Ids that came again with other bytes.
    pub(super) altered: Vec<String>,
    /// How often an event came again.
    pub(super) repeats: u64,
    /// Orders that are paid now, and how often they became so.
    pub(super) orders: BTreeMap<String, Order>,
    /// What naive readers told, by reader.
    pub(super) told: BTreeMap<String, BTreeSet<String>>,
}

/// What the merchant makes of one invoice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Order {
    /// Whether the goods may leave.
    pub(super) paid: bool,
    /// How often `invoice.settled` was acted on.
    pub(super) settled: u32,
    /// How often `invoice.reverted` was acted on.
    pub(super) reverted: u32,
}

#[derive(Deserialize)]
struct Event {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    sequence: u64,
    data: EventData,
}

#[derive(Deserialize)]
struct EventData {
    invoice: Option<EventInvoice>,
}

#[derive(Deserialize)]
struct EventInvoice {
    id: String,
}

impl Books {
    /// How many events of a kind about an invoice were acted on.
    pub(super) fn count(&self, invoice: &str, kind: &str) -> usize {
        self.about(invoice).filter(|message| message.kind == kind).count()
    }

    /// The messages about an invoice, in the order in which they were acted on.
    pub(super) fn about<'b>(&'b self, invoice: &'b str) -> impl Iterator<Item = &'b Message> {
        self.inbox.iter().filter(move |message| message.invoice.as_deref() == Some(invoice))
    }

    fn receive(&mut self, event: Event, body: &Bytes, at: Duration) {
        if let Some(known) = self.inbox.iter_mut().find(|message| message.id == event.id) {
            known.attempts = known.attempts.saturating_add(1);
            self.repeats = self.repeats.saturating_add(1);
            if known.body != *body {
                self.altered.push(event.id);
            }
            return;
        }
        let invoice = event.data.invoice.map(|invoice| invoice.id);
        if let Some(invoice) = &invoice {
            let order = self.orders.entry(invoice.clone()).or_default();
            match event.kind.as_str() {
                "invoice.settled" => {
                    order.paid = true;
                    order.settled = order.settled.saturating_add(1);
                }
                "invoice.reverted" => {
                    order.paid = false;
                    order.reverted = order.reverted.saturating_add(1);
                }
                _ => {}
            }
        }
        self.inbox.push(Message {
            id: event.id,
            kind: event.kind,
            invoice,
            sequence: event.sequence,
            body: body.clone(),
            at,
            attempts: 1,
        });
    }
}

struct Shop {
    clock: Arc<dyn Clock>,
    books: Mutex<Books>,
    changed: watch::Sender<u64>,
}

impl Shop {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// The merchant's server. Dropping it ends it.
pub(super) struct Merchant {
    shop: Arc<Shop>,
    address: SocketAddr,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Merchant {
    /// Opens the shop on a free loopback port.
    ///
    /// # Errors
    /// When no port can be had.
    pub(super) async fn open(clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shop = Arc::new(Shop { clock, books: Mutex::default(), changed: watch::Sender::new(0) });
        let running = Some(serve(listener, Arc::clone(&shop)));
        Ok(Self { shop, address, running })
    }

    /// Its base URL, without a slash at the end.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on signatures are checked with this secret (`whsec_…`).
    pub(super) fn trust(&self, secret: &str) -> bool {
        let bytes = secret.strip_prefix("whsec_").and_then(|text| STANDARD.decode(text).ok());
        let known = bytes.is_some();
        self.shop.books().secret = bytes;
        known
    }

    /// From now on it behaves so.
    pub(super) fn behave(&self, behaviour: Behaviour) {
        self.shop.books().behaviour = Some(behaviour);
    }

    /// Closes the port and every connection.
    pub(super) async fn go_away(&mut self) {
        if let Some((stop, mut task)) = self.running.take() {
            drop(stop);
            if within(&*self.shop.clock, CLOSING, &mut task).await.is_err() {
                task.abort();
            }
        }
    }

    /// Opens the same port again.
    ///
    /// # Errors
    /// When somebody else has taken it.
    pub(super) async fn come_back(&mut self) -> std::io::Result<()> {
        if self.running.is_none() {
            let listener = TcpListener::bind(self.address).await?;
            self.running = Some(serve(listener, Arc::clone(&self.shop)));
        }
        Ok(())
    }

    /// Looks into the books.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Books) -> T) -> T {
        look(&self.shop.books())
    }

    /// Waits until the books show something.
    ///
    /// # Errors
    /// When they do not within `patience`.
    pub(super) async fn wait<T>(
        &self,
        expected: &str,
        patience: Duration,
        look: impl Fn(&Books) -> Option<T>,
    ) -> Result<T, Stuck> {
        let mut changed = self.shop.changed.subscribe();
        let seen = async {
            loop {
                if let Some(found) = self.look(&look) {
                    return found;
                }
                // The sender lives as long as the shop.
                let _ = changed.changed().await;
            }
        };
        within(&*self.shop.clock, patience, seen).await.map_err(|_| {
            let count = self.look(|books| books.inbox.len());
            Stuck::new(
                format!("the merchant has {expected}"),
                format!("not within {} s; it has {count} messages", patience.as_secs()),
            )
        })
    }
}

fn serve(listener: TcpListener, shop: Arc<Shop>) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let (stop, stopped) = oneshot::channel::<()>();
    let router = Router::new()
        .route("/webhooks", post(receive))
        .route("/naive/{reader}", post(hear_naive))
        .route("/", get(show))
        .with_state(shop);
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        // It is never sent anything: that the sender is gone is the message.
        let _ = stopped.await;
    });
    let task = tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::warn!(%error, "the merchant's server ended");
        }
    });
    (stop, task)
}

async fn receive(State(shop): State<Arc<Shop>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let behaviour = {
        let mut books = shop.books();
        let now = shop.clock.now().as_seconds();
        let Some(secret) = &books.secret else { return StatusCode::SERVICE_UNAVAILABLE };
        if let Err(why) = check_signature(secret, &headers, &body, now) {
            books.refused.push(why.to_owned());
            return StatusCode::UNAUTHORIZED;
        }
        let event = match serde_json::from_slice::<Event>(&body) {
            Ok(event) if header(&headers, "webhook-id") == Ok(&event.id) => event,
            _ => {
                books.refused.push("the body is no event of this id".to_owned());
                return StatusCode::BAD_REQUEST;
            }
        };
        books.receive(event, &body, shop.clock.monotonic());
        books.behaviour.unwrap_or(Behaviour::Well)
    };
    shop.announce();
    match behaviour {
        Behaviour::Well => StatusCode::NO_CONTENT,
        Behaviour::Slow(span) => {
            shop.clock.sleep(span).await;
            StatusCode::NO_CONTENT
        }
        Behaviour::FailsAfterActing => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

async fn hear_naive(State(shop): State<Arc<Shop>>, Path(reader): Path<String>, body: String) -> StatusCode {
    shop.books().told.entry(reader).or_default().insert(body);
    StatusCode::NO_CONTENT
}

/// The latest messages, for people.
async fn show(State(shop): State<Arc<Shop>>) -> axum::Json<serde_json::Value> {
    let books = shop.books();
    let latest = books.inbox.iter().rev().take(LATEST).map(|message| {
        let order = message.invoice.as_ref().and_then(|invoice| books.orders.get(invoice));
        serde_json::json!({
            "id": message.id,
            "type": message.kind,
            "sequence": message.sequence,
            "invoice_id": message.invoice,
            "attempts": message.attempts,
            "order": order,
        })
    });
    axum::Json(serde_json::json!({ "latest": latest.collect::<Vec<_>>() }))
}

fn header<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<&'h str, &'static str> {
    headers.get(name).and_then(|value| value.to_str().ok()).ok_or("a webhook header is missing")
}

/// Standard Webhooks 1.0: HMAC-SHA256 over `id.timestamp.body`; one of the signatures has to hold.
fn check_signature(secret: &[u8], headers: &HeaderMap, body: &[u8], now: i64) -> Result<(), &'static str> {
    let (id, timestamp) = (header(headers, "webhook-id")?, header(headers, "webhook-timestamp")?);
    let sent: i64 = timestamp.parse().map_err(|_| "the timestamp is no number")?;
    if now.abs_diff(sent) > TOLERANCE_SECONDS.unsigned_abs() {
        return Err("the timestamp is too old or too new");
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|_| "the secret is no key")?;
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        mac.update(part);
    }
    let holds = header(headers, "webhook-signature")?
        .split(' ')
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1,")?).ok())
        .any(|signature| mac.clone().verify_slice(&signature).is_ok());
    if holds { Ok(()) } else { Err("no signature holds") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(signature: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek".parse().unwrap());
        headers.insert("webhook-timestamp", "1614265330".parse().unwrap());
        headers.insert("webhook-signature", signature.parse().unwrap());
        headers
    }

    #[test]
    fn signatures_are_checked_as_the_standard_says() {
        // The example of the Standard Webhooks specification.
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let good = headers("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let now = 1_614_265_330;
        assert_eq!(check_signature(&secret, &good, body, now), Ok(()));
        assert!(check_signature(&secret, &good, b"{}", now).is_err());
        assert!(check_signature(b"another", &good, body, now).is_err());
        assert!(check_signature(&secret, &good, body, now + 301).is_err());
        assert!(check_signature(&secret, &headers("v1,AAAA v1a,AAAA"), body, now).is_err());
        assert!(check_signature(&secret, &HeaderMap::new(), body, now).is_err());
    }

    #[test]
    fn an_event_that_comes_again_is_acted_on_once() {
        let body = Bytes::from_static(
            br#"{"id":"evt_1","type":"invoice.settled","sequence":1,"data":{"invoice":{"id":"inv_1"}}}"#,
        );
        let event = || serde_json::from_slice::<Event>(&body).unwrap();
        let mut books = Books::default();
        books.receive(event(), &body, Duration::ZERO);
        books.receive(event(), &body, Duration::ZERO);
        assert_eq!(books.orders["inv_1"], Order { paid: true, settled: 1, reverted: 0 });
        assert_eq!((books.inbox.len(), books.repeats, books.inbox[0].attempts), (1, 1, 2));
        assert!(books.altered.is_empty());
        books.receive(event(), &Bytes::from_static(b"other"), Duration::ZERO);
        assert_eq!(books.altered, ["evt_1"]);
    }
}

//! Everything outside the process under test: a chain, the providers that show it, the merchants, and the one wire to them.
//!
//! Guarantees: [`World`] is the [`Http`] port of the process, so that its real JSON-RPC and webhook code run on it; it
//! outlives the process, whose crashes it plays; all that crosses the wire is folded into a [`Trace`], so that two
//! runs can be compared. Nobody is faster than their delay, in simulated time.
//!
//! Deliberately absent: judging. What came is remembered here and judged in [`crate::checks`].

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy_primitives::{B256, Keccak256, hex};
use bytes::Bytes;
use devchain::{Delivery, Devchain, Faults, Outcome, Provider};
use domain::breaker::Breaker;
use domain::chance::Chance;
use domain::time::{Clock, Timestamp};
use durable::engine::gate;
use durable::store::{Store, StoreError};
use futures::future::BoxFuture;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use outside::guard::deadline::within;
use outside::http::{BodyEnd, Http, HttpError, HttpErrorKind, Phase, Request, Response, Sent, Timings};
use standardwebhooks::Webhook;
use tokio::sync::Notify;

use crate::clock::SimClock;

/// How long it takes to learn that nobody listens.
const REFUSAL: Duration = Duration::from_millis(1);

/// The hash over everything that was seen, in order.
#[derive(Clone, Default)]
pub struct Trace(Keccak256, u64);

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Trace").field(&self.1).finish()
    }
}

impl Trace {
    /// Folds one thing in.
    pub fn note(&mut self, now: Timestamp, what: &str) {
        self.1 = self.1.saturating_add(1);
        self.0.update(now.as_millis().to_be_bytes());
        self.0.update(what.len().to_be_bytes());
        self.0.update(what.as_bytes());
    }

    /// The hash so far.
    #[must_use]
    pub fn hash(&self) -> B256 {
        self.0.clone().finalize()
    }

    /// How much was folded in.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.1
    }

    /// Whether nothing was.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.1 == 0
    }
}

/// How a merchant answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manner {
    /// 200.
    Accept,
    /// 200, and never a byte of it: the webhook was taken, and the sender cannot know.
    AcceptInSilence,
    /// The webhook is taken, and the connection breaks before the answer.
    AcceptAndHangUp,
    /// This status.
    Answer(u16),
    /// 429, and how many seconds to wait.
    Throttle(u64),
    /// Nobody listens.
    Down,
}

/// A webhook that reached a merchant.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// When.
    pub at: Timestamp,
    /// At whose endpoint.
    pub merchant: usize,
    /// The `webhook-id`.
    pub id: String,
    /// The body.
    pub body: Bytes,
    /// Whether it was flagged as sent again by a person.
    pub replayed: bool,
    /// Whether a 2xx was on its way when it was taken.
    pub accepted: bool,
}

struct Node {
    host: String,
    provider: Arc<Provider>,
    down: bool,
}

#[derive(Default)]
struct Merchant {
    manner: Option<Manner>,
    latency: Duration,
    secret: Option<Webhook>,
    /// What the process calls the target in its breakers.
    target: String,
    under_way: u32,
}

/// See the module.
pub struct World {
    clock: SimClock,
    chain: Devchain,
    state: Mutex<State>,
    death: Notify,
}

struct State {
    nodes: Vec<Node>,
    merchants: Vec<Merchant>,
    arrivals: Vec<Arrival>,
    trace: Trace,
    findings: Vec<String>,
    counts: BTreeMap<&'static str, u64>,
    chance: Chance,
    /// The process dies at the so-manieth message from now.
    dies_in: Option<u64>,
    /// The store of the process that lives now, and whether its works run at the same time.
    process: Option<(Store, bool)>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("chain", &self.chain.head()).finish_non_exhaustive()
    }
}

/// What is to be done about a message.
enum Turn {
    Go,
    /// The process dies in this moment: it never learns what came of the message.
    Die,
}

impl World {
    /// A world around `chain`, with one provider for each of these hosts and so many merchants.
    #[must_use]
    pub fn new(clock: SimClock, chain: Devchain, hosts: &[String], merchants: usize, chance: Chance) -> Self {
        let node = |host: &String| Node {
            host: host.clone(),
            provider: Arc::new(Provider::new(&chain, host)),
            down: false,
        };
        let nodes = hosts.iter().map(node).collect();
        let state = State {
            nodes,
            merchants: std::iter::repeat_with(Merchant::default).take(merchants).collect(),
            arrivals: Vec::new(),
            trace: Trace::default(),
            findings: Vec::new(),
            counts: BTreeMap::new(),
            chance,
            dies_in: None,
            process: None,
        };
        Self { clock, chain, state: Mutex::new(state), death: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time that everybody has.
    #[must_use]
    pub fn clock(&self) -> &SimClock {
        &self.clock
    }

    /// The truth.
    #[must_use]
    pub fn chain(&self) -> &Devchain {
        &self.chain
    }

    // ---- providers ----

    /// Sets what is wrong with a provider from now on, beside its usual delay.
    pub fn set_faults(&self, provider: usize, usual: Faults, faults: Faults) {
        let state = self.state();
        if let Some(node) = state.nodes.get(provider) {
            node.provider.set_rules(vec![usual, faults]);
        }
    }

    /// Takes a provider's port away, or gives it back.
    pub fn set_down(&self, provider: usize, down: bool) {
        if let Some(node) = self.state().nodes.get_mut(provider) {
            node.down = down;
        }
    }

    // ---- merchants ----

    /// The URL of a merchant's endpoint.
    #[must_use]
    pub fn merchant_url(merchant: usize) -> String {
        format!("https://merchant-{merchant}.example/hook")
    }

    /// Tells a merchant the secret of its endpoint, and remembers what the process calls it.
    pub fn introduce(&self, merchant: usize, secret: &[u8], target: String) {
        if let Some(merchant) = self.state().merchants.get_mut(merchant) {
            merchant.secret = Webhook::from_bytes(secret.to_vec()).ok();
            merchant.target = target;
        }
    }

    /// From now on, a merchant answers so, after `latency`.
    pub fn set_manner(&self, merchant: usize, manner: Manner, latency: Duration) {
        if let Some(merchant) = self.state().merchants.get_mut(merchant) {
            merchant.manner = Some(manner);
            merchant.latency = latency;
        }
    }

    /// Every webhook that reached a merchant, in order.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.state().arrivals.clone()
    }

    // ---- the process ----

    /// The process that lives now: its breakers are looked at when it sends. `concurrent` says that what it claims
    /// together it also begins together.
    pub fn attach(&self, store: Store, concurrent: bool) {
        self.state().process = Some((store, concurrent));
    }

    /// The process is gone.
    pub fn detach(&self) {
        let mut state = self.state();
        state.dies_in = None;
        for merchant in &mut state.merchants {
            merchant.under_way = 0;
        }
        let process = state.process.take();
        drop(state);
        drop(process);
    }

    /// Has the process die at the so-manieth message from now: after it was acted on, before it is answered.
    pub fn kill_after(&self, messages: u64) {
        self.state().dies_in = Some(messages);
    }

    /// Ends in the moment in which the process dies.
    pub async fn death(&self) {
        self.death.notified().await;
    }

    // ---- what is remembered ----

    /// Folds something into the trace, and counts it by its kind.
    pub fn note(&self, kind: &'static str, what: &str) {
        let now = self.clock.now();
        let mut state = self.state();
        let count = state.counts.entry(kind).or_default();
        *count = count.saturating_add(1);
        state.trace.note(now, kind);
        state.trace.note(now, what);
    }

    /// Something that must not be.
    pub fn find(&self, what: String) {
        let now = self.clock.now();
        self.state().findings.push(format!("{now}: {what}"));
    }

    /// What was found wrong so far.
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        self.state().findings.clone()
    }

    /// The hash over everything so far.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.state().trace.clone()
    }

    /// What happened how often.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.state().counts.clone()
    }

    fn turn(&self) -> Turn {
        let mut state = self.state();
        let Some(left) = state.dies_in else { return Turn::Go };
        let left = left.saturating_sub(1);
        state.dies_in = (left > 0).then_some(left);
        drop(state);
        if left > 0 {
            return Turn::Go;
        }
        self.death.notify_one();
        Turn::Die
    }

    async fn route(&self, request: Request) -> Result<Response, HttpError> {
        let host = request.url.host_str().unwrap_or_default().to_owned();
        let node = {
            let state = self.state();
            state.nodes.iter().position(|node| node.host == host)
        };
        match node {
            Some(node) => self.ask(node, &request).await,
            None => match merchant_of(&host) {
                Some(merchant) => self.deliver(merchant, &request).await,
                None => Err(HttpError::new(HttpErrorKind::NameNotFound, Sent::Not, "")),
            },
        }
    }

    // ---- asking a provider ----

    async fn ask(&self, node: usize, request: &Request) -> Result<Response, HttpError> {
        let provider = {
            let state = self.state();
            state.nodes.get(node).filter(|node| !node.down).map(|node| Arc::clone(&node.provider))
        };
        let Some(provider) = provider else {
            self.note("refused", &node.to_string());
            return self.refuse().await;
        };
        let reply = provider.ask(&request.body);
        self.note("call", &format!("{node} {} {:?}", hex::encode(&request.body), reply.delay));
        if matches!(self.turn(), Turn::Die) {
            std::future::pending::<()>().await;
        }
        self.clock.sleep(reply.delay).await;
        match reply.outcome {
            Outcome::Hang => std::future::pending().await,
            Outcome::Lost => Err(HttpError::new(HttpErrorKind::Reset, Sent::Maybe, "")),
            Outcome::Respond { status, headers, body, delivery } => {
                let (body, ended) = self.hand_over(body, delivery, request.max_response_bytes).await;
                Ok(response(status, &headers, body, ended))
            }
        }
    }

    async fn hand_over(&self, mut body: Bytes, delivery: Delivery, most: usize) -> (Bytes, BodyEnd) {
        let mut ended = BodyEnd::Whole;
        match delivery {
            Delivery::Whole => {}
            Delivery::CutAfter(bytes) => {
                body.truncate(bytes);
                ended = BodyEnd::Broken;
            }
            Delivery::Drip { bytes, every } => {
                let drops = u32::try_from(body.len().div_ceil(bytes.max(1))).unwrap_or(u32::MAX);
                self.clock.sleep(every.saturating_mul(drops)).await;
            }
        }
        if body.len() > most {
            body.truncate(most);
            ended = BodyEnd::CutAtLimit;
        }
        (body, ended)
    }

    async fn refuse(&self) -> Result<Response, HttpError> {
        self.clock.sleep(REFUSAL).await;
        Err(HttpError::new(HttpErrorKind::ConnectRefused, Sent::Not, ""))
    }

    // ---- telling a merchant ----

    async fn deliver(&self, merchant: usize, request: &Request) -> Result<Response, HttpError> {
        let (manner, latency) = {
            let mut state = self.state();
            let Some(merchant) = state.merchants.get_mut(merchant) else {
                return Err(HttpError::new(HttpErrorKind::NameNotFound, Sent::Not, ""));
            };
            merchant.under_way = merchant.under_way.saturating_add(1);
            (merchant.manner.clone().unwrap_or(Manner::Accept), merchant.latency)
        };
        let _under_way = UnderWay { world: self, merchant };
        self.check_breaker(merchant);
        if manner == Manner::Down {
            self.note("refused", &format!("merchant {merchant}"));
            return self.refuse().await;
        }
        let accepted = manner == Manner::Accept;
        self.receive(merchant, request, accepted);
        if matches!(self.turn(), Turn::Die) {
            std::future::pending::<()>().await;
        }
        let jitter = self.state().chance.below(1 + u64::try_from(latency.as_millis()).unwrap_or(u64::MAX));
        self.clock.sleep(latency.saturating_add(Duration::from_millis(jitter))).await;
        match manner {
            Manner::Accept => Ok(response(200, &[], Bytes::new(), BodyEnd::Whole)),
            Manner::AcceptInSilence => std::future::pending().await,
            Manner::AcceptAndHangUp => Err(HttpError::new(HttpErrorKind::Reset, Sent::Maybe, "")),
            Manner::Answer(status) => Ok(response(status, &[], Bytes::new(), BodyEnd::Whole)),
            Manner::Throttle(seconds) => {
                let headers = [("retry-after", seconds.to_string())];
                Ok(response(429, &headers, Bytes::new(), BodyEnd::Whole))
            }
            Manner::Down => self.refuse().await,
        }
    }

    fn receive(&self, merchant: usize, request: &Request, accepted: bool) {
        let now = self.clock.now();
        let text = |name: &str| {
            request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let id = text("webhook-id");
        self.note("webhook", &format!("{merchant} {id} {}", hex::encode(&request.body)));
        if let Some(wrong) = self.wrong_with(merchant, request, &id, now) {
            self.find(format!("merchant {merchant} received {id}: {wrong}"));
        }
        let replayed = request.headers.contains_key("quittance-replay");
        let body = request.body.clone();
        self.state().arrivals.push(Arrival { at: now, merchant, id, body, replayed, accepted });
    }

    /// What is wrong with a webhook's headers, by the reference library's own signature.
    fn wrong_with(
        &self,
        merchant: usize,
        request: &Request,
        id: &str,
        now: Timestamp,
    ) -> Option<&'static str> {
        let text =
            |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let Ok(signed_at) = text("webhook-timestamp").parse::<i64>() else { return Some("no timestamp") };
        if signed_at != now.as_seconds() {
            return Some("the signature's time is not the time of sending");
        }
        if text("idempotency-key") != format!("\"{id}\"") {
            return Some("the Idempotency-Key is not the webhook-id");
        }
        let state = self.state();
        let secret = state.merchants.get(merchant)?.secret.as_ref()?;
        let expected = secret.sign(id, signed_at, &request.body).ok()?;
        (text("webhook-signature") != expected).then_some("the signature does not fit")
    }

    /// Nobody is called while their breaker is open, and one at a time while it probes.
    fn check_breaker(&self, merchant: usize) {
        let (process, target, under_way) = {
            let state = self.state();
            let Some(merchant) = state.merchants.get(merchant) else { return };
            (state.process.clone(), merchant.target.clone(), merchant.under_way)
        };
        // Works that run one after the other begin long after they were claimed.
        let Some((store, true)) = process else { return };
        let gates = store.read_now(gate::list);
        let Ok::<_, StoreError>(gates) = gates else { return };
        let now = self.clock.now();
        let Some(gate) = gates.iter().find(|gate| gate.target == target) else { return };
        match gate.breaker {
            Breaker::Tripped { until, .. } if now < until && gate.changed_at < now => {
                self.find(format!("merchant {merchant} was called while its breaker is open until {until}"));
            }
            Breaker::Probing { .. } if under_way > 1 && gate.changed_at == now => {
                self.note("crowded probe", &under_way.to_string());
            }
            _ => {}
        }
    }
}

struct UnderWay<'a> {
    world: &'a World,
    merchant: usize,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(merchant) = self.world.state().merchants.get_mut(self.merchant) {
            merchant.under_way = merchant.under_way.saturating_sub(1);
        }
    }
}

impl Http for World {
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response, HttpError>> {
        Box::pin(async move {
            let deadline = request.deadline;
            within(&self.clock, deadline, self.route(request)).await.unwrap_or_else(|_passed| {
                Err(HttpError::new(HttpErrorKind::Timeout(Phase::Head), Sent::Maybe, ""))
            })
        })
    }
}

fn merchant_of(host: &str) -> Option<usize> {
    host.strip_prefix("merchant-")?.strip_suffix(".example")?.parse().ok()
}

fn response(status: u16, headers: &[(&'static str, String)], body: Bytes, ended: BodyEnd) -> Response {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            map.insert(HeaderName::from_static(name), value);
        }
    }
    Response {
        status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        headers: map,
        body,
        ended,
        timings: Timings::default(),
        peer: SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 443)),
    }
}

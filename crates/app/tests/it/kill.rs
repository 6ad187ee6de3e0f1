//! kill -9: the server is a process of its own, killed at random moments while invoices are made, paid and told of.
//! Chain and merchant live on beside it, and are asked in the end what happened.
//!
//! `QUITTANCE_KILLS` says how often (12), `QUITTANCE_SEED` when (1).

#![expect(clippy::print_stderr, reason = "what was measured is told to whoever runs the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, B256, U256, keccak256};
use bytes::Bytes;
use devchain::token::CONTRACTS;
use devchain::{Devchain, Face, serve_face};
use domain::chance::Chance;
use domain::delivery::DeliveryState;
use domain::time::Clock;
use durable::store::{Access, ReadOnly, Store, StoreError, StoreOptions, block, delivery};
use futures::future::{join, join_all};
use futures::stream::{self, StreamExt};
use http::{Method, StatusCode};
use outside::clock::SystemClock;
use outside::guard::deadline;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sim::receiver::{Behaviour, Receiver, Signature};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::loopback::Http;
use crate::world::{CHAIN, Settings, configuration};

const INVOICES: u64 = 200;
const USUAL_KILLS: u64 = 12;
/// No life is longer, but the last. Every third is so short that it mostly ends before the server listens.
const LONGEST_LIFE_MS: u64 = 500;
const SHORT_LIFE_MS: u64 = 60;
/// The chain's pace.
const BLOCK_EVERY: Duration = Duration::from_millis(25);
/// Requests under way at the same time.
const CALLERS: usize = 8;
const GRACE: Duration = Duration::from_millis(300);
/// What takes longer than this has failed, kills not counted.
const PATIENCE: Duration = Duration::from_secs(60);
const HOOK: &str = "/hook";

/// What lives on while the server dies.
struct Site {
    chain: Devchain,
    faces: Vec<Face>,
    merchant: Receiver,
    clock: Arc<dyn Clock>,
    http: Http,
    directory: TempDir,
    /// Where the server listens now, or listened last.
    base: watch::Sender<String>,
    /// The how-manieth life it is.
    life: watch::Sender<u64>,
}

/// One process.
struct Server {
    process: Child,
    /// When it was started.
    began: Duration,
}

/// An invoice as its maker remembers it.
struct Paid {
    id: String,
    recipient: Address,
    amount: u64,
    tx: B256,
}

#[derive(Deserialize)]
struct Page<T> {
    data: Vec<T>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    sequence: u64,
    data: Value,
}

impl Site {
    async fn new() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let chain = Devchain::new(devchain::Config::default());
        chain.mine();
        let mut faces = Vec::new();
        for number in 0..3 {
            faces.push(serve_face(&chain, &format!("face{number}")).await.unwrap());
        }
        let directory = TempDir::new().unwrap();
        let urls: Vec<String> = faces.iter().map(Face::url).collect();
        let text = configuration(&Settings::default(), &urls, CONTRACTS.dollar);
        std::fs::write(directory.path().join("quittance.toml"), text).unwrap();
        let merchant = Receiver::start(Arc::clone(&clock)).await.unwrap();
        // Slow enough that many a delivery is acted on and not recorded when the process dies.
        merchant.behave(HOOK, Behaviour::AcceptAfter(Duration::from_millis(30)));
        Self {
            chain,
            faces,
            merchant,
            clock,
            http: Http::new(),
            directory,
            base: watch::Sender::new(String::new()),
            life: watch::Sender::new(0),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts the real binary. It tells where it listens when it does.
    fn start(&self) -> Server {
        let log = OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_quittance"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("QUITTANCE_") {
                command.env_remove(name);
            }
        }
        let began = self.clock.monotonic();
        let mut process = command
            .args(["serve", "--json", "--config"])
            .arg(self.path("quittance.toml"))
            .env("QUITTANCE__SERVER__SHUTDOWN_GRACE_MS", GRACE.as_millis().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let base = self.base.clone();
        tokio::spawn(async move {
            if let Ok(Some(line)) = lines.next_line().await {
                let said: Value = serde_json::from_str(&line).unwrap();
                base.send_replace(said["listening"].as_str().unwrap().to_owned());
            }
        });
        Server { process, began }
    }

    /// Asks until there is an answer, however many processes that takes.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Option<Value>,
    ) -> (StatusCode, Bytes) {
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        loop {
            let base = self.base.borrow().clone();
            if !base.is_empty()
                && let Ok((status, answer)) =
                    self.http.send(method.clone(), &format!("{base}{path}"), key, body.clone()).await
                && !status.is_server_error()
                && !is_in_flight(status, &answer)
            {
                return (status, answer);
            }
            self.clock.sleep(Duration::from_millis(5)).await;
        }
    }

    async fn post(&self, path: &str, key: &str, body: Value) -> Value {
        let (status, answer) = self.ask(Method::POST, path, Some(key), Some(body)).await;
        let text = String::from_utf8_lossy(&answer);
        assert_eq!(status, StatusCode::CREATED, "{path} {key}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        let (status, answer) = self.ask(Method::GET, path, None, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).unwrap()
    }

    /// All pages of a list, each item as the bytes that came.
    async fn all(&self, path: &str) -> Vec<Box<RawValue>> {
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let (status, answer) =
                self.ask(Method::GET, &format!("{path}?limit=250{after}"), None, None).await;
            assert_eq!(status, StatusCode::OK);
            let page: Page<Box<RawValue>> = serde_json::from_slice(&answer).unwrap();
            found.extend(page.data);
            match page.next {
                Some(next) => after = format!("&after={next}"),
                None => return found,
            }
        }
    }

    /// Makes invoice `number`, in or after the life that it is meant for, and pays it.
    async fn make_and_pay(&self, number: u64, kills: u64) -> Paid {
        let meant_for = number * kills / INVOICES;
        self.life.subscribe().wait_for(|life| *life >= meant_for).await.unwrap();
        let recipient = Address::from_word(keccak256(format!("recipient {number}")));
        let amount = 1_000 + number;
        let body = json!({
            "chain": CHAIN,
            "asset": CONTRACTS.dollar,
            "amount": amount.to_string(),
            "recipient": recipient,
            "reference": format!("order {number}"),
            "expires_in": 86_400,
        });
        let made = self.post("/v1/invoices", &format!("invoice-{number}"), body).await;
        let tx = self.chain.send_token(CONTRACTS.dollar, 1, recipient, U256::from(amount)).unwrap();
        Paid { id: made["id"].as_str().unwrap().to_owned(), recipient, amount, tx }
    }

    async fn subscribe(&self) {
        let body = json!({ "url": self.merchant.url(HOOK), "event_types": ["invoice.*"] });
        let made = self.post("/v1/webhook-endpoints", "endpoint", body).await;
        self.merchant.trust(HOOK, made["secret"].as_str().unwrap()).unwrap();
    }

    /// The heights that providers were asked for by number.
    fn heights_asked(&self) -> BTreeSet<u64> {
        let calls = self.faces.iter().flat_map(|face| face.provider().calls());
        calls
            .filter(|call| call.method == "eth_getBlockByNumber")
            .filter_map(|call| u64::from_str_radix(call.params[0].as_str()?.strip_prefix("0x")?, 16).ok())
            .collect()
    }

    /// When somebody asked a provider for its head: the watcher is at work.
    async fn watching(&self) -> Duration {
        let asked =
            self.faces.iter().map(|face| Box::pin(face.provider().wait_for("eth_getBlockByNumber", 1)));
        futures::future::select_all(asked).await;
        self.clock.monotonic()
    }

    /// The last block that a process which is dead had processed.
    async fn last_block(&self) -> Option<u64> {
        let cursor = self.read(|query| block::find_cursor(query, CHAIN)).await.flatten();
        cursor.map(|cursor| cursor.block.number)
    }

    /// Reads rows without the server; nothing if it died before there were any.
    async fn read<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&durable::store::Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Option<T> {
        let path = self.path("q.db");
        if !path.exists() {
            return None;
        }
        let options = StoreOptions { access: Access::Guest, ..StoreOptions::default() };
        match Store::open(path, options, Arc::clone(&self.clock), Chance::from_seed(0)) {
            Ok(store) => Some(ReadOnly::read(store.read_only(), ask).await.unwrap()),
            Err(StoreError::Outdated { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Asks until `found` is, with a deadline that is only reached when it never will be.
    async fn until<T>(&self, what: &str, mut find: impl AsyncFnMut() -> Option<T>) -> T {
        let asking = async {
            loop {
                if let Some(found) = find().await {
                    return found;
                }
                self.clock.sleep(Duration::from_millis(10)).await;
            }
        };
        match deadline::within(&*self.clock, PATIENCE, asking).await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for {what}\n{}", self.log_tail()),
        }
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Server {
    /// SIGKILL. When it returns, the process is gone.
    async fn kill(mut self) {
        assert!(self.process.try_wait().unwrap().is_none(), "it ended by itself");
        self.process.kill().await.unwrap();
    }

    /// SIGTERM, and how it ended.
    async fn terminate(mut self) -> ExitStatus {
        let id = self.process.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
        self.process.wait().await.unwrap()
    }
}

/// The same request is under way already, in this process or in one whose end was not noticed yet.
fn is_in_flight(status: StatusCode, answer: &[u8]) -> bool {
    status == StatusCode::CONFLICT
        && serde_json::from_slice::<Value>(answer)
            .is_ok_and(|problem| problem["code"] == "idempotency_in_flight")
}

fn number_of(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().map_or(usual, |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_nothing_is_lost_or_done_twice() {
    let (kills, seed) = (number_of("QUITTANCE_KILLS", USUAL_KILLS), number_of("QUITTANCE_SEED", 1));
    let (site, chance) = (Site::new().await, Chance::from_seed(seed));
    let work = async {
        site.subscribe().await;
        stream::iter(0..INVOICES)
            .map(|number| site.make_and_pay(number, kills))
            .buffered(CALLERS)
            .collect::<Vec<Paid>>()
            .await
    };
    let story = join(Box::pin(work), Box::pin(kill_again_and_again(&site, kills, &chance)));
    let told = tokio::select! {
        told = deadline::within(&*site.clock, PATIENCE + Duration::from_secs(2 * kills), story) => told,
        () = mine(&site) => unreachable!(),
    };
    let Ok((paid, (server, figures))) = told else { panic!("the story has no end\n{}", site.log_tail()) };
    tokio::select! {
        () = judge(&site, &paid) => {}
        () = mine(&site) => unreachable!(),
    }
    figures.tell(kills, seed);
    stop_in_the_middle_of_a_delivery(&site, server).await;
}

/// The chain goes on whatever happens to the server.
async fn mine(site: &Site) {
    loop {
        site.chain.mine();
        site.clock.sleep(BLOCK_EVERY).await;
    }
}

#[derive(Default)]
struct Figures {
    /// From a start after a kill to the first question to a provider.
    resumed: Vec<Duration>,
    /// How often the first height that was asked for was checked.
    heights_checked: u64,
    /// Lives that ended before the server could be reached.
    killed_at_start: u64,
}

impl Figures {
    fn tell(&self, kills: u64, seed: u64) {
        let mut sorted = self.resumed.clone();
        sorted.sort_unstable();
        let (median, worst) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
        eprintln!(
            "{kills} kills (seed {seed}), {} of them before the server listened; start to first resumed work: \
             median {median:?}, worst {worst:?} of {}; next height checked {} times",
            self.killed_at_start,
            sorted.len(),
            self.heights_checked
        );
        assert!(worst < Duration::from_secs(1), "work resumes within a second");
        assert!(self.heights_checked > 0);
    }
}

/// Starts the server and kills it, `kills` times, and leaves it running.
async fn kill_again_and_again(site: &Site, kills: u64, chance: &Chance) -> (Server, Figures) {
    let mut figures = Figures::default();
    let mut last_block = None;
    for life in 0..=kills {
        // Two blocks at least are new, so that the first of them is asked for by its number.
        site.chain.mine_n(2);
        site.faces.iter().for_each(|face| face.provider().clear_requests());
        let listened = site.base.subscribe();
        let server = site.start();
        site.life.send_replace(life);
        let resumed = site.watching();
        if life == kills {
            figures.resumed.push(resumed.await - server.began);
            let next = last_block.map(|last: u64| last + 1);
            site.until("the next block to be asked for", async || {
                next.is_none_or(|next| site.heights_asked().contains(&next)).then_some(())
            })
            .await;
            figures.check_heights(site, last_block, next);
            return (server, figures);
        }
        let longest = if life % 3 == 1 { SHORT_LIFE_MS } else { LONGEST_LIFE_MS };
        let fate = site.clock.sleep(Duration::from_millis(chance.below(longest)));
        if let futures::future::Either::Left((at, fate)) =
            futures::future::select(Box::pin(resumed), fate).await
        {
            if life > 0 {
                figures.resumed.push(at - server.began);
            }
            fate.await;
        }
        server.kill().await;
        figures.killed_at_start += u64::from(!listened.has_changed().unwrap());
        let reached = site.last_block().await;
        figures.check_heights(site, last_block, reached);
        last_block = reached;
    }
    unreachable!()
}

impl Figures {
    /// No block is read again that an earlier life had processed, and none is passed over: of a life that processed
    /// any, the first that was asked for is the one after `last`. (Blocks are asked for several at once, so that one
    /// that died early may have been heard to ask for a later one only.)
    fn check_heights(&mut self, site: &Site, last: Option<u64>, reached: Option<u64>) {
        let (Some(first), Some(last)) = (site.heights_asked().pop_first(), last) else { return };
        assert!(first > last, "asked for {first} again, after {last}");
        if reached.is_some_and(|reached| reached > last) {
            assert_eq!(first, last + 1, "the next block asked for");
            self.heights_checked += 1;
        }
    }
}

/// Waits until all is told, and asks chain, API and merchant for their accounts.
async fn judge(site: &Site, paid: &[Paid]) {
    let details = site
        .until("every invoice to be settled", async || {
            let shown =
                join_all(paid.iter().map(async |paid| site.get(&format!("/v1/invoices/{}", paid.id)).await))
                    .await;
            shown.iter().all(|invoice| invoice["status"] == "settled").then_some(shown)
        })
        .await;
    assert_eq!(site.all("/v1/invoices").await.len(), paid.len(), "no request made two invoices");
    assert_eq!(site.all("/v1/payments").await.len(), paid.len(), "no transfer was counted twice");
    for (paid, invoice) in paid.iter().zip(&details) {
        let held = site.chain.token_balance(CONTRACTS.dollar, paid.recipient);
        assert_eq!(held, U256::from(paid.amount));
        assert_eq!(invoice["amount_paid"], held.to_string(), "{invoice}");
        assert_eq!(invoice["amount_confirmed"], held.to_string());
        assert_eq!(invoice["tx_hash"], json!(paid.tx));
        let payments = invoice["payments"].as_array().unwrap();
        assert_eq!(payments.len(), 1, "{payments:?}");
        assert_eq!((&payments[0]["tx_hash"], &payments[0]["matching"]), (&json!(paid.tx), &json!("matched")));
    }
    judge_events(site, paid).await;
}

/// Each event came at least once, with one id and one body, in the order of its invoice; and nothing else came.
async fn judge_events(site: &Site, paid: &[Paid]) {
    let bodies = site.all("/v1/events").await;
    let of_invoices: Vec<(Event, &RawValue)> = bodies
        .iter()
        .map(|body| (serde_json::from_str::<Event>(body.get()).unwrap(), &**body))
        .filter(|(event, _)| event.kind.starts_with("invoice."))
        .collect();
    let mut stories: BTreeMap<&str, Vec<(u64, &str)>> = BTreeMap::new();
    for (event, _) in &of_invoices {
        let invoice = event.data["invoice"]["id"].as_str().unwrap();
        stories.entry(invoice).or_default().push((event.sequence, &event.kind));
    }
    assert_eq!(stories.len(), paid.len());
    for (invoice, story) in &stories {
        assert_eq!(*story, [(1, "invoice.detected"), (2, "invoice.settled")], "{invoice}");
    }

    site.until("every event to be delivered", async || {
        let messages = site.merchant.messages();
        let came = |id: &str| messages.get(&(HOOK.to_owned(), id.to_owned())).is_some_and(|m| m.accepted > 0);
        of_invoices.iter().all(|(event, _)| came(&event.id)).then_some(())
    })
    .await;
    site.until("every delivery to be recorded", async || {
        let rows = site.all("/v1/deliveries").await;
        let done =
            |row: &RawValue| serde_json::from_str::<Value>(row.get()).unwrap()["status"] == "delivered";
        (rows.len() == of_invoices.len() && rows.iter().all(|row| done(row))).then_some(())
    })
    .await;
    let known: BTreeMap<&str, &RawValue> =
        of_invoices.iter().map(|(event, body)| (event.id.as_str(), *body)).collect();
    assert_eq!(known.len(), of_invoices.len(), "an id names one event");
    let mut first_arrivals: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let arrivals = site.merchant.arrivals();
    for arrival in &arrivals {
        let body = known.get(arrival.id.as_str()).unwrap_or_else(|| panic!("{} is in no log", arrival.id));
        assert_eq!(arrival.body, body.get().as_bytes(), "one id, one body");
        assert_eq!(arrival.signature, Signature::Valid);
        assert_eq!(arrival.idempotency_key, format!("\"{}\"", arrival.id));
        if seen.insert(&arrival.id) {
            let event: Event = serde_json::from_slice(&arrival.body).unwrap();
            let invoice = event.data["invoice"]["id"].as_str().unwrap().to_owned();
            first_arrivals.entry(invoice).or_default().push(event.sequence);
        }
    }
    assert!(first_arrivals.values().all(|order| *order == [1, 2]), "{first_arrivals:?}");
    assert!(site.all("/v1/dead-letters").await.is_empty());
    eprintln!("{} events came {} times", known.len(), arrivals.len());
}

/// SIGTERM while the merchant holds a request: the process ends in its grace, and the delivery is as if it had not begun.
async fn stop_in_the_middle_of_a_delivery(site: &Site, server: Server) {
    site.merchant.behave(HOOK, Behaviour::Silence);
    let before = site.merchant.arrivals().len();
    let last = site.make_and_pay(INVOICES, 0).await;
    site.chain.mine();
    let held =
        site.until("a delivery under way", async || site.merchant.arrivals().into_iter().nth(before)).await;
    assert_eq!(held.status, None);
    let asked = site.clock.monotonic();
    let ended = server.terminate().await;
    let took = site.clock.monotonic() - asked;
    eprintln!("SIGTERM with a delivery under way: {ended}, after {took:?} with a grace of {GRACE:?}");
    assert!(ended.success(), "{ended}\n{}", site.log_tail());
    assert!(took < GRACE + Duration::from_secs(2));

    let rows =
        site.read(|query| delivery::list(query, &delivery::Filter::default(), None, 1000)).await.unwrap();
    let waiting: Vec<_> = rows.iter().filter(|row| row.state == DeliveryState::Pending).collect();
    assert_eq!(waiting.iter().map(|row| row.attempts).collect::<Vec<_>>(), [0], "no attempt was burnt");

    site.merchant.behave(HOOK, Behaviour::Accept);
    site.base.send_replace(String::new());
    let _server = site.start();
    site.chain.mine_n(3);
    let delivery = format!("/v1/deliveries/{}", waiting[0].id);
    let delivered = site
        .until("the delivery to be made after all", async || {
            Some(site.get(&delivery).await).filter(|delivery| delivery["status"] == "delivered")
        })
        .await;
    assert_eq!(delivered["attempts"], 1, "{delivered}");
    let message = &site.merchant.messages()[&(HOOK.to_owned(), held.id)];
    assert!(message.same_body && message.count == 2 && message.accepted == 1, "{message:?}");
    site.until("the last invoice to be settled", async || {
        (site.get(&format!("/v1/invoices/{}", last.id)).await["status"] == "settled").then_some(())
    })
    .await;
}

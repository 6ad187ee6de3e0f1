//! The server under test: `quittance serve` as a process of its own, and its API.
//!
//! It is started from the same binary with a configuration of its own, really killed (SIGKILL) and started again on the same
//! database. Its output goes to a file. Variables that would change its configuration are kept from it.
//!
//! Deliberately absent: any knowledge of the process from inside; everything is asked over HTTP.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use devchain::Face;
use devchain::token::CONTRACTS;
use domain::time::{Clock, Timestamp};
use http::{HeaderValue, Method};
use outside::http::{AddressPolicy, Client, ClientOptions, Http, Request};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::process::{Child, Command};
use url::Url;

use super::claims::Stuck;
use super::world::{CHAIN_ID, CONFIRMATIONS};

/// How long anything may take that the tour waits for.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// The pause between two looks at the API.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often a question is asked that gets no answer.
const ASKS: u32 = 3;
/// The largest answer that is read.
const LARGEST_ANSWER: usize = 16 << 20;
/// So much of the log is shown when the server does not start.
const TAIL_LINES: usize = 12;

/// How a server is set up.
pub(super) struct Setup<'a> {
    /// Where its configuration, database and log are.
    pub(super) directory: &'a Path,
    /// Where it listens.
    pub(super) listen: SocketAddr,
    /// Whom it asks, with the owner of each.
    pub(super) providers: Vec<(&'a str, &'a Face)>,
    /// How many owners have to agree.
    pub(super) quorum: usize,
    /// The first block it reads.
    pub(super) start_block: u64,
}

/// A server process.
pub(super) struct Server {
    config: PathBuf,
    /// Its database.
    pub(super) database: PathBuf,
    /// What it says.
    pub(super) log: PathBuf,
    base: Url,
    child: Option<Child>,
    http: Client,
    clock: Arc<dyn Clock>,
    repeated: AtomicU64,
}

/// An invoice, as the API shows it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Invoice {
    /// Its id.
    pub(super) id: String,
    /// Where it stands.
    pub(super) status: String,
    /// Paid in proven blocks, in base units.
    pub(super) amount_paid: String,
    /// Of that, confirmed.
    pub(super) amount_confirmed: String,
    /// Whether a payment vanished.
    pub(super) reverted: bool,
    /// When it was settled.
    pub(super) settled_at: Option<Timestamp>,
    /// Invoice and transaction.
    pub(super) settlement_key: Option<String>,
    /// Its payments; only when asked for one by one.
    #[serde(default)]
    pub(super) payments: Vec<Payment>,
}

/// A payment, as the API shows it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Payment {
    /// The block's height.
    pub(super) block: u64,
    /// How it is known.
    pub(super) evidence_level: String,
}

/// A chain, as the API shows it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ChainState {
    /// The last block that is proven and applied.
    pub(super) last_processed_block: Option<u64>,
    /// Why it gets no further.
    pub(super) stalled: Option<String>,
}

/// A provider, as the API shows it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ProviderState {
    /// Its owner.
    pub(super) group: String,
    /// What it was caught at.
    pub(super) faults: std::collections::BTreeMap<String, u64>,
}

/// A delivery, as the API shows it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct DeliveryState {
    /// `webhook-id`.
    pub(super) event_id: Option<String>,
    /// Where it stands.
    pub(super) status: String,
    /// How often it was tried.
    pub(super) attempts: u32,
    /// What went wrong last.
    pub(super) last_error: Option<String>,
}

#[derive(Deserialize)]
struct List<T> {
    data: Vec<T>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Endpoint {
    secret: String,
}

#[derive(Deserialize)]
struct EvidenceKey {
    key: String,
}

/// What to ask for.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewInvoice<'a> {
    /// Base units.
    pub(super) amount: alloy_primitives::U256,
    /// Who is to be paid.
    pub(super) recipient: alloy_primitives::Address,
    /// The merchant's own words.
    pub(super) reference: &'a str,
}

impl Server {
    /// Writes the configuration; nothing runs yet.
    ///
    /// # Errors
    /// When the directory cannot be written, or HTTP not be spoken.
    pub(super) fn new(setup: &Setup<'_>, clock: Arc<dyn Clock>) -> Result<Self, Stuck> {
        let unwritable = |error: std::io::Error| {
            Stuck::new(format!("{} can be written", setup.directory.display()), error)
        };
        std::fs::create_dir_all(setup.directory).map_err(unwritable)?;
        let config = setup.directory.join("quittance.toml");
        std::fs::write(&config, config_text(setup)).map_err(unwritable)?;
        let http = Client::new(ClientOptions::new(AddressPolicy::unrestricted()), Arc::clone(&clock))
            .map_err(|error| Stuck::new("an HTTP client", error))?;
        let base = Url::parse(&format!("http://{}", setup.listen))
            .map_err(|error| Stuck::new("an address to listen on", error))?;
        Ok(Self {
            config,
            database: setup.directory.join("quittance.db"),
            log: setup.directory.join("server.log"),
            base,
            child: None,
            http,
            clock,
            repeated: AtomicU64::new(0),
        })
    }

    /// Where it answers, without a slash at the end.
    pub(super) fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// The HTTP client of the tour, for others as well.
    pub(super) fn http(&self) -> &Client {
        &self.http
    }

    /// How often a question got no answer and was asked again.
    pub(super) fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }

    /// The number of the running process.
    pub(super) fn process(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Starts the process. It is not ready yet: see [`Server::ready`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn spawn(&mut self) -> Result<(), Stuck> {
        let failed = |error: std::io::Error| Stuck::new("the server process starts", error);
        let program = std::env::current_exe().map_err(failed)?;
        let log: File = OpenOptions::new().create(true).append(true).open(&self.log).map_err(failed)?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(&self.config);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log).kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("QUITTANCE_") {
                command.env_remove(name);
            }
        }
        self.child = Some(command.spawn().map_err(failed)?);
        Ok(())
    }

    /// Waits until the process says that it can work.
    ///
    /// # Errors
    /// When it ends instead, or takes too long.
    pub(super) async fn ready(&mut self) -> Result<(), Stuck> {
        let started = self.clock.monotonic();
        loop {
            if let Some(child) = self.child.as_mut()
                && let Ok(Some(status)) = child.try_wait()
            {
                return Err(Stuck::new("the server starts", format!("{status}\n{}", self.log_tail())));
            }
            match self.ask_once(Method::GET, "/readyz", None).await {
                Ok((200, _)) => return Ok(()),
                last if self.clock.monotonic().saturating_sub(started) > PATIENCE => {
                    let said = match last {
                        Ok((status, body)) => format!("{status}: {}", String::from_utf8_lossy(&body)),
                        Err(error) => error,
                    };
                    return Err(Stuck::new("the server is ready", format!("{said}\n{}", self.log_tail())));
                }
                _ => self.clock.sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Kills the process with SIGKILL and waits until the system has taken it away.
    pub(super) async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A process that has ended already cannot be killed, and is waited for all the same.
            let _ = child.start_kill();
            let _ = child.wait().await;
        }
    }

    /// Waits until the process ends by itself.
    pub(super) async fn ended(&mut self) {
        match self.child.as_mut() {
            Some(child) => {
                let _ = child.wait().await;
            }
            None => std::future::pending().await,
        }
    }

    /// The end of the log.
    pub(super) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// As [`Server::ask_once`]; no answer is asked for again, as the idempotency key allows.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, String)>,
    ) -> Result<(u16, Bytes), String> {
        let mut last = String::new();
        for _ in 0..ASKS {
            match self.ask_once(method.clone(), path, body.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
            self.repeated.fetch_add(1, Ordering::Relaxed);
            self.clock.sleep(LOOK_EVERY).await;
        }
        Err(last)
    }

    async fn ask_once(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, String)>,
    ) -> Result<(u16, Bytes), String> {
        let url = self.base.join(path).map_err(|error| error.to_string())?;
        let mut request = Request::new(method, url, Bytes::new());
        request.max_response_bytes = LARGEST_ANSWER;
        if let Some((key, body)) = body {
            let key = HeaderValue::from_str(key).map_err(|error| error.to_string())?;
            request.headers.insert("idempotency-key", key);
            request.headers.insert("content-type", HeaderValue::from_static("application/json"));
            request.body = body.into();
        }
        let answer =
            self.http.send(request).await.map_err(|error| format!("{error} ({})", error.detail()))?;
        if answer.truncated() {
            return Err("the answer was cut short".to_owned());
        }
        Ok((answer.status.as_u16(), answer.body))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Stuck> {
        let answer = self.ask(Method::GET, path, None).await;
        read(&format!("GET {path}"), answer)
    }

    async fn all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Stuck> {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page: List<T> = match &after {
                None => self.get(&format!("{path}?limit=250")).await?,
                Some(after) => self.get(&format!("{path}?limit=250&after={after}")).await?,
            };
            found.extend(page.data);
            if page.next.is_none() {
                return Ok(found);
            }
            after = page.next;
        }
    }

    /// Makes an invoice. The same `key` makes the same invoice.
    ///
    /// # Errors
    /// Any answer but 201.
    pub(super) async fn create_invoice(&self, new: NewInvoice<'_>, key: &str) -> Result<Invoice, Stuck> {
        let body = serde_json::json!({
            "chain": format!("eip155:{CHAIN_ID}"),
            "asset": CONTRACTS.dollar,
            "amount": new.amount.to_string(),
            "recipient": new.recipient,
            "reference": new.reference,
            "expires_in": 3600,
        });
        let answer = self.ask(Method::POST, "/v1/invoices", Some((key, body.to_string()))).await;
        read("POST /v1/invoices", answer)
    }

    /// One invoice, with its payments.
    ///
    /// # Errors
    /// When there is no good answer.
    pub(super) async fn invoice(&self, id: &str) -> Result<Invoice, Stuck> {
        self.get(&format!("/v1/invoices/{id}")).await
    }

    /// Every invoice.
    ///
    /// # Errors
    /// When there is no good answer.
    pub(super) async fn invoices(&self) -> Result<Vec<Invoice>, Stuck> {
        self.all("/v1/invoices").await
    }

    /// Every event, as the bytes that merchants get.
    ///
    /// # Errors
    /// When there is no good answer.
    pub(super) async fn events(&self) -> Result<Vec<Box<RawValue>>, Stuck> {
        self.all("/v1/events").await
    }

    /// Every delivery.
    ///
    /// # Errors
    /// When there is no good answer.
    pub(super) async fn deliveries(&self) -> Result<Vec<DeliveryState>, Stuck> {
        self.all("/v1/deliveries").await
    }

    /// Every provider.
    ///
    /// # Errors
    /// When there is no good answer.
    pub(super) async fn providers(&self) -> Result<Vec<ProviderState>, Stuck> {
        Ok(self.get::<List<_>>("/v1/rpc/providers").await?.data)
    }

    /// The one chain.
    ///
    /// # Errors
    /// When there is no good answer.
    pub(super) async fn chain(&self) -> Result<ChainState, Stuck> {
        let chains: List<ChainState> = self.get("/v1/chains").await?;
        chains.data.into_iter().next().ok_or_else(|| Stuck::new("one chain", "none"))
    }

    /// Registers the merchant. Answers the signing secret.
    ///
    /// # Errors
    /// When there is no good answer.
    pub(super) async fn register(&self, url: &str) -> Result<String, Stuck> {
        let body =
            serde_json::json!({ "url": url, "event_types": ["*"], "description": "the demo merchant" });
        let answer =
            self.ask(Method::POST, "/v1/webhook-endpoints", Some(("register", body.to_string()))).await;
        Ok(read::<Endpoint>("POST /v1/webhook-endpoints", answer)?.secret)
    }

    /// The signed evidence of an invoice, byte for byte.
    ///
    /// # Errors
    /// When there is no good answer.
    pub(super) async fn evidence(&self, id: &str) -> Result<Bytes, Stuck> {
        let path = format!("/v1/invoices/{id}/evidence");
        good(&format!("GET {path}"), self.ask(Method::GET, &path, None).await)
    }

    /// The key that signs evidence.
    ///
    /// # Errors
    /// When there is no good answer.
    pub(super) async fn evidence_key(&self) -> Result<String, Stuck> {
        let keys: List<EvidenceKey> = self.get("/v1/evidence-keys").await?;
        keys.data.into_iter().next().map(|key| key.key).ok_or_else(|| Stuck::new("one evidence key", "none"))
    }

    /// Waits until an invoice looks as it should.
    ///
    /// # Errors
    /// When it does not in time.
    pub(super) async fn wait_for_invoice(
        &self,
        id: &str,
        expected: &str,
        fits: impl Fn(&Invoice) -> bool,
    ) -> Result<Invoice, Stuck> {
        let expected = format!("invoice {id} is {expected}");
        self.wait(&expected, async || {
            let invoice = self.invoice(id).await?;
            Ok(if fits(&invoice) { Ok(invoice) } else { Err(invoice.status) })
        })
        .await
    }

    /// Looks again and again until `look` finds what it wants (the inner `Ok`). An API that does not answer may do so later.
    ///
    /// # Errors
    /// When it does not in time.
    pub(super) async fn wait<T>(
        &self,
        expected: &str,
        mut look: impl AsyncFnMut() -> Result<Result<T, String>, Stuck>,
    ) -> Result<T, Stuck> {
        let started = self.clock.monotonic();
        loop {
            let seen = match look().await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(seen)) => seen,
                Err(stuck) => stuck.seen,
            };
            if self.clock.monotonic().saturating_sub(started) > PATIENCE {
                return Err(Stuck::new(expected, format!("{seen}, after {} s", PATIENCE.as_secs())));
            }
            self.clock.sleep(LOOK_EVERY).await;
        }
    }
}

fn good(asked: &str, answer: Result<(u16, Bytes), String>) -> Result<Bytes, Stuck> {
    match answer {
        Ok((200..=299, body)) => Ok(body),
        Ok((status, body)) => {
            let said = String::from_utf8_lossy(&body).into_owned();
            Err(Stuck::new(format!("a good answer to {asked}"), format!("{status}: {said}")))
        }
        Err(error) => Err(Stuck::new(format!("an answer to {asked}"), error)),
    }
}

fn read<T: DeserializeOwned>(asked: &str, answer: Result<(u16, Bytes), String>) -> Result<T, Stuck> {
    let body = good(asked, answer)?;
    serde_json::from_slice(&body).map_err(|error| Stuck::new(format!("a known answer to {asked}"), error))
}

/// Fast polls and short waits: the tour shows in seconds what takes hours with the usual settings.
fn config_text(setup: &Setup<'_>) -> String {
    let mut text = format!(
        r#"# Written by `quittance dev`.
[server]
listen = "{listen}"
auth = "none"

[store]
url = "sqlite://quittance.db"

[[chain]]
id = "eip155:{CHAIN_ID}"
quorum = {quorum}
confirmations = {CONFIRMATIONS}
poll_ms = 100
start_block = {start_block}
rpc_endpoints = [
"#,
        listen = setup.listen,
        quorum = setup.quorum,
        start_block = setup.start_block,
    );
    for (group, face) in &setup.providers {
        // Writing to a string does not fail.
        let _ = writeln!(text, r#"  {{ url = "{}", group = "{group}", timeout_ms = 1000 }},"#, face.url());
    }
    let _ = write!(
        text,
        r#"]

[[chain.asset]]
address = "{dollar}"
symbol = "DUSD"
decimals = 6

[webhook]
allow_http = true
allow_networks = ["127.0.0.0/8"]
max_attempts = 200
timeout_ms = 2000
initial_backoff_ms = 100
max_backoff_ms = 1000

[log]
level = "info"
format = "json"
"#,
        dollar = CONTRACTS.dollar,
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_configuration_is_valid() {
        let chain = devchain::Devchain::new(devchain::Config::default());
        let face = devchain::serve_face(&chain, "alpha").await.unwrap();
        let other = devchain::serve_face(&chain, "beta").await.unwrap();
        let setup = Setup {
            directory: Path::new("/data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 4020)),
            providers: vec![("alpha", &face), ("beta", &other)],
            quorum: 2,
            start_block: 1,
        };
        let loaded = crate::config::parse("dev", &config_text(&setup), setup.directory, &[]).unwrap();
        assert_eq!(loaded.config.chains[0].providers[1].group, "beta");
        assert_eq!(loaded.config.store.path, Path::new("/data/quittance.db"));
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    }
}

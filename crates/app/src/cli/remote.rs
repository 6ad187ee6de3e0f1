//! Commands that ask a running server. Each is one request; what is printed is the server's answer.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use domain::time::{Clock, Timestamp};
use http::Method;
use outside::clock::SystemClock;
use serde_json::{Map, Value, json};
use subtle::ConstantTimeEq;

use super::client::{Remote, Server};
use super::listen::Listen;
use super::local::read_input;
use super::output::{Columns, Output};
use super::{Failure, parse_span};
use crate::features::webhook::sign;

const INVOICES: Columns = &[
    ("ID", "/id"),
    ("STATUS", "/status"),
    ("AMOUNT", "/amount"),
    ("PAID", "/amount_paid"),
    ("ASSET", "/asset"),
    ("CHAIN", "/chain"),
    ("EXPIRES", "/expires_at"),
    ("REFERENCE", "/reference"),
];
const PAYMENTS: Columns = &[
    ("ID", "/id"),
    ("MATCHING", "/matching"),
    ("STAGE", "/stage"),
    ("AMOUNT", "/amount"),
    ("ASSET", "/asset"),
    ("BLOCK", "/block"),
    ("TRANSACTION", "/tx_hash"),
    ("INVOICE", "/invoice_id"),
];
const ENDPOINTS: Columns = &[
    ("ID", "/id"),
    ("ENABLED", "/enabled"),
    ("EVENTS", "/event_types"),
    ("URL", "/url"),
    ("WHY NOT", "/disabled_reason"),
];
const DELIVERIES: Columns = &[
    ("ID", "/id"),
    ("STATUS", "/status"),
    ("EVENT", "/event_type"),
    ("ATTEMPTS", "/attempts"),
    ("LAST", "/last_error"),
    ("REASON", "/dead_reason"),
    ("ENDPOINT", "/endpoint_id"),
    ("CREATED", "/created_at"),
];
const PROVIDERS: Columns = &[
    ("CHAIN", "/chain"),
    ("PROVIDER", "/name"),
    ("GROUP", "/group"),
    ("STATE", "/state"),
    ("HEAD", "/head"),
    ("P50 MS", "/latency_ms/p50"),
    ("P95 MS", "/latency_ms/p95"),
    ("CALLS", "/calls"),
    ("LAST FAULT", "/last_disagreement/kind"),
];
const CHAINS: Columns = &[
    ("CHAIN", "/id"),
    ("PROCESSED", "/last_processed_block"),
    ("HEAD", "/head"),
    ("SAFE", "/safe"),
    ("FINALIZED", "/finalized"),
    ("LEVEL", "/evidence_level"),
    ("FROZEN", "/frozen"),
    ("STALLED", "/stalled"),
];

/// Which part of a list.
#[derive(Debug, Args)]
pub(super) struct PageOf {
    /// How many, at most 250.
    #[arg(long)]
    limit: Option<u32>,
    /// Go on after an earlier page.
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
}

impl PageOf {
    fn query(self, more: Vec<(&str, Option<String>)>) -> Vec<(&str, Option<String>)> {
        let mut query = more;
        query.push(("limit", self.limit.map(|limit| limit.to_string())));
        query.push(("after", self.after));
        query
    }
}

/// Drops what was not given.
fn body(pairs: Vec<(&str, Option<Value>)>) -> Value {
    let given = pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Value::Object(given.collect::<Map<_, _>>())
}

#[derive(Debug, Subcommand)]
pub(super) enum Invoice {
    /// Make an invoice.
    Create(Box<CreateInvoice>),
    /// List invoices, newest first.
    List {
        /// Only this status.
        #[arg(long)]
        status: Option<String>,
        /// Only this reference.
        #[arg(long)]
        reference: Option<String>,
        #[command(flatten)]
        page: PageOf,
    },
    /// Show an invoice with its payments.
    Show {
        /// Its id.
        id: String,
    },
    /// Withdraw an invoice for which no money was seen.
    Cancel {
        /// Its id.
        id: String,
    },
    /// Print the quittance of an invoice, byte for byte.
    Evidence {
        /// Its id.
        id: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct CreateInvoice {
    /// CAIP-2 chain, such as eip155:8453.
    #[arg(long)]
    chain: String,
    /// `native`, a token's address, or a configured symbol.
    #[arg(long)]
    asset: String,
    /// Base units, digits only.
    #[arg(long)]
    amount: String,
    /// Who is to be paid.
    #[arg(long)]
    recipient: String,
    /// The only payer that counts.
    #[arg(long)]
    payer: Option<String>,
    /// Your own reference.
    #[arg(long)]
    reference: Option<String>,
    /// RFC 3339.
    #[arg(long, conflicts_with = "expires_in")]
    expires_at: Option<String>,
    /// A span such as 15m or 2h.
    #[arg(long, value_parser = parse_span)]
    expires_in: Option<std::time::Duration>,
    /// A number of blocks, `safe` or `finalized`.
    #[arg(long)]
    confirmations: Option<String>,
    /// Your own data, a JSON object.
    #[arg(long, value_name = "JSON")]
    metadata: Option<String>,
}

impl CreateInvoice {
    fn body(self) -> Result<Value, Failure> {
        let metadata = match self.metadata {
            None => None,
            Some(text) => Some(
                serde_json::from_str(&text)
                    .map_err(|error| Failure::usage(format!("--metadata: {error}")))?,
            ),
        };
        let text = |text: Option<String>| text.map(Value::from);
        Ok(body(vec![
            ("chain", text(Some(self.chain))),
            ("asset", text(Some(self.asset))),
            ("amount", text(Some(self.amount))),
            ("recipient", text(Some(self.recipient))),
            ("payer", text(self.payer)),
            ("reference", text(self.reference)),
            ("expires_at", text(self.expires_at)),
            ("expires_in", self.expires_in.map(|span| Value::from(span.as_secs()))),
            ("confirmations", text(self.confirmations)),
            ("metadata", metadata),
        ]))
    }
}

impl Invoice {
    pub(super) async fn run(self, server: &Remote, output: Output) -> Result<(), Failure> {
        match self {
            Self::Create(create) => {
                let body = create.body()?;
                output.object(&server.change(Method::POST, "/v1/invoices", Some(&body)).await?)
            }
            Self::List { status, reference, page } => {
                let query = page.query(vec![("status", status), ("reference", reference)]);
                output.table(&server.get("/v1/invoices", &query).await?, INVOICES)
            }
            Self::Show { id } => {
                output.object(&server.get(&format!("/v1/invoices/{}", segment(&id)), &[]).await?)
            }
            Self::Cancel { id } => {
                let path = format!("/v1/invoices/{}/cancel", segment(&id));
                output.object(&server.change(Method::POST, &path, None).await?)
            }
            Self::Evidence { id } => output
                .bytes(&server.get_bytes(&format!("/v1/invoices/{}/evidence", segment(&id)), &[]).await?),
        }
    }
}

/// A text as one segment of a path.
fn segment(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[derive(Debug, Subcommand)]
pub(super) enum Payment {
    /// List payments, newest first.
    List {
        /// Only those of this invoice.
        #[arg(long)]
        invoice: Option<String>,
        /// Only those with this matching, such as ambiguous.
        #[arg(long)]
        matching: Option<String>,
        #[command(flatten)]
        page: PageOf,
    },
    /// Say to which invoice a payment belongs that no rule could place.
    Assign {
        /// The payment.
        id: String,
        /// The invoice.
        #[arg(long)]
        invoice: String,
        /// Count it as made in time though it was late.
        #[arg(long)]
        accept_late: bool,
    },
}

impl Payment {
    pub(super) async fn run(self, server: &Remote, output: Output) -> Result<(), Failure> {
        match self {
            Self::List { invoice, matching, page } => {
                let query = page.query(vec![("invoice_id", invoice), ("matching", matching)]);
                output.table(&server.get("/v1/payments", &query).await?, PAYMENTS)
            }
            Self::Assign { id, invoice, accept_late } => {
                let body = json!({ "invoice_id": invoice, "accept_late": accept_late });
                let path = format!("/v1/payments/{}/assign", segment(&id));
                output.object(&server.change(Method::POST, &path, Some(&body)).await?)
            }
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Rpc {
    /// State, latency and last contradiction of every provider.
    Providers,
}

impl Rpc {
    pub(super) async fn run(self, server: &Remote, output: Output) -> Result<(), Failure> {
        let Self::Providers = self;
        output.table(&server.get("/v1/rpc/providers", &[]).await?, PROVIDERS)
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Chain {
    /// How far every chain is proven.
    List,
    /// Let settling go on after the chain contradicted its own finality. Look at the payments that the event
    /// `settlement.frozen` names first.
    Thaw {
        /// CAIP-2 chain, such as eip155:8453.
        chain: String,
    },
}

impl Chain {
    pub(super) async fn run(self, server: &Remote, output: Output) -> Result<(), Failure> {
        match self {
            Self::List => output.table(&server.get("/v1/chains", &[]).await?, CHAINS),
            Self::Thaw { chain } => {
                let path = format!("/v1/chains/{}/thaw", segment(&chain));
                output.object(&server.change(Method::POST, &path, None).await?)
            }
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Webhook {
    /// Where events are sent.
    #[command(subcommand)]
    Endpoint(Endpoint),
    /// Events on their way.
    #[command(subcommand)]
    Delivery(Delivery),
    /// What was given up.
    #[command(subcommand)]
    Dlq(Dlq),
    /// Follow the event log and forward it to a local URL, losing nothing.
    Listen(Listen),
    /// Check a received webhook's signature offline.
    Verify(Verify),
}

impl Webhook {
    pub(super) async fn run(self, server: &Server, output: Output) -> Result<(), Failure> {
        match self {
            Self::Endpoint(endpoint) => endpoint.run(&server.connect()?, output).await,
            Self::Delivery(delivery) => delivery.run(&server.connect()?, output).await,
            Self::Dlq(dlq) => dlq.run(&server.connect()?, output).await,
            Self::Listen(listen) => listen.run(&server.connect()?, output).await,
            Self::Verify(verify) => verify.run(output),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Endpoint {
    /// Register an endpoint; its secret is printed once.
    Create {
        /// Where to send.
        #[arg(long)]
        url: String,
        /// `*`, `invoice.*` or single types; may be given several times.
        #[arg(long = "event", value_name = "TYPE")]
        events: Vec<String>,
        /// Your own words.
        #[arg(long)]
        description: Option<String>,
    },
    /// List endpoints.
    List {
        #[command(flatten)]
        page: PageOf,
    },
    /// Change an endpoint.
    Update {
        /// Its id.
        id: String,
        /// A new target.
        #[arg(long)]
        url: Option<String>,
        /// New subscriptions, all of them.
        #[arg(long = "event", value_name = "TYPE")]
        events: Vec<String>,
        /// New words.
        #[arg(long)]
        description: Option<String>,
        /// Deliver again (true) or no longer (false).
        #[arg(long)]
        enabled: Option<bool>,
    },
    /// Remove an endpoint; what is on its way to it becomes dead letters.
    Delete {
        /// Its id.
        id: String,
    },
    /// Give an endpoint a new secret; the old one signs beside it for a day.
    RotateSecret {
        /// Its id.
        id: String,
    },
}

impl Endpoint {
    async fn run(self, server: &Remote, output: Output) -> Result<(), Failure> {
        const PATH: &str = "/v1/webhook-endpoints";
        let of = |id: &str| format!("{PATH}/{}", segment(id));
        let types = |events: Vec<String>| (!events.is_empty()).then(|| Value::from(events));
        match self {
            Self::Create { url, events, description } => {
                let body = body(vec![
                    ("url", Some(Value::from(url))),
                    ("event_types", types(events)),
                    ("description", description.map(Value::from)),
                ]);
                output.object(&server.change(Method::POST, PATH, Some(&body)).await?)
            }
            Self::List { page } => output.table(&server.get(PATH, &page.query(Vec::new())).await?, ENDPOINTS),
            Self::Update { id, url, events, description, enabled } => {
                let body = body(vec![
                    ("url", url.map(Value::from)),
                    ("event_types", types(events)),
                    ("description", description.map(Value::from)),
                    ("enabled", enabled.map(Value::from)),
                ]);
                output.object(&server.change(Method::PATCH, &of(&id), Some(&body)).await?)
            }
            Self::Delete { id } => {
                server.change(Method::DELETE, &of(&id), None).await?;
                output.result(&json!({ "id": id, "deleted": true }), || format!("{id} is removed"))
            }
            Self::RotateSecret { id } => {
                let path = format!("{}/rotate-secret", of(&id));
                output.object(&server.change(Method::POST, &path, None).await?)
            }
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Delivery {
    /// List deliveries, newest first.
    List {
        /// Only those to this endpoint.
        #[arg(long)]
        endpoint: Option<String>,
        /// Only queued, pending, delivered or dead.
        #[arg(long)]
        status: Option<String>,
        #[command(flatten)]
        page: PageOf,
    },
    /// Show a delivery with every attempt.
    Show {
        /// Its id.
        id: String,
    },
    /// Send a dead letter again, now.
    Retry {
        /// Its id.
        id: String,
    },
}

impl Delivery {
    async fn run(self, server: &Remote, output: Output) -> Result<(), Failure> {
        match self {
            Self::List { endpoint, status, page } => {
                let query = page.query(vec![("endpoint_id", endpoint), ("status", status)]);
                output.table(&server.get("/v1/deliveries", &query).await?, DELIVERIES)
            }
            Self::Show { id } => {
                output.object(&server.get(&format!("/v1/deliveries/{}", segment(&id)), &[]).await?)
            }
            Self::Retry { id } => {
                let path = format!("/v1/deliveries/{}/retry", segment(&id));
                output.object(&server.change(Method::POST, &path, None).await?)
            }
        }
    }
}

/// A time, or a span before now.
fn since_of(text: &str) -> Result<Timestamp, String> {
    match (text.parse(), parse_span(text)) {
        (Ok(at), _) => Ok(at),
        (_, Ok(span)) => Ok(SystemClock::new().now() - span),
        _ => Err("expected an RFC 3339 time, or a span before now such as 2h".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Dlq {
    /// List dead letters, oldest first.
    List {
        /// Only those given up since: a time, or a span such as 2h.
        #[arg(long, value_parser = since_of)]
        since: Option<Timestamp>,
        #[command(flatten)]
        page: PageOf,
    },
    /// Send dead letters again.
    Replay {
        /// Those given up since: a time, or a span such as 2h.
        #[arg(long, value_parser = since_of)]
        since: Timestamp,
        /// Only say which.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        page: PageOf,
    },
}

impl Dlq {
    async fn run(self, server: &Remote, output: Output) -> Result<(), Failure> {
        match self {
            Self::List { since, page } => {
                let query = page.query(vec![("since", since.map(|at| at.to_string()))]);
                output.table(&server.get("/v1/dead-letters", &query).await?, DELIVERIES)
            }
            Self::Replay { since, dry_run, page } => {
                let body = body(vec![
                    ("since", Some(Value::from(since.to_string()))),
                    ("dry_run", Some(Value::from(dry_run))),
                    ("limit", page.limit.map(Value::from)),
                    ("after", page.after.map(Value::from)),
                ]);
                let answer = server.change(Method::POST, "/v1/dead-letters/replay", Some(&body)).await?;
                output.table(&answer, DELIVERIES)?;
                let skipped = answer.get("skipped").and_then(Value::as_array).map_or(0, Vec::len);
                if skipped > 0 {
                    output.note(&format!("{skipped} stay: their endpoint is disabled or deleted"));
                }
                Ok(())
            }
        }
    }
}

/// How old or new a signature's time may be.
const TOLERANCE: std::time::Duration = std::time::Duration::from_secs(300);

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The endpoint's secret (`whsec_…`). Prefer the variable.
    #[arg(long, env = "QUITTANCE_WEBHOOK_SECRET", hide_env_values = true)]
    secret: String,
    /// The `webhook-id` header.
    #[arg(long)]
    id: String,
    /// The `webhook-timestamp` header.
    #[arg(long)]
    timestamp: i64,
    /// The `webhook-signature` header.
    #[arg(long)]
    signature: String,
    /// Do not compare the time with the clock.
    #[arg(long)]
    any_time: bool,
    /// The body, byte for byte; `-` reads it from stdin.
    #[arg(default_value = "-")]
    body: PathBuf,
}

impl Verify {
    fn run(self, output: Output) -> Result<(), Failure> {
        let secret = decode_secret(&self.secret)?;
        let body = read_input(&self.body)?;
        let expected = sign(&secret, &self.id, self.timestamp, &body);
        let fits = |given: &str| bool::from(given.as_bytes().ct_eq(expected.as_bytes()));
        if !self.signature.split(' ').any(fits) {
            return Err(Failure::new("the signature does not fit: other bytes, another secret, or not ours"));
        }
        let now = SystemClock::new().now().as_seconds();
        let distance = now.abs_diff(self.timestamp);
        if !self.any_time && distance > TOLERANCE.as_secs() {
            return Err(Failure::new(format!(
                "the signature fits, but is {distance} s away from now: a replay?"
            )));
        }
        output.result(&json!({ "valid": true }), || "the signature fits".to_owned())
    }
}

/// The bytes of a `whsec_` secret.
pub(super) fn decode_secret(text: &str) -> Result<Vec<u8>, Failure> {
    let digits = text.strip_prefix("whsec_").unwrap_or(text);
    STANDARD.decode(digits).map_err(|_| Failure::usage("--secret: expected whsec_ and base64"))
}

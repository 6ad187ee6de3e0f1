//! Speaking to a running server.
//!
//! A changing request carries an Idempotency-Key, a fresh one unless the caller names one, so that it may be repeated
//! when its answer was lost: what is repeated is done once. When even the repeats bring no answer the outcome is unknown,
//! and that is what the exit code says.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use domain::chance::Chance;
use domain::time::Clock;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use outside::clock::SystemClock;
use outside::http::{AddressPolicy, Client, ClientOptions, Http, Request, Response, Sent};
use serde_json::Value;
use url::Url;
use zeroize::Zeroizing;

use super::Failure;

/// How often a request is made before its outcome counts as unknown.
const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const DEADLINE: Duration = Duration::from_secs(60);
/// Evidence and long pages are read whole.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// Where the server is, and as whom to ask.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// The server.
    #[arg(
        long,
        global = true,
        env = "QUITTANCE_SERVER",
        default_value = "http://127.0.0.1:4020",
        value_name = "URL"
    )]
    server: Url,
    /// The API key. Prefer the variable: a command line can be seen by others.
    #[arg(long, global = true, env = "QUITTANCE_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<String>,
    /// The Idempotency-Key of a changing request [default: a fresh one].
    #[arg(long, global = true, value_name = "TEXT")]
    idempotency_key: Option<String>,
}

impl Server {
    /// A client for this server. Nothing is sent yet.
    pub(crate) fn connect(&self) -> Result<Remote, Failure> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let chance = Chance::from_system().map_err(|error| Failure::new(error.to_string()))?;
        let options = ClientOptions::new(AddressPolicy::unrestricted());
        let http =
            Client::new(options, Arc::clone(&clock)).map_err(|error| Failure::new(error.to_string()))?;
        Ok(Remote {
            base: self.server.clone(),
            key: self.key.clone().map(Zeroizing::new),
            idempotency_key: self.idempotency_key.clone(),
            http: Arc::new(http),
            clock,
            chance,
        })
    }
}

/// A server to be asked.
pub(crate) struct Remote {
    pub(crate) base: Url,
    key: Option<Zeroizing<String>>,
    idempotency_key: Option<String>,
    pub(crate) http: Arc<dyn Http>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) chance: Chance,
}

impl Remote {
    /// GET, as JSON.
    pub(crate) async fn get(&self, path: &str, query: &[(&str, Option<String>)]) -> Result<Value, Failure> {
        parse(&self.get_bytes(path, query).await?)
    }

    /// GET, byte for byte.
    pub(crate) async fn get_bytes(
        &self,
        path: &str,
        query: &[(&str, Option<String>)],
    ) -> Result<Bytes, Failure> {
        let mut url = self.url(path)?;
        for (name, value) in query {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        self.ask(Method::GET, url, Bytes::new()).await
    }

    /// A changing request with a JSON body; nothing when the answer is empty.
    pub(crate) async fn change(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let bytes = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let answer = self.ask(method, self.url(path)?, bytes).await?;
        if answer.is_empty() { Ok(Value::Null) } else { parse(&answer) }
    }

    fn url(&self, path: &str) -> Result<Url, Failure> {
        let base = self.base.as_str().trim_end_matches('/');
        Url::parse(&format!("{base}{path}")).map_err(|error| Failure::usage(format!("--server: {error}")))
    }

    async fn ask(&self, method: Method, url: Url, body: Bytes) -> Result<Bytes, Failure> {
        let changes = method != Method::GET;
        let headers = self.headers(changes, !body.is_empty())?;
        let mut attempt = 1;
        loop {
            let mut request = Request::new(method.clone(), url.clone(), body.clone());
            request.headers.clone_from(&headers);
            request.deadline = DEADLINE;
            request.max_response_bytes = MOST_BYTES;
            let outcome = self.http.send(request).await;
            let again = match &outcome {
                Ok(response) => response.truncated() || response.status.as_u16() == 503,
                Err(_) => true,
            };
            if !again || attempt >= ATTEMPTS {
                return conclude(outcome, changes, &self.base);
            }
            self.clock.sleep(FIRST_PAUSE * (1 << attempt)).await;
            attempt += 1;
        }
    }

    fn headers(&self, changes: bool, has_body: bool) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        if has_body {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(key) = &self.key {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", **key))
                .map_err(|_| Failure::usage("--key: this is no API key"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        if changes {
            let key = self.idempotency_key.clone().unwrap_or_else(|| fresh_key(&self.chance));
            let value = HeaderValue::from_str(&key)
                .map_err(|_| Failure::usage("--idempotency-key: must be visible ASCII"))?;
            headers.insert(HeaderName::from_static("idempotency-key"), value);
        }
        Ok(headers)
    }
}

fn fresh_key(chance: &Chance) -> String {
    chance.bytes::<16>().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse(bytes: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(bytes)
        .map_err(|_| Failure::new("the server's answer is not JSON: is --server right?"))
}

fn conclude(
    outcome: Result<Response, outside::http::HttpError>,
    changes: bool,
    server: &Url,
) -> Result<Bytes, Failure> {
    match outcome {
        Ok(response) if response.status.is_success() && !response.truncated() => Ok(response.body),
        Ok(response) => Err(refusal(&response, changes)),
        Err(error) => {
            let text = format!("{server} does not answer: {error}");
            let may_have_happened = changes && error.sent == Sent::Maybe;
            Err(if may_have_happened { Failure::unknown(text) } else { Failure::new(text) })
        }
    }
}

/// A problem document in one line.
fn refusal(response: &Response, changes: bool) -> Failure {
    let problem: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    let text = |key: &str| problem.get(key).and_then(Value::as_str);
    let mut message =
        format!("{} {}", response.status.as_u16(), text("code").unwrap_or("without a problem document"));
    if let Some(field) = text("field") {
        message += &format!(" ({field})");
    }
    if let Some(detail) = text("detail") {
        message += &format!(": {detail}");
    }
    let unknown = match text("outcome") {
        Some(outcome) => outcome == "unknown",
        None => changes && !response.status.is_client_error(),
    };
    if unknown { Failure::unknown(message) } else { Failure::new(message) }
}

//! Doing a thing once, however often it is asked for.
//!
//! The claim of an `Idempotency-Key`, the effect and the answer are one transaction: an answer exists exactly if the
//! effect does, and it is replayed byte for byte for 24 hours, also after a restart. A refusal leaves nothing behind, so
//! the key may be used again with what was wrong put right. Without a key a request is simply done.
//!
//! Keys belong to one caller and one route; what is compared is the method, the path and the JSON of the body,
//! whatever its white space.

use axum::extract::FromRequestParts;
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use durable::store::Tx;
use durable::store::idempotency::{self, Answer, Begun};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::AppState;
use super::auth::Caller;
use super::problem::{Outcome, Problem};

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer was given before.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const MOST_BYTES: usize = 255;

/// What identifies a changing request.
#[derive(Debug, Clone)]
pub(super) struct Once {
    key: Option<String>,
    method: Method,
    route: String,
    path: String,
}

impl FromRequestParts<AppState> for Once {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        let route = parts
            .extensions
            .get::<axum::extract::MatchedPath>()
            .map_or_else(|| parts.uri.path().to_owned(), |path| path.as_str().to_owned());
        let target = parts.uri.path_and_query().map_or("", |target| target.as_str()).to_owned();
        Ok(Self { key: key_of(parts)?, method: parts.method.clone(), route, path: target })
    }
}

/// The key, with or without the quotes that the header's draft asks for.
fn key_of(parts: &Parts) -> Result<Option<String>, Problem> {
    let mut values = parts.headers.get_all(HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let refuse = |detail: &str| Err(Problem::header("Idempotency-Key", detail));
    if values.next().is_some() {
        return refuse("is given twice");
    }
    let text = value.to_str().unwrap_or_default();
    let key = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    if key.is_empty() || key.len() > MOST_BYTES || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse("must have 1 to 255 visible ASCII characters, without spaces");
    }
    Ok(Some(key.to_owned()))
}

impl Once {
    /// Refuses a bad request at once, unless it may be the repeat of one that was good when it came first: an
    /// expiry that was in the future then, or a chain that was configured.
    pub(super) fn judge<V>(&self, parsed: Result<V, Problem>) -> Result<Result<V, Problem>, Problem> {
        if self.key.is_some() { Ok(parsed) } else { parsed.map(Ok) }
    }

    /// Runs `effect` in a transaction and answers `status` with what it returns; or answers as it was answered before.
    pub(super) async fn answer<T, F>(
        self,
        state: &AppState,
        caller: &Caller,
        body: &[u8],
        status: StatusCode,
        mut effect: F,
    ) -> Result<Response, Problem>
    where
        T: Serialize,
        F: FnMut(&mut Tx) -> Result<T, Problem> + Send + 'static,
    {
        let scope = format!("{} {} {}", caller.principal(), self.method, self.route);
        let fingerprint = self.fingerprint(body);
        let (key, incarnation) = (self.key, state.store.incarnation());
        let (answer, replayed) = state
            .store
            .write(move |tx| -> Result<(Answer, bool), Problem> {
                if let Some(key) = &key {
                    match idempotency::begin(tx, incarnation, &scope, key, &fingerprint)? {
                        Begun::Fresh => {}
                        Begun::Replay(answer) => return Ok((answer, true)),
                        Begun::InFlight => return Err(in_flight()),
                        Begun::Mismatch => return Err(mismatch()),
                    }
                }
                let value = effect(tx)?;
                let body = serde_json::to_vec(&value).map_err(|_| Problem::internal())?;
                let answer = Answer { status: status.as_u16(), headers: Vec::new(), body };
                if let Some(key) = &key {
                    idempotency::finish(tx, incarnation, &scope, key, &answer)?;
                }
                Ok((answer, false))
            })
            .await?;
        Ok(respond(answer, replayed))
    }

    fn fingerprint(&self, body: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in [self.method.as_str(), &self.path] {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        // Bodies were read before, so they parse; an empty one is itself.
        match serde_json::from_slice::<serde_json::Value>(body) {
            Ok(value) => hash.update(value.to_string()),
            Err(_) => hash.update(body),
        }
        hash.finalize().into()
    }
}

fn in_flight() -> Problem {
    let detail = "a request with this Idempotency-Key is still being worked on: ask again later";
    Problem::conflict("idempotency_in_flight", detail).at("Idempotency-Key").of_outcome(Outcome::Unknown)
}

fn mismatch() -> Problem {
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "idempotency_mismatch",
        "The Idempotency-Key was used for another request",
        "use a fresh key for a different request; repeat the same request to get its answer again",
    )
    .at("Idempotency-Key")
}

fn respond(answer: Answer, replayed: bool) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut response = if status == StatusCode::NO_CONTENT {
        status.into_response()
    } else {
        let json = HeaderValue::from_static("application/json");
        (status, [(CONTENT_TYPE, json)], answer.body).into_response()
    };
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

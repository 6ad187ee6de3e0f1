//! What people see: the operator's page at `/`, an invoice's page, and the payer's checkout at `/i/{id}`.
//!
//! Guarantees: everything is rendered on the server and readable without scripts; all text goes through `maud`, which
//! escapes it; no page needs an inline script or style, and the policy forbids them; links are relative or begin with
//! `public_url`. The operator's pages ask for a key once and remember it as a session in memory; a checkout page shows no
//! more than its payer needs and is found only by its unguessable id.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE, HeaderName, LOCATION, SET_COOKIE,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::Sse;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::id::InvoiceId;
use durable::store::{event, invoice, payment};
use maud::Markup;
use sha2::{Digest, Sha256};

use crate::api::auth::{Caller, Scope, digest, of_digest, of_key};
use crate::api::{AppState, Problem, follow};
use crate::config::Auth;

mod checkout;
mod overview;
mod page;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("live.js");

/// Nothing but our own files; no inline scripts or styles; no frames.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// How long a session lives.
const SESSION_LIFE: Duration = Duration::from_secs(12 * 60 * 60);
/// Sessions at the same time; the oldest makes room.
const MOST_SESSIONS: usize = 1000;
const COOKIE_NAME: &str = "quittance_session";
const FORM_BYTES: usize = 4096;

/// The routes of pages, which the API's document does not list.
pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/", get(overview_page))
        .route("/invoices/{id}", get(invoice_page))
        .route("/i/{id}", get(checkout_page))
        .route("/live", get(live))
        .route("/session", post(begin_session))
        .route("/session/end", post(end_session))
        .route("/assets/style.css", get(|| asset("text/css; charset=utf-8", STYLE)))
        .route("/assets/live.js", get(|| asset("text/javascript; charset=utf-8", SCRIPT)))
}

async fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "public, max-age=300")], text).into_response()
}

fn html(status: StatusCode, markup: Markup) -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (HeaderName::from_static("x-robots-tag"), "noindex, nofollow"),
    ];
    (status, headers, markup.into_string()).into_response()
}

/// The sessions of operators, in memory: a restart ends them.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<[u8; 32], Session>>);

#[derive(Clone, Copy)]
struct Session {
    key: [u8; 32],
    ends_at: Duration,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only the digest of a token is kept.
    fn begin(&self, token: &str, key: [u8; 32], now: Duration) {
        let mut sessions = self.lock();
        sessions.retain(|_, session| session.ends_at > now);
        if sessions.len() >= MOST_SESSIONS
            && let Some(oldest) =
                sessions.iter().min_by_key(|(_, session)| session.ends_at).map(|(id, _)| *id)
        {
            sessions.remove(&oldest);
        }
        sessions.insert(Sha256::digest(token).into(), Session { key, ends_at: now + SESSION_LIFE });
    }

    fn key_of(&self, token: &str, now: Duration) -> Option<[u8; 32]> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        self.lock().get(&digest).filter(|session| session.ends_at > now).map(|session| session.key)
    }

    fn end(&self, token: &str) {
        let digest: [u8; 32] = Sha256::digest(token).into();
        self.lock().remove(&digest);
    }
}

fn session_token(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|line| line.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE_NAME)?.strip_prefix('='))
}

/// Someone who may see the operator's pages.
struct Viewer;

impl FromRequestParts<AppState> for Viewer {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Response> {
        if state.config.server.auth == Auth::None {
            return Ok(Self);
        }
        let key = session_token(&parts.headers)
            .and_then(|token| state.sessions.key_of(token, state.clock.monotonic()));
        let caller = match key {
            Some(key) => of_digest(key, state).await.map_err(IntoResponse::into_response)?,
            None => None,
        };
        match caller {
            Some(caller) if may_see(&caller) => Ok(Self),
            _ => Err(html(StatusCode::UNAUTHORIZED, page::login(false))),
        }
    }
}

fn may_see(caller: &Caller) -> bool {
    caller.may(Scope::Read)
}

/// Exchanges a key for a session.
async fn begin_session(State(state): State<AppState>, request: Request) -> Result<Response, Problem> {
    let body = to_bytes(request.into_body(), FORM_BYTES).await.map_err(|_| Problem::too_large(FORM_BYTES))?;
    let key = url::form_urlencoded::parse(&body)
        .find(|(name, _)| name == "key")
        .map(|(_, key)| zeroize::Zeroizing::new(key.trim().to_owned()))
        .unwrap_or_default();
    let caller = of_key(&key, &state).await?;
    if !caller.as_ref().is_some_and(may_see) {
        return Ok(html(StatusCode::UNAUTHORIZED, page::login(true)));
    }
    let token = URL_SAFE_NO_PAD.encode(state.chance.bytes::<32>());
    state.sessions.begin(&token, digest(&key), state.clock.monotonic());
    Ok(to_start(&cookie(&token, SESSION_LIFE, &state)))
}

async fn end_session(State(state): State<AppState>, headers: HeaderMap) -> Response {
    if let Some(token) = session_token(&headers) {
        state.sessions.end(token);
    }
    to_start(&cookie("", Duration::ZERO, &state))
}

fn cookie(token: &str, life: Duration, state: &AppState) -> String {
    let secure = if state.config.server.public_url.starts_with("https://") { "; Secure" } else { "" };
    format!("{COOKIE_NAME}={token}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict{secure}", life.as_secs())
}

fn to_start(cookie: &str) -> Response {
    (StatusCode::SEE_OTHER, [(LOCATION, "/"), (SET_COOKIE, cookie)]).into_response()
}

async fn overview_page(State(state): State<AppState>, _: Viewer) -> Result<Response, Problem> {
    let seen = overview::Overview::read(&state).await?;
    Ok(html(StatusCode::OK, overview::render(&state, &seen)))
}

async fn invoice_page(
    State(state): State<AppState>,
    _: Viewer,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let Ok(id) = id.parse::<InvoiceId>() else { return Ok(missing()) };
    let found = state
        .store
        .read(move |query| -> Result<_, Problem> {
            let Some(row) = invoice::find(query, id)? else { return Ok(None) };
            Ok(Some((row, payment::list_of_invoice(query, id)?, event::list_of_invoice(query, id)?)))
        })
        .await?;
    Ok(match found {
        Some((row, payments, events)) => {
            html(StatusCode::OK, overview::render_invoice(&state, &row, &payments, &events))
        }
        None => missing(),
    })
}

async fn checkout_page(State(state): State<AppState>, Path(id): Path<String>) -> Result<Response, Problem> {
    let Ok(id) = id.parse::<InvoiceId>() else { return Ok(missing()) };
    let found = state.store.read(move |query| invoice::find(query, id)).await?;
    Ok(match found {
        Some(row) => html(StatusCode::OK, checkout::render(&state, &row)),
        None => missing(),
    })
}

fn missing() -> Response {
    html(StatusCode::NOT_FOUND, page::missing())
}

/// Tells a page that something happened; it then asks for itself again.
async fn live(State(state): State<AppState>, _: Viewer) -> Result<Response, Problem> {
    let from = state.store.read(event::last_position).await?;
    Ok(Sse::new(follow(state, from)).into_response())
}

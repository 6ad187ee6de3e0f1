//! The HTTP surface: routes, what every answer has in common, and the document that describes them.
//!
//! Guarantees: every route under `/v1` asks for a scope in its extractor; a route and its documentation are one
//! registration, so that neither exists without the other; every request has a deadline and a limit of bytes; every
//! refusal is a problem document. Handlers are thin: parse, call one verb of a feature, answer.
//!
//! Deliberately absent: TLS, which is a proxy's business, and serving files from disk.

use std::ops::Deref;
use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use outside::guard::deadline::within;
use serde::Serialize;
use tokio::sync::watch;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder, ResponsesBuilder};
use utoipa::{IntoResponses, Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::compose::App;
use crate::dashboard;

pub mod auth;
pub(crate) mod chains;
mod cursor;
mod events;
mod idempotency;
mod input;
mod invoices;
mod payments;
mod problem;
mod server;
pub(crate) mod system;
pub(crate) mod webhooks;

pub(crate) use events::follow;
pub use problem::{Outcome, Problem, TYPE_PREFIX};
pub use server::{ServeError, serve};

/// What handlers share: the program, and whether it is being stopped.
pub struct Shell {
    app: Arc<App>,
    stop: watch::Sender<bool>,
    pub(crate) sessions: dashboard::Sessions,
    /// The last event that metrics have counted.
    pub(crate) events_counted: tokio::sync::Mutex<u64>,
}

/// The state of every handler.
pub type AppState = Arc<Shell>;

impl Deref for Shell {
    type Target = App;
    fn deref(&self) -> &App {
        &self.app
    }
}

impl Shell {
    /// A shell around a running program.
    #[must_use]
    pub fn new(app: Arc<App>) -> Arc<Self> {
        Arc::new(Self {
            events_counted: tokio::sync::Mutex::new(app.events_before),
            app,
            stop: watch::Sender::new(false),
            sessions: dashboard::Sessions::default(),
        })
    }

    /// Ends streams and makes the server not ready.
    pub fn begin_to_stop(&self) {
        self.stop.send_replace(true);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Ends when the process begins to stop.
    pub(crate) fn stopping(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stop = self.stop.subscribe();
        async move {
            // The sender lives as long as the shell; that it is gone means the same.
            let _ = stop.wait_for(|stopping| *stopping).await;
        }
    }
}

/// A page of a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Page<T> {
    data: Vec<T>,
    /// Where the list goes on; none at its end. Give it back as `after`.
    next: Option<String>,
}

impl<T> Page<T> {
    /// Everything there is.
    fn whole(data: Vec<T>) -> Self {
        Self { data, next: None }
    }

    /// A page of `limit` of the rows; one more row than that says that there is a next page.
    fn of<R>(rows: &[R], limit: u32, place: impl Fn(&R) -> String, view: impl Fn(&R) -> T) -> Self {
        let (rows, next) = cut(rows, limit, place);
        Self { data: rows.iter().map(view).collect(), next }
    }

    /// As [`Page::of`], where the views need more than their row.
    fn with<R, E>(
        rows: &[R],
        limit: u32,
        place: impl Fn(&R) -> String,
        views: impl FnOnce(&[R]) -> Result<Vec<T>, E>,
    ) -> Result<Self, E> {
        let (rows, next) = cut(rows, limit, place);
        Ok(Self { data: views(rows)?, next })
    }
}

fn cut<R>(rows: &[R], limit: u32, place: impl Fn(&R) -> String) -> (&[R], Option<String>) {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    match rows.get(limit) {
        None => (rows, None),
        Some(_) => (&rows[..limit], limit.checked_sub(1).map(|last| place(&rows[last]))),
    }
}

/// The refusals that any route may answer, for the document.
pub(crate) struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> std::collections::BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let problem = |description: &str| {
            let schema = RefOr::Ref(Ref::from_schema_name("Problem"));
            let content = ContentBuilder::new().schema(Some(schema)).build();
            ResponseBuilder::new()
                .description(description)
                .content("application/problem+json", content)
                .build()
        };
        ResponsesBuilder::new()
            .response("400", problem("The request cannot be read"))
            .response("401", problem("A valid API key is needed"))
            .response("403", problem("The API key may not do this"))
            .response("404", problem("There is no such thing"))
            .response("409", problem("The request contradicts the present state"))
            .response("413", problem("The body is too large"))
            .response("415", problem("The body must be JSON"))
            .response("422", problem("A field is not valid"))
            .response("503", problem("The server cannot answer now"))
            .build()
            .responses
            .into_iter()
            .collect()
    }
}

struct KeyScheme;

impl Modify for KeyScheme {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("qk_…")
            .description(Some("An API key of `quittance key create`. Scopes: read, write, admin; each includes the ones before it."))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::Http(scheme));
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Quittance",
        description = "A payment reliability engine: invoices paid on chain are verified by a quorum of providers, settled exactly once, and told by signed webhooks. Amounts are decimal integer strings in base units, times RFC 3339, lists are paged by opaque cursors, errors are RFC 9457 problems.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    components(schemas(problem::Fields)),
    modifiers(&KeyScheme)
)]
struct Document;

/// The routes that answer without a key. Everything else asks for one.
pub const PUBLIC: [&str; 5] = ["/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/evidence-keys"];

fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(invoices::post_invoice, invoices::list_invoices))
        .routes(routes!(invoices::show_invoice))
        .routes(routes!(invoices::cancel_invoice))
        .routes(routes!(system::show_evidence))
        .routes(routes!(payments::list_payments))
        .routes(routes!(payments::assign_payment))
        .routes(routes!(events::list_events))
        .routes(routes!(events::stream_events))
        .routes(routes!(webhooks::post_endpoint, webhooks::list_endpoints))
        .routes(routes!(webhooks::show_endpoint, webhooks::patch_endpoint, webhooks::delete_endpoint))
        .routes(routes!(webhooks::rotate_endpoint_secret))
        .routes(routes!(webhooks::list_deliveries))
        .routes(routes!(webhooks::show_delivery))
        .routes(routes!(webhooks::retry_delivery))
        .routes(routes!(webhooks::list_dead_letters))
        .routes(routes!(webhooks::replay_dead_letters))
        .routes(routes!(chains::list_chains))
        .routes(routes!(chains::thaw_chain))
        .routes(routes!(chains::list_providers))
        .routes(routes!(system::list_evidence_keys))
        .routes(routes!(system::healthz))
        .routes(routes!(system::readyz))
        .routes(routes!(system::metrics))
        .routes(routes!(system::openapi))
}

/// The OpenAPI 3.1 document of every route of the API.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    documented().split_for_parts().1
}

/// The document as pretty JSON.
#[must_use]
pub fn document_json() -> String {
    document().to_pretty_json().unwrap_or_default()
}

/// Every route, the dashboard's included.
pub fn router(state: AppState) -> Router {
    let (api, _) = documented().split_for_parts();
    api.merge(dashboard::routes())
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(Arc::clone(&state), auth::refuse_cross_site))
        .layer(from_fn_with_state(Arc::clone(&state), hold_to_deadline))
        .layer(from_fn(problem::tell_outcome))
        .layer(from_fn(protect))
        .layer(from_fn_with_state(Arc::clone(&state), measure))
        .with_state(state)
}

async fn no_route() -> Problem {
    Problem::missing("route")
}

async fn no_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "The route does not take this method",
        "the `Allow` header names those it takes",
    )
}

/// Gives a request up that takes too long. What it wrote by then stays written, so the outcome is unknown.
async fn hold_to_deadline(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let limit = state.config.server.request_timeout;
    match within(&*state.clock, limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::timeout().into_response(),
    }
}

/// What every answer tells a browser: believe the content type, keep nothing, run nothing.
async fn protect(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let mut usually = |name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    usually(X_CONTENT_TYPE_OPTIONS, "nosniff");
    usually(REFERRER_POLICY, "no-referrer");
    usually(CACHE_CONTROL, "no-store");
    usually(CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'");
    usually(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    usually(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    response
}

async fn measure(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let started = state.clock.monotonic();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let response = next.run(request).await;
    let span = state.clock.monotonic().saturating_sub(started);
    let route = route.as_deref().unwrap_or("none");
    state.telemetry.request(method.as_str(), route, response.status().as_u16(), span);
    response
}

//! Every error of the API: RFC 9457 problems with a stable `code`, the name of the field at fault and, where a
//! request could have changed something, what is known of the outcome.
//!
//! Guarantees: a refusal (4xx) of a changing request says `did_not_happen`, and that is true: effects are one
//! transaction, which a refusal rolls back. When the server cannot say, it says `unknown` and never guesses. No
//! problem holds a secret, a row or the inside of the database.

use std::borrow::Cow;

use axum::extract::Request;
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use domain::invoice::Refusal;
use durable::store::StoreError;
use serde::Serialize;

use crate::features::endpoint::EndpointError;
use crate::features::invoice::InvoiceError;
use crate::features::payment::AssignError;

/// The prefix of every problem's `type`; the `code` follows. Codes are never reused for another meaning.
pub const TYPE_PREFIX: &str = "urn:quittance:problem:";

/// What is known of a changing request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It took effect.
    Happened,
    /// It had no effect and will have none.
    DidNotHappen,
    /// It may have had an effect. Ask again with the same Idempotency-Key.
    Unknown,
}

/// An error as it is answered.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Problem(Box<Fields>);

/// An error as it is answered (RFC 9457).
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(as = Problem)]
pub(super) struct Fields {
    /// A stable URI of this kind of problem: `urn:quittance:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "urn:quittance:problem:invalid_field")]
    kind: String,
    /// The kind in words.
    #[schema(value_type = String, example = "A field is not valid")]
    title: Cow<'static, str>,
    /// The HTTP status.
    #[schema(example = 422)]
    status: u16,
    /// What is wrong this time, and what to do.
    detail: String,
    /// The stable word for programs.
    #[schema(value_type = String, example = "invalid_field")]
    code: &'static str,
    /// The field at fault, as a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// What is known of the effect of a changing request.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    #[serde(skip)]
    retry_after: Option<u64>,
}

impl Problem {
    /// A problem of a kind.
    #[must_use]
    pub fn new(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self(Box::new(Fields {
            kind: format!("{TYPE_PREFIX}{code}"),
            title: title.into(),
            status: status.as_u16(),
            detail: detail.into(),
            code,
            field: None,
            outcome: None,
            retry_after: None,
        }))
    }

    /// The same problem, at a field.
    #[must_use]
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.0.field = Some(field.into());
        self
    }

    /// The same problem, with what is known of the effect.
    #[must_use]
    pub fn of_outcome(mut self, outcome: Outcome) -> Self {
        self.0.outcome = Some(outcome);
        self
    }

    /// The stable word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    fn retry_after(mut self, seconds: u64) -> Self {
        self.0.retry_after = Some(seconds);
        self
    }

    /// A field of the body or the query has a value it cannot have.
    #[must_use]
    pub fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_field", "A field is not valid", detail).at(field)
    }

    /// The body is not JSON.
    #[must_use]
    pub fn not_json(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", "The body is not valid JSON", detail)
    }

    /// A header has a value it cannot have.
    #[must_use]
    pub fn header(header: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_header", "A header is not valid", detail).at(header)
    }

    /// There is no such thing. `what` completes "there is no such …".
    #[must_use]
    pub fn missing(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "Not found", format!("there is no such {what}"))
    }

    /// No key, or not a valid one.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "A valid API key is needed",
            "send `Authorization: Bearer KEY` with a key that `quittance key create` made and nobody revoked",
        )
    }

    /// A valid key that may not do this.
    #[must_use]
    pub fn forbidden(scope: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "The API key may not do this",
            format!("this needs a key with the scope `{scope}`"),
        )
    }

    /// A request that another web page may have made.
    #[must_use]
    pub fn cross_site(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "cross_site", "The request seems to come from another site", detail)
    }

    /// The request contradicts the state of what it is about.
    #[must_use]
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, "The request contradicts the present state", detail)
    }

    /// More bytes than are taken.
    #[must_use]
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            "The body is too large",
            format!("the body may have {limit} bytes at most"),
        )
        .at("body")
    }

    /// Time was over.
    #[must_use]
    pub fn timeout() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "timeout",
            "The request was not answered in time",
            "ask again, with the same Idempotency-Key",
        )
        .retry_after(1)
    }

    /// A mistake of ours.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "The server made a mistake",
            "the log says more",
        )
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let unavailable = |code, detail: &str| {
            Self::new(StatusCode::SERVICE_UNAVAILABLE, code, "The store is not available", detail)
                .retry_after(5)
        };
        match error {
            StoreError::Failed(_) | StoreError::Closed => {
                unavailable("store_stopped", "nothing more is written until the process is started again")
            }
            StoreError::Busy => unavailable("store_busy", "another process is writing; ask again")
                .of_outcome(Outcome::DidNotHappen),
            StoreError::TooLarge => Self::field("", "a number is too large to be stored"),
            other => {
                tracing::error!(error = %other, "a request met an unexpected error of the store");
                Self::internal()
            }
        }
    }
}

fn refused(refusal: Refusal) -> Problem {
    let code = match refusal {
        Refusal::MoneySeen => "payment_seen",
        Refusal::Disputed => "payment_disputed",
        Refusal::Closed(_) => "invoice_closed",
        Refusal::FinalityContradicted | Refusal::Inconsistent(_) => "books_disagree",
        Refusal::OutOfRange(_) => "out_of_range",
    };
    Problem::conflict(code, refusal.to_string())
}

impl From<InvoiceError> for Problem {
    fn from(error: InvoiceError) -> Self {
        match error {
            InvoiceError::Store(error) => error.into(),
            InvoiceError::Indistinguishable => {
                Self::conflict("indistinguishable", error.to_string()).at("amount")
            }
            InvoiceError::Missing => Self::missing("invoice"),
            InvoiceError::Refused(refusal) => refused(refusal),
        }
    }
}

impl From<AssignError> for Problem {
    fn from(error: AssignError) -> Self {
        let text = error.to_string();
        match error {
            AssignError::Store(error) => error.into(),
            AssignError::NoPayment => Self::missing("payment"),
            AssignError::NoInvoice => Self::field("invoice_id", text),
            AssignError::Taken(_) => Self::conflict("payment_taken", text),
            AssignError::Reverted => Self::conflict("payment_reverted", text),
            AssignError::Differs(_) => Self::conflict("payment_differs", text).at("invoice_id"),
            AssignError::Refused(refusal) => refused(refusal),
        }
    }
}

impl From<EndpointError> for Problem {
    fn from(error: EndpointError) -> Self {
        let text = error.to_string();
        match error {
            EndpointError::Store(error) => error.into(),
            EndpointError::Target(_) => Self::field("url", text),
            EndpointError::Missing => Self::missing("webhook endpoint"),
            EndpointError::NoDelivery => Self::missing("delivery"),
            EndpointError::NotDead(_) => Self::conflict("not_a_dead_letter", text),
            EndpointError::Disabled => Self::conflict("endpoint_disabled", text),
            EndpointError::TooMany => Self::conflict("too_many_endpoints", text),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        render(&mut response, &self.0);
        response.extensions_mut().insert(self);
        response
    }
}

fn render(response: &mut Response, problem: &Fields) {
    let body = serde_json::to_vec(problem).unwrap_or_default();
    *response.body_mut() = body.into();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.remove(axum::http::header::CONTENT_LENGTH);
    if let Some(seconds) = problem.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if problem.status == 401 {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"quittance\""));
    }
    if let Ok(code) = HeaderValue::from_str(problem.code) {
        headers.insert(HeaderName::from_static("quittance-problem"), code);
    }
}

/// Says what is known of a changing request that did not succeed, and of no other: only here the method is known.
pub(super) async fn tell_outcome(request: Request, next: Next) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let mut response = next.run(request).await;
    if let Some(mut problem) = response.extensions_mut().remove::<Problem>() {
        let usual =
            if response.status().is_client_error() { Outcome::DidNotHappen } else { Outcome::Unknown };
        problem.0.outcome = changes.then(|| problem.0.outcome.unwrap_or(usual));
        render(&mut response, &problem.0);
    }
    response
}

//! Payments over HTTP: every transfer that concerns us, matched or not, and a person's word on one.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use domain::id::{InvoiceId, PaymentId};
use durable::store::payment::{self, Filter, PaymentRow};
use serde::Deserialize;

use super::auth::{Administers, Reads};
use super::cursor::{self, List};
use super::idempotency::Once;
use super::input::{Body, Parameters, Text, parse_id};
use super::problem::Problem;
use super::{AppState, Page, Refusals};
use crate::features::payment::assign;
use crate::view::PaymentView;

/// The words by which payments can be narrowed, as `matching` spells them.
const MATCHINGS: [&str; 6] = ["matched", "assigned", "ambiguous", "no_invoice", "other_payer", "too_large"];

/// To which invoice a payment belongs.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AssignPayment {
    /// The invoice. Its chain, asset and recipient must be the payment's.
    #[schema(value_type = String)]
    invoice_id: Text,
    /// Count the payment as made in time though it was late.
    #[serde(default)]
    accept_late: bool,
}

/// Payments, newest first.
#[utoipa::path(get, path = "/v1/payments", tag = "payments",
    params(("invoice_id" = Option<String>, Query, description = "Only those of this invoice"),
        ("matching" = Option<String>, Query, description = "Only `matched`, `assigned`, `ambiguous`, `no_invoice`, `other_payer` or `too_large`"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"), ("limit" = Option<u32>, Query, description = "1 to 250, default 50")),
    responses((status = 200, description = "A page", body = Page<PaymentView>), Refusals), security(("key" = ["read"])))]
pub(super) async fn list_payments(
    State(state): State<AppState>,
    _: Reads,
    mut parameters: Parameters,
) -> Result<Json<Page<PaymentView>>, Problem> {
    let invoice: Option<InvoiceId> = parameters.parsed("invoice_id")?;
    let matching =
        match parameters.text("matching")? {
            None => None,
            Some(text) => Some(MATCHINGS.into_iter().find(|known| *known == text).ok_or_else(|| {
                Problem::field("matching", format!("must be one of {}", MATCHINGS.join(", ")))
            })?),
        };
    if invoice.is_some() && matching.is_some() {
        return Err(Problem::field("matching", "cannot be combined with invoice_id"));
    }
    let before = match parameters.text("after")? {
        None => None,
        Some(text) => Some(PaymentId::from_bytes(cursor::parse(List::Payments, "after", &text)?)),
    };
    let limit = parameters.limit()?;
    parameters.finish()?;
    let filter = Filter { invoice, matching };
    let rows = state.store.read(move |query| payment::list(query, &filter, before, limit + 1)).await?;
    let place = |row: &PaymentRow| cursor::encode(List::Payments, row.id.as_bytes());
    Ok(Json(Page::of(&rows, limit, place, PaymentView::of)))
}

/// Says to which invoice a payment belongs that no rule could place, or accepts one that came late.
#[utoipa::path(post, path = "/v1/payments/{id}/assign", tag = "payments", params(("id" = String, Path, description = "The payment's id")),
    request_body = AssignPayment, responses((status = 200, description = "Assigned", body = PaymentView), Refusals), security(("key" = ["admin"])))]
pub(super) async fn assign_payment(
    State(state): State<AppState>,
    Administers(caller): Administers,
    once: Once,
    Path(id): Path<String>,
    body: Body<AssignPayment>,
) -> Result<Response, Problem> {
    let id: PaymentId = parse_id("payment", &id)?;
    let invoice: InvoiceId = body.value.invoice_id.parse("invoice_id")?;
    let accept_late = body.value.accept_late;
    let who = caller.principal();
    once.answer(&state, &caller, &body.bytes, StatusCode::OK, move |tx| {
        let row = assign(tx, id, invoice, accept_late)?;
        tracing::info!(invoice_uuid = %invoice, tx_hash = %row.transfer.key.tx, block = row.transfer.block.number, %who, "payment assigned");
        Ok(PaymentView::of(&row))
    })
    .await
}

//! What operators and machines ask about the server itself, and the quittances it signs.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use domain::delivery::DeliveryState;
use domain::id::InvoiceId;
use durable::engine;
use durable::store::payment::Filter;
use durable::store::{Query, StoreError, counter, delivery, event, invoice, payment};
use serde::Serialize;

use super::auth::Reads;
use super::chains::chain_views;
use super::input::parse_id;
use super::problem::Problem;
use super::{AppState, Page, Refusals};
use crate::features::evidence::{self, NoBundle};
use crate::features::watch::DUPLICATES;
use crate::features::webhook::DEAD_LETTERS;
use crate::telemetry::{Gauges, WINDOW};

/// Events read from the log in one step.
const COUNTED_EVENTS: u32 = 1000;
/// Payments that wait for a person are counted up to here.
const COUNTED_PAYMENTS: u32 = 1000;

/// The process lives.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Health {
    /// Always `ok`.
    status: &'static str,
    /// The program's version.
    version: &'static str,
}

/// Whether the process lives. Depends on nothing else.
#[utoipa::path(get, path = "/healthz", tag = "system", responses((status = 200, description = "It lives", body = Health)), security(()))]
pub(super) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok", version: env!("CARGO_PKG_VERSION") })
}

/// One thing that has to work.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Check {
    /// What.
    name: String,
    /// Whether it does.
    ok: bool,
    /// Why not.
    detail: Option<String>,
}

/// Whether the server can do its work now.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Readiness {
    /// Whether everything works.
    ready: bool,
    /// Each thing by itself.
    checks: Vec<Check>,
}

/// Whether store, workers and every chain's quorum work.
#[utoipa::path(get, path = "/readyz", tag = "system",
    responses((status = 200, description = "Ready", body = Readiness), (status = 503, description = "Not ready", body = Readiness)), security(()))]
pub(super) async fn readyz(State(state): State<AppState>) -> Response {
    let checks = readiness(&state).await;
    let ready = checks.iter().all(|check| check.ok);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, checks })).into_response()
}

async fn readiness(state: &AppState) -> Vec<Check> {
    let check = |name: String, detail: Option<String>| Check { name, ok: detail.is_none(), detail };
    // An empty write goes the whole way to the disk, which a read does not.
    let written: Result<(), StoreError> = state.store.write(|_| Ok(())).await;
    let mut checks = vec![check("store".to_owned(), written.err().map(|error| error.to_string()))];
    let stopping = state.is_stopping().then(|| "the process is stopping".to_owned());
    checks.push(check("workers".to_owned(), stopping));
    match chain_views(state).await {
        Err(error) => checks.push(check("chains".to_owned(), Some(error.to_string()))),
        Ok(chains) => checks.extend(chains.into_iter().map(|chain| {
            let never = || Some("no block was proven yet".to_owned());
            let detail = chain.stalled.or(chain.frozen_reason);
            let detail = detail.or_else(|| if chain.last_processed_block.is_none() { never() } else { None });
            check(format!("quorum {}", chain.id), detail)
        })),
    }
    checks
}

/// Everything that is measured, in the Prometheus text format. Holds no ids and no amounts.
#[utoipa::path(get, path = "/metrics", tag = "system",
    responses((status = 200, description = "Text format 0.0.4", content_type = "text/plain", body = String), (status = 503, description = "The store cannot be read")), security(()))]
pub(super) async fn metrics(State(state): State<AppState>) -> Result<Response, Problem> {
    refresh(&state).await?;
    let text = state.telemetry.render();
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// Takes over what others count: the store, the engine, the readers.
pub(crate) async fn refresh(state: &AppState) -> Result<(), StoreError> {
    let now = state.clock.now();
    let gauges = state.store.read(move |query| count(query, now)).await?;
    let telemetry = &state.telemetry;
    telemetry.gauges(&gauges);
    follow_events(state).await?;
    telemetry.commits(&state.store.commit_stats());
    for (chain, reader) in &state.chains {
        reader.providers().iter().for_each(|status| telemetry.provider(*chain, status));
    }
    for chain in chain_views(state).await? {
        telemetry.chain_frozen(chain.id, chain.frozen);
        let heights = [
            ("head", chain.head),
            ("processed", chain.last_processed_block),
            ("safe", chain.safe),
            ("finalized", chain.finalized),
        ];
        for (kind, height) in heights {
            if let Some(height) = height {
                telemetry.chain_height(chain.id, kind, height);
            }
        }
    }
    Ok(())
}

/// Counts the events that were committed since the last look, each once.
async fn follow_events(state: &AppState) -> Result<(), StoreError> {
    let mut seen = state.events_counted.lock().await;
    loop {
        let after = *seen;
        let events = state.store.read(move |query| event::list_after(query, after, COUNTED_EVENTS)).await?;
        let Some(last) = events.last() else { return Ok(()) };
        *seen = last.position;
        state.telemetry.events(events.iter().map(|event| event.kind));
    }
}

fn count(query: &impl Query, now: domain::time::Timestamp) -> Result<Gauges, StoreError> {
    let waiting = |matching| -> Result<u64, StoreError> {
        let filter = Filter { invoice: None, matching: Some(matching) };
        Ok(payment::list(query, &filter, None, COUNTED_PAYMENTS)?.len() as u64)
    };
    let jobs = engine::count(query)?;
    let due =
        jobs.iter().filter(|count| count.state == engine::JobState::Ready).map(|count| count.oldest_due);
    Ok(Gauges {
        invoices: invoice::count_by_status(query)?,
        unresolved_payments: vec![
            ("ambiguous", waiting("ambiguous")?),
            ("no_invoice", waiting("no_invoice")?),
            ("other_payer", waiting("other_payer")?),
            ("too_large", waiting("too_large")?),
        ],
        oldest_due: due.min().map_or(Duration::ZERO, |oldest| now.since(oldest)),
        jobs: jobs.into_iter().map(|count| (count.kind, count.state.as_str(), count.jobs)).collect(),
        dead_letters: delivery::count_dead(query)?,
        dead_lettered: counted(query, DEAD_LETTERS)?,
        duplicates: counted(query, DUPLICATES)?,
        finished_lately: finished_since(query, now - WINDOW)?,
    })
}

fn counted(query: &impl Query, name: &str) -> Result<Vec<(String, u64)>, StoreError> {
    let counters = counter::list(query)?.into_iter().filter(|counter| counter.name == name);
    Ok(counters.map(|counter| (counter.label, counter.value)).collect())
}

/// Deliveries that ended since then: with a 2xx answer, and in all.
fn finished_since(query: &impl Query, since: domain::time::Timestamp) -> Result<(u64, u64), StoreError> {
    let mut sum = (0_u64, 0_u64);
    for (state, count) in delivery::count_finished(query, since)? {
        if state == DeliveryState::Delivered {
            sum.0 = sum.0.saturating_add(count);
        }
        sum.1 = sum.1.saturating_add(count);
    }
    Ok(sum)
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "system", responses((status = 200, description = "OpenAPI 3.1", body = Object)), security(()))]
pub(super) async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], super::document_json()).into_response()
}

/// A key by which quittances of this server can be told.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct EvidenceKeyView {
    /// `ed25519:` and 64 hex digits: what `quittance verify-evidence --trust` takes.
    key: String,
}

/// The public keys that sign quittances.
#[utoipa::path(get, path = "/v1/evidence-keys", tag = "evidence", responses((status = 200, description = "All of them", body = Page<EvidenceKeyView>)), security(()))]
pub(super) async fn list_evidence_keys(
    State(state): State<AppState>,
) -> Result<Json<Page<EvidenceKeyView>>, Problem> {
    let key = state.store.write(evidence::public_key).await?;
    Ok(Json(Page::whole(vec![EvidenceKeyView { key: key.to_string() }])))
}

impl From<NoBundle> for Problem {
    fn from(error: NoBundle) -> Self {
        let text = error.to_string();
        match error {
            NoBundle::Store(error) => error.into(),
            NoBundle::NoInvoice => Self::missing("invoice"),
            NoBundle::NoPayment => Self::conflict("nothing_paid", text),
        }
    }
}

/// The signed evidence of an invoice's payments. Keep the bytes as they are: they are what was signed.
#[utoipa::path(get, path = "/v1/invoices/{id}/evidence", tag = "evidence", params(("id" = String, Path, description = "The invoice's id")),
    responses((status = 200, description = "The bundle", body = Object), Refusals), security(("key" = ["read"])))]
pub(super) async fn show_evidence(
    State(state): State<AppState>,
    _: Reads,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id: InvoiceId = parse_id("invoice", &id)?;
    let bundle = state.store.write(move |tx| evidence::bundle(tx, id)).await?;
    let name = format!("attachment; filename=\"{id}.quittance.json\"");
    Ok(([(CONTENT_TYPE, "application/json".to_owned()), (CONTENT_DISPOSITION, name)], bundle).into_response())
}

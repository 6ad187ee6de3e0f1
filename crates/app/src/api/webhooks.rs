//! Webhook endpoints, deliveries and dead letters over HTTP.
//!
//! A signing secret is answered when it is made and when it is rotated, and never again.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::delivery::DeliveryState;
use domain::event::Subscription;
use domain::id::{DeliveryId, EndpointId, EventId};
use domain::time::Timestamp;
use durable::store::delivery::{AttemptRow, DeliveryRow, Filter};
use durable::store::endpoint::EndpointRow;
use durable::store::{Query, StoreError, delivery, endpoint, event};
use serde::{Deserialize, Deserializer, Serialize};

use super::auth::{Reads, Writes};
use super::cursor::{self, List};
use super::idempotency::Once;
use super::input::{Body, MOST_ITEMS, Parameters, Text, check_words, parse_id};
use super::problem::Problem;
use super::{AppState, Page, Refusals};
use crate::features::endpoint::{
    EndpointChange, NewEndpoint, change, create, delete, replay, retry, rotate_secret,
};

/// The most bytes of a description.
const DESCRIPTION_BYTES: usize = 1024;
/// The most subscriptions of one endpoint.
const MOST_SUBSCRIPTIONS: usize = 64;

/// Where a merchant wants to be told.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateEndpoint {
    /// An `https` URL on the public internet, unless the operator allowed more.
    #[schema(value_type = String, example = "https://shop.example/webhooks/quittance")]
    url: Text,
    /// `*`, a family such as `invoice.*`, or single types. Default: all.
    #[schema(value_type = Option<Vec<String>>, example = json!(["*"]))]
    event_types: Option<Vec<Text>>,
    /// Your own words.
    #[schema(value_type = Option<String>)]
    description: Option<Text>,
}

/// What of an endpoint is to change. What is left out stays.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangeEndpoint {
    /// A new target.
    #[schema(value_type = Option<String>)]
    url: Option<Text>,
    /// New subscriptions.
    #[schema(value_type = Option<Vec<String>>)]
    event_types: Option<Vec<Text>>,
    /// New words.
    #[schema(value_type = Option<String>)]
    description: Option<Text>,
    /// `false` stops deliveries, `true` starts them again.
    enabled: Option<bool>,
}

/// A webhook endpoint.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct EndpointView {
    /// Its id.
    #[schema(value_type = String)]
    id: EndpointId,
    /// Where deliveries go.
    url: String,
    /// What is delivered.
    #[schema(value_type = Vec<String>)]
    event_types: Vec<Subscription>,
    /// The merchant's own words.
    description: Option<String>,
    /// Whether it is delivered to.
    enabled: bool,
    /// Why it is not.
    disabled_reason: Option<String>,
    /// Until when the secret before the present one signs as well.
    #[schema(value_type = Option<String>, format = DateTime)]
    old_secret_until: Option<Timestamp>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl EndpointView {
    fn of(row: &EndpointRow) -> Self {
        Self {
            id: row.id,
            url: row.url.clone(),
            event_types: row.subscriptions.clone(),
            description: row.description.clone(),
            enabled: row.disabled.is_none(),
            disabled_reason: row.disabled.clone(),
            old_secret_until: row.old_secrets.iter().map(|(_, until)| *until).max(),
            created_at: row.created_at,
        }
    }
}

/// A webhook endpoint with its fresh secret.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct EndpointWithSecret {
    #[serde(flatten)]
    endpoint: EndpointView,
    /// The signing secret of Standard Webhooks, shown this once.
    #[schema(example = "whsec_…")]
    secret: String,
}

impl EndpointWithSecret {
    fn of(row: &EndpointRow) -> Self {
        let secret = format!("whsec_{}", STANDARD.encode(row.secret.expose()));
        Self { endpoint: EndpointView::of(row), secret }
    }
}

fn subscriptions(texts: &[Text]) -> Result<Vec<Subscription>, Problem> {
    if texts.is_empty() || texts.len() > MOST_SUBSCRIPTIONS {
        let detail = format!("must name 1 to {MOST_SUBSCRIPTIONS} event types; [\"*\"] is all of them");
        return Err(Problem::field("event_types", detail));
    }
    let parse = |(index, text): (usize, &Text)| {
        text.0.parse().map_err(|_| {
            let field = format!("event_types[{index}]");
            Problem::field(
                field,
                format!("{:?} is no event type, no family such as invoice.*, and not *", text.0),
            )
        })
    };
    texts.iter().enumerate().map(parse).collect()
}

fn description(text: Option<&Text>) -> Result<Option<String>, Problem> {
    let Some(text) = text else { return Ok(None) };
    check_words("description", &text.0, DESCRIPTION_BYTES)?;
    Ok(Some(text.0.clone()))
}

/// Registers an endpoint. A target that would be refused when sending is refused now.
#[utoipa::path(post, path = "/v1/webhook-endpoints", tag = "webhooks", request_body = CreateEndpoint,
    params(("Idempotency-Key" = Option<String>, Header, description = "Repeats of the request get the first answer")),
    responses((status = 201, description = "Registered", body = EndpointWithSecret), Refusals), security(("key" = ["write"])))]
pub(super) async fn post_endpoint(
    State(state): State<AppState>,
    Writes(caller): Writes,
    once: Once,
    body: Body<CreateEndpoint>,
) -> Result<Response, Problem> {
    let new = NewEndpoint {
        url: body.value.url.0.clone(),
        subscriptions: match &body.value.event_types {
            None => vec![Subscription::All],
            Some(texts) => subscriptions(texts)?,
        },
        description: description(body.value.description.as_ref())?,
    };
    let targets = state.targets.clone();
    once.answer(&state, &caller, &body.bytes, StatusCode::CREATED, move |tx| {
        Ok(EndpointWithSecret::of(&create(tx, &new, &targets)?))
    })
    .await
}

/// Endpoints, oldest first.
#[utoipa::path(get, path = "/v1/webhook-endpoints", tag = "webhooks",
    params(("after" = Option<String>, Query, description = "The `next` of the page before"), ("limit" = Option<u32>, Query, description = "1 to 250, default 50")),
    responses((status = 200, description = "A page", body = Page<EndpointView>), Refusals), security(("key" = ["read"])))]
pub(super) async fn list_endpoints(
    State(state): State<AppState>,
    _: Reads,
    mut parameters: Parameters,
) -> Result<Json<Page<EndpointView>>, Problem> {
    let after = match parameters.text("after")? {
        None => None,
        Some(text) => Some(EndpointId::from_bytes(cursor::parse(List::Endpoints, "after", &text)?)),
    };
    let limit = parameters.limit()?;
    parameters.finish()?;
    let mut rows = state.store.read(endpoint::list_whole).await?;
    rows.retain(|row| after.is_none_or(|after| row.id > after));
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(1));
    let place = |row: &EndpointRow| cursor::encode(List::Endpoints, row.id.as_bytes());
    Ok(Json(Page::of(&rows, limit, place, EndpointView::of)))
}

/// One endpoint.
#[utoipa::path(get, path = "/v1/webhook-endpoints/{id}", tag = "webhooks", params(("id" = String, Path, description = "The endpoint's id")),
    responses((status = 200, description = "The endpoint", body = EndpointView), Refusals), security(("key" = ["read"])))]
pub(super) async fn show_endpoint(
    State(state): State<AppState>,
    _: Reads,
    Path(id): Path<String>,
) -> Result<Json<EndpointView>, Problem> {
    let id: EndpointId = parse_id("webhook endpoint", &id)?;
    let found = state.store.read(move |query| endpoint::find(query, id)).await?;
    let row = found.filter(|row| row.deleted_at.is_none());
    let row = row.ok_or_else(|| Problem::missing("webhook endpoint"))?;
    Ok(Json(EndpointView::of(&row)))
}

/// Changes an endpoint.
#[utoipa::path(patch, path = "/v1/webhook-endpoints/{id}", tag = "webhooks", params(("id" = String, Path, description = "The endpoint's id")),
    request_body = ChangeEndpoint, responses((status = 200, description = "Changed", body = EndpointView), Refusals), security(("key" = ["write"])))]
pub(super) async fn patch_endpoint(
    State(state): State<AppState>,
    Writes(caller): Writes,
    once: Once,
    Path(id): Path<String>,
    body: Body<ChangeEndpoint>,
) -> Result<Response, Problem> {
    let id: EndpointId = parse_id("webhook endpoint", &id)?;
    let wanted = EndpointChange {
        url: body.value.url.as_ref().map(|url| url.0.clone()),
        subscriptions: body.value.event_types.as_deref().map(subscriptions).transpose()?,
        description: description(body.value.description.as_ref())?,
        enabled: body.value.enabled,
    };
    let targets = state.targets.clone();
    once.answer(&state, &caller, &body.bytes, StatusCode::OK, move |tx| {
        Ok(EndpointView::of(&change(tx, id, &wanted, &targets)?))
    })
    .await
}

/// Removes an endpoint. What is still on its way to it becomes dead letters.
#[utoipa::path(delete, path = "/v1/webhook-endpoints/{id}", tag = "webhooks", params(("id" = String, Path, description = "The endpoint's id")),
    responses((status = 204, description = "Removed"), Refusals), security(("key" = ["write"])))]
pub(super) async fn delete_endpoint(
    State(state): State<AppState>,
    Writes(caller): Writes,
    once: Once,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id: EndpointId = parse_id("webhook endpoint", &id)?;
    once.answer(&state, &caller, &[], StatusCode::NO_CONTENT, move |tx| Ok(delete(tx, id)?)).await
}

/// Gives an endpoint a new secret; the old one signs beside it for a day.
#[utoipa::path(post, path = "/v1/webhook-endpoints/{id}/rotate-secret", tag = "webhooks", params(("id" = String, Path, description = "The endpoint's id")),
    responses((status = 200, description = "The new secret", body = EndpointWithSecret), Refusals), security(("key" = ["write"])))]
pub(super) async fn rotate_endpoint_secret(
    State(state): State<AppState>,
    Writes(caller): Writes,
    once: Once,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id: EndpointId = parse_id("webhook endpoint", &id)?;
    once.answer(&state, &caller, &[], StatusCode::OK, move |tx| {
        Ok(EndpointWithSecret::of(&rotate_secret(tx, id)?))
    })
    .await
}

/// One event on its way to one endpoint.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct DeliveryView {
    /// Its id.
    #[schema(value_type = String)]
    pub(crate) id: DeliveryId,
    /// To whom.
    #[schema(value_type = String)]
    pub(crate) endpoint_id: EndpointId,
    /// What; also the `webhook-id` of every attempt.
    #[schema(value_type = Option<String>)]
    pub(crate) event_id: Option<EventId>,
    /// Its type.
    pub(crate) event_type: Option<&'static str>,
    /// `queued`, `pending`, `delivered` or `dead`.
    pub(crate) status: &'static str,
    /// Attempts made.
    pub(crate) attempts: u32,
    /// The last status code that was read.
    pub(crate) last_status: Option<u16>,
    /// What went wrong last.
    pub(crate) last_error: Option<String>,
    /// Why it was given up.
    pub(crate) dead_reason: Option<&'static str>,
    /// Sent again by a person, out of order.
    pub(crate) replayed: bool,
    /// When the event happened.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created_at: Timestamp,
    /// When it was delivered or given up.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) finished_at: Option<Timestamp>,
}

/// An attempt at a delivery.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct AttemptView {
    /// The how-manieth, from 1.
    number: u32,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// When its outcome was known.
    #[schema(value_type = String, format = DateTime)]
    ended_at: Timestamp,
    /// The status code, if one was read.
    status: Option<u16>,
    /// `delivered`, or the class of the failure.
    outcome: String,
    /// The beginning of the answer.
    detail: Option<String>,
}

impl AttemptView {
    fn of(row: &AttemptRow) -> Self {
        let AttemptRow { number, started_at, ended_at, status, outcome, detail } = row.clone();
        Self { number, started_at, ended_at, status, outcome, detail }
    }
}

/// A delivery with its attempts.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct DeliveryDetail {
    #[serde(flatten)]
    delivery: DeliveryView,
    /// Its attempts, in order.
    attempt_log: Vec<AttemptView>,
}

/// The views of rows, with the events they carry.
pub(crate) fn delivery_views(
    query: &impl Query,
    rows: &[DeliveryRow],
) -> Result<Vec<DeliveryView>, StoreError> {
    rows.iter().map(|row| delivery_view(query, row)).collect()
}

fn delivery_view(query: &impl Query, row: &DeliveryRow) -> Result<DeliveryView, StoreError> {
    let event = event::find(query, row.event_position)?;
    Ok(DeliveryView {
        id: row.id,
        endpoint_id: row.endpoint,
        event_id: event.as_ref().map(|event| event.id),
        event_type: event.as_ref().map(|event| event.kind.as_str()),
        status: row.state.as_str(),
        attempts: row.attempts,
        last_status: row.last_status,
        last_error: row.last_error.clone(),
        dead_reason: row.dead_reason.map(|reason| reason.as_str()),
        replayed: row.replayed,
        created_at: row.created_at,
        finished_at: row.finished_at,
    })
}

/// Deliveries, newest first.
#[utoipa::path(get, path = "/v1/deliveries", tag = "webhooks",
    params(("endpoint_id" = Option<String>, Query, description = "Only those to this endpoint"), ("status" = Option<String>, Query, description = "Only `queued`, `pending`, `delivered` or `dead`"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"), ("limit" = Option<u32>, Query, description = "1 to 250, default 50")),
    responses((status = 200, description = "A page", body = Page<DeliveryView>), Refusals), security(("key" = ["read"])))]
pub(super) async fn list_deliveries(
    State(state): State<AppState>,
    _: Reads,
    mut parameters: Parameters,
) -> Result<Json<Page<DeliveryView>>, Problem> {
    let endpoint: Option<EndpointId> = parameters.parsed("endpoint_id")?;
    let status: Option<DeliveryState> = match parameters.text("status")? {
        None => None,
        Some(text) => {
            let expected = || Problem::field("status", "must be queued, pending, delivered or dead");
            Some(text.parse().map_err(|_| expected())?)
        }
    };
    let before = match parameters.text("after")? {
        None => None,
        Some(text) => Some(DeliveryId::from_bytes(cursor::parse(List::Deliveries, "after", &text)?)),
    };
    let limit = parameters.limit()?;
    parameters.finish()?;
    let filter = Filter { endpoint, state: status };
    let page = state
        .store
        .read(move |query| -> Result<_, StoreError> {
            let rows = delivery::list(query, &filter, before, limit + 1)?;
            Page::with(
                &rows,
                limit,
                |row| cursor::encode(List::Deliveries, row.id.as_bytes()),
                |rows| delivery_views(query, rows),
            )
        })
        .await?;
    Ok(Json(page))
}

/// One delivery, with every attempt at it.
#[utoipa::path(get, path = "/v1/deliveries/{id}", tag = "webhooks", params(("id" = String, Path, description = "The delivery's id")),
    responses((status = 200, description = "The delivery", body = DeliveryDetail), Refusals), security(("key" = ["read"])))]
pub(super) async fn show_delivery(
    State(state): State<AppState>,
    _: Reads,
    Path(id): Path<String>,
) -> Result<Json<DeliveryDetail>, Problem> {
    let id: DeliveryId = parse_id("delivery", &id)?;
    let detail = state
        .store
        .read(move |query| -> Result<_, Problem> {
            let row = delivery::find(query, id)?.ok_or_else(|| Problem::missing("delivery"))?;
            let attempts = delivery::list_attempts(query, id)?;
            let attempt_log = attempts.iter().map(AttemptView::of).collect();
            Ok(DeliveryDetail { delivery: delivery_view(query, &row)?, attempt_log })
        })
        .await?;
    Ok(Json(detail))
}

/// Sends a dead letter again, now.
#[utoipa::path(post, path = "/v1/deliveries/{id}/retry", tag = "webhooks", params(("id" = String, Path, description = "The delivery's id")),
    responses((status = 202, description = "On its way", body = DeliveryView), Refusals), security(("key" = ["write"])))]
pub(super) async fn retry_delivery(
    State(state): State<AppState>,
    Writes(caller): Writes,
    once: Once,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id: DeliveryId = parse_id("delivery", &id)?;
    once.answer(&state, &caller, &[], StatusCode::ACCEPTED, move |tx| {
        let row = retry(tx, id)?;
        Ok(delivery_view(tx, &row)?)
    })
    .await
}

/// Dead letters, oldest first.
#[utoipa::path(get, path = "/v1/dead-letters", tag = "webhooks",
    params(("since" = Option<String>, Query, description = "Only those given up at or after this time (RFC 3339)"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"), ("limit" = Option<u32>, Query, description = "1 to 250, default 50")),
    responses((status = 200, description = "A page", body = Page<DeliveryView>), Refusals), security(("key" = ["read"])))]
pub(super) async fn list_dead_letters(
    State(state): State<AppState>,
    _: Reads,
    mut parameters: Parameters,
) -> Result<Json<Page<DeliveryView>>, Problem> {
    let since = parameters.parsed("since")?.unwrap_or(Timestamp::EPOCH);
    let after = parameters.text("after")?.map(|text| dead_place("after", &text)).transpose()?;
    let limit = parameters.limit()?;
    parameters.finish()?;
    let page = state
        .store
        .read(move |query| -> Result<_, StoreError> {
            let rows = delivery::list_dead(query, since, after, limit + 1)?;
            Page::with(&rows, limit, dead_cursor, |rows| delivery_views(query, rows))
        })
        .await?;
    Ok(Json(page))
}

fn dead_cursor(row: &DeliveryRow) -> String {
    spell_dead_place(row.finished_at.unwrap_or_default(), row.id)
}

fn spell_dead_place(at: Timestamp, id: DeliveryId) -> String {
    let mut place = [0; 24];
    place[..8].copy_from_slice(&at.as_millis().to_be_bytes());
    place[8..].copy_from_slice(id.as_bytes());
    cursor::encode(List::DeadLetters, &place)
}

fn dead_place(field: &str, text: &str) -> Result<(Timestamp, DeliveryId), Problem> {
    let place: [u8; 24] = cursor::parse(List::DeadLetters, field, text)?;
    let (mut at, mut id) = ([0; 8], [0; 16]);
    at.copy_from_slice(&place[..8]);
    id.copy_from_slice(&place[8..]);
    Ok((Timestamp::from_millis(i64::from_be_bytes(at)), DeliveryId::from_bytes(id)))
}

/// Which dead letters to send again.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplayDeadLetters {
    /// Those given up at or after this time (RFC 3339). Default: all.
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<Text>,
    /// Only say which.
    #[serde(default)]
    dry_run: bool,
    /// 1 to 250, default 50.
    #[serde(default, deserialize_with = "limit_within_bounds")]
    limit: Option<u32>,
    /// The `next` of an earlier replay.
    #[schema(value_type = Option<String>)]
    after: Option<Text>,
}

fn limit_within_bounds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let limit = Option::<u32>::deserialize(deserializer)?;
    match limit {
        Some(limit) if !(1..=MOST_ITEMS).contains(&limit) => {
            Err(serde::de::Error::custom(format!("must be a whole number from 1 to {MOST_ITEMS}")))
        }
        limit => Ok(limit),
    }
}

/// What a replay did, or would do.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ReplayAnswer {
    /// Whether nothing was sent.
    dry_run: bool,
    /// How many are (or would be) sent again.
    replayed: usize,
    /// Those that are (or would be) sent again, oldest first.
    data: Vec<DeliveryView>,
    /// Those that stay dead letters: their endpoint is disabled or deleted.
    skipped: Vec<DeliveryView>,
    /// Where to go on, when there are more than the limit.
    next: Option<String>,
}

/// Sends dead letters again, flagged as out of order; or only says which.
#[utoipa::path(post, path = "/v1/dead-letters/replay", tag = "webhooks", request_body = ReplayDeadLetters,
    responses((status = 200, description = "What was (or would be) sent again", body = ReplayAnswer), Refusals), security(("key" = ["write"])))]
pub(super) async fn replay_dead_letters(
    State(state): State<AppState>,
    Writes(caller): Writes,
    once: Once,
    body: Body<ReplayDeadLetters>,
) -> Result<Response, Problem> {
    let since = match &body.value.since {
        None => Timestamp::EPOCH,
        Some(text) => text.parse("since")?,
    };
    let after = body.value.after.as_ref().map(|text| dead_place("after", &text.0)).transpose()?;
    let (limit, dry_run) = (body.value.limit.unwrap_or(50), body.value.dry_run);
    once.answer(&state, &caller, &body.bytes, StatusCode::OK, move |tx| {
        let done = replay(tx, since, after, limit, dry_run)?;
        Ok(ReplayAnswer {
            dry_run,
            replayed: done.deliveries.len(),
            data: delivery_views(tx, &done.deliveries)?,
            skipped: delivery_views(tx, &done.skipped)?,
            next: done.next.map(|(at, id)| spell_dead_place(at, id)),
        })
    })
    .await
}

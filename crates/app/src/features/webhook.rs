//! Telling merchants: one event to one endpoint, at least once, signed.
//!
//! Guarantees: the id, the body and the `Idempotency-Key` of an event are the same in every attempt, for ever; only
//! the signature's time moves. A lane (endpoint and invoice) keeps the order of its events and no lane
//! waits for another. What is given up becomes a dead letter with a reason, and opens its lane for the next event.
//!
//! Signatures follow Standard Webhooks 1.0 (`v1`, HMAC-SHA256 over `id.timestamp.body`). A crash between the request and its
//! record repeats the request, which is why receivers are told to keep the ids they have seen.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use domain::chance::Chance;
use domain::delivery::{Answer, DeadReason, DeliveryPolicy, DeliveryState, Verdict};
use domain::event::EventType;
use domain::id::{DeliveryId, EventId};
use domain::time::{Clock, Timestamp};
use durable::engine::{AfterCrash, Attempt, Condemned, Next, Recording, Trouble, Work};
use durable::store::delivery::{AttemptRow, DeliveryRow};
use durable::store::endpoint::EndpointRow;
use durable::store::event::EventRow;
use durable::store::{Query, ReadOnly, StoreError, Tx, counter, delivery, endpoint, event};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue};
use outside::http::retry_after::retry_after;
use outside::http::{AddressPolicy, Http, HttpError, HttpErrorKind, Request, Response, check_url};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::reactions;
use crate::telemetry::Telemetry;

/// What a person sees of an answer's body, in bytes.
const DETAIL_BYTES: usize = 512;

/// The counter of deliveries that became dead letters, by reason.
pub const DEAD_LETTERS: &str = "webhook_dlq_total";

/// The work of sending one delivery.
pub struct Deliver {
    /// How requests are made; refuses what may not be sent to.
    pub http: Arc<dyn Http>,
    /// What may be sent to, checked again at every attempt.
    pub addresses: AddressPolicy,
    /// How often and when.
    pub policy: DeliveryPolicy,
    /// The whole time of one attempt.
    pub deadline: Duration,
    /// When it is.
    pub clock: Arc<dyn Clock>,
    /// For jitter.
    pub chance: Chance,
    /// Where attempts are counted.
    pub telemetry: Arc<Telemetry>,
}

/// Which delivery.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeliverInput {
    /// Its id.
    pub delivery: DeliveryId,
}

/// What an attempt found out.
#[derive(Debug, Clone)]
pub enum DeliverFact {
    /// A request was made, or refused by our own policy.
    Attempted {
        /// When it began.
        started_at: Timestamp,
        /// When its outcome was known.
        ended_at: Timestamp,
        /// The status code, if one was read.
        status: Option<u16>,
        /// `delivered`, or the class of the failure.
        outcome: String,
        /// The beginning of the answer, or what went wrong.
        detail: Option<String>,
        /// What follows.
        verdict: Verdict,
        /// Whether the answer refused it for good.
        rejected: bool,
        /// Where a delivery is counted, once it is committed.
        telemetry: Arc<Telemetry>,
    },
    /// The endpoint is disabled or deleted.
    EndpointGone,
    /// There is nothing to do: it is finished already.
    Finished,
}

impl Work for Deliver {
    const KIND: &'static str = "webhook";
    const AFTER_CRASH: AfterCrash = AfterCrash::Rerun;
    type Input = DeliverInput;
    type Fact = DeliverFact;

    async fn perform(
        &self,
        input: &DeliverInput,
        attempt: &Attempt,
        store: &ReadOnly,
    ) -> Result<DeliverFact, Trouble> {
        let id = input.delivery;
        let found = store.read(move |query| load(query, id)).await.map_err(unreadable)?;
        let Some((row, event, endpoint)) = found else { return Ok(DeliverFact::Finished) };
        if row.state != DeliveryState::Pending {
            return Ok(DeliverFact::Finished);
        }
        if endpoint.disabled.is_some() || endpoint.deleted_at.is_some() {
            return Ok(DeliverFact::EndpointGone);
        }
        Ok(self.attempt(&row, &event, &endpoint, attempt).await)
    }

    fn record(
        recording: &mut Recording<'_>,
        input: &DeliverInput,
        attempt: &Attempt,
        outcome: Result<&DeliverFact, &Trouble>,
    ) -> Result<Next, StoreError> {
        let Some(mut row) = delivery::find(recording, input.delivery)? else { return Ok(Next::Done) };
        if row.state != DeliveryState::Pending {
            return Ok(Next::Done);
        }
        match outcome {
            Ok(DeliverFact::Attempted {
                started_at,
                ended_at,
                status,
                outcome,
                detail,
                verdict,
                rejected,
                telemetry,
            }) => {
                row.attempts = row.attempts.saturating_add(1);
                row.rejections = row.rejections.saturating_add(u32::from(*rejected));
                row.last_status = *status;
                row.last_error = (*verdict != Verdict::Delivered).then(|| outcome.clone());
                let attempt = AttemptRow {
                    number: row.attempts,
                    started_at: *started_at,
                    ended_at: *ended_at,
                    status: *status,
                    outcome: outcome.clone(),
                    detail: detail.clone(),
                };
                delivery::insert_attempt(recording, row.id, &attempt)?;
                if *verdict == Verdict::Delivered {
                    let telemetry = Arc::clone(telemetry);
                    recording.after_commit(move || telemetry.delivered());
                }
                follow(recording, row, *verdict)
            }
            Ok(DeliverFact::EndpointGone) => bury(recording, row, DeadReason::EndpointDisabled),
            Ok(DeliverFact::Finished) => Ok(Next::Done),
            Err(trouble) => match attempt.condemned {
                Some(Condemned::CrashLoop) => bury(recording, row, DeadReason::CrashLoop),
                Some(Condemned::HeldTooLong) => bury(recording, row, DeadReason::EndpointDown),
                None => {
                    row.last_error = Some(trouble.why().to_owned());
                    delivery::save(recording, &row)?;
                    Ok(Next::Retry)
                }
            },
        }
    }
}

fn unreadable(error: StoreError) -> Trouble {
    Trouble::Again { after: None, why: error.to_string() }
}

fn load(
    query: &impl Query,
    id: DeliveryId,
) -> Result<Option<(DeliveryRow, EventRow, EndpointRow)>, StoreError> {
    let Some(row) = delivery::find(query, id)? else { return Ok(None) };
    let event = event::find(query, row.event_position)?;
    let endpoint = endpoint::find(query, row.endpoint)?;
    Ok(event.zip(endpoint).map(|(event, endpoint)| (row, event, endpoint)))
}

/// Writes what follows from a verdict: the row, the endpoint's breaker, the lane.
fn follow(recording: &mut Recording<'_>, mut row: DeliveryRow, verdict: Verdict) -> Result<Next, StoreError> {
    match verdict {
        Verdict::Delivered => {
            recording.target_succeeded()?;
            row.state = DeliveryState::Delivered;
            row.finished_at = Some(recording.now());
            delivery::save(recording, &row)?;
            open_lane(recording, &row)?;
            Ok(Next::Done)
        }
        Verdict::Again { after, target_at_fault, wish } => {
            if target_at_fault {
                recording.target_failed(wish)?;
            }
            delivery::save(recording, &row)?;
            Ok(Next::RetryAt { at: recording.now() + after })
        }
        Verdict::Dead(reason) => bury(recording, row, reason),
        Verdict::Disable => {
            disable(recording, &row)?;
            bury(recording, row, DeadReason::Gone)
        }
    }
}

/// Makes a delivery a dead letter, tells of it, and lets the next event of its lane go.
fn bury(tx: &mut Tx, mut row: DeliveryRow, reason: DeadReason) -> Result<Next, StoreError> {
    row.state = DeliveryState::Dead;
    row.dead_reason = Some(reason);
    row.finished_at = Some(tx.now());
    delivery::save(tx, &row)?;
    counter::add(tx, DEAD_LETTERS, reason.as_str(), 1)?;
    open_lane(tx, &row)?;
    tell_of_dead_letter(tx, &row, reason)?;
    Ok(Next::Done)
}

fn open_lane(tx: &mut Tx, row: &DeliveryRow) -> Result<(), StoreError> {
    if row.replayed {
        return Ok(());
    }
    let Some(mut next) = delivery::next_in_lane(tx, row.lane)? else { return Ok(()) };
    next.state = DeliveryState::Pending;
    delivery::save(tx, &next)?;
    reactions::send(tx, &next)
}

#[derive(Serialize)]
struct DeadLetterData {
    delivery_id: DeliveryId,
    endpoint_id: domain::id::EndpointId,
    event_id: EventId,
    event_type: EventType,
    attempts: u32,
    reason: &'static str,
    last_status: Option<u16>,
    last_error: Option<String>,
}

/// Dead letters about dead letters would never end, so those are only kept.
fn tell_of_dead_letter(tx: &mut Tx, row: &DeliveryRow, reason: DeadReason) -> Result<(), StoreError> {
    let Some(event) = event::find(tx, row.event_position)? else { return Ok(()) };
    if matches!(event.kind, EventType::DeliveryDeadLettered | EventType::EndpointDisabled) {
        return Ok(());
    }
    let data = DeadLetterData {
        delivery_id: row.id,
        endpoint_id: row.endpoint,
        event_id: event.id,
        event_type: event.kind,
        attempts: row.attempts,
        reason: reason.as_str(),
        last_status: row.last_status,
        last_error: row.last_error.clone(),
    };
    reactions::tell_except(tx, EventType::DeliveryDeadLettered, &data, row.endpoint)
}

#[derive(Serialize)]
struct DisabledData {
    endpoint_id: domain::id::EndpointId,
    reason: &'static str,
}

fn disable(tx: &mut Tx, row: &DeliveryRow) -> Result<(), StoreError> {
    let Some(mut endpoint) = endpoint::find(tx, row.endpoint)? else { return Ok(()) };
    if endpoint.disabled.is_some() {
        return Ok(());
    }
    endpoint.disabled = Some("the receiver answered 410 Gone".to_owned());
    endpoint::save(tx, &endpoint)?;
    let data = DisabledData { endpoint_id: endpoint.id, reason: "gone" };
    reactions::tell_except(tx, EventType::EndpointDisabled, &data, endpoint.id)
}

impl Deliver {
    async fn attempt(
        &self,
        row: &DeliveryRow,
        event: &EventRow,
        endpoint: &EndpointRow,
        attempt: &Attempt,
    ) -> DeliverFact {
        let number = row.attempts.saturating_add(1);
        let started_at = self.clock.now();
        let sent = match self.request(row, event, endpoint, started_at) {
            Ok(request) => self.http.send(request).await,
            Err(kind) => Err(HttpError::new(kind, outside::http::Sent::Not, "refused before it was sent")),
        };
        let ended_at = self.clock.now();
        let (answer, status, outcome, detail) = self.read(&sent, ended_at);
        let verdict = self.policy.judge(answer, attempt.attempt, row.rejections, &self.chance);
        let rejected = DeliveryPolicy::is_rejection(answer);
        let delivered = verdict == Verdict::Delivered;
        self.telemetry.delivery_attempt(if delivered { "delivered" } else { "failed" });
        tracing::info!(
            delivery = %row.id,
            event = %event.id,
            invoice_uuid = event.subject.map(|id| id.to_string()),
            attempt = number,
            crashes = attempt.crashes,
            status,
            outcome,
            "webhook attempt"
        );
        let outcome = if delivered { "delivered".to_owned() } else { outcome };
        let telemetry = Arc::clone(&self.telemetry);
        DeliverFact::Attempted { started_at, ended_at, status, outcome, detail, verdict, rejected, telemetry }
    }

    fn read(
        &self,
        sent: &Result<Response, HttpError>,
        now: Timestamp,
    ) -> (Answer, Option<u16>, String, Option<String>) {
        match sent {
            Ok(response) => {
                let code = response.status.as_u16();
                let retry_after = retry_after(&response.headers, now, self.policy.retry_after_cap);
                let excerpt = excerpt(&response.body);
                (Answer::Status { code, retry_after }, Some(code), format!("status_{code}"), excerpt)
            }
            Err(error) => {
                let answer = match error.kind {
                    HttpErrorKind::Refused(_) | HttpErrorKind::InvalidRequest => Answer::TargetRefused,
                    _ => Answer::NoAnswer,
                };
                (answer, None, error.kind.as_str().to_owned(), None)
            }
        }
    }

    fn request(
        &self,
        row: &DeliveryRow,
        event: &EventRow,
        endpoint: &EndpointRow,
        now: Timestamp,
    ) -> Result<Request, HttpErrorKind> {
        let url = check_url(&endpoint.url, &self.addresses).map_err(HttpErrorKind::Refused)?;
        let id = event.id.to_string();
        let timestamp = now.as_seconds();
        let mut headers = HeaderMap::new();
        let mut put = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        put("webhook-id", &id);
        put("webhook-timestamp", &timestamp.to_string());
        put("webhook-signature", &signatures(endpoint, &id, timestamp, &event.body, now));
        put("idempotency-key", &format!("\"{id}\""));
        put("content-type", "application/json");
        if row.replayed {
            put("quittance-replay", "true");
        }
        let mut request = Request::post(url, Bytes::from(event.body.clone()));
        request.headers = headers;
        request.deadline = self.deadline;
        Ok(request)
    }
}

/// One signature for each secret that is valid at `now`.
fn signatures(endpoint: &EndpointRow, id: &str, timestamp: i64, body: &[u8], now: Timestamp) -> String {
    let old = endpoint.old_secrets.iter().filter(|(_, until)| *until > now).map(|(secret, _)| secret);
    std::iter::once(&endpoint.secret)
        .chain(old)
        .map(|secret| sign(secret.expose(), id, timestamp, body))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A Standard Webhooks `v1` signature: HMAC-SHA256 over `id.timestamp.body`, in base64.
#[must_use]
pub fn sign(secret: &[u8], id: &str, timestamp: i64, body: &[u8]) -> String {
    // HMAC takes keys of every length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return String::new() };
    mac.update(id.as_bytes());
    mac.update(b".");
    mac.update(timestamp.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

/// The beginning of an answer's body, for the endpoint's owner.
fn excerpt(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&body[..body.len().min(DETAIL_BYTES)]);
    let clean: String = text.chars().filter(|c| !c.is_control() || *c == '\n').collect();
    (!clean.trim().is_empty()).then_some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_the_standard_says() {
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature =
            sign(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn an_excerpt_is_short_and_printable() {
        assert_eq!(excerpt(b"\x00\x1b[31mno\n"), Some("[31mno\n".to_owned()));
        assert_eq!(excerpt(b""), None);
        assert_eq!(excerpt(&[b'a'; 10_000]).map(|text| text.len()), Some(DETAIL_BYTES));
    }
}

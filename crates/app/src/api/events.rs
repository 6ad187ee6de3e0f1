//! The event log over HTTP: in pages, and as a stream that resumes where it broke off.
//!
//! Guarantees: events are given in the order of the log, none is left out, and the cursor of an event is good for
//! ever. A stream ends after a while, and when the server stops: whoever follows it comes back with the last cursor
//! (`Last-Event-ID`), which is also when a revoked key is noticed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, Sse};
use durable::store::event::{self, EventRow};
use durable::store::{Listener, Topic};
use futures::future::{Either, select};
use futures::stream::{self, Stream};
use serde::Serialize;
use serde_json::value::RawValue;

use super::auth::Reads;
use super::cursor::{self, List};
use super::input::Parameters;
use super::problem::Problem;
use super::{AppState, Refusals};

/// How many events are read at once for a stream.
const STREAM_PAGE: u32 = 100;
/// How often a quiet stream says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a stream lives before its follower has to come back.
const STREAM_LIFE: Duration = Duration::from_secs(900);

/// Instead of a cursor: the present end of the log.
const LATEST: &str = "latest";

/// A page of the log.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct EventPage {
    /// Events as merchants receive them: `{id, type, created_at, sequence, data}`.
    #[schema(value_type = Vec<Object>)]
    data: Vec<Box<RawValue>>,
    /// Where the log goes on now; none when this is its present end.
    next: Option<String>,
    /// The place after the last event of this page: ask again with it later.
    cursor: String,
}

/// The event log, oldest first.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(("after" = Option<String>, Query, description = "A cursor of an earlier answer, or `latest` for the present end; without it, from the beginning"), ("limit" = Option<u32>, Query, description = "1 to 250, default 50")),
    responses((status = 200, description = "A page", body = EventPage), Refusals), security(("key" = ["read"])))]
pub(super) async fn list_events(
    State(state): State<AppState>,
    _: Reads,
    mut parameters: Parameters,
) -> Result<Json<EventPage>, Problem> {
    let after = match parameters.text("after")? {
        None => 0,
        Some(text) if text == LATEST => state.store.read(event::last_position).await?,
        Some(text) => position("after", &text)?,
    };
    let limit = parameters.limit()?;
    parameters.finish()?;
    let mut rows = state.store.read(move |query| event::list_after(query, after, limit + 1)).await?;
    let more = rows.len() > usize::try_from(limit).unwrap_or(usize::MAX);
    if more {
        rows.pop();
    }
    let cursor = place(rows.last().map_or(after, |row| row.position));
    let data = rows.iter().map(raw).collect::<Result<_, _>>()?;
    Ok(Json(EventPage { data, next: more.then(|| cursor.clone()), cursor }))
}

fn position(field: &str, cursor: &str) -> Result<u64, Problem> {
    cursor::parse::<8>(List::Events, field, cursor).map(u64::from_be_bytes)
}

fn place(position: u64) -> String {
    cursor::encode(List::Events, &position.to_be_bytes())
}

fn raw(row: &EventRow) -> Result<Box<RawValue>, Problem> {
    let text = String::from_utf8(row.body.clone()).map_err(|_| Problem::internal())?;
    RawValue::from_string(text).map_err(|_| Problem::internal())
}

/// The event log as server-sent events. Each has the event's cursor as its id; send the last one back as
/// `Last-Event-ID` (or `after`) to go on. Without one, it begins with the next event.
#[utoipa::path(get, path = "/v1/events/stream", tag = "events",
    params(("after" = Option<String>, Query, description = "A cursor"), ("Last-Event-ID" = Option<String>, Header, description = "A cursor; counts before `after`")),
    responses((status = 200, description = "The stream", content_type = "text/event-stream", body = String), Refusals), security(("key" = ["read"])))]
pub(super) async fn stream_events(
    State(state): State<AppState>,
    _: Reads,
    headers: HeaderMap,
    mut parameters: Parameters,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let after = parameters.text("after")?;
    parameters.finish()?;
    let last = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?").to_owned());
    let from = match (last.filter(|text| !text.is_empty()), after) {
        (Some(text), _) => position("Last-Event-ID", &text)?,
        (None, Some(text)) => position("after", &text)?,
        (None, None) => state.store.read(event::last_position).await?,
    };
    Ok(Sse::new(follow(state, from)))
}

struct Follower {
    state: AppState,
    position: u64,
    ready: VecDeque<EventRow>,
    announcements: Listener,
    ends_at: Duration,
}

/// Every event after `from`, as they come, with a heartbeat between them.
pub(crate) fn follow(state: AppState, from: u64) -> impl Stream<Item = Result<Event, Infallible>> {
    let announcements = state.store.listen(Topic::Events);
    let ends_at = state.clock.monotonic() + STREAM_LIFE;
    let follower = Follower { state, position: from, ready: VecDeque::new(), announcements, ends_at };
    stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok(event), follower))
    })
}

impl Follower {
    async fn next(&mut self) -> Option<Event> {
        if self.ready.is_empty() {
            self.read().await?;
        }
        if let Some(row) = self.ready.pop_front() {
            self.position = row.position;
            let body = String::from_utf8(row.body).ok()?;
            return Some(Event::default().id(place(row.position)).event(row.kind.as_str()).data(body));
        }
        if self.state.clock.monotonic() >= self.ends_at {
            return None;
        }
        self.wait().await
    }

    async fn read(&mut self) -> Option<()> {
        let after = self.position;
        let rows = self.state.store.read(move |query| event::list_after(query, after, STREAM_PAGE)).await;
        match rows {
            Ok(rows) => self.ready.extend(rows),
            Err(error) => {
                tracing::warn!(%error, "an event stream ends: the log cannot be read");
                return None;
            }
        }
        Some(())
    }

    /// Waits for news or a heartbeat; either is followed by another look at the log.
    async fn wait(&mut self) -> Option<Event> {
        let alarm = self.state.clock.sleep(HEARTBEAT);
        let stopping = std::pin::pin!(self.state.stopping());
        let heard = std::pin::pin!(self.announcements.heard());
        match select(stopping, select(heard, alarm)).await {
            Either::Left(_) => None,
            Either::Right((Either::Left(_), _)) => Some(Event::default().comment("news")),
            Either::Right((Either::Right(_), _)) => Some(Event::default().comment("alive")),
        }
    }
}

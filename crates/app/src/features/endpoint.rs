//! Where merchants want to be told: registering, changing and removing endpoints, and sending again what was given up.
//!
//! Guarantees: a target that would be refused when sending is refused at registration; a rotated secret keeps signing beside
//! the new one for a day; replaying sends the same event with the same id and bytes, flagged as out of order.

use std::time::Duration;

use domain::delivery::DeliveryState;
use domain::event::Subscription;
use domain::id::{DeliveryId, EndpointId};
use domain::time::Timestamp;
use durable::store::delivery::DeliveryRow;
use durable::store::endpoint::EndpointRow;
use durable::store::secret::SecretBytes;
use durable::store::{Query, StoreError, Tx, delivery, endpoint};
use outside::http::{AddressPolicy, TargetRefused, check_url};

use crate::reactions;

/// How long a rotated secret keeps signing.
pub const ROTATION_OVERLAP: Duration = Duration::from_secs(24 * 60 * 60);
/// Most endpoints at a time; each event is matched against all of them.
pub const MOST_ENDPOINTS: usize = 1_000;

/// An endpoint as asked for.
#[derive(Debug, Clone)]
pub struct NewEndpoint {
    /// Where to send.
    pub url: String,
    /// What to send.
    pub subscriptions: Vec<Subscription>,
    /// The merchant's own words.
    pub description: Option<String>,
}

/// What of an endpoint is to change.
#[derive(Debug, Clone, Default)]
pub struct EndpointChange {
    /// A new target.
    pub url: Option<String>,
    /// New subscriptions.
    pub subscriptions: Option<Vec<Subscription>>,
    /// New words.
    pub description: Option<String>,
    /// Deliver again (`true`) or no longer (`false`).
    pub enabled: Option<bool>,
}

/// Why something was not done to an endpoint or a delivery.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EndpointError {
    /// The store's reason.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The target is one we do not send to.
    #[error("{0}")]
    Target(TargetRefused),
    /// There is no such endpoint.
    #[error("there is no such webhook endpoint")]
    Missing,
    /// There is no such delivery.
    #[error("there is no such delivery")]
    NoDelivery,
    /// Only what was given up can be sent again.
    #[error("the delivery is {0}; only a dead letter can be sent again")]
    NotDead(&'static str),
    /// The endpoint is disabled.
    #[error("the endpoint is disabled; enable it first")]
    Disabled,
    /// There are too many.
    #[error("there are already {MOST_ENDPOINTS} webhook endpoints")]
    TooMany,
}

/// Registers an endpoint, with a fresh secret.
///
/// # Errors
/// [`EndpointError::Target`], [`EndpointError::TooMany`], or the store's.
pub fn create(tx: &mut Tx, new: &NewEndpoint, policy: &AddressPolicy) -> Result<EndpointRow, EndpointError> {
    check_url(&new.url, policy).map_err(EndpointError::Target)?;
    if endpoint::list(tx)?.len() >= MOST_ENDPOINTS {
        return Err(EndpointError::TooMany);
    }
    let row = EndpointRow {
        id: EndpointId::mint(tx.now(), tx.chance()),
        url: new.url.clone(),
        subscriptions: new.subscriptions.clone(),
        description: new.description.clone(),
        secret: fresh_secret(tx),
        old_secrets: Vec::new(),
        disabled: None,
        created_at: tx.now(),
        deleted_at: None,
    };
    endpoint::insert(tx, &row)?;
    Ok(row)
}

fn fresh_secret(tx: &Tx) -> SecretBytes {
    // Standard Webhooks asks for 24 to 64 bytes.
    SecretBytes::from(tx.chance().bytes::<32>().to_vec())
}

fn living(tx: &Tx, id: EndpointId) -> Result<EndpointRow, EndpointError> {
    endpoint::find(tx, id)?.filter(|row| row.deleted_at.is_none()).ok_or(EndpointError::Missing)
}

/// Changes an endpoint. Attempts under way keep the old target; later ones use the new one.
///
/// # Errors
/// [`EndpointError::Missing`], [`EndpointError::Target`], or the store's.
pub fn change(
    tx: &mut Tx,
    id: EndpointId,
    change: &EndpointChange,
    policy: &AddressPolicy,
) -> Result<EndpointRow, EndpointError> {
    let mut row = living(tx, id)?;
    if let Some(url) = &change.url {
        check_url(url, policy).map_err(EndpointError::Target)?;
        row.url.clone_from(url);
    }
    if let Some(subscriptions) = &change.subscriptions {
        row.subscriptions.clone_from(subscriptions);
    }
    if change.description.is_some() {
        row.description.clone_from(&change.description);
    }
    match change.enabled {
        Some(true) => row.disabled = None,
        Some(false) if row.disabled.is_none() => row.disabled = Some("disabled by its owner".to_owned()),
        _ => {}
    }
    endpoint::save(tx, &row)?;
    Ok(row)
}

/// Removes an endpoint: what is still on its way to it becomes dead letters.
///
/// # Errors
/// [`EndpointError::Missing`], or the store's.
pub fn delete(tx: &mut Tx, id: EndpointId) -> Result<(), EndpointError> {
    let mut row = living(tx, id)?;
    row.deleted_at = Some(tx.now());
    endpoint::save(tx, &row)?;
    Ok(())
}

/// Gives an endpoint a new secret; the old one signs beside it for [`ROTATION_OVERLAP`].
///
/// # Errors
/// [`EndpointError::Missing`], or the store's.
pub fn rotate_secret(tx: &mut Tx, id: EndpointId) -> Result<EndpointRow, EndpointError> {
    let mut row = living(tx, id)?;
    let fresh = fresh_secret(tx);
    let old = std::mem::replace(&mut row.secret, fresh);
    let until = tx.now() + ROTATION_OVERLAP;
    endpoint::keep_old_secret(tx, id, &old, until)?;
    endpoint::save(tx, &row)?;
    living(tx, id)
}

/// Sends a dead letter again, now, out of the order of its lane.
///
/// # Errors
/// [`EndpointError::NoDelivery`], [`EndpointError::NotDead`], [`EndpointError::Disabled`], or the store's.
pub fn retry(tx: &mut Tx, id: DeliveryId) -> Result<DeliveryRow, EndpointError> {
    let row = delivery::find(tx, id)?.ok_or(EndpointError::NoDelivery)?;
    if row.state != DeliveryState::Dead {
        return Err(EndpointError::NotDead(row.state.as_str()));
    }
    let endpoint = living(tx, row.endpoint)?;
    if endpoint.disabled.is_some() {
        return Err(EndpointError::Disabled);
    }
    revive(tx, row)
}

fn revive(tx: &mut Tx, mut row: DeliveryRow) -> Result<DeliveryRow, EndpointError> {
    row.state = DeliveryState::Pending;
    row.dead_reason = None;
    row.rejections = 0;
    row.finished_at = None;
    row.replayed = true;
    delivery::save(tx, &row)?;
    reactions::send(tx, &row)?;
    Ok(row)
}

/// What a replay did, or would do.
#[derive(Debug, Clone, Default)]
pub struct Replayed {
    /// The dead letters that are (or would be) sent again, oldest first.
    pub deliveries: Vec<DeliveryRow>,
    /// Dead letters in the range that stay: their endpoint is disabled or deleted.
    pub skipped: Vec<DeliveryRow>,
    /// Where to go on, when there are more than the limit.
    pub next: Option<(Timestamp, DeliveryId)>,
}

/// Sends the dead letters since a time again, at most `limit` of them after the cursor; a dry run only says which.
///
/// # Errors
/// The store's.
pub fn replay(
    tx: &mut Tx,
    since: Timestamp,
    after: Option<(Timestamp, DeliveryId)>,
    limit: u32,
    dry_run: bool,
) -> Result<Replayed, EndpointError> {
    let dead = delivery::list_dead(tx, since, after, limit)?;
    let mut replayed = Replayed::default();
    if dead.len() as u64 >= u64::from(limit)
        && let Some(last) = dead.last()
    {
        replayed.next = last.finished_at.map(|at| (at, last.id));
    }
    for row in dead {
        let deliverable = living(tx, row.endpoint).is_ok_and(|endpoint| endpoint.disabled.is_none());
        match (deliverable, dry_run) {
            (false, _) => replayed.skipped.push(row),
            (true, true) => replayed.deliveries.push(row),
            (true, false) => replayed.deliveries.push(revive(tx, row)?),
        }
    }
    Ok(replayed)
}

//! What follows from what happened: event → work, in one table.
//!
//! Features do not know each other. They tell of an event here, inside their own transaction, and
//! the work that it makes necessary is enqueued in that same transaction.
//!
//! | event | work |
//! |---|---|
//! | any that an endpoint subscribes to | one delivery to it ([`crate::features::webhook`]), in the order of its lane |
//! | a log is disputed | it is asked about again ([`crate::features::claim`]) |
//! | an invoice is made for a recipient that was just paid | the block is read again ([`crate::features::lookback`]) |

use domain::chain::{ChainId, TransferKey};
use domain::delivery::{DeadReason, DeliveryState};
use domain::event::EventType;
use domain::id::{DeliveryId, EndpointId, EventId, InvoiceId};
use durable::engine::{EnqueueOptions, enqueue};
use durable::store::delivery::{DeliveryRow, Lane};
use durable::store::endpoint::EndpointRow;
use durable::store::event::EventRow;
use durable::store::{Query, StoreError, Topic, Tx, counter, delivery, endpoint, event};
use serde::Serialize;

use crate::features::claim::{Recheck, RecheckInput};
use crate::features::lookback::{LookBack, LookBackInput};
use crate::features::webhook::{DEAD_LETTERS, Deliver, DeliverInput};
use crate::view::EventBody;

/// Tells of something that happened to an invoice.
///
/// # Errors
/// The store's.
pub fn tell_of_invoice<D: Serialize>(
    tx: &mut Tx,
    kind: EventType,
    invoice: InvoiceId,
    sequence: u64,
    data: &D,
) -> Result<(), StoreError> {
    publish(tx, kind, Some(invoice), sequence, data, None)
}

/// Tells of something that concerns no single invoice.
///
/// # Errors
/// The store's.
pub fn tell<D: Serialize>(tx: &mut Tx, kind: EventType, data: &D) -> Result<(), StoreError> {
    publish(tx, kind, None, 0, data, None)
}

/// Tells of something about an endpoint, to the others: the endpoint itself is what does not work.
///
/// # Errors
/// The store's.
pub fn tell_except<D: Serialize>(
    tx: &mut Tx,
    kind: EventType,
    data: &D,
    except: EndpointId,
) -> Result<(), StoreError> {
    publish(tx, kind, None, 0, data, Some(except))
}

/// Has a block read and proven again, for a recipient that became somebody's after its payment.
///
/// # Errors
/// The store's.
pub fn look_back(tx: &mut Tx, chain: ChainId, number: u64) -> Result<(), StoreError> {
    let options =
        EnqueueOptions { unique_key: Some(format!("{chain}:{number}")), ..EnqueueOptions::default() };
    enqueue::<LookBack>(tx, &LookBackInput { chain, number }, options)?;
    Ok(())
}

/// Has a disputed claim asked about until evidence closes it.
///
/// # Errors
/// The store's.
pub fn recheck(tx: &mut Tx, key: &TransferKey) -> Result<(), StoreError> {
    let input = RecheckInput { chain: key.chain, tx: key.tx, ordinal: key.ordinal };
    let unique_key = Some(format!("{}:{}:{}", key.chain, key.tx, key.ordinal));
    enqueue::<Recheck>(tx, &input, EnqueueOptions { unique_key, ..EnqueueOptions::default() })?;
    Ok(())
}

fn publish<D: Serialize>(
    tx: &mut Tx,
    kind: EventType,
    subject: Option<InvoiceId>,
    sequence: u64,
    data: &D,
    except: Option<EndpointId>,
) -> Result<(), StoreError> {
    let (id, created_at) = (EventId::mint(tx.now(), tx.chance()), tx.now());
    let body = serde_json::to_vec(&EventBody { id, kind, created_at, sequence, data })
        .map_err(|_| StoreError::damaged("an event's data cannot be spelt as JSON"))?;
    let row = EventRow { position: 0, id, kind, subject, sequence, created_at, body };
    let position = event::append(tx, &row)?;
    tx.announce(Topic::Events);
    for endpoint in endpoint::listed(tx)?.iter() {
        if endpoint.wants(kind) && except != Some(endpoint.id) {
            let subject = subject.map_or(*id.as_bytes(), |invoice| *invoice.as_bytes());
            deliver(tx, endpoint, position, &subject)?;
        }
    }
    Ok(())
}

/// Puts an event on its way to an endpoint: at once, or behind what its lane still holds. An endpoint that is disabled
/// gets a dead letter, so that nothing is lost and all can be replayed when it is back.
fn deliver(tx: &mut Tx, endpoint: &EndpointRow, position: u64, subject: &[u8; 16]) -> Result<(), StoreError> {
    let lane = Lane::new(endpoint.id, subject);
    let busy = delivery::lane_is_busy(tx, lane)?;
    let state = if busy { DeliveryState::Queued } else { DeliveryState::Pending };
    let mut row = DeliveryRow {
        id: DeliveryId::mint(tx.now(), tx.chance()),
        endpoint: endpoint.id,
        event_position: position,
        lane,
        state,
        attempts: 0,
        rejections: 0,
        created_at: tx.now(),
        finished_at: None,
        dead_reason: None,
        last_status: None,
        last_error: None,
        replayed: false,
    };
    delivery::insert(tx, &row)?;
    if endpoint.disabled.is_some() {
        row.state = DeliveryState::Dead;
        row.dead_reason = Some(DeadReason::EndpointDisabled);
        row.finished_at = Some(tx.now());
        counter::add(tx, DEAD_LETTERS, DeadReason::EndpointDisabled.as_str(), 1)?;
        return delivery::save(tx, &row);
    }
    if busy { Ok(()) } else { send(tx, &row) }
}

/// Enqueues the work that sends a pending delivery.
///
/// # Errors
/// The store's.
pub fn send(tx: &mut Tx, row: &DeliveryRow) -> Result<(), StoreError> {
    let options = EnqueueOptions { target: Some(row.endpoint.to_string()), ..EnqueueOptions::default() };
    enqueue::<Deliver>(tx, &DeliverInput { delivery: row.id }, options)?;
    Ok(())
}

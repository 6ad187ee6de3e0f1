//! Telling merchants that fail, refuse, slow down, go away and come back.

use std::time::Duration;

use app::features::endpoint::{self, EndpointChange, EndpointError};
use domain::delivery::{DeadReason, DeliveryState};
use domain::event::EventType;
use domain::id::EndpointId;
use domain::invoice::Status;
use domain::time::Timestamp;
use durable::store::delivery::{self, DeliveryRow, Filter};
use sim::receiver::{Behaviour, Signature};

use crate::world::{Settings, World, recipient};

async fn deliveries(world: &World) -> Vec<DeliveryRow> {
    let mut rows =
        world.app().store.read(|query| delivery::list(query, &Filter::default(), None, 1000)).await.unwrap();
    rows.reverse();
    rows
}

async fn until_all(world: &World, count: usize, state: DeliveryState) -> Vec<DeliveryRow> {
    world
        .until(&format!("{count} deliveries to be {state}"), async || {
            let rows = deliveries(world).await;
            (rows.len() >= count && rows.iter().all(|row| row.state == state)).then_some(rows)
        })
        .await
}

/// Makes and pays an invoice; two events follow.
async fn settle_one(world: &World, number: u8) {
    let to = recipient(number);
    let id = world.create(world.wanted(to, 10)).await;
    world.pay(to, 10);
    world.chain.mine_n(2);
    world.until_status(id, Status::Settled).await;
}

async fn change(world: &World, id: EndpointId, change: EndpointChange) {
    let targets = world.app().targets.clone();
    world.app().store.write(move |tx| endpoint::change(tx, id, &change, &targets)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_receiver_is_tried_again_with_the_same_id_and_bytes_in_order() {
    let world = World::new(Settings::default()).await;
    world.subscribe().await;
    world.merchant.behave("/hook", Behaviour::FailFirst { times: 2, status: 503 });
    settle_one(&world, 1).await;
    let rows = until_all(&world, 2, DeliveryState::Delivered).await;
    assert!(rows.iter().all(|row| row.attempts == 3), "{rows:?}");
    let messages = world.merchant.messages();
    assert_eq!(messages.len(), 2);
    assert!(
        messages.values().all(|message| message.same_body && message.count == 3 && message.accepted == 1)
    );
    let arrivals = world.merchant.arrivals();
    assert!(arrivals.iter().all(|arrival| arrival.signature == Signature::Valid));
    assert!(arrivals.iter().all(|arrival| arrival.idempotency_key == format!("\"{}\"", arrival.id)));
    // The second event does not come before the first was accepted.
    let ids: Vec<&str> = arrivals.iter().map(|arrival| arrival.id.as_str()).collect();
    assert_eq!(ids, [[ids[0]; 3], [ids[3]; 3]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn gone_disables_and_nothing_is_lost() {
    let world = World::new(Settings::default()).await;
    let id = world.subscribe().await;
    world.merchant.behave("/hook", Behaviour::Gone);
    settle_one(&world, 2).await;
    settle_one(&world, 3).await;
    let rows = until_all(&world, 4, DeliveryState::Dead).await;
    let because = |reason| rows.iter().filter(|row| row.dead_reason == Some(reason)).count();
    assert_eq!((because(DeadReason::Gone), because(DeadReason::EndpointDisabled)), (1, 3), "{rows:?}");
    assert_eq!(world.merchant.arrivals().len(), 1, "nothing is sent to an endpoint that said it is gone");
    assert!(world.events().await.iter().any(|event| event.kind == EventType::EndpointDisabled));
    let retried = world.app().store.write({
        let first = rows[0].id;
        move |tx| endpoint::retry(tx, first)
    });
    assert!(matches!(retried.await, Err(EndpointError::Disabled)));

    world.merchant.behave("/hook", Behaviour::Accept);
    change(&world, id, EndpointChange { enabled: Some(true), ..EndpointChange::default() }).await;
    let replay = |dry_run| {
        world.app().store.write(move |tx| endpoint::replay(tx, Timestamp::EPOCH, None, 100, dry_run))
    };
    assert_eq!(replay(true).await.unwrap().deliveries.len(), 4);
    assert!(
        deliveries(&world).await.iter().all(|row| row.state == DeliveryState::Dead),
        "a dry run changes nothing"
    );
    assert_eq!(replay(false).await.unwrap().deliveries.len(), 4);
    until_all(&world, 4, DeliveryState::Delivered).await;
    let messages = world.merchant.messages();
    assert_eq!(messages.len(), 4);
    assert!(messages.values().all(|message| message.same_body));
    // What happens later goes out by itself again.
    settle_one(&world, 4).await;
    until_all(&world, 6, DeliveryState::Delivered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_event_becomes_a_dead_letter_and_opens_its_lane() {
    let world = World::new(Settings::default()).await;
    world.subscribe().await;
    world.merchant.behave("/hook", Behaviour::Answer(400));
    settle_one(&world, 5).await;
    let rows = until_all(&world, 2, DeliveryState::Dead).await;
    assert!(rows.iter().all(|row| row.dead_reason == Some(DeadReason::Rejected)), "{rows:?}");
    assert!(rows.iter().all(|row| row.attempts == 5 && row.last_status == Some(400)));
    let counted = world.app().store.read(durable::store::counter::list).await.unwrap();
    let dead = counted.iter().find(|counter| counter.label == "rejected").unwrap();
    assert_eq!((dead.name.as_str(), dead.value), ("webhook_dlq_total", 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_never_followed() {
    let world = World::new(Settings::default()).await;
    world.subscribe().await;
    world.merchant.behave("/hook", Behaviour::Redirect(world.merchant.url("/elsewhere")));
    settle_one(&world, 6).await;
    until_all(&world, 2, DeliveryState::Dead).await;
    assert!(world.merchant.arrivals().iter().all(|arrival| arrival.path == "/hook"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_silent_endpoint_does_not_hold_up_another() {
    let world = World::new(Settings::default()).await;
    world.subscribe().await;
    let new = endpoint::NewEndpoint {
        url: world.merchant.url("/silent"),
        subscriptions: vec!["invoice.*".parse().unwrap()],
        description: None,
    };
    let targets = world.app().targets.clone();
    world.app().store.write(move |tx| endpoint::create(tx, &new, &targets)).await.unwrap();
    world.merchant.behave("/silent", Behaviour::Silence);
    for number in 10..30 {
        world.create(world.wanted(recipient(number), 10)).await;
        world.pay(recipient(number), 10);
    }
    world.chain.mine_n(2);
    world
        .until("the healthy endpoint to have everything", async || {
            (world.merchant.accepted() >= 40).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_holds_without_burning_attempts_and_lets_go_when_the_merchant_is_back() {
    let world = World::new(Settings::default()).await;
    world.subscribe().await;
    world.merchant.take_down().await;
    for number in 60..85 {
        world.create(world.wanted(recipient(number), 10)).await;
        world.pay(recipient(number), 10);
    }
    world.chain.mine_n(2);
    world
        .until("the breaker to trip", async || {
            let gates = world.app().store.read(durable::engine::gate::list).await.unwrap();
            gates.iter().any(|gate| gate.breaker.as_str() == "tripped").then_some(())
        })
        .await;
    world.clock.sleep(Duration::from_millis(600)).await;
    let tried: u32 = deliveries(&world).await.iter().map(|row| row.attempts).sum();
    assert!(tried < 60, "25 lanes were tried {tried} times while the merchant was away");
    world.merchant.bring_up().await.unwrap();
    until_all(&world, 50, DeliveryState::Delivered).await;
    assert!(world.merchant.messages().values().all(|message| message.same_body));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_secret_signs_beside_the_old_one() {
    let world = World::new(Settings::default()).await;
    let id = world.subscribe().await;
    world.app().store.write(move |tx| endpoint::rotate_secret(tx, id)).await.unwrap();
    settle_one(&world, 7).await;
    until_all(&world, 2, DeliveryState::Delivered).await;
    // The receiver still trusts the old secret only.
    assert!(world.merchant.arrivals().iter().all(|arrival| arrival.signature == Signature::Valid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_endpoint_gets_nothing_more_and_a_forbidden_one_is_refused() {
    let world = World::new(Settings::default()).await;
    let id = world.subscribe().await;
    world.merchant.behave("/hook", Behaviour::Answer(500));
    settle_one(&world, 8).await;
    world.app().store.write(move |tx| endpoint::delete(tx, id)).await.unwrap();
    let rows = until_all(&world, 2, DeliveryState::Dead).await;
    assert!(rows.iter().any(|row| row.dead_reason == Some(DeadReason::EndpointDisabled)));
    for url in [
        "http://169.254.169.254/",
        "http://10.0.0.1/",
        "ftp://example.com/",
        "http://user@example.com/",
        "nonsense",
    ] {
        let new = endpoint::NewEndpoint {
            url: url.to_owned(),
            subscriptions: vec!["*".parse().unwrap()],
            description: None,
        };
        let targets = world.app().targets.clone();
        let made = world.app().store.write(move |tx| endpoint::create(tx, &new, &targets)).await;
        assert!(matches!(made, Err(EndpointError::Target(_))), "{url}");
    }
}

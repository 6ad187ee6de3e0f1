//! Chapter 5: the merchant acts and fails to say so, then is away while invoices settle, then comes back.

use crate::dev::claims::{Stuck, Verdict, millis};
use crate::dev::merchant::Behaviour;
use crate::dev::naive::Issued;
use crate::dev::server::{DeliveryState, PATIENCE};
use crate::dev::tour::Tour;

/// How many invoices settle meanwhile.
const INVOICES: usize = 10;

pub(super) async fn play(tour: &mut Tour) -> Result<(), Stuck> {
    tour.teller.chapter("5. The merchant is away");
    let invoices = tour.invoices(INVOICES).await?;
    ill(tour, &invoices).await?;
    away(tour, &invoices).await?;
    back(tour, &invoices).await
}

/// The merchant acts on what it gets, and answers 500.
async fn ill(tour: &mut Tour, invoices: &[Issued]) -> Result<(), Stuck> {
    let repeats = tour.merchant.look(|books| books.repeats);
    tour.merchant.behave(Behaviour::FailsAfterActing);
    for invoice in &invoices[..INVOICES / 2] {
        tour.pay(invoice)?;
    }
    tour.mine().await;
    let again = tour
        .merchant
        .wait("the same events again", PATIENCE, |books| {
            let again = books.repeats.saturating_sub(repeats);
            (again >= INVOICES as u64 / 2).then_some(again)
        })
        .await?;
    tour.teller.say(format_args!(
        "  It acts on what it gets and answers 500: {again} requests have come again so far.",
    ));
    Ok(())
}

async fn away(tour: &mut Tour, invoices: &[Issued]) -> Result<(), Stuck> {
    tour.merchant.go_away().await;
    for invoice in &invoices[INVOICES / 2..] {
        tour.pay(invoice)?;
    }
    tour.mine().await;
    tour.mine().await;
    let mut wrong = Vec::new();
    for invoice in invoices {
        let seen = tour.settled(invoice).await?;
        if seen.amount_confirmed != tour.world.dollars_of(invoice.recipient).to_string() {
            wrong.push(format!("{}: {}", invoice.id, seen.amount_confirmed));
        }
    }
    let refused = tour
        .server
        .wait("attempts at the closed port", async || {
            let waiting = waiting(tour.server.deliveries().await?);
            let refused = waiting.iter().filter(|one| one.last_error.as_deref() == Some("connect_refused"));
            let (refused, waiting) = (refused.count(), waiting.len());
            Ok(if refused > 0 { Ok((refused, waiting)) } else { Err(format!("{waiting} deliveries wait")) })
        })
        .await?;
    tour.teller.claim(
        "invoices settle all the same while nobody can be told",
        format!("{INVOICES} settled; {} deliveries wait, {} of them met a closed port", refused.1, refused.0),
        Verdict::none("sums as on the chain", &wrong),
    );
    Ok(())
}

fn waiting(deliveries: Vec<DeliveryState>) -> Vec<DeliveryState> {
    deliveries.into_iter().filter(|one| one.status == "pending" || one.status == "queued").collect()
}

async fn back(tour: &mut Tour, invoices: &[Issued]) -> Result<(), Stuck> {
    tour.merchant.behave(Behaviour::Well);
    tour.merchant.come_back().await.map_err(|error| Stuck::new("the merchant's port", error))?;
    let since = tour.clock.monotonic();
    tour.server
        .wait("every delivery is made", async || {
            let left = waiting(tour.server.deliveries().await?).len();
            Ok(if left == 0 { Ok(()) } else { Err(format!("{left} wait")) })
        })
        .await?;
    let took = tour.since(since);

    let deliveries = tour.server.deliveries().await?;
    let mut wrong: Vec<String> = Vec::new();
    let mut most = 0;
    tour.merchant.look(|books| {
        for invoice in invoices {
            let kinds: Vec<&str> = books.about(&invoice.id).map(|message| message.kind.as_str()).collect();
            if kinds != ["invoice.detected", "invoice.settled"] {
                wrong.push(format!("{}: {kinds:?}", invoice.id));
            }
            for message in books.about(&invoice.id) {
                let found = deliveries.iter().find(|one| one.event_id.as_ref() == Some(&message.id));
                most = most.max(found.map_or(0, |one| one.attempts));
            }
        }
        wrong.extend(books.altered.iter().map(|id| format!("{id} came with other bytes")));
    });
    let dead = deliveries.iter().filter(|one| one.status == "dead").count();
    tour.teller.claim(
        "when it is back everything is delivered, once acted on, in order, every attempt with the same id and bytes",
        format!("all within {}, at most {most} attempts for one event, {dead} dead letters", millis(took)),
        Verdict::none("detected, then settled", &wrong).and(Verdict::same(0, dead)).and(Verdict::that(
            most > 1,
            "more than one attempt",
            most,
        )),
    );
    Ok(())
}

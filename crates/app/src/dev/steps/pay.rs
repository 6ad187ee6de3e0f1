//! Chapter 1: an invoice is made, paid, settled and told of, in a world that works.

use alloy_primitives::U256;

use crate::dev::claims::{Stuck, Verdict, millis};
use crate::dev::server::NewInvoice;
use crate::dev::tour::Tour;

pub(super) async fn play(tour: &mut Tour) -> Result<(), Stuck> {
    tour.teller.chapter("1. An invoice is paid");
    let invoice = tour.invoice().await?;
    again_is_the_same(tour, &invoice.id, invoice.amount).await?;

    tour.pay(&invoice)?;
    let block = tour.mine().await;
    let detected = tour.told(&invoice, "invoice.detected", 1).await?;
    tour.teller.say(format_args!(
        "  The payment is in block {}; the merchant hears of it {} later.",
        block.number,
        millis(detected.at.saturating_sub(block.at)),
    ));

    let confirming = tour.mine().await;
    let seen = tour.settled(&invoice).await?;
    let settled_in = seen.settled_at.map(|at| at.since(confirming.wall)).unwrap_or_default();
    let balance = tour.world.dollars_of(invoice.recipient);
    tour.teller.claim(
        "the invoice is settled with exactly what the recipient has on the chain",
        format!(
            "{} base units; settled {} after the confirming block",
            seen.amount_confirmed,
            millis(settled_in)
        ),
        Verdict::same(balance.to_string(), seen.amount_confirmed.clone())
            .and(Verdict::same(invoice.amount, balance))
            .and(Verdict::that(
                seen.settlement_key.as_deref().is_some_and(|key| key.starts_with(&seen.id)),
                "a settlement key",
                "none",
            )),
    );

    let told = tour.told(&invoice, "invoice.settled", 1).await?;
    let refused = tour.merchant.look(|books| books.refused.clone());
    let order = tour.merchant.look(|books| books.orders.get(&invoice.id).copied().unwrap_or_default());
    tour.teller.claim(
        "the merchant was told by a webhook whose signature it checked itself, and ships once",
        format!("{} after the confirming block", millis(told.at.saturating_sub(confirming.at))),
        Verdict::none("no refused signature", &refused)
            .and(Verdict::that(order.paid, "a paid order", "an unpaid one"))
            .and(Verdict::same(1, order.settled)),
    );
    Ok(())
}

/// The client did not get the answer and asks again with the same key.
async fn again_is_the_same(tour: &mut Tour, id: &str, amount: U256) -> Result<(), Stuck> {
    let Some(issued) = tour.issued.last() else { return Ok(()) };
    let reference = format!("order-{}", tour.issued.len());
    let new = NewInvoice { amount, recipient: issued.recipient, reference: &reference };
    let repeated = tour.server.create_invoice(new, &reference).await?;
    let count = tour.server.invoices().await?.len();
    tour.teller.claim(
        "asking again with the same idempotency key makes no second invoice",
        format!("{count} invoice"),
        Verdict::same(id, repeated.id.as_str()).and(Verdict::same(tour.issued.len(), count)),
    );
    Ok(())
}

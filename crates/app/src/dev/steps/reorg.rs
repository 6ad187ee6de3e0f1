//! Chapter 3: the chain takes two payments back; one returns in another block, one never does.

use devchain::{Reorg, Replay};

use crate::dev::claims::{Stuck, Verdict, millis};
use crate::dev::naive::Issued;
use crate::dev::server::Invoice;
use crate::dev::tour::Tour;

/// The two invoices whose payments the chain took back.
pub(super) struct Reorged {
    /// Its payment came again.
    pub(super) returns: Issued,
    /// Its payment did not.
    pub(super) vanishes: Issued,
}

pub(super) async fn play(tour: &mut Tour) -> Result<Reorged, Stuck> {
    tour.teller.chapter("3. A reorganisation takes payments away");
    let returns = tour.invoice().await?;
    let vanishes = tour.invoice().await?;
    tour.pay(&returns)?;
    let gone = tour.pay(&vanishes)?;
    let first = tour.mine().await;
    tour.mine().await;
    for invoice in [&returns, &vanishes] {
        tour.settled(invoice).await?;
        tour.told(invoice, "invoice.settled", 1).await?;
    }

    let reorg = Reorg { depth: 2, new_length: 3, replay: Replay::Pool };
    let reorged = tour.world.chain.reorg_with(reorg).map_err(|error| Stuck::new("a reorg", error))?;
    tour.world.chain.drop_pending(gone);
    let at = tour.clock.monotonic();
    tour.teller.say(format_args!(
        "  Both are settled when the chain drops blocks {} and {} for {} others: {} transactions are in no block now.",
        first.number,
        first.number + 1,
        reorged.added.len(),
        reorged.lost.len(),
    ));
    taken_back(tour, &returns, &vanishes, at).await?;
    tour.look_naively().await;

    let back = tour.mine().await;
    tour.mine().await;
    let seen = tour.settled(&returns).await?;
    tour.told(&returns, "invoice.settled", 2).await?;
    let order = tour.merchant.look(|books| books.orders.get(&returns.id).copied().unwrap_or_default());
    let block = seen.payments.first().map(|payment| payment.block);
    tour.teller.claim(
        "the payment that came back in another block settles again, and is counted once",
        format!("first in block {}, now in block {}", first.number, back.number),
        Verdict::same(tour.world.dollars_of(returns.recipient).to_string(), seen.amount_confirmed.clone())
            .and(Verdict::same(1, seen.payments.len()))
            .and(Verdict::same(format!("{:?}", Some(back.number)), format!("{block:?}")))
            .and(Verdict::that(
                order.paid && order.reverted == 1,
                "paid, after one reversal",
                format!("{order:?}"),
            )),
    );

    let never = tour.server.invoice(&vanishes.id).await?;
    let order = tour.merchant.look(|books| books.orders.get(&vanishes.id).copied().unwrap_or_default());
    tour.teller.claim(
        "the payment that never came back is not counted, and the merchant does not ship",
        format!("{} on the chain", tour.world.dollars_of(vanishes.recipient)),
        Verdict::same("open 0".to_owned(), standing(&never)).and(Verdict::that(
            !order.paid,
            "an unpaid order",
            "a paid one",
        )),
    );
    Ok(Reorged { returns, vanishes })
}

async fn taken_back(
    tour: &mut Tour,
    returns: &Issued,
    vanishes: &Issued,
    at: std::time::Duration,
) -> Result<(), Stuck> {
    let mut told_at = at;
    for invoice in [returns, vanishes] {
        told_at = told_at.max(tour.told(invoice, "invoice.reverted", 1).await?.at);
    }
    let (one, other) = (tour.server.invoice(&returns.id).await?, tour.server.invoice(&vanishes.id).await?);
    tour.teller.claim(
        "both invoices are reverted, visibly, and the merchant is told",
        format!("{} after the reorganisation", millis(told_at.saturating_sub(at))),
        Verdict::same("open 0".to_owned(), standing(&one))
            .and(Verdict::same("open 0".to_owned(), standing(&other)))
            .and(Verdict::that(one.reverted && other.reverted, "the flag `reverted`", "none"))
            .and(Verdict::same("0".to_owned(), tour.world.dollars_of(returns.recipient).to_string())),
    );
    Ok(())
}

fn standing(invoice: &Invoice) -> String {
    format!("{} {}", invoice.status, invoice.amount_paid)
}

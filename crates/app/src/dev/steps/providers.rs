//! Chapter 2: providers are down, lie and return nothing, until too few are left to know anything.

use devchain::token::CONTRACTS;
use devchain::{Faults, ForgedBlock, ForgedTransfer, ReceiptsLie};

use crate::dev::claims::{Stuck, Verdict, millis};
use crate::dev::naive::Issued;
use crate::dev::tour::Tour;
use crate::dev::world::{ALPHA, BETA, DELTA, EPSILON, GAMMA, GROUPS};

/// Answers the invoice that was paid while one honest provider was left.
pub(super) async fn play(tour: &mut Tour) -> Result<Issued, Stuck> {
    tour.teller.chapter("2. Providers fail and lie");
    let victim = tour.invoice().await?;
    one_down_one_lying(tour, &victim).await?;
    let hard_won = two_return_nothing(tour).await?;
    too_few(tour).await?;
    let unpaid = tour.server.invoice(&victim.id).await?;
    let told: Vec<String> =
        tour.merchant.look(|books| books.about(&victim.id).map(|message| message.kind.clone()).collect());
    tour.teller.claim(
        "the payment that the liar invented was never believed, not for a moment",
        format!("open, {} paid, nothing told of it", unpaid.amount_paid),
        Verdict::same("open 0".to_owned(), format!("{} {}", unpaid.status, unpaid.amount_paid))
            .and(Verdict::none("no event about it", &told)),
    );
    Ok(hard_won)
}

/// Has a provider show a made-up branch from the next block on: consistent in every hash, with a payment to `victim`
/// that nobody made and without those that were made.
pub(super) fn forge(tour: &Tour, provider: usize, victim: &Issued) {
    let forged = ForgedBlock {
        number: tour.world.chain.head().number.saturating_add(1),
        transfers: vec![ForgedTransfer {
            token: CONTRACTS.dollar,
            from: tour.world.chain.account(1).address(),
            to: victim.recipient,
            value: victim.amount,
        }],
        drop_transactions: true,
    };
    tour.world.faces[provider].set_faults(Faults { forge_blocks: vec![forged], ..Faults::default() });
}

async fn one_down_one_lying(tour: &mut Tour, victim: &Issued) -> Result<(), Stuck> {
    let paid = tour.invoice().await?;
    tour.world.faces[ALPHA].stop().await;
    forge(tour, BETA, victim);
    tour.teller.say(format_args!(
        "  {} is down. {} shows a chain of its own, right in every hash, in which {} was paid and {} was not.",
        GROUPS[ALPHA], GROUPS[BETA], victim.id, paid.id,
    ));
    tour.pay(&paid)?;
    tour.mine().await;
    let confirming = tour.mine().await;
    let seen = tour.settled(&paid).await?;
    let settled_in = seen.settled_at.map(|at| at.since(confirming.wall)).unwrap_or_default();
    let balance = tour.world.dollars_of(paid.recipient);
    tour.teller.claim(
        "with one provider down and one lying, the real payment settles exactly",
        format!("{} after the confirming block", millis(settled_in)),
        Verdict::same(balance.to_string(), seen.amount_confirmed),
    );
    let caught = tour
        .server
        .wait("the liar is caught", async || {
            let providers = tour.server.providers().await?;
            let faults = |group: &str| -> u64 {
                providers.iter().filter(|one| one.group == group).flat_map(|one| one.faults.values()).sum()
            };
            let liar = faults(GROUPS[BETA]);
            Ok(if liar > 0 { Ok((liar, faults(GROUPS[EPSILON]))) } else { Err("no fault".to_owned()) })
        })
        .await?;
    tour.teller.claim(
        "the liar is named, and an honest provider is not",
        format!("{} was caught {} times", GROUPS[BETA], caught.0),
        Verdict::same(0, caught.1),
    );
    Ok(())
}

async fn two_return_nothing(tour: &mut Tour) -> Result<Issued, Stuck> {
    let paid = tour.invoice().await?;
    for provider in [GAMMA, DELTA] {
        tour.world.faces[provider].set_faults(Faults {
            empty_logs: true,
            receipts: Some(ReceiptsLie::Empty),
            ..Faults::default()
        });
    }
    tour.teller.say(format_args!(
        "  Now {} and {} answer [] to every question about logs and receipts as well. {} alone is honest.",
        GROUPS[GAMMA], GROUPS[DELTA], GROUPS[EPSILON],
    ));
    tour.pay(&paid)?;
    tour.mine().await;
    let confirming = tour.mine().await;
    let seen = tour.settled(&paid).await?;
    let settled_in = seen.settled_at.map(|at| at.since(confirming.wall)).unwrap_or_default();
    let level =
        seen.payments.first().map_or("no payment", |payment| payment.evidence_level.as_str()).to_owned();
    let balance = tour.world.dollars_of(paid.recipient);
    tour.teller.claim(
        "with one down, one lying and two returning nothing, the receipts of the one honest provider prove the payment",
        format!("{level}, {} after the confirming block", millis(settled_in)),
        Verdict::same(balance.to_string(), seen.amount_confirmed).and(Verdict::same("VERIFIED".to_owned(), level)),
    );
    Ok(paid)
}

/// Below the quorum nothing is concluded, and the state says so.
async fn too_few(tour: &mut Tour) -> Result<(), Stuck> {
    let paid = tour.invoice().await?;
    let before = tour.server.chain().await?.last_processed_block;
    tour.world.faces[EPSILON].stop().await;
    tour.teller
        .say(format_args!("  Then {} goes down as well: nobody can know anything now.", GROUPS[EPSILON]));
    tour.pay(&paid)?;
    tour.mine().await;
    tour.mine().await;
    let stalled = tour
        .server
        .wait("the chain is said to be stalled", async || {
            let chain = tour.server.chain().await?;
            Ok(if chain.stalled.is_some() { Ok(chain) } else { Err("not stalled".to_owned()) })
        })
        .await?;
    let lost = tour.merchant.wait("quorum.lost", crate::dev::server::PATIENCE, |books| {
        books.inbox.iter().any(|message| message.kind == "quorum.lost").then_some(())
    });
    lost.await?;
    let waiting = tour.server.invoice(&paid.id).await?;
    tour.teller.claim(
        "below the quorum nothing settles, the cursor stands still, and the state and a webhook say so",
        format!(
            "last processed block {}, {} blocks behind",
            shown(stalled.last_processed_block),
            tour.world.chain.head().number.saturating_sub(stalled.last_processed_block.unwrap_or_default()),
        ),
        Verdict::same(shown(before), shown(stalled.last_processed_block))
            .and(Verdict::same("open".to_owned(), waiting.status)),
    );

    tour.world.heal().await.map_err(|error| Stuck::new("the providers come back", error))?;
    let healed = tour.clock.monotonic();
    let seen = tour.settled(&paid).await?;
    let restored = tour.merchant.wait("quorum.restored", crate::dev::server::PATIENCE, |books| {
        books.inbox.iter().any(|message| message.kind == "quorum.restored").then_some(())
    });
    restored.await?;
    let balance = tour.world.dollars_of(paid.recipient);
    tour.teller.claim(
        "when they come back, the payment that was made meanwhile settles by itself",
        format!("{} after they came back", millis(tour.since(healed))),
        Verdict::same(balance.to_string(), seen.amount_confirmed),
    );
    tour.look_naively().await;
    Ok(())
}

fn shown(height: Option<u64>) -> String {
    height.map_or_else(|| "none".to_owned(), |height| height.to_string())
}

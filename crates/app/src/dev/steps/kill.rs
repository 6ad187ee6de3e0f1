//! Chapter 4: the server is killed with SIGKILL in the middle of many payments, and started again.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::U256;
use domain::chain::ChainId;
use domain::chance::Chance;
use durable::store::{Access, Store, StoreOptions, block};

use crate::dev::claims::{Stuck, Verdict, millis};
use crate::dev::merchant::{Behaviour, Books};
use crate::dev::naive::{Issued, Naive};
use crate::dev::server::PATIENCE;
use crate::dev::tour::Tour;
use crate::dev::world::CHAIN_ID;

/// How many invoices are under way.
const INVOICES: usize = 40;
/// The server dies when the merchant has acted on so many of their events.
const KILL_AFTER: usize = 12;
/// How long the merchant takes for each: some requests are under way when the server dies.
const MERCHANT_TAKES: Duration = Duration::from_millis(25);
/// Restart to first resumed work. A build without optimisation is given more time.
const RESUMES_WITHIN: Duration = Duration::from_millis(if cfg!(debug_assertions) { 3000 } else { 1000 });

pub(super) async fn play(tour: &mut Tour) -> Result<(), Stuck> {
    tour.teller.chapter("4. The server is killed in the middle");
    let invoices = tour.invoices(INVOICES).await?;
    let (before, after) = invoices.split_at(INVOICES / 2);

    tour.merchant.behave(Behaviour::Slow(MERCHANT_TAKES));
    for invoice in before {
        tour.pay(invoice)?;
    }
    tour.world.mine();
    tour.world.mine();
    let acted = tour
        .merchant
        .wait("a part of the events", PATIENCE, |books| {
            let acted = events_about(books, &invoices);
            (acted >= KILL_AFTER).then_some(acted)
        })
        .await?;
    let process = tour.server.process().unwrap_or_default();
    tour.server.kill().await;
    tour.merchant.behave(Behaviour::Well);
    let cursor = cursor_on_disk(tour).await?;
    tour.teller.say(format_args!(
        "  {INVOICES} invoices; {} are paid in two blocks; the merchant has acted on {acted} events: kill -9 {process}.",
        before.len(),
    ));

    tour.look_naively().await;
    tour.naive.iter_mut().for_each(Naive::restart);
    for invoice in after {
        tour.pay(invoice)?;
    }
    tour.world.mine();
    let last = tour.world.mine();
    tour.teller.say(format_args!(
        "  The other {} are paid while it is dead. On disk the last processed block is {cursor}; the chain is at {}.",
        after.len(),
        last.number,
    ));

    let resumed = restart(tour).await?;
    tour.teller.claim(
        "the restarted server asks for the block after the last one it had processed, and for none before it",
        format!("block {}", resumed.lowest),
        Verdict::same(cursor + 1, resumed.lowest),
    );
    tour.teller.claim(
        format!("it works again within {} of its start", millis(RESUMES_WITHIN)),
        format!("first block asked for after {}", millis(resumed.took)),
        Verdict::that(resumed.took <= RESUMES_WITHIN, millis(RESUMES_WITHIN), millis(resumed.took)),
    );
    tour.server.ready().await?;
    tour.look_naively().await;
    settled_once_each(tour, &invoices).await
}

fn events_about(books: &Books, invoices: &[Issued]) -> usize {
    let about = |id: &String| invoices.iter().any(|invoice| invoice.id == *id);
    books.inbox.iter().filter(|message| message.invoice.as_ref().is_some_and(about)).count()
}

/// What the dead process left: its database is read beside it, as an administrator would.
async fn cursor_on_disk(tour: &Tour) -> Result<u64, Stuck> {
    let expected = "the database of the dead server can be read";
    let chance = Chance::from_system().map_err(|error| Stuck::new(expected, error))?;
    let options = StoreOptions { access: Access::Guest, ..StoreOptions::default() };
    let store = Store::open(&tour.server.database, options, Arc::clone(&tour.clock), chance)
        .map_err(|error| Stuck::new(expected, error))?;
    let cursor = store
        .read(|query| block::find_cursor(query, ChainId::eip155(CHAIN_ID)))
        .await
        .map_err(|error| Stuck::new(expected, error))?;
    cursor.map(|cursor| cursor.block.number).ok_or_else(|| Stuck::new("a cursor", "none"))
}

struct Resumed {
    /// The lowest block that was asked for by number.
    lowest: u64,
    /// From the start of the process to the first such question.
    took: Duration,
}

async fn restart(tour: &mut Tour) -> Result<Resumed, Stuck> {
    tour.world.faces.iter().for_each(|face| face.clear_requests());
    let started = tour.clock.monotonic();
    tour.server.spawn()?;
    tour.server
        .wait("the restarted server asks for a block", async || {
            let asked = lowest_block_asked(tour).is_some();
            Ok(if asked { Ok(()) } else { Err("no question".to_owned()) })
        })
        .await?;
    let took = tour.since(started);
    tour.server.ready().await?;
    let caught_up = tour.world.chain.head().number;
    tour.server
        .wait("the restarted server catches up", async || {
            let reached = tour.server.chain().await?.last_processed_block;
            Ok(if reached == Some(caught_up) { Ok(()) } else { Err(format!("{reached:?}")) })
        })
        .await?;
    let lowest = lowest_block_asked(tour).unwrap_or_default();
    Ok(Resumed { lowest, took })
}

/// The lowest block that any provider was asked for by its number.
fn lowest_block_asked(tour: &Tour) -> Option<u64> {
    let calls = tour.world.faces.iter().flat_map(|face| face.calls());
    calls
        .filter(|call| call.method == "eth_getBlockByNumber")
        .filter_map(|call| {
            let number = call.params.get(0)?.as_str()?.strip_prefix("0x")?.to_owned();
            u64::from_str_radix(&number, 16).ok()
        })
        .min()
}

async fn settled_once_each(tour: &mut Tour, invoices: &[Issued]) -> Result<(), Stuck> {
    let mut wrong = Vec::new();
    for invoice in invoices {
        let seen = tour.settled(invoice).await?;
        tour.told(invoice, "invoice.settled", 1).await?;
        let balance = tour.world.dollars_of(invoice.recipient).to_string();
        if seen.amount_confirmed != balance || seen.amount_paid != balance || seen.payments.len() != 1 {
            let counted = (seen.amount_paid, seen.amount_confirmed, seen.payments.len());
            wrong.push(format!("{}: {balance} on the chain, counted {counted:?}", invoice.id));
        }
    }
    let total: U256 = invoices.iter().map(|one| tour.world.dollars_of(one.recipient)).sum();
    tour.teller.claim(
        format!("each of the {} invoices is settled exactly once, none is lost", invoices.len()),
        format!("{total} base units on the chain"),
        Verdict::none("every sum as on the chain", &wrong),
    );

    let told = tour.merchant.look(|books| {
        let count = |invoice: &&Issued| books.count(&invoice.id, "invoice.settled") == 1;
        (invoices.iter().filter(count).count(), books.repeats, books.altered.clone())
    });
    tour.teller.claim(
        "the merchant acted on each settlement once; what was under way at the kill came again under the same id with the same bytes",
        format!("{} requests came again", told.1),
        Verdict::same(invoices.len(), told.0).and(Verdict::none("no changed bytes", &told.2)),
    );
    Ok(())
}

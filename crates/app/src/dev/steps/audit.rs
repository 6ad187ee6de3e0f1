//! Chapter 7: the whole run is audited against the chain and the merchant, and compared with what naive readers made of it.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::U256;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::reorg::Reorged;
use super::{PAID, RETURNED, VANISHED};
use crate::dev::claims::{Stuck, Verdict};
use crate::dev::merchant::Books;
use crate::dev::naive::{Comparison, Issued, compare};
use crate::dev::server::{Invoice, PATIENCE};
use crate::dev::tour::Tour;

#[derive(Deserialize)]
struct Event {
    id: String,
}

pub(super) async fn play(tour: &mut Tour, reorged: &Reorged) -> Result<Vec<Comparison>, Stuck> {
    tour.teller.chapter("7. The books, and what others would have made of the same run");
    let invoices = tour.server.invoices().await?;
    let log = EventLog::read(tour).await?;
    every_sum(tour, &invoices);
    every_event(tour, &log);
    every_story(tour, reorged);
    let repeated = tour.server.repeated();
    if repeated > 0 {
        tour.teller
            .say(format_args!("  ({repeated} API calls got no answer and were repeated with the same key.)"));
    }
    let comparison = compared(tour, &invoices);
    table(tour, &comparison);
    let (ours, naive) = comparison.split_first().ok_or_else(|| Stuck::new("a comparison", "none"))?;
    tour.teller.claim(
        "the product lost, invented, doubled and forgot nothing",
        format!("{} of {} invoices settled", ours.credited, tour.issued.len()),
        Verdict::that(ours.is_clean(), "nothing wrong", format!("{ours:?}")),
    );
    let clean: Vec<String> =
        naive.iter().filter(|one| one.is_clean()).map(|one| one.reader.clone()).collect();
    tour.teller.claim(
        "every naive reader of the same run went wrong",
        format!("{} readers", naive.len()),
        Verdict::none("a mistake of each", &clean),
    );
    Ok(comparison)
}

/// The durable event log. Something may happen at any time, so what the merchant had heard is noted before the log
/// is read, and what the log holds is waited for after.
struct EventLog {
    heard: Vec<String>,
    events: BTreeMap<String, Box<RawValue>>,
}

impl EventLog {
    async fn read(tour: &Tour) -> Result<Self, Stuck> {
        let ids = |books: &Books| books.inbox.iter().map(|message| message.id.clone()).collect();
        let heard: Vec<String> = tour.merchant.look(ids);
        let mut events = BTreeMap::new();
        for event in tour.server.events().await? {
            let Event { id } = serde_json::from_str(event.get())
                .map_err(|error| Stuck::new("an event with an id", error))?;
            events.insert(id, event);
        }
        tour.merchant
            .wait("every event", PATIENCE, |books| {
                let known: BTreeSet<&str> = books.inbox.iter().map(|message| message.id.as_str()).collect();
                events.keys().all(|id| known.contains(id.as_str())).then_some(())
            })
            .await?;
        Ok(Self { heard, events })
    }
}

fn every_sum(tour: &mut Tour, invoices: &[Invoice]) {
    let by_id: BTreeMap<&str, &Invoice> = invoices.iter().map(|one| (one.id.as_str(), one)).collect();
    let mut wrong = Vec::new();
    let mut total = U256::ZERO;
    for issued in &tour.issued {
        let balance = tour.world.dollars_of(issued.recipient);
        total = total.saturating_add(balance);
        let expected = if balance.is_zero() { "open" } else { "settled" };
        match by_id.get(issued.id.as_str()) {
            Some(seen)
                if seen.amount_paid == balance.to_string()
                    && seen.amount_confirmed == seen.amount_paid
                    && seen.status == expected => {}
            Some(seen) => wrong.push(format!(
                "{}: {balance} on the chain, {} {} here",
                issued.id, seen.status, seen.amount_paid
            )),
            None => wrong.push(format!("{} is missing", issued.id)),
        }
    }
    tour.teller.claim(
        "the sum and state of every invoice are what the chain says, to the last unit",
        format!("{} invoices, {total} base units", tour.issued.len()),
        Verdict::none("no difference", &wrong),
    );
}

/// The durable event log and the merchant's inbox hold the same bytes.
fn every_event(tour: &mut Tour, log: &EventLog) {
    let unknown = log.heard.iter().filter(|id| !log.events.contains_key(*id));
    let mut wrong: Vec<String> = unknown.map(|id| format!("{id} is not in the log")).collect();
    let (repeats, refused) = tour.merchant.look(|books| {
        for message in &books.inbox {
            let logged = log.events.get(&message.id).map(|event| event.get().as_bytes());
            if logged.is_some_and(|bytes| bytes != message.body) {
                wrong.push(format!("{} has other bytes at the merchant", message.id));
            }
        }
        wrong.extend(books.altered.iter().map(|id| format!("{id} came with other bytes")));
        (books.repeats, books.refused.clone())
    });
    tour.teller.claim(
        "every event of the log reached the merchant, byte for byte, with a signature that held",
        format!("{} events, {repeats} requests came more than once and were recognised", log.events.len()),
        Verdict::none("no difference", &wrong).and(Verdict::none("no refused signature", &refused)),
    );
}

/// Per invoice: nothing but what happened was told, not even for a moment, as 1, 2, 3, … in that order.
fn every_story(tour: &mut Tour, reorged: &Reorged) {
    let mut wrong = Vec::new();
    let mut longest = 0;
    for invoice in &tour.issued {
        let expected = match &invoice.id {
            id if *id == reorged.returns.id => RETURNED,
            id if *id == reorged.vanishes.id => VANISHED,
            _ if tour.world.dollars_of(invoice.recipient).is_zero() => &[],
            _ => PAID,
        };
        longest = longest.max(expected.len());
        tour.merchant.look(|books| {
            let told: Vec<(u64, &str)> =
                books.about(&invoice.id).map(|one| (one.sequence, one.kind.as_str())).collect();
            if told != (1..).zip(expected.iter().copied()).collect::<Vec<_>>() {
                wrong.push(format!("{}: {told:?}", invoice.id));
            }
        });
    }
    tour.teller.claim(
        "of each invoice the merchant was told what happened and nothing else, in order and without a gap",
        format!("up to {longest} events for one invoice"),
        Verdict::none("detected and settled; reverted where the chain took back", &wrong),
    );
}

/// The product first, then one naive reader for each provider; all by the same measure.
fn compared(tour: &Tour, invoices: &[Invoice]) -> Vec<Comparison> {
    let settled: BTreeMap<&str, U256> = invoices
        .iter()
        .filter(|one| one.status == "settled")
        .map(|one| (one.id.as_str(), one.amount_confirmed.parse().unwrap_or_default()))
        .collect();
    let paid = |one: &Issued| tour.world.dollars_of(one.recipient);
    tour.merchant.look(|books| {
        let ours = compare(
            "quittance",
            &tour.issued,
            paid,
            |one| settled.get(one.id.as_str()).copied().unwrap_or_default(),
            |one| books.orders.get(&one.id).is_some_and(|order| order.paid),
        );
        let naive = tour.naive.iter().map(|reader| {
            compare(
                &format!("naive on {}", reader.name()),
                &tour.issued,
                paid,
                |one| reader.credited_to(one.recipient),
                |one| books.told.get(reader.name()).is_some_and(|told| told.contains(&one.id)),
            )
        });
        std::iter::once(ours).chain(naive).collect()
    })
}

fn table(tour: &mut Tour, rows: &[Comparison]) {
    tour.teller.say(
        "  A naive watcher (one provider, its logs believed, no memory of transactions, one webhook without retry),\n  run on each provider during this tour; the last two columns are base units credited beyond or short of what was paid:",
    );
    tour.teller.say(format_args!(
        "    {:<18}{:>9}{:>7}{:>10}{:>9}{:>8}{:>13}{:>13}",
        "", "credited", "lost", "invented", "doubled", "untold", "too much", "too little"
    ));
    for row in rows {
        tour.teller.say(format_args!(
            "    {:<18}{:>9}{:>7}{:>10}{:>9}{:>8}{:>13}{:>13}",
            row.reader,
            row.credited,
            row.lost,
            row.invented,
            row.doubled,
            row.untold,
            row.credited_too_much,
            row.credited_too_little,
        ));
    }
}

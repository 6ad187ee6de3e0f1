//! The judge: compares the process's books with the chain itself and with what merchants received.
//!
//! Guarantees: nothing here asks the code that made a promise whether it was kept. Transfers are read from the chain's own
//! blocks, balances from its contracts, webhooks from the merchants' memory. Each finding is a sentence that names its
//! subject, and none of the checks stops at the first.
//!
//! Deliberately absent: opinions while the storm lasts. What has to hold at every moment is checked by
//! [`crate::world`] as it happens; the books are judged when all is well again.

use std::collections::{BTreeMap, BTreeSet};

use alloy_consensus::Transaction as _;
use alloy_primitives::{Address, B256, U256};
use app::compose::App;
use app::features::evidence;
use devchain::token::TRANSFER_EVENT;
use devchain::{Block, Devchain};
use domain::chain::{Asset, BlockRef, ChainId, Transfer, TransferKey};
use domain::delivery::DeliveryState;
use domain::event::EventType;
use domain::id::{EndpointId, EventId, InvoiceId};
use domain::invoice::{Invoice, Status, Tally};
use domain::money::Amount;
use domain::payment::Stage;
use domain::time::Timestamp;
use durable::engine::{self, Job};
use durable::store::block::ChainCursor;
use durable::store::delivery::DeliveryRow;
use durable::store::endpoint::EndpointRow;
use durable::store::event::EventRow;
use durable::store::invoice::InvoiceRow;
use durable::store::payment::PaymentRow;
use durable::store::{Store, StoreError, block, delivery, endpoint, event, invoice, payment};

use crate::world::Arrival;

/// How many rows are read in one query.
const PAGE: u32 = 500;

/// Every row that matters to somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Books {
    /// Invoices, newest first.
    pub invoices: Vec<InvoiceRow>,
    /// Payments, newest first.
    pub payments: Vec<PaymentRow>,
    /// The log, in order.
    pub events: Vec<EventRow>,
    /// Deliveries, newest first.
    pub deliveries: Vec<DeliveryRow>,
    /// Where merchants want to be told.
    pub endpoints: Vec<EndpointRow>,
    /// How far the chain is proven.
    pub cursor: Option<ChainCursor>,
}

impl Books {
    /// Reads everything from one state of the store.
    ///
    /// # Errors
    /// The store's.
    pub fn read(store: &Store, chain: ChainId) -> Result<Self, StoreError> {
        store.read_now(|query| {
            Ok(Self {
                invoices: all(|last: Option<&InvoiceRow>| {
                    invoice::list(query, &invoice::Filter::default(), last.map(|row| row.invoice.id), PAGE)
                })?,
                payments: all(|last: Option<&PaymentRow>| {
                    payment::list(query, &payment::Filter::default(), last.map(|row| row.id), PAGE)
                })?,
                events: all(|last: Option<&EventRow>| {
                    event::list_after(query, last.map_or(0, |row| row.position), PAGE)
                })?,
                deliveries: all(|last: Option<&DeliveryRow>| {
                    delivery::list(query, &delivery::Filter::default(), last.map(|row| row.id), PAGE)
                })?,
                endpoints: endpoint::list(query)?,
                cursor: block::find_cursor(query, chain)?,
            })
        })
    }

    fn find(&self, id: InvoiceId) -> Option<&InvoiceRow> {
        self.invoices.iter().find(|row| row.invoice.id == id)
    }
}

fn all<T>(mut page: impl FnMut(Option<&T>) -> Result<Vec<T>, StoreError>) -> Result<Vec<T>, StoreError> {
    let mut rows: Vec<T> = Vec::new();
    loop {
        let more = page(rows.last())?;
        if more.is_empty() {
            return Ok(rows);
        }
        rows.extend(more);
    }
}

/// Jobs that are not the watcher's: what is still to be done.
///
/// # Errors
/// The store's.
pub fn work_left(store: &Store) -> Result<Vec<Job>, StoreError> {
    let jobs = store
        .read_now(|query| all(|last: Option<&Job>| engine::list(query, last.map(|job| job.id), PAGE)))?;
    Ok(jobs.into_iter().filter(|job| job.kind != "watch").collect())
}

/// The transfers of the canonical chain, as its own blocks tell them: of these tokens, and of native coin as
/// the value of a transaction.
#[must_use]
pub fn truth(chain: &Devchain, id: ChainId, tokens: &[Address]) -> BTreeMap<TransferKey, Transfer> {
    (0..=chain.head().number)
        .filter_map(|number| chain.block(number))
        .flat_map(|block| transfers_in(&block, id, tokens))
        .map(|transfer| (transfer.key, transfer))
        .collect()
}

fn transfers_in(block: &Block, chain: ChainId, tokens: &[Address]) -> Vec<Transfer> {
    let mut transfers = Vec::new();
    let mut log_index = 0_u64;
    for (index, (tx, receipt)) in (0_u64..).zip(block.transactions().iter().zip(block.receipts())) {
        let base = |ordinal, log_index, asset, payer, recipient, units| Transfer {
            key: TransferKey { chain, tx: *tx.tx_hash(), ordinal },
            block: BlockRef { number: block.number(), hash: block.hash() },
            time: Timestamp::from_seconds(block.timestamp()),
            tx_index: index,
            log_index,
            asset,
            payer,
            recipient,
            amount: Amount::new(units),
        };
        if let Some(to) = tx.to().filter(|_| receipt.succeeded() && !tx.value().is_zero()) {
            transfers.push(base(TransferKey::NATIVE, None, Asset::Native, tx.signer(), to, tx.value()));
        }
        for (ordinal, log) in (0_i64..).zip(receipt.logs()) {
            if let [TRANSFER_EVENT, from, to] = log.topics()
                && tokens.contains(&log.address)
            {
                let (from, to) = (Address::from_word(*from), Address::from_word(*to));
                let units = U256::from_be_slice(&log.data.data);
                transfers.push(base(ordinal, Some(log_index), Asset::Token(log.address), from, to, units));
            }
            log_index = log_index.saturating_add(1);
        }
    }
    transfers
}

/// What the judge knows beside the books.
#[derive(Debug)]
pub struct Case<'a> {
    /// The books.
    pub books: &'a Books,
    /// The chain itself.
    pub chain: &'a Devchain,
    /// Its transfers.
    pub truth: &'a BTreeMap<TransferKey, Transfer>,
    /// What merchants received, in order.
    pub arrivals: &'a [Arrival],
    /// The invoices whose making was acknowledged.
    pub acknowledged: Vec<InvoiceId>,
    /// The endpoints, in the order of the merchants.
    pub endpoints: &'a [EndpointId],
    /// The lowest block that ever held a transaction, dropped ones included.
    pub earliest: &'a BTreeMap<B256, u64>,
    /// Whether the chain's headers commit to its receipts, so that evidence is proof.
    pub proofs: bool,
}

/// Everything that is wrong with the books after the storm.
#[must_use]
pub fn judge(case: &Case<'_>) -> Vec<String> {
    let mut findings = Vec::new();
    nothing_acknowledged_is_lost(case, &mut findings);
    payments_are_the_chains(case, &mut findings);
    sums_are_conserved(case, &mut findings);
    balances_agree(case, &mut findings);
    statuses_follow(case, &mut findings);
    events_tell_all(case, &mut findings);
    deliveries_arrived(case, &mut findings);
    arrivals_are_ours(case, &mut findings);
    lanes_kept_their_order(case, &mut findings);
    the_cursor_is_on_the_chain(case, &mut findings);
    findings
}

fn nothing_acknowledged_is_lost(case: &Case<'_>, findings: &mut Vec<String>) {
    for id in &case.acknowledged {
        if case.books.find(*id).is_none() {
            findings.push(format!("{id} was acknowledged and is not in the books"));
        }
    }
}

/// A transfer is in the books once, as it is on the chain, or not at all.
fn payments_are_the_chains(case: &Case<'_>, findings: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    let recipients: BTreeSet<Address> = case.books.invoices.iter().map(|row| row.invoice.recipient).collect();
    for row in &case.books.payments {
        let (id, key) = (row.id, row.transfer.key);
        if !seen.insert(key) {
            findings.push(format!("the transfer {}:{} is in the books twice", key.tx, key.ordinal));
        }
        match (case.truth.get(&key), row.stage) {
            (Some(_), Stage::Reverted) => findings.push(format!("{id} is on the chain and marked reverted")),
            (Some(told), _) if *told != row.transfer => {
                findings.push(format!("{id} is not as the chain tells it: {:?}, {told:?}", row.transfer));
            }
            (None, Stage::Reverted) => {}
            (None, stage) => findings.push(format!("{id} is {stage} and not on the chain")),
            (Some(_), _) => {}
        }
        if case.chain.block_by_hash(row.transfer.block.hash).is_none() {
            findings.push(format!("{id} is in a block that never was"));
        }
    }
    for transfer in case.truth.values().filter(|transfer| recipients.contains(&transfer.recipient)) {
        if !seen.contains(&transfer.key) {
            findings.push(format!("a transfer to a recipient of ours is not in the books: {transfer:?}"));
        }
    }
}

/// An invoice's sums are those of its payments, to the last unit.
fn sums_are_conserved(case: &Case<'_>, findings: &mut Vec<String>) {
    for row in &case.books.invoices {
        let id = row.invoice.id;
        let of_invoice: Vec<&PaymentRow> =
            case.books.payments.iter().filter(|payment| payment.matching.invoice() == Some(id)).collect();
        for (late, kept) in [(false, row.invoice.paid), (true, row.invoice.late)] {
            let at_least = |stage: Stage| {
                of_invoice
                    .iter()
                    .filter(|payment| payment.late == late && payment.stage >= stage)
                    .fold(U256::ZERO, |sum, payment| sum.saturating_add(payment.transfer.amount.units()))
            };
            let counted = Tally {
                seen: Amount::new(at_least(Stage::Detected)),
                confirmed: Amount::new(at_least(Stage::Confirmed)),
                finalized: Amount::new(at_least(Stage::Final)),
            };
            if counted != kept {
                findings.push(format!("{id} keeps {kept:?}, its payments make {counted:?} (late: {late})"));
            }
        }
        for payment in of_invoice {
            let (told, asked) = (&payment.transfer, &row.invoice);
            let fits = told.asset == asked.asset
                && told.recipient == asked.recipient
                && told.key.chain == asked.chain
                && asked.payer.is_none_or(|payer| payer == told.payer);
            if !fits {
                findings.push(format!("{} belongs to {id} and does not fit it", payment.id));
            }
        }
    }
}

/// What the recipients of ours hold is what the books say they were paid. Nobody of them ever pays.
fn balances_agree(case: &Case<'_>, findings: &mut Vec<String>) {
    let mut paid: BTreeMap<(Address, Asset), U256> = BTreeMap::new();
    for row in &case.books.invoices {
        paid.entry((row.invoice.recipient, row.invoice.asset)).or_default();
    }
    for payment in case.books.payments.iter().filter(|payment| payment.stage != Stage::Reverted) {
        let sum = paid.entry((payment.transfer.recipient, payment.transfer.asset)).or_default();
        *sum = sum.saturating_add(payment.transfer.amount.units());
    }
    for ((recipient, asset), booked) in paid {
        let held = match asset {
            Asset::Native => case.chain.balance(recipient),
            Asset::Token(token) => case.chain.token_balance(token, recipient),
        };
        if held != booked {
            findings.push(format!("{recipient} holds {held} of {asset}, the books say {booked}"));
        }
    }
}

/// With all blocks read and all expiries passed, every invoice has come to its end, and the right one.
fn statuses_follow(case: &Case<'_>, findings: &mut Vec<String>) {
    let mut sharing: BTreeMap<Address, u32> = BTreeMap::new();
    for row in &case.books.invoices {
        let count = sharing.entry(row.invoice.recipient).or_default();
        *count = count.saturating_add(1);
    }
    let matched = case.books.payments.iter().filter(|payment| payment.matching.invoice().is_some());
    let counted: BTreeSet<TransferKey> = matched.map(|payment| payment.transfer.key).collect();
    for row in &case.books.invoices {
        let invoice = &row.invoice;
        let (id, status) = (invoice.id, invoice.status());
        if status.is_active() {
            findings.push(format!("{id} is still {status} after everything"));
        }
        if (status == Status::Settled) != (invoice.paid.confirmed >= invoice.amount) {
            findings.push(format!("{id} is {status} with {} confirmed", invoice.paid.confirmed));
        }
        // An invoice with a recipient of its own takes everything that came in its asset.
        if sharing.get(&invoice.recipient) != Some(&1) || invoice.canceled {
            continue;
        }
        let (mut in_time, mut late) = (U256::ZERO, U256::ZERO);
        for transfer in case.truth.values() {
            let ours = transfer.recipient == invoice.recipient
                && transfer.asset == invoice.asset
                && invoice.payer.is_none_or(|payer| payer == transfer.payer);
            if ours && (is_for_sure(case, invoice, transfer) || counted.contains(&transfer.key)) {
                let sum = if transfer.time > invoice.expires_at { &mut late } else { &mut in_time };
                *sum = sum.saturating_add(transfer.amount.units());
            }
        }
        let expected = match () {
            () if in_time >= invoice.amount.units() => Status::Settled,
            () if in_time.is_zero() => Status::Expired,
            () => Status::Underpaid,
        };
        if status != expected || invoice.paid.seen.units() != in_time || invoice.late.seen.units() != late {
            findings.push(format!(
                "{id} is {status} with {} in time and {} late; the chain says {expected} with {in_time} and {late}",
                invoice.paid.seen, invoice.late.seen
            ));
        }
    }
}

/// Money that came before its invoice has to be the exact amount, if no payer is named. What was decided when
/// it was first seen stands, in whatever block it is now; so other amounts are neither expected nor refused.
fn is_for_sure(case: &Case<'_>, invoice: &Invoice, transfer: &Transfer) -> bool {
    let first_seen = case.earliest.get(&transfer.key.tx).copied().unwrap_or(0);
    invoice.created_block.is_some_and(|height| first_seen > height)
        || invoice.payer.is_some()
        || transfer.amount == invoice.amount
}

/// Each invoice's events are numbered without gaps, and each settled one was told of.
fn events_tell_all(case: &Case<'_>, findings: &mut Vec<String>) {
    for row in &case.books.invoices {
        let id = row.invoice.id;
        let of_invoice: Vec<&EventRow> =
            case.books.events.iter().filter(|event| event.subject == Some(id)).collect();
        let sequences: Vec<u64> = of_invoice.iter().map(|event| event.sequence).collect();
        if !sequences.iter().copied().eq(1..=row.invoice.sequence) {
            findings.push(format!("the events of {id} are numbered {sequences:?}"));
        }
        let told = of_invoice.iter().any(|event| event.kind == EventType::InvoiceSettled);
        if row.invoice.status() == Status::Settled && !told {
            findings.push(format!("{id} is settled and there is no event of it"));
        }
    }
}

/// Every event went to every endpoint that was there, or is a dead letter with a reason.
fn deliveries_arrived(case: &Case<'_>, findings: &mut Vec<String>) {
    let mut taken: BTreeSet<(usize, &str)> = BTreeSet::new();
    for arrival in case.arrivals.iter().filter(|arrival| arrival.accepted) {
        taken.insert((arrival.merchant, arrival.id.as_str()));
    }
    let mut by_event: BTreeMap<(u64, EndpointId), &DeliveryRow> = BTreeMap::new();
    for row in &case.books.deliveries {
        if by_event.insert((row.event_position, row.endpoint), row).is_some() {
            findings.push(format!("event {} has two deliveries to {}", row.event_position, row.endpoint));
        }
    }
    for event in &case.books.events {
        let (position, id) = (event.position, event.id.to_string());
        for (merchant, endpoint) in case.endpoints.iter().enumerate() {
            match by_event.get(&(position, *endpoint)) {
                // An endpoint is not told of its own dead letters.
                None if event.subject.is_none() => {}
                None => findings.push(format!("{id} has no delivery to merchant {merchant}")),
                Some(row) => match row.state {
                    DeliveryState::Delivered if !taken.contains(&(merchant, id.as_str())) => {
                        findings.push(format!("{id} is marked delivered; merchant {merchant} never took it"));
                    }
                    DeliveryState::Dead if row.dead_reason.is_none() => {
                        findings.push(format!("{id} is dead for merchant {merchant} without a reason"));
                    }
                    DeliveryState::Queued | DeliveryState::Pending => {
                        findings.push(format!("{id} is still {} for merchant {merchant}", row.state));
                    }
                    DeliveryState::Delivered | DeliveryState::Dead => {}
                },
            }
        }
    }
}

/// What merchants got is in the log, byte for byte: the same id never came with other bytes.
fn arrivals_are_ours(case: &Case<'_>, findings: &mut Vec<String>) {
    let events: BTreeMap<String, &EventRow> =
        case.books.events.iter().map(|event| (event.id.to_string(), event)).collect();
    for arrival in case.arrivals {
        match events.get(&arrival.id) {
            None => findings.push(format!("a merchant received {}, which is not in the log", arrival.id)),
            Some(event) if *event.body != *arrival.body => {
                findings.push(format!("{} came with other bytes than the log's", arrival.id));
            }
            Some(_) => {}
        }
        if let Some(hash) = block_told_of(&arrival.body)
            && case.chain.block_by_hash(hash).is_none()
        {
            findings.push(format!("{} tells of a payment in a block that never was: {hash}", arrival.id));
        }
    }
}

fn block_told_of(body: &[u8]) -> Option<B256> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    body.pointer("/data/payment/block_hash")?.as_str()?.parse().ok()
}

/// At each merchant the events of an invoice came first in the order in which they happened.
fn lanes_kept_their_order(case: &Case<'_>, findings: &mut Vec<String>) {
    let events: BTreeMap<String, &EventRow> =
        case.books.events.iter().map(|event| (event.id.to_string(), event)).collect();
    let mut seen: BTreeSet<(usize, EventId)> = BTreeSet::new();
    let mut last: BTreeMap<(usize, InvoiceId), u64> = BTreeMap::new();
    for arrival in case.arrivals.iter().filter(|arrival| !arrival.replayed) {
        let Some(event) = events.get(&arrival.id) else { continue };
        let Some(invoice) = event.subject else { continue };
        if !seen.insert((arrival.merchant, event.id)) {
            continue;
        }
        let before = last.entry((arrival.merchant, invoice)).or_default();
        if event.sequence <= *before {
            findings.push(format!(
                "merchant {} got event {} of {invoice} after event {before}",
                arrival.merchant, event.sequence
            ));
        }
        *before = event.sequence;
    }
}

fn the_cursor_is_on_the_chain(case: &Case<'_>, findings: &mut Vec<String>) {
    let head = case.chain.head();
    match &case.books.cursor {
        None => findings.push("nothing of the chain was ever read".to_owned()),
        Some(cursor) if cursor.block != (BlockRef { number: head.number, hash: head.hash }) => {
            findings.push(format!("the cursor is at {:?}, the chain at {head:?}", cursor.block));
        }
        Some(cursor) => {
            if let Some(why) = cursor.frozen.as_ref().or(cursor.stalled.as_ref()) {
                findings.push(format!("the chain is well and still held up: {why}"));
            }
        }
    }
}

/// The bundles of all settled invoices hold, judged from their bytes and from the chain's own hashes.
///
/// # Errors
/// The store's.
pub async fn bundles_hold(app: &App, case: &Case<'_>) -> Result<Vec<String>, StoreError> {
    let mut findings = Vec::new();
    let anchors: Vec<B256> = case.truth.values().map(|transfer| transfer.block.hash).collect();
    for row in case.books.invoices.iter().filter(|row| row.invoice.status() == Status::Settled) {
        let id = row.invoice.id;
        let bytes = app.store.write(move |tx| Ok::<_, StoreError>(evidence::bundle(tx, id).ok())).await?;
        let Some(bytes) = bytes else {
            findings.push(format!("{id} is settled and has no evidence"));
            continue;
        };
        match evidence::check(&bytes, &anchors, &[]) {
            Err(rejected) => findings.push(format!("the evidence of {id} is rejected: {rejected}")),
            Ok(checked) => {
                for payment in &checked.payments {
                    if !payment.transfer.anchored || payment.transfer.is_proven() != case.proofs {
                        findings.push(format!("the evidence of {} proves nothing", payment.payment_id));
                    }
                }
            }
        }
    }
    Ok(findings)
}

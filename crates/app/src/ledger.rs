//! The one place where a payment moves an invoice.
//!
//! Everything here runs inside one transaction: the payment's row, the invoice's sums, the event, its
//! deliveries and (by the caller) the cursor change together or not at all. What to do is decided by `domain`; this
//! file looks up, applies and writes down.
//!
//! Guarantees: a transfer is counted once, whatever is read again; a payment that vanishes is withdrawn exactly as far as it
//! had come; a fact that an invoice refuses leaves no trace of itself.

use std::time::Duration;

use domain::chain::{ChainId, Confirmations, EvidenceLevel, Heights, Transfer};
use domain::event::EventType;
use domain::id::{InvoiceId, PaymentId};
use domain::invoice::{Fact, Invoice, Refusal};
use domain::payment::{Match, Stage, Unmatched};
use domain::time::Timestamp;
use durable::store::invoice::{self, InvoiceRow};
use durable::store::payment::{self, Matching, PaymentRow};
use durable::store::{Query, StoreError, Tx, block, claim};

use crate::reactions;
use crate::view::{InvoiceEvent, InvoiceView, PaymentView};

/// How many payments or invoices are looked at in one query.
const PAGE: u32 = 500;
/// For so long after its expiry, by the chain's time, an unpaid invoice on a shared recipient competes for money of its amount: it may
/// be late money for it.
const LATE_GRACE: Duration = Duration::from_secs(600);

/// A transfer as a proven block tells it, with what proves it.
#[derive(Debug, Clone)]
pub struct Sighted {
    /// The transfer.
    pub transfer: Transfer,
    /// How it is known.
    pub level: EvidenceLevel,
    /// Its evidence, as kept.
    pub evidence: Vec<u8>,
}

/// What became of a sighted transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It is a new payment.
    New,
    /// It had been reverted and is back, perhaps in another block.
    Returned,
    /// It is already counted; nothing was done.
    Duplicate,
}

/// Why the ledger did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    /// The store's reason.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The invoice's reason.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What settling produced, for measuring.
#[derive(Debug, Clone, Default)]
pub struct Settled {
    /// From the time of the block that held the last payment to the settlement, one span for each settled invoice.
    pub latencies: Vec<Duration>,
}

impl Settled {
    fn note(&mut self, settled_before: Option<Timestamp>, invoice: &InvoiceRow, payment: &PaymentRow) {
        if let (None, Some(at)) = (settled_before, invoice.settled_at) {
            self.latencies.push(at.since(payment.transfer.time));
        }
    }
}

/// Counts a transfer of a proven block: finds its invoice and moves it.
///
/// # Errors
/// The store's. What an invoice refuses leaves the payment unmatched instead: no log may stop the
/// reading of the others.
pub fn see(tx: &mut Tx, sighted: &Sighted, confirmations: Confirmations) -> Result<Seen, StoreError> {
    count(tx, sighted, confirmations, None, &mut Settled::default())
}

/// As [`see`], and confirms the payment at once if `heights` allow that already. For a chain without open disputes whose
/// settling is not frozen.
///
/// # Errors
/// As [`see`].
pub fn see_and_confirm(
    tx: &mut Tx,
    sighted: &Sighted,
    confirmations: Confirmations,
    heights: Heights,
    settled: &mut Settled,
) -> Result<Seen, StoreError> {
    count(tx, sighted, confirmations, Some(heights), settled)
}

fn count(
    tx: &mut Tx,
    sighted: &Sighted,
    confirmations: Confirmations,
    heights: Option<Heights>,
    settled: &mut Settled,
) -> Result<Seen, StoreError> {
    match payment::find_by_transfer(tx, &sighted.transfer.key)? {
        None => {
            let id = PaymentId::mint(tx.now(), tx.chance());
            let row = PaymentRow {
                id,
                transfer: sighted.transfer,
                stage: Stage::Detected,
                level: sighted.level,
                confirmations,
                matching: Matching::Unmatched(Unmatched::NoInvoice),
                late: false,
                seen_at: tx.now(),
                confirmed_at: None,
            };
            note(tx, "payment detected", &row);
            place(tx, row, Existing::No, heights, settled)?;
            payment::save_evidence(tx, id, &sighted.evidence)?;
            Ok(Seen::New)
        }
        Some(row) if row.stage == Stage::Reverted => {
            let id = row.id;
            let same = is_the_same_money(&row.transfer, &sighted.transfer);
            let row = PaymentRow {
                transfer: sighted.transfer,
                stage: Stage::Detected,
                level: sighted.level,
                confirmed_at: None,
                ..row
            };
            note(tx, "payment back in the chain", &row);
            place(tx, row, if same { Existing::Same } else { Existing::Other }, heights, settled)?;
            payment::save_evidence(tx, id, &sighted.evidence)?;
            Ok(Seen::Returned)
        }
        Some(_) => Ok(Seen::Duplicate),
    }
}

/// One log line for each stage of a payment, once it is committed.
fn note(tx: &mut Tx, what: &'static str, row: &PaymentRow) {
    if !tracing::enabled!(tracing::Level::INFO) {
        return;
    }
    let (transfer, invoice, matching) = (row.transfer, row.matching.invoice(), row.matching.as_str());
    tx.after_commit(move || {
        tracing::info!(
            invoice_uuid = invoice.map(|id| id.to_string()),
            tx_hash = %transfer.key.tx,
            block = transfer.block.number,
            chain = %transfer.key.chain,
            matching,
            "{what}"
        );
    });
}

/// A transaction that lands in another block may do something else there: its logs keep their places, not their words.
fn is_the_same_money(before: &Transfer, after: &Transfer) -> bool {
    let of = |transfer: &Transfer| (transfer.asset, transfer.payer, transfer.recipient, transfer.amount);
    of(before) == of(after)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    /// It is a new row.
    No,
    /// It is back after a reorg, and is what it was.
    Same,
    /// It is back after a reorg, and is something else.
    Other,
}

/// Matches a detected payment, moves its invoice, and writes both. A payment that is back as it was belongs where it
/// belonged; what had no place may find one. What `heights` confirm already is confirmed with it.
fn place(
    tx: &mut Tx,
    mut row: PaymentRow,
    existing: Existing,
    heights: Option<Heights>,
    settled: &mut Settled,
) -> Result<(), StoreError> {
    let mut at_hand = None;
    let choice = match (existing, &row.matching) {
        (Existing::Same, Matching::Assigned(id) | Matching::Matched(id)) => Match::Invoice(*id),
        (Existing::Same, Matching::Ambiguous(_)) => return payment::save(tx, &row),
        _ => {
            row.matching = Matching::Unmatched(Unmatched::NoInvoice);
            let (candidates, sole) = invoice::candidates(tx, &row.transfer, LATE_GRACE)?;
            at_hand = sole;
            candidates.decide(&row.transfer)
        }
    };
    let assigned = matches!(row.matching, Matching::Assigned(_));
    let mut ambiguous = false;
    match choice {
        Match::Invoice(id) => {
            let found = match at_hand {
                Some(sole) if sole.invoice.id == id => Some(sole),
                _ => invoice::find(tx, id)?,
            };
            let Some(mut invoice) = found else {
                return Err(StoreError::damaged("a payment's invoice is missing"));
            };
            row.matching = if assigned { Matching::Assigned(id) } else { Matching::Matched(id) };
            row.confirmations = invoice.invoice.confirmations;
            row.late = !assigned && invoice.invoice.would_be_late(row.transfer.time);
            let seen = Fact::Seen { amount: row.transfer.amount, late: row.late };
            match apply(tx, &mut invoice, seen, Some(&row)) {
                Ok(()) => {
                    confirm_early(tx, &mut row, &mut invoice, heights, settled)?;
                    invoice::save(tx, &invoice)?;
                }
                Err(LedgerError::Store(error)) => return Err(error),
                Err(LedgerError::Refused(_)) => {
                    row.matching = Matching::Unmatched(Unmatched::TooLarge);
                    row.late = false;
                }
            }
        }
        Match::Ambiguous(ids) => {
            ambiguous = true;
            row.matching = Matching::Ambiguous(ids);
        }
        Match::Unmatched(why) => row.matching = Matching::Unmatched(why),
    }
    match existing {
        Existing::No => payment::insert(tx, &row)?,
        Existing::Same | Existing::Other => payment::save(tx, &row)?,
    }
    note(tx, if existing == Existing::No { "payment detected" } else { "payment back in the chain" }, &row);
    if ambiguous { reactions::tell(tx, EventType::PaymentAmbiguous, &PaymentView::of(&row)) } else { Ok(()) }
}

/// Confirms a payment that was just counted, if the heights allow it and the invoice takes it; else it is met again by
/// [`advance`]. The caller saves both rows.
fn confirm_early(
    tx: &mut Tx,
    row: &mut PaymentRow,
    invoice: &mut InvoiceRow,
    heights: Option<Heights>,
    settled: &mut Settled,
) -> Result<(), StoreError> {
    let Some(heights) = heights else { return Ok(()) };
    if !row.confirmations.reached(row.transfer.block.number, heights) {
        return Ok(());
    }
    let confirmed = PaymentRow { stage: Stage::Confirmed, confirmed_at: Some(tx.now()), ..row.clone() };
    let settled_before = invoice.settled_at;
    let fact = Fact::Confirmed { amount: row.transfer.amount, late: row.late };
    match apply(tx, invoice, fact, Some(&confirmed)) {
        Ok(()) => {}
        Err(LedgerError::Store(error)) => return Err(error),
        Err(LedgerError::Refused(_)) => return Ok(()),
    }
    settled.note(settled_before, invoice, row);
    note(tx, "payment confirmed", &confirmed);
    *row = confirmed;
    Ok(())
}

/// Applies one fact to an invoice and tells of what follows. The caller saves the row.
fn apply(
    tx: &mut Tx,
    row: &mut InvoiceRow,
    fact: Fact,
    payment: Option<&PaymentRow>,
) -> Result<(), LedgerError> {
    let (after, events) = row.invoice.observe(fact)?;
    let mut sequence = row.invoice.sequence;
    row.invoice = after;
    if events.contains(&EventType::InvoiceSettled) {
        row.settled_at = Some(tx.now());
        row.settled_by = payment.map(|payment| payment.transfer.key.tx);
    }
    if events.is_empty() {
        return Ok(());
    }
    note_move(tx, row, payment, &events);
    let body = InvoiceEvent { invoice: InvoiceView::of(row), payment: payment.map(PaymentView::of) };
    for kind in events {
        sequence = sequence.saturating_add(1);
        reactions::tell_of_invoice(tx, kind, row.invoice.id, sequence, &body)?;
    }
    Ok(())
}

/// One log line for each move of an invoice, once it is committed.
fn note_move(tx: &mut Tx, row: &InvoiceRow, payment: Option<&PaymentRow>, events: &[EventType]) {
    if !tracing::enabled!(tracing::Level::INFO) {
        return;
    }
    let (id, status) = (row.invoice.id, row.invoice.status());
    let transfer = payment.map(|payment| payment.transfer);
    let told = events.iter().map(|event| event.as_str()).collect::<Vec<_>>().join(" ");
    tx.after_commit(move || {
        let tx_hash = transfer.map(|transfer| transfer.key.tx.to_string());
        let block = transfer.map(|transfer| transfer.block.number);
        tracing::info!(invoice_uuid = %id, %status, tx_hash, block, events = told, "invoice moved");
    });
}

/// Confirms and finalizes the payments of a chain that the heights allow. Payments that an open dispute could touch
/// stay where they are.
///
/// # Errors
/// The store's, or what an invoice refuses, which would be a contradiction in our own books.
pub fn advance(tx: &mut Tx, chain: ChainId, heights: Heights) -> Result<Settled, LedgerError> {
    let mut settled = Settled::default();
    let disputes = claim::any_open(tx, chain)?;
    let steps: [(ListMoving, u64); 2] =
        [(payment::list_detected, heights.head), (payment::list_confirmed, heights.finalized)];
    for (list, up_to) in steps {
        let mut after = None;
        loop {
            let page = list(tx, chain, up_to, after, PAGE)?;
            let Some(last) = page.last() else { break };
            after = Some((last.transfer.block.number, last.id));
            for row in page {
                if disputes && claim::touches(tx, chain, &row.transfer.recipient)? {
                    continue;
                }
                advance_one(tx, row, heights, &mut settled)?;
            }
        }
    }
    Ok(settled)
}

type ListMoving = fn(&Tx, ChainId, u64, Option<(u64, PaymentId)>, u32) -> Result<Vec<PaymentRow>, StoreError>;

fn advance_one(
    tx: &mut Tx,
    mut row: PaymentRow,
    heights: Heights,
    settled: &mut Settled,
) -> Result<(), LedgerError> {
    let number = row.transfer.block.number;
    let amount = row.transfer.amount;
    let late = row.late;
    let mut facts = Vec::with_capacity(2);
    if row.stage == Stage::Detected && row.confirmations.reached(number, heights) {
        row.stage = Stage::Confirmed;
        row.confirmed_at = Some(tx.now());
        facts.push(Fact::Confirmed { amount, late });
    }
    if row.stage == Stage::Confirmed && heights.finalized > 0 && number <= heights.finalized {
        row.stage = Stage::Final;
        facts.push(Fact::Finalized { amount, late });
    }
    if facts.is_empty() {
        return Ok(());
    }
    payment::save(tx, &row)?;
    note(tx, if row.stage == Stage::Final { "payment final" } else { "payment confirmed" }, &row);
    let Some(id) = row.matching.invoice() else { return Ok(()) };
    let Some(mut invoice) = invoice::find(tx, id)? else {
        return Err(StoreError::damaged("a payment's invoice is missing").into());
    };
    let settled_before = invoice.settled_at;
    for fact in facts {
        apply(tx, &mut invoice, fact, Some(&row))?;
    }
    settled.note(settled_before, &invoice, &row);
    Ok(invoice::save(tx, &invoice)?)
}

/// Withdraws every payment in blocks above `ancestor`, which are no longer part of the chain. Payments that had been
/// final stay as they are: whether finality was contradicted is for the caller to notice.
///
/// # Errors
/// The store's, or a contradiction in our own books.
pub fn revert_above(tx: &mut Tx, chain: ChainId, ancestor: u64) -> Result<usize, LedgerError> {
    let withdrawn = payment::list_above(tx, chain, ancestor)?;
    let count = withdrawn.len();
    for mut row in withdrawn {
        let fact = Fact::Reverted { amount: row.transfer.amount, late: row.late, stage: row.stage };
        row.stage = Stage::Reverted;
        row.confirmed_at = None;
        payment::save(tx, &row)?;
        note(tx, "payment reverted", &row);
        if let Some(id) = row.matching.invoice()
            && let Some(mut invoice) = invoice::find(tx, id)?
        {
            apply(tx, &mut invoice, fact, Some(&row))?;
            invoice::save(tx, &invoice)?;
        }
    }
    Ok(count)
}

/// Expires the invoices whose time is up by the chain's own proven time. Those that a disputed payment could be for wait.
///
/// # Errors
/// The store's, or a contradiction in our own books.
pub fn expire(tx: &mut Tx, chain: ChainId, chain_time: Timestamp) -> Result<usize, LedgerError> {
    let disputes = claim::any_open(tx, chain)?;
    let (mut count, mut after) = (0, None);
    loop {
        let due = invoice::list_expiring(tx, chain, chain_time, after, PAGE)?;
        let Some(last) = due.last() else { return Ok(count) };
        after = Some((last.invoice.expires_at, last.invoice.id));
        for mut row in due {
            if disputes && claim::touches(tx, chain, &row.invoice.recipient)? {
                continue;
            }
            apply(tx, &mut row, Fact::Expired, None)?;
            invoice::save(tx, &row)?;
            count += 1;
        }
    }
}

/// Withdraws an invoice.
///
/// # Errors
/// What the invoice refuses, or the store.
pub fn cancel(tx: &mut Tx, row: &mut InvoiceRow) -> Result<(), LedgerError> {
    if claim::touches(tx, row.invoice.chain, &row.invoice.recipient)? {
        return Err(Refusal::Disputed.into());
    }
    apply(tx, row, Fact::Canceled, None)?;
    Ok(invoice::save(tx, row)?)
}

/// Gives a new invoice for a known recipient the earlier payments of the payer it names, which nobody else can claim.
///
/// # Errors
/// The store's.
pub fn claim_earlier(tx: &mut Tx, id: InvoiceId) -> Result<(), LedgerError> {
    let Some(row) = invoice::find(tx, id)? else { return Ok(()) };
    let Invoice { chain, asset, recipient, payer, .. } = row.invoice;
    let Some(payer) = payer else { return Ok(()) };
    let mut after = None;
    loop {
        let page = payment::list_unmatched_from(tx, chain, &asset, &recipient, &payer, after, PAGE)?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.id);
        for payment in page {
            match attach(tx, id, payment, Matching::Matched(id), false) {
                // No real money: it stays where it is.
                Ok(()) | Err(LedgerError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Attaches a payment that belongs to no invoice to one. From then on it is confirmed by that invoice's rule: what the chain's
/// rule had confirmed may have to wait again.
///
/// # Errors
/// What the invoice refuses, or the store.
pub fn attach(
    tx: &mut Tx,
    id: InvoiceId,
    mut row: PaymentRow,
    matching: Matching,
    accept_late: bool,
) -> Result<(), LedgerError> {
    let Some(mut invoice) = invoice::find(tx, id)? else {
        return Err(StoreError::NoRow.into());
    };
    let heights = block::find_cursor(tx, row.transfer.key.chain)?.map(|cursor| cursor.heights());
    row.matching = matching;
    row.late = !accept_late && invoice.invoice.would_be_late(row.transfer.time);
    row.confirmations = invoice.invoice.confirmations;
    let holds = |row: &PaymentRow| {
        heights.is_some_and(|heights| row.confirmations.reached(row.transfer.block.number, heights))
    };
    if row.stage == Stage::Confirmed && !holds(&row) {
        row.stage = Stage::Detected;
        row.confirmed_at = None;
    }
    let reached = row.stage;
    let (amount, late) = (row.transfer.amount, row.late);
    let facts = [
        (Stage::Detected, Fact::Seen { amount, late }),
        (Stage::Confirmed, Fact::Confirmed { amount, late }),
        (Stage::Final, Fact::Finalized { amount, late }),
    ];
    for (stage, fact) in facts {
        if stage <= reached {
            row.stage = stage;
            apply(tx, &mut invoice, fact, Some(&row))?;
        }
    }
    payment::save(tx, &row)?;
    Ok(invoice::save(tx, &invoice)?)
}

/// Takes a late payment of an invoice as if it had been made in time.
///
/// # Errors
/// What the invoice refuses, or the store.
pub fn accept_late(tx: &mut Tx, mut row: PaymentRow) -> Result<(), LedgerError> {
    let Some(id) = row.matching.invoice() else { return Err(StoreError::NoRow.into()) };
    let Some(mut invoice) = invoice::find(tx, id)? else { return Err(StoreError::NoRow.into()) };
    let fact = Fact::LateAccepted { amount: row.transfer.amount, stage: row.stage };
    row.late = false;
    row.matching = Matching::Assigned(id);
    apply(tx, &mut invoice, fact, Some(&row))?;
    payment::save(tx, &row)?;
    Ok(invoice::save(tx, &invoice)?)
}

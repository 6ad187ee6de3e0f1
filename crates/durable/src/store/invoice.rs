//! Invoices as rows.
//!
//! [`insert`] refuses an invoice that could not be told apart from an open one; [`save`] writes what
//! a fact changed and keeps the derived columns true. The domain decides, this file remembers.

use std::time::Duration;

use domain::chain::{Address, ChainId, Transfer};
use domain::id::InvoiceId;
use domain::invoice::{Invoice, Status, Tally};
use domain::payment::{Candidate, Candidates};
use domain::time::Timestamp;
use sha2::{Digest, Sha256};

use super::{Query, Row, StoreError, Tx};
use crate::params;

super::db::text_columns!(Status);

/// An invoice with what people attached to it and what settling left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvoiceRow {
    /// The invoice itself.
    pub invoice: Invoice,
    /// The merchant's own reference.
    pub reference: Option<String>,
    /// The merchant's own data, a JSON text.
    pub metadata: Option<String>,
    /// When it was settled last.
    pub settled_at: Option<Timestamp>,
    /// The transaction whose confirmation settled it.
    pub settled_by: Option<domain::chain::B256>,
}

/// An open invoice with the same chain, asset, recipient and amount exists, and neither names a payer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indistinguishable;

/// Above every id: where a list from the newest begins.
const LAST: InvoiceId = InvoiceId::from_bytes([0xff; 16]);
/// Below every id.
const FIRST: InvoiceId = InvoiceId::from_bytes([0; 16]);

const COLUMNS: &str = "id, chain, asset, recipient, payer, amount, confirmations, reference, metadata, created_at, \
     expires_at, paid_seen, paid_confirmed, paid_finalized, late_seen, late_confirmed, late_finalized, \
     expired, canceled, reverted, sequence, settled_at, settled_by, created_block";

/// Stores a new invoice.
///
/// # Errors
/// The outer error is the store's; the inner says that the invoice was refused and nothing was written.
pub fn insert(tx: &mut Tx, row: &InvoiceRow) -> Result<Result<(), Indistinguishable>, StoreError> {
    let invoice = &row.invoice;
    let slot = slot_of(invoice);
    if let Some(slot) = &slot
        && slot_is_taken(tx, slot)?
    {
        return Ok(Err(Indistinguishable));
    }
    let Tally { seen, confirmed, finalized } = invoice.paid;
    tx.execute(
        "insert into invoice (id, chain, asset, recipient, payer, amount, confirmations, reference, metadata, \
         created_at, expires_at, status, active, paid_seen, paid_confirmed, paid_finalized, late_seen, \
         late_confirmed, late_finalized, expired, canceled, reverted, sequence, slot, created_block, remaining) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, '0', '0', '0', \
         0, 0, 0, 0, $17, $18, $19)",
        params![
            invoice.id,
            invoice.chain,
            invoice.asset,
            invoice.recipient,
            invoice.payer,
            invoice.amount,
            invoice.confirmations,
            row.reference,
            row.metadata,
            invoice.created_at,
            invoice.expires_at,
            invoice.status(),
            invoice.status().is_active(),
            seen,
            confirmed,
            finalized,
            slot,
            invoice.created_block,
            invoice.remaining(),
        ],
    )?;
    Ok(Ok(()))
}

/// Writes what facts changed. A settled invoice keeps the transaction that settled it; an invoice that is active
/// again takes its slot back if it is still free.
///
/// # Errors
/// The store's.
pub fn save(tx: &mut Tx, row: &InvoiceRow) -> Result<(), StoreError> {
    let invoice = &row.invoice;
    let active = invoice.status().is_active();
    let mut slot = if active { slot_of(invoice) } else { None };
    if let Some(wanted) = &slot {
        let others = tx.query_opt(
            "select 1 from invoice where slot = $1 and id <> $2",
            params![wanted, invoice.id],
            |row| row.get::<i64>(0),
        )?;
        if others.is_some() {
            slot = None;
        }
    }
    tx.execute(
        "update invoice set status = $2, active = $3, paid_seen = $4, paid_confirmed = $5, paid_finalized = $6, \
         late_seen = $7, late_confirmed = $8, late_finalized = $9, expired = $10, canceled = $11, reverted = $12, \
         sequence = $13, slot = $14, settled_at = $15, settled_by = $16, remaining = $17 where id = $1",
        params![
            invoice.id,
            invoice.status(),
            active,
            invoice.paid.seen,
            invoice.paid.confirmed,
            invoice.paid.finalized,
            invoice.late.seen,
            invoice.late.confirmed,
            invoice.late.finalized,
            invoice.expired,
            invoice.canceled,
            invoice.reverted,
            invoice.sequence,
            slot,
            row.settled_at,
            row.settled_by,
            invoice.remaining(),
        ],
    )?;
    Ok(())
}

/// The invoice, if there is one.
///
/// # Errors
/// The store's.
pub fn find(query: &impl Query, id: InvoiceId) -> Result<Option<InvoiceRow>, StoreError> {
    query.query_opt(&format!("select {COLUMNS} from invoice where id = $1"), params![id], read)
}

/// What a list of invoices is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this status.
    pub status: Option<Status>,
    /// Only those with this reference.
    pub reference: Option<String>,
}

/// Invoices from newest to oldest, those before `before` if given, at most `limit`.
///
/// # Errors
/// The store's.
pub fn list(
    query: &impl Query,
    filter: &Filter,
    before: Option<InvoiceId>,
    limit: u32,
) -> Result<Vec<InvoiceRow>, StoreError> {
    let before = before.unwrap_or(LAST);
    match (filter.status, &filter.reference) {
        (None, None) => query.query(
            &format!("select {COLUMNS} from invoice where id < $1 order by id desc limit $2"),
            params![before, limit],
            read,
        ),
        (Some(status), None) => query.query(
            &format!("select {COLUMNS} from invoice where status = $3 and id < $1 order by id desc limit $2"),
            params![before, limit, status],
            read,
        ),
        (status, Some(reference)) => query.query(
            &format!(
                "select {COLUMNS} from invoice where id < $1 and reference = $3 \
                 and ($4 = '' or status = $4) order by id desc limit $2"
            ),
            params![before, limit, reference.as_str(), status.map_or("", Status::as_str)],
            read,
        ),
    }
}

/// The active invoices that expire by the chain's time `time`, at most `limit` after `after`, oldest expiry first.
///
/// # Errors
/// The store's.
pub fn list_expiring(
    query: &impl Query,
    chain: ChainId,
    time: Timestamp,
    after: Option<(Timestamp, InvoiceId)>,
    limit: u32,
) -> Result<Vec<InvoiceRow>, StoreError> {
    let (expiry, id) = after.unwrap_or((Timestamp::EPOCH, FIRST));
    query.query(
        &format!(
            "select {COLUMNS} from invoice where chain = $1 and active = 1 and expired = 0 and expires_at < $2 \
             and (expires_at, id) > ($3, $4) order by expires_at, id limit $5"
        ),
        params![chain, time, expiry, id, limit],
        read,
    )
}

/// Says at which height the chain stood when invoices were made that could not know it.
///
/// # Errors
/// The store's.
pub fn date_undated(tx: &mut Tx, chain: ChainId, height: u64) -> Result<u64, StoreError> {
    tx.execute(
        "update invoice set created_block = $2 where chain = $1 and created_block is null",
        params![chain, height],
    )
}

/// Whether any invoice, open or closed, has this recipient on this chain.
///
/// # Errors
/// The store's.
pub fn knows_recipient(query: &impl Query, chain: ChainId, recipient: &Address) -> Result<bool, StoreError> {
    Ok(query
        .query_opt(
            "select 1 from invoice where recipient = $1 and chain = $2 limit 1",
            params![recipient, chain],
            |row| row.get::<i64>(0),
        )?
        .is_some())
}

/// The invoices that a transfer could belong to. A closed one competes for `grace` of the chain's time after its expiry.
/// The only invoice of a recipient is given with its row, which is mostly asked for next.
///
/// # Errors
/// The store's.
pub fn candidates(
    query: &impl Query,
    transfer: &Transfer,
    grace: Duration,
) -> Result<(Candidates, Option<InvoiceRow>), StoreError> {
    let Transfer { asset, recipient, payer, amount, time, .. } = transfer;
    let chain = transfer.key.chain;
    let mut of_recipient = query.query(
        &format!("select {COLUMNS} from invoice where recipient = $1 and chain = $2 limit 2"),
        params![recipient, chain],
        read,
    )?;
    if let (Some(sole), true) = (of_recipient.pop(), of_recipient.is_empty()) {
        let fits = sole.invoice.asset == *asset;
        let candidates = Candidates { sole: fits.then(|| candidate(&sole.invoice)), ..Candidates::default() };
        return Ok((candidates, Some(sole)));
    }
    let named = query.query(
        &format!(
            "select {COLUMNS} from invoice where payer = $1 and recipient = $2 and chain = $3 and asset = $4 \
             and active = 1 and payer is not null order by id limit 1000"
        ),
        params![payer, recipient, chain, asset],
        read,
    )?;
    let exact = query.query(
        &format!(
            "select {COLUMNS} from invoice where recipient = $1 and chain = $2 and asset = $3 and remaining = $4 \
             and active = 1 and payer is null order by id limit 10"
        ),
        params![recipient, chain, asset, amount],
        read,
    )?;
    let closed = query.query(
        &format!(
            "select {COLUMNS} from invoice where recipient = $1 and chain = $2 and asset = $3 and remaining = $4 \
             and active = 0 and payer is null and expires_at >= $5 and status in ('expired', 'underpaid') limit 10"
        ),
        params![recipient, chain, asset, amount, *time - grace],
        read,
    )?;
    let of = |rows: Vec<InvoiceRow>| rows.iter().map(|row| candidate(&row.invoice)).collect();
    Ok((Candidates { sole: None, named: of(named), exact: of(exact), closed: of(closed) }, None))
}

/// How many invoices have each status. Counts by index; for gauges, not for lists.
///
/// # Errors
/// The store's.
pub fn count_by_status(query: &impl Query) -> Result<Vec<(Status, u64)>, StoreError> {
    query.query("select status, count(*) from invoice group by status", params![], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
}

fn candidate(invoice: &Invoice) -> Candidate {
    Candidate {
        id: invoice.id,
        amount: invoice.amount,
        remaining: invoice.remaining(),
        payer: invoice.payer,
        created_at: invoice.created_at,
        created_block: invoice.created_block,
    }
}

/// The key on which two invoices collide that nothing could tell apart; none when a payer is named.
fn slot_of(invoice: &Invoice) -> Option<[u8; 32]> {
    if invoice.payer.is_some() {
        return None;
    }
    let mut hash = Sha256::new();
    hash.update(invoice.chain.number().to_be_bytes());
    hash.update(invoice.recipient);
    hash.update(invoice.amount.units().to_be_bytes::<32>());
    if let domain::chain::Asset::Token(token) = invoice.asset {
        hash.update(token);
    }
    Some(hash.finalize().into())
}

fn slot_is_taken(query: &impl Query, slot: &[u8; 32]) -> Result<bool, StoreError> {
    Ok(query
        .query_opt("select 1 from invoice where slot = $1", params![slot], |row| row.get::<i64>(0))?
        .is_some())
}

fn read(row: &Row<'_>) -> Result<InvoiceRow, StoreError> {
    Ok(InvoiceRow {
        invoice: Invoice {
            id: row.get(0)?,
            chain: row.get(1)?,
            asset: row.get(2)?,
            recipient: row.get(3)?,
            payer: row.get(4)?,
            amount: row.get(5)?,
            confirmations: row.get(6)?,
            created_at: row.get(9)?,
            expires_at: row.get(10)?,
            paid: tally(row, 11)?,
            late: tally(row, 14)?,
            expired: row.get(17)?,
            canceled: row.get(18)?,
            reverted: row.get(19)?,
            sequence: row.get(20)?,
            created_block: row.get(23)?,
        },
        reference: row.get(7)?,
        metadata: row.get(8)?,
        settled_at: row.get(21)?,
        settled_by: row.get(22)?,
    })
}

fn tally(row: &Row<'_>, first: usize) -> Result<Tally, StoreError> {
    Ok(Tally { seen: row.get(first)?, confirmed: row.get(first + 1)?, finalized: row.get(first + 2)? })
}

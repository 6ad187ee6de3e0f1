//! Payments as rows: every transfer that concerns us, once, for ever.
//!
//! The unique key (chain, transaction, ordinal) is what makes a transfer count at most once; the row's one `invoice_id` is what
//! makes it settle at most one invoice. A reorg marks a payment reverted, re-inclusion moves it.

use domain::chain::{
    Address, Asset, B256, BlockRef, ChainId, Confirmations, EvidenceLevel, Transfer, TransferKey,
};
use domain::id::{InvoiceId, PaymentId};
use domain::payment::{Stage, Unmatched};
use domain::time::Timestamp;

use super::{Query, Row, StoreError, Tx};
use crate::params;

super::db::text_columns!(Stage);

/// Where a payment belongs, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Matching {
    /// To this invoice, by the rules of matching.
    Matched(InvoiceId),
    /// To this invoice, by a person's word.
    Assigned(InvoiceId),
    /// To one of these.
    Ambiguous(Vec<InvoiceId>),
    /// To none, for this reason.
    Unmatched(Unmatched),
}

impl Matching {
    /// The invoice it belongs to, if it belongs to one.
    #[must_use]
    pub fn invoice(&self) -> Option<InvoiceId> {
        match self {
            Self::Matched(id) | Self::Assigned(id) => Some(*id),
            Self::Ambiguous(_) | Self::Unmatched(_) => None,
        }
    }

    /// The spelling in rows and outside.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Matched(_) => "matched",
            Self::Assigned(_) => "assigned",
            Self::Ambiguous(_) => "ambiguous",
            Self::Unmatched(why) => why.as_str(),
        }
    }
}

/// A payment as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentRow {
    /// Its id.
    pub id: PaymentId,
    /// The transfer in its present (or, when reverted, last) block.
    pub transfer: Transfer,
    /// How far it has come.
    pub stage: Stage,
    /// How it is known.
    pub level: EvidenceLevel,
    /// When it counts as confirmed.
    pub confirmations: Confirmations,
    /// Where it belongs.
    pub matching: Matching,
    /// Made after its invoice expired or was canceled.
    pub late: bool,
    /// When we first saw it.
    pub seen_at: Timestamp,
    /// When it was confirmed.
    pub confirmed_at: Option<Timestamp>,
}

/// Above every id: where a list from the newest begins.
const LAST: PaymentId = PaymentId::from_bytes([0xff; 16]);
/// Below every id.
const FIRST: PaymentId = PaymentId::from_bytes([0; 16]);

const COLUMNS: &str = "id, chain, tx, ordinal, block_number, block_hash, block_time, tx_index, log_index, asset, payer, \
     recipient, amount, stage, level, confirmations, invoice_id, matching, candidates, late, seen_at, confirmed_at";

/// Stores a new payment.
///
/// # Errors
/// The store's; also when the transfer is already there, which the caller has looked up before.
pub fn insert(tx: &mut Tx, row: &PaymentRow) -> Result<(), StoreError> {
    let transfer = &row.transfer;
    let candidates = candidate_bytes(&row.matching);
    let invoice = row.matching.invoice();
    tx.execute(
        "insert into payment (id, chain, tx, ordinal, block_number, block_hash, block_time, tx_index, log_index, asset, \
         payer, recipient, amount, stage, level, confirmations, invoice_id, matching, candidates, late, seen_at, \
         confirmed_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, \
         $20, $21, $22)",
        params![
            row.id,
            transfer.key.chain,
            transfer.key.tx,
            transfer.key.ordinal,
            transfer.block.number,
            transfer.block.hash,
            transfer.time,
            transfer.tx_index,
            transfer.log_index,
            transfer.asset,
            transfer.payer,
            transfer.recipient,
            transfer.amount,
            row.stage,
            row.level,
            row.confirmations,
            invoice,
            row.matching.as_str(),
            candidates,
            row.late,
            row.seen_at,
            row.confirmed_at,
        ],
    )?;
    Ok(())
}

/// Writes a payment that moved to another block, stage or invoice.
///
/// # Errors
/// The store's.
pub fn save(tx: &mut Tx, row: &PaymentRow) -> Result<(), StoreError> {
    let transfer = &row.transfer;
    let candidates = candidate_bytes(&row.matching);
    let invoice = row.matching.invoice();
    tx.execute(
        "update payment set block_number = $2, block_hash = $3, block_time = $4, tx_index = $5, log_index = $6, \
         asset = $7, payer = $8, recipient = $9, amount = $10, stage = $11, level = $12, confirmations = $13, \
         invoice_id = $14, matching = $15, candidates = $16, late = $17, confirmed_at = $18 where id = $1",
        params![
            row.id,
            transfer.block.number,
            transfer.block.hash,
            transfer.time,
            transfer.tx_index,
            transfer.log_index,
            transfer.asset,
            transfer.payer,
            transfer.recipient,
            transfer.amount,
            row.stage,
            row.level,
            row.confirmations,
            invoice,
            row.matching.as_str(),
            candidates,
            row.late,
            row.confirmed_at,
        ],
    )?;
    Ok(())
}

/// Keeps a payment's own part of the proof that it is in its present block; a later one replaces an earlier one.
///
/// # Errors
/// The store's.
pub fn save_evidence(tx: &mut Tx, id: PaymentId, evidence: &[u8]) -> Result<(), StoreError> {
    tx.execute(
        "insert into payment_evidence (payment_id, evidence) values ($1, $2) \
         on conflict (payment_id) do update set evidence = excluded.evidence",
        params![id, evidence],
    )?;
    Ok(())
}

/// A payment's own part of its proof, if one is kept.
///
/// # Errors
/// The store's.
pub fn find_evidence(query: &impl Query, id: PaymentId) -> Result<Option<Vec<u8>>, StoreError> {
    query.query_opt("select evidence from payment_evidence where payment_id = $1", params![id], |row| {
        row.get(0)
    })
}

/// Keeps what the evidence of a block's payments has in common.
///
/// # Errors
/// The store's.
pub fn save_block_evidence(
    tx: &mut Tx,
    chain: ChainId,
    block: &B256,
    evidence: &[u8],
) -> Result<(), StoreError> {
    tx.execute(
        "insert into block_evidence (chain, block_hash, evidence) values ($1, $2, $3) \
         on conflict (chain, block_hash) do update set evidence = excluded.evidence",
        params![chain, block, evidence],
    )?;
    Ok(())
}

/// What the evidence of a block's payments has in common, if some is kept.
///
/// # Errors
/// The store's.
pub fn find_block_evidence(
    query: &impl Query,
    chain: ChainId,
    block: &B256,
) -> Result<Option<Vec<u8>>, StoreError> {
    query.query_opt(
        "select evidence from block_evidence where chain = $1 and block_hash = $2",
        params![chain, block],
        |row| row.get(0),
    )
}

/// The payment, if there is one.
///
/// # Errors
/// The store's.
pub fn find(query: &impl Query, id: PaymentId) -> Result<Option<PaymentRow>, StoreError> {
    query.query_opt(&format!("select {COLUMNS} from payment where id = $1"), params![id], read)
}

/// The payment of a transfer, if it was seen before.
///
/// # Errors
/// The store's.
pub fn find_by_transfer(query: &impl Query, key: &TransferKey) -> Result<Option<PaymentRow>, StoreError> {
    query.query_opt(
        &format!("select {COLUMNS} from payment where chain = $1 and tx = $2 and ordinal = $3"),
        params![key.chain, key.tx, key.ordinal],
        read,
    )
}

/// The payments of an invoice, oldest first, at most 1,000: what people are shown at once.
///
/// # Errors
/// The store's.
pub fn list_of_invoice(query: &impl Query, invoice: InvoiceId) -> Result<Vec<PaymentRow>, StoreError> {
    page_of_invoice(query, invoice, None, 1000)
}

/// The payments of an invoice after `after`, oldest first, at most `limit`.
///
/// # Errors
/// The store's.
pub fn page_of_invoice(
    query: &impl Query,
    invoice: InvoiceId,
    after: Option<PaymentId>,
    limit: u32,
) -> Result<Vec<PaymentRow>, StoreError> {
    query.query(
        &format!("select {COLUMNS} from payment where invoice_id = $1 and id > $2 order by id limit $3"),
        params![invoice, after.unwrap_or(FIRST), limit],
        read,
    )
}

/// What a list of payments is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those of this invoice.
    pub invoice: Option<InvoiceId>,
    /// Only those with this matching, as [`Matching::as_str`] spells it.
    pub matching: Option<&'static str>,
}

/// Payments from newest to oldest, those before `before` if given, at most `limit`.
///
/// # Errors
/// The store's.
pub fn list(
    query: &impl Query,
    filter: &Filter,
    before: Option<PaymentId>,
    limit: u32,
) -> Result<Vec<PaymentRow>, StoreError> {
    let before = before.unwrap_or(LAST);
    match (filter.invoice, filter.matching) {
        (Some(invoice), _) => query.query(
            &format!(
                "select {COLUMNS} from payment where invoice_id = $3 and id < $1 order by id desc limit $2"
            ),
            params![before, limit, invoice],
            read,
        ),
        (None, Some(matching)) => query.query(
            &format!(
                "select {COLUMNS} from payment where matching = $3 and id < $1 order by id desc limit $2"
            ),
            params![before, limit, matching],
            read,
        ),
        (None, None) => query.query(
            &format!("select {COLUMNS} from payment where id < $1 order by id desc limit $2"),
            params![before, limit],
            read,
        ),
    }
}

/// Payments of a chain up to block `head` that are not confirmed yet, in the order of their blocks. At most `limit` of
/// them after `after`.
///
/// # Errors
/// The store's.
pub fn list_detected(
    query: &impl Query,
    chain: ChainId,
    head: u64,
    after: Option<(u64, PaymentId)>,
    limit: u32,
) -> Result<Vec<PaymentRow>, StoreError> {
    list_at_stage(query, chain, Stage::Detected, head, after, limit)
}

/// Payments of a chain that are confirmed and in a finalized block, in the order of their blocks. At most `limit` of
/// them after `after`.
///
/// # Errors
/// The store's.
pub fn list_confirmed(
    query: &impl Query,
    chain: ChainId,
    finalized: u64,
    after: Option<(u64, PaymentId)>,
    limit: u32,
) -> Result<Vec<PaymentRow>, StoreError> {
    list_at_stage(query, chain, Stage::Confirmed, finalized, after, limit)
}

fn list_at_stage(
    query: &impl Query,
    chain: ChainId,
    stage: Stage,
    up_to: u64,
    after: Option<(u64, PaymentId)>,
    limit: u32,
) -> Result<Vec<PaymentRow>, StoreError> {
    let (number, id) = after.unwrap_or((0, FIRST));
    query.query(
        &format!(
            "select {COLUMNS} from payment where chain = $1 and stage = $2 and block_number <= $3 \
             and (block_number, id) > ($4, $5) order by block_number, id limit $6"
        ),
        params![chain, stage, up_to, number, id, limit],
        read,
    )
}

/// Payments in blocks above `ancestor`, which a reorg took away.
///
/// # Errors
/// The store's.
pub fn list_above(query: &impl Query, chain: ChainId, ancestor: u64) -> Result<Vec<PaymentRow>, StoreError> {
    query.query(
        &format!(
            "select {COLUMNS} from payment where chain = $1 and block_number > $2 \
             and stage in ('detected', 'confirmed') order by block_number, id"
        ),
        params![chain, ancestor],
        read,
    )
}

/// Finalized payments in blocks above `ancestor`, at most `limit`: if there is one, finality was contradicted.
///
/// # Errors
/// The store's.
pub fn list_final_above(
    query: &impl Query,
    chain: ChainId,
    ancestor: u64,
    limit: u32,
) -> Result<Vec<PaymentRow>, StoreError> {
    query.query(
        &format!(
            "select {COLUMNS} from payment where chain = $1 and stage = 'final' and block_number > $2 \
             order by block_number limit $3"
        ),
        params![chain, ancestor, limit],
        read,
    )
}

/// Payments of one payer to a recipient that belong to no invoice, in the order of their ids after `after`, at most `limit`.
///
/// # Errors
/// The store's.
pub fn list_unmatched_from(
    query: &impl Query,
    chain: ChainId,
    asset: &Asset,
    recipient: &Address,
    payer: &Address,
    after: Option<PaymentId>,
    limit: u32,
) -> Result<Vec<PaymentRow>, StoreError> {
    query.query(
        &format!(
            "select {COLUMNS} from payment where recipient = $1 and chain = $2 and asset = $3 and payer = $4 \
             and invoice_id is null and id > $5 and matching <> 'ambiguous' and stage <> 'reverted' \
             order by id limit $6"
        ),
        params![recipient, chain, asset, payer, after.unwrap_or(FIRST), limit],
        read,
    )
}

fn candidate_bytes(matching: &Matching) -> Option<Vec<u8>> {
    match matching {
        Matching::Ambiguous(ids) => Some(ids.iter().flat_map(|id| *id.as_bytes()).collect()),
        _ => None,
    }
}

fn read(row: &Row<'_>) -> Result<PaymentRow, StoreError> {
    let chain: ChainId = row.get(1)?;
    let transfer = Transfer {
        key: TransferKey { chain, tx: row.get(2)?, ordinal: row.get(3)? },
        block: BlockRef { number: row.get(4)?, hash: row.get(5)? },
        time: row.get(6)?,
        tx_index: row.get(7)?,
        log_index: row.get(8)?,
        asset: row.get(9)?,
        payer: row.get(10)?,
        recipient: row.get(11)?,
        amount: row.get(12)?,
    };
    Ok(PaymentRow {
        id: row.get(0)?,
        transfer,
        stage: row.get(13)?,
        level: row.get(14)?,
        confirmations: row.get(15)?,
        matching: read_matching(row)?,
        late: row.get(19)?,
        seen_at: row.get(20)?,
        confirmed_at: row.get(21)?,
    })
}

fn read_matching(row: &Row<'_>) -> Result<Matching, StoreError> {
    let invoice: Option<InvoiceId> = row.get(16)?;
    let matching: String = row.get(17)?;
    match (matching.as_str(), invoice) {
        ("matched", Some(id)) => Ok(Matching::Matched(id)),
        ("assigned", Some(id)) => Ok(Matching::Assigned(id)),
        ("ambiguous", None) => {
            let ids: Vec<u8> = row.get::<Option<Vec<u8>>>(18)?.unwrap_or_default();
            let (ids, _) = ids.as_chunks::<16>();
            Ok(Matching::Ambiguous(ids.iter().copied().map(InvoiceId::from_bytes).collect()))
        }
        ("no_invoice", None) => Ok(Matching::Unmatched(Unmatched::NoInvoice)),
        ("other_payer", None) => Ok(Matching::Unmatched(Unmatched::OtherPayer)),
        ("too_large", None) => Ok(Matching::Unmatched(Unmatched::TooLarge)),
        _ => Err(StoreError::damaged("a payment's matching and its invoice disagree")),
    }
}

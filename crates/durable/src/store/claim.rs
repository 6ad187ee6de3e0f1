//! Disputed claims as rows: logs that some groups assert and others deny, on a chain without a checkable root.
//!
//! An open claim freezes the settling of the invoices it could touch, and nothing else. It is closed
//! by agreement, or by `k` explicit negatives at a finalized block; never by time.

use domain::chain::{Address, BlockRef, ChainId, Transfer, TransferKey};
use domain::time::Timestamp;

use super::{Query, Row, StoreError, Tx};
use crate::params;

/// A claim as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRow {
    /// What is claimed.
    pub transfer: Transfer,
    /// The groups that assert it, separated by commas.
    pub claimants: String,
    /// When it was first disputed.
    pub opened_at: Timestamp,
    /// When it was decided.
    pub closed_at: Option<Timestamp>,
    /// `accepted` or `rejected`, once decided.
    pub verdict: Option<String>,
}

const COLUMNS: &str = "chain, tx, ordinal, block_number, block_hash, block_time, tx_index, log_index, asset, payer, \
     recipient, amount, claimants, opened_at, closed_at, verdict";

/// Opens a claim, or opens it again.
///
/// # Errors
/// The store's.
pub fn open(tx: &mut Tx, row: &ClaimRow) -> Result<(), StoreError> {
    let transfer = &row.transfer;
    tx.execute(
        "insert into disputed_claim (chain, tx, ordinal, block_number, block_hash, block_time, tx_index, log_index, \
         asset, payer, recipient, amount, claimants, opened_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) on conflict (chain, tx, ordinal, block_hash, asset, payer, recipient, amount) \
         do update set closed_at = null, verdict = null, claimants = excluded.claimants",
        params![
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
            row.claimants,
            row.opened_at,
        ],
    )?;
    Ok(())
}

/// Decides a claim.
///
/// # Errors
/// The store's.
pub fn close(tx: &mut Tx, claimed: &Transfer, verdict: &str) -> Result<(), StoreError> {
    let now = tx.now();
    tx.execute(
        "update disputed_claim set closed_at = $9, verdict = $10 \
         where chain = $1 and tx = $2 and ordinal = $3 and block_hash = $4 and asset = $5 and payer = $6 \
         and recipient = $7 and amount = $8 and closed_at is null",
        params![
            claimed.key.chain,
            claimed.key.tx,
            claimed.key.ordinal,
            claimed.block.hash,
            claimed.asset,
            claimed.payer,
            claimed.recipient,
            claimed.amount,
            now,
            verdict,
        ],
    )?;
    Ok(())
}

/// The open claims on one transfer, whatever they say of it.
///
/// # Errors
/// The store's.
pub fn list_open_on(query: &impl Query, key: &TransferKey) -> Result<Vec<ClaimRow>, StoreError> {
    query.query(
        &format!(
            "select {COLUMNS} from disputed_claim \
             where chain = $1 and tx = $2 and ordinal = $3 and closed_at is null"
        ),
        params![key.chain, key.tx, key.ordinal],
        read,
    )
}

/// Whether a chain has an open claim.
///
/// # Errors
/// The store's.
pub fn any_open(query: &impl Query, chain: ChainId) -> Result<bool, StoreError> {
    Ok(query
        .query_opt(
            "select 1 from disputed_claim where chain = $1 and closed_at is null limit 1",
            params![chain],
            |row| row.get::<i64>(0),
        )?
        .is_some())
}

/// The open claims of a chain, oldest block first, at most 1,000.
///
/// # Errors
/// The store's.
pub fn list_open(query: &impl Query, chain: ChainId) -> Result<Vec<ClaimRow>, StoreError> {
    query.query(
        &format!(
            "select {COLUMNS} from disputed_claim where chain = $1 and closed_at is null order by block_number limit 1000"
        ),
        params![chain],
        read,
    )
}

/// Whether an open claim is about money to this recipient.
///
/// # Errors
/// The store's.
pub fn touches(query: &impl Query, chain: ChainId, recipient: &Address) -> Result<bool, StoreError> {
    Ok(query
        .query_opt(
            "select 1 from disputed_claim where chain = $1 and recipient = $2 and closed_at is null limit 1",
            params![chain, recipient],
            |row| row.get::<i64>(0),
        )?
        .is_some())
}

fn read(row: &Row<'_>) -> Result<ClaimRow, StoreError> {
    Ok(ClaimRow {
        transfer: Transfer {
            key: TransferKey { chain: row.get(0)?, tx: row.get(1)?, ordinal: row.get(2)? },
            block: BlockRef { number: row.get(3)?, hash: row.get(4)? },
            time: row.get(5)?,
            tx_index: row.get(6)?,
            log_index: row.get(7)?,
            asset: row.get(8)?,
            payer: row.get(9)?,
            recipient: row.get(10)?,
            amount: row.get(11)?,
        },
        claimants: row.get(12)?,
        opened_at: row.get(13)?,
        closed_at: row.get(14)?,
        verdict: row.get(15)?,
    })
}

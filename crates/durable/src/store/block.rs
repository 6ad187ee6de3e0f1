//! Proven blocks, and how far each chain is proven.
//!
//! The cursor moves only in the transaction that holds the effects of its block. The ring of block hashes reaches
//! below finality, so that a reorg is found and reverted exactly, also one that happened while nobody looked.

use domain::chain::{Address, Asset, B256, BlockLink, BlockRef, ChainId, EvidenceLevel, Heights};
use domain::time::Timestamp;

use super::{Query, Row, StoreError, Tx};
use crate::params;

/// How far a chain is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainCursor {
    /// The chain.
    pub chain: ChainId,
    /// `last_processed_block`: every block up to here is proven and its effects are stored.
    pub block: BlockRef,
    /// The time in that block's header.
    pub time: Timestamp,
    /// The agreed safe height; 0 when the chain has none.
    pub safe: u64,
    /// The agreed finalized height; 0 when the chain has none.
    pub finalized: u64,
    /// The height that enough groups agreed on when we last looked.
    pub head: u64,
    /// How the last block was proven.
    pub level: EvidenceLevel,
    /// Why settling stopped, if it did.
    pub frozen: Option<String>,
    /// Why the last reading got no further, if it did not.
    pub stalled: Option<String>,
    /// When the cursor last moved, by our clock.
    pub advanced_at: Timestamp,
}

impl ChainCursor {
    /// The heights by which payments are confirmed.
    #[must_use]
    pub fn heights(&self) -> Heights {
        Heights { head: self.block.number, safe: self.safe, finalized: self.finalized }
    }
}

const COLUMNS: &str = "chain, number, hash, time, safe, finalized, level, frozen, stalled, advanced_at, head";

/// The cursor of a chain, if reading it has begun.
///
/// # Errors
/// The store's.
pub fn find_cursor(query: &impl Query, chain: ChainId) -> Result<Option<ChainCursor>, StoreError> {
    query.query_opt(
        &format!("select {COLUMNS} from chain_cursor where chain = $1"),
        params![chain],
        read_cursor,
    )
}

/// Writes a cursor, new or moved.
///
/// # Errors
/// The store's.
pub fn save_cursor(tx: &mut Tx, cursor: &ChainCursor) -> Result<(), StoreError> {
    tx.execute(
        "insert into chain_cursor (chain, number, hash, time, safe, finalized, level, frozen, stalled, advanced_at, head) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
         on conflict (chain) do update set number = excluded.number, hash = excluded.hash, time = excluded.time, \
         safe = excluded.safe, finalized = excluded.finalized, level = excluded.level, frozen = excluded.frozen, \
         stalled = excluded.stalled, advanced_at = excluded.advanced_at, head = excluded.head",
        params![
            cursor.chain,
            cursor.block.number,
            cursor.block.hash,
            cursor.time,
            cursor.safe,
            cursor.finalized,
            cursor.level,
            cursor.frozen,
            cursor.stalled,
            cursor.advanced_at,
            cursor.head,
        ],
    )?;
    Ok(())
}

/// Adds a proven block to the ring.
///
/// # Errors
/// The store's.
pub fn insert(tx: &mut Tx, chain: ChainId, link: &BlockLink) -> Result<(), StoreError> {
    tx.execute(
        "insert into block (chain, number, hash, parent_hash, time) values ($1, $2, $3, $4, $5)",
        params![chain, link.block.number, link.block.hash, link.parent, link.time,],
    )?;
    Ok(())
}

/// The newest blocks of the ring, newest first, at most `limit`.
///
/// # Errors
/// The store's.
pub fn ring(query: &impl Query, chain: ChainId, limit: u32) -> Result<Vec<BlockLink>, StoreError> {
    query.query(
        "select number, hash, parent_hash, time from block where chain = $1 order by number desc limit $2",
        params![chain, limit],
        read_link,
    )
}

/// One block of the ring.
///
/// # Errors
/// The store's.
pub fn find(query: &impl Query, chain: ChainId, number: u64) -> Result<Option<BlockLink>, StoreError> {
    query.query_opt(
        "select number, hash, parent_hash, time from block where chain = $1 and number = $2",
        params![chain, number],
        read_link,
    )
}

/// Takes the blocks above `ancestor` out of the ring, with their sightings.
///
/// # Errors
/// The store's.
pub fn remove_above(tx: &mut Tx, chain: ChainId, ancestor: u64) -> Result<u64, StoreError> {
    tx.execute("delete from sighting where chain = $1 and block_number > $2", params![chain, ancestor])?;
    tx.execute("delete from block where chain = $1 and number > $2", params![chain, ancestor])
}

/// Forgets blocks below `number` and sightings below `sightings_below`.
///
/// # Errors
/// The store's.
pub fn prune(tx: &mut Tx, chain: ChainId, number: u64, sightings_below: u64) -> Result<(), StoreError> {
    tx.execute("delete from block where chain = $1 and number < $2", params![chain, number])?;
    tx.execute(
        "delete from sighting where chain = $1 and block_number < $2",
        params![chain, sightings_below],
    )?;
    Ok(())
}

/// Remembers that `recipient`, who is nobody's yet, was paid in this block.
///
/// # Errors
/// The store's.
pub fn insert_sighting(
    tx: &mut Tx,
    chain: ChainId,
    recipient: &Address,
    number: u64,
) -> Result<(), StoreError> {
    tx.execute(
        "insert into sighting (chain, recipient, block_number) values ($1, $2, $3) on conflict do nothing",
        params![chain, recipient, number],
    )?;
    Ok(())
}

/// The recent blocks in which `recipient` was paid before it was anybody's.
///
/// # Errors
/// The store's.
pub fn list_sightings(
    query: &impl Query,
    chain: ChainId,
    recipient: &Address,
) -> Result<Vec<u64>, StoreError> {
    query.query(
        "select block_number from sighting where chain = $1 and recipient = $2 order by block_number",
        params![chain, recipient],
        |row| row.get(0),
    )
}

/// Makes an asset one of those that are read on a chain.
///
/// # Errors
/// The store's.
pub fn watch_asset(tx: &mut Tx, chain: ChainId, asset: &Asset, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "insert into watched_asset (chain, asset, since) values ($1, $2, $3) on conflict do nothing",
        params![chain, asset, now],
    )?;
    Ok(())
}

/// The assets that are read on a chain.
///
/// # Errors
/// The store's.
pub fn list_watched_assets(query: &impl Query, chain: ChainId) -> Result<Vec<Asset>, StoreError> {
    query.query("select asset from watched_asset where chain = $1", params![chain], |row| row.get(0))
}

fn read_link(row: &Row<'_>) -> Result<BlockLink, StoreError> {
    let hash: B256 = row.get(1)?;
    Ok(BlockLink { block: BlockRef { number: row.get(0)?, hash }, parent: row.get(2)?, time: row.get(3)? })
}

fn read_cursor(row: &Row<'_>) -> Result<ChainCursor, StoreError> {
    Ok(ChainCursor {
        chain: row.get(0)?,
        block: BlockRef { number: row.get(1)?, hash: row.get(2)? },
        time: row.get(3)?,
        safe: row.get(4)?,
        finalized: row.get(5)?,
        level: row.get(6)?,
        frozen: row.get(7)?,
        stalled: row.get(8)?,
        advanced_at: row.get(9)?,
        head: row.get(10)?,
    })
}

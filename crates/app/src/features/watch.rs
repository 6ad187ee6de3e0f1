//! Watching a chain: proven blocks → payments → invoices, and the cursor with them.
//!
//! Guarantees: effects, events, evidence and cursor move in one transaction; the cursor passes a block only when it is proven;
//! a reorg, also one that happened while nobody looked, withdraws exactly what it took away; a contradiction of finality stops
//! settling and not observing. What cannot be concluded now is a stall with reasons, and is asked again; it is never
//! an answer.
//!
//! Deliberately absent: how a block is proven (`outside::chain`), and what a payment does to an invoice
//! (`crate::ledger`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use domain::chain::{Asset, BlockLink, BlockRef, ChainId, Confirmations, EvidenceLevel, Heights};
use domain::event::EventType;
use domain::time::Timestamp;
use durable::engine::{AfterCrash, Attempt, Next, Recording, Trouble, Work};
use durable::store::block::{self, ChainCursor};
use durable::store::claim;
use durable::store::payment::PaymentRow;
use durable::store::{Query, ReadOnly, StoreError, Tx, counter, invoice, payment};
use outside::chain::{ChainReader, Progress, ProviderStatus, Stall, StallKind, Watch as Watched};
use serde::{Deserialize, Serialize};

use crate::config::ChainConfig;
use crate::ledger::{self, LedgerError, Settled};
use crate::reactions;
use crate::reading::{self, ReadBlock};
use crate::telemetry::{QuorumOutcome, Telemetry};
use crate::view::PaymentView;

/// Blocks read in one step while catching up.
const BLOCKS_AT_ONCE: usize = 32;
/// Blocks kept below the head at least, and at most.
const RING_LEAST: u64 = 256;
const RING_MOST: u32 = 4096;
/// Links kept below the first block that is ever read.
const LINKS_BELOW_FIRST: usize = 16;
/// Most payments named in one event.
const MOST_NAMED: u32 = 100;
/// A provider's fault is told of at most this often.
const FAULT_EVERY: Duration = Duration::from_secs(600);

/// The counter of transfers that were counted before, by where they came from again.
pub const DUPLICATES: &str = "duplicate_events_dropped_total";

/// The work of watching one chain; it comes back by itself for ever.
pub struct Watch {
    chains: BTreeMap<ChainId, (ChainReader, ChainConfig)>,
    telemetry: Arc<Telemetry>,
    told: Mutex<BTreeMap<(ChainId, String), Timestamp>>,
}

/// Which chain.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WatchInput {
    /// The chain.
    pub chain: ChainId,
}

/// What one look at a chain found.
#[derive(Debug, Clone)]
pub struct WatchFact {
    found: Found,
    /// What was looked for.
    assets: Vec<Asset>,
    faults: Vec<FaultData>,
    confirmations: Confirmations,
    lookback_blocks: u64,
    poll: Duration,
    telemetry: Arc<Telemetry>,
}

#[derive(Debug, Clone)]
enum Found {
    /// This process does not know the chain any more.
    NotConfigured,
    Idle(Heights),
    Blocks(Vec<ReadBlock>, Heights),
    /// The first block ever, and the links below it by which a reorg of it will be found.
    First(Vec<BlockLink>, Vec<ReadBlock>, Heights),
    Reorg(BlockRef, Heights),
    Stalled {
        kind: StallKind,
        why: String,
    },
}

/// What `provider.faulty` says.
#[derive(Debug, Clone, Serialize)]
struct FaultData {
    chain: ChainId,
    provider: String,
    group: String,
    fault: &'static str,
    block: Option<u64>,
    said: Option<String>,
    agreed: Option<String>,
}

impl Watch {
    /// Watches these chains.
    #[must_use]
    pub fn new(chains: BTreeMap<ChainId, (ChainReader, ChainConfig)>, telemetry: Arc<Telemetry>) -> Self {
        Self { chains, telemetry, told: Mutex::default() }
    }
}

impl Work for Watch {
    const KIND: &'static str = "watch";
    const AFTER_CRASH: AfterCrash = AfterCrash::Rerun;
    type Input = WatchInput;
    type Fact = WatchFact;

    async fn perform(
        &self,
        input: &WatchInput,
        _attempt: &Attempt,
        store: &ReadOnly,
    ) -> Result<WatchFact, Trouble> {
        let Some((reader, config)) = self.chains.get(&input.chain) else {
            return Ok(self.fact(Found::NotConfigured, Vec::new(), Vec::new(), None));
        };
        let (found, assets) = self.look(reader, config, store).await.map_err(unreadable)?;
        let faults = self.new_faults(input.chain, &reader.providers());
        Ok(self.fact(found, assets, faults, Some(config)))
    }

    fn record(
        recording: &mut Recording<'_>,
        input: &WatchInput,
        _attempt: &Attempt,
        outcome: Result<&WatchFact, &Trouble>,
    ) -> Result<Next, StoreError> {
        let Ok(fact) = outcome else {
            return Ok(Next::Released { at: recording.now() + Duration::from_secs(1) });
        };
        for fault in &fact.faults {
            reactions::tell(recording, EventType::ProviderFaulty, fault)?;
        }
        let more = write(recording, input.chain, fact)?;
        let wait = if more { Duration::ZERO } else { fact.poll };
        Ok(match fact.found {
            Found::NotConfigured => Next::Done,
            _ => Next::Again { at: recording.now() + wait },
        })
    }
}

fn unreadable(error: StoreError) -> Trouble {
    Trouble::Again { after: None, why: error.to_string() }
}

// ---- looking: outside any transaction ----

impl Watch {
    fn fact(
        &self,
        found: Found,
        assets: Vec<Asset>,
        faults: Vec<FaultData>,
        config: Option<&ChainConfig>,
    ) -> WatchFact {
        WatchFact {
            found,
            assets,
            faults,
            confirmations: config.map_or(Confirmations::Finalized, |config| config.confirmations),
            lookback_blocks: config.map_or(0, |config| config.lookback_blocks),
            poll: config.map_or(Duration::from_secs(60), |config| config.poll),
            telemetry: Arc::clone(&self.telemetry),
        }
    }

    async fn look(
        &self,
        reader: &ChainReader,
        config: &ChainConfig,
        store: &ReadOnly,
    ) -> Result<(Found, Vec<Asset>), StoreError> {
        let chain = config.id;
        let (ring, assets) = store
            .read(move |query| {
                Ok::<_, StoreError>((
                    block::ring(query, chain, RING_MOST)?,
                    block::list_watched_assets(query, chain)?,
                ))
            })
            .await?;
        let ring: Vec<BlockRef> = ring.iter().rev().map(|link| link.block).collect();
        let watched = reading::watch(store, chain, &assets);
        let mut below = Vec::new();
        let progress = match ring.is_empty() {
            true => self.begin(reader, config, &watched, &mut below).await,
            false => reader.poll(&ring, &watched, BLOCKS_AT_ONCE).await,
        };
        self.telemetry.quorum_round(chain, outcome_of(&progress));
        let found = match progress {
            Ok(Progress::Idle { heights }) => Found::Idle(heights),
            Ok(Progress::Reorg { ancestor, heights }) => Found::Reorg(ancestor, heights),
            Ok(Progress::Blocks { blocks, heights }) => {
                let blocks = reading::prepare(store, blocks).await?;
                if below.is_empty() {
                    Found::Blocks(blocks, heights)
                } else {
                    Found::First(below, blocks, heights)
                }
            }
            Err(stall) => {
                let why = stall.to_string();
                tracing::warn!(%chain, kind = stall.kind.as_str(), block = stall.block, why, "chain stalled");
                Found::Stalled { kind: stall.kind, why }
            }
        };
        Ok((found, assets))
    }

    /// The first block of a chain that was never read.
    async fn begin(
        &self,
        reader: &ChainReader,
        config: &ChainConfig,
        watched: &Watched,
        below: &mut Vec<BlockLink>,
    ) -> Result<Progress, Stall> {
        let head = reader.head().await?;
        let start = config.start_block.unwrap_or(head.saturating_sub(config.lookback_blocks));
        if start > head {
            return Ok(Progress::Idle { heights: Heights::default() });
        }
        let block = reader.read_block(start, watched).await?;
        *below = links_below(reader, &block.link).await;
        Ok(Progress::Blocks { blocks: vec![block], heights: Heights { head, ..Heights::default() } })
    }

    /// The faults that were not told of lately.
    fn new_faults(&self, chain: ChainId, providers: &[ProviderStatus]) -> Vec<FaultData> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut faults = Vec::new();
        for provider in providers {
            let Some(last) = &provider.last_disagreement else { continue };
            let key = (chain, provider.name.clone());
            let due = told.get(&key).is_none_or(|before| last.at.since(*before) >= FAULT_EVERY);
            if !due {
                continue;
            }
            told.insert(key, last.at);
            faults.push(FaultData {
                chain,
                provider: provider.name.clone(),
                group: provider.group.clone(),
                fault: last.kind.as_str(),
                block: last.block,
                said: last.said.map(|hash| hash.to_string()),
                agreed: last.agreed.map(|hash| hash.to_string()),
            });
        }
        faults
    }
}

/// The agreed links below the first block, as far as they can be had and fit.
async fn links_below(reader: &ChainReader, first: &BlockLink) -> Vec<BlockLink> {
    let mut links: Vec<BlockLink> = Vec::new();
    let mut child = *first;
    for _ in 0..LINKS_BELOW_FIRST {
        let Some(number) = child.block.number.checked_sub(1) else { break };
        match reader.header_at(number).await {
            Ok(link) if link.block.hash == child.parent => {
                links.push(link);
                child = link;
            }
            Ok(_) | Err(_) => break,
        }
    }
    links
}

fn outcome_of(progress: &Result<Progress, Stall>) -> QuorumOutcome {
    match progress {
        Ok(_) => QuorumOutcome::Agreed,
        Err(stall) => match stall.kind {
            StallKind::TooFewGroups => QuorumOutcome::NoQuorum,
            StallKind::Behind | StallKind::Unsettled => QuorumOutcome::Agreed,
            StallKind::NoAgreement | StallKind::NoValidBody | StallKind::ForkBelowRing => {
                QuorumOutcome::Disagreed
            }
        },
    }
}

// ---- writing: inside one transaction ----

/// Writes what was found. Answers whether there is more to read at once.
fn write(tx: &mut Tx, chain: ChainId, fact: &WatchFact) -> Result<bool, StoreError> {
    match &fact.found {
        Found::NotConfigured => Ok(false),
        Found::Idle(heights) => {
            if let Some(mut cursor) = block::find_cursor(tx, chain)? {
                invoice::date_undated(tx, chain, heights.head)?;
                let changed = raise(&mut cursor, *heights) | restore(tx, &mut cursor)?;
                if changed {
                    settle(tx, &mut cursor, fact)?;
                    block::save_cursor(tx, &cursor)?;
                }
            }
            Ok(false)
        }
        Found::Blocks(blocks, heights) => {
            // An asset that is watched since this look began may be in these blocks: they are read again with it.
            if block::list_watched_assets(tx, chain)? != fact.assets {
                return Ok(true);
            }
            invoice::date_undated(tx, chain, heights.head)?;
            for read in blocks {
                apply(tx, chain, read, *heights, fact)?;
            }
            let reached = blocks.last().map_or(0, |read| read.link.block.number);
            Ok(reached < heights.head)
        }
        Found::First(below, blocks, heights) => {
            if block::find_cursor(tx, chain)?.is_none() {
                for link in below {
                    block::insert(tx, chain, link)?;
                }
            }
            let first = WatchFact { found: Found::Blocks(blocks.clone(), *heights), ..fact.clone() };
            write(tx, chain, &first)
        }
        Found::Reorg(ancestor, heights) => {
            withdraw(tx, chain, *ancestor, *heights, fact)?;
            Ok(true)
        }
        Found::Stalled { kind, why } => {
            stall(tx, chain, *kind, why)?;
            Ok(false)
        }
    }
}

/// One proven block: its transfers, then what its height and its time settle or expire, then the cursor.
fn apply(
    tx: &mut Tx,
    chain: ChainId,
    read: &ReadBlock,
    heights: Heights,
    fact: &WatchFact,
) -> Result<(), StoreError> {
    let before = block::find_cursor(tx, chain)?;
    // The snapshot this block was read on may be gone: only the block after the cursor, linked to it, is applied.
    if before.as_ref().is_some_and(|cursor| cursor.block.hash != read.link.parent) {
        return Ok(());
    }
    let mut cursor = before.unwrap_or_else(|| ChainCursor {
        chain,
        block: read.link.block,
        time: read.link.time,
        safe: 0,
        finalized: 0,
        head: heights.head,
        level: read.level,
        frozen: None,
        stalled: None,
        advanced_at: tx.now(),
    });
    block::insert(tx, chain, &read.link)?;
    reading::open_claims(tx, read)?;
    cursor.block = read.link.block;
    cursor.time = read.link.time;
    cursor.level = read.level;
    cursor.advanced_at = tx.now();
    raise(&mut cursor, heights);
    let may_settle = cursor.frozen.is_none() && !claim::any_open(tx, chain)?;
    let at_once = may_settle.then(|| cursor.heights());
    let applied = reading::apply(tx, chain, read, fact.confirmations, at_once)?;
    if applied.duplicates > 0 {
        counter::add(tx, DUPLICATES, "chain", applied.duplicates)?;
    }
    restore(tx, &mut cursor)?;
    measure(tx, chain, applied.settled, fact);
    settle(tx, &mut cursor, fact)?;
    block::save_cursor(tx, &cursor)?;
    prune(tx, &cursor, fact.lookback_blocks)
}

/// Raises the safe and finalized heights, never above the cursor and never down.
fn raise(cursor: &mut ChainCursor, heights: Heights) -> bool {
    let before = (cursor.safe, cursor.finalized, cursor.head);
    cursor.head = heights.head.max(cursor.block.number);
    cursor.safe = cursor.safe.max(heights.safe.min(cursor.block.number));
    cursor.finalized = cursor.finalized.max(heights.finalized.min(cursor.block.number));
    before != (cursor.safe, cursor.finalized, cursor.head)
}

/// Confirms, finalizes and expires what the cursor allows, unless settling is frozen. A contradiction in our own
/// books freezes it.
fn settle(tx: &mut Tx, cursor: &mut ChainCursor, fact: &WatchFact) -> Result<(), StoreError> {
    if cursor.frozen.is_some() {
        return Ok(());
    }
    let settled = ledger::advance(tx, cursor.chain, cursor.heights())
        .and_then(|settled| ledger::expire(tx, cursor.chain, cursor.time).map(|_| settled));
    match settled {
        Ok(settled) => {
            measure(tx, cursor.chain, settled, fact);
            Ok(())
        }
        Err(LedgerError::Store(error)) => Err(error),
        Err(LedgerError::Refused(refusal)) => freeze(tx, cursor, &refusal.to_string(), &[]),
    }
}

/// How long settling took, for metrics, once it is committed.
fn measure(tx: &mut Tx, chain: ChainId, settled: Settled, fact: &WatchFact) {
    if settled.latencies.is_empty() {
        return;
    }
    let telemetry = Arc::clone(&fact.telemetry);
    tx.after_commit(move || {
        settled.latencies.iter().for_each(|latency| telemetry.invoice_verified(chain, *latency));
    });
}

#[derive(Serialize)]
struct FrozenData<'a> {
    chain: ChainId,
    reason: &'a str,
    /// Payments that are final in our books and no longer in the chain, for a person to handle.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    doubtful: Vec<PaymentView>,
}

fn freeze(
    tx: &mut Tx,
    cursor: &mut ChainCursor,
    reason: &str,
    doubtful: &[PaymentRow],
) -> Result<(), StoreError> {
    if cursor.frozen.is_some() {
        return Ok(());
    }
    tracing::error!(chain = %cursor.chain, reason, "settling is frozen on this chain");
    cursor.frozen = Some(reason.to_owned());
    let doubtful = doubtful.iter().map(PaymentView::of).collect();
    reactions::tell(tx, EventType::SettlementFrozen, &FrozenData { chain: cursor.chain, reason, doubtful })
}

/// Goes back to the ancestor. What had been final above it stays as it was, and settling freezes: the
/// chain has broken its own word, and a person has to look.
fn withdraw(
    tx: &mut Tx,
    chain: ChainId,
    ancestor: BlockRef,
    heights: Heights,
    fact: &WatchFact,
) -> Result<(), StoreError> {
    let Some(mut cursor) = block::find_cursor(tx, chain)? else { return Ok(()) };
    let Some(link) = block::find(tx, chain, ancestor.number)?.filter(|link| link.block == ancestor) else {
        return Ok(());
    };
    let depth = cursor.block.number.saturating_sub(ancestor.number);
    let doubtful = payment::list_final_above(tx, chain, ancestor.number, MOST_NAMED)?;
    if ancestor.number < cursor.finalized || !doubtful.is_empty() {
        let reason = format!("a finalized block was replaced: the chain forked at block {}", ancestor.number);
        freeze(tx, &mut cursor, &reason, &doubtful)?;
        cursor.finalized = cursor.finalized.min(ancestor.number);
    }
    match ledger::revert_above(tx, chain, ancestor.number) {
        Ok(withdrawn) => tracing::warn!(%chain, ancestor = ancestor.number, depth, withdrawn, "reorg"),
        Err(LedgerError::Store(error)) => return Err(error),
        Err(LedgerError::Refused(refusal)) => freeze(tx, &mut cursor, &refusal.to_string(), &[])?,
    }
    block::remove_above(tx, chain, ancestor.number)?;
    cursor.block = ancestor;
    cursor.time = link.time;
    cursor.safe = cursor.safe.min(ancestor.number);
    cursor.advanced_at = tx.now();
    raise(&mut cursor, heights);
    restore(tx, &mut cursor)?;
    block::save_cursor(tx, &cursor)?;
    let telemetry = Arc::clone(&fact.telemetry);
    tx.after_commit(move || telemetry.reorg(chain, depth));
    Ok(())
}

#[derive(Serialize)]
struct QuorumData<'a> {
    chain: ChainId,
    last_processed_block: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// Remembers why nothing could be concluded. Being behind is no loss of quorum.
fn stall(tx: &mut Tx, chain: ChainId, kind: StallKind, why: &str) -> Result<(), StoreError> {
    let Some(mut cursor) = block::find_cursor(tx, chain)? else { return Ok(()) };
    if matches!(kind, StallKind::Behind | StallKind::Unsettled) || cursor.stalled.as_deref() == Some(why) {
        return Ok(());
    }
    if cursor.stalled.is_none() {
        let data = QuorumData { chain, last_processed_block: cursor.block.number, reason: Some(why) };
        reactions::tell(tx, EventType::QuorumLost, &data)?;
    }
    cursor.stalled = Some(why.to_owned());
    cursor.level = EvidenceLevel::Degraded;
    block::save_cursor(tx, &cursor)
}

/// Answers whether the chain had been stalled.
fn restore(tx: &mut Tx, cursor: &mut ChainCursor) -> Result<bool, StoreError> {
    if cursor.stalled.take().is_none() {
        return Ok(false);
    }
    let data = QuorumData { chain: cursor.chain, last_processed_block: cursor.block.number, reason: None };
    reactions::tell(tx, EventType::QuorumRestored, &data)?;
    Ok(true)
}

/// Forgets blocks far below finality and sightings below the look-back.
fn prune(tx: &mut Tx, cursor: &ChainCursor, lookback_blocks: u64) -> Result<(), StoreError> {
    let head = cursor.block.number;
    let deep = head.saturating_sub(RING_LEAST.max(lookback_blocks));
    let below = if cursor.finalized > 0 { deep.min(cursor.finalized) } else { deep };
    let below = below.max(head.saturating_sub(u64::from(RING_MOST).max(lookback_blocks)));
    block::prune(tx, cursor.chain, below, head.saturating_sub(lookback_blocks))
}

/// Lets settling go on after a person has looked.
///
/// # Errors
/// The store's. Answers whether it had been frozen.
pub fn thaw(tx: &mut Tx, chain: ChainId) -> Result<bool, StoreError> {
    let Some(mut cursor) = block::find_cursor(tx, chain)? else { return Ok(false) };
    let Some(reason) = cursor.frozen.take() else { return Ok(false) };
    block::save_cursor(tx, &cursor)?;
    let data = FrozenData { chain, reason: &reason, doubtful: Vec::new() };
    reactions::tell(tx, EventType::SettlementThawed, &data)?;
    Ok(true)
}

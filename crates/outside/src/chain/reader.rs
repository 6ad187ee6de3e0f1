//! The reader: the quorum's decisions, driven over the network.
//!
//! Guarantees: every question goes to all providers at once and is decided as soon as the quorum can
//! decide it; answers that come later are still compared, and a contradiction is recorded against
//! whoever gave it. Nothing here waits longer than a provider's deadline.
//!
//! Deliberately absent: deciding. That is [`super::quorum`] and [`super::votes`], which have no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy_primitives::B256;
use domain::chain::{BlockLink, BlockRef, ChainId, EvidenceLevel, Heights};
use domain::chance::Chance;
use domain::time::{Clock, Timestamp};
use futures::future::{BoxFuture, Either, select};
use futures::stream::{self, FuturesUnordered, StreamExt};
use tokio::sync::Semaphore;

use super::block::{Body, ProvenBlock, Receipts, Watch, check_transactions};
use super::error::RpcError;
use super::evidence::Voter;
use super::profile::{ChainProfile, RootMode};
use super::provider::{FaultKind, Provider, ProviderSetup, ProviderStatus};
use super::quorum::{Ballot, BlockRound, Command, HeaderClaim, InvalidQuorum, Roster, Verdict};
use super::rpc::Call;
use super::wire::{SeenHeader, decode_header_answer, decode_receipts, decode_transactions};

/// Blocks read at once while catching up.
const AHEAD: usize = 4;
/// Once so much time was spent on catching up, what was read is handed out.
const ENOUGH: Duration = Duration::from_secs(10);
/// Transactions that everybody is asked about at once, over all blocks being read: well below a provider's places, so
/// that disputes do not crowd out the reading.
pub(super) const HEARINGS: usize = 8;
/// How long to wait for a slower provider's head when a block was seen by fewer than `k` groups.
const HEAD_GRACE: Duration = Duration::from_millis(250);

/// What a [`ChainReader`] is made of.
#[derive(Clone)]
pub struct ReaderSetup {
    /// The chain.
    pub chain: ChainId,
    /// How many groups must agree.
    pub quorum: usize,
    /// What can be concluded from its data.
    pub profile: ChainProfile,
    /// Whom to ask.
    pub providers: Vec<ProviderSetup>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance, for the jitter of retries.
    pub chance: Chance,
    /// How often the `safe` and `finalized` heights are asked for.
    pub tags_every: Duration,
}

impl std::fmt::Debug for ReaderSetup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReaderSetup")
            .field("chain", &self.chain)
            .field("quorum", &self.quorum)
            .field("profile", &self.profile)
            .field("providers", &self.providers)
            .finish_non_exhaustive()
    }
}

/// Why one provider did not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StallReason {
    /// It gave no answer.
    NoAnswer(RpcError),
    /// It does not have the block yet.
    Behind,
    /// It gave a header, and too few others gave the same.
    Header(B256),
    /// What it served does not have the header's roots.
    Invalid(FaultKind),
    /// It shows so many transfers that too few others show, and is not believed.
    Unsupported(usize),
}

impl std::fmt::Display for StallReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoAnswer(error) => write!(f, "{error}"),
            Self::Behind => f.write_str("does not have the block"),
            Self::Header(hash) => write!(f, "says {hash}"),
            Self::Invalid(fault) => write!(f, "served a body with a wrong {}", fault.as_str()),
            Self::Unsupported(claims) => write!(f, "shows {claims} transfers that too few others show"),
        }
    }
}

/// What is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StallKind {
    /// Fewer than `k` groups answered. Nothing is concluded from the rest: fail closed.
    TooFewGroups,
    /// `k` groups answered, and no `k` of them said the same.
    NoAgreement,
    /// Enough groups answer, but too few have the block yet.
    Behind,
    /// The header is agreed, but nobody served its receipts and transactions.
    NoValidBody,
    /// A new block does not link to ours, and ours is still agreed on: the chain is in motion.
    Unsettled,
    /// The chain forked below the oldest block we remember.
    ForkBelowRing,
}

impl StallKind {
    /// The word for metrics and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooFewGroups => "too_few_groups",
            Self::NoAgreement => "no_agreement",
            Self::Behind => "behind",
            Self::NoValidBody => "no_valid_body",
            Self::Unsettled => "unsettled",
            Self::ForkBelowRing => "fork_below_ring",
        }
    }
}

/// Why nothing was concluded. Not an error of the caller: it asks again later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}{}", kind.as_str(), spell_kind(self), spell(why))]
pub struct Stall {
    /// What is missing.
    pub kind: StallKind,
    /// The block it is about, if any.
    pub block: Option<u64>,
    /// Groups whose answer could be counted. Zero where nobody was counted.
    pub alive: usize,
    /// Groups that say they do not have the block.
    pub without: usize,
    /// Groups that must agree.
    pub needed: usize,
    /// What each provider did, by name.
    pub why: Vec<(String, StallReason)>,
}

fn spell_kind(stall: &Stall) -> String {
    let Stall { kind, block, alive, without, needed, .. } = stall;
    let block = block.map_or_else(|| "the block".to_owned(), |number| format!("block {number}"));
    match kind {
        StallKind::TooFewGroups => format!("{alive} of {needed} needed groups answered"),
        StallKind::NoAgreement => {
            format!("{alive} groups answered, and no {needed} of them agree on {block}")
        }
        StallKind::Behind => {
            format!("{needed} groups have to have {block}; {without} of the {alive} that answered do not")
        }
        StallKind::NoValidBody => {
            format!("the header of {block} is agreed on, and nobody served contents that fit it")
        }
        StallKind::Unsettled => {
            format!("what follows {block} does not link to it, and it is still agreed on")
        }
        StallKind::ForkBelowRing => format!("{block}, the oldest that is remembered, is off the chain"),
    }
}

fn spell(why: &[(String, StallReason)]) -> String {
    why.iter().map(|(name, reason)| format!("; {name}: {reason}")).collect()
}

/// What [`ChainReader::poll`] found.
#[derive(Debug, Clone)]
pub enum Progress {
    /// No block after the cursor.
    Idle {
        /// The agreed heights.
        heights: Heights,
    },
    /// The blocks after the cursor, in order, each linked to the one before.
    Blocks {
        /// At least one.
        blocks: Vec<ProvenBlock>,
        /// The agreed heights.
        heights: Heights,
    },
    /// `k` groups no longer have our last block. Everything above `ancestor` is off the chain.
    Reorg {
        /// The highest block that we have and that is still agreed on.
        ancestor: BlockRef,
        /// The agreed heights.
        heights: Heights,
    },
}

/// How many rounds ended how, since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoundCounts {
    /// Rounds in which `k` groups agreed and the data was proven.
    pub agreed: u64,
    /// Rounds that ended in a [`Stall`].
    pub failed: u64,
    /// Bodies that had to be asked for again, of another provider.
    pub retries: u64,
}

/// Providers that serve another chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", spell_wrong(.expected, .wrong))]
pub struct WrongChains {
    /// The chain they were configured for.
    pub expected: ChainId,
    /// Name and EIP-155 number answered.
    pub wrong: Vec<(String, u64)>,
}

fn spell_wrong(expected: &ChainId, wrong: &[(String, u64)]) -> String {
    let list: Vec<String> =
        wrong.iter().map(|(name, found)| format!("provider `{name}` serves chain {found}")).collect();
    format!("{}, not {}", list.join(", "), expected.number())
}

/// The highest safe and finalized blocks that each provider ever reported. Neither is taken back, so an
/// old report of a provider that is silent now still counts.
#[derive(Debug, Default)]
struct Tags {
    safe: BTreeMap<usize, u64>,
    finalized: BTreeMap<usize, u64>,
    asked_at: Option<Duration>,
}

/// A block tag of the JSON-RPC API (execution-apis, "Block tag").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    Safe,
    Finalized,
}

impl Tags {
    fn saw(&mut self, tag: Tag, provider: usize, height: u64) {
        let heights = match tag {
            Tag::Safe => &mut self.safe,
            Tag::Finalized => &mut self.finalized,
        };
        let best = heights.entry(provider).or_insert(height);
        *best = height.max(*best);
    }
}

pub(super) struct Inner {
    pub(super) chain: ChainId,
    pub(super) profile: ChainProfile,
    pub(super) roster: Roster,
    pub(super) providers: Vec<Provider>,
    pub(super) clock: Arc<dyn Clock>,
    tags: Mutex<Tags>,
    tags_every: Duration,
    /// A header's filter was once seen to miss a log: nothing is concluded from filters any more.
    bloom_distrusted: AtomicBool,
    pub(super) agreed: AtomicU64,
    failed: AtomicU64,
    retries: AtomicU64,
    pub(super) hearings: Semaphore,
}

/// Reads one chain through its providers. Cheap to clone.
#[derive(Clone)]
pub struct ChainReader(Arc<Inner>);

impl std::fmt::Debug for ChainReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChainReader")
            .field("chain", &self.0.chain)
            .field("providers", &self.0.providers)
            .finish_non_exhaustive()
    }
}

/// A header, and who gave it when.
#[derive(Debug, Clone)]
struct Sighting {
    provider: usize,
    header: SeenHeader,
    at: Timestamp,
    took: Duration,
}

/// The heads of the providers that answered.
#[derive(Debug)]
struct HeadView {
    target: u64,
    sightings: Vec<Sighting>,
}

/// Why a body could not be used.
#[derive(Debug, Clone, Copy)]
enum NoBody {
    Unanswered(RpcError),
    Invalid(FaultKind),
}

enum Event {
    Header { provider: usize, outcome: Result<Box<SeenHeader>, RpcError>, at: Timestamp, took: Duration },
    Body { provider: usize, block: B256, outcome: Result<Arc<Body>, NoBody> },
    Alarm { block: B256 },
}

type Pending = FuturesUnordered<BoxFuture<'static, Event>>;
/// A provider's answer for a header, with when it came and how long it took.
type HeaderAnswer = (Result<SeenHeader, RpcError>, Timestamp, Duration);
type PendingHeaders = FuturesUnordered<BoxFuture<'static, (usize, HeaderAnswer)>>;

/// The parameters of `eth_getBlockByNumber` for the newest block.
const LATEST: &str = r#"["latest",false]"#;

/// The parameters of `eth_getBlockByNumber` for a height.
pub(super) fn block_param(number: u64) -> String {
    format!(r#"["0x{number:x}",false]"#)
}

impl ChainReader {
    /// A reader of one chain.
    ///
    /// # Errors
    /// A quorum that could never hold: no group, more than there are, a provider twice or unnamed.
    pub fn new(setup: ReaderSetup) -> Result<Self, InvalidQuorum> {
        let ReaderSetup { chain, quorum, profile, providers, clock, chance, tags_every } = setup;
        for (position, provider) in providers.iter().enumerate() {
            if provider.name.is_empty() {
                return Err(InvalidQuorum::Unnamed);
            }
            if providers[..position].iter().any(|other| other.name == provider.name) {
                return Err(InvalidQuorum::Duplicate(provider.name.clone()));
            }
        }
        let groups: Vec<&str> = providers.iter().map(|provider| provider.group.as_str()).collect();
        let roster = Roster::new(&groups, quorum)?;
        let providers = providers
            .into_iter()
            .map(|provider| Provider::new(provider, Arc::clone(&clock), chance.clone()))
            .collect();
        Ok(Self(Arc::new(Inner {
            chain,
            profile,
            roster,
            providers,
            clock,
            tags: Mutex::default(),
            tags_every,
            bloom_distrusted: AtomicBool::new(false),
            agreed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            hearings: Semaphore::new(HEARINGS),
        })))
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    /// The chain.
    #[must_use]
    pub fn chain(&self) -> ChainId {
        self.0.chain
    }

    /// What is concluded from its data.
    #[must_use]
    pub fn profile(&self) -> ChainProfile {
        self.0.profile
    }

    /// Asks every provider which chain it serves. Providers that cannot be reached are asked again
    /// before their first vote.
    ///
    /// # Errors
    /// The providers that serve another chain, by name. They are not asked again.
    pub async fn check_chain_ids(&self) -> Result<(), WrongChains> {
        let expected = self.0.chain;
        let asked = self.0.providers.iter().map(|provider| async move {
            provider.forget_chain();
            (provider.name(), provider.confirm_chain(expected).await)
        });
        let wrong: Vec<(String, u64)> = futures::future::join_all(asked)
            .await
            .into_iter()
            .filter_map(|(name, outcome)| match outcome {
                Err(RpcError::WrongChain { found, .. }) => Some((name.to_owned(), found)),
                _ => None,
            })
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(WrongChains { expected, wrong }) }
    }

    /// Everything known of the providers, for people and metrics.
    #[must_use]
    pub fn providers(&self) -> Vec<ProviderStatus> {
        self.0.providers.iter().map(Provider::status).collect()
    }

    /// How the rounds went.
    #[must_use]
    pub fn rounds(&self) -> RoundCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RoundCounts {
            agreed: read(&self.0.agreed),
            failed: read(&self.0.failed),
            retries: read(&self.0.retries),
        }
    }

    /// What follows the last block of `ring`: nothing, up to `max_blocks` proven blocks, or the fork to
    /// go back to. `ring` is the recent blocks that the caller has applied, oldest first; an empty ring
    /// starts at the agreed head.
    ///
    /// # Errors
    /// Nothing could be concluded; the caller keeps its cursor and asks again.
    pub async fn poll(&self, ring: &[BlockRef], watch: &Watch, max_blocks: usize) -> Result<Progress, Stall> {
        let cursor = ring.last().copied();
        let (view, ()) =
            futures::join!(self.0.heads(cursor.map(|block| block.number)), self.0.refresh_tags());
        let view = view?;
        let heights = self.0.heights(view.target);
        match cursor {
            None => {
                let block = self.0.read(view.target, watch.clone(), view.sightings).await?;
                Ok(Progress::Blocks { blocks: vec![block], heights })
            }
            Some(cursor) if view.target > cursor.number => {
                self.advance(ring, cursor, watch, max_blocks, view, heights).await
            }
            Some(cursor) => self.stand(ring, cursor, &view, heights).await,
        }
    }

    /// Reads on from the cursor.
    async fn advance(
        &self,
        ring: &[BlockRef],
        cursor: BlockRef,
        watch: &Watch,
        max_blocks: usize,
        view: HeadView,
        heights: Heights,
    ) -> Result<Progress, Stall> {
        let room = u64::try_from(max_blocks.max(1)).unwrap_or(u64::MAX);
        let upto = view.target.min(cursor.number.saturating_add(room));
        let mut reads = stream::iter(cursor.number.saturating_add(1)..=upto)
            .map(|number| {
                let seen = if number == view.target { view.sightings.clone() } else { Vec::new() };
                self.0.read(number, watch.clone(), seen)
            })
            .buffered(AHEAD);
        let mut blocks: Vec<ProvenBlock> = Vec::new();
        let mut parent = cursor.hash;
        let started = self.0.clock.monotonic();
        while let Some(read) = reads.next().await {
            match read {
                Ok(block) if block.link.parent == parent => {
                    parent = block.link.block.hash;
                    blocks.push(block);
                    if self.0.clock.monotonic().saturating_sub(started) >= ENOUGH {
                        break;
                    }
                }
                Ok(_) if blocks.is_empty() => {
                    drop(reads);
                    return self.fork(ring, cursor, heights).await;
                }
                Err(stall) if blocks.is_empty() => return Err(stall),
                // What was read before holds; the next poll meets the trouble first.
                Ok(_) | Err(_) => break,
            }
        }
        Ok(Progress::Blocks { blocks, heights })
    }

    /// There is nothing after the cursor. Is the cursor still on the chain?
    async fn stand(
        &self,
        ring: &[BlockRef],
        cursor: BlockRef,
        view: &HeadView,
        heights: Heights,
    ) -> Result<Progress, Stall> {
        let Some(ours) = ring.iter().rev().find(|block| block.number == view.target).copied() else {
            // The providers are further behind than we remember: that is lag, not a fork.
            return Ok(Progress::Idle { heights: Heights { head: cursor.number, ..heights } });
        };
        let confirmed =
            view.sightings.iter().filter(|seen| seen.header.link().block == ours).map(|seen| seen.provider);
        if self.0.roster.groups_among(confirmed) >= self.0.roster.needed()
            || self.0.agree_on_header(ours.number).await?.block == ours
        {
            return Ok(Progress::Idle { heights: Heights { head: cursor.number, ..heights } });
        }
        self.fork(ring, cursor, heights).await
    }

    async fn fork(&self, ring: &[BlockRef], cursor: BlockRef, heights: Heights) -> Result<Progress, Stall> {
        let ancestor = self.find_ancestor(ring).await?;
        if ancestor == cursor {
            return Err(self.0.stall(StallKind::Unsettled, Some(cursor.number), &BTreeMap::new()));
        }
        Ok(Progress::Reorg { ancestor, heights })
    }

    /// The header of block `number` that `k` groups agree on.
    ///
    /// # Errors
    /// No `k` groups agree.
    pub async fn header_at(&self, number: u64) -> Result<BlockLink, Stall> {
        self.0.agree_on_header(number).await
    }

    /// Reads one block.
    ///
    /// # Errors
    /// The block could not be proven now.
    pub async fn read_block(&self, number: u64, watch: &Watch) -> Result<ProvenBlock, Stall> {
        self.0.read(number, watch.clone(), Vec::new()).await
    }

    /// The height that `k` groups have reached.
    ///
    /// # Errors
    /// Fewer than `k` groups answer.
    pub async fn head(&self) -> Result<u64, Stall> {
        self.0.heads(None).await.map(|view| view.target)
    }

    /// The highest block of `ring` (oldest first) that `k` groups still have. A fork is mostly shallow, so
    /// the search gallops down from the top and then halves.
    ///
    /// # Errors
    /// No quorum on a header that decides, or the fork is below the ring.
    pub async fn find_ancestor(&self, ring: &[BlockRef]) -> Result<BlockRef, Stall> {
        let mut known_bad = ring.len();
        let mut step = 1;
        let mut low = loop {
            if known_bad == 0 {
                let block = ring.first().map(|block| block.number);
                return Err(self.0.stall(StallKind::ForkBelowRing, block, &BTreeMap::new()));
            }
            let probe = known_bad.saturating_sub(step);
            if self.still_agreed(ring[probe]).await? {
                break probe;
            }
            known_bad = probe;
            step *= 2;
        };
        while low + 1 < known_bad {
            let middle = low + (known_bad - low) / 2;
            if self.still_agreed(ring[middle]).await? {
                low = middle;
            } else {
                known_bad = middle;
            }
        }
        Ok(ring[low])
    }

    /// Whether `k` groups have `block`. That it is gone takes `k` groups too: they have another one at
    /// its height, or none.
    async fn still_agreed(&self, block: BlockRef) -> Result<bool, Stall> {
        match self.0.agree_on_header(block.number).await {
            Ok(link) => Ok(link.block == block),
            Err(stall) if stall.kind == StallKind::Behind && stall.without >= stall.needed => Ok(false),
            Err(stall) => Err(stall),
        }
    }
}

impl Inner {
    /// The heights as far as they are known.
    fn heights(&self, head: u64) -> Heights {
        let tags = self.tags();
        let reached = |seen: &BTreeMap<usize, u64>| {
            self.roster
                .reached_by_quorum(seen.iter().map(|(provider, height)| (*provider, *height)))
                .unwrap_or(0)
        };
        let finalized = reached(&tags.finalized);
        Heights { head, safe: reached(&tags.safe).max(finalized), finalized }
    }

    fn tags(&self) -> MutexGuard<'_, Tags> {
        self.tags.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one provider, after it has shown that it serves our chain.
    pub(super) async fn header_of(self: Arc<Self>, provider: usize, params: String) -> HeaderAnswer {
        let started = self.clock.monotonic();
        let asked = &self.providers[provider];
        let outcome = match asked.confirm_chain(self.chain).await {
            Ok(()) => {
                let is_head = params == LATEST;
                let call = Call::new("eth_getBlockByNumber", params);
                let answer = asked.ask(call, |raw| decode_header_answer(raw, &self.profile)).await;
                if let (true, Ok(header)) = (is_head, &answer) {
                    asked.saw_head(header.header.number);
                }
                answer
            }
            Err(error) => Err(error),
        };
        (outcome, self.clock.now(), self.clock.monotonic().saturating_sub(started))
    }

    /// The heads of the providers. Ends as soon as `k` groups have reached the highest head that was seen,
    /// or say that there is nothing new; otherwise waits a little for the others.
    async fn heads(self: &Arc<Self>, cursor: Option<u64>) -> Result<HeadView, Stall> {
        let mut pending = PendingHeaders::new();
        for provider in 0..self.providers.len() {
            let asked = Arc::clone(self).header_of(provider, LATEST.to_owned());
            pending.push(Box::pin(async move { (provider, asked.await) }));
        }
        let mut sightings: Vec<Sighting> = Vec::new();
        let mut reasons = BTreeMap::new();
        let mut grace = None;
        loop {
            let heights = sightings.iter().map(|seen| (seen.provider, seen.header.header.number));
            if let Some(target) = self.roster.reached_by_quorum(heights.clone()) {
                // Somebody who is ahead of the quorum may be the first to see a new block, or lie.
                let highest = heights.map(|(_, head)| head).max().unwrap_or(target);
                let nothing_new = cursor.is_some_and(|cursor| highest <= cursor);
                if pending.is_empty() || target == highest || nothing_new {
                    break;
                }
                grace.get_or_insert_with(|| self.clock.sleep(HEAD_GRACE));
            } else if pending.is_empty() {
                break;
            }
            let next = pending.next();
            let (provider, (outcome, at, took)) = match grace.as_mut() {
                None => match next.await {
                    Some(answer) => answer,
                    None => break,
                },
                Some(alarm) => match select(next, alarm).await {
                    Either::Left((Some(answer), _)) => answer,
                    Either::Left((None, _)) | Either::Right(_) => break,
                },
            };
            match outcome {
                Ok(header) => {
                    sightings.push(Sighting { provider, header, at, took });
                }
                Err(error) => {
                    reasons.insert(provider, StallReason::NoAnswer(error));
                }
            }
        }
        Self::hear_out(pending);
        let heights = sightings.iter().map(|seen| (seen.provider, seen.header.header.number));
        match self.roster.reached_by_quorum(heights) {
            Some(target) => {
                sightings.retain(|seen| seen.header.header.number == target);
                Ok(HeadView { target, sightings })
            }
            None => {
                for seen in &sightings {
                    reasons.insert(seen.provider, StallReason::Header(seen.header.hash));
                }
                Err(self.failed(StallKind::TooFewGroups, None, &reasons))
            }
        }
    }

    /// Lets the slower providers finish, so that what they would have said of themselves is known: their
    /// latency, that they hang, that they are back.
    fn hear_out(pending: PendingHeaders) {
        if pending.is_empty() {
            return;
        }
        tokio::spawn(pending.for_each(|_| std::future::ready(())));
    }

    /// Asks for `safe` and `finalized` when it is time to, and waits until `k` groups have answered.
    async fn refresh_tags(self: &Arc<Self>) {
        let now = self.clock.monotonic();
        {
            let mut tags = self.tags();
            if tags.asked_at.is_some_and(|asked| now.saturating_sub(asked) < self.tags_every) {
                return;
            }
            tags.asked_at = Some(now);
        }
        futures::join!(self.ask_for_tag(Tag::Safe), self.ask_for_tag(Tag::Finalized));
    }

    async fn ask_for_tag(self: &Arc<Self>, tag: Tag) {
        let params = match tag {
            Tag::Safe => r#"["safe",false]"#,
            Tag::Finalized => r#"["finalized",false]"#,
        };
        let mut pending: FuturesUnordered<BoxFuture<'static, (usize, bool)>> = FuturesUnordered::new();
        for provider in 0..self.providers.len() {
            let inner = Arc::clone(self);
            pending.push(Box::pin(async move {
                let (outcome, ..) = Arc::clone(&inner).header_of(provider, params.to_owned()).await;
                if let Ok(header) = &outcome {
                    inner.tags().saw(tag, provider, header.header.number);
                }
                (provider, outcome.is_ok())
            }));
        }
        let mut waiting: Vec<usize> = (0..self.providers.len()).collect();
        let mut answered = Vec::new();
        while let Some((provider, has_tag)) = pending.next().await {
            waiting.retain(|other| *other != provider);
            if has_tag {
                answered.push(provider);
            }
            let enough = self.roster.groups_among(answered.iter().copied()) >= self.roster.needed();
            let hopeless =
                self.roster.groups_among(answered.iter().chain(&waiting).copied()) < self.roster.needed();
            if enough || hopeless {
                break;
            }
        }
        if !pending.is_empty() {
            tokio::spawn(pending.for_each(|_| std::future::ready(())));
        }
    }

    /// All providers, best first.
    fn by_rank(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.providers.len()).collect();
        order.sort_by_cached_key(|provider| self.providers[*provider].rank());
        order
    }

    /// The header of block `number`, by quorum, without its body.
    pub(super) async fn agree_on_header(self: &Arc<Self>, number: u64) -> Result<BlockLink, Stall> {
        let mut round: BlockRound<()> = BlockRound::new(self.roster.clone(), number, self.by_rank());
        let mut reasons = BTreeMap::new();
        let mut pending = PendingHeaders::new();
        for provider in 0..self.providers.len() {
            let asked = Arc::clone(self).header_of(provider, block_param(number));
            pending.push(Box::pin(async move { (provider, asked.await) }));
        }
        while round.verdict().is_none() {
            let Some((provider, (outcome, ..))) = pending.next().await else { break };
            match outcome {
                Ok(header) => {
                    reasons.insert(provider, StallReason::Header(header.hash));
                    round.on_header(provider, claim_of(&header), false);
                }
                Err(error) => {
                    reasons.insert(provider, reason_of(error));
                    round.on_no_header(provider);
                }
            }
        }
        Self::hear_out(pending);
        match round.verdict() {
            Some(Verdict::Agreed { claim, .. }) => {
                self.blame_dissenters(round.ballot());
                self.agreed.fetch_add(1, Ordering::Relaxed);
                Ok(claim.link())
            }
            _ => Err(self.no_quorum(number, &reasons)),
        }
    }

    /// Reads block `number` in the way its chain allows. `seen` are headers that are at hand already.
    async fn read(
        self: &Arc<Self>,
        number: u64,
        watch: Watch,
        seen: Vec<Sighting>,
    ) -> Result<ProvenBlock, Stall> {
        match self.profile.root_mode {
            RootMode::None => self.read_by_vote(number, &watch).await,
            RootMode::Eth | RootMode::Op => self.read_by_proof(number, watch, seen).await,
        }
    }

    /// Reads block `number` by proof.
    async fn read_by_proof(
        self: &Arc<Self>,
        number: u64,
        watch: Watch,
        seen: Vec<Sighting>,
    ) -> Result<ProvenBlock, Stall> {
        let mut reading = Reading {
            round: BlockRound::new(self.roster.clone(), number, self.by_rank()),
            watch,
            headers: BTreeMap::new(),
            heard_at: BTreeMap::new(),
            reasons: BTreeMap::new(),
            pending: Pending::new(),
        };
        let at_hand: Vec<usize> = seen.iter().map(|sighting| sighting.provider).collect();
        for provider in (0..self.providers.len()).filter(|provider| !at_hand.contains(provider)) {
            let asked = Arc::clone(self).header_of(provider, block_param(number));
            reading.pending.push(Box::pin(async move {
                let (outcome, at, took) = asked.await;
                Event::Header { provider, outcome: outcome.map(Box::new), at, took }
            }));
        }
        for Sighting { provider, header, at, took } in seen {
            reading.apply(self, Event::Header { provider, outcome: Ok(Box::new(header)), at, took });
        }
        let verdict = loop {
            if let Some(verdict) = reading.round.verdict() {
                break verdict;
            }
            match reading.pending.next().await {
                Some(event) => reading.apply(self, event),
                None => break Verdict::NoQuorum,
            }
        };
        self.conclude(number, verdict, reading)
    }

    fn conclude(
        self: &Arc<Self>,
        number: u64,
        verdict: Verdict<Arc<Body>>,
        reading: Reading,
    ) -> Result<ProvenBlock, Stall> {
        match verdict {
            Verdict::Agreed { claim, body } => {
                let link = claim.link();
                let body = body.map(|(body, _)| body);
                let transfers = body
                    .as_deref()
                    .map_or_else(Vec::new, |body| body.transfers(self.chain, &link, &reading.watch));
                let voters = self.voters(&reading, &claim);
                let header_rlp = reading.headers.get(&claim.hash).and_then(|header| header.rlp());
                self.agreed.fetch_add(1, Ordering::Relaxed);
                self.compare_late(reading);
                Ok(ProvenBlock {
                    link,
                    level: EvidenceLevel::Verified,
                    transfers,
                    voters,
                    disputed: Vec::new(),
                    unasked: BTreeSet::new(),
                    header_rlp,
                    supporters: BTreeMap::new(),
                    body,
                })
            }
            Verdict::NoQuorum => {
                let stall = self.no_quorum(number, &reading.reasons);
                self.compare_late(reading);
                Err(stall)
            }
            Verdict::NoBody { .. } => {
                let stall = self.failed(StallKind::NoValidBody, Some(number), &reading.reasons);
                self.compare_late(reading);
                Err(stall)
            }
        }
    }

    fn voters(&self, reading: &Reading, claim: &HeaderClaim) -> Vec<Voter> {
        reading
            .round
            .ballot()
            .supporters(claim)
            .map(|provider| Voter {
                group: self.providers[provider].group().to_owned(),
                provider: self.providers[provider].name().to_owned(),
                at: reading.heard_at.get(&provider).copied().unwrap_or_default(),
            })
            .collect()
    }

    /// Lets the slower providers finish after the verdict, and compares what they say with it.
    fn compare_late(self: &Arc<Self>, mut reading: Reading) {
        self.blame_dissenters(reading.round.ballot());
        let blamed: Vec<usize> = reading.round.ballot().dissenters().map(|(provider, _)| provider).collect();
        if reading.pending.is_empty() {
            return;
        }
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(event) = reading.pending.next().await {
                match event {
                    Event::Header { provider, outcome: Ok(header), .. } => {
                        reading.round.on_header(provider, claim_of(&header), false);
                    }
                    Event::Body { provider, block, outcome: Err(NoBody::Invalid(fault)) } => {
                        inner.providers[provider].caught(fault, None, None, Some(block));
                    }
                    _ => {}
                }
            }
            let ballot = reading.round.ballot();
            for (provider, said) in ballot.dissenters().filter(|(provider, _)| !blamed.contains(provider)) {
                inner.blame(provider, *said, ballot.agreed());
            }
        });
    }

    pub(super) fn blame_dissenters(&self, ballot: &Ballot<HeaderClaim>) {
        for (provider, said) in ballot.dissenters() {
            self.blame(provider, *said, ballot.agreed());
        }
    }

    fn blame(&self, provider: usize, said: HeaderClaim, agreed: Option<&HeaderClaim>) {
        let agreed = agreed.map(|claim| claim.hash);
        self.providers[provider].caught(FaultKind::OtherHeader, Some(said.number), Some(said.hash), agreed);
    }

    pub(super) fn no_quorum(&self, number: u64, reasons: &BTreeMap<usize, StallReason>) -> Stall {
        let answered = reasons.iter().filter(|(_, reason)| !matches!(reason, StallReason::NoAnswer(_)));
        let showed: Vec<B256> = reasons
            .values()
            .filter_map(|reason| match reason {
                StallReason::Header(hash) => Some(*hash),
                _ => None,
            })
            .collect();
        let kind = if self.roster.groups_among(answered.map(|(provider, _)| *provider)) < self.roster.needed()
        {
            StallKind::TooFewGroups
        } else if showed.windows(2).any(|pair| pair[0] != pair[1]) {
            StallKind::NoAgreement
        } else {
            StallKind::Behind
        };
        self.failed(kind, Some(number), reasons)
    }

    pub(super) fn failed(
        &self,
        kind: StallKind,
        block: Option<u64>,
        reasons: &BTreeMap<usize, StallReason>,
    ) -> Stall {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.stall(kind, block, reasons)
    }

    fn stall(&self, kind: StallKind, block: Option<u64>, reasons: &BTreeMap<usize, StallReason>) -> Stall {
        let alive = reasons.iter().filter(|(_, reason)| !matches!(reason, StallReason::NoAnswer(_)));
        let without = reasons.iter().filter(|(_, reason)| matches!(reason, StallReason::Behind));
        Stall {
            kind,
            block,
            alive: self.roster.groups_among(alive.map(|(provider, _)| *provider)),
            without: self.roster.groups_among(without.map(|(provider, _)| *provider)),
            needed: self.roster.needed(),
            why: reasons
                .iter()
                .map(|(provider, reason)| (self.providers[*provider].name().to_owned(), *reason))
                .collect(),
        }
    }

    fn profile_now(&self) -> ChainProfile {
        ChainProfile {
            bloom_trusted: self.profile.bloom_trusted && !self.bloom_distrusted.load(Ordering::Relaxed),
            ..self.profile
        }
    }

    /// Fetches receipts and, where they may be needed, transactions, and proves them under `header`.
    async fn fetch_body(
        self: Arc<Self>,
        provider: usize,
        header: Arc<SeenHeader>,
        watch: Watch,
    ) -> Result<Body, NoBody> {
        let asked = &self.providers[provider];
        let hash = header.hash;
        let receipts = async {
            let call = Call::new("eth_getBlockReceipts", format!(r#"["{hash}"]"#)).block_sized();
            asked.ask(call, decode_receipts).await
        };
        let transactions = async {
            let call = Call::new("eth_getBlockByHash", format!(r#"["{hash}",true]"#)).block_sized();
            asked.ask(call, |raw| decode_transactions(raw, &self.profile)).await
        };
        futures::pin_mut!(receipts, transactions);
        // Both at once: mostly the transactions are needed too, and a second round trip costs more.
        let (receipts, early) = match select(receipts, &mut transactions).await {
            Either::Left((receipts, _)) => (receipts, None),
            Either::Right((early, receipts)) => (receipts.await, Some(early)),
        };
        let receipts = Receipts::check(&header.header, receipts.map_err(NoBody::Unanswered)?)
            .map_err(NoBody::Invalid)?;
        if !receipts.are_covered_by(&header.header.logs_bloom, &watch)
            && !self.bloom_distrusted.swap(true, Ordering::Relaxed)
        {
            tracing::error!(chain = %self.chain, block = header.header.number, "the header's filter misses a log: filters are no longer used");
        }
        if !watch.native && !receipts.hold(&watch) {
            return Ok(Body { receipts, transactions: None });
        }
        let transactions = match early {
            Some(early) => early,
            None => transactions.await,
        }
        .map_err(NoBody::Unanswered)?;
        check_transactions(&header.header, &transactions).map_err(NoBody::Invalid)?;
        if transactions.list.len() == receipts.list.len() {
            Ok(Body { receipts, transactions: Some(transactions) })
        } else {
            Err(NoBody::Invalid(FaultKind::TransactionsRoot))
        }
    }
}

pub(super) fn claim_of(header: &SeenHeader) -> HeaderClaim {
    HeaderClaim {
        number: header.header.number,
        hash: header.hash,
        parent: header.header.parent_hash,
        seconds: header.header.timestamp,
    }
}

pub(super) const fn reason_of(error: RpcError) -> StallReason {
    match error {
        RpcError::NotFound => StallReason::Behind,
        error => StallReason::NoAnswer(error),
    }
}

/// One block being read: the round, and what the network has under way for it.
struct Reading {
    round: BlockRound<Arc<Body>>,
    watch: Watch,
    headers: BTreeMap<B256, Arc<SeenHeader>>,
    heard_at: BTreeMap<usize, Timestamp>,
    reasons: BTreeMap<usize, StallReason>,
    pending: Pending,
}

impl Reading {
    /// Tells the round what happened and starts what it asks for.
    fn apply(&mut self, inner: &Arc<Inner>, event: Event) {
        match event {
            Event::Header { provider, outcome: Ok(header), at, took } => {
                let needs_body = self.watch.is_open_for(&header.header, &inner.profile_now());
                self.heard_at.insert(provider, at);
                self.reasons.insert(provider, StallReason::Header(header.hash));
                let claim = claim_of(&header);
                self.headers.entry(header.hash).or_insert_with(|| Arc::from(header));
                let command = self.round.on_header(provider, claim, needs_body);
                self.fetch(inner, command, took);
            }
            Event::Header { provider, outcome: Err(error), .. } => {
                self.reasons.insert(provider, reason_of(error));
                self.round.on_no_header(provider);
            }
            Event::Body { provider, block, outcome: Ok(body) } => self.round.on_body(provider, block, body),
            Event::Body { provider, block, outcome: Err(NoBody::Unanswered(error)) } => {
                self.reasons.insert(provider, StallReason::NoAnswer(error));
                let command = self.round.on_no_body(provider, block);
                self.retry(inner, command);
            }
            Event::Body { provider, block, outcome: Err(NoBody::Invalid(fault)) } => {
                inner.providers[provider].caught(fault, None, None, Some(block));
                self.reasons.insert(provider, StallReason::Invalid(fault));
                let commands = self.round.on_bad_body(provider, block);
                self.retry(inner, commands);
            }
            Event::Alarm { block } => {
                let command = self.round.on_alarm(block);
                self.retry(inner, command);
            }
        }
    }

    /// Fetches again what was asked of another provider before.
    fn retry(&mut self, inner: &Arc<Inner>, commands: impl IntoIterator<Item = Command>) {
        for command in commands {
            inner.retries.fetch_add(1, Ordering::Relaxed);
            self.fetch(inner, Some(command), Duration::ZERO);
        }
    }

    /// Carries out a command. `header_took` says how fast the provider just was.
    fn fetch(&mut self, inner: &Arc<Inner>, command: Option<Command>, header_took: Duration) {
        let Some(Command::FetchBody { provider, block }) = command else { return };
        let Some(header) = self.headers.get(&block).map(Arc::clone) else { return };
        let fetched = Arc::clone(inner).fetch_body(provider, header, self.watch.clone());
        self.pending.push(Box::pin(async move {
            Event::Body { provider, block, outcome: fetched.await.map(Arc::new) }
        }));
        let alarm = inner.clock.sleep(inner.providers[provider].patience(header_took));
        self.pending.push(Box::pin(async move {
            alarm.await;
            Event::Alarm { block }
        }));
    }
}

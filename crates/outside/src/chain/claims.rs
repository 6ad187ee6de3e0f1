//! Reading a block by vote, and asking again about what was disputed.
//!
//! Guarantees: a provider votes on the logs of a block only after it gave the header that was agreed on, and
//! by the hash of that header; all providers are heard, since the one that is slow may be the only one
//! that shows a payment; a claim of too few groups is asked about once more, of everybody, by receipt, before
//! it is called disputed. What one liar can make us do for a block is bounded: claims that concern nobody of ours
//! are not asked about, and whoever shows very many is believed in nothing once a sample of them is denied.
//!
//! Deliberately absent: counting, which is [`super::votes`], and the memory of disputes, which is the caller's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alloy_primitives::{Address, B256};
use domain::chain::{Asset, BlockLink, BlockRef, EvidenceLevel, Transfer, TransferKey};
use domain::money::Amount;
use domain::time::Timestamp;
use futures::future::{Either, join_all, select};
use futures::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use tokio::sync::OnceCell;

use super::block::{ProvenBlock, TokenTransfer, Watch};
use super::error::RpcError;
use super::evidence::Voter;
use super::provider::FaultKind;
use super::quorum::Ballot;
use super::reader::{
    ChainReader, HEARINGS, Inner, Stall, StallKind, StallReason, block_param, claim_of, reason_of,
};
use super::rpc::Call;
use super::votes::{
    Claim, ClaimVerdict, Content, DisputedClaim, Tally, Testimony, digest_of_log, is_decided, judge,
};
use super::wire::{
    ClaimedTransaction, SeenHeader, SeenLog, SeenReceipt, decode_claimed_transactions, decode_contents,
    decode_logs, decode_receipt,
};

/// Claims of one provider on one block that are taken one by one. Of more a sample is asked about first: a provider
/// whose neighbours' log index lags shows as many as a liar does.
const MOST_CLAIMS: usize = 64;
/// How many make a sample.
const SAMPLE: usize = 8;
/// A provider's own receipts that are asked for at once.
const RECEIPTS_AT_ONCE: usize = 4;
/// The longest that one provider may take to show what is in a block, all its calls together.
const LONGEST_WORD: Duration = Duration::from_secs(10);

/// What became of a disputed claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// `k` groups have it now: read its block again.
    Confirmed,
    /// `k` groups have the block, and deny it.
    Denied,
    /// `k` groups have another block at its height: it is off the chain.
    Gone,
    /// Still disputed.
    Open,
}

/// One provider's word on one block.
struct Word {
    provider: usize,
    header: Result<SeenHeader, RpcError>,
    at: Timestamp,
    shown: Result<Vec<Claim>, RpcError>,
}

impl ChainReader {
    /// Asks all groups about a claim again. Only a denial at a finalized block closes it for good: the
    /// caller knows which heights are final.
    ///
    /// # Errors
    /// No quorum on the header of its block.
    pub async fn recheck(&self, claim: &DisputedClaim) -> Result<ClaimOutcome, Stall> {
        let inner = self.inner();
        let transfer = &claim.transfer;
        if inner.agree_on_header(transfer.block.number).await?.block != transfer.block {
            return Ok(ClaimOutcome::Gone);
        }
        let verdicts = Hearing::on(inner, transfer.block).of_transaction(&[*transfer]).await;
        Ok(match verdicts.first().copied().unwrap_or(ClaimVerdict::Open) {
            ClaimVerdict::Confirmed => ClaimOutcome::Confirmed,
            ClaimVerdict::Denied => ClaimOutcome::Denied,
            ClaimVerdict::Open => ClaimOutcome::Open,
        })
    }
}

impl Inner {
    /// Reads block `number` by vote.
    pub(super) async fn read_by_vote(
        self: &Arc<Self>,
        number: u64,
        watch: &Watch,
    ) -> Result<ProvenBlock, Stall> {
        let words =
            join_all((0..self.providers.len()).map(|provider| self.word_of(provider, number, watch))).await;
        let header = self.agree_among(number, &words)?;
        let link = header.link();
        let tally = self.count(&header, &words)?;
        let tally = self.without_forgers(&header, tally, &words).await?;
        let Settled { accepted, disputed, unasked } =
            self.settle_claims(link.block, tally, watch, &words).await;
        let heard: BTreeMap<usize, Timestamp> = words.iter().map(|word| (word.provider, word.at)).collect();
        let voter = |provider: &usize| Voter {
            group: self.providers[*provider].group().to_owned(),
            provider: self.providers[*provider].name().to_owned(),
            at: heard.get(provider).copied().unwrap_or_default(),
        };
        self.count_agreed();
        Ok(ProvenBlock {
            link,
            level: EvidenceLevel::Quorum,
            transfers: accepted.iter().map(|(claim, _)| claim.transfer).collect(),
            voters: words
                .iter()
                .filter(|word| word.gave(header.hash))
                .map(|word| voter(&word.provider))
                .collect(),
            disputed,
            unasked,
            header_rlp: header.rlp(),
            supporters: accepted
                .iter()
                .map(|(claim, who)| (claim.transfer.key, who.iter().map(voter).collect()))
                .collect(),
            body: None,
        })
    }

    /// The provider's header for `number`, and what it shows under that header's hash.
    async fn word_of(self: &Arc<Self>, provider: usize, number: u64, watch: &Watch) -> Word {
        let (header, at, _) = Arc::clone(self).header_of(provider, block_param(number)).await;
        let shown = match &header {
            Ok(header) if header.header.number != number => {
                Err(RpcError::Malformed("another block than asked for"))
            }
            Ok(header) => self.shown_in_time(provider, header, watch).await,
            Err(error) => Err(*error),
        };
        Word { provider, header, at, shown }
    }

    async fn shown_in_time(
        &self,
        provider: usize,
        header: &SeenHeader,
        watch: &Watch,
    ) -> Result<Vec<Claim>, RpcError> {
        let shown = std::pin::pin!(self.shown_by(provider, header, watch));
        match select(shown, self.clock.sleep(LONGEST_WORD)).await {
            Either::Left((shown, _)) => shown,
            Either::Right(_) => Err(RpcError::Timeout),
        }
    }

    async fn shown_by(
        &self,
        provider: usize,
        header: &SeenHeader,
        watch: &Watch,
    ) -> Result<Vec<Claim>, RpcError> {
        let (asked, link) = (&self.providers[provider], header.link());
        let mut claims = Vec::new();
        if !watch.tokens.is_empty() {
            // All logs, not only those of the watched tokens: a log's position in its transaction is part of its name.
            let call =
                Call::new("eth_getLogs", format!(r#"[{{"blockHash":"{}"}}]"#, header.hash)).block_sized();
            let logs = asked.ask(call, |raw| decode_logs(raw, link.block)).await?;
            claims.extend(self.token_claims(&link, &logs, watch));
        }
        if watch.native {
            let call = Call::new("eth_getBlockByHash", format!(r#"["{}",true]"#, header.hash)).block_sized();
            let list =
                asked.ask(call, |raw| decode_claimed_transactions(raw, &self.profile, link.block)).await?;
            let wanted: Vec<_> = list
                .into_iter()
                .filter_map(|tx| watch.wants_value(tx.to, tx.value).map(|recipient| (tx, recipient)))
                .collect();
            let mut receipts = stream::iter(wanted)
                .map(|(tx, recipient)| async move {
                    Ok::<_, RpcError>((self.receipt_from(provider, tx.hash).await?, tx, recipient))
                })
                .buffered(RECEIPTS_AT_ONCE);
            while let Some((receipt, tx, recipient)) = receipts.try_next().await? {
                if receipt.block == link.block && receipt.consensus.succeeded() {
                    claims.push(Claim::native(self.native_transfer(&link, &tx, recipient)));
                }
            }
        }
        Ok(claims)
    }

    fn token_claims(&self, link: &BlockLink, logs: &[SeenLog], watch: &Watch) -> Vec<Claim> {
        let mut claims = Vec::new();
        let (mut tx, mut ordinal) = (B256::ZERO, 0_i64);
        for seen in logs {
            ordinal = if seen.tx == tx { ordinal.saturating_add(1) } else { 0 };
            tx = seen.tx;
            let Some(TokenTransfer { token, payer, recipient, amount }) = watch.read_log(&seen.log) else {
                continue;
            };
            let transfer = Transfer {
                key: TransferKey { chain: self.chain, tx, ordinal },
                block: link.block,
                time: link.time,
                tx_index: seen.tx_index,
                log_index: Some(seen.log_index),
                asset: Asset::Token(token),
                payer,
                recipient,
                amount,
            };
            claims.push(Claim::new(transfer, digest_of_log(&seen.log)));
        }
        claims
    }

    fn native_transfer(
        &self,
        link: &BlockLink,
        tx: &ClaimedTransaction,
        recipient: domain::chain::Address,
    ) -> Transfer {
        Transfer {
            key: TransferKey { chain: self.chain, tx: tx.hash, ordinal: TransferKey::NATIVE },
            block: link.block,
            time: link.time,
            tx_index: tx.index,
            log_index: None,
            asset: Asset::Native,
            payer: tx.from,
            recipient,
            amount: Amount::new(tx.value),
        }
    }

    async fn receipt_from(&self, provider: usize, tx: B256) -> Result<SeenReceipt, RpcError> {
        let call = Call::new("eth_getTransactionReceipt", format!(r#"["{tx}"]"#));
        self.providers[provider].ask(call, decode_receipt).await
    }

    fn agree_among(&self, number: u64, words: &[Word]) -> Result<SeenHeader, Stall> {
        let mut ballot = Ballot::new(self.roster.clone(), 0..self.providers.len());
        for word in words {
            match &word.header {
                Ok(header) if header.header.number == number => ballot.vote(word.provider, claim_of(header)),
                _ => ballot.abstain(word.provider),
            }
        }
        self.blame_dissenters(&ballot);
        let agreed = ballot.agreed().map(|claim| claim.hash);
        words
            .iter()
            .filter_map(|word| word.header.as_ref().ok())
            .find(|header| Some(header.hash) == agreed && header.header.number == number)
            .cloned()
            .ok_or_else(|| self.no_quorum(number, &reasons_of(words)))
    }

    /// Counts the votes of those who gave the agreed header.
    fn count(&self, header: &SeenHeader, words: &[Word]) -> Result<Tally, Stall> {
        let mut tally = Tally::new(self.roster.clone());
        for word in words.iter().filter(|word| word.gave(header.hash)) {
            if let Ok(shown) = &word.shown {
                tally.vote(word.provider, shown.iter().copied());
            }
        }
        if tally.is_quorate() {
            return Ok(tally);
        }
        Err(self.uncounted(StallKind::TooFewGroups, header, &tally, words, BTreeMap::new()))
    }

    /// Why the votes on a block's contents decide nothing.
    fn uncounted(
        &self,
        kind: StallKind,
        header: &SeenHeader,
        tally: &Tally,
        words: &[Word],
        beside: BTreeMap<usize, StallReason>,
    ) -> Stall {
        let mut reasons = reasons_of(words);
        for word in words {
            if let Err(error) = word.shown {
                reasons.insert(word.provider, StallReason::NoAnswer(error));
            }
        }
        reasons.extend(beside);
        // Who gave another header answered, and is not counted.
        Stall { alive: tally.groups(), ..self.failed(kind, Some(header.header.number), &reasons) }
    }

    /// Deals with providers that show very many transfers which too few others show. One such transfer that is
    /// confirmed, and it is the others that leave out; one that is denied, and the provider is struck from the vote.
    /// When a sample shows neither, nothing can be said of the block yet.
    async fn without_forgers(
        &self,
        header: &SeenHeader,
        mut tally: Tally,
        words: &[Word],
    ) -> Result<Tally, Stall> {
        let excessive = tally.excessive(MOST_CLAIMS);
        if excessive.is_empty() {
            return Ok(tally);
        }
        let samples: BTreeMap<usize, Vec<Claim>> =
            excessive.iter().map(|(provider, claims)| (*provider, sample(claims))).collect();
        let verdicts = self.hear(header.link().block, samples.values().flatten().copied()).await;
        let (mut struck, mut unclear) = (BTreeMap::new(), BTreeMap::new());
        for (provider, claims) in &samples {
            let shown = StallReason::Unsupported(excessive.get(provider).map_or(0, Vec::len));
            let any = |wanted| claims.iter().any(|claim| verdicts.get(&claim.content) == Some(&wanted));
            if any(ClaimVerdict::Confirmed) {
                continue;
            }
            if any(ClaimVerdict::Denied) {
                self.providers[*provider].caught(
                    FaultKind::ForgedLog,
                    Some(header.header.number),
                    None,
                    None,
                );
                tally.strike(*provider);
                struck.insert(*provider, shown);
            } else {
                unclear.insert(*provider, shown);
            }
        }
        if !unclear.is_empty() {
            return Err(self.uncounted(StallKind::NoAgreement, header, &tally, words, unclear));
        }
        if tally.is_quorate() {
            return Ok(tally);
        }
        Err(self.uncounted(StallKind::TooFewGroups, header, &tally, words, struck))
    }

    /// What is accepted, also after asking everybody again about what too few had shown; and what is still
    /// disputed after that.
    async fn settle_claims(&self, block: BlockRef, tally: Tally, watch: &Watch, words: &[Word]) -> Settled {
        let open = tally.open();
        let recipients: BTreeSet<Address> = open.iter().map(|(claim, _)| claim.transfer.recipient).collect();
        let ours = watch.ours_among(recipients).await;
        let (asked, others): (Vec<_>, Vec<_>) =
            open.into_iter().partition(|(claim, _)| ours.contains(&claim.transfer.recipient));
        let verdicts = self.hear(block, asked.iter().map(|(claim, _)| *claim)).await;
        let mut accepted = tally.accepted();
        let mut disputed = Vec::new();
        for (claim, claimants) in asked {
            if verdicts.get(&claim.content) == Some(&ClaimVerdict::Confirmed) {
                accepted.push((claim, claimants));
                continue;
            }
            disputed.push(DisputedClaim {
                transfer: claim.transfer,
                claimants: claimants
                    .iter()
                    .map(|provider| self.providers[*provider].name().to_owned())
                    .collect(),
            });
        }
        accepted.sort_by_key(|(claim, _)| (claim.content.tx_index, claim.content.ordinal));
        self.blame_voters(&tally, &accepted, words);
        let unasked = others.iter().map(|(claim, _)| claim.transfer.recipient).collect();
        Settled { accepted, disputed, unasked }
    }

    fn blame_voters(&self, tally: &Tally, accepted: &[(Claim, Vec<usize>)], words: &[Word]) {
        let number = accepted.first().map(|(claim, _)| claim.content.block_number);
        let omitters: BTreeSet<usize> =
            accepted.iter().flat_map(|(_, supporters)| tally.omitters(supporters)).collect();
        let forgers = tally.forgers();
        for word in words {
            if forgers.contains(&word.provider) {
                self.providers[word.provider].caught(FaultKind::ForgedLog, number, None, None);
            } else if omitters.contains(&word.provider) {
                self.providers[word.provider].caught(FaultKind::OmittedLog, number, None, None);
            }
        }
    }

    /// Asks everybody about claims on one block, a few transactions at a time.
    async fn hear(
        &self,
        block: BlockRef,
        claims: impl Iterator<Item = Claim>,
    ) -> BTreeMap<Content, ClaimVerdict> {
        let mut by_transaction: BTreeMap<B256, Vec<Claim>> = BTreeMap::new();
        for claim in claims {
            by_transaction.entry(claim.content.tx).or_default().push(claim);
        }
        let hearing = &Hearing::on(self, block);
        stream::iter(by_transaction.into_values())
            .map(|claims| async move {
                let transfers: Vec<Transfer> = claims.iter().map(|claim| claim.transfer).collect();
                let verdicts = hearing.of_transaction(&transfers).await;
                claims.into_iter().map(|claim| claim.content).zip(verdicts).collect::<Vec<_>>()
            })
            .buffer_unordered(HEARINGS)
            .flat_map(stream::iter)
            .collect()
            .await
    }

    fn count_agreed(&self) {
        self.agreed.fetch_add(1, Ordering::Relaxed);
    }
}

/// What became of the votes on a block.
struct Settled {
    accepted: Vec<(Claim, Vec<usize>)>,
    disputed: Vec<DisputedClaim>,
    unasked: BTreeSet<Address>,
}

/// Everybody being asked about claims on one agreed block, and what each was seen to have of it.
struct Hearing<'a> {
    inner: &'a Inner,
    block: BlockRef,
    /// By provider: the hashes of the block's transactions.
    contents: Vec<OnceCell<Option<BTreeSet<B256>>>>,
    /// By provider: its transactions.
    transactions: Vec<OnceCell<Option<Vec<ClaimedTransaction>>>>,
}

impl<'a> Hearing<'a> {
    fn on(inner: &'a Inner, block: BlockRef) -> Self {
        let providers = inner.providers.len();
        Self {
            inner,
            block,
            contents: (0..providers).map(|_| OnceCell::new()).collect(),
            transactions: (0..providers).map(|_| OnceCell::new()).collect(),
        }
    }

    /// The verdicts on transfers of one transaction, in their order. Does not wait for those who cannot turn any.
    async fn of_transaction(&self, transfers: &[Transfer]) -> Vec<ClaimVerdict> {
        let roster = &self.inner.roster;
        // Never closed.
        let _place = self.inner.hearings.acquire().await.ok();
        let mut waiting: BTreeSet<usize> = (0..self.inner.providers.len()).collect();
        let mut given: Vec<Vec<(usize, Testimony)>> = vec![Vec::new(); transfers.len()];
        let mut asked: FuturesUnordered<_> = waiting
            .iter()
            .map(|provider| {
                let provider = *provider;
                async move { (provider, self.testimonies_of(provider, transfers).await) }
            })
            .collect();
        while let Some((provider, testimonies)) = asked.next().await {
            waiting.remove(&provider);
            for (given, testimony) in given.iter_mut().zip(testimonies) {
                given.extend(testimony.map(|testimony| (provider, testimony)));
            }
            if given.iter().all(|given| is_decided(roster, given, &waiting)) {
                break;
            }
        }
        given.iter().map(|given| judge(roster, given)).collect()
    }

    /// None where the provider gives no answer, or does not have the block: it cannot deny what it cannot see. Nor is
    /// a receipt that is missing a denial while the block lists its transaction: the index may lag.
    async fn testimonies_of(&self, provider: usize, transfers: &[Transfer]) -> Vec<Option<Testimony>> {
        let all = |testimony: Option<Testimony>| vec![testimony; transfers.len()];
        let Some(tx) = transfers.first().map(|transfer| transfer.key.tx) else { return Vec::new() };
        if self.inner.providers[provider].confirm_chain(self.inner.chain).await.is_err() {
            return all(None);
        }
        let receipt = match self.inner.receipt_from(provider, tx).await {
            Ok(receipt) if receipt.block == self.block => receipt,
            Ok(_) | Err(RpcError::NotFound) => {
                let lacks = self.contents_of(provider).await.is_some_and(|listed| !listed.contains(&tx));
                return all(lacks.then_some(Testimony::Denies));
            }
            Err(_) => return all(None),
        };
        let mut testimonies = Vec::with_capacity(transfers.len());
        for transfer in transfers {
            let confirms = match transfer.asset {
                Asset::Token(_) => Some(receipt_shows(&receipt, transfer)),
                Asset::Native if !receipt.consensus.succeeded() => Some(false),
                Asset::Native => {
                    let list = self.transactions_of(provider).await;
                    list.map(|list| list.contains(&as_claimed(transfer)))
                }
            };
            testimonies.push(
                confirms.map(|confirms| if confirms { Testimony::Confirms } else { Testimony::Denies }),
            );
        }
        testimonies
    }

    /// The hashes of the block's transactions, if the provider serves the block by its hash.
    async fn contents_of(&self, provider: usize) -> Option<&BTreeSet<B256>> {
        let asked = self.contents[provider].get_or_init(|| async {
            let params = format!(r#"["{}",false]"#, self.block.hash);
            let call = Call::new("eth_getBlockByHash", params).block_sized();
            let decode = |raw: &serde_json::value::RawValue| decode_contents(raw, &self.inner.profile);
            let (block, listed) = self.inner.providers[provider].ask(call, decode).await.ok()?;
            (block == self.block).then_some(listed)
        });
        asked.await.as_ref()
    }

    async fn transactions_of(&self, provider: usize) -> Option<&Vec<ClaimedTransaction>> {
        let asked = self.transactions[provider].get_or_init(|| async {
            let params = format!(r#"["{}",true]"#, self.block.hash);
            let call = Call::new("eth_getBlockByHash", params).block_sized();
            let decode = |raw: &serde_json::value::RawValue| {
                decode_claimed_transactions(raw, &self.inner.profile, self.block)
            };
            self.inner.providers[provider].ask(call, decode).await.ok()
        });
        asked.await.as_ref()
    }
}

/// The transaction that a transfer of native coin claims.
fn as_claimed(transfer: &Transfer) -> ClaimedTransaction {
    ClaimedTransaction {
        hash: transfer.key.tx,
        index: transfer.tx_index,
        from: transfer.payer,
        to: Some(transfer.recipient),
        value: transfer.amount.units(),
    }
}

/// A few claims, evenly spread.
fn sample(claims: &[Claim]) -> Vec<Claim> {
    let step = claims.len().div_ceil(SAMPLE).max(1);
    claims.iter().step_by(step).copied().collect()
}

impl Word {
    fn gave(&self, hash: B256) -> bool {
        self.header.as_ref().is_ok_and(|header| header.hash == hash)
    }
}

fn reasons_of(words: &[Word]) -> BTreeMap<usize, StallReason> {
    words
        .iter()
        .map(|word| {
            let reason = match &word.header {
                Ok(header) => StallReason::Header(header.hash),
                Err(error) => reason_of(*error),
            };
            (word.provider, reason)
        })
        .collect()
}

/// Whether the receipt has this transfer at the same index of the block and of the transaction.
fn receipt_shows(receipt: &SeenReceipt, transfer: &Transfer) -> bool {
    let Ok(ordinal) = usize::try_from(transfer.key.ordinal) else { return false };
    let Some(log) = receipt.consensus.logs.get(ordinal) else { return false };
    let index = receipt.first_log_index.and_then(|first| first.checked_add(u64::try_from(ordinal).ok()?));
    let watch = Watch::all([transfer.asset]);
    receipt.tx_index == transfer.tx_index
        && index == transfer.log_index
        && watch.read_log(log).is_some_and(|read| {
            (read.payer, read.recipient, read.amount) == (transfer.payer, transfer.recipient, transfer.amount)
        })
}

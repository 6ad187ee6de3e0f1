//! Reading a block by vote, and asking again about what was disputed.
//!
//! Guarantees: a provider votes on the logs of a block only after it gave the header that was agreed on, and
//! by the hash of that header; all providers are heard, since the one that is slow may be the only one
//! that shows a payment; a claim of too few groups is asked about once more, of everybody, by receipt, before
//! it is called disputed.
//!
//! Deliberately absent: counting, which is [`super::votes`], and the memory of disputes, which is the caller's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use alloy_primitives::B256;
use domain::chain::{Asset, BlockLink, EvidenceLevel, Transfer, TransferKey};
use domain::money::Amount;
use domain::time::Timestamp;
use futures::future::join_all;

use super::block::{ProvenBlock, TokenTransfer, Watch};
use super::error::RpcError;
use super::evidence::Voter;
use super::provider::FaultKind;
use super::quorum::Ballot;
use super::reader::{ChainReader, Inner, Stall, StallKind, StallReason, block_param, claim_of, reason_of};
use super::rpc::Call;
use super::votes::{Claim, ClaimVerdict, DisputedClaim, Tally, Testimony, digest_of_log, judge};
use super::wire::{
    ClaimedTransaction, SeenHeader, SeenLog, SeenReceipt, decode_claimed_transactions, decode_logs,
    decode_receipt,
};

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
        Ok(match inner.testimonies_on(transfer).await {
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
        let (accepted, disputed) = self.settle_claims(tally, &words).await;
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
            Ok(header) => self.shown_by(provider, header, watch).await,
            Err(error) => Err(*error),
        };
        Word { provider, header, at, shown }
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
            let wanted = list.iter().filter_map(|tx| Some((tx, watch.wants_value(tx.to, tx.value)?)));
            for (tx, recipient) in wanted {
                let receipt = self.receipt_from(provider, tx.hash).await?;
                if receipt.block == link.block && receipt.consensus.succeeded() {
                    claims.push(Claim::native(self.native_transfer(&link, tx, recipient)));
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
        let mut reasons = reasons_of(words);
        for word in words {
            if let Err(error) = word.shown {
                reasons.insert(word.provider, StallReason::NoAnswer(error));
            }
        }
        Err(self.failed(StallKind::TooFewGroups, Some(header.header.number), &reasons))
    }

    /// What is accepted, also after asking everybody again about what too few had shown; and what is still
    /// disputed after that.
    async fn settle_claims(
        &self,
        tally: Tally,
        words: &[Word],
    ) -> (Vec<(Claim, Vec<usize>)>, Vec<DisputedClaim>) {
        let mut accepted = tally.accepted();
        let mut disputed = Vec::new();
        for (claim, claimants) in tally.open() {
            match self.testimonies_on(&claim.transfer).await {
                ClaimVerdict::Confirmed => accepted.push((claim, claimants)),
                ClaimVerdict::Denied | ClaimVerdict::Open => disputed.push(DisputedClaim {
                    transfer: claim.transfer,
                    claimants: claimants
                        .iter()
                        .map(|provider| self.providers[*provider].name().to_owned())
                        .collect(),
                }),
            }
        }
        accepted.sort_by_key(|(claim, _)| (claim.content.tx_index, claim.content.ordinal));
        self.blame_voters(&tally, &accepted, words);
        (accepted, disputed)
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

    /// Asks all providers for the receipt (and for native coin, the transaction) behind a transfer.
    async fn testimonies_on(&self, transfer: &Transfer) -> ClaimVerdict {
        let asked = (0..self.providers.len())
            .map(|provider| async move { Some((provider, self.testimony_of(provider, transfer).await?)) });
        let given: Vec<(usize, Testimony)> = join_all(asked).await.into_iter().flatten().collect();
        judge(&self.roster, &given)
    }

    /// None when the provider gives no answer, or does not have the block: it cannot deny what it cannot see.
    async fn testimony_of(&self, provider: usize, transfer: &Transfer) -> Option<Testimony> {
        self.providers[provider].confirm_chain(self.chain).await.ok()?;
        let receipt = match self.receipt_from(provider, transfer.key.tx).await {
            Ok(receipt) => receipt,
            Err(RpcError::NotFound) => {
                return self.has_block(provider, transfer).await.then_some(Testimony::Denies);
            }
            Err(_) => return None,
        };
        if receipt.block != transfer.block {
            return self.has_block(provider, transfer).await.then_some(Testimony::Denies);
        }
        let confirms = match transfer.asset {
            Asset::Token(_) => receipt_shows(&receipt, transfer),
            Asset::Native => receipt.consensus.succeeded() && self.shows_value(provider, transfer).await?,
        };
        Some(if confirms { Testimony::Confirms } else { Testimony::Denies })
    }

    /// Whether the provider serves the block by its hash.
    async fn has_block(&self, provider: usize, transfer: &Transfer) -> bool {
        let call = Call::new("eth_getBlockByHash", format!(r#"["{}",false]"#, transfer.block.hash));
        let decode =
            |raw: &serde_json::value::RawValue| super::wire::decode_header_answer(raw, &self.profile);
        self.providers[provider]
            .ask(call, decode)
            .await
            .is_ok_and(|header| header.link().block == transfer.block)
    }

    async fn shows_value(&self, provider: usize, transfer: &Transfer) -> Option<bool> {
        let call =
            Call::new("eth_getBlockByHash", format!(r#"["{}",true]"#, transfer.block.hash)).block_sized();
        let decode = |raw: &serde_json::value::RawValue| {
            decode_claimed_transactions(raw, &self.profile, transfer.block)
        };
        let list = self.providers[provider].ask(call, decode).await.ok()?;
        let claimed = ClaimedTransaction {
            hash: transfer.key.tx,
            index: transfer.tx_index,
            from: transfer.payer,
            to: Some(transfer.recipient),
            value: transfer.amount.units(),
        };
        Some(list.contains(&claimed))
    }

    fn count_agreed(&self) {
        self.agreed.fetch_add(1, Ordering::Relaxed);
    }
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

//! Believing transfers by vote, where no root can be checked.
//!
//! Guarantees: a transfer is accepted when `needed` groups show the same content at the same place of the
//! same block; an empty answer is a vote like any other, silence is none; what fewer groups show is
//! neither believed nor dropped, but named as a claim with its claimants.
//!
//! Deliberately absent: network and clock. Also any trust in numbers: a hundred URLs of one group are one
//! vote, and a group whose URLs contradict each other shows nothing.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{B256, Keccak256, Log};
use domain::chain::{Transfer, TransferKey};

use super::quorum::Roster;

/// A transfer that some groups show and too few others confirm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisputedClaim {
    /// The transfer as it is claimed.
    pub transfer: Transfer,
    /// The providers that claim it, by name.
    pub claimants: Vec<String>,
}

/// What a claim says, to the last bit: two claims are the same only if everything is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content {
    /// Hash of the block.
    pub block_hash: B256,
    /// Its height.
    pub block_number: u64,
    /// The transaction.
    pub tx: B256,
    /// Its index in the block.
    pub tx_index: u64,
    /// The log's index in the block; none for the native coin.
    pub log_index: Option<u64>,
    /// The log's position in its transaction, or [`TransferKey::NATIVE`].
    pub ordinal: i64,
    /// Keccak-256 of address, topics and data, or of sender, recipient and value.
    pub digest: B256,
}

/// The digest of a log's content. Each part is led by its length, so that no two logs share one.
#[must_use]
pub fn digest_of_log(log: &Log) -> B256 {
    let mut hasher = Keccak256::new();
    hasher.update(log.address);
    hasher.update([u8::try_from(log.data.topics().len()).unwrap_or(u8::MAX)]);
    for topic in log.data.topics() {
        hasher.update(topic);
    }
    hasher.update(&log.data.data);
    hasher.finalize()
}

/// The digest of a native transfer.
#[must_use]
pub fn digest_of_native(transfer: &Transfer) -> B256 {
    let mut hasher = Keccak256::new();
    hasher.update(transfer.payer);
    hasher.update(transfer.recipient);
    hasher.update(transfer.amount.units().to_be_bytes::<32>());
    hasher.finalize()
}

/// One claim: its content, and the transfer it amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// What is voted on.
    pub content: Content,
    /// What it means.
    pub transfer: Transfer,
}

impl Claim {
    /// A claim on `transfer` with this digest.
    #[must_use]
    pub fn new(transfer: Transfer, digest: B256) -> Self {
        let content = Content {
            block_hash: transfer.block.hash,
            block_number: transfer.block.number,
            tx: transfer.key.tx,
            tx_index: transfer.tx_index,
            log_index: transfer.log_index,
            ordinal: transfer.key.ordinal,
            digest,
        };
        Self { content, transfer }
    }

    /// A claim on a native transfer.
    #[must_use]
    pub fn native(transfer: Transfer) -> Self {
        debug_assert_eq!(transfer.key.ordinal, TransferKey::NATIVE);
        Self::new(transfer, digest_of_native(&transfer))
    }
}

/// The votes on the transfers of one block, whose header is agreed.
#[derive(Debug, Clone)]
pub struct Tally {
    roster: Roster,
    voters: BTreeSet<usize>,
    claims: BTreeMap<Content, (Transfer, BTreeSet<usize>)>,
}

impl Tally {
    /// No votes yet.
    #[must_use]
    pub fn new(roster: Roster) -> Self {
        Self { roster, voters: BTreeSet::new(), claims: BTreeMap::new() }
    }

    /// `provider` shows exactly these. Only providers that gave the agreed header may vote; a second vote of
    /// the same provider is ignored.
    pub fn vote(&mut self, provider: usize, shown: impl IntoIterator<Item = Claim>) {
        if !self.voters.insert(provider) {
            return;
        }
        for Claim { content, transfer } in shown {
            self.claims.entry(content).or_insert_with(|| (transfer, BTreeSet::new())).1.insert(provider);
        }
    }

    /// Whether enough groups voted for absence to mean anything.
    #[must_use]
    pub fn is_quorate(&self) -> bool {
        self.groups() >= self.roster.needed()
    }

    /// The groups all of whose voters show the claim.
    fn groups_for(&self, supporters: &BTreeSet<usize>) -> usize {
        let against: BTreeSet<usize> =
            self.voters.difference(supporters).map(|provider| self.roster.group_of(*provider)).collect();
        supporters
            .iter()
            .map(|provider| self.roster.group_of(*provider))
            .filter(|group| !against.contains(group))
            .collect::<BTreeSet<_>>()
            .len()
    }

    /// The claims that enough groups show, in the order of the block, each with its supporters.
    #[must_use]
    pub fn accepted(&self) -> Vec<(Claim, Vec<usize>)> {
        self.select(|groups| groups >= self.roster.needed())
    }

    /// The claims that too few groups show. One that contradicts an accepted claim about the same place is
    /// no claim but a fault: two contents cannot both be at one index of one block.
    #[must_use]
    pub fn open(&self) -> Vec<(Claim, Vec<usize>)> {
        let accepted = Places::of(&self.accepted());
        let mut open = self.select(|groups| groups < self.roster.needed());
        open.retain(|(claim, _)| !accepted.rule_out(&claim.content));
        open
    }

    /// The voters that show more than `most` open claims, each with those claims, in the order of the block.
    #[must_use]
    pub fn excessive(&self, most: usize) -> BTreeMap<usize, Vec<Claim>> {
        let mut shown: BTreeMap<usize, Vec<Claim>> = BTreeMap::new();
        for (claim, supporters) in self.open() {
            for provider in supporters {
                shown.entry(provider).or_default().push(claim);
            }
        }
        shown.retain(|_, claims| claims.len() > most);
        shown
    }

    /// Takes back the vote of `provider`, and whatever nobody else shows: it abstains.
    pub fn strike(&mut self, provider: usize) {
        self.voters.remove(&provider);
        self.claims.retain(|_, (_, supporters)| {
            supporters.remove(&provider);
            !supporters.is_empty()
        });
    }

    /// The groups that voted.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.roster.groups_among(self.voters.iter().copied())
    }

    /// Providers that showed something which an accepted claim rules out.
    #[must_use]
    pub fn forgers(&self) -> BTreeSet<usize> {
        let accepted = Places::of(&self.accepted());
        self.select(|groups| groups < self.roster.needed())
            .into_iter()
            .filter(|(claim, _)| accepted.rule_out(&claim.content))
            .flat_map(|(_, supporters)| supporters)
            .collect()
    }

    /// Voters that left out a claim with these supporters.
    #[must_use]
    pub fn omitters(&self, supporters: &[usize]) -> Vec<usize> {
        self.voters.iter().copied().filter(|voter| !supporters.contains(voter)).collect()
    }

    fn select(&self, wanted: impl Fn(usize) -> bool) -> Vec<(Claim, Vec<usize>)> {
        let mut chosen: Vec<(Claim, Vec<usize>)> = self
            .claims
            .iter()
            .filter(|(_, (_, supporters))| wanted(self.groups_for(supporters)))
            .map(|(content, (transfer, supporters))| {
                (Claim { content: *content, transfer: *transfer }, supporters.iter().copied().collect())
            })
            .collect();
        chosen.sort_by_key(|(claim, _)| (claim.content.tx_index, claim.content.ordinal));
        chosen
    }
}

/// The places that accepted claims take up. A liar may show a million others: each is looked up, not compared with all.
struct Places {
    logs: BTreeSet<u64>,
    ordinals: BTreeSet<(B256, i64)>,
    index_of: BTreeMap<B256, u64>,
    at_index: BTreeMap<u64, B256>,
}

impl Places {
    fn of(accepted: &[(Claim, Vec<usize>)]) -> Self {
        let contents = || accepted.iter().map(|(claim, _)| &claim.content);
        Self {
            logs: contents().filter_map(|content| content.log_index).collect(),
            ordinals: contents().map(|content| (content.tx, content.ordinal)).collect(),
            index_of: contents().map(|content| (content.tx, content.tx_index)).collect(),
            at_index: contents().map(|content| (content.tx_index, content.tx)).collect(),
        }
    }

    /// Whether a content that is not accepted cannot be in the block: its place is taken, or it would put one
    /// transaction at two indices or two at one.
    fn rule_out(&self, content: &Content) -> bool {
        content.log_index.is_some_and(|index| self.logs.contains(&index))
            || self.ordinals.contains(&(content.tx, content.ordinal))
            || self.index_of.get(&content.tx).is_some_and(|index| *index != content.tx_index)
            || self.at_index.get(&content.tx_index).is_some_and(|tx| *tx != content.tx)
    }
}

/// What one provider answered when asked about one claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Testimony {
    /// Its receipt of the transaction has exactly this.
    Confirms,
    /// It has the block, and its receipt has something else there, or the block does not list the transaction.
    Denies,
}

/// What the groups say about a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimVerdict {
    /// `needed` groups confirm it.
    Confirmed,
    /// `needed` groups deny it.
    Denied,
    /// Neither.
    Open,
}

/// Counts testimonies by group; a group that says both says nothing.
#[must_use]
pub fn judge(roster: &Roster, testimonies: &[(usize, Testimony)]) -> ClaimVerdict {
    let [confirming, denying] = count(roster, testimonies);
    if confirming >= roster.needed() {
        ClaimVerdict::Confirmed
    } else if denying >= roster.needed() {
        ClaimVerdict::Denied
    } else {
        ClaimVerdict::Open
    }
}

/// Whether the `waiting` providers can no longer turn the verdict.
#[must_use]
pub fn is_decided(roster: &Roster, testimonies: &[(usize, Testimony)], waiting: &BTreeSet<usize>) -> bool {
    let [confirming, denying] = count(roster, testimonies);
    let to_come = roster.groups_among(waiting.iter().copied());
    confirming >= roster.needed() || denying >= roster.needed() && confirming + to_come < roster.needed()
}

/// The groups that confirm, and those that deny.
fn count(roster: &Roster, testimonies: &[(usize, Testimony)]) -> [usize; 2] {
    let mut by_group: BTreeMap<usize, BTreeSet<Testimony>> = BTreeMap::new();
    for (provider, testimony) in testimonies {
        by_group.entry(roster.group_of(*provider)).or_default().insert(*testimony);
    }
    [Testimony::Confirms, Testimony::Denies]
        .map(|wanted| by_group.values().filter(|said| said.len() == 1 && said.contains(&wanted)).count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::{Address, U256};
    use domain::chain::{Asset, BlockRef, ChainId};
    use domain::chance::Chance;
    use domain::money::Amount;
    use domain::time::Timestamp;

    fn claim(tx: u8, log_index: u64, amount: u64) -> Claim {
        let transfer = Transfer {
            key: TransferKey { chain: ChainId::eip155(1), tx: B256::repeat_byte(tx), ordinal: 0 },
            block: BlockRef { number: 7, hash: B256::repeat_byte(0xb1) },
            time: Timestamp::EPOCH,
            tx_index: u64::from(tx),
            log_index: Some(log_index),
            asset: Asset::Token(Address::repeat_byte(1)),
            payer: Address::repeat_byte(2),
            recipient: Address::repeat_byte(3),
            amount: Amount::from(amount),
        };
        Claim::new(transfer, B256::from(U256::from(amount)))
    }

    fn tally(groups: &[&str], needed: usize) -> Tally {
        Tally::new(Roster::new(groups, needed).unwrap())
    }

    fn amounts(list: &[(Claim, Vec<usize>)]) -> Vec<String> {
        list.iter().map(|(claim, _)| claim.transfer.amount.to_string()).collect()
    }

    #[test]
    fn each_log_is_voted_on_alone() {
        // Two providers that each leave out another log still make a quorum on both.
        let mut tally = tally(&["a", "b", "c"], 2);
        tally.vote(0, [claim(1, 0, 10)]);
        tally.vote(1, [claim(2, 1, 20)]);
        tally.vote(2, [claim(1, 0, 10), claim(2, 1, 20)]);
        assert_eq!(amounts(&tally.accepted()), ["10", "20"]);
        assert!(tally.open().is_empty());
        assert_eq!(tally.omitters(&[1, 2]), [0]);
    }

    #[test]
    fn an_empty_answer_is_a_vote_and_silence_is_none() {
        let mut tally = tally(&["a", "b", "c"], 2);
        tally.vote(0, []);
        assert!(!tally.is_quorate());
        tally.vote(1, []);
        assert!(tally.is_quorate() && tally.accepted().is_empty() && tally.open().is_empty());
    }

    #[test]
    fn what_one_group_shows_is_a_claim() {
        let mut tally = tally(&["a", "a", "b", "c"], 2);
        tally.vote(0, [claim(1, 0, 10)]);
        tally.vote(1, [claim(1, 0, 10)]);
        tally.vote(2, []);
        tally.vote(3, []);
        assert!(tally.accepted().is_empty());
        assert_eq!(amounts(&tally.open()), ["10"]);
    }

    #[test]
    fn a_group_divided_in_itself_shows_nothing() {
        let mut tally = tally(&["a", "a", "b"], 2);
        tally.vote(0, [claim(1, 0, 10)]);
        tally.vote(1, []);
        tally.vote(2, [claim(1, 0, 10)]);
        assert!(tally.accepted().is_empty());
        assert_eq!(tally.open().len(), 1);
    }

    #[test]
    fn one_place_has_one_content() {
        // The key alone is not enough: two providers with one key and two amounts do not agree.
        let mut tally = tally(&["a", "b", "c"], 2);
        tally.vote(0, [claim(1, 0, 1_000_000)]);
        tally.vote(1, [claim(1, 0, 10)]);
        assert!(tally.accepted().is_empty());
        assert_eq!(tally.open().len(), 2);
        tally.vote(2, [claim(1, 0, 10)]);
        assert_eq!(amounts(&tally.accepted()), ["10"]);
        assert!(tally.open().is_empty(), "what contradicts an accepted log is a fault, not a claim");
        assert_eq!(tally.forgers().into_iter().collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn a_second_vote_changes_nothing() {
        let mut tally = tally(&["a", "b"], 1);
        tally.vote(0, []);
        tally.vote(0, [claim(1, 0, 10)]);
        assert!(tally.accepted().is_empty() && tally.open().is_empty());
    }

    #[test]
    fn denial_takes_a_quorum_too() {
        let roster = Roster::new(&["a", "b", "b", "c"], 2).unwrap();
        use Testimony::{Confirms, Denies};
        assert_eq!(judge(&roster, &[(0, Confirms), (3, Denies)]), ClaimVerdict::Open);
        assert_eq!(judge(&roster, &[(0, Confirms), (1, Denies), (3, Denies)]), ClaimVerdict::Denied);
        assert_eq!(judge(&roster, &[(1, Denies), (2, Confirms), (3, Denies)]), ClaimVerdict::Open);
        assert_eq!(judge(&roster, &[(0, Confirms), (3, Confirms)]), ClaimVerdict::Confirmed);
        assert_eq!(judge(&roster, &[]), ClaimVerdict::Open);
    }

    #[test]
    fn a_denial_is_final_when_nobody_is_left_who_could_confirm() {
        use Testimony::{Confirms, Denies};
        let four = Roster::new(&["a", "b", "c", "d"], 2).unwrap();
        let denied = [(0, Denies), (1, Denies)];
        assert!(!is_decided(&four, &denied, &BTreeSet::from([2, 3])));
        assert!(is_decided(&four, &denied, &BTreeSet::from([3])));
        assert!(!is_decided(&four, &[(0, Denies), (1, Denies), (2, Confirms)], &BTreeSet::from([3])));
        assert!(is_decided(&four, &[(0, Confirms), (1, Confirms)], &BTreeSet::from([2, 3])));
        assert!(!is_decided(&four, &[(0, Denies)], &BTreeSet::new()));
    }

    #[test]
    fn one_that_is_struck_neither_votes_nor_claims() {
        let mut tally = tally(&["a", "b", "c"], 2);
        tally.vote(0, [claim(1, 0, 10)]);
        tally.vote(1, [claim(1, 0, 10)]);
        let forged: Vec<Claim> = (2..90).map(|n| claim(n, u64::from(n), 1_000)).collect();
        tally.vote(2, forged.iter().copied().chain([claim(1, 0, 10)]));
        assert!(tally.excessive(88).is_empty());
        let excessive = tally.excessive(87);
        assert_eq!(excessive.keys().copied().collect::<Vec<_>>(), [2]);
        assert_eq!(excessive[&2], forged, "what others show too does not count");
        tally.strike(2);
        assert!(tally.open().is_empty() && tally.is_quorate());
        assert_eq!(amounts(&tally.accepted()), ["10"]);
        tally.strike(1);
        assert!(!tally.is_quorate(), "without it there may be too few");
    }

    /// 10^5 rounds with up to k − 1 bad groups: nothing false is accepted, and with k honest voters nothing
    /// true is dropped: it is accepted, or open.
    #[test]
    fn no_wrong_log_is_accepted_while_fewer_than_k_groups_are_bad() {
        let chance = Chance::from_seed(7);
        let pick = |bound: usize| usize::try_from(chance.below(bound as u64)).unwrap();
        let truth: Vec<Claim> = (0..4).map(|n| claim(n, u64::from(n), 10 + u64::from(n))).collect();
        let mut accepted_rounds = 0_u32;
        for _ in 0..100_000 {
            let groups = 1 + pick(5);
            let needed = 1 + pick(groups);
            let bad = pick(needed);
            let names: Vec<String> = (0..groups + pick(3)).map(|p| format!("g{}", p % groups)).collect();
            let mut tally = Tally::new(Roster::new(&names, needed).unwrap());
            let mut honest = BTreeSet::new();
            for provider in 0..names.len() {
                if pick(6) == 0 {
                    continue;
                }
                if provider % groups >= bad {
                    honest.insert(provider % groups);
                    tally.vote(provider, truth.iter().copied());
                    continue;
                }
                let mut shown: Vec<Claim> = truth.iter().copied().filter(|_| pick(2) == 0).collect();
                if pick(2) == 0 {
                    // The liars collude: they all make up the same.
                    shown.push(claim(9, 9, 1_000_000));
                    shown.push(claim(1, 1, 1_000_000));
                }
                tally.vote(provider, shown);
            }
            let accepted = tally.accepted();
            assert!(accepted.iter().all(|(claim, _)| truth.contains(claim)));
            if honest.len() >= needed {
                assert_eq!(accepted.len(), truth.len());
                accepted_rounds += 1;
            } else if !honest.is_empty() && tally.is_quorate() {
                let open = tally.open();
                let seen = |wanted: &Claim| accepted.iter().chain(&open).any(|(claim, _)| claim == wanted);
                assert!(truth.iter().all(seen), "a true log that somebody honest shows is never lost");
            }
        }
        assert!(accepted_rounds > 20_000, "{accepted_rounds}");
    }
}

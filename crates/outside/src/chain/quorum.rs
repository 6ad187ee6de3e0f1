//! Deciding by independent groups: which height, which header, whose body.
//!
//! Guarantees: nothing is agreed on with fewer than `needed` *groups*, however many URLs a group has;
//! a group that contradicts itself has no vote; silence, an error and lag are abstentions, never
//! votes; while fewer than `needed` groups are wrong, nothing wrong is agreed on.
//!
//! Deliberately absent: network, clock and chance. Inputs are answers and alarms, outputs are what to
//! fetch and what was decided, so that every order of events can be played in a test.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use alloy_primitives::B256;
use domain::chain::{BlockLink, BlockRef};
use domain::time::Timestamp;

/// A quorum that could never hold, or that would not mean what it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuorum {
    /// Zero groups would agree on anything.
    #[error("quorum must be at least 1")]
    Zero,
    /// More groups than there are.
    #[error("quorum {needed} needs {needed} provider groups, but there are {groups}")]
    MoreThanGroups {
        /// What was asked for.
        needed: usize,
        /// What there is.
        groups: usize,
    },
    /// The same endpoint twice would pretend to be two.
    #[error("provider `{0}` is listed more than once")]
    Duplicate(String),
    /// A provider without a name or a group cannot be told apart.
    #[error("a provider has no name or no group")]
    Unnamed,
}

/// Who may vote: which provider belongs to which group, and how many groups must agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    group_of: Arc<[usize]>,
    groups: usize,
    needed: usize,
}

impl Roster {
    /// A roster of providers given by the name of their group, in order.
    ///
    /// # Errors
    /// When `needed` is zero or more than the number of groups, or a group has no name.
    pub fn new<S: AsRef<str>>(groups: &[S], needed: usize) -> Result<Self, InvalidQuorum> {
        let mut index: BTreeMap<&str, usize> = BTreeMap::new();
        let mut group_of = Vec::with_capacity(groups.len());
        for group in groups {
            let name = group.as_ref();
            if name.is_empty() {
                return Err(InvalidQuorum::Unnamed);
            }
            let next = index.len();
            group_of.push(*index.entry(name).or_insert(next));
        }
        match needed {
            0 => Err(InvalidQuorum::Zero),
            _ if needed > index.len() => Err(InvalidQuorum::MoreThanGroups { needed, groups: index.len() }),
            _ => Ok(Self { group_of: group_of.into(), groups: index.len(), needed }),
        }
    }

    /// How many groups must agree.
    #[must_use]
    pub fn needed(&self) -> usize {
        self.needed
    }

    /// How many providers there are.
    #[must_use]
    pub fn providers(&self) -> usize {
        self.group_of.len()
    }

    /// How many groups there are.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// The group of a provider.
    #[must_use]
    pub fn group_of(&self, provider: usize) -> usize {
        self.group_of[provider]
    }

    /// How many different groups `providers` belong to.
    #[must_use]
    pub fn groups_among(&self, providers: impl IntoIterator<Item = usize>) -> usize {
        providers.into_iter().map(|provider| self.group_of(provider)).collect::<BTreeSet<_>>().len()
    }

    /// The highest value that at least `needed` groups reach, each group counting by its highest.
    #[must_use]
    pub fn reached_by_quorum(&self, values: impl IntoIterator<Item = (usize, u64)>) -> Option<u64> {
        let mut best: BTreeMap<usize, u64> = BTreeMap::new();
        for (provider, value) in values {
            let group = best.entry(self.group_of(provider)).or_insert(value);
            *group = (*group).max(value);
        }
        let mut heights: Vec<u64> = best.into_values().collect();
        heights.sort_unstable_by(|a, b| b.cmp(a));
        heights.get(self.needed - 1).copied()
    }
}

/// One question put to all providers; the answer that `needed` groups give is agreed.
#[derive(Debug, Clone)]
pub struct Ballot<V> {
    roster: Roster,
    /// What each provider said.
    said: BTreeMap<usize, V>,
    outstanding: BTreeSet<usize>,
    agreed: Option<V>,
}

impl<V: Ord + Clone> Ballot<V> {
    /// A ballot on which `asked` are still to answer.
    #[must_use]
    pub fn new(roster: Roster, asked: impl IntoIterator<Item = usize>) -> Self {
        Self { roster, said: BTreeMap::new(), outstanding: asked.into_iter().collect(), agreed: None }
    }

    /// `provider` says `value`. A provider's first word counts; what is agreed stays agreed.
    pub fn vote(&mut self, provider: usize, value: V) {
        self.outstanding.remove(&provider);
        self.said.entry(provider).or_insert(value);
        if self.agreed.is_none() {
            self.agreed = self.winner();
        }
    }

    /// `provider` has no answer: an error, a timeout, or it is behind.
    pub fn abstain(&mut self, provider: usize) {
        self.outstanding.remove(&provider);
    }

    /// The value of each group that speaks with one voice.
    fn group_votes(&self) -> BTreeMap<usize, &V> {
        let mut votes: BTreeMap<usize, Option<&V>> = BTreeMap::new();
        for (provider, value) in &self.said {
            votes
                .entry(self.roster.group_of(*provider))
                .and_modify(|vote| {
                    if *vote != Some(value) {
                        *vote = None;
                    }
                })
                .or_insert(Some(value));
        }
        votes.into_iter().filter_map(|(group, vote)| Some((group, vote?))).collect()
    }

    fn tally(&self) -> BTreeMap<&V, usize> {
        let mut tally = BTreeMap::new();
        for value in self.group_votes().into_values() {
            *tally.entry(value).or_insert(0) += 1;
        }
        tally
    }

    fn winner(&self) -> Option<V> {
        self.tally()
            .into_iter()
            .find(|(_, groups)| *groups >= self.roster.needed)
            .map(|(value, _)| value.clone())
    }

    /// The agreed value.
    #[must_use]
    pub fn agreed(&self) -> Option<&V> {
        self.agreed.as_ref()
    }

    /// Whether agreement can still come about, or has.
    #[must_use]
    pub fn is_open(&self) -> bool {
        if self.agreed.is_some() {
            return true;
        }
        let spoken: BTreeSet<usize> =
            self.said.keys().map(|provider| self.roster.group_of(*provider)).collect();
        let silent: BTreeSet<usize> = self
            .outstanding
            .iter()
            .map(|provider| self.roster.group_of(*provider))
            .filter(|group| !spoken.contains(group))
            .collect();
        let best = self.tally().into_values().max().unwrap_or(0);
        best + silent.len() >= self.roster.needed
    }

    /// What each provider said so far.
    pub fn said(&self) -> impl Iterator<Item = (usize, &V)> {
        self.said.iter().map(|(provider, value)| (*provider, value))
    }

    /// The providers that said `value`.
    pub fn supporters<'a>(&'a self, value: &'a V) -> impl Iterator<Item = usize> + 'a {
        self.said().filter(move |(_, said)| *said == value).map(|(provider, _)| provider)
    }

    /// The providers that said something other than what was agreed.
    pub fn dissenters(&self) -> impl Iterator<Item = (usize, &V)> {
        self.said().filter(|(_, said)| self.agreed.as_ref().is_some_and(|agreed| agreed != *said))
    }
}

/// What a header claims, as far as anybody uses it. Two headers with one recomputed hash are equal in
/// all of it; where the hash is only claimed, all of it is voted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeaderClaim {
    /// Height.
    pub number: u64,
    /// Hash.
    pub hash: B256,
    /// Hash of the block before.
    pub parent: B256,
    /// Seconds since the epoch.
    pub seconds: u64,
}

impl HeaderClaim {
    /// The same, as the domain says it.
    #[must_use]
    pub fn link(&self) -> BlockLink {
        BlockLink {
            block: BlockRef { number: self.number, hash: self.hash },
            parent: self.parent,
            time: Timestamp::from_seconds(self.seconds),
        }
    }
}

/// What the caller of a [`BlockRound`] has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Fetch and verify the body of `block` from `provider`, and raise the alarm
    /// ([`BlockRound::on_alarm`]) when that takes longer than it usually does.
    FetchBody {
        /// Whom to ask.
        provider: usize,
        /// The block whose body is wanted.
        block: B256,
    },
}

/// How a round ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<B> {
    /// `needed` groups agree on the header, and there is a body that is valid under it.
    Agreed {
        /// The header.
        claim: HeaderClaim,
        /// The body, and who served it; none where the header alone proves what is asked.
        body: Option<(B, usize)>,
    },
    /// No header can reach `needed` groups any more.
    NoQuorum,
    /// The header is agreed, but nobody served a body that is valid under it.
    NoBody {
        /// The header.
        claim: HeaderClaim,
    },
}

/// One block: its header by quorum, its body by proof from anyone.
///
/// The body is fetched speculatively for the first header that anybody serves, from whoever served
/// it: that provider is alive and has the block. If another header wins, its body is fetched too.
#[derive(Debug, Clone)]
pub struct BlockRound<B> {
    number: u64,
    ballot: Ballot<HeaderClaim>,
    legs: BTreeMap<B256, Leg<B>>,
    /// All providers that may be asked for a body, best first.
    preference: Vec<usize>,
}

#[derive(Debug, Clone)]
struct Leg<B> {
    state: LegState<B>,
    tried: BTreeSet<usize>,
    under_way: BTreeSet<usize>,
}

#[derive(Debug, Clone)]
enum LegState<B> {
    NotNeeded,
    Wanted,
    Valid(B, usize),
}

impl<B: Clone> BlockRound<B> {
    /// A round on block `number`. All of `preference` are asked for the header; the order says who is
    /// asked first for a body.
    #[must_use]
    pub fn new(roster: Roster, number: u64, preference: Vec<usize>) -> Self {
        let ballot = Ballot::new(roster, preference.iter().copied());
        Self { number, ballot, legs: BTreeMap::new(), preference }
    }

    /// `provider` served a header. `needs_body` is whether the header leaves something to prove; it has
    /// to be a function of the header.
    pub fn on_header(&mut self, provider: usize, claim: HeaderClaim, needs_body: bool) -> Option<Command> {
        if claim.number != self.number {
            self.ballot.abstain(provider);
            return None;
        }
        self.ballot.vote(provider, claim);
        if self.legs.contains_key(&claim.hash) {
            return None;
        }
        let state = if needs_body { LegState::Wanted } else { LegState::NotNeeded };
        self.legs.insert(claim.hash, Leg { state, tried: BTreeSet::new(), under_way: BTreeSet::new() });
        if needs_body { self.fetch_from(claim.hash, Some(provider)) } else { None }
    }

    /// `provider` has no header to offer.
    pub fn on_no_header(&mut self, provider: usize) {
        self.ballot.abstain(provider);
    }

    /// `provider` served a body that is valid under `block`.
    pub fn on_body(&mut self, provider: usize, block: B256, body: B) {
        if let Some(leg) = self.legs.get_mut(&block) {
            leg.under_way.remove(&provider);
            if matches!(leg.state, LegState::Wanted) {
                leg.state = LegState::Valid(body, provider);
            }
        }
    }

    /// `provider` gave no body for `block`: ask the next.
    pub fn on_no_body(&mut self, provider: usize, block: B256) -> Option<Command> {
        self.legs.get_mut(&block)?.under_way.remove(&provider);
        self.fetch_from(block, None)
    }

    /// `provider` served a body for `block` that is not valid under it. That is no matter of health, and
    /// others may share the fault: ask all the rest at once.
    pub fn on_bad_body(&mut self, provider: usize, block: B256) -> Vec<Command> {
        if let Some(leg) = self.legs.get_mut(&block) {
            leg.under_way.remove(&provider);
        }
        std::iter::from_fn(|| self.fetch_from(block, None)).collect()
    }

    /// The body of `block` is taking longer than its provider usually takes.
    pub fn on_alarm(&mut self, block: B256) -> Option<Command> {
        self.fetch_from(block, None)
    }

    /// Asks the next provider for the body of `block`: `first`, else one that served this header, else
    /// the best of the rest.
    fn fetch_from(&mut self, block: B256, first: Option<usize>) -> Option<Command> {
        let leg = self.legs.get(&block).filter(|leg| matches!(leg.state, LegState::Wanted))?;
        let served =
            |provider: &usize| self.ballot.said().any(|(who, claim)| who == *provider && claim.hash == block);
        let untried = || self.preference.iter().copied().filter(|provider| !leg.tried.contains(provider));
        let provider = first.or_else(|| untried().find(served)).or_else(|| untried().next())?;
        let leg = self.legs.get_mut(&block)?;
        leg.tried.insert(provider);
        leg.under_way.insert(provider);
        Some(Command::FetchBody { provider, block })
    }

    /// The outcome, once there is one.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict<B>> {
        let Some(claim) = self.ballot.agreed().copied() else {
            return (!self.ballot.is_open()).then_some(Verdict::NoQuorum);
        };
        let leg = self.legs.get(&claim.hash)?;
        match &leg.state {
            LegState::NotNeeded => Some(Verdict::Agreed { claim, body: None }),
            LegState::Valid(body, provider) => {
                Some(Verdict::Agreed { claim, body: Some((body.clone(), *provider)) })
            }
            LegState::Wanted
                if leg.under_way.is_empty() && self.preference.iter().all(|p| leg.tried.contains(p)) =>
            {
                Some(Verdict::NoBody { claim })
            }
            LegState::Wanted => None,
        }
    }

    /// The votes on the header.
    #[must_use]
    pub fn ballot(&self) -> &Ballot<HeaderClaim> {
        &self.ballot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::chance::Chance;

    fn roster(groups: &[&str], needed: usize) -> Roster {
        Roster::new(groups, needed).unwrap()
    }

    fn claim(tag: u8) -> HeaderClaim {
        HeaderClaim { number: 7, hash: B256::repeat_byte(tag), parent: B256::ZERO, seconds: 1 }
    }

    #[test]
    fn refuses_a_quorum_that_cannot_hold() {
        assert_eq!(Roster::new(&["a", "b"], 0), Err(InvalidQuorum::Zero));
        assert_eq!(
            Roster::new(&["a", "a", "b"], 3),
            Err(InvalidQuorum::MoreThanGroups { needed: 3, groups: 2 })
        );
        assert_eq!(Roster::new(&["a", ""], 1), Err(InvalidQuorum::Unnamed));
        assert!(Roster::new::<&str>(&[], 1).is_err());
    }

    #[test]
    fn urls_of_one_group_are_one_vote() {
        let mut ballot = Ballot::new(roster(&["a", "a", "a", "b", "c"], 2), 0..5);
        for provider in 0..3 {
            ballot.vote(provider, 1);
        }
        assert_eq!(ballot.agreed(), None);
        ballot.vote(3, 1);
        assert_eq!(ballot.agreed(), Some(&1));
    }

    #[test]
    fn a_group_that_contradicts_itself_has_no_vote() {
        let mut ballot = Ballot::new(roster(&["a", "a", "b", "c"], 2), 0..4);
        ballot.vote(0, 1);
        ballot.vote(1, 2);
        ballot.vote(2, 1);
        assert_eq!(ballot.agreed(), None);
        assert!(ballot.is_open());
        ballot.abstain(3);
        assert!(!ballot.is_open());
    }

    #[test]
    fn a_provider_votes_once() {
        let mut ballot = Ballot::new(roster(&["a", "b", "c"], 2), 0..3);
        ballot.vote(0, 1);
        ballot.vote(0, 2);
        ballot.vote(1, 2);
        assert_eq!(ballot.agreed(), None);
        ballot.vote(2, 2);
        assert_eq!(ballot.agreed(), Some(&2));
        assert_eq!(ballot.dissenters().map(|(provider, _)| provider).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn abstaining_shrinks_nothing() {
        let mut ballot: Ballot<u8> = Ballot::new(roster(&["a", "b", "c"], 2), 0..3);
        ballot.abstain(0);
        ballot.abstain(1);
        assert!(!ballot.is_open());
        ballot.vote(2, 1);
        assert_eq!(ballot.agreed(), None);
    }

    #[test]
    fn the_height_is_that_of_the_kth_group() {
        let roster = roster(&["a", "a", "b", "c"], 2);
        assert_eq!(roster.reached_by_quorum([(0, 5), (1, 9), (2, 7), (3, 100)]), Some(9));
        assert_eq!(roster.reached_by_quorum([(0, 5), (1, 9)]), None);
    }

    #[test]
    fn the_body_comes_from_whoever_proves_it() {
        let mut round: BlockRound<&str> = BlockRound::new(roster(&["a", "b", "c"], 2), 7, vec![2, 0, 1]);
        let block = claim(1).hash;
        assert_eq!(round.on_header(1, claim(1), true), Some(Command::FetchBody { provider: 1, block }));
        assert_eq!(round.on_header(0, claim(1), true), None);
        assert_eq!(round.verdict(), None);
        assert_eq!(round.on_no_body(1, block), Some(Command::FetchBody { provider: 0, block }));
        assert_eq!(round.on_alarm(block), Some(Command::FetchBody { provider: 2, block }));
        assert_eq!(round.on_alarm(block), None);
        round.on_body(2, block, "body");
        assert_eq!(round.verdict(), Some(Verdict::Agreed { claim: claim(1), body: Some(("body", 2)) }));
    }

    #[test]
    fn a_header_without_any_valid_body_proves_nothing() {
        let mut round: BlockRound<()> = BlockRound::new(roster(&["a", "b"], 2), 7, vec![0, 1]);
        let block = claim(1).hash;
        round.on_header(0, claim(1), true);
        round.on_header(1, claim(1), true);
        assert!(round.on_no_body(0, block).is_some());
        assert_eq!(round.verdict(), None);
        assert!(round.on_no_body(1, block).is_none());
        assert_eq!(round.verdict(), Some(Verdict::NoBody { claim: claim(1) }));
    }

    #[test]
    fn a_header_of_another_height_is_no_vote() {
        let mut round: BlockRound<()> = BlockRound::new(roster(&["a", "b"], 1), 8, vec![0, 1]);
        assert_eq!(round.on_header(0, claim(1), false), None);
        round.on_no_header(1);
        assert_eq!(round.verdict(), Some(Verdict::NoQuorum));
    }

    /// What a provider of one seeded round does.
    #[derive(Clone, Copy, PartialEq)]
    enum Conduct {
        Honest,
        HonestBodyless,
        Silent,
        /// Colludes with all other liars on one header that nobody honest has, body included.
        Forges,
        /// Serves the true header and no valid body.
        Omits,
        /// A header of its own.
        Babbles(u8),
    }

    /// 10^5 rounds in which up to k − 1 groups do whatever they like, in any order of events.
    #[test]
    fn no_wrong_block_is_agreed_on_while_fewer_than_k_groups_are_bad() {
        let truth = claim(1);
        let forged = claim(2);
        let chance = Chance::from_seed(0x51_u64);
        let pick = |bound: usize| usize::try_from(chance.below(bound as u64)).unwrap();
        let (mut agreed, mut stalled) = (0_u32, 0_u32);
        for _ in 0..100_000 {
            let groups = 1 + pick(5);
            let needed = 1 + pick(groups);
            let bad_groups = pick(needed);
            let names: Vec<String> = (0..groups + pick(3)).map(|p| format!("g{}", p % groups)).collect();
            let roster = Roster::new(&names, needed).unwrap();
            let conduct: Vec<Conduct> = (0..names.len())
                .map(|provider| {
                    if provider % groups < bad_groups {
                        match pick(5) {
                            0 => Conduct::Forges,
                            1 => Conduct::Omits,
                            2 => Conduct::Silent,
                            3 => Conduct::Honest,
                            _ => Conduct::Babbles(3 + u8::try_from(provider).unwrap()),
                        }
                    } else {
                        match pick(8) {
                            0 => Conduct::Silent,
                            1 => Conduct::HonestBodyless,
                            _ => Conduct::Honest,
                        }
                    }
                })
                .collect();
            let mut order: Vec<usize> = (0..names.len()).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, pick(i + 1));
            }
            let mut round: BlockRound<bool> = BlockRound::new(roster.clone(), 7, order.clone());
            // Events that have not happened yet: a header answer each, and the bodies asked for.
            let mut headers = order;
            let mut bodies: Vec<(usize, B256)> = Vec::new();
            let verdict = loop {
                if let Some(verdict) = round.verdict() {
                    break verdict;
                }
                let command = if !bodies.is_empty() && (headers.is_empty() || pick(2) == 0) {
                    let (provider, block) = bodies.swap_remove(pick(bodies.len()));
                    if pick(6) == 0 {
                        bodies.push((provider, block));
                        round.on_alarm(block)
                    } else {
                        // A body is checked against the block's roots: a liar can only make up a valid
                        // one for a block that he made up.
                        let valid = match conduct[provider] {
                            Conduct::Honest => block == truth.hash,
                            Conduct::Forges => block == forged.hash,
                            Conduct::Babbles(tag) => block == claim(tag).hash,
                            _ => false,
                        };
                        if valid {
                            round.on_body(provider, block, block == truth.hash);
                            None
                        } else if pick(2) == 0 {
                            round.on_no_body(provider, block)
                        } else {
                            let commands = round.on_bad_body(provider, block);
                            bodies.extend(
                                commands
                                    .into_iter()
                                    .map(|Command::FetchBody { provider, block }| (provider, block)),
                            );
                            None
                        }
                    }
                } else if headers.is_empty() {
                    panic!("nothing can happen any more, and there is no verdict");
                } else {
                    let provider = headers.swap_remove(pick(headers.len()));
                    match conduct[provider] {
                        Conduct::Honest | Conduct::HonestBodyless | Conduct::Omits => {
                            round.on_header(provider, truth, true)
                        }
                        Conduct::Forges => round.on_header(provider, forged, true),
                        Conduct::Babbles(tag) => round.on_header(provider, claim(tag), true),
                        Conduct::Silent => {
                            round.on_no_header(provider);
                            None
                        }
                    }
                };
                if let Some(Command::FetchBody { provider, block }) = command {
                    bodies.push((provider, block));
                }
            };
            // Liveness: with k groups whose every provider is honest, one of them with the body.
            let whole = |group: usize| {
                (0..names.len())
                    .filter(|p| p % groups == group)
                    .all(|p| matches!(conduct[p], Conduct::Honest))
            };
            let lively = (0..groups).filter(|group| whole(*group)).count() >= needed;
            match verdict {
                Verdict::Agreed { claim, body } => {
                    assert_eq!(claim, truth);
                    assert!(body.is_some_and(|(true_body, _)| true_body));
                    agreed += 1;
                }
                Verdict::NoQuorum | Verdict::NoBody { .. } => {
                    assert!(!lively, "{conduct_len} providers, {needed} needed", conduct_len = conduct.len());
                    stalled += 1;
                }
            }
        }
        assert!(agreed > 20_000 && stalled > 5_000, "{agreed} agreed, {stalled} stalled");
    }
}

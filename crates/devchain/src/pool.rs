//! The mempool: what has been sent and is not in a block yet.
//!
//! Transactions are ordered by arrival, and per sender by nonce; a gap waits. A second transaction for
//! the same sender and nonce replaces the first if it bids at least a tenth more. Refusals read as
//! go-ethereum words them, since clients match on those texts. Nothing is evicted for age or space.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use alloy_consensus::Transaction as _;
use alloy_primitives::{Address, TxHash, U256};
use thiserror::Error;

use crate::block::Transaction;

/// Why a transaction was refused. The text is what a go-ethereum node would say.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The bytes are no transaction.
    #[error("rlp: {0}")]
    Malformed(String),
    /// The signature is not valid, or signs for another chain.
    #[error("invalid sender")]
    InvalidSender,
    /// Blob transactions are not offered here.
    #[error("transaction type not supported")]
    Unsupported,
    /// This very transaction is in the pool.
    #[error("already known")]
    AlreadyKnown,
    /// The nonce is used up.
    #[error("nonce too low: next nonce {next}, tx nonce {nonce}")]
    NonceTooLow {
        /// The next nonce of the sender.
        next: u64,
        /// The nonce of the transaction.
        nonce: u64,
    },
    /// Another transaction has this nonce, and the bid is not a tenth higher in both fees.
    #[error("replacement transaction underpriced")]
    ReplacementUnderpriced,
    /// The sender could not pay value and maximum fee.
    #[error("insufficient funds for gas * price + value: balance {balance}, tx cost {cost}, overshot {}", .cost - .balance)]
    InsufficientFunds {
        /// Wei the sender has.
        balance: U256,
        /// Wei the transaction could cost.
        cost: U256,
    },
    /// It could never fit into a block.
    #[error("exceeds block gas limit")]
    ExceedsBlockGasLimit,
    /// Less gas than its bytes cost.
    #[error("intrinsic gas too low: gas {gas}, minimum needed {minimum}")]
    IntrinsicGasTooLow {
        /// Gas limit of the transaction.
        gas: u64,
        /// What its bytes cost.
        minimum: u64,
    },
    /// A tip above the maximum fee.
    #[error("max priority fee per gas higher than max fee per gas")]
    TipAboveFeeCap,
}

#[derive(Debug, Clone)]
struct Waiting {
    arrival: u64,
    tx: Arc<Transaction>,
}

/// The mempool.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool {
    arrivals: u64,
    by_sender: BTreeMap<Address, BTreeMap<u64, Waiting>>,
    by_hash: HashMap<TxHash, (Address, u64)>,
}

impl Pool {
    pub(crate) fn get(&self, hash: &TxHash) -> Option<&Arc<Transaction>> {
        let (sender, nonce) = self.by_hash.get(hash)?;
        Some(&self.by_sender.get(sender)?.get(nonce)?.tx)
    }

    /// All hashes, in order of arrival.
    pub(crate) fn hashes(&self) -> Vec<TxHash> {
        let mut waiting: Vec<&Waiting> = self.by_sender.values().flat_map(BTreeMap::values).collect();
        waiting.sort_by_key(|w| w.arrival);
        waiting.iter().map(|w| *w.tx.tx_hash()).collect()
    }

    /// The nonce after `next` and everything that directly follows it here.
    pub(crate) fn nonce_after(&self, sender: Address, next: u64) -> u64 {
        let mut nonce = next;
        if let Some(own) = self.by_sender.get(&sender) {
            while own.contains_key(&nonce) {
                nonce = nonce.saturating_add(1);
            }
        }
        nonce
    }

    /// Adds a transaction, given its sender's next nonce and balance.
    pub(crate) fn add(&mut self, tx: Arc<Transaction>, next: u64, balance: U256) -> Result<(), Refusal> {
        if self.by_hash.contains_key(tx.tx_hash()) {
            return Err(Refusal::AlreadyKnown);
        }
        if tx.nonce() < next {
            return Err(Refusal::NonceTooLow { next, nonce: tx.nonce() });
        }
        let cost = U256::from(tx.max_fee_per_gas())
            .saturating_mul(U256::from(tx.gas_limit()))
            .saturating_add(tx.value());
        if cost > balance {
            return Err(Refusal::InsufficientFunds { balance, cost });
        }
        let replaced = self.by_sender.get(&tx.signer()).and_then(|own| own.get(&tx.nonce()));
        if let Some(replaced) = replaced
            && !outbids(&tx, &replaced.tx)
        {
            return Err(Refusal::ReplacementUnderpriced);
        }
        self.put(tx);
        Ok(())
    }

    /// Puts a transaction in without asking; an older one with the same sender and nonce goes.
    pub(crate) fn put(&mut self, tx: Arc<Transaction>) {
        let (sender, nonce, hash) = (tx.signer(), tx.nonce(), *tx.tx_hash());
        let arrival = self.arrivals;
        self.arrivals = self.arrivals.saturating_add(1);
        let own = self.by_sender.entry(sender).or_default();
        if let Some(old) = own.insert(nonce, Waiting { arrival, tx }) {
            self.by_hash.remove(old.tx.tx_hash());
        }
        self.by_hash.insert(hash, (sender, nonce));
    }

    /// Forgets a transaction, as a node does that evicts it.
    pub(crate) fn remove(&mut self, hash: &TxHash) -> Option<Arc<Transaction>> {
        let (sender, nonce) = self.by_hash.remove(hash)?;
        let own = self.by_sender.get_mut(&sender)?;
        let removed = own.remove(&nonce)?;
        if own.is_empty() {
            self.by_sender.remove(&sender);
        }
        Some(removed.tx)
    }

    /// Forgets everything whose nonce is used up.
    pub(crate) fn prune(&mut self, next: impl Fn(Address) -> u64) {
        let stale: Vec<TxHash> = self
            .by_sender
            .iter()
            .flat_map(|(sender, own)| own.range(..next(*sender)))
            .map(|(_, waiting)| *waiting.tx.tx_hash())
            .collect();
        for hash in stale {
            self.remove(&hash);
        }
    }

    /// The order in which a block takes transactions: by arrival, but never before the same sender's
    /// lower nonces.
    pub(crate) fn queue(&self, wanted: impl Fn(&TxHash) -> bool) -> Queue {
        let mut queue = Queue::default();
        for (sender, own) in &self.by_sender {
            let own: BTreeMap<u64, Waiting> = own
                .iter()
                .filter(|(_, waiting)| wanted(waiting.tx.tx_hash()))
                .map(|(nonce, waiting)| (*nonce, waiting.clone()))
                .collect();
            queue.push_sender(*sender, own);
        }
        queue
    }
}

/// At least 10 % more in both fees: go-ethereum's default price bump.
fn outbids(new: &Transaction, old: &Transaction) -> bool {
    let enough = |new: u128, old: u128| new >= old.saturating_add(old.div_ceil(10)) && new > old;
    enough(new.max_fee_per_gas(), old.max_fee_per_gas())
        && enough(
            new.max_priority_fee_per_gas().unwrap_or_else(|| new.max_fee_per_gas()),
            old.max_priority_fee_per_gas().unwrap_or_else(|| old.max_fee_per_gas()),
        )
}

/// Candidates for a block.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    heads: BinaryHeap<Reverse<(u64, Address)>>,
    rest: BTreeMap<Address, BTreeMap<u64, Waiting>>,
}

impl Queue {
    /// A queue in the given order, except that nonces of one sender stay in order.
    pub(crate) fn in_order(transactions: impl IntoIterator<Item = Arc<Transaction>>) -> Self {
        let mut by_sender: BTreeMap<Address, BTreeMap<u64, Waiting>> = BTreeMap::new();
        for (arrival, tx) in (0u64..).zip(transactions) {
            by_sender.entry(tx.signer()).or_default().insert(tx.nonce(), Waiting { arrival, tx });
        }
        let mut queue = Self::default();
        for (sender, own) in by_sender {
            queue.push_sender(sender, own);
        }
        queue
    }

    fn push_sender(&mut self, sender: Address, own: BTreeMap<u64, Waiting>) {
        if let Some(first) = own.values().next() {
            self.heads.push(Reverse((first.arrival, sender)));
            self.rest.insert(sender, own);
        }
    }

    /// The next candidate.
    pub(crate) fn pop(&mut self) -> Option<Arc<Transaction>> {
        let Reverse((_, sender)) = self.heads.pop()?;
        let (_, waiting) = self.rest.get_mut(&sender)?.pop_first()?;
        Some(waiting.tx)
    }

    /// After a candidate was taken (or was stale): its sender's next one may follow. A sender for whom
    /// this is not called is out of this block.
    pub(crate) fn advance(&mut self, sender: Address) {
        let next = self.rest.get(&sender).and_then(|own| own.values().next());
        if let Some(next) = next {
            self.heads.push(Reverse((next.arrival, sender)));
        }
    }
}

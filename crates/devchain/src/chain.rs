//! The chain: blocks, the states after them, the mempool, reorganisations.
//!
//! [`Devchain`] is a cheap handle on one chain; everything is deterministic from the seed and the calls
//! made. Reads through it are the truth, whatever the faces say: auditors in tests compare against it.
//! Dropped blocks stay readable by hash, so that a provider can go on following an abandoned branch.
//!
//! States are kept for the last [`Config::history`] blocks only; older blocks keep their bodies and
//! receipts, and cannot be reorganised or called into.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use alloy_consensus::transaction::{Recovered, SignerRecoverable};
use alloy_consensus::{EMPTY_OMMER_ROOT_HASH, Header, Transaction as _, TxEip1559, TxEnvelope};
use alloy_eips::Decodable2718;
use alloy_eips::eip1559::{BaseFeeParams, calc_next_block_base_fee};
use alloy_primitives::{Address, B256, Bytes, TxHash, TxKind, U256, address};
use alloy_rpc_types_eth as rpc;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use revm::context::result::{EVMError, ExecutionResult, HaltReason, InvalidTransaction};
use thiserror::Error;
use tokio::sync::watch;

use crate::account::{DevAccount, SignedTransaction};
use crate::block::{self, Block, Receipt, Transaction, derived};
use crate::execute::{self, Executor, Invalid};
use crate::pool::{Pool, Queue, Refusal};
use crate::state::State;
use crate::token::{self, CONTRACTS, Payment};

/// Who receives the fees.
const BENEFICIARY: Address = address!("0xfee0000000000000000000000000000000000000");
/// Gas of a plain transfer (Yellow Paper, Gtransaction).
const PLAIN_TRANSFER_GAS: u64 = 21_000;
/// Gas limit given to token transfers that are sent from here.
const TOKEN_TRANSFER_GAS: u64 = 120_000;

/// How the chain is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// Accounts, block randomness and the shuffling of reorganisations follow from it.
    pub seed: u64,
    /// Time of block 0, seconds since the epoch.
    pub genesis_time: u64,
    /// Seconds between blocks.
    pub block_time_secs: u64,
    /// Gas per block.
    pub gas_limit: u64,
    /// Wei per gas in block 0; it then moves by EIP-1559.
    pub base_fee: u64,
    /// Tip suggested by `eth_maxPriorityFeePerGas` and paid by transactions sent from here, wei per gas.
    pub tip: u128,
    /// Number of dev accounts, at least 1.
    pub accounts: u64,
    /// Wei of each dev account at genesis.
    pub native_balance: U256,
    /// Base units of each token for each dev account and the contract wallet at genesis.
    pub token_balance: U256,
    /// `safe` is this far behind the head.
    pub safe_lag: u64,
    /// `finalized` is this far behind the head.
    pub finalized_lag: u64,
    /// For how many blocks states are kept.
    pub history: u64,
    /// Headers commit to their receipts in a way that cannot be recomputed from the receipts alone, as on
    /// several real chains: there, receipts prove nothing.
    pub opaque_receipts_root: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            chain_id: 31_337,
            seed: 0,
            genesis_time: 1_767_225_600,
            block_time_secs: 2,
            gas_limit: 60_000_000,
            base_fee: 1_000_000_000,
            tip: 1_000_000_000,
            accounts: 16,
            native_balance: U256::from(10_000_000_000_000_000_000_000u128),
            token_balance: U256::from(1_000_000_000_000_000_000_000_000u128),
            safe_lag: 4,
            finalized_lag: 8,
            history: 256,
            opaque_receipts_root: false,
        }
    }
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The mempool refused a transaction.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no such dev account.
    #[error("there is no dev account {0}")]
    NoSuchAccount(usize),
    /// A block must be later than its parent.
    #[error("timestamp {asked} is not later than the parent's {parent}")]
    NotLater {
        /// The timestamp asked for.
        asked: u64,
        /// The parent's.
        parent: u64,
    },
    /// The reorganisation would reach below what is kept.
    #[error("cannot drop {depth} blocks, at most {limit}")]
    TooDeep {
        /// The depth asked for.
        depth: u64,
        /// The deepest possible.
        limit: u64,
    },
    /// The call reverted or ran out of gas.
    #[error("call failed: {0}")]
    CallFailed(String),
}

/// What to send from a dev account; the rest (nonce, fees) is filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    /// `None` creates a contract.
    pub to: Option<Address>,
    /// Wei.
    pub value: U256,
    /// Calldata, or creation code.
    pub data: Bytes,
    /// Default: the account's next nonce, counting the mempool.
    pub nonce: Option<u64>,
    /// Default: an estimate with a margin.
    pub gas_limit: Option<u64>,
    /// Wei per gas; default: twice the base fee plus the tip.
    pub max_fee_per_gas: Option<u128>,
    /// Wei per gas; default: [`Config::tip`].
    pub max_priority_fee_per_gas: Option<u128>,
}

/// Which waiting transactions a block takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Include {
    /// All that can be executed.
    #[default]
    All,
    /// None: an empty block, while the mempool waits.
    Nothing,
    /// Only these.
    Only(BTreeSet<TxHash>),
    /// All but these.
    Except(BTreeSet<TxHash>),
}

/// What becomes of the transactions of the dropped blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replay {
    /// Included again, each as many blocks above the fork as before.
    All,
    /// Included again, in blocks and positions that follow from the seed.
    Shuffled,
    /// Only these are included again, the others are gone for good.
    Only(BTreeSet<TxHash>),
    /// Gone for good.
    Nothing,
    /// Back into the mempool; the new blocks are empty.
    Pool,
}

/// A reorganisation to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reorg {
    /// How many blocks are dropped.
    pub depth: u64,
    /// How many are mined instead; may be less than `depth`, even zero.
    pub new_length: u64,
    /// What becomes of their transactions.
    pub replay: Replay,
}

/// A reorganisation that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reorged {
    /// The last block both branches share.
    pub fork: B256,
    /// Hashes of the dropped blocks, lowest first.
    pub dropped: Vec<B256>,
    /// Hashes of the new blocks, lowest first.
    pub added: Vec<B256>,
    /// Transactions that were in a block and are no longer, in the old order.
    pub lost: Vec<TxHash>,
}

/// Where the chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Height.
    pub number: u64,
    /// Hash.
    pub hash: B256,
    /// Seconds since the epoch.
    pub timestamp: u64,
}

/// A handle on a chain; clones are the same chain.
#[derive(Debug, Clone)]
pub struct Devchain {
    inner: Arc<RwLock<Inner>>,
    heads: watch::Receiver<Head>,
}

impl Devchain {
    /// Creates the chain with its genesis block.
    pub fn new(config: Config) -> Self {
        let inner = Inner::genesis(config);
        let heads = inner.heads.subscribe();
        Self { inner: Arc::new(RwLock::new(inner)), heads }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it was set up.
    pub fn config(&self) -> Config {
        self.read().config.clone()
    }

    /// A dev account.
    ///
    /// # Panics
    /// When `index` is not below [`Config::accounts`].
    pub fn account(&self, index: usize) -> DevAccount {
        self.read().accounts[index].clone()
    }

    /// All dev accounts.
    pub fn accounts(&self) -> Vec<DevAccount> {
        self.read().accounts.clone()
    }

    // Mining.

    /// Mines one block of everything that waits, at the regular time; its hash.
    pub fn mine(&self) -> B256 {
        self.write().mine(None, &Include::All)
    }

    /// Mines `count` blocks; the hash of the last one (of the head, for zero).
    pub fn mine_n(&self, count: u64) -> B256 {
        let mut inner = self.write();
        for _ in 0..count {
            inner.mine(None, &Include::All);
        }
        inner.head().hash()
    }

    /// Mines one block at `timestamp`, seconds since the epoch.
    ///
    /// # Errors
    /// [`ChainError::NotLater`] when that is not later than the parent.
    pub fn mine_at(&self, timestamp: u64) -> Result<B256, ChainError> {
        self.mine_with(Some(timestamp), &Include::All)
    }

    /// Mines one block of the chosen transactions, at `timestamp` or the regular time.
    ///
    /// # Errors
    /// [`ChainError::NotLater`] when the timestamp is not later than the parent's.
    pub fn mine_with(&self, timestamp: Option<u64>, include: &Include) -> Result<B256, ChainError> {
        let mut inner = self.write();
        let parent = inner.head().timestamp();
        if let Some(asked) = timestamp
            && asked <= parent
        {
            return Err(ChainError::NotLater { asked, parent });
        }
        Ok(inner.mine(timestamp, include))
    }

    /// Drops the last `depth` blocks and mines one more than that instead.
    ///
    /// # Errors
    /// [`ChainError::TooDeep`] when the fork would lie below what is kept.
    pub fn reorg(&self, depth: u64, replay: Replay) -> Result<Reorged, ChainError> {
        self.reorg_with(Reorg { depth, new_length: depth.saturating_add(1), replay })
    }

    /// Drops and mines as `reorg` says; the new branch may be shorter.
    ///
    /// # Errors
    /// [`ChainError::TooDeep`] when the fork would lie below what is kept.
    pub fn reorg_with(&self, reorg: Reorg) -> Result<Reorged, ChainError> {
        self.write().reorg(&reorg)
    }

    // Sending.

    /// Takes a signed transaction into the mempool.
    ///
    /// # Errors
    /// [`ChainError::Refused`], worded like a node.
    pub fn send_raw(&self, raw: &[u8]) -> Result<TxHash, ChainError> {
        Ok(self.write().send_raw(raw)?)
    }

    /// Sends `value` wei from a dev account.
    ///
    /// # Errors
    /// When there is no such account or the mempool refuses.
    pub fn send_native(&self, from: usize, to: Address, value: U256) -> Result<TxHash, ChainError> {
        self.send(
            from,
            Draft { to: Some(to), value, gas_limit: Some(PLAIN_TRANSFER_GAS), ..Draft::default() },
        )
    }

    /// Sends `value` base units of `token` from a dev account.
    ///
    /// # Errors
    /// When there is no such account or the mempool refuses. A transfer that reverts is mined, failed.
    pub fn send_token(
        &self,
        token: Address,
        from: usize,
        to: Address,
        value: U256,
    ) -> Result<TxHash, ChainError> {
        self.send(
            from,
            Draft {
                to: Some(token),
                data: token::transfer(to, value),
                gas_limit: Some(TOKEN_TRANSFER_GAS),
                ..Draft::default()
            },
        )
    }

    /// Sends several payments in one transaction, through the payouts contract.
    ///
    /// # Errors
    /// When there is no such account, the payments would revert now, or the mempool refuses.
    pub fn send_payments(&self, from: usize, payments: &[Payment]) -> Result<TxHash, ChainError> {
        let value = payments
            .iter()
            .filter(|payment| payment.token.is_zero())
            .fold(U256::ZERO, |sum, payment| sum.saturating_add(payment.value));
        self.call_contract(from, CONTRACTS.payouts, value, token::pay(payments))
    }

    /// Sends arbitrary calldata from a dev account.
    ///
    /// # Errors
    /// When there is no such account, the call would fail now, or the mempool refuses.
    pub fn call_contract(
        &self,
        from: usize,
        to: Address,
        value: U256,
        data: Bytes,
    ) -> Result<TxHash, ChainError> {
        self.send(from, Draft { to: Some(to), value, data, ..Draft::default() })
    }

    /// Signs and sends from a dev account.
    ///
    /// # Errors
    /// As [`Devchain::sign`], or when the mempool refuses.
    pub fn send(&self, from: usize, draft: Draft) -> Result<TxHash, ChainError> {
        let mut inner = self.write();
        let signed = inner.sign(from, draft)?;
        Ok(inner.take_in(signed.envelope)?)
    }

    /// Signs for a dev account without sending.
    ///
    /// # Errors
    /// When there is no such account, or gas must be estimated and the call would fail.
    pub fn sign(&self, from: usize, draft: Draft) -> Result<SignedTransaction, ChainError> {
        self.read().sign(from, draft)
    }

    /// Hashes of what waits in the mempool, in order of arrival.
    pub fn pending(&self) -> Vec<TxHash> {
        self.read().pool.hashes()
    }

    /// Forgets a waiting transaction, as if every node had evicted it. Was it there?
    pub fn drop_pending(&self, hash: TxHash) -> bool {
        self.write().pool.remove(&hash).is_some()
    }

    // The truth.

    /// The current head.
    pub fn head(&self) -> Head {
        *self.heads.borrow()
    }

    /// Wakes whenever the head changes.
    pub fn heads(&self) -> watch::Receiver<Head> {
        self.heads.clone()
    }

    /// Height of the `safe` block.
    pub fn safe(&self) -> u64 {
        self.read().safe
    }

    /// Height of the `finalized` block. It never falls, even if a reorganisation goes below it.
    pub fn finalized(&self) -> u64 {
        self.read().finalized
    }

    /// The block at a height.
    pub fn block(&self, number: u64) -> Option<Arc<Block>> {
        self.read().at(number).cloned()
    }

    /// A block by hash, also one that was dropped.
    pub fn block_by_hash(&self, hash: B256) -> Option<Arc<Block>> {
        self.read().blocks.get(&hash).cloned()
    }

    /// Is this hash on the chain now?
    pub fn is_canonical(&self, hash: B256) -> bool {
        let inner = self.read();
        inner
            .blocks
            .get(&hash)
            .is_some_and(|block| inner.at(block.number()).is_some_and(|at| at.hash() == hash))
    }

    /// The block a transaction is in, and its position.
    pub fn locate(&self, hash: TxHash) -> Option<(Arc<Block>, usize)> {
        let inner = self.read();
        let (number, index) = *inner.located.get(&hash)?;
        Some((Arc::clone(inner.at(number)?), index))
    }

    /// The receipt of a transaction that is in a block.
    pub fn receipt(&self, hash: TxHash) -> Option<rpc::TransactionReceipt> {
        let (block, index) = self.locate(hash)?;
        block.rpc_receipts().into_iter().nth(index)
    }

    /// The logs of the chain from block `from` to `to` (inclusive) that match address and topics of
    /// `filter`; its own range is ignored.
    pub fn logs(&self, from: u64, to: u64, filter: &rpc::Filter) -> Vec<rpc::Log> {
        let inner = self.read();
        (from..=to.min(inner.head().number()))
            .filter_map(|number| inner.at(number))
            .flat_map(|block| block.logs())
            .filter(|log| filter.matches(&log.inner))
            .collect()
    }

    /// Wei of an address at the head.
    pub fn balance(&self, address: Address) -> U256 {
        self.read().head_state().balance(address)
    }

    /// Number of transactions an address has in blocks.
    pub fn nonce(&self, address: Address) -> u64 {
        self.read().head_state().nonce(address)
    }

    /// Base units of `token` that `owner` has at the head; zero if `token` is no token.
    pub fn token_balance(&self, token: Address, owner: Address) -> U256 {
        self.call(Address::ZERO, token, token::balance_of(owner))
            .ok()
            .filter(|answer| answer.len() == 32)
            .map_or(U256::ZERO, |answer| U256::from_be_slice(&answer))
    }

    /// Has the dollar token seen this authorization used or canceled, at the head?
    pub fn authorization_spent(&self, authorizer: Address, nonce: B256) -> bool {
        self.call(Address::ZERO, CONTRACTS.dollar, token::authorization_state(authorizer, nonce))
            .is_ok_and(|answer| answer.last() == Some(&1))
    }

    /// Calls a contract at the head, without effect.
    ///
    /// # Errors
    /// [`ChainError::CallFailed`] with the revert reason.
    pub fn call(&self, from: Address, to: Address, data: Bytes) -> Result<Bytes, ChainError> {
        self.read().call(from, to, data)
    }
}

/// What happened in one block, before it is sealed.
struct Body {
    transactions: Vec<Arc<Transaction>>,
    receipts: Vec<Receipt>,
    gas_used: u64,
    state: State,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) accounts: Vec<DevAccount>,
    canonical: Vec<Arc<Block>>,
    /// Every block ever mined, dropped ones too.
    pub(crate) blocks: HashMap<B256, Arc<Block>>,
    states: HashMap<B256, State>,
    /// Hashes of blocks whose states are kept, by height.
    kept: BTreeMap<u64, Vec<B256>>,
    pub(crate) located: HashMap<TxHash, (u64, usize)>,
    pub(crate) pool: Pool,
    pub(crate) safe: u64,
    pub(crate) finalized: u64,
    /// Number of reorganisations so far: it tells the branches apart.
    branch: u64,
    heads: watch::Sender<Head>,
}

impl Inner {
    fn genesis(config: Config) -> Self {
        let accounts: Vec<DevAccount> = (0..config.accounts.max(1))
            .map(|index| DevAccount::derive(config.seed, "dev account", index))
            .collect();
        let state = genesis_state(&config, &accounts);
        let header = Header {
            state_root: state.root(),
            timestamp: config.genesis_time,
            gas_limit: config.gas_limit,
            base_fee_per_gas: Some(config.base_fee),
            parent_beacon_block_root: Some(B256::ZERO),
            extra_data: Bytes::from_static(b"devchain"),
            ..Header::default()
        };
        let block = Arc::new(Block::seal(header, Vec::new(), Vec::new(), config.opaque_receipts_root));
        let (heads, _) = watch::channel(head_of(&block));
        let mut inner = Self {
            config,
            accounts,
            canonical: Vec::new(),
            blocks: HashMap::new(),
            states: HashMap::new(),
            kept: BTreeMap::new(),
            located: HashMap::new(),
            pool: Pool::default(),
            safe: 0,
            finalized: 0,
            branch: 0,
            heads,
        };
        inner.append(block, state);
        inner
    }

    pub(crate) fn head(&self) -> &Arc<Block> {
        self.canonical.last().expect("genesis is never dropped")
    }

    pub(crate) fn at(&self, number: u64) -> Option<&Arc<Block>> {
        self.canonical.get(usize::try_from(number).ok()?)
    }

    /// The state after a block, while it is kept.
    pub(crate) fn state(&self, hash: &B256) -> Option<&State> {
        self.states.get(hash)
    }

    pub(crate) fn head_state(&self) -> &State {
        self.states.get(&self.head().hash()).expect("the state after the head is kept")
    }

    fn hash_at(&self, number: u64) -> B256 {
        self.at(number).map_or(B256::ZERO, |block| block.hash())
    }

    fn mine(&mut self, timestamp: Option<u64>, include: &Include) -> B256 {
        let queue = self.pool.queue(|hash| match include {
            Include::All => true,
            Include::Nothing => false,
            Include::Only(only) => only.contains(hash),
            Include::Except(except) => !except.contains(hash),
        });
        let timestamp = timestamp.unwrap_or_else(|| self.next_timestamp());
        self.extend(timestamp, queue);
        let hash = self.head().hash();
        self.announce();
        hash
    }

    fn next_timestamp(&self) -> u64 {
        self.head().timestamp().saturating_add(self.config.block_time_secs.max(1))
    }

    /// Builds one block on the head and makes it the head.
    fn extend(&mut self, timestamp: u64, queue: Queue) {
        let mut header = self.next_header(timestamp);
        let body = self.execute(&header, queue);
        header.gas_used = body.gas_used;
        header.state_root = body.state.root();
        let block = Block::seal(header, body.transactions, body.receipts, self.config.opaque_receipts_root);
        self.append(Arc::new(block), body.state);
    }

    fn next_header(&self, timestamp: u64) -> Header {
        let parent = self.head();
        let number = parent.number().saturating_add(1);
        let base_fee = calc_next_block_base_fee(
            parent.header().gas_used,
            parent.header().gas_limit,
            parent.header().base_fee_per_gas.unwrap_or_default(),
            BaseFeeParams::ethereum(),
        );
        Header {
            parent_hash: parent.hash(),
            ommers_hash: EMPTY_OMMER_ROOT_HASH,
            beneficiary: BENEFICIARY,
            number,
            timestamp,
            gas_limit: self.config.gas_limit,
            base_fee_per_gas: Some(base_fee),
            mix_hash: derived(self.config.seed, "randao", number),
            parent_beacon_block_root: Some(derived(self.config.seed, "beacon", number)),
            // Branches differ here, so that equal blocks on different branches have different hashes.
            extra_data: format!("devchain/{}", self.branch).into_bytes().into(),
            ..Header::default()
        }
    }

    fn execute(&self, header: &Header, mut queue: Queue) -> Body {
        let block_hash = |number| self.hash_at(number);
        let mut executor =
            Executor::new(self.head_state().clone(), self.config.chain_id, header, &block_hash);
        let (mut transactions, mut receipts) = (Vec::new(), Vec::new());
        let mut gas_used = 0u64;
        while let Some(tx) = queue.pop() {
            // A sender whose next transaction does not fit waits for the next block.
            if gas_used.saturating_add(tx.gas_limit()) > header.gas_limit {
                continue;
            }
            match executor.transact(&tx) {
                Ok(result) => {
                    let receipt = receipt_of(&tx, result, gas_used, header);
                    gas_used = gas_used.saturating_add(receipt.gas_used);
                    receipts.push(receipt);
                    queue.advance(tx.signer());
                    transactions.push(tx);
                }
                Err(EVMError::Transaction(InvalidTransaction::NonceTooLow { .. })) => {
                    queue.advance(tx.signer());
                }
                Err(reason) => {
                    tracing::debug!(hash = %tx.tx_hash(), %reason, "transaction waits");
                }
            }
        }
        Body { transactions, receipts, gas_used, state: executor.into_state() }
    }

    fn append(&mut self, block: Arc<Block>, state: State) {
        let (number, hash) = (block.number(), block.hash());
        for (index, tx) in block.transactions().iter().enumerate() {
            self.located.insert(*tx.tx_hash(), (number, index));
            self.pool.remove(tx.tx_hash());
        }
        self.pool.prune(|sender| state.nonce(sender));
        self.blocks.insert(hash, Arc::clone(&block));
        self.states.insert(hash, state);
        self.kept.entry(number).or_default().push(hash);
        self.canonical.push(block);
        self.safe = self.safe.max(number.saturating_sub(self.config.safe_lag));
        self.finalized = self.finalized.max(number.saturating_sub(self.config.finalized_lag));
        self.forget_old_states(number);
    }

    fn forget_old_states(&mut self, head: u64) {
        let oldest = head.saturating_add(1).saturating_sub(self.config.history.max(1));
        while let Some(entry) = self.kept.first_entry() {
            if *entry.key() >= oldest {
                break;
            }
            for hash in entry.remove() {
                self.states.remove(&hash);
            }
        }
    }

    fn announce(&self) {
        self.heads.send_replace(head_of(self.head()));
    }

    fn reorg(&mut self, reorg: &Reorg) -> Result<Reorged, ChainError> {
        let head = self.head().number();
        // A branch can only start where the state is still known; after shorter branches that may be close.
        let oldest = self.kept.keys().next().copied().unwrap_or(head);
        let limit = head.saturating_sub(oldest);
        if reorg.depth > limit {
            return Err(ChainError::TooDeep { depth: reorg.depth, limit });
        }
        let fork = head.saturating_sub(reorg.depth);
        let keep = usize::try_from(fork).unwrap_or(usize::MAX).saturating_add(1);
        let dropped = self.canonical.split_off(keep);
        for tx in dropped.iter().flat_map(|block| block.transactions()) {
            self.located.remove(tx.tx_hash());
        }
        self.branch = self.branch.saturating_add(1);
        self.mine_branch(reorg, &dropped);
        let lost = dropped
            .iter()
            .flat_map(|block| block.transactions())
            .map(|tx| *tx.tx_hash())
            .filter(|hash| !self.located.contains_key(hash))
            .collect();
        self.announce();
        Ok(Reorged {
            fork: self.hash_at(fork),
            dropped: dropped.iter().map(|block| block.hash()).collect(),
            added: self.canonical.iter().skip(keep).map(|block| block.hash()).collect(),
            lost,
        })
    }

    /// Mines the new branch; what no block took goes (back) to the mempool.
    fn mine_branch(&mut self, reorg: &Reorg, dropped: &[Arc<Block>]) {
        let mut plan = self.replay_plan(reorg, dropped);
        let mut left: Vec<Arc<Transaction>> = Vec::new();
        for _ in 0..reorg.new_length {
            left.extend(plan.pop_front().unwrap_or_default());
            self.extend(self.next_timestamp(), Queue::in_order(left.iter().cloned()));
            left.retain(|tx| !self.located.contains_key(tx.tx_hash()));
        }
        let state = self.head_state().clone();
        for tx in left.into_iter().chain(plan.into_iter().flatten()) {
            if tx.nonce() >= state.nonce(tx.signer()) {
                self.pool.put(tx);
            }
        }
    }

    /// The candidates of each new block.
    fn replay_plan(
        &self,
        reorg: &Reorg,
        dropped: &[Arc<Block>],
    ) -> std::collections::VecDeque<Vec<Arc<Transaction>>> {
        let kept = |wanted: &dyn Fn(&TxHash) -> bool| {
            dropped
                .iter()
                .map(|block| {
                    let transactions = block.transactions().iter();
                    transactions.filter(|tx| wanted(tx.tx_hash())).cloned().collect()
                })
                .collect()
        };
        match &reorg.replay {
            Replay::All => kept(&|_| true),
            Replay::Only(only) => kept(&|hash| only.contains(hash)),
            Replay::Nothing => std::collections::VecDeque::new(),
            Replay::Pool => {
                // Beyond the last new block nothing is mined: these end in the mempool.
                let length = usize::try_from(reorg.new_length).unwrap_or(usize::MAX);
                let mut plan = std::collections::VecDeque::from(vec![Vec::new(); length]);
                plan.push_back(dropped.iter().flat_map(|b| b.transactions()).cloned().collect());
                plan
            }
            Replay::Shuffled => self.shuffled_plan(reorg.new_length, dropped),
        }
    }

    fn shuffled_plan(
        &self,
        new_length: u64,
        dropped: &[Arc<Block>],
    ) -> std::collections::VecDeque<Vec<Arc<Transaction>>> {
        let mut chance = StdRng::from_seed(derived(self.config.seed, "reorg", self.branch).0);
        let mut all: Vec<_> = dropped.iter().flat_map(|b| b.transactions()).cloned().collect();
        all.shuffle(&mut chance);
        let length = usize::try_from(new_length.max(1)).unwrap_or(usize::MAX);
        let mut plan = vec![Vec::new(); length];
        for tx in all {
            plan[chance.random_range(0..length)].push(tx);
        }
        plan.into()
    }

    pub(crate) fn send_raw(&mut self, mut raw: &[u8]) -> Result<TxHash, Refusal> {
        let envelope =
            TxEnvelope::decode_2718(&mut raw).map_err(|error| Refusal::Malformed(error.to_string()))?;
        if !raw.is_empty() {
            return Err(Refusal::Malformed("trailing bytes".into()));
        }
        let signer = envelope.recover_signer().map_err(|_| Refusal::InvalidSender)?;
        self.take_in(Recovered::new_unchecked(envelope, signer))
    }

    fn take_in(&mut self, tx: Transaction) -> Result<TxHash, Refusal> {
        if tx.is_eip4844() {
            return Err(Refusal::Unsupported);
        }
        if tx.chain_id().is_some_and(|id| id != self.config.chain_id) {
            return Err(Refusal::InvalidSender);
        }
        if tx.gas_limit() > self.config.gas_limit {
            return Err(Refusal::ExceedsBlockGasLimit);
        }
        let minimum = execute::minimum_gas(&tx);
        if tx.gas_limit() < minimum {
            return Err(Refusal::IntrinsicGasTooLow { gas: tx.gas_limit(), minimum });
        }
        if tx.max_priority_fee_per_gas().is_some_and(|tip| tip > tx.max_fee_per_gas()) {
            return Err(Refusal::TipAboveFeeCap);
        }
        let (hash, signer) = (*tx.tx_hash(), tx.signer());
        let (nonce, balance) = (self.head_state().nonce(signer), self.head_state().balance(signer));
        self.pool.add(Arc::new(tx), nonce, balance)?;
        Ok(hash)
    }

    /// The next nonce of an address, counting what waits without a gap.
    pub(crate) fn pending_nonce(&self, address: Address) -> u64 {
        self.pool.nonce_after(address, self.head_state().nonce(address))
    }

    /// Base fee of the block after the head.
    pub(crate) fn next_base_fee(&self) -> u64 {
        self.next_header(0).base_fee_per_gas.unwrap_or_default()
    }

    fn sign(&self, from: usize, draft: Draft) -> Result<SignedTransaction, ChainError> {
        let account = self.accounts.get(from).ok_or(ChainError::NoSuchAccount(from))?;
        let tip = draft.max_priority_fee_per_gas.unwrap_or(self.config.tip);
        let default_fee = u128::from(self.next_base_fee()).saturating_mul(2).saturating_add(tip);
        let gas_limit = match draft.gas_limit {
            Some(gas) => gas,
            None => self.gas_with_margin(account.address(), &draft)?,
        };
        Ok(account.sign(TxEip1559 {
            chain_id: self.config.chain_id,
            nonce: draft.nonce.unwrap_or_else(|| self.pending_nonce(account.address())),
            gas_limit,
            max_fee_per_gas: draft.max_fee_per_gas.unwrap_or(default_fee),
            max_priority_fee_per_gas: tip,
            to: draft.to.map_or(TxKind::Create, TxKind::Call),
            value: draft.value,
            access_list: Default::default(),
            input: draft.data,
        }))
    }

    fn gas_with_margin(&self, from: Address, draft: &Draft) -> Result<u64, ChainError> {
        let result = self
            .dry_run(execute::Call {
                from,
                to: draft.to,
                value: draft.value,
                data: draft.data.clone(),
                ..execute::Call::default()
            })
            .map_err(|error| ChainError::CallFailed(error.to_string()))?;
        let spent = result.gas().total_gas_spent();
        succeeded(result)?;
        // Half more: a call keeps a 64th back for its caller (EIP-150), and refunds come at the end.
        Ok(spent.saturating_add(spent / 2).max(PLAIN_TRANSFER_GAS))
    }

    fn call(&self, from: Address, to: Address, data: Bytes) -> Result<Bytes, ChainError> {
        let result = self
            .dry_run(execute::Call { from, to: Some(to), data, ..execute::Call::default() })
            .map_err(|error| ChainError::CallFailed(error.to_string()))?;
        succeeded(result)
    }

    fn dry_run(&self, call: execute::Call) -> Result<ExecutionResult<HaltReason>, Invalid> {
        execute::call(
            self.head_state().clone(),
            self.config.chain_id,
            self.head().header(),
            &|number| self.hash_at(number),
            call,
        )
    }
}

fn succeeded(result: ExecutionResult<HaltReason>) -> Result<Bytes, ChainError> {
    match result {
        ExecutionResult::Success { output, .. } => Ok(output.into_data()),
        ExecutionResult::Revert { output, .. } => Err(ChainError::CallFailed(
            revert_reason(&output).unwrap_or_else(|| format!("reverted: {output}")),
        )),
        ExecutionResult::Halt { reason, .. } => Err(ChainError::CallFailed(reason.to_string())),
    }
}

/// The text of a Solidity `Error(string)`.
pub(crate) fn revert_reason(output: &[u8]) -> Option<String> {
    const ERROR_STRING: [u8; 4] = [0x08, 0xc3, 0x79, 0xa0];
    let body = output.strip_prefix(&ERROR_STRING)?;
    let length = usize::try_from(U256::from_be_slice(body.get(32..64)?)).ok()?;
    let text = body.get(64..)?.get(..length)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn receipt_of(
    tx: &Transaction,
    result: ExecutionResult<HaltReason>,
    gas_before: u64,
    header: &Header,
) -> Receipt {
    let gas_used = result.tx_gas_used();
    let succeeded = result.is_success();
    let contract_address = (tx.is_create()).then(|| tx.signer().create(tx.nonce()));
    // What a failed transaction logged never happened.
    let logs = if succeeded { result.into_logs() } else { Vec::new() };
    Receipt {
        envelope: block::receipt(tx.tx_type(), succeeded, logs, gas_before, gas_used),
        gas_used,
        effective_gas_price: tx.effective_gas_price(header.base_fee_per_gas),
        contract_address,
    }
}

fn head_of(block: &Block) -> Head {
    Head { number: block.number(), hash: block.hash(), timestamp: block.timestamp() }
}

/// Funds the accounts and deploys the contracts, outside any block.
fn genesis_state(config: &Config, accounts: &[DevAccount]) -> State {
    let mut state = State::default();
    let addresses: Vec<Address> = accounts.iter().map(DevAccount::address).collect();
    for address in &addresses {
        state.credit(*address, config.native_balance);
    }
    let environment = Header {
        timestamp: config.genesis_time,
        // Room for any number of accounts.
        gas_limit: u64::MAX / 2,
        ..Header::default()
    };
    let mut executor = Executor::new(state, config.chain_id, &environment, &|_| B256::ZERO);
    let mut force = |from, kind, data| {
        let result = executor.force(from, kind, data);
        assert!(
            result.as_ref().is_ok_and(ExecutionResult::is_success),
            "genesis cannot be built: {result:?}"
        );
        result.ok().and_then(|result| result.created_address())
    };
    for (address, code) in token::deployments(addresses[0]) {
        let created = force(token::DEPLOYER, TxKind::Create, code);
        assert_eq!(created, Some(address), "a contract is not where it is expected");
    }
    let mut holders = addresses.clone();
    holders.push(CONTRACTS.wallet);
    for token in [CONTRACTS.plain, CONTRACTS.dollar] {
        for some in holders.chunks(500) {
            force(token::DEPLOYER, TxKind::Call(token), token::mint(some, config.token_balance));
        }
        for owner in &addresses {
            force(*owner, TxKind::Call(token), token::approve(CONTRACTS.payouts, U256::MAX));
        }
    }
    let mut state = executor.into_state();
    for owner in addresses {
        state.reset_nonce(owner);
    }
    state
}

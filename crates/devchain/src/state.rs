//! The state of the chain after a block: accounts, code and storage, in Merkle tries.
//!
//! A [`State`] is a snapshot: cloning it costs two references, and clones never see each other's
//! writes. [`Database`] lends one to the EVM and takes the EVM's changes back, following EIP-161 (a
//! touched empty account is deleted) and EIP-6780 (an account destroyed where it was created is gone).

use std::convert::Infallible;

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use alloy_trie::TrieAccount;
use revm::DatabaseCommit;
use revm::bytecode::Bytecode;
use revm::primitives::AddressMap;
use revm::state::AccountInfo;

use crate::trie::{Leaf, Trie};

impl Leaf for U256 {
    fn rlp(&self) -> Vec<u8> {
        alloy_rlp::encode(self)
    }
}

/// An account as the state trie holds it, with its code and storage at hand.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) nonce: u64,
    pub(crate) balance: U256,
    pub(crate) code: Bytecode,
    pub(crate) code_hash: B256,
    storage: Trie<U256>,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            nonce: 0,
            balance: U256::ZERO,
            code: Bytecode::default(),
            code_hash: KECCAK256_EMPTY,
            storage: Trie::default(),
        }
    }
}

impl Account {
    pub(crate) fn storage_root(&self) -> B256 {
        self.storage.root()
    }
}

impl Leaf for Account {
    fn rlp(&self) -> Vec<u8> {
        alloy_rlp::encode(TrieAccount::new(self.nonce, self.balance, self.storage.root(), self.code_hash))
    }
}

/// A snapshot of all accounts.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    accounts: Trie<Account>,
}

impl State {
    pub(crate) fn root(&self) -> B256 {
        self.accounts.root()
    }

    pub(crate) fn account(&self, address: Address) -> Option<&Account> {
        self.accounts.get(&keccak256(address))
    }

    pub(crate) fn nonce(&self, address: Address) -> u64 {
        self.account(address).map_or(0, |account| account.nonce)
    }

    pub(crate) fn balance(&self, address: Address) -> U256 {
        self.account(address).map_or(U256::ZERO, |account| account.balance)
    }

    pub(crate) fn code(&self, address: Address) -> Bytes {
        self.account(address).map_or_else(Bytes::new, |account| account.code.original_bytes())
    }

    pub(crate) fn storage(&self, address: Address, slot: U256) -> U256 {
        self.account(address)
            .and_then(|account| account.storage.get(&keccak256(B256::from(slot))))
            .copied()
            .unwrap_or_default()
    }

    /// Adds native coin out of nothing.
    pub(crate) fn credit(&mut self, address: Address, value: U256) {
        let mut account = self.account(address).cloned().unwrap_or_default();
        account.balance = account.balance.saturating_add(value);
        self.accounts.insert(&keccak256(address), account);
    }

    /// Makes an account look as if it had never sent anything.
    pub(crate) fn reset_nonce(&mut self, address: Address) {
        if let Some(mut account) = self.account(address).cloned() {
            account.nonce = 0;
            self.accounts.insert(&keccak256(address), account);
        }
    }

    /// Proof nodes of an account (EIP-1186).
    pub(crate) fn account_proof(&self, address: Address) -> Vec<Bytes> {
        self.accounts.proof(&keccak256(address))
    }

    /// Proof nodes of one storage slot (EIP-1186).
    pub(crate) fn storage_proof(&self, address: Address, slot: U256) -> Vec<Bytes> {
        self.account(address)
            .map_or_else(Vec::new, |account| account.storage.proof(&keccak256(B256::from(slot))))
    }

    fn apply(&mut self, address: Address, change: revm::state::Account) {
        let key = keccak256(address);
        if change.is_selfdestructed() || change.is_empty() {
            self.accounts.remove(&key);
            return;
        }
        let mut account = if change.is_created() {
            Account::default()
        } else {
            self.accounts.get(&key).cloned().unwrap_or_default()
        };
        account.nonce = change.info.nonce;
        account.balance = change.info.balance;
        if account.code_hash != change.info.code_hash {
            account.code_hash = change.info.code_hash;
            account.code = change.info.code.unwrap_or_default();
        }
        for (slot, value) in change.storage {
            if !value.is_changed() {
                continue;
            }
            let slot = keccak256(B256::from(slot));
            if value.present_value.is_zero() {
                account.storage.remove(&slot);
            } else {
                account.storage.insert(&slot, value.present_value);
            }
        }
        self.accounts.insert(&key, account);
    }
}

/// A [`State`] lent to the EVM.
pub(crate) struct Database<'a> {
    pub(crate) state: State,
    /// Hashes of earlier blocks, for the `BLOCKHASH` instruction.
    pub(crate) block_hash: &'a dyn Fn(u64) -> B256,
}

impl std::fmt::Debug for Database<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").finish_non_exhaustive()
    }
}

impl revm::Database for Database<'_> {
    type Error = Infallible;

    fn basic(&mut self, address: Address) -> Result<Option<AccountInfo>, Infallible> {
        Ok(self.state.account(address).map(|account| AccountInfo {
            balance: account.balance,
            nonce: account.nonce,
            code_hash: account.code_hash,
            code: Some(account.code.clone()),
            ..AccountInfo::default()
        }))
    }

    fn code_by_hash(&mut self, _: B256) -> Result<Bytecode, Infallible> {
        // Unreached: `basic` always hands out the code with the account.
        Ok(Bytecode::default())
    }

    fn storage(&mut self, address: Address, slot: U256) -> Result<U256, Infallible> {
        Ok(self.state.storage(address, slot))
    }

    fn block_hash(&mut self, number: u64) -> Result<B256, Infallible> {
        Ok((self.block_hash)(number))
    }
}

impl DatabaseCommit for Database<'_> {
    fn commit(&mut self, changes: AddressMap<revm::state::Account>) {
        for (address, change) in changes {
            if change.is_touched() {
                self.state.apply(address, change);
            }
        }
    }
}

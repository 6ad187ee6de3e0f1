//! An EVM chain in memory, shown through several faces, each of which can be made to fail or to lie.
//!
//! - [`Devchain`] is the chain: real execution on `revm`, complete headers, reorganisations; all of it
//!   deterministic from a seed. Read through it for the truth.
//! - [`serve_face`] shows it as an RPC provider on a loopback port, [`Provider`] in memory alone; what is
//!   wrong with a provider is a [`Faults`] value, settable at any time.
//! - [`token`] has the contracts that every chain starts with: two tokens, payouts, a contract wallet, and
//!   an impostor.
//!
//! It is a tool for tests, simulation and demonstration, and knows nothing of the product it serves. It is
//! no node: no peers, no consensus, no disk.
//!
//! ```
//! use devchain::{Config, Devchain, token::CONTRACTS};
//! # use alloy_primitives::U256;
//! let chain = Devchain::new(Config::default());
//! let payee = chain.account(1).address();
//! let before = chain.token_balance(CONTRACTS.dollar, payee);
//! let hash = chain.send_token(CONTRACTS.dollar, 0, payee, U256::from(5_000_000)).unwrap();
//! chain.mine();
//! assert!(chain.receipt(hash).unwrap().status());
//! assert_eq!(chain.token_balance(CONTRACTS.dollar, payee) - before, U256::from(5_000_000));
//! ```

mod account;
mod block;
mod chain;
mod execute;
mod face;
mod fault;
mod pool;
mod rpc;
mod state;
pub mod token;
mod trie;

pub use account::{DevAccount, SignedTransaction};
pub use block::{Block, Receipt, Transaction};
pub use chain::{ChainError, Config, Devchain, Draft, Head, Include, Reorg, Reorged, Replay};
pub use face::{Delivery, Face, Outcome, Provider, RecordedCall, Reply, serve_face, serve_face_on};
pub use fault::{
    AlteredAmount, Drip, Faults, ForgedBlock, ForgedLog, ForgedTransfer, HeaderField, HeaderLie, HttpStatus,
    IdFault, LogPick, Reach, ReceiptsLie, RpcFault, Truncate,
};
pub use pool::Refusal;

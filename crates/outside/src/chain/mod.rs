//! Reading chains through providers that may be down, late, wrong or lying.
//!
//! [`ChainReader`] is what a feature asks: the next blocks in order, each proven, or the fork to go back
//! to, or why there is neither. Guarantees: a header is believed when `k` independent groups give it; what
//! is in the block is believed when it has the header's roots (or, where no root can be checked, when
//! `k` groups show it); fewer than `k` live groups is a [`Stall`], never a smaller quorum; an error is
//! never an empty answer.
//!
//! Deliberately absent: a cursor, invoices, and any storage. The feature keeps the block ring and hands it in.

// The decisions, without I/O.
pub mod profile;
pub mod proof;
pub mod quorum;
pub mod votes;

// What is read, and what is made of it.
pub mod block;
pub mod error;
pub mod evidence;
pub mod kept;
pub mod wire;

// The network.
pub mod provider;
pub mod rpc;

mod claims;
mod reader;

pub use block::{Claims, ProvenBlock, Recipients, Watch};
pub use claims::ClaimOutcome;
pub use error::RpcError;
pub use evidence::{Evidence, EvidenceError, VerifiedTransfer, Voter, verify};
pub use kept::{DamagedEvidence, KeptEvidence, restore};
pub use profile::{ChainProfile, RootMode};
pub use provider::{Disagreement, FaultKind, ProviderSetup, ProviderState, ProviderStatus};
pub use quorum::InvalidQuorum;
pub use reader::{
    ChainReader, Progress, ReaderSetup, RoundCounts, Stall, StallKind, StallReason, WrongChains,
};
pub use rpc::{Call, HttpRpc, Rpc};
pub use votes::DisputedClaim;

//! What is known of a chain before it is read: which of its roots we can recompute.
//!
//! Guarantees: a chain that is not in the table is treated as one whose roots prove nothing, so that
//! its events are voted on instead of being half verified. A deployment may name a stronger mode for
//! a chain it knows.
//!
//! Deliberately absent: anything learned at run time. That belongs to the provider that taught it.

use std::fmt;
use std::str::FromStr;

use domain::chain::{ChainId, InvalidWord};

/// How the receipts and transactions of a block are encoded under the header's roots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RootMode {
    /// As Ethereum does: EIP-2718 receipts and transactions in tries keyed by `rlp(index)`.
    Eth,
    /// As the OP stack does: the same, and deposit transactions (type `0x7e`) whose receipts carry a
    /// nonce and a version since the Canyon fork.
    Op,
    /// Not recomputable, or not known: logs are believed by vote.
    None,
}

impl RootMode {
    /// The spelling used in configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eth => "eth",
            Self::Op => "op",
            Self::None => "none",
        }
    }
}

impl fmt::Display for RootMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for RootMode {
    type Err = InvalidWord;
    fn from_str(text: &str) -> Result<Self, InvalidWord> {
        [Self::Eth, Self::Op, Self::None].into_iter().find(|mode| mode.as_str() == text).ok_or(InvalidWord)
    }
}

/// What may be concluded from the data of one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainProfile {
    /// Which roots can be recomputed.
    pub root_mode: RootMode,
    /// Whether the header's bloom filter covers every log. Some chains publish headers before the
    /// bloom is known, or fill it with ones or zeros; there it proves nothing.
    pub bloom_trusted: bool,
    /// Whether the header's hash is the Keccak-256 of its Ethereum RLP. Where it is not, the claimed
    /// hash is voted on together with the fields we use.
    pub header_hash_recomputed: bool,
}

impl ChainProfile {
    /// A profile for `mode`. Chains with checkable roots have checkable header hashes and blooms.
    #[must_use]
    pub const fn of(mode: RootMode) -> Self {
        let checkable = !matches!(mode, RootMode::None);
        Self { root_mode: mode, bloom_trusted: checkable, header_hash_recomputed: checkable }
    }

    /// The built-in profile of `chain`; [`RootMode::None`] when it is not known.
    ///
    /// Arbitrum, Polygon and zk chains are left out on purpose: their receipts tries hold what
    /// `eth_getBlockReceipts` does not show, or the reverse.
    #[must_use]
    pub const fn of_chain(chain: ChainId) -> Self {
        Self::of(match chain.number() {
            // Ethereum; Sepolia, Holesky, Hoodi; the development chains of geth and of anvil.
            1 | 11_155_111 | 17_000 | 560_048 | 1_337 | 31_337 => RootMode::Eth,
            // OP Mainnet, Base; their Sepolia chains.
            10 | 8_453 | 11_155_420 | 84_532 => RootMode::Op,
            _ => RootMode::None,
        })
    }
}

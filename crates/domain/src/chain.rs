//! What a chain is to us: names of chains and assets, blocks, and transfers with the way each was
//! proven.
//!
//! Chains are spelt as CAIP-2, recipients as EIP-55 addresses. Only EVM chains (`eip155`) parse
//! today; other namespaces are refused by name rather than half understood.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

pub use alloy_primitives::{Address, B256};

use crate::money::Amount;
use crate::time::Timestamp;
use crate::wire::serde_as_text;

/// An EVM chain by its EIP-155 number; spelt as CAIP-2, `eip155:8453`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId(u64);

/// A text that names no chain we can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a CAIP-2 chain of the form eip155:8453")]
pub struct InvalidChainId;

impl ChainId {
    /// From the EIP-155 number.
    #[must_use]
    pub const fn eip155(number: u64) -> Self {
        Self(number)
    }

    /// The EIP-155 number, as `eth_chainId` answers it.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "eip155:{}", self.0)
    }
}

impl FromStr for ChainId {
    type Err = InvalidChainId;
    fn from_str(text: &str) -> Result<Self, InvalidChainId> {
        let digits = text.strip_prefix("eip155:").ok_or(InvalidChainId)?;
        let plain = !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && (digits == "0" || !digits.starts_with('0'));
        // EIP-2294 bounds the number so that it survives signed arithmetic everywhere.
        let number: u64 = digits.parse().map_err(|_| InvalidChainId)?;
        if plain && number > 0 && i64::try_from(number).is_ok() {
            Ok(Self(number))
        } else {
            Err(InvalidChainId)
        }
    }
}

/// What is paid: the chain's own coin, or an ERC-20 token by its contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Asset {
    /// The chain's own coin, paid by a transaction's value.
    Native,
    /// An ERC-20 token.
    Token(Address),
}

/// A text that is neither `native` nor an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be `native`, a token address, or a CAIP-19 asset of this chain")]
pub struct InvalidAsset;

impl Asset {
    /// Parses `native`, an address, or CAIP-19 (`eip155:1/erc20:0x…`, `eip155:1/slip44:60`) on `chain`.
    ///
    /// # Errors
    /// Anything else, also a CAIP-19 name of another chain and an address that fails its checksum.
    pub fn parse_on(chain: ChainId, text: &str) -> Result<Self, InvalidAsset> {
        let Some((named_chain, asset)) = text.split_once('/') else {
            return text.parse();
        };
        if named_chain.parse() != Ok(chain) {
            return Err(InvalidAsset);
        }
        match asset.split_once(':') {
            Some(("erc20", address)) => parse_address(address).map(Self::Token).map_err(|_| InvalidAsset),
            Some(("slip44", number)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => {
                Ok(Self::Native)
            }
            _ => Err(InvalidAsset),
        }
    }
}

impl fmt::Display for Asset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => f.write_str("native"),
            Self::Token(address) => LAST_SPELT.with_borrow_mut(|last| {
                if last.0 != *address {
                    *last = (*address, address.to_checksum(None));
                }
                f.write_str(&last.1)
            }),
        }
    }
}

thread_local! {
    /// The token that was spelt last, since mostly the same one is spelt again: its checksum costs a hash.
    static LAST_SPELT: RefCell<(Address, String)> =
        RefCell::new((Address::ZERO, Address::ZERO.to_checksum(None)));
}

impl FromStr for Asset {
    type Err = InvalidAsset;
    fn from_str(text: &str) -> Result<Self, InvalidAsset> {
        if text == "native" {
            return Ok(Self::Native);
        }
        parse_address(text).map(Self::Token).map_err(|_| InvalidAsset)
    }
}

serde_as_text!(ChainId, Asset);

/// Why a text is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// Not `0x` and 40 hex digits.
    #[error("must be 0x and 40 hex digits")]
    Shape,
    /// Mixed case that is not the EIP-55 checksum: most likely a typing error.
    #[error("fails its EIP-55 checksum: check the address, or write it all in lower case")]
    Checksum,
    /// The zero address, to which nothing can sensibly be paid.
    #[error("is the zero address")]
    Zero,
}

/// Parses an address. Mixed case has to be the EIP-55 checksum; one case throughout has none to check.
///
/// # Errors
/// See [`InvalidAddress`].
pub fn parse_address(text: &str) -> Result<Address, InvalidAddress> {
    let digits = text.strip_prefix("0x").ok_or(InvalidAddress::Shape)?;
    if digits.len() != 40 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(InvalidAddress::Shape);
    }
    let address: Address = text.parse().map_err(|_| InvalidAddress::Shape)?;
    let one_case =
        !digits.bytes().any(|b| b.is_ascii_uppercase()) || !digits.bytes().any(|b| b.is_ascii_lowercase());
    if !one_case && address.to_checksum(None) != text {
        return Err(InvalidAddress::Checksum);
    }
    if address.is_zero() { Err(InvalidAddress::Zero) } else { Ok(address) }
}

/// A block by number and hash: two forks have the same number, never the same hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockRef {
    /// Height.
    pub number: u64,
    /// Keccak-256 of the header.
    pub hash: B256,
}

/// What a chain of blocks needs to know of each link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockLink {
    /// This block.
    pub block: BlockRef,
    /// The hash of the block before it.
    pub parent: B256,
    /// The header's time; seconds in the header, milliseconds here.
    pub time: Timestamp,
}

/// How an event on chain came to be believed. Ordered: later is stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EvidenceLevel {
    /// Seen by too few groups to act on: nothing settles.
    Degraded,
    /// `k` independent groups gave the same log in the same block; there was no checkable root.
    Quorum,
    /// `k` groups agreed on the header; receipt and transaction are proven against its roots.
    Verified,
}

impl EvidenceLevel {
    /// The spelling used in the API, in evidence and in rows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Degraded => "DEGRADED",
            Self::Quorum => "QUORUM",
            Self::Verified => "VERIFIED",
        }
    }
}

impl fmt::Display for EvidenceLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EvidenceLevel {
    type Err = InvalidWord;
    fn from_str(text: &str) -> Result<Self, InvalidWord> {
        [Self::Degraded, Self::Quorum, Self::Verified]
            .into_iter()
            .find(|level| level.as_str() == text)
            .ok_or(InvalidWord)
    }
}

/// A word that is not one of the closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not one of the known words")]
pub struct InvalidWord;

/// The identity of a transfer across re-inclusion: a transaction keeps its hash and the order of its
/// own logs in whatever block it lands; a log's index in the block may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferKey {
    /// The chain.
    pub chain: ChainId,
    /// The transaction.
    pub tx: B256,
    /// Position of the log among the transaction's own logs; [`TransferKey::NATIVE`] for its value.
    pub ordinal: i64,
}

impl TransferKey {
    /// The ordinal of a transaction's top-level value.
    pub const NATIVE: i64 = -1;
}

/// Money that moved, as one block tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Its identity.
    pub key: TransferKey,
    /// The block that holds it.
    pub block: BlockRef,
    /// When the block says it was made.
    pub time: Timestamp,
    /// Index of the transaction in the block.
    pub tx_index: u64,
    /// Index of the log in the block; none for the chain's own coin.
    pub log_index: Option<u64>,
    /// What moved.
    pub asset: Asset,
    /// From whom: the log's `from`, or the transaction's sender.
    pub payer: Address,
    /// To whom.
    pub recipient: Address,
    /// How much.
    pub amount: Amount,
}

/// When a payment counts as confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Confirmations {
    /// This many blocks, its own included: 1 is "in a proven block".
    Depth(u32),
    /// Its block is at or below the block that `k` groups call `safe`.
    Safe,
    /// Its block is at or below the block that `k` groups call `finalized`.
    Finalized,
}

/// The agreed heights of a chain at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heights {
    /// The last block that was proven and applied.
    pub head: u64,
    /// The highest block that `k` groups call safe; 0 when the chain has no such tag.
    pub safe: u64,
    /// The highest block that `k` groups call finalized; 0 when the chain has no such tag.
    pub finalized: u64,
}

impl Confirmations {
    /// Whether a payment in block `number` is confirmed at `heights`.
    #[must_use]
    pub fn reached(self, number: u64, heights: Heights) -> bool {
        match self {
            Self::Depth(depth) => {
                heights.head.saturating_sub(number).saturating_add(1) >= u64::from(depth)
                    && heights.head >= number
            }
            Self::Safe => number <= heights.safe,
            Self::Finalized => number <= heights.finalized,
        }
    }
}

impl fmt::Display for Confirmations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Depth(depth) => fmt::Display::fmt(depth, f),
            Self::Safe => f.write_str("safe"),
            Self::Finalized => f.write_str("finalized"),
        }
    }
}

impl FromStr for Confirmations {
    type Err = InvalidWord;
    fn from_str(text: &str) -> Result<Self, InvalidWord> {
        match text {
            "safe" => Ok(Self::Safe),
            "finalized" => Ok(Self::Finalized),
            depth => match depth.parse() {
                Ok(depth) if depth > 0 && depth <= 10_000 => Ok(Self::Depth(depth)),
                _ => Err(InvalidWord),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_parse_strictly() {
        assert_eq!("eip155:8453".parse(), Ok(ChainId::eip155(8453)));
        for bad in [
            "8453",
            "eip155:",
            "eip155:0",
            "eip155:01",
            "eip155:-1",
            "solana:5eykt4",
            "eip155:99999999999999999999",
        ] {
            assert_eq!(bad.parse::<ChainId>(), Err(InvalidChainId), "{bad}");
        }
    }

    #[test]
    fn addresses_need_their_checksum_when_they_have_one() {
        let good = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913";
        assert_eq!(parse_address(good).map(|a| a.to_string()), Ok(good.into()));
        assert!(parse_address(&good.to_lowercase()).is_ok());
        assert_eq!(
            parse_address("0x833589FCD6eDb6E08f4c7C32D4f71b54bdA02913"),
            Err(InvalidAddress::Checksum)
        );
        assert_eq!(parse_address("0x833589"), Err(InvalidAddress::Shape));
        assert_eq!(parse_address(&good[2..]), Err(InvalidAddress::Shape));
        assert_eq!(parse_address("0x0000000000000000000000000000000000000000"), Err(InvalidAddress::Zero));
    }

    #[test]
    fn assets_belong_to_their_chain() {
        let base = ChainId::eip155(8453);
        let usdc = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913";
        assert_eq!(Asset::parse_on(base, &format!("eip155:8453/erc20:{usdc}")), Asset::parse_on(base, usdc));
        assert!(Asset::parse_on(base, &format!("eip155:1/erc20:{usdc}")).is_err());
        assert_eq!(Asset::parse_on(base, "eip155:8453/slip44:60"), Ok(Asset::Native));
        assert_eq!(Asset::parse_on(base, "native"), Ok(Asset::Native));
        assert!(Asset::parse_on(base, "usdc").is_err());
    }

    #[test]
    fn confirmation_counts_the_block_itself() {
        let heights = Heights { head: 10, safe: 8, finalized: 5 };
        assert!(Confirmations::Depth(1).reached(10, heights));
        assert!(!Confirmations::Depth(2).reached(10, heights));
        assert!(Confirmations::Depth(2).reached(9, heights));
        assert!(!Confirmations::Depth(1).reached(11, heights));
        assert!(Confirmations::Safe.reached(8, heights) && !Confirmations::Safe.reached(9, heights));
        assert!(
            Confirmations::Finalized.reached(5, heights) && !Confirmations::Finalized.reached(6, heights)
        );
    }
}

//! The arithmetic of proof: header hashes, ordered tries, inclusion paths, receipt encodings.
//!
//! Guarantees: everything here is a pure function of bytes. A root is recomputed from the complete
//! list, so it proves presence and absence; a path proves one item against a root. Nothing an
//! endpoint *says* about a receipt (its index, its hash, its block) enters an encoding.
//!
//! Deliberately absent: which header is the chain's. A proof holds against a header; that the header
//! is canonical is the quorum's business, or that of whoever supplies an anchor.

use std::collections::{BTreeMap, BTreeSet};

use alloy_consensus::{
    Eip658Value, Header, Receipt, ReceiptWithBloom, RlpDecodableReceipt, RlpEncodableReceipt,
};
use alloy_primitives::{Address, B256, Bloom, BloomInput, Bytes, Log, b256, keccak256};
use alloy_rlp::Decodable;
use alloy_trie::proof::{ProofRetainer, verify_proof};
use alloy_trie::root::adjust_index_for_rlp;
use alloy_trie::{EMPTY_ROOT_HASH, HashBuilder, Nibbles};
use op_alloy_consensus::OpDepositReceipt;

/// `keccak256("Transfer(address,address,uint256)")`, the first topic of an ERC-20 transfer.
pub const TRANSFER_TOPIC: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");

/// EIP-2718 type of an OP-stack deposit transaction.
pub const DEPOSIT_TYPE: u8 = 0x7e;

/// An item is not under the root it was claimed under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the inclusion path does not lead from the root to the item")]
pub struct NotIncluded;

/// Bytes that do not decode to what they are claimed to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the encoding of a {0}")]
pub struct Undecodable(pub &'static str);

/// The trie key of the `index`-th item: its RLP.
fn key_of(index: usize) -> Nibbles {
    Nibbles::unpack(alloy_rlp::encode_fixed_size(&index))
}

/// The root of the trie that holds `items` under `rlp(index)`, as Ethereum forms it for the
/// transactions and receipts of a block.
#[must_use]
pub fn ordered_root<T: AsRef<[u8]>>(items: &[T]) -> B256 {
    alloy_trie::root::ordered_trie_root_encoded(items)
}

/// The inclusion paths of some of `items`, from the root to the item, and the root.
#[must_use]
pub fn ordered_paths<T: AsRef<[u8]>>(items: &[T], wanted: &[usize]) -> (B256, BTreeMap<usize, Vec<Bytes>>) {
    if items.is_empty() {
        return (EMPTY_ROOT_HASH, BTreeMap::new());
    }
    let retainer = ProofRetainer::new(wanted.iter().map(|index| key_of(*index)).collect());
    let mut builder = HashBuilder::default().with_proof_retainer(retainer);
    for position in 0..items.len() {
        // The order in which the keys sort: RLP puts 0x80 for zero after the one-byte numbers.
        let index = adjust_index_for_rlp(position, items.len());
        builder.add_leaf(key_of(index), items[index].as_ref());
    }
    let root = builder.root();
    let nodes = builder.take_proof_nodes();
    let path_to = |index: usize| {
        nodes.matching_nodes_sorted(&key_of(index)).into_iter().map(|(_, node)| node).collect()
    };
    let paths =
        wanted.iter().filter(|index| **index < items.len()).map(|index| (*index, path_to(*index))).collect();
    (root, paths)
}

/// Inclusion paths that share their branches.
#[derive(Debug, Clone, Default)]
pub(super) struct OrderedPaths {
    /// The nodes above the leaves, each once.
    pub(super) branches: Vec<Bytes>,
    /// Of each wanted item: the places of its branches, from the root down, and its leaf.
    pub(super) leaves: BTreeMap<usize, (Vec<u64>, Bytes)>,
}

/// As [`ordered_paths`], with every node once. Items without a leaf of their own hash have no path.
pub(super) fn ordered_path_nodes<T: AsRef<[u8]>>(items: &[T], wanted: &BTreeSet<usize>) -> OrderedPaths {
    let mut paths = OrderedPaths::default();
    if items.is_empty() || wanted.is_empty() {
        return paths;
    }
    let retainer = ProofRetainer::new(wanted.iter().map(|index| key_of(*index)).collect());
    let mut builder = HashBuilder::default().with_proof_retainer(retainer);
    for position in 0..items.len() {
        let index = adjust_index_for_rlp(position, items.len());
        builder.add_leaf(key_of(index), items[index].as_ref());
    }
    builder.root();
    let nodes = builder.take_proof_nodes();
    let mut places = BTreeMap::new();
    for index in wanted.iter().copied().filter(|index| *index < items.len()) {
        let key = key_of(index);
        let mut on_the_way: Vec<(Nibbles, &Bytes)> = (0..=key.len())
            .filter_map(|length| {
                let prefix = key.slice(..length);
                nodes.get(&prefix).map(|node| (prefix, node))
            })
            .collect();
        let Some((_, leaf)) = on_the_way.pop() else { continue };
        let branches = on_the_way
            .into_iter()
            .map(|(prefix, node)| {
                *places.entry(prefix).or_insert_with(|| {
                    paths.branches.push(node.clone());
                    u64::try_from(paths.branches.len() - 1).unwrap_or(u64::MAX)
                })
            })
            .collect();
        paths.leaves.insert(index, (branches, leaf.clone()));
    }
    paths
}

/// Checks that `item` is the `index`-th under `root`.
///
/// # Errors
/// When `path` does not lead from the root to exactly these bytes.
pub fn verify_inclusion(root: B256, index: u64, item: &[u8], path: &[Bytes]) -> Result<(), NotIncluded> {
    let index = usize::try_from(index).map_err(|_| NotIncluded)?;
    // A leaf shorter than a hash is stored inside its parent and has no hash of its own to prove it by. No
    // receipt and no transaction is that short.
    if item.len() < 32 {
        return Err(NotIncluded);
    }
    verify_proof(root, key_of(index), Some(item.to_vec()), path).map_err(|_| NotIncluded)
}

/// The header's Ethereum RLP; its Keccak-256 is the block hash.
#[must_use]
pub fn header_rlp(header: &Header) -> Bytes {
    alloy_rlp::encode(header).into()
}

/// Decodes a header from exactly its RLP.
///
/// # Errors
/// Also when bytes are left over, or when encoding the header again gives other bytes.
pub fn decode_header(rlp: &[u8]) -> Result<Header, Undecodable> {
    let mut rest = rlp;
    let header = Header::decode(&mut rest).map_err(|_| Undecodable("header"))?;
    if rest.is_empty() && *header_rlp(&header) == *rlp { Ok(header) } else { Err(Undecodable("header")) }
}

/// Whether the filter may hold a transfer of `token`. `false` is a proof of absence, if the filter is
/// the block's own.
#[must_use]
pub fn may_hold_transfer(bloom: &Bloom, token: Address) -> bool {
    bloom.contains_input(BloomInput::Raw(TRANSFER_TOPIC.as_slice()))
        && bloom.contains_input(BloomInput::Raw(token.as_slice()))
}

/// A receipt by the fields that consensus covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsensusReceipt {
    /// EIP-2718 type of the transaction.
    pub tx_type: u8,
    /// EIP-658 status, or the state root of receipts before Byzantium.
    pub status: Eip658Value,
    /// Gas used in the block up to and including this transaction.
    pub cumulative_gas_used: u64,
    /// The filter over this receipt's logs.
    pub bloom: Bloom,
    /// The logs, in order.
    pub logs: Vec<Log>,
    /// OP stack: the sender's nonce of a deposit.
    pub deposit_nonce: Option<u64>,
    /// OP stack: 1 since Canyon, absent before.
    pub deposit_receipt_version: Option<u64>,
}

impl ConsensusReceipt {
    /// The EIP-2718 bytes that the receipts trie holds.
    ///
    /// A deposit receipt (OP stack, `specs/protocol/deposits.md`) appends its nonce and version from
    /// Canyon on. Regolith stored the nonce but left it out of the trie; there the version is absent.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let receipt = Receipt {
            status: self.status,
            cumulative_gas_used: self.cumulative_gas_used,
            logs: self.logs.clone(),
        };
        let mut bytes = Vec::with_capacity(512);
        if self.tx_type != 0 {
            bytes.push(self.tx_type);
        }
        if self.tx_type == DEPOSIT_TYPE {
            let in_trie = self.deposit_receipt_version.is_some();
            OpDepositReceipt {
                inner: receipt,
                deposit_nonce: self.deposit_nonce.filter(|_| in_trie),
                deposit_receipt_version: self.deposit_receipt_version,
            }
            .rlp_encode_with_bloom(&self.bloom, &mut bytes);
        } else {
            receipt.rlp_encode_with_bloom(&self.bloom, &mut bytes);
        }
        bytes
    }

    /// Decodes the bytes that a receipts trie holds.
    ///
    /// # Errors
    /// Anything that is not exactly one receipt.
    pub fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        const WHAT: Undecodable = Undecodable("receipt");
        // EIP-2718: a first byte of 0xc0 or more opens the list of a legacy receipt.
        let (tx_type, mut payload) = match bytes.split_first() {
            Some((first, _)) if *first >= 0xc0 => (0, bytes),
            Some((first, rest)) if *first > 0 && *first < 0x80 => (*first, rest),
            _ => return Err(WHAT),
        };
        let (receipt, bloom, deposit_nonce, deposit_receipt_version) = if tx_type == DEPOSIT_TYPE {
            let ReceiptWithBloom { receipt, logs_bloom } =
                OpDepositReceipt::<Log>::rlp_decode_with_bloom(&mut payload).map_err(|_| WHAT)?;
            (receipt.inner, logs_bloom, receipt.deposit_nonce, receipt.deposit_receipt_version)
        } else {
            let ReceiptWithBloom { receipt, logs_bloom } =
                Receipt::<Log>::rlp_decode_with_bloom(&mut payload).map_err(|_| WHAT)?;
            (receipt, logs_bloom, None, None)
        };
        if !payload.is_empty() {
            return Err(WHAT);
        }
        let Receipt { status, cumulative_gas_used, logs } = receipt;
        Ok(Self { tx_type, status, cumulative_gas_used, bloom, logs, deposit_nonce, deposit_receipt_version })
    }

    /// Whether the transaction took effect. A receipt from before EIP-658 does not say, so: no.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        matches!(self.status, Eip658Value::Eip658(true))
    }
}

/// The hash of an EIP-2718 transaction: the Keccak-256 of its bytes, whatever its type.
#[must_use]
pub fn transaction_hash(bytes: &[u8]) -> B256 {
    keccak256(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::{LogData, U256};
    use proptest::prelude::*;

    fn receipt(tx_type: u8, logs: usize) -> ConsensusReceipt {
        let logs: Vec<Log> = (0..logs)
            .map(|n| Log {
                address: Address::repeat_byte(u8::try_from(n % 251).unwrap()),
                data: LogData::new_unchecked(
                    vec![TRANSFER_TOPIC, B256::repeat_byte(1), B256::repeat_byte(2)],
                    U256::from(n).to_be_bytes_vec().into(),
                ),
            })
            .collect();
        ConsensusReceipt {
            tx_type,
            status: Eip658Value::Eip658(true),
            cumulative_gas_used: 21_000,
            bloom: logs.iter().collect(),
            logs,
            deposit_nonce: (tx_type == DEPOSIT_TYPE).then_some(7),
            deposit_receipt_version: (tx_type == DEPOSIT_TYPE).then_some(1),
        }
    }

    #[test]
    fn receipts_survive_their_encoding() {
        for tx_type in [0, 1, 2, 3, 4, DEPOSIT_TYPE] {
            let receipt = receipt(tx_type, 3);
            assert_eq!(ConsensusReceipt::decode(&receipt.encode()), Ok(receipt.clone()), "type {tx_type}");
            let mut longer = receipt.encode();
            longer.push(0);
            assert!(ConsensusReceipt::decode(&longer).is_err());
        }
        assert!(ConsensusReceipt::decode(&[]).is_err());
    }

    #[test]
    fn a_regolith_deposit_leaves_its_nonce_out_of_the_trie() {
        let regolith = ConsensusReceipt { deposit_receipt_version: None, ..receipt(DEPOSIT_TYPE, 0) };
        let bare = ConsensusReceipt {
            deposit_nonce: None,
            deposit_receipt_version: None,
            ..receipt(DEPOSIT_TYPE, 0)
        };
        assert_eq!(regolith.encode(), bare.encode());
        assert_ne!(regolith.encode(), receipt(DEPOSIT_TYPE, 0).encode());
    }

    proptest! {
        #[test]
        fn every_item_has_a_path_and_no_other_item_fits_it(
            items in prop::collection::vec(prop::collection::vec(any::<u8>(), 32..120), 1..300),
            pick: prop::sample::Index,
            other: prop::sample::Index,
        ) {
            let index = pick.index(items.len());
            let (root, paths) = ordered_paths(&items, &[index]);
            prop_assert_eq!(root, ordered_root(&items));
            let path = &paths[&index];
            let position = u64::try_from(index).unwrap();
            prop_assert!(verify_inclusion(root, position, &items[index], path).is_ok());
            let wrong = other.index(items.len());
            if items[wrong] != items[index] {
                prop_assert!(verify_inclusion(root, position, &items[wrong], path).is_err());
            }
            // Equal items may share a path; that both are there is then true.
            if items[wrong] != items[index] {
                prop_assert!(verify_inclusion(root, u64::try_from(wrong).unwrap(), &items[index], path).is_err());
            }
            prop_assert!(verify_inclusion(B256::ZERO, position, &items[index], path).is_err());
        }

        #[test]
        fn a_flipped_bit_breaks_the_path(count in 1usize..150, pick: prop::sample::Index, at: prop::sample::Index, bit in 0u8..8) {
            let items: Vec<Vec<u8>> = (0..count).map(|n| receipt(2, n % 4).encode().into_iter().chain([u8::try_from(n % 256).unwrap()]).collect()).collect();
            let index = pick.index(count);
            let (root, paths) = ordered_paths(&items, &[index]);
            let mut path = paths[&index].clone();
            let node = at.index(path.len());
            let mut bytes = path[node].to_vec();
            let byte = at.index(bytes.len());
            bytes[byte] ^= 1 << bit;
            path[node] = bytes.into();
            prop_assert!(verify_inclusion(root, u64::try_from(index).unwrap(), &items[index], &path).is_err());
        }
    }
}

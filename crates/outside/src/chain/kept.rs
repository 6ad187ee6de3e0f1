//! Evidence as it is kept: what the payments of one block have in common is kept once.
//!
//! The evidence of a payment is mostly its block's: the header, who agreed on it, and the branches of two tries. So a block's
//! part holds those, each node once, and a payment's own part holds its two leaves and which branches lead to them, and who showed it where it was believed by vote. What the
//! payment's row says anyway is in neither. Both are bytes in RLP; the form that others see is [`Evidence`] alone.
//!
//! Guarantees: [`restore`] gives back exactly what [`ProvenBlock::evidence`] would have given, or says that the bytes are
//! damaged. Deliberately absent: any proof. Whoever doubts the bytes verifies the evidence made of them.

use std::collections::BTreeSet;

use alloy_primitives::{B256, Bytes};
use alloy_rlp::{Decodable, Encodable, Header};
use domain::chain::{BlockLink, EvidenceLevel, Transfer, TransferKey};
use domain::time::Timestamp;

use super::block::{Body, ProvenBlock};
use super::evidence::{Evidence, EvidenceBlock, EvidenceItem, Voter};
use super::proof::{OrderedPaths, ordered_path_nodes};

/// The only version there is, first in both parts.
const VERSION: u64 = 1;

/// The evidence of some transfers of one block, as kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeptEvidence {
    /// What all of them need.
    pub block: Vec<u8>,
    /// The transfers, in the order of the block, and what each needs beside it.
    pub own: Vec<(Transfer, Vec<u8>)>,
}

/// Kept evidence that is not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("kept evidence is damaged")]
pub struct DamagedEvidence;

impl From<alloy_rlp::Error> for DamagedEvidence {
    fn from(_: alloy_rlp::Error) -> Self {
        Self
    }
}

impl ProvenBlock {
    /// The evidence for those transfers of the block that are in `wanted`, to be kept.
    #[must_use]
    pub fn keep(&self, wanted: &BTreeSet<TransferKey>) -> KeptEvidence {
        let transfers: Vec<&Transfer> =
            self.transfers.iter().filter(|transfer| wanted.contains(&transfer.key)).collect();
        let indices: BTreeSet<usize> =
            transfers.iter().filter_map(|transfer| usize::try_from(transfer.tx_index).ok()).collect();
        let (transactions, receipts) = match self.body.as_deref() {
            Some(Body { receipts, transactions: Some(transactions) }) => {
                let bytes: Vec<&Bytes> = transactions.list.iter().map(|(_, bytes)| bytes).collect();
                (ordered_path_nodes(&bytes, &indices), ordered_path_nodes(&receipts.bytes, &indices))
            }
            _ => Default::default(),
        };
        let own = transfers
            .into_iter()
            .map(|transfer| {
                let mut bytes = Vec::with_capacity(1024);
                VERSION.encode(&mut bytes);
                encode_path(&transactions, transfer.tx_index, &mut bytes);
                encode_path(&receipts, transfer.tx_index, &mut bytes);
                let own_voters = self.supporters.get(&transfer.key);
                own_voters.is_some().encode(&mut bytes);
                encode_voters(own_voters.map_or(&[], Vec::as_slice), &mut bytes);
                (*transfer, bytes)
            })
            .collect();
        KeptEvidence { block: self.common_part(&transactions, &receipts), own }
    }

    fn common_part(&self, transactions: &OrderedPaths, receipts: &OrderedPaths) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4096);
        VERSION.encode(&mut bytes);
        self.link.parent.encode(&mut bytes);
        self.header_rlp.clone().unwrap_or_default().encode(&mut bytes);
        transactions.branches.encode(&mut bytes);
        receipts.branches.encode(&mut bytes);
        encode_voters(&self.voters, &mut bytes);
        bytes
    }
}

fn encode_voters(voters: &[Voter], out: &mut Vec<u8>) {
    for voter in voters {
        voter.group.encode(out);
        voter.provider.encode(out);
        u64::try_from(voter.at.as_millis()).unwrap_or(0).encode(out);
    }
}

fn decode_voters(mut bytes: &[u8]) -> Result<Vec<Voter>, DamagedEvidence> {
    let mut voters = Vec::new();
    while !bytes.is_empty() {
        let (group, provider) = (String::decode(&mut bytes)?, String::decode(&mut bytes)?);
        let at = i64::try_from(u64::decode(&mut bytes)?).map_err(|_| DamagedEvidence)?;
        voters.push(Voter { group, provider, at: Timestamp::from_millis(at) });
    }
    Ok(voters)
}

/// The places of the branches on the way to an item, and its leaf; both empty when there is none.
fn encode_path(paths: &OrderedPaths, index: u64, out: &mut Vec<u8>) {
    let found = usize::try_from(index).ok().and_then(|index| paths.leaves.get(&index));
    match found {
        Some((branches, leaf)) => {
            branches.encode(out);
            leaf.encode(out);
        }
        None => {
            Vec::<u64>::new().encode(out);
            Bytes::new().encode(out);
        }
    }
}

/// The part that the payments of one block share.
struct Common {
    parent: B256,
    header_rlp: Option<Bytes>,
    transaction_branches: Vec<Bytes>,
    receipt_branches: Vec<Bytes>,
    voters: Vec<Voter>,
}

impl Common {
    fn decode(mut bytes: &[u8]) -> Result<Self, DamagedEvidence> {
        check_version(&mut bytes)?;
        let parent = B256::decode(&mut bytes)?;
        let header = Bytes::decode(&mut bytes)?;
        let transaction_branches = Vec::decode(&mut bytes)?;
        let receipt_branches = Vec::decode(&mut bytes)?;
        let voters = decode_voters(bytes)?;
        let header_rlp = (!header.is_empty()).then_some(header);
        Ok(Self { parent, header_rlp, transaction_branches, receipt_branches, voters })
    }
}

fn check_version(bytes: &mut &[u8]) -> Result<(), DamagedEvidence> {
    if u64::decode(bytes)? == VERSION { Ok(()) } else { Err(DamagedEvidence) }
}

/// Makes evidence of what was kept. `transfer` and `level` are as they were when [`ProvenBlock::keep`] was asked.
///
/// # Errors
/// [`DamagedEvidence`]
pub fn restore(
    transfer: &Transfer,
    level: EvidenceLevel,
    block: &[u8],
    mut own: &[u8],
) -> Result<Evidence, DamagedEvidence> {
    let common = Common::decode(block)?;
    check_version(&mut own)?;
    let transaction = decode_path(&mut own, &common.transaction_branches)?;
    let receipt = decode_path(&mut own, &common.receipt_branches)?;
    let voters = match (bool::decode(&mut own)?, own.is_empty()) {
        (true, _) => decode_voters(own)?,
        (false, true) => common.voters,
        (false, false) => return Err(DamagedEvidence),
    };
    let link = BlockLink { block: transfer.block, parent: common.parent, time: transfer.time };
    let block = EvidenceBlock { link, header_rlp: common.header_rlp };
    Ok(Evidence::new(transfer, level, block, transaction, receipt, voters))
}

fn decode_path(own: &mut &[u8], branches: &[Bytes]) -> Result<Option<EvidenceItem>, DamagedEvidence> {
    let places: Vec<u64> = Vec::decode(own)?;
    let leaf = Bytes::decode(own)?;
    if leaf.is_empty() {
        return Ok(None);
    }
    let branch = |place: u64| usize::try_from(place).ok().and_then(|place| branches.get(place)).cloned();
    let mut path: Vec<Bytes> =
        places.into_iter().map(branch).collect::<Option<_>>().ok_or(DamagedEvidence)?;
    let bytes = item_of(&leaf)?;
    path.push(leaf);
    Ok(Some(EvidenceItem { bytes, path }))
}

/// The item in a leaf: the second of its two strings (Yellow Paper, appendix D).
fn item_of(leaf: &[u8]) -> Result<Bytes, DamagedEvidence> {
    let mut payload = Header::decode_bytes(&mut &*leaf, true)?;
    let _key = Header::decode_bytes(&mut payload, false)?;
    let item = Header::decode_bytes(&mut payload, false)?;
    if payload.is_empty() { Ok(Bytes::copy_from_slice(item)) } else { Err(DamagedEvidence) }
}

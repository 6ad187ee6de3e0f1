//! A persistent Merkle Patricia trie with fixed-length keys (the hashed keys of Ethereum's state).
//!
//! Every write returns a new trie that shares all untouched nodes with the old one, so a snapshot per
//! block costs one reference, and a root is recomputed only along the paths that changed. That is what
//! makes reorganisations and historical calls cheap.
//!
//! It holds values, not their encodings, and only 32-byte keys: branch nodes therefore never carry a
//! value. It does not persist anything and never loads nodes lazily.

use std::sync::{Arc, OnceLock};

use alloy_primitives::{B256, Bytes, keccak256};
use alloy_rlp::{EMPTY_STRING_CODE, Encodable, Header};
use alloy_trie::nodes::{ExtensionNodeRef, LeafNodeRef, RlpNode};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles};

/// What may be stored: it knows its RLP form.
pub(crate) trait Leaf: Clone {
    /// The RLP encoding that the trie hashes.
    fn rlp(&self) -> Vec<u8>;
}

/// A persistent map from 32-byte keys to values, with a Merkle root.
#[derive(Debug, Clone)]
pub(crate) struct Trie<V> {
    root: Option<Arc<Node<V>>>,
}

impl<V> Default for Trie<V> {
    fn default() -> Self {
        Self { root: None }
    }
}

#[derive(Debug)]
struct Node<V> {
    kind: Kind<V>,
    /// How a parent refers to this node: its hash, or its encoding if that is shorter than a hash.
    reference: OnceLock<RlpNode>,
}

type Children<V> = [Option<Arc<Node<V>>>; 16];

#[derive(Debug)]
enum Kind<V> {
    Leaf(Nibbles, V),
    Extension(Nibbles, Arc<Node<V>>),
    Branch(Children<V>),
}

impl<V: Leaf> Trie<V> {
    /// The value under `key`.
    pub(crate) fn get(&self, key: &B256) -> Option<&V> {
        let mut path = Nibbles::unpack(key);
        let mut node = self.root.as_deref()?;
        loop {
            match &node.kind {
                Kind::Leaf(rest, value) => return (*rest == path).then_some(value),
                Kind::Extension(shared, child) => {
                    if !path.starts_with(shared) {
                        return None;
                    }
                    path = path.slice(shared.len()..);
                    node = child;
                }
                Kind::Branch(children) => {
                    node = children[usize::from(path.first()?)].as_deref()?;
                    path = path.slice(1..);
                }
            }
        }
    }

    /// Sets the value under `key`.
    pub(crate) fn insert(&mut self, key: &B256, value: V) {
        self.root = Some(put(self.root.as_ref(), Nibbles::unpack(key), value));
    }

    /// Removes `key`; absent keys are fine.
    pub(crate) fn remove(&mut self, key: &B256) {
        if let Some(root) = &self.root {
            self.root = take(root, Nibbles::unpack(key));
        }
    }

    /// The Merkle root; [`EMPTY_ROOT_HASH`] when empty.
    pub(crate) fn root(&self) -> B256 {
        match &self.root {
            None => EMPTY_ROOT_HASH,
            // A root is always hashed, however short its encoding.
            Some(node) => node.reference().as_hash().unwrap_or_else(|| keccak256(node.encode())),
        }
    }

    /// The nodes from the root towards `key` (EIP-1186): they prove its value, or its absence.
    pub(crate) fn proof(&self, key: &B256) -> Vec<Bytes> {
        let mut proof = Vec::new();
        let mut path = Nibbles::unpack(key);
        let mut next = self.root.as_ref();
        while let Some(node) = next {
            // A node short enough to be embedded is already inside its parent.
            if proof.is_empty() || node.reference().is_hash() {
                proof.push(Bytes::from(node.encode()));
            }
            next = match &node.kind {
                Kind::Leaf(..) => None,
                Kind::Extension(shared, child) if path.starts_with(shared) => {
                    path = path.slice(shared.len()..);
                    Some(child)
                }
                Kind::Extension(..) => None,
                Kind::Branch(children) => {
                    let index = path.first().map(usize::from);
                    path = path.slice(1..);
                    index.and_then(|index| children[index].as_ref())
                }
            };
        }
        proof
    }
}

impl<V> Node<V> {
    fn new(kind: Kind<V>) -> Arc<Self> {
        Arc::new(Self { kind, reference: OnceLock::new() })
    }

    /// An extension, or the child itself when there is nothing to skip.
    fn extension(shared: Nibbles, child: Arc<Self>) -> Arc<Self> {
        if shared.is_empty() { child } else { Self::new(Kind::Extension(shared, child)) }
    }
}

impl<V: Leaf> Node<V> {
    fn reference(&self) -> &RlpNode {
        self.reference.get_or_init(|| RlpNode::from_rlp(&self.encode()))
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        match &self.kind {
            Kind::Leaf(rest, value) => LeafNodeRef::new(rest, &value.rlp()).encode(&mut out),
            Kind::Extension(shared, child) => {
                ExtensionNodeRef::new(shared, child.reference().as_slice()).encode(&mut out);
            }
            Kind::Branch(children) => encode_branch(children, &mut out),
        }
        out
    }
}

fn encode_branch<V: Leaf>(children: &Children<V>, out: &mut Vec<u8>) {
    let mut payload = Vec::with_capacity(16 * 33 + 1);
    for child in children {
        match child {
            Some(child) => payload.extend_from_slice(child.reference().as_slice()),
            None => payload.push(EMPTY_STRING_CODE),
        }
    }
    payload.push(EMPTY_STRING_CODE);
    Header { list: true, payload_length: payload.len() }.encode(out);
    out.extend_from_slice(&payload);
}

fn put<V: Leaf>(node: Option<&Arc<Node<V>>>, path: Nibbles, value: V) -> Arc<Node<V>> {
    let Some(node) = node else {
        return Node::new(Kind::Leaf(path, value));
    };
    match &node.kind {
        Kind::Leaf(rest, _) if *rest == path => Node::new(Kind::Leaf(path, value)),
        Kind::Leaf(rest, old) => {
            let shared = rest.common_prefix_length(&path);
            let old = Node::new(Kind::Leaf(rest.slice(shared + 1..), old.clone()));
            fork(rest, old, path, value, shared)
        }
        Kind::Extension(skip, child) => {
            let shared = skip.common_prefix_length(&path);
            if shared == skip.len() {
                let child = put(Some(child), path.slice(shared..), value);
                return Node::new(Kind::Extension(*skip, child));
            }
            let old = Node::extension(skip.slice(shared + 1..), Arc::clone(child));
            fork(skip, old, path, value, shared)
        }
        Kind::Branch(children) => {
            let mut children = children.clone();
            let index = usize::from(path.get_unchecked(0));
            children[index] = Some(put(children[index].as_ref(), path.slice(1..), value));
            Node::new(Kind::Branch(children))
        }
    }
}

/// A branch where `old_path` (leading to `old`) and `path` part after `shared` nibbles.
fn fork<V: Leaf>(
    old_path: &Nibbles,
    old: Arc<Node<V>>,
    path: Nibbles,
    value: V,
    shared: usize,
) -> Arc<Node<V>> {
    let mut children: Children<V> = Default::default();
    children[usize::from(old_path.get_unchecked(shared))] = Some(old);
    children[usize::from(path.get_unchecked(shared))] =
        Some(Node::new(Kind::Leaf(path.slice(shared + 1..), value)));
    Node::extension(path.slice(..shared), Node::new(Kind::Branch(children)))
}

fn take<V: Leaf>(node: &Arc<Node<V>>, path: Nibbles) -> Option<Arc<Node<V>>> {
    match &node.kind {
        Kind::Leaf(rest, _) => (*rest != path).then(|| Arc::clone(node)),
        Kind::Extension(skip, child) => {
            if !path.starts_with(skip) {
                return Some(Arc::clone(node));
            }
            let left = take(child, path.slice(skip.len()..))?;
            Some(if Arc::ptr_eq(&left, child) { Arc::clone(node) } else { join(*skip, &left) })
        }
        Kind::Branch(children) => {
            let index = usize::from(path.get_unchecked(0));
            let Some(child) = &children[index] else {
                return Some(Arc::clone(node));
            };
            let left = take(child, path.slice(1..));
            if left.as_ref().is_some_and(|left| Arc::ptr_eq(left, child)) {
                return Some(Arc::clone(node));
            }
            let mut children = children.clone();
            children[index] = left;
            collapse(children)
        }
    }
}

/// A branch needs two children: with one it becomes part of that child's path.
fn collapse<V: Leaf>(children: Children<V>) -> Option<Arc<Node<V>>> {
    let mut present = (0u8..16).filter(|index| children[usize::from(*index)].is_some());
    let first = present.next()?;
    if present.next().is_some() {
        return Some(Node::new(Kind::Branch(children)));
    }
    let only = children[usize::from(first)].as_ref()?;
    Some(join(Nibbles::from_nibbles([first]), only))
}

/// `node` reached through `prefix`, in canonical form.
fn join<V: Leaf>(prefix: Nibbles, node: &Arc<Node<V>>) -> Arc<Node<V>> {
    match &node.kind {
        Kind::Leaf(rest, value) => Node::new(Kind::Leaf(prefix.join(rest), value.clone())),
        Kind::Extension(skip, child) => Node::new(Kind::Extension(prefix.join(skip), Arc::clone(child))),
        Kind::Branch(_) => Node::extension(prefix, Arc::clone(node)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use alloy_primitives::U256;
    use alloy_trie::proof::verify_proof;
    use alloy_trie::root::storage_root_unhashed;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    impl Leaf for u32 {
        fn rlp(&self) -> Vec<u8> {
            alloy_rlp::encode(U256::from(*self))
        }
    }

    fn slot(n: u32) -> B256 {
        B256::from(U256::from(n))
    }

    fn reference(model: &BTreeMap<u32, u32>) -> B256 {
        storage_root_unhashed(model.iter().map(|(k, v)| (slot(*k), U256::from(*v))))
    }

    #[test]
    fn agrees_with_the_reference_root_after_any_inserts_and_removals() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut trie = Trie::default();
        let mut model = BTreeMap::new();
        for step in 0..400u32 {
            let key = rng.random_range(0..60u32);
            if rng.random_range(0..3) == 0 {
                trie.remove(&keccak256(slot(key)));
                model.remove(&key);
            } else {
                let value = rng.random_range(1..5u32) << rng.random_range(0..28);
                trie.insert(&keccak256(slot(key)), value);
                model.insert(key, value);
            }
            assert_eq!(trie.root(), reference(&model), "step {step}");
        }
        for key in model.keys().copied().collect::<Vec<_>>() {
            assert_eq!(trie.get(&keccak256(slot(key))), model.get(&key));
            trie.remove(&keccak256(slot(key)));
        }
        assert_eq!(trie.root(), EMPTY_ROOT_HASH);
    }

    #[test]
    fn keys_that_share_long_prefixes_split_and_rejoin() {
        // Raw keys (not hashed) share prefixes that hashed ones never would.
        let mut trie = Trie::default();
        let keys = [slot(1), slot(2), slot(0x11), slot(0x1_0001), B256::repeat_byte(0xff)];
        let mut roots = vec![trie.root()];
        for (value, key) in (1u32..).zip(keys) {
            trie.insert(&key, value);
            roots.push(trie.root());
        }
        for key in keys.iter().rev() {
            assert_eq!(roots.pop(), Some(trie.root()));
            trie.remove(key);
            trie.remove(&B256::repeat_byte(0xee));
        }
        assert_eq!(roots, vec![trie.root()]);
    }

    #[test]
    fn an_old_snapshot_is_untouched_by_later_writes() {
        let mut trie = Trie::default();
        trie.insert(&keccak256(slot(1)), 1u32);
        let (old, old_root) = (trie.clone(), trie.root());
        trie.insert(&keccak256(slot(1)), 2);
        trie.insert(&keccak256(slot(2)), 3);
        assert_eq!(old.root(), old_root);
        assert_eq!(old.get(&keccak256(slot(1))), Some(&1));
        assert_eq!(old.get(&keccak256(slot(2))), None);
    }

    #[test]
    fn proofs_verify_for_presence_and_absence() {
        let mut trie = Trie::default();
        for n in 0..300u32 {
            trie.insert(&keccak256(slot(n)), n + 1);
        }
        for n in [0, 17, 299, 300, 5000] {
            let key = keccak256(slot(n));
            let value = trie.get(&key).map(Leaf::rlp);
            assert_eq!(value.is_some(), n < 300);
            verify_proof(trie.root(), Nibbles::unpack(key), value, &trie.proof(&key)).unwrap();
        }
    }
}

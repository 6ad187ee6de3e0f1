//! Evidence against forgers: no part of it can be changed, and no part can be made up.

use alloy_primitives::{B256, Bytes, U256, hex};
use devchain::token::CONTRACTS;
use devchain::{Faults, ForgedBlock, ForgedTransfer};
use domain::chain::Asset;
use outside::chain::proof::{decode_header, header_rlp};
use outside::chain::{Evidence, Watch, verify};
use proptest::prelude::*;
use proptest::test_runner::{Config as ProptestConfig, TestRunner};
use serde_json::Value;

use super::chain::{Net, Plan, payee};

/// The evidence of a token payment and of a native one, from a block with other traffic, and the block's hash.
async fn evidence() -> (Vec<Value>, B256) {
    let net = Net::new(Plan::default()).await;
    for n in 0..20 {
        net.chain.send_token(CONTRACTS.plain, n % 5, payee(9), U256::from(n)).unwrap();
    }
    net.pay(payee(1), 77);
    net.chain.send_native(6, payee(1), U256::from(88)).unwrap();
    net.chain.mine();
    let watch = Watch::all([Asset::Native, Asset::Token(CONTRACTS.dollar)])
        .only_to(|recipient| *recipient == payee(1));
    let block = net.reader.read_block(1, &watch).await.unwrap();
    let keys: Vec<_> = block.transfers.iter().map(|transfer| transfer.key).collect();
    let bundles = block.evidence(&keys).iter().map(|one| serde_json::to_value(one).unwrap()).collect();
    (bundles, block.link.block.hash)
}

fn holds(evidence: &Value, anchor: Option<B256>) -> bool {
    serde_json::from_value::<Evidence>(evidence.clone())
        .is_ok_and(|evidence| verify(&evidence, anchor).is_ok_and(|verified| verified.is_proven()))
}

/// Whether the change is one of meaning: a time may be spelt in several ways.
fn says_something_else(changed: &Value, original: &Value) -> bool {
    let read = |value: &Value| serde_json::from_value::<Evidence>(value.clone()).ok();
    read(changed) != read(original)
}

/// Every leaf of the JSON, as a pointer.
fn leaves(value: &Value, path: String, into: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, inner)| leaves(inner, format!("{path}/{key}"), into))
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(index, inner)| leaves(inner, format!("{path}/{index}"), into));
        }
        _ => into.push(path),
    }
}

/// The same value with one bit changed, where it is bytes or a number; the text with one character changed else.
fn flipped(value: &Value, at: usize, bit: u8) -> Value {
    match value {
        Value::Number(number) => {
            let number = number.as_i64().unwrap();
            Value::from(number ^ (1 << (at % 40)))
        }
        Value::String(text) if text.starts_with("0x") && text.len() > 2 => {
            let mut bytes = hex::decode(text).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            Value::String(format!("0x{}", hex::encode(bytes)))
        }
        Value::String(text) => {
            let mut chars: Vec<char> = text.chars().collect();
            let at = at % chars.len();
            chars[at] = if chars[at] == '7' { '8' } else { '7' };
            Value::String(chars.into_iter().collect())
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn no_bit_of_what_is_proven_can_be_changed() {
    let (bundles, anchor) = evidence().await;
    assert_eq!(bundles.len(), 2);
    for bundle in &bundles {
        assert!(holds(bundle, Some(anchor)));
        let mut all = Vec::new();
        leaves(bundle, String::new(), &mut all);
        let unproven = |path: &str| path.starts_with("/voters") || path.ends_with("/log_index");
        let proven: Vec<String> = all
            .into_iter()
            .filter(|path| !unproven(path) && !bundle.pointer(path).unwrap().is_null())
            .collect();
        assert!(proven.len() > 15, "{proven:?}");
        // Each field at least once, then at random.
        for path in &proven {
            let mut changed = bundle.clone();
            *changed.pointer_mut(path).unwrap() = flipped(bundle.pointer(path).unwrap(), 0, 0);
            assert!(says_something_else(&changed, bundle), "{path}");
            assert!(!holds(&changed, None), "{path}");
        }
        let mut runner = TestRunner::new(ProptestConfig {
            cases: 2_000,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        runner
            .run(&(any::<prop::sample::Index>(), any::<usize>(), 0_u8..8), |(field, at, bit)| {
                let path = field.get(&proven);
                let mut changed = bundle.clone();
                *changed.pointer_mut(path).unwrap() = flipped(bundle.pointer(path).unwrap(), at, bit);
                prop_assume!(says_something_else(&changed, bundle));
                prop_assert!(!holds(&changed, None), "{}", path);
                Ok(())
            })
            .unwrap();
    }
}

#[tokio::test]
async fn what_is_left_out_is_missed() {
    let (bundles, anchor) = evidence().await;
    for part in ["transaction", "receipt", "block/header_rlp"] {
        let mut changed = bundles[0].clone();
        *changed.pointer_mut(&format!("/{part}")).unwrap() = Value::Null;
        assert!(!holds(&changed, Some(anchor)), "{part}");
    }
    let mut weaker = bundles[0].clone();
    weaker["level"] = Value::from("QUORUM");
    assert!(!holds(&weaker, Some(anchor)), "a vote proves nothing");
    let mut unknown = bundles[0].clone();
    unknown["surprise"] = Value::from(1);
    assert!(serde_json::from_value::<Evidence>(unknown).is_err());
}

/// A forger that makes up a whole block, whose every hash, root and path agrees, is stopped by the anchor alone.
#[tokio::test]
async fn a_made_up_block_does_not_hold_against_an_anchor() {
    let net = Net::new(Plan { groups: &["forger"], quorum: 1, ..Plan::default() }).await;
    let transfer =
        ForgedTransfer { token: CONTRACTS.dollar, from: payee(1), to: payee(2), value: U256::from(999) };
    let lie = ForgedBlock { number: 1, transfers: vec![transfer], drop_transactions: false };
    net.faults(0, Faults { forge_blocks: vec![lie], ..Faults::default() });
    net.chain.mine();
    let block = net.reader.read_block(1, &super::chain::dollars()).await.unwrap();
    let evidence = block.evidence(&[block.transfers[0].key]);
    let truth = net.chain.block(1).unwrap().hash();
    let alone = verify(&evidence[0], None).unwrap();
    assert!(alone.is_proven() && !alone.anchored, "its parts agree with each other; that is all it shows");
    assert!(verify(&evidence[0], Some(truth)).is_err());
}

/// The same forger, who also rewrites the header's own fields.
#[tokio::test]
async fn a_header_with_another_time_is_another_block() {
    let (bundles, anchor) = evidence().await;
    let rlp: Bytes = serde_json::from_value(bundles[0]["block"]["header_rlp"].clone()).unwrap();
    let mut header = decode_header(&rlp).unwrap();
    header.timestamp += 1;
    let mut changed = bundles[0].clone();
    changed["block"]["header_rlp"] = serde_json::to_value(header_rlp(&header)).unwrap();
    assert!(!holds(&changed, None));
    changed["block"]["hash"] = serde_json::to_value(header.hash_slow()).unwrap();
    assert!(!holds(&changed, None), "the claimed time is not the header's");
    assert!(!holds(&changed, Some(anchor)));
}

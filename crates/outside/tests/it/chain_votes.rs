//! The reader on a chain whose roots prove nothing: logs are believed by vote.

use std::collections::BTreeSet;
use std::time::Duration;

use alloy_primitives::{Address, B256, U256};
use devchain::token::CONTRACTS;
use devchain::{Config, Faults, ForgedLog, LogPick, Reach, ReceiptsLie, Replay};
use domain::chain::{Asset, BlockRef, EvidenceLevel};
use futures::StreamExt;
use outside::chain::{ClaimOutcome, FaultKind, Progress, ProvenBlock, RootMode, StallKind, Watch, verify};

use super::chain::{Net, Plan, amounts, dollars, every_fault, payee};

async fn opaque() -> Net {
    let config = Config { opaque_receipts_root: true, ..Config::default() };
    Net::new(Plan { mode: RootMode::None, config, timeout: Duration::from_secs(3), ..Plan::default() }).await
}

async fn read(net: &Net, number: u64) -> ProvenBlock {
    let block = net.reader.read_block(number, &dollars()).await.unwrap_or_else(|stall| panic!("{stall}"));
    assert_eq!(block.level, EvidenceLevel::Quorum);
    block
}

fn caught(net: &Net, provider: usize, kind: FaultKind) -> bool {
    net.reader.providers()[provider].faults.contains_key(&kind)
}

#[tokio::test]
async fn a_vote_and_a_proof_find_the_same_transfers() {
    let net = Net::new(Plan::default()).await;
    let payment =
        |to, value| devchain::token::Payment { token: CONTRACTS.dollar, to, value: U256::from(value) };
    net.pay(payee(1), 1);
    net.chain.send_payments(2, &[payment(payee(1), 2_u64), payment(payee(2), 3)]).unwrap();
    net.chain.send_native(3, payee(4), U256::from(9)).unwrap();
    net.chain.mine();
    let watch = Watch::all([Asset::Native, Asset::Token(CONTRACTS.dollar)]);
    let proven = net.reader.read_block(1, &watch).await.unwrap();
    let mut voting = super::chain::setup(&net.chain, &net.faces, &Plan::default());
    voting.profile = outside::chain::ChainProfile::of(RootMode::None);
    let voted = outside::chain::ChainReader::new(voting).unwrap().read_block(1, &watch).await.unwrap();
    assert_eq!(voted.transfers, proven.transfers);
    assert_eq!(proven.transfers.len(), 4);
    assert!(voted.disputed.is_empty());
    assert_eq!((proven.level, voted.level), (EvidenceLevel::Verified, EvidenceLevel::Quorum));
}

#[tokio::test]
async fn a_block_whose_root_cannot_be_recomputed_is_not_verified() {
    let config = Config { opaque_receipts_root: true, ..Config::default() };
    let net = Net::new(Plan { config, ..Plan::default() }).await;
    net.pay(payee(1), 1);
    net.chain.mine();
    assert_eq!(net.reader.read_block(1, &dollars()).await.unwrap_err().kind, StallKind::NoValidBody);
}

#[tokio::test]
async fn one_that_omits_and_one_that_forges_change_nothing() {
    let net = opaque().await;
    let tx = net.pay(payee(1), 5);
    net.pay(payee(2), 6);
    net.chain.mine();
    let pick = LogPick { transaction: Some(tx), ..LogPick::default() };
    net.faults(0, Faults { omit_logs: vec![pick], reach: Reach::Both, ..Faults::default() });
    let block = read(&net, 1).await;
    assert_eq!(amounts(&block.transfers, payee(1)), ["5"]);
    assert_eq!(amounts(&block.transfers, payee(2)), ["6"]);
    assert!(caught(&net, 0, FaultKind::OmittedLog));
    assert!(block.disputed.is_empty(), "{:?}", block.disputed);
}

#[tokio::test]
async fn two_that_omit_different_logs_still_make_a_quorum_on_both() {
    let net = opaque().await;
    let first = net.pay(payee(1), 5);
    let second = net.pay(payee(2), 6);
    net.chain.mine();
    for (liar, tx) in [(0, first), (1, second)] {
        let pick = LogPick { transaction: Some(tx), ..LogPick::default() };
        net.faults(liar, Faults { omit_logs: vec![pick], reach: Reach::Logs, ..Faults::default() });
    }
    let block = read(&net, 1).await;
    assert_eq!(block.transfers.len(), 2);
    assert!(block.disputed.is_empty());
}

#[tokio::test]
async fn a_forged_log_is_disputed_and_then_denied() {
    let net = opaque().await;
    net.chain.mine();
    let forged = ForgedLog {
        block: 1,
        transaction: Some(B256::repeat_byte(0x66)),
        token: CONTRACTS.dollar,
        from: payee(3),
        to: payee(0xbb),
        value: U256::from(1_000_000),
    };
    net.faults(2, Faults { forge_logs: vec![forged], reach: Reach::Both, ..Faults::default() });
    let block = read(&net, 1).await;
    assert!(block.transfers.is_empty());
    let [claim] = block.disputed.as_slice() else { panic!("{:?}", block.disputed) };
    assert_eq!(
        (claim.transfer.recipient, claim.claimants.as_slice()),
        (payee(0xbb), ["gamma-2".to_owned()].as_slice())
    );
    assert_eq!(net.reader.recheck(claim).await.unwrap(), ClaimOutcome::Denied);
}

#[tokio::test]
async fn a_forged_log_in_the_place_of_a_true_one_is_a_fault() {
    let net = opaque().await;
    net.pay(payee(2), 6);
    net.chain.mine();
    let forged = ForgedLog {
        block: 1,
        transaction: None,
        token: CONTRACTS.dollar,
        from: payee(3),
        to: payee(0xbb),
        value: U256::from(1_000_000),
    };
    net.faults(2, Faults { forge_logs: vec![forged], reach: Reach::Both, ..Faults::default() });
    let block = read(&net, 1).await;
    assert_eq!(amounts(&block.transfers, payee(2)), ["6"]);
    assert!(amounts(&block.transfers, payee(0xbb)).is_empty());
    // Where the log would fit behind the true ones, it is a claim; where it cannot, a fault.
    assert!(block.disputed.len() == 1 || caught(&net, 2, FaultKind::ForgedLog));
}

#[tokio::test]
async fn two_that_return_nothing_hide_a_payment_only_for_a_while() {
    let net = opaque().await;
    net.pay(payee(1), 5);
    net.chain.mine();
    for liar in 0..2 {
        net.faults(
            liar,
            Faults { empty_logs: true, receipts: Some(ReceiptsLie::Empty), ..Faults::default() },
        );
    }
    let block = read(&net, 1).await;
    assert!(block.transfers.is_empty(), "one group is not enough to believe");
    let [claim] = block.disputed.as_slice() else { panic!("{:?}", block.disputed) };
    assert_eq!(amounts(&[claim.transfer], payee(1)), ["5"]);
    net.heal();
    assert_eq!(net.reader.recheck(claim).await.unwrap(), ClaimOutcome::Confirmed);
    assert_eq!(amounts(&read(&net, 1).await.transfers, payee(1)), ["5"]);
}

#[tokio::test]
async fn nodes_whose_log_index_lags_are_outvoted_by_their_own_receipts() {
    let net = opaque().await;
    net.pay(payee(1), 5);
    net.chain.mine();
    for behind in 0..2 {
        net.faults(behind, Faults { empty_logs: true, ..Faults::default() });
    }
    let block = read(&net, 1).await;
    assert_eq!(amounts(&block.transfers, payee(1)), ["5"], "the claim was escalated to receipts");
    assert!(block.disputed.is_empty());
}

#[tokio::test]
async fn an_altered_amount_is_a_fault_not_a_dispute() {
    let net = opaque().await;
    net.pay(payee(1), 5);
    net.chain.mine();
    let altered = devchain::AlteredAmount { pick: LogPick::default(), value: U256::from(5_000_000) };
    net.faults(1, Faults { alter_amounts: vec![altered], reach: Reach::Both, ..Faults::default() });
    let block = read(&net, 1).await;
    assert_eq!(amounts(&block.transfers, payee(1)), ["5"]);
    assert!(block.disputed.is_empty());
    assert!(caught(&net, 1, FaultKind::ForgedLog));
}

#[tokio::test]
async fn too_few_voters_is_a_stall_not_an_empty_block() {
    let net = opaque().await;
    net.pay(payee(1), 5);
    net.chain.mine();
    for silent in 0..2 {
        let only = Some(vec!["eth_getLogs".to_owned()]);
        let error = devchain::RpcFault { code: -32000, message: "boom".into() };
        net.faults(silent, Faults { only, rpc_error: Some(error), ..Faults::default() });
    }
    let stall = net.reader.read_block(1, &dollars()).await.unwrap_err();
    assert_eq!(stall.kind, StallKind::TooFewGroups, "{stall}");
}

#[tokio::test]
async fn a_native_transfer_is_voted_on_whole() {
    let net = opaque().await;
    net.chain.send_native(3, payee(1), U256::from(9)).unwrap();
    net.chain.mine();
    let watch = Watch::all([Asset::Native]).only_to(|to| *to == payee(1));
    net.faults(0, Faults { receipts: Some(ReceiptsLie::FlipStatus), ..Faults::default() });
    let block = net.reader.read_block(1, &watch).await.unwrap();
    assert_eq!(amounts(&block.transfers, payee(1)), ["9"]);
    assert_eq!(block.transfers[0].payer, net.chain.account(3).address());
    assert!(caught(&net, 0, FaultKind::OmittedLog));
}

#[tokio::test]
async fn a_claim_on_a_dropped_block_is_gone() {
    let net = opaque().await;
    net.pay(payee(1), 5);
    net.chain.mine();
    for liar in 0..2 {
        net.faults(
            liar,
            Faults { empty_logs: true, receipts: Some(ReceiptsLie::Empty), ..Faults::default() },
        );
    }
    let block = read(&net, 1).await;
    net.heal();
    net.chain.reorg(1, Replay::Nothing).unwrap();
    assert_eq!(net.reader.recheck(&block.disputed[0]).await.unwrap(), ClaimOutcome::Gone);
}

#[tokio::test]
async fn evidence_of_a_vote_proves_nothing_and_says_so() {
    let net = opaque().await;
    net.pay(payee(1), 5);
    net.chain.mine();
    let block = read(&net, 1).await;
    let evidence = block.evidence(&[block.transfers[0].key]);
    let verified = verify(&evidence[0], Some(block.link.block.hash)).unwrap();
    assert!(!verified.is_proven());
    assert!(verified.unproven.contains(&"transfer"));
    assert!(evidence[0].voters().len() >= 2);
}

/// Each fault of one provider out of three neither hides a payment nor makes one up.
#[tokio::test]
async fn one_faulty_provider_changes_nothing_in_a_vote() {
    let rounds = every_fault().into_iter().map(|(name, faults)| async move {
        for faulty in 0..3 {
            // A provider that hangs is waited for: only its own deadline bounds a vote.
            let timeout = Duration::from_millis(if faults.hang { 400 } else { 10_000 });
            let config = Config { opaque_receipts_root: true, ..Config::default() };
            let net = Net::new(Plan { mode: RootMode::None, config, timeout, ..Plan::default() }).await;
            net.faults(faulty, faults.clone());
            for n in 1..=2 {
                net.pay(payee(0xaa), n);
                net.chain.mine();
            }
            for number in 1..=2 {
                let read = net.reader.read_block(number, &dollars()).await;
                let block = read.unwrap_or_else(|stall| panic!("{name} at {faulty}: {stall}"));
                assert_eq!(
                    amounts(&block.transfers, payee(0xaa)),
                    [number.to_string()],
                    "{name} at {faulty}"
                );
                assert!(amounts(&block.transfers, payee(0xbb)).is_empty(), "{name} at {faulty}");
            }
        }
    });
    Box::pin(futures::stream::iter(rounds).buffer_unordered(4).for_each(|()| std::future::ready(()))).await;
}

/// `count` transfers that never were, each to another recipient; in a transaction each, or all in the block's last.
fn flood(block: u64, count: u64, apart: bool) -> Faults {
    let forged = (0..count).map(|n| ForgedLog {
        block,
        transaction: apart.then(|| B256::from(U256::from(n + 1))),
        token: CONTRACTS.dollar,
        from: payee(3),
        to: stranger(n),
        value: U256::from(1_000_000),
    });
    Faults { forge_logs: forged.collect(), reach: Reach::Both, ..Faults::default() }
}

fn stranger(n: u64) -> Address {
    Address::from_word(B256::from(U256::from(0xf_0000 + n)))
}

/// Counts the calls of `method` over all providers.
fn asked(net: &Net, method: &str) -> u64 {
    net.faces.iter().map(|face| face.provider().requests_of(method)).sum()
}

/// Watches for everything, with claims settled only to `ours`.
fn dollars_of(ours: &[Address]) -> Watch {
    let ours: BTreeSet<Address> = ours.iter().copied().collect();
    dollars().claims_to(move |recipients| {
        let ours: BTreeSet<Address> = recipients.intersection(&ours).copied().collect();
        Box::pin(std::future::ready(Some(ours)))
    })
}

#[tokio::test]
async fn two_thousand_forged_logs_cost_a_sample_and_hold_nothing_up() {
    for apart in [false, true] {
        let net = opaque().await;
        // Made-up transactions come before the true ones, which would rule them out without a question: none are there.
        if !apart {
            net.pay(payee(1), 5);
            net.pay(payee(2), 6);
        }
        net.chain.mine();
        net.faults(2, flood(1, 2_000, apart));
        // The worst case: whatever is claimed would concern us.
        let block = read(&net, 1).await;
        let paid: Vec<String> = block.transfers.iter().map(|transfer| transfer.amount.to_string()).collect();
        assert_eq!(paid, if apart { &[][..] } else { &["5", "6"] });
        assert!(block.disputed.is_empty() && block.unasked.is_empty(), "what a forger claims is not kept");
        assert!(caught(&net, 2, FaultKind::ForgedLog));
        assert!(net.reader.providers()[..2].iter().all(|honest| honest.faults.is_empty()));
        let receipts = asked(&net, "eth_getTransactionReceipt");
        assert!(receipts <= 8 * 3, "{receipts} receipts were asked for");
    }
}

#[tokio::test]
async fn a_flood_in_every_block_does_not_stop_the_reading() {
    let net = opaque().await;
    let mut forged = Faults { reach: Reach::Both, ..Faults::default() };
    for number in 1..=12 {
        net.pay(payee(1), number);
        net.chain.mine();
        forged.forge_logs.extend(flood(number, 500, false).forge_logs);
    }
    net.faults(0, forged);
    let first = BlockRef { number: 0, hash: net.chain.block(0).unwrap().hash() };
    let progress = net.reader.poll(&[first], &dollars_of(&[payee(1)]), 64).await.unwrap();
    let Progress::Blocks { blocks, .. } = progress else { panic!("{progress:?}") };
    let paid: Vec<String> = blocks.iter().flat_map(|block| amounts(&block.transfers, payee(1))).collect();
    assert_eq!(paid, (1..=12).map(|n: u64| n.to_string()).collect::<Vec<_>>());
    assert!(blocks.iter().all(|block| block.disputed.is_empty() && block.unasked.is_empty()));
}

#[tokio::test]
async fn a_claim_to_a_stranger_is_named_and_not_asked_about() {
    let net = opaque().await;
    net.chain.mine();
    net.faults(1, flood(1, 40, true));
    let ours = [stranger(7), stranger(11)];
    let block = net.reader.read_block(1, &dollars_of(&ours)).await.unwrap();
    let disputed: Vec<Address> = block.disputed.iter().map(|claim| claim.transfer.recipient).collect();
    assert_eq!(disputed, ours);
    assert_eq!(block.unasked.len(), 38);
    assert!(!block.unasked.contains(&stranger(7)) && block.unasked.contains(&stranger(8)));
    let receipts = asked(&net, "eth_getTransactionReceipt");
    assert!(receipts <= 2 * 3, "{receipts} receipts were asked for");
}

#[tokio::test]
async fn when_it_cannot_be_said_whose_a_claim_is_all_are_asked_about() {
    let net = opaque().await;
    net.chain.mine();
    net.faults(1, flood(1, 20, true));
    let watch = dollars().claims_to(|_| Box::pin(std::future::ready(None)));
    let block = net.reader.read_block(1, &watch).await.unwrap();
    assert_eq!((block.disputed.len(), block.unasked.len()), (20, 0));
}

#[tokio::test]
async fn a_lagging_log_index_of_two_does_not_make_a_forger_of_the_third() {
    let net = opaque().await;
    for n in 0..100 {
        net.pay(payee(1), 1 + n);
    }
    net.chain.mine();
    for behind in 0..2 {
        net.faults(behind, Faults { empty_logs: true, ..Faults::default() });
    }
    let block = read(&net, 1).await;
    assert_eq!(block.transfers.len(), 100, "a sample is confirmed, so all are asked about");
    assert!(block.disputed.is_empty());
    assert!(!caught(&net, 2, FaultKind::ForgedLog));
}

#[tokio::test]
async fn what_nobody_can_judge_yet_is_a_stall_and_no_loss() {
    let net = opaque().await;
    for n in 0..100 {
        net.pay(payee(1), 1 + n);
    }
    net.chain.mine();
    for behind in 0..2 {
        // They list the transactions, and have indexed neither logs nor receipts.
        let receipts = Some(ReceiptsLie::Null);
        net.faults(behind, Faults { empty_logs: true, receipts, ..Faults::default() });
    }
    let stall = net.reader.read_block(1, &dollars()).await.unwrap_err();
    assert_eq!((stall.kind, stall.alive), (StallKind::NoAgreement, 3));
    let text = stall.to_string();
    assert!(text.contains("gamma-2: shows 100 transfers that too few others show"), "{text}");
    assert!(!caught(&net, 2, FaultKind::ForgedLog));
    net.heal();
    assert_eq!(read(&net, 1).await.transfers.len(), 100);
}

#[tokio::test]
async fn a_forger_and_one_that_is_down_are_too_many() {
    let net = opaque().await;
    net.pay(payee(1), 5);
    net.chain.mine();
    let error = devchain::RpcFault { code: -32000, message: "boom".into() };
    net.faults(0, Faults { rpc_error: Some(error), ..Faults::default() });
    net.faults(2, flood(1, 2_000, false));
    let stall = net.reader.read_block(1, &dollars()).await.unwrap_err();
    assert_eq!(stall.kind, StallKind::NoAgreement, "{stall}");
    assert!(asked(&net, "eth_getTransactionReceipt") <= 8 * 3);
    net.faults(0, Faults::default());
    assert_eq!(amounts(&read(&net, 1).await.transfers, payee(1)), ["5"]);
}

#[tokio::test]
async fn a_receipt_that_is_not_indexed_yet_denies_nothing() {
    let net = opaque().await;
    net.pay(payee(1), 5);
    net.chain.mine();
    for liar in 0..2 {
        let receipts = Some(ReceiptsLie::Null);
        net.faults(liar, Faults { empty_logs: true, receipts, ..Faults::default() });
    }
    let block = read(&net, 1).await;
    let [claim] = block.disputed.as_slice() else { panic!("{:?}", block.disputed) };
    assert_eq!(
        net.reader.recheck(claim).await.unwrap(),
        ClaimOutcome::Open,
        "the block lists the transaction"
    );
}

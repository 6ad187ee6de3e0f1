//! The main job, from a transfer on chain to a delivered webhook, and everything that may go wrong on the way.

use alloy_primitives::U256;
use app::features::evidence;
use app::features::invoice::InvoiceError;
use devchain::token::{CONTRACTS, Payment};
use devchain::{AlteredAmount, ForgedLog, LogPick, Reach, ReceiptsLie};
use devchain::{Faults, HttpStatus, Replay};
use domain::chain::{Asset, EvidenceLevel, parse_address};
use domain::event::EventType::{
    InvoiceConfirmed, InvoiceDetected, InvoiceExpired, InvoiceLatePayment, InvoiceOverpaid, InvoiceReverted,
    InvoiceSettled, InvoiceUnderpaid, PaymentAmbiguous, QuorumLost, QuorumRestored, SettlementFrozen,
};
use domain::invoice::Status;
use domain::money::Amount;
use domain::payment::Stage;
use domain::time::Timestamp;
use durable::store::payment::Matching;

use crate::world::{Settings, World, recipient};

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_settles_its_invoice_and_the_merchant_is_told() {
    let world = World::new(Settings::default()).await;
    world.subscribe().await;
    let to = recipient(1);
    let id = world.create(world.wanted(to, 2_500_000)).await;
    let tx = world.pay(to, 2_500_000);
    world.chain.mine();
    world.until_status(id, Status::Detected).await;
    world.chain.mine();
    let settled = world.until_status(id, Status::Settled).await;
    assert_eq!(settled.settled_by, Some(tx));
    assert_eq!(world.story(id).await, [InvoiceDetected, InvoiceSettled]);
    let payments = world.payments(id).await;
    assert_eq!(payments.len(), 1);
    assert_eq!(payments[0].level, EvidenceLevel::Verified);

    world.merchant.until_accepted(2).await;
    let arrivals = world.merchant.arrivals();
    assert!(arrivals.iter().all(|arrival| arrival.signature == sim::receiver::Signature::Valid));
    let events = world.events().await;
    let told: Vec<&[u8]> = arrivals.iter().map(|arrival| arrival.body.as_ref()).collect();
    let happened: Vec<&[u8]> = events.iter().map(|event| event.body.as_slice()).collect();
    assert_eq!(told, happened, "the same bytes, in the same order");

    world.chain.mine_n(10);
    world.until("finality", async || world.invoice(id).await.invoice.is_final().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quittance_is_checked_offline() {
    let world = World::new(Settings { confirmations: "1", ..Settings::default() }).await;
    let to = recipient(2);
    let id = world.create(world.wanted(to, 7)).await;
    world.pay(to, 7);
    let anchor = world.chain.mine();
    world.until_status(id, Status::Settled).await;
    let (bundle, key) = world
        .app()
        .store
        .write(move |tx| {
            let key = evidence::public_key(tx)?;
            Ok::<_, evidence::NoBundle>((evidence::bundle(tx, id)?, key))
        })
        .await
        .unwrap();

    let checked = evidence::check(&bundle, &[], &[]).unwrap();
    assert!(!checked.is_trusted(), "a bundle that agrees with itself proves nothing");
    assert!(evidence::check(&bundle, &[anchor], &[]).unwrap().is_trusted());
    assert!(evidence::check(&bundle, &[], &[key]).unwrap().is_trusted());
    let transfer = checked.payments[0].transfer.transfer;
    assert_eq!((transfer.recipient, transfer.amount), (to, Amount::from(7)));

    for position in 0..bundle.len() {
        let mut changed = bundle.clone();
        changed[position] ^= 1 << (position % 8);
        let outcome = evidence::check(&changed, &[anchor], &[key]);
        assert!(outcome.is_err(), "bit {} of byte {position} was changed unnoticed", position % 8);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chains_own_coin_is_paid_too() {
    let world = World::new(Settings::default()).await;
    let to = recipient(3);
    let amount = 12_345_678_901_234_567_890_u128;
    let mut wanted = world.wanted(to, 1);
    wanted.asset = Asset::Native;
    wanted.amount = Amount::new(U256::from(amount));
    let id = world.create(wanted).await;
    world.chain.send_native(0, to, U256::from(amount)).unwrap();
    world.chain.mine_n(2);
    let settled = world.until_status(id, Status::Settled).await;
    assert_eq!(settled.invoice.paid.confirmed.to_string(), amount.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_came_before_its_invoice_is_found() {
    let world = World::new(Settings::default()).await;
    let to = recipient(4);
    world.pay(to, 50);
    world.chain.mine_n(3);
    world.until_head().await;
    let id = world.create(world.wanted(to, 50)).await;
    world.until_status(id, Status::Settled).await;
    assert_eq!(world.story(id).await, [InvoiceDetected, InvoiceSettled]);
}

#[tokio::test(flavor = "multi_thread")]
async fn earlier_money_of_another_amount_is_not_taken() {
    let world = World::new(Settings::default()).await;
    let to = recipient(40);
    world.pay(to, 5_000);
    world.chain.mine_n(3);
    world.until_head().await;
    let id = world.create(world.wanted(to, 50)).await;
    world.pay(to, 20);
    world.chain.mine_n(2);
    world
        .until("the later part", async || {
            (world.invoice(id).await.invoice.status() == Status::Confirmed).then_some(())
        })
        .await;
    assert_eq!(world.invoice(id).await.invoice.paid.seen, Amount::from(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_of_nothing_is_nothing() {
    let world = World::new(Settings::default()).await;
    let to = recipient(41);
    let id = world.create(world.wanted(to, 10)).await;
    world.pay(to, 0);
    world.pay(to, 10);
    world.chain.mine_n(2);
    world.until_status(id, Status::Settled).await;
    assert_eq!(world.story(id).await, [InvoiceDetected, InvoiceSettled]);
    assert_eq!(world.payments(id).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payer_that_is_named_later_finds_its_earlier_money() {
    let world = World::new(Settings::default()).await;
    let to = recipient(42);
    world.create(world.wanted(to, 99)).await;
    world.create(world.wanted(to, 98)).await;
    world.pay(to, 30);
    world.chain.mine_n(2);
    world.until_head().await;
    let mut wanted = world.wanted(to, 30);
    wanted.payer = Some(world.chain.account(1).address());
    let id = world.create(wanted).await;
    world.until_status(id, Status::Settled).await;
    assert_eq!(world.story(id).await, [InvoiceDetected, InvoiceSettled]);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_payments_in_one_transaction_are_told_apart() {
    let world = World::new(Settings::default()).await;
    let (a, b) = (recipient(5), recipient(6));
    let first = world.create(world.wanted(a, 10)).await;
    let second = world.create(world.wanted(b, 20)).await;
    let pay = |to, value: u64| Payment { token: CONTRACTS.dollar, to, value: U256::from(value) };
    world.chain.send_payments(0, &[pay(a, 10), pay(b, 20), pay(a, 3)]).unwrap();
    world.chain.mine_n(2);
    world.until_status(first, Status::Settled).await;
    world.until_status(second, Status::Settled).await;
    assert_eq!(world.story(second).await, [InvoiceDetected, InvoiceSettled]);
    assert!(world.story(first).await.contains(&InvoiceOverpaid));
    assert_eq!(world.payments(first).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn invoices_that_nothing_tells_apart_are_refused() {
    let world = World::new(Settings::default()).await;
    let to = recipient(7);
    let first = world.create(world.wanted(to, 10)).await;
    assert!(matches!(world.try_create(world.wanted(to, 10)).await, Err(InvoiceError::Indistinguishable)));
    let mut named = world.wanted(to, 10);
    named.payer = Some(world.chain.account(1).address());
    let named = world.create(named).await;
    let other = world.create(world.wanted(to, 11)).await;
    // Account 1 pays 10: it is named by one invoice and fits another. Account 2 is not named.
    world.pay(to, 10);
    world.chain.send_token(CONTRACTS.dollar, 2, to, U256::from(11_u8)).unwrap();
    world.chain.mine_n(2);
    world.until_status(other, Status::Settled).await;
    for id in [first, named] {
        assert_eq!(world.invoice(id).await.invoice.status(), Status::Open);
    }
    assert!(world.events().await.iter().any(|event| event.kind == PaymentAmbiguous));
}

#[tokio::test(flavor = "multi_thread")]
async fn too_little_too_much_and_too_late_have_names() {
    let world = World::new(Settings::default()).await;
    let soon = Timestamp::from_seconds(world.chain.head().timestamp + 7);
    let expiring = |to, amount| {
        let mut wanted = world.wanted(to, amount);
        wanted.expires_at = soon;
        wanted
    };
    let under = world.create(expiring(recipient(8), 100)).await;
    let late = world.create(expiring(recipient(9), 100)).await;
    world.pay(recipient(8), 40);
    world.chain.mine_n(5);
    world.pay(recipient(9), 100);
    world.chain.mine_n(2);
    world.until_status(under, Status::Underpaid).await;
    world.until_head().await;
    assert_eq!(world.story(under).await, [InvoiceDetected, InvoiceConfirmed, InvoiceUnderpaid]);
    assert_eq!(world.story(late).await, [InvoiceExpired, InvoiceLatePayment]);
    let row = world.invoice(late).await;
    assert_eq!((row.invoice.status(), row.invoice.is_late()), (Status::Expired, true));

    // A person accepts the late payment.
    let payment = world.payments(late).await[0].id;
    world.app().store.write(move |tx| app::features::payment::assign(tx, payment, late, true)).await.unwrap();
    let row = world.invoice(late).await;
    assert_eq!((row.invoice.status(), row.invoice.is_late()), (Status::Settled, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_provider_down_and_one_lying_change_nothing() {
    let world = World::new(Settings { faces: 4, ..Settings::default() }).await;
    let to = recipient(10);
    let id = world.create(world.wanted(to, 10)).await;
    world.faces[0].stop().await;
    world.faces[1].provider().set_faults(Faults {
        alter_amounts: vec![AlteredAmount { pick: LogPick::default(), value: U256::from(1_000_000_u32) }],
        reach: Reach::Both,
        ..Faults::default()
    });
    world.pay(to, 10);
    world.chain.mine_n(2);
    let settled = world.until_status(id, Status::Settled).await;
    assert_eq!(settled.invoice.paid.seen, Amount::from(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_return_nothing_cannot_hide_a_payment() {
    let world = World::new(Settings::default()).await;
    let to = recipient(11);
    let id = world.create(world.wanted(to, 10)).await;
    for face in &world.faces[..2] {
        face.provider().set_faults(Faults {
            empty_logs: true,
            receipts: Some(ReceiptsLie::Empty),
            ..Faults::default()
        });
    }
    world.pay(to, 10);
    world.chain.mine_n(2);
    world.until_status(id, Status::Settled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_quorum_nothing_settles_and_the_cursor_stands() {
    let world = World::new(Settings::default()).await;
    let to = recipient(12);
    let id = world.create(world.wanted(to, 10)).await;
    world.until_head().await;
    let stood_at = world.chain.head().number;
    world.faces[0].stop().await;
    world.faces[1].provider().set_faults(Faults {
        status: Some(HttpStatus { code: 500, retry_after_secs: None }),
        ..Faults::default()
    });
    world.faces[2].provider().set_faults(Faults {
        forge_logs: vec![ForgedLog {
            block: stood_at + 1,
            transaction: None,
            token: CONTRACTS.dollar,
            from: recipient(99),
            to,
            value: U256::from(10_u8),
        }],
        reach: Reach::Both,
        ..Faults::default()
    });
    world.chain.mine_n(3);
    world
        .until("the loss of the quorum to be seen", async || {
            world.cursor().await.filter(|cursor| cursor.stalled.is_some())
        })
        .await;
    world.look(5).await;
    let cursor = world.cursor().await.unwrap();
    assert_eq!(cursor.block.number, stood_at);
    assert_eq!(world.invoice(id).await.invoice.status(), Status::Open);
    assert_eq!(world.events().await.last().map(|event| event.kind), Some(QuorumLost));

    world.pay(to, 10);
    world.chain.mine_n(2);
    world.faces[1].provider().heal();
    world.faces[2].provider().heal();
    world.until_status(id, Status::Settled).await;
    assert!(world.events().await.iter().any(|event| event.kind == QuorumRestored));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorg_takes_a_payment_away_and_brings_it_back() {
    let world = World::new(Settings { confirmations: "1", ..Settings::default() }).await;
    let to = recipient(13);
    let id = world.create(world.wanted(to, 10)).await;
    world.pay(to, 10);
    world.chain.mine();
    world.until_status(id, Status::Settled).await;
    world.chain.reorg(1, Replay::Pool).unwrap();
    world.until_status(id, Status::Open).await;
    assert!(world.invoice(id).await.invoice.reverted);
    assert_eq!(world.payments(id).await[0].stage, Stage::Reverted);
    world.chain.mine_n(2);
    world.until_status(id, Status::Settled).await;
    assert_eq!(
        world.story(id).await,
        [InvoiceDetected, InvoiceSettled, InvoiceReverted, InvoiceDetected, InvoiceSettled]
    );
    assert_eq!(world.payments(id).await.len(), 1, "one transfer, one payment");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorg_while_we_were_away_is_found_at_start() {
    let mut world = World::new(Settings { confirmations: "1", ..Settings::default() }).await;
    let (gone, kept) = (recipient(14), recipient(15));
    let lost = world.create(world.wanted(gone, 10)).await;
    let stays = world.create(world.wanted(kept, 20)).await;
    world.pay(kept, 20);
    world.chain.mine();
    world.pay(gone, 10);
    world.chain.mine();
    world.until_status(lost, Status::Settled).await;
    world.until_status(stays, Status::Settled).await;
    world.crash();
    world.chain.reorg(1, Replay::Nothing).unwrap();
    world.chain.mine_n(2);
    world.start().await;
    world.until_status(lost, Status::Open).await;
    world.until_head().await;
    assert_eq!(world.invoice(stays).await.invoice.status(), Status::Settled);
    assert_eq!(world.story(stays).await, [InvoiceDetected, InvoiceSettled]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_finality_freezes_settling_but_not_observing() {
    let chain = devchain::Config { finalized_lag: 2, safe_lag: 1, ..devchain::Config::default() };
    let world = World::new(Settings { confirmations: "1", chain, ..Settings::default() }).await;
    let to = recipient(16);
    let id = world.create(world.wanted(to, 10)).await;
    world.pay(to, 10);
    world.chain.mine_n(5);
    world.until("finality", async || world.invoice(id).await.invoice.is_final().then_some(())).await;
    world.until_head().await;
    world.chain.reorg(5, Replay::Nothing).unwrap();
    world.chain.mine();
    world.until("the freeze", async || world.cursor().await.filter(|cursor| cursor.frozen.is_some())).await;
    assert_eq!(world.invoice(id).await.invoice.status(), Status::Settled, "final is final");
    assert!(world.events().await.iter().any(|event| event.kind == SettlementFrozen));
    let second = world.create(world.wanted(recipient(17), 5)).await;
    world.pay(recipient(17), 5);
    world.chain.mine_n(3);
    world.until_status(second, Status::Detected).await;
    world.until_head().await;
    assert_eq!(
        world.invoice(second).await.invoice.status(),
        Status::Detected,
        "nothing settles while frozen"
    );
    world.app().store.write(|tx| app::features::watch::thaw(tx, crate::world::CHAIN)).await.unwrap();
    world.chain.mine();
    world.until_status(second, Status::Settled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_with_the_next_block() {
    let mut world = World::new(Settings::default()).await;
    world.chain.mine_n(4);
    world.until_head().await;
    world.crash();
    let last = world.chain.head().number;
    world.faces.iter().for_each(|face| face.provider().clear_requests());
    world.chain.mine_n(3);
    world.start().await;
    world.until_head().await;
    let asked: Vec<u64> = world
        .faces
        .iter()
        .flat_map(|face| face.provider().calls())
        .filter_map(|call| {
            let number = call.params.get(0)?.as_str()?.strip_prefix("0x")?.to_owned();
            u64::from_str_radix(&number, 16).ok().filter(|_| number.len() < 16)
        })
        .collect();
    assert_eq!(asked.iter().min(), Some(&(last + 1)), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn money_from_another_payer_waits_for_a_person() {
    let world = World::new(Settings::default()).await;
    let to = recipient(18);
    let mut wanted = world.wanted(to, 10);
    wanted.payer = Some(parse_address("0x00000000000000000000000000000000000000ff").unwrap());
    let id = world.create(wanted).await;
    world.pay(to, 10);
    world.chain.mine_n(2);
    world.until_head().await;
    assert_eq!(world.invoice(id).await.invoice.status(), Status::Open);
    let unmatched = world
        .app()
        .store
        .read(|query| {
            durable::store::payment::list(query, &durable::store::payment::Filter::default(), None, 10)
        })
        .await
        .unwrap();
    assert_eq!(unmatched[0].matching.as_str(), "other_payer");
    let payment = unmatched[0].id;
    let row = world
        .app()
        .store
        .write(move |tx| app::features::payment::assign(tx, payment, id, false))
        .await
        .unwrap();
    assert_eq!(row.matching, Matching::Assigned(id));
    world.until_status(id, Status::Settled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disputed_claim_freezes_only_what_it_touches_until_evidence_closes_it() {
    let chain = devchain::Config { opaque_receipts_root: true, ..devchain::Config::default() };
    let settings = Settings { root_mode: "none", confirmations: "1", chain, ..Settings::default() };
    let world = World::new(settings).await;
    let (touched, other) = (recipient(50), recipient(51));
    let first = world.create(world.wanted(touched, 10)).await;
    let second = world.create(world.wanted(other, 20)).await;
    world.until_head().await;
    let next = world.chain.head().number + 1;
    world.faces[0].provider().set_faults(Faults {
        forge_logs: vec![ForgedLog {
            block: next,
            transaction: None,
            token: CONTRACTS.dollar,
            from: recipient(99),
            to: touched,
            value: U256::from(10_u8),
        }],
        reach: Reach::Both,
        ..Faults::default()
    });
    world.pay(other, 20);
    world.chain.mine();
    let settled = world.until_status(second, Status::Settled).await;
    assert_eq!(settled.invoice.paid.confirmed, Amount::from(20));
    assert_eq!(world.payments(second).await[0].level, EvidenceLevel::Quorum);
    assert_eq!(world.invoice(first).await.invoice.status(), Status::Open, "one group is not enough");

    // Real money for the touched invoice is seen, and waits for the dispute to be decided.
    world.pay(touched, 10);
    world.chain.mine();
    world.until_status(first, Status::Detected).await;
    world.until_head().await;
    assert_eq!(world.invoice(first).await.invoice.status(), Status::Detected);
    world.chain.mine_n(10);
    world.until_head().await;
    world
        .until("the claim to be denied at a finalized block", async || {
            world.chain.mine();
            let open =
                world.app().store.read(|query| durable::store::claim::list_open(query, crate::world::CHAIN));
            open.await.unwrap().is_empty().then_some(())
        })
        .await;
    world.chain.mine();
    let settled = world.until_status(first, Status::Settled).await;
    assert_eq!(settled.invoice.paid.confirmed, Amount::from(10));
}

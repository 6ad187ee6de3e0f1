//! Ways in which money could go to the wrong invoice, be counted too early, or never be found.

use std::sync::Arc;

use alloy_primitives::{Address, B256, U256, hex};
use app::compose::{App, Ports};
use app::features::{endpoint, evidence};
use app::ledger::{self, Sighted};
use app::{config, reactions};
use devchain::token::CONTRACTS;
use devchain::{Faults, ForgedLog, HttpStatus, Reach, Replay};
use domain::chain::{
    Asset, BlockRef, Confirmations, EvidenceLevel, Heights, Transfer, TransferKey, parse_address,
};
use domain::chance::Chance;
use domain::event::EventType;
use domain::id::InvoiceId;
use domain::invoice::Status;
use domain::money::Amount;
use domain::payment::Stage;
use domain::time::{Clock, Timestamp};
use durable::store::claim::{self, ClaimRow};
use ed25519_dalek::{Signer, SigningKey};
use futures::future::BoxFuture;
use outside::chain::{Call, Rpc, RpcError};
use outside::clock::SystemClock;
use serde_json::value::RawValue;
use tokio::sync::{Notify, watch};

use crate::world::{CHAIN, Program, Settings, World, dollar, recipient};

fn nobody() -> Address {
    parse_address("0x00000000000000000000000000000000000000ff").unwrap()
}

fn cut_off(world: &World, cut: bool) {
    let dead = Faults { status: Some(HttpStatus { code: 500, retry_after_secs: None }), ..Faults::default() };
    for face in &world.faces {
        face.provider().set_faults(if cut { dead.clone() } else { Faults::default() });
    }
}

/// The second part of a payment that began at an invoice's own recipient belongs to nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_begun_payment_does_not_settle_a_newer_invoice() {
    let world = World::new(Settings::default()).await;
    let to = recipient(100);
    let alice = world.create(world.wanted(to, 100)).await;
    world.pay(to, 40);
    world.chain.mine_n(2);
    world.until_status(alice, Status::Confirmed).await;
    let bob = world.create(world.wanted(to, 60)).await;
    world.pay(to, 60);
    world.chain.mine_n(3);
    world.until_head().await;
    assert_eq!(
        world.invoice(bob).await.invoice.status(),
        Status::Open,
        "Alice's second part settled Bob's invoice; Alice stands at {}",
        world.invoice(alice).await.invoice.status()
    );
}

/// A late payment at a shared recipient must not settle an equal invoice that was made after the first one closed.
#[tokio::test(flavor = "multi_thread")]
async fn money_for_an_expired_invoice_does_not_settle_its_successor_in_the_slot() {
    let world = World::new(Settings::default()).await;
    let to = recipient(101);
    let mut wanted = world.wanted(to, 10);
    wanted.expires_at = Timestamp::from_seconds(world.chain.head().timestamp + 3);
    let alice = world.create(wanted).await;
    world.chain.mine_n(3);
    world.until_status(alice, Status::Expired).await;
    let bob = world.create(world.wanted(to, 10)).await;
    world.pay(to, 10);
    world.chain.mine_n(3);
    world.until_head().await;
    assert_eq!(
        world.invoice(bob).await.invoice.status(),
        Status::Open,
        "it fits two invoices: a person decides"
    );
    assert!(world.events().await.iter().any(|event| event.kind == EventType::PaymentAmbiguous));
}

/// An invoice that asks for finality is not settled by claimed earlier money that is merely two blocks deep.
#[tokio::test(flavor = "multi_thread")]
async fn claimed_earlier_money_is_confirmed_by_the_invoices_own_rule() {
    let chain = devchain::Config { finalized_lag: 200, safe_lag: 100, ..devchain::Config::default() };
    let world = World::new(Settings { chain, ..Settings::default() }).await;
    let to = recipient(102);
    let mut first = world.wanted(to, 99);
    first.payer = Some(nobody());
    world.create(first).await;
    world.pay(to, 30);
    world.chain.mine_n(3);
    world.until_head().await;
    let mut wanted = world.wanted(to, 30);
    wanted.payer = Some(world.chain.account(1).address());
    wanted.confirmations = Confirmations::Finalized;
    let id = world.create(wanted).await;
    world.chain.mine();
    world.until_head().await;
    assert_eq!(world.invoice(id).await.invoice.status(), Status::Detected, "nothing is finalized yet");
}

/// Dust of others does not hide what the named payer paid.
#[tokio::test(flavor = "multi_thread")]
async fn dust_does_not_hide_the_named_payers_earlier_money() {
    let world = World::new(Settings::default()).await;
    let to = recipient(103);
    let mut first = world.wanted(to, 99);
    first.payer = Some(nobody());
    world.create(first).await;
    for _ in 0..100 {
        world.chain.send_token(CONTRACTS.dollar, 2, to, U256::from(1_u8)).unwrap();
        world.chain.mine();
    }
    world.pay(to, 30);
    world.chain.mine_n(2);
    world.until_head().await;
    let mut wanted = world.wanted(to, 30);
    wanted.payer = Some(world.chain.account(1).address());
    let id = world.create(wanted).await;
    assert_eq!(world.invoice(id).await.invoice.paid.seen, Amount::from(30));
}

/// A transaction that comes back with other contents (a contract that looks at the block it is in) pays what it pays now.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_comes_back_to_somebody_else_is_not_counted_for_the_first() {
    let world = World::new(Settings::default()).await;
    let (one, other) = (recipient(104), recipient(105));
    let first = world.create(world.wanted(one, 10)).await;
    let second = world.create(world.wanted(other, 10)).await;
    let shown = |asset: Asset, recipient, block: u64| Sighted {
        transfer: Transfer {
            key: TransferKey { chain: CHAIN, tx: B256::repeat_byte(7), ordinal: 0 },
            block: BlockRef { number: block, hash: B256::repeat_byte(8) },
            time: Timestamp::EPOCH,
            tx_index: 0,
            log_index: Some(0),
            asset,
            payer: nobody(),
            recipient,
            amount: Amount::from(10),
        },
        level: EvidenceLevel::Verified,
        evidence: Vec::new(),
    };
    for (asset, to) in [(dollar(), other), (Asset::Token(CONTRACTS.plain), one)] {
        let (before, after) = (shown(dollar(), one, 1_000), shown(asset, to, 1_001));
        world
            .app()
            .store
            .write(move |tx| {
                ledger::see(tx, &before, Confirmations::Depth(2))?;
                ledger::revert_above(tx, CHAIN, 999)?;
                ledger::see(tx, &after, Confirmations::Depth(2))?;
                Ok::<_, ledger::LedgerError>(())
            })
            .await
            .unwrap();
        assert_eq!(world.invoice(first).await.invoice.paid.seen, Amount::ZERO, "{asset} to {to}");
        world.app().store.write(|tx| ledger::revert_above(tx, CHAIN, 999)).await.unwrap();
    }
    assert_eq!(world.invoice(second).await.invoice.status(), Status::Open);
}

/// Money of another kind of business that moved before the invoice was made, while no provider could be reached, is
/// not a part of the invoice.
#[tokio::test(flavor = "multi_thread")]
async fn money_that_moved_during_an_outage_before_the_invoice_was_made_is_earlier_money() {
    let world = World::new(Settings::default()).await;
    let to = recipient(106);
    world.until_head().await;
    cut_off(&world, true);
    world.pay(to, 30);
    world.chain.mine_n(3);
    world
        .until("the outage to be noticed", async || {
            world.cursor().await.filter(|cursor| cursor.stalled.is_some())
        })
        .await;
    let id = world.create(world.wanted(to, 100)).await;
    cut_off(&world, false);
    world.until_head().await;
    world.pay(to, 70);
    world.chain.mine_n(3);
    world.until_head().await;
    assert_eq!(world.invoice(id).await.invoice.paid.seen, Amount::from(70));
}

/// A provider whose questions for the head can be held back.
struct Gated {
    inner: Arc<dyn Rpc>,
    closed: watch::Receiver<bool>,
    waiting: Arc<Notify>,
}

impl Rpc for Gated {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Box<RawValue>, RpcError>> {
        Box::pin(async move {
            if call.params.contains("latest") && *self.closed.borrow() {
                self.waiting.notify_one();
                self.closed.clone().wait_for(|closed| !closed).await.unwrap();
            }
            self.inner.call(call).await
        })
    }
}

async fn within<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let clock = SystemClock::new();
    for _ in 0..600 {
        if let Some(found) = ask().await {
            return found;
        }
        clock.sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("waited in vain for {what}");
}

/// An invoice in a token that nobody watched, made and paid while a look at the chain was under way.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_invoice_of_a_token_is_paid_while_a_block_is_being_read() {
    let world = World::stopped(Settings::default()).await;
    let mut settings = world.config();
    for provider in &mut settings.chains[0].providers {
        provider.timeout = std::time::Duration::from_secs(10);
    }
    let mut ports = Ports::system(&settings).unwrap();
    let (close, closed) = watch::channel(false);
    let (waiting, real) = (Arc::new(Notify::new()), Arc::clone(&ports.rpc));
    let rung = Arc::clone(&waiting);
    ports.rpc = Arc::new(move |provider: &config::Provider| {
        let gated = Gated { inner: real(provider), closed: closed.clone(), waiting: Arc::clone(&waiting) };
        Arc::new(gated) as Arc<dyn Rpc>
    });
    let app = App::start(settings, ports).await.unwrap();
    let head = world.chain.head().number;
    let reached = async |number: u64| {
        within("the head", async || {
            let cursor =
                app.store.read(|query| durable::store::block::find_cursor(query, CHAIN)).await.unwrap();
            cursor.filter(|cursor| cursor.block.number >= number)
        })
        .await;
    };
    reached(head).await;
    close.send(true).unwrap();
    rung.notified().await;
    let mut wanted = world.wanted(recipient(107), 10);
    wanted.asset = Asset::Token(CONTRACTS.plain);
    let row = app.store.write(move |tx| app::features::invoice::create(tx, &wanted)).await.unwrap();
    world.chain.send_token(CONTRACTS.plain, 1, recipient(107), U256::from(10_u8)).unwrap();
    world.chain.mine();
    close.send(false).unwrap();
    world.chain.mine_n(3);
    reached(world.chain.head().number).await;
    let id = row.invoice.id;
    within("the payment to be found", async || {
        let row =
            app.store.read(move |query| durable::store::invoice::find(query, id)).await.unwrap().unwrap();
        (!row.invoice.paid.seen.is_zero()).then_some(())
    })
    .await;
}

/// What is remembered as paid to a stranger can also be read again.
#[tokio::test(flavor = "multi_thread")]
async fn money_is_found_as_far_back_as_the_configuration_says() {
    let world = World::stopped(Settings::default()).await;
    let mut settings = world.config();
    settings.chains[0].lookback_blocks = 1_000;
    let mut program = Program::new().await;
    program.start(settings).await.unwrap();
    let to = recipient(108);
    world.pay(to, 10);
    world.chain.mine_n(400);
    program.until_block(world.chain.head().number).await;
    let id = program.create(world.wanted(to, 10)).await;
    program.until_status(id, Status::Settled).await;
}

/// A reorg that takes the very first block that was read is survived.
#[tokio::test(flavor = "multi_thread")]
async fn a_reorg_of_the_first_block_does_not_stop_the_watcher_for_ever() {
    let world = World::stopped(Settings::default()).await;
    let mut settings = world.config();
    world.chain.mine_n(3);
    settings.chains[0].start_block = None;
    settings.chains[0].lookback_blocks = 0;
    let mut program = Program::new().await;
    program.start(settings).await.unwrap();
    program.until_block(world.chain.head().number).await;
    world.chain.reorg(1, Replay::Nothing).unwrap();
    world.chain.mine_n(3);
    program.until_block(world.chain.head().number).await;
}

/// Anybody can sign a bundle that holds no payment at all.
#[test]
fn a_bundle_without_a_payment_proves_nothing() {
    let key = SigningKey::from_bytes(&[9; 32]);
    let id = InvoiceId::mint(Timestamp::EPOCH, &Chance::from_seed(1));
    let body = format!(
        r#"{{"version":1,"issued_at":{},"key":"ed25519:{}","invoice_id":"{id}","payments":[]}}"#,
        serde_json::to_string(&Timestamp::EPOCH).unwrap(),
        hex::encode(key.verifying_key().to_bytes()),
    );
    let signature = key.sign(format!("quittance evidence bundle v1\n{body}").as_bytes());
    let bundle = format!(r#"{{"body":{body},"signature":"{}"}}"#, hex::encode(signature.to_bytes()));
    let checked = evidence::check(bundle.as_bytes(), &[], &[]);
    assert_eq!(checked.map(|_| ()), Err(evidence::Rejected::Empty));
}

/// One transfer listed twice is not two payments.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_lists_a_transfer_twice_is_rejected() {
    let world = World::new(Settings { confirmations: "1", ..Settings::default() }).await;
    let to = recipient(109);
    let id = world.create(world.wanted(to, 7)).await;
    world.pay(to, 7);
    let anchor = world.chain.mine();
    world.until_status(id, Status::Settled).await;
    let bundle = world.app().store.write(move |tx| evidence::bundle(tx, id)).await.unwrap();
    let text = String::from_utf8(bundle).unwrap();
    let (body, _) = text.strip_prefix(r#"{"body":"#).unwrap().rsplit_once(r#","signature":"#).unwrap();
    let (head, part) = body.split_once(r#""payments":["#).unwrap();
    let part = part.strip_suffix("]}").unwrap();
    let key = SigningKey::from_bytes(&[9; 32]);
    let public = hex::encode(key.verifying_key().to_bytes());
    let at = head.find("ed25519:").unwrap() + "ed25519:".len();
    let head = format!("{}{public}{}", &head[..at], &head[at + 64..]);
    let body = format!(r#"{head}"payments":[{part},{part}]}}"#);
    let signature = key.sign(format!("quittance evidence bundle v1\n{body}").as_bytes());
    let forged = format!(r#"{{"body":{body},"signature":"{}"}}"#, hex::encode(signature.to_bytes()));
    let outcome = evidence::check(forged.as_bytes(), &[anchor], &[]);
    assert!(outcome.is_err(), "the same transfer counted {} times", outcome.unwrap().payments.len());
}

/// While it is disputed whether an invoice was paid in time, nobody is told that it expired.
#[tokio::test(flavor = "multi_thread")]
async fn an_invoice_does_not_expire_while_its_payment_is_disputed() {
    let chain =
        devchain::Config { opaque_receipts_root: true, finalized_lag: 200, ..devchain::Config::default() };
    let settings = Settings { root_mode: "none", confirmations: "1", chain, ..Settings::default() };
    let world = World::new(settings).await;
    let to = recipient(110);
    let mut wanted = world.wanted(to, 10);
    wanted.expires_at = Timestamp::from_seconds(world.chain.head().timestamp + 3);
    let id = world.create(wanted).await;
    world.until_head().await;
    world.faces[0].provider().set_faults(Faults {
        forge_logs: vec![ForgedLog {
            block: world.chain.head().number + 1,
            transaction: None,
            token: CONTRACTS.dollar,
            from: recipient(99),
            to,
            value: U256::from(10_u8),
        }],
        reach: Reach::Both,
        ..Faults::default()
    });
    world.chain.mine_n(4);
    world.until_head().await;
    let open = world.app().store.read(|query| claim::list_open(query, CHAIN)).await.unwrap();
    assert_eq!(open.len(), 1, "the claim is disputed");
    assert_ne!(world.invoice(id).await.invoice.status(), Status::Expired);
}

/// Thousands of made-up logs in every block, by one of three providers, hold up nobody's payment and leave nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_forged_logs_stops_nothing() {
    let chain = devchain::Config { opaque_receipts_root: true, ..devchain::Config::default() };
    let settings = Settings { root_mode: "none", confirmations: "1", chain, ..Settings::default() };
    let world = World::new(settings).await;
    let to = recipient(113);
    world.until_head().await;
    let next = world.chain.head().number + 1;
    let forged = (next..next + 3).flat_map(|block| {
        (0..2_000_u64).map(move |n| ForgedLog {
            block,
            transaction: None,
            token: CONTRACTS.dollar,
            from: recipient(99),
            // The address of an invoice is no secret: the worst liar claims payments to that.
            to: if n % 2 == 0 { to } else { Address::from_word(B256::from(U256::from(n + 0xf_0000))) },
            value: U256::from(10_u8),
        })
    });
    let faults = Faults { forge_logs: forged.collect(), reach: Reach::Both, ..Faults::default() };
    world.faces[0].provider().set_faults(faults);
    let mut invoices = Vec::new();
    for amount in 20..23 {
        invoices.push((world.create(world.wanted(to, amount)).await, amount));
        world.pay(to, amount);
        world.chain.mine();
    }
    for (id, amount) in invoices {
        let settled = world.until_status(id, Status::Settled).await;
        assert_eq!(settled.invoice.paid.confirmed, Amount::from(amount));
    }
    let open = world.app().store.read(|query| claim::list_open(query, CHAIN)).await.unwrap();
    assert!(open.is_empty(), "{} claims of a proven forger were kept", open.len());
}

/// What was claimed of somebody who was nobody then is asked about once it concerns an invoice.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_to_a_stranger_is_disputed_once_the_stranger_is_ours() {
    let chain =
        devchain::Config { opaque_receipts_root: true, finalized_lag: 200, ..devchain::Config::default() };
    let settings = Settings { root_mode: "none", confirmations: "1", chain, ..Settings::default() };
    let world = World::new(settings).await;
    let to = recipient(114);
    world.until_head().await;
    world.pay(recipient(115), 5);
    world.faces[0].provider().set_faults(Faults {
        forge_logs: vec![ForgedLog {
            block: world.chain.head().number + 1,
            transaction: None,
            token: CONTRACTS.dollar,
            from: recipient(99),
            to,
            value: U256::from(10_u8),
        }],
        reach: Reach::Both,
        ..Faults::default()
    });
    world.chain.mine();
    world.until_head().await;
    let open = world.app().store.read(|query| claim::list_open(query, CHAIN)).await.unwrap();
    assert!(open.is_empty(), "it concerned nobody: {open:?}");
    world.create(world.wanted(to, 10)).await;
    world
        .until("the claim to be disputed", async || {
            let touched = world.app().store.read(move |query| claim::touches(query, CHAIN, &to));
            touched.await.unwrap().then_some(())
        })
        .await;
}

/// However many claims a liar opens, each is asked about until it is closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_behind_a_thousand_others_is_still_asked_about() {
    let world = World::new(Settings::default()).await;
    world.until_head().await;
    let made_up = |number: u64| Transfer {
        key: TransferKey { chain: CHAIN, tx: B256::from(U256::from(number)), ordinal: 0 },
        block: BlockRef { number, hash: B256::repeat_byte(3) },
        time: Timestamp::EPOCH,
        tx_index: 0,
        log_index: Some(0),
        asset: dollar(),
        payer: nobody(),
        recipient: recipient(111),
        amount: Amount::from(1),
    };
    let last = made_up(1_001);
    world
        .app()
        .store
        .write(move |tx| {
            for number in 1..=1_001 {
                let row = ClaimRow {
                    transfer: made_up(number),
                    claimants: "face0".to_owned(),
                    opened_at: Timestamp::EPOCH,
                    closed_at: None,
                    verdict: None,
                };
                claim::open(tx, &row)?;
            }
            reactions::recheck(tx, &last.key)
        })
        .await
        .unwrap();
    let job = world
        .until("the claim to be asked about once", async || {
            let jobs = world.app().store.read(|query| durable::engine::list(query, None, 100)).await.unwrap();
            match jobs.into_iter().find(|job| job.kind == "recheck_claim") {
                Some(job) if job.due_at > world.clock.now() => Some(Some(job)),
                Some(_) => None,
                None => Some(None),
            }
        })
        .await;
    let open = world.app().store.read(|query| claim::touches(query, CHAIN, &recipient(111))).await.unwrap();
    assert!(!open || job.is_some(), "the claim is open, and nothing will ever ask about it again");
}

/// A payment that comes back after a reorg, in a block after the making of an invoice that names its payer, is that invoice's.
#[tokio::test(flavor = "multi_thread")]
async fn a_returned_unmatched_payment_can_still_find_its_invoice() {
    let world = World::new(Settings::default()).await;
    let to = recipient(112);
    // Two invoices make the recipient known and shared.
    for amount in [98, 99] {
        world.create(world.wanted(to, amount)).await;
    }
    world.until_head().await;
    let transfer = |block: u64| Sighted {
        transfer: Transfer {
            key: TransferKey { chain: CHAIN, tx: B256::repeat_byte(9), ordinal: 0 },
            block: BlockRef { number: block, hash: B256::repeat_byte(8) },
            time: Timestamp::EPOCH,
            tx_index: 0,
            log_index: Some(0),
            asset: dollar(),
            payer: world.chain.account(1).address(),
            recipient: to,
            amount: Amount::from(10),
        },
        level: EvidenceLevel::Verified,
        evidence: Vec::new(),
    };
    let (before, after) = (transfer(1_000), transfer(1_001));
    world
        .app()
        .store
        .write(move |tx| {
            ledger::see(tx, &before, Confirmations::Depth(2))?;
            ledger::revert_above(tx, CHAIN, 999)?;
            Ok::<_, ledger::LedgerError>(())
        })
        .await
        .unwrap();
    let mut wanted = world.wanted(to, 10);
    wanted.payer = Some(world.chain.account(1).address());
    let id = world.create(wanted).await;
    world
        .app()
        .store
        .write(move |tx| {
            ledger::see(tx, &after, Confirmations::Depth(2))?;
            ledger::advance(tx, CHAIN, Heights { head: 1_010, ..Heights::default() })?;
            Ok::<_, ledger::LedgerError>(())
        })
        .await
        .unwrap();
    assert_eq!(world.invoice(id).await.invoice.status(), Status::Settled);
    assert_eq!(world.payments(id).await[0].stage, Stage::Confirmed);
}

/// Two rotations within a day: what was valid an hour ago still signs.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_rotation_does_not_cut_off_the_first_secret() {
    let world = World::new(Settings { confirmations: "1", ..Settings::default() }).await;
    let endpoint = world.subscribe().await;
    for _ in 0..2 {
        world.app().store.write(move |tx| endpoint::rotate_secret(tx, endpoint)).await.unwrap();
    }
    let to = recipient(113);
    world.create(world.wanted(to, 7)).await;
    world.pay(to, 7);
    world.chain.mine();
    world.merchant.until_accepted(1).await;
    assert_eq!(world.merchant.arrivals()[0].signature, sim::receiver::Signature::Valid);
}

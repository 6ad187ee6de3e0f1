//! A judge that we did not write: three real nodes with one chain, each behind a provider that can fail or lie.
//!
//! What is paid is what the nodes themselves say the recipients hold.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, U256};
use app::compose::ComposeError;
use domain::chain::{Asset, Confirmations, EvidenceLevel};
use domain::event::EventType::{
    InvoiceDetected, InvoiceReverted, InvoiceSettled, QuorumLost, QuorumRestored,
};
use domain::id::InvoiceId;
use domain::invoice::Status;
use domain::money::Amount;
use domain::payment::Stage;
use durable::store::claim::{self, ClaimRow};
use outside::chain::ProviderStatus;

use app::features::invoice::NewInvoice;

use crate::nodes::Nodes;
use crate::proxy::{Faults, Proxy};
use crate::world::{CHAIN, Program, Settings, configuration, recipient};

/// Three nodes, a provider before each, and the program that asks the providers.
struct Court {
    nodes: Nodes,
    providers: Vec<Proxy>,
    settings: Settings,
    program: Program,
}

impl Deref for Court {
    type Target = Program;
    fn deref(&self) -> &Program {
        &self.program
    }
}

/// How long the honest providers take where somebody else has to be the fastest.
const SLOWER: Duration = Duration::from_millis(40);

fn with_roots() -> Settings {
    Settings::default()
}

fn without_roots() -> Settings {
    Settings { root_mode: "none", ..Settings::default() }
}

impl Court {
    async fn stopped(settings: Settings) -> Self {
        let (nodes, program) = (Nodes::start(3).await, Program::new().await);
        let mut providers = Vec::new();
        for index in 0..nodes.count() {
            providers.push(Proxy::before(nodes.rpc(index), Arc::clone(&program.clock)).await);
        }
        Self { nodes, providers, settings, program }
    }

    async fn open(settings: Settings) -> Self {
        let mut court = Self::stopped(settings).await;
        court.start().await.unwrap();
        court.caught_up().await;
        court
    }

    async fn start(&mut self) -> Result<(), ComposeError> {
        let urls: Vec<String> = self.providers.iter().map(Proxy::url).collect();
        let text = configuration(&self.settings, &urls, self.nodes.token);
        let config = self.program.parse(&text);
        self.program.start(config).await
    }

    async fn caught_up(&self) {
        self.until_block(self.nodes.height().await).await;
    }

    /// An invoice over the token, for a recipient of its own.
    async fn bill(&self, to: Address, amount: u64) -> InvoiceId {
        self.bill_in(Asset::Token(self.nodes.token), to, U256::from(amount)).await
    }

    async fn bill_in(&self, asset: Asset, to: Address, amount: U256) -> InvoiceId {
        self.create(NewInvoice {
            chain: CHAIN,
            asset,
            amount: Amount::new(amount),
            recipient: to,
            payer: None,
            confirmations: self.settings.confirmations.parse().unwrap_or(Confirmations::Depth(2)),
            expires_at: self.clock.now() + Duration::from_secs(3600),
            reference: None,
            metadata: None,
        })
        .await
    }

    async fn status(&self, id: InvoiceId) -> Status {
        self.invoice(id).await.invoice.status()
    }

    async fn last_block(&self) -> u64 {
        self.cursor().await.unwrap().block.number
    }

    async fn disputes(&self) -> Vec<ClaimRow> {
        self.app().store.read(|query| claim::list_open(query, CHAIN)).await.unwrap()
    }

    fn provider(&self, index: usize) -> ProviderStatus {
        self.app().chains[&CHAIN].providers().swap_remove(index)
    }

    /// Waits until each of these providers was caught at something.
    async fn until_caught(&self, indices: &[usize]) {
        self.until("liars to be caught", async || {
            indices.iter().all(|index| !self.provider(*index).faults.is_empty()).then_some(())
        })
        .await;
    }

    /// Lets the program look at the chain `times` more times. What a look found is recorded before the next begins.
    async fn look(&self, times: u64) {
        let asked = || self.providers.iter().map(Proxy::heads_asked).collect::<Vec<_>>();
        let before = asked();
        self.until("more looks at the chain", async || {
            asked().iter().zip(&before).any(|(now, before)| now - before > times).then_some(())
        })
        .await;
    }

    fn heal_all(&self) {
        self.providers.iter().for_each(Proxy::heal);
    }
}

/// What became of an invoice, without what differs from run to run.
#[derive(Debug, PartialEq, Eq)]
struct Settlement {
    status: Status,
    confirmed: String,
    settled_by: Option<String>,
    payments: Vec<(String, i64, u64, String, String, EvidenceLevel, Stage)>,
    held: U256,
}

/// One story of five invoices, told to providers of whom some may be at fault from the beginning to the end.
async fn settlements(faults: [Faults; 3]) -> BTreeMap<&'static str, Settlement> {
    let mut court = Court::open(with_roots()).await;
    for (provider, faults) in court.providers.iter().zip(&faults) {
        provider.set(faults.clone());
    }
    let coin = U256::from(12_345_678_901_234_567_890_u128);
    let to = |number| recipient(number);
    let whole = court.bill(to(1), 100).await;
    let parts = court.bill(to(2), 250).await;
    let over = court.bill(to(3), 7).await;
    let unpaid = court.bill(to(4), 9).await;
    let native = court.bill_in(Asset::Native, to(5), coin).await;
    court.nodes.pay(to(1), 100).await;
    court.nodes.mine().await;
    court.nodes.pay(to(2), 200).await;
    court.nodes.pay(to(3), 8).await;
    court.nodes.mine().await;
    court.nodes.pay(to(2), 50).await;
    court.nodes.pay_native(to(5), coin).await;
    court.nodes.mine_n(3).await;
    for id in [whole, parts, over, native] {
        court.until_status(id, Status::Settled).await;
    }
    court.caught_up().await;

    let lied: u64 = court.providers.iter().map(Proxy::lies).sum();
    let lying = faults.iter().position(|faults| faults.alter.is_some());
    assert_eq!(lied > 0, lying.is_some());
    if let Some(index) = lying {
        court.until_caught(&[index]).await;
    }
    let mut settlements = BTreeMap::new();
    let invoices =
        [("whole", whole), ("parts", parts), ("over", over), ("unpaid", unpaid), ("native", native)];
    for (name, id) in invoices {
        let row = court.invoice(id).await;
        let mut payments = court.payments(id).await;
        payments.sort_by_key(|payment| (payment.transfer.block.number, payment.transfer.tx_index));
        settlements.insert(
            name,
            Settlement {
                status: row.invoice.status(),
                confirmed: row.invoice.paid.confirmed.to_string(),
                settled_by: row.settled_by.map(|tx| tx.to_string()),
                payments: payments
                    .iter()
                    .map(|payment| {
                        let (transfer, block) = (&payment.transfer, payment.transfer.block);
                        let amount = transfer.amount.to_string();
                        let (tx, hash) = (transfer.key.tx.to_string(), block.hash.to_string());
                        // How far behind the head `final` is told of is a matter of moments.
                        let stage = payment.stage.min(Stage::Confirmed);
                        (tx, transfer.key.ordinal, block.number, hash, amount, payment.level, stage)
                    })
                    .collect(),
                held: match row.invoice.asset {
                    Asset::Native => court.nodes.native_balance(row.invoice.recipient).await,
                    Asset::Token(_) => court.nodes.balance(row.invoice.recipient).await,
                },
            },
        );
    }
    settlements
}

#[tokio::test(flavor = "multi_thread")]
async fn one_down_one_hanging_or_one_lying_settle_the_same() {
    let honest = settlements(Default::default()).await;
    for (name, settlement) in &honest {
        assert_eq!(settlement.confirmed, settlement.held.to_string(), "{name}: what the nodes say was paid");
        let expected = if *name == "unpaid" { Status::Open } else { Status::Settled };
        assert_eq!(settlement.status, expected, "{name}");
        assert!(settlement.payments.iter().all(|payment| payment.5 == EvidenceLevel::Verified));
    }
    assert_eq!(honest["parts"].payments.len(), 2);
    let slow = || Faults { delay: SLOWER, ..Faults::default() };
    let down = Faults { down: true, ..Faults::default() };
    let hanging = Faults { hang: true, ..Faults::default() };
    let failing = Faults { status: Some(503), ..Faults::default() };
    let lying = Faults { alter: Some((recipient(1), U256::from(1_000_000_u32))), ..Faults::default() };
    assert_eq!(settlements([down, slow(), slow()]).await, honest, "one down");
    assert_eq!(settlements([slow(), hanging, slow()]).await, honest, "one hanging");
    assert_eq!(settlements([slow(), slow(), failing]).await, honest, "one failing");
    assert_eq!(settlements([lying, slow(), slow()]).await, honest, "one lying");
}

/// The ways in which two of three providers can miss the same payment.
fn blindness(to: Address) -> [Faults; 2] {
    [Faults { empty: true, ..Faults::default() }, Faults { omit: Some(to), ..Faults::default() }]
}

#[tokio::test(flavor = "multi_thread")]
async fn with_checkable_roots_one_honest_provider_proves_what_two_others_hide() {
    let mut court = Court::open(with_roots()).await;
    for (number, faults) in (20_u8..).zip(blindness(recipient(21))) {
        let to = recipient(number);
        let id = court.bill(to, 10).await;
        court.providers[0].set(faults.clone());
        court.providers[1].set(faults);
        // The honest one is the last to be asked.
        court.providers[2].set(Faults { delay: SLOWER, ..Faults::default() });
        let before: Vec<u64> = court.providers.iter().map(Proxy::lies).collect();
        court.nodes.pay(to, 10).await;
        court.nodes.mine_n(2).await;
        court.until_status(id, Status::Settled).await;
        let after: Vec<u64> = court.providers.iter().map(Proxy::lies).collect();
        assert!(
            before[0] < after[0] && before[1] < after[1] && before[2] == after[2],
            "{before:?} {after:?}"
        );
        assert_eq!(court.payments(id).await[0].level, EvidenceLevel::Verified);
        assert_eq!(court.nodes.balance(to).await, U256::from(10_u8));
    }
    court.until_caught(&[0, 1]).await;
    assert!(court.provider(2).faults.is_empty(), "{:?}", court.provider(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_roots_nothing_wrong_is_accepted_and_the_payment_is_found_afterwards() {
    let hidden = recipient(31);
    // Both at once: a disputed claim is asked about again only now and then.
    let [empty, omitting] = blindness(hidden);
    futures::join!(Box::pin(hide_and_heal(hidden, empty)), Box::pin(hide_and_heal(hidden, omitting)));
}

async fn hide_and_heal(hidden: Address, faults: Faults) {
    let mut court = Court::open(without_roots()).await;
    let shown = recipient(41);
    let (of_hidden, of_shown) = (court.bill(hidden, 10).await, court.bill(shown, 20).await);
    let stood_at = court.last_block().await;
    court.providers[0].set(faults.clone());
    court.providers[1].set(faults.clone());
    court.nodes.pay(hidden, 10).await;
    court.nodes.pay(shown, 20).await;
    let paid_in = court.nodes.mine().await;
    court.nodes.mine().await;

    // Either the cursor waits below the block, or the payment is a named dispute.
    let disputed = court
        .until("the contradiction to be seen", async || {
            let claims = court.disputes().await;
            let cursor = court.cursor().await.unwrap();
            let named = claims.iter().any(|claim| claim.transfer.recipient == hidden);
            (named || cursor.stalled.is_some()).then_some(claims)
        })
        .await;
    court.look(5).await;
    assert_eq!(court.status(of_hidden).await, Status::Open, "{faults:?}");
    assert!(court.payments(of_hidden).await.is_empty());
    if disputed.is_empty() {
        assert_eq!(court.last_block().await, stood_at);
    } else {
        let mut claimed: Vec<_> =
            disputed.iter().map(|claim| (claim.transfer.recipient, claim.transfer.amount)).collect();
        claimed.sort_unstable();
        let both = [(hidden, Amount::from(10)), (shown, Amount::from(20))];
        assert_eq!(claimed, both[..if faults.empty { 2 } else { 1 }], "only what is disputed is frozen");
        assert!(disputed.iter().all(|claim| claim.transfer.block.number == paid_in));
        if !faults.empty {
            court.until_status(of_shown, Status::Settled).await;
        }
    }

    court.heal_all();
    let Court { nodes, program, .. } = &mut court;
    let settled = async {
        for id in [of_hidden, of_shown] {
            program.until_status(id, Status::Settled).await;
        }
    };
    let going_on = async {
        loop {
            program.clock.sleep(Duration::from_secs(1)).await;
            nodes.mine().await;
        }
    };
    tokio::select! {
        () = settled => {}
        () = going_on => unreachable!(),
    }
    for (id, to, amount) in [(of_hidden, hidden, 10_u8), (of_shown, shown, 20)] {
        let payments = court.payments(id).await;
        assert_eq!(payments.len(), 1);
        assert_eq!((payments[0].level, payments[0].transfer.block.number), (EvidenceLevel::Quorum, paid_in));
        assert_eq!(court.nodes.balance(to).await, U256::from(amount));
    }
    assert!(court.last_block().await >= paid_in);
    let left = court.disputes().await;
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_down_and_one_lying_settle_nothing_and_the_state_says_so() {
    for settings in [with_roots(), without_roots()] {
        let mut court = Court::open(settings).await;
        let to = recipient(50);
        let id = court.bill(to, 10).await;
        let stood_at = court.last_block().await;
        court.providers[0].set(Faults { down: true, ..Faults::default() });
        court.providers[1].set(Faults { down: true, ..Faults::default() });
        // Three are paid, and the only one who speaks says ten.
        court.providers[2].set(Faults { alter: Some((to, U256::from(10_u8))), ..Faults::default() });
        court.nodes.pay(to, 3).await;
        court.nodes.mine_n(3).await;
        court
            .until("the loss of the quorum to be seen", async || {
                court.cursor().await.filter(|cursor| cursor.stalled.is_some())
            })
            .await;
        court.look(5).await;
        let cursor = court.cursor().await.unwrap();
        assert_eq!((cursor.block.number, cursor.level), (stood_at, EvidenceLevel::Degraded));
        let said = cursor.stalled.unwrap();
        assert!(said.contains("1 of 2 needed groups answered"), "{said}");
        assert_eq!(court.status(id).await, Status::Open);
        assert_eq!(court.events().await.last().map(|event| event.kind), Some(QuorumLost));

        court.heal_all();
        court.caught_up().await;
        assert_eq!(court.invoice(id).await.invoice.paid.seen, Amount::from(3));
        assert!(court.events().await.iter().any(|event| event.kind == QuorumRestored));
        court.nodes.pay(to, 7).await;
        court.nodes.mine_n(2).await;
        court.until_status(id, Status::Settled).await;
        assert_eq!(court.nodes.balance(to).await, U256::from(10_u8));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lags_abstains() {
    let mut court = Court::open(with_roots()).await;
    let behind = Faults { lag: 3, ..Faults::default() };
    court.providers[0].set(behind.clone());
    let first = court.bill(recipient(60), 10).await;
    court.nodes.pay(recipient(60), 10).await;
    court.nodes.mine_n(2).await;
    court.until_status(first, Status::Settled).await;

    // With two behind, the chain is as long as the second of them sees it.
    court.providers[1].set(behind);
    court.look(3).await;
    let second = court.bill(recipient(61), 20).await;
    court.nodes.pay(recipient(61), 20).await;
    let paid_in = court.nodes.mine_n(2).await - 1;
    court.look(5).await;
    assert!(court.last_block().await < paid_in);
    assert_eq!(court.status(second).await, Status::Open);
    court.nodes.mine_n(2).await;
    court.until_block(paid_in).await;
    court.until_status(second, Status::Detected).await;
    court.nodes.mine().await;
    court.until_status(second, Status::Settled).await;
    let stalls = court.events().await.into_iter().filter(|event| event.kind == QuorumLost).count();
    assert_eq!(stalls, 0, "lag is no loss of the quorum");
    assert!(court.app().chains[&CHAIN].providers().iter().all(|provider| provider.faults.is_empty()));
    court.heal_all();
    court.caught_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorg_of_any_depth_takes_away_what_it_took_and_gives_it_back_once() {
    let mut court = Court::open(Settings { confirmations: "1", ..with_roots() }).await;
    let stays = court.bill(recipient(70), 5).await;
    court.nodes.pay(recipient(70), 5).await;
    court.nodes.mine().await;
    court.until_status(stays, Status::Settled).await;
    for depth in 1..=3_u8 {
        let to = recipient(70 + depth);
        let id = court.bill(to, 10).await;
        let (tx, raw) = court.nodes.pay(to, 10).await;
        court.nodes.mine_n(depth.into()).await;
        court.until_status(id, Status::Settled).await;
        court.caught_up().await;

        court.nodes.reorg(depth.into()).await;
        court.until_status(id, Status::Open).await;
        assert_eq!(court.nodes.balance(to).await, U256::ZERO);
        assert!(court.invoice(id).await.invoice.reverted);
        assert_eq!(court.payments(id).await[0].stage, Stage::Reverted);

        court.nodes.send_raw(&raw).await;
        court.nodes.mine().await;
        let settled = court.until_status(id, Status::Settled).await;
        assert_eq!(settled.settled_by, Some(tx));
        assert_eq!(court.nodes.balance(to).await, U256::from(10_u8));
        assert_eq!(court.payments(id).await.len(), 1, "one transfer, one payment");
        assert_eq!(
            court.story(id).await,
            [InvoiceDetected, InvoiceSettled, InvoiceReverted, InvoiceDetected, InvoiceSettled]
        );
    }
    assert_eq!(court.story(stays).await, [InvoiceDetected, InvoiceSettled]);

    // One node alone on a branch of its own takes nothing away.
    let last = court.bill(recipient(75), 10).await;
    court.nodes.pay(recipient(75), 10).await;
    court.nodes.mine().await;
    court.until_status(last, Status::Settled).await;
    court.nodes.reorg_one(0, 1).await;
    court.look(10).await;
    court.until_caught(&[0]).await;
    assert_eq!(court.status(last).await, Status::Settled);
    assert_eq!(court.story(last).await, [InvoiceDetected, InvoiceSettled]);
    assert!(court.cursor().await.unwrap().frozen.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_of_another_chain_is_refused_at_start() {
    let mut court = Court::stopped(with_roots()).await;
    court.providers[1].set(Faults { chain_id: Some(1), ..Faults::default() });
    let name = court.providers[1].url().replace("http://", "");
    match court.start().await {
        Err(ComposeError::Config(lines)) => {
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].contains(&name) && lines[0].contains("chain 1,"), "{lines:?}");
        }
        other => panic!("{other:?}"),
    }
    court.heal_all();
    court.start().await.unwrap();
    court.caught_up().await;
}

//! The reader against a chain in memory whose providers are down, late, wrong or lying.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, B256, U256};
use devchain::token::CONTRACTS;
use devchain::{
    AlteredAmount, Config, Devchain, Face, Faults, ForgedBlock, ForgedLog, ForgedTransfer, HeaderField,
    HeaderLie, HttpStatus, IdFault, LogPick, Reach, ReceiptsLie, Replay, RpcFault, Truncate, serve_face,
};
use domain::chain::{Asset, BlockRef, ChainId, EvidenceLevel, Transfer};
use domain::chance::Chance;
use domain::time::Clock;
use futures::StreamExt;
use outside::chain::{
    ChainProfile, ChainReader, FaultKind, HttpRpc, InvalidQuorum, Progress, ProviderSetup, ProviderState,
    ReaderSetup, RootMode, Stall, StallKind, Watch, verify,
};
use outside::clock::SystemClock;
use outside::http::{AddressPolicy, Client, ClientOptions};

/// A chain, its faces, and a reader that asks them.
pub(crate) struct Net {
    pub(crate) chain: Devchain,
    pub(crate) faces: Vec<Face>,
    pub(crate) reader: ChainReader,
    ring: Vec<BlockRef>,
}

pub(crate) struct Plan<'a> {
    pub(crate) groups: &'a [&'a str],
    pub(crate) quorum: usize,
    pub(crate) mode: RootMode,
    pub(crate) timeout: Duration,
    pub(crate) config: Config,
}

impl Default for Plan<'_> {
    fn default() -> Self {
        Self {
            groups: &["alpha", "beta", "gamma"],
            quorum: 2,
            mode: RootMode::Eth,
            timeout: Duration::from_secs(5),
            config: Config::default(),
        }
    }
}

pub(crate) fn setup(chain: &Devchain, faces: &[Face], plan: &Plan<'_>) -> ReaderSetup {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let http =
        Arc::new(Client::new(ClientOptions::new(AddressPolicy::unrestricted()), Arc::clone(&clock)).unwrap());
    let providers = faces
        .iter()
        .zip(plan.groups)
        .enumerate()
        .map(|(index, (face, group))| {
            let rpc = HttpRpc::new(http.clone(), Arc::clone(&clock), face.url().parse().unwrap());
            let mut setup = ProviderSetup::new(format!("{group}-{index}"), *group, Arc::new(rpc));
            setup.timeout = plan.timeout;
            setup
        })
        .collect();
    ReaderSetup {
        chain: ChainId::eip155(chain.config().chain_id),
        quorum: plan.quorum,
        profile: ChainProfile::of(plan.mode),
        providers,
        clock,
        chance: Chance::from_seed(1),
        tags_every: Duration::ZERO,
    }
}

impl Net {
    pub(crate) async fn new(plan: Plan<'_>) -> Self {
        let chain = Devchain::new(plan.config.clone());
        let mut faces = Vec::new();
        for (index, group) in plan.groups.iter().enumerate() {
            faces.push(serve_face(&chain, &format!("{group}-{index}")).await.unwrap());
        }
        let reader = ChainReader::new(setup(&chain, &faces, &plan)).unwrap();
        let head = chain.head();
        Self { chain, faces, reader, ring: vec![BlockRef { number: head.number, hash: head.hash }] }
    }

    pub(crate) fn faults(&self, face: usize, faults: Faults) {
        self.faces[face].provider().set_faults(faults);
    }

    pub(crate) fn heal(&self) {
        for face in &self.faces {
            face.provider().heal();
        }
    }

    pub(crate) fn pay(&self, to: Address, amount: u64) -> B256 {
        self.chain.send_token(CONTRACTS.dollar, 0, to, U256::from(amount)).unwrap()
    }

    /// One poll, applied to the ring as a feature would.
    async fn poll(&mut self) -> Result<Vec<Transfer>, Stall> {
        match self.reader.poll(&self.ring, &dollars(), 64).await? {
            Progress::Idle { .. } => Ok(Vec::new()),
            Progress::Blocks { blocks, .. } => {
                let mut transfers = Vec::new();
                for block in blocks {
                    assert_eq!(block.level, EvidenceLevel::Verified);
                    assert_eq!(block.link.parent, self.ring.last().unwrap().hash);
                    assert_eq!(
                        block.link.block.hash,
                        self.chain.block(block.link.block.number).unwrap().hash()
                    );
                    self.ring.push(block.link.block);
                    transfers.extend(block.transfers);
                }
                Ok(transfers)
            }
            Progress::Reorg { ancestor, .. } => {
                self.ring.retain(|block| block.number <= ancestor.number);
                assert_eq!(self.ring.last(), Some(&ancestor));
                Ok(Vec::new())
            }
        }
    }

    /// Whether the cursor is at the head of the true chain.
    fn is_level(&self) -> bool {
        let head = self.chain.head();
        self.ring.last() == Some(&BlockRef { number: head.number, hash: head.hash })
    }
}

pub(crate) fn dollars() -> Watch {
    Watch::all([Asset::Token(CONTRACTS.dollar)])
}

pub(crate) fn payee(tag: u8) -> Address {
    Address::repeat_byte(tag)
}

pub(crate) fn amounts(transfers: &[Transfer], to: Address) -> Vec<String> {
    transfers
        .iter()
        .filter(|transfer| transfer.recipient == to)
        .map(|transfer| transfer.amount.to_string())
        .collect()
}

#[tokio::test]
async fn an_honest_chain_is_read_block_by_block() {
    let mut net = Net::new(Plan::default()).await;
    for n in 1..=5 {
        net.pay(payee(0xaa), n);
        net.chain.mine();
    }
    let seen = net.poll().await.unwrap();
    assert_eq!(amounts(&seen, payee(0xaa)), ["1", "2", "3", "4", "5"]);
    assert!(net.is_level());
    assert!(net.poll().await.unwrap().is_empty());
}

#[tokio::test]
async fn heights_come_from_the_kth_group() {
    let net = Net::new(Plan::default()).await;
    net.chain.mine_n(20);
    net.faults(0, Faults { lag: 5, ..Faults::default() });
    let expected = (20, net.chain.safe(), net.chain.finalized());
    // The first word on tags may be that of the laggard and one other; the third is heard a moment later.
    for _ in 0..100 {
        let Progress::Blocks { heights, blocks } = net.reader.poll(&net.ring, &dollars(), 3).await.unwrap()
        else {
            panic!("nothing to read")
        };
        assert_eq!((blocks.len(), heights.head), (3, 20));
        assert!(heights.safe <= expected.1 && heights.finalized <= expected.2);
        if (heights.head, heights.safe, heights.finalized) == expected {
            return;
        }
    }
    panic!("the heights of the honest groups were never reached");
}

/// Everything that can be wrong with one provider.
pub(crate) fn every_fault() -> Vec<(&'static str, Faults)> {
    let fault = Faults::default;
    let forged =
        ForgedTransfer { token: CONTRACTS.dollar, from: payee(1), to: payee(0xbb), value: U256::from(999) };
    vec![
        ("hang", Faults { hang: true, ..fault() }),
        ("503", Faults { status: Some(HttpStatus { code: 503, retry_after_secs: None }), ..fault() }),
        ("429", Faults { status: Some(HttpStatus { code: 429, retry_after_secs: Some(30) }), ..fault() }),
        ("html", Faults { html: true, ..fault() }),
        (
            "error in a 200",
            Faults { rpc_error: Some(RpcFault { code: -32000, message: "boom".into() }), ..fault() },
        ),
        ("truncated", Faults { truncate: Some(Truncate::Connection), ..fault() }),
        ("cut JSON", Faults { truncate: Some(Truncate::Json), ..fault() }),
        ("lost", Faults { lose_response: true, ..fault() }),
        ("foreign ids", Faults { ids: Some(IdFault::Garbage), ..fault() }),
        ("no ids", Faults { ids: Some(IdFault::Missing), ..fault() }),
        ("content type", Faults { content_type: Some("text/html".into()), ..fault() }),
        ("lag", Faults { lag: 3, ..fault() }),
        ("swinging lag", Faults { lag_jitter: 3, ..fault() }),
        ("stuck", Faults { stuck_at: Some(0), ..fault() }),
        ("other chain", Faults { chain_id: Some(1), ..fault() }),
        ("no receipts method", Faults { unsupported: vec!["eth_getBlockReceipts".into()], ..fault() }),
        ("late receipts", Faults { receipts_lag: 5, ..fault() }),
        (
            "omits from receipts",
            Faults { omit_logs: vec![LogPick::default()], reach: Reach::Both, ..fault() },
        ),
        ("shifts indices", Faults { shift_log_index: Some(7), reach: Reach::Both, ..fault() }),
        ("doubles logs", Faults { duplicate_logs: true, reach: Reach::Both, ..fault() }),
        (
            "alters amounts",
            Faults {
                alter_amounts: vec![AlteredAmount { pick: LogPick::default(), value: U256::from(1_000_000) }],
                reach: Reach::Both,
                ..fault()
            },
        ),
        ("empty receipts", Faults { receipts: Some(ReceiptsLie::Empty), ..fault() }),
        ("null receipts", Faults { receipts: Some(ReceiptsLie::Null), ..fault() }),
        ("drops a receipt", Faults { receipts: Some(ReceiptsLie::DropLast), ..fault() }),
        ("flips status", Faults { receipts: Some(ReceiptsLie::FlipStatus), ..fault() }),
        ("swaps hashes", Faults { swap_block_hash: true, ..fault() }),
        (
            "forges a parent",
            Faults {
                forge_header: Some(HeaderLie { from_block: 1, field: HeaderField::Parent, rehash: false }),
                ..fault()
            },
        ),
        (
            "rehashes a time",
            Faults {
                forge_header: Some(HeaderLie { from_block: 1, field: HeaderField::Timestamp, rehash: true }),
                ..fault()
            },
        ),
        (
            "rehashes a root",
            Faults {
                forge_header: Some(HeaderLie {
                    from_block: 1,
                    field: HeaderField::ReceiptsRoot,
                    rehash: true,
                }),
                ..fault()
            },
        ),
        (
            "empties the filter",
            Faults {
                forge_header: Some(HeaderLie { from_block: 1, field: HeaderField::LogsBloom, rehash: true }),
                ..fault()
            },
        ),
        (
            "makes up a branch",
            Faults {
                forge_blocks: vec![ForgedBlock {
                    number: 1,
                    transfers: vec![forged],
                    drop_transactions: true,
                }],
                ..fault()
            },
        ),
    ]
}

/// Each fault of one provider out of three changes nothing in what is read.
#[tokio::test]
async fn one_faulty_provider_changes_nothing() {
    // The faults are independent of each other: play them side by side.
    let rounds = every_fault().into_iter().map(|(name, faults)| async move {
        for faulty in 0..3 {
            let mut net = Net::new(Plan { timeout: Duration::from_secs(10), ..Plan::default() }).await;
            net.faults(faulty, faults.clone());
            for n in 1..=3 {
                net.pay(payee(0xaa), n);
                net.chain.mine();
            }
            let mut seen = Vec::new();
            for _ in 0..4 {
                seen.extend(net.poll().await.unwrap_or_else(|stall| panic!("{name} at {faulty}: {stall}")));
            }
            assert_eq!(amounts(&seen, payee(0xaa)), ["1", "2", "3"], "{name} at {faulty}");
            assert!(amounts(&seen, payee(0xbb)).is_empty(), "{name} at {faulty}");
            assert!(net.is_level(), "{name} at {faulty}");
        }
    });
    Box::pin(futures::stream::iter(rounds).buffer_unordered(4).for_each(|()| std::future::ready(()))).await;
}

#[tokio::test]
async fn two_providers_that_return_nothing_do_not_hide_a_payment() {
    let mut net = Net::new(Plan::default()).await;
    for liar in 0..2 {
        net.faults(
            liar,
            Faults { empty_logs: true, receipts: Some(ReceiptsLie::Empty), ..Faults::default() },
        );
    }
    net.pay(payee(0xaa), 7);
    net.chain.mine();
    let seen = net.poll().await.unwrap();
    assert_eq!(amounts(&seen, payee(0xaa)), ["7"], "one honest provider's receipts prove it");
    let caught: u64 =
        net.reader.providers().iter().filter_map(|p| p.faults.get(&FaultKind::ReceiptsRoot).copied()).sum();
    assert!(caught >= 1);
}

#[tokio::test]
async fn two_providers_that_omit_the_same_log_do_not_hide_a_payment() {
    let mut net = Net::new(Plan::default()).await;
    let tx = net.pay(payee(0xaa), 7);
    net.pay(payee(0xab), 8);
    let pick = LogPick { transaction: Some(tx), ..LogPick::default() };
    for liar in 1..3 {
        net.faults(liar, Faults { omit_logs: vec![pick.clone()], reach: Reach::Both, ..Faults::default() });
    }
    net.chain.mine();
    let seen = net.poll().await.unwrap();
    assert_eq!(amounts(&seen, payee(0xaa)), ["7"]);
    assert_eq!(amounts(&seen, payee(0xab)), ["8"]);
}

#[tokio::test]
async fn two_down_and_one_lying_settles_nothing_and_says_so() {
    let mut net = Net::new(Plan { timeout: Duration::from_millis(300), ..Plan::default() }).await;
    net.faults(0, Faults { hang: true, ..Faults::default() });
    net.faces[1].stop().await;
    let forged =
        ForgedTransfer { token: CONTRACTS.dollar, from: payee(1), to: payee(0xbb), value: U256::from(999) };
    net.faults(
        2,
        Faults {
            forge_blocks: vec![ForgedBlock { number: 1, transfers: vec![forged], drop_transactions: false }],
            ..Faults::default()
        },
    );
    net.chain.mine();
    for _ in 0..3 {
        let stall = net.poll().await.unwrap_err();
        assert_eq!(stall.kind, StallKind::TooFewGroups);
        assert_eq!((stall.alive, stall.needed), (1, 2));
        assert_eq!(stall.why.len(), 3, "{stall}");
    }
    assert_eq!(net.ring.len(), 1);
    assert!(net.reader.rounds().failed >= 3);
    net.faces[1].start().await.unwrap();
    net.heal();
    // The breaker of the one that was down lets a probe through after its first pause at the latest.
    let clock = SystemClock::new();
    for _ in 0..30 {
        if net.poll().await.is_ok() && net.is_level() {
            break;
        }
        clock.sleep(Duration::from_millis(100)).await;
    }
    assert!(net.is_level());
}

#[tokio::test]
async fn an_open_breaker_never_shrinks_the_quorum() {
    let mut net = Net::new(Plan { timeout: Duration::from_millis(200), ..Plan::default() }).await;
    net.faces[0].stop().await;
    net.faces[1].stop().await;
    net.chain.mine();
    for _ in 0..8 {
        assert_eq!(net.poll().await.unwrap_err().kind, StallKind::TooFewGroups);
    }
    let tripped =
        net.reader.providers().iter().filter(|p| matches!(p.state, ProviderState::Tripped(_))).count();
    assert_eq!(tripped, 2);
    assert_eq!(net.poll().await.unwrap_err().alive, 1);
}

#[tokio::test]
async fn two_urls_of_one_owner_are_one_vote() {
    let mut net = Net::new(Plan { groups: &["alpha", "alpha", "beta"], ..Plan::default() }).await;
    let forged =
        ForgedTransfer { token: CONTRACTS.dollar, from: payee(1), to: payee(0xbb), value: U256::from(999) };
    let lie = Faults {
        forge_blocks: vec![ForgedBlock { number: 1, transfers: vec![forged], drop_transactions: true }],
        ..Faults::default()
    };
    net.faults(0, lie.clone());
    net.faults(1, lie);
    net.pay(payee(0xaa), 7);
    net.chain.mine();
    let stall = net.poll().await.unwrap_err();
    assert_eq!(stall.kind, StallKind::NoAgreement, "{stall}");
    assert_eq!(net.ring.len(), 1);
}

#[tokio::test]
async fn a_quorum_that_cannot_hold_is_refused() {
    let chain = Devchain::new(Config::default());
    let mut faces = Vec::new();
    for name in ["a", "b", "c"] {
        faces.push(serve_face(&chain, name).await.unwrap());
    }
    let refuse = |plan: Plan<'_>| ChainReader::new(setup(&chain, &faces, &plan)).unwrap_err();
    assert_eq!(
        refuse(Plan { quorum: 4, ..Plan::default() }),
        InvalidQuorum::MoreThanGroups { needed: 4, groups: 3 }
    );
    assert_eq!(
        refuse(Plan { groups: &["a", "a", "b"], quorum: 3, ..Plan::default() }),
        InvalidQuorum::MoreThanGroups { needed: 3, groups: 2 }
    );
    assert_eq!(refuse(Plan { quorum: 0, ..Plan::default() }), InvalidQuorum::Zero);
    let mut twice = setup(&chain, &faces, &Plan::default());
    twice.providers[1].name = twice.providers[0].name.clone();
    assert!(matches!(ChainReader::new(twice), Err(InvalidQuorum::Duplicate(_))));
}

#[tokio::test]
async fn a_provider_of_another_chain_is_named_at_the_start() {
    let net = Net::new(Plan::default()).await;
    assert_eq!(net.reader.check_chain_ids().await, Ok(()));
    net.faults(1, Faults { chain_id: Some(1), ..Faults::default() });
    let wrong = net.reader.check_chain_ids().await.unwrap_err();
    assert_eq!(wrong.wrong, [("beta-1".to_owned(), 1)]);
    assert!(wrong.to_string().contains("`beta-1` serves chain 1, not 31337"), "{wrong}");
    assert_eq!(net.reader.providers()[1].state, ProviderState::Excluded);
}

#[tokio::test]
async fn two_providers_of_one_wrong_chain_do_not_agree() {
    let mut net = Net::new(Plan::default()).await;
    net.faults(0, Faults { chain_id: Some(5), ..Faults::default() });
    net.faults(1, Faults { chain_id: Some(5), ..Faults::default() });
    net.chain.mine();
    assert_eq!(net.poll().await.unwrap_err().kind, StallKind::TooFewGroups);
}

#[tokio::test]
async fn reorgs_are_found_and_reverted_exactly() {
    for depth in [1, 2, 3, 7, 20] {
        let mut net = Net::new(Plan::default()).await;
        net.chain.mine_n(3);
        for n in 1..=depth {
            net.pay(payee(0xaa), n);
            net.chain.mine();
        }
        net.poll().await.unwrap();
        assert!(net.is_level());
        let kept = net.ring[net.ring.len() - 1 - usize::try_from(depth).unwrap()];
        net.chain.reorg(depth, Replay::All).unwrap();
        net.chain.mine();
        assert!(net.poll().await.unwrap().is_empty());
        assert_eq!(net.ring.last(), Some(&kept), "depth {depth}");
        let again = net.poll().await.unwrap();
        assert_eq!(amounts(&again, payee(0xaa)).len(), usize::try_from(depth).unwrap());
        assert!(net.is_level());
    }
}

#[tokio::test]
async fn a_reorg_to_the_same_or_a_lower_height_is_found() {
    for new_length in [0, 1, 2, 3] {
        let mut net = Net::new(Plan::default()).await;
        net.chain.mine_n(6);
        net.poll().await.unwrap();
        let fork = net.ring[3];
        net.chain.reorg_with(devchain::Reorg { depth: 3, new_length, replay: Replay::Nothing }).unwrap();
        for _ in 0..4 {
            net.poll().await.unwrap();
        }
        if new_length == 0 {
            // Three blocks are gone and nothing came instead: `k` groups have our ancestor as their
            // head, which a lagging quorum has too. Nothing is reverted until something takes the place.
            assert_eq!(net.ring.len(), 7);
            net.chain.mine();
            for _ in 0..3 {
                net.poll().await.unwrap();
            }
        }
        assert!(net.is_level(), "{new_length}");
        assert_eq!(net.ring[3], fork);
    }
}

#[tokio::test]
async fn one_provider_on_a_dropped_branch_reverts_nothing() {
    let mut net = Net::new(Plan::default()).await;
    net.chain.mine_n(4);
    let old = net.chain.head().hash;
    net.chain.reorg(2, Replay::All).unwrap();
    net.poll().await.unwrap();
    net.faults(0, Faults { follow: Some(old), ..Faults::default() });
    for _ in 0..3 {
        assert!(net.poll().await.unwrap().is_empty());
        assert!(net.is_level());
    }
}

#[tokio::test]
async fn a_fork_below_the_ring_is_said_not_guessed() {
    let mut net = Net::new(Plan::default()).await;
    net.chain.mine_n(10);
    net.poll().await.unwrap();
    net.ring.drain(..8);
    net.chain.reorg(6, Replay::All).unwrap();
    net.chain.mine();
    assert_eq!(net.poll().await.unwrap_err().kind, StallKind::ForkBelowRing);
}

#[tokio::test]
async fn a_restart_asks_from_the_block_after_the_cursor() {
    let mut net = Net::new(Plan::default()).await;
    net.chain.mine_n(9);
    net.poll().await.unwrap();
    net.faces.clear();
    for name in ["a", "b", "c"] {
        net.faces.push(serve_face(&net.chain, name).await.unwrap());
    }
    net.reader = ChainReader::new(setup(&net.chain, &net.faces, &Plan::default())).unwrap();
    net.chain.mine_n(2);
    net.poll().await.unwrap();
    assert!(net.is_level());
    let asked: BTreeSet<String> = net
        .faces
        .iter()
        .flat_map(|face| face.provider().calls())
        .filter(|call| call.method == "eth_getBlockByNumber")
        .map(|call| call.params[0].as_str().unwrap().to_owned())
        .filter(|tag| tag.starts_with("0x"))
        .collect();
    assert_eq!(asked.first().map(String::as_str), Some("0xa"));
}

#[tokio::test]
async fn a_quiet_block_costs_no_receipts() {
    let mut net = Net::new(Plan::default()).await;
    net.chain.send_native(0, payee(9), U256::from(1)).unwrap();
    net.chain.mine();
    net.poll().await.unwrap();
    assert!(net.is_level());
    let asked: u64 = net.faces.iter().map(|face| face.provider().requests_of("eth_getBlockReceipts")).sum();
    assert_eq!(asked, 0, "the filter of an agreed header proves absence");
}

#[tokio::test]
async fn native_transfers_are_read_with_their_sender() {
    let net = Net::new(Plan::default()).await;
    net.chain.send_native(3, payee(0xcc), U256::from(5)).unwrap();
    net.chain.send_native(4, payee(0xcd), U256::ZERO).unwrap();
    net.chain.mine();
    let watch = Watch::all([Asset::Native]).only_to(|recipient| recipient.0[0] >= 0xcc);
    let block = net.reader.read_block(1, &watch).await.unwrap();
    let [only] = block.transfers.as_slice() else { panic!("{:?}", block.transfers) };
    assert_eq!(
        (only.asset, only.payer, only.recipient),
        (Asset::Native, net.chain.account(3).address(), payee(0xcc))
    );
    assert_eq!(only.amount.to_string(), "5");
}

#[tokio::test]
async fn several_transfers_of_one_transaction_have_keys_of_their_own() {
    let net = Net::new(Plan::default()).await;
    let payment =
        |to, value| devchain::token::Payment { token: CONTRACTS.dollar, to, value: U256::from(value) };
    let tx = net
        .chain
        .send_payments(0, &[payment(payee(1), 1_u64), payment(payee(1), 1), payment(payee(2), 3)])
        .unwrap();
    net.chain.mine();
    let block = net.reader.read_block(1, &dollars()).await.unwrap();
    let keys: BTreeSet<i64> = block.transfers.iter().map(|transfer| transfer.key.ordinal).collect();
    assert_eq!((block.transfers.len(), keys.len()), (3, 3));
    assert!(block.transfers.iter().all(|transfer| transfer.key.tx == tx));
}

#[tokio::test]
async fn an_impostor_token_is_not_the_token() {
    let net = Net::new(Plan::default()).await;
    let lie = devchain::token::claim_transfer(payee(1), payee(0xaa), U256::from(1_000));
    net.chain.call_contract(0, CONTRACTS.impostor, U256::ZERO, lie).unwrap();
    net.chain.mine();
    assert!(net.reader.read_block(1, &dollars()).await.unwrap().transfers.is_empty());
}

#[tokio::test]
async fn evidence_of_a_read_block_holds_against_its_hash_and_no_other() {
    let net = Net::new(Plan::default()).await;
    for n in 0..5 {
        net.pay(payee(0xaa), 10 + n);
    }
    net.chain.mine();
    let block = net.reader.read_block(1, &dollars()).await.unwrap();
    let keys: Vec<_> = block.transfers.iter().map(|transfer| transfer.key).collect();
    let bundle = block.evidence(&keys);
    assert_eq!(bundle.len(), 5);
    let truth = net.chain.block(1).unwrap().hash();
    for (evidence, transfer) in bundle.iter().zip(&block.transfers) {
        let text = serde_json::to_string(evidence).unwrap();
        let read = serde_json::from_str(&text).unwrap();
        let verified = verify(&read, Some(truth)).unwrap();
        assert!(verified.anchored && verified.is_proven());
        assert_eq!(verified.transfer, *transfer);
        assert!(verify(&read, Some(B256::repeat_byte(1))).is_err());
        assert!(read.voters().len() >= 2);
    }
}

#[tokio::test]
async fn forged_logs_in_a_log_answer_are_never_read() {
    let mut net = Net::new(Plan::default()).await;
    let forged = ForgedLog {
        block: 1,
        transaction: None,
        token: CONTRACTS.dollar,
        from: payee(1),
        to: payee(0xbb),
        value: U256::from(9),
    };
    for liar in 0..3 {
        net.faults(
            liar,
            Faults { forge_logs: vec![forged.clone()], reach: Reach::Logs, ..Faults::default() },
        );
    }
    net.chain.mine();
    assert!(net.poll().await.unwrap().is_empty());
    assert!(net.is_level());
}

#[tokio::test]
async fn a_stall_says_what_is_missing_and_nothing_else() {
    let mut net = Net::new(Plan::default()).await;
    net.chain.mine_n(3);
    let unknown = BlockRef { number: 2, hash: B256::repeat_byte(7) };
    let below = net.reader.find_ancestor(&[unknown]).await.unwrap_err();
    assert_eq!(
        below.to_string(),
        "fork_below_ring: block 2, the oldest that is remembered, is off the chain"
    );
    let behind = net.reader.read_block(9, &dollars()).await.unwrap_err();
    assert!(behind.to_string().starts_with("behind: 2 groups have to have block 9; "), "{behind}");
    net.pay(payee(1), 1);
    net.chain.mine();
    for liar in 0..3 {
        net.faults(liar, Faults { receipts: Some(ReceiptsLie::Empty), ..Faults::default() });
    }
    let bodiless = net.poll().await.map(|_| ()).and(net.reader.read_block(4, &dollars()).await.map(|_| ()));
    let bodiless = bodiless.unwrap_err().to_string();
    assert!(
        bodiless.starts_with("no_valid_body: the header of block 4 is agreed on, and nobody served contents"),
        "{bodiless}"
    );
    for down in 0..2 {
        let error = RpcFault { code: -32000, message: "boom".into() };
        net.faults(down, Faults { rpc_error: Some(error), ..Faults::default() });
    }
    let few = net.reader.read_block(4, &dollars()).await.unwrap_err().to_string();
    assert!(few.starts_with("too_few_groups: 1 of 2 needed groups answered; "), "{few}");
}

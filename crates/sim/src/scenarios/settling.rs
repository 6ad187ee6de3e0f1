//! Invoices are paid while providers fail and lie, the chain reorganises, merchants are away and the process dies.
//!
//! Guarantees: everything follows from the seed: who fails when and how, what is paid, when the process dies. At no time do
//! as many provider groups lie as the quorum needs, and no reorganisation reaches below finality: within these
//! bounds nothing may be settled wrongly, and after them everything has to be well ([`crate::checks`]).
//!
//! Deliberately absent: colluding majorities and broken finality, for which nothing is promised but a stop.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, B256, U256, keccak256};
use app::compose::App;
use app::config::{self, Config};
use app::features::endpoint::{self, NewEndpoint};
use app::features::invoice::{self, InvoiceError, NewInvoice};
use devchain::token::{self, CONTRACTS, Payment};
use devchain::{
    AlteredAmount, Devchain, Faults, ForgedBlock, ForgedLog, ForgedTransfer, HeaderField, HeaderLie,
    HttpStatus, IdFault, LogPick, Reach, ReceiptsLie, Reorg, Replay, RpcFault, Truncate,
};
use domain::chain::{Asset, ChainId, Confirmations, Transfer, TransferKey};
use domain::chance::Chance;
use domain::delivery::DeliveryState;
use domain::event::Subscription;
use domain::id::{EndpointId, InvoiceId};
use domain::money::Amount;
use domain::time::{Clock, Timestamp};
use durable::store::StoreError;

use crate::checks::{self, Books, Case};
use crate::clock::SimClock;
use crate::crash::{Drive, Ended, Leave, NoLife, live};
use crate::world::{Arrival, Manner, World};

const CHAIN: ChainId = ChainId::eip155(31_337);
const TOKENS: [Address; 2] = [CONTRACTS.plain, CONTRACTS.dollar];
/// Dev accounts that pay.
const PAYERS: u64 = 12;
/// Seconds between blocks.
const BLOCK_SECS: u64 = 2;
/// How long the storm lasts.
const STORM: Duration = Duration::from_secs(90);
/// How long everything may take to become well again.
const PATIENCE: Duration = Duration::from_secs(1_800);
/// Reorganisations are less deep than finality.
const DEEPEST_REORG: u64 = 5;
const FINALIZED_LAG: u64 = 10;

/// What a run showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The hash over all that crossed the wire, and over the books at the end.
    pub trace: B256,
    /// What must not be. Empty is good.
    pub findings: Vec<String>,
    /// A line for people: how much happened.
    pub summary: String,
}

/// Plays the storm of `seed`. All files are in a directory of its own and gone afterwards.
///
/// # Errors
/// When the directory cannot be made.
pub fn run(seed: u64) -> std::io::Result<Report> {
    let directory = tempfile::tempdir()?;
    Ok(Storm::new(seed).play(directory.path()))
}

/// Chance with verbs.
struct Dice(Chance);

impl Dice {
    fn below(&self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    fn within(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    fn percent(&self, share: u64) -> bool {
        self.below(100) < share
    }

    fn index(&self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }

    fn moment(&self, low: Duration, high: Duration) -> Duration {
        let span = u64::try_from(high.saturating_sub(low).as_millis()).unwrap_or(0);
        low + Duration::from_millis(self.below(span + 1))
    }
}

/// An invoice of the plan.
#[derive(Debug, Clone)]
struct Planned {
    asset: Asset,
    amount: U256,
    recipient: Address,
    payer: Option<usize>,
    confirmations: Confirmations,
    expires_in: Duration,
    made: Option<InvoiceId>,
}

/// A payment of the plan.
#[derive(Debug, Clone)]
struct Paid {
    invoice: usize,
    from: usize,
    amount: U256,
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Act {
    Mine,
    Reorganise(Reorg),
    Create(usize),
    Cancel(usize),
    Pay(Vec<Paid>),
    Pretend(usize),
    Fail(usize, Box<Faults>),
    Lie(usize, Lie),
    Down(usize),
    Heal(usize),
    Behave(usize, Manner, Duration),
    Restart,
    DieAfter(u64),
    DieNow,
}

/// How a provider lies; each is a lie of one group alone.
#[derive(Debug, Clone, Copy)]
enum Lie {
    SwapHash,
    Header(HeaderField, bool),
    ForgeBlocks(usize, bool),
    Receipts(ReceiptsLie),
    OmitLogs,
    AlterAmounts,
    ForgeLog(usize),
    StaleBranch,
}

/// Why a life of the process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    /// The storm is over and all is quiet.
    Quiet,
    /// The plan has the process end here: with notice, or without.
    Restart,
    Killed,
    /// It did not become quiet.
    Impatient(String),
    /// The store refused.
    Refused(String),
}

/// What the chain's headers commit to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Roots {
    /// Receipts can be checked against them.
    Checkable,
    /// Receipts prove nothing: logs are believed by vote.
    Opaque,
}

struct Storm {
    seed: u64,
    dice: Dice,
    roots: Roots,
    world: Arc<World>,
    drive: Drive,
    hosts: Vec<String>,
    usual: Vec<Faults>,
    quorum: usize,
    merchants: usize,
    invoices: Vec<Planned>,
    agenda: VecDeque<(Duration, Act)>,
    endpoints: Vec<EndpointId>,
    stale: Option<B256>,
    /// The lowest block that ever held a transaction, dropped ones included.
    earliest: BTreeMap<B256, u64>,
    lives: u64,
}

impl Storm {
    /// Draws everything from the seed.
    fn new(seed: u64) -> Self {
        let dice = Dice(Chance::from_seed(seed));
        let roots = if dice.percent(25) { Roots::Opaque } else { Roots::Checkable };
        let config = devchain::Config {
            seed,
            opaque_receipts_root: roots == Roots::Opaque,
            block_time_secs: BLOCK_SECS,
            safe_lag: 5,
            finalized_lag: FINALIZED_LAG,
            ..devchain::Config::default()
        };
        // Block 0 is older than the first moment, so that the next block may be of this moment.
        let clock = SimClock::new(Timestamp::from_seconds(config.genesis_time + BLOCK_SECS));
        let chain = Devchain::new(config);
        let hosts: Vec<String> =
            (0..dice.within(3, 5)).map(|number| format!("node-{number}.example")).collect();
        let quorum = if hosts.len() > 3 && dice.percent(60) { 3 } else { 2 };
        let merchants = usize::try_from(dice.within(1, 3)).unwrap_or(1);
        let world =
            World::new(clock, chain, &hosts, merchants, Chance::from_seed(seed.wrapping_add(1) << 20));
        let usual = hosts
            .iter()
            .map(|_| Faults {
                latency_ms: dice.within(2, 60),
                jitter_ms: dice.within(0, 40),
                ..Faults::default()
            })
            .collect();
        let drive = if dice.percent(70) { Drive::Dispatched } else { Drive::Stepped };
        let mut storm = Self {
            seed,
            dice,
            roots,
            world: Arc::new(world),
            drive,
            hosts,
            usual,
            quorum,
            merchants,
            invoices: Vec::new(),
            agenda: VecDeque::new(),
            endpoints: Vec::new(),
            stale: None,
            earliest: BTreeMap::new(),
            lives: 0,
        };
        storm.plan();
        storm
    }

    // ---- the plan ----

    fn plan(&mut self) {
        let mut acts: Vec<(Duration, Act)> = Vec::new();
        let blocks = STORM.as_secs() / BLOCK_SECS;
        acts.extend((1..=blocks).map(|number| (Duration::from_secs(number * BLOCK_SECS), Act::Mine)));
        self.plan_invoices(&mut acts);
        self.plan_reorganisations(&mut acts);
        self.plan_providers(&mut acts);
        self.plan_merchants(&mut acts);
        self.plan_deaths(&mut acts);
        // Stable: what is planned for the same moment happens in the order in which it was planned.
        acts.sort_by_key(|(at, _)| *at);
        self.agenda = acts.into();
    }

    fn plan_invoices(&mut self, acts: &mut Vec<(Duration, Act)>) {
        let shared = [address(self.seed, 1_000_001), address(self.seed, 1_000_002)];
        for number in 0..self.dice.within(20, 50) {
            let planned = self.draw_invoice(number, &shared);
            let index = self.invoices.len();
            let created = self.dice.moment(Duration::from_secs(3), STORM * 2 / 3);
            acts.push((created, Act::Create(index)));
            if self.dice.percent(8) {
                acts.push((created + self.dice.moment(Duration::ZERO, STORM / 3), Act::Cancel(index)));
            }
            self.plan_payments(index, &planned, created, acts);
            self.invoices.push(planned);
        }
    }

    fn draw_invoice(&self, number: u64, shared: &[Address]) -> Planned {
        let dice = &self.dice;
        let asset = match dice.below(10) {
            0..=1 => Asset::Native,
            2..=4 => Asset::Token(CONTRACTS.plain),
            _ => Asset::Token(CONTRACTS.dollar),
        };
        let is_shared = dice.percent(30);
        let payer = (is_shared && dice.percent(50) || dice.percent(10))
            .then(|| usize::try_from(dice.below(PAYERS)).unwrap_or(0));
        let recipient = if is_shared { shared[dice.index(shared.len())] } else { address(self.seed, number) };
        let confirmations = match dice.below(10) {
            0 => Confirmations::Safe,
            1 => Confirmations::Finalized,
            _ => Confirmations::Depth(u32::try_from(dice.within(1, 4)).unwrap_or(1)),
        };
        Planned {
            asset,
            // Some amounts are beyond 2^53, and some invoices of a shared recipient collide.
            amount: match dice.below(4) {
                0 => U256::from(dice.within(1, 5)),
                1 => (U256::from(1) << 60) + U256::from(dice.within(1, 1_000)),
                _ => U256::from(dice.within(1_000, 1_000_000)),
            },
            recipient,
            payer,
            confirmations,
            expires_in: Duration::from_secs(dice.within(25, 150)),
            made: None,
        }
    }

    fn plan_payments(
        &self,
        index: usize,
        planned: &Planned,
        created: Duration,
        acts: &mut Vec<(Duration, Act)>,
    ) {
        let dice = &self.dice;
        let whole = planned.amount;
        let amounts: Vec<U256> = match dice.below(20) {
            0..=1 => vec![],
            2..=3 => vec![whole.div_ceil(U256::from(2))],
            4..=6 => vec![whole / U256::from(2), whole - whole / U256::from(2)],
            7 => vec![whole + U256::from(1)],
            8 => vec![whole, whole],
            _ => vec![whole],
        };
        for amount in amounts.into_iter().filter(|amount| !amount.is_zero()) {
            let early = planned.asset != Asset::Native && dice.percent(12);
            let at = match () {
                () if early => created.saturating_sub(dice.moment(Duration::ZERO, Duration::from_secs(8))),
                () if dice.percent(10) => created + planned.expires_in + Duration::from_secs(3),
                () => created + dice.moment(Duration::from_millis(50), Duration::from_secs(25)),
            };
            let named = planned.payer.filter(|_| !dice.percent(10));
            let from = named.unwrap_or_else(|| usize::try_from(dice.below(PAYERS)).unwrap_or(0));
            let paid = Paid { invoice: index, from, amount };
            // Half of the storm's end is kept free, so that what is paid late still is in a block.
            let at = at.min(STORM - Duration::from_secs(5)).max(Duration::from_millis(2_100));
            match acts.last_mut() {
                // Several payments in one transaction, now and then.
                Some((_, Act::Pay(batch))) if batch[0].from == from && dice.percent(40) => batch.push(paid),
                _ => acts.push((at, Act::Pay(vec![paid]))),
            }
        }
        if dice.percent(10) {
            acts.push((created + Duration::from_secs(1), Act::Pretend(index)));
        }
    }

    fn plan_reorganisations(&self, acts: &mut Vec<(Duration, Act)>) {
        let dice = &self.dice;
        for _ in 0..dice.below(6) {
            let depth = dice.within(1, DEEPEST_REORG);
            let new_length = if dice.percent(80) { depth + 1 } else { dice.within(0, depth) };
            let replay = match dice.below(10) {
                0 => Replay::Nothing,
                1..=3 => Replay::Pool,
                4..=6 => Replay::Shuffled,
                _ => Replay::All,
            };
            let at = dice.moment(Duration::from_secs(14), STORM - Duration::from_secs(4));
            acts.push((at, Act::Reorganise(Reorg { depth, new_length, replay })));
        }
    }

    /// One after the other, each provider is well, ill or lying for a while; never too many lie at once.
    fn plan_providers(&self, acts: &mut Vec<(Duration, Act)>) {
        let dice = &self.dice;
        let severity = dice.within(0, 100);
        let mut liars: Vec<(Duration, Duration)> = Vec::new();
        for provider in 0..self.hosts.len() {
            let mut at = dice.moment(Duration::ZERO, Duration::from_secs(20));
            while at < STORM {
                let ends = at + dice.moment(Duration::from_secs(2), Duration::from_secs(25));
                let lying = liars.iter().filter(|(from, until)| *from < ends && at < *until).count();
                if dice.percent(severity) {
                    if lying + 1 < self.quorum && dice.percent(60) {
                        liars.push((at, ends));
                        acts.push((at, Act::Lie(provider, self.draw_lie())));
                    } else if dice.percent(25) {
                        acts.push((at, Act::Down(provider)));
                    } else {
                        acts.push((at, Act::Fail(provider, Box::new(self.draw_failure()))));
                    }
                    acts.push((ends, Act::Heal(provider)));
                }
                // A moment of health between two illnesses keeps the liars' times apart.
                at = ends + dice.moment(Duration::from_millis(100), Duration::from_secs(10));
            }
        }
    }

    fn draw_lie(&self) -> Lie {
        let dice = &self.dice;
        let victim = dice.index(self.invoices.len());
        match dice.below(14) {
            0 => Lie::SwapHash,
            1 => Lie::Header(HeaderField::Parent, true),
            2 => Lie::Header(HeaderField::ReceiptsRoot, dice.percent(50)),
            3 => Lie::Header(HeaderField::LogsBloom, dice.percent(50)),
            4 => Lie::Header(HeaderField::Timestamp, true),
            5..=6 => Lie::ForgeBlocks(victim, dice.percent(50)),
            7 => Lie::Receipts(ReceiptsLie::Empty),
            8 => Lie::Receipts(ReceiptsLie::DropLast),
            9 => Lie::Receipts(ReceiptsLie::FlipStatus),
            10 => Lie::OmitLogs,
            11 => Lie::AlterAmounts,
            12 => Lie::ForgeLog(victim),
            _ => Lie::StaleBranch,
        }
    }

    fn draw_failure(&self) -> Faults {
        let dice = &self.dice;
        let share = dice.percent(40).then(|| u8::try_from(dice.within(20, 90)).unwrap_or(50));
        let faults = match dice.below(15) {
            0 => Faults { hang: true, ..Faults::default() },
            1 => {
                let retry_after_secs = dice.percent(50).then(|| dice.within(1, 5));
                Faults { status: Some(HttpStatus { code: 429, retry_after_secs }), ..Faults::default() }
            }
            2 => {
                Faults { status: Some(HttpStatus { code: 503, retry_after_secs: None }), ..Faults::default() }
            }
            3 => Faults { html: true, ..Faults::default() },
            4 => Faults {
                rpc_error: Some(RpcFault { code: -32_000, message: "header not found".to_owned() }),
                ..Faults::default()
            },
            5 => Faults {
                rpc_error: Some(RpcFault { code: -32_603, message: "internal error".to_owned() }),
                ..Faults::default()
            },
            6 => Faults { truncate: Some(Truncate::Json), ..Faults::default() },
            7 => Faults { truncate: Some(Truncate::Connection), ..Faults::default() },
            8 => Faults { lose_response: true, ..Faults::default() },
            9 => Faults { ids: Some(IdFault::Garbage), ..Faults::default() },
            10 => Faults { latency_ms: dice.within(200, 2_500), jitter_ms: 500, ..Faults::default() },
            11 => Faults { lag: dice.within(1, 6), ..Faults::default() },
            12 => Faults { lag_jitter: dice.within(1, 3), ..Faults::default() },
            13 => Faults { receipts_lag: dice.within(1, 3), ..Faults::default() },
            _ => Faults { receipts: Some(ReceiptsLie::Null), ..Faults::default() },
        };
        Faults { percent: share, ..faults }
    }

    fn plan_merchants(&self, acts: &mut Vec<(Duration, Act)>) {
        let dice = &self.dice;
        for merchant in 0..self.merchants {
            let severity = dice.within(0, 90);
            let mut at = Duration::ZERO;
            while at < STORM {
                let manner = if !dice.percent(severity) {
                    Manner::Accept
                } else {
                    match dice.below(10) {
                        0..=2 => Manner::Answer(500),
                        3 => Manner::Answer(404),
                        4 => Manner::Throttle(dice.within(1, 20)),
                        5 => Manner::AcceptInSilence,
                        6 => Manner::AcceptAndHangUp,
                        7 if dice.percent(10) => Manner::Answer(410),
                        _ => Manner::Down,
                    }
                };
                let latency = Duration::from_millis(dice.within(1, 400));
                acts.push((at, Act::Behave(merchant, manner, latency)));
                at += dice.moment(Duration::from_secs(3), Duration::from_secs(25));
            }
        }
    }

    fn plan_deaths(&self, acts: &mut Vec<(Duration, Act)>) {
        let dice = &self.dice;
        for _ in 0..dice.below(6) {
            let at = dice.moment(Duration::from_secs(2), STORM);
            acts.push(match dice.below(10) {
                0..=5 => (at, Act::DieAfter(dice.within(1, 40))),
                6..=8 => (at, Act::DieNow),
                _ => (at, Act::Restart),
            });
        }
    }

    // ---- the play ----

    fn play(mut self, directory: &Path) -> Report {
        let (books, mut findings) = match self.live_on(directory) {
            Ok(books) => (Some(books), Vec::new()),
            Err(why) => (None, vec![why]),
        };
        findings.extend(self.world.findings());
        let mut trace = self.world.trace();
        if let Some(books) = &books {
            let arrivals = self.world.arrivals();
            let truth = checks::truth(self.world.chain(), CHAIN, &TOKENS);
            findings.extend(checks::judge(&self.case(books, &truth, &arrivals)));
            trace.note(self.world.clock().now(), &format!("{books:?}"));
        }
        let summary = self.summary(books.as_ref());
        Report { seed: self.seed, trace: trace.hash(), findings, summary }
    }

    /// One life after the other, until all is quiet; then once more, to see whether a restart changes anything.
    fn live_on(&mut self, directory: &Path) -> Result<Books, String> {
        let config = self.config(directory)?;
        loop {
            match self.live_once(config.clone())? {
                Told::Quiet => break,
                Told::Restart | Told::Killed => {}
                Told::Impatient(why) | Told::Refused(why) => return Err(why),
            }
            let pause = self.dice.moment(Duration::from_millis(10), Duration::from_secs(5));
            self.world.clock().skip(pause);
        }
        self.look_again(config)
    }

    fn live_once(&mut self, config: Config) -> Result<Told, String> {
        self.lives += 1;
        let (world, drive) = (Arc::clone(&self.world), self.drive);
        let seed = self.seed.wrapping_mul(1_000).wrapping_add(self.lives);
        world.note("life", &self.lives.to_string());
        let ended = live(&world, config, seed, drive, async |app| {
            let told = self.tell(app).await;
            let leave = if told == Told::Restart { Leave::Stopped } else { Leave::Killed };
            (told, leave)
        });
        match ended {
            Ok(Ended::Told(told)) => Ok(told),
            Ok(Ended::Died) => Ok(Told::Killed),
            Err(NoLife::Refused(why)) => Err(format!("the program refuses to start again: {why}")),
            Err(why) => Err(why.to_string()),
        }
    }

    /// A restart is the same state: what is in the books before it is in them after it, and evidence still holds.
    fn look_again(&mut self, config: Config) -> Result<Books, String> {
        let world = Arc::clone(&self.world);
        let mut before = None;
        for _ in 0..2 {
            let looked = live(&world, config.clone(), self.seed, Drive::Stepped, async |app| {
                (self.look_at(app).await, Leave::Killed)
            });
            let (books, findings) = match looked {
                Ok(Ended::Told(looked)) => looked.map_err(|error| error.to_string())?,
                Ok(Ended::Died) => return Err("the process died while it was only looked at".to_owned()),
                Err(why) => return Err(why.to_string()),
            };
            findings.into_iter().for_each(|finding| self.world.find(finding));
            if before.as_ref().is_some_and(|before| *before != books) {
                self.world.find("a restart changed the books".to_owned());
            }
            before = Some(books);
        }
        before.ok_or_else(|| "nothing was looked at".to_owned())
    }

    async fn look_at(&self, app: &App) -> Result<(Books, Vec<String>), StoreError> {
        let books = Books::read(&app.store, CHAIN)?;
        let truth = checks::truth(self.world.chain(), CHAIN, &TOKENS);
        let findings = checks::bundles_hold(app, &self.case(&books, &truth, &[])).await?;
        Ok((books, findings))
    }

    fn case<'a>(
        &'a self,
        books: &'a Books,
        truth: &'a BTreeMap<TransferKey, Transfer>,
        arrivals: &'a [Arrival],
    ) -> Case<'a> {
        Case {
            books,
            chain: self.world.chain(),
            truth,
            arrivals,
            acknowledged: self.invoices.iter().filter_map(|planned| planned.made).collect(),
            endpoints: &self.endpoints,
            earliest: &self.earliest,
            proofs: self.roots == Roots::Checkable,
        }
    }

    fn config(&self, directory: &Path) -> Result<Config, String> {
        let mut text = format!(
            "[store]\nurl = \"sqlite://{}\"\n[[chain]]\nid = \"{CHAIN}\"\nquorum = {}\nconfirmations = 2\n\
             root_mode = \"{}\"\npoll_ms = 1000\nstart_block = 0\nrpc_endpoints = [\n",
            directory.join("storm.db").display(),
            self.quorum,
            if self.roots == Roots::Opaque { "none" } else { "eth" },
        );
        for (number, host) in self.hosts.iter().enumerate() {
            let _always =
                writeln!(text, "{{ url = \"https://{host}/\", group = \"g{number}\", timeout_ms = 1500 }},");
        }
        text.push_str("]\n");
        for (address, symbol) in [(CONTRACTS.plain, "PLAIN"), (CONTRACTS.dollar, "DUSD")] {
            let _always = writeln!(
                text,
                "[[chain.asset]]\naddress = \"{address}\"\nsymbol = \"{symbol}\"\ndecimals = 6"
            );
        }
        text.push_str(
            "[webhook]\nmax_attempts = 8\ntimeout_ms = 3000\ninitial_backoff_ms = 500\nmax_backoff_ms = 15000\n\
             endpoint_concurrency = 4\n",
        );
        let loaded = config::parse("storm.toml", &text, directory, &[]).map_err(|wrong| wrong.to_string())?;
        Ok(loaded.config)
    }

    /// The world goes on, from where it was left.
    async fn tell(&mut self, app: &App) -> Told {
        if self.endpoints.is_empty()
            && let Err(why) = self.register(app).await
        {
            return Told::Refused(why);
        }
        let world = Arc::clone(&self.world);
        while let Some((at, _)) = self.agenda.front() {
            world.clock().until(*at).await;
            let Some((_, act)) = self.agenda.pop_front() else { break };
            world.note("act", &format!("{act:?}"));
            match act {
                Act::Restart => return Told::Restart,
                Act::DieNow => return Told::Killed,
                act => {
                    if let Err(why) = self.perform(app, act).await {
                        return Told::Refused(why);
                    }
                }
            }
        }
        self.calm_down(app).await
    }

    async fn register(&mut self, app: &App) -> Result<(), String> {
        for merchant in 0..self.merchants {
            let new = NewEndpoint {
                url: World::merchant_url(merchant),
                subscriptions: vec![Subscription::All],
                description: None,
            };
            let targets = app.targets.clone();
            let made = app.store.write(move |tx| endpoint::create(tx, &new, &targets)).await;
            let row = made.map_err(|error| error.to_string())?;
            self.world.introduce(merchant, row.secret.expose(), row.id.to_string());
            self.endpoints.push(row.id);
        }
        Ok(())
    }

    async fn perform(&mut self, app: &App, act: Act) -> Result<(), String> {
        match act {
            Act::Mine => self.mine(),
            Act::Reorganise(reorg) => self.reorganise(reorg),
            Act::Create(index) => self.create(app, index).await?,
            Act::Cancel(index) => self.cancel(app, index).await?,
            Act::Pay(paid) => self.pay(&paid),
            Act::Pretend(index) => self.pretend(index),
            Act::Fail(provider, faults) => self.set_faults(provider, *faults),
            Act::Lie(provider, lie) => self.lie(provider, lie),
            Act::Down(provider) => self.world.set_down(provider, true),
            Act::Heal(provider) => {
                self.world.set_down(provider, false);
                self.set_faults(provider, Faults::default());
            }
            Act::Behave(merchant, manner, latency) => self.world.set_manner(merchant, manner, latency),
            Act::DieAfter(messages) => self.world.kill_after(messages),
            Act::Restart | Act::DieNow => {}
        }
        Ok(())
    }

    fn mine(&mut self) {
        let chain = self.world.chain();
        let now = u64::try_from(self.world.clock().now().as_seconds()).unwrap_or(0);
        // After a reorganisation the chain may be a little ahead of the clock.
        let at = now.max(chain.head().timestamp + 1);
        if let Err(error) = chain.mine_at(at) {
            self.world.find(format!("the chain refuses a block: {error}"));
        }
        self.remember_blocks(1);
    }

    /// Notes which transactions the last blocks hold.
    fn remember_blocks(&mut self, count: u64) {
        let chain = self.world.chain();
        let head = chain.head().number;
        for block in (0..count).filter_map(|back| chain.block(head.checked_sub(back)?)) {
            for tx in block.transactions() {
                let lowest = self.earliest.entry(*tx.tx_hash()).or_insert(u64::MAX);
                *lowest = block.number().min(*lowest);
            }
        }
    }

    fn reorganise(&mut self, reorg: Reorg) {
        let chain = self.world.chain();
        // Never into what was final at any time.
        let room = chain.head().number.saturating_sub(chain.finalized() + 1);
        let depth = reorg.depth.min(room);
        if depth == 0 {
            return;
        }
        let new_length = reorg.new_length.min(depth + 1);
        match chain.reorg_with(Reorg { depth, new_length, ..reorg }) {
            Ok(reorged) => {
                self.stale = reorged.dropped.last().copied();
                self.remember_blocks(new_length);
            }
            Err(error) => self.world.note("no reorg", &error.to_string()),
        }
    }

    async fn create(&mut self, app: &App, index: usize) -> Result<(), String> {
        let Some(planned) = self.invoices.get(index) else { return Ok(()) };
        let chain = self.world.chain();
        let new = NewInvoice {
            chain: CHAIN,
            asset: planned.asset,
            amount: Amount::new(planned.amount),
            recipient: planned.recipient,
            payer: planned.payer.map(|payer| chain.account(payer).address()),
            confirmations: planned.confirmations,
            expires_at: self.world.clock().now() + planned.expires_in,
            reference: Some(format!("plan {index}")),
            metadata: None,
        };
        match app.store.write(move |tx| invoice::create(tx, &new)).await {
            Ok(row) => {
                self.world.note("created", &row.invoice.id.to_string());
                if let Some(planned) = self.invoices.get_mut(index) {
                    planned.made = Some(row.invoice.id);
                }
                Ok(())
            }
            Err(InvoiceError::Indistinguishable) => {
                self.world.note("indistinguishable", &index.to_string());
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    async fn cancel(&self, app: &App, index: usize) -> Result<(), String> {
        let Some(id) = self.invoices.get(index).and_then(|planned| planned.made) else { return Ok(()) };
        match app.store.write(move |tx| invoice::cancel(tx, id)).await {
            Ok(_) | Err(InvoiceError::Refused(_)) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn pay(&self, paid: &[Paid]) {
        let chain = self.world.chain();
        let payments: Vec<(Asset, Payment)> = paid
            .iter()
            .filter_map(|paid| {
                let planned = self.invoices.get(paid.invoice)?;
                let token = match planned.asset {
                    Asset::Native => Address::ZERO,
                    Asset::Token(token) => token,
                };
                Some((planned.asset, Payment { token, to: planned.recipient, value: paid.amount }))
            })
            .collect();
        let from = paid.first().map_or(0, |paid| paid.from);
        let sent = match payments.as_slice() {
            [(Asset::Native, payment)] => chain.send_native(from, payment.to, payment.value),
            [(Asset::Token(token), payment)] => chain.send_token(*token, from, payment.to, payment.value),
            several => {
                // Native coin that a contract passes on is no transaction's value, and not what is watched.
                let tokens: Vec<Payment> = several
                    .iter()
                    .map(|(_, payment)| *payment)
                    .filter(|payment| !payment.token.is_zero())
                    .collect();
                chain.send_payments(from, &tokens)
            }
        };
        if let Err(error) = sent {
            self.world.note("not sent", &error.to_string());
        }
    }

    /// Somebody pretends to pay: a transfer event of money that never moved, from a contract nobody watches.
    fn pretend(&self, index: usize) {
        let Some(planned) = self.invoices.get(index) else { return };
        let chain = self.world.chain();
        let from = chain.account(0).address();
        let data = token::claim_transfer(from, planned.recipient, planned.amount);
        if let Err(error) = chain.call_contract(0, CONTRACTS.impostor, U256::ZERO, data) {
            self.world.note("not sent", &error.to_string());
        }
    }

    fn set_faults(&self, provider: usize, faults: Faults) {
        let usual = self.usual.get(provider).cloned().unwrap_or_default();
        self.world.set_faults(provider, usual, faults);
    }

    fn lie(&self, provider: usize, lie: Lie) {
        let chain = self.world.chain();
        let head = chain.head().number;
        let transfer_to = |victim: usize| {
            let planned = self.invoices.get(victim)?;
            let token = match planned.asset {
                Asset::Native => Address::ZERO,
                Asset::Token(token) => token,
            };
            Some((token, planned.recipient, planned.amount))
        };
        let from = chain.account(0).address();
        let everything = LogPick::default();
        let faults = match lie {
            Lie::SwapHash => Faults { swap_block_hash: true, ..Faults::default() },
            Lie::Header(field, rehash) => Faults {
                forge_header: Some(HeaderLie { from_block: head, field, rehash }),
                ..Faults::default()
            },
            Lie::ForgeBlocks(victim, drop_transactions) => {
                let transfers = transfer_to(victim)
                    .map(|(token, to, value)| ForgedTransfer { token, from, to, value })
                    .into_iter()
                    .collect();
                let block = ForgedBlock { number: head.max(1), transfers, drop_transactions };
                Faults { forge_blocks: vec![block], ..Faults::default() }
            }
            Lie::Receipts(receipts) => Faults { receipts: Some(receipts), ..Faults::default() },
            Lie::OmitLogs => Faults { omit_logs: vec![everything], reach: Reach::Both, ..Faults::default() },
            Lie::AlterAmounts => Faults {
                alter_amounts: vec![AlteredAmount { pick: everything, value: U256::from(1) << 70 }],
                reach: Reach::Both,
                ..Faults::default()
            },
            Lie::ForgeLog(victim) => {
                let forge_logs = transfer_to(victim)
                    .map(|(token, to, value)| ForgedLog {
                        block: head + 1,
                        transaction: None,
                        token,
                        from,
                        to,
                        value,
                    })
                    .into_iter()
                    .collect();
                Faults { forge_logs, reach: Reach::Both, ..Faults::default() }
            }
            Lie::StaleBranch => Faults { follow: self.stale, ..Faults::default() },
        };
        self.set_faults(provider, faults);
    }

    // ---- after the storm ----

    /// Everybody is well; blocks go on. Ends when there is nothing left to do.
    async fn calm_down(&mut self, app: &App) -> Told {
        for provider in 0..self.hosts.len() {
            self.world.set_down(provider, false);
            self.set_faults(provider, Faults::default());
        }
        for merchant in 0..self.merchants {
            self.world.set_manner(merchant, Manner::Accept, Duration::from_millis(5));
        }
        let clock = self.world.clock().clone();
        let gives_up = clock.monotonic() + PATIENCE;
        loop {
            self.mine();
            clock.sleep(Duration::from_secs(10)).await;
            match self.unrest(app) {
                Ok(None) => return Told::Quiet,
                Ok(Some(why)) if clock.monotonic() > gives_up => return Told::Impatient(why),
                Ok(Some(_)) => {}
                Err(error) => return Told::Refused(error.to_string()),
            }
        }
    }

    /// What is not at its end yet, if anything.
    fn unrest(&self, app: &App) -> Result<Option<String>, StoreError> {
        let head = self.world.chain().head().number;
        let books = Books::read(&app.store, CHAIN)?;
        if let Some(row) = books.invoices.iter().find(|row| row.invoice.status().is_active()) {
            return Ok(Some(format!("{} stays {}", row.invoice.id, row.invoice.status())));
        }
        let unfinished = |state| matches!(state, DeliveryState::Queued | DeliveryState::Pending);
        if let Some(row) = books.deliveries.iter().find(|row| unfinished(row.state)) {
            return Ok(Some(format!("{} stays {}", row.id, row.state)));
        }
        if let Some(job) = checks::work_left(&app.store)?.first() {
            return Ok(Some(format!("{} {} stays {}", job.kind, job.id, job.state.as_str())));
        }
        let cursor = books.cursor.map_or(0, |cursor| cursor.block.number);
        Ok((cursor != head).then(|| format!("the cursor stays at {cursor}, the chain is at {head}")))
    }

    fn summary(&self, books: Option<&Books>) -> String {
        let counts = self.world.counts();
        let count = |kind| counts.get(kind).copied().unwrap_or(0);
        let (invoices, settled, payments, events, dead) = books.map_or((0, 0, 0, 0, 0), |books| {
            let settled = books.invoices.iter().filter(|row| row.settled_at.is_some()).count();
            let dead = books.deliveries.iter().filter(|row| row.state == DeliveryState::Dead).count();
            (books.invoices.len(), settled, books.payments.len(), books.events.len(), dead)
        });
        format!(
            "{:?}, {:?} roots, {} of {} providers; {} lives, {} blocks, {} calls, {} webhooks; {invoices} invoices, \
             {settled} settled, {payments} payments, {events} events, {dead} dead letters; {} s simulated",
            self.drive,
            self.roots,
            self.quorum,
            self.hosts.len(),
            self.lives,
            self.world.chain().head().number,
            count("call"),
            count("webhook"),
            self.world.clock().monotonic().as_secs(),
        )
    }
}

fn address(seed: u64, number: u64) -> Address {
    let mut preimage = [0; 16];
    preimage[..8].copy_from_slice(&seed.to_be_bytes());
    preimage[8..].copy_from_slice(&number.to_be_bytes());
    Address::from_word(keccak256(preimage))
}

#[cfg(test)]
mod tests {
    use domain::invoice::Status;
    use domain::payment::Stage;

    use super::*;

    /// A judge that finds nothing wrong with wrong books would make every storm a success.
    #[test]
    fn the_judge_notices_each_kind_of_wrong_book() {
        let directory = tempfile::tempdir().unwrap();
        let mut storm = Storm::new(1);
        let books = storm.live_on(directory.path()).unwrap();
        let truth = checks::truth(storm.world.chain(), CHAIN, &TOKENS);
        let arrivals = storm.world.arrivals();
        assert_eq!(checks::judge(&storm.case(&books, &truth, &arrivals)), Vec::<String>::new());

        let settled = |books: &mut Books| {
            books.invoices.iter().position(|row| row.invoice.status() == Status::Settled).unwrap()
        };
        type Wrong = (&'static str, fn(&mut Books, usize));
        let wrongs: [Wrong; 9] = [
            ("lost invoice", |books, at| drop(books.invoices.remove(at))),
            ("lost payment", |books, _| drop(books.payments.pop())),
            ("payment twice", |books, _| books.payments.push(books.payments[0].clone())),
            ("more than was paid", |books, at| books.invoices[at].invoice.paid.seen = Amount::from(1)),
            ("another amount", |books, _| books.payments[0].transfer.amount = Amount::from(123_456_789)),
            ("reverted for nothing", |books, _| books.payments[0].stage = Stage::Reverted),
            ("lost event", |books, _| drop(books.events.remove(0))),
            ("lost delivery", |books, _| {
                let subject = books.events.iter().find(|event| event.subject.is_some()).unwrap().position;
                books.deliveries.retain(|row| row.event_position != subject);
            }),
            ("cursor behind", |books, _| books.cursor.as_mut().unwrap().block.number -= 1),
        ];
        for (name, wrong) in wrongs {
            let mut altered = books.clone();
            let at = settled(&mut altered);
            wrong(&mut altered, at);
            assert!(!checks::judge(&storm.case(&altered, &truth, &arrivals)).is_empty(), "{name}");
        }

        let mut altered = arrivals.clone();
        altered.reverse();
        assert!(!checks::judge(&storm.case(&books, &truth, &altered)).is_empty(), "order of arrival");
        let mut altered = arrivals;
        altered[0].body = b"{}".as_slice().into();
        assert!(!checks::judge(&storm.case(&books, &truth, &altered)).is_empty(), "other bytes");
    }
}

//! Builds the whole program from configuration and ports; the simulator calls it too.
//!
//! Guarantees: nothing runs before the configuration is known to be possible (the quorum can hold, no provider serves another
//! chain, the database is ours alone); what an earlier run left is taken up before anything new is accepted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use domain::backoff::Backoff;
use domain::breaker::BreakerPolicy;
use domain::chain::ChainId;
use domain::chance::Chance;
use domain::delivery::DeliveryPolicy;
use domain::time::Clock;
use durable::engine::{Catalog, Engine, EngineError, EngineOptions, Policy, SameKind, TargetPolicy, ensure};
use durable::store::{Query, Store, StoreError, StoreOptions, block, event};
use outside::chain::{
    ChainProfile, ChainReader, HttpRpc, InvalidQuorum, ProviderSetup, ReaderSetup, RootMode, Rpc, WrongChains,
};
use outside::clock::SystemClock;
use outside::http::{AddressPolicy, Client, ClientOptions, Http, InvalidClient, Ports as TargetPorts};

use crate::config::{self, ChainConfig, Config};
use crate::features::claim::Recheck;
use crate::features::lookback::LookBack;
use crate::features::watch::{Watch, WatchInput};
use crate::features::webhook::Deliver;
use crate::telemetry::Telemetry;

/// How often the `safe` and `finalized` heights are asked for, in poll intervals.
const TAGS_EVERY_POLLS: u32 = 4;
/// Failures in a row after which an endpoint is left alone for a while.
const ENDPOINT_TRIPS_AFTER: u32 = 10;
/// An endpoint is never left alone for longer than this before it is tried again.
const ENDPOINT_PAUSE_CAP: Duration = Duration::from_secs(3600);
/// The longest `Retry-After` that is honoured.
const RETRY_AFTER_CAP: Duration = Duration::from_secs(24 * 3600);

/// How RPC endpoints are reached: one way in the product, another in the simulator.
pub type RpcOf = dyn Fn(&config::Provider) -> Arc<dyn Rpc> + Send + Sync;

/// What the program gets from outside itself.
#[derive(Clone)]
pub struct Ports {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub chance: Chance,
    /// How webhooks are sent.
    pub webhook_http: Arc<dyn Http>,
    /// How providers are asked.
    pub rpc: Arc<RpcOf>,
    /// How the database is opened.
    pub store: StoreOptions,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ports")
    }
}

impl Ports {
    /// The real ones.
    ///
    /// # Errors
    /// When the operating system gives no random bytes, or a client cannot be made.
    pub fn system(config: &Config) -> Result<Self, ComposeError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let chance = Chance::from_system().map_err(|error| ComposeError::System(error.to_string()))?;
        let webhook = ClientOptions::new(webhook_targets(config));
        let nodes = ClientOptions::new(AddressPolicy::unrestricted());
        let nodes: Arc<dyn Http> = Arc::new(Client::new(nodes, Arc::clone(&clock))?);
        let of_clock = Arc::clone(&clock);
        let rpc = move |provider: &config::Provider| {
            let url = provider.url.expose().clone();
            Arc::new(HttpRpc::new(Arc::clone(&nodes), Arc::clone(&of_clock), url)) as Arc<dyn Rpc>
        };
        Ok(Self {
            webhook_http: Arc::new(Client::new(webhook, Arc::clone(&clock))?),
            rpc: Arc::new(rpc),
            store: StoreOptions::default(),
            clock,
            chance,
        })
    }
}

/// What webhooks may be sent to.
#[must_use]
pub fn webhook_targets(config: &Config) -> AddressPolicy {
    AddressPolicy {
        allow_networks: config.webhook.allow_networks.clone(),
        allow_http: config.webhook.allow_http,
        allow_userinfo: false,
        ports: TargetPorts::Standard,
    }
}

/// The running program.
pub struct App {
    /// What survives.
    pub store: Store,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub chance: Chance,
    /// What it was told.
    pub config: Arc<Config>,
    /// What it measures.
    pub telemetry: Arc<Telemetry>,
    /// The chains it reads.
    pub chains: BTreeMap<ChainId, ChainReader>,
    /// What webhooks may be sent to.
    pub targets: AddressPolicy,
    /// The last event that an earlier run of the process had committed.
    pub events_before: u64,
    /// What works.
    pub engine: Engine,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Why the program does not start.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// The configuration cannot work: one line for each reason.
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    /// The store's reason.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine's reason.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A mistake in the program: two kinds of work have one name.
    #[error(transparent)]
    SameKind(#[from] SameKind),
    /// An HTTP client cannot be made.
    #[error(transparent)]
    Client(#[from] InvalidClient),
    /// The system's reason.
    #[error("{0}")]
    System(String),
}

impl App {
    /// Builds the program and starts its work.
    ///
    /// # Errors
    /// See [`ComposeError`]; nothing runs then.
    pub async fn start(config: Config, ports: Ports) -> Result<Arc<Self>, ComposeError> {
        let (app, catalog) = Self::build(config, ports).await?;
        let engine = Engine::start(app.store.clone(), catalog, EngineOptions::default()).await?;
        Ok(Arc::new(app.with(engine)))
    }

    /// Builds the program; its work is then done step by step, by whoever calls [`Engine::step`].
    ///
    /// # Errors
    /// As [`App::start`].
    pub async fn prepare(config: Config, ports: Ports) -> Result<Arc<Self>, ComposeError> {
        let (app, catalog) = Self::build(config, ports).await?;
        let engine = Engine::prepare(app.store.clone(), catalog, EngineOptions::default()).await?;
        Ok(Arc::new(app.with(engine)))
    }

    async fn build(config: Config, ports: Ports) -> Result<(Draft, Catalog), ComposeError> {
        let config = Arc::new(config);
        let chains = readers(&config, &ports)?;
        check_chains(&chains).await?;
        let store =
            Store::open(&config.store.path, ports.store, Arc::clone(&ports.clock), ports.chance.clone())?;
        let names = config
            .chains
            .iter()
            .map(|chain| (chain.id, chain.providers.iter().map(|provider| provider.name.as_str()).collect()));
        let telemetry = Arc::new(Telemetry::new(Arc::clone(&ports.clock), names));
        let targets = webhook_targets(&config);
        let catalog = catalog(&config, &ports, &chains, &telemetry, &targets)?;
        let events_before = begin(&store, &config).await?;
        let draft = Draft {
            store,
            events_before,
            clock: ports.clock,
            chance: ports.chance,
            config,
            telemetry,
            chains,
            targets,
        };
        Ok((draft, catalog))
    }

    /// Stops: nothing new is begun, what is under way may finish, the rest keeps its attempts.
    pub async fn stop(&self) {
        self.engine.stop(self.config.server.shutdown_grace).await;
    }
}

/// An [`App`] without its engine.
struct Draft {
    store: Store,
    events_before: u64,
    clock: Arc<dyn Clock>,
    chance: Chance,
    config: Arc<Config>,
    telemetry: Arc<Telemetry>,
    chains: BTreeMap<ChainId, ChainReader>,
    targets: AddressPolicy,
}

impl Draft {
    fn with(self, engine: Engine) -> App {
        let Self { store, events_before, clock, chance, config, telemetry, chains, targets } = self;
        App { store, clock, chance, config, telemetry, chains, targets, events_before, engine }
    }
}

/// One reader for each chain.
///
/// # Errors
/// A quorum that could never hold.
pub fn readers(config: &Config, ports: &Ports) -> Result<BTreeMap<ChainId, ChainReader>, ComposeError> {
    config
        .chains
        .iter()
        .map(|chain| {
            let setup = ReaderSetup {
                chain: chain.id,
                quorum: chain.quorum,
                profile: profile(chain),
                providers: chain.providers.iter().map(|provider| setup_of(provider, ports)).collect(),
                clock: Arc::clone(&ports.clock),
                chance: ports.chance.clone(),
                tags_every: chain.poll.saturating_mul(TAGS_EVERY_POLLS),
            };
            let reader = ChainReader::new(setup).map_err(|error: InvalidQuorum| {
                ComposeError::Config(vec![format!("chain {}: {error}", chain.id)])
            })?;
            Ok((chain.id, reader))
        })
        .collect()
}

fn setup_of(provider: &config::Provider, ports: &Ports) -> ProviderSetup {
    ProviderSetup {
        timeout: provider.timeout,
        calls_per_second: provider.max_per_second,
        ..ProviderSetup::new(&provider.name, &provider.group, (ports.rpc)(provider))
    }
}

fn profile(chain: &ChainConfig) -> ChainProfile {
    match chain.root_mode {
        None => ChainProfile::of_chain(chain.id),
        Some(config::RootMode::Eth) => ChainProfile::of(RootMode::Eth),
        Some(config::RootMode::Op) => ChainProfile::of(RootMode::Op),
        Some(config::RootMode::None) => ChainProfile::of(RootMode::None),
    }
}

/// A provider of another chain would lie without knowing: that is a mistake to mend, not a fault to bear.
async fn check_chains(chains: &BTreeMap<ChainId, ChainReader>) -> Result<(), ComposeError> {
    let checks = chains.values().map(ChainReader::check_chain_ids);
    let wrong: Vec<String> = futures::future::join_all(checks)
        .await
        .into_iter()
        .filter_map(Result::err)
        .map(|error: WrongChains| format!("{error}: correct its URL or the chain's id"))
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(ComposeError::Config(wrong)) }
}

/// Every kind of work, in one list.
fn catalog(
    config: &Config,
    ports: &Ports,
    chains: &BTreeMap<ChainId, ChainReader>,
    telemetry: &Arc<Telemetry>,
    targets: &AddressPolicy,
) -> Result<Catalog, SameKind> {
    let chains: BTreeMap<ChainId, (ChainReader, ChainConfig)> = config
        .chains
        .iter()
        .filter_map(|chain| Some((chain.id, (chains.get(&chain.id)?.clone(), chain.clone()))))
        .collect();
    let mut catalog = Catalog::new();
    // A watcher is never given up, however often the process dies under it.
    let forever = Policy { max_attempts: u32::MAX, max_crashes: u32::MAX, ..Policy::default() };
    catalog.register(Watch::new(chains.clone(), Arc::clone(telemetry)), forever)?;
    let patient = Policy { max_attempts: 1_000, max_crashes: 1_000, ..Policy::default() };
    let readers = chains.iter().map(|(chain, (reader, _))| (*chain, reader.clone())).collect();
    catalog.register(Recheck { chains: readers }, forever)?;
    catalog.register(LookBack { chains }, patient)?;
    let webhook = &config.webhook;
    let backoff = Backoff { initial: webhook.initial_backoff, cap: webhook.max_backoff, jitter_percent: 20 };
    let deliver = Deliver {
        http: Arc::clone(&ports.webhook_http),
        addresses: targets.clone(),
        policy: DeliveryPolicy {
            max_attempts: webhook.max_attempts,
            backoff,
            retry_after_cap: RETRY_AFTER_CAP,
        },
        deadline: webhook.timeout,
        clock: Arc::clone(&ports.clock),
        chance: ports.chance.clone(),
        telemetry: Arc::clone(telemetry),
    };
    catalog.register(deliver, delivery_policy(webhook, backoff))?;
    Ok(catalog)
}

/// The verdict on a delivery is the domain's; the engine only bounds and protects.
fn delivery_policy(webhook: &config::Webhook, backoff: Backoff) -> Policy {
    Policy {
        backoff,
        max_attempts: u32::MAX,
        deadline: webhook.timeout.saturating_add(Duration::from_secs(5)),
        // Every death of the process counts for all that it had under way, so the cap is for what kills it again and again.
        max_crashes: 100,
        concurrency: 512,
        target: Some(TargetPolicy {
            concurrency: webhook.endpoint_concurrency,
            breaker: BreakerPolicy {
                trip_after: ENDPOINT_TRIPS_AFTER,
                pause: webhook.initial_backoff,
                pause_cap: ENDPOINT_PAUSE_CAP.min(webhook.max_backoff),
            },
            held_at_most: webhook.max_hold,
        }),
    }
}

/// What has to exist before the engine starts: the assets that are always read, and one watcher for each chain.
/// Answers the position of the last event there is.
async fn begin(store: &Store, config: &Arc<Config>) -> Result<u64, StoreError> {
    let config = Arc::clone(config);
    store
        .write(move |tx| {
            let now = tx.now();
            for chain in &config.chains {
                for asset in chain.assets.keys() {
                    block::watch_asset(tx, chain.id, asset, now)?;
                }
                ensure::<Watch>(tx, &chain.id.to_string(), &WatchInput { chain: chain.id })?;
            }
            event::last_position(tx)
        })
        .await
}

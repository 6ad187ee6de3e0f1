//! The configuration as meant: parsed values, checked against each other, ready to be used.
//!
//! Guarantees: a [`Config`] that exists is valid; when something is wrong *every* problem is listed, one line each,
//! with its key, its value and what to do; and no secret (the user and path of an RPC URL, which is where providers
//! put their keys) is ever displayed.
//!
//! Relative paths in a file are relative to that file's directory, so that the server and the administrator's
//! commands mean the same database wherever they are started. The group of an endpoint that names none is its
//! registrable domain by a plain rule: the last two labels of a name; an IP literal with its port is a group of its own.
//! The plain rule takes `a.co.uk` and `b.co.uk` for one owner: name the group where that matters.

mod raw;
mod template;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use domain::chain::{Asset, ChainId, Confirmations};
use ipnet::IpNet;
use url::Url;

use raw::{Findings, Node, Section, Value};
pub use raw::{Origin, Problem, Setting};
pub use template::TEMPLATE;

/// Everything the process was told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The HTTP server.
    pub server: Server,
    /// Where state is kept.
    pub store: StoreConfig,
    /// The chains that are read. Never empty, no chain twice.
    pub chains: Vec<ChainConfig>,
    /// How merchants are told.
    pub webhook: Webhook,
    /// What is logged.
    pub log: Log,
}

/// The HTTP server.
#[derive(Debug, Clone)]
pub struct Server {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The base of every link we make; never taken from a request. Ends without a slash.
    pub public_url: String,
    /// Who may call the API.
    pub auth: Auth,
    /// The largest request body in bytes.
    pub max_body_bytes: usize,
    /// A request that is not answered by then is given up.
    pub request_timeout: Duration,
    /// How long work under way may take to finish when the process is asked to stop.
    pub shutdown_grace: Duration,
}

/// Who may call the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// Holders of an API key.
    Keys,
    /// Everyone who can connect; only on loopback.
    None,
}

/// Where state is kept.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The SQLite file.
    pub path: PathBuf,
}

/// One chain and those who tell us of it.
#[derive(Debug, Clone)]
pub struct ChainConfig {
    /// The chain.
    pub id: ChainId,
    /// How many groups must agree; at least 1, at most the number of groups.
    pub quorum: usize,
    /// When a payment counts as confirmed, unless the invoice says otherwise.
    pub confirmations: Confirmations,
    /// Which header roots can be checked; none means the built-in profile of the chain.
    pub root_mode: Option<RootMode>,
    /// Who is asked. No URL twice, no group twice.
    pub providers: Vec<Provider>,
    /// The pause between polls.
    pub poll: Duration,
    /// The first block to read when the store knows none; none means `lookback_blocks` below the head.
    pub start_block: Option<u64>,
    /// How far below the head a chain is begun that has no `start_block`.
    pub lookback_blocks: u64,
    /// Names and decimals of assets, for display.
    pub assets: BTreeMap<Asset, AssetConfig>,
}

/// Which roots of a chain's headers can be checked against receipts and transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootMode {
    /// Ethereum's encodings.
    Eth,
    /// The OP stack's encodings.
    Op,
    /// None: votes per log.
    None,
}

/// One RPC endpoint.
#[derive(Debug, Clone)]
pub struct Provider {
    /// How operators see it: its host, and its port if it has one. Unique within its chain.
    pub name: String,
    /// Where it is. Its path and user are secret.
    pub url: SecretUrl,
    /// Its owner, the unit of voting.
    pub group: String,
    /// The deadline of one call.
    pub timeout: Duration,
    /// At most this many calls a second, if limited.
    pub max_per_second: Option<u32>,
}

/// A URL whose user, path and query are secret: it displays as scheme and host.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(Url);

impl SecretUrl {
    /// Wraps a URL.
    #[must_use]
    pub const fn new(url: Url) -> Self {
        Self(url)
    }

    /// The URL itself, to connect to and for nothing else.
    #[must_use]
    pub const fn expose(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = self.0.path() != "/" || self.0.query().is_some() || !self.0.username().is_empty();
        write!(f, "{}://{}", self.0.scheme(), authority(&self.0))?;
        f.write_str(if hidden { "/…" } else { "" })
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An asset as people know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssetConfig {
    /// Its short name.
    pub symbol: String,
    /// How many decimals people write.
    pub decimals: u8,
}

/// How merchants are told.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Attempts before a delivery becomes a dead letter.
    pub max_attempts: u32,
    /// The deadline of one attempt, the answer's body included.
    pub timeout: Duration,
    /// The wait after the first failure.
    pub initial_backoff: Duration,
    /// No wait is longer.
    pub max_backoff: Duration,
    /// Networks that are refused otherwise.
    pub allow_networks: Vec<IpNet>,
    /// Whether `http://` is allowed.
    pub allow_http: bool,
    /// Attempts under way at once to one endpoint.
    pub endpoint_concurrency: u32,
    /// How long an event is held for an endpoint that is down.
    pub max_hold: Duration,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A filter such as `info` or `info,durable=debug`.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people on a terminal, JSON elsewhere.
    Auto,
    /// One JSON object per line.
    Json,
    /// Lines for people.
    Pretty,
}

/// A valid configuration, and what is to be said about it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Each value in use and where it came from, without secrets.
    pub settings: Vec<Setting>,
    /// What is allowed and unwise.
    pub warnings: Vec<Problem>,
}

/// Everything that is wrong with a configuration. Displays as one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Invalid(pub Vec<Problem>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "quittance.toml";

/// Reads the file (`None`: [`DEFAULT_FILE`] if it is there) with `environment` laid over it.
///
/// # Errors
/// Every problem there is.
pub fn load(path: Option<&Path>, environment: &[(String, String)]) -> Result<Loaded, Invalid> {
    let file = path.unwrap_or_else(|| Path::new(DEFAULT_FILE));
    let name = file.display().to_string();
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.is_none() => String::new(),
        Err(error) => {
            let what = format!(
                "cannot be read: {error}: name a file with --config, or write one with `quittance init`"
            );
            return Err(Invalid(vec![Problem { origin: Origin::Default, key: name, what }]));
        }
    };
    let directory = file.parent().unwrap_or(Path::new("")).to_path_buf();
    parse(&name, &text, &directory, environment)
}

/// As [`load`], with the file's text given. Relative paths are relative to `directory`.
///
/// # Errors
/// Every problem there is.
pub fn parse(
    name: &str,
    text: &str,
    directory: &Path,
    environment: &[(String, String)],
) -> Result<Loaded, Invalid> {
    let mut unreadable = Vec::new();
    let tree = raw::read(name, text, environment, &mut unreadable);
    if unreadable.iter().any(|problem| matches!(problem.origin, Origin::File(..))) {
        // What a broken text seems to mean is not worth judging.
        return Err(Invalid(unreadable));
    }
    let findings = Findings::default();
    let root = Section::new("", Some(&tree), &findings);
    let config = Config {
        server: read_server(&root, &findings),
        store: read_store(&root, &findings, directory),
        chains: read_chains(&root, &findings, directory),
        webhook: read_webhook(&root, &findings),
        log: read_log(&root, &findings),
    };
    refuse_future_sections(&root);
    root.finish();
    let mut problems = unreadable;
    problems.extend(findings.problems.into_inner());
    if problems.is_empty() {
        let (settings, warnings) = (findings.settings.into_inner(), findings.warnings.into_inner());
        Ok(Loaded { config, settings, warnings })
    } else {
        Err(Invalid(problems))
    }
}

/// Sections that are reserved: to ignore one would be to promise what is not done.
const FUTURE: [&str; 6] = ["x402", "signer", "operation", "fulfilment", "upstream", "keeper"];

fn refuse_future_sections(root: &Section<'_>) {
    for section in FUTURE {
        if root.ask(section).is_some() {
            root.refuse(section, "is not available in this version: remove the section");
        }
    }
}

fn read_server(root: &Section<'_>, findings: &Findings) -> Server {
    let section = Section::new("server", root.ask("server"), findings);
    let listen = section
        .parsed("listen", "an address and port such as 127.0.0.1:4020", |text| text.parse().ok())
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 4020)));
    section.note("listen", listen, section.ask("listen").is_some());

    let public_url = section
        .parsed(
            "public_url",
            "an http:// or https:// URL without query, such as https://pay.example.com",
            base_url,
        )
        .unwrap_or_else(|| format!("http://{listen}"));
    section.note("public_url", &public_url, section.ask("public_url").is_some());

    let auth = section
        .parsed("auth", "\"keys\" or \"none\"", |text| match text {
            "keys" => Some(Auth::Keys),
            "none" => Some(Auth::None),
            _ => None,
        })
        .unwrap_or(Auth::Keys);
    section.note("auth", if auth == Auth::Keys { "keys" } else { "none" }, section.ask("auth").is_some());
    if auth == Auth::None && !listen.ip().is_loopback() {
        section.refuse(
            "auth",
            format!("\"none\" is only allowed on loopback, and listen is {listen}: use \"keys\", or listen on 127.0.0.1"),
        );
    }

    let bytes = section.integer_or("max_body_bytes", 1024..=16_777_216, 1_048_576);
    let server = Server {
        listen,
        public_url,
        auth,
        max_body_bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
        request_timeout: section.millis_or("request_timeout_ms", 100..=600_000, 30_000),
        shutdown_grace: section.millis_or("shutdown_grace_ms", 0..=600_000, 10_000),
    };
    section.finish();
    server
}

fn base_url(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.host().is_some()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    plain.then(|| url.as_str().trim_end_matches('/').to_owned())
}

fn read_store(root: &Section<'_>, findings: &Findings, directory: &Path) -> StoreConfig {
    let section = Section::new("store", root.ask("store"), findings);
    let from_environment = matches!(section.origin_of("url"), Origin::Environment(_));
    let given = section.text("url");
    let file = given.unwrap_or("sqlite://quittance.db");
    let base = if from_environment { Path::new("") } else { directory };
    let path = match sqlite_path(file) {
        Ok(path) => base.join(path),
        Err(what) => {
            section.refuse("url", what);
            PathBuf::new()
        }
    };
    section.note("url", format!("sqlite://{}", path.display()), given.is_some());
    section.finish();
    StoreConfig { path }
}

fn sqlite_path(url: &str) -> Result<&str, String> {
    let scheme = url.split(':').next().unwrap_or_default();
    if matches!(scheme, "postgres" | "postgresql") {
        return Err(
            "PostgreSQL is not available in this version: use sqlite://, one process and one file".to_owned()
        );
    }
    match url.strip_prefix("sqlite://") {
        Some(path) if path.contains(":memory:") => Err(format!(
            "{url:?} would forget everything at exit: name a file, such as sqlite://quittance.db"
        )),
        Some(path) if !path.is_empty() && !path.contains(['?', '#']) => Ok(path),
        _ => Err(format!("{url:?} is not valid: expected a file such as sqlite://quittance.db")),
    }
}

fn read_chains(root: &Section<'_>, findings: &Findings, directory: &Path) -> Vec<ChainConfig> {
    let nodes = root.list("chain");
    if nodes.is_empty() {
        root.refuse(
            "chain",
            format!(
                "at least one [[chain]] is needed (or {}): `quittance init` writes an example",
                raw::RPC_ENDPOINTS
            ),
        );
    }
    let mut chains: Vec<ChainConfig> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let section = Section::new(format!("chain[{index}]"), Some(node), findings);
        if let Some(chain) = read_chain(&section, findings, directory) {
            if let Some(first) = chains.iter().position(|other| other.id == chain.id) {
                section.refuse("id", format!("{} is already chain[{first}]: merge the two", chain.id));
            }
            chains.push(chain);
        }
        section.finish();
    }
    chains
}

fn read_chain(section: &Section<'_>, findings: &Findings, directory: &Path) -> Option<ChainConfig> {
    let id = section.parsed("id", "a CAIP-2 chain such as eip155:8453", |text| text.parse().ok());
    if section.ask("id").is_none() {
        section.refuse("id", "is missing: name the chain, such as id = \"eip155:8453\"");
    }
    if let Some(id) = id {
        section.note("id", id, true);
    }
    let (providers, listed) = read_providers(section, findings, directory);
    let quorum = read_quorum(section, listed);
    let confirmations = read_confirmations(section);
    let root_mode = section.parsed("root_mode", "\"eth\", \"op\" or \"none\"", |text| match text {
        "eth" => Some(RootMode::Eth),
        "op" => Some(RootMode::Op),
        "none" => Some(RootMode::None),
        _ => None,
    });
    let set = section.ask("root_mode").is_some();
    section.note(
        "root_mode",
        root_mode.map_or("built-in profile".to_owned(), |mode| format!("{mode:?}").to_lowercase()),
        set,
    );
    let poll = section.millis_or("poll_ms", 10..=3_600_000, 1000);
    let start_block = section.integer("start_block", 0..=u64::MAX / 2);
    if let Some(block) = start_block {
        section.note("start_block", block, true);
    }
    let lookback_blocks = section.integer_or("lookback_blocks", 0..=1_000_000, 128);
    let assets = read_assets(section, findings, id);
    Some(ChainConfig {
        id: id?,
        quorum,
        confirmations,
        root_mode,
        providers,
        poll,
        start_block,
        lookback_blocks,
        assets,
    })
}

fn read_quorum(section: &Section<'_>, groups: usize) -> usize {
    let set = section.ask("quorum").is_some();
    let quorum = section.integer("quorum", 0..=1000);
    match quorum {
        Some(0) => {
            section.refuse("quorum", "0 would believe nobody: expected at least 1, better 2 of 3 groups")
        }
        Some(1) => {
            section.warn("quorum", "1 believes any single provider: use at least 2 where money matters")
        }
        _ => {}
    }
    // Without a word, two of whoever is there: the least that one liar cannot move.
    let quorum = quorum.map_or(2, |quorum| usize::try_from(quorum).unwrap_or(usize::MAX));
    if quorum > groups && groups > 0 {
        section.refuse(
            if set { "quorum" } else { "rpc_endpoints" },
            format!(
                "a quorum of {quorum} needs {quorum} groups, and there {} {groups}: add endpoints of other owners, or lower quorum",
                if groups == 1 { "is" } else { "are" }
            ),
        );
    }
    section.note("quorum", quorum, set);
    quorum
}

fn read_confirmations(section: &Section<'_>) -> Confirmations {
    let node = section.ask("confirmations");
    let text = match node.map(|node| &node.value) {
        None => None,
        Some(Value::Text(text) | Value::Integer(text)) => Some(text.clone()),
        Some(other) => Some(other.to_string()),
    };
    let parsed = text.as_deref().and_then(|text| text.parse().ok());
    if let (Some(text), None) = (&text, &parsed) {
        section.refuse(
            "confirmations",
            format!("{text:?} is not valid: expected a number of blocks from 1 to 10000, \"safe\" or \"finalized\""),
        );
    }
    let confirmations = parsed.unwrap_or(Confirmations::Depth(2));
    section.note("confirmations", confirmations, node.is_some());
    confirmations
}

fn read_providers(chain: &Section<'_>, findings: &Findings, directory: &Path) -> (Vec<Provider>, usize) {
    let nodes = chain.list("rpc_endpoints");
    if nodes.is_empty() {
        chain.refuse(
            "rpc_endpoints",
            "is missing: list at least as many endpoints, each of another owner, as quorum asks for",
        );
    }
    let mut providers: Vec<Provider> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let path = chain.key(&format!("rpc_endpoints[{index}]"));
        // A bare text is short for a table with only its URL.
        let table;
        let node = if matches!(node.value, Value::Text(_)) {
            let only = BTreeMap::from([("url".to_owned(), node.clone())]);
            table = Node { value: Value::Table(only), origin: node.origin.clone() };
            &table
        } else {
            node
        };
        let section = Section::new(path, Some(node), findings);
        if let Some(provider) = read_provider(&section, directory) {
            let same =
                |of: fn(&Provider) -> &str| providers.iter().position(|other| of(other) == of(&provider));
            if let Some(first) = providers.iter().position(|other| other.url == provider.url) {
                section
                    .refuse("url", format!("{} is already rpc_endpoints[{first}]: remove one", provider.url));
            } else if let Some(first) = same(|provider| &provider.group) {
                section.refuse(
                    "group",
                    format!(
                        "{:?} is already the group of rpc_endpoints[{first}]: each owner has one vote, so keep one endpoint of it",
                        provider.group
                    ),
                );
            }
            providers.push(provider);
        }
        section.finish();
    }
    for index in 1..providers.len() {
        let (earlier, rest) = providers.split_at_mut(index);
        if earlier.iter().any(|other| other.name == rest[0].name) {
            rest[0].name = format!("{}#{index}", rest[0].name);
        }
    }
    (providers, nodes.len())
}

fn read_provider(section: &Section<'_>, directory: &Path) -> Option<Provider> {
    let url = secret_text(section, "url", directory).and_then(|text| match rpc_url(&text) {
        Ok(url) => Some(url),
        Err(what) => {
            section.refuse("url", what);
            None
        }
    });
    let group = section.parsed("group", "a short name of the endpoint's owner", |text| {
        let plain = !text.trim().is_empty() && text.len() <= 64 && !text.chars().any(char::is_control);
        plain.then(|| text.to_owned())
    });
    let timeout = section.millis_or("timeout_ms", 1..=120_000, 2000);
    let max_per_second = section.integer("max_per_second", 1..=100_000);
    let url = url?;
    if url.scheme() == "http" && !is_local(&url) {
        section.warn(
            "url",
            format!("{} is not encrypted: anyone on the way can answer for it", SecretUrl(url.clone())),
        );
    }
    let set = group.is_some();
    let group = group.unwrap_or_else(|| group_of(&url));
    section.note("url", SecretUrl(url.clone()), true);
    section.note("group", &group, set);
    if let Some(limit) = max_per_second {
        section.note("max_per_second", limit, true);
    }
    let max_per_second = max_per_second.and_then(|limit| u32::try_from(limit).ok());
    Some(Provider { name: authority(&url), url: SecretUrl(url), group, timeout, max_per_second })
}

/// The text of a key that is secret: itself, or the contents of the file that `KEY_file` names.
fn secret_text(section: &Section<'_>, key: &str, directory: &Path) -> Option<String> {
    let file_key = format!("{key}_file");
    let (direct, file) = (section.text(key), section.text(&file_key));
    match (direct, file) {
        (Some(text), None) => Some(text.to_owned()),
        (None, Some(file)) => {
            let path = directory.join(file);
            warn_if_exposed(section, &file_key, &path);
            match std::fs::read_to_string(&path) {
                Ok(text) => Some(text.trim().to_owned()),
                Err(error) => {
                    section.refuse(&file_key, format!("{} cannot be read: {error}", path.display()));
                    None
                }
            }
        }
        (Some(_), Some(_)) => {
            section.refuse(&file_key, format!("`{key}` is set too: keep one of the two"));
            None
        }
        (None, None) => {
            section
                .refuse(key, format!("is missing: set {key}, or {file_key} to keep it in a file of its own"));
            None
        }
    }
}

fn warn_if_exposed(section: &Section<'_>, key: &str, path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path).map_or(0, |data| data.permissions().mode());
    if mode & 0o077 != 0 {
        section.warn(key, format!("{} can be read by others: chmod 600 it", path.display()));
    }
}

/// The problem never repeats the text: it may hold a key.
fn rpc_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error}): expected https://HOST/…"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!(
            "has the scheme {:?}: expected https:// (or http:// for a node of your own)",
            url.scheme()
        ));
    }
    if url.host().is_none() {
        return Err("names no host: expected https://HOST/…".to_owned());
    }
    Ok(url)
}

fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn is_local(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.ends_with(".localhost") || host.parse::<IpAddr>().is_ok_and(is_private)
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// See the module's words on groups.
fn group_of(url: &Url) -> String {
    match url.host() {
        Some(url::Host::Domain(name)) if name != "localhost" => {
            let labels: Vec<&str> = name.trim_end_matches('.').rsplit('.').take(2).collect();
            labels.into_iter().rev().collect::<Vec<_>>().join(".")
        }
        _ => authority(url),
    }
}

fn read_assets(
    chain: &Section<'_>,
    findings: &Findings,
    id: Option<ChainId>,
) -> BTreeMap<Asset, AssetConfig> {
    let mut assets = BTreeMap::new();
    for (index, node) in chain.list("asset").iter().enumerate() {
        let section = Section::new(chain.key(&format!("asset[{index}]")), Some(node), findings);
        let asset = section.parsed(
            "address",
            "a token's address (mixed case must be its EIP-55 checksum), or \"native\"",
            |text| Asset::parse_on(id.unwrap_or(ChainId::eip155(1)), text).ok(),
        );
        let symbol = section.parsed("symbol", "1 to 16 letters, digits, . - or $", |text| {
            let plain = (1..=16).contains(&text.len())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || ".-$".contains(c));
            plain.then(|| text.to_owned())
        });
        let decimals = section.integer("decimals", 0..=77);
        for key in ["address", "symbol", "decimals"] {
            if section.ask(key).is_none() {
                section.refuse(key, "is missing");
            }
        }
        if let (Some(asset), Some(symbol), Some(decimals)) = (asset, symbol, decimals) {
            section.note("address", asset, true);
            section.note("symbol", &symbol, true);
            section.note("decimals", decimals, true);
            let decimals = u8::try_from(decimals).unwrap_or_default();
            if assets.insert(asset, AssetConfig { symbol, decimals }).is_some() {
                section.refuse("address", format!("{asset} is listed twice: remove one"));
            }
        }
        section.finish();
    }
    assets
}

fn read_webhook(root: &Section<'_>, findings: &Findings) -> Webhook {
    let section = Section::new("webhook", root.ask("webhook"), findings);
    let count =
        |key, range, default| u32::try_from(section.integer_or(key, range, default)).unwrap_or(u32::MAX);
    let webhook = Webhook {
        max_attempts: count("max_attempts", 1..=1000, 28),
        timeout: section.millis_or("timeout_ms", 1..=300_000, 15_000),
        initial_backoff: section.millis_or("initial_backoff_ms", 1..=86_400_000, 5000),
        max_backoff: section.millis_or("max_backoff_ms", 1..=604_800_000, 14_400_000),
        allow_networks: read_networks(&section),
        allow_http: section.flag_or("allow_http", false),
        endpoint_concurrency: count("endpoint_concurrency", 1..=1000, 8),
        max_hold: section.millis_or("max_hold_ms", 1000..=31_536_000_000, 259_200_000),
    };
    if webhook.initial_backoff > webhook.max_backoff {
        section.refuse(
            "initial_backoff_ms",
            format!(
                "{} is longer than max_backoff_ms, which is {}: lower one or raise the other",
                webhook.initial_backoff.as_millis(),
                webhook.max_backoff.as_millis()
            ),
        );
    }
    section.finish();
    webhook
}

fn read_networks(section: &Section<'_>) -> Vec<IpNet> {
    let nodes = section.list("allow_networks");
    let mut networks = Vec::new();
    for node in &nodes {
        let parsed = match &node.value {
            Value::Text(text) => text.parse::<IpNet>().ok(),
            _ => None,
        };
        match parsed {
            Some(network) if network.addr() != network.network() => section.refuse(
                "allow_networks",
                format!("{network} has bits below its prefix: write {}", network.trunc()),
            ),
            Some(network) => networks.push(network),
            None => section.refuse(
                "allow_networks",
                format!(
                    "{} is not valid: expected networks such as \"10.0.0.0/8\" or \"fd00::/8\"",
                    node.value
                ),
            ),
        }
    }
    if networks.iter().any(|network| network.prefix_len() == 0) {
        section.warn(
            "allow_networks",
            "opens every address, private ones included, to whoever registers an endpoint",
        );
    }
    let shown: Vec<String> = networks.iter().map(IpNet::to_string).collect();
    section.note(
        "allow_networks",
        format!("[{}]", shown.join(", ")),
        section.ask("allow_networks").is_some(),
    );
    networks
}

fn read_log(root: &Section<'_>, findings: &Findings) -> Log {
    let section = Section::new("log", root.ask("log"), findings);
    let level = section
        .parsed("level", "a filter such as \"info\" or \"info,durable=debug\"", |text| {
            text.parse::<tracing_subscriber::EnvFilter>().ok().map(|_| text.to_owned())
        })
        .unwrap_or_else(|| "info".to_owned());
    section.note("level", &level, section.ask("level").is_some());
    let format = section
        .parsed("format", "\"auto\", \"json\" or \"pretty\"", |text| match text {
            "auto" => Some(LogFormat::Auto),
            "json" => Some(LogFormat::Json),
            "pretty" => Some(LogFormat::Pretty),
            _ => None,
        })
        .unwrap_or(LogFormat::Auto);
    section.note("format", format!("{format:?}").to_lowercase(), section.ask("format").is_some());
    section.finish();
    Log { level, format }
}

//! A bad configuration is refused with one clear line per problem, and all problems at once.

use std::path::Path;

use app::config::{self, Auth, Invalid, Loaded, RootMode};
use domain::chain::{ChainId, Confirmations};

fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Loaded, Invalid> {
    let environment: Vec<_> = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    config::parse("q.toml", text, Path::new("/etc/q"), &environment)
}

/// A valid chain on line 1 to 7, to which each case adds its mistake.
const CHAIN: &str = r#"[[chain]]
id = "eip155:1"
quorum = 2
rpc_endpoints = [
  { url = "https://rpc.alpha.example/v1/SECRETKEY", group = "alpha" },
  { url = "https://rpc.beta.example", group = "beta" },
]
"#;

#[test]
fn each_mistake_is_one_line_that_says_what_to_do() {
    let with = |more: &str| format!("{CHAIN}{more}");
    let chain = |keys: &str| format!("[[chain]]\n{keys}\n");
    let endpoint = |endpoint: &str| {
        chain(&format!(
            "id = \"eip155:1\"\nrpc_endpoints = [\n{endpoint},\n{{ url = \"https://b.example\" }}, {{ url = \"https://c.test\" }} ]"
        ))
    };
    let cases: &[(&str, String, &str)] = &[
        (
            "no chain",
            String::new(),
            "q.toml:1: chain: at least one [[chain]] is needed (or QUITTANCE_RPC_ENDPOINTS): `quittance init` writes an example",
        ),
        ("not TOML", with("a ="), "q.toml:8: is not TOML:"),
        (
            "unknown key, near",
            with("confirmatons = 3\n"),
            "q.toml:8: chain[0].confirmatons: is an unknown key: did you mean `confirmations`?",
        ),
        (
            "unknown key, far",
            with("[store]\ncolour = 1\n"),
            "q.toml:9: store.colour: is an unknown key: remove it (known here: url)",
        ),
        ("unknown section", with("[serve]\n"), "q.toml:8: serve: is an unknown key: did you mean `server`?"),
        (
            "unknown key of an endpoint",
            endpoint("{ url = \"https://a.example.org\", grup = \"a\" }"),
            "q.toml:4: chain[0].rpc_endpoints[0].grup: is an unknown key: did you mean `group`?",
        ),
        (
            "future section",
            with("[x402]\nsettle_deadline_ms = 1\n"),
            "q.toml:8: x402: is not available in this version: remove the section",
        ),
        (
            "future list",
            with("[[signer]]\nid = \"a\"\n"),
            "q.toml:8: signer: is not available in this version: remove the section",
        ),
        (
            "quorum above groups",
            with("").replace("quorum = 2", "quorum = 3"),
            "q.toml:3: chain[0].quorum: a quorum of 3 needs 3 groups, and there are 2: add endpoints of other owners, or lower quorum",
        ),
        (
            "quorum 0",
            with("").replace("quorum = 2", "quorum = 0"),
            "q.toml:3: chain[0].quorum: 0 would believe nobody: expected at least 1, better 2 of 3 groups",
        ),
        (
            "quorum as text",
            with("").replace("quorum = 2", "quorum = \"two\""),
            "q.toml:3: chain[0].quorum: \"two\" is not valid: expected a whole number from 0 to 1000",
        ),
        (
            "negative quorum",
            with("").replace("quorum = 2", "quorum = -1"),
            "q.toml:3: chain[0].quorum: -1 is not valid: expected a whole number from 0 to 1000",
        ),
        (
            "default quorum above groups",
            chain("id = \"eip155:1\"\nrpc_endpoints = [\"https://a.example\"]"),
            "q.toml:3: chain[0].rpc_endpoints: a quorum of 2 needs 2 groups, and there is 1: add endpoints of other owners, or lower quorum",
        ),
        (
            "duplicate URL",
            with("").replace("rpc.beta.example\"", "rpc.alpha.example/v1/SECRETKEY\""),
            "q.toml:6: chain[0].rpc_endpoints[1].url: https://rpc.alpha.example/… is already rpc_endpoints[0]: remove one",
        ),
        (
            "duplicate group",
            with("").replace("\"beta\"", "\"alpha\""),
            "q.toml:6: chain[0].rpc_endpoints[1].group: \"alpha\" is already the group of rpc_endpoints[0]: each owner has one vote, so keep one endpoint of it",
        ),
        (
            "duplicate chain",
            format!("{CHAIN}{CHAIN}"),
            "q.toml:9: chain[1].id: eip155:1 is already chain[0]: merge the two",
        ),
        (
            "no chain id",
            chain("rpc_endpoints = [\"https://a.example\", \"https://b.test\"]"),
            "q.toml:1: chain[0].id: is missing: name the chain, such as id = \"eip155:8453\"",
        ),
        (
            "bad chain id",
            with("").replace("eip155:1\"", "8453\""),
            "q.toml:2: chain[0].id: \"8453\" is not valid: expected a CAIP-2 chain such as eip155:8453",
        ),
        (
            "no endpoints",
            chain("id = \"eip155:1\""),
            "q.toml:1: chain[0].rpc_endpoints: is missing: list at least as many endpoints, each of another owner, as quorum asks for",
        ),
        (
            "bad URL",
            with("").replace("https://rpc.beta.example", "rpc beta"),
            "q.toml:6: chain[0].rpc_endpoints[1].url: is not a URL (relative URL without a base): expected https://HOST/…",
        ),
        (
            "bad scheme",
            with("").replace("https://rpc.beta.example", "wss://rpc.beta.example"),
            "q.toml:6: chain[0].rpc_endpoints[1].url: has the scheme \"wss\": expected https:// (or http:// for a node of your own)",
        ),
        (
            "no URL",
            endpoint("{ group = \"a\" }"),
            "q.toml:4: chain[0].rpc_endpoints[0].url: is missing: set url, or url_file to keep it in a file of its own",
        ),
        (
            "URL twice",
            endpoint("{ url = \"https://a.org\", url_file = \"f\" }"),
            "q.toml:4: chain[0].rpc_endpoints[0].url_file: `url` is set too: keep one of the two",
        ),
        (
            "URL in a file that is not there",
            endpoint("{ url_file = \"nowhere\" }"),
            "q.toml:4: chain[0].rpc_endpoints[0].url_file: /etc/q/nowhere cannot be read: No such file or directory (os error 2)",
        ),
        (
            "zero timeout",
            endpoint("{ url = \"https://a.org\", timeout_ms = 0 }"),
            "q.toml:4: chain[0].rpc_endpoints[0].timeout_ms: 0 is not valid: expected a whole number from 1 to 120000",
        ),
        (
            "confirmations 0",
            with("confirmations = 0\n"),
            "q.toml:8: chain[0].confirmations: \"0\" is not valid: expected a number of blocks from 1 to 10000, \"safe\" or \"finalized\"",
        ),
        (
            "confirmations word",
            with("confirmations = \"soon\"\n"),
            "q.toml:8: chain[0].confirmations: \"soon\" is not valid: expected a number of blocks from 1 to 10000, \"safe\" or \"finalized\"",
        ),
        (
            "confirmations fraction",
            with("confirmations = 1.5\n"),
            "q.toml:8: chain[0].confirmations: \"1.5\" is not valid: expected a number of blocks from 1 to 10000, \"safe\" or \"finalized\"",
        ),
        (
            "root_mode",
            with("root_mode = \"arb\"\n"),
            "q.toml:8: chain[0].root_mode: \"arb\" is not valid: expected \"eth\", \"op\" or \"none\"",
        ),
        (
            "poll 0",
            with("poll_ms = 0\n"),
            "q.toml:8: chain[0].poll_ms: 0 is not valid: expected a whole number from 10 to 3600000",
        ),
        (
            "asset checksum",
            with(
                "[[chain.asset]]\naddress = \"0x036cbD53842c5426634e7929541eC2318f3dCF7e\"\nsymbol = \"USDC\"\ndecimals = 6\n",
            ),
            "q.toml:9: chain[0].asset[0].address: \"0x036cbD53842c5426634e7929541eC2318f3dCF7e\" is not valid: expected a token's address (mixed case must be its EIP-55 checksum), or \"native\"",
        ),
        (
            "asset decimals",
            with("[[chain.asset]]\naddress = \"native\"\nsymbol = \"ETH\"\ndecimals = 78\n"),
            "q.toml:11: chain[0].asset[0].decimals: 78 is not valid: expected a whole number from 0 to 77",
        ),
        (
            "asset without symbol",
            with("[[chain.asset]]\naddress = \"native\"\ndecimals = 18\n"),
            "q.toml:8: chain[0].asset[0].symbol: is missing",
        ),
        (
            "listen",
            with("[server]\nlisten = \"4020\"\n"),
            "q.toml:9: server.listen: \"4020\" is not valid: expected an address and port such as 127.0.0.1:4020",
        ),
        (
            "auth none in public",
            with("[server]\nlisten = \"0.0.0.0:4020\"\nauth = \"none\"\n"),
            "q.toml:10: server.auth: \"none\" is only allowed on loopback, and listen is 0.0.0.0:4020: use \"keys\", or listen on 127.0.0.1",
        ),
        (
            "auth word",
            with("[server]\nauth = \"off\"\n"),
            "q.toml:9: server.auth: \"off\" is not valid: expected \"keys\" or \"none\"",
        ),
        (
            "public_url",
            with("[server]\npublic_url = \"pay.example.com\"\n"),
            "q.toml:9: server.public_url: \"pay.example.com\" is not valid: expected an http:// or https:// URL without query, such as https://pay.example.com",
        ),
        (
            "postgres",
            with("[store]\nurl = \"postgres://u:p@h/d\"\n"),
            "q.toml:9: store.url: PostgreSQL is not available in this version: use sqlite://, one process and one file",
        ),
        (
            "store scheme",
            with("[store]\nurl = \"mysql://h/d\"\n"),
            "q.toml:9: store.url: \"mysql://h/d\" is not valid: expected a file such as sqlite://quittance.db",
        ),
        (
            "store in memory",
            with("[store]\nurl = \"sqlite://:memory:\"\n"),
            "q.toml:9: store.url: \"sqlite://:memory:\" would forget everything at exit: name a file, such as sqlite://quittance.db",
        ),
        (
            "CIDR",
            with("[webhook]\nallow_networks = [\"10.0.0.0/33\"]\n"),
            "q.toml:9: webhook.allow_networks: \"10.0.0.0/33\" is not valid: expected networks such as \"10.0.0.0/8\" or \"fd00::/8\"",
        ),
        (
            "CIDR with host bits",
            with("[webhook]\nallow_networks = [\"10.0.0.1/8\"]\n"),
            "q.toml:9: webhook.allow_networks: 10.0.0.1/8 has bits below its prefix: write 10.0.0.0/8",
        ),
        (
            "backoff order",
            with("[webhook]\ninitial_backoff_ms = 2000\nmax_backoff_ms = 1000\n"),
            "q.toml:9: webhook.initial_backoff_ms: 2000 is longer than max_backoff_ms, which is 1000: lower one or raise the other",
        ),
        (
            "webhook timeout",
            with("[webhook]\ntimeout_ms = 0\n"),
            "q.toml:9: webhook.timeout_ms: 0 is not valid: expected a whole number from 1 to 300000",
        ),
        (
            "flag as text",
            with("[webhook]\nallow_http = \"yes\"\n"),
            "q.toml:9: webhook.allow_http: \"yes\" is not valid: expected true or false",
        ),
        (
            "table as value",
            with("webhook = 3\n").replace("webhook", "asset"),
            "q.toml:8: chain[0].asset: is 3, and should be a list in [ ]",
        ),
        (
            "log level",
            with("[log]\nlevel = \"a=b=c\"\n"),
            "q.toml:9: log.level: \"a=b=c\" is not valid: expected a filter such as \"info\" or \"info,durable=debug\"",
        ),
        (
            "hex",
            with("lookback_blocks = 0x10\n"),
            "q.toml:8: chain[0].lookback_blocks: 0x10 is not valid: expected a whole number from 0 to 1000000",
        ),
    ];
    let mut wrong = String::new();
    for (name, text, line) in cases {
        let shown = parse(text, &[]).map_or_else(|invalid| invalid.to_string(), |_| "accepted".to_owned());
        if !shown.starts_with(line) || shown.lines().count() != 1 || shown.contains("SECRETKEY") {
            wrong += &format!("{name}\n  expected {line}\n  got      {shown}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn all_problems_are_listed_at_once() {
    let text = "[server]\nlisten = 1\nauth = \"maybe\"\n[store]\nurl = \"x\"\n[[chain]]\nid = \"base\"\nquorum = 0\n[nonsense]\n";
    let invalid = parse(text, &[]).unwrap_err();
    let keys: Vec<&str> = invalid.0.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "server.listen",
            "server.auth",
            "store.url",
            "chain[0].id",
            "chain[0].rpc_endpoints",
            "chain[0].quorum",
            "nonsense"
        ]
    );
}

#[test]
fn the_environment_is_laid_over_the_file() {
    let loaded = parse(
        CHAIN,
        &[
            ("QUITTANCE__CHAIN__0__QUORUM", "1"),
            ("QUITTANCE__CHAIN__0__RPC_ENDPOINTS__2__URL", "https://third.example.org/KEY2"),
            ("QUITTANCE__SERVER__LISTEN", "127.0.0.1:9"),
            ("QUITTANCE__WEBHOOK__ALLOW_NETWORKS", "10.0.0.0/8, fd00::/8"),
            ("QUITTANCE__WEBHOOK__ALLOW_HTTP", "true"),
            ("QUITTANCE__STORE__URL", "sqlite://here.db"),
            ("QUITTANCE_KEY", "not ours to read"),
        ],
    )
    .unwrap();
    let config = loaded.config;
    assert_eq!(config.chains[0].quorum, 1);
    assert_eq!(config.chains[0].providers[2].group, "example.org");
    assert_eq!(config.server.listen.port(), 9);
    assert_eq!(config.webhook.allow_networks.len(), 2);
    assert!(config.webhook.allow_http);
    assert_eq!(config.store.path, Path::new("here.db"), "the environment's paths are the process's own");
    let origin = |key: &str| {
        loaded.settings.iter().find(|setting| setting.key == key).map(|setting| setting.origin.to_string())
    };
    assert_eq!(origin("chain[0].quorum").as_deref(), Some("env QUITTANCE__CHAIN__0__QUORUM"));
    assert_eq!(origin("chain[0].id").as_deref(), Some("q.toml:2"));
    assert_eq!(origin("webhook.max_attempts").as_deref(), Some("default"));
    for setting in &loaded.settings {
        assert!(!setting.value.contains("KEY"), "{setting:?}");
    }
    assert!(!format!("{config:?}").contains("KEY"), "Debug shows a secret");
}

#[test]
fn bad_variables_are_refused_by_name() {
    for (variable, value, line) in [
        (
            "QUITTANCE__CHAIN__7__QUORUM",
            "1",
            "env QUITTANCE__CHAIN__7__QUORUM: chain: is a list of 1: name an element by its number, from 0",
        ),
        ("QUITTANCE__SERVER__PORT", "1", "env QUITTANCE__SERVER__PORT: server.port: is an unknown key:"),
        (
            "QUITTANCE__CHAIN__0__ID__X",
            "1",
            "env QUITTANCE__CHAIN__0__ID__X: chain.0.id: is a plain value: nothing can be set inside it",
        ),
        ("QUITTANCE____X", "1", "env QUITTANCE____X: names no key: write QUITTANCE__SECTION__KEY"),
        (
            "QUITTANCE_RPC_ENDPOINTS",
            "https://a",
            "env QUITTANCE_RPC_ENDPOINTS: write CHAIN=URL,URL;CHAIN=URL",
        ),
        (
            "QUITTANCE__WEBHOOK__ALLOW_HTTP",
            "1",
            "env QUITTANCE__WEBHOOK__ALLOW_HTTP: webhook.allow_http: \"1\" is not valid: expected true or false",
        ),
    ] {
        let shown = parse(CHAIN, &[(variable, value)]).expect_err(variable).to_string();
        assert!(shown.starts_with(line), "{variable}\n  expected {line}\n  got      {shown}");
    }
}

#[test]
fn endpoints_from_the_environment_replace_and_add() {
    let list = "eip155:1=http://127.0.0.1:1,http://127.0.0.1:2,http://[::1]:3; eip155:8453=https://a.one.example,https://b.two.test";
    let loaded = parse(CHAIN, &[("QUITTANCE_RPC_ENDPOINTS", list)]).unwrap();
    let chains = &loaded.config.chains;
    let groups = |index: usize| -> Vec<&str> {
        chains[index].providers.iter().map(|provider| provider.group.as_str()).collect()
    };
    assert_eq!(groups(0), ["127.0.0.1:1", "127.0.0.1:2", "[::1]:3"]);
    assert_eq!((chains[1].id, groups(1)), (ChainId::eip155(8453), vec!["one.example", "two.test"]));
    let alone = parse("", &[("QUITTANCE_RPC_ENDPOINTS", list)]).unwrap();
    assert_eq!(alone.config.chains.len(), 2);
}

#[test]
fn secrets_are_read_from_files_beside_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("alpha.url"), "https://rpc.alpha.example/KEY\n").unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(directory.path().join("alpha.url"), open).unwrap();
    let text = CHAIN.replace("url = \"https://rpc.alpha.example/v1/SECRETKEY\"", "url_file = \"alpha.url\"");
    std::fs::write(directory.path().join("quittance.toml"), text).unwrap();
    let loaded = config::load(Some(&directory.path().join("quittance.toml")), &[]).unwrap();
    let provider = &loaded.config.chains[0].providers[0];
    assert_eq!(provider.url.expose().path(), "/KEY");
    assert_eq!(provider.url.to_string(), "https://rpc.alpha.example/…");
    let warned: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert!(warned.len() == 1 && warned[0].ends_with("can be read by others: chmod 600 it"), "{warned:?}");
    assert_eq!(loaded.config.store.path, directory.path().join("quittance.db"));
}

#[test]
fn a_missing_file_that_was_named_is_a_problem() {
    let invalid = config::load(Some(Path::new("/nowhere/q.toml")), &[]).unwrap_err().to_string();
    assert!(invalid.starts_with("/nowhere/q.toml: cannot be read"), "{invalid}");
}

#[test]
fn what_init_writes_is_valid_and_shows_the_defaults() {
    let loaded = parse(config::TEMPLATE, &[]).unwrap();
    let config = loaded.config;
    assert_eq!(config.server.auth, Auth::Keys);
    assert_eq!(config.chains[0].confirmations, Confirmations::Depth(2));
    assert_eq!(config.chains[0].providers.len(), 3);
    assert_eq!(config.webhook.max_attempts, 28);
    assert_eq!(config.server.public_url, "http://127.0.0.1:4020");
    // Every line that is commented out holds the default of its key, or is an example in a list.
    let opened: String = config::TEMPLATE
        .lines()
        .filter(|line| !line.contains("url_file") && !line.contains("allow_networks"))
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") && !rest.contains("QUITTANCE__") => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let opened = parse(&opened, &[]).unwrap().config;
    assert_eq!(opened.chains[0].root_mode, Some(RootMode::Eth));
    assert_eq!(opened.webhook.max_hold, config.webhook.max_hold);
    assert_eq!(opened.webhook.max_backoff, config.webhook.max_backoff);
    assert_eq!(opened.chains[0].lookback_blocks, config.chains[0].lookback_blocks);
    assert_eq!(opened.server.request_timeout, config.server.request_timeout);
}

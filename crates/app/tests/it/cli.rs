//! The program as it is started: exit codes, what goes to which stream, and a server that comes and goes.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use domain::time::Clock;
use outside::clock::SystemClock;
use outside::guard::deadline::within;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command as AsyncCommand};

use crate::world::{CHAIN, Settings, World, recipient};

const PATIENCE: Duration = Duration::from_secs(30);

fn quittance(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quittance"))
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    })
}

fn words_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_way_it_ends_says_how_it_went() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let code = |arguments: &[&str]| quittance(here, arguments).status.code().unwrap();
    assert_eq!(code(&["check-config"]), 78, "nothing is configured");
    assert_eq!(code(&["serve"]), 78);
    assert_eq!(code(&["init"]), 0);
    assert_eq!(code(&["init"]), 1, "nothing is overwritten");
    assert_eq!(code(&["check-config"]), 0);
    assert_eq!(code(&["frobnicate"]), 2);
    assert_eq!(code(&["invoice", "create"]), 2);
    assert_eq!(code(&["key", "create", "--name", "a", "--scope", "root"]), 2);
    assert_eq!(code(&["--server", "http://127.0.0.1:9", "invoice", "list"]), 1);
    assert_eq!(code(&["verify-evidence", "nowhere.json"]), 1);
    assert_eq!(code(&["openapi"]), 0);
    assert_eq!(code(&["completions", "bash"]), 0);
    assert_eq!(code(&["man"]), 0);

    std::fs::write(here.join("bad.toml"), "[serve]\n[x402]\n[[chain]]\nid = \"base\"\n").unwrap();
    let bad = quittance(here, &["check-config", "--config", "bad.toml"]);
    assert_eq!(bad.status.code(), Some(78));
    assert!(bad.stdout.is_empty(), "what is wrong is no result");
    assert_eq!(words_of(&bad).lines().count(), 4, "{}", words_of(&bad));

    let shown = quittance(here, &["check-config", "--show", "--json"]);
    assert_eq!(json_of(&shown)["valid"], true);
    assert!(json_of(&shown)["settings"].as_array().unwrap().len() > 20);
}

#[test]
fn keys_are_made_once_and_revoked() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    quittance(here, &["init"]);
    let made = json_of(&quittance(here, &["key", "create", "--name", "till", "--json"]));
    let key = made["key"].as_str().unwrap();
    assert!(app::api::auth::is_well_formed(key), "{key}");
    let listed = quittance(here, &["key", "list", "--json"]);
    assert!(!String::from_utf8_lossy(&listed.stdout).contains(key), "a key is shown once");
    assert_eq!(json_of(&listed)["data"][0]["name"], "till");
    let id = made["id"].as_str().unwrap();
    assert_eq!(quittance(here, &["key", "revoke", id]).status.code(), Some(0));
    assert_eq!(quittance(here, &["key", "revoke", id]).status.code(), Some(1));
    for entry in std::fs::read_dir(here).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(key.len()).any(|window| window == key.as_bytes()), "the key itself is kept");
    }
    assert_eq!(json_of(&quittance(here, &["db", "check", "--json"]))["sound"], true);
}

/// A server of its own process, and what it takes to speak to it.
struct Served {
    child: Child,
    url: String,
    key: String,
}

impl Served {
    async fn start(directory: &Path) -> Self {
        let key = json_of(&quittance(directory, &["key", "create", "--name", "test", "--json"]));
        let mut child = AsyncCommand::new(env!("CARGO_BIN_EXE_quittance"))
            .args(["serve", "--json"])
            .current_dir(directory)
            .env_clear()
            .stdout(Stdio::piped())
            .stderr(Stdio::from(std::fs::File::create(directory.join("log")).unwrap()))
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let clock = SystemClock::new();
        let first = within(&clock, PATIENCE, lines.next_line()).await.expect("it never listened").unwrap();
        let said: Value = serde_json::from_str(&first.expect("it ended")).unwrap();
        let url = said["listening"].as_str().unwrap().to_owned();
        Self { child, url, key: key["key"].as_str().unwrap().to_owned() }
    }

    async fn ask(&self, directory: &Path, arguments: &[&str]) -> Output {
        let mut all = vec!["--json", "--server", self.url.as_str(), "--key", self.key.as_str()];
        all.extend(arguments);
        let all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let directory = directory.to_owned();
        let asking = tokio::task::spawn_blocking(move || {
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            quittance(&directory, &all)
        });
        asking.await.unwrap()
    }

    /// SIGTERM, and the exit code.
    async fn stop(mut self) -> Option<i32> {
        let id = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let clock = SystemClock::new();
        within(&clock, PATIENCE, self.child.wait()).await.expect("it did not stop").unwrap().code()
    }
}

fn configure(world: &World, directory: &Path) {
    let endpoints: Vec<String> = world
        .faces
        .iter()
        .enumerate()
        .map(|(n, face)| format!("{{ url = \"{}\", group = \"g{n}\" }}", face.url()))
        .collect();
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[store]\nurl = \"sqlite://q.db\"\n[[chain]]\nid = \"{CHAIN}\"\n\
         confirmations = 1\nroot_mode = \"eth\"\npoll_ms = 20\nstart_block = 0\nrpc_endpoints = [{}]\n\
         [[chain.asset]]\naddress = \"{}\"\nsymbol = \"DUSD\"\ndecimals = 6\n\
         [webhook]\nallow_networks = [\"127.0.0.0/8\"]\nallow_http = true\n",
        endpoints.join(", "),
        devchain::token::CONTRACTS.dollar,
    );
    std::fs::write(directory.join("quittance.toml"), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_used_from_the_command_line() {
    let world = World::stopped(Settings::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    configure(&world, here);
    let server = Served::start(here).await;
    let chain = CHAIN.to_string();
    let to = recipient(1).to_string();
    let create = [
        "invoice",
        "create",
        "--chain",
        &chain,
        "--asset",
        "DUSD",
        "--amount",
        "5",
        "--recipient",
        &to,
        "--expires-in",
        "2h",
        "--metadata",
        "{\"a\":1}",
        "--idempotency-key",
        "once",
    ];
    let made = json_of(&server.ask(here, &create).await);
    let id = made["id"].as_str().unwrap().to_owned();
    assert_eq!(json_of(&server.ask(here, &create).await)["id"], made["id"], "done once");
    assert_eq!(made["metadata"], json!({"a": 1}));

    // A key made while the server runs is known at once; a second server on the database is refused.
    let second = server.ask(here, &["key", "create", "--name", "second", "--scope", "read"]).await;
    assert_eq!(second.status.code(), Some(0), "{}", words_of(&second));
    let other = Served {
        child: AsyncCommand::new("true").spawn().unwrap(),
        url: server.url.clone(),
        key: json_of(&second)["key"].as_str().unwrap().to_owned(),
    };
    let refused = other.ask(here, &["invoice", "cancel", &id]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(words_of(&refused).contains("403 forbidden"), "{}", words_of(&refused));
    let rival = server.ask(here, &["serve"]).await;
    assert_eq!(rival.status.code(), Some(1));
    assert!(words_of(&rival).contains("in use by another running process"), "{}", words_of(&rival));

    world.pay(recipient(1), 5);
    world.chain.mine_n(2);
    let clock = SystemClock::new();
    let settling = async {
        loop {
            let shown = json_of(&server.ask(here, &["invoice", "show", &id]).await);
            if shown["status"] == "settled" {
                return shown;
            }
            clock.sleep(Duration::from_millis(20)).await;
        }
    };
    within(&clock, PATIENCE, settling).await.expect("it never settled");

    // The quittance, checked offline.
    let bundle = server.ask(here, &["invoice", "evidence", &id]).await;
    assert_eq!(bundle.status.code(), Some(0), "{}", words_of(&bundle));
    std::fs::write(here.join("e.json"), &bundle.stdout).unwrap();
    let keys = signing_key(&server, here).await;
    let verify = |more: &[&str]| {
        let mut arguments = vec!["verify-evidence", "e.json", "--json"];
        arguments.extend(more);
        quittance(here, &arguments)
    };
    assert_eq!(verify(&[]).status.code(), Some(8), "agreeing with itself proves nothing");
    assert_eq!(verify(&["--trust", &keys]).status.code(), Some(0));
    let hash = json_of(&verify(&[]))["payments"][0]["block_hash"].as_str().unwrap().to_owned();
    assert_eq!(verify(&["--anchor", &hash]).status.code(), Some(0));
    assert_eq!(verify(&["--anchor", &format!("0x{}", "11".repeat(32))]).status.code(), Some(1));
    let changed =
        String::from_utf8(bundle.stdout).unwrap().replacen("\"amount\":\"5\"", "\"amount\":\"6\"", 1);
    std::fs::write(here.join("e.json"), changed).unwrap();
    assert_eq!(verify(&["--trust", &keys]).status.code(), Some(1));

    // Following the log from the start forwards every event, signed, and keeps the place.
    world.merchant.trust("/listen", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let target = world.merchant.url("/listen");
    let listen = [
        "webhook",
        "listen",
        "--forward",
        &target,
        "--from-start",
        "--once",
        "--secret",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    ];
    let heard = server.ask(here, &listen).await;
    assert_eq!(heard.status.code(), Some(0), "{}", words_of(&heard));
    let lines = String::from_utf8(heard.stdout).unwrap();
    assert!(lines.lines().count() >= 2 && lines.contains("invoice.settled"), "{lines}");
    let again = server.ask(here, &listen).await;
    assert_eq!(String::from_utf8(again.stdout).unwrap(), "", "the place was kept");
    let arrivals = world.merchant.arrivals();
    assert_eq!(arrivals.len(), lines.lines().count());
    assert!(
        arrivals.iter().all(|arrival| arrival.signature == sim::receiver::Signature::Valid),
        "{arrivals:?}"
    );

    let doctor = server.ask(here, &["doctor"]).await;
    let findings = json_of(&doctor);
    let quorum = findings["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["what"].as_str().unwrap().starts_with("quorum"));
    assert_eq!(quorum.unwrap()["ok"], true, "{findings}");

    let key = server.key.clone();
    assert_eq!(server.stop().await, Some(0));
    let log = std::fs::read_to_string(here.join("log")).unwrap();
    assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "not JSON lines: {log}");
    assert!(log.contains(&format!("\"invoice_uuid\":\"{id}\"")), "{log}");
    assert!(!log.contains(&key) && !log.contains("whsec_"), "a secret is in the log");
}

async fn signing_key(server: &Served, here: &Path) -> String {
    // Evidence keys have no command of their own: the bundle names its key, and whoever knows the server compares.
    let shown = server.ask(here, &["verify-evidence", "e.json"]).await;
    json_of(&shown)["key"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_of_another_chain_is_a_bad_configuration() {
    let world = World::stopped(Settings::default()).await;
    let directory = tempfile::tempdir().unwrap();
    configure(&world, directory.path());
    let file = directory.path().join("quittance.toml");
    let text = std::fs::read_to_string(&file).unwrap().replace(&CHAIN.to_string(), "eip155:1");
    std::fs::write(&file, text).unwrap();
    let here = directory.path().to_owned();
    let refused = tokio::task::spawn_blocking(move || quittance(&here, &["serve"])).await.unwrap();
    assert_eq!(refused.status.code(), Some(78), "{}", words_of(&refused));
    assert!(words_of(&refused).contains("serves chain 31337, not 1"), "{}", words_of(&refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_has_an_exit_code_of_its_own() {
    let world = World::stopped(Settings::default()).await;
    world.merchant.behave("/a/v1/invoices", sim::receiver::Behaviour::HangUp);
    let server = world.merchant.url("/a");
    let asked = tokio::task::spawn_blocking(move || {
        let to = recipient(1).to_string();
        let create = [
            "invoice",
            "create",
            "--chain",
            "eip155:1",
            "--asset",
            "native",
            "--amount",
            "5",
            "--recipient",
            &to,
        ];
        let here = tempfile::tempdir().unwrap();
        let ask = |arguments: &[&str]| {
            let mut all = vec!["--server", server.as_str()];
            all.extend(arguments);
            quittance(here.path(), &all)
        };
        (ask(&create), ask(&["invoice", "list"]))
    });
    let (created, listed) = asked.await.unwrap();
    assert_eq!(created.status.code(), Some(8), "{}", words_of(&created));
    assert_eq!(listed.status.code(), Some(1), "a question changes nothing");
    let arrivals = world.merchant.arrivals();
    let posts: Vec<_> = arrivals.iter().filter(|arrival| !arrival.idempotency_key.is_empty()).collect();
    assert!(posts.len() > 1, "it was tried again");
    let first = posts.first().unwrap();
    assert!(
        posts
            .iter()
            .all(|arrival| arrival.idempotency_key == first.idempotency_key && arrival.body == first.body)
    );
}

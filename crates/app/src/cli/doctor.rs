//! `quittance doctor`: asks every dependency, and says what to do about what does not work.
//!
//! It changes nothing but a file it makes and removes beside the database. It exits 1 when something needs mending, and 78
//! when the configuration itself does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use domain::chain::ChainId;
use domain::chance::Chance;
use domain::time::{Clock, Timestamp};
use durable::store::{Access, Store, StoreError, StoreOptions};
use futures::future::join_all;
use outside::chain::wire::{decode_header_answer, decode_quantity, decode_receipts};
use outside::chain::{Call, ChainProfile, HttpRpc, Rpc, RpcError};
use outside::clock::SystemClock;
use outside::http::{AddressPolicy, Client, ClientOptions, Http};
use serde::Serialize;

use super::output::Output;
use super::{Failure, environment};
use crate::config::{self, ChainConfig, Config, Provider};

/// How far a block's time may lie ahead of our clock.
const AHEAD: Duration = Duration::from_secs(30);
/// How old the newest block may be.
const STALE: Duration = Duration::from_secs(600);

#[derive(Debug, Serialize)]
struct Finding {
    ok: bool,
    what: String,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'static str>,
}

impl Finding {
    fn good(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { ok: true, what: what.into(), detail: detail.into(), advice: None }
    }

    fn bad(what: impl Into<String>, detail: impl Into<String>, advice: &'static str) -> Self {
        Self { ok: false, what: what.into(), detail: detail.into(), advice: Some(advice) }
    }
}

pub(super) async fn run(file: Option<&Path>, output: Output) -> Result<(), Failure> {
    let loaded = config::load(file, &environment())?;
    let mut findings = vec![Finding::good("configuration", "valid")];
    findings.extend(
        loaded.warnings.iter().map(|warning| Finding::good("configuration", format!("warning: {warning}"))),
    );
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    findings.extend(examine_store(&loaded.config, &clock).await);
    let http: Arc<dyn Http> = Arc::new(
        Client::new(ClientOptions::new(AddressPolicy::unrestricted()), Arc::clone(&clock))
            .map_err(|error| Failure::new(error.to_string()))?,
    );
    for chain in &loaded.config.chains {
        findings.extend(examine_chain(chain, &http, &clock).await);
    }
    let ok = findings.iter().all(|finding| finding.ok);
    output.result(&serde_json::json!({ "ok": ok, "findings": findings }), || {
        let lines = findings.iter().map(|finding| {
            let advice = finding.advice.map(|advice| format!("\n      -> {advice}")).unwrap_or_default();
            format!(
                "{} {}: {}{advice}",
                if finding.ok { "ok  " } else { "BAD " },
                finding.what,
                finding.detail
            )
        });
        lines.collect::<Vec<_>>().join("\n")
    })?;
    if ok { Ok(()) } else { Err(Failure::new("something needs mending")) }
}

async fn examine_store(config: &Config, clock: &Arc<dyn Clock>) -> Vec<Finding> {
    let path = &config.store.path;
    let shown = path.display().to_string();
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut findings = Vec::new();
    match tempfile::Builder::new().prefix(".quittance-doctor").tempfile_in(directory) {
        Ok(_) => findings.push(Finding::good("store", format!("{} can be written", directory.display()))),
        Err(error) => findings.push(Finding::bad(
            "store",
            format!("{} cannot be written: {error}", directory.display()),
            "make the directory, or give this user the right to write in it",
        )),
    }
    if !path.exists() {
        findings.push(Finding::good("store", format!("{shown} is not there yet; `serve` makes it")));
        return findings;
    }
    let Ok(chance) = Chance::from_system() else { return findings };
    let options = StoreOptions { access: Access::Guest, ..StoreOptions::default() };
    let examined = match Store::open(path, options, Arc::clone(clock), chance) {
        Ok(store) => store.read(durable::store::health::check).await,
        Err(error) => Err(error),
    };
    findings.push(match examined {
        Ok(faults) if faults.is_empty() => Finding::good("store", format!("{shown} is sound")),
        Ok(faults) => Finding::bad(
            "store",
            faults.join("; "),
            "restore a backup; keep the damaged file for examination",
        ),
        Err(error @ StoreError::Outdated { .. }) => {
            Finding::good("store", format!("{error}; `serve` brings it up to date"))
        }
        Err(error @ StoreError::Newer { .. }) => {
            Finding::bad("store", error.to_string(), "install the newer version")
        }
        Err(error) => {
            Finding::bad("store", error.to_string(), "see what else uses the file, and its permissions")
        }
    });
    findings
}

async fn examine_chain(chain: &ChainConfig, http: &Arc<dyn Http>, clock: &Arc<dyn Clock>) -> Vec<Finding> {
    let examined = chain.providers.iter().map(|provider| examine_provider(chain, provider, http, clock));
    let examined: Vec<(bool, Vec<Finding>)> = join_all(examined).await;
    let good = examined.iter().filter(|(good, _)| *good).count();
    let mut findings: Vec<Finding> = examined.into_iter().flat_map(|(_, findings)| findings).collect();
    let what = format!("quorum of {}", chain.id);
    let detail = format!("{good} of {} groups work, {} are needed", chain.providers.len(), chain.quorum);
    findings.push(if good < chain.quorum {
        Finding::bad(
            what,
            detail,
            "mend the providers above, or add endpoints of other owners; until then nothing settles",
        )
    } else {
        Finding::good(what, detail)
    });
    findings
}

/// Whether the provider can vote, and what was found.
async fn examine_provider(
    chain: &ChainConfig,
    provider: &Provider,
    http: &Arc<dyn Http>,
    clock: &Arc<dyn Clock>,
) -> (bool, Vec<Finding>) {
    let what = format!("provider {} of {}", provider.name, chain.id);
    let rpc = HttpRpc::new(Arc::clone(http), Arc::clone(clock), provider.url.expose().clone());
    let call = |method, params: String| Call { deadline: provider.timeout, ..Call::new(method, params) };
    let started = clock.monotonic();
    let number =
        match rpc.call(call("eth_chainId", "[]".to_owned())).await.and_then(|raw| decode_quantity(&raw)) {
            Ok(number) => number,
            Err(error) => return (false, vec![unreachable(&what, error)]),
        };
    let latency = clock.monotonic().saturating_sub(started);
    if number != chain.id.number() {
        let detail = format!("serves {}, not {}", ChainId::eip155(number), chain.id);
        return (
            false,
            vec![Finding::bad(
                what,
                detail,
                "correct its URL, or the chain's id: `serve` refuses to start like this",
            )],
        );
    }
    let profile = ChainProfile::of_chain(chain.id);
    let header = rpc.call(call("eth_getBlockByNumber", r#"["latest",false]"#.to_owned())).await;
    let link = match header.and_then(|raw| decode_header_answer(&raw, &profile)) {
        Ok(header) => header.link(),
        Err(error) => return (false, vec![unreachable(&what, error)]),
    };
    let mut findings = vec![Finding::good(
        &*what,
        format!(
            "head {}, first answer after {} ms, group {:?}",
            link.block.number,
            latency.as_millis(),
            provider.group
        ),
    )];
    findings.extend(compare_clocks(&what, clock.now(), link.time));
    let params = format!("[\"0x{:x}\"]", link.block.number);
    let receipts = rpc.call(call("eth_getBlockReceipts", params).block_sized()).await;
    if let Err(error) = receipts.and_then(|raw| decode_receipts(&raw)) {
        findings.push(Finding::bad(
            &*what,
            format!("eth_getBlockReceipts: {error}"),
            "it can vote on headers, but its blocks cannot be proven: keep another provider that serves receipts",
        ));
    }
    (true, findings)
}

fn unreachable(what: &str, error: RpcError) -> Finding {
    let advice = match error {
        RpcError::Timeout => "raise its timeout_ms, or choose a faster endpoint",
        RpcError::Http(401 | 403) => "its key is missing or refused",
        RpcError::Http(404) => "the path of its URL seems to be wrong",
        RpcError::RateLimited { .. } => "lower max_per_second, or raise the plan",
        _ => "see whether its URL is right and reachable from this machine",
    };
    Finding::bad(what, error.to_string(), advice)
}

fn compare_clocks(what: &str, now: Timestamp, block: Timestamp) -> Option<Finding> {
    if block > now + AHEAD {
        let detail =
            format!("its newest block is {} s ahead of this machine's clock", block.since(now).as_secs());
        return Some(Finding::bad(what, detail, "set this machine's clock (NTP)"));
    }
    if now.since(block) > STALE {
        let detail = format!("its newest block is {} s old", now.since(block).as_secs());
        return Some(Finding::bad(
            what,
            detail,
            "the provider or the chain stands still, or this machine's clock is wrong",
        ));
    }
    None
}

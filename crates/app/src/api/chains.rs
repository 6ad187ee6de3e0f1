//! Chains and their providers over HTTP: how far each is proven, who said what, and what stands still.

use std::collections::BTreeMap;

use alloy_primitives::B256;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use domain::chain::ChainId;
use domain::time::Timestamp;
use durable::store::block::ChainCursor;
use durable::store::{StoreError, block, claim};
use outside::chain::{ProviderState, ProviderStatus};
use serde::Serialize;

use super::auth::{Administers, Reads};
use super::idempotency::Once;
use super::input::Parameters;
use super::problem::Problem;
use super::{AppState, Page, Refusals};
use crate::config::ChainConfig;
use crate::features::watch;

/// A chain and how far it is proven.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ChainView {
    /// CAIP-2.
    #[schema(value_type = String)]
    pub(crate) id: ChainId,
    /// The highest block that enough groups reported.
    pub(crate) head: Option<u64>,
    /// Every block up to here is proven and applied.
    pub(crate) last_processed_block: Option<u64>,
    /// Its hash.
    #[schema(value_type = Option<String>)]
    pub(crate) last_processed_hash: Option<B256>,
    /// The agreed safe height, where the chain has one.
    pub(crate) safe: Option<u64>,
    /// The agreed finalized height, where the chain has one.
    pub(crate) finalized: Option<u64>,
    /// How the last block was proven.
    pub(crate) evidence_level: Option<&'static str>,
    /// How many groups must agree.
    pub(crate) quorum: usize,
    /// How many groups there are.
    pub(crate) groups: usize,
    /// When a payment counts as confirmed, unless its invoice says otherwise.
    pub(crate) confirmations: String,
    /// Logs that some groups assert and others deny.
    pub(crate) disputed_claims: usize,
    /// Whether settling is stopped.
    pub(crate) frozen: bool,
    /// Why.
    pub(crate) frozen_reason: Option<String>,
    /// Why reading gets no further, if it does not.
    pub(crate) stalled: Option<String>,
    /// When the cursor last moved.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) advanced_at: Option<Timestamp>,
}

/// Every configured chain.
pub(crate) async fn chain_views(state: &AppState) -> Result<Vec<ChainView>, StoreError> {
    let ids: Vec<ChainId> = state.config.chains.iter().map(|chain| chain.id).collect();
    let rows = state
        .store
        .read(move |query| -> Result<_, StoreError> {
            ids.into_iter()
                .map(|id| Ok((id, (block::find_cursor(query, id)?, claim::list_open(query, id)?.len()))))
                .collect::<Result<BTreeMap<_, _>, _>>()
        })
        .await?;
    let view = |chain: &ChainConfig| {
        let (cursor, claims) = rows.get(&chain.id).cloned().unwrap_or_default();
        view_of(state, chain, cursor, claims)
    };
    Ok(state.config.chains.iter().map(view).collect())
}

/// Whether a chain had been frozen.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Thawed {
    /// CAIP-2.
    #[schema(value_type = String)]
    id: ChainId,
    /// Whether settling had been stopped, and goes on now.
    thawed: bool,
}

/// Lets settling go on, on a chain that contradicted its own finality. Look first at the payments that the
/// `settlement.frozen` event names: they stay final in our books.
#[utoipa::path(post, path = "/v1/chains/{id}/thaw", tag = "chains", params(("id" = String, Path, description = "CAIP-2 chain")),
    responses((status = 200, description = "Settling goes on", body = Thawed), Refusals), security(("key" = ["admin"])))]
pub(super) async fn thaw_chain(
    State(state): State<AppState>,
    Administers(caller): Administers,
    once: Once,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let known = state.config.chains.iter().map(|chain| chain.id).find(|chain| chain.to_string() == id);
    let chain = known.ok_or_else(|| Problem::missing("chain"))?;
    let who = caller.principal();
    once.answer(&state, &caller, &[], StatusCode::OK, move |tx| {
        let thawed = watch::thaw(tx, chain)?;
        tracing::warn!(%chain, thawed, %who, "a person let settling go on");
        Ok(Thawed { id: chain, thawed })
    })
    .await
}

fn view_of(state: &AppState, chain: &ChainConfig, cursor: Option<ChainCursor>, claims: usize) -> ChainView {
    let height = |of: fn(&ChainCursor) -> u64| cursor.as_ref().map(of).filter(|height| *height > 0);
    let frozen_reason = cursor.as_ref().and_then(|cursor| cursor.frozen.clone());
    ChainView {
        id: chain.id,
        head: agreed_head(state, chain),
        last_processed_block: cursor.as_ref().map(|cursor| cursor.block.number),
        last_processed_hash: cursor.as_ref().map(|cursor| cursor.block.hash),
        safe: height(|cursor| cursor.safe),
        finalized: height(|cursor| cursor.finalized),
        evidence_level: cursor.as_ref().map(|cursor| cursor.level.as_str()),
        quorum: chain.quorum,
        groups: chain.providers.len(),
        confirmations: chain.confirmations.to_string(),
        disputed_claims: claims,
        frozen: frozen_reason.is_some(),
        frozen_reason,
        stalled: cursor.as_ref().and_then(|cursor| cursor.stalled.clone()),
        advanced_at: cursor.as_ref().map(|cursor| cursor.advanced_at),
    }
}

/// The `k`-th highest of the heads that the groups reported last.
fn agreed_head(state: &AppState, chain: &ChainConfig) -> Option<u64> {
    let mut groups: BTreeMap<String, u64> = BTreeMap::new();
    for status in state.chains.get(&chain.id)?.providers() {
        if let Some(head) = status.head {
            let highest = groups.entry(status.group).or_default();
            *highest = head.max(*highest);
        }
    }
    let mut heads: Vec<u64> = groups.into_values().collect();
    heads.sort_unstable_by(|a, b| b.cmp(a));
    heads.get(chain.quorum.saturating_sub(1)).copied()
}

/// A contradiction a provider was caught at.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct DisagreementView {
    /// When we noticed.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) at: Timestamp,
    /// At what.
    pub(crate) kind: &'static str,
    /// The block it was about.
    pub(crate) block: Option<u64>,
    /// What it said.
    #[schema(value_type = Option<String>)]
    pub(crate) said: Option<B256>,
    /// What was agreed or proven instead.
    #[schema(value_type = Option<String>)]
    pub(crate) agreed: Option<B256>,
}

/// An RPC provider as we know it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ProviderView {
    /// The chain it is asked about.
    #[schema(value_type = String)]
    pub(crate) chain: ChainId,
    /// Its name.
    pub(crate) name: String,
    /// Its owner: the unit that votes.
    pub(crate) group: String,
    /// `healthy`, `suspect`, `resting`, `tripped`, `probing` or `excluded`.
    pub(crate) state: &'static str,
    /// Until when it is left alone.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) until: Option<Timestamp>,
    /// The highest block it reported last.
    pub(crate) head: Option<u64>,
    /// When it last answered well.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) answered_at: Option<Timestamp>,
    /// Milliseconds in which half, 95 % and 99 % of its calls of the last minutes were answered.
    pub(crate) latency_ms: Option<LatencyView>,
    /// Calls made.
    pub(crate) calls: u64,
    /// Calls without a usable answer, by class.
    pub(crate) failures: BTreeMap<&'static str, u64>,
    /// Contradictions it was caught at, by kind.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// The last of them.
    pub(crate) last_disagreement: Option<DisagreementView>,
}

/// Latencies in whole milliseconds.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct LatencyView {
    /// Half of the calls.
    pub(crate) p50: u64,
    /// 95 of 100 calls.
    pub(crate) p95: u64,
    /// 99 of 100 calls.
    pub(crate) p99: u64,
}

impl ProviderView {
    fn of(chain: ChainId, status: ProviderStatus) -> Self {
        let millis = |span: std::time::Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self {
            chain,
            name: status.name,
            group: status.group,
            state: status.state.as_str(),
            until: match status.state {
                ProviderState::Resting(until) | ProviderState::Tripped(until) => Some(until),
                _ => None,
            },
            head: status.head,
            answered_at: status.answered_at,
            latency_ms: status.latency.map(|latency| LatencyView {
                p50: millis(latency.p50),
                p95: millis(latency.p95),
                p99: millis(latency.p99),
            }),
            calls: status.calls,
            failures: status.failures,
            faults: status.faults.into_iter().map(|(kind, count)| (kind.as_str(), count)).collect(),
            last_disagreement: status.last_disagreement.map(|last| DisagreementView {
                at: last.at,
                kind: last.kind.as_str(),
                block: last.block,
                said: last.said,
                agreed: last.agreed,
            }),
        }
    }
}

/// Every provider of every chain.
pub(crate) fn provider_views(state: &AppState) -> Vec<ProviderView> {
    let of_chain = state.chains.iter().flat_map(|(chain, reader)| {
        reader.providers().into_iter().map(move |status| ProviderView::of(*chain, status))
    });
    of_chain.collect()
}

/// The chains that are read, and how far each is proven.
#[utoipa::path(get, path = "/v1/chains", tag = "chains",
    responses((status = 200, description = "All of them", body = Page<ChainView>), Refusals), security(("key" = ["read"])))]
pub(super) async fn list_chains(
    State(state): State<AppState>,
    _: Reads,
    parameters: Parameters,
) -> Result<Json<Page<ChainView>>, Problem> {
    parameters.finish()?;
    Ok(Json(Page::whole(chain_views(&state).await?)))
}

/// The RPC providers, with state, latency and what they were caught at.
#[utoipa::path(get, path = "/v1/rpc/providers", tag = "chains",
    responses((status = 200, description = "All of them", body = Page<ProviderView>), Refusals), security(("key" = ["read"])))]
pub(super) async fn list_providers(
    State(state): State<AppState>,
    _: Reads,
    parameters: Parameters,
) -> Result<Json<Page<ProviderView>>, Problem> {
    parameters.finish()?;
    Ok(Json(Page::whole(provider_views(&state))))
}

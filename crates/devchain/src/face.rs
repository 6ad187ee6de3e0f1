//! Faces: the chain as separate providers show it, in memory or over HTTP.
//!
//! A [`Provider`] answers JSON-RPC bodies, keeps what it was asked, and has its own faults and its own
//! seeded chance; [`Provider::ask`] is synchronous and says when and how the answer arrives, so that a
//! simulation can play it in its own time. A [`Face`] serves a provider on a loopback port and plays that
//! in real time. Stopped, its port refuses connections; started again, it is the same port.
//!
//! The methods `devchain_…` drive chain and faults from outside; no fault ever hits them. HTTP/1.1
//! without TLS, no websockets.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy_consensus::{TxEip1559, TxType};
use alloy_primitives::{Address, B256, TxKind, U64, U256, keccak256};
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::account::DevAccount;
use crate::block::{self, Block, Receipt, Transaction};
use crate::chain::{Devchain, Inner, Reorg, Replay};
use crate::fault::{Faults, ForgedBlock, ForgedTransfer, IdFault, Truncate};
use crate::rpc::{self, Answer, Call, Params, RpcError, View};
use crate::token::{self, CONTRACTS};

/// The largest request body.
const MAX_REQUEST_BYTES: usize = 16 << 20;
/// How many of the latest calls are remembered.
const MAX_CALLS: usize = 100_000;

/// A call that a provider received.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedCall {
    /// The method.
    pub method: String,
    /// Its parameters, as sent.
    pub params: Value,
}

/// When and how an answer arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Time to wait before the first byte.
    pub delay: Duration,
    /// What then happens.
    pub outcome: Outcome,
}

/// What a client gets to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing, ever.
    Hang,
    /// The connection closes without a response, although the request was carried out.
    Lost,
    /// A response.
    Respond {
        /// HTTP status.
        status: u16,
        /// Header names and values.
        headers: Vec<(&'static str, String)>,
        /// The body.
        body: Bytes,
        /// How the body is handed out.
        delivery: Delivery,
    },
}

/// How a body is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// At once.
    Whole,
    /// So many bytes, then the connection closes; the announced length is that of the whole body.
    CutAfter(usize),
    /// In pieces.
    Drip {
        /// Bytes per piece.
        bytes: usize,
        /// Time before each piece.
        every: Duration,
    },
}

/// One provider's view of a chain, without a network.
#[derive(Debug)]
pub struct Provider {
    name: String,
    chain: Devchain,
    forger: DevAccount,
    memory: Mutex<Memory>,
    answered: watch::Sender<u64>,
}

#[derive(Debug)]
struct Memory {
    rules: Vec<Rule>,
    chance: StdRng,
    calls: VecDeque<RecordedCall>,
    counts: BTreeMap<String, u64>,
    forged: Forged,
}

#[derive(Debug)]
struct Rule {
    faults: Faults,
    /// Requests within the scope so far.
    met: u32,
    /// Requests hit so far.
    hit: u32,
}

/// Made-up blocks, kept so that they stay the same from request to request.
#[derive(Debug, Default)]
struct Forged {
    plan: Vec<ForgedBlock>,
    /// Hash of the true block, and what is told instead.
    blocks: Vec<(B256, Arc<Block>)>,
}

impl Provider {
    /// A provider of `chain`. The name seeds its chance: the same name behaves the same.
    pub fn new(chain: &Devchain, name: &str) -> Self {
        let seed = chain.config().seed;
        let mut preimage = seed.to_be_bytes().to_vec();
        preimage.extend_from_slice(name.as_bytes());
        let (answered, _) = watch::channel(0);
        Self {
            name: name.to_owned(),
            chain: chain.clone(),
            forger: DevAccount::derive(seed, &format!("forger {name}"), 0),
            memory: Mutex::new(Memory {
                rules: Vec::new(),
                chance: StdRng::from_seed(keccak256(preimage).0),
                calls: VecDeque::new(),
                counts: BTreeMap::new(),
                forged: Forged::default(),
            }),
            answered,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces all faults.
    pub fn set_faults(&self, faults: Faults) {
        self.set_rules(vec![faults]);
    }

    /// Replaces all faults by several, each with its own scope. Where rules hit the same call, the last
    /// one that sets a field wins.
    pub fn set_rules(&self, rules: Vec<Faults>) {
        self.memory().rules = rules
            .into_iter()
            .filter(|faults| !faults.is_honest())
            .map(|faults| Rule { faults, met: 0, hit: 0 })
            .collect();
    }

    /// Honest from now on.
    pub fn heal(&self) {
        self.set_rules(Vec::new());
    }

    /// The faults that are set: all of them together, if there are several rules.
    pub fn faults(&self) -> Faults {
        match self.memory().rules.as_slice() {
            [only] => only.faults.clone(),
            rules => Faults::combined(rules.iter().map(|rule| &rule.faults)),
        }
    }

    /// How often each method was called, batches counted call by call.
    pub fn requests(&self) -> BTreeMap<String, u64> {
        self.memory().counts.clone()
    }

    /// How often `method` was called.
    pub fn requests_of(&self, method: &str) -> u64 {
        self.memory().counts.get(method).copied().unwrap_or_default()
    }

    /// The calls received, oldest first (the latest 100,000).
    pub fn calls(&self) -> Vec<RecordedCall> {
        self.memory().calls.iter().cloned().collect()
    }

    /// Forgets calls and counts.
    pub fn clear_requests(&self) {
        let mut memory = self.memory();
        memory.calls.clear();
        memory.counts.clear();
    }

    /// Waits until `method` has been called `count` times (since the last [`Provider::clear_requests`]).
    pub async fn wait_for(&self, method: &str, count: u64) {
        let mut answered = self.answered.subscribe();
        while self.requests_of(method) < count {
            // The sender lives as long as `self`.
            let _ = answered.changed().await;
        }
    }

    /// Answers a request body. The chain is read, and a transaction taken in, at the time of this call.
    pub fn ask(&self, body: &[u8]) -> Reply {
        let (calls, batch) = match parse(body) {
            Ok(parsed) => parsed,
            Err(error) => return Reply::json(render(&Value::Null, &Err(error))),
        };
        if calls.iter().all(|call| call.method.starts_with("devchain_")) {
            let answers = calls.iter().map(|call| (call.id.clone(), self.administer(call)));
            return Reply::json(envelope(answers.collect(), batch, None));
        }
        self.remember(&calls);
        let hit = self.rules_that_hit(&calls);
        let transport = Faults::combined(&hit);
        let reply = match refuse_request(&transport, &calls) {
            Some(reply) => reply,
            None => self.execute(&calls, batch, &hit, &transport),
        };
        let delay = self.draw_delay(&transport);
        self.answered.send_modify(|count| *count = count.wrapping_add(1));
        Reply { delay, ..reply }
    }

    fn remember(&self, calls: &[Call]) {
        let mut memory = self.memory();
        for call in calls {
            let count = memory.counts.entry(call.method.clone()).or_default();
            *count = count.saturating_add(1);
            if memory.calls.len() == MAX_CALLS {
                memory.calls.pop_front();
            }
            memory.calls.push_back(RecordedCall { method: call.method.clone(), params: call.params.clone() });
        }
    }

    /// The rules that hit this request, counting and drawing as their scopes say.
    fn rules_that_hit(&self, calls: &[Call]) -> Vec<Faults> {
        let Memory { rules, chance, .. } = &mut *self.memory();
        let mut hit = Vec::new();
        for rule in rules {
            if !calls.iter().any(|call| rule.faults.covers(&call.method)) {
                continue;
            }
            rule.met = rule.met.saturating_add(1);
            let nth = rule.faults.every_nth.is_none_or(|n| n > 0 && rule.met.is_multiple_of(n));
            let left = rule.faults.for_requests.is_none_or(|limit| rule.hit < limit);
            let drawn = rule.faults.percent.is_none_or(|percent| chance.random_range(0..100u8) < percent);
            if nth && left && drawn {
                rule.hit = rule.hit.saturating_add(1);
                let mut faults = rule.faults.clone();
                if faults.lag_jitter > 0 {
                    faults.lag = faults.lag.saturating_add(chance.random_range(0..=faults.lag_jitter));
                }
                hit.push(faults);
            }
        }
        hit
    }

    fn draw_delay(&self, transport: &Faults) -> Duration {
        let jitter = match transport.jitter_ms {
            0 => 0,
            most => self.memory().chance.random_range(0..=most),
        };
        Duration::from_millis(transport.latency_ms.saturating_add(jitter))
    }

    fn execute(&self, calls: &[Call], batch: bool, hit: &[Faults], transport: &Faults) -> Reply {
        let answers = calls
            .iter()
            .map(|call| {
                let faults = Faults::combined(hit.iter().filter(|rule| rule.covers(&call.method)));
                (call.id.clone(), self.answer(call, &faults))
            })
            .collect();
        if transport.lose_response {
            return Reply::now(Outcome::Lost);
        }
        deliver(envelope(answers, batch, transport.ids), transport)
    }

    fn answer(&self, call: &Call, faults: &Faults) -> Answer {
        if let Some(error) = &faults.rpc_error {
            return Err(RpcError::new(error.code, error.message.clone()));
        }
        if faults.unsupported.contains(&call.method) {
            return Err(RpcError::unknown_method(&call.method));
        }
        if let Some(result) = faults.results.get(&call.method) {
            return rpc::raw(result);
        }
        if call.method == "eth_sendRawTransaction" {
            return self.send(call, faults);
        }
        let inner = self.chain.read();
        let (head, overlay) = self.look(&inner, faults);
        View { chain: &inner, faults, head, overlay: &overlay }.answer(call)
    }

    fn send(&self, call: &Call, faults: &Faults) -> Answer {
        let raw: alloy_primitives::Bytes = Params::new(&call.params)?.get(0)?;
        if faults.swallow_sends {
            return rpc::raw(&keccak256(&raw));
        }
        match self.chain.send_raw(&raw) {
            Ok(hash) => rpc::raw(&hash),
            Err(refusal) => Err(RpcError::server(refusal.to_string())),
        }
    }

    /// The visible head and the blocks shown instead of the canonical ones.
    fn look(&self, inner: &Inner, faults: &Faults) -> (u64, Vec<Arc<Block>>) {
        let mut branch = faults.follow.map_or_else(Vec::new, |tip| branch_to(inner, tip));
        let tip = branch.last().unwrap_or(inner.head()).number();
        let mut head = tip.saturating_sub(faults.lag);
        if let Some(most) = faults.stuck_at {
            head = head.min(most);
        }
        branch.retain(|block| block.number() <= head);
        if !faults.forge_blocks.is_empty() {
            branch = self.forge(inner, branch, head, &faults.forge_blocks);
        }
        (head, branch)
    }

    /// Replaces the visible blocks by made-up ones, from the lowest planned height on.
    fn forge(
        &self,
        inner: &Inner,
        branch: Vec<Arc<Block>>,
        head: u64,
        plan: &[ForgedBlock],
    ) -> Vec<Arc<Block>> {
        let first = plan.iter().map(|forged| forged.number).min().unwrap_or(u64::MAX).max(1);
        let start = branch.first().map(|block| block.number());
        let truth = |number: u64| match start {
            Some(start) if number >= start => {
                branch.get(usize::try_from(number.checked_sub(start)?).ok()?).cloned()
            }
            _ => inner.at(number).cloned(),
        };
        let mut memory = self.memory();
        let forged = &mut memory.forged;
        if forged.plan != plan {
            *forged = Forged { plan: plan.to_vec(), blocks: Vec::new() };
        }
        let mut shown: Vec<Arc<Block>> = branch.iter().filter(|b| b.number() < first).cloned().collect();
        let mut parent = None;
        for (index, block) in (first..=head).filter_map(truth).enumerate() {
            if forged.blocks.get(index).is_none_or(|(hash, _)| *hash != block.hash()) {
                forged.blocks.truncate(index);
                let told = self.forged_block(inner, &block, parent, plan);
                forged.blocks.push((block.hash(), Arc::new(told)));
            }
            let told = Arc::clone(&forged.blocks[index].1);
            parent = Some(told.hash());
            shown.push(told);
        }
        shown
    }

    fn forged_block(
        &self,
        inner: &Inner,
        truth: &Block,
        parent: Option<B256>,
        plan: &[ForgedBlock],
    ) -> Block {
        let mut keep = true;
        let mut extra = Vec::new();
        let mut gas = 0;
        for forged in plan.iter().filter(|forged| forged.number == truth.number()) {
            keep &= !forged.drop_transactions;
            if keep {
                gas = truth.header().gas_used;
            }
            for transfer in &forged.transfers {
                let (tx, receipt) = self.forged_transfer(inner, truth, transfer, extra.len(), gas);
                gas = gas.saturating_add(receipt.gas_used);
                extra.push((tx, receipt));
            }
        }
        truth.forged(parent, keep, extra, inner.config.opaque_receipts_root)
    }

    /// A transaction that was never sent, rightly signed by the forger, and a receipt that suits it.
    fn forged_transfer(
        &self,
        inner: &Inner,
        block: &Block,
        transfer: &ForgedTransfer,
        index: usize,
        gas_before: u64,
    ) -> (Arc<Transaction>, Receipt) {
        let base_fee = u128::from(block.header().base_fee_per_gas.unwrap_or_default());
        let native = transfer.token.is_zero();
        let gas_used = if native { 21_000 } else { 51_372 };
        let signed = self.forger.sign(TxEip1559 {
            chain_id: inner.config.chain_id,
            nonce: block
                .number()
                .saturating_mul(1000)
                .saturating_add(u64::try_from(index).unwrap_or_default()),
            gas_limit: gas_used,
            max_fee_per_gas: base_fee.saturating_mul(2).saturating_add(inner.config.tip),
            max_priority_fee_per_gas: inner.config.tip,
            to: TxKind::Call(if native { transfer.to } else { transfer.token }),
            value: if native { transfer.value } else { U256::ZERO },
            access_list: Default::default(),
            input: if native { Default::default() } else { token::transfer(transfer.to, transfer.value) },
        });
        let logs = if native {
            Vec::new()
        } else {
            vec![token::transfer_log(transfer.token, transfer.from, transfer.to, transfer.value)]
        };
        let receipt = Receipt {
            envelope: block::receipt(TxType::Eip1559, true, logs, gas_before, gas_used),
            gas_used,
            effective_gas_price: base_fee.saturating_add(inner.config.tip),
            contract_address: None,
        };
        (Arc::new(signed.envelope), receipt)
    }

    /// The methods that drive chain and faults.
    fn administer(&self, call: &Call) -> Answer {
        let params = Params::new(&call.params)?;
        let refused = |error: crate::chain::ChainError| RpcError::server(error.to_string());
        match call.method.as_str() {
            "devchain_mine" => {
                let count: Option<U64> = params.optional(0)?;
                rpc::raw(&self.chain.mine_n(count.map_or(1, |count| count.to())))
            }
            "devchain_mineAt" => {
                let timestamp: U64 = params.get(0)?;
                rpc::raw(&self.chain.mine_at(timestamp.to()).map_err(refused)?)
            }
            "devchain_reorg" => {
                let order: ReorgOrder = params.get(0)?;
                let reorged = self.chain.reorg_with(order.into()).map_err(refused)?;
                rpc::raw(&json!({
                    "fork": reorged.fork,
                    "dropped": reorged.dropped,
                    "added": reorged.added,
                    "lost": reorged.lost,
                }))
            }
            "devchain_setFaults" => {
                let rules: OneOrMany = params.get(0)?;
                self.set_rules(rules.into());
                rpc::raw(&true)
            }
            "devchain_faults" => {
                rpc::raw(&self.memory().rules.iter().map(|rule| rule.faults.clone()).collect::<Vec<_>>())
            }
            "devchain_sendNative" => {
                let (from, to, value): (usize, Address, U256) =
                    (params.get(0)?, params.get(1)?, params.get(2)?);
                rpc::raw(&self.chain.send_native(from, to, value).map_err(refused)?)
            }
            "devchain_sendToken" => {
                let (token, from): (Address, usize) = (params.get(0)?, params.get(1)?);
                let (to, value): (Address, U256) = (params.get(2)?, params.get(3)?);
                rpc::raw(&self.chain.send_token(token, from, to, value).map_err(refused)?)
            }
            "devchain_accounts" => {
                let accounts = self.chain.accounts();
                let told = accounts
                    .iter()
                    .map(|account| json!({"address": account.address(), "key": account.secret()}));
                rpc::raw(&told.collect::<Vec<_>>())
            }
            "devchain_contracts" => rpc::raw(&json!({
                "plain": CONTRACTS.plain,
                "dollar": CONTRACTS.dollar,
                "payouts": CONTRACTS.payouts,
                "wallet": CONTRACTS.wallet,
                "impostor": CONTRACTS.impostor,
            })),
            other => Err(RpcError::unknown_method(other)),
        }
    }
}

/// The parameter of `devchain_reorg`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReorgOrder {
    depth: u64,
    /// Default: one more than `depth`.
    new_length: Option<u64>,
    #[serde(default)]
    replay: ReplayOrder,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReplayOrder {
    #[default]
    All,
    Shuffled,
    Nothing,
    Pool,
    Only(Vec<B256>),
}

impl From<ReorgOrder> for Reorg {
    fn from(order: ReorgOrder) -> Self {
        Self {
            depth: order.depth,
            new_length: order.new_length.unwrap_or_else(|| order.depth.saturating_add(1)),
            replay: match order.replay {
                ReplayOrder::All => Replay::All,
                ReplayOrder::Shuffled => Replay::Shuffled,
                ReplayOrder::Nothing => Replay::Nothing,
                ReplayOrder::Pool => Replay::Pool,
                ReplayOrder::Only(hashes) => Replay::Only(hashes.into_iter().collect()),
            },
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(Box<Faults>),
    Many(Vec<Faults>),
}

impl From<OneOrMany> for Vec<Faults> {
    fn from(rules: OneOrMany) -> Self {
        match rules {
            OneOrMany::One(faults) => vec![*faults],
            OneOrMany::Many(rules) => rules,
        }
    }
}

/// The blocks of the branch that ends in `tip`, from where it leaves the canonical chain.
fn branch_to(inner: &Inner, tip: B256) -> Vec<Arc<Block>> {
    let mut branch = VecDeque::new();
    let mut next = inner.blocks.get(&tip);
    while let Some(block) = next {
        let canonical = inner.at(block.number()).is_some_and(|at| at.hash() == block.hash());
        // The tip itself belongs to the branch even when canonical: it says where the view ends.
        if canonical && !branch.is_empty() {
            break;
        }
        branch.push_front(Arc::clone(block));
        next = inner.blocks.get(&block.header().parent_hash);
    }
    branch.into()
}

fn parse(body: &[u8]) -> Result<(Vec<Call>, bool), RpcError> {
    let value: Value = serde_json::from_slice(body).map_err(|_| RpcError::new(-32_700, "parse error"))?;
    let invalid = |_| RpcError::new(-32_600, "invalid request");
    match value {
        Value::Array(calls) if calls.is_empty() => Err(RpcError::new(-32_600, "empty batch")),
        Value::Array(calls) => {
            let calls: Result<Vec<Call>, _> = calls.into_iter().map(serde_json::from_value).collect();
            Ok((calls.map_err(invalid)?, true))
        }
        call => Ok((vec![serde_json::from_value(call).map_err(invalid)?], false)),
    }
}

/// What a provider answers that does not even look at the calls.
fn refuse_request(transport: &Faults, calls: &[Call]) -> Option<Reply> {
    if transport.hang {
        return Some(Reply::now(Outcome::Hang));
    }
    if let Some(cap) = transport.batch_cap
        && calls.len() > cap
    {
        return Some(Reply::json(render(&Value::Null, &Err(RpcError::new(-32_600, "batch too large")))));
    }
    if transport.status.is_none() && !transport.html {
        return None;
    }
    let status = transport.status.as_ref().map_or(200, |status| status.code);
    let reason =
        http::StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason()).unwrap_or("Status");
    let (content_type, body) = if transport.html {
        (
            "text/html; charset=utf-8",
            format!(
                "<!DOCTYPE html><html><head><title>{status} {reason}</title></head><body><h1>{reason}</h1></body></html>"
            ),
        )
    } else {
        ("text/plain; charset=utf-8", format!("{status} {reason}"))
    };
    let mut headers = vec![("content-type", content_type.to_owned())];
    if let Some(seconds) = transport.status.as_ref().and_then(|status| status.retry_after_secs) {
        headers.push(("retry-after", seconds.to_string()));
    }
    Some(Reply::now(Outcome::Respond { status, headers, body: body.into(), delivery: Delivery::Whole }))
}

#[derive(Serialize)]
struct Rendered<'a> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a RpcError>,
}

fn render(id: &Value, answer: &Answer) -> Vec<u8> {
    rendered(Some(id), answer)
}

fn rendered(id: Option<&Value>, answer: &Answer) -> Vec<u8> {
    let rendered =
        Rendered { jsonrpc: "2.0", id, result: answer.as_deref().ok(), error: answer.as_ref().err() };
    // Strings, numbers and raw JSON: nothing in it can fail to serialise.
    serde_json::to_vec(&rendered).unwrap_or_default()
}

fn envelope(mut answers: Vec<(Option<Value>, Answer)>, batch: bool, ids: Option<IdFault>) -> Vec<u8> {
    if ids == Some(IdFault::Reversed) {
        answers.reverse();
    }
    let first = answers.first().and_then(|(id, _)| id.clone());
    let render_one = |id: Option<Value>, answer: &Answer| match ids {
        None | Some(IdFault::Reversed) => render(&id.unwrap_or(Value::Null), answer),
        Some(IdFault::Garbage) => render(&json!("0xbad1d"), answer),
        Some(IdFault::Duplicate) => render(&first.clone().unwrap_or(Value::Null), answer),
        Some(IdFault::Missing) => rendered(None, answer),
    };
    let bodies = answers.into_iter().map(|(id, answer)| render_one(id, &answer));
    if !batch {
        return bodies.into_iter().next().unwrap_or_default();
    }
    let mut out = vec![b'['];
    for (index, body) in bodies.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend(body);
    }
    out.push(b']');
    out
}

/// Hands out a good body the way the faults want.
fn deliver(mut body: Vec<u8>, transport: &Faults) -> Reply {
    let mut delivery = Delivery::Whole;
    match transport.truncate {
        Some(Truncate::Json) => body.truncate(body.len() / 2),
        Some(Truncate::Connection) => delivery = Delivery::CutAfter(body.len() / 2),
        None => {}
    }
    if let Some(drip) = transport.drip {
        delivery = Delivery::Drip { bytes: drip.bytes.max(1), every: Duration::from_millis(drip.every_ms) };
    }
    let content_type = transport.content_type.clone().unwrap_or_else(|| "application/json".into());
    Reply::now(Outcome::Respond {
        status: 200,
        headers: vec![("content-type", content_type)],
        body: body.into(),
        delivery,
    })
}

impl Reply {
    fn now(outcome: Outcome) -> Self {
        Self { delay: Duration::ZERO, outcome }
    }

    fn json(body: Vec<u8>) -> Self {
        deliver(body, &Faults::default())
    }
}

/// A provider served over HTTP on the loopback interface.
///
/// Dropping it closes the port and every connection soon after; [`Face::stop`] returns when that is done.
#[derive(Debug)]
pub struct Face {
    provider: Arc<Provider>,
    address: SocketAddr,
    server: tokio::sync::Mutex<Option<Server>>,
}

#[derive(Debug)]
struct Server {
    stop: oneshot::Sender<Infallible>,
    task: JoinHandle<()>,
}

impl Deref for Face {
    type Target = Provider;

    fn deref(&self) -> &Provider {
        &self.provider
    }
}

/// Serves a new provider of `chain` on a free loopback port.
///
/// # Errors
/// When no port can be bound.
pub async fn serve_face(chain: &Devchain, name: &str) -> std::io::Result<Face> {
    serve_face_on(chain, name, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
}

/// Serves a new provider of `chain` on the given address.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve_face_on(chain: &Devchain, name: &str, address: SocketAddr) -> std::io::Result<Face> {
    let provider = Arc::new(Provider::new(chain, name));
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let server = Server::spawn(listener, Arc::clone(&provider));
    Ok(Face { provider, address, server: tokio::sync::Mutex::new(Some(server)) })
}

impl Face {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The provider behind it.
    pub fn provider(&self) -> &Arc<Provider> {
        &self.provider
    }

    /// Closes the port and every connection: down. Returns when that is done.
    pub async fn stop(&self) {
        let server = self.server.lock().await.take();
        if let Some(Server { stop, task }) = server {
            drop(stop);
            let _ = task.await;
        }
    }

    /// Listens again on the same port; nothing happens if it does already.
    ///
    /// # Errors
    /// When the port has been taken in the meantime.
    pub async fn start(&self) -> std::io::Result<()> {
        let mut server = self.server.lock().await;
        if server.is_none() {
            let listener = TcpListener::bind(self.address).await?;
            *server = Some(Server::spawn(listener, Arc::clone(&self.provider)));
        }
        Ok(())
    }
}

impl Server {
    /// Runs until the sender of `stop` is dropped.
    fn spawn(listener: TcpListener, provider: Arc<Provider>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept(listener, provider, stopped));
        Self { stop, task }
    }
}

async fn accept(listener: TcpListener, provider: Arc<Provider>, mut stopped: oneshot::Receiver<Infallible>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    // Small answers should not wait for more to send.
                    let _ = stream.set_nodelay(true);
                    let provider = Arc::clone(&provider);
                    connections.spawn(async move {
                        let service = service_fn(|request| respond(&provider, request));
                        let served = http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                        if let Err(error) = served {
                            tracing::debug!(face = %provider.name(), %error, "connection ended");
                        }
                    });
                }
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

/// The connection is closed on purpose.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed on purpose")]
struct Closed;

type Body = UnsyncBoxBody<Bytes, Closed>;

async fn respond(provider: &Provider, request: Request<Incoming>) -> Result<Response<Body>, Closed> {
    if request.method() != http::Method::POST {
        return plain(http::StatusCode::METHOD_NOT_ALLOWED);
    }
    let Ok(body) = Limited::new(request.into_body(), MAX_REQUEST_BYTES).collect().await else {
        return plain(http::StatusCode::PAYLOAD_TOO_LARGE);
    };
    let reply = provider.ask(&body.to_bytes());
    pause(reply.delay).await;
    match reply.outcome {
        Outcome::Hang => std::future::pending().await,
        Outcome::Lost => Err(Closed),
        Outcome::Respond { status, headers, body, delivery } => {
            let mut response = Response::builder().status(status).header(header::CONTENT_LENGTH, body.len());
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(play(body, delivery)).map_err(|_| Closed)
        }
    }
}

fn plain(status: http::StatusCode) -> Result<Response<Body>, Closed> {
    let body = Full::new(Bytes::new()).map_err(|never| match never {});
    Response::builder().status(status).body(body.boxed_unsync()).map_err(|_| Closed)
}

/// The body as it leaves the socket.
fn play(body: Bytes, delivery: Delivery) -> Body {
    match delivery {
        Delivery::Whole => Full::new(body).map_err(|never| match never {}).boxed_unsync(),
        Delivery::CutAfter(bytes) => {
            let pieces = [Ok(Frame::data(body.slice(..bytes.min(body.len())))), Err(Closed)];
            // The pause lets the first half reach the wire before the connection goes.
            let pieces = futures::stream::iter(pieces).then(|piece| async {
                if piece.is_err() {
                    pause(Duration::from_millis(20)).await;
                }
                piece
            });
            StreamBody::new(pieces).boxed_unsync()
        }
        Delivery::Drip { bytes, every } => {
            let pieces = futures::stream::unfold(body, move |mut left| async move {
                if left.is_empty() {
                    return None;
                }
                pause(every).await;
                let piece = left.split_to(bytes.min(left.len()));
                Some((Ok(Frame::data(piece)), left))
            });
            StreamBody::new(pieces).boxed_unsync()
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is where faults are played in real time")]
async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

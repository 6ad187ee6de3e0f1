//! A provider that stands between the program and a real node, and fails or lies as it is told.
//!
//! It is honest byte for byte where it is told nothing. Its lies are of a whole: what it leaves out of the logs, it
//! leaves out of the receipts as well.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alloy_primitives::{Address, B256, U256};
use bytes::Bytes;
use domain::time::Clock;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::loopback::Rpc;

/// `Transfer(address,address,uint256)` of ERC-20.
const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";

/// What is wrong with a provider. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Its port refuses connections.
    pub(crate) down: bool,
    /// It takes requests and never answers.
    pub(crate) hang: bool,
    /// Every answer has this status and no sense.
    pub(crate) status: Option<u16>,
    /// Each answer waits as long.
    pub(crate) delay: Duration,
    /// It has no receipts and no logs: `[]`, and `null` for a single receipt.
    pub(crate) empty: bool,
    /// Transfers to this recipient are in no receipt and no log.
    pub(crate) omit: Option<Address>,
    /// Transfers to this recipient have this amount in all receipts and logs.
    pub(crate) alter: Option<(Address, U256)>,
    /// It is so many blocks behind.
    pub(crate) lag: u64,
    /// It says that it serves this chain.
    pub(crate) chain_id: Option<u64>,
}

/// A provider on a loopback port of its own.
pub(crate) struct Proxy {
    address: SocketAddr,
    faults: watch::Sender<Faults>,
    desk: Arc<Desk>,
    serving: JoinHandle<()>,
}

struct Desk {
    node: Rpc,
    clock: Arc<dyn Clock>,
    faults: watch::Receiver<Faults>,
    lies: AtomicU64,
    heads: AtomicU64,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Proxy {
    /// Shows `node` on a free port.
    pub(crate) async fn before(node: Rpc, clock: Arc<dyn Clock>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (faults, told) = watch::channel(Faults::default());
        let desk =
            Arc::new(Desk { node, clock, faults: told, lies: AtomicU64::new(0), heads: AtomicU64::new(0) });
        let serving = tokio::spawn(serve(listener, Arc::clone(&desk)));
        Self { address, faults, desk, serving }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on this is wrong with it, and nothing else.
    pub(crate) fn set(&self, faults: Faults) {
        self.faults.send_replace(faults);
    }

    pub(crate) fn heal(&self) {
        self.set(Faults::default());
    }

    /// How many answers were not what the node had said.
    pub(crate) fn lies(&self) -> u64 {
        self.desk.lies.load(Ordering::Relaxed)
    }

    /// How often it was asked for its head.
    pub(crate) fn heads_asked(&self) -> u64 {
        self.desk.heads.load(Ordering::Relaxed)
    }
}

/// Takes connections while it is up. While it is down the port is kept, bound and not listening, so that
/// connections are refused and nobody else gets it.
async fn serve(listener: TcpListener, desk: Arc<Desk>) {
    let address = listener.local_addr().unwrap();
    let mut faults = desk.faults.clone();
    let mut listener = Some(listener);
    let mut kept = None;
    let mut connections = JoinSet::new();
    loop {
        if faults.borrow_and_update().down {
            if listener.take().is_some() {
                connections.shutdown().await;
                kept = Some(bind(address));
            }
        } else if let Some(socket) = kept.take() {
            listener = Some(socket.listen(128).unwrap());
        }
        let connection = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            told = faults.changed() => if told.is_err() { return },
            accepted = connection => if let Ok((stream, _)) = accepted {
                connections.spawn(converse(stream, Arc::clone(&desk)));
            },
        }
    }
}

fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn converse(stream: TcpStream, desk: Arc<Desk>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let service = service_fn(|request| answer(Arc::clone(&desk), request));
    // How a connection ends is the client's business.
    let _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(desk: Arc<Desk>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let faults = desk.faults.borrow().clone();
    if faults.hang {
        return std::future::pending().await;
    }
    if !faults.delay.is_zero() {
        desk.clock.sleep(faults.delay).await;
    }
    if let Some(status) = faults.status {
        let sorry = Full::new(Bytes::from_static(b"<html>sorry</html>"));
        return Ok(Response::builder().status(status).body(sorry).unwrap());
    }
    let answer = match serde_json::from_slice(&body).unwrap() {
        Value::Array(calls) => {
            let mut answers = Vec::new();
            for call in &calls {
                answers.push(desk.respond(call, &faults).await);
            }
            Value::Array(answers)
        }
        call => desk.respond(&call, &faults).await,
    };
    let bytes = Bytes::from(answer.to_string());
    Ok(Response::builder().header("content-type", "application/json").body(Full::new(bytes)).unwrap())
}

impl Desk {
    async fn respond(&self, call: &Value, faults: &Faults) -> Value {
        let method = call["method"].as_str().unwrap();
        let said = self.say(method, &call["params"], faults).await;
        match said {
            Ok(result) => json!({"jsonrpc": "2.0", "id": call["id"], "result": result}),
            Err(error) => json!({"jsonrpc": "2.0", "id": call["id"], "error": error}),
        }
    }

    async fn say(&self, method: &str, params: &Value, faults: &Faults) -> Result<Value, Value> {
        if method == "eth_getBlockByNumber" && params[0] == "latest" {
            self.heads.fetch_add(1, Ordering::Relaxed);
        }
        if let (Some(id), "eth_chainId") = (faults.chain_id, method) {
            return Ok(json!(format!("{id:#x}")));
        }
        let truth = match faults.lag {
            0 => self.node.ask(method, params).await?,
            lag => self.ask_behind(method, params, lag).await?,
        };
        let mut said = truth.clone();
        distort(method, &mut said, faults);
        if said != truth {
            self.lies.fetch_add(1, Ordering::Relaxed);
        }
        Ok(said)
    }

    /// What a node says that has not seen the latest `lag` blocks.
    async fn ask_behind(&self, method: &str, params: &Value, lag: u64) -> Result<Value, Value> {
        let head = number(&self.node.ask("eth_blockNumber", &json!([])).await?).unwrap_or(0);
        let limit = head.saturating_sub(lag);
        match (method, params[0].as_str()) {
            ("eth_blockNumber", _) => return Ok(json!(format!("{limit:#x}"))),
            ("eth_getBlockByNumber", Some(tag @ ("latest" | "safe" | "finalized"))) => {
                let block = self.node.ask(method, &json!([tag, false])).await?;
                let shown = number(&block["number"]).unwrap_or(0).saturating_sub(lag);
                return self.node.ask(method, &json!([format!("{shown:#x}"), params[1]])).await;
            }
            _ => {}
        }
        let answer = self.node.ask(method, params).await?;
        let first = if answer.is_array() { &answer[0] } else { &answer };
        let place = [&first["number"], &first["blockNumber"]].into_iter().find_map(number);
        if place.is_none_or(|place| place <= limit) {
            return Ok(answer);
        }
        match method {
            "eth_getLogs" => Err(json!({"code": -32000, "message": "unknown block"})),
            _ => Ok(Value::Null),
        }
    }
}

fn number(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}

fn distort(method: &str, result: &mut Value, faults: &Faults) {
    match method {
        "eth_getBlockReceipts" | "eth_getLogs" if faults.empty && result.is_array() => *result = json!([]),
        "eth_getTransactionReceipt" if faults.empty => *result = Value::Null,
        "eth_getLogs" => distort_logs(result, faults),
        "eth_getTransactionReceipt" => distort_logs(&mut result["logs"], faults),
        "eth_getBlockReceipts" => {
            for receipt in result.as_array_mut().into_iter().flatten() {
                distort_logs(&mut receipt["logs"], faults);
            }
        }
        _ => {}
    }
}

fn distort_logs(logs: &mut Value, faults: &Faults) {
    let Some(logs) = logs.as_array_mut() else { return };
    if let Some(recipient) = faults.omit {
        logs.retain(|log| !pays(log, recipient));
    }
    if let Some((recipient, amount)) = faults.alter {
        for log in logs.iter_mut().filter(|log| pays(log, recipient)) {
            log["data"] = json!(B256::from(amount));
        }
    }
}

fn pays(log: &Value, recipient: Address) -> bool {
    log["topics"][0] == TRANSFER && log["topics"][2] == json!(recipient.into_word())
}

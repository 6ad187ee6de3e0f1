//! Real nodes, `anvil`, that are fed the same transactions and mine the same blocks, byte for byte: several
//! independent providers of one chain, none of them ours.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use alloy_consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, B256, Bytes, Signature, TxKind, U256, b256, hex};
use futures::future::join_all;
use k256::ecdsa::SigningKey;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::loopback::{Http, Rpc};

/// The key of the first account that every anvil funds.
const PAYER: B256 = b256!("0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80");
const PAYER_ADDRESS: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
const CHAIN_ID: u64 = 31_337;
const GENESIS_SECONDS: u64 = 1_700_000_000;
const BLOCK_SECONDS: u64 = 12;

struct Node {
    rpc: Rpc,
    /// Killed when dropped.
    _process: Child,
}

/// The nodes, and the one account that pays.
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    key: SigningKey,
    nonce: u64,
    seconds: u64,
    pub(crate) token: Address,
}

/// The binary. A test without it fails: what is not judged is not shown.
fn binary() -> PathBuf {
    let path = match std::env::var_os("QUITTANCE_ANVIL") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/anvil"),
    };
    assert!(
        path.is_file(),
        "there is no anvil at {}: run tools/install-anvil (it needs npm), or set QUITTANCE_ANVIL to a binary of version 1.7.1",
        path.display()
    );
    path
}

impl Node {
    async fn start(http: Http) -> Self {
        let mut process = Command::new(binary())
            .args(["--host", "127.0.0.1", "--port", "0", "--no-mining", "--order", "fifo"])
            .args(["--timestamp", &GENESIS_SECONDS.to_string(), "--slots-in-an-epoch", "2"])
            .args(["--chain-id", &CHAIN_ID.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = loop {
            let line = lines.next_line().await.unwrap().unwrap_or_else(|| panic!("anvil ended at its start"));
            if let Some(address) = line.strip_prefix("Listening on ") {
                break address.to_owned();
            }
        };
        // It writes a line for each request and would wait for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { rpc: Rpc::new(http, format!("http://{address}")), _process: process }
    }
}

impl Nodes {
    /// `count` nodes with a token, all of which the payer holds, in block 1.
    pub(crate) async fn start(count: usize) -> Self {
        let http = Http::new();
        let mut nodes = Self {
            nodes: join_all((0..count).map(|_| Node::start(http.clone()))).await,
            key: SigningKey::from_slice(PAYER.as_slice()).unwrap(),
            nonce: 0,
            seconds: GENESIS_SECONDS,
            token: Address::ZERO,
        };
        let genesis = nodes.same("eth_getBlockByNumber", json!(["0x0", false])).await;
        assert_eq!(genesis["timestamp"], json!(format!("{GENESIS_SECONDS:#x}")));
        let created = nodes.send(TxKind::Create, U256::ZERO, creation()).await;
        nodes.mine().await;
        let receipt = nodes.same("eth_getTransactionReceipt", json!([created])).await;
        assert_eq!(receipt["status"], "0x1", "{receipt}");
        nodes.token = serde_json::from_value(receipt["contractAddress"].clone()).unwrap();
        let payer: Address = PAYER_ADDRESS.parse().unwrap();
        let minted = devchain::token::mint(&[payer], U256::from(1_000_000_000_u64));
        nodes.send(TxKind::Call(nodes.token), U256::ZERO, minted).await;
        nodes.mine().await;
        assert_eq!(nodes.balance(payer).await, U256::from(1_000_000_000_u64));
        nodes
    }

    /// A way to ask node `index` itself.
    pub(crate) fn rpc(&self, index: usize) -> Rpc {
        self.nodes[index].rpc.clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.nodes.len()
    }

    /// What all nodes answer; that it is the same is asserted.
    async fn same(&self, method: &str, params: Value) -> Value {
        let answers = join_all(self.nodes.iter().map(|node| node.rpc.result(method, params.clone()))).await;
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{method} {params}: {answers:?}");
        answers.into_iter().next().unwrap()
    }

    async fn send(&mut self, to: TxKind, value: U256, input: Bytes) -> B256 {
        let (hash, raw) = self.sign(to, value, input);
        self.send_raw(&raw).await;
        hash
    }

    fn sign(&mut self, to: TxKind, value: U256, input: Bytes) -> (B256, Bytes) {
        let transaction = TxEip1559 {
            chain_id: CHAIN_ID,
            nonce: self.nonce,
            gas_limit: 3_000_000,
            max_fee_per_gas: 20_000_000_000,
            max_priority_fee_per_gas: 1_000_000_000,
            to,
            value,
            access_list: alloy_eips::eip2930::AccessList::default(),
            input,
        };
        self.nonce += 1;
        let digest = transaction.signature_hash();
        let signature = self.key.sign_prehash_recoverable(digest.as_slice()).map(Signature::from).unwrap();
        let envelope = TxEnvelope::Eip1559(transaction.into_signed(signature));
        (*envelope.tx_hash(), envelope.encoded_2718().into())
    }

    /// Sends a signed transaction to every node.
    pub(crate) async fn send_raw(&self, raw: &Bytes) {
        self.same("eth_sendRawTransaction", json!([raw])).await;
    }

    /// Pays tokens; the transaction, to be sent again if a reorg takes it away.
    pub(crate) async fn pay(&mut self, to: Address, amount: u64) -> (B256, Bytes) {
        let input = devchain::token::transfer(to, U256::from(amount));
        let signed = self.sign(TxKind::Call(self.token), U256::ZERO, input);
        self.send_raw(&signed.1).await;
        signed
    }

    /// Pays the chain's own coin.
    pub(crate) async fn pay_native(&mut self, to: Address, amount: U256) -> B256 {
        self.send(TxKind::Call(to), amount, Bytes::new()).await
    }

    /// Mines one block on every node, at the chain's own time; its height.
    pub(crate) async fn mine(&mut self) -> u64 {
        self.seconds += BLOCK_SECONDS;
        self.same("evm_mine", json!([{"timestamp": self.seconds}])).await;
        self.height().await
    }

    pub(crate) async fn mine_n(&mut self, count: u64) -> u64 {
        for _ in 1..count {
            self.mine().await;
        }
        self.mine().await
    }

    /// The head, byte for byte the same on every node.
    pub(crate) async fn height(&self) -> u64 {
        let head = self.same("eth_getBlockByNumber", json!(["latest", false])).await;
        u64::from_str_radix(head["number"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    }

    /// Replaces the latest `depth` blocks on every node by as many empty ones. What they held is dropped.
    pub(crate) async fn reorg(&self, depth: u64) {
        let before = self.same("eth_getBlockByNumber", json!(["latest", false])).await;
        self.same("anvil_reorg", json!([depth, []])).await;
        let after = self.same("eth_getBlockByNumber", json!(["latest", false])).await;
        assert_eq!(before["number"], after["number"]);
        assert_ne!(before["hash"], after["hash"]);
    }

    /// The same on one node alone, which then is on a branch of its own.
    pub(crate) async fn reorg_one(&self, index: usize, depth: u64) {
        self.nodes[index].rpc.result("anvil_reorg", json!([depth, []])).await;
    }

    /// How many tokens an account holds, by the word of every node.
    pub(crate) async fn balance(&self, owner: Address) -> U256 {
        let call = json!({"to": self.token, "data": devchain::token::balance_of(owner)});
        let answer = self.same("eth_call", json!([call, "latest"])).await;
        serde_json::from_value::<B256>(answer).unwrap().into()
    }

    /// How much of the chain's own coin an account holds.
    pub(crate) async fn native_balance(&self, owner: Address) -> U256 {
        let answer = self.same("eth_getBalance", json!([owner, "latest"])).await;
        serde_json::from_value(answer).unwrap()
    }
}

/// The plain ERC-20 of the development chain, with its constructor's arguments (name, symbol, decimals).
fn creation() -> Bytes {
    let mut code =
        hex::decode(include_str!("../../../devchain/contracts/bytecode/PlainToken.hex").trim()).unwrap();
    let word = |value: usize| B256::from(U256::from(value));
    let text = |text: &str| {
        let mut padded = [0; 32];
        padded[..text.len()].copy_from_slice(text.as_bytes());
        [word(text.len()), B256::from(padded)]
    };
    let heads = [word(96), word(160), word(6)];
    for argument in heads.into_iter().chain(text("Judged Dollar")).chain(text("DUSD")) {
        code.extend_from_slice(argument.as_slice());
    }
    code.into()
}

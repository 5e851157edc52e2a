//! A devchain in this process, and plain JSON-RPC to it or to any other node.

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use alloy::primitives::U64;
use chaintap::devchain::{Options, Serving, serve};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};
use tokio_util::sync::CancellationToken;

/// A running devchain; it ends with its guard.
pub struct Devchain {
    pub address: SocketAddr,
    shutdown: CancellationToken,
}

impl Devchain {
    /// Starts one on a free port.
    pub async fn start(options: Options) -> Self {
        let shutdown = CancellationToken::new();
        let Serving { address, .. } = serve(Options { port: 0, ..options }, shutdown.clone()).await.unwrap();
        Self { address, shutdown }
    }

    /// Plain calls.
    pub fn rpc(&self) -> Rpc {
        Rpc::new(format!("http://{}", self.address))
    }

    /// Plain calls to one of its endpoints, which has the faults that it is given; the one without a path stays good.
    pub fn endpoint(&self, name: &str) -> Rpc {
        Rpc::new(format!("http://{}/{name}", self.address))
    }

    /// Where it takes sockets.
    pub fn ws_url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Mines this many blocks at once.
    pub async fn mine(&self, blocks: u64) {
        self.rpc().call("devchain_mine", json!([blocks])).await;
    }

    /// Height of the newest block.
    pub async fn head(&self) -> u64 {
        let head: U64 = serde_json::from_value(self.rpc().call("eth_blockNumber", json!([])).await).unwrap();
        head.to()
    }

    /// Hash of a canonical block.
    pub async fn hash(&self, number: u64) -> String {
        let block = self.rpc().call("eth_getBlockByNumber", json!([format!("{number:#x}"), false])).await;
        block["hash"].as_str().unwrap().to_owned()
    }

    /// The ids of every ERC-20 transfer of these blocks, as the node itself tells of them: what must be delivered.
    pub async fn transfers(&self, from: u64, to: u64) -> BTreeSet<String> {
        let chain: U64 = serde_json::from_value(self.rpc().call("eth_chainId", json!([])).await).unwrap();
        let topic = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
        let mut logs = Vec::new();
        for first in (from..=to).step_by(500) {
            let (first, last) = (format!("{first:#x}"), format!("{:#x}", to.min(first + 499)));
            let filter = json!([{ "fromBlock": first, "toBlock": last, "topics": [topic] }]);
            logs.extend(self.rpc().call("eth_getLogs", filter).await.as_array().unwrap().iter().cloned());
        }
        let erc20 =
            |log: &&Value| log["topics"].as_array().unwrap().len() == 3 && log["data"].as_str().unwrap().len() == 66;
        let id = |log: &Value| {
            let index: U64 = serde_json::from_value(log["logIndex"].clone()).unwrap();
            format!("{chain}:{}:{index}", log["blockHash"].as_str().unwrap())
        };
        logs.iter().filter(erc20).map(id).collect()
    }
}

impl Drop for Devchain {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Options of a chain that is the same in every run and mines on request.
pub fn still(start_height: u64) -> Options {
    Options { mining: false, genesis_time: Some(1_750_000_000), start_height, ..Options::default() }
}

/// JSON-RPC over HTTP without a client's help, so that a test sees what the node said.
#[derive(Clone)]
pub struct Rpc {
    pub url: String,
    client: reqwest::Client,
}

impl Rpc {
    pub fn new(url: String) -> Self {
        chaintap::crypto::init();
        Self { url, client: reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap() }
    }

    /// Where the same node takes sockets.
    pub fn ws_url(&self) -> String {
        self.url.replacen("http", "ws", 1)
    }

    /// Posts a body as it stands.
    pub async fn post(&self, body: impl Into<reqwest::Body>) -> reqwest::Result<reqwest::Response> {
        self.client.post(&self.url).header("content-type", "application/json").body(body).send().await
    }

    /// The whole reply to a body, where there is one.
    pub async fn try_reply(&self, body: &Value) -> Option<Value> {
        let reply = self.post(body.to_string()).await.ok()?.bytes().await.ok()?;
        serde_json::from_slice(&reply).ok()
    }

    /// The whole reply to a body.
    pub async fn reply(&self, body: &Value) -> Value {
        self.try_reply(body).await.expect("a reply in JSON")
    }

    /// The result of a call or its `error` member.
    pub async fn try_call(&self, method: &str, params: Value) -> Result<Value, Value> {
        let mut reply = self.reply(&json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params })).await;
        assert_eq!(reply["id"], 7, "{reply}");
        if reply["error"].is_null() { Ok(reply["result"].take()) } else { Err(reply["error"].take()) }
    }

    /// The result of a call that must work.
    pub async fn call(&self, method: &str, params: Value) -> Value {
        self.try_call(method, params).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// The code of the error of a call that must fail.
    pub async fn code(&self, method: &str, params: Value) -> i64 {
        let result = self.try_call(method, params).await;
        result.expect_err(method)["code"].as_i64().unwrap()
    }
}

/// A raw WebSocket to a node.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// What was pushed while a reply was awaited.
    pushed: VecDeque<Value>,
}

impl Socket {
    pub async fn connect(rpc: &Rpc) -> Self {
        let (stream, _) = connect_async(rpc.ws_url()).await.unwrap();
        Self { stream, pushed: VecDeque::new() }
    }

    pub async fn send(&mut self, message: &Value) {
        assert!(self.try_send(message).await, "the socket is open");
    }

    /// Whether the node still takes messages.
    pub async fn try_send(&mut self, message: &Value) -> bool {
        self.stream.send(Message::text(message.to_string())).await.is_ok()
    }

    /// The next message of any kind; panics after ten seconds without one.
    pub async fn receive(&mut self) -> Value {
        loop {
            let message = timeout(Duration::from_secs(10), self.stream.next()).await.expect("a message within 10 s");
            if let Message::Text(text) = message.expect("the socket is open").unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    /// The result of a call.
    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        self.send(&json!({ "jsonrpc": "2.0", "id": 9, "method": method, "params": params })).await;
        loop {
            let mut message = self.receive().await;
            if message["id"] == 9 {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].take();
            }
            self.pushed.push_back(message);
        }
    }

    /// The next notification: its subscription and its result.
    pub async fn notified(&mut self) -> (Value, Value) {
        let mut message = match self.pushed.pop_front() {
            Some(pushed) => pushed,
            None => self.receive().await,
        };
        assert_eq!(message["method"], "eth_subscription", "{message}");
        (message["params"]["subscription"].take(), message["params"]["result"].take())
    }

    /// Whether the node has closed the socket, after taking what was still on its way.
    pub async fn is_closed(&mut self) -> bool {
        timeout(Duration::from_secs(30), async { while let Some(Ok(_)) = self.stream.next().await {} }).await.is_ok()
    }
}

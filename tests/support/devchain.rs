//! A devchain in this process, and plain JSON-RPC to it or to any other node.

use std::{net::SocketAddr, time::Duration};

use chaintap::devchain::{Options, Serving, serve};
use serde_json::{Value, json};
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
    pub async fn post(&self, body: impl Into<reqwest::Body>) -> reqwest::Response {
        let request = self.client.post(&self.url).header("content-type", "application/json").body(body);
        request.send().await.unwrap()
    }

    /// The whole reply to a body.
    pub async fn reply(&self, body: &Value) -> Value {
        serde_json::from_slice(&self.post(body.to_string()).await.bytes().await.unwrap()).unwrap()
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

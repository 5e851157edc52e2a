//! A node whose newest block is what the test says: everything else is passed on to a good one, over HTTP.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Json, Router, extract::State};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::{devchain::Rpc, process::eventually};

/// A running node; it ends with its guard.
pub struct Puppet {
    address: SocketAddr,
    node: Arc<Node>,
    #[expect(dead_code, reason = "ends the task when it is dropped")]
    serving: AbortOnDropHandle<()>,
}

struct Node {
    behind: Rpc,
    /// The newest block, and how often it was told.
    head: Mutex<(u64, usize)>,
}

impl Puppet {
    /// Starts one before a good node.
    pub async fn before(behind: Rpc, head: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let node = Arc::new(Node { behind, head: Mutex::new((head, 0)) });
        let router = Router::new().fallback(answer).with_state(node.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, node, serving: AbortOnDropHandle::new(serving) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Tells of this head from now on, and waits until it was told a few times. A block that the good node does not have
    /// is told with the header of its newest one.
    pub async fn tell(&self, head: u64) {
        *self.node.head.lock().unwrap() = (head, 0);
        let told = || async { self.node.head.lock().unwrap().1 >= 3 };
        eventually("the head was asked for", Duration::from_secs(30), told).await;
    }
}

async fn answer(State(node): State<Arc<Node>>, Json(mut request): Json<Value>) -> Json<Value> {
    let is_latest = request["method"] == "eth_getBlockByNumber" && request["params"][0] == "latest";
    if !is_latest {
        return Json(node.behind.reply(&request).await);
    }
    let head = {
        let mut head = node.head.lock().unwrap();
        head.1 += 1;
        head.0
    };
    request["params"][0] = json!(format!("{head:#x}"));
    let mut reply = node.behind.reply(&request).await;
    if reply["result"].is_null() {
        request["params"][0] = json!("latest");
        reply = node.behind.reply(&request).await;
        reply["result"]["number"] = json!(format!("{head:#x}"));
    }
    Json(reply)
}

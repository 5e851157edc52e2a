//! A node that misbehaves on request: JSON-RPC over HTTP, passed on to a good node and then spoilt; any path and user part
//! is taken, as at providers that put keys there.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{Response, StatusCode, header},
};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::{accept_async, tungstenite::Message};
use tokio_util::task::AbortOnDropHandle;

use super::devchain::Rpc;

/// What a node does to its answers.
#[derive(Clone)]
pub enum Fault {
    /// An HTTP status, with `Retry-After` in seconds where one is given.
    Status(u16, Option<u64>),
    /// This body instead of the answer, with status 200.
    Body(String),
    /// The first part of the answer's bytes.
    Truncated,
    /// Each result of this method, changed.
    Result(&'static str, fn(&mut Value)),
}

/// A running node; it ends with its guard.
pub struct FaultyNode {
    pub address: SocketAddr,
    state: Arc<Node>,
    #[expect(dead_code, reason = "ends the task when it is dropped")]
    task: AbortOnDropHandle<()>,
}

struct Node {
    behind: Mutex<Rpc>,
    /// The faults take turns; each `every`th answer has one.
    faults: Mutex<(usize, Vec<Fault>)>,
    requests: AtomicUsize,
    spoilt: AtomicUsize,
    /// How many answers are still to be spoilt.
    left: AtomicUsize,
}

impl FaultyNode {
    /// Starts one that passes everything on to a good node.
    pub async fn before(good: Rpc) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Node {
            behind: Mutex::new(good),
            faults: Mutex::default(),
            requests: AtomicUsize::new(0),
            spoilt: AtomicUsize::new(0),
            left: AtomicUsize::new(usize::MAX),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&state));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, state, task: AbortOnDropHandle::new(task) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every answer has this fault from now on.
    pub fn fail(&self, fault: Fault) {
        self.fail_every(1, vec![fault]);
    }

    /// One answer of so many has one of these faults, one fault after the other.
    pub fn fail_every(&self, every: usize, faults: Vec<Fault>) {
        self.state.left.store(usize::MAX, Ordering::Relaxed);
        *self.state.faults.lock().unwrap() = (every, faults);
    }

    /// So many answers have this fault, and the others none.
    pub fn fail_times(&self, times: usize, fault: Fault) {
        self.fail(fault);
        self.state.left.store(times, Ordering::Relaxed);
    }

    /// Behaves from now on.
    pub fn behave(&self) {
        self.fail_every(1, vec![]);
    }

    /// Another node stands behind the address from now on.
    pub fn move_to(&self, good: Rpc) {
        *self.state.behind.lock().unwrap() = good;
    }

    /// HTTP requests since the last time it was asked.
    pub fn requests(&self) -> usize {
        self.state.requests.swap(0, Ordering::Relaxed)
    }

    /// Answers that were spoilt so far.
    pub fn spoilt(&self) -> usize {
        self.state.spoilt.load(Ordering::Relaxed)
    }
}

impl Node {
    fn fault(&self, request: &Value) -> Option<Fault> {
        let (every, faults) = &*self.faults.lock().unwrap();
        // A batch counts as its first call; a fault of one method waits for that method.
        let method = request.get(0).unwrap_or(request)["method"].as_str().unwrap_or_default();
        let count = self.requests.load(Ordering::Relaxed);
        let concerns = |fault: &Fault| !matches!(fault, Fault::Result(of, _) if *of != method);
        if faults.is_empty()
            || self.left.load(Ordering::Relaxed) == 0
            || !scattered(count).is_multiple_of(*every as u64)
        {
            return None;
        }
        let turn = self.spoilt.load(Ordering::Relaxed);
        let fault = faults.iter().cycle().skip(turn % faults.len()).take(faults.len()).find(|fault| concerns(fault));
        fault.inspect(|_| {
            self.spoilt.fetch_add(1, Ordering::Relaxed);
            self.left.fetch_sub(1, Ordering::Relaxed);
        });
        fault.cloned()
    }
}

/// A count, mixed: a listener that asks in rounds of as many requests as are between two faults would otherwise have the
/// same one spoilt in every round.
fn scattered(count: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    count.hash(&mut hasher);
    hasher.finish()
}

async fn answer(State(node): State<Arc<Node>>, body: Bytes) -> Response<Body> {
    node.requests.fetch_add(1, Ordering::Relaxed);
    let Ok(request) = serde_json::from_slice::<Value>(&body) else { return plain(400, "no JSON") };
    let fault = node.fault(&request);
    let behind = node.behind.lock().unwrap().clone();
    match fault {
        Some(Fault::Status(status, retry_after)) => {
            let mut response = plain(status, "no");
            let wait = retry_after.map(|seconds| seconds.to_string().parse().unwrap());
            wait.map(|wait| response.headers_mut().insert(header::RETRY_AFTER, wait));
            response
        }
        Some(Fault::Body(text)) => plain(200, text),
        fault => {
            let Some(mut reply) = behind.try_reply(&request).await else { return plain(502, "no node behind") };
            if let Some(Fault::Result(of, change)) = &fault {
                spoil(&request, &mut reply, of, *change);
            }
            let mut text = reply.to_string();
            if matches!(fault, Some(Fault::Truncated)) {
                text.truncate(text.len() / 2);
            }
            plain(200, text)
        }
    }
}

/// Changes the results of one method in an answer or in a batch of answers.
fn spoil(request: &Value, reply: &mut Value, of: &str, change: fn(&mut Value)) {
    let calls = request.as_array().cloned().unwrap_or_else(|| vec![request.clone()]);
    let ids: Vec<&Value> = calls.iter().filter(|call| call["method"] == of).map(|call| &call["id"]).collect();
    let one = std::slice::from_mut(reply);
    let replies = if one[0].is_array() { one[0].as_array_mut().unwrap().as_mut_slice() } else { one };
    for reply in replies.iter_mut().filter(|reply| ids.contains(&&reply["id"])) {
        change(&mut reply["result"]);
    }
}

fn plain(status: u16, body: impl Into<Body>) -> Response<Body> {
    let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    response.header(header::CONTENT_TYPE, "application/json").body(body.into()).unwrap()
}

/// A WebSocket that takes subscriptions and never tells of a head: its URL, and the guard that ends it.
pub async fn mute_socket() -> (String, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let Ok(mut socket) = accept_async(stream).await else { return };
                while let Some(Ok(message)) = socket.next().await {
                    let Ok(call) = serde_json::from_slice::<Value>(&message.into_data()) else { continue };
                    let reply = json!({ "jsonrpc": "2.0", "id": call["id"], "result": "0x1" });
                    if socket.send(Message::text(reply.to_string())).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (url, AbortOnDropHandle::new(task))
}

/// An address that takes callers and never answers them: `127.0.0.1:port`, and the guard that ends it.
pub async fn black_hole() -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await.unwrap());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    (address, AbortOnDropHandle::new(task))
}

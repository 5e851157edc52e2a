//! A node whose chain grows when it is told to: below, the history that every scenario downloads; above, new blocks. It
//! tells of new heads over a WebSocket, and keeps account of the time that its own answers took.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use alloy::primitives::U64;
use axum::{
    Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    http::header::CONTENT_TYPE,
    response::IntoResponse,
    routing::get,
    serve::ListenerExt as _,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Runtime, sync::broadcast};

use crate::chain::{self, Chain, FIRST, TRANSFER, header};

/// What the transactions of new blocks begin with, before the block's number in 16 digits: so they are told apart from
/// history at a fixed place in a message.
pub const MARK: &str = "feedfacecafebeef";
/// New blocks that are not final.
const DEPTH: u64 = 64;
/// How long a listener is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// The node; ends with the runtime that it was started on.
pub struct Node {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    chain: Option<Chain>,
    /// The last block of history.
    base: u64,
    /// The highest block of history that was asked for, but for its last blocks, which are asked for first.
    asked_to: AtomicU64,
    head: AtomicU64,
    /// Logs of the new blocks, by hash.
    new: Mutex<HashMap<String, Arc<str>>>,
    heads: broadcast::Sender<String>,
    /// When it worked on the questions that are asked about a new block.
    spent: Mutex<Vec<(Instant, Instant)>>,
}

impl Node {
    /// A node with this many blocks of history, whose logs it knows where it is given a chain.
    pub fn start(runtime: &Runtime, chain: Option<Chain>, history: u64) -> Self {
        let base = FIRST + history - 1;
        let shared = Arc::new(Shared {
            chain,
            base,
            asked_to: AtomicU64::new(0),
            head: base.into(),
            new: Mutex::default(),
            heads: broadcast::channel(64).0,
            spent: Mutex::default(),
        });
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = listener.tap_io(|connection| connection.set_nodelay(true).unwrap());
        let app = Router::new().route("/", get(connect).post(answer)).layer(DefaultBodyLimit::max(4 << 20));
        let app = app.with_state(Arc::clone(&shared));
        runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, shared }
    }

    /// Its addresses: the socket, and HTTP beside it.
    pub fn provider(&self) -> String {
        format!("ws://{0}/,http://{0}/", self.address)
    }

    /// Its newest block.
    pub fn head(&self) -> u64 {
        self.shared.head.load(Ordering::Relaxed)
    }

    /// Whether there is history that nobody asked for yet.
    pub fn has_history_left(&self) -> bool {
        self.shared.asked_to.load(Ordering::Relaxed) < self.shared.base - DEPTH
    }

    /// Waits until so many listeners follow the head.
    pub fn wait_until_followed_by(&self, listeners: usize) {
        let begun = Instant::now();
        while self.shared.heads.receiver_count() < listeners {
            assert!(begun.elapsed() < PATIENCE, "nobody follows the head");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Adds a block with so many transfers; its number, and when its head was sent.
    pub fn grow(&self, logs: usize) -> (u64, Instant) {
        let shared = &self.shared;
        let number = self.head() + 1;
        let text = header(number);
        let hash = chain::hash(number).to_string();
        shared.new.lock().unwrap().insert(hash.clone(), logs_of(number, &hash, logs).into());
        shared.head.store(number, Ordering::Relaxed);
        let head: Value = serde_json::from_str(&text).unwrap();
        let sign = json!({
            "jsonrpc": "2.0", "method": "eth_subscription", "params": { "subscription": "0x1", "result": head }
        });
        let sign = sign.to_string();
        let sent = Instant::now();
        shared.heads.send(sign).unwrap();
        (number, sent)
    }

    /// How long it worked on questions about new blocks between these moments.
    pub fn spent(&self, from: Instant, to: Instant) -> Duration {
        let mut spent = self.shared.spent.lock().unwrap();
        spent.retain(|(_, end)| *end > from);
        spent.iter().map(|(begin, end)| end.min(&to).saturating_duration_since(*begin.max(&from))).sum()
    }
}

/// Transfers of a hundred tokens, two in a transaction.
fn logs_of(number: u64, hash: &str, logs: usize) -> String {
    let mut text = String::from("[");
    for index in 0..logs {
        write!(
            text,
            r#"{}{{"address":"0x{:040x}","topics":["{TRANSFER}","0x{:064x}","0x{:064x}"],"data":"0x{:064x}","blockNumber":"0x{number:x}","blockHash":"{hash}","transactionHash":"0x{MARK}{number:016x}{:032x}","transactionIndex":"0x{:x}","logIndex":"0x{index:x}","removed":false}}"#,
            if index > 0 { "," } else { "" },
            0x00c0_ffee + index % 100,
            number * 1_000 + index as u64,
            number * 1_000 + index as u64 + 1,
            1_000_000_007 * (index as u64 + 1),
            index / 2,
            index / 2,
        )
        .unwrap();
    }
    text + "]"
}

async fn answer(State(shared): State<Arc<Shared>>, body: Bytes) -> impl IntoResponse {
    let begun = Instant::now();
    let request: Value = serde_json::from_slice(&body).unwrap();
    let out = match request {
        Value::Array(calls) => tokio::task::spawn_blocking(move || shared.each(&calls)).await.unwrap(),
        call => {
            let mut out = Vec::new();
            shared.one(&call, &mut out);
            shared.spent.lock().unwrap().push((begun, Instant::now()));
            out
        }
    };
    ([(CONTENT_TYPE, "application/json")], out)
}

async fn connect(State(shared): State<Arc<Shared>>, upgrade: WebSocketUpgrade) -> impl IntoResponse {
    upgrade.on_upgrade(move |socket| tell(socket, shared))
}

/// Answers the subscription, then tells of heads until the listener goes.
async fn tell(mut socket: WebSocket, shared: Arc<Shared>) {
    let Some(Ok(Message::Text(call))) = socket.recv().await else { return };
    let call: Value = serde_json::from_str(&call).unwrap();
    assert_eq!(call["params"], json!(["newHeads"]));
    let told = json!({ "jsonrpc": "2.0", "id": call["id"], "result": "0x1" }).to_string();
    let mut heads = shared.heads.subscribe();
    if socket.send(Message::from(told)).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            head = heads.recv() => {
                if socket.send(Message::from(head.unwrap())).await.is_err() {
                    return;
                }
            }
            // Pings are answered by the server itself.
            message = socket.recv() => if !matches!(message, Some(Ok(_))) { return },
        }
    }
}

impl Shared {
    /// Answers a batch, which is of history: megabytes, which are written by threads that make way, so that neither heads nor
    /// what is asked of new blocks wait for them. A node's own delays are not the listener's.
    fn each(&self, calls: &[Value]) -> Vec<u8> {
        #[cfg(target_os = "linux")]
        rustix::process::nice(19).unwrap();
        let mut out = b"[".to_vec();
        for (place, call) in calls.iter().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            self.one(call, &mut out);
        }
        out.push(b']');
        out
    }

    fn one(&self, call: &Value, out: &mut Vec<u8>) {
        out.extend_from_slice(format!(r#"{{"jsonrpc":"2.0","id":{},"result":"#, call["id"]).as_bytes());
        let argument = &call["params"][0];
        match call["method"].as_str().unwrap() {
            "eth_chainId" => out.extend_from_slice(br#""0x1""#),
            "eth_getLogs" => self.logs(argument, out),
            "eth_getBlockByNumber" => out.extend_from_slice(self.header(argument.as_str().unwrap()).as_bytes()),
            other => panic!("{other} is not served"),
        }
        out.push(b'}');
    }

    fn header(&self, at: &str) -> String {
        let head = self.head.load(Ordering::Relaxed);
        match at {
            "latest" => header(head),
            "safe" | "finalized" => header(self.base.max(head.saturating_sub(DEPTH))),
            number => {
                let number = parse(number);
                if number <= head { header(number) } else { "null".to_owned() }
            }
        }
    }

    fn logs(&self, filter: &Value, out: &mut Vec<u8>) {
        if let Some(hash) = filter["blockHash"].as_str()
            && let Some(logs) = self.new.lock().unwrap().get(hash)
        {
            out.extend_from_slice(logs.as_bytes());
            return;
        }
        let (from, to) = match filter.get("blockHash") {
            // Until the tags are read the head may be anything but final.
            Some(hash) if *hash == chain::hash(self.base).to_string() => (self.base, self.base),
            Some(hash) => panic!("no block {hash}"),
            None => (parse(filter["fromBlock"].as_str().unwrap()), parse(filter["toBlock"].as_str().unwrap())),
        };
        // New blocks that became final would be asked for by number only where they were left out before.
        assert!(to <= self.base, "blocks {from} to {to} were not delivered near the head");
        out.push(b'[');
        if from + DEPTH < self.base {
            self.asked_to.fetch_max(to, Ordering::Relaxed);
        }
        self.chain.as_ref().unwrap().write_logs(from..to + 1, &HashSet::new(), out);
        out.push(b']');
    }
}

fn parse(number: &str) -> u64 {
    number.parse::<U64>().unwrap().to()
}

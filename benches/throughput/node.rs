//! The node that is downloaded from: it answers what a listener asks, from text, after a latency.

use std::{
    collections::{HashMap, HashSet},
    io::BufRead as _,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use alloy::primitives::{Address, B256, U64};
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::header::CONTENT_TYPE,
    response::IntoResponse,
    routing::post,
};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::{
    block_on,
    chain::{CHAIN_ID, Chain, FIRST, Shape, hash, header},
};

/// Most addresses of a filter, as geth has it.
const MOST_ADDRESSES: usize = 1_000;
/// What an answer begins with room for: 100 blocks of an even chain.
const ROOM: usize = 6 << 20;

/// Blocks on top of those that are read, so that all of these are final.
const DEPTH: u64 = 64;

/// A node, and what is known of it.
struct Node {
    chain: Chain,
    /// The blocks that are to be read.
    blocks: Range<u64>,
    /// Heights by hash.
    heights: HashMap<B256, u64>,
    latency: Duration,
    served: Served,
}

/// What it was asked for, since it was last asked to tell.
#[derive(Default)]
struct Served {
    /// Requests for logs.
    requests: AtomicUsize,
    /// Of these, those that are not answered yet, and the most there were.
    in_flight: AtomicUsize,
    peak: AtomicUsize,
    /// Bytes of their answers.
    bytes: AtomicUsize,
    /// Those that named addresses.
    by_address: AtomicUsize,
}

/// Serves where the program was started as a node: `node BLOCKS MILLISECONDS [SHAPE]`.
pub fn role(arguments: &[&str]) -> bool {
    let ["node", blocks, latency, shape @ ..] = arguments else { return false };
    let shape = Shape::parse(shape.first().copied());
    block_on(serve(shape, blocks.parse().unwrap(), Duration::from_millis(latency.parse().unwrap())));
    true
}

/// Serves until whoever started it goes; says on standard output where, and answers what is asked on standard input.
async fn serve(shape: Shape, blocks: u64, latency: Duration) {
    let blocks = FIRST..FIRST + blocks;
    let heights = (FIRST..blocks.end + DEPTH).map(|number| (hash(number), number)).collect();
    let node = Arc::new(Node { chain: Chain::new(shape), blocks, heights, latency, served: Served::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    println!("{address}");
    let asked = Arc::clone(&node);
    let over = tokio::task::spawn_blocking(move || asked.tell());
    let app = Router::new().route("/", post(answer)).layer(DefaultBodyLimit::max(64 << 20)).with_state(node);
    tokio::select! {
        served = axum::serve(listener, app) => served.unwrap(),
        over = over => over.unwrap(),
    }
}

async fn answer(State(node): State<Arc<Node>>, body: Bytes) -> impl IntoResponse {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let is_for_logs = calls(&request).iter().any(|call| call["method"] == "eth_getLogs");
    if is_for_logs {
        node.served.requests.fetch_add(1, Relaxed);
        let in_flight = node.served.in_flight.fetch_add(1, Relaxed) + 1;
        node.served.peak.fetch_max(in_flight, Relaxed);
    }
    if !node.latency.is_zero() {
        tokio::time::sleep(node.latency).await;
    }
    let mut out = Vec::with_capacity(if is_for_logs { ROOM } else { 0 });
    node.all(&request, &mut out);
    if is_for_logs {
        node.served.bytes.fetch_add(out.len(), Relaxed);
        // Before it is sent: whoever has read it all asks for more before it is known here that it was sent.
        node.served.in_flight.fetch_sub(1, Relaxed);
    }
    ([(CONTENT_TYPE, "application/json")], out)
}

fn calls(request: &Value) -> &[Value] {
    request.as_array().map_or(std::slice::from_ref(request), Vec::as_slice)
}

impl Node {
    fn all(&self, request: &Value, out: &mut Vec<u8>) {
        if !request.is_array() {
            return self.one(request, out);
        }
        for (place, call) in calls(request).iter().enumerate() {
            out.push(if place == 0 { b'[' } else { b',' });
            self.one(call, out);
        }
        out.push(b']');
    }

    fn one(&self, call: &Value, out: &mut Vec<u8>) {
        let begin = format!(r#"{{"jsonrpc":"2.0","id":{},"#, call["id"]);
        out.extend_from_slice(begin.as_bytes());
        let argument = &call["params"][0];
        match call["method"].as_str().unwrap() {
            "eth_chainId" => out.extend_from_slice(format!(r#""result":"0x{CHAIN_ID:x}""#).as_bytes()),
            "eth_getLogs" => self.logs(argument, out),
            "eth_getBlockByNumber" => {
                let head = self.blocks.end + DEPTH - 1;
                let number = if argument.as_str().unwrap().starts_with("0x") { number(argument) } else { head };
                let found = if number <= head { header(number) } else { "null".into() };
                out.extend_from_slice(format!(r#""result":{found}"#).as_bytes());
            }
            "eth_getBlockByHash" => {
                let found = self.height(argument).map_or_else(|| "null".into(), header);
                out.extend_from_slice(format!(r#""result":{found}"#).as_bytes());
            }
            other => {
                let error = format!(r#""error":{{"code":-32601,"message":"the method {other} does not exist"}}"#);
                out.extend_from_slice(error.as_bytes());
            }
        }
        out.push(b'}');
    }

    fn logs(&self, filter: &Value, out: &mut Vec<u8>) {
        let contracts: HashSet<Address> =
            filter.get("address").map(|one| serde_json::from_value(one.clone()).unwrap()).unwrap_or_default();
        if contracts.len() > MOST_ADDRESSES {
            out.extend_from_slice(
                br#""error":{"code":-32602,"message":"exceed max addresses or topics per search position"}"#,
            );
            return;
        }
        let blocks = match filter.get("blockHash").map(|hash| self.height(hash)) {
            None => number(&filter["fromBlock"])..number(&filter["toBlock"]) + 1,
            Some(Some(number)) => number..number + 1,
            Some(None) => return out.extend_from_slice(br#""error":{"code":-32000,"message":"unknown block"}"#),
        };
        self.served.by_address.fetch_add(usize::from(!contracts.is_empty()), Relaxed);
        out.extend_from_slice(br#""result":["#);
        self.chain.write_logs(blocks, &contracts, out);
        out.push(b']');
    }

    fn height(&self, hash: &Value) -> Option<u64> {
        self.heights.get(&serde_json::from_value::<B256>(hash.clone()).ok()?).copied()
    }

    /// Answers a line with a line, until there is none.
    fn tell(&self) {
        for question in std::io::stdin().lock().lines() {
            match question.unwrap().as_str() {
                "served" => {
                    let Served { requests, peak, bytes, by_address, .. } = &self.served;
                    let [requests, peak, bytes, by_address] =
                        [requests, peak, bytes, by_address].map(|count| count.swap(0, Relaxed));
                    println!("{requests} {peak} {bytes} {by_address}");
                }
                whose @ ("all" | "tracked") => {
                    let truth = self.chain.truth(self.blocks.clone(), whose == "tracked");
                    println!("{} {}", truth.logs, truth.ids);
                }
                other => panic!("{other} is not known here"),
            }
        }
    }
}

fn number(text: &Value) -> u64 {
    serde_json::from_value::<U64>(text.clone()).unwrap().to()
}

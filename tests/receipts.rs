//! `verify = "receipts"` against real nodes: no log that a node leaves out is missed, nothing false is taken, an honest
//! node's answer is the same as without, and where nothing can be proven nothing is delivered less.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]
#![allow(clippy::print_stdout, reason = "a test that could test nothing says so, and one states what a proof costs")]

mod support;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use alloy::primitives::{Address, B256, U256, hex};
use alloy::sol_types::SolCall as _;
use axum::{Router, body::Bytes, extract::State, response::IntoResponse};
use chaintap::{
    config::{Limits, SecretUrl, Verify},
    devchain::Options,
    domain::{BlockRange, BlockRef, RawLog},
    rpc::{At, Bounds, ChainSource as _, Endpoints, LogFilter, RpcError},
};
use serde_json::{Value, json};
use support::{
    anvil::{Anvil, transferCall},
    devchain::{Devchain, Rpc, still},
};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::task::AbortOnDropHandle;

const CHAIN: u64 = 31_337;
const ALICE: Address = Address::repeat_byte(0xa1);
const RECEIPTS: &str = "eth_getBlockReceipts";
/// Proofs that fail before a node is taken at its word.
const PATIENCE: usize = 5;

/// What a node does to the answer of one call.
type Lie = fn(&Value, &mut Value);

/// A node that passes everything on to a good one, and may lie.
struct Node {
    url: String,
    state: Arc<Passing>,
    #[expect(dead_code, reason = "ends the task when it is dropped")]
    task: AbortOnDropHandle<()>,
}

struct Passing {
    behind: Rpc,
    lie: Mutex<Option<Lie>>,
    calls: Mutex<BTreeMap<String, usize>>,
    requests: Mutex<(usize, usize)>,
}

impl Node {
    async fn before(behind: Rpc) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Passing { behind, lie: Mutex::default(), calls: Mutex::default(), requests: Mutex::default() };
        let state = Arc::new(state);
        let router = Router::new().fallback(pass).with_state(Arc::clone(&state));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, state, task: AbortOnDropHandle::new(task) }
    }

    /// Lies from now on.
    fn lie(&self, lie: Lie) {
        *self.state.lie.lock().unwrap() = Some(lie);
    }

    /// How often a method was called.
    fn calls(&self, method: &str) -> usize {
        self.state.calls.lock().unwrap().get(method).copied().unwrap_or_default()
    }

    /// Requests and bytes of answers since the last time it was asked.
    fn take_requests(&self) -> (usize, usize) {
        std::mem::take(&mut *self.state.requests.lock().unwrap())
    }

    fn endpoints(&self, verify: Verify, sample: u64) -> Endpoints {
        endpoints(&[self], verify, sample)
    }
}

async fn pass(State(node): State<Arc<Passing>>, body: Bytes) -> impl IntoResponse {
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let calls = asked.as_array().cloned().unwrap_or_else(|| vec![asked.clone()]);
    let mut answer = node.behind.reply(&asked).await;
    let lie = *node.lie.lock().unwrap();
    for call in &calls {
        *node.calls.lock().unwrap().entry(call["method"].as_str().unwrap().to_owned()).or_default() += 1;
        let one = std::slice::from_mut(&mut answer);
        let answers = if one[0].is_array() { one[0].as_array_mut().unwrap().as_mut_slice() } else { one };
        let answer = answers.iter_mut().find(|answer| answer["id"] == call["id"]).unwrap();
        lie.inspect(|lie| lie(call, answer));
    }
    let answer = answer.to_string();
    let mut requests = node.requests.lock().unwrap();
    *requests = (requests.0 + 1, requests.1 + answer.len());
    ([("content-type", "application/json")], answer)
}

fn endpoints(nodes: &[&Node], verify: Verify, verify_sample: u64) -> Endpoints {
    let urls = nodes.iter().map(|node| SecretUrl::parse(&node.url).unwrap()).collect();
    Endpoints::new(CHAIN, urls, Limits { verify, verify_sample, ..Limits::default() })
}

fn any_transfer() -> LogFilter {
    let transfer = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
    LogFilter { addresses: vec![], topics: vec![transfer.parse().unwrap()] }
}

/// The logs of a block near the head, as the pipeline asks for them.
async fn of_block(source: &Endpoints, number: u64) -> Result<Vec<RawLog>, RpcError> {
    let header = source.header(At::Number(number)).await?.unwrap();
    source.block_logs(header.block(), header.timestamp, &any_transfer()).await
}

/// The logs of a final range.
async fn of_range(source: &Endpoints, from: u64, to: u64) -> Result<Vec<RawLog>, RpcError> {
    Ok(source.range_logs(BlockRange { from, to }, &any_transfer()).await?.logs)
}

/// A devchain with a few transfers in each block, and the truth about it.
async fn devchain(head: u64) -> (Devchain, Node) {
    let chain = Devchain::start(Options { logs_per_block: 6, ..still(head) }).await;
    let node = Node::before(chain.rpc()).await;
    (chain, node)
}

/// anvil with a token in block 1, a block of every type of transaction (legacy, EIP-2930, EIP-1559, one that fails), a
/// burst, and an empty block.
async fn anvil() -> (Anvil, Node) {
    let anvil = Anvil::start(CHAIN, &["--no-mining"]).await;
    let token = anvil.deploy_token().await;
    let transfer = |value: u64| hex::encode_prefixed(transferCall { to: ALICE, value: U256::from(value) }.abi_encode());
    let price = "0x12a05f2000";
    let storage = json!([{ "address": token, "storageKeys": [B256::ZERO] }]);
    for (value, kind) in [
        (1, json!({ "type": "0x0", "gasPrice": price })),
        (2, json!({ "type": "0x1", "gasPrice": price, "accessList": storage })),
        (3, json!({ "type": "0x2", "maxFeePerGas": price, "maxPriorityFeePerGas": "0x1" })),
    ] {
        let mut transaction = json!({ "to": token, "data": transfer(value), "gas": "0x1c9c380" });
        transaction.as_object_mut().unwrap().extend(kind.as_object().unwrap().clone());
        anvil.send(transaction).await;
    }
    anvil.send(json!({ "to": token, "data": "0xdeadbeef", "gas": "0x186a0" })).await;
    anvil.mine(1).await;
    anvil.burst(token, ALICE, 300).await;
    anvil.burst(token, ALICE, 2).await;
    anvil.mine(2).await;
    let node = Node::before(anvil.rpc.clone()).await;
    (anvil, node)
}

/// Those of these blocks that have transfers.
async fn with_logs(node: &Node, numbers: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    let logs = of_range(&node.endpoints(Verify::None, 0), *numbers.start(), *numbers.end()).await.unwrap();
    numbers.filter(|number| logs.iter().any(|log| log.block.number == *number)).collect()
}

/// Leaves the first log out of each answer of `eth_getLogs`.
fn omit_one(call: &Value, answer: &mut Value) {
    if call["method"] == "eth_getLogs" && answer["result"].as_array().is_some_and(|logs| !logs.is_empty()) {
        answer["result"].as_array_mut().unwrap().remove(0);
    }
}

/// Leaves it out of the receipts, too.
fn omit_everywhere(call: &Value, answer: &mut Value) {
    omit_one(call, answer);
    if call["method"] == RECEIPTS {
        let receipts = answer["result"].as_array_mut().unwrap();
        if let Some(with_logs) = receipts.iter_mut().find(|receipt| receipt["logs"] != json!([])) {
            with_logs["logs"].as_array_mut().unwrap().remove(0);
        }
    }
}

/// Another root, under which the header does not hash to its hash.
fn other_root(call: &Value, answer: &mut Value) {
    if call["method"].as_str().unwrap().starts_with("eth_getBlockBy") {
        answer["result"]["receiptsRoot"] = json!(B256::repeat_byte(9));
    }
}

fn no_receipts(call: &Value, answer: &mut Value) {
    if call["method"] == RECEIPTS {
        let error = json!({ "code": -32601, "message": "the method eth_getBlockReceipts does not exist" });
        *answer = json!({ "jsonrpc": "2.0", "id": call["id"], "error": error });
    }
}

/// With and without receipts the answers are the same, by hash and by range, and every block is proven.
async fn assert_the_same(node: &Node, head: u64) {
    let (plain, proven) = (node.endpoints(Verify::None, 0), node.endpoints(Verify::Receipts, 1));
    for number in 0..=head {
        assert_eq!(of_block(&plain, number).await.unwrap(), of_block(&proven, number).await.unwrap(), "{number}");
    }
    assert_eq!(node.calls(RECEIPTS) as u64, head + 1);
    let told = of_range(&plain, 0, head).await.unwrap();
    assert_eq!(told, of_range(&proven, 0, head).await.unwrap());
    assert!(told.len() > 4, "{} logs prove little", told.len());
    assert_eq!(node.calls(RECEIPTS) as u64, 2 * (head + 1), "nothing was given up");
}

/// What was left out, under `receipts` it is there: by hash, and in a range, also in blocks that no sample was taken of.
async fn assert_nothing_is_missed(node: &Node, head: u64) {
    let honest = node.endpoints(Verify::None, 0);
    let mut blocks = Vec::new();
    for number in 1..=head {
        blocks.push(of_block(&honest, number).await.unwrap());
    }
    let range = of_range(&honest, 1, head).await.unwrap();
    node.lie(omit_one);
    let proven = node.endpoints(Verify::Receipts, 1);
    for (block, number) in blocks.iter().zip(1..) {
        assert_eq!(*block, of_block(&proven, number).await.unwrap(), "{number}");
    }
    assert_eq!(of_range(&proven, 1, head).await.unwrap(), range);
    assert_eq!(of_range(&honest, 1, head).await.unwrap().len(), range.len() - 1, "the node does lie");
}

#[tokio::test]
async fn an_honest_devchain_says_the_same_with_receipts_and_without() {
    let (_chain, node) = devchain(90).await;
    assert_the_same(&node, 90).await;
}

#[tokio::test]
async fn an_honest_anvil_says_the_same_with_receipts_and_without() {
    let (anvil, node) = anvil().await;
    let receipts = anvil.rpc.call(RECEIPTS, json!(["0x2"])).await;
    let kinds: Vec<_> = receipts.as_array().unwrap().iter().map(|receipt| &receipt["type"]).collect();
    assert_eq!(kinds, ["0x0", "0x1", "0x2", "0x2"]);
    assert_eq!(receipts[3]["status"], "0x0", "the last one failed");
    assert_the_same(&node, 4).await;
}

#[tokio::test]
async fn a_single_log_that_a_devchain_leaves_out_is_there() {
    let (_chain, node) = devchain(40).await;
    assert_nothing_is_missed(&node, 40).await;
}

#[tokio::test]
async fn a_single_log_that_anvil_leaves_out_is_there() {
    let (_anvil, node) = anvil().await;
    assert_nothing_is_missed(&node, 4).await;
}

/// Every tenth block is proven; that one of them lacks a log is enough to prove the others.
#[tokio::test]
async fn an_omission_in_the_sample_has_the_whole_range_proven() {
    let (_chain, node) = devchain(40).await;
    let truth = of_range(&node.endpoints(Verify::None, 0), 11, 39).await.unwrap();
    let sampled = node.endpoints(Verify::Receipts, 10);
    assert_eq!(of_range(&sampled, 11, 39).await.unwrap(), truth);
    assert_eq!(node.calls(RECEIPTS), 2, "20 and 30");
    node.lie(|call, answer| {
        if call["method"] == "eth_getLogs" {
            answer["result"].as_array_mut().unwrap().retain(|log| log["logIndex"] != "0x1");
        }
    });
    assert_eq!(of_range(&sampled, 11, 39).await.unwrap(), truth);
    assert_eq!(node.calls(RECEIPTS), 2 + 29);
    assert_ne!(of_range(&node.endpoints(Verify::Receipts, 0), 11, 39).await.unwrap(), truth, "0 takes no sample");
    assert_eq!(node.calls(RECEIPTS), 2 + 29);
}

#[tokio::test]
async fn a_log_with_other_data_or_of_no_receipt_is_not_taken() {
    let (_chain, node) = devchain(20).await;
    let truth = of_block(&node.endpoints(Verify::None, 0), 20).await.unwrap();
    let proven = node.endpoints(Verify::Receipts, 0);
    node.lie(|call, answer| {
        if call["method"] == "eth_getLogs" {
            answer["result"][0]["data"] = json!(B256::repeat_byte(1));
        }
    });
    assert_eq!(of_block(&proven, 20).await.unwrap(), truth);
    node.lie(|call, answer| {
        if call["method"] == "eth_getLogs" {
            let mut log = answer["result"][0].clone();
            log["logIndex"] = json!("0xffff");
            answer["result"].as_array_mut().unwrap().push(log);
        }
    });
    let refused = of_block(&proven, 20).await.unwrap_err();
    assert!(matches!(&refused, RpcError::Invalid(text) if text.contains("no receipt")), "{refused:?}");
}

#[tokio::test]
async fn receipts_without_a_log_and_headers_with_another_root_are_refused() {
    let (_chain, node) = devchain(40).await;
    let proven = node.endpoints(Verify::Receipts, 0);
    let blocks = with_logs(&node, 1..=40).await;
    of_block(&proven, blocks[0]).await.unwrap();
    node.lie(omit_everywhere);
    // A contradiction in a known encoding is never forgiven.
    assert!(blocks.len() > 2 * PATIENCE);
    for number in &blocks[1..] {
        let refused = of_block(&proven, *number).await.unwrap_err();
        assert!(matches!(&refused, RpcError::Invalid(text) if text.contains("root")), "{refused:?}");
    }
    node.lie(other_root);
    let refused = of_block(&proven, 20).await.unwrap_err();
    assert!(matches!(&refused, RpcError::Invalid(text) if text.contains("hash")), "{refused:?}");
}

#[tokio::test]
async fn another_endpoint_serves_what_one_lies_about() {
    let (chain, liar) = devchain(40).await;
    let good = Node::before(chain.rpc()).await;
    let both = endpoints(&[&liar, &good], Verify::Receipts, 1);
    let blocks = with_logs(&good, 1..=40).await;
    liar.lie(omit_everywhere);
    for number in blocks {
        let truth = of_block(&good.endpoints(Verify::None, 0), number).await.unwrap();
        assert_eq!(of_block(&both, number).await.unwrap(), truth);
    }
    assert!(liar.calls(RECEIPTS) > 0);
}

/// Nobody is taken at its word while another one has the receipts: near the head and of history.
#[tokio::test]
async fn what_one_endpoint_cannot_prove_is_proven_by_the_receipts_of_another() {
    let (chain, good) = devchain(60).await;
    let blocks = with_logs(&good, 1..=60).await;
    assert!(blocks.len() > 3 * PATIENCE);
    let honest = good.endpoints(Verify::None, 0);
    let never_there: Lie = |call, answer| {
        omit_one(call, answer);
        if call["method"] == RECEIPTS {
            answer["result"] = Value::Null;
        }
    };
    let not_served: Lie = |call, answer| {
        omit_one(call, answer);
        no_receipts(call, answer);
    };
    for lie in [never_there, not_served] {
        let poor = Node::before(chain.rpc()).await;
        poor.lie(lie);
        let both = endpoints(&[&poor, &good], Verify::Receipts, 1);
        both.header(At::Latest).await.unwrap();
        for number in &blocks {
            assert_eq!(of_block(&both, *number).await.unwrap(), of_block(&honest, *number).await.unwrap(), "{number}");
        }
        assert_eq!(of_range(&both, 1, 60).await.unwrap(), of_range(&honest, 1, 60).await.unwrap());
        assert!(poor.calls("eth_getLogs") > blocks.len(), "requests stay with it");
        assert!(poor.calls(RECEIPTS) < 3 * PATIENCE, "{} times asked for what it does not have", poor.calls(RECEIPTS));
        assert!(both.endpoints().iter().any(|endpoint| endpoint.unproven.is_none()), "{:?}", both.endpoints());
    }
}

/// At the same height another endpoint may have a block of another fork: it proves nothing of the one that was told of.
#[tokio::test]
async fn receipts_of_another_fork_prove_no_block_of_which_no_logs_were_told() {
    let ((_chain, poor), (forked, other)) = (devchain(60).await, devchain(60).await);
    forked.rpc().call("devchain_reorg", json!([30])).await;
    let truth = of_range(&poor.endpoints(Verify::None, 0), 36, 59).await.unwrap();
    let theirs = with_logs(&other, 36..=59).await;
    assert!([40, 50].iter().any(|number| theirs.contains(number)));
    poor.lie(|call, answer| {
        no_receipts(call, answer);
        if call["method"] == "eth_getLogs" {
            let is_told = |log: &Value| log["blockNumber"] != "0x28" && log["blockNumber"] != "0x32";
            answer["result"].as_array_mut().unwrap().retain(is_told);
        }
    });
    let both = endpoints(&[&poor, &other], Verify::Receipts, 10);
    both.header(At::Latest).await.unwrap();
    let logs = loop {
        if let Ok(logs) = of_range(&both, 36, 59).await {
            break logs;
        }
    };
    let added: Vec<_> = logs.iter().filter(|log| !truth.contains(log)).map(|log| log.block).collect();
    assert!(added.is_empty(), "of another fork: {added:?}");
}

/// Nobody's word counts against receipts; where there are none, two endpoints are compared.
#[tokio::test]
async fn what_is_proven_of_a_range_is_not_compared_and_all_else_is() {
    let (chain, good) = devchain(40).await;
    let truth = of_range(&good.endpoints(Verify::None, 0), 1, 40).await.unwrap();
    assert!(truth.iter().any(|log| log.block.number % 10 == 0));
    let other = Node::before(chain.rpc()).await;
    let compared = |verify_sample| {
        let urls = [&good, &other].map(|node| SecretUrl::parse(&node.url).unwrap()).to_vec();
        let limits = Limits { verify: Verify::Receipts, verify_sample, audit_sample: 1, ..Limits::default() };
        Endpoints::new(CHAIN, urls, limits)
    };
    // It makes a log up, in a block that is proven.
    other.lie(|call, answer| {
        if call["method"] == "eth_getLogs" {
            let logs = answer["result"].as_array_mut().unwrap();
            let tens = ["0xa", "0x14", "0x1e", "0x28"].map(Value::from);
            let is_proven = |log: &&Value| tens.contains(&log["blockNumber"]);
            let mut log = logs.iter().find(is_proven).unwrap().clone();
            log["logIndex"] = json!("0xff");
            logs.push(log);
        }
    });
    for sample in [10, 1] {
        assert!(of_range(&compared(sample), 1, 40).await.unwrap() == truth, "one in {sample}");
    }
    assert_eq!(other.calls("eth_getLogs"), 1, "a range that is proven as a whole is not compared");
    // Nobody has receipts, and the first one leaves a log out.
    other.lie(no_receipts);
    good.lie(|call, answer| {
        omit_one(call, answer);
        no_receipts(call, answer);
    });
    let unproven = compared(1);
    let taken = loop {
        if let Ok(logs) = of_range(&unproven, 1, 40).await {
            break logs;
        }
    };
    assert!(taken == truth, "{} logs of {}", taken.len(), truth.len());
}

/// A plan that bears 40 calls a second is asked for 200 and more: each block is proven once, whatever is refused between.
#[tokio::test]
async fn a_range_is_proven_block_by_block_by_a_plan_that_bears_few_requests_at_once() {
    let chain = Devchain::start(Options { logs_per_block: 6, ..still(100) }).await;
    let truth = of_range(&Node::before(chain.rpc()).await.endpoints(Verify::None, 0), 1, 100).await.unwrap();
    let small = Node::before(chain.endpoint("small")).await;
    let limit = json!([[{ "do": { "rateLimit": { "perSecond": 40, "burst": 40, "retryAfter": 1 } } }]]);
    chain.endpoint("small").call("devchain_setFaults", limit).await;
    let proven = small.endpoints(Verify::Receipts, 1);
    assert_eq!(proven.chain_id().await.unwrap(), CHAIN);
    assert_eq!(of_range(&proven, 1, 100).await.unwrap(), truth);
    let told = chain.endpoint("small").call("devchain_faults", json!([])).await;
    assert!(told["refused"].as_u64().unwrap() > 0, "{told}");
}

/// A refusal at the first of several proofs at once leaves fewer places for requests than are in use: it is waited for all
/// the same, and only as long as it takes.
#[tokio::test]
async fn a_refusal_among_proofs_at_once_does_not_hold_a_range_up_for_ever() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let (_chain, node) = devchain(30).await;
    let truth = of_range(&node.endpoints(Verify::None, 0), 1, 30).await.unwrap();
    node.lie(|call, answer| {
        if call["method"] == RECEIPTS && ASKED.fetch_add(1, Ordering::Relaxed) == 0 {
            let error = json!({ "code": -32005, "message": "too many requests" });
            *answer = json!({ "jsonrpc": "2.0", "id": call["id"], "error": error });
        }
    });
    let proven = node.endpoints(Verify::Receipts, 1).within(Bounds { parallel: 3, ..Bounds::default() });
    let range = timeout(Duration::from_mins(2), of_range(&proven, 1, 30)).await;
    assert_eq!(range.expect("it finishes").unwrap(), truth);
    assert!(ASKED.load(Ordering::Relaxed) > 30, "one was refused");
}

/// Which blocks were meant of which no logs were told, their descendants say as well: nobody is waited for that asks for a
/// minute.
#[tokio::test]
async fn a_range_whose_teller_asks_for_time_is_proven_by_another() {
    let chain = Devchain::start(Options { logs_per_block: 6, ..still(60) }).await;
    let (waits, other) = (chain.endpoint("waits"), chain.endpoint("other"));
    // Under another host, for names are those of hosts.
    let urls = [waits.url.clone(), other.url.replace("127.0.0.1", "localhost")];
    let urls = urls.iter().map(|url| SecretUrl::parse(url).unwrap()).collect();
    let limits = Limits { verify: Verify::Receipts, verify_sample: 1, ..Limits::default() };
    let both = Endpoints::new(CHAIN, urls, limits);
    both.header(At::Latest).await.unwrap();
    assert!(!of_range(&both, 1, 20).await.unwrap().is_empty());
    let fault = json!({ "status": 429, "headers": { "retry-after": "60" }, "body": "slow down" });
    waits.call("devchain_setFaults", json!([[{ "on": [RECEIPTS], "do": { "http": fault } }]])).await;
    let nobody = LogFilter { addresses: vec![Address::repeat_byte(1)], ..any_transfer() };
    assert_eq!(both.range_logs(BlockRange { from: 21, to: 24 }, &nobody).await.unwrap().logs, []);
    let fell = async || waits.call("devchain_faults", json!([])).await["faults"][0]["fell"].as_u64().unwrap();
    let (before, asked) = (fell().await, both.endpoints()[0].asked);
    assert!(before > 0);
    assert!(!of_range(&both, 25, 60).await.unwrap().is_empty());
    assert_eq!((fell().await, both.endpoints()[0].asked), (before, asked), "it is left alone");
}

/// Whoever is asked for the parents of a block cannot name a block of its own making.
#[tokio::test]
async fn a_parent_that_its_block_s_hash_does_not_hold_names_nothing() {
    static REFUSED: AtomicUsize = AtomicUsize::new(0);
    static MISLED: AtomicUsize = AtomicUsize::new(0);
    const MADE_UP: B256 = B256::repeat_byte(0x66);
    let (chain, teller) = devchain(60).await;
    let liar = Node::before(chain.rpc()).await;
    let both = endpoints(&[&teller, &liar], Verify::Receipts, 1);
    both.header(At::Latest).await.unwrap();
    of_range(&both, 1, 20).await.unwrap();
    teller.lie(|call, answer| {
        if call["method"] == RECEIPTS && REFUSED.fetch_add(1, Ordering::Relaxed) < 3 {
            let error = json!({ "code": -32005, "message": "too many requests" });
            *answer = json!({ "jsonrpc": "2.0", "id": call["id"], "error": error });
        }
    });
    liar.lie(|call, answer| {
        if call["method"] == "eth_getBlockByHash" {
            answer["result"]["parentHash"] = json!(MADE_UP);
        }
        if call["method"] == RECEIPTS && call["params"][0] == json!(MADE_UP) {
            MISLED.fetch_add(1, Ordering::Relaxed);
        }
    });
    let nobody = LogFilter { addresses: vec![Address::repeat_byte(1)], ..any_transfer() };
    assert_eq!(both.range_logs(BlockRange { from: 21, to: 24 }, &nobody).await.unwrap().logs, []);
    assert!(REFUSED.load(Ordering::Relaxed) > 3 && liar.calls("eth_getBlockByHash") > 0);
    assert_eq!(MISLED.load(Ordering::Relaxed), 0);
}

/// A range that could not be finished is asked for again; what was proven of it is not.
#[tokio::test]
async fn what_was_proven_of_an_unfinished_range_stays_proven() {
    let (_chain, node) = devchain(100).await;
    let truth = of_range(&node.endpoints(Verify::None, 0), 1, 100).await.unwrap();
    let proven = node.endpoints(Verify::Receipts, 1);
    node.lie(|call, answer| {
        omit_one(call, answer);
        if call["method"] == RECEIPTS && u64::from_str_radix(&call["params"][0].as_str().unwrap()[2..], 16) == Ok(71) {
            let error = json!({ "code": -32000, "message": "internal error" });
            *answer = json!({ "jsonrpc": "2.0", "id": call["id"], "error": error });
        }
    });
    of_range(&proven, 1, 100).await.unwrap_err();
    assert!((71..80).contains(&node.calls(RECEIPTS)), "{}", node.calls(RECEIPTS));
    node.lie(omit_one);
    assert_eq!(of_range(&proven, 1, 100).await.unwrap(), truth);
    assert!((100..110).contains(&node.calls(RECEIPTS)), "{}", node.calls(RECEIPTS));
    assert_eq!(of_range(&proven, 1, 100).await.unwrap(), truth);
    assert!((200..210).contains(&node.calls(RECEIPTS)), "what is finished is forgotten: {}", node.calls(RECEIPTS));
}

/// Whatever keeps a node from proving anything, after a few refusals it is taken at its word, and no log is missing.
#[tokio::test]
async fn where_nothing_can_be_proven_nothing_is_delivered_less() {
    let too_large: Lie = |call, answer| {
        if call["method"] == RECEIPTS {
            let error = json!({ "code": -32000, "message": "response too large" });
            *answer = json!({ "jsonrpc": "2.0", "id": call["id"], "error": error });
        }
    };
    let never_there: Lie = |call, answer| {
        if call["method"] == RECEIPTS {
            answer["result"] = Value::Null;
        }
    };
    let foreign: Lie = |call, answer| {
        if call["method"] == RECEIPTS {
            answer["result"].as_array_mut().unwrap().iter_mut().for_each(|receipt| receipt["type"] = json!("0x7e"));
        }
    };
    for lie in [no_receipts, other_root, too_large, never_there, foreign] {
        let (_chain, node) = devchain(100).await;
        let honest = node.endpoints(Verify::None, 0);
        let truth = (of_block(&honest, 20).await.unwrap(), of_range(&honest, 1, 50).await.unwrap());
        let proven = node.endpoints(Verify::Receipts, 1);
        node.lie(lie);
        for place in ["head", "history"] {
            let mut refusals = 0;
            let taken = loop {
                let asked = if place == "head" { of_block(&proven, 20).await } else { of_range(&proven, 1, 50).await };
                match asked {
                    Ok(logs) => break logs,
                    Err(error) => {
                        assert!(!matches!(error, RpcError::TooLarge { .. }), "a smaller range would not help");
                    }
                }
                refusals += 1;
            };
            let truth = if place == "head" { &truth.0 } else { &truth.1 };
            assert_eq!((&taken, refusals), (truth, PATIENCE - 1), "{place}");
        }
        for number in 21..20 + PATIENCE as u64 {
            // One block that cannot be proven says nothing of others.
            while of_block(&proven, number).await.is_err() {}
        }
        let asked = node.calls(RECEIPTS);
        assert_eq!(of_range(&proven, 1, 50).await.unwrap(), truth.1);
        assert!(node.calls(RECEIPTS) <= asked + 1, "it is hardly asked for what it does not have");
        // From time to time it is tried again, and then all of it is back.
        *node.state.lie.lock().unwrap() = None;
        for _ in 0..5 {
            of_range(&proven, 1, 30).await.unwrap();
        }
        let asked = node.calls(RECEIPTS);
        of_block(&proven, 20).await.unwrap();
        assert_eq!(node.calls(RECEIPTS), asked + 1);
    }
}

/// The bloom that one node told of says nothing to another one, which is asked for its own.
#[tokio::test]
async fn an_empty_answer_is_held_against_the_header_also_where_another_endpoint_told_of_the_block() {
    let (chain, busy) = devchain(40).await;
    let late = Node::before(chain.rpc()).await;
    let number = *with_logs(&busy, 1..=40).await.last().unwrap();
    let both = endpoints(&[&busy, &late], Verify::Bloom, 0);
    busy.lie(|call, answer| {
        if call["method"] == "eth_getLogs" {
            let error = json!({ "code": -32005, "message": "too many requests" });
            *answer = json!({ "jsonrpc": "2.0", "id": call["id"], "error": error });
        }
    });
    late.lie(|call, answer| {
        if call["method"] == "eth_getLogs" {
            answer["result"] = json!([]);
        }
    });
    let refused = of_block(&both, number).await.unwrap_err();
    assert!(matches!(&refused, RpcError::Behind(text) if text.contains("there may be some")), "{refused:?}");
    assert_eq!(late.calls("eth_getBlockByHash"), 1);
    late.lie(|call, answer| {
        if call["method"] == "eth_getLogs" {
            answer["result"] = json!([]);
        }
        if call["method"] == "eth_getBlockByHash" {
            answer["result"] = Value::Null;
        }
    });
    let both = endpoints(&[&busy, &late], Verify::Bloom, 0);
    let refused = of_block(&both, number).await.unwrap_err();
    assert!(matches!(&refused, RpcError::Behind(text) if text.contains("nor its header")), "{refused:?}");
}

/// Headers of real blocks, of Ethereum before and after its merge and of Arbitrum, hash to their hashes: with receipts that
/// are not theirs the root is what is missed. Real blocks are looked for as in `real_blocks.rs`.
#[tokio::test]
async fn headers_of_real_blocks_hash_to_their_hashes() {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let data = std::env::var_os("CHAINTAP_REAL_DATA").map_or(beside, Into::into);
    let Ok(files) = std::fs::read_dir(data.join("blocks")) else {
        println!("no real blocks at {}: nothing was tested", data.display());
        return;
    };
    let mut whole = 0;
    for file in files {
        let block: Value = serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap();
        let header = block["header"].clone();
        if header["sha3Uncles"].is_null() {
            continue;
        }
        let served = Router::new().fallback(move |body: Bytes| {
            let header = header.clone();
            async move {
                let asked: Value = serde_json::from_slice(&body).unwrap();
                let answer = |call: &Value| {
                    let result = match call["method"].as_str().unwrap() {
                        "eth_chainId" => json!("0x7a69"),
                        "eth_getBlockByHash" => header.clone(),
                        _ => json!([]),
                    };
                    json!({ "jsonrpc": "2.0", "id": call["id"], "result": result })
                };
                asked.as_array().map_or_else(|| answer(&asked), |calls| calls.iter().map(answer).collect()).to_string()
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = SecretUrl::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let _serving =
            AbortOnDropHandle::new(tokio::spawn(async move { axum::serve(listener, served).await.unwrap() }));
        let limits = Limits { verify: Verify::Receipts, ..Limits::default() };
        let hash: B256 = serde_json::from_value(block["header"]["hash"].clone()).unwrap();
        let of = BlockRef { number: block["block_number"].as_u64().unwrap(), hash };
        let refused = Endpoints::new(CHAIN, vec![url], limits).block_logs(of, 0, &any_transfer()).await.unwrap_err();
        assert!(
            matches!(&refused, RpcError::Invalid(text) if text.contains("do not have the header's root")),
            "{of}: {refused:?}"
        );
        whole += 1;
    }
    assert!(whole >= 3, "{whole} whole headers");
}

/// Requests and bytes for a block near the head and for a final range: a proof costs one request of two calls for a block.
#[tokio::test]
async fn a_proof_costs_one_request_a_block() {
    const BLOCKS: u32 = 40;
    let chain = Devchain::start(Options { logs_per_block: 50, ..still(BLOCKS.into()) }).await;
    let node = Node::before(chain.rpc()).await;
    let mut requests = Vec::new();
    for (name, verify, sample) in [
        ("none", Verify::None, 0),
        ("bloom", Verify::Bloom, 0),
        ("receipts", Verify::Receipts, 40),
        ("receipts, each", Verify::Receipts, 1),
    ] {
        let source = node.endpoints(verify, sample);
        source.chain_id().await.unwrap();
        node.take_requests();
        let begun = Instant::now();
        for number in 1..=u64::from(BLOCKS) {
            of_block(&source, number).await.unwrap();
        }
        let (near, begun) = ((node.take_requests(), begun.elapsed() / BLOCKS), Instant::now());
        of_range(&source, 1, BLOCKS.into()).await.unwrap();
        let range = (node.take_requests(), begun.elapsed() / BLOCKS);
        println!("{name}: near the head {near:?} for {BLOCKS} blocks of 50 logs, as a range {range:?}");
        requests.push((near.0.0, range.0.0));
    }
    assert_eq!(requests, [(80, 1), (80, 1), (120, 2), (120, 41)]);
}

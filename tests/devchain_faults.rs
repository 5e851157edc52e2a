//! Every fault that the simulated node has on request, as a plain client sees it; from a file and while the node runs.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]

mod support;

use std::{
    collections::BTreeSet,
    process::Stdio,
    time::{Duration, Instant},
};

use chaintap::devchain::Options;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use support::devchain::{Devchain, Rpc, Socket, still};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};
use tokio_tungstenite::{connect_async, connect_async_with_config, tungstenite};

const PAGE: &str = include_str!("../docs/devchain.md");
/// Height of the chains here.
const HEAD: u64 = 60;

async fn chain() -> Devchain {
    Devchain::start(Options { finalized_depth: 4, safe_depth: 2, ..still(HEAD) }).await
}

/// Gives an endpoint these faults, and nothing else.
async fn set(rpc: &Rpc, faults: Value) {
    rpc.call("devchain_setFaults", json!([faults])).await;
}

/// What an endpoint tells of itself.
async fn report(rpc: &Rpc) -> Value {
    rpc.call("devchain_faults", json!([])).await
}

/// How often the first fault fell.
async fn fell(rpc: &Rpc) -> u64 {
    report(rpc).await["faults"][0]["fell"].as_u64().unwrap()
}

fn range(from: u64, to: u64) -> Value {
    json!([{ "fromBlock": format!("{from:#x}"), "toBlock": format!("{to:#x}") }])
}

async fn logs(rpc: &Rpc, from: u64, to: u64) -> Vec<Value> {
    rpc.call("eth_getLogs", range(from, to)).await.as_array().unwrap().clone()
}

async fn block(rpc: &Rpc, number: u64) -> Value {
    rpc.call("eth_getBlockByNumber", json!([format!("{number:#x}"), false])).await
}

fn call(method: &str) -> String {
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": [] }).to_string()
}

#[tokio::test]
async fn any_error_is_answered_with_its_details_and_its_status_as_often_as_was_said() {
    let chain = chain().await;
    let rpc = chain.endpoint("bad");
    let error = json!({ "code": -32005, "message": "query returned more than 5 results", "data": { "limit": 5 } });
    set(&rpc, json!([{ "on": ["eth_getLogs"], "next": 2, "do": { "error": error } }])).await;
    rpc.call("eth_blockNumber", json!([])).await;
    for _ in 0..2 {
        assert_eq!(rpc.try_call("eth_getLogs", range(1, 2)).await, Err(error.clone()));
    }
    assert!(!logs(&rpc, 1, 2).await.is_empty());
    let told = report(&rpc).await;
    assert_eq!((&told["requests"], &told["refused"], &told["longestRange"]), (&json!(4), &json!(2), &json!(2)));
    assert_eq!((&told["faults"][0]["met"], &told["faults"][0]["fell"]), (&json!(3), &json!(2)));

    set(&rpc, json!([{ "do": { "error": { "code": -32000, "message": "too heavy", "status": 503 } } }])).await;
    let response = rpc.post(call("eth_chainId")).await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.text().await.unwrap().contains("too heavy"));
    // A batch has the fault of one of its calls.
    set(&rpc, json!([{ "on": ["eth_chainId"], "do": { "error": { "code": 35, "message": "no" } } }])).await;
    let batch = format!("[{},{}]", call("eth_chainId"), call("eth_blockNumber"));
    let replies: Value = serde_json::from_str(&rpc.post(batch).await.unwrap().text().await.unwrap()).unwrap();
    assert_eq!((&replies[0]["error"]["code"], &replies[1]["result"]), (&json!(35), &json!("0x3c")));
}

#[tokio::test]
async fn any_http_answer_is_given_and_keeps_sockets_shut() {
    let chain = chain().await;
    let rpc = chain.endpoint("bad");
    for status in [402, 403, 413, 429, 503] {
        let fault = json!({ "status": status, "headers": { "retry-after": "7" }, "body": "go away" });
        set(&rpc, json!([{ "do": { "http": fault } }])).await;
        let response = rpc.post(call("eth_chainId")).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (status, &"7".parse().unwrap()));
        assert_eq!(response.text().await.unwrap(), "go away");
        let refused = connect_async(rpc.ws_url()).await.unwrap_err();
        assert!(matches!(refused, tungstenite::Error::Http(response) if response.status() == status));
    }
    assert_eq!(report(&rpc).await["refused"], 1);
    set(&rpc, json!([{ "on": ["connect"], "next": 1, "do": { "http": { "status": 503 } } }])).await;
    rpc.call("eth_chainId", json!([])).await;
    assert!(connect_async(rpc.ws_url()).await.is_err());
    Socket::connect(&rpc).await.call("eth_chainId", json!([])).await;
}

#[tokio::test]
async fn calls_beyond_the_rate_are_refused_with_the_vendors_words_and_the_wait() {
    let chain = chain().await;
    let rpc = chain.endpoint("bad");
    for (vendor, code, words) in [("quicknode", -32007, "request limit reached"), ("alchemy", 429, "compute units")] {
        let limit = json!({ "perSecond": 0.001, "burst": 3, "words": vendor, "retryAfter": 9 });
        set(&rpc, json!([{ "do": { "rateLimit": limit } }])).await;
        for _ in 0..3 {
            rpc.call("eth_chainId", json!([])).await;
        }
        let response = rpc.post(call("eth_chainId")).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (429, &"9".parse().unwrap()));
        let error: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(error["error"]["code"], code);
        assert!(error["error"]["message"].as_str().unwrap().contains(words), "{error}");
        let told = report(&rpc).await;
        assert_eq!((&told["refused"], &told["faults"][0]["fell"]), (&json!(1), &json!(1)));
    }
    let mut socket = Socket::connect(&rpc).await;
    socket.send(&json!({ "id": 1, "method": "eth_chainId" })).await;
    assert_eq!(socket.receive().await["error"]["code"], 429);
    // The bucket is filled again with time.
    set(&rpc, json!([{ "do": { "rateLimit": { "perSecond": 20, "burst": 1 } } }])).await;
    while rpc.try_call("eth_chainId", json!([])).await.is_ok() {}
    while rpc.try_call("eth_chainId", json!([])).await.is_err() {}
}

#[tokio::test]
async fn a_plan_of_a_few_blocks_refuses_longer_ranges_and_counts_the_longest() {
    let chain = chain().await;
    let rpc = chain.endpoint("bad");
    set(&rpc, json!([{ "do": { "blockLimit": { "blocks": 5 } } }])).await;
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_getLogs", "params": range(1, 6) }).to_string();
    let response = rpc.post(body.clone()).await.unwrap();
    assert_eq!(response.status(), 413);
    let refused = response.text().await.unwrap();
    assert!(refused.contains("-32615") && refused.contains("eth_getLogs is limited to a 5 range"), "{refused}");
    logs(&rpc, 1, 5).await;
    let told = report(&rpc).await;
    assert_eq!(
        (&told["refused"], &told["longestRange"], &told["faults"][0]["fell"]),
        (&json!(1), &json!(6), &json!(1))
    );

    set(&rpc, json!([{ "do": { "blockLimit": { "blocks": 10, "words": "alchemy" } } }])).await;
    let refused = rpc.try_call("eth_getLogs", range(17, 40)).await.unwrap_err();
    assert_eq!(refused["code"], -32600);
    let words = "up to a 10 block range. Based on your parameters, this block range should work: [0x11, 0x1a]";
    assert!(refused["message"].as_str().unwrap().contains(words), "{refused}");
    logs(&rpc, 0x11, 0x1a).await;
    let hash = block(&rpc, 3).await["hash"].take();
    rpc.call("eth_getLogs", json!([{ "blockHash": hash }])).await;
    assert_eq!(report(&rpc).await["refused"], 1);
}

#[tokio::test]
async fn a_node_that_is_behind_knows_of_nothing_newer_and_announces_it_late() {
    let chain = chain().await;
    let (rpc, good) = (chain.endpoint("behind"), chain.rpc());
    set(&rpc, json!([{ "do": { "lag": { "blocks": 3 } } }])).await;
    assert_eq!(rpc.call("eth_blockNumber", json!([])).await, "0x39");
    for (tag, number) in [("latest", "0x39"), ("safe", "0x37"), ("finalized", "0x35")] {
        assert_eq!(rpc.call("eth_getBlockByNumber", json!([tag, false])).await["number"], number, "{tag}");
    }
    let hash = block(&good, 58).await["hash"].take();
    assert_eq!(block(&rpc, 58).await, Value::Null);
    assert_eq!(rpc.call("eth_getBlockByHash", json!([hash, false])).await, Value::Null);
    assert_eq!(rpc.call("eth_getBlockReceipts", json!([hash])).await, Value::Null);
    assert_eq!(rpc.code("eth_getLogs", json!([{ "blockHash": hash }])).await, -32000);
    assert_eq!(rpc.code("eth_getLogs", range(58, 58)).await, -32602);
    assert_eq!(logs(&rpc, 50, 60).await, logs(&good, 50, 57).await);

    let mut socket = Socket::connect(&rpc).await;
    socket.call("eth_subscribe", json!(["newHeads"])).await;
    chain.mine(5).await;
    assert_eq!(socket.notified().await.1["number"], "0x3d");
    assert_eq!(socket.notified().await.1["number"], "0x3e");
    rpc.call("devchain_clearFaults", json!([])).await;
    assert_eq!(rpc.call("eth_blockNumber", json!([])).await, "0x41");
    chain.mine(1).await;
    for number in 63..=66 {
        assert_eq!(socket.notified().await.1["number"], format!("{number:#x}"));
    }
}

#[tokio::test]
async fn a_node_has_a_block_before_it_has_its_logs() {
    let chain = chain().await;
    let (rpc, good) = (chain.endpoint("late"), chain.rpc());
    let on = json!(["eth_getLogs", "eth_getBlockReceipts"]);
    set(&rpc, json!([{ "on": on, "do": { "logsLate": { "ms": 600_000 } } }])).await;
    let mut socket = Socket::connect(&rpc).await;
    socket.call("eth_subscribe", json!(["newHeads"])).await;
    chain.mine(2).await;
    let announced = socket.notified().await.1["hash"].take();
    let by_hash = json!([{ "blockHash": announced }]);
    assert_eq!(rpc.call("eth_getBlockByHash", json!([announced, false])).await["number"], "0x3d");
    assert_eq!(rpc.call("eth_getLogs", by_hash.clone()).await, json!([]));
    assert_eq!(rpc.call("eth_getBlockReceipts", json!([announced])).await, Value::Null);
    assert_eq!(logs(&rpc, 55, 62).await, logs(&good, 55, 60).await, "what was there before is there");
    set(&rpc, json!([{ "do": { "logsLate": { "ms": 50 } } }])).await;
    while rpc.call("eth_getLogs", by_hash.clone()).await == json!([]) {}
    assert_eq!(logs(&rpc, 61, 61).await, logs(&good, 61, 61).await);
    set(&rpc, json!([{ "do": { "logsLate": { "blocks": 2 } } }])).await;
    assert_eq!(logs(&rpc, 55, 62).await, logs(&good, 55, 60).await);
}

fn ids(logs: &[Value]) -> BTreeSet<String> {
    logs.iter().map(|log| format!("{}:{}", log["blockHash"], log["logIndex"])).collect()
}

#[tokio::test]
async fn the_same_logs_are_left_out_of_every_answer_and_of_that_of_a_node_with_the_same_seed() {
    let (chain, twin) = tokio::join!(chain(), chain());
    let (rpc, all) = (chain.endpoint("liar"), logs(&chain.rpc(), 1, HEAD).await);
    let share = json!([{ "do": { "omit": { "share": 0.1 } } }]);
    set(&rpc, share.clone()).await;
    let told = logs(&rpc, 1, HEAD).await;
    let missing = all.len() - told.len();
    assert!((all.len() / 20..all.len() / 5).contains(&missing), "{missing} of {}", all.len());
    let mut in_parts = logs(&rpc, 1, 30).await;
    in_parts.extend(logs(&rpc, 31, HEAD).await);
    assert_eq!(in_parts, told);
    for (name, is_same) in [("liar", true), ("another", false)] {
        set(&twin.endpoint(name), share.clone()).await;
        assert_eq!(logs(&twin.endpoint(name), 1, HEAD).await == told, is_same, "{name}");
    }

    set(&rpc, json!([{ "do": { "omit": { "share": 0.1, "once": true } } }])).await;
    assert_eq!(logs(&rpc, 1, HEAD).await, told);
    assert_eq!(logs(&rpc, 1, HEAD).await, all);
    assert_eq!(fell(&rpc).await, 1, "answers with nothing to leave out do not count");

    set(&rpc, json!([{ "on": ["eth_getLogs", "eth_getBlockReceipts"], "do": { "omit": {} } }])).await;
    assert_eq!(logs(&rpc, 1, HEAD).await, all[..all.len() - 1]);
    let of_receipts = async |rpc: &Rpc| {
        let receipts = rpc.call("eth_getBlockReceipts", json!(["0x5"])).await;
        let logs = receipts.as_array().unwrap().iter().flat_map(|receipt| receipt["logs"].as_array().unwrap().clone());
        ids(&logs.collect::<Vec<_>>())
    };
    let (honest, spoilt) = (of_receipts(&chain.rpc()).await, of_receipts(&rpc).await);
    assert_eq!((spoilt.len() + 1, spoilt.is_subset(&honest)), (honest.len(), true));
}

#[tokio::test]
async fn a_share_of_the_answers_is_empty_the_same_ones_under_the_same_seed() {
    let (chain, twin) = tokio::join!(chain(), chain());
    let empty = json!([{ "probability": 0.3, "do": "empty" }]);
    let mut patterns = Vec::new();
    for rpc in [chain.endpoint("a"), twin.endpoint("a"), chain.endpoint("b")] {
        set(&rpc, empty.clone()).await;
        let mut pattern = Vec::new();
        for _ in 0..60 {
            pattern.push(logs(&rpc, 7, 9).await.is_empty());
        }
        let often = pattern.iter().filter(|is_empty| **is_empty).count();
        assert!((8..=30).contains(&often), "{often} of 60");
        assert_eq!(fell(&rpc).await, often as u64);
        patterns.push(pattern);
    }
    assert_eq!(patterns[0], patterns[1]);
    assert_ne!(patterns[0], patterns[2], "endpoints fail at different times");
}

#[tokio::test]
async fn answers_are_cut_short_null_or_changed_in_one_place() {
    let chain = chain().await;
    let (rpc, good) = (chain.endpoint("bad"), chain.rpc());
    set(&rpc, json!([{ "do": { "truncate": { "to": 3 } } }, { "next": 1, "do": "null" }])).await;
    assert_eq!(logs(&rpc, 1, 9).await, logs(&good, 1, 9).await[..3]);
    assert_eq!((block(&rpc, 5).await, block(&rpc, 5).await), (Value::Null, block(&good, 5).await));
    let replace = |at: &str, with: Value| json!({ "do": { "replace": { "at": at, "with": with } } });
    set(
        &rpc,
        json!([replace("/0/data", json!("zz")), replace("/logsBloom", json!("0x")), replace("/l1Number", json!(1))]),
    )
    .await;
    let (mut changed, mut spoilt) = (logs(&good, 1, 9).await, block(&good, 5).await);
    changed[0]["data"] = json!("zz");
    (spoilt["logsBloom"], spoilt["l1Number"]) = (json!("0x"), json!(1));
    assert_eq!((logs(&rpc, 1, 9).await, block(&rpc, 5).await), (changed, spoilt));
    assert_eq!(rpc.call("eth_blockNumber", json!([])).await, "0x3c", "there is no such place");
    set(&rpc, json!([{ "do": { "chainId": { "id": 10 } } }])).await;
    assert_eq!(rpc.call("eth_chainId", json!([])).await, "0xa");
    assert_eq!(rpc.call("net_version", json!([])).await, "10");
}

#[tokio::test]
async fn a_silent_node_takes_requests_and_says_nothing() {
    let chain = chain().await;
    let rpc = chain.endpoint("mute");
    set(&rpc, json!([{ "next": 1, "do": "silence" }])).await;
    let asked = {
        let rpc = rpc.clone();
        tokio::spawn(async move { rpc.post(call("eth_chainId")).await })
    };
    while fell(&rpc).await == 0 {}
    for _ in 0..20 {
        rpc.call("eth_chainId", json!([])).await;
    }
    assert!(!asked.is_finished());

    let mut socket = Socket::connect(&rpc).await;
    socket.call("eth_subscribe", json!(["newHeads"])).await;
    set(&rpc, json!([{ "on": ["eth_subscription"], "do": "silence" }])).await;
    chain.mine(2).await;
    socket.call("eth_chainId", json!([])).await;
    while fell(&rpc).await < 2 {}
    rpc.call("devchain_clearFaults", json!([])).await;
    chain.mine(1).await;
    assert_eq!(socket.notified().await.1["number"], "0x3f", "the two before were never told");
    drop(chain);
    assert_eq!(asked.await.unwrap().unwrap().status(), 503, "the node ends although a request is open");
}

#[tokio::test]
async fn a_message_can_be_larger_than_clients_take() {
    let chain = chain().await;
    let rpc = chain.endpoint("large");
    let mut socket = Socket::connect(&rpc).await;
    socket.call("eth_subscribe", json!(["newHeads"])).await;
    let large = tungstenite::protocol::WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    let (mut patient, _) = connect_async_with_config(rpc.ws_url(), Some(large), false).await.unwrap();
    set(&rpc, json!([{ "do": { "pad": { "bytes": 17 << 20 } } }])).await;
    chain.mine(1).await;
    assert!(socket.is_closed().await, "more than 16 MiB");
    set(&rpc, json!([{ "on": ["eth_chainId"], "do": { "pad": { "bytes": 17 << 20 } } }])).await;
    futures_util::SinkExt::send(&mut patient, tungstenite::Message::text(call("eth_chainId"))).await.unwrap();
    let answer = patient.next().await.unwrap().unwrap().into_text().unwrap();
    assert!(answer.len() > 17 << 20);
    assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["result"], "0x7a69");
    assert!(rpc.post(call("eth_chainId")).await.unwrap().bytes().await.unwrap().len() > 17 << 20);
}

#[tokio::test]
async fn an_answer_can_take_its_time() {
    let chain = chain().await;
    let rpc = chain.endpoint("slow");
    for slow in [json!({ "delay": 300 }), json!({ "bytesPerSecond": 100 })] {
        set(&rpc, json!([{ "do": { "slow": slow } }])).await;
        let begun = Instant::now();
        // 42 bytes.
        assert_eq!(rpc.call("eth_chainId", json!([])).await, "0x7a69");
        assert!(begun.elapsed() >= Duration::from_millis(300), "{slow}");
        let mut socket = Socket::connect(&rpc).await;
        let begun = Instant::now();
        assert_eq!(socket.call("eth_chainId", json!([])).await, "0x7a69");
        assert!(begun.elapsed() >= Duration::from_millis(300), "{slow}");
    }
}

#[tokio::test]
async fn an_answer_can_be_no_answer() {
    let chain = chain().await;
    let rpc = chain.endpoint("bad");
    let honest = rpc.post(call("eth_chainId")).await.unwrap().text().await.unwrap();
    let half = &honest[..honest.len() / 2];
    for (shape, expected) in [
        ("nothing", ""),
        ("text", "upstream connect error or disconnect/reset before headers"),
        ("half", half),
        ("wrongId", r#"{"jsonrpc":"2.0","id":4294967295,"result":"0x7a69"}"#),
        ("hex", r#"{"jsonrpc":"2.0","id":1,"result":"0xzz"}"#),
    ] {
        set(&rpc, json!([{ "do": { "garbage": { "as": shape } } }])).await;
        assert_eq!(rpc.post(call("eth_chainId")).await.unwrap().text().await.unwrap(), expected);
    }
    set(&rpc, json!([{ "do": { "garbage": { "as": "html" } } }])).await;
    let page = rpc.post(call("eth_chainId")).await.unwrap();
    assert_eq!(page.headers()["content-type"], "text/html");
    assert!(page.text().await.unwrap().starts_with("<html>"));

    let mut socket = Socket::connect(&rpc).await;
    set(&rpc, json!([{ "on": ["eth_subscription"], "do": { "garbage": { "as": "hex" } } }])).await;
    socket.call("eth_subscribe", json!(["newHeads"])).await;
    chain.mine(1).await;
    assert!(socket.notified().await.1.to_string().contains("\"0xzz\""));
}

#[tokio::test]
async fn a_fault_falls_only_where_all_its_conditions_hold() {
    let chain = chain().await;
    let rpc = chain.endpoint("bad");
    let when = async |mut conditions: Value| {
        conditions["do"] = json!({ "error": { "code": 1, "message": "no" } });
        set(&rpc, json!([conditions])).await;
    };
    let fails = async |method: &str, params: Value| rpc.try_call(method, params).await.is_err();
    when(json!({ "every": 3, "on": ["eth_chainId"] })).await;
    for turn in 1..=6 {
        assert_eq!(fails("eth_chainId", json!([])).await, turn % 3 == 0, "{turn}");
    }
    when(json!({ "rangeOver": 4 })).await;
    assert!(!fails("eth_getLogs", range(1, 4)).await && fails("eth_getLogs", range(1, 5)).await);
    assert!(!fails("eth_blockNumber", json!([])).await);
    when(json!({ "newest": true })).await;
    let newest = block(&chain.rpc(), HEAD).await["hash"].take();
    for (method, params, is_newest) in [
        ("eth_getLogs", range(50, HEAD), true),
        ("eth_getLogs", range(50, HEAD - 1), false),
        ("eth_getLogs", json!([{ "blockHash": newest }]), true),
        ("eth_getBlockByHash", json!([newest, false]), true),
        ("eth_getBlockByNumber", json!(["latest", false]), true),
        ("eth_getBlockByNumber", json!(["finalized", false]), false),
        ("eth_getBlockReceipts", json!([newest]), true),
        ("eth_chainId", json!([]), false),
    ] {
        assert_eq!(fails(method, params.clone()).await, is_newest, "{method} {params}");
    }
    when(json!({ "heads": { "from": HEAD + 1, "to": HEAD + 2 } })).await;
    for is_within in [false, true, true, false] {
        assert_eq!(fails("eth_chainId", json!([])).await, is_within);
        chain.mine(1).await;
    }
    when(json!({ "seconds": { "from": 1 } })).await;
    assert!(!fails("eth_chainId", json!([])).await);
    while !fails("eth_chainId", json!([])).await {}
    when(json!({ "seconds": { "from": 3600 } })).await;
    assert!(!fails("eth_chainId", json!([])).await);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let chain = chain().await;
    let rpc = chain.endpoint("bad");
    set(&rpc, json!([{ "do": { "chainId": { "id": 10 } } }])).await;
    for (faults, words) in [
        (json!([{ "do": "null" }, { "do": "silence", "probabilty": 1 }]), "fault 2: unknown field `probabilty`"),
        (json!([{ "do": { "lag": { "block": 1 } } }]), "fault 1: unknown field `block`, expected `blocks`"),
        (json!([{ "on": ["devchain_mine"], "do": "silence" }]), "fault 1: `on` names devchain_mine"),
        (json!([{ "every": 0, "do": "null" }]), "fault 1: `every` is at least 1"),
        (json!(7), "invalid argument 0"),
    ] {
        let refused = rpc.try_call("devchain_setFaults", json!([faults])).await.unwrap_err();
        assert!(refused["message"].as_str().unwrap().contains(words), "{refused}");
        assert_eq!(refused["code"], -32602);
    }
    assert_eq!(rpc.call("eth_chainId", json!([])).await, "0xa");
}

#[tokio::test]
async fn each_path_has_its_own_faults_control_is_never_spoilt_and_a_cleared_node_is_clean() {
    let chain = chain().await;
    let (bad, good) = (chain.endpoint("bad"), chain.rpc());
    let everything = json!([
        { "do": { "lag": { "blocks": 3 } } },
        { "do": { "garbage": { "as": "half" } } },
        { "do": { "http": { "status": 500 } } },
        { "do": "silence" },
    ]);
    set(&bad, everything.clone()).await;
    assert_eq!(bad.post(call("eth_chainId")).await.unwrap().status(), 500);
    assert_eq!(good.call("eth_blockNumber", json!([])).await, "0x3c");
    assert_eq!(bad.call("devchain_mine", json!([1])).await, "0x3d");
    let told = report(&bad).await;
    let listed: Vec<_> = told["faults"].as_array().unwrap().iter().map(|one| one["fault"]["do"].clone()).collect();
    assert_eq!(
        json!(listed),
        json!(everything.as_array().unwrap().iter().map(|fault| &fault["do"]).collect::<Vec<_>>())
    );
    assert_eq!(bad.call("devchain_clearFaults", json!([])).await, told);
    assert_eq!(report(&bad).await, json!({ "requests": 0, "refused": 0, "longestRange": 0, "faults": [] }));
    assert_eq!(logs(&bad, 1, 61).await, logs(&good, 1, 61).await);
    assert_eq!(block(&bad, 61).await, block(&good, 61).await);
    assert_eq!(report(&bad).await["longestRange"], 61);
}

#[tokio::test]
async fn the_command_takes_faults_from_a_file_and_refuses_a_wrong_one_by_line() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("faults.json");
    let command = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chaintap"));
        command.args(["devchain", "--port", "0", "--no-mining", "--start-height", "5", "--faults"]).arg(&file);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    };
    std::fs::write(&file, "{\n  \"/b\": [{ \"do\": { \"chainId\": { \"id\": 10 } } }],\n  \"/c\": []\n}\n").unwrap();
    let mut serving = command().spawn().unwrap();
    let line = BufReader::new(serving.stdout.take().unwrap()).lines().next_line().await.unwrap().unwrap();
    let url = line.split([' ', ',']).find(|word| word.starts_with("http://")).unwrap();
    for (path, id) in [("", "0x7a69"), ("/b", "0xa"), ("/c", "0x7a69")] {
        assert_eq!(Rpc::new(format!("{url}{path}")).call("eth_chainId", json!([])).await, id, "{path}");
    }
    for (text, words) in [
        ("[\n  { \"do\": \"silense\" }\n]", "faults.json: unknown variant `silense`, expected one of `error`"),
        ("[\n  { \"do\": \"silense\" }\n]", "at line 2"),
        ("[{ \"every\": 0, \"do\": \"null\" }]", "faults.json: /: fault 1: `every` is at least 1"),
    ] {
        std::fs::write(&file, text).unwrap();
        let refused = command().output().await.unwrap();
        let complaint = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(65), "{complaint}");
        assert!(complaint.contains(words), "{complaint}");
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(command().output().await.unwrap().status.code(), Some(65));
}

#[tokio::test]
async fn the_page_names_every_kind_of_fault_and_its_script_is_one() {
    let chain = chain().await;
    let (_, script) = PAGE.split_once("```json\n").unwrap();
    let script: Value = serde_json::from_str(script.split_once("```").unwrap().0).unwrap();
    for (path, faults) in script.as_object().unwrap() {
        set(&chain.endpoint(&path[1..]), faults.clone()).await;
    }
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let kinds: Vec<Value> = rows.filter_map(|cell| serde_json::from_str(&cell.replace("{…}", "{}")).ok()).collect();
    set(&chain.rpc(), json!(kinds.iter().map(|kind| json!({ "do": kind })).collect::<Vec<_>>())).await;
    let unknown = chain.rpc().try_call("devchain_setFaults", json!([[{ "do": "?" }]])).await.unwrap_err();
    let (_, known) = unknown["message"].as_str().unwrap().split_once("expected one of ").unwrap();
    let known: BTreeSet<String> = known.split(", ").map(|name| name.replace('`', "")).collect();
    let name = |kind: &Value| match kind {
        Value::String(name) => name.clone(),
        kind => kind.as_object().unwrap().keys().next().unwrap().clone(),
    };
    assert_eq!(kinds.iter().map(name).collect::<BTreeSet<_>>(), known);
}

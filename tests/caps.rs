//! What each endpoint bears is learned from what it refuses, kept to, and kept over a restart.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]

mod support;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use alloy::primitives::{Address, keccak256};
use axum::{Router, body::Bytes, routing::post};
use chaintap::{
    config::{Limits, SecretUrl},
    devchain::Options,
    domain::BlockRange,
    rpc::{At, Bounds, ChainSource as _, Endpoints, LogFilter, RpcError},
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use support::{
    chaintap::Settings,
    deliveries::assert_delivered,
    devchain::{Devchain, Rpc, still},
};
use tokio::net::TcpListener;

/// Limit for what takes seconds on an idle machine.
const SOON: Duration = Duration::from_mins(2);
/// Where the chains here begin to be read, and how far they reach at first.
const FIRST: u64 = 101;
const HEAD: u64 = 1_116;

async fn chain() -> Devchain {
    Devchain::start(Options { logs_per_block: 2, finalized_depth: 16, safe_depth: 8, ..still(HEAD) }).await
}

/// Gives an endpoint this fault, and counts anew.
async fn set(rpc: &Rpc, fault: &Value) {
    rpc.call("devchain_setFaults", json!([[fault]])).await;
}

async fn report(rpc: &Rpc) -> Value {
    rpc.call("devchain_faults", json!([])).await
}

async fn refused(rpc: &Rpc) -> u64 {
    report(rpc).await["refused"].as_u64().unwrap()
}

/// What a listener learns of an endpoint with this fault while it catches up 1,000 blocks, and what it then does with 200
/// more after a restart.
struct Lesson {
    refused: u64,
    refused_again: u64,
    longest_again: u64,
    /// What `/health` shows of the endpoint before the restart and after it.
    shown: [Value; 2],
    status: Value,
}

async fn catches_up(endpoint: &str, fault: Value) -> Lesson {
    let chain = chain().await;
    let rpc = chain.endpoint(endpoint);
    set(&rpc, &fault).await;
    let settings = Settings::default().set("CHAIN_ID", 31_337).set("WEB3_PROVIDER", &rpc.url).set("START_BLOCK", FIRST);
    let mut messages = Vec::new();
    let mut shown = [Value::Null, Value::Null];
    let (mut counts, mut longest) = ([0, 0], 0);
    let mut status = Value::Null;
    for run in 0..2 {
        let listener = settings.start();
        listener.wait_watermark(chain.head().await, SOON).await;
        shown[run] = listener.health().await["providers"][0].clone();
        let (code, told, log) = listener.stop().await;
        assert_eq!(code, 0, "{log}");
        messages.extend(told);
        counts[run] = refused(&rpc).await;
        longest = report(&rpc).await["longestRange"].as_u64().unwrap();
        let (code, out, log) = settings.output(&["status", "--json"]).await;
        assert_eq!(code, 0, "{log}");
        status = serde_json::from_str(&out).unwrap();
        set(&rpc, &fault).await;
        chain.mine(200 * (1 - run as u64)).await;
    }
    assert_delivered(&messages, &chain.transfers(FIRST, HEAD + 200).await, 0);
    let [refused, refused_again] = counts;
    Lesson { refused, refused_again, longest_again: longest, shown, status }
}

#[tokio::test]
async fn plans_of_ten_and_of_five_blocks_are_learned_within_five_requests_and_never_offended_again() {
    let plan = |blocks, words| json!({ "do": { "blockLimit": { "blocks": blocks, "words": words } } });
    let untold = |blocks| {
        let error = json!({ "code": -32005, "message": "block range too large" });
        json!({ "rangeOver": blocks, "do": { "error": error } })
    };
    let lessons = tokio::join!(
        catches_up("ten", plan(10, "alchemy")),
        catches_up("five", plan(5, "quicknode")),
        catches_up("untold", untold(10)),
        catches_up("untold", untold(5)),
    );
    for (lesson, blocks) in [(lessons.0, 10), (lessons.1, 5), (lessons.2, 10), (lessons.3, 5)] {
        assert!((1..=5).contains(&lesson.refused), "{blocks}: {} refused", lesson.refused);
        assert_eq!((lesson.refused_again, lesson.longest_again), (0, blocks), "after a restart");
        for shown in &lesson.shown {
            assert_eq!(shown["blocksPerRequest"], blocks, "{shown}");
        }
        let kept = &lesson.status["endpoints"][0];
        assert_eq!((&kept["name"], &kept["blocksPerRequest"]), (&lesson.shown[0]["name"], &json!(blocks)));
    }
}

#[tokio::test]
async fn a_refusal_that_nobody_understands_is_answered_with_less_and_shown() {
    let error = json!({ "code": -32099, "message": "the shire is closed" });
    let lesson = catches_up("odd", json!({ "rangeOver": 10, "do": { "error": error } })).await;
    assert!(lesson.refused > 0);
    let texts = lesson.shown[0]["unknownMessages"].to_string();
    assert!(texts.contains("the shire is closed"), "{texts}");
}

fn endpoints(urls: &[&str]) -> Endpoints {
    let urls = urls.iter().map(|url| SecretUrl::parse(url).unwrap()).collect();
    Endpoints::new(31_337, urls, Limits { rpc_timeout: Duration::from_secs(30), ..Limits::default() })
}

#[tokio::test]
async fn an_endpoint_is_left_alone_for_as_long_as_it_said_even_over_a_restart_and_another_is_asked() {
    let chain = chain().await;
    let waits = chain.endpoint("waits");
    let fault = json!({ "status": 429, "headers": { "retry-after": "60" }, "body": "slow down" });
    set(&waits, &json!({ "on": ["eth_getBlockByNumber"], "do": { "http": fault } })).await;
    let alone = endpoints(&[&waits.url]);
    let RpcError::Throttled { retry_after, .. } = alone.header(At::Latest).await.unwrap_err() else { panic!() };
    assert!(is_about(retry_after, 60), "{retry_after:?}");
    let requests = report(&waits).await["requests"].clone();
    let restarted = endpoints(&[&waits.url]);
    restarted.resume(&alone.learned());
    for known in [&alone, &restarted] {
        for _ in 0..3 {
            assert!(matches!(known.header(At::Latest).await, Err(RpcError::Throttled { .. })));
        }
        let witness = known.witnesses(7).await.remove(0);
        assert!(matches!(witness.answer, Err(RpcError::Throttled { .. })), "{witness:?}");
        assert!(known.endpoints()[0].allowance.waits_until.is_some());
    }
    assert_eq!(report(&waits).await["requests"], requests, "nothing more was sent");

    // Under another host, for names are those of hosts.
    let both = endpoints(&[&waits.url, &format!("http://localhost:{}/other", chain.address.port())]);
    both.resume(&alone.learned());
    assert_eq!(both.header(At::Latest).await.unwrap().unwrap().number, HEAD);
    assert_eq!(report(&waits).await["requests"], requests, "another one was asked");
}

/// Whether somebody may be asked again after so many seconds, of which a moment is over.
fn is_about(wait: Option<Duration>, seconds: u64) -> bool {
    let all = Duration::from_secs(seconds);
    wait.is_some_and(|wait| wait <= all && wait + Duration::from_secs(1) > all)
}

#[tokio::test]
async fn how_long_one_endpoint_wants_to_be_left_alone_says_nothing_of_the_others() {
    let chain = chain().await;
    let waits = chain.endpoint("waits");
    let fault = |status: u16, headers: Value| json!({ "on": ["eth_getBlockByNumber"], "do": { "http": { "status": status, "headers": headers } } });
    set(&waits, &fault(429, json!({ "retry-after": "60" }))).await;
    for (name, answer, expected) in
        [("fails", fault(500, json!({})), None), ("soon", fault(429, json!({ "retry-after": "7" })), Some(7))]
    {
        // Under another host, for names are those of hosts.
        let other = chain.endpoint(name);
        set(&other, &answer).await;
        let known = endpoints(&[&waits.url, &format!("http://localhost:{}/{name}", chain.address.port())]);
        let error = known.header(At::Latest).await.unwrap_err();
        let RpcError::Throttled { retry_after, .. } = error else { panic!("{error}") };
        assert!(
            expected.map_or(retry_after.is_none(), |seconds| is_about(retry_after, seconds)),
            "{name}: {retry_after:?}"
        );
        assert_ne!(report(&other).await["requests"], json!(0), "{name} was asked");
    }
}

#[tokio::test]
async fn who_throttles_is_asked_for_less_at_once_and_its_successor_is_not() {
    let chain = chain().await;
    let busy = chain.endpoint("busy");
    let throttled = json!({ "code": -32005, "message": "too many requests" });
    set(&busy, &json!({ "on": ["eth_getLogs"], "do": { "error": throttled } })).await;
    // Under another host, for names are those of hosts.
    let good = format!("http://localhost:{}", chain.address.port());
    let both = || endpoints(&[&busy.url, &good]).within(Bounds { parallel: 8, ..Bounds::default() });
    let known = both();
    assert_eq!(known.header(At::Latest).await.unwrap().unwrap().number, HEAD);
    let filter = LogFilter { addresses: vec![], topics: vec![keccak256("Transfer(address,address,uint256)")] };
    let range = |from: u64| BlockRange { from, to: from + 9 };
    let answers = join_all((1..=60).map(|nth| known.range_logs(range(10 * nth), &filter))).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let parallel = |known: &Endpoints| known.endpoints().iter().map(|one| one.allowance.parallel).collect::<Vec<_>>();
    let learned = parallel(&known);
    assert!(learned[0] < 8 && learned[1] > 8, "{learned:?}");
    let restarted = both();
    restarted.resume(&known.learned());
    assert_eq!(parallel(&restarted), learned);
}

#[tokio::test]
async fn what_is_asked_near_the_head_does_not_wait_for_history() {
    let chain = chain().await;
    let slow = chain.endpoint("slow");
    set(&slow, &json!({ "rangeOver": 1, "do": "silence" })).await;
    let known = endpoints(&[&slow.url]).within(Bounds { parallel: 1, ..Bounds::default() });
    let head = known.header(At::Latest).await.unwrap().unwrap();
    let filter = LogFilter { addresses: vec![], topics: vec![keccak256("Transfer(address,address,uint256)")] };
    let history = (0..3).map(|_| known.range_logs(BlockRange { from: 1, to: 50 }, &filter));
    let near_the_head = async {
        assert_eq!(known.header(At::Latest).await.unwrap().unwrap(), head);
        known.block_logs(head.block(), head.timestamp, &filter).await.unwrap()
    };
    tokio::select! {
        biased;
        answers = join_all(history) => panic!("{answers:?}"),
        logs = near_the_head => assert!(logs.iter().all(|log| log.block == head.block())),
    }
}

/// Lists of addresses that a node was asked for.
#[derive(Default)]
struct Lists {
    longest: usize,
    refused: usize,
}

/// A node that takes no more than so many addresses a request, and passes everything else on to a good one.
async fn strict(good: Rpc, most: usize) -> (String, Arc<Mutex<Lists>>) {
    let lists = Arc::new(Mutex::new(Lists::default()));
    let seen = Arc::clone(&lists);
    let answer = move |body: Bytes| {
        let (good, seen) = (good.clone(), Arc::clone(&seen));
        async move {
            let request: Value = serde_json::from_slice(&body).unwrap();
            let mut reply = good.reply(&request).await;
            let calls = request.as_array().cloned().unwrap_or_else(|| vec![request]);
            for call in calls {
                let named = call["params"][0]["address"].as_array().map_or(0, Vec::len);
                let mut seen = seen.lock().unwrap();
                if named <= most {
                    seen.longest = seen.longest.max(named);
                    continue;
                }
                seen.refused += 1;
                let error = json!({ "code": -32602, "message": "exceed max addresses or topics per search position" });
                let error = json!({ "jsonrpc": "2.0", "id": call["id"], "error": error });
                match &mut reply {
                    Value::Array(all) => *all.iter_mut().find(|one| one["id"] == call["id"]).unwrap() = error,
                    one => *one = error,
                }
            }
            reply.to_string()
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(post(answer))).await });
    (url, lists)
}

#[tokio::test]
async fn addresses_are_asked_for_in_lists_that_the_endpoint_takes_and_nothing_is_lost_or_out_of_order() {
    let chain = chain().await;
    let (url, lists) = strict(chain.rpc(), 3).await;
    let (good, strict) = (endpoints(&[&chain.rpc().url]), endpoints(&[&url]));
    let any = LogFilter { addresses: vec![], topics: vec![keccak256("Transfer(address,address,uint256)")] };
    let range = BlockRange { from: 1, to: 60 };
    let everything = good.range_logs(range, &any).await.unwrap();
    let emitting: BTreeSet<Address> = everything.logs.iter().map(|log| log.address).collect();
    assert!(emitting.len() > 3, "{emitting:?}");
    let silent = (1..=40).map(Address::repeat_byte);
    let filter = LogFilter { addresses: emitting.into_iter().chain(silent).collect(), ..any };

    let split = strict.range_logs(range, &filter).await.unwrap();
    assert_eq!(split.logs, everything.logs);
    assert_eq!((split.first, split.last), (everything.first, everything.last));
    let refused = lists.lock().unwrap().refused;
    assert!((1..=5).contains(&refused), "halved each time: {refused}");
    assert_eq!(strict.endpoints()[0].allowance.addresses, Some(lists.lock().unwrap().longest));
    assert_eq!(strict.endpoints()[0].allowance.blocks, 100, "blocks have nothing to do with it");

    for number in [7, 8] {
        let block = good.header(At::Number(number)).await.unwrap().unwrap();
        let logs = strict.block_logs(block.block(), block.timestamp, &filter).await.unwrap();
        let expected: Vec<_> = everything.logs.iter().filter(|log| log.block.number == number).cloned().collect();
        assert_eq!(logs, expected);
    }
    assert_eq!(lists.lock().unwrap().refused, refused, "never again");
}

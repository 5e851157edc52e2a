//! `chaintap providers check`: good nodes of two makes pass, and what is wrong with each of the others is found and named.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]

mod support;

use std::time::{Duration, SystemTime};

use alloy::primitives::{Address, U256};
use chaintap::devchain::Options;
use serde_json::{Value, json};
use support::{
    anvil::Anvil,
    chaintap::Settings,
    devchain::{Devchain, still},
};

/// A chain that mines a block a second.
async fn mining() -> Devchain {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let options =
        Options { genesis_time: Some(now), logs_per_block: 10, safe_depth: 2, finalized_depth: 4, ..still(300) };
    Devchain::start(Options { mining: true, block_time: Duration::from_secs(1), ..options }).await
}

fn settings(providers: &[String]) -> Settings {
    Settings::default()
        .set("CHAIN_ID", 31_337)
        .set("WEB3_PROVIDER", providers.join(","))
        .set("RPC_TIMEOUT", "8s")
        .set("LOG_LEVEL", "error")
}

/// The exit code, and what is told of each endpoint.
async fn check(settings: &Settings) -> (i32, Vec<Value>) {
    let (code, out, log) = settings.output(&["providers", "check", "--json", "--seconds", "3"]).await;
    assert!(!out.contains("secret-key") && !log.contains("secret-key"), "{out}{log}");
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{log}"));
    assert_eq!(report["good"] == true, code == 0);
    (code, report["endpoints"].as_array().unwrap().clone())
}

/// An endpoint with a fault, over a socket or over HTTP alone.
async fn faulty(chain: &Devchain, name: &str, faults: Value) -> String {
    let rpc = chain.endpoint(&format!("secret-key-{name}"));
    rpc.call("devchain_setFaults", json!([faults])).await;
    if name.starts_with("ws") { rpc.ws_url() } else { rpc.url }
}

fn is_clean(endpoint: &Value) -> bool {
    endpoint["unusable"].is_null() && endpoint["suspicions"] == json!([])
}

/// Whether this is said against an endpoint.
fn says(endpoint: &Value, words: &str) -> bool {
    format!("{}{}", endpoint["unusable"], endpoint["suspicions"]).contains(words)
}

#[tokio::test]
async fn good_nodes_of_two_makes_pass_and_show_what_they_can() {
    let chain = mining().await;
    let (code, found) = check(&settings(&[chain.ws_url(), chain.endpoint("other").url])).await;
    assert_eq!(code, 0, "{found:?}");
    for (endpoint, name) in found.iter().zip(["127.0.0.1", "127.0.0.1#2"]) {
        assert_eq!((&endpoint["endpoint"], &endpoint["chainId"]), (&json!(name), &json!(31_337)));
        assert_eq!((&endpoint["range"]["blocks"], &endpoint["range"]["limit"]), (&json!(100), &Value::Null));
        assert!(endpoint["range"]["logs"].as_u64().unwrap() > 100);
        assert_eq!((&endpoint["oldestHeader"], &endpoint["oldestLogs"]), (&json!(1), &json!(1)));
        for what in ["logsByHash", "receipts", "receiptsProve", "bloomsHold", "logIndicesAscend"] {
            assert_eq!(endpoint[what], true, "{what}");
        }
        assert!(endpoint["safe"].as_u64() > endpoint["finalized"].as_u64());
        assert!(endpoint["requests"].as_u64().unwrap() <= 30, "{}", endpoint["requests"]);
    }
    assert!(found[0]["headsAnnounced"].as_u64().unwrap() >= 1);
    assert_eq!(found[1]["headsAnnounced"], Value::Null);

    let anvil = Anvil::start(31_337, &["--no-mining"]).await;
    let token = anvil.deploy_token().await;
    for _ in 0..4 {
        anvil.transfer(token, Address::repeat_byte(1), U256::from(5)).await;
        anvil.burst(token, Address::repeat_byte(2), 3).await;
        anvil.mine(1).await;
    }
    let settings = settings(&[anvil.rpc.ws_url()]);
    let (code, found) = check(&settings).await;
    assert_eq!(
        (code, &found[0]["receiptsProve"], &found[0]["bloomsHold"]),
        (0, &json!(true), &json!(true)),
        "{found:?}"
    );
    let (code, out, log) = settings.output(&["providers", "check", "--seconds", "1"]).await;
    assert_eq!((code, log.as_str()), (0, ""), "{out}");
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    for line in [&["verdict", "good"][..], &["receipts", "yes"], &["heads", "were", "counted", "for", "1", "s"]] {
        assert!(lines.iter().any(|words| words == line), "{line:?}\n{out}");
    }
}

#[tokio::test]
async fn what_an_endpoint_cannot_do_is_told_and_not_held_against_it() {
    let chain = mining().await;
    let plan = |blocks: u64, words: &str| json!([{ "do": { "blockLimit": { "blocks": blocks, "words": words } } }]);
    let without = |method: &str| json!([{ "on": [method], "do": { "error": { "code": -32601, "message": "no" } } }]);
    let no_bloom = json!([{ "do": { "replace": { "at": "/logsBloom", "with": format!("0x{}", "0".repeat(512)) } } }]);
    let slow = json!([{ "do": { "rateLimit": { "perSecond": 3, "burst": 4, "retryAfter": 2 } } }]);
    // An answer that is more than is read ends its socket, and that is all that there is.
    let by_socket_alone = json!([
        { "on": ["eth_chainId"], "do": { "http": { "status": 404 } } },
        { "on": ["eth_getLogs"], "rangeOver": 10, "do": { "pad": { "bytes": 5 << 20 } } },
    ]);
    let providers = [
        faulty(&chain, "ten", plan(10, "alchemy")).await,
        faulty(&chain, "five", plan(5, "quicknode")).await,
        faulty(&chain, "receipts", without("eth_getBlockReceipts")).await,
        faulty(&chain, "bloom", no_bloom).await,
        faulty(&chain, "slow", slow).await,
        faulty(&chain, "ws-alone", by_socket_alone).await,
    ];
    let (code, found) = check(&settings(&providers).set("RPC_MAX_BYTES", "4MiB")).await;
    assert!(code == 0 && found.iter().all(is_clean), "{found:#?}");
    let alone = &found[5]["range"];
    assert!(alone["blocks"] == 10 && alone["limit"].as_str().unwrap().contains("ended"), "{alone}");
    for (endpoint, blocks) in [(&found[0], 10), (&found[1], 5)] {
        assert_eq!(endpoint["range"]["blocks"], blocks);
        assert!(endpoint["range"]["limit"].as_str().unwrap().contains(&format!("a {blocks} ")), "{endpoint}");
        assert!(endpoint["requests"].as_u64().unwrap() <= 40, "{}", endpoint["requests"]);
    }
    assert_eq!((&found[2]["receipts"], &found[3]["bloomsHold"]), (&json!(false), &json!(false)));
    assert!(found[4]["throttled"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn each_fault_of_an_endpoint_is_found_and_named() {
    let chain = mining().await;
    let replace =
        |at: &str, with: &str| json!([{ "on": ["eth_getLogs"], "do": { "replace": { "at": at, "with": with } } }]);
    let cases = [
        ("good", json!([]), ""),
        ("chain", json!([{ "do": { "chainId": { "id": 10 } } }]), "is on chain 10, but CHAIN_ID is 31337"),
        ("silent", json!([{ "do": "silence" }]), "request timed out"),
        ("shut", json!([{ "do": { "http": { "status": 403, "body": "no" } } }]), "HTTP 403"),
        ("garbage", json!([{ "do": { "garbage": { "as": "html" } } }]), "invalid JSON"),
        ("behind", json!([{ "do": { "lag": { "blocks": 8 } } }]), "behind another endpoint"),
        ("omits", json!([{ "on": ["eth_getLogs"], "do": { "omit": { "share": 0.9 } } }]), "bloom tells of more"),
        ("repeats", replace("/1/logIndex", "0x0"), "repeat or do not ascend"),
        ("ws-mute", json!([{ "on": ["eth_subscription"], "do": "silence" }]), "announced no head although"),
        (
            "ws-large",
            json!([{ "do": { "pad": { "bytes": 17 << 20 } } }]),
            "the WebSocket ended while it was listened to",
        ),
    ];
    let mut providers = Vec::new();
    for (name, faults, _) in &cases {
        providers.push(faulty(&chain, name, faults.clone()).await);
    }
    let (code, found) = check(&settings(&providers)).await;
    assert_eq!(code, 1);
    for (endpoint, (name, _, words)) in found.iter().zip(&cases) {
        assert_eq!(is_clean(endpoint), words.is_empty(), "{name}: {endpoint:#}");
        assert!(words.is_empty() || says(endpoint, words), "{name}: {endpoint:#}");
    }
    let unusable: Vec<_> = (0..cases.len()).filter(|place| !found[*place]["unusable"].is_null()).collect();
    assert_eq!(unusable, [1, 2, 3, 4]);
    // A block may come while they are asked.
    assert!((7..=9).contains(&found[5]["lag"].as_u64().unwrap()), "{}", found[5]["lag"]);
}

#[tokio::test]
async fn one_log_that_is_left_out_and_logs_that_come_late_are_noticed() {
    let chain = Devchain::start(still(100)).await;
    let omits = json!([{ "on": ["eth_getLogs"], "do": { "omit": {} } }]);
    let late = json!([{ "do": { "logsLate": { "blocks": 1 } } }]);
    let receipts = json!([{ "on": ["eth_getBlockReceipts"], "do": { "omit": {} } }]);
    let (code, found) = check(&settings(&[
        faulty(&chain, "omits", omits).await,
        faulty(&chain, "late", late).await,
        faulty(&chain, "receipts", receipts).await,
    ]))
    .await;
    assert_eq!(code, 1);
    assert!(says(&found[0], "eth_getLogs leaves out 1 logs of block 100 that its receipts have"), "{:#}", found[0]);
    assert!(says(&found[1], "block 100 has 0 logs, and its header's bloom tells of more"), "{:#}", found[1]);
    assert!(says(&found[2], "receipts of block 100: "), "{:#}", found[2]);
    assert_eq!((&found[0]["receiptsProve"], &found[2]["receiptsProve"]), (&json!(true), &json!(false)));
}

#[tokio::test]
async fn endpoints_on_two_forks_and_none_at_all() {
    let (one, other) = tokio::join!(Devchain::start(still(100)), Devchain::start(Options { seed: 2, ..still(100) }),);
    let settings = settings(&[one.rpc().url, other.rpc().url, one.endpoint("again").url]);
    let (code, out, log) = settings.output(&["providers", "check"]).await;
    assert_eq!((code, log.contains("suspicious: 1 of 3")), (1, true), "{log}");
    assert!(out.contains("127.0.0.1#2: block 100 is another one at other endpoints"), "{out}");
    let (code, _, log) = settings.unset("WEB3_PROVIDER").output(&["providers", "check"]).await;
    assert_eq!((code, log.contains("WEB3_PROVIDER is not set")), (78, true), "{log}");
}

#[tokio::test]
async fn what_was_saved_is_never_offended_again() {
    let chain = Devchain::start(still(600)).await;
    let plan = |words: &str| json!([{ "do": { "blockLimit": { "blocks": 5, "words": words } } }]);
    let endpoints = [chain.endpoint("secret-key-five"), chain.endpoint("secret-key-other")];
    let settings = settings(&[endpoints[0].ws_url(), endpoints[1].url.clone()]).set("START_BLOCK", 101);
    for (endpoint, words) in endpoints.iter().zip(["alchemy", "quicknode"]) {
        endpoint.call("devchain_setFaults", json!([plan(words)])).await;
    }
    let (code, out, log) = settings.output(&["providers", "check", "--seconds", "1", "--save"]).await;
    assert_eq!(code, 0, "{out}{log}");
    for name in ["127.0.0.1", "127.0.0.1#2"] {
        let words = format!("saved for the next start of the listener: {name} takes 5 blocks a request\n");
        assert!(out.contains(&words), "{out}");
    }
    // The same again, which begins to count anew.
    for (endpoint, words) in endpoints.iter().zip(["alchemy", "quicknode"]) {
        endpoint.call("devchain_setFaults", json!([plan(words)])).await;
    }
    let listener = settings.start();
    listener.wait_watermark(101, Duration::from_mins(1)).await;
    let (code, _, log) = settings.output(&["providers", "check", "--save"]).await;
    assert_eq!((code, log.contains("in use by another process")), (75, true), "{log}");
    listener.wait_watermark(600, Duration::from_mins(1)).await;
    let (code, _, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    for endpoint in endpoints {
        let told = endpoint.call("devchain_faults", json!([])).await;
        assert_eq!((&told["refused"], told["longestRange"].as_u64() <= Some(5)), (&json!(0), true), "{told}");
    }
    let (code, out, _) = settings.output(&["providers", "check", "--seconds", "1", "--json", "--save"]).await;
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report["saved"]), (0, &json!({ "127.0.0.1": 5, "127.0.0.1#2": 5 })));
}

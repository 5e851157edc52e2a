//! What events are filtered with is one thing for all replicas: tokens that join or leave while blocks pass, deployments
//! that listen to other contracts, and a provider that leaves out what a second one has.
#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing, reason = "what fails here fails the test")]

mod support;

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use alloy::primitives::Address;
use chaintap::{
    devchain::{Options, tokens},
    domain::Token,
};
use serde_json::{Value, json};
use support::{
    chaintap::{Listener, Settings},
    deliveries::transfers,
    devchain::{Devchain, still},
    faulty_node::{Fault, FaultyNode},
    process::eventually,
    redis::RedisServer,
};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_mins(1);
/// The development chain's Redis database.
const DB: u8 = 15;
/// Blocks below the head that count as final there.
const FINAL: u64 = 64;

/// A token list in a file that several listeners read.
struct TokenFile {
    path: PathBuf,
    listed: Vec<Token>,
    #[expect(dead_code, reason = "deletes the file when it is dropped")]
    dir: TempDir,
}

impl TokenFile {
    /// Knows the first tokens of the chain; lists none.
    fn of(options: &Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.json");
        Self { path, listed: tokens(options.seed, options.tokens), dir }
    }

    fn address(&self, index: usize) -> Address {
        self.listed[index].address
    }

    /// Lists these tokens, each with its first block where it has one. Never half a file: it is moved into place.
    fn list(&self, chosen: &[(usize, Option<u64>)]) {
        let row = |(index, from): &(usize, Option<u64>)| {
            let token = &self.listed[*index];
            let mut row = json!({
                "chainId": 31_337, "address": token.address, "symbol": token.symbol, "name": token.name,
                "decimals": token.decimals,
            });
            if let Some(from) = from {
                row["fromBlock"] = json!(from);
            }
            row
        };
        let rows: Vec<Value> = chosen.iter().map(row).collect();
        let draft = self.path.with_extension("draft");
        fs::write(&draft, json!(rows).to_string()).unwrap();
        fs::rename(draft, &self.path).unwrap();
    }
}

/// A replica on this chain, with its state in this Redis and its tokens from this file.
fn replica(chain: &Devchain, redis: &RedisServer, tokens: &TokenFile) -> Settings {
    Settings::default()
        .set("CHAIN_ID", 31_337)
        .set("WEB3_PROVIDER", chain.ws_url())
        .set("REDIS_URL", redis.url(DB))
        .set("TOKENS_FILE", tokens.path.display())
        .set("TOKEN_REFRESH", "5s")
}

/// The ids of all transfers and retractions that these listeners sent.
fn sent<'a>(listeners: impl IntoIterator<Item = &'a Listener>, event_type: &str) -> BTreeSet<String> {
    let messages = listeners.into_iter().flat_map(Listener::messages);
    let ids = messages.filter(|message| message["eventType"] == event_type);
    ids.map(|message| message["id"].as_str().unwrap().to_owned()).collect()
}

/// Waits until everything expected was sent.
async fn wait_sent(listeners: &[Listener], event_type: &str, expected: &BTreeSet<String>) {
    let all = timeout(SOON, async {
        while !sent(listeners, event_type).is_superset(expected) {
            sleep(Duration::from_millis(100)).await;
        }
    });
    if all.await.is_err() {
        let lost = expected.difference(&sent(listeners, event_type)).count();
        let logs: Vec<String> = listeners.iter().map(Listener::log).collect();
        panic!("{lost} of {} {event_type} are missing\n{}", expected.len(), logs.join("\n=====\n"));
    }
}

/// F53, N21, N25.
#[tokio::test]
async fn f53_a_token_that_is_listed_while_blocks_pass_is_delivered_from_then_on_by_every_replica() {
    let options = Options { logs_per_block: 16, tokens: 3, ..still(200) };
    let (list, redis) = (TokenFile::of(&options), RedisServer::start().await);
    let chain = Devchain::start(options).await;
    list.list(&[(0, None)]);
    let settings = replica(&chain, &redis, &list).set("START_BLOCK", 201);
    // Their readings of the list are half a period apart.
    let first = settings.start();
    first.wait_ready(true, SOON).await;
    sleep(Duration::from_millis(2_500)).await;
    let replicas = [first, settings.start()];
    chain.mine(5).await;
    for replica in &replicas {
        replica.wait_watermark(205, SOON).await;
    }
    list.list(&[(0, None), (1, None)]);
    for number in 206..=240 {
        chain.mine(1).await;
        replicas[0].wait_watermark(number, SOON).await;
        sleep(Duration::from_millis(200)).await;
    }
    let (old, new) = (list.address(0), list.address(1));
    let mut expected = transfers(&chain.rpc(), 201, 240, Some(&[old])).await;
    expected.extend(transfers(&chain.rpc(), 206, 240, Some(&[new])).await);
    wait_sent(&replicas, "Transfer", &expected).await;
    expected.extend(transfers(&chain.rpc(), 201, 205, Some(&[new])).await);
    let strange: Vec<_> = sent(&replicas, "Transfer").difference(&expected).cloned().collect();
    assert!(strange.is_empty(), "{strange:?}");
    let version: u64 = redis.cli(DB, "HGET chain:31337:progress filter_version").await;
    assert_eq!(version, 2, "one publication for both");
    eventually("no duty is left", SOON, || async { redis.cli::<u64>(DB, "EXISTS chain:31337:rescan").await == 0 })
        .await;
}

/// What is sent of a block without a journal entry cannot be taken back.
#[tokio::test]
async fn blocks_that_were_left_out_are_looked_at_for_a_new_token_once_they_are_final() {
    let options = Options { logs_per_block: 16, tokens: 3, ..still(200) };
    let (list, redis) = (TokenFile::of(&options), RedisServer::start().await);
    let chain = Devchain::start(options).await;
    list.list(&[(0, None)]);
    let settings = replica(&chain, &redis, &list).set("START_BLOCK", 201);
    let listener = settings.start();
    listener.wait_ready(true, SOON).await;
    chain.mine(5).await;
    listener.wait_watermark(205, SOON).await;
    listener.stop().await;
    chain.mine(5).await;
    let (code, out, log) = settings.output(&["skip", "--to", "210", "--yes"]).await;
    assert_eq!(code, 0, "{out}{log}");
    list.list(&[(0, None), (1, Some(201))]);
    let replicas = [settings.start()];
    let new = list.address(1);
    let journaled = transfers(&chain.rpc(), 201, 205, Some(&[new])).await;
    wait_sent(&replicas, "Transfer", &journaled).await;
    chain.mine(1).await;
    replicas[0].wait_watermark(211, SOON).await;
    let left_out = transfers(&chain.rpc(), 206, 210, Some(&[new])).await;
    assert!(!left_out.is_empty() && sent(&replicas, "Transfer").is_disjoint(&left_out), "sent before they are final");
    assert_eq!(redis.cli::<u64>(DB, "EXISTS chain:31337:rescan").await, 1, "the duty waits");
    chain.mine(FINAL).await;
    wait_sent(&replicas, "Transfer", &left_out).await;
    let none_left = || async { redis.cli::<u64>(DB, "EXISTS chain:31337:rescan").await == 0 };
    eventually("no duty is left", SOON, none_left).await;
}

#[tokio::test]
async fn a_token_with_a_first_block_is_delivered_from_there_final_blocks_and_others() {
    let options = Options { logs_per_block: 16, tokens: 3, ..still(200) };
    let (list, redis) = (TokenFile::of(&options), RedisServer::start().await);
    let chain = Devchain::start(options).await;
    list.list(&[(0, None)]);
    let replicas = [replica(&chain, &redis, &list).set("START_BLOCK", 1).start()];
    replicas[0].wait_watermark(200, SOON).await;
    let from = 200 - FINAL - 30;
    list.list(&[(0, None), (1, Some(from))]);
    let mut expected = transfers(&chain.rpc(), 1, 200, Some(&[list.address(0)])).await;
    expected.extend(transfers(&chain.rpc(), from, 200, Some(&[list.address(1)])).await);
    wait_sent(&replicas, "Transfer", &expected).await;
    assert_eq!(sent(&replicas, "Transfer"), expected, "and nothing from before it");
    chain.mine(3).await;
    replicas[0].wait_watermark(203, SOON).await;
    expected.extend(transfers(&chain.rpc(), 201, 203, Some(&[list.address(0), list.address(1)])).await);
    assert_eq!(sent(&replicas, "Transfer"), expected);
    let [replica] = replicas;
    let (code, messages, log) = replica.stop().await;
    assert_eq!(code, 0, "{log}");
    assert_eq!(messages.len(), expected.len(), "each of them once");
}

/// F54, N14.
#[tokio::test]
async fn f54_what_was_sent_of_a_token_is_taken_back_although_the_token_is_not_listed_any_more() {
    let options = Options { logs_per_block: 16, tokens: 3, ..still(200) };
    let (list, redis) = (TokenFile::of(&options), RedisServer::start().await);
    let chain = Devchain::start(options).await;
    list.list(&[(0, None), (1, None)]);
    let replicas = [replica(&chain, &redis, &list).set("START_BLOCK", 201).start()];
    replicas[0].wait_ready(true, SOON).await;
    chain.mine(8).await;
    replicas[0].wait_watermark(208, SOON).await;
    let both = [list.address(0), list.address(1)];
    let orphans = transfers(&chain.rpc(), 206, 208, Some(&both)).await;
    list.list(&[(0, None)]);
    eventually("the list without it is published", SOON, || async {
        redis.cli::<u64>(DB, "HGET chain:31337:progress filter_version").await == 2
    })
    .await;
    chain.rpc().call("devchain_reorg", json!(["0x3"])).await;
    chain.mine(1).await;
    wait_sent(&replicas, "TransferRetracted", &orphans).await;
    replicas[0].wait_watermark(209, SOON).await;
    assert_eq!(sent(&replicas, "TransferRetracted"), orphans);
    let gone = transfers(&chain.rpc(), 206, 209, Some(&[list.address(1)])).await;
    assert!(sent(&replicas, "Transfer").is_disjoint(&gone), "the token is not tracked any more");
    wait_sent(&replicas, "Transfer", &transfers(&chain.rpc(), 206, 209, Some(&[list.address(0)])).await).await;
}

/// `contracts.toml` with an entry of its own for one contract, whatever the token list says.
fn with_own_entry(address: Address) -> String {
    format!(
        r#"
[[contract]]
name = "OneToken"
abi = "abi/erc20.json"
address = "{address}"

[[contract.event]]
name = "Transfer"
handler = "handleTransferEvent"

[[contract]]
name = "Transfers"
abi = "abi/erc20.json"

[[contract.event]]
name = "Transfer"
handler = "handleTransferEvent"
token_filter = true
"#
    )
}

/// F53.
#[tokio::test]
async fn a_deployment_with_another_contract_takes_over_and_the_older_one_delivers_nothing_any_more() {
    let options = Options { logs_per_block: 16, tokens: 3, ..still(200) };
    let (list, redis) = (TokenFile::of(&options), RedisServer::start().await);
    let chain = Devchain::start(options).await;
    list.list(&[(0, None)]);
    let settings = replica(&chain, &redis, &list).set("START_BLOCK", 201);
    let older = settings.start();
    older.wait_ready(true, SOON).await;
    chain.mine(5).await;
    older.wait_watermark(205, SOON).await;
    let added = list.address(1);
    let newer = replica(&chain, &redis, &list).file("config/contracts.toml", &with_own_entry(added)).start();
    newer.wait_ready(true, SOON).await;
    eventually("the older one is superseded", SOON, || async {
        chain.mine(1).await;
        older.health().await["reasons"].to_string().contains("superseded")
    })
    .await;
    let delivered_by_older = older.line_count();
    let begun = chain.head().await;
    chain.mine(10).await;
    newer.wait_watermark(begun + 10, SOON).await;
    assert_eq!(older.line_count(), delivered_by_older);
    let both = [older, newer];
    let mut expected = transfers(&chain.rpc(), 201, begun + 10, Some(&[list.address(0)])).await;
    expected.extend(transfers(&chain.rpc(), 206, begun + 10, Some(&[added])).await);
    wait_sent(&both, "Transfer", &expected).await;
    expected.extend(transfers(&chain.rpc(), 201, 205, Some(&[added])).await);
    assert!(sent(&both, "Transfer").is_subset(&expected));
}

/// Takes the last log out of every answer that has several.
fn without_the_last_log(logs: &mut Value) {
    if let Some(logs) = logs.as_array_mut().filter(|logs| logs.len() > 1) {
        logs.pop();
    }
}

/// F09.
#[tokio::test]
async fn f09_a_log_that_one_provider_leaves_out_is_delivered_before_its_block_is_sealed() {
    let options = Options { logs_per_block: 16, tokens: 3, finalized_depth: FINAL, ..still(200) };
    let chain = Devchain::start(options).await;
    let liar = FaultyNode::before(chain.rpc()).await;
    liar.fail(Fault::Result("eth_getLogs", without_the_last_log));
    let settings = Settings::default()
        .set("CHAIN_ID", 31_337)
        .set("WEB3_PROVIDER", format!("{},{}", liar.url(), chain.rpc().url))
        .set("START_BLOCK", 201);
    let redis = RedisServer::start().await;
    let replicas = [settings.set("REDIS_URL", redis.url(DB)).start()];
    replicas[0].wait_ready(true, SOON).await;
    for number in 201..=210 {
        chain.mine(1).await;
        replicas[0].wait_watermark(number, SOON).await;
    }
    let expected = transfers(&chain.rpc(), 201, 210, None).await;
    assert!(sent(&replicas, "Transfer").len() < expected.len(), "the provider left nothing out");
    chain.mine(FINAL).await;
    wait_sent(&replicas, "Transfer", &expected).await;
    eventually("they are sealed", SOON, || async {
        redis.cli::<i64>(DB, "HGET chain:31337:progress sealed").await >= 210
    })
    .await;
    assert!(replicas[0].log().contains("a provider left out logs"), "{}", replicas[0].log());
    let (_, metrics) = replicas[0].get("/metrics").await.unwrap();
    let counted = metrics.lines().find(|line| line.starts_with("chaintap_audit_missing_total")).unwrap();
    assert!(!counted.ends_with(" 0"), "{counted}");
}

#[tokio::test]
async fn replicas_that_seal_the_same_blocks_suspect_no_provider() {
    let chain = Devchain::start(Options { logs_per_block: 16, finalized_depth: FINAL, ..still(200) }).await;
    let redis = RedisServer::start().await;
    let settings = Settings::default()
        .set("CHAIN_ID", 31_337)
        .set("WEB3_PROVIDER", format!("{},{}", chain.rpc().url, chain.endpoint("other").ws_url()))
        .set("START_BLOCK", 201)
        .set("REDIS_URL", redis.url(DB));
    let replicas = [settings.start(), settings.start()];
    for replica in &replicas {
        replica.wait_ready(true, SOON).await;
    }
    for round in 1..=6 {
        chain.mine(40).await;
        let sealed = 200 + 40 * round - i64::try_from(FINAL).unwrap();
        let is_sealed = || async { redis.cli::<i64>(DB, "HGET chain:31337:progress sealed").await >= sealed };
        eventually("what is final is sealed", SOON, is_sealed).await;
    }
    let head = chain.head().await;
    for replica in &replicas {
        replica.wait_watermark(head, SOON).await;
        let (_, metrics) = replica.get("/metrics").await.unwrap();
        let counted = metrics.lines().find(|line| line.starts_with("chaintap_audit_missing_total"));
        assert!(counted.is_none_or(|line| line.ends_with(" 0")), "{counted:?}\n{}", replica.log());
    }
}

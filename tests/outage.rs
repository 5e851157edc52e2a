//! Each server away, slow, wrong or lying for a while: nothing lost, nothing false, and no restart needed.
//!
//! Most of the time here is waiting for limits of seconds (10 s until `/readyz` tells, 30 s until a silent socket is
//! given up), so cases of one kind wait side by side in one test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what fails here fails the test"
)]

mod support;

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use alloy::primitives::Address;
use chaintap::devchain::{self, Options};
use mongodb::bson::{Document, doc};
use serde_json::{Value, json};
use support::{
    chaintap::{Listener, Settings},
    deliveries::{assert_delivered, bodies, height, transfers},
    devchain::{Devchain, Rpc, still},
    faulty_node::{Fault, FaultyNode, mute_socket},
    mongo::Mongo,
    process::eventually,
    proxy::Proxy,
    redis::RedisServer,
    sqs::{Misbehaviour, SqsServer},
};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep},
};

const SOON: Duration = Duration::from_mins(1);
/// Block time of the chains that mine while a server is away.
const BLOCK: Duration = Duration::from_millis(300);
/// The development chain's database.
const DATABASE: u8 = 15;
const QUEUE: &str = "transfers";

async fn chain_of(start_height: u64) -> Devchain {
    Devchain::start(Options { logs_per_block: 10, ..still(start_height) }).await
}

fn listener_of(provider: &str) -> Settings {
    Settings::default().set("CHAIN_ID", 31_337).set("WEB3_PROVIDER", provider).set("RPC_TIMEOUT", "4s")
}

fn with_queue(settings: Settings, endpoint: &str, url: &str) -> Settings {
    settings
        .set("TRANSFER_HANDLER_SQS", url)
        .set("AWS_ENDPOINT_URL_SQS", endpoint)
        .set("AWS_REGION", "us-east-1")
        .set("AWS_ACCESS_KEY_ID", "test")
        .set("AWS_SECRET_ACCESS_KEY", "test")
        .set("SINK_TIMEOUT", "12s")
}

/// A chain that grows until it is told to stand.
struct Mining {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    rpc: Rpc,
}

impl Mining {
    fn on(chain: &Devchain) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let rpc = chain.rpc();
        let miner = rpc.clone();
        let task = tokio::spawn(async move {
            while stopped.try_recv().is_err() {
                miner.call("devchain_mine", json!([1])).await;
                sleep(BLOCK).await;
            }
        });
        Self { stop, task, rpc }
    }

    /// The height at which it stands.
    async fn stand(self) -> u64 {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
        height(&self.rpc).await
    }
}

async fn ready_line(listener: &Listener) -> (u16, String) {
    listener.get("/readyz").await.expect("/readyz answers")
}

async fn assert_alive(listener: &Listener) {
    let (code, why) = listener.get("/livez").await.expect("/livez answers");
    assert_eq!(code, 200, "{why}");
}

/// Waits for a 503 of `/readyz` that says so, and looks whether the process lives on for a while after it.
async fn assert_unready(listener: &Listener, why: &str) {
    // It may have been started a moment ago.
    listener.health().await;
    let what = format!("unready for {why:?}");
    eventually(&what, Duration::from_secs(40), || async {
        assert_alive(listener).await;
        let (code, body) = ready_line(listener).await;
        code == 503 && body.contains(why)
    })
    .await;
    for _ in 0..20 {
        assert_alive(listener).await;
        let (code, body) = ready_line(listener).await;
        assert_eq!(code, 503, "ready although {why}: {body}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// One server away in the middle of the traffic, and back; the height at the end, everything delivered.
async fn outage(chain: &Devchain, listener: &Listener, proxy: &Proxy, silent: bool, why: &str) -> u64 {
    listener.wait_watermark(100, SOON).await;
    let mining = Mining::on(chain);
    listener.wait_watermark(105, SOON).await;
    if silent {
        proxy.silence();
    } else {
        proxy.cut().await;
    }
    assert_unready(listener, why).await;
    let before = listener.messages().len();
    sleep(away_longer()).await;
    assert_eq!(listener.messages().len(), before, "nothing is delivered past a server that is away");
    proxy.restore();
    listener.wait_ready(true, SOON).await;
    let head = mining.stand().await;
    listener.wait_watermark(head, SOON).await;
    assert!(!listener.log().contains("panicked"), "{}", listener.log());
    head
}

/// How much longer than `/readyz` needs to tell; an hour-long outage by hand: `OUTAGE_SECONDS=3600`.
fn away_longer() -> Duration {
    let seconds = std::env::var("OUTAGE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1))
}

async fn redis_away(silent: bool) {
    let (chain, redis) = tokio::join!(chain_of(100), RedisServer::start());
    let proxy = Proxy::before(&format!("127.0.0.1:{}", redis.port)).await;
    let settings = listener_of(&format!("ws://{}", chain.address))
        .set("START_BLOCK", 100)
        .set("REDIS_URL", format!("redis://{}/{DATABASE}", proxy.address));
    let listener = settings.start();
    let head = outage(&chain, &listener, &proxy, silent, "redis").await;
    let (code, messages, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    let claims: Vec<String> = redis.cli(DATABASE, "KEYS chain:31337:claim:*").await;
    assert!(claims.is_empty(), "{claims:?}");
    assert_delivered(&messages, &transfers(&chain.rpc(), 100, head, None).await, 1);
}

async fn sqs_away(silent: bool) {
    let (chain, sqs) = tokio::join!(chain_of(100), SqsServer::fauxqs());
    let proxy = Proxy::before(sqs.endpoint()).await;
    let url = sqs.create_queue(QUEUE, 1 << 18).await;
    let settings = listener_of(&format!("ws://{}", chain.address)).set("START_BLOCK", 100);
    let listener = with_queue(settings, &format!("http://{}", proxy.address), &url).start();
    let head = outage(&chain, &listener, &proxy, silent, "sqs:transfers").await;
    assert_eq!(listener.stop().await.0, 0);
    // What the proxy held back while it was silent arrives late; the blocks of those calls come twice.
    let in_flight = if silent { 12 } else { 1 };
    assert_delivered(&bodies(&sqs.drain(&url).await), &transfers(&chain.rpc(), 100, head, None).await, in_flight);
}

async fn node_away(silent: bool) {
    let chain = chain_of(100).await;
    let proxy = Proxy::before(&chain.address.to_string()).await;
    let listener = listener_of(&format!("ws://{}", proxy.address)).set("START_BLOCK", 100).start();
    let head = outage(&chain, &listener, &proxy, silent, "provider").await;
    let (code, messages, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    assert_delivered(&messages, &transfers(&chain.rpc(), 100, head, None).await, 0);
}

#[tokio::test]
async fn r21_redis_sqs_or_the_node_may_be_away_for_a_while() {
    tokio::join!(
        redis_away(false),
        redis_away(true),
        sqs_away(false),
        sqs_away(true),
        node_away(false),
        node_away(true)
    );
}

/// Waits a while in which a listener must live, be unready and deliver nothing.
async fn assert_waits(listener: &Listener, why: &str) {
    assert_unready(listener, why).await;
    sleep(Duration::from_secs(2)).await;
    assert_unready(listener, why).await;
    assert!(listener.messages().is_empty(), "{:?}", listener.messages());
}

async fn absent_redis() {
    let (chain, mut redis) = tokio::join!(chain_of(110), RedisServer::start());
    redis.kill().await;
    let settings = listener_of(&format!("http://{}", chain.address)).set("START_BLOCK", 100);
    let listener = settings.set("REDIS_URL", redis.url(DATABASE)).start();
    assert_waits(&listener, "redis").await;
    redis.restart().await;
    listener.wait_watermark(110, SOON).await;
    listener.wait_ready(true, SOON).await;
    assert_delivered(&listener.stop().await.1, &transfers(&chain.rpc(), 100, 110, None).await, 0);
}

async fn absent_queue() {
    let (chain, sqs) = tokio::join!(chain_of(110), SqsServer::fauxqs());
    let settings = listener_of(&format!("http://{}", chain.address)).set("START_BLOCK", 100);
    let url = sqs.create_queue(QUEUE, 1 << 18).await;
    sqs.delete_queue(&url).await;
    let listener = with_queue(settings, sqs.endpoint(), &url).start();
    assert_unready(&listener, "the queue does not exist").await;
    assert_eq!(listener.health().await["watermark"], 99, "nothing counts as delivered");
    sqs.create_queue(QUEUE, 1 << 18).await;
    listener.wait_watermark(110, SOON).await;
    listener.wait_ready(true, SOON).await;
    assert_eq!(listener.stop().await.0, 0);
    assert_delivered(&bodies(&sqs.drain(&url).await), &transfers(&chain.rpc(), 100, 110, None).await, 0);
}

async fn absent_node() {
    let chain = chain_of(110).await;
    let proxy = Proxy::before(&chain.address.to_string()).await;
    proxy.cut().await;
    let listener = listener_of(&format!("ws://{}", proxy.address)).set("START_BLOCK", 100).start();
    assert_waits(&listener, "provider").await;
    proxy.restore();
    listener.wait_watermark(110, SOON).await;
    listener.wait_ready(true, SOON).await;
    assert_delivered(&listener.stop().await.1, &transfers(&chain.rpc(), 100, 110, None).await, 0);
}

#[tokio::test]
async fn a_server_that_is_absent_at_the_start_is_waited_for() {
    tokio::join!(absent_redis(), absent_queue(), absent_node());
}

fn documents(from: usize, to: usize) -> Vec<Document> {
    let tokens = devchain::tokens(Options::default().seed, Options::default().tokens);
    let document = |token: &chaintap::domain::Token| {
        doc! {
            "address": token.address.to_checksum(None), "name": &token.name, "symbol": &token.symbol,
            "decimals": i32::from(token.decimals), "chainId": 31_337,
        }
    };
    tokens[from..to].iter().map(document).collect()
}

fn addresses(count: usize) -> Vec<Address> {
    devchain::tokens(Options::default().seed, Options::default().tokens).iter().take(count).map(|t| t.address).collect()
}

async fn wait_tokens(listener: &Listener, count: u64) {
    let what = format!("{count} tokens\n{}", listener.log());
    eventually(&what, SOON, || async { listener.health().await["mongodb"]["tokens"] == count }).await;
}

async fn wait_reason(listener: &Listener, why: &str) {
    let what = format!("a reason {why:?} in /health");
    eventually(&what, SOON, || async { listener.health().await["reasons"].to_string().contains(why) }).await;
}

#[tokio::test]
async fn r22_the_token_list_is_waited_for_then_kept_and_an_empty_one_not_believed() {
    let (chain, mut mongo) = tokio::join!(chain_of(105), Mongo::start());
    let rpc = chain.rpc();
    mongo.kill().await;
    let settings = listener_of(&format!("ws://{}", chain.address)).set("START_BLOCK", 100);
    let settings = settings.set("MONGODB_URI", mongo.uri()).set("MONGODB_DATABASE", "shop").set("TOKEN_REFRESH", "5s");
    let listener = settings.start();
    assert_waits(&listener, "starting").await;
    wait_reason(&listener, "there is no token list").await;

    mongo.restart().await;
    wait_reason(&listener, "no valid token for this chain").await;
    assert_waits(&listener, "starting").await;

    let tokens = mongo.tokens("shop").await;
    tokens.insert_many(documents(0, 4)).await.unwrap();
    listener.wait_watermark(105, SOON).await;
    listener.wait_ready(true, SOON).await;
    let mut expected = transfers(&rpc, 100, 105, Some(&addresses(4))).await;
    // The list that lacked the next token may have been held against the chain before these blocks were delivered, and
    // not since: then they are looked at again.
    let early = transfers(&rpc, 100, 105, Some(&addresses(5)[4..])).await;

    // A token that is added reaches the filter.
    tokens.insert_many(documents(4, 5)).await.unwrap();
    wait_tokens(&listener, 5).await;
    rpc.call("devchain_mine", json!([5])).await;
    listener.wait_watermark(110, SOON).await;
    expected.extend(transfers(&rpc, 106, 110, Some(&addresses(5))).await);

    // A list that becomes empty is not believed.
    tokens.delete_many(doc! {}).await.unwrap();
    wait_reason(&listener, "it stays in use").await;
    rpc.call("devchain_mine", json!([5])).await;
    listener.wait_watermark(115, SOON).await;
    tokens.insert_many(documents(0, 5)).await.unwrap();
    eventually("the list is well again", SOON, || async {
        !listener.health().await["reasons"].to_string().contains("it stays in use")
    })
    .await;

    // Without its server, too.
    mongo.kill().await;
    wait_reason(&listener, "it stays in use").await;
    sleep(away_longer()).await;
    let health = listener.health().await;
    assert!(health["mongodb"]["ageSeconds"].as_u64().is_some(), "{health}");
    assert_eq!(health["status"], "degraded");
    assert_eq!(ready_line(&listener).await.0, 200);
    rpc.call("devchain_mine", json!([5])).await;
    listener.wait_watermark(120, SOON).await;
    expected.extend(transfers(&rpc, 111, 120, Some(&addresses(5))).await);

    let (code, messages, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    expected.extend(sent_of(&messages, &early));
    assert_delivered(&messages, &expected, 0);
}

/// Those of these ids that were sent: they may be, and need not.
fn sent_of(messages: &[Value], ids: &BTreeSet<String>) -> BTreeSet<String> {
    messages.iter().filter_map(|message| ids.get(message["id"].as_str()?)).cloned().collect()
}

#[tokio::test]
async fn a_token_that_is_added_is_known_at_once_by_the_change_stream() {
    let (chain, mongo) = tokio::join!(chain_of(105), Mongo::start());
    let tokens = mongo.tokens("shop").await;
    tokens.insert_many(documents(0, 1)).await.unwrap();
    let settings = listener_of(&format!("ws://{}", chain.address)).set("START_BLOCK", 100);
    let listener = settings.set("MONGODB_URI", mongo.uri()).set("MONGODB_DATABASE", "shop").start();
    listener.wait_watermark(105, SOON).await;
    tokens.insert_many(documents(1, 3)).await.unwrap();
    // The refresh is 5 minutes away.
    wait_tokens(&listener, 3).await;
    chain.rpc().call("devchain_mine", json!([3])).await;
    listener.wait_watermark(108, SOON).await;
    let mut expected = transfers(&chain.rpc(), 100, 105, Some(&addresses(1))).await;
    expected.extend(transfers(&chain.rpc(), 106, 108, Some(&addresses(3))).await);
    // The list before was held against the chain at the start.
    let early = transfers(&chain.rpc(), 100, 105, Some(&addresses(3)[1..])).await;
    let messages = listener.stop().await.1;
    expected.extend(sent_of(&messages, &early));
    assert_delivered(&messages, &expected, 0);
}

#[tokio::test]
async fn redis_may_lose_its_scripts_and_its_memory_but_not_the_state() {
    let (chain, redis) = tokio::join!(chain_of(100), RedisServer::start());
    let settings = listener_of(&format!("ws://{}", chain.address)).set("START_BLOCK", 100);
    let listener = settings.set("REDIS_URL", redis.url(DATABASE)).start();
    listener.wait_watermark(100, SOON).await;
    let mine = || async { chain.rpc().call("devchain_mine", json!([3])).await };

    redis.cli::<()>(DATABASE, "SCRIPT FLUSH").await; // F45
    mine().await;
    listener.wait_watermark(103, SOON).await;

    redis.cli::<()>(DATABASE, "CONFIG SET maxmemory 1").await; // F44: OOM command not allowed
    let before = listener.messages().len();
    mine().await;
    assert_unready(&listener, "redis").await;
    assert_eq!(listener.messages().len(), before, "no message without an intent");
    redis.cli::<()>(DATABASE, "CONFIG SET maxmemory 0").await;
    listener.wait_ready(true, SOON).await;
    listener.wait_watermark(106, SOON).await;

    redis.cli::<()>(DATABASE, "FLUSHDB").await; // F43
    mine().await;
    let (code, messages, log) = listener.end(SOON).await;
    assert_ne!(code, 0, "{log}");
    assert!(log.contains("state"), "{log}");
    let keys: Vec<String> = redis.cli(DATABASE, "KEYS *").await;
    assert!(!keys.iter().any(|key| key.ends_with("progress") || key.starts_with("realtime")), "{keys:?}");
    assert_delivered(&messages, &transfers(&chain.rpc(), 100, 106, None).await, 0);
}

/// R09 and the bound on memory: nothing but a stalled sink and the whole history before it.
#[tokio::test]
async fn r09_a_throttled_queue_holds_back_progress_and_not_memory() {
    const HEAD: u64 = 600;
    const MOST_BYTES: u64 = 200 << 20;
    let chain = Devchain::start(Options { logs_per_block: 40, ..still(HEAD) }).await;
    let (sqs, redis) = tokio::join!(SqsServer::stub(), RedisServer::start());
    let url = sqs.create_queue(QUEUE, 1 << 18).await;
    sqs.script(std::iter::repeat_n(Misbehaviour::Error { status: 400, code: "RequestThrottled" }, 10_000));
    let settings = listener_of(&format!("ws://{}", chain.address)).set("START_BLOCK", 1);
    let settings = settings.set("REDIS_URL", redis.url(DATABASE)).set("LOG_LEVEL", "info");
    let listener = with_queue(settings, sqs.endpoint(), &url).start();
    eventually("something is sent", SOON, || async { !sqs.batches().is_empty() }).await;
    // The queue states its attributes all the while, and takes nothing.
    assert_unready(&listener, "RequestThrottled").await;
    let mut most = 0;
    let stalled = Instant::now();
    let mut calls = 0;
    while stalled.elapsed() < Duration::from_secs(10) {
        most = most.max(listener.resident_bytes());
        calls += sqs.batches().len();
        assert_alive(&listener).await;
        sleep(Duration::from_millis(200)).await;
    }
    assert!(most < MOST_BYTES, "{} MiB", most >> 20);
    assert!(calls < 100, "{calls} calls in 10 s of a queue that asks for fewer");
    assert_eq!(listener.health().await["watermark"], 0);
    let claims: Vec<String> = redis.cli(DATABASE, "KEYS chain:31337:claim:*").await;
    assert!(!claims.is_empty(), "the work in flight stays claimed");
    sqs.batches();
    sqs.behave();
    listener.wait_ready(true, SOON).await;
    listener.wait_watermark(HEAD, Duration::from_mins(2)).await;
    assert_eq!(listener.stop().await.0, 0);
    let sent: Vec<String> = sqs.batches().into_iter().flatten().collect();
    let taken: BTreeSet<String> = sent.iter().cloned().collect();
    assert_eq!(taken, transfers(&chain.rpc(), 1, HEAD, None).await);
    // What was on its way when the queue behaved again may have been refused once more.
    assert!(sent.len() <= taken.len() + 100, "{} of {} twice", sent.len() - taken.len(), taken.len());
}

#[tokio::test]
async fn r08_only_failed_entries_are_sent_again_and_poison_becomes_a_dead_letter() {
    let chain = Devchain::start(Options { logs_per_block: 60, ..still(100) }).await;
    let sqs = SqsServer::stub().await;
    let url = sqs.create_queue(QUEUE, 1 << 18).await;
    let settings = listener_of(&format!("ws://{}", chain.address)).set("START_BLOCK", 100);
    let settings = with_queue(settings, sqs.endpoint(), &url);
    let listener = settings.start();
    listener.wait_watermark(100, SOON).await;
    sqs.batches();
    let fail = |places: Vec<usize>, code, sender_fault| Misbehaviour::Fail { places, code, sender_fault };
    sqs.script([fail(vec![0, 2], "InternalError", false)]);
    chain.rpc().call("devchain_mine", json!([1])).await;
    listener.wait_watermark(101, SOON).await;
    let batches = sqs.batches();
    assert_eq!(batches[1][..2], [batches[0][0].clone(), batches[0][2].clone()], "{batches:?}");
    let again = batches[1..].iter().flatten().filter(|id| batches[0].contains(id)).count();
    assert_eq!(again, 2, "only these: {batches:?}");

    sqs.script([fail(vec![1, 2], "InvalidMessageContents", true)]);
    chain.rpc().call("devchain_mine", json!([1])).await;
    listener.wait_watermark(102, SOON).await;
    let poisoned = sqs.batches()[0][1..3].to_vec();
    let counted = || async { listener.health().await["deadLetters"] == 2 };
    eventually("the dead letters are counted", SOON, counted).await;
    assert_eq!(listener.stop().await.0, 0);
    let mut expected = transfers(&chain.rpc(), 100, 102, None).await;
    assert!(poisoned.iter().all(|id| expected.remove(id)), "{poisoned:?}");
    assert_delivered(&bodies(&sqs.drain(&url).await), &expected, 0);
    assert_dead_letters_are_at_hand(&settings, &poisoned).await;
    let again = bodies(&sqs.drain(&url).await);
    assert_eq!(again.len(), 1);
    assert_eq!(again[0]["id"], poisoned[0].as_str());
}

/// Lists, shows, sends the first again and drops the other, as an operator does.
async fn assert_dead_letters_are_at_hand(settings: &Settings, ids: &[String]) {
    let keys: Vec<String> = ids.iter().map(|id| format!("{id}|handleTransferEvent")).collect();
    let dlq = async |arguments: &[&str]| {
        let (code, out, log) = settings.output(&[&["dlq"], arguments].concat()).await;
        assert_eq!(code, 0, "{arguments:?}: {out}{log}");
        out
    };
    let listed = dlq(&["list", "--json"]).await;
    assert_eq!(listed.lines().count(), 2, "{listed}");
    let shown = dlq(&["show", &keys[0]]).await;
    assert!(shown.contains(&ids[0]) && shown.contains("InvalidMessageContents"), "{shown}");
    dlq(&["redrive", &keys[0]]).await;
    dlq(&["drop", &keys[1], "--yes"]).await;
    assert_eq!(dlq(&["list", "--json"]).await, "");
}

#[tokio::test]
async fn a_queue_that_is_deleted_is_told_and_waited_for() {
    let (chain, sqs) = tokio::join!(chain_of(100), SqsServer::fauxqs());
    let url = sqs.create_queue(QUEUE, 1 << 18).await;
    let settings = listener_of(&format!("ws://{}", chain.address)).set("START_BLOCK", 100);
    let listener = with_queue(settings, sqs.endpoint(), &url).start();
    listener.wait_watermark(100, SOON).await;
    assert_delivered(&bodies(&sqs.drain(&url).await), &transfers(&chain.rpc(), 100, 100, None).await, 0);
    sqs.delete_queue(&url).await;
    chain.rpc().call("devchain_mine", json!([3])).await;
    assert_unready(&listener, "the queue does not exist").await;
    assert_eq!(listener.health().await["watermark"], 100);
    sqs.create_queue(QUEUE, 1 << 18).await;
    listener.wait_ready(true, SOON).await;
    listener.wait_watermark(103, SOON).await;
    assert_eq!(listener.stop().await.0, 0);
    assert_delivered(&bodies(&sqs.drain(&url).await), &transfers(&chain.rpc(), 101, 103, None).await, 0);
}

/// Whether the next block is delivered within a few seconds.
async fn assert_prompt(chain: &Devchain, listener: &Listener) {
    chain.rpc().call("devchain_mine", json!([1])).await;
    let head = height(&chain.rpc()).await;
    listener.wait_watermark(head, Duration::from_secs(8)).await;
}

async fn socket_fails(silent: bool) {
    let chain = chain_of(100).await;
    let proxy = Proxy::before(&chain.address.to_string()).await;
    let providers = format!("http://{},ws://{}", chain.address, proxy.address);
    let listener = listener_of(&providers).set("START_BLOCK", 100).start();
    listener.wait_watermark(100, SOON).await;
    eventually("the socket is there", SOON, || async { listener.log().contains("over the WebSocket") }).await;
    assert_prompt(&chain, &listener).await;
    if silent {
        proxy.silence();
        chain.rpc().call("devchain_mine", json!([3])).await;
        // R14: at most 30 s, then it is polled.
        listener.wait_watermark(104, Duration::from_secs(45)).await;
    } else {
        proxy.cut().await;
    }
    // Meanwhile another socket is being opened, in vain.
    assert_prompt(&chain, &listener).await;
    sleep(Duration::from_secs(2)).await;
    assert_prompt(&chain, &listener).await;
    assert_eq!(ready_line(&listener).await.0, 200, "one provider answers");
    proxy.restore();
    assert_prompt(&chain, &listener).await;
    let head = height(&chain.rpc()).await;
    assert_delivered(&listener.stop().await.1, &transfers(&chain.rpc(), 100, head, None).await, 0);
}

async fn socket_is_mute() {
    let (chain, (url, _mute)) = tokio::join!(chain_of(100), mute_socket());
    let listener = listener_of(&format!("http://{},{url}", chain.address)).set("START_BLOCK", 100).start();
    listener.wait_watermark(100, SOON).await;
    for _ in 0..3 {
        assert_prompt(&chain, &listener).await;
    }
    assert_delivered(&listener.stop().await.1, &transfers(&chain.rpc(), 100, 103, None).await, 0);
}

#[tokio::test]
async fn r14_a_socket_that_closes_falls_silent_or_never_speaks_delays_heads_by_little() {
    tokio::join!(socket_fails(false), socket_fails(true), socket_is_mute());
}

/// A configuration of its own, in which blocks of the development chain are final after four more.
fn final_soon(settings: &Settings) {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["config", "abi"] {
        fs::create_dir(settings.home().join(folder)).unwrap();
        for file in fs::read_dir(project.join(folder)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), settings.home().join(folder).join(file.file_name())).unwrap();
        }
    }
    let chains = settings.home().join("config/chains.toml");
    let text = fs::read_to_string(&chains).unwrap();
    let (others, development) = text.split_once("id = 31337").unwrap();
    let development = development.replace("finality_depth = 64", "finality_depth = 4");
    fs::write(&chains, format!("{others}id = 31337{development}")).unwrap();
}

fn lies() -> Vec<Fault> {
    vec![
        Fault::Status(500, None),
        Fault::Status(429, None),
        Fault::Truncated,
        Fault::Body(String::new()),
        Fault::Body("<html>busy</html>".into()),
        Fault::Body("null".into()),
        Fault::Body("[]".into()),
        Fault::Body(json!({ "jsonrpc": "2.0", "id": 0, "result": "0x".repeat(1 << 20) }).to_string()),
        Fault::Body(json!({ "jsonrpc": "2.0", "id": null, "error": { "code": -32000, "message": "odd" } }).to_string()),
        Fault::Result("eth_getLogs", |logs| *logs = Value::Null),
        Fault::Result("eth_getLogs", |logs| *logs = json!([{}])),
        Fault::Result("eth_getLogs", |logs| logs[0]["blockHash"] = json!(format!("0x{}", "ab".repeat(32)))),
        Fault::Result("eth_getLogs", |logs| logs[0]["removed"] = json!(true)),
        Fault::Result("eth_getLogs", |logs| logs[0]["blockHash"] = Value::Null),
        Fault::Result("eth_getLogs", |logs| logs[0]["blockNumber"] = json!("0x1")),
        Fault::Result("eth_getLogs", |logs| logs[0]["logIndex"] = json!("0xffffffffffffffffffff")),
        Fault::Result("eth_getLogs", |logs| logs[0]["topics"] = json!([format!("0x{}", "cd".repeat(32))])),
        Fault::Result("eth_getLogs", |logs| logs[0]["data"] = json!("zz")),
        Fault::Result("eth_getBlockByNumber", |block| *block = Value::Null),
        Fault::Result("eth_getBlockByNumber", |block| block["hash"] = Value::Null),
        Fault::Result("eth_getBlockByNumber", |block| block["number"] = json!("0xfffffffffffffff")),
        Fault::Result("eth_getBlockByNumber", |block| block["timestamp"] = json!(-1)),
    ]
}

#[tokio::test]
async fn whatever_a_node_answers_nothing_false_is_delivered_and_nothing_lost() {
    let options = Options { logs_per_block: 10, safe_depth: 2, finalized_depth: 4, ..still(120) };
    let chain = Devchain::start(options).await;
    let node = FaultyNode::before(chain.rpc()).await;
    node.fail_every(3, lies());
    let settings = listener_of(&node.url()).set("START_BLOCK", 1).set("RPC_MAX_BYTES", "1MiB");
    final_soon(&settings);
    let listener = settings.start();
    // Ranges below the final height, single blocks above it.
    // A third of all answers is spoilt, so a block may take many tries, with pauses of up to 10 s.
    let patience = SOON * 3;
    listener.wait_watermark(120, patience).await;
    let mut head = 120;
    while node.spoilt() < 3 * lies().len() {
        chain.rpc().call("devchain_mine", json!([1])).await;
        head += 1;
        listener.wait_watermark(head, patience).await;
    }
    let (code, messages, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    assert!(!log.contains("panicked"), "{log}");
    // A range whose second part was not answered is delivered again as a whole.
    assert_delivered(&messages, &transfers(&chain.rpc(), 1, head, None).await, usize::MAX);
}

#[tokio::test]
async fn a_node_that_refuses_is_not_asked_in_a_hot_loop_and_its_wait_is_kept() {
    let chain = chain_of(105).await;
    let node = FaultyNode::before(chain.rpc()).await;
    let listener = listener_of(&node.url()).set("START_BLOCK", 100).start();
    listener.wait_watermark(105, SOON).await;
    for (fault, most) in
        [(Fault::Status(429, None), 40), (Fault::Status(500, None), 40), (Fault::Status(429, Some(3)), 8)]
    {
        node.fail(fault);
        chain.rpc().call("devchain_mine", json!([8])).await;
        sleep(Duration::from_millis(500)).await;
        node.requests();
        sleep(Duration::from_secs(5)).await;
        let asked = node.requests();
        assert!((1..=most).contains(&asked), "{asked} requests in 5 s, at most {most}");
        assert_alive(&listener).await;
        node.behave();
        listener.wait_watermark(height(&chain.rpc()).await, SOON).await;
    }
    let head = height(&chain.rpc()).await;
    assert_delivered(&listener.stop().await.1, &transfers(&chain.rpc(), 100, head, None).await, 0);
}

#[tokio::test]
async fn f11_another_chain_behind_the_same_address_is_not_listened_to() {
    let chain = chain_of(105).await;
    let other = Devchain::start(Options { chain_id: Some(4_242), seed: 7, ..still(300) }).await;
    let node = FaultyNode::before(chain.rpc()).await;
    let mut listener = listener_of(&node.url()).set("START_BLOCK", 100).start();
    listener.wait_watermark(105, SOON).await;
    node.fail(Fault::Status(502, None));
    node.requests();
    eventually("the outage is noticed", SOON, || async { listener.log().contains("head not read") }).await;
    node.move_to(other.rpc());
    node.behave();
    assert_unready(&listener, "4242").await;
    assert!(listener.lives());
    node.fail(Fault::Status(502, None));
    chain.rpc().call("devchain_mine", json!([3])).await;
    node.move_to(chain.rpc());
    node.behave();
    listener.wait_ready(true, SOON).await;
    listener.wait_watermark(108, SOON).await;
    assert_delivered(&listener.stop().await.1, &transfers(&chain.rpc(), 100, 108, None).await, 0);
}

/// A socket that breaks is opened again, and may then lead to another node: behind a load balancer, or after a mistake.
#[tokio::test]
async fn f11_another_chain_behind_a_socket_that_was_cut_is_not_listened_to() {
    let (chain, other) =
        tokio::join!(chain_of(105), Devchain::start(Options { chain_id: Some(4_242), seed: 7, ..still(300) }));
    let proxy = Proxy::for_sockets(&chain.address.to_string()).await;
    let listener = listener_of(&format!("ws://{}", proxy.address)).set("START_BLOCK", 100).start();
    listener.wait_watermark(105, SOON).await;
    proxy.lead_to(&other.address.to_string());
    proxy.cut().await;
    proxy.restore();
    assert_unready(&listener, "4242").await;
    chain.rpc().call("devchain_mine", json!([3])).await;
    proxy.lead_to(&chain.address.to_string());
    proxy.cut().await;
    proxy.restore();
    listener.wait_ready(true, SOON).await;
    listener.wait_watermark(108, SOON).await;
    assert_delivered(&listener.stop().await.1, &transfers(&chain.rpc(), 100, 108, None).await, 0);
}

/// Such an answer ends the socket, and nothing says why: no time limit has to pass before less is asked for.
#[tokio::test]
async fn a_range_that_is_more_than_a_socket_takes_is_asked_for_in_parts() {
    let chain = Devchain::start(Options { logs_per_block: 100, ..still(300) }).await;
    let proxy = Proxy::for_sockets(&chain.address.to_string()).await;
    let settings = listener_of(&format!("ws://{}", proxy.address)).set("START_BLOCK", 1);
    let listener = settings.set("RPC_MAX_BYTES", "1MiB").set("RPC_TIMEOUT", "90s").start();
    listener.wait_watermark(300, SOON).await;
    let (_, messages, log) = listener.stop().await;
    assert!(log.contains("ended before the answer"), "{log}");
    assert_delivered(&messages, &transfers(&chain.rpc(), 1, 300, None).await, 0);
}

/// A node whose answers may hold as many logs as twelve blocks have.
#[tokio::test]
async fn r11_a_range_that_is_too_large_is_halved_until_it_fits_and_grows_back() {
    let limits = devchain::Limits { results: 150, ..devchain::Limits::default() };
    let (chain, same) = tokio::join!(
        Devchain::start(Options { logs_per_block: 10, limits, ..still(600) }),
        Devchain::start(Options { logs_per_block: 10, ..still(600) }),
    );
    let listener = listener_of(&chain.ws_url()).set("START_BLOCK", 1).start();
    listener.wait_watermark(600, SOON).await;
    let refused = listener.log().matches("answer too large").count();
    // From 100 blocks to 12 it takes three refusals, or four where other ranges are on their way; every further one
    // means that it had grown.
    assert!(refused > 4, "{refused} refusals");
    let (_, messages, _) = listener.stop().await;
    assert_delivered(&messages, &transfers(&same.rpc(), 1, 600, None).await, 0);
}

/// A node that has a block some time before it has the block's logs.
#[tokio::test]
async fn r12_an_empty_answer_is_not_taken_where_the_blocks_bloom_has_logs() {
    let (chain, same) = tokio::join!(chain_of(110), chain_of(113));
    assert!(!transfers(&same.rpc(), 113, 113, None).await.is_empty());
    let node = FaultyNode::before(chain.rpc()).await;
    let listener = listener_of(&node.url()).set("START_BLOCK", 101).start();
    chain.mine(2).await;
    listener.wait_watermark(112, SOON).await;
    node.fail_times(2, Fault::Result("eth_getLogs", |logs| *logs = json!([])));
    chain.mine(1).await;
    listener.wait_watermark(113, SOON).await;
    assert_eq!(node.spoilt(), 2);
    let (_, metrics) = listener.get("/metrics").await.unwrap();
    let counted = metrics.lines().find(|line| line.starts_with("chaintap_rpc_empty_with_bloom_total")).unwrap();
    assert!(counted.ends_with(" 2"), "{counted}");
    let (_, messages, _) = listener.stop().await;
    assert_delivered(&messages, &transfers(&chain.rpc(), 101, 113, None).await, 0);
}

/// The bloom of an empty block that speaks of everything: the third empty answer is believed, and the block is not given up
/// in between.
#[tokio::test]
async fn a_bloom_that_is_wrong_costs_a_block_two_more_questions_and_no_second_try() {
    let chain = Devchain::start(Options { logs_per_block: 0, ..still(110) }).await;
    let node = FaultyNode::before(chain.rpc()).await;
    node.fail(Fault::Result("eth_getBlockByNumber", |block| {
        if block.is_object() {
            block["logsBloom"] = json!(format!("0x{}", "ff".repeat(256)));
        }
    }));
    let listener = listener_of(&node.url()).set("START_BLOCK", 101).start();
    listener.wait_watermark(110, SOON).await;
    chain.mine(3).await;
    listener.wait_watermark(113, SOON).await;
    let (_, metrics) = listener.get("/metrics").await.unwrap();
    let counted = metrics.lines().find(|line| line.starts_with("chaintap_rpc_empty_with_bloom_total")).unwrap();
    assert!(counted.ends_with(" 26"), "two for each of 13 blocks: {counted}");
    let given_up = metrics.lines().find(|line| line.contains("stage_errors_total") && line.contains("\"fetch\""));
    assert!(given_up.is_none_or(|line| line.ends_with(" 0")), "{given_up:?}");
    assert!(listener.stop().await.1.is_empty());
}

#[tokio::test]
async fn r13_a_node_that_has_headers_but_no_logs_is_left_for_one_that_has_both() {
    let chain = chain_of(110).await;
    let (headers_only, good) = (FaultyNode::before(chain.rpc()).await, FaultyNode::before(chain.rpc()).await);
    headers_only.fail(Fault::Result("eth_getLogs", |result| *result = Value::Null));
    let providers = format!("{},{}", headers_only.url(), good.url());
    let listener = listener_of(&providers).set("START_BLOCK", 101).start();
    listener.wait_watermark(110, SOON).await;
    chain.mine(3).await;
    listener.wait_watermark(113, SOON).await;
    let tried = headers_only.spoilt();
    assert!((1..=13).contains(&tried), "asked in vain {tried} times for 13 blocks");
    let (_, messages, _) = listener.stop().await;
    assert_delivered(&messages, &transfers(&chain.rpc(), 101, 113, None).await, 0);
}

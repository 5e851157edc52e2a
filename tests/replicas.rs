//! Several replicas of one chain on one Redis: they share the work, take over from each other, and repeat nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test's own functions fail the test
#![allow(clippy::print_stderr)] // measurements

mod support;

use std::{cell::Cell, time::Duration};

use chaintap::{
    config::{Durability, SecretUrl},
    devchain::Options,
    domain::{BlockRange, BlockRef, Digest},
    store::{
        ClaimReply, Intent, IntentReply, Progress, Start, StateStore as _,
        redis::{Identity, RedisStore},
    },
};
use serde_json::json;
use support::{
    chaintap::{Listener, Settings},
    devchain::{Devchain, still},
    ledger::Ledger,
    process::eventually,
    redis::RedisServer,
    sqs::{Misbehaviour, SqsServer},
};
use tokio::time::Instant;

const SOON: Duration = Duration::from_mins(1);
/// A dead owner's block is delivered by someone else within this (R06).
const TAKEOVER: Duration = Duration::from_secs(35);
/// The development chain's Redis database.
const DB: u8 = 15;

/// A replica of this chain with its state in this Redis.
fn replica_of(chain: &Devchain, redis: &RedisServer) -> Settings {
    Settings::default()
        .set("CHAIN_ID", 31_337)
        .set("WEB3_PROVIDER", format!("ws://{}", chain.address))
        .set("REDIS_URL", redis.url(DB))
        .set("LOG_LEVEL", "info")
}

/// The same, with its events in a queue.
fn with_queue(settings: Settings, queues: &SqsServer, url: &str) -> Settings {
    let access = queues.access();
    settings
        .set("TRANSFER_HANDLER_SQS", url)
        .set("AWS_ENDPOINT_URL", access.endpoint.unwrap())
        .set("AWS_REGION", access.region.unwrap())
        .set("AWS_ACCESS_KEY_ID", "test")
        .set("AWS_SECRET_ACCESS_KEY", "test")
}

/// Who holds a block: owner and fence.
async fn claim(redis: &RedisServer, number: u64) -> Option<String> {
    redis.cli(DB, &format!("GET chain:31337:claim:{number}")).await
}

async fn claims(redis: &RedisServer) -> Vec<String> {
    redis.cli(DB, "KEYS chain:31337:claim:*").await
}

/// Asks them to stop and enters what they sent.
async fn stop_all(replicas: impl IntoIterator<Item = Listener>, ledger: &mut Ledger) {
    for (index, mut replica) in replicas.into_iter().enumerate() {
        replica.signal("TERM").await;
        let code = replica.ended(SOON).await;
        assert_eq!(code, 0, "{}", replica.log());
        ledger.enter(index, &replica.whole_lines());
    }
}

/// A chain most of whose blocks are more than fits into a pipe that nobody reads, which is 64 KiB.
fn loud(start_height: u64) -> Options {
    Options { logs_per_block: 800, ..still(start_height) }
}

#[tokio::test]
async fn r01_replicas_that_see_different_heads_at_their_first_start_agree_on_one() {
    let options = || Options { logs_per_block: 4, ..still(1_000) };
    let (behind, ahead) = (Devchain::start(options()).await, Devchain::start(options()).await);
    ahead.mine(2).await;
    let redis = RedisServer::start().await;
    let replicas = [replica_of(&behind, &redis).start(), replica_of(&ahead, &redis).start()];
    for replica in &replicas {
        replica.wait_ready(true, SOON).await;
    }
    let start: u64 = redis.cli(DB, "HGET chain:31337:progress start").await;
    assert!([1_000, 1_002].contains(&start), "{start}");
    behind.mine(5).await;
    ahead.mine(3).await;
    for replica in &replicas {
        replica.wait_watermark(1_005, SOON).await;
    }
    let mut ledger = Ledger::default();
    stop_all(replicas, &mut ledger).await;
    ledger.assert_exactly(&ahead.transfers(start, 1_005).await);
    ledger.assert_once();
}

#[tokio::test]
async fn two_replicas_share_a_catch_up_and_the_head_and_send_each_transfer_once() {
    const OLD: u64 = 3_000;
    const NEW: u64 = 40;
    let chain = Devchain::start(Options { logs_per_block: 4, ..still(OLD) }).await;
    let redis = RedisServer::start().await;
    let settings = replica_of(&chain, &redis).set("START_BLOCK", 1);
    let replicas = [settings.start(), settings.start()];
    for replica in &replicas {
        replica.wait_watermark(OLD, SOON).await;
    }
    let caught_up = replicas.each_ref().map(Listener::line_count);
    for round in 1..=NEW / 4 {
        chain.mine(4).await;
        replicas[0].wait_watermark(OLD + 4 * round, SOON).await;
    }
    replicas[1].wait_watermark(OLD + NEW, SOON).await;
    let at_the_end = replicas.each_ref().map(Listener::line_count);
    let mut ledger = Ledger::default();
    stop_all(replicas, &mut ledger).await;
    ledger.assert_exactly(&chain.transfers(1, OLD + NEW).await);
    ledger.assert_once();
    assert!(caught_up.iter().all(|&count| count > 0), "one did all of the catch-up: {caught_up:?}");
    let at_the_head = [at_the_end[0] - caught_up[0], at_the_end[1] - caught_up[1]];
    assert!(at_the_head.iter().all(|&count| count > 0), "one did all of the head: {at_the_head:?}");
    assert_eq!(claims(&redis).await, [""; 0], "no claim is left");
}

#[tokio::test]
async fn two_replicas_fill_one_queue_with_each_transfer_once() {
    let chain = Devchain::start(Options { logs_per_block: 4, ..still(200) }).await;
    let (redis, queues) = (RedisServer::start().await, SqsServer::fauxqs().await);
    let url = queues.create_queue("transfers", 256 << 10).await;
    let settings = with_queue(replica_of(&chain, &redis), &queues, &url).set("START_BLOCK", 101);
    let replicas = [settings.start(), settings.start()];
    for replica in &replicas {
        replica.wait_watermark(200, SOON).await;
    }
    chain.mine(10).await;
    for replica in &replicas {
        replica.wait_watermark(210, SOON).await;
    }
    stop_all(replicas, &mut Ledger::default()).await;
    let mut ledger = Ledger::default();
    ledger.enter("queue", &queues.drain(&url).await.into_iter().map(|message| message.body).collect::<Vec<_>>());
    ledger.assert_exactly(&chain.transfers(101, 210).await);
}

/// The queue has taken the block's messages, the process dies before it can say so.
#[tokio::test]
async fn r07_a_block_whose_replica_was_killed_in_the_middle_is_delivered_by_the_other() {
    let chain = Devchain::start(Options { logs_per_block: 20, ..still(100) }).await;
    let (redis, queues) = (RedisServer::start().await, SqsServer::stub().await);
    let url = queues.create_queue("transfers", 256 << 10).await;
    let settings = with_queue(replica_of(&chain, &redis), &queues, &url).set("START_BLOCK", 101);
    let dying = settings.start();
    dying.wait_ready(true, SOON).await;
    queues.script([Misbehaviour::LoseAnswer]);
    let number = mine_until_it_hangs(&chain, 100, &dying).await;
    let other = settings.start();
    other.wait_ready(true, SOON).await;
    dying.crash().await;
    let killed = Instant::now();
    chain.mine(4).await;
    eventually("later blocks are not held up", SOON, || async {
        let tip: u64 = redis.cli(DB, "HGET realtime_processed_block block").await;
        tip == number + 4
    })
    .await;
    other.wait_watermark(number + 4, TAKEOVER).await;
    eprintln!("block {number} was taken over {:?} after the kill", killed.elapsed());
    assert!(killed.elapsed() < TAKEOVER);
    stop_all([other], &mut Ledger::default()).await;

    let bodies: Vec<String> = queues.drain(&url).await.into_iter().map(|message| message.body).collect();
    let (mut once, mut again) = (Vec::new(), Vec::new());
    for body in bodies {
        if once.contains(&body) { again.push(body) } else { once.push(body) }
    }
    let mut ledger = Ledger::default();
    ledger.enter("queue", &once);
    ledger.assert_exactly(&chain.transfers(101, number + 4).await);
    assert!(!again.is_empty());
    let of_the_block = format!("\"blockNumber\":{number},");
    assert!(again.iter().all(|body| body.contains(&of_the_block)), "only that block came twice");
}

/// A replica that claimed a block and died before anything was journaled.
#[tokio::test]
async fn r06_a_claim_of_a_dead_replica_holds_up_its_block_alone_and_not_for_long() {
    let chain = Devchain::start(Options { logs_per_block: 10, ..still(101) }).await;
    let redis = RedisServer::start().await;
    let dead = RedisStore::connect(
        &SecretUrl::parse(&redis.url(DB)).unwrap(),
        Identity { chain_id: 31_337, redis_db: DB, service: "development".into(), owner: "dead".into() },
        Durability::None,
    )
    .await
    .unwrap();
    dead.init(Start::At(101)).await.unwrap();
    dead.heartbeat().await.unwrap();
    assert!(matches!(dead.claim(BlockRange::single(101)).await.unwrap(), ClaimReply::Granted(_)));
    let killed = Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let listener = replica_of(&chain, &redis).start();
    chain.mine(3).await;
    let seen = Cell::new(false);
    eventually("later blocks are not held up", SOON, || async {
        let state = redis.hash(DB, "chain:31337:progress").await;
        let numbers = ["watermark", "tip"].map(|name| state[name].parse::<u64>().unwrap());
        seen.set(seen.get() || numbers == [100, 104]);
        assert!(numbers[0] == 100 || numbers[0] == 104, "the watermark passes nothing: {numbers:?}");
        numbers[1] == 104
    })
    .await;
    assert!(seen.get(), "the block was not held");
    listener.wait_watermark(104, TAKEOVER).await;
    assert!(killed.elapsed() < TAKEOVER, "{:?}", killed.elapsed());
    let mut ledger = Ledger::default();
    stop_all([listener], &mut ledger).await;
    ledger.assert_exactly(&chain.transfers(101, 104).await);
    ledger.assert_once();
}

/// Some blocks above `number` are empty or small; mines until one hangs in the listener's sink.
async fn mine_until_it_hangs(chain: &Devchain, mut number: u64, listener: &Listener) -> u64 {
    let hangs = Cell::new(false);
    while !hangs.get() {
        chain.mine(1).await;
        number += 1;
        eventually("the block hangs or is delivered", SOON, || async {
            hangs.set(listener.hangs().await);
            hangs.get() || listener.watermark().await >= number
        })
        .await;
    }
    number
}

/// R20: a replica that stood still for longer than its heartbeat lives lost its block, and its late commit is harmless.
#[tokio::test]
async fn r20_a_replica_that_slept_commits_late_and_its_successor_has_nothing_left_to_do() {
    let Asleep { chain, redis, first, second, number } = fall_asleep().await;
    first.signal("CONT").await;
    first.read();
    first.wait_watermark(number, SOON).await;
    assert_eq!(claim(&redis, number).await, None, "what is delivered is claimed by nobody, also not by the second");
    second.read();
    finish(&chain, &redis, first, second, number).await;
}

#[tokio::test]
async fn r20_a_replica_that_slept_gives_back_only_what_is_still_its_own() {
    let Asleep { chain, redis, first, second, number } = fall_asleep().await;
    let successor = claim(&redis, number).await;
    first.signal("CONT").await;
    let mut ledger = Ledger::default();
    stop_all([first], &mut ledger).await;
    assert_eq!(claim(&redis, number).await, successor, "the release of the first leaves the claim of the second");
    second.read();
    second.wait_watermark(number, SOON).await;
    stop_all([second], &mut ledger).await;
    ledger.assert_exactly(&chain.transfers(6, number).await);
}

/// Two replicas on one block: the first hangs in its sink and was stopped, the second took over and hangs, too.
struct Asleep {
    chain: Devchain,
    redis: RedisServer,
    first: Listener,
    second: Listener,
    number: u64,
}

async fn fall_asleep() -> Asleep {
    let chain = Devchain::start(loud(5)).await;
    let redis = RedisServer::start().await;
    let settings = replica_of(&chain, &redis).set("START_BLOCK", 6).set("SHUTDOWN_GRACE", "6s");
    let first = settings.start_unread();
    first.wait_ready(true, SOON).await;
    let number = mine_until_it_hangs(&chain, 5, &first).await;
    let held = claim(&redis, number).await;
    assert!(held.is_some());
    let second = settings.start_unread();
    second.wait_ready(true, SOON).await;
    first.signal("STOP").await;
    eventually("the second takes over", TAKEOVER, || async {
        let now = claim(&redis, number).await;
        now.is_some() && now != held
    })
    .await;
    eventually("the second hangs", SOON, || second.hangs()).await;
    Asleep { chain, redis, first, second, number }
}

async fn finish(chain: &Devchain, redis: &RedisServer, first: Listener, second: Listener, number: u64) {
    chain.mine(3).await;
    for replica in [&first, &second] {
        replica.wait_watermark(number + 3, SOON).await;
    }
    eventually("no claim is left", SOON, || async { claims(redis).await.is_empty() }).await;
    let mut ledger = Ledger::default();
    stop_all([first, second], &mut ledger).await;
    ledger.assert_exactly(&chain.transfers(6, number + 3).await);
    assert_eq!(ledger.shared_blocks().into_keys().collect::<Vec<_>>(), [number], "only that block came twice");
}

/// What is journaled was promised: a block is not committed before all of it is sent, also where this replica's own
/// list is shorter.
#[tokio::test]
async fn what_another_replica_journaled_for_a_block_is_sent_before_the_block_is_committed() {
    let chain = Devchain::start(Options { logs_per_block: 0, ..still(101) }).await;
    let redis = RedisServer::start().await;
    let hash = |number: u64| {
        let rpc = chain.rpc();
        async move {
            let block = rpc.call("eth_getBlockByNumber", json!([format!("{number:#x}"), false])).await;
            block["hash"].as_str().unwrap().parse().unwrap()
        }
    };
    let (block, parent) = (BlockRef { number: 101, hash: hash(101).await }, hash(100).await);
    let dead = RedisStore::connect(
        &SecretUrl::parse(&redis.url(DB)).unwrap(),
        Identity { chain_id: 31_337, redis_db: DB, service: "development".into(), owner: "dead".into() },
        Durability::None,
    )
    .await
    .unwrap();
    let Progress { epoch, filter_version, .. } = dead.init(Start::At(101)).await.unwrap().progress;
    let (none, one) = (support::chain::events(block, 0..0), support::chain::events(block, 0..1));
    for events in [&none, &one] {
        let digest = Digest::of(events);
        let intent = Intent { block, parent, epoch, filter_version, digest, events };
        assert_eq!(dead.intent(intent).await.unwrap(), IntentReply::Journaled);
    }
    let listener = replica_of(&chain, &redis).start();
    listener.wait_watermark(101, SOON).await;
    let (_, messages, _) = listener.stop().await;
    let ids: Vec<_> = messages.iter().map(|message| message["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [format!("31337:{}:0", block.hash)]);
}

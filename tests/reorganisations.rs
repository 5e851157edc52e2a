//! Reorganisations, one at a time: what was sent of blocks that left the chain is taken back before anything new is sent,
//! and what a consumer holds that keeps the highest version of each id is the chain. `black_box.rs` does it at random.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test's own functions fail the test

mod support;

use std::{collections::BTreeSet, time::Duration};

use alloy::primitives::{Address, B256};
use chaintap::devchain::Options;
use serde_json::{Value, json};
use support::{
    anvil::{Anvil, OWNER, transferCall},
    chaintap::{Listener, Settings, ids},
    devchain::{Devchain, still},
    mailbox::Mailbox,
    process::eventually,
    puppet::Puppet,
    redis::RedisServer,
    sqs::{Misbehaviour, SqsServer},
};

const SOON: Duration = Duration::from_mins(1);
/// The development chain's Redis database.
const DB: u8 = 15;

/// A chain, a store, and how a listener of them is started that begins at block 101.
struct Scene {
    chain: Devchain,
    redis: RedisServer,
    settings: Settings,
}

impl Scene {
    async fn at(height: u64) -> Self {
        let options = Options { logs_per_block: 10, finalized_depth: 16, safe_depth: 8, ..still(height) };
        let (chain, redis) = tokio::join!(Devchain::start(options), RedisServer::start());
        let settings = Settings::default()
            .set("CHAIN_ID", 31_337)
            .set("WEB3_PROVIDER", chain.ws_url())
            .set("REDIS_URL", redis.url(DB))
            .set("START_BLOCK", 101);
        Self { chain, redis, settings }
    }

    /// Replaces the newest blocks by those of another branch.
    async fn reorganise(&self, depth: u64, length: u64) {
        let params = json!([{ "depth": depth, "length": length, "deep": true }]);
        self.chain.rpc().call("devchain_reorg", params).await;
    }

    async fn transfers(&self, from: u64, to: u64) -> BTreeSet<String> {
        let all = self.chain.transfers(from, to).await;
        assert!(!all.is_empty(), "nothing happened in blocks {from} to {to}");
        all
    }

    /// Waits until a consumer holds the chain from block 101 on.
    async fn wait_right(&self, listeners: &[&Listener]) {
        let canonical = self.transfers(101, self.chain.head().await).await;
        let right = || async {
            let mut fold = Mailbox::default();
            listeners.iter().flat_map(|listener| listener.whole_lines()).for_each(|line| fold.enter(&line));
            fold.difference(&canonical).is_none()
        };
        eventually("what was sent is the chain", SOON, right).await;
    }
}

fn is_retraction(message: &Value) -> bool {
    message["eventType"] == "TransferRetracted"
}

/// The ids that were taken back, which must be before anything else; and what came after them.
fn retracted_first(messages: &[Value]) -> (BTreeSet<String>, &[Value]) {
    let split = messages.iter().position(|message| !is_retraction(message)).unwrap_or(messages.len());
    let (retracted, rest) = messages.split_at(split);
    assert!(!rest.iter().any(is_retraction), "a retraction after something new: {rest:?}");
    (ids(retracted).into_iter().collect(), rest)
}

fn version(messages: &[Value], id: &str, retraction: bool) -> u64 {
    let same = |message: &&Value| message["id"] == id && is_retraction(message) == retraction;
    messages.iter().find(same).expect("the message")["version"].as_u64().unwrap()
}

#[tokio::test]
async fn r16_a_block_that_is_replaced_at_its_height_is_taken_back_and_its_successor_delivered() {
    let scene = Scene::at(101).await;
    let listener = scene.settings.start();
    scene.chain.mine(4).await;
    listener.wait_watermark(105, SOON).await;
    let gone = scene.transfers(105, 105).await;
    let before = listener.line_count();
    scene.reorganise(1, 1).await;
    scene.wait_right(&[&listener]).await;
    listener.wait_watermark(105, SOON).await;
    let messages = listener.messages();
    let (retracted, applied) = retracted_first(&messages[before..]);
    assert_eq!(retracted, gone);
    assert_eq!(ids(applied).into_iter().collect::<BTreeSet<_>>(), scene.transfers(105, 105).await);
    for id in &gone {
        assert!(version(&messages, id, true) > version(&messages, id, false), "{id}");
    }
    let marker: String = scene.redis.cli(DB, "GET chain:31337:block:105").await;
    assert_eq!(marker.split(':').next(), Some(&*scene.chain.hash(105).await));
    assert_eq!(listener.stop().await.0, 0);
}

#[tokio::test]
async fn r17_a_reorganisation_while_it_was_down_is_taken_back_before_anything_is_sent() {
    let scene = Scene::at(105).await;
    let listener = scene.settings.start();
    listener.wait_watermark(105, SOON).await;
    let (_, first, _) = listener.stop().await;
    let gone = scene.transfers(103, 105).await;
    scene.reorganise(3, 4).await;
    let listener = scene.settings.start();
    listener.wait_watermark(106, SOON).await;
    let (code, second, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    let (retracted, applied) = retracted_first(&second);
    assert_eq!(retracted, gone);
    assert_eq!(ids(applied).into_iter().collect::<BTreeSet<_>>(), scene.transfers(103, 106).await);
    let mut fold = Mailbox::default();
    first.iter().chain(&second).for_each(|message| fold.enter(&message.to_string()));
    assert_eq!(fold.difference(&scene.transfers(101, 106).await), None);
}

#[tokio::test]
async fn r18_a_transaction_that_is_included_again_is_another_event() {
    let anvil = Anvil::start(31_337, &["--no-mining"]).await;
    let token = anvil.deploy_token().await;
    anvil.mine(10).await;
    let settings = Settings::default().set("CHAIN_ID", 31_337).set("WEB3_PROVIDER", anvil.rpc.ws_url());
    let listener = settings.set("START_BLOCK", 8).start();
    listener.wait_watermark(11, SOON).await;
    let nonce = anvil.rpc.call("eth_getTransactionCount", json!([OWNER, "latest"])).await;
    let call = transferCall { to: Address::repeat_byte(1), value: alloy::primitives::U256::from(5) };
    let data = alloy::primitives::hex::encode_prefixed(alloy::sol_types::SolCall::abi_encode(&call));
    let transaction = json!({
        "to": token, "data": data, "nonce": nonce, "gas": "0x1c9c380",
        "maxFeePerGas": "0x12a05f2000", "maxPriorityFeePerGas": "0x3b9aca00",
    });
    let first: B256 = anvil.send(transaction.clone()).await;
    anvil.mine(1).await;
    listener.wait_watermark(12, SOON).await;
    eventually("it is delivered", SOON, || async { listener.line_count() == 1 }).await;
    anvil.rollback(1).await;
    anvil.rpc.call("anvil_dropAllTransactions", json!([])).await;
    anvil.mine(1).await;
    assert_eq!(anvil.send(transaction).await, first, "the same transaction");
    anvil.mine(1).await;
    eventually("it is delivered again", SOON, || async { listener.line_count() == 3 }).await;
    listener.wait_watermark(13, SOON).await;
    let (_, messages, log) = listener.stop().await;
    let shape: Vec<_> = messages
        .iter()
        .map(|message| (is_retraction(message), message["blockNumber"].as_u64().unwrap(), message["logIndex"].clone()))
        .collect();
    assert_eq!(shape, [(false, 12, json!(0)), (true, 12, json!(0)), (false, 13, json!(0))], "{log}");
    assert!(messages.iter().all(|message| message["transactionHash"] == first.to_string()));
    assert_eq!(messages[0]["id"], messages[1]["id"]);
    assert_ne!(messages[0]["id"], messages[2]["id"]);
}

/// The queue has a block's messages, its answer is lost, the process dies, and the block leaves the chain.
#[tokio::test]
async fn f25_what_was_sent_and_never_committed_is_taken_back_too() {
    let (scene, queues) = tokio::join!(Scene::at(104), SqsServer::stub());
    let url = queues.create_queue("transfers", 256 << 10).await;
    let settings = scene.settings.clone().queue(&queues, &url);
    let listener = settings.start();
    listener.wait_watermark(104, SOON).await;
    queues.script([Misbehaviour::LoseAnswer]);
    scene.chain.mine(1).await;
    eventually("the block hangs in the sink", SOON, || listener.hangs()).await;
    let gone = scene.transfers(105, 105).await;
    listener.crash().await;
    scene.reorganise(1, 2).await;
    let listener = settings.start();
    listener.wait_watermark(106, SOON).await;
    assert_eq!(listener.stop().await.0, 0);
    let mut fold = Mailbox::default();
    let bodies: Vec<String> = queues.drain(&url).await.into_iter().map(|message| message.body).collect();
    for body in &bodies {
        fold.enter(body);
    }
    assert_eq!(fold.difference(&scene.transfers(101, 106).await), None);
    assert_eq!(fold.taken_back().map(str::to_owned).collect::<BTreeSet<_>>(), gone);
    let sent: BTreeSet<&String> = bodies.iter().filter(|body| body.contains("\"blockNumber\":105,")).collect();
    assert!(sent.len() > gone.len(), "some of it was sent before");
}

#[tokio::test]
async fn f26_a_chain_that_goes_back_to_its_first_branch_applies_the_same_ids_again() {
    let scene = Scene::at(105).await;
    let listener = scene.settings.start();
    listener.wait_watermark(105, SOON).await;
    let a = scene.transfers(103, 105).await;
    scene.reorganise(3, 4).await;
    scene.wait_right(&[&listener]).await;
    scene.chain.rpc().call("devchain_flip", json!([1])).await;
    scene.wait_right(&[&listener]).await;
    let messages = listener.messages();
    for id in &a {
        let same: Vec<_> = messages.iter().filter(|message| message["id"] == **id).collect();
        assert_eq!(same.iter().map(|message| is_retraction(message)).collect::<Vec<_>>(), [false, true, false], "{id}");
        assert!(same.is_sorted_by_key(|message| message["version"].as_u64()), "{id}");
        let mut again = same[2].clone();
        again["version"] = same[0]["version"].clone();
        assert_eq!(&again, same[0], "the same but for its version");
    }
    assert_eq!(listener.health().await["reorgs"], 2);
}

#[tokio::test]
async fn f28_a_head_that_goes_back_for_a_while_takes_nothing_back() {
    let scene = Scene::at(110).await;
    let listener = scene.settings.start();
    listener.wait_watermark(110, SOON).await;
    let before = listener.line_count();
    scene.reorganise(4, 0).await;
    eventually("it sees the lower head", SOON, || async { listener.health().await["head"]["number"] == 106 }).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let health = listener.health().await;
    assert_eq!((&health["watermark"], &health["reorgs"]), (&json!(110), &json!(0)), "{health}");
    scene.chain.rpc().call("devchain_flip", json!([0])).await;
    scene.chain.mine(3).await;
    listener.wait_watermark(113, SOON).await;
    let (_, messages, log) = listener.stop().await;
    assert_eq!(ids(&messages[before..]).into_iter().collect::<BTreeSet<_>>(), scene.transfers(111, 113).await, "{log}");
}

#[tokio::test]
async fn a_shorter_chain_is_told_in_health_with_what_will_come_of_it() {
    let scene = Scene::at(110).await;
    let listener = scene.settings.start();
    listener.wait_watermark(110, SOON).await;
    scene.reorganise(5, 2).await;
    let told = "the head, block 107, is below delivered blocks and on another chain: nothing is delivered; what left is taken \
                back if it stays for 1 min";
    eventually("it is told", SOON, || async { listener.health().await["reasons"].to_string().contains(told) }).await;
    scene.chain.mine(4).await;
    scene.wait_right(&[&listener]).await;
    eventually("and over", SOON, || async { !listener.health().await["reasons"].to_string().contains("the head,") })
        .await;
    assert_eq!(listener.stop().await.0, 0);
}

/// F27: blocks 101 to 140 are a gap that is still being filled while its middle leaves the chain.
#[tokio::test]
async fn f27_a_reorganisation_under_an_open_gap_is_found_in_every_part() {
    let scene = Scene::at(140).await;
    let puppet = Puppet::before(scene.chain.rpc(), 112).await;
    let settings = scene.settings.clone().set("WEB3_PROVIDER", puppet.url());
    let listener = settings.start();
    listener.wait_watermark(112, SOON).await;
    // The head comes first; the gap behind it opens, and the node's answers are slow to fill it.
    puppet.tell(140).await;
    eventually("the head is delivered", SOON, || async { listener.health().await["processed"] == 140 }).await;
    scene.reorganise(30, 31).await;
    puppet.tell(141).await;
    scene.wait_right(&[&listener]).await;
    listener.wait_watermark(141, SOON).await;
    assert_eq!(listener.stop().await.0, 0);
}

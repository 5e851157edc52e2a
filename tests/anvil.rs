//! The listener on a node that was not written here: what anvil mines is what the queue holds, also across outages.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]

mod support;

use std::{fs, time::Duration};

use alloy::primitives::{Address, B256, Bytes, U256, hex};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use support::{
    anvil::{Anvil, OWNER},
    chaintap::{Listener, Settings},
    message,
    mongo::Mongo,
    process::eventually,
    proxy::Proxy,
    redis::RedisServer,
    sqs::SqsServer,
};

const CHAIN: u64 = 31_337;
const SOON: Duration = Duration::from_secs(30);
/// A socket that is silent for 30 s is not trusted any more, and a request is given up after 20: what arrives sooner was
/// announced by the socket, or polled without waiting for one.
const SOONER_THAN_SILENCE: Duration = Duration::from_secs(15);
/// Four times as many transfers fill more than the 16 MiB that a WebSocket's frame usually may have.
const LARGE_BURST: u64 = 7_000;
const ALICE: Address = Address::repeat_byte(0xa1);
const BOB: Address = Address::repeat_byte(0xb0);

/// A node that mines on request with a token in block 1, and the servers of a listener.
struct Stage {
    anvil: Anvil,
    token: Address,
    redis: RedisServer,
    sqs: SqsServer,
}

impl Stage {
    async fn set() -> Self {
        let node = async {
            let anvil = Anvil::start(CHAIN, &["--no-mining"]).await;
            let token = anvil.deploy_token().await;
            (anvil, token)
        };
        let ((anvil, token), redis, sqs) = tokio::join!(node, RedisServer::start(), SqsServer::fauxqs());
        Self { anvil, token, redis, sqs }
    }

    /// A listener from block 1 on, and its queue.
    async fn listener(&self, queue: &str, providers: &str) -> (Settings, String) {
        let queue = self.sqs.create_queue(queue, 262_144).await;
        let settings = Settings::default()
            .set("CHAIN_ID", CHAIN)
            .set("WEB3_PROVIDER", providers)
            .set("REDIS_URL", format!("redis://127.0.0.1:{}", self.redis.port))
            .set("START_BLOCK", 1)
            .queue(&self.sqs, &queue);
        (settings, queue)
    }

    fn ws(&self) -> String {
        self.anvil.rpc.ws_url()
    }

    fn http(&self) -> &str {
        &self.anvil.rpc.url
    }

    /// Sends one transfer of this many units.
    async fn pay(&self, to: Address, value: u64) -> B256 {
        self.anvil.transfer(self.token, to, U256::from(value)).await
    }

    /// Mines one block of what was sent; its number.
    async fn mine(&self) -> u64 {
        self.anvil.mine(1).await;
        number(&self.anvil.rpc.call("eth_blockNumber", json!([])).await)
    }

    /// Sends one transfer and mines it; its block.
    async fn pay_in_a_block(&self, value: u64) -> u64 {
        self.pay(ALICE, value).await;
        self.mine().await
    }

    /// What the queue must hold of these blocks, in order; the messages without their versions.
    async fn transfers(&self, from: u64, to: u64) -> Vec<Value> {
        let topic = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
        let mut messages = Vec::new();
        for height in from..=to {
            let height = format!("{height:#x}");
            let block = self.anvil.rpc.call("eth_getBlockByNumber", json!([height, false])).await;
            let filter = json!([{ "blockHash": block["hash"], "topics": [topic] }]);
            let logs = self.anvil.rpc.call("eth_getLogs", filter).await;
            messages.extend(logs.as_array().unwrap().iter().map(|log| transfer(log, &block)));
        }
        messages
    }

    /// Everything in the queue, checked, without versions.
    async fn drain(&self, queue: &str) -> Vec<Value> {
        unversioned(message::all_checked(&self.sqs.drain(queue).await))
    }
}

fn number(hex: &Value) -> u64 {
    u64::from_str_radix(hex.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

fn unversioned(mut messages: Vec<Value>) -> Vec<Value> {
    for message in &mut messages {
        let version = message.as_object_mut().unwrap().remove("version").unwrap();
        assert!(version.as_u64().unwrap() > 0, "{message}");
    }
    messages
}

/// The message of a transfer, from what the node says of it.
fn transfer(log: &Value, block: &Value) -> Value {
    let address = |word: &Value| Address::from_word(serde_json::from_value(word.clone()).unwrap()).to_checksum(None);
    let data: Bytes = serde_json::from_value(log["data"].clone()).unwrap();
    let arguments = json!({
        "from": address(&log["topics"][1]),
        "to": address(&log["topics"][2]),
        "value": U256::from_be_slice(&data).to_string(),
    });
    json!({ "events": { "Transfer": arguments }, "eventType": "Transfer", "contract": "Transfers" })
        .as_object()
        .unwrap()
        .clone()
        .into_iter()
        .chain(place(log, block))
        .collect()
}

/// The members of a message that say where its log stands.
fn place(log: &Value, block: &Value) -> serde_json::Map<String, Value> {
    let emitter: Address = serde_json::from_value(log["address"].clone()).unwrap();
    let place = json!({
        "contractAddress": emitter.to_checksum(None),
        "chainId": CHAIN,
        "id": format!("{CHAIN}:{}:{}", block["hash"].as_str().unwrap(), number(&log["logIndex"])),
        "schemaVersion": 1,
        "blockNumber": number(&block["number"]),
        "blockHash": block["hash"],
        "blockTimestamp": number(&block["timestamp"]),
        "transactionHash": log["transactionHash"],
        "transactionIndex": number(&log["transactionIndex"]),
        "logIndex": number(&log["logIndex"]),
    });
    place.as_object().unwrap().clone()
}

async fn stop(listener: Listener) {
    let (code, printed, log) = listener.stop().await;
    assert_eq!((code, printed.len()), (0, 0), "{log}");
}

#[tokio::test]
async fn every_transfer_arrives_with_the_fields_that_the_node_states() {
    let (stage, mongo) = tokio::join!(Stage::set(), Mongo::start());
    let unlisted = stage.anvil.deploy_token().await;
    let (settings, queue) = stage.listener("transfers", &stage.ws()).await;
    let settings = settings.tokens(&mongo, "shop");
    let token = stage.token.to_checksum(None);
    let add = ["tokens", "add", "--address", &token, "--symbol", "test", "--name", "Test Token", "--decimals", "18"];
    let (code, _, log) = settings.output(&add).await;
    assert_eq!(code, 0, "{log}");

    let listener = settings.start();
    listener.wait_watermark(2, SOON).await;
    stage.pay(ALICE, 7).await;
    stage.anvil.transfer(unlisted, ALICE, U256::from(1)).await;
    stage.anvil.named(stage.token, "no transfer").await;
    let half = U256::MAX >> 1_usize;
    stage.anvil.transfer(stage.token, BOB, half).await;
    let last = stage.mine().await;
    listener.wait_watermark(last, SOONER_THAN_SILENCE).await;
    stop(listener).await;

    let mut expected = stage.transfers(1, last).await;
    expected.retain(|message| message["contractAddress"] == token);
    for message in &mut expected {
        message["token"] = json!({ "symbol": "TEST", "name": "Test Token", "decimals": 18 });
    }
    let messages = stage.drain(&queue).await;
    assert_eq!(messages, expected);
    // As the test meant them: one minted with the contract, and two in one block, apart from each other.
    let values: Vec<&Value> = messages.iter().map(|message| &message["events"]["Transfer"]["value"]).collect();
    assert_eq!(json!(values), json!([U256::MAX.to_string(), "7", half.to_string()]));
    let places: Vec<&Value> = messages.iter().map(|message| &message["transactionIndex"]).collect();
    assert_eq!(places, [0, 0, 3]);
}

#[tokio::test]
async fn a_block_with_a_thousand_transfers_arrives_complete_and_in_order() {
    let stage = Stage::set().await;
    let (settings, queue) = stage.listener("transfers", &stage.ws()).await;
    let listener = settings.start();
    listener.wait_watermark(1, SOON).await;
    stage.anvil.burst(stage.token, ALICE, 600).await;
    stage.anvil.burst(stage.token, BOB, 401).await;
    let last = stage.mine().await;
    listener.wait_watermark(last, SOON).await;
    stop(listener).await;
    let messages = stage.drain(&queue).await;
    assert_eq!(messages.len(), 1 + 1_001);
    assert_eq!(messages, stage.transfers(1, last).await);
}

#[tokio::test]
async fn blocks_mined_while_the_node_is_out_of_reach_follow_in_order() {
    let stage = Stage::set().await;
    let proxy = Proxy::before(stage.http()).await;
    let (settings, queue) = stage.listener("transfers", &format!("ws://{}", proxy.address)).await;
    let listener = settings.start();
    listener.wait_watermark(1, SOON).await;
    wait_sockets(&listener, 1).await;

    proxy.cut().await;
    stage.pay_in_a_block(2).await;
    let missed = stage.pay_in_a_block(3).await;
    eventually("the loss is noticed", SOON, || async { listener.log().contains("no WebSocket") }).await;
    proxy.restore();
    listener.wait_watermark(missed, SOON).await;
    wait_sockets(&listener, 2).await;
    let last = stage.pay_in_a_block(4).await;
    listener.wait_watermark(last, SOONER_THAN_SILENCE).await;

    assert!(!listener.log().contains("ERROR"), "a socket that closes is routine: {}", listener.log());
    stop(listener).await;
    assert_eq!(stage.drain(&queue).await, stage.transfers(1, last).await);
}

#[tokio::test]
async fn while_only_the_socket_is_down_or_dead_the_head_is_polled() {
    let stage = Stage::set().await;
    let proxy = Proxy::before(stage.http()).await;
    let providers = format!("{},ws://{}", stage.http(), proxy.address);
    let (settings, queue) = stage.listener("transfers", &providers).await;
    let listener = settings.start();
    listener.wait_watermark(1, SOON).await;
    wait_sockets(&listener, 1).await;

    proxy.cut().await;
    stage.pay_in_a_block(2).await;
    let down = stage.pay_in_a_block(3).await;
    listener.wait_watermark(down, SOON).await;
    // Whoever connects now waits for an answer that does not come.
    proxy.silence();
    eventually("a socket is tried", SOON, || async { proxy.lines() > 0 }).await;
    for value in 4..7 {
        let block = stage.pay_in_a_block(value).await;
        listener.wait_watermark(block, SOONER_THAN_SILENCE).await;
    }
    proxy.restore();
    wait_sockets(&listener, 2).await;
    let last = stage.pay_in_a_block(7).await;
    listener.wait_watermark(last, SOONER_THAN_SILENCE).await;

    stop(listener).await;
    assert_eq!(stage.drain(&queue).await, stage.transfers(1, last).await);
}

#[tokio::test]
async fn a_socket_that_falls_silent_is_given_up() {
    let stage = Stage::set().await;
    let proxy = Proxy::before(stage.http()).await;
    let providers = format!("{},ws://{}", stage.http(), proxy.address);
    let (settings, queue) = stage.listener("transfers", &providers).await;
    let listener = settings.start();
    listener.wait_watermark(1, SOON).await;
    wait_sockets(&listener, 1).await;
    // A socket is relied on once it has told of something.
    for value in 2..4 {
        let heard = stage.pay_in_a_block(value).await;
        listener.wait_watermark(heard, SOON).await;
    }

    // The line stands, and nobody says that it is dead.
    proxy.silence();
    stage.pay_in_a_block(4).await;
    let unheard = stage.pay_in_a_block(5).await;
    listener.wait_watermark(unheard, Duration::from_mins(1)).await;
    let given_up = || async { listener.log().contains("no WebSocket") };
    eventually("the socket is given up", Duration::from_mins(1), given_up).await;
    proxy.restore();
    wait_sockets(&listener, 2).await;
    let last = stage.pay_in_a_block(6).await;
    listener.wait_watermark(last, SOONER_THAN_SILENCE).await;

    stop(listener).await;
    assert_eq!(stage.drain(&queue).await, stage.transfers(1, last).await);
}

/// Waits until heads have come over this many sockets, one after the other.
async fn wait_sockets(listener: &Listener, sockets: usize) {
    let opened = || async { listener.log().matches("heads come over the WebSocket").count() >= sockets };
    eventually("heads come over a WebSocket", SOON, opened).await;
}

#[tokio::test]
async fn without_a_socket_the_head_is_polled() {
    let stage = Stage::set().await;
    let (settings, queue) = stage.listener("transfers", stage.http()).await;
    let listener = settings.start();
    listener.wait_watermark(1, SOON).await;
    let mut last = 1;
    for value in 2..5 {
        last = stage.pay_in_a_block(value).await;
        listener.wait_watermark(last, SOON).await;
    }
    assert!(!listener.log().contains("WebSocket"), "{}", listener.log());
    stop(listener).await;
    assert_eq!(stage.drain(&queue).await, stage.transfers(1, last).await);
}

#[tokio::test]
async fn a_node_without_http_serves_everything_over_its_socket() {
    let stage = Stage::set().await;
    let proxy = Proxy::for_sockets(stage.http()).await;
    // No queue: what is large here is the answer of the node.
    let settings = Settings::default()
        .set("CHAIN_ID", CHAIN)
        .set("WEB3_PROVIDER", format!("ws://{}", proxy.address))
        .set("START_BLOCK", 1);
    let listener = settings.start();
    listener.wait_watermark(1, SOON).await;
    for _ in 0..4 {
        stage.anvil.burst(stage.token, ALICE, LARGE_BURST).await;
    }
    let large = stage.mine().await;
    listener.wait_watermark(large, Duration::from_mins(1)).await;

    proxy.cut().await;
    stage.pay_in_a_block(2).await;
    stage.pay_in_a_block(3).await;
    proxy.restore();
    let last = stage.pay_in_a_block(4).await;
    listener.wait_watermark(last, SOON).await;
    let (code, messages, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    let (in_large, others): (Vec<Value>, Vec<Value>) =
        messages.into_iter().partition(|message| message["blockNumber"] == large);
    assert_eq!(u64::try_from(in_large.len()).unwrap(), 4 * LARGE_BURST);
    for (index, message) in (0u64..).zip(&in_large) {
        let value = (index % LARGE_BURST + 1).to_string();
        assert_eq!((&message["logIndex"], &message["events"]["Transfer"]["value"]), (&json!(index), &json!(value)));
    }
    let mut expected = stage.transfers(1, 1).await;
    expected.extend(stage.transfers(large + 1, last).await);
    assert_eq!(unversioned(others), expected);
}

#[tokio::test]
async fn the_history_of_the_chain_is_delivered_by_ranges() {
    let stage = Stage::set().await;
    for value in 1..=12 {
        stage.pay_in_a_block(value).await;
        stage.anvil.mine(17).await;
    }
    let last = stage.mine().await;
    let (settings, queue) = stage.listener("transfers", stage.http()).await;
    let (code, _, log) = settings.arg("--until").arg(last).start().end(SOON).await;
    assert_eq!(code, 0, "{log}");
    assert!(log.contains(r#""range":"1..99""#), "{log}");
    let mut messages = stage.drain(&queue).await;
    messages.sort_by_key(|message| message["blockNumber"].as_u64());
    assert_eq!(messages, stage.transfers(1, last).await);
}

#[tokio::test]
async fn on_a_fifo_queue_each_contract_is_a_group_in_the_order_of_its_logs() {
    let stage = Stage::set().await;
    let second = stage.anvil.deploy_token().await;
    let (settings, queue) = stage.listener("transfers.fifo", &stage.ws()).await;
    let listener = settings.start();
    listener.wait_watermark(2, SOON).await;
    for value in 0..15 {
        stage.pay(ALICE, value).await;
        stage.anvil.transfer(second, BOB, U256::from(value)).await;
    }
    let last = stage.mine().await;
    listener.wait_watermark(last, SOON).await;
    stop(listener).await;

    let received = stage.sqs.drain(&queue).await;
    for received in &received {
        let message = message::checked(received);
        let text = |name: &str| message[name].as_str().unwrap().to_owned();
        assert_eq!(received.group, Some(format!("{CHAIN}:{}", text("contractAddress"))));
        let identity = format!("{}|{}|{}", text("id"), message["version"], text("eventType"));
        assert_eq!(received.deduplication_id, Some(hex::encode(Sha256::digest(identity))));
    }
    let messages = unversioned(message::all_checked(&received));
    let expected = stage.transfers(1, last).await;
    for token in [stage.token, second] {
        let of = |messages: &[Value]| -> Vec<Value> {
            let address = token.to_checksum(None);
            messages.iter().filter(|message| message["contractAddress"] == address).cloned().collect()
        };
        assert_eq!(of(&messages), of(&expected));
        assert_eq!(of(&messages).len(), 1 + 15);
    }
    assert_eq!(messages.len(), expected.len());
}

const CONTRACTS: &str = r#"
[[contract]]
name = "Transfers"
abi = "abi/token.json"

[[contract.event]]
name = "Transfer"
handler = "handleTransferEvent"

[[contract]]
name = "Names"
abi = "abi/token.json"
address = "${NAMED_TOKEN}"

[[contract.event]]
name = "Named"
handler = "handleNamed"

[[handler]]
name = "handleNamed"
queue = "${NAMED_SQS}"
"#;

#[tokio::test]
async fn another_event_and_a_second_queue_take_no_code() {
    let stage = Stage::set().await;
    let other = stage.anvil.deploy_token().await;
    let names = stage.sqs.create_queue("names", 262_144).await;
    let (settings, queue) = stage.listener("transfers", &stage.ws()).await;
    let settings = settings.set("NAMED_TOKEN", stage.token.to_checksum(None)).set("NAMED_SQS", &names);
    fs::create_dir_all(settings.home().join("config")).unwrap();
    fs::create_dir_all(settings.home().join("abi")).unwrap();
    fs::write(settings.home().join("config/contracts.toml"), CONTRACTS).unwrap();
    fs::write(settings.home().join("abi/token.json"), include_str!("support/erc20.json")).unwrap();

    let listener = settings.start();
    listener.wait_watermark(2, SOON).await;
    let text = "Zoë said \"hi\"\n\u{1f980}";
    stage.pay(ALICE, 5).await;
    stage.anvil.named(other, "of a contract that nobody asked for").await;
    stage.anvil.named(stage.token, text).await;
    let last = stage.mine().await;
    listener.wait_watermark(last, SOON).await;
    let log = listener.log();
    assert!(log.contains("handleNamed") && log.contains("SQS names"), "{log}");
    stop(listener).await;

    assert_eq!(stage.drain(&queue).await, stage.transfers(1, last).await);
    let block = stage.anvil.rpc.call("eth_getBlockByNumber", json!([format!("{last:#x}"), false])).await;
    let filter = json!([{ "blockHash": block["hash"], "address": stage.token }]);
    let logs = stage.anvil.rpc.call("eth_getLogs", filter).await;
    let mut message = place(&logs[1], &block);
    message.insert("eventType".into(), json!("Named"));
    message.insert("contract".into(), json!("Names"));
    message.insert("events".into(), json!({ "Named": { "owner": OWNER.to_checksum(None), "name": text } }));
    assert_eq!(stage.drain(&names).await, [Value::Object(message)]);
}

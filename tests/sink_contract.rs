//! What every sink promises, on every server that speaks its protocol.
//!
//! Order, an acknowledgement that means the message can be read, outcomes per message, limits in bytes; and for the
//! queue that misbehaves, that exactly the messages that failed are sent again.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]

use std::{collections::BTreeMap, io::Read as _, sync::Arc, time::Duration};

use alloy::primitives::{Address, B256, U256, address, keccak256};
use chaintap::{
    domain::{Args, BlockRef, Event, Token},
    sinks::{Message, Outcome, Sink, SinkError, sqs::SqsSink, stdout::StdoutSink},
};
use serde_json::Value;
use support::sqs::{Misbehaviour, Received, SqsServer};

mod support;

const PATIENCE: Duration = Duration::from_secs(30);
const KIB: usize = 1 << 10;
const USDC: Address = address!("a0b86991c6218b36c1d19d4a2e9eb0ce3606eb48");
const WETH: Address = address!("c02aaa39b223fe8d0a0e5c4f27ead9083c756cc2");
const DAI: Address = address!("6b175474e89094c44da98b954eedeac495271d0f");

fn event(token: Address, log_index: u64) -> Event {
    Event {
        block: BlockRef { number: 17_000_000, hash: keccak256("block") },
        timestamp: 1_680_911_891,
        transaction_hash: keccak256(log_index.to_be_bytes()),
        transaction_index: log_index / 2,
        log_index,
        address: token,
        contract: "Transfers".into(),
        name: "Transfer".into(),
        handler: "handleTransferEvent".into(),
        args: Args::Transfer {
            from: Address::ZERO,
            to: Address::from_word(B256::from(U256::from(log_index))),
            value: U256::MAX,
        },
        token: Some(Arc::new(Token {
            address: token,
            symbol: "TÖK".to_owned(),
            name: "Tökén \"𝄞\"".to_owned(),
            decimals: 18,
        })),
    }
}

fn transfer(token: Address, log_index: u64) -> Message {
    Message::apply(&event(token, log_index), 1, 1_758_645_000)
}

fn transfers(count: u64) -> Vec<Message> {
    (0..count).map(|log_index| transfer(USDC, log_index)).collect()
}

/// A message of about this size.
fn large(log_index: u64, bytes: usize) -> Message {
    let note = format!("{{\"note\":\"{}\",\"tags\":[1,{{\"deep\":true}}]}}", "x".repeat(bytes - KIB));
    let event = Event { name: "Noted".into(), args: Args::Json(note.into()), ..event(USDC, log_index) };
    Message::apply(&event, 1, 1)
}

/// As the configuration names the sink of a queue.
fn name_of(url: &str) -> String {
    format!("sqs:{}", url.trim_end_matches('/').rsplit('/').next().unwrap())
}

async fn sink(server: &SqsServer, url: &str) -> SqsSink {
    SqsSink::connect(&server.access(), &name_of(url), url, PATIENCE).await.unwrap()
}

fn bodies(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(Message::body).collect()
}

fn received_bodies(received: &[Received]) -> Vec<&str> {
    received.iter().map(|message| message.body.as_str()).collect()
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort_unstable();
    list
}

fn all_acknowledged(outcomes: &[Outcome]) -> bool {
    outcomes.iter().all(|outcome| *outcome == Outcome::Acknowledged)
}

/// Sends what is not acknowledged or refused until nothing is left, as the pipeline does but without its pauses; the
/// reasons of what was refused.
async fn deliver(sink: &dyn Sink, mut pending: Vec<Message>) -> Vec<String> {
    let mut refused = Vec::new();
    for _ in 0..100 {
        if pending.is_empty() {
            return refused;
        }
        let outcomes = sink.send(&pending).await;
        assert_eq!(outcomes.len(), pending.len());
        let mut again = Vec::new();
        for (message, outcome) in pending.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Acknowledged => {}
                Outcome::Refused(reason) => refused.push(reason),
                Outcome::Retry { .. } | Outcome::Held => again.push(message),
            }
        }
        pending = again;
    }
    panic!("{} messages are still pending after 100 calls", pending.len());
}

mod contract {
    //! What holds on every queue server.

    use super::*;

    pub(super) async fn holds_on(server: &SqsServer) {
        what_is_acknowledged_can_be_read_with_its_attributes(server).await;
        bodies_follow_the_schema(server).await;
        a_fifo_queue_keeps_the_order_within_a_group(server).await;
        a_fifo_queue_takes_a_message_once_and_a_later_version_again(server).await;
        large_messages_all_arrive_within_the_queues_limit(server).await;
        a_message_that_is_too_large_is_refused_and_the_rest_goes_on(server).await;
        a_missing_queue_holds_progress_and_fails_the_check(server).await;
    }

    async fn what_is_acknowledged_can_be_read_with_its_attributes(server: &SqsServer) {
        let url = server.create_queue("readable", 256 * KIB).await;
        let sink = sink(server, &url).await;
        assert_eq!(sink.name(), "sqs:readable");
        sink.check().await.unwrap();
        let messages = transfers(25);
        assert!(all_acknowledged(&sink.send(&messages).await));
        let received = server.drain(&url).await;
        assert_eq!(sorted(received_bodies(&received)), sorted(bodies(&messages)));
        for message in received {
            let body: Value = serde_json::from_str(&message.body).unwrap();
            let string = |value: &str| ("String".to_owned(), value.to_owned());
            let expected = BTreeMap::from([
                ("eventType".to_owned(), string("Transfer")),
                ("chainId".to_owned(), string("1")),
                ("contractAddress".to_owned(), string("0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48")),
                ("id".to_owned(), string(body["id"].as_str().unwrap())),
            ]);
            assert_eq!(message.attributes, expected);
            assert_eq!((message.group, message.deduplication_id), (None, None));
        }
    }

    async fn bodies_follow_the_schema(server: &SqsServer) {
        let url = server.create_queue("schema", 256 * KIB).await;
        let mut messages = transfers(3);
        messages.push(large(7, 2 * KIB));
        messages.push(Message::apply(&Event { token: None, ..event(USDC, 8) }, 8453, 0));
        assert!(deliver(&sink(server, &url).await, messages).await.is_empty());
        let received = server.drain(&url).await;
        assert_eq!(received.len(), 5);
        for message in &received {
            assert_follows_schema(&message.body);
        }
    }

    async fn a_fifo_queue_keeps_the_order_within_a_group(server: &SqsServer) {
        let url = server.create_queue("order.fifo", 256 * KIB).await;
        let tokens = [USDC, USDC, WETH, USDC, DAI, WETH, USDC, USDC, WETH, USDC, USDC, USDC, DAI];
        let messages: Vec<_> = tokens.iter().zip(0..).map(|(token, index)| transfer(*token, index)).collect();
        assert!(all_acknowledged(&sink(server, &url).await.send(&messages).await));
        let received = server.drain(&url).await;
        for token in [USDC, WETH, DAI] {
            let group = format!("1:{}", token.to_checksum(None));
            let of_group = |message: &&Received| message.group.as_deref() == Some(&group);
            let got: Vec<_> = received.iter().filter(of_group).map(|message| &message.body).collect();
            let sent: Vec<_> = messages.iter().filter(|m| m.group() == group).map(Message::body).collect();
            assert_eq!(got, sent);
        }
        let ids: Vec<_> = received.iter().map(|message| message.deduplication_id.clone().unwrap()).collect();
        assert_eq!(sorted(ids), sorted(messages.iter().map(Message::deduplication_id).collect()));
    }

    async fn a_fifo_queue_takes_a_message_once_and_a_later_version_again(server: &SqsServer) {
        let url = server.create_queue("once.fifo", 256 * KIB).await;
        let sink = sink(server, &url).await;
        let first = Message::apply(&event(USDC, 0), 1, 5);
        let later = Message::apply(&event(USDC, 0), 1, 6);
        for message in [&first, &first, &later] {
            assert!(all_acknowledged(&sink.send(std::slice::from_ref(message)).await));
        }
        assert_eq!(received_bodies(&server.drain(&url).await), [first.body(), later.body()]);
    }

    async fn large_messages_all_arrive_within_the_queues_limit(server: &SqsServer) {
        let messages: Vec<_> = (0..25).map(|index| large(index, 110 * KIB)).collect();
        for (name, limit) in [("large-256k", 256 * KIB), ("large-1m", 1024 * KIB)] {
            let url = server.create_queue(name, limit).await;
            assert!(all_acknowledged(&sink(server, &url).await.send(&messages).await), "{name}");
            let received = server.drain(&url).await;
            assert_eq!(sorted(received_bodies(&received)), sorted(bodies(&messages)), "{name}");
        }
    }

    async fn a_message_that_is_too_large_is_refused_and_the_rest_goes_on(server: &SqsServer) {
        for name in ["too-large", "too-large.fifo"] {
            let url = server.create_queue(name, 16 * KIB).await;
            let messages = [large(0, 2 * KIB), large(1, 40 * KIB), large(2, 2 * KIB)];
            let outcomes = sink(server, &url).await.send(&messages).await;
            assert!(
                matches!(&outcomes[..], [Outcome::Acknowledged, Outcome::Refused(reason), Outcome::Acknowledged]
                    if reason.starts_with("too large: ") && reason.ends_with(" bytes, limit 16384")),
                "{outcomes:?}"
            );
            assert_eq!(received_bodies(&server.drain(&url).await), [messages[0].body(), messages[2].body()]);
        }
    }

    async fn a_missing_queue_holds_progress_and_fails_the_check(server: &SqsServer) {
        let url = server.create_queue("there", 16 * KIB).await.replace("there", "not-there");
        let sink = sink(server, &url).await;
        let outcomes = sink.send(&transfers(2)).await;
        let held = |outcome: &Outcome| {
            matches!(outcome, Outcome::Retry { reason, throttled: false }
            if reason.contains("the queue does not exist"))
        };
        assert!(outcomes.len() == 2 && outcomes.iter().all(held), "{outcomes:?}");
        let error = sink.check().await.unwrap_err();
        assert!(matches!(&error, SinkError::Fatal(reason) if reason.contains("the queue does not exist")), "{error}");
    }
}

#[tokio::test]
async fn the_contract_holds_on_fauxqs() {
    contract::holds_on(&SqsServer::fauxqs().await).await;
}

#[tokio::test]
async fn the_contract_holds_on_moto() {
    contract::holds_on(&SqsServer::moto().await).await;
}

#[tokio::test]
async fn the_contract_holds_on_the_stub() {
    contract::holds_on(&SqsServer::stub().await).await;
}

#[tokio::test]
async fn standard_output_gives_every_acknowledged_message_as_a_line_in_order() {
    let (mut reader, out) = std::io::pipe().unwrap();
    let messages = transfers(250);
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    assert!(all_acknowledged(&StdoutSink::writing_to(out, PATIENCE).send(&messages).await));
    let text = reading.await.unwrap().unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), bodies(&messages));
    text.lines().for_each(assert_follows_schema);
}

/// A stub with one queue, the sink on it, and the queue's URL.
async fn stubbed(queue: &str, patience: Duration) -> (SqsServer, SqsSink, String) {
    let server = SqsServer::stub().await;
    let url = server.create_queue(queue, 256 * KIB).await;
    let sink = SqsSink::connect(&server.access(), &name_of(&url), &url, patience).await.unwrap();
    (server, sink, url)
}

fn ids(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|message| message.id().to_owned()).collect()
}

#[tokio::test]
async fn of_a_batch_in_which_the_entries_3_and_7_failed_exactly_those_are_sent_again() {
    let (server, sink, url) = stubbed("partial", PATIENCE).await;
    let messages = transfers(10);
    server.script([Misbehaviour::Fail { places: vec![3, 7], code: "InternalError", sender_fault: false }]);
    assert!(deliver(&sink, messages.clone()).await.is_empty());
    let again = vec![messages[3].id().to_owned(), messages[7].id().to_owned()];
    assert_eq!(server.batches(), [ids(&messages), again]);
    let received = server.drain(&url).await;
    assert_eq!(sorted(received_bodies(&received)), sorted(bodies(&messages)));
}

#[tokio::test]
async fn behind_a_batch_that_failed_in_part_nothing_is_sent_in_the_same_call() {
    let (server, sink, _) = stubbed("stop", PATIENCE).await;
    let messages = transfers(15);
    server.script([Misbehaviour::Fail { places: vec![0], code: "InternalError", sender_fault: false }]);
    let outcomes = sink.send(&messages).await;
    assert!(matches!(outcomes[0], Outcome::Retry { throttled: false, .. }));
    assert!(all_acknowledged(&outcomes[1..10]));
    assert_eq!(outcomes[10..], [const { Outcome::Held }; 5]);
    assert_eq!(server.batches(), [ids(&messages[..10])]);
}

#[tokio::test]
async fn a_failed_entry_holds_back_the_later_ones_of_its_group_and_no_others_of_the_batch() {
    let (server, sink, url) = stubbed("held.fifo", PATIENCE).await;
    let messages = [transfer(USDC, 0), transfer(WETH, 1), transfer(USDC, 2), transfer(WETH, 3)];
    server.script([Misbehaviour::Fail { places: vec![0], code: "InternalError", sender_fault: false }]);
    let outcomes = sink.send(&messages).await;
    assert!(matches!(&outcomes[..], [Outcome::Retry { .. }, Outcome::Acknowledged, Outcome::Held, Outcome::Held]));
    assert_eq!(server.batches(), [[messages[0].id().to_owned(), messages[1].id().to_owned()]]);
    let rest = [0, 2, 3].map(|place| messages[place].clone());
    assert!(deliver(&sink, rest.to_vec()).await.is_empty());
    let order = [1, 0, 3, 2].map(|place| messages[place].body());
    assert_eq!(received_bodies(&server.drain(&url).await), order);
}

#[tokio::test]
async fn an_entry_that_is_at_fault_itself_is_refused_and_the_rest_goes_on() {
    let (server, sink, _) = stubbed("poison", PATIENCE).await;
    let poison = Misbehaviour::Fail { places: vec![1], code: "InvalidMessageContents", sender_fault: true };
    server.script([poison]);
    let outcomes = sink.send(&transfers(12)).await;
    assert!(matches!(&outcomes[1], Outcome::Refused(reason) if reason.contains("InvalidMessageContents")));
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::Acknowledged).count(), 11);
}

#[tokio::test]
async fn a_batch_that_is_too_long_for_the_queue_goes_message_by_message() {
    let (server, sink, url) = stubbed("shrunk", PATIENCE).await;
    let messages = transfers(4);
    server.script([Misbehaviour::Error { status: 400, code: "BatchRequestTooLong" }]);
    assert!(all_acknowledged(&sink.send(&messages).await));
    assert_eq!(server.batches().iter().map(Vec::len).collect::<Vec<_>>(), [4, 1, 1, 1, 1]);
    assert_eq!(received_bodies(&server.drain(&url).await), bodies(&messages));
}

#[tokio::test]
async fn a_message_that_makes_even_a_batch_of_its_own_too_long_is_refused() {
    let (server, sink, _) = stubbed("lone", PATIENCE).await;
    server.script([Misbehaviour::Error { status: 400, code: "BatchRequestTooLong" }]);
    let outcomes = sink.send(&transfers(1)).await;
    assert!(matches!(&outcomes[..], [Outcome::Refused(reason)] if reason.contains("BatchRequestTooLong")));
}

#[tokio::test]
async fn a_limit_that_was_lowered_is_read_again_after_the_queue_refused_by_it() {
    let (server, sink, url) = stubbed("lowered", PATIENCE).await;
    assert!(all_acknowledged(&sink.send(&[large(0, 40 * KIB)]).await));
    server.resize_queue(&url, 16 * KIB).await;
    let outcomes = sink.send(&[large(1, 40 * KIB)]).await;
    assert!(matches!(&outcomes[..], [Outcome::Refused(reason)] if reason.contains("InvalidParameterValue")));
    let outcomes = sink.send(&[large(2, 40 * KIB)]).await;
    assert!(matches!(&outcomes[..], [Outcome::Refused(reason)] if reason.starts_with("too large")));
}

#[tokio::test]
async fn throttling_asks_for_less_traffic_and_server_errors_do_not() {
    let (server, sink, _) = stubbed("busy", PATIENCE).await;
    let errors = [(400, "RequestThrottled", true), (400, "KmsThrottled", true), (429, "Whatever", true)];
    let others = [(500, "InternalError", false), (503, "ServiceUnavailable", false), (403, "AccessDenied", false)];
    for (status, code, expected) in errors.into_iter().chain(others) {
        server.script([Misbehaviour::Error { status, code }]);
        let outcomes = sink.send(&transfers(2)).await;
        let fits = |outcome: &Outcome| matches!(outcome, Outcome::Retry { throttled, .. } if *throttled == expected);
        assert!(outcomes.iter().all(fits), "{code}: {outcomes:?}");
        assert_eq!(server.batches().len(), 1, "the client retried by itself: {code}");
    }
    server.script([Misbehaviour::Fail { places: vec![1], code: "ThrottlingException", sender_fault: false }]);
    let outcomes = sink.send(&transfers(2)).await;
    assert!(matches!(&outcomes[..], [Outcome::Acknowledged, Outcome::Retry { throttled: true, .. }]), "{outcomes:?}");
}

#[tokio::test]
async fn a_lost_answer_is_repaired_by_the_same_bytes_again() {
    let (server, sink, url) = stubbed("lost", Duration::from_secs(3)).await;
    let messages = transfers(2);
    server.script([Misbehaviour::LoseAnswer]);
    let outcomes = sink.send(&messages).await;
    assert!(
        outcomes.iter().all(|outcome| matches!(outcome, Outcome::Retry { reason, .. } if reason.contains("no answer")))
    );
    assert!(all_acknowledged(&sink.send(&messages).await));
    let received = server.drain(&url).await;
    let twice = [bodies(&messages), bodies(&messages)].concat();
    assert_eq!(received_bodies(&received), twice);
}

#[tokio::test]
async fn an_entry_that_the_answer_does_not_mention_is_sent_again() {
    let (server, sink, _) = stubbed("forgetful", PATIENCE).await;
    server.script([Misbehaviour::Forget]);
    let outcomes = sink.send(&transfers(3)).await;
    assert!(matches!(&outcomes[..], [Outcome::Acknowledged, Outcome::Retry { .. }, Outcome::Retry { .. }]));
}

#[tokio::test]
async fn r10_twenty_five_large_messages_take_13_batches_of_256_kib_and_3_of_1_mib() {
    let server = SqsServer::stub().await;
    let messages: Vec<_> = (0..25).map(|index| large(index, 110 * KIB)).collect();
    for (name, limit, calls, most) in [("r10-256k", 256 * KIB, 13, 2), ("r10-1m", 1024 * KIB, 3, 9)] {
        let url = server.create_queue(name, limit).await;
        assert!(all_acknowledged(&sink(&server, &url).await.send(&messages).await));
        let batches = server.batches();
        assert_eq!((batches.len(), batches.iter().map(Vec::len).max()), (calls, Some(most)), "{name}");
        assert_eq!(batches.concat(), ids(&messages), "{name}");
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_told_without_its_address() {
    let server = SqsServer::stub().await;
    let url = server.create_queue("away", 256 * KIB).await;
    let mut access = server.access();
    let port = support::process::free_port();
    access.endpoint = Some(format!("http://planted:secret@127.0.0.1:{port}"));
    let sink = SqsSink::connect(&access, "sqs:away", &url, PATIENCE).await.unwrap();
    let outcomes = sink.send(&transfers(1)).await;
    assert!(
        matches!(&outcomes[..], [Outcome::Retry { reason, .. }] if reason == "the connection failed"),
        "{outcomes:?}"
    );
    let error = sink.check().await.unwrap_err();
    assert!(matches!(error, SinkError::Transient(_)));
}

fn schema() -> Value {
    serde_json::from_str(include_str!("../docs/message.schema.json")).unwrap()
}

#[track_caller]
fn assert_follows_schema(body: &str) {
    let (schema, body): (_, Value) = (schema(), serde_json::from_str(body).unwrap());
    let errors: Vec<_> =
        jsonschema::draft202012::new(&schema).unwrap().iter_errors(&body).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}\n{body}");
    let known = schema["properties"].as_object().unwrap();
    for member in body.as_object().unwrap().keys() {
        assert!(known.contains_key(member), "the schema does not tell of {member}");
    }
}

#[test]
fn the_schema_is_one_and_documents_every_member() {
    fn undocumented(schema: &Value, place: &str, missing: &mut Vec<String>) {
        let Some(properties) = schema["properties"].as_object() else { return };
        for (name, member) in properties {
            let place = format!("{place}.{name}");
            undocumented(member, &place, missing);
            if !member["description"].is_string() {
                missing.push(place);
            }
        }
    }
    let schema = schema();
    jsonschema::draft202012::meta::validate(&schema).unwrap();
    let mut missing = Vec::new();
    undocumented(&schema, "message", &mut missing);
    undocumented(&schema["$defs"]["erc20Transfer"], "erc20Transfer", &mut missing);
    assert!(missing.is_empty(), "without a description: {missing:?}");
}

#[test]
fn the_schema_refuses_what_is_not_a_message() {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    let good: Value = serde_json::from_str(transfer(USDC, 1).body()).unwrap();
    assert!(validator.is_valid(&good));
    for (pointer, wrong) in [
        ("/contractAddress", "0x12"),
        ("/blockHash", "0xABC"),
        ("/id", "1:2:3"),
        ("/version", "3"),
        ("/blockNumber", "0x10"),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = wrong.into();
        assert!(!validator.is_valid(&bad), "{pointer}");
    }
    let mut two = good.clone();
    two["events"]["Approval"] = serde_json::json!({});
    assert!(!validator.is_valid(&two));
}

#[test]
fn a_transfer_has_the_three_members_of_the_standard() {
    let mut schema = schema();
    schema["$ref"] = "#/$defs/erc20Transfer".into();
    for member in ["type", "required", "properties"] {
        schema.as_object_mut().unwrap().remove(member);
    }
    let body: Value = serde_json::from_str(transfer(USDC, 1).body()).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    assert!(validator.is_valid(&body["events"]["Transfer"]));
    assert!(!validator.is_valid(&serde_json::json!({ "from": "0x", "to": "0x", "value": 1 })));
}

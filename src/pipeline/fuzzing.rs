//! What a hostile contract can emit: the fuzz target `logs` (see [`crate::fuzzing`]).

use std::sync::{Arc, OnceLock};

use alloy::primitives::{Address, B256, U256};
use serde_json::Value;

use super::decode;
use crate::{
    config::{Listener, Registry, Shape},
    domain::{Args, BlockRef, Event, RawLog, Topics},
    sinks::Message,
};

const WORD: usize = 32;
/// Most that a message may hold for a byte of its log: text escaped as `\u0000`, read as often as decoding allows, and
/// for each word the longest name of a member.
const GROWTH: usize = 200;
/// What a message holds besides.
const FRAME: usize = 8 << 10;

/// A log: which event's topic comes first, how many topics there are, and topics and data behind each other. Decoded by
/// a registry that has an event of every shape.
pub(crate) fn logs(data: &[u8]) {
    static REGISTRY: OnceLock<Option<Arc<Registry>>> = OnceLock::new();
    let registry = REGISTRY.get_or_init(crate::config::fuzzing::registry);
    assert!(registry.is_some(), "the files below src/fuzzing are refused");
    if let Some(registry) = registry {
        one(registry, data);
    }
}

/// The same by any registry.
pub(crate) fn one(registry: &Registry, data: &[u8]) {
    let [which, count, rest @ ..] = data else { return };
    let known = registry.topics();
    let count = usize::from(*count % 5);
    let mut words = rest.chunks(WORD);
    let mut topics: Topics = words.by_ref().take(count.saturating_sub(1)).map(B256::right_padding_from).collect();
    if count > 0 {
        let signature = known.get(usize::from(*which) % known.len().max(1)).copied().unwrap_or_default();
        topics.insert(0, signature);
    }
    let log = RawLog {
        address: Address::repeat_byte(if *which < 128 { 0x11 } else { 0x22 }),
        topics,
        data: rest.get(count.saturating_sub(1) * WORD..).unwrap_or_default().to_vec().into(),
        block: BlockRef { number: 18_500_000, hash: B256::repeat_byte(0xaa) },
        timestamp: 1_698_796_799,
        transaction_hash: B256::repeat_byte(0xbb),
        transaction_index: 7,
        log_index: 42,
    };
    decoded(registry, &log);
}

fn decoded(registry: &Registry, log: &RawLog) {
    let decoded = decode::events(registry, std::slice::from_ref(log));
    let refused: u64 = decoded.rejected.values().sum();
    assert!(decoded.candidates.is_empty() || refused == 0, "both decoded and refused");
    assert!(refused <= 1 && decoded.undecodable.len() as u64 <= refused, "one log is refused more than once");
    assert!(decoded.candidates.len() <= registry.targets().len(), "a sink is served twice");
    for found in &decoded.candidates {
        message(&found.event, log);
    }
    let Some(topic0) = log.topics.first() else {
        return assert!(decoded.candidates.is_empty() && refused == 0, "a log without topics is of nobody");
    };
    for listener in registry.candidates(log.address, *topic0, log.block.number) {
        says_again(listener, log);
    }
}

/// The event is the log's, and so is its message.
fn message(event: &Event, log: &RawLog) {
    assert_eq!(
        (event.block, event.timestamp, event.transaction_hash, event.transaction_index, event.log_index, event.address),
        (log.block, log.timestamp, log.transaction_hash, log.transaction_index, log.log_index, log.address),
        "an event of another log"
    );
    if let Args::Transfer { from, to, value } = event.args {
        // Upper bytes of an address that are not zero are not looked at, as everybody does.
        let word = |at: usize| log.topics.get(at).copied().unwrap_or_default();
        assert_eq!((from, to), (Address::from_word(word(1)), Address::from_word(word(2))), "other parties");
        assert_eq!(U256::try_from_be_slice(&log.data), Some(value), "another amount");
    }
    for message in [Message::apply(event, 1, 5), Message::retract(event, 1, 6)] {
        assert!(message.body().is_ascii() && !message.body().contains(char::is_control), "a body of several lines");
        let most = FRAME + GROWTH * (log.data.len() + WORD * log.topics.len());
        assert!(message.body().len() <= most, "a message of {} bytes", message.body().len());
        let body: Result<Value, _> = serde_json::from_str(message.body());
        assert!(body.as_ref().is_ok_and(exact), "a body that is not exact JSON: {}", message.body());
        assert_eq!(Message::from_body(message.body()).as_ref(), Ok(&message), "a message does not come back");
    }
}

/// Whether every number is one that all JSON readers take as it is.
fn exact(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_i64().is_some_and(|number| number.unsigned_abs() < 1 << 53),
        Value::Array(values) => values.iter().all(exact),
        Value::Object(members) => members.values().all(exact),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

/// What was decoded is decoded again from its own encoding.
fn says_again(listener: &Listener, log: &RawLog) {
    let Shape::Other(event) = &listener.shape else { return };
    let Ok(decoded) = decode::by_abi(event, log) else { return };
    let again = decoded.encode_log_data();
    let again = RawLog { topics: again.topics().iter().copied().collect(), data: again.data.into(), ..log.clone() };
    let same = decode::by_abi(event, &again).is_ok_and(|again| again == decoded);
    assert!(same, "what was decoded is another thing when it is encoded and decoded again");
}

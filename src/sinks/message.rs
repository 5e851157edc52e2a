//! The message as consumers read it (contract §8); its JSON Schema is `docs/message.schema.json`.
//!
//! A message is a pure function of the event, the chain, the epoch and whether it applies the event or takes it back:
//! nothing in it varies between attempts, replicas or providers, so that sending it twice is sending the same bytes
//! twice. Handing it over is the sinks' work.

use std::{fmt, ops::Range, sync::Arc};

use alloy::{
    hex,
    primitives::{Address, B256, U256},
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{
    checksum::Checksummed,
    json::{Object, copy_ascii, key},
};
use crate::{
    domain::{Args, Event, Token},
    mutants::{Mutant, planted},
};

/// Raised when a member is added; a member is never taken away or given another meaning.
pub const SCHEMA_VERSION: u64 = 1;

/// What a body usually needs, so that a text is written without growing.
const USUAL_BODY_BYTES: usize = 1_024;
/// Messages of a usual call.
const USUAL_MESSAGES: usize = 1_000;
/// Messages whose addresses are looked at together.
const TOGETHER: usize = 64;

/// One message, ready for any sink: body and attributes, built once. Its body is a line of a text that it shares with the
/// messages that were composed with it, so a copy of it copies no text.
#[derive(Clone)]
pub struct Message {
    text: Arc<String>,
    parts: Parts,
    /// Higher for a later state of the same id.
    pub version: u64,
    /// The event's name, e.g. `Transfer`; of a retraction `TransferRetracted`.
    pub event_type: Arc<str>,
    /// The chain's id.
    pub chain_id: u64,
    /// EIP-55 address of the emitting contract.
    pub contract_address: Checksummed,
}

/// Where in the text a message stands.
#[derive(Clone, Debug)]
struct Parts {
    /// A line break follows.
    body: Range<usize>,
    id: Range<usize>,
}

impl Message {
    /// The message that applies `event` under `epoch`: version `2 * epoch + 1` (protocol §2).
    #[must_use]
    pub fn apply(event: &Event, chain_id: u64, epoch: u64) -> Self {
        Self::alone(Saying::applied(event, epoch), chain_id)
    }

    /// The message that takes `event` back, because its block left the chain at the rewind to `epoch`: version
    /// `2 * epoch`, above everything that was said of it before and below what may be said of it after (protocol §2).
    #[must_use]
    pub fn retract(event: &Event, chain_id: u64, epoch: u64) -> Self {
        Self::alone(Saying::retracted(event, epoch), chain_id)
    }

    fn alone(saying: Saying<'_>, chain_id: u64) -> Self {
        let mut composer = Composer::new(chain_id, 1);
        composer.add(saying);
        composer.finish().remove(0)
    }

    /// The id of everything that is said of one log (protocol §2): the same in every life of its block.
    #[must_use]
    pub fn id_of(chain_id: u64, block_hash: B256, log_index: u64) -> String {
        format!("{chain_id}:{block_hash}:{log_index}")
    }

    /// The message that a body came from, byte for byte: dead letters keep only the body.
    ///
    /// # Errors
    ///
    /// [`NotAMessage`] where the text is not a message's body.
    pub fn from_body(body: &str) -> Result<Self, NotAMessage> {
        let head: Head = serde_json::from_str(body).map_err(|error| NotAMessage(error.to_string()))?;
        let text = [body, "\n", &head.id].concat();
        let draft = Draft {
            parts: Parts { body: 0..body.len(), id: body.len() + 1..text.len() },
            version: head.version,
            event_type: head.event_type.into(),
            contract_address: Checksummed::of(head.contract_address),
        };
        Ok(draft.of(&Arc::new(text), head.chain_id))
    }

    /// The JSON object, ASCII, without line breaks.
    #[must_use]
    pub fn body(&self) -> &str {
        self.text.get(self.parts.body.clone()).unwrap_or_default()
    }

    /// `{chain}:{block hash}:{log index}`, see [`id_of`](Self::id_of).
    #[must_use]
    pub fn id(&self) -> &str {
        self.text.get(self.parts.id.clone()).unwrap_or_default()
    }

    /// The bodies from this message's to the `last` one's as they stand in their text, each with a line break behind it;
    /// [`None`] where they are not of one text. Those between must [follow](Self::is_followed_by) one another.
    pub(super) fn lines_to(&self, last: &Self) -> Option<&str> {
        let is_one_text = Arc::ptr_eq(&self.text, &last.text);
        is_one_text.then(|| self.text.get(self.parts.body.start..=last.parts.body.end)).flatten()
    }

    /// Whether the body of `next` is the next line of the same text.
    pub(super) fn is_followed_by(&self, next: &Self) -> bool {
        Arc::ptr_eq(&self.text, &next.text) && next.parts.body.start == self.parts.body.end + 1
    }

    /// What is kept in order on a FIFO queue: the events of one contract.
    #[must_use]
    pub fn group(&self) -> String {
        format!("{}:{}", self.chain_id, self.contract_address)
    }

    /// Equal for two sendings of the same state of an event, different for any later state (failure model F63).
    #[must_use]
    pub fn deduplication_id(&self) -> String {
        hex::encode(Sha256::digest(format!("{}|{}|{}", self.id(), self.version, self.event_type)))
    }

    /// What tells it from others: all but where it stands.
    fn content(&self) -> (&str, &str, u64, &str, u64, Checksummed) {
        (self.body(), self.id(), self.version, &self.event_type, self.chain_id, self.contract_address)
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.content() == other.content()
    }
}

impl Eq for Message {}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id())
            .field("version", &self.version)
            .field("body", &self.body())
            .finish_non_exhaustive()
    }
}

/// Writes messages into one text, a line each: of millions of messages none has an allocation of its own.
#[derive(Debug)]
pub struct Composer<'e> {
    chain_id: u64,
    /// What is not written yet.
    sayings: Vec<Saying<'e>>,
    /// The addresses of these. Their room is used again.
    contracts: Vec<Checksummed>,
    parties: Vec<Checksummed>,
    text: String,
    drafts: Vec<Draft>,
}

/// What a message is to say.
#[derive(Debug)]
struct Saying<'e> {
    event: &'e Event,
    event_type: Arc<str>,
    version: u64,
}

impl<'e> Saying<'e> {
    fn applied(event: &'e Event, epoch: u64) -> Self {
        Self { event, event_type: event.name.clone(), version: epoch.saturating_mul(2).saturating_add(1) }
    }

    fn retracted(event: &'e Event, epoch: u64) -> Self {
        let event_type = format!("{}Retracted", event.name).into();
        Self { event, event_type, version: epoch.saturating_mul(2) }
    }

    /// Sender and receiver; zero, which costs next to nothing, where there are none.
    fn parties(&self) -> [Address; 2] {
        match self.event.args {
            Args::Transfer { from, to, .. } => [from, to],
            Args::Json(_) => [Address::ZERO; 2],
        }
    }
}

/// A message whose text is still being written.
#[derive(Debug)]
struct Draft {
    parts: Parts,
    version: u64,
    event_type: Arc<str>,
    contract_address: Checksummed,
}

impl Draft {
    fn of(self, text: &Arc<String>, chain_id: u64) -> Message {
        let Self { parts, version, event_type, contract_address } = self;
        Message { text: text.clone(), parts, version, event_type, chain_id, contract_address }
    }
}

impl<'e> Composer<'e> {
    /// With room for so many messages of this chain, or for a usual call's.
    #[must_use]
    pub fn new(chain_id: u64, messages: usize) -> Self {
        let messages = messages.min(USUAL_MESSAGES);
        let text = String::with_capacity(messages.saturating_mul(USUAL_BODY_BYTES));
        let together = messages.min(TOGETHER);
        Self {
            chain_id,
            sayings: Vec::with_capacity(together),
            contracts: Vec::with_capacity(together),
            parties: Vec::with_capacity(2 * together),
            text,
            drafts: Vec::with_capacity(messages),
        }
    }

    /// Adds what [`Message::apply`] gives.
    pub fn apply(&mut self, event: &'e Event, epoch: u64) {
        self.add(Saying::applied(event, epoch));
    }

    /// Adds what [`Message::retract`] gives.
    pub fn retract(&mut self, event: &'e Event, epoch: u64) {
        self.add(Saying::retracted(event, epoch));
    }

    /// The messages, in the order in which they were added.
    #[must_use]
    pub fn finish(mut self) -> Vec<Message> {
        self.write();
        let (text, chain_id) = (Arc::new(self.text), self.chain_id);
        self.drafts.into_iter().map(|draft| draft.of(&text, chain_id)).collect()
    }

    fn add(&mut self, saying: Saying<'e>) {
        self.sayings.push(saying);
        if self.sayings.len() == TOGETHER {
            self.write();
        }
    }

    /// Writes what was added. The checksums of its addresses are worked out together.
    fn write(&mut self) {
        Checksummed::of_contracts(self.sayings.iter().map(|saying| saying.event.address), &mut self.contracts);
        Checksummed::of_parties(self.sayings.iter().flat_map(Saying::parties), &mut self.parties);
        let addresses = self.contracts.iter().zip(self.parties.as_chunks().0);
        for (saying, (contract, parties)) in self.sayings.drain(..).zip(addresses) {
            self.drafts.push(compose(&mut self.text, saying, self.chain_id, *contract, parties));
        }
    }
}

fn compose(
    out: &mut String,
    saying: Saying<'_>,
    chain_id: u64,
    contract_address: Checksummed,
    parties: &[Checksummed; 2],
) -> Draft {
    let Saying { event, event_type, version } = saying;
    let start = out.len();
    let mut body = Object::open(out);
    body.text(key!("eventType"), &event_type);
    body.plain(key!("contractAddress"), contract_address.as_str());
    body.number(key!("chainId"), chain_id);
    body.word(key!("transactionHash"), event.transaction_hash);
    write_events(event, parties, body.member(key!("events")));
    let id = write_id(chain_id, event, body.member(key!("id")));
    body.number(key!("version"), version);
    body.number(key!("schemaVersion"), SCHEMA_VERSION);
    body.number(key!("blockNumber"), event.block.number);
    body.word(key!("blockHash"), event.block.hash);
    body.number(key!("blockTimestamp"), event.timestamp);
    body.number(key!("transactionIndex"), event.transaction_index);
    body.number(key!("logIndex"), event.log_index);
    body.text(key!("contract"), &event.contract);
    if let Some(token) = &event.token {
        write_token(token, body.member(key!("token")));
    }
    body.close();
    let body = start..out.len();
    out.push('\n');
    Draft { parts: Parts { body, id }, version, event_type, contract_address }
}

/// The members of a body that a message needs besides the body itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    event_type: String,
    contract_address: Address,
    chain_id: u64,
    id: String,
    version: u64,
}

/// The text is not the body of a message; says what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message: {0}")]
pub struct NotAMessage(String);

/// Writes what [`Message::id_of`] gives, quoted; answers where it stands.
fn write_id(chain_id: u64, event: &Event, out: &mut String) -> Range<usize> {
    let home = if planted(Mutant::IdWithoutBlock) { event.transaction_hash } else { event.block.hash };
    out.push('"');
    let start = out.len();
    out.push_str(itoa::Buffer::new().format(chain_id));
    out.push(':');
    out.push_str(hex::Buffer::<32, true>::new().format(&home));
    out.push(':');
    out.push_str(itoa::Buffer::new().format(event.log_index));
    let id = start..out.len();
    out.push('"');
    id
}

fn write_events(event: &Event, [from, to]: &[Checksummed; 2], out: &mut String) {
    let mut events = Object::open(out);
    let out = events.named(&event.name);
    match &event.args {
        Args::Transfer { value, .. } => {
            let mut args = Object::open(out);
            args.plain(key!("from"), from.as_str());
            args.plain(key!("to"), to.as_str());
            write_amount(*value, args.member(key!("value")));
            args.close();
        }
        Args::Json(args) => copy_ascii(out, args),
    }
    events.close();
}

/// A decimal string. What 128 bits hold is written without a text of its own: nearly every amount there is.
fn write_amount(value: U256, out: &mut String) {
    out.push('"');
    match u128::try_from(value) {
        Ok(value) => out.push_str(itoa::Buffer::new().format(value)),
        Err(_) => out.push_str(&value.to_string()),
    }
    out.push('"');
}

fn write_token(token: &Token, out: &mut String) {
    let mut object = Object::open(out);
    object.text(key!("symbol"), &token.symbol);
    object.number(key!("decimals"), token.decimals.into());
    object.text(key!("name"), &token.name);
    object.close();
}

#[cfg(test)]
impl Message {
    /// Messages with these bodies, composed together, for tests of what carries them.
    pub(super) fn of_bodies(bodies: &[&str]) -> Vec<Self> {
        let mut composer = Composer::new(1, bodies.len());
        for body in bodies {
            let start = composer.text.len();
            composer.text.push_str(body);
            let body = start..composer.text.len();
            composer.text.push('\n');
            let (event_type, contract_address) = ("Transfer".into(), Checksummed::of(Address::ZERO));
            let parts = Parts { id: body.clone(), body };
            composer.drafts.push(Draft { parts, version: 1, event_type, contract_address });
        }
        composer.finish()
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::{U256, address, b256};

    use super::*;
    use crate::domain::BlockRef;

    fn transfer() -> Event {
        Event {
            block: BlockRef {
                number: 17_000_000,
                hash: b256!("96cfa0fb5e50b0a3f6cc76f3299cfbf48f17e8b41798d1394474e67ec8a97e9f"),
            },
            timestamp: 1_680_911_891,
            transaction_hash: b256!("5c504ed432cb51138bcf09aa5e8a410dd4a1e204ef84bfed1be16dfba1b22060"),
            transaction_index: 12,
            log_index: 17,
            address: address!("a0b86991c6218b36c1d19d4a2e9eb0ce3606eb48"),
            contract: "Transfers".into(),
            name: "Transfer".into(),
            handler: "handleTransferEvent".into(),
            args: Args::Transfer {
                from: address!("742d35cc6634c0532925a3b844bc454e4438f44e"),
                to: address!("8ba1f109551bd432803012645ac136ddd64dba72"),
                value: U256::from(1_000_000_000_000_000_000_u64),
            },
            token: Some(Arc::new(Token {
                address: address!("a0b86991c6218b36c1d19d4a2e9eb0ce3606eb48"),
                symbol: "USDC".to_owned(),
                name: "USD Coin".to_owned(),
                decimals: 6,
            })),
        }
    }

    #[test]
    fn the_body_of_a_transfer_is_exactly_this_text() {
        let message = Message::apply(&transfer(), 1, 1_758_645_000);
        let expected = concat!(
            r#"{"eventType":"Transfer","contractAddress":"0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48","chainId":1,"#,
            r#""transactionHash":"0x5c504ed432cb51138bcf09aa5e8a410dd4a1e204ef84bfed1be16dfba1b22060","#,
            r#""events":{"Transfer":{"from":"0x742d35Cc6634C0532925a3b844Bc454e4438f44e","#,
            r#""to":"0x8ba1f109551bD432803012645Ac136ddd64DBA72","value":"1000000000000000000"}},"#,
            r#""id":"1:0x96cfa0fb5e50b0a3f6cc76f3299cfbf48f17e8b41798d1394474e67ec8a97e9f:17","version":3517290001,"#,
            r#""schemaVersion":1,"blockNumber":17000000,"#,
            r#""blockHash":"0x96cfa0fb5e50b0a3f6cc76f3299cfbf48f17e8b41798d1394474e67ec8a97e9f","#,
            r#""blockTimestamp":1680911891,"transactionIndex":12,"logIndex":17,"contract":"Transfers","#,
            r#""token":{"symbol":"USDC","decimals":6,"name":"USD Coin"}}"#,
        );
        assert_eq!(message.body(), expected);
    }

    #[test]
    fn a_token_that_the_list_does_not_know_has_no_member() {
        let message = Message::apply(&Event { token: None, ..transfer() }, 1, 1);
        assert!(message.body().ends_with(r#""contract":"Transfers"}"#), "{}", message.body());
    }

    #[test]
    fn text_outside_ascii_is_escaped_in_names_and_arguments() {
        let mut event = transfer();
        event.contract = "Übertrag".into();
        event.name = "Named".into();
        event.args = Args::Json(r#"{"name":"ギ𝄞"}"#.into());
        let message = Message::apply(&event, 1, 1);
        assert!(message.body().is_ascii());
        assert!(message.body().contains(r#""events":{"Named":{"name":"\u30ae\ud834\udd1e"}}"#), "{}", message.body());
        assert!(message.body().contains(r#""contract":"\u00dcbertrag""#), "{}", message.body());
    }

    #[test]
    fn a_message_comes_back_from_its_body() {
        let message = Message::apply(&transfer(), 8453, 77);
        assert_eq!(Message::from_body(message.body()), Ok(message));
    }

    #[test]
    fn a_body_that_is_no_message_is_refused_with_the_reason() {
        let error = Message::from_body(r#"{"eventType":"Transfer"}"#).unwrap_err();
        assert!(error.to_string().contains("contractAddress"), "{error}");
    }

    #[test]
    fn a_later_epoch_changes_version_and_deduplication_id_but_neither_id_nor_group() {
        let first = Message::apply(&transfer(), 1, 5);
        let later = Message::apply(&transfer(), 1, 6);
        assert_eq!((first.version, later.version), (11, 13));
        assert_eq!((first.id(), first.group()), (later.id(), later.group()));
        assert_ne!(first.deduplication_id(), later.deduplication_id());
    }

    #[test]
    fn the_deduplication_id_is_the_sha_256_of_id_version_and_type() {
        // printf '1:0x96cf…7e9f:17|3517290001|Transfer' | sha256sum
        let message = Message::apply(&transfer(), 1, 1_758_645_000);
        assert_eq!(message.group(), "1:0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48");
        assert_eq!(message.deduplication_id(), "1a3b249fadaa4750e919760b4211251f0bfbdc7e7c710943e81680d8eeaa617a");
    }

    #[test]
    fn messages_that_are_composed_together_are_what_they_are_alone() {
        let most = U256::from(u128::MAX);
        let values = [U256::ZERO, U256::ONE, most / U256::from(2), most, most + U256::ONE, U256::MAX];
        let events: Vec<Event> = (0..TOGETHER * 2 + 5)
            .zip(values.into_iter().cycle())
            .map(|(number, value)| {
                let party = |number: usize| Address::left_padding_from(&(number % 90 * 7).to_be_bytes());
                let transfer_args = Args::Transfer { from: party(number), to: party(number * 3), value };
                let args = if number % 10 == 3 { Args::Json("{}".into()) } else { transfer_args };
                Event { log_index: number as u64, address: party(number % 4), args, ..transfer() }
            })
            .collect();
        let mut composer = Composer::new(1, events.len());
        events.iter().for_each(|event| composer.apply(event, 7));
        events.iter().for_each(|event| composer.retract(event, 8));
        let together = composer.finish();
        let alone = events.iter().map(|event| Message::apply(event, 1, 7));
        let alone: Vec<Message> = alone.chain(events.iter().map(|event| Message::retract(event, 1, 8))).collect();
        assert_eq!(together, alone);
        for (message, event) in together.iter().zip(events.iter().chain(&events)) {
            assert_eq!(message.id(), Message::id_of(1, event.block.hash, event.log_index));
            let Args::Transfer { from, to, value } = event.args else { continue };
            let args = format!(r#"{{"from":"{from}","to":"{to}","value":"{value}"}}"#);
            assert!(message.body().contains(&args), "{}", message.body());
        }
    }

    #[test]
    fn lines_of_one_text_are_read_as_they_stand_and_those_of_others_are_not() {
        let events = [0, 1, 2].map(|log_index| Event { log_index, ..transfer() });
        let mut composer = Composer::new(1, events.len());
        events.iter().for_each(|event| composer.apply(event, 1));
        let messages = composer.finish();
        let lines = format!("{}\n{}\n", messages[1].body(), messages[2].body());
        assert_eq!(messages[1].lines_to(&messages[2]), Some(lines.as_str()));
        assert!(messages[0].is_followed_by(&messages[1]) && !messages[0].is_followed_by(&messages[2]));
        let back = Message::from_body(messages[1].body()).unwrap();
        assert!(!messages[0].is_followed_by(&back) && messages[0].lines_to(&back).is_none());
        assert_eq!(back.lines_to(&back).map(str::len), Some(back.body().len() + 1));
    }
}

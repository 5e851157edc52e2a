//! The message as consumers read it (contract §8); its JSON Schema is `docs/message.schema.json`.
//!
//! A message is a pure function of the event, the chain, the epoch and whether it applies the event or takes it back:
//! nothing in it varies between attempts, replicas or providers, so that sending it twice is sending the same bytes
//! twice. Handing it over is the sinks' work.

use std::sync::Arc;

use alloy::{
    hex,
    primitives::{Address, B256},
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

/// What a body usually needs, so that it is written without growing.
const USUAL_BODY_BYTES: usize = 1_024;

/// One message, ready for any sink: body and attributes, built once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `{chain}:{block hash}:{log index}`, see [`id_of`](Self::id_of).
    pub id: String,
    /// Higher for a later state of the same id.
    pub version: u64,
    /// The event's name, e.g. `Transfer`; of a retraction `TransferRetracted`.
    pub event_type: Arc<str>,
    /// The chain's id.
    pub chain_id: u64,
    /// EIP-55 address of the emitting contract.
    pub contract_address: Checksummed,
    /// The JSON object, ASCII, without line breaks.
    pub body: String,
}

impl Message {
    /// The message that applies `event` under `epoch`: version `2 * epoch + 1` (protocol §2).
    #[must_use]
    pub fn apply(event: &Event, chain_id: u64, epoch: u64) -> Self {
        Self::compose(event, event.name.clone(), chain_id, epoch.saturating_mul(2).saturating_add(1))
    }

    /// The message that takes `event` back, because its block left the chain at the rewind to `epoch`: version
    /// `2 * epoch`, above everything that was said of it before and below what may be said of it after (protocol §2).
    #[must_use]
    pub fn retract(event: &Event, chain_id: u64, epoch: u64) -> Self {
        Self::compose(event, format!("{}Retracted", event.name).into(), chain_id, epoch.saturating_mul(2))
    }

    /// The id of everything that is said of one log (protocol §2): the same in every life of its block.
    #[must_use]
    pub fn id_of(chain_id: u64, block_hash: B256, log_index: u64) -> String {
        format!("{chain_id}:{block_hash}:{log_index}")
    }

    fn compose(event: &Event, event_type: Arc<str>, chain_id: u64, version: u64) -> Self {
        let home = if planted(Mutant::IdWithoutBlock) { event.transaction_hash } else { event.block.hash };
        let mut message = Self {
            id: Self::id_of(chain_id, home, event.log_index),
            version,
            event_type,
            chain_id,
            contract_address: Checksummed::of(event.address),
            body: String::with_capacity(USUAL_BODY_BYTES),
        };
        let mut body = std::mem::take(&mut message.body);
        message.write_body(event, &mut body);
        Self { body, ..message }
    }

    /// The message that a body came from, byte for byte: dead letters keep only the body.
    ///
    /// # Errors
    ///
    /// [`NotAMessage`] where the text is not a message's body.
    pub fn from_body(body: &str) -> Result<Self, NotAMessage> {
        let head: Head = serde_json::from_str(body).map_err(|error| NotAMessage(error.to_string()))?;
        Ok(Self {
            id: head.id,
            version: head.version,
            event_type: head.event_type.into(),
            chain_id: head.chain_id,
            contract_address: Checksummed::of(head.contract_address),
            body: body.to_owned(),
        })
    }

    /// What is kept in order on a FIFO queue: the events of one contract.
    #[must_use]
    pub fn group(&self) -> String {
        format!("{}:{}", self.chain_id, self.contract_address)
    }

    /// Equal for two sendings of the same state of an event, different for any later state (failure model F63).
    #[must_use]
    pub fn deduplication_id(&self) -> String {
        hex::encode(Sha256::digest(format!("{}|{}|{}", self.id, self.version, self.event_type)))
    }

    fn write_body(&self, event: &Event, out: &mut String) {
        let mut body = Object::open(out);
        body.text(key!("eventType"), &self.event_type);
        body.plain(key!("contractAddress"), self.contract_address.as_str());
        body.number(key!("chainId"), self.chain_id);
        body.word(key!("transactionHash"), event.transaction_hash);
        write_events(event, body.member(key!("events")));
        body.plain(key!("id"), &self.id);
        body.number(key!("version"), self.version);
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
    }
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

fn write_events(event: &Event, out: &mut String) {
    let mut events = Object::open(out);
    let out = events.named(&event.name);
    match &event.args {
        Args::Transfer { from, to, value } => {
            let mut args = Object::open(out);
            args.plain(key!("from"), Checksummed::of(*from).as_str());
            args.plain(key!("to"), Checksummed::of(*to).as_str());
            args.plain(key!("value"), &value.to_string());
            args.close();
        }
        Args::Json(args) => copy_ascii(out, args),
    }
    events.close();
}

fn write_token(token: &Token, out: &mut String) {
    let mut object = Object::open(out);
    object.text(key!("symbol"), &token.symbol);
    object.number(key!("decimals"), token.decimals.into());
    object.text(key!("name"), &token.name);
    object.close();
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
        assert_eq!(message.body, expected);
    }

    #[test]
    fn a_token_that_the_list_does_not_know_has_no_member() {
        let message = Message::apply(&Event { token: None, ..transfer() }, 1, 1);
        assert!(message.body.ends_with(r#""contract":"Transfers"}"#), "{}", message.body);
    }

    #[test]
    fn text_outside_ascii_is_escaped_in_names_and_arguments() {
        let mut event = transfer();
        event.contract = "Übertrag".into();
        event.name = "Named".into();
        event.args = Args::Json(r#"{"name":"ギ𝄞"}"#.into());
        let message = Message::apply(&event, 1, 1);
        assert!(message.body.is_ascii());
        assert!(message.body.contains(r#""events":{"Named":{"name":"\u30ae\ud834\udd1e"}}"#), "{}", message.body);
        assert!(message.body.contains(r#""contract":"\u00dcbertrag""#), "{}", message.body);
    }

    #[test]
    fn a_message_comes_back_from_its_body() {
        let message = Message::apply(&transfer(), 8453, 77);
        assert_eq!(Message::from_body(&message.body), Ok(message));
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
        assert_eq!((&first.id, first.group()), (&later.id, later.group()));
        assert_ne!(first.deduplication_id(), later.deduplication_id());
    }

    #[test]
    fn the_deduplication_id_is_the_sha_256_of_id_version_and_type() {
        // printf '1:0x96cf…7e9f:17|3517290001|Transfer' | sha256sum
        let message = Message::apply(&transfer(), 1, 1_758_645_000);
        assert_eq!(message.group(), "1:0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48");
        assert_eq!(message.deduplication_id(), "1a3b249fadaa4750e919760b4211251f0bfbdc7e7c710943e81680d8eeaa617a");
    }
}

//! Messages as a consumer reads them: checked against the published schema before anything else is looked at.

use std::{str::FromStr as _, sync::LazyLock};

use alloy::primitives::{Address, U256};
use jsonschema::Validator;
use serde_json::Value;

use super::sqs::Received;

static SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
    let schema: Value = serde_json::from_str(include_str!("../../docs/message.schema.json")).unwrap();
    jsonschema::draft202012::new(&schema).unwrap()
});

/// The body of a message, which must be ASCII and keep to the schema.
pub fn well_formed(text: &str) -> Value {
    let body: Value = serde_json::from_str(text).unwrap();
    assert!(text.is_ascii(), "{body}");
    let mistakes: Vec<String> = SCHEMA.iter_errors(&body).map(|mistake| mistake.to_string()).collect();
    assert!(mistakes.is_empty(), "{mistakes:?}\n{body}");
    body
}

/// The body of a message, well formed, which must agree with the attributes beside it.
pub fn checked(received: &Received) -> Value {
    let body = well_formed(&received.body);
    let text = |member: &Value| member.as_str().map_or_else(|| member.to_string(), str::to_owned);
    let attributes = ["chainId", "contractAddress", "eventType", "id"]
        .map(|name| (name.to_owned(), ("String".to_owned(), text(&body[name]))));
    assert_eq!(received.attributes, attributes.into(), "{body}");
    body
}

/// All of them; no id may come twice.
pub fn all_checked(received: &[Received]) -> Vec<Value> {
    let messages: Vec<Value> = received.iter().map(checked).collect();
    let mut ids: Vec<&str> = messages.iter().map(|message| message["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert!(ids.is_sorted_by(|one, next| one < next), "an id comes twice: {ids:?}");
    messages
}

/// What an ERC-20 transfer is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    pub token: Address,
    pub from: Address,
    pub to: Address,
    pub value: U256,
    pub transaction: String,
    pub log_index: u64,
}

impl Transfer {
    /// Reads a message; its addresses must have their checksums.
    pub fn of(message: &Value) -> Self {
        let address = |text: &Value| Address::parse_checksummed(text.as_str().unwrap(), None).unwrap();
        let transfer = &message["events"]["Transfer"];
        Self {
            token: address(&message["contractAddress"]),
            from: address(&transfer["from"]),
            to: address(&transfer["to"]),
            value: U256::from_str(transfer["value"].as_str().unwrap()).unwrap(),
            transaction: message["transactionHash"].as_str().unwrap().to_owned(),
            log_index: message["logIndex"].as_u64().unwrap(),
        }
    }
}

//! The consumer's rule: of every id the message with the highest version counts.
//!
//! It makes the order of arrival, duplicates, late messages and reorganisations harmless at once, on one condition: a
//! retraction is remembered, also one of an id that was never seen. The transfer that it takes back may still arrive.
#![allow(clippy::indexing_slicing, reason = "a member that a JSON value lacks is null")]

use std::collections::BTreeMap;

use serde_json::Value;

/// What is known of every event, by id.
#[derive(Debug, Default)]
pub(crate) struct Fold {
    states: BTreeMap<String, State>,
}

#[derive(Debug)]
struct State {
    version: u64,
    retracted: bool,
    message: Value,
}

/// What a message changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// The event counts from now on.
    Applied,
    /// The event's block left the chain: it counts no more.
    Retracted,
    /// Nothing: this version, or a higher one, was here before.
    Known,
}

/// Why a message cannot be folded. It belongs to wherever the consumer keeps what it does not understand.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Mistake {
    /// It is not a message of this schema.
    #[error("not a message: {0}")]
    NotAMessage(String),
    /// Another message of this id and version says something else, which must never happen.
    #[error("two messages of {id}, version {version}, differ")]
    Contradiction {
        /// The event's id.
        id: String,
        /// The version that both have.
        version: u64,
    },
}

impl Fold {
    /// Takes one message's body, a JSON object.
    pub(crate) fn take(&mut self, body: &str) -> Result<News, Mistake> {
        let message: Value = serde_json::from_str(body).map_err(|error| Mistake::NotAMessage(error.to_string()))?;
        let lacks = |member: &str| Mistake::NotAMessage(format!("it lacks {member}"));
        let id = message["id"].as_str().ok_or_else(|| lacks("id"))?.to_owned();
        let version = message["version"].as_u64().ok_or_else(|| lacks("version"))?;
        let retracted = is_retraction(&message).ok_or_else(|| lacks("eventType or events"))?;
        match self.states.get(&id) {
            Some(known) if known.version == version => {
                let same = ["eventType", "events"].iter().all(|member| known.message[*member] == message[*member]);
                return if same { Ok(News::Known) } else { Err(Mistake::Contradiction { id, version }) };
            }
            Some(known) if known.version > version => return Ok(News::Known),
            _ => {}
        }
        self.states.insert(id, State { version, retracted, message });
        Ok(if retracted { News::Retracted } else { News::Applied })
    }

    /// The events that count, by id.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Value> {
        self.states.values().filter(|state| !state.retracted).map(|state| &state.message)
    }

    /// How many events were taken back.
    pub(crate) fn retracted(&self) -> usize {
        self.states.values().filter(|state| state.retracted).count()
    }
}

/// Whether a message takes an event back: its type is the event's name with `Retracted` behind it. `None` where it has no
/// type or not one event.
fn is_retraction(message: &Value) -> Option<bool> {
    let events = message["events"].as_object().filter(|events| events.len() == 1)?;
    let name = events.keys().next()?;
    match message["eventType"].as_str()?.strip_prefix(name.as_str())? {
        "" => Some(false),
        "Retracted" => Some(true),
        _ => None,
    }
}

//! The message as consumers read it (contract §8).

use crate::domain::Event;

/// One message, ready for any sink: body and attributes, built once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `{chain}:{block hash}:{log index}`.
    pub id: String,
    /// Higher for a later state of the same id.
    pub version: u64,
    /// The event's name, e.g. `Transfer`.
    pub event_type: String,
    /// The chain's id.
    pub chain_id: u64,
    /// EIP-55 address of the emitting contract.
    pub contract_address: String,
    /// The JSON object, ASCII.
    pub body: String,
}

impl Message {
    /// The message that applies `event` under `epoch`: version `2 * epoch + 1` (protocol §3.1).
    #[must_use]
    pub fn apply(event: &Event, chain_id: u64, epoch: u64) -> Self {
        let _ = (event, chain_id, epoch);
        Self {
            id: String::new(),
            version: 0,
            event_type: String::new(),
            chain_id,
            contract_address: String::new(),
            body: String::new(),
        }
    }
}

//! What every address received and sent of every token, by the transfers that count.
#![allow(clippy::indexing_slicing, reason = "a member that a JSON value lacks is null")]

use std::{collections::BTreeMap, fmt};

use alloy::primitives::U256;
use serde_json::Value;

/// Sums by token and address, in the tokens' smallest units.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    by_account: BTreeMap<(String, String), Sums>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    received: U256,
    sent: U256,
}

impl Totals {
    /// The sums over the transfers among these messages; other events are not its business.
    pub(crate) fn of<'a>(live: impl Iterator<Item = &'a Value>) -> Self {
        let mut totals = Self::default();
        for message in live {
            totals.add(message);
        }
        totals
    }

    fn add(&mut self, message: &Value) -> Option<()> {
        let token = message["contractAddress"].as_str()?;
        let transfer = &message["events"]["Transfer"];
        let (from, to) = (transfer["from"].as_str()?, transfer["to"].as_str()?);
        let value: U256 = transfer["value"].as_str()?.parse().ok()?;
        let sent = &mut self.account(token, from).sent;
        *sent = sent.saturating_add(value);
        let received = &mut self.account(token, to).received;
        *received = received.saturating_add(value);
        Some(())
    }

    fn account(&mut self, token: &str, address: &str) -> &mut Sums {
        self.by_account.entry((token.to_owned(), address.to_owned())).or_default()
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((token, address), Sums { received, sent }) in &self.by_account {
            writeln!(f, "token {token} address {address} received {received} sent {sent}")?;
        }
        Ok(())
    }
}

//! **Decode** logs into events, by the ABIs in the registry. Pure, and it never fails: what cannot be decoded is
//! counted by reason, and a log of a tracked contract is kept where an operator can see it.
//!
//! An ERC-20 transfer is recognised by topic, number of topics and length of data together (EIP-20): ERC-721 shares
//! its topic but has four topics, and early tokens do not index their arguments.

use std::{collections::BTreeMap, sync::Arc};

use alloy::{sol, sol_types::SolEvent};

use crate::{
    config::{Listener, Registry, Shape},
    domain::{Args, Event, RawLog},
    sinks::args_json,
};

sol! {
    event Transfer(address indexed from, address indexed to, uint256 value);
}

/// Topics of an ERC-20 transfer: the signature, sender and receiver.
const TRANSFER_TOPICS: usize = 3;
/// Data of an ERC-20 transfer: one word.
const TRANSFER_DATA: usize = 32;

/// What became of a batch of logs.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    /// In the order of their logs.
    pub candidates: Vec<Candidate>,
    /// How many logs matched an entry but are not that event, by reason.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Logs that an entry asks for but that are not what its ABI says; not all are of tracked contracts.
    pub undecodable: Vec<Undecodable>,
}

/// An event that someone wants if its token is tracked, or in any case.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// The event.
    pub event: Event,
    /// Whether only tracked tokens pass.
    pub token_filter: bool,
}

/// A log that an entry asks for but that is not what its ABI says.
#[derive(Clone, Debug)]
pub(super) struct Undecodable {
    /// The log.
    pub log: RawLog,
    /// The handler that it would have gone to.
    pub handler: Arc<str>,
    /// Whether the entry names the log's contract.
    pub by_address: bool,
    /// Why.
    pub reason: &'static str,
}

/// Decodes logs by every entry that matches; for one sink the first entry in the file wins (contract §7).
#[must_use]
pub(super) fn events(registry: &Registry, logs: Vec<RawLog>) -> Decoded {
    let mut decoded = Decoded::default();
    for log in logs {
        decode_one(registry, log, &mut decoded);
    }
    decoded
}

fn decode_one(registry: &Registry, log: RawLog, decoded: &mut Decoded) {
    let Some(topic0) = log.topics.first() else { return };
    let mut served = Vec::new();
    let mut refused = None;
    for listener in registry.candidates(log.address, *topic0, log.block.number) {
        if served.contains(&&listener.target) {
            continue;
        }
        match arguments(listener, &log) {
            Ok(args) => {
                served.push(&listener.target);
                decoded.candidates.push(candidate(listener, &log, args));
            }
            Err(reason) => refused = refused.or(Some((listener, reason))),
        }
    }
    // A log that some entry could decode is that entry's; the others were not meant.
    if let (true, Some((listener, reason))) = (served.is_empty(), refused) {
        *decoded.rejected.entry(reason).or_default() += 1;
        // An ERC-721 transfer is a different event, not a broken one.
        if reason != reject::ERC721 {
            let (handler, by_address) = (listener.handler.clone(), listener.address.is_some());
            decoded.undecodable.push(Undecodable { log, handler, by_address, reason });
        }
    }
}

/// Values of the metric label `reason`.
mod reject {
    pub(super) const ERC721: &str = "erc721";
    pub(super) const UNINDEXED: &str = "unindexed";
    pub(super) const MALFORMED: &str = "malformed";
}

fn arguments(listener: &Listener, log: &RawLog) -> Result<Args, &'static str> {
    match &listener.shape {
        Shape::Erc20Transfer => transfer(log),
        Shape::Other(event) => {
            let decoded =
                event.decode_log_parts(log.topics.iter().copied(), &log.data).map_err(|_| reject::MALFORMED)?;
            Ok(Args::Json(args_json(&listener.event, &decoded).into()))
        }
    }
}

fn transfer(log: &RawLog) -> Result<Args, &'static str> {
    match (log.topics.len(), log.data.len()) {
        (TRANSFER_TOPICS, TRANSFER_DATA) => {}
        (4, 0) => return Err(reject::ERC721),
        (topics, _) if topics < TRANSFER_TOPICS => return Err(reject::UNINDEXED),
        _ => return Err(reject::MALFORMED),
    }
    let Transfer { from, to, value } =
        Transfer::decode_raw_log(log.topics.iter().copied(), &log.data).map_err(|_| reject::MALFORMED)?;
    Ok(Args::Transfer { from, to, value })
}

fn candidate(listener: &Listener, log: &RawLog, args: Args) -> Candidate {
    let event = Event {
        block: log.block,
        timestamp: log.timestamp,
        transaction_hash: log.transaction_hash,
        transaction_index: log.transaction_index,
        log_index: log.log_index,
        address: log.address,
        contract: listener.contract.clone(),
        name: listener.event.name.as_str().into(),
        handler: listener.handler.clone(),
        args,
        token: None,
    };
    Candidate { event, token_filter: listener.token_filter }
}

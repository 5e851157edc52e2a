//! **Decode** logs into events, by the ABIs in the registry. Pure, and it never fails: what cannot be decoded is
//! counted by reason, and a log of a tracked contract is kept where an operator can see it.
//!
//! An ERC-20 transfer is recognised by topic, number of topics and length of data together (EIP-20): ERC-721 shares
//! its topic but has four topics, and early tokens do not index their arguments.

use std::{collections::BTreeMap, sync::Arc};

use alloy::{
    dyn_abi::{DecodedEvent, DynSolEvent},
    sol,
    sol_types::SolEvent,
};

use super::extent;
use crate::{
    config::{Listener, Registry, Shape, SinkTarget},
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
pub(super) fn events(registry: &Registry, logs: &[RawLog]) -> Decoded {
    let mut decoded = Decoded { candidates: Vec::with_capacity(logs.len()), ..Decoded::default() };
    let (mut served, mut names) = (Vec::new(), Names::default());
    for log in logs {
        served.clear();
        decode_one((registry, &mut names), log, &mut served, &mut decoded);
    }
    decoded
}

/// The names of listeners, copied once for all logs of a call. What counts who holds them would be changed several times for
/// each log otherwise, by all threads, each of which would wait for the others.
#[derive(Default)]
struct Names<'a>(Vec<(&'a Listener, [Arc<str>; 3])>);

impl<'a> Names<'a> {
    /// Of the contract, the event and the handler.
    fn of(&mut self, listener: &'a Listener) -> [Arc<str>; 3] {
        let copies = || [&listener.contract, &listener.event_name, &listener.handler].map(|name| Arc::from(&**name));
        let (_, names) = match self.0.iter_mut().find(|(known, _)| std::ptr::eq(*known, listener)) {
            Some(known) => known,
            None => self.0.push_mut((listener, copies())),
        };
        names.clone()
    }
}

/// Decodes one log; `served` are the sinks that have an event of it.
fn decode_one<'a>(
    (registry, names): (&'a Registry, &mut Names<'a>),
    log: &RawLog,
    served: &mut Vec<&'a SinkTarget>,
    decoded: &mut Decoded,
) {
    let Some(topic0) = log.topics.first() else { return };
    let mut refused = None;
    for listener in registry.candidates(log.address, *topic0, log.block.number) {
        if served.contains(&&listener.target) {
            continue;
        }
        match arguments(listener, log) {
            Ok(args) => {
                served.push(&listener.target);
                let event = event(names.of(listener), log, args);
                decoded.candidates.push(Candidate { event, token_filter: listener.token_filter });
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
            decoded.undecodable.push(Undecodable { log: log.clone(), handler, by_address, reason });
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
        Shape::Other(event) => Ok(Args::Json(args_json(&listener.event, &by_abi(event, log)?).into())),
    }
}

/// The values that the log has by its ABI. A log is refused where it says more than its data has room for, or a number
/// that its type does not have.
pub(super) fn by_abi(event: &DynSolEvent, log: &RawLog) -> Result<DecodedEvent, &'static str> {
    if !extent::is_bounded(event.body(), &log.data) {
        return Err(reject::MALFORMED);
    }
    let decoded = event.decode_log_parts(log.topics.iter().copied(), &log.data).map_err(|_| reject::MALFORMED)?;
    let exact = decoded.indexed.iter().chain(&decoded.body).all(extent::is_exact);
    if exact { Ok(decoded) } else { Err(reject::MALFORMED) }
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

fn event([contract, name, handler]: [Arc<str>; 3], log: &RawLog, args: Args) -> Event {
    Event {
        block: log.block,
        timestamp: log.timestamp,
        transaction_hash: log.transaction_hash,
        transaction_index: log.transaction_index,
        log_index: log.log_index,
        address: log.address,
        contract,
        name,
        handler,
        args,
        token: None,
    }
}

#[cfg(test)]
mod tests {
    use alloy::{
        dyn_abi::Specifier as _,
        json_abi::Event as AbiEvent,
        primitives::{Address, B256, Bytes, U256},
    };

    use super::*;
    use crate::domain::{BlockRef, Topics};

    const TOKEN: Address = Address::repeat_byte(0x11);
    const FROM: Address = Address::repeat_byte(0x22);
    const TO: Address = Address::repeat_byte(0x33);

    fn erc20() -> Registry {
        Registry::new(vec![Listener::of_transfers("Transfers", None)])
    }

    /// A log of `Transfer` with these further topics and this many bytes of data.
    fn log(topics: &[B256], data: Bytes) -> RawLog {
        let signature = Transfer::SIGNATURE_HASH;
        RawLog {
            address: TOKEN,
            topics: std::iter::once(signature).chain(topics.iter().copied()).collect(),
            data: data.into(),
            block: BlockRef { number: 7, hash: B256::repeat_byte(0xaa) },
            timestamp: 1,
            transaction_hash: B256::ZERO,
            transaction_index: 0,
            log_index: 3,
        }
    }

    fn word(value: U256) -> Bytes {
        value.to_be_bytes::<32>().into()
    }

    fn rejects(log: RawLog) -> Vec<(&'static str, u64)> {
        let decoded = events(&erc20(), &[log]);
        assert!(decoded.candidates.is_empty());
        decoded.rejected.into_iter().collect()
    }

    #[test]
    fn a_transfer_is_decoded_exactly_also_at_the_largest_amount() {
        let (from, to) = (FROM.into_word(), TO.into_word());
        let decoded = events(&erc20(), &[log(&[from, to], word(U256::MAX))]);
        let event = &decoded.candidates[0].event;
        assert_eq!(event.args, Args::Transfer { from: FROM, to: TO, value: U256::MAX });
        assert_eq!((&*event.name, &*event.contract, event.log_index), ("Transfer", "Transfers", 3));
        assert!(decoded.rejected.is_empty() && decoded.undecodable.is_empty());
    }

    #[test]
    fn r23_what_is_no_erc20_transfer_is_counted_by_reason_and_never_fatal() {
        let (from, to) = (FROM.into_word(), TO.into_word());
        assert_eq!(rejects(log(&[from, to, from], Bytes::new())), [("erc721", 1)]);
        assert_eq!(rejects(log(&[], Bytes::from(vec![0; 96]))), [("unindexed", 1)]);
        assert_eq!(rejects(log(&[from], Bytes::from(vec![0; 64]))), [("unindexed", 1)]);
        for length in [0, 31, 33, 64] {
            assert_eq!(rejects(log(&[from, to], Bytes::from(vec![0; length]))), [("malformed", 1)], "{length} bytes");
        }
        let anonymous = RawLog { topics: Topics::new(), ..log(&[], Bytes::new()) };
        assert_eq!(rejects(anonymous), []);
    }

    #[test]
    fn what_cannot_be_decoded_is_kept_but_an_erc721_transfer_is_not() {
        let (from, to) = (FROM.into_word(), TO.into_word());
        let broken = events(&erc20(), &[log(&[from, to], Bytes::from(vec![0; 31]))]).undecodable;
        assert_eq!((broken.len(), broken[0].reason, broken[0].by_address), (1, "malformed", false));
        assert!(events(&erc20(), &[log(&[from, to, from], Bytes::new())]).undecodable.is_empty());
    }

    #[test]
    fn a_log_that_says_more_than_it_has_room_for_is_refused() {
        let event = AbiEvent::parse("event Said(string[] lines)").unwrap();
        let other = Listener {
            topic0: event.selector(),
            shape: Shape::Other(event.resolve().unwrap()),
            event,
            ..Listener::of_transfers("Said", None)
        };
        let said = |lines: u64| {
            let head = [32, lines].into_iter().chain((0..lines).map(|_| lines * 32)).chain([4096]);
            let mut data: Vec<u8> = head.flat_map(|word| U256::from(word).to_be_bytes::<32>()).collect();
            data.resize(data.len() + 4096, b'x');
            RawLog { topics: [other.topic0].into_iter().collect(), ..log(&[], data.into()) }
        };
        let (one, many) = (said(1), said(2_000));
        let registry = Registry::new(vec![other]);
        assert_eq!(events(&registry, &[one]).candidates.len(), 1);
        assert_eq!(events(&registry, &[many]).rejected, [("malformed", 1)].into());
    }

    #[test]
    fn for_one_sink_the_first_entry_that_fits_wins() {
        let one = Listener::of_transfers("One", Some(TOKEN));
        let any = Listener::of_transfers("Any", None);
        let elsewhere = Listener {
            target: SinkTarget::Sqs { url: "http://localhost/q".into() },
            handler: "other".into(),
            ..Listener::of_transfers("Elsewhere", None)
        };
        let registry = Registry::new(vec![one, any, elsewhere]);
        let decoded = events(&registry, &[log(&[FROM.into_word(), TO.into_word()], word(U256::ONE))]);
        let contracts: Vec<&str> = decoded.candidates.iter().map(|found| &*found.event.contract).collect();
        assert_eq!(contracts, ["One", "Elsewhere"]);
    }
}

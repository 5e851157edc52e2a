//! How the events of a journal part are stored: a version byte, then tables of what repeats (addresses, transactions,
//! names, tokens) and one short row per event. An ERC-20 transfer takes about 60 bytes.
//!
//! Block and hash are not stored: they are in the part's key. What cannot be read back is an error, never a panic.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use alloy::primitives::{Address, B256, U256};
use serde::{Deserialize, Serialize};

use super::{MAX_PART_BYTES, MAX_PART_EVENTS, StoreError};
use crate::domain::{Args, BlockRef, Event, Token};

/// First byte of every part; another one means that another version of the program wrote it.
const VERSION: u8 = 1;

#[derive(Default, Serialize, Deserialize)]
struct Part {
    timestamp: u64,
    addresses: Vec<[u8; 20]>,
    transactions: Vec<([u8; 32], u64)>,
    names: Vec<(Arc<str>, Arc<str>, Arc<str>)>,
    tokens: Vec<Arc<Token>>,
    rows: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    log_index: u64,
    transaction: usize,
    address: usize,
    names: usize,
    token: Option<usize>,
    args: RowArgs,
}

#[derive(Serialize, Deserialize)]
enum RowArgs {
    /// The value as big-endian bytes without leading zeros.
    Transfer(usize, usize, Vec<u8>),
    Json(Arc<str>),
}

/// Collects distinct values in the order of their first use.
struct Table<T> {
    places: HashMap<T, usize>,
    values: Vec<T>,
}

impl<T: Clone + Eq + Hash> Table<T> {
    fn new() -> Self {
        Self { places: HashMap::new(), values: Vec::new() }
    }

    fn place(&mut self, value: T) -> usize {
        *self.places.entry(value).or_insert_with_key(|value| {
            self.values.push(value.clone());
            self.values.len() - 1
        })
    }
}

/// Packs events of one block.
///
/// # Errors
///
/// [`StoreError::Fatal`] where an event is of another block than `block`, or times differ: a fault in this program.
pub(super) fn pack(block: BlockRef, events: &[Event]) -> Result<Vec<u8>, StoreError> {
    let timestamp = events.first().map_or(0, |event| event.timestamp);
    if events.iter().any(|event| event.block != block || event.timestamp != timestamp) {
        return Err(StoreError::Fatal(format!(
            "cannot journal block {block}: an event of another block is among its events"
        )));
    }
    let mut addresses = Table::new();
    let mut transactions = Table::new();
    let mut names = Table::new();
    let mut tokens: Vec<Arc<Token>> = Vec::new();
    let mut rows = Vec::with_capacity(events.len());
    for event in events {
        let args = match &event.args {
            Args::Transfer { from, to, value } => RowArgs::Transfer(
                addresses.place(from.into_array()),
                addresses.place(to.into_array()),
                value.to_be_bytes_trimmed_vec(),
            ),
            Args::Json(json) => RowArgs::Json(Arc::clone(json)),
        };
        rows.push(Row {
            log_index: event.log_index,
            transaction: transactions.place((event.transaction_hash.0, event.transaction_index)),
            address: addresses.place(event.address.into_array()),
            names: names.place((Arc::clone(&event.contract), Arc::clone(&event.name), Arc::clone(&event.handler))),
            token: event.token.as_ref().map(|token| place_token(&mut tokens, token)),
            args,
        });
    }
    let part = Part {
        timestamp,
        addresses: addresses.values,
        transactions: transactions.values,
        names: names.values,
        tokens,
        rows,
    };
    postcard::to_extend(&part, vec![VERSION])
        .map_err(|error| StoreError::Fatal(format!("cannot pack the events of block {block}: {error}")))
}

/// The events of a block in the parts in which they are journaled and sent, in their order: each of at most
/// [`MAX_PART_EVENTS`] and, unless it is a single event, [`MAX_PART_BYTES`] (protocol §4). None where there are none.
pub fn parts(events: &[Event]) -> impl Iterator<Item = &[Event]> {
    let mut rest = events;
    std::iter::from_fn(move || {
        let (mut events, mut bytes) = (0, PART_BYTES);
        let mut before = None;
        for event in rest.iter().take(MAX_PART_EVENTS) {
            bytes += estimate(event, before);
            if events > 0 && bytes > MAX_PART_BYTES {
                break;
            }
            (events, before) = (events + 1, Some(event));
        }
        let (part, behind) = rest.split_at_checked(events).filter(|_| events > 0)?;
        rest = behind;
        Some(part)
    })
}

/// Bytes of a part without its events: the version, the time, and the lengths of six tables.
const PART_BYTES: usize = 64;
/// Bytes of a row without its arguments: five numbers of at most ten bytes, and what tells their kind.
const ROW_BYTES: usize = 52;
/// Bytes of the length of a text, and of a place in a table.
const LENGTH_BYTES: usize = 5;

/// At most this many bytes more when [`pack`] adds the event behind `before`. What the two share is counted once, as the
/// tables do; what an event shares with an earlier one is counted again, so it is a bound and no measure.
fn estimate(event: &Event, before: Option<&Event>) -> usize {
    let text = |text: &str| LENGTH_BYTES + text.len();
    let new = |bytes: usize, same: &dyn Fn(&Event) -> bool| if before.is_some_and(same) { 0 } else { bytes };
    let args = match &event.args {
        Args::Transfer { .. } => 2 * (20 + LENGTH_BYTES) + 1 + 32,
        Args::Json(json) => text(json),
    };
    let names = text(&event.contract) + text(&event.name) + text(&event.handler);
    let token = event.token.as_ref().map_or(0, |token| 22 + text(&token.symbol) + text(&token.name));
    ROW_BYTES
        + args
        + new(32 + 10, &|before| before.transaction_hash == event.transaction_hash)
        + new(20, &|before| before.address == event.address)
        + new(names, &|before| {
            (&before.contract, &before.name, &before.handler) == (&event.contract, &event.name, &event.handler)
        })
        + new(token, &|before| before.token == event.token)
}

/// A block has few distinct tokens, so a search from the end is short.
fn place_token(tokens: &mut Vec<Arc<Token>>, token: &Arc<Token>) -> usize {
    tokens.iter().rposition(|known| Arc::ptr_eq(known, token) || known == token).unwrap_or_else(|| {
        tokens.push(Arc::clone(token));
        tokens.len() - 1
    })
}

/// The events of `block` that [`pack`] packed.
///
/// # Errors
///
/// [`StoreError::Fatal`] where the bytes are not a part of this version.
pub(super) fn unpack(block: BlockRef, bytes: &[u8]) -> Result<Vec<Event>, StoreError> {
    let unreadable = |why: &str| {
        StoreError::Fatal(format!(
            "the journal of block {block} is unreadable ({why}): restore the store or `reset` it"
        ))
    };
    let part: Part = match bytes.split_first() {
        Some((&VERSION, rest)) => match postcard::take_from_bytes(rest) {
            Ok((part, [])) => part,
            Ok(_) => return Err(unreadable("surplus bytes")),
            Err(error) => return Err(unreadable(&error.to_string())),
        },
        Some((version, _)) => return Err(unreadable(&format!("format version {version}"))),
        None => return Err(unreadable("empty")),
    };
    part.rows
        .iter()
        .map(|row| part.event(block, row))
        .collect::<Option<_>>()
        .ok_or_else(|| unreadable("a place beyond its table"))
}

impl Part {
    fn event(&self, block: BlockRef, row: &Row) -> Option<Event> {
        let address = |place: usize| self.addresses.get(place).copied().map(Address::from);
        let (transaction_hash, transaction_index) = self.transactions.get(row.transaction)?;
        let (contract, name, handler) = self.names.get(row.names)?;
        Some(Event {
            block,
            timestamp: self.timestamp,
            transaction_hash: B256::from(*transaction_hash),
            transaction_index: *transaction_index,
            log_index: row.log_index,
            address: address(row.address)?,
            contract: Arc::clone(contract),
            name: Arc::clone(name),
            handler: Arc::clone(handler),
            args: match &row.args {
                RowArgs::Transfer(from, to, value) => {
                    Args::Transfer { from: address(*from)?, to: address(*to)?, value: U256::try_from_be_slice(value)? }
                }
                RowArgs::Json(json) => Args::Json(Arc::clone(json)),
            },
            token: match row.token {
                Some(place) => Some(Arc::clone(self.tokens.get(place)?)),
                None => None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: BlockRef = BlockRef { number: 17_000_000, hash: B256::repeat_byte(9) };

    fn names(contract: &str, handler: &str) -> (Arc<str>, Arc<str>, Arc<str>) {
        (contract.into(), "Transfer".into(), handler.into())
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let args = prop_oneof![
            (0u8..5, 0u8..5, any::<[u8; 32]>(), 0usize..=256).prop_map(|(from, to, value, shift)| Args::Transfer {
                from: Address::repeat_byte(from),
                to: Address::repeat_byte(to),
                value: U256::from_be_bytes(value).checked_shr(shift).unwrap_or_default(),
            }),
            ".{0,40}".prop_map(|json| Args::Json(json.as_str().into())),
        ];
        let token = prop::option::of((0u8..3, ".{0,8}", any::<u8>()));
        let event = (args, token, any::<u64>(), any::<u64>(), any::<[u8; 2]>());
        prop::collection::vec(event, 0..30).prop_map(|rows| {
            rows.into_iter()
                .map(|(args, token, log_index, transaction_index, [address, handler])| {
                    let (contract, name, handler) = names("Transfers", &format!("handle{}", handler % 3));
                    Event {
                        block: BLOCK,
                        timestamp: 1_680_911_891,
                        transaction_hash: B256::repeat_byte(address),
                        transaction_index,
                        log_index,
                        address: Address::repeat_byte(address),
                        contract,
                        name,
                        handler,
                        args,
                        token: token.map(|(address, symbol, decimals)| {
                            let address = Address::repeat_byte(address);
                            Arc::new(Token { address, name: symbol.clone(), symbol, decimals })
                        }),
                    }
                })
                .collect()
        })
    }

    /// The proportions of Ethereum's block 17,000,000: 112 transfers in 45 transactions among 136 addresses.
    fn mainnet_block() -> Vec<Event> {
        let (contract, name, handler) = names("Transfers", "handleTransferEvent");
        let address = |i: u64| Address::from_word(B256::from(U256::from(i % 136) + U256::from(1u64 << 40)));
        let token =
            Arc::new(Token { address: address(0), symbol: "USDC".into(), name: "USD Coin".into(), decimals: 6 });
        (0..112)
            .map(|i| Event {
                block: BLOCK,
                timestamp: 1_680_911_891,
                transaction_hash: B256::from(U256::from(i * 45 / 112)),
                transaction_index: i * 45 / 112,
                log_index: i * 3,
                address: address(i % 20),
                contract: Arc::clone(&contract),
                name: Arc::clone(&name),
                handler: Arc::clone(&handler),
                args: Args::Transfer {
                    from: address(i),
                    to: address(i + 24),
                    value: U256::from(1_500_000_000_000_000_000u64),
                },
                token: Some(Arc::clone(&token)),
            })
            .collect()
    }

    #[test]
    fn an_erc20_transfer_takes_at_most_64_bytes() {
        let events = mainnet_block();
        let bytes = pack(BLOCK, &events).unwrap();
        assert!(bytes.len() <= 64 * events.len(), "{} bytes an event", bytes.len() / events.len());
        assert_eq!(unpack(BLOCK, &bytes).unwrap(), events);
    }

    #[test]
    fn transfers_are_cut_by_their_number_and_large_events_by_their_bytes() {
        let sizes = |events: &[Event]| parts(events).map(<[Event]>::len).collect::<Vec<_>>();
        let transfers = vec![mainnet_block(); 20].concat();
        assert_eq!(sizes(&transfers), [1_000, 1_000, 240]);
        let json = |bytes: usize| Event { args: Args::Json("x".repeat(bytes).into()), ..transfers[0].clone() };
        assert_eq!(sizes(&[json(100_000), json(100_000), json(100_000)]), [2, 1]);
        assert_eq!(sizes(&[json(1), json(300_000), json(1)]), [1, 1, 1]);
        assert_eq!(sizes(&[]), [0usize; 0]);
    }

    #[test]
    fn an_event_of_another_block_is_refused() {
        let events = mainnet_block();
        let other = BlockRef { number: 1, ..BLOCK };
        assert!(matches!(pack(other, &events), Err(StoreError::Fatal(_))));
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let error = unpack(BLOCK, &[7, 0, 0]).unwrap_err().to_string();
        assert!(error.contains("format version 7"), "{error}");
        assert!(unpack(BLOCK, &[]).is_err());
    }

    proptest! {
        #[test]
        fn what_was_packed_comes_back(events in events()) {
            prop_assert_eq!(unpack(BLOCK, &pack(BLOCK, &events).unwrap()).unwrap(), events);
        }

        #[test]
        fn parts_are_everything_in_order_and_within_both_limits(
            events in events(), copies in 1usize..90, padding in prop_oneof![Just(0usize), 1usize..20_000, Just(400_000)],
        ) {
            let mut events = vec![events; copies].concat();
            for event in events.iter_mut().step_by(7) {
                event.args = Args::Json("x".repeat(padding).into());
            }
            events.truncate(1 + 60_000_000 / (padding * 20 + 20_000));
            prop_assert_eq!(parts(&events).collect::<Vec<_>>().concat(), events.clone());
            for part in parts(&events) {
                let bytes = pack(BLOCK, part).unwrap().len();
                prop_assert!((1..=MAX_PART_EVENTS).contains(&part.len()));
                prop_assert!(bytes <= MAX_PART_BYTES || part.len() == 1, "{} events, {bytes} bytes", part.len());
            }
        }

        #[test]
        fn garbage_is_an_error_and_no_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            if let Err(error) = unpack(BLOCK, &bytes) {
                prop_assert!(matches!(error, StoreError::Fatal(_)));
            }
        }

        #[test]
        fn a_part_with_a_broken_byte_never_panics(at in 0usize..2_000, value in any::<u8>()) {
            let mut bytes = pack(BLOCK, &mainnet_block()).unwrap();
            let place = at % bytes.len();
            bytes[place] = value;
            if let Ok(events) = unpack(BLOCK, &bytes) {
                prop_assert!(events.len() <= bytes.len());
            }
        }
    }
}

//! What tokens and contracts are called where the filter is published, and what of a block concerns some of them.

use std::collections::{BTreeMap, BTreeSet};

use alloy::primitives::{Address, hex, keccak256};

use super::{super::Decoded, Filter, Reading};
use crate::{
    config::{Listener, Registry},
    domain::TokenList,
    rpc::LogFilter,
};

const TOKEN: &str = "token:";
const CONTRACT: &str = "contract:";
/// Of an entry's name, what stands in its key: a key is at most 200 bytes.
const NAME_SHOWN: usize = 64;
/// Of the hash of what an entry says, so many bytes stand in its key.
const FINGERPRINT: usize = 8;
/// Most addresses in one request; of more contracts than that, the logs of any are asked for.
const MAX_ADDRESSES: usize = 100;

/// Keys of what is filtered with, each with its own first block where it has one.
pub(super) type Members = BTreeMap<String, Option<u64>>;

/// What this process wants to filter with.
pub(super) fn wanted(registry: &Registry, reading: Option<&Reading>) -> Members {
    let contracts = registry.listeners().iter();
    let contracts = contracts.map(|listener| (contract(listener, reading.is_some()), listener.start_block));
    let tokens = reading.into_iter().flat_map(|reading| {
        reading.tokens.iter().map(|listed| (token(listed.address), reading.from.get(&listed.address).copied()))
    });
    contracts.chain(tokens).collect()
}

/// The keys of contracts among these.
pub(super) fn contracts<'a>(keys: impl IntoIterator<Item = &'a String>) -> impl Iterator<Item = &'a String> {
    keys.into_iter().filter(|key| key.starts_with(CONTRACT))
}

fn token(address: Address) -> String {
    format!("{TOKEN}{address:#x}")
}

/// An entry's name, and a fingerprint of all that decides which events of which contracts it is. Whether it filters by
/// token counts only where there is a list.
fn contract(listener: &Listener, is_filtering: bool) -> String {
    let Listener { contract, address, event, topic0, handler, token_filter, .. } = listener;
    let indexed: Vec<bool> = event.inputs.iter().map(|input| input.indexed).collect();
    let filtered = *token_filter && is_filtering;
    let said = format!("{contract}\n{topic0}\n{indexed:?}\n{address:?}\n{handler}\n{filtered}");
    let plain = |sign: char| if sign.is_ascii_alphanumeric() || "-_.".contains(sign) { sign } else { '_' };
    let name: String = contract.chars().take(NAME_SHOWN).map(plain).collect();
    let hash = keccak256(said);
    format!("{CONTRACT}{name}:{}", hex::encode(hash.get(..FINGERPRINT).unwrap_or_default()))
}

/// The contracts whose logs anyone wants, where that depends on the list; `None` where it does not, or more are wanted than
/// one request takes.
pub(super) fn addresses(registry: &Registry, list: &TokenList) -> Option<Vec<Address>> {
    let (fixed, any): (Vec<_>, Vec<_>) = registry.listeners().iter().partition(|listener| listener.address.is_some());
    if any.is_empty() || !any.iter().all(|listener| listener.token_filter) || list.len() > MAX_ADDRESSES {
        return None;
    }
    let fixed = fixed.into_iter().filter_map(|listener| listener.address);
    let wanted: BTreeSet<Address> = fixed.chain(list.iter().map(|token| token.address)).collect();
    // None at all would mean any to most nodes.
    (1..=MAX_ADDRESSES).contains(&wanted.len()).then(|| wanted.into_iter().collect())
}

/// Members that joined the filter after blocks had been filtered without them.
#[derive(Debug)]
pub(in crate::pipeline) struct Joined<'a> {
    tokens: BTreeSet<Address>,
    listeners: Vec<&'a Listener>,
    /// What nodes are asked for.
    pub(in crate::pipeline) logs: LogFilter,
}

impl<'a> Joined<'a> {
    /// Those of these keys that are still in the filter; `None` where there is nothing to look for.
    pub(in crate::pipeline) fn of(keys: &[String], registry: &'a Registry, filter: &Filter) -> Option<Self> {
        let is_filtering = filter.tokens.is_some();
        let addresses = keys.iter().filter_map(|key| key.strip_prefix(TOKEN)?.parse::<Address>().ok());
        let tracked = |address: &Address| filter.tokens.as_ref().is_some_and(|list| list.get(address).is_some());
        let tokens: BTreeSet<Address> = addresses.filter(tracked).collect();
        let joined = |listener: &&Listener| keys.contains(&contract(listener, is_filtering));
        let listeners: Vec<&Listener> = registry.listeners().iter().filter(joined).collect();
        let filtered = registry.listeners().iter().filter(|listener| listener.token_filter && !tokens.is_empty());
        let mut topics: Vec<_> = listeners.iter().copied().chain(filtered).map(|listener| listener.topic0).collect();
        topics.sort_unstable();
        topics.dedup();
        if topics.is_empty() {
            return None;
        }
        let fixed: Option<BTreeSet<Address>> = listeners.iter().map(|listener| listener.address).collect();
        let addresses: Vec<Address> = fixed.map(|fixed| fixed.union(&tokens).copied().collect()).unwrap_or_default();
        let addresses = if addresses.len() > MAX_ADDRESSES { Vec::new() } else { addresses };
        Some(Self { tokens, listeners, logs: LogFilter { addresses, topics } })
    }

    /// What concerns them.
    pub(in crate::pipeline) fn only(&self, mut decoded: Decoded) -> Decoded {
        decoded.candidates.retain(|candidate| {
            let event = &candidate.event;
            let is_of = |listener: &&Listener| {
                listener.contract == event.contract
                    && listener.handler == event.handler
                    && *listener.event.name == *event.name
            };
            candidate.token_filter && self.tokens.contains(&event.address) || self.listeners.iter().any(is_of)
        });
        decoded.undecodable.retain(|log| {
            self.tokens.contains(&log.log.address)
                || self.listeners.iter().any(|listener| listener.handler == log.handler)
        });
        decoded
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use alloy::primitives::B256;

    use super::*;
    use crate::{config::SinkTarget, domain::Token};

    fn listener(contract: &str, address: Option<Address>, token_filter: bool) -> Listener {
        Listener { token_filter, ..Listener::of_transfers(contract, address) }
    }

    fn filter(tokens: impl IntoIterator<Item = u8>) -> Filter {
        let token = |n| Token { address: Address::repeat_byte(n), symbol: "T".into(), name: "T".into(), decimals: 18 };
        Filter { version: 1, tokens: Some(Arc::new(tokens.into_iter().map(token).collect::<TokenList>())), since: -1 }
    }

    #[test]
    fn a_contracts_key_changes_with_what_decides_about_its_events_and_with_nothing_else() {
        let key = |listener: &Listener| contract(listener, true);
        let one = listener("Transfers", None, true);
        assert!(key(&one).starts_with("contract:Transfers:") && key(&one).len() == 19 + 2 * FINGERPRINT);
        let changed = [
            listener("Others", None, true),
            listener("Transfers", Some(Address::ZERO), true),
            listener("Transfers", None, false),
            Listener { topic0: B256::ZERO, ..listener("Transfers", None, true) },
            Listener { handler: "other".into(), ..listener("Transfers", None, true) },
        ];
        assert!(changed.iter().all(|other| key(other) != key(&one)));
        let moved = Listener {
            start_block: Some(7),
            target: SinkTarget::sqs("http://localhost/1/q"),
            ..listener("Transfers", None, true)
        };
        assert_eq!(key(&moved), key(&one), "where it begins and which queue takes it leave its events what they are");
        assert_eq!(contract(&one, false), contract(&listener("Transfers", None, false), false));
        assert!(key(&listener(&"é ".repeat(500), None, true)).len() <= 200);
    }

    #[test]
    fn nodes_are_asked_for_what_joined_alone() {
        let own = Address::repeat_byte(9);
        let registry = Registry::new(vec![listener("Any", None, true), listener("One", Some(own), false)]);
        let keys =
            |numbers: &[u8]| -> Vec<String> { numbers.iter().map(|n| token(Address::repeat_byte(*n))).collect() };
        let joined = Joined::of(&keys(&[1, 3]), &registry, &filter([1, 2])).unwrap();
        assert_eq!(joined.logs.addresses, [Address::repeat_byte(1)], "the third is not listed any more");
        assert_eq!(joined.logs.topics.len(), 1);
        assert!(Joined::of(&keys(&[3]), &registry, &filter([1, 2])).is_none());
        let one = contract(&registry.listeners()[1], true);
        let joined = Joined::of(&[one, keys(&[1])[0].clone()], &registry, &filter([1])).unwrap();
        assert_eq!(joined.logs.addresses, [Address::repeat_byte(1), own]);
        let any = contract(&registry.listeners()[0], true);
        assert!(Joined::of(&[any], &registry, &filter([1])).unwrap().logs.addresses.is_empty());
        let many: Vec<u8> = (1..=101).collect();
        assert!(Joined::of(&keys(&many), &registry, &filter(many.clone())).unwrap().logs.addresses.is_empty());
    }

    #[test]
    fn history_is_asked_of_tracked_tokens_alone_where_they_are_few() {
        let own = Address::repeat_byte(0);
        let of = |listeners: Vec<Listener>, tokens: u16| {
            let token = |n: u16| Address::left_padding_from(&(n + 1).to_be_bytes());
            let token = |n| Token { address: token(n), symbol: "T".into(), name: "T".into(), decimals: 18 };
            addresses(&Registry::new(listeners), &(0..tokens).map(token).collect()).map(|addresses| addresses.len())
        };
        let any = |token_filter| listener("Any", None, token_filter);
        let one = || listener("One", Some(own), false);
        assert_eq!(of(vec![any(true)], 99), Some(99));
        assert_eq!(of(vec![any(true), one()], 99), Some(100));
        assert_eq!(of(vec![any(true), one()], 100), None, "more than a request takes");
        assert_eq!(of(vec![one()], 99), None, "no entry filters by the list");
        assert_eq!(of(vec![any(true)], 0), None, "no address is any address");
        assert_eq!(of(vec![any(true), any(false)], 9), None, "every contract's events are wanted");
    }
}

//! **Filter** events by the tokens that the business tracks.
//!
//! What is filtered with has one version per chain, and one version is one set of tokens and contracts on every replica
//! (protocol §4, `PUBLISH_FILTER`): [`tokens`] reads the directory, [`publish`] makes its list the chain's, and every
//! range is filtered with one immutable [`Filter`], whose version goes with it into the journal and the commit. Without a
//! published version nothing is delivered (I10). [`members`] says what a token or a contract is called there, and what
//! of a block concerns those that joined later.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use alloy::primitives::Address;
use tokio::sync::{Notify, watch};

use super::{Candidate, Context, Decoded, StageError, Undecodable, View};
use crate::{
    config::{Listener, Registry},
    domain::{BlockRef, Event, RawLog, TokenList},
    rpc::LogFilter,
};

mod members;
mod publish;
mod tokens;

pub(super) use members::Joined;
pub(super) use publish::keep_published;
pub use tokens::{Reading, Tokens, keep_fresh};

/// What events are filtered with, under the version that it was published as.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    /// The chain's filter version.
    pub(super) version: u64,
    /// Only events of these tokens pass, where their entry asks for it; `None`: every event passes.
    pub(super) tokens: Option<Arc<TokenList>>,
    /// The tip when this process began to use the version: every block above it was filtered with it.
    pub(super) since: i64,
}

impl Filter {
    /// What nodes are asked for of history: the contracts that anyone wants alone, where they are few.
    pub(super) fn of_history<'a>(&self, ctx: &'a Context) -> Cow<'a, LogFilter> {
        let addresses = self.tokens.as_ref().and_then(|list| members::addresses(&ctx.registry, list));
        addresses.map_or(Cow::Borrowed(&ctx.log_filter), |addresses| {
            Cow::Owned(LogFilter { addresses, topics: ctx.log_filter.topics.clone() })
        })
    }
}

/// The filter in use: what the stages ask for, and what tells its keepers that there is a newer one.
#[derive(Debug)]
pub struct Filters {
    tokens: watch::Receiver<Tokens>,
    reload: Arc<Notify>,
    outdated: Notify,
    current: watch::Sender<Option<Arc<Filter>>>,
}

impl Filters {
    /// Filters with the lists that [`keep_fresh`] sends to `tokens`; `reload` is what wakes it.
    #[must_use]
    pub fn new(tokens: watch::Receiver<Tokens>, reload: Arc<Notify>) -> Self {
        Self { tokens, reload, outdated: Notify::new(), current: watch::channel(None).0 }
    }

    /// Every token passes; only what is listened to has a version.
    #[must_use]
    pub fn off() -> Self {
        Self::new(watch::channel(Tokens::Off).1, Arc::default())
    }

    /// The lists as the directory has them, published or not.
    #[must_use]
    pub fn tokens(&self) -> watch::Receiver<Tokens> {
        self.tokens.clone()
    }

    /// The filter in use; one range takes it once.
    pub(super) fn now(&self) -> Result<Arc<Filter>, StageError> {
        self.current.borrow().clone().ok_or(StageError::Again("what to filter with is not published"))
    }

    /// Waits for the first one.
    pub(super) async fn ready(&self) {
        let mut current = self.current.subscribe();
        // Fails only without a sender, and there is one for as long as there is this.
        while current.borrow_and_update().is_none() && current.changed().await.is_ok() {}
    }

    /// Whether a contract is a tracked token now; of use to a planted fault alone, because what was sent is taken back
    /// whatever the list says.
    pub(super) fn tracks(&self, address: &Address) -> bool {
        let lists = self.now().ok().and_then(|filter| filter.tokens.clone());
        lists.is_none_or(|list| list.get(address).is_some())
    }

    /// The store knows a newer filter: it is looked for at once.
    pub(super) fn moved_on(&self) -> StageError {
        self.outdated.notify_one();
        StageError::Again("the token list or the contracts moved on")
    }

    /// Uses this filter from now on; `None`: nothing may be delivered.
    fn adopt(&self, filter: Option<Filter>) {
        self.current.send_replace(filter.map(Arc::new));
    }
}

/// What passed the filter.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Version of the filter.
    pub version: u64,
    /// Events to deliver, in the order of their logs, with what is known of their tokens.
    pub events: Vec<Event>,
    /// Logs of tracked contracts that could not be decoded.
    pub undecodable: Vec<Undecodable>,
}

impl Wanted {
    /// The same block by block, ascending.
    pub(super) fn by_block(self) -> BTreeMap<BlockRef, Self> {
        let mut blocks: BTreeMap<BlockRef, Self> = BTreeMap::new();
        let of = || Self { version: self.version, ..Self::default() };
        for event in self.events {
            blocks.entry(event.block).or_insert_with(of).events.push(event);
        }
        for log in self.undecodable {
            blocks.entry(log.log.block).or_insert_with(of).undecodable.push(log);
        }
        blocks
    }
}

/// Drops the logs that nobody can want whatever they say, before they are decoded: of most chains nearly all.
pub(super) fn by_address(filter: &Filter, registry: &Registry, mut logs: Vec<RawLog>) -> Vec<RawLog> {
    let Some(list) = &filter.tokens else { return logs };
    // What an entry names is kept in any case: where it cannot be decoded, an operator is told.
    let wants = |one: &Listener, log: &RawLog| one.address.map_or(!one.token_filter, |address| address == log.address);
    logs.retain(|log| {
        list.get(&log.address).is_some() || registry.listeners().iter().any(|listener| wants(listener, log))
    });
    // What is left of some megabytes waits for the sinks.
    logs.shrink_to_fit();
    logs
}

/// Keeps what someone wants.
pub(super) fn by_token(filter: &Filter, decoded: Decoded) -> Wanted {
    let list = filter.tokens.as_ref();
    let token = |address: Address| list.and_then(|list| list.get(&address)).cloned();
    let wanted = |candidate: Candidate| {
        let token = token(candidate.event.address);
        let passes = token.is_some() || !candidate.token_filter || list.is_none();
        passes.then_some(Event { token, ..candidate.event })
    };
    let tracked = |log: &Undecodable| log.by_address || token(log.log.address).is_some();
    Wanted {
        version: filter.version,
        events: decoded.candidates.into_iter().filter_map(wanted).collect(),
        undecodable: decoded.undecodable.into_iter().filter(tracked).collect(),
    }
}

#[cfg(test)]
mod tests {
    use alloy::{
        primitives::{B256, U256, b256},
        sol_types::SolValue as _,
    };
    use proptest::prelude::*;

    use super::{super::decode, *};
    use crate::domain::Token;

    /// keccak256 of `Transfer(address,address,uint256)` (EIP-20).
    const TRANSFER: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");

    fn log(contract: u8, log_index: u64, topics: usize) -> RawLog {
        RawLog {
            address: Address::repeat_byte(contract),
            topics: std::iter::once(TRANSFER).chain([B256::ZERO; 3]).take(topics).collect(),
            data: U256::from(log_index).abi_encode().into(),
            block: BlockRef { number: 7, hash: B256::ZERO },
            timestamp: 1,
            transaction_hash: B256::ZERO,
            transaction_index: 0,
            log_index,
        }
    }

    proptest! {
        #[test]
        fn what_is_dropped_before_it_is_decoded_nobody_wants_afterwards(
            listeners in prop::collection::vec((prop::option::of(0_u8..6), any::<bool>()), 1..4),
            logs in prop::collection::vec((0_u8..6, 1_usize..5), 0..20),
            listed in prop::option::of(prop::collection::btree_set(0_u8..6, 0..4)),
        ) {
            let listener = |(contract, token_filter): (Option<u8>, bool)| {
                Listener { token_filter, ..Listener::of_transfers("Transfers", contract.map(Address::repeat_byte)) }
            };
            let registry = Registry::new(listeners.into_iter().map(listener).collect());
            let token =
                |n| Token { address: Address::repeat_byte(n), symbol: "T".into(), name: "T".into(), decimals: 18 };
            let tokens = listed.map(|listed| Arc::new(listed.into_iter().map(token).collect::<TokenList>()));
            let filter = Filter { version: 1, tokens, since: -1 };
            let logs: Vec<RawLog> =
                logs.into_iter().zip(0..).map(|((contract, topics), index)| log(contract, index, topics)).collect();
            let of = |logs: Vec<RawLog>| {
                let wanted = by_token(&filter, decode::events(&registry, &logs));
                let undecodable: Vec<u64> = wanted.undecodable.iter().map(|log| log.log.log_index).collect();
                (wanted.events, undecodable)
            };
            prop_assert_eq!(of(by_address(&filter, &registry, logs.clone())), of(logs));
        }
    }
}

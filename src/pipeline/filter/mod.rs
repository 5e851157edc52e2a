//! **Filter** events by the tokens that the business tracks.
//!
//! What is filtered with has one version per chain, and one version is one set of tokens and contracts on every replica
//! (protocol §4, `PUBLISH_FILTER`): [`tokens`] reads the directory, [`publish`] makes its list the chain's, and every
//! range is filtered with one immutable [`Filter`], whose version goes with it into the journal and the commit. Without a
//! published version nothing is delivered (I10). [`members`] says what a token or a contract is called there, and what
//! of a block concerns those that joined later.

use std::{collections::BTreeMap, sync::Arc};

use alloy::primitives::Address;
use tokio::sync::{Notify, watch};

use super::{Candidate, Context, Decoded, StageError, Undecodable, View};
use crate::domain::{BlockRef, Event, TokenList};

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

//! The chain's edge: heads, headers and logs from EVM nodes.
//!
//! [`ChainSource`] is what the pipeline sees. Everything it returns is validated: a log belongs to the block or range
//! that was asked for, and a range is complete up to a header that came in the same answer.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::domain::{BlockRange, BlockRef, Header, RawLog};

mod bearing;
mod blooms;
mod breaker;
mod budget;
mod caps;
mod client;
mod connection;
mod direct;
mod endpoint;
mod endpoints;
mod error;
mod floor;
mod form;
pub(crate) mod fuzzing;
mod heads;
mod masked;
mod opinions;
mod patience;
pub mod probe;
mod proofs;
mod proving;
mod question;
mod quorum;
mod readers;
mod receipts;
mod replies;
mod route;
mod socket;
mod tap;
mod transport;
mod unknown;
mod wire;
mod words;

pub use bearing::described;
pub use caps::{Allowance, Bounds, Caps, Learned};
pub use endpoints::Endpoints;
pub use quorum::{QUORUM_OF, Votes};
pub use replies::count_logs;
pub use tap::keys;

/// Which block to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The newest block.
    Latest,
    /// The newest block that the node calls safe.
    Safe,
    /// The newest block that the node calls finalized.
    Finalized,
    /// The canonical block of this height.
    Number(u64),
    /// The block with this hash, canonical or not.
    Hash(B256),
}

/// Which logs to ask for: any of the addresses (none = all) with any of the topics as first topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LogFilter {
    /// Emitting contracts; empty means any.
    pub addresses: Vec<Address>,
    /// First topics; never empty, or everything would be asked for.
    pub topics: Vec<B256>,
}

/// The logs of a range, proven complete up to the header of its last block.
#[derive(Clone, Debug)]
pub struct RangeLogs {
    /// Ordered by block and log index, without duplicates.
    pub logs: Vec<RawLog>,
    /// Header of the first block, from the same batch.
    pub first: Header,
    /// Header of the last block that was read, from the same batch.
    pub last: Header,
}

/// How much history is worked on at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Ranges at once, at least 1; and no more requests for ranges are in flight at one endpoint, which others wait for.
    pub parallel: usize,
    /// Time between the beginnings of two of them, up to 10 s.
    pub spacing: std::time::Duration,
}

/// A chain that can be listened to.
///
/// # Errors
///
/// Every method answers with the [`RpcError`] that says what the caller should do.
#[async_trait]
pub trait ChainSource: Send + Sync {
    /// The chain's id, asked of the node.
    async fn chain_id(&self) -> Result<u64, RpcError>;

    /// A header; `None` where the node does not have that block, or not that tag.
    async fn header(&self, at: At) -> Result<Option<Header>, RpcError>;

    /// The matching logs of one block, asked for by its hash.
    async fn block_logs(&self, block: BlockRef, timestamp: u64, filter: &LogFilter) -> Result<Vec<RawLog>, RpcError>;

    /// The matching logs of the first blocks of a range, of as many as the endpoint bears that answers: `last` says how
    /// far, and the caller goes on from there. [`RpcError::TooLarge`] where it refuses even the first block alone, which
    /// may be asked for by its hash.
    async fn range_logs(&self, range: BlockRange, filter: &LogFilter) -> Result<RangeLogs, RpcError>;

    /// The logs of the first blocks of a range, as [`range_logs`](Self::range_logs), as others have them than the endpoint
    /// that served them one by one: one opinion, or two of the same blocks where nobody knows who did, so that one of them
    /// is another's. None where there is no other endpoint; that one is ejected, or does not answer, is an error.
    async fn second_opinion(&self, range: BlockRange, filter: &LogFilter) -> Result<Vec<RangeLogs>, RpcError>;

    /// What every endpoint has at this height, asked side by side: for what one endpoint's word is not enough for.
    async fn witnesses(&self, number: u64) -> Vec<Witness>;

    /// Asks this endpoint no more for some minutes: it is on another fork. Where all are, they are asked all the same.
    fn eject(&self, endpoint: &str, reason: &str);

    /// Asks this endpoint no more for a short time: it alone has another block than the others, which may be news that they
    /// do not have yet.
    fn set_aside(&self, endpoint: &str, reason: &str);

    /// Looks after the endpoints that no request is sent to: whether one that failed serves again, and where their heads are.
    /// Never returns, and may be dropped at any time; without it an endpoint that failed comes back only where all others
    /// fail, too.
    async fn tend(&self) {
        std::future::pending::<()>().await;
    }

    /// A stream that yields once for every sign of a new head. A sign is a tap on the shoulder and carries nothing: the
    /// head itself is always read with [`header`](Self::header). `None` where the source cannot push; the stream
    /// ends when its connection does.
    async fn heads(&self) -> Result<Option<BoxStream<'static, ()>>, RpcError>;

    /// What is known of each endpoint, in order of preference.
    fn endpoints(&self) -> Vec<EndpointState>;

    /// How much history the endpoint in use bears. `None` where nothing is learned of it: as much as the chain's profile says.
    fn pace(&self) -> Option<Pace> {
        None
    }

    /// What was learned that each endpoint bears, by name, to be kept over a restart: text for [`resume`](Self::resume).
    fn learned(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Goes on with what was [`learned`](Self::learned) before; what cannot be read is learned anew. For the start.
    fn resume(&self, _learned: &BTreeMap<String, String>) {}
}

/// What one endpoint has at a height.
#[derive(Clone, Debug)]
pub struct Witness {
    /// The endpoint's name.
    pub endpoint: String,
    /// The header; `None` where it does not have that height.
    pub answer: Result<Option<Header>, RpcError>,
}

/// What is known of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointState {
    /// Its name, without secrets.
    pub name: String,
    /// Requests that it answered or failed since the start; 0 where it was never asked.
    pub asked: u64,
    /// How many of them failed. "Too large" or "not yet" are answers, not failures.
    pub errors: u64,
    /// Why the last request failed; `None` where it was answered, or none was sent.
    pub last_error: Option<String>,
    /// The newest block that it told of.
    pub head: Option<u64>,
    /// Blocks that it was behind the best of the others when its head was last read; `None` before that.
    pub lag: Option<u64>,
    /// How often it had another block somewhere than most of the others.
    pub disagreements: u64,
    /// Why others are asked instead, in words; `None` where it serves.
    pub aside: Option<String>,
    /// What it may be asked for, as far as it was learned.
    pub allowance: Allowance,
    /// Why its logs are not proven by receipts although they are to be (`verify = "receipts"`), in words.
    pub unproven: Option<String>,
    /// What it said of late that is not understood, the oldest first; an operator should report it.
    pub unknown_messages: Vec<String>,
}

/// What a node had too much of in one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    /// Blocks, whatever is in them: a limit of the node or of the plan, and the most of them, 1 to 2^53, where it says
    /// so. The limit of the next request is the same.
    Blocks(Option<u64>),
    /// Results, bytes or work: there is much in these blocks, and less in others.
    Density,
}

/// What went wrong with a node, by what the caller should do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RpcError {
    /// Try again after a pause, elsewhere if there is an elsewhere.
    #[error("{0}")]
    Transient(String),
    /// No answer within the time limit: the node is slow, or was asked for too much. Try again, elsewhere, or for less.
    #[error("request timed out")]
    TimedOut,
    /// The node asks for fewer requests: wait, at least as long as it says.
    #[error("rate limited: {message}")]
    Throttled {
        /// The node's words.
        message: String,
        /// `Retry-After`, where the node gave it.
        retry_after: Option<std::time::Duration>,
    },
    /// The node says what cannot be told from a passing fault nor from "too much": ask elsewhere, then for less.
    #[error("{message}")]
    Unclear {
        /// The node's words.
        message: String,
        /// Whether they are known, though their sense is not; where not, an operator should report them.
        is_known: bool,
    },
    /// Ask for a smaller range.
    #[error("answer too large: {message}")]
    TooLarge {
        /// The node's words.
        message: String,
        /// What there was too much of.
        cap: Cap,
        /// A range that the node says it would answer. A hint: it may begin elsewhere, or be the one that was refused.
        suggested: Option<BlockRange>,
    },
    /// Ask for fewer addresses or topics at once; a smaller range does not help.
    #[error("too many addresses: {message}")]
    TooManyAddresses {
        /// The node's words.
        message: String,
        /// The most that it takes, at least 1, where it says so.
        most: Option<usize>,
    },
    /// The node does not have this block yet: ask again later; never shrink, never take it as empty.
    #[error("node is behind: {0}")]
    Behind(String),
    /// The node no longer has blocks this old, or not for this plan: ask one that does.
    #[error("no blocks this old: {0}")]
    Pruned(String),
    /// The block has left the chain.
    #[error("block left the chain: {0}")]
    Orphaned(String),
    /// The answer is not what was asked for: never use it.
    #[error("invalid answer: {0}")]
    Invalid(String),
    /// This endpoint will never serve the request.
    #[error("{0}")]
    Fatal(String),
    /// The endpoint belongs to another chain.
    #[error("the endpoint {endpoint} is on chain {told}, but CHAIN_ID is {expected}")]
    WrongChain {
        /// The endpoint's name.
        endpoint: String,
        /// `CHAIN_ID`.
        expected: u64,
        /// What the endpoint says.
        told: u64,
    },
}

impl RpcError {
    /// Whether the node failed to serve, as opposed to an answer about the request or the chain.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        !(self.asks_for_less() || matches!(self, Self::Behind(_) | Self::Pruned(_) | Self::Orphaned(_)))
    }

    /// Whether the node would answer a smaller request: fewer blocks, or fewer addresses.
    #[must_use]
    pub fn asks_for_less(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::TooManyAddresses { .. })
    }

    /// The kind, for metric labels.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Transient(_) => "transient",
            Self::TimedOut => "timeout",
            Self::Throttled { .. } => "rate_limited",
            Self::Unclear { .. } => "unclear",
            Self::TooLarge { .. } => "range_too_large",
            Self::TooManyAddresses { .. } => "too_many_addresses",
            Self::Behind(_) => "behind",
            Self::Pruned(_) => "pruned",
            Self::Orphaned(_) => "orphaned",
            Self::Invalid(_) => "invalid_response",
            Self::Fatal(_) => "fatal",
            Self::WrongChain { .. } => "wrong_chain",
        }
    }
}

//! A request, as far as it matters for who is asked and how long they are waited for.

use super::At;
use crate::domain::BlockRange;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The chain's id or a header.
    Header,
    /// The logs of one block, by its hash.
    BlockLogs,
    /// The logs of a range.
    RangeLogs,
}

/// A request, as far as it matters for who is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) kind: Kind,
    /// The height that an endpoint must have to answer it.
    pub(super) height: Option<u64>,
    /// The lowest block that it is about, which an endpoint may have dropped.
    pub(super) lowest: Option<u64>,
    /// Whether it is a look at the head, which is sent beside the proof of the chain where there is none yet.
    pub(super) is_for_head: bool,
}

impl Question {
    /// The chain's id.
    pub(super) const CHAIN_ID: Self = Self { kind: Kind::Header, height: None, lowest: None, is_for_head: false };

    pub(super) fn header(at: At) -> Self {
        let height = if let At::Number(number) = at { Some(number) } else { None };
        Self { kind: Kind::Header, height, lowest: height, is_for_head: at == At::Latest }
    }

    /// The logs of the block of this height.
    pub(super) fn block(height: u64) -> Self {
        Self { kind: Kind::BlockLogs, height: Some(height), lowest: Some(height), is_for_head: false }
    }

    /// The logs of a range.
    pub(super) fn range(range: BlockRange) -> Self {
        Self { kind: Kind::RangeLogs, height: Some(range.to), lowest: Some(range.from), is_for_head: false }
    }

    /// The method that costs most of what it takes to answer it, and whether it is about history, which can wait.
    pub(super) fn method(self) -> (&'static str, bool) {
        match self.kind {
            Kind::Header => ("eth_getBlockByNumber", false),
            Kind::BlockLogs => ("eth_getLogs", false),
            Kind::RangeLogs => ("eth_getLogs", true),
        }
    }

    /// Whether it is about history, of which an endpoint is asked for so much at once and no more.
    pub(super) fn is_of_history(self) -> bool {
        self.kind == Kind::RangeLogs
    }

    /// Whether an answer to it is there at once where the endpoint is well.
    pub(super) fn is_quick(self) -> bool {
        matches!(self.kind, Kind::Header | Kind::BlockLogs)
    }
}

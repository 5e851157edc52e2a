//! A request, as far as it matters for who is asked and how long they are waited for.

use super::At;

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
}

impl Question {
    /// The chain's id.
    pub(super) const CHAIN_ID: Self = Self { kind: Kind::Header, height: None };

    pub(super) fn header(at: At) -> Self {
        let height = if let At::Number(number) = at { Some(number) } else { None };
        Self { kind: Kind::Header, height }
    }

    pub(super) fn logs(kind: Kind, height: u64) -> Self {
        Self { kind, height: Some(height) }
    }

    /// The method that costs most of what it takes to answer it, and whether it is about history, which can wait.
    pub(super) fn method(self) -> (&'static str, bool) {
        match self.kind {
            Kind::Header => ("eth_getBlockByNumber", false),
            Kind::BlockLogs => ("eth_getLogs", false),
            Kind::RangeLogs => ("eth_getLogs", true),
        }
    }

    /// Whether an answer to it is there at once where the endpoint is well.
    pub(super) fn is_quick(self) -> bool {
        matches!(self.kind, Kind::Header | Kind::BlockLogs)
    }
}

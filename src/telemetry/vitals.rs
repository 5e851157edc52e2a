//! The cached facts behind `/health`, `/livez` and `/readyz`: stages and edges write, the HTTP endpoints read.

use crate::domain::{BlockRange, Header, IntervalSet};

/// A part of the process that can fail and recover on its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Edge {
    /// The state store.
    Store,
    /// The token directory.
    Tokens,
    /// One RPC endpoint, by its name.
    Provider(String),
    /// One sink, by its name.
    Sink(String),
}

/// Facts about this process, written by whoever knows them; cheap to write, never blocking.
#[derive(Debug, Default)]
pub struct Vitals {}

impl Vitals {
    /// The loop is alive; called in every round.
    pub fn beat(&self) {}

    /// The newest head, and the highest block that may be delivered now.
    pub fn head(&self, _head: &Header, _deliverable: Option<u64>) {}

    /// Progress as the store has it: watermark, tip, and what is done between them.
    pub fn progress(&self, _watermark: i64, _tip: i64, _done: &IntervalSet) {}

    /// The historical track delivered a range.
    pub fn historical_done(&self, _range: BlockRange) {}

    /// An edge answered, or failed with a reason that holds no secret.
    pub fn edge(&self, _edge: Edge, _outcome: Result<(), &str>) {}

    /// Messages waiting for a sink right now.
    pub fn queued(&self, _sink: &str, _messages: usize) {}

    /// The number of tracked tokens, just loaded; `None` says that filtering is off.
    pub fn tokens(&self, _tracked: Option<usize>) {}

    /// Number of dead letters.
    pub fn dead_letters(&self, _count: u64) {}

    /// Nothing more is delivered; the reason. Stays until the process is started again.
    pub fn halt(&self, _reason: &str) {}

    /// Something an operator should know that stops nothing (an edited view, a weak durability): replaces what was
    /// said under the same key; `None` takes it back.
    pub fn note(&self, _key: &'static str, _text: Option<String>) {}

    /// Everything is wired and the work begins.
    pub fn started(&self) {}

    /// The process is about to stop: not ready from now on.
    pub fn draining(&self) {}
}

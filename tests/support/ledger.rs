//! What the queue got from processes that come and go, and what it must have got in the end.

use std::collections::{BTreeMap, BTreeSet};

use chaintap::store::Snapshot;
use serde_json::Value;

use super::fold::Fold;

/// One run of a process.
struct Life {
    name: String,
    blocks: BTreeSet<u64>,
    end: End,
}

enum End {
    /// It finished or gave back what it had begun.
    Stopped,
    /// It was killed; what the store said right afterwards, where it held anything yet.
    Killed(Option<Snapshot>),
}

impl Life {
    /// Whether the block was in flight when this life was killed, so that another one must send it again.
    fn left_undone(&self, block: u64) -> bool {
        match &self.end {
            End::Stopped => false,
            End::Killed(state) => !state.as_ref().is_some_and(|state| is_done(state, block)),
        }
    }
}

fn is_done(state: &Snapshot, block: u64) -> bool {
    state.progress.watermark >= i64::try_from(block).unwrap() || state.done.contains(block)
}

/// All lives of all replicas.
#[derive(Default)]
pub struct Ledger {
    lives: Vec<Life>,
    /// The text of each message by id, version and type.
    messages: BTreeMap<(String, u64, String), String>,
    /// What a consumer makes of them.
    fold: Fold,
    /// How many messages came in all.
    pub received: usize,
}

impl Ledger {
    /// What a process sent that was not killed.
    pub fn enter(&mut self, name: impl ToString, lines: &[String]) {
        self.record(name.to_string(), lines, End::Stopped);
    }

    /// What a process sent until it was killed, and what the store said after that.
    pub fn enter_killed(&mut self, name: impl ToString, lines: &[String], state: Option<Snapshot>) {
        self.record(name.to_string(), lines, End::Killed(state));
    }

    fn record(&mut self, name: String, lines: &[String], end: End) {
        let mut blocks = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for line in lines {
            let message: Value = serde_json::from_str(line).unwrap();
            let text = |name: &str| message[name].as_str().unwrap().to_owned();
            let key = (text("id"), message["version"].as_u64().unwrap(), text("eventType"));
            assert!(seen.insert(key.clone()), "{name} sent {key:?} twice");
            blocks.insert(message["blockNumber"].as_u64().unwrap());
            let first = self.messages.entry(key).or_insert_with(|| line.clone());
            assert_eq!(first, line, "two texts of one id and version");
            self.fold.take(line).unwrap();
        }
        self.received += lines.len();
        self.lives.push(Life { name, blocks, end });
    }

    /// How many messages came more than once.
    pub fn duplicates(&self) -> usize {
        self.received - self.messages.len()
    }

    /// Asserts that exactly these ids came, each in one version only.
    pub fn assert_exactly(&self, expected: &BTreeSet<String>) {
        let ids: BTreeSet<String> = self.messages.keys().map(|(id, ..)| id.clone()).collect();
        let lost: Vec<_> = expected.difference(&ids).take(5).collect();
        let strange: Vec<_> = ids.difference(expected).take(5).collect();
        assert!(lost.is_empty() && strange.is_empty(), "lost: {lost:?}…, not expected: {strange:?}…");
        assert_eq!(ids.len(), self.messages.len(), "some id came in several versions");
    }

    /// Asserts that exactly these ids count in the end, for a consumer that keeps the highest version of each.
    pub fn assert_counts(&self, expected: &BTreeSet<String>) {
        assert_counts(&self.fold, expected);
    }

    /// How many events were taken back in the end.
    pub fn retracted(&self) -> usize {
        self.fold.retracted()
    }

    /// Asserts that nothing came twice.
    pub fn assert_once(&self) {
        assert_eq!(self.duplicates(), 0, "duplicates without a fault: {:?}", self.shared_blocks());
    }

    /// Asserts that a block was sent again only where its sender had been killed before it was committed.
    pub fn assert_duplicates_were_in_flight(&self) {
        for (block, senders) in self.shared_blocks() {
            let whole = senders.iter().filter(|&&life| !self.lives[life].left_undone(block)).count();
            let names: Vec<_> = senders.iter().map(|&life| &self.lives[life].name).collect();
            assert!(whole <= 1, "block {block} was delivered and then sent again, by {names:?}");
        }
    }

    /// The blocks that came from several lives.
    pub fn shared_blocks(&self) -> BTreeMap<u64, Vec<usize>> {
        let mut senders: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (index, life) in self.lives.iter().enumerate() {
            life.blocks.iter().for_each(|&block| senders.entry(block).or_default().push(index));
        }
        senders.retain(|_, lives| lives.len() > 1);
        senders
    }
}

/// What a consumer makes of these messages.
pub fn folded<'a>(messages: impl IntoIterator<Item = &'a Value>) -> Fold {
    let mut fold = Fold::default();
    for message in messages {
        fold.take(&message.to_string()).unwrap();
    }
    fold
}

/// Asserts that exactly these ids count in a fold.
pub fn assert_counts(fold: &Fold, expected: &BTreeSet<String>) {
    let live: BTreeSet<String> = fold.live().map(|message| message["id"].as_str().unwrap().to_owned()).collect();
    let lost: Vec<_> = expected.difference(&live).take(5).collect();
    let false_ones: Vec<_> = live.difference(expected).take(5).collect();
    assert!(lost.is_empty() && false_ones.is_empty(), "lost: {lost:?}…, not on the chain: {false_ones:?}…");
}

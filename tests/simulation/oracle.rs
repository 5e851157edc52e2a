//! The judge. It sees what the parts of the world see, one after the other: what was journaled, sent, acknowledged,
//! committed and taken back; and says at once what must never happen, and at the end what must have come of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use alloy::primitives::{Address, B256};
use chaintap::{
    domain::{BlockRange, BlockRef, Token},
    sinks::Message,
    store::{BlockCommit, DeadLetter, FinalCommit},
};

use crate::{
    chain::{Block, Tree, event, is_transfer},
    excuses::{Audits, Excuses},
    world::tokens,
};

/// The chain's id.
pub const CHAIN: u64 = 31_337;

/// What one block's event is to be in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// Its token was tracked all the time: it is delivered before its block is committed.
    Always,
    /// Its token was tracked before its block was made, and ever since: if not with its block, it is found by a re-scan.
    Must,
    /// The list changed meanwhile.
    May,
    Never,
}

/// An event's id as the judge keeps it: the block's hash and the log's index.
type Id = (B256, u64);

/// What the sink has of one id.
#[derive(Default)]
struct Kept {
    /// Version to body and number of copies.
    versions: BTreeMap<u64, (String, u64)>,
}

impl Kept {
    fn is_live(&self) -> bool {
        self.versions.last_key_value().is_some_and(|(version, _)| version % 2 == 1)
    }
}

/// Everything that was seen.
pub struct Oracle {
    start: u64,
    tokens: &'static BTreeMap<Address, Token>,
    /// Tokens that are tracked, since so many blocks were made (0: all the time), and those that ever were.
    since: BTreeMap<Address, u64>,
    ever: BTreeSet<Address>,
    kept: HashMap<Id, Kept>,
    /// Ids that the store holds as dead letters.
    buried: BTreeSet<Id>,
    /// Log indices that were journaled under a barrier, by block and epoch.
    intents: HashMap<(B256, u64), BTreeSet<u64>>,
    /// The epochs of the rewinds that took an entry back.
    rewound: HashMap<B256, BTreeSet<u64>>,
    /// Blocks whose commit was right.
    committed: BTreeMap<u64, BTreeSet<B256>>,
    watermark: i64,
    /// What operators and the chain did beside delivering.
    excuses: Excuses,
    /// What nodes left out of their answers.
    left_out: BTreeSet<Id>,
    audits: Audits,
    pub duplicates: u64,
    pub violations: Vec<String>,
}

impl Oracle {
    pub fn new(start: u64, tracked: BTreeSet<Address>) -> Self {
        Self {
            start,
            tokens: tokens(),
            since: tracked.iter().map(|token| (*token, 0)).collect(),
            ever: tracked,
            kept: HashMap::new(),
            buried: BTreeSet::new(),
            intents: HashMap::new(),
            rewound: HashMap::new(),
            committed: BTreeMap::new(),
            watermark: i64::try_from(start).unwrap() - 1,
            excuses: Excuses::default(),
            left_out: BTreeSet::new(),
            audits: Audits::default(),
            duplicates: 0,
            violations: vec![],
        }
    }

    pub fn violation(&mut self, text: String) {
        if self.violations.len() < 20 {
            self.violations.push(text);
        }
    }

    /// The directory says something else from now on, when so many blocks were made.
    pub fn tracks(&mut self, now: &BTreeSet<Address>, made: u64) {
        self.since.retain(|token, _| now.contains(token));
        for token in now {
            self.since.entry(*token).or_insert(made);
        }
        self.ever.extend(now);
    }

    /// The store holds these events of the block, and a barrier vouches for it.
    pub fn journaled(&mut self, block: BlockRef, epoch: u64, events: impl Iterator<Item = u64>) {
        self.intents.entry((block.hash, epoch)).or_default().extend(events);
    }

    /// The store takes these blocks back.
    pub fn rewound(&mut self, entries: &[(BlockRef, u64)], epoch: u64, watermark: i64) {
        for (block, _) in entries {
            self.rewound.entry(block.hash).or_default().insert(epoch);
            if let Some(hashes) = self.committed.get_mut(&block.number) {
                hashes.remove(&block.hash);
                // It may stand there by a fail-over's word, which took back that it was taken back.
                hashes.remove(&B256::ZERO);
            }
        }
        self.watermark = self.watermark.min(watermark);
    }

    /// Blocks left the chain that were final, at or below `floor`, from `first` on.
    pub fn reorganised_deeply(&mut self, floor: u64, first: u64) {
        self.excuses.deep(floor, first);
    }

    /// The lowest block that was replaced by a deep reorganisation.
    pub fn first_replaced(&self) -> Option<u64> {
        self.excuses.first
    }

    /// These blocks are to be delivered again; whether no fail-over will take that back.
    pub fn replayed(&mut self, range: BlockRange, watermark: i64, is_sure: bool) {
        self.watermark = self.watermark.min(watermark);
        if is_sure {
            self.committed.retain(|number, _| !range.contains(*number));
            self.excuses.replayed(range, self.start);
        }
    }

    /// The highest block that an operator left out.
    pub fn last_skipped(&self) -> Option<u64> {
        self.excuses.skipped.last().copied()
    }

    /// What is not delivered of these blocks never need be.
    pub fn skipped(&mut self, range: BlockRange, watermark: i64) {
        let is_missing = |number: &u64| self.committed.get(number).is_none_or(BTreeSet::is_empty);
        self.excuses.skipped.extend((range.from..=range.to).filter(is_missing));
        self.advanced(watermark);
    }

    /// A node leaves this log out of an answer.
    pub fn left_out(&mut self, block: B256, index: u64) {
        self.left_out.insert((block, index));
    }

    /// Whether a node had left out one of these events of a block that was delivered.
    pub fn was_left_out(&self, block: B256, events: &[u64]) -> bool {
        events.iter().any(|index| self.left_out.contains(&(block, *index)))
    }

    pub fn audits(&mut self) -> &mut Audits {
        &mut self.audits
    }

    /// The store went back to what it was some time ago, which was right then.
    pub fn failed_over(&mut self, watermark: i64, done: &[u64]) {
        self.watermark = watermark;
        for number in done {
            let hashes = self.committed.entry(*number).or_default();
            if hashes.is_empty() {
                // What was taken back is not any more.
                hashes.insert(B256::ZERO);
            }
        }
    }

    pub fn buried(&mut self, key: &str) {
        self.buried.extend(id(key));
    }

    /// What the store holds in the end.
    pub fn holds(&mut self, letters: &[DeadLetter]) {
        self.buried.clear();
        letters.iter().for_each(|letter| self.buried(&letter.key));
    }

    pub fn exhumed(&mut self, key: &str) {
        if let Some(id) = id(key) {
            self.buried.remove(&id);
        }
    }

    /// The sink has this message.
    pub fn acknowledged(&mut self, tree: &Tree, message: &Message) {
        let Some(id) = id(message.id()) else {
            return self.violation(format!("an id without block and log: {}", message.id()));
        };
        let kept = self.kept.entry(id).or_default();
        if let Some((body, copies)) = kept.versions.get_mut(&message.version) {
            *copies += 1;
            self.duplicates += 1;
            if *body != message.body() {
                let text = format!("two bodies of {} v{}: {body} {}", message.id(), message.version, message.body());
                self.violation(text);
            }
            return;
        }
        kept.versions.insert(message.version, (message.body().to_owned(), 1));
        if let Err(text) = self.is_right(tree, id, message) {
            self.violation(format!("{text}: {} v{}", message.id(), message.version));
        }
    }

    /// Whether a message of this version may be sent, and is what it should be.
    fn is_right(&self, tree: &Tree, (hash, index): Id, message: &Message) -> Result<(), &'static str> {
        let block = tree.block(&hash).ok_or("of a block that never was")?;
        let log = block.logs.iter().find(|log| log.log_index == index).ok_or("of a log that never was")?;
        let event = event(log, self.tokens).ok_or("of a log that is no transfer")?;
        if !self.ever.contains(&event.address) {
            return Err("of a token that was never tracked");
        }
        let epoch = message.version / 2;
        if message.version % 2 == 1 {
            let journaled = self.intents.get(&(hash, epoch)).is_some_and(|logs| logs.contains(&index));
            if !journaled && block.header.number > tree.floor() {
                return Err("sent without an intent, and not final");
            }
            if *message != Message::apply(&event, CHAIN, epoch) {
                return Err("another message than the event's");
            }
        } else {
            if !self.rewound.get(&hash).is_some_and(|epochs| epochs.contains(&epoch)) {
                return Err("taken back without a rewind");
            }
            if *message != Message::retract(&event, CHAIN, epoch) {
                return Err("another retraction than the event's");
            }
        }
        Ok(())
    }

    /// A block's COMMIT took effect.
    pub fn committed(&mut self, tree: &Tree, commit: &BlockCommit, watermark: i64) {
        match tree.block(&commit.block.hash) {
            None => self.violation(format!("commit of a block that never was: {}", commit.block)),
            Some(block) => self.check_commit(block, commit.epoch),
        }
        self.advanced(watermark);
    }

    /// A range's `COMMIT_FINAL` took effect.
    pub fn committed_final(&mut self, tree: &Tree, commit: &FinalCommit, watermark: i64) {
        let BlockRange { from, to } = commit.range;
        for number in from..=to {
            // Of a branch that was final and left all the same it may come late.
            let is_final = tree.at(to).is_some_and(|at| at.header.hash == commit.hash) || self.excuses.is_deep(to);
            match tree.on_branch(&commit.hash, number).filter(|_| is_final && to <= tree.floor()) {
                None => self.violation(format!("final commit of {number}, which is not final")),
                Some(block) => self.check_commit(block, commit.epoch),
            }
        }
        self.advanced(watermark);
    }

    fn check_commit(&mut self, block: &Block, epoch: u64) {
        let header = &block.header;
        for id in self.due(block, Due::Always) {
            let version = 2 * epoch + 1;
            let has = self.kept.get(&id).is_some_and(|kept| kept.versions.contains_key(&version));
            if !has && !self.buried.contains(&id) && !self.left_out.contains(&id) {
                let text = format!("commit of block {} before {} v{version} was acknowledged", header.number, name(id));
                self.violation(text);
            }
        }
        self.committed.entry(header.number).or_default().insert(header.hash);
    }

    fn advanced(&mut self, watermark: i64) {
        for number in self.watermark + 1..=watermark {
            let number = u64::try_from(number).unwrap_or_default();
            let is_missing = self.committed.get(&number).is_none_or(BTreeSet::is_empty);
            if is_missing && !self.excuses.skipped.contains(&number) {
                self.violation(format!("the watermark is {watermark}, but {number} is not delivered"));
            }
        }
        self.watermark = self.watermark.max(watermark);
    }

    /// The ids of a block's events that are due in this way.
    fn due(&self, block: &Block, wanted: Due) -> Vec<Id> {
        let due = |token: &Address| match self.since.get(token) {
            Some(0) => Due::Always,
            Some(made) if block.made > *made => Due::Must,
            _ if self.ever.contains(token) => Due::May,
            _ => Due::Never,
        };
        let logs = block.logs.iter().filter(|log| due(&log.address) == wanted);
        logs.filter(|log| is_transfer(log)).map(|log| (log.block.hash, log.log_index)).collect()
    }

    /// What must have come of it, once everything is delivered up to `watermark`.
    pub fn judge(&mut self, tree: &Tree, watermark: i64) {
        let mut live: BTreeSet<Id> = self.kept.iter().filter(|(_, kept)| kept.is_live()).map(|(id, _)| *id).collect();
        let mut lost = vec![];
        let end = u64::try_from(watermark + 1).unwrap_or_default();
        for block in (self.start..end).filter_map(|number| tree.at(number)) {
            for id in [self.due(block, Due::Always), self.due(block, Due::Must)].concat() {
                if !live.remove(&id) && !self.buried.contains(&id) && !self.is_excused(block, &id) {
                    lost.push(format!("{} of block {}", name(id), block.header.number));
                }
            }
            for id in self.due(block, Due::May) {
                live.remove(&id);
            }
        }
        // Above it, what was delivered while more was deliverable may stay as long as its block does.
        for block in (end..=tree.height()).filter_map(|number| tree.at(number)) {
            for due in [Due::Always, Due::Must, Due::May] {
                for id in self.due(block, due) {
                    live.remove(&id);
                }
            }
        }
        for text in lost.into_iter().take(5) {
            self.violation(format!("lost: {text}"));
        }
        let must_go = |id: &Id| tree.block(&id.0).is_none_or(|block| !self.excuses.is_deep(block.header.number));
        let left: Vec<Id> = live.into_iter().filter(must_go).take(5).collect();
        for id in left {
            let versions: Vec<u64> = self.kept[&id].versions.keys().copied().collect();
            self.violation(format!("never taken back: {}, versions {versions:?}", name(id)));
        }
    }

    /// Whether an event that is due need not have come.
    fn is_excused(&self, block: &Block, id: &Id) -> bool {
        let is_found = self.audits.has_passed(&id.0) && self.due(block, Due::Always).contains(id);
        self.excuses.is_unsaid(block.header.number) || self.left_out.contains(id) && !is_found
    }

    /// Everything that the sink has, for the trace.
    pub fn fingerprint(&self) -> u64 {
        let mut sum = 0u64;
        for ((hash, index), kept) in &self.kept {
            let of_id = hash.iter().fold(*index, |hash, byte| crate::random::mix(hash ^ u64::from(*byte)));
            for (version, (_, copies)) in &kept.versions {
                sum = sum.wrapping_add(crate::random::mix(of_id ^ version ^ (copies << 40)));
            }
        }
        sum
    }
}

/// The id that a message, or a dead letter's key, begins with.
fn id(text: &str) -> Option<Id> {
    let mut parts = text.split('|').next()?.split(':').skip(1);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The id as messages have it.
fn name((hash, index): Id) -> String {
    format!("{CHAIN}:{hash}:{index}")
}

//! What the judge must not demand: what an operator left out, what is said of final blocks that left the chain, and logs
//! that a node left out of its answers, unless an audit had to find them.

use std::collections::{BTreeMap, BTreeSet};

use alloy::primitives::B256;
use chaintap::domain::{BlockRange, BlockRef};

/// What operators and the chain did.
#[derive(Default)]
pub struct Excuses {
    /// Blocks that an operator left out.
    pub skipped: BTreeSet<u64>,
    /// At or below it, blocks left the chain although they were final: what was sent of them may stay.
    floor: Option<u64>,
    /// The lowest of them.
    pub first: Option<u64>,
    /// At or below it, what took their place need not be sent.
    unsaid: Option<u64>,
}

impl Excuses {
    pub fn deep(&mut self, floor: u64, first: u64) {
        self.floor = self.floor.max(Some(floor));
        self.first = Some(self.first.map_or(first, |known| known.min(first)));
        self.unsaid = self.floor;
    }

    /// These blocks are delivered again, and their events are due again.
    pub fn replayed(&mut self, range: BlockRange, start: u64) {
        self.skipped.retain(|number| !range.contains(*number));
        let covers =
            |first: u64| range.from <= first.max(start) && self.unsaid.is_some_and(|unsaid| range.to >= unsaid);
        if self.first.is_some_and(covers) {
            self.unsaid = None;
        }
    }

    /// Whether what was sent of a block of this height may stay although it left the chain.
    pub fn is_deep(&self, number: u64) -> bool {
        self.floor.is_some_and(|floor| number <= floor)
    }

    /// Whether nothing of a block of this height need be sent.
    pub fn is_unsaid(&self, number: u64) -> bool {
        self.unsaid.is_some_and(|unsaid| number <= unsaid) || self.skipped.contains(&number)
    }
}

/// A life of a replica.
type Who = (usize, u64);

/// What was held against a second node before it was sealed.
#[derive(Default)]
pub struct Audits {
    /// What each life looks at before it seals: the committed entries, and those of them that the second node told of.
    going_on: BTreeMap<Who, (Vec<BlockRef>, Vec<BlockRef>)>,
    /// What was sealed after that.
    passed: BTreeSet<B256>,
}

impl Audits {
    /// A life begins to look at these committed blocks.
    pub fn begins(&mut self, who: Who, blocks: Vec<BlockRef>) {
        self.going_on.insert(who, (blocks, vec![]));
    }

    /// The second node told a life of these blocks.
    pub fn told(&mut self, who: Who, range: BlockRange) {
        if let Some((blocks, told)) = self.going_on.get_mut(&who) {
            told.extend(blocks.iter().filter(|block| range.contains(block.number)));
        }
    }

    /// A life sealed up to here.
    pub fn sealed(&mut self, who: Who, at: u64) {
        if let Some((_, told)) = self.going_on.get(&who) {
            self.passed.extend(told.iter().filter(|block| block.number <= at).map(|block| block.hash));
        }
    }

    /// Whether what was left out of this block had to be found: sent, or kept as a dead letter by who died before that.
    pub fn has_passed(&self, block: &B256) -> bool {
        self.passed.contains(block)
    }
}

//! The chain's state: which block stands at which height now, and what a reorganisation took away.
//!
//! The newest blocks are the *tip* and can be reorganised; older ones are immutable and live in the [`Archive`]. Only
//! headers are kept: a body is a function of its block and is made when somebody asks.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use alloy::{
    consensus::{Header, Sealed},
    primitives::{B256, U64},
};
use serde::Deserialize;
use tokio::sync::broadcast;

use super::{
    Error, MAX_REORG_DEPTH, Options,
    archive::{Archive, SEGMENT},
    body::{Body, Roots},
    generator::{Generator, Place},
    history,
    recording::Recording,
    timetable::{Reorgs, Timetable},
};

/// Blocks that stay reorganisable at least.
const TIP: usize = 1_024;
const _: () = assert!(TIP as u64 > MAX_REORG_DEPTH, "what can be reorganised must be in the tip");
/// Most blocks of a new branch, or beyond the old head.
const MAX_BRANCH: u64 = MAX_REORG_DEPTH;
/// Notices that a subscriber may lag behind before it is dropped.
const NOTICES: usize = 4096;

/// One version of one height, without its body.
#[derive(Debug)]
pub(super) struct Block {
    /// The header under the hash that the chain knows it by.
    pub(super) header: Sealed<Header>,
    /// Which version of its height.
    pub(super) fork: u32,
}

/// What subscribers are told, in the order in which it happened.
#[derive(Clone, Debug)]
pub(super) enum Notice {
    /// A block became the head or part of the new branch.
    Added(Arc<Block>),
    /// A block left the chain. Newest first, before the blocks that replace it.
    Removed(Arc<Block>),
}

/// A reorganisation that is asked for.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reorganisation {
    /// How many of the newest blocks leave the chain.
    pub(super) depth: U64,
    /// How many take their place, as many by default; with fewer the head goes back.
    pub(super) length: Option<U64>,
    /// Whether finalized blocks may be among those that leave.
    #[serde(default)]
    pub(super) deep: bool,
}

/// Makes any block from its number, fork and parent.
#[derive(Debug)]
pub(super) struct Maker {
    pub(super) generator: Generator,
    pub(super) timetable: Timetable,
    pub(super) reorgs: Option<Reorgs>,
}

impl Maker {
    /// The block at this place on top of `parent`.
    pub(super) fn block(&self, number: u64, fork: u32, parent: B256) -> Block {
        self.seal(number, fork, parent, &self.generator.roots(number, fork))
    }

    /// The same block where the roots of its body are known already.
    fn seal(&self, number: u64, fork: u32, parent: B256, roots: &Roots) -> Block {
        let timestamp = self.timetable.time_of(number).as_secs();
        Block { header: self.generator.header(Place { number, fork, timestamp }, parent, roots), fork }
    }

    /// The fork that the schedule alone puts at `number` once the head is at `head`.
    pub(super) fn scheduled_fork(&self, number: u64, head: u64) -> u32 {
        self.reorgs.is_some_and(|reorgs| reorgs.replaced(number, head)).into()
    }
}

#[derive(Debug)]
enum Source {
    Generated(Box<Maker>, Archive),
    Recorded(Recording),
}

/// One canonical chain and the orphans that are still remembered.
#[derive(Debug)]
pub(super) struct Chain {
    source: Source,
    state: RwLock<State>,
    notices: broadcast::Sender<Notice>,
    keep_orphans: usize,
    finalized_depth: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the first block in `tip`.
    first: u64,
    /// Never empty once the chain is built.
    tip: VecDeque<Arc<Block>>,
    /// Tip and orphans by hash.
    by_hash: HashMap<B256, Arc<Block>>,
    orphans: VecDeque<B256>,
    /// When blocks came, of those in `by_hash` that were not there when the chain was built.
    came: HashMap<B256, Instant>,
    /// The branch that the last reorganisation left, ascending. Its first block stands on one that is still canonical.
    left: Vec<Arc<Block>>,
    /// The highest head so far: what is finalized stays so when the head goes back.
    highest: u64,
    /// Branches asked for so far.
    asked: u32,
}

impl State {
    fn head(&self) -> u64 {
        self.first + (self.tip.len() as u64).saturating_sub(1)
    }

    fn push(&mut self, block: Arc<Block>) {
        self.highest = self.highest.max(block.header.number);
        let hash = block.header.hash();
        if self.by_hash.insert(hash, Arc::clone(&block)).is_some() {
            // It comes back.
            self.orphans.retain(|orphan| *orphan != hash);
        }
        self.tip.push_back(block);
    }

    fn forget(&mut self, hash: &B256) {
        self.by_hash.remove(hash);
        self.came.remove(hash);
    }

    /// The fork number of a branch that is asked for.
    fn next_fork(&mut self) -> u32 {
        self.asked += 1;
        1 + self.asked
    }

    fn get(&self, number: u64) -> Option<Arc<Block>> {
        self.tip.get(usize::try_from(number.checked_sub(self.first)?).ok()?).cloned()
    }
}

impl Chain {
    /// Builds a generated chain up to block `head`.
    pub(super) fn generated(options: &Options, timetable: Timetable, head: u64) -> Self {
        let generator = Generator::new(options);
        let maker = Maker { generator, timetable, reorgs: options.reorgs };
        let chain = Self::of(Source::Generated(Box::new(maker), Archive::default()), State::default(), options);
        chain.build(head);
        chain
    }

    /// The chain of recorded blocks.
    pub(super) fn recorded(recording: Recording, blocks: Vec<Block>, options: &Options) -> Self {
        let mut state = State { first: blocks.first().map_or(0, |block| block.header.number), ..State::default() };
        for block in blocks {
            state.push(Arc::new(block));
        }
        Self::of(Source::Recorded(recording), state, options)
    }

    fn of(source: Source, state: State, options: &Options) -> Self {
        let (notices, _) = broadcast::channel(NOTICES);
        Self {
            source,
            state: RwLock::new(state),
            notices,
            keep_orphans: options.limits.orphans,
            finalized_depth: options.finalized_depth,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Height of the head.
    pub(super) fn head(&self) -> u64 {
        self.read().head()
    }

    /// Height of the finalized block, which never falls; `None` on a chain that is too short to have one.
    pub(super) fn finalized(&self) -> Option<u64> {
        let state = self.read();
        self.final_height(&state).map(|height| height.min(state.head()))
    }

    fn final_height(&self, state: &State) -> Option<u64> {
        state.highest.checked_sub(self.finalized_depth)
    }

    /// Height of the lowest block that this node has.
    pub(super) fn lowest(&self) -> u64 {
        match &self.source {
            Source::Generated(..) => 0,
            Source::Recorded(_) => self.read().first,
        }
    }

    /// Everything that happens from now on.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    /// The canonical block of this height.
    pub(super) fn block(&self, number: u64) -> Option<Arc<Block>> {
        self.blocks(number, number).pop()
    }

    /// The canonical blocks `from..=to` as far as they exist, ascending, all of one and the same branch.
    pub(super) fn blocks(&self, from: u64, to: u64) -> Vec<Arc<Block>> {
        // The tip may change while the archive is read, but the archive is below every fork.
        let (first, tip) = {
            let state = self.read();
            let to = to.min(state.head());
            let tip: Vec<_> = (from.max(state.first)..=to).filter_map(|number| state.get(number)).collect();
            (state.first, tip)
        };
        let Source::Generated(maker, archive) = &self.source else { return tip };
        let below = from..first.min(to.saturating_add(1));
        below.filter_map(|number| archive.block(number, maker)).chain(tip).collect()
    }

    /// The block with this hash, canonical or a remembered orphan.
    pub(super) fn find(&self, hash: &B256) -> Option<Arc<Block>> {
        let known = self.read().by_hash.get(hash).cloned();
        known.or_else(|| match &self.source {
            Source::Generated(maker, archive) => archive.find(hash, maker),
            Source::Recorded(_) => None,
        })
    }

    /// How long ago a block came; `None` where it is old.
    pub(super) fn age(&self, hash: &B256) -> Option<Duration> {
        self.read().came.get(hash).map(Instant::elapsed)
    }

    /// The newest `count` blocks, newest first: where transactions are looked up.
    pub(super) fn newest(&self, count: usize) -> Vec<Arc<Block>> {
        self.read().tip.iter().rev().take(count).cloned().collect()
    }

    /// What is in a block.
    pub(super) fn body(&self, block: &Block) -> Body {
        match &self.source {
            Source::Generated(maker, _) => maker.generator.body(block.header.number, block.fork),
            Source::Recorded(recording) => recording.body(&block.header.hash()),
        }
    }

    /// Mines up to `head`, one block after the other, with the reorganisations that the schedule has on the way.
    pub(super) fn mine_to(&self, head: u64) -> Result<(), Error> {
        let Source::Generated(maker, _) = &self.source else { return Err(Error::Recorded) };
        while self.head() < head {
            let mut state = self.write();
            let next = state.head() + 1;
            if let Some(reorgs) = maker.reorgs.filter(|reorgs| reorgs.before(next)) {
                self.replace(&mut state, reorgs.depth, reorgs.depth, 1)?;
            }
            self.add(&mut state, next, 0);
        }
        Ok(())
    }

    /// Replaces the newest blocks by those of a new branch.
    pub(super) fn reorganise(&self, wanted: Reorganisation) -> Result<(), Error> {
        let depth = wanted.depth.to();
        let length = wanted.length.map_or(depth, |length| length.to());
        if length > MAX_BRANCH {
            return Err(Error::Refused(format!("a new branch of {length} blocks: at most {MAX_BRANCH}")));
        }
        let mut state = self.write();
        self.check_depth(&state, depth, wanted.deep)?;
        let fork = state.next_fork();
        self.replace(&mut state, depth, length, fork)
    }

    /// Back to the branch that the last reorganisation left: its blocks, and new ones on top until the head is higher
    /// by `further`.
    pub(super) fn flip(&self, further: u64) -> Result<(), Error> {
        if further > MAX_BRANCH {
            return Err(Error::Refused(format!("a branch that is longer by {further} blocks: at most {MAX_BRANCH}")));
        }
        let mut state = self.write();
        let (head, back) = (state.head(), state.left.clone());
        let Some(first) = back.first().map(|block| block.header.number) else {
            return Err(Error::Refused("no reorganisation has left a branch to go back to".to_owned()));
        };
        let depth = (head + 1).saturating_sub(first);
        if depth > 0 {
            self.check_depth(&state, depth, false)?;
        }
        self.take_back(&mut state, depth);
        for block in back {
            self.put(&mut state, block);
        }
        let fork = state.next_fork();
        (state.head() + 1..=head + further).for_each(|number| self.add(&mut state, number, fork));
        Ok(())
    }

    fn check_depth(&self, state: &State, depth: u64, deep: bool) -> Result<(), Error> {
        let head = state.head();
        let most = MAX_REORG_DEPTH.min(head);
        if !(1..=most).contains(&depth) {
            return Err(Error::Depth { depth, most });
        }
        match self.final_height(state) {
            Some(height) if !deep && head - depth < height => Err(Error::Refused(format!(
                "a reorganisation of {depth} blocks takes back block {height}, which is finalized: ask devchain_reorg for it with \"deep\": true"
            ))),
            _ => Ok(()),
        }
    }

    fn replace(&self, state: &mut State, depth: u64, length: u64, fork: u32) -> Result<(), Error> {
        if matches!(self.source, Source::Recorded(_)) {
            return Err(Error::Recorded);
        }
        self.take_back(state, depth);
        let first = state.head() + 1;
        (first..first + length).for_each(|number| self.add(state, number, fork));
        Ok(())
    }

    /// The newest `depth` blocks leave the chain.
    fn take_back(&self, state: &mut State, depth: u64) {
        let mut left = Vec::new();
        for _ in 0..depth {
            let Some(orphan) = state.tip.pop_back() else { break };
            state.orphans.push_back(orphan.header.hash());
            left.push(Arc::clone(&orphan));
            self.tell(Notice::Removed(orphan));
        }
        left.reverse();
        state.left = left;
        while state.orphans.len() > self.keep_orphans {
            let Some(hash) = state.orphans.pop_front() else { break };
            state.forget(&hash);
        }
    }

    /// Adds one block on top and moves what has become immutable into the archive.
    fn add(&self, state: &mut State, number: u64, fork: u32) {
        let Source::Generated(maker, archive) = &self.source else { return };
        let parent = state.tip.back().map_or(B256::ZERO, |block| block.header.hash());
        self.put(state, Arc::new(maker.block(number, fork, parent)));
        archive_oldest(state, maker, archive);
    }

    fn put(&self, state: &mut State, block: Arc<Block>) {
        state.came.insert(block.header.hash(), Instant::now());
        state.push(Arc::clone(&block));
        self.tell(Notice::Added(block));
    }

    /// The chain as the schedule leaves it at `head`, without telling anybody: all of this is history.
    fn build(&self, head: u64) {
        let Source::Generated(maker, archive) = &self.source else { return };
        let mut state = self.write();
        let mut parent = B256::ZERO;
        for stretch in history::stretches(head) {
            for (number, (fork, roots)) in stretch.clone().zip(history::roots(maker, stretch, head)) {
                let block = maker.seal(number, fork, parent, &roots);
                parent = block.header.hash();
                state.push(Arc::new(block));
                archive_oldest(&mut state, maker, archive);
            }
        }
    }

    fn tell(&self, notice: Notice) {
        // An error means that nobody listens.
        drop(self.notices.send(notice));
    }
}

fn archive_oldest(state: &mut State, maker: &Maker, archive: &Archive) {
    if state.tip.len() < TIP + SEGMENT {
        return;
    }
    let segment: Vec<_> = state.tip.drain(..SEGMENT).collect();
    state.first += SEGMENT as u64;
    archive.push(&segment, |number| maker.scheduled_fork(number, u64::MAX));
    for block in segment {
        state.forget(&block.header.hash());
    }
}

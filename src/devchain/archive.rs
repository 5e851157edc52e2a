//! Blocks too old to be reorganised, in 4.5 bytes each.
//!
//! A hash chain cannot be entered in the middle: the hash of block n needs that of n - 1. So the chain is built once, in
//! order, and what is kept of it is the hash at the end of every segment, from which the segment is built again when
//! somebody asks for one of its blocks, and the first four bytes of every hash, by which a block is found by its hash.
//! Ten million blocks take 45 MB; a segment takes about a millisecond to build.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use alloy::primitives::B256;

use super::chain::{Block, Maker};

/// Blocks per segment.
pub(super) const SEGMENT: usize = 64;
/// Segments kept built: those that somebody asked for last.
const KEPT: usize = 64;

type Segment = Arc<[Arc<Block>]>;

/// The immutable part of a generated chain, from block 0 up.
#[derive(Debug, Default)]
pub(super) struct Archive {
    index: RwLock<Index>,
    built: Mutex<VecDeque<(usize, Segment)>>,
}

#[derive(Debug, Default)]
struct Index {
    /// Hash of the last block of each segment.
    seals: Vec<B256>,
    /// First four bytes of every block's hash.
    prefixes: Vec<u32>,
    /// Forks other than those that the schedule gives.
    forks: BTreeMap<u64, u32>,
}

fn prefix(hash: &B256) -> u32 {
    let [a, b, c, d, ..] = hash.0;
    u32::from_be_bytes([a, b, c, d])
}

impl Archive {
    /// Takes the next whole segment.
    pub(super) fn push(&self, segment: &[Arc<Block>], scheduled: impl Fn(u64) -> u32) {
        let Some(last) = segment.last() else { return };
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for block in segment {
            index.prefixes.push(prefix(&block.header.hash()));
            if block.fork != scheduled(block.header.number) {
                index.forks.insert(block.header.number, block.fork);
            }
        }
        index.seals.push(last.header.hash());
    }

    /// The block of this height, built again; `None` above the archive.
    pub(super) fn block(&self, number: u64, maker: &Maker) -> Option<Arc<Block>> {
        let number = usize::try_from(number).ok()?;
        self.segment(number / SEGMENT, maker)?.get(number % SEGMENT).cloned()
    }

    /// The block with this hash. Newest first, as most questions are about new blocks.
    pub(super) fn find(&self, hash: &B256, maker: &Maker) -> Option<Arc<Block>> {
        let wanted = prefix(hash);
        let candidates: Vec<usize> = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let all = index.prefixes.iter().enumerate().rev();
            all.filter(|&(_, &prefix)| prefix == wanted).map(|(number, _)| number).collect()
        };
        let mut blocks = candidates.into_iter().filter_map(|number| self.block(number as u64, maker));
        blocks.find(|block| block.header.hash() == *hash)
    }

    fn segment(&self, which: usize, maker: &Maker) -> Option<Segment> {
        if let Some(built) = self.kept(which) {
            return Some(built);
        }
        let first = (which * SEGMENT) as u64;
        let (mut parent, forks) = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            if which >= index.seals.len() {
                return None;
            }
            let parent = which.checked_sub(1).and_then(|before| index.seals.get(before)).copied();
            let forks: BTreeMap<u64, u32> =
                index.forks.range(first..first + SEGMENT as u64).map(|(&number, &fork)| (number, fork)).collect();
            (parent.unwrap_or_default(), forks)
        };
        let build = |number| {
            let fork = forks.get(&number).copied().unwrap_or_else(|| maker.scheduled_fork(number, u64::MAX));
            let block = maker.block(number, fork, parent);
            parent = block.header.hash();
            Arc::new(block)
        };
        let segment: Segment = (first..first + SEGMENT as u64).map(build).collect();
        let mut kept = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((which, Arc::clone(&segment)));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        Some(segment)
    }

    fn kept(&self, which: usize) -> Option<Segment> {
        let kept = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(number, _)| *number == which).map(|(_, segment)| Arc::clone(segment))
    }
}

//! What left the chain, and what is found later for a block that was delivered: REWIND, BARRIER, RETRACTED, AMEND.

use std::collections::BTreeSet;

use alloy::primitives::B256;

use super::{
    books::{Books, Entry, Truth},
    rules::{Part, append, raise_epoch, remove, touches_done},
};
use crate::{
    domain::{BlockRange, BlockRef, signed},
    store::{AmendReply, MAX_ORPHANS, Orphan, StoreError},
};

/// What a REWIND did.
#[derive(Debug)]
pub(super) enum Rewound {
    /// These heights are missing again; none where every entry is being taken back already.
    Done(Vec<u64>),
    /// See `RewindReply::Stale`.
    Stale,
    /// See `RewindReply::Deep`.
    Deep(String),
}

/// What the caller of a REWIND knows.
#[derive(Debug)]
pub(super) struct Claimed {
    /// Blocks that left the chain, and the epochs of their entries.
    pub(super) entries: Vec<(BlockRef, u64)>,
    /// The canonical block at the sealed height that he saw.
    pub(super) sealed: Option<BlockRef>,
    pub(super) epoch: u64,
}

/// REWIND; `now` in seconds since the Unix epoch.
pub(super) fn rewind(
    books: &mut Books<'_>,
    truth: &mut Truth,
    claimed: &Claimed,
    now: u64,
) -> Result<Rewound, StoreError> {
    if claimed.epoch != truth.epoch {
        return Ok(Rewound::Stale);
    }
    if let Some(reason) = &truth.frozen {
        return Ok(Rewound::Deep(reason.clone()));
    }
    if let (Some(sealed), Some(canonical)) = (truth.sealed_hash, claimed.sealed) {
        // Another block was sealed since: the hash is not that of its height, and what was seen may be of a stale branch.
        if signed(canonical.number) != truth.sealed {
            return Ok(Rewound::Stale);
        }
        if sealed != canonical.hash {
            return Ok(freeze(truth, &format!("the chain has {} at its height", canonical.hash)));
        }
    }
    let mut orphans = Vec::new();
    for (block, epoch) in &claimed.entries {
        // One that is being taken back already was named before.
        orphans.extend(books.entry(*block, *epoch)?);
    }
    if let Some(deep) = orphans.iter().find(|orphan| signed(orphan.key.0) <= truth.sealed) {
        let block = deep.block();
        return Ok(freeze(truth, &format!("the delivered block {block} below it is no longer in the chain")));
    }
    if orphans.is_empty() {
        return Ok(Rewound::Done(Vec::new()));
    }
    raise_epoch(truth, now);
    take_back(books, truth, &orphans).map(Rewound::Done)
}

/// What is final left the chain: nothing is done any more until someone has looked.
fn freeze(truth: &mut Truth, what: &str) -> Rewound {
    let hash = truth.sealed_hash.unwrap_or_default();
    let reason = format!("the sealed block is {} ({hash}), but {what}", truth.sealed);
    truth.frozen = Some(reason.clone());
    Rewound::Deep(reason)
}

/// The heights that are missing again.
fn take_back(books: &mut Books<'_>, truth: &mut Truth, orphans: &[Entry]) -> Result<Vec<u64>, StoreError> {
    let hashes: BTreeSet<B256> = orphans.iter().map(|orphan| orphan.block().hash).collect();
    for orphan in orphans {
        books.put_entry(&Entry { retract_epoch: Some(truth.epoch), ..orphan.clone() })?;
    }
    let mut missing = Vec::new();
    for number in orphans.iter().map(|orphan| orphan.key.0) {
        // The blocks that come in their place may be filtered with a list that was fetched after the last check.
        truth.filter_checked = truth.filter_checked.min(signed(number) - 1);
        let others = books.entries(number..=number)?;
        if others.iter().any(|other| other.done && !hashes.contains(&other.block().hash)) {
            continue;
        }
        let height = BlockRange::single(number);
        if touches_done(books, truth, height)? {
            remove(books, truth, height)?;
        }
        missing.push(number);
    }
    // The chain may have become shorter: a tip above it would let every lower head be ignored.
    let highest = books.interval_before(u64::MAX)?;
    truth.tip = highest.map_or(truth.watermark, |highest| signed(highest.to));
    Ok(missing)
}

/// BARRIER: what is on disk needs no other. None while the chain is frozen: what it has is in doubt then, and so is what
/// has left it.
pub(super) fn orphans(books: &Books<'_>, truth: &Truth) -> Result<Vec<Orphan>, StoreError> {
    if truth.frozen.is_some() {
        return Ok(Vec::new());
    }
    let orphan = |entry: &Entry| {
        entry.retract_epoch.map(|retract_epoch| Orphan { block: entry.block(), epoch: entry.epoch(), retract_epoch })
    };
    Ok(books.orphans(0..=u64::MAX, MAX_ORPHANS)?.iter().filter_map(orphan).collect())
}

/// RETRACTED.
pub(super) fn retracted(books: &mut Books<'_>, truth: &mut Truth, orphan: Orphan) -> Result<(), StoreError> {
    match books.orphan(orphan.block, orphan.epoch)? {
        Some(entry) if entry.retract_epoch == Some(orphan.retract_epoch) => books.drop_entry(&entry, truth),
        _ => Ok(()),
    }
}

/// AMEND.
pub(super) fn amend(
    books: &mut Books<'_>,
    truth: &mut Truth,
    block: BlockRef,
    filter_version: u64,
    part: &Part,
) -> Result<AmendReply, StoreError> {
    if truth.frozen.is_some() {
        return Ok(AmendReply::Frozen);
    }
    if filter_version < truth.filter_version {
        return Ok(AmendReply::OldList);
    }
    let height = block.number..=block.number;
    let (ours, others): (Vec<_>, Vec<_>) =
        books.entries(height.clone())?.into_iter().partition(|entry| entry.block() == block);
    // Of several the one with the highest epoch, which is the last.
    if let Some(entry) = ours.into_iter().last() {
        let epoch = entry.epoch();
        let holds = append(books, truth, entry, part)?;
        return Ok(if holds { AmendReply::Journaled { epoch } } else { AmendReply::More { epoch } });
    }
    let is_taken_back = books.orphans(height, usize::MAX)?.iter().any(|orphan| orphan.block() == block);
    if is_taken_back || !others.is_empty() {
        return Ok(AmendReply::Gone);
    }
    let is_done = touches_done(books, truth, BlockRange::single(block.number))?;
    Ok(if is_done { AmendReply::Final { epoch: truth.epoch } } else { AmendReply::Missing })
}

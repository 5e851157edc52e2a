//! The protocol's operations over the tables, as in `scripts/*.lua`, without what only several processes need: claims of
//! others, views, markers.

use std::collections::{BTreeMap, BTreeSet};

use alloy::primitives::B256;

use super::books::{Books, Entry, Truth};
use crate::{
    domain::{BlockRange, BlockRef, Digest, signed},
    store::{
        BlockCommit, CommitReply, FinalCommit, IntentReply, JOURNAL_CAP, MAX_DONE_INTERVALS, SEAL_DROPS, SealReply,
        StoreError, full,
    },
};

/// An intent whose events are packed.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) block: BlockRef,
    pub(super) parent: B256,
    pub(super) epoch: u64,
    pub(super) filter_version: u64,
    pub(super) part: Part,
}

/// Packed events.
#[derive(Debug)]
pub(super) struct Part {
    /// Of everything, these events included.
    pub(super) all: Digest,
    /// Of these events.
    pub(super) own: Digest,
    pub(super) events: Vec<u8>,
}

fn around(range: BlockRange) -> std::ops::RangeInclusive<u64> {
    range.from.saturating_sub(1)..=range.to.saturating_add(1)
}

/// Whether any block of the range is delivered.
pub(super) fn touches_done(books: &Books<'_>, truth: &Truth, range: BlockRange) -> Result<bool, StoreError> {
    let below = signed(range.from) <= truth.watermark;
    Ok(below || books.interval_before(range.to)?.is_some_and(|last| last.to >= range.from))
}

/// Whether the range may be worked on although it may open one more gap.
pub(super) fn has_room(books: &Books<'_>, truth: &Truth, range: BlockRange) -> Result<bool, StoreError> {
    let full = books.interval_count()? >= u64::try_from(MAX_DONE_INTERVALS).unwrap_or(u64::MAX);
    if !full || signed(range.from) == truth.watermark + 1 || books.starts_at(range.to + 1)? {
        return Ok(true);
    }
    Ok(books.interval_before(range.from)?.is_some_and(|below| below.to + 1 == range.from))
}

/// Versions sent from now on are higher than all before; `now` in seconds since the Unix epoch.
pub(super) fn raise_epoch(truth: &mut Truth, now: u64) {
    truth.epoch = now.max(truth.epoch + 1);
}

/// Adds a range to what is done, merged with its neighbours, and moves watermark and tip.
pub(super) fn insert(books: &mut Books<'_>, truth: &mut Truth, range: BlockRange) -> Result<(), StoreError> {
    truth.tip = truth.tip.max(signed(range.to));
    let first_missing = u64::try_from(truth.watermark + 1).unwrap_or(0);
    let Some(mut range) = BlockRange::new(range.from.max(first_missing), range.to) else { return Ok(()) };
    while let Some(known) = books.interval_before(range.to + 1)? {
        if known.to + 1 < range.from {
            break;
        }
        books.remove_interval(known)?;
        range = BlockRange { from: range.from.min(known.from), to: range.to.max(known.to) };
    }
    if range.from == first_missing {
        truth.watermark = signed(range.to);
        return Ok(());
    }
    books.add_interval(range)
}

/// Takes a range out of what is done: the watermark sinks below it, and what it had passed above it stays done.
pub(super) fn remove(books: &mut Books<'_>, truth: &mut Truth, range: BlockRange) -> Result<(), StoreError> {
    if let Some(passed) = u64::try_from(truth.watermark).ok().and_then(|passed| BlockRange::new(range.from, passed)) {
        truth.watermark = signed(range.from) - 1;
        books.add_interval(passed)?;
    }
    while let Some(known) = books.interval_before(range.to)? {
        if known.to < range.from {
            break;
        }
        books.remove_interval(known)?;
        if known.from < range.from {
            books.add_interval(BlockRange { from: known.from, to: range.from - 1 })?;
        }
        if known.to > range.to {
            books.add_interval(BlockRange { from: range.to + 1, to: known.to })?;
        }
    }
    Ok(())
}

fn committed(books: &mut Books<'_>, truth: &mut Truth, range: BlockRange) -> Result<CommitReply, StoreError> {
    insert(books, truth, range)?;
    Ok(CommitReply::Committed { watermark: truth.watermark, tip: truth.tip, edited: false })
}

/// INTENT.
pub(super) fn intent(books: &mut Books<'_>, truth: &mut Truth, draft: &Draft) -> Result<IntentReply, StoreError> {
    let Draft { block, parent, epoch, .. } = *draft;
    let range = BlockRange::single(block.number);
    if epoch != truth.epoch || truth.frozen.is_some() {
        return Ok(IntentReply::Stale);
    }
    if draft.filter_version < truth.filter_version {
        return Ok(IntentReply::OldList);
    }
    if touches_done(books, truth, range)? {
        return Ok(IntentReply::Done);
    }
    // It was taken back, so its epoch has passed.
    if books.orphan(block, epoch)?.is_some() {
        return Ok(IntentReply::Stale);
    }
    let entry = books.entry(block, epoch)?;
    if signed(block.number) <= truth.sealed && entry.is_none() {
        return Ok(IntentReply::Sealed);
    }
    for other in books.entries(around(range))? {
        let known = other.block();
        let fits = match known.number {
            number if number == block.number => known.hash == block.hash,
            number if number < block.number => known.hash == parent,
            _ => other.parent == block.hash,
        };
        if !fits {
            return Ok(IntentReply::Conflict(format!(
                "block {block} with parent {parent} does not fit the journaled block {known} with parent {}",
                other.parent
            )));
        }
    }
    if let Some(sealed) = truth.sealed_hash
        && signed(block.number) - 1 == truth.sealed
        && parent != sealed
    {
        return Ok(IntentReply::Deep(format!("block {block} has parent {parent}, but the sealed block is {sealed}")));
    }
    let entry = match entry {
        Some(entry) => entry,
        // A later part whose earlier ones are gone: begin again.
        None if draft.part.all != draft.part.own => return Ok(IntentReply::Stale),
        None if truth.journal_bytes >= JOURNAL_CAP => return Ok(full(&truth.journal_bytes.to_string())),
        None => {
            truth.journal_bytes += ENTRY_BYTES;
            Entry { bytes: ENTRY_BYTES, ..Entry::new(block, epoch, parent) }
        }
    };
    Ok(if append(books, truth, entry, &draft.part)? { IntentReply::Journaled } else { IntentReply::More })
}

/// Whether the entry holds these events now: it did already, or they were all that it lacked.
pub(super) fn append(
    books: &mut Books<'_>,
    truth: &mut Truth,
    mut entry: Entry,
    part: &Part,
) -> Result<bool, StoreError> {
    if entry.digests.contains(&part.all) {
        return Ok(true);
    }
    if entry.digests.last().copied().unwrap_or_default().and(part.own) != part.all {
        return Ok(false);
    }
    books.put_part(&entry, &part.events)?;
    let bytes = u64::try_from(part.events.len()).unwrap_or(u64::MAX);
    entry.bytes += bytes;
    truth.journal_bytes += bytes;
    entry.digests.push(part.all);
    books.put_entry(&entry)?;
    Ok(true)
}

/// What an entry takes besides its events, about.
const ENTRY_BYTES: u64 = 200;

/// COMMIT.
pub(super) fn commit(books: &mut Books<'_>, truth: &mut Truth, commit: BlockCommit) -> Result<CommitReply, StoreError> {
    let range = BlockRange::single(commit.block.number);
    let sealed = signed(commit.block.number) <= truth.sealed;
    if commit.epoch < truth.replayed || truth.frozen.is_some() {
        return Ok(CommitReply::Stale);
    }
    let Some(mut entry) = books.entry(commit.block, commit.epoch)? else {
        // Said before, and sealed away since; or taken back.
        let taken_back = books.orphan(commit.block, commit.epoch)?.is_some();
        let said = sealed && !taken_back && touches_done(books, truth, range)?;
        return if said { committed(books, truth, range) } else { Ok(CommitReply::Fenced) };
    };
    if commit.filter_version < truth.filter_version {
        return Ok(CommitReply::OldList);
    }
    if entry.digests.last() != Some(&commit.digest) {
        return Ok(CommitReply::More);
    }
    if sealed {
        books.drop_entry(&entry, truth)?;
    } else if !entry.done {
        entry.done = true;
        books.put_entry(&entry)?;
    }
    committed(books, truth, range)
}

/// `COMMIT_FINAL`.
pub(super) fn commit_final(
    books: &mut Books<'_>,
    truth: &mut Truth,
    commit: &FinalCommit,
) -> Result<CommitReply, StoreError> {
    let FinalCommit { range, epoch, hash, parent, .. } = *commit;
    let moved_on = epoch != truth.epoch && signed(range.to) > commit.sealed;
    if truth.frozen.is_some() || epoch < truth.replayed || moved_on {
        return Ok(CommitReply::Stale);
    }
    if commit.filter_version < truth.filter_version {
        return Ok(CommitReply::OldList);
    }
    let mut canonical: BTreeMap<i64, B256> = commit.confirmed.iter().map(|b| (signed(b.number), b.hash)).collect();
    canonical.insert(signed(range.from) - 1, parent);
    canonical.insert(signed(range.to), hash);
    let conflict = |what: &str, block: BlockRef| {
        Ok(CommitReply::Conflict(format!("range {range}: {what} block {block} is not the chain of its end ({hash})")))
    };
    if let (Some(sealed), Some(claimed)) = (truth.sealed_hash, canonical.get(&truth.sealed))
        && sealed != *claimed
    {
        return conflict("the sealed", BlockRef { number: truth.sealed.unsigned_abs(), hash: sealed });
    }
    let entries = books.entries(around(range))?;
    for entry in &entries {
        let block = entry.block();
        let above = block.number > range.to;
        let fits = if above { entry.parent == hash } else { canonical.get(&signed(block.number)) == Some(&block.hash) };
        if !fits {
            return conflict("the journaled", block);
        }
    }
    for entry in entries {
        let number = entry.block().number;
        if range.contains(number) && signed(number) <= truth.sealed {
            books.drop_entry(&entry, truth)?;
        }
    }
    committed(books, truth, range)
}

/// SEAL.
pub(super) fn seal(
    books: &mut Books<'_>,
    truth: &mut Truth,
    at: BlockRef,
    tops: &[BlockRef],
) -> Result<SealReply, StoreError> {
    if truth.frozen.is_some() {
        return Ok(SealReply::Refused);
    }
    let height = signed(at.number);
    if height < truth.sealed {
        return Ok(SealReply::Sealed { more: false });
    }
    let entries = books.entries(0..=at.number)?;
    if height == truth.sealed {
        if truth.sealed_hash != Some(at.hash) {
            return Ok(SealReply::Refused);
        }
    } else {
        let contradicted = entries.iter().any(|entry| entry.key.0 == at.number && entry.block().hash != at.hash);
        let expected = run_tops(&entries);
        // One that is said twice is a list of something else.
        let all = tops.len() == expected.len() && tops.iter().copied().collect::<BTreeSet<_>>() == expected;
        if !all || contradicted {
            return Ok(SealReply::Refused);
        }
        truth.sealed = height;
        truth.sealed_hash = Some(at.hash);
    }
    // What is being sent stays for its COMMIT, unless its block was delivered through another entry.
    let mut dropped = 0;
    for entry in entries {
        if entry.done || touches_done(books, truth, BlockRange::single(entry.block().number))? {
            if dropped == SEAL_DROPS {
                return Ok(SealReply::Sealed { more: true });
            }
            books.drop_entry(&entry, truth)?;
            dropped += 1;
        }
    }
    Ok(SealReply::Sealed { more: false })
}

/// The top of every run: entries whose numbers follow one another and whose parents link.
fn run_tops(entries: &[Entry]) -> BTreeSet<BlockRef> {
    let linked: BTreeSet<(u64, B256)> =
        entries.iter().filter_map(|entry| Some((entry.key.0.checked_sub(1)?, entry.parent))).collect();
    entries.iter().map(Entry::block).filter(|block| !linked.contains(&(block.number, block.hash))).collect()
}

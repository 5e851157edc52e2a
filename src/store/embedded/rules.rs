//! The protocol's operations over the tables, as in `scripts/*.lua`, without what only several processes need: claims of
//! others, views, markers.

use std::collections::{BTreeMap, BTreeSet};

use alloy::primitives::B256;

use super::books::{Books, Entry, Truth};
use crate::{
    domain::{BlockRange, BlockRef, Digest},
    store::{
        BlockCommit, CommitReply, DeadKind, DeadLetter, FinalCommit, IntentReply, JOURNAL_CAP, MAX_DONE_INTERVALS,
        MAX_REFUSED, MAX_UNDECODABLE, SEAL_DROPS, SealReply, StoreError, full, write_letter,
    },
};

/// An intent whose events are packed.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) block: BlockRef,
    pub(super) parent: B256,
    pub(super) epoch: u64,
    pub(super) filter_version: u64,
    /// Of everything, these events included.
    pub(super) digest: Digest,
    /// Of these events.
    pub(super) part: Digest,
    pub(super) events: Vec<u8>,
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
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

/// Adds a range to what is done, merged with its neighbours, and moves watermark and tip.
fn insert(books: &mut Books<'_>, truth: &mut Truth, range: BlockRange) -> Result<(), StoreError> {
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
    match truth.sealed_hash {
        Some(sealed) if signed(block.number) - 1 == truth.sealed && parent != sealed => {
            Ok(IntentReply::Deep(format!("block {block} has parent {parent}, but the sealed block is {sealed}")))
        }
        _ => append(books, truth, entry, draft),
    }
}

/// Adds the events to the entry, unless they are in it or something else is.
fn append(
    books: &mut Books<'_>,
    truth: &mut Truth,
    entry: Option<Entry>,
    draft: &Draft,
) -> Result<IntentReply, StoreError> {
    let begun = entry.is_some();
    let mut entry = entry.unwrap_or_else(|| Entry::new(draft.block, draft.epoch, draft.parent));
    if entry.digests.contains(&draft.digest) {
        return Ok(IntentReply::Journaled);
    }
    let before = entry.digests.last().copied().unwrap_or_default();
    if before.and(draft.part) != draft.digest {
        // A later part whose earlier ones are gone begins again.
        return Ok(if begun { IntentReply::More } else { IntentReply::Stale });
    }
    if !begun && truth.journal_bytes >= JOURNAL_CAP {
        return Ok(full(&truth.journal_bytes.to_string()));
    }
    books.put_part(&entry, &draft.events)?;
    let bytes = u64::try_from(draft.events.len()).unwrap_or(u64::MAX) + if begun { 0 } else { ENTRY_BYTES };
    entry.bytes += bytes;
    truth.journal_bytes += bytes;
    entry.digests.push(draft.digest);
    books.put_entry(&entry)?;
    Ok(IntentReply::Journaled)
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
        let said = sealed && touches_done(books, truth, range)?;
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
        if run_tops(&entries) != tops.iter().copied().collect() || contradicted {
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

/// REPLAY; `now` in seconds since the Unix epoch.
pub(super) fn replay(books: &mut Books<'_>, truth: &mut Truth, to: i64, now: u64) -> Result<(), StoreError> {
    while let Some(last) = books.interval_before(u64::MAX)? {
        if signed(last.to) <= to {
            break;
        }
        books.remove_interval(last)?;
        if let Some(kept) = u64::try_from(to).ok().and_then(|to| BlockRange::new(last.from, to)) {
            books.add_interval(kept)?;
        }
    }
    truth.watermark = truth.watermark.min(to);
    truth.tip = truth.tip.min(to);
    truth.epoch = now.max(truth.epoch + 1);
    truth.replayed = truth.epoch;
    Ok(())
}

/// SKIP.
pub(super) fn skip(books: &mut Books<'_>, truth: &mut Truth, to: u64) -> Result<(), StoreError> {
    let first_missing = u64::try_from(truth.watermark + 1).unwrap_or(0);
    BlockRange::new(first_missing, to).map_or(Ok(()), |range| insert(books, truth, range))
}

/// Keeps dead letters; `false`, and none kept, where there is no room for the refused ones.
pub(super) fn bury(books: &mut Books<'_>, letters: &[DeadLetter]) -> Result<bool, StoreError> {
    let mut refused = books.letter_count()?.saturating_sub(books.undecodable_count()?);
    for letter in letters {
        if letter.kind == DeadKind::Refused && !books.has_letter(&letter.key)? {
            refused += 1;
        }
    }
    if refused > MAX_REFUSED {
        return Ok(false);
    }
    for letter in letters {
        let age = (letter.kind == DeadKind::Undecodable).then_some(letter.buried_at);
        books.put_letter(&letter.key, &write_letter(letter)?, age)?;
    }
    while books.undecodable_count()? > MAX_UNDECODABLE {
        books.drop_oldest_undecodable()?;
    }
    Ok(true)
}

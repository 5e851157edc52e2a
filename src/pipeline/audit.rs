//! Asks another provider before blocks are sealed: one that leaves out a log is found as long as a second one has it
//! (F09). The one that served a block is not asked again; where nobody knows which one did, two are, and what either has
//! counts: one of them is another.
//!
//! What the second provider has and the journal lacks is delivered, with an alarm; until that is acknowledged a dead
//! letter holds it, too. What it lacks is only told, because a log that was there once cannot be made up. Blocks of which
//! the two have different hashes are not sealed. A second provider that does not answer holds sealing up for some
//! minutes, not for ever: the journal is bounded.
//!
//! What it does not see: history below the final height, which has no journal. Of that a sample is held against another
//! provider while it is read (`audit_sample`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{Context, PATIENCE, StageError, decode, deliver, filter, persist};
use crate::{
    domain::{BlockRange, BlockRef, Event, RawLog, signed},
    rpc::{RangeLogs, RpcError},
    store::{JournalEntry, MAX_CLAIM_BLOCKS},
    telemetry::metrics,
};
use deliver::Amended;
use filter::{Filter, Wanted};

/// A second provider that does not answer is waited for this long.
const ABSENCE: Duration = Duration::from_mins(10);
/// The note of `/health` that tells of it.
const NOTE: &str = "audit";

/// Whether there are audits, and since when the second provider does not answer.
#[derive(Debug)]
pub struct Audit {
    is_on: bool,
    absent_since: Mutex<Option<Instant>>,
    /// Blocks whose journal entry holds what an audit found and no sink has acknowledged yet.
    owed: Mutex<BTreeSet<BlockRef>>,
}

impl Audit {
    /// Audits, or none (`AUDIT`).
    #[must_use]
    pub fn new(is_on: bool) -> Self {
        Self { is_on, absent_since: Mutex::default(), owed: Mutex::default() }
    }

    /// What was found for a block is journaled before it is sent: from then until it is sent, the journal says nothing of
    /// what was delivered.
    fn owes(&self, block: BlockRef) -> bool {
        self.owed().contains(&block)
    }

    fn owed(&self) -> MutexGuard<'_, BTreeSet<BlockRef>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long the second provider has not answered, now that it did not again; `None`: it did.
    fn absence(&self, is_absent: bool, now: Instant) -> Option<Duration> {
        let mut since = self.absent_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = is_absent.then(|| since.unwrap_or(now));
        since.map(|since| now.duration_since(since))
    }
}

/// Holds these committed blocks, which are about to be sealed, against what another provider has.
pub(super) async fn before_sealing(ctx: &Context, entries: &[JournalEntry]) -> Result<(), StageError> {
    if !ctx.audit.is_on {
        return Ok(());
    }
    let filter = ctx.filters.now()?;
    for batch in batches(&newest(entries)) {
        let mut rest = batch;
        while let Some(range) = span(rest) {
            let opinions = match ctx.source.second_opinion(range, &ctx.log_filter).await {
                Ok(opinions) if opinions.is_empty() => return Ok(()),
                Ok(opinions) => opinions,
                Err(error) => return absent(ctx, &error),
            };
            if let Some(block) = opinions.iter().find_map(|opinion| disagreement(rest, opinion)) {
                let text =
                    format!("two providers have different blocks at the final height {block}: nothing is sealed");
                warn!(block, "two providers have different blocks at a final height");
                ctx.vitals.note(NOTE, Some(text));
                return Err(StageError::Again("two providers disagree about a final block"));
            }
            let last = opinions.iter().map(|opinion| opinion.last.number).min().unwrap_or(range.to);
            let (part, others) = rest.split_at(rest.partition_point(|entry| entry.block.number <= last));
            compare(ctx, &filter, part, united(opinions)).await?;
            rest = others;
        }
    }
    ctx.audit.absence(false, Instant::now());
    ctx.audit.owed().clear();
    ctx.vitals.note(NOTE, None);
    Ok(())
}

/// The committed entries, of each block the newest: what is still being sent is not complete.
fn newest(entries: &[JournalEntry]) -> Vec<JournalEntry> {
    let mut newest: Vec<JournalEntry> = Vec::new();
    for entry in entries.iter().filter(|entry| entry.done) {
        match newest.last_mut() {
            Some(last) if last.block == entry.block => {
                if entry.epoch > last.epoch {
                    *last = *entry;
                }
            }
            _ => newest.push(*entry),
        }
    }
    newest
}

/// Entries that one request covers.
fn batches(entries: &[JournalEntry]) -> impl Iterator<Item = &[JournalEntry]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let first = rest.first()?.block.number;
        let (batch, others) =
            rest.split_at(rest.partition_point(|entry| entry.block.number < first + MAX_CLAIM_BLOCKS));
        rest = others;
        Some(batch)
    })
}

/// The blocks of these entries.
fn span(entries: &[JournalEntry]) -> Option<BlockRange> {
    Some(BlockRange { from: entries.first()?.block.number, to: entries.last()?.block.number })
}

/// The logs that any of these opinions has.
fn united(opinions: Vec<RangeLogs>) -> Vec<RawLog> {
    let mut logs = BTreeMap::new();
    for log in opinions.into_iter().flat_map(|opinion| opinion.logs) {
        logs.entry((log.block, log.log_index)).or_insert(log);
    }
    logs.into_values().collect()
}

/// The height of a block that the second provider has another of. Its last header speaks for all blocks below.
fn disagreement(batch: &[JournalEntry], answer: &RangeLogs) -> Option<u64> {
    let is_other = |theirs: BlockRef| {
        batch.iter().any(|entry| entry.block.number == theirs.number && entry.block.hash != theirs.hash)
    };
    let theirs = [answer.first.block(), answer.last.block()].into_iter().chain(answer.logs.iter().map(|log| log.block));
    theirs.into_iter().find(|block| is_other(*block)).map(|block| block.number)
}

/// Sealing waits for the second provider, but not for ever.
fn absent(ctx: &Context, error: &RpcError) -> Result<(), StageError> {
    let absence = ctx.audit.absence(true, Instant::now()).unwrap_or_default();
    if absence < ABSENCE {
        warn!(%error, "the second provider does not answer; sealing waits for its opinion");
        return Err(StageError::Again("the second provider does not answer"));
    }
    warn!(%error, "the second provider does not answer; sealing goes on without its opinion");
    let text = format!("blocks are sealed without a second provider's opinion: {error}");
    ctx.vitals.note(NOTE, Some(text));
    Ok(())
}

async fn compare(ctx: &Context, filter: &Filter, batch: &[JournalEntry], logs: Vec<RawLog>) -> Result<(), StageError> {
    let decoded = decode::events(&ctx.registry, &logs);
    // Whatever token it is of: the list may have changed since the block was delivered.
    let theirs: BTreeSet<(BlockRef, u64)> =
        decoded.candidates.iter().map(|found| (found.event.block, found.event.log_index)).collect();
    let mut wanted = filter::by_token(filter, decoded).by_block();
    let (mut epochs, mut found) = (Vec::new(), Vec::new());
    for entry in batch {
        let read = || ctx.store.journaled(entry.block, entry.epoch);
        let held = persist(ctx, "journaled", PATIENCE, read).await?;
        tell_extra(entry.block, held.iter().filter(|held| !theirs.contains(&(held.block, held.log_index))));
        let Some(wanted) = wanted.remove(&entry.block) else { continue };
        let lacking = deliver::lacking(&held, &wanted.events);
        let is_owed = ctx.audit.owes(entry.block);
        if !is_owed && (lacking.is_empty() || !is_journaled(ctx, entry).await?) {
            continue;
        }
        if !is_owed {
            tell_missing(filter, entry.block, lacking.len() as u64);
        }
        // Where an earlier try was given up, nothing tells which of the journaled events were sent: all are sent again.
        let events = if is_owed { wanted.events } else { lacking };
        let missing = Wanted { events, undecodable: vec![], version: wanted.version };
        deliver::found(ctx, entry.epoch, &missing.events).await?;
        ctx.audit.owed().insert(entry.block);
        // What is about to be sealed is final.
        if let Amended::Final(epoch) = deliver::amended(ctx, entry.block, &missing, true).await? {
            epochs.push(epoch);
        }
        found.extend(missing.events);
    }
    deliver::still_of(ctx, &epochs).await?;
    if !found.is_empty() {
        deliver::acknowledged(ctx, &found).await?;
        ctx.audit.owed().retain(|block| !batch.iter().any(|entry| entry.block == *block));
    }
    Ok(())
}

/// Whether the entry is still there, and so was what was read of it: another replica may have sealed the block meanwhile,
/// after an audit of its own, or taken it back.
async fn is_journaled(ctx: &Context, entry: &JournalEntry) -> Result<bool, StageError> {
    let now = persist(ctx, "journal", PATIENCE, || ctx.store.journal(entry.block.number)).await?;
    Ok(now.iter().any(|other| (other.block, other.epoch) == (entry.block, entry.epoch)))
}

fn tell_extra<'a>(block: BlockRef, extra: impl Iterator<Item = &'a Event>) {
    let logs: Vec<u64> = extra.map(|event| event.log_index).collect();
    if !logs.is_empty() {
        metrics::audit_extra(logs.len() as u64);
        warn!(%block, ?logs, "delivered logs that a second provider does not have");
    }
}

fn tell_missing(filter: &Filter, block: BlockRef, events: u64) {
    if signed(block.number) <= filter.since {
        // It may have been filtered without a token that is in the list by now.
        info!(%block, events, "a second provider has events that were not delivered, perhaps of a token that joined later");
        return;
    }
    metrics::audit_missing(events);
    error!(%block, events, "a provider left out logs that a second one has; they are delivered late");
}

#[cfg(test)]
mod tests {
    use alloy::primitives::B256;

    use super::*;
    use crate::domain::Header;

    fn entry(number: u64, epoch: u64, done: bool) -> JournalEntry {
        let block = BlockRef { number, hash: B256::with_last_byte(u8::try_from(number % 256).unwrap()) };
        JournalEntry { block, parent: B256::ZERO, epoch, done }
    }

    #[test]
    fn of_each_block_the_newest_committed_entry_counts() {
        let entries = [entry(5, 1, true), entry(5, 2, false), entry(6, 1, true), entry(6, 2, true), entry(7, 1, false)];
        let names: Vec<_> = newest(&entries).iter().map(|entry| (entry.block.number, entry.epoch)).collect();
        assert_eq!(names, [(5, 1), (6, 2)]);
    }

    #[test]
    fn a_batch_spans_a_hundred_blocks_and_nothing_is_asked_of_gaps() {
        let entries: Vec<_> = [1, 100, 101, 5_000, 5_099, 5_100].map(|number| entry(number, 1, true)).into();
        let spans: Vec<_> = batches(&entries)
            .map(|batch| (batch.first().unwrap().block.number, batch.last().unwrap().block.number))
            .collect();
        assert_eq!(spans, [(1, 100), (101, 101), (5_000, 5_099), (5_100, 5_100)]);
    }

    #[test]
    fn another_hash_at_the_end_or_of_a_log_is_a_disagreement() {
        let batch = [entry(5, 1, true), entry(6, 1, true)];
        let header = |entry: &JournalEntry| Header {
            number: entry.block.number,
            hash: entry.block.hash,
            parent: B256::ZERO,
            timestamp: 0,
        };
        let answer = RangeLogs { logs: vec![], first: header(&batch[0]), last: header(&batch[1]) };
        assert_eq!(disagreement(&batch, &answer), None);
        let other = Header { hash: B256::repeat_byte(0xff), ..answer.last };
        assert_eq!(disagreement(&batch, &RangeLogs { last: other, ..answer }), Some(6));
    }

    #[test]
    fn an_absence_is_counted_from_its_first_sign_and_forgotten_with_the_first_answer() {
        let (audit, now) = (Audit::new(true), Instant::now());
        assert_eq!(audit.absence(true, now), Some(Duration::ZERO));
        let later = now + ABSENCE;
        assert_eq!(audit.absence(true, later), Some(ABSENCE));
        assert_eq!(audit.absence(false, later), None);
        assert_eq!(audit.absence(true, later), Some(Duration::ZERO));
    }
}

//! **Commit** the progress: one atomic step of the store, after every sink acknowledged.
//!
//! Consumes the proof of delivery, so committing something that was not delivered does not compile. Also
//! seals what became final, so that the journal stays small; sealing does not depend on the watermark.

use std::time::Duration;

use tracing::{debug, warn};

use super::{Claim, Context, Delivered, Proof, StageError, View, persist};
use crate::{
    domain::{BlockRef, Track},
    rpc::At,
    store::{CommitReply, JournalEntry, SealReply},
    telemetry::metrics,
};

/// What came of a commit.
#[derive(PartialEq, Eq)]
pub(super) enum Advanced {
    /// The range is delivered.
    Committed,
    /// Someone else journaled more events for the block: deliver those too, then commit again.
    More,
}

/// Commits what was delivered.
pub(super) async fn advance(
    ctx: &Context,
    track: Track,
    claim: &Claim,
    delivered: Delivered,
) -> Result<Advanced, StageError> {
    let grant = &claim.grant;
    let reply = match delivered.proof {
        Proof::Journaled(commit) => {
            persist(ctx, "commit", Duration::MAX, || ctx.store.commit(commit, track, grant)).await?
        }
        Proof::Final(commit) => {
            persist(ctx, "commit_final", Duration::MAX, || ctx.store.commit_final(commit.clone(), track, grant)).await?
        }
    };
    match reply {
        CommitReply::Committed { watermark, tip, edited } => {
            debug!(range = %grant.range, events = delivered.events, watermark, tip, "committed");
            metrics::blocks_processed(track, grant.range.blocks());
            metrics::events_matched(delivered.events);
            note_edit(ctx, edited);
            Ok(Advanced::Committed)
        }
        CommitReply::More => Ok(Advanced::More),
        CommitReply::Fenced => Err(StageError::Again("the journal entry was taken back")),
        CommitReply::Stale => Err(StageError::Again("the epoch moved on")),
        CommitReply::OldList => Err(StageError::Again("the token list or the contracts moved on")),
        CommitReply::Conflict(reason) => Err(StageError::Conflict(reason)),
    }
}

fn note_edit(ctx: &Context, edited: bool) {
    if edited {
        warn!("an operator edited a view in the store; it is left as it is and applied at the next start");
    }
    let text = "a view in the store was edited by hand; restart to apply it";
    ctx.vitals.note("edited-view", edited.then(|| text.to_owned()));
}

/// Seals the chain at the final height, if the journaled blocks below it are canonical. A journaled block that is not
/// is a reorganisation.
pub(super) async fn seal(ctx: &Context, view: &View) -> Result<(), StageError> {
    let Some(height) = view.heights.final_height(ctx.chain.finality_depth) else { return Ok(()) };
    let at = canonical(ctx, height).await?;
    let tops = run_tops(&ctx.store.journal(height).await?);
    for top in &tops {
        let canonical = canonical(ctx, top.number).await?;
        if canonical != *top {
            return Err(StageError::Conflict(format!(
                "a reorganisation: block {top} was delivered, but the chain now has {canonical}"
            )));
        }
    }
    loop {
        match ctx.store.seal(at, &tops).await? {
            SealReply::Sealed { more: true } => {}
            SealReply::Sealed { more: false } | SealReply::Refused => return Ok(()),
        }
    }
}

async fn canonical(ctx: &Context, number: u64) -> Result<BlockRef, StageError> {
    let header = ctx.source.header(At::Number(number)).await?;
    header.map(|header| header.block()).ok_or(StageError::Again("the node lacks a block below its own final height"))
}

/// The highest block of every contiguous run of parent-linked entries (protocol §3.5, step 4).
fn run_tops(entries: &[JournalEntry]) -> Vec<BlockRef> {
    let mut tops: Vec<BlockRef> = Vec::new();
    for entry in entries {
        match tops.last_mut() {
            Some(top) if top.number + 1 == entry.block.number && top.hash == entry.parent => *top = entry.block,
            // The same block in another epoch.
            Some(top) if *top == entry.block => {}
            _ => tops.push(entry.block),
        }
    }
    tops
}

#[cfg(test)]
mod tests {
    use alloy::primitives::B256;

    use super::*;

    fn entry(number: u64, hash: u8, parent: u8) -> JournalEntry {
        let block = BlockRef { number, hash: B256::repeat_byte(hash) };
        JournalEntry { block, parent: B256::repeat_byte(parent), epoch: 1, done: true }
    }

    #[test]
    fn every_run_has_its_own_top() {
        let entries = [entry(5, 5, 4), entry(6, 6, 5), entry(8, 8, 7), entry(9, 19, 18), entry(10, 20, 19)];
        let tops: Vec<u64> = run_tops(&entries).iter().map(|top| top.number).collect();
        assert_eq!(tops, [6, 8, 10], "a hole ends a run, and so does a parent that does not fit");
    }
}

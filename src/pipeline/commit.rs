//! **Commit** the progress: one atomic step of the store, after every sink acknowledged.
//!
//! Consumes the proof of delivery, so committing something that was not delivered does not compile. Also
//! seals what became final, so that the journal stays small; sealing does not depend on the watermark.

use std::time::Duration;

use tracing::{debug, warn};

use super::{Claim, Context, Delivered, Proof, StageError, View, persist};
use crate::{
    domain::{BlockRef, Track},
    mutants::{Mutant, planted},
    rpc::At,
    store::{CommitReply, JournalEntry, SealReply, runs},
    telemetry::metrics,
};

/// How far the chain was delivered at the moment of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    /// Epoch of the claim that was committed.
    pub(super) epoch: u64,
    pub(super) watermark: i64,
    pub(super) tip: i64,
}

/// What came of a commit.
pub(super) enum Advanced {
    /// The range is delivered.
    Committed(Reached),
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
        Proof::Journaled(commit) => persist(ctx, "commit", Duration::MAX, || ctx.store.commit(commit, track)).await?,
        Proof::Final(commit) => {
            persist(ctx, "commit_final", Duration::MAX, || ctx.store.commit_final(commit.clone(), track)).await?
        }
    };
    match reply {
        CommitReply::Committed { watermark, tip, edited } => {
            debug!(range = %grant.range, events = delivered.events, watermark, tip, "committed");
            metrics::blocks_processed(track, grant.range.blocks());
            metrics::events_matched(delivered.events);
            note_edit(ctx, edited);
            Ok(Advanced::Committed(Reached { epoch: grant.epoch, watermark, tip }))
        }
        CommitReply::More => Ok(Advanced::More),
        CommitReply::Fenced => Err(StageError::Again("the journal entry was taken back")),
        CommitReply::Stale => Err(StageError::Again("the epoch moved on")),
        CommitReply::OldList => Err(ctx.filters.moved_on()),
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

/// What became final and may be sealed.
pub(super) struct Sealable {
    at: BlockRef,
    tops: Vec<BlockRef>,
    /// The journaled blocks at or below it.
    pub(super) entries: Vec<JournalEntry>,
}

/// The chain at the final height, if the journaled blocks below it are canonical. A journaled block that is not is a
/// reorganisation.
pub(super) async fn sealable(ctx: &Context, view: &View) -> Result<Option<Sealable>, StageError> {
    let Some(height) = view.heights.final_height(ctx.chain.finality_depth) else { return Ok(None) };
    let at = canonical(ctx, height).await?;
    let entries = ctx.store.journal(height).await?;
    let tops: Vec<BlockRef> = runs(&entries).into_iter().filter_map(<[_]>::last).map(|top| top.block).collect();
    for top in &tops {
        let canonical = canonical(ctx, top.number).await?;
        if canonical != *top && !planted(Mutant::SealBlind) {
            return Err(StageError::Conflict(format!(
                "a reorganisation: block {top} was delivered, but the chain now has {canonical}"
            )));
        }
    }
    Ok(Some(Sealable { at, tops, entries }))
}

/// Seals it.
pub(super) async fn seal(ctx: &Context, Sealable { at, tops, .. }: &Sealable) -> Result<(), StageError> {
    loop {
        match ctx.store.seal(*at, tops).await? {
            SealReply::Sealed { more: true } => {}
            SealReply::Sealed { more: false } | SealReply::Refused => return Ok(()),
        }
    }
}

async fn canonical(ctx: &Context, number: u64) -> Result<BlockRef, StageError> {
    let header = ctx.source.header(At::Number(number)).await?;
    header.map(|header| header.block()).ok_or(StageError::Again("the node lacks a block below its own final height"))
}

//! Looks again at delivered blocks for the tokens and contracts that joined the filter after them (protocol §4).
//!
//! A duty names blocks and members; any replica works it off, a hundred blocks at a time, behind everything else. Only
//! what the members concern is asked for and sent: AMEND puts it into the journal of a block that may still leave the
//! chain. What is not delivered yet is left to its track, which filters with the new list. The members in a duty are
//! in the filter of every process that gets one and has the newest version, so nothing is passed over for want of news.

use tracing::{debug, info};

use super::{Context, PATIENCE, StageError, View, decode, deliver, fetch, filter, persist, timed};
use crate::{
    domain::{BlockRange, RawLog},
    store::{Duty, MAX_CLAIM_BLOCKS},
    telemetry::metrics,
};
use deliver::Amended;
use filter::{Filter, Joined};

/// Works off the next blocks of an open duty; `false` where there is none.
pub(super) async fn work(ctx: &Context, view: &View) -> Result<bool, StageError> {
    let Some(duty) = persist(ctx, "duty", PATIENCE, || ctx.store.duty()).await? else { return Ok(false) };
    let filter = ctx.filters.now()?;
    // Read after the duty, so the version that made it is not newer.
    let progress = ctx.store.snapshot().await?.progress;
    if progress.filter_version > filter.version {
        return Err(ctx.filters.moved_on());
    }
    let to = duty.range.to.min(duty.range.from.saturating_add(MAX_CLAIM_BLOCKS - 1));
    let joined = Joined::of(&duty.members, &ctx.registry, &filter);
    let up_to = match joined.zip(delivered(BlockRange { from: duty.range.from, to }, progress.tip)) {
        None => duty.range.to,
        Some((joined, range)) => {
            let scan = Scan { ctx, filter: &filter, joined: &joined };
            let (next, outcome) = scan.range(range, view).await;
            if outcome.is_err() && next > range.from {
                // What is delivered is not sent again because a later block's answer has to wait.
                persist(ctx, "scanned", PATIENCE, || ctx.store.scanned(duty.id, next - 1)).await?;
            }
            let found = outcome?;
            debug!(duty = duty.id, %range, found, "looked again");
            range.to
        }
    };
    persist(ctx, "scanned", PATIENCE, || ctx.store.scanned(duty.id, up_to)).await?;
    tell(&duty, up_to);
    Ok(true)
}

/// The blocks of a range up to the highest delivered one. A chain that became shorter may have left a duty above it; a
/// node does not have those blocks, and whoever delivers them once they are there does it with the newest list.
fn delivered(range: BlockRange, tip: i64) -> Option<BlockRange> {
    BlockRange::new(range.from, range.to.min(u64::try_from(tip).ok()?))
}

fn tell(duty: &Duty, up_to: u64) {
    if up_to >= duty.range.to {
        info!(duty = duty.id, up_to, members = duty.members.len(), "re-scan for what joined the filter is complete");
    }
}

struct Scan<'a> {
    ctx: &'a Context,
    filter: &'a Filter,
    joined: &'a Joined<'a>,
}

impl Scan<'_> {
    /// Delivers what these blocks hold for the new members; answers the first block that is not done, and how many
    /// events were found or why the rest has to wait.
    async fn range(&self, range: BlockRange, view: &View) -> (u64, Result<u64, StageError>) {
        let height = view.heights.final_height(self.ctx.chain.finality_depth);
        let (mut next, mut found) = (range.from, 0);
        while next <= range.to {
            match self.part(BlockRange { from: next, ..range }, height).await {
                Ok((up_to, events)) => (next, found) = (up_to + 1, found + events),
                Err(error) => return (next, Err(error)),
            }
        }
        (next, Ok(found))
    }

    /// Delivers the first blocks of these, as many as are final and one answer holds, or one; answers the last of them,
    /// and how many events they hold.
    async fn part(&self, range: BlockRange, final_height: Option<u64>) -> Result<(u64, u64), StageError> {
        let (logs, next) = (&self.joined.logs, range.from);
        if let Some(height) = final_height.filter(|height| *height >= next) {
            let (part, answer) = timed("fetch", fetch::part(self.ctx, logs, next, range.to.min(height))).await?;
            return Ok((part.to, self.deliver(answer.logs, true).await?));
        }
        let (_, logs) = timed("fetch", fetch::block(self.ctx, logs, next, None)).await?;
        Ok((next, self.deliver(logs, false).await?))
    }

    async fn deliver(&self, logs: Vec<RawLog>, are_final: bool) -> Result<u64, StageError> {
        let decoded = self.joined.only(decode::events(&self.ctx.registry, &logs));
        let (mut found, mut epochs) = (0, Vec::new());
        for (block, wanted) in filter::by_token(self.filter, decoded).by_block() {
            match timed("deliver", deliver::amended(self.ctx, block, &wanted, are_final)).await? {
                Amended::Elsewhere => continue,
                Amended::Final(epoch) => epochs.push(epoch),
                Amended::Journaled => {}
            }
            found += wanted.events.len() as u64;
        }
        deliver::still_of(self.ctx, &epochs).await?;
        metrics::events_matched(found);
        Ok(found)
    }
}

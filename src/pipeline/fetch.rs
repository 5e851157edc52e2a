//! **Fetch** the logs of a claimed range.
//!
//! Near the head a block's logs are asked for by its hash, so that header and logs are of one block whatever the node
//! behind the URL. Below the final height a range is asked for by numbers, in one batch with the headers of its ends.
//! An answer that is too large halves the range; what a provider bears is remembered and grows back slowly.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::sleep;
use tracing::debug;

use super::{Context, StageError};
use crate::{
    domain::{BlockRange, BlockRef, Header, RawLog},
    rpc::{At, LogFilter, RangeLogs, RpcError},
};

/// Pauses before a block's logs are asked for again: a node that has a block has its logs soon. Together they are longer
/// than the pauses of a range that failed twice, so that nothing is believed sooner than after two new plans.
const AGAIN: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(500)];

/// Blocks that one request may name, learned from what the provider refused.
#[derive(Debug)]
pub struct Span(AtomicU64);

impl Span {
    /// Begins with `most` blocks.
    #[must_use]
    pub fn new(most: u64) -> Self {
        Self(AtomicU64::new(most.max(1)))
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn refused(&self, blocks: u64) {
        self.0.fetch_min((blocks / 2).max(1), Ordering::Relaxed);
    }

    /// Grows by an eighth after a full-sized answer.
    fn answered(&self, blocks: u64, most: u64) {
        let now = self.get();
        if blocks >= now && now < most {
            self.0.store((now + now / 8 + 1).min(most), Ordering::Relaxed);
        }
    }
}

/// The canonical block at a height, and its logs by hash; the header is asked for where it is not at hand. Logs that no
/// node has yet, though a header is there whose bloom may speak of some, are asked for again here, as long as the block is
/// the chain's: to give the range up and plan it anew would cost seconds, and a bloom says too much often.
pub(super) async fn block(
    ctx: &Context,
    filter: &LogFilter,
    number: u64,
    header: Option<Header>,
) -> Result<(Header, Vec<RawLog>), StageError> {
    let header = match header {
        Some(header) => header,
        None => canonical(ctx, number).await?,
    };
    let mut pauses = AGAIN.into_iter();
    loop {
        let error = match ctx.source.block_logs(header.block(), header.timestamp, filter).await {
            Ok(logs) => return Ok((header, logs)),
            Err(error) => error,
        };
        let Some(pause) = pauses.next().filter(|_| matches!(error, RpcError::Behind(_))) else {
            return Err(error.into());
        };
        debug!(block = %header.block(), %error, "asked again");
        sleep(pause).await;
        if canonical(ctx, number).await?.hash != header.hash {
            return Err(error.into());
        }
    }
}

/// The canonical header at a height.
pub(super) async fn canonical(ctx: &Context, number: u64) -> Result<Header, StageError> {
    let found = ctx.source.header(At::Number(number)).await?;
    Ok(found.ok_or_else(|| RpcError::Behind(format!("the node has no block {number} yet")))?)
}

/// The next part of a final range, from `from` on: as large as the provider bears.
pub(super) async fn part(
    ctx: &Context,
    filter: &LogFilter,
    from: u64,
    to: u64,
) -> Result<(BlockRange, RangeLogs), StageError> {
    let most = ctx.chain.batch_blocks.max(1);
    let mut range = BlockRange { from, to: to.min(from.saturating_add(ctx.span.get() - 1)) };
    loop {
        match ctx.source.range_logs(range, filter).await {
            Ok(answer) => {
                ctx.span.answered(range.blocks(), most);
                return Ok((range, answer));
            }
            Err(error) if wants_less(&error, range) => {
                debug!(%range, %error, "answer too large");
                ctx.span.refused(range.blocks());
                let Some((lower, _)) = range.halves() else {
                    return Ok((range, single(ctx, filter, range.from).await?));
                };
                range = lower;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether a smaller range may fare better. What takes a node too long, or what nobody understands, is too large, whatever
/// else may be wrong; but one block cannot be asked for in parts.
fn wants_less(error: &RpcError, range: BlockRange) -> bool {
    match error {
        RpcError::TooLarge { .. } => true,
        RpcError::TimedOut | RpcError::Unclear { .. } => range.blocks() > 1,
        _ => false,
    }
}

/// One block that is too large as a range: many providers exempt requests by hash from their limits.
async fn single(ctx: &Context, filter: &LogFilter, number: u64) -> Result<RangeLogs, StageError> {
    let (header, logs) = block(ctx, filter, number, None).await?;
    Ok(RangeLogs { logs, first: header, last: header })
}

/// The canonical blocks at the heights of `live`: those that a final range must agree with.
pub(super) async fn confirm(ctx: &Context, live: &[BlockRef]) -> Result<Vec<BlockRef>, StageError> {
    let mut confirmed = Vec::with_capacity(live.len());
    for entry in live {
        confirmed.push(canonical(ctx, entry.number).await?.block());
    }
    Ok(confirmed)
}

//! **Fetch** the logs of a claimed range.
//!
//! Near the head a block's logs are asked for by its hash, so that header and logs are of one block whatever the node
//! behind the URL. Below the final height a range is asked for by numbers, in one batch with the headers of its ends.
//! How much of it one request names is learned behind the edge (`src/rpc/bearing.rs`).

use std::time::Duration;

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
    let answer = match ctx.source.range_logs(BlockRange { from, to }, filter).await {
        Err(error @ RpcError::TooLarge { .. }) => {
            debug!(block = from, %error, "too large as a range");
            single(ctx, filter, from).await?
        }
        answer => answer?,
    };
    Ok((BlockRange { from, to: answer.last.number }, answer))
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

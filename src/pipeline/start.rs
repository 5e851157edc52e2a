//! A run, from its start to its end: the state is opened once the node proved to be of the right chain, the keepers of
//! head, filter and heartbeat go on beside the loop, and what is in flight at the end is finished or given back.

use std::{convert::Infallible, future::pending, sync::Arc};

use tokio::{
    select,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Context, View, filter, follow, pauses, tracks::Tracks};
use crate::{
    backoff::Backoff,
    config::StartBlock,
    rpc::RpcError,
    store::{HEARTBEAT_EVERY, Start, StoreError},
    telemetry::{Edge, metrics},
};

/// Why the loop ended.
#[derive(Debug)]
pub enum Ended {
    /// It was asked to, and nothing is left in flight.
    Stopped,
    /// The watermark reached the block that was asked for.
    Reached,
    /// The state is not usable; the reason.
    Unusable(StoreError),
    /// An endpoint belongs to another chain.
    WrongChain(RpcError),
    /// A task panicked: the process must not go on with a part missing (F69).
    Broken(String),
}

/// Follows the chain until `stop`, or until the watermark is at `until`.
pub async fn run(ctx: Arc<Context>, start: StartBlock, until: Option<u64>, stop: CancellationToken) -> Ended {
    let (publish, views) = watch::channel(None);
    let mut keepers = JoinSet::new();
    let (head_ctx, beat_ctx, filter_ctx) = (ctx.clone(), ctx.clone(), ctx.clone());
    keepers.spawn(async move { Ended::WrongChain(follow::heads(&head_ctx, &publish).await) });
    let filter_views = views.clone();
    let beginning = async {
        while_kept(&mut keepers, begin(&ctx, start, views.clone())).await??;
        keepers.spawn(async move { match beat(&beat_ctx).await {} });
        keepers.spawn(async move { match filter::keep_published(&filter_ctx, filter_views).await {} });
        while_kept(&mut keepers, ctx.filters.ready()).await
    };
    let begun = select! {
        biased;
        () = stop.cancelled() => Err(Ended::Stopped),
        begun = beginning => begun,
        never = ctx.vitals.beat_on() => match never {},
    };
    if let Err(ended) = begun {
        keepers.shutdown().await;
        return ended;
    }
    ctx.vitals.started();
    let mut tracks = Tracks::new(ctx.clone(), views, until);
    let (Ok(ended) | Err(ended)) = while_kept(&mut keepers, tracks.turn(stop)).await;
    if let Ended::Unusable(StoreError::Vanished(reason)) = &ended {
        let (chain, watermark) = (ctx.chain.id, tracks.watermark);
        let (next, allow) = match start {
            StartBlock::Latest => ("begins at the chain's head", ""),
            StartBlock::At(_) => ("begins at START_BLOCK", ""),
            StartBlock::Expected => ("is refused", ", and unset EXPECT_STATE for that start"),
        };
        error!(
            reason,
            watermark,
            "the state is gone, and the next start {next}: restore it; or, to go on where this one ended, first set \
             START_BLOCK to the block after this watermark, or in Redis `block` of chain:{chain}:progress to the \
             watermark{allow}"
        );
    }
    tracks.drain().await;
    keepers.shutdown().await;
    ended
}

/// What `work` comes to, or why one of the keepers ended before: without it the work may wait for ever.
async fn while_kept<T>(keepers: &mut JoinSet<Ended>, work: impl Future<Output = T>) -> Result<T, Ended> {
    select! {
        biased;
        done = work => Ok(done),
        ended = keepers.join_next() => Err(match ended {
            Some(Ok(ended)) => ended,
            died => Ended::Broken(format!("a keeper ended: {died:?}")),
        }),
    }
}

/// Opens the state; waits for the store and for the node, which proved its chain id before its head was seen.
async fn begin(ctx: &Context, start: StartBlock, mut views: watch::Receiver<Option<View>>) -> Result<(), Ended> {
    let mut backoff = Backoff::new(pauses::LONGEST);
    loop {
        let seen = views.wait_for(Option::is_some).await.map(|view| view.as_ref().map(|view| view.head.number));
        // Whoever follows the head tells why it ended.
        let Ok(Some(head)) = seen else { return pending().await };
        let start = match start {
            StartBlock::Latest => Start::Latest(head),
            StartBlock::At(first) => Start::At(first),
            StartBlock::Expected => Start::Expected,
        };
        let asked = Instant::now();
        match ctx.store.init(start).await {
            Ok(state) => {
                ctx.vitals.edge(Edge::Store, Ok(()));
                let at = &state.progress;
                info!(watermark = at.watermark, tip = at.tip, fresh = state.fresh, "state opened");
                for edit in &state.edits {
                    warn!(edit, "an operator's edit is applied");
                }
                return Ok(());
            }
            Err(StoreError::Transient(reason)) => {
                warn!(reason, "waiting for the state store");
                ctx.vitals.answer(Edge::Store, asked, Err(&reason));
                backoff.wait(None).await;
            }
            Err(error) => return Err(Ended::Unusable(error)),
        }
    }
}

/// Says every few seconds that this process lives, so that its claims are taken over soon after it died. It tells of the
/// store, because it writes: a store that is full answers questions and takes nothing.
async fn beat(ctx: &Context) -> Infallible {
    loop {
        let asked = Instant::now();
        match ctx.store.heartbeat().await {
            Ok(()) => ctx.vitals.edge(Edge::Store, Ok(())),
            Err(error) => {
                metrics::heartbeat_failed();
                warn!(%error, "heartbeat not written");
                ctx.vitals.answer(Edge::Store, asked, Err(&error.to_string()));
            }
        }
        sleep(HEARTBEAT_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_for_a_keeper_that_died_does_not_wait_for_ever() {
        let mut keepers = JoinSet::new();
        keepers.spawn(pending::<Ended>());
        assert!(matches!(while_kept(&mut keepers, async { 7 }).await, Ok(7)));
        keepers.spawn(async { panic!("planted") });
        let ended = while_kept(&mut keepers, pending::<()>()).await;
        assert!(matches!(ended, Err(Ended::Broken(reason)) if reason.contains("planted")));
    }
}

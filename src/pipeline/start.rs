//! The start of a run, and the sign that it goes on: the state is opened once the node proved to be of the right chain,
//! and the heartbeat says every few seconds that this process lives.

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{info, warn};

use super::{Context, Ended, View, follow, pauses};
use crate::{
    backoff::Backoff,
    config::StartBlock,
    rpc::RpcError,
    store::{HEARTBEAT_EVERY, Start, StoreError},
    telemetry::{Edge, metrics},
};

/// Opens the state; waits for the store and, where the start depends on it, for the node.
pub(super) async fn begin(
    ctx: &Context,
    start: StartBlock,
    views: &watch::Receiver<Option<View>>,
) -> Result<(), Ended> {
    let mut backoff = Backoff::new(pauses::LONGEST);
    loop {
        let asked = Instant::now();
        // Whoever follows the head may know it already; an endpoint proves its chain id before its first answer.
        let seen = views.borrow().as_ref().map(|view| view.head);
        let head = match seen {
            Some(head) => Ok(head),
            None => follow::newest(ctx, None).await,
        };
        let opened = match head {
            Ok(head) => {
                let start = match start {
                    StartBlock::Latest => Start::Latest(head.number),
                    StartBlock::At(first) => Start::At(first),
                    StartBlock::Expected => Start::Expected,
                };
                ctx.store.init(start).await
            }
            Err(error @ RpcError::WrongChain { .. }) => return Err(Ended::WrongChain(error)),
            Err(error) => {
                warn!(%error, "waiting for the node");
                backoff.wait(None).await;
                continue;
            }
        };
        match opened {
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
pub(super) async fn beat(ctx: &Context) {
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

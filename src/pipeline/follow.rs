//! **Follow** the head of the chain.
//!
//! A sign from the socket or a tick of the clock only taps on the shoulder; the head itself is read anew, and whoever
//! waits sees the newest one. Nothing is repaired after an outage: what was missed is missing in the plan.

use std::time::Duration;

use futures_util::{StreamExt, stream::BoxStream};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{debug, info, warn};

use super::Context;
use crate::{
    backoff::Backoff,
    domain::{DeliveryMode, Header, Heights},
    rpc::{At, RpcError},
    telemetry::Edge,
};

/// A socket that is silent for this long, or for three block times, is not trusted any more (R14).
const SILENCE: Duration = Duration::from_secs(30);
/// Without a socket the head is read twice in a block time, within these bounds.
const POLL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(4));
/// The `safe` and `finalized` tags move slowly; where nobody waits for them they are read at most this often.
const TAGS: Duration = Duration::from_secs(2);
/// Pause before a socket is opened again, while polling goes on.
const RECONNECT: Duration = Duration::from_secs(1);

/// The chain as it was at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The newest block.
    pub head: Header,
    /// Its height, and the heights of the tags.
    pub heights: Heights,
}

/// Keeps the published view fresh; never returns.
pub(super) async fn heads(ctx: &Context, publish: &watch::Sender<Option<View>>) {
    let mut tags = Tags::default();
    let mut backoff = Backoff::new(Duration::from_secs(30));
    let mut signs: Option<BoxStream<'static, ()>> = None;
    let mut reconnect_at = Instant::now();
    loop {
        if signs.is_none() && Instant::now() >= reconnect_at {
            signs = open(ctx).await;
            reconnect_at = Instant::now() + RECONNECT;
        }
        match look(ctx, publish, &mut tags).await {
            Ok(()) => backoff.reset(),
            Err(error) => {
                debug!(%error, "head not read");
                let wait = match error {
                    RpcError::Throttled { retry_after, .. } => retry_after,
                    _ => None,
                };
                backoff.wait(wait).await;
                continue;
            }
        }
        signs = wait_for_sign(ctx, signs).await;
    }
}

/// A socket with a subscription, where there is one to be had.
async fn open(ctx: &Context) -> Option<BoxStream<'static, ()>> {
    match ctx.source.heads().await {
        Ok(signs) => {
            if signs.is_some() {
                info!("heads come over the WebSocket");
            }
            signs
        }
        Err(error) => {
            warn!(%error, "no WebSocket; the head is polled meanwhile");
            None
        }
    }
}

/// Waits until it is time to look again; answers the socket if it is still good.
async fn wait_for_sign(ctx: &Context, signs: Option<BoxStream<'static, ()>>) -> Option<BoxStream<'static, ()>> {
    let Some(mut signs) = signs else {
        sleep_until(Instant::now() + (ctx.chain.block_time / 2).clamp(POLL.0, POLL.1)).await;
        return None;
    };
    let silent = SILENCE.max(ctx.chain.block_time * 3);
    match timeout_at(Instant::now() + silent, signs.next()).await {
        Ok(Some(())) => Some(signs),
        Ok(None) => {
            warn!("the WebSocket closed");
            None
        }
        Err(_) => {
            warn!(?silent, "the WebSocket is silent; opening another");
            None
        }
    }
}

/// Reads the head, and the tags when they are due, and publishes what is new.
async fn look(ctx: &Context, publish: &watch::Sender<Option<View>>, tags: &mut Tags) -> Result<(), RpcError> {
    let latest = ctx.source.header(At::Latest).await;
    tell_endpoints(ctx);
    let head = latest?.ok_or_else(|| RpcError::Behind("the node has no latest block".into()))?;
    let before = publish.borrow().as_ref().map(|view| view.head.number);
    believe(ctx, &head, before).await?;
    let show = |tags: &Tags| {
        let view = View { head, heights: Heights { head: head.number, safe: tags.safe, finalized: tags.finalized } };
        ctx.vitals.head(&head, view.heights.deliverable(ctx.deliver, ctx.chain.finality_depth));
        publish.send_if_modified(|current| {
            let new = current.as_ref() != Some(&view);
            *current = Some(view);
            new
        });
    };
    // The head first: nobody waits for tags to deliver it.
    show(tags);
    if tags.refresh(ctx).await {
        show(tags);
    }
    Ok(())
}

/// A head that is far above the last one, or the first one, must be a block that the node also knows by its number: a
/// number out of thin air would make everything below it look final (R15).
pub(super) async fn believe(ctx: &Context, head: &Header, before: Option<u64>) -> Result<(), RpcError> {
    if before.is_some_and(|before| head.number <= before.saturating_add(ctx.chain.finality_depth)) {
        return Ok(());
    }
    match ctx.source.header(At::Number(head.number)).await? {
        Some(_) => Ok(()),
        None => Err(RpcError::Behind(format!("its newest block, {}, is not known by its number", head.number))),
    }
}

fn tell_endpoints(ctx: &Context) {
    for endpoint in ctx.source.endpoints() {
        ctx.vitals.edge(Edge::Provider(endpoint.name), endpoint.last_error.as_deref().map_or(Ok(()), Err));
    }
}

/// What the node last said about `safe` and `finalized`.
#[derive(Debug, Default)]
struct Tags {
    read_at: Option<Instant>,
    safe: Option<u64>,
    finalized: Option<u64>,
}

impl Tags {
    /// Reads both tags if they are due; answers whether they were.
    async fn refresh(&mut self, ctx: &Context) -> bool {
        // What is delivered by a tag is late by as much as the tag is old.
        let awaited = matches!(ctx.deliver, DeliveryMode::Safe | DeliveryMode::Finalized);
        if !awaited && self.read_at.is_some_and(|at| at.elapsed() < TAGS) {
            return false;
        }
        // A chain without a tag answers null or an error; both mean that depth alone decides (F15).
        self.safe = height(ctx, At::Safe).await.or(self.safe);
        self.finalized = height(ctx, At::Finalized).await.or(self.finalized);
        self.read_at = Some(Instant::now());
        true
    }
}

async fn height(ctx: &Context, tag: At) -> Option<u64> {
    ctx.source.header(tag).await.ok().flatten().map(|header| header.number)
}

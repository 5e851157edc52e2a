//! **Follow** the head of the chain.
//!
//! A sign from the socket or a tick of the clock only taps on the shoulder; the head itself is read anew, and whoever
//! waits sees the newest one. Nothing is repaired after an outage: what was missed is missing in the plan.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{debug, info, warn};

use super::Context;
use crate::{
    backoff::Backoff,
    domain::{Header, Heights},
    rpc::{At, RpcError},
    telemetry::Edge,
};

/// A socket that is silent for this long, or for three block times, is not trusted any more (R14).
const SILENCE: Duration = Duration::from_secs(30);
/// Without a socket the head is read twice in a block time, within these bounds.
const POLL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(4));
/// The `safe` and `finalized` tags move slowly; they are read at most this often.
const TAGS: Duration = Duration::from_secs(2);
/// From one try to open a socket to the next, at least and at most; polling goes on meanwhile.
const RECONNECT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Longest pause after the head could not be read, so that the end of an outage is soon seen.
const PAUSE: Duration = Duration::from_secs(5);

/// The chain as it was at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The newest block.
    pub head: Header,
    /// Its height, and the heights of the tags.
    pub heights: Heights,
}

/// What tells of new heads: a socket, on its way from closed to open.
enum Socket<'a> {
    Closed,
    /// A peer that accepts and then says nothing takes a while to be given up; nobody waits for it.
    Opening(BoxFuture<'a, Option<BoxStream<'static, ()>>>),
    Open(BoxStream<'static, ()>),
}

/// Keeps the published view fresh; never returns.
pub(super) async fn heads(ctx: &Context, publish: &watch::Sender<Option<View>>) {
    let mut tags = Tags::default();
    let mut backoff = Backoff::new(PAUSE);
    let (mut socket, mut reopen_at, mut reopening) = (Socket::Closed, Instant::now(), Backoff::new(RECONNECT.1));
    loop {
        match socket {
            Socket::Closed if Instant::now() >= reopen_at => {
                reopen_at = Instant::now() + reopening.next_delay().max(RECONNECT.0);
                socket = Socket::Opening(open(ctx).boxed());
            }
            Socket::Open(_) => reopening.reset(),
            Socket::Closed | Socket::Opening(_) => {}
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
        socket = wait_for_sign(ctx, socket).await;
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
async fn wait_for_sign<'a>(ctx: &Context, socket: Socket<'a>) -> Socket<'a> {
    let poll_at = Instant::now() + (ctx.chain.block_time / 2).clamp(POLL.0, POLL.1);
    match socket {
        Socket::Closed => {
            sleep_until(poll_at).await;
            Socket::Closed
        }
        Socket::Opening(mut opening) => match timeout_at(poll_at, &mut opening).await {
            Ok(Some(signs)) => Socket::Open(signs),
            Ok(None) => {
                sleep_until(poll_at).await;
                Socket::Closed
            }
            Err(_) => Socket::Opening(opening),
        },
        Socket::Open(signs) => wait_for_push(ctx, signs).await,
    }
}

/// Waits for the next sign of an open socket, or for its end.
async fn wait_for_push<'a>(ctx: &Context, mut signs: BoxStream<'static, ()>) -> Socket<'a> {
    let silent = SILENCE.max(ctx.chain.block_time * 3);
    match timeout_at(Instant::now() + silent, signs.next()).await {
        Ok(Some(())) => return Socket::Open(signs),
        Ok(None) => warn!("the WebSocket closed"),
        Err(_) => warn!(?silent, "the WebSocket is silent; opening another"),
    }
    Socket::Closed
}

/// Reads the head, and the tags when they are due, and publishes what is new.
async fn look(ctx: &Context, publish: &watch::Sender<Option<View>>, tags: &mut Tags) -> Result<(), RpcError> {
    let latest = ctx.source.header(At::Latest).await;
    tell_endpoints(ctx);
    let head = latest?.ok_or_else(|| RpcError::Behind("the node has no latest block".into()))?;
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
        if self.read_at.is_some_and(|at| at.elapsed() < TAGS) {
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

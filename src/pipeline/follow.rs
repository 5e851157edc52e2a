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
    let mut signs = Signs { socket: Socket::Closed, open_at: Instant::now() };
    let mut failing = false;
    loop {
        match look(ctx, publish, &mut tags).await {
            Ok(()) => {
                backoff.reset();
                failing = false;
                signs.wait(ctx).await;
            }
            Err(error) => {
                // An outage is told once, not at every try.
                if std::mem::replace(&mut failing, true) {
                    debug!(%error, "head not read");
                } else {
                    warn!(%error, "head not read; trying again");
                }
                let wait = match error {
                    RpcError::Throttled { retry_after, .. } => retry_after,
                    _ => None,
                };
                backoff.wait(wait).await;
            }
        }
    }
}

/// Signs of new heads, and what stands in for them: polling.
struct Signs<'a> {
    socket: Socket<'a>,
    /// No socket is opened before.
    open_at: Instant,
}

/// A socket with a subscription.
enum Socket<'a> {
    Closed,
    /// Being opened, which may take long, while polling goes on.
    Opening(BoxFuture<'a, Option<BoxStream<'static, ()>>>),
    Open(Subscription),
}

struct Subscription {
    signs: BoxStream<'static, ()>,
    /// The last sign, or the moment of the opening.
    heard: Instant,
    /// One that has not given a sign yet is not relied on: it may be silent from the start.
    trusted: bool,
}

impl<'a> Signs<'a> {
    /// Waits until it is time to look again.
    async fn wait(&mut self, ctx: &'a Context) {
        let now = Instant::now();
        let poll_at = now + (ctx.chain.block_time / 2).clamp(POLL.0, POLL.1);
        if matches!(self.socket, Socket::Closed) && now >= self.open_at {
            self.open_at = now + RECONNECT;
            self.socket = Socket::Opening(open(ctx).boxed());
        }
        self.socket = match std::mem::replace(&mut self.socket, Socket::Closed) {
            Socket::Closed => {
                sleep_until(poll_at).await;
                Socket::Closed
            }
            Socket::Opening(mut opening) => match timeout_at(poll_at, &mut opening).await {
                Ok(Some(signs)) => Socket::Open(Subscription { signs, heard: Instant::now(), trusted: false }),
                Ok(None) => {
                    sleep_until(poll_at).await;
                    Socket::Closed
                }
                Err(_) => Socket::Opening(opening),
            },
            Socket::Open(subscription) => {
                let silence = SILENCE.max(ctx.chain.block_time * 3);
                subscription.next(poll_at, silence).await.map_or(Socket::Closed, Socket::Open)
            }
        };
    }
}

impl Subscription {
    /// Waits for a sign, or until it is time to poll; answers the subscription if it is still good.
    async fn next(mut self, poll_at: Instant, silence: Duration) -> Option<Self> {
        let silent_at = self.heard + silence;
        let patience = if self.trusted { silent_at } else { silent_at.min(poll_at) };
        match timeout_at(patience, self.signs.next()).await {
            Ok(Some(())) => Some(Self { heard: Instant::now(), trusted: true, ..self }),
            Ok(None) => {
                warn!("the WebSocket closed");
                None
            }
            Err(_) if Instant::now() < silent_at => Some(self),
            Err(_) => {
                warn!(?silence, "the WebSocket is silent; opening another");
                None
            }
        }
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

/// Reads the head, and the tags when they are due, and publishes what is new.
async fn look(ctx: &Context, publish: &watch::Sender<Option<View>>, tags: &mut Tags) -> Result<(), RpcError> {
    let asked = Instant::now();
    let latest = ctx.source.header(At::Latest).await;
    tell_endpoints(ctx, asked);
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

fn tell_endpoints(ctx: &Context, asked: Instant) {
    for endpoint in ctx.source.endpoints() {
        let answered = endpoint.last_error.as_deref().map_or(Ok(()), Err);
        ctx.vitals.answer(Edge::Provider(endpoint.name), asked, answered);
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

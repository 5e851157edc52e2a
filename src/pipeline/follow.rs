//! **Follow** the head of the chain.
//!
//! A sign from the socket or a tick of the clock only taps on the shoulder; the head itself is read anew, and whoever
//! waits sees the newest one. Nothing is repaired after an outage: what was missed is missing in the plan.
//!
//! Four things go on beside each other and never wait for one another: reading the head, reading the tags, keeping a
//! socket open, and looking after the endpoints that are not in use. All four live and die with the future of [`heads`];
//! none is a task of its own.

use std::{
    collections::HashMap,
    future::pending,
    mem::replace,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream::BoxStream};
use tokio::{
    join, select,
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{Context, timed};
use crate::{
    backoff::Backoff,
    domain::{DeliveryMode, Header, Heights, Tag, Track},
    rpc::{At, EndpointState, RpcError},
    telemetry::{Edge, SeenProvider},
};

/// The note of `/health` that tells of blocks that nobody proves.
const NOTE: &str = "proofs";
/// A socket that is silent for this long, or for three block times, is not trusted any more (R14).
const SILENCE: Duration = Duration::from_secs(30);
/// Without a socket the head is read twice in a block time, within these bounds.
const POLL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(4));
/// With a socket a head that comes this much later than it is expected is looked for: the socket's node may be the one that
/// stands still.
const LATE: Duration = Duration::from_secs(1);
/// The `safe` and `finalized` tags move slowly; where nobody waits for them they are read this often.
const TAGS: Duration = Duration::from_secs(2);
/// The first head waits for them so long: with them the first plan knows what is final.
const FIRST_TAGS: Duration = Duration::from_secs(1);
/// After this many rounds in vain an operator should know why nothing is final.
const TAG_ROUNDS: u32 = 3;
/// Longest pause before the head is read again while no node answers.
const OUTAGE: Duration = Duration::from_secs(5);
/// Shortest and longest pause before a socket is opened again, while polling goes on.
const RECONNECT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The chain as it was at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The newest block.
    pub head: Header,
    /// Its height, and the heights of the tags.
    pub heights: Heights,
}

/// Keeps the published view fresh. Returns only before the first one, where an endpoint is of another chain: that error.
pub(super) async fn heads(ctx: &Context, publish: &watch::Sender<Option<View>>) -> RpcError {
    let signs = Signs::default();
    let beside = async {
        join!(read_tags(ctx, publish, &signs), keep_socket(ctx, &signs), ctx.source.tend());
        pending().await
    };
    select! {
        biased;
        wrong_chain = read_heads(ctx, publish, &signs) => wrong_chain,
        never = beside => never,
    }
}

/// What the socket tells the reader of heads.
#[derive(Default)]
struct Signs {
    /// A new head, or the end of the socket. Signs that nobody waits for become one.
    sign: Notify,
    /// Whether signs come at all.
    live: AtomicBool,
    /// Another head was read, for whoever reads the tags: the view itself wakes its waiters in an order of chance.
    head: Notify,
}

impl Signs {
    /// Waits for a sign; without a socket until it is time to poll.
    async fn next(&self, block_time: Duration) {
        let pause =
            if self.live.load(Ordering::Relaxed) { block_time + LATE } else { (block_time / 2).clamp(POLL.0, POLL.1) };
        // Either way it is time to look.
        timeout(pause, self.sign.notified()).await.unwrap_or_default();
    }

    fn set_live(&self, live: bool) {
        self.live.store(live, Ordering::Relaxed);
        self.sign.notify_one();
    }
}

fn silence(block_time: Duration) -> Duration {
    SILENCE.max(block_time * 3)
}

/// Reads the head whenever it is time to; returns as [`heads`].
async fn read_heads(ctx: &Context, publish: &watch::Sender<Option<View>>, signs: &Signs) -> RpcError {
    let mut backoff = Backoff::new(OUTAGE);
    let mut is_outage = false;
    let mut is_first = true;
    let mut told = HashMap::new();
    loop {
        let before = publish.borrow().as_ref().map(|view| view.head.number);
        let asked = Instant::now();
        ctx.threads.make_way(Track::Realtime);
        let (latest, first_tags) =
            join!(timed("follow", newest(ctx, before)), first_tags(ctx, replace(&mut is_first, false)));
        tell_endpoints(ctx, &mut told, asked);
        match latest {
            Ok(head) => {
                if replace(&mut is_outage, false) {
                    info!(head = head.number, "the head is read again");
                }
                backoff.reset();
                let is_new = update(ctx, publish, |known| {
                    let tags = known.map_or(first_tags, |view| view.heights);
                    Some(View { head, heights: Heights { head: head.number, ..tags } })
                });
                if is_new {
                    signs.head.notify_one();
                }
                signs.next(ctx.chain.block_time).await;
            }
            Err(error @ RpcError::WrongChain { .. }) if before.is_none() => return error,
            Err(error) => {
                if replace(&mut is_outage, true) {
                    debug!(%error, "head not read");
                } else {
                    warn!(%error, "the head cannot be read; trying until it can");
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

/// The newest block. One that is far above the last one, or the first one, must be a block that the node also knows by
/// its number: a number out of thin air would make everything below it look final (R15).
async fn newest(ctx: &Context, before: Option<u64>) -> Result<Header, RpcError> {
    let latest = ctx.source.header(At::Latest).await?;
    let head = latest.ok_or_else(|| RpcError::Behind("the node has no latest block".into()))?;
    if before.is_some_and(|before| head.number <= before.saturating_add(ctx.chain.finality_depth)) {
        return Ok(head);
    }
    match ctx.source.header(At::Number(head.number)).await? {
        Some(_) => Ok(head),
        None => Err(RpcError::Behind(format!("its newest block, {}, is not known by its number", head.number))),
    }
}

/// Publishes what `next` makes of the known view; whoever waits is woken where it is another, and that is the answer.
fn update(
    ctx: &Context,
    publish: &watch::Sender<Option<View>>,
    next: impl FnOnce(Option<&View>) -> Option<View>,
) -> bool {
    publish.send_if_modified(|known| {
        let Some(view) = next(known.as_ref()) else { return false };
        ctx.vitals.head(&view.head, view.heights.deliverable(ctx.deliver, ctx.chain.finality_depth));
        let is_new = known.as_ref() != Some(&view);
        *known = Some(view);
        is_new
    })
}

/// Tells of the endpoints that were asked since `told` last counted; of the others there is nothing new to say.
fn tell_endpoints(ctx: &Context, told: &mut HashMap<String, (u64, u64)>, asked: Instant) {
    let endpoints = ctx.source.endpoints();
    ctx.vitals.note(NOTE, unproven(&endpoints));
    for endpoint in endpoints {
        let seen = SeenProvider {
            lag: endpoint.lag,
            disagreements: endpoint.disagreements,
            aside: endpoint.aside,
            blocks: Some(endpoint.allowance.blocks),
            addresses: endpoint.allowance.addresses,
            parallel: Some(endpoint.allowance.parallel),
            waits_until: endpoint.allowance.waits_until,
            unknown_messages: endpoint.unknown_messages,
        };
        ctx.vitals.provider(&endpoint.name, &seen);
        let now = (endpoint.asked, endpoint.errors);
        if told.insert(endpoint.name.clone(), now).unwrap_or_default() == now {
            continue;
        }
        if let Some(head) = endpoint.head {
            ctx.vitals.provider_head(&endpoint.name, head);
        }
        let answered = endpoint.last_error.as_deref().map_or(Ok(()), Err);
        ctx.vitals.answer(Edge::Provider(endpoint.name), asked, answered);
    }
}

/// That nobody proves what is to be proven, and the mend; one endpoint that does is enough.
fn unproven(endpoints: &[EndpointState]) -> Option<String> {
    let reasons = endpoints.iter().map(|endpoint| endpoint.unproven.as_ref().map(|why| (&endpoint.name, why)));
    let (name, why) = reasons.collect::<Option<Vec<_>>>()?.into_iter().next()?;
    Some(format!(
        "{why} ({name}); where that lasts set VERIFY=bloom, or give an endpoint that serves eth_getBlockReceipts"
    ))
}

/// The tags, in the first round; where that fails, they are read behind the head.
async fn first_tags(ctx: &Context, is_first: bool) -> Heights {
    if !is_first {
        return Heights::default();
    }
    let tags = async { join!(tag(ctx, At::Safe), tag(ctx, At::Finalized)) };
    let (safe, finalized) = timeout(FIRST_TAGS, tags).await.unwrap_or_default();
    Heights { safe, finalized, ..Heights::default() }
}

/// Reads both tags again and again, from the first head on. A tag that could not be read stays as it was, and one that
/// was seen does not go back: nodes behind one address differ.
async fn read_tags(ctx: &Context, publish: &watch::Sender<Option<View>>, signs: &Signs) {
    let mut rounds = 0u32;
    signs.head.notified().await;
    let heights = || publish.borrow().as_ref().map(|view| view.heights).unwrap_or_default();
    // They may have come with the first head.
    let mut is_due = heights().safe == Tag::Unread || heights().finalized == Tag::Unread;
    loop {
        if replace(&mut is_due, true) {
            let (safe, finalized) = join!(tag(ctx, At::Safe), tag(ctx, At::Finalized));
            update(ctx, publish, |known| {
                let View { head, heights } = known?.clone();
                let (safe, finalized) = (heights.safe.max(safe), heights.finalized.max(finalized));
                Some(View { head, heights: Heights { safe, finalized, ..heights } })
            });
        }
        rounds = if heights().finalized == Tag::Unread { rounds.saturating_add(1) } else { 0 };
        if rounds == TAG_ROUNDS {
            warn!("no node tells which block is finalized, nor that there is none: nothing counts as final meanwhile");
        }
        // What is delivered by a tag is late by as much as the tag is old.
        let is_awaited = matches!(ctx.deliver, DeliveryMode::Safe | DeliveryMode::Finalized);
        select! {
            biased;
            () = signs.head.notified(), if is_awaited => {}
            () = sleep(TAGS) => {}
        }
    }
}

async fn tag(ctx: &Context, at: At) -> Tag {
    match ctx.source.header(at).await {
        Ok(header) => header.map_or(Tag::Absent, |header| Tag::At(header.number)),
        Err(error) => {
            debug!(?at, %error, "tag not read");
            Tag::Unread
        }
    }
}

/// Keeps a socket open that tells of new heads; returns where the source has none. An outage lasts until signs come
/// again, however many sockets open and close meanwhile.
async fn keep_socket(ctx: &Context, signs: &Signs) {
    let mut backoff = Backoff::new(RECONNECT.1);
    let mut is_outage = false;
    loop {
        let reason = match ctx.source.heads().await {
            Ok(Some(stream)) => {
                info!("heads come over the WebSocket");
                let (came, reason) = pass_on(ctx, stream, signs).await;
                signs.set_live(false);
                if came {
                    is_outage = false;
                    backoff.reset();
                }
                reason.to_owned()
            }
            Ok(None) => return,
            Err(error) => error.to_string(),
        };
        if replace(&mut is_outage, true) {
            debug!(reason, "no WebSocket");
        } else {
            warn!(reason, "no WebSocket; the head is polled meanwhile");
        }
        sleep(backoff.next_delay().max(RECONNECT.0)).await;
    }
}

/// Passes signs on until the socket ends or falls silent; answers whether there were any, and the reason for the end.
async fn pass_on(ctx: &Context, mut stream: BoxStream<'static, ()>, signs: &Signs) -> (bool, &'static str) {
    let mut came = false;
    loop {
        match timeout(silence(ctx.chain.block_time), stream.next()).await {
            Ok(Some(())) => {
                came = true;
                signs.set_live(true);
            }
            Ok(None) => return (came, "it closed"),
            Err(_) => return (came, "it is silent"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{Arc, Mutex},
        time::SystemTime,
    };

    use async_trait::async_trait;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        config::{Limits, Sources, load_offline},
        devchain::{Options, serve},
        domain::{BlockRange, BlockRef, RawLog},
        pipeline::{Audit, Filters, Threads, Turns},
        rpc::{ChainSource, EndpointState, Endpoints, LogFilter, RangeLogs, Witness},
        store::embedded::Embedded,
        telemetry::Vitals,
    };

    const PATIENCE: Duration = Duration::from_mins(1);

    /// What a source does with requests for tags.
    #[derive(Clone, Copy)]
    enum Fault {
        Hangs,
        Fails,
        None,
    }

    /// A node whose socket never opens, and which has trouble with tags.
    struct Troubled {
        node: Endpoints,
        fault: Mutex<Fault>,
    }

    #[async_trait]
    impl ChainSource for Troubled {
        async fn chain_id(&self) -> Result<u64, RpcError> {
            self.node.chain_id().await
        }
        async fn header(&self, at: At) -> Result<Option<Header>, RpcError> {
            let fault = *self.fault.lock().unwrap();
            match (at, fault) {
                (At::Safe | At::Finalized, Fault::Hangs) => std::future::pending().await,
                (At::Safe | At::Finalized, Fault::Fails) => Err(RpcError::TimedOut),
                _ => self.node.header(at).await,
            }
        }
        async fn block_logs(&self, block: BlockRef, time: u64, filter: &LogFilter) -> Result<Vec<RawLog>, RpcError> {
            self.node.block_logs(block, time, filter).await
        }
        async fn range_logs(&self, range: BlockRange, filter: &LogFilter) -> Result<RangeLogs, RpcError> {
            self.node.range_logs(range, filter).await
        }
        async fn second_opinion(&self, range: BlockRange, filter: &LogFilter) -> Result<Vec<RangeLogs>, RpcError> {
            self.node.second_opinion(range, filter).await
        }
        async fn witnesses(&self, number: u64) -> Vec<Witness> {
            self.node.witnesses(number).await
        }
        fn eject(&self, endpoint: &str, reason: &str) {
            self.node.eject(endpoint, reason);
        }
        fn set_aside(&self, endpoint: &str, reason: &str) {
            self.node.set_aside(endpoint, reason);
        }
        async fn heads(&self) -> Result<Option<BoxStream<'static, ()>>, RpcError> {
            std::future::pending().await
        }
        fn endpoints(&self) -> Vec<EndpointState> {
            self.node.endpoints()
        }
    }

    /// A chain that grows five times a second, from height 100 on.
    async fn troubled(fault: Fault, safe_depth: u64) -> (Arc<Troubled>, Context) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let options = Options {
            port: 0,
            genesis_time: Some(now),
            start_height: 100,
            block_time: Duration::from_millis(200),
            safe_depth,
            ..Options::default()
        };
        let serving = serve(options, CancellationToken::new()).await.unwrap();
        let environment = [("CHAIN_ID", "31337".to_owned()), ("WEB3_PROVIDER", format!("http://{}", serving.address))];
        let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let settings = load_offline(&Sources { environment, ..Sources::default() }).unwrap();
        let node = Endpoints::of(
            (settings.chain.id, settings.chain.block_time),
            settings.providers.clone(),
            Limits::default(),
        );
        let source = Arc::new(Troubled { node, fault: Mutex::new(fault) });
        let context = Context {
            chain: settings.chain.clone(),
            deliver: DeliveryMode::Instant,
            log_filter: LogFilter { addresses: vec![], topics: settings.registry.topics() },
            registry: settings.registry.clone(),
            source: source.clone(),
            store: Arc::new(Embedded::in_memory(settings.chain.id, "development").unwrap()),
            sinks: BTreeMap::new(),
            turns: Turns::default(),
            threads: Threads::default(),
            filters: Filters::off(),
            audit: Audit::new(false),
            vitals: Arc::new(Vitals::default()),
            limits: Limits::default(),
        };
        (source, context)
    }

    async fn seen(views: &mut watch::Receiver<Option<View>>, right: impl Fn(&View) -> bool) -> View {
        let found = timeout(PATIENCE, views.wait_for(|view| view.as_ref().is_some_and(&right))).await;
        found.unwrap().unwrap().clone().unwrap()
    }

    #[tokio::test]
    async fn neither_a_socket_that_does_not_open_nor_tags_that_hang_delay_the_head() {
        let (_source, context) = troubled(Fault::Hangs, 32).await;
        let (publish, mut views) = watch::channel(None);
        let look = async {
            let first = seen(&mut views, |_| true).await;
            seen(&mut views, |view| view.head.number >= first.head.number + 3).await
        };
        let last = tokio::select! { view = look => view, wrong = heads(&context, &publish) => panic!("{wrong}") };
        assert_eq!(last.heights, Heights { head: last.head.number, safe: Tag::Unread, finalized: Tag::Unread });
    }

    #[tokio::test]
    async fn a_tag_is_unread_until_a_node_answers_and_absent_where_the_chain_has_none() {
        let (source, context) = troubled(Fault::Fails, 1_000_000).await;
        let (publish, mut views) = watch::channel(None);
        let look = async {
            let first = seen(&mut views, |_| true).await;
            assert_eq!((first.heights.safe, first.heights.finalized), (Tag::Unread, Tag::Unread));
            *source.fault.lock().unwrap() = Fault::None;
            let read = seen(&mut views, |view| view.heights.finalized != Tag::Unread).await;
            assert!(matches!(read.heights, Heights { safe: Tag::Absent, finalized: Tag::At(36..), .. }), "{read:?}");
            *source.fault.lock().unwrap() = Fault::Fails;
            let later = seen(&mut views, |view| view.head.number > read.head.number + 15).await;
            assert!(later.heights.finalized >= read.heights.finalized && later.heights.safe == Tag::Absent);
        };
        tokio::select! { () = look => {}, wrong = heads(&context, &publish) => panic!("{wrong}") }
    }
}

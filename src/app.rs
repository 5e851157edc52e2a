//! The composition root: the only file that names concrete adapters. Builds, wires, spawns, drains.
//!
//! A server that cannot be reached at the start is waited for, with the HTTP endpoints up and `/readyz` saying so; a
//! server that is wrong (another chain's database, another chain's node) ends the start.

use std::{collections::BTreeMap, future::Future, pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    api,
    backoff::Backoff,
    config::{Provider, RecordSettings, Settings, SinkTarget, StoreSettings, TokenSettings},
    failure::Failure,
    pipeline::{self, Audit, Context, Ended, Filters, Learned, Threads, Tokens, Turns},
    recording::Recorder,
    rpc::{self, Bounds, ChainSource, Endpoints, LogFilter},
    sinks::{
        Sink, SinkError,
        sqs::{AwsAccess, SqsSink},
        stdout::StdoutSink,
    },
    store::{
        StateStore, StoreError,
        embedded::Embedded,
        redis::{Identity, RedisStore},
    },
    telemetry::{Edge, Metrics, Profile, Vitals, summarise},
    tokens::{FixedList, MongoDirectory, TokenDirectory, TokenError},
};

/// Longest pause between two tries to reach a server at the start.
const START_PAUSE: Duration = Duration::from_secs(5);
/// One try to reach the token directory.
const TOKENS_TIMEOUT: Duration = Duration::from_secs(10);
/// How often sinks are asked whether they are there, and the store what it holds, for `/readyz` and `/health`.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// What is particular to one run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Ends once the watermark is there.
    pub until: Option<u64>,
    /// How often a summary line is logged.
    pub summary_every: Duration,
}

/// Listens until `stop`, or until the watermark reaches the block that was asked for.
///
/// # Errors
///
/// Whatever makes it impossible to go on: see [`Failure`] for the exit codes.
pub async fn run(settings: Settings, options: RunOptions, stop: CancellationToken) -> Result<(), Failure> {
    for warning in &settings.warnings {
        warn!(warning, "configuration");
    }
    let metrics = Metrics::install(settings.chain.id, &settings.chain.name)
        .map_err(|error| Failure::Internal(error.to_string()))?;
    let vitals = Arc::new(Vitals::new(profile(&settings)));
    let listener = api::bind(settings.http).await.map_err(|error| Failure::Unavailable(error.to_string()))?;
    info!(address = %settings.http, "HTTP endpoints: /health /livez /readyz /metrics");
    let mut keepers = JoinSet::new();
    let serving = CancellationToken::new();
    let router = api::router(vitals.clone(), metrics.clone());
    let mut server = JoinSet::new();
    server.spawn(keeping("the HTTP server", api::serve(listener, router, metrics, serving.clone())));
    let ended = tokio::select! {
        ended = Box::pin(work(&settings, &vitals, options, stop, &mut keepers)) => ended,
        died = death(&mut server) => Err(died),
    };
    keepers.shutdown().await;
    serving.cancel();
    while server.join_next().await.is_some() {}
    ended
}

/// Builds everything, then listens.
async fn work(
    settings: &Settings,
    vitals: &Arc<Vitals>,
    options: RunOptions,
    stop: CancellationToken,
    keepers: &mut Keepers,
) -> Result<(), Failure> {
    let wired = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        wired = beating(vitals, wire(settings, vitals, keepers)) => wired?,
    };
    listen(settings, wired, options, stop, keepers).await
}

/// Tasks that have to run as long as the process does; each ends with its name.
type Keepers = JoinSet<&'static str>;

/// A task that has to run as long as the process does: when it ends, it says which one it was.
async fn keeping(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

/// Waits for one of the tasks to end, which none should. A process without one of them would look well and not be.
async fn death(tasks: &mut Keepers) -> Failure {
    match tasks.join_next().await {
        Some(Ok(name)) => Failure::Internal(format!("{name} ended by itself")),
        Some(Err(error)) => Failure::Internal(format!("a task of the process failed: {error}")),
        None => std::future::pending().await,
    }
}

/// Until the loop runs, the process is alive as long as it waits.
async fn beating<R>(vitals: &Vitals, waiting: impl Future<Output = R>) -> R {
    let mut beats = interval(Duration::from_secs(1));
    let mut waiting = pin!(waiting);
    loop {
        tokio::select! {
            biased;
            done = &mut waiting => return done,
            _ = beats.tick() => vitals.beat(),
        }
    }
}

/// What was built, and what has to be closed.
struct Wired {
    context: Context,
    directory: Option<Arc<dyn TokenDirectory>>,
    learned: Learned,
    recorder: Option<Recorder>,
}

/// Everything that the pipeline works with, once it can be reached.
async fn wire(settings: &Settings, vitals: &Arc<Vitals>, keepers: &mut Keepers) -> Result<Wired, Failure> {
    let store = patiently(vitals, Edge::Store, || open_store(settings)).await?;
    info!(durability = store.durability(), "state store");
    if let Some(weakness) = store.weakness() {
        warn!(weakness, "state store");
    }
    keepers.spawn(keeping("the look at the state store", look_at(store.clone(), vitals.clone())));
    let sinks = sinks(settings).await?;
    let distinct: BTreeMap<_, _> = sinks.values().map(|sink| (sink.name(), sink)).collect();
    for sink in distinct.into_values() {
        keepers.spawn(keeping("the probe of a sink", probe(sink.clone(), vitals.clone())));
    }
    let directory = patiently(vitals, Edge::Tokens, || token_directory(settings)).await?;
    let filters = filters(directory.clone(), settings, vitals, keepers);
    let recorder = recorder(settings)?;
    let source: Arc<dyn ChainSource> = Arc::new(match &recorder {
        Some(recorder) => endpoints(settings, &settings.providers).recorded(recorder),
        None => endpoints(settings, &settings.providers),
    });
    let learned = Learned::new(source.clone(), store.clone());
    learned.recall().await;
    keepers.spawn(keeping("the memory of the endpoints", learned.clone().keep()));
    let threads = Threads::with_some_for_history().map_err(|error| Failure::Internal(error.to_string()))?;
    let edges = context(settings, (store, source), sinks);
    let context = Context { threads, filters, audit: Audit::new(settings.audit), vitals: vitals.clone(), ..edges };
    Ok(Wired { context, directory, learned, recorder })
}

async fn listen(
    settings: &Settings,
    wired: Wired,
    options: RunOptions,
    stop: CancellationToken,
    keepers: &mut Keepers,
) -> Result<(), Failure> {
    let Wired { context, directory, learned, recorder } = wired;
    wait_for_tokens(&context, &stop, keepers).await?;
    announce(settings, &context);
    keepers.spawn(keeping("the summary", summarise(context.vitals.clone(), options.summary_every)));
    let stop = stop.child_token();
    let mut running = Box::pin(pipeline::run(Arc::new(context), settings.start, options.until, stop.clone()));
    let mut died = None;
    let ended = tokio::select! {
        ended = &mut running => ended,
        death = death(keepers) => {
            error!(reason = %death, "stopping");
            died = Some(death);
            stop.cancel();
            running.await
        }
    };
    if let Some(directory) = directory {
        directory.close().await;
    }
    if let Some(recorder) = recorder {
        recorder.close().await;
    }
    if let Some(death) = died {
        return Err(death);
    }
    match ended {
        Ended::Stopped | Ended::Reached => {
            learned.keep_now().await;
            Ok(())
        }
        Ended::WrongChain(error) => Err(Failure::Config(error.to_string())),
        Ended::Unusable(error) => Err(store_failure(&error)),
        Ended::Broken(what) => Err(Failure::Internal(what)),
    }
}

/// What the stages work with, as far as the settings say it: without a filter and without audits, for commands that need
/// neither.
#[must_use]
pub fn context(
    settings: &Settings,
    (store, source): (Arc<dyn StateStore>, Arc<dyn ChainSource>),
    sinks: BTreeMap<String, Arc<dyn Sink>>,
) -> Context {
    Context {
        chain: settings.chain.clone(),
        deliver: settings.deliver,
        registry: settings.registry.clone(),
        log_filter: LogFilter { addresses: settings.registry.addresses(), topics: settings.registry.topics() },
        source,
        store,
        sinks,
        turns: Turns::default(),
        threads: Threads::default(),
        filters: Filters::off(),
        audit: Audit::new(false),
        vitals: Arc::default(),
        limits: settings.limits.clone(),
    }
}

/// The store that the settings name.
///
/// # Errors
///
/// [`StoreError`]: transient where it may come up, fatal where someone must act.
pub async fn open_store(settings: &Settings) -> Result<Arc<dyn StateStore>, StoreError> {
    Ok(match &settings.store {
        StoreSettings::Redis { url, durability } => {
            let identity = Identity {
                chain_id: settings.chain.id,
                redis_db: settings.chain.redis_db,
                service: settings.service.clone(),
                owner: owner(),
            };
            Arc::new(RedisStore::connect(url, identity, *durability).await?)
        }
        StoreSettings::Embedded { dir } => Arc::new(Embedded::open(dir, settings.chain.id, &settings.service)?),
    })
}

/// The store that the settings name, for a command that looks or mends; `None` where there is no file of it yet.
///
/// # Errors
///
/// As [`open_store`].
pub async fn existing_store(settings: &Settings) -> Result<Option<Arc<dyn StateStore>>, StoreError> {
    match &settings.store {
        StoreSettings::Embedded { dir } if !Embedded::exists(dir, settings.chain.id) => Ok(None),
        _ => open_store(settings).await.map(Some),
    }
}

/// How a store that cannot be used ends a command.
#[must_use]
pub fn store_failure(error: &StoreError) -> Failure {
    match error {
        StoreError::Transient(_) | StoreError::Vanished(_) => Failure::Unavailable(error.to_string()),
        StoreError::InUse(_) => Failure::Temporary(error.to_string()),
        StoreError::Fatal(_) => Failure::Config(error.to_string()),
    }
}

/// These providers, behind one another in this order.
#[must_use]
pub fn nodes(settings: &Settings, providers: &[Provider]) -> Arc<dyn ChainSource> {
    Arc::new(endpoints(settings, providers))
}

fn endpoints(settings: &Settings, providers: &[Provider]) -> Endpoints {
    let chain = (settings.chain.id, settings.chain.block_time);
    Endpoints::of(chain, providers.to_vec(), settings.limits.clone()).within(bounds(settings))
}

/// What records the traffic with the nodes, where that is asked for.
fn recorder(settings: &Settings) -> Result<Option<Recorder>, Failure> {
    let start = |record: &RecordSettings| {
        info!(dir = %record.dir.display(), "the traffic with the nodes is recorded");
        Recorder::start(record.dir.clone(), record.max_bytes, rpc::keys(&settings.providers))
    };
    let started = settings.record.as_ref().map(start).transpose();
    started.map_err(|error| Failure::Internal(format!("cannot start the recording: {error}")))
}

/// What one request may ask an endpoint for, whatever it bears.
#[must_use]
pub fn bounds(settings: &Settings) -> Bounds {
    let chain = &settings.chain;
    Bounds { blocks: chain.batch_blocks, parallel: chain.parallel, spacing: chain.spacing }
}

/// The sinks by handler; handlers with one target share a sink.
///
/// # Errors
///
/// [`Failure::Config`] where a queue's URL is none.
pub async fn sinks(settings: &Settings) -> Result<BTreeMap<String, Arc<dyn Sink>>, Failure> {
    let mut by_handler = BTreeMap::new();
    for (target, name) in settings.registry.targets() {
        let sink = sink(settings, target, &name).await.map_err(|error| Failure::Config(error.to_string()))?;
        let theirs = settings.registry.listeners().iter().filter(|listener| listener.target == *target);
        by_handler.extend(theirs.map(|listener| (listener.handler.to_string(), sink.clone())));
    }
    Ok(by_handler)
}

async fn sink(settings: &Settings, target: &SinkTarget, name: &str) -> Result<Arc<dyn Sink>, SinkError> {
    let patience = settings.limits.sink_timeout;
    Ok(match target {
        SinkTarget::Stdout => Arc::new(StdoutSink::new(patience)),
        SinkTarget::Sqs { url } => Arc::new(SqsSink::connect(&aws_access(settings), name, url, patience).await?),
    })
}

fn aws_access(settings: &Settings) -> AwsAccess {
    let aws = &settings.aws;
    let keys = aws.credentials.as_ref();
    AwsAccess {
        region: aws.region.clone(),
        endpoint: aws.sqs_endpoint.clone(),
        keys: keys.map(|keys| (keys.id.expose().into(), keys.key.expose().into())),
        session_token: keys.and_then(|keys| keys.token.as_ref()).map(|token| token.expose().into()),
    }
}

/// The directory of tracked tokens; `None` where filtering is off.
///
/// # Errors
///
/// [`TokenError`]: transient where the server may come up, fatal where someone must act.
pub async fn token_directory(settings: &Settings) -> Result<Option<Arc<dyn TokenDirectory>>, TokenError> {
    Ok(match &settings.tokens {
        TokenSettings::Off => None,
        TokenSettings::File(path) => Some(Arc::new(FixedList::new(path.clone(), settings.chain.id))),
        TokenSettings::Mongo { uri, database } => {
            Some(Arc::new(MongoDirectory::connect(uri, database, settings.chain.id, TOKENS_TIMEOUT).await?))
        }
    })
}

/// What events are filtered with, from a token list that a task of its own keeps fresh.
fn filters(
    directory: Option<Arc<dyn TokenDirectory>>,
    settings: &Settings,
    vitals: &Arc<Vitals>,
    keepers: &mut Keepers,
) -> Filters {
    let Some(directory) = directory else {
        info!("token filtering is off: no MONGODB_URI and no TOKENS_FILE");
        vitals.tokens(None);
        return Filters::off();
    };
    let (publish, lists) = watch::channel(Tokens::Waiting);
    let reload = Arc::new(Notify::new());
    let refresh = pipeline::keep_fresh(directory, publish, reload.clone(), settings.limits.clone(), vitals.clone());
    keepers.spawn(keeping("the refresh of the token list", refresh));
    Filters::new(lists, reload)
}

/// Nothing is delivered before the first list is there (contract §6).
async fn wait_for_tokens(context: &Context, stop: &CancellationToken, keepers: &mut Keepers) -> Result<(), Failure> {
    let mut lists = context.filters.tokens();
    if matches!(*lists.borrow(), Tokens::Waiting) {
        info!("waiting for the token list");
    }
    let known = lists.wait_for(|tokens| !matches!(tokens, Tokens::Waiting));
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        died = death(keepers) => Err(died),
        // An error says that the refresh ended, which is seen as any task's death is.
        _ = beating(&context.vitals, known) => Ok(()),
    }
}

/// Tries until it is reached, or until it is clear that it never will be.
async fn patiently<R, E, F>(vitals: &Vitals, edge: Edge, open: impl Fn() -> F) -> Result<R, Failure>
where
    E: Outage,
    F: Future<Output = Result<R, E>>,
{
    let mut backoff = Backoff::new(START_PAUSE);
    loop {
        let asked = Instant::now();
        match open().await {
            Ok(opened) => {
                vitals.edge(edge, Ok(()));
                return Ok(opened);
            }
            Err(error) if error.passes() => {
                warn!(%error, "not reached yet; trying again");
                vitals.answer(edge.clone(), asked, Err(&error.to_string()));
                backoff.wait(None).await;
            }
            Err(error) => return Err(error.failure()),
        }
    }
}

/// Why an edge is not reached.
trait Outage: std::fmt::Display {
    /// Whether trying again may help.
    fn passes(&self) -> bool;
    /// How it ends the start otherwise.
    fn failure(&self) -> Failure;
}

impl Outage for StoreError {
    fn passes(&self) -> bool {
        matches!(self, Self::Transient(_))
    }

    fn failure(&self) -> Failure {
        store_failure(self)
    }
}

impl Outage for TokenError {
    fn passes(&self) -> bool {
        matches!(self, Self::Transient(_))
    }

    fn failure(&self) -> Failure {
        Failure::Config(self.to_string())
    }
}

/// Asks a sink every few seconds whether it is there, so that `/readyz` knows before the next event does.
async fn probe(sink: Arc<dyn Sink>, vitals: Arc<Vitals>) {
    let mut ticks = interval(PROBE_EVERY);
    loop {
        let asked = ticks.tick().await;
        let there = sink.check().await.map_err(|error| error.to_string());
        let there = there.as_ref().copied().map_err(String::as_str);
        vitals.answer(Edge::Probe(sink.name().to_owned()), asked, there);
    }
}

/// Looks every few seconds at what the store alone knows: the dead letters, and what makes its writes survive. Whether
/// it answers is told by the loop, which asks it more often.
async fn look_at(store: Arc<dyn StateStore>, vitals: Arc<Vitals>) {
    let mut ticks = interval(PROBE_EVERY);
    loop {
        ticks.tick().await;
        vitals.durability(store.durability());
        vitals.note("durability", store.weakness());
        match store.dead_letters_len().await {
            Ok(letters) => vitals.dead_letters(letters),
            Err(error) => debug!(%error, "dead letters not counted"),
        }
    }
}

fn profile(settings: &Settings) -> Profile {
    Profile {
        chain_id: settings.chain.id,
        service: settings.service.clone(),
        block_time: settings.chain.block_time,
        store: match settings.store {
            StoreSettings::Redis { .. } => "redis",
            StoreSettings::Embedded { .. } => "embedded",
        },
        providers: settings.providers.iter().map(|provider| provider.name.clone()).collect(),
        sinks: settings.registry.targets().into_iter().map(|(_, name)| name).collect(),
        token_refresh: (!matches!(settings.tokens, TokenSettings::Off)).then_some(settings.limits.token_refresh),
    }
}

/// This process's name among the replicas: host, process and moment of the start.
fn owner() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}-{:x}", host.trim(), std::process::id(), since.as_nanos())
}

fn announce(settings: &Settings, context: &Context) {
    let tracked = match &*context.filters.tokens().borrow() {
        Tokens::Tracked(reading) => Some(reading.tokens.len()),
        Tokens::Off | Tokens::Waiting => None,
    };
    for line in settings.registry.summary(tracked).lines() {
        info!("{line}");
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::B256;
    use futures_util::FutureExt;

    use super::*;
    use crate::store::{DeadKind, DeadLetter, Start};

    #[tokio::test]
    async fn a_task_that_ends_or_panics_is_a_fault_of_the_program() {
        let mut ended = JoinSet::new();
        ended.spawn(keeping("the probe", std::future::pending()));
        ended.spawn(keeping("the summary", async {}));
        assert!(matches!(death(&mut ended).await, Failure::Internal(why) if why == "the summary ended by itself"));
        let mut panicked = JoinSet::new();
        panicked.spawn(keeping("the probe", async { panic!("planted") }));
        assert!(matches!(death(&mut panicked).await, Failure::Internal(why) if why.contains("panicked")));
    }

    #[tokio::test]
    async fn dead_letters_and_durability_are_told_in_health() {
        let store = Embedded::in_memory(1, "ethereum_mainnet").unwrap();
        store.init(Start::At(0)).await.unwrap();
        let letter = DeadLetter {
            key: "1:0x00:0|h".into(),
            kind: DeadKind::Refused,
            reason: "too large".into(),
            handler: "h".into(),
            block_number: 0,
            block_hash: B256::ZERO,
            body: "{}".into(),
            buried_at: 0,
        };
        assert!(store.bury(&[letter]).await.unwrap());
        let vitals = Arc::new(Vitals::default());
        let looking = tokio::spawn(look_at(Arc::new(store.clone()), vitals.clone()));
        while vitals.health().dead_letters == 0 {
            tokio::task::yield_now().await;
        }
        looking.abort();
        assert_eq!(vitals.health().dead_letters, 1);
        assert_eq!(vitals.health().redis.durability, Some(store.durability()));
    }

    #[test]
    fn without_tasks_there_is_nothing_that_could_end() {
        assert!(death(&mut JoinSet::new()).now_or_never().is_none());
    }
}

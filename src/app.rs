//! The composition root: the only file that names concrete adapters. Builds, wires, spawns, drains.
//!
//! A server that cannot be reached at the start is waited for, with the HTTP endpoints up and `/readyz` saying so; a
//! server that is wrong (another chain's database, another chain's node) ends the start.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    api,
    backoff::Backoff,
    cli::Failure,
    config::{Durability, Settings, SinkTarget, StartBlock, StoreSettings, TokenSettings},
    pipeline::{self, Context, Ended, Span, Tokens},
    rpc::{At, ChainSource, Endpoints, LogFilter},
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
    telemetry::{Edge, Metrics, Profile, Vitals},
    tokens::{FixedList, MongoDirectory, TokenDirectory, TokenError},
};

/// Longest pause between two tries to reach a server at the start.
const START_PAUSE: Duration = Duration::from_secs(5);
/// One try to reach the token directory.
const TOKENS_TIMEOUT: Duration = Duration::from_secs(10);
/// How often sinks are asked whether they are there, for `/readyz`.
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
    let server = tokio::spawn(api::serve(listener, router, metrics, serving.clone()));
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        wired = wire(&settings, &vitals, &mut keepers) => match wired {
            Ok(wired) => listen(settings, wired, options, stop.clone(), &mut keepers).await,
            Err(failure) => Err(failure),
        },
    };
    keepers.shutdown().await;
    serving.cancel();
    if let Err(error) = server.await {
        warn!(%error, "the HTTP server ended badly");
    }
    ended
}

/// What was built, and what has to be closed.
struct Wired {
    context: Context,
    directory: Option<Arc<dyn TokenDirectory>>,
}

/// Everything that the pipeline works with, once it can be reached.
async fn wire(settings: &Settings, vitals: &Arc<Vitals>, keepers: &mut JoinSet<()>) -> Result<Wired, Failure> {
    let beating = vitals.clone();
    // Until the loop runs, the process is alive as long as it waits.
    let waiting = keepers.spawn(async move { match beating.beat_on().await {} });
    let store = patiently(vitals, Edge::Store, || open_store(settings)).await?;
    vitals.note("durability", weak_durability(settings, &*store));
    info!(durability = store.durability(), "state store");
    let sinks = sinks(settings).await?;
    for sink in sinks.values() {
        keepers.spawn(probe(sink.clone(), vitals.clone()));
    }
    let directory = patiently(vitals, Edge::Tokens, || token_directory(settings)).await?;
    let tokens = token_lists(directory.clone(), settings, vitals, keepers);
    waiting.abort();
    let context = Context {
        chain: settings.chain.clone(),
        deliver: settings.deliver,
        registry: settings.registry.clone(),
        filter: LogFilter { addresses: settings.registry.addresses(), topics: settings.registry.topics() },
        source: Arc::new(Endpoints::new(settings.chain.id, settings.providers.clone(), settings.limits.clone())),
        store,
        sinks,
        tokens,
        vitals: vitals.clone(),
        limits: settings.limits.clone(),
        span: Span::new(settings.chain.batch_blocks),
    };
    Ok(Wired { context, directory })
}

async fn listen(
    settings: Settings,
    wired: Wired,
    options: RunOptions,
    stop: CancellationToken,
    keepers: &mut JoinSet<()>,
) -> Result<(), Failure> {
    let Wired { context, directory } = wired;
    wait_for_tokens(&context, &stop).await;
    announce(&settings, &context);
    keepers.spawn(summarise(context.vitals.clone(), options.summary_every));
    let start = match settings.start {
        StartBlock::At(number) => Some(number),
        StartBlock::Latest => None,
    };
    let ended = pipeline::run(Arc::new(context), start, options.until, stop).await;
    if let Some(directory) = directory {
        directory.close().await;
    }
    match ended {
        Ended::Stopped | Ended::Reached => Ok(()),
        Ended::WrongChain(error) => Err(Failure::Config(error.to_string())),
        Ended::Unusable(error) => Err(store_failure(&error)),
        Ended::Broken(what) => Err(Failure::Internal(what)),
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

/// The sinks by handler; handlers with one target share a sink.
///
/// # Errors
///
/// [`Failure::Config`] where a queue's URL is none.
pub async fn sinks(settings: &Settings) -> Result<BTreeMap<String, Arc<dyn Sink>>, Failure> {
    let mut by_target: Vec<(&SinkTarget, Arc<dyn Sink>)> = Vec::new();
    let mut by_handler = BTreeMap::new();
    for listener in settings.registry.listeners() {
        let known = by_target.iter().find(|(target, _)| *target == &listener.target).map(|(_, sink)| sink.clone());
        let sink = match known {
            Some(sink) => sink,
            None => sink(settings, &listener.target).await.map_err(|error| Failure::Config(error.to_string()))?,
        };
        by_target.push((&listener.target, sink.clone()));
        by_handler.insert(listener.handler.to_string(), sink);
    }
    Ok(by_handler)
}

async fn sink(settings: &Settings, target: &SinkTarget) -> Result<Arc<dyn Sink>, SinkError> {
    let patience = settings.limits.sink_timeout;
    Ok(match target {
        SinkTarget::Stdout => Arc::new(StdoutSink::new(patience)),
        SinkTarget::Sqs { url } => Arc::new(SqsSink::connect(&aws_access(settings), url, patience).await?),
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

/// The token list as it changes, kept fresh by a task of its own.
fn token_lists(
    directory: Option<Arc<dyn TokenDirectory>>,
    settings: &Settings,
    vitals: &Arc<Vitals>,
    keepers: &mut JoinSet<()>,
) -> watch::Receiver<Tokens> {
    let Some(directory) = directory else {
        info!("token filtering is off: no MONGODB_URI and no TOKENS_FILE");
        vitals.tokens(None);
        return watch::channel(Tokens::Off).1;
    };
    let (publish, lists) = watch::channel(Tokens::Waiting);
    keepers.spawn(pipeline::keep_fresh(directory, publish, settings.limits.clone(), vitals.clone()));
    lists
}

/// Nothing is delivered before the first list is there (contract §6).
async fn wait_for_tokens(context: &Context, stop: &CancellationToken) {
    let mut lists = context.tokens.clone();
    if matches!(*lists.borrow(), Tokens::Waiting) {
        info!("waiting for the token list");
    }
    let vitals = &context.vitals;
    let known = lists.wait_for(|tokens| !matches!(tokens, Tokens::Waiting));
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        // The keeper never ends before the process does, so an error cannot come.
        _ = known => {}
        never = vitals.beat_on() => match never {},
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

/// Asks every server that the settings name: its name, and what it is or why it cannot be used.
pub async fn reach(settings: &Settings) -> Vec<(String, Result<String, String>)> {
    let mut answers = Vec::new();
    for url in &settings.providers {
        let one = Endpoints::new(settings.chain.id, vec![url.clone()], settings.limits.clone());
        let head = one.header(At::Latest).await.map_err(|error| error.to_string());
        let head = head.and_then(|head| head.ok_or_else(|| "no latest block".to_owned()));
        answers.push((format!("node {}", url.name()), head.map(|head| format!("head {}", head.number))));
    }
    let store = open_store(settings).await.map_err(|error| error.to_string());
    answers.push(("state store".to_owned(), store.map(|store| store.durability())));
    match token_directory(settings).await.map_err(|error| error.to_string()) {
        Ok(None) => {}
        Ok(Some(directory)) => {
            let loaded = directory.load().await.map_err(|error| error.to_string());
            answers.push(("token list".to_owned(), loaded.map(|list| format!("{} tokens", list.tokens.len()))));
            directory.close().await;
        }
        Err(reason) => answers.push(("token list".to_owned(), Err(reason))),
    }
    match sinks(settings).await {
        Err(failure) => answers.push(("sinks".to_owned(), Err(failure.to_string()))),
        Ok(sinks) => {
            for (handler, sink) in sinks {
                let there = sink.check().await.map_err(|error| error.to_string());
                answers.push((format!("{handler} → {}", sink.name()), there.map(|()| "takes messages".to_owned())));
            }
        }
    }
    answers
}

/// Asks a sink every few seconds whether it is there, so that `/readyz` knows before the next event does.
async fn probe(sink: Arc<dyn Sink>, vitals: Arc<Vitals>) {
    let mut ticks = interval(PROBE_EVERY);
    loop {
        let asked = ticks.tick().await;
        let there = sink.check().await.map_err(|error| error.to_string());
        vitals.probed(Edge::Sink(sink.name().to_owned()), asked, there.as_ref().copied().map_err(String::as_str));
    }
}

fn profile(settings: &Settings) -> Profile {
    let sinks: std::collections::BTreeSet<String> =
        settings.registry.listeners().iter().map(|listener| listener.target.sink_name()).collect();
    Profile {
        chain_id: settings.chain.id,
        service: settings.service.clone(),
        block_time: settings.chain.block_time,
        store: match settings.store {
            StoreSettings::Redis { .. } => "redis",
            StoreSettings::Embedded { .. } => "embedded",
        },
        providers: settings.providers.iter().map(|url| url.name().to_owned()).collect(),
        sinks: sinks.into_iter().collect(),
        token_refresh: (!matches!(settings.tokens, TokenSettings::Off)).then_some(settings.limits.token_refresh),
    }
}

fn weak_durability(settings: &Settings, store: &dyn StateStore) -> Option<String> {
    let chosen = matches!(settings.store, StoreSettings::Redis { durability: Durability::None, .. });
    chosen.then(|| format!("no barrier before messages are sent ({}): for development", store.durability()))
}

/// This process's name among the replicas: host, process and moment of the start.
fn owner() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}-{:x}", host.trim(), std::process::id(), since.as_nanos())
}

fn announce(settings: &Settings, context: &Context) {
    let tracked = match &*context.tokens.borrow() {
        Tokens::Tracked(list) => Some(list.len()),
        Tokens::Off | Tokens::Waiting => None,
    };
    for line in settings.registry.summary(tracked).lines() {
        info!("{line}");
    }
}

/// One line every few seconds that says where the listener stands.
async fn summarise(vitals: Arc<Vitals>, every: Duration) {
    let mut ticks = interval(every);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let health = vitals.health();
        info!(
            status = ?health.status,
            head = health.head.as_ref().map(|head| head.number),
            processed = health.processed,
            watermark = health.watermark,
            lag = health.lag_blocks,
            gaps = health.gaps,
            dead_letters = health.dead_letters,
            "summary"
        );
    }
}

//! One life of one replica: the real pipeline between four faulty edges.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use alloy::primitives::Address;
use async_trait::async_trait;
use chaintap::{
    config::{ChainProfile, Limits, Settings, Sources, StartBlock, Verify, load_offline},
    pipeline::{self, Audit, Context, Ended, Filters, Threads, Tokens, Turns},
    rpc::LogFilter,
    sinks::Sink,
    telemetry::Vitals,
    tokens::{Loaded, TokenDirectory, TokenError},
};
use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    faults::{Gate, Kind, Op},
    journal::{Journal, Witnessed},
    node::Node,
    oracle::CHAIN,
    sink::Queue,
    world::tokens,
};

/// A life that goes on.
pub struct Life {
    pub gate: Arc<Gate>,
    pub stop: CancellationToken,
    running: AbortHandle,
}

impl Life {
    /// Dies at once: nothing that it has begun is finished, nothing that it did is undone.
    pub fn crash(&self) {
        self.gate.die();
        self.running.abort();
    }
}

/// How a life ended that was not ended: which, and why.
pub type Death = (usize, u64, Ended);

/// Starts a replica.
pub fn start(store: Witnessed, replica: usize, life: u64, deaths: &mut JoinSet<Death>) -> Life {
    let gate = Arc::new(Gate::new(store.world.clone(), replica, life));
    let stop = CancellationToken::new();
    let (context, first, keeper) = context(&gate, store);
    let stopped = stop.clone();
    let running = deaths.spawn(async move {
        let run = pipeline::run(context, first, None, stopped);
        let ended = tokio::select! {
            biased;
            ended = run => ended,
            () = keeper => Ended::Broken("nobody keeps the token list".into()),
        };
        (replica, life, ended)
    });
    Life { gate, stop, running }
}

/// What the configuration says; read once.
fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| {
        let environment = [("CHAIN_ID", CHAIN.to_string()), ("WEB3_PROVIDER", "http://127.0.0.1:1".to_owned())];
        let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        load_offline(&Sources { environment, ..Sources::default() }).unwrap()
    })
}

fn context(gate: &Arc<Gate>, store: Witnessed) -> (Arc<Context>, StartBlock, impl Future<Output = ()> + use<>) {
    let swarm = &gate.world.swarm;
    let settings = settings();
    let (publish, tokens) = watch::channel(Tokens::Waiting);
    let reload = Arc::new(Notify::new());
    let limits = Limits { token_refresh: swarm.token_refresh, ..Limits::default() };
    let vitals = Arc::new(Vitals::default());
    let directory = Arc::new(Directory { gate: gate.clone(), told: gate.world.listen() });
    let context = Context {
        chain: ChainProfile {
            block_time: swarm.block_time,
            finality_depth: swarm.making.finality,
            verify: Verify::default(),
            verify_sample: 0,
            audit_sample: 0,
            batch_blocks: swarm.batch_blocks,
            ..settings.chain.clone()
        },
        deliver: swarm.deliver,
        log_filter: LogFilter { addresses: vec![], topics: settings.registry.topics() },
        registry: settings.registry.clone(),
        source: Arc::new(Node::new(gate.clone())),
        store: Arc::new(Journal { gate: gate.clone(), store }),
        sinks: BTreeMap::from([(
            "handleTransferEvent".to_owned(),
            Arc::new(Queue { gate: gate.clone() }) as Arc<dyn Sink>,
        )]),
        turns: Turns::default(),
        threads: Threads::default(),
        filters: Filters::new(tokens, reload.clone()),
        audit: Audit::new(swarm.audits),
        vitals: vitals.clone(),
        limits: limits.clone(),
    };
    (Arc::new(context), StartBlock::At(swarm.start), pipeline::keep_fresh(directory, publish, reload, limits, vitals))
}

/// The directory of tokens, which knows no faults but not to answer.
struct Directory {
    gate: Arc<Gate>,
    /// It changed.
    told: Arc<Notify>,
}

#[async_trait]
impl TokenDirectory for Directory {
    async fn load(&self) -> Result<Loaded, TokenError> {
        let is_calm = self.gate.world.is_calm();
        let mut strike = self.gate.enter(Op::Tokens, 0).await;
        let tracked: BTreeSet<Address> = self.gate.world.directory.borrow().clone();
        self.gate.leave(Op::Tokens, &mut strike).await;
        if matches!(strike.kind, Some(Kind::Fails | Kind::Lost | Kind::Hangs | Kind::Late)) {
            return Err(TokenError::Transient("away".into()));
        }
        if is_calm {
            self.gate.has_read_in_calm();
        }
        let tokens = tokens().values().filter(|token| tracked.contains(&token.address)).cloned().collect();
        Ok(Loaded { tokens, from: BTreeMap::new(), skipped: vec![] })
    }

    async fn changed(&self) {
        self.told.notified().await;
    }
}

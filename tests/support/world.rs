//! The servers around a listener, each behind a proxy: a node whose chain branches, a store that restarts or fails over,
//! and a sink.

use std::{collections::BTreeSet, time::Duration};

use alloy::primitives::Address;
use chaintap::{
    config::{Durability, SecretUrl},
    devchain::{Limits, Options, token_documents},
    store::{
        JournalEntry, Snapshot, StateStore as _,
        embedded::Embedded,
        redis::{Identity, RedisStore},
    },
};
use serde_json::{Value, json};

use super::{
    anvil::Anvil,
    chaintap::Settings,
    deliveries,
    devchain::{Devchain, Rpc, still},
    dice::Dice,
    mailbox::Mailbox,
    proxy::Proxy,
    redis::RedisServer,
    sqs::{Misbehaviour, SqsServer},
};

/// The development chain's id, and its Redis database.
pub const CHAIN: u64 = 31_337;
const DB: u8 = 15;
/// Where the chains begin.
const START_HEIGHT: u64 = 40;
/// The first block that is delivered; reorganisations stay above it.
const FIRST: u64 = 30;
/// Blocks that no reorganisation reaches, in either node and in the chain's profile.
const FINALITY: u64 = 64;

/// A chain that branches on request.
pub enum Node {
    Devchain(Devchain),
    Anvil(Box<Anvil>, Address),
}

impl Node {
    pub async fn devchain() -> Self {
        let limits = Limits { orphans: 1_000_000, ..Limits::default() };
        Self::Devchain(Devchain::start(Options { logs_per_block: 6, limits, ..still(START_HEIGHT) }).await)
    }

    pub async fn anvil() -> Self {
        let anvil = Anvil::start(CHAIN, &["--no-mining"]).await;
        let token = anvil.deploy_token().await;
        anvil.mine(START_HEIGHT).await;
        Self::Anvil(Box::new(anvil), token)
    }

    pub fn rpc(&self) -> Rpc {
        match self {
            Self::Devchain(devchain) => devchain.rpc(),
            Self::Anvil(anvil, _) => anvil.rpc.clone(),
        }
    }

    pub async fn head(&self) -> u64 {
        deliveries::height(&self.rpc()).await
    }

    /// The tokens of this chain that are listed: not all of them.
    fn listed(&self) -> (Vec<Address>, Value) {
        match self {
            Self::Devchain(_) => {
                let mut documents = token_documents(&still(START_HEIGHT));
                documents.as_array_mut().unwrap().truncate(5);
                let tokens = documents.as_array().unwrap().iter();
                (tokens.map(|token| token["address"].as_str().unwrap().parse().unwrap()).collect(), documents)
            }
            Self::Anvil(_, token) => {
                let document = json!({
                    "address": token.to_checksum(None), "name": "Test Token", "symbol": "TEST", "decimals": 18,
                    "chainId": CHAIN,
                });
                (vec![*token], json!([document]))
            }
        }
    }

    /// Mines blocks, most of them with transfers.
    pub async fn mine(&self, blocks: u64, dice: &mut Dice) {
        match self {
            Self::Devchain(devchain) => devchain.mine(blocks).await,
            Self::Anvil(anvil, token) => {
                for place in 0..blocks {
                    if place < 8 {
                        let to = Address::repeat_byte(u8::try_from(dice.between(1, 200)).unwrap());
                        anvil.burst(*token, to, dice.between(1, 6)).await;
                    }
                    anvil.mine(1).await;
                }
            }
        }
    }

    /// The deepest reorganisation that is possible now, up to 8.
    pub async fn deepest(&self) -> u64 {
        self.head().await.saturating_sub(FIRST).min(8)
    }

    /// The newest blocks are replaced by others, as many or a few more.
    pub async fn reorganise(&self, depth: u64, dice: &mut Dice) {
        match self {
            Self::Devchain(devchain) => {
                let length = depth + dice.below(3);
                devchain.rpc().call("devchain_reorg", json!([{ "depth": depth, "length": length }])).await;
            }
            Self::Anvil(anvil, token) => {
                let counts: Vec<u64> = (0..depth).map(|_| dice.between(1, 6)).collect();
                let to = Address::repeat_byte(u8::try_from(dice.between(1, 200)).unwrap());
                anvil.reorg_with_bursts(depth, *token, to, &counts).await;
            }
        }
    }

    /// The head goes back; whoever mines on makes another branch, or the same blocks again.
    pub async fn shorten(&self, depth: u64) {
        match self {
            Self::Devchain(devchain) => {
                devchain.rpc().call("devchain_reorg", json!([{ "depth": depth, "length": 0 }])).await;
            }
            Self::Anvil(anvil, _) => anvil.rollback(depth).await,
        }
    }

    /// Back to the branch that was left last, and further; anvil goes back to what it remembers of `depth` blocks ago and
    /// mines another branch. `false` where there is none in reach.
    pub async fn flip(&self, depth: u64, dice: &mut Dice) -> bool {
        match self {
            Self::Devchain(devchain) => {
                devchain.rpc().try_call("devchain_flip", json!([dice.between(1, 2)])).await.is_ok()
            }
            Self::Anvil(anvil, _) => {
                let here = anvil.snapshot().await;
                self.mine(depth, dice).await;
                tokio::time::sleep(dice.millis(100, 1_500)).await;
                anvil.revert(here).await;
                self.mine(depth + 1, dice).await;
                true
            }
        }
    }

    /// Whether every one of these ids is a log of a block that the node has or had.
    pub async fn assert_existed(&self, ids: impl Iterator<Item = &str>) {
        let Self::Devchain(devchain) = self else { return };
        let rpc = devchain.rpc();
        let mut asked = (String::new(), BTreeSet::new());
        for id in ids {
            let (block, index) = id.trim_start_matches(&format!("{CHAIN}:")).split_once(':').unwrap();
            if asked.0 != block {
                let logs = rpc.call("eth_getLogs", json!([{ "blockHash": block }])).await;
                let indices = logs.as_array().unwrap().iter().map(|log| {
                    let index = log["logIndex"].as_str().unwrap().trim_start_matches("0x");
                    u64::from_str_radix(index, 16).unwrap().to_string()
                });
                asked = (block.to_owned(), indices.collect());
            }
            assert!(asked.1.contains(index), "{id} never was a log of that block");
        }
    }
}

/// What keeps the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    Embedded,
    /// Redis with `appendfsync always`; it is killed and started again.
    RedisAlways,
    /// Redis with `appendfsync everysec`; it is killed and started again.
    RedisEverySecond,
    /// Redis of 8.2 with `appendfsync everysec` and a barrier of WAITAOF; it is killed and started again.
    RedisWaitAof,
    /// Redis with a replica and a barrier of WAIT, and no file; it fails over, and what the replica had not got is lost.
    RedisReplica,
}

/// The servers of a store.
pub struct Store {
    pub kind: StoreKind,
    servers: Option<Servers>,
}

struct Servers {
    primary: RedisServer,
    /// The replica, and the line over which it follows.
    replica: Option<(RedisServer, Proxy)>,
    proxy: Proxy,
}

impl Store {
    pub async fn start(kind: StoreKind) -> Self {
        let with_file = |fsync| ["--appendonly", "yes", "--appendfsync", fsync];
        let primary = match kind {
            StoreKind::Embedded => return Self { kind, servers: None },
            StoreKind::RedisAlways => RedisServer::start_with(&with_file("always")).await,
            StoreKind::RedisEverySecond => RedisServer::start_with(&with_file("everysec")).await,
            StoreKind::RedisWaitAof => RedisServer::start_8_2(&with_file("everysec")).await,
            StoreKind::RedisReplica => RedisServer::start().await,
        };
        let proxy = Proxy::before(&primary.url(DB)).await;
        let replica = if kind == StoreKind::RedisReplica { Some(replica_of(&primary).await) } else { None };
        Self { kind, servers: Some(Servers { primary, replica, proxy }) }
    }

    fn settings(&self, settings: Settings) -> Settings {
        let Some(servers) = &self.servers else { return settings };
        let settings = settings.set("REDIS_URL", format!("redis://{}/{DB}", servers.proxy.address));
        match self.kind {
            StoreKind::RedisWaitAof | StoreKind::RedisReplica => settings.set("DURABILITY", "required"),
            _ => settings,
        }
    }

    pub fn proxy(&self) -> Option<&Proxy> {
        self.servers.as_ref().map(|servers| &servers.proxy)
    }

    /// Kills the server and starts it again, or lets it fail over: then the replica has not got the last of what the
    /// primary acknowledged without a barrier.
    pub async fn restart(&mut self, dice: &mut Dice) -> bool {
        let Some(servers) = &mut self.servers else { return false };
        if let Some((mut successor, link)) = servers.replica.take() {
            link.silence();
            tokio::time::sleep(dice.millis(0, 800)).await;
            servers.primary.kill().await;
            drop(link);
            let _: String = successor.cli(DB, "REPLICAOF NO ONE").await;
            std::mem::swap(&mut servers.primary, &mut successor);
            servers.replica = Some(replica_of(&servers.primary).await);
            servers.proxy.lead_to(&servers.primary.url(DB));
        } else {
            servers.primary.kill().await;
            tokio::time::sleep(dice.millis(0, 1_500)).await;
            servers.primary.restart().await;
        }
        true
    }

    /// What the store says, and its live journal. An embedded one is read from a copy of its file, which no process may
    /// have open.
    pub async fn state(&self, settings: &Settings) -> (Snapshot, Vec<JournalEntry>) {
        let owner = "test".to_owned();
        let Some(servers) = &self.servers else {
            let file = format!("chain-{CHAIN}.redb");
            let copy = tempfile::tempdir().unwrap();
            std::fs::copy(settings.home().join("data").join(&file), copy.path().join(&file)).unwrap();
            let store = Embedded::open(copy.path(), CHAIN, "test").unwrap();
            return (store.snapshot().await.unwrap(), store.journal(u64::MAX >> 12).await.unwrap());
        };
        let identity = Identity { chain_id: CHAIN, redis_db: DB, service: owner.clone(), owner };
        let url = SecretUrl::parse(&servers.primary.url(DB)).unwrap();
        let store = RedisStore::connect(&url, identity, Durability::None).await.unwrap();
        (store.snapshot().await.unwrap(), store.journal(u64::MAX >> 12).await.unwrap())
    }

    /// Claims that are left, each with its token.
    pub async fn claims(&self) -> Vec<String> {
        let Some(servers) = &self.servers else { return Vec::new() };
        let keys: Vec<String> = servers.primary.cli(DB, &format!("KEYS chain:{CHAIN}:claim:*")).await;
        let mut claims = Vec::new();
        for key in keys {
            let token: Option<String> = servers.primary.cli(DB, &format!("GET {key}")).await;
            claims.push(format!("{key} {token:?}"));
        }
        claims
    }
}

async fn replica_of(primary: &RedisServer) -> (RedisServer, Proxy) {
    let link = Proxy::before(&primary.url(DB)).await;
    let port = link.address.port().to_string();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    super::process::eventually("the replica follows", Duration::from_secs(20), || async {
        let info: String = replica.cli(DB, "INFO replication").await;
        info.contains("master_link_status:up")
    })
    .await;
    (replica, link)
}

/// Where messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkKind {
    Stdout,
    /// The queue of the tests, which loses acknowledgements and refuses entries on request.
    Standard,
    Fifo,
    /// A queue that others wrote.
    Fauxqs,
}

/// A queue, or none where messages go to standard output.
pub struct Queue {
    pub kind: SinkKind,
    server: Option<(SqsServer, String, Proxy)>,
}

impl Queue {
    pub async fn start(kind: SinkKind) -> Self {
        let server = match kind {
            SinkKind::Stdout => return Self { kind, server: None },
            SinkKind::Standard | SinkKind::Fifo => SqsServer::stub().await,
            SinkKind::Fauxqs => SqsServer::fauxqs().await,
        };
        let name = if kind == SinkKind::Fifo { "transfers.fifo" } else { "transfers" };
        let url = server.create_queue(name, 256 << 10).await;
        let proxy = Proxy::before(server.endpoint()).await;
        Self { kind, server: Some((server, url, proxy)) }
    }

    fn settings(&self, settings: Settings) -> Settings {
        let Some((server, url, proxy)) = &self.server else { return settings };
        let settings = settings.queue(server, url).set("SINK_TIMEOUT", "6s");
        settings.set("AWS_ENDPOINT_URL_SQS", format!("http://{}", proxy.address))
    }

    pub fn proxy(&self) -> Option<&Proxy> {
        self.server.as_ref().map(|(_, _, proxy)| proxy)
    }

    /// The next batches are taken in part, or their acknowledgement is lost.
    pub fn misbehave(&self, dice: &mut Dice) -> bool {
        match &self.server {
            Some((server, ..)) if self.kind != SinkKind::Fauxqs => {
                server.script([match dice.below(3) {
                    0 => Misbehaviour::LoseAnswer,
                    1 => Misbehaviour::Forget,
                    _ => Misbehaviour::Fail { places: vec![0, 3], code: "InternalError", sender_fault: false },
                }]);
                true
            }
            _ => false,
        }
    }

    pub fn behave(&self) {
        if let Some((server, ..)) = self.server.as_ref().filter(|_| self.kind != SinkKind::Fauxqs) {
            server.behave();
        }
    }

    /// Folds in what has come.
    pub async fn drain(&self, fold: &mut Mailbox) {
        if let Some((server, url, _)) = &self.server {
            server.drain(url).await.iter().for_each(|message| fold.enter(&message.body));
        }
    }
}

/// Node, store and sink.
pub struct World {
    pub node: Node,
    pub store: Store,
    pub queue: Queue,
    pub line: Proxy,
    tokens: Vec<Address>,
    /// Ids of transfers in blocks that no reorganisation reaches, and the highest such block.
    settled: (u64, BTreeSet<String>),
}

impl World {
    pub async fn new(node: Node, store: StoreKind, sink: SinkKind) -> Self {
        let line = Proxy::before(&node.rpc().url).await;
        let (store, queue) = (Store::start(store).await, Queue::start(sink).await);
        let (tokens, _) = node.listed();
        Self { node, store, queue, line, tokens, settled: (FIRST - 1, BTreeSet::new()) }
    }

    /// How a replica is started.
    pub fn settings(&self) -> Settings {
        let (_, documents) = self.node.listed();
        let settings = Settings::default()
            .set("CHAIN_ID", CHAIN)
            .set("WEB3_PROVIDER", format!("ws://{}", self.line.address))
            .set("START_BLOCK", FIRST)
            .set("RPC_TIMEOUT", "4s")
            .set("LOG_LEVEL", "debug")
            .set("TOKENS_FILE", "tokens.json")
            .file("tokens.json", &documents.to_string());
        self.queue.settings(self.store.settings(settings))
    }

    /// Every line works again.
    pub fn restore(&self) {
        self.queue.behave();
        [Some(&self.line), self.store.proxy(), self.queue.proxy()].into_iter().flatten().for_each(Proxy::restore);
    }

    /// The line to the node, the store or the queue.
    pub fn some_line(&self, dice: &mut Dice) -> &Proxy {
        let lines: Vec<&Proxy> =
            [Some(&self.line), self.store.proxy(), self.queue.proxy()].into_iter().flatten().collect();
        lines[dice.place(lines.len())]
    }

    /// The transfers of listed tokens in the canonical chain, as the node itself tells of them.
    pub async fn canonical(&mut self) -> BTreeSet<String> {
        let (rpc, head) = (self.node.rpc(), self.node.head().await);
        let settled = head.saturating_sub(2 * FINALITY);
        if settled > self.settled.0 {
            let new = deliveries::transfers(&rpc, self.settled.0 + 1, settled, Some(&self.tokens)).await;
            self.settled.1.extend(new);
            self.settled.0 = settled;
        }
        let mut all = deliveries::transfers(&rpc, self.settled.0 + 1, head, Some(&self.tokens)).await;
        all.extend(self.settled.1.iter().cloned());
        all
    }
}

//! A simulated EVM node: for the demo, tests, benchmarks and the CI of those who build on chaintap.
//!
//! JSON-RPC over HTTP and WebSocket on one port; the methods are those that a listener uses. The chain is a pure function
//! of its options: headers, hashes, blooms and roots are real, signatures and state are made up. It has two sources:
//!
//! * **generated**: `head = start height + whole block times since the genesis time`, so that a node started again has
//!   the same chain, further on. Blocks hold ERC-20 transfers of a listed set of tokens among other logs. The chain is
//!   reorganised on a schedule or on request, and what was done on request is forgotten at the end of the process:
//!   * `devchain_mine [n]` mines n blocks, one if nothing is said;
//!   * `devchain_reorg [depth]` replaces the newest blocks by as many others, `[{"depth": d, "length": n}]` by n; where n
//!     is less than d the head goes back until more is mined. Finalized blocks stay, unless `"deep": true` is said;
//!   * `devchain_flip [n]` goes back to the branch that was left last, n blocks further than the head, one if nothing is
//!     said. With 0 after a reorganisation to length 0 the node seems to have been behind for a while.
//! * **recorded**: real blocks from files, linked by empty ones; it stands still.
//!
//! Or it has no chain, and gives the answers of a recorded listener's nodes again: see [`Replay`].
//!
//! Blocks that a reorganisation took away stay known by their hash for a while, as on real nodes
//! ([`Limits::orphans`]); by number there is only the canonical one.
//!
//! It misbehaves as providers do where [`Options::faults`] or `devchain_setFaults` say so: see [`Fault`]. The mend comes with
//! `devchain_clearFaults`; `devchain_faults` tells what was asked and what fell. Every path of the URL is an endpoint with
//! its own faults.
//!
//! It executes nothing, keeps no state and takes no transactions; for that use anvil, against which the tests run the
//! same checks.

mod archive;
mod blooms;
mod body;
mod chain;
mod faults;
mod generator;
mod history;
mod jsonrpc;
mod node;
mod random;
mod recording;
mod render;
mod replay;
mod server;
mod subscriptions;
mod timetable;
mod tokens;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{net::TcpListener, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub use faults::{Does, Fault, Garbage, Period, Script, Vendor};
pub use replay::Replay;
pub use timetable::Reorgs;
pub use tokens::{token_documents, tokens};

use self::{chain::Chain, node::Node, recording::Recording, timetable::Timetable};

/// Deepest reorganisation.
pub const MAX_REORG_DEPTH: u64 = 512;
/// Most blocks that a chain may have when the node starts: it is built from block 0 first, which takes seconds for
/// 200,000 blocks, and minutes for this many.
pub const MAX_HEIGHT: u64 = 10_000_000;

/// What the node serves and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address to listen at.
    pub bind: IpAddr,
    /// Port for HTTP and WebSocket; 0 takes a free one.
    pub port: u16,
    /// Chain id of a generated chain; recorded blocks know theirs, and this must then be it or `None`.
    pub chain_id: Option<u64>,
    /// Seed of the generated chain.
    pub seed: u64,
    /// When block `start_height` is mined, seconds since the Unix epoch. `None`: midnight (UTC) of the day of the start,
    /// so that a node started again on the same day has the same chain.
    pub genesis_time: Option<u64>,
    /// Height at the genesis time: history that a fresh chain has at once.
    pub start_height: u64,
    /// Time between two blocks, at least [`MIN_BLOCK_TIME`](Self::MIN_BLOCK_TIME).
    pub block_time: Duration,
    /// Whether blocks come with time; otherwise only `devchain_mine` mines and the chain begins at `start_height`.
    pub mining: bool,
    /// Logs per block on average, up to [`MAX_LOGS_PER_BLOCK`](Self::MAX_LOGS_PER_BLOCK).
    pub logs_per_block: u32,
    /// Listed tokens, at least 1.
    pub tokens: u16,
    /// Reorganisations on a schedule.
    pub reorgs: Option<Reorgs>,
    /// The `safe` tag is this many blocks below the head.
    pub safe_depth: u64,
    /// The `finalized` tag is this many blocks below the head.
    pub finalized_depth: u64,
    /// Files with real blocks; where there are any they are served instead of a generated chain.
    pub blocks: Vec<PathBuf>,
    /// Empty blocks before the first and after the last real block.
    pub around: u64,
    /// What one client may ask for.
    pub limits: Limits,
    /// How it misbehaves.
    pub faults: Script,
    /// A recording that is served instead of any chain; then the options of chains mean nothing.
    pub replay: Option<Replay>,
}

/// What one client may ask for, and for how long orphans are known.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Blocks in one `eth_getLogs`.
    pub range: u64,
    /// Logs in the answer to one `eth_getLogs` over more than one block.
    pub results: usize,
    /// Bytes of one request.
    pub request_bytes: usize,
    /// Calls in one batch.
    pub batch: usize,
    /// Subscriptions of one socket.
    pub subscriptions: usize,
    /// How long a socket may take for one message before it is dropped.
    pub send_timeout: Duration,
    /// How many blocks that left the chain are still answered by hash; with 0 they are unknown at once.
    pub orphans: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            range: 10_000,
            results: 10_000,
            request_bytes: 1 << 20,
            batch: 100,
            subscriptions: 100,
            send_timeout: Duration::from_secs(10),
            orphans: 1_024,
        }
    }
}

impl Options {
    /// Chain id where none is given: that of other development nodes.
    pub const CHAIN_ID: u64 = 31_337;
    /// Shortest block time.
    pub const MIN_BLOCK_TIME: Duration = Duration::from_millis(50);
    /// Most logs per block on average.
    pub const MAX_LOGS_PER_BLOCK: u32 = 10_000;

    /// The id of a generated chain.
    #[must_use]
    pub fn generated_chain_id(&self) -> u64 {
        self.chain_id.unwrap_or(Self::CHAIN_ID)
    }

    fn check(&self) -> Result<(), Error> {
        let refuse = |reason: String| Err(Error::Options(reason));
        if self.block_time < Self::MIN_BLOCK_TIME {
            return refuse(format!("the block time is at least {:?}", Self::MIN_BLOCK_TIME));
        }
        if self.logs_per_block > Self::MAX_LOGS_PER_BLOCK {
            return refuse(format!("at most {} logs per block", Self::MAX_LOGS_PER_BLOCK));
        }
        if self.tokens == 0 {
            return refuse("at least one token is needed".to_owned());
        }
        if let Some(Reorgs { every, depth }) = self.reorgs
            && !(1..=MAX_REORG_DEPTH.min(every.saturating_sub(1))).contains(&depth)
        {
            return refuse(format!(
                "a reorganisation every {every} blocks cannot be {depth} deep: 1 to {MAX_REORG_DEPTH}, less than every"
            ));
        }
        self.replay.as_ref().map_or(Ok(()), Replay::check)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bind: Ipv4Addr::LOCALHOST.into(),
            port: 8545,
            chain_id: None,
            seed: 1,
            genesis_time: None,
            start_height: 200,
            block_time: Duration::from_secs(1),
            mining: true,
            logs_per_block: 20,
            tokens: 8,
            reorgs: None,
            safe_depth: 32,
            finalized_depth: 64,
            blocks: Vec::new(),
            around: 3,
            limits: Limits::default(),
            faults: Script::default(),
            replay: None,
        }
    }
}

/// Why the node cannot do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options contradict each other.
    #[error("{0}")]
    Options(String),
    /// A file with a real block or with faults, or a recording, cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The port cannot be had.
    #[error("cannot listen at {address}: {reason}; give another --port, or 0 for a free one")]
    Listen {
        /// The address that was tried.
        address: SocketAddr,
        /// The system's words.
        reason: std::io::Error,
    },
    /// A reorganisation is deeper than the chain or than allowed.
    #[error("a reorganisation of {depth} blocks: 1 to {most} are possible now")]
    Depth {
        /// What was asked for.
        depth: u64,
        /// The deepest possible.
        most: u64,
    },
    /// A branch that is asked for cannot be had.
    #[error("{0}")]
    Refused(String),
    /// Recorded chains stand still.
    #[error("a chain of recorded blocks stands still")]
    Recorded,
    /// The server ended with a fault.
    #[error("{0}")]
    Internal(String),
}

/// A running node.
#[derive(Debug)]
pub struct Serving {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its chain id.
    pub chain_id: u64,
    /// Height of the head when it started; of a recording the highest block.
    pub head: u64,
    /// The paths of a recording's endpoints.
    pub endpoints: Vec<String>,
    /// Ends after the shutdown signal, or early with the reason.
    pub task: JoinHandle<Result<(), Error>>,
}

/// Builds the chain and serves it until `shutdown`.
///
/// # Errors
///
/// Wrong options or files, or a port that cannot be had.
pub async fn serve(options: Options, shutdown: CancellationToken) -> Result<Serving, Error> {
    options.check()?;
    let address = SocketAddr::new(options.bind, options.port);
    let listen = |reason| Error::Listen { address, reason };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    if let Some(replay) = options.replay {
        return replay::serve((listener, address), replay, shutdown).await;
    }
    let built = tokio::task::spawn_blocking(move || build(&options).map(|built| (built, options)));
    let ((chain, chain_id, clock), options) = built.await.map_err(|error| Error::Internal(error.to_string()))??;
    let head = chain.head();
    let node = Arc::new(Node::new(Arc::clone(&chain), chain_id, &options)?);
    info!(%address, chain_id, head, "devchain serves");
    let mining = clock.map(|clock| tokio::spawn(mine(chain, clock, shutdown.clone())));
    let task = tokio::spawn(async move {
        let served = server::serve(listener, node, shutdown).await;
        if let Some(mining) = mining {
            mining.abort();
        }
        served.map_err(|error| Error::Internal(error.to_string()))
    });
    Ok(Serving { address, chain_id, head, endpoints: Vec::new(), task })
}

/// The chain, its id, and the clock to mine by, where it mines.
fn build(options: &Options) -> Result<(Arc<Chain>, u64, Option<Timetable>), Error> {
    if !options.blocks.is_empty() {
        let (recording, blocks, recorded_id) = Recording::load(options)?;
        if let Some(wanted) = options.chain_id.filter(|&wanted| wanted != recorded_id) {
            return Err(Error::Options(format!("the blocks are of chain {recorded_id}, not {wanted}")));
        }
        return Ok((Arc::new(Chain::recorded(recording, blocks, options)), recorded_id, None));
    }
    let now = now();
    let midnight = now.as_secs() / 86_400 * 86_400;
    let clock = Timetable::new(options, options.genesis_time.unwrap_or(midnight))?;
    let head = if options.mining { clock.height(now) } else { options.start_height };
    if head > MAX_HEIGHT {
        let reason = format!("the chain would be {head} blocks high, at most {MAX_HEIGHT}: give a later genesis time");
        return Err(Error::Options(reason));
    }
    let chain = Arc::new(Chain::generated(options, clock, head));
    Ok((chain, options.generated_chain_id(), options.mining.then_some(clock)))
}

/// Mines whatever the clock says is due, until `shutdown`.
async fn mine(chain: Arc<Chain>, clock: Timetable, shutdown: CancellationToken) {
    loop {
        let due = clock.time_of(chain.head() + 1);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep(due.saturating_sub(now())) => {}
        }
        let chain = Arc::clone(&chain);
        let mined = tokio::task::spawn_blocking(move || chain.mine_to(clock.height(now()))).await;
        if let Ok(Err(reason)) = mined {
            error!(%reason, "devchain mines no more");
            return;
        }
    }
}

/// Time since the Unix epoch.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

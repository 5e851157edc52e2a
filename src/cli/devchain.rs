//! `chaintap devchain`: a simulated EVM node.

use std::{io::Write as _, net::IpAddr, path::PathBuf, time::Duration};

use super::Failure;
use crate::{
    devchain::{self, Error, Limits, Options, Reorgs, Replay, Script},
    shutdown,
};

/// Serve a simulated EVM node: a generated chain, or real blocks from files.
///
/// JSON-RPC over HTTP and WebSocket on one port. The chain is a function of these options: started again it is the same,
/// further on.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Address to listen at.
    #[arg(long, default_value = "127.0.0.1")]
    bind: IpAddr,
    /// Port for HTTP and WebSocket; 0 takes a free one and prints it.
    #[arg(long, default_value_t = 8545)]
    port: u16,
    // A string because the flag of the same name that all commands share is one; clap holds both as one value.
    /// Chain id [default: 31337, or that of the blocks].
    #[arg(long, value_name = "ID")]
    chain_id: Option<String>,
    /// Seed: another one is another chain.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// When block --start-height is mined: Unix seconds or RFC 3339 [default: last midnight UTC].
    #[arg(long, value_name = "TIME", value_parser = genesis_time)]
    genesis_time: Option<u64>,
    /// Height of the chain at its genesis time.
    #[arg(long, value_name = "N", default_value_t = 200)]
    start_height: u64,
    /// Time between two blocks, 50ms or more.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    block_time: Duration,
    /// Mine only when `devchain_mine` asks for it.
    #[arg(long)]
    no_mining: bool,
    /// Logs per block, on average.
    #[arg(long, value_name = "N", default_value_t = 20)]
    logs_per_block: u32,
    /// Tokens whose transfers most logs are.
    #[arg(long, value_name = "N", default_value_t = 8)]
    tokens: u16,
    /// Print the tokens as documents of the token collection, and end.
    #[arg(long)]
    print_tokens: bool,
    /// Reorganise the chain whenever the head comes to a multiple of N.
    #[arg(long, value_name = "N")]
    reorg_every: Option<u64>,
    /// How many blocks each of these reorganisations replaces.
    #[arg(long, value_name = "N", default_value_t = 2, requires = "reorg_every")]
    reorg_depth: u64,
    /// The `safe` tag is this many blocks below the head.
    #[arg(long, value_name = "N", default_value_t = 32)]
    safe_depth: u64,
    /// The `finalized` tag is this many blocks below the head.
    #[arg(long, value_name = "N", default_value_t = 64)]
    finalized_depth: u64,
    /// Serve real blocks from these files, of one chain and near each other, instead of a generated chain.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    blocks: Vec<PathBuf>,
    /// Empty blocks before the first and after the last real block.
    #[arg(long, value_name = "N", default_value_t = 3)]
    around: u64,
    /// Most blocks in one `eth_getLogs`.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    max_range: u64,
    /// Most logs in the answer to one `eth_getLogs` over several blocks.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    max_results: usize,
    /// How many blocks that left the chain are still known by their hash.
    #[arg(long, value_name = "N", default_value_t = 1_024)]
    keep_orphans: usize,
    /// Misbehave as this file says (docs/devchain.md); `devchain_setFaults` changes it while the node runs.
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// Serve what the nodes of a listener said, as `chaintap run --record` kept it there (docs/devchain.md).
    #[arg(long, value_name = "DIR", conflicts_with_all = ["blocks", "faults"])]
    replay: Option<PathBuf>,
    /// How many times faster it happens than it did.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, requires = "replay")]
    speed: f64,
}

fn genesis_time(text: &str) -> Result<u64, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let time = humantime::parse_rfc3339_weak(text).map_err(|_| "neither Unix seconds nor RFC 3339".to_owned())?;
    let since = time.duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.map(|time| time.as_secs()).map_err(|_| "before 1970".to_owned())
}

impl Args {
    fn options(self) -> Result<Options, Failure> {
        let chain_id = self.chain_id.map(|text| {
            text.parse().map_err(|_| Failure::Usage(format!("--chain-id '{text}' is not a whole number, e.g. 8453")))
        });
        let limits = Limits {
            range: self.max_range,
            results: self.max_results,
            orphans: self.keep_orphans,
            ..Limits::default()
        };
        let faults = self.faults.as_deref().map(Script::read).transpose().map_err(|error| failure(&error))?;
        Ok(Options {
            bind: self.bind,
            port: self.port,
            chain_id: chain_id.transpose()?,
            seed: self.seed,
            genesis_time: self.genesis_time,
            start_height: self.start_height,
            block_time: self.block_time,
            mining: !self.no_mining,
            logs_per_block: self.logs_per_block,
            tokens: self.tokens,
            reorgs: self.reorg_every.map(|every| Reorgs { every, depth: self.reorg_depth }),
            safe_depth: self.safe_depth,
            finalized_depth: self.finalized_depth,
            blocks: self.blocks,
            around: self.around,
            limits,
            faults: faults.unwrap_or_default(),
            replay: self.replay.map(|dir| Replay { dir, speed: self.speed }),
        })
    }
}

/// Serves until Ctrl-C or SIGTERM; or prints the tokens.
///
/// # Errors
///
/// Wrong options (64), unusable files (65), a port that cannot be had (69).
pub async fn run(args: Args) -> Result<(), Failure> {
    if args.print_tokens {
        return print(&format!("{:#}", devchain::token_documents(&args.options()?)));
    }
    let shutdown =
        shutdown::on_signals().map_err(|error| Failure::Internal(format!("cannot listen for signals: {error}")))?;
    let serving = devchain::serve(args.options()?, shutdown.clone()).await.map_err(|error| failure(&error))?;
    let devchain::Serving { address, chain_id, head, endpoints, .. } = &serving;
    print(&format!("devchain: chain {chain_id}, head {head}, http://{address} and ws://{address}"))?;
    if !endpoints.is_empty() {
        print(&format!("devchain: replays {}", endpoints.join(" ")))?;
    }
    let ended = serving.task.await;
    ended.map_err(|error| Failure::Internal(error.to_string()))?.map_err(|error| failure(&error))
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|error| Failure::Internal(error.to_string()))
}

fn failure(error: &Error) -> Failure {
    let text = error.to_string();
    match error {
        Error::Options(_) | Error::Depth { .. } | Error::Refused(_) | Error::Recorded => Failure::Usage(text),
        Error::File { .. } => Failure::Data(text),
        Error::Listen { .. } => Failure::Unavailable(text),
        Error::Internal(_) => Failure::Internal(text),
    }
}

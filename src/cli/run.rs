//! `chaintap run`: the listener, and its demo.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use clap::Args;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Failure, Overrides};
use crate::{
    app::{self, RunOptions},
    config::{self, LogFormat, Purpose, Settings, Sources},
    devchain, pipeline, shutdown,
    telemetry::{
        logging::{self, LogGuard},
        sentry::{self, SentryGuard},
    },
};

/// How often a summary is logged.
const SUMMARY_EVERY: Duration = Duration::from_secs(30);
/// How often in the demo, whose watcher is a person.
const DEMO_SUMMARY_EVERY: Duration = Duration::from_secs(3);
/// Where the demo keeps its state, below the data directory.
const DEMO_DIR: &str = "demo";
/// The demo's files: when its chain began, its token list, its state (of the development chain's id).
const DEMO_GENESIS: &str = "genesis-time";
const DEMO_TOKENS: &str = "tokens.json";
const DEMO_STATE: &str = "chain-31337.redb";
/// A demo that was left alone for longer begins anew: its chain would have to be made up to now first.
const DEMO_CHAIN_AGE: Duration = Duration::from_hours(2);

/// Flags of `run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// End once every block up to N is delivered
    #[arg(long, value_name = "N")]
    until: Option<u64>,
    /// Record what the nodes are asked and what they answer there, for `chaintap devchain --replay`
    #[arg(long, value_name = "DIR")]
    record: Option<String>,
    /// Listen to a built-in development chain, with the embedded store and events on standard output
    #[arg(long)]
    demo: bool,
}

/// Listens until it is told to end, or until the block of `--until` is delivered.
pub(super) fn run(args: &RunArgs, overrides: &Overrides) -> Result<(), Failure> {
    let runtime = runtime()?;
    let stop = CancellationToken::new();
    let demo = args.demo.then(|| runtime.block_on(demo(overrides, &stop))).transpose()?;
    let summary_every = if args.demo { DEMO_SUMMARY_EVERY } else { SUMMARY_EVERY };
    let mut sources = demo.as_ref().map_or_else(|| overrides.sources(Purpose::Listen), |demo| demo.sources.clone());
    sources.flags.extend(args.record.clone().map(|dir| ("RECORD_DIR", dir)));
    let settings = runtime.block_on(config::load(&sources))?;
    let _watched = observe(&settings)?;
    if let Some(Demo { address, head, begun_anew, .. }) = demo {
        info!(%address, head, begun_anew, "development chain");
    }
    let options = RunOptions { until: args.until, summary_every };
    let listened = runtime.block_on(async {
        let asked = shutdown::on_signals().map_err(|error| Failure::Internal(error.to_string()))?;
        let listened = app::run(settings, options, asked).await;
        stop.cancel();
        listened
    });
    // Nothing that matters runs any more; whatever is blocked in a system call must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    listened
}

/// Error reports and logs, as the settings say; what is left of both is written when the guards are dropped.
fn observe(settings: &Settings) -> Result<(Option<SentryGuard>, LogGuard), Failure> {
    let release = concat!("chaintap@", env!("CARGO_PKG_VERSION")).to_owned();
    let reports = sentry::init(settings.sentry_dsn.as_ref(), release, settings.service.clone(), settings.chain.id)
        .map_err(|error| Failure::Config(error.to_string()))?;
    Ok((reports, logs(&settings.log.filter, settings.log.format)?))
}

/// Logs for a command.
pub(super) fn logs(filter: &str, format: Option<LogFormat>) -> Result<LogGuard, Failure> {
    logging::init(filter, format).map_err(|error| Failure::Config(error.to_string()))
}

/// A runtime for everything that talks to a server.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    pipeline::runtime().map_err(|error| Failure::Internal(format!("cannot start the runtime: {error}")))
}

/// The demo, running.
struct Demo {
    /// What makes it the chain that is listened to.
    sources: Sources,
    address: SocketAddr,
    head: u64,
    /// Whether the one before was left alone for too long to go on.
    begun_anew: bool,
}

/// Starts the development chain in this process, and makes it the one that is listened to.
async fn demo(overrides: &Overrides, stop: &CancellationToken) -> Result<Demo, Failure> {
    let data_dir = Path::new(overrides.data_dir.as_deref().unwrap_or("data")).join(DEMO_DIR);
    let (genesis_time, begun_anew) = demo_genesis(&data_dir)?;
    let options = devchain::Options {
        bind: Ipv4Addr::LOCALHOST.into(),
        port: 0,
        genesis_time: Some(genesis_time),
        ..devchain::Options::default()
    };
    let tokens = data_dir.join(DEMO_TOKENS);
    let documents = devchain::token_documents(&options).to_string();
    std::fs::write(&tokens, documents).map_err(|error| unwritable(&tokens, &error))?;
    let chain = devchain::serve(options, stop.clone()).await.map_err(|error| Failure::Internal(error.to_string()))?;
    let mut sources = overrides.sources(Purpose::Listen);
    // Nothing of the operator's real set-up may leak into the demo.
    sources.dotenv = None;
    sources.environment.retain(|name, _| matches!(name.as_str(), "PORT" | "RUST_LOG" | "LOG_LEVEL" | "LOG_FORMAT"));
    sources.flags.extend([
        ("CHAIN_ID", chain.chain_id.to_string()),
        ("WEB3_PROVIDER", format!("ws://{}", chain.address)),
        ("DATA_DIR", data_dir.display().to_string()),
        ("TOKENS_FILE", tokens.display().to_string()),
        ("HTTP_BIND", Ipv4Addr::LOCALHOST.to_string()),
    ]);
    Ok(Demo { sources, address: chain.address, head: chain.head, begun_anew })
}

/// The demo chain's genesis time, kept beside its state so that a demo that is started again goes on; and whether the one
/// before was given up.
fn demo_genesis(data_dir: &Path) -> Result<(u64, bool), Failure> {
    let file = data_dir.join(DEMO_GENESIS);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let kept = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
    if let Some(genesis) = kept.filter(|genesis| since.as_secs().saturating_sub(*genesis) < DEMO_CHAIN_AGE.as_secs()) {
        return Ok((genesis, false));
    }
    // Only what the demo wrote: the directory may hold files of others.
    let mut begun_anew = false;
    for file in [DEMO_STATE, DEMO_TOKENS, DEMO_GENESIS].map(|name| data_dir.join(name)) {
        match std::fs::remove_file(&file) {
            Ok(()) => begun_anew = true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(unwritable(&file, &error)),
        }
    }
    std::fs::create_dir_all(data_dir).map_err(|error| unwritable(data_dir, &error))?;
    std::fs::write(&file, since.as_secs().to_string()).map_err(|error| unwritable(&file, &error))?;
    Ok((since.as_secs(), begun_anew))
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Config(format!("cannot write {}: {error}; give another --data-dir", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_goes_on_or_begins_anew_and_deletes_only_files_of_its_own() {
        let scratch = tempfile::tempdir().unwrap();
        let demo = scratch.path().join(DEMO_DIR);
        let (genesis, begun_anew) = demo_genesis(&demo).unwrap();
        assert!(!begun_anew);
        assert_eq!(demo_genesis(&demo).unwrap(), (genesis, false), "goes on");

        for name in [DEMO_STATE, DEMO_TOKENS, "notes.txt"] {
            std::fs::write(demo.join(name), "x").unwrap();
        }
        std::fs::write(demo.join(DEMO_GENESIS), (genesis - DEMO_CHAIN_AGE.as_secs()).to_string()).unwrap();
        let (later, begun_anew) = demo_genesis(&demo).unwrap();
        assert!(begun_anew && later >= genesis);
        assert!(!demo.join(DEMO_STATE).exists() && !demo.join(DEMO_TOKENS).exists());
        assert!(demo.join("notes.txt").exists(), "it was somebody else's");
    }
}

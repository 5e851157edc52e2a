//! The configuration, in two tiers: what was typed and what is true.
//!
//! [`load`] reads what was typed (`files`, `layers`, `raw`), and hands out [`Settings`] only where all of it is right
//! (`validate`, `entries`, `endpoints`); otherwise [`Invalid`] holds every mistake with its place and mend. Every
//! variable is declared once, in [`variables`]. No value that may hold a secret has a type that prints.
//!
//! Nothing here writes the process's environment, and nothing outside reads it.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use crate::domain::DeliveryMode;

pub mod abi;
pub mod aws;
pub mod chains;
pub mod contracts;
mod endpoints;
mod entries;
mod environment;
mod files;
pub(crate) mod fuzzing;
mod handlers;
mod interpolation;
mod layers;
pub mod limits;
pub mod problem;
pub mod providers;
mod raw;
mod reader;
pub mod secret;
mod validate;
pub mod variables;

pub use aws::AwsSettings;
pub use chains::{ChainProfile, LogIndex, Verify};
pub use contracts::{Listener, Registry, Shape, SinkTarget};
pub use layers::{Purpose, Sources};
pub use limits::Limits;
pub use problem::{Invalid, Problem};
pub use providers::Provider;
pub use secret::{Secret, SecretUrl, mask_host};
use {files::Files, layers::Fetched, layers::Layers, problem::Place};

/// Reads the configuration, asking AWS for `AWS_SECRET_NAME` where that is given.
///
/// # Errors
///
/// Every mistake in it.
pub async fn load(sources: &Sources) -> Result<Settings, Invalid> {
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    let files = Files::read(sources.config_dir.as_deref(), &mut problems, &mut warnings);
    let fetched = fetch(sources, &files, &mut problems).await;
    finish(sources, &files, fetched.as_ref(), (problems, warnings))
}

/// Reads the configuration without what AWS holds: no network is touched.
///
/// # Errors
///
/// Every mistake in it.
pub fn load_offline(sources: &Sources) -> Result<Settings, Invalid> {
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    let files = Files::read(sources.config_dir.as_deref(), &mut problems, &mut warnings);
    finish(sources, &files, None, (problems, warnings))
}

/// The secret's values; a failure is one more problem. `None` where no secret is named.
async fn fetch(sources: &Sources, files: &Files, problems: &mut Vec<Problem>) -> Option<Fetched> {
    // Mistakes in the other layers are reported when all layers are there.
    let layers = Layers::gather(sources, files, None, &mut Vec::new(), &mut Vec::new());
    let name = layers.get("AWS_SECRET_NAME")?.value.clone();
    let aws = AwsSettings::read(&layers, &mut Vec::new());
    match aws::fetch_secret(&aws, &name).await {
        Ok(values) => Some(Fetched { name, values }),
        Err(text) => {
            problems.push(Problem::new(Place::Named(format!("AWS secret {name}")), text).mend(
                "check AWS_SECRET_NAME, AWS_REGION and the credentials; they need secretsmanager:GetSecretValue",
            ));
            None
        }
    }
}

fn finish(
    sources: &Sources,
    files: &Files,
    fetched: Option<&Fetched>,
    (mut problems, mut warnings): (Vec<Problem>, Vec<String>),
) -> Result<Settings, Invalid> {
    let layers = Layers::gather(sources, files, fetched, &mut problems, &mut warnings);
    match validate::settings(files, &layers, sources.purpose, (&mut problems, &mut warnings)) {
        Some(settings) if problems.is_empty() => Ok(Settings { warnings, ..settings }),
        _ => Err(Invalid::new(problems)),
    }
}

/// Everything that `chaintap run` needs to know, checked.
#[derive(Debug)]
pub struct Settings {
    /// The chain that is listened to.
    pub chain: ChainProfile,
    /// Service name written into the store's views (`LAST_PROCESSED_BLOCK_KEY`).
    pub service: String,
    /// Providers in order of preference; empty only for [`Purpose::Operate`].
    pub providers: Vec<Provider>,
    /// Where the state lives.
    pub store: StoreSettings,
    /// Where the token list comes from.
    pub tokens: TokenSettings,
    /// Where an empty store begins.
    pub start: StartBlock,
    /// Which blocks are delivered.
    pub deliver: DeliveryMode,
    /// Whether what is sealed is held against another provider first (`AUDIT`).
    pub audit: bool,
    /// What is listened to, and where it goes.
    pub registry: Arc<Registry>,
    /// Where the HTTP endpoints listen.
    pub http: SocketAddr,
    /// Where errors are reported.
    pub sentry_dsn: Option<SecretUrl>,
    /// What the AWS SDK is to be told.
    pub aws: AwsSettings,
    /// What is logged, and how.
    pub log: LogSettings,
    /// Where the traffic with the nodes is recorded; `None` where it is not.
    pub record: Option<RecordSettings>,
    /// Limits of size and time.
    pub limits: Limits,
    /// What an operator should know before the start, to be said once: no secrets in it.
    pub warnings: Vec<String>,
    /// Every variable that has a value: its name, the value as it may be shown, and where it came from.
    pub given: Vec<[String; 3]>,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Directives of `tracing` (`RUST_LOG`, else `LOG_LEVEL`), valid.
    pub filter: String,
    /// `LOG_FORMAT`; `None` leaves it to whether standard error is a terminal.
    pub format: Option<LogFormat>,
}

/// Where the traffic with the nodes is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSettings {
    /// `RECORD_DIR`.
    pub dir: PathBuf,
    /// All recordings in it together, bytes (`RECORD_MAX_BYTES`).
    pub max_bytes: u64,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

/// Where the state lives.
#[derive(Debug)]
pub enum StoreSettings {
    /// A Redis database, shared by replicas.
    Redis {
        /// With the chain's database number.
        url: SecretUrl,
        /// How acknowledged writes are made to survive (protocol §5).
        durability: Durability,
    },
    /// One file in a directory, for one process.
    Embedded {
        /// `DATA_DIR`.
        dir: PathBuf,
    },
}

/// Which barrier stands between an intent and its messages (protocol §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// WAIT where replicas are connected, otherwise what the AOF gives.
    #[default]
    Auto,
    /// WAIT or WAITAOF, or no start.
    Required,
    /// For development.
    None,
}

/// Where the token list comes from.
#[derive(Debug)]
pub enum TokenSettings {
    /// Token filtering is off.
    Off,
    /// The `tokens` collection.
    Mongo {
        /// Connection string.
        uri: SecretUrl,
        /// Database name.
        database: String,
    },
    /// A JSON file in the form of the collection's documents.
    File(PathBuf),
}

/// Where an empty store begins (`START_BLOCK`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartBlock {
    /// The head at that moment is the first block delivered.
    #[default]
    Latest,
    /// This block is the first one delivered.
    At(u64),
    /// An empty store is refused (`EXPECT_STATE`).
    Expected,
}

//! What is true: validated, typed settings. What was typed is in [`raw`]; how the one becomes the other, with every
//! mistake reported at once, is in [`validate`].

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use crate::domain::DeliveryMode;

pub mod chains;
pub mod contracts;
pub mod secret;

pub use chains::ChainProfile;
pub use contracts::{Listener, Registry, Shape, SinkTarget};
pub use secret::SecretUrl;

/// Everything that `chaintap run` needs to know, checked.
#[derive(Debug)]
pub struct Settings {
    /// The chain that is listened to.
    pub chain: ChainProfile,
    /// Service name written into the store's views (`LAST_PROCESSED_BLOCK_KEY`).
    pub service: String,
    /// Endpoints in order of preference, as given.
    pub providers: Vec<SecretUrl>,
    /// Where the state lives.
    pub store: StoreSettings,
    /// Where the token list comes from.
    pub tokens: TokenSettings,
    /// Where an empty store begins.
    pub start: StartBlock,
    /// Which blocks are delivered.
    pub deliver: DeliveryMode,
    /// What is listened to, and where it goes.
    pub registry: Arc<Registry>,
    /// Where the HTTP endpoints listen.
    pub http: SocketAddr,
    /// Where errors are reported.
    pub sentry_dsn: Option<SecretUrl>,
    /// Limits of size and time.
    pub limits: Limits,
}

/// Where the state lives.
#[derive(Debug)]
pub enum StoreSettings {
    /// A Redis database, shared by replicas.
    Redis {
        /// With the chain's database number.
        url: SecretUrl,
        /// How acknowledged writes are made to survive (protocol §3.9).
        durability: Durability,
    },
    /// One file in a directory, for one process.
    Embedded {
        /// `DATA_DIR`.
        dir: PathBuf,
    },
}

/// Which barrier stands between an intent and its messages (protocol §3.9).
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
}

/// Limits of size and time, declared together; asserted against each other in `validate`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// One RPC request, from sending to the last byte of the answer.
    pub rpc_timeout: Duration,
    /// Largest RPC answer that is read, bytes.
    pub rpc_max_bytes: usize,
    /// One call of a sink.
    pub sink_timeout: Duration,
    /// Logs handled in one chunk.
    pub chunk_logs: usize,
    /// How often the token list is read again.
    pub token_refresh: Duration,
    /// Whether a token list that becomes empty is believed (`ALLOW_EMPTY_TOKENS`).
    pub allow_empty_tokens: bool,
    /// What is in flight at a shutdown may finish within this.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rpc_timeout: Duration::from_secs(20),
            rpc_max_bytes: 256 << 20,
            sink_timeout: Duration::from_secs(30),
            chunk_logs: 1_000,
            token_refresh: Duration::from_mins(5),
            allow_empty_tokens: false,
            grace: Duration::from_secs(25),
        }
    }
}

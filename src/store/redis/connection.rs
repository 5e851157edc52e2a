//! One connection to Redis that is made again when it broke, checked each time: our database, a primary, no cluster,
//! no eviction.
//!
//! Nothing is retried here: a call that failed may or may not have happened, and the pipeline decides. The crate's own
//! connection manager is not used because a barrier must know that its write and its WAIT went over the same
//! connection, and because a demoted primary must be left although its connection is sound.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, ErrorKind, IntoConnectionInfo, RedisError, ServerErrorKind,
    aio::MultiplexedConnection,
};
use tokio::{sync::Mutex, time::timeout};

use crate::{config::SecretUrl, store::StoreError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for one reply; above the time that WAIT is given.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest call altogether, connecting included.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// What INFO says that matters to us.
#[derive(Clone, Debug)]
pub(super) struct ServerInfo {
    text: String,
}

impl ServerInfo {
    fn field(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    }

    /// Replicas that are connected.
    pub(super) fn replicas(&self) -> u32 {
        self.field("connected_slaves").and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// Whether the append-only file is on.
    pub(super) fn aof(&self) -> bool {
        self.field("aof_enabled") == Some("1")
    }

    /// Whether WAITAOF is known: from 7.2 on.
    pub(super) fn has_waitaof(&self) -> bool {
        let mut parts =
            self.field("redis_version").unwrap_or_default().split('.').map_while(|part| part.parse::<u32>().ok());
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (7, 2)
    }

    /// Refuses a server on which the state would not be safe.
    fn check(&self) -> Result<(), StoreError> {
        if self.field("cluster_enabled") == Some("1") {
            return Err(StoreError::Fatal(
                "Redis is a cluster, which has no database per chain: use a single primary, with replicas if you like"
                    .into(),
            ));
        }
        if let Some(policy) = self.field("maxmemory_policy").filter(|policy| *policy != "noeviction") {
            return Err(StoreError::Fatal(format!(
                "Redis may evict state (maxmemory-policy {policy}): set maxmemory-policy to noeviction"
            )));
        }
        match self.field("role") {
            Some("master") | None => Ok(()),
            Some(role) => Err(StoreError::Transient(format!("Redis is a {role}, not the primary, at this moment"))),
        }
    }
}

/// The connection, or the place for it.
#[derive(Debug)]
pub(super) struct Link {
    client: Client,
    database: u8,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    generation: u64,
    connection: Option<MultiplexedConnection>,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl Link {
    /// Prepares the connection to the chain's database; connects on first use.
    pub(super) fn new(url: &SecretUrl, database: u8) -> Result<Self, StoreError> {
        crate::crypto::init();
        Ok(Self { client: client(url, database)?, database, slot: Mutex::default() })
    }

    /// Runs `call` with the connection, within [`CALL_TIMEOUT`]; a connection on which anything went wrong is left.
    pub(super) async fn with<T>(
        &self,
        call: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, StoreError> {
        let work = async {
            let (generation, mut connection) = self.connection().await?;
            match timeout(RESPONSE_TIMEOUT * 2, call(&mut connection)).await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(error)) => {
                    self.leave(generation).await;
                    Err(classify(&error))
                }
                Err(_) => {
                    self.leave(generation).await;
                    Err(StoreError::Transient("Redis did not answer in time".into()))
                }
            }
        };
        timeout(CALL_TIMEOUT, work)
            .await
            .unwrap_or_else(|_| Err(StoreError::Transient("Redis did not answer in time".into())))
    }

    /// What the server says about itself; connects where need be.
    pub(super) async fn info(&self) -> Result<ServerInfo, StoreError> {
        self.with(async |connection| info(connection).await).await
    }

    /// Whether the server is still the one that it was when we connected; a server that is not is left.
    pub(super) async fn check(&self) -> Result<(), StoreError> {
        let (generation, _) = self.connection().await?;
        let checked = self.info().await.and_then(|info| info.check());
        if checked.is_err() {
            self.leave(generation).await;
        }
        checked
    }

    /// Leaves the connection, so that the next call makes another.
    async fn leave(&self, generation: u64) {
        let mut slot = self.slot.lock().await;
        if slot.generation == generation {
            slot.connection = None;
        }
    }

    async fn connection(&self) -> Result<(u64, MultiplexedConnection), StoreError> {
        let mut slot = self.slot.lock().await;
        if let Some(connection) = &slot.connection {
            return Ok((slot.generation, connection.clone()));
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        let mut connection = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| self.refused(&error))?;
        info(&mut connection).await.map_err(|error| classify(&error))?.check()?;
        slot.generation += 1;
        slot.connection = Some(connection.clone());
        Ok((slot.generation, connection))
    }

    fn refused(&self, error: &RedisError) -> StoreError {
        if error.to_string().contains("refused to switch database") {
            return StoreError::Fatal(format!(
                "Redis has no database {0}, which is this chain's: raise `databases` in redis.conf to at least {1}, \
                 or set redis_db of the chain in config/chains.toml",
                self.database,
                u16::from(self.database) + 1,
            ));
        }
        classify(error)
    }
}

async fn info(connection: &mut MultiplexedConnection) -> Result<ServerInfo, RedisError> {
    Ok(ServerInfo { text: redis::cmd("INFO").query_async(connection).await? })
}

/// A client for the chain's database, whatever number the URL leaves out.
fn client(url: &SecretUrl, database: u8) -> Result<Client, StoreError> {
    let fatal = |text: String| StoreError::Fatal(format!("REDIS_URL {text}"));
    let parsed = url::Url::parse(url.expose()).map_err(|error| fatal(format!("is not a URL ({error})")))?;
    if !matches!(parsed.scheme(), "redis" | "rediss") {
        return Err(fatal(format!("begins with {}://: use redis:// or rediss://", parsed.scheme())));
    }
    let number = parsed.path().trim_matches('/');
    if !number.is_empty() && number.parse() != Ok(database) {
        return Err(fatal(format!(
            "names database {number}, but this chain's is {database}: end it with /{database}, or leave the number out"
        )));
    }
    // The crate's description of a bad URL is a fixed text, so it quotes nothing of it.
    let info = url.expose().into_connection_info().map_err(|error| fatal(format!("cannot be used ({error})")))?;
    let settings = info.redis_settings().clone().set_db(i64::from(database));
    Client::open(info.set_redis_settings(settings)).map_err(|error| fatal(format!("cannot be used ({error})")))
}

/// What to do about an error of the server or of the way to it.
pub(super) fn classify(error: &RedisError) -> StoreError {
    if is_missing_script(error) {
        return StoreError::Transient("Redis lost its scripts in between".into());
    }
    match (error.kind(), error.code().unwrap_or_default()) {
        (ErrorKind::AuthenticationFailed, _) | (_, "NOAUTH" | "WRONGPASS") => {
            StoreError::Fatal("Redis refused the user or password of REDIS_URL".into())
        }
        (_, "NOPERM") => StoreError::Fatal(format!("the Redis user lacks a permission ({error}): grant it")),
        (_, "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN") => {
            StoreError::Fatal("Redis is a cluster: use a single primary, with replicas if you like".into())
        }
        (_, "WRONGTYPE") => StoreError::Fatal(format!("a key of this chain has a wrong type in Redis ({error})")),
        // A script met a value of another kind than it reckons with; what passes by itself (OOM, …) has a code of its own.
        (_, "ERR") if error.to_string().contains("user_script") => StoreError::Fatal(format!(
            "Redis holds state that this version cannot read ({error}): a key of the chain was changed by hand or by \
             another version; put it back, or see `chaintap reset`"
        )),
        _ if error.is_timeout() => StoreError::Transient("Redis did not answer in time".into()),
        // LOADING, OOM, MISCONF, READONLY, NOREPLICAS, a lost connection, …: it may be well again in a while.
        _ => StoreError::Transient(format!("Redis: {error}")),
    }
}

/// Whether the server does not know a script that was called by its hash.
pub(super) fn is_missing_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database_of(url: &str) -> Result<i64, StoreError> {
        let url = SecretUrl::parse(url).unwrap();
        client(&url, 1).map(|client| client.get_connection_info().redis_settings().db())
    }

    #[test]
    fn the_url_gets_the_chains_database_and_may_not_name_another() {
        assert_eq!(database_of("redis://127.0.0.1:6379").unwrap(), 1);
        assert_eq!(database_of("rediss://user:pw@example.org/1").unwrap(), 1);
        let error = database_of("redis://:hunter2secret@127.0.0.1/3").unwrap_err().to_string();
        assert!(error.contains("database 3") && error.contains("is 1"), "{error}");
        assert!(!error.contains("hunter2secret"), "{error}");
        assert!(database_of("http://127.0.0.1/").is_err());
    }

    #[test]
    fn an_unsafe_server_is_refused_with_the_mend() {
        let check = |text: &str| ServerInfo { text: text.into() }.check();
        assert!(check("role:master\r\nmaxmemory_policy:noeviction\r\ncluster_enabled:0\r\n").is_ok());
        assert!(check("").is_ok());
        assert!(
            matches!(check("maxmemory_policy:allkeys-lru\r\n"), Err(StoreError::Fatal(text)) if text.contains("noeviction"))
        );
        assert!(matches!(check("cluster_enabled:1\r\n"), Err(StoreError::Fatal(_))));
        assert!(matches!(check("role:slave\r\n"), Err(StoreError::Transient(_))));
    }

    #[test]
    fn waitaof_is_known_from_7_2_on() {
        let knows = |version: &str| ServerInfo { text: format!("redis_version:{version}\r\n") }.has_waitaof();
        assert!(knows("7.2.0") && knows("8.0.1") && knows("10.1.0"));
        assert!(!knows("7.0.15") && !knows("6.2.1") && !knows("x"));
    }
}

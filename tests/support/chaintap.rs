//! The real binary as an operator runs it: environment in, standard output and HTTP out.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use secrecy::ExposeSecret as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};

use super::{
    mongo::Mongo,
    process::{eventually, free_port},
    sqs::SqsServer,
};

/// How a listener is started; nothing of the test's own environment reaches it.
#[derive(Clone)]
pub struct Settings {
    environment: BTreeMap<String, String>,
    arguments: Vec<String>,
    home: Arc<TempDir>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            environment: BTreeMap::new(),
            arguments: vec!["run".into()],
            home: Arc::new(tempfile::tempdir().unwrap()),
        }
        .set("HTTP_BIND", "127.0.0.1")
        .set("LOG_LEVEL", "debug")
    }
}

impl Settings {
    /// Sets a variable of the environment.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.insert(name.into(), value.to_string());
        self
    }

    /// Takes a variable out of the environment.
    #[must_use]
    pub fn unset(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// Transfers go to this queue.
    #[must_use]
    pub fn queue(self, server: &SqsServer, url: &str) -> Self {
        self.aws(server).set("TRANSFER_HANDLER_SQS", url)
    }

    /// Queues are at this server.
    #[must_use]
    pub fn aws(self, server: &SqsServer) -> Self {
        let access = server.access();
        let (key, secret) = access.keys.unwrap();
        self.set("AWS_ENDPOINT_URL_SQS", access.endpoint.unwrap())
            .set("AWS_REGION", access.region.unwrap())
            .set("AWS_ACCESS_KEY_ID", key.expose_secret())
            .set("AWS_SECRET_ACCESS_KEY", secret.expose_secret())
    }

    /// Tokens are listed in this database.
    #[must_use]
    pub fn tokens(self, server: &Mongo, database: &str) -> Self {
        self.set("MONGODB_URI", server.uri()).set("MONGODB_DATABASE", database)
    }

    /// Adds an argument of the command line.
    #[must_use]
    pub fn arg(mut self, argument: impl ToString) -> Self {
        self.arguments.push(argument.to_string());
        self
    }

    /// The directory that it runs in; the embedded store's `data` lies there.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Writes a file into the directory that it runs in: `config/chains.toml`, `.env`, …
    #[must_use]
    pub fn file(self, path: &str, text: &str) -> Self {
        let path = self.home().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    /// The command that starts it; also for other commands than `run`. `CHAINTAP_BINARY` names another build of it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let binary = std::env::var_os("CHAINTAP_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_chaintap").into());
        let mut command = Command::new(binary);
        command.args(arguments).env_clear().envs(&self.environment).current_dir(self.home.path()).kill_on_drop(true);
        command
    }

    /// Runs another command to its end: exit code, standard output, standard error.
    pub async fn output(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = timeout(Duration::from_mins(1), self.command(arguments).output()).await.unwrap().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    /// Starts the listener.
    pub fn start(&self) -> Listener {
        let listener = self.start_unread();
        listener.read();
        listener
    }

    /// Starts the listener without reading its standard output: what does not fit into the pipe hangs in its sink.
    pub fn start_unread(&self) -> Listener {
        let port = free_port();
        let settings = self.clone().set("PORT", port);
        let arguments: Vec<&str> = settings.arguments.iter().map(String::as_str).collect();
        let mut command = settings.command(&arguments);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (lines, log) = (Lines::default(), Lines::default());
        let gate = Arc::new(Notify::new());
        let (opened, into) = (gate.clone(), lines.clone());
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let readers = [
            tokio::spawn(async move {
                opened.notified().await;
                read(stdout, into).await;
            }),
            tokio::spawn(read(BufReader::new(child.stderr.take().unwrap()).lines(), log.clone())),
        ];
        Listener { child, port, lines, log, gate, readers, home: self.home.clone() }
    }
}

/// The ids of messages, in their order.
pub fn ids(messages: &[Value]) -> Vec<String> {
    messages.iter().map(|message| message["id"].as_str().unwrap().to_owned()).collect()
}

/// The blocks of messages, in the order in which they first appear.
pub fn blocks(messages: &[Value]) -> Vec<u64> {
    let mut blocks: Vec<u64> = Vec::new();
    for message in messages {
        let block = message["blockNumber"].as_u64().unwrap();
        if !blocks.contains(&block) {
            blocks.push(block);
        }
    }
    blocks
}

type Lines = Arc<Mutex<Vec<String>>>;

async fn read<R: tokio::io::AsyncBufRead + Unpin>(mut lines: tokio::io::Lines<R>, into: Lines) {
    while let Ok(Some(line)) = lines.next_line().await {
        into.lock().unwrap().push(line);
    }
}

/// A running listener; killed when dropped.
pub struct Listener {
    child: Child,
    pub port: u16,
    lines: Lines,
    log: Lines,
    /// Lets the reader of standard output begin.
    gate: Arc<Notify>,
    readers: [JoinHandle<()>; 2],
    home: Arc<TempDir>,
}

impl Listener {
    /// Begins to read its standard output, where it was started without.
    pub fn read(&self) {
        self.gate.notify_one();
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it still runs")
    }

    /// How many lines it has written so far.
    pub fn line_count(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    /// The messages as they were written. A kill may cut the last line off: that one was not acknowledged.
    pub fn whole_lines(&self) -> Vec<String> {
        let whole = |line: &&String| serde_json::from_str::<Value>(line).is_ok();
        self.lines.lock().unwrap().iter().filter(whole).cloned().collect()
    }

    /// The lines on standard output since the last time that they were taken, as far as they are whole.
    pub fn take_lines(&self) -> Vec<String> {
        std::mem::take(&mut *self.lines.lock().unwrap())
    }

    /// The log since the last time that it was taken.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    /// The messages on standard output so far.
    pub fn messages(&self) -> Vec<Value> {
        let parse = |line: &String| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        self.lines.lock().unwrap().iter().map(parse).collect()
    }

    /// Standard output so far, as it is.
    pub fn output(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it still runs")
    }

    /// Memory that it occupies, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
    }

    /// Whether it still runs.
    pub fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// One answer of the HTTP endpoints: status and body; `None` where nobody answers.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        chaintap::crypto::init();
        let answer = reqwest::get(format!("http://127.0.0.1:{}{path}", self.port)).await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    /// `/health`, once it answers, as it should within a minute of its start.
    pub async fn health(&self) -> Value {
        let answered = async {
            loop {
                if let Some((_, body)) = self.get("/health").await {
                    return body;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let body = timeout(Duration::from_mins(1), answered).await;
        serde_json::from_str(&body.unwrap_or_else(|_| panic!("/health does not answer\n{}", self.log()))).unwrap()
    }

    /// Waits until `/readyz` answers with this status.
    pub async fn wait_ready(&self, ready: bool, within: Duration) {
        let status = if ready { 200 } else { 503 };
        let what = format!("ready = {ready}\n{}", self.log());
        eventually(&what, within, || async { self.get("/readyz").await.is_some_and(|(code, _)| code == status) }).await;
    }

    /// Whether a delivery hangs in its sink: messages stay queued for a while.
    pub async fn hangs(&self) -> bool {
        for _ in 0..8 {
            if self.health().await["sinks"][0]["queued"].as_u64().unwrap_or(0) == 0 {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        true
    }

    /// The watermark that `/health` shows; 0 where there is none yet.
    pub async fn watermark(&self) -> u64 {
        self.health().await["watermark"].as_u64().unwrap_or(0)
    }

    /// Waits until every block up to `number` is delivered.
    pub async fn wait_watermark(&self, number: u64, within: Duration) {
        let reached = async {
            while self.health().await["watermark"].as_i64().unwrap_or(-1) < i64::try_from(number).unwrap() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let in_time = timeout(within, reached).await.is_ok();
        assert!(in_time, "watermark not at {number} within {within:?}: {}\n{}", self.health().await, self.log());
    }

    /// Sends a signal by its name: `TERM`, `KILL`, `STOP`, `CONT`.
    pub async fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &self.id().to_string()]).status().await.unwrap().success());
    }

    /// Kills it as a crash would, and answers what it had written.
    pub async fn crash(mut self) -> Vec<Value> {
        self.kill().await.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Kills it with signal 9, and answers what it had written, line by line.
    pub async fn kill(&mut self) -> Vec<String> {
        self.child.kill().await.unwrap();
        self.read_to_the_end().await;
        self.whole_lines()
    }

    async fn read_to_the_end(&mut self) {
        self.read();
        for reader in &mut self.readers {
            reader.await.unwrap();
        }
    }

    /// Waits for its end: exit code, messages, log.
    pub async fn end(mut self, within: Duration) -> (i32, Vec<Value>, String) {
        (self.ended(within).await, self.messages(), self.log())
    }

    /// Waits for its end and answers its exit code; what it wrote can be read after that.
    pub async fn ended(&mut self, within: Duration) -> i32 {
        let ended = timeout(within, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("still running after {within:?}:\n{}", self.log())).unwrap();
        self.read_to_the_end().await;
        status.code().unwrap_or(-1)
    }

    /// Asks it to stop and waits for its end.
    pub async fn stop(self) -> (i32, Vec<Value>, String) {
        self.signal("TERM").await;
        self.end(Duration::from_secs(30)).await
    }
}

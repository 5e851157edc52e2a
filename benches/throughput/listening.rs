//! A listener as it is deployed: a directory of its own, its settings, and what it writes to standard output.

use std::{
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use tempfile::TempDir;

use crate::{chain::FIRST, measured::listener};

/// How a listener is started.
pub struct Settings {
    home: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Settings {
    /// Of this node, from the chain's first block on, `parallel` requests for history at once.
    pub fn new(url: &str, parallel: usize, block_time: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("config")).unwrap();
        let chains = format!(
            "[[chain]]\nid = 1\nname = \"bench\"\nredis_db = 0\nblock_time = \"{block_time}\"\nfinality_depth = 64\n\
             parallel = {parallel}\nspacing = \"1us\"\n"
        );
        std::fs::write(home.path().join("config/chains.toml"), chains).unwrap();
        Self { home, environment: Vec::new() }
            .set("CHAIN_ID", "1")
            .set("WEB3_PROVIDER", url)
            .set("START_BLOCK", &FIRST.to_string())
            .set("HTTP_BIND", "127.0.0.1")
            .set("PORT", "0")
            .set("LOG_LEVEL", "warn")
    }

    /// Sets a variable of its environment; the last one counts.
    #[must_use]
    pub fn set(mut self, name: &'static str, value: &str) -> Self {
        self.environment.retain(|(known, _)| *known != name);
        self.environment.push((name, value.to_owned()));
        self
    }

    /// Transfers go to this queue of this server.
    #[must_use]
    pub fn queue(self, endpoint: &str, url: &str) -> Self {
        self.set("AWS_ENDPOINT_URL_SQS", endpoint)
            .set("AWS_REGION", "us-east-1")
            .set("AWS_ACCESS_KEY_ID", "test")
            .set("AWS_SECRET_ACCESS_KEY", "test")
            .set("TRANSFER_HANDLER_SQS", url)
    }

    /// The command that runs it, once; the directory is this value's.
    pub fn command(&self) -> Command {
        let mut command = listener(self.home.path(), &self.environment);
        command.arg("run");
        command
    }

    /// Starts it.
    pub fn start(self) -> (Listener, ChildStdout) {
        let mut child = self.command().stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = child.stdout.take().unwrap();
        (Listener { child, _home: self.home }, output)
    }
}

/// A listener that runs; killed when dropped.
pub struct Listener {
    child: Child,
    _home: TempDir,
}

impl Listener {
    /// The processor time that it used so far, of all its threads, and the largest size that it had, in bytes.
    pub fn used(&self) -> (f64, u64) {
        let directory = format!("/proc/{}", self.child.id());
        let directory = Path::new(&directory);
        // Behind the name, which may hold spaces: state, …; utime and stime are fields 14 and 15 (proc_pid_stat(5)).
        let stat = std::fs::read_to_string(directory.join("stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        let status = std::fs::read_to_string(directory.join("status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kibibytes: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        (ticks / TICKS_PER_SECOND, kibibytes << 10)
    }
}

/// `USER_HZ`, which Linux tells programs on every machine (time(7)).
const TICKS_PER_SECOND: f64 = 100.0;

impl Drop for Listener {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().unwrap();
    }
}

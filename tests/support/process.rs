//! Child processes that never outlive their test, and ports that nobody else has.

use std::{
    future::Future,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

/// A port that nobody uses. It lies below those that Linux gives to outgoing connections (from 32,768 on), one of which
/// might take it before the server does; no port is told twice, and every test process begins elsewhere.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(7_919);
    loop {
        let place = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let port = 12_000 + u16::try_from(place).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The project's ignored folder for what tests need; `make test` fills it.
pub fn dev_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".dev")
}

/// Starts a server; it is killed when the guard is dropped. Its output is discarded unless `TEST_SERVER_OUTPUT` is set.
pub fn spawn(command: &mut Command) -> Child {
    let quiet = std::env::var_os("TEST_SERVER_OUTPUT").is_none();
    let output = || if quiet { Stdio::null() } else { Stdio::inherit() };
    command.stdin(Stdio::null()).stdout(output()).stderr(output()).kill_on_drop(true);
    command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}; run `make test` to install it"))
}

/// Asks `probe` every 50 ms until it answers true.
pub async fn eventually<F: Future<Output = bool>>(what: &str, within: Duration, mut probe: impl FnMut() -> F) {
    let deadline = Instant::now() + within;
    while !probe().await {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

//! Child processes that never outlive their test, and ports that nobody else has.

use std::{
    future::Future,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
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

//! A TCP proxy on loopback, between a listener and one of its servers: it cuts lines, turns callers away, or goes silent.
//!
//! The server behind it lives on and never knows, which is the difference to killing it.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

use super::process::eventually;

/// A running proxy; every line through it is cut when it is dropped.
pub struct Proxy {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    open: watch::Receiver<usize>,
    server: watch::Sender<String>,
    #[expect(dead_code, reason = "ends the task when it is dropped")]
    task: AbortOnDropHandle<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    Silent,
    Cut,
}

impl Proxy {
    /// Starts one before a server: `127.0.0.1:6379`, or a URL of which only host and port count.
    pub async fn before(server: &str) -> Self {
        Self::start(server, false).await
    }

    /// Starts one that hangs up on whoever posts: only sockets come through.
    pub async fn for_sockets(server: &str) -> Self {
        Self::start(server, true).await
    }

    async fn start(server: &str, sockets_only: bool) -> Self {
        let (server, servers) = watch::channel(authority(server));
        let target = Target { server: servers, sockets_only };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, modes) = watch::channel(Mode::Pass);
        let (count, open) = watch::channel(0);
        let task = AbortOnDropHandle::new(tokio::spawn(accept(listener, target, modes, count)));
        Self { address, mode, open, server, task }
    }

    /// New lines lead to another server; those that are open stay.
    pub fn lead_to(&self, server: &str) {
        self.server.send_replace(authority(server));
    }

    /// Cuts every line; until [`restore`](Self::restore), who calls is hung up on at once.
    pub async fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
        eventually("all lines are cut", Duration::from_secs(10), || async { self.lines() == 0 }).await;
    }

    /// Lines stay open and new ones are taken, but nothing gets through; what is sent meanwhile arrives after
    /// [`restore`](Self::restore).
    pub fn silence(&self) {
        self.mode.send_replace(Mode::Silent);
    }

    /// Passes everything on again.
    pub fn restore(&self) {
        self.mode.send_replace(Mode::Pass);
    }

    /// Lines that are open now.
    pub fn lines(&self) -> usize {
        *self.open.borrow()
    }
}

/// Host and port of a URL, or of just that.
fn authority(server: &str) -> String {
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap().to_owned()
}

#[derive(Clone)]
struct Target {
    server: watch::Receiver<String>,
    sockets_only: bool,
}

async fn accept(listener: TcpListener, target: Target, mode: watch::Receiver<Mode>, open: watch::Sender<usize>) {
    loop {
        let (caller, _) = listener.accept().await.unwrap();
        if *mode.borrow() == Mode::Cut {
            continue;
        }
        open.send_modify(|lines| *lines += 1);
        let (target, open) = (target.clone(), open.clone());
        let (mode, mut cut) = (mode.clone(), mode.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = connect_through(caller, target, mode) => {}
                // Also where the proxy itself is gone.
                _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
            }
            open.send_modify(|lines| *lines -= 1);
        });
    }
}

/// Both directions of one line, until either side hangs up.
async fn connect_through(caller: TcpStream, target: Target, mode: watch::Receiver<Mode>) {
    let mut first = [0; 4];
    if target.sockets_only && (caller.peek(&mut first).await.is_err() || first == *b"POST") {
        return;
    }
    let address = target.server.borrow().clone();
    let Ok(server) = TcpStream::connect(address).await else { return };
    // Small messages must not wait for each other's acknowledgement.
    caller.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (from_caller, to_caller) = caller.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(pass(from_caller, to_server, mode.clone()), pass(from_server, to_caller, mode));
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut mode: watch::Receiver<Mode>) {
    let mut chunk = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        let open = mode.wait_for(|mode| *mode != Mode::Silent).await.is_ok();
        if !open || to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
    // A peer that hung up is told on; where it has gone there is nobody to tell.
    to.shutdown().await.ok();
}

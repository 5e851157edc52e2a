//! Serves the router within limits: how many connections, how large and how slow a request, how long a connection.
//!
//! The port may be open to a whole cluster, and a probe that finds no connection left would get the process
//! restarted; so every connection ends, whatever its other side does or does not.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::telemetry::Metrics;

/// Connections at once; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 256;
/// The head of a request must be here within this; an idle connection is closed after it.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// A connection may last this long; then it is closed after the answer being given.
const CONNECTION_TIME: Duration = Duration::from_mins(2);
/// An answer being given may take this long once its connection has to end.
const LAST_ANSWER_TIME: Duration = Duration::from_secs(2);
/// Headers of a request.
const MAX_HEADERS: usize = 64;
/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// A pause after the machine refused a connection (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// How often observations are folded into their buckets.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// The port cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program has it; it may be free in a moment, where that is the process before this one.
    #[error("another program listens on {0}: end it, or set PORT to a free port")]
    InUse(SocketAddr),
    /// The address is not this machine's, or the port needs rights.
    #[error("cannot listen on {address} ({source}): correct PORT or HTTP_BIND")]
    Unusable {
        /// As configured.
        address: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
}

/// Listens on `PORT`; early in the start, so that a taken port is told at once.
///
/// # Errors
///
/// [`BindError`] says what to change.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse(address),
        _ => BindError::Unusable { address, source },
    })
}

/// Serves until `stop`, and keeps the metrics folded meanwhile. Returns when the last connection is closed, at most
/// two seconds later.
pub async fn serve(listener: TcpListener, router: Router, metrics: Metrics, stop: CancellationToken) {
    let connections = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut upkeep = interval(UPKEEP_EVERY);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            _ = upkeep.tick() => {
                metrics.upkeep();
                continue;
            }
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((stream, slot)) = accepted else { continue };
        let (router, stop) = (router.clone(), stop.clone());
        connections.spawn(async move {
            connection(stream, router, stop).await;
            drop(slot);
        });
    }
    connections.close();
    connections.wait().await;
}

/// A connection with a slot of its own; `None` where the machine refused one.
///
/// # Cancel safety
///
/// Nothing is accepted before a slot is there, and a dropped call gives it back.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, slot)),
        Err(error) => {
            warn!(%error, "HTTP connection not accepted");
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    let mut limits = http1::Builder::new();
    limits
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(MAX_HEAD_BYTES);
    let mut connection = pin!(limits.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = async { tokio::select! { () = stop.cancelled() => {} () = sleep(CONNECTION_TIME) => {} } } => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_ANSWER_TIME, connection).await.unwrap_or(Ok(()))
        }
    };
    // The other side hung up or sent no HTTP: its affair, and nothing that an operator could mend.
    if let Err(error) = ended {
        debug!(%error, "HTTP connection ended early");
    }
}

//! HTTP and WebSocket on one port.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::available_parallelism,
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing::get,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, broadcast::error::RecvError},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    chain::Notice,
    jsonrpc::{Answer, Params, respond},
    node::Node,
    subscriptions::Subscriptions,
};

/// What every request sees.
#[derive(Clone)]
struct Shared {
    node: Arc<Node>,
    shutdown: CancellationToken,
    /// Calls are computed off the runtime's threads, as many at a time as there are cores.
    slots: Arc<Semaphore>,
    sockets: Arc<AtomicU64>,
}

/// Serves until `shutdown`.
pub(super) async fn serve(listener: TcpListener, node: Arc<Node>, shutdown: CancellationToken) -> std::io::Result<()> {
    let slots = Arc::new(Semaphore::new(available_parallelism().map_or(1, usize::from)));
    let body_limit = DefaultBodyLimit::max(node.limits.request_bytes);
    let shared = Shared { node, shutdown: shutdown.clone(), slots, sockets: Arc::default() };
    let app = Router::new().fallback(get(connect).post(call)).layer(body_limit).with_state(shared);
    axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

/// One call or batch over HTTP.
async fn call(State(shared): State<Shared>, body: Bytes) -> Response {
    let node = Arc::clone(&shared.node);
    match shared.compute(move || respond_to(&node, &body, |method, params| node.call(method, params))).await {
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Some(reply) => ([(CONTENT_TYPE, "application/json")], reply.unwrap_or_default()).into_response(),
    }
}

/// A socket for calls and subscriptions.
async fn connect(State(shared): State<Shared>, upgrade: WebSocketUpgrade) -> Response {
    let limit = shared.node.limits.request_bytes;
    upgrade.max_message_size(limit).on_upgrade(move |socket| converse(socket, shared))
}

fn respond_to(node: &Node, message: &[u8], call: impl FnMut(&str, Params) -> Answer) -> Option<String> {
    respond(message, node.limits.batch, call)
}

impl Shared {
    /// Runs `work` on a thread that may be busy; `None` where it failed.
    async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        let result = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(slot);
            result
        })
        .await;
        result.inspect_err(|error| warn!(%error, "call failed")).ok()
    }
}

/// One socket from upgrade to end.
async fn converse(mut socket: WebSocket, shared: Shared) {
    let id = shared.sockets.fetch_add(1, Ordering::Relaxed);
    let subscriptions = Arc::new(Mutex::new(Subscriptions::new(id)));
    let mut notices = shared.node.chain.subscribe();
    loop {
        let messages = tokio::select! {
            () = shared.shutdown.cancelled() => break,
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => shared.reply(text.into(), &subscriptions).await,
                Some(Ok(Message::Binary(bytes))) => shared.reply(bytes, &subscriptions).await,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
            },
            notice = notices.recv() => match notice {
                Ok(notice) => shared.notify(notice, &subscriptions).await,
                Err(RecvError::Lagged(missed)) => {
                    warn!(socket = id, missed, "subscriber is too slow, dropped");
                    break;
                }
                Err(RecvError::Closed) => break,
            },
        };
        if !send(&mut socket, messages, shared.node.limits.send_timeout).await {
            debug!(socket = id, "socket does not take its messages, dropped");
            break;
        }
    }
}

impl Shared {
    async fn reply(&self, message: Bytes, subscriptions: &Arc<Mutex<Subscriptions>>) -> Vec<String> {
        let (node, subscriptions) = (Arc::clone(&self.node), Arc::clone(subscriptions));
        let work = move || {
            let mut subscriptions = subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
            respond_to(&node, &message, |method, params| subscriptions.call(&node, method, params))
        };
        self.compute(work).await.flatten().into_iter().collect()
    }

    async fn notify(&self, notice: Notice, subscriptions: &Arc<Mutex<Subscriptions>>) -> Vec<String> {
        let (node, subscriptions) = (Arc::clone(&self.node), Arc::clone(subscriptions));
        let work = move || subscriptions.lock().unwrap_or_else(PoisonError::into_inner).messages(&node, &notice);
        self.compute(work).await.unwrap_or_default()
    }
}

/// Whether all messages went out in time.
async fn send(socket: &mut WebSocket, messages: Vec<String>, within: Duration) -> bool {
    for message in messages {
        if !matches!(timeout(within, socket.send(Message::text(message))).await, Ok(Ok(()))) {
            return false;
        }
    }
    true
}

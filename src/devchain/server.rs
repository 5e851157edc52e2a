//! HTTP and WebSocket on one port.

use std::{
    collections::VecDeque,
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
    http::{StatusCode, Uri},
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
    faults::{Endpoint, Exchange, pause},
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
async fn call(State(shared): State<Shared>, uri: Uri, body: Bytes) -> Response {
    let (node, shutdown) = (Arc::clone(&shared.node), shared.shutdown.clone());
    let endpoint = node.endpoints.at(uri.path());
    let work = move || {
        let mut exchange = Exchange::new(endpoint, true);
        let reply = respond_to(&node, &body, |method, params| {
            exchange.call(&node, method, params, |node, params| node.call(method, params))
        });
        (reply.unwrap_or_default(), exchange.delivery)
    };
    match shared.compute(work).await {
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Some((reply, delivery)) => delivery.over_http(reply, shutdown).await,
    }
}

/// A socket for calls and subscriptions.
async fn connect(State(shared): State<Shared>, uri: Uri, upgrade: WebSocketUpgrade) -> Response {
    let endpoint = shared.node.endpoints.at(uri.path());
    if let Some(refused) = endpoint.opening(&shared.node).opening(shared.shutdown.clone()).await {
        return refused;
    }
    let limit = shared.node.limits.request_bytes;
    upgrade.max_message_size(limit).on_upgrade(move |socket| converse(socket, shared, endpoint))
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

/// One side of a socket.
struct Conversation {
    shared: Shared,
    endpoint: Arc<Endpoint>,
    subscriptions: Arc<Mutex<Subscriptions>>,
    /// What the subscribers of a node that is behind are not told yet.
    held: VecDeque<Notice>,
}

/// A message, and how long it waits before it is sent.
type Outgoing = (String, Duration);

/// One socket from upgrade to end.
async fn converse(mut socket: WebSocket, shared: Shared, endpoint: Arc<Endpoint>) {
    let id = shared.sockets.fetch_add(1, Ordering::Relaxed);
    let mut notices = shared.node.chain.subscribe();
    let subscriptions = Arc::new(Mutex::new(Subscriptions::new(id)));
    let mut conversation = Conversation { shared, endpoint, subscriptions, held: VecDeque::new() };
    loop {
        let messages = tokio::select! {
            () = conversation.shared.shutdown.cancelled() => break,
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => conversation.reply(text.into()).await,
                Some(Ok(Message::Binary(bytes))) => conversation.reply(bytes).await,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
            },
            notice = notices.recv() => match notice {
                Ok(notice) => conversation.notify(notice).await,
                Err(RecvError::Lagged(missed)) => {
                    warn!(socket = id, missed, "subscriber is too slow, dropped");
                    break;
                }
                Err(RecvError::Closed) => break,
            },
        };
        if !conversation.send(&mut socket, messages).await {
            debug!(socket = id, "socket does not take its messages, dropped");
            break;
        }
    }
}

impl Conversation {
    async fn reply(&self, message: Bytes) -> Vec<Outgoing> {
        let (node, subscriptions) = (Arc::clone(&self.shared.node), Arc::clone(&self.subscriptions));
        let mut exchange = Exchange::new(Arc::clone(&self.endpoint), false);
        let work = move || {
            let mut subscriptions = subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
            let reply = respond_to(&node, &message, |method, params| {
                exchange.call(&node, method, params, |node, params| subscriptions.call(node, method, params))
            });
            exchange.delivery.over_socket(reply?)
        };
        self.shared.compute(work).await.flatten().into_iter().collect()
    }

    async fn notify(&mut self, notice: Notice) -> Vec<Outgoing> {
        self.held.push_back(notice);
        let behind = usize::try_from(self.endpoint.behind(&self.shared.node)).unwrap_or(usize::MAX);
        let due: Vec<Notice> = self.held.drain(..self.held.len().saturating_sub(behind)).collect();
        let (node, endpoint) = (Arc::clone(&self.shared.node), Arc::clone(&self.endpoint));
        let subscriptions = Arc::clone(&self.subscriptions);
        let work = move || {
            let subscriptions = subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
            let messages = due.iter().flat_map(|notice| subscriptions.messages(&node, notice));
            messages.filter_map(|message| endpoint.notification(&node).over_socket(message)).collect()
        };
        self.shared.compute(work).await.unwrap_or_default()
    }

    /// Whether all messages went out in time.
    async fn send(&self, socket: &mut WebSocket, messages: Vec<Outgoing>) -> bool {
        for (message, wait) in messages {
            pause(wait, &self.shared.shutdown).await;
            let sent = timeout(self.shared.node.limits.send_timeout, socket.send(Message::text(message))).await;
            if !matches!(sent, Ok(Ok(()))) {
                return false;
            }
        }
        true
    }
}

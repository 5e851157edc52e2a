//! HTTP and WebSocket of a replay.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{
        State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::{StatusCode, Uri, header::RETRY_AFTER},
    response::{IntoResponse as _, Response},
    routing::get,
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    clock::Clock,
    question::Question,
    reel::{Reel, Said, Sign, Told},
};
use crate::devchain::{faults::pause, jsonrpc::notification};

/// Longest that an answer takes, however long it took.
const LONGEST_ANSWER: Duration = Duration::from_mins(1);
/// A socket that takes a message for longer is dropped.
const SEND: Duration = Duration::from_secs(10);

/// What every request sees.
#[derive(Clone)]
struct Shared {
    reel: Arc<Mutex<Reel>>,
    clock: Arc<Clock>,
    shutdown: CancellationToken,
}

/// What a request is answered with.
enum Outcome {
    Text(String),
    Http { status: u16, retry_after: Option<u64>, body: String },
    Broken,
    Silence,
}

/// Serves until `shutdown`.
pub(super) async fn serve(
    listener: TcpListener,
    (reel, speed): (Reel, f64),
    shutdown: CancellationToken,
) -> io::Result<()> {
    let clock = Arc::new(Clock::new(reel.first(), speed));
    let shared = Shared { reel: Arc::new(Mutex::new(reel)), clock, shutdown: shutdown.clone() };
    let app = Router::new().fallback(get(connect).post(call)).with_state(shared);
    axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

/// One call or batch over HTTP.
async fn call(State(shared): State<Shared>, uri: Uri, body: Bytes) -> Response {
    let Some(endpoint) = shared.reel().at(uri.path()) else { return shared.unknown() };
    match shared.answer(endpoint, &body).await {
        Outcome::Text(text) => ([("content-type", "application/json")], text).into_response(),
        Outcome::Http { status, retry_after, body } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let retry_after = retry_after.map(|seconds| [(RETRY_AFTER, seconds.to_string())]);
            match retry_after {
                Some(header) => (status, header, body).into_response(),
                None => (status, body).into_response(),
            }
        }
        Outcome::Broken => {
            // The connection breaks where the body should be.
            Body::from_stream(stream::iter([Err::<Bytes, _>(io::Error::other("recorded"))])).into_response()
        }
        Outcome::Silence => {
            shared.shutdown.cancelled().await;
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
    }
}

/// A socket for calls and heads.
async fn connect(State(shared): State<Shared>, uri: Uri, upgrade: WebSocketUpgrade) -> Response {
    let Some(endpoint) = shared.reel().at(uri.path()) else { return shared.unknown() };
    // The first request begins the time, whatever it is.
    shared.clock.now();
    if !shared.reel().opens(endpoint) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    upgrade.on_upgrade(move |socket| converse(socket, shared, endpoint))
}

/// One socket from upgrade to end.
async fn converse(mut socket: WebSocket, shared: Shared, endpoint: usize) {
    let mut subscriptions: Vec<String> = Vec::new();
    let mut since = 0;
    loop {
        let next = if subscriptions.is_empty() { None } else { shared.reel().sign_after(endpoint, since) };
        let until = next.as_ref().map(|(at, _)| shared.clock.until(*at));
        let messages = tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = async { match until { Some(until) => tokio::time::sleep(until).await, None => std::future::pending().await } } => {
                let Some((at, sign)) = next else { continue };
                since = at;
                let Sign::Head(head) = sign else { return };
                shared.reel().announced(at);
                subscriptions.iter().map(|id| notification(id, &head)).collect()
            }
            message = socket.recv() => {
                let message = match message {
                    Some(Ok(Message::Text(text))) => Bytes::from(text),
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                if let Some(reply) = subscribe(&message, &mut subscriptions) {
                    since = since.max(shared.clock.now());
                    vec![reply]
                } else {
                    match shared.answer(endpoint, &message).await {
                        Outcome::Text(text) => vec![text],
                        Outcome::Silence => Vec::new(),
                        Outcome::Http { .. } | Outcome::Broken => return,
                    }
                }
            }
        };
        for message in messages {
            if !matches!(timeout(SEND, socket.send(Message::text(message))).await, Ok(Ok(()))) {
                return;
            }
        }
    }
}

/// The reply to a request for the announcements of heads.
fn subscribe(message: &[u8], subscriptions: &mut Vec<String>) -> Option<String> {
    let request: Value = serde_json::from_slice(message).ok()?;
    let is_wanted = request.get("method")? == "eth_subscribe" && request.pointer("/params/0")? == "newHeads";
    is_wanted.then(|| {
        let id = format!("{:#x}", subscriptions.len() + 1);
        let reply = json!({ "jsonrpc": "2.0", "id": request.get("id"), "result": id }).to_string();
        subscriptions.push(id);
        reply
    })
}

impl Shared {
    fn reel(&self) -> MutexGuard<'_, Reel> {
        self.reel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unknown(&self) -> Response {
        let paths = self.reel().paths().join(" ");
        (StatusCode::NOT_FOUND, format!("not in the recording: there are {paths}")).into_response()
    }

    /// What an endpoint answers to a message, after as long a time as it took.
    async fn answer(&self, endpoint: usize, message: &[u8]) -> Outcome {
        let due = self.clock.soon();
        let (outcome, took) = respond(message, |question| self.reel().answer(endpoint, question, due));
        pause(self.clock.scaled(took).min(LONGEST_ANSWER), &self.shutdown).await;
        outcome
    }
}

/// The answer to a call or a batch, and how long it takes.
fn respond(message: &[u8], mut ask: impl FnMut(&Question) -> Told) -> (Outcome, Duration) {
    let (calls, is_batch) = match serde_json::from_slice(message) {
        Ok(Value::Array(calls)) => (calls, true),
        Ok(call) => (vec![call], false),
        Err(error) => {
            return (Outcome::Text(error_reply(&Value::Null, &format!("parse error: {error}"))), Duration::ZERO);
        }
    };
    let (mut replies, mut took) = (Vec::new(), Duration::ZERO);
    for mut call in calls {
        let mut take = |name| call.get_mut(name).map(Value::take).unwrap_or_default();
        let (id, method, params) = (take("id"), take("method"), take("params"));
        let params = params.as_array().cloned().unwrap_or_default();
        let told = ask(&Question::new(method.as_str().unwrap_or_default(), params));
        took = took.max(told.took);
        match told.said {
            Said::Result(result) => {
                replies.push(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{}}}"#, result.get()));
            }
            Said::Error(error) => replies.push(format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{}}}"#, error.get())),
            Said::Missing => {}
            Said::Http { status, retry_after, body } => return (Outcome::Http { status, retry_after, body }, took),
            Said::Silence => return (Outcome::Silence, Duration::ZERO),
            Said::Failed(reason) if reason.contains("response is too big") => replies.push(error_reply(&id, &reason)),
            Said::Failed(reason) if reason.contains("invalid JSON") => return (Outcome::Text(reason), took),
            Said::Failed(_) => return (Outcome::Broken, took),
        }
    }
    let text = if is_batch { format!("[{}]", replies.join(",")) } else { replies.concat() };
    (Outcome::Text(text), took)
}

fn error_reply(id: &Value, message: &str) -> String {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32000, "message": message } }).to_string()
}

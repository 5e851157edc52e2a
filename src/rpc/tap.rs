//! The one place where the traffic with the nodes is recorded: between the JSON-RPC client and its transport, and at the
//! sockets that tell of heads. Where nothing is recorded, nothing is done.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use alloy::{
    rpc::json_rpc::{Id, RequestPacket, Response, ResponsePacket, ResponsePayload, SerializedRequest},
    transports::{HttpError, RpcError as AlloyError, Transport, TransportError, TransportErrorKind, TransportFut},
};
use serde_json::value::{RawValue, to_raw_value};
use tokio::time::Instant;
use tower_service::Service;

use super::error::NoAnswerInTime;
use crate::{
    config::{Provider, SecretUrl},
    recording::{Answer, Call, Event, Exchange, Record, Recorder, Reply, now},
};

/// Whoever gives up sooner than this does so for reasons of its own: the shortest time that an endpoint is waited for.
const WAITED: Duration = Duration::from_secs(1);
/// Shorter parts of a URL are words that answers have, too (`true`); without them a recording would not be JSON any more.
const KEY_BYTES: usize = 8;

/// One endpoint's part of a recording.
#[derive(Clone, Debug)]
pub(super) struct Tape {
    endpoint: Arc<str>,
    recorder: Option<Recorder>,
}

impl Tape {
    pub(super) fn new(endpoint: &str, recorder: Option<&Recorder>) -> Self {
        Self { endpoint: endpoint.into(), recorder: recorder.cloned() }
    }

    /// Whether anything is kept.
    pub(super) fn is_recorded(&self) -> bool {
        self.recorder.is_some()
    }

    /// Keeps what happened now.
    pub(super) fn note(&self, event: impl FnOnce() -> Event) {
        if let Some(recorder) = &self.recorder {
            recorder.keep(Record::now(Arc::clone(&self.endpoint), event()));
        }
    }
}

/// What the endpoints' URLs hold that may be a key: never to be recorded, whoever says it.
#[must_use]
pub fn keys(providers: &[Provider]) -> Vec<String> {
    let mut keys: Vec<String> = providers.iter().flat_map(Provider::urls).flat_map(SecretUrl::keys).collect();
    keys.retain(|key| key.len() >= KEY_BYTES);
    keys
}

/// A transport whose requests and answers are recorded.
#[derive(Clone, Debug)]
pub(super) struct Taped<T> {
    transport: T,
    tape: Tape,
}

impl<T> Taped<T> {
    pub(super) fn new(transport: T, tape: Tape) -> Self {
        Self { transport, tape }
    }

    /// The endpoint's name.
    pub(super) fn endpoint(&self) -> &str {
        &self.tape.endpoint
    }
}

impl<T: Transport> Service<RequestPacket> for Taped<T> {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.transport.poll_ready(cx)
    }

    fn call(&mut self, packet: RequestPacket) -> Self::Future {
        let Some(recorder) = &self.tape.recorder else { return self.transport.call(packet) };
        let pending = Pending::new(recorder.clone(), Arc::clone(&self.tape.endpoint), &packet);
        let answering = self.transport.call(packet);
        Box::pin(async move {
            let answer = answering.await;
            pending.answered(&answer);
            answer
        })
    }
}

/// A request that is not answered yet; dropped without an answer it was waited for in vain.
struct Pending {
    recorder: Recorder,
    endpoint: Arc<str>,
    at: u64,
    begun: Instant,
    ids: Vec<Id>,
    asked: Vec<Call>,
}

impl Pending {
    fn new(recorder: Recorder, endpoint: Arc<str>, packet: &RequestPacket) -> Self {
        let requests = match packet {
            RequestPacket::Single(request) => std::slice::from_ref(request),
            RequestPacket::Batch(requests) => requests.as_slice(),
        };
        let ids = requests.iter().map(|request| request.id().clone()).collect();
        let asked = requests.iter().map(call).collect();
        Self { recorder, endpoint, at: now(), begun: Instant::now(), ids, asked }
    }

    fn answered(mut self, answer: &Result<ResponsePacket, TransportError>) {
        let answer = match answer {
            Ok(packet) => Answer::Replies(self.replies(packet)),
            Err(AlloyError::ErrorResp(error)) => {
                Answer::Replies(self.ids.iter().map(|_| raw(error).map_or(Reply::Missing, Reply::Error)).collect())
            }
            Err(AlloyError::Transport(TransportErrorKind::Custom(error))) if error.is::<NoAnswerInTime>() => {
                Answer::Silence
            }
            Err(AlloyError::Transport(TransportErrorKind::HttpErrorWithRetryAfter { error, retry_after })) => {
                http(error, Some(retry_after.as_secs()))
            }
            Err(AlloyError::Transport(TransportErrorKind::HttpError(error))) => http(error, None),
            Err(error) => Answer::Failed(error.to_string()),
        };
        self.keep(answer);
    }

    /// The reply to each call.
    fn replies(&self, packet: &ResponsePacket) -> Vec<Reply> {
        let of = |id: &Id| match packet {
            ResponsePacket::Single(response) => Some(response),
            ResponsePacket::Batch(responses) => responses.iter().find(|response| response.id == *id),
        };
        self.ids.iter().map(|id| of(id).map_or(Reply::Missing, reply)).collect()
    }

    /// Keeps the exchange, once.
    fn keep(&mut self, answer: Answer) {
        let asked = std::mem::take(&mut self.asked);
        if !asked.is_empty() {
            let took = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            let event = Event::Exchange(Exchange { took, asked, answer });
            self.recorder.keep(Record { at: self.at, endpoint: Arc::clone(&self.endpoint), event });
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.begun.elapsed() >= WAITED {
            self.keep(Answer::Silence);
        }
    }
}

fn call(request: &SerializedRequest) -> Call {
    let params = request.params().map(ToOwned::to_owned).unwrap_or_default();
    Call { method: request.method().to_owned(), params }
}

fn reply(response: &Response) -> Reply {
    match &response.payload {
        ResponsePayload::Success(result) => Reply::Result(result.clone()),
        ResponsePayload::Failure(error) => raw(error).map_or(Reply::Missing, Reply::Error),
    }
}

fn raw(value: &impl serde::Serialize) -> Option<Box<RawValue>> {
    to_raw_value(value).ok()
}

fn http(error: &HttpError, retry_after: Option<u64>) -> Answer {
    Answer::Http { status: error.status, retry_after, body: error.body.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_is_long_in_a_url() {
        let url =
            SecretUrl::parse("https://user:a-long-password@node.example/v2/0123456789abcdef?apikey=fedcba9876543210");
        let keys = keys(&[Provider::from(url.unwrap())]);
        assert_eq!(keys, ["0123456789abcdef", "fedcba9876543210", "a-long-password"]);
    }
}

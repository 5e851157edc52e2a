//! What a server says in an error, without the keys of its own URL: some quote what they were asked for, also where no URL is
//! around it (`Cannot POST /v2/KEY`).

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use alloy::{
    rpc::json_rpc::{ErrorPayload, RequestPacket, Response, ResponsePacket, ResponsePayload},
    transports::{Transport, TransportError, TransportErrorKind, TransportFut},
};
use serde_json::value::RawValue;
use tower_service::Service;

use crate::{config::SecretUrl, telemetry::scrub::MASK};

/// What of a URL may be a key.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys(Arc<[String]>);

impl Keys {
    pub(super) fn of(url: &SecretUrl) -> Self {
        Self(url.keys().into())
    }

    fn hide(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, key| text.replace(key, MASK))
    }

    /// Takes the keys out of the words of an error.
    pub(super) fn hide_in(&self, error: &mut TransportError) {
        match error {
            TransportError::ErrorResp(payload) => self.hide_in_payload(payload),
            TransportError::Transport(
                TransportErrorKind::HttpError(error) | TransportErrorKind::HttpErrorWithRetryAfter { error, .. },
            ) => error.body = self.hide(&error.body),
            _ => {}
        }
    }

    fn hide_in_answer(&self, answer: &mut Result<ResponsePacket, TransportError>) {
        match answer {
            Ok(packet) => self.hide_in_packet(packet),
            Err(error) => self.hide_in(error),
        }
    }

    /// Takes the keys out of the words of the errors among these replies.
    pub(super) fn hide_in_packet(&self, packet: &mut ResponsePacket) {
        match packet {
            ResponsePacket::Single(one) => self.hide_in_one(one),
            ResponsePacket::Batch(all) => all.iter_mut().for_each(|one| self.hide_in_one(one)),
        }
    }

    fn hide_in_one(&self, response: &mut Response) {
        if let ResponsePayload::Failure(payload) = &mut response.payload {
            self.hide_in_payload(payload);
        }
    }

    fn hide_in_payload(&self, payload: &mut ErrorPayload) {
        payload.message = self.hide(&payload.message).into();
        let data = payload.data.as_ref().map(|data| self.hide(data.get()));
        payload.data = data.and_then(|data| RawValue::from_string(data).ok());
    }
}

/// A transport in whose errors the keys do not show.
#[derive(Clone, Debug)]
pub(super) struct Masked<T> {
    transport: T,
    keys: Keys,
}

impl<T> Masked<T> {
    pub(super) fn new(transport: T, url: &SecretUrl) -> Self {
        Self { transport, keys: Keys::of(url) }
    }
}

impl<T: Transport> Service<RequestPacket> for Masked<T> {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.transport.poll_ready(cx)
    }

    fn call(&mut self, packet: RequestPacket) -> Self::Future {
        let (answering, keys) = (self.transport.call(packet), self.keys.clone());
        Box::pin(async move {
            let mut answer = answering.await;
            keys.hide_in_answer(&mut answer);
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::transport::read, *};

    #[test]
    fn what_a_server_quotes_of_the_url_has_no_key_in_it() {
        let key = "0123456789abcdefKEY";
        let url = SecretUrl::parse(&format!("https://u:pw-1@h.example/v2/{key}?token=tok-2")).unwrap();
        let quoted = format!("Cannot POST /v2/{key}?token=tok-2 by u:pw-1");
        let answer = |status, body: String, is_batch| {
            let mut answer = read(status, None, body.as_bytes(), is_batch);
            Keys::of(&url).hide_in_answer(&mut answer);
            format!("{answer:?}")
        };
        let error = |id: &str| {
            format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":1,"message":"{quoted}","data":"{quoted}"}}}}"#)
        };
        for told in [
            answer(404, format!("<pre>{quoted}</pre>"), false),
            answer(429, error("1"), false),
            answer(200, error("1"), false),
            answer(200, error("null"), true),
            answer(200, format!("[{}]", error("1")), true),
        ] {
            assert!(told.contains("Cannot POST /v2/***?token=***"), "{told}");
            assert!([key, "tok-2", "pw-1"].iter().all(|secret| !told.contains(secret)), "{told}");
        }
    }
}

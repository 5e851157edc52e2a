//! One HTTP request to a node, with a limit on time and size.
//!
//! alloy's own HTTP transport reads an answer whatever its size and quotes URLs in its errors and spans; this one stops
//! reading at a limit (F05, I7) and never names more of an endpoint than its caller does (I9). The JSON-RPC part (ids,
//! batches, matching answers to requests) stays alloy's.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use alloy::{
    rpc::json_rpc::{RequestPacket, ResponsePacket},
    transports::{TransportError, TransportErrorKind, TransportFut},
};
use reqwest::{StatusCode, header::RETRY_AFTER};
use tower_service::Service;

use crate::config::SecretUrl;

/// How much of an error page is kept for the error's text, bytes.
const ERROR_TEXT: usize = 512;
/// A provider may ask for any pause; after this one it is asked whether it meant it.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(1);

/// An HTTP endpoint.
#[derive(Clone)]
pub(super) struct Capped {
    client: reqwest::Client,
    url: SecretUrl,
    max_bytes: usize,
}

impl Capped {
    /// A client of its own for `url`; connections are kept alive and reused.
    ///
    /// # Errors
    ///
    /// Where the TLS set-up of the machine is broken; the text has no URL in it.
    pub(super) fn new(url: SecretUrl, timeout: Duration, max_bytes: usize) -> Result<Self, String> {
        crate::crypto::init();
        let client = reqwest::Client::builder()
            .connect_timeout(timeout.min(Duration::from_secs(5)))
            .timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| error.without_url().to_string())?;
        Ok(Self { client, url, max_bytes })
    }

    async fn post(self, packet: RequestPacket) -> Result<ResponsePacket, TransportError> {
        let request = self.client.post(self.url.expose()).json(&packet);
        let mut response = request.send().await.map_err(without_url)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(without_url)? {
            if body.len() + chunk.len() > self.max_bytes {
                return Err(TransportErrorKind::custom_str(&format!(
                    "response is too big: more than {} bytes",
                    self.max_bytes
                )));
            }
            body.extend_from_slice(&chunk);
        }
        // Some nodes put a JSON-RPC error into an answer of status 4xx or 5xx; it says more than the status.
        match serde_json::from_slice(&body) {
            Ok(packet) => Ok(packet),
            Err(_) if !status.is_success() => Err(http_error(status, response.headers(), &body)),
            Err(error) => Err(TransportErrorKind::custom_str(&format!("invalid JSON in the answer: {error}"))),
        }
    }
}

impl Service<RequestPacket> for Capped {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, packet: RequestPacket) -> Self::Future {
        Box::pin(self.clone().post(packet))
    }
}

fn without_url(error: reqwest::Error) -> TransportError {
    let timed_out = error.is_timeout();
    let error = error.without_url();
    // The cause (refused, reset, unknown host) stands at the end of the chain.
    let mut cause: &dyn std::error::Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let text = if timed_out { "request timed out".to_owned() } else { format!("{error}: {cause}") };
    TransportErrorKind::custom_str(&text)
}

fn http_error(status: StatusCode, headers: &reqwest::header::HeaderMap, body: &[u8]) -> TransportError {
    let text = String::from_utf8_lossy(body.get(..ERROR_TEXT).unwrap_or(body)).into_owned();
    let wait = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let wait = wait.map(|seconds| Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
    TransportErrorKind::http_error_with_retry_after(status.as_u16(), text, wait)
}

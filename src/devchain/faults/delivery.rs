//! What faults do to a whole message: its status, its speed, its text, or that it never comes.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use serde_json::Value;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Does, Garbage, Vendor};

/// A slow answer comes in pieces, each after this time.
const TICK: Duration = Duration::from_millis(100);

/// How a message is sent; by default at once and as it is.
#[derive(Debug, Default)]
pub(in super::super) struct Delivery {
    status: Option<u16>,
    headers: Vec<(String, String)>,
    /// In the place of the answer.
    body: Option<String>,
    is_silent: bool,
    garbage: Option<Garbage>,
    padding: usize,
    delay: Duration,
    bytes_per_second: u64,
}

impl Delivery {
    /// What a fault does to the message.
    pub(super) fn spoil(&mut self, does: &Does) {
        match does {
            Does::Error { status, .. } => self.status = status.or(self.status),
            Does::RateLimit { retry_after, .. } => {
                self.status = Some(429);
                if *retry_after > 0 {
                    self.headers.push((header::RETRY_AFTER.to_string(), retry_after.to_string()));
                }
            }
            // The statuses with which these words were seen.
            Does::BlockLimit { words: Vendor::Quicknode, .. } => self.status = Some(413),
            Does::BlockLimit { words: Vendor::Alchemy, .. } => self.status = Some(400),
            Does::Http { status, headers, body } => {
                self.status = Some(*status);
                self.headers.extend(headers.clone());
                self.body = Some(body.clone());
            }
            Does::Silence => self.is_silent = true,
            Does::Pad { bytes } => self.padding += bytes,
            Does::Slow { delay, bytes_per_second } => {
                self.delay += Duration::from_millis(*delay);
                self.bytes_per_second = *bytes_per_second;
            }
            Does::Garbage { shape } => self.garbage = Some(*shape),
            _ => {}
        }
    }

    /// Whether no other fault can do anything to it.
    pub(super) fn is_final(&self) -> bool {
        self.is_silent || self.body.is_some()
    }

    /// Whether its status is one of failure.
    pub(super) fn is_refusal(&self) -> bool {
        self.status.is_some_and(|status| status >= 400)
    }

    /// The HTTP response with this text; one that never comes ends with the node.
    pub(in super::super) async fn over_http(self, text: String, shutdown: CancellationToken) -> Response {
        if self.is_silent {
            shutdown.cancelled().await;
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        pause(self.delay, &shutdown).await;
        let text = self.text(text);
        let body = match self.bytes_per_second {
            0 => Body::from(text),
            rate => slowly(text.into(), rate, shutdown),
        };
        let is_page = matches!(self.garbage, Some(Garbage::Html));
        let kind = HeaderValue::from_static(if is_page { "text/html" } else { "application/json" });
        let mut response = Response::new(body);
        *response.status_mut() =
            self.status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        for (name, value) in &self.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }

    /// The message for a socket with this text, and how long it waits; `None` where it never comes.
    pub(in super::super) fn over_socket(self, text: String) -> Option<(String, Duration)> {
        if self.is_silent {
            return None;
        }
        let text = self.text(text);
        let transfer = (text.len() as u64).saturating_mul(1000).checked_div(self.bytes_per_second).unwrap_or(0);
        Some((text, self.delay + Duration::from_millis(transfer)))
    }

    /// What becomes of the opening of a socket: `Some` where it is refused.
    pub(in super::super) async fn opening(self, shutdown: CancellationToken) -> Option<Response> {
        let is_refused = self.is_final();
        let response = self.over_http(String::new(), shutdown).await;
        is_refused.then_some(response)
    }

    fn text(&self, honest: String) -> String {
        let honest = self.body.clone().unwrap_or(honest);
        let mut text = match self.garbage {
            None => honest,
            Some(Garbage::Nothing) => String::new(),
            Some(Garbage::Text) => "upstream connect error or disconnect/reset before headers".to_owned(),
            Some(Garbage::Html) => "<html><head><title>502 Bad Gateway</title></head><body></body></html>".to_owned(),
            Some(Garbage::Half) => honest.get(..honest.floor_char_boundary(honest.len() / 2)).unwrap_or("").to_owned(),
            Some(Garbage::WrongId) => changed(&honest, |reply| {
                if let Some(id) = reply.get_mut("id") {
                    *id = Value::from(u32::MAX);
                }
            }),
            Some(Garbage::Hex) => changed(&honest, |reply| {
                let pushed = reply.pointer("/params/result").is_some();
                let result = if pushed { reply.pointer_mut("/params/result") } else { reply.get_mut("result") };
                if let Some(result) = result {
                    without_digits(result);
                }
            }),
        };
        text.extend(std::iter::repeat_n(' ', self.padding));
        text
    }
}

/// The text of a reply or of a batch of them, each changed.
fn changed(text: &str, change: impl Fn(&mut Value)) -> String {
    let Ok(mut message) = serde_json::from_str(text) else { return text.to_owned() };
    match &mut message {
        Value::Array(replies) => replies.iter_mut().for_each(change),
        reply => change(reply),
    }
    message.to_string()
}

/// Spoils the first hexadecimal number; says whether there was one.
fn without_digits(value: &mut Value) -> bool {
    match value {
        Value::String(text) if text.starts_with("0x") => {
            "0xzz".clone_into(text);
            true
        }
        Value::Array(elements) => elements.iter_mut().any(without_digits),
        Value::Object(members) => members.values_mut().any(without_digits),
        _ => false,
    }
}

/// Waits so long, or until `shutdown`. A timer rounds up to a millisecond, so nothing waits without one.
pub(in super::super) async fn pause(wait: Duration, shutdown: &CancellationToken) {
    if !wait.is_zero() {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = sleep(wait) => {}
        }
    }
}

/// A body of which so many bytes come a second, until `shutdown`.
fn slowly(text: Bytes, rate: u64, shutdown: CancellationToken) -> Body {
    let piece = usize::try_from(rate / 10).unwrap_or(usize::MAX).max(1);
    // Less than a byte in a tick takes longer ticks.
    let tick = if rate < 10 { Duration::from_millis(1000 / rate.max(1)) } else { TICK };
    Body::from_stream(stream::unfold((text, shutdown), move |(mut rest, shutdown)| async move {
        if rest.is_empty() {
            return None;
        }
        pause(tick, &shutdown).await;
        if shutdown.is_cancelled() {
            return None;
        }
        let piece = rest.split_to(piece.min(rest.len()));
        Some((Ok::<_, Infallible>(piece), (rest, shutdown)))
    }))
}

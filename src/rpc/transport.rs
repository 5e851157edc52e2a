//! One HTTP request to a node, with a limit on time and size.
//!
//! alloy's own HTTP transport reads an answer whatever its size and quotes URLs in its errors and spans; this one stops
//! reading at a limit (F05, I7) and never names more of an endpoint than its caller does (I9). The JSON-RPC part (ids,
//! batches, matching answers to requests) stays alloy's, but for answers with logs (`direct`).

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use alloy::{
    rpc::json_rpc::{Id, RequestPacket, ResponsePacket},
    transports::{TransportError, TransportErrorKind, TransportFut},
};
use reqwest::header::{HeaderValue, RETRY_AFTER};
use serde_json::Value;
use tower_service::Service;

use super::{
    error::{NoAnswerInTime, NobodyThere},
    readers::Readers,
    replies::{Reader, Rest},
    wire::Gathering,
};
use crate::config::SecretUrl;

/// How much of an error page is kept for the error's text, bytes.
const ERROR_TEXT: usize = 512;
/// A page up to this size is read for the error in it, bytes: of a larger one the beginning is kept.
const ERROR_PAGE: usize = 64 << 10;
/// A hundred blocks of a busy chain take less, bytes.
const USUAL_BYTES: usize = 8 << 20;
/// So much of an answer with logs is read at a stretch, bytes.
const PIECE: usize = 64 << 10;
/// An answer with logs up to this size is read without waiting for others, bytes: that of a block, but for the largest.
const SMALL: usize = 256 << 10;
/// An answer has at most so much besides its logs, bytes: two headers, of which each names its block's transactions. As a
/// million small replies it would be many times as large in memory.
const MOST_BESIDES: usize = 4 << 20;
/// Longest wait that a provider may ask for; the number comes from outside and ends here.
const MAX_WAIT: Duration = Duration::from_mins(1);

/// An HTTP endpoint.
#[derive(Clone)]
pub(super) struct Capped {
    client: reqwest::Client,
    url: SecretUrl,
    max_bytes: usize,
    readers: Arc<Readers>,
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
        Ok(Self { client, url, max_bytes, readers: Readers::new() })
    }

    async fn post(self, packet: RequestPacket) -> Result<ResponsePacket, TransportError> {
        let mut response = self.send(&packet).await?;
        let body = self.whole(&mut response).await?;
        read_page(&response, &body, is_batch(&packet))
    }

    /// Asks for logs, and reads what is answered as it arrives; where it is large, in its turn. An answer that says by its
    /// status that it is none is read as a whole: its beginning is told.
    pub(super) async fn ask_for_logs<'f>(
        &self,
        packet: &RequestPacket,
        logs: Gathering<'f>,
    ) -> Result<Replies<'f>, TransportError> {
        let mut response = self.send(packet).await?;
        if !response.status().is_success() {
            let body = self.whole(&mut response).await?;
            let packet = read_page(&response, &body, is_batch(packet))?;
            return Ok(Replies { packet, place: None, logs });
        }
        let (mut reader, mut read, mut number) = (Reader::new(logs), 0, None);
        while let Some(chunk) = response.chunk().await.map_err(without_url)? {
            read += chunk.len();
            bear(read, self.max_bytes)?;
            if read > SMALL {
                number.get_or_insert_with(|| self.readers.begin());
            }
            let mut turn = None;
            for piece in chunk.chunks(PIECE) {
                // Whatever waits on this thread does not wait for the whole answer.
                tokio::task::yield_now().await;
                if let (Some(number), None, true) = (number, &turn, reader.will_read(piece)) {
                    turn = Some(self.readers.turn(number).await);
                }
                reader.take(piece).map_err(not_json)?;
                bear(reader.besides(), self.max_bytes.min(MOST_BESIDES))?;
            }
        }
        read_logs(reader, is_batch(packet))
    }

    /// Sends a request; what is answered is not larger than the limit, as far as it says.
    async fn send(&self, packet: &RequestPacket) -> Result<reqwest::Response, TransportError> {
        let response = self.client.post(self.url.expose()).json(packet).send().await.map_err(without_url)?;
        bear(said_bytes(&response), self.max_bytes)?;
        Ok(response)
    }

    async fn whole(&self, response: &mut reqwest::Response) -> Result<Vec<u8>, TransportError> {
        // What the answer says of its size is believed up to a size that most have: they need no second buffer.
        let mut body = Vec::with_capacity(said_bytes(response).min(USUAL_BYTES));
        while let Some(chunk) = response.chunk().await.map_err(without_url)? {
            bear(body.len() + chunk.len(), self.max_bytes)?;
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// Nothing is larger than its limit.
fn bear(bytes: usize, most: usize) -> Result<(), TransportError> {
    if bytes > most {
        return Err(TransportErrorKind::custom_str(&format!("response is too big: more than {most} bytes")));
    }
    Ok(())
}

/// What is answered to a request for logs.
#[derive(Debug)]
pub(super) struct Replies<'f> {
    /// The replies; an empty list stands where logs were taken out.
    pub(super) packet: ResponsePacket,
    /// The place of the reply that logs were taken out of.
    pub(super) place: Option<usize>,
    /// The logs that were taken out.
    pub(super) logs: Gathering<'f>,
}

/// The answer that was read to its end.
pub(super) fn read_logs(reader: Reader<'_>, is_batch: bool) -> Result<Replies<'_>, TransportError> {
    let Rest { text, place, logs } = reader.end().map_err(not_json)?;
    Ok(Replies { packet: read(200, None, &text, is_batch)?, place, logs })
}

fn is_batch(packet: &RequestPacket) -> bool {
    matches!(packet, RequestPacket::Batch(_))
}

/// How large the answer says that it is; 0 where it says nothing.
fn said_bytes(response: &reqwest::Response) -> usize {
    response.content_length().map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
}

fn read_page(response: &reqwest::Response, body: &[u8], is_batch: bool) -> Result<ResponsePacket, TransportError> {
    let retry_after = response.headers().get(RETRY_AFTER).map(HeaderValue::as_bytes);
    read(response.status().as_u16(), retry_after, body, is_batch)
}

/// The JSON-RPC answer that an HTTP answer holds, or the error that it is.
pub(super) fn read(
    status: u16,
    retry_after: Option<&[u8]>,
    body: &[u8],
    is_batch: bool,
) -> Result<ResponsePacket, TransportError> {
    // What these three mean is sure, and their headers say how long to wait; a body only says it in other words.
    if matches!(status, 402 | 413 | 429) {
        return Err(http_error(status, retry_after, body));
    }
    // Some nodes put a JSON-RPC error into an answer of status 4xx or 5xx; it says more than the status.
    match serde_json::from_slice(body) {
        Ok(answer) if is_batch => refused(answer),
        Ok(answer) => Ok(answer),
        Err(_) if !(200..300).contains(&status) => Err(http_error(status, retry_after, body)),
        Err(error) => Err(not_json(error)),
    }
}

/// Who answers so is no node.
pub(super) fn not_json(error: impl fmt::Display) -> TransportError {
    TransportErrorKind::custom(NobodyThere(format!("invalid JSON in the answer: {error}")))
}

/// The answer to a batch, or the error of the batch as a whole: one object for all, or one without an id. alloy would
/// only say that answers are missing, and not why.
fn refused(answer: ResponsePacket) -> Result<ResponsePacket, TransportError> {
    let alone = matches!(answer, ResponsePacket::Single(_));
    let whole = answer
        .responses()
        .iter()
        .find(|response| alone || matches!(response.id, Id::None))
        .and_then(|response| response.payload.as_error());
    match whole {
        Some(error) => Err(TransportError::ErrorResp(error.clone())),
        None => Ok(answer),
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
    // Who cannot be reached in time is down; who does not answer in time may have been asked for too much.
    if error.is_timeout() && !error.is_connect() {
        return TransportErrorKind::custom(NoAnswerInTime);
    }
    let is_connect = error.is_connect() && !error.is_timeout();
    let error = error.without_url();
    // The cause (refused, reset, unknown host) stands at the end of the chain.
    let mut cause: &dyn std::error::Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let text = format!("{error}: {cause}");
    if is_connect { TransportErrorKind::custom(NobodyThere(text)) } else { TransportErrorKind::custom_str(&text) }
}

fn http_error(status: u16, retry_after: Option<&[u8]>, body: &[u8]) -> TransportError {
    let text =
        said(body).unwrap_or_else(|| String::from_utf8_lossy(body.get(..ERROR_TEXT).unwrap_or(body)).into_owned());
    TransportErrorKind::http_error_with_retry_after(status, text, retry_after.and_then(wait))
}

/// What a page says that is a JSON-RPC error, or a batch with one, or was meant to be one.
fn said(body: &[u8]) -> Option<String> {
    let page: Value = serde_json::from_slice(Some(body).filter(|body| body.len() <= ERROR_PAGE)?).ok()?;
    let whole = page.as_array().map_or(std::slice::from_ref(&page), Vec::as_slice);
    let error = whole.iter().find_map(|one| one.get("error")).or(whole.first())?;
    let message = error.as_str().or_else(|| error.get("message")?.as_str())?;
    let code = error.get("code").and_then(Value::as_i64).map(|code| format!(" (code {code})"));
    let data = match error.get("data") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(format!(": {text}")),
        Some(other) => Some(format!(": {other}")),
    };
    let text = format!("{message}{}{}", code.unwrap_or_default(), data.unwrap_or_default());
    Some(text.chars().take(ERROR_TEXT).collect())
}

/// `Retry-After`, at most [`MAX_WAIT`]. The form with a date is not read: it needs two clocks that agree. A 0 is taken for a
/// second: who has just refused does not mean at once.
fn wait(header: &[u8]) -> Option<Duration> {
    let seconds: u64 = str::from_utf8(header).ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.max(1)).min(MAX_WAIT))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use alloy::rpc::json_rpc::Request;
    use axum::{Router, extract::Path, routing::post};
    use tokio::{net::TcpListener, time::timeout};

    use super::{super::LogFilter, *};
    use crate::config::LogIndex;

    #[tokio::test]
    async fn a_large_answer_is_read_in_its_turn_and_a_small_one_at_once() {
        let answer = async |Path(spaces): Path<usize>| {
            format!(r#"{{"jsonrpc":"2.0","id":1,"result":[{}]}}"#, " ".repeat(spaces))
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/{spaces}", post(answer))).await });
        let limit = Duration::from_mins(1);
        let readers = Readers::at_once(1);
        let node = |spaces: usize| {
            let url = SecretUrl::parse(&format!("http://{address}/{spaces}")).unwrap();
            Capped { readers: readers.clone(), ..Capped::new(url, limit, 4 * SMALL).unwrap() }
        };
        let packet = RequestPacket::Single(Request::new("eth_getLogs", Id::Number(1), ()).serialize().unwrap());
        let filter = LogFilter::default();
        let ask = async |node: Capped| {
            let answered = node.ask_for_logs(&packet, Gathering::new(&filter, LogIndex::Block)).await;
            answered.map(|replies| replies.place.is_some()).map_err(|error| error.to_string())
        };
        let turn = readers.turn(readers.begin()).await;
        assert_eq!(timeout(limit, ask(node(SMALL / 2))).await.unwrap(), Ok(true));
        let mut large = pin!(ask(node(2 * SMALL)));
        assert!(timeout(Duration::from_millis(500), large.as_mut()).await.is_err(), "it is another one's turn");
        drop(turn);
        assert_eq!(timeout(limit, large).await.unwrap(), Ok(true));
    }

    #[test]
    fn no_provider_can_ask_for_a_wait_beyond_a_minute() {
        let asked = |text: &str| wait(text.as_bytes());
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("18446744073709551615"), Some(MAX_WAIT));
        assert_eq!(asked("0"), Some(Duration::from_secs(1)));
        for unreadable in ["18446744073709551616", "-1", "soon", ""] {
            assert_eq!(asked(unreadable), None, "{unreadable}");
        }
    }

    #[test]
    fn a_refusal_is_told_in_the_words_of_the_error_in_it_and_a_page_by_its_beginning() {
        let told = |body: &str| {
            let Err(TransportError::Transport(TransportErrorKind::HttpErrorWithRetryAfter { error, retry_after })) =
                read(429, Some(b"7"), body.as_bytes(), true)
            else {
                panic!("{body}")
            };
            assert_eq!(retry_after, Duration::from_secs(7), "whatever the body says");
            error.body
        };
        let error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32005,"message":"slow down","data":{"see":"x"}}}"#;
        assert_eq!(told(error), r#"slow down (code -32005): {"see":"x"}"#);
        let batch = format!(r#"[{{"jsonrpc":"2.0","id":0,"result":"{}"}},{error}]"#, "f".repeat(2_000));
        assert_eq!(told(&batch), told(error));
        assert_eq!(told(r#"{"error":"slow down"}"#), "slow down");
        assert_eq!(told(r#"{"message":"slow down"}"#), "slow down");
        for page in ["", "[]", "<html>", r#"{"error":{}}"#, "7"] {
            assert_eq!(told(page), page);
        }
        let long = |length: usize| format!(r#"{{"error":"{}"}}"#, "x".repeat(length));
        assert_eq!((told(&long(1_000)).len(), told(&long(ERROR_PAGE)).len()), (ERROR_TEXT, ERROR_TEXT));
    }

    #[test]
    fn one_error_for_a_whole_batch_is_that_error() {
        let refusals = [
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32005,"message":"block range too large"}}"#,
            r#"[{"jsonrpc":"2.0","id":null,"error":{"code":-32005,"message":"block range too large"}}]"#,
        ];
        for text in refusals {
            let error = refused(serde_json::from_str(text).unwrap()).unwrap_err();
            assert!(error.as_error_resp().is_some_and(|payload| payload.message.contains("too large")), "{text}");
        }
        let partly =
            r#"[{"jsonrpc":"2.0","id":1,"result":1},{"jsonrpc":"2.0","id":2,"error":{"code":1,"message":""}}]"#;
        assert!(refused(serde_json::from_str(partly).unwrap()).is_ok());
    }
}

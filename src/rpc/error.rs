//! The one table that turns a provider's words into what the caller should do.
//!
//! Vendors reuse codes (-32005 is a range limit at one and a rate limit at another), so the message decides, and `data`
//! before the message. Lag and rate are tested before range, or "limit" would match everything. An unknown message is
//! transient; it is never "no logs" (F04).

use std::time::Duration;

use alloy::transports::{HttpError, RpcError as AlloyError, TransportError, TransportErrorKind};

use super::RpcError;

/// Longest piece of a provider's message that is repeated, characters.
const MESSAGE_CHARS: usize = 300;

/// The transport's own time limit passed while it waited for the answer.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no answer in time")]
pub(super) struct NoAnswerInTime;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    Behind,
    Throttled,
    TooLarge,
    Fatal,
    Transient,
}

/// Needle and class, tested in this order on the lower-cased message. Sources: what vendors
/// answered and documented from 2024 to 2026; the tests below hold their words.
const TABLE: &[(&str, Class)] = &[
    // The node lacks the block: ask later or elsewhere, never shrink.
    ("beyond current head", Class::Behind),
    ("beyond latest executed block", Class::Behind),
    ("after last accepted block", Class::Behind),
    ("cannot query unfinalized", Class::Behind),
    ("unknown block", Class::Behind),
    ("header not found", Class::Behind),
    ("block not found", Class::Behind),
    ("height must be less than or equal", Class::Behind),
    ("height is not available", Class::Behind),
    ("greater than latest", Class::Behind),
    ("not currently canonical", Class::Behind),
    ("blockoutofrange", Class::Behind),
    ("still syncing", Class::Behind),
    // Slow down: never shrink.
    ("rate limit", Class::Throttled),
    ("rate exceeded", Class::Throttled),
    ("too many requests", Class::Throttled),
    ("request limit reached", Class::Throttled),
    ("requests limited to", Class::Throttled),
    ("exceeded the quota", Class::Throttled),
    ("daily request count exceeded", Class::Throttled),
    ("under too much load", Class::Throttled),
    ("compute units", Class::Throttled),
    ("throughput", Class::Throttled),
    ("monthly capacity limit", Class::Throttled),
    // This endpoint will not serve it.
    ("archive requests require", Class::Fatal),
    ("pruned history unavailable", Class::Fatal),
    ("history has been pruned", Class::Fatal),
    // Ask for less.
    ("block range", Class::TooLarge),
    ("blocks range", Class::TooLarge),
    ("range limit", Class::TooLarge),
    ("limited to a", Class::TooLarge),
    ("ranges over", Class::TooLarge),
    ("range threshold", Class::TooLarge),
    ("max range", Class::TooLarge),
    ("range is too", Class::TooLarge),
    ("blocks distance", Class::TooLarge),
    ("too many blocks", Class::TooLarge),
    ("number of requested blocks", Class::TooLarge),
    ("limit the query to", Class::TooLarge),
    ("exceeds limit of", Class::TooLarge),
    ("query returned more than", Class::TooLarge),
    ("more than 20000 results", Class::TooLarge),
    ("logs returned", Class::TooLarge),
    ("too many results", Class::TooLarge),
    ("too many logs", Class::TooLarge),
    ("max results", Class::TooLarge),
    ("query exceeds", Class::TooLarge),
    ("query must be smaller", Class::TooLarge),
    ("response size", Class::TooLarge),
    ("response too large", Class::TooLarge),
    ("response is too big", Class::TooLarge),
    ("exceeded max allowed", Class::TooLarge),
    ("try paginating", Class::TooLarge),
    ("query timeout exceeded", Class::TooLarge),
];

/// What the caller should do about a failed request.
pub(super) fn classify(error: TransportError) -> RpcError {
    match error {
        AlloyError::ErrorResp(payload) => {
            let data = payload.data.as_ref().map(|data| data.get()).unwrap_or_default();
            let message = format!("{} (code {})", payload.message, payload.code);
            match payload.code {
                -32601 => RpcError::Fatal(shorten(&message)),
                _ => by_words(data)
                    .or_else(|| by_words(&message))
                    .map_or(RpcError::Transient(shorten(&message)), |class| of_class(class, &message, None)),
            }
        }
        AlloyError::NullResp => RpcError::Behind("the node answered null".into()),
        AlloyError::DeserError { err, .. } => RpcError::Invalid(shorten(&err.to_string())),
        AlloyError::Transport(TransportErrorKind::Custom(error)) if error.is::<NoAnswerInTime>() => RpcError::TimedOut,
        AlloyError::Transport(TransportErrorKind::HttpErrorWithRetryAfter { error, retry_after }) => {
            by_status(&error, Some(retry_after))
        }
        AlloyError::Transport(TransportErrorKind::HttpError(error)) => by_status(&error, None),
        AlloyError::Transport(other) => {
            let message = other.to_string();
            by_words(&message).map_or(RpcError::Transient(shorten(&message)), |class| of_class(class, &message, None))
        }
        other => RpcError::Transient(shorten(&other.to_string())),
    }
}

/// Whether a node says that its chain does not have the tag that was asked for, or that it does not know such a tag
/// (F15). Whatever else keeps it from answering says nothing about the chain.
pub(super) fn tag_is_unknown(error: &TransportError) -> bool {
    let AlloyError::ErrorResp(payload) = error else { return false };
    let message = payload.message.to_lowercase();
    let is_missing = ["unknown block", "not found"].iter().any(|words| message.contains(words));
    is_missing || payload.code == -32601 || (payload.code == -32602 && by_words(&message).is_none())
}

fn by_status(error: &HttpError, retry_after: Option<Duration>) -> RpcError {
    let message = format!("HTTP {}: {}", error.status, error.body);
    let class = match error.status {
        402 | 429 => Class::Throttled,
        413 => Class::TooLarge,
        401 | 403 | 404 => Class::Fatal,
        _ => by_words(&error.body).unwrap_or(Class::Transient),
    };
    of_class(class, &message, retry_after)
}

fn by_words(message: &str) -> Option<Class> {
    let message = message.to_lowercase();
    TABLE.iter().find(|(needle, _)| message.contains(needle)).map(|(_, class)| *class)
}

fn of_class(class: Class, message: &str, retry_after: Option<Duration>) -> RpcError {
    let message = shorten(message);
    match class {
        Class::Behind => RpcError::Behind(message),
        Class::Throttled => RpcError::Throttled { message, retry_after },
        Class::TooLarge => RpcError::TooLarge(message),
        Class::Fatal => RpcError::Fatal(message),
        Class::Transient => RpcError::Transient(message),
    }
}

/// Control characters and length come from outside and end here; what was hidden behind one is then no secret either.
fn shorten(message: &str) -> String {
    let line: String = message.chars().filter(|c| !c.is_control()).collect();
    crate::telemetry::scrub(&line).chars().take(MESSAGE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vendor_s_words_have_their_class() {
        let rows = [
            ("query returned more than 10000 results. Try with this block range [0x1, 0x2].", Class::TooLarge),
            (
                "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range",
                Class::TooLarge,
            ),
            ("eth_getLogs is limited to a 10,000 range", Class::TooLarge),
            ("block range is too wide", Class::TooLarge),
            ("maximum [from, to] blocks distance: 10000", Class::TooLarge),
            ("ranges over 10000 blocks are not supported on freetier", Class::TooLarge),
            ("requested too many blocks from 1 to 2, maximum is set to 2048", Class::TooLarge),
            ("Block range limit exceeded.", Class::TooLarge),
            ("Max range: 800", Class::TooLarge),
            ("exceed maximum block range: 50000", Class::TooLarge),
            ("Maximum allowed number of requested blocks is 1000", Class::TooLarge),
            ("More than 50000 logs returned", Class::TooLarge),
            ("logs matched by query exceeds limit of 10000", Class::TooLarge),
            ("query exceeds max results 20000, retry with the range 1-2", Class::TooLarge),
            ("Response is too big", Class::TooLarge),
            ("Too many logs requested. Max logs per response is 20000.", Class::TooLarge),
            ("block range extends beyond current head block", Class::Behind),
            ("requested block range [1, 2] is beyond latest executed block 1 (node is still syncing)", Class::Behind),
            ("BlockOutOfRangeError: block height is 5 but requested was 10000", Class::Behind),
            ("header not found", Class::Behind),
            ("project ID request rate exceeded", Class::Throttled),
            ("daily request count exceeded, request rate limited", Class::Throttled),
            ("Too many requests", Class::Throttled),
            ("Your app has exceeded its throughput limit", Class::Throttled),
            ("pruned history unavailable", Class::Fatal),
        ];
        for (message, class) in rows {
            assert_eq!(by_words(message), Some(class), "{message}");
        }
        assert_eq!(by_words("no backend is currently healthy to serve traffic"), None);
    }

    #[test]
    fn an_unknown_message_is_transient_and_short() {
        let error = TransportErrorKind::custom_str(&"x\n".repeat(1_000));
        let RpcError::Transient(text) = classify(error) else { panic!("not transient") };
        assert_eq!(text.len(), MESSAGE_CHARS);
    }

    #[test]
    fn a_secret_behind_a_control_character_is_still_one() {
        let error = TransportErrorKind::custom_str("at https:/\u{7}/host.example/v2/KEY, api\u{7}Key=KEY");
        let RpcError::Transient(text) = classify(error) else { panic!("not transient") };
        assert_eq!(text, "at https://host.example, apiKey=***");
    }

    #[test]
    fn foreign_text_in_an_invalid_answer_is_short() {
        let err = serde_json::from_str::<u8>(&format!("\"{}\"", "x".repeat(10_000))).unwrap_err();
        assert!(err.to_string().len() > MESSAGE_CHARS);
        let RpcError::Invalid(text) = classify(TransportError::deser_err(err, "")) else { panic!("not invalid") };
        assert_eq!(text.len(), MESSAGE_CHARS);
    }

    #[test]
    fn only_an_answer_about_the_tag_says_that_there_is_none() {
        let says = |code: i64, message: &str| {
            let text = format!(r#"{{"code":{code},"message":"{message}"}}"#);
            tag_is_unknown(&TransportError::ErrorResp(serde_json::from_str(&text).unwrap()))
        };
        assert!(says(-32601, "the method does not exist"));
        assert!(says(-39001, "Unknown block"));
        assert!(says(-32000, "finalized block not found"));
        assert!(says(-32602, "invalid argument 0: hex string without 0x prefix"));
        assert!(!says(-32000, "the node is still syncing"));
        assert!(!says(-32602, "rate limit"));
        assert!(!tag_is_unknown(&TransportErrorKind::http_error_with_retry_after(401, "not found".into(), None)));
    }

    #[test]
    fn a_wait_that_the_provider_asks_for_is_passed_on() {
        let wait = Duration::from_secs(7);
        let error = TransportErrorKind::http_error_with_retry_after(429, "slow down".into(), Some(wait));
        assert!(matches!(classify(error), RpcError::Throttled { retry_after: Some(asked), .. } if asked == wait));
    }
}

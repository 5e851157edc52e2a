//! From a failed request to what the caller should do.
//!
//! Words decide first, those of `data` before those of the message ([`words`]); then the code, where it means one thing
//! only. Words that nobody knows may pass, or may say that it was too much; they are never "no logs" (F04).

use std::{borrow::Cow, time::Duration};

use alloy::{
    rpc::json_rpc::ErrorPayload,
    transports::{HttpError, RpcError as AlloyError, TransportError, TransportErrorKind},
};

use super::{
    Cap, RpcError,
    words::{self, Meaning, Understood},
};

/// Longest piece of a provider's message that is repeated, characters.
const MESSAGE_CHARS: usize = 300;
/// Longest `data` that is decoded, bytes; of a longer one the beginning is read as it stands.
const DATA_BYTES: usize = 4_000;

/// The transport's own time limit passed while it waited for the answer.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no answer in time")]
pub(super) struct NoAnswerInTime;

/// Nobody takes connections there, or nobody who speaks JSON-RPC over HTTP; with what was seen instead.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NobodyThere(pub(super) String);

/// Codes that mean one thing, for messages whose words nobody knows.
const CODES: &[(i64, Meaning)] = &[
    // JSON-RPC: no such method.
    (-32601, Meaning::Fatal),
    // Besu: unknown block.
    (-39001, Meaning::Behind),
    // EIP-4444: pruned history.
    (4444, Meaning::Pruned),
    // QuickNode: requests a second.
    (-32007, Meaning::Throttled),
    (-32009, Meaning::Throttled),
    // Cloudflare: requests a second.
    (1015, Meaning::Throttled),
    // QuickNode: blocks a request.
    (-32614, Meaning::Blocks),
    (-32615, Meaning::Blocks),
    // eRPC and PublicNode: blocks a request.
    (-32012, Meaning::Blocks),
    (-32701, Meaning::Blocks),
];

/// What the caller should do about a failed request.
pub(super) fn classify(error: TransportError) -> RpcError {
    match error {
        AlloyError::ErrorResp(payload) => by_payload(&payload),
        AlloyError::NullResp => RpcError::Behind("the node answered null".into()),
        AlloyError::DeserError { err, .. } => RpcError::Invalid(shorten(&err.to_string())),
        AlloyError::Transport(TransportErrorKind::Custom(error)) if error.is::<NoAnswerInTime>() => RpcError::TimedOut,
        AlloyError::Transport(TransportErrorKind::HttpErrorWithRetryAfter { error, retry_after }) => {
            by_status(&error, Some(retry_after))
        }
        AlloyError::Transport(TransportErrorKind::HttpError(error)) => by_status(&error, None),
        // The wire's own words, not a node's: they are never unknown, whatever they are.
        AlloyError::Transport(other) => {
            let message = other.to_string();
            Said { texts: &[&message], message: &message, retry_after: None }
                .read()
                .unwrap_or_else(|| RpcError::Transient(shorten(&message)))
        }
        other => RpcError::Transient(shorten(&other.to_string())),
    }
}

/// The same of a request for a range, whose answer may be more than a socket takes: that ends it, as an outage does.
pub(super) fn classify_of_range(error: TransportError) -> RpcError {
    match error {
        AlloyError::Transport(TransportErrorKind::BackendGone) => {
            RpcError::Unclear { message: "the WebSocket ended before the answer".into(), is_known: true }
        }
        other => classify(other),
    }
}

/// An answer that is JSON, and not what was asked for.
pub(super) fn unreadable(error: serde_json::Error) -> RpcError {
    classify(TransportError::deser_err(error, ""))
}

/// Whether a failure says that there is no JSON-RPC over HTTP at an address, and not that a node there is unwell: no
/// connection, a page instead of an answer, or a status that servers of something else have for a POST.
pub(super) fn has_no_http(error: &TransportError) -> bool {
    match error {
        AlloyError::Transport(TransportErrorKind::Custom(error)) => error.is::<NobodyThere>(),
        AlloyError::Transport(TransportErrorKind::HttpError(error)) => {
            matches!(error.status, 300..=399 | 400 | 404 | 405 | 426 | 501)
        }
        _ => false,
    }
}

/// Whether a node says that its chain does not have the tag that was asked for, or that it does not know such a tag
/// (F15). Whatever else keeps it from answering says nothing about the chain.
pub(super) fn tag_is_unknown(error: &TransportError) -> bool {
    let AlloyError::ErrorResp(payload) = error else { return false };
    let message = payload.message.to_lowercase();
    let is_missing = ["unknown block", "not found"].iter().any(|words| message.contains(words));
    is_missing || payload.code == -32601 || (payload.code == -32602 && words::read(&[&message]).is_none())
}

fn by_payload(payload: &ErrorPayload) -> RpcError {
    let raw = payload.data.as_ref().map(|data| data.get()).unwrap_or_default();
    let prose =
        Some(raw).filter(|raw| raw.len() <= DATA_BYTES).and_then(|raw| serde_json::from_str::<String>(raw).ok());
    let message = match &prose {
        Some(prose) => format!("{} (code {}): {prose}", payload.message, payload.code),
        None => format!("{} (code {})", payload.message, payload.code),
    };
    let data: Cow<'_, str> = prose.map_or(raw.into(), Into::into);
    let said = Said { texts: &[&data, &payload.message], message: &message, retry_after: None };
    let by_code = || {
        let (_, meaning) = CODES.iter().find(|(code, _)| *code == payload.code)?;
        Some(said.tells(Understood { meaning: *meaning, number: None }))
    };
    said.read().or_else(by_code).unwrap_or_else(|| said.unknown())
}

fn by_status(error: &HttpError, retry_after: Option<Duration>) -> RpcError {
    let message = format!("HTTP {}: {}", error.status, error.body);
    let said = Said { texts: &[&error.body], message: &message, retry_after };
    let tells = |meaning| said.tells(Understood { meaning, number: None });
    match error.status {
        402 | 429 => tells(Meaning::Throttled),
        401 | 403 | 404 => tells(Meaning::Fatal),
        // The status says "less", the body perhaps of what.
        413 => said.read().filter(RpcError::asks_for_less).unwrap_or_else(|| tells(Meaning::Density)),
        _ if error.body.trim().is_empty() => tells(Meaning::Transient),
        _ => said.read().unwrap_or_else(|| said.unknown()),
    }
}

/// What a provider said instead of an answer.
struct Said<'a> {
    /// Its texts, the most telling first.
    texts: &'a [&'a str],
    /// What is repeated of them.
    message: &'a str,
    /// `Retry-After`.
    retry_after: Option<Duration>,
}

impl Said<'_> {
    /// What its words tell, where somebody knows them.
    fn read(&self) -> Option<RpcError> {
        words::read(self.texts).map(|understood| self.tells(understood))
    }

    fn tells(&self, Understood { meaning, number }: Understood) -> RpcError {
        let message = shorten(self.message);
        let too_large =
            |message, cap| RpcError::TooLarge { message, cap, suggested: words::suggested_range(self.texts) };
        match meaning {
            Meaning::Behind => RpcError::Behind(message),
            Meaning::Pruned => RpcError::Pruned(message),
            Meaning::Throttled => RpcError::Throttled { message, retry_after: self.retry_after },
            Meaning::Addresses => {
                RpcError::TooManyAddresses { message, most: number.and_then(|number| usize::try_from(number).ok()) }
            }
            Meaning::Blocks => too_large(message, Cap::Blocks(number)),
            Meaning::Density => too_large(message, Cap::Density),
            Meaning::Fatal => RpcError::Fatal(message),
            Meaning::Unclear => RpcError::Unclear { message, is_known: true },
            Meaning::Transient => RpcError::Transient(message),
        }
    }

    fn unknown(&self) -> RpcError {
        RpcError::Unclear { message: shorten(self.message), is_known: false }
    }
}

/// Control characters and length come from outside and end here; what was hidden behind one is then no secret either.
fn shorten(message: &str) -> String {
    let line: String = message.chars().filter(|c| !c.is_control()).collect();
    crate::telemetry::scrub(&line).chars().take(MESSAGE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::BlockRange;

    fn refusal(code: i64, message: &str, data: &Value) -> RpcError {
        let payload = json!({ "code": code, "message": message, "data": data });
        classify(TransportError::ErrorResp(serde_json::from_value(payload).unwrap()))
    }

    #[test]
    fn words_come_before_codes_and_those_of_data_before_those_of_the_message() {
        let throttled = refusal(-32601, "rate limit", &Value::Null);
        assert!(matches!(throttled, RpcError::Throttled { .. }), "{throttled:?}");
        let capped = refusal(-32602, "invalid params", &json!("Block range 20 exceeds the maximum of 10 blocks"));
        assert!(matches!(&capped, RpcError::TooLarge { cap: Cap::Blocks(Some(10)), .. }), "{capped:?}");
        assert!(capped.to_string().contains("invalid params (code -32602): Block range 20"), "{capped}");
        let nested = refusal(-32603, "failed", &json!({ "message": "block range is too wide" }));
        assert!(matches!(nested, RpcError::TooLarge { cap: Cap::Blocks(None), .. }), "{nested:?}");
        let huge = refusal(-32602, "max range: 7", &json!("x".repeat(10 * DATA_BYTES)));
        assert!(matches!(huge, RpcError::TooLarge { cap: Cap::Blocks(Some(7)), .. }), "{huge:?}");
    }

    #[test]
    fn a_code_tells_what_unknown_words_do_not() {
        for (code, meaning) in CODES {
            let told = refusal(*code, "nobody knows these words", &Value::Null);
            let right = match meaning {
                Meaning::Fatal => matches!(told, RpcError::Fatal(_)),
                Meaning::Behind => matches!(told, RpcError::Behind(_)),
                Meaning::Pruned => matches!(told, RpcError::Pruned(_)),
                Meaning::Throttled => matches!(told, RpcError::Throttled { .. }),
                _ => matches!(told, RpcError::TooLarge { cap: Cap::Blocks(None), .. }),
            };
            assert!(right, "{code}: {told:?}");
        }
    }

    #[test]
    fn a_suggested_range_is_kept_beside_the_words() {
        let data = json!({ "from": "0x10", "to": "0x1f", "limit": 10_000 });
        let told = refusal(-32005, "query returned more than 10000 results", &data);
        let suggested = Some(BlockRange { from: 16, to: 31 });
        let right =
            matches!(&told, RpcError::TooLarge { cap: Cap::Density, suggested: range, .. } if *range == suggested);
        assert!(right, "{told:?}");
    }

    #[test]
    fn words_that_nobody_knows_are_unclear_and_a_lost_connection_is_not() {
        let unknown = |error: &RpcError| matches!(error, RpcError::Unclear { is_known: false, .. });
        let http =
            |status, body: &str| classify(TransportErrorKind::http_error_with_retry_after(status, body.into(), None));
        assert!(unknown(&refusal(-32000, "the hamster is asleep", &Value::Null)));
        assert!(unknown(&http(500, "the hamster is asleep")));
        assert!(!unknown(&refusal(-32000, "no backend is currently healthy to serve traffic", &Value::Null)));
        assert!(matches!(http(503, " \n"), RpcError::Transient(_)));
        assert!(matches!(http(502, "<html><h1>502 Bad Gateway</h1>"), RpcError::Transient(_)));
        assert!(matches!(classify(TransportErrorKind::custom_str("connection reset")), RpcError::Transient(_)));
        assert!(matches!(classify(TransportErrorKind::backend_gone()), RpcError::Transient(_)));
        let of_range = classify_of_range(TransportErrorKind::backend_gone());
        assert!(matches!(of_range, RpcError::Unclear { is_known: true, .. }), "by its answer, perhaps");
        assert!(matches!(classify_of_range(TransportErrorKind::custom_str("reset")), RpcError::Transient(_)));
    }

    #[test]
    fn status_413_asks_for_less_and_its_body_says_of_what() {
        let http = |body: &str| classify(TransportErrorKind::http_error_with_retry_after(413, body.into(), None));
        let quicknode = r#"{"error":{"code":-32615,"message":"eth_getLogs is limited to a 5 range, upgrade from discover
            plan at https://dashboard.quicknode.com/billing/plan"}}"#;
        assert!(matches!(http(quicknode), RpcError::TooLarge { cap: Cap::Blocks(Some(5)), .. }));
        assert!(matches!(http("specify less number of addresses"), RpcError::TooManyAddresses { most: None, .. }));
        for body in ["", "rate limit", "the hamster is asleep"] {
            assert!(matches!(http(body), RpcError::TooLarge { cap: Cap::Density, .. }), "{body}");
        }
    }

    #[test]
    fn only_who_answers_otherwise_than_a_node_says_that_there_is_no_http() {
        let http = |status| TransportErrorKind::http_error_with_retry_after(status, String::new(), None);
        for status in [301, 400, 404, 405, 426, 501] {
            assert!(has_no_http(&http(status)), "{status}");
        }
        for status in [401, 403, 408, 429, 500, 502, 503, 504] {
            assert!(!has_no_http(&http(status)), "{status}");
        }
        let nobody = TransportErrorKind::custom(NobodyThere("connection refused".to_owned()));
        assert!(
            has_no_http(&nobody) && matches!(classify(nobody), RpcError::Transient(text) if text.contains("refused"))
        );
        assert!(!has_no_http(&TransportErrorKind::custom(NoAnswerInTime)));
        assert!(!has_no_http(&TransportErrorKind::custom_str("connection reset")));
    }

    proptest! {
        #[test]
        fn whatever_a_node_says_becomes_an_error_of_one_short_line(
            code: i64, message in ".{0,400}", data in proptest::option::of(".{0,400}"), status: u16
        ) {
            let http = TransportErrorKind::http_error_with_retry_after(status, message.clone(), None);
            for error in [refusal(code, &message, &json!(data)), classify(http)] {
                let text = error.to_string();
                prop_assert!(!text.contains(char::is_control), "{:?}", text);
                prop_assert!(text.chars().count() <= MESSAGE_CHARS + 30, "{}", text);
            }
        }
    }

    #[test]
    fn what_the_wire_says_is_transient_and_short() {
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

//! What nodes say over HTTP when they do not serve, and what the client makes of it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what fails here fails the test")]

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{StatusCode, header::RETRY_AFTER},
    response::{IntoResponse as _, Response},
    routing::post,
};
use chaintap::{
    config::{Limits, SecretUrl},
    domain::BlockRange,
    rpc::{At, ChainSource as _, Endpoints, LogFilter, RpcError},
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::sleep};

const CHAIN: u64 = 1;
const RANGE: BlockRange = BlockRange { from: 1, to: 100 };
const MAX_BYTES: usize = 1 << 20;

/// A node that tells its chain id and answers everything else with `answer`, after `pause`.
async fn node(pause: Duration, answer: impl Fn(&Value) -> Response + Send + Sync + 'static) -> Endpoints {
    let answer = Arc::new(answer);
    let serve = move |body: Bytes| {
        let answer = answer.clone();
        async move {
            let request: Value = serde_json::from_slice(&body).unwrap();
            if request["method"] == "eth_chainId" {
                return json!({"jsonrpc": "2.0", "id": request["id"], "result": "0x1"}).to_string().into_response();
            }
            sleep(pause).await;
            answer(&request)
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = SecretUrl::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(post(serve))).await });
    let limits = Limits { rpc_timeout: Duration::from_secs(2), rpc_max_bytes: MAX_BYTES, ..Limits::default() };
    Endpoints::new(CHAIN, vec![url], limits)
}

async fn refusal_of_a_range(answer: impl Fn(&Value) -> Response + Send + Sync + 'static) -> RpcError {
    node(Duration::ZERO, answer).await.range_logs(RANGE, &LogFilter::default()).await.unwrap_err()
}

fn error(id: &Value, code: i64, message: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
}

#[tokio::test]
async fn a_batch_that_is_rate_limited_is_throttled_for_as_long_as_the_node_says_but_at_most_a_minute() {
    for (said, expected) in [("7", 7), ("18446744073709551615", 60)] {
        let refused = refusal_of_a_range(move |_| {
            let body = error(&Value::Null, -32005, "block range too large").to_string();
            (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, said)], body).into_response()
        });
        let refused = refused.await;
        let RpcError::Throttled { retry_after: Some(wait), .. } = &refused else { panic!("{refused:?}") };
        // A moment of it is over.
        let said = Duration::from_secs(expected);
        assert!(*wait <= said && *wait + Duration::from_secs(1) > said, "{wait:?}");
    }
}

#[tokio::test]
async fn one_error_for_a_whole_batch_is_taken_by_its_words() {
    type Right = fn(&RpcError) -> bool;
    let rows: [(&str, Right); 3] = [
        ("block range too large", |error| matches!(error, RpcError::TooLarge { .. })),
        ("exceeded its throughput limit", |error| matches!(error, RpcError::Throttled { .. })),
        (
            "something else",
            |error| matches!(error, RpcError::Unclear { message, is_known: false } if message.contains("something else")),
        ),
    ];
    for (words, right) in rows {
        let alone = refusal_of_a_range(move |_| error(&Value::Null, -32005, words).to_string().into_response()).await;
        assert!(right(&alone), "{alone:?}");
        let named = move |request: &Value| error(&request[0]["id"], -32005, words).to_string().into_response();
        let named = refusal_of_a_range(named).await;
        assert!(right(&named), "{named:?}");
        let listed =
            refusal_of_a_range(move |_| json!([error(&Value::Null, -32005, words)]).to_string().into_response());
        let listed = listed.await;
        assert!(right(&listed), "{listed:?}");
    }
}

#[tokio::test]
async fn a_request_that_is_too_large_by_its_status_asks_for_less() {
    let refused = refusal_of_a_range(|_| (StatusCode::PAYLOAD_TOO_LARGE, "[]").into_response()).await;
    assert!(matches!(refused, RpcError::TooLarge { .. }), "{refused:?}");
}

#[tokio::test]
async fn an_answer_beyond_the_limit_of_size_asks_for_less_whether_or_not_it_says_how_large_it_is() {
    let says_so = refusal_of_a_range(|_| vec![b' '; MAX_BYTES + 1].into_response()).await;
    let in_chunks = refusal_of_a_range(|_| {
        let chunks = (0..5).map(|_| Ok::<_, Infallible>(Bytes::from(vec![b' '; MAX_BYTES / 4])));
        Body::from_stream(stream::iter(chunks)).into_response()
    });
    for refused in [says_so, in_chunks.await] {
        let right = matches!(&refused, RpcError::TooLarge { message, .. } if message.contains("too big"));
        assert!(right, "{refused:?}");
    }
}

#[tokio::test]
async fn a_node_that_takes_too_long_timed_out() {
    let slow = node(Duration::from_mins(1), |_| StatusCode::OK.into_response()).await;
    // One block: of several it would be asked for less.
    let error = slow.range_logs(BlockRange::single(1), &LogFilter::default()).await.unwrap_err();
    assert!(matches!(error, RpcError::TimedOut), "{error:?}");
    assert_eq!((error.kind(), slow.endpoints()[0].errors), ("timeout", 1));
}

#[tokio::test]
async fn an_answer_of_another_kind_is_invalid_and_quoted_in_brief() {
    let strange = node(Duration::ZERO, |request| {
        json!({"jsonrpc": "2.0", "id": request["id"], "result": "x".repeat(100_000)}).to_string().into_response()
    });
    let error = strange.await.header(At::Latest).await.unwrap_err();
    assert!(matches!(&error, RpcError::Invalid(text) if text.len() <= 300), "{error:?}");
}

#[tokio::test]
async fn a_tag_is_missing_only_where_the_node_says_so() {
    let rows = [
        (-32601, "the method eth_getBlockByNumber does not exist", true),
        (-32602, "invalid argument 0: hex string without 0x prefix", true),
        (-39001, "Unknown block", true),
        (-32000, "internal error", false),
        (-32000, "the node is still syncing", false),
        (-32005, "rate limit", false),
    ];
    for (code, message, missing) in rows {
        let node =
            node(Duration::ZERO, move |request| error(&request["id"], code, message).to_string().into_response()).await;
        let answer = node.header(At::Finalized).await;
        assert_eq!(matches!(answer, Ok(None)), missing, "{message}: {answer:?}");
    }
}

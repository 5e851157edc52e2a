//! An endpoint that has dropped old blocks: they are asked of the one that has them, and everything else stays where it was.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what fails here fails the test")]

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use alloy::primitives::{U64, keccak256};
use axum::{Router, body::Bytes, routing::post};
use chaintap::{
    config::{Limits, SecretUrl},
    devchain::Options,
    domain::BlockRange,
    rpc::{At, ChainSource as _, Endpoints, LogFilter},
};
use serde_json::{Value, json};
use support::devchain::{Devchain, Rpc, still};
use tokio::net::TcpListener;

const HEAD: u64 = 4_000;
/// The oldest block that the pruned endpoint has.
const OLDEST: u64 = 2_500;

/// How an endpoint shows that it has dropped a block.
#[derive(Clone, Copy)]
enum Shows {
    /// An error for its logs.
    Words(&'static str),
    /// No header.
    Null,
}

impl Shows {
    /// What it answers to a call, where that is about a block that it has dropped.
    fn instead(self, call: &Value) -> Option<Value> {
        let number = |of: &Value| serde_json::from_value::<U64>(of.clone()).ok().map(|number| number.to::<u64>());
        let is_dropped = |of: &Value| number(of).is_some_and(|number| number < OLDEST);
        let method = call["method"].as_str().unwrap();
        match self {
            Self::Words(message) if method == "eth_getLogs" && is_dropped(&call["params"][0]["fromBlock"]) => {
                let error = json!({ "code": -32000, "message": message });
                Some(json!({ "jsonrpc": "2.0", "id": call["id"], "error": error }))
            }
            Self::Null if method == "eth_getBlockByNumber" && is_dropped(&call["params"][0]) => {
                Some(json!({ "jsonrpc": "2.0", "id": call["id"], "result": null }))
            }
            _ => None,
        }
    }
}

/// A node without old blocks, before a good one; and how many requests it could not serve.
async fn pruned(good: Rpc, shows: Shows) -> (String, Arc<AtomicUsize>) {
    let refused = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&refused);
    let answer = move |body: Bytes| {
        let (good, counted) = (good.clone(), Arc::clone(&counted));
        async move {
            let request: Value = serde_json::from_slice(&body).unwrap();
            let mut reply = good.reply(&request).await;
            let calls = request.as_array().cloned().unwrap_or_else(|| vec![request]);
            let instead: Vec<Value> = calls.iter().filter_map(|call| shows.instead(call)).collect();
            counted.fetch_add(usize::from(!instead.is_empty()), Ordering::Relaxed);
            for answer in instead {
                let place = match &mut reply {
                    Value::Array(all) => all.iter_mut().find(|one| one["id"] == answer["id"]).unwrap(),
                    one => one,
                };
                *place = answer;
            }
            reply.to_string()
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(post(answer))).await });
    (url, refused)
}

#[tokio::test]
async fn old_blocks_are_asked_of_an_endpoint_that_has_them_and_new_ones_stay_with_the_preferred_one() {
    let chain = Devchain::start(Options { logs_per_block: 1, ..still(HEAD) }).await;
    let filter = LogFilter { addresses: vec![], topics: vec![keccak256("Transfer(address,address,uint256)")] };
    for shows in [
        Shows::Words("pruned history unavailable"),
        Shows::Words("missing trie node 0x1a2b (path ) state 0x3c4d is not available"),
        Shows::Null,
    ] {
        let (url, refused) = pruned(chain.rpc(), shows).await;
        // Under another host, for names are those of hosts.
        let urls = [url, format!("http://localhost:{}", chain.address.port())];
        let urls = urls.iter().map(|url| SecretUrl::parse(url).unwrap()).collect();
        let endpoints = Endpoints::new(31_337, urls, Limits::default());
        assert_eq!(endpoints.header(At::Latest).await.unwrap().unwrap().number, HEAD);
        let mut from = 1;
        while from <= HEAD {
            let range = BlockRange { from, to: HEAD.min(from + 49) };
            let answer = endpoints.range_logs(range, &filter).await.unwrap();
            assert_eq!(answer.first.number, from);
            from = answer.last.number + 1;
        }
        let refused = refused.load(Ordering::Relaxed);
        assert!((1..=12).contains(&refused), "{refused} of 50 ranges that it does not have");
        let [preferred, archive] = endpoints.endpoints().try_into().unwrap();
        assert_eq!((preferred.errors, &preferred.aside, archive.errors), (0, &None, 0), "{preferred:?}");
        assert!(preferred.asked >= 20 && archive.asked >= 50, "{} and {}", preferred.asked, archive.asked);
        // It is no failure where there is nobody else, either.
        endpoints.eject(&archive.name, "a test");
        for _ in 0..5 {
            assert!(endpoints.range_logs(BlockRange { from: 1, to: 9 }, &filter).await.is_err());
        }
        assert_eq!(
            endpoints.range_logs(BlockRange { from: 3_900, to: 3_909 }, &filter).await.unwrap().last.number,
            3_909
        );
        assert_eq!(endpoints.endpoints()[0].errors, 0);
    }
}

//! The whole listener as a process, on embedded parts: from a new head to a line on standard output.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::{collections::BTreeSet, time::Duration};

use chaintap::devchain::Options;
use serde_json::json;
use support::{
    chaintap::{Settings, ids},
    devchain::{Devchain, still},
    ledger::{assert_counts, folded},
    process::eventually,
};

const SOON: Duration = Duration::from_secs(30);

/// A listener of this chain with the embedded store and no token list.
fn listener_of(chain: &Devchain) -> Settings {
    Settings::default().set("CHAIN_ID", 31_337).set("WEB3_PROVIDER", chain.ws_url())
}

#[tokio::test]
async fn every_transfer_from_the_start_block_on_is_delivered_once_and_in_order() {
    let chain = Devchain::start(Options { logs_per_block: 10, ..still(150) }).await;
    let settings = listener_of(&chain).set("START_BLOCK", 1).arg("--until").arg(150);
    let (code, messages, log) = settings.start().end(SOON).await;
    assert_eq!(code, 0, "{log}");
    let delivered = ids(&messages);
    let set: BTreeSet<String> = delivered.iter().cloned().collect();
    assert_eq!(set, chain.transfers(1, 150).await);
    assert_eq!(set.len(), delivered.len(), "nothing twice");
}

#[tokio::test]
async fn r02_new_heads_are_delivered_one_by_one() {
    let chain = Devchain::start(Options { logs_per_block: 4, ..still(100) }).await;
    let listener = listener_of(&chain).start();
    listener.wait_watermark(100, SOON).await;
    for number in 101..=115 {
        chain.mine(1).await;
        listener.wait_watermark(number, SOON).await;
    }
    let health = listener.health().await;
    assert_eq!((&health["processed"], &health["gap"]), (&115.into(), &0.into()));
    let (code, messages, _) = listener.stop().await;
    assert_eq!(code, 0);
    let delivered = ids(&messages);
    assert_eq!(delivered.iter().cloned().collect::<BTreeSet<_>>(), chain.transfers(100, 115).await);
    assert_eq!(delivered.len(), chain.transfers(100, 115).await.len());
}

#[tokio::test]
async fn a_restart_goes_on_where_it_stopped_without_losing_or_repeating_a_block() {
    let chain = Devchain::start(Options { logs_per_block: 4, ..still(100) }).await;
    let settings = listener_of(&chain);
    let mut delivered = Vec::new();
    for round in 1..=3u64 {
        let listener = settings.start();
        listener.wait_watermark(100 + 3 * (round - 1), SOON).await;
        chain.mine(3).await;
        listener.wait_watermark(100 + 3 * round, SOON).await;
        let (code, messages, _) = listener.stop().await;
        assert_eq!(code, 0);
        delivered.extend(ids(&messages));
    }
    let set: BTreeSet<String> = delivered.iter().cloned().collect();
    assert_eq!(set, chain.transfers(100, 109).await);
    assert_eq!(set.len(), delivered.len(), "nothing twice");
}

#[tokio::test]
async fn r03_a_gap_of_three_is_filled_in_order_before_the_new_block() {
    let chain = Devchain::start(Options { logs_per_block: 4, ..still(100) }).await;
    let settings = listener_of(&chain);
    let listener = settings.start();
    listener.wait_watermark(100, SOON).await;
    assert_eq!(listener.stop().await.0, 0);
    chain.mine(4).await;
    let listener = settings.start();
    listener.wait_watermark(104, SOON).await;
    let (_, messages, _) = listener.stop().await;
    let blocks: Vec<u64> = messages.iter().map(|message| message["blockNumber"].as_u64().unwrap()).collect();
    assert!(blocks.is_sorted(), "{blocks:?}");
    assert_eq!(ids(&messages).into_iter().collect::<BTreeSet<_>>(), chain.transfers(101, 104).await);
}

#[tokio::test]
async fn r04_behind_a_gap_of_nineteen_the_head_comes_first() {
    let chain = Devchain::start(Options { logs_per_block: 4, ..still(100) }).await;
    let settings = listener_of(&chain);
    let listener = settings.start();
    listener.wait_watermark(100, SOON).await;
    assert_eq!(listener.stop().await.0, 0);
    chain.mine(20).await;
    let listener = settings.start();
    listener.wait_watermark(120, SOON).await;
    let (_, messages, _) = listener.stop().await;
    let blocks: Vec<u64> = messages.iter().map(|message| message["blockNumber"].as_u64().unwrap()).collect();
    assert_eq!(blocks.first(), Some(&120), "{blocks:?}");
    assert_eq!(ids(&messages).into_iter().collect::<BTreeSet<_>>(), chain.transfers(101, 120).await);
}

#[tokio::test]
async fn what_a_reorganisation_took_away_is_taken_back_before_its_successors_are_sent() {
    let chain = Devchain::start(Options { logs_per_block: 4, ..still(100) }).await;
    let listener = listener_of(&chain).start();
    listener.wait_watermark(100, SOON).await;
    chain.mine(3).await;
    listener.wait_watermark(103, SOON).await;
    let orphaned = chain.transfers(102, 103).await;
    let before = listener.messages().len();
    chain.rpc().call("devchain_reorg", json!([2])).await;
    chain.mine(1).await;
    let head = chain.head().await;
    let unwound = || async {
        let health = listener.health().await;
        health["reorgs"] == 1 && health["watermark"] == head && health["status"] != "fail"
    };
    eventually("it is unwound", SOON, unwound).await;
    let (code, messages, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    let after = &messages[before..];
    let (retracted, applied) = after.split_at(orphaned.len());
    assert_eq!(ids(retracted).into_iter().collect::<BTreeSet<_>>(), orphaned);
    assert!(retracted.iter().all(|message| message["eventType"] == "TransferRetracted"), "{after:?}");
    assert!(retracted.iter().all(|message| !message["events"]["Transfer"].is_null()), "{after:?}");
    assert!(applied.iter().all(|message| message["eventType"] == "Transfer"), "{after:?}");
    assert_counts(&folded(&messages), &chain.transfers(100, head).await);
}

#[tokio::test]
async fn without_configuration_it_says_what_is_missing_and_exits_78() {
    let (code, out, log) = Settings::default().output(&["run"]).await;
    assert_eq!(code, 78, "{log}");
    assert!(out.is_empty());
    assert!(log.contains("CHAIN_ID") && log.contains("WEB3_PROVIDER"), "{log}");
}

#[tokio::test]
async fn a_node_of_another_chain_is_refused() {
    let chain = Devchain::start(still(10)).await;
    let settings = listener_of(&chain).set("CHAIN_ID", 8453);
    let (code, messages, log) = settings.start().end(SOON).await;
    assert_eq!(code, 78, "{log}");
    assert!(messages.is_empty());
    assert!(log.contains("31337") && log.contains("8453"), "{log}");
}

//! The commands that look back and mend (`audit`, `replay`, `reset`, `resume`), as an operator uses them: the real binary,
//! a real Redis, a chain that is reorganised. What the queue got is judged by the consumer's fold.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what fails here fails the test")]

mod support;

use std::{collections::BTreeSet, time::Duration};

use chaintap::devchain::{Options, token_documents};
use serde_json::{Value, json};
use support::{
    chaintap::{Listener, Settings, ids},
    devchain::{Devchain, still},
    faulty_node::{Fault, FaultyNode},
    ledger::{assert_counts, folded},
    message::well_formed,
    process::eventually,
    redis::RedisServer,
};

const SOON: Duration = Duration::from_mins(1);
/// The head at the start, the first block that is delivered, and the highest one that is final.
const HEAD: u64 = 130;
const FIRST: u64 = 101;
const FINAL: u64 = 122;

/// Chain 1, final after eight blocks.
const CHAINS: &str = r#"
[[chain]]
id = 1
name = "ethereum_mainnet"
redis_db = 0
block_time = "1s"
finality_depth = 8
batch_blocks = 10
parallel = 2
spacing = "50ms"
"#;

struct Deployment {
    server: RedisServer,
    chain: Devchain,
    settings: Settings,
}

fn options() -> Options {
    Options { chain_id: Some(1), logs_per_block: 4, finalized_depth: 8, ..still(HEAD) }
}

impl Deployment {
    /// A chain and where its listener is to keep its state; nothing runs yet.
    async fn new() -> Self {
        let (server, chain) = tokio::join!(RedisServer::start(), Devchain::start(options()));
        let settings = Settings::default()
            .set("CHAIN_ID", 1)
            .set("WEB3_PROVIDER", format!("{},{}", chain.rpc().url, chain.endpoint("other").ws_url()))
            .set("REDIS_URL", server.url(0))
            .set("START_BLOCK", FIRST)
            .file("config/chains.toml", CHAINS);
        Self { server, chain, settings }
    }

    /// A listener that has delivered everything, and sealed what is final.
    async fn caught_up(&self) -> Listener {
        let listener = self.settings.start();
        listener.wait_watermark(HEAD, SOON).await;
        let sealed = || async { self.progress("sealed").await.as_deref() == Some(&FINAL.to_string()) };
        eventually("what is final is sealed", SOON, sealed).await;
        listener
    }

    async fn progress(&self, field: &str) -> Option<String> {
        self.server.hash(0, "chain:1:progress").await.get(field).cloned()
    }

    async fn transfers(&self, from: u64, to: u64) -> BTreeSet<String> {
        self.chain.transfers(from, to).await
    }

    /// Runs a command that must end with this code; standard output and error.
    async fn ends(&self, code: i32, arguments: &[&str]) -> (String, String) {
        let (ended, out, log) = self.settings.output(arguments).await;
        assert_eq!(ended, code, "{arguments:?}: {out}\n{log}");
        (out, log)
    }
}

#[track_caller]
fn assert_says(text: &str, expected: &[&str]) {
    for part in expected {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[tokio::test]
async fn replay_delivers_just_these_blocks_again_with_higher_versions() {
    let deployment = Deployment::new().await;
    let listener = deployment.caught_up().await;
    let before = listener.messages();
    let replay = ["replay", "--from", "110", "--to", "115"];
    // Nobody can be asked here, and a script must not take that for done.
    for (code, arguments) in [(64, &replay[..]), (0, &[&replay[..], &["--dry-run"]].concat())] {
        let (out, _) = deployment.ends(code, arguments).await;
        assert_says(&out, &["blocks 110 to 115 will be delivered again", "nothing was changed"]);
    }
    assert_eq!(deployment.progress("watermark").await.as_deref(), Some("130"));
    for (from, to) in [(110, 115), (126, HEAD)] {
        let earlier = listener.messages().len();
        let expected = deployment.transfers(from, to).await;
        let (from, to) = (from.to_string(), to.to_string());
        let (out, _) = deployment.ends(0, &["replay", "--from", &from, "--to", &to, "--yes"]).await;
        assert_says(&out, &[&format!("blocks {from} to {to} will be delivered again"), "done: watermark"]);
        let came = || async { listener.messages().len() >= earlier + expected.len() };
        eventually("delivered again", SOON, came).await;
        listener.wait_watermark(HEAD, SOON).await;
        let again = listener.messages().split_off(earlier);
        assert_eq!(ids(&again).into_iter().collect::<BTreeSet<_>>(), expected, "these blocks and no others");
        assert_eq!(again.len(), expected.len(), "each once");
        for message in &again {
            let first = before.iter().find(|first| first["id"] == message["id"]).unwrap();
            assert!(message["version"].as_u64() > first["version"].as_u64());
        }
    }
    let (code, messages, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    assert_counts(&folded(&messages), &deployment.transfers(FIRST, HEAD).await);
    deployment.ends(65, &["replay", "--from", "131"]).await;
    deployment.ends(64, &["replay", "--from", "9", "--to", "8"]).await;
    deployment.ends(64, &["replay", "--from", "9", "--dry-run", "--yes"]).await;
    deployment.ends(1, &["resume", "--accept-reorg"]).await;
}

#[tokio::test]
async fn reset_takes_back_what_is_not_final_and_then_forgets_everything() {
    let deployment = Deployment::new().await;
    let listener = deployment.caught_up().await;
    let (out, log) = deployment.ends(75, &["reset", "--yes"]).await;
    assert_says(&log, &["in use by", "stop every replica"]);
    assert!(out.is_empty(), "{out}");
    let (_, messages, _) = listener.stop().await;
    let before = deployment.server.dump(0).await;
    for (code, arguments) in [(64, &["reset"][..]), (0, &["reset", "--dry-run"])] {
        let (out, log) = deployment.ends(code, arguments).await;
        assert_says(
            &log,
            &["the events of 8 blocks", "sent as retractions to stdout", "watermark 130", "nothing was changed"],
        );
        assert!(out.is_empty(), "{out}");
    }
    assert_eq!(deployment.server.dump(0).await, before, "saying it changes nothing");
    let now: u64 = deployment.progress("epoch").await.unwrap().parse().unwrap();
    deployment.server.shell(&format!("redis-cli HSET chain:1:progress epoch {}", now + 1_000)).await;
    let (_, log) = deployment.ends(75, &["reset", "--yes"]).await;
    assert_says(&log, &["ahead of the clock", "lower versions"]);
    deployment.server.shell(&format!("redis-cli HSET chain:1:progress epoch {now}")).await;
    let (out, log) = deployment.ends(0, &["reset", "--yes"]).await;
    let retractions: Vec<Value> = out.lines().map(well_formed).collect();
    assert!(retractions.iter().all(|message| message["eventType"] == "TransferRetracted"), "{out}");
    let unsealed = deployment.transfers(FINAL + 1, HEAD).await;
    assert_says(&log, &[&format!("took back {} events", unsealed.len()), "holds nothing of this chain"]);
    assert_eq!(ids(&retractions).into_iter().collect::<BTreeSet<_>>(), unsealed);
    assert_counts(&folded(messages.iter().chain(&retractions)), &deployment.transfers(FIRST, FINAL).await);
    assert_eq!(deployment.server.cli::<u64>(0, "DBSIZE").await, 0);
    deployment.ends(1, &["reset", "--yes"]).await;
    // A state that begins anew says more than what was taken back.
    let settings = deployment.settings.clone().set("START_BLOCK", FINAL + 1).start();
    settings.wait_watermark(HEAD, SOON).await;
    let (_, anew, _) = settings.stop().await;
    let all = messages.iter().chain(&retractions).chain(&anew);
    assert_counts(&folded(all), &deployment.transfers(FIRST, HEAD).await);
}

#[tokio::test]
async fn a_reorganisation_of_final_blocks_freezes_until_an_operator_accepts_it() {
    let deployment = Deployment::new().await;
    let listener = deployment.caught_up().await;
    let was = deployment.transfers(FIRST, HEAD).await;
    let closed = deployment.transfers(111, FINAL).await;
    deployment.chain.rpc().call("devchain_reorg", json!([{ "depth": "0x14", "deep": true }])).await;
    deployment.chain.mine(1).await;
    let head = deployment.chain.head().await;
    eventually("deliveries are frozen", SOON, || async { deployment.progress("frozen").await.is_some() }).await;
    eventually("and it says so", SOON, || async { listener.health().await["status"] == "fail" }).await;
    let mend = "chaintap resume --accept-reorg";
    assert_says(&listener.health().await["reasons"][0].to_string(), &["the sealed block is 122", mend]);
    assert_says(&deployment.ends(0, &["status"]).await.0, &["the sealed block is 122", mend]);
    for refused in [
        &["replay", "--from", "110", "--yes"][..],
        &["rewind", "--to", "1", "--yes"],
        &["skip", "--to", "140", "--yes"],
    ] {
        let (_, log) = deployment.ends(1, refused).await;
        assert_says(&log, &["frozen", mend]);
    }
    let (out, _) = deployment.ends(1, &["audit", "--from", "101", "--to", "131"]).await;
    assert_says(
        &out,
        &["130: delivered as 0x", "which left the chain for 0x", "131: not delivered: deliveries are frozen"],
    );
    deployment.ends(64, &["resume"]).await;
    let (out, _) = deployment.ends(0, &["resume", "--accept-reorg", "--dry-run"]).await;
    let hash = deployment.chain.hash(FINAL).await;
    assert_says(&out, &["frozen: ", "final was block 122", &hash, "cannot be taken back", "--from N", "a dry run"]);
    assert!(deployment.progress("frozen").await.is_some());
    let (out, _) = deployment.ends(0, &["resume", "--accept-reorg", "--from", "111", "--yes"]).await;
    assert_says(&out, &["blocks 111 to 130 will be delivered again", "done: watermark 110"]);
    listener.wait_watermark(head, SOON).await;
    eventually("it is well again", SOON, || async { listener.health().await["status"] != "fail" }).await;
    let (code, messages, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    let mut counts = deployment.transfers(FIRST, head).await;
    let stayed: BTreeSet<String> = counts.intersection(&was).cloned().collect();
    assert_eq!(stayed, deployment.transfers(FIRST, 110).await, "the reorganisation was that deep");
    // What was final and left is all that a consumer holds too much: so it was said.
    counts.extend(closed);
    assert_counts(&folded(&messages), &counts);
    deployment.ends(1, &["resume", "--accept-reorg"]).await;
    deployment.ends(0, &["audit", "--from", "101", "--to", &head.to_string()]).await;
}

#[tokio::test]
async fn a_chain_that_came_back_is_resumed_without_an_alarm_for_consumers() {
    let deployment = Deployment::new().await;
    let listener = deployment.caught_up().await;
    deployment.server.shell("redis-cli HSET chain:1:progress frozen 'the nodes were on a fork'").await;
    eventually("it is frozen", SOON, || async { listener.health().await["status"] == "fail" }).await;
    let (out, _) = deployment.ends(0, &["resume", "--accept-reorg", "--yes"]).await;
    assert_says(&out, &["frozen: the nodes were on a fork", "no final block left", "done: watermark 130"]);
    assert!(!out.contains("onsumers") && !out.contains("--from"), "{out}");
    deployment.chain.mine(2).await;
    listener.wait_watermark(HEAD + 2, SOON).await;
    let (_, messages, _) = listener.stop().await;
    assert_counts(&folded(&messages), &deployment.transfers(FIRST, HEAD + 2).await);
}

#[tokio::test]
async fn the_embedded_store_is_mended_while_nothing_runs() {
    let mut deployment = Deployment::new().await;
    deployment.settings = deployment.settings.unset("REDIS_URL");
    let listener = deployment.settings.start();
    listener.wait_watermark(HEAD, SOON).await;
    for command in [
        &["audit", "--from", "101", "--to", "130"][..],
        &["replay", "--from", "110", "--yes"],
        &["reset", "--yes"],
        &["resume", "--accept-reorg", "--yes"],
    ] {
        let (_, log) = deployment.ends(75, command).await;
        assert_says(&log, &["in use by another process"]);
    }
    let (_, mut messages, _) = listener.stop().await;
    deployment.ends(0, &["audit", "--from", "101", "--to", "130"]).await;
    // Final blocks leave the chain.
    let closed = deployment.transfers(111, FINAL).await;
    deployment.chain.rpc().call("devchain_reorg", json!([{ "depth": "0x14", "deep": true }])).await;
    deployment.chain.mine(1).await;
    let head = deployment.chain.head().await;
    let listener = deployment.settings.start();
    eventually("deliveries are frozen", SOON, || async { listener.health().await["status"] == "fail" }).await;
    messages.extend(listener.stop().await.1);
    let (out, _) = deployment.ends(0, &["resume", "--accept-reorg", "--from", "111", "--yes"]).await;
    assert_says(&out, &["frozen: ", "done: watermark 110"]);
    let listener = deployment.settings.start();
    listener.wait_watermark(head, SOON).await;
    messages.extend(listener.stop().await.1);
    let mut counts = deployment.transfers(FIRST, head).await;
    counts.extend(closed.iter().cloned());
    assert_counts(&folded(&messages), &counts);
    // And all of it is forgotten.
    let (out, _) = deployment.ends(0, &["status", "--json"]).await;
    let status: Value = serde_json::from_str(&out).unwrap();
    let sealed = status["sealed"].as_u64().unwrap();
    let (out, log) = deployment.ends(0, &["reset", "--yes"]).await;
    assert_says(&log, &["holds nothing of this chain"]);
    messages.extend(out.lines().map(well_formed));
    let mut counts = deployment.transfers(FIRST, sealed).await;
    counts.extend(closed);
    assert_counts(&folded(&messages), &counts);
    deployment.ends(1, &["status"]).await;
}

#[tokio::test]
async fn an_audit_says_what_was_delivered_and_what_was_not_and_why() {
    let deployment = Deployment::new().await;
    deployment.caught_up().await.stop().await;
    let before = deployment.server.dump(0).await;
    let (out, _) = deployment.ends(0, &["audit", "--from", "101", "--to", "130"]).await;
    let events = deployment.transfers(FIRST, HEAD).await.len();
    assert_says(
        &out,
        &[&format!("blocks 101 to 130: 30 of 30 delivered; {events} events, 0 more left out"), "differences: 0"],
    );
    assert_eq!(out.lines().count(), 1, "{out}");
    assert_eq!(deployment.server.dump(0).await, before, "an audit changes nothing");
    deployment.chain.mine(10).await;
    deployment.server.shell("redis-cli SET chain:1:claim:135 host-7:3 PX 60000").await;
    let (out, log) = deployment.ends(1, &["audit", "--from", "121", "--to", "140"]).await;
    let lines: Vec<&str> = out.lines().collect();
    let expected = [
        "131..134: not delivered: its turn has not come",
        "135: not delivered: host-7 is working on it",
        "136..140: not delivered: its turn has not come",
    ];
    assert_eq!(lines[..3], expected, "{out}");
    assert_says(lines[3], &["10 of 20 delivered", "differences: 3"]);
    assert_says(&log, &["3 differences"]);
    let (out, _) = deployment.ends(1, &["audit", "--from", "121", "--to", "140", "--deliver", "finalized"]).await;
    assert_says(&out, &["133..140: not delivered: DELIVER=finalized allows 132 at most"]);
    let (out, _) = deployment.ends(1, &["audit", "--from", "121", "--to", "140", "--json"]).await;
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["blocks"], &report["delivered"], &report["differences"]), (&20.into(), &10.into(), &3.into()));
    assert_eq!(
        report["findings"][1],
        json!({ "from": 135, "to": 135, "kind": "notDelivered", "text": &expected[1][5..] })
    );
    deployment.ends(65, &["audit", "--from", "121", "--to", "141"]).await;
    deployment.ends(64, &["audit", "--from", "121", "--to", "120"]).await;
}

#[tokio::test]
async fn an_audit_tells_blocks_of_which_nothing_is_journaled_and_final_blocks_that_left() {
    let deployment = Deployment::new().await;
    deployment.caught_up().await.stop().await;
    let entries: Vec<String> = deployment.server.cli(0, "HKEYS chain:1:journal").await;
    let lost = entries.iter().find(|entry| entry.starts_with("125:")).unwrap();
    for command in ["HDEL chain:1:journal", "ZREM chain:1:journal:n"] {
        let removed: u64 = deployment.server.cli(0, &format!("{command} {lost}")).await;
        assert_eq!(removed, 1);
    }
    let nothing = "counts as delivered, but the journal has nothing of it";
    let (out, _) = deployment.ends(1, &["audit", "--from", "101", "--to", "130"]).await;
    assert!(out.starts_with(&format!("125: {nothing}")) && out.contains("differences: 1"), "{out}");
    deployment.chain.mine(5).await;
    let (out, _) = deployment.ends(0, &["skip", "--to", "140", "--dry-run"]).await;
    assert_says(
        &out,
        &["blocks 131 to 140", "the newest block of the nodes is 135: blocks 136 to 140 will be left out"],
    );
    let (out, _) = deployment.ends(0, &["skip", "--to", "133", "--yes"]).await;
    assert!(!out.contains("newest block"), "{out}");
    // What is final needs no entry.
    let (out, _) = deployment.ends(1, &["audit", "--from", "101", "--to", "135"]).await;
    assert_says(&out, &[&format!("131..133: {nothing}"), "134..135: not delivered", "differences: 2"]);
    let was = deployment.chain.hash(FINAL).await;
    deployment.chain.rpc().call("devchain_reorg", json!([{ "depth": "0x14", "deep": true }])).await;
    let is = deployment.chain.hash(FINAL).await;
    let (out, _) = deployment.ends(1, &["audit", "--from", "101", "--to", "110"]).await;
    let left = format!("101..110: block {FINAL} was final as {was}, which left the chain for {is}");
    assert_says(&out, &[&left, "differences: 1"]);
    let (out, _) = deployment.ends(1, &["audit", "--from", "134", "--to", "135"]).await;
    assert!(!out.contains("was final"), "{out}");
}

#[tokio::test]
async fn a_state_file_that_is_deleted_while_it_runs_ends_the_process_with_the_reason() {
    let chain = Devchain::start(options()).await;
    let settings = Settings::default()
        .set("CHAIN_ID", 1)
        .set("WEB3_PROVIDER", chain.rpc().url)
        .set("START_BLOCK", FIRST)
        .file("config/chains.toml", CHAINS);
    let listener = settings.start();
    listener.wait_watermark(HEAD, SOON).await;
    std::fs::remove_file(settings.home().join("data/chain-1.redb")).unwrap();
    let (code, _, log) = listener.end(SOON).await;
    assert_eq!(code, 69, "{log}");
    assert_says(&log, &["chain-1.redb was deleted or replaced while in use", "START_BLOCK", "\"watermark\":130"]);
}

#[tokio::test]
async fn an_audit_compares_what_was_sent_with_the_present_token_list_event_by_event() {
    let mut deployment = Deployment::new().await;
    let documents = token_documents(&options());
    let half = json!(documents.as_array().unwrap()[..4]);
    deployment.settings = deployment.settings.set("TOKENS_FILE", "tokens.json").file("tokens.json", &half.to_string());
    deployment.caught_up().await.stop().await;
    let audit = ["audit", "--from", "101", "--to", "130", "--json"];
    let (out, _) = deployment.ends(0, &audit).await;
    let report: Value = serde_json::from_str(&out).unwrap();
    assert!(report["leftOut"].as_u64() > Some(0) && report["events"].as_u64() > Some(0), "{report}");
    for (list, kind, text) in [(documents, "missing", "were not sent"), (json!([half[0]]), "extra", "were sent that")] {
        let settings = deployment.settings.clone().file("tokens.json", &list.to_string());
        let (code, out, log) = settings.output(&audit).await;
        assert_eq!(code, 1, "{out}{log}");
        let report: Value = serde_json::from_str(&out).unwrap();
        let findings = report["findings"].as_array().unwrap();
        assert!(!findings.is_empty());
        for finding in findings {
            assert!(finding["from"].as_u64() > Some(FINAL), "of final blocks the store knows no events: {finding}");
            assert!(finding["kind"] == kind && finding["text"].as_str().unwrap().contains(text), "{finding}");
        }
    }
}

#[tokio::test]
async fn an_audit_asks_every_endpoint_and_notes_where_they_disagree() {
    let mut deployment = Deployment::new().await;
    deployment.caught_up().await.stop().await;
    let poor = FaultyNode::before(deployment.chain.rpc()).await;
    let fewer: fn(&mut Value) = |logs| drop(logs.as_array_mut().unwrap().pop());
    poor.fail(Fault::Result("eth_getLogs", fewer));
    let good = deployment.chain.rpc().url;
    deployment.settings = deployment.settings.set("WEB3_PROVIDER", format!("{},{good}", poor.url()));
    let (out, _) = deployment.ends(1, &["audit", "--from", "101", "--to", "130"]).await;
    assert_says(&out, &["endpoint 1 (127.0.0.1", "lacks 1 logs that another endpoint has", "30 of 30 delivered"]);
    let events = deployment.transfers(FIRST, HEAD).await.len();
    assert_says(&out, &[&format!("{events} events"), "differences: 3"]);
    poor.fail(Fault::Status(500, None));
    let (out, _) = deployment.ends(0, &["audit", "--from", "121", "--to", "130"]).await;
    assert_says(&out, &["not compared: endpoint 1 (127.0.0.1", "differences: 0"]);
    // Another fork is a disagreement of the endpoints; what was delivered is held against the preferred one's.
    let fork = Devchain::start(options()).await;
    fork.rpc().call("devchain_reorg", json!([{ "depth": "0x5" }])).await;
    let listed = format!("{good},{}", fork.rpc().url);
    let (code, out, log) = deployment
        .settings
        .clone()
        .set("WEB3_PROVIDER", listed)
        .output(&["audit", "--from", "121", "--to", "130"])
        .await;
    assert_eq!(code, 1, "{out}{log}");
    assert_says(&out, &["lacks", "10 of 10 delivered"]);
    assert!(!out.contains("left the chain") && !out.contains("were not sent"), "{out}");
}

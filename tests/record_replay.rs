//! What the nodes said to one listener is recorded, and another listener that is told the same makes the same of it: so an
//! incident becomes a test.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]

mod support;

use std::{
    collections::BTreeSet,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use chaintap::{
    devchain::{Options, Replay},
    recording::{Answer, Event, Exchange, Record, Reply, read},
};
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use support::{
    chaintap::{Listener, Settings},
    devchain::{Devchain, Rpc, still},
    ledger::folded,
    mailbox::Mailbox,
    process::eventually,
};

const SOON: Duration = Duration::from_mins(1);
/// What may stand nowhere: the key of an endpoint, and one that a node's words hold.
const SECRETS: [&str; 2] = ["secret-key-0123456789", "another-secret-key"];

fn endpoint(chain: &Devchain, name: &str) -> Rpc {
    chain.endpoint(&format!("v2/{}-{name}", SECRETS[0]))
}

async fn chain_of(height: u64) -> Devchain {
    Devchain::start(Options { logs_per_block: 10, finalized_depth: 16, safe_depth: 8, ..still(height) }).await
}

fn listener_of(urls: &[String]) -> Settings {
    let settings = Settings::default().set("CHAIN_ID", 31_337).set("WEB3_PROVIDER", urls.join(","));
    settings.set("START_BLOCK", 101)
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The text of all files, as far as it is whole.
fn text(dir: &Path) -> String {
    let mut all = Vec::new();
    for path in segments(dir) {
        // The end of the last one may be cut off.
        GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut all).unwrap_or_default();
    }
    String::from_utf8(all).unwrap()
}

fn size(dir: &Path) -> u64 {
    // A file may go while they are counted.
    segments(dir).iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum()
}

/// What of the messages is not the chain.
fn difference(listener: &Listener, expected: &BTreeSet<String>) -> Option<String> {
    let mut mailbox = Mailbox::default();
    listener.whole_lines().iter().for_each(|line| mailbox.enter(line));
    mailbox.difference(expected).map(|difference| format!("{difference:?}"))
}

async fn wait_right(listener: &Listener, chain: &Devchain) {
    let expected = chain.transfers(101, chain.head().await).await;
    let deadline = tokio::time::Instant::now() + SOON;
    while let Some(difference) = difference(listener, &expected) {
        assert!(tokio::time::Instant::now() < deadline, "{difference}\n{}", listener.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The ids that were sent and count, and those that were taken back.
fn outcome(messages: &[Value]) -> [BTreeSet<String>; 2] {
    let ids = |messages: &mut dyn Iterator<Item = &Value>| {
        messages.map(|message| message["id"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let fold = folded(messages);
    [ids(&mut fold.live()), ids(&mut messages.iter().filter(|message| message["eventType"] == "TransferRetracted"))]
}

/// What came of the requests of a recording: how many results, errors, HTTP answers, and requests without one.
fn outcomes(records: &[Record]) -> [usize; 4] {
    let mut counts = [0; 4];
    for record in records {
        let Event::Exchange(Exchange { answer, .. }) = &record.event else { continue };
        match answer {
            Answer::Replies(replies) if replies.iter().all(|reply| matches!(reply, Reply::Result(_))) => counts[0] += 1,
            Answer::Replies(_) => counts[1] += 1,
            Answer::Http { .. } => counts[2] += 1,
            Answer::Failed(_) | Answer::Silence => counts[3] += 1,
        }
    }
    counts
}

/// Whether this line of the metrics counts requests that were refused for their number.
fn is_refusal(line: &str) -> bool {
    line.starts_with("chaintap_rpc_requests_total{") && line.contains("outcome=\"rate_limited\"")
}

#[tokio::test]
async fn an_incident_is_recorded_without_secrets_and_another_listener_makes_the_same_of_it() {
    let chain = chain_of(110).await;
    let (one, two) = (endpoint(&chain, "one"), endpoint(&chain, "two"));
    let words = format!("gremlins at https://node.example/v2/{} and {}-one", SECRETS[1], SECRETS[0]);
    let of_one = json!([[
        { "on": ["eth_getLogs"], "do": { "omit": { "share": 0.05 } } },
        { "on": ["eth_getLogs"], "every": 5, "do": "empty" },
        { "on": ["eth_getLogs"], "heads": { "from": 112, "to": 200 }, "next": 1,
          "do": { "http": { "status": 429, "headers": { "Retry-After": "1" }, "body": "slow down" } } },
        { "on": ["eth_getLogs"], "heads": { "from": 113, "to": 200 }, "next": 2,
          "do": { "error": { "code": -32099, "message": words } } },
        { "on": ["eth_getBlockByHash"], "next": 1, "do": { "garbage": { "as": "html" } } },
        { "on": ["eth_getLogs"], "heads": { "from": 114, "to": 200 }, "next": 1, "do": "silence" },
    ]]);
    one.call("devchain_setFaults", of_one).await;
    two.call("devchain_setFaults", json!([[{ "do": { "lag": { "blocks": 2 } } }]])).await;
    let settings = listener_of(&[one.ws_url(), two.url.clone()])
        .set("RPC_TIMEOUT", "5s")
        .set("VERIFY", "receipts")
        .arg("--record")
        .arg("traffic");
    let dir = settings.home().join("traffic");

    let listener = settings.start();
    listener.wait_watermark(110, SOON).await;
    // The faults are at the first endpoint. The other one is behind: what leaves the chain is to be seen as it is here.
    let count = |words| listener.log().matches(words).count();
    let is_back = || async { count("move to another endpoint") == count("back at a preferred endpoint") };
    for number in 111..=115 {
        eventually("requests are back at the first endpoint", SOON, is_back).await;
        chain.mine(1).await;
        listener.wait_watermark(number, SOON).await;
    }
    eventually("requests are back at the first endpoint", SOON, is_back).await;
    for number in 116..=119 {
        chain.mine(1).await;
        listener.wait_watermark(number, SOON).await;
    }
    // Long enough for another listener to have sent these blocks as well before they leave the chain.
    tokio::time::sleep(Duration::from_secs(3)).await;
    chain.rpc().call("devchain_reorg", json!([{ "depth": 3, "length": 4 }])).await;
    wait_right(&listener, &chain).await;
    chain.mine(2).await;
    wait_right(&listener, &chain).await;
    // Another look at the tags.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let met = one.call("devchain_faults", json!([])).await;
    let (code, messages, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    assert!(met["faults"].as_array().unwrap().iter().all(|fault| fault["fell"].as_u64().unwrap() > 0), "{met:#}");

    let recorded = text(&dir);
    assert!(SECRETS.iter().all(|secret| !recorded.contains(secret)), "a secret is in the recording");
    assert!(recorded.contains("gremlins at https://node.example and"), "what was said besides is there");
    let records = read(&dir).unwrap();
    let counts = outcomes(&records);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    let heads = records.iter().filter(|record| matches!(record.event, Event::Head(_))).count();
    assert!(heads >= 12, "{heads}");

    let replay = Options { replay: Some(Replay { dir, speed: 1.0 }), ..Options::default() };
    let replay = Devchain::start(replay).await;
    let again = listener_of(&[format!("{}/127.0.0.1", replay.ws_url()), replay.endpoint("127.0.0.1%232").url]);
    let again = again.set("RPC_TIMEOUT", "5s").set("VERIFY", "receipts").start();
    let [live, retracted] = outcome(&messages);
    assert!(!live.is_empty() && !retracted.is_empty());
    let same = || async { outcome(&again.messages())[0] == live };
    eventually("the same counts in the end", SOON, same).await;
    let metrics = again.get("/metrics").await.unwrap().1;
    let (code, replayed, log) = again.stop().await;
    let [live_again, retracted_again] = outcome(&replayed);
    assert_eq!((code, live_again == live), (0, true), "{log}");
    // A slower listener may not have sent all of it before it left the chain.
    assert!(retracted_again.is_subset(&retracted), "{log}");
    for words in ["gremlins", "request timed out", "invalid JSON"] {
        assert!(log.contains(words), "nobody said {words:?} again:\n{log}");
    }
    // The log has the words of this one only where the other endpoint did not have the block either.
    assert!(metrics.lines().any(is_refusal), "no request was refused again:\n{metrics}");
}

#[tokio::test]
async fn what_is_not_in_a_recording_is_an_error_that_says_so() {
    let chain = chain_of(105).await;
    let settings = listener_of(&[chain.ws_url()]);
    let dir = settings.home().join("traffic");
    let listener = settings.clone().set("RECORD_DIR", dir.display()).arg("--until").arg(105).start();
    let (code, _, log) = listener.end(SOON).await;
    assert_eq!(code, 0, "{log}");

    let options = |dir: PathBuf| Options { replay: Some(Replay { dir, speed: 10.0 }), ..Options::default() };
    let serving = Devchain::start(options(dir)).await;
    let replay = serving.rpc();
    assert_eq!(replay.call("eth_chainId", json!([])).await, "0x7a69");
    let latest = replay.call("eth_getBlockByNumber", json!(["latest", false])).await;
    assert_eq!(latest["hash"], json!(chain.hash(105).await));
    let hash = replay.call("eth_getBlockByHash", json!([latest["hash"], false])).await;
    assert_eq!(hash["number"], latest["number"], "from the answer to another question");
    let unknown = [
        ("eth_getBlockByNumber", json!(["0x5", false])),
        ("eth_getLogs", json!([{ "fromBlock": "0x1", "toBlock": "0x5", "topics": [[]] }])),
        ("eth_getBalance", json!(["0x0000000000000000000000000000000000000001", "latest"])),
    ];
    for (method, params) in unknown {
        let error = replay.try_call(method, params).await.unwrap_err();
        assert!(error["message"].as_str().unwrap().starts_with(&format!("not in the recording: {method}")), "{error}");
    }
    let (code, _, log) = Settings::default().output(&["devchain", "--port", "0", "--replay", "nowhere"]).await;
    assert_eq!((code, log.contains("nowhere")), (65, true), "{log}");
}

#[tokio::test]
async fn a_recording_stays_within_its_limit_and_its_directory_may_go() {
    const LIMIT: u64 = 1 << 20;
    let chain = Devchain::start(Options { logs_per_block: 80, ..still(400) }).await;
    let settings = listener_of(&[chain.ws_url()]).set("RECORD_DIR", "traffic").set("RECORD_MAX_BYTES", "1MiB");
    let dir = settings.home().join("traffic");
    let listener = settings.start();
    let mut largest = 0;
    while listener.watermark().await < 400 {
        largest = largest.max(if dir.exists() { size(&dir) } else { 0 });
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!((LIMIT / 2..=LIMIT).contains(&largest), "{largest}");

    // Where the directory was there is a file now: nothing can be written there.
    let moved = settings.home().join("moved");
    std::fs::rename(&dir, &moved).unwrap();
    std::fs::write(&dir, "not a directory").unwrap();
    let noticed = || async {
        chain.mine(5).await;
        listener.log().contains("the traffic cannot be recorded")
    };
    eventually("nothing can be recorded", SOON, noticed).await;
    let dropped = || async {
        chain.mine(1).await;
        let metrics = listener.get("/metrics").await.unwrap().1;
        let line = metrics.lines().find(|line| line.contains("recording_records_total") && line.contains("dropped"));
        line.is_some_and(|line| !line.ends_with(" 0"))
    };
    eventually("records are dropped and counted", SOON, dropped).await;
    let head = chain.head().await;
    listener.wait_watermark(head, SOON).await;
    assert!(size(&moved) <= LIMIT);
    let (code, _, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    assert_eq!(log.matches("the traffic cannot be recorded").count(), 1, "{log}");
}

#[tokio::test]
async fn what_was_recorded_a_second_before_a_kill_is_there() {
    let chain = chain_of(110).await;
    let settings = listener_of(&[chain.ws_url()]).set("RECORD_DIR", "traffic");
    let dir = settings.home().join("traffic");
    let mut listener = settings.start();
    listener.wait_watermark(110, SOON).await;
    let hash = chain.hash(110).await;
    eventually("it is on the disk", SOON, || async { dir.exists() && text(&dir).contains(&hash) }).await;
    let before = read(&dir).unwrap().len();
    listener.kill().await;
    assert!(read(&dir).unwrap().len() >= before);
}

//! The HTTP endpoints over real HTTP: every status and what brings it about, who is told what, and what the server
//! does with requests that it was not made for. Time is moved by hand: no test waits for an alarm.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test's own functions fail the test

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use alloy::primitives::B256;
use chaintap::{
    api,
    cli::{Failure, healthcheck},
    config::SecretUrl,
    domain::{BlockRange, Header, IntervalSet},
    telemetry::{
        Metrics, Vitals,
        vitals::{Edge, Profile},
    },
};
use clap::Parser;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

const FIRST: &str = "https://one.example";
const SECOND: &str = "https://two.example";
const QUEUE: &str = "sqs:transfers";

/// A process seen from outside: vitals to write to, a clock to move, an address to ask.
struct Served {
    vitals: Arc<Vitals>,
    now: Arc<Mutex<Instant>>,
    address: SocketAddr,
    client: Client,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn profile() -> Profile {
    Profile {
        chain_id: 8453,
        service: "base_mainnet".to_owned(),
        block_time: Duration::from_secs(2),
        store: "redis",
        providers: vec![FIRST.to_owned(), SECOND.to_owned()],
        sinks: vec![QUEUE.to_owned()],
        token_refresh: Some(Duration::from_mins(5)),
    }
}

fn metrics() -> Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| Metrics::install(8453, "base_mainnet").unwrap()).clone()
}

impl Served {
    async fn fresh(profile: Profile) -> Self {
        chaintap::crypto::init();
        let now = Arc::new(Mutex::new(Instant::now()));
        let clock = Arc::clone(&now);
        let tell = move || *clock.lock().unwrap_or_else(PoisonError::into_inner);
        let vitals = Arc::new(Vitals::with_clock(profile, Arc::new(tell)));
        let listener = api::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = api::router(Arc::clone(&vitals), metrics());
        let server = tokio::spawn(api::serve(listener, router, metrics(), stop.clone()));
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap();
        Self { vitals, now, address, client, stop, server }
    }

    /// As it is when all is well: everything answered, block 1,000 delivered and nothing open.
    async fn well() -> Self {
        let served = Self::fresh(profile()).await;
        served.vitals.started();
        served.vitals.tokens(Some(150));
        served.everything_answers();
        served.vitals.head(&head(1_000), Some(1_000));
        served.vitals.progress(1_000, 1_000, &IntervalSet::default());
        served
    }

    fn everything_answers(&self) {
        self.vitals.beat();
        self.vitals.edge(Edge::Store, Ok(()));
        self.vitals.edge(Edge::Provider(FIRST.to_owned()), Ok(()));
        self.vitals.edge(Edge::Provider(SECOND.to_owned()), Ok(()));
        self.vitals.edge(Edge::Sink(QUEUE.to_owned()), Ok(()));
    }

    /// Time passes; whatever is not `failing` is heard of again, and a new block comes.
    fn pass(&self, seconds: u64, failing: &[(Edge, &str)]) {
        *self.now.lock().unwrap() += Duration::from_secs(seconds);
        self.vitals.head(&head(1_000), Some(1_000));
        self.vitals.beat();
        let edges = [
            Edge::Store,
            Edge::Provider(FIRST.to_owned()),
            Edge::Provider(SECOND.to_owned()),
            Edge::Sink(QUEUE.to_owned()),
        ];
        for edge in edges {
            let failure = failing.iter().find(|(failing, _)| *failing == edge);
            self.vitals.edge(edge, failure.map_or(Ok(()), |(_, why)| Err(why)));
        }
    }

    /// Time passes and nothing is heard of anyone.
    fn silence(&self, seconds: u64) {
        *self.now.lock().unwrap() += Duration::from_secs(seconds);
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let answer = self.client.get(format!("http://{}{path}", self.address)).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn health(&self) -> (StatusCode, Value) {
        let (code, body) = self.get("/health").await;
        (code, serde_json::from_str(&body).unwrap())
    }

    /// Checks the status with its code, and that the first reason begins like this.
    async fn expect(&self, status: &str, reason: &str) {
        let (code, health) = self.health().await;
        let expected = if status == "fail" { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        assert_eq!((code, health["status"].as_str()), (expected, Some(status)), "{health:#}");
        let first = health["reasons"][0].as_str().unwrap_or_default();
        assert!(first.starts_with(reason), "{first:?} does not begin with {reason:?}");
        assert_eq!(status == "ok", health["reasons"] == json!([]), "{health:#}");
    }
}

/// A block of this moment.
fn head(number: u64) -> Header {
    let timestamp = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    Header { number, hash: B256::repeat_byte(7), parent: B256::repeat_byte(6), timestamp }
}

fn provider(name: &str) -> Edge {
    Edge::Provider(name.to_owned())
}

fn members(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

// ── /health ──────────────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_process_that_is_well_says_so_with_every_member_of_the_contract() {
    let served = Served::well().await;
    served.vitals.provider_head(SECOND, 990);
    served.vitals.queued(QUEUE, 3);
    served.vitals.dead_letters(2);
    served.vitals.durability("WAIT 1".to_owned());
    served.expect("ok", "").await;
    let (_, health) = served.health().await;
    let expected = "status reasons chainId service version uptimeSeconds head deliverableHead processed watermark gap \
                    lagBlocks historical gaps providers redis mongodb sinks reorgs deadLetters";
    assert_eq!(members(&health), expected.split_whitespace().collect::<Vec<_>>());
    assert_eq!(health["chainId"], 8453);
    assert_eq!(health["service"], "base_mainnet");
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(health["head"]["hash"], B256::repeat_byte(7).to_string());
    assert_eq!(members(&health["head"]), ["number", "hash", "ageSeconds"]);
    assert_eq!((&health["deliverableHead"], &health["processed"]), (&json!(1_000), &json!(1_000)));
    assert_eq!((&health["gap"], &health["lagBlocks"], &health["historical"]), (&json!(0), &json!(0), &Value::Null));
    let second = json!({ "name": SECOND, "state": "ok", "headLag": 10, "errors": 0, "disagreements": 0, "aside": null,
            "blocksPerRequest": null, "addressesPerRequest": null, "parallelRequests": null,
            "waitsUntil": null, "unknownMessages": [] });
    assert_eq!(health["providers"][1], second);
    assert_eq!(health["providers"][0]["headLag"], Value::Null, "nothing was heard of its head");
    assert_eq!(health["redis"], json!({ "store": "redis", "state": "ok", "errors": 0, "durability": "WAIT 1" }));
    assert_eq!(health["mongodb"], json!({ "state": "ok", "tokens": 150, "ageSeconds": 0 }));
    assert_eq!(health["sinks"], json!([{ "name": QUEUE, "state": "ok", "queued": 3, "failed": 0 }]));
    assert_eq!(health["deadLetters"], 2);
}

#[tokio::test]
async fn a_store_sink_or_all_providers_that_fail_are_odd_at_first_and_a_failure_after_30_seconds() {
    let store = vec![(Edge::Store, "no route")];
    let sink = vec![(Edge::Sink(QUEUE.to_owned()), "access denied")];
    let both = vec![(provider(FIRST), "timed out"), (provider(SECOND), "timed out")];
    let cases = [
        (store, "the state store does not answer for 5 s: no route", "the state store is unusable for 31 s: no route"),
        (
            sink,
            "the sink sqs:transfers takes no messages for 5 s: access denied",
            "the sink sqs:transfers is unusable for 31 s: access denied",
        ),
        (
            both,
            "the provider https://one.example does not answer for 5 s: timed out",
            "no answer from any provider for 31 s: timed out",
        ),
    ];
    for (failing, at_first, later) in cases {
        let served = Served::well().await;
        served.pass(1, &failing);
        served.pass(5, &failing);
        served.expect("degraded", at_first).await;
        served.pass(25, &failing);
        served.expect("degraded", "").await;
        served.pass(1, &failing);
        served.expect("fail", later).await;
        served.pass(1, &[]);
        served.expect("ok", "").await;
    }
}

#[tokio::test]
async fn what_answers_but_does_not_do_its_work_is_a_failure() {
    let (journal, sink) = (Edge::Journal, Edge::Sink(QUEUE.to_owned()));
    let cases = [
        (journal, Edge::Store, "the state store is unusable for 31 s: 0 of 1 replicas", "redis"),
        (sink, Edge::Probe(QUEUE.to_owned()), "the sink sqs:transfers is unusable for 31 s: 0 of 1 replicas", "sink"),
    ];
    for (working, answering, reason, check) in cases {
        let served = Served::well().await;
        served.vitals.edge(working.clone(), Err("0 of 1 replicas"));
        for _ in 0..31 {
            served.silence(1);
            served.vitals.edge(provider(FIRST), Ok(()));
            served.vitals.edge(Edge::Store, Ok(()));
            served.vitals.edge(answering.clone(), Ok(()));
        }
        served.expect("fail", reason).await;
        let (code, body) = served.get("/readyz").await;
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.contains(&format!("[-]{check}")), "{body}");
        served.vitals.edge(working, Ok(()));
        served.pass(0, &[]);
        served.expect("ok", "").await;
    }
}

#[tokio::test]
async fn a_sink_that_does_not_answer_counts_only_while_it_takes_no_messages() {
    let served = Served::well().await;
    let probe = Edge::Probe(QUEUE.to_owned());
    served.pass(1, &[]);
    served.silence(1);
    served.vitals.edge(probe.clone(), Err("no such queue"));
    served.expect("degraded", "the sink sqs:transfers takes no messages for 0 s: no such queue").await;
    served.pass(1, &[]);
    served.vitals.edge(probe.clone(), Err("no such queue"));
    served.expect("ok", "").await;
    served.vitals.edge(probe, Ok(()));
    served.expect("ok", "").await;
}

#[tokio::test]
async fn one_provider_of_two_may_be_down_for_ever() {
    let served = Served::well().await;
    for _ in 0..10 {
        served.pass(60, &[(provider(FIRST), "401 unauthorized")]);
        served.vitals.tokens(Some(150));
    }
    served.expect("degraded", "the provider https://one.example does not answer for 540 s: 401 unauthorized").await;
    let (_, health) = served.health().await;
    assert_eq!(health["providers"][0]["state"], "failing");
    assert_eq!(health["providers"][0]["errors"], 10);
}

#[tokio::test]
async fn providers_that_were_never_heard_of_are_a_failure_too() {
    let served = Served::fresh(Profile { token_refresh: None, ..profile() }).await;
    served.expect("degraded", "starting").await;
    served.vitals.started();
    served.vitals.edge(Edge::Store, Ok(()));
    served.vitals.edge(provider(FIRST), Err("connection refused"));
    served.silence(31);
    served.vitals.edge(Edge::Store, Ok(()));
    served.expect("fail", "no answer from any provider for 31 s").await;
}

#[tokio::test]
async fn a_failure_that_comes_and_goes_is_no_failure() {
    let served = Served::well().await;
    for _ in 0..6 {
        served.pass(10, &[(Edge::Store, "no route")]);
        served.pass(10, &[]);
    }
    served.expect("ok", "").await;
}

#[tokio::test]
async fn a_store_that_is_never_heard_of_again_fails_without_an_error() {
    let served = Served::well().await;
    served.silence(9);
    served.expect("ok", "").await;
    served.silence(22);
    served.expect("fail", "the state store is unusable for 31 s").await;
    let (_, health) = served.health().await;
    assert_eq!(health["redis"]["state"], "silent");
}

#[tokio::test]
async fn the_error_that_ends_a_silence_does_not_make_anyone_ready_again() {
    let served = Served::fresh(Profile { providers: vec![FIRST.to_owned()], ..profile() }).await;
    served.vitals.started();
    served.everything_answers();
    served.silence(31);
    served.vitals.edge(Edge::Store, Ok(()));
    let ready = async || served.get("/readyz").await;
    assert!(ready().await.1.contains("[-]provider"), "{:?}", ready().await);
    let asked = *served.now.lock().unwrap();
    served.silence(4);
    served.vitals.answer(provider(FIRST), asked, Err("request timed out"));
    assert!(ready().await.1.contains("[-]provider"), "{:?}", ready().await);
}

#[tokio::test]
async fn a_halt_fails_at_once_and_stays_until_it_is_taken_back() {
    let served = Served::well().await;
    served.vitals.halt(Some("block 1000 left the chain"));
    served.pass(3_600, &[]);
    served.vitals.tokens(Some(150));
    served.expect("fail", "nothing is delivered: block 1000 left the chain").await;
    let (code, ready) = served.get("/readyz").await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
    assert!(ready.contains("[-]delivering: block 1000 left the chain"), "{ready}");
    served.vitals.halt(None);
    assert!(!served.get("/readyz").await.1.contains("[-]delivering"));
}

#[tokio::test]
async fn a_required_token_list_is_missed_until_it_is_there_and_stale_when_it_is_not_read_again() {
    let served = Served::fresh(profile()).await;
    served.vitals.started();
    served.everything_answers();
    served.vitals.edge(Edge::Tokens, Err("server selection timed out"));
    let sentence = "there is no token list, and nothing is delivered without one: server selection timed out";
    served.expect("fail", sentence).await;
    assert_eq!(served.health().await.1["mongodb"], json!({ "state": "missing", "tokens": null, "ageSeconds": null }));

    served.vitals.tokens(Some(150));
    served.vitals.edge(Edge::Tokens, Ok(()));
    served.expect("ok", "").await;

    served.pass(300, &[]);
    served.vitals.edge(Edge::Tokens, Err("no primary"));
    served
        .expect("degraded", "the token list is 300 s old and could not be read again; it stays in use: no primary")
        .await;
    assert_eq!(served.health().await.1["mongodb"], json!({ "state": "stale", "tokens": 150, "ageSeconds": 300 }));

    served.vitals.edge(Edge::Tokens, Ok(()));
    served.vitals.tokens(Some(151));
    served.expect("ok", "").await;
    served.pass(901, &[]);
    served.expect("degraded", "the token list is 901 s old").await;
}

#[tokio::test]
async fn without_token_filtering_no_list_is_missed() {
    let served = Served::fresh(Profile { token_refresh: None, ..profile() }).await;
    served.vitals.started();
    served.vitals.tokens(None);
    served.everything_answers();
    served.expect("ok", "").await;
    assert_eq!(served.health().await.1["mongodb"], json!({ "state": "off", "tokens": null, "ageSeconds": null }));
}

#[tokio::test]
async fn a_backfill_is_degraded_and_tells_how_far_it_is_and_how_long_it_takes() {
    let served = Served::well().await;
    let done = |low: u64| [(1_001, low), (2_000, 2_001), (2_997, 3_000)].map(|(from, to)| BlockRange { from, to });
    served.vitals.head(&head(3_000), Some(3_000));
    served.vitals.progress(1_000, 3_000, &done(1_100).into_iter().skip(1).collect());
    served.expect("degraded", "backfill: missing blocks 1994, gaps 2, the lowest 1001..1999").await;
    let (_, health) = served.health().await;
    assert_eq!((&health["gaps"], &health["gap"], &health["lagBlocks"]), (&json!(2), &json!(0), &json!(2_000)));
    assert_eq!(health["historical"]["blocksPerSecond"], Value::Null, "nothing was measured yet");

    for block in (0..5).map(|batch| 1_001 + batch * 100) {
        served.vitals.historical_done(BlockRange { from: block, to: block + 99 });
        served.pass(2, &[]);
        served.vitals.head(&head(3_000), Some(3_000));
    }
    served.vitals.progress(1_500, 3_000, &done(1_500).into_iter().skip(1).collect());
    let expected = json!({
        "from": 1_501, "to": 1_999, "processed": 1_500, "remaining": 1_494, "blocksPerSecond": 40.0, "etaSeconds": 38,
    });
    assert_eq!(served.health().await.1["historical"], expected);

    served.pass(120, &[]);
    let idle = served.health().await.1["historical"]["blocksPerSecond"].clone();
    assert_eq!(idle, Value::Null, "what was measured two minutes ago is no speed");
    served.vitals.head(&head(3_000), Some(3_000));
    served.vitals.progress(3_000, 3_000, &IntervalSet::default());
    served.expect("ok", "").await;
}

#[tokio::test]
async fn holes_of_the_last_five_blocks_are_the_realtime_tracks_and_no_gaps() {
    let served = Served::well().await;
    served.vitals.head(&head(1_006), Some(1_006));
    served.vitals.progress(1_000, 1_006, &[BlockRange { from: 1_004, to: 1_006 }].into_iter().collect());
    let (_, health) = served.health().await;
    assert_eq!((&health["gaps"], &health["historical"], &health["lagBlocks"]), (&json!(0), &Value::Null, &json!(6)));
}

#[tokio::test]
async fn a_lag_of_more_than_five_deliverable_blocks_is_degraded() {
    let served = Served::well().await;
    for (deliverable, status, reason, gap) in
        [(1_005, "ok", "", 4), (1_006, "degraded", "6 blocks behind the head", 5), (1_000, "ok", "", 0)]
    {
        served.vitals.head(&head(1_064), Some(deliverable));
        served.expect(status, reason).await;
        assert_eq!(served.health().await.1["gap"], gap);
    }
}

#[tokio::test]
async fn a_head_that_grows_old_is_degraded_whatever_the_providers_answer() {
    let served = Served::well().await;
    for _ in 0..5 {
        served.silence(10);
        served.everything_answers();
    }
    served.expect("ok", "").await;
    served.silence(15);
    served.everything_answers();
    served.expect("degraded", "the newest block is 65 s old, and one is expected every 2s").await;
}

#[tokio::test]
async fn a_note_stands_until_it_is_taken_back() {
    let served = Served::well().await;
    served.vitals.note("durability", Some("Redis has no replica and no AOF".to_owned()));
    served.expect("degraded", "Redis has no replica and no AOF").await;
    served.vitals.note("durability", None);
    served.expect("ok", "").await;
}

// ── /livez and /readyz ───────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn liveness_looks_at_the_loop_and_at_nothing_else() {
    let served = Served::fresh(profile()).await;
    served.silence(3_600);
    assert_eq!(served.get("/livez").await.0, StatusCode::OK, "a start may wait for its servers for ever");
    served.vitals.beat();
    served.vitals.halt(Some("state vanished"));
    served.silence(60);
    assert_eq!(served.get("/livez").await, (StatusCode::OK, "ok\n".to_owned()));
    served.silence(1);
    let (code, body) = served.get("/livez").await;
    assert_eq!((code, body.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "the loop has stood still for 61 s\n"));
    served.vitals.beat();
    assert_eq!(served.get("/livez").await.0, StatusCode::OK);
}

#[tokio::test]
async fn readiness_waits_for_everything_and_names_what_is_missing() {
    let served = Served::fresh(profile()).await;
    let unready = [
        "[-]started: starting",
        "[-]redis: not reached yet",
        "[-]sink sqs:transfers: not reached yet",
        "[-]provider: https://one.example not reached yet; https://two.example not reached yet",
        "[-]tokens: the token list is not loaded yet",
        "not ready",
    ];
    let (code, body) = served.get("/readyz").await;
    assert_eq!((code, body.lines().collect::<Vec<_>>()), (StatusCode::SERVICE_UNAVAILABLE, unready.to_vec()));
    served.vitals.started();
    served.vitals.tokens(Some(1));
    served.vitals.edge(Edge::Store, Ok(()));
    served.vitals.edge(Edge::Sink(QUEUE.to_owned()), Ok(()));
    assert_eq!(served.get("/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE, "no provider yet");
    served.vitals.edge(provider(SECOND), Ok(()));
    assert_eq!(served.get("/readyz").await, (StatusCode::OK, "ok\n".to_owned()), "one provider is enough");
    let (_, verbose) = served.get("/readyz?verbose").await;
    let lines = ["started", "draining", "delivering", "redis", "sink sqs:transfers", "provider", "tokens"];
    let expected = lines.map(|name| format!("[+]{name} ok\n")).concat() + "ok\n";
    assert_eq!(verbose, expected);
}

#[tokio::test]
async fn readiness_bears_ten_seconds_of_failure() {
    let edges = [Edge::Store, Edge::Sink(QUEUE.to_owned())];
    for edge in edges {
        let served = Served::well().await;
        let failing = [(edge, "reset by peer")];
        served.pass(1, &failing);
        served.pass(10, &failing);
        assert_eq!(served.get("/readyz").await.0, StatusCode::OK);
        served.pass(1, &failing);
        let (code, body) = served.get("/readyz").await;
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.contains("unusable for 11 s: reset by peer"), "{body}");
        served.pass(1, &[]);
        assert_eq!(served.get("/readyz").await.0, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_process_that_stops_is_unready_before_it_is_gone() {
    let served = Served::well().await;
    served.vitals.draining();
    let (code, body) = served.get("/readyz").await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("[-]draining: stopping"), "{body}");
    assert_eq!(served.get("/livez").await.0, StatusCode::OK);
    served.expect("degraded", "stopping").await;
}

// ── the server ───────────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn metrics_tell_the_story_of_health_as_prometheus_text() {
    let served = Served::well().await;
    let address = format!("http://{}/metrics", served.address);
    let answer = served.client.get(address).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = answer.text().await.unwrap();
    for line in [
        "# TYPE chaintap_build_info gauge",
        r#"chaintap_sink_healthy{chain_id="8453",chain="base_mainnet",sink="sqs:transfers"}"#,
        r#"chaintap_rpc_provider_healthy{chain_id="8453",chain="base_mainnet",provider="https://one.example"}"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn head_is_answered_like_get_without_a_body_and_nothing_else_is_allowed() {
    let served = Served::well().await;
    for path in ["/health", "/livez", "/readyz", "/metrics"] {
        let address = format!("http://{}{path}", served.address);
        let answer = served.client.head(&address).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        assert_eq!(answer.text().await.unwrap(), "");
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            let answer = served.client.request(method, &address).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
            assert_eq!(answer.headers()["allow"], "GET,HEAD");
        }
    }
}

#[tokio::test]
async fn an_unknown_path_is_answered_with_the_known_ones() {
    let served = Served::well().await;
    for path in ["/", "/healthz", "/health/", "/metrics/../etc/passwd", "/%00"] {
        let (code, body) = served.get(path).await;
        assert_eq!(code, StatusCode::NOT_FOUND, "{path}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["paths"], json!(["/health", "/livez", "/readyz", "/metrics"]));
    }
}

#[tokio::test]
async fn a_taken_port_is_told_with_the_variable_that_changes_it() {
    let served = Served::well().await;
    let error = api::bind(served.address).await.unwrap_err();
    assert!(matches!(error, api::BindError::InUse(_)));
    let sentence = format!("another program listens on {}: end it, or set PORT to a free port", served.address);
    assert_eq!(error.to_string(), sentence);
    let foreign = api::bind("192.0.2.1:3001".parse().unwrap()).await.unwrap_err();
    assert!(foreign.to_string().contains("correct PORT or HTTP_BIND"), "{foreign}");
}

#[tokio::test]
async fn a_request_with_an_endless_head_is_refused() {
    let served = Served::well().await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let head = format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}", "a".repeat(1 << 20));
    // The server may close before it has read all of it.
    drop(stream.write_all(head.as_bytes()).await);
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(served.get("/livez").await.0, StatusCode::OK);
}

#[tokio::test]
async fn idle_connections_do_not_keep_a_probe_out_for_long() {
    let served = Served::well().await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(b"GET /health HT").await.unwrap();
        idle.push(stream);
    }
    assert_eq!(served.get("/livez").await.0, StatusCode::OK, "an answer, within the client's 20 s");
}

#[tokio::test]
async fn the_server_ends_with_its_token_and_gives_the_port_back() {
    let mut served = Served::well().await;
    let mut kept = TcpStream::connect(served.address).await.unwrap();
    kept.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    kept.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    served.stop.cancel();
    timeout(Duration::from_secs(5), &mut served.server).await.expect("it ends in time").unwrap();
    drop(api::bind(served.address).await.unwrap());
}

#[tokio::test]
async fn the_healthcheck_command_says_what_the_process_says() {
    let served = Served::well().await;
    let port = served.address.port().to_string();
    let alive = ["healthcheck", "--port", port.as_str()];
    let ready = ["healthcheck", "--port", port.as_str(), "--ready"];
    check(&alive).await.unwrap();
    check(&ready).await.unwrap();
    served.vitals.draining();
    check(&alive).await.unwrap();
    let no = check(&ready).await.unwrap_err();
    assert!(matches!(&no, Failure::No(why) if why.starts_with("503: [-]draining: stopping")), "{no}");
    let url = format!("http://{}/health", served.address);
    check(&["healthcheck", "--url", &url]).await.unwrap();
    served.stop.cancel();
    let nobody = ["healthcheck", "--port", "1", "--bind", "127.0.0.1"];
    let no = check(&nobody).await.unwrap_err();
    assert!(matches!(&no, Failure::No(why) if why.starts_with("no answer")), "{no}");
}

async fn check(line: &[&str]) -> Result<(), Failure> {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: healthcheck::HealthcheckArgs,
    }
    healthcheck::run(&Line::parse_from(line).args).await
}

// ── secrets ──────────────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn no_answer_holds_a_secret_whatever_the_errors_of_libraries_quote() {
    const CANARY: &str = "cAnArY9f8e7d6c5b4a";
    let url = SecretUrl::parse(&format!("wss://user:{CANARY}@node.example/v2/{CANARY}?key={CANARY}")).unwrap();
    let name = url.to_string();
    let served = Served::fresh(Profile { providers: vec![name.clone()], ..profile() }).await;
    let quoted =
        |scheme: &str| format!("error sending request for url ({scheme}://u:{CANARY}@host.example/v2/{CANARY})");
    served.vitals.edge(Edge::Provider(name), Err(&quoted("https")));
    served.vitals.edge(Edge::Store, Err(&quoted("rediss")));
    served.vitals.edge(Edge::Tokens, Err(&quoted("mongodb+srv")));
    served.vitals.edge(Edge::Sink(QUEUE.to_owned()), Err(&quoted("https")));
    served.vitals.note("durability", Some(quoted("rediss")));
    served.vitals.halt(Some(&quoted("https")));
    served.silence(40);
    for path in ["/health", "/livez", "/readyz", "/readyz?verbose", "/metrics", "/nowhere"] {
        let (_, body) = served.get(path).await;
        assert!(!body.contains(CANARY), "{path}: {body}");
        assert!(path != "/health" || body.contains("host.example"), "the reasons are there: {body}");
    }
}

//! Logs and error reports as a process gives them: each test starts this very program again, as a process with a role.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "what fails here fails the test")]

mod support;

use std::{
    error::Error,
    fmt,
    io::Read,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use chaintap::{
    config::{LogFormat, SecretUrl},
    telemetry::{
        logging::{self, LogGuard},
        sentry,
    },
};
use serde_json::Value;
use support::process::{eventually, free_port};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::Command,
    time::{Instant, timeout},
};
use tracing::{debug, error, info, info_span, trace, warn};

const ROLE: &str = "TELEMETRY_TEST_ROLE";
const DSN: &str = "TELEMETRY_TEST_DSN";
const URL: &str = "https://user:CANARY1@node.example/v2/CANARY2?apikey=CANARY3";

/// What the started process does; by itself it does nothing.
#[test]
fn a_process_with_a_role() {
    match std::env::var(ROLE).unwrap_or_default().as_str() {
        "json" => speak(Some(LogFormat::Json)),
        "default" => speak(None),
        "flood" => drop(flood()),
        "flood and wait" => flood_and_wait(),
        "panic" => {
            let _logs = logging::init("info", Some(LogFormat::Json)).unwrap();
            std::thread::spawn(|| panic!("no answer from {URL}")).join().unwrap_err();
        }
        "report" => report(),
        _ => {}
    }
}

fn speak(format: Option<LogFormat>) {
    let _logs = logging::init("trace,chaintap=trace", format).unwrap();
    let _span = info_span!("block", number = 7).entered();
    trace!("tracing");
    debug!(url = URL, "debugging");
    info!(blocks = 3, password = "CANARY4", "informing about {URL}");
    error!(error = &Fault as &dyn Error, "it {}", "failed\u{1b}[31m\nor not");
    info!(target: "hyper::client", path = "/v2/CANARY5", "said by a dependency");
    debug!(target: "hyper::client", path = "/v2/CANARY6", "whispered by a dependency");
}

fn flood() -> LogGuard {
    let logs = logging::init("info", Some(LogFormat::Json)).unwrap();
    for n in 0..100_000 {
        info!(n, text = "x".repeat(100), "more");
    }
    logs
}

fn flood_and_wait() {
    let _logs = flood();
    println!("flooded");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn report() {
    let _logs = logging::init("info", Some(LogFormat::Json)).unwrap();
    let dsn = SecretUrl::parse(&std::env::var(DSN).unwrap()).unwrap();
    let _reports = sentry::init(Some(&dsn), "chaintap@9.9.9".into(), "testing".into(), 8453).unwrap().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let worker = runtime.spawn(async {
        info!(endpoint = URL, "what came before {URL}");
        warn!(api_key = "CANARY4", "and before that");
        error!(error = &Fault as &dyn Error, url = URL, password = "CANARY5", "cannot reach {URL}");
        for _ in 0..50 {
            error!("the same again");
        }
        panic!("gave up on {URL}");
    });
    runtime.block_on(worker).unwrap_err();
}

#[derive(Debug)]
struct Fault;

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error sending request for url ({URL})")
    }
}

impl Error for Fault {}

fn process(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_process_with_a_role", "--nocapture"]).env(ROLE, role);
    command.env_remove("RUST_LOG").env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn output_of(role: &str) -> (String, Output) {
    let output = timeout(Duration::from_secs(30), process(role).output()).await.unwrap().unwrap();
    (String::from_utf8(output.stderr.clone()).unwrap(), output)
}

/// R25.
fn assert_no_secret(text: &str) {
    for secret in ["CANARY1", "CANARY2", "CANARY3", "CANARY4", "CANARY6"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn json_lines_have_flat_fields_a_utc_time_and_no_secrets_at_any_level() {
    let (text, output) = output_of("json").await;
    assert!(output.status.success(), "{text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: Vec<_> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(said[..3], ["tracing", "debugging", "informing about https://node.example"]);
    assert_eq!((said.len(), said[4]), (5, "said by a dependency"));
    assert_eq!(lines[2]["blocks"], 3);
    assert_eq!(lines[2]["password"], "***");
    assert_eq!(lines[2]["level"], "INFO");
    assert_eq!(lines[2]["target"], "telemetry");
    assert_eq!(lines[2]["span"]["number"], 7);
    assert_eq!(lines[3]["error"], "error sending request for url (https://node.example)");
    let time = lines[2]["timestamp"].as_str().unwrap();
    assert!(time.len() >= 20 && time.contains('T') && time.ends_with('Z'), "{time}");
    assert_no_secret(&text);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("informing"), "logs are on standard error");
}

#[tokio::test]
async fn without_a_terminal_the_default_is_json() {
    let (text, _) = output_of("default").await;
    assert!(text.lines().all(|line| line.starts_with('{')), "{text}");
}

#[tokio::test]
async fn a_panic_is_one_line_of_the_log_without_its_secrets() {
    let (text, _) = output_of("panic").await;
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert_eq!(lines[0]["level"], "ERROR");
    assert_eq!(lines[0]["reason"], "no answer from https://node.example");
    assert!(lines[0]["place"].as_str().unwrap().starts_with("tests/telemetry.rs:"), "{text}");
    assert_no_secret(&text);
}

#[tokio::test]
async fn a_reader_that_never_reads_holds_nothing_up() {
    let started = Instant::now();
    let mut process = process("flood").stdout(Stdio::null()).spawn().unwrap();
    // 100,000 lines into a pipe of 64 KiB that nobody reads.
    let status = timeout(Duration::from_mins(1), process.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status} after {:?}", started.elapsed());
}

#[tokio::test]
async fn a_reader_that_comes_late_learns_how_many_lines_were_dropped() {
    let mut process = process("flood and wait").stdin(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
    while output.next_line().await.unwrap().unwrap() != "flooded" {}

    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let mut input = process.stdin.take();
    let (mut said, mut dropped) = (0, 0);
    while let Some(line) = lines.next_line().await.unwrap() {
        let line: Value = serde_json::from_str(&line).unwrap();
        said += u64::from(line["message"] == "more");
        dropped += line["lines"].as_u64().unwrap_or_default();
        if said + dropped == 100_000 {
            input.take();
        }
    }
    assert!(dropped > 0, "{said} said");
    assert_eq!(said + dropped, 100_000, "{dropped} dropped");
    assert!(process.wait().await.unwrap().success());
}

#[tokio::test]
async fn a_closed_standard_error_ends_nothing() {
    let mut process = process("flood").stdout(Stdio::null()).spawn().unwrap();
    drop(process.stderr.take());
    assert!(timeout(Duration::from_mins(1), process.wait()).await.unwrap().unwrap().success());
}

/// What arrived at a stand-in for Sentry: the JSON items of its envelopes.
type Received = Arc<Mutex<Vec<String>>>;

async fn sentry_server() -> (String, Received) {
    async fn take(State(received): State<Received>, body: Bytes) -> &'static str {
        received.lock().unwrap().push(String::from_utf8_lossy(&body).into_owned());
        "{}"
    }
    let received = Received::default();
    let routes = Router::new().route("/api/{project}/envelope/", post(take)).with_state(Arc::clone(&received));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dsn = format!("http://CANARY1@{}/42", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, routes).await.unwrap() });
    (dsn, received)
}

/// The events among the items of all envelopes.
fn events(received: &Received) -> Vec<Value> {
    let envelopes = received.lock().unwrap();
    let items = envelopes.iter().flat_map(|envelope| envelope.lines().skip(1));
    items
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|item: &Value| item["event_id"].is_string())
        .collect()
}

#[tokio::test]
async fn errors_and_panics_are_reported_with_what_came_before_and_without_secrets() {
    let (dsn, received) = sentry_server().await;
    let output = timeout(Duration::from_secs(30), process("report").env(DSN, dsn).output()).await.unwrap().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{log}");
    eventually("all arrived", Duration::from_secs(5), || async { events(&received).len() >= 7 }).await;

    let events = events(&received);
    assert_eq!(events.len(), 7, "one fault, five of the fifty that are the same, one panic: {events:#?}");
    let first = events[0].to_string();
    assert!(first.contains("cannot reach https://node.example") && first.contains("what came before"), "{first}");
    let panic = &events[6];
    let exception = &panic["exception"]["values"][0];
    assert_eq!((&panic["level"], &exception["type"]), (&"fatal".into(), &"panic".into()));
    assert_eq!(exception["value"], "gave up on https://node.example");
    assert!(exception["stacktrace"]["frames"].is_array(), "{panic:#}");
    for event in &events {
        assert_eq!(event["release"], "chaintap@9.9.9");
        assert_eq!(event["environment"], "testing");
        assert_eq!(event["tags"]["chain_id"], "8453");
        assert!(event.get("user").is_none(), "nothing personal: {event:#}");
        assert_no_secret(&event.to_string());
        assert!(!event.to_string().contains("CANARY5"), "{event:#}");
    }
    assert_no_secret(&log);
}

#[tokio::test]
async fn a_sentry_that_is_away_delays_the_end_by_little() {
    let started = Instant::now();
    let dsn = format!("http://key@127.0.0.1:{}/42", free_port());
    let output = timeout(Duration::from_secs(30), process("report").env(DSN, dsn).output()).await.unwrap().unwrap();
    assert!(output.status.success());
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

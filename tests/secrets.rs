//! R25: a secret that is given to the process is seen by the server that it is for, and by nobody else: not in logs at
//! trace level, not in errors, not over HTTP, not in reports to Sentry, not in the list of processes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what fails here fails the test"
)]

mod support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use chaintap::devchain::Options;
use serde_json::json;
use support::{
    chaintap::{Listener, Settings},
    devchain::{Devchain, still},
    faulty_node::{Fault, FaultyNode, black_hole},
    process::{eventually, free_port},
    redis::RedisServer,
    sqs::{Misbehaviour, SqsServer},
};
use tokio::{net::TcpListener, time::sleep};
use tokio_util::task::AbortOnDropHandle;

const SOON: Duration = Duration::from_mins(1);
/// Also the crates that are quiet unless they are named.
const LOUDEST: &str = "trace,alloy=trace,alloy_transport_ws=trace,alloy_pubsub=trace,alloy_rpc_client=trace,aws_config=trace,\
                       hickory_resolver=trace,mongodb=trace,redis=trace,hyper=trace,reqwest=trace,rustls=trace";
/// How long a listener may fail before its words are looked at: longer than `/readyz` and every retry need to speak.
const LONG_ENOUGH: Duration = Duration::from_secs(14);
/// The development chain's database.
const DATABASE: u8 = 15;

/// Something secret, and the other forms in which it travels.
const CANARIES: [&str; 14] = [
    "canary-rpc-user-5b1d",
    "canary-rpc-pass-77c2",
    "canaryrpcpath0e9f41",
    "canaryrpcquery93ab7",
    "canaryrpcsocket1c4d",
    "canary-redis-pass-3e",
    "canary-mongo-pass-8a",
    "canarysentrykey04f1",
    "AKIACANARYCANARY9Q7X",
    "canary/aws/secret/key/52d0",
    "canary-aws-session-token-61",
    "Y2FuYXJ5LXJwYy11c2Vy", // base64 of the first
    "canary-redis-file-c3",
    "canary-mongo-file-19",
];

fn assert_clean(place: &str, text: &str) {
    let lower = text.to_lowercase();
    for canary in CANARIES {
        if let Some(at) = lower.find(&canary.to_lowercase()) {
            let around: String = text.get(at.saturating_sub(300)..(at + 200).min(text.len())).unwrap_or("").into();
            panic!("{canary} in {place}: …{around}…");
        }
    }
}

/// A listener with a secret in every place, at the greatest verbosity.
fn telltale(node: &str, socket: &str, redis: &str, mongo: Option<&str>, queue: &str) -> Settings {
    let providers = format!(
        "http://canary-rpc-user-5b1d:canary-rpc-pass-77c2@{node}/v2/canaryrpcpath0e9f41?apikey=canaryrpcquery93ab7,\
         ws://canary-rpc-user-5b1d:canary-rpc-pass-77c2@{socket}/ws/canaryrpcsocket1c4d?key=canaryrpcquery93ab7"
    );
    let settings = Settings::default()
        .set("CHAIN_ID", 31_337)
        .set("WEB3_PROVIDER", providers)
        .set("RPC_TIMEOUT", "2s")
        .set("REDIS_URL", format!("redis://:canary-redis-pass-3e@{redis}/{DATABASE}"))
        .set("TRANSFER_HANDLER_SQS", format!("http://{queue}/000000000000/transfers"))
        .set("AWS_ENDPOINT_URL_SQS", format!("http://{queue}"))
        .set("AWS_REGION", "us-east-1")
        .set("AWS_ACCESS_KEY_ID", "AKIACANARYCANARY9Q7X")
        .set("AWS_SECRET_ACCESS_KEY", "canary/aws/secret/key/52d0")
        .set("AWS_SESSION_TOKEN", "canary-aws-session-token-61")
        .set("SINK_TIMEOUT", "3s")
        .set("LOG_LEVEL", "trace")
        .set("RUST_LOG", LOUDEST);
    match mongo {
        Some(mongo) => settings.set(
            "MONGODB_URI",
            format!("mongodb://user:canary-mongo-pass-8a@{mongo}/shop?authSource=admin&directConnection=true"),
        ),
        None => settings,
    }
}

async fn assert_listener_clean(what: &str, listener: &Listener) {
    for path in ["/health", "/readyz?verbose", "/readyz", "/livez", "/metrics"] {
        let (_, body) = listener.get(path).await.expect(path);
        assert!(!body.is_empty());
        assert_clean(&format!("{path} of {what}"), &body);
    }
    let arguments = std::fs::read(format!("/proc/{}/cmdline", listener.pid())).unwrap();
    assert_clean(&format!("the arguments of {what}"), &String::from_utf8_lossy(&arguments));
    let log = listener.log();
    assert_clean(&format!("the log of {what}"), &log);
    assert_clean(&format!("standard output of {what}"), &listener.output());
}

/// Stops it and looks at its last words.
async fn assert_end_clean(what: &str, listener: Listener) {
    let (_, messages, log) = listener.stop().await;
    assert_clean(&format!("the log of {what}"), &log);
    assert_clean(&format!("messages of {what}"), &format!("{messages:?}"));
}

/// A stand-in for Sentry: its address, what arrived, and the guard that ends it.
async fn sentry_server() -> (String, Arc<Mutex<Vec<String>>>, AbortOnDropHandle<()>) {
    type Received = Arc<Mutex<Vec<String>>>;
    async fn take(State(received): State<Received>, headers: HeaderMap, body: Bytes) -> &'static str {
        let known = headers["x-sentry-auth"].to_str().unwrap().contains("canarysentrykey04f1");
        assert!(known, "the key goes to Sentry in its header");
        received.lock().unwrap().push(String::from_utf8_lossy(&body).into_owned());
        "{}"
    }
    let received = Received::default();
    let routes = Router::new().route("/api/{project}/envelope/", post(take)).with_state(Arc::clone(&received));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dsn = format!("http://canarysentrykey04f1@{}/42", listener.local_addr().unwrap());
    let task = tokio::spawn(async { axum::serve(listener, routes).await.unwrap() });
    (dsn, received, AbortOnDropHandle::new(task))
}

/// Everything works first; then the node fails, the queue refuses and poisons, Redis forgets the password.
#[tokio::test]
async fn r25_a_listener_that_works_and_then_loses_each_server_tells_no_secret() {
    let chain = Devchain::start(Options { logs_per_block: 5, ..still(100) }).await;
    let (node, redis, sqs) = tokio::join!(FaultyNode::before(chain.rpc()), RedisServer::start(), SqsServer::stub());
    let (dsn, reports, _sentry) = sentry_server().await;
    redis.cli::<()>(0, "CONFIG SET requirepass canary-redis-file-c3").await;
    sqs.create_queue("transfers", 1 << 18).await;
    let place = sqs.endpoint().trim_start_matches("http://").to_owned();
    let settings = telltale(&node.address.to_string(), &node.address.to_string(), "unused", None, &place);
    // The stub knows its queues by the URL that it gave.
    let settings = settings.set("TRANSFER_HANDLER_SQS", "http://queue.test/000000000000/transfers");
    let file = settings.home().join("redis-url");
    std::fs::write(&file, format!("redis://:canary-redis-file-c3@127.0.0.1:{}/{DATABASE}\n", redis.port)).unwrap();
    let settings = settings.unset("REDIS_URL").set("REDIS_URL_FILE", file.display()).set("SENTRY_DSN", dsn);
    let listener = settings.start();
    listener.wait_watermark(100, SOON).await;
    assert!(listener.log().contains("DEBUG"), "it says all that it can");
    assert_listener_clean("a working listener", &listener).await;

    sqs.script([Misbehaviour::Fail { places: vec![0], code: "InvalidMessageContents", sender_fault: true }]);
    chain.rpc().call("devchain_mine", json!([1])).await;
    listener.wait_watermark(101, SOON).await;
    sqs.script([
        Misbehaviour::Error { status: 403, code: "SignatureDoesNotMatch" },
        Misbehaviour::Error { status: 400, code: "ExpiredToken" },
        Misbehaviour::LoseAnswer,
    ]);
    for fault in [Fault::Status(401, None), Fault::Status(429, Some(1)), Fault::Truncated] {
        node.fail(fault);
        sleep(Duration::from_secs(1)).await;
        node.behave();
    }
    chain.rpc().call("devchain_mine", json!([1])).await;
    listener.wait_watermark(102, SOON).await;
    eventually("Sentry heard of the dead letter", SOON, || async { !reports.lock().unwrap().is_empty() }).await;
    assert_listener_clean("a listener in trouble", &listener).await;

    // Whoever holds a password that is no longer right is told so, and ends.
    let url = format!("redis://:canary-redis-file-c3@127.0.0.1:{}", redis.port);
    let client = redis::Client::open(url).unwrap();
    let mut admin = client.get_multiplexed_async_connection().await.unwrap();
    for command in ["CONFIG SET requirepass another", "CLIENT KILL TYPE normal SKIPME yes"] {
        let mut words = command.split(' ');
        let mut call = redis::cmd(words.next().unwrap());
        for word in words {
            call.arg(word);
        }
        call.query_async::<redis::Value>(&mut admin).await.unwrap();
    }
    let (code, _, log) = listener.end(SOON).await;
    assert_ne!(code, 0);
    assert!(log.contains("password"), "{log}");
    assert_clean("the last words", &log);
    for report in reports.lock().unwrap().iter() {
        assert_clean("a report to Sentry", report);
    }
}

async fn nobody_there() {
    let gone = || format!("127.0.0.1:{}", free_port());
    let settings = telltale(&gone(), &gone(), &gone(), Some(&gone()), &gone());
    let settings = settings.set("SENTRY_DSN", format!("http://canarysentrykey04f1@{}/42", gone()));
    let listener = settings.start();
    sleep(LONG_ENOUGH).await;
    assert_listener_clean("a listener without servers", &listener).await;
    assert_end_clean("a listener without servers", listener).await;
}

/// With a store, because the others are only asked once it is there; the node and the queue only with a token list.
async fn only_a_store(others: &str, sockets: &str, mongo: Option<&str>) {
    let settings = telltale(others, sockets, "unused", mongo, others).unset("REDIS_URL");
    let listener = settings.start();
    sleep(LONG_ENOUGH).await;
    let what = format!("a listener with {others}, token list at {mongo:?}");
    assert_listener_clean(&what, &listener).await;
    assert_end_clean(&what, listener).await;
}

async fn servers_that_hang() {
    let (hole, _hole) = black_hole().await;
    let hole = hole.to_string();
    let settings = telltale(&hole, &hole, &hole, Some(&hole), &hole);
    let listener = settings.start();
    sleep(LONG_ENOUGH).await;
    assert_listener_clean("a listener whose servers hang", &listener).await;
    assert_end_clean("a listener whose servers hang", listener).await;
}

async fn wrong_passwords() {
    let (redis, node) = tokio::join!(RedisServer::start(), Devchain::start(still(10)));
    redis.cli::<()>(0, "CONFIG SET requirepass another").await;
    let (redis, node) = (format!("127.0.0.1:{}", redis.port), node.address.to_string());
    let (code, out, log) = telltale(&node, &node, &redis, None, &node).output(&["run"]).await;
    assert_eq!(code, 78, "{log}");
    assert!(log.contains("password"), "{log}");
    assert_clean("a refused password", &(out + &log));
}

#[tokio::test]
async fn r25_servers_that_refuse_hang_or_are_not_there_hear_no_secret_told() {
    let gone = format!("127.0.0.1:{}", free_port());
    let (hole, _hole) = black_hole().await;
    let hole = hole.to_string();
    tokio::join!(
        nobody_there(),
        servers_that_hang(),
        only_a_store(&gone, &gone, None),
        only_a_store(&gone, &gone, Some(&gone)),
        only_a_store(&hole, &gone, None),
        only_a_store(&hole, &gone, Some(&hole)),
        wrong_passwords()
    );
}

#[tokio::test]
async fn r25_commands_tell_no_secret_whether_they_work_or_fail() {
    let gone = format!("127.0.0.1:{}", free_port());
    let settings = telltale(&gone, &gone, &gone, Some(&gone), &gone);
    let settings = settings.set("SENTRY_DSN", format!("http://canarysentrykey04f1@{gone}/42"));
    let commands: [(&[&str], &[i32]); 8] = [
        (&["check"], &[0]),
        (&["check", "--format", "json"], &[0]),
        (&["check", "--connect"], &[69]),
        (&["contracts"], &[0]),
        (&["status"], &[69]),
        (&["status", "--json"], &[69]),
        (&["tokens", "list"], &[69]),
        (&["rewind", "--to", "5"], &[69]),
    ];
    for (command, codes) in commands {
        let (code, out, log) = settings.output(command).await;
        assert!(codes.contains(&code), "{command:?}: {code}\n{out}\n{log}");
        assert_clean(&format!("{command:?}"), &(out + &log));
    }
}

#[tokio::test]
async fn r25_a_mistake_in_a_secret_is_told_without_it() {
    let broken = [
        ("WEB3_PROVIDER", "https://u:canary-rpc-pass-77c2/v2@host/x"),
        ("WEB3_PROVIDER", "ftp://canary-rpc-user-5b1d@host/canaryrpcpath0e9f41"),
        ("WEB3_PROVIDER", "canaryrpcpath0e9f41"),
        ("REDIS_URL", "redis://:canary-redis-pass-3e@host/3"),
        ("REDIS_URL", "redis://u:canary-redis-pass-3e/x@host"),
        ("MONGODB_URI", "mongodb://u:canary-mongo-pass-8a/x@host/shop"),
        ("MONGODB_URI", "mongodb://u:canary-mongo-pass-8a@host/"),
        ("SENTRY_DSN", "https://canarysentrykey04f1"),
        ("SENTRY_DSN", "canarysentrykey04f1"),
        ("AWS_SECRET_ACCESS_KEY", "canary/aws/secret/key/52d0"),
        ("AWS_ENDPOINT_URL", "http://canary-rpc-user-5b1d:canary-rpc-pass-77c2@host/"),
        ("TRANSFER_HANDLER_SQS", "https://canary-rpc-user-5b1d:canary-rpc-pass-77c2@host/1/q"),
    ];
    let good = Settings::default().set("CHAIN_ID", 31_337).set("WEB3_PROVIDER", "http://127.0.0.1:1");
    for (name, value) in broken {
        let file = good.home().join("secret");
        std::fs::write(&file, value).unwrap();
        let in_file = good.clone().unset(name).set(&format!("{name}_FILE"), file.display());
        for settings in [good.clone().set(name, value), in_file] {
            for command in ["check", "run"] {
                let (code, out, log) = settings.output(&[command]).await;
                assert_eq!(code, 78, "{command} with {name}={value}\n{log}");
                assert!(log.contains(name), "the variable is named: {log}");
                assert_clean(&format!("{command} with a wrong {name}"), &(out + &log));
            }
        }
    }
}

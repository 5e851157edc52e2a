//! History to Amazon SQS, held against a bare loop of `SendMessageBatch` of the same messages to the same server.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use aws_config::BehaviorVersion;
use aws_sdk_sqs::{
    Client,
    config::{Credentials, Region, retry::RetryConfig},
    types::{MessageAttributeValue, QueueAttributeName, SendMessageBatchRequestEntry},
};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::{runtime::Runtime, task::JoinSet};

use crate::{
    block_on,
    chain::FIRST,
    history::TURNS,
    listening::Settings,
    measured::{self, Run, Runs, Server, number, this},
    report::{Figure, Plot, Section, count},
    scene::turns,
    servers::{self, Running},
    stub::{Received, Stub},
};

/// Entries of a batch (Amazon SQS quotas).
const BATCH: u64 = 10;
/// Blocks that are sent to the stub, and to the emulator, which is slower.
const BLOCKS: [u64; 2] = [4_000, 2_000];
/// Requests to the node at once, to begin with; up to four times as many where it serves them well. How many calls of
/// the queue follow from that is counted.
const PARALLEL: usize = 1;

/// The references, which this program is started as.
pub fn role(arguments: &[&str]) -> bool {
    let (plain, endpoint, queue, messages, at_once, body) = match arguments {
        ["queue-sdk", endpoint, queue, messages, at_once, body] => (false, endpoint, queue, messages, at_once, body),
        ["queue-plain", endpoint, queue, messages, at_once, body] => (true, endpoint, queue, messages, at_once, body),
        _ => return false,
    };
    let work = Arc::new(Work {
        queue: (*queue).to_owned(),
        body: std::fs::read_to_string(body).unwrap(),
        left: AtomicU64::new(messages.parse().unwrap()),
    });
    let at_once = at_once.parse().unwrap();
    println!("{}", block_on(send_all(endpoint, work, at_once, plain)));
    true
}

/// What is left to send.
struct Work {
    queue: String,
    body: String,
    left: AtomicU64,
}

impl Work {
    /// The next batch: how many, and the number of the last.
    fn next(&self) -> Option<(u64, u64)> {
        let take = |left: u64| (left > 0).then(|| left - left.min(BATCH));
        let left = self.left.try_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some((left.min(BATCH), left))
    }
}

/// The attributes that a listener gives a message.
fn attributes(message: u64) -> [(&'static str, String); 4] {
    [
        ("eventType", "Transfer".to_owned()),
        ("chainId", "1".to_owned()),
        ("contractAddress", format!("0x{message:040x}")),
        ("id", format!("1:0x{:064x}:{message}", message / 80)),
    ]
}

async fn send_all(endpoint: &str, work: Arc<Work>, at_once: usize, plain: bool) -> u64 {
    let (sdk, http) = (client(endpoint).await, reqwest::Client::new());
    let endpoint = endpoint.to_owned();
    let mut senders = JoinSet::new();
    for _ in 0..at_once {
        let (sdk, http, endpoint, work) = (sdk.clone(), http.clone(), endpoint.clone(), Arc::clone(&work));
        senders.spawn(async move {
            let mut sent = 0;
            while let Some((count, last)) = work.next() {
                if plain {
                    plain_batch(&http, &endpoint, &work, last - count..last).await;
                } else {
                    sdk_batch(&sdk, &work, last - count..last).await;
                }
                sent += count;
            }
            sent
        });
    }
    senders.join_all().await.into_iter().sum()
}

async fn sdk_batch(client: &Client, work: &Work, messages: std::ops::Range<u64>) {
    let entries = messages.enumerate().map(|(place, message)| {
        let mut entry = SendMessageBatchRequestEntry::builder().id(place.to_string()).message_body(&work.body);
        for (name, value) in attributes(message) {
            let value = MessageAttributeValue::builder().data_type("String").string_value(value).build();
            entry = entry.message_attributes(name, value.unwrap());
        }
        entry.build().unwrap()
    });
    let request = client.send_message_batch().queue_url(&work.queue).set_entries(Some(entries.collect()));
    assert!(request.send().await.unwrap().failed().is_empty());
}

/// The same batch without the SDK: neither its types nor a signature.
async fn plain_batch(client: &reqwest::Client, endpoint: &str, work: &Work, messages: std::ops::Range<u64>) {
    let entries = messages.enumerate().map(|(place, message)| {
        let attributes = attributes(message)
            .map(|(name, value)| (name.to_owned(), json!({ "DataType": "String", "StringValue": value })));
        let attributes: serde_json::Map<String, Value> = attributes.into_iter().collect();
        json!({ "Id": place.to_string(), "MessageBody": work.body, "MessageAttributes": attributes })
    });
    let batch = json!({ "QueueUrl": work.queue, "Entries": entries.collect::<Vec<_>>() });
    let request = client.post(endpoint).header("x-amz-target", "AmazonSQS.SendMessageBatch");
    let answer = request.header("content-type", "application/x-amz-json-1.0").body(batch.to_string()).send().await;
    let answer: Value = serde_json::from_slice(&answer.unwrap().bytes().await.unwrap()).unwrap();
    assert_eq!(answer["Failed"], json!([]));
}

/// As the listener configures it.
async fn client(endpoint: &str) -> Client {
    chaintap::crypto::init();
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let config = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .retry_config(RetryConfig::disabled())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new("test", "test", None, None, "bench"));
    Client::new(&config.load().await)
}

/// Where messages go, and what arrived there.
enum Target {
    Stub(Stub),
    Emulator { _process: Running, endpoint: String, queues: AtomicU64 },
}

impl Target {
    fn endpoint(&self) -> String {
        match self {
            Self::Stub(stub) => stub.endpoint(),
            Self::Emulator { endpoint, .. } => endpoint.clone(),
        }
    }

    /// A queue that nothing was sent to.
    fn queue(&self, runtime: &Runtime) -> String {
        match self {
            Self::Stub(stub) => {
                stub.take();
                stub.queue()
            }
            Self::Emulator { endpoint, queues, .. } => {
                let name = format!("transfers-{}", queues.fetch_add(1, Ordering::Relaxed));
                let created = async { client(endpoint).await.create_queue().queue_name(name).send().await };
                runtime.block_on(created).unwrap().queue_url().unwrap().to_owned()
            }
        }
    }

    /// How many messages arrived in it, no two with one id where that is known. Then it is gone: an emulator that keeps
    /// what every run sent runs out of memory.
    fn arrived(&self, runtime: &Runtime, queue: &str) -> u64 {
        match self {
            Self::Stub(stub) => {
                let received = stub.take();
                assert_eq!(received.messages, received.distinct, "a message came twice");
                received.messages
            }
            Self::Emulator { endpoint, .. } => runtime.block_on(async {
                let client = client(endpoint).await;
                let request = client.get_queue_attributes().queue_url(queue);
                let answer = request.attribute_names(QueueAttributeName::All).send().await.unwrap();
                client.delete_queue().queue_url(queue).send().await.unwrap();
                answer.attributes().unwrap()[&QueueAttributeName::ApproximateNumberOfMessages].parse().unwrap()
            }),
        }
    }
}

/// What was sent to one server, and how.
struct Measured {
    messages: u64,
    listened: Runs,
    sdk: Runs,
    plain: Runs,
}

/// Measures it.
pub fn measure() -> Section {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stub = Stub::start(&runtime, |_| ());
    // One run before all others: what the listener sends, and how much of it at once.
    let [many, few] = BLOCKS;
    let node = Server::start(&["node", &many.to_string(), "0", "even"]);
    listen(&node, many, &stub.endpoint(), &stub.queue());
    let Received { connections: at_once, body, .. } = stub.take();
    let mut sample = NamedTempFile::new().unwrap();
    sample.write_all(body.as_bytes()).unwrap();
    let sample = sample.path().to_str().unwrap();
    let to_stub = against(&runtime, &Target::Stub(stub), many, (at_once, sample));
    let (process, endpoint) = servers::emulator();
    let emulator = Target::Emulator { _process: process, endpoint, queues: AtomicU64::new(0) };
    let to_emulator = against(&runtime, &emulator, few, (at_once, sample));
    section(&to_stub, &to_emulator, at_once)
}

/// The listener, (c) and the loop without the SDK take turns; after each run what arrived is counted.
fn against(runtime: &Runtime, target: &Target, blocks: u64, (at_once, sample): (u64, &str)) -> Measured {
    let mut node = Server::start(&["node", &blocks.to_string(), "0", "even"]);
    let messages: u64 = node.ask("all").split(' ').next().unwrap().parse().unwrap();
    let endpoint = target.endpoint();
    let checked = |run: &dyn Fn(&str) -> Run| {
        let queue = target.queue(runtime);
        let run = run(&queue);
        assert_eq!(target.arrived(runtime, &queue), messages, "not all messages arrived, or more");
        Run { count: messages, ..run }
    };
    let reference = |role: &str, queue: &str| {
        let (messages, at_once) = (messages.to_string(), at_once.to_string());
        measured::run(this().args([role, &endpoint, queue, &messages, &at_once, sample]), number)
    };
    let [listened, sdk, plain] = turns(
        TURNS,
        [
            &|| checked(&|queue| listen(&node, blocks, &endpoint, queue)),
            &|| checked(&|queue| reference("queue-sdk", queue)),
            &|| checked(&|queue| reference("queue-plain", queue)),
        ],
    );
    Measured { messages, listened, sdk, plain }
}

fn listen(node: &Server, blocks: u64, endpoint: &str, queue: &str) -> Run {
    let settings = Settings::new(&format!("http://{}/", node.address), PARALLEL, "12s").queue(endpoint, queue);
    let until = (FIRST + blocks - 1).to_string();
    measured::run(settings.command().args(["--until", &until]), measured::lines)
}

impl Measured {
    /// The listener's rate as a part of (c)'s.
    fn ratio(&self) -> f64 {
        self.sdk.times(&self.listened)
    }

    fn figure(&self, what: &str) -> Figure {
        let [ours, theirs] = [&self.listened, &self.sdk].map(|runs| count(runs.rate().round() as u64));
        Figure {
            what: format!("{} messages to {what}", count(self.messages)),
            measured: format!("{ours}/s, (c) {theirs}/s: {:.2} of it", self.ratio()),
            asked: "≥ 0.9 of (c)".into(),
            met: Some(self.ratio() >= 0.9),
        }
    }

    /// Microseconds of processor time a message.
    fn cpu(&self, runs: &Runs) -> f64 {
        runs.cpu() * 1e6 / self.messages as f64
    }
}

fn section(stub: &Measured, emulator: &Measured, at_once: u64) -> Section {
    let [ours, theirs, plain] = [&stub.listened, &stub.sdk, &stub.plain].map(|runs| stub.cpu(runs));
    let peak = stub.listened.peak().max(emulator.listened.peak());
    let figures = vec![
        stub.figure("a stub that only acknowledges"),
        emulator.figure("an emulator (fauxqs)"),
        Figure::told(
            "processor time a message: chaintap, (c), the same batches without the SDK",
            format!("{ours:.1} µs, {theirs:.1} µs, {plain:.1} µs"),
        ),
        Figure::told("of it what the SDK costs: (c) less the one without", format!("{:.1} µs", theirs - plain)),
        Figure {
            what: "largest resident size of chaintap".into(),
            measured: format!("{peak:.0} MiB"),
            asked: "≤ 64 MiB".into(),
            met: Some(peak <= 64.0),
        },
    ];
    let bars = [("stub", stub), ("emulator", emulator)].map(|(server, measured)| {
        [
            (format!("chaintap, {server}"), measured.listened.rate()),
            (format!("(c) the SDK alone, {server}"), measured.sdk.rate()),
            (format!("without the SDK, {server}"), measured.plain.rate()),
        ]
    });
    Section {
        title: "History to Amazon SQS".into(),
        says: format!(
            "The listener downloads history and sends it to a standard queue, from its start to its end. (c) is a bare \
             loop of SendMessageBatch: as many messages, each with the body of one of the listener's and attributes of the \
             same form, {BATCH} a batch, by the SDK configured in the same way, with as many calls at once as the listener \
             opened connections ({at_once}). What arrived is counted at the server after every run; at the stub no id came \
             twice. Medians of {TURNS} turns."
        ),
        figures,
        plot: Some(Plot { file: "queue.svg".into(), unit: "messages/s".into(), bars: bars.concat() }),
    }
}

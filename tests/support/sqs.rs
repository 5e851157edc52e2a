//! Queue servers: two that others wrote (fauxqs, moto) and one that misbehaves on request.
//!
//! None of the emulators throttles, fails single entries or loses an acknowledgement, so [`SqsServer::stub`] speaks the
//! same protocol (AWS JSON 1.0) and does. It passes the same contract tests as the emulators.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_sdk_sqs::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
    types::{MessageSystemAttributeName, QueueAttributeName},
};
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use chaintap::sinks::sqs::AwsAccess;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio_util::task::AbortOnDropHandle;

use super::process::{dev_dir, eventually, free_port, spawn};

const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// Longer than any patience in the tests.
const FOR_EVER: Duration = Duration::from_mins(10);
/// The total of a batch that AWS takes, and fauxqs and moto too.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// A server that was started for a test.
pub struct SqsServer {
    endpoint: String,
    client: Client,
    stub: Option<Arc<Stub>>,
    running: Running,
}

enum Running {
    Child(Child),
    #[expect(dead_code, reason = "ends the task when it is dropped")]
    Task(AbortOnDropHandle<()>),
}

/// A message as a consumer gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub body: String,
    pub attributes: BTreeMap<String, (String, String)>,
    pub group: Option<String>,
    pub deduplication_id: Option<String>,
}

impl SqsServer {
    /// fauxqs (npm) on loopback; its command line would listen everywhere.
    pub async fn fauxqs() -> Self {
        let port = free_port();
        let script = format!(
            "import('{}').then(({{ buildApp }}) => buildApp({{ logger: false, defaultRegion: 'us-east-1' }}) \
             .listen({{ port: {port}, host: '127.0.0.1' }}))",
            dev_dir().join("node_modules/fauxqs/dist/app.js").display()
        );
        let child = spawn(Command::new("node").args(["-e", &script]));
        Self::started(port, Running::Child(child)).await
    }

    /// moto, from `PyPI`.
    pub async fn moto() -> Self {
        let port = free_port();
        let mut command = Command::new(dev_dir().join("venv/bin/moto_server"));
        let child = spawn(command.args(["-H", "127.0.0.1", "-p", &port.to_string()]));
        Self::started(port, Running::Child(child)).await
    }

    /// The one that misbehaves on request, see [`Self::script`].
    pub async fn stub() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stub = Arc::new(Stub::default());
        let router = Router::new().route("/", post(answer)).with_state(Arc::clone(&stub));
        let router = router.layer(axum::extract::DefaultBodyLimit::max(16 << 20));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { stub: Some(stub), ..Self::started(port, Running::Task(AbortOnDropHandle::new(task))).await }
    }

    async fn started(port: u16, running: Running) -> Self {
        let endpoint = format!("http://127.0.0.1:{port}");
        let mut server = Self { client: admin(&endpoint), endpoint, stub: None, running };
        eventually("the queue server answers", STARTS_WITHIN, || async {
            server.client.list_queues().send().await.is_ok()
        })
        .await;
        // Another server on the same port would have ended ours.
        if let Running::Child(child) = &mut server.running {
            assert!(child.try_wait().unwrap().is_none(), "the queue server ended");
        }
        server
    }

    /// How the sink reaches this server.
    pub fn access(&self) -> AwsAccess {
        AwsAccess {
            region: Some("us-east-1".to_owned()),
            endpoint: Some(self.endpoint.clone()),
            keys: Some(("test".into(), "test".into())),
            session_token: None,
        }
    }

    /// Creates a queue (FIFO by its name) that takes messages of up to `max_bytes`; its URL.
    pub async fn create_queue(&self, name: &str, max_bytes: usize) -> String {
        let mut request = self.client.create_queue().queue_name(name);
        request = request.attributes(QueueAttributeName::MaximumMessageSize, max_bytes.to_string());
        if std::path::Path::new(name).extension().is_some_and(|suffix| suffix == "fifo") {
            request = request.attributes(QueueAttributeName::FifoQueue, "true");
        }
        request.send().await.unwrap().queue_url().unwrap().to_owned()
    }

    /// Changes what a queue takes.
    pub async fn resize_queue(&self, url: &str, max_bytes: usize) {
        let request = self.client.set_queue_attributes().queue_url(url);
        request.attributes(QueueAttributeName::MaximumMessageSize, max_bytes.to_string()).send().await.unwrap();
    }

    /// Takes everything out of a queue, in the order in which it comes.
    pub async fn drain(&self, url: &str) -> Vec<Received> {
        let mut all = Vec::new();
        loop {
            let request = self.client.receive_message().queue_url(url).max_number_of_messages(10).wait_time_seconds(0);
            let request = request.message_attribute_names("All");
            let answer = request.message_system_attribute_names(MessageSystemAttributeName::All).send().await.unwrap();
            if answer.messages().is_empty() {
                return all;
            }
            for message in answer.messages() {
                all.push(received(message));
                let delete = self.client.delete_message().queue_url(url);
                delete.receipt_handle(message.receipt_handle().unwrap()).send().await.unwrap();
            }
        }
    }

    /// What the stub does to the next batches, one after the other; after that it behaves.
    pub fn script(&self, script: impl IntoIterator<Item = Misbehaviour>) {
        self.misbehaving().script.lock().unwrap().extend(script);
    }

    /// The stub behaves again, whatever was still to come.
    pub fn behave(&self) {
        self.misbehaving().script.lock().unwrap().clear();
    }

    /// Takes a queue away, with what is in it.
    pub async fn delete_queue(&self, url: &str) {
        self.client.delete_queue().queue_url(url).send().await.unwrap();
    }

    /// A client of it, for consumers.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The ids of the entries of each batch that the stub got since the last time it was asked.
    pub fn batches(&self) -> Vec<Vec<String>> {
        std::mem::take(&mut *self.misbehaving().batches.lock().unwrap())
    }

    fn misbehaving(&self) -> &Stub {
        self.stub.as_ref().expect("only the stub misbehaves")
    }
}

fn admin(endpoint: &str) -> Client {
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint);
    Client::from_conf(config.build())
}

fn received(message: &aws_sdk_sqs::types::Message) -> Received {
    let attributes = message.message_attributes().into_iter().flatten();
    let system = |name| message.attributes().and_then(|all| all.get(&name)).cloned();
    Received {
        body: message.body().unwrap().to_owned(),
        attributes: attributes
            .map(|(name, value)| {
                (name.clone(), (value.data_type().to_owned(), value.string_value().unwrap().to_owned()))
            })
            .collect(),
        group: system(MessageSystemAttributeName::MessageGroupId),
        deduplication_id: system(MessageSystemAttributeName::MessageDeduplicationId),
    }
}

/// What the stub does to one batch.
#[derive(Clone, Debug)]
pub enum Misbehaviour {
    /// Takes it as it should.
    None,
    /// Does not take the entries at these places.
    Fail { places: Vec<usize>, code: &'static str, sender_fault: bool },
    /// Answers with an error and takes nothing.
    Error { status: u16, code: &'static str },
    /// Takes everything and never answers.
    LoseAnswer,
    /// Takes everything and mentions only the first entry.
    Forget,
}

#[derive(Default)]
struct Stub {
    queues: Mutex<HashMap<String, Queue>>,
    script: Mutex<VecDeque<Misbehaviour>>,
    batches: Mutex<Vec<Vec<String>>>,
}

#[derive(Default)]
struct Queue {
    attributes: serde_json::Map<String, Value>,
    waiting: VecDeque<Value>,
    seen: HashSet<String>,
}

type Answer = Result<Value, (u16, &'static str)>;

async fn answer(State(stub): State<Arc<Stub>>, headers: HeaderMap, body: String) -> Response {
    let action = headers["x-amz-target"].to_str().unwrap().trim_start_matches("AmazonSQS.").to_owned();
    let request: Value = serde_json::from_str(&body).unwrap();
    let answer = if action == "SendMessageBatch" { stub.send(&request).await } else { stub.manage(&action, &request) };
    let (status, body) = match answer {
        Ok(body) => (200, body),
        Err((status, code)) => {
            (status, json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": "scripted" }))
        }
    };
    let kind = [("content-type", "application/x-amz-json-1.0")];
    (StatusCode::from_u16(status).unwrap(), kind, body.to_string()).into_response()
}

impl Stub {
    fn manage(&self, action: &str, request: &Value) -> Answer {
        let mut queues = self.queues.lock().unwrap();
        match action {
            "ListQueues" => return Ok(json!({ "QueueUrls": [] })),
            "CreateQueue" => {
                let name = request["QueueName"].as_str().unwrap();
                let url = format!("http://queue.test/000000000000/{name}");
                let attributes = request["Attributes"].as_object().cloned().unwrap_or_default();
                queues.insert(url.clone(), Queue { attributes, ..Queue::default() });
                return Ok(json!({ "QueueUrl": url }));
            }
            _ => {}
        }
        let queue = queues.get_mut(request["QueueUrl"].as_str().unwrap()).ok_or((400, "QueueDoesNotExist"))?;
        match action {
            "GetQueueAttributes" => Ok(json!({ "Attributes": queue.attributes })),
            "SetQueueAttributes" => {
                queue.attributes.extend(request["Attributes"].as_object().cloned().unwrap());
                Ok(json!({}))
            }
            "ReceiveMessage" => {
                let taken: Vec<_> = queue.waiting.drain(..queue.waiting.len().min(10)).collect();
                Ok(json!({ "Messages": taken }))
            }
            "DeleteMessage" => Ok(json!({})),
            other => panic!("the stub does not know {other}"),
        }
    }

    async fn send(&self, request: &Value) -> Answer {
        let entries = request["Entries"].as_array().unwrap();
        let ids = entries.iter().map(|entry| entry["MessageAttributes"]["id"]["StringValue"].as_str().unwrap());
        self.batches.lock().unwrap().push(ids.map(str::to_owned).collect());
        let misbehaviour = self.script.lock().unwrap().pop_front().unwrap_or(Misbehaviour::None);
        if let Misbehaviour::Error { status, code } = misbehaviour {
            return Err((status, code));
        }
        let answer = self.store(request["QueueUrl"].as_str().unwrap(), entries, &misbehaviour);
        match misbehaviour {
            Misbehaviour::LoseAnswer => {
                tokio::time::sleep(FOR_EVER).await;
                Err((500, "InternalError"))
            }
            Misbehaviour::Forget => {
                answer.map(|answer| json!({ "Successful": [answer["Successful"][0]], "Failed": [] }))
            }
            _ => answer,
        }
    }

    fn store(&self, url: &str, entries: &[Value], misbehaviour: &Misbehaviour) -> Answer {
        let mut queues = self.queues.lock().unwrap();
        let queue = queues.get_mut(url).ok_or((400, "QueueDoesNotExist"))?;
        assert!(!entries.is_empty());
        if entries.len() > 10 {
            return Err((400, "TooManyEntriesInBatchRequest"));
        }
        if entries.iter().map(size).sum::<usize>() > MAX_BATCH_BYTES {
            return Err((400, "BatchRequestTooLong"));
        }
        let (mut successful, mut failed) = (Vec::new(), Vec::new());
        for (place, entry) in entries.iter().enumerate() {
            match misbehaviour {
                Misbehaviour::Fail { places, code, sender_fault } if places.contains(&place) => {
                    failed.push(json!({ "Id": entry["Id"], "Code": code, "SenderFault": sender_fault }));
                }
                _ => match queue.take(entry) {
                    Ok(()) => successful.push(json!({ "Id": entry["Id"], "MessageId": "m", "MD5OfMessageBody": "" })),
                    Err(code) => failed.push(json!({ "Id": entry["Id"], "Code": code, "SenderFault": true })),
                },
            }
        }
        Ok(json!({ "Successful": successful, "Failed": failed }))
    }
}

impl Queue {
    fn take(&mut self, entry: &Value) -> Result<(), &'static str> {
        if size(entry) > self.attributes["MaximumMessageSize"].as_str().unwrap().parse().unwrap() {
            return Err("InvalidParameterValue");
        }
        let mut system = json!({});
        if self.attributes.get("FifoQueue").is_some_and(|fifo| fifo == "true") {
            let group = entry["MessageGroupId"].as_str().ok_or("MissingParameter")?;
            let deduplication_id = entry["MessageDeduplicationId"].as_str().ok_or("InvalidParameterValue")?;
            if !self.seen.insert(deduplication_id.to_owned()) {
                return Ok(());
            }
            system = json!({ "MessageGroupId": group, "MessageDeduplicationId": deduplication_id });
        } else if entry.get("MessageDeduplicationId").is_some() {
            return Err("InvalidParameterValue");
        }
        self.waiting.push_back(json!({
            "Body": entry["MessageBody"],
            "MessageAttributes": entry["MessageAttributes"],
            "Attributes": system,
            "ReceiptHandle": "r",
        }));
        Ok(())
    }
}

/// Body, and name, type and value of each attribute.
fn size(entry: &Value) -> usize {
    let attributes = entry["MessageAttributes"].as_object().into_iter().flatten();
    let attributes = attributes.map(|(name, value)| {
        name.len() + value["DataType"].as_str().unwrap().len() + value["StringValue"].as_str().unwrap().len()
    });
    entry["MessageBody"].as_str().unwrap().len() + attributes.sum::<usize>()
}

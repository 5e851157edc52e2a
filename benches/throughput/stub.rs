//! A queue that does nothing but acknowledge, so that what is measured against it is the sender alone.
//!
//! It speaks AWS JSON 1.0 like Amazon SQS. It does not compute `MD5OfMessageBody`: the SDK for Rust does not look at it.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::post,
    serve::ListenerExt as _,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{net::TcpListener, runtime::Runtime};

/// Any text of the right form.
const MD5: &str = "00000000000000000000000000000000";

/// What came since it was asked last.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// Messages.
    pub messages: u64,
    /// Different ids among them.
    pub distinct: u64,
    /// Connections that were opened: a sender has as many as it has calls in flight.
    pub connections: u64,
    /// The body of the first message.
    pub body: String,
}

/// Is told the ids of a batch before it is acknowledged.
type OnReceipt = Box<dyn Fn(&[&str]) + Send + Sync>;

/// The queue; ends with the runtime that it was started on.
pub struct Stub {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    on_receipt: OnReceipt,
    hasher: RandomState,
    received: Mutex<(Received, HashSet<u64>)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Batch<'a> {
    #[serde(borrow)]
    entries: Vec<Entry<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    id: &'a str,
    #[serde(borrow)]
    message_body: &'a RawValue,
    #[serde(borrow)]
    message_attributes: Attributes<'a>,
}

#[derive(Deserialize)]
struct Attributes<'a> {
    #[serde(borrow)]
    id: Attribute<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attribute<'a> {
    string_value: &'a str,
}

impl Stub {
    /// Starts it.
    pub fn start(runtime: &Runtime, on_receipt: impl Fn(&[&str]) + Send + Sync + 'static) -> Self {
        let shared =
            Shared { on_receipt: Box::new(on_receipt), hasher: RandomState::new(), received: Mutex::default() };
        let shared = Arc::new(shared);
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/", post(answer)).layer(DefaultBodyLimit::max(4 << 20));
        let counted = Arc::clone(&shared);
        let listener = listener.tap_io(move |connection| {
            connection.set_nodelay(true).unwrap();
            counted.received.lock().unwrap().0.connections += 1;
        });
        let app = app.with_state(Arc::clone(&shared));
        runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, shared }
    }

    /// Where it is.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its queue; it takes what is sent to any.
    pub fn queue(&self) -> String {
        format!("{}/000000000000/transfers", self.endpoint())
    }

    /// What came since this was asked last.
    pub fn take(&self) -> Received {
        let (received, ids) = std::mem::take(&mut *self.shared.received.lock().unwrap());
        Received { distinct: ids.len() as u64, ..received }
    }
}

async fn answer(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> impl IntoResponse {
    let answer = match headers["x-amz-target"].as_bytes() {
        b"AmazonSQS.SendMessageBatch" => shared.acknowledge(&serde_json::from_slice(&body).unwrap()),
        b"AmazonSQS.GetQueueAttributes" => r#"{"Attributes":{"MaximumMessageSize":"262144"}}"#.to_owned(),
        other => panic!("the stub does not know {}", String::from_utf8_lossy(other)),
    };
    ([(CONTENT_TYPE, "application/x-amz-json-1.0")], answer)
}

impl Shared {
    fn acknowledge(&self, batch: &Batch<'_>) -> String {
        let ids: Vec<&str> = batch.entries.iter().map(|entry| entry.message_attributes.id.string_value).collect();
        (self.on_receipt)(&ids);
        self.count(batch, &ids);
        let told =
            |entry: &Entry<'_>| format!(r#"{{"Id":"{0}","MessageId":"{0}","MD5OfMessageBody":"{MD5}"}}"#, entry.id);
        let successful: Vec<String> = batch.entries.iter().map(told).collect();
        format!(r#"{{"Successful":[{}],"Failed":[]}}"#, successful.join(","))
    }

    fn count(&self, batch: &Batch<'_>, ids: &[&str]) {
        let (received, seen) = &mut *self.received.lock().unwrap();
        if received.messages == 0 {
            received.body = serde_json::from_str(batch.entries[0].message_body.get()).unwrap();
        }
        received.messages += ids.len() as u64;
        seen.extend(ids.iter().map(|id| self.hasher.hash_one(id)));
    }
}

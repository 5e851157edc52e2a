//! A recording: what the nodes were asked and what they answered, in files that `devchain --replay` serves again, so that an
//! incident becomes a test.
//!
//! # The format
//!
//! A directory of segments, `{start}-{number}.jsonl.gz`: when their process started (milliseconds since the Unix epoch, 13
//! digits), and their place among its segments (6 digits), so that they sort by name. Each is one gzip stream of lines, and
//! a line is one [`Record`] in JSON:
//!
//! ```json
//! {"at":1790000000000000,"endpoint":"alchemy","event":{"exchange":{"took":41873,
//!  "asked":[{"method":"eth_getBlockByNumber","params":["latest",false]}],"answer":{"replies":[{"result":{"number":"0x10"}}]}}}}
//! {"at":1790000000100000,"endpoint":"alchemy","event":{"exchange":{"took":9120,
//!  "asked":[{"method":"eth_chainId","params":[]}],"answer":{"http":{"status":429,"retryAfter":1,"body":"slow down"}}}}}
//! {"at":1790000000200000,"endpoint":"alchemy","event":"opened"}
//! {"at":1790000000300000,"endpoint":"alchemy","event":{"head":{"number":"0x11"}}}
//! ```
//!
//! `zcat` reads them. What was written is flushed once a second and survives a kill; the end of the last segment may be cut
//! off, and everything before is whole. Records stand in the order in which they ended, and are put into that of their
//! beginnings when they are read.
//!
//! # What is in it, and what is not
//!
//! Of an endpoint its name, of a request its method and parameters. No URL and no header is recorded; keys that the
//! endpoints' URLs hold, and URLs in foreign texts, are masked in whatever a node says. It is not a log of bytes: an answer
//! that was no JSON-RPC is kept as the error that it became.

use std::{sync::Arc, time::SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

mod reader;
mod writer;

pub use reader::{Unreadable, read};
pub use writer::Recorder;

/// How a segment's name ends.
const SUFFIX: &str = ".jsonl.gz";
/// How many digits the two numbers of a segment's name have.
const DIGITS: (usize, usize) = (13, 6);

/// One thing that happened between the listener and an endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// When it began, microseconds since the Unix epoch.
    pub at: u64,
    /// The endpoint's name, without secrets.
    pub endpoint: Arc<str>,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    /// A request, and what came of it.
    Exchange(Exchange),
    /// A WebSocket for heads was opened.
    Opened,
    /// One could not be opened, for this reason.
    Refused(String),
    /// A head was announced, as the node stated it.
    Head(Box<RawValue>),
    /// The WebSocket for heads ended by itself.
    Closed,
}

/// A request and what came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exchange {
    /// How long it took, microseconds.
    pub took: u64,
    /// One call, or those of a batch.
    pub asked: Vec<Call>,
    /// What came of it.
    pub answer: Answer,
}

/// One call of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    /// The method.
    pub method: String,
    /// The parameters, a list.
    pub params: Box<RawValue>,
}

/// What came of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// A reply to each call, in their order.
    Replies(Vec<Reply>),
    /// An HTTP answer that is no JSON-RPC.
    #[serde(rename_all = "camelCase")]
    Http {
        /// Its status.
        status: u16,
        /// `Retry-After`, seconds.
        retry_after: Option<u64>,
        /// The beginning of its body.
        body: String,
    },
    /// There was no answer that could be read: the connection failed, or it was something else.
    Failed(String),
    /// No answer came for as long as it was waited for.
    Silence,
}

/// The reply to one call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// Its `result`.
    Result(Box<RawValue>),
    /// Its `error`.
    Error(Box<RawValue>),
    /// The answer to the batch has none.
    Missing,
}

impl Record {
    /// Something that happened now.
    #[must_use]
    pub fn now(endpoint: Arc<str>, event: Event) -> Self {
        Self { at: now(), endpoint, event }
    }

    /// How much there is to keep, bytes, about.
    fn bytes(&self) -> usize {
        let of_reply = |reply: &Reply| match reply {
            Reply::Result(raw) | Reply::Error(raw) => raw.get().len(),
            Reply::Missing => 0,
        };
        let text = match &self.event {
            Event::Exchange(Exchange { asked, answer, .. }) => {
                let asked: usize = asked.iter().map(|call| call.params.get().len() + call.method.len()).sum();
                let answer = match answer {
                    Answer::Replies(replies) => replies.iter().map(of_reply).sum(),
                    Answer::Http { body, .. } => body.len(),
                    Answer::Failed(reason) => reason.len(),
                    Answer::Silence => 0,
                };
                asked + answer
            }
            Event::Head(head) => head.get().len(),
            Event::Refused(reason) => reason.len(),
            Event::Opened | Event::Closed => 0,
        };
        text + size_of::<Self>()
    }

    /// Whether there is nothing in it but what a node says of its chain.
    fn is_plain(&self) -> bool {
        match &self.event {
            Event::Exchange(Exchange { answer: Answer::Replies(replies), .. }) => {
                replies.iter().all(|reply| matches!(reply, Reply::Result(_)))
            }
            Event::Head(_) | Event::Opened | Event::Closed => true,
            Event::Exchange(_) | Event::Refused(_) => false,
        }
    }
}

/// Microseconds since the Unix epoch.
#[must_use]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Whether a file is called as a segment is.
fn is_segment(name: &str) -> bool {
    let is_number = |text: &str, digits| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.strip_suffix(SUFFIX).and_then(|name| name.split_once('-'));
    parts.is_some_and(|(start, number)| is_number(start, DIGITS.0) && is_number(number, DIGITS.1))
}

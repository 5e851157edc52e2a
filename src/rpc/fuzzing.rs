//! What a hostile node can say, over HTTP and over a socket: the fuzz targets `json_rpc` and `ws_frame`
//! (see [`crate::fuzzing`]).
//!
//! Requests, the matching of answers to them, and every check are the listener's own; only the wire is replaced by the
//! input. Panics where an answer that was accepted is not one to the question that was asked.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use alloy::{
    primitives::{Address, B256, U64},
    pubsub::{ConnectionHandle, PubSubConnect},
    rpc::{
        client::RpcClient,
        json_rpc::{Id, PubSubItem, RequestPacket, ResponsePacket, ResponsePayload, SubId},
    },
    sol_types::SolEvent,
    transports::{TransportError, TransportErrorKind, TransportFut, TransportResult},
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tower_service::Service;

use super::{
    At, Cap, LogFilter, RangeLogs, RpcError, client::Node, direct, error::classify, heads, masked::Keys,
    replies::Reader, tap::Tape, transport, wire,
};
use crate::{
    config::{
        Limits, LogIndex,
        fuzzing::{KEY, leaks},
    },
    domain::{BlockRange, BlockRef, Header, MAX_BLOCK_NUMBER, RawLog},
};

alloy::sol! {
    event Transfer(address indexed from, address indexed to, uint256 value);
}

/// An endpoint whose path ends with the planted key.
const SECRET: &str = "https://eth.node.example/v2/";
/// Where an input has this, the node quotes the endpoint's URL.
const QUOTED: &str = "$URL";
/// No answer of a script takes this long: only one that never comes does.
const LIMIT: Duration = Duration::from_secs(20);
/// Longest text of an error: what is kept of a node's words, in bytes, and ours around it.
const ERROR_BYTES: usize = 300 * 4 + 200;
/// Statuses that the first line of an input chooses from, by digit.
const STATUSES: [u16; 10] = [200, 400, 401, 402, 404, 413, 429, 500, 503, 302];

/// The block that is asked for, the first of the range.
const BLOCK: BlockRef = BlockRef { number: 18_500_000, hash: B256::repeat_byte(0xaa) };
const TIMESTAMP: u64 = 1_698_796_799;
const RANGE: BlockRange = BlockRange { from: BLOCK.number, to: BLOCK.number + 3 };
const CONTRACT: Address = Address::repeat_byte(0x11);

/// Answers of a node to one question. The first line is `{question}{status digit}{Retry-After}`, the question one of
/// `l`atest, `f`inalized, `n`umber, `h`ash, `b`lock's logs, `r`ange's logs, `c`hain id; in upper case for one contract
/// only. Behind it one body a request, parted by lines of `---`.
pub(crate) fn json_rpc(data: &[u8]) {
    let (line, rest) = split(data, b"\n");
    let [question, digit, retry_after @ ..] = line else { return };
    let status = usize::from(digit.wrapping_sub(b'0')) % STATUSES.len();
    let mut bodies = VecDeque::new();
    let mut rest = Some(rest);
    while let Some(all) = rest {
        let at = all.windows(5).position(|window| window == b"\n---\n");
        let (body, more) = at.map_or((all, None), |at| (all.get(..at).unwrap_or_default(), all.get(at + 5..)));
        let sizes: Vec<usize> = body.iter().take(8).map(|byte| usize::from(*byte)).collect();
        match question.to_ascii_lowercase() {
            b'b' => told_in_pieces(body, 1, &filter(*question), &sizes),
            b'r' => told_in_pieces(body, 3, &filter(*question), &sizes),
            _ => {}
        }
        bodies.push_back(quoting(body));
        rest = more;
    }
    let script = Script {
        status: STATUSES.get(status).copied().unwrap_or_default(),
        retry_after: Some(retry_after.to_vec()).filter(|wait| !wait.is_empty()),
        bytes: bodies.iter().map(Vec::len).sum(),
        bodies: Arc::new(Mutex::new(bodies)),
    };
    let bytes = script.bytes;
    let node = Node::new("node".to_owned(), RpcClient::new(script, true), &limits());
    on_one_thread(ask(&node, *question, bytes));
}

/// Frames of a socket, one a line. With the first line `s` they answer a subscription to heads, with any other a
/// request for a header.
pub(crate) fn ws_frame(data: &[u8]) {
    let (mode, frames) = split(data, b"\n");
    let frames: Vec<Vec<u8>> = frames.split(|byte| *byte == b'\n').map(quoting).collect();
    let bytes = frames.iter().map(Vec::len).sum();
    let socket = Socket { frames: Arc::new(frames), used: Arc::new(AtomicBool::new(false)), alive: Arc::default() };
    on_one_thread(async move {
        if mode == b"s" {
            subscribed(socket).await;
        } else if let Ok(rpc) = RpcClient::connect_pubsub(socket).await {
            ask(&Node::new("node".to_owned(), rpc, &limits()), b'n', bytes).await;
        }
    });
}

/// Follows the signs of heads to the end of the socket.
async fn subscribed(socket: Socket) {
    let most = socket.frames.len() + 1;
    let alive = Arc::clone(&socket.alive);
    let mut signs = match heads::signs(socket, LIMIT, &Keys::default(), Tape::new("node", None)).await {
        Ok(signs) => signs,
        Err(error) => return presentable(&error),
    };
    let mut seen = 0;
    while let Some(()) = signs.next().await {
        seen += 1;
        assert!(seen <= most, "more signs than frames");
    }
    // Whatever came before, a well-formed sign still arrives while the socket is up.
    assert!(seen > 0 || !alive.load(Ordering::SeqCst), "a sign of a head was swallowed");
}

/// An answer to this many calls, the first of them for logs, says the same whether it is read as a whole or as it arrives, in
/// pieces of these sizes: the same logs and headers, or an error of the same kind.
pub(super) fn told_in_pieces(body: &[u8], calls: u64, filter: &LogFilter, sizes: &[usize]) {
    [1, 50, 600].into_iter().for_each(|enough| told_where_enough(enough, body, calls, filter, sizes));
}

fn told_where_enough(enough: usize, body: &[u8], calls: u64, filter: &LogFilter, sizes: &[usize]) {
    let is_batch = calls > 1;
    let gathering = || wire::Gathering::new(filter, LogIndex::Block);
    let mut reader = Reader::eager(gathering(), enough);
    let mut rest = body;
    let (mut taken, mut sizes) = (Ok(()), sizes.iter().cycle());
    while taken.is_ok() && !rest.is_empty() {
        let size = sizes.next().map_or(1, |size| (*size).clamp(1, rest.len()));
        let (piece, behind) = rest.split_at(size);
        taken = reader.take(piece);
        rest = behind;
    }
    let in_pieces = taken.map_err(transport::not_json).and_then(|()| transport::read_logs(reader, is_batch));
    let packet = transport::read(200, None, body, is_batch);
    let whole = packet.map(|packet| transport::Replies { packet, place: None, logs: gathering() });
    let ids: Vec<Id> = (0..calls).map(Id::Number).collect();
    let said = |replies: Result<transport::Replies<'_>, TransportError>| {
        let told = replies.and_then(|replies| direct::matched(&ids, replies)).map_err(classify)?;
        let (logs, headers) = told.read(classify)?;
        Ok((logs.of_range(BlockRange { from: 0, to: u64::MAX })?, format!("{headers:?}")))
    };
    let kind = |error: RpcError| error.kind();
    assert_eq!(said(in_pieces).map_err(kind), said(whole).map_err(kind), "an answer says another thing in pieces");
}

/// What logs a question asks for.
fn filter(question: u8) -> LogFilter {
    LogFilter {
        addresses: if question.is_ascii_uppercase() { vec![CONTRACT] } else { Vec::new() },
        topics: vec![Transfer::SIGNATURE_HASH],
    }
}

async fn ask(node: &Node, question: u8, bytes: usize) {
    let filter = filter(question);
    let asked = match question.to_ascii_lowercase() {
        b'c' => node.chain_id().await.map(|_| ()),
        b'b' => block_logs(node, &filter, bytes).await,
        b'r' => node.range_logs(RANGE, &filter).await.map(|answer| of_range(answer, &filter, bytes)),
        b'n' => header(node, At::Number(BLOCK.number)).await,
        b'h' => header(node, At::Hash(BLOCK.hash)).await,
        b'f' => header(node, At::Finalized).await,
        _ => header(node, At::Latest).await,
    };
    if let Err(error) = asked {
        presentable(&error);
    }
}

/// The logs of a block, and where there are none what its header says of that.
async fn block_logs(node: &Node, filter: &LogFilter, bytes: usize) -> Result<(), RpcError> {
    let logs = node.block_logs(BLOCK, TIMESTAMP, filter).await?;
    of_block(&logs, filter, bytes);
    if logs.is_empty() { node.hold_against_bloom(BLOCK, filter).await } else { Ok(()) }
}

async fn header(node: &Node, at: At) -> Result<(), RpcError> {
    let Some(header) = node.header(at).await? else { return Ok(()) };
    assert!(header.number <= MAX_BLOCK_NUMBER, "a block number beyond 2^53");
    match at {
        At::Number(number) => assert_eq!(header.number, number, "the header of another height"),
        At::Hash(hash) => assert_eq!(header.hash, hash, "the header of another block"),
        At::Latest | At::Safe | At::Finalized => {}
    }
    let again = json!({ "number": U64::from(header.number), "hash": header.hash, "parentHash": header.parent,
        "timestamp": U64::from(header.timestamp) });
    let again = serde_json::from_value::<wire::WireHeader>(again).map(wire::WireHeader::check);
    assert!(matches!(again, Ok(Ok(same)) if same == header), "an accepted header is refused when it is said again");
    Ok(())
}

fn of_block(logs: &[RawLog], filter: &LogFilter, bytes: usize) {
    assert!(logs.iter().all(|log| log.block == BLOCK && log.timestamp == TIMESTAMP), "a log of another block");
    wanted(logs, filter, bytes);
    let again = serde_json::from_value(said(logs)).map(|logs| wire::block_logs(logs, BLOCK, TIMESTAMP, filter));
    assert!(matches!(again, Ok(Ok(same)) if same == logs), "accepted logs are other ones when they are said again");
}

fn of_range(answer: RangeLogs, filter: &LogFilter, bytes: usize) {
    let RangeLogs { logs, first, last } = answer;
    assert_eq!((first.number, last.number), (RANGE.from, RANGE.to), "the ends of another range");
    assert!(logs.iter().all(|log| RANGE.contains(log.block.number)), "a log outside the range");
    for pair in logs.windows(2) {
        let [one, next] = pair else { continue };
        assert!(one.block.number != next.block.number || one.block.hash == next.block.hash, "two versions of a block");
    }
    let disagrees = |end: &Header| logs.iter().any(|log| log.block.number == end.number && log.block.hash != end.hash);
    assert!(!disagrees(&first) && !disagrees(&last), "logs of another block than the header at the range's end");
    wanted(&logs, filter, bytes);
    let again = serde_json::from_value(said(&logs)).map(|logs| wire::Gathering::of(logs, filter).of_range(RANGE));
    let same = matches!(again, Ok(Ok(same)) if same == logs);
    assert!(same, "accepted logs are other ones when they are said again");
}

/// What holds for the logs of any answer.
fn wanted(logs: &[RawLog], filter: &LogFilter, bytes: usize) {
    // A log's hashes alone are longer than this.
    assert!(logs.len() <= bytes / 200, "more logs than the answer has room for");
    for log in logs {
        assert!(log.topics.first().is_some_and(|topic| filter.topics.contains(topic)), "a topic not asked for");
        assert!(filter.addresses.is_empty() || filter.addresses.contains(&log.address), "a contract not asked for");
    }
    let place = |log: &RawLog| (log.block.number, log.log_index);
    assert!(logs.iter().zip(logs.iter().skip(1)).all(|(one, next)| place(one) < place(next)), "logs out of order");
}

fn limits() -> Limits {
    Limits { rpc_timeout: LIMIT, ..Limits::default() }
}

/// The logs as a node says them.
fn said(logs: &[RawLog]) -> Value {
    let one = |log: &RawLog| {
        json!({ "address": log.address, "topics": &log.topics[..], "data": alloy::hex::encode_prefixed(&*log.data), "removed": false,
            "blockNumber": U64::from(log.block.number), "blockHash": log.block.hash,
            "blockTimestamp": U64::from(log.timestamp), "transactionHash": log.transaction_hash,
            "transactionIndex": U64::from(log.transaction_index), "logIndex": U64::from(log.log_index) })
    };
    logs.iter().map(one).collect()
}

/// An error is one short line without the endpoint's key, and comes in time.
fn presentable(error: &RpcError) {
    let text = error.to_string();
    assert!(!leaks(&text), "a secret in an error: {text}");
    assert!(!text.contains(char::is_control), "control characters in an error: {text:?}");
    assert!(text.len() <= ERROR_BYTES, "an error of {} bytes", text.len());
    assert!(!matches!(error, RpcError::TimedOut), "a finished conversation timed out");
    match error {
        RpcError::Throttled { retry_after: Some(wait), .. } => {
            assert!(*wait <= Duration::from_mins(1), "a wait of {wait:?}");
        }
        RpcError::TooLarge { cap, suggested, .. } => {
            let most = if let Cap::Blocks(most) = cap { *most } else { None };
            assert!(most.is_none_or(|most| (1..=MAX_BLOCK_NUMBER).contains(&most)), "a cap of {most:?} blocks");
            assert!(suggested.is_none_or(|range| range.to <= MAX_BLOCK_NUMBER), "a range up to {suggested:?}");
        }
        RpcError::TooManyAddresses { most, .. } => assert_ne!(*most, Some(0), "a cap of no addresses"),
        _ => {}
    }
}

fn split<'d>(data: &'d [u8], by: &[u8]) -> (&'d [u8], &'d [u8]) {
    let at = data.windows(by.len()).position(|window| window == by).unwrap_or(data.len());
    (data.get(..at).unwrap_or_default(), data.get(at + by.len()..).unwrap_or_default())
}

/// The input with the endpoint's URL where it says so.
fn quoting(data: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(data.len());
    let mut rest = data;
    while let Some(at) = rest.windows(QUOTED.len()).position(|window| window == QUOTED.as_bytes()) {
        text.extend_from_slice(rest.get(..at).unwrap_or_default());
        text.extend_from_slice(SECRET.as_bytes());
        text.extend_from_slice(KEY.as_bytes());
        rest = rest.get(at + QUOTED.len()..).unwrap_or_default();
    }
    text.extend_from_slice(rest);
    text
}

#[expect(clippy::panic, reason = "nothing can be tried without a runtime, and a target fails by a panic")]
fn on_one_thread(work: impl Future<Output = ()>) {
    thread_local! {
        static RUNTIME: std::io::Result<tokio::runtime::Runtime> =
            tokio::runtime::Builder::new_current_thread().enable_time().build();
    }
    RUNTIME.with(|runtime| match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => panic!("no runtime: {error}"),
    });
}

/// An HTTP endpoint that answers by script, and is down behind its end.
#[derive(Clone)]
struct Script {
    status: u16,
    retry_after: Option<Vec<u8>>,
    bodies: Arc<Mutex<VecDeque<Vec<u8>>>>,
    bytes: usize,
}

impl Script {
    fn answer(&self, packet: &RequestPacket) -> Result<ResponsePacket, TransportError> {
        let body = self.bodies.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(body) = body else { return Err(TransportErrorKind::custom_str("connection closed")) };
        transport::read(self.status, self.retry_after.as_deref(), &body, matches!(packet, RequestPacket::Batch(_)))
    }
}

impl Service<RequestPacket> for Script {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, packet: RequestPacket) -> Self::Future {
        let answer = self.answer(&packet);
        Box::pin(async { answer })
    }
}

/// A socket that opens once, waits for the first request, says its frames, one sign of a head, and is gone.
struct Socket {
    frames: Arc<Vec<Vec<u8>>>,
    used: Arc<AtomicBool>,
    /// Whether the last sign was sent: a subscription is known and no frame closed the socket.
    alive: Arc<AtomicBool>,
}

impl PubSubConnect for Socket {
    fn is_local(&self) -> bool {
        true
    }

    async fn connect(&self) -> TransportResult<ConnectionHandle> {
        if self.used.swap(true, Ordering::SeqCst) {
            return Err(TransportErrorKind::custom_str("the node is down"));
        }
        let (handle, mut interface) = ConnectionHandle::new();
        let (frames, alive) = (Arc::clone(&self.frames), Arc::clone(&self.alive));
        tokio::spawn(async move {
            if interface.recv_from_frontend().await.is_none() {
                return;
            }
            let mut subscription = None;
            for frame in frames.iter() {
                // As alloy's own backend: what is no answer and no notification ends the connection.
                let Ok(item) = serde_json::from_slice::<PubSubItem>(frame) else { return interface.close_with_error() };
                let first = subscription.is_none().then(|| answered(&item)).flatten();
                subscription = subscription.or(first);
                if interface.send_to_frontend(item).is_err() {
                    return;
                }
                settle().await;
            }
            if let Some(Ok(subscription)) = subscription {
                let sign = json!({ "jsonrpc": "2.0", "method": "eth_subscription",
                    "params": { "subscription": subscription, "result": {} } });
                let sent = serde_json::from_value(sign).map(|item| interface.send_to_frontend(item));
                alive.store(matches!(sent, Ok(Ok(()))), Ordering::SeqCst);
                settle().await;
            }
            interface.close_with_error();
        });
        Ok(handle.with_max_retries(0).with_retry_interval(Duration::ZERO))
    }
}

/// The subscription's id, where a frame is the answer to the first request; an error where it gives none.
fn answered(item: &PubSubItem) -> Option<Result<SubId, ()>> {
    let PubSubItem::Response(response) = item else { return None };
    (response.id.as_number() == Some(0)).then(|| match &response.payload {
        ResponsePayload::Success(id) => serde_json::from_str(id.get()).map_err(|_| ()),
        ResponsePayload::Failure(_) => Err(()),
    })
}

/// Lets the others on this thread do what there is to do.
async fn settle() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

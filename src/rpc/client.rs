//! One node: JSON-RPC requests, each with a time limit, each answer checked before it is used.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use alloy::{
    primitives::{B256, U64},
    pubsub::PubSubConnect as _,
    rpc::{
        client::{BatchRequest, RpcClient, Waiter},
        types,
    },
    transports::{
        Transport, TransportError,
        ws::{WebSocketConfig, WsConnect},
    },
};
use futures_util::future::join_all;
use serde_json::{Value, json, value::RawValue};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{
    At, LogFilter, RangeLogs, RpcError,
    bearing::Bearing,
    blooms::Blooms,
    budget::{Budget, Charged},
    direct::{Direct, Told},
    error::{classify, classify_of_range, has_no_http, tag_is_unknown},
    masked::Masked,
    receipts::{self, Proven, Unproven, WireReceipt},
    socket::{Once, in_time},
    tap::{Tape, Taped},
    transport::Capped,
    unknown::UnknownMessages,
    wire::{self, Gathering, WireHeader},
};
use crate::{
    config::{Limits, LogIndex, SecretUrl},
    domain::{BlockRange, BlockRef, Header, RawLog},
    telemetry::metrics,
};

/// Headers asked for in one batch.
const HEADERS_PER_BATCH: usize = 100;
/// Numbers of logs at which nodes and providers were seen to cut answers off, or say that they do.
const SILENT_CAPS: [usize; 7] = [1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000];
const LOGS: &str = "eth_getLogs";
const RECEIPTS: &str = "eth_getBlockReceipts";

/// A connection to one node, over HTTP or, where it has none, over its WebSocket.
pub(super) struct Node {
    pub(super) name: String,
    rpc: RpcClient,
    /// The short way of requests for logs; none over a WebSocket, or where all that is said is recorded.
    direct: Option<Direct>,
    timeout: Duration,
    log_index: LogIndex,
    blooms: Blooms,
    unknown: UnknownMessages,
    /// What it bears; the requests for logs here send what they are told to.
    pub(super) bearing: Arc<Bearing>,
}

impl Node {
    /// A node behind any transport.
    pub(super) fn new(name: String, rpc: RpcClient, limits: &Limits) -> Self {
        let (blooms, unknown) = (Blooms::default(), UnknownMessages::default());
        Self {
            name,
            rpc,
            direct: None,
            timeout: limits.rpc_timeout,
            log_index: limits.log_index,
            blooms,
            unknown,
            bearing: Arc::new(Bearing::new(Arc::default())),
        }
    }

    /// The same node, of which this is known already.
    pub(super) fn that_bears(self, bearing: &Arc<Bearing>) -> Self {
        Self { bearing: Arc::clone(bearing), ..self }
    }

    /// What it said of late that is not understood.
    pub(super) fn unknown_messages(&self) -> Vec<String> {
        self.unknown.newest()
    }

    /// A node behind an HTTP URL. Nothing is sent yet.
    pub(super) fn http(url: &SecretUrl, tape: Tape, limits: &Limits, budget: Arc<Budget>) -> Result<Self, RpcError> {
        let transport = Capped::new(url.clone(), limits.rpc_timeout, limits.rpc_max_bytes).map_err(RpcError::Fatal)?;
        let direct = (!tape.is_recorded()).then(|| Direct::new(transport.clone(), url, Arc::clone(&budget)));
        Ok(Self { direct, ..Self::over(Taped::new(Masked::new(transport, url), tape), limits, budget) })
    }

    /// A node that only has a WebSocket; it answers no more once that ends. Frames are allowed up to the size limit of
    /// answers: larger ones, above 16 MiB where nothing is said, end the socket.
    pub(super) async fn socket(
        url: &SecretUrl,
        tape: Tape,
        limits: &Limits,
        budget: Arc<Budget>,
    ) -> Result<Self, RpcError> {
        let frames = WebSocketConfig::default()
            .max_message_size(Some(limits.rpc_max_bytes))
            .max_frame_size(Some(limits.rpc_max_bytes));
        let connect = Once(WsConnect::new(url.expose()).with_config(frames));
        let socket = in_time(limits.rpc_timeout, connect.into_service()).await?.map_err(classify)?;
        Ok(Self::over(Taped::new(Masked::new(socket, url), tape), limits, budget))
    }

    fn over(transport: Taped<impl Transport + Clone>, limits: &Limits, budget: Arc<Budget>) -> Self {
        let name = transport.endpoint().to_owned();
        Self::new(name, RpcClient::new(Charged::new(transport, budget), false), limits)
    }

    pub(super) async fn chain_id(&self) -> Result<u64, RpcError> {
        let id: U64 = self.one("eth_chainId", json!([])).await?;
        Ok(id.to())
    }

    /// The chain's id, asked at an address that is a guess; where there is none, the error and whether it says that there
    /// is no JSON-RPC over HTTP there.
    pub(super) async fn chain_id_if_there(&self) -> Result<u64, (RpcError, bool)> {
        let mut is_nowhere = false;
        let call = self.rpc.request::<Value, U64>("eth_chainId", json!([]));
        let answered = async {
            call.await.map_err(|error| {
                is_nowhere = has_no_http(&error);
                self.classify(error)
            })
        };
        let answer = self.timed("eth_chainId", answered).await;
        answer.map(|id| id.to()).map_err(|error| (error, is_nowhere))
    }

    /// The header, or `None` where the node says that there is no such block, or its chain no such tag.
    pub(super) async fn header(&self, at: At) -> Result<Option<Header>, RpcError> {
        let (method, params) = header_request(at);
        let call = self.rpc.request::<Value, Option<WireHeader>>(method, params);
        let asks_tag = matches!(at, At::Safe | At::Finalized);
        let answered = async {
            match call.await {
                Err(error) if asks_tag && tag_is_unknown(&error) => Ok(None),
                other => other.map_err(|error| self.classify(error)),
            }
        };
        let found = match self.timed(method, answered).await {
            // Some nodes say null where they lack a block, others an error.
            Err(RpcError::Behind(_)) if !asks_tag => None,
            other => other?,
        };
        let bloom = found.as_ref().and_then(WireHeader::bloom).map(|(_, bloom)| bloom);
        let header = found.map(|wire| check_header(wire, at)).transpose()?;
        if let Some(header) = &header {
            // Without a bloom nothing contradicts an answer.
            self.blooms.remember(header.hash, bloom.unwrap_or_default());
        }
        Ok(header)
    }

    pub(super) async fn block_logs(
        &self,
        block: BlockRef,
        timestamp: u64,
        filter: &LogFilter,
    ) -> Result<Vec<RawLog>, RpcError> {
        let params = json!([log_query(filter, &json!({ "blockHash": block.hash }))]);
        let (logs, _) = self.logs_and_headers(&[(LOGS, params)], filter).await?;
        let told = logs.told();
        let logs = self.counted(logs.of_block(block, timestamp))?;
        self.count_duplicates(told - logs.len());
        Ok(logs)
    }

    /// Holds an answer without logs against the block's header: this node's own, for the one that led here may be another
    /// node's.
    pub(super) async fn hold_against_bloom(&self, block: BlockRef, filter: &LogFilter) -> Result<(), RpcError> {
        if !self.blooms.know(block.hash) && self.header(At::Hash(block.hash)).await?.is_none() {
            return Err(RpcError::Behind(format!("the node has no logs of block {block}, nor its header")));
        }
        if self.blooms.contradict_none(block.hash, filter) {
            metrics::empty_with_bloom(&self.name);
            let text = format!("the node has no logs of block {block}, and its header says that there may be some");
            return Err(RpcError::Behind(text));
        }
        Ok(())
    }

    /// The parent of the block with this hash, and the block's own number, by a header that hashes to it. `None` where the
    /// node lacks the block, or states a header of a form that nobody here can hash.
    pub(super) async fn parent(&self, hash: B256) -> Result<Option<(u64, B256)>, RpcError> {
        let header = self.one::<Option<types::Header>>("eth_getBlockByHash", json!([hash, false])).await?;
        let header = header.filter(|header| header.inner.hash_slow() == hash);
        Ok(header.map(|header| (header.number, header.parent_hash)))
    }

    /// The proof of one block: its full header and its receipts, in one batch.
    pub(super) async fn prove(&self, at: At) -> Result<Proven, Unproven> {
        if self.log_index == LogIndex::Transaction {
            // Logs that it would restore would have other ids than the node's own.
            return Err(Unproven::Unknown("the chain numbers logs within their transactions".to_owned()));
        }
        let (method, params) = header_request(at);
        let block = params.get(0).cloned().unwrap_or_default();
        let mut batch = self.rpc.new_batch();
        let header = add::<Option<types::Header>>(&mut batch, method, &params)?;
        let receipts = add::<Option<Vec<WireReceipt>>>(&mut batch, RECEIPTS, &json!([block]))?;
        self.send(RECEIPTS, batch, classify).await?;
        let told = |error| self.classify(error);
        let (header, receipts) = (header.await.map_err(told)?, receipts.await.map_err(told)?);
        let (Some(header), Some(receipts)) = (header, receipts) else {
            return Err(RpcError::Behind("the node lacks a block's header or receipts".into()).into());
        };
        if (At::Hash(header.hash) != at) && (At::Number(header.number) != at) {
            return Err(RpcError::Invalid("the header of another block than the one asked for".into()).into());
        }
        receipts::prove(&header, receipts)
    }

    /// Logs and the headers of both ends in one batch, so that they come from one node at one moment: where the last
    /// header is there, the node had the whole range, and an empty answer is an answer.
    pub(super) async fn range_logs(&self, range: BlockRange, filter: &LogFilter) -> Result<RangeLogs, RpcError> {
        let bounds = json!({ "fromBlock": U64::from(range.from), "toBlock": U64::from(range.to) });
        let (first_at, last_at) = (At::Number(range.from), At::Number(range.to));
        let logs = (LOGS, json!([log_query(filter, &bounds)]));
        let calls = [logs, header_request(first_at), header_request(last_at)];
        let (logs, headers) = self.logs_and_headers(&calls, filter).await?;
        let mut headers = headers.into_iter().flatten();
        let (Some(first), Some(last)) = (headers.next(), headers.next()) else {
            return Err(RpcError::Behind(format!("the node lacks an end of the range {range}")));
        };
        let (first, last) = (check_header(first, first_at)?, check_header(last, last_at)?);
        let told = logs.told();
        let checked = self.counted(logs.of_range(range))?;
        self.count_duplicates(told - checked.len());
        self.note_round_number(told, range);
        let logs = self.with_timestamps(checked).await?;
        let strange = logs
            .iter()
            .any(|log| [first, last].iter().any(|end| end.number == log.block.number && end.hash != log.block.hash));
        if strange {
            return Err(RpcError::Behind("logs and header of one answer differ in the block's hash".into()));
        }
        Ok(RangeLogs { logs, first, last })
    }

    /// What the node answers to these calls in one request: logs to the first, headers to the others.
    async fn logs_and_headers<'f>(
        &self,
        calls: &[(&'static str, Value)],
        filter: &'f LogFilter,
    ) -> Result<(Gathering<'f>, Vec<Option<WireHeader>>), RpcError> {
        let logs = Gathering::new(filter, self.log_index);
        let told = match &self.direct {
            Some(direct) => self.directly(direct, calls, logs).await?,
            None => Told { logs, results: self.results(calls).await? },
        };
        told.read(|error| self.classify(error))
    }

    /// By the short way. As of any other batch, each of its calls has an outcome of its own, which the request's metric does
    /// not tell.
    async fn directly<'f>(
        &self,
        direct: &Direct,
        calls: &[(&'static str, Value)],
        logs: Gathering<'f>,
    ) -> Result<Told<'f>, RpcError> {
        let call = |(method, params): &(_, Value)| self.rpc.make_request::<&Value>(*method, params).serialize();
        let calls = calls.iter().map(call).collect::<Result<Vec<_>, _>>();
        let calls = calls.map_err(|error| classify(TransportError::ser_err(error)))?;
        self.timed(LOGS, async {
            let told = direct.ask(calls, logs).await.and_then(Told::unless_failed);
            told.map_err(|error| self.classify(error))
        })
        .await
    }

    /// By alloy's client.
    async fn results(
        &self,
        calls: &[(&'static str, Value)],
    ) -> Result<Vec<Result<Box<RawValue>, TransportError>>, RpcError> {
        if let [(method, params)] = calls {
            return Ok(vec![Ok(self.one(method, params.clone()).await?)]);
        }
        let mut batch = self.rpc.new_batch();
        let waiters = calls.iter().map(|(method, params)| add::<Box<RawValue>>(&mut batch, method, params));
        let waiters = waiters.collect::<Result<Vec<_>, _>>()?;
        self.send(LOGS, batch, classify_of_range).await?;
        Ok(join_all(waiters).await)
    }

    /// The logs of several lists of addresses.
    pub(super) fn merged(&self, logs: Vec<RawLog>) -> Result<Vec<RawLog>, RpcError> {
        self.counted(wire::merged(logs))
    }

    fn counted<R>(&self, checked: Result<R, RpcError>) -> Result<R, RpcError> {
        checked.inspect_err(|error| {
            if matches!(error, RpcError::Invalid(text) if text == wire::CLASH) {
                metrics::log_index_clash(&self.name);
            }
        })
    }

    fn count_duplicates(&self, logs: usize) {
        if logs > 0 {
            debug!(endpoint = self.name, logs, "logs stood twice in an answer");
            metrics::duplicate_logs(&self.name, logs);
        }
    }

    /// Some nodes cut an answer off at a round number of logs, and do not say so (T18). A chance hit is possible.
    fn note_round_number(&self, logs: usize, range: BlockRange) {
        if SILENT_CAPS.contains(&logs) {
            warn!(endpoint = self.name, logs, %range, "an answer with a round number of logs: it may have been cut off");
            metrics::round_answer(&self.name);
        }
    }

    /// Many nodes leave `blockTimestamp` out of logs; then the headers tell.
    async fn with_timestamps(&self, mut logs: Vec<RawLog>) -> Result<Vec<RawLog>, RpcError> {
        let unknown: BTreeSet<B256> = logs.iter().filter(|log| log.timestamp == 0).map(|log| log.block.hash).collect();
        let mut times = HashMap::with_capacity(unknown.len());
        for hashes in unknown.into_iter().collect::<Vec<_>>().chunks(HEADERS_PER_BATCH) {
            let mut batch = self.rpc.new_batch();
            let waiters =
                hashes.iter().map(|hash| add_header(&mut batch, At::Hash(*hash))).collect::<Result<Vec<_>, _>>()?;
            self.send("eth_getBlockByHash", batch, classify).await?;
            for (waiter, hash) in waiters.into_iter().zip(hashes) {
                let found = waiter.await.map_err(|error| self.classify(error))?;
                let wire =
                    found.ok_or_else(|| RpcError::Behind("the node lacks the header of a log's block".into()))?;
                times.insert(*hash, check_header(wire, At::Hash(*hash))?.timestamp);
            }
        }
        for log in logs.iter_mut().filter(|log| log.timestamp == 0) {
            log.timestamp = times.get(&log.block.hash).copied().unwrap_or_default();
        }
        Ok(logs)
    }

    /// The result of one call.
    pub(super) async fn one<R>(&self, method: &'static str, params: Value) -> Result<R, RpcError>
    where
        R: alloy::rpc::json_rpc::RpcRecv,
    {
        let call = self.rpc.request::<Value, R>(method, params);
        self.timed(method, async { call.await.map_err(|error| self.classify(error)) }).await
    }

    async fn send(
        &self,
        method: &'static str,
        batch: BatchRequest<'_>,
        classify: fn(TransportError) -> RpcError,
    ) -> Result<(), RpcError> {
        self.timed(method, async { batch.send().await.map_err(|error| self.noted(classify(error))) }).await
    }

    fn classify(&self, error: TransportError) -> RpcError {
        self.noted(classify(error))
    }

    fn noted(&self, error: RpcError) -> RpcError {
        if let RpcError::Unclear { message, is_known: false } = &error {
            self.unknown.note(&self.name, message);
        }
        error
    }

    /// A deadline of our own: requests over a socket have none.
    async fn timed<R>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<R, RpcError>>,
    ) -> Result<R, RpcError> {
        let begun = tokio::time::Instant::now();
        let answer = timeout(self.timeout, call).await.unwrap_or(Err(RpcError::TimedOut));
        let outcome = answer.as_ref().map_or_else(RpcError::kind, |_| "ok");
        metrics::rpc_request(&self.name, method, outcome, begun.elapsed().as_secs_f64());
        if let Err(RpcError::Throttled { retry_after: Some(wait), .. }) = &answer {
            self.bearing.throttled(*wait);
        }
        answer
    }
}

fn add<R>(batch: &mut BatchRequest<'_>, method: &'static str, params: &Value) -> Result<Waiter<R>, RpcError>
where
    R: alloy::rpc::json_rpc::RpcRecv,
{
    batch.add_call::<Value, R>(method, params).map_err(|error: TransportError| classify(error))
}

fn add_header(batch: &mut BatchRequest<'_>, at: At) -> Result<Waiter<Option<WireHeader>>, RpcError> {
    let (method, params) = header_request(at);
    add(batch, method, &params)
}

fn header_request(at: At) -> (&'static str, Value) {
    match at {
        At::Latest => ("eth_getBlockByNumber", json!(["latest", false])),
        At::Safe => ("eth_getBlockByNumber", json!(["safe", false])),
        At::Finalized => ("eth_getBlockByNumber", json!(["finalized", false])),
        At::Number(number) => ("eth_getBlockByNumber", json!([U64::from(number), false])),
        At::Hash(hash) => ("eth_getBlockByHash", json!([hash, false])),
    }
}

fn check_header(wire: WireHeader, at: At) -> Result<Header, RpcError> {
    let header = wire.check()?;
    let other = match at {
        At::Number(number) => header.number != number,
        At::Hash(hash) => header.hash != hash,
        At::Latest | At::Safe | At::Finalized => false,
    };
    if other {
        return Err(RpcError::Invalid("the header of another block than the one asked for".into()));
    }
    Ok(header)
}

/// The filter object of `eth_getLogs`. No `address` member where any address is meant: an empty list means
/// everything at some nodes and nothing at others.
fn log_query(filter: &LogFilter, bounds: &Value) -> Value {
    let mut query = bounds.clone();
    if let Some(members) = query.as_object_mut() {
        members.insert("topics".into(), json!([filter.topics]));
        if !filter.addresses.is_empty() {
            members.insert("address".into(), json!(filter.addresses));
        }
    }
    query
}

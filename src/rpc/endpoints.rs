//! All endpoints of one chain behind one [`ChainSource`]: the preferred one first, the next one when it fails.
//!
//! An endpoint is verified by its chain id before its first use. Requests stay with one endpoint as long as it answers,
//! so that a block's header and its logs come from one place (F08); after a failure they move on to the next, and come
//! back to the preferred one once it answers again. A node that lacks a block has not failed: the others are asked for
//! that block, and requests stay where they are.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{future::join_all, stream::BoxStream};
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout},
};
use tracing::{debug, info, warn};

use super::{At, ChainSource, EndpointState, LogFilter, RangeLogs, RpcError, Witness, client::Node, heads};
use crate::{
    config::{Limits, SecretUrl},
    domain::{BlockRange, BlockRef, Header, RawLog},
};

/// While another endpoint serves, the preferred one is probed this often.
const RETURN_AFTER: Duration = Duration::from_secs(30);
/// An endpoint on another fork is not asked for this long.
const EJECTED_FOR: Duration = Duration::from_mins(10);
/// How long the probe may take; one request waits for it.
const PROBE: Duration = Duration::from_secs(2);

/// The configured endpoints of one chain.
pub struct Endpoints {
    chain_id: u64,
    limits: Limits,
    by_preference: Vec<Endpoint>,
    current: AtomicUsize,
    /// When the preferred endpoint was left, or last probed in vain; `None` while it serves.
    left_preferred: Mutex<Option<Instant>>,
    return_after: Duration,
}

struct Endpoint {
    name: String,
    url: SecretUrl,
    node: OnceCell<Arc<Node>>,
    record: Mutex<Record>,
}

/// How an endpoint has done so far.
#[derive(Default)]
struct Record {
    asked: u64,
    errors: u64,
    last_error: Option<String>,
    head: Option<u64>,
    /// It was away since its chain was verified: another node may stand there now (F11).
    doubtful: bool,
    /// It is on another fork, and until then not asked.
    ejected_until: Option<Instant>,
}

impl Endpoints {
    /// The endpoints at `urls`, in order of preference. Nothing is sent yet.
    #[must_use]
    pub fn new(chain_id: u64, urls: Vec<SecretUrl>, limits: Limits) -> Self {
        let by_preference = urls
            .into_iter()
            .map(|url| Endpoint { name: url.name().to_owned(), url, node: OnceCell::new(), record: Mutex::default() })
            .collect();
        Self {
            chain_id,
            limits,
            by_preference,
            current: AtomicUsize::new(0),
            left_preferred: Mutex::new(None),
            return_after: RETURN_AFTER,
        }
    }

    /// Asks the current endpoint, then each other one, until one has what was asked for; says which. What only says
    /// that the *request* is at fault (too large) is answered at once; that a block is not there yet only when no
    /// endpoint has it.
    async fn ask<R, F>(&self, request: impl Fn(Arc<Node>) -> F) -> Result<(&Endpoint, R), RpcError>
    where
        F: Future<Output = Result<R, RpcError>> + Send,
    {
        self.return_if_due().await;
        let start = self.current.load(Ordering::Relaxed);
        let mut settled = false;
        let mut reason: Option<RpcError> = None;
        for step in 0..self.by_preference.len() {
            let index = (start + step) % self.by_preference.len();
            let Some(endpoint) = self.by_preference.get(index) else { continue };
            if endpoint.is_ejected() && !self.by_preference.iter().all(Endpoint::is_ejected) {
                continue;
            }
            let answer = self.ask_one(endpoint, &request).await;
            if !settled && answer.as_ref().err().is_none_or(|error| !error.is_failure()) {
                self.settle(index);
                settled = true;
            }
            match answer {
                Ok(answer) => return Ok((endpoint, answer)),
                Err(error @ (RpcError::TooLarge { .. } | RpcError::Orphaned(_))) => return Err(error),
                // Of several reasons the first that is about the chain, and before it the first about a node.
                Err(error) if reason.as_ref().is_none_or(|known| known.is_failure() && !error.is_failure()) => {
                    reason = Some(error);
                }
                Err(error) => debug!(endpoint = endpoint.name, %error, "not served"),
            }
        }
        Err(reason.unwrap_or_else(|| RpcError::Fatal("no endpoint is configured".into())))
    }

    /// Asks one endpoint, and takes note of how it did.
    async fn ask_one<R, F>(&self, endpoint: &Endpoint, request: impl FnOnce(Arc<Node>) -> F) -> Result<R, RpcError>
    where
        F: Future<Output = Result<R, RpcError>> + Send,
    {
        let answer = match endpoint.node(self.chain_id, &self.limits).await {
            Ok(node) => request(node.clone()).await,
            Err(error) => Err(error),
        };
        endpoint.remember(answer.as_ref().err());
        answer
    }

    /// Goes back to the preferred endpoint if it answers a probe, so that one that hangs does not cost every request
    /// its time limit. Only the request that finds the probe due waits for it.
    async fn return_if_due(&self) {
        let Some(preferred) = self.by_preference.first() else { return };
        if preferred.is_ejected() || !self.probe_is_due() {
            return;
        }
        let probe = timeout(PROBE.min(self.limits.rpc_timeout), async {
            match preferred.node(self.chain_id, &self.limits).await?.chain_id().await? {
                told if told == self.chain_id => Ok(()),
                told => Err(preferred.wrong_chain(self.chain_id, told)),
            }
        });
        let answer = probe.await.unwrap_or(Err(RpcError::TimedOut));
        preferred.remember(answer.as_ref().err());
        match answer {
            Ok(()) => self.settle(0),
            Err(error) => debug!(endpoint = preferred.name, %error, "the preferred endpoint does not serve yet"),
        }
    }

    fn probe_is_due(&self) -> bool {
        let mut left = self.left_preferred.lock().unwrap_or_else(PoisonError::into_inner);
        let due = left.is_some_and(|at| at.elapsed() >= self.return_after);
        if due {
            *left = Some(Instant::now());
        }
        due
    }

    fn settle(&self, index: usize) {
        let before = self.current.swap(index, Ordering::Relaxed);
        if before == index {
            return;
        }
        *self.left_preferred.lock().unwrap_or_else(PoisonError::into_inner) = (index != 0).then(Instant::now);
        let name = self.by_preference.get(index).map_or("?", |endpoint| &endpoint.name);
        if index == 0 {
            info!(endpoint = name, "requests are back at the preferred endpoint");
        } else {
            warn!(endpoint = name, "requests move to another endpoint");
        }
    }
}

impl Endpoint {
    /// The verified node behind this endpoint; connects at the first call that succeeds, and verifies it again after an
    /// outage.
    async fn node(&self, chain_id: u64, limits: &Limits) -> Result<&Arc<Node>, RpcError> {
        let node = self
            .node
            .get_or_try_init(|| async {
                if !self.url.is_socket() {
                    return self.verified(Node::http(self.url.clone(), self.name.clone(), limits)?, chain_id).await;
                }
                let twin = Node::http(self.url.http_twin(), self.name.clone(), limits)?;
                match self.verified(twin, chain_id).await {
                    Ok(node) => Ok(node),
                    Err(error) => {
                        info!(endpoint = self.name, %error, "no HTTP beside the WebSocket: everything goes over the socket");
                        let node = Node::socket(&self.url, self.name.clone(), limits).await?;
                        self.verified(node, chain_id).await
                    }
                }
            })
            .await?;
        if self.record().doubtful {
            self.verify(node, chain_id).await?;
            self.record().doubtful = false;
        }
        Ok(node)
    }

    async fn verified(&self, node: Node, chain_id: u64) -> Result<Arc<Node>, RpcError> {
        self.verify(&node, chain_id).await?;
        Ok(Arc::new(node))
    }

    async fn verify(&self, node: &Node, chain_id: u64) -> Result<(), RpcError> {
        let told = node.chain_id().await?;
        if told == chain_id { Ok(()) } else { Err(self.wrong_chain(chain_id, told)) }
    }

    fn wrong_chain(&self, expected: u64, told: u64) -> RpcError {
        RpcError::WrongChain { endpoint: self.name.clone(), expected, told }
    }

    fn remember(&self, error: Option<&RpcError>) {
        let mut record = self.record();
        let failure = error.filter(|error| error.is_failure());
        record.asked += 1;
        record.errors += u64::from(failure.is_some());
        record.last_error = failure.map(ToString::to_string);
        // Complaints about a request come from a node that runs.
        record.doubtful |=
            matches!(failure, Some(RpcError::Transient(_) | RpcError::TimedOut | RpcError::Unclear { .. }));
    }

    fn is_ejected(&self) -> bool {
        self.record().ejected_until.is_some_and(|until| Instant::now() < until)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> EndpointState {
        let record = self.record();
        EndpointState {
            name: self.name.clone(),
            asked: record.asked,
            errors: record.errors,
            last_error: record.last_error.clone(),
            head: record.head,
        }
    }
}

#[async_trait]
impl ChainSource for Endpoints {
    async fn chain_id(&self) -> Result<u64, RpcError> {
        let (_, id) = self.ask(|node| async move { node.chain_id().await }).await?;
        Ok(id)
    }

    async fn header(&self, at: At) -> Result<Option<Header>, RpcError> {
        let may_be_elsewhere = !matches!(at, At::Safe | At::Finalized);
        let asked = self.ask(|node| async move {
            match node.header(at).await? {
                None if may_be_elsewhere => Err(RpcError::Behind("the node does not have this block".into())),
                found => Ok(found),
            }
        });
        match asked.await {
            Ok((endpoint, found)) => {
                if at == At::Latest {
                    endpoint.record().head = found.map(|header| header.number);
                }
                Ok(found)
            }
            Err(RpcError::Behind(_)) if may_be_elsewhere => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn block_logs(&self, block: BlockRef, timestamp: u64, filter: &LogFilter) -> Result<Vec<RawLog>, RpcError> {
        let (_, logs) = self.ask(|node| async move { node.block_logs(block, timestamp, filter).await }).await?;
        Ok(logs)
    }

    async fn range_logs(&self, range: BlockRange, filter: &LogFilter) -> Result<RangeLogs, RpcError> {
        let (_, logs) = self.ask(|node| async move { node.range_logs(range, filter).await }).await?;
        Ok(logs)
    }

    async fn second_opinion(&self, range: BlockRange, filter: &LogFilter) -> Result<Option<RangeLogs>, RpcError> {
        let current = self.current.load(Ordering::Relaxed);
        let mut reason = None;
        for (index, endpoint) in self.by_preference.iter().enumerate() {
            if index == current {
                continue;
            }
            if endpoint.is_ejected() {
                // It is no opinion, and yet there is someone to wait for.
                let text = format!("{} is on another fork and not asked for some minutes", endpoint.name);
                reason = reason.or(Some(RpcError::Transient(text)));
                continue;
            }
            match self.ask_one(endpoint, |node| async move { node.range_logs(range, filter).await }).await {
                Ok(logs) => return Ok(Some(logs)),
                Err(error) => reason = reason.or(Some(error)),
            }
        }
        reason.map_or(Ok(None), Err)
    }

    async fn witnesses(&self, number: u64) -> Vec<Witness> {
        let asking = self.by_preference.iter().map(|endpoint| async move {
            let answer = self.ask_one(endpoint, |node| async move { node.header(At::Number(number)).await }).await;
            Witness { endpoint: endpoint.name.clone(), answer }
        });
        join_all(asking).await
    }

    fn eject(&self, endpoint: &str, reason: &str) {
        for known in self.by_preference.iter().filter(|known| known.name == endpoint) {
            warn!(endpoint, reason, "the endpoint is on another fork and not asked for some minutes");
            let mut record = known.record();
            record.ejected_until = Some(Instant::now() + EJECTED_FOR);
            record.errors += 1;
            record.last_error = Some(reason.to_owned());
        }
    }

    async fn heads(&self) -> Result<Option<BoxStream<'static, ()>>, RpcError> {
        let mut first_error = None;
        for endpoint in self.by_preference.iter().filter(|endpoint| endpoint.url.is_socket()) {
            match heads::subscribe(&endpoint.url, self.limits.rpc_timeout).await {
                Ok(signs) => return Ok(Some(signs)),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(None), Err)
    }

    fn endpoints(&self) -> Vec<EndpointState> {
        self.by_preference.iter().map(Endpoint::state).collect()
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::devchain::{Options, Serving, serve};

    struct Devchain {
        serving: Serving,
        shutdown: CancellationToken,
    }

    impl Devchain {
        /// The same chain in every node, up to `height`, without new blocks.
        async fn start(port: u16, height: u64) -> Self {
            let shutdown = CancellationToken::new();
            let genesis_time = Some(1_750_000_000);
            let options = Options { port, genesis_time, start_height: height, mining: false, ..Options::default() };
            Self { serving: serve(options, shutdown.clone()).await.unwrap(), shutdown }
        }

        fn url(&self, scheme: &str) -> SecretUrl {
            SecretUrl::parse(&format!("{scheme}://{}", self.serving.address)).unwrap()
        }

        /// Stops it; answers the port that it leaves free.
        async fn stop(self) -> u16 {
            self.shutdown.cancel();
            self.serving.task.await.unwrap().unwrap();
            self.serving.address.port()
        }
    }

    fn endpoints(urls: Vec<SecretUrl>, rpc_timeout: Duration) -> Endpoints {
        Endpoints::new(Options::CHAIN_ID, urls, Limits { rpc_timeout, ..Limits::default() })
    }

    fn current(endpoints: &Endpoints) -> usize {
        endpoints.current.load(Ordering::Relaxed)
    }

    async fn head(endpoints: &Endpoints) -> u64 {
        endpoints.header(At::Latest).await.unwrap().unwrap().number
    }

    /// Takes connections and never says a word.
    async fn mute() -> (tokio::net::TcpListener, SecretUrl) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = SecretUrl::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        (listener, url)
    }

    #[tokio::test]
    async fn requests_leave_an_endpoint_that_stops_and_come_back_once_it_answers() {
        let (first, second) = (Devchain::start(0, 100).await, Devchain::start(0, 90).await);
        let mut endpoints = endpoints(vec![first.url("http"), second.url("http")], Duration::from_secs(20));
        assert_eq!(head(&endpoints).await, 100);
        let [one, two] = endpoints.endpoints().try_into().unwrap();
        assert_eq!((one.asked, one.errors, one.head), (1, 0, Some(100)));
        assert_eq!((two.asked, two.errors, two.head), (0, 0, None), "never asked");

        let port = first.stop().await;
        assert_eq!(head(&endpoints).await, 90);
        let [one, two] = endpoints.endpoints().try_into().unwrap();
        assert_eq!((one.asked, one.errors, one.last_error.is_some()), (2, 1, true));
        assert_eq!((two.asked, two.errors, two.head), (1, 0, Some(90)));

        endpoints.return_after = Duration::ZERO;
        assert_eq!(head(&endpoints).await, 90, "a probe that fails changes nothing");
        let _first = Devchain::start(port, 100).await;
        assert_eq!(head(&endpoints).await, 100);
        assert_eq!(endpoints.endpoints()[0].last_error, None);
    }

    #[tokio::test]
    async fn a_preferred_endpoint_that_hangs_costs_one_request_its_time_limit() {
        let limit = Duration::from_secs(3);
        let ((_listener, mute), second) = (mute().await, Devchain::start(0, 90).await);
        let endpoints = endpoints(vec![mute, second.url("http")], limit);
        assert_eq!(head(&endpoints).await, 90);
        let begun = Instant::now();
        for _ in 0..5 {
            assert_eq!(head(&endpoints).await, 90);
        }
        assert!(begun.elapsed() < limit);
        assert_eq!(endpoints.endpoints()[0].errors, 1);
    }

    #[tokio::test]
    async fn a_probe_of_an_endpoint_that_hangs_is_short_and_rare() {
        let ((_listener, mute), second) = (mute().await, Devchain::start(0, 90).await);
        let mut endpoints = endpoints(vec![mute, second.url("http")], Duration::from_secs(30));
        endpoints.settle(1);
        endpoints.return_after = PROBE;
        tokio::time::sleep(PROBE).await;
        let begun = Instant::now();
        assert_eq!(head(&endpoints).await, 90);
        assert!((PROBE..Duration::from_secs(15)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        endpoints.return_after = RETURN_AFTER;
        assert_eq!(head(&endpoints).await, 90);
        assert_eq!((endpoints.endpoints()[0].asked, current(&endpoints)), (1, 1));
    }

    #[tokio::test]
    async fn a_block_that_one_endpoint_lacks_is_read_from_another_and_nobody_failed() {
        let (short, long) = (Devchain::start(0, 100).await, Devchain::start(0, 120).await);
        let endpoints = endpoints(vec![short.url("http"), long.url("http")], Duration::from_secs(20));
        assert_eq!(endpoints.header(At::Number(110)).await.unwrap().unwrap().number, 110);
        assert!(endpoints.header(At::Number(500)).await.unwrap().is_none());
        assert_eq!((current(&endpoints), head(&endpoints).await), (0, 100));
        assert!(endpoints.endpoints().iter().all(|state| state.errors == 0 && state.last_error.is_none()));
    }

    #[tokio::test]
    async fn a_second_opinion_comes_from_another_endpoint_and_an_ejected_one_has_none() {
        let (first, second) = (Devchain::start(0, 10).await, Devchain::start(0, 10).await);
        let topic = alloy::primitives::keccak256("Transfer(address,address,uint256)");
        let (range, filter) = (BlockRange { from: 1, to: 10 }, LogFilter { addresses: vec![], topics: vec![topic] });
        let sole = endpoints(vec![first.url("http")], Duration::from_secs(20));
        assert!(sole.second_opinion(range, &filter).await.unwrap().is_none(), "there is no other");
        let both = endpoints(vec![first.url("http"), second.url("http")], Duration::from_secs(20));
        assert_eq!(both.second_opinion(range, &filter).await.unwrap().unwrap().last.number, 10);
        let [one, two] = both.endpoints().try_into().unwrap();
        assert_eq!((one.asked, two.asked), (0, 1));
        both.eject(&two.name, "it has another block at the sealed height");
        assert!(both.second_opinion(range, &filter).await.unwrap_err().to_string().contains("another fork"));
        assert_eq!(both.endpoints()[1].asked, 1, "it is not asked");
    }

    #[tokio::test]
    async fn where_no_endpoint_serves_the_reason_is_that_of_the_preferred_one() {
        let (first, second) = (Devchain::start(0, 10).await, Devchain::start(0, 10).await);
        let urls = vec![first.url("http"), second.url("http")];
        first.stop().await;
        let other_chain = Endpoints::new(5, urls, Limits::default());
        assert!(matches!(other_chain.header(At::Latest).await, Err(RpcError::Transient(_))));
        assert!(other_chain.endpoints().iter().all(|state| state.errors == 1));
    }

    #[tokio::test]
    async fn heads_come_from_the_first_endpoint_whose_socket_opens() {
        let (first, second) = (Devchain::start(0, 100).await, Devchain::start(0, 100).await);
        let urls = vec![first.url("http"), first.url("ws"), second.url("ws")];
        first.stop().await;
        let endpoints = endpoints(urls, Duration::from_secs(20));
        assert!(endpoints.heads().await.unwrap().is_some());
        second.stop().await;
        assert!(endpoints.heads().await.is_err());
    }
}

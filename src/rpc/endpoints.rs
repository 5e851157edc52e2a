//! All endpoints of one chain behind one [`ChainSource`]: the preferred one first, others when it does not serve.
//!
//! Requests stay with one endpoint as long as it serves, so that a block's header and its logs come from one place (F08);
//! where it fails they go to the next, at most three for one request, and come back to a preferred one once it has
//! been well for a while. A node that lacks a block has not failed: another one is asked for that block, and requests
//! stay where they are. Where requests go is decided in `route`, what becomes of an endpoint that fails in `breaker`.
//!
//! Nothing goes on by itself but a try of HTTP, for two seconds (`connection`): [`tend`](ChainSource::tend) looks after the
//! endpoints that no request is sent to, and runs for as long as its caller wants.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt as _, future::join_all, stream::BoxStream};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::{
    At, Bounds, ChainSource, EndpointState, LogFilter, Pace, RangeLogs, RpcError, Witness,
    client::Node,
    endpoint::Endpoint,
    heads,
    opinions::{Served, Suspects},
    proofs::Proofs,
    proving::{Kept, Told},
    question::{Kind, Question},
    quorum::{self, QUORUM_OF},
    route::{Route, route},
};
use crate::{
    config::{Limits, Provider, SecretUrl},
    domain::{BlockRange, BlockRef, Header, RawLog},
    recording::Recorder,
    telemetry::metrics,
};

/// How often it is looked which endpoint is to be probed.
const TEND: Duration = Duration::from_millis(200);
/// Heads of endpoints that no request is sent to are read this often, or once in a block time if that is longer.
const HEADS: Duration = Duration::from_secs(5);
/// An endpoint lags that is further behind than this, in blocks and in time.
const LAG: (u64, Duration) = (3, Duration::from_secs(5));
/// The block time of a chain of which nothing else is known.
const BLOCK_TIME: Duration = Duration::from_secs(12);
/// A range that nobody answers is asked for so often, each time for half as much: from 100 blocks down to one.
const ROUNDS: usize = 8;

/// The configured endpoints of one chain.
pub struct Endpoints {
    chain_id: u64,
    pub(super) limits: Limits,
    block_time: Duration,
    pub(super) by_preference: Vec<Arc<Endpoint>>,
    pub(super) served: Served,
    pub(super) suspects: Suspects,
    /// Of each endpoint, in the same order, what its proofs came to.
    pub(super) proofs: Vec<Proofs>,
    pub(super) kept: Kept,
    current: AtomicUsize,
}

impl Endpoints {
    /// The endpoints at `urls`, in order of preference. Nothing is sent yet.
    #[must_use]
    pub fn new(chain_id: u64, urls: Vec<SecretUrl>, limits: Limits) -> Self {
        Self::of((chain_id, BLOCK_TIME), urls.into_iter().map(Provider::from).collect(), limits)
    }

    /// These providers, in order of preference, of the chain with this id and time between two blocks. Nothing is sent
    /// yet.
    #[must_use]
    pub fn of((chain_id, block_time): (u64, Duration), providers: Vec<Provider>, limits: Limits) -> Self {
        let by_preference: Vec<_> = providers.into_iter().map(|provider| Arc::new(Endpoint::new(provider))).collect();
        let proofs = by_preference.iter().map(|endpoint| Proofs::new(endpoint.name().to_owned(), &limits)).collect();
        let (served, suspects, kept) = (Served::default(), Suspects::default(), Kept::default());
        let current = AtomicUsize::new(0);
        Self { chain_id, limits, block_time, by_preference, served, suspects, proofs, kept, current }
    }

    /// The same endpoints, none of which is asked for more than this in one request.
    #[must_use]
    pub fn within(self, bounds: Bounds) -> Self {
        self.by_preference.iter().for_each(|endpoint| endpoint.bearing.limit(bounds));
        self
    }

    /// The same endpoints, whose traffic is recorded.
    #[must_use]
    pub fn recorded(self, recorder: &Recorder) -> Self {
        for endpoint in &self.by_preference {
            endpoint.recorder.get_or_init(|| recorder.clone());
        }
        self
    }

    /// Asks for a range until it is answered. What nobody answers, or with something that nobody understands, may be too
    /// large for all of them: it is asked for again at once, of each for less, as long as it can be less.
    async fn ask_for_less<R, F>(&self, ask: impl Fn() -> F + Send + Sync) -> Result<R, RpcError>
    where
        F: Future<Output = Result<R, RpcError>> + Send,
    {
        let unanswered = || self.by_preference.iter().map(|known| known.bearing.unanswered()).sum::<u64>();
        let mut rounds = 1;
        loop {
            let before = unanswered();
            match ask().await {
                Err(error @ (RpcError::TimedOut | RpcError::Unclear { .. }))
                    if rounds < ROUNDS && unanswered() > before =>
                {
                    debug!(%error, rounds, "nobody answers; asked again for less");
                    rounds += 1;
                }
                answer => return answer,
            }
        }
    }

    /// Asks one endpoint after the other, until one has what was asked for; says which. What only says
    /// that the *request* is at fault (too large) is answered at once; that a block is not there yet only when no
    /// endpoint has it.
    async fn ask<R, F>(
        &self,
        question: Question,
        request: impl Fn(usize, Arc<Node>) -> F,
    ) -> Result<(usize, R), RpcError>
    where
        F: Future<Output = Result<R, RpcError>> + Send,
    {
        let places = match self.route(question) {
            Route::Ask(places) => places,
            Route::Wait(until) => return Err(left_alone(until)),
        };
        let mut reason: Option<RpcError> = None;
        let mut waits = Vec::new();
        for (step, place) in places.iter().enumerate() {
            let Some(endpoint) = self.by_preference.get(*place) else { continue };
            let is_last = step + 1 == places.len();
            let answer = self.ask_one(endpoint, question, !is_last, |node| request(*place, node)).await;
            if answer.as_ref().err().is_none_or(|error| !error.is_failure()) {
                self.served(*place);
            }
            if let Err(RpcError::Throttled { retry_after: Some(wait), .. }) = &answer {
                waits.push((*place, Instant::now() + *wait));
            }
            match answer {
                Ok(answer) => {
                    // Of a range only the first blocks may have been answered.
                    let height = question.height.filter(|_| question.kind != Kind::RangeLogs);
                    height.into_iter().for_each(|height| endpoint.has(height));
                    return Ok((*place, answer));
                }
                Err(error @ (RpcError::TooLarge { .. } | RpcError::Orphaned(_))) => return Err(error),
                Err(error) if reason.as_ref().is_none_or(|known| says_more(&error, known)) => reason = Some(error),
                Err(error) => debug!(endpoint = endpoint.name(), %error, "not served"),
            }
        }
        Err(match reason {
            Some(RpcError::Throttled { message, .. }) => {
                RpcError::Throttled { message, retry_after: self.again_after(question, &waits) }
            }
            Some(reason) => reason,
            None => RpcError::Fatal("no endpoint is configured".into()),
        })
    }

    /// After how long somebody may be asked again, where everybody who may be asked said so: until when one of them wants to be
    /// left alone says nothing of the others.
    fn again_after(&self, question: Question, waits: &[(usize, Instant)]) -> Option<Duration> {
        let now = Instant::now();
        let until = match self.route_at(now, question) {
            Route::Wait(until) => until,
            Route::Ask(places) => {
                let until = |place: &usize| waits.iter().find(|(asked, _)| asked == place).map(|(_, until)| *until);
                places.iter().map(until).collect::<Option<Vec<_>>>()?.into_iter().min()?
            }
        };
        Some(until.saturating_duration_since(now))
    }

    pub(super) async fn ask_one<R, F>(
        &self,
        endpoint: &Endpoint,
        question: Question,
        limited: bool,
        request: impl FnOnce(Arc<Node>) -> F,
    ) -> Result<R, RpcError>
    where
        F: Future<Output = Result<R, RpcError>> + Send,
    {
        endpoint.ask((self.chain_id, &self.limits), question, limited, request).await
    }

    /// Who is asked, after requests came back to an endpoint that is preferred to the one in use, where it serves again.
    fn route(&self, question: Question) -> Route {
        let now = Instant::now();
        let current = self.current();
        let preferred = self.by_preference.iter().take(current).position(|endpoint| endpoint.is_steady(now));
        if let Some(place) = preferred {
            self.move_to(place, "returned");
        }
        self.route_at(now, question)
    }

    fn route_at(&self, now: Instant, question: Question) -> Route {
        let standings: Vec<_> = self.by_preference.iter().map(|endpoint| endpoint.standing(question, now)).collect();
        route(&standings, self.current())
    }

    fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// This endpoint served a request: the others follow where the one in use does not.
    fn served(&self, place: usize) {
        let Some(current) = self.by_preference.get(self.current()) else { return };
        if place != self.current()
            && !current.standing(Question::CHAIN_ID, Instant::now()).serves()
            && let Some((_, reason)) = current.aside()
        {
            self.move_to(place, reason);
        }
    }

    fn move_to(&self, place: usize, reason: &'static str) {
        let before = self.current.swap(place, Ordering::Relaxed);
        if before == place {
            return;
        }
        let name = |place: usize| self.by_preference.get(place).map_or("?", |endpoint| endpoint.name());
        let (from, to) = (name(before), name(place));
        metrics::rpc_failover(from, to, reason);
        if place < before {
            info!(endpoint = to, from, reason, "requests are back at a preferred endpoint");
        } else {
            warn!(endpoint = to, from, reason, "requests move to another endpoint");
        }
    }

    /// The highest block that another endpoint than this one was seen to have.
    fn best_beside(&self, endpoint: &Endpoint) -> Option<u64> {
        let others = self.by_preference.iter().map(|other| &**other).filter(|other| !std::ptr::eq(*other, endpoint));
        others.filter_map(Endpoint::counted_head).max()
    }

    fn take_head(&self, endpoint: &Endpoint, head: &Header) {
        let blocks = LAG.1.as_millis() / self.block_time.as_millis().max(1);
        let far = LAG.0.max(u64::try_from(blocks).unwrap_or(u64::MAX));
        endpoint.told_head(head, self.best_beside(endpoint), far);
    }

    /// Looks whether an endpoint serves, and where its head is.
    async fn probe(&self, endpoint: &Endpoint) {
        let header = |at| {
            let request = move |node: Arc<Node>| async move { node.header(at).await };
            self.ask_one(endpoint, Question::header(at), endpoint.is_connected(), request)
        };
        let Ok(Some(head)) = header(At::Latest).await else { return };
        self.take_head(endpoint, &head);
        let is_believed = endpoint.state().head.is_some_and(|known| known >= head.number);
        if !is_believed && let Ok(Some(_)) = header(At::Number(head.number)).await {
            endpoint.has(head.number);
        }
    }

    async fn tend_one(&self, endpoint: &Endpoint) {
        loop {
            sleep(TEND).await;
            if endpoint.take_probe(Instant::now(), HEADS.max(self.block_time)) {
                self.probe(endpoint).await;
            }
        }
    }
}

/// Of several reasons the first that is about the chain, and before it the first about a node; that one node dropped a block
/// says nothing of the others.
fn says_more(error: &RpcError, known: &RpcError) -> bool {
    let weight = |error: &RpcError| match error {
        RpcError::Pruned(_) => 0,
        error if error.is_failure() => 1,
        _ => 2,
    };
    weight(error) > weight(known)
}

/// Nobody may be asked before this moment, in their own words.
fn left_alone(until: Instant) -> RpcError {
    let wait = until.saturating_duration_since(Instant::now());
    let message = format!("every endpoint asked to be left alone, for {} s more at least", wait.as_secs() + 1);
    RpcError::Throttled { message, retry_after: Some(wait) }
}

#[async_trait]
impl ChainSource for Endpoints {
    async fn chain_id(&self) -> Result<u64, RpcError> {
        let (_, id) = self.ask(Question::CHAIN_ID, |_, node| async move { node.chain_id().await }).await?;
        Ok(id)
    }

    async fn header(&self, at: At) -> Result<Option<Header>, RpcError> {
        let may_be_elsewhere = !matches!(at, At::Safe | At::Finalized);
        let asked = self.ask(Question::header(at), |_, node| async move {
            match node.header(at).await? {
                None if may_be_elsewhere => Err(RpcError::Behind("the node does not have this block".into())),
                found => Ok(found),
            }
        });
        match asked.await {
            Ok((place, found)) => {
                if let (At::Latest, Some(head), Some(endpoint)) = (at, &found, self.by_preference.get(place)) {
                    self.take_head(endpoint, head);
                }
                Ok(found)
            }
            Err(RpcError::Behind(_)) if may_be_elsewhere => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn block_logs(&self, block: BlockRef, timestamp: u64, filter: &LogFilter) -> Result<Vec<RawLog>, RpcError> {
        let question = Question::block(block.number);
        let request = |place, node| self.told((place, node), (block, timestamp), filter);
        let (place, told) = self.ask(question, request).await?;
        self.served.by(place, block.number);
        match told {
            Told::Proven(logs) => Ok(logs),
            Told::Unproven(logs, reason) => self.proven_by_others((place, block), (logs, reason), filter).await,
        }
    }

    async fn range_logs(&self, range: BlockRange, filter: &LogFilter) -> Result<RangeLogs, RpcError> {
        let question = Question::range(range);
        let request = |_, node: Arc<Node>| async move { node.bearing.range_logs(&node, range, filter).await };
        let (place, logs) = self.ask_for_less(|| self.ask(question, request)).await?;
        self.by_preference.get(place).into_iter().for_each(|endpoint| endpoint.has(logs.last.number));
        let held = self.held_against_sample(place, logs, filter).await?;
        self.compared(place, held, filter).await
    }

    async fn second_opinion(&self, range: BlockRange, filter: &LogFilter) -> Result<Vec<RangeLogs>, RpcError> {
        self.ask_for_less(|| self.opinions(range, filter)).await
    }

    async fn witnesses(&self, number: u64) -> Vec<Witness> {
        let at = At::Number(number);
        // Where there are enough to outvote one, none is waited for.
        let is_many = self.by_preference.len() >= QUORUM_OF;
        let asking = self.by_preference.iter().map(|endpoint| async move {
            let question = Question::header(at);
            let answer = if is_many && endpoint.is_down() {
                Err(RpcError::Transient("it does not answer".to_owned()))
            } else {
                self.ask_one(endpoint, question, is_many, |node| async move { node.header(at).await }).await
            };
            Witness { endpoint: endpoint.name().to_owned(), answer }
        });
        let witnesses = join_all(asking).await;
        let lonely = quorum::minority(&witnesses);
        for endpoint in self.by_preference.iter().filter(|endpoint| lonely.contains(&endpoint.name())) {
            endpoint.disagreed();
        }
        witnesses
    }

    fn eject(&self, endpoint: &str, reason: &str) {
        self.by_preference.iter().filter(|known| known.name() == endpoint).for_each(|known| known.eject(reason));
    }

    fn set_aside(&self, endpoint: &str, reason: &str) {
        self.by_preference.iter().filter(|known| known.name() == endpoint).for_each(|known| known.set_aside(reason));
    }

    async fn heads(&self) -> Result<Option<BoxStream<'static, ()>>, RpcError> {
        let mut first_error = None;
        let mut with_socket: Vec<_> = self
            .by_preference
            .iter()
            .filter_map(|endpoint| Some((endpoint, endpoint.provider.socket.as_ref()?)))
            .collect();
        // Where none serves, all are tried.
        with_socket.sort_by_key(|(endpoint, _)| endpoint.aside().is_some());
        for (endpoint, socket) in with_socket {
            match heads::subscribe(socket, self.limits.rpc_timeout, endpoint.tape()).await {
                Ok(signs) => {
                    let endpoint = Arc::clone(endpoint);
                    let left = async move { endpoint.left.notified().await };
                    return Ok(Some(signs.take_until(left).boxed()));
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(None), Err)
    }

    fn endpoints(&self) -> Vec<EndpointState> {
        let with_proofs = self.by_preference.iter().zip(&self.proofs);
        with_proofs.map(|(known, proofs)| EndpointState { unproven: proofs.unproven(), ..known.state() }).collect()
    }

    fn pace(&self) -> Option<Pace> {
        Some(self.by_preference.get(self.current())?.bearing.pace())
    }

    fn learned(&self) -> BTreeMap<String, String> {
        self.by_preference.iter().map(|known| (known.name().to_owned(), known.bearing.learned())).collect()
    }

    fn resume(&self, learned: &BTreeMap<String, String>) {
        for endpoint in &self.by_preference {
            learned.get(endpoint.name()).into_iter().for_each(|learned| endpoint.bearing.resume(learned));
        }
    }

    async fn tend(&self) {
        // Of a single one everything is known from the requests that are sent to it.
        if self.by_preference.len() < 2 {
            return std::future::pending().await;
        }
        join_all(self.by_preference.iter().map(|endpoint| self.tend_one(endpoint))).await;
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

        async fn mine(&self, blocks: u64) {
            let client =
                alloy::rpc::client::RpcClient::new_http(format!("http://{}", self.serving.address).parse().unwrap());
            client.request::<_, serde_json::Value>("devchain_mine", [blocks]).await.unwrap();
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

    async fn head(endpoints: &Endpoints) -> u64 {
        endpoints.header(At::Latest).await.unwrap().unwrap().number
    }

    /// Takes connections and never says a word.
    async fn mute() -> (tokio::net::TcpListener, SecretUrl) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = SecretUrl::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        (listener, url)
    }

    /// Tends until it is so.
    async fn tended(endpoints: &Endpoints, is_so: impl Fn() -> bool) {
        let watching = async {
            while !is_so() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let watching = tokio::time::timeout(Duration::from_mins(1), watching);
        tokio::select! { in_time = watching => in_time.unwrap(), () = endpoints.tend() => unreachable!() }
    }

    #[tokio::test]
    async fn requests_leave_an_endpoint_that_stops_and_come_back_once_it_has_been_well_for_a_while() {
        let (first, second) = (Devchain::start(0, 100).await, Devchain::start(0, 90).await);
        let endpoints = endpoints(vec![first.url("http"), second.url("http")], Duration::from_secs(20));
        assert_eq!(head(&endpoints).await, 100);
        let [one, two] = endpoints.endpoints().try_into().unwrap();
        assert_eq!((one.asked, one.errors, one.head), (1, 0, Some(100)));
        assert_eq!((two.asked, two.errors, two.head), (0, 0, None), "never asked");

        let port = first.stop().await;
        for failures in 1..=3 {
            assert_eq!(head(&endpoints).await, 90);
            let [one, two] = endpoints.endpoints().try_into().unwrap();
            assert_eq!((one.errors, one.last_error.is_some(), two.errors), (failures, true, 0));
            assert_eq!((one.aside.is_some(), endpoints.current()), if failures < 3 { (false, 0) } else { (true, 1) });
        }
        assert_eq!(head(&endpoints).await, 90);
        let [one, two] = endpoints.endpoints().try_into().unwrap();
        assert_eq!((one.errors, two.asked), (3, 4), "it is not asked any more");

        tended(&endpoints, || endpoints.endpoints()[0].errors > 3).await;
        assert_eq!(head(&endpoints).await, 90, "a probe that fails changes nothing");
        let _first = Devchain::start(port, 100).await;
        tended(&endpoints, || endpoints.endpoints()[0].aside.is_none()).await;
        assert_eq!(endpoints.endpoints()[0].last_error, None);
        assert_eq!((head(&endpoints).await, endpoints.current()), (90, 1), "not at once");
        tended(&endpoints, || endpoints.by_preference[0].is_steady(Instant::now())).await;
        assert_eq!((head(&endpoints).await, endpoints.current()), (100, 0));
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
    async fn who_waits_for_a_connection_does_not_wait_for_those_before_it() {
        let ((_listener, mute), second) = (mute().await, Devchain::start(0, 90).await);
        let endpoints = endpoints(vec![mute, second.url("http")], Duration::from_hours(1));
        let three = join_all([(); 3].map(|()| head(&endpoints)));
        assert_eq!(tokio::time::timeout(Duration::from_mins(1), three).await.unwrap(), [90; 3]);
        assert!(endpoints.endpoints()[0].aside.is_some());
    }

    #[tokio::test]
    async fn an_endpoint_that_falls_silent_is_given_up_long_before_the_time_limit() {
        let (first, second) = (Devchain::start(0, 100).await, Devchain::start(0, 90).await);
        let silence = Arc::new(AtomicUsize::new(0));
        let address = before(first.serving.address, Arc::clone(&silence)).await;
        let url = SecretUrl::parse(&format!("http://{address}")).unwrap();
        let endpoints = endpoints(vec![url, second.url("http")], Duration::from_mins(2));
        for _ in 0..20 {
            assert_eq!(head(&endpoints).await, 100);
        }
        silence.store(1, Ordering::Relaxed);
        while silence.load(Ordering::Relaxed) != SILENT {
            sleep(Duration::from_millis(1)).await;
        }
        let begun = Instant::now();
        assert_eq!(head(&endpoints).await, 90);
        assert!(begun.elapsed() < Duration::from_mins(1), "{:?}", begun.elapsed());
        assert_eq!(endpoints.current(), 1);
        silence.store(0, Ordering::Relaxed);
        tended(&endpoints, || endpoints.by_preference[0].is_steady(Instant::now())).await;
        assert_eq!(head(&endpoints).await, 100);
    }

    /// No byte is passed on any more.
    const SILENT: usize = 2;

    /// Passes bytes on to a server, and none any more once `silence` is not 0; says so there.
    async fn before(server: std::net::SocketAddr, silence: Arc<AtomicUsize>) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let silence = Arc::clone(&silence);
                tokio::spawn(async move {
                    let mut far = tokio::net::TcpStream::connect(server).await.unwrap();
                    let passing = tokio::io::copy_bidirectional(&mut near, &mut far);
                    let silent = async {
                        while silence.load(Ordering::Relaxed) == 0 {
                            sleep(Duration::from_millis(1)).await;
                        }
                    };
                    tokio::select! { biased; () = silent => {}, _ = passing => return }
                    silence.fetch_max(SILENT, Ordering::Relaxed);
                    while silence.load(Ordering::Relaxed) != 0 {
                        sleep(Duration::from_millis(10)).await;
                    }
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn heads_of_endpoints_that_are_not_in_use_are_read_and_one_that_lags_is_left() {
        let (first, second) = (Devchain::start(0, 100).await, Devchain::start(0, 140).await);
        let endpoints = endpoints(vec![first.url("http"), second.url("http")], Duration::from_secs(20));
        assert_eq!(head(&endpoints).await, 100);
        let heads = || endpoints.endpoints().iter().map(|state| state.head).collect::<Vec<_>>();
        tended(&endpoints, || heads() == [Some(100), Some(140)]).await;
        let moved = async {
            while head(&endpoints).await != 140 {
                sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), moved).await.unwrap();
        let [one, two] = endpoints.endpoints().try_into().unwrap();
        assert_eq!((one.lag, two.lag, one.errors), (Some(40), Some(0), 0), "to lag is no failure");
        assert_eq!(one.aside.as_deref(), Some("it is 40 blocks behind"));
        first.mine(40).await;
        tended(&endpoints, || endpoints.endpoints()[0].aside.is_none()).await;
        assert_eq!(endpoints.current(), 1, "not at once");
        tended(&endpoints, || endpoints.by_preference[0].is_steady(Instant::now())).await;
        assert_eq!((head(&endpoints).await, endpoints.current()), (140, 0));
    }

    #[tokio::test]
    async fn a_block_is_not_asked_of_an_endpoint_that_is_known_to_be_below_it() {
        let (short, long) = (Devchain::start(0, 100).await, Devchain::start(0, 120).await);
        let endpoints = endpoints(vec![short.url("http"), long.url("http")], Duration::from_secs(20));
        assert_eq!(head(&endpoints).await, 100);
        assert_eq!(endpoints.header(At::Number(110)).await.unwrap().unwrap().number, 110);
        let [one, two] = endpoints.endpoints().try_into().unwrap();
        assert_eq!((one.asked, two.asked, endpoints.current()), (1, 1, 0));
    }

    #[tokio::test]
    async fn an_endpoint_on_another_chain_is_ejected_and_the_others_serve() {
        let options = Options { port: 0, mining: false, chain_id: Some(5), ..Options::default() };
        let other = serve(options, CancellationToken::new()).await.unwrap();
        let other = SecretUrl::parse(&format!("http://{}", other.address)).unwrap();
        let right = Devchain::start(0, 100).await;
        let endpoints = endpoints(vec![other, right.url("http")], Duration::from_secs(20));
        for _ in 0..3 {
            assert_eq!(head(&endpoints).await, 100);
        }
        let [one, _] = endpoints.endpoints().try_into().unwrap();
        assert_eq!((one.errors, endpoints.current()), (1, 1));
        assert!(one.aside.unwrap().contains("is on chain 5, but CHAIN_ID is 31337"));
    }

    #[tokio::test]
    async fn a_block_that_one_endpoint_lacks_is_read_from_another_and_nobody_failed() {
        let (short, long) = (Devchain::start(0, 100).await, Devchain::start(0, 120).await);
        let endpoints = endpoints(vec![short.url("http"), long.url("http")], Duration::from_secs(20));
        assert_eq!(endpoints.header(At::Number(110)).await.unwrap().unwrap().number, 110);
        assert!(endpoints.header(At::Number(500)).await.unwrap().is_none());
        assert_eq!((endpoints.current(), head(&endpoints).await), (0, 100));
        assert!(endpoints.endpoints().iter().all(|state| state.errors == 0 && state.last_error.is_none()));
    }

    fn any_transfer() -> LogFilter {
        LogFilter { addresses: vec![], topics: vec![alloy::primitives::keccak256("Transfer(address,address,uint256)")] }
    }

    /// Blocks as they are near the head, one by one.
    async fn serve_blocks(endpoints: &Endpoints, range: BlockRange) {
        for number in range.from..=range.to {
            let header = endpoints.header(At::Number(number)).await.unwrap().unwrap();
            endpoints.block_logs(header.block(), header.timestamp, &any_transfer()).await.unwrap();
        }
    }

    fn asked(endpoints: &Endpoints) -> Vec<u64> {
        endpoints.endpoints().iter().map(|state| state.asked).collect()
    }

    #[tokio::test]
    async fn a_second_opinion_comes_from_another_endpoint_and_an_ejected_one_has_none() {
        let (first, second) = (Devchain::start(0, 10).await, Devchain::start(0, 10).await);
        let range = BlockRange { from: 1, to: 10 };
        let sole = endpoints(vec![first.url("http")], Duration::from_secs(20));
        assert!(sole.second_opinion(range, &any_transfer()).await.unwrap().is_empty(), "there is no other");
        let both = endpoints(vec![first.url("http"), second.url("http")], Duration::from_secs(20));
        assert_eq!(head(&both).await, 10);
        serve_blocks(&both, range).await;
        assert_eq!(asked(&both), [21, 0]);
        let opinions = both.second_opinion(range, &any_transfer()).await.unwrap();
        assert_eq!((opinions.len(), opinions[0].last.number, asked(&both)), (1, 10, vec![21, 1]));
        both.eject(&both.endpoints()[1].name, "it has another block at the sealed height");
        let error = both.second_opinion(range, &any_transfer()).await.unwrap_err();
        assert!(error.to_string().contains("is not asked"), "{error}");
        assert_eq!(asked(&both), [21, 1], "it is not asked");
    }

    #[tokio::test]
    async fn who_served_a_block_has_no_second_opinion_of_it_after_requests_moved() {
        let (first, second) = (Devchain::start(0, 10).await, Devchain::start(0, 10).await);
        let both = endpoints(vec![first.url("http"), second.url("http")], Duration::from_secs(20));
        assert_eq!(head(&both).await, 10);
        serve_blocks(&both, BlockRange { from: 1, to: 5 }).await;
        both.by_preference[0].eject("it has another block at the sealed height");
        serve_blocks(&both, BlockRange { from: 6, to: 10 }).await;
        passes(Duration::from_mins(10)).await;
        assert_eq!((asked(&both), both.current()), (vec![11, 10], 1));
        let ends = async |from| {
            let opinions = both.second_opinion(BlockRange { from, to: 10 }, &any_transfer()).await.unwrap();
            opinions.iter().map(|opinion| (opinion.first.number, opinion.last.number)).collect::<Vec<_>>()
        };
        assert_eq!((ends(1).await, asked(&both)), (vec![(1, 5)], vec![11, 11]), "the second, of what the first served");
        assert_eq!((ends(6).await, asked(&both)), (vec![(6, 10)], vec![12, 11]), "and the other way round");
    }

    #[tokio::test]
    async fn of_a_block_that_nobody_knows_who_served_two_have_an_opinion() {
        let chains = [Devchain::start(0, 10).await, Devchain::start(0, 10).await, Devchain::start(0, 10).await];
        let urls = || chains.iter().map(|chain| chain.url("http")).collect::<Vec<_>>();
        let range = BlockRange { from: 1, to: 10 };
        let after_a_restart = endpoints(urls(), Duration::from_secs(20));
        let opinions = after_a_restart.second_opinion(range, &any_transfer()).await.unwrap();
        assert_eq!((opinions.len(), asked(&after_a_restart)), (2, vec![1, 1, 0]));
        let two = endpoints(urls().into_iter().take(2).collect(), Duration::from_secs(20));
        two.eject(&two.endpoints()[0].name, "it has another block at the sealed height");
        assert!(two.second_opinion(range, &any_transfer()).await.is_err(), "one may be who served it");
    }

    #[tokio::test]
    async fn one_that_lags_or_is_to_be_tried_has_an_opinion() {
        let (first, second) = (Devchain::start(0, 100).await, Devchain::start(0, 60).await);
        let range = BlockRange { from: 1, to: 10 };
        let both = endpoints(vec![first.url("http"), second.url("http")], Duration::from_secs(20));
        assert_eq!(head(&both).await, 100);
        serve_blocks(&both, range).await;
        let other = &both.by_preference[1];
        both.probe(other).await;
        passes(Duration::from_secs(10)).await;
        assert_eq!(other.aside().unwrap().1, "lags");
        assert_eq!(both.second_opinion(range, &any_transfer()).await.unwrap()[0].last.number, 10);
        other.eject("it has another block at the sealed height");
        passes(Duration::from_mins(10)).await;
        assert!(other.aside().is_some());
        assert_eq!(both.second_opinion(range, &any_transfer()).await.unwrap()[0].last.number, 10);
    }

    /// The clock goes on, and nothing happens.
    async fn passes(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
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

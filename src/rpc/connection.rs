//! How one endpoint is reached: over HTTP, or over its WebSocket where there is no HTTP. Nothing of it counts before it proved to
//! be of the right chain; a first look at the head may be asked for beside that proof ([`Newcomer`]).
//!
//! Where only a socket is given, its HTTP twin is a guess. Where nobody speaks JSON-RPC there, everything goes over the
//! socket. A node that is merely unwell over HTTP, or a firewall that swallows what is sent there, says nothing for ever: the
//! socket stands in, and HTTP is tried again at the next reconnection, and now and then. A socket ends once, and a guess may
//! stop being true: then all of this is found out anew.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    time::{Instant, timeout},
    try_join,
};
use tracing::info;

use super::{RpcError, bearing::Bearing, budget::Budget, client::Node, tap::Tape};
use crate::{
    config::{Limits, Provider, SecretUrl},
    recording::Recorder,
};

/// HTTP is waited for so long before the socket is opened, where HTTP is a guess.
const HEAD_START: Duration = Duration::from_secs(2);
/// HTTP is tried again after so long while the socket stands in, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(1));

/// The connection of one endpoint, once it has one.
#[derive(Default)]
pub(super) struct Connection {
    line: Arc<Mutex<Option<Line>>>,
    /// Held by who connects: whoever comes meanwhile waits for that.
    connecting: tokio::sync::Mutex<()>,
}

/// What an endpoint is reached with.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) provider: &'a Provider,
    pub(super) chain_id: u64,
    pub(super) limits: &'a Limits,
    pub(super) budget: &'a Arc<Budget>,
    pub(super) bearing: &'a Arc<Bearing>,
    pub(super) recorder: Option<&'a Recorder>,
}

/// A node that is not verified yet, and the turn to do that.
pub(super) struct Newcomer<'a> {
    pub(super) node: Arc<Node>,
    line: &'a Mutex<Option<Line>>,
    turn: tokio::sync::MutexGuard<'a, ()>,
    way: Way<'a>,
}

#[derive(Clone)]
struct Line {
    node: Arc<Node>,
    /// Where it is the socket that stands in for HTTP: when HTTP was tried last, and after how long it is tried again.
    again: Option<(Instant, Duration)>,
}

impl Connection {
    /// The node, where there is a connection.
    pub(super) fn node_now(&self) -> Option<Arc<Node>> {
        self.line().as_ref().map(|line| line.node.clone())
    }

    /// The node behind HTTP and the turn to verify it, where there is no connection yet. Waits for whoever is about to verify it,
    /// and is none where that succeeds.
    ///
    /// # Errors
    ///
    /// As [`Self::node`].
    pub(super) async fn newcomer<'a>(&'a self, way: Way<'a>) -> Result<Option<Newcomer<'a>>, RpcError> {
        let Some(http) = way.provider.http.as_ref().filter(|_| self.node_now().is_none()) else { return Ok(None) };
        let turn = self.connecting.lock().await;
        if self.node_now().is_some() {
            return Ok(None);
        }
        way.bearing.may_be_asked()?;
        Ok(Some(Newcomer { node: Arc::new(way.http(http)?), line: &self.line, turn, way }))
    }

    /// The verified node; connects where there is no connection yet. `is_doubtful`: it was away, and is verified again.
    pub(super) async fn node(&self, way: Way<'_>, is_doubtful: bool) -> Result<Arc<Node>, RpcError> {
        if is_doubtful {
            self.verify(way).await?;
        }
        if self.node_now().is_none() {
            let _turn = self.connecting.lock().await;
            if self.node_now().is_none() {
                // Whoever tried before may have been told to wait.
                way.bearing.may_be_asked()?;
                *self.line() = Some(way.connect().await?);
            }
        }
        self.try_http_again(way, is_doubtful);
        self.node_now().ok_or_else(|| RpcError::Transient("it is not connected".to_owned()))
    }

    /// Asks the node for its chain again, where there is a connection. A socket that ended and a twin that is gone, or of
    /// another chain by now, are given up: whatever stands there is connected anew.
    async fn verify(&self, way: Way<'_>) -> Result<(), RpcError> {
        let Some(node) = self.node_now() else { return Ok(()) };
        match node.chain_id().await.and_then(|told| way.judge(told)) {
            Ok(()) => Ok(()),
            Err(error) if way.provider.http.is_some() || matches!(error, RpcError::Throttled { .. }) => Err(error),
            Err(_) => {
                self.line().take_if(|line| Arc::ptr_eq(&line.node, &node));
                Ok(())
            }
        }
    }

    /// Tries HTTP beside the socket that stands in for it, where it is time to: no request waits for that, and where HTTP
    /// serves the next ones go over it.
    fn try_http_again(&self, way: Way<'_>, is_doubtful: bool) {
        let Some(socket) = way.provider.socket.as_ref().filter(|_| self.is_time_for_http(is_doubtful)) else { return };
        let Ok(node) = way.http(&socket.http_twin()) else { return };
        let (line, node, chain_id) = (Arc::clone(&self.line), Arc::new(node), way.chain_id);
        tokio::spawn(async move {
            if let Ok(Ok(id)) = timeout(HEAD_START, node.chain_id()).await
                && id == chain_id
            {
                info!(endpoint = node.name, "HTTP beside the WebSocket serves: requests go over it");
                *line.lock().unwrap_or_else(PoisonError::into_inner) = Some(Line { node, again: None });
            }
        });
    }

    /// Asking counts: of several requests that find it doubtful one tries.
    fn is_time_for_http(&self, is_doubtful: bool) -> bool {
        let now = Instant::now();
        let mut line = self.line();
        let Some((last, pause)) = line.as_mut().and_then(|line| line.again.as_mut()) else { return false };
        let wait = if is_doubtful { HEAD_START } else { *pause };
        let is_time = now.duration_since(*last) >= wait;
        if is_time {
            (*last, *pause) = (now, (*pause * 2).min(AGAIN.1));
        }
        is_time
    }

    fn line(&self) -> MutexGuard<'_, Option<Line>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Newcomer<'_> {
    /// What it answers to a request while it is asked for its chain: that saves a way there and back. The answer counts only
    /// where the chain is the right one, and is not waited for where it is not.
    ///
    /// # Errors
    ///
    /// Why it is not verified, or else the error of the request.
    pub(super) async fn answer<R>(self, request: impl Future<Output = Result<R, RpcError>>) -> Result<R, RpcError> {
        let Self { node, line, turn, way } = self;
        let proof = async {
            way.judge(node.chain_id().await?)?;
            *line.lock().unwrap_or_else(PoisonError::into_inner) = Some(Line { node, again: None });
            // Nobody else waits for the answer.
            drop(turn);
            Ok(())
        };
        let ((), answer) = try_join!(proof, async { Ok(request.await) })?;
        answer
    }
}

impl Way<'_> {
    async fn connect(self) -> Result<Line, RpcError> {
        match (&self.provider.http, &self.provider.socket) {
            (Some(http), _) => {
                let node = self.http(http)?;
                self.judge(node.chain_id().await?)?;
                Ok(Line { node: Arc::new(node), again: None })
            }
            (None, Some(socket)) => self.over_either(socket).await,
            (None, None) => Err(RpcError::Fatal("it has no address".to_owned())),
        }
    }

    /// Over HTTP, where the node behind the socket has it.
    async fn over_either(self, socket: &SecretUrl) -> Result<Line, RpcError> {
        let endpoint = self.provider.name.as_str();
        let http = Arc::new(self.http(&socket.http_twin())?);
        let mut answer = std::pin::pin!(http.chain_id_if_there());
        let over_http = || Line { node: http.clone(), again: None };
        let first = timeout(HEAD_START, answer.as_mut()).await;
        let (error, stands_in) = match first {
            Ok(Ok(id)) if self.judge(id).is_ok() => return Ok(over_http()),
            // A guess that leads to another chain is wrong.
            Ok(Ok(_)) => (None, false),
            // What it says of itself it says of its socket, too.
            Ok(Err((error @ RpcError::Throttled { retry_after: Some(_), .. }, _))) => return Err(error),
            Ok(Err((error, is_nowhere))) => (Some(error), !is_nowhere),
            // It may be late, or behind a firewall that swallows what is sent to it.
            Err(_) => (None, true),
        };
        match self.over_socket(socket).await {
            Ok(node) if stands_in => {
                let error = error.map_or_else(|| "no answer yet".to_owned(), |error| error.to_string());
                info!(endpoint, error, "HTTP beside the WebSocket does not serve: the socket stands in for it");
                Ok(Line { node: Arc::new(node), again: Some((Instant::now(), AGAIN.0)) })
            }
            Ok(node) => {
                let error = error.map_or_else(|| "another chain".to_owned(), |error| error.to_string());
                info!(endpoint, error, "no HTTP beside the WebSocket: everything goes over the socket");
                Ok(Line { node: Arc::new(node), again: None })
            }
            Err(wrong @ RpcError::WrongChain { .. }) => Err(wrong),
            Err(_) if stands_in && error.is_none() => {
                self.judge(answer.await.map_err(|(error, _)| error)?)?;
                Ok(over_http())
            }
            Err(of_socket) => Err(error.filter(|_| stands_in).unwrap_or(of_socket)),
        }
    }

    fn http(self, url: &SecretUrl) -> Result<Node, RpcError> {
        let node = Node::http(url, self.tape(), self.limits, Arc::clone(self.budget))?;
        Ok(node.that_bears(self.bearing))
    }

    async fn over_socket(self, socket: &SecretUrl) -> Result<Node, RpcError> {
        let node = Node::socket(socket, self.tape(), self.limits, Arc::clone(self.budget)).await?;
        let node = node.that_bears(self.bearing);
        self.judge(node.chain_id().await?)?;
        Ok(node)
    }

    fn tape(self) -> Tape {
        Tape::new(&self.provider.name, self.recorder)
    }

    fn judge(self, told: u64) -> Result<(), RpcError> {
        if told == self.chain_id {
            return Ok(());
        }
        Err(RpcError::WrongChain { endpoint: self.provider.name.clone(), expected: self.chain_id, told })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::devchain::{Options, Serving, serve};

    async fn devchain() -> Serving {
        let options = Options { port: 0, mining: false, ..Options::default() };
        serve(options, CancellationToken::new()).await.unwrap()
    }

    /// The endpoint of this name, of which only the socket is told.
    fn endpoint(devchain: &Serving, name: &str) -> (Provider, Arc<Budget>, Arc<Bearing>) {
        endpoint_at(&format!("ws://{}/{name}", devchain.address))
    }

    /// The endpoint of this name, which has no socket.
    fn over_http_only(devchain: &Serving, name: &str) -> (Provider, Arc<Budget>, Arc<Bearing>) {
        endpoint_at(&format!("http://{}/{name}", devchain.address))
    }

    fn endpoint_at(url: &str) -> (Provider, Arc<Budget>, Arc<Bearing>) {
        let url = SecretUrl::parse(url).unwrap();
        let budget = Arc::new(Budget::default());
        (Provider::from(url), Arc::clone(&budget), Arc::new(Bearing::new(budget)))
    }

    fn way<'a>(endpoint: &'a (Provider, Arc<Budget>, Arc<Bearing>), limits: &'a Limits) -> Way<'a> {
        Way {
            provider: &endpoint.0,
            chain_id: Options::CHAIN_ID,
            limits,
            budget: &endpoint.1,
            bearing: &endpoint.2,
            recorder: None,
        }
    }

    /// What an endpoint does over HTTP from now on.
    async fn over_http(devchain: &Serving, name: &str, faults: Value) {
        let url = format!("ws://{}/{name}", devchain.address);
        let connect = alloy::transports::ws::WsConnect::new(url);
        let client = alloy::rpc::client::ClientBuilder::default().ws(connect).await.unwrap();
        client.request::<_, Value>("devchain_setFaults", [faults]).await.unwrap();
    }

    fn status(status: u16) -> Value {
        json!([{ "on": ["eth_chainId"], "do": { "http": { "status": status } } }])
    }

    fn busy() -> Value {
        json!([{ "on": ["eth_chainId"], "do": { "http": { "status": 429, "headers": { "retry-after": "7" } } } }])
    }

    /// Whether requests go over HTTP, at which this endpoint now refuses everything.
    async fn goes_over_http(devchain: &Serving, name: &str, connection: &Connection) -> bool {
        over_http(devchain, name, status(500)).await;
        let node = connection.node_now().unwrap();
        let is_refused = node.chain_id().await.is_err();
        over_http(devchain, name, json!([])).await;
        is_refused
    }

    /// Asks for the node, and waits for what it tries beside.
    async fn asked(connection: &Connection, way: Way<'_>, is_doubtful: bool) {
        let before = Arc::strong_count(&connection.line);
        connection.node(way, is_doubtful).await.unwrap();
        while Arc::strong_count(&connection.line) > before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The clock goes on, and nothing happens.
    async fn passes(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn where_http_is_unwell_the_socket_stands_in_and_where_there_is_none_it_stays() {
        let (devchain, limits) = (devchain().await, Limits::default());
        for (name, answer, comes_back) in [("unwell", 503, true), ("nowhere", 404, false)] {
            let (endpoint, connection) = (endpoint(&devchain, name), Connection::default());
            over_http(&devchain, name, status(answer)).await;
            asked(&connection, way(&endpoint, &limits), false).await;
            assert!(!goes_over_http(&devchain, name, &connection).await, "{name}");
            asked(&connection, way(&endpoint, &limits), true).await;
            assert!(!goes_over_http(&devchain, name, &connection).await, "{name}: it was tried a moment ago");
            passes(HEAD_START).await;
            asked(&connection, way(&endpoint, &limits), true).await;
            assert_eq!(goes_over_http(&devchain, name, &connection).await, comes_back, "{name}");
        }
    }

    #[tokio::test]
    async fn http_is_tried_again_also_where_the_socket_never_breaks() {
        let (devchain, limits) = (devchain().await, Limits::default());
        let (endpoint, connection) = (endpoint(&devchain, "unwell"), Connection::default());
        over_http(&devchain, "unwell", status(503)).await;
        asked(&connection, way(&endpoint, &limits), false).await;
        passes(AGAIN.0).await;
        asked(&connection, way(&endpoint, &limits), false).await;
        assert!(!goes_over_http(&devchain, "unwell", &connection).await);
        over_http(&devchain, "unwell", json!([])).await;
        passes(AGAIN.0).await;
        asked(&connection, way(&endpoint, &limits), false).await;
        assert!(!goes_over_http(&devchain, "unwell", &connection).await, "not yet");
        passes(AGAIN.0).await;
        asked(&connection, way(&endpoint, &limits), false).await;
        assert!(goes_over_http(&devchain, "unwell", &connection).await);
    }

    #[tokio::test]
    async fn a_socket_stands_in_again_where_http_serves_no_longer() {
        let (devchain, limits) = (devchain().await, Limits::default());
        let (endpoint, connection) = (endpoint(&devchain, "late"), Connection::default());
        asked(&connection, way(&endpoint, &limits), false).await;
        assert!(goes_over_http(&devchain, "late", &connection).await);
        over_http(&devchain, "late", status(429)).await;
        let left_alone = connection.node(way(&endpoint, &limits), true).await;
        assert!(matches!(left_alone, Err(RpcError::Throttled { .. })), "it serves: nothing is opened for that");
        over_http(&devchain, "late", status(503)).await;
        asked(&connection, way(&endpoint, &limits), true).await;
        assert!(!goes_over_http(&devchain, "late", &connection).await);
    }

    /// Takes connections for a devchain; passes on those that ask for a socket, and never answers the others.
    async fn swallows_http(devchain: &Serving) -> SecretUrl {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = SecretUrl::parse(&format!("ws://{}", listener.local_addr().unwrap())).unwrap();
        let server = devchain.address;
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut first = [0; 3];
                    near.peek(&mut first).await.unwrap();
                    if first != *b"GET" {
                        return std::future::pending().await;
                    }
                    let mut far = tokio::net::TcpStream::connect(server).await.unwrap();
                    drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                });
            }
        });
        url
    }

    #[tokio::test]
    async fn where_http_is_swallowed_the_socket_serves_long_before_the_time_limit() {
        let (devchain, limits) =
            (devchain().await, Limits { rpc_timeout: Duration::from_hours(1), ..Limits::default() });
        let mut endpoint = endpoint(&devchain, "");
        endpoint.0.socket = Some(swallows_http(&devchain).await);
        let connection = Connection::default();
        let connecting = connection.node(way(&endpoint, &limits), false);
        timeout(Duration::from_mins(1), connecting).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_newcomer_is_asked_beside_its_proof_and_its_answer_counts_only_with_it() {
        let (devchain, limits) = (devchain().await, Limits::default());
        let endpoint = over_http_only(&devchain, "new");
        let way = way(&endpoint, &limits);
        let other = Way { chain_id: Options::CHAIN_ID + 1, ..way };
        let connection = Connection::default();
        let newcomer = connection.newcomer(other).await.unwrap().unwrap();
        let never = std::future::pending::<Result<(), RpcError>>();
        assert!(matches!(newcomer.answer(never).await, Err(RpcError::WrongChain { .. })), "at once");
        assert!(connection.node_now().is_none());
        let newcomer = connection.newcomer(way).await.unwrap().unwrap();
        // It is asked before it is verified, and others need not wait for its answer.
        let waits_for_its_proof = async {
            assert!(connection.node_now().is_none());
            connection.node(way, false).await.map(drop)
        };
        Box::pin(newcomer.answer(waits_for_its_proof)).await.unwrap();
        assert!(connection.node_now().is_some());
        assert!(connection.newcomer(way).await.unwrap().is_none(), "it is none any more");
        let another = Connection::default();
        let newcomer = another.newcomer(way).await.unwrap().unwrap();
        let answer = newcomer.answer::<()>(async { Err(RpcError::Behind("no head".to_owned())) }).await;
        assert!(matches!(answer, Err(RpcError::Behind(_))) && another.node_now().is_some(), "it is verified");
    }

    #[tokio::test]
    async fn who_waited_for_another_s_try_does_not_ask_an_endpoint_that_wants_to_be_left_alone() {
        let (devchain, limits) = (devchain().await, Limits::default());
        let (endpoint, connection) = (over_http_only(&devchain, "busy"), Connection::default());
        let way = way(&endpoint, &limits);
        over_http(&devchain, "busy", busy()).await;
        let newcomer = connection.newcomer(way).await.unwrap().unwrap();
        let (first, second) = tokio::join!(newcomer.answer(async { Ok(()) }), connection.node(way, false));
        assert!(matches!(first, Err(RpcError::Throttled { .. })), "{first:?}");
        over_http(&devchain, "busy", json!([])).await;
        assert!(matches!(second, Err(RpcError::Throttled { message, .. }) if message.contains("left alone")));
        assert!(connection.newcomer(way).await.is_err(), "not yet");
    }

    #[tokio::test]
    async fn who_asks_to_be_left_alone_over_http_is_not_asked_over_its_socket() {
        let (devchain, limits) = (devchain().await, Limits::default());
        let (endpoint, connection) = (endpoint(&devchain, "busy"), Connection::default());
        over_http(&devchain, "busy", busy()).await;
        let asked = connection.node(way(&endpoint, &limits), false).await;
        assert!(
            matches!(asked, Err(RpcError::Throttled { retry_after: Some(_), .. })) && connection.node_now().is_none()
        );
    }
}

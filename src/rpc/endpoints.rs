//! All endpoints of one chain behind one [`ChainSource`]: the preferred one first, the next one when it fails.
//!
//! An endpoint is verified by its chain id before its first use. Requests stay with one endpoint as long as it answers,
//! so that a block's header and its logs come from one place (F08); after a failure they move on to the next, and come
//! back to the preferred one after a while.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tokio::{sync::OnceCell, time::Instant};
use tracing::{info, warn};

use super::{At, ChainSource, EndpointState, LogFilter, RangeLogs, RpcError, client::Node, heads};
use crate::{
    config::{Limits, SecretUrl},
    domain::{BlockRange, BlockRef, Header, RawLog},
};

/// After a failure of the preferred endpoint the next one is used for this long before the preferred one is tried again.
const RETURN_AFTER: Duration = Duration::from_secs(30);

/// The configured endpoints of one chain.
pub struct Endpoints {
    chain_id: u64,
    limits: Limits,
    by_preference: Vec<Endpoint>,
    current: AtomicUsize,
    left_preferred: Mutex<Option<Instant>>,
}

struct Endpoint {
    name: String,
    url: SecretUrl,
    node: OnceCell<Arc<Node>>,
    /// It failed since its chain was verified: another node may stand there now (F11).
    doubtful: AtomicBool,
    errors: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl Endpoints {
    /// The endpoints at `urls`, in order of preference. Nothing is sent yet.
    #[must_use]
    pub fn new(chain_id: u64, urls: Vec<SecretUrl>, limits: Limits) -> Self {
        let by_preference = urls
            .into_iter()
            .map(|url| Endpoint {
                name: url.name().to_owned(),
                url,
                node: OnceCell::new(),
                doubtful: AtomicBool::new(false),
                errors: AtomicU64::new(0),
                last_error: Mutex::new(None),
            })
            .collect();
        Self { chain_id, limits, by_preference, current: AtomicUsize::new(0), left_preferred: Mutex::new(None) }
    }

    /// Whether some endpoint can push heads.
    fn sockets(&self) -> impl Iterator<Item = &Endpoint> {
        self.by_preference.iter().filter(|endpoint| endpoint.url.is_socket())
    }

    /// Asks the current endpoint, then each other one, until one answers. What only says that the *request* is at
    /// fault (too large) is answered at once.
    async fn ask<R, F>(&self, request: impl Fn(Arc<Node>) -> F) -> Result<R, RpcError>
    where
        F: Future<Output = Result<R, RpcError>> + Send,
    {
        let start = self.preferred();
        let mut first_error = None;
        for step in 0..self.by_preference.len() {
            let index = (start + step) % self.by_preference.len();
            let Some(endpoint) = self.by_preference.get(index) else { continue };
            let answer = match endpoint.node(self.chain_id, &self.limits).await {
                Ok(node) => request(node.clone()).await,
                Err(error) => Err(error),
            };
            endpoint.remember(answer.as_ref().err());
            match answer {
                Ok(answer) => {
                    self.settle(index);
                    return Ok(answer);
                }
                Err(error @ (RpcError::TooLarge(_) | RpcError::Orphaned(_))) => return Err(error),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| RpcError::Fatal("no endpoint is configured".into())))
    }

    fn preferred(&self) -> usize {
        let mut left = self.left_preferred.lock().unwrap_or_else(PoisonError::into_inner);
        if left.is_some_and(|at| at.elapsed() >= RETURN_AFTER) {
            *left = None;
            self.current.store(0, Ordering::Relaxed);
        }
        self.current.load(Ordering::Relaxed)
    }

    fn settle(&self, index: usize) {
        let before = self.current.swap(index, Ordering::Relaxed);
        if before != index {
            let mut left = self.left_preferred.lock().unwrap_or_else(PoisonError::into_inner);
            *left = (index != 0).then(Instant::now);
            let name = self.by_preference.get(index).map_or("?", |endpoint| &endpoint.name);
            warn!(endpoint = name, "requests move to another endpoint");
        }
    }
}

impl Endpoint {
    /// The verified node behind this endpoint; connects at the first call, and verifies it again after an outage.
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
        if self.doubtful.load(Ordering::Relaxed) {
            self.verify(node, chain_id).await?;
            self.doubtful.store(false, Ordering::Relaxed);
        }
        Ok(node)
    }

    async fn verified(&self, node: Node, chain_id: u64) -> Result<Arc<Node>, RpcError> {
        self.verify(&node, chain_id).await?;
        Ok(Arc::new(node))
    }

    async fn verify(&self, node: &Node, chain_id: u64) -> Result<(), RpcError> {
        let told = node.chain_id().await?;
        if told == chain_id {
            return Ok(());
        }
        Err(RpcError::WrongChain { endpoint: self.name.clone(), expected: chain_id, told })
    }

    fn remember(&self, error: Option<&RpcError>) {
        if let Some(error) = error {
            self.errors.fetch_add(1, Ordering::Relaxed);
            // Complaints about a request come from a node that runs.
            if matches!(error, RpcError::Transient(_)) {
                self.doubtful.store(true, Ordering::Relaxed);
            }
        }
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error.map(ToString::to_string);
    }
}

#[async_trait]
impl ChainSource for Endpoints {
    async fn chain_id(&self) -> Result<u64, RpcError> {
        self.ask(|node| async move { node.chain_id().await }).await
    }

    async fn header(&self, at: At) -> Result<Option<Header>, RpcError> {
        self.ask(|node| async move { node.header(at).await }).await
    }

    async fn block_logs(&self, block: BlockRef, timestamp: u64, filter: &LogFilter) -> Result<Vec<RawLog>, RpcError> {
        self.ask(|node| async move { node.block_logs(block, timestamp, filter).await }).await
    }

    async fn range_logs(&self, range: BlockRange, filter: &LogFilter) -> Result<RangeLogs, RpcError> {
        self.ask(|node| async move { node.range_logs(range, filter).await }).await
    }

    async fn heads(&self) -> Result<Option<BoxStream<'static, ()>>, RpcError> {
        let mut last_error = None;
        for endpoint in self.sockets() {
            match heads::subscribe(&endpoint.url, self.limits.rpc_timeout).await {
                Ok(signs) => return Ok(Some(signs)),
                Err(error) => last_error = Some(error),
            }
        }
        last_error.map_or(Ok(None), Err)
    }

    fn endpoints(&self) -> Vec<EndpointState> {
        self.by_preference
            .iter()
            .map(|endpoint| EndpointState {
                name: endpoint.name.clone(),
                errors: endpoint.errors.load(Ordering::Relaxed),
                last_error: endpoint.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            })
            .collect()
    }
}

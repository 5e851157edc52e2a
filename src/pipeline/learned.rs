//! **Remember** over a restart what was learned that each endpoint bears: read at the start, written once a minute where
//! it is new, and at the end.
//!
//! Nothing depends on it. What cannot be read or written costs some requests, which the endpoints refuse, after the next
//! start.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::{rpc::ChainSource, store::StateStore};

/// How often it is written at most.
const EVERY: Duration = Duration::from_mins(1);
/// The start and the end wait for the store no longer than this.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was learned of the endpoints of one chain, and where it is kept.
#[derive(Clone)]
pub struct Learned {
    source: Arc<dyn ChainSource>,
    store: Arc<dyn StateStore>,
}

impl Learned {
    /// Reads and writes nothing yet.
    #[must_use]
    pub fn new(source: Arc<dyn ChainSource>, store: Arc<dyn StateStore>) -> Self {
        Self { source, store }
    }

    /// Goes on with what is kept.
    pub async fn recall(&self) {
        match timeout(PATIENCE, self.store.learned()).await {
            Ok(Ok(learned)) => self.source.resume(&learned),
            Ok(Err(error)) => debug!(%error, "what was learned of the endpoints cannot be read"),
            Err(_) => debug!("what was learned of the endpoints was not read in time"),
        }
    }

    /// Keeps it, again and again; never returns.
    pub async fn keep(self) {
        let mut written = self.source.learned();
        loop {
            sleep(EVERY).await;
            self.write(&mut written).await;
        }
    }

    /// Keeps it now, for the end.
    pub async fn keep_now(&self) {
        if timeout(PATIENCE, self.write(&mut BTreeMap::new())).await.is_err() {
            debug!("what was learned of the endpoints was not written in time");
        }
    }

    /// Writes what is not written yet.
    async fn write(&self, written: &mut BTreeMap<String, String>) {
        for (endpoint, learned) in self.source.learned() {
            if written.get(&endpoint) == Some(&learned) {
                continue;
            }
            match self.store.learn(&endpoint, &learned).await {
                Ok(()) => drop(written.insert(endpoint, learned)),
                Err(error) => debug!(endpoint, %error, "what was learned of an endpoint is not kept"),
            }
        }
    }
}

//! The list of tracked tokens as the directory has it.
//!
//! A keeper reads it every few minutes, whenever the directory says that it changed, and when the store knows a newer
//! filter. It fails closed (I10): a list that becomes empty is not believed, and if the directory fails later, the last
//! good list stays in use.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use alloy::primitives::Address;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    backoff::Backoff,
    config::Limits,
    domain::TokenList,
    telemetry::{Edge, Vitals},
    tokens::{Loaded, TokenDirectory},
};

/// One reading of the directory may take this long.
pub(super) const LOAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Rows that were skipped are named in the log up to this many.
const SKIPPED_SHOWN: usize = 10;

/// Which tokens are tracked.
#[derive(Clone, Debug)]
pub enum Tokens {
    /// Filtering is off: every event passes.
    Off,
    /// The list was not read yet: nothing may be delivered.
    Waiting,
    /// The last good reading.
    Tracked(Arc<Reading>),
}

/// One reading of the directory.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The tracked tokens.
    pub tokens: Arc<TokenList>,
    /// The first block of those that have one of their own.
    pub(super) from: BTreeMap<Address, u64>,
    /// When it began: what changed before that is in it.
    pub(super) begun: Instant,
}

/// Reads the directory at the start, every few minutes, when it says that it changed, and when `reload` says so; never
/// returns. Every good reading is sent, also one that changed nothing.
pub async fn keep_fresh(
    directory: Arc<dyn TokenDirectory>,
    publish: watch::Sender<Tokens>,
    reload: Arc<Notify>,
    limits: Limits,
    vitals: Arc<Vitals>,
) {
    let mut backoff = Backoff::new(Duration::from_secs(10));
    loop {
        let begun = Instant::now();
        let loaded = timeout(LOAD_TIMEOUT, directory.load()).await;
        let outcome = match loaded {
            Ok(Ok(loaded)) => accept(loaded, begun, &publish, &limits),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("token directory did not answer within {LOAD_TIMEOUT:?}")),
        };
        match outcome {
            Ok(tracked) => {
                vitals.edge(Edge::Tokens, Ok(()));
                vitals.tokens(Some(tracked));
                backoff.reset();
                tokio::select! {
                    biased;
                    () = sleep(limits.token_refresh) => {}
                    () = directory.changed() => {}
                    () = reload.notified() => {}
                }
            }
            Err(reason) => {
                warn!(reason, "token list not refreshed; the last good one stays in use");
                vitals.edge(Edge::Tokens, Err(&reason));
                backoff.wait(None).await;
            }
        }
    }
}

/// Sends on a list that can be believed; answers its size.
fn accept(loaded: Loaded, begun: Instant, publish: &watch::Sender<Tokens>, limits: &Limits) -> Result<usize, String> {
    for row in loaded.skipped.iter().take(SKIPPED_SHOWN) {
        warn!(row, "token skipped");
    }
    if loaded.skipped.len() > SKIPPED_SHOWN {
        warn!(more = loaded.skipped.len() - SKIPPED_SHOWN, "further tokens skipped");
    }
    let tracked = loaded.tokens.len();
    if tracked == 0 && !limits.allow_empty_tokens {
        return Err(
            "the directory holds no valid token for this chain; set ALLOW_EMPTY_TOKENS=true if that is meant".into()
        );
    }
    publish.send_modify(|current| {
        let known = match current {
            Tokens::Tracked(reading) if *reading.tokens == loaded.tokens => Some(Arc::clone(&reading.tokens)),
            _ => None,
        };
        if known.is_none() {
            info!(tracked, "token list loaded");
        }
        let tokens = known.unwrap_or_else(|| Arc::new(loaded.tokens));
        *current = Tokens::Tracked(Arc::new(Reading { tokens, from: loaded.from, begun }));
    });
    Ok(tracked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Token;

    fn list(tokens: u8) -> Loaded {
        let token = |n| Token { address: Address::repeat_byte(n), symbol: "T".into(), name: "T".into(), decimals: 18 };
        Loaded { tokens: (1..=tokens).map(token).collect(), ..Loaded::default() }
    }

    fn size(tokens: &Tokens) -> Option<usize> {
        match tokens {
            Tokens::Tracked(reading) => Some(reading.tokens.len()),
            Tokens::Off | Tokens::Waiting => None,
        }
    }

    #[test]
    fn an_empty_list_is_not_believed_unless_the_operator_says_so() {
        let (publish, tokens) = watch::channel(Tokens::Waiting);
        let mut limits = Limits::default();
        let accept = |tokens, limits: &Limits| accept(list(tokens), Instant::now(), &publish, limits);
        assert!(accept(0, &limits).is_err());
        assert_eq!(size(&tokens.borrow()), None);
        assert_eq!(accept(2, &limits), Ok(2));
        assert!(accept(0, &limits).is_err());
        assert_eq!(size(&tokens.borrow()), Some(2), "the last good list stays");
        limits.allow_empty_tokens = true;
        assert_eq!(accept(0, &limits), Ok(0));
        assert_eq!(size(&tokens.borrow()), Some(0));
    }

    #[test]
    fn a_reading_that_changed_nothing_is_told_too_and_takes_no_more_memory() {
        let (publish, mut tokens) = watch::channel(Tokens::Waiting);
        let tracked = |tokens: &Tokens| match tokens {
            Tokens::Tracked(reading) => Arc::clone(&reading.tokens),
            other => panic!("{other:?}"),
        };
        accept(list(2), Instant::now(), &publish, &Limits::default()).unwrap();
        let first = tracked(&tokens.borrow_and_update());
        accept(list(2), Instant::now(), &publish, &Limits::default()).unwrap();
        assert!(tokens.has_changed().unwrap());
        assert!(Arc::ptr_eq(&first, &tracked(&tokens.borrow())));
    }
}

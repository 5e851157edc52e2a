//! **Filter** events by the tokens that the business tracks.
//!
//! The list is an immutable snapshot; a keeper reads the directory every few minutes and publishes a new one. It
//! fails closed (I10): without a list nothing is delivered, rather than everything; a list that becomes empty is not
//! believed; and if the directory fails later, the last good list stays in use.

use std::{sync::Arc, time::Duration};

use alloy::primitives::Address;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::{Candidate, Decoded, StageError, Undecodable};
use crate::{
    backoff::Backoff,
    config::Limits,
    domain::{Event, TokenList},
    telemetry::{Edge, Vitals},
    tokens::{Loaded, TokenDirectory},
};

/// One reading of the directory may take this long.
const LOAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Rows that were skipped are named in the log up to this many.
const SKIPPED_SHOWN: usize = 10;

/// Which tokens are tracked.
#[derive(Clone, Debug)]
pub enum Tokens {
    /// Filtering is off: every event passes.
    Off,
    /// The list was not read yet: nothing may be delivered.
    Waiting,
    /// Only events of these tokens pass, where their entry asks for it.
    Tracked(Arc<TokenList>),
}

/// What passed the filter.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Events to deliver, in the order of their logs, with what is known of their tokens.
    pub events: Vec<Event>,
    /// Logs of tracked contracts that could not be decoded.
    pub undecodable: Vec<Undecodable>,
}

/// Keeps what someone wants.
pub(super) fn by_token(tokens: &Tokens, decoded: Decoded) -> Result<Wanted, StageError> {
    let list = match tokens {
        Tokens::Off => None,
        Tokens::Waiting => return Err(StageError::Again("the token list was not read yet")),
        Tokens::Tracked(list) => Some(list),
    };
    let token = |address: Address| list.and_then(|list| list.get(&address)).cloned();
    let wanted = |candidate: Candidate| {
        let token = token(candidate.event.address);
        let passes = token.is_some() || !candidate.token_filter || list.is_none();
        passes.then_some(Event { token, ..candidate.event })
    };
    let tracked = |log: &Undecodable| log.by_address || token(log.log.address).is_some();
    Ok(Wanted {
        events: decoded.candidates.into_iter().filter_map(wanted).collect(),
        undecodable: decoded.undecodable.into_iter().filter(tracked).collect(),
    })
}

/// Reads the directory at the start, every few minutes, and whenever it says that it changed; never returns.
pub async fn keep_fresh(
    directory: Arc<dyn TokenDirectory>,
    publish: watch::Sender<Tokens>,
    limits: Limits,
    vitals: Arc<Vitals>,
) {
    let mut backoff = Backoff::new(Duration::from_secs(10));
    loop {
        let loaded = timeout(LOAD_TIMEOUT, directory.load()).await;
        let outcome = match loaded {
            Ok(Ok(loaded)) => accept(loaded, &publish, &limits),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("token directory did not answer within {LOAD_TIMEOUT:?}")),
        };
        match outcome {
            Ok(tracked) => {
                vitals.edge(Edge::Tokens, Ok(()));
                vitals.tokens(Some(tracked));
                backoff.reset();
                tokio::select! {
                    () = sleep(limits.token_refresh) => {}
                    () = directory.changed() => {}
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

/// Publishes a list that can be believed; answers its size.
fn accept(loaded: Loaded, publish: &watch::Sender<Tokens>, limits: &Limits) -> Result<usize, String> {
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
    publish.send_if_modified(|current| {
        if matches!(current, Tokens::Tracked(list) if **list == loaded.tokens) {
            return false;
        }
        info!(tracked, "token list loaded");
        *current = Tokens::Tracked(Arc::new(loaded.tokens));
        true
    });
    Ok(tracked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Token;

    fn list(tokens: u8) -> Loaded {
        let token = |n| Token { address: Address::repeat_byte(n), symbol: "T".into(), name: "T".into(), decimals: 18 };
        Loaded { tokens: (1..=tokens).map(token).collect(), skipped: vec![] }
    }

    fn size(tokens: &Tokens) -> Option<usize> {
        match tokens {
            Tokens::Tracked(list) => Some(list.len()),
            Tokens::Off | Tokens::Waiting => None,
        }
    }

    #[test]
    fn an_empty_list_is_not_believed_unless_the_operator_says_so() {
        let (publish, tokens) = watch::channel(Tokens::Waiting);
        let mut limits = Limits::default();
        assert!(accept(list(0), &publish, &limits).is_err());
        assert_eq!(size(&tokens.borrow()), None);
        assert_eq!(accept(list(2), &publish, &limits), Ok(2));
        assert!(accept(list(0), &publish, &limits).is_err());
        assert_eq!(size(&tokens.borrow()), Some(2), "the last good list stays");
        limits.allow_empty_tokens = true;
        assert_eq!(accept(list(0), &publish, &limits), Ok(0));
        assert_eq!(size(&tokens.borrow()), Some(0));
    }

    #[test]
    fn an_unchanged_list_wakes_nobody() {
        let (publish, mut tokens) = watch::channel(Tokens::Waiting);
        accept(list(2), &publish, &Limits::default()).unwrap();
        tokens.mark_unchanged();
        accept(list(2), &publish, &Limits::default()).unwrap();
        assert!(!tokens.has_changed().unwrap());
    }
}

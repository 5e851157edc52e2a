//! What commands work with beyond the store: nodes, sinks and the token list, as the listener has them, but read once and
//! without tasks of their own.

use std::{collections::BTreeMap, sync::Arc};

use super::Failure;
use crate::{
    app,
    config::{SecretUrl, Settings},
    domain::TokenList,
    pipeline::{Audit, Context, Filters, Span, StageError},
    rpc::{ChainSource, LogFilter, RpcError},
    sinks::Sink,
    store::StateStore,
};

/// Sinks by their handlers.
pub(super) type Sinks = BTreeMap<String, Arc<dyn Sink>>;

/// The context of one command.
pub(super) fn context(
    settings: &Settings,
    (store, source): (Arc<dyn StateStore>, Arc<dyn ChainSource>),
    sinks: Sinks,
) -> Context {
    Context {
        chain: settings.chain.clone(),
        deliver: settings.deliver,
        registry: settings.registry.clone(),
        filter: LogFilter { addresses: settings.registry.addresses(), topics: settings.registry.topics() },
        source,
        store,
        sinks,
        filters: Filters::off(),
        audit: Audit::new(false),
        vitals: Arc::default(),
        limits: settings.limits.clone(),
        span: Span::new(settings.chain.batch_blocks),
    }
}

/// The configured nodes; for commands that cannot do without.
pub(super) fn nodes(settings: &Settings) -> Result<Arc<dyn ChainSource>, Failure> {
    match settings.providers.as_slice() {
        [] => Err(Failure::Config("WEB3_PROVIDER is not set: this command asks a node".into())),
        urls => Ok(app::nodes(settings, urls)),
    }
}

/// Each configured node by itself, under its name, where there are several.
pub(super) fn witnesses(settings: &Settings) -> Vec<(String, Arc<dyn ChainSource>)> {
    let one = |(place, url): (usize, &SecretUrl)| {
        (format!("{} ({})", place + 1, url.name()), app::nodes(settings, std::slice::from_ref(url)))
    };
    match settings.providers.as_slice() {
        [] | [_] => Vec::new(),
        urls => urls.iter().enumerate().map(one).collect(),
    }
}

/// The token list as it is now; `None` where filtering is off.
///
/// # Errors
///
/// [`Failure::Unavailable`] where it cannot be read, [`Failure::No`] where it is empty and that is not meant.
pub(super) async fn tokens(settings: &Settings) -> Result<Option<Arc<TokenList>>, Failure> {
    let unavailable = |error: crate::tokens::TokenError| Failure::Unavailable(error.to_string());
    let Some(directory) = app::token_directory(settings).await.map_err(unavailable)? else {
        return Ok(None);
    };
    let loaded = directory.load().await;
    directory.close().await;
    let list = loaded.map_err(unavailable)?.tokens;
    if list.is_empty() && !settings.limits.allow_empty_tokens {
        return Err(Failure::No("the token list holds no valid token for this chain".into()));
    }
    Ok(Some(Arc::new(list)))
}

/// How a node that does not serve ends a command.
pub(super) fn node_failure(error: &RpcError) -> Failure {
    match error {
        RpcError::WrongChain { .. } => Failure::Config(error.to_string()),
        _ => Failure::Unavailable(format!("the nodes do not serve: {error}")),
    }
}

/// How work that was not finished ends a command.
pub(super) fn stage_failure(error: &StageError) -> Failure {
    match error {
        StageError::Rpc(error) => node_failure(error),
        StageError::Store(error) => app::store_failure(error),
        StageError::Again(reason) => Failure::Temporary((*reason).to_owned()),
        StageError::Conflict(reason) | StageError::Halt(reason) => Failure::No(reason.clone()),
    }
}

//! What commands work with: the store, the nodes and the token list, as the listener has them, but read once and without
//! tasks of their own; where they write; and whether each of the servers answers.

use std::{io::Write, sync::Arc};

use super::Failure;
use crate::{
    app,
    config::{Provider, Settings},
    domain::TokenList,
    pipeline::StageError,
    rpc::{At, ChainSource, RpcError},
    store::{Snapshot, StateStore, StoreError},
};

/// The store and what it holds of this chain.
pub(super) async fn opened(settings: &Settings) -> Result<(Arc<dyn StateStore>, Snapshot), Failure> {
    let id = settings.chain.id;
    let nothing = || Failure::No(format!("the store holds nothing of chain {id} yet: `chaintap run` begins it"));
    let store = app::existing_store(settings).await.map_err(|error| unopened(settings, error))?;
    let store = store.ok_or_else(nothing)?;
    let snapshot = store.peek().await.map_err(|error| app::store_failure(&error))?.ok_or_else(nothing)?;
    Ok((store, snapshot))
}

/// Why the store could not be opened.
pub(super) fn unopened(settings: &Settings, error: StoreError) -> Failure {
    match error {
        // Told without a scheme: what looks like a URL is cut to its host.
        StoreError::InUse(why) => {
            let port = settings.http.port();
            Failure::Temporary(format!("{why}\nif that is chaintap, it can be asked: curl localhost:{port}/health"))
        }
        other => app::store_failure(&other),
    }
}

/// Writes a line.
pub(super) fn say(out: &mut (dyn Write + Send), line: &str) -> Result<(), Failure> {
    writeln!(out, "{line}").map_err(|error| Failure::Internal(format!("cannot write: {error}")))
}

/// The configured nodes; for commands that cannot do without.
pub(super) fn nodes(settings: &Settings) -> Result<Arc<dyn ChainSource>, Failure> {
    match settings.providers.as_slice() {
        [] => Err(Failure::Config("WEB3_PROVIDER is not set: this command asks a node".into())),
        providers => Ok(app::nodes(settings, providers)),
    }
}

/// Each configured node by itself, under its name, where there are several.
pub(super) fn witnesses(settings: &Settings) -> Vec<(String, Arc<dyn ChainSource>)> {
    let one = |(place, provider): (usize, &Provider)| {
        (format!("{} ({})", place + 1, provider.name), app::nodes(settings, std::slice::from_ref(provider)))
    };
    match settings.providers.as_slice() {
        [] | [_] => Vec::new(),
        providers => providers.iter().enumerate().map(one).collect(),
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

/// Asks every server that the settings name: its name, and what it is or why it cannot be used.
pub(super) async fn reach(settings: &Settings) -> Vec<(String, Result<String, String>)> {
    let mut answers = Vec::new();
    for provider in &settings.providers {
        let node = app::nodes(settings, std::slice::from_ref(provider));
        let head = node.header(At::Latest).await.map_err(|error| error.to_string());
        let head = head.and_then(|head| head.ok_or_else(|| "no latest block".to_owned()));
        answers.push((format!("node {}", provider.name), head.map(|head| format!("head {}", head.number))));
    }
    let store = app::open_store(settings).await.map_err(|error| error.to_string());
    answers.push(("state store".to_owned(), store.map(|store| store.durability())));
    match app::token_directory(settings).await.map_err(|error| error.to_string()) {
        Ok(None) => {}
        Ok(Some(directory)) => {
            let loaded = directory.load().await.map_err(|error| error.to_string());
            answers.push(("token list".to_owned(), loaded.map(|list| format!("{} tokens", list.tokens.len()))));
            directory.close().await;
        }
        Err(reason) => answers.push(("token list".to_owned(), Err(reason))),
    }
    match app::sinks(settings).await {
        Err(failure) => answers.push(("sinks".to_owned(), Err(failure.to_string()))),
        Ok(sinks) => {
            for (handler, sink) in sinks {
                let there = sink.check().await.map_err(|error| error.to_string());
                answers.push((format!("{handler} → {}", sink.name()), there.map(|()| "takes messages".to_owned())));
            }
        }
    }
    answers
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

//! What cannot be delivered, kept for an operator.

use std::time::Duration;

use alloy::hex;
use tracing::error;

use super::super::{Context, StageError, Undecodable, count_dead_letters, persist};
use crate::{
    backoff::Backoff,
    domain::Event,
    sinks::{Message, Sink},
    store::{DeadKind, DeadLetter},
    telemetry::{Edge, metrics},
};

/// Dead letters in one step of the store.
const LETTERS_AT_ONCE: usize = 100;
/// Longest pause while there is no room for more.
const FULL_PAUSE: Duration = Duration::from_secs(10);
/// Of an undecodable log's data, so many bytes are kept.
const DATA_SHOWN: usize = 4_096;

/// What a sink will never take.
pub(super) fn refused(message: &Message, event: &Event, reason: String) -> DeadLetter {
    DeadLetter {
        key: key(message.id(), &event.handler),
        kind: DeadKind::Refused,
        reason,
        handler: event.handler.to_string(),
        block_number: event.block.number,
        block_hash: event.block.hash,
        body: message.body().to_owned(),
        buried_at: u64::try_from(wall_clock().as_millis()).unwrap_or(u64::MAX),
    }
}

/// Keeps what an audit found until [`acknowledged`] takes it back. It is journaled before it is sent, and the journal does
/// not tell what of a delivered block was sent: a process that dies in between leaves it to the operator instead of to
/// nobody. A key of its own keeps it apart from what a sink refuses of it.
pub(in crate::pipeline) async fn found(ctx: &Context, epoch: u64, events: &[Event]) -> Result<(), StageError> {
    let letter = |event: &Event| {
        let message = Message::apply(event, ctx.chain.id, epoch);
        let reason = "an audit found it, and nothing says yet that it was delivered: retry it".to_owned();
        let key = found_key(ctx, event);
        DeadLetter { key, ..refused(&message, event, reason) }
    };
    bury(ctx, None, &events.iter().map(letter).collect::<Vec<_>>()).await
}

/// What an audit found of a block was delivered.
pub(in crate::pipeline) async fn acknowledged(ctx: &Context, events: &[Event]) -> Result<(), StageError> {
    exhume(ctx, events.iter().map(|event| found_key(ctx, event)).collect()).await
}

/// Drops the dead letters of events whose block left the chain: they are not to be sent again (contract §10).
pub(super) async fn forget(ctx: &Context, events: &[Event]) -> Result<(), StageError> {
    if ctx.store.dead_letters_len().await? == 0 {
        return Ok(());
    }
    exhume(ctx, events.iter().flat_map(|event| [refused_key(ctx, event), found_key(ctx, event)]).collect()).await
}

async fn exhume(ctx: &Context, keys: Vec<String>) -> Result<(), StageError> {
    for chunk in keys.chunks(LETTERS_AT_ONCE) {
        persist(ctx, "exhume", Duration::MAX, || ctx.store.exhume(chunk)).await?;
    }
    count_dead_letters(ctx).await;
    Ok(())
}

fn refused_key(ctx: &Context, event: &Event) -> String {
    key(&Message::id_of(ctx.chain.id, event.block.hash, event.log_index), &event.handler)
}

fn found_key(ctx: &Context, event: &Event) -> String {
    key(&refused_key(ctx, event), "audit")
}

/// Keeps logs of tracked contracts that are not what their ABI says.
pub(super) async fn bury_undecodable(ctx: &Context, logs: &[Undecodable]) -> Result<(), StageError> {
    let letters: Vec<DeadLetter> = logs
        .iter()
        .map(|Undecodable { log, handler, reason, .. }| DeadLetter {
            key: key(&Message::id_of(ctx.chain.id, log.block.hash, log.log_index), handler),
            kind: DeadKind::Undecodable,
            reason: (*reason).to_owned(),
            handler: handler.to_string(),
            block_number: log.block.number,
            block_hash: log.block.hash,
            body: serde_json::json!({
                "address": log.address, "topics": &log.topics[..], "data": shown(&log.data),
                "transactionHash": log.transaction_hash, "logIndex": log.log_index,
            })
            .to_string(),
            buried_at: u64::try_from(wall_clock().as_millis()).unwrap_or(u64::MAX),
        })
        .collect();
    bury(ctx, None, &letters).await
}

/// A dead letter counts as delivered only once the store durably holds it; where there is no room for more, progress
/// waits and its sink counts as down (contract §10).
pub(super) async fn bury(ctx: &Context, sink: Option<&dyn Sink>, letters: &[DeadLetter]) -> Result<(), StageError> {
    for chunk in letters.chunks(LETTERS_AT_ONCE) {
        let mut backoff = Backoff::new(FULL_PAUSE);
        while !persist(ctx, "bury", Duration::MAX, || ctx.store.bury(chunk)).await? {
            let reason = "no room for more dead letters: redrive or drop some (chaintap dlq)";
            if let Some(sink) = sink {
                ctx.vitals.edge(Edge::Sink(sink.name().into()), Err(reason));
            }
            error!(reason, "progress waits");
            backoff.wait(None).await;
        }
    }
    if let Some(first) = letters.first() {
        error!(letters = letters.len(), key = first.key, reason = first.reason, "kept as dead letters");
        let kind = match first.kind {
            DeadKind::Refused => "refused",
            DeadKind::Undecodable => "undecodable",
        };
        metrics::dead_letters_buried(kind, letters.len() as u64);
        count_dead_letters(ctx).await;
    }
    Ok(())
}

/// Time since the Unix epoch; for display only.
pub(super) fn wall_clock() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// What a letter is kept under: the id that its message has, or would have, and its handler.
fn key(id: &str, handler: &str) -> String {
    format!("{id}|{handler}")
}

/// The data of a log that is kept for a person to read.
fn shown(data: &[u8]) -> String {
    hex::encode_prefixed(data.get(..DATA_SHOWN).unwrap_or(data))
}

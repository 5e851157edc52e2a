//! **Deliver** events to every sink that wants them.
//!
//! Invariants: nothing of an unsealed block is sent before its intent is journaled and a barrier vouches for it (I4);
//! a [`Delivered`] exists only once every sink acknowledged every event, or a dead letter durably holds it (I1). A sink
//! that is down holds back progress, not memory: the loop tries again until the claim is lost or the process stops.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};
use tracing::{error, warn};

use super::{Claim, Context, StageError, Undecodable, Wanted, persist};
use crate::{
    backoff::Backoff,
    domain::{BlockRef, Digest, Event, Header},
    sinks::{Message, Outcome, Sink},
    store::{BlockCommit, DeadKind, DeadLetter, FinalCommit, Intent, IntentReply, MAX_PART_EVENTS, StoreError},
    telemetry::{Edge, metrics},
};

/// Longest pause between two tries of a sink.
const SINK_PAUSE: Duration = Duration::from_secs(10);

/// Proof that every event of a block or range was acknowledged; only this file makes one.
#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) proof: Proof,
    pub(super) events: u64,
    _only_here: (),
}

/// What COMMIT needs to know.
#[derive(Debug)]
pub(super) enum Proof {
    /// One block, through its journal entry.
    Journaled(BlockCommit),
    /// A final range.
    Final(FinalCommit),
}

/// Journals and sends one unsealed block, part by part.
pub(super) async fn journaled(
    ctx: &Context,
    claim: &Claim,
    header: &Header,
    wanted: &Wanted,
) -> Result<Delivered, StageError> {
    bury_undecodable(ctx, &wanted.undecodable).await?;
    let mut entry = Entry { ctx, claim, header, digest: Digest::default() };
    let mut parts = wanted.events.chunks(MAX_PART_EVENTS);
    // A block without events is journaled too: its hash is what later blocks must fit to.
    let mut next = Some(parts.next().unwrap_or_default());
    while let Some(part) = next {
        if entry.append(part).await? == Appended::Differs {
            return merged(ctx, claim, header, wanted).await;
        }
        send(ctx, claim, part).await?;
        next = parts.next();
    }
    Ok(entry.delivered(wanted))
}

/// Sends what the journal holds for the block beside our own events, and appends to it what it lacks.
pub(super) async fn merged(
    ctx: &Context,
    claim: &Claim,
    header: &Header,
    wanted: &Wanted,
) -> Result<Delivered, StageError> {
    let mut entry = Entry { ctx, claim, header, digest: Digest::default() };
    entry.merge(&wanted.events).await?;
    Ok(entry.delivered(wanted))
}

/// Sends a part of a final range.
pub(super) async fn part(ctx: &Context, claim: &Claim, wanted: &Wanted) -> Result<u64, StageError> {
    bury_undecodable(ctx, &wanted.undecodable).await?;
    for chunk in wanted.events.chunks(ctx.limits.chunk_logs.max(1)) {
        send(ctx, claim, chunk).await?;
    }
    Ok(wanted.events.len() as u64)
}

/// All parts of a final range were sent: `first` and `last` are the headers of its ends.
pub(super) fn finished(
    claim: &Claim,
    first: &Header,
    last: &Header,
    confirmed: Vec<BlockRef>,
    events: u64,
) -> Delivered {
    let commit = FinalCommit {
        range: claim.grant.range,
        epoch: claim.grant.epoch,
        sealed: claim.grant.sealed,
        parent: first.parent,
        hash: last.hash,
        confirmed,
        filter_version: claim.grant.filter_version,
    };
    Delivered { proof: Proof::Final(commit), events, _only_here: () }
}

/// A journal entry while it grows.
struct Entry<'a> {
    ctx: &'a Context,
    claim: &'a Claim,
    header: &'a Header,
    digest: Digest,
}

#[derive(PartialEq, Eq)]
enum Appended {
    /// The part is journaled and may be sent.
    Journaled,
    /// The entry holds other events than ours.
    Differs,
}

impl Entry<'_> {
    /// Every sink acknowledged everything that the entry holds.
    fn delivered(self, wanted: &Wanted) -> Delivered {
        if !wanted.events.is_empty() {
            let age = wall_clock().saturating_sub(Duration::from_secs(self.header.timestamp));
            metrics::delivery_latency_seconds(age.as_secs_f64());
        }
        let commit = BlockCommit {
            block: self.header.block(),
            epoch: self.claim.grant.epoch,
            filter_version: self.claim.grant.filter_version,
            digest: self.digest,
        };
        Delivered { proof: Proof::Journaled(commit), events: wanted.events.len() as u64, _only_here: () }
    }

    async fn append(&mut self, events: &[Event]) -> Result<Appended, StageError> {
        let mut digest = self.digest;
        for event in events {
            digest.add(event);
        }
        let intent = Intent {
            block: self.header.block(),
            parent: self.header.parent,
            epoch: self.claim.grant.epoch,
            filter_version: self.claim.grant.filter_version,
            digest,
            events,
        };
        match persist(self.ctx, Duration::MAX, || self.ctx.store.intent(intent.clone())).await? {
            IntentReply::Journaled => {
                self.digest = digest;
                Ok(Appended::Journaled)
            }
            IntentReply::More => Ok(Appended::Differs),
            IntentReply::Done => Err(StageError::Again("the block is delivered already")),
            IntentReply::Stale => Err(StageError::Again("the epoch moved on")),
            IntentReply::OldList => Err(StageError::Again("the token list or the contracts moved on")),
            IntentReply::Sealed => Err(StageError::Again("the block became final meanwhile")),
            IntentReply::Full(reason) => Err(StageError::Store(StoreError::Transient(reason))),
            IntentReply::Conflict(reason) | IntentReply::Deep(reason) => Err(StageError::Halt(reason)),
        }
    }

    /// Someone journaled other events for this block, with another token list or another provider's answer. What is
    /// journaled may have been sent, so it is sent again, byte for byte; what is missing from it is appended first.
    async fn merge(&mut self, ours: &[Event]) -> Result<(), StageError> {
        let (ctx, block) = (self.ctx, self.header.block());
        let held = persist(ctx, Duration::MAX, || ctx.store.journaled(block, self.claim.grant.epoch)).await?;
        self.digest = Digest::of(&held);
        let is_held =
            |ours: &&Event| held.iter().any(|held| held.log_index == ours.log_index && held.handler == ours.handler);
        let missing: Vec<Event> = ours.iter().filter(|ours| !is_held(ours)).cloned().collect();
        // At least one intent, even an empty one: its barrier vouches for what the others journaled, too.
        let mut parts = missing.chunks(MAX_PART_EVENTS);
        let mut next = Some(parts.next().unwrap_or_default());
        while let Some(part) = next {
            if self.append(part).await? == Appended::Differs {
                return Err(StageError::Again("someone else appends to the same journal entry"));
            }
            next = parts.next();
        }
        for part in held.chunks(MAX_PART_EVENTS).chain(missing.chunks(MAX_PART_EVENTS)) {
            send(ctx, self.claim, part).await?;
        }
        Ok(())
    }
}

/// What waits for one sink, in the order of the logs.
struct Queue<'a> {
    sink: Arc<dyn Sink>,
    messages: Vec<Message>,
    /// The event behind each message.
    events: Vec<&'a Event>,
}

/// Hands events to their sinks; the sinks work side by side, each in the order of the logs.
async fn send(ctx: &Context, claim: &Claim, events: &[Event]) -> Result<(), StageError> {
    let mut queues: BTreeMap<&str, Queue<'_>> = BTreeMap::new();
    for event in events {
        let sink = ctx.sinks.get(&*event.handler).ok_or_else(|| {
            StageError::Halt(format!(
                "the journal holds events for the handler '{}', which contracts.toml no longer has: put it back",
                event.handler
            ))
        })?;
        let message = Message::apply(event, ctx.chain.id, claim.grant.epoch);
        let queue =
            queues.entry(sink.name()).or_insert_with(|| Queue { sink: sink.clone(), messages: vec![], events: vec![] });
        queue.messages.push(message);
        queue.events.push(event);
    }
    let handing_over = queues.into_values().map(|queue| hand_over(ctx, queue));
    futures_util::future::try_join_all(handing_over).await.map(|_| ())
}

/// One sink's messages, until each is acknowledged or buried.
async fn hand_over(ctx: &Context, queue: Queue<'_>) -> Result<(), StageError> {
    let Queue { sink, messages: mut pending, mut events } = queue;
    let mut backoff = Backoff::new(SINK_PAUSE);
    while !pending.is_empty() {
        ctx.vitals.queued(sink.name(), pending.len());
        let begun = Instant::now();
        let sent = timeout(ctx.limits.sink_timeout, sink.send(&pending)).await;
        metrics::sink_send_seconds(sink.name(), begun.elapsed().as_secs_f64());
        let outcomes = sent.unwrap_or_else(|_| vec![timed_out(ctx.limits.sink_timeout); pending.len()]);
        let tried = Tried::of(&pending, &events, outcomes);
        metrics::sink_messages(sink.name(), "acknowledged", tried.acknowledged);
        if !tried.refused.is_empty() {
            metrics::sink_messages(sink.name(), "refused", tried.refused.len() as u64);
            bury(ctx, &tried.refused).await?;
        }
        let kept = |index: usize| tried.keep.contains(&index);
        pending = keep_by_index(pending, kept);
        events = keep_by_index(events, kept);
        match tried.retry {
            None => {
                ctx.vitals.edge(Edge::Sink(sink.name().into()), Ok(()));
                backoff.reset();
            }
            Some((reason, throttled)) => {
                metrics::sink_messages(
                    sink.name(),
                    if throttled { "throttled" } else { "retry" },
                    tried.keep.len() as u64,
                );
                ctx.vitals.edge(Edge::Sink(sink.name().into()), Err(&reason));
                warn!(sink = sink.name(), reason, pending = pending.len(), "sink did not take everything");
                if tried.acknowledged > 0 && !throttled {
                    backoff.reset();
                }
                backoff.wait(None).await;
            }
        }
    }
    ctx.vitals.queued(sink.name(), 0);
    Ok(())
}

/// What one call of a sink came to.
struct Tried {
    acknowledged: u64,
    refused: Vec<DeadLetter>,
    keep: Vec<usize>,
    retry: Option<(String, bool)>,
}

impl Tried {
    fn of(pending: &[Message], events: &[&Event], outcomes: Vec<Outcome>) -> Self {
        let mut tried = Self { acknowledged: 0, refused: vec![], keep: vec![], retry: None };
        let missing = pending.len().saturating_sub(outcomes.len());
        let outcomes = outcomes.into_iter().chain(std::iter::repeat_n(Outcome::Held, missing));
        for (index, ((message, event), outcome)) in pending.iter().zip(events).zip(outcomes).enumerate() {
            match outcome {
                Outcome::Acknowledged => tried.acknowledged += 1,
                Outcome::Refused(reason) => tried.refused.push(refused(message, event, reason)),
                Outcome::Held => tried.keep.push(index),
                Outcome::Retry { reason, throttled } => {
                    tried.keep.push(index);
                    tried.retry = tried.retry.or(Some((reason, throttled)));
                }
            }
        }
        // A sink that takes nothing, refuses nothing and complains of nothing would be asked again without a pause.
        if tried.keep.len() == pending.len() && tried.retry.is_none() {
            tried.retry = Some(("the sink held back every message".into(), false));
        }
        tried
    }
}

fn timed_out(limit: Duration) -> Outcome {
    Outcome::Retry { reason: format!("no answer within {limit:?}"), throttled: false }
}

fn keep_by_index<T>(items: Vec<T>, kept: impl Fn(usize) -> bool) -> Vec<T> {
    items.into_iter().enumerate().filter(|(index, _)| kept(*index)).map(|(_, item)| item).collect()
}

fn refused(message: &Message, event: &Event, reason: String) -> DeadLetter {
    DeadLetter {
        key: format!("{}|{}", message.id, event.handler),
        kind: DeadKind::Refused,
        reason,
        handler: event.handler.to_string(),
        block_number: event.block.number,
        block_hash: event.block.hash,
        body: message.body.clone(),
        buried_at: u64::try_from(wall_clock().as_millis()).unwrap_or(u64::MAX),
    }
}

async fn bury_undecodable(ctx: &Context, logs: &[Undecodable]) -> Result<(), StageError> {
    let letters: Vec<DeadLetter> = logs
        .iter()
        .map(|Undecodable { log, handler, reason, .. }| DeadLetter {
            key: format!("{}:{}:{}|{handler}", ctx.chain.id, log.block.hash, log.log_index),
            kind: DeadKind::Undecodable,
            reason: (*reason).to_owned(),
            handler: handler.to_string(),
            block_number: log.block.number,
            block_hash: log.block.hash,
            body: serde_json::json!({
                "address": log.address, "topics": log.topics, "data": log.data,
                "transactionHash": log.transaction_hash, "logIndex": log.log_index,
            })
            .to_string(),
            buried_at: u64::try_from(wall_clock().as_millis()).unwrap_or(u64::MAX),
        })
        .collect();
    if letters.is_empty() { Ok(()) } else { bury(ctx, &letters).await }
}

/// A dead letter counts as delivered only once the store durably holds it.
async fn bury(ctx: &Context, letters: &[DeadLetter]) -> Result<(), StageError> {
    let mut backoff = Backoff::new(SINK_PAUSE);
    for letter in letters {
        error!(key = letter.key, reason = letter.reason, "kept as a dead letter");
        let kind = match letter.kind {
            DeadKind::Refused => "refused",
            DeadKind::Undecodable => "undecodable",
        };
        metrics::dead_letters_buried(kind, 1);
    }
    while !persist(ctx, Duration::MAX, || ctx.store.bury(letters)).await? {
        let reason = "no room for more dead letters: redrive or drop some (chaintap dlq)";
        ctx.vitals.note("dead-letters", Some(reason.into()));
        error!(reason, "progress waits");
        backoff.wait(None).await;
    }
    ctx.vitals.note("dead-letters", None);
    Ok(())
}

/// Time since the Unix epoch; for display only.
fn wall_clock() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

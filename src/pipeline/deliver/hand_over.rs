//! Handing messages over to the sinks, until each is acknowledged or buried.

use std::{panic::resume_unwind, sync::Arc, time::Duration};

use tokio::{
    task::JoinError,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::{
    super::{Context, StageError},
    dead_letters::{bury, refused},
    turns::{Haste, SINK_PAUSE},
};
use crate::{
    backoff::Backoff,
    domain::Event,
    mutants::{Mutant, planted},
    sinks::{Composer, Message, Outcome, Sink},
    store::DeadLetter,
    telemetry::{Edge, metrics},
};

/// A sink that took nothing for so long gives the block back: the fault may be this replica's alone (contract §5).
const PATIENCE: Duration = Duration::from_mins(5);
const TOOK_NOTHING: StageError =
    StageError::Again("the sink took nothing for minutes; another replica may fare better");

/// What waits for one sink, in the order of the logs.
struct Queue<'a> {
    sink: Arc<dyn Sink>,
    messages: Composer<'a>,
    /// The event behind each message.
    events: Vec<&'a Event>,
}

impl Queue<'_> {
    fn of(sink: &Arc<dyn Sink>, chain_id: u64, most: usize) -> Self {
        Self { sink: sink.clone(), messages: Composer::new(chain_id, most), events: Vec::with_capacity(most) }
    }
}

/// What is said of events.
#[derive(Clone, Copy, Debug)]
pub(in crate::pipeline) enum Say {
    /// They happened, under this epoch.
    Applied(u64),
    /// Their block left the chain at the rewind to this epoch.
    Retracted(u64),
}

impl Say {
    fn of<'e>(self, event: &'e Event, messages: &mut Composer<'e>) {
        match self {
            Self::Applied(epoch) => messages.apply(event, epoch),
            Self::Retracted(epoch) => messages.retract(event, epoch),
        }
    }
}

/// Hands events to their sinks; the sinks work side by side, each in the order of the logs.
pub(super) async fn send(ctx: &Context, haste: Haste, say: Say, events: &[Event]) -> Result<(), StageError> {
    let mut queues: Vec<Queue<'_>> = Vec::new();
    for event in events {
        let sink = ctx.sinks.get(&*event.handler).ok_or_else(|| {
            StageError::Halt(format!(
                "the journal holds events for the handler '{}', which contracts.toml no longer has: put it back",
                event.handler
            ))
        })?;
        // Two handlers may share a sink; the sink itself tells, not its name.
        let queue = match queues.iter_mut().find(|queue| Arc::ptr_eq(&queue.sink, sink)) {
            Some(queue) => queue,
            None => queues.push_mut(Queue::of(sink, ctx.chain.id, events.len())),
        };
        say.of(event, &mut queue.messages);
        queue.events.push(event);
    }
    let handing_over = queues.into_iter().map(|queue| hand_over(ctx, haste, queue));
    futures_util::future::try_join_all(handing_over).await.map(|_| ())
}

/// One sink's messages, until each is acknowledged or buried.
async fn hand_over(ctx: &Context, haste: Haste, queue: Queue<'_>) -> Result<(), StageError> {
    let Queue { sink, messages, mut events } = queue;
    let mut pending: Arc<[Message]> = messages.finish().into();
    let turns = ctx.turns.at(&sink);
    let mut backoff = Backoff::new(SINK_PAUSE);
    let mut last_taken = Instant::now();
    while !pending.is_empty() {
        ctx.vitals.queued(sink.name(), pending.len());
        let turn = turns.turn_within(PATIENCE, last_taken, haste).await.ok_or(TOOK_NOTHING)?;
        let begun = Instant::now();
        let sent = timeout(ctx.limits.sink_timeout, call(ctx, haste, &sink, &pending)).await;
        metrics::sink_send_seconds(sink.name(), begun.elapsed().as_secs_f64());
        let outcomes = sent.unwrap_or_else(|_| vec![timed_out(ctx.limits.sink_timeout); pending.len()]);
        let outcomes =
            if planted(Mutant::AnswersIgnored) { vec![Outcome::Acknowledged; pending.len()] } else { outcomes };
        let tried = Tried::of(&pending, &events, outcomes);
        if tried.takes() {
            turn.succeeded();
        } else {
            turn.failed();
        }
        metrics::sink_messages(sink.name(), "acknowledged", tried.acknowledged);
        if !tried.refused.is_empty() {
            metrics::sink_messages(sink.name(), "refused", tried.refused.len() as u64);
            bury(ctx, Some(&*sink), &tried.refused).await?;
        }
        if tried.acknowledged > 0 {
            last_taken = Instant::now();
        } else if last_taken.elapsed() > PATIENCE {
            return Err(TOOK_NOTHING);
        }
        let kept = |index: usize| tried.keep.binary_search(&index).is_ok();
        pending = keep_by_index(&pending, kept);
        events = keep_by_index(&events, kept);
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
                // One that takes some of it is slow, not away.
                let taking = if tried.acknowledged > 0 { Ok(()) } else { Err(reason.as_str()) };
                ctx.vitals.answer(Edge::Sink(sink.name().into()), begun, taking);
                warn!(sink = sink.name(), reason, pending = pending.len(), "sink did not take everything");
                if tried.acknowledged > 0 && !throttled {
                    backoff.reset();
                }
                // Its own wait, so that others go first; what holds for all of them is the turn.
                backoff.wait(None).await;
            }
        }
    }
    ctx.vitals.queued(sink.name(), 0);
    Ok(())
}

/// One call of a sink. That of history is made by the threads of everything else, where it is of many requests: it takes them a
/// moment at a time, and is no way across threads for each of these.
async fn call(ctx: &Context, haste: Haste, sink: &Arc<dyn Sink>, pending: &Arc<[Message]>) -> Vec<Outcome> {
    if haste == Haste::Urgent || !ctx.threads.are_apart() || sink.is_one_at_a_time() {
        return sink.send(pending).await;
    }
    let (sink, messages) = (sink.clone(), pending.clone());
    match AbortOnDropHandle::new(tokio::spawn(async move { sink.send(&messages).await }))
        .await
        .map_err(JoinError::try_into_panic)
    {
        Ok(outcomes) => outcomes,
        Err(Ok(panic)) => resume_unwind(panic),
        // The runtime ends.
        Err(Err(_)) => std::future::pending().await,
    }
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

    /// Whether the sink takes messages, as far as this call tells: one that takes some of it is slow, not away.
    fn takes(&self) -> bool {
        self.acknowledged > 0 || self.retry.is_none()
    }
}

fn timed_out(limit: Duration) -> Outcome {
    Outcome::Retry { reason: format!("no answer within {limit:?}"), throttled: false }
}

fn keep_by_index<T: Clone, C: FromIterator<T>>(items: &[T], kept: impl Fn(usize) -> bool) -> C {
    items.iter().enumerate().filter(|(index, _)| kept(*index)).map(|(_, item)| item.clone()).collect()
}

#[cfg(test)]
mod tests {
    use alloy::primitives::{Address, B256, U256};

    use super::*;
    use crate::domain::{Args, BlockRef};

    fn event(log_index: u64) -> Event {
        Event {
            block: BlockRef { number: 7, hash: B256::ZERO },
            timestamp: 1,
            transaction_hash: B256::ZERO,
            transaction_index: 0,
            log_index,
            address: Address::ZERO,
            contract: "Transfers".into(),
            name: "Transfer".into(),
            handler: "handleTransferEvent".into(),
            args: Args::Transfer { from: Address::ZERO, to: Address::ZERO, value: U256::ZERO },
            token: None,
        }
    }

    fn tried(outcomes: Vec<Outcome>) -> Tried {
        let events: Vec<Event> = (0..4).map(event).collect();
        let messages: Vec<Message> = events.iter().map(|event| Message::apply(event, 1, 1)).collect();
        Tried::of(&messages, &events.iter().collect::<Vec<_>>(), outcomes)
    }

    fn retry() -> Outcome {
        Outcome::Retry { reason: "busy".into(), throttled: true }
    }

    #[test]
    fn each_message_has_its_own_fate() {
        let tried = tried(vec![Outcome::Acknowledged, Outcome::Refused("too large".into()), retry(), Outcome::Held]);
        assert_eq!((tried.acknowledged, tried.keep), (1, vec![2, 3]));
        assert_eq!(tried.refused[0].key, format!("1:{}:1|handleTransferEvent", B256::ZERO));
        assert_eq!(tried.retry, Some(("busy".into(), true)));
    }

    #[test]
    fn a_message_without_an_outcome_is_kept() {
        let tried = tried(vec![Outcome::Acknowledged]);
        assert_eq!((tried.keep, tried.retry), (vec![1, 2, 3], None));
    }

    #[test]
    fn a_sink_that_holds_everything_back_is_not_asked_again_at_once() {
        assert!(tried(vec![Outcome::Held; 4]).retry.is_some());
    }
}

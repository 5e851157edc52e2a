//! The queue: takes messages in part, twice, late, or not at all; whatever it acknowledged, the judge has seen.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use chaintap::sinks::{Message, Outcome, Sink, SinkError};
use tokio::time::sleep;

use crate::{
    faults::{Gate, Kind, Op, Strike},
    random::Draw,
    world::World,
};

/// Longer than the pipeline waits.
const NEVER: Duration = Duration::from_mins(2);

/// The sink of one life of one replica.
pub struct Queue {
    pub gate: Arc<Gate>,
}

impl Queue {
    fn world(&self) -> &World {
        &self.gate.world
    }

    /// Whether the queue will never take messages of this id.
    fn refuses(&self, message: &Message) -> bool {
        let poison = self.world().swarm.poison;
        let name =
            message.id().bytes().fold(self.world().swarm.seed, |hash, byte| crate::random::mix(hash ^ u64::from(byte)));
        Draw::of(&[name]).below(1_000) < poison
    }

    fn keep(&self, message: &Message) {
        self.world().sends();
        let tree = self.world().tree();
        self.world().oracle().acknowledged(&tree, message);
    }

    /// One call, as far as it comes.
    fn take(&self, strike: &mut Strike, messages: &[Message]) -> Vec<Outcome> {
        let retry = |throttled| Outcome::Retry { reason: "try again".into(), throttled };
        let batch = self.world().swarm.sink_batch;
        let mut outcomes = Vec::with_capacity(messages.len());
        for (index, message) in messages.iter().enumerate() {
            outcomes.push(match strike.kind {
                _ if index >= batch => Outcome::Held,
                Some(Kind::Fails | Kind::Late) => retry(false),
                Some(Kind::Throttled) => retry(true),
                Some(Kind::Partial) if strike.draw.chance(0.5) => {
                    self.world().saw("a batch taken in part");
                    retry(false)
                }
                _ if self.refuses(message) => {
                    self.world().saw("poison");
                    Outcome::Refused("too large".into())
                }
                kind => {
                    self.keep(message);
                    match kind {
                        Some(Kind::Lost) => retry(false),
                        Some(Kind::Twice) => {
                            self.keep(message);
                            Outcome::Acknowledged
                        }
                        _ => Outcome::Acknowledged,
                    }
                }
            });
        }
        outcomes
    }

    /// What the caller gave up on arrives all the same.
    fn deliver_late(&self, strike: &mut Strike, messages: &[Message]) {
        let (delay, world) = (strike.draw.seconds(31, 300), self.gate.world.clone());
        let messages: Vec<Message> =
            messages.iter().take(world.swarm.sink_batch).filter(|message| !self.refuses(message)).cloned().collect();
        world.late[1].fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            sleep(delay).await;
            world.late[1].fetch_sub(1, Ordering::Relaxed);
            world.note([97, messages.len() as u64, 0, 0], || format!("late messages: {}", messages.len()));
            world.saw("messages that arrive late");
            for message in &messages {
                let tree = world.tree();
                world.oracle().acknowledged(&tree, message);
            }
        });
    }
}

#[async_trait]
impl Sink for Queue {
    fn name(&self) -> &'static str {
        "queue"
    }

    async fn send(&self, pending: &[Message]) -> Vec<Outcome> {
        let key = pending.first().map_or(0, |message| message.id().len() as u64 + message.version);
        let mut strike = self.gate.enter(Op::Send, key % 2 + pending.len() as u64 * 2).await;
        let outcomes = match strike.kind {
            Some(Kind::Late) => {
                self.deliver_late(&mut strike, pending);
                vec![]
            }
            Some(Kind::Hangs) if strike.draw.chance(0.5) => vec![],
            _ => self.take(&mut strike, pending),
        };
        self.gate.leave(Op::Send, &mut strike).await;
        if strike.is(Kind::Hangs) || strike.is(Kind::Late) {
            self.gate.time_out(NEVER).await;
        }
        outcomes
    }

    async fn check(&self) -> Result<(), SinkError> {
        Ok(())
    }
}

//! Calm: no fault any more, and the chain stands still. Everything must come right, and then be what it should be.

use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

use alloy::primitives::Address;
use chaintap::{
    domain::{BlockRef, DeliveryMode, Heights, Tag},
    store::MAX_DONE_INTERVALS,
};
use tokio::time::{Instant, sleep};

use crate::{
    run::Run,
    support::model_store::{Entry, Key, State},
    swarm::{Act, Swarm},
};

/// Everything must be delivered within this.
const CONVERGES_WITHIN: Duration = Duration::from_mins(15);
/// The grace period, and a little more.
const STOPS_WITHIN: Duration = Duration::from_secs(30);
/// Nothing is sent any more so long after the store froze.
const FREEZES_WITHIN: Duration = Duration::from_secs(40);
/// Whether the newest list is in use is looked at this often.
const LISTS_EVERY: Duration = Duration::from_secs(3);

impl Run {
    /// No fault, and the chain stands still: everything is delivered soon, and so is one more block.
    pub async fn calm(&mut self) {
        self.world.calm_down();
        // The plan knows the real cap only: under a smaller one it fills one hole in a pause, which takes long.
        self.storage.set_most_pieces(MAX_DONE_INTERVALS);
        self.world.note([93, 0, 0, 0], || "calm".to_owned());
        let now = Instant::now();
        self.starts.iter_mut().for_each(|(when, _)| *when = now);
        self.mine(self.until_all_left_out_is_final());
        self.converge("chaos").await;
        self.world.note([88, 0, 0, 0], || "delivered".to_owned());
        self.story = self.world.calls();
        self.read_lists().await;
        self.converge("the newest list").await;
        // No new head gave it away: what left the chain at the same height was noticed all the same.
        if self.world.tree().is_short_of() == 0 {
            self.judge().await;
        }
        self.mine(1);
        self.converge("a fresh block").await;
        // What was delivered of a longer chain is known to have left it once this one is as long.
        let short = self.world.tree().is_short_of();
        if short > 0 {
            self.mine(short);
            self.converge("the chain became the longest").await;
        }
        self.judge().await;
        let oracle = &mut self.world.oracle();
        if self.world.swarm.is_calm() && self.world.options.crash_at.is_none() && oracle.duplicates > 0 {
            let text = format!("{} duplicates without a fault", oracle.duplicates);
            oracle.violations.push(text);
        }
    }

    /// How many blocks there have to be more: what an operator left out is not looked at for a new token before it is final.
    fn until_all_left_out_is_final(&self) -> u64 {
        let making = &self.world.swarm.making;
        let depth = making.finalized.unwrap_or_default().max(making.finality);
        let highest = self.world.oracle().last_skipped();
        highest.map_or(0, |highest| (highest + depth).saturating_sub(self.world.tree().height()))
    }

    /// Holds what the queue has against the chain.
    pub async fn judge(&self) {
        if self.is_over() {
            return;
        }
        let letters = self.store.inner.dead_letters(None, 1_000_000).await.unwrap_or_default();
        let watermark = self.watermark().await.unwrap_or(-1);
        let (tree, mut oracle) = (self.world.tree(), self.world.oracle());
        oracle.holds(&letters);
        oracle.judge(&tree, watermark);
    }

    /// Everyone is asked to stop, does so soon, and keeps nobody from going on.
    pub async fn stop(&mut self) {
        self.stopping = true;
        self.lives.iter().flatten().for_each(|life| life.stop.cancel());
        self.until(Instant::now() + STOPS_WITHIN).await;
        let left = self.lives.iter().flatten().count();
        if left > 0 && !self.is_over() {
            self.failure = Some(format!("{left} replicas do not stop within {STOPS_WITHIN:?}"));
        }
        if let Some(owner) = self.stopped.iter().find(|owner| self.storage.has_claims(owner)) {
            self.failure = Some(format!("{owner} stopped and keeps its claims"));
        }
    }

    /// A frozen store stays so, also over a restart, and nothing is delivered meanwhile.
    async fn stay_frozen(&mut self) {
        // Whoever works sees it soon, and gives up what was begun.
        self.until(Instant::now() + FREEZES_WITHIN).await;
        let sent = self.world.sent();
        self.crash(0, None, Duration::from_secs(1));
        self.until(Instant::now() + FREEZES_WITHIN).await;
        if !self.storage.is_frozen() && !self.is_over() {
            self.failure = Some("a frozen store is not frozen any more".to_owned());
        }
        if self.world.sent() > sent {
            self.failure = Some(format!("{} messages sent while frozen", self.world.sent() - sent));
        }
        self.world.saw("a freeze that outlives a process");
    }

    /// Messages that are still on their way arrive when nobody runs any more, and change nothing of what holds.
    pub async fn stragglers(&mut self) {
        while self.world.late[1].load(Ordering::Relaxed) > 0 {
            sleep(Duration::from_secs(10)).await;
        }
        self.judge().await;
    }

    /// The newest list is read and published, and whatever is late has come to the store.
    async fn read_lists(&mut self) {
        let deadline = Instant::now() + self.world.swarm.token_refresh + Duration::from_mins(2);
        // Who reads the list seldom is told of it now, lest most of a run were waiting.
        if self.world.swarm.token_refresh > Duration::from_mins(1) {
            self.world.announce();
        }
        while Instant::now() < deadline && !self.is_over() {
            self.until(Instant::now() + LISTS_EVERY).await;
            let are_read = self.lives.iter().flatten().all(|life| life.gate.is_listed());
            if are_read && self.is_published() && self.world.late[0].load(Ordering::Relaxed) == 0 {
                return;
            }
        }
    }

    /// Whether what the directory has is what is published.
    fn is_published(&self) -> bool {
        let directory = self.world.directory.borrow();
        let published = |state: &State| {
            let tokens = state.members.iter().filter_map(|key| key.strip_prefix("token:")?.parse().ok());
            tokens.collect::<BTreeSet<Address>>() == *directory
        };
        self.storage.look(|state| state.is_some_and(published))
    }

    pub async fn converge(&mut self, after: &str) {
        // The claims of the dead live longer by as much as the store's clock was set back.
        let set_back = self.world.swarm.script.iter().filter_map(|(_, act)| match act {
            Act::Clock { seconds } => Some(Duration::from_secs(seconds.min(&0).unsigned_abs())),
            _ => None,
        });
        let within = CONVERGES_WITHIN + set_back.sum::<Duration>();
        let mut deadline = Instant::now() + within;
        let mut missing = String::new();
        while Instant::now() < deadline && !self.is_over() {
            self.until(Instant::now() + Duration::from_secs(1)).await;
            if self.storage.is_frozen() {
                self.stay_frozen().await;
                self.accept(self.world.swarm.seed.is_multiple_of(2)).await;
                deadline = Instant::now() + within;
            }
            match self.left_over() {
                None => return,
                Some(left) => missing = left,
            }
        }
        if !self.is_over() {
            self.failure = Some(format!("not delivered {within:?} after {after}: {missing}"));
        }
    }

    /// What is not yet as it should be.
    fn left_over(&self) -> Option<String> {
        let (height, finalized) = {
            let tree = self.world.tree();
            (tree.height(), tree.finalized(tree.height()))
        };
        let head = deliverable(&self.world.swarm, height, finalized)?;
        if head < self.world.swarm.start {
            return None;
        }
        let empty = Some("the store is empty".to_owned());
        self.storage.look(|at| at.map_or(empty, |at| self.left_in(at, head, height)))
    }

    /// What the store lacks of the chain up to `head`, where the chain has this `height`.
    fn left_in(&self, at: &State, head: u64, height: u64) -> Option<String> {
        // An entry of an earlier epoch stays until its block is sealed, and one that a shorter chain does not deliver yet.
        let is_left =
            |(key, entry): &(&Key, &Entry)| !entry.done && key.0.cast_signed() > at.watermark && key.0 <= head;
        if let Some((key, _)) = at.live.iter().find(is_left) {
            return Some(format!("entry {} {} (epoch {}) is left, {:?}", key.0, key.1, key.2, at.progress("")));
        }
        let tree = self.world.tree();
        // Who took an empty block for another empty one has said nothing wrong.
        let has_events = |entry: &Entry, number| {
            !entry.events.is_empty() || tree.at(number).is_some_and(|block| !block.logs.is_empty())
        };
        let has_left = |(key, entry): &(&Key, &Entry)| {
            let block = BlockRef { number: key.0, hash: key.1 };
            let may_leave = key.0 <= height && key.0.cast_signed() > at.sealed;
            may_leave && has_events(entry, key.0) && !tree.is_canonical(block)
        };
        if let Some(((number, hash, epoch), _)) = at.live.iter().find(has_left) {
            return Some(format!("entry {number} {hash} (epoch {epoch}) is not on the chain, {:?}", at.progress("")));
        }
        // A tag that was seen does not go back, and a chain that only lost its last blocks is a node that lags: more may be
        // delivered, up to the highest block that there was.
        let highest = height + tree.is_short_of();
        let most = if self.world.swarm.deliver == DeliveryMode::Instant { head } else { highest.max(head) };
        let is_there = u64::try_from(at.watermark).is_ok_and(|at| (head..=most).contains(&at));
        // What was delivered above a chain that became shorter is looked at again once the chain has a block there.
        if let Some(duty) = at.duties.values().find(|duty| duty.range.from <= height) {
            return Some(format!("{duty:?} is open, {:?}", at.progress("")));
        }
        // What may be delivered became less: holes above it wait until it is more again.
        let is_whole = at.tip == at.watermark || at.tip > head.cast_signed();
        let is_right = is_there && is_whole && at.retracting.is_empty();
        (!is_right).then(|| format!("head {head}, {:?}, done {:?}", at.progress(""), at.intervals()))
    }
}

fn deliverable(swarm: &Swarm, head: u64, finalized: Option<u64>) -> Option<u64> {
    let finalized = finalized.map_or(Tag::Absent, Tag::At);
    let heights = Heights { head, safe: Tag::At(head.saturating_sub(2)), finalized };
    match swarm.deliver {
        DeliveryMode::Instant => Some(head),
        mode => heights.deliverable(mode, swarm.making.finality),
    }
}

//! One run: chaos first, then calm, in which everything must come right.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chaintap::{
    domain::{DeliveryMode, Heights, Tag},
    pipeline::Ended,
    store::JournalEntry,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    chain::{TOKENS, address},
    faults::{Name, Op},
    journal::Witnessed,
    replica::{self, Death, Life},
    storage::Storage,
    swarm::{Act, Swarm},
    world::{Options, World},
};

/// In calm, everything must be delivered within this.
const CONVERGES_WITHIN: Duration = Duration::from_mins(15);
/// The grace period, and a little more.
const STOPS_WITHIN: Duration = Duration::from_secs(30);
/// So many calls without an end are a loop.
const MOST_CALLS: u64 = 150_000;

/// What came of a run.
#[derive(Debug, Default)]
pub struct Report {
    pub hash: u64,
    pub calls: u64,
    /// Calls until everything of the story was delivered.
    pub story: u64,
    pub virtual_time: Duration,
    pub violations: Vec<String>,
    pub struck: Vec<Name>,
    pub lines: Vec<String>,
    pub sometimes: BTreeMap<&'static str, u64>,
}

/// Runs one seed.
pub fn run(swarm: Swarm, options: Options) -> Report {
    // The product's only source of chance is the jitter of its pauses.
    fastrand::seed(swarm.seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (world, crashed) = World::new(swarm, options);
        Run::new(Arc::new(world), crashed).whole().await
    })
}

struct Run {
    world: Arc<World>,
    storage: Storage,
    store: Witnessed,
    lives: Vec<Option<Life>>,
    /// Number of each replica's lives so far.
    born: Vec<u64>,
    /// When who is down starts again.
    starts: Vec<(Instant, usize)>,
    crashed: mpsc::UnboundedReceiver<(usize, u64)>,
    deaths: JoinSet<Death>,
    failure: Option<String>,
    stopping: bool,
    story: u64,
    /// Who stopped when asked.
    stopped: Vec<String>,
}

impl Run {
    fn new(world: Arc<World>, crashed: mpsc::UnboundedReceiver<(usize, u64)>) -> Self {
        let fails_over = world.swarm.script.iter().any(|(_, act)| *act == Act::FailOver);
        let storage = Storage::new(fails_over, world.options.mutant);
        if fails_over && !world.swarm.seed.is_multiple_of(3) {
            storage.set_barrier_delay(Duration::from_millis(world.swarm.seed % 3 * 20));
        }
        let store = Witnessed { world: world.clone(), inner: storage.open("observer"), storage: storage.clone() };
        let replicas = world.swarm.replicas;
        Self {
            world,
            storage,
            store,
            lives: (0..replicas).map(|_| None).collect(),
            born: vec![0; replicas],
            starts: (0..replicas).map(|replica| (Instant::now(), replica)).collect(),
            crashed,
            deaths: JoinSet::new(),
            failure: None,
            stopping: false,
            story: 0,
            stopped: vec![],
        }
    }

    async fn whole(mut self) -> Report {
        self.chaos().await;
        if self.failure.is_none() {
            self.calm().await;
        }
        if !self.is_over() {
            self.stop().await;
        }
        let world = self.world.clone();
        let mut oracle = world.oracle();
        let mut record = world.record.lock().unwrap();
        let violations = self.failure.take().into_iter().chain(oracle.violations.drain(..)).collect();
        Report {
            hash: record.hash ^ oracle.fingerprint(),
            calls: record.calls,
            story: self.story,
            virtual_time: world.elapsed(),
            violations,
            struck: std::mem::take(&mut record.struck),
            lines: std::mem::take(&mut record.lines),
            sometimes: std::mem::take(&mut world.sometimes.lock().unwrap()),
        }
    }

    fn is_over(&self) -> bool {
        self.failure.is_some() || !self.world.oracle().violations.is_empty()
    }

    /// The script, and whatever strikes.
    async fn chaos(&mut self) {
        let script = self.world.swarm.script.clone();
        let begun = Instant::now();
        for (nth, (at, act)) in script.into_iter().enumerate() {
            self.until(begun + at).await;
            if self.is_over() || self.world.calls() >= self.world.swarm.calls {
                return;
            }
            let name = Name { replica: 9, op: Op::World, nth: nth as u64 };
            let mines = matches!(act, Act::Mine(_));
            if mines || self.world.allows(name) {
                self.world.note([96, name.nth, 0, 0], || format!("{name}: {act:?}"));
                self.act(act).await;
            }
        }
    }

    /// Lets time pass, and starts who is down.
    async fn until(&mut self, at: Instant) {
        while !self.is_over() {
            self.starts.sort();
            if let Some((when, replica)) = self.starts.first().copied()
                && when <= Instant::now()
            {
                self.starts.remove(0);
                self.start(replica);
                continue;
            }
            let next = self.starts.first().map_or(at, |(when, _)| (*when).min(at));
            if Instant::now() >= at {
                return;
            }
            if self.world.calls() > MOST_CALLS {
                self.failure = Some(format!("{MOST_CALLS} calls and no end: a loop"));
                return;
            }
            tokio::select! {
                biased;
                Some((replica, life)) = self.crashed.recv() => {
                    let down = self.world.draw(life ^ (replica as u64) << 32).millis(0, 60_000);
                    self.crash(replica, Some(life), down);
                }
                Some(death) = self.deaths.join_next() => match death {
                    Ok((replica, life, ended)) => self.died(replica, life, &ended),
                    Err(error) if error.is_panic() => self.failure = Some(format!("a panic: {error}")),
                    Err(_) => {}
                },
                () = sleep_until(next.min(Instant::now() + Duration::from_secs(10))) => {}
            }
        }
    }

    fn start(&mut self, replica: usize) {
        if self.lives[replica].is_none() && !self.stopping {
            self.born[replica] += 1;
            let owner = owner(replica, self.born[replica]);
            self.world.note([95, replica as u64, self.born[replica], 0], || format!("start of {owner}"));
            let store = Witnessed { inner: self.storage.open(&owner), ..self.store.clone() };
            self.lives[replica] = Some(replica::start(store, replica, self.born[replica], &mut self.deaths));
        }
    }

    fn crash(&mut self, replica: usize, life: Option<u64>, down: Duration) {
        let is_meant = |known: &Life| life.is_none_or(|life| known.gate.life == life);
        if self.lives[replica].as_ref().is_some_and(is_meant)
            && let Some(life) = self.lives[replica].take()
        {
            life.crash();
            self.world.saw("crash");
            self.world.note([94, replica as u64, 0, 0], || format!("crash of {replica}"));
            self.starts.push((Instant::now() + down, replica));
        }
    }

    fn died(&mut self, replica: usize, life: u64, ended: &Ended) {
        if self.lives[replica].as_ref().is_none_or(|known| known.gate.life != life) {
            return;
        }
        if self.stopping && matches!(ended, Ended::Stopped) {
            self.lives[replica] = None;
            self.stopped.push(owner(replica, life));
            return;
        }
        self.failure = Some(format!("replica {replica} ended: {ended:?}"));
    }

    async fn act(&mut self, act: Act) {
        let seconds = self.world.elapsed().as_secs();
        match act {
            Act::Mine(blocks) => {
                if blocks > 1 {
                    self.world.saw("a burst of blocks");
                }
                (0..blocks).for_each(|_| self.world.tree().mine(seconds, None));
            }
            Act::Reorg { depth, mined } => {
                let left = self.world.tree().leave(depth);
                let mined = (mined + left).saturating_sub(depth).max(1);
                (0..mined).for_each(|_| self.world.tree().mine(seconds, None));
                if left > 0 {
                    self.world.saw("reorganisation");
                }
            }
            Act::FlipBack => {
                if self.world.tree().flip_back() {
                    self.world.saw("A to B to A");
                }
            }
            Act::Crash { replica, down } => self.crash(replica, None, down),
            Act::CrashAll { down, mined } => {
                (0..self.lives.len()).for_each(|replica| self.crash(replica, None, down));
                sleep(down / 2).await;
                (0..mined).for_each(|_| self.world.tree().mine(seconds, None));
            }
            Act::Pause { replica, for_ } => self.world.pause(replica, for_),
            Act::FailOver => {
                let before = self.storage.entries();
                let lost = self.storage.fail_over(&mut self.world.draw(seconds));
                if !before.is_subset(&self.storage.entries()) {
                    self.world.saw("fail-over that loses an intent");
                }
                self.world.note([92, lost, 0, 0], || format!("fail-over, {lost} writes are gone"));
                if lost > 0 {
                    self.world.saw("fail-over that loses writes");
                    let watermark = self.watermark().await.unwrap_or(-1);
                    self.world.oracle().failed_over(watermark);
                }
            }
            Act::Token => self.change_tokens(),
            Act::Outage { edge, for_ } => self.world.outage(edge, for_),
        }
        self.world.new_head();
    }

    fn mine(&self, blocks: u64) {
        let seconds = self.world.elapsed().as_secs();
        (0..blocks).for_each(|_| self.world.tree().mine(seconds, Some(2)));
        self.world.new_head();
    }

    /// A token joins the directory or leaves it.
    fn change_tokens(&self) {
        let token = address(u8::try_from(self.world.draw(self.world.calls()).below(u64::from(TOKENS))).unwrap());
        self.world.directory.send_modify(|tracked| {
            if !tracked.remove(&token) {
                self.world.saw("a token joins");
                tracked.insert(token);
            }
        });
        let made = self.world.tree().made();
        self.world.oracle().tracks(&self.world.directory.borrow(), made);
    }

    async fn watermark(&self) -> Option<i64> {
        self.store.inner.snapshot().await.ok().map(|snapshot| snapshot.progress.watermark)
    }

    /// No fault, and the chain stands still: everything is delivered soon, and so is one more block.
    async fn calm(&mut self) {
        self.world.calm_down();
        self.world.note([93, 0, 0, 0], || "calm".to_owned());
        let now = Instant::now();
        self.starts.iter_mut().for_each(|(when, _)| *when = now);
        self.converge("chaos").await;
        self.story = self.world.calls();
        // The newest list is read, published, and what joined looked for.
        self.until(Instant::now() + self.world.swarm.token_refresh + Duration::from_mins(1)).await;
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

    /// Holds what the queue has against the chain.
    async fn judge(&self) {
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
    async fn stop(&mut self) {
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

    async fn converge(&mut self, after: &str) {
        let deadline = Instant::now() + CONVERGES_WITHIN;
        let mut missing = String::new();
        while Instant::now() < deadline && !self.is_over() {
            self.until(Instant::now() + Duration::from_secs(1)).await;
            match self.left_over().await {
                None => return,
                Some(left) => missing = left,
            }
        }
        if !self.is_over() {
            self.failure = Some(format!("not delivered {CONVERGES_WITHIN:?} after {after}: {missing}"));
        }
    }

    /// What is not yet as it should be.
    async fn left_over(&self) -> Option<String> {
        let (height, finalized) = {
            let tree = self.world.tree();
            (tree.height(), tree.finalized(tree.height()))
        };
        let head = deliverable(&self.world.swarm, height, finalized)?;
        if head < self.world.swarm.start {
            return None;
        }
        let snapshot = match self.store.inner.snapshot().await {
            Ok(snapshot) => snapshot,
            Err(error) => return Some(error.to_string()),
        };
        let journal = self.store.inner.journal((1 << 53) - 1).await.unwrap_or_default();
        let at = &snapshot.progress;
        // An entry of an earlier epoch stays until its block is sealed, and one above a chain that became shorter until
        // there is a block at its height.
        let is_left = |entry: &&JournalEntry| {
            !entry.done && entry.block.number.cast_signed() > at.watermark && entry.block.number <= height
        };
        if let Some(sending) = journal.iter().find(is_left) {
            return Some(format!("entry {} (epoch {}) is left, {at:?}", sending.block, sending.epoch));
        }
        // A tag that was seen does not go back, so that of a chain that became shorter more may be delivered.
        let most = if self.world.swarm.deliver == DeliveryMode::Instant { head } else { height.max(head) };
        let is_there = u64::try_from(at.watermark).is_ok_and(|at| (head..=most).contains(&at));
        if self.storage.has_duties() {
            return Some("a duty to scan for tokens that joined".into());
        }
        // What may be delivered became less: holes above it wait until it is more again.
        let is_whole = at.tip == at.watermark || at.tip > head.cast_signed();
        let is_right = is_there && is_whole && at.retracting == 0;
        (!is_right).then(|| format!("head {head}, {at:?}, done {:?}", snapshot.done))
    }
}

/// The name of a life in the store.
fn owner(replica: usize, life: u64) -> String {
    format!("{replica}-{life}")
}

fn deliverable(swarm: &Swarm, head: u64, finalized: Option<u64>) -> Option<u64> {
    let finalized = finalized.map_or(Tag::Absent, Tag::At);
    let heights = Heights { head, safe: Tag::At(head.saturating_sub(2)), finalized };
    match swarm.deliver {
        DeliveryMode::Instant => Some(head),
        mode => heights.deliverable(mode, swarm.making.finality),
    }
}

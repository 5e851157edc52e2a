//! One run: chaos first, then calm, in which everything must come right.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chaintap::pipeline::Ended;
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
    support::model_store::State,
    swarm::{Act, Swarm},
    world::{Options, World},
};

/// Whether replicas call without an end is looked at this often.
const LOOKS_EVERY: Duration = Duration::from_secs(10);
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

/// A run that goes on.
pub struct Run {
    pub world: Arc<World>,
    pub storage: Storage,
    pub store: Witnessed,
    pub lives: Vec<Option<Life>>,
    /// Number of each replica's lives so far.
    pub born: Vec<u64>,
    /// When who is down starts again.
    pub starts: Vec<(Instant, usize)>,
    pub crashed: mpsc::UnboundedReceiver<(usize, u64)>,
    pub deaths: JoinSet<Death>,
    pub failure: Option<String>,
    pub stopping: bool,
    pub story: u64,
    /// Who stopped when asked.
    pub stopped: Vec<String>,
}

impl Run {
    fn new(world: Arc<World>, crashed: mpsc::UnboundedReceiver<(usize, u64)>) -> Self {
        let fails_over = world.swarm.script.iter().any(|(_, act)| *act == Act::FailOver);
        let storage = Storage::new(fails_over, world.options.mutant);
        storage.set_most_pieces(world.swarm.most_pieces);
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
            self.stragglers().await;
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

    pub fn is_over(&self) -> bool {
        self.failure.is_some() || !self.world.oracle().violations.is_empty()
    }

    /// The script, and whatever strikes.
    async fn chaos(&mut self) {
        let script = self.world.swarm.script.clone();
        let mut begun = Instant::now();
        for (nth, (at, act)) in script.into_iter().enumerate() {
            self.until(begun + at).await;
            if self.is_over() || self.world.calls() >= self.world.swarm.calls {
                return;
            }
            let name = Name { replica: 9, op: Op::World, nth: nth as u64 };
            let mines = matches!(act, Act::Mine(_));
            let out = match &act {
                Act::CrashAll { down, .. } if self.world.swarm.waits_out => *down,
                _ => Duration::ZERO,
            };
            if mines || self.world.allows(name) {
                self.world.note([96, name.nth, 0, 0], || format!("{name}: {act:?}"));
                self.act(act).await;
                begun += out;
            }
        }
    }

    /// Lets time pass, and starts who is down.
    pub async fn until(&mut self, at: Instant) {
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
            let wake = if self.deaths.is_empty() { next } else { next.min(Instant::now() + LOOKS_EVERY) };
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
                () = sleep_until(wake) => {}
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

    pub fn crash(&mut self, replica: usize, life: Option<u64>, down: Duration) {
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
                if self.world.swarm.waits_out {
                    // Who was down before does not come back into it.
                    let over = Instant::now() + down;
                    self.starts.iter_mut().for_each(|(when, _)| *when = over.max(*when));
                }
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
                    let done = |state: &State| (state.watermark, state.done.iter().copied().collect());
                    let (watermark, done) = self.storage.look(|state| state.map(done)).unwrap_or((-1, vec![]));
                    self.world.oracle().failed_over(watermark, &done);
                }
            }
            Act::Token => self.change_tokens(),
            Act::Outage { edge, for_ } => self.world.outage(edge, for_),
            Act::Deep { below } => self.reorganise_deeply(below, seconds),
            Act::Accept { again } => self.accept(again).await,
            Act::Replay { back, blocks } => self.replay(back, blocks).await,
            Act::Skip { blocks } => self.skip(blocks).await,
            Act::Clock { seconds } => {
                self.world.saw(if seconds < 0 {
                    "the store's clock is set back"
                } else {
                    "the store's clock is set forward"
                });
                self.storage.jump(seconds);
            }
        }
        self.world.new_head();
    }

    pub fn mine(&self, blocks: u64) {
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
        if self.world.swarm.announces {
            self.world.announce();
        }
    }

    pub async fn watermark(&self) -> Option<i64> {
        self.store.inner.snapshot().await.ok().map(|snapshot| snapshot.progress.watermark)
    }
}

/// The name of a life in the store.
fn owner(replica: usize, life: u64) -> String {
    format!("{replica}-{life}")
}

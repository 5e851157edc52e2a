//! A model of the state: the whole of `StateStore` for several replicas, in memory and by the protocol's page alone.
//!
//! It stands where Redis stands: its replicas share one world, it keeps claims and heartbeats on tokio's clock (which a
//! test may pause), and it may fail over, which takes back whatever no barrier vouched for. It has no views.
//! The simulator runs against it; `tests/store_differential.rs` holds Lua and Rust to it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use chaintap::{
    domain::{BlockRange, BlockRef, Event, MAX_BLOCK_NUMBER, Track},
    store::{
        Amend, AmendReply, BlockCommit, CLAIM_TTL, ClaimReply, CommitReply, DeadLetter, Duty, FinalCommit, Grant,
        HEARTBEAT_TTL, Initialised, Intent, IntentReply, JournalEntry, MAX_CLAIM_BLOCKS, MAX_DONE_INTERVALS, Orphan,
        Publication, PublishReply, Published, ReplayReply, RewindReply, SealReply, Snapshot, Start, StateStore,
        StoreError,
    },
};
use tokio::time::Instant;

mod mutants;
mod operators;
mod reorganisations;
mod rules;

pub use mutants::StoreMutant;
pub use rules::{Entry, Key, State};

/// Writes that a fail-over may take back at most: replication is never further behind.
const MOST_UNVOUCHED: usize = 512;

struct World {
    /// None where the store is empty.
    state: Option<State>,
    /// Seconds since the Unix epoch at `begun`.
    clock: u64,
    /// How far the clock of claims and heartbeats is ahead of tokio's.
    ahead: Duration,
    begun: Instant,
    barrier_delay: Duration,
    /// Raised by every fail-over.
    generation: u64,
    /// Most pieces of delivered blocks.
    most_pieces: usize,
    /// Number of the last write.
    writes: u64,
    /// The state after the last write that a barrier vouched for, and after every later one, by number.
    history: Option<VecDeque<(u64, Option<State>)>>,
    mutant: Option<StoreMutant>,
    /// What was learned of the endpoints: no truth, and nothing that a fail-over takes back.
    learned: BTreeMap<String, String>,
}

impl World {
    fn clock(&self) -> u64 {
        self.clock + self.begun.elapsed().as_secs()
    }

    /// The moment by the store's clock.
    fn now(&self) -> Instant {
        Instant::now() + self.ahead
    }

    fn state(&mut self) -> Result<&mut State, StoreError> {
        self.state.as_mut().ok_or_else(|| StoreError::Vanished("the model is empty".into()))
    }

    fn record(&mut self) {
        self.writes += 1;
        if let Some(history) = &mut self.history {
            history.push_back((self.writes, self.state.clone()));
            if history.len() > MOST_UNVOUCHED {
                history.pop_front();
            }
        }
    }

    /// The replicas have everything up to this write.
    fn vouch(&mut self, write: u64) {
        if let Some(history) = &mut self.history {
            while history.get(1).is_some_and(|(number, _)| *number <= write) {
                history.pop_front();
            }
        }
    }
}

/// The world that all handles share, as the test sees it.
#[derive(Clone)]
pub struct Model {
    world: Arc<Mutex<World>>,
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// An empty store, whose clock shows the year 2023 and goes on with tokio's.
    pub fn new() -> Self {
        let world = World {
            state: None,
            clock: 1_700_000_000,
            // Room for a clock that is set back.
            ahead: Duration::from_hours(24),
            begun: Instant::now(),
            barrier_delay: Duration::ZERO,
            generation: 0,
            most_pieces: MAX_DONE_INTERVALS,
            writes: 0,
            history: None,
            mutant: None,
            learned: BTreeMap::new(),
        };
        Self { world: Arc::new(Mutex::new(world)) }
    }

    /// The store as one replica has it; of one owner there may be several handles.
    pub fn replica(&self, owner: &str) -> ModelStore {
        ModelStore { world: Arc::clone(&self.world), owner: owner.into() }
    }

    /// Plants a fault, before the first INIT.
    pub fn plant(&self, mutant: Option<StoreMutant>) {
        self.lock().mutant = mutant;
    }

    /// Sets the store's clock: seconds since the Unix epoch, from which epochs are taken.
    pub fn set_clock(&self, seconds: u64) {
        let mut world = self.lock();
        (world.clock, world.begun) = (seconds, Instant::now());
    }

    /// The store's clock jumps by so many seconds: claims and heartbeats end earlier or later than their owners think.
    pub fn jump(&self, seconds: i64) {
        let mut world = self.lock();
        let by = Duration::from_secs(seconds.unsigned_abs());
        world.clock = world.clock.saturating_add_signed(seconds);
        world.ahead = if seconds < 0 { world.ahead.saturating_sub(by) } else { world.ahead + by };
    }

    /// The moment by the store's clock.
    pub fn now(&self) -> Instant {
        self.lock().now()
    }

    /// From now on there may be so few pieces of delivered blocks.
    pub fn set_most_pieces(&self, pieces: usize) {
        let mut world = self.lock();
        world.most_pieces = pieces;
        if let Some(state) = &mut world.state {
            state.most_pieces = pieces;
        }
    }

    /// How long a barrier waits for the replicas between its write and its answer; not at all at first.
    pub fn set_barrier_delay(&self, delay: Duration) {
        self.lock().barrier_delay = delay;
    }

    /// From now on every write is remembered, so that a fail-over can take it back.
    pub fn enable_fail_over(&self) {
        let mut world = self.lock();
        let now = (world.writes, world.state.clone());
        world.history.get_or_insert_with(|| VecDeque::from([now]));
    }

    /// Everything that was written so far survives any fail-over.
    pub fn checkpoint(&self) {
        let mut world = self.lock();
        let write = world.writes;
        world.vouch(write);
    }

    /// How many states a fail-over can choose from: that of the last barrier, and one after every later write.
    pub fn choices(&self) -> usize {
        self.lock().history.as_ref().map_or(1, VecDeque::len)
    }

    /// The primary is lost; the replica that takes its place has the last barrier's state (0) or that after a later write
    /// (1..; the highest choice loses nothing). Barriers under way answer that they do not know. Answers how many writes
    /// were taken back.
    pub fn fail_over(&self, choice: usize) -> u64 {
        let mut world = self.lock();
        world.generation += 1;
        let Some(history) = &mut world.history else { return 0 };
        let choice = choice.min(history.len() - 1);
        history.truncate(choice + 1);
        let (write, state) = history[choice].clone();
        let lost = world.writes - write;
        (world.writes, world.state) = (write, state);
        lost
    }

    /// The owner dies: its heartbeat is not there any more.
    pub fn end_heartbeat(&self, owner: &str) {
        if let Some(state) = &mut self.lock().state {
            Arc::make_mut(&mut state.heartbeats).remove(owner);
        }
    }

    /// Whoever has a heartbeat has it for a day.
    pub fn keep_alive(&self) {
        let mut world = self.lock();
        let until = world.now() + Duration::from_hours(24);
        if let Some(state) = &mut world.state {
            Arc::make_mut(&mut state.heartbeats).values_mut().for_each(|heartbeat| *heartbeat = until);
        }
    }

    /// Fail-overs so far.
    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Looks at everything at one moment; `None` where the store is empty.
    pub fn look<T>(&self, look: impl FnOnce(Option<&State>) -> T) -> T {
        look(self.lock().state.as_ref())
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }
}

/// The store as one replica has it.
#[derive(Clone)]
pub struct ModelStore {
    world: Arc<Mutex<World>>,
    owner: Arc<str>,
}

/// The service name in every progress.
const SERVICE: &str = "model";

fn check(number: u64) -> Result<(), StoreError> {
    if number <= MAX_BLOCK_NUMBER { Ok(()) } else { Err(StoreError::Fatal(format!("{number} is not below 2^53"))) }
}

impl ModelStore {
    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> Result<T, StoreError> {
        self.world.lock().unwrap().state().map(|state| read(state))
    }

    fn write<T>(&self, work: impl FnOnce(&mut State, Instant, u64) -> T) -> Result<T, StoreError> {
        let mut world = self.world.lock().unwrap();
        let (now, clock) = (world.now(), world.clock());
        let value = work(world.state()?, now, clock);
        world.record();
        Ok(value)
    }

    /// A write, then the wait for the replicas: it vouches for the write unless a fail-over came between.
    async fn barrier<T>(&self, work: impl FnOnce(&mut State) -> (T, bool)) -> Result<T, StoreError> {
        let ((value, vouches), write, generation, delay, mutant) = {
            let mut world = self.world.lock().unwrap();
            let value = work(world.state()?);
            world.record();
            (value, world.writes, world.generation, world.barrier_delay, world.mutant)
        };
        if mutant == Some(StoreMutant::NoBarrier) {
            return Ok(value);
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut world = self.world.lock().unwrap();
        if world.generation != generation {
            if mutant == Some(StoreMutant::BarrierAnywhere) {
                return Ok(value);
            }
            return Err(StoreError::Transient("the primary was lost before its replicas answered".into()));
        }
        if vouches {
            world.vouch(write);
        }
        Ok(value)
    }
}

#[async_trait]
impl StateStore for ModelStore {
    async fn init(&self, start: Start) -> Result<Initialised, StoreError> {
        let mut world = self.world.lock().unwrap();
        if let Some(state) = &world.state {
            return Ok(Initialised { progress: state.progress(SERVICE), fresh: false, edits: Vec::new() });
        }
        let (Start::At(first) | Start::Latest(first)) = start else {
            return Err(StoreError::Fatal("EXPECT_STATE is set, but the store is empty".into()));
        };
        check(first)?;
        let state =
            State { mutant: world.mutant, most_pieces: world.most_pieces, ..State::begin(first, world.clock()) };
        let progress = state.progress(SERVICE);
        world.state = Some(state);
        // A store that forgets its beginning is an empty one, which is another matter than a fail-over.
        world.record();
        let write = world.writes;
        world.vouch(write);
        Ok(Initialised { progress, fresh: true, edits: Vec::new() })
    }

    async fn peek(&self) -> Result<Option<Snapshot>, StoreError> {
        let world = self.world.lock().unwrap();
        let snapshot = |state: &State| Snapshot {
            progress: state.progress(SERVICE),
            done: state.intervals().into_iter().collect(),
        };
        Ok(world.state.as_ref().map(snapshot))
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.peek().await?.ok_or_else(|| StoreError::Vanished("the model is empty".into()))
    }

    async fn heartbeat(&self) -> Result<(), StoreError> {
        self.write(|state, now, _| state.beat(&self.owner, now))
    }

    async fn claim(&self, range: BlockRange) -> Result<ClaimReply, StoreError> {
        check(range.to)?;
        if range.blocks() > MAX_CLAIM_BLOCKS {
            return Err(StoreError::Fatal(format!("{range} is too large a claim")));
        }
        self.write(|state, now, _| state.claim(range, &self.owner, now))?
    }

    async fn renew(&self, grant: &Grant) -> Result<bool, StoreError> {
        self.write(|state, now, _| state.renew(grant, now))
    }

    async fn release(&self, grant: &Grant) -> Result<(), StoreError> {
        self.write(|state, _, _| state.release(grant.range, &grant.token))
    }

    async fn retire(&self) -> Result<(), StoreError> {
        self.write(|state, _, _| state.retire(&self.owner))
    }

    async fn intent(&self, intent: Intent<'_>) -> Result<IntentReply, StoreError> {
        check(intent.block.number)?;
        let work = |state: &mut State| {
            let reply = state.intent(&intent);
            let vouches = reply == IntentReply::Journaled;
            (reply, vouches)
        };
        self.barrier(work).await
    }

    async fn journaled(&self, block: BlockRef, epoch: u64) -> Result<Vec<Event>, StoreError> {
        self.read(|state| {
            let name = (block.number, block.hash, epoch);
            let entry = state.live.get(&name).or_else(|| state.retracting.get(&name));
            entry.map_or_else(Vec::new, |entry| entry.events.clone())
        })
    }

    async fn journal(&self, up_to: u64) -> Result<Vec<JournalEntry>, StoreError> {
        let entry = |(key, entry): (&Key, &Entry)| JournalEntry {
            block: BlockRef { number: key.0, hash: key.1 },
            parent: entry.parent,
            epoch: key.2,
            done: entry.done,
        };
        self.read(|state| state.live.iter().take_while(|(key, _)| key.0 <= up_to).map(entry).collect())
    }

    async fn commit(&self, commit: BlockCommit, _track: Track) -> Result<CommitReply, StoreError> {
        check(commit.block.number)?;
        self.write(|state, _, _| state.commit(commit))
    }

    async fn commit_final(&self, commit: FinalCommit, _track: Track) -> Result<CommitReply, StoreError> {
        check(commit.range.to)?;
        self.write(|state, _, _| state.commit_final(&commit))
    }

    async fn seal(&self, at: BlockRef, tops: &[BlockRef]) -> Result<SealReply, StoreError> {
        check(at.number)?;
        self.write(|state, _, _| state.seal(at, tops))
    }

    async fn orphans(&self) -> Result<Vec<Orphan>, StoreError> {
        self.barrier(|state| (state.orphans(), !state.has(StoreMutant::RetractionsWithoutBarrier))).await
    }

    async fn rewind(
        &self,
        entries: &[(BlockRef, u64)],
        sealed: Option<BlockRef>,
        epoch: u64,
    ) -> Result<RewindReply, StoreError> {
        self.write(|state, _, clock| match state.rewind(entries, sealed, epoch, clock) {
            Ok(()) => RewindReply::Rewound(state.progress(SERVICE)),
            Err(reply) => reply,
        })
    }

    async fn retracted(&self, orphan: Orphan) -> Result<(), StoreError> {
        self.write(|state, _, _| state.retracted(orphan))
    }

    async fn amend(&self, amend: Amend<'_>) -> Result<AmendReply, StoreError> {
        check(amend.block.number)?;
        let work = |state: &mut State| {
            let reply = state.amend(&amend);
            (reply, matches!(reply, AmendReply::Journaled { .. }))
        };
        self.barrier(work).await
    }

    async fn resume(&self, at: BlockRef, epoch: u64) -> Result<ReplayReply, StoreError> {
        check(at.number)?;
        self.write(|state, _, clock| state.set(epoch, SERVICE, |state| state.resume(at, clock)))?
    }

    async fn replay(&self, to: i64, until: Option<u64>, epoch: u64) -> Result<ReplayReply, StoreError> {
        check(to.max(0).cast_unsigned())?;
        check(until.unwrap_or(0))?;
        if to < -1 || until.is_some_and(|until| until.cast_signed() <= to) {
            return Err(StoreError::Fatal(format!("nothing lies above {to} and up to {until:?}")));
        }
        self.write(|state, _, clock| state.set(epoch, SERVICE, |state| state.replay(to, until, clock)))?
    }

    async fn published(&self) -> Result<Published, StoreError> {
        self.read(|state| Published { version: state.filter_version, members: BTreeSet::clone(&state.members) })
    }

    async fn publish(&self, publication: Publication<'_>) -> Result<PublishReply, StoreError> {
        for member in publication.added {
            check(member.from.unwrap_or(0))?;
            if !(1..=200).contains(&member.key.len()) {
                return Err(StoreError::Fatal(format!("a key of {} bytes", member.key.len())));
            }
        }
        self.barrier(|state| (state.publish(&publication), true)).await
    }

    async fn duty(&self) -> Result<Option<Duty>, StoreError> {
        self.write(|state, now, _| state.duty(&self.owner, now))
    }

    async fn scanned(&self, duty: u64, up_to: u64) -> Result<(), StoreError> {
        check(up_to)?;
        self.write(|state, _, _| state.scanned(duty, up_to))
    }

    async fn wipe(&self) -> Result<(), StoreError> {
        let mut world = self.world.lock().unwrap();
        world.state = None;
        world.learned.clear();
        world.record();
        Ok(())
    }

    async fn skip(&self, to: u64, epoch: u64) -> Result<ReplayReply, StoreError> {
        check(to)?;
        self.write(|state, _, _| state.set(epoch, SERVICE, |state| state.skip(to)))?
    }

    async fn bury(&self, letters: &[DeadLetter]) -> Result<bool, StoreError> {
        self.barrier(|state| (state.bury(letters), true)).await
    }

    async fn dead_letters_len(&self) -> Result<u64, StoreError> {
        self.read(|state| state.letters.len() as u64)
    }

    async fn dead_letters(&self, after: Option<&str>, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        let is_after = |letter: &&DeadLetter| after.is_none_or(|after| letter.key.as_str() > after);
        self.read(|state| state.letters.values().filter(is_after).take(limit).cloned().collect())
    }

    async fn exhume(&self, keys: &[String]) -> Result<u64, StoreError> {
        self.write(|state, _, _| keys.iter().filter(|key| state.exhume(key)).count() as u64)
    }

    async fn learned(&self) -> Result<BTreeMap<String, String>, StoreError> {
        Ok(self.world.lock().unwrap().learned.clone())
    }

    async fn learn(&self, endpoint: &str, learned: &str) -> Result<(), StoreError> {
        self.world.lock().unwrap().learned.insert(endpoint.to_owned(), learned.to_owned());
        Ok(())
    }

    fn durability(&self) -> String {
        "the model's".into()
    }
}

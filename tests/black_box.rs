//! The black box: the real binary, real servers, and everything that goes wrong at once. Processes are killed and stopped,
//! lines cut and silenced, stores restarted and failed over, and the chain branches all the while. Then the faults end, and
//! what a consumer holds that keeps the highest version of each id must be the canonical transfers, exactly.
//!
//! The tests do a little of it with each store. `make blackbox` does it for as long as `CHAINTAP_BLACKBOX_MINUTES` says.
//! What happens is drawn from a seed; it is printed, and `CHAINTAP_SEED` takes it (the timing is still the machine's).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test's own functions fail the test
#![allow(clippy::print_stderr)] // seeds and measurements

mod support;

use std::{collections::BTreeSet, fmt, time::Duration};

use support::{
    chaintap::Settings,
    dice::Dice,
    fleet::Fleet,
    mailbox::Mailbox,
    world::{Node, SinkKind, StoreKind, World},
};
use tokio::time::{Instant, sleep};

/// After the faults everything is right within this: half a minute until dead owners are succeeded, and what was missed.
const CONVERGES: Duration = Duration::from_secs(150);
/// Longer than a heartbeat lives: the stopped replica's claims are taken over.
const NAP: (u64, u64) = (11_000, 16_000);
/// Longer than a claim lives.
const SLEEP: Duration = Duration::from_secs(315);

/// What takes part.
#[derive(Clone, Copy)]
struct Cast {
    name: &'static str,
    anvil: bool,
    store: StoreKind,
    sink: SinkKind,
    replicas: usize,
    /// Milliseconds from step to step, at most.
    pace: u64,
    /// Most blocks at once.
    burst: u64,
}

const QUICK: Cast = Cast {
    name: "",
    anvil: false,
    store: StoreKind::Embedded,
    sink: SinkKind::Stdout,
    replicas: 1,
    pace: 350,
    burst: 160,
};

/// How long it goes on.
#[derive(Clone, Copy)]
enum Length {
    /// Until there were so many kills and reorganisations.
    Count(u64, u64),
    Time(Duration),
}

/// What happened.
#[derive(Clone, Copy, Default)]
struct Tally {
    kills: u64,
    reorganisations: u64,
    flips: u64,
    shortenings: u64,
    naps: u64,
    cuts: u64,
    restarts: u64,
    lost_answers: u64,
    rounds: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, reorganisations, flips, shortenings, naps, cuts, restarts, lost_answers, rounds } = self;
        write!(
            f,
            "{rounds} rounds, {kills} kills, {} reorganisations ({flips} flips, {shortenings} shortenings), {naps} stops, \
             {cuts} cuts and silences, {restarts} store restarts, {lost_answers} bad answers of the sink",
            reorganisations + flips + shortenings
        )
    }
}

/// What ends later.
enum Undo {
    Restore,
    Revive(usize),
    Resume(usize),
}

struct Run {
    cast: Cast,
    dice: Dice,
    world: World,
    settings: Settings,
    fleet: Fleet,
    fold: Mailbox,
    tally: Tally,
    undo: Vec<(Instant, Undo)>,
}

impl Run {
    async fn begin(cast: Cast) -> Self {
        let seed = Dice::seed();
        eprintln!("{}: CHAINTAP_SEED={seed}", cast.name);
        let node = if cast.anvil { Node::anvil().await } else { Node::devchain().await };
        let world = World::new(node, cast.store, cast.sink).await;
        let writes = cast.sink == SinkKind::Stdout;
        let settings = world.settings();
        let fleet = Fleet::start(&settings, cast.replicas, &format!("{}-{seed}", cast.name), writes);
        let (dice, fold, tally) = (Dice::new(seed), Mailbox::default(), Tally::default());
        Self { cast, dice, world, settings, fleet, fold, tally, undo: Vec::new() }
    }

    /// Trouble, then peace and the account; again until it was enough.
    async fn through(&mut self, length: Length) {
        let begun = Instant::now();
        let end = begun + if let Length::Time(time) = length { time } else { Duration::from_mins(10) };
        let is_enough = |tally: &Tally| match length {
            Length::Count(kills, reorganisations) => {
                tally.kills >= kills
                    && tally.reorganisations + tally.flips + tally.shortenings >= reorganisations
                    && begun.elapsed() > Duration::from_secs(10)
            }
            Length::Time(_) => Instant::now() >= end,
        };
        while !is_enough(&self.tally) {
            let mut round_ends = Instant::now() + self.dice.millis(25_000, 50_000);
            if self.tally.rounds == 1
                && self.cast.replicas > 1
                && matches!(length, Length::Time(time) if time > 2 * SLEEP)
            {
                // Nobody kills the first one, so it wakes to a world that went on without it.
                self.tally.naps += u64::from(self.fleet.stop(0).await);
                self.undo.push((Instant::now() + SLEEP, Undo::Resume(0)));
                round_ends += SLEEP;
            }
            while Instant::now() < round_ends && !is_enough(&self.tally) {
                self.step().await;
            }
            self.settle().await;
        }
    }

    async fn step(&mut self) {
        sleep(self.dice.millis(20, self.cast.pace)).await;
        self.undo_what_is_due().await;
        self.fleet.tend(&mut self.fold).await;
        self.world.queue.drain(&mut self.fold).await;
        match self.dice.below(100) {
            0..45 => self.mine(1).await,
            45..53 => {
                let few = self.dice.between(2, 5);
                self.mine(few).await;
            }
            53..56 => {
                let least = if self.dice.below(4) == 0 { self.cast.burst / 2 } else { 7 };
                let many = self.dice.between(least, self.cast.burst.min(4 * least));
                self.mine(many).await;
            }
            56..66 => self.reorganise().await,
            66..70 => self.flip().await,
            70..73 => self.shorten().await,
            73..83 => self.kill().await,
            83..85 => self.nap().await,
            85..91 => self.trouble_a_line().await,
            91..93 => self.restart_the_store().await,
            93..96 => self.tally.lost_answers += u64::from(self.world.queue.misbehave(&mut self.dice)),
            _ => self.lose_what_was_never_committed().await,
        }
    }

    async fn mine(&mut self, blocks: u64) {
        self.world.node.mine(blocks, &mut self.dice).await;
    }

    async fn reorganise(&mut self) {
        let deepest = self.world.node.deepest().await;
        if deepest > 0 {
            let depth = self.dice.between(1, deepest);
            self.world.node.reorganise(depth, &mut self.dice).await;
            self.tally.reorganisations += 1;
        }
    }

    async fn flip(&mut self) {
        let deepest = self.world.node.deepest().await;
        if deepest > 0 {
            let depth = self.dice.between(1, deepest);
            self.tally.flips += u64::from(self.world.node.flip(depth, &mut self.dice).await);
        }
    }

    /// The head goes back, and after a moment the chain goes on.
    async fn shorten(&mut self) {
        let deepest = self.world.node.deepest().await;
        if deepest > 0 {
            let depth = self.dice.between(1, deepest);
            self.world.node.shorten(depth).await;
            self.tally.shortenings += 1;
            sleep(self.dice.millis(0, 1_500)).await;
            let further = self.dice.between(1, 3);
            self.mine(depth + further).await;
        }
    }

    /// Kills a replica; it is down for up to three seconds.
    async fn kill(&mut self) {
        let index = self.dice.place(self.fleet.count());
        // With several, the first one lives through it all, so that its memory can be watched.
        let index = if self.fleet.count() > 1 { index.max(1) } else { index };
        if self.fleet.kill(index, &mut self.fold).await {
            self.tally.kills += 1;
        }
        let down = if self.dice.below(3) == 0 { self.dice.millis(500, 3_000) } else { Duration::ZERO };
        self.undo.push((Instant::now() + down, Undo::Revive(index)));
    }

    async fn nap(&mut self) {
        let index = self.dice.place(self.fleet.count());
        if self.fleet.stop(index).await {
            self.tally.naps += 1;
            self.undo.push((Instant::now() + self.dice.millis(NAP.0, NAP.1), Undo::Resume(index)));
        }
    }

    async fn trouble_a_line(&mut self) {
        let line = self.world.some_line(&mut self.dice);
        if self.dice.below(3) == 0 {
            line.silence();
        } else {
            line.cut().await;
        }
        self.tally.cuts += 1;
        self.undo.push((Instant::now() + self.dice.millis(0, 6_000), Undo::Restore));
    }

    async fn restart_the_store(&mut self) {
        let done = self.world.store.restart(&mut self.dice).await;
        self.tally.restarts += u64::from(done);
    }

    /// A block's messages are taken, its acknowledgement is lost, its process dies, and the block leaves the chain.
    async fn lose_what_was_never_committed(&mut self) {
        self.tally.lost_answers += u64::from(self.world.queue.misbehave(&mut self.dice));
        self.mine(1).await;
        sleep(self.dice.millis(50, 400)).await;
        self.kill().await;
        self.reorganise().await;
    }

    async fn undo_what_is_due(&mut self) {
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) = self.undo.drain(..).partition(|(at, _)| *at <= now);
        self.undo = later;
        for (_, what) in due {
            match what {
                Undo::Restore => self.world.restore(),
                Undo::Revive(index) => self.fleet.revive(index),
                Undo::Resume(index) => self.fleet.resume(index).await,
            }
        }
    }

    /// No more faults; a fresh block; and then everything is right.
    async fn settle(&mut self) {
        self.undo.clear();
        self.world.restore();
        self.fleet.restore().await;
        self.mine(2).await;
        self.tally.rounds += 1;
        let begun = Instant::now();
        let (head, canonical) = (self.world.node.head().await, self.world.canonical().await);
        loop {
            self.fleet.tend(&mut self.fold).await;
            self.world.queue.drain(&mut self.fold).await;
            let is_there = self.fleet.watermarks().await.iter().all(|at| u64::try_from(*at) == Ok(head));
            let wrong = self.fold.live().len() != canonical.len() || self.fold.difference(&canonical).is_some();
            if is_there && !wrong {
                break;
            }
            if begun.elapsed() > CONVERGES {
                self.report_failure(head, &canonical).await;
            }
            sleep(Duration::from_millis(200)).await;
        }
        eprintln!("{}: round {} right after {:?}, head {head}", self.cast.name, self.tally.rounds, begun.elapsed());
    }

    async fn report_failure(&self, head: u64, canonical: &BTreeSet<String>) -> ! {
        let told = self.fleet.told().await.join("\n");
        let wrong = self.fold.difference(canonical).unwrap_or_else(|| "the messages are right".to_owned());
        panic!(
            "{}: not right at head {head}: {wrong}\n{told}\nlogs: {}",
            self.cast.name,
            self.fleet.directory.display()
        );
    }

    /// Ends the replicas and looks at what is left.
    async fn finish(mut self) {
        let head = self.world.node.head().await;
        self.fleet.end(&mut self.fold).await;
        self.world.queue.drain(&mut self.fold).await;
        let canonical = self.world.canonical().await;
        assert_eq!(self.fold.difference(&canonical), None, "logs: {}", self.fleet.directory.display());
        self.world.node.assert_existed(self.fold.taken_back()).await;
        let (state, journal) = self.world.store.state(&self.settings).await;
        assert_eq!(u64::try_from(state.progress.watermark), Ok(head));
        assert_eq!((state.progress.retracting, state.progress.frozen), (0, None), "nothing is left to take back");
        // What was begun under an older epoch and delivered under a newer one leaves the journal when it is sealed.
        let is_delivered = |block| journal.iter().any(|entry| entry.done && entry.block == block);
        let half_sent = journal.iter().find(|entry| !entry.done && !is_delivered(entry.block));
        assert_eq!(half_sent, None, "nothing is half sent");
        assert_eq!(self.world.store.claims().await, [""; 0], "no claim is left");
        let (memory, grown) = self.fleet.memory();
        let Mailbox { received, duplicates, retractions, .. } = self.fold;
        eprintln!(
            "{}: {}; head {head}, {received} messages, {duplicates} duplicates, {retractions} retractions, \
             {} live ids; memory {memory}; ended by themselves: {:?}",
            self.cast.name,
            self.tally,
            canonical.len(),
            self.fleet.ended
        );
        assert_eq!(grown, [""; 0], "memory grows");
        std::fs::remove_dir_all(&self.fleet.directory).unwrap();
    }
}

async fn black_box(cast: Cast) {
    let length = match std::env::var("CHAINTAP_BLACKBOX_MINUTES") {
        Ok(minutes) => Length::Time(Duration::from_mins(minutes.parse().expect("a number of minutes"))),
        Err(_) => Length::Count(3, 4),
    };
    let mut run = Run::begin(cast).await;
    run.through(length).await;
    run.finish().await;
}

#[tokio::test]
async fn whatever_happens_a_consumer_holds_the_chain_with_the_embedded_store() {
    let (store, sink) = (StoreKind::Embedded, SinkKind::Stdout);
    black_box(Cast { name: "embedded", store, sink, replicas: 1, ..QUICK }).await;
}

#[tokio::test]
async fn whatever_happens_a_consumer_holds_the_chain_with_a_redis_that_writes_always() {
    let (store, sink) = (StoreKind::RedisAlways, SinkKind::Standard);
    black_box(Cast { name: "always", store, sink, replicas: 2, ..QUICK }).await;
}

#[tokio::test]
async fn whatever_happens_a_consumer_holds_the_chain_of_another_node_with_a_redis_that_writes_every_second() {
    let (store, sink) = (StoreKind::RedisEverySecond, SinkKind::Fifo);
    black_box(Cast { name: "every-second", anvil: true, store, sink, replicas: 2, ..QUICK }).await;
}

#[tokio::test]
async fn whatever_happens_a_consumer_holds_the_chain_with_a_redis_that_fails_over() {
    let (store, sink) = (StoreKind::RedisReplica, SinkKind::Fifo);
    black_box(Cast { name: "fail-over", store, sink, replicas: 3, ..QUICK }).await;
}

#[tokio::test]
async fn whatever_happens_a_consumer_holds_the_chain_with_a_redis_that_proves_its_writes() {
    let (store, sink) = (StoreKind::RedisWaitAof, SinkKind::Fauxqs);
    // Each block that is not final waits for the file to be written, which is once a second.
    black_box(Cast { name: "wait-aof", store, sink, replicas: 2, pace: 1_400, burst: 20, ..QUICK }).await;
}

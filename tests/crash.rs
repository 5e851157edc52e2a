//! Processes that are killed, stopped and told to end at any moment: nothing is lost, and only what was in flight at a
//! kill comes twice, byte for byte the same.
//!
//! `make soak` kills a hundred times over a catch-up of 20,000 blocks; the tests do it ten times over a smaller one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test's own functions fail the test
#![allow(clippy::print_stderr)] // seeds and measurements

mod support;

use std::time::Duration;

use chaintap::{
    config::{Durability, SecretUrl},
    devchain::Options,
    store::{
        Snapshot, StateStore as _,
        embedded::Embedded,
        redis::{Identity, RedisStore},
    },
};
use support::{
    chaintap::{Listener, Settings},
    devchain::{Devchain, still},
    dice::Dice,
    ledger::Ledger,
    redis::RedisServer,
};
use tokio::time::{Instant, sleep, timeout};

const SOON: Duration = Duration::from_mins(2);
/// A shutdown ends within this, whatever hangs (R19).
const GRACE: Duration = Duration::from_secs(25);
/// The development chain's id, and its Redis database.
const CHAIN: u64 = 31_337;
const DB: u8 = 15;

/// How much is done: enough for every run of the tests, or as much as `make soak` asks for.
#[derive(Clone, Copy)]
struct Effort {
    kills: usize,
    blocks: u64,
}

impl Effort {
    fn of_this_run() -> Self {
        match std::env::var("CHAINTAP_SOAK") {
            Ok(kills) => Self { kills: kills.parse().expect("CHAINTAP_SOAK is a number of kills"), blocks: 20_000 },
            Err(_) => Self { kills: 10, blocks: 1_500 },
        }
    }
}

/// Where a listener keeps its state.
enum Home {
    Redis(Box<RedisServer>),
    /// In the data directory of the one replica.
    Embedded,
}

impl Home {
    async fn redis() -> Self {
        Self::Redis(Box::new(RedisServer::start().await))
    }

    fn settings(&self, chain: &Devchain) -> Settings {
        let settings = Settings::default()
            .set("CHAIN_ID", CHAIN)
            .set("WEB3_PROVIDER", format!("ws://{}", chain.address))
            .set("START_BLOCK", 1)
            .set("LOG_LEVEL", "info");
        match self {
            Self::Redis(server) => settings.set("REDIS_URL", server.url(DB)),
            Self::Embedded => settings,
        }
    }

    /// What the store says; `None` where it holds nothing yet. No process may have an embedded store open.
    async fn state(&self, settings: &Settings) -> Option<Snapshot> {
        match self {
            Self::Redis(server) => {
                let owner = "test".to_owned();
                let identity = Identity { chain_id: CHAIN, redis_db: DB, service: owner.clone(), owner };
                let url = SecretUrl::parse(&server.url(DB)).unwrap();
                RedisStore::connect(&url, identity, Durability::None).await.unwrap().peek().await.unwrap()
            }
            Self::Embedded => {
                // A copy, so that it is the listener and not the test that mends the file after a kill.
                let file = format!("chain-{CHAIN}.redb");
                let copy = tempfile::tempdir().unwrap();
                std::fs::copy(settings.home().join("data").join(&file), copy.path().join(&file)).ok()?;
                Embedded::open(copy.path(), CHAIN, "test").ok()?.peek().await.unwrap()
            }
        }
    }
}

/// Waits for a random moment: mostly after so many messages of all listeners together, so that the kills are spread over the
/// catch-up, whoever does most of it; else early in a start. Where nothing is written for a while they wait for what dead
/// owners hold.
async fn random_moment(dice: &mut Dice, listeners: &[Listener], messages: u64) {
    if dice.below(8) == 0 {
        return sleep(Duration::from_millis(dice.below(600))).await;
    }
    let lines = || listeners.iter().map(Listener::line_count).sum::<usize>();
    let quota = lines() + usize::try_from(dice.below(2 * messages + 1)).unwrap();
    let mut seen = (0, Instant::now());
    while lines() <= quota && seen.1.elapsed() < Duration::from_secs(2) {
        if lines() > seen.0 {
            seen = (lines(), Instant::now());
        }
        sleep(Duration::from_millis(1)).await;
    }
    sleep(Duration::from_millis(dice.below(30))).await;
}

/// Kills the replicas in turn during a catch-up, starts each again at once, and settles the account. New blocks come
/// all the time, so that blocks that are not final yet are in flight, too.
async fn kill_and_restart(home: Home, replicas: usize) {
    const NEW_BLOCKS: u64 = 40;
    let Effort { kills, blocks } = Effort::of_this_run();
    // The others go on while one starts again: with more of them there is more to do.
    let blocks = blocks * replicas as u64;
    let chain = Devchain::start(Options { logs_per_block: 4, ..still(blocks) }).await;
    let settings = home.settings(&chain);
    // Somewhat less than an equal share of all messages, so that the last kill comes before the catch-up ends.
    let share = chain.transfers(1, blocks).await.len() / 2 / kills;
    let (mut dice, mut ledger) = (Dice::told(), Ledger::default());
    let begun = Instant::now();
    let mut running: Vec<Listener> = (0..replicas).map(|_| settings.start()).collect();
    let (mut head, mut midway) = (blocks, 0);
    for kill in 0..kills {
        let victim = kill % replicas;
        chain.mine(NEW_BLOCKS).await;
        head += NEW_BLOCKS;
        random_moment(&mut dice, &running, share as u64).await;
        let lines = running[victim].kill().await;
        let state = home.state(&settings).await;
        midway += usize::from(state.as_ref().is_none_or(|state| state.progress.watermark < head.cast_signed()));
        ledger.enter_killed(format!("kill {kill}"), &lines, state);
        running[victim] = settings.start();
    }
    for (index, mut replica) in running.into_iter().enumerate() {
        replica.wait_watermark(head, SOON).await;
        replica.signal("TERM").await;
        assert_eq!(replica.ended(GRACE).await, 0, "{}", replica.log());
        ledger.enter(format!("last {index}"), &replica.whole_lines());
    }
    eprintln!(
        "{replicas} replicas, {head} blocks, {kills} kills ({midway} with blocks missing), {} messages, {} of them twice, {:?}",
        ledger.received,
        ledger.duplicates(),
        begun.elapsed()
    );
    ledger.assert_exactly(&chain.transfers(1, head).await);
    ledger.assert_duplicates_were_in_flight();
    assert!(midway * 2 > kills, "too few kills came while there was something to do");
    if let Home::Redis(redis) = &home {
        assert_settled(redis).await;
    }
}

/// Once everything is delivered no claim is left, and nothing is half sent.
async fn assert_settled(redis: &RedisServer) {
    let claims: Vec<String> = redis.cli(DB, &format!("KEYS chain:{CHAIN}:claim:*")).await;
    assert_eq!(claims, [""; 0]);
    let entries: Vec<String> = redis.cli(DB, &format!("HVALS chain:{CHAIN}:journal")).await;
    assert!(!entries.iter().any(|entry| entry.contains(" sending ")), "{entries:?}");
}

#[tokio::test]
async fn kills_lose_nothing_with_the_embedded_store() {
    kill_and_restart(Home::Embedded, 1).await;
}

#[tokio::test]
async fn kills_lose_nothing_with_redis() {
    kill_and_restart(Home::redis().await, 1).await;
}

#[tokio::test]
async fn kills_of_three_replicas_in_turn_lose_nothing() {
    kill_and_restart(Home::redis().await, 3).await;
}

/// R19 while everything works: what is in flight is finished, so nothing comes twice.
#[tokio::test]
async fn r19_a_stop_in_the_middle_of_a_catch_up_leaves_nothing_behind_and_the_next_start_goes_on_at_once() {
    let home = Home::redis().await;
    let chain = Devchain::start(Options { logs_per_block: 4, ..still(2_000) }).await;
    let settings = home.settings(&chain);
    let (mut dice, mut ledger) = (Dice::told(), Ledger::default());
    for round in 0..4 {
        let begun = Instant::now();
        let mut listener = settings.start();
        let first_message = async {
            while listener.line_count() == 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        // Claims that nobody gave back would hold it up for as long as a heartbeat lives.
        timeout(Duration::from_secs(8), first_message).await.expect("it goes on at once");
        eprintln!("round {round}: first message {:?} after the start", begun.elapsed());
        sleep(Duration::from_millis(dice.below(300))).await;
        listener.signal("TERM").await;
        assert_eq!(listener.ended(GRACE).await, 0, "{}", listener.log());
        ledger.enter(round, &listener.whole_lines());
        let Home::Redis(redis) = &home else { unreachable!() };
        assert_settled(redis).await;
    }
    let mut listener = settings.start();
    listener.wait_watermark(2_000, SOON).await;
    listener.signal("TERM").await;
    assert_eq!(listener.ended(GRACE).await, 0);
    ledger.enter("last", &listener.whole_lines());
    ledger.assert_exactly(&chain.transfers(1, 2_000).await);
    ledger.assert_once();
}

/// A listener whose sink hangs: its blocks are more than fits into a pipe that nobody reads.
async fn hanging(home: &Home) -> (Devchain, Settings, Listener) {
    let chain = Devchain::start(Options { logs_per_block: 400, ..still(20) }).await;
    let settings = home.settings(&chain);
    let listener = settings.start_unread();
    listener.wait_ready(true, SOON).await;
    support::process::eventually("a delivery hangs", SOON, || listener.hangs()).await;
    (chain, settings, listener)
}

/// R19 while the sink hangs: the process ends in time all the same, and gives its claims back.
#[tokio::test]
async fn r19_a_stop_while_the_sink_hangs_ends_in_time_and_gives_every_claim_back() {
    let home = Home::redis().await;
    let (chain, settings, mut stuck) = hanging(&home).await;
    let Home::Redis(redis) = &home else { unreachable!() };
    let claims: Vec<String> = redis.cli(DB, &format!("KEYS chain:{CHAIN}:claim:*")).await;
    assert!(!claims.is_empty(), "it holds a claim");
    let asked = Instant::now();
    stuck.signal("TERM").await;
    assert_eq!(stuck.ended(GRACE).await, 0, "{}", stuck.log());
    eprintln!("ended {:?} after the signal", asked.elapsed());
    let left: Vec<String> = redis.cli(DB, &format!("KEYS chain:{CHAIN}:claim:*")).await;
    assert_eq!(left, [""; 0], "no claim is left");
    let state = home.state(&settings).await;
    let mut ledger = Ledger::default();
    // To the consumer of a pipe that it did not read, this end is a kill.
    ledger.enter_killed("stuck", &stuck.whole_lines(), state);
    let mut next = settings.start();
    next.wait_watermark(20, Duration::from_secs(8)).await;
    next.signal("TERM").await;
    assert_eq!(next.ended(GRACE).await, 0);
    ledger.enter("next", &next.whole_lines());
    ledger.assert_exactly(&chain.transfers(1, 20).await);
    ledger.assert_duplicates_were_in_flight();
}

#[tokio::test]
async fn a_second_signal_ends_the_process_at_once() {
    for (second, code) in [("TERM", 143), ("INT", 130)] {
        let (_chain, _settings, mut stuck) = hanging(&Home::Embedded).await;
        stuck.signal("TERM").await;
        sleep(Duration::from_millis(700)).await;
        let asked = Instant::now();
        stuck.signal(second).await;
        assert_eq!(stuck.ended(Duration::from_secs(5)).await, code, "{}", stuck.log());
        eprintln!("ended {:?} after the second signal", asked.elapsed());
    }
}

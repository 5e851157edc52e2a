//! The pipeline in this process, on the embedded store in memory and a chain of our own, in time that jumps: limits of
//! minutes, and what happens between two calls that no real server can be told to do just then.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what fails here fails the test"
)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use alloy::primitives::{Address, B256, U256};
use async_trait::async_trait;
use chaintap::{
    config::{ChainProfile, Limits, Registry, Settings, Sources, StartBlock, Verify, load_offline},
    domain::{Args, BlockRange, BlockRef, DeliveryMode, Digest, Event},
    pipeline::{self, Audit, Context, Ended, Filters, Threads, Turns},
    rpc::LogFilter,
    sinks::{Message, Outcome, Sink, SinkError},
    store::{ClaimReply, Intent, IntentReply, Progress, Start, StateStore, embedded::Embedded},
    telemetry::Vitals,
};
use support::small_chain::{Blocks, Other, SmallChain};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

const CHAIN: u64 = 31_337;
/// Blocks that may leave the chain.
const FINALITY: u64 = 4;
const MINUTE: Duration = Duration::from_mins(1);

/// A sink that keeps what it acknowledged; every third message of a call fails at its first try, where it is picky.
#[derive(Default)]
struct Memory {
    kept: Mutex<Vec<Message>>,
    tried: Mutex<BTreeSet<String>>,
    picky: bool,
    /// For so long it takes nothing.
    slow: Duration,
}

#[async_trait]
impl Sink for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn send(&self, pending: &[Message]) -> Vec<Outcome> {
        sleep(self.slow).await;
        let mut tried = self.tried.lock().unwrap();
        let outcome = |(index, message): (usize, &Message)| {
            if self.picky && index % 3 == 2 && tried.insert(message.id().to_owned()) {
                return Outcome::Retry { reason: "not at the first try".into(), throttled: false };
            }
            self.kept.lock().unwrap().push(message.clone());
            Outcome::Acknowledged
        };
        pending.iter().enumerate().map(outcome).collect()
    }

    async fn check(&self) -> Result<(), SinkError> {
        Ok(())
    }
}

impl Memory {
    fn ids(&self) -> Vec<String> {
        self.kept.lock().unwrap().iter().map(|message| message.id().to_owned()).collect()
    }
}

/// The settings that the binary carries, for the development chain.
fn settings() -> Settings {
    let environment = [("CHAIN_ID", CHAIN.to_string()), ("WEB3_PROVIDER", "http://127.0.0.1:1".to_owned())];
    let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    load_offline(&Sources { environment, ..Sources::default() }).unwrap()
}

/// A chain, a state and a sink; processes come and go.
struct Bench {
    chain: Arc<SmallChain>,
    store: Embedded,
    sink: Arc<Memory>,
    block_time: Duration,
}

/// One process.
struct Process {
    vitals: Arc<Vitals>,
    stop: CancellationToken,
    running: JoinHandle<Ended>,
}

impl Process {
    fn says(&self, words: &str) -> bool {
        self.vitals.health().reasons.iter().any(|reason| reason.contains(words))
    }

    async fn end(self) {
        self.stop.cancel();
        assert!(matches!(self.running.await.unwrap(), Ended::Stopped));
    }
}

impl Bench {
    fn of(height: u64) -> Self {
        let store = Embedded::in_memory(CHAIN, "development").unwrap();
        Self {
            chain: Arc::new(SmallChain::of(height)),
            store,
            sink: Arc::default(),
            block_time: Duration::from_secs(12),
        }
    }

    fn context(&self, registry: Arc<Registry>) -> Context {
        let settings = settings();
        let limits = Limits::default();
        Context {
            chain: ChainProfile {
                block_time: self.block_time,
                finality_depth: FINALITY,
                verify: Verify::default(),
                verify_sample: 0,
                audit_sample: 0,
                spacing: Duration::ZERO,
                ..settings.chain.clone()
            },
            deliver: DeliveryMode::Instant,
            log_filter: LogFilter { addresses: vec![], topics: registry.topics() },
            registry,
            source: self.chain.clone(),
            store: Arc::new(self.store.clone()),
            sinks: BTreeMap::from([("handleTransferEvent".to_owned(), self.sink.clone() as Arc<dyn Sink>)]),
            turns: Turns::default(),
            threads: Threads::default(),
            filters: Filters::off(),
            audit: Audit::new(true),
            vitals: Arc::default(),
            limits,
        }
    }

    /// Begins at a block and runs until every block up to another one is delivered.
    async fn run_until(&self, start: u64, until: u64) {
        let context = Arc::new(self.context(settings().registry));
        let running = pipeline::run(context, StartBlock::At(start), Some(until), CancellationToken::new());
        let ended = timeout(60 * MINUTE, running).await.expect("it reaches the block within an hour");
        assert!(matches!(ended, Ended::Reached), "{ended:?}");
    }

    fn start(&self, registry: Arc<Registry>, first: u64) -> Process {
        let (context, stop) = (self.context(registry), CancellationToken::new());
        let vitals = context.vitals.clone();
        let running = tokio::spawn(pipeline::run(Arc::new(context), StartBlock::At(first), None, stop.clone()));
        Process { vitals, stop, running }
    }

    async fn progress(&self) -> Progress {
        self.store.snapshot().await.unwrap().progress
    }

    fn mine(&self, count: u64) {
        self.chain.change(|blocks| blocks.mine(count));
    }

    fn other(&self, other: Other) {
        self.chain.change(|blocks| blocks.other = other);
    }

    /// One block after the other, each delivered before the next.
    async fn mine_to(&self, height: u64) {
        while self.chain.change(|blocks| blocks.at(height)).is_none() {
            self.mine(1);
            let head = self.chain.change(|blocks| blocks.head().number);
            self.wait_watermark(head).await;
        }
    }

    async fn wait_watermark(&self, number: u64) {
        self.wait("the watermark", async |bench| bench.progress().await.watermark.cast_unsigned() == number).await;
    }

    /// Looks once a second, for an hour.
    async fn wait(&self, what: &str, is_so: impl AsyncFn(&Self) -> bool) {
        for _ in 0..3_600 {
            if is_so(self).await {
                return;
            }
            sleep(Duration::from_secs(1)).await;
        }
        panic!("within an hour not: {what}; {:?}", self.progress().await);
    }

    /// The sink holds all transfers of these blocks, and nothing else.
    fn assert_all(&self, from: u64, to: u64) {
        let delivered: BTreeSet<String> = self.sink.ids().into_iter().collect();
        let expected = self.chain.ids(CHAIN, BlockRange { from, to }).into_iter().collect();
        let difference: Vec<_> = delivered.symmetric_difference(&expected).collect();
        assert!(difference.is_empty(), "{difference:?}");
    }

    /// And each once.
    fn assert_exactly(&self, from: u64, to: u64) {
        self.assert_all(from, to);
        assert_eq!(self.sink.ids().len(), self.chain.ids(CHAIN, BlockRange { from, to }).len());
    }
}

/// What another replica, which died, would have journaled.
async fn journal(store: &Embedded, block: BlockRef, parent: B256, events: &[Event]) {
    let epoch = store.snapshot().await.unwrap().progress.epoch;
    let intent = Intent { block, parent, epoch, filter_version: 1, digest: Digest::of(events), events };
    assert_eq!(store.intent(intent).await.unwrap(), IntentReply::Journaled);
}

// Ranges --------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn entries_that_fail_once_cost_neither_an_event_nor_a_duplicate() {
    let bench = Bench { sink: Arc::new(Memory { picky: true, ..Memory::default() }), ..Bench::of(75) };
    bench.run_until(1, 75).await;
    bench.assert_exactly(1, 75);
    assert!(!bench.sink.tried.lock().unwrap().is_empty());
}

/// Twenty-one ranges of history, one request at a time, where answer and sink take as long as this.
fn history(latency: Duration, slow: Duration) -> (Bench, Context) {
    let bench = Bench { sink: Arc::new(Memory { slow, ..Memory::default() }), ..Bench::of(200 + FINALITY) };
    bench.chain.change(|blocks| blocks.latency = latency);
    let mut context = bench.context(settings().registry);
    (context.chain.parallel, context.chain.batch_blocks) = (1, 10);
    (bench, context)
}

#[tokio::test(start_paused = true)]
async fn the_next_range_of_history_is_asked_for_while_the_earlier_one_is_delivered() {
    let second = Duration::from_secs(1);
    let (bench, context) = history(second, second);
    let begun = Instant::now();
    let ended =
        pipeline::run(Arc::new(context), StartBlock::At(1), Some(200 + FINALITY), CancellationToken::new()).await;
    assert!(matches!(ended, Ended::Reached), "{ended:?}");
    let took = begun.elapsed();
    assert!((21 * second..28 * second).contains(&took), "the requests alone take 21 s, with the sink 42 s: {took:?}");
    bench.assert_all(1, 200 + FINALITY);
}

#[tokio::test(start_paused = true)]
async fn behind_a_sink_that_stands_still_no_more_than_two_ranges_wait_to_be_delivered() {
    let (bench, context) = history(Duration::ZERO, Duration::from_secs(5));
    let stop = CancellationToken::new();
    let running = tokio::spawn(pipeline::run(Arc::new(context), StartBlock::At(1), None, stop.clone()));
    sleep(Duration::from_secs(9)).await;
    let begun = bench.chain.change(|blocks| blocks.ranges);
    let taken = bench.sink.ids().len() / 30;
    assert_eq!((begun, taken), (3, 0), "one may be fetched, and two more wait");
    sleep(Duration::from_secs(5)).await;
    stop.cancel();
    assert!(bench.chain.change(|blocks| blocks.ranges) > 3, "the next begin once they are taken");
    assert!(matches!(running.await.unwrap(), Ended::Stopped));
}

#[tokio::test(start_paused = true)]
async fn what_another_replica_journaled_for_a_block_is_delivered_beside_our_own_events() {
    let bench = Bench::of(20);
    bench.store.init(Start::At(20)).await.unwrap();
    let header = bench.chain.change(|blocks| blocks.at(20)).unwrap();
    // It knew one token more.
    let theirs = Event {
        block: header.block(),
        timestamp: header.timestamp,
        transaction_hash: header.hash,
        transaction_index: 0,
        log_index: 999,
        address: Address::repeat_byte(9),
        contract: "Transfers".into(),
        name: "Transfer".into(),
        handler: "handleTransferEvent".into(),
        args: Args::Transfer { from: Address::ZERO, to: Address::ZERO, value: U256::ONE },
        token: None,
    };
    journal(&bench.store, header.block(), header.parent, &[theirs]).await;
    bench.run_until(20, 20).await;
    let ours = bench.chain.ids(CHAIN, BlockRange::single(20));
    let expected = ours.into_iter().chain([format!("{CHAIN}:{}:999", header.hash)]);
    assert_eq!(bench.sink.ids().into_iter().collect::<BTreeSet<_>>(), expected.collect());
}

/// Between CLAIM and `COMMIT_FINAL`, so that neither the look before nor the claim could see it. While the audit waits
/// nothing is sealed, so a final block can still be journaled.
#[tokio::test(start_paused = true)]
async fn a_contradiction_that_came_in_between_holds_nothing_up() {
    let bench = Bench::of(20);
    bench.other(Other::Silent);
    bench.run_until(20, 20).await;
    let before = bench.progress().await.epoch;
    bench.mine(55);
    let (store, block) = (bench.store.clone(), BlockRef { number: 50, hash: B256::repeat_byte(50) });
    bench.chain.at_next_range(async move { journal(&store, block, B256::repeat_byte(49), &[]).await });
    bench.run_until(20, 75).await;
    bench.assert_all(20, 75);
    let after = bench.progress().await;
    assert!(after.epoch > before && after.retracting == 0, "it was found and taken back: {after:?}");
}

/// Of two endpoints the one in use tells of the head and then fails, and the other one is on a stale branch.
#[tokio::test(start_paused = true)]
async fn nothing_is_taken_back_where_the_head_comes_from_one_node_and_what_is_below_it_from_another() {
    let bench = Bench::of(20);
    bench.run_until(20, 20).await;
    let process = bench.start(settings().registry, 20);
    bench.mine_to(22).await;
    let before = bench.progress().await.epoch;
    bench.chain.change(|blocks| {
        blocks.stale_above = Some(20);
        blocks.mine(2);
    });
    sleep(MINUTE).await;
    bench.chain.change(|blocks| blocks.stale_above = None);
    bench.mine_to(26).await;
    process.end().await;
    bench.assert_exactly(20, 26);
    assert_eq!(bench.progress().await.epoch, before);
}

/// A look begins whenever the head is not right above the last one.
#[tokio::test(start_paused = true)]
async fn a_look_at_what_was_delivered_waits_as_long_as_the_endpoint_asks() {
    let bench = Bench::of(20);
    bench.run_until(20, 20).await;
    let process = bench.start(settings().registry, 20);
    bench.mine_to(22).await;
    bench.chain.change(|blocks| {
        blocks.throttles = Some(MINUTE / 2);
        blocks.mine(2);
    });
    sleep(10 * MINUTE).await;
    let throttled = bench.chain.change(|blocks| {
        blocks.throttles = None;
        blocks.throttled
    });
    assert!((2..=21).contains(&throttled), "{throttled} times in 10 minutes");
    bench.mine_to(26).await;
    process.end().await;
    bench.assert_exactly(20, 26);
}

/// A node that has a header before it has the logs: nothing is given up, so the block is claimed once.
#[tokio::test(start_paused = true)]
async fn logs_that_come_late_are_asked_for_again_under_the_same_claim() {
    let bench = Bench::of(20);
    bench.chain.change(|blocks| blocks.late = 2);
    bench.run_until(20, 20).await;
    bench.assert_exactly(20, 20);
    assert_eq!(bench.chain.change(|blocks| blocks.asked.len()), 3);
    let ClaimReply::Granted(next) = bench.store.claim(BlockRange::single(21)).await.unwrap() else { panic!() };
    assert_eq!(next.token, "embedded:2", "the second claim on this store is ours");
}

/// A node that no longer knows a block may say that it has no logs: by then that is not believed of it.
#[tokio::test(start_paused = true)]
async fn the_logs_of_a_block_that_left_the_chain_meanwhile_are_not_asked_for_again() {
    let bench = Bench { block_time: Duration::from_millis(400), ..Bench::of(20) };
    let left = bench.chain.change(|blocks| blocks.at(20)).unwrap().hash;
    bench.chain.change(|blocks| blocks.late = 1);
    let chain = bench.chain.clone();
    bench.chain.at_next_block(async move { chain.change(Blocks::replace_head) });
    bench.store.init(Start::At(20)).await.unwrap();
    let before = bench.progress().await.epoch;
    bench.run_until(20, 20).await;
    bench.assert_exactly(20, 20);
    let asked = bench.chain.change(|blocks| blocks.asked.clone());
    assert_eq!((asked[0], asked.iter().filter(|hash| **hash == left).count()), (left, 1));
    assert_eq!(bench.progress().await.epoch, before, "nothing had to be taken back");
}

// The audit before sealing --------------------------------------------------------------------------------------------

/// A process that delivered the blocks 21 to 30 of a chain whose final height is 26: one after the other, and so from the
/// journal. Nothing of them is sealed unless the other endpoint agrees.
async fn audited(other: Other) -> (Bench, Process) {
    let bench = Bench::of(20);
    bench.other(other);
    let process = bench.start(settings().registry, 21);
    bench.wait("the start", async |bench| bench.store.peek().await.unwrap().is_some()).await;
    bench.wait("the seal of what was there", async |bench| bench.progress().await.sealed == 16).await;
    bench.mine_to(30).await;
    (bench, process)
}

/// For so long nothing above this block is sealed.
async fn assert_sealed_no_higher(bench: &Bench, number: i64, minutes: u32) {
    for _ in 0..minutes {
        assert!(bench.progress().await.sealed <= number);
        sleep(MINUTE).await;
    }
    assert!(bench.progress().await.sealed <= number);
}

async fn wait_sealed(bench: &Bench, number: i64) {
    bench.wait("the seal", async |bench| bench.progress().await.sealed == number).await;
}

const WITHOUT: &str = "sealed without a second provider's opinion";

#[tokio::test(start_paused = true)]
async fn an_audit_waits_for_an_absent_provider_ten_minutes_and_no_longer() {
    let begun = Instant::now();
    let (bench, process) = audited(Other::Silent).await;
    let delivered = begun.elapsed();
    assert!(delivered < 3 * MINUTE, "{delivered:?}");
    assert_sealed_no_higher(&bench, 20, 6).await;
    bench.mine_to(31).await;
    assert!(!process.says(WITHOUT));
    wait_sealed(&bench, 27).await;
    let waited = begun.elapsed();
    assert!((10 * MINUTE..10 * MINUTE + delivered + MINUTE).contains(&waited), "{waited:?}");
    assert!(process.says(WITHOUT));
    // As long as it stays away nothing waits any more.
    bench.mine_to(32).await;
    let asked = Instant::now();
    wait_sealed(&bench, 28).await;
    assert!(asked.elapsed() < MINUTE);
    // Its first answer ends the matter, and the next absence is waited for anew.
    bench.other(Other::Agrees);
    bench.mine_to(33).await;
    wait_sealed(&bench, 29).await;
    assert!(!process.says(WITHOUT));
    bench.other(Other::Silent);
    bench.mine_to(34).await;
    assert_sealed_no_higher(&bench, 29, 9).await;
    wait_sealed(&bench, 30).await;
    process.end().await;
    bench.assert_exactly(21, 34);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sealed_while_two_providers_have_different_blocks_at_a_final_height() {
    let (bench, process) = audited(Other::Forked).await;
    assert_sealed_no_higher(&bench, 20, 30).await;
    assert!(process.says("two providers have different blocks at the final height 26: nothing is sealed"));
    bench.mine_to(35).await;
    bench.other(Other::Agrees);
    wait_sealed(&bench, 31).await;
    assert!(!process.says("two providers"));
    process.end().await;
    bench.assert_exactly(21, 35);
}

/// History and what is sealed alike.
#[tokio::test(start_paused = true)]
async fn ranges_are_read_and_audited_in_as_many_parts_as_a_node_answers_them_in() {
    let bench = Bench::of(120);
    bench.chain.change(|blocks| blocks.bears = Some(3));
    bench.other(Other::Agrees);
    let process = bench.start(settings().registry, 1);
    bench.wait("the start", async |bench| bench.store.peek().await.unwrap().is_some()).await;
    bench.wait_watermark(120).await;
    bench.mine(20);
    wait_sealed(&bench, 136).await;
    bench.wait_watermark(140).await;
    process.end().await;
    bench.chain.change(|blocks| blocks.bears = None);
    bench.assert_exactly(1, 140);
    let (bench, process) = audited(Other::Silent).await;
    bench.chain.change(|blocks| (blocks.bears, blocks.other) = (Some(3), Other::Agrees));
    wait_sealed(&bench, 26).await;
    process.end().await;
}

// Deployments that want different things ------------------------------------------------------------------------------

/// The older one ends last, as where a deployment that was begun is given up: nobody else is left then (protocol §7).
#[tokio::test(start_paused = true)]
async fn a_superseded_process_takes_over_where_for_two_minutes_nobody_delivers_what_could_be() {
    let bench = Bench::of(20);
    let older = bench.start(settings().registry, 21);
    bench.wait("the start", async |bench| bench.store.peek().await.unwrap().is_some()).await;
    bench.mine(3);
    bench.wait_watermark(23).await;
    // Another deployment, which listens to nothing, and so delivers blocks without events.
    let newer = bench.start(Arc::default(), 21);
    bench.wait("the new filter", async |bench| bench.store.published().await.unwrap().version == 2).await;
    for number in 24..=43 {
        bench.mine(1);
        bench.wait_watermark(number).await;
        sleep(MINUTE / 2).await;
        assert!(older.says("superseded"), "another one delivers");
    }
    newer.end().await;
    sleep(10 * MINUTE).await;
    assert!(older.says("superseded"), "there is nothing to deliver");
    bench.mine(1);
    let mined = Instant::now();
    bench.wait_watermark(44).await;
    let waited = mined.elapsed();
    assert!((2 * MINUTE..3 * MINUTE).contains(&waited), "{waited:?}");
    assert!(!older.says("superseded"));
    older.end().await;
    let delivered: BTreeSet<_> = bench.sink.ids().into_iter().collect();
    assert!(bench.chain.ids(CHAIN, BlockRange::single(44)).iter().all(|id| delivered.contains(id)));
}

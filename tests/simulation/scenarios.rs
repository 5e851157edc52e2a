//! Short stories in which the process dies at every call that it makes, before the effect and after it.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use chaintap::{domain::DeliveryMode, store::MAX_DONE_INTERVALS};

use crate::{
    chain::Making,
    faults::Rates,
    run::{Report, run},
    swarm::{Act, Swarm},
    world::Options,
};

/// A story: what happens at which second, and what is particular to it.
pub struct Scenario {
    pub name: &'static str,
    pub script: &'static [(u64, Act)],
    pub change: fn(&mut Swarm),
}

pub const fn reorg(depth: u64, mined: u64) -> Act {
    Act::Reorg { depth, mined }
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "three blocks at the head",
        script: &[(2, Act::Mine(1)), (4, Act::Mine(1)), (6, Act::Mine(1))],
        change: |_| {},
    },
    Scenario { name: "a small gap", script: &[(2, Act::Mine(1)), (4, Act::Mine(4))], change: |_| {} },
    Scenario {
        name: "a gap with a final part",
        script: &[(2, Act::Mine(1)), (5, Act::Mine(25))],
        change: |swarm| swarm.batch_blocks = 7,
    },
    Scenario { name: "another block at the head", script: &[(2, Act::Mine(1)), (4, reorg(1, 1))], change: |_| {} },
    Scenario { name: "three blocks leave, four come", script: &[(2, Act::Mine(4)), (6, reorg(3, 4))], change: |_| {} },
    Scenario {
        name: "a shorter chain",
        script: &[(2, Act::Mine(4)), (6, reorg(3, 1)), (80, Act::Mine(1))],
        change: |_| {},
    },
    Scenario {
        name: "A to B to A",
        script: &[(2, Act::Mine(3)), (5, reorg(2, 2)), (8, Act::FlipBack), (10, Act::Mine(1))],
        change: |_| {},
    },
    Scenario {
        name: "a reorganisation under an open gap",
        script: &[(2, Act::Mine(1)), (4, Act::Mine(12)), (5, reorg(4, 5))],
        change: |swarm| swarm.making.finality = 20,
    },
    Scenario {
        name: "two replicas",
        script: &[(2, Act::Mine(1)), (4, Act::Mine(9))],
        change: |swarm| swarm.replicas = 2,
    },
    Scenario {
        name: "two replicas and a reorganisation",
        script: &[(2, Act::Mine(3)), (5, reorg(2, 3))],
        change: |swarm| swarm.replicas = 2,
    },
    Scenario {
        name: "a queue that takes one message at a time and refuses some",
        script: &[(2, Act::Mine(2)), (4, reorg(1, 2))],
        change: |swarm| (swarm.sink_batch, swarm.poison, swarm.making.density) = (1, 200, 4),
    },
    Scenario {
        name: "only what is final",
        script: &[(2, Act::Mine(5)), (5, reorg(2, 3)), (7, Act::Mine(8))],
        change: |swarm| swarm.deliver = DeliveryMode::Finalized,
    },
    Scenario {
        name: "a fail-over between blocks",
        script: &[(2, Act::Mine(2)), (4, reorg(1, 2)), (5, Act::FailOver), (7, Act::Mine(1))],
        change: |_| {},
    },
    Scenario {
        name: "an operator has blocks delivered again, and one of them leaves",
        script: &[(2, Act::Mine(7)), (4, Act::Replay { back: 4, blocks: 4 }), (5, reorg(2, 3))],
        change: |_| {},
    },
    Scenario {
        name: "a node leaves out logs that another one has",
        script: &[(2, Act::Mine(4)), (5, Act::Mine(7))],
        change: |swarm| (swarm.omits, swarm.audits, swarm.making.density) = (0.5, true, 4),
    },
    Scenario {
        name: "final blocks leave, and an operator accepts it",
        script: &[(2, Act::Mine(8)), (6, Act::Deep { below: 2 }), (330, Act::Accept { again: true })],
        change: |_| {},
    },
];

pub fn swarm(scenario: &Scenario) -> Swarm {
    let script = scenario.script.iter().map(|(at, act)| (Duration::from_secs(*at), act.clone())).collect();
    let mut swarm = Swarm {
        seed: 1,
        replicas: 1,
        block_time: Duration::from_secs(2),
        making: Making { seed: 1, finality: 5, finalized: Some(5), begins_final: true, empty: 0.2, density: 2 },
        deliver: DeliveryMode::Instant,
        length: 4,
        start: 2,
        batch_blocks: 100,
        pushes: true,
        audits: false,
        token_refresh: Duration::from_secs(10),
        sink_batch: 10,
        poison: 0,
        announces: false,
        omits: 0.0,
        most_pieces: MAX_DONE_INTERVALS,
        rates: Rates::default(),
        waits_out: false,
        script,
        chaos: Duration::from_mins(2),
        calls: 1_000_000,
    };
    (scenario.change)(&mut swarm);
    swarm
}

fn check(scenario: &Scenario, crash_at: Option<(u64, bool)>) -> Report {
    let report = run(swarm(scenario), Options { crash_at, ..Options::default() });
    if !report.violations.is_empty() {
        let again = run(swarm(scenario), Options { crash_at, trace: true, ..Options::default() });
        again.lines.iter().for_each(|line| println!("{line}"));
        panic!("{}, crash at {crash_at:?}: {:#?}", scenario.name, report.violations);
    }
    report
}

/// At so many calls of each story every `cargo test` crashes.
const FEW: u64 = 9;

/// What came of a story: its calls until everything is delivered, the crashes that were tried, and the time of all runs.
#[derive(Clone, Copy, Default)]
struct Row {
    calls: u64,
    crashes: u64,
    took: Duration,
}

#[test]
fn a_crash_at_any_call_loses_nothing() {
    // All of them take a while in a debug build, where a few have to do.
    let is_exhaustive = std::env::var_os("SIM_EXHAUSTIVE").is_some();
    let step = |calls: u64| if is_exhaustive { 1 } else { calls.div_ceil(FEW).try_into().unwrap() };
    let begun = Instant::now();
    let table: Vec<Mutex<Row>> = SCENARIOS.iter().map(|_| Mutex::default()).collect();
    for (scenario, row) in SCENARIOS.iter().zip(&table) {
        row.lock().unwrap().calls = check(scenario, None).story;
    }
    let crash = |at: usize| {
        let calls = table[at].lock().unwrap().calls;
        (1..=calls).step_by(step(calls)).map(move |call| (at, call))
    };
    let crashes: Vec<(usize, u64)> = (0..SCENARIOS.len()).flat_map(crash).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((at, call)) = crashes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begun = Instant::now();
                    [false, true].into_iter().for_each(|effect| drop(check(&SCENARIOS[*at], Some((*call, effect)))));
                    let mut row = table[*at].lock().unwrap();
                    (row.crashes, row.took) = (row.crashes + 2, row.took + begun.elapsed());
                }
            });
        }
    });
    println!("  calls  crashes      time  story");
    let mut sum = 0;
    for (scenario, row) in SCENARIOS.iter().zip(&table) {
        let Row { calls, crashes, took } = *row.lock().unwrap();
        println!("{calls:>7}  {crashes:>7}  {took:>7.2?}  {}", scenario.name);
        sum += crashes;
    }
    println!("{sum} crashes in {} stories in {:.2?}", SCENARIOS.len(), begun.elapsed());
}

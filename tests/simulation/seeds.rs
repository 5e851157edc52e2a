//! Many seeds, on all cores.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    run::{Report, run},
    swarm::Swarm,
    world::Options,
};

/// Seeds that every `cargo test` tries.
const FEW: u64 = 40;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.trim().parse().unwrap_or_else(|_| panic!("{name} is not a number: '{text}'")))
}

/// What came of many seeds.
#[derive(Default)]
struct Sum {
    seeds: u64,
    calls: u64,
    virtual_time: Duration,
    sometimes: BTreeMap<&'static str, u64>,
    failed: BTreeMap<u64, Vec<String>>,
}

impl Sum {
    fn add(&mut self, seed: u64, report: Report) {
        self.seeds += 1;
        self.calls += report.calls;
        self.virtual_time += report.virtual_time;
        for (what, times) in report.sometimes {
            *self.sometimes.entry(what).or_default() += times;
        }
        if !report.violations.is_empty() {
            self.failed.insert(seed, report.violations);
        }
    }
}

/// Tries seeds from `from` on, on all cores, until `is_enough`.
fn try_seeds(from: u64, is_enough: impl Fn(u64) -> bool + Sync) -> Sum {
    let (next, sum) = (AtomicU64::new(from), Mutex::new(Sum::default()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if is_enough(seed - from) || sum.lock().unwrap().failed.len() > 10 {
                        return;
                    }
                    let report = run(Swarm::of(seed), Options::default());
                    sum.lock().unwrap().add(seed, report);
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

#[test]
fn seeds() {
    if let Some(seed) = number("SIM_SEED") {
        return show(seed);
    }
    let (from, seeds) = (number("SIM_FROM").unwrap_or(0), number("SIM_SEEDS").unwrap_or(FEW));
    let begun = Instant::now();
    let sum = try_seeds(from, |tried| tried >= seeds);
    println!(
        "{} seeds in {:?}: {} calls, {:?} of virtual time",
        sum.seeds,
        begun.elapsed(),
        sum.calls,
        sum.virtual_time
    );
    for (what, times) in &sum.sometimes {
        println!("{times:>9} {what}");
    }
    for (seed, violations) in &sum.failed {
        println!("SIM_SEED={seed} cargo test --profile sim --test simulation seeds -- --nocapture");
        violations.iter().take(3).for_each(|violation| println!("    {violation}"));
    }
    assert!(sum.failed.is_empty(), "seeds failed: {:?}", sum.failed.keys());
}

/// One seed, call by call.
fn show(seed: u64) {
    let swarm = Swarm::of(seed);
    println!("{swarm:#?}");
    let report = run(swarm, Options { trace: true, ..Options::default() });
    report.lines.iter().for_each(|line| println!("{line}"));
    println!("{:016x}, {} calls, {:?}", report.hash, report.calls, report.virtual_time);
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

//! Many seeds, on all cores.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    random::mix,
    run::{Report, run},
    shrink::shrink,
    swarm::{Seed, Swarm},
    world::Options,
};

/// Seeds that every `cargo test` tries.
const FEW: u64 = 60;
/// So many seeds have seen everything of [`SOMETIMES`].
const MANY: u64 = 5_000;
/// What a long run must have seen, or it tests less than it says.
const SOMETIMES: &[&str] = &[
    "A to B to A",
    "AMEND",
    "CLAIM above too many gaps",
    "CLAIM held",
    "COMMIT fenced",
    "COMMIT old list",
    "COMMIT_FINAL stale",
    "INTENT conflicts",
    "INTENT more",
    "INTENT old list",
    "INTENT sealed",
    "INTENT stale",
    "REPLAY",
    "RESUME",
    "REWIND deep",
    "REWIND stale",
    "SEAL refused",
    "SKIP",
    "a batch taken in part",
    "a claim ran out while working",
    "a claim taken over",
    "a freeze that outlives a process",
    "a log found that was left out",
    "a log left out",
    "a token joins",
    "an answer that the bloom contradicts",
    "barrier refused",
    "crash between acknowledgement and commit",
    "fail-over that loses an intent",
    "messages that arrive late",
    "orphan above an open gap",
    "orphan of a block that was never committed",
    "poison",
    "the store's clock is set back",
    "the store's clock is set forward",
    "two gaps at once",
];

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
    /// Of all runs: the same seeds came to the same end.
    digest: u64,
    sometimes: BTreeMap<&'static str, u64>,
    failed: BTreeMap<u64, Vec<String>>,
}

impl Sum {
    fn add(&mut self, seed: u64, report: Report) {
        self.seeds += 1;
        self.calls += report.calls;
        self.virtual_time += report.virtual_time;
        self.digest ^= mix(report.hash ^ mix(seed));
        for (what, times) in report.sometimes {
            *self.sometimes.entry(what).or_default() += times;
        }
        if !report.violations.is_empty() {
            self.failed.insert(seed, report.violations);
        }
    }

    fn tell(&self, took: Duration) {
        let Self { seeds, calls, virtual_time, .. } = self;
        let (hours, digest) = (virtual_time.as_secs() / 3_600, self.digest);
        println!("{seeds} seeds in {took:?}: {calls} calls, {hours} hours of virtual time, digest {digest:016x}");
        for (what, times) in &self.sometimes {
            println!("{times:>9} {what}");
        }
        for (seed, violations) in &self.failed {
            println!("SIM_SEED={seed} cargo test --profile sim --test simulation seeds -- --nocapture");
            violations.iter().take(3).for_each(|violation| println!("    {violation}"));
        }
    }
}

/// Tries seeds from `from` on, on all cores, until it is enough.
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
                    let report = run(Swarm::of(Seed::new(seed)), Options::default());
                    sum.lock().unwrap().add(seed, report);
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

#[test]
fn seeds() {
    if let Ok(seed) = std::env::var("SIM_SEED") {
        return show(seed.trim().parse().unwrap_or_else(|_| panic!("SIM_SEED is not a seed: '{seed}'")));
    }
    let begun = Instant::now();
    let sum = if let Some(minutes) = number("SIM_MINUTES") {
        let somewhere = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        let from = number("SIM_FROM").unwrap_or(u64::try_from(somewhere).unwrap() << 8);
        println!("seeds from SIM_FROM={from} on");
        try_seeds(from, |_| begun.elapsed() > Duration::from_secs(60 * minutes))
    } else {
        let seeds = number("SIM_SEEDS").unwrap_or(FEW);
        try_seeds(number("SIM_FROM").unwrap_or(0), |tried| tried >= seeds)
    };
    sum.tell(begun.elapsed());
    assert!(sum.failed.is_empty(), "seeds failed: {:?}", sum.failed.keys());
    if sum.seeds >= MANY {
        let never: Vec<_> = SOMETIMES.iter().filter(|what| !sum.sometimes.contains_key(*what)).collect();
        assert!(never.is_empty(), "never seen in {} seeds: {never:?}", sum.seeds);
    }
}

#[test]
fn seeds_that_failed_once() {
    for line in include_str!("regressions.txt").lines().filter(|line| !line.starts_with('#')) {
        let seed: Seed = line.split_whitespace().next().unwrap().parse().unwrap();
        let violations = run(Swarm::of(seed), Options::default()).violations;
        assert!(violations.is_empty(), "SIM_SEED={seed:?}: {violations:#?}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..number("SIM_TWICE").unwrap_or(20) {
        let (one, other) =
            (run(Swarm::of(Seed::new(seed)), Options::default()), run(Swarm::of(Seed::new(seed)), Options::default()));
        if one.hash != other.hash {
            let trace = || run(Swarm::of(Seed::new(seed)), Options { trace: true, ..Options::default() }).lines;
            let (one, other) = (trace(), trace());
            let first = one.iter().zip(&other).position(|(one, other)| one != other).unwrap_or_default();
            for (one, other) in one.iter().zip(&other).take(first + 3).skip(first.saturating_sub(5)) {
                println!("{one}\n    {other}");
            }
            panic!("two runs of seed {seed} differ at call {first}");
        }
    }
}

/// One seed, call by call; a failing one is made smaller first.
fn show(seed: Seed) {
    let swarm = Swarm::of(seed);
    println!("{swarm:#?}");
    let mut report = run(swarm, Options { trace: true, ..Options::default() });
    if !report.violations.is_empty() {
        let whole = report.struck.len();
        let (needed, smallest) = shrink(seed, report);
        report = smallest;
        let needed: Vec<String> = needed.iter().map(ToString::to_string).collect();
        println!("of {whole} faults, these do: {}", needed.join(" "));
    }
    report.lines.iter().for_each(|line| println!("{line}"));
    println!("{:016x}, {} calls, {:?}", report.hash, report.calls, report.virtual_time);
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

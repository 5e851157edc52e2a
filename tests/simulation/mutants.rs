//! Faults planted on purpose, in the pipeline and in the store's model: each must be found, or a test is missing.
//!
//! Random seeds come first. What they do not find within their bound has a story of its own, made for it, or a rule of
//! the store that it breaks. `make mutants` prints what found which fault.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chaintap::mutants::{Mutant, plant};

use crate::{
    rules,
    run::run,
    scenarios::{Scenario, reorg, swarm},
    support::model_store::StoreMutant,
    swarm::{Act, Seed, Swarm},
    world::Options,
};

/// Seeds begin here, apart from those that other tests try.
const FROM: u64 = 1_000_000;
/// Most seeds for one fault, and the longest time for them; `MUTANT_SECONDS` gives them longer.
const SEEDS: u64 = 3_000;
const TIME: Duration = Duration::from_secs(14);
/// So often a story is told, each time somewhat differently.
const TELLINGS: u64 = 200;
/// What a test said is cut to so many characters.
const WORDS: usize = 140;

/// A fault, and where it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Pipeline(Mutant),
    Store(StoreMutant),
}

impl Fault {
    fn all() -> impl Iterator<Item = Self> {
        Mutant::ALL.into_iter().map(Self::Pipeline).chain(StoreMutant::ALL.into_iter().map(Self::Store))
    }

    /// Plants it, where it is the pipeline's.
    fn plant(self) {
        plant(match self {
            Self::Pipeline(mutant) => Some(mutant),
            Self::Store(_) => None,
        });
    }

    /// One run with it.
    fn run(self, swarm: Swarm) -> Option<String> {
        let mutant = match self {
            Self::Pipeline(_) => None,
            Self::Store(mutant) => Some(mutant),
        };
        violation(swarm, mutant)
    }

    /// What the fault is, in few words.
    fn text(self) -> (&'static str, &'static str) {
        match self {
            Self::Pipeline(mutant) => ("pipeline", of_pipeline(mutant)),
            Self::Store(mutant) => ("store", of_store(mutant)),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Pipeline(mutant) => format!("{mutant:?}"),
            Self::Store(mutant) => format!("{mutant:?}"),
        }
    }
}

const fn of_pipeline(mutant: Mutant) -> &'static str {
    match mutant {
        Mutant::SendBeforeIntent => "messages leave before their intent is journaled (N15)",
        Mutant::AnswersIgnored => "whatever a sink answers is an acknowledgement (N7, N13)",
        Mutant::IdWithoutBlock => "the id names the transaction instead of the block (N16)",
        Mutant::RetractUnderOldEpoch => "a retraction has the epoch of what it takes back",
        Mutant::NeverLook => "what was delivered is never held against the chain",
        Mutant::SameHeightIgnored => "a head that is not above the tip is not looked at (N11)",
        Mutant::HighestRunOnly => "only the highest run of the journal is held against the chain (N24)",
        Mutant::UncommittedKept => "only committed entries are taken back",
        Mutant::RetractByList => "only events of tokens still tracked are taken back (N14)",
        Mutant::SealBlind => "what becomes final is sealed without a look at the chain",
        Mutant::FailureForgotten => "a historical range that failed once is not taken up again (N20)",
        Mutant::FilterOfClaim => "the filter version is that of the claim, not of the list that was used (N25)",
    }
}

const fn of_store(mutant: StoreMutant) -> &'static str {
    match mutant {
        StoreMutant::HeldIsDone => "the watermark passes what someone else has claimed (N1)",
        StoreMutant::WatermarkIsTip => "the watermark is the highest committed block (N2)",
        StoreMutant::OneGapOnly => "a second gap makes the first one forgotten (N3)",
        StoreMutant::OrphanStaysDone => "a block that left the chain stays done (N4)",
        StoreMutant::NoBarrier => "nobody waits for the replicas",
        StoreMutant::BarrierAnywhere => "a barrier vouches for a write from before a fail-over (N23)",
        StoreMutant::RetractionsWithoutBarrier => "what is to be retracted is read without a barrier",
        StoreMutant::EpochUnchecked => "INTENT takes any epoch",
        StoreMutant::RewindUnchecked => "REWIND takes any epoch",
        StoreMutant::EpochNotRaised => "REWIND leaves the epoch as it is",
        StoreMutant::RewindForgets => "REWIND drops what it should keep until it is retracted (N14)",
        StoreMutant::NeighboursUnchecked => "INTENT compares the block with no other height",
        StoreMutant::CommitUnfenced => "COMMIT without an entry",
        StoreMutant::DigestUnchecked => "COMMIT with fewer events than were journaled (N25)",
        StoreMutant::FinalWithoutEpoch => "COMMIT_FINAL takes any epoch (N26)",
        StoreMutant::FinalUnchecked => "COMMIT_FINAL over journaled blocks of another branch",
        StoreMutant::SealBlind => "SEAL whatever the tops are",
        StoreMutant::DutyForgotten => "what joins the filter is not looked for in what was delivered (N21)",
        StoreMutant::OldListAccepted => "an old filter is as good as the published one (N21)",
    }
}

/// A story made for some faults, and how its tellings differ.
struct Story {
    made_for: &'static [Fault],
    scenario: Scenario,
    vary: fn(&mut Swarm, u64),
}

const STORIES: [Story; 5] = [
    Story {
        made_for: &[Fault::Pipeline(Mutant::SameHeightIgnored)],
        scenario: Scenario {
            name: "another block at the head, and then none",
            script: &[(2, Act::Mine(3)), (6, reorg(1, 1))],
            change: |_| {},
        },
        vary: |_, _| {},
    },
    Story {
        made_for: &[Fault::Pipeline(Mutant::SealBlind)],
        scenario: Scenario {
            name: "blocks leave while nobody looks, and become final",
            script: &[
                (2, Act::Mine(3)),
                (6, Act::CrashAll { down: Duration::from_secs(10), mined: 0 }),
                (7, reorg(2, 2)),
                (8, Act::Mine(25)),
            ],
            change: |_| {},
        },
        vary: |_, _| {},
    },
    Story {
        made_for: &[Fault::Pipeline(Mutant::RetractByList)],
        scenario: Scenario {
            name: "tokens leave the list, then blocks leave the chain",
            script: &[
                (2, Act::Mine(3)),
                (3, Act::Token),
                (6, Act::Token),
                (9, Act::Token),
                (12, Act::Token),
                (15, Act::Token),
                (18, Act::Token),
                (80, reorg(2, 3)),
            ],
            change: |swarm| (swarm.token_refresh, swarm.making.density) = (Duration::from_secs(30), 12),
        },
        vary: |_, _| {},
    },
    Story {
        made_for: &[Fault::Pipeline(Mutant::FilterOfClaim), Fault::Store(StoreMutant::OldListAccepted)],
        scenario: Scenario {
            name: "tokens join, and one of two replicas reads the list later",
            script: &[],
            change: |swarm| {
                (swarm.replicas, swarm.making.density, swarm.making.empty) = (2, 12, 0.0);
                (swarm.token_refresh, swarm.block_time) = (Duration::from_secs(30), Duration::from_secs(1));
                let down = Duration::from_secs(13);
                swarm.script = vec![(Duration::from_millis(1_500), Act::Crash { replica: 1, down })];
                for second in 2..110 {
                    let act = if second % 5 == 0 { Act::Token } else { Act::Mine(1) };
                    swarm.script.push((Duration::from_secs(second), act));
                }
            },
        },
        vary: |_, _| {},
    },
    Story {
        made_for: &[Fault::Store(StoreMutant::RetractionsWithoutBarrier)],
        scenario: Scenario {
            name: "blocks leave, the store forgets it, they come back",
            script: &[(2, Act::Mine(3)), (6, reorg(2, 2)), (7, Act::FailOver), (7, Act::FlipBack)],
            change: |_| {},
        },
        vary: |swarm, telling| {
            let at = Duration::from_millis(6_005 + telling * 5);
            (swarm.script[2].0, swarm.script[3].0) = (at, at);
        },
    },
];

fn tell(story: &Story, telling: u64) -> Swarm {
    let mut swarm = swarm(&story.scenario);
    (swarm.seed, swarm.making.seed) = (telling, telling);
    (story.vary)(&mut swarm, telling);
    swarm
}

/// What a run says that must not be.
fn violation(swarm: Swarm, mutant: Option<StoreMutant>) -> Option<String> {
    let options = Options { mutant, ..Options::default() };
    match catch_unwind(AssertUnwindSafe(|| run(swarm, options))) {
        Ok(report) => report.violations.into_iter().next(),
        Err(panic) => Some(format!("a panic: {}", panic_text(&*panic))),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

/// The first of so many runs that says something, on all cores.
fn first(runs: u64, time: Duration, try_one: impl Fn(u64) -> Option<String> + Sync) -> (u64, Option<(u64, String)>) {
    let (next, found, begun) = (AtomicU64::new(0), Mutex::new(None::<(u64, String)>), Instant::now());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while found.lock().unwrap().is_none() && begun.elapsed() < time {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    if nth >= runs {
                        return;
                    }
                    if let Some(words) = try_one(nth) {
                        let mut found = found.lock().unwrap();
                        if found.as_ref().is_none_or(|(other, _)| *other > nth) {
                            *found = Some((nth, words));
                        }
                    }
                }
            });
        }
    });
    let tried = next.into_inner().min(runs);
    (tried, found.into_inner().unwrap())
}

/// What became of one fault.
struct Row {
    fault: Fault,
    /// Seeds that were tried, and the one that found it.
    seeds: u64,
    seed: Option<u64>,
    /// What found it and what it said; nothing where it survived.
    killed: Option<(String, String)>,
}

fn hunt(fault: Fault, time: Duration, broken: &mut BTreeMap<u64, String>) -> Row {
    let begun = Instant::now();
    let mut row = Row { fault, seeds: 0, seed: None, killed: None };
    while row.killed.is_none() {
        fault.plant();
        let left = time.saturating_sub(begun.elapsed());
        let (tried, found) =
            first(SEEDS - row.seeds, left, |nth| fault.run(Swarm::of(Seed::new(FROM + row.seeds + nth))));
        plant(None);
        let Some((nth, words)) = found else {
            row.seeds += tried;
            break;
        };
        let seed = FROM + row.seeds + nth;
        row.seeds += nth + 1;
        // What fails without the fault, too, says nothing of it.
        if let Some(words) = violation(Swarm::of(Seed::new(seed)), None) {
            broken.insert(seed, words);
        } else {
            (row.seed, row.killed) = (Some(seed), Some((format!("seed {seed}"), words)));
        }
    }
    if row.killed.is_none() {
        fault.plant();
        row.killed = directed(fault);
        plant(None);
    }
    row
}

/// What was made for this fault says.
fn directed(fault: Fault) -> Option<(String, String)> {
    for story in STORIES.iter().filter(|story| story.made_for.contains(&fault)) {
        let (_, found) = first(TELLINGS, TIME, |telling| fault.run(tell(story, telling)));
        if let Some((telling, words)) = found {
            return Some((format!("the story “{}”, telling {telling}", story.scenario.name), words));
        }
    }
    let Fault::Store(mutant) = fault else { return None };
    let (rule, kept) = rules::of(mutant, true)?;
    kept.err().map(|words| (format!("the rule “{rule}”"), words))
}

/// Without a fault the same stories and rules find nothing; nor do the seeds, which were asked at once.
fn nothing_without(broken: &mut BTreeMap<u64, String>) {
    for story in &STORIES {
        let (_, found) = first(TELLINGS, Duration::MAX, |telling| violation(tell(story, telling), None));
        if let Some((telling, words)) = found {
            broken.insert(telling, format!("{}: {words}", story.scenario.name));
        }
    }
    for mutant in StoreMutant::ALL {
        if let Some((rule, Err(words))) = rules::of(mutant, false) {
            broken.insert(mutant as u64, format!("{rule}: {words}"));
        }
    }
}

/// Short, in one cell of a table.
fn brief(words: &str) -> String {
    let mut brief = String::new();
    let mut hex = 0;
    for letter in words.chars() {
        hex = if letter.is_ascii_hexdigit() || hex == 1 && letter == 'x' { hex + 1 } else { 0 };
        match (hex, letter) {
            (12, _) => brief.push('…'),
            (13.., _) => {}
            (_, '|' | '\n' | '"') => brief.push(' '),
            _ => brief.push(letter),
        }
    }
    brief.chars().take(WORDS).collect()
}

fn table(rows: &[Row]) -> String {
    let mut table = "| mutant | in | fault | killed by | seeds | words |\n|---|---|---|---|---|---|\n".to_owned();
    for Row { fault, seeds, killed, .. } in rows {
        let (place, text) = fault.text();
        let (by, words) = killed.as_ref().map_or(("**nothing**", ""), |(by, words)| (by, words));
        let (name, words) = (fault.name(), brief(words));
        writeln!(table, "| {name} | {place} | {text} | {by} | {seeds} | {words} |").unwrap();
    }
    table
}

#[test]
fn every_planted_fault_is_found() {
    let begun = Instant::now();
    let only = std::env::var("MUTANT").ok();
    let seconds = std::env::var("MUTANT_SECONDS").ok().map(|seconds| Duration::from_secs(seconds.parse().unwrap()));
    let (mut rows, mut broken) = (vec![], BTreeMap::new());
    for fault in Fault::all().filter(|fault| only.as_ref().is_none_or(|only| fault.name() == *only)) {
        let hunting = Instant::now();
        let row = hunt(fault, seconds.unwrap_or(TIME), &mut broken);
        let by = row.killed.as_ref().map_or("nothing", |(by, _)| by);
        println!("{:?}: {by}, {} seeds, {:?}", row.fault, row.seeds, hunting.elapsed());
        rows.push(row);
    }
    nothing_without(&mut broken);
    println!("\n{}", table(&rows));
    let survivors: Vec<Fault> = rows.iter().filter(|row| row.killed.is_none()).map(|row| row.fault).collect();
    println!("{} mutants, {} killed, {:?}", rows.len(), rows.len() - survivors.len(), begun.elapsed());
    assert!(broken.is_empty(), "fails without any fault: {broken:#?}");
    assert!(survivors.is_empty(), "not found: {survivors:?}");
}

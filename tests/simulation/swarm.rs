//! What one seed is like: how the chain is made, how often which fault strikes, what happens in the world and when. Rates
//! are drawn per seed, each zero with probability one half, so that faults are also tried alone and in pairs.

use std::{num::ParseIntError, str::FromStr, time::Duration};

use chaintap::{domain::DeliveryMode, store::MAX_DONE_INTERVALS};

use crate::{
    chain::Making,
    faults::{CHAIN, Kind, Rates, SINK, STORE},
    random::Draw,
};

/// One seed.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is drawn by itself")]
pub struct Swarm {
    pub seed: u64,
    pub replicas: usize,
    pub block_time: Duration,
    pub making: Making,
    pub deliver: DeliveryMode,
    /// Blocks that are there before the first replica starts.
    pub length: u64,
    /// The first block to deliver.
    pub start: u64,
    pub batch_blocks: u64,
    /// Whether nodes push heads.
    pub pushes: bool,
    /// Whether what is final is compared with a second node.
    pub audits: bool,
    /// How often the list of tokens is read.
    pub token_refresh: Duration,
    /// Most messages that the sink takes in one call.
    pub sink_batch: usize,
    /// Of a thousand events, so many are refused by the sink for good.
    pub poison: u64,
    /// Whether the directory of tokens tells of changes.
    pub announces: bool,
    /// Share of the logs that nodes leave out, for a while or for good.
    pub omits: f64,
    /// Most pieces of delivered blocks that the store takes.
    pub most_pieces: usize,
    pub rates: Rates,
    /// Whether what happens after a long outage waits until it is over.
    pub waits_out: bool,
    /// What happens and when, in order.
    pub script: Vec<(Duration, Act)>,
    /// Chaos ends then, or after so many calls.
    pub chaos: Duration,
    pub calls: u64,
}

/// What happens in the world by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Mine(u64),
    /// So many blocks leave, so many come.
    Reorg {
        depth: u64,
        mined: u64,
    },
    FlipBack,
    Crash {
        replica: usize,
        down: Duration,
    },
    CrashAll {
        down: Duration,
        mined: u64,
    },
    Pause {
        replica: usize,
        for_: Duration,
    },
    /// The store's replica takes over, with what was acknowledged to a barrier at least.
    FailOver,
    /// A token joins or leaves the directory.
    Token,
    /// Every request of this kind of edge fails for a while.
    Outage {
        edge: u8,
        for_: Duration,
    },
    /// So many blocks leave that were final.
    Deep {
        below: u64,
    },
    /// An operator accepts that, where the store is frozen for it.
    Accept {
        again: bool,
    },
    /// An operator has delivered again what lies so far below the tip, so many blocks.
    Replay {
        back: u64,
        blocks: u64,
    },
    /// An operator leaves out the next missing blocks.
    Skip {
        blocks: u64,
    },
    /// The store's clock jumps.
    Clock {
        seconds: i64,
    },
}

/// A seed, and what seeds were made of when it was first tried: what is added later is not drawn for it, so that a seed
/// that failed once stays what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seed {
    pub number: u64,
    pub edition: u8,
}

/// What seeds are made of now.
const EDITION: u8 = 2;

impl Seed {
    pub const fn new(number: u64) -> Self {
        Self { number, edition: EDITION }
    }
}

impl FromStr for Seed {
    type Err = ParseIntError;

    /// `7`, or `7@1` for one of the first edition.
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let (number, edition) = text.split_once('@').unwrap_or((text, ""));
        let edition = if edition.is_empty() { EDITION } else { edition.parse()? };
        Ok(Self { number: number.parse()?, edition })
    }
}

impl Swarm {
    pub fn of(Seed { number: seed, edition }: Seed) -> Self {
        let mut draw = Draw::of(&[seed, 0x5A5A]);
        let draw = &mut draw;
        let block_time = Duration::from_secs([1, 2, 12, 12][draw.below(4) as usize]);
        let finality = [4, 6, 8, 12, 20][draw.below(5) as usize];
        let finalized = [None, Some(finality / 2), Some(finality), Some(finality * 2)][draw.below(4) as usize];
        let length = [1, 3, 10, 40, 150][draw.below(5) as usize];
        let start = if draw.chance(0.3) { 0 } else { draw.below(length) };
        let deliver = match draw.below(10) {
            0 => DeliveryMode::Safe,
            1 => DeliveryMode::Finalized,
            2 => DeliveryMode::Depth(draw.between(1, 5)),
            _ => DeliveryMode::Instant,
        };
        let chaos = Duration::from_secs(draw.between(60, 1_800));
        let mut swarm = Self {
            seed,
            replicas: draw.between(1, 3) as usize,
            block_time,
            making: Making {
                seed,
                finality,
                finalized,
                begins_final: false,
                empty: draw.fraction() * 0.7,
                density: [1, 2, 4, 12][draw.below(4) as usize],
            },
            deliver,
            length,
            start,
            batch_blocks: [1, 7, 20, 100][draw.below(4) as usize],
            pushes: draw.chance(0.6),
            audits: draw.chance(0.3),
            token_refresh: Duration::from_secs([30, 300][draw.below(2) as usize]),
            sink_batch: [1, 3, 10, 1_000][draw.below(4) as usize],
            poison: if draw.chance(0.3) { draw.between(1, 100) } else { 0 },
            announces: false,
            omits: 0.0,
            most_pieces: MAX_DONE_INTERVALS,
            rates: Rates::default(),
            waits_out: false,
            script: vec![],
            chaos,
            calls: draw.between(300, 1_500),
        };
        for (edge, kinds) in [(0, STORE), (1, CHAIN), (2, SINK)] {
            swarm.rates.of[edge] = kinds.iter().map(|kind| (*kind, rate(draw, *kind))).collect();
        }
        swarm.script = script(draw, &swarm);
        if edition >= 2 {
            swarm.second_edition(&mut Draw::of(&[seed, 0x5A5B]));
        }
        swarm
    }

    /// What the first edition did not have.
    fn second_edition(&mut self, draw: &mut Draw) {
        self.waits_out = true;
        self.making.begins_final = true;
        self.announces = draw.chance(0.5);
        self.omits = if draw.chance(0.5) { 0.0 } else { 0.2 * draw.fraction() * draw.fraction() };
        self.most_pieces = if draw.chance(0.5) { MAX_DONE_INTERVALS } else { draw.between(7, 12) as usize };
        let mut later = vec![];
        let mut at = |draw: &mut Draw, act: Act| later.push((self.chaos.mul_f64(draw.fraction()), act));
        if draw.chance(0.5) {
            for _ in 0..draw.between(1, 3) {
                let (back, blocks) = (draw.below(60), draw.between(1, 60));
                at(draw, Act::Replay { back, blocks });
            }
        }
        if draw.chance(0.5) {
            for _ in 0..draw.between(1, 3) {
                let blocks = draw.between(1, 10);
                at(draw, Act::Skip { blocks });
            }
        }
        if draw.chance(0.5) {
            for _ in 0..draw.between(1, 5) {
                // A clock that is set back lets claims of the dead live on for as long.
                let seconds = if draw.chance(0.5) { draw.between(1, 4_000) } else { draw.between(1, 240) };
                let seconds = if draw.chance(0.5) { seconds.cast_signed() } else { -seconds.min(240).cast_signed() };
                at(draw, Act::Clock { seconds });
            }
        }
        if draw.chance(0.1) {
            let below = draw.between(1, 3 * self.making.finality);
            at(draw, Act::Deep { below });
        }
        let accepted =
            |draw: &mut Draw, at: Duration| (at + draw.seconds(60, 1_200), Act::Accept { again: draw.chance(0.5) });
        let deep = later.iter().find(|(_, act)| matches!(act, Act::Deep { .. })).map(|(at, _)| *at);
        later.extend(deep.map(|at| accepted(draw, at)));
        self.script.extend(later);
        self.script.sort_by_key(|(at, _)| *at);
    }

    /// Neither faults nor anything else than new blocks.
    pub fn is_calm(&self) -> bool {
        self.poison == 0
            && self.omits == 0.0
            && self.rates.are_zero()
            && self.script.iter().all(|(_, act)| matches!(act, Act::Mine(_)))
    }
}

/// How often a kind of fault strikes a call.
fn rate(draw: &mut Draw, kind: Kind) -> f64 {
    let most = match kind {
        Kind::CrashBefore | Kind::CrashAfter => 0.01,
        Kind::Pause => 0.001,
        Kind::Hangs | Kind::Late | Kind::Fails | Kind::Lost => 0.08,
        _ => 0.15,
    };
    let share = draw.fraction();
    if draw.chance(0.5) { 0.0 } else { most * share * share }
}

/// What happens, until chaos ends.
fn script(draw: &mut Draw, swarm: &Swarm) -> Vec<(Duration, Act)> {
    // How often what happens, against a new block.
    let mut often = |share: f64| if draw.chance(0.5) { 0.0 } else { share * draw.fraction() };
    let rates = [
        (often(0.3), 0),  // a reorganisation
        (often(0.15), 1), // back to the former branch
        (often(0.05), 2), // a crash
        (often(0.02), 3), // a long outage of everything, and the chain went on
        (often(0.03), 4), // a pause
        (often(0.05), 5), // a fail-over of the store
        (often(0.05), 6), // the token list changes
        (often(0.05), 7), // a burst
        (often(0.03), 8), // an outage of one edge
        (often(0.03), 9), // the chain halts
    ];
    let mut acts = vec![];
    let mut now = Duration::ZERO;
    while now < swarm.chaos && acts.len() < 400 {
        now += swarm.block_time.mul_f64(0.5 + draw.fraction());
        let happens = rates.iter().find(|(rate, _)| draw.chance(*rate)).map(|(_, what)| *what);
        let replica = draw.below(swarm.replicas as u64) as usize;
        let act = match happens {
            Some(0) => {
                let depth = draw.between(1, swarm.making.finality - 1).min(draw.between(1, swarm.making.finality - 1));
                // A chain that only lost its last blocks is no other chain: that is a node that lags.
                Act::Reorg { depth, mined: (depth + draw.below(3) - 1).max(1) }
            }
            Some(1) => Act::FlipBack,
            Some(2) => Act::Crash { replica, down: draw.seconds(0, 90) },
            Some(3) => Act::CrashAll { down: draw.seconds(1, 100_000), mined: draw.between(0, 200) },
            Some(4) => Act::Pause { replica, for_: draw.seconds(1, 1_200) },
            Some(5) => Act::FailOver,
            Some(6) => Act::Token,
            Some(7) => Act::Mine(draw.between(6, 60)),
            Some(8) => Act::Outage { edge: draw.below(3) as u8, for_: draw.seconds(1, 400) },
            Some(_) => {
                now += draw.seconds(10, 200);
                continue;
            }
            None => Act::Mine(1),
        };
        acts.push((now, act));
    }
    acts
}

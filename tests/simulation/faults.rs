//! What may go wrong with one call of an edge: one draw decides, named by the replica, the operation and how often that
//! replica called it, so that a run without one of its faults is otherwise the same.

use std::{
    fmt,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;

use crate::{random::Draw, world::World};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The answer takes long, though less than anyone's limit.
    Slow,
    /// An error, and no effect.
    Fails,
    /// The effect, and an error.
    Lost,
    /// No answer within the limit, with or without effect.
    Hangs,
    /// No answer within the limit, and the effect some time after that.
    Late,
    /// The process dies before the effect, or after it and before it has the answer.
    CrashBefore,
    CrashAfter,
    /// The process stands still, for up to 20 minutes.
    Pause,
    /// The server wants fewer requests.
    Throttled,
    /// A node: wants less, does not have it yet, says null, is some blocks behind, is on a branch that was left, has
    /// lost what left the chain.
    TooLarge,
    Behind,
    Null,
    Lags,
    Stale,
    Orphaned,
    /// The sink: takes some of it, keeps some of it twice.
    Partial,
    Twice,
}

pub const STORE: &[Kind] =
    &[Kind::Slow, Kind::Fails, Kind::Lost, Kind::Hangs, Kind::Late, Kind::CrashBefore, Kind::CrashAfter, Kind::Pause];
pub const CHAIN: &[Kind] = &[
    Kind::Slow,
    Kind::Fails,
    Kind::Hangs,
    Kind::CrashBefore,
    Kind::Pause,
    Kind::Throttled,
    Kind::TooLarge,
    Kind::Behind,
    Kind::Null,
    Kind::Lags,
    Kind::Stale,
    Kind::Orphaned,
];
pub const SINK: &[Kind] = &[
    Kind::Slow,
    Kind::Fails,
    Kind::Lost,
    Kind::Hangs,
    Kind::Late,
    Kind::CrashBefore,
    Kind::CrashAfter,
    Kind::Pause,
    Kind::Throttled,
    Kind::Partial,
    Kind::Twice,
];

/// How often each kind strikes, by edge: store, chain, sink.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    pub of: [Vec<(Kind, f64)>; 3],
}

impl Rates {
    pub fn are_zero(&self) -> bool {
        self.of.iter().flatten().all(|(_, rate)| *rate == 0.0)
    }
}

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Init,
    Snapshot,
    Heartbeat,
    Claim,
    Renew,
    Release,
    Retire,
    Intent,
    Journaled,
    Journal,
    Commit,
    CommitFinal,
    Seal,
    Orphans,
    Rewind,
    Retracted,
    Amend,
    Published,
    Publish,
    Duty,
    Scanned,
    Bury,
    Letters,
    Exhume,
    Header,
    BlockLogs,
    RangeLogs,
    Opinion,
    Witnesses,
    Heads,
    Send,
    Tokens,
    /// No call: an act of the world.
    World,
}

impl Op {
    pub fn edge(self) -> usize {
        match self {
            Self::Header | Self::BlockLogs | Self::RangeLogs | Self::Opinion | Self::Witnesses | Self::Heads => 1,
            Self::Send => 2,
            _ => 0,
        }
    }
}

/// The name of a fault, or of an act of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub replica: usize,
    pub op: Op,
    pub nth: u64,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:?}#{}", self.replica, self.op, self.nth)
    }
}

/// What becomes of one call.
#[derive(Clone, Debug)]
pub struct Strike {
    pub kind: Option<Kind>,
    /// For what has to be drawn besides.
    pub draw: Draw,
}

impl Strike {
    pub fn is(&self, kind: Kind) -> bool {
        self.kind == Some(kind)
    }
}

/// Decides by the rates of the edge.
pub fn strike(rates: &Rates, seed: u64, name: Name) -> Strike {
    let mut draw = Draw::of(&[seed, name.replica as u64, name.op as u64, name.nth]);
    let mut point = draw.fraction();
    let kind = rates.of[name.op.edge()].iter().find(|(_, rate)| {
        point -= rate;
        point < 0.0
    });
    Strike { kind: kind.map(|(kind, _)| *kind), draw }
}

/// One life of one replica: all of its calls pass here.
pub struct Gate {
    pub world: Arc<World>,
    pub replica: usize,
    pub life: u64,
    alive: AtomicBool,
    /// The list of tokens was read since calm began.
    listed: AtomicBool,
}

impl Gate {
    pub fn new(world: Arc<World>, replica: usize, life: u64) -> Self {
        Self { world, replica, life, alive: AtomicBool::new(true), listed: AtomicBool::new(false) }
    }

    pub fn has_read_in_calm(&self) {
        self.listed.store(true, Ordering::Relaxed);
    }

    /// Whether what this life filters with is not older than calm.
    pub fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Relaxed)
    }

    /// From now on nothing that this life does has any effect.
    pub fn die(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }

    /// Before the effect: waits as long as the call takes to get there.
    pub async fn enter(&self, op: Op, key: u64) -> Strike {
        self.breathe().await;
        let mut strike = self.world.strike(self, op, key);
        match strike.kind {
            Some(Kind::Slow) => sleep(strike.draw.millis(10, 4_000)).await,
            Some(Kind::CrashBefore) => self.crash(op).await,
            Some(Kind::Pause) => self.world.pause(self.replica, strike.draw.seconds(1, 1_200)),
            _ if op.edge() == 0 => {}
            _ => sleep(strike.draw.millis(1, 30)).await,
        }
        self.breathe().await;
        strike
    }

    /// After the effect: waits as long as the answer takes to get back.
    pub async fn leave(&self, op: Op, strike: &mut Strike) {
        if strike.is(Kind::CrashAfter) {
            self.crash(op).await;
        }
        if strike.draw.chance(0.3) {
            sleep(strike.draw.millis(1, 3)).await;
        }
        self.breathe().await;
    }

    /// The answer does not come within the limit.
    pub async fn time_out(&self, limit: Duration) {
        sleep(limit).await;
        self.breathe().await;
    }

    /// The dead never return, and who is paused returns late.
    pub async fn breathe(&self) {
        loop {
            if !self.alive.load(Ordering::Relaxed) {
                pending::<()>().await;
            }
            let wait = self.world.pause_left(self.replica);
            if wait.is_zero() {
                return;
            }
            sleep(wait.min(Duration::from_secs(5))).await;
        }
    }

    async fn crash(&self, op: Op) {
        if matches!(op, Op::Send | Op::Commit | Op::CommitFinal) {
            self.world.saw("crash between acknowledgement and commit");
        }
        self.die();
        self.world.crashed(self.replica, self.life);
        pending::<()>().await;
    }
}

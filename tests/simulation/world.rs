//! What all replicas share: the chain, what the judge saw, the faults that strike, and the record of a run.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use alloy::primitives::Address;
use chaintap::domain::{RawLog, Token};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};

use crate::{
    chain::{GENESIS_TIME, TOKENS, Tree, address},
    faults::{Gate, Kind, Name, Op, Strike, strike},
    oracle::Oracle,
    random::{Draw, mix},
    support::model_store::StoreMutant,
    swarm::Swarm,
};

/// More replicas than this are never simulated.
const MOST_REPLICAS: usize = 3;

/// What a run is asked for beside its seed.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Every call is written down.
    pub trace: bool,
    /// Only these faults and acts happen.
    pub only: Option<BTreeSet<Name>>,
    /// The process that makes this call dies at it, with or without effect.
    pub crash_at: Option<(u64, bool)>,
    /// The store has this fault.
    pub mutant: Option<StoreMutant>,
}

/// What happened in a run.
#[derive(Default)]
pub struct Record {
    pub hash: u64,
    pub calls: u64,
    pub lines: Vec<String>,
    pub struck: Vec<Name>,
    nth: [[u64; Op::World as usize]; MOST_REPLICAS],
}

/// A moment that may lie ahead. Where it never did, nobody has to look at the clock.
#[derive(Default)]
struct Until(Mutex<Option<Instant>>);

impl Until {
    fn set(&self, at: Option<Instant>) {
        *self.0.lock().unwrap() = at;
    }

    /// How long it is until then; nothing once it is past.
    fn wait(&self) -> Duration {
        let mut at = self.0.lock().unwrap();
        let wait = at.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        at.take_if(|_| wait.is_zero());
        wait
    }
}

/// All that replicas share but the store.
pub struct World {
    pub swarm: Swarm,
    pub options: Options,
    pub tree: Mutex<Tree>,
    pub oracle: Mutex<Oracle>,
    pub record: Mutex<Record>,
    pub sometimes: Mutex<BTreeMap<&'static str, u64>>,
    pub directory: watch::Sender<BTreeSet<Address>>,
    pub sockets: Mutex<Vec<mpsc::Sender<()>>>,
    /// Who is told that the directory changed.
    listeners: Mutex<Vec<Arc<Notify>>>,
    /// Effects on the store and messages that are still on their way.
    pub late: [AtomicU64; 2],
    /// Messages that were handed over and taken.
    sent: AtomicU64,
    /// Until when a process stands still or an edge is out: asked of every call, and mostly not at all.
    paused: [Until; MOST_REPLICAS],
    outages: [Until; 3],
    crashes: mpsc::UnboundedSender<(usize, u64)>,
    calm: AtomicBool,
    began: Instant,
}

/// All tokens of the chain.
pub fn tokens() -> &'static BTreeMap<Address, Token> {
    static ALL: OnceLock<BTreeMap<Address, Token>> = OnceLock::new();
    let token = |n: u8| {
        let token =
            Token { address: address(n), symbol: format!("T{n}"), name: format!("Token {n}"), decimals: n.min(18) };
        (token.address, token)
    };
    ALL.get_or_init(|| (0..TOKENS).map(token).collect())
}

impl World {
    /// A world at its beginning; crashes of replicas are told to the receiver.
    pub fn new(swarm: Swarm, options: Options) -> (Self, mpsc::UnboundedReceiver<(usize, u64)>) {
        let (crashes, told) = mpsc::unbounded_channel();
        let now = Instant::now();
        let tracked: BTreeSet<Address> = (0..TOKENS * 2 / 3).map(address).collect();
        let mut tree = Tree::new(swarm.making.clone(), swarm.length.min(swarm.start + 1).max(1));
        while tree.height() + 1 < swarm.length {
            tree.mine(0, None);
        }
        let world = Self {
            tree: Mutex::new(tree),
            oracle: Mutex::new(Oracle::new(swarm.start, tracked.clone())),
            record: Mutex::default(),
            sometimes: Mutex::default(),
            directory: watch::channel(tracked).0,
            sockets: Mutex::default(),
            listeners: Mutex::default(),
            late: Default::default(),
            sent: AtomicU64::new(0),
            paused: Default::default(),
            outages: Default::default(),
            crashes,
            calm: AtomicBool::new(false),
            began: now,
            swarm,
            options,
        };
        (world, told)
    }

    pub fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap()
    }

    pub fn oracle(&self) -> MutexGuard<'_, Oracle> {
        self.oracle.lock().unwrap()
    }

    /// Something happened that a long run must have seen.
    pub fn saw(&self, what: &'static str) {
        *self.sometimes.lock().unwrap().entry(what).or_default() += 1;
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Whether nodes leave this log out of their answers now: half of such logs for good, the others for some minutes.
    pub fn leaves_out(&self, log: &RawLog) -> bool {
        if self.swarm.omits == 0.0 {
            return false;
        }
        let mut draw = Draw::of(&[
            self.swarm.seed,
            0x0417,
            u64::from_be_bytes(log.block.hash[..8].try_into().unwrap()),
            log.log_index,
        ]);
        if !draw.chance(self.swarm.omits) {
            return false;
        }
        let age = (GENESIS_TIME + self.elapsed().as_secs()).saturating_sub(log.timestamp);
        let leaves_out = draw.chance(0.5) || age < draw.between(1, 300);
        if leaves_out {
            self.saw("a log left out");
        }
        leaves_out
    }

    /// From now on nothing goes wrong.
    pub fn calm_down(&self) {
        self.calm.store(true, Ordering::Relaxed);
        self.paused.iter().chain(&self.outages).for_each(|until| until.set(None));
    }

    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    pub fn calls(&self) -> u64 {
        self.record.lock().unwrap().calls
    }

    pub fn pause(&self, replica: usize, for_: Duration) {
        self.saw("a process stands still");
        let paused = &self.paused[replica];
        paused.set(Some(Instant::now() + for_.max(paused.wait())));
    }

    /// How long the replica's process still stands still.
    pub fn pause_left(&self, replica: usize) -> Duration {
        self.paused[replica].wait()
    }

    pub fn outage(&self, edge: u8, for_: Duration) {
        self.outages[usize::from(edge)].set(Some(Instant::now() + for_));
    }

    pub fn crashed(&self, replica: usize, life: u64) {
        self.crashes.send((replica, life)).unwrap_or_default();
    }

    pub fn sends(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// How many messages were handed over and taken.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Who is woken when the directory of tokens changed.
    pub fn listen(&self) -> Arc<Notify> {
        let listener = Arc::new(Notify::new());
        self.listeners.lock().unwrap().push(listener.clone());
        listener
    }

    /// Tells everyone that the directory changed.
    pub fn announce(&self) {
        self.listeners.lock().unwrap().iter().for_each(|listener| listener.notify_one());
    }

    /// Wakes everyone who listens for heads.
    pub fn new_head(&self) {
        self.sockets
            .lock()
            .unwrap()
            .retain(|socket| !matches!(socket.try_send(()), Err(mpsc::error::TrySendError::Closed(()))));
    }

    /// Whether this act or fault may happen in this run; it is written down if so.
    pub fn allows(&self, name: Name) -> bool {
        let allowed = self.options.only.as_ref().is_none_or(|only| only.contains(&name));
        if allowed {
            self.record.lock().unwrap().struck.push(name);
        }
        allowed
    }

    /// What becomes of a call.
    pub fn strike(&self, gate: &Gate, op: Op, key: u64) -> Strike {
        let (nth, call) = {
            let mut record = self.record.lock().unwrap();
            record.calls += 1;
            let call = record.calls;
            let nth = &mut record.nth[gate.replica][op as usize];
            *nth += 1;
            (*nth, call)
        };
        let name = Name { replica: gate.replica, op, nth };
        let mut strike = strike(&self.swarm.rates, self.swarm.seed, name);
        if strike.kind.is_some() && (self.is_calm() || !self.allows(name)) {
            strike.kind = None;
        }
        if !self.outages[op.edge()].wait().is_zero() {
            strike.kind = Some(Kind::Fails);
        }
        if let Some((at, effect)) = self.options.crash_at
            && at == call
        {
            strike.kind = Some(if effect { Kind::CrashAfter } else { Kind::CrashBefore });
        }
        self.note([gate.replica as u64, op as u64, key, strike.kind.map_or(99, |kind| kind as u64)], || {
            let kind = strike.kind.map(|kind| format!(" {kind:?}")).unwrap_or_default();
            format!("{name} (life {}) {key}{kind}", gate.life)
        });
        strike
    }

    /// Adds to the trace.
    pub fn note(&self, what: [u64; 4], text: impl FnOnce() -> String) {
        let elapsed = self.elapsed();
        let mut record = self.record.lock().unwrap();
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or_default();
        record.hash = what.iter().fold(mix(record.hash ^ millis), |hash, part| mix(hash ^ part).rotate_left(7));
        if self.options.trace {
            let line = format!("{:>10.3} {}", elapsed.as_secs_f64(), text());
            record.lines.push(line);
        }
    }

    /// Chance for what belongs to no replica.
    pub fn draw(&self, what: u64) -> Draw {
        Draw::of(&[self.swarm.seed, 0xDEAD, what])
    }
}

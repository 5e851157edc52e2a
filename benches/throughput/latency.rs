//! New blocks: from the moment their head is sent to the moment the sink has their last event, less what the node
//! needed for its answers. Each turn is a process of its own, which is node, sink and clock at once.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;

use crate::{
    arrivals::Arrivals,
    chain::{Chain, FIRST, Shape, hash},
    growing::Node,
    history::TURNS,
    listening::{Listener, Settings},
    measured::this,
    report::{Figure, Plot, Section},
    servers::Redis,
    stub::Stub,
};

/// Transfers of a block.
const LOGS: usize = 100;
/// Blocks of a turn, and those before them, in which connections are opened.
const BLOCKS: u64 = 60;
const WARM_UP: u64 = 5;
/// Milliseconds between the end of one block and the next head: of no common measure with any clock of the listener.
const PAUSE: std::ops::Range<u64> = 30..70;
/// Blocks of history: more than anyone downloads during a turn.
const HISTORY: u64 = 400_000;
/// Requests for history at once, to begin with; the listener asks for up to four times as many.
const PARALLEL: usize = 1;
/// What is asked, milliseconds.
const MEDIAN: f64 = 4.0;
const LATE: f64 = 15.0;
const TIMES: f64 = 1.5;

/// Where the state is, how sure of it the listener has to be, where messages go, and what goes on beside.
#[derive(Clone, Copy)]
struct Scene {
    name: &'static str,
    what: &'static str,
    durability: &'static str,
    to_queue: bool,
    history: bool,
    turns: usize,
}

const ALONE: Scene = Scene {
    name: "alone",
    what: "Redis without a barrier, to standard output",
    durability: "none",
    to_queue: false,
    history: false,
    turns: TURNS,
};
const BESIDE: Scene =
    Scene { name: "beside", what: "the same, history at full speed beside it", history: true, ..ALONE };
const QUEUE: Scene =
    Scene { name: "queue", what: "without a barrier, to a queue that only acknowledges", to_queue: true, ..ALONE };
const WAIT: Scene =
    Scene { name: "wait", what: "WAIT for one replica, to standard output", durability: "auto", ..ALONE };
const WAITAOF: Scene = Scene {
    name: "waitaof",
    what: "WAITAOF, append-only file synced every second, to standard output",
    durability: "required",
    turns: 1,
    ..ALONE
};
const SCENES: [Scene; 5] = [ALONE, BESIDE, QUEUE, WAIT, WAITAOF];

/// One turn of a scene: prints milliseconds, a line for each block.
pub fn role(arguments: &[&str]) -> bool {
    let ["latency", name] = arguments else { return false };
    let scene = SCENES.iter().find(|scene| scene.name == *name).unwrap();
    scene.play().iter().for_each(|sample| println!("{sample}"));
    true
}

impl Scene {
    /// Milliseconds of each block.
    fn play(self) -> Vec<f64> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let chain = self.history.then(|| Chain::new(Shape::Even));
        let node = Node::start(&runtime, chain, HISTORY);
        let first = if self.history { FIRST } else { node.head() + 1 };
        let aof: &[&str] = if self.durability == "required" { &["--appendonly", "yes"] } else { &[] };
        let redis = Redis::start(aof);
        let _replica = (self.durability == "auto").then(|| redis.replica());
        let settings = Settings::new(&node.provider(), PARALLEL, "12s")
            .set("START_BLOCK", &first.to_string())
            .set("REDIS_URL", &redis.url())
            .set("DURABILITY", self.durability);
        let (listener, arrivals) = if self.to_queue {
            into_queue(&runtime, &node, settings)
        } else {
            let (listener, output) = settings.start();
            (listener, Arrivals::reading(output, LOGS))
        };
        node.wait_until_followed_by(1);
        let samples = (0..WARM_UP + BLOCKS).map(|_| {
            std::thread::sleep(Duration::from_millis(fastrand::u64(PAUSE)));
            let (block, sent) = node.grow(LOGS);
            let came = arrivals.of(block);
            (came - sent).saturating_sub(node.spent(sent, came)).as_secs_f64() * 1e3
        });
        let samples: Vec<f64> = samples.skip(WARM_UP.try_into().unwrap()).collect();
        assert!(!self.history || node.has_history_left(), "history was over before the end");
        drop(listener);
        arrivals.check(WARM_UP + BLOCKS);
        samples
    }

    /// Milliseconds of each block of all turns so far, and of one turn more.
    fn turn(self, samples: &mut Vec<f64>) {
        let output = this().args(["latency", self.name]).output().unwrap();
        let (told, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: {errors}", self.name);
        samples.extend(told.lines().map(|line| line.parse::<f64>().unwrap()));
    }
}

/// A listener that sends to a stub, which notes when it has what.
fn into_queue(runtime: &Runtime, node: &Node, settings: Settings) -> (Listener, Arc<Arrivals>) {
    let first = node.head() + 1;
    let numbers: HashMap<String, u64> =
        (first..first + WARM_UP + BLOCKS).map(|number| (hash(number).to_string(), number)).collect();
    let arrivals = Arrivals::new(LOGS);
    let noted = Arc::clone(&arrivals);
    let stub = Stub::start(runtime, move |ids| {
        let at = Instant::now();
        ids.iter().for_each(|id| noted.note(numbers[id.split(':').nth(1).unwrap()], at));
    });
    let (listener, _) = settings.queue(&stub.endpoint(), &stub.queue()).start();
    (listener, arrivals)
}

/// Of a share of the samples none was later.
fn within(samples: &[f64], share: f64) -> f64 {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    samples[(samples.len() as f64 * share).ceil() as usize - 1]
}

/// Measures all scenes, turn by turn.
pub fn measure() -> Section {
    let mut samples: [Vec<f64>; SCENES.len()] = Default::default();
    for turn in 0..TURNS {
        for (scene, samples) in SCENES.iter().zip(&mut samples).filter(|(scene, _)| turn < scene.turns) {
            scene.turn(samples);
        }
    }
    let both: Vec<[f64; 2]> = samples.iter().map(|all| [0.5, 0.99].map(|share| within(all, share))).collect();
    let figures = SCENES.iter().zip(&both).zip(&samples).map(|((scene, [median, late]), samples)| {
        let is_asked = [ALONE.name, BESIDE.name].contains(&scene.name);
        Figure {
            what: format!("{}: median, 99th percentile", scene.what),
            measured: format!("{median:.1} ms, {late:.1} ms ({} blocks)", samples.len()),
            asked: if is_asked { format!("≤ {MEDIAN} ms, ≤ {LATE} ms") } else { String::new() },
            met: is_asked.then_some(*median <= MEDIAN && *late <= LATE),
        }
    });
    let times = both[1][0] / both[0][0];
    let beside = Figure {
        what: "median with history beside it".into(),
        measured: format!("{times:.2} × that without"),
        asked: format!("≤ {TIMES} ×"),
        met: Some(times <= TIMES),
    };
    let bars = SCENES.iter().zip(&both).map(|(scene, [median, _])| (format!("chaintap, {}", scene.name), *median));
    Section {
        title: "New blocks".into(),
        says: format!(
            "Blocks of {LOGS} transfers, told over a WebSocket, each some {} ms after the one before was delivered. From the \
             sending of the head to the last event's arrival at the sink, less the time in which the node worked on its \
             answers. {BLOCKS} blocks a turn behind {WARM_UP} that are not counted, {TURNS} turns ({} with WAITAOF), state \
             in Redis {}. Each block arrived whole and once.",
            u64::midpoint(PAUSE.start, PAUSE.end),
            WAITAOF.turns,
            Redis::start(&[]).info("redis_version"),
        ),
        figures: figures.chain([beside]).collect(),
        plot: Some(Plot { file: "latency.svg".into(), unit: "ms".into(), bars: bars.collect() }),
    }
}

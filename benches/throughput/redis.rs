//! What the state costs in Redis: round trips, by the names of the scripts, memory, and the longest command.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use alloy::primitives::{B256, U256};
use chaintap::{
    config::{Durability, SecretUrl},
    domain::{BlockRange, Track},
    store::{ClaimReply, CommitReply, FinalCommit, Start, StateStore as _, redis::Identity, redis::RedisStore},
};
use tokio::task::JoinSet;

use crate::{
    arrivals::Arrivals,
    block_on,
    chain::FIRST,
    growing::Node,
    listening::Settings,
    measured::{self, Server},
    report::{Figure, Section, count},
    servers::Redis,
};

/// Events of a new block: as many as one part of the journal holds.
const LOGS: usize = 1_000;
/// New blocks that are counted, behind some that are not.
const BLOCKS: u64 = 50;
const WARM_UP: u64 = 5;
const PAUSE: Duration = Duration::from_millis(100);
/// Batches of a short history and of a long one, and blocks of each: what the long one costs more is the batches' alone.
const BATCHES: [u64; 2] = [20, 120];
const BATCH: u64 = 100;
/// History whose state is made in Redis, and claims at once.
const SIMULATED: u64 = 10_000_000;
const AT_ONCE: usize = 8;
/// What has its own rhythm, and is not of any block.
const APART: [&str; 7] = ["heartbeat", "INFO", "renew", "duty", "dead_letters", "seal", "journal"];
/// Round trips of a new block that are asked for: claim, intent, commit.
const A_BLOCK: f64 = 3.0;
/// Of a batch of history: claim, commit, and less than one more for what is done about once a second.
const A_BATCH: f64 = 3.0;

/// Commands by name, of scripts the name of the script, as MONITOR tells them.
struct Watch(Arc<Mutex<Counts>>);

impl Watch {
    fn start(server: &Redis) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        stream.write_all(b"MONITOR\r\n").unwrap();
        let mut lines = BufReader::new(stream);
        lines.read_line(&mut String::new()).unwrap();
        let (counts, scripts) = (Arc::<Mutex<Counts>>::default(), scripts());
        let watched = Arc::clone(&counts);
        std::thread::spawn(move || {
            // Ends with the server.
            for line in lines.split(b'\n').map_while(Result::ok) {
                // +1700000000.123456 [0 127.0.0.1:40000] "EVALSHA" "da39…" …
                let line = String::from_utf8_lossy(&line);
                let Some((client, command)) = line.split_once("] ") else { continue };
                let mut words = command.trim().split(' ').map(|word| word.trim_matches('"'));
                let (verb, argument) = (words.next().unwrap(), words.next().unwrap_or_default());
                // What a script does is part of its round trip.
                if !client.ends_with("lua") {
                    let name = scripts.get(argument).map_or(verb, String::as_str).to_owned();
                    *watched.lock().unwrap().entry(name).or_default() += 1;
                }
            }
        });
        Self(counts)
    }

    /// What came since this was asked last.
    fn take(&self) -> Counts {
        // What was sent before is told soon.
        std::thread::sleep(PAUSE);
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Redis {
    /// The names of the commands in its SLOWLOG, at most the newest thousand.
    fn slow(&self) -> Vec<String> {
        // Number, time, microseconds, arguments, address and name of the client.
        type Entry = (u64, u64, u64, Vec<Vec<u8>>, String, String);
        let scripts = scripts();
        let name = |(_, _, _, words, ..): Entry| {
            let mut words = words.iter().map(|word| String::from_utf8_lossy(word).into_owned());
            let verb = words.next().unwrap();
            words.next().and_then(|hash| scripts.get(&hash).cloned()).unwrap_or(verb)
        };
        self.ask::<Vec<Entry>>("SLOWLOG GET 1000").into_iter().map(name).collect()
    }
}

/// Names of the scripts, by the hash that EVALSHA calls them by.
fn scripts() -> BTreeMap<String, String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/scripts");
    let prelude = std::fs::read_to_string(directory.join("_lib.lua")).unwrap();
    let files = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let hash = |path: &Path| {
        let code = format!("{prelude}{}", std::fs::read_to_string(path).unwrap());
        redis::Script::new(&code).get_hash().to_owned()
    };
    files.map(|path| (hash(&path), path.file_stem().unwrap().to_str().unwrap().to_owned())).collect()
}

type Counts = BTreeMap<String, u64>;

/// Round trips of one of so many, those that belong to it and those apart.
fn each(counts: &Counts, of: u64) -> (f64, String) {
    let per = |count: u64| count as f64 / of as f64;
    let (apart, own): (Vec<_>, Vec<_>) = counts.iter().partition(|(name, _)| APART.contains(&name.as_str()));
    let told = |counts: &[(&String, &u64)]| {
        counts.iter().map(|(name, count)| format!("{name} {:.2}", per(**count))).collect::<Vec<_>>().join(", ")
    };
    (own.iter().map(|(_, count)| per(**count)).sum(), format!("{}; apart: {}", told(&own), told(&apart)))
}

/// Round trips of some work, which is done with each of two servers, and the commands above 10 ms: these of a server that
/// nobody watches, for MONITOR writes out every byte of every command, and a script waits for that.
fn watched_and_alone(work: impl Fn(&Redis, Option<Watch>) -> Counts) -> (Counts, Vec<String>) {
    let (watched, alone) = (Redis::start(&[]), Redis::start(&[]));
    let counts = work(&watched, Some(Watch::start(&watched)));
    work(&alone, None);
    (counts, alone.slow())
}

/// Round trips of new blocks.
fn new_blocks(redis: &Redis, watch: Option<Watch>) -> Counts {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let node = Node::start(&runtime, None, 1);
    let settings = Settings::new(&node.provider(), 1, "12s").set("START_BLOCK", &(node.head() + 1).to_string());
    let (_listener, output) = settings.set("REDIS_URL", &redis.url()).set("DURABILITY", "none").start();
    let arrivals = Arrivals::reading(output, LOGS);
    node.wait_until_followed_by(1);
    for block in 0..WARM_UP + BLOCKS {
        if let Some(watch) = watch.as_ref().filter(|_| block == WARM_UP) {
            watch.take();
        }
        let (block, _) = node.grow(LOGS);
        arrivals.of(block);
        std::thread::sleep(PAUSE);
    }
    watch.map(|watch| watch.take()).unwrap_or_default()
}

/// Round trips of history.
fn history(batches: u64, redis: &Redis, watch: Option<Watch>) -> Counts {
    let blocks = batches * BATCH;
    let mut node = Server::start(&["node", &blocks.to_string(), "0", "even"]);
    let truth: u64 = node.ask("all").split(' ').next().unwrap().parse().unwrap();
    let settings = Settings::new(&format!("http://{}/", node.address), 1, "12s").set("REDIS_URL", &redis.url());
    let until = (FIRST + blocks - 1).to_string();
    let run = measured::run(settings.command().args(["--until", &until]), measured::lines);
    assert_eq!(run.count, truth);
    watch.map(|watch| watch.take()).unwrap_or_default()
}

/// The state of a long history, made by the store's own operations: claim and commit of every batch, in the order in
/// which they come to be finished.
async fn simulate(redis: &Redis) {
    let identity = Identity { chain_id: 1, redis_db: 0, service: "bench".into(), owner: "bench:1".into() };
    let url = SecretUrl::parse(&redis.url()).unwrap();
    let store = Arc::new(RedisStore::connect(&url, identity, Durability::None).await.unwrap());
    store.init(Start::At(0)).await.unwrap();
    let next = Arc::new(AtomicU64::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (store, next) = (Arc::clone(&store), Arc::clone(&next));
        workers.spawn(async move {
            loop {
                let from = next.fetch_add(BATCH, Ordering::Relaxed);
                if from >= SIMULATED {
                    return;
                }
                deliver(&store, BlockRange { from, to: from + BATCH - 1 }).await;
            }
        });
    }
    workers.join_all().await;
    assert_eq!(store.snapshot().await.unwrap().progress.watermark, i64::try_from(SIMULATED).unwrap() - 1);
}

async fn deliver(store: &RedisStore, range: BlockRange) {
    let hash = |number: u64| B256::from(U256::from(number));
    let ClaimReply::Granted(grant) = store.claim(range).await.unwrap() else { panic!("{range} is not granted") };
    let commit = FinalCommit {
        range,
        epoch: grant.epoch,
        sealed: grant.sealed,
        parent: hash(range.from),
        hash: hash(range.to + 1),
        confirmed: Vec::new(),
        filter_version: grant.filter_version,
    };
    let committed = store.commit_final(commit, Track::Historical).await.unwrap();
    assert!(matches!(committed, CommitReply::Committed { .. }), "{range}: {committed:?}");
}

/// How often each name is among them.
fn summary(names: &[String]) -> String {
    let told = names.chunk_by(PartialEq::eq).map(|same| format!("{} {}", same[0], same.len()));
    told.collect::<Vec<_>>().join(", ")
}

/// Measures it.
pub fn measure() -> Section {
    let (new, mut slow) = watched_and_alone(new_blocks);
    let [(short, slow_short), (mut long, slow_long)] =
        BATCHES.map(|batches| watched_and_alone(|redis, watch| history(batches, redis, watch)));
    for (name, count) in &short {
        let more = long.entry(name.clone()).or_default();
        *more = more.saturating_sub(*count);
    }
    long.retain(|_, count| *count > 0);
    let redis = Redis::start(&[]);
    let begun = Instant::now();
    block_on(simulate(&redis));
    let seconds = begun.elapsed().as_secs_f64();
    slow.extend([slow_short, slow_long, redis.slow()].concat());
    slow.sort();
    let usual: String = redis.ask("INFO latencystats");
    let usual = usual.lines().find_map(|line| line.strip_prefix("latency_percentiles_usec_evalsha:")).unwrap();
    let peak = redis.info("used_memory_peak").trim().parse::<f64>().unwrap() / 1e6;
    let (a_block, told_new) = each(&new, BLOCKS);
    let (a_batch, told_old) = each(&long, BATCHES[1] - BATCHES[0]);
    Section {
        title: "Redis".into(),
        says: format!(
            "Redis {}. Round trips as MONITOR told them: of {BLOCKS} new blocks of {LOGS} events, and of {} batches of \
             {BATCH} blocks of history (what {} cost more than {}). Memory after the claims and commits of {} blocks of history, made by the \
             store's own operations, {AT_ONCE} at once ({seconds:.0} s). Commands above 10 ms are those in the \
             SLOWLOGs of the same work with nobody watching, by wall time: one that reads a single key is there because Redis \
             had to wait for a core. The state is read (snapshot) about once a second.",
            redis.info("redis_version"),
            BATCHES[1] - BATCHES[0],
            BATCHES[1],
            BATCHES[0],
            count(SIMULATED),
        ),
        figures: vec![
            Figure {
                what: format!("round trips a new block of {LOGS} events"),
                measured: format!("{a_block:.2} ({told_new})"),
                asked: "3: claim, intent, commit; heartbeat and renew apart".into(),
                met: Some(a_block.round() <= A_BLOCK),
            },
            Figure {
                what: "round trips a batch of history".into(),
                measured: format!("{a_batch:.2} ({told_old})"),
                asked: "as many, however long the history".into(),
                met: Some(a_batch <= A_BATCH),
            },
            Figure {
                what: format!("memory after {} blocks of history", count(SIMULATED)),
                measured: format!("{peak:.1} MB (used_memory_peak)"),
                asked: "≤ 64 MB".into(),
                met: Some(peak <= 64.0),
            },
            Figure::told("a claim or commit of these, microseconds", usual.replace(',', ", ")),
            Figure {
                what: "commands above 10 ms".into(),
                measured: if slow.is_empty() { "none".into() } else { format!("{}: {}", slow.len(), summary(&slow)) },
                asked: "none".into(),
                met: Some(slow.is_empty()),
            },
        ],
        plot: None,
    }
}

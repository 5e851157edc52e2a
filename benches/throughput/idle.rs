//! A listener that has nothing to do but to follow: processor time and memory on a chain of 2 s blocks.

use std::time::{Duration, Instant};

use crate::{
    arrivals::Arrivals,
    growing::Node,
    listening::Settings,
    report::{Figure, Section},
    servers::Redis,
};

/// Transfers of a block.
const LOGS: usize = 100;
const BLOCK_TIME: Duration = Duration::from_secs(2);
/// Blocks before the listener counts as idle, and those of the minute that is measured.
const WARM_UP: u32 = 5;
const BLOCKS: u32 = 30;

/// Measures a listener with Redis and one with the embedded store, both at once: they have next to nothing to do.
pub fn measure() -> Section {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (redis, node) = (Redis::start(&[]), Node::start(&runtime, None, 1));
    let started = [Some(redis.url()), None].map(|redis| {
        let settings = Settings::new(&node.provider(), 1, "2s").set("START_BLOCK", &(node.head() + 1).to_string());
        let settings = redis.iter().fold(settings, |settings, url| settings.set("REDIS_URL", url));
        let (listener, output) = settings.set("LOG_LEVEL", "info").start();
        (listener, Arrivals::reading(output, LOGS))
    });
    node.wait_until_followed_by(started.len());
    let mut before = [(0.0, 0); 2];
    let mut since = Instant::now();
    for block in 0..WARM_UP + BLOCKS {
        if block == WARM_UP {
            before = started.each_ref().map(|(listener, _)| listener.used());
            since = Instant::now();
        }
        let next = Instant::now() + BLOCK_TIME;
        let (number, _) = node.grow(LOGS);
        for (_, arrivals) in &started {
            arrivals.of(number);
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let seconds = since.elapsed().as_secs_f64();
    let mut figures = Vec::new();
    for (((listener, arrivals), before), store) in started.into_iter().zip(before).zip(["Redis", "the embedded store"])
    {
        let (cpu, peak) = listener.used();
        drop(listener);
        arrivals.check(u64::from(WARM_UP + BLOCKS));
        let (share, peak) = ((cpu - before.0) / seconds * 100.0, peak as f64 / 1_048_576.0);
        figures.push(Figure {
            what: format!("with {store}: processor time"),
            measured: format!("{share:.2} % of a core"),
            asked: "≤ 1 %".into(),
            met: Some(share <= 1.0),
        });
        figures.push(Figure {
            what: format!("with {store}: largest resident size"),
            measured: format!("{peak:.1} MiB"),
            asked: "≤ 30 MiB".into(),
            met: Some(peak <= 30.0),
        });
    }
    Section {
        title: "Idle".into(),
        says: format!(
            "A block of {LOGS} transfers every {} s for {seconds:.0} s, told over a WebSocket and delivered to standard \
             output; processor time in that time, memory since the start.",
            BLOCK_TIME.as_secs()
        ),
        figures,
        plot: None,
    }
}

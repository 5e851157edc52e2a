//! History to standard output, every transfer: what the listener adds to downloading and parsing.

use crate::{
    chain::Truth,
    measured::Runs,
    report::{Figure, Plot, Section, count, figures},
    scene::{Scene, reader, turns},
};

/// Turns of a scenario and its references.
pub const TURNS: usize = 5;
/// What the listener may take of the time of download and parsing.
const MOST: f64 = 1.2;
/// MiB that the listener may have resident.
const MEMORY: f64 = 64.0;
/// Milliseconds until the node answers, and requests at once.
const SCENES: [(u64, usize); 3] = [(0, 4), (50, 4), (50, 16)];

/// Blocks of the history.
pub fn blocks() -> u64 {
    std::env::var("BENCH_BLOCKS").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000)
}

/// All scenes, each with both references.
pub fn measure() -> Section {
    let mut shown = Vec::new();
    let (mut bars, mut all) = (Vec::new(), Vec::new());
    let mut truth = Truth::default();
    for (latency, at_once) in SCENES {
        let mut scene = Scene::new("even", blocks(), latency, at_once);
        truth = scene.truth();
        if shown.is_empty() {
            shown.extend(unmeasured(&scene, truth));
        }
        let [bytes, parsed, listened] = turns(TURNS, [&|| scene.bytes(), &|| scene.parsed(), &|| scene.listened()]);
        complete(&parsed, truth);
        complete(&listened, truth);
        let served = scene.served();
        assert!(served.peak <= at_once as u64, "more at once than allowed: {served:?}");
        let place = format!("{latency} ms, {at_once} at once");
        let times = listened.times(&parsed);
        shown.push(Figure::told(&format!("{place}: (a) bytes"), figures(&bytes, None)));
        shown.push(Figure::told(&format!("{place}: (b) parsed"), figures(&parsed, Some(parsed.rate()))));
        shown.push(Figure {
            what: format!("{place}: chaintap"),
            measured: format!("{}, {times:.2} × (b)", figures(&listened, Some(listened.rate()))),
            asked: format!("≤ {MOST} × (b)"),
            met: Some(times <= MOST),
        });
        bars.push((format!("(a) bytes, {place}"), bytes.wall()));
        bars.push((format!("(b) parsed, {place}"), parsed.wall()));
        bars.push((format!("chaintap, {place}"), listened.wall()));
        all.push(listened);
    }
    shown.push(memory(&all.iter().collect::<Vec<_>>()));
    Section {
        title: "History to standard output".into(),
        says: format!(
            "{} blocks with {} logs, all transfers, 100 blocks a request. `chaintap run --until` from its start to its end, \
             with the embedded store; its lines are counted in every run. Medians of {TURNS} turns; memory is the largest of \
             all turns. No program ever had more requests for logs in flight than stated, as the node counted.",
            count(blocks()),
            count(truth.logs),
        ),
        figures: shown,
        plot: Some(Plot { file: "history.svg".into(), unit: "s".into(), bars }),
    }
}

/// Whether each run had as many logs as there are.
pub fn complete(runs: &Runs, truth: Truth) {
    assert!(runs.0.iter().all(|run| run.count == truth.logs), "{truth:?}, not {runs:?}");
}

/// One more run that is not measured: exactly these ids were delivered, none of them twice. And what its reader takes
/// alone.
fn unmeasured(scene: &Scene, truth: Truth) -> [Figure; 1] {
    let (run, delivered) = scene.checked();
    assert_eq!(delivered, truth, "other logs than there are");
    let pour = || reader(truth.logs, run.count / truth.logs);
    let [alone] = turns(TURNS, [&pour]);
    complete(&alone, truth);
    [Figure::told("the reader alone, on as many lines that are at hand", figures(&alone, None))]
}

/// The largest resident size of all of these.
pub fn memory(runs: &[&Runs]) -> Figure {
    let peak = runs.iter().map(|runs| runs.peak()).fold(0.0, f64::max);
    Figure {
        what: "chaintap: largest resident size of all turns".into(),
        measured: format!("{peak:.0} MiB"),
        asked: format!("≤ {MEMORY} MiB"),
        met: Some(peak <= MEMORY),
    }
}

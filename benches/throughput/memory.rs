//! What is held in memory where the outside is unkind: a reader that stops, a block that is full, an answer that is huge.

use std::{io::Read, thread::sleep, time::Duration};

use crate::{
    chain::Truth,
    history::blocks,
    measured::{Run, ids},
    report::{Figure, Section, count},
    scene::Scene,
};

/// Of a reader that stops: how much it reads before, and for how long it stops.
const READ: usize = 1 << 20;
const STOPS: Duration = Duration::from_secs(10);
/// Resident besides answers.
const BASE: u64 = 64;
/// Default of `RPC_MAX_BYTES`, MiB.
const ANSWER: u64 = 32;
const AT_ONCE: usize = 4;

pub fn measure() -> Section {
    let shown = vec![stalled(), burst(), dense(ANSWER), dense(ANSWER / 4)];
    Section {
        title: "Memory where the outside is unkind".into(),
        says: format!(
            "Largest resident size of one run each, {AT_ONCE} requests at once. The bound is {BASE} MiB for everything but \
             answers, and for each request at once the largest answer that is read (`RPC_MAX_BYTES`, {ANSWER} MiB where \
             nothing else is said). In every run the ids of what was delivered are held against those there are."
        ),
        figures: shown,
        plot: None,
    }
}

/// A reader of standard output that stops: no more is read from the node than fits.
fn stalled() -> Figure {
    let mut scene = Scene::new("even", blocks(), 0, AT_ONCE);
    let truth = scene.truth();
    let mut delivered = Truth::default();
    let run = scene.listen(|output| {
        let mut first = vec![0; READ];
        output.read_exact(&mut first).unwrap();
        sleep(STOPS);
        ids(&mut first.as_slice().chain(output), &mut delivered)
    });
    assert_eq!(delivered, truth, "other logs than there are");
    assert!(run.wall > STOPS, "it did not wait for its reader");
    bounded(&format!("the reader stops for {} s", STOPS.as_secs()), run, BASE)
}

/// One block that is a whole answer.
fn burst() -> Figure {
    let what = "a block with 50,000 logs, 32 MB of JSON";
    bounded(what, complete(Scene::new("burst", 1_200, 0, AT_ONCE)), bound(ANSWER))
}

/// Ranges whose answers are larger than what is read of one.
fn dense(most: u64) -> Figure {
    let scene = Scene::new("dense", 400, 0, AT_ONCE).with("RPC_MAX_BYTES", &format!("{most}MiB"));
    bounded(&format!("answers of 100 MB, of which {most} MiB are read"), complete(scene), bound(most))
}

fn bound(answer: u64) -> u64 {
    BASE + AT_ONCE as u64 * answer
}

/// One run in which exactly these ids were delivered.
fn complete(mut scene: Scene) -> Run {
    let truth = scene.truth();
    let (run, delivered) = scene.checked();
    assert_eq!(delivered, truth, "other logs than there are");
    run
}

fn bounded(what: &str, run: Run, most: u64) -> Figure {
    let peak = run.peak.div_ceil(1 << 20);
    Figure {
        what: what.to_owned(),
        measured: format!("{} MiB", count(peak)),
        asked: format!("≤ {most} MiB"),
        met: Some(peak <= most),
    }
}

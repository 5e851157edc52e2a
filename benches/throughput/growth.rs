//! Whether a long history is read as fast as a short one.

use crate::{
    history::{blocks, complete, memory},
    report::{Figure, Plot, Section, count, figures},
    scene::{Scene, turns},
};

/// So many times the blocks of the short one.
const TIMES: u64 = 10;
/// Turns; fewer than elsewhere, for each reads ten times as much.
const TURNS: usize = 3;
/// Of the rate of the short one, what that of the long one is at least.
const KEPT: f64 = 0.9;
const AT_ONCE: usize = 4;

pub fn measure() -> Section {
    let mut short = Scene::new("even", blocks(), 0, AT_ONCE);
    let mut long = Scene::new("even", TIMES * blocks(), 0, AT_ONCE);
    let truths = [short.truth(), long.truth()];
    let [few, many] = turns(TURNS, [&|| short.listened(), &|| long.listened()]);
    [&few, &many].iter().zip(truths).for_each(|(runs, truth)| complete(runs, truth));
    let kept = many.rate() / few.rate();
    let names = [blocks(), TIMES * blocks()].map(|blocks| format!("chaintap, {} blocks", count(blocks)));
    let shown = vec![
        Figure::told(&names[0], figures(&few, Some(few.rate()))),
        Figure {
            what: names[1].clone(),
            measured: format!("{}, {:.0} % of the rate", figures(&many, Some(many.rate())), kept * 100.0),
            asked: format!("≥ {:.0} % of the rate", KEPT * 100.0),
            met: Some(kept >= KEPT),
        },
        memory(&[&few, &many]),
    ];
    let [first, second] = names;
    Section {
        title: "Growth".into(),
        says: format!(
            "All transfers to standard output at 0 ms and {AT_ONCE} requests at once, of {TIMES} times as many blocks. Medians \
             of {TURNS} turns."
        ),
        figures: shown,
        plot: Some(Plot {
            file: "growth.svg".into(),
            unit: "logs/s".into(),
            bars: vec![(first, few.rate()), (second, many.rate())],
        }),
    }
}

//! History of a token list: one log in a hundred is of a token on it.

use crate::{
    chain::{strangers, tracked},
    history::{TURNS, blocks, complete, memory},
    report::{Figure, Plot, Section, count, figures},
    scene::{Scene, turns},
};

/// Tokens on the long list: more than any node takes the addresses of.
const LONG: u16 = 20_000;
/// Of the time of all transfers, what those of a short list may take.
const SHARE: f64 = 0.1;
/// Of the time of download and parsing, what those of a long list may take.
const FILTERED: f64 = 1.1;
/// Requests at once.
const AT_ONCE: usize = 4;

pub fn measure() -> Section {
    let scene = || Scene::new("even", blocks(), 0, AT_ONCE);
    let mut all = scene();
    let (mut short, mut long) = (scene().only(tracked()), scene().only(tracked().chain(strangers(LONG))));
    let (everything, truth) = (all.truth(), short.truth());
    for list in [&short, &long] {
        assert_eq!(list.checked().1, truth, "other logs than there are of these tokens");
    }
    // Of what is measured alone.
    short.served();
    long.served();
    let [parsed, whole, few, filtered] =
        turns(TURNS, [&|| all.parsed(), &|| all.listened(), &|| short.listened(), &|| long.listened()]);
    [(&parsed, everything), (&whole, everything), (&few, truth), (&filtered, truth)]
        .iter()
        .for_each(|(runs, truth)| complete(runs, *truth));
    let (share, times) = (few.times(&whole), filtered.times(&parsed));
    let asked = [short.served(), long.served()].map(|served| {
        let [by_address, requests, bytes] =
            [served.by_address, served.requests, served.bytes / 1_000_000].map(|count| count / TURNS as u64);
        format!("{by_address} of {requests} requests named addresses, {bytes} MB")
    });
    let shown = vec![
        Figure::told("(b) parsed, all transfers", figures(&parsed, None)),
        Figure::told("chaintap, all transfers", figures(&whole, None)),
        Figure::told("10 tokens: what the node was asked for", asked[0].clone()),
        Figure {
            what: "chaintap, 10 tokens".into(),
            measured: format!("{}, {share:.3} × all transfers", figures(&few, None)),
            asked: format!("≤ {SHARE} × all transfers"),
            met: Some(share <= SHARE),
        },
        Figure::told(&format!("{} tokens: what the node was asked for", count(list())), asked[1].clone()),
        Figure {
            what: format!("chaintap, {} tokens", count(list())),
            measured: format!("{}, {times:.2} × (b)", figures(&filtered, None)),
            asked: format!("< {FILTERED} × (b)"),
            met: Some(times < FILTERED),
        },
        memory(&[&whole, &few, &filtered]),
    ];
    let bars = [("(b) parsed, all transfers", &parsed), ("chaintap, all transfers", &whole)]
        .map(|(label, runs)| (label.to_owned(), runs.wall()))
        .into_iter()
        .chain([("chaintap, 10 tokens".to_owned(), few.wall())])
        .chain([(format!("chaintap, {} tokens", count(list())), filtered.wall())]);
    Section {
        title: "History of a token list".into(),
        says: format!(
            "The same history at 0 ms and {AT_ONCE} requests at once; {} of its {} logs are of tokens on the list. The short \
             list has these 10 tokens, the long one {} more that never occur. The node takes {} addresses a request, as geth \
             does. Medians of {TURNS} turns.",
            count(truth.logs),
            count(everything.logs),
            count(u64::from(LONG)),
            count(1_000),
        ),
        figures: shown,
        plot: Some(Plot { file: "tokens.svg".into(), unit: "s".into(), bars: bars.collect() }),
    }
}

/// Tokens on the long list.
fn list() -> u64 {
    u64::from(LONG) + 10
}

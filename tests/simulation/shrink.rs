//! A failing run made small: halves of its faults and acts are left out for as long as it still fails.

use std::collections::BTreeSet;

use crate::{
    faults::Name,
    run::{Report, run},
    swarm::{Seed, Swarm},
    world::Options,
};

/// Most runs that are spent on it.
const RUNS: usize = 400;

/// What of a failing seed's faults is needed for it to fail, and the run with only those.
pub fn shrink(seed: Seed, report: Report) -> (BTreeSet<Name>, Report) {
    let mut needed: Vec<Name> = report.struck.clone();
    let (mut smallest, mut runs) = (report, 0);
    let mut chunk = needed.len().div_ceil(2).max(1);
    while !needed.is_empty() && runs < RUNS {
        let mut index = 0;
        while index < needed.len() && runs < RUNS {
            let rest: Vec<Name> = needed.iter().take(index).chain(needed.iter().skip(index + chunk)).copied().collect();
            runs += 1;
            match fails(seed, &rest) {
                Some(report) => (needed, smallest) = (rest, report),
                None => index += chunk,
            }
        }
        if chunk == 1 {
            break;
        }
        chunk = chunk.div_ceil(2);
    }
    (needed.into_iter().collect(), smallest)
}

fn fails(seed: Seed, only: &[Name]) -> Option<Report> {
    let options = Options { only: Some(only.iter().copied().collect()), trace: true, ..Options::default() };
    let report = run(Swarm::of(seed), options);
    (!report.violations.is_empty()).then_some(report)
}

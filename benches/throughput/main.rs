//! How fast the listener is, held against the bare download of the same data (`make bench`).
//!
//! This program plays every role: it starts itself as the node and as the references, and the listener as it is
//! released. Scenario and references take turns, so that a machine that is busy for a while is so for both. A figure is
//! of a run whose deliveries were counted against what there is; where they are not the same, the program ends.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::type_complexity,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a program of measurements ends where anything is wrong, and its figures have few digits"
)]

mod arrivals;
mod chain;
mod growing;
mod growth;
mod history;
mod idle;
mod latency;
mod listening;
mod measured;
mod memory;
mod node;
mod queue;
mod redis;
mod reference;
mod report;
mod scene;
mod servers;
mod size;
mod stub;
mod tokens;

use report::Section;

/// What there is to measure, in the order of the page.
const SECTIONS: [(&str, fn() -> Section); 9] = [
    ("history", history::measure),
    ("tokens", tokens::measure),
    ("growth", growth::measure),
    ("memory", memory::measure),
    ("queue", queue::measure),
    ("latency", latency::measure),
    ("redis", redis::measure),
    ("idle", idle::measure),
    ("size", size::measure),
];
/// What else the program is started as, by itself.
const ROLES: [fn(&[&str]) -> bool; 4] = [node::role, reference::role, queue::role, latency::role];

fn main() {
    // `cargo bench` adds the flag.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if ROLES.iter().any(|role| role(&arguments)) {
        return;
    }
    let only = std::env::var("ONLY").unwrap_or_default();
    match arguments.as_slice() {
        [] => measure(Some(only.as_str()).filter(|only| !only.is_empty())),
        [only] => measure(Some(only)),
        other => panic!("{other:?} is not known here"),
    }
}

/// Measures all and writes the page, or one alone and prints it.
fn measure(only: Option<&str>) {
    let names = SECTIONS.map(|(name, _)| name);
    assert!(only.is_none_or(|only| names.contains(&only)), "ONLY is one of {names:?}");
    let chosen = SECTIONS.iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
    let measured: Vec<Section> = chosen.map(|(_, measure)| measure()).inspect(Section::print).collect();
    if only.is_none() {
        report::write(&measured);
    }
}

/// Runs a role on two threads.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

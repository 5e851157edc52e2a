//! The simulation: the real pipeline, one to three replicas of it, between a chain, a store and a queue of our own, in
//! one thread and in virtual time. Everything that may go wrong does, as a seed decides; the same seed is the same run.
//!
//! `make sim SEEDS=100000` tries that many seeds; `SIM_SEED=7 cargo test --profile sim --test simulation` shows one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "what fails here fails the test")]
#![allow(unreachable_pub, missing_docs, reason = "nobody imports a test")]
#![allow(clippy::indexing_slicing, reason = "what fails here fails the test")]
#![allow(clippy::print_stdout, reason = "tells what was simulated")]
#![allow(clippy::struct_excessive_bools, reason = "a seed is drawn, not called")]
#![allow(clippy::cast_possible_truncation, reason = "dice are small numbers")]

mod calm;
mod chain;
mod excuses;
mod faults;
mod journal;
#[cfg(feature = "mutants")]
mod mutants;
mod node;
mod operators;
mod oracle;
mod random;
mod replica;
#[cfg(feature = "mutants")]
mod rules;
mod run;
mod scenarios;
mod seeds;
mod shrink;
mod sink;
mod storage;
mod swarm;
mod world;

#[path = "../support"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support {
    pub mod chain;
    pub mod model_store;
}

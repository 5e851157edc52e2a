//! The doors for fuzzing: what comes in from outside, as functions of bytes. Not part of what the crate offers.
//!
//! Each function takes any bytes, runs them through the code that the listener itself uses, and panics where an
//! invariant is broken; to return is to pass. `fuzz/` has a target for each, which cargo-fuzz feeds (`make fuzz`), and
//! `tests/fuzz_corpus.rs` gives each the files of `fuzz/corpus/` (`make fuzz-smoke`, and every test run).

use crate::config::fuzzing::has_planted;

/// Runs one input; panics where an invariant is broken.
pub type Target = fn(&[u8]);

/// Every target by its name: the folder of its corpus.
pub const TARGETS: [(&str, Target); 5] =
    [("json_rpc", json_rpc), ("ws_frame", ws_frame), ("logs", logs), ("abi", abi), ("contracts_toml", contracts_toml)];

/// A log whose topics and data are all zero, as long as most are.
const ZEROES: [u8; 2 + 3 * 32 + 512] = [0; 2 + 3 * 32 + 512];

/// What a node answers over HTTP: only what was asked for is accepted, errors are short and hold no key.
pub fn json_rpc(data: &[u8]) {
    if !has_planted(data) {
        crate::rpc::fuzzing::json_rpc(data);
    }
}

/// What a node says over a socket, to a subscription or a request: as [`json_rpc`], and a sign always gets through.
pub fn ws_frame(data: &[u8]) {
    if !has_planted(data) {
        crate::rpc::fuzzing::ws_frame(data);
    }
}

/// What a contract emits: decoded exactly or refused, and a message never far larger than its log.
pub fn logs(data: &[u8]) {
    crate::pipeline::fuzzing::logs(data);
}

/// An ABI file: refused with a place, or one by which any log can be decoded.
pub fn abi(data: &[u8]) {
    if has_planted(data) {
        return;
    }
    for registry in crate::config::fuzzing::abi(data) {
        for topics in 0..5 {
            let mut log = ZEROES;
            if let Some(count) = log.get_mut(1) {
                *count = topics;
            }
            crate::pipeline::fuzzing::one(&registry, &log);
        }
    }
}

/// `contracts.toml`: accepted whole, or every mistake with its place, in one line, without a secret.
pub fn contracts_toml(data: &[u8]) {
    if !has_planted(data) {
        crate::config::fuzzing::contracts_toml(data);
    }
}

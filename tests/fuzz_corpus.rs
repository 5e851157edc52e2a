//! Replays the corpus of the fuzz targets (`fuzz/corpus/`) with the stable compiler, and some thousand small changes of
//! it: the same functions that cargo-fuzz feeds for as long as one likes (`make fuzz`).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use chaintap::fuzzing::{TARGETS, Target};

/// Longest that one input may take without optimisation on a loaded machine.
const LONGEST: Duration = Duration::from_secs(10);
/// Changed copies of each file.
const CHANGES: usize = 20;
/// Largest file: small inputs are read faster by machines and people.
const LARGEST: usize = 16 << 10;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The files of a target by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = root().join("corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// Runs one input; a panic or a long wait names it.
fn run(target: Target, name: &str, data: &[u8]) {
    let begun = Instant::now();
    let passed = catch_unwind(AssertUnwindSafe(|| target(data))).is_ok();
    assert!(passed, "{name} fails with {:?}", String::from_utf8_lossy(data));
    assert!(begun.elapsed() < LONGEST, "{name} takes {:?}", begun.elapsed());
}

fn replay(name: &str) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let files = corpus(name);
    for (file, data) in &files {
        assert!(data.len() <= LARGEST, "{name}/{file} has {} bytes", data.len());
        run(*target, &format!("{name}/{file}"), data);
    }
    for (index, (file, data)) in files.iter().enumerate() {
        for change in 0..CHANGES {
            let other = &files[(index + change) % files.len()].1;
            let seed = (index * CHANGES + change + 1) as u64;
            run(*target, &format!("{name}/{file}, change {change}"), &changed(data, other, seed));
        }
    }
}

/// A copy with a few bytes replaced, taken out or doubled, or with the end of another file.
fn changed(data: &[u8], other: &[u8], seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    // xorshift64: the same changes in every run.
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below.max(1) as u64).unwrap()
    };
    let mut data = data.to_vec();
    for _ in 0..=random(4) {
        let at = random(data.len());
        let end = (at + 1 + random(8)).min(data.len());
        match random(5) {
            0 if at < data.len() => data[at] ^= 1 << random(8),
            1 if at < data.len() => data[at] = b"\"{}[]:,0xf\n\\\0\xff"[random(14)],
            2 if at < end => drop(data.drain(at..end)),
            3 if at < end => {
                let piece = data[at..end].to_vec();
                data.splice(at..at, piece);
            }
            _ => {
                data.truncate(at);
                data.extend_from_slice(&other[random(other.len()).min(other.len())..]);
            }
        }
    }
    data
}

#[test]
fn whatever_a_node_answers_only_what_was_asked_for_is_taken() {
    replay("json_rpc");
}

#[test]
fn whatever_a_socket_says_the_next_sign_gets_through() {
    replay("ws_frame");
}

#[test]
fn whatever_a_contract_emits_is_decoded_exactly_or_refused() {
    replay("logs");
}

#[test]
fn whatever_stands_in_an_abi_file_is_refused_with_a_place_or_decodes() {
    replay("abi");
}

#[test]
fn whatever_stands_in_contracts_toml_each_mistake_has_a_place() {
    replay("contracts_toml");
}

#[test]
fn nothing_at_all_is_survived_by_every_target() {
    for (name, target) in TARGETS {
        for data in [&b""[..], b"\n", b"s\n", b"r0\n", &[0; 2], &[0xff; 64]] {
            run(target, name, data);
        }
    }
}

#[test]
fn every_target_has_a_door_for_cargo_fuzz_and_a_corpus() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let makefile = fs::read_to_string(root().join("../Makefile")).unwrap();
    let known = makefile.lines().find_map(|line| line.strip_prefix("FUZZ_TARGETS := ")).unwrap();
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(known.split(' ').collect::<Vec<_>>(), names);
    for name in names {
        let door = fs::read_to_string(root().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(door.contains(&format!("chaintap::fuzzing::{name}(data)")), "{door}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in fuzz/Cargo.toml");
        assert!(corpus(name).len() >= 10, "{name} has few seeds");
    }
}

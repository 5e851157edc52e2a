//! The configuration as an operator meets it: layers, mistakes, secrets, files and documents.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // what fails in a test's own functions fails the test

mod contracts;
mod documents;
mod layers;
mod mistakes;
mod secrets;
mod settings;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use chaintap::config::{Invalid, Problem, Settings, Sources, load_offline};
use tempfile::TempDir;

const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
/// Planted wherever a secret may stand; must never be seen again.
const CANARY: &str = "CANARYc4n4ry0123456789";

/// An environment that is enough to start, changed by the given variables.
fn sources(environment: &[(&str, &str)]) -> Sources {
    let mut all: BTreeMap<String, String> =
        [("CHAIN_ID", "8453"), ("WEB3_PROVIDER", "wss://rpc.example.com/key")].map(owned).into();
    all.extend(environment.iter().copied().map(owned));
    Sources { environment: all, config_dir: Some(repository("config")), ..Sources::default() }
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn settings(environment: &[(&str, &str)]) -> Settings {
    load_offline(&sources(environment)).unwrap_or_else(|invalid| panic!("{invalid}"))
}

/// The mistakes, each on one line.
fn mistakes(sources: &Sources) -> Vec<String> {
    match load_offline(sources) {
        Ok(_) => Vec::new(),
        Err(Invalid { problems }) => problems.iter().map(Problem::line).collect(),
    }
}

/// A configuration directory with one file of ours, beside the ABIs of the repository.
struct Directory(TempDir);

impl Directory {
    fn with(name: &str, text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("config")).unwrap();
        fs::write(directory.path().join("config").join(name), text).unwrap();
        Self(directory)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn sources(&self, environment: &[(&str, &str)]) -> Sources {
        Sources { config_dir: Some(self.path("config")), ..sources(environment) }
    }

    /// The mistakes with the directory's own path taken out.
    fn mistakes(&self, environment: &[(&str, &str)]) -> Vec<String> {
        let here = format!("{}/", self.0.path().display());
        mistakes(&self.sources(environment)).iter().map(|line| line.replace(&here, "")).collect()
    }
}

fn everything_said(sources: &Sources) -> String {
    match load_offline(sources) {
        Ok(settings) => format!("{settings:?}"),
        Err(invalid) => {
            assert!(!invalid.problems.is_empty(), "refused without a reason");
            format!("{invalid} {invalid:?} {}", invalid.render(true))
        }
    }
}

//! `docs/reliability.md` names tests: each of them must exist, and no case may be left out.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{collections::BTreeSet, fs, path::Path};

const PAGE: &str = include_str!("../docs/reliability.md");

/// Everything that the page names as `file.rs::function`.
fn named() -> impl Iterator<Item = (&'static str, &'static str)> {
    PAGE.split('`').skip(1).step_by(2).filter_map(|code| code.split_once("::"))
}

#[test]
fn every_test_that_the_page_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let missing: Vec<_> = named()
        .filter(|(file, function)| {
            let text = ["tests", "src"].iter().find_map(|folder| fs::read_to_string(root.join(folder).join(file)).ok());
            // A function of its own, or a name in the list of a macro.
            !text.is_some_and(|text| text.contains(&format!("fn {function}(")))
        })
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_case_has_its_row_and_every_one_of_the_catalogue_a_test_that_bears_its_name() {
    let rows: BTreeSet<&str> = PAGE.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next()).collect();
    let cases = (1..=25).map(|n| format!("R{n:02}")).chain((1..=80).map(|n| format!("F{n:02}")));
    let absent: Vec<String> = cases.filter(|case| !rows.contains(case.as_str())).collect();
    assert!(absent.is_empty(), "{absent:?}");
    for case in (1..=25).map(|n| format!("R{n:02}")) {
        let row = PAGE.lines().find(|line| line.starts_with(&format!("| {case} |"))).unwrap();
        let bears = format!("::{}_", case.to_lowercase());
        assert!(row.contains(&bears) || row.contains("Not yet"), "{row}");
    }
}

//! How large the program is.

use std::{fs, process::Command};

use crate::{
    measured::binary,
    report::{Figure, Section},
};

pub fn measure() -> Section {
    let place = tempfile::tempdir().unwrap();
    let stripped = place.path().join("chaintap");
    let mut shown = vec![Figure::told("the program, with line numbers for backtraces", size(&binary()))];
    // Without binutils there is one figure less.
    let is_stripped =
        Command::new("strip").arg("-o").arg(&stripped).arg(binary()).status().is_ok_and(|told| told.success());
    if is_stripped {
        shown.push(Figure::told("the same, stripped", size(&stripped)));
    }
    Section {
        title: "Size".into(),
        says: "The release build. The image is that program, and the base named in the Dockerfile.".into(),
        figures: shown,
        plot: None,
    }
}

fn size(program: &std::path::Path) -> String {
    format!("{:.1} MB", fs::metadata(program).unwrap().len() as f64 / 1e6)
}

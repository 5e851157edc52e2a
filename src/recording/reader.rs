//! Reads a recording.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;

use super::{Record, is_segment};

/// Largest recording that is read, bytes before compression: all of it is held in memory.
const MOST_BYTES: u64 = 2 << 30;

/// Why there is nothing to read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The system does not give it.
    #[error("{}: {reason}", path.display())]
    File {
        /// The directory or file.
        path: PathBuf,
        /// The system's words.
        reason: io::Error,
    },
    /// There is no record in it.
    #[error("{}: holds no recording (files like 1790000000000-000000.jsonl.gz)", .0.display())]
    Empty(PathBuf),
    /// There is too much.
    #[error("{}: more than {} MiB of records: leave fewer of its files there", .0.display(), MOST_BYTES >> 20)]
    TooLarge(PathBuf),
}

/// All records of a directory, in the order in which they began. What was cut off, or is no record, is left out.
///
/// # Errors
///
/// Where there is none, or too many to hold.
pub fn read(dir: &Path) -> Result<Vec<Record>, Unreadable> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |reason| Unreadable::File { path, reason }
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed(dir))? {
        let entry = entry.map_err(failed(dir))?;
        if entry.file_name().to_str().is_some_and(is_segment) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    let (mut records, mut left) = (Vec::new(), MOST_BYTES);
    for path in paths {
        let file = File::open(&path).map_err(failed(&path))?;
        left -= read_segment(file, left, &mut records);
        if left == 0 {
            return Err(Unreadable::TooLarge(dir.to_owned()));
        }
    }
    if records.is_empty() {
        return Err(Unreadable::Empty(dir.to_owned()));
    }
    records.sort_by_key(|record: &Record| record.at);
    Ok(records)
}

/// Adds the records of a segment up to its end, or to where it was cut off; how many bytes of at most `most` it had.
fn read_segment(file: File, most: u64, records: &mut Vec<Record>) -> u64 {
    let mut lines = BufReader::new(GzDecoder::new(BufReader::new(file)).take(most));
    let mut line = Vec::new();
    let mut bytes = 0;
    while let Ok(1..) = lines.read_until(b'\n', &mut line) {
        bytes += line.len() as u64;
        if line.ends_with(b"\n") {
            records.extend(serde_json::from_slice(&line).ok());
        }
        line.clear();
    }
    bytes
}

//! The environment's files: mounted secrets and `.env`. Nothing read here is quoted in a message.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read as _,
    path::Path,
};

use super::problem::{Problem, closest};

/// Largest mounted secret that is read, bytes.
const MAX_MOUNTED_BYTES: u64 = 64 << 10;

/// The value in a mounted file, less one newline at its end.
pub(super) fn read_mounted(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let read = file.take(MAX_MOUNTED_BYTES + 1).read_to_string(&mut text);
    let bytes = read.map_err(|error| format!("cannot be read: {error}"))?;
    if bytes as u64 > MAX_MOUNTED_BYTES {
        return Err(format!("is larger than {} KiB", MAX_MOUNTED_BYTES >> 10));
    }
    let text = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    Ok(text.to_owned())
}

/// The variables of a `.env` file, the first of two of the same name; none where there is no file.
pub(super) fn read_dotenv(path: &Path, problems: &mut Vec<Problem>) -> BTreeMap<String, String> {
    let mut given = BTreeMap::new();
    let entries = match dotenvy::from_path_iter(path) {
        Ok(entries) => entries,
        Err(error) if error.not_found() => return given,
        Err(_) => {
            problems.push(Problem::file(path, "cannot be read"));
            return given;
        }
    };
    for (index, entry) in entries.enumerate() {
        let Ok((name, value)) = entry else {
            // The library's message quotes the line, which may hold a secret.
            let text = format!("entry {} is not NAME=value", index + 1);
            problems.push(Problem::file(path, text).mend("put values with spaces, # or $ into single quotes"));
            break;
        };
        given.entry(name).or_insert(value);
    }
    given
}

/// Names that nobody reads but that look like a misspelt one of ours.
pub(super) fn warn_of_near_misses(
    given: &BTreeMap<String, String>,
    layer: &str,
    wanted: &BTreeSet<String>,
    warnings: &mut Vec<String>,
) {
    let known: Vec<&str> = wanted.iter().map(String::as_str).filter(|name| name.len() >= 8).collect();
    for name in given.keys() {
        let bare = name.strip_suffix("_FILE").unwrap_or(name);
        if wanted.contains(name) || wanted.contains(bare) || bare.starts_with("AWS_") {
            continue;
        }
        if let Some(near) = closest(bare, &known).filter(|near| strsim::damerau_levenshtein(near, bare) <= 2) {
            warnings.push(format!("{layer}: {name} is not read; did you mean {near}?"));
        }
    }
}

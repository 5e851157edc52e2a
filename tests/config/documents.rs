//! `.env.example`, `config/default.toml` and the tables say what the code says; `UPDATE_DOCS=1 cargo test --test config`
//! writes them again.

use std::{fmt::Write as _, fs};

use chaintap::config::variables::{self, GROUPS};

use super::{mistakes, repository, sources};

fn environment_table() -> String {
    let mut text = String::from("| variable | meaning | when absent |\n| --- | --- | --- |\n");
    for variable in variables::all() {
        let absent = match (variable.default, variable.absent) {
            ("", "") => "none".to_owned(),
            ("", absent) => absent.to_owned(),
            (default, _) => format!("`{default}`"),
        };
        writeln!(text, "| `{}` | {} | {absent} |", variable.name, variable.meaning).unwrap();
    }
    text
}

fn dotenv_example() -> String {
    let mut text = String::from(
        "# Every variable of chaintap; copy to .env and fill in what you need. The environment wins over this file.\n\
         # Each may be given as NAME_FILE=/path too. Values with spaces, # or $ go into single quotes.\n",
    );
    for group in GROUPS {
        writeln!(text, "\n# --- {} ---", group.title).unwrap();
        for variable in group.variables {
            let absent =
                if variable.absent.is_empty() { String::new() } else { format!(" (absent: {})", variable.absent) };
            writeln!(text, "\n# {}{absent}\n# {}={}", variable.meaning, variable.name, variable.default).unwrap();
        }
    }
    text
}

fn default_file() -> String {
    let mut text = String::from(
        "# The defaults, for an operator to change: every key is the lower-case name of a variable of the environment\n\
         # (docs/configuration.md), which wins over this file. Keys without a default may be added. Keep secrets out of it.\n",
    );
    for group in GROUPS {
        let defaults: Vec<_> = group.variables.iter().filter(|variable| !variable.default.is_empty()).collect();
        if !defaults.is_empty() {
            writeln!(text, "\n# {}", group.title).unwrap();
        }
        for variable in defaults {
            let plain = variable.default.parse::<u64>().is_ok() || variable.default.parse::<bool>().is_ok();
            let value = if plain { variable.default.to_owned() } else { format!("\"{}\"", variable.default) };
            writeln!(text, "{} = {value}", variable.name.to_lowercase()).unwrap();
        }
    }
    text
}

/// The document with this table between its markers; `None` where it has none.
fn with_table(document: &str, table: &str) -> Option<String> {
    let (before, rest) = document.split_once("<!-- env:begin -->\n")?;
    let (_, after) = rest.split_once("<!-- env:end -->")?;
    Some(format!("{before}<!-- env:begin -->\n{table}<!-- env:end -->{after}"))
}

/// Compares a document with what the code says, or writes it.
fn compare(path: &str, expected: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(repository(path), expected).unwrap();
    }
    let found = fs::read_to_string(repository(path)).unwrap_or_default();
    assert!(found == expected, "{path} is out of date: run `UPDATE_DOCS=1 cargo test --test config`");
}

#[test]
fn the_documents_name_every_variable_as_the_code_does() {
    compare(".env.example", &dotenv_example());
    compare("config/default.toml", &default_file());
    for path in ["docs/configuration.md", "README.md"] {
        let Ok(document) = fs::read_to_string(repository(path)) else { continue };
        match with_table(&document, &environment_table()) {
            Some(expected) => compare(path, &expected),
            None => assert_eq!(path, "README.md", "{path} has lost its markers"),
        }
    }
}

#[test]
fn the_code_reads_exactly_the_declared_variables() {
    let code: String = fs::read_dir(repository("src/config"))
        .unwrap()
        .flatten()
        // What fuzzing sets is not the program's to read.
        .filter(|entry| !["variables.rs", "fuzzing.rs"].iter().any(|other| entry.file_name() == *other))
        .map(|entry| fs::read_to_string(entry.path()).unwrap())
        .collect();
    for variable in variables::all() {
        assert!(code.contains(&format!("\"{}\"", variable.name)), "{} is declared and never read", variable.name);
    }
    let in_quotes = code.split('"');
    let looks_like_one = |text: &&str| {
        text.len() > 3
            && text.contains('_')
            && !text.starts_with('_')
            && !text.ends_with('_')
            && text.chars().all(|sign| sign.is_ascii_uppercase() || sign == '_')
    };
    for name in in_quotes.filter(looks_like_one) {
        assert!(variables::find(name).is_some(), "{name} is read and not declared");
    }
}

#[test]
fn the_example_environment_is_read_as_it_stands() {
    let mut given = sources(&[]);
    given.dotenv = Some(repository(".env.example"));
    assert_eq!(mistakes(&given), Vec::<String>::new());
}

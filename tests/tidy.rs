//! The house rules that the compiler and clippy do not know: who may import whom, where outside crates live, how large
//! things get, what things may be called, what text may hold. Each rule stands in one table with its reason, and with a
//! made-up example that it refuses.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

#[path = "support/rust_source.rs"]
mod rust_source;

use rust_source::{Named, Token};

/// One rule: what it is called, why it is there, and the complaints that it has about a file.
struct Rule {
    name: &'static str,
    why: &'static str,
    check: fn(&File) -> Vec<Complaint>,
}

/// The line, and what is wrong there.
type Complaint = (usize, String);

const RULES: &[Rule] = &[
    Rule {
        name: "arrows point down",
        why: "a part that knows only what is below it can be read, tested and replaced alone",
        check: arrows_point_down,
    },
    Rule {
        name: "a stage knows no other stage",
        why: "the nine verbs meet in pipeline/mod.rs only, so their order is told in one place",
        check: stages_are_apart,
    },
    Rule {
        name: "adapters are named by the composition root",
        why: "everybody else holds the edge's trait, so another store or queue is one new file",
        check: adapters_are_hidden,
    },
    Rule {
        name: "a client crate stays in its file",
        why: "a new major version of a client is then one file's work, and its types never become ours",
        check: clients_are_confined,
    },
    Rule {
        name: "files are small",
        why: "a file is one thing to hold in mind: 400 lines of code at most, tests apart",
        check: files_are_small,
    },
    Rule {
        name: "functions are small",
        why: "a function fits a screen: 70 lines and 5 parameters at most",
        check: functions_are_small,
    },
    Rule {
        name: "folders are two deep",
        why: "a newcomer guesses the file from the name, without a map",
        check: folders_are_shallow,
    },
    Rule {
        name: "names say what is inside",
        why: "a thing without a home is a missing word of the domain",
        check: names_say_what_is_inside,
    },
    Rule {
        name: "nothing is left half done or dropped",
        why: "an unfinished branch is a panic in waiting, a dropped result a silent loss",
        check: nothing_is_half_done,
    },
    Rule {
        name: "a silenced lint says why",
        why: "the next reader must be able to tell whether the reason still holds",
        check: silenced_lints_say_why,
    },
    Rule {
        name: "text holds no machine's paths",
        why: "what works on one machine only is not finished, and tells strangers about that machine",
        check: text_holds_no_machine_paths,
    },
    Rule {
        name: "links lead somewhere",
        why: "documentation that leads nowhere is worse than none",
        check: links_lead_somewhere,
    },
];

/// What each part of `src/` may use of the others. `main`, `lib`, `app`, `cli` and `fuzzing`
/// stand above all of them.
const LAYERS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("crypto", &[]),
    ("shutdown", &[]),
    ("failure", &[]),
    ("mutants", &[]),
    ("backoff", &["domain"]),
    ("config", &["domain", "crypto", "telemetry"]),
    ("telemetry", &["domain", "config", "crypto"]),
    // What nodes said, written by one side and served by the other.
    ("recording", &["telemetry"]),
    ("rpc", &["domain", "config", "crypto", "telemetry", "backoff", "recording"]),
    ("store", &["domain", "config", "crypto", "telemetry", "backoff"]),
    ("tokens", &["domain", "config", "crypto", "telemetry", "backoff"]),
    ("sinks", &["domain", "config", "crypto", "telemetry", "backoff", "mutants"]),
    (
        "pipeline",
        &["domain", "config", "telemetry", "backoff", "shutdown", "rpc", "store", "tokens", "sinks", "mutants"],
    ),
    ("api", &["domain", "config", "telemetry", "shutdown"]),
    // A chain of its own, for demo and tests: it shares words with the listener, and what was recorded of one.
    ("devchain", &["domain", "telemetry", "shutdown", "recording"]),
];
const TOP: [&str; 5] = ["main", "lib", "app", "cli", "fuzzing"];
const EDGES: [&str; 4] = ["rpc", "store", "tokens", "sinks"];
/// Files of an edge that are pure and belong to everybody: the wire format, the names of keys.
const PURE: [(&str, &str); 2] = [("sinks", "message"), ("store", "keys")];
const STAGES: [&str; 9] = ["follow", "plan", "claim", "fetch", "decode", "filter", "deliver", "commit", "unwind"];

/// Outside crates (or parts of them), and the files that may name them.
const CLIENTS: &[(&str, &[&str])] = &[
    ("aws_sdk_sqs", &["src/sinks/sqs"]),
    ("aws_sdk_secretsmanager", &["src/config/aws"]),
    ("aws_config", &["src/sinks/sqs", "src/config/aws"]),
    ("redis", &["src/store/redis"]),
    ("redb", &["src/store/embedded"]),
    ("flate2", &["src/recording/"]),
    ("mongodb", &["src/tokens/mongo"]),
    ("reqwest", &["src/rpc/transport", "src/cli/healthcheck"]),
    ("alloy::providers", &["src/rpc/"]),
    ("alloy::pubsub", &["src/rpc/"]),
    ("alloy::transports", &["src/rpc/"]),
    ("alloy::rpc::client", &["src/rpc/"]),
    ("axum", &["src/api/", "src/devchain/"]),
    ("metrics_exporter_prometheus", &["src/telemetry/"]),
    ("sentry", &["src/telemetry/"]),
    ("annotate_snippets", &["src/config/"]),
    ("toml", &["src/config/"]),
    ("backon", &["src/backoff"]),
    ("clap", &["src/cli", "src/main"]),
    ("comfy_table", &["src/cli"]),
];

const FILE_LINES: usize = 400;
const FUNCTION_LINES: usize = 70;
const PARAMETERS: usize = 5;
const FOLDERS: usize = 2;
const EMPTY_NAMES: [&str; 8] = ["utils", "util", "common", "helpers", "helper", "models", "services", "manager"];
const MACHINE_PATHS: [&str; 5] = ["/home/", "/Users/", "/root/", "/tmp/", "/work/"];

#[test]
fn the_tree_is_tidy() {
    let files = tree();
    assert!(files.iter().any(|file| file.path == "src/lib.rs"), "the walk found no source");
    let mut complaints = Vec::new();
    for rule in RULES {
        for file in &files {
            let found = (rule.check)(file).into_iter();
            complaints.extend(found.map(|(line, complaint)| {
                format!("{}:{line}: {complaint}\n    {}: {}\n", file.path, rule.name, rule.why)
            }));
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.concat());
}

/// A made-up file: its path and its text.
type Example = (&'static str, &'static str);

/// For each rule a file that it refuses, and one beside it that it lets pass.
const EXAMPLES: &[(&str, Example, Example)] = &[
    (
        "arrows point down",
        ("src/rpc/client.rs", "use crate::{domain::Block,\n store::StateStore};"),
        (
            "src/rpc/client.rs",
            "use crate::domain::Block; // not crate::store::StateStore\nconst A: &str = \"crate::store::x\";",
        ),
    ),
    (
        "arrows point down",
        ("src/domain/gaps.rs", "fn f() { super::super::config::load(); }"),
        (
            "src/domain/gaps.rs",
            "fn f() { super::range::join(); }\n#[cfg(test)]\nmod tests { use crate::config::load; }",
        ),
    ),
    ("arrows point down", ("src/newcomer/mod.rs", "fn f() {}"), ("src/app.rs", "use crate::store::redis::RedisStore;")),
    (
        "a stage knows no other stage",
        ("src/pipeline/commit.rs", "use super::{deliver::Delivered};"),
        ("src/pipeline/commit.rs", "use super::{Context, Delivered};"),
    ),
    (
        "adapters are named by the composition root",
        ("src/pipeline/claim.rs", "use crate::store::redis::RedisStore;"),
        ("src/pipeline/claim.rs", "use crate::{sinks::message, store::StateStore};"),
    ),
    (
        "a client crate stays in its file",
        ("src/pipeline/fetch.rs", "use alloy::{primitives::B256, providers::{Provider}};"),
        ("src/pipeline/fetch.rs", "use alloy::primitives::B256;"),
    ),
    (
        "a client crate stays in its file",
        ("src/store/embedded.rs", "fn f() -> redis::RedisResult<()> { Ok(()) }"),
        ("src/store/mod.rs", "pub mod redis;\npub use redis::RedisStore;"),
    ),
    (
        "a client crate stays in its file",
        ("src/cli/run.rs", "use ::sentry::{self, init};"),
        ("src/cli/run.rs", "use crate::telemetry::{sentry::{self, Guard}};\nfn f() { sentry::init(); }"),
    ),
    ("files are small", ("src/store/claim.lua", "<401>"), ("src/store/claim.lua", "<400>-- why\n\n")),
    (
        "files are small",
        ("src/domain/x.rs", "<401>"),
        ("src/domain/x.rs", "<400>/*\n<401>*/#[cfg(test)] mod tests {\n<401>}"),
    ),
    ("functions are small", ("src/domain/x.rs", "fn f() {\n<71>}"), ("src/domain/x.rs", "fn f() -> [u8; 2] {\n<70>}")),
    (
        "functions are small",
        ("src/domain/x.rs", "fn f(&self, a: u8, b: (u8, u8), c: Map<u8, u8>, d: u8, e: u8) {}"),
        ("src/domain/x.rs", "fn f<F: Fn(u8, u8) -> u8>(&self, a: F, b: (u8, u8), c: Map<u8, u8>, d: u8,) {}"),
    ),
    ("folders are two deep", ("src/a/b/c/d.rs", ""), ("src/a/b/c.rs", "")),
    ("names say what is inside", ("src/store/utils.rs", ""), ("src/store/keys.rs", "")),
    ("names say what is inside", ("src/store/mod.rs", "mod helpers { }"), ("src/store/mod.rs", "mod keys;")),
    (
        "nothing is left half done or dropped",
        ("src/domain/x.rs", "fn f() { todo!() }"),
        ("src/domain/x.rs", "// todo!\nfn f() {}"),
    ),
    (
        "nothing is left half done or dropped",
        ("src/domain/x.rs", "fn f() { let _ = send(); }"),
        ("src/domain/x.rs", "fn f() { let _guard = send(); }"),
    ),
    (
        "a silenced lint says why",
        ("src/domain/x.rs", "#[allow(\n    clippy::cast_lossless,\n)]\nfn f() {}"),
        ("src/domain/x.rs", "#[allow(clippy::cast_lossless, reason = \"below 2^32\")]\nfn f() {}"),
    ),
    (
        "text holds no machine's paths",
        ("README.md", "see /home/me/notes"),
        ("README.md", "see https://example.org/home and ~/notes"),
    ),
    (
        "links lead somewhere",
        ("docs/README.md", "[a](../no-such-file.md)"),
        ("docs/README.md", "[a](../LICENSE-MIT) [b](https://example.org) `[c](nowhere)`\n```\n[d](nowhere)\n```\n"),
    ),
    (
        "links lead somewhere",
        ("README.md", "# Some title\n[a](#another-title)"),
        ("README.md", "# Some `title`: yes\n[a](#some-title-yes)"),
    ),
];

/// In an example `<70>` stands for so many lines of code.
fn example(file: &Example) -> File {
    let text = [1, 70, 71, 400, 401]
        .iter()
        .fold(file.1.to_owned(), |text, many| text.replace(&format!("<{many}>"), &"call();\n".repeat(*many)));
    File::new(file.0, &text)
}

#[test]
fn every_rule_refuses_its_example_and_lets_its_neighbour_pass() {
    for (name, refused, passed) in EXAMPLES {
        let rule = RULES.iter().find(|rule| rule.name == *name).unwrap_or_else(|| panic!("no rule is called {name}"));
        assert!(!(rule.check)(&example(refused)).is_empty(), "{name} lets pass: {refused:?}");
        assert_eq!((rule.check)(&example(passed)), [], "{name} refuses: {passed:?}");
    }
    for rule in RULES {
        assert!(EXAMPLES.iter().any(|(name, ..)| *name == rule.name), "no example shows that {:?} can fail", rule.name);
    }
}

#[test]
fn the_tables_name_what_there_is() {
    let files = tree();
    let exists = |start: &str| files.iter().any(|file| file.path.starts_with(start));
    for (_, places) in CLIENTS {
        for place in *places {
            assert!(exists(place), "CLIENTS names {place}, which is not there");
        }
    }
    for (edge, pure) in PURE {
        assert!(exists(&format!("src/{edge}/{pure}")), "PURE names {edge}::{pure}, which is not there");
    }
}

/// A file of the repository, read once for all rules.
struct File {
    path: String,
    text: String,
    /// Of a Rust file: its tokens without comments and tests.
    code: Vec<Token>,
    /// Of a Rust file under `src/`: the module that it is, from the crate's root.
    module: Vec<String>,
    /// Of a Rust file under `src/`: the paths it names, those of the crate itself beginning with `crate`.
    names: Vec<Named>,
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        let code = if is(path, "rs") { rust_source::without_tests(&rust_source::tokens(text)) } else { Vec::new() };
        let module = module(path);
        let names = rust_source::paths(&code).into_iter().map(|named| resolved(named, &module)).collect();
        Self { path: path.to_owned(), text: text.to_owned(), code, module, names }
    }

    fn is_source(&self) -> bool {
        self.path.starts_with("src/") && is(&self.path, "rs")
    }

    /// The part of the crate that it belongs to: `store` of `src/store/redis.rs`.
    fn part(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }

    fn stands_above(&self) -> bool {
        TOP.contains(&self.part())
    }

    /// Paths within the crate, without `crate`.
    fn own(&self) -> impl Iterator<Item = (usize, &[String])> {
        self.names.iter().filter_map(|named| match named.segments.split_first() {
            Some((root, rest)) if root == "crate" && !rest.is_empty() => Some((named.line, rest)),
            _ => None,
        })
    }

    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// `src/store/redis.rs` → `store`, `redis`; `src/store/mod.rs` → `store`; `src/lib.rs` → nothing.
fn module(path: &str) -> Vec<String> {
    let Some(inner) = path.strip_prefix("src/").and_then(|path| path.strip_suffix(".rs")) else { return Vec::new() };
    inner.split('/').filter(|name| !["mod", "lib"].contains(name)).map(ToOwned::to_owned).collect()
}

/// `self::x` and `super::x` as `crate::…::x`.
fn resolved(named: Named, module: &[String]) -> Named {
    let supers = named.segments.iter().take_while(|segment| *segment == "super").count();
    let selves = named.segments.iter().take_while(|segment| *segment == "self").count();
    if supers + selves == 0 {
        return named;
    }
    let base = module.iter().take(module.len().saturating_sub(supers));
    let rest = named.segments.iter().skip(supers + selves);
    let segments = std::iter::once("crate").map(ToOwned::to_owned).chain(base.chain(rest).cloned()).collect();
    Named { segments, line: named.line }
}

fn arrows_point_down(file: &File) -> Vec<Complaint> {
    if !file.is_source() || file.stands_above() {
        return Vec::new();
    }
    let part = file.part();
    let Some((_, below)) = LAYERS.iter().find(|(name, _)| *name == part) else {
        return vec![(1, format!("{part} has no place in LAYERS (tests/tidy.rs): say what it may use"))];
    };
    file.own()
        .filter_map(|(line, path)| Some((line, path.first()?.as_str())))
        .filter(|(_, used)| *used != part && is_part(used) && !below.contains(used))
        .map(|(line, used)| (line, format!("{part} uses {used}; it may use {below:?}")))
        .collect()
}

/// Whether the first segment behind `crate` is a module, not a macro or an item of the root.
fn is_part(name: &str) -> bool {
    TOP.contains(&name) || LAYERS.iter().any(|(layer, _)| *layer == name)
}

fn stages_are_apart(file: &File) -> Vec<Complaint> {
    let stage = match file.module.as_slice() {
        [part, stage, ..] if part == "pipeline" && STAGES.contains(&stage.as_str()) => stage,
        _ => return Vec::new(),
    };
    file.own()
        .filter_map(|(line, path)| match path {
            [part, used, ..] if part == "pipeline" && used != stage && STAGES.contains(&used.as_str()) => {
                Some((line, format!("{stage} uses {used}; what they share belongs into pipeline/mod.rs")))
            }
            _ => None,
        })
        .collect()
}

fn adapters_are_hidden(file: &File) -> Vec<Complaint> {
    if !file.is_source() || file.stands_above() {
        return Vec::new();
    }
    file.own()
        .filter_map(|(line, path)| match path {
            [edge, adapter, ..] if EDGES.contains(&edge.as_str()) && edge != file.part() => {
                let is_module =
                    ["", ".rs"].iter().any(|end| root().join(format!("src/{edge}/{adapter}{end}")).exists());
                let is_pure = PURE.contains(&(edge.as_str(), adapter.as_str()));
                (is_module && !is_pure)
                    .then(|| (line, format!("{edge}::{adapter} is an adapter; use what {edge} itself declares")))
            }
            _ => None,
        })
        .collect()
}

fn clients_are_confined(file: &File) -> Vec<Complaint> {
    if !file.is_source() {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    for named in file.names.iter().filter(|named| !is_ours(file, named)) {
        let path = named.segments.join("::");
        for (client, places) in CLIENTS {
            let names_it = path.strip_prefix(client).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
            if names_it && !places.iter().any(|place| file.path.starts_with(place)) {
                complaints.push((named.line, format!("{path} belongs into {places:?}")));
            }
        }
    }
    complaints
}

/// Whether a path begins with a module that this file declares or imports from us, under the name of a crate.
fn is_ours(file: &File, named: &Named) -> bool {
    let Some(first) = named.segments.first() else { return true };
    first == "crate"
        || file.code.windows(2).any(|pair| matches!(pair, [keyword, name] if keyword.is("mod") && name.is(first)))
        || file.own().any(|(_, path)| path.last() == Some(first))
}

fn files_are_small(file: &File) -> Vec<Complaint> {
    let lines = if file.is_source() {
        rust_source::code_lines(&file.code)
    } else if is(&file.path, "lua") {
        file.lines().filter(|(_, line)| !line.trim().is_empty() && !line.trim().starts_with("--")).count()
    } else {
        0
    };
    if lines > FILE_LINES { vec![(1, format!("{lines} lines of code, {FILE_LINES} at most"))] } else { Vec::new() }
}

fn functions_are_small(file: &File) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for function in rust_source::functions(if file.is_source() { &file.code } else { &[] }) {
        if function.lines > FUNCTION_LINES {
            complaints.push((
                function.line,
                format!("{}: {} lines, {FUNCTION_LINES} at most", function.name, function.lines),
            ));
        }
        if function.parameters > PARAMETERS {
            complaints.push((
                function.line,
                format!("{}: {} parameters, {PARAMETERS} at most", function.name, function.parameters),
            ));
        }
    }
    complaints
}

fn folders_are_shallow(file: &File) -> Vec<Complaint> {
    let folders = file.path.strip_prefix("src/").map_or(0, |inner| inner.matches('/').count());
    if folders > FOLDERS { vec![(1, format!("{folders} folders deep, {FOLDERS} at most"))] } else { Vec::new() }
}

fn names_say_what_is_inside(file: &File) -> Vec<Complaint> {
    let in_path = file.path.split(['/', '.']).filter(|name| EMPTY_NAMES.contains(name)).map(|name| (1, name));
    let in_code = file.code.windows(2).filter_map(|pair| match pair {
        [keyword, name] if keyword.is("mod") && EMPTY_NAMES.contains(&name.text.as_str()) => {
            Some((name.line, name.text.as_str()))
        }
        _ => None,
    });
    in_path.chain(in_code).map(|(line, name)| (line, format!("{name}: call it by what it is about"))).collect()
}

fn nothing_is_half_done(file: &File) -> Vec<Complaint> {
    const FORBIDDEN: [&[&str]; 4] = [&["todo", "!"], &["unimplemented", "!"], &["dbg", "!"], &["let", "_", "="]];
    let code: &[Token] = if file.is_source() { &file.code } else { &[] };
    let mut complaints = Vec::new();
    for words in FORBIDDEN {
        for seen in code.windows(words.len()) {
            if let Some(first) = seen.first().filter(|_| seen.iter().zip(words).all(|(token, word)| token.is(word))) {
                complaints.push((first.line, format!("`{}`", words.join(" "))));
            }
        }
    }
    complaints
}

fn silenced_lints_say_why(file: &File) -> Vec<Complaint> {
    const MARKS: [&str; 4] = ["#[allow(", "#![allow(", "#[expect(", "#![expect("];
    if !file.is_source() {
        return Vec::new();
    }
    let lines: Vec<&str> = file.text.lines().collect();
    file.lines()
        .filter(|(_, text)| MARKS.iter().any(|mark| text.trim_start().starts_with(mark)))
        .filter(|(line, _)| {
            let rest = lines.iter().skip(line - 1);
            let length = rest.clone().take_while(|text| !text.contains(")]")).count();
            // The reason stands in the attribute, behind it, or as a comment on the next line.
            !rest.take(length + 2).any(|text| text.contains("reason =") || text.contains("// "))
        })
        .map(|(line, _)| (line, "no reason = \"…\" and no comment".to_owned()))
        .collect()
}

fn text_holds_no_machine_paths(file: &File) -> Vec<Complaint> {
    if file.path == "tests/tidy.rs" {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    for (line, text) in file.lines() {
        for path in MACHINE_PATHS {
            let is_path =
                |at: usize| !text[..at].ends_with(|before: char| before.is_alphanumeric() || ".~}".contains(before));
            if text.match_indices(path).any(|(at, _)| is_path(at)) {
                complaints.push((line, format!("{path}… is a place on somebody's machine")));
            }
        }
    }
    complaints
}

fn links_lead_somewhere(file: &File) -> Vec<Complaint> {
    if !is(&file.path, "md") {
        return Vec::new();
    }
    let folder = Path::new(&file.path).parent().unwrap_or(Path::new(""));
    let mut complaints = Vec::new();
    for (line, target) in links(&file.text) {
        let (path, title) = target.split_once('#').map_or((target.as_str(), None), |(path, title)| (path, Some(title)));
        let there = if path.is_empty() { Some(file.text.clone()) } else { content(&folder.join(path)) };
        match (there, title) {
            (None, _) => complaints.push((line, format!("{path} is not there"))),
            (Some(text), Some(title)) if !titles(&text).contains(&title.to_owned()) => {
                complaints.push((line, format!("nothing has the title #{title}")));
            }
            _ => {}
        }
    }
    complaints
}

/// The text of a file below the root; of a folder, or of what is no text, an empty one.
fn content(path: &Path) -> Option<String> {
    let path = root().join(path);
    path.exists().then(|| fs::read_to_string(path).unwrap_or_default())
}

/// Targets of the links of a Markdown text, those to other sites left out.
fn links(text: &str) -> Vec<(usize, String)> {
    prose(text)
        .flat_map(|(line, prose)| {
            let targets = prose.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
            let targets: Vec<_> = targets.map(|target| (line, target.to_owned())).collect();
            targets
        })
        .filter(|(_, target)| !target.contains("://") && !target.starts_with("mailto:"))
        .collect()
}

/// Lines outside fenced code, without inline code.
fn prose(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        (!fenced).then(|| (index + 1, line.split('`').step_by(2).collect::<Vec<_>>().join("`")))
    })
}

/// The anchors of a Markdown text's headings, as GitHub makes them.
fn titles(text: &str) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    text.lines()
        .filter_map(|line| line.strip_prefix('#').map(|rest| rest.trim_start_matches('#').trim().to_lowercase()))
        .map(|title| {
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
            let count = seen.entry(anchor.clone()).and_modify(|count| *count += 1).or_default();
            if *count == 0 { anchor } else { format!("{anchor}-{count}") }
        })
        .collect()
}

fn is(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file of the repository, without what is built, installed or written at run time.
fn tree() -> Vec<File> {
    const NOT_OURS: [&str; 6] = [".git", "target", ".dev", "data", ".env", "Cargo.lock"];
    let mut files = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            if NOT_OURS.iter().any(|name| *name == entry.file_name()) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let relative = path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
                files.push(File::new(&relative, &text));
            }
        }
    }
    files
}

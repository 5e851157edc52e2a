//! What can stand in an ABI file or in `contracts.toml`: the fuzz targets `abi` and `contracts_toml`, and the registry
//! of the target `logs` (see [`crate::fuzzing`]).
//!
//! The whole configuration is read as at a start, but from memory: no file is opened, no environment read.

use std::sync::Arc;

use alloy::json_abi::{Event, JsonAbi};

use super::{
    Invalid, Problem, Registry, Settings, Sources, abi as abi_file,
    files::Files,
    finish,
    problem::Source,
    variables::{self, Secrecy},
};

/// A key that the targets plant where a real one would stand.
pub(crate) const KEY: &str = "q7Xk2mVt9RzL4wPc8YhN3s";
/// This much of a key in a row is a leak.
const LEAK: usize = 8;
/// Largest input, bytes: beyond it a run tells about patience, not about mistakes.
const MOST: usize = 64 << 10;
/// The ABI that stands beside the built-in ones in the targets `contracts_toml` and `logs`: an event of every shape.
const WIDE: &str = include_str!("../fuzzing/wide.json");
/// Listens to all that the ABIs have.
const LISTENS: &str = include_str!("../fuzzing/contracts.toml");

/// A `contracts.toml`: accepted whole, or refused with the place of each mistake.
pub(crate) fn contracts_toml(data: &[u8]) {
    let Some(text) = text(data) else { return };
    match settings(text, ("abi/wide.json", WIDE)) {
        Ok(settings) => {
            let shown = format!("{}{}", settings.registry.summary(Some(1)), settings.warnings.join("\n"));
            hides(&shown);
            sound(&settings.registry);
        }
        Err(invalid) => placed(&invalid, &["contracts.toml:", "built-in abi/", "abi/wide.json:"], text),
    }
}

/// An ABI file: its events, each as the one entry that listens to it. Answers with the registries of those that can be
/// listened to, for the caller to decode logs by.
pub(crate) fn abi(data: &[u8]) -> Vec<Arc<Registry>> {
    let Some(text) = text(data) else { return Vec::new() };
    let abi = match abi_file::parse(&Source::new("abi/it.json", text)) {
        Ok(abi) => abi,
        Err(problem) => {
            placed(&Invalid::new(vec![problem]), &["abi/it.json:"], text);
            return Vec::new();
        }
    };
    let again = serde_json::to_string(&abi).ok().and_then(|text| serde_json::from_str::<JsonAbi>(&text).ok());
    assert_eq!(again.as_ref(), Some(&abi), "an ABI changes when it is written and read");
    abi.events().take(8).filter_map(|event| listener(event, text)).collect()
}

/// The registry that listens to one event of the ABI.
fn listener(event: &Event, abi: &str) -> Option<Arc<Registry>> {
    let signature = serde_json::Value::String(event.signature()); // escapes as TOML does
    let contracts = format!(
        "[[contract]]\nname = \"It\"\nabi = \"abi/it.json\"\n[[contract.event]]\nname = {signature}\n\
         handler = \"handleTransferEvent\"\n"
    );
    match settings(&contracts, ("abi/it.json", abi)) {
        Ok(settings) => {
            sound(&settings.registry);
            let same = |found: &super::Listener| found.event.signature() == event.signature();
            assert!(settings.registry.listeners().iter().all(same), "another event is listened to");
            Some(settings.registry)
        }
        Err(invalid) => {
            placed(&invalid, &["contracts.toml:", "abi/it.json:"], &contracts);
            None
        }
    }
}

/// The registry of the target `logs`; `None` where its own files are wrong.
pub(crate) fn registry() -> Option<Arc<Registry>> {
    settings(LISTENS, ("abi/wide.json", WIDE)).ok().map(|settings| settings.registry)
}

/// Whether a text shows the planted key, or a good part of it.
pub(crate) fn leaks(text: &str) -> bool {
    has_planted(text.as_bytes())
}

/// An input that has the key itself proves nothing; errors leave control characters out.
pub(crate) fn has_planted(data: &[u8]) -> bool {
    let data: Vec<u8> = data.iter().copied().filter(|byte| !byte.is_ascii_control()).collect();
    let mut parts = KEY.as_bytes().windows(LEAK);
    parts.any(|part| data.windows(LEAK).any(|window| window == part))
}

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok().filter(|text| text.len() <= MOST)
}

/// The settings with this `contracts.toml`; every secret there is has a value that must not show.
fn settings(contracts: &str, abi: (&str, &str)) -> Result<Settings, Invalid> {
    let files = Files::in_memory(Source::new("contracts.toml", contracts), abi);
    let mut sources = Sources::default();
    let mut set = |name: &str, value: &str| sources.environment.insert(name.to_owned(), value.to_owned());
    for variable in variables::all().filter(|variable| variable.secrecy == Secrecy::Opaque) {
        set(variable.name, KEY);
    }
    set("CHAIN_ID", "1");
    set("WEB3_PROVIDER", &format!("https://eth.node.example/v2/{KEY}"));
    set("REDIS_URL", &format!("rediss://:{KEY}@redis.example:6379"));
    set("MONGODB_URI", &format!("mongodb://u:{KEY}@mongo.example/db?tls=true"));
    set("SENTRY_DSN", &format!("https://{KEY}@sentry.example/1"));
    set("TRANSFER_HANDLER_SQS", "https://sqs.eu-west-1.amazonaws.com/123456789012/transfers");
    set("NFT_TRANSFER_SQS", "https://sqs.eu-west-1.amazonaws.com/123456789012/nft");
    set("A_TOKEN", "0x1111111111111111111111111111111111111111");
    finish(&sources, &files, None, (Vec::new(), Vec::new()))
}

/// What the pipeline takes for granted of a registry.
fn sound(registry: &Registry) {
    assert!(!registry.listeners().is_empty(), "nothing is listened to");
    let (topics, addresses) = (registry.topics(), registry.addresses());
    for listener in registry.listeners() {
        assert_eq!(listener.topic0, listener.event.selector(), "a topic that is not the event's");
        assert!(topics.contains(&listener.topic0), "a topic that is not asked for");
        let address = listener.address.unwrap_or_default();
        assert!(addresses.is_empty() || addresses.contains(&address), "a contract that is not asked for");
        let block = listener.start_block.unwrap_or_default();
        let found = registry.candidates(address, listener.topic0, block).any(|found| std::ptr::eq(found, listener));
        assert!(found, "a listener that no log finds");
    }
}

/// Every mistake has a place in one of these files, and is told in one line without a secret.
fn placed(invalid: &Invalid, files: &[&str], text: &str) {
    assert!(!invalid.problems.is_empty(), "refused without a reason");
    let lines = text.lines().count() + 1;
    for problem in &invalid.problems {
        let place = problem.place();
        let file = files.iter().find_map(|file| place.strip_prefix(file));
        assert!(file.is_some() || nothing_active(problem), "a mistake without a place: {place:?} {problem:?}");
        let line = file.and_then(|rest| rest.split(':').next()).and_then(|line| line.parse::<usize>().ok());
        let in_text = files.first().is_some_and(|first| place.starts_with(first));
        assert!(!in_text || line.is_some_and(|line| line <= lines), "a place outside the file: {place}");
        let told = problem.line();
        hides(&told);
        assert!(!told.contains(char::is_control), "not one line: {told:?}");
    }
    hides(&invalid.render(false));
}

/// The one mistake that is of the file as a whole.
fn nothing_active(problem: &Problem) -> bool {
    problem.place() == "contracts.toml" && problem.text().starts_with("no entry is active")
}

fn hides(shown: &str) {
    assert!(!leaks(shown), "a secret shows: {shown}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_the_targets_are_right() {
        let registry = settings(LISTENS, ("abi/wide.json", WIDE)).map(|settings| settings.registry);
        assert_eq!(registry.unwrap().listeners().len(), 8);
    }
}

//! ABI files: a bare array, or an object that holds it under `abi`, as compilers write it.

use std::{collections::BTreeMap, sync::Arc};

use alloy::{
    dyn_abi::{DynSolType, Specifier as _},
    json_abi::{Event, EventParam, JsonAbi},
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    files::Files,
    problem::{Problem, Source, closest},
};

/// Largest type, words of 32 bytes: 2 MiB, what 16 million gas pay for.
const MOST_WORDS: usize = 1 << 16;
/// Most brackets in a type as it is written.
const MOST_BRACKETS: usize = 32;
/// Deepest nesting of arrays and tuples; the decoder itself goes no deeper than 16.
const MOST_LEVELS: usize = 12;

/// A compiler's artifact; everything but the ABI is skipped.
#[derive(Deserialize)]
struct Artifact {
    abi: JsonAbi,
}

/// The ABIs that were named so far, each read and reported once.
pub(super) struct Abis<'f> {
    files: &'f Files,
    read: BTreeMap<String, Option<Arc<JsonAbi>>>,
}

impl<'f> Abis<'f> {
    pub(super) fn new(files: &'f Files) -> Self {
        Self { files, read: BTreeMap::new() }
    }

    /// The ABI at `path`; `None` where it cannot be read or parsed, which the first call reports.
    pub(super) fn open(
        &mut self,
        path: &str,
        missing: impl FnOnce(String) -> Problem,
        problems: &mut Vec<Problem>,
    ) -> Option<Arc<JsonAbi>> {
        if let Some(known) = self.read.get(path) {
            return known.clone();
        }
        let abi = match self.files.abi(path) {
            Err(text) => Err(missing(text).mend("paths start from the directory that holds config/")),
            Ok(source) => parse(&source),
        };
        let abi = abi.map_err(|problem| problems.push(problem)).ok().map(Arc::new);
        self.read.insert(path.to_owned(), abi.clone());
        abi
    }
}

/// The ABI in a file.
pub(super) fn parse(source: &Arc<Source>) -> Result<JsonAbi, Problem> {
    if let Some(deep) = too_deep(&source.text) {
        let byte = source.text.find(&*deep).unwrap_or_default();
        return Err(Problem::at(source, byte..byte, format!("a type has more than {MOST_BRACKETS} brackets"))
            .mend("mend the ABI file"));
    }
    let text = source.text.trim_start_matches('\u{feff}').trim_start();
    let parsed = if text.starts_with('{') {
        serde_json::from_str::<Artifact>(&source.text).map(|artifact| artifact.abi)
    } else {
        serde_json::from_str::<JsonAbi>(&source.text)
    };
    parsed.or_else(|error| completed(text).ok_or(error)).map_err(|error| {
        let byte = byte_of(&source.text, error.line(), error.column());
        // The parser says the place again at the end of its message.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        Problem::at(source, byte..byte, format!("not an ABI: {message}"))
            .mend("an ABI is a JSON array of items, or an object with that array under \"abi\"")
    })
}

/// A type that a parser of types, which calls itself for each bracket, could not survive.
fn too_deep(text: &str) -> Option<String> {
    /// What holds types: an artifact its ABI, an item its arguments, a tuple its components.
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Typed {
        r#type: String,
        abi: Vec<Typed>,
        inputs: Vec<Typed>,
        outputs: Vec<Typed>,
        components: Vec<Typed>,
    }
    fn deepest(typed: Typed) -> Option<String> {
        if typed.r#type.matches(['[', '(']).count() > MOST_BRACKETS {
            return Some(typed.r#type);
        }
        [typed.abi, typed.inputs, typed.outputs, typed.components].into_iter().flatten().find_map(deepest)
    }
    let items = serde_json::from_str::<Vec<Typed>>(text).or_else(|_| serde_json::from_str(text).map(|one| vec![one]));
    items.ok()?.into_iter().find_map(deepest)
}

/// The ABI with `anonymous: false` where an event does not say; compilers always do, people who write ABIs by hand do not.
fn completed(text: &str) -> Option<JsonAbi> {
    let mut abi: Value = serde_json::from_str(text).ok()?;
    let items = if abi.is_array() { &mut abi } else { abi.get_mut("abi")? };
    for item in items.as_array_mut()?.iter_mut().filter_map(Value::as_object_mut) {
        if item.get("type").is_some_and(|kind| kind == "event") {
            item.entry("anonymous").or_insert(Value::Bool(false));
        }
    }
    serde_json::from_value(items.take()).ok()
}

/// The byte of a line and a column, both from 1; the column counts bytes.
fn byte_of(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    (before + column.saturating_sub(1)).min(text.len())
}

/// The event that `name` means: a name where only one event has it, or a whole signature.
///
/// # Errors
///
/// What is wrong, and the mend.
pub(super) fn event(abi: &JsonAbi, name: &str) -> Result<Event, (String, String)> {
    let wanted: String = name.split_whitespace().collect();
    let matches = |event: &&Event| event.name == wanted || event.signature() == wanted;
    let mut found: Vec<&Event> = Vec::new();
    for event in abi.events().filter(matches) {
        if !found.iter().any(|other| other.signature() == event.signature() && layout(other) == layout(event)) {
            found.push(event);
        }
    }
    match found.as_slice() {
        [] => Err(missing(abi, &wanted)),
        [event] if event.anonymous => Err((
            format!("event '{name}' is anonymous: its logs cannot be told by a topic"),
            "use another event".into(),
        )),
        [event] => Ok((*event).clone()),
        [first, rest @ ..] if rest.iter().all(|event| event.signature() == first.signature()) => Err((
            format!("the ABI has '{wanted}' several times with different indexed arguments"),
            "keep one of them in the ABI file".to_owned(),
        )),
        several => {
            let signatures: Vec<String> = several.iter().map(|event| format!("'{}'", event.signature())).collect();
            Err((format!("the ABI has several events '{wanted}'"), format!("write one of: {}", signatures.join(", "))))
        }
    }
}

/// The types as they are hashed: no short forms, tuples written out.
///
/// # Errors
///
/// The type that does not exist.
pub fn canonical_types(event: &Event) -> Result<Vec<String>, String> {
    let name = |input: &EventParam| match input.resolve() {
        // As Rust writes a tuple of one; Solidity has no comma there.
        Ok(resolved) => Ok(resolved.sol_type_name().replace(",)", ")")),
        Err(_) => Err(input.ty.clone()),
    };
    event.inputs.iter().map(name).collect()
}

/// Whether each type of the event is one that a log can hold, in its full form: `uint` hashes to another topic than
/// `uint256`.
pub(super) fn check_types(event: &Event) -> Result<(), (String, String)> {
    for input in &event.inputs {
        if let Some(wrong) = input.resolve().ok().and_then(|of| impossible(&of, 0)) {
            let text = format!("the ABI's '{}' has the type '{}', which {wrong}", event.name, input.selector_type());
            return Err((text, "mend the ABI file".to_owned()));
        }
    }
    let types = canonical_types(event).map_err(|unknown| {
        (format!("the ABI's '{}' has the unknown type '{unknown}'", event.name), "mend the ABI file".to_owned())
    })?;
    let short = event.inputs.iter().map(EventParam::selector_type).zip(&types).find(|(given, full)| *given != **full);
    short.map_or(Ok(()), |(given, full)| {
        Err((format!("the ABI's '{}' has the type '{given}'", event.name), format!("write '{full}' in the ABI file")))
    })
}

/// What keeps a type from standing in a log. Solidity has no empty arrays and tuples; and a decoder makes room for a
/// fixed array before it looks at the data.
fn impossible(of: &DynSolType, depth: usize) -> Option<&'static str> {
    let inside: &[DynSolType] = match of {
        DynSolType::Array(inner) | DynSolType::FixedArray(inner, 1..) => std::slice::from_ref(inner),
        DynSolType::Tuple(types) if !types.is_empty() => types,
        DynSolType::FixedArray(..) | DynSolType::Tuple(_) => return Some("holds nothing"),
        _ => return None,
    };
    if of.minimum_words() > MOST_WORDS {
        return Some("is larger than a log can be");
    }
    if depth == MOST_LEVELS {
        return Some("is nested too deeply");
    }
    inside.iter().find_map(|inner| impossible(inner, depth + 1))
}

fn layout(event: &Event) -> Vec<bool> {
    event.inputs.iter().map(|input| input.indexed).collect()
}

fn missing(abi: &JsonAbi, name: &str) -> (String, String) {
    let names: Vec<String> = if name.contains('(') {
        abi.events().map(Event::signature).collect()
    } else {
        abi.events.keys().cloned().collect()
    };
    let near: Vec<&str> = names.iter().map(String::as_str).collect();
    let mend = match (closest(name, &near), names.is_empty()) {
        (_, true) => "the ABI has no events at all".to_owned(),
        (Some(near), _) => format!("did you mean '{near}'? The ABI has: {}", names.join(", ")),
        (None, _) => format!("the ABI has: {}", names.join(", ")),
    };
    (format!("event '{name}' is not in the ABI"), mend)
}

#[cfg(test)]
mod tests {
    use alloy::json_abi::Param;

    use super::*;

    fn wrong(of: &str) -> String {
        let mut event = Event::parse("event It(uint256 value)").unwrap();
        event.inputs[0].ty = of.to_owned();
        check_types(&event).err().map(|(text, _)| text).unwrap_or_default()
    }

    #[test]
    fn a_type_that_no_log_can_hold_is_refused() {
        for of in [DynSolType::Tuple(Vec::new()), DynSolType::FixedArray(Box::new(DynSolType::String), 0)] {
            assert_eq!(impossible(&DynSolType::Array(Box::new(of)), 0), Some("holds nothing"));
        }
        for (of, why) in [
            ("uint256[0]", "unknown type"),
            ("uint256[65537]", "larger than a log"),
            ("uint256[4294967295][]", "larger than a log"),
            ("bool[65536][65536][65536][65536]", "larger than a log"),
            ("uint8[][][][][][][][][][][][][]", "nested too deeply"),
            ("uint", "has the type 'uint'"),
            ("uint257", "unknown type"),
        ] {
            assert!(wrong(of).contains(why), "{of}: {}", wrong(of));
        }
        for right in ["uint256[65536]", "bytes[3][][]", "string", "uint8[][][][][][][][][][][][]"] {
            assert_eq!(wrong(right), "");
        }
    }

    #[test]
    fn a_struct_of_one_member_is_a_type() {
        let mut event = Event::parse("event It(uint256 items)").unwrap();
        event.inputs[0].ty = "tuple[]".to_owned();
        event.inputs[0].components = vec![Param::parse("address who").unwrap()];
        assert_eq!(check_types(&event), Ok(()));
        assert_eq!(canonical_types(&event).unwrap(), ["(address)[]"]);
        event.inputs[0].components[0].ty = "uint".to_owned();
        assert_eq!(check_types(&event).unwrap_err().1, "write '(uint256)[]' in the ABI file");
    }

    #[test]
    fn a_type_of_a_hundred_thousand_levels_ends_in_an_error() {
        for of in
            [format!("uint8{}", "[]".repeat(100_000)), format!("{}uint8{}", "(".repeat(100_000), ")".repeat(100_000))]
        {
            let text = format!(
                r#"[{{"type":"event","name":"T","anonymous":false,"inputs":[{{"name":"a","type":"{of}","indexed":false}}]}}]"#
            );
            let refused = parse(&Source::new("abi/it.json", text)).unwrap_err();
            assert_eq!(refused.line(), "abi/it.json:1:77: a type has more than 32 brackets; mend the ABI file");
        }
    }
}

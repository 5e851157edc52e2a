//! JSON text in ASCII, written straight into one string.
//!
//! The message is ASCII (contract §8) and its building cannot fail, so it is written here, member by member, instead of
//! through a serialiser. Not for reading JSON.

use alloy::{hex, primitives::B256};

/// The beginning of a member whose name stands in this program, and so needs no escaping.
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}
pub(super) use key;

/// An object being written; one is open at a time in a string, nested ones go into [`member`](Self::member). Its methods
/// take a [`key!`], which is written in one piece: a message has twenty members, and there are millions of messages.
pub(super) struct Object<'a> {
    out: &'a mut String,
    empty: bool,
}

impl<'a> Object<'a> {
    pub(super) fn open(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, empty: true }
    }

    /// Begins a member of any name; the caller writes its value into what is returned.
    pub(super) fn named(&mut self, name: &str) -> &mut String {
        if !self.empty {
            self.out.push(',');
        }
        self.empty = false;
        quote(self.out, name);
        self.out.push(':');
        self.out
    }

    /// Begins a member; the caller writes its value into what is returned.
    pub(super) fn member(&mut self, key: &'static str) -> &mut String {
        let comma = usize::from(self.empty);
        self.empty = false;
        self.out.push_str(key.get(comma..).unwrap_or_default());
        self.out
    }

    pub(super) fn text(&mut self, key: &'static str, value: &str) {
        quote(self.member(key), value);
    }

    /// A text in which nothing is to be escaped: digits, letters and colons.
    pub(super) fn plain(&mut self, key: &'static str, value: &str) {
        unescaped(self.member(key), value);
    }

    /// 32 bytes as `0x` and lower-case hex.
    pub(super) fn word(&mut self, key: &'static str, value: B256) {
        self.plain(key, hex::Buffer::<32, true>::new().format(&value));
    }

    pub(super) fn number(&mut self, key: &'static str, value: u64) {
        self.member(key).push_str(itoa::Buffer::new().format(value));
    }

    pub(super) fn close(self) {
        self.out.push('}');
    }
}

fn unescaped(out: &mut String, text: &str) {
    out.push('"');
    out.push_str(text);
    out.push('"');
}

/// Writes `text` as a JSON string.
pub(super) fn quote(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    // What is left as it is goes in one piece: the body of a message, quoted within a request, is full of quotes.
    while let Some(at) = rest.bytes().position(|byte| !matches!(byte, b' '..=b'~') || byte == b'"' || byte == b'\\') {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        let mut characters = special.chars();
        match characters.next() {
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            Some(character) => escape(out, character),
            None => {}
        }
        rest = characters.as_str();
    }
    out.push_str(rest);
    out.push('"');
}

/// Copies valid JSON. Outside ASCII there is only text within its strings, where an escape means the same.
pub(super) fn copy_ascii(out: &mut String, json: &str) {
    if json.is_ascii() {
        out.push_str(json);
        return;
    }
    for character in json.chars() {
        if character.is_ascii() { out.push(character) } else { escape(out, character) }
    }
}

/// `\uXXXX`, twice where UTF-16 needs a surrogate pair (RFC 8259 §7).
fn escape(out: &mut String, character: char) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        let escaped = format!("\\u{unit:04x}");
        out.push_str(&escaped);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_comes_back_from_its_quoted_form_which_is_printable_ascii(text in any::<String>()) {
            let mut json = String::new();
            quote(&mut json, &text);
            prop_assert!(json.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }

        #[test]
        fn copied_json_is_ascii_and_means_the_same(text in any::<String>()) {
            let original = serde_json::to_string(&serde_json::json!({ &text: [&text] })).unwrap();
            let mut copy = String::new();
            copy_ascii(&mut copy, &original);
            prop_assert!(copy.is_ascii());
            prop_assert_eq!(
                serde_json::from_str::<serde_json::Value>(&copy).unwrap(),
                serde_json::from_str::<serde_json::Value>(&original).unwrap()
            );
        }
    }

    #[test]
    fn members_are_separated_and_nested_objects_are_closed() {
        let mut json = String::new();
        let mut object = Object::open(&mut json);
        object.text(key!("a"), "x\"y");
        Object::open(object.named("b")).close();
        object.number(key!("c"), 7);
        object.close();
        assert_eq!(json, r#"{"a":"x\"y","b":{},"c":7}"#);
    }
}

//! Just enough of Rust's syntax for `tests/tidy.rs`: tokens without comments, the paths that a file names, and the
//! sizes of its functions. It knows nothing of types and macros, and need not.

use std::collections::BTreeSet;

/// An identifier, a literal (shortened to its delimiters) or a punctuation mark; `::`, `->` and `=>` are one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) text: String,
    /// The line it begins on, from 1.
    pub(crate) line: usize,
    /// The line it ends on.
    pub(crate) last_line: usize,
}

impl Token {
    pub(crate) fn is(&self, text: &str) -> bool {
        self.text == text
    }

    fn is_word(&self) -> bool {
        self.text.starts_with(|first: char| first.is_alphabetic() || first == '_')
    }
}

/// A path as it is written, with the groups of a `use` taken apart: `use a::{b, c::d}` names `a::b` and `a::c::d`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) segments: Vec<String>,
    pub(crate) line: usize,
}

/// One function that has a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) line: usize,
    /// Parameters, `self` among them.
    pub(crate) parameters: usize,
    /// Lines of code between its braces.
    pub(crate) lines: usize,
}

/// Takes the text apart; comments are left out.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    let mut rest = text;
    let mut line = 1;
    let mut found = Vec::new();
    while let Some(first) = rest.chars().next() {
        let (length, shown) = next_token(rest, first);
        let (token, after) = rest.split_at(length);
        let last_line = line + token.matches('\n').count();
        if let Some(shown) = shown {
            found.push(Token { text: shown.to_owned(), line, last_line });
        }
        line = last_line;
        rest = after;
    }
    found
}

/// Length of what stands at the beginning of `rest`, and how it is shown; blanks and comments are not.
fn next_token(rest: &str, first: char) -> (usize, Option<&str>) {
    if let Some(length) = comment(rest) {
        return (length, None);
    }
    if let Some(length) = literal(rest) {
        return (length, Some("\"\""));
    }
    let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    if word > 0 {
        return (word, rest.get(..word));
    }
    if first.is_whitespace() {
        return (first.len_utf8(), None);
    }
    let length = if ["::", "->", "=>"].iter().any(|pair| rest.starts_with(pair)) { 2 } else { first.len_utf8() };
    (length, rest.get(..length))
}

fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    rest.starts_with("/*").then(|| {
        let mut depth = 0_usize;
        let mut at = 0;
        while let Some(tail) = rest.get(at..).filter(|tail| !tail.is_empty()) {
            if tail.starts_with("/*") {
                depth += 1;
                at += 2;
            } else if tail.starts_with("*/") {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            } else {
                at += tail.chars().next().map_or(1, char::len_utf8);
            }
        }
        rest.len()
    })
}

/// String, byte string, raw string or character; a lifetime is none of them.
fn literal(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|prefix| {
        rest.strip_prefix(prefix)
            .is_some_and(|tail| tail.starts_with('"') || tail.starts_with("#\"") || tail.starts_with("##\""))
    });
    if let Some(prefix) = prefix {
        let tail = rest.get(prefix.len()..)?;
        if prefix.ends_with('r') {
            let hashes = tail.find('"')?;
            let end = format!("\"{}", tail.get(..hashes)?);
            let body = tail.get(hashes + 1..)?;
            return Some(prefix.len() + hashes + 1 + body.find(&end).map_or(body.len(), |at| at + end.len()));
        }
        return tail.starts_with('"').then(|| prefix.len() + quoted(tail, '"'));
    }
    let tail = rest.strip_prefix('b').unwrap_or(rest);
    let mut characters = tail.strip_prefix('\'')?.chars();
    let is_character = match characters.next()? {
        '\\' => true,
        _ => characters.next() == Some('\''),
    };
    is_character.then(|| rest.len() - tail.len() + quoted(tail, '\''))
}

/// Length of a quoted text with backslash escapes, both quotes counted.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Without the items under `#[cfg(test)]`.
pub(crate) fn without_tests(tokens: &[Token]) -> Vec<Token> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let marked = tokens.get(at..at + MARK.len()).is_some_and(|seen| seen.iter().zip(MARK).all(|(a, b)| a.is(b)));
        if marked {
            at = end_of_item(tokens, at + MARK.len());
        } else {
            kept.push(token.clone());
            at += 1;
        }
    }
    kept
}

/// The index after the item that begins at `at`: after its `;`, or after the brace that closes its first one.
fn end_of_item(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match token.text.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 && (token.is(";") || token.is("}")) {
            return index + 1;
        }
    }
    tokens.len()
}

/// How many lines hold code.
pub(crate) fn code_lines(tokens: &[Token]) -> usize {
    tokens.iter().flat_map(|token| token.line..=token.last_line).collect::<BTreeSet<_>>().len()
}

/// Every path of two segments or more.
pub(crate) fn paths(tokens: &[Token]) -> Vec<Named> {
    // Behind these `::` begins a path from the outermost level.
    const NO_SEGMENTS: [&str; 7] = ["use", "in", "as", "impl", "dyn", "mut", "return"];
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let goes_on =
            tokens.get(at + 1).is_some_and(|next| next.is("::")) && !NO_SEGMENTS.contains(&token.text.as_str());
        if token.is_word() && goes_on {
            at = path(tokens, at, &[], &mut found);
        } else {
            at += 1;
        }
    }
    found
}

/// Reads one path, or one branch of a `use`, from its first segment on; gives the index after it.
fn path(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<Named>) -> usize {
    let mut segments = prefix.to_vec();
    let line = tokens.get(at).map_or(0, |token| token.line);
    while let Some(token) = tokens.get(at) {
        if token.is("{") {
            return group(tokens, at + 1, &segments, found);
        }
        if !token.is_word() {
            break;
        }
        // `a::{self, b}` names `a` itself.
        if !token.is("self") || segments.is_empty() {
            segments.push(token.text.clone());
        }
        at += 1;
        if !tokens.get(at).is_some_and(|next| next.is("::")) {
            break;
        }
        at += 1;
    }
    found.push(Named { segments, line });
    at
}

fn group(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<Named>) -> usize {
    while let Some(token) = tokens.get(at) {
        at = match token.text.as_str() {
            "}" => return at + 1,
            "as" => at + 2,
            _ if token.is_word() || token.is("{") => path(tokens, at, prefix, found),
            _ => at + 1,
        };
    }
    at
}

/// Every function that has a body.
pub(crate) fn functions(tokens: &[Token]) -> Vec<Function> {
    tokens
        .windows(2)
        .enumerate()
        .filter(|(_, pair)| matches!(pair, [keyword, name] if keyword.is("fn") && name.is_word()))
        .filter_map(|(at, _)| function(tokens.get(at + 1..)?))
        .collect()
}

/// Reads a function from its name on.
fn function(tokens: &[Token]) -> Option<Function> {
    let name = tokens.first()?;
    let open = opening_of_parameters(tokens)?;
    let close = matching(tokens, open)?;
    let body = tokens.iter().enumerate().skip(close).find_map(|(at, token)| match token.text.as_str() {
        "{" => Some(Some(at)),
        ";" if !inside_brackets(tokens.get(close..at).unwrap_or_default()) => Some(None),
        _ => None,
    })??;
    let end = matching(tokens, body)?;
    Some(Function {
        name: name.text.clone(),
        line: name.line,
        parameters: parameters(tokens.get(open + 1..close)?),
        lines: code_lines(tokens.get(body + 1..end)?),
    })
}

fn inside_brackets(tokens: &[Token]) -> bool {
    let count = |mark| tokens.iter().filter(|token| token.is(mark)).count();
    count("[") > count("]")
}

/// Where the parameters open, behind the name and its generics.
fn opening_of_parameters(tokens: &[Token]) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(1) {
        match token.text.as_str() {
            "<" => depth += 1,
            ">" => depth = depth.saturating_sub(1),
            "(" if depth == 0 => return Some(at),
            _ => {}
        }
    }
    None
}

/// The index of the mark that closes the one at `open`.
fn matching(tokens: &[Token], open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// Counts what stands between the commas of the outermost level.
fn parameters(tokens: &[Token]) -> usize {
    let mut depth = 0_usize;
    let mut count = 0;
    let mut empty = true;
    for token in tokens {
        match token.text.as_str() {
            "," if depth == 0 => {
                empty = true;
                continue;
            }
            "(" | "[" | "{" | "<" => depth += 1,
            ")" | "]" | "}" | ">" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if empty {
            count += 1;
            empty = false;
        }
    }
    count
}

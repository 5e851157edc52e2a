//! Takes secrets out of text that somebody else wrote.
//!
//! Libraries quote the request's URL in their errors, and an RPC URL's path is a key. Our own values never print
//! ([`SecretUrl`](crate::config::SecretUrl)); this is for everything else: error texts of third-party clients, before
//! they become one of our errors; every log line; every report to Sentry. Pure and total: any text in, a text without
//! URLs beyond scheme and host out. Hashes and addresses stay, they are what a reader of the logs searches for.

use std::borrow::Cow;

use crate::config::mask_host;

/// What stands where something was taken out.
pub const MASK: &str = "***";

/// Endings of names (lower case, without `_` and `-`) whose value is a secret wherever `name=value` or `name: value`
/// stands. Bare `token` and `key` are not among them: they are words of this domain.
const SECRET_NAMES: [&str; 10] = [
    "apikey",
    "password",
    "passwd",
    "secret",
    "secretkey",
    "accesskey",
    "privatekey",
    "accesstoken",
    "sessiontoken",
    "authorization",
];

/// The text with every URL cut to scheme and host, and the values of what is named like a secret masked.
///
/// A URL of nothing but scheme, host and port stays as it is. Where it cannot be told what is host and what is
/// password, neither is shown. Applying it twice changes nothing more.
#[must_use]
pub fn scrub(text: &str) -> Cow<'_, str> {
    match scrub_urls(text) {
        Cow::Borrowed(text) => scrub_named(text),
        Cow::Owned(text) => Cow::Owned(match scrub_named(&text) {
            Cow::Borrowed(_) => text,
            Cow::Owned(named) => named,
        }),
    }
}

/// Whether a value of this name is a secret, as of `MONGODB_PASSWORD` or `apiKey`.
#[must_use]
pub fn is_secret_name(name: &str) -> bool {
    let name: String = name.chars().filter(|c| !matches!(c, '_' | '-')).collect::<String>().to_ascii_lowercase();
    SECRET_NAMES.iter().any(|secret| name.ends_with(secret))
}

fn scrub_urls(text: &str) -> Cow<'_, str> {
    let mut rest = text;
    let mut clean = String::new();
    while let Some((before, after)) = rest.split_once("://") {
        clean.push_str(before);
        clean.push_str("://");
        let (url, beyond) = after.split_at(url_length(after));
        clean.push_str(&visible(url));
        rest = beyond;
    }
    if clean.is_empty() {
        return Cow::Borrowed(text);
    }
    clean.push_str(rest);
    Cow::Owned(clean)
}

/// How many bytes after `://` belong to the URL. Generous, because passwords are often not percent-encoded: up to white
/// space, a double quote (escaped or not), a backquote or an angle bracket, less closing punctuation at the end.
fn url_length(text: &str) -> usize {
    let end = text
        .char_indices()
        .find(|(at, c)| {
            let quote = *c == '"' || (*c == '\\' && opening_quote(text.split_at(*at).1).is_some());
            quote || c.is_whitespace() || c.is_control() || matches!(c, '<' | '>' | '`')
        })
        .map_or(text.len(), |(at, _)| at);
    let (url, _) = text.split_at(end);
    url.trim_end_matches([')', ']', '}', ',', '.', ';', ':', '\'', '!', '?']).len()
}

/// What of a URL's part after `://` may be seen.
fn visible(url: &str) -> Cow<'_, str> {
    if url.is_empty() {
        // A scheme alone, as in "write wss:// or https://".
        return Cow::Borrowed(url);
    }
    let (authority, path) = url.split_at(url.find(['/', '?', '#', '\\']).unwrap_or(url.len()));
    let (user, hosts) = authority.rsplit_once('@').map_or((None, authority), |(user, hosts)| (Some(user), hosts));
    let named = !hosts.is_empty() && hosts.split(',').all(|host| host_of(host).is_some());
    if !named || path.contains('@') {
        // An unencoded `/` in a password makes its beginning look like a host.
        return Cow::Borrowed(MASK);
    }
    let masked = |host: &str| mask_host(host) != host;
    if user.is_none() && matches!(path, "" | "/") && !hosts.split(',').filter_map(host_of).any(masked) {
        return Cow::Borrowed(url);
    }
    Cow::Owned(hosts.split(',').filter_map(host_of).map(mask_host).collect::<Vec<_>>().join(","))
}

/// The host of `host`, `host:port` or `[v6]:port`; none where it is not one of these.
fn host_of(text: &str) -> Option<&str> {
    let split = text.rfind(']').map_or_else(|| text.find(':'), |bracket| Some(bracket + 1));
    let (host, port) = text.split_at(split.unwrap_or(text.len()));
    let (bare, is_host_char): (_, fn(char) -> bool) = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => (v6, |c| c.is_ascii_hexdigit() || matches!(c, ':' | '.' | '%')),
        None => (host, |c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_')),
    };
    let port_fits = port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.chars().all(|c| c.is_ascii_digit()));
    (port_fits && !bare.is_empty() && bare.chars().all(is_host_char)).then_some(host)
}

fn scrub_named(text: &str) -> Cow<'_, str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let mut clean = String::new();
    let mut rest = text;
    let mut kept = text;
    while let Some(start) = rest.find(is_word) {
        let (_, from_word) = rest.split_at(start);
        let (word, after) = from_word.split_at(from_word.find(|c| !is_word(c)).unwrap_or(from_word.len()));
        rest = after;
        let Some((value_at, beyond)) = secret_after(word, from_word) else { continue };
        let (shown, _) = kept.split_at(kept.len() - value_at.len());
        clean.push_str(shown);
        clean.push_str(MASK);
        (kept, rest) = (beyond, beyond);
    }
    if kept.len() == text.len() {
        return Cow::Borrowed(text);
    }
    clean.push_str(kept);
    Cow::Owned(clean)
}

/// Where a secret follows `word` (with which `text` begins), or is it: the text from the secret on, and the text
/// after it.
fn secret_after<'a>(word: &str, text: &'a str) -> Option<(&'a str, &'a str)> {
    let after = text.split_at(word.len()).1;
    if is_aws_key_id(word) {
        return Some((text, after));
    }
    if word.eq_ignore_ascii_case("bearer") {
        let value = after.trim_start_matches(' ');
        let length = value_length(value);
        return (value.len() < after.len() && length >= 16).then(|| (value, value.split_at(length).1));
    }
    if !is_secret_name(word) {
        return None;
    }
    let after = skip_colours(after);
    let quoted_name = opening_quote(after).is_some();
    let value = opening_quote(after).unwrap_or(after).trim_start_matches(' ');
    let value = value.strip_prefix('=').or_else(|| value.strip_prefix(':'))?;
    let value = skip_colours(value).trim_start_matches(' ');
    let quoted = opening_quote(value);
    if quoted_name && quoted.is_none() {
        return None; // JSON's numbers, null, arrays and objects; what is inside is looked at by itself
    }
    let inner = quoted.unwrap_or(value);
    let scheme = ["Basic ", "Bearer ", "basic ", "bearer "].into_iter().find_map(|scheme| inner.strip_prefix(scheme));
    let inner = scheme.unwrap_or(inner);
    let length = value_length(inner);
    (length > 0 && !inner.starts_with(MASK)).then(|| (inner, inner.split_at(length).1))
}

/// The text after the colour codes that it begins with: a terminal's line has them between name and value.
fn skip_colours(mut text: &str) -> &str {
    while let Some((code, rest)) = text.strip_prefix("\u{1b}[").and_then(|text| text.split_once('m')) {
        if !code.chars().all(|c| c.is_ascii_digit() || c == ';') {
            break;
        }
        text = rest;
    }
    text
}

/// The text after the quote, escaped or not, that it begins with.
fn opening_quote(text: &str) -> Option<&str> {
    text.trim_start_matches('\\').strip_prefix(['"', '\''])
}

/// How many bytes a value goes on, quotes, brackets and separators excluded.
fn value_length(text: &str) -> usize {
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '&' | ')' | '}' | ']' | '>');
    let end = text.find(ends).unwrap_or(text.len());
    // The backslashes of an escaped quote belong to the quote.
    if opening_quote(text.split_at(end).1).is_none() { end } else { text.split_at(end).0.trim_end_matches('\\').len() }
}

/// AWS access key ids: `AKIA` or `ASIA` and 16 more.
fn is_aws_key_id(word: &str) -> bool {
    word.len() == 20
        && (word.starts_with("AKIA") || word.starts_with("ASIA"))
        && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_url_keeps_scheme_and_host_only() {
        let cases = [
            ("GET https://user:PW@h.example/v2/KEY1?apikey=KEY2 failed", "GET https://h.example failed"),
            (r#"url("wss://h:8546/ws/v3/KEY")"#, r#"url("wss://h")"#),
            ("error for url (https://h/v2/KEY), again", "error for url (https://h), again"),
            ("redis://:PW@[::1]:6379/3", "redis://[::1]"),
            ("mongodb://u:PW@a:1,b:2/db?replicaSet=r", "mongodb://a,b"),
            ("mongodb+srv://u:PW@cluster0.example/", "mongodb+srv://cluster0.example"),
            ("https://KEY@sentry.example/1.", "https://sentry.example."),
            ("https://a/KEY,https://b/KEY", "https://a"),
        ];
        for (text, expected) in cases {
            assert_eq!(scrub(text), expected, "{text}");
        }
    }

    #[test]
    fn a_password_that_was_not_encoded_does_not_pass_as_a_host() {
        for url in ["redis://:PW/PW@h:6379", "redis://u:1/PW@h", "https://u:P?W@h/x", "mongodb://u:p#PW@h", "x://a b"] {
            let clean = scrub(url);
            assert!(!clean.contains("PW") && !clean.contains("P?W") && !clean.contains("u:"), "{url} → {clean}");
        }
    }

    #[test]
    fn what_holds_no_secret_stays_untouched() {
        let hash = format!("block 0x{} at 0x{}", "ab".repeat(32), "cd".repeat(20));
        for text in [hash.as_str(), "listening on http://0.0.0.0:3001", "token: USDC", "a secret of 16 or more", ""] {
            assert!(matches!(scrub(text), Cow::Borrowed(_)) || scrub(text) == text, "{text}");
            assert_eq!(scrub(text), text);
        }
    }

    #[test]
    fn the_value_of_a_secret_name_is_masked() {
        let cases = [
            ("apikey=K1&x=2", "apikey=***&x=2"),
            ("API_KEY: K1", "API_KEY: ***"),
            ("AWS_SECRET_ACCESS_KEY=\"K1\"", "AWS_SECRET_ACCESS_KEY=\"***\""),
            (r#"{"password":"K1","n":1}"#, r#"{"password":"***","n":1}"#),
            (r#"{"m":"{\"password\":\"K1\"}"}"#, r#"{"m":"{\"password\":\"***\"}"}"#),
            (r#"{"password":null}"#, r#"{"password":null}"#),
            ("Authorization: Basic K1", "Authorization: Basic ***"),
            ("sent Bearer 0123456789abcdef.", "sent Bearer ***"),
            ("key AKIAIOSFODNN7EXAMPLE is", "key *** is"),
            (
                "\u{1b}[3mpassword\u{1b}[0m\u{1b}[2m=\u{1b}[0m\"K1\"",
                "\u{1b}[3mpassword\u{1b}[0m\u{1b}[2m=\u{1b}[0m\"***\"",
            ),
            ("password=K1 password=K2", "password=*** password=***"),
        ];
        for (text, expected) in cases {
            assert_eq!(scrub(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_scrubbed_once_and_for_all(text in ".{0,200}") {
            let once = scrub(&text).into_owned();
            prop_assert_eq!(scrub(&once), once.as_str());
        }

        #[test]
        fn keys_in_a_url_never_survive(
            before in "[ -~]{0,20}",
            user in "[a-z0-9]{0,6}",
            junk in "[!-~&&[^\"<>`\\\\]]{0,12}",
            after in "[ ,)\"].{0,20}",
        ) {
            let text = format!("{before} https://{user}:{junk}CANARY@node.example:443/v2/CANARY{junk}?k=CANARY{after}");
            prop_assert!(!scrub(&text).contains("CANARY"), "{}", scrub(&text));
        }

        #[test]
        fn a_line_of_json_stays_json(value in ".{0,60}", name in "(password|url|apiKey|n)") {
            let text = format!("{value} https://u:{value}@h/{value} password={value} ");
            let line = serde_json::json!({ name: text, "nested": { "secret": serde_json::json!({"secret": value}).to_string() } }).to_string();
            prop_assert!(serde_json::from_str::<serde_json::Value>(&scrub(&line)).is_ok(), "{}", scrub(&line));
        }
    }
}

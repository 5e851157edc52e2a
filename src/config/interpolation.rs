//! `${NAME}` and `${NAME:-fallback}` in the values of `contracts.toml` and `providers.toml`.

use super::{
    layers::Layers,
    variables::{self, Secrecy},
};

/// Why a value cannot be put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// A variable without a value and without a fallback.
    Unset(String),
    /// Anything else, with its mend.
    Wrong(String, &'static str),
}

/// Puts the values of variables into a text. An unset variable whose fallback is empty gives nothing.
pub(super) fn interpolate(text: &str, layers: &Layers) -> Result<String, Unusable> {
    let mut done = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        done.push_str(before);
        let Some((placeholder, tail)) = after.split_once('}') else {
            return Err(Unusable::Wrong(
                format!("'{text}' has a ${{ without its }}"),
                "write ${NAME} or ${NAME:-fallback}",
            ));
        };
        done.push_str(&value(placeholder, layers)?);
        rest = tail;
    }
    Ok(done + rest)
}

fn value(placeholder: &str, layers: &Layers) -> Result<String, Unusable> {
    let (name, fallback) = match placeholder.split_once(":-") {
        Some((name, fallback)) => (name, Some(fallback)),
        None => (placeholder, None),
    };
    let allowed = |sign: char| sign.is_ascii_alphanumeric() || sign == '_';
    if name.is_empty() || !name.chars().all(allowed) {
        let text = format!("'${{{placeholder}}}' does not name a variable");
        return Err(Unusable::Wrong(text, "write ${NAME} or ${NAME:-fallback}"));
    }
    if variables::find(name).is_some_and(|variable| variable.secrecy != Secrecy::Open) {
        let text = format!("{name} is a secret and cannot be used here");
        return Err(Unusable::Wrong(text, "what stands in contracts.toml is printed at start; use another variable"));
    }
    match (layers.get(name), fallback) {
        (Some(given), _) => Ok(given.value.trim().to_owned()),
        (None, Some(fallback)) => Ok(fallback.to_owned()),
        (None, None) => Err(Unusable::Unset(name.to_owned())),
    }
}

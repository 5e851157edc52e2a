//! What was typed in a TOML file: a reader that reports every wrong key and type instead of the first one, each with
//! its place. Says nothing about meaning; that is for [`super::validate`] and its neighbours.

use std::{ops::Range, str::FromStr, sync::Arc, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::problem::{Problem, Source, nearest};

/// Parses a file whose parts depend on each other; `None` where its syntax is wrong, which is reported.
pub(super) fn parse_whole<'s>(source: &'s Arc<Source>, problems: &mut Vec<Problem>) -> Option<Spanned<DeTable<'s>>> {
    let before = problems.len();
    let table = parse(source, problems);
    (problems.len() == before).then_some(table)
}

/// Parses a file; what cannot be parsed is reported and left out.
pub(super) fn parse<'s>(source: &'s Arc<Source>, problems: &mut Vec<Problem>) -> Spanned<DeTable<'s>> {
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    problems.extend(errors.iter().map(|error| {
        let text = format!("not valid TOML: {}", error.message().lines().next().unwrap_or("syntax error"));
        Problem::at(source, error.span().unwrap_or(0..0), text)
    }));
    table
}

/// One table whose keys are known beforehand.
pub(super) struct Keys<'t> {
    source: &'t Arc<Source>,
    table: &'t DeTable<'t>,
    span: Range<usize>,
}

impl<'t> Keys<'t> {
    /// Reads a table, reporting each key that is not one of `known`.
    pub(super) fn new(
        source: &'t Arc<Source>,
        (table, span): (&'t DeTable<'t>, Range<usize>),
        known: &[&str],
        problems: &mut Vec<Problem>,
    ) -> Self {
        for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            problems.push(
                Problem::at(source, key.span(), format!("unknown key '{}'", key.get_ref()))
                    .mend(nearest(key.get_ref(), known.iter().copied())),
            );
        }
        Self { source, table, span }
    }

    /// Where the table stands in its file.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    fn value(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.table.get(key)
    }

    /// Reports a key that must be there and is not; hands `value` on.
    pub(super) fn required<T>(&self, key: &str, value: Option<T>, problems: &mut Vec<Problem>) -> Option<T> {
        if self.value(key).is_none() {
            problems.push(Problem::at(self.source, self.span(), format!("'{key}' is missing here")));
        }
        value
    }

    fn typed<T>(
        &self,
        key: &str,
        wanted: &str,
        convert: impl Fn(&'t DeValue<'t>) -> Option<T>,
        problems: &mut Vec<Problem>,
    ) -> Option<Spanned<T>> {
        let value = self.value(key)?;
        let converted = convert(value.get_ref());
        if converted.is_none() {
            problems.push(Problem::at(self.source, value.span(), format!("'{key}' must be {wanted}")));
        }
        converted.map(|converted| Spanned::new(value.span(), converted))
    }

    /// A string.
    pub(super) fn text(&self, key: &str, problems: &mut Vec<Problem>) -> Option<Spanned<String>> {
        self.typed(key, "a string", |value| value.as_str().map(str::to_owned), problems)
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, key: &str, problems: &mut Vec<Problem>) -> Option<bool> {
        self.typed(key, "true or false", DeValue::as_bool, problems).map(Spanned::into_inner)
    }

    /// A whole number within `range`.
    pub(super) fn number<T>(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<T>,
        problems: &mut Vec<Problem>,
    ) -> Option<Spanned<T>>
    where
        T: TryFrom<u64> + PartialOrd + std::fmt::Display,
    {
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        self.typed(key, &wanted, |value| T::try_from(integer(value)?).ok().filter(|n| range.contains(n)), problems)
    }

    /// A span of time in words (`300ms`, `12s`), more than nothing and at most `most`.
    pub(super) fn duration(&self, key: &str, most: Duration, problems: &mut Vec<Problem>) -> Option<Duration> {
        let wanted = format!("a time like \"300ms\" or \"12s\", at most {}", humantime::format_duration(most));
        let read = |value: &DeValue<'_>| {
            let time = humantime::Duration::from_str(value.as_str()?).ok()?;
            Some(*time).filter(|time| !time.is_zero() && *time <= most)
        };
        self.typed(key, &wanted, read, problems).map(Spanned::into_inner)
    }

    /// A list of whole numbers.
    pub(super) fn numbers(&self, key: &str, problems: &mut Vec<Problem>) -> Option<Vec<Spanned<u64>>> {
        let read = |value: &'t DeValue<'t>| {
            let one = |item: &Spanned<DeValue<'_>>| Some(Spanned::new(item.span(), integer(item.get_ref())?));
            value.as_array()?.iter().map(one).collect::<Option<Vec<_>>>()
        };
        self.typed(key, "a list of whole numbers", read, problems).map(Spanned::into_inner)
    }

    /// The tables of `[[key]]`.
    pub(super) fn tables(&self, key: &str, problems: &mut Vec<Problem>) -> Vec<(&'t DeTable<'t>, Range<usize>)> {
        let read = |value: &'t DeValue<'t>| {
            let one = |item: &'t Spanned<DeValue<'t>>| Some((item.get_ref().as_table()?, item.span()));
            value.as_array()?.iter().map(one).collect::<Option<Vec<_>>>()
        };
        let wanted = format!("written as [[{key}]] tables");
        self.typed(key, &wanted, read, problems).map(Spanned::into_inner).unwrap_or_default()
    }
}

fn integer(value: &DeValue<'_>) -> Option<u64> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// A scalar as the environment would spell it.
pub(super) fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Integer(_) => integer(value).map(|number| number.to_string()),
        _ => None,
    }
}

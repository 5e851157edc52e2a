//! Mistakes in the configuration: collected, then shown all at once, each with its place, its text and its mend.
//!
//! A problem never quotes the value of a secret, and a file that may hold secrets is never drawn, only pointed into.

use std::{fmt, ops::Range, path::Path, sync::Arc};

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet, renderer::DecorStyle};

/// A configuration file as it was read, so that problems can point into it.
#[derive(Clone)]
pub struct Source {
    /// How the file is named in messages: its path, or `built-in config/chains.toml`.
    pub path: String,
    /// Its text.
    pub text: String,
    /// Whether its lines may be shown; not so where one may hold a secret.
    pub drawable: bool,
}

impl Source {
    /// A file whose lines may be shown.
    #[must_use]
    pub fn new(path: impl Into<String>, text: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { path: path.into(), text: text.into(), drawable: true })
    }

    /// A file that may hold secrets: problems name line and column only.
    #[must_use]
    pub fn undrawable(path: impl Into<String>, text: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { path: path.into(), text: text.into(), drawable: false })
    }

    /// Line and column of a byte, both from 1; the column counts characters.
    fn position(&self, byte: usize) -> (usize, usize) {
        let before = self.text.get(..byte).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        (line, column)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

/// Where a value came from, or where a mistake is.
#[derive(Clone, Debug)]
pub enum Place {
    /// Nowhere in particular: something is missing.
    Missing,
    /// A layer without lines: `environment`, `AWS secret chaintap/base`, `--start-block`.
    Named(String),
    /// Bytes of a file.
    Span(Arc<Source>, Range<usize>),
}

impl Place {
    fn order(&self) -> (u8, &str, usize) {
        match self {
            Self::Missing => (2, "", 0),
            Self::Named(_) => (0, "", 0),
            Self::Span(source, span) => (1, &source.path, span.start),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("default"),
            Self::Named(name) => f.write_str(name),
            Self::Span(source, span) => {
                let (line, column) = source.position(span.start);
                write!(f, "{}:{line}:{column}", source.path)
            }
        }
    }
}

/// One mistake.
#[derive(Clone, Debug)]
pub struct Problem {
    place: Place,
    text: String,
    mend: Option<String>,
}

impl Problem {
    /// A mistake, told in one line without a secret in it.
    #[must_use]
    pub fn new(place: Place, text: impl Into<String>) -> Self {
        Self { place, text: text.into(), mend: None }
    }

    /// A mistake in these bytes of a file.
    #[must_use]
    pub fn at(source: &Arc<Source>, span: Range<usize>, text: impl Into<String>) -> Self {
        Self::new(Place::Span(Arc::clone(source), span), text)
    }

    /// A mistake in a file that cannot be read.
    #[must_use]
    pub fn file(path: &Path, text: impl Into<String>) -> Self {
        Self::new(Place::Named(path.display().to_string()), text)
    }

    /// What to do about it.
    #[must_use]
    pub fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }

    /// Where it is: `config/contracts.toml:14:11`, `environment`; empty where something is missing.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.place {
            Place::Missing => String::new(),
            place => place.to_string(),
        }
    }

    /// What is wrong.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<&str> {
        self.mend.as_deref()
    }

    /// On one line, for logs: `config/contracts.toml:14:11: text; mend`.
    #[must_use]
    pub fn line(&self) -> String {
        let place = match self.place() {
            nowhere if nowhere.is_empty() => nowhere,
            place => place + ": ",
        };
        let mend = self.mend.as_ref().map(|mend| format!("; {mend}")).unwrap_or_default();
        one_line(&format!("{place}{}{mend}", self.text))
    }

    fn draw(&self, renderer: &Renderer) -> String {
        let title = Level::ERROR.primary_title(self.text.as_str());
        let group = match &self.place {
            Place::Missing => annotate_snippets::Group::with_title(title),
            Place::Named(name) => title.element(Origin::path(name.as_str())),
            Place::Span(source, span) if source.drawable => title.element(
                Snippet::source(source.text.as_str())
                    .path(source.path.as_str())
                    .annotation(AnnotationKind::Primary.span(within(&source.text, span))),
            ),
            Place::Span(source, span) => {
                let (line, column) = source.position(span.start);
                title.element(Origin::path(source.path.as_str()).line(line).char_column(column))
            }
        };
        let group = match &self.mend {
            Some(mend) => group.element(Level::HELP.message(mend.as_str())),
            None => group,
        };
        renderer.render(&[group])
    }
}

/// The text with its control characters spelled out: a key or a name of a file may hold line breaks.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for sign in text.chars() {
        if sign.is_control() {
            line.extend(sign.escape_default());
        } else {
            line.push(sign);
        }
    }
    line
}

/// The span moved onto character boundaries inside the text: drawing must not fail where the parser's span is odd.
fn within(text: &str, span: &Range<usize>) -> Range<usize> {
    let boundary = |byte: usize| text.floor_char_boundary(byte.min(text.len()));
    let (start, end) = (boundary(span.start), boundary(span.end));
    start..end.max(start)
}

/// The configuration cannot be used: every mistake in it.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.render(false))]
pub struct Invalid {
    /// The mistakes: values, then files by line, then what is missing, which may follow from the others; never empty.
    pub problems: Vec<Problem>,
}

impl Invalid {
    /// These mistakes, put into order.
    #[must_use]
    pub fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|one, other| one.place.order().cmp(&other.place.order()));
        Self { problems }
    }

    /// All mistakes as a person reads them, and their number; with colours for a terminal.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let drawn: Vec<String> = self.problems.iter().map(|problem| problem.draw(&renderer)).collect();
        let count = match self.problems.len() {
            1 => "1 mistake in the configuration".to_owned(),
            many => format!("{many} mistakes in the configuration"),
        };
        format!("{}\n\n{count}", drawn.join("\n\n"))
    }
}

/// `; did you mean 'x'?` in the form of a mend: the nearest of the names, or all of them where none is near.
#[must_use]
pub fn nearest<'a>(given: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    match closest(given, &names) {
        Some(name) => format!("did you mean '{name}'?"),
        None if names.is_empty() => "there is none to choose from".to_owned(),
        None => format!("use one of: {}", names.join(", ")),
    }
}

/// The name that was probably meant, if one is near enough.
pub(super) fn closest<'a>(given: &str, names: &[&'a str]) -> Option<&'a str> {
    let lower = given.to_lowercase();
    names
        .iter()
        .map(|name| (strsim::jaro_winkler(&lower, &name.to_lowercase()), *name))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_with_a_line_break_is_told_in_one_line() {
        let source = Source::new("contracts.toml", "\"a\\nb\" = 1");
        let problem = Problem::at(&source, 0..6, "unknown key 'a\nb\u{1b}[31m'").mend("use\tanother");
        assert_eq!(problem.line(), "contracts.toml:1:1: unknown key 'a\\nb\\u{1b}[31m'; use\\tanother");
    }
}

//! Reads variables one by one and keeps every mistake, with the place where the value was found.

use super::{
    endpoints::Fault,
    layers::{Given, Layers},
    problem::{Place, Problem},
};

/// Reads variables one by one and keeps the mistakes.
pub(super) struct Reader<'a> {
    pub(super) layers: &'a Layers,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    pub(super) fn given(&self, name: &str) -> Option<&Given> {
        self.layers.get(name)
    }

    pub(super) fn place(&self, name: &str) -> Place {
        self.given(name).map_or(Place::Missing, |given| given.place.clone())
    }

    pub(super) fn report(&mut self, name: &str, text: &str, mend: &str) {
        let problem = Problem::new(self.place(name), format!("{name} {text}"));
        self.problems.push(if mend.is_empty() { problem } else { problem.mend(mend) });
    }

    pub(super) fn read<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        let value = self.given(name)?.value.clone();
        parse(value.trim()).map_err(|(text, mend)| self.report(name, &text, &mend)).ok()
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.given(name).map(|given| given.value.trim().to_owned())
    }
}

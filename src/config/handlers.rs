//! Handlers: where the events of an entry go, by name. One is built in; `contracts.toml` may define more.

use std::sync::Arc;

use toml::Spanned;

use super::{
    contracts::SinkTarget,
    endpoints,
    entries::Reader,
    interpolation::{Unusable, interpolate},
    problem::{Problem, nearest},
    raw::Keys,
};

/// Handlers that need no entry: name, and the variable with the queue's URL. An engineer adds one here.
const BUILT_IN_HANDLERS: [(&str, &str); 1] = [("handleTransferEvent", "TRANSFER_HANDLER_SQS")];
/// A name, and where it sends.
pub(super) struct Handler {
    name: Arc<str>,
    /// `Err` holds the unset variable of its queue.
    target: Result<SinkTarget, Problem>,
}

impl Reader<'_> {
    /// Reads the handlers; entries are read after them.
    pub(super) fn read_handlers(&mut self, top: &Keys<'_>) {
        for (name, variable) in BUILT_IN_HANDLERS {
            // A queue's URL that is wrong is reported where the variable is.
            let queue = self.layers.get(variable).map(|given| given.value.clone());
            let target = queue.map_or(SinkTarget::Stdout, |url| SinkTarget::sqs(&url));
            self.handlers.push(Handler { name: name.into(), target: Ok(target) });
        }
        for table in top.tables("handler", self.problems) {
            let keys = Keys::new(self.source, table, &["name", "queue"], self.problems);
            let name = keys.text("name", self.problems);
            let name = keys.required("name", name, self.problems);
            let queue = keys.text("queue", self.problems);
            let queue = keys.required("queue", queue, self.problems);
            let Some(name) = name else { continue };
            if BUILT_IN_HANDLERS.iter().any(|(built_in, _)| built_in == name.get_ref()) {
                let text = format!("handler '{}' is built in", name.get_ref());
                self.report(name.span(), text, "choose another name; its queue is TRANSFER_HANDLER_SQS");
            } else if self.handlers.iter().any(|earlier| *earlier.name == **name.get_ref()) {
                self.report(
                    name.span(),
                    format!("handler '{}' is defined twice", name.get_ref()),
                    "remove one of the two",
                );
            }
            let target = queue.map_or(Ok(SinkTarget::Stdout), |queue| self.target(&queue));
            self.handlers.push(Handler { name: name.get_ref().as_str().into(), target });
        }
    }

    /// Where a handler of the file sends; an unset variable is a mistake only where the handler is used.
    fn target(&mut self, queue: &Spanned<String>) -> Result<SinkTarget, Problem> {
        let url = match interpolate(queue.get_ref(), self.layers) {
            Err(Unusable::Unset(name)) => return Err(self.unset(queue.span(), &name)),
            Err(Unusable::Wrong(wrong, mend)) => {
                self.report(queue.span(), wrong, mend);
                return Ok(SinkTarget::Stdout);
            }
            Ok(url) if url.is_empty() => return Ok(SinkTarget::Stdout),
            Ok(url) => url,
        };
        match endpoints::queue(&url) {
            Ok(()) => Ok(SinkTarget::sqs(&url)),
            Err((text, mend)) => {
                self.report(queue.span(), format!("the queue {text}"), mend);
                Ok(SinkTarget::Stdout)
            }
        }
    }

    /// The target of the handler of this name; a name that nobody has is reported.
    pub(super) fn handler(&mut self, name: &Spanned<String>, active: bool) -> Option<SinkTarget> {
        let Some(handler) = self.handlers.iter().find(|handler| *handler.name == **name.get_ref()) else {
            let names: Vec<&str> = self.handlers.iter().map(|handler| &*handler.name).collect();
            let mend = nearest(name.get_ref(), names);
            self.report(name.span(), format!("unknown handler '{}'", name.get_ref()), mend);
            return None;
        };
        match handler.target.clone() {
            Ok(target) => Some(target),
            Err(problem) if active => {
                self.problems.push(problem);
                None
            }
            Err(_) => Some(SinkTarget::Stdout),
        }
    }
}

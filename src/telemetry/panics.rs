//! Panics, told as everything else is: one line in the log, one report to Sentry, no secrets in either.
//!
//! The standard hook would print the message as it is, and straight to standard error.

use std::{
    io::{self, Write},
    panic::{self, PanicHookInfo},
    thread,
};

use tracing::{dispatcher, error};

use super::{scrub, sentry};

/// Where these lines come from; Sentry has them by the report and not by the line.
pub(super) const TARGET: &str = "chaintap::panic";

/// Replaces the process's panic hook.
pub(super) fn install() {
    panic::set_hook(Box::new(|info| {
        tell(info);
        sentry::report_panic(info);
    }));
}

fn tell(info: &PanicHookInfo<'_>) {
    let place = info.location().map_or_else(String::new, ToString::to_string);
    let reason = scrub(info.payload_as_str().unwrap_or("(not a text)"));
    let current = thread::current();
    let thread = current.name().unwrap_or("(unnamed)");
    if dispatcher::has_been_set() {
        error!(target: TARGET, thread, place, %reason, "panicked");
    } else {
        // Before there is a log; where not even this can be written, nobody can be told.
        writeln!(io::stderr(), "panicked at {place}: {reason}").ok();
    }
}

//! Logs: on standard error always, because standard output carries events.
//!
//! For people on a terminal, as JSON for machines otherwise: one object a line, fields at the top level, time in UTC
//! (RFC 3339). Lines never hold up the work and never carry a URL's secrets (see `outlet`). Crates that log
//! what goes over the wire, headers and paths included, are never let through above `info`, whatever the filter says.

use std::io::{self, IsTerminal};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, LevelFilter, filter_fn},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

pub use super::outlet::LogGuard;
use super::{outlet::Outlet, panics, sentry};
use crate::config::LogFormat;

/// What is logged where nothing else is asked for.
pub const DEFAULT_FILTER: &str = "info";

/// Crates that say more than an operator wants; a filter that names one overrides this. To alloy's sockets every end of
/// a connection is an error, several times over; here it is routine, and `pipeline::follow` tells of it once.
const QUIET: &str = "alloy=warn,alloy_pubsub=off,alloy_transport_ws=off,aws_config=warn,hickory_proto=error,\
                     hickory_resolver=warn,mongodb=warn,redis=warn";

/// Beginnings of the names of crates whose `debug` and `trace` lines hold requests as they go out: a key in a path or
/// a header does not look like one there.
const WIRE: [&str; 10] =
    ["aws_", "h2", "hickory", "hyper", "mongodb", "redis", "reqwest", "rustls", "tokio_tungstenite", "tungstenite"];

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// `LOG_LEVEL` or `RUST_LOG` is wrong.
    #[error("{0}")]
    Filter(String),
    /// The process has too few threads, or logs are set up already.
    #[error("logs cannot be set up: {0}")]
    SetUp(String),
}

/// Sets up the process's logs, and the hook that logs panics; errors go to Sentry too from [`sentry::init`] on. Called
/// once, at the very beginning; the guard is kept until the very end.
///
/// `filter` is a level or, by commas, `target=level` (`info,chaintap::pipeline=debug`); empty is
/// [`DEFAULT_FILTER`]. Without a `format` it is [`LogFormat::Pretty`] on a terminal.
///
/// # Errors
///
/// [`LoggingError`], and nothing is set up.
pub fn init(filter: &str, format: Option<LogFormat>) -> Result<LogGuard, LoggingError> {
    let filter = parse_filter(filter).map_err(LoggingError::Filter)?;
    let terminal = io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Pretty } else { LogFormat::Json });
    let set_up = |error: &dyn std::error::Error| LoggingError::SetUp(error.to_string());
    let (outlet, guard) = Outlet::start(io::stderr(), told_dropped(format)).map_err(|error| set_up(&error))?;
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::registry()
        .with(lines(format, colours, outlet).with_filter(filter.and(filter_fn(is_no_wire))))
        .with(sentry::breadcrumbs())
        .with(sentry::errors())
        .try_init()
        .map_err(|error| set_up(&error))?;
    panics::install();
    Ok(guard)
}

fn lines<S>(format: LogFormat, colours: bool, outlet: Outlet) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    // Telling of an error of the log itself would go to standard error by `eprintln!`, which panics where that is closed.
    let layer = tracing_subscriber::fmt::layer().with_writer(outlet).with_ansi(colours).log_internal_errors(false);
    match format {
        LogFormat::Json => layer.json().flatten_event(true).with_span_list(false).boxed(),
        LogFormat::Pretty => layer.boxed(),
    }
}

fn told_dropped(format: LogFormat) -> fn(u64) -> String {
    match format {
        LogFormat::Json => |n| format!("{{\"level\":\"WARN\",\"message\":\"log lines were dropped\",\"lines\":{n}}}\n"),
        LogFormat::Pretty => |n| format!("WARN log lines were dropped: standard error is too slow lines={n}\n"),
    }
}

fn is_no_wire(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO || !WIRE.iter().any(|crate_| metadata.target().starts_with(crate_))
}

fn parse_filter(text: &str) -> Result<EnvFilter, String> {
    let parts: Vec<_> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let text = if parts.is_empty() { DEFAULT_FILTER.to_owned() } else { parts.join(",") };
    let refused = |part: &str| {
        format!("{part:?} is no log filter: error, warn, info, debug, trace or off, or target=level, by commas")
    };
    // A bare word would be a target, and a mistyped level would so turn everything off.
    let is_bare = |part: &&&str| !part.contains(['=', '[', ']', '}']) && part.parse::<LevelFilter>().is_err();
    if let Some(part) = parts.iter().find(is_bare) {
        return Err(refused(part));
    }
    EnvFilter::builder().parse(format!("{QUIET},{text}")).map_err(|_| refused(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_level_is_refused_and_does_not_silence_the_log() {
        for wrong in ["wran", "info,chaintap", "chaintap=loud", "info;debug"] {
            let told = parse_filter(wrong).unwrap_err();
            assert!(told.contains("error, warn, info"), "{told}");
        }
        for right in
            ["", "trace", "WARN", "off", "info,chaintap::pipeline=debug", " info , hyper=trace ", "[block{n=1}]=trace"]
        {
            assert!(parse_filter(right).is_ok(), "{right}");
        }
    }
}

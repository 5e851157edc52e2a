//! Error reports: what is logged as an error, and panics, go to Sentry where a DSN is given.
//!
//! The lines before it, `info` and `warn`, go along as breadcrumbs. Everything passes the scrubber before it is kept
//! or sent, every text at any depth; nothing personal is added. A fault that repeats is reported a few times a minute.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    panic::PanicHookInfo,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ::sentry::{
    ClientInitGuard, ClientOptions, Hub,
    integrations::{
        backtrace::{AttachStacktraceIntegration, ProcessStacktraceIntegration},
        contexts::ContextIntegration,
        panic::PanicIntegration,
        tracing::{BreadcrumbLayer, ErrorLayer},
    },
    protocol::Event,
    types::Dsn,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

use super::{panics, scrub};
use crate::config::SecretUrl;

/// The last reports are waited for this long at the end, and each panic's.
const FLUSH: Duration = Duration::from_secs(2);
/// Reports of one fault within a minute.
const MAX_REPEATS: u32 = 5;
/// Different faults within a minute.
const MAX_FAULTS: usize = 100;

/// Sends what is left when it is dropped, for two seconds at most.
#[must_use = "nothing is reported after it is dropped"]
pub struct SentryGuard {
    _client: ClientInitGuard,
}

/// The DSN is not one; its text is not repeated, because it is a secret.
#[derive(Debug, thiserror::Error)]
#[error("SENTRY_DSN is not https://KEY@HOST/PROJECT, as Sentry shows it under Client Keys (its host here: {host})")]
pub struct BadDsn {
    host: String,
}

/// Begins to report; without a DSN it does nothing. Called once, on the main thread, before the runtime starts its own,
/// so that they all report to the same place.
///
/// `release` names the build (`chaintap@0.1.0`), `environment` the installation; each report carries `chain_id`.
///
/// # Errors
///
/// [`BadDsn`], and nothing is reported.
pub fn init(
    dsn: Option<&SecretUrl>,
    release: String,
    environment: String,
    chain_id: u64,
) -> Result<Option<SentryGuard>, BadDsn> {
    let Some(dsn) = dsn else { return Ok(None) };
    crate::crypto::init();
    let mut options = ClientOptions::new()
        .release(release)
        .environment(environment)
        .send_default_pii(false)
        .attach_stacktrace(true)
        .shutdown_timeout(FLUSH)
        // Without the integration that sets a panic hook: ours does that.
        .default_integrations(false)
        .add_integration(AttachStacktraceIntegration)
        .add_integration(ContextIntegration::default())
        .add_integration(ProcessStacktraceIntegration)
        .before_breadcrumb(scrubbed);
    options.dsn = Some(Dsn::from_str(dsn.expose()).map_err(|_| BadDsn { host: dsn.to_string() })?);
    let quota = Mutex::new(Quota::default());
    options.before_send = Some(Arc::new(move |event| {
        let fault = fault_of(&event);
        let mut quota = quota.lock().unwrap_or_else(PoisonError::into_inner);
        if quota.admits(fault, Instant::now()) { scrubbed(event) } else { None }
    }));
    let client = ::sentry::init(options);
    ::sentry::configure_scope(|scope| scope.set_tag("chain_id", chain_id));
    Ok(Some(SentryGuard { _client: client }))
}

/// Lines that go along with a later report.
pub(super) fn breadcrumbs<S>() -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    BreadcrumbLayer::new().with_filter(filter_fn(|line| matches!(*line.level(), Level::WARN | Level::INFO)))
}

/// Lines that are a report. alloy's are not: to its sockets every end of a connection is an error.
pub(super) fn errors<S>() -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let is_report = |line: &Metadata<'_>| {
        *line.level() == Level::ERROR && line.target() != panics::TARGET && !line.target().starts_with("alloy")
    };
    ErrorLayer::new().with_filter(filter_fn(is_report))
}

/// Reports a panic and waits until it is sent, because the process may be about to end.
pub(super) fn report_panic(info: &PanicHookInfo<'_>) {
    if let Some(client) = Hub::current().client() {
        ::sentry::capture_event(PanicIntegration::new().event_from_panic_info(info));
        client.flush(Some(FLUSH));
    }
}

/// A report or a breadcrumb with every text in it scrubbed; none where it cannot be taken apart.
fn scrubbed<T: Serialize + DeserializeOwned>(report: T) -> Option<T> {
    let mut value = serde_json::to_value(report).ok()?;
    scrub_texts(&mut value);
    serde_json::from_value(value).ok()
}

fn scrub_texts(value: &mut Value) {
    match value {
        Value::String(text) => *text = scrub(text).into_owned(),
        Value::Array(values) => values.iter_mut().for_each(scrub_texts),
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(text) if scrub::is_secret_name(name) => scrub::MASK.clone_into(text),
                    value => scrub_texts(value),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// What makes two reports the same fault: where it was told, what was told, and the exceptions' types.
fn fault_of(event: &Event<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&event.logger, &event.message).hash(&mut hasher);
    for exception in &event.exception {
        exception.ty.hash(&mut hasher);
        if exception.mechanism.as_ref().is_some_and(|mechanism| mechanism.ty == "panic") {
            exception.value.hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// How often each fault was reported in the current minute.
#[derive(Debug, Default)]
struct Quota {
    since: Option<Instant>,
    reports: HashMap<u64, u32>,
}

impl Quota {
    fn admits(&mut self, fault: u64, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_mins(1)) {
            self.since = Some(now);
            self.reports.clear();
        }
        if self.reports.len() >= MAX_FAULTS && !self.reports.contains_key(&fault) {
            return false;
        }
        let reports = self.reports.entry(fault).or_default();
        *reports += 1;
        *reports <= MAX_REPEATS
    }
}

#[cfg(test)]
mod tests {
    use ::sentry::protocol::{Context, Exception};

    use super::*;

    #[test]
    fn every_text_of_a_report_is_scrubbed_at_any_depth() {
        let url = "https://user:CANARY@node.example/v2/CANARY";
        let mut event = Event { message: Some(format!("to {url}")), ..Event::default() };
        event.extra.insert("deep".into(), serde_json::json!([{ "list": [url], "password": "CANARY" }]));
        event.tags.insert("api_key".into(), "CANARY".into());
        event.exception.values.push(Exception { ty: "E".into(), value: Some(url.into()), ..Exception::default() });
        event.contexts.insert("fields".into(), Context::Other([("url".to_owned(), url.into())].into()));
        let sent = serde_json::to_string(&scrubbed(event.clone()).unwrap()).unwrap();
        assert!(!sent.contains("CANARY"), "{sent}");
        assert_eq!(sent.matches("https://node.example").count(), 4, "{sent}");
        assert_eq!(scrubbed(event.clone()).unwrap().event_id, event.event_id);
    }

    #[test]
    fn a_fault_that_repeats_is_reported_a_few_times_a_minute() {
        let (mut quota, start) = (Quota::default(), Instant::now());
        let admitted = |quota: &mut Quota, at| (0..20).filter(|_| quota.admits(1, at)).count();
        assert_eq!(admitted(&mut quota, start), 5);
        assert!(quota.admits(2, start), "another fault is not held back");
        assert_eq!(admitted(&mut quota, start + Duration::from_mins(1)), 5);
        assert_eq!((0..1_000).filter(|fault| quota.admits(1_000 + fault, start)).count(), MAX_FAULTS - 1);
    }

    #[test]
    fn a_bad_dsn_is_not_repeated() {
        let dsn = SecretUrl::parse("https://sentry.example/CANARY").unwrap();
        let told = init(Some(&dsn), "r".into(), "e".into(), 1).err().unwrap().to_string();
        assert!(told.contains("https://sentry.example") && !told.contains("CANARY"), "{told}");
    }

    #[test]
    fn without_a_dsn_it_is_off() {
        assert!(init(None, "r".into(), "e".into(), 1).unwrap().is_none());
    }
}

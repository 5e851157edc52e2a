//! Every metric, declared once: name, kind, labels and help stand in one table, and one small typed function records
//! each. `docs/metrics.md` is that table for people; a test holds the two together.
//!
//! Names follow prometheus.io: one prefix, snake case, base units, `_total` on counters, moments in time as timestamps
//! (never ages), no rates. Labels are bounded: a track, a stage, a method, the configured name of a provider or sink;
//! never an address, a hash or a URL. Every sample carries `chain_id` and `chain`.
//!
//! The gauges of head, progress, tokens and health of the edges are set by [`Vitals`](super::Vitals) as it is written,
//! so that `/metrics` and `/health` cannot tell different stories. What is not here: CPU, memory and disk, which the
//! platform measures better; how the values leave the process is in [`prometheus`](super::prometheus).

use std::time::{Duration, SystemTime};

use ::metrics::{Key, Label, Level, Metadata, SharedString, with_recorder};

use crate::domain::Track;

/// The nine values of the label `stage`: the verbs of the pipeline.
pub const STAGES: [&str; 9] = ["follow", "plan", "claim", "fetch", "decode", "filter", "deliver", "commit", "unwind"];

/// What a metric counts or measures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only rises, from 0 at the start of the process.
    Counter,
    /// The value of this moment.
    Gauge,
    /// Observations in buckets with these upper bounds.
    Histogram(&'static [f64]),
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    /// Full name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its labels, without `chain_id` and `chain`.
    pub labels: &'static [&'static str],
    /// One sentence for people.
    pub help: &'static str,
}

/// A metric as its recording function sees it; the number of label values is checked by the compiler.
struct Metric<const LABELS: usize> {
    name: &'static str,
    labels: [&'static str; LABELS],
}

/// A request to a node, from sending to the last byte of the answer.
const REQUEST_SECONDS: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];
/// From the time of a block to the acknowledgement of its messages.
const DELIVERY_SECONDS: &[f64] = &[0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0];
/// One stage of one range: from microseconds of planning to a delivery against backpressure.
const STAGE_SECONDS: &[f64] = &[0.0001, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// One operation of the state store.
const STORE_SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Blocks of one reorganisation.
const DEPTH_BLOCKS: &[f64] = &[1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 64.0, 128.0];

macro_rules! declare {
    ($($id:ident = $kind:expr, $name:literal, [$($label:literal),*], $help:literal;)*) => {
        $(const $id: Metric<{ <[&str]>::len(&[$($label),*]) }> =
            Metric { name: concat!("chaintap_", $name), labels: [$($label),*] };)*

        /// Every metric there is.
        pub const DECLARED: &[Declared] = &[$(Declared {
            name: concat!("chaintap_", $name),
            kind: $kind,
            labels: &[$($label),*],
            help: $help,
        }),*];
    };
}

declare! {
    BUILD_INFO = Kind::Gauge, "build_info", ["version"], "Always 1; the label says which version runs.";
    START = Kind::Gauge, "start_timestamp_seconds", [], "When this process started, seconds since the Unix epoch.";

    HEAD = Kind::Gauge, "head_block_number", [], "The newest block that the providers tell of.";
    HEAD_TIME = Kind::Gauge, "head_block_timestamp_seconds", [], "The time of that block, as the chain states it.";
    DELIVERABLE = Kind::Gauge, "deliverable_block_number", [], "The highest block that DELIVER allows to be sent now.";
    TIP = Kind::Gauge, "tip_block_number", [], "The highest delivered block.";
    WATERMARK = Kind::Gauge, "watermark_block_number", [], "Every block at or below it is delivered and acknowledged.";
    LAG = Kind::Gauge, "lag_blocks", [], "Deliverable blocks above the watermark.";
    GAP_RANGES = Kind::Gauge, "gap_ranges", [], "Open gaps, which the historical track fills.";
    GAP_BLOCKS = Kind::Gauge, "gap_blocks", [], "Blocks missing in the open gaps.";

    BLOCKS = Kind::Counter, "blocks_processed_total", ["track"], "Blocks delivered and committed by this process.";
    LOGS = Kind::Counter, "logs_received_total", [], "Logs that the providers answered, after validation.";
    LOGS_REJECTED = Kind::Counter, "logs_rejected_total", ["reason"], "Logs of wanted contracts that led to no event, by reason.";
    EVENTS = Kind::Counter, "events_matched_total", [], "Events that passed every filter and go to a sink.";
    STAGE = Kind::Histogram(STAGE_SECONDS), "stage_duration_seconds", ["stage"], "Duration of one stage of one range.";
    STAGE_ERRORS = Kind::Counter, "stage_errors_total", ["stage"], "Ranges that ended early in this stage.";

    CLAIMS_HELD = Kind::Gauge, "claims_held", [], "Ranges that this process is working on.";
    CLAIMS_BUSY = Kind::Counter, "claims_busy_total", [], "Claims not given because another process holds the blocks.";
    HEARTBEAT_FAILURES = Kind::Counter, "heartbeat_failures_total", [], "Heartbeats that the state store did not take.";
    STORE_REQUESTS = Kind::Counter, "store_requests_total", ["operation", "outcome"], "Operations of the state store.";
    STORE_SECS = Kind::Histogram(STORE_SECONDS), "store_request_duration_seconds", ["operation"],
        "Duration of one operation of the state store.";
    STORE_HEALTHY = Kind::Gauge, "state_store_healthy", [], "1 while the state store answers, else 0.";

    RPC_REQUESTS = Kind::Counter, "rpc_requests_total", ["provider", "method", "outcome"], "JSON-RPC requests.";
    RPC_SECONDS = Kind::Histogram(REQUEST_SECONDS), "rpc_request_duration_seconds", ["provider", "method"],
        "Duration of one JSON-RPC request, to the last byte of the answer.";
    EMPTY_WITH_BLOOM = Kind::Counter, "rpc_empty_with_bloom_total", ["provider"],
        "Answers without logs that were not taken, because the block's bloom has some.";
    PROOFS = Kind::Counter, "rpc_proofs_total", ["provider", "outcome"], "Blocks whose logs were to be proven by their receipts.";
    RESTORED = Kind::Counter, "rpc_logs_restored_total", ["provider"],
        "Logs that eth_getLogs left out or gave wrong, taken from proven receipts or another provider.";
    DUPLICATES = Kind::Counter, "rpc_duplicate_logs_total", ["provider"], "Logs that stood twice in one answer.";
    LOG_INDEX_CLASHES = Kind::Counter, "rpc_log_index_clashes_total", ["provider"],
        "Answers that were refused because two different logs of a block had one index.";
    ROUND_ANSWERS = Kind::Counter, "rpc_round_answers_total", ["provider"],
        "Ranges answered with just so many logs as a silent limit may be.";
    UNKNOWN_MESSAGES = Kind::Counter, "rpc_unknown_messages_total", ["provider"],
        "Error messages that are not known; they stand in warnings, please report them.";
    RECORDED = Kind::Counter, "recording_records_total", ["outcome"],
        "Records of the traffic with the nodes, where RECORD_DIR is set.";
    RPC_FAILOVERS = Kind::Counter, "rpc_failovers_total", ["from", "to", "reason"],
        "Moves of all requests from one provider to another.";
    RPC_HEALTHY = Kind::Gauge, "rpc_provider_healthy", ["provider"], "1 while the provider answers, else 0.";
    RPC_HEAD = Kind::Gauge, "rpc_head_block_number", ["provider"], "The newest block that this provider tells of.";

    SINK_MESSAGES = Kind::Counter, "sink_messages_total", ["sink", "outcome"], "Messages by what the sink did with them.";
    SINK_SECONDS = Kind::Histogram(REQUEST_SECONDS), "sink_send_duration_seconds", ["sink"], "Duration of one call of a sink.";
    SINK_QUEUED = Kind::Gauge, "sink_queued_messages", ["sink"], "Messages that wait for this sink.";
    SINK_HEALTHY = Kind::Gauge, "sink_healthy", ["sink"], "1 while the sink takes messages, else 0.";
    LATENCY = Kind::Histogram(DELIVERY_SECONDS), "delivery_latency_seconds", [],
        "From the time of a block to the acknowledgement of its messages; realtime track only.";
    DEAD_LETTERS = Kind::Gauge, "dead_letters", [], "Dead letters kept for an operator.";
    BURIED = Kind::Counter, "dead_letters_buried_total", ["kind"], "Messages refused for good and logs that cannot be decoded.";

    REORGS = Kind::Counter, "reorgs_total", [], "Reorganisations of delivered blocks that this process unwound.";
    REORG_DEPTH = Kind::Histogram(DEPTH_BLOCKS), "reorg_depth_blocks", [],
        "Delivered blocks that one reorganisation took back, counted down from the highest.";
    RETRACTED = Kind::Counter, "events_retracted_total", [], "Events that were taken back.";

    AUDIT_MISSING = Kind::Counter, "audit_missing_total", [], "Events that only a second provider had, delivered late.";
    AUDIT_EXTRA = Kind::Counter, "audit_extra_total", [], "Delivered events that a second provider does not have.";

    TOKENS = Kind::Gauge, "tokens_tracked", [], "Tokens of this chain in the list in use.";
    TOKENS_TIME = Kind::Gauge, "tokens_last_refresh_timestamp_seconds", [], "When the token list was last read.";
    TOKEN_FAILURES = Kind::Counter, "token_refresh_failures_total", [], "Readings of the token list that failed.";
}

// ── recording ────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Blocks were delivered and committed.
pub fn blocks_processed(track: Track, blocks: u64) {
    count(&BLOCKS, [track_label(track).into()], blocks);
}

/// Logs arrived from a provider and passed validation.
pub fn logs_received(logs: u64) {
    count(&LOGS, [], logs);
}

/// Logs led to no event: `erc721`, `unindexed`, `malformed`, `unknown_token`, …
pub fn logs_rejected(reason: &'static str, logs: u64) {
    count(&LOGS_REJECTED, [reason.into()], logs);
}

/// Events passed every filter.
pub fn events_matched(events: u64) {
    count(&EVENTS, [], events);
}

/// Events were taken back.
pub fn events_retracted(events: u64) {
    count(&RETRACTED, [], events);
}

/// Events that were delivered late, because only a second provider had them.
pub fn audit_missing(events: u64) {
    count(&AUDIT_MISSING, [], events);
}

/// Delivered events that a second provider does not have.
pub fn audit_extra(events: u64) {
    count(&AUDIT_EXTRA, [], events);
}

/// One stage of one range ended; `stage` is one of [`STAGES`].
pub fn stage_seconds(stage: &'static str, seconds: f64) {
    debug_assert!(STAGES.contains(&stage), "no such stage: {stage}");
    observe(&STAGE, [stage.into()], seconds);
}

/// A range ended early in one of [`STAGES`].
pub fn stage_error(stage: &'static str) {
    debug_assert!(STAGES.contains(&stage), "no such stage: {stage}");
    count(&STAGE_ERRORS, [stage.into()], 1);
}

/// Ranges that this process is working on now.
pub fn claims_held(ranges: usize) {
    set(&CLAIMS_HELD, [], float(ranges));
}

/// A claim was not given: another process holds the blocks.
pub fn claim_busy() {
    count(&CLAIMS_BUSY, [], 1);
}

/// The state store did not take a heartbeat.
pub fn heartbeat_failed() {
    count(&HEARTBEAT_FAILURES, [], 1);
}

/// One operation of the state store ended; `outcome` is `ok` or the class of the error.
pub fn store_request(operation: &'static str, outcome: &'static str, seconds: f64) {
    count(&STORE_REQUESTS, [operation.into(), outcome.into()], 1);
    observe(&STORE_SECS, [operation.into()], seconds);
}

/// One JSON-RPC request ended; `outcome` is `ok` or the class of the error (`timeout`, `rate_limited`, …).
pub fn rpc_request(provider: &str, method: &'static str, outcome: &'static str, seconds: f64) {
    count(&RPC_REQUESTS, [label(provider), method.into(), outcome.into()], 1);
    observe(&RPC_SECONDS, [label(provider), method.into()], seconds);
}

/// Requests move from one provider to another: the kind of the failure, `lags`, `ejected`, or `returned` to a preferred one.
pub fn rpc_failover(from: &str, to: &str, reason: &'static str) {
    count(&RPC_FAILOVERS, [label(from), label(to), reason.into()], 1);
}

/// An answer without logs was not taken.
pub fn empty_with_bloom(provider: &str) {
    count(&EMPTY_WITH_BLOOM, [label(provider)], 1);
}

/// A block's logs were to be proven: `proven`, `unknown` (its encoding), `wrong`, `failed` (the requests), `passed` (its
/// logs count without a proof; the provider is the one that told them).
pub fn proof(provider: &str, outcome: &'static str) {
    count(&PROOFS, [label(provider), outcome.into()], 1);
}

/// Logs that were left out or wrong were taken from receipts, or from another provider.
pub fn logs_restored(provider: &str, logs: usize) {
    count(&RESTORED, [label(provider)], logs as u64);
}

/// Logs stood twice in an answer.
pub fn duplicate_logs(provider: &str, logs: usize) {
    count(&DUPLICATES, [label(provider)], logs as u64);
}

/// Two different logs of a block had one index.
pub fn log_index_clash(provider: &str) {
    count(&LOG_INDEX_CLASHES, [label(provider)], 1);
}

/// An answer had just so many logs as a silent limit may be.
pub fn round_answer(provider: &str) {
    count(&ROUND_ANSWERS, [label(provider)], 1);
}

/// A provider said what is not known.
pub fn unknown_message(provider: &str) {
    count(&UNKNOWN_MESSAGES, [label(provider)], 1);
}

/// A record of the traffic with the nodes was `kept` or `dropped`.
pub fn recorded(outcome: &'static str) {
    count(&RECORDED, [outcome.into()], 1);
}

/// A sink decided on messages: `acknowledged`, `retry`, `throttled`, `refused`.
pub fn sink_messages(sink: &str, outcome: &'static str, messages: u64) {
    count(&SINK_MESSAGES, [label(sink), outcome.into()], messages);
}

/// One call of a sink ended.
pub fn sink_send_seconds(sink: &str, seconds: f64) {
    observe(&SINK_SECONDS, [label(sink)], seconds);
}

/// A block of the realtime track was acknowledged this long after its own time.
pub fn delivery_latency_seconds(seconds: f64) {
    observe(&LATENCY, [], seconds);
}

/// Dead letters were buried: `refused` or `undecodable`.
pub fn dead_letters_buried(kind: &'static str, letters: u64) {
    count(&BURIED, [kind.into()], letters);
}

// ── recorded by Vitals ───────────────────────────────────────────────────────────────────────────────────────────────

pub(super) fn head(number: u64, timestamp: u64, deliverable: Option<u64>) {
    set(&HEAD, [], float(number));
    set(&HEAD_TIME, [], float(timestamp));
    if let Some(number) = deliverable {
        set(&DELIVERABLE, [], float(number));
    }
}

pub(super) fn progress(watermark: i64, tip: i64) {
    set(&WATERMARK, [], float(watermark));
    set(&TIP, [], float(tip));
}

pub(super) fn reorganised(blocks: u64) {
    count(&REORGS, [], 1);
    observe(&REORG_DEPTH, [], float(blocks));
}

pub(super) fn gaps(ranges: u64, blocks: u64) {
    set(&GAP_RANGES, [], float(ranges));
    set(&GAP_BLOCKS, [], float(blocks));
}

pub(super) fn lag(blocks: u64) {
    set(&LAG, [], float(blocks));
}

pub(super) fn store_healthy(healthy: bool) {
    set(&STORE_HEALTHY, [], f64::from(u8::from(healthy)));
}

pub(super) fn provider_healthy(provider: &str, healthy: bool) {
    set(&RPC_HEALTHY, [label(provider)], f64::from(u8::from(healthy)));
}

pub(super) fn provider_head(provider: &str, number: u64) {
    set(&RPC_HEAD, [label(provider)], float(number));
}

pub(super) fn sink_healthy(sink: &str, healthy: bool) {
    set(&SINK_HEALTHY, [label(sink)], f64::from(u8::from(healthy)));
}

pub(super) fn sink_queued(sink: &str, messages: usize) {
    set(&SINK_QUEUED, [label(sink)], float(messages));
}

pub(super) fn token_refresh_failed() {
    count(&TOKEN_FAILURES, [], 1);
}

pub(super) fn tokens(tracked: usize) {
    set(&TOKENS, [], float(tracked));
    set(&TOKENS_TIME, [], unix_seconds());
}

pub(super) fn dead_letters(letters: u64) {
    set(&DEAD_LETTERS, [], float(letters));
}

/// Counters that are known beforehand begin at 0: an alert on an increase would miss the first one otherwise.
pub(super) fn begin() {
    set(&BUILD_INFO, [env!("CARGO_PKG_VERSION").into()], 1.0);
    set(&START, [], unix_seconds());
    for track in [Track::Realtime, Track::Historical] {
        blocks_processed(track, 0);
    }
    for stage in STAGES {
        count(&STAGE_ERRORS, [stage.into()], 0);
    }
    for kind in ["refused", "undecodable"] {
        dead_letters_buried(kind, 0);
    }
    for metric in [&LOGS, &EVENTS, &CLAIMS_BUSY, &HEARTBEAT_FAILURES, &TOKEN_FAILURES] {
        count(metric, [], 0);
    }
}

static METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

fn count<const N: usize>(metric: &Metric<N>, values: [SharedString; N], by: u64) {
    with_recorder(|recorder| recorder.register_counter(&key(metric, values), &METADATA).increment(by));
}

fn set<const N: usize>(metric: &Metric<N>, values: [SharedString; N], to: f64) {
    with_recorder(|recorder| recorder.register_gauge(&key(metric, values), &METADATA).set(to));
}

fn observe<const N: usize>(metric: &Metric<N>, values: [SharedString; N], value: f64) {
    with_recorder(|recorder| recorder.register_histogram(&key(metric, values), &METADATA).record(value));
}

fn key<const N: usize>(metric: &Metric<N>, values: [SharedString; N]) -> Key {
    let labels: Vec<Label> =
        metric.labels.into_iter().zip(values).map(|(name, value)| Label::new(name, value)).collect();
    Key::from_parts(metric.name, labels)
}

/// Longest label value, which the name of any queue fits into; a name out of the configuration that is longer is cut.
const MAX_LABEL: usize = 128;

fn label(name: &str) -> SharedString {
    name.chars().take(MAX_LABEL).collect::<String>().into()
}

fn track_label(track: Track) -> &'static str {
    match track {
        Track::Realtime => "realtime",
        Track::Historical => "historical",
    }
}

/// Prometheus values are floats; block numbers and counts stay below 2^53, where those are exact.
fn float(number: impl TryInto<i64>) -> f64 {
    #[allow(clippy::cast_precision_loss)] // exact below 2^53, see above
    number.try_into().map_or(f64::MAX, |number: i64| number as f64)
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The page is also what pins the names: renaming a metric breaks dashboards and alerts.
    #[test]
    fn the_documentation_is_the_declared_table() {
        let page = include_str!("../../docs/metrics.md");
        let documented: Vec<&str> = page.lines().filter(|line| line.starts_with("| `chaintap_")).collect();
        let declared: Vec<String> = DECLARED.iter().map(row).collect();
        assert_eq!(documented, declared, "docs/metrics.md should hold exactly:\n{}\n", declared.join("\n"));
    }

    fn row(metric: &Declared) -> String {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        format!("| `{}` | {kind} | {labels} | {} |", metric.name, metric.help)
    }

    #[test]
    fn declarations_follow_the_naming_rules_of_prometheus() {
        for Declared { name, kind, labels, help } in DECLARED {
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}: _total is for counters, all of them");
            assert!(help.ends_with('.') && help.len() < 120, "{name}: one sentence of help");
            for unit in ["_ms", "_millis", "_minutes", "_percent", "_per_second", "_age_seconds"] {
                assert!(!name.contains(unit), "{name}: base units, timestamps, no rates");
            }
            for label in *labels {
                let bounded = [
                    "from",
                    "to",
                    "version",
                    "track",
                    "reason",
                    "stage",
                    "operation",
                    "outcome",
                    "provider",
                    "method",
                    "sink",
                    "kind",
                ];
                assert!(bounded.contains(label), "{name}: is the label {label} bounded?");
            }
            if let Kind::Histogram(buckets) = kind {
                assert!(buckets.is_sorted_by(|a, b| a < b) && buckets.len() <= 15, "{name}: ascending, few buckets");
                assert!(name.ends_with("_seconds") || name.ends_with("_blocks"), "{name}: unit in the name");
            }
        }
        let distinct: BTreeSet<&str> = DECLARED.iter().map(|metric| metric.name).collect();
        assert_eq!(distinct.len(), DECLARED.len(), "a name stands twice");
    }

    #[test]
    fn a_long_name_is_cut_before_it_becomes_a_label() {
        assert_eq!(label(&"x".repeat(500)).len(), MAX_LABEL);
    }
}

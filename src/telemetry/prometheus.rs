//! Collects what [`metrics`] records and renders it for Prometheus. There is no listener here: the text
//! is one of the answers of the HTTP endpoints.

use ::metrics::Recorder;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::metrics::{self, DECLARED, Declared, Kind};

/// The process's metrics, ready to be rendered as Prometheus text.
#[derive(Clone, Debug)]
pub struct Metrics {
    handle: PrometheusHandle,
}

/// Why there are no metrics; a fault of the program.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A histogram was declared without buckets.
    #[error("metric declared wrongly: {0}")]
    Declaration(#[from] BuildError),
    /// Metrics are process-wide, and there are some already.
    #[error("metrics are installed already")]
    Installed,
}

impl Metrics {
    /// Installs the process-wide recorder. Whatever is recorded before is lost.
    ///
    /// # Errors
    ///
    /// [`MetricsError::Installed`] on the second call in one process.
    pub fn install(chain_id: u64, chain: &str) -> Result<Self, MetricsError> {
        let (recorder, rendering) = recorder(chain_id, chain)?;
        ::metrics::set_global_recorder(recorder).map_err(|_| MetricsError::Installed)?;
        metrics::begin();
        Ok(rendering)
    }

    /// The Prometheus text format, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds the observations since the last call into their buckets; they take memory until then. Every few seconds.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

fn recorder(chain_id: u64, chain: &str) -> Result<(PrometheusRecorder, Metrics), MetricsError> {
    let mut builder =
        PrometheusBuilder::new().add_global_label("chain_id", chain_id.to_string()).add_global_label("chain", chain);
    for metric in DECLARED {
        if let Kind::Histogram(buckets) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
        }
    }
    let recorder = builder.build_recorder();
    for Declared { name, kind, help, .. } in DECLARED {
        let (name, help) = ((*name).into(), (*help).into());
        match kind {
            Kind::Counter => recorder.describe_counter(name, None, help),
            Kind::Gauge => recorder.describe_gauge(name, None, help),
            Kind::Histogram(_) => recorder.describe_histogram(name, None, help),
        }
    }
    let rendering = Metrics { handle: recorder.handle() };
    Ok((recorder, rendering))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::domain::Track;

    /// Records each metric once, as the process would.
    fn record_everything() {
        metrics::begin();
        metrics::blocks_processed(Track::Realtime, 1);
        metrics::logs_received(3);
        metrics::logs_rejected("erc721", 1);
        metrics::events_matched(2);
        for stage in metrics::STAGES {
            metrics::stage_seconds(stage, 0.002);
        }
        metrics::stage_error("fetch");
        metrics::claims_held(2);
        metrics::claim_busy();
        metrics::heartbeat_failed();
        metrics::store_request("commit", "ok", 0.001);
        metrics::rpc_request("node.example", "eth_getLogs", "ok", 0.2);
        metrics::sink_messages("sqs:transfers", "acknowledged", 10);
        metrics::sink_send_seconds("sqs:transfers", 0.03);
        metrics::delivery_latency_seconds(1.5);
        metrics::dead_letters_buried("refused", 1);
        metrics::head(100, 1_700_000_000, Some(98));
        metrics::progress(90, 98);
        metrics::gaps(1, 5);
        metrics::lag(8);
        metrics::store_healthy(true);
        metrics::provider_healthy("node.example", false);
        metrics::provider_head("node.example", 99);
        metrics::rpc_failover("node.example", "other.example", "timeout");
        metrics::sink_healthy("sqs:transfers", true);
        metrics::sink_queued("sqs:transfers", 4);
        metrics::reorganised(3);
        metrics::events_retracted(6);
        metrics::audit_missing(1);
        metrics::empty_with_bloom("node.example");
        metrics::proof("node.example", "proven");
        metrics::logs_restored("node.example", 1);
        metrics::duplicate_logs("node.example", 1);
        metrics::log_index_clash("node.example");
        metrics::round_answer("node.example");
        metrics::unknown_message("node.example");
        metrics::recorded("kept");
        metrics::audit_extra(1);
        metrics::token_refresh_failed();
        metrics::tokens(150);
        metrics::dead_letters(1);
    }

    fn rendered() -> String {
        let (recorder, rendering) = recorder(8453, "base_mainnet").unwrap();
        ::metrics::with_local_recorder(&recorder, record_everything);
        rendering.upkeep();
        rendering.render()
    }

    /// Every rule that promtool's linter has and that applies to text from a program.
    #[test]
    fn every_declared_metric_is_rendered_with_help_type_and_constant_labels() {
        let text = rendered();
        let mut types = BTreeMap::new();
        let mut helps = BTreeSet::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                assert!(!help.is_empty() && helps.insert(name), "{name}: HELP once");
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                assert!(types.insert(name, kind).is_none(), "{name}: TYPE once");
            } else {
                assert!(line.contains(r#"chain_id="8453""#) && line.contains(r#"chain="base_mainnet""#), "{line}");
                let (_, value) = line.rsplit_once(' ').unwrap();
                assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
            }
        }
        for Declared { name, kind, labels, .. } in DECLARED {
            let expected = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram(_) => "histogram",
            };
            assert_eq!(types.get(name), Some(&expected), "{name}");
            assert!(helps.contains(name), "{name}: no HELP");
            let sample = text.lines().find(|line| line.starts_with(name)).unwrap();
            assert!(labels.iter().all(|label| sample.contains(&format!("{label}=\""))), "{sample}");
        }
        assert_eq!(types.len(), DECLARED.len(), "something is rendered that was not declared");
    }

    #[test]
    fn counters_with_known_labels_begin_at_zero() {
        let (recorder, rendering) = recorder(1, "ethereum_mainnet").unwrap();
        ::metrics::with_local_recorder(&recorder, metrics::begin);
        let text = rendering.render();
        for series in [
            r#"chaintap_blocks_processed_total{chain_id="1",chain="ethereum_mainnet",track="historical"} 0"#,
            r#"chaintap_claims_busy_total{chain_id="1",chain="ethereum_mainnet"} 0"#,
        ] {
            assert!(text.contains(series), "{series} is not in\n{text}");
        }
    }
}

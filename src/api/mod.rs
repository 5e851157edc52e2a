//! The HTTP endpoints (contract §9): read-only, answered from what is known already, without a question to anyone.
//!
//! | path | for | answers |
//! | --- | --- | --- |
//! | `/health` | people and alarms | JSON; 200 for `ok` and `degraded`, 503 for `fail` |
//! | `/livez` | the supervisor that restarts | 200, or 503 where the loop stands still; looks at nothing outside |
//! | `/readyz` | whoever waits for a start or watches a rollout | 200 or 503 with the reasons; `?verbose` lists every check |
//! | `/metrics` | Prometheus | text format 0.0.4 |
//!
//! Nothing here changes anything: what changes state is a command of the program, and needs its access to the store.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{RawQuery, State},
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;

use crate::telemetry::{Metrics, Status, Vitals};

mod server;

pub use server::{BindError, bind, serve};

/// What there is, for those who ask for something else.
const PATHS: [&str; 4] = ["/health", "/livez", "/readyz", "/metrics"];
/// Answers are of this moment.
const NOT_STORED: (header::HeaderName, &str) = (header::CACHE_CONTROL, "no-store");
/// The text format of Prometheus.
const PROMETHEUS_TEXT: (header::HeaderName, &str) = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");

/// The four endpoints; each answers GET and HEAD.
pub fn router(vitals: Arc<Vitals>, metrics: Metrics) -> Router {
    let of_vitals = Router::new()
        .route("/health", get(health))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(vitals);
    let of_metrics = Router::new().route("/metrics", get(prometheus)).with_state(metrics);
    of_vitals.merge(of_metrics).fallback(not_found).method_not_allowed_fallback(not_allowed)
}

async fn health(State(vitals): State<Arc<Vitals>>) -> Response {
    let health = vitals.health();
    let code = if health.status == Status::Fail { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, [NOT_STORED], Json(health)).into_response()
}

async fn livez(State(vitals): State<Arc<Vitals>>) -> Response {
    match vitals.alive() {
        Ok(()) => (StatusCode::OK, [NOT_STORED], "ok\n").into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, [NOT_STORED], format!("{why}\n")).into_response(),
    }
}

async fn readyz(State(vitals): State<Arc<Vitals>>, RawQuery(query): RawQuery) -> Response {
    let verbose =
        query.as_deref().is_some_and(|query| query.split('&').any(|key| key == "verbose" || key == "verbose=true"));
    let checks = vitals.readiness();
    let ready = checks.iter().all(|check| check.outcome.is_ok());
    let lines = checks.iter().filter_map(|check| match &check.outcome {
        Ok(()) => verbose.then(|| format!("[+]{} ok\n", check.name)),
        Err(why) => Some(format!("[-]{}: {why}\n", check.name)),
    });
    let body: String = lines.chain([if ready { "ok\n" } else { "not ready\n" }.to_owned()]).collect();
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, [NOT_STORED], body).into_response()
}

async fn prometheus(State(metrics): State<Metrics>) -> Response {
    ([PROMETHEUS_TEXT, NOT_STORED], metrics.render()).into_response()
}

async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, Json(json!({ "error": "there is nothing here", "paths": PATHS }))).into_response()
}

async fn not_allowed(method: Method, uri: Uri) -> Response {
    let error = format!("{method} is not for {}: only GET and HEAD are", uri.path());
    (StatusCode::METHOD_NOT_ALLOWED, Json(json!({ "error": error }))).into_response()
}

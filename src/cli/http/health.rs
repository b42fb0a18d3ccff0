//! `/healthz`, `/health/storage`, `/metrics`, `/openapi.json`: how the daemon is, and what this interface offers.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Api;
use super::problem::Problem;
use crate::cli::daemon::metrics;

/// The document.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// A run's folder, its plan and arguments, and its entries in the journal fit into this many times over.
const LEAST_FREE: u64 = 4 << 20;

/// `GET /healthz`
pub(super) async fn alive() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// `GET /openapi.json`
pub(super) async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/vnd.oai.openapi+json;version=3.1")], OPENAPI).into_response()
}

/// `GET /metrics`
pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let facts = &api.facts;
    let text = metrics::render(&facts.board, &facts.jobs, &facts.store);
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}

/// `GET /health/storage`
pub(super) async fn storage(State(api): State<Api>) -> Json<Value> {
    let facts = &api.facts;
    let free = free_bytes(&api);
    let (events, events_limit) = facts.events.bytes();
    let warning = facts.store.trouble();
    let state_ok = free.as_ref().is_ok_and(|free| *free >= LEAST_FREE);
    Json(json!({
        "status": if state_ok && warning.is_none() { "ok" } else { "degraded" },
        "state": {
            "path": facts.options.dirs.state,
            "free_bytes": free.as_ref().ok(),
            "least_free_bytes": LEAST_FREE,
            "error": free.as_ref().err(),
        },
        "events": {"bytes": events, "limit_bytes": events_limit},
        "content": {
            "bytes": facts.store.used_bytes(),
            "quota_bytes": facts.store.options().quota_bytes,
            "warning": warning,
        },
    }))
}

/// Whether a run can be written down. Asked before it is made: what does not fit must leave nothing behind.
pub(super) fn room_for_a_run(api: &Api) -> Result<(), Problem> {
    match free_bytes(api) {
        Ok(free) if free < LEAST_FREE => Err(Problem::quota(format!(
            "{free} bytes are free in {}, and a run is written down where at least {LEAST_FREE} are: make room, or \
             remove finished runs",
            api.facts.options.dirs.state.display()
        ))),
        // What cannot be found out is found out by writing.
        _ => Ok(()),
    }
}

fn free_bytes(api: &Api) -> Result<u64, String> {
    let stat = rustix::fs::statvfs(&api.facts.options.dirs.state).map_err(|error| error.to_string())?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

//! `/runs`: started as by a `ctl`, in the same queue, with the same record and journal.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::access::Principal;
use super::events::streamed;
use super::jobs::JobRequest;
use super::problem::Problem;
use super::routes::without_verb;
use super::{Api, body, health};
use crate::cli::daemon::clock;
use crate::jobs::{Command, Log, Order, Run, RunState};
use crate::policy::digest::Digest;

/// Runs of a page, and the most.
const PER_PAGE: (usize, usize) = (50, 200);
/// How long an idempotency key is known.
const KEY_KEPT_MS: u64 = 600_000;
/// Bytes of a log that are read at once.
const PIECE: usize = 64 << 10;
/// Between two looks for more of a log.
const LOOK: Duration = Duration::from_millis(100);

const REPLAY: HeaderName = HeaderName::from_static("idempotent-replay");

/// The word of this interface for a state.
pub(super) fn status(state: RunState) -> &'static str {
    match state {
        RunState::Created => "created",
        RunState::Queued => "queued",
        RunState::Running => "running",
        RunState::Succeeded => "completed",
        RunState::Failed | RunState::Timeout | RunState::Lost => "failed",
        RunState::Canceled => "canceled",
    }
}

/// `record.json`, with this interface's words beside.
fn shown(run: &Run) -> Value {
    let mut shown = json!({"id": run.id(), "job_id": run.job_id(), "status": status(run.state())});
    let record = serde_json::from_slice(&run.record_json()).unwrap_or_default();
    if let (Some(shown), Value::Object(record)) = (shown.as_object_mut(), record) {
        shown.extend(record);
    }
    shown
}

/// A run by its id.
pub(super) fn find(api: &Api, id: &str) -> Result<Arc<Run>, Problem> {
    let run = api.facts.jobs.run_by_id(id);
    run.ok_or_else(|| {
        Problem::new(404, "run not found", format!("there is no run {id:?}: GET /runs lists them"))
    })
}

/// What `GET /runs` may be asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    page: Option<usize>,
    per_page: Option<usize>,
    job_id: Option<String>,
    status: Option<String>,
}

/// `GET /runs`
pub(super) async fn list(
    State(api): State<Api>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(query) = query.map_err(|error| Problem::new(400, "invalid query", error.body_text()))?;
    let (page, per_page) = (query.page.unwrap_or(1), query.per_page.unwrap_or(PER_PAGE.0));
    if page == 0 || per_page == 0 || per_page > PER_PAGE.1 {
        let words = format!("page counts from 1, and per_page is 1 to {}", PER_PAGE.1);
        return Err(Problem::new(400, "invalid query", words));
    }
    let mut runs = api.facts.jobs.all_runs();
    runs.retain(|run| query.job_id.as_deref().is_none_or(|job| run.job_id() == job));
    runs.retain(|run| query.status.as_deref().is_none_or(|wanted| status(run.state()) == wanted));
    let total = runs.len();
    let newest_first = runs.iter().rev().skip((page - 1).saturating_mul(per_page)).take(per_page);
    let runs: Vec<Value> = newest_first.map(|run| shown(run)).collect();
    Ok(Json(json!({"runs": runs, "page": page, "per_page": per_page, "total": total})))
}

/// `GET /runs/{id}`
pub(super) async fn one(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    find(&api, &id).map(|run| Json(shown(&run)))
}

/// `POST /runs`
pub(super) async fn start(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let bytes = body::read(body).await?;
    let request: JobRequest = body::parse(&bytes)?;
    let key = Key::of(&headers, &principal, &bytes)?;
    // Of two requests with one key the second must see what the first made.
    let _ordering = match &key {
        Some(_) => Some(api.ordering.lock().await),
        None => None,
    };
    if let Some(run) = key.as_ref().map(|key| key.earlier(&api)).transpose()?.flatten() {
        let mut response = created(&run);
        response.headers_mut().insert(REPLAY, HeaderValue::from_static("true"));
        return Ok(response);
    }
    let (job, asked) = request.asked(&api)?;
    health::room_for_a_run(&api)?;
    let token = key.as_ref().map(Key::token);
    let run = api.facts.jobs.run_ordered(Order {
        job: &job,
        asked,
        caller: principal.caller,
        via: principal.via(),
        token: token.as_deref(),
    })?;
    Ok(created(&run))
}

fn created(run: &Run) -> Response {
    let mut response = (StatusCode::CREATED, Json(shown(run))).into_response();
    // A run's id is plain text.
    if let Ok(location) = HeaderValue::from_str(&format!("/runs/{}", run.id())) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// An idempotency key, of this caller and with this body. It is kept as the token of the run's start, so that a daemon
/// that takes over knows it, too.
struct Key {
    /// Who and which key, in one.
    scope: String,
    /// Of the body and the key: a body may hold a short secret, whose bare digest would tell it to who tries all.
    body: Digest,
}

impl Key {
    fn of(headers: &HeaderMap, principal: &Principal, bytes: &[u8]) -> Result<Option<Self>, Problem> {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let canonical = body::canonical(bytes)?;
        if let Some(told) = text("idempotency-sha256")
            && !told.eq_ignore_ascii_case(&Digest::of(&canonical).hex())
        {
            return Err(conflict("Idempotency-SHA256 is not that of the canonical body"));
        }
        let Some(key) = text("idempotency-key") else { return Ok(None) };
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if !(20..=128).contains(&key.len()) || !key.bytes().all(good) {
            let words = "Idempotency-Key is 20 to 128 of A-Z a-z 0-9 _ -";
            return Err(Problem::new(400, "invalid idempotency key", words));
        }
        let scope = Digest::of(format!("{}\n{key}", principal.name).as_bytes());
        let body = Digest::of(&[key.as_bytes(), b"\n", &canonical].concat());
        Ok(Some(Self { scope: format!("http/{}/", scope.hex()), body }))
    }

    fn token(&self) -> String {
        format!("{}{}", self.scope, self.body.hex())
    }

    /// The run that the key has made already.
    fn earlier(&self, api: &Api) -> Result<Option<Arc<Run>>, Problem> {
        let since = clock::now_ms().saturating_sub(KEY_KEPT_MS);
        let recent = api.facts.jobs.all_runs().into_iter().rev().take_while(|run| run.created_ms() >= since);
        for run in recent {
            let token = run.token();
            let Some(body) = token.as_deref().and_then(|token| token.strip_prefix(&self.scope)) else {
                continue;
            };
            if body == self.body.hex() {
                return Ok(Some(run));
            }
            return Err(conflict("this key came with another body within the last 10 minutes"));
        }
        Ok(None)
    }
}

fn conflict(words: &str) -> Problem {
    Problem::new(409, "idempotency key conflict", words).code("idempotency-key-conflict")
}

/// `POST /runs/{id}:cancel`
pub(super) async fn cancel(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let run = find(&api, without_verb(&id, "cancel", "GET")?)?;
    if run.state().is_final() {
        return Ok(Json(shown(&run)).into_response());
    }
    match api.facts.jobs.run_command(&run, Command::Cancel, &principal.caller) {
        Ok(_) => Ok((StatusCode::ACCEPTED, Json(shown(&run))).into_response()),
        // It ended in between.
        Err(_) if run.state().is_final() => Ok(Json(shown(&run)).into_response()),
        Err(error) => Err(error.into()),
    }
}

/// What `GET /runs/{id}/logs` may be asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogsQuery {
    channel: Option<String>,
    offset: Option<u64>,
    follow: Option<bool>,
}

/// `GET /runs/{id}/logs`
pub(super) async fn logs(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Result<Query<LogsQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|error| Problem::new(400, "invalid query", error.body_text()))?;
    let run = find(&api, &id)?;
    let channel = match query.channel.as_deref() {
        None | Some("stdout") => "stdout",
        Some("stderr") => "stderr",
        Some(other) => {
            let words = format!("{other:?} is no channel: ask for stdout or stderr");
            return Err(Problem::new(400, "invalid query", words));
        }
    };
    let (mut offset, follow) = (query.offset.unwrap_or(0), query.follow.unwrap_or(false));
    let body = streamed(move |sender| async move {
        let mut log: Option<Arc<Log>> = None;
        loop {
            // The state first: what is there after the end is all.
            let over = !follow || run.state().is_final();
            log = log.or_else(|| run.open_log(channel).map(Arc::new));
            let opened = log.clone();
            let piece = tokio::task::spawn_blocking(move || read(opened.as_deref(), offset)).await;
            let piece = piece.unwrap_or_default();
            offset += piece.len() as u64;
            if piece.is_empty() && over {
                return;
            }
            if piece.is_empty() {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = sender.closed() => return,
                }
            } else if sender.send(Ok(piece.into())).await.is_err() {
                return;
            }
        }
    });
    Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// A piece of a log; nothing where there is none.
fn read(log: Option<&Log>, offset: u64) -> Vec<u8> {
    let Some(log) = log else { return Vec::new() };
    let mut piece = vec![0; PIECE];
    let length = log.read_at(&mut piece, offset).unwrap_or(0);
    piece.truncate(length);
    piece
}

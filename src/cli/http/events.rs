//! `/events`, `/runs/{id}/events` and `/runs/{id}/events.ndjson`: what happens, as it happens, from any point on.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::access::Principal;
use super::feed::{Feed, Lines};
use super::problem::Problem;
use super::tokens::Scope;
use super::{Api, feed};
use crate::cli::daemon::journal::JournalError;
use crate::jobs::Run;

/// How a stream begins: when to come again, and that it stands.
const OPENING: &str = "retry: 2000\n\n:connected\n\n";
/// Proxies close what is silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Between two looks for output, or for a run that is not there yet.
const LOOK: Duration = Duration::from_millis(100);
/// Pieces that wait for a slow reader.
const AHEAD: usize = 4;

/// What `/events` may be asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    run_id: Option<String>,
    last_event_id: Option<String>,
}

type Sender = mpsc::Sender<Result<Bytes, Infallible>>;

/// `GET /events`
pub(super) async fn all(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let cursor = cursor(&headers, query.last_event_id.as_deref())?;
    if let Some(run) = query.run_id {
        principal.may(Scope::RunsRead)?;
        return stream_of_run(&api, run, cursor).await;
    }
    let newest = api.facts.events.subscribe();
    let mut cursor = cursor.unwrap_or(*newest.borrow());
    // The refusal comes before the stream.
    api.facts.events.after(cursor)?;
    Ok(sse(move |sender| async move {
        let mut newest = newest;
        loop {
            let log = Arc::clone(&api.facts);
            let lines = tokio::task::spawn_blocking(move || log.events.after(cursor)).await;
            let Ok(Ok(lines)) = lines else { return };
            let mut text = String::new();
            for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                let Ok(line) = serde_json::from_slice::<Value>(line) else { continue };
                cursor = line["seq"].as_u64().unwrap_or(cursor);
                text.push_str(&event(cursor, &line));
            }
            if !text.is_empty() && sender.send(Ok(text.into())).await.is_err() {
                return;
            }
            if cursor < *newest.borrow_and_update() {
                continue;
            }
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { return },
                alive = keep_alive(&sender) => if !alive { return },
            }
        }
    }))
}

/// `GET /runs/{id}/events`
pub(super) async fn of_run(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let cursor = cursor(&headers, query.last_event_id.as_deref())?;
    stream_of_run(&api, id, cursor).await
}

/// From the run's first event, or after the cursor; also before the run is there.
async fn stream_of_run(api: &Api, id: String, cursor: Option<u64>) -> Result<Response, Problem> {
    let run = api.facts.jobs.run_by_id(&id);
    let mut cursor = cursor.unwrap_or(0);
    match &run {
        Some(run) => {
            let lines = lines(feed(api, run)?, cursor).await?;
            if lines.over && lines.lines.is_empty() && cursor > 0 {
                // Tells an EventSource not to come again.
                return Ok(StatusCode::NO_CONTENT.into_response());
            }
        }
        // Of a run that was removed nothing is kept, and one that has not been cannot have told of anything.
        None if cursor > 0 => {
            return Err(JournalError::Expired { cursor, first: 1, last: 0 }.into());
        }
        None => {}
    }
    let api = api.clone();
    Ok(sse(move |sender| async move {
        let run = loop {
            if let Some(run) = api.facts.jobs.run_by_id(&id) {
                break run;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = sender.closed() => return,
            }
        };
        let Ok(feed) = feed(&api, &run) else { return };
        let mut state = run.subscribe();
        let mut quiet = tokio::time::Instant::now();
        loop {
            let Ok(lines) = lines(Arc::clone(&feed), cursor).await else { return };
            let mut text = String::new();
            for (number, line) in &lines.lines {
                cursor = *number;
                text.push_str(&event(cursor, line));
            }
            if !text.is_empty() {
                quiet = tokio::time::Instant::now();
            } else if quiet.elapsed() > KEEP_ALIVE {
                quiet = tokio::time::Instant::now();
                text.push_str(":\n\n");
            }
            if !text.is_empty() && sender.send(Ok(text.into())).await.is_err() || lines.over {
                return;
            }
            if lines.lines.is_empty() {
                tokio::select! {
                    _ = state.changed() => {}
                    () = tokio::time::sleep(LOOK) => {}
                    () = sender.closed() => return,
                }
            }
        }
    }))
}

/// `GET /runs/{id}/events.ndjson`
pub(super) async fn export(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if !api.facts.http.export {
        let words = "the export of events is off: http.export: true in the configuration turns it on";
        return Err(Problem::new(404, "extension unsupported", words).code("extension-unsupported"));
    }
    let mut cursor = cursor(&headers, query.last_event_id.as_deref())?.unwrap_or(0);
    let run = super::runs::find(&api, &id)?;
    let feed = feed(&api, &run)?;
    // The refusal comes before the answer.
    lines(Arc::clone(&feed), cursor).await?;
    let body = streamed(move |sender| async move {
        loop {
            let Ok(lines) = lines(Arc::clone(&feed), cursor).await else { return };
            let Some((last, _)) = lines.lines.last() else { return };
            cursor = *last;
            let text: String = lines.lines.iter().map(|(_, line)| format!("{line}\n")).collect();
            if sender.send(Ok(text.into())).await.is_err() {
                return;
            }
        }
    });
    Ok(([(CONTENT_TYPE, "text/x-ndjson; charset=utf-8")], body).into_response())
}

fn feed(api: &Api, run: &Arc<Run>) -> Result<Arc<feed::Feed>, Problem> {
    api.feeds.of(run).map_err(|error| JournalError::Disk(error).into())
}

async fn lines(feed: Arc<Feed>, cursor: u64) -> Result<Lines, Problem> {
    let lines = tokio::task::spawn_blocking(move || feed.after(cursor)).await;
    Ok(lines.map_err(|error| Problem::new(500, "internal error", error.to_string()))??)
}

/// The event after which to go on: `Last-Event-ID`, as browsers send it, or the query.
fn cursor(headers: &HeaderMap, query: Option<&str>) -> Result<Option<u64>, Problem> {
    let header = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?"));
    let Some(text) = header.or(query).filter(|text| !text.is_empty()) else { return Ok(None) };
    let number = text.parse().map_err(|_| {
        Problem::new(
            400,
            "invalid cursor",
            format!("{text:?} is no number of an event: send the id of the last one"),
        )
    })?;
    Ok(Some(number))
}

fn event(id: u64, line: &Value) -> String {
    // JSON in one line, and kinds of ours: neither holds a line break.
    format!("id: {id}\nevent: {}\ndata: {line}\n\n", line["event"].as_str().unwrap_or("message"))
}

async fn keep_alive(sender: &Sender) -> bool {
    tokio::select! {
        () = tokio::time::sleep(KEEP_ALIVE) => sender.send(Ok(Bytes::from_static(b":\n\n"))).await.is_ok(),
        () = sender.closed() => false,
    }
}

fn sse<F: Future<Output = ()> + Send + 'static>(
    write: impl FnOnce(Sender) -> F + Send + 'static,
) -> Response {
    let body = streamed(move |sender| async move {
        if sender.send(Ok(OPENING.into())).await.is_ok() {
            write(sender).await;
        }
    });
    ([(CONTENT_TYPE, "text/event-stream; charset=utf-8")], body).into_response()
}

/// A body that a task writes; the task ends when nobody reads it any more.
pub(super) fn streamed<F: Future<Output = ()> + Send + 'static>(
    write: impl FnOnce(Sender) -> F + Send + 'static,
) -> Body {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(write(sender));
    Body::from_stream(futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    }))
}

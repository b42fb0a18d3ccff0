//! The table of routes: what there is, who may, how long it may take.

use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use axum::http::{Method, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodFilter, MethodRouter, on};

use super::access::{Access, check};
use super::problem::Problem;
use super::tokens::Scope::{EventsRead, JobsRead, RunsRead, RunsWrite, SourcesRead, SourcesWrite};
use super::{Api, events, health, jobs, runs, sources};

/// An answer out of memory and small files.
const USUAL: Duration = Duration::from_secs(30);
/// Adding a source waits for its registry: as long as bytes arrive, and no longer than this.
const ADDING: Duration = Duration::from_secs(900);

/// One route.
pub(super) struct Route {
    /// Its method.
    pub method: Method,
    /// Its path, as the OpenAPI document has it.
    pub path: &'static str,
    access: Access,
    /// To the head of the answer.
    time: Duration,
    service: fn(MethodFilter) -> MethodRouter<Api>,
}

/// All of them.
pub(super) fn routes() -> Vec<Route> {
    let route = |method, path, access, time, service| Route { method, path, access, time, service };
    let all = |scopes| Access::Scopes(scopes);
    let (read, write) = (Method::GET, Method::POST);
    vec![
        route(read.clone(), "/sources", all(&[SourcesRead]), USUAL, |m| on(m, sources::list)),
        route(write.clone(), "/sources", all(&[SourcesWrite]), ADDING, |m| on(m, sources::add)),
        route(read.clone(), "/sources/{name}", all(&[SourcesRead]), USUAL, |m| on(m, sources::one)),
        route(Method::DELETE, "/sources/{name}", all(&[SourcesWrite]), USUAL, |m| on(m, sources::remove)),
        route(write.clone(), "/sources/{name}:reload", all(&[SourcesWrite]), ADDING, |m| {
            on(m, sources::reload)
        }),
        route(read.clone(), "/jobs", all(&[JobsRead]), USUAL, |m| on(m, jobs::list)),
        route(read.clone(), "/jobs/{id}", all(&[JobsRead]), USUAL, |m| on(m, jobs::one)),
        route(write.clone(), "/plans", all(&[JobsRead]), USUAL, |m| on(m, jobs::plan)),
        route(read.clone(), "/runs", all(&[RunsRead]), USUAL, |m| on(m, runs::list)),
        route(write.clone(), "/runs", all(&[RunsWrite]), USUAL, |m| on(m, runs::start)),
        route(read.clone(), "/runs/{id}", all(&[RunsRead]), USUAL, |m| on(m, runs::one)),
        route(write, "/runs/{id}:cancel", all(&[RunsWrite]), USUAL, |m| on(m, runs::cancel)),
        route(read.clone(), "/runs/{id}/logs", all(&[RunsRead]), USUAL, |m| on(m, runs::logs)),
        route(read.clone(), "/runs/{id}/events", all(&[RunsRead, EventsRead]), USUAL, |m| {
            on(m, events::of_run)
        }),
        route(read.clone(), "/runs/{id}/events.ndjson", all(&[RunsRead, EventsRead]), USUAL, |m| {
            on(m, events::export)
        }),
        route(read.clone(), "/events", all(&[EventsRead]), USUAL, |m| on(m, events::all)),
        route(read.clone(), "/healthz", Access::Public, USUAL, |m| on(m, health::alive)),
        route(read.clone(), "/health/storage", Access::Known, USUAL, |m| on(m, health::storage)),
        route(read.clone(), "/metrics", Access::Known, USUAL, |m| on(m, health::metrics)),
        route(read, "/openapi.json", Access::Public, USUAL, |m| on(m, health::openapi)),
    ]
}

/// The path as the router understands it: a verb is for the handler, and a job's id is a path.
fn pattern(path: &'static str) -> String {
    let path = path.split(':').next().unwrap_or(path);
    path.replace("/jobs/{id}", "/jobs/{*id}")
}

/// Everything, under both prefixes.
pub(super) fn router(api: &Api) -> Router {
    let mut router = Router::new();
    for Route { method, path, access, time, service } in routes() {
        // Of the methods of the table there is none that has no filter.
        let filter = MethodFilter::try_from(method).unwrap_or(MethodFilter::GET);
        let limit = move |request: Request, next: Next| async move {
            match tokio::time::timeout(time, next.run(request)).await {
                Ok(response) => response,
                Err(_) => {
                    let words = format!("there was no answer within {} s", time.as_secs());
                    Problem::new(504, "timeout", words).into_response()
                }
            }
        };
        let service = service(filter)
            .route_layer(from_fn_with_state((api.clone(), access), check))
            .route_layer(from_fn(limit));
        router = router.route(&pattern(path), service);
    }
    let router = router.method_not_allowed_fallback(not_offered);
    Router::new()
        .merge(router.clone())
        .nest("/api/v1", router)
        .fallback(unknown)
        .layer(from_fn(finish))
        .with_state(api.clone())
}

async fn unknown() -> Problem {
    Problem::new(404, "not found", "there is nothing under this path: /openapi.json lists what there is")
}

async fn not_offered(method: Method) -> Problem {
    Problem::new(405, "method not allowed", format!("{method} is not offered here: see the header Allow"))
}

/// What every answer has.
async fn finish(uri: Uri, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let status = response.status();
    if status.as_u16() >= 400 && response.extensions().get::<Problem>().is_none() {
        // A path or query that is no text, refused before any handler saw it.
        let title = status.canonical_reason().unwrap_or("refused");
        let words = "the request is not understood: /openapi.json tells what is";
        response.extensions_mut().insert(Problem::new(status.as_u16(), title, words));
    }
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let kept = std::mem::replace(&mut response, problem.at(uri.path()));
        for (name, value) in kept.headers() {
            if !response.headers().contains_key(name) && name != CONTENT_LENGTH {
                response.headers_mut().insert(name.clone(), value.clone());
            }
        }
    }
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A path's last element without the verb that must stand behind it; `others` are the methods without one.
pub(super) fn without_verb<'a>(
    element: &'a str,
    verb: &str,
    others: &'static str,
) -> Result<&'a str, Problem> {
    match element.rsplit_once(':') {
        Some((name, found)) if found == verb => Ok(name),
        Some((_, found)) => {
            Err(Problem::new(404, "not found", format!("{found:?} is no verb here: known is {verb}")))
        }
        None => {
            let words = format!("POST is for {element}:{verb}");
            Err(Problem::new(405, "method not allowed", words).allow(others))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Every route is told of, with all its scopes, and nothing else.
    #[test]
    fn the_document_has_every_route() {
        let document: Value = serde_json::from_str(health::OPENAPI).unwrap();
        let mut told = Vec::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in
                methods.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters")
            {
                let security = operation.get("security").unwrap_or(&document["security"]);
                let scopes = match &operation["x-scopes"] {
                    Value::Array(scopes) => scopes.iter().map(|s| s.as_str().unwrap().to_owned()).collect(),
                    _ => vec![
                        if security.as_array().unwrap().is_empty() { "public" } else { "known" }.to_owned(),
                    ],
                };
                told.push((method.to_uppercase(), path.clone(), scopes));
            }
        }
        let mut there: Vec<_> = routes()
            .into_iter()
            .map(|route| {
                let scopes: Vec<String> = match route.access {
                    Access::Public => vec!["public".to_owned()],
                    Access::Known => vec!["known".to_owned()],
                    Access::Scopes(scopes) => scopes.iter().map(ToString::to_string).collect(),
                };
                (route.method.to_string(), route.path.to_owned(), scopes)
            })
            .collect();
        told.sort();
        there.sort();
        assert_eq!(told, there);
    }
}

//! `/jobs` and `/plans`.

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::HeaderName;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::access::Principal;
use super::problem::Problem;
use super::{Api, body};
use crate::jobs::{Asked, Job, Wishes};
use crate::policy::arguments::Given;
use crate::policy::rules::Profile;
use crate::policy::source::status::Phase;

/// How many sources could not be shown, or not whole.
const DISCOVERY_ERRORS: HeaderName = HeaderName::from_static("x-flowd-discovery-errors");

/// The body of `POST /plans` and `POST /runs`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JobRequest {
    job: Option<String>,
    job_id: Option<String>,
    #[serde(default)]
    args: Option<Map<String, Value>>,
    profile: Option<String>,
    /// `cpu`, `memory`, `timeout`, in place of the manifest's hints.
    #[serde(default)]
    limits: Option<Map<String, Value>>,
}

impl JobRequest {
    /// `job` and `job_id` are one field.
    pub(super) fn asked(self, api: &Api) -> Result<(String, Asked), Problem> {
        let job = match (self.job, self.job_id) {
            (Some(a), Some(b)) if a != b => {
                return Err(Problem::body("job and job_id are one field, and name different jobs"));
            }
            (Some(job), _) | (None, Some(job)) => job,
            (None, None) => return Err(Problem::body("there is no job_id: GET /jobs lists them")),
        };
        if job.starts_with(':') {
            let words = format!("{job:?}: names that begin with ':' are reserved");
            return Err(Problem::new(400, "alias is reserved", words).code("alias.reserved"));
        }
        let mut wishes = Wishes::default();
        if let Some(profile) = &self.profile {
            wishes.profile = Some(profile.parse::<Profile>()?);
        }
        for (name, value) in self.limits.unwrap_or_default() {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            wishes.limits.ask(&name, &text).map_err(|error| Problem::body(format!("limits: {error}")))?;
        }
        let known = api.facts.jobs.job(&job).ok_or_else(|| not_found(&job))?;
        let args = self.args.unwrap_or_default();
        if !args.is_empty() && takes_nothing(&known) {
            let words = format!("job {job} takes no arguments: leave args out");
            return Err(Problem::new(400, "job does not accept arguments", words));
        }
        Ok((job, Asked { given: Given::Json(args), wishes }))
    }
}

fn not_found(job: &str) -> Problem {
    Problem::new(404, "job not found", format!("there is no job {job:?}: GET /jobs lists them"))
}

fn takes_nothing(job: &Job) -> bool {
    let descriptor = job.descriptor();
    let argspec = &descriptor["argspec"];
    let named = argspec["properties"].as_object().is_some_and(|properties| !properties.is_empty());
    !named && argspec["additionalProperties"] == false
}

/// `GET /jobs`
pub(super) async fn list(State(api): State<Api>) -> Response {
    let jobs: Vec<Value> = api.facts.jobs.jobs().iter().map(|job| shown(job)).collect();
    let errors = api.facts.board.discovery_errors();
    let count = errors.lines().count().to_string();
    ([(DISCOVERY_ERRORS, count)], Json(json!({"jobs": jobs}))).into_response()
}

/// `GET /jobs/{id}`
pub(super) async fn one(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let job = api.facts.jobs.job(&id).ok_or_else(|| not_found(&id))?;
    Ok(Json(shown(&job)))
}

/// `job.json`, with the source as an object.
fn shown(job: &Job) -> Value {
    let mut shown = job.descriptor();
    shown["source"] = json!({"name": job.source(), "type": "oci"});
    shown
}

/// `POST /plans`
pub(super) async fn plan(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let bytes = body::read(body).await?;
    let (job, asked) = body::parse::<JobRequest>(&bytes)?.asked(&api)?;
    let mut plan = json!(api.facts.jobs.plan(&job, asked, &principal.caller)?);
    plan["job_id"] = job.into();
    if let Some(image) = plan.pointer_mut("/executor_preview/container_image") {
        *image = without_digest(image.as_str().unwrap_or_default()).into();
    }
    let source = plan.pointer("/provenance/source/name").and_then(Value::as_str).unwrap_or_default();
    let waits = api.facts.board.find(source).map(|seat| api.facts.board.phase(seat));
    if let (Some(Phase::Waiting), Some(findings)) = (waits, plan["policy_findings"].as_array_mut()) {
        findings.push(json!({
            "code": "oci.digest.missing",
            "message": "the image's layers are not here: they are fetched and proven at the first run",
        }));
    }
    Ok(Json(plan))
}

/// A reference without what pins it.
pub(super) fn without_digest(image: &str) -> &str {
    image.split_once('@').map_or(image, |(name, _)| name)
}

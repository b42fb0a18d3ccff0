//! `/sources`.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::problem::Problem;
use super::routes::without_verb;
use super::{Api, body, jobs};
use crate::cli::daemon::board::Detail;
use crate::cli::daemon::clock;
use crate::cli::daemon::enlist::{EnlistError, Enlisted};
use crate::policy::admit;
use crate::policy::source::request::SourceRequest;
use crate::policy::source::spec::PullPolicy;

/// For a source that was found good to be shown.
const SHOWN: Duration = Duration::from_secs(10);

/// `GET /sources`
pub(super) async fn list(State(api): State<Api>) -> Json<Value> {
    let sources: Vec<Value> =
        api.facts.board.details(None).iter().map(|detail| shown(&api, detail)).collect();
    Json(json!({"sources": sources}))
}

/// `GET /sources/{name}`
pub(super) async fn one(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    found(&api, &name).map(Json)
}

/// `POST /sources`
pub(super) async fn add(State(api): State<Api>, body: Body) -> Result<Response, Problem> {
    let bytes = body::read(body).await?;
    let request = SourceRequest::parse(&bytes).map_err(EnlistError::Request)?;
    let enlisted = api.facts.enlist(request).await?;
    answer(&api, &enlisted).await
}

/// `POST /sources/{name}:reload`
pub(super) async fn reload(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, Problem> {
    let name = without_verb(&name, "reload", "GET, DELETE")?;
    let enlisted = api.facts.enlist_again(name).await?;
    answer(&api, &enlisted).await
}

/// `DELETE /sources/{name}`
pub(super) async fn remove(State(api): State<Api>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    api.facts.strike(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn answer(api: &Api, enlisted: &Enlisted) -> Result<Response, Problem> {
    // All that the tree needs of it is here already; its driver only has to go the same way again.
    let mut changes = api.facts.board.watch();
    let shown = async {
        while !api.facts.board.details(Some(&enlisted.name)).iter().all(is_decided) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    // Whoever waits longer sees what there is.
    let _ = tokio::time::timeout(SHOWN, shown).await;
    let body = found(api, &enlisted.name)?;
    if !enlisted.created {
        return Ok(Json(body).into_response());
    }
    let mut response = (StatusCode::CREATED, Json(body)).into_response();
    // A source's name is plain text.
    if let Ok(location) = HeaderValue::from_str(&format!("/sources/{}", enlisted.name)) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

/// Whether its status says what policy thinks of it.
fn is_decided(detail: &Detail) -> bool {
    let status = &detail.status;
    let over = matches!(status["phase"].as_str(), Some("refused" | "failed"));
    over || status["shown"] == true && !status["verification"].is_null()
}

fn found(api: &Api, name: &str) -> Result<Value, Problem> {
    let details = api.facts.board.details(Some(name));
    let detail = details.first().ok_or_else(|| EnlistError::NotFound(name.to_owned()))?;
    Ok(shown(api, detail))
}

/// A source in flowd's words.
fn shown(api: &Api, detail: &Detail) -> Value {
    let (spec, status) = (&detail.spec, &detail.status);
    let all = api.facts.added();
    let added = all.get(&spec.name).filter(|added| added.digest == spec.image.digest);
    let image = spec.image.to_string();
    let asked = added.and_then(|added| {
        let request = &added.request;
        request.r#ref.as_deref().or(request.image.as_deref()).or(request.url.as_deref())
    });
    let mode = api.facts.sources.rooms().map(|rooms| admit::verify_mode(&rooms.policy, spec));
    let verification = &status["verification"];
    let signed = verification["state"] == "verified";
    let mut findings = Vec::new();
    if verification["state"] == "unsigned" {
        let why = "no signature counts, and policy lets that pass";
        findings.push(json!({"code": "image.signature.permissive", "message": why}));
    }
    if let (Some(code), Some(message)) = (status["code"].as_str(), status["message"].as_str()) {
        findings.push(json!({"code": code, "message": message}));
    }
    let manifest = detail.addon.as_ref().map(|addon| {
        json!({
            "id": addon["name"], "name": addon["name"], "version": addon["version"],
            "description": addon["description"], "jobs": status["addon"]["jobs"],
        })
    });
    json!({
        "name": spec.name,
        "type": "oci",
        "ref": asked.unwrap_or(jobs::without_digest(&image)),
        "resolved_ref": image,
        "digest": spec.image.digest,
        "mountPath": if spec.mount_path.is_empty() { "." } else { &spec.mount_path },
        "pull_policy": pull_policy(spec.pull_policy),
        "expose": spec.expose,
        "trusted": spec.trusted,
        "verify_signatures": spec.verify_signatures,
        "profile": spec.profile,
        "pin": spec.pin,
        "origin": if added.is_some() { "api" } else { "configuration" },
        "created_at": added.map(|added| clock::text(added.created)),
        "updated_at": added.map(|added| clock::text(added.updated)),
        "status": {
            "phase": status["phase"], "shown": status["shown"], "ready": status["ready"],
            "progress": status["progress"], "conditions": status["conditions"],
        },
        "metadata": {
            "manifest": manifest,
            "image_trust": {
                "verify_mode": mode,
                "signature_verified": signed,
                "by": if signed { verification["by"].clone() } else { Value::Null },
            },
        },
        "findings": findings,
    })
}

/// As flowd spells them.
fn pull_policy(policy: PullPolicy) -> &'static str {
    match policy {
        PullPolicy::OnAdd => "always",
        PullPolicy::OnRun => "ifNotPresent",
        PullPolicy::Never => "never",
        PullPolicy::OnStartup => "on-startup",
    }
}

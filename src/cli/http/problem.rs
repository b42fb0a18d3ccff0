//! `application/problem+json` (RFC 9457), the one shape of every refusal.

use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::cli::daemon::enlist::EnlistError;
use crate::cli::daemon::journal::JournalError;
use crate::jobs::JobError;
use crate::policy::code::{Code, Denied};

/// Media type of the body.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// A refusal.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    status: StatusCode,
    title: &'static str,
    detail: String,
    code: Option<&'static str>,
    /// Member `errors`.
    errors: Option<Box<Value>>,
    retry_after: Option<u32>,
    allow: Option<&'static str>,
}

impl Problem {
    /// With words of its own and no code.
    pub(super) fn new(status: u16, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            title,
            detail: detail.into(),
            code: None,
            errors: None,
            retry_after: None,
            allow: None,
        }
    }

    /// Under a published code.
    #[must_use]
    pub(super) fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The methods that the path has.
    #[must_use]
    pub(super) fn allow(mut self, methods: &'static str) -> Self {
        self.allow = Some(methods);
        self
    }

    #[must_use]
    fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// A body that is not what is wanted.
    pub(super) fn body(detail: impl Into<String>) -> Self {
        Self::new(400, "invalid request body", detail)
    }

    /// Nobody knows who asks.
    pub(super) fn unauthorized() -> Self {
        Self::new(401, "unauthorized", "present a token: Authorization: Bearer …")
    }

    /// The disk of the state directory has no room for another run, or a journal none for its entry.
    pub(super) fn quota(detail: impl Into<String>) -> Self {
        Self::new(429, "storage quota exceeded", detail).code("storage-quota-exceeded").retry_after(60)
    }

    /// As the answer to a request for `path`.
    pub(super) fn at(self, path: &str) -> Response {
        let mut body = json!({
            "type": self.code.map_or("about:blank".to_owned(), |code| format!("/problems/{code}")),
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
            "instance": path,
        });
        if let Some(code) = self.code {
            body["code"] = code.into();
        }
        if let Some(errors) = self.errors {
            body["errors"] = *errors;
        }
        let mut response = (self.status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"addonfs\""));
        }
        if let Some(methods) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(methods));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl IntoResponse for Problem {
    /// Only a note of it: whoever knows the request's path makes the answer of it ([`Problem::at`]).
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let (status, title) = match denied.code {
            Code::SourceTrustRequired => (400, "source trust required"),
            Code::SourceNotAllowed => (403, "source not allowed"),
            Code::ImageRegistryNotAllowed => (422, "image registry not allowed"),
            Code::ImageSignatureRequired => (422, "image signature required"),
            Code::SourceSignatureInvalid => (422, "source signature invalid"),
            Code::AddonManifest => (400, "invalid add-on manifest"),
            Code::Oci => (400, "image cannot be used"),
            Code::Config => (400, "invalid configuration"),
            Code::Policy => (422, "invalid policy"),
            Code::ImagePolicy => (422, "image policy"),
            Code::PolicyDenied => (422, "denied by policy"),
            Code::RuntimeUnavailable => (422, "container runtime unavailable"),
            Code::ArgumentsInvalid => (422, "invalid arguments"),
            Code::MountPathConflict => (409, "mount path conflict"),
        };
        Self::new(status, title, denied.message).code(denied.code.as_str())
    }
}

impl From<EnlistError> for Problem {
    fn from(error: EnlistError) -> Self {
        let words = error.to_string();
        match error {
            EnlistError::Request(refusal) => {
                let status = if refusal.code == Some(Code::Policy) { 422 } else { 400 };
                let problem = Self::new(status, refusal.title, refusal.detail);
                refusal.code.map_or(problem.clone(), |code| problem.code(code.as_str()))
            }
            EnlistError::Denied(denied) => denied.into(),
            EnlistError::Configured(_) => {
                Self::new(409, "source is configured", words).code(Code::Config.as_str())
            }
            EnlistError::NotFound(_) => Self::new(404, "source not found", words),
            EnlistError::Disk(_) => Self::new(500, "source cannot be kept", words),
            EnlistError::NotNow => Self::new(503, "not ready", words).retry_after(1),
        }
    }
}

impl From<JobError> for Problem {
    fn from(error: JobError) -> Self {
        let words = error.to_string();
        match error {
            JobError::NotFound(what) if what.starts_with("job ") => Self::new(404, "job not found", words),
            JobError::NotFound(_) => Self::new(404, "run not found", words),
            JobError::Exists(_) => Self::new(409, "run exists", words),
            JobError::Invalid(_) => Self::new(400, "invalid request", words),
            JobError::Arguments(problems) => {
                let mut problem =
                    Self::new(422, "invalid arguments", words).code(Code::ArgumentsInvalid.as_str());
                problem.errors = Some(Box::new(json!(problems)));
                problem
            }
            JobError::Busy(_) => Self::new(409, "wrong state", words),
            JobError::Denied(denied) => denied.into(),
            JobError::Again(_) => Self::new(429, "queue is full", words).code("queue.full").retry_after(1),
            JobError::Internal(_) => Self::new(500, "internal error", words),
        }
    }
}

impl From<JournalError> for Problem {
    fn from(error: JournalError) -> Self {
        let words = error.to_string();
        match error {
            JournalError::Quota(_) => Self::quota(words),
            JournalError::Expired { .. } => Self::new(410, "cursor expired", words).code("cursor-expired"),
            JournalError::Disk(_) => Self::new(500, "internal error", words),
        }
    }
}

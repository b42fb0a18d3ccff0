//! The arguments of a job: the compiled schema and what it makes of a caller's words.
//!
//! Secrets (`format: secret`) never leave [`Arguments`] except through [`Arguments::secrets`]: the JSON value has
//! `"[secret]"` in their place.

use serde_json::{Map, Value};
use zeroize::Zeroizing;

/// What a caller gave.
#[derive(Debug, Clone)]
pub enum Given {
    /// Words as on a command line: `--database app --s3-bucket=b`, `k=v`.
    Words(Vec<String>),
    /// A JSON object.
    Json(Map<String, Value>),
}

/// The compiled `argspec` of an entrypoint.
#[derive(Debug)]
pub struct ArgSpec {
    /// The schema as the manifest has it; `{"type":"object","additionalProperties":false}` when it has none.
    pub schema: Value,
    /// Names of the top-level properties with `format: secret`.
    pub secrets: Vec<String>,
}

/// Validated arguments with defaults applied.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// The values, secrets replaced by `"[secret]"`.
    pub masked: Map<String, Value>,
    /// The secret values by argument name.
    pub secrets: Vec<(String, Zeroizing<String>)>,
}

/// One argument that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ArgumentProblem {
    /// The argument's name, or `""` for the whole.
    pub arg: String,
    /// What is wrong with it, in words. Never quotes a secret's value.
    pub message: String,
}

//! The arguments of a job: the compiled schema and what it makes of a caller's words.
//!
//! In: an `argspec` (JSON Schema 2020-12) and what a caller gave, words or JSON. Out: [`Arguments`], validated, with
//! defaults applied; or every problem, each under its argument's name.
//!
//! Secrets (`format: secret`) never leave [`Arguments`] except through [`Arguments::secrets`]: the JSON value has
//! `"[secret]"` in their place, and no message quotes them.
//!
//! [`compile`] checks a schema, [`words`] and [`coerce`] read a command line, [`resolve`] applies defaults and
//! validates, [`env`](mod@env) and [`help`] present the result and the schema, [`flags`] offers it, [`minimal`] makes arguments up.

use std::fmt;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

mod coerce;
mod compile;
mod env;
mod flags;
mod help;
mod minimal;
mod resolve;
mod schema;
mod words;

pub use env::is_reserved;
pub use flags::Flag;

/// What stands in place of a secret wherever arguments are shown. Refused as the value of one: it is what a caller
/// gets back from args.json, and would run the job with the wrong password.
pub const MASK: &str = "[secret]";

/// What a caller gave.
#[derive(Debug, Clone)]
pub enum Given {
    /// Words as on a command line: `--database app --s3-bucket=b`, `k=v`.
    Words(Vec<String>),
    /// A JSON object.
    Json(Map<String, Value>),
}

/// The compiled `argspec` of an entrypoint. Made by [`ArgSpec::compile`] or [`ArgSpec::none`].
pub struct ArgSpec {
    /// The schema as the manifest has it; `{"type":"object","additionalProperties":false}` when it has none.
    pub schema: Value,
    /// Names of the top-level properties with `format: secret`.
    pub secrets: Vec<String>,
    validator: jsonschema::Validator,
}

impl fmt::Debug for ArgSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArgSpec").field("schema", &self.schema).field("secrets", &self.secrets).finish()
    }
}

/// Validated arguments with defaults applied.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// The values, secrets replaced by `"[secret]"`; in the order of the schema, then as given.
    pub masked: Map<String, Value>,
    /// The secret values by argument name.
    pub secrets: Vec<(String, Zeroizing<String>)>,
}

/// One argument that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ArgumentProblem {
    /// The argument's name (`meta.size`, `list.2` inside of one), or `""` for the whole.
    pub arg: String,
    /// What is wrong with it, in words. Never quotes a secret's value.
    pub message: String,
}

impl ArgumentProblem {
    fn new(arg: impl Into<String>, message: impl Into<String>) -> Self {
        Self { arg: arg.into(), message: message.into() }
    }
}

//! Arguments as a job sees them: `ARG_<UPPER_SNAKE>` variables and one JSON text. Secrets are in neither.

use serde_json::{Map, Value};

use super::{ArgSpec, Arguments};

/// The variable of an argument: `image-tag` is `ARG_IMAGE_TAG`.
pub(super) fn variable(name: &str) -> String {
    let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("ARG_{}", name.chars().map(upper).collect::<String>())
}

/// Whether a variable belongs to addonfs (or to flowd, whose manifests these are): `env` of a manifest and other
/// settings may not set it.
pub fn is_reserved(variable: &str) -> bool {
    variable.starts_with("ARG_")
        || variable.starts_with("FLWD_")
        || matches!(variable, "RUN_DIR" | "DATA_DIR")
}

impl ArgSpec {
    /// The variables of these arguments: text as it is, everything else as JSON, `null` not at all; then
    /// `FLWD_ARGS_JSON`. No secrets.
    pub fn env(&self, arguments: &Arguments) -> Vec<(String, String)> {
        let public = arguments.public();
        let mut variables: Vec<(String, String)> = public
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| {
                let text = match value {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                (variable(name), text)
            })
            .collect();
        variables.push(("FLWD_ARGS_JSON".to_owned(), Value::Object(public).to_string()));
        variables
    }
}

impl Arguments {
    /// The values without the secrets: what the job gets as JSON.
    pub fn public(&self) -> Map<String, Value> {
        let is_secret = |name: &String| self.secrets.iter().any(|(secret, _)| secret == name);
        self.masked
            .iter()
            .filter(|(name, _)| !is_secret(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    /// [`Arguments::public`] as compact JSON: `FLWD_ARGS_JSON` and `/run/addonfs/args.json`.
    pub fn public_json(&self) -> String {
        Value::Object(self.public()).to_string()
    }

    /// All values as compact JSON, secrets as `"[secret]"`: what people are shown.
    pub fn masked_json(&self) -> String {
        Value::Object(self.masked.clone()).to_string()
    }
}

//! From the `argspec` of a manifest to an [`ArgSpec`], or every reason why not, each with its JSON pointer.

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::{Map, Value, json};

use super::ArgSpec;
use super::env::variable;
use super::schema::{deref, escape, is_secret, properties, walk};

/// The one dialect, by the URI in `$schema`.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Compiled size of one `pattern`: 1 MiB holds every honest one, and `(a{1000}){1000}` is refused.
const PATTERN_BYTES: usize = 1 << 20;

/// An argument's name becomes a variable and a file name.
const MAX_NAME: usize = 128;

/// `format`s that say something to readers only. They come from the other manifest dialect and constrain nothing.
const SPOKEN_FORMATS: [&str; 4] = ["secret", "path", "file", "directory"];

type SchemaProblem = (String, String);

impl ArgSpec {
    /// Compiles a schema. Each problem is a JSON pointer into it and a message.
    pub fn compile(schema: Value) -> Result<Self, Vec<SchemaProblem>> {
        let mut problems = Vec::new();
        check_root(&schema, &mut problems);
        if schema.is_object() {
            check_keywords(&schema, &mut problems);
            check_arguments(&schema, &mut problems);
            let meta = jsonschema::draft202012::meta::validator();
            problems.extend(
                meta.iter_errors(&schema)
                    .map(|error| (error.instance_path().to_string(), format!("not a JSON Schema: {error}"))),
            );
        }
        if !problems.is_empty() {
            return Err(without_repetition(problems));
        }
        let validator = build(&schema)?;
        let secrets: Vec<String> = properties(&schema)
            .filter(|(_, schema)| is_secret(schema))
            .map(|(name, _)| name.clone())
            .collect();
        check_defaults(&schema)?;
        Ok(Self { schema, secrets, validator })
    }

    /// The schema of an entrypoint that takes no arguments.
    pub fn none() -> Self {
        let schema = json!({"type": "object", "additionalProperties": false});
        let validator = build(&schema).unwrap_or_else(|_| unreachable!("a constant schema compiles"));
        Self { schema, secrets: Vec::new(), validator }
    }

    pub(super) fn validator(&self) -> &Validator {
        &self.validator
    }
}

fn options() -> jsonschema::ValidationOptions<'static> {
    let mut options = jsonschema::options()
        .with_draft(Draft::Draft202012)
        .should_validate_formats(true)
        .should_ignore_unknown_formats(false)
        // Linear time whatever the pattern: schemas and values both come from strangers.
        .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES));
    for format in SPOKEN_FORMATS {
        options = options.with_format(format, |_: &str| true);
    }
    options
}

fn build(schema: &Value) -> Result<Validator, Vec<SchemaProblem>> {
    options().build(schema).map_err(|error| vec![(error.instance_path().to_string(), error.to_string())])
}

fn check_root(schema: &Value, problems: &mut Vec<SchemaProblem>) {
    if schema.get("type").and_then(Value::as_str) != Some("object") {
        problems.push((String::new(), "the schema must say type: object".to_owned()));
    }
    match schema.get("$schema") {
        None => {}
        Some(Value::String(dialect)) if dialect.trim_end_matches('#') == DIALECT => {}
        Some(_) => problems.push(("/$schema".to_owned(), format!("the only dialect is {DIALECT}"))),
    }
}

/// What holds for every subschema: formats are known, references are local, secrets are top-level arguments.
fn check_keywords(schema: &Value, problems: &mut Vec<SchemaProblem>) {
    let options = options();
    walk(schema, "", &mut |pointer, keywords| {
        if let Some(format) = keywords.get("format").and_then(Value::as_str) {
            if !options.is_known_format(Draft::Draft202012, format) {
                problems.push((format!("{pointer}/format"), format!("unknown format {format:?}")));
            }
            if format == "secret" && !is_top_level(pointer) {
                let message =
                    "a secret must be an argument of its own: format: secret belongs to properties/<name>";
                problems.push((format!("{pointer}/format"), message.to_owned()));
            }
        }
        for keyword in ["$ref", "$dynamicRef"] {
            match keywords.get(keyword).and_then(Value::as_str) {
                Some(target) if !target.starts_with('#') => problems.push((
                    format!("{pointer}/{keyword}"),
                    format!("{target:?} lies outside of this schema: only #… references are followed"),
                )),
                _ => {}
            }
        }
    });
}

fn is_top_level(pointer: &str) -> bool {
    pointer.strip_prefix("/properties/").is_some_and(|name| !name.contains('/'))
}

/// What holds for the arguments: names that make variables, no two the same one; secrets that can be kept.
fn check_arguments(schema: &Value, problems: &mut Vec<SchemaProblem>) {
    let mut variables: Map<String, Value> = Map::new();
    for (name, property) in properties(schema) {
        let pointer = format!("/properties/{}", escape(name));
        if let Err(message) = check_name(name) {
            problems.push((pointer.clone(), message));
        }
        if let Some(other) = variables.insert(variable(name), Value::from(name.as_str())) {
            let message =
                format!("{name:?} and {other} are the same variable {}: rename one", variable(name));
            problems.push((pointer.clone(), message));
        }
        if is_secret(property) {
            check_secret(name, property, &pointer, problems);
        }
    }
    let names = schema.get("properties").and_then(Value::as_object);
    for (index, name) in schema.get("required").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let known = name.as_str().is_some_and(|name| names.is_some_and(|names| names.contains_key(name)));
        if !known {
            let message = format!("required names {name}, which is not in properties");
            problems.push((format!("/required/{index}"), message));
        }
    }
}

/// Whether a text can name an argument: it becomes a variable and, for a secret, a file.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let rest = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    match starts && rest && name.len() <= MAX_NAME {
        true => Ok(()),
        false => Err(format!(
            "{:?} cannot name an argument: use letters, digits, _ . and -, at most {MAX_NAME}",
            name.chars().take(MAX_NAME).collect::<String>()
        )),
    }
}

fn check_secret(name: &str, property: &Value, pointer: &str, problems: &mut Vec<SchemaProblem>) {
    if property.get("type").and_then(Value::as_str) != Some("string") {
        problems.push((pointer.to_owned(), format!("arg {name}: a secret must say type: string")));
    }
    for keyword in ["default", "const", "enum", "examples"] {
        if property.get(keyword).is_some() {
            let message = format!("arg {name}: {keyword} forbidden for secret");
            problems.push((format!("{pointer}/{keyword}"), message));
        }
    }
}

/// A default that its own schema refuses would fail every run that relies on it. Checked against the whole schema
/// without `required`, so that references work, looking only at errors below the argument itself.
fn check_defaults(schema: &Value) -> Result<(), Vec<SchemaProblem>> {
    let mut relaxed = schema.clone();
    if let Some(keywords) = relaxed.as_object_mut() {
        keywords.remove("required");
    }
    let validator = build(&relaxed)?;
    let mut problems = Vec::new();
    for (name, property) in properties(schema) {
        let Some(default) = deref(schema, property).get("default").or_else(|| property.get("default")) else {
            continue;
        };
        let instance = json!({ name.as_str(): default });
        let below = format!("/{}", escape(name));
        let wrong = validator.iter_errors(&instance).filter(|error| {
            let at = error.instance_path().to_string();
            at == below || at.starts_with(&format!("{below}/"))
        });
        problems.extend(wrong.take(1).map(|error| {
            (
                format!("/properties/{}/default", escape(name)),
                format!("the default does not fit its schema: {error}"),
            )
        }));
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// The meta-schema reports some mistakes once for each vocabulary.
fn without_repetition(problems: Vec<SchemaProblem>) -> Vec<SchemaProblem> {
    let mut seen = std::collections::HashSet::new();
    problems.into_iter().filter(|problem| seen.insert(problem.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointers(schema: Value) -> Vec<String> {
        ArgSpec::compile(schema).unwrap_err().into_iter().map(|(pointer, _)| pointer).collect()
    }

    fn argument(property: Value) -> Value {
        json!({"type": "object", "properties": {"x": property}})
    }

    #[test]
    fn knows_its_secrets() {
        let spec = ArgSpec::compile(json!({"type": "object", "properties": {
            "token": {"type": "string", "format": "secret", "minLength": 3}, "n": {"type": "integer", "default": 3}}}))
        .unwrap();
        assert_eq!(spec.secrets, ["token"]);
    }

    #[test]
    fn every_problem_has_its_pointer() {
        let cases = [
            (json!([]), ""),
            (json!({}), ""),
            (json!({"type": "array"}), ""),
            (json!({"type": "object", "$schema": "http://json-schema.org/draft-07/schema#"}), "/$schema"),
            (json!({"type": "object", "required": ["gone"]}), "/required/0"),
            (argument(json!({"type": "strin"})), "/properties/x/type"),
            (argument(json!({"type": "string", "minLength": -1})), "/properties/x/minLength"),
            (argument(json!({"type": "string", "format": "emial"})), "/properties/x/format"),
            (argument(json!({"type": "string", "pattern": "("})), "/properties/x/pattern"),
            (argument(json!({"type": "string", "pattern": "((a{500}){500}){500}"})), "/properties/x/pattern"),
            (argument(json!({"$ref": "https://example.org/x"})), "/properties/x/$ref"),
            (argument(json!({"$ref": "#/$defs/gone"})), ""),
            (
                argument(json!({"type": "string", "format": "secret", "default": "abc"})),
                "/properties/x/default",
            ),
            (argument(json!({"type": "integer", "format": "secret"})), "/properties/x"),
            (argument(json!({"type": "integer", "default": "abc"})), "/properties/x/default"),
            (argument(json!({"type": "array", "items": {"format": "secret"}})), "/properties/x/items/format"),
            (json!({"type": "object", "properties": {"a-b": {}, "a_b": {}}}), "/properties/a_b"),
            (json!({"type": "object", "properties": {"a/b": {}}}), "/properties/a~1b"),
        ];
        for (schema, pointer) in cases {
            let words = schema.to_string();
            let found = pointers(schema);
            assert!(found.iter().any(|found| found == pointer), "{words}: {found:?}");
        }
    }

    #[test]
    fn lists_all_of_them() {
        let found = pointers(json!({"type": "object", "required": ["gone", "x"], "properties": {
            "x": {"type": "string", "format": "secret", "default": "abc"}, "y": {"type": "strin"}}}));
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn data_is_not_searched_for_schemas() {
        ArgSpec::compile(argument(json!({"type": "object", "default": {"format": "no such"}}))).unwrap();
        assert_eq!(ArgSpec::none().schema["additionalProperties"], json!(false));
    }
}

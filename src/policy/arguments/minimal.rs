//! Arguments made up for a job, as few as it takes: what `addonfs test` plans and runs with.
//!
//! A guess from the schema, checked against it: what cannot be guessed (a `pattern`, conditions) is left to the person.

use serde_json::{Map, Number, Value};

use super::schema::{deref, properties, types};
use super::{ArgSpec, ArgumentProblem, Given};

/// Deepest object that is made up; a schema that requires itself has no end.
const MAX_DEPTH: usize = 8;
/// Most items and characters that are made up.
const MAX_COUNT: u64 = 4096;

impl ArgSpec {
    /// A value for each required argument without a default; or what is wrong with the best guess.
    pub fn minimal(&self) -> Result<Map<String, Value>, Vec<ArgumentProblem>> {
        let guess = object(&self.schema, &self.schema, MAX_DEPTH);
        self.resolve(Given::Json(guess.clone())).map(|_| guess)
    }
}

/// The required members of an object, without those that have a default.
fn object(root: &Value, schema: &Value, depth: usize) -> Map<String, Value> {
    let required = schema.get("required").and_then(Value::as_array);
    let is_required =
        |name: &str| required.is_some_and(|list| list.iter().any(|required| required.as_str() == Some(name)));
    properties(schema)
        .filter(|(name, property)| {
            let has_default = |schema: &Value| schema.get("default").is_some();
            is_required(name) && !has_default(property) && !has_default(deref(root, property))
        })
        .map(|(name, property)| (name.clone(), value(root, property, depth)))
        .collect()
}

fn value(root: &Value, schema: &Value, depth: usize) -> Value {
    let schema = deref(root, schema);
    let first = |key: &str| schema.get(key).and_then(Value::as_array).and_then(|list| list.first());
    if let Some(given) = schema.get("const").or_else(|| first("enum")).or_else(|| first("examples")) {
        return given.clone();
    }
    let Some(depth) = depth.checked_sub(1) else { return Value::Null };
    let branch = ["anyOf", "oneOf"].into_iter().find_map(first);
    let types = types(root, schema);
    match types.first().copied() {
        None | Some("string") if branch.is_none() => Value::from(text(schema)),
        Some("array") => {
            let count = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0).min(MAX_COUNT);
            let any = Value::Bool(true);
            let item = value(root, schema.get("items").unwrap_or(&any), depth);
            Value::Array(vec![item; usize::try_from(count).unwrap_or(0)])
        }
        Some("boolean") => Value::Bool(false),
        Some("integer") => number(schema, true),
        Some("number") => number(schema, false),
        Some("null") => Value::Null,
        Some("object") if branch.is_none() => Value::Object(object(root, schema, depth)),
        _ => branch.map_or(Value::Null, |branch| value(root, branch, depth)),
    }
}

/// A text of its format, else as many letters as it must have.
fn text(schema: &Value) -> String {
    let known = match schema.get("format").and_then(Value::as_str) {
        Some("date-time") => "2000-01-01T00:00:00Z",
        Some("date") => "2000-01-01",
        Some("time") => "00:00:00Z",
        Some("duration") => "PT1S",
        Some("email" | "idn-email") => "a@example.org",
        Some("hostname" | "idn-hostname") => "example.org",
        Some("ipv4") => "192.0.2.1",
        Some("ipv6") => "2001:db8::1",
        Some("uri" | "uri-reference" | "iri" | "iri-reference" | "url") => "https://example.org/",
        Some("uuid") => "00000000-0000-4000-8000-000000000000",
        Some("path" | "file" | "directory") => "/tmp",
        Some("regex") => ".",
        Some("json-pointer") => "/x",
        _ => "x",
    };
    let least = schema.get("minLength").and_then(Value::as_u64).unwrap_or(0).min(MAX_COUNT);
    let missing = usize::try_from(least).unwrap_or(0).saturating_sub(known.chars().count());
    format!("{known}{}", "x".repeat(missing))
}

/// The smallest number from 1 on that the limits allow, or the largest below.
fn number(schema: &Value, whole: bool) -> Value {
    let limit = |key: &str| schema.get(key).and_then(Value::as_f64);
    let step = limit("multipleOf").filter(|step| *step > 0.0);
    let unit = step.unwrap_or(1.0);
    let least = limit("minimum").into_iter().chain(limit("exclusiveMinimum").map(|limit| limit + unit));
    let most = limit("maximum").into_iter().chain(limit("exclusiveMaximum").map(|limit| limit - unit));
    let mut number = most.fold(least.fold(1.0, f64::max), f64::min);
    if let Some(step) = step {
        number = (number / step).ceil() * step;
    }
    // What an i64 cannot hold is no number that anybody asks for.
    if whole || number.fract() == 0.0 {
        return Value::from(number.ceil() as i64);
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn minimal(properties: Value, required: Value) -> Result<Value, Vec<ArgumentProblem>> {
        let schema = json!({"type": "object", "properties": properties, "required": required,
            "$defs": {"name": {"type": "string", "minLength": 3}}});
        ArgSpec::compile(schema).unwrap().minimal().map(Value::Object)
    }

    #[test]
    fn as_few_as_it_takes() {
        let guess = minimal(
            json!({"a": {"type": "string", "minLength": 2}, "b": {"type": "integer", "minimum": 5},
                "c": {"enum": ["q", "r"]}, "d": {"type": "string", "default": "x"}, "e": {"type": "string"},
                "f": {"$ref": "#/$defs/name"}, "g": {"type": "array", "minItems": 2, "items": {"type": "boolean"}},
                "h": {"type": "object", "required": ["i"], "properties": {"i": {"type": "number", "exclusiveMaximum": 0}}},
                "j": {"type": "string", "format": "date-time"}, "k": {"type": "string", "format": "secret"},
                "l": {"type": "integer", "multipleOf": 7, "minimum": 8}}),
            json!(["a", "b", "c", "d", "f", "g", "h", "j", "k", "l"]),
        );
        let expected = json!({"a": "xx", "b": 5, "c": "q", "f": "xxx", "g": [false, false], "h": {"i": -1},
            "j": "2000-01-01T00:00:00Z", "k": "x", "l": 14});
        assert_eq!(guess.unwrap(), expected);
        assert_eq!(minimal(json!({}), json!([])).unwrap(), json!({}));
    }

    #[test]
    fn what_cannot_be_guessed_is_told() {
        let problems =
            minimal(json!({"a": {"type": "string", "pattern": "^[0-9]{3}$"}}), json!(["a"])).unwrap_err();
        assert_eq!(problems[0].arg, "a");
    }
}

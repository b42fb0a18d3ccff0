//! Looking at a JSON Schema without judging it: local references, types, and a walk over all subschemas.

use serde_json::{Map, Value};

/// Longest chain of `$ref`s that is followed; a longer one is a loop.
const MAX_HOPS: usize = 16;

/// The properties of an object schema; empty if there are none.
pub(super) fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

/// Follows local `$ref`s (`#/$defs/x`) as long as the schema says nothing of its type itself.
pub(super) fn deref<'a>(root: &'a Value, mut schema: &'a Value) -> &'a Value {
    for _ in 0..MAX_HOPS {
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix('#'));
        match target.and_then(|pointer| root.pointer(pointer)) {
            Some(target) if schema.get("type").is_none() => schema = target,
            _ => break,
        }
    }
    schema
}

/// The types a value may have, as far as the schema says: its `type`, else what its other keywords imply.
pub(super) fn types<'a>(root: &'a Value, schema: &'a Value) -> Vec<&'a str> {
    let schema = deref(root, schema);
    let mut types: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => {
            let members = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
            let branches =
                ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|key| schema.get(key)?.as_array());
            members
                .chain(schema.get("const"))
                .map(|member| -> &'a str { type_of(member) })
                .chain(branches.flatten().flat_map(|branch| match branch.get("type") {
                    Some(Value::String(one)) => Some(one.as_str()),
                    _ => None,
                }))
                .chain(schema.get("properties").map(|_| "object"))
                .chain(schema.get("items").map(|_| "array"))
                .collect()
        }
    };
    types.sort_unstable();
    types.dedup();
    types
}

/// The JSON Schema type of a value.
pub(super) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Whether this very schema is one of a secret.
pub(super) fn is_secret(schema: &Value) -> bool {
    schema.get("format").and_then(Value::as_str) == Some("secret")
}

/// Calls `see` with the JSON pointer of every subschema (applicators of 2020-12; data such as `default` and
/// `enum` is not entered). Depth is that of the document, which its parser bounds.
pub(super) fn walk(schema: &Value, pointer: &str, see: &mut dyn FnMut(&str, &Map<String, Value>)) {
    let Value::Object(keywords) = schema else { return };
    see(pointer, keywords);
    for (keyword, value) in keywords {
        let below = format!("{pointer}/{}", escape(keyword));
        match (keyword.as_str(), value) {
            (
                "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas",
                Value::Object(map),
            ) => {
                for (name, schema) in map {
                    walk(schema, &format!("{below}/{}", escape(name)), see);
                }
            }
            ("allOf" | "anyOf" | "oneOf" | "prefixItems", Value::Array(list)) => {
                for (index, schema) in list.iter().enumerate() {
                    walk(schema, &format!("{below}/{index}"), see);
                }
            }
            (
                "items"
                | "additionalProperties"
                | "not"
                | "if"
                | "then"
                | "else"
                | "contains"
                | "propertyNames"
                | "unevaluatedItems"
                | "unevaluatedProperties"
                | "contentSchema",
                schema,
            ) => walk(schema, &below, see),
            _ => {}
        }
    }
}

/// A key as a token of a JSON pointer.
pub(super) fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

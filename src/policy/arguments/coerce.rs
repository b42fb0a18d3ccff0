//! One word of a command line to a JSON value of the type that the schema asks for.
//!
//! Where several types are allowed the narrowest that reads the word is taken, string last.

use serde_json::{Map, Number, Value};

use super::schema::{deref, properties, types};

/// The value of `text` for `schema` (a subschema of `root`).
pub(super) fn coerce(root: &Value, schema: &Value, text: &str) -> Result<Value, String> {
    let types = types(root, schema);
    if types.is_empty() {
        return Ok(Value::from(text));
    }
    let mut reason = None;
    for kind in ["null", "boolean", "integer", "number", "array", "object", "string"] {
        if !types.contains(&kind) {
            continue;
        }
        let value = match kind {
            "null" => {
                if text == "null" {
                    Ok(Value::Null)
                } else {
                    Err("is not null".to_owned())
                }
            }
            "boolean" => boolean(text),
            "integer" => integer(text),
            "number" => number(text),
            "array" => array(root, schema, text).map(Value::Array),
            "object" => object(root, schema, text).map(Value::Object),
            _ => Ok(Value::from(text)),
        };
        match value {
            Ok(value) => return Ok(value),
            Err(why) => reason = Some(why),
        }
    }
    Err(reason.unwrap_or_else(|| "has no type that a word can have".to_owned()))
}

fn boolean(text: &str) -> Result<Value, String> {
    match text {
        "true" => Ok(Value::Bool(true)),
        "false" => Ok(Value::Bool(false)),
        _ => Err(format!("{} is not true or false", quoted(text))),
    }
}

fn integer(text: &str) -> Result<Value, String> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    digits
        .parse::<i64>()
        .map(Value::from)
        .or_else(|_| digits.parse::<u64>().map(Value::from))
        .map_err(|_| format!("{} is not a whole number", quoted(text)))
}

fn number(text: &str) -> Result<Value, String> {
    let wrong = || format!("{} is not a number", quoted(text));
    let starts_like_one = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    if let Ok(whole) = integer(text) {
        return Ok(whole);
    }
    // `inf` and `nan` parse in Rust and are no JSON.
    let value: f64 = text.parse().ok().filter(|_| starts_like_one).ok_or_else(wrong)?;
    Number::from_f64(value).map(Value::Number).ok_or_else(wrong)
}

/// `a,b,c`, or a JSON array for items that hold commas. An empty word is the empty list.
pub(super) fn array(root: &Value, schema: &Value, text: &str) -> Result<Vec<Value>, String> {
    if text.starts_with('[') {
        return serde_json::from_str(text).map_err(|error| format!("is not a JSON array: {error}"));
    }
    let any = Value::Bool(true);
    let items = deref(root, schema).get("items").unwrap_or(&any);
    let mut values = Vec::new();
    for item in text.split(',').filter(|_| !text.is_empty()) {
        values.push(coerce(root, items, item).map_err(|why| format!("item {}: {why}", values.len() + 1))?);
    }
    Ok(values)
}

/// One `k=v`, or a JSON object.
pub(super) fn object(root: &Value, schema: &Value, text: &str) -> Result<Map<String, Value>, String> {
    if text.starts_with('{') {
        return serde_json::from_str(text).map_err(|error| format!("is not a JSON object: {error}"));
    }
    let (key, value) = text.split_once('=').ok_or_else(|| format!("expected k=v, not {}", quoted(text)))?;
    let schema = deref(root, schema);
    let named = properties(schema).find(|(name, _)| same_name(name, key));
    let any = Value::Bool(true);
    let below = named.map(|(_, below)| below).or_else(|| schema.get("additionalProperties")).unwrap_or(&any);
    let name = named.map_or(key, |(name, _)| name.as_str());
    let value = coerce(root, below, value).map_err(|why| format!("{name}: {why}"))?;
    Ok(Map::from_iter([(name.to_owned(), value)]))
}

/// Dashes and underscores are equal on a command line.
pub(super) fn same_name(name: &str, written: &str) -> bool {
    let fold = |byte: u8| if byte == b'-' { b'_' } else { byte };
    name.len() == written.len() && name.bytes().zip(written.bytes()).all(|(a, b)| fold(a) == fold(b))
}

/// A caller's text in a message: short, with control characters escaped.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

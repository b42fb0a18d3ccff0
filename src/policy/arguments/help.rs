//! The text of `run --help`, made from the schema.

use std::fmt::Write as _;

use serde_json::Value;

use super::ArgSpec;
use super::schema::{deref, is_secret, properties, types};

/// Longest single value of a schema that is shown, in characters.
const MAX_SHOWN: usize = 60;

/// Most members of an `enum` that are listed.
const MAX_MEMBERS: usize = 20;

impl ArgSpec {
    /// Usage and arguments, with types, defaults and enums. Ends with a newline.
    pub fn help(&self, program: &str) -> String {
        let mut text = String::new();
        let rows: Vec<Row> = properties(&self.schema).map(|(name, schema)| self.row(name, schema)).collect();
        let usage: String =
            rows.iter().filter(|row| row.required).map(|row| format!(" {}", row.form)).collect();
        let optional = if rows.iter().any(|row| !row.required) { " [argument ...]" } else { "" };
        let _ = writeln!(text, "usage: {program} [-i]{usage}{optional}");
        let _ = writeln!(text, "       {program} [-i] --args-json JSON|@FILE|- [--arg-file NAME=PATH ...]");
        if let Some(description) = self.schema.get("description").and_then(Value::as_str) {
            let _ = write!(text, "\n{}\n", printable(description));
        }
        if rows.is_empty() {
            text.push_str("\nThis job takes no arguments.\n");
        } else {
            text.push_str("\narguments:\n");
        }
        let width = rows.iter().map(|row| row.form.chars().count()).max().unwrap_or(0).min(40);
        for row in &rows {
            let _ = writeln!(text, "  {:width$}  {}", row.form, row.notes.join("; "));
            for line in row.description.lines() {
                let _ = writeln!(text, "  {:width$}    {line}", "");
            }
        }
        text.push_str(
            "\nAn argument is --name VALUE, --name=VALUE or name=VALUE; - and _ are equal in names. Lists are comma-split or\n\
             repeated, objects are repeated k=v or JSON. --arg-file NAME=PATH gives the content of a file that you may read, and\n\
             so does {\"$file\": \"PATH\"} as a value in JSON. -i passes stdin on to the job.\n",
        );
        if !self.secrets.is_empty() {
            text.push_str("Better than a secret on the command line: --arg-file NAME=PATH, --args-json @FILE, or - and the JSON on stdin.\n");
        }
        text
    }

    fn row(&self, name: &str, property: &Value) -> Row {
        let root = &self.schema;
        let schema = deref(root, property);
        let types = types(root, property);
        let option = name.replace('_', "-");
        let is_required = |list: &Vec<Value>| list.iter().any(|required| required.as_str() == Some(name));
        let required = root.get("required").and_then(Value::as_array).is_some_and(is_required);
        let form = match types.as_slice() {
            ["boolean"] => format!("--[no-]{option}"),
            _ => format!("--{option} {}", metavariable(schema, &types)),
        };
        let mut notes = Vec::new();
        if required {
            notes.push("required".to_owned());
        }
        if is_secret(schema) {
            notes.push("secret".to_owned());
        }
        notes.push(type_words(root, schema, &types));
        if let Some(members) = schema.get("enum").and_then(Value::as_array) {
            let mut shown: Vec<String> = members.iter().take(MAX_MEMBERS).map(plain).collect();
            if members.len() > MAX_MEMBERS {
                shown.push("…".to_owned());
            }
            notes.push(format!("one of {}", shown.join(", ")));
        }
        for (keyword, words) in [
            ("minimum", "at least"),
            ("maximum", "at most"),
            ("minLength", "shortest"),
            ("maxLength", "longest"),
            ("pattern", "pattern"),
        ] {
            if let Some(value) = schema.get(keyword) {
                notes.push(format!("{words} {}", plain(value)));
            }
        }
        if let Some(default) = property.get("default").or_else(|| schema.get("default")) {
            notes.push(format!("default {}", plain(default)));
        }
        notes.retain(|note| !note.is_empty());
        let description = property.get("description").or_else(|| schema.get("description"));
        let description = description.and_then(Value::as_str).map(printable).unwrap_or_default();
        Row { form, notes, description, required }
    }
}

struct Row {
    form: String,
    notes: Vec<String>,
    description: String,
    required: bool,
}

fn metavariable(schema: &Value, types: &[&str]) -> &'static str {
    match types {
        ["integer"] => "N",
        ["number"] => "NUMBER",
        ["array"] => "A,B,…",
        ["object"] => "K=V",
        _ => match schema.get("format").and_then(Value::as_str) {
            Some("path" | "file" | "directory") => "PATH",
            Some("uri" | "url") => "URI",
            _ => "VALUE",
        },
    }
}

pub(super) fn type_words(root: &Value, schema: &Value, types: &[&str]) -> String {
    let format = schema.get("format").and_then(Value::as_str).filter(|format| *format != "secret");
    let words = match types {
        ["array"] => {
            let items = schema.get("items").map(|items| super::schema::types(root, items).join(" or "));
            format!(
                "list of {}",
                items.filter(|items| !items.is_empty()).unwrap_or_else(|| "values".to_owned())
            )
        }
        types => types.join(" or "),
    };
    match format {
        Some(format) if words.is_empty() => format.to_owned(),
        Some(format) => format!("{words} ({format})"),
        None => words,
    }
}

fn plain(value: &Value) -> String {
    let text = match value {
        Value::String(text) if !text.is_empty() => printable(text).replace('\n', " "),
        other => other.to_string(),
    };
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// The schema is a stranger's text: nothing in it may drive the reader's terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').collect()
}

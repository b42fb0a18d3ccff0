//! One job of a v1 manifest. Its `argspec.args` become the JSON Schema that every entrypoint has.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::entrypoint::{MAX_ID, not_fixed};
use super::fields::{Fields, Report, ambiguous_numbers, string, unique};
use super::v1::{mapping, optional_list, range, summary};
use super::{Entrypoint, Network, Program, Resources};
use crate::policy::arguments::ArgSpec;
use crate::policy::nearest::nearest;
use crate::policy::yaml::{Kind, Node};

pub(super) const JOB: [&str; 7] =
    ["id", "name", "summary", "description", "extends", "argspec", "requirements"];
pub(super) const ARGSPEC: [&str; 1] = ["args"];
pub(super) const ARG: [&str; 8] =
    ["name", "type", "required", "default", "enum", "items_enum", "format", "description"];
pub(super) const REQUIREMENTS: [&str; 1] = ["tools"];
pub(super) const TOOL: [&str; 2] = ["name", "version"];
/// What `type` of an argument may say.
pub(super) const TYPES: [&str; 6] = ["string", "integer", "number", "boolean", "array", "object"];
/// What `format` of an argument may say; the empty one is none.
pub(super) const FORMATS: [&str; 5] = ["", "path", "file", "directory", "secret"];

/// Shortest `id`, in bytes.
const MIN_ID: usize = 3;

/// Reads one; `None` if it cannot be used, with the reasons in the report.
pub(super) fn job(fields: Fields<'_>, report: &mut Report) -> Option<Entrypoint> {
    if !mapping(fields.node, fields.pointer, "a job", report) {
        return None;
    }
    fields.only(&JOB, report);
    let id = id(fields, report);
    let name = text(fields, "name", "for example name: Database backup", report);
    fields.required("summary", "say in a line what the job does", report);
    let summary = summary(fields, report);
    let description = fields.optional_string("description", report);
    if fields.optional_string("extends", report).is_some() {
        let (node, pointer) = fields.get("extends")?;
        let message = "extends is not followed: the job has the arguments that it lists itself";
        report.warning(node, &pointer, message, "write all arguments out");
    }
    requirements(fields, report);
    let argspec = argspec(fields, report);
    Some(Entrypoint {
        id: id?,
        name: name?,
        description: description.or(summary),
        program: Program::ImageEntrypoint,
        argspec: Arc::new(argspec?),
        resources: Resources::default(),
        env: BTreeMap::new(),
        network: Network::None,
        profile: None,
        annotations: BTreeMap::new(),
    })
}

fn id(fields: Fields<'_>, report: &mut Report) -> Option<String> {
    const HINT: &str = "use a-z, 0-9, _, ., : and -, at least 3, starting with a letter";
    let (node, pointer) = fields.required("id", HINT, report)?;
    let id = string(node, &pointer, "id", report)?;
    let sign = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.:-".contains(&byte);
    let starts = id.starts_with(|c: char| c.is_ascii_lowercase());
    if !starts || !(MIN_ID..=MAX_ID).contains(&id.len()) || !id.bytes().all(sign) {
        report.problem(node, &pointer, format!("id {id:?} is not the name of a job"), HINT);
        return None;
    }
    not_fixed(id, node, &pointer, report)
}

/// A string that must be there and say something.
pub(super) fn text(fields: Fields<'_>, key: &str, hint: &str, report: &mut Report) -> Option<String> {
    let (node, pointer) = fields.required(key, hint, report)?;
    let text = string(node, &pointer, key, report)?;
    if text.trim().is_empty() {
        report.problem(node, &pointer, format!("{key} is empty"), hint);
        return None;
    }
    Some(text)
}

/// A word of a list, if the key is there.
pub(super) fn one_of(fields: Fields<'_>, key: &str, words: &[&str], report: &mut Report) -> Option<String> {
    let (node, pointer) = fields.get(key)?;
    let word = string(node, &pointer, key, report)?;
    if words.contains(&word.as_str()) {
        return Some(word);
    }
    let shown: Vec<&str> = words.iter().copied().filter(|word| !word.is_empty()).collect();
    let hint = nearest(&word, shown.iter().copied()).map(|meant| format!("did you mean {meant}?"));
    let message = format!("{key} {word:?} is none of {}", shown.join(", "));
    report.problem(node, &pointer, message, hint.unwrap_or_default());
    None
}

fn requirements(fields: Fields<'_>, report: &mut Report) {
    let Some((node, pointer)) = fields.get("requirements") else { return };
    if !mapping(node, &pointer, "requirements", report) {
        return;
    }
    let fields = Fields { node, pointer: &pointer };
    fields.only(&REQUIREMENTS, report);
    for (node, pointer) in optional_list(fields, "tools", report) {
        if mapping(node, &pointer, "a tool", report) {
            let fields = Fields { node, pointer: &pointer };
            fields.only(&TOOL, report);
            text(fields, "name", "for example name: pg_dump", report);
            range(fields, "version", report);
        }
    }
}

fn argspec(fields: Fields<'_>, report: &mut Report) -> Option<ArgSpec> {
    const HINT: &str = "for example argspec: {args: [{name: input, type: string}]}";
    let (node, pointer) = fields.required("argspec", HINT, report)?;
    if !mapping(node, &pointer, "argspec", report) {
        return None;
    }
    let before = report.problems.len();
    let fields = Fields { node, pointer: &pointer };
    fields.only(&ARGSPEC, report);
    let args = optional_list(fields, "args", report);
    unique(&args, "name", report);
    let mut properties = Map::new();
    let mut required = Vec::new();
    // Which item a property came from.
    let mut items: Vec<(String, &Node, &str)> = Vec::new();
    for (node, pointer) in &args {
        if !mapping(node, pointer, "an argument", report) {
            continue;
        }
        let fields = Fields { node, pointer };
        if let Some((name, schema, is_required)) = argument(fields, report) {
            if is_required {
                required.push(Value::from(name.as_str()));
            }
            items.push((name.clone(), node, pointer));
            properties.insert(name, schema);
        }
    }
    let schema = json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    });
    match ArgSpec::compile(schema) {
        Ok(argspec) if report.problems.len() == before => Some(argspec),
        Ok(_) => None,
        Err(problems) => {
            for (below, message) in problems {
                let (node, pointer, rest) = place(&below, &items).unwrap_or((node, &pointer, ""));
                let pointer = format!("{pointer}{rest}");
                if !report.problems.iter().any(|told| told.pointer == pointer) {
                    report.problem(node.nearest(rest), &pointer, message, "");
                }
            }
            None
        }
    }
}

/// Where a problem of the schema made of `items` stands in the manifest: the item, its pointer, and the way below it.
fn place<'i>(
    below: &str,
    items: &[(String, &'i Node, &'i str)],
) -> Option<(&'i Node, &'i str, &'static str)> {
    let below = below.strip_prefix("/properties/")?;
    let (name, keyword) = below.split_once('/').unwrap_or((below, ""));
    let name = name.replace("~1", "/").replace("~0", "~");
    let (_, node, pointer) = items.iter().find(|(known, ..)| *known == name)?;
    let rest = match keyword.split('/').next() {
        Some("default") => "/default",
        Some("enum") => "/enum",
        Some("items") => "/items_enum",
        Some("format") => "/format",
        Some("type") => "/type",
        _ => "/name",
    };
    Some((node, pointer, rest))
}

/// Name, schema, and whether it must be given.
fn argument(fields: Fields<'_>, report: &mut Report) -> Option<(String, Value, bool)> {
    fields.only(&ARG, report);
    let name = text(fields, "name", "for example name: database", report);
    fields.required("type", &format!("one of {}", TYPES.join(", ")), report);
    let kind = one_of(fields, "type", &TYPES, report);
    let format = one_of(fields, "format", &FORMATS, report).filter(|format| !format.is_empty());
    let description = fields.optional_string("description", report);
    let required = boolean(fields, "required", report);
    let default = data(fields, "default", report);
    let kind = kind?;
    let members = members(fields, "enum", Some(&kind), report);
    let items = members_of_items(fields, &kind, report);
    let mut schema = Map::from_iter([("type".to_owned(), Value::from(kind.as_str()))]);
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            schema.insert(key.to_owned(), value);
        }
    };
    put("description", description.map(Value::from));
    put("format", format.map(Value::from));
    put("enum", members);
    put("items", items.map(|members| json!({ "enum": members })));
    put("default", default);
    Some((name?, Value::Object(schema), required))
}

fn boolean(fields: Fields<'_>, key: &str, report: &mut Report) -> bool {
    let Some((node, pointer)) = fields.get(key) else { return false };
    match node.kind {
        Kind::Bool(value) => value,
        _ => {
            let message = format!("{key} must be true or false, not {}", node.type_name());
            report.problem(node, &pointer, message, "");
            false
        }
    }
}

fn data(fields: Fields<'_>, key: &str, report: &mut Report) -> Option<Value> {
    let (node, pointer) = fields.get(key)?;
    ambiguous_numbers(node, &pointer, report);
    Some(node.to_json())
}

fn members_of_items(fields: Fields<'_>, kind: &str, report: &mut Report) -> Option<Value> {
    let members = members(fields, "items_enum", None, report);
    if let (Some((node, pointer)), true) = (fields.get("items_enum"), kind != "array") {
        let message = format!("items_enum is for lists, and the type is {kind}");
        report.problem(node, &pointer, message, "use enum");
    }
    members
}

/// The values of an enum; each must be of the argument's type, where one is said.
fn members(fields: Fields<'_>, key: &str, kind: Option<&str>, report: &mut Report) -> Option<Value> {
    let (node, pointer) = fields.get(key)?;
    let list = optional_list(fields, key, report);
    if let (Kind::Seq(_), true) = (&node.kind, list.is_empty()) {
        report.problem(node, &pointer, format!("{key} is empty: no value would be right"), "list its values");
        return None;
    }
    ambiguous_numbers(node, &pointer, report);
    for (node, pointer) in &list {
        if kind.is_some_and(|kind| !is_a(&node.kind, kind)) {
            let message = format!("{} is no value of type {}", node.type_name(), kind.unwrap_or_default());
            let hint = node.scalar_text().filter(|_| kind == Some("string"));
            let hint = hint.map(|text| format!("quote it: \"{text}\"")).unwrap_or_default();
            report.problem(node, pointer, message, hint);
        }
    }
    (!list.is_empty()).then(|| Value::Array(list.iter().map(|(node, _)| node.to_json()).collect()))
}

fn is_a(value: &Kind, kind: &str) -> bool {
    match value {
        Kind::Null => false,
        Kind::Bool(_) => kind == "boolean",
        Kind::Number(number) => kind == "number" || (kind == "integer" && !number.is_f64()),
        Kind::String(_) => kind == "string",
        Kind::Seq(_) => kind == "array",
        Kind::Map(_) => kind == "object",
    }
}

//! The v1 dialect: `apiVersion: flwd.addon/v1`, `kind: AddOn`, `metadata`, `requires`, `jobs`.
//!
//! It is strict: a key that it does not know is an error at every level. It says more than a job needs here: `requires`
//! is checked and stays in the manifest for its readers; nothing acts on it.

use std::collections::BTreeMap;

use super::fields::{Fields, Report, items, string, unique, version};
use super::v1_job::{self, job};
use super::{AddonManifest, Dialect};
use crate::policy::yaml::{Kind, Node};

/// Its `apiVersion`.
pub(super) const API_VERSION: &str = "flwd.addon/v1";
/// Its `kind`.
const KIND: &str = "AddOn";
/// Its top-level keys.
pub(super) const KEYS: [&str; 5] = ["apiVersion", "kind", "metadata", "requires", "jobs"];
pub(super) const METADATA: [&str; 8] =
    ["name", "id", "version", "summary", "description", "homepage", "maintainers", "license"];
pub(super) const MAINTAINER: [&str; 3] = ["name", "email", "url"];
pub(super) const REQUIRES: [&str; 3] = ["flwd", "permissions", "containers"];
pub(super) const CONTAINER: [&str; 3] = ["image", "platform", "verify_signatures"];
/// What `verify_signatures` may say.
pub(super) const VERIFY: [&str; 3] = ["required", "permissive", "disabled"];

/// Shortest and longest `metadata.name`, in characters.
const NAME: std::ops::RangeInclusive<usize> = 3..=128;
/// Shortest and longest `metadata.id`, in bytes.
const ID: std::ops::RangeInclusive<usize> = 3..=64;
/// Longest `summary`, in characters.
const MAX_SUMMARY: usize = 240;

/// Whether a document is, or tries to be, of this dialect.
pub(super) fn is_meant(root: &Node) -> bool {
    root.get("apiVersion").is_some()
        || (root.get("entrypoints").is_none()
            && ["kind", "jobs", "requires"].iter().any(|key| root.get(key).is_some()))
}

pub(super) fn document(fields: Fields<'_>, report: &mut Report) -> Option<AddonManifest> {
    fields.only(&KEYS, report);
    constant(fields, "apiVersion", API_VERSION, report);
    constant(fields, "kind", KIND, report);
    let head = metadata(fields, report);
    requires(fields, report);
    let hint = "list at least one: - {id: hello, name: Hello, summary: Says hello, argspec: {args: []}}";
    let list = items(fields, "jobs", hint, report);
    unique(&list, "id", report);
    let entrypoints =
        list.iter().filter_map(|(item, pointer)| job(Fields { node: item, pointer }, report)).collect();
    Some(AddonManifest { entrypoints, ..head? })
}

fn constant(fields: Fields<'_>, key: &str, expected: &str, report: &mut Report) {
    let hint = format!("write {key}: {expected}");
    let Some((node, pointer)) = fields.required(key, &hint, report) else { return };
    if !matches!(&node.kind, Kind::String(text) if text == expected) {
        report.problem(node, &pointer, format!("{key} must be {expected}"), hint);
    }
}

/// A mapping that must be there.
fn section<'n>(fields: Fields<'n>, key: &str, hint: &str, report: &mut Report) -> Option<(&'n Node, String)> {
    let Some((node, pointer)) = fields.get(key) else {
        let at = fields.node.get(key).unwrap_or(fields.node);
        report.problem(at, &format!("{}/{key}", fields.pointer), format!("{key} section is required"), hint);
        return None;
    };
    mapping(node, &pointer, key, report).then_some((node, pointer))
}

pub(super) fn mapping(node: &Node, pointer: &str, what: &str, report: &mut Report) -> bool {
    let is_map = matches!(node.kind, Kind::Map(_));
    if !is_map {
        report.problem(node, pointer, format!("{what} must be a mapping, not {}", node.type_name()), "");
    }
    is_map
}

fn metadata(fields: Fields<'_>, report: &mut Report) -> Option<AddonManifest> {
    let hint = "for example metadata: {name: Backup tools, id: example.backup, version: 1.0.0}";
    let (node, pointer) = section(fields, "metadata", hint, report)?;
    let fields = Fields { node, pointer: &pointer };
    fields.only(&METADATA, report);
    let name = name(fields, report);
    let id = id(fields, report);
    let version = version(fields, report);
    let summary = summary(fields, report);
    let description = fields.optional_string("description", report);
    let homepage = web_page(fields, "homepage", report);
    let license = fields.optional_string("license", report);
    let maintainers = maintainers(fields, report);
    let about = [
        ("id", id.clone()),
        ("summary", summary.clone()),
        ("homepage", homepage),
        ("license", license),
        ("maintainers", (!maintainers.is_empty()).then(|| maintainers.join(", "))),
    ];
    id?;
    Some(AddonManifest {
        dialect: Dialect::V1,
        name: name?,
        version: version?,
        description: description.or(summary),
        metadata: about
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?)))
            .collect::<BTreeMap<_, _>>(),
        entrypoints: Vec::new(),
        warnings: Vec::new(),
    })
}

fn name(fields: Fields<'_>, report: &mut Report) -> Option<String> {
    let (node, pointer) = fields.required("name", "for example name: Backup tools", report)?;
    let name = string(node, &pointer, "name", report)?;
    if !NAME.contains(&name.trim().chars().count()) || name.chars().any(char::is_control) {
        let message = format!("name must have {} to {} characters on one line", NAME.start(), NAME.end());
        report.problem(node, &pointer, message, "for example name: Backup tools");
        return None;
    }
    Some(name)
}

fn id(fields: Fields<'_>, report: &mut Report) -> Option<String> {
    const HINT: &str = "use a-z, 0-9, ., _ and -, starting with a letter or digit, as in example.backup";
    let (node, pointer) = fields.required("id", HINT, report)?;
    let id = string(node, &pointer, "id", report)?;
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let starts = id.bytes().next().is_some_and(letter);
    if !starts || !ID.contains(&id.len()) || !id.bytes().all(|byte| letter(byte) || b"._-".contains(&byte)) {
        let message = format!("id {id:?} is not a name of {} to {} characters", ID.start(), ID.end());
        report.problem(node, &pointer, message, HINT);
        return None;
    }
    Some(id)
}

pub(super) fn summary(fields: Fields<'_>, report: &mut Report) -> Option<String> {
    let (node, pointer) = fields.get("summary")?;
    let summary = string(node, &pointer, "summary", report)?;
    let len = summary.chars().count();
    if len > MAX_SUMMARY {
        let message = format!("summary has {len} characters, at most {MAX_SUMMARY} are taken");
        report.problem(node, &pointer, message, "put the rest into description");
        return None;
    }
    Some(summary)
}

fn web_page(fields: Fields<'_>, key: &str, report: &mut Report) -> Option<String> {
    let (node, pointer) = fields.get(key)?;
    let text = string(node, &pointer, key, report)?;
    match url::Url::parse(&text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Some(text),
        _ => {
            let message = format!("{key} {text:?} is not the address of a web page");
            report.problem(node, &pointer, message, "for example https://example.org/backup");
            None
        }
    }
}

/// `Name <email>` of each.
fn maintainers(fields: Fields<'_>, report: &mut Report) -> Vec<String> {
    let list = optional_list(fields, "maintainers", report);
    let one = |(node, pointer): &(&Node, String), report: &mut Report| {
        if !mapping(node, pointer, "a maintainer", report) {
            return None;
        }
        let fields = Fields { node, pointer };
        fields.only(&MAINTAINER, report);
        let email = fields.optional_string("email", report);
        web_page(fields, "url", report);
        let name = v1_job::text(fields, "name", "for example name: Platform team", report)?;
        Some(match email {
            Some(email) => format!("{name} <{email}>"),
            None => name,
        })
    };
    list.iter().filter_map(|item| one(item, report)).collect()
}

/// The items of a list that may be absent, with their pointers.
pub(super) fn optional_list<'n>(
    fields: Fields<'n>,
    key: &str,
    report: &mut Report,
) -> Vec<(&'n Node, String)> {
    let Some((node, pointer)) = fields.get(key) else { return Vec::new() };
    let Kind::Seq(items) = &node.kind else {
        report.problem(node, &pointer, format!("{key} must be a list, not {}", node.type_name()), "");
        return Vec::new();
    };
    items.iter().enumerate().map(|(index, item)| (item, format!("{pointer}/{index}"))).collect()
}

fn requires(fields: Fields<'_>, report: &mut Report) {
    let Some((node, pointer)) = section(fields, "requires", "write requires: {}", report) else { return };
    let fields = Fields { node, pointer: &pointer };
    fields.only(&REQUIRES, report);
    range(fields, "flwd", report);
    for (node, pointer) in optional_list(fields, "permissions", report) {
        string(node, &pointer, "a permission", report);
    }
    for (node, pointer) in optional_list(fields, "containers", report) {
        if mapping(node, &pointer, "a container", report) {
            container(Fields { node, pointer: &pointer }, report);
        }
    }
}

fn container(fields: Fields<'_>, report: &mut Report) {
    fields.only(&CONTAINER, report);
    v1_job::text(fields, "image", "for example image: docker.io/library/alpine:3.20", report);
    fields.optional_string("platform", report);
    v1_job::one_of(fields, "verify_signatures", &VERIFY, report);
}

/// A version range such as `>=1.2.0 <2.0.0`: its alphabet only, it is compared with nothing here.
pub(super) fn range(fields: Fields<'_>, key: &str, report: &mut Report) {
    let Some((node, pointer)) = fields.get(key) else { return };
    let Some(text) = string(node, &pointer, key, report) else { return };
    let sign = |c: char| c.is_ascii_alphanumeric() || " .,*^~<>=|+-".contains(c);
    if text.trim().is_empty() || !text.chars().all(sign) {
        let message = format!("{key} {text:?} is not a version range");
        report.problem(node, &pointer, message, "for example \">=1.2.0 <2.0.0\"");
    }
}

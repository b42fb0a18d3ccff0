//! The classic dialect: `name`, `version`, … and the list of entrypoints.

use super::entrypoint::entrypoint;
use super::fields::{Fields, Report, items, string, unique, version};
use super::{AddonManifest, Dialect, Entrypoint};
use crate::policy::yaml::Kind;

/// Its top-level keys.
pub(super) const KEYS: [&str; 6] = ["name", "version", "description", "metadata", "entrypoints", "executor"];

/// Longest `name`, in characters.
const MAX_NAME: usize = 128;

pub(super) fn document(fields: Fields<'_>, report: &mut Report) -> Option<AddonManifest> {
    fields.unknown_keys(&KEYS, report);
    executor(fields, report);
    let name = name(fields, report);
    let version = version(fields, report);
    let description = fields.optional_string("description", report);
    let metadata = fields.string_map("metadata", report);
    let entrypoints = entrypoints(fields, report);
    Some(AddonManifest {
        dialect: Dialect::Classic,
        name: name?,
        version: version?,
        description,
        metadata,
        entrypoints,
        warnings: Vec::new(),
    })
}

/// Add-on jobs run in containers, and nothing may say otherwise.
pub(super) fn executor(fields: Fields<'_>, report: &mut Report) {
    let Some((node, pointer)) = fields.get("executor") else { return };
    if !matches!(&node.kind, Kind::String(executor) if executor == "container") {
        report.problem(node, &pointer, "the executor of an add-on is always container", "remove the key");
    }
}

fn name(fields: Fields<'_>, report: &mut Report) -> Option<String> {
    let (node, pointer) = fields.required("name", "for example name: backup-tools", report)?;
    let name = string(node, &pointer, "name", report)?;
    if name.trim().is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        let message = format!("name must have 1 to {MAX_NAME} characters on one line");
        report.problem(node, &pointer, message, "for example name: backup-tools");
        return None;
    }
    Some(name)
}

fn entrypoints(fields: Fields<'_>, report: &mut Report) -> Vec<Entrypoint> {
    const HINT: &str = "list at least one: - {id: hello, command: [/bin/hello]}";
    let list = items(fields, "entrypoints", HINT, report);
    unique(&list, "id", report);
    list.iter().filter_map(|(item, pointer)| entrypoint(Fields { node: item, pointer }, report)).collect()
}

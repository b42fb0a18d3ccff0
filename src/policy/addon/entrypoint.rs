//! One entrypoint of a manifest.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::classic::executor;
use super::fields::{Fields, Report, ambiguous_numbers, string};
use super::{Entrypoint, FIXED_NAMES, Network, Program, Resources};
use crate::policy::arguments::{ArgSpec, is_reserved};
use crate::policy::code::Denied;
use crate::policy::rules::Profile;
use crate::policy::yaml::{Kind, Node, join};
use crate::policy::{duration, quantity};

pub(super) const KEYS: [&str; 11] = [
    "id",
    "name",
    "description",
    "command",
    "argspec",
    "resources",
    "env",
    "network",
    "profile",
    "annotations",
    "executor",
];

/// Longest `id` in bytes; it is a directory name, and half of one (255) leaves room for suffixes.
pub(super) const MAX_ID: usize = 128;

/// Reads one; `None` if it cannot be used, with the reasons in the report.
pub(super) fn entrypoint(fields: Fields<'_>, report: &mut Report) -> Option<Entrypoint> {
    if !matches!(fields.node.kind, Kind::Map(_)) {
        let message = format!("an entrypoint must be a mapping, not {}", fields.node.type_name());
        report.problem(fields.node, fields.pointer, message, "write - id: … and command: […]");
        return None;
    }
    fields.unknown_keys(&KEYS, report);
    executor(fields, report);
    let id = id(fields, report);
    let name = fields.optional_string("name", report);
    let description = fields.optional_string("description", report);
    let command = command(fields, report);
    let argspec = argspec(fields, report);
    let resources = resources(fields, report);
    let env = env(fields, report);
    let network = network(fields, report);
    let profile = profile(fields, report);
    let annotations = fields.string_map("annotations", report);
    let id = id?;
    Some(Entrypoint {
        name: name.unwrap_or_else(|| id.clone()),
        id,
        description,
        program: Program::Command(command?),
        argspec: Arc::new(argspec?),
        resources,
        env,
        network,
        profile,
        annotations,
    })
}

fn profile(fields: Fields<'_>, report: &mut Report) -> Option<Profile> {
    let (node, pointer) = fields.get("profile")?;
    let text = string(node, &pointer, "profile", report)?;
    text.parse().map_err(|denied: Denied| report.problem(node, &pointer, denied.message, "")).ok()
}

fn id(fields: Fields<'_>, report: &mut Report) -> Option<String> {
    const HINT: &str = "use a-z, 0-9, _, . and -, starting with a letter or digit";
    let (node, pointer) = fields.required("id", HINT, report)?;
    let id = string(node, &pointer, "id", report)?;
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let starts = id.bytes().next().is_some_and(letter);
    if !starts || id.len() > MAX_ID || !id.bytes().all(|byte| letter(byte) || b"_.-".contains(&byte)) {
        report.problem(
            node,
            &pointer,
            format!("id {id:?} cannot be a directory name of at most {MAX_ID} bytes"),
            HINT,
        );
        return None;
    }
    not_fixed(id, node, &pointer, report)
}

/// The id, if it is none of the names that every add-on's folder has.
pub(super) fn not_fixed(id: String, node: &Node, pointer: &str, report: &mut Report) -> Option<String> {
    if FIXED_NAMES.contains(&id.as_str()) {
        let message = format!("id {id:?} is the name of a file that every add-on's folder has");
        report.problem(node, pointer, message, "choose another id");
        return None;
    }
    Some(id)
}

fn command(fields: Fields<'_>, report: &mut Report) -> Option<Vec<String>> {
    const HINT: &str = "for example command: [/addon/backup.sh, --verbose]";
    let (node, pointer) = fields.required("command", HINT, report)?;
    let Kind::Seq(items) = &node.kind else {
        let hint = match &node.kind {
            Kind::String(line) => format!("no shell is involved; write a list: [{}]", words(line)),
            _ => HINT.to_owned(),
        };
        report.problem(
            node,
            &pointer,
            format!("command must be a list of strings, not {}", node.type_name()),
            hint,
        );
        return None;
    };
    let before = report.problems.len();
    let command: Vec<String> = items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| {
            string(item, &format!("{pointer}/{index}"), "an element of command", report)
        })
        .collect();
    if report.problems.len() > before {
        return None;
    }
    if command.first().is_none_or(String::is_empty) {
        report.problem(node, &pointer, "command names no program", HINT);
        return None;
    }
    Some(command)
}

/// The words of a line as elements of a YAML list.
fn words(line: &str) -> String {
    line.split_whitespace().take(8).map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ")
}

fn argspec(fields: Fields<'_>, report: &mut Report) -> Option<ArgSpec> {
    let Some((node, pointer)) = fields.get("argspec") else { return Some(ArgSpec::none()) };
    let before = report.problems.len();
    ambiguous_numbers(node, &pointer, report);
    match ArgSpec::compile(node.to_json()) {
        Ok(argspec) if report.problems.len() == before => Some(argspec),
        Ok(_) => None,
        Err(problems) => {
            for (below, message) in problems {
                let pointer = format!("{pointer}{below}");
                // A number of doubtful meaning is one problem, not two.
                if !report.problems.iter().any(|told| told.pointer == pointer) {
                    let hint = "argspec is a JSON Schema (2020-12) of an object";
                    report.problem(node.nearest(&below), &pointer, message, hint);
                }
            }
            None
        }
    }
}

fn resources(fields: Fields<'_>, report: &mut Report) -> Resources {
    let Some((node, pointer)) = fields.get("resources") else { return Resources::default() };
    if !matches!(node.kind, Kind::Map(_)) {
        let message = format!("resources must be a mapping, not {}", node.type_name());
        report.problem(
            node,
            &pointer,
            message,
            "for example resources: {cpu: \"0.5\", memory: 256Mi, timeout: 10m}",
        );
        return Resources::default();
    }
    let fields = Fields { node, pointer: &pointer };
    fields.unknown_keys(&["cpu", "memory", "timeout"], report);
    Resources {
        cpu_millis: amount(fields, "cpu", report, quantity::parse_cpu),
        memory_bytes: amount(fields, "memory", report, quantity::parse_memory),
        timeout: amount(fields, "timeout", report, |text| match duration::parse(text) {
            Ok(timeout) if timeout.is_zero() => Err(format!("{text:?} is zero: leave it out for no limit")),
            Ok(timeout) => Ok(timeout),
            Err(error) => Err(error.to_string()),
        }),
    }
}

/// `cpu: 2` and `memory: 1024` are taken without quotes: as written they have one meaning.
fn amount<T, E: ToString>(
    fields: Fields<'_>,
    key: &str,
    report: &mut Report,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Option<T> {
    let (node, pointer) = fields.get(key)?;
    let text = match &node.kind {
        Kind::Number(_) => node.scalar_text()?,
        _ => string(node, &pointer, key, report)?,
    };
    match parse(&text) {
        Ok(amount) => Some(amount),
        Err(error) => {
            report.problem(node, &pointer, format!("{key}: {}", error.to_string()), "");
            None
        }
    }
}

fn env(fields: Fields<'_>, report: &mut Report) -> BTreeMap<String, String> {
    let env = fields.string_map("env", report);
    let Some((node, pointer)) = fields.get("env") else { return env };
    let Kind::Map(entries) = &node.kind else { return env };
    for entry in entries {
        let name = entry.key.as_str();
        let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let (message, hint) = if is_reserved(name) {
            (format!("variable {name} is set by addonfs"), "choose another name")
        } else if !starts || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            (
                format!("{name:?} cannot name a variable"),
                "use letters, digits and _, not starting with a digit",
            )
        } else {
            continue;
        };
        report.problem(&entry.value, &join(&pointer, name), message, hint);
    }
    env
}

fn network(fields: Fields<'_>, report: &mut Report) -> Network {
    let Some((node, pointer)) = fields.get("network") else { return Network::None };
    match &node.kind {
        Kind::String(word) if word == "none" => Network::None,
        Kind::String(word) if word == "all" => Network::All,
        _ => {
            report.problem(
                node,
                &pointer,
                "network must be all or none",
                "none is what a job gets when it says nothing",
            );
            Network::None
        }
    }
}

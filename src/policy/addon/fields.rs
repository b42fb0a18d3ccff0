//! Single values of a manifest: each reader takes a key of a mapping, and reports what is wrong with it.

use std::collections::{BTreeMap, HashMap};

use super::Problem;
use crate::policy::nearest::nearest;
use crate::policy::yaml::{Kind, Node, join};

/// What was found wrong so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

impl Report {
    pub(super) fn problem(
        &mut self,
        at: &Node,
        pointer: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.problems.push(problem(at, pointer, message, hint));
    }

    pub(super) fn warning(&mut self, at: &Node, pointer: &str, message: &str, hint: &str) {
        self.warnings.push(problem(at, pointer, message, hint));
    }
}

fn problem(at: &Node, pointer: &str, message: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem {
        line: at.line,
        column: at.column,
        pointer: pointer.to_owned(),
        message: message.into(),
        hint: hint.into(),
    }
}

/// A mapping of the manifest and where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'n> {
    pub(super) node: &'n Node,
    pub(super) pointer: &'n str,
}

impl<'n> Fields<'n> {
    /// The value of a key; an empty one (`key:`) counts as absent.
    pub(super) fn get(self, key: &str) -> Option<(&'n Node, String)> {
        let node = self.node.get(key).filter(|node| !matches!(node.kind, Kind::Null))?;
        Some((node, join(self.pointer, key)))
    }

    /// A key that must be there.
    pub(super) fn required(self, key: &str, hint: &str, report: &mut Report) -> Option<(&'n Node, String)> {
        let found = self.get(key);
        if found.is_none() {
            // The key without a value has a place of its own.
            let at = self.node.get(key).unwrap_or(self.node);
            report.problem(at, &join(self.pointer, key), format!("{key} is required"), hint);
        }
        found
    }

    pub(super) fn optional_string(self, key: &str, report: &mut Report) -> Option<String> {
        let (node, pointer) = self.get(key)?;
        string(node, &pointer, key, report)
    }

    /// A mapping of strings to strings; empty when absent.
    pub(super) fn string_map(self, key: &str, report: &mut Report) -> BTreeMap<String, String> {
        let Some((node, pointer)) = self.get(key) else { return BTreeMap::new() };
        let Kind::Map(entries) = &node.kind else {
            let message = format!("{key} must be a mapping of strings, not {}", node.type_name());
            report.problem(node, &pointer, message, "write NAME: \"value\" lines below it");
            return BTreeMap::new();
        };
        let mut map = BTreeMap::new();
        for entry in entries {
            let pointer = join(&pointer, &entry.key);
            if let Some(value) = string(&entry.value, &pointer, &entry.key, report) {
                map.insert(entry.key.clone(), value);
            }
        }
        map
    }

    /// Reports every unknown key as a problem, by its dotted path.
    pub(super) fn only(self, known: &[&str], report: &mut Report) {
        let Kind::Map(entries) = &self.node.kind else { return };
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let pointer = join(self.pointer, &entry.key);
            let hint = match nearest(&entry.key, known.iter().copied()) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("the keys here are {}", known.join(", ")),
            };
            report.problems.push(Problem {
                line: entry.line,
                column: entry.column,
                message: format!("{} is not allowed", dotted(&pointer)),
                pointer,
                hint,
            });
        }
    }

    /// Reports keys that nobody reads: a likely misspelling is a problem, anything else a warning.
    pub(super) fn unknown_keys(self, known: &[&str], report: &mut Report) {
        let Kind::Map(entries) = &self.node.kind else { return };
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let meant =
                nearest(&entry.key, known.iter().copied()).filter(|meant| self.node.get(meant).is_none());
            let finding = Problem {
                line: entry.line,
                column: entry.column,
                pointer: join(self.pointer, &entry.key),
                message: format!("unknown key {:?}", entry.key),
                hint: meant.map(|meant| format!("did you mean {meant}?")).unwrap_or_default(),
            };
            match meant {
                Some(_) => report.problems.push(finding),
                None => report.warnings.push(finding),
            }
        }
    }
}

/// `manifest.jobs[0].name` for the pointer `/jobs/0/name`.
fn dotted(pointer: &str) -> String {
    let mut path = "manifest".to_owned();
    for token in pointer.split('/').skip(1) {
        if !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_digit()) {
            path.push_str(&format!("[{token}]"));
        } else {
            path.push('.');
            path.push_str(&token.replace("~1", "/").replace("~0", "~"));
        }
    }
    path
}

/// The strict semantic version at `version`.
pub(super) fn version(fields: Fields<'_>, report: &mut Report) -> Option<String> {
    let (node, pointer) = fields.required("version", "for example version: 1.0.0", report)?;
    // An unquoted 1.0 is a number to YAML: the better hint is the missing part, not the quotes.
    let text = match &node.kind {
        Kind::Number(_) => node.scalar_text()?,
        _ => string(node, &pointer, "version", report)?,
    };
    if let Err(error) = semver::Version::parse(&text) {
        let plain = text.trim_start_matches(['v', 'V']);
        let hint = match plain.split('.').count() {
            _ if semver::Version::parse(plain).is_ok() => format!("without the v: {plain}"),
            1 | 2 if plain.split('.').all(|part| part.parse::<u64>().is_ok()) => {
                let zeros = if plain.contains('.') { ".0" } else { ".0.0" };
                format!("three numbers: {plain}{zeros}")
            }
            _ => "for example 1.0.0 or 2.1.0-rc.1".to_owned(),
        };
        report.problem(node, &pointer, format!("version {text:?} is not a semantic version: {error}"), hint);
        return None;
    }
    Some(text)
}

/// Most items of a list of jobs: each is a folder with files; a manifest with more was generated by mistake.
const MAX_ITEMS: usize = 256;

/// The items of a list that must be there and not be empty, with their pointers.
pub(super) fn items<'n>(
    fields: Fields<'n>,
    key: &str,
    hint: &str,
    report: &mut Report,
) -> Vec<(&'n Node, String)> {
    let Some((node, pointer)) = fields.required(key, hint, report) else { return Vec::new() };
    let Kind::Seq(items) = &node.kind else {
        report.problem(node, &pointer, format!("{key} must be a list, not {}", node.type_name()), hint);
        return Vec::new();
    };
    if items.is_empty() {
        report.problem(node, &pointer, format!("{key} is empty"), hint);
    }
    if items.len() > MAX_ITEMS {
        let message = format!("{} {key}: at most {MAX_ITEMS} are read", items.len());
        report.problem(node, &pointer, message, "make several add-ons of it");
        return Vec::new();
    }
    items.iter().enumerate().map(|(index, item)| (item, format!("{pointer}/{index}"))).collect()
}

/// Reports items whose string at `key` was used by an earlier one.
pub(super) fn unique(items: &[(&Node, String)], key: &str, report: &mut Report) {
    let mut first_lines: HashMap<&str, u64> = HashMap::new();
    for (item, pointer) in items {
        let Some(at) = item.get(key) else { continue };
        let Kind::String(text) = &at.kind else { continue };
        match first_lines.get(text.as_str()) {
            Some(line) => {
                let message = format!("{key} {text:?} is used twice");
                report.problem(at, &join(pointer, key), message, format!("the first one is in line {line}"));
            }
            None => {
                first_lines.insert(text, at.line);
            }
        }
    }
}

/// Reports numbers in data that mean different things to different readers of YAML.
pub(super) fn ambiguous_numbers(node: &Node, pointer: &str, report: &mut Report) {
    node.walk(pointer, &mut |pointer, number| {
        if let Some(literal) = number.ambiguous_number() {
            let message = format!("{literal} means different numbers to different readers of YAML");
            let hint = "quote it if it is text, or write it without leading zeros";
            report.problem(number, pointer, message, hint);
        }
    });
}

/// A string without NUL. `what` names it in messages.
pub(super) fn string(node: &Node, pointer: &str, what: &str, report: &mut Report) -> Option<String> {
    match &node.kind {
        Kind::String(text) if text.contains('\0') => {
            report.problem(node, pointer, format!("{what} holds a NUL"), "remove the \\0");
            None
        }
        Kind::String(text) => Some(text.clone()),
        _ => {
            let hint = match node.scalar_text() {
                Some(text) => format!("quote it: \"{text}\""),
                None => String::new(),
            };
            report.problem(node, pointer, format!("{what} must be a string, not {}", node.type_name()), hint);
            None
        }
    }
}

//! Single values of a manifest: each reader takes a key of a mapping, and reports what is wrong with it.

use std::collections::BTreeMap;

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
}

pub(super) fn problem(
    at: &Node,
    pointer: &str,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> Problem {
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

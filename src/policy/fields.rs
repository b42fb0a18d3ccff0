//! Reading mappings of a configuration, with every problem collected and placed.
//!
//! In: a [`Node`]. Out: typed values, and in the [`Report`] what is wrong with the rest: all problems of a file
//! together, not the first only. What nobody took is an unknown key: an error or, in a file written for another
//! program, a warning.

use super::code::{Code, Denied};
use super::nearest::nearest;
use super::yaml::{Entry, Kind, Node, Problem, join};

/// For whom a file was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `addonfs.yaml`: unknown keys are errors, for they are typing mistakes.
    Addonfs,
    /// `flwd.yaml`: unknown keys are for flowd, and warned of.
    Flowd,
}

/// What was found wrong so far.
#[derive(Debug)]
pub struct Report {
    dialect: Dialect,
    problems: Vec<Problem>,
    /// Of those: the ones that have a code of their own, and the last such code.
    coded: usize,
    code: Code,
    warnings: Vec<Problem>,
}

impl Report {
    /// An empty report for a file of this dialect.
    pub fn new(dialect: Dialect) -> Self {
        Self { dialect, problems: Vec::new(), coded: 0, code: Code::Config, warnings: Vec::new() }
    }

    /// For whom the file was written.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Something that makes the file unusable.
    pub fn problem(&mut self, at: &Field<'_>, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push(at.problem(message, hint));
    }

    /// A value that was refused under a code. The file is refused under it if nothing else is wrong.
    pub fn denied(&mut self, at: &Field<'_>, denied: Denied) {
        self.problem(at, denied.message, "");
        (self.coded, self.code) = (self.coded + 1, denied.code);
    }

    /// Something worth saying.
    pub fn warn(&mut self, at: &Field<'_>, message: impl Into<String>, hint: impl Into<String>) {
        self.warnings.push(at.problem(message, hint));
    }

    /// The warnings, or the refusal of `file` with all its problems in the order of their lines.
    pub fn finish(mut self, file: &str) -> Result<Vec<Problem>, Denied> {
        if self.problems.is_empty() {
            return Ok(self.warnings);
        }
        self.problems.sort_by_key(|p| (p.line, p.column));
        let code = if self.coded == self.problems.len() { self.code } else { Code::Config };
        Err(Denied { code, ..refusal(file, &self.problems) })
    }
}

/// The refusal of a configuration file.
pub fn refusal(file: &str, problems: &[Problem]) -> Denied {
    let lines: Vec<String> = problems.iter().map(|p| format!("{file}: {p}")).collect();
    Denied::new(Code::Config, lines.join("\n"))
}

/// A value and the JSON pointer to it.
#[derive(Debug, Clone)]
pub struct Field<'n> {
    /// The value.
    pub node: &'n Node,
    /// Where it is.
    pub pointer: String,
}

impl<'n> Field<'n> {
    /// The whole document.
    pub fn root(node: &'n Node) -> Self {
        Self { node, pointer: String::new() }
    }

    fn problem(&self, message: impl Into<String>, hint: impl Into<String>) -> Problem {
        Problem {
            line: self.node.line,
            column: self.node.column,
            pointer: self.pointer.clone(),
            message: message.into(),
            hint: hint.into(),
        }
    }

    fn expected<T>(&self, what: &str, report: &mut Report) -> Option<T> {
        report.problem(self, format!("expected {what}, found {}", self.node.type_name()), "");
        None
    }

    /// Text; a bare number is taken as it was written, so that `cpu: 2` need no quotes.
    pub fn text(&self, report: &mut Report) -> Option<String> {
        match &self.node.kind {
            Kind::String(_) | Kind::Number(_) => self.node.scalar_text(),
            _ => self.expected("a string", report),
        }
    }

    /// `true` or `false`.
    pub fn flag(&self, report: &mut Report) -> Option<bool> {
        match self.node.kind {
            Kind::Bool(value) => Some(value),
            _ => self.expected("true or false", report),
        }
    }

    /// A whole number of zero or more.
    pub fn count(&self, report: &mut Report) -> Option<u64> {
        match &self.node.kind {
            Kind::Number(number) if number.as_u64().is_some() => number.as_u64(),
            _ => self.expected("a whole number", report),
        }
    }

    /// The items of a list.
    pub fn items(&self, report: &mut Report) -> Option<Vec<Field<'n>>> {
        match &self.node.kind {
            Kind::Seq(items) => {
                let field = |(at, node)| Field { node, pointer: format!("{}/{at}", self.pointer) };
                Some(items.iter().enumerate().map(field).collect())
            }
            _ => self.expected("a list", report),
        }
    }

    /// A list of texts.
    pub fn texts(&self, report: &mut Report) -> Option<Vec<String>> {
        self.items(report)?.iter().map(|item| item.text(report)).collect()
    }

    /// The keys of a mapping; nothing at all (`policy:` with an empty value) is an empty one.
    pub fn fields(&self, report: &mut Report) -> Option<Fields<'n>> {
        let entries = match &self.node.kind {
            Kind::Map(entries) => entries.as_slice(),
            Kind::Null => &[],
            _ => return self.expected("a mapping", report),
        };
        Some(Fields { at: self.clone(), entries, asked: Vec::new() })
    }
}

/// The keys of a mapping, to be taken one by one.
#[derive(Debug)]
pub struct Fields<'n> {
    at: Field<'n>,
    entries: &'n [Entry],
    asked: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// The mapping itself.
    pub fn at(&self) -> &Field<'n> {
        &self.at
    }

    /// The value of a key, unless it is absent or null.
    pub fn take(&mut self, key: &'static str) -> Option<Field<'n>> {
        self.asked.push(key);
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        let field = Field { node: &entry.value, pointer: join(&self.at.pointer, key) };
        (!matches!(entry.value.kind, Kind::Null)).then_some(field)
    }

    /// Of the keys that were asked for, those that are there.
    pub fn found(&self) -> Vec<&'static str> {
        let there =
            |key: &&str| self.entries.iter().any(|e| e.key == **key && !matches!(e.value.kind, Kind::Null));
        self.asked.iter().copied().filter(there).collect()
    }

    /// All keys with their values, where the keys are names of the user's choice.
    pub fn named(&self) -> Vec<(&'n str, Field<'n>)> {
        let field = |entry: &'n Entry| {
            let pointer = join(&self.at.pointer, &entry.key);
            (entry.key.as_str(), Field { node: &entry.value, pointer })
        };
        self.entries.iter().map(field).collect()
    }

    /// Tells of the keys that nobody took.
    pub fn finish(self, report: &mut Report) {
        for entry in self.entries.iter().filter(|entry| !self.asked.contains(&entry.key.as_str())) {
            let near = nearest(&entry.key, self.asked.iter().copied());
            let hint = near.map(|known| format!("did you mean {known}?")).unwrap_or_default();
            let problem = Problem {
                line: entry.line,
                column: entry.column,
                pointer: join(&self.at.pointer, &entry.key),
                message: format!("unknown key {:?}", entry.key),
                hint,
            };
            match report.dialect {
                Dialect::Addonfs => report.problems.push(problem),
                Dialect::Flowd => report.warnings.push(problem),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::yaml;

    #[test]
    fn unknown_keys_are_placed_and_explained() {
        let node = yaml::parse(b"a: 1\nprofil: x\nlisten:\n  - 1\nc: ~\n").unwrap();
        for (dialect, refused) in [(Dialect::Addonfs, true), (Dialect::Flowd, false)] {
            let mut report = Report::new(dialect);
            let mut fields = Field::root(&node).fields(&mut report).unwrap();
            assert_eq!(fields.take("a").unwrap().text(&mut report).as_deref(), Some("1"));
            assert!(fields.take("c").is_none() && fields.take("profile").is_none());
            fields.finish(&mut report);
            match report.finish("x.yaml") {
                Err(denied) => {
                    assert!(refused);
                    assert_eq!(denied.code, Code::Config);
                    assert_eq!(
                        denied.message,
                        "x.yaml: line 2, column 1: /profil: unknown key \"profil\" (did you mean profile?)\n\
                         x.yaml: line 3, column 1: /listen: unknown key \"listen\""
                    );
                }
                Ok(warnings) => assert!(!refused && warnings.len() == 2),
            }
        }
    }

    #[test]
    fn types_are_checked() {
        let node = yaml::parse(b"t: [1]\nf: yes\nn: -1\ns: {}\n").unwrap();
        let mut report = Report::new(Dialect::Addonfs);
        let mut fields = Field::root(&node).fields(&mut report).unwrap();
        assert!(fields.take("t").unwrap().text(&mut report).is_none());
        assert!(fields.take("f").unwrap().flag(&mut report).is_none());
        assert!(fields.take("n").unwrap().count(&mut report).is_none());
        assert!(fields.take("s").unwrap().items(&mut report).is_none());
        fields.finish(&mut report);
        assert_eq!(report.finish("x").unwrap_err().message.lines().count(), 4);
    }
}

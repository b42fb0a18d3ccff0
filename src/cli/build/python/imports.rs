//! The import statements of a Python source that run when it is imported, or started.
//!
//! Not a parser of Python: statements are told apart by indentation, brackets and strings (Python Language Reference,
//! "Lexical analysis" and "The import system"). What is misread costs the order of a few files in a layer, nothing else.

/// One import.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Import {
    /// The dotted name; empty in `from . import x`.
    pub module: String,
    /// The dots before it.
    pub level: usize,
    /// What is taken from it: names of submodules, perhaps.
    pub names: Vec<String>,
}

/// Names in one statement that are looked at: generated code, not people, writes more.
const MAX_NAMES: usize = 256;

/// Compound statements that are executed where they stand. Code of a `def` runs when it is called.
const EXECUTED: [&str; 11] =
    ["if", "elif", "else", "try", "except", "finally", "with", "for", "while", "class", "async"];

/// The imports of `source` in their order. Those below `if __name__ == …` count only where the file is what is `started`.
pub(super) fn imports(source: &[u8], started: bool) -> Vec<Import> {
    let source = String::from_utf8_lossy(source);
    let mut found = Vec::new();
    // Lines with more indentation than this are not executed.
    let mut skipped: Option<usize> = None;
    for line in Lines::new(&source).filter(|line| !line.text.trim().is_empty()) {
        if skipped.is_some_and(|indent| line.indent > indent) {
            continue;
        }
        skipped = None;
        for statement in line.text.split(';') {
            if !executed(statement, started) {
                skipped = Some(line.indent);
                break;
            }
            import(body(statement), &mut found);
        }
    }
    found
}

/// Whether a statement's block runs here and now.
fn executed(statement: &str, started: bool) -> bool {
    let mut words = statement.split_whitespace();
    match words.next() {
        Some("def") => false,
        Some("async") => words.next() != Some("def"),
        Some("if" | "elif") => {
            !statement.contains("TYPE_CHECKING") && (started || !statement.contains("__name__"))
        }
        _ => true,
    }
}

/// What stands behind the colon of a compound statement of one line, as in `try: import a`.
fn body(statement: &str) -> &str {
    let statement = statement.trim();
    let word = statement.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    if !EXECUTED.contains(&word) {
        return statement;
    }
    statement.split_once(':').map_or("", |(_, rest)| rest.trim())
}

fn import(statement: &str, found: &mut Vec<Import>) {
    let listed = |text: &str| -> Vec<String> {
        let text = text.trim().trim_matches(['(', ')']);
        let names = text.split(',').filter_map(|name| name.split_whitespace().next());
        names.filter(|name| is_dotted(name)).take(MAX_NAMES).map(str::to_owned).collect()
    };
    if let Some(modules) = keyword(statement, "import") {
        let plain = |module| Import { module, level: 0, names: Vec::new() };
        found.extend(listed(modules).into_iter().map(plain));
    } else if let Some(rest) = keyword(statement, "from") {
        let Some((module, names)) = split_at_import(rest) else { return };
        let module = module.trim();
        let name = module.trim_start_matches(['.', ' ']);
        let level = module[..module.len() - name.len()].matches('.').count();
        if name.is_empty() && level == 0 || !name.is_empty() && !is_dotted(name) {
            return;
        }
        found.push(Import { module: name.to_owned(), level, names: listed(names) });
    }
}

/// What stands before and behind the word `import`, which `importlib` only begins with.
fn split_at_import(text: &str) -> Option<(&str, &str)> {
    text.match_indices("import").map(|(at, word)| (&text[..at], &text[at + word.len()..])).find(
        |(module, names)| module.ends_with([' ', '\t', '.']) && names.starts_with([' ', '\t', '(', '*']),
    )
}

/// What follows a keyword.
fn keyword<'s>(statement: &'s str, word: &str) -> Option<&'s str> {
    let rest = statement.strip_prefix(word)?;
    rest.starts_with([' ', '\t', '.', '(']).then_some(rest)
}

fn is_dotted(name: &str) -> bool {
    name.split('.').all(|part| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_'))
}

/// A logical line: brackets and backslashes join physical ones, comments are gone, strings are empty.
struct Line {
    indent: usize,
    text: String,
}

struct Lines<'s> {
    rest: &'s str,
}

impl<'s> Lines<'s> {
    fn new(source: &'s str) -> Self {
        Self { rest: source.trim_start_matches('\u{feff}') }
    }

    /// Goes past a string whose first quote is at the start of what is left.
    fn skip_string(&mut self) {
        let quote = &self.rest[..1];
        let triple = quote.repeat(3);
        let (end, one_line) =
            if self.rest.starts_with(&triple) { (triple.as_str(), false) } else { (quote, true) };
        let mut at = end.len();
        let bytes = self.rest.as_bytes();
        while at < bytes.len() {
            match bytes[at] {
                b'\\' => at += 1,
                // left open: an error in Python, the end of it here
                b'\n' if one_line => break,
                _ if bytes[at..].starts_with(end.as_bytes()) => {
                    at += end.len();
                    break;
                }
                _ => {}
            }
            at += 1;
        }
        // A backslash may have led into the middle of a character.
        let at = (at.min(bytes.len())..=bytes.len()).find(|at| self.rest.is_char_boundary(*at));
        self.rest = at.and_then(|at| self.rest.get(at..)).unwrap_or_default();
    }
}

impl Iterator for Lines<'_> {
    type Item = Line;

    fn next(&mut self) -> Option<Line> {
        if self.rest.is_empty() {
            return None;
        }
        let indent = self.rest.len() - self.rest.trim_start_matches([' ', '\t', '\x0c']).len();
        let (mut text, mut depth) = (String::new(), 0_usize);
        while let Some(c) = self.rest.chars().next() {
            if matches!(c, '"' | '\'') {
                self.skip_string();
                text.push(' ');
                continue;
            }
            self.rest = &self.rest[c.len_utf8()..];
            match c {
                '#' => self.rest = self.rest.find('\n').map_or("", |end| &self.rest[end..]),
                '\n' if depth == 0 => break,
                '\n' => text.push(' '),
                '\\' if self.rest.starts_with('\n') => {
                    self.rest = &self.rest[1..];
                    text.push(' ');
                }
                _ => {
                    match c {
                        '(' | '[' | '{' => depth += 1,
                        ')' | ']' | '}' => depth = depth.saturating_sub(1),
                        _ => {}
                    }
                    text.push(c);
                }
            }
        }
        Some(Line { indent, text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str, started: bool) -> Vec<String> {
        let all = imports(source.as_bytes(), started);
        all.iter()
            .map(|one| format!("{}{}:{}", ".".repeat(one.level), one.module, one.names.join("+")))
            .collect()
    }

    #[test]
    fn statements() {
        let table: &[(&str, &[&str])] = &[
            ("import json; print(1)", &["json:"]),
            ("import a.b.c, d as e # f\n", &["a.b.c:", "d:"]),
            ("from a import b as c, d\n", &["a:b+d"]),
            ("from importlib import util\nfrom .import x\n", &["importlib:util", ".:x"]),
            ("from . import x\nfrom ..p.q import *\nfrom.r import(s)\n", &[".:x", "..p.q:", ".r:s"]),
            ("from a import (b, # one\n    c as d,\n)\nimport e\n", &["a:b+c", "e:"]),
            ("from a \\\n  import b\n", &["a:b"]),
            ("try: import a\nexcept ImportError: import b\nelse:\n  import c\n", &["a:", "b:", "c:"]),
            ("def f():\n  import a\n\n  import b\nimport c\n", &["c:"]),
            (
                "async def f():\n  import a\nclass C:\n  import b\n  def g(self): import c\n  import d\n",
                &["b:", "d:"],
            ),
            ("if TYPE_CHECKING:\n  import a\nelse:\n  import b\n", &["b:"]),
            ("'''\nimport a\n'''\nimport b\n", &["b:"]),
            ("x = \"\\\"\"; import a\ny = 'it''s'\nimport b", &["a:", "b:"]),
            ("x = {\n'import': a,\n}\nimport b\n", &["b:"]),
            ("important = 1\nfromage = 2\nimport\nfrom x\nfrom import y\nimport 'a'\n", &[]),
            ("s = 'left open\nimport a\n", &["a:"]),
            ("\u{feff}import a\r\nimport b\r\n", &["a:", "b:"]),
        ];
        for (source, expected) in table {
            assert_eq!(words(source, false), *expected, "{source:?}");
        }
    }

    #[test]
    fn what_only_the_started_file_runs() {
        let source = "if __name__ == '__main__':\n  import a\nimport b\n";
        assert_eq!(words(source, false), ["b:"]);
        assert_eq!(words(source, true), ["a:", "b:"]);
    }

    #[test]
    fn any_bytes_are_read_to_their_end() {
        let source = "from é import 'ü\\é\"\"\"x\\";
        for end in 0..=source.len() {
            imports(&source.as_bytes()[..end], true);
        }
        imports(&b"(".repeat(100_000), false);
    }
}

//! The file of bearer tokens: whose tokens they are and what they may do.
//!
//! ```yaml
//! tokens:
//!   - name: ci
//!     sha256: 64 hexadecimal digits        # printf %s "$TOKEN" | sha256sum
//!     scopes: [jobs:read, runs:read, runs:write]
//! ```
//! Only hashes stand there, so that who reads the file, or a backup of it, has no token; tokens are long and random,
//! so that no salt and no slow hash is needed. Presented ones are compared in constant time.

use std::fmt;

use crate::policy::code::Denied;
use crate::policy::digest::Digest;
use crate::policy::fields::{Dialect, Field, Report, refusal};
use crate::policy::yaml;

/// Most tokens of one file: each request is compared with all of them.
const MAX_TOKENS: usize = 1000;
/// Longest token that is looked at.
const MAX_TOKEN: usize = 1024;

/// What one may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// See jobs, plan them.
    JobsRead,
    /// See runs.
    RunsRead,
    /// Start and cancel runs.
    RunsWrite,
    /// Follow events.
    EventsRead,
    /// See sources.
    SourcesRead,
    /// Add and remove sources.
    SourcesWrite,
}

impl Scope {
    /// Every one.
    pub(crate) const ALL: [Self; 6] = [
        Self::JobsRead,
        Self::RunsRead,
        Self::RunsWrite,
        Self::EventsRead,
        Self::SourcesRead,
        Self::SourcesWrite,
    ];

    /// The published word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::JobsRead => "jobs:read",
            Self::RunsRead => "runs:read",
            Self::RunsWrite => "runs:write",
            Self::EventsRead => "events:read",
            Self::SourcesRead => "sources:read",
            Self::SourcesWrite => "sources:write",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One token, without itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// Whose it is, for records and logs.
    pub name: String,
    hash: Digest,
    /// What it is good for.
    pub scopes: Vec<Scope>,
}

/// All tokens of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tokens(Vec<Token>);

impl Tokens {
    /// Reads the file called `file`.
    pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Self, Denied> {
        let node = yaml::parse(bytes).map_err(|problem| refusal(file, &[problem]))?;
        let mut report = Report::new(Dialect::Addonfs);
        let mut tokens: Vec<Token> = Vec::new();
        if let Some(mut top) = Field::root(&node).fields(&mut report) {
            let items = top.take("tokens").and_then(|f| f.items(&mut report)).unwrap_or_default();
            if let Some(beyond) = items.get(MAX_TOKENS) {
                report.problem(beyond, format!("more than {MAX_TOKENS} tokens"), "");
            }
            for item in items.iter().take(MAX_TOKENS) {
                let Some(token) = token(item, &mut report) else { continue };
                if tokens.iter().any(|other| other.name == token.name || other.hash == token.hash) {
                    report.problem(item, "its name or hash stands above already", "");
                }
                tokens.push(token);
            }
            top.finish(&mut report);
        }
        report.finish(file)?;
        Ok(Self(tokens))
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The token that was presented. Takes the same time whichever it is, and whether there is one.
    pub(crate) fn find(&self, presented: &str) -> Option<&Token> {
        if presented.len() > MAX_TOKEN {
            return None;
        }
        let hash = Digest::of(presented.as_bytes());
        let mut found = None;
        for token in &self.0 {
            let same =
                aws_lc_rs::constant_time::verify_slices_are_equal(token.hash.as_bytes(), hash.as_bytes());
            if same.is_ok() {
                found = Some(token);
            }
        }
        found
    }
}

fn token(item: &Field<'_>, report: &mut Report) -> Option<Token> {
    let mut fields = item.fields(report)?;
    let name = fields.take("name").and_then(|f| f.text(report));
    let hash = fields.take("sha256").and_then(|field| {
        let text = field.text(report)?;
        let hash = Digest::from_hex(&text);
        if hash.is_none() {
            report.problem(&field, "no SHA-256 in hexadecimal", "printf %s \"$TOKEN\" | sha256sum");
        }
        hash
    });
    let mut scopes = Vec::new();
    for scope in fields.take("scopes").and_then(|f| f.items(report)).unwrap_or_default() {
        let Some(text) = scope.text(report) else { continue };
        match Scope::ALL.into_iter().find(|known| known.as_str() == text) {
            Some(known) => scopes.push(known),
            None => {
                let known = Scope::ALL.map(Scope::as_str).join(", ");
                report.problem(&scope, format!("unknown scope {text:?}"), format!("known are {known}"));
            }
        }
    }
    fields.finish(report);
    let named = name.filter(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic()));
    if named.is_none() || hash.is_none() || scopes.is_empty() {
        report.problem(item, "a token needs a name, sha256 and scopes", "");
    }
    Some(Token { name: named?, hash: hash?, scopes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_hashes_to_a_line_is_a_token() {
        let text = format!(
            "tokens:\n  - {{name: ci, sha256: {}, scopes: [runs:write, runs:read]}}\n  - {{name: eye, sha256: {}, scopes: [jobs:read]}}\n",
            Digest::of(b"secret-1").hex(),
            Digest::of(b"secret-2").hex()
        );
        let tokens = Tokens::parse("t", text.as_bytes()).unwrap();
        assert_eq!(tokens.find("secret-1").unwrap().scopes, [Scope::RunsWrite, Scope::RunsRead]);
        assert_eq!(tokens.find("secret-2").unwrap().name, "eye");
        for wrong in ["", "secret-3", "ci", &Digest::of(b"secret-1").hex(), &"x".repeat(MAX_TOKEN + 1)] {
            assert_eq!(tokens.find(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn mistakes_are_placed() {
        let hash = Digest::of(b"x").hex();
        for (text, part) in [
            ("tokens: [{name: a, token: plain, scopes: [jobs:read]}]".to_owned(), "unknown key"),
            (format!("tokens: [{{name: a, sha256: {hash}, scopes: [jobs:all]}}]"), "unknown scope"),
            (format!("tokens: [{{name: a, sha256: {hash}, scopes: []}}]"), "needs a name"),
            (format!("tokens: [{{name: '', sha256: {hash}, scopes: [jobs:read]}}]"), "needs a name"),
            ("tokens: [{name: a, sha256: abc, scopes: [jobs:read]}]".to_owned(), "no SHA-256"),
            (
                format!(
                    "tokens: [{{name: a, sha256: {hash}, scopes: [jobs:read]}}, {{name: b, sha256: {hash}, scopes: [jobs:read]}}]"
                ),
                "stands above",
            ),
        ] {
            let denied = Tokens::parse("t.yaml", text.as_bytes()).unwrap_err();
            assert!(denied.message.contains("t.yaml: line 1") && denied.message.contains(part), "{denied}");
        }
    }
}

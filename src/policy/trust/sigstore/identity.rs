//! Who may sign without a key of his own: the issuer and the subject that a certificate names, each by an expression.
//!
//! As cosign's `--certificate-identity-regexp` and Flux's `matchOIDCIdentity`: RE2 syntax, not anchored, so that
//! `https://github.com/org/` also matches where it stands in the middle. What the two syntaxes read differently is refused.

use std::fmt;

use regex::{Regex, RegexBuilder};
use serde::Serialize;

/// Longest expression in bytes; real ones have some hundred.
const MAX_EXPRESSION: usize = 2048;
/// Memory of one compiled expression: what a repetition of a repetition would ask for is refused.
const MAX_COMPILED: usize = 1 << 20;

/// A pair of expressions, both of which must match.
#[derive(Debug, Clone)]
pub struct Identity {
    issuer: Expression,
    subject: Expression,
}

#[derive(Clone)]
struct Expression(Regex);

impl Identity {
    /// Compiles the two expressions. The reason completes "trust.identities …".
    pub fn new(issuer: &str, subject: &str) -> Result<Self, String> {
        Ok(Self { issuer: Expression::new("issuer", issuer)?, subject: Expression::new("subject", subject)? })
    }

    /// Whether a certificate with this issuer and subject is meant.
    pub fn matches(&self, issuer: &str, subject: &str) -> bool {
        self.issuer.matches(issuer) && self.subject.matches(subject)
    }

    /// Whether it is made of these two expressions, letter for letter.
    pub fn is(&self, issuer: &str, subject: &str) -> bool {
        self.issuer.0.as_str() == issuer && self.subject.0.as_str() == subject
    }

    /// Which of the two expressions is not tied to both ends, so that it matches more than it seems to.
    pub fn loose(&self) -> Option<&'static str> {
        let tied = |expression: &Expression| {
            let text = expression.0.as_str();
            text.starts_with('^') && text.ends_with('$') && !text.ends_with("\\$")
        };
        match (tied(&self.issuer), tied(&self.subject)) {
            (true, true) => None,
            (false, _) => Some("issuer"),
            (true, false) => Some("subject"),
        }
    }
}

impl Expression {
    fn new(what: &str, text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err(format!(
                "has an entry without {what}: keyless signatures need both, issuer and subject"
            ));
        }
        if text.len() > MAX_EXPRESSION {
            return Err(format!("has {what} of {} bytes, more than {MAX_EXPRESSION}", text.len()));
        }
        if let Some(odd) = read_otherwise(text) {
            return Err(format!("has {what} {text:?}: {odd} is not RE2"));
        }
        let built = RegexBuilder::new(text).size_limit(MAX_COMPILED).build();
        built.map(Self).map_err(|error| {
            let last = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
            format!("has {what} {text:?}: {last}")
        })
    }

    /// Names beyond ASCII never match: the two syntaxes differ in what a letter is.
    fn matches(&self, name: &str) -> bool {
        let plain = |b: u8| b.is_ascii_graphic() || b == b' ';
        name.bytes().all(plain) && self.0.is_match(name)
    }
}

/// Something that RE2 reads otherwise than the crate `regex` does: set operations and sets within sets, which RE2 takes
/// for plain characters, and the flag `x`, which it does not know.
fn read_otherwise(text: &str) -> Option<&'static str> {
    let (mut set, mut first) = (false, false);
    let mut bytes = text.bytes().enumerate().peekable();
    while let Some((at, byte)) = bytes.next() {
        let rest = text.get(at..).unwrap_or_default();
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'[' if !set => (set, first) = (true, true),
            b']' if set && !first => set = false,
            b'[' if !rest.starts_with("[:") => return Some("a set within a set"),
            b'[' => {
                // `[:alpha:]`, up to its end
                while bytes.next_if(|(_, b)| *b != b']').is_some() {}
                bytes.next();
            }
            _ if set && ["&&", "--", "~~"].iter().any(|op| rest.starts_with(op)) => {
                return Some("an operation on sets");
            }
            b'(' if !set && rest.starts_with("(?") => {
                let flag = |b: &u8| b.is_ascii_alphabetic() || *b == b'-';
                let mut flags = rest.bytes().skip(2).take_while(flag);
                if !rest.starts_with("(?P") && flags.any(|flag| matches!(flag, b'x' | b'u' | b'R')) {
                    return Some("a flag other than i, m, s and U");
                }
            }
            _ => {}
        }
        if set && byte != b'[' && !(first && byte == b'^') {
            first = false;
        }
    }
    None
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0.as_str(), f)
    }
}

impl Serialize for Identity {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let mut shown = to.serialize_struct("Identity", 2)?;
        shown.serialize_field("issuer", self.issuer.0.as_str())?;
        shown.serialize_field("subject", self.subject.0.as_str())?;
        shown.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUER: &str = "https://token.actions.githubusercontent.com";

    #[test]
    fn both_expressions_match_as_re2_does() {
        let subject = "https://github.com/org/repo/.github/workflows/release.yml@refs/tags/v1.2.3";
        for (issuer, expression, matches) in [
            (r"^https://token\.actions\.githubusercontent\.com$", r"^https://github\.com/org/.*$", true),
            // Not anchored unless it says so.
            ("token", "org/repo", true),
            ("^token", "org/repo", false),
            ("token", "^org/repo", false),
            ("token", r"release\.yml@refs/tags/v\d+\.\d+\.\d+$", true),
            ("token", r"release\.yml@refs/tags/v\d+$", false),
            ("token", "(?i)ORG/REPO", true),
            ("token", "ORG/REPO", false),
            ("token", "[[:alpha:]]+/repo", true),
            ("^$", ".*", false),
        ] {
            let identity = Identity::new(issuer, expression).unwrap();
            assert_eq!(identity.matches(ISSUER, subject), matches, "{issuer} {expression}");
        }
        // Beyond ASCII nothing matches, nor across lines.
        let any = Identity::new(".*", "(?s).*").unwrap();
        assert!(any.matches(ISSUER, "a@b"));
        for odd in ["ä@b", "a@b\n", "a\0@b"] {
            assert!(!any.matches(ISSUER, odd), "{odd:?}");
        }
    }

    #[test]
    fn refuses_what_is_no_expression_of_re2() {
        for (bad, word) in [
            ("", "without"),
            ("(", "unclosed"),
            ("[a-z&&[^b]]", "set"),
            ("[a--b]", "operation"),
            ("[[a]]", "set within"),
            ("[^[a]]", "set within"),
            ("(?x)a b", "flag"),
            ("(?i-u:a)", "flag"),
            (r"(?=a)", "look-around"),
            (r"(a)\1", "backreferences"),
            ("a{1000}{1000}", "limit"),
            (&"a".repeat(2049), "more than"),
        ] {
            let why = Identity::new("x", bad).unwrap_err();
            assert!(why.contains(word), "{bad:.20}: {why}");
        }
        for good in
            [r"[\[a]", "[]a]", "[^]a]", r"\[[a-z]", "[a-z-]", "a--b", "a&&b", "(?P<n>a)", "[[:^digit:]x]"]
        {
            assert!(Identity::new("x", good).is_ok(), "{good}");
        }
    }

    #[test]
    fn says_what_is_not_tied() {
        for (issuer, subject, loose) in [
            ("^a$", "^b$", None),
            ("^a", "^b$", Some("issuer")),
            ("^a$", "b$", Some("subject")),
            ("^a$", r"^b\$", Some("subject")),
        ] {
            assert_eq!(Identity::new(issuer, subject).unwrap().loose(), loose);
        }
    }
}

//! Who signed, by distinguished name: what `trustedIdentities` demand of a signing certificate's subject
//! ("Trusted Identities Constraints" in Notary's `trust-store-trust-policy.md`; RFC 4514 for the text).

use std::fmt;

use der::{Tag, Tagged as _};
use x509_cert::name::Name;

/// Attribute types by their short names (RFC 4514, section 3, and those that certificates have beside).
static TYPES: [(&str, &str); 13] = [
    ("C", "2.5.4.6"),
    ("ST", "2.5.4.8"),
    ("S", "2.5.4.8"),
    ("L", "2.5.4.7"),
    ("O", "2.5.4.10"),
    ("OU", "2.5.4.11"),
    ("CN", "2.5.4.3"),
    ("STREET", "2.5.4.9"),
    ("POSTALCODE", "2.5.4.17"),
    ("SERIALNUMBER", "2.5.4.5"),
    ("DC", "0.9.2342.19200300.100.1.25"),
    ("UID", "0.9.2342.19200300.100.1.1"),
    ("EMAILADDRESS", "1.2.840.113549.1.9.1"),
];

/// What every identity must name.
const MANDATORY: [(&str, &str); 3] = [("C", "2.5.4.6"), ("ST", "2.5.4.8"), ("O", "2.5.4.10")];

/// Attributes that a subject must have, with these values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    written: String,
    /// Object identifiers with values.
    attributes: Vec<(&'static str, String)>,
}

impl Identity {
    /// Reads what stands behind `x509.subject:`. The reason completes "the trusted identity … ".
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut attributes: Vec<(&'static str, String)> = Vec::new();
        for part in split(text)? {
            let (name, value) =
                part.split_once('=').ok_or_else(|| format!("has {part:?} without a value"))?;
            let name = name.trim();
            let known = TYPES.iter().find(|(short, _)| short.eq_ignore_ascii_case(name));
            let oid = known.ok_or_else(|| format!("names an attribute {name:?} that is not known"))?.1;
            if attributes.iter().any(|(known, _)| *known == oid) {
                return Err(format!("names {name} twice"));
            }
            let value = unescape(value)?;
            if value.is_empty() {
                return Err(format!("has no value for {name}"));
            }
            attributes.push((oid, value));
        }
        for (name, oid) in MANDATORY {
            if !attributes.iter().any(|(known, _)| *known == oid) {
                return Err(format!("has no {name}: C, ST and O must be there"));
            }
        }
        Ok(Self { written: text.trim().to_owned(), attributes })
    }

    /// Whether the subject has every attribute once, with that very value.
    pub(super) fn matches(&self, subject: &Name) -> bool {
        self.attributes.iter().all(|(oid, value)| {
            let all = subject.0.iter().flat_map(|rdn| rdn.0.iter());
            let mut found = all.filter(|attribute| attribute.oid.to_string() == *oid);
            match (found.next(), found.next()) {
                (Some(only), None) => text(&only.value).is_some_and(|text| text == value),
                _ => false,
            }
        })
    }

    /// Whether whatever `other` matches is matched by this one, too.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.attributes.iter().all(|attribute| other.attributes.contains(attribute))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.written)
    }
}

/// The value of an attribute, where it is of a type that has one reading.
fn text(value: &der::Any) -> Option<&str> {
    match value.tag() {
        Tag::Utf8String => std::str::from_utf8(value.value()).ok(),
        Tag::PrintableString | Tag::Ia5String | Tag::NumericString => {
            std::str::from_utf8(value.value()).ok().filter(|text| text.is_ascii())
        }
        _ => None,
    }
}

/// At commas that are not escaped.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(text.get(start..at).unwrap_or_default());
                start = at + 1;
            }
            ';' | '"' | '<' | '>' => return Err(format!("has {c:?}, which must be written as \\{c}")),
            '+' => return Err("joins attributes with +, which is not supported".to_owned()),
            _ => {}
        }
    }
    parts.push(text.get(start..).unwrap_or_default());
    Ok(parts)
}

/// RFC 4514, section 2.4: spaces around are not the value's, unless escaped.
fn unescape(written: &str) -> Result<String, String> {
    let written = written.trim_start();
    if written.starts_with('#') {
        return Err("has a value in hexadecimal (=#), which is not supported".to_owned());
    }
    let (mut value, mut kept) = (Vec::new(), 0);
    let mut rest = written.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            value.extend(c.encode_utf8(&mut [0; 4]).bytes());
            if c != ' ' {
                kept = value.len();
            }
            continue;
        }
        let next = rest.next().ok_or("ends in a backslash")?;
        if let Some(high) = next.to_digit(16) {
            let low = rest.next().and_then(|c| c.to_digit(16)).ok_or("has half an escaped byte")?;
            value.push(u8::try_from(high * 16 + low).unwrap_or_default());
        } else if " ,;+\"<>=#\\".contains(next) {
            value.push(u8::try_from(next).unwrap_or_default());
        } else {
            return Err(format!("escapes {next:?}, which needs it not"));
        }
        kept = value.len();
    }
    value.truncate(kept);
    String::from_utf8(value).map_err(|_| "has a value that is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use super::*;

    #[test]
    fn reads_what_rfc_4514_writes() {
        for (text, value) in [
            ("C=US, ST=WA, O=wabbit-network.io", "wabbit-network.io"),
            (" C=US,ST=WA,O=  a b  ", "a b"),
            (r"C=US,ST=WA,O=a\, b\;\\c", r"a, b;\c"),
            (r"C=US,S=WA,o=\ a\ ", " a "),
            (r"C=US,ST=WA,O=M\C3\BCller", "Müller"),
            ("C=US,ST=WA,O=a=b", "a=b"),
        ] {
            let identity = Identity::parse(text).unwrap();
            assert_eq!(identity.attributes[2], ("2.5.4.10", value.to_owned()), "{text}");
        }
    }

    #[test]
    fn refuses_what_says_too_little_or_two_things() {
        for (text, word) in [
            ("", "without a value"),
            ("C=US,ST=WA", "has no O"),
            ("C=US,O=x", "has no ST"),
            ("C=US,ST=WA,O=", "no value"),
            ("C=US,ST=WA,O=x,O=y", "twice"),
            ("C=US,ST=WA,S=WA,O=x", "twice"),
            ("C=US,ST=WA,O=x+OU=y", "+"),
            ("C=US,ST=WA;O=x", ";"),
            ("C=US,ST=WA,O=\"x\"", "\""),
            ("C=US,ST=WA,O=#04024869", "hexadecimal"),
            ("C=US,ST=WA,O=x\\", "backslash"),
            ("C=US,ST=WA,O=x\\q", "escapes"),
            ("C=US,ST=WA,O=x\\C", "half"),
            ("C=US,ST=WA,O=\\FF", "UTF-8"),
            ("C=US,ST=WA,O=x,1.2.3=y", "not known"),
        ] {
            let reason = Identity::parse(text).unwrap_err();
            assert!(reason.contains(word), "{text}: {reason}");
        }
    }

    #[test]
    fn matches_subjects_that_have_all_of_it_once() {
        let identity = Identity::parse("C=US,ST=WA,O=x").unwrap();
        for (subject, expected) in [
            ("C=US,ST=WA,O=x", true),
            ("CN=y,O=x,ST=WA,C=US", true),
            ("C=US+ST=WA,O=x", true),
            ("C=US,ST=WA,O=X", false),
            ("C=US,ST=WA,O=x ,CN=y", false),
            ("C=US,ST=WA", false),
            ("C=US,ST=WA,O=x,O=x", false),
            ("C=US,ST=WA,O=y,O=x", false),
            ("C=US,ST=WA,OU=x", false),
        ] {
            assert_eq!(identity.matches(&Name::from_str(subject).unwrap()), expected, "{subject}");
        }
    }

    #[test]
    fn covering_is_the_other_way_round_than_having_more() {
        let (wide, narrow) = (Identity::parse("C=US,ST=WA,O=x"), Identity::parse("C=US,ST=WA,O=x,OU=y"));
        let (wide, narrow) = (wide.unwrap(), narrow.unwrap());
        assert!(wide.covers(&narrow) && !narrow.covers(&wide) && wide.covers(&wide));
    }
}

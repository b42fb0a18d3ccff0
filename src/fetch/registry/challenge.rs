//! `WWW-Authenticate` (RFC 9110 section 11.6.1; distribution `docs/content/spec/auth/token.md`).
//!
//! In: header values as a registry sent them, which may be anything. Out: the challenges we know how to answer.

/// One challenge: a scheme and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Send the name and password with every request.
    Basic,
    /// Get a token from the service at `realm`.
    Bearer {
        /// The address of the token service, as written.
        realm: String,
        /// The name of the registry at the token service.
        service: Option<String>,
    },
}

/// The longest header value that is looked at; real ones are a few hundred bytes.
const MAX_HEADER: usize = 8 * 1024;

/// The challenges in one header value. What is malformed or of an unknown scheme is left out.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    if header.len() > MAX_HEADER {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut rest = header;
    while let Some((scheme, params, after)) = next_challenge(rest) {
        rest = after;
        let get = |name: &str| {
            params.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            found.push(Challenge::Bearer { realm, service: get("service") });
        }
    }
    found
}

type Params = Vec<(String, String)>;

/// `scheme SP key=value, key="value"` up to the next scheme, which is a token that no `=` follows.
fn next_challenge(text: &str) -> Option<(&str, Params, &str)> {
    let text = text.trim_start_matches([' ', '\t', ',']);
    let (scheme, mut rest) = token(text)?;
    let mut params = Vec::new();
    loop {
        let here = rest.trim_start_matches([' ', '\t', ',']);
        let Some((key, after)) = token(here) else { return Some((scheme, params, skip_garbage(here))) };
        let Some(value) = after.trim_start().strip_prefix('=') else { return Some((scheme, params, here)) };
        let (value, after) = value_of(value.trim_start());
        params.push((key.to_owned(), value));
        rest = after;
    }
}

/// Leaves out what is neither a parameter nor a scheme, so that parsing always ends.
fn skip_garbage(text: &str) -> &str {
    text.find(',').map_or("", |at| &text[at..])
}

fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// A quoted string with its escapes undone, or everything up to a comma or blank.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, quoted.get(at + 1..).unwrap_or("")),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) }
    }

    #[test]
    fn reads_what_registries_send() {
        let table = [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![bearer("https://auth.docker.io/token", Some("registry.docker.io"))],
            ),
            (r#"Basic realm="Registry""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (r#"bearer  realm = "https://x/t""#, vec![bearer("https://x/t", None)]),
            ("Bearer realm=https://x/t,service=s", vec![bearer("https://x/t", Some("s"))]),
            (
                r#"Bearer realm="https://x/\"q\"",error="invalid_token""#,
                vec![bearer("https://x/\"q\"", None)],
            ),
            (
                r#"Negotiate, Basic realm="a, b", Bearer realm="https://x/t""#,
                vec![Challenge::Basic, bearer("https://x/t", None)],
            ),
            (r#"Bearer service="s""#, vec![]),
            ("", vec![]),
            (", ,, =\"", vec![]),
            (r#"Bearer realm="never closed"#, vec![bearer("never closed", None)]),
            ("Bearer realm=\"a\" é Basic", vec![bearer("a", None)]),
        ];
        for (header, expected) in table {
            assert_eq!(parse(header), expected, "{header}");
        }
        assert!(parse(&"Basic,".repeat(4096)).is_empty());
    }
}

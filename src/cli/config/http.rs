//! The section `http`: where the REST interface listens, and the file of its tokens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Files;
use crate::cli::http::tokens::Tokens;
use crate::policy::fields::{Field, Fields, Report};

/// The unix socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Socket {
    /// `http.sock` in the state directory.
    #[default]
    Usual,
    /// Somewhere else.
    At(PathBuf),
    /// None.
    Off,
}

/// The section.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Http {
    /// `socket`.
    pub socket: Socket,
    /// `listen`: an address for TCP.
    pub listen: Option<SocketAddr>,
    /// `export`: `/runs/{id}/events.ndjson` is offered.
    pub export: bool,
    /// Content of the file `tokens`.
    pub tokens: Arc<Tokens>,
}

impl Http {
    /// What only a new mount can change.
    pub(super) fn fixed(&self) -> (&Socket, Option<SocketAddr>, bool) {
        (&self.socket, self.listen, self.export)
    }
}

/// Takes the section.
pub(super) fn http(fields: &mut Fields<'_>, base: &Path, files: &Files, report: &mut Report) -> Http {
    let mut http = Http::default();
    if let Some(text) = fields.take("socket").and_then(|f| f.text(report)) {
        http.socket = if text == "none" { Socket::Off } else { Socket::At(base.join(text)) };
    }
    http.export = fields.take("export").and_then(|f| f.flag(report)).unwrap_or(false);
    let cleartext = fields.take("cleartext").and_then(|f| f.flag(report)).unwrap_or(false);
    if let Some(field) = fields.take("tokens") {
        http.tokens = Arc::new(tokens(&field, base, files, report));
    }
    if let Some(field) = fields.take("listen") {
        http.listen = listen(&field, cleartext, report);
        if http.tokens.is_empty() {
            report.problem(&field, "listen without tokens lets nobody in", "write tokens: FILE");
        }
    }
    http
}

/// Tokens go over the line as they are: beyond this host that must be said to be known.
fn listen(field: &Field<'_>, cleartext: bool, report: &mut Report) -> Option<SocketAddr> {
    let text = field.text(report)?;
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() || cleartext => Some(address),
        Ok(_) => {
            let words = format!("{text} is beyond this host, and tokens would be readable on the way");
            report.problem(field, words, "listen on 127.0.0.1 behind a TLS proxy, or say cleartext: true");
            None
        }
        Err(_) => {
            report.problem(field, format!("{text:?} is no address"), "write 127.0.0.1:8477");
            None
        }
    }
}

fn tokens(field: &Field<'_>, base: &Path, files: &Files, report: &mut Report) -> Tokens {
    let Some(path) = field.text(report).map(|text| base.join(text)) else { return Tokens::default() };
    let file = path.display().to_string();
    let parsed = match files.read_private(&path) {
        Ok(bytes) => Tokens::parse(&file, &bytes).map_err(|denied| denied.message),
        Err(error) => Err(format!("{file} cannot be used: {error}")),
    };
    parsed.map_err(|words| report.problem(field, words, "")).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::policy::fields::Dialect;
    use crate::policy::yaml;

    /// A file `tokens.yaml` of this mode, with one token.
    pub(in crate::cli::config) fn token_file(dir: &Path, mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        let hash = crate::policy::digest::Digest::of(b"x").hex();
        let tokens = dir.join("tokens.yaml");
        std::fs::write(&tokens, format!("tokens: [{{name: x, sha256: {hash}, scopes: ['jobs:read']}}]"))
            .unwrap();
        std::fs::set_permissions(tokens, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Reads a section beside such a file.
    fn section(text: &str, mode: u32) -> Result<Http, String> {
        let dir = tempfile::tempdir().unwrap();
        token_file(dir.path(), mode);
        let node = yaml::parse(text.as_bytes()).unwrap();
        let mut report = Report::new(Dialect::Addonfs);
        let mut fields = Field::root(&node).fields(&mut report).unwrap();
        let http = http(&mut fields, dir.path(), &Files::default(), &mut report);
        fields.finish(&mut report);
        report.finish("f").map(|_| http).map_err(|denied| denied.message)
    }

    #[test]
    fn the_section_is_read() {
        let text = "{socket: api.sock, listen: '127.0.0.1:8477', tokens: tokens.yaml, export: true}";
        let http = section(text, 0o600).unwrap();
        assert!(matches!(&http.socket, Socket::At(path) if path.is_absolute() && path.ends_with("api.sock")));
        assert_eq!(http.listen, Some(([127, 0, 0, 1], 8477).into()));
        assert!(http.export && !http.tokens.is_empty());
        assert_eq!(section("{}", 0o600).unwrap(), Http::default());
    }

    #[test]
    fn what_lets_nobody_or_everybody_in_is_refused() {
        for (text, mode, part) in [
            ("listen: 127.0.0.1:1", 0o600, "lets nobody in"),
            ("{listen: '0.0.0.0:1', tokens: tokens.yaml}", 0o600, "beyond this host"),
            ("{listen: localhost, tokens: tokens.yaml}", 0o600, "no address"),
            ("tokens: tokens.yaml", 0o640, "chmod 0600"),
            ("tokens: tokens.yaml", 0o604, "chmod 0600"),
            ("tokens: gone.yaml", 0o600, "gone.yaml"),
        ] {
            let words = section(text, mode).unwrap_err();
            assert!(words.contains(part), "{text}: {words}");
        }
        let open = section("{listen: '[::]:1', cleartext: true, tokens: tokens.yaml}", 0o400).unwrap();
        assert_eq!(open.listen.unwrap().port(), 1);
        assert_eq!(section("socket: none", 0o600).unwrap().socket, Socket::Off);
    }
}

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

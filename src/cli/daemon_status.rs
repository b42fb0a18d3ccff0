//! `.addonfs/status.json` as the commands read it: through the mount, like anybody else.

use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

/// What the commands need of the daemon's status; further fields are kept in [`StatusFile::raw`].
#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    /// Process id of the daemon.
    pub pid: i32,
    /// Every source is shown, refused or failed.
    pub settled: bool,
    /// The sources, in the order of the configuration.
    pub sources: Vec<SourceLine>,
}

/// One source in the status.
#[derive(Debug, Deserialize)]
pub(crate) struct SourceLine {
    /// Its name.
    pub name: String,
    /// Its path below the mount point.
    pub mount_path: String,
    /// How far it is.
    pub phase: String,
    /// Whether its `rootfs` is there.
    pub ready: bool,
    /// Refused or failed: the published code.
    #[serde(default)]
    pub code: Option<String>,
    /// Refused or failed: the words.
    #[serde(default)]
    pub message: Option<String>,
    /// Bytes fetched and to fetch, while it fetches.
    #[serde(default)]
    pub progress: Option<Progress>,
}

/// Bytes done of bytes in all.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Progress {
    /// Fetched.
    pub done: u64,
    /// In all.
    pub total: u64,
}

impl SourceLine {
    /// Whether nothing more happens to it without somebody doing something.
    pub(crate) fn refused(&self) -> bool {
        matches!(self.phase.as_str(), "refused" | "failed")
    }

    /// The refusal in one line.
    pub(crate) fn why(&self) -> String {
        let code = self.code.as_deref().unwrap_or("unknown");
        let message = self.message.as_deref().unwrap_or("no reason was given");
        format!("{}: {code}: {message}", self.name)
    }
}

/// Reads the status of the daemon that serves `mount`.
pub(crate) fn read(mount: &Path) -> anyhow::Result<(Status, serde_json::Value)> {
    let path = mount.join(".addonfs/status.json");
    let bytes = std::fs::read(&path).map_err(|error| match error.raw_os_error() {
        Some(nix::libc::ENOTCONN) => anyhow::anyhow!(
            "the daemon behind {} is gone: `addonfs umount {0}` clears it, `addonfs mount` starts a new one",
            mount.display()
        ),
        _ => anyhow::Error::new(error)
            .context(format!("cannot read {}: is addonfs mounted there?", path.display())),
    })?;
    let raw: serde_json::Value =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", path.display()))?;
    let status = serde_json::from_value(raw.clone())
        .with_context(|| format!("{} is of another version of addonfs", path.display()))?;
    Ok((status, raw))
}

/// Writes one command line to a `ctl` and reads the reply from the same descriptor. A refusal is the error.
pub(crate) fn command(ctl: &Path, line: &str) -> anyhow::Result<String> {
    use std::io::{Read as _, Write as _};
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(ctl)
        .with_context(|| format!("cannot open {}", ctl.display()))?;
    let written = file.write(format!("{line}\n").as_bytes());
    let mut reply = String::new();
    let read = file.read_to_string(&mut reply);
    match (written, read) {
        (Ok(_), Ok(_)) => Ok(reply),
        (Err(_), Ok(_)) if !reply.trim().is_empty() => anyhow::bail!("{}", reply.trim()),
        (Err(error), _) => Err(error).with_context(|| format!("{} refused {line:?}", ctl.display())),
        (Ok(_), Err(error)) => {
            Err(error).with_context(|| format!("cannot read the reply of {}", ctl.display()))
        }
    }
}

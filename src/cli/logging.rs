//! Structured logs: one line an event on stderr, JSON where asked for (`ADDONFS_LOG_FORMAT=json`), filtered by
//! `ADDONFS_LOG` (as in `addonfs=debug`). In the background stderr is `<state>/addonfs.log`, which is bounded.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use self::bounded::BoundedStderr;

mod bounded;

/// Who reads the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// A person at a terminal, perhaps.
    Terminal,
    /// A file.
    File,
}

/// Starts logging for this process. A second call changes nothing.
pub(crate) fn start(target: Target) {
    let filter =
        EnvFilter::try_from_env("ADDONFS_LOG").unwrap_or_else(|_| EnvFilter::new("addonfs=info,warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(BoundedStderr::default);
    let ansi = target == Target::Terminal && std::io::stderr().is_terminal();
    let _ = if std::env::var("ADDONFS_LOG_FORMAT").is_ok_and(|v| v == "json") {
        builder.json().try_init()
    } else {
        builder.with_ansi(ansi).try_init()
    };
}

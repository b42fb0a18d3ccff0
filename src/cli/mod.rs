//! Words to wiring: arguments, configuration, daemon start and stop, one file a command. Imports every room; no
//! room imports it.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the program.
pub fn run(_args: impl Iterator<Item = OsString>) -> ExitCode {
    ExitCode::SUCCESS
}

pub(crate) mod build;
pub(crate) mod keygen;
pub(crate) mod password;
pub(crate) mod push;
pub(crate) mod registry_access;
pub(crate) mod sign;

pub(crate) mod cancel;
pub(crate) mod job_files;
pub(crate) mod jobs;
pub(crate) mod logs;
pub(crate) mod mounted;
pub(crate) mod plan;
pub(crate) mod run;
pub(crate) mod runs;
pub(crate) mod table;

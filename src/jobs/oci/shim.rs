//! The process that owns one run.

use std::ffi::OsString;
use std::process::ExitCode;

/// The first argument of the re-executed program.
pub const ENTRY: &str = "__shim";

/// The shim process.
pub fn main(_args: &[OsString]) -> ExitCode {
    ExitCode::FAILURE
}

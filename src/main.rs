//! The `addonfs` program: words in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if let Some(code) = addonfs::jobs::reexecuted(&args) {
        return code;
    }
    addonfs::cli::run(args.into_iter())
}

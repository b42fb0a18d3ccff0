//! The `addonfs` program: words in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    addonfs::cli::run(std::env::args_os())
}

//! The one place that turns an error into words on stderr and an exit code.

use std::process::ExitCode;

/// Something was refused or failed.
pub(crate) const FAILURE: u8 = 1;

/// Of commands that answer a question: the answer could not be found out.
const UNKNOWN: u8 = 2;

/// The result of a command whose exit code is an answer: an error is none, and must not look like a no.
pub(crate) fn answered(result: anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    result.or_else(|error| {
        eprintln!("addonfs: {error:#}");
        Ok(ExitCode::from(UNKNOWN))
    })
}

/// Prints the error with its causes, unless it is a broken pipe, which is no news to anybody.
pub(crate) fn finish(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("addonfs: {error:#}");
            ExitCode::from(FAILURE)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

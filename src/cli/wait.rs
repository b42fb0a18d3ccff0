//! `addonfs wait`: until runs have ended.

use std::process::{Command, ExitCode};

use anyhow::Context as _;

use super::job_files::{MountArg, become_program, refused};

/// Wait for runs to end; exit with the run's code.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: the run's own; 124 at its timeout; 125 where addonfs refused it or it is lost; 143 after a cancel.
Of several runs the first code that is not 0, in the order given. A signal ends the waiting and not the run.

Examples:
  addonfs wait tools/backup/backup/nightly
  addonfs wait r17 r18 && echo both succeeded"
)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    mount: MountArg,
    /// The runs: id, JOB/NAME, or a name that only one job has
    #[arg(value_name = "RUN", required = true, num_args = 1..)]
    runs: Vec<String>,
}

/// Becomes the run's `wait`, or has those of several do it one after the other.
pub(crate) fn run(args: WaitArgs) -> anyhow::Result<ExitCode> {
    Ok(wait(&args).unwrap_or_else(|error| refused(&error)))
}

fn wait(args: &WaitArgs) -> anyhow::Result<ExitCode> {
    let tree = args.mount.tree()?;
    // All of them are looked up first: whoever mistypes the last one learns it now.
    let programs: Vec<_> =
        args.runs.iter().map(|run| Ok(tree.run(run)?.join("wait"))).collect::<anyhow::Result<_>>()?;
    if let [only] = programs.as_slice() {
        return Err(become_program(only, []));
    }
    let mut first = None;
    for program in programs {
        let status = Command::new(&program)
            .status()
            .with_context(|| format!("cannot execute {}", program.display()))?;
        first = first.or(status.code().filter(|code| *code != 0));
    }
    Ok(first.map_or(ExitCode::SUCCESS, |code| u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)))
}

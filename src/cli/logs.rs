//! `addonfs logs`: what a run has printed.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context as _;

use super::job_files::{MountArg, become_program};

/// Print the output of a run: its stdout on stdout, its stderr on stderr.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  addonfs logs tools/backup/backup/nightly
  addonfs logs -f nightly                 # until the run ends
  addonfs logs --stderr r17 | less        # only its stderr, on stdout")]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    mount: MountArg,
    /// Go on until the run ends
    #[arg(short = 'f', long)]
    follow: bool,
    /// Only the run's stderr, on stdout
    #[arg(long)]
    stderr: bool,
    /// The run: its id, JOB/NAME, or a name that only one job has
    #[arg(value_name = "RUN")]
    run: String,
}

/// Prints it.
pub(crate) fn run(args: LogsArgs) -> anyhow::Result<ExitCode> {
    let folder = args.mount.tree()?.run(&args.run)?;
    let follow = folder.join("follow");
    match (args.follow, args.stderr) {
        (true, false) => return Err(become_program(&follow, [])),
        (true, true) => return follow_stderr(&follow),
        (false, true) => copy(&folder.join("stderr"), io::stdout().lock())?,
        (false, false) => {
            copy(&folder.join("stdout"), io::stdout().lock())?;
            copy(&folder.join("stderr"), io::stderr().lock())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn copy(log: &Path, mut to: impl io::Write) -> anyhow::Result<()> {
    let mut file = File::open(log).with_context(|| format!("cannot open {}", log.display()))?;
    io::copy(&mut file, &mut to).with_context(|| format!("cannot copy {}", log.display()))?;
    Ok(to.flush()?)
}

/// `follow` with its stderr on our stdout.
fn follow_stderr(follow: &Path) -> anyhow::Result<ExitCode> {
    let ours = io::stdout();
    let ours = std::os::fd::AsFd::as_fd(&ours).try_clone_to_owned().context("cannot duplicate stdout")?;
    let status = Command::new(follow)
        .stdout(Stdio::null())
        .stderr(ours)
        .status()
        .with_context(|| format!("cannot execute {}", follow.display()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

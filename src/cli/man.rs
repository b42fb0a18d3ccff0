//! `addonfs man`: the manual, one page a command, made from the same words as `--help`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::args::Cli;

/// Write the manual pages: addonfs.1 and one for each command.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  addonfs man /usr/local/share/man/man1
  addonfs man . && man ./addonfs-run.1")]
pub(crate) struct ManArgs {
    /// The folder; made if it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Writes them.
pub(crate) fn run(args: ManArgs) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {}", args.dir.display()))?;
    // The commands of a command have pages too; `help` says nothing that they do not.
    let command = Cli::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, &args.dir)
        .with_context(|| format!("cannot write to {}", args.dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

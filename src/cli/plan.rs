//! `addonfs plan`: the same as executing `plan` in the job's folder.

use std::ffi::OsString;
use std::process::ExitCode;

use super::job_files::{MountArg, WishArgs, refused};

/// Show what a job would run with these arguments; runs nothing.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The plan is JSON: command, resolved arguments (secrets as \"[secret]\"), environment, limits,
network, image, trust. Exit code 125 where addonfs refuses.

Examples:
  addonfs plan tools/backup/backup --database app --s3-bucket b
  addonfs plan tools/backup/backup --args-json @args.json | jq .executor_preview.resources"
)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    mount: MountArg,
    #[command(flatten)]
    wishes: WishArgs,
    /// The job's id (its path below the mount point), then its arguments as for `addonfs run`
    // One list: whatever follows the job belongs to it, also what looks like an option of ours.
    #[arg(value_names = ["JOB", "ARGUMENT"], num_args = 1.., required = true)]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Becomes the job's `plan`.
pub(crate) fn run(args: PlanArgs) -> anyhow::Result<ExitCode> {
    Ok(refused(&args.mount.become_job("plan", args.wishes.options()?, args.words)))
}

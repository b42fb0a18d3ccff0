//! `addonfs run`: the same as executing `run` in the job's folder, which is what it does.

use std::ffi::OsString;
use std::process::ExitCode;

use super::job_files::{MountArg, WishArgs, refused};

/// Run a job: stream its output, end with its exit code.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: the job's own; 124 at its timeout; 125 where addonfs refuses or the run is lost;
128+n on a signal. Ctrl-C cancels the run, a second one kills it.

Examples:
  addonfs run tools/backup/backup --database app --s3-bucket b
  addonfs run tools/backup/backup --help                      # what the job takes
  addonfs run tools/backup/backup --args-json @args.json      # better for secrets than words
  pg_dump app | addonfs run -i tools/backup/store name=app    # stdin goes to the job"
)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    mount: MountArg,
    #[command(flatten)]
    wishes: WishArgs,
    /// Pass stdin on to the job
    #[arg(short = 'i', long = "stdin")]
    stdin: bool,
    /// The job's id (its path below the mount point), then its arguments: --name VALUE, --name=VALUE, name=VALUE, or
    /// --args-json JSON|@FILE|-
    // One list: whatever follows the job belongs to it, also what looks like an option of ours.
    #[arg(value_names = ["JOB", "ARGUMENT"], num_args = 1.., required = true)]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Becomes the job's `run`. Every failure to do so is a refusal: the job's own codes stay the job's.
pub(crate) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let mut options = args.wishes.options()?;
    options.extend(args.stdin.then(|| OsString::from("-i")));
    Ok(refused(&args.mount.become_job("run", options, args.words)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        args: super::RunArgs,
    }

    fn parse(line: &str) -> super::RunArgs {
        Program::try_parse_from(line.split(' ')).unwrap().args
    }

    #[test]
    fn what_follows_the_job_belongs_to_the_job() {
        let args = parse("run -i --mount /m a/b --help -i --mount x -- --stdin=1");
        assert!(args.stdin);
        assert_eq!(args.words, ["a/b", "--help", "-i", "--mount", "x", "--", "--stdin=1"]);
        let args = parse("run a/b -i");
        assert!(!args.stdin);
        assert_eq!(args.words, ["a/b", "-i"]);
        assert!(Program::try_parse_from(["run"]).is_err());
    }
}

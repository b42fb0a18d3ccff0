//! `addonfs cancel`: ends a run.

use std::io::Write as _;
use std::process::ExitCode;

use super::job_files::{MountArg, say};

/// Cancel a run: TERM, a grace time, then KILL.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  addonfs cancel tools/backup/backup/nightly
  addonfs cancel --kill r17               # at once
  addonfs cancel --signal HUP nightly     # only this signal")]
pub(crate) struct CancelArgs {
    #[command(flatten)]
    mount: MountArg,
    /// Do not wait for the job: KILL at once
    #[arg(long, conflicts_with = "signal")]
    kill: bool,
    /// Send this signal instead
    #[arg(long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// The run: its id, JOB/NAME, or a name that only one job has
    #[arg(value_name = "RUN")]
    run: String,
}

/// Says it to the run's `ctl`.
pub(crate) fn run(args: CancelArgs) -> anyhow::Result<ExitCode> {
    let line = match (&args.signal, args.kill) {
        (Some(signal), _) => {
            let plain = signal.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+');
            anyhow::ensure!(
                plain && !signal.is_empty(),
                "{signal:?} is not a signal: write TERM, HUP or a number"
            );
            format!("kill {signal}\n")
        }
        (None, true) => "kill\n".to_owned(),
        (None, false) => "cancel\n".to_owned(),
    };
    let tree = args.mount.tree()?;
    let reply = match tree.run(&args.run) {
        Ok(run) => say(&run.join("ctl"), &line)?,
        // Its add-on may not be shown any more: then the daemon still knows it by its id, or as JOB/NAME.
        Err(unknown) if line == "cancel\n" => {
            let known = say(&tree.ctl(), &format!("cancel {}\n", args.run));
            known.map_err(|_| unknown)?
        }
        Err(unknown) => return Err(unknown),
    };
    std::io::stdout().write_all(reply.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

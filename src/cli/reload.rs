//! `addonfs reload`: the configuration takes effect without a new mount.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::mount::settled;
use super::{daemon_status, mounted};

/// Read the configuration again: sources and policy take effect without a new mount.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A configuration that is wrong changes nothing: the words are printed, and the exit code is 1.
SIGHUP to the daemon does the same, and so does the line `reload` written to .addonfs/ctl.

Examples:
  addonfs reload
  addonfs reload --strict       # exit 1 if a source is refused or not settled in time, too"
)]
pub(crate) struct ReloadArgs {
    /// Fail if any source is refused or not settled in time
    #[arg(long)]
    strict: bool,
    /// Print the status as JSON once settled
    #[arg(long, short, value_name = "FORMAT", value_parser = ["json"])]
    output: Option<String>,
    /// The mount point [default: the only one there is]
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
}

/// How long reading and judging may take: registries have 5 s of it.
const ANSWERED: Duration = Duration::from_secs(60);
/// Between two looks at the status.
const LOOK: Duration = Duration::from_millis(20);

/// Runs the command.
pub(crate) fn run(args: ReloadArgs) -> anyhow::Result<ExitCode> {
    let mount = mounted::chosen(args.mount.as_deref())?;
    let reply = daemon_status::command(&mount.join(".addonfs/ctl"), "reload")?;
    let number: u64 = reply
        .trim()
        .strip_prefix("reload ")
        .and_then(|number| number.parse().ok())
        .context("the daemon is of another version of addonfs")?;
    let deadline = Instant::now() + ANSWERED;
    let answer = loop {
        let (_, raw) = daemon_status::read(&mount)?;
        let answer = raw["configuration"].clone();
        if answer["answered"].as_u64().is_some_and(|answered| answered >= number) {
            break answer;
        }
        if Instant::now() > deadline {
            bail!(
                "the reload is not done after {} s: `addonfs status -o json` shows when it is",
                ANSWERED.as_secs()
            );
        }
        std::thread::sleep(LOOK);
    };
    if let Some(error) = answer["error"].as_str() {
        bail!("{error}\nthe configuration stays as it was");
    }
    for warning in answer["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("addonfs: warning: {warning}");
    }
    settled(&mount, args.strict, args.output.is_some())
}

//! `addonfs umount`: takes a mount down, unless jobs still run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::{daemon_status, mounted};
use crate::fs::kernel::mount::{self, State};

/// Take a mount down.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  addonfs umount /mnt/addons             # refused while jobs run, and says which
  addonfs umount --wait /mnt/addons      # waits for them
  addonfs umount --cancel /mnt/addons    # cancels them")]
pub(crate) struct UmountArgs {
    /// Cancel the jobs that run
    #[arg(long, conflicts_with = "wait")]
    cancel: bool,
    /// Wait until the jobs that run have ended
    #[arg(long)]
    wait: bool,
    /// The mount point [default: the only one there is]
    dir: Option<PathBuf>,
}

/// How long the daemon may take from the accepted `stop` until the mount is gone: canceled jobs get 10 s to end.
const GONE: Duration = Duration::from_secs(45);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Runs the command.
pub(crate) fn run(args: UmountArgs) -> anyhow::Result<ExitCode> {
    let mount = mounted::chosen(args.dir.as_deref())?;
    let mount = if mounted::is_mounted(&mount) { mount } else { mount.canonicalize()? };
    let connection = mount::connection_of(&mount)
        .with_context(|| format!("{} is not an addonfs mount", mount.display()))?;
    let status = match daemon_status::read(&mount) {
        Ok((status, _)) => status,
        Err(_) if matches!(mount::state(&mount, connection), State::Dead) => return clear_dead(&mount),
        // A live daemon may have live runs: it is not for us to cut it off because we do not understand it.
        Err(error) => {
            return Err(error.context(format!(
                "{} has a daemon that this addonfs cannot talk to, so nothing was taken down (use the addonfs that \
                 mounted it; `umount --lazy` detaches it whatever runs)",
                mount.display()
            )));
        }
    };
    let word = match (args.cancel, args.wait) {
        (true, _) => "stop cancel",
        (_, true) => "stop wait",
        _ => "stop",
    };
    daemon_status::command(&mount.join(".addonfs/ctl"), word)?;
    wait_gone(&mount, status.pid, args.wait)?;
    Ok(ExitCode::SUCCESS)
}

/// A mount whose daemon and holder are both gone answers ENOTCONN to everything but being detached.
fn clear_dead(mount: &Path) -> anyhow::Result<ExitCode> {
    mount::unmount(mount).with_context(|| format!("cannot detach the dead mount {}", mount.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn wait_gone(mount: &Path, pid: i32, forever: bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + GONE;
    let process = PathBuf::from(format!("/proc/{pid}"));
    while mounted::is_mounted(mount) || process.exists() {
        if !forever && Instant::now() > deadline {
            anyhow::bail!("{} is still mounted after {} s: see the log", mount.display(), GONE.as_secs());
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

//! Cleaning up after a shim that was killed: its mounts went with it, these things do not.

use std::fs;
use std::io;
use std::path::Path;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use rustix::mount::UnmountFlags;

use super::launch::{self, ShimFile};
use crate::jobs::executor::ShimId;
use crate::jobs::spawner::{Identity, is_alive};

/// Cleans the run in this folder, if its shim is dead: kills what is left of the container and of the network tool,
/// removes the control group, the pipes and the mount point. A run whose shim lives is left alone. Safe to repeat.
pub fn run(run_dir: &Path) -> io::Result<()> {
    let file = match ShimFile::read(run_dir) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if alive(&file.shim) {
        return Ok(());
    }
    file.helpers.iter().for_each(kill);
    if let Some(group) = &file.cgroup {
        file.cgroups.kill(group);
        file.cgroups.remove(group)?;
    }
    for pipe in [launch::CONTROL, launch::STDIN] {
        let _ = fs::remove_file(run_dir.join(pipe));
    }
    let in_the_way = run_dir.join(launch::BOX);
    let _ = rustix::mount::unmount(&in_the_way, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    let _ = fs::remove_dir(&in_the_way);
    Ok(())
}

/// Cleans every run below `runs` (folders of runs, one level), for the start of a daemon. Returns the folders that
/// could not be cleaned, with the reason.
pub fn all(runs: &Path) -> Vec<(std::path::PathBuf, io::Error)> {
    let Ok(entries) = fs::read_dir(runs) else { return Vec::new() };
    let folders = entries.flatten().map(|entry| entry.path());
    folders.filter_map(|folder| run(&folder).err().map(|e| (folder, e))).collect()
}

pub(super) fn alive(shim: &ShimId) -> bool {
    is_alive(Identity { pid: shim.pid, start_ticks: shim.start_ticks })
}

/// Kills that very process, if it lives.
pub(super) fn kill(process: &ShimId) {
    if alive(process) {
        let _ = signal::kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
}

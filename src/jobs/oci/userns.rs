//! Without root: a user namespace in which we are root and own what we mount.
//!
//! One id is mapped, ours to 0, so the job runs as root of that namespace whatever `USER` says, and everything it
//! writes belongs to us. More ids would need newuidmap and ranges in /etc/subuid.

use std::fs;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// Enters a user namespace unless we are root. Returns whether it did.
pub(super) fn enter_if_needed() -> Result<bool, String> {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        return Ok(false);
    }
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| {
        format!(
            "cannot make a user namespace: {e}: jobs need root here, or unprivileged user namespaces enabled"
        )
    })?;
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text).map_err(|e| format!("user namespace, {file}: {e}"))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {uid} 1"))?;
    write("gid_map", format!("0 {gid} 1"))?;
    Ok(true)
}

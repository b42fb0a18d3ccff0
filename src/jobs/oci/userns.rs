//! Without root: a user namespace in which we are root and own what we mount.
//!
//! Our id is 0 in it. Where the host gives this user a range of further ids (/etc/subuid, /etc/subgid, newuidmap and
//! newgidmap of the package uidmap) they are 1 and up, and a job runs as the user its image names. Else there is one
//! id only: every job is root of that namespace whatever `USER` says, and everything it writes belongs to us.
#![allow(unsafe_code)] // fork(2) of the shim, which is single-threaded by construction.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, User, fork, getegid, geteuid};
use rustix::pipe::{PipeFlags, pipe_with};

use super::netns;
use super::network::find_program;
use super::user::JobUser;

/// Most that is read of /etc/subuid and /etc/subgid.
const FILE_MAX: u64 = 1 << 20;

/// The ids of the namespace: 0 up to this, exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapped {
    uids: u32,
    gids: u32,
}

impl Mapped {
    const ONE: Self = Self { uids: 1, gids: 1 };

    /// Whether jobs can be anybody but root of the namespace.
    pub(super) fn has_users(self) -> bool {
        self != Self::ONE
    }

    /// The user as far as this namespace has him.
    pub(super) fn admit(self, mut user: JobUser) -> Result<JobUser, String> {
        if user.uid >= self.uids || user.gid >= self.gids {
            return Err(format!(
                "the image's user {}:{} is beyond the {} uids and {} gids that /etc/subuid and /etc/subgid give this \
                 daemon's user: give it larger ranges",
                user.uid, user.gid, self.uids, self.gids
            ));
        }
        user.groups.retain(|&gid| gid < self.gids);
        Ok(user)
    }
}

/// Enters a user namespace unless we are root; says which ids it has.
pub(super) fn enter_if_needed() -> Result<Option<Mapped>, String> {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        return Ok(None);
    }
    let Some(ranges) = Ranges::of_this_user() else {
        enter()?;
        return map_one(uid.as_raw(), gid.as_raw()).map(|()| Some(Mapped::ONE));
    };
    // newuidmap must be outside: in the namespace its set-user-id bit means nothing.
    let us = Pid::this();
    let helper = Helper::start(|| ranges.map(us, uid.as_raw(), gid.as_raw()))?;
    enter()?;
    match helper.finish()? {
        0 => {
            Ok(Some(Mapped { uids: ranges.uids.1.saturating_add(1), gids: ranges.gids.1.saturating_add(1) }))
        }
        NO_UIDS => map_one(uid.as_raw(), gid.as_raw()).map(|()| Some(Mapped::ONE)),
        _ => Err("newgidmap failed where newuidmap did not: /etc/subgid does not fit /etc/subuid".to_owned()),
    }
}

fn enter() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| {
        format!(
            "cannot make a user namespace: {e}: jobs need root here, or unprivileged user namespaces enabled"
        )
    })
}

fn map_one(uid: u32, gid: u32) -> Result<(), String> {
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text).map_err(|e| format!("user namespace, {file}: {e}"))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {uid} 1"))?;
    write("gid_map", format!("0 {gid} 1"))
}

/// The helper's exit code when nothing was mapped.
const NO_UIDS: i32 = 1;
const NO_GIDS: i32 = 2;

/// What the host gives this user: (first id, how many), and the programs that map them.
#[derive(Debug, Clone)]
struct Ranges {
    uids: (u32, u32),
    gids: (u32, u32),
    programs: [PathBuf; 2],
}

impl Ranges {
    fn of_this_user() -> Option<Self> {
        let programs = [find_program("newuidmap")?, find_program("newgidmap")?];
        let uid = geteuid();
        let name = User::from_uid(uid).ok().flatten().map(|user| user.name).unwrap_or_default();
        let range = |file: &str| {
            let mut text = String::new();
            File::open(file).ok()?.take(FILE_MAX).read_to_string(&mut text).ok()?;
            range_in(&text, &name, uid.as_raw())
        };
        Some(Self { uids: range("/etc/subuid")?, gids: range("/etc/subgid")?, programs })
    }

    /// In the helper: maps 0 to the user itself and 1.. to its range.
    fn map(&self, whom: Pid, uid: u32, gid: u32) -> i32 {
        let [newuidmap, newgidmap] = &self.programs;
        let run = |program: &PathBuf, own: u32, (first, count): (u32, u32)| {
            let args = [whom.as_raw() as u32, 0, own, 1, 1, first, count].map(|n| n.to_string());
            let mut command = Command::new(program);
            command.args(args).stdin(Stdio::null()).stdout(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        if !run(newuidmap, uid, self.uids) {
            return NO_UIDS;
        }
        if run(newgidmap, gid, self.gids) { 0 } else { NO_GIDS }
    }
}

/// subuid(5): `name-or-uid:first:count`; the first line of ours.
fn range_in(text: &str, name: &str, uid: u32) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let (who, first, count) = (fields.next()?, fields.next()?, fields.next()?);
        let ours = (!name.is_empty() && who == name) || who.parse() == Ok(uid);
        let range = (first.parse().ok()?, count.parse().ok()?);
        (ours && range.0 > 0 && range.1 > 0).then_some(range)
    })
}

/// A network namespace that belongs to our user namespace, where the spawner, outside, could make none.
pub(super) fn network_namespace() -> Result<OwnedFd, String> {
    let open = |e: std::io::Error| format!("cannot make a network namespace: {e}");
    let (ready, made) = io_pipe()?;
    let (release, released) = io_pipe()?;
    // SAFETY: see the head of this file.
    match unsafe { fork() }.map_err(|e| open(e.into()))? {
        ForkResult::Child => {
            drop((ready, released));
            if netns::make().is_ok() && File::from(made).write_all(b"r").is_ok() {
                let _ = File::from(release).read(&mut [0]);
            }
            // SAFETY: the end of a forked process, which must run nothing of ours.
            unsafe { nix::libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop((made, release));
            let is_there = File::from(ready).read(&mut [0]).is_ok_and(|n| n == 1);
            let opened = File::open(format!("/proc/{child}/ns/net"));
            drop(released);
            let _ = waitpid(child, None);
            match is_there {
                true => opened.map(OwnedFd::from).map_err(open),
                false => Err("cannot make a network namespace in our user namespace".to_owned()),
            }
        }
    }
}

/// A forked process that works when it is told to.
struct Helper {
    pid: Pid,
    go: OwnedFd,
}

impl Helper {
    fn start(work: impl FnOnce() -> i32) -> Result<Self, String> {
        let (waits, go) = io_pipe()?;
        // SAFETY: see the head of this file.
        match unsafe { fork() }.map_err(|e| format!("fork: {e}"))? {
            ForkResult::Child => {
                drop(go);
                let told = File::from(waits).read(&mut [0]).is_ok_and(|n| n == 1);
                let code = if told { work() } else { NO_UIDS };
                // SAFETY: as above.
                unsafe { nix::libc::_exit(code) }
            }
            ForkResult::Parent { child } => Ok(Self { pid: child, go }),
        }
    }

    fn finish(self) -> Result<i32, String> {
        let told = File::from(self.go).write_all(b"g");
        match waitpid(self.pid, None) {
            Ok(WaitStatus::Exited(_, code)) => told.map(|()| code).map_err(|e| format!("id maps: {e}")),
            other => Err(format!("the helper for id maps ended with {other:?}")),
        }
    }
}

fn io_pipe() -> Result<(OwnedFd, OwnedFd), String> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|e| format!("pipe: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_range_of_this_user_counts() {
        let text = "root:100000:65536\nann:1x:5\nann:0:5\n1000:300000:10\nann:200000:65536\n";
        assert_eq!(range_in(text, "ann", 7), Some((200_000, 65536)));
        assert_eq!(range_in(text, "bob", 1000), Some((300_000, 10)));
        assert_eq!(range_in(text, "", 7), None);
        assert_eq!(range_in("", "ann", 7), None);
    }

    #[test]
    fn a_user_beyond_the_range_is_refused_with_words_and_foreign_groups_are_left_out() {
        let user = |uid, gid| JobUser { uid, gid, groups: vec![5, 70_000], home: None };
        let mapped = Mapped { uids: 65_537, gids: 1000 };
        assert_eq!(mapped.admit(user(1234, 999)).unwrap().groups, [5]);
        assert!(mapped.admit(user(70_000, 0)).unwrap_err().contains("/etc/subuid"));
        assert!(mapped.admit(user(1, 1000)).is_err());
    }
}

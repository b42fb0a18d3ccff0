//! The spawner's own side: receive, fork a worker, go on.
#![allow(unsafe_code)] // fork(2) and signal(2); this process is single-threaded by construction.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal, killpg, signal};
use nix::unistd::{ForkResult, Pid, fork, setsid};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::UnmountFlags;

use super::protocol::{Reply, Request, receive, send};
use super::{descriptors, process};
use crate::jobs::oci::netns;

/// What a shim and its runtime find in their environment besides PATH: rootless runtimes keep state there.
const KEPT_ENV: [&str; 2] = ["XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"];

/// What the spawner ignores. A service manager that stops the daemon terminates everything of its control group, and
/// a daemon that stops unmounts through its spawner: the end of the socket is the only end there is.
const IGNORED: [Signal; 4] = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

fn react(how: SigHandler) {
    for number in IGNORED {
        // SAFETY: neither SIG_IGN nor SIG_DFL installs a handler.
        let _ = unsafe { signal(number, how) };
    }
}

/// The spawner process: stdin is the socket. Returns when the daemon is gone.
pub fn main(_args: &[OsString]) -> ExitCode {
    descriptors::close_all_now();
    // An own session: a Ctrl-C meant for a daemon in the foreground must leave us alive, it unmounts through us.
    let _ = setsid();
    // SIGCHLD: the kernel then reaps our workers by itself.
    react(SigHandler::SigIgn);
    let _ = rustix::thread::set_name(c"addonfs-spawner");
    let Ok(socket) = std::io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    match std::fs::File::open("/dev/null") {
        Ok(null) if nix::unistd::dup2_stdin(&null).is_ok() => {}
        _ => return ExitCode::FAILURE,
    }
    serve(socket)
}

fn serve(socket: OwnedFd) -> ExitCode {
    loop {
        match receive::<Request>(socket.as_fd()) {
            Ok(Some((request, fds))) => {
                // SAFETY: this process never starts a thread, so the child's memory is consistent.
                match unsafe { fork() } {
                    Ok(ForkResult::Child) => {
                        drop(socket);
                        return work(request, fds);
                    }
                    Ok(ForkResult::Parent { .. }) => {}
                    Err(e) => refuse(&fds, &format!("cannot fork: {e}")),
                }
            }
            Ok(None) => return ExitCode::SUCCESS,
            // A request we cannot read: its answer socket is closed, so its sender learns of it at once.
            Err(e)
                if e.kind() == std::io::ErrorKind::InvalidData || e.kind() == std::io::ErrorKind::Other => {}
            Err(_) => return ExitCode::FAILURE,
        }
    }
}

fn refuse(fds: &[OwnedFd], message: &str) {
    if let Some(answer) = fds.first() {
        let _ = send(answer.as_fd(), &Reply::Failed(message.to_owned()), &[]);
    }
}

/// A worker: carries out one request, answers, ends.
fn work(request: Request, mut fds: Vec<OwnedFd>) -> ExitCode {
    // Ignored signals are inherited; children we wait for must stay waitable, and shims be told to stop.
    react(SigHandler::SigDfl);
    if fds.is_empty() {
        return ExitCode::FAILURE;
    }
    let answer = fds.remove(0);
    let (reply, gift) = match request {
        Request::Detached { args, log, names } => (start_detached(args, log, &names, &fds), None),
        Request::Helper { argv, env, deadline_ms } => {
            (run_helper(argv, env, Duration::from_millis(deadline_ms), fds), None)
        }
        Request::Unmount { path, detach } => (unmount(path, detach), None),
        Request::NetworkNamespace => match netns::make() {
            Ok(namespace) => (Reply::Done, Some(namespace)),
            Err(e) => (Reply::Failed(format!("cannot make a network namespace: {e}")), None),
        },
    };
    let gifts: Vec<BorrowedFd<'_>> = gift.iter().map(AsFd::as_fd).collect();
    match send(answer.as_fd(), &reply, &gifts) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn start_detached(args: Vec<OsString>, log: Option<OsString>, names: &[String], fds: &[OwnedFd]) -> Reply {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("addonfs").args(args).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()));
    for name in KEPT_ENV {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.stderr(log.and_then(|path| open_log(&path).ok()).map_or_else(Stdio::null, Stdio::from));
    for (name, fd) in names.iter().zip(fds) {
        if let Err(e) = fcntl_setfd(fd, FdFlags::empty()) {
            return Reply::Failed(format!("cannot pass on a descriptor: {e}"));
        }
        command.arg(format!("{name}={}", fd.as_raw_fd()));
    }
    let child = match command.spawn() {
        Ok(child) => child,
        Err(e) => return Reply::Failed(format!("cannot execute ourselves: {e}")),
    };
    // We are its parent still: even if it ended at once, it stays readable in /proc until we end.
    match process::identity_of(child.id() as i32) {
        Ok(who) => Reply::Started { pid: who.pid, start_ticks: who.start_ticks },
        Err(e) => Reply::Failed(format!("started, but cannot read its start time: {e}")),
    }
}

/// Where programs are looked for when the daemon was started without a PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn open_log(path: &OsString) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn run_helper(
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    deadline: Duration,
    fds: Vec<OwnedFd>,
) -> Reply {
    let until = Instant::now() + deadline;
    let [program, args @ ..] = argv.as_slice() else { return Reply::Failed("empty command".to_owned()) };
    let Ok([stdin, stdout, stderr]) = <[OwnedFd; 3]>::try_from(fds) else {
        return Reply::Failed("a helper needs three descriptors".to_owned());
    };
    let mut command = Command::new(program);
    command.args(args).envs(env).stdin(stdin).stdout(stdout).stderr(stderr).process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => return Reply::Failed(format!("cannot start {}: {e}", program.display())),
    };
    drop(command); // our copies of its streams, so that readers see the end
    let timed_out = !wait_until(child.id() as i32, until);
    if timed_out {
        let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    }
    match child.wait() {
        Ok(status) => Reply::Ended { code: status.code(), signal: status.signal(), timed_out },
        Err(e) => Reply::Failed(format!("cannot wait for {}: {e}", program.display())),
    }
}

/// Waits for a child of ours without reaping it; false at the deadline.
fn wait_until(pid: i32, until: Instant) -> bool {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return true };
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return true;
    };
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let Ok(left) = left.try_into() else { return true };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}

fn unmount(path: OsString, detach: bool) -> Reply {
    let flags = if detach { UnmountFlags::DETACH } else { UnmountFlags::empty() } | UnmountFlags::NOFOLLOW;
    match rustix::mount::unmount(path.into_vec(), flags) {
        Ok(()) => Reply::Done,
        Err(e) => Reply::Failed(format!("{e}")),
    }
}

//! The runtime for hosts without one, and for ordinary users: `addonfs __container --bundle B --pid-file P --log L`.
//!
//! In: `B/config.json` as `bundle` writes it, and nothing else of the runtime specification: no hooks, no terminal, no
//! rlimits, no user namespace (the shim is in it already). Out: process 1 of the container, whose program has been
//! executed when this ends with success, its number in `P`; else an error in `L`, in the form the other runtimes use.
//! It keeps no state: the shim reaps the job and removes the control group, whatever the runtime.
//!
//! Why not libcontainer 0.7: without linking C libseccomp it installs no filter at all (its `init/process.rs` only warns
//! then), device rules on v2 need C libbpf, it brings some hundred crates, and it forks Rust code in its caller's
//! process. What a bundle of ours needs is this folder.
//!
//! | file | what it does |
//! |---|---|
//! | `mod` | the outer process: control group, pid namespace, the answer |
//! | `inside` | process 1: namespaces, root, identity, exec |
//! | `mounts` | the mounts of config.json, devices, masks, pivot |
//! | `place` | a path of the image, created if missing, that cannot lead out of it |
//! | `identity` | ids, capabilities, no_new_privs |
//! | `filter` | config.json's seccomp as a program for the kernel |
//! | `program` | our own program as jobs cannot write to it |
//!
//! Known limits: on v2 no device program is loaded. A job has neither CAP_MKNOD nor a mount without `nodev` but its
//! own /dev, so there is no device it could open that it was not given.
#![allow(unsafe_code)] // fork(2) of a process that is single-threaded by construction.

mod filter;
mod identity;
mod inside;
mod mounts;
mod place;
mod program;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Spec};
use rustix::pipe::{PipeFlags, pipe_with};

pub(super) use self::program::hold as hold_program;
use super::cgroup::{Cgroups, Limits};
use crate::jobs::spawner;

/// The first argument of the re-executed program.
pub const ENTRY: &str = "__container";
/// Largest config.json. Arguments and environment are bounded far below.
const CONFIG_MAX: u64 = 8 << 20;
/// Longest complaint of the inner process.
const WORDS_MAX: u64 = 4096;

/// Why there is no container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Something on the way.
    Setup(String),
    /// The program itself: errno.
    Exec(i32),
}

impl Failure {
    fn setup(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self::Setup(format!("{what}: {error}"))
    }

    /// For the pipe between the two processes.
    fn to_line(&self) -> String {
        match self {
            Self::Setup(words) => format!("S{words}"),
            Self::Exec(errno) => format!("E{errno}"),
        }
    }

    fn from_line(line: &str) -> Self {
        let errno = line.strip_prefix('E').and_then(|number| number.parse().ok());
        errno.map_or_else(|| Self::Setup(line.strip_prefix('S').unwrap_or(line).to_owned()), Self::Exec)
    }

    /// One line of a runtime's log. `stage` tells a missing program from a missing file of ours.
    fn to_log(&self) -> String {
        let (stage, words) = match self {
            Self::Setup(words) => ("setup", words.clone()),
            Self::Exec(errno) => ("exec", std::io::Error::from_raw_os_error(*errno).to_string()),
        };
        serde_json::json!({"level": "error", "stage": stage, "msg": words}).to_string()
    }
}

#[derive(Debug, Default)]
struct Options {
    bundle: PathBuf,
    pid_file: PathBuf,
    log: PathBuf,
}

impl Options {
    fn parse(args: &[OsString]) -> Option<Self> {
        let mut options = Self::default();
        for pair in args.chunks(2) {
            let [name, value] = pair else { return None };
            match name.to_str()? {
                "--bundle" => options.bundle = value.into(),
                "--pid-file" => options.pid_file = value.into(),
                "--log" => options.log = value.into(),
                _ => return None,
            }
        }
        Some(options)
    }
}

/// The runtime process.
pub fn main(args: &[OsString]) -> ExitCode {
    let Some(options) = Options::parse(args) else { return ExitCode::FAILURE };
    spawner::close_all_at_exec();
    let started = start(&options).and_then(|pid| {
        fs::write(&options.pid_file, pid.to_string()).map_err(|e| Failure::setup("pid file", e))
    });
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = fs::write(&options.log, failure.to_log());
            ExitCode::FAILURE
        }
    }
}

/// Starts the container; its number once its program has been executed.
fn start(options: &Options) -> Result<i32, Failure> {
    let spec = read(&options.bundle.join("config.json"))?;
    let group = enter_group(&spec)?;
    let network = network(&spec)?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| Failure::setup("pipe", e));
    let (go, may_go) = pipe()?;
    let (answer, answering) = pipe()?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(|e| Failure::setup("pid namespace", e))?;
    // SAFETY: this process has executed our own program and started no thread.
    match unsafe { fork() }.map_err(|e| Failure::setup("fork", e))? {
        ForkResult::Child => {
            drop((may_go, answer));
            // The group is entered by now: what comes, memory and processes, counts.
            let told = File::from(go).read(&mut [0]).is_ok_and(|n| n == 1);
            if told {
                let failure = inside::run(&spec, network, &answering);
                let _ = File::from(answering).write_all(failure.to_line().as_bytes());
            }
            // SAFETY: the end of a forked process; nothing of the parent's is to be flushed twice.
            unsafe { nix::libc::_exit(1) }
        }
        ForkResult::Parent { child } => {
            drop((go, answering));
            let entered = group.map_or(Ok(()), |(groups, name)| groups.enter(&name, child.as_raw()));
            let entered = entered.map_err(|e| Failure::setup("control group", e));
            let told = entered.and_then(|()| {
                File::from(may_go).write_all(b"g").map_err(|e| Failure::setup("the container's process", e))
            });
            let said = told.and_then(|()| read_answer(answer));
            if said.is_err() {
                let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
                let _ = waitpid(child, None);
            }
            said.map(|()| child.as_raw())
        }
    }
}

/// The pipe closes without a word when the program is executed.
fn read_answer(answer: OwnedFd) -> Result<(), Failure> {
    let mut words = String::new();
    let read = File::from(answer).take(WORDS_MAX).read_to_string(&mut words);
    match read {
        Ok(0) => Ok(()),
        Ok(_) => Err(Failure::from_line(&words)),
        Err(e) => Err(Failure::setup("the container's process", e)),
    }
}

fn read(path: &Path) -> Result<Spec, Failure> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(|e| Failure::setup("config.json", e))?;
    file.take(CONFIG_MAX).read_to_end(&mut text).map_err(|e| Failure::setup("config.json", e))?;
    serde_json::from_slice(&text).map_err(|e| Failure::setup("config.json", e))
}

/// Makes the control group with its limits.
fn enter_group(spec: &Spec) -> Result<Option<(Cgroups, String)>, Failure> {
    let Some(linux) = spec.linux() else { return Ok(None) };
    let Some(path) = linux.cgroups_path() else { return Ok(None) };
    let groups = Cgroups::detect();
    let name = path.display().to_string();
    let limits = linux.resources().as_ref().map(limits).unwrap_or_default();
    groups.make(&name, &limits).map_err(|e| Failure::setup("control group", e))?;
    Ok(Some((groups, name)))
}

fn limits(resources: &LinuxResources) -> Limits {
    let memory = resources.memory().as_ref();
    let cpu = resources.cpu().as_ref();
    Limits {
        cpu: cpu.and_then(|c| Some((c.quota()?, c.period()?))),
        memory: memory.and_then(|m| m.limit()),
        memory_and_swap: memory.and_then(|m| m.swap()),
        pids: resources.pids().as_ref().map(|p| p.limit()),
    }
}

/// The prepared network namespace, opened while its name can be seen.
fn network(spec: &Spec) -> Result<Option<OwnedFd>, Failure> {
    let linux = spec.linux().as_ref();
    let all = linux.and_then(|l| l.namespaces().as_ref()).map(Vec::as_slice).unwrap_or_default();
    let prepared =
        all.iter().find(|n| n.typ() == LinuxNamespaceType::Network).and_then(|n| n.path().as_ref());
    let open = |path: &PathBuf| File::open(path).map(OwnedFd::from);
    prepared.map(open).transpose().map_err(|e| Failure::setup("network namespace", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_cross_the_pipe_and_options_come_in_pairs() {
        for failure in [Failure::Setup("mount: no".into()), Failure::Exec(2), Failure::Setup(String::new())] {
            assert_eq!(Failure::from_line(&failure.to_line()), failure);
        }
        assert!(Failure::Exec(2).to_log().contains("No such file"));
        let args = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert!(Options::parse(&args(&["--bundle", "/b", "--log", "/l"])).is_some());
        assert!(Options::parse(&args(&["--bundle"])).is_none());
        assert!(Options::parse(&args(&["--root", "/r"])).is_none());
    }
}

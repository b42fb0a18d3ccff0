//! Process 1, from the fork to its program.

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{chdir, execve, sethostname, setsid};
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use rustix::event::{PollFd, PollFlags, poll};

use super::{Failure, filter, identity, mounts};
use crate::jobs::oci::netns;

/// Becomes the job; comes back only with the reason why it did not. `answering` is held by the outer process too.
pub(super) fn run(spec: &Spec, network: Option<OwnedFd>, answering: &OwnedFd) -> Failure {
    match become_job(spec, network, answering) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

fn become_job(spec: &Spec, network: Option<OwnedFd>, answering: &OwnedFd) -> Result<Infallible, Failure> {
    let process =
        spec.process().as_ref().ok_or_else(|| Failure::Setup("config.json has no process".into()))?;
    let linux = spec.linux().as_ref().ok_or_else(|| Failure::Setup("config.json has no linux".into()))?;
    let seccomp =
        linux.seccomp().as_ref().ok_or_else(|| Failure::Setup("config.json has no seccomp".into()))?;
    let program = filter::program(seccomp)?;
    let call = Call::new(process)?;

    let _ = setsid();
    namespaces(spec, network)?;
    if let Some(name) = spec.hostname() {
        sethostname(name).map_err(|e| Failure::setup("hostname", e))?;
    }
    mounts::enter_root(spec)?;
    chdir(process.cwd())
        .map_err(|e| Failure::setup(format_args!("working directory {}", process.cwd().display()), e))?;
    plain_signals()?;
    identity::take(process.user())?;
    outer_lives(answering)?;
    filter::install(&program)?;
    Err(Failure::Exec(call.execute() as i32))
}

/// All namespaces but the pid namespace, of which we are process 1 already.
fn namespaces(spec: &Spec, network: Option<OwnedFd>) -> Result<(), Failure> {
    let linux = spec.linux().as_ref();
    let all = linux.and_then(|l| l.namespaces().as_ref()).map(Vec::as_slice).unwrap_or_default();
    let mut flags = CloneFlags::empty();
    for namespace in all {
        flags |= match namespace.typ() {
            LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
            LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
            LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
            LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            LinuxNamespaceType::Network if network.is_none() => CloneFlags::CLONE_NEWNET,
            LinuxNamespaceType::Network | LinuxNamespaceType::Pid => CloneFlags::empty(),
            other => return Err(Failure::Setup(format!("config.json: no {other} namespace here"))),
        };
    }
    if let Some(network) = network {
        setns(network, CloneFlags::CLONE_NEWNET).map_err(|e| Failure::setup("network namespace", e))?;
    }
    unshare(flags).map_err(|e| Failure::setup("namespaces", e))?;
    if flags.contains(CloneFlags::CLONE_NEWNET) {
        netns::loopback_up().map_err(|e| Failure::setup("loopback", e))?;
    }
    Ok(())
}

/// Ignored signals and the mask survive exec: the job begins with neither.
#[allow(unsafe_code)]
fn plain_signals() -> Result<(), Failure> {
    for number in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action is no handler.
        let _ = unsafe { signal(number, SigHandler::SigDfl) };
    }
    SigSet::empty().thread_set_mask().map_err(|e| Failure::setup("signals", e))
}

/// A runtime that was killed is a job that must not begin: nobody would know of it.
fn outer_lives(answering: &OwnedFd) -> Result<(), Failure> {
    let mut ends = [PollFd::new(answering, PollFlags::OUT)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut ends, Some(&now)).map_err(|e| Failure::setup("pipe", e))?;
    let [end] = &ends;
    match end.revents().contains(PollFlags::ERR) {
        true => Err(Failure::Setup("the runtime was killed".into())),
        false => Ok(()),
    }
}

/// What is executed, with everything allocated before the filter is there.
struct Call {
    candidates: Vec<CString>,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Call {
    fn new(process: &Process) -> Result<Self, Failure> {
        let nul = |_| Failure::Setup("a NUL byte in the command or its environment".into());
        let strings = |list: &[String]| {
            list.iter().map(|s| CString::new(s.as_str())).collect::<Result<Vec<_>, _>>().map_err(nul)
        };
        let args = strings(process.args().as_deref().unwrap_or_default())?;
        let variables = process.env().as_deref().unwrap_or_default();
        let env = strings(variables)?;
        let name = args.first().ok_or_else(|| Failure::Setup("no command".into()))?;
        let path = variables.iter().find_map(|v| v.strip_prefix("PATH=")).unwrap_or_default();
        let candidates = if name.as_bytes().contains(&b'/') {
            vec![name.clone()]
        } else {
            let name = OsStr::from_bytes(name.as_bytes());
            let joined =
                path.split(':').map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name));
            joined
                .map(|p| CString::new(p.into_os_string().into_encoded_bytes()))
                .collect::<Result<_, _>>()
                .map_err(nul)?
        };
        Ok(Self { candidates, args, env })
    }

    /// As execvp(3) searches: what cannot be executed is remembered, what is missing is passed over.
    fn execute(&self) -> Errno {
        let mut worst = Errno::ENOENT;
        for candidate in &self.candidates {
            let Err(why) = execve(candidate, &self.args, &self.env);
            match why {
                Errno::ENOENT | Errno::ENOTDIR => {}
                Errno::EACCES => worst = why,
                other => return other,
            }
        }
        worst
    }
}

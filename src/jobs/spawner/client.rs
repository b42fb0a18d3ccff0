//! The daemon's side: blocking calls that any thread may make, and the same as futures.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::PidfdFlags;

use super::ENTRY;
use super::process::{Identity, exited};
use super::protocol::{Reply, Request, receive, send};

/// How long an answer that needs no waiting may take: the spawner forks and executes, nothing more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// What a helper's deadline is enlarged by before we stop waiting for the spawner itself.
const MARGIN: Duration = Duration::from_secs(5);
/// Most bytes kept of each output stream of a helper: credential helpers answer with a few hundred.
const OUTPUT_MAX: usize = 1 << 20;

/// The handle of the spawner; clones share it. When the last one is gone the spawner ends.
#[derive(Clone)]
pub struct Spawner {
    inner: Arc<Inner>,
}

struct Inner {
    socket: Mutex<Option<OwnedFd>>,
    child: Mutex<Child>,
}

impl std::fmt::Debug for Spawner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spawner").finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Ok(socket) = self.socket.get_mut() {
            socket.take();
        }
        if let Ok(child) = self.child.get_mut() {
            let _ = child.wait(); // it ends at the end of the socket, and leaves its children alone
        }
    }
}

/// A short command to run.
#[derive(Debug, Clone)]
pub struct Helper {
    /// Program (looked up in PATH) and arguments.
    pub argv: Vec<OsString>,
    /// Added to the daemon's environment.
    pub env: Vec<(OsString, OsString)>,
    /// Given to its standard input.
    pub stdin: Vec<u8>,
    /// After this it is killed with its process group.
    pub deadline: Duration,
}

impl Helper {
    /// A command with an empty standard input and ten seconds of time.
    pub fn new(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let args = args.into_iter().map(|a| a.as_ref().to_owned());
        Self {
            argv: std::iter::once(program.as_ref().to_owned()).chain(args).collect(),
            env: Vec::new(),
            stdin: Vec::new(),
            deadline: Duration::from_secs(10),
        }
    }
}

/// What a helper did.
#[derive(Debug, Clone)]
pub struct HelperOutput {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Killed at its deadline.
    pub timed_out: bool,
    /// At most 1 MiB of its standard output.
    pub stdout: Vec<u8>,
    /// At most 1 MiB of its standard error.
    pub stderr: Vec<u8>,
}

impl Spawner {
    /// Starts the spawner from the running program. To be called first of all, before threads and mounts exist.
    pub fn start() -> io::Result<Self> {
        Self::start_program(Path::new("/proc/self/exe"))
    }

    /// Starts the spawner from a given `addonfs` program.
    pub fn start_program(program: &Path) -> io::Result<Self> {
        let (ours, theirs) = seqpacket_pair()?;
        let child = std::os::unix::process::CommandExt::arg0(&mut Command::new(program), "addonfs")
            .arg(ENTRY)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self { inner: Arc::new(Inner { socket: Mutex::new(Some(ours)), child: Mutex::new(child) }) })
    }

    /// Comes back when the spawner process has ended, which it does by itself only when this handle is gone.
    pub async fn ended(&self) -> io::Result<()> {
        let process = {
            let child = self.inner.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // The child is not waited for before the last handle is dropped, so its pid is no other process's.
            rustix::process::pidfd_open(rustix::process::Pid::from_child(&child), PidfdFlags::empty())?
        };
        exited(process).await
    }

    /// Starts our own program with `args`, detached: in the end a child of init, whatever happens to us. Each
    /// descriptor is appended to the arguments as `name=number`. `log` takes its standard error (appended).
    pub fn start_detached_blocking(
        &self,
        args: Vec<OsString>,
        log: Option<&Path>,
        fds: &[(&str, BorrowedFd<'_>)],
    ) -> Result<Identity, String> {
        let names = fds.iter().map(|(name, _)| (*name).to_owned()).collect();
        let request = Request::Detached { args, log: log.map(Into::into), names };
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|(_, fd)| *fd).collect();
        match self.ask(&request, &fds, ANSWER_TIMEOUT)? {
            (Reply::Started { pid, start_ticks }, _) => Ok(Identity { pid, start_ticks }),
            (other, _) => Err(words(other)),
        }
    }

    /// Runs a helper and collects its output. Must not be called on an async thread; see [`Self::helper`].
    pub fn helper_blocking(&self, helper: &Helper) -> Result<HelperOutput, String> {
        self.run_helper(helper).map_err(|e| {
            let name = helper.argv.first().map(|n| n.display().to_string()).unwrap_or_default();
            format!("helper {name}: {e}")
        })
    }

    /// Runs a helper and collects its output.
    pub async fn helper(&self, helper: Helper) -> Result<HelperOutput, String> {
        let spawner = self.clone();
        blocking(move || spawner.helper_blocking(&helper)).await
    }

    /// Unmounts `path` (never following a symlink at its end), lazily if `detach`.
    pub fn unmount_blocking(&self, path: &Path, detach: bool) -> Result<(), String> {
        match self.ask(&Request::Unmount { path: path.into(), detach }, &[], ANSWER_TIMEOUT)? {
            (Reply::Done, _) => Ok(()),
            (other, _) => Err(format!("cannot unmount {}: {}", path.display(), words(other))),
        }
    }

    /// Unmounts `path` (never following a symlink at its end), lazily if `detach`.
    pub async fn unmount(&self, path: &Path, detach: bool) -> Result<(), String> {
        let (spawner, path) = (self.clone(), path.to_owned());
        blocking(move || spawner.unmount_blocking(&path, detach)).await
    }

    /// A new, empty network namespace with `lo` up; it lives as long as a descriptor or process of it.
    pub fn network_namespace_blocking(&self) -> Result<OwnedFd, String> {
        match self.ask(&Request::NetworkNamespace, &[], ANSWER_TIMEOUT)? {
            (Reply::Done, mut fds) if fds.len() == 1 => Ok(fds.remove(0)),
            (other, _) => Err(words(other)),
        }
    }

    fn ask(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), String> {
        let answer = self.send(request, fds).map_err(|e| format!("spawner: {e}"))?;
        let until = Instant::now() + limit;
        let mut waiting = [PollFd::new(&answer, PollFlags::IN)];
        if !ready(&mut waiting, until).map_err(|e| format!("spawner: {e}"))? {
            return Err(format!("spawner: no answer in {} s", limit.as_secs()));
        }
        answer_of(answer.as_fd())
    }

    /// Sends a request and returns our end of its answer socket.
    fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
        let (ours, theirs) = seqpacket_pair()?;
        let mut all = vec![theirs.as_fd()];
        all.extend_from_slice(fds);
        let socket = self.inner.socket.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(socket) = socket.as_ref() else { return Err(io::ErrorKind::NotConnected.into()) };
        send(socket.as_fd(), request, &all)?;
        Ok(ours)
    }

    fn run_helper(&self, helper: &Helper) -> Result<HelperOutput, String> {
        let io = |e: io::Error| e.to_string();
        let stdin = memory_file(&helper.stdin).map_err(io)?;
        let (stdout, stdout_theirs) = io::pipe().map_err(io)?;
        let (stderr, stderr_theirs) = io::pipe().map_err(io)?;
        let deadline_ms = helper.deadline.as_millis().try_into().unwrap_or(u64::MAX);
        let request = Request::Helper { argv: helper.argv.clone(), env: helper.env.clone(), deadline_ms };
        let fds = [stdin.as_fd(), stdout_theirs.as_fd(), stderr_theirs.as_fd()];
        let answer = self.send(&request, &fds).map_err(io)?;
        drop((stdout_theirs, stderr_theirs));

        let until = Instant::now() + helper.deadline + MARGIN;
        let mut out = Collected::new(stdout.into());
        let mut err = Collected::new(stderr.into());
        loop {
            let [got_answer, got_out, got_err] = poll_three(&answer, &out, &err, until).map_err(io)?;
            if got_out {
                out.take_some();
            }
            if got_err {
                err.take_some();
            }
            // What it wrote before it ended is in the pipes by now; take it, and do not wait for grandchildren.
            if got_answer && !got_out && !got_err {
                break;
            }
            if !got_answer && !got_out && !got_err {
                return Err("no answer from the spawner".to_owned());
            }
        }
        match answer_of(answer.as_fd())?.0 {
            Reply::Ended { code, signal, timed_out } => {
                Ok(HelperOutput { code, signal, timed_out, stdout: out.bytes, stderr: err.bytes })
            }
            other => Err(words(other)),
        }
    }
}

fn answer_of(answer: BorrowedFd<'_>) -> Result<(Reply, Vec<OwnedFd>), String> {
    match receive::<Reply>(answer) {
        Ok(Some(reply)) => Ok(reply),
        Ok(None) => Err("spawner: ended without an answer".to_owned()),
        Err(e) => Err(format!("spawner: {e}")),
    }
}

fn words(reply: Reply) -> String {
    match reply {
        Reply::Failed(words) => words,
        other => format!("unexpected answer of the spawner: {other:?}"),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(format!("spawner: {e}")))
}

fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// A file in memory that holds `bytes`, at its beginning.
pub(in crate::jobs) fn memory_file(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("addonfs", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Polls until something is ready; false at the deadline.
fn ready(fds: &mut [PollFd<'_>], until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now()).try_into().map_err(io::Error::other)?;
        match poll(fds, Some(&left)) {
            Ok(n) => return Ok(n > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// One output stream of a helper, as far as it was read.
struct Collected {
    pipe: Option<File>,
    bytes: Vec<u8>,
}

impl Collected {
    fn new(pipe: OwnedFd) -> Self {
        Self { pipe: Some(File::from(pipe)), bytes: Vec::new() }
    }

    fn take_some(&mut self) {
        let Some(pipe) = self.pipe.as_mut() else { return };
        let mut piece = [0; 8192];
        match pipe.read(&mut piece) {
            Ok(0) | Err(_) => self.pipe = None,
            Ok(n) => {
                let room = OUTPUT_MAX.saturating_sub(self.bytes.len());
                self.bytes.extend_from_slice(piece.get(..n.min(room)).unwrap_or_default());
                if n >= room {
                    self.pipe = None; // it gets SIGPIPE if it goes on
                }
            }
        }
    }
}

fn poll_three(answer: &OwnedFd, out: &Collected, err: &Collected, until: Instant) -> io::Result<[bool; 3]> {
    let mut fds = vec![PollFd::new(answer, PollFlags::IN)];
    let streams = [out, err].map(|s| {
        s.pipe.as_ref().map(|p| {
            fds.push(PollFd::new(p, PollFlags::IN));
            fds.len() - 1
        })
    });
    ready(&mut fds, until)?;
    let is_ready = |i: usize| fds.get(i).is_some_and(|fd| !fd.revents().is_empty());
    Ok([is_ready(0), streams[0].is_some_and(is_ready), streams[1].is_some_and(is_ready)])
}

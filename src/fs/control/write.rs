//! write and setattr: the commands of every `ctl`, `args.json`, `stdin`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use nix::libc;

use super::attr::Attr;
use super::find::Found;
use super::run_files::Slot;
use super::tree::{Node, StaticCtl};
use super::{ControlTree, Request, command, lock, read};
use crate::fs::error::FsError;
use crate::fs::facts::CtlTarget;
use crate::jobs::control::{parse_job, parse_run};
use crate::jobs::{Command, JobCommand, Run};

/// How long a write to `stdin` waits for the job to read. The writer cannot be killed meanwhile, so it is short; EAGAIN
/// then, and nothing is lost.
const STDIN_WAIT: Duration = Duration::from_secs(1);

/// The same for a descriptor with O_NONBLOCK: long enough to learn whether the pipe has room.
const STDIN_GLANCE: Duration = Duration::from_millis(10);

/// What `setattr` asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size.
    pub size: Option<u64>,
}

/// What became of a write.
pub enum Written {
    /// So many bytes were taken.
    Now(u32),
    /// It waits for the job to read its standard input, not longer than a deadline; to be driven by a task.
    Later(BoxFuture<'static, Result<u32, FsError>>),
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now(taken) => f.debug_tuple("Now").field(taken).finish(),
            Self::Later(_) => f.write_str("Later"),
        }
    }
}

impl ControlTree {
    /// A write. On a `ctl` it is one command and the offset means nothing; its reply, also a refusal, can then be
    /// read on the same handle.
    pub fn write(
        &self,
        request: &Request,
        ino: u64,
        handle: u64,
        offset: u64,
        data: &[u8],
        flags: i32,
    ) -> Result<Written, FsError> {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        match self.find(ino)? {
            Found::Run(run, Slot::Args) => {
                self.write_args(request, &run, offset, data, flags)?;
                Ok(Written::Now(length))
            }
            Found::Run(run, Slot::Stdin) => self.write_stdin(request, &run, data.to_vec(), flags),
            Found::Run(run, Slot::Ctl) => {
                let answer = self.run_command(request, &run, data);
                // who gave the command reads what it did, whoever else is reading
                self.contents.thaw(read::rendered_inos(run.number()));
                self.answer(handle, answer, None).map(|()| Written::Now(length))
            }
            found => match found.node() {
                Some(Node::Ctl(ctl)) => {
                    let answer = self.static_command(request, ctl, data);
                    self.answer(handle, answer, Some(ctl)).map(|()| Written::Now(length))
                }
                _ => Err(FsError::NotOffered),
            },
        }
    }

    /// Changes attributes. Offered is what shells and copying tools do before they write: size, mode and times of
    /// `args.json`, size and times of a `ctl`. Nothing of it but the size of `args.json` is kept.
    pub fn setattr(&self, ino: u64, change: &Change) -> Result<Attr, FsError> {
        let found = self.find(ino)?;
        let now = self.attr(&found)?;
        let keeps_owner =
            change.uid.is_none_or(|uid| uid == now.uid) && change.gid.is_none_or(|gid| gid == now.gid);
        let keeps_mode = change.mode.is_none_or(|mode| mode & 0o7777 == u32::from(now.perm));
        let offered = match &found {
            Found::Run(_, Slot::Args) => keeps_owner,
            Found::Run(_, Slot::Ctl | Slot::Stdin) => keeps_owner && keeps_mode,
            Found::Run(_, Slot::Dir) => keeps_owner && keeps_mode && change.size.is_none(),
            other => matches!(other.node(), Some(Node::Ctl(_))) && keeps_owner && keeps_mode,
        };
        if !offered {
            return Err(FsError::NotOffered);
        }
        if let Some(size) = change.size {
            self.truncate(&found, size)?;
        }
        self.attr(&found)
    }

    /// Only `args.json` has a size to cut.
    pub(super) fn truncate(&self, found: &Found, size: u64) -> Result<(), FsError> {
        let Found::Run(run, Slot::Args) = found else { return Ok(()) };
        let cut = self.runs.handle().truncate_args(run, size).map_err(FsError::from);
        self.contents.thaw(read::rendered_inos(run.number()));
        cut
    }

    fn write_args(
        &self,
        request: &Request,
        run: &Run,
        offset: u64,
        data: &[u8],
        flags: i32,
    ) -> Result<(), FsError> {
        if request.resent && flags & libc::O_APPEND != 0 {
            // they may be in it already, and must not be in it twice
            return Err(FsError::Stale);
        }
        // O_APPEND: the kernel's idea of the end is the normalised size, not what was written so far
        let jobs = self.runs.handle();
        let written = match flags & libc::O_APPEND {
            0 => jobs.write_args(run, offset, data),
            _ => jobs.append_args(run, data),
        };
        self.contents.thaw(read::rendered_inos(run.number()));
        written.map_err(FsError::from)
    }

    fn run_command(&self, request: &Request, run: &Arc<Run>, data: &[u8]) -> Result<String, FsError> {
        command::fits(data)?;
        let jobs = self.runs.handle();
        let answer = match parse_run(data).as_deref() {
            // without a token it gets the request's own: sent again by the kernel it is the same start
            Ok([Command::Start { token: None, stdin, wishes }]) => {
                let token = Some(format!("request-{}-{}", request.pid, request.unique));
                let start = Command::Start { token, stdin: *stdin, wishes: *wishes };
                jobs.run_command(run, start, &request.caller())
            }
            _ => jobs.run_write(run, data, &request.caller()),
        };
        Ok(answer?)
    }

    fn static_command(&self, request: &Request, ctl: &StaticCtl, data: &[u8]) -> Result<String, FsError> {
        command::fits(data)?;
        let target = match ctl {
            StaticCtl::Job(job) => {
                let runs = |command: &JobCommand| matches!(command, JobCommand::Run(_));
                if request.resent && parse_job(data)?.iter().any(runs) {
                    // it may have made a run already, and must not make a second one
                    return Err(FsError::Stale);
                }
                return Ok(self.runs.handle().job_write(job, data, &request.caller())?);
            }
            StaticCtl::Daemon => CtlTarget::Daemon,
            StaticCtl::Source(name) => CtlTarget::Source(name.clone()),
        };
        match command::line(data)? {
            None => Ok(String::new()),
            Some(line) => self.facts.control(&target, line, request.uid),
        }
    }

    /// Puts the reply or the words of a refusal where the handle can read them.
    fn answer(
        &self,
        handle: u64,
        answer: Result<String, FsError>,
        ctl: Option<&StaticCtl>,
    ) -> Result<(), FsError> {
        let text = match &answer {
            Ok(text) => text.clone(),
            Err(refused) => refused.to_string(),
        };
        if let Some(reply) = self.handles.reply(handle, true) {
            lock(&reply).put(&text);
        }
        // runs and sources keep their own last_error; a job's ctl has none beside it
        if answer.is_err() && matches!(ctl, Some(StaticCtl::Job(_) | StaticCtl::Daemon)) {
            self.refused(&text);
        }
        answer.map(|_| ())
    }

    /// Words for `.addonfs/last_error`.
    pub(super) fn refused(&self, words: &str) {
        self.refusal.put(words, self.facts.last_error());
    }

    fn write_stdin(
        &self,
        request: &Request,
        run: &Arc<Run>,
        data: Vec<u8>,
        flags: i32,
    ) -> Result<Written, FsError> {
        if request.resent {
            // these bytes may be in the pipe already, and the job must not read them twice
            return Err(FsError::Stale);
        }
        let deadline = if flags & libc::O_NONBLOCK == 0 { STDIN_WAIT } else { STDIN_GLANCE };
        let taken = self.runs.handle().write_stdin(run, data, deadline);
        Ok(Written::Later(Box::pin(async move { Ok(u32::try_from(taken.await?).unwrap_or(u32::MAX)) })))
    }
}

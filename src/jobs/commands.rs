//! What is written to `ctl`, `args.json` and `stdin`: each write done whole or refused whole.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::control::{self, Command, JobCommand};
use super::error::JobError;
use super::executor::Stop;
use super::handle::{Jobs, Shared};
use super::options::Caller;
use super::record::{EXIT_CANCELED, Via, now_ms};
use super::run::Run;
use super::start::{Decision, Places};
use super::state::{RunState, Verb};

/// A command of a job's `ctl` that was judged and only has to be done.
enum Judged {
    Start(Box<Decision>),
    Say(String),
}

impl Jobs {
    /// One write to a run's `ctl`. Several commands are all done or none. The answer is the reply's text; a refusal is
    /// also kept for `last_error`.
    pub fn run_write(&self, run: &Arc<Run>, bytes: &[u8], caller: &Caller) -> Result<String, JobError> {
        control::parse_run(bytes)
            .and_then(|commands| self.run_commands(run, &commands, caller))
            .inspect_err(|error| run.refused(error))
    }

    /// One command for a run.
    pub fn run_command(&self, run: &Arc<Run>, command: Command, caller: &Caller) -> Result<String, JobError> {
        self.run_commands(run, &[command], caller).inspect_err(|error| run.refused(error))
    }

    fn run_commands(
        &self,
        run: &Arc<Run>,
        commands: &[Command],
        _caller: &Caller,
    ) -> Result<String, JobError> {
        if commands.len() > 1 {
            rehearse(run, commands)?;
        }
        commands.iter().map(|command| self.0.obey(run, command)).collect()
    }

    /// One write to a job's `ctl`. Several commands are all done or none. `run` answers with the state and the path of
    /// the run below the job's folder (`queued runs/NAME`), `plan` with the plan's JSON, `help` with text.
    pub fn job_write(&self, job_id: &str, bytes: &[u8], caller: &Caller) -> Result<String, JobError> {
        let commands = control::parse_job(bytes)?;
        let judged =
            commands.into_iter().map(|c| self.0.judge(job_id, c)).collect::<Result<Vec<_>, JobError>>()?;
        let starts = judged.iter().filter(|j| matches!(j, Judged::Start(_))).count();
        let mut places = self.0.places(starts)?;
        judged
            .into_iter()
            .map(|one| match one {
                Judged::Say(text) => Ok(text),
                Judged::Start(decision) => {
                    let run = self.0.run_now(*decision, caller, None, None, &mut places)?;
                    Ok(format!("{} runs/{}\n", RunState::Queued, run.name()))
                }
            })
            .collect()
    }

    /// One command line for a job: [`Jobs::job_write`] under the name of its use by programs.
    pub fn job_command(&self, job_id: &str, line: &str, caller: &Caller) -> Result<String, JobError> {
        self.job_write(job_id, line.as_bytes(), caller)
    }

    /// A piece of `args.json`. Judged only at start.
    pub fn write_args(&self, run: &Run, offset: u64, piece: &[u8]) -> Result<(), JobError> {
        self.0.edit_args(run, offset, |text| text.write(offset, piece))
    }

    /// A piece at the end of `args.json` (O_APPEND): the size that readers see may be another one than was written.
    pub fn append_args(&self, run: &Run, piece: &[u8]) -> Result<(), JobError> {
        self.0.edit_args(run, u64::MAX, |text| text.write(text.bytes().len() as u64, piece))
    }

    /// Cuts or extends `args.json`.
    pub fn truncate_args(&self, run: &Run, len: u64) -> Result<(), JobError> {
        self.0.edit_args(run, len, |text| text.truncate(len))
    }

    /// Writes to the standard input of a run that was started with it: resolves to the bytes taken, at least one. Waits
    /// for the job to read, at most until the deadline (then EAGAIN); poll it in a task of the runtime.
    pub fn write_stdin(
        &self,
        run: &Arc<Run>,
        data: Vec<u8>,
        deadline: Duration,
    ) -> impl Future<Output = Result<usize, JobError>> + Send + 'static {
        let run = Arc::clone(run);
        async move {
            if !run.wants_stdin() {
                return Err(no_stdin(&run));
            }
            if data.is_empty() {
                return Ok(0);
            }
            run.stdin.write(run.dir(), &data, run.subscribe(), deadline).await
        }
    }
}

/// Goes through several commands on paper.
fn rehearse(run: &Run, commands: &[Command]) -> Result<(), JobError> {
    let inner = run.lock();
    let mut state = inner.record.state;
    let mut token = inner.record.token.as_deref();
    let mut has_stdin = inner.record.stdin;
    for command in commands {
        let same = match command {
            Command::Start { token: Some(new), .. } => token == Some(new),
            _ => false,
        };
        if run.judge(&inner, state, command.verb(), same)? {
            state = state.after(command.verb());
            match command {
                Command::Start { token: new, stdin, .. } => (token, has_stdin) = (new.as_deref(), *stdin),
                Command::Eof if !has_stdin => return Err(no_stdin(run)),
                _ => {}
            }
        }
    }
    Ok(())
}

impl Shared {
    fn obey(self: &Arc<Self>, run: &Arc<Run>, command: &Command) -> Result<String, JobError> {
        match command {
            Command::Start { token, stdin, wishes } => {
                self.start(run, token.as_deref(), *stdin, *wishes).map(|state| format!("{state}\n"))
            }
            Command::Cancel => self.cancel(run),
            Command::Kill(signal) => self.kill(run, *signal),
            Command::Eof => self.eof(run),
        }
    }

    fn judge(&self, job_id: &str, command: JobCommand) -> Result<Judged, JobError> {
        match command {
            JobCommand::Run(asked) => self.decide_start(job_id, asked).map(|d| Judged::Start(Box::new(d))),
            JobCommand::Plan(asked) => self
                .decide(job_id, asked)
                .map(|decision| Judged::Say(String::from_utf8_lossy(&decision.plan.json).into_owned())),
            JobCommand::Help => {
                let job = self.jobs().get(job_id).cloned();
                let job = job.ok_or_else(|| JobError::NotFound(format!("job {job_id}")))?;
                Ok(Judged::Say(job.help()))
            }
        }
    }

    /// Makes and starts a run that is named by its own id.
    pub(super) fn run_now(
        self: &Arc<Self>,
        decision: Decision,
        caller: &Caller,
        via: Option<Via>,
        token: Option<&str>,
        places: &mut Places<'_>,
    ) -> Result<Arc<Run>, JobError> {
        let run = self.create_unnamed(&decision.job, caller)?;
        let committed = {
            let mut inner = run.lock();
            inner.record.via = via;
            self.commit_start(&run, &mut inner, decision, token, false, places)
        };
        if let Err(error) = committed {
            // Nobody knows of it yet.
            let _ = self.remove(&run);
            return Err(error);
        }
        self.ensure_image(&run);
        Ok(run)
    }

    pub(super) fn cancel(self: &Arc<Self>, run: &Arc<Run>) -> Result<String, JobError> {
        let mut inner = run.lock();
        let state = inner.record.state;
        if !run.judge(&inner, state, Verb::Cancel, false)? {
            return Ok(format!("{state}\n"));
        }
        inner.refusal = None;
        if state == RunState::Running || inner.record.launching {
            let first = !std::mem::replace(&mut inner.record.cancel_asked, true);
            let shim = inner.record.shim.clone();
            if first {
                self.write_down(&inner.record);
            }
            run.publish(&inner);
            drop(inner);
            // A launch that is under way looks at `cancel_asked` when its shim is up.
            if let Some(shim) = shim {
                self.tell_shim(run, shim, Stop::Cancel);
            }
            return Ok("canceling\n".into());
        }
        self.queue().remove(run.number());
        inner.pending = None;
        inner.text = super::args::ArgsText::default();
        inner.record.end(RunState::Canceled, EXIT_CANCELED, Some("canceled before it ran".into()), now_ms());
        self.write_down(&inner.record);
        run.publish(&inner);
        drop(inner);
        self.tell_end(run);
        Ok(format!("{}\n", RunState::Canceled))
    }

    fn kill(self: &Arc<Self>, run: &Arc<Run>, signal: i32) -> Result<String, JobError> {
        let mut inner = run.lock();
        run.judge(&inner, inner.record.state, Verb::Kill, false)?;
        inner.refusal = None;
        let shim = inner.record.shim.clone();
        drop(inner);
        match shim {
            Some(shim) => self.tell_shim(run, shim, Stop::Signal(signal)),
            None => return Err(JobError::Internal(format!("run {} has no shim", run.name()))),
        }
        Ok("ok\n".into())
    }

    fn eof(self: &Arc<Self>, run: &Arc<Run>) -> Result<String, JobError> {
        let mut inner = run.lock();
        if !run.judge(&inner, inner.record.state, Verb::Eof, false)? {
            return Ok("ok\n".into());
        }
        if !inner.record.stdin {
            return Err(no_stdin(run));
        }
        inner.refusal = None;
        if !std::mem::replace(&mut inner.record.eof_asked, true) {
            self.write_down(&inner.record);
        }
        let shim = inner.record.shim.clone();
        drop(inner);
        if let Some(shim) = shim {
            self.end_stdin(run, shim);
        }
        Ok("ok\n".into())
    }

    fn edit_args(
        &self,
        run: &Run,
        from: u64,
        edit: impl FnOnce(&mut super::args::ArgsText) -> Result<(), JobError>,
    ) -> Result<(), JobError> {
        let secret_names = self.jobs().get(run.job_id()).map(|job| job.entry.argspec.secrets.clone());
        let mut inner = run.lock();
        run.judge(&inner, inner.record.state, Verb::WriteArgs, false)?;
        // The add-on may have learned of a secret since mkdir: where the text may lie follows today's schema.
        let learned = secret_names.filter(|names| *names != inner.record.secret_names);
        let changed = learned.map(|names| inner.record.secret_names = names).is_some();
        let from = from.min(inner.text.bytes().len() as u64);
        edit(&mut inner.text)?;
        if run.keep_text(&mut inner, from)? || changed {
            self.write_down(&inner.record);
        }
        run.publish(&inner);
        Ok(())
    }
}

fn no_stdin(run: &Run) -> JobError {
    JobError::Busy(format!("run {} was not started with stdin (start stdin)", run.name()))
}

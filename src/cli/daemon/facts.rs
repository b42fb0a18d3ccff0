//! The daemon's facts for the control tree, and its obedience to `ctl` lines.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};

use super::added::AddedSources;
use super::board::Board;
use super::cache_ctl;
use super::candidate::json_file;
use super::clock;
use super::drive::Sources;
use super::events::EventLog;
use super::holder::HoldOptions;
use super::metrics;
use super::reload::Reloads;
use super::shutdown::{Stop, Stops};
use crate::cli::http::HttpState;
use crate::fetch::documents::Documents;
use crate::fetch::store::Store;
use crate::fs::error::FsError;
use crate::fs::facts::{CtlTarget, Facts, ShownSource, SourceFiles};
use crate::fs::kernel::backing::Backings;
use crate::jobs::{Caller, Command, Jobs};
use crate::policy::event::Event;

/// What the control tree shows of the daemon.
#[derive(Debug)]
pub(crate) struct DaemonFacts {
    /// The board of sources.
    pub board: Arc<Board>,
    /// The drivers.
    pub sources: Arc<Sources>,
    /// The jobs room.
    pub jobs: Jobs,
    /// The event files.
    pub events: Arc<EventLog>,
    /// The store.
    pub store: Arc<Store>,
    /// Documents of images.
    pub documents: Documents,
    /// Where a request to stop goes.
    pub stops: Stops,
    /// The holder's options.
    pub options: HoldOptions,
    /// Reloads of the configuration.
    pub reloads: Reloads,
    /// The sources that were added at run time.
    pub added: Mutex<Arc<AddedSources>>,
    /// The REST interface.
    pub http: HttpState,
    /// The policy in force, as `status.json` shows it.
    pub policy: Mutex<Value>,
    /// When this daemon started, milliseconds since 1970.
    pub started_ms: u64,
    /// How files are read, once the image connection is served.
    pub reading: OnceLock<Backings>,
    /// Whether the connections survive this daemon, once they are served.
    pub survives: OnceLock<bool>,
    /// The last refusal of a daemon's or source's `ctl`.
    pub last_error: Mutex<Arc<[u8]>>,
}

impl DaemonFacts {
    fn status(&self) -> Value {
        let (sources, settled) = self.board.statuses();
        let counts = self.jobs.counts();
        let runtime = match self.jobs.runtime() {
            Ok(info) => json!({
                "how": format!("{} {}", info.name, info.version),
                "name": info.name, "path": info.path, "version": info.version,
            }),
            Err(reason) => json!({"how": format!("none: {reason}"), "unavailable": reason}),
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "started": clock::text(self.started_ms),
            "mount_point": self.options.mount_point,
            "images_dir": self.options.images_dir,
            "config": self.options.config,
            "state_dir": self.options.dirs.state,
            "cache_dir": self.options.dirs.cache,
            "configuration": self.reloads.to_json(),
            "policy": *self.policy.lock().unwrap_or_else(PoisonError::into_inner),
            "settled": settled,
            "reading": self.reading(),
            "survival": self.survival(),
            "runtime": runtime,
            "http": self.http.to_json(),
            "runs": {"running": counts.running, "queued": counts.queued},
            "store": self.store_status(),
            "sources": sources,
        })
    }

    fn store_status(&self) -> Value {
        let (store, (evicted_items, evicted_bytes)) = (&self.store, self.store.evicted());
        json!({
            "bytes": store.used_bytes(),
            "quota_bytes": store.options().quota_bytes,
            "keep_free_bytes": store.options().keep_free_bytes,
            "pinned_bytes": store.pinned_bytes(),
            "evicted_items": evicted_items,
            "evicted_bytes": evicted_bytes,
            "warning": store.trouble(),
        })
    }

    fn reading(&self) -> Value {
        let Some(backings) = self.reading.get() else {
            return json!({"passthrough": null, "how": "not served yet"});
        };
        use crate::fs::kernel::backing::Passthrough;
        match backings.passthrough() {
            Passthrough::On => {
                json!({"passthrough": true, "how": "complete files through the kernel (passthrough)"})
            }
            Passthrough::Off(reason) => {
                json!({"passthrough": false, "how": format!("by the daemon (passthrough is off: {reason})")})
            }
            Passthrough::Untried => {
                json!({"passthrough": null, "how": "complete files through the kernel if it can (not tried yet)"})
            }
        }
    }

    fn survival(&self) -> Value {
        match self.survives.get() {
            None => json!({"resend": null, "how": "not served yet"}),
            Some(true) => json!({"resend": true, "how": "open files outlive the daemon"}),
            Some(false) => json!({
                "resend": false,
                "how": "open files outlive the daemon, but requests under way at its death hang \
                        (the kernel has no FUSE_NOTIFY_RESEND: Linux 6.9 or newer is needed)",
            }),
        }
    }

    /// The sources that were added at run time.
    pub(crate) fn added(&self) -> Arc<AddedSources> {
        Arc::clone(&self.added.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Others are there now.
    pub(crate) fn set_added(&self, added: AddedSources) {
        *self.added.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(added);
    }

    /// Another policy is in force.
    pub(crate) fn set_policy(&self, policy: Value) {
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// The words behind something that was refused.
    pub(crate) fn fail(&self, words: &str) {
        let words = format!("{words}\n").into_bytes().into();
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = words;
    }

    fn daemon_command(&self, words: &[&str]) -> Result<String, FsError> {
        let stop = match words {
            ["stop"] => Stop::IfIdle,
            ["stop", "cancel"] => Stop::Cancel,
            ["stop", "wait"] => Stop::Wait,
            ["reload"] => return Ok(format!("reload {}\n", self.reloads.ask())),
            ["cancel", run] => return self.cancel(run),
            ["cache", words @ ..] => {
                return cache_ctl::obey(words, &self.store, &self.board, &self.documents);
            }
            _ => {
                let known = format!("reload, cancel RUN, stop, stop cancel, stop wait, {}", cache_ctl::KNOWN);
                return Err(FsError::Invalid(unknown(words, &known)));
            }
        };
        // First the door, then the look: a run that is started in between would lose its root file system.
        self.jobs.close();
        let live = self.jobs.live_runs();
        if stop == Stop::IfIdle && !live.is_empty() {
            if !self.stops.asked() {
                self.jobs.reopen();
            }
            let names: Vec<String> =
                live.iter().map(|run| format!("{}/runs/{}", run.job_id(), run.name())).collect();
            return Err(FsError::Busy(format!(
                "{} still live: {}; wait for them (addonfs umount --wait; here: stop wait), or cancel them (addonfs \
                 umount --cancel; here: stop cancel)",
                if names.len() == 1 { "a run is" } else { "runs are" },
                names.join(", ")
            )));
        }
        self.stops.ask(stop);
        Ok("stopping\n".to_owned())
    }

    /// Cancels a run by its id or by `JOB/NAME`: a run whose add-on is not shown any more has no files to say it to.
    fn cancel(&self, run: &str) -> Result<String, FsError> {
        let named = || {
            let (job, name) = run.rsplit_once('/')?;
            self.jobs.run(job.strip_suffix("/runs").unwrap_or(job), name)
        };
        let run = self.jobs.run_by_id(run).or_else(named).ok_or(FsError::NotFound)?;
        let daemon = Caller { uid: nix::unistd::geteuid().as_raw(), gid: 0, pid: std::process::id() };
        Ok(self.jobs.run_command(&run, Command::Cancel, &daemon)?)
    }

    fn source_command(&self, name: &str, words: &[&str]) -> Result<String, FsError> {
        let at = self.board.find(name).ok_or(FsError::NotFound)?;
        match words {
            ["pull"] => {
                self.board.ask_again(at);
                self.sources.want(at);
                Ok("pulling\n".to_owned())
            }
            _ => Err(FsError::Invalid(unknown(words, "pull"))),
        }
    }
}

fn unknown(words: &[&str], known: &str) -> String {
    format!("unknown command {:?}: known are {known}", words.join(" "))
}

impl Facts for DaemonFacts {
    fn generation(&self) -> u64 {
        (self.board.generation() + self.jobs.generation()).wrapping_add(self.store.generation())
    }

    fn shown(&self) -> Vec<Arc<ShownSource>> {
        self.board.shown()
    }

    fn sources(&self) -> Vec<Arc<SourceFiles>> {
        self.board.files()
    }

    fn status_json(&self) -> Arc<[u8]> {
        json_file(&self.status())
    }

    fn discovery_errors(&self) -> Arc<[u8]> {
        self.board.discovery_errors().into_bytes().into()
    }

    fn last_error(&self) -> Arc<[u8]> {
        Arc::clone(&self.last_error.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn metrics(&self) -> Arc<[u8]> {
        metrics::render(&self.board, &self.jobs, &self.store).into_bytes().into()
    }

    fn events_file(&self) -> PathBuf {
        self.events.path()
    }

    fn source_events_file(&self, source: &str) -> Option<PathBuf> {
        self.board.find(source).map(|_| self.events.source_path(source))
    }

    fn control(&self, target: &CtlTarget, line: &str, _uid: u32) -> Result<String, FsError> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match target {
            CtlTarget::Daemon => self.daemon_command(&words),
            CtlTarget::Source(name) => self.source_command(name, &words),
        };
        if let Err(error) = &answer {
            self.fail(&error.to_string());
        }
        answer
    }

    fn tell(&self, event: Event) {
        self.events.write(&event);
    }
}

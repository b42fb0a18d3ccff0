//! What is known about a run: the journal's entry and, rendered, `record.json`.
//!
//! `record.json` (every field is there always, `null` where not known yet; the names are API):
//!
//! | field | what |
//! |---|---|
//! | `schema` | `addonfs.run/v1` |
//! | `id`, `number`, `name`, `job` | run id, its number, the folder's name, the job's id |
//! | `state` | see `jobs::state` |
//! | `exit_code` | of the run: the job's own (128+n on signal n); 124 at the time limit; 125 refused or lost |
//! | `signal` | the signal that ended the job's process |
//! | `error` | why it did not succeed, in words |
//! | `progress` | what a queued run waits for, in words |
//! | `created_at`, `queued_at`, `started_at`, `ended_at` | RFC 3339, UTC, milliseconds; the same as `…_ms` since 1970 |
//! | `duration_ms` | from start to end |
//! | `args` | the arguments with defaults, secrets as `"[secret]"`; `null` before start |
//! | `stdin` | started with stdin |
//! | `origin` | `source_kind`, `source_name`, `addon_name`, `addon_version`, `addon_image_digest` (the pinned digest) … |
//! | `image` | the reference in words |
//! | `who` | `uid`, `gid` of the caller; `interface` (`files` or `http`), and whom that took the `caller` for |
//! | `trust` | what was verified and by which key |
//! | `policy` | `profile`, `profile_asked`, `network`, `rootfs`, `findings` |
//! | `plan_digest` | sha256 of `plan.json` |
//! | `limits` | `cpu_millis`, `memory_bytes`, `pids`, `timeout_ms`, `tmp_bytes`, `out_bytes`, `log_bytes` |
//! | `resources` | `cpu_usec`, `memory_peak`, `oom_killed`, `log_dropped_bytes`, `bytes_fetched` |

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::executor::{Cause, Outcome, ShimId};
use super::state::RunState;
use crate::policy::addon::Origin;
use crate::policy::digest::Digest;

/// `run` and `wait` exit with this at a timeout, as timeout(1) does.
pub const EXIT_TIMEOUT: i32 = 124;
/// Refused by addonfs, or lost.
pub const EXIT_REFUSED: i32 = 125;
/// Canceled before its process had an exit code: 128 + TERM, what a cancel sends first.
pub const EXIT_CANCELED: i32 = 143;

/// Who made the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Who {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

/// The interface through which a run was asked for, where that is not the mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Via {
    /// `http`.
    pub interface: String,
    /// Whom that interface took the caller for.
    pub caller: String,
}

/// How far the arguments are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ArgsAt {
    /// Nobody wrote any.
    Unwritten,
    /// `args.json` on disk.
    Disk,
    /// In memory only, because the job takes secrets: gone after a restart.
    Memory,
}

/// One run, as the journal has it. Holds no secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub number: u64,
    pub id: String,
    pub name: String,
    pub job: String,
    pub source: String,
    pub state: RunState,
    pub who: Who,
    /// Who it was by name, where it did not come through the mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Via>,
    pub group: u32,
    pub origin: Origin,
    pub image: String,
    pub tree: Digest,
    pub trust: Value,
    pub created_ms: u64,
    pub queued_ms: Option<u64>,
    pub started_ms: Option<u64>,
    pub ended_ms: Option<u64>,
    pub args_at: ArgsAt,
    pub args: Option<Map<String, Value>>,
    /// Names of the secrets that the job takes.
    pub secret_names: Vec<String>,
    /// The arguments of the accepted start held secrets: it cannot be launched after a restart.
    pub held_secrets: bool,
    pub token: Option<String>,
    pub stdin: bool,
    /// `eof` was said before there was a shim to tell.
    pub eof_asked: bool,
    /// The executor was asked to start it: a shim may exist.
    pub launching: bool,
    /// The boot of the machine (`/proc/sys/kernel/random/boot_id`) in which it was: what the folder of a run says of
    /// shims is worth something only as long as the machine has not died since.
    pub boot: Option<String>,
    pub cancel_asked: bool,
    pub shim: Option<ShimId>,
    pub policy: Value,
    pub limits: Value,
    pub plan_digest: Option<Digest>,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub error: Option<String>,
    pub progress: Option<String>,
    pub cpu_usec: Option<u64>,
    pub memory_peak: Option<u64>,
    pub oom_killed: Option<bool>,
    pub log_dropped: Option<u64>,
    /// Bytes of the image that came from the registry because this run read them.
    pub bytes_fetched: u64,
}

impl Record {
    /// The bytes of `record.json`.
    pub(super) fn render(&self) -> Vec<u8> {
        let duration = self.started_ms.zip(self.ended_ms).map(|(from, to)| to.saturating_sub(from));
        let value = json!({
            "schema": "addonfs.run/v1",
            "id": self.id,
            "number": self.number,
            "name": self.name,
            "job": self.job,
            "state": self.state,
            "exit_code": self.exit_code,
            "signal": self.signal,
            "error": self.error,
            "progress": self.progress,
            "created_at": rfc3339(self.created_ms),
            "created_ms": self.created_ms,
            "queued_at": self.queued_ms.map(rfc3339),
            "queued_ms": self.queued_ms,
            "started_at": self.started_ms.map(rfc3339),
            "started_ms": self.started_ms,
            "ended_at": self.ended_ms.map(rfc3339),
            "ended_ms": self.ended_ms,
            "duration_ms": duration,
            "args": self.args,
            "stdin": self.stdin,
            "origin": self.origin,
            "image": self.image,
            "who": {
                "uid": self.who.uid,
                "gid": self.who.gid,
                "interface": self.via.as_ref().map_or("files", |via| via.interface.as_str()),
                "caller": self.via.as_ref().map(|via| via.caller.as_str()),
            },
            "trust": self.trust,
            "policy": self.policy,
            "plan_digest": self.plan_digest,
            "limits": self.limits,
            "resources": {
                "cpu_usec": self.cpu_usec,
                "memory_peak": self.memory_peak,
                "oom_killed": self.oom_killed,
                "log_dropped_bytes": self.log_dropped,
                "bytes_fetched": self.bytes_fetched,
            },
        });
        pretty(&value)
    }

    /// Ends the run: the only place where a final state is set.
    pub(super) fn end(&mut self, state: RunState, exit_code: i32, error: Option<String>, at_ms: u64) {
        debug_assert!(state.is_final() && !self.state.is_final());
        self.state = state;
        self.exit_code = Some(exit_code);
        self.error = error;
        self.ended_ms = Some(at_ms);
        self.progress = None;
        self.launching = false;
        self.shim = None;
    }

    /// Ends the run with what its shim left.
    pub(super) fn end_with(&mut self, outcome: &Outcome) {
        let own = outcome.exit_code;
        let words = |fallback: &str| Some(outcome.message.clone().unwrap_or_else(|| fallback.to_owned()));
        let (state, exit_code, error) = match outcome.cause {
            Cause::Exited => match own {
                Some(0) => (RunState::Succeeded, 0, outcome.message.clone()),
                Some(code) => (RunState::Failed, code, Some(self.words_of_exit(code, outcome))),
                None => (RunState::Lost, EXIT_REFUSED, words("the job ended and left no exit code")),
            },
            Cause::Canceled => {
                // A job that ends well when it is told to has not done what it was started for.
                let code = own.filter(|code| *code != 0).unwrap_or(EXIT_CANCELED);
                (RunState::Canceled, code, words("canceled by request"))
            }
            Cause::Timeout => (RunState::Timeout, EXIT_TIMEOUT, words("killed at its time limit")),
            Cause::Refused => (
                RunState::Failed,
                own.filter(|c| *c != 0).unwrap_or(EXIT_REFUSED),
                words("it could not be started"),
            ),
            Cause::Lost => (
                RunState::Lost,
                EXIT_REFUSED,
                words("its process is gone and left no outcome; whether it did its work is not known"),
            ),
        };
        self.end(state, exit_code, error, outcome.ended_ms);
        self.started_ms = outcome.started_ms.or(self.started_ms);
        self.signal = outcome.signal;
        self.cpu_usec = outcome.cpu_usec;
        self.memory_peak = outcome.memory_peak;
        self.oom_killed = Some(outcome.oom_killed);
        self.log_dropped = Some(outcome.log_dropped);
    }

    fn words_of_exit(&self, code: i32, outcome: &Outcome) -> String {
        if outcome.oom_killed {
            return "killed by the kernel: it needed more memory than its limit".to_owned();
        }
        match (&outcome.message, outcome.signal) {
            (Some(message), _) => message.clone(),
            (None, Some(signal)) => format!("ended by signal {signal}"),
            (None, None) => format!("exited with {code}"),
        }
    }
}

/// Milliseconds since 1970 as RFC 3339 in UTC with milliseconds.
pub(super) fn rfc3339(ms: u64) -> String {
    let nanos = i128::from(ms) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .and_then(|t| t.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// The clock of records, milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// JSON for people and programs: indented, newline at end.
pub(super) fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}").into_bytes();
    text.push(b'\n');
    text
}

/// Records for tests of this room.
#[cfg(test)]
pub(super) mod samples {
    use super::*;

    pub(in crate::jobs) fn numbered(number: u64) -> Record {
        Record { number, ..running() }
    }

    pub(in crate::jobs) fn running() -> Record {
        Record {
            number: 1,
            id: "r1-00000001".into(),
            name: "nightly".into(),
            job: "tools/backup/backup".into(),
            source: "backup".into(),
            state: RunState::Running,
            who: Who { uid: 1, gid: 2, pid: 3 },
            via: None,
            group: 2,
            origin: Origin {
                source_kind: "oci".into(),
                source_name: "backup".into(),
                addon_name: "backup-tools".into(),
                addon_version: "1.0.0".into(),
                addon_image_digest: Digest::of(b"image"),
                origin_revision: None,
                origin_source: None,
            },
            image: "localhost:5000/org/backup-tools".into(),
            tree: Digest::of(b"image"),
            trust: Value::Null,
            created_ms: 500,
            queued_ms: Some(600),
            started_ms: Some(900),
            ended_ms: None,
            args_at: ArgsAt::Disk,
            args: Some(Map::new()),
            secret_names: vec![],
            held_secrets: false,
            token: None,
            stdin: false,
            eof_asked: false,
            launching: false,
            boot: None,
            cancel_asked: false,
            shim: None,
            policy: Value::Null,
            limits: Value::Null,
            plan_digest: None,
            exit_code: None,
            signal: None,
            error: None,
            progress: None,
            cpu_usec: None,
            memory_peak: None,
            oom_killed: None,
            log_dropped: None,
            bytes_fetched: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(cause: Cause, exit_code: Option<i32>) -> Outcome {
        Outcome {
            cause,
            exit_code,
            signal: None,
            message: None,
            started_ms: Some(1_000),
            ended_ms: 2_500,
            cpu_usec: Some(7),
            memory_peak: None,
            oom_killed: false,
            log_dropped: 0,
        }
    }

    #[test]
    fn outcomes_become_states_and_exit_codes() {
        let cases = [
            (Cause::Exited, Some(0), RunState::Succeeded, 0),
            (Cause::Exited, Some(3), RunState::Failed, 3),
            (Cause::Exited, Some(137), RunState::Failed, 137),
            (Cause::Exited, None, RunState::Lost, 125),
            (Cause::Canceled, Some(143), RunState::Canceled, 143),
            (Cause::Canceled, None, RunState::Canceled, 143),
            (Cause::Canceled, Some(0), RunState::Canceled, 143),
            (Cause::Timeout, Some(137), RunState::Timeout, 124),
            (Cause::Refused, None, RunState::Failed, 125),
            (Cause::Refused, Some(127), RunState::Failed, 127),
            (Cause::Refused, Some(0), RunState::Failed, 125),
            (Cause::Lost, None, RunState::Lost, 125),
        ];
        for (cause, code, state, exit_code) in cases {
            let mut record = super::samples::running();
            record.end_with(&outcome(cause, code));
            assert_eq!((record.state, record.exit_code), (state, Some(exit_code)), "{cause:?} {code:?}");
            assert_eq!(record.error.is_none(), state == RunState::Succeeded, "{cause:?} {code:?}");
        }
    }

    #[test]
    fn renders_every_field_always() {
        let mut record = super::samples::running();
        let keys = |record: &Record| -> Vec<String> {
            let value: Map<String, Value> = serde_json::from_slice(&record.render()).unwrap();
            value.keys().cloned().collect()
        };
        let before = keys(&record);
        record.end_with(&outcome(Cause::Exited, Some(0)));
        assert_eq!(before, keys(&record));
        let value: Value = serde_json::from_slice(&record.render()).unwrap();
        assert_eq!(value["duration_ms"], 1500);
        assert_eq!(value["ended_at"], "1970-01-01T00:00:02.5Z");
        assert_eq!(value["origin"]["addon_image_digest"], Digest::of(b"image").to_string());
        assert_eq!(value["who"], json!({"uid": 1, "gid": 2, "interface": "files", "caller": null}));
        assert!(record.render().ends_with(b"}\n"));
    }
}

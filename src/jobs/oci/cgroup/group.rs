//! One run's group: its counters, its processes, its end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Cgroups, Usage};

/// How long processes of a killed group may take to disappear.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(5);

impl Cgroups {
    /// The counters of a group that still exists.
    pub(in crate::jobs::oci) fn usage(&self, group: &str) -> Usage {
        if self.v1.is_empty() {
            let Some(dir) = self.v2.as_ref().map(|h| below(&h.base, group)) else { return Usage::default() };
            return Usage {
                cpu_usec: field(&dir.join("cpu.stat"), "usage_usec"),
                memory_peak: number(&dir.join("memory.peak")),
                oom_killed: field(&dir.join("memory.events"), "oom_kill").is_some_and(|n| n > 0),
            };
        }
        let memory = self.v1_with("memory").map(|h| below(&h.base, group));
        let cpu = self.v1_with("cpuacct").map(|h| below(&h.base, group));
        Usage {
            cpu_usec: cpu
                .and_then(|d| number(&d.join("cpuacct.usage")))
                .map(|nanoseconds| nanoseconds / 1000),
            memory_peak: memory.as_ref().and_then(|d| number(&d.join("memory.max_usage_in_bytes"))),
            oom_killed: memory
                .and_then(|d| field(&d.join("memory.oom_control"), "oom_kill"))
                .is_some_and(|n| n > 0),
        }
    }

    /// The group in every hierarchy that has it. On a hybrid host v2 is hidden from the runtime by a tmpfs, in
    /// which it may leave directories that are no groups.
    fn dirs(&self, group: &str) -> Vec<PathBuf> {
        let hierarchies = self.v1.iter().chain(self.v2.iter().filter(|_| self.v1.is_empty()));
        hierarchies.map(|h| below(&h.base, group)).filter(|dir| dir.is_dir()).collect()
    }

    /// Kills whatever runs in the group.
    pub(in crate::jobs::oci) fn kill(&self, group: &str) {
        for dir in self.dirs(group) {
            if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
                continue;
            }
            // v1 has no such file: a process that forks between reading and killing is met in the next round.
            for pid in processes(&dir) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    /// Kills whatever is left in the group and removes it from every hierarchy.
    pub(in crate::jobs::oci) fn remove(&self, group: &str) -> io::Result<()> {
        let until = Instant::now() + EMPTY_TIMEOUT;
        let mut pause = Duration::from_micros(200);
        loop {
            let mut last = None;
            for dir in self.dirs(group) {
                match remove_tree(&dir, 0) {
                    Ok(()) => {}
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => last = Some(e),
                }
            }
            let Some(error) = last else { return Ok(()) };
            if Instant::now() > until {
                return Err(error);
            }
            self.kill(group);
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

pub(super) fn below(base: &Path, group: &str) -> PathBuf {
    base.join(group.trim_start_matches('/'))
}

/// Groups cannot be removed with groups in them; runtimes nest at most one, so a few levels are plenty.
fn remove_tree(dir: &Path, depth: u32) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound && depth < 4 => {
            for entry in fs::read_dir(dir)?.flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    remove_tree(&entry.path(), depth + 1)?;
                }
            }
            fs::remove_dir(dir)
        }
        other => other,
    }
}

fn processes(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|l| l.parse().ok()).filter(|&pid| pid > 1).collect()
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

//! What the host's control groups can do for a run, and what one run used.
//!
//! The runtime makes the run's group and sets its limits; this file finds out which limits it can be asked for, and
//! afterwards reads the counters, kills what is left and removes the group. Hosts differ: v1 has one hierarchy a
//! controller, v2 one for all, hybrid both (with controllers in v1).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::jobs::executor::LaunchSpec;

/// Groups directly below the root of each hierarchy, so that removing one never races with making another: a
/// shared parent would have to be kept for ever or removed under somebody's feet.
const PREFIX: &str = "addonfs-";
/// How long processes of a killed group may take to disappear.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(5);
/// The period of a CPU quota, microseconds: the kernel's and every runtime's default.
const CPU_PERIOD: u64 = 100_000;
/// The smallest quota the kernel takes is 1 ms in a period.
const CPU_QUOTA_MIN: i64 = 1000;

/// The control groups of this host.
#[derive(Debug, Clone, Default)]
pub(super) struct Cgroups {
    /// v1 hierarchies with a controller we use: (controllers, mount point).
    v1: Vec<(Vec<String>, PathBuf)>,
    /// Where v2 is mounted.
    v2: Option<PathBuf>,
    /// The v2 controllers at its root.
    v2_controllers: Vec<String>,
    swap: bool,
}

/// The limits that can be kept, in the units of config.json.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// (quota, period), microseconds.
    pub(super) cpu: Option<(i64, u64)>,
    pub(super) memory: Option<i64>,
    /// Memory and swap together.
    pub(super) memory_and_swap: Option<i64>,
    pub(super) pids: Option<i64>,
}

/// What a run used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) cpu_usec: Option<u64>,
    pub(super) memory_peak: Option<u64>,
    pub(super) oom_killed: bool,
}

/// The path of a run's group, from the root of each hierarchy.
pub(super) fn path_of(run_id: &str) -> String {
    format!("/{PREFIX}{run_id}")
}

impl Cgroups {
    /// Looks at the mounts of this process.
    pub(super) fn detect() -> Self {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let swap = fs::read_to_string("/proc/swaps").is_ok_and(|s| s.lines().count() > 1);
        let mut found = Self { swap, ..Self::from_mountinfo(&mountinfo) };
        if let Some(root) = &found.v2 {
            let list = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            found.v2_controllers = list.split_ascii_whitespace().map(str::to_owned).collect();
        }
        found
    }

    fn from_mountinfo(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(point) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
            match kind {
                "cgroup2" => found.v2 = found.v2.or_else(|| Some(PathBuf::from(point))),
                "cgroup" => {
                    let controllers = options.split(',').filter(|o| !matches!(*o, "rw" | "ro" | "xattr"));
                    found.v1.push((controllers.map(str::to_owned).collect(), PathBuf::from(point)));
                }
                _ => {}
            }
        }
        found
    }

    /// v1 controllers beside a mounted v2: what crun calls hybrid and refuses while it sees v2.
    pub(super) fn hybrid_mount(&self) -> Option<&Path> {
        self.v2.as_deref().filter(|_| !self.v1.is_empty())
    }

    /// Only v2: a container may have its own view of it mounted.
    pub(super) fn is_unified(&self) -> bool {
        self.v2.is_some() && self.v1.is_empty()
    }

    fn v1_mount(&self, controller: &str) -> Option<&Path> {
        self.v1
            .iter()
            .find(|(names, _)| names.iter().any(|n| n == controller))
            .map(|(_, point)| point.as_path())
    }

    /// Whether groups with this controller can be made by us.
    fn offers(&self, controller: &str) -> bool {
        let writable = |p: &Path| rustix::fs::access(p, rustix::fs::Access::WRITE_OK).is_ok();
        if self.v1.is_empty() {
            let listed = self.v2_controllers.iter().any(|c| c == controller);
            return listed && self.v2.as_deref().is_some_and(writable);
        }
        self.v1_mount(controller).is_some_and(writable)
    }

    /// Whether a run can have a group at all.
    pub(super) fn usable(&self) -> bool {
        ["memory", "pids", "cpu"].iter().any(|c| self.offers(c))
    }

    /// The limits of a launch that can be kept, and words for those that cannot.
    pub(super) fn limits(&self, spec: &LaunchSpec) -> (Limits, Vec<String>) {
        let unavailable = self.unavailable();
        let says = |what: &str| unavailable.iter().any(|u| u.starts_with(what));
        let signed = |v: u64| i64::try_from(v).unwrap_or(i64::MAX);
        let memory = spec.memory_bytes.filter(|_| !says("memory:")).map(signed);
        let quota = |millis: u64| signed(millis.saturating_mul(CPU_PERIOD / 1000)).max(CPU_QUOTA_MIN);
        let limits = Limits {
            cpu: spec.cpu_millis.filter(|_| !says("cpu:")).map(|m| (quota(m), CPU_PERIOD)),
            memory,
            memory_and_swap: memory.filter(|_| self.swap && !says("swap:")),
            pids: Some(signed(spec.pids)).filter(|_| !says("pids:")),
        };
        let asked = unavailable.into_iter().filter(|u| {
            let needs_memory = u.starts_with("memory:") || u.starts_with("swap:");
            (!needs_memory || spec.memory_bytes.is_some())
                && (!u.starts_with("cpu:") || spec.cpu_millis.is_some())
        });
        (limits, asked.collect())
    }

    /// Words for every limit that this host cannot keep.
    pub(super) fn unavailable(&self) -> Vec<String> {
        let mut words = Vec::new();
        for controller in ["cpu", "memory", "pids"] {
            if !self.offers(controller) {
                words.push(format!(
                    "{controller}: no writable control group with the {controller} controller"
                ));
            }
        }
        let memsw_missing =
            self.v1_mount("memory").is_some_and(|m| !m.join("memory.memsw.limit_in_bytes").exists());
        if self.swap && memsw_missing && self.offers("memory") {
            words.push("swap: the kernel does not account swap (boot with swapaccount=1)".to_owned());
        }
        words
    }

    /// The counters of a group that still exists.
    pub(super) fn usage(&self, group: &str) -> Usage {
        if self.v1.is_empty() {
            let Some(dir) = self.v2.as_ref().map(|m| below(m, group)) else { return Usage::default() };
            return Usage {
                cpu_usec: field(&dir.join("cpu.stat"), "usage_usec"),
                memory_peak: number(&dir.join("memory.peak")),
                oom_killed: field(&dir.join("memory.events"), "oom_kill").is_some_and(|n| n > 0),
            };
        }
        let memory = self.v1_mount("memory").map(|m| below(m, group));
        let cpu = self.v1_mount("cpuacct").map(|m| below(m, group));
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
        let points =
            self.v1.iter().map(|(_, point)| point).chain(self.v2.iter().filter(|_| self.v1.is_empty()));
        points.map(|point| below(point, group)).filter(|dir| dir.is_dir()).collect()
    }

    /// Kills whatever runs in the group.
    pub(super) fn kill(&self, group: &str) {
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
    pub(super) fn remove(&self, group: &str) -> io::Result<()> {
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

fn below(mount: &Path, group: &str) -> PathBuf {
    mount.join(group.trim_start_matches('/'))
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

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        33 31 0:30 / /sys/fs/cgroup/memory rw,relatime shared:4 - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn layouts_are_told_apart() {
        let hybrid = Cgroups::from_mountinfo(HYBRID);
        assert_eq!(hybrid.hybrid_mount(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert!(!hybrid.is_unified());
        assert_eq!(hybrid.v1_mount("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        let v2 = Cgroups::from_mountinfo(
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        assert!(v2.is_unified() && v2.hybrid_mount().is_none());
        let none = Cgroups::from_mountinfo("garbage\n1 2 3 - \n");
        assert_eq!(none.unavailable().len(), 3);
        assert!(!none.usable());
    }
}

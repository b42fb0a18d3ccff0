//! What the host's control groups can do for a run, and what one run used.
//!
//! A runtime of the host makes the run's group and sets its limits, the embedded one does it by `make`; this room finds
//! out which limits can be asked for, and afterwards (`group`) reads the counters, kills what is left and removes
//! the group. Hosts differ: v1 has one hierarchy a controller, v2 one for all, hybrid both (with controllers in v1).
//!
//! Groups are made below a *base* in each hierarchy: its root where that can be written to, else the highest ancestor
//! of our own group that can, which is what a host delegates to an ordinary user (systemd: `Delegate=yes`, or a
//! user's own service manager).

mod group;
#[cfg(feature = "embedded-runtime")]
mod make;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::jobs::executor::LaunchSpec;

/// Groups directly below the base of each hierarchy, so that removing one never races with making another: a
/// shared parent would have to be kept for ever or removed under somebody's feet.
const PREFIX: &str = "addonfs-";
/// The period of a CPU quota, microseconds: the kernel's and every runtime's default.
const CPU_PERIOD: u64 = 100_000;
/// The smallest quota the kernel takes is 1 ms in a period.
const CPU_QUOTA_MIN: i64 = 1000;

/// The control groups of this host, as a run finds them; kept in shim.json, because whoever sweeps a run may be in
/// another group than its shim was, and have another base.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Cgroups {
    /// v1 hierarchies.
    v1: Vec<Hierarchy>,
    /// The v2 hierarchy.
    v2: Option<Hierarchy>,
    /// There is swap to be limited.
    swap: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Hierarchy {
    /// v1: those mounted together. v2: those that groups below the base can have.
    controllers: Vec<String>,
    mount: PathBuf,
    /// Where our groups are made.
    base: PathBuf,
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

/// The groups that a runtime can use: only our own makes them below another base than the root.
pub(super) fn for_runtime(is_embedded: bool) -> Cgroups {
    let found = Cgroups::detect();
    if is_embedded || found.at_root() { found } else { Cgroups::default() }
}

/// The run whose control group a process is in: its group's name, wherever in the hierarchy that is.
pub(in crate::jobs) fn run_id_of_process(pid: u32) -> Option<String> {
    run_id_in(&std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
}

/// The same from the text of `/proc/PID/cgroup` (cgroups(7)).
fn run_id_in(text: &str) -> Option<String> {
    let groups = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    groups.flat_map(|path| path.split('/')).find_map(|name| name.strip_prefix(PREFIX)).map(str::to_owned)
}

impl Cgroups {
    /// Looks at the mounts and the groups of this process.
    pub(super) fn detect() -> Self {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let swap = fs::read_to_string("/proc/swaps").is_ok_and(|s| s.lines().count() > 1);
        let mut found = Self { swap, ..Self::from_mountinfo(&mountinfo) };
        for hierarchy in found.v1.iter_mut() {
            hierarchy.base = base(&hierarchy.mount, own_group(&own, Some(&hierarchy.controllers)));
        }
        if let Some(v2) = &mut found.v2 {
            v2.base = base(&v2.mount, own_group(&own, None));
            v2.controllers = v2_controllers(&v2.base);
        }
        found
    }

    fn from_mountinfo(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(point) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
            let mut hierarchy = Hierarchy { controllers: Vec::new(), base: point.clone(), mount: point };
            match kind {
                "cgroup2" => found.v2 = found.v2.or(Some(hierarchy)),
                "cgroup" => {
                    let controllers = options.split(',').filter(|o| !matches!(*o, "rw" | "ro" | "xattr"));
                    hierarchy.controllers = controllers.map(str::to_owned).collect();
                    found.v1.push(hierarchy);
                }
                _ => {}
            }
        }
        found
    }

    /// v1 controllers beside a mounted v2: what crun calls hybrid and refuses while it sees v2.
    pub(super) fn hybrid_mount(&self) -> Option<&Path> {
        self.v2.as_ref().filter(|_| !self.v1.is_empty()).map(|v2| v2.mount.as_path())
    }

    /// Only v2: a container may have its own view of it mounted.
    pub(super) fn is_unified(&self) -> bool {
        self.v2.is_some() && self.v1.is_empty()
    }

    /// Whether every base is the root of its hierarchy: the place a runtime of the host makes groups at.
    pub(super) fn at_root(&self) -> bool {
        self.v1.iter().chain(&self.v2).all(|h| h.base == h.mount)
    }

    fn v1_with(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1.iter().find(|h| h.has(controller))
    }

    /// Whether groups with this controller can be made by us.
    fn offers(&self, controller: &str) -> bool {
        let hierarchy = if self.v1.is_empty() { self.v2.as_ref() } else { self.v1_with(controller) };
        hierarchy.is_some_and(|h| h.has(controller) && writable(&h.base))
    }

    /// Whether a run can have a group at all.
    pub(super) fn usable(&self) -> bool {
        // A v2 group is of use without any controller: it counts cpu time, and kills at once.
        let unified = self.v2.as_ref().filter(|_| self.is_unified());
        unified.is_some_and(|v2| writable(&v2.base))
            || ["memory", "pids", "cpu"].iter().any(|c| self.offers(c))
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
            self.v1_with("memory").is_some_and(|h| !h.mount.join("memory.memsw.limit_in_bytes").exists());
        if self.swap && memsw_missing && self.offers("memory") {
            words.push("swap: the kernel does not account swap (boot with swapaccount=1)".to_owned());
        }
        words
    }
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }
}

fn writable(dir: &Path) -> bool {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Our own group in the hierarchy with these controllers, or in v2 (cgroups(7), /proc/pid/cgroup).
fn own_group<'a>(text: &'a str, controllers: Option<&[String]>) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, names, path) = (fields.next()?, fields.next()?, fields.next()?);
        let ours = match controllers {
            None => names.is_empty(),
            Some(mounted) => names.split(',').any(|n| !n.is_empty() && mounted.iter().any(|m| m == n)),
        };
        ours.then_some(path)
    })
}

/// The root of the hierarchy if groups can be made there, else the highest ancestor of our group where they can.
fn base(mount: &Path, own: Option<&str>) -> PathBuf {
    if writable(mount) {
        return mount.to_owned();
    }
    let own = mount.join(own.unwrap_or_default().trim_start_matches('/'));
    let delegated = |dir: &Path| writable(dir) && writable(&dir.join("cgroup.procs"));
    let chain = own.ancestors().take_while(|dir| dir.starts_with(mount) && delegated(dir));
    chain.last().map_or_else(|| mount.to_owned(), Path::to_owned)
}

/// The controllers that groups below `base` can have: those handed on already, and, where the kernel lets it hand on
/// more (at the root, and in a group without processes of its own), all it has.
fn v2_controllers(base: &Path) -> Vec<String> {
    let words = |name: &str| fs::read_to_string(base.join(name)).unwrap_or_default();
    let may_hand_on = !base.join("cgroup.type").exists() || words("cgroup.procs").is_empty();
    let list = words(if may_hand_on { "cgroup.controllers" } else { "cgroup.subtree_control" });
    list.split_ascii_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_group() {
        let unified = format!("0::/{PREFIX}r7-0123abcd/below\n");
        assert_eq!(run_id_in(&unified).as_deref(), Some("r7-0123abcd"));
        let hybrid = format!("5:memory:/\n4:pids:/x.slice/{PREFIX}r8-0123abcd\n0::/\n");
        assert_eq!(run_id_in(&hybrid).as_deref(), Some("r8-0123abcd"));
        assert_eq!(run_id_in("0::/user.slice\n"), None);
    }

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        33 31 0:30 / /sys/fs/cgroup/memory rw,relatime shared:4 - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn layouts_are_told_apart() {
        let hybrid = Cgroups::from_mountinfo(HYBRID);
        assert_eq!(hybrid.hybrid_mount(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert!(!hybrid.is_unified());
        let cpuacct = hybrid.v1_with("cpuacct").map(|h| h.mount.as_path());
        assert_eq!(cpuacct, Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        let v2 = Cgroups::from_mountinfo(
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        assert!(v2.is_unified() && v2.hybrid_mount().is_none());
        let none = Cgroups::from_mountinfo("garbage\n1 2 3 - \n");
        assert_eq!(none.unavailable().len(), 3);
        assert!(!none.usable());
    }

    #[test]
    fn our_own_group_is_found_by_controller() {
        let text = "4:cpu,cpuacct:/user/a\n2:name=systemd:/x\n0::/user.slice/b\n";
        let names = |list: &[&str]| list.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        assert_eq!(own_group(text, Some(&names(&["cpuacct"]))), Some("/user/a"));
        assert_eq!(own_group(text, None), Some("/user.slice/b"));
        assert_eq!(own_group(text, Some(&names(&["memory"]))), None);
    }

    #[test]
    fn a_group_with_processes_hands_on_what_it_hands_on_already() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("cgroup.controllers", "cpu memory pids\n");
        write("cgroup.subtree_control", "pids\n");
        write("cgroup.procs", "77\n");
        assert_eq!(v2_controllers(dir.path()).len(), 3, "a root has no cgroup.type");
        write("cgroup.type", "domain\n");
        assert_eq!(v2_controllers(dir.path()), ["pids"]);
        write("cgroup.procs", "");
        assert_eq!(v2_controllers(dir.path()).len(), 3);
    }
}

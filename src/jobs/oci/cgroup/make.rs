//! Making a run's group, with its limits in force before anything is in it.

use std::fs;
use std::io;
use std::path::Path;

use super::group::below;
use super::{Cgroups, Hierarchy, Limits};

/// The v1 hierarchies a run joins. In others (cpuset above all, which must be filled in first) it stays where we are.
const V1: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "devices", "freezer"];
/// The v2 controllers a run uses.
const V2: [&str; 3] = ["cpu", "memory", "pids"];
/// What a container may open (the numbers of `embedded::mounts`, and terminals of its own), in the words of
/// devices.allow. Nodes cannot be made in it at all.
const DEVICES: [&str; 8] =
    ["c 1:3 rw", "c 1:5 rw", "c 1:7 rw", "c 1:8 rw", "c 1:9 rw", "c 5:0 rw", "c 5:2 rw", "c 136:* rw"];

impl Cgroups {
    /// Makes the group wherever it can be and sets the limits. What was made when an error comes is there to be removed.
    pub(in crate::jobs::oci) fn make(&self, group: &str, limits: &Limits) -> io::Result<()> {
        if let Some(v2) = self.v2.as_ref().filter(|_| self.v1.is_empty()) {
            return make_v2(v2, group, limits);
        }
        for hierarchy in self.joined() {
            let dir = below(&hierarchy.base, group);
            create(&dir)?;
            set_v1(hierarchy, &dir, limits)?;
        }
        Ok(())
    }

    /// Moves a process in.
    pub(in crate::jobs::oci) fn enter(&self, group: &str, pid: i32) -> io::Result<()> {
        let v2 = self.v2.iter().filter(|_| self.v1.is_empty());
        for hierarchy in self.joined().chain(v2) {
            write(&below(&hierarchy.base, group), "cgroup.procs", &pid.to_string())?;
        }
        Ok(())
    }

    fn joined(&self) -> impl Iterator<Item = &Hierarchy> {
        let wanted = |h: &&Hierarchy| V1.iter().any(|c| h.has(c)) && super::writable(&h.base);
        self.v1.iter().filter(wanted)
    }
}

fn make_v2(v2: &Hierarchy, group: &str, limits: &Limits) -> io::Result<()> {
    let handed_on = fs::read_to_string(v2.base.join("cgroup.subtree_control"))?;
    for controller in V2.iter().filter(|c| v2.has(c)) {
        if !handed_on.split_ascii_whitespace().any(|c| c == *controller) {
            write(&v2.base, "cgroup.subtree_control", &format!("+{controller}"))?;
        }
    }
    let dir = below(&v2.base, group);
    create(&dir)?;
    if let Some(memory) = limits.memory {
        write(&dir, "memory.max", &memory.to_string())?;
        if let Some(both) = limits.memory_and_swap {
            write(&dir, "memory.swap.max", &(both - memory).max(0).to_string())?;
        }
    }
    if let Some((quota, period)) = limits.cpu {
        write(&dir, "cpu.max", &format!("{quota} {period}"))?;
    }
    if let Some(pids) = limits.pids {
        write(&dir, "pids.max", &pids.to_string())?;
    }
    Ok(())
}

fn set_v1(hierarchy: &Hierarchy, dir: &Path, limits: &Limits) -> io::Result<()> {
    if let Some(memory) = limits.memory.filter(|_| hierarchy.has("memory")) {
        write(dir, "memory.limit_in_bytes", &memory.to_string())?;
        if let Some(both) = limits.memory_and_swap {
            write(dir, "memory.memsw.limit_in_bytes", &both.to_string())?;
        }
    }
    if let Some((quota, period)) = limits.cpu.filter(|_| hierarchy.has("cpu")) {
        write(dir, "cpu.cfs_period_us", &period.to_string())?;
        write(dir, "cpu.cfs_quota_us", &quota.to_string())?;
    }
    if let Some(pids) = limits.pids.filter(|_| hierarchy.has("pids")) {
        write(dir, "pids.max", &pids.to_string())?;
    }
    if hierarchy.has("devices") {
        match write(dir, "devices.deny", "a") {
            // In a user namespace the kernel lets nobody set these, and no node can be made or opened that is not bound.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            other => other?,
        }
        for device in DEVICES {
            write(dir, "devices.allow", device)?;
        }
    }
    Ok(())
}

fn create(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir).map_err(|e| named(dir, e))
}

fn write(dir: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = dir.join(file);
    fs::write(&path, value).map_err(|e| named(&path, e))
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { cpu: Some((50_000, 100_000)), memory: Some(64), memory_and_swap: Some(80), pids: Some(7) }
    }

    fn hierarchy(base: &Path, controllers: &[&str]) -> Hierarchy {
        let controllers = controllers.iter().map(|&c| c.to_owned()).collect();
        Hierarchy { controllers, mount: base.to_owned(), base: base.to_owned() }
    }

    /// Plain folders take what the kernel would be told.
    #[test]
    fn what_v2_is_told() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.subtree_control"), "cpu memory").unwrap();
        let v2 = Some(hierarchy(dir.path(), &["cpu", "memory", "pids", "io"]));
        let cgroups = Cgroups { v2, ..Cgroups::default() };
        cgroups.make("/addonfs-x", &limits()).unwrap();
        cgroups.enter("/addonfs-x", 42).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("cgroup.subtree_control"), "+pids", "what was not handed on yet, and is used");
        let files = [
            ("memory.max", "64"),
            ("memory.swap.max", "16"),
            ("cpu.max", "50000 100000"),
            ("pids.max", "7"),
            ("cgroup.procs", "42"),
        ];
        for (file, value) in files {
            assert_eq!(read(&format!("addonfs-x/{file}")), value, "{file}");
        }
        let again = cgroups.make("/addonfs-x", &limits()).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists, "no two runs share a group");
    }

    #[test]
    fn what_v1_is_told_and_which_hierarchies_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            fs::create_dir(dir.path().join(name)).unwrap();
            hierarchy(&dir.path().join(name), &[name])
        };
        let v1 = ["memory", "pids", "cpu", "cpuset", "name=systemd"].map(at).to_vec();
        let cgroups = Cgroups { v1, v2: Some(hierarchy(Path::new("/nowhere"), &[])), swap: true };
        cgroups.make("/g", &limits()).unwrap();
        cgroups.enter("/g", 42).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).ok();
        assert_eq!(read("memory/g/memory.limit_in_bytes").as_deref(), Some("64"));
        assert_eq!(read("memory/g/memory.memsw.limit_in_bytes").as_deref(), Some("80"));
        assert_eq!(read("cpu/g/cpu.cfs_quota_us").as_deref(), Some("50000"));
        assert_eq!(read("pids/g/pids.max").as_deref(), Some("7"));
        assert_eq!(read("pids/g/cgroup.procs").as_deref(), Some("42"));
        assert_eq!(read("pids/g/memory.limit_in_bytes"), None);
        assert!(!dir.path().join("cpuset/g").exists() && !dir.path().join("name=systemd/g").exists());
    }
}

//! The root of a container: config.json's mounts, the few devices, what is masked, and the way in.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::stat::{Mode as FileMode, SFlag, makedev, mknod, umask};
use nix::unistd::{fchdir, pivot_root};
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags, open, statvfs, symlinkat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

use super::Failure;
use super::place::{Kind, place};

/// What every container finds in its /dev: (name, major, minor) of linux/Documentation/admin-guide/devices.txt.
const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

type Result<T> = std::result::Result<T, Failure>;

/// Builds the root and moves into it; nothing of the host's tree can be reached afterwards.
pub(super) fn enter_root(spec: &Spec) -> Result<()> {
    let step = |what: &'static str| move |e: rustix::io::Errno| Failure::setup(what, e);
    let root = spec.root().as_ref().ok_or_else(|| Failure::Setup("config.json has no root".into()))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(step("private mounts"))?;
    let old = umask(FileMode::from_bits_truncate(0o022));
    let tree = open(root.path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(step("root file system"))?;
    for mount in spec.mounts().iter().flatten() {
        let to = mount.destination().display();
        make(&tree, mount).map_err(|e| Failure::setup(format_args!("mount at {to}"), e))?;
    }
    devices(&tree)?;
    if let Some(process) = spec.process() {
        place(&tree, process.cwd(), Kind::Directory).map_err(step("working directory"))?;
    }
    umask(FileMode::from_bits_truncate(0o000));
    // Over itself and away: pivot_root(2), NOTES.
    fchdir(&tree).map_err(|e| Failure::setup("root", e))?;
    pivot_root(".", ".").map_err(|e| Failure::setup("pivot_root", e))?;
    unmount(".", UnmountFlags::DETACH).map_err(step("the host's tree"))?;
    rustix::process::chdir("/").map_err(step("root"))?;
    umask(old);
    if root.readonly() == Some(true) {
        let kept = kept_flags(Path::new("/")).map_err(step("root"))?;
        mount_remount("/", read_only() | kept, "").map_err(step("read-only root"))?;
    }
    let linux = spec.linux().as_ref();
    for path in linux.and_then(|l| l.masked_paths().as_ref()).into_iter().flatten() {
        mask(path).map_err(|e| Failure::setup(format_args!("mask {path}"), e))?;
    }
    for path in linux.and_then(|l| l.readonly_paths().as_ref()).into_iter().flatten() {
        freeze(path).map_err(|e| Failure::setup(format_args!("read-only {path}"), e))?;
    }
    Ok(())
}

/// Flags for a read-only bind.
pub(super) fn read_only() -> MountFlags {
    MountFlags::BIND | MountFlags::RDONLY
}

/// The restrictions a mount has. In a user namespace those of the host's mounts are locked: a remount that leaves one
/// out is refused.
pub(super) fn kept_flags(at: &Path) -> rustix::io::Result<MountFlags> {
    let has = statvfs(at)?.f_flag;
    let pairs = [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let kept = pairs.into_iter().filter(|(flag, _)| has.contains(*flag)).map(|(_, flag)| flag);
    Ok(kept.fold(MountFlags::empty(), |all, flag| all | flag))
}

fn make(root: &OwnedFd, what: &Mount) -> std::io::Result<()> {
    let wanted = Options::parse(what.options().as_deref().unwrap_or_default());
    let kind = what.typ().as_deref().unwrap_or_default();
    let source = what.source().as_deref().unwrap_or(Path::new(kind));
    let is_file = wanted.bind && fs::metadata(source)?.is_file();
    let place = place(root, what.destination(), if is_file { Kind::File } else { Kind::Directory })?;
    let at = by_descriptor(&place);
    if wanted.bind {
        mount_bind(source, &at)?;
        return Ok(restrict(root, what.destination(), is_file, wanted.flags)?);
    }
    let kind = if kind == "cgroup" { "cgroup2" } else { kind };
    let data = CString::new(wanted.data)?;
    match mount(source, &at, kind, wanted.flags, Some(data.as_c_str())) {
        // A user namespace without a network namespace of its own has no sysfs to mount: the host's is seen.
        Err(rustix::io::Errno::PERM) if kind == "sysfs" => {
            mount_bind_recursive("/sys", &at)?;
            Ok(restrict(root, what.destination(), false, wanted.flags | MountFlags::RDONLY)?)
        }
        other => Ok(other?),
    }
}

/// Flags of a bind take a second call, and a fresh look: the descriptor from before shows what lies below.
fn restrict(root: &OwnedFd, path: &Path, is_file: bool, flags: MountFlags) -> rustix::io::Result<()> {
    let mounted = place(root, path, if is_file { Kind::File } else { Kind::Directory })?;
    let at = by_descriptor(&mounted);
    mount_remount(&at, MountFlags::BIND | flags | kept_flags(Path::new(&at))?, "")
}

fn by_descriptor(place: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", place.as_fd().as_raw_fd())
}

/// Options of config.json, by what mount(2) wants of them.
struct Options {
    flags: MountFlags,
    bind: bool,
    data: String,
}

impl Options {
    fn parse(options: &[String]) -> Self {
        let mut parsed = Self { flags: MountFlags::empty(), bind: false, data: String::new() };
        for option in options {
            parsed.flags |= match option.as_str() {
                "ro" => MountFlags::RDONLY,
                "nosuid" => MountFlags::NOSUID,
                "nodev" => MountFlags::NODEV,
                "noexec" => MountFlags::NOEXEC,
                "relatime" => MountFlags::RELATIME,
                "strictatime" => MountFlags::STRICTATIME,
                "bind" => {
                    parsed.bind = true;
                    continue;
                }
                "rw" => continue,
                data => {
                    let comma = if parsed.data.is_empty() { "" } else { "," };
                    parsed.data += &format!("{comma}{data}");
                    continue;
                }
            };
        }
        parsed
    }
}

/// In a user namespace nodes cannot be made, and those of the host are bound.
fn devices(root: &OwnedFd) -> Result<()> {
    let dev = place(root, Path::new("/dev"), Kind::Directory).map_err(|e| Failure::setup("/dev", e))?;
    let old = umask(FileMode::empty());
    for (name, major, minor) in DEVICES {
        device(root, &dev, name, makedev(major, minor))
            .map_err(|e| Failure::setup(format_args!("/dev/{name}"), e))?;
    }
    umask(old);
    for (target, name) in LINKS {
        symlinkat(target, &dev, name).map_err(|e| Failure::setup(format_args!("/dev/{name}"), e))?;
    }
    Ok(())
}

fn device(root: &OwnedFd, dev: &OwnedFd, name: &str, number: u64) -> std::io::Result<()> {
    let made = mknod(
        Path::new(&by_descriptor(dev)).join(name).as_path(),
        SFlag::S_IFCHR,
        FileMode::from_bits_truncate(0o666),
        number,
    );
    match made {
        Err(nix::errno::Errno::EPERM) => {
            let path = Path::new("/dev").join(name);
            let place = place(root, &path, Kind::File)?;
            Ok(mount_bind(&path, by_descriptor(&place))?)
        }
        other => Ok(other?),
    }
}

/// Hides a path of the container, if it has it.
fn mask(path: &str) -> std::io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            Ok(mount("tmpfs", path, "tmpfs", flags, Some(c"size=4k,nr_inodes=2,mode=0555"))?)
        }
        Ok(_) => Ok(mount_bind("/dev/null", path)?),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn freeze(path: &str) -> std::io::Result<()> {
    if !fs::exists(path)? {
        return Ok(());
    }
    mount_bind_recursive(path, path)?;
    let strict = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount_remount(path, read_only() | strict | kept_flags(Path::new(path))?, "")?)
}

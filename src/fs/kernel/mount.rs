//! Making and ending the two mounts, without touching what is mounted.
//!
//! As root (of any namespace) by `mount(2)`; for an ordinary user by `fusermount3`, which opens the device itself and
//! sends it over the socket named in `_FUSE_COMMFD`. The kernel's number for the connection is read from mountinfo:
//! a `stat` of the mount would be a request, and nobody may be answering yet.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::unistd::{getegid, geteuid};

use super::commfd;

/// The source column of mountinfo.
const FSNAME: &str = "addonfs";
/// The type column of mountinfo.
const FSTYPE: &str = "fuse.addonfs";
/// Where fusermount3 looks for `user_allow_other`.
const FUSE_CONF: &str = "/etc/fuse.conf";
/// INIT offers at most 128 KiB of readahead; sequential reads of cold files gain up to two times at 1 MiB.
const READ_AHEAD_KB: &str = "1024";

/// Why a mount could not be made or ended.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No `/dev/fuse`.
    #[error(
        "cannot open /dev/fuse: {0}; load the kernel module with modprobe fuse, or give the container the device"
    )]
    Device(#[source] io::Error),
    /// The mount point cannot be used.
    #[error("cannot use {path} as a mount point: {source}")]
    MountPoint {
        /// The path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A dead mount is still there.
    #[error("{0} holds a dead mount: end it with addonfs umount or umount -l {0}")]
    Stale(PathBuf),
    /// Somebody else's mount, or ours, is there already.
    #[error("{0} is a mount of addonfs already: end it with addonfs umount {0}")]
    Busy(PathBuf),
    /// The kernel refused.
    #[error("cannot mount {path}: {source}")]
    Kernel {
        /// The path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// fusermount3 is missing or refused.
    #[error("fusermount3 cannot mount {path}: {reason}")]
    Helper {
        /// The path.
        path: PathBuf,
        /// Its words.
        reason: String,
    },
    /// It could not be unmounted.
    #[error("cannot unmount {path}: {reason}")]
    Unmount {
        /// The path.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}

/// Which of the two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tree {
    /// The control tree: read-write, because commands are writes.
    Control,
    /// The image trees: read-only.
    Images,
}

impl Tree {
    /// `nosuid` and `nodev` always: set-user-id bits and devices of foreign images stay dead. Never `noexec`: the
    /// control tree holds executables, the image trees programs.
    fn flags(self) -> MsFlags {
        let common = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        match self {
            Self::Control => common,
            Self::Images => common | MsFlags::MS_RDONLY,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Control => "rw,nosuid,nodev,noatime",
            Self::Images => "ro,nosuid,nodev,noatime",
        }
    }
}

/// A mount that was made. Dropping it closes the device, which ends the connection if nobody else holds it.
#[derive(Debug)]
pub struct Mounted {
    /// The device to serve and to keep.
    pub device: OwnedFd,
    /// The mount point, absolute.
    pub path: PathBuf,
    /// The connection's number: `/sys/fs/fuse/connections/<number>`, and the device minor of the mount.
    pub connection: u32,
    /// Whether users other than the mounting one may enter.
    pub allow_other: bool,
}

/// Opens `/dev/fuse` for a new connection.
pub fn open_device() -> Result<OwnedFd, MountError> {
    let device = fs::File::options().read(true).write(true).open("/dev/fuse").map_err(MountError::Device)?;
    Ok(device.into())
}

/// Mounts the control tree at `path`, an existing directory, with `mount(2)`.
pub fn mount_control(device: OwnedFd, path: &Path) -> Result<Mounted, MountError> {
    mount_direct(Tree::Control, device, &usable(path)?)
}

/// Mounts the image trees at `path` with `mount(2)`. `path` must be absolute and without symlinks. Where it lies in
/// the control tree, that must be served by then: the kernel looks the path up.
pub fn mount_images(device: OwnedFd, path: &Path) -> Result<Mounted, MountError> {
    mount_direct(Tree::Images, device, path)
}

/// Mounts as an ordinary user, by fusermount3. `allow_other` only where the administrator allows it.
pub fn mount_by_helper(tree: Tree, path: &Path) -> Result<Mounted, MountError> {
    let path = match tree {
        Tree::Control => usable(path)?,
        Tree::Images => path.to_owned(),
    };
    let allow_other = geteuid().is_root() || user_allow_other();
    let mut options = format!("{},default_permissions,fsname={FSNAME},subtype=addonfs", tree.words());
    if allow_other {
        options.push_str(",allow_other");
    }
    let device = commfd::fusermount(&options, &path)
        .map_err(|reason| MountError::Helper { path: path.clone(), reason })?;
    Ok(finish(device, path, allow_other))
}

/// Mounts in the way that this process may: `mount(2)` as root, else fusermount3.
pub fn mount(tree: Tree, path: &Path) -> Result<Mounted, MountError> {
    if !geteuid().is_root() {
        return mount_by_helper(tree, path);
    }
    match tree {
        Tree::Control => mount_control(open_device()?, path),
        Tree::Images => mount_images(open_device()?, path),
    }
}

/// Whether a mount of this process can have a mount nested in it and be entered by others (see [`user_allow_other`]).
pub fn may_nest() -> bool {
    geteuid().is_root() || user_allow_other()
}

/// Whether fuse.conf lets ordinary users pass `allow_other`.
pub fn user_allow_other() -> bool {
    fs::read_to_string(FUSE_CONF).is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"))
}

fn mount_direct(tree: Tree, device: OwnedFd, path: &Path) -> Result<Mounted, MountError> {
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,allow_other",
        device.as_raw_fd(),
        geteuid(),
        getegid()
    );
    nix::mount::mount(Some(FSNAME), path, Some(FSTYPE), tree.flags(), Some(options.as_str()))
        .map_err(|errno| MountError::Kernel { path: path.to_owned(), source: errno.into() })?;
    Ok(finish(device, path.to_owned(), true))
}

fn finish(device: OwnedFd, path: PathBuf, allow_other: bool) -> Mounted {
    let connection = connection_of(&path).unwrap_or(0);
    raise_read_ahead(connection);
    Mounted { device, path, connection, allow_other }
}

/// The absolute path of a directory that nothing of ours is mounted on.
fn usable(path: &Path) -> Result<PathBuf, MountError> {
    let absolute = std::path::absolute(path)
        .map_err(|source| MountError::MountPoint { path: path.to_owned(), source })?;
    // asked before the path is touched: touching a mount that nobody serves would wait for ever
    if let Some(connection) = connection_of(&absolute) {
        return Err(match state(&absolute, connection) {
            State::Dead => MountError::Stale(absolute),
            State::Alive | State::Silent => MountError::Busy(absolute),
        });
    }
    match fs::canonicalize(&absolute) {
        Ok(real) if real.is_dir() => Ok(real),
        Ok(_) => Err(MountError::MountPoint { path: absolute, source: Errno::ENOTDIR.into() }),
        Err(error) if error.raw_os_error() == Some(Errno::ENOTCONN as i32) => {
            Err(MountError::Stale(absolute))
        }
        Err(source) => Err(MountError::MountPoint { path: absolute, source }),
    }
}

/// How a mount of ours does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It answers.
    Alive,
    /// Its connection is gone (ENOTCONN): only unmounting helps.
    Dead,
    /// No answer within a second: its daemon is away, or busy.
    Silent,
}

/// Asks a mount whether it lives. The asking thread is left behind if no answer comes: a caller stuck in a request
/// that nobody has read yet dies with its process.
pub fn state(path: &Path, connection: u32) -> State {
    /// A daemon answers GETATTR in microseconds; a restart takes some hundred milliseconds.
    const PATIENCE: Duration = Duration::from_secs(1);
    let (tell, answer) = std::sync::mpsc::channel();
    let asked = path.to_owned();
    std::thread::spawn(move || {
        let _ = tell.send(rustix::fs::statfs(&asked).map(drop));
    });
    match answer.recv_timeout(PATIENCE) {
        Ok(Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED)) => State::Dead,
        Ok(_) => State::Alive,
        Err(_) => {
            tracing::debug!(connection, path = %path.display(), "no answer");
            State::Silent
        }
    }
}

/// The connection number of the uppermost addonfs mount at exactly `path`.
pub fn connection_of(path: &Path) -> Option<u32> {
    let table = fs::read("/proc/self/mountinfo").ok()?;
    let mounts = table.split(|byte| *byte == b'\n').filter_map(mountinfo_line);
    mounts.filter(|(_, point)| point == path).map(|(minor, _)| minor).next_back()
}

/// All addonfs mounts: connection number and mount point, in the order they were made.
pub fn ours() -> Vec<(u32, PathBuf)> {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    table.split(|byte| *byte == b'\n').filter_map(mountinfo_line).collect()
}

/// One line of proc_pid_mountinfo(5), if the mount is of our type: device minor and mount point.
fn mountinfo_line(line: &[u8]) -> Option<(u32, PathBuf)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    let point = fields.nth(1)?;
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    if kind != FSTYPE.as_bytes() {
        return None;
    }
    let minor = std::str::from_utf8(device).ok()?.strip_prefix("0:")?.parse().ok()?;
    Some((minor, PathBuf::from(OsString::from_vec(unescape(point)))))
}

/// Undoes the kernel's `\ooo` for blanks, tabs, newlines and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match (first, octal) {
            (b'\\', Some(digits)) => {
                plain.push(digits.iter().fold(0_u8, |sum, d| sum.wrapping_mul(8).wrapping_add(d - b'0')));
                rest = &tail[3..];
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

/// Best effort: without it reads are only slower.
fn raise_read_ahead(connection: u32) {
    let path = format!("/sys/class/bdi/0:{connection}/read_ahead_kb");
    if let Err(error) = fs::write(&path, READ_AHEAD_KB) {
        tracing::debug!(%path, %error, "readahead stays as it is");
    }
}

/// Takes a mount off the tree at once; open files of it live on. Touches the path up to the mount point only, so a
/// dead or silent mount goes as well.
pub fn unmount(path: &Path) -> Result<(), MountError> {
    match nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => unmount_by_helper(path),
        Err(errno) => Err(MountError::Unmount { path: path.to_owned(), reason: errno.desc().to_owned() }),
    }
}

fn unmount_by_helper(path: &Path) -> Result<(), MountError> {
    let failed = |reason: String| MountError::Unmount { path: path.to_owned(), reason };
    let output = Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("fusermount3: {error}; install the package fuse3")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// The last rescue: ends a connection, and every caller stuck in it, with ENOTCONN. For root or who mounted it, where
/// fusectl is mounted (`mount -t fusectl none /sys/fs/fuse/connections`); closing every copy of the device does the
/// same.
pub fn abort(connection: u32) -> io::Result<()> {
    fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_names_are_unescaped_and_other_types_skipped() {
        let line =
            br"52 27 0:44 / /mnt/a\040b\134c rw,nosuid,nodev shared:5 - fuse.addonfs addonfs rw,user_id=0";
        assert_eq!(mountinfo_line(line), Some((44, PathBuf::from(r"/mnt/a b\c"))));
        assert_eq!(mountinfo_line(b"52 27 0:44 / /mnt rw - ext4 /dev/vda rw"), None);
        assert_eq!(mountinfo_line(b""), None);
        assert_eq!(mountinfo_line(b"52 27"), None);
    }
}

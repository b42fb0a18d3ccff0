//! Which folder the program was started from, and under which name: that is the job (or run) and the verb.
//!
//! `/proc/self/exe` is the path of the very directory entry that was executed, whatever symlink, PATH entry or
//! relative path led there. Where there is no /proc (or it shows another mount namespace) AT_EXECFN is the path that
//! was given to execve, through symlinks that are followed here.

use crate::entry::Start;
use crate::sys::{self, AT_FDCWD, Errno, O_DIRECTORY, O_PATH, PATH_MAX};

/// What the kernel puts behind the path of an executable that is gone.
const DELETED: &[u8] = b" (deleted)";

/// What it puts before a path that lies outside of this process's root.
const UNREACHABLE: &[u8] = b"(unreachable)";

/// As many symlinks as the kernel follows.
const MAX_LINKS: usize = 40;

/// The folder and the name.
pub(crate) struct Place {
    folder: i32,
    name: [u8; 16],
    len: usize,
}

impl Place {
    /// `run`, `plan`, `wait`, `follow`, or nothing we know.
    pub(crate) fn name(&self) -> &[u8] {
        self.name.get(..self.len).unwrap_or_default()
    }

    /// Opens a file of the folder.
    pub(crate) fn open(&self, path: &[u8], flags: i32) -> Result<i32, Errno> {
        sys::open(self.folder, path, flags)
    }

    /// A descriptor of the folder, for paths below it.
    pub(crate) fn folder(&self) -> i32 {
        self.folder
    }
}

/// Looks once, at the start: later the entry may be gone or renamed.
pub(crate) fn find(start: &Start) -> Result<Place, &'static str> {
    let mut room = [0u8; PATH_MAX];
    if let Ok(path) = sys::read_link(AT_FDCWD, b"/proc/self/exe", &mut room)
        && !path.starts_with(UNREACHABLE)
    {
        if path.ends_with(DELETED) {
            return Err("run removed: the folder of this program is gone from the mount");
        }
        return open(path);
    }
    let mut room = [0u8; PATH_MAX];
    let mut len = start
        .exec_path()
        .and_then(|path| copy(path, &mut room, 0))
        .ok_or("cannot tell where this program is")?;
    for _ in 0..MAX_LINKS {
        let mut target = [0u8; PATH_MAX];
        let path = room.get(..len).unwrap_or_default();
        let Ok(target) = sys::read_link(AT_FDCWD, path, &mut target) else { break };
        // A relative target starts in the folder of the link.
        let keep = if target.starts_with(b"/") { 0 } else { folder_len(path) };
        len = copy(target, &mut room, keep).ok_or("the path of this program is too long")?;
    }
    open(room.get(..len).unwrap_or_default())
}

/// Copies `path` behind the first `keep` bytes of `room`; the new length.
fn copy(path: &[u8], room: &mut [u8], keep: usize) -> Option<usize> {
    room.get_mut(keep..keep + path.len())?.copy_from_slice(path);
    Some(keep + path.len())
}

/// Length of a path up to and with its last slash.
fn folder_len(path: &[u8]) -> usize {
    path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1)
}

fn open(path: &[u8]) -> Result<Place, &'static str> {
    let (folder, name) = path.split_at_checked(folder_len(path)).unwrap_or_default();
    let folder = if folder.is_empty() { b"." } else { folder };
    let mut place = Place { folder: -1, name: [0; 16], len: 0 };
    // A name that does not fit is none that we know.
    place.len = copy(name, &mut place.name, 0).unwrap_or(0);
    place.folder = sys::open(AT_FDCWD, folder, O_PATH | O_DIRECTORY)
        .map_err(|_| "run removed: the folder of this program cannot be opened")?;
    Ok(place)
}

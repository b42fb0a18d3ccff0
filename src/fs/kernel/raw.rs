//! What no safe wrapper covers: putting one descriptor under another's number, and using and closing a passthrough
//! backing id by hand (fuser closes an id with its guard; ours live as long as the inode).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use fuser::{FileHandle, FopenFlags, ReplyOpen};
use nix::libc;

/// Makes `target`'s number refer to `source`'s open file, close-on-exec.
pub(super) fn replace(target: BorrowedFd<'_>, source: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both numbers are open (they are borrowed), dup3 touches no memory, and the owner of `target` keeps
    // owning the same number, which stays open throughout.
    let result = unsafe { libc::dup3(source.as_raw_fd(), target.as_raw_fd(), libc::O_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `FUSE_DEV_IOC_BACKING_CLOSE` of `include/uapi/linux/fuse.h`: forgets a backing id of this connection.
pub(super) fn close_backing(device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    // SAFETY: the ioctl reads four bytes at the pointer, which points to a live u32.
    unsafe { backing_close(device.as_raw_fd(), &id) }.map(drop).map_err(io::Error::from)
}

nix::ioctl_write_ptr!(backing_close, 229, 2, u32);

/// Answers an OPEN with a backing id that stays open.
pub(super) fn opened_passthrough(reply: ReplyOpen, handle: FileHandle, flags: FopenFlags, id: u32) {
    // SAFETY: `id` is an open id of this connection (it was made on it and journaled; ids are closed only after
    // their inode was taken out of the table of known ids), and `into_raw` below keeps the guard from closing it.
    let guard = unsafe { reply.wrap_backing(id) };
    reply.opened_passthrough(handle, flags, &guard);
    let _ = guard.into_raw();
}

/// Closes a backing id of the connection that `reply` belongs to.
pub(super) fn close_through(reply: &ReplyOpen, id: u32) {
    // SAFETY: `id` is an open id of this connection that was just taken out of the table of known ids, and no open
    // file uses it; the guard closes it when it is dropped here.
    drop(unsafe { reply.wrap_backing(id) });
}

//! Descriptors across exec: stray ones kept out, passed ones taken over.
#![allow(unsafe_code)] // close_range(2) has no safe wrapper in the crates we use; adopting a number has none at all.

use std::os::fd::{FromRawFd, OwnedFd};

use nix::libc;

/// From `linux/close_range.h`.
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;

/// Marks every descriptor above standard error as closed at the next exec. Kernels without close_range (before
/// 5.11) leave them as they are; ours are opened close-on-exec anyway, so this guards against foreign ones only.
pub(in crate::jobs) fn close_all_at_exec() {
    close_range(CLOSE_RANGE_CLOEXEC);
}

/// Closes every descriptor above standard error: a pipe of whoever started the daemon must not stay open with us.
/// To be called first in a process, before it has opened anything.
pub(super) fn close_all_now() {
    close_range(0);
}

fn close_range(flags: libc::c_uint) {
    // SAFETY: the call takes three integers and touches no memory of ours. With CLOSE_RANGE_CLOEXEC it closes
    // nothing; without, the caller promises that nothing in this process owns a descriptor yet.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, flags);
    }
}

/// Takes over a descriptor that the spawner passed by number. `None` if it is a standard stream or not open. To be
/// called once a number, at the start of a process.
pub(in crate::jobs) fn adopt(number: i32) -> Option<OwnedFd> {
    // SAFETY: F_GETFD only looks; on a number that is not open it fails.
    let open = number > 2 && unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
    // SAFETY: it is open, and nothing in this process owns it: it came with the exec, named in our arguments, and
    // the caller takes each number once, before anything else is opened under it.
    open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

//! Keeping stray descriptors out of what we start.
#![allow(unsafe_code)] // close_range(2) has no safe wrapper in the crates we use.

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

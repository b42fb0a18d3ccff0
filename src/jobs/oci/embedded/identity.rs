//! Who process 1 is when its program begins: the job's ids, no capability in any set, no way to get one.
#![allow(unsafe_code)] // capset(2) and keyctl(2) have no wrapper in the crates we use.

use nix::libc;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use oci_spec::runtime::User;

use super::Failure;

/// Capabilities have numbers below this (linux/capability.h has 41; the sets are 64 bits wide).
const CAPABILITIES_MAX: libc::c_ulong = 63;
/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h: two 32-bit words a set.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// `KEYCTL_JOIN_SESSION_KEYRING` of linux/keyctl.h.
const JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Takes the ids and gives up everything else.
pub(super) fn take(user: &User) -> Result<(), Failure> {
    new_keyring();
    // While we may: the bounding set is what a program of root would get back.
    for number in 0..=CAPABILITIES_MAX {
        // SAFETY: integers only. A number that this kernel does not know is refused, and there is nothing to drop.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
    }
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|&gid| Gid::from_raw(gid)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    match setgroups(&groups) {
        // In a user namespace with one id groups are not to be changed, and there are none of the job's.
        Err(nix::errno::Errno::EPERM) if groups.is_empty() => {}
        other => other.map_err(|e| Failure::setup("supplementary groups", e))?,
    }
    setresgid(gid, gid, gid).map_err(|e| Failure::setup(format_args!("group {gid}"), e))?;
    setresuid(uid, uid, uid).map_err(|e| Failure::setup(format_args!("user {uid}"), e))?;
    no_capabilities().map_err(|e| Failure::setup("capabilities", e))?;
    prctl::set_no_new_privs().map_err(|e| Failure::setup("no_new_privs", e))
}

/// The host's session keyring is not the job's; keyctl itself is refused by the filter later.
fn new_keyring() {
    // SAFETY: an integer and a null pointer, which asks for an anonymous keyring. Kernels without keyrings refuse.
    unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}

fn no_capabilities() -> Result<(), nix::errno::Errno> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    let header = Header { version: CAPABILITY_VERSION, pid: 0 };
    // Effective, permitted, inheritable, twice: capset(2). An empty inheritable set empties the ambient one.
    let sets = [0u32; 6];
    // SAFETY: both structures have the layout of linux/capability.h for this version and live across the call.
    let answer = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    nix::errno::Errno::result(answer).map(drop)
}

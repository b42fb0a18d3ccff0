//! Empty network namespaces, made ahead.
//!
//! A new network namespace costs about 10 ms, half of a small job's start, so a few are kept ready. Each is used
//! by one run and never again: what a job left in it (addresses, rules, counters) is nobody else's.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sched::{CloneFlags, unshare};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::jobs::spawner::Spawner;

/// Moves the calling process into a new network namespace, brings `lo` up, and returns a descriptor of the
/// namespace. For short-lived, single-threaded processes only.
pub(in crate::jobs) fn make() -> io::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    loopback_up()?;
    Ok(std::fs::File::open("/proc/self/ns/net")?.into())
}

/// `RTM_NEWLINK` for interface 1 with `IFF_UP` (rtnetlink(7)): `lo` is always the first interface.
pub(super) fn loopback_up() -> io::Result<()> {
    const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
    const RTM_NEWLINK: u16 = 16;
    const IFF_UP: u32 = 1;
    let mut message = Vec::with_capacity(32);
    message.extend_from_slice(&32u32.to_ne_bytes()); // nlmsghdr: length, type, flags, sequence, port
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[0; 4]); // ifinfomsg: family, pad, type, index, flags, change
    message.extend_from_slice(&1i32.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());

    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    rustix::io::write(&socket, &message)?;
    let mut reply = [0u8; 256];
    let n = rustix::io::read(&socket, &mut reply)?;
    // nlmsgerr: the header, then a negative errno or 0.
    let error = reply.get(16..20).filter(|_| n >= 20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match error {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "short netlink answer")),
    }
}

/// A few namespaces, ready for the next runs.
#[derive(Debug)]
pub(super) struct Pool {
    spawner: Spawner,
    ready: Mutex<Vec<OwnedFd>>,
    size: usize,
    filling: AtomicBool,
}

impl Pool {
    pub(super) fn new(spawner: Spawner, size: usize) -> Self {
        Self { spawner, ready: Mutex::new(Vec::new()), size, filling: AtomicBool::new(false) }
    }

    /// One that is ready; `None` if there is none just now (the runtime then makes one itself).
    pub(super) fn take(&self) -> Option<OwnedFd> {
        self.lock().pop()
    }

    /// One that is ready, or a new one made at once.
    pub(super) fn take_or_make(&self) -> Result<OwnedFd, String> {
        self.take().map_or_else(|| self.spawner.network_namespace_blocking(), Ok)
    }

    /// Makes namespaces until the pool is full. Blocks; one filler at a time, others return at once. An error ends
    /// it: a host that lets us make none is not asked again and again.
    pub(super) fn fill(&self) {
        if self.filling.swap(true, Ordering::AcqRel) {
            return;
        }
        while self.lock().len() < self.size {
            match self.spawner.network_namespace_blocking() {
                Ok(namespace) => self.lock().push(namespace),
                Err(_) => break,
            }
        }
        self.filling.store(false, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

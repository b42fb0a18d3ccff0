//! What a daemon does without being asked: lets go of what nobody uses, and dies rather than serve with a thread less.

#![allow(unsafe_code, reason = "the allocator's own call to give memory back")]

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Weak;
use std::time::Duration;

use crate::fetch::store::Store;
use crate::fs::kernel::backing::Backings;

/// Between two rounds. A backing id keeps the disk space of an evicted file; making one anew costs microseconds.
const ROUND: Duration = Duration::from_secs(60);

/// Closes the backing ids of files that nobody has open, for as long as the runtime lives.
pub(crate) fn close_idle_backings(backings: Backings, device: OwnedFd) {
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(ROUND);
        interval.tick().await;
        loop {
            interval.tick().await;
            let closed = backings.close_idle(device.as_fd(), |_| false);
            tracing::debug!(closed, "backing ids of files nobody has open");
        }
    });
}

/// Saves now and then what the store knows only in memory, for as long as there is a store.
pub(crate) fn save_uses(store: Weak<Store>) {
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(ROUND);
        interval.tick().await;
        loop {
            interval.tick().await;
            let Some(store) = store.upgrade() else { return };
            // It writes, and for a moment holds what threads that serve the mount wait for.
            let saved = tokio::task::spawn_blocking(move || store.save_uses()).await;
            tracing::debug!(done = saved.is_ok(), "times of last use");
        }
    });
}

/// Gives memory that was freed back to the system. Indexing and merging a large image take hundreds of megabytes for some
/// seconds, in small pieces, and glibc keeps what they leave for ever.
pub(crate) fn give_memory_back() {
    // SAFETY: takes no pointer, and locks the arenas by itself.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Large buffers come from the system and go back to it, each by itself. By its own rule glibc begins to cut them from its
/// heaps once one was freed; then what is small and stays keeps what was large, and a fetch at full speed takes 130 MiB
/// instead of 60.
pub(crate) fn keep_large_buffers_apart() {
    /// glibc's own value, from which it would depart.
    #[cfg(target_env = "gnu")]
    const LARGE: i32 = 128 << 10;
    // SAFETY: takes no pointer, and locks the allocator by itself.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// A panic on a thread that serves the kernel would leave its caller without an answer and the mount with a thread
/// less. The holder starts the next daemon at once, and the kernel sends it again what was not answered.
pub(crate) fn abort_on_lost_thread() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        if std::thread::current().name().is_some_and(|name| name.starts_with("fuse")) {
            std::process::abort();
        }
    }));
}

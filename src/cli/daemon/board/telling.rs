//! Telling the tree that what is shown has changed: of changes that come while it is told of one, all are in the next telling.
//!
//! The tree is made anew each time, which takes as long as there are sources. A thousand sources that are mounted together
//! would make it two thousand times; so they make it some dozens of times.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use tokio::runtime::{Handle, RuntimeFlavor};

/// Who is told, and of how many changes.
#[derive(Default)]
pub(super) struct Telling {
    whom: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Changes so far.
    changes: AtomicU64,
    /// Changes that the tree was told of. Held while it is told.
    told: Mutex<u64>,
}

impl Telling {
    /// Says whom to tell; only the first one counts.
    pub(super) fn connect(&self, whom: impl Fn() + Send + Sync + 'static) {
        let _ = self.whom.set(Box::new(whom));
    }

    /// Returns when the tree shows what was changed before the call.
    pub(super) fn tell(&self) {
        let Some(whom) = self.whom.get() else { return };
        let change = self.changes.fetch_add(1, Ordering::SeqCst) + 1;
        let mut told = self.turn();
        if *told < change {
            let all = self.changes.load(Ordering::SeqCst);
            whom();
            *told = all;
        }
    }

    /// Who has to wait lets other tasks have the thread: they are the ones whose changes come together.
    fn turn(&self) -> MutexGuard<'_, u64> {
        match self.told.try_lock() {
            Ok(told) => return told,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {}
        }
        let wait = || self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match Handle::try_current().map(|handle| handle.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
            _ => wait(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    /// Each telling takes longer than all tasks need to come.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn changes_that_come_together_are_told_together() {
        let (telling, shown, now) =
            (Arc::new(Telling::default()), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let times = Arc::new(AtomicU64::new(0));
        {
            let (shown, now, times) = (Arc::clone(&shown), Arc::clone(&now), Arc::clone(&times));
            telling.connect(move || {
                let seen = now.load(Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(50));
                shown.store(seen, Ordering::SeqCst);
                times.fetch_add(1, Ordering::SeqCst);
            });
        }
        let tasks = (0..100).map(|_| {
            let (telling, shown, now) = (Arc::clone(&telling), Arc::clone(&shown), Arc::clone(&now));
            tokio::spawn(async move {
                let mine = now.fetch_add(1, Ordering::SeqCst) + 1;
                telling.tell();
                assert!(shown.load(Ordering::SeqCst) >= mine, "told before it returns");
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        assert!(times.load(Ordering::SeqCst) < 50, "{times:?}");
    }
}

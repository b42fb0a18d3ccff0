//! Who polls: at most one task a handle, however often it polls, and none once it is closed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::task::AbortHandle;

use super::{Wake, lock};

/// Tasks that wait for a handle.
#[derive(Debug, Default, Clone)]
pub(super) struct Waiters(Arc<Mutex<HashMap<u64, AbortHandle>>>);

impl Waiters {
    /// Wakes when `moved` is done, unless somebody waits for this handle already: the kernel knows one waiter a file.
    pub(super) fn start(
        &self,
        runtime: &tokio::runtime::Handle,
        handle: u64,
        moved: impl Future<Output = ()> + Send + 'static,
        wake: Wake,
    ) {
        let mut tasks = lock(&self.0);
        if tasks.contains_key(&handle) {
            return;
        }
        let waiters = self.clone();
        let task = runtime.spawn(async move {
            moved.await;
            // out of the table before it wakes: the poll that follows must find room for the next one
            lock(&waiters.0).remove(&handle);
            wake();
        });
        tasks.insert(handle, task.abort_handle());
    }

    /// The handle was closed.
    pub(super) fn end(&self, handle: u64) {
        if let Some(task) = lock(&self.0).remove(&handle) {
            task.abort();
        }
    }
}

//! A reply that a task owes.
//!
//! fuser answers EIO for a reply that is dropped. When a daemon ends in order its tasks are dropped, and their callers
//! would get EIO where the successor could have answered: the kernel hands over again what was never answered. So a
//! reply dropped by its task is forgotten, unless that task panicked.

use fuser::ReplyData;

#[derive(Debug)]
pub(super) struct Owed(Option<ReplyData>);

impl Owed {
    pub(super) fn new(reply: ReplyData) -> Self {
        Self(Some(reply))
    }

    /// Sends it.
    pub(super) fn answer(mut self, send: impl FnOnce(ReplyData)) {
        if let Some(reply) = self.0.take() {
            send(reply);
        }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take()
            && !std::thread::panicking()
        {
            std::mem::forget(reply);
        }
    }
}

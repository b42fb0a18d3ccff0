//! `.addonfs/last_error`: the words behind an errno where no nearer file holds them (a refused `mkdir`, a refused
//! command of a job's `ctl`), or else what the daemon itself says.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::lock;

/// The newest refusal, the tree's or the daemon's.
#[derive(Debug, Default)]
pub(super) struct LastRefusal {
    last: Mutex<Option<Refused>>,
    count: AtomicU64,
}

#[derive(Debug, Clone)]
struct Refused {
    words: Arc<[u8]>,
    /// What the daemon said when this was refused: if it says something else by now, that is newer.
    daemon_said: Arc<[u8]>,
}

impl LastRefusal {
    pub(super) fn put(&self, words: &str, daemon_says: Arc<[u8]>) {
        let words = format!("{}\n", words.trim_end());
        *lock(&self.last) = Some(Refused { words: words.into_bytes().into(), daemon_said: daemon_says });
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were: part of the stamp of the file.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(super) fn show(&self, daemon_says: Arc<[u8]>) -> Arc<[u8]> {
        match &*lock(&self.last) {
            Some(refused) if refused.daemon_said == daemon_says => Arc::clone(&refused.words),
            _ => daemon_says,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_refusal_is_shown() {
        let daemon = |text: &str| Arc::<[u8]>::from(text.as_bytes());
        let last = LastRefusal::default();
        assert_eq!(&*last.show(daemon("old\n")), b"old\n");
        last.put("bad name", daemon("old\n"));
        assert_eq!(&*last.show(daemon("old\n")), b"bad name\n");
        assert_eq!(&*last.show(daemon("newer\n")), b"newer\n");
    }
}

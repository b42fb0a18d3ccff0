//! The spans decoded last, in memory: consecutive reads of a small part of a large span prove it once.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::policy::digest::Digest;

/// Most bytes kept. Six spans of our own or two of SOCI's: about what as many FUSE threads read at once, and a fifth of
/// what the daemon may hold in memory.
const LIMIT: usize = 12 << 20;

/// Proven spans, the one used last in front.
#[derive(Debug)]
pub(super) struct Recent {
    spans: VecDeque<(Digest, Bytes)>,
    total: usize,
}

impl Recent {
    pub(super) fn new() -> Self {
        Self { spans: VecDeque::new(), total: 0 }
    }

    pub(super) fn get(&mut self, digest: &Digest) -> Option<Bytes> {
        let at = self.spans.iter().position(|(known, _)| known == digest)?;
        let found = self.spans.remove(at)?;
        self.spans.push_front(found.clone());
        Some(found.1)
    }

    pub(super) fn put(&mut self, digest: &Digest, bytes: &Bytes) {
        if bytes.len() > LIMIT / 2 || self.get(digest).is_some() {
            return;
        }
        self.total += bytes.len();
        self.spans.push_front((*digest, bytes.clone()));
        while self.total > LIMIT {
            let Some((_, oldest)) = self.spans.pop_back() else { return };
            self.total -= oldest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_was_used_last() {
        let mut recent = Recent::new();
        let span = |at: u8| (Digest::of(&[at]), Bytes::from(vec![at; 2 << 20]));
        for at in 0..6 {
            let (digest, bytes) = span(at);
            recent.put(&digest, &bytes);
        }
        assert!(recent.get(&span(0).0).is_some());
        recent.put(&span(9).0, &span(9).1);
        assert!(recent.get(&span(1).0).is_none(), "least recently used");
        assert!(recent.get(&span(0).0).is_some());
        assert_eq!(recent.total, LIMIT);
    }
}

//! The reply of a `ctl`, which belongs to the open file it was asked on.
//!
//! File positions mean nothing on a `ctl`: a write moves them as well as a read does. The first read after a write
//! starts the reply wherever it happens to be; later ones go on from there, so that a reader who takes a block and
//! seeks back to behind the first line (bash does) gets the second line next.

/// A reply being read.
#[derive(Debug, Default)]
pub(super) struct Reply {
    text: Vec<u8>,
    /// The file position at which the first read of this reply began.
    start: Option<u64>,
}

impl Reply {
    /// A new command was answered.
    pub(super) fn put(&mut self, text: &str) {
        self.text.clear();
        self.text.extend_from_slice(text.as_bytes());
        if !text.is_empty() && !text.ends_with('\n') {
            self.text.push(b'\n');
        }
        self.start = None;
    }

    /// At most `size` bytes; none at the end of the reply.
    pub(super) fn read(&mut self, offset: u64, size: u32) -> Vec<u8> {
        let start = match self.start {
            Some(start) if offset >= start => start,
            _ => *self.start.insert(offset),
        };
        slice(&self.text, offset - start, size).to_vec()
    }
}

/// The part of `bytes` that a read at `offset` gets.
pub(super) fn slice(bytes: &[u8], offset: u64, size: u32) -> &[u8] {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let rest = bytes.get(from..).unwrap_or_default();
    rest.get(..size as usize).unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_starts_at_whatever_position_the_first_read_has() {
        let mut reply = Reply::default();
        assert_eq!(reply.read(0, 10), b"");
        reply.put("one\ntwo");
        assert_eq!(reply.read(29, 128), b"one\ntwo\n");
        assert_eq!(reply.read(33, 128), b"two\n", "seek back to behind the first line");
        assert_eq!(reply.read(37, 128), b"");
        assert_eq!(reply.read(0, 3), b"one", "a rewind starts again");
        reply.put("next\n");
        assert_eq!(reply.read(37, 2), b"ne");
        assert_eq!(reply.read(39, 9), b"xt\n");
    }

    #[test]
    fn slices_never_reach_beyond_the_bytes() {
        assert_eq!(slice(b"abc", 1, 1), b"b");
        assert_eq!(slice(b"abc", 3, 9), b"");
        assert_eq!(slice(b"abc", u64::MAX, u32::MAX), b"");
    }
}

//! Words to the user, and numbers as digits.

use crate::{REFUSED, sys};

/// Prints `addonfs: …` and a newline to stderr in one write; the result is the exit code of a refusal.
pub(crate) fn complain(parts: &[&[u8]]) -> i32 {
    let mut line = Line::new();
    line.push(b"addonfs: ");
    for part in parts {
        line.push(part);
    }
    line.push(b"\n");
    sys::write_all(2, line.bytes());
    REFUSED
}

/// A short text being put together; what does not fit is cut.
pub(crate) struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; 512], len: 0 }
    }

    pub(crate) fn push(&mut self, part: &[u8]) {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        let len = part.len().min(room.len());
        room.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
        self.len += len;
    }

    pub(crate) fn push_number(&mut self, number: u64) {
        let mut digits = [0u8; 20];
        let mut left = number;
        let mut start = digits.len();
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (left % 10) as u8;
            left /= 10;
            start -= 1;
            if left == 0 {
                break;
            }
        }
        self.push(digits.get(start..).unwrap_or_default());
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// Without the spaces and newlines at both ends.
pub(crate) fn trimmed(text: &[u8]) -> &[u8] {
    text.trim_ascii()
}

/// A decimal number from 0 to 255.
pub(crate) fn exit_code(text: &[u8]) -> Option<i32> {
    core::str::from_utf8(trimmed(text)).ok()?.parse::<u8>().ok().map(i32::from)
}

//! The conversation on a `ctl`: one command line in one write, the reply on the same descriptor.

use crate::memory::Buffer;
use crate::sys::{self, Errno};

/// A `ctl` takes lines below this; one write of this many bytes or more is E2BIG.
pub(crate) const MAX_LINE: usize = 4096;

/// Most bytes of a reply that are passed on: a plan or a help text has kilobytes.
const MAX_REPLY: usize = 16 << 20;

/// Says one line, which must end with a newline and must not be written in pieces.
pub(crate) fn say(ctl: i32, line: &[u8]) -> Result<(), Errno> {
    match sys::write(ctl, line)? {
        written if written == line.len() => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

/// Copies the reply to `to`; the number of bytes.
pub(crate) fn reply(ctl: i32, to: i32) -> usize {
    let Ok(mut buffer) = Buffer::new(64 << 10) else { return 0 };
    let mut total = 0;
    while total < MAX_REPLY {
        match sys::read(ctl, &mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(len) => {
                total += len;
                if !sys::write_all(to, buffer.get(..len).unwrap_or_default()) {
                    break;
                }
            }
        }
    }
    total
}

//! What arrives in a write to a `ctl`.
//!
//! A write of a page or more may be the first part of something longer, so it is refused before anybody looks into
//! it. The jobs room reads several commands in one write and does all or none. The daemon's and the sources' `ctl`
//! take one line a write: there the first could be done before the second turns out to be impossible, and then
//! neither all nor none were done.

use crate::fs::error::FsError;

/// Writes from this size on are refused: tools cut longer ones here, and half a command must never run.
const TOO_BIG: usize = 4096;

/// Whether a write is short enough to be whole.
pub(super) fn fits(data: &[u8]) -> Result<(), FsError> {
    if data.len() >= TOO_BIG { Err(FsError::TooBig) } else { Ok(()) }
}

/// The one command line, without its newline; `None` when there is nothing in it.
pub(super) fn line(data: &[u8]) -> Result<Option<&str>, FsError> {
    fits(data)?;
    let text = std::str::from_utf8(data)
        .map_err(|_| FsError::Invalid("a command is text in UTF-8, and this is not".to_owned()))?;
    if text.contains('\0') {
        return Err(FsError::Invalid("a command holds no NUL bytes".to_owned()));
    }
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next();
    match lines.count() {
        0 => Ok(first),
        more => Err(FsError::Invalid(format!(
            "one write is one command and this one has {}: none of them was done, write them one by one",
            more + 1
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_with_or_without_newline_is_a_command() {
        assert_eq!(line(b"start\n").unwrap(), Some("start"));
        assert_eq!(line(b"start").unwrap(), Some("start"));
        assert_eq!(line(b"  start id=a \r\n\n").unwrap(), Some("start id=a"));
        assert_eq!(line(b"\n").unwrap(), None);
        assert_eq!(line(b"").unwrap(), None);
    }

    #[test]
    fn a_page_is_too_big_whatever_is_in_it() {
        let mut page = b"start\n".to_vec();
        page.resize(TOO_BIG - 1, b' ');
        assert_eq!(line(&page).unwrap(), Some("start"));
        page.push(b' ');
        assert!(matches!(line(&page), Err(FsError::TooBig)));
    }

    #[test]
    fn several_commands_are_refused_whole_and_the_reason_says_so() {
        let refused = line(b"start\ncancel\n").unwrap_err();
        assert!(matches!(&refused, FsError::Invalid(why) if why.contains("has 2") && why.contains("none")));
    }

    #[test]
    fn what_is_not_text_is_refused() {
        assert!(matches!(line(b"\xff\xfe"), Err(FsError::Invalid(_))));
        assert!(matches!(line(b"a\0b"), Err(FsError::Invalid(_))));
    }
}

//! The one errno table. docs/semantics.md prints [`TABLE`], and a test compares them.

use nix::libc;

use super::error::FsError;
use crate::fetch::error::{Class, FetchError};

/// Every errno that the trees answer, and what it means there.
pub const TABLE: &[(i32, &str)] = &[
    (libc::EACCES, "policy or rights refuse it"),
    (libc::EPERM, "the operation is not offered: create, rename, link, change of attributes"),
    (libc::EROFS, "image content is read-only"),
    (libc::EINVAL, "the command, its arguments or a run's name are wrong"),
    (libc::EBUSY, "the object is in the wrong state: a second start, removal of a live run"),
    (libc::E2BIG, "4096 bytes or more written to a `ctl`"),
    (libc::EAGAIN, "a queue is full, or the job does not read its standard input now"),
    (libc::EIO, "bytes that cannot be verified, or trouble with the daemon's own files"),
    (libc::ETIMEDOUT, "the registry did not deliver before the deadline; the fetch goes on"),
    (libc::ENOENT, "no such name"),
    (libc::EEXIST, "the run's name is taken"),
    (libc::ESTALE, "a reply that was lost with a daemon, or an object that is no more"),
    (libc::ENOTDIR, "not a directory"),
    (libc::EISDIR, "a directory"),
    (libc::ENOTEMPTY, "the directory holds something"),
    (libc::ENAMETOOLONG, "a name of more than 255 bytes"),
    (libc::ENOSPC, "a quota or the disk is full"),
    (libc::ENOTTY, "no ioctl is offered"),
    (
        libc::ENOSYS,
        "extended attributes of control files, lseek for holes, copy_file_range, fallocate: callers do without",
    ),
];

/// The errno a caller sees.
pub fn errno(error: &FsError) -> i32 {
    match error {
        FsError::NotFound => libc::ENOENT,
        FsError::Denied(_) => libc::EACCES,
        FsError::NotOffered => libc::EPERM,
        FsError::ReadOnly => libc::EROFS,
        FsError::Invalid(_) => libc::EINVAL,
        FsError::Busy(_) => libc::EBUSY,
        FsError::TooBig => libc::E2BIG,
        FsError::Again(_) => libc::EAGAIN,
        FsError::Exists => libc::EEXIST,
        FsError::NotDirectory => libc::ENOTDIR,
        FsError::IsDirectory => libc::EISDIR,
        FsError::NotEmpty => libc::ENOTEMPTY,
        FsError::NameTooLong => libc::ENAMETOOLONG,
        FsError::NotImplemented => libc::ENOSYS,
        FsError::NotATerminal => libc::ENOTTY,
        FsError::Stale | FsError::Gone => libc::ESTALE,
        FsError::NoSpace(_) => libc::ENOSPC,
        FsError::Fetch(error) => fetch_errno(error),
        FsError::Internal(_) => libc::EIO,
    }
}

/// ETIMEDOUT means "try again later", EIO means "cannot be proven": a registry that is away is the former.
fn fetch_errno(error: &FetchError) -> i32 {
    match error.class {
        Class::Deadline | Class::Unavailable => libc::ETIMEDOUT,
        Class::Unauthorized => libc::EACCES,
        Class::NotFound | Class::Corrupt | Class::Protocol => libc::EIO,
        Class::Storage => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn the_documentation_prints_this_table() {
        let docs = include_str!("../../docs/semantics.md");
        let printed: Vec<&str> = docs
            .split("| errno | meaning |\n|---|---|\n")
            .nth(1)
            .expect("docs/semantics.md has the table")
            .lines()
            .take_while(|line| line.starts_with('|'))
            .collect();
        let rows: Vec<String> = TABLE
            .iter()
            .map(|(number, meaning)| format!("| {:?} | {meaning} |", Errno::from_raw(*number)))
            .collect();
        assert_eq!(printed, rows);
    }

    #[test]
    fn every_refusal_has_a_row() {
        let words = String::new;
        let refusals = [
            FsError::NotFound,
            FsError::Denied(words()),
            FsError::NotOffered,
            FsError::ReadOnly,
            FsError::Invalid(words()),
            FsError::Busy(words()),
            FsError::TooBig,
            FsError::Again(words()),
            FsError::Exists,
            FsError::NotDirectory,
            FsError::IsDirectory,
            FsError::NotEmpty,
            FsError::NameTooLong,
            FsError::NotImplemented,
            FsError::NotATerminal,
            FsError::Stale,
            FsError::Gone,
            FsError::NoSpace(words()),
            FsError::Internal(words()),
        ];
        for refusal in refusals {
            let number = errno(&refusal);
            assert!(TABLE.iter().any(|(known, _)| *known == number), "{refusal:?} has no row");
        }
    }
}

//! The one errno table. docs/semantics.md prints the same table and a test compares them.

use nix::libc;

use super::error::FsError;
use crate::fetch::error::{Class, FetchError};

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
        FsError::Stale => libc::ESTALE,
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

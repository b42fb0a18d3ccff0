//! The error of this room: what a file system operation may answer besides its result.

use crate::fetch::error::FetchError;
use crate::jobs::error::JobError;
use crate::policy::code::Code;

/// Why an operation was refused. [`super::errno`] gives each its number.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FsError {
    /// No such name or object.
    #[error("no such file")]
    NotFound,
    /// Policy or rights refuse it.
    #[error("{0}")]
    Denied(String),
    /// An operation that the tree does not offer.
    #[error("operation not offered")]
    NotOffered,
    /// A change of image content.
    #[error("image content is read-only")]
    ReadOnly,
    /// A malformed command or malformed arguments.
    #[error("{0}")]
    Invalid(String),
    /// The object is in the wrong state.
    #[error("{0}")]
    Busy(String),
    /// A write of 4096 bytes or more to a `ctl`.
    #[error("a command is shorter than 4096 bytes")]
    TooBig,
    /// A queue is full; later it may not be.
    #[error("{0}")]
    Again(String),
    /// The name exists already.
    #[error("exists already")]
    Exists,
    /// Not a directory.
    #[error("not a directory")]
    NotDirectory,
    /// Is a directory.
    #[error("is a directory")]
    IsDirectory,
    /// The directory is not empty.
    #[error("directory not empty")]
    NotEmpty,
    /// The name is too long.
    #[error("name too long")]
    NameTooLong,
    /// Not supported by this kernel connection, switched off for ever (`ENOSYS`).
    #[error("not implemented")]
    NotImplemented,
    /// An ioctl.
    #[error("inappropriate ioctl")]
    NotATerminal,
    /// The object of an open file or directory is no more.
    #[error("this is no more")]
    Gone,
    /// A reply that was lost with a daemon.
    #[error(
        "the reply was lost with the daemon that held it: look at the files whether the command was done"
    )]
    Stale,
    /// Out of space or over a quota.
    #[error("{0}")]
    NoSpace(String),
    /// Bytes could not be had or proven.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Trouble with the daemon's own files.
    #[error("{0}")]
    Internal(String),
}

impl From<JobError> for FsError {
    fn from(error: JobError) -> Self {
        match error {
            JobError::NotFound(_) => Self::NotFound,
            JobError::Exists(_) => Self::Exists,
            JobError::Invalid(words) => Self::Invalid(words),
            JobError::Arguments(_) => Self::Invalid(error.to_string()),
            JobError::Busy(words) => Self::Busy(words),
            JobError::Denied(denied) => match denied.code {
                Code::ArgumentsInvalid => Self::Invalid(denied.to_string()),
                _ => Self::Denied(denied.to_string()),
            },
            JobError::Again(words) => Self::Again(words),
            JobError::Internal(words) => Self::Internal(words),
        }
    }
}

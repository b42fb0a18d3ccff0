//! Why bytes could not be had: what kind of trouble, on whose side, and whether trying again can help.

use std::time::Duration;

/// The kind of trouble; decides the errno and the retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The thing does not exist (404).
    NotFound,
    /// Credentials are missing or refused (401 after a refresh, 403).
    Unauthorized,
    /// Bytes do not match their digest, or cannot be decoded as what they claim to be.
    Corrupt,
    /// No answer, a reset, a 5xx, a 429: may pass.
    Unavailable,
    /// The time allowed ran out.
    Deadline,
    /// The other side does not do what the protocol demands, or content goes over a limit of ours.
    Protocol,
    /// The local disk: full, unreadable, read-only.
    Storage,
}

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The registry or what lies before it.
    Remote,
    /// This host: disk, memory.
    Local,
}

/// The error of this room. `message` names the thing and the reason, lower case, no final period.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    /// The kind of trouble.
    pub class: Class,
    /// Whose side.
    pub side: Side,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// How long the other side asked us to wait (`Retry-After`).
    pub retry_after: Option<Duration>,
    /// The words.
    pub message: String,
}

impl FetchError {
    /// An error of `class`; retryable where the class usually passes.
    pub fn new(class: Class, side: Side, message: impl Into<String>) -> Self {
        let retryable = matches!(class, Class::Unavailable);
        Self { class, side, retryable, retry_after: None, message: message.into() }
    }

    /// Content that does not match its digest or does not decode.
    pub fn corrupt(side: Side, message: impl Into<String>) -> Self {
        Self::new(Class::Corrupt, side, message)
    }

    /// A failure of the local disk.
    pub fn storage(what: &str, error: &std::io::Error) -> Self {
        Self::new(Class::Storage, Side::Local, format!("{what}: {error}"))
    }

    /// The same error with words before it.
    #[must_use]
    pub fn context(mut self, what: impl std::fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

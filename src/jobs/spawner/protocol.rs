//! The messages between daemon and spawner: one SEQPACKET message each, JSON, descriptors beside it.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest message. Far above any command line of ours, below the default socket buffer (208 KiB), so a message
/// always fits.
pub(super) const MESSAGE_MAX: usize = 64 << 10;
/// Most descriptors of one message: answer socket, three standard streams, a few of a shim.
pub(super) const DESCRIPTORS_MAX: usize = 8;

/// What the daemon asks for. The first descriptor of every request is the socket for the answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Start our own program with these arguments, detached; descriptor `n + 1` becomes `name=number`, appended
    /// to the arguments, for the n-th name. The log takes its standard error.
    Detached { args: Vec<OsString>, log: Option<OsString>, names: Vec<String> },
    /// Run a helper with descriptors 1 to 3 as its standard streams and wait for it.
    Helper { argv: Vec<OsString>, env: Vec<(OsString, OsString)>, deadline_ms: u64 },
    /// `umount2`.
    Unmount { path: OsString, detach: bool },
    /// Make an empty network namespace with `lo` up; its descriptor comes with the answer.
    NetworkNamespace,
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Started { pid: i32, start_ticks: u64 },
    Ended { code: Option<i32>, signal: Option<i32>, timed_out: bool },
    Done,
    Failed(String),
}

/// Sends one message.
pub(super) fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
    if bytes.len() > MESSAGE_MAX || fds.len() > DESCRIPTORS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "request to the spawner is too long"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("descriptors do not fit"));
    }
    rustix::io::retry_on_intr(|| {
        sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives one message; `None` at the end of the connection.
pub(super) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message cut short"));
    }
    let message =
        serde_json::from_slice(bytes.get(..got.bytes).unwrap_or_default()).map_err(io::Error::other)?;
    Ok(Some((message, fds)))
}

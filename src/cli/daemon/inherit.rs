//! Descriptors that the holder hands to each daemon it starts.
//!
//! They travel by number: the holder clears close-on-exec just before the spawn and names the numbers in one
//! environment variable; the daemon takes them, sets close-on-exec again, and removes the variable, so that no
//! child of the daemon ever sees a `/dev/fuse` descriptor (a leaked one keeps a dead mount alive).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use anyhow::Context as _;
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// The variable that names the numbers.
const VARIABLE: &str = "ADDONFS_DESCRIPTORS";

/// The roles, in the order of their numbers in the variable.
#[derive(Debug)]
pub(crate) struct Descriptors {
    /// `/dev/fuse` of the control tree.
    pub control: OwnedFd,
    /// `/dev/fuse` of the image trees.
    pub images: OwnedFd,
    /// `/dev/fuse` of the image trees that have extended attributes.
    pub xattr_images: OwnedFd,
    /// Memory file with the control connection's saved INIT; empty for the first daemon.
    pub control_init: OwnedFd,
    /// The same for the image connection.
    pub images_init: OwnedFd,
    /// The same for the one with extended attributes.
    pub xattr_images_init: OwnedFd,
    /// Memory file with the configuration's text as the first daemon read it; empty for that one.
    pub config: OwnedFd,
    /// The lock of the state directory: open as long as holder or daemon lives.
    pub lock: OwnedFd,
    /// Where a start is reported, once.
    pub ready: OwnedFd,
    /// One byte comes when both image connections are mounted.
    pub mounted: OwnedFd,
}

impl Descriptors {
    fn roles(&self) -> [BorrowedFd<'_>; 10] {
        [
            self.control.as_fd(),
            self.images.as_fd(),
            self.xattr_images.as_fd(),
            self.control_init.as_fd(),
            self.images_init.as_fd(),
            self.xattr_images_init.as_fd(),
            self.config.as_fd(),
            self.lock.as_fd(),
            self.ready.as_fd(),
            self.mounted.as_fd(),
        ]
    }

    /// Spawns `command` with the descriptors. The caller must be single-threaded: between clearing and setting
    /// close-on-exec another thread's child would inherit them.
    pub(crate) fn spawn_with(
        &self,
        command: &mut std::process::Command,
    ) -> anyhow::Result<std::process::Child> {
        let numbers: Vec<String> = self.roles().iter().map(|fd| fd.as_raw_fd().to_string()).collect();
        command.env(VARIABLE, numbers.join(","));
        for fd in self.roles() {
            fcntl_setfd(fd, FdFlags::empty())?;
        }
        let child = command.spawn();
        for fd in self.roles() {
            fcntl_setfd(fd, FdFlags::CLOEXEC)?;
        }
        child.context("cannot start the daemon process")
    }

    /// Takes what the holder handed over. Must be called once, before any thread is started.
    pub(crate) fn take() -> anyhow::Result<Self> {
        let value = std::env::var(VARIABLE).context(
            "this command is started by `addonfs mount`, not by hand (no descriptors were handed over)",
        )?;
        let numbers: Vec<RawFd> = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let &[
            control,
            images,
            xattr_images,
            control_init,
            images_init,
            xattr_images_init,
            config,
            lock,
            ready,
            mounted,
        ] = numbers.as_slice()
        else {
            anyhow::bail!("{VARIABLE} names {} descriptors instead of 10", numbers.len());
        };
        remove_variable();
        Ok(Self {
            control: adopt(control)?,
            images: adopt(images)?,
            xattr_images: adopt(xattr_images)?,
            control_init: adopt(control_init)?,
            images_init: adopt(images_init)?,
            xattr_images_init: adopt(xattr_images_init)?,
            config: adopt(config)?,
            lock: adopt(lock)?,
            ready: adopt(ready)?,
            mounted: adopt(mounted)?,
        })
    }
}

/// Owns an inherited descriptor, close-on-exec from now on.
#[allow(unsafe_code)] // a number from the environment becomes a descriptor exactly once
pub(crate) fn adopt(number: RawFd) -> anyhow::Result<OwnedFd> {
    anyhow::ensure!(number > 2, "descriptor {number} cannot have been handed over");
    // SAFETY: only borrowed to ask the kernel whether the number is open at all; a closed one answers EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfd(borrowed).with_context(|| format!("descriptor {number} is not open"))?;
    // SAFETY: the number is open, was made for this process by the holder, and `take` runs once, before anything
    // else could own it.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&owned, FdFlags::CLOEXEC)?;
    Ok(owned)
}

#[allow(unsafe_code)] // std calls it unsafe because other threads may read the environment
fn remove_variable() {
    // SAFETY: called from `take`, which runs before any thread is started.
    unsafe { std::env::remove_var(VARIABLE) };
}

//! The two kernel connections: mounting, the session that survives its daemon, and the adapters that turn FUSE
//! requests into calls of the trees' plain methods.
//!
//! In: a tree ([`crate::fs::image::Images`], the control tree) and a `/dev/fuse` descriptor. Out: answered requests.
//! This is the only place that says `fuser`. It must not know what a name or a byte means: it asks the tree.
//!
//! How a connection comes to life and lives on:
//! 1. the holder calls [`mount::mount_control`] / [`mount::mount_images`] and keeps the descriptor;
//! 2. the daemon calls [`session::SavedInit::receive`] once, gives the holder the bytes to keep, then
//!    [`session::Serving::start`];
//! 3. when the daemon dies, the next one starts with the same descriptor and the same bytes.

pub mod backing;
mod commfd;
pub mod control;
pub mod images;
pub mod mount;
mod owed;
mod raw;
pub mod session;

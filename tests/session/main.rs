//! Whole sessions, as a user has them: the real program, a real registry, the kernel's FUSE, real runtimes.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod cache;
mod commands;
mod crash;
mod images;
mod indexes;
mod interfaces;
mod jobs;
mod network;
mod policy;
mod refusals;
mod reload;
mod rootless;
mod secrets;
mod signatures;
mod streaming;
mod umount;
mod verify;
mod walk;
mod xattrs;

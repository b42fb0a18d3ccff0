//! The two trees, as plain methods.
//!
//! In: merged image trees and layers (from `fetch`), the jobs handle, the daemon's facts ([`facts::Facts`]). Out:
//! attributes, names, bytes and refusals, to `fs::kernel`, which is the only place that says `fuser`.
//! Must not know of HTTP, of registries, nor of the command line.

pub mod control;
pub mod errno;
pub mod error;
pub mod facts;
pub mod image;
pub mod kernel;

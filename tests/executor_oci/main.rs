//! The executor with real runtimes, on a plain root file system.

mod ends;
mod host;
mod hostile;
mod inside;
mod kept;
mod measure;
mod rootless;

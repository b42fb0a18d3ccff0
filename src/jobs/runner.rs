//! The program that job and run folders serve as `run`, `plan`, `wait` and `follow`.

/// A static ELF executable for this architecture, built from `src/runner` by build.rs. What it does follows from
/// the name under which it is executed.
pub const RUNNER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/runner"));

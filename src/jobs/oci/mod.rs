//! The real executor: an OCI runtime of the host, or the embedded one, driven by one shim process a run.
//!
//! In: a finished [`Launch`](crate::jobs::executor::Launch). Out: the files of its folder (listed in `launch`) and an
//! [`Outcome`](crate::jobs::executor::Outcome). Knows nothing of jobs, arguments, policy or the journal.
//!
//! | file | what it does | where it runs |
//! |---|---|---|
//! | `executor` | [`OciExecutor`]: start, wait, stop | daemon |
//! | `probe`, `selftest` | which runtime works here | daemon |
//! | `netns` | network namespaces made ahead | daemon asks, spawner makes |
//! | `waiting` | the end of a process that is no child | daemon |
//! | `sweep` | what a killed shim leaves behind | daemon |
//! | `launch`, `control` | the files and the pipe between the two | both |
//! | `shim` | mounts, runtime, supervision, cleaning | shim |
//! | `bundle`, `seccomp`, `user` | config.json | shim, pure |
//! | `cgroup`, `network`, `mask`, `userns` | limits and counters, pasta and slirp4netns, masking, rootless | shim |
//! | `embedded` | the runtime for hosts without one | a process of its own |

mod bundle;
mod cgroup;
mod control;
#[cfg(feature = "embedded-runtime")]
pub mod embedded;
mod executor;
mod launch;
mod mask;
pub(in crate::jobs) mod netns;
mod network;
mod probe;
mod seccomp;
mod selftest;
pub mod shim;
pub mod sweep;
mod user;
mod userns;
mod waiting;

pub(in crate::jobs) use cgroup::run_id_of_process;
pub use executor::{OciExecutor, OciOptions};
pub use user::{JobUser, resolve as resolve_user};

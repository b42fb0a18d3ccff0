//! The process that starts other processes for the daemon.
//!
//! It is made before the daemon has threads, mounts or a sandbox, so what the daemon gives up later
//! (capabilities, Landlock, no_new_privs) does not bind the shims, credential helpers and unmounts it starts.
//! In: requests over one SOCK_SEQPACKET socket, each with its own socket for the answer as its first descriptor,
//! so that answers need no numbers and callers on any thread do not wait for each other. Out: processes.
//! Every request is carried out by a forked worker; what a worker starts detached is reparented to init when the
//! worker ends, and so belongs neither to the daemon nor to the spawner. The spawner ends itself when the daemon's
//! end of the socket is gone, and by no polite signal: who terminates a whole control group means the daemon. It must not know of runs, plans or runtimes.
//!
//! It is our own program executed again (`addonfs __spawner`, the socket as stdin) and not a bare fork: no thread,
//! lock or descriptor of the starter can leak into it.

mod client;
mod descriptors;
mod process;
mod protocol;
mod server;

pub(in crate::jobs) use client::memory_file;
pub use client::{Helper, HelperOutput, Spawner};
pub(in crate::jobs) use descriptors::{adopt, close_all_at_exec};
pub use process::{Identity, identity_of, is_alive};
pub(in crate::jobs) use process::{exited, parent_of};
pub use server::main;

/// The first argument of the re-executed program.
pub const ENTRY: &str = "__spawner";

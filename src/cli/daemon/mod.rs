//! The daemon: opens its rooms in order, drives the sources, serves the two trees, and closes in the reverse order.
//!
//! Started by the holder (`holder`), again and again if need be, each time with the same descriptors (`inherit`).
//! Order of a start: spawner (forked while there is one thread) -> runtime -> store, documents, journal -> control
//! tree answers -> images mounted and answer -> sources. Nothing in here waits inside a file system request.

mod acquire;
pub(crate) mod added;
pub(crate) mod board;
mod cache_ctl;
mod candidate;
pub(crate) mod clock;
mod drive;
pub(crate) mod enlist;
pub(crate) mod events;
pub(crate) mod facts;
pub(crate) mod holder;
pub(crate) mod inherit;
pub(crate) mod journal;
mod judge;
mod kept;
pub(crate) mod lock;
pub(crate) mod metrics;
mod reload;
pub(crate) mod serve;
mod shutdown;
mod starts;
mod streaming;
mod upkeep;
mod wiring;
mod ztocs;

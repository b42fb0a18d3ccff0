//! addonfs: add-ons from container registries, mounted as files.
//!
//! # The map
//!
//! | room | what it is for | may import |
//! |---|---|---|
//! | [`policy`] | what may be used, and as what: references, digests, manifests, arguments, signatures, sources. Pure: no network, no tokio, no fuser | nobody |
//! | [`fetch`] | verified bytes by digest: registry and layout, layer index, decoders, the store on disk | `policy` |
//! | [`jobs`] | descriptors, arguments, plans, runs, the executor, the journal | `policy` |
//! | [`fs`] | the two trees (images and control) as plain methods; `fs::kernel` is the only place that says `fuser` | `policy`, `fetch`'s layers, `jobs`' handle |
//! | [`cli`] | words to wiring: arguments, configuration, daemon start and stop, one file a command | everybody |
//!
//! Data flows one way: configuration -> `policy` -> `fetch` -> (layer index, content) -> `fs` -> kernel,
//! and back: kernel -> `fs` control tree -> `jobs` -> executor -> run records -> `fs`.
//! `tests/rooms.rs` keeps the imports so.

pub mod cli;
pub mod fetch;
pub mod fs;
pub mod jobs;
pub mod policy;

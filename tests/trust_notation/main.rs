//! Notary Project signatures: what notation signs is accepted, and each thing that is wrong with a signature is refused for
//! its own reason. Envelopes that no tool makes are made here, with the key of `fixtures/notation/leaf.key`.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod chains;
mod envelopes;
mod make;
mod revocation;
mod times;
mod trust;
mod whole;

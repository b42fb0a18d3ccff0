//! A source: what the configuration asks for ([`parse`], [`spec`]), or somebody at run time ([`request`]), and how far it is ([`status`]).
//!
//! The transitions are pure and live here; `cli::daemon` drives them.

pub mod parse;
pub mod request;
pub mod spec;
pub mod status;
mod trust;

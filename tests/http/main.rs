//! The REST interface of a real daemon, with a real registry, real mounts and real runs; every answer is held against
//! the OpenAPI document that the daemon serves.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod api;
mod cases;
mod commands;
mod limits;
mod sources;
mod streams;

//! Helpers of the integration tests. Not every test uses every helper.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub, missing_debug_implementations)]

pub mod fault_proxy;
pub mod image;
pub mod mount;
pub mod registry;
pub mod scripted_executor;
pub mod session;
pub mod token_service;

//! Helpers of the integration tests. Not every test uses every helper.
#![allow(dead_code, missing_docs, unreachable_pub, missing_debug_implementations)]

pub mod image;
pub mod mount;
pub mod registry;

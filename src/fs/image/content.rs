//! Stand-in for the layer facade until it lands.

use std::fs::File;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::fetch::error::FetchError;
use crate::fetch::verified::VerifiedBytes;

#[allow(missing_debug_implementations)]
/// Bytes at once, or later.
pub enum Read {
    /// At hand.
    Ready(VerifiedBytes),
    /// To be fetched.
    Pending(BoxFuture<'static, Result<VerifiedBytes, FetchError>>),
}

/// A layer.
#[derive(Debug, Clone)]
pub struct Layer;

impl Layer {
    /// Content of a file.
    pub fn read(&self, _file: u32, _offset: u64, _len: u32) -> Read {
        Read::Pending(Box::pin(std::future::pending()))
    }

    /// The complete file.
    pub fn backing(&self, _file: u32) -> Option<Arc<File>> {
        None
    }
}

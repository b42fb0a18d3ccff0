//! A source that has nothing: for looking at layers without fetching anything.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use super::error::{Class, FetchError, Side};
use super::source::BlobSource;
use super::verified::VerifiedBytes;
use crate::policy::digest::Digest;
use crate::policy::image::Descriptor;

/// See the module.
#[derive(Debug)]
pub(crate) struct Nowhere;

fn nothing<T>() -> Result<T, FetchError> {
    Err(FetchError::new(Class::NotFound, Side::Local, "nothing is fetched for a look at the cache"))
}

#[async_trait]
impl BlobSource for Nowhere {
    async fn manifest(&self, _: &Digest) -> Result<(String, VerifiedBytes), FetchError> {
        nothing()
    }

    async fn resolve(&self, _: &str) -> Result<Option<Digest>, FetchError> {
        nothing()
    }

    async fn blob(&self, _: &Descriptor, _: u64) -> Result<VerifiedBytes, FetchError> {
        nothing()
    }

    async fn stream(
        &self,
        _: &Descriptor,
        _: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, FetchError>>, FetchError> {
        nothing()
    }

    async fn range(&self, _: &Descriptor, _: Range<u64>) -> Result<Bytes, FetchError> {
        nothing()
    }
}

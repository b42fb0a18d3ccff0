//! The streaming tree of one try at a source with `stream: true`: from the first layer that begins to arrive until the
//! ordinary tree takes its place, or until what arrived counts for nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::board::{Board, Seat};
use crate::fetch::image::ImageDocuments;
use crate::fetch::layer::{Arriving, Layer};
use crate::fs::image::Images;
use crate::fs::image::stream::Stream;
use crate::policy::rules::Profile;
use crate::policy::source::spec::SourceSpec;

/// So long a tree that the ordinary one has replaced goes on to answer: walks under way end where they began. After that
/// it lives as long as files of it are open.
const LINGER: Duration = Duration::from_secs(600);

/// See the module. Dropped without [`Streaming::settle`], everything of it is taken back.
#[derive(Debug)]
pub(crate) struct Streaming<'a> {
    images: &'a Arc<Images>,
    board: &'a Board,
    seat: Seat,
    /// Lowest first, as in the manifest.
    layers: Vec<Arriving>,
    stream: Arc<Stream>,
    shown: AtomicBool,
    ended: AtomicBool,
}

impl<'a> Streaming<'a> {
    /// One for the image, if the source wants it, policy does not forbid it, and a layer is missing.
    pub(crate) fn new(
        (board, seat): (&'a Board, Seat),
        images: &'a Arc<Images>,
        (spec, profile): (&SourceSpec, Profile),
        documents: &ImageDocuments,
        layers: &[Option<Layer>],
    ) -> Option<Self> {
        if !spec.stream || profile == Profile::Secure || layers.iter().all(Option::is_some) {
            return None;
        }
        let arriving: Vec<Arriving> = layers.iter().map(|_| Arriving::default()).collect();
        for (arriving, layer) in arriving.iter().zip(layers) {
            if let Some(layer) = layer {
                arriving.proven(layer);
            }
        }
        let created = documents.config.created.unwrap_or(0);
        let stream = images.streams().prepare(documents.digest, created, arriving.clone());
        let (shown, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        Some(Self { images, board, seat, layers: arriving, stream, shown, ended })
    }

    /// Where to tell of the layer's arrival.
    pub(crate) fn layer(&self, index: usize) -> Option<&Arriving> {
        self.layers.get(index)
    }

    /// Shows what arrives, once somebody wants the layers. To be dropped when the try is over.
    pub(crate) async fn feed(&self, demand: Option<watch::Receiver<u64>>) -> Infallible {
        if let Some(mut demand) = demand {
            let _ = demand.wait_for(|count| *count > 0).await;
        }
        if let Err(error) = self.stream.grow(|| self.show()).await {
            self.revoke(&error.to_string());
        }
        std::future::pending().await
    }

    fn show(&self) {
        if !self.shown.swap(true, Ordering::Relaxed) {
            self.images.streams().show(&self.stream);
            self.board.stream(self.seat, *self.stream.digest());
        }
    }

    /// The ordinary tree is shown.
    pub(crate) fn settle(&self) {
        if self.ended.swap(true, Ordering::Relaxed) || !self.shown.load(Ordering::Relaxed) {
            return;
        }
        let (images, stream) = (Arc::clone(self.images), Arc::clone(&self.stream));
        tokio::spawn(async move {
            tokio::time::sleep(LINGER).await;
            images.streams().retire(&stream);
        });
    }

    /// What arrived counts for nothing, because of `reason`.
    pub(crate) fn revoke(&self, reason: &str) {
        if self.ended.swap(true, Ordering::Relaxed) || !self.shown.load(Ordering::Relaxed) {
            return;
        }
        self.images.streams().revoke(&self.stream, reason);
        self.board.revoke_stream(self.seat, reason);
    }
}

impl Drop for Streaming<'_> {
    fn drop(&mut self) {
        self.revoke("the image is not fetched any more");
    }
}

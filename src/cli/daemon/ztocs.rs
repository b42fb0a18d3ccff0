//! The zTOCs of one image's layers: looked for once, when the first layer turns up that could use one.

use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::fetch::layer::{Layer, Opening};
use crate::fetch::soci;
use crate::fetch::source::BlobSource;
use crate::fetch::store::Store;
use crate::policy::digest::Digest;
use crate::policy::image::{Descriptor, ImageManifest};
use crate::policy::soci::SociIndex;
use crate::policy::trust::Trust;

/// What is known of an image's zTOCs.
pub(super) struct Ztocs<'a> {
    /// Where the image is.
    pub source: &'a Arc<dyn BlobSource>,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: &'a ImageManifest,
    /// Whose signatures on indexes count.
    pub trust: Trust,
    /// What was found.
    pub found: OnceCell<Option<SociIndex>>,
}

impl Ztocs<'_> {
    /// How `layer` is to be opened: as `opening`, with its zTOC if it needs one and there is one.
    pub(super) async fn opening<'o>(
        &'o self,
        store: &Store,
        layer: &Descriptor,
        opening: Opening<'o>,
    ) -> Opening<'o> {
        if !Layer::wants_ztoc(store, layer, opening) {
            return opening;
        }
        let find = || soci::find(self.source.as_ref(), &self.digest, self.manifest, &self.trust);
        let index = self.found.get_or_init(find).await;
        Opening { ztoc: index.as_ref().and_then(|index| index.ztoc(&layer.digest)), ..opening }
    }
}

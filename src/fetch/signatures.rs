//! cosign's signatures of a digest: tag `sha256-<hex>.sig` -> manifest -> layers (cosign
//! `specs/SIGNATURE_SPEC.md`, "Tag-based discovery").
//!
//! In: a source and the pinned digest. Out: the material, each payload checked against its descriptor and nothing
//! else: whether a signature is worth anything is for `policy` to say. A tag can be moved by anybody who may push,
//! so what is odd about one signature hides only that one.

use futures_util::{StreamExt as _, stream};

use super::document;
use super::error::{Class, FetchError};
use super::source::BlobSource;
use crate::policy::digest::Digest;
use crate::policy::image::Descriptor;
use crate::policy::trust::SIMPLE_SIGNING;
use crate::policy::trust::evidence::{Evidence, SimpleSigning};

/// More layers than this are not fetched: an image that is signed daily for a season has fewer.
const MAX_SIGNATURES: usize = 100;
/// A payload is some hundred bytes; the user's annotations in it may make it longer.
const MAX_PAYLOAD: u64 = 64 * 1024;

/// Payloads that are fetched at the same time: together they are one round trip.
const PARALLEL: usize = 4;

/// The tag under which the signatures of `digest` are.
pub fn tag(digest: &Digest) -> String {
    format!("{}.sig", digest.dashed())
}

/// The signatures of `digest`; none if there is no such tag. An error if there are some and not one could be had:
/// that is no absence of signatures.
pub async fn fetch(source: &dyn BlobSource, digest: &Digest) -> Result<Vec<Evidence>, FetchError> {
    let tag = tag(digest);
    let named = |error: FetchError| error.context(format_args!("signatures of {digest}"));
    let Some(found) = source.tagged(&tag).await.map_err(named)? else { return Ok(Vec::new()) };
    let layers = document::children(&found.content).map_err(named)?.blobs;
    let mut signatures = layers.iter().filter(|layer| layer.media_type == SIMPLE_SIGNING);
    let (mut evidence, mut left_out) = (Vec::new(), None);
    let looked_at: Vec<Descriptor> = signatures.by_ref().take(MAX_SIGNATURES).cloned().collect();
    let payload = |layer: Descriptor| async move {
        let payload = source.blob(&layer, MAX_PAYLOAD).await;
        (layer, payload)
    };
    let mut payloads = stream::iter(looked_at).map(payload).buffered(PARALLEL);
    while let Some((layer, payload)) = payloads.next().await {
        match payload {
            Ok(payload) => {
                let layer = SimpleSigning { payload: payload.to_vec(), annotations: layer.annotations };
                evidence.push(layer.into());
            }
            // wrong or missing content is somebody's broken signature; a registry that does not answer is trouble
            Err(error) if matches!(error.class, Class::Corrupt | Class::NotFound | Class::Protocol) => {
                tracing::warn!(%digest, %error, "left out a signature");
                left_out.get_or_insert(error);
            }
            Err(error) => return Err(named(error)),
        }
    }
    let more = signatures.count();
    if more > 0 {
        tracing::warn!(%digest, more, "more signatures than are looked at: only the first {MAX_SIGNATURES} count");
    }
    match left_out {
        Some(error) if evidence.is_empty() => Err(named(error)),
        _ => Ok(evidence),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::fetch::layout::Layout;
    use crate::fetch::sink::{BlobContent, BlobSink as _};
    use crate::policy::image::Descriptor;

    fn layer(content: &[u8], media_type: &str) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(content),
            size: content.len() as u64,
            annotations: vec![("dev.cosignproject.cosign/signature".into(), "c2ln".into())],
        }
    }

    fn json_of(layer: &Descriptor) -> serde_json::Value {
        json!({
            "mediaType": layer.media_type, "digest": layer.digest, "size": layer.size,
            "annotations": {"dev.cosignproject.cosign/signature": "c2ln"},
        })
    }

    async fn found(layers: &[(&[u8], &str)], stored: &[&[u8]]) -> Vec<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let image = Digest::of(b"image");
        for content in stored {
            let blob = layer(content, SIMPLE_SIGNING);
            layout.put_blob(&blob, BlobContent::bytes(content.to_vec())).await.unwrap();
        }
        let layers: Vec<_> = layers.iter().map(|(content, kind)| json_of(&layer(content, kind))).collect();
        let manifest = json!({"schemaVersion": 2, "config": json_of(&layer(b"{}", "x")), "layers": layers});
        let manifest = Bytes::from(manifest.to_string());
        let kind = "application/vnd.oci.image.manifest.v1+json";
        layout.put_manifest(kind, manifest, Some(&tag(&image))).await.unwrap();
        let evidence = fetch(&*layout, &image).await.unwrap();
        assert!(fetch(&*layout, &Digest::of(b"other")).await.unwrap().is_empty());
        let payload = |piece| match piece {
            Evidence::SimpleSigning(layer) if layer.signature_b64() == Some("c2ln") => layer.payload,
            other => panic!("{other:?}"),
        };
        evidence.into_iter().map(payload).collect()
    }

    #[tokio::test]
    async fn an_odd_signature_hides_only_itself() {
        let large = vec![b'x'; 70_000];
        let layers: [(&[u8], &str); 5] = [
            (b"one", SIMPLE_SIGNING),
            (b"other kind", "application/octet-stream"),
            (b"missing", SIMPLE_SIGNING),
            (&large, SIMPLE_SIGNING),
            (b"two", SIMPLE_SIGNING),
        ];
        let stored: [&[u8]; 4] = [b"one", b"other kind", &large, b"two"];
        assert_eq!(found(&layers, &stored).await, [b"one".to_vec(), b"two".to_vec()]);
    }

    #[tokio::test]
    async fn content_that_cannot_be_had_is_no_absence() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let image = Digest::of(b"image");
        let missing = json_of(&layer(b"missing", SIMPLE_SIGNING));
        let manifest =
            json!({"schemaVersion": 2, "config": json_of(&layer(b"{}", "x")), "layers": [missing]});
        let kind = "application/vnd.oci.image.manifest.v1+json";
        layout.put_manifest(kind, manifest.to_string().into(), Some(&tag(&image))).await.unwrap();
        assert!(fetch(&*layout, &image).await.unwrap_err().message.starts_with("signatures of "));
    }

    #[tokio::test]
    async fn there_is_an_end_to_them() {
        let layers = vec![(&b"one"[..], SIMPLE_SIGNING); 101];
        assert_eq!(found(&layers, &[b"one"]).await.len(), 100);
    }
}

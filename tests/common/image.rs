//! Small images, made in a layout on disk.

use std::path::Path;
use std::sync::Arc;

use addonfs::fetch::layout::Layout;
use addonfs::fetch::sink::{BlobContent, BlobSink as _};
use addonfs::policy::digest::Digest;
use addonfs::policy::image::Descriptor;
use serde_json::json;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Bytes that differ from place to place, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

pub fn descriptor(media_type: &str, content: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(content),
        size: content.len() as u64,
        annotations: vec![],
    }
}

/// An image of one gzip layer that decodes to `decoded`, in the layout at `path` under `tag`; its digest.
pub async fn write_gzip(path: &Path, tag: &str, layer: Vec<u8>, decoded: &[u8]) -> Digest {
    write_encoded(path, tag, vec![("+gzip", layer, Digest::of(decoded))]).await.0
}

/// An image that can be mounted, in the layout at `path` under `tag`; its digest, and those of its layers. Of each layer,
/// the lowest first: the suffix of its media type, its bytes, and the digest of the tar in it.
pub async fn write_encoded(
    path: &Path,
    tag: &str,
    layers: Vec<(&'static str, Vec<u8>, Digest)>,
) -> (Digest, Vec<Digest>) {
    let layout = Layout::create(path).expect("layout");
    let diff_ids: Vec<Digest> = layers.iter().map(|(_, _, diff_id)| *diff_id).collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let config_descriptor = descriptor(CONFIG, &config);
    layout.put_blob(&config_descriptor, BlobContent::bytes(config)).await.expect("config");
    let mut descriptors = vec![];
    for (suffix, layer, _) in layers {
        let described = descriptor(&format!("{LAYER}{suffix}"), &layer);
        layout.put_blob(&described, BlobContent::bytes(layer)).await.expect("layer");
        descriptors.push(described);
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config_descriptor, "layers": descriptors,
    });
    let content = manifest.to_string().into_bytes();
    let digest = layout.put_manifest(MANIFEST, content.into(), Some(tag)).await.expect("manifest");
    (digest, descriptors.into_iter().map(|layer| layer.digest).collect())
}

/// An image whose layers are the given bytes (which need be no tar), in the layout at `path` under `tag`.
pub async fn write(path: &Path, tag: &str, layers: &[Vec<u8>]) -> (Arc<Layout>, Digest, Vec<Descriptor>) {
    let layout = Layout::create(path).expect("layout");
    let config =
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec();
    let config_descriptor = descriptor(CONFIG, &config);
    layout.put_blob(&config_descriptor, BlobContent::bytes(config)).await.expect("config");
    let mut descriptors = vec![];
    for layer in layers {
        let described = descriptor(LAYER, layer);
        layout.put_blob(&described, BlobContent::bytes(layer.clone())).await.expect("layer");
        descriptors.push(described);
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config_descriptor, "layers": descriptors,
    });
    let content = manifest.to_string().into_bytes();
    let digest = layout.put_manifest(MANIFEST, content.into(), Some(tag)).await.expect("manifest");
    (layout, digest, descriptors)
}

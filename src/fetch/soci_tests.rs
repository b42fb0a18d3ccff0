//! Which indexes are believed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::*;
use crate::fetch::layout::Layout;
use crate::fetch::referrers::attach;
use crate::fetch::sink::{BlobContent, BlobSink as _};
use crate::policy::image::{OCI_CONFIG, OCI_MANIFEST};
use crate::policy::soci::{self, EMPTY_CONFIG, INDEX_V2};
use crate::policy::trust::keys::PrivateKey;
use crate::policy::trust::simple_signing::Payload;
use crate::policy::trust::{SIGNATURE_ANNOTATION, SIMPLE_SIGNING, TrustedKey, signature_tag};

struct Image {
    layout: Arc<Layout>,
    digest: Digest,
    manifest: ImageManifest,
    layer: Descriptor,
    _folder: tempfile::TempDir,
}

fn descriptor(of: &str, media_type: &str) -> Descriptor {
    let (digest, size) = (Digest::of(of.as_bytes()), of.len() as u64);
    Descriptor { media_type: media_type.to_owned(), digest, size, annotations: Vec::new() }
}

impl Image {
    /// An image whose manifest has these annotations.
    async fn new(annotations: serde_json::Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let layer = descriptor("layer", "application/vnd.oci.image.layer.v1.tar+gzip");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor("config", OCI_CONFIG),
            "layers": [layer], "annotations": annotations,
        });
        let bytes = manifest.to_string().into_bytes();
        let config = BlobContent::bytes(EMPTY_CONFIG);
        layout.put_blob(&soci::config_descriptor(), config).await.unwrap();
        let manifest = ImageManifest::parse(&bytes).unwrap();
        let digest = layout.put_manifest(OCI_MANIFEST, bytes.into(), Some("v1")).await.unwrap();
        Self { layout, digest, manifest, layer, _folder: folder }
    }

    /// Lists an index among the image's referrers that says it is of `subject`.
    async fn add_index(&self, subject: &Digest, tool: &str) -> Digest {
        let ztoc = soci::ztoc_descriptor(&self.layer, tool.as_bytes(), 4 << 20);
        let subject = Descriptor { digest: *subject, ..descriptor("image", OCI_MANIFEST) };
        let manifest = soci::manifest(&subject, &[ztoc], tool).to_string().into_bytes();
        attach(&*self.layout, &*self.layout, &self.digest, INDEX_V1, manifest).await.unwrap().digest
    }

    async fn sign(&self, key: &PrivateKey, digest: &Digest) {
        let (docker_reference, optional) = ("r/x".to_owned(), serde_json::Map::new());
        let payload = Payload { docker_reference, digest: *digest, optional }.to_bytes();
        let signature = STANDARD.encode(key.sign(&payload).unwrap());
        let layer = Descriptor {
            media_type: SIMPLE_SIGNING.to_owned(),
            digest: Digest::of(&payload),
            size: payload.len() as u64,
            annotations: vec![(SIGNATURE_ANNOTATION.to_owned(), signature)],
        };
        self.layout.put_blob(&layer, BlobContent::bytes(payload)).await.unwrap();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor("config", OCI_CONFIG),
            "layers": [layer],
        });
        let tag = signature_tag(digest);
        let content = manifest.to_string().into();
        self.layout.put_manifest(OCI_MANIFEST, content, Some(&tag)).await.unwrap();
    }

    /// The digest of the layer's zTOC, if an index is believed.
    async fn found(&self, trust: &Trust) -> Option<Digest> {
        let index = find(&*self.layout, &self.digest, &self.manifest, trust).await?;
        index.ztoc(&self.layer.digest).map(|ztoc| ztoc.digest)
    }
}

fn trusting(key: &PrivateKey) -> Trust {
    let key = TrustedKey { name: "index.pub".to_owned(), key: key.public().unwrap() };
    Trust { keys: vec![key], ..Trust::default() }
}

#[tokio::test]
async fn an_index_by_referrers_counts_when_a_trusted_key_signed_it() {
    let (good, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let image = Image::new(json!({})).await;
    let elsewhere = image.add_index(&Digest::of(b"other image"), "elsewhere").await;
    let unsigned = image.add_index(&image.digest, "unsigned").await;
    image.sign(&good, &elsewhere).await;
    assert_eq!(
        image.found(&trusting(&good)).await,
        None,
        "signed, and of another image; or of this, and not signed"
    );
    image.sign(&other, &unsigned).await;
    assert_eq!(image.found(&trusting(&good)).await, None, "signed by another key");
    let signed = image.add_index(&image.digest, "signed").await;
    image.sign(&good, &signed).await;
    assert_eq!(image.found(&trusting(&good)).await, Some(Digest::of(b"signed")));
    assert_eq!(image.found(&trusting(&other)).await, Some(Digest::of(b"unsigned")));
    assert_eq!(image.found(&Trust::default()).await, None, "no key is trusted");
    let with_log = Trust { require_log: true, ..trusting(&good) };
    assert_eq!(image.found(&with_log).await, None);
    // A signature over something else does not count for the index.
    let third = image.add_index(&image.digest, "third").await;
    let key = PrivateKey::generate().unwrap();
    image.sign(&key, &image.digest).await;
    assert_eq!(image.found(&trusting(&key)).await, None, "{third}");
}

#[tokio::test]
async fn an_index_that_the_manifest_names_needs_no_key() {
    let layer = descriptor("layer", "application/vnd.oci.image.layer.v1.tar+gzip");
    let ztoc = soci::ztoc_descriptor(&layer, b"bound", 4 << 20);
    let mut index = soci::manifest(&descriptor("image", OCI_MANIFEST), &[ztoc], "test");
    index.as_object_mut().unwrap().remove("subject");
    for (version, believed) in [(INDEX_V2, true), (INDEX_V1, false)] {
        index["config"]["mediaType"] = json!(version);
        let bytes = index.to_string().into_bytes();
        let image = Image::new(json!({INDEX_DIGEST: Digest::of(&bytes)})).await;
        assert_eq!(image.found(&Trust::default()).await, None, "it is not there");
        image.layout.put_manifest(OCI_MANIFEST, bytes.into(), None).await.unwrap();
        let found = image.found(&Trust::default()).await;
        assert_eq!(found, believed.then(|| Digest::of(b"bound")), "{version}");
    }
    let image = Image::new(json!({INDEX_DIGEST: "no digest"})).await;
    assert_eq!(image.found(&Trust::default()).await, None);
}

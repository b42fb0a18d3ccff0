//! A signature as cosign 3 leaves it: a sigstore bundle in a manifest that refers to the image (cosign
//! `specs/BUNDLE_SPEC.md`).
//!
//! ```text
//! manifest   artifactType application/vnd.dev.sigstore.bundle.v0.3+json, subject: the image
//!   layers[0]   {"mediaType", "verificationMaterial": {"publicKey": {"hint"}}, "dsseEnvelope"}
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{Outcome, signed_by};
use crate::fetch::sink::{BlobContent, BlobSink};
use crate::fetch::source::BlobSource;
use crate::fetch::{referrers, signatures};
use crate::policy::digest::Digest;
use crate::policy::image::{Descriptor, OCI_MANIFEST};
use crate::policy::reference::PinnedRef;
use crate::policy::trust::evidence::Evidence;
use crate::policy::trust::keys::PrivateKey;
use crate::policy::trust::sigstore::{BUNDLE, dsse_pae, statement};

const EMPTY_CONFIG: &[u8] = b"{}";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Adds a bundle to those that refer to the image, unless one of them is by this key.
pub(crate) async fn sign(
    source: &dyn BlobSource,
    sink: &dyn BlobSink,
    image: &PinnedRef,
    key: &PrivateKey,
) -> anyhow::Result<Outcome> {
    let (media_type, content) = source.manifest(&image.digest).await?;
    let mut found = signatures::fetch(source, &image.digest).await?;
    found.retain(|evidence| matches!(evidence, Evidence::Bundle(_)));
    if signed_by(&found, image, key)? {
        return Ok(Outcome::Present);
    }
    let bundle = bundle(&image.digest, key)?;
    let layer = blob(BUNDLE, &bundle);
    let config = blob(EMPTY, EMPTY_CONFIG);
    sink.put_blob(&config, BlobContent::bytes(EMPTY_CONFIG)).await?;
    sink.put_blob(&layer, BlobContent::bytes(bundle)).await?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": BUNDLE,
        "config": config,
        "layers": [layer],
        "subject": {"mediaType": media_type, "digest": image.digest, "size": content.len()},
        "annotations": {
            "dev.sigstore.bundle.content": "dsse-envelope",
            "dev.sigstore.bundle.predicateType": statement::SIGN_PREDICATE,
        },
    });
    let manifest = manifest.to_string().into_bytes();
    let added = referrers::attach(source, sink, &image.digest, BUNDLE, manifest).await?;
    Ok(Outcome::Added(added.digest))
}

/// The bundle itself. The hint names the key as cosign does, and is believed by nobody.
fn bundle(image: &Digest, key: &PrivateKey) -> anyhow::Result<Vec<u8>> {
    let payload = statement::signing(image);
    let signature = key.sign(&dsse_pae(statement::PAYLOAD_TYPE, &payload)).map_err(anyhow::Error::msg)?;
    let hint = key.public().map_err(anyhow::Error::msg)?.fingerprint();
    let bundle = json!({
        "mediaType": BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": STANDARD.encode(hint.as_bytes())}},
        "dsseEnvelope": {
            "payload": STANDARD.encode(&payload),
            "payloadType": statement::PAYLOAD_TYPE,
            "signatures": [{"sig": STANDARD.encode(signature)}],
        },
    });
    Ok(bundle.to_string().into_bytes())
}

fn blob(media_type: &str, content: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(content),
        size: content.len() as u64,
        annotations: Vec::new(),
    }
}

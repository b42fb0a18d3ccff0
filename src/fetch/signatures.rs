//! What vouches for a digest, wherever signers leave it.
//!
//! | where | what |
//! |---|---|
//! | tag `sha256-<hex>.sig` | cosign's first layout: a layer a signature (cosign `specs/SIGNATURE_SPEC.md`, "Tag-based discovery") |
//! | referrers with a layer of type `application/vnd.dev.sigstore.bundle…` | sigstore bundles (cosign `specs/BUNDLE_SPEC.md`) |
//! | referrers with layers of cosign's first layout | cosign 2 with `--registry-referrers-mode=oci-1-1` |
//! | referrers of type `application/vnd.cncf.notary.signature` | Notation envelopes |
//!
//! In: a source and the pinned digest. Out: the evidence, each blob checked against its descriptor and nothing else:
//! whether it is worth anything is for `policy` to say. A tag can be moved, and a list be added to, by anybody who may
//! push, so what is odd about one signature hides only that one. Tag and referrers are asked at the same time, and who
//! holds enough in his hands is not kept waiting for the other.

use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesUnordered};
use futures_util::{FutureExt as _, StreamExt as _};

use super::document;
use super::error::{Class, FetchError};
use super::source::BlobSource;
use crate::policy::digest::Digest;
use crate::policy::image::{Descriptor, ImageManifest};
use crate::policy::trust::evidence::{Bundle, Evidence, NotationEnvelope, SimpleSigning};
use crate::policy::trust::{SIMPLE_SIGNING, signature_tag};

/// More layers than this are not fetched: an image that is signed daily for a season has fewer.
const MAX_SIGNATURES: usize = 100;
/// More referring manifests than this are not fetched; attestations that say that they are such do not count.
const MAX_REFERRING: usize = 32;
/// A payload is some hundred bytes; the user's annotations in it may make it longer.
const MAX_PAYLOAD: u64 = 64 * 1024;
/// A bundle has a certificate, a log entry and a timestamp: 5 to 12 KiB. A Notation envelope has a chain.
const MAX_ENVELOPE: u64 = 128 * 1024;

/// Blobs that are fetched at the same time: together they are one round trip.
const PARALLEL: usize = 4;

const BUNDLE_PREFIX: &str = "application/vnd.dev.sigstore.bundle";
const NOTATION: &str = "application/vnd.cncf.notary.signature";
/// The artifact types under which signatures are listed. Registries that know artifact types by halves list the empty
/// config's type, or none: only the manifest says then what it is.
const TYPES: [&str; 7] = [
    "application/vnd.dev.sigstore.bundle.v0.3+json",
    "application/vnd.dev.sigstore.bundle+json;version=0.2",
    "application/vnd.dev.sigstore.bundle+json;version=0.1",
    "application/vnd.dev.cosign.artifact.sig.v1+json",
    NOTATION,
    "application/vnd.oci.empty.v1+json",
    "",
];
/// What a bundle attests to, said by its manifest (cosign `specs/BUNDLE_SPEC.md`); one that says that it is no signature
/// is not fetched.
const PREDICATE_TYPE: &str = "dev.sigstore.bundle.predicateType";
const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

/// A question under way; true if it is the tag's.
type Lookup<'a> = BoxFuture<'a, (bool, Result<Vec<Evidence>, FetchError>)>;

/// All signatures of `digest`; see [`find`].
pub async fn fetch(source: &dyn BlobSource, digest: &Digest) -> Result<Vec<Evidence>, FetchError> {
    find(source, digest, &|_| false).await
}

/// The signatures of `digest`, until `suffices` says of what one of the places has that it is enough; those under the tag
/// first. An error if something could not be had and the rest does not suffice: that is no absence of signatures.
pub async fn find(
    source: &dyn BlobSource,
    digest: &Digest,
    suffices: &(dyn Fn(&[Evidence]) -> bool + Send + Sync),
) -> Result<Vec<Evidence>, FetchError> {
    let mut lookups: FuturesUnordered<Lookup<'_>> = FuturesUnordered::new();
    lookups.push(tagged(source, digest).map(|found| (true, found)).boxed());
    lookups.push(referring(source, digest).map(|found| (false, found)).boxed());
    let (mut evidence, mut failed) = (Vec::new(), None);
    while let Some((by_tag, found)) = lookups.next().await {
        match found {
            Ok(found) if suffices(&found) => return Ok(found),
            Ok(found) if by_tag => {
                evidence.splice(0..0, found);
            }
            Ok(found) => evidence.extend(found),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(evidence), |error| Err(error.context(format_args!("signatures of {digest}"))))
}

/// The signatures under the tag; none if there is no such tag.
async fn tagged(source: &dyn BlobSource, digest: &Digest) -> Result<Vec<Evidence>, FetchError> {
    let Some(found) = source.tagged(&signature_tag(digest)).await? else { return Ok(Vec::new()) };
    let layers = document::children(&found.content)?.blobs;
    layers_of(source, digest, layers, &|layer, bytes| {
        SimpleSigning { payload: bytes, annotations: layer.annotations }.into()
    })
    .await
}

/// The manifests that are listed as signatures of `digest`; what they are has to be seen.
pub async fn listed(source: &dyn BlobSource, digest: &Digest) -> Result<Vec<Descriptor>, FetchError> {
    let mut listed = source.referrers(digest, &TYPES).await?;
    listed.retain(|referrer| may_be_signature(referrer.annotation(PREDICATE_TYPE)));
    Ok(listed)
}

/// The signatures in manifests that refer to `digest`.
async fn referring(source: &dyn BlobSource, digest: &Digest) -> Result<Vec<Evidence>, FetchError> {
    let mut listed = listed(source, digest).await?;
    if listed.len() > MAX_REFERRING {
        let more = listed.len() - MAX_REFERRING;
        tracing::warn!(%digest, more, "more referrers than are looked at: only the first {MAX_REFERRING} count");
        listed.truncate(MAX_REFERRING);
    }
    let one = |referrer: Descriptor| async move {
        let found = in_manifest(source, digest, &referrer.digest).await;
        found.map_err(|error| error.context(format_args!("referrer {}", referrer.digest)))
    };
    let mut manifests = stream::iter(listed).map(one).buffered(PARALLEL);
    let mut left_out = LeftOut::default();
    let mut evidence = Vec::new();
    while let Some(found) = manifests.next().await {
        if let Some(found) = left_out.or_found(digest, found)? {
            evidence.extend(found);
        }
    }
    left_out.unless_any(evidence)
}

fn may_be_signature(predicate_type: Option<&str>) -> bool {
    predicate_type.is_none_or(|kind| kind == SIGN_PREDICATE)
}

/// The signatures in one manifest. What it is is said by its own layers: a list of referrers may say anything.
async fn in_manifest(
    source: &dyn BlobSource,
    digest: &Digest,
    referrer: &Digest,
) -> Result<Vec<Evidence>, FetchError> {
    let (_, bytes) = source.manifest(referrer).await?;
    let Ok(manifest) = ImageManifest::parse(&bytes) else { return Ok(Vec::new()) };
    if !may_be_signature(manifest.annotation(PREDICATE_TYPE)) {
        return Ok(Vec::new());
    }
    let notation = [manifest.artifact_type.as_deref(), Some(manifest.config.media_type.as_str())];
    let notation = notation.contains(&Some(NOTATION));
    layers_of(source, digest, manifest.layers, &|layer, bytes| {
        let manifest = *referrer;
        match layer.media_type {
            media_type if notation => Evidence::Notation(NotationEnvelope { manifest, media_type, bytes }),
            media_type if media_type.starts_with(BUNDLE_PREFIX) => {
                Evidence::Bundle(Bundle { manifest, bytes })
            }
            _ => SimpleSigning { payload: bytes, annotations: layer.annotations }.into(),
        }
    })
    .await
}

/// How large a layer may be that holds a signature; `None` if it holds none.
fn limit(media_type: &str) -> Option<u64> {
    match media_type {
        SIMPLE_SIGNING => Some(MAX_PAYLOAD),
        "application/jose+json" | "application/cose" => Some(MAX_ENVELOPE),
        other if other.starts_with(BUNDLE_PREFIX) => Some(MAX_ENVELOPE),
        _ => None,
    }
}

/// The signatures among these layers. An error if there are some and not one could be had.
async fn layers_of(
    source: &dyn BlobSource,
    digest: &Digest,
    layers: Vec<Descriptor>,
    evidence_of: &(dyn Fn(Descriptor, Vec<u8>) -> Evidence + Send + Sync),
) -> Result<Vec<Evidence>, FetchError> {
    let mut signatures =
        layers.into_iter().filter_map(|layer| limit(&layer.media_type).map(|limit| (layer, limit)));
    let looked_at: Vec<(Descriptor, u64)> = signatures.by_ref().take(MAX_SIGNATURES).collect();
    let blob = |(layer, limit): (Descriptor, u64)| async move {
        let bytes = source.blob(&layer, limit).await;
        bytes.map(|bytes| (layer, bytes))
    };
    let mut blobs = stream::iter(looked_at).map(blob).buffered(PARALLEL);
    let mut left_out = LeftOut::default();
    let mut evidence = Vec::new();
    while let Some(found) = blobs.next().await {
        if let Some((layer, bytes)) = left_out.or_found(digest, found)? {
            evidence.push(evidence_of(layer, bytes.to_vec()));
        }
    }
    let more = signatures.count();
    if more > 0 {
        tracing::warn!(%digest, more, "more signatures than are looked at: only the first {MAX_SIGNATURES} count");
    }
    left_out.unless_any(evidence)
}

/// The first of what was left out.
#[derive(Default)]
struct LeftOut(Option<FetchError>);

impl LeftOut {
    /// Wrong or missing content is somebody's broken signature and left out; a registry that does not answer is trouble.
    fn or_found<T>(
        &mut self,
        digest: &Digest,
        found: Result<T, FetchError>,
    ) -> Result<Option<T>, FetchError> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(error) if matches!(error.class, Class::Corrupt | Class::NotFound | Class::Protocol) => {
                tracing::warn!(%digest, %error, "left out a signature");
                self.0.get_or_insert(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn unless_any(self, evidence: Vec<Evidence>) -> Result<Vec<Evidence>, FetchError> {
        match self.0 {
            Some(error) if evidence.is_empty() => Err(error),
            _ => Ok(evidence),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::fetch::layout::Layout;
    use crate::fetch::referrers;
    use crate::fetch::sink::{BlobContent, BlobSink as _};
    use crate::fetch::verified::VerifiedBytes;
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
        layout.put_manifest(kind, manifest, Some(&signature_tag(&image))).await.unwrap();
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
        layout.put_manifest(kind, manifest.to_string().into(), Some(&signature_tag(&image))).await.unwrap();
        assert!(fetch(&*layout, &image).await.unwrap_err().message.starts_with("signatures of "));
    }

    #[tokio::test]
    async fn there_is_an_end_to_them() {
        let layers = vec![(&b"one"[..], SIMPLE_SIGNING); 101];
        assert_eq!(found(&layers, &[b"one"]).await.len(), 100);
    }

    /// Lists a manifest with these layers among the referrers of `subject`, under `artifact_type`.
    async fn refer(
        layout: &Layout,
        subject: &Digest,
        artifact_type: &str,
        layers: &[(&str, &[u8])],
        annotations: serde_json::Value,
    ) -> Digest {
        let mut described = Vec::new();
        for (kind, content) in layers {
            let blob = layer(content, kind);
            layout.put_blob(&blob, BlobContent::bytes(content.to_vec())).await.unwrap();
            described.push(json_of(&blob));
        }
        let manifest = json!({
            "schemaVersion": 2, "artifactType": artifact_type, "config": json_of(&layer(b"{}", "x")),
            "layers": described, "annotations": annotations,
        });
        let manifest = manifest.to_string().into_bytes();
        referrers::attach(layout, layout, subject, artifact_type, manifest).await.unwrap().digest
    }

    /// What a referrer holds is said by its own layers, whatever the list calls it.
    #[tokio::test]
    async fn referrers_that_lie_about_their_type() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let image = Digest::of(b"image");
        let (bundle, notation, old) = (TYPES[0], NOTATION, TYPES[3]);
        let none = json!({});
        for (listed_as, layers, annotations) in [
            (bundle, &[("application/octet-stream", &b"no bundle"[..])][..], &none),
            (bundle, &[(bundle, b"one")], &none),
            ("application/vnd.oci.empty.v1+json", &[(bundle, b"two")], &none),
            (bundle, &[(bundle, b"sbom")], &json!({PREDICATE_TYPE: "https://spdx.dev/Document"})),
            (bundle, &[(bundle, b"three")], &json!({PREDICATE_TYPE: SIGN_PREDICATE})),
            (notation, &[("application/jose+json", b"four")], &none),
            (old, &[(SIMPLE_SIGNING, b"five")], &none),
            ("application/spdx+json", &[(bundle, b"not asked for")], &none),
        ] {
            refer(&layout, &image, listed_as, layers, annotations.clone()).await;
        }
        let found = fetch(&*layout, &image).await.unwrap();
        let words: Vec<String> = found
            .iter()
            .map(|piece| match piece {
                Evidence::SimpleSigning(layer) => {
                    format!("layer {}", String::from_utf8_lossy(&layer.payload))
                }
                Evidence::Bundle(bundle) => format!("bundle {}", String::from_utf8_lossy(&bundle.bytes)),
                Evidence::Notation(envelope) => {
                    format!("notation {}", String::from_utf8_lossy(&envelope.bytes))
                }
            })
            .collect();
        assert_eq!(words, ["bundle one", "bundle two", "bundle three", "notation four", "layer five"]);
    }

    /// A source whose list of referrers, or whose tags, never come.
    #[derive(Debug)]
    struct Stuck {
        of: std::sync::Arc<Layout>,
        tags: bool,
    }

    #[async_trait::async_trait]
    impl BlobSource for Stuck {
        async fn manifest(&self, digest: &Digest) -> Result<(String, VerifiedBytes), FetchError> {
            self.of.manifest(digest).await
        }
        async fn resolve(&self, tag: &str) -> Result<Option<Digest>, FetchError> {
            if self.tags { std::future::pending().await } else { self.of.resolve(tag).await }
        }
        async fn referrers(&self, subject: &Digest, types: &[&str]) -> Result<Vec<Descriptor>, FetchError> {
            if self.tags { self.of.referrers(subject, types).await } else { std::future::pending().await }
        }
        async fn blob(&self, blob: &Descriptor, limit: u64) -> Result<VerifiedBytes, FetchError> {
            self.of.blob(blob, limit).await
        }
        async fn stream(
            &self,
            blob: &Descriptor,
            from: u64,
        ) -> Result<stream::BoxStream<'static, Result<Bytes, FetchError>>, FetchError> {
            self.of.stream(blob, from).await
        }
        async fn range(&self, blob: &Descriptor, range: std::ops::Range<u64>) -> Result<Bytes, FetchError> {
            self.of.range(blob, range).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_enough_does_not_wait_for_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let image = Digest::of(b"image");
        let payload = layer(b"one", SIMPLE_SIGNING);
        layout.put_blob(&payload, BlobContent::bytes(b"one".to_vec())).await.unwrap();
        let manifest = json!({
            "schemaVersion": 2, "config": json_of(&layer(b"{}", "x")), "layers": [json_of(&payload)],
        });
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let tag = signature_tag(&image);
        layout.put_manifest(kind, manifest.to_string().into(), Some(&tag)).await.unwrap();
        refer(&layout, &image, TYPES[0], &[(TYPES[0], b"two")], json!({})).await;
        for tags in [false, true] {
            let source = Stuck { of: layout.clone(), tags };
            let found = find(&source, &image, &|found| !found.is_empty()).await.unwrap();
            assert_eq!(matches!(found.as_slice(), [Evidence::Bundle(_)]), tags, "{found:?}");
            let waiting = find(&source, &image, &|_| false);
            assert!(tokio::time::timeout(std::time::Duration::from_secs(9), waiting).await.is_err());
        }
    }
}

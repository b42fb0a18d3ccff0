//! What refers to an image: manifests that name it as their subject (distribution-spec `spec.md`, "Listing Referrers").
//!
//! A registry that does not keep such a list has it as an image index under the tag `sha256-<hex>`, written by whoever
//! adds to it; so has a layout. Anybody who may push can add to either, so a referrer says nothing by being listed.

use bytes::Bytes;
use serde_json::{Value, json};

use super::error::{Class, FetchError, Side};
use super::sink::BlobSink;
use super::source::BlobSource;
use crate::policy::digest::Digest;
use crate::policy::image::{Descriptor, OCI_INDEX, OCI_MANIFEST};

/// Most referrers of one type that are looked at.
pub(super) const MAX_REFERRERS: usize = 32;

/// The tag under which the list is where the registry does not keep it ("Referrers Tag Schema").
pub(super) fn tag(subject: &Digest) -> String {
    subject.dashed().to_string()
}

/// The entries of type `artifact_type` in a list.
pub(super) fn of_type(list: &[u8], artifact_type: &str) -> Result<Vec<Descriptor>, FetchError> {
    let protocol = |what: String| FetchError::new(Class::Protocol, Side::Remote, what);
    let list: Value =
        serde_json::from_slice(list).map_err(|error| protocol(format!("a list of referrers: {error}")))?;
    let entries = list.get("manifests").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let wanted = entries
        .iter()
        .filter(|entry| entry.get("artifactType").and_then(Value::as_str) == Some(artifact_type));
    let parse = |entry: &Value| {
        let text = |key: &str| entry.get(key).and_then(Value::as_str);
        let digest = text("digest").and_then(|digest| digest.parse().ok());
        let size = entry.get("size").and_then(Value::as_u64);
        let found = digest.zip(size).map(|(digest, size)| Descriptor {
            media_type: text("mediaType").unwrap_or_default().to_owned(),
            digest,
            size,
            annotations: Vec::new(),
        });
        found.ok_or_else(|| protocol("a list of referrers names one without digest and size".to_owned()))
    };
    wanted.take(MAX_REFERRERS).map(parse).collect()
}

/// The list under the tag, if there is one.
async fn tagged<S: BlobSource + ?Sized>(source: &S, subject: &Digest) -> Result<Option<Bytes>, FetchError> {
    let Some(list) = source.resolve(&tag(subject)).await? else { return Ok(None) };
    let (media_type, bytes) = source.manifest(&list).await?;
    // Anything else under that tag is no list of referrers.
    Ok((media_type == OCI_INDEX).then(|| bytes.as_bytes().clone()))
}

/// The referrers of `subject` of one type, by the tag.
pub(super) async fn by_tag<S: BlobSource + ?Sized>(
    source: &S,
    subject: &Digest,
    artifact_type: &str,
) -> Result<Vec<Descriptor>, FetchError> {
    tagged(source, subject).await?.map_or_else(|| Ok(Vec::new()), |list| of_type(&list, artifact_type))
}

/// Writes the manifest of an artifact that names `subject`, and lists it where the registry does not do so by itself.
pub async fn attach(
    source: &dyn BlobSource,
    sink: &dyn BlobSink,
    subject: &Digest,
    artifact_type: &str,
    manifest: Vec<u8>,
) -> Result<Descriptor, FetchError> {
    let size = manifest.len() as u64;
    let digest = sink.put_manifest(OCI_MANIFEST, manifest.into(), None).await?;
    let added = Descriptor { media_type: OCI_MANIFEST.to_owned(), digest, size, annotations: Vec::new() };
    let listed = source.referrers(subject, artifact_type).await?;
    if listed.iter().any(|known| known.digest == digest) {
        return Ok(added);
    }
    let before = tagged(source, subject).await?;
    let empty = || json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []});
    let list = before.and_then(|list| serde_json::from_slice(&list).ok());
    let mut list = list.filter(|list: &Value| list["manifests"].is_array()).unwrap_or_else(empty);
    if let Some(entries) = list.get_mut("manifests").and_then(Value::as_array_mut) {
        entries.push(json!({
            "mediaType": OCI_MANIFEST, "digest": digest, "size": size, "artifactType": artifact_type,
        }));
    }
    sink.put_manifest(OCI_INDEX, list.to_string().into(), Some(&tag(subject))).await?;
    Ok(added)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::layout::Layout;
    use crate::fetch::sink::BlobContent;
    use crate::policy::soci;

    #[tokio::test]
    async fn what_is_attached_is_found_by_its_type() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let config = soci::config_descriptor();
        layout.put_blob(&config, BlobContent::bytes(soci::EMPTY_CONFIG)).await.unwrap();
        let subject = Digest::of(b"image");
        assert!(layout.referrers(&subject, soci::INDEX_V1).await.unwrap().is_empty());
        let image = Descriptor { digest: subject, ..config };
        for tool in ["one", "two", "two"] {
            let manifest = soci::manifest(&image, &[], tool).to_string().into_bytes();
            attach(&*layout, &*layout, &subject, soci::INDEX_V1, manifest).await.unwrap();
        }
        assert_eq!(layout.referrers(&subject, soci::INDEX_V1).await.unwrap().len(), 2);
        assert!(layout.referrers(&subject, "other").await.unwrap().is_empty());
        assert!(layout.referrers(&Digest::of(b"other"), soci::INDEX_V1).await.unwrap().is_empty());
    }
}

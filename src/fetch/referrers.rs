//! What refers to an image: manifests that name it as their subject (distribution-spec `spec.md`, "Listing Referrers").
//!
//! A registry that does not keep such a list has it as an image index under the tag `sha256-<hex>`, written by whoever
//! adds to it; so has a layout. Anybody who may push can add to either, so a referrer says nothing by being listed.

use bytes::Bytes;
use serde_json::{Value, json};

use super::document;
use super::error::{Class, FetchError, Side};
use super::sink::BlobSink;
use super::source::BlobSource;
use crate::policy::digest::Digest;
use crate::policy::image::{Descriptor, OCI_INDEX, OCI_MANIFEST};

/// Most referrers of the wanted types that are taken from a list: an image with a signature, an SBOM and a provenance a
/// build stays below for years.
pub(super) const MAX_REFERRERS: usize = 256;

/// The tag under which the list is where the registry does not keep it ("Referrers Tag Schema").
pub(super) fn tag(subject: &Digest) -> String {
    subject.dashed().to_string()
}

/// The entries of one of `types` in a list; an entry that names none is of type `""`.
pub(super) fn of_types(list: &[u8], types: &[&str]) -> Result<Vec<Descriptor>, FetchError> {
    let protocol = |what: String| FetchError::new(Class::Protocol, Side::Remote, what);
    let list: Value =
        serde_json::from_slice(list).map_err(|error| protocol(format!("a list of referrers: {error}")))?;
    let entries = list.get("manifests").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let text =
        |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let wanted = entries.iter().filter(|entry| types.contains(&text(entry, "artifactType").as_str()));
    // An entry that names nothing hides only itself.
    let parse = |entry: &Value| {
        let found = document::descriptor(entry).ok()?;
        Some(Descriptor { media_type: text(entry, "mediaType"), ..found })
    };
    Ok(wanted.filter_map(parse).take(MAX_REFERRERS).collect())
}

/// The list under the tag, if there is one.
async fn tagged<S: BlobSource + ?Sized>(source: &S, subject: &Digest) -> Result<Option<Bytes>, FetchError> {
    let list = source.tagged(&tag(subject)).await?;
    // Anything else under that tag is no list of referrers.
    Ok(list.filter(|list| list.media_type == OCI_INDEX).map(|list| list.content.as_bytes().clone()))
}

/// The referrers of `subject` of these types, by the tag.
pub(super) async fn by_tag<S: BlobSource + ?Sized>(
    source: &S,
    subject: &Digest,
    types: &[&str],
) -> Result<Vec<Descriptor>, FetchError> {
    tagged(source, subject).await?.map_or_else(|| Ok(Vec::new()), |list| of_types(&list, types))
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
    let listed = source.referrers(subject, &[artifact_type]).await?;
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
        assert!(layout.referrers(&subject, &[soci::INDEX_V1]).await.unwrap().is_empty());
        let image = Descriptor { digest: subject, ..config };
        for tool in ["one", "two", "two"] {
            let manifest = soci::manifest(&image, &[], tool).to_string().into_bytes();
            attach(&*layout, &*layout, &subject, soci::INDEX_V1, manifest).await.unwrap();
        }
        assert_eq!(layout.referrers(&subject, &[soci::INDEX_V1]).await.unwrap().len(), 2);
        assert!(layout.referrers(&subject, &["other", ""]).await.unwrap().is_empty());
        assert!(layout.referrers(&Digest::of(b"other"), &[soci::INDEX_V1]).await.unwrap().is_empty());
    }
}

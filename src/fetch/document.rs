//! What this room must know of manifests and indexes to move them: their media type and the blobs they name.
//!
//! In: content whose digest was checked. Out: names of things to fetch or copy. What a manifest means for an
//! image is decided by `policy::image`; here nothing is refused that could be copied faithfully.

use serde_json::Value;

use super::error::{Class, FetchError, Side};
use crate::policy::digest::Digest;
use crate::policy::image::Descriptor;

/// The largest manifest or index (distribution-spec: registries SHOULD accept 4 MiB; clients stop there too).
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// No document names more blobs or manifests.
const MAX_CHILDREN: usize = 4096;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The media types that are asked for and understood.
pub(super) const MEDIA_TYPES: [&str; 4] = [
    OCI_MANIFEST,
    OCI_INDEX,
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// The media type of a document: what it states itself, else what `hint` (a header, a descriptor) says, else what
/// its shape says. A hint that contradicts the document is an error, because two readers could take the same bytes
/// for different things.
pub(super) fn media_type(content: &[u8], hint: &str) -> Result<String, FetchError> {
    let json = parse(content)?;
    let known_hint = MEDIA_TYPES.contains(&hint);
    if let Some(stated) = json.get("mediaType").and_then(Value::as_str) {
        if known_hint && hint != stated {
            return Err(protocol(format!("announced as {hint}, and says of itself {stated:?}")));
        }
        return Ok(stated.to_owned());
    }
    let (manifest, index) = (json.get("layers").is_some(), json.get("manifests").is_some());
    match (manifest, index) {
        (true, true) => Err(protocol("both a manifest and an index".to_owned())),
        _ if known_hint => Ok(hint.to_owned()),
        (true, false) => Ok(OCI_MANIFEST.to_owned()),
        (false, true) => Ok(OCI_INDEX.to_owned()),
        (false, false) => Err(protocol("neither a manifest nor an index".to_owned())),
    }
}

/// What a document names.
#[derive(Debug, Default)]
pub(super) struct Children {
    /// Config and layers, in that order. Those that live elsewhere (`urls`) are left out.
    pub(super) blobs: Vec<Descriptor>,
    /// Manifests of an index.
    pub(super) manifests: Vec<Descriptor>,
}

/// The blobs and manifests that a document names.
pub(super) fn children(content: &[u8]) -> Result<Children, FetchError> {
    let json = parse(content)?;
    let list = |key: &str| -> Result<Vec<Descriptor>, FetchError> {
        let items = json.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if items.len() > MAX_CHILDREN {
            return Err(protocol(format!("more than {MAX_CHILDREN} {key}")));
        }
        items.iter().filter(|item| item.get("urls").is_none()).map(descriptor).collect()
    };
    let mut blobs: Vec<_> = json.get("config").map(descriptor).transpose()?.into_iter().collect();
    blobs.extend(list("layers")?);
    Ok(Children { blobs, manifests: list("manifests")? })
}

/// A descriptor (image-spec `descriptor.md`): media type, digest and size are required.
pub(super) fn descriptor(json: &Value) -> Result<Descriptor, FetchError> {
    let text = |key: &str| json.get(key).and_then(Value::as_str);
    let digest = text("digest").ok_or_else(|| protocol("a descriptor without digest".to_owned()))?;
    let digest: Digest = digest.parse().map_err(|error| protocol(format!("a descriptor: {error}")))?;
    let size = json.get("size").and_then(Value::as_u64);
    let size = size.ok_or_else(|| protocol(format!("the descriptor of {digest} has no size")))?;
    let annotations = json.get("annotations").and_then(Value::as_object);
    let annotations = annotations.into_iter().flatten();
    Ok(Descriptor {
        media_type: text("mediaType").unwrap_or("application/octet-stream").to_owned(),
        digest,
        size,
        annotations: annotations
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect(),
    })
}

/// The form of tags (distribution-spec: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`).
pub(super) fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = text.bytes();
    bytes.next().is_some_and(word) && bytes.all(|b| word(b) || b == b'.' || b == b'-') && text.len() <= 128
}

fn parse(content: &[u8]) -> Result<Value, FetchError> {
    serde_json::from_slice(content).map_err(|error| protocol(format!("not JSON: {error}")))
}

fn protocol(message: String) -> FetchError {
    FetchError::new(Class::Protocol, Side::Remote, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_the_contents_own() {
        let docker = MEDIA_TYPES[2];
        let stated = format!(r#"{{"mediaType":"{OCI_MANIFEST}","layers":[]}}"#);
        let table = [
            (stated.as_str(), OCI_MANIFEST, Some(OCI_MANIFEST)),
            (stated.as_str(), "text/plain", Some(OCI_MANIFEST)),
            (stated.as_str(), OCI_INDEX, None),
            (r#"{"layers":[]}"#, docker, Some(docker)),
            (r#"{"layers":[]}"#, "", Some(OCI_MANIFEST)),
            (r#"{"manifests":[]}"#, "application/json", Some(OCI_INDEX)),
            (r#"{"manifests":[],"layers":[]}"#, OCI_INDEX, None),
            ("{}", "application/json", None),
            ("<html>", OCI_INDEX, None),
        ];
        for (content, hint, expected) in table {
            let got = media_type(content.as_bytes(), hint).ok();
            assert_eq!(got.as_deref(), expected, "{content} {hint}");
        }
    }

    #[test]
    fn children_of_documents() {
        let digest = Digest::of(b"x");
        let one =
            format!(r#"{{"mediaType":"a","digest":"{digest}","size":1,"annotations":{{"k":"v","n":1}}}}"#);
        let found = children(format!(r#"{{"config":{one},"layers":[{one}]}}"#).as_bytes()).unwrap();
        assert_eq!((found.blobs.len(), found.manifests.len()), (2, 0));
        assert_eq!(found.blobs[0].annotations, [("k".to_owned(), "v".to_owned())]);
        let found = children(format!(r#"{{"manifests":[{one}]}}"#).as_bytes()).unwrap();
        assert_eq!((found.blobs.len(), found.manifests.len()), (0, 1));
        for bad in [
            r#"{"layers":[{}]}"#.to_owned(),
            r#"{"layers":[{"digest":"sha256:..","size":1}]}"#.to_owned(),
            format!(r#"{{"layers":[{{"digest":"{digest}","size":-1}}]}}"#),
            format!(r#"{{"layers":[{}]}}"#, vec![one; 4097].join(",")),
        ] {
            assert!(children(bad.as_bytes()).is_err(), "{}", &bad[..60.min(bad.len())]);
        }
    }

    #[test]
    fn tags() {
        for good in ["v1", "_x", "1.0-rc_1", &"a".repeat(128)] {
            assert!(is_tag(good), "{good}");
        }
        for bad in ["", ".x", "-x", "a/b", "a:b", "é", "a b", "../x", &"a".repeat(129)] {
            assert!(!is_tag(bad), "{bad}");
        }
    }
}

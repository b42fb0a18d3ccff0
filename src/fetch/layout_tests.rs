//! Layouts that we write, and layouts that others broke.

use super::*;

fn descriptor(content: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        digest: Digest::of(content),
        size: content.len() as u64,
        annotations: vec![],
    }
}

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"layers":[]}"#;
const OTHER: &[u8] = br#"{"schemaVersion":2,"layers":[],"annotations":{}}"#;
const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

#[tokio::test]
async fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::create(&folder.path().join("new")).unwrap();
    let content = vec![7; 600_000];
    let blob = descriptor(&content);
    assert!(!layout.has_blob(&blob).await.unwrap());
    layout.put_blob(&blob, BlobContent::bytes(content.clone())).await.unwrap();
    assert!(layout.has_blob(&blob).await.unwrap());
    assert_eq!(layout.blob(&blob, 1 << 20).await.unwrap().as_bytes(), &content);
    assert_eq!(layout.range(&blob, 599_990..600_000).await.unwrap().len(), 10);
    let parts: Vec<_> = layout.stream(&blob, 1).await.unwrap().collect().await;
    let length: usize = parts.into_iter().map(|part| part.unwrap().len()).sum();
    assert_eq!(length, 599_999);
    assert!(layout.range(&blob, 0..600_001).await.is_err());
    assert!(layout.blob(&blob, 599_999).await.is_err());

    let digest = layout.put_manifest(TYPE, MANIFEST.into(), Some("v1")).await.unwrap();
    assert_eq!(layout.resolve("v1").await.unwrap(), Some(digest));
    assert_eq!(layout.resolve("v2").await.unwrap(), None);
    let (media_type, read) = layout.manifest(&digest).await.unwrap();
    assert_eq!((media_type.as_str(), &read[..]), (TYPE, MANIFEST));
    assert_eq!(layout.only_image().unwrap(), digest);

    // a tag moves; what has no tag is not named
    let other = layout.put_manifest(TYPE, OTHER.into(), Some("v1")).await.unwrap();
    layout.put_manifest(TYPE, MANIFEST.into(), None).await.unwrap();
    assert_eq!(layout.tags().unwrap(), [("v1".to_owned(), other)]);
    let left = std::fs::read_dir(folder.path().join("new")).unwrap().count();
    assert_eq!(left, 3, "no temporary file stays");
}

#[tokio::test]
async fn wrong_content_is_not_stored() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::create(folder.path()).unwrap();
    let blob = descriptor(b"right");
    for wrong in [&b"wrong"[..], b"righ", b"right and more", b""] {
        let error = layout.put_blob(&blob, BlobContent::bytes(wrong)).await.unwrap_err();
        assert_eq!(error.class, Class::Corrupt);
    }
    assert!(!layout.has_blob(&blob).await.unwrap());
}

#[tokio::test]
async fn what_others_broke_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::create(folder.path()).unwrap();
    let blob = descriptor(b"right");
    let path = folder.path().join(blob_name(&blob.digest));

    std::fs::write(&path, b"wrong").unwrap();
    assert_eq!(layout.blob(&blob, 100).await.unwrap_err().class, Class::Corrupt);
    assert_eq!(layout.manifest(&blob.digest).await.unwrap_err().class, Class::Corrupt);
    std::fs::write(&path, b"longer than that").unwrap();
    assert_eq!(layout.range(&blob, 0..1).await.unwrap_err().class, Class::Corrupt);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(layout.blob(&blob, 100).await.unwrap_err().class, Class::NotFound);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(layout.blob(&blob, 100).await.unwrap_err().class, Class::Protocol);

    let entry = |digest: Digest| json!({"digest": digest, "size": 1, "annotations": {REF_NAME: "v1"}});
    let twice = json!({"manifests": [entry(Digest::of(b"a")), entry(Digest::of(b"b"))]});
    let written = [
        (twice.to_string(), "two images"),
        ("{".to_owned(), "not JSON"),
        (r#"{"manifests":[{}]}"#.to_owned(), "without digest"),
        (" ".repeat(5 << 20), "larger"),
    ];
    for (index, words) in written {
        std::fs::write(folder.path().join("index.json"), index).unwrap();
        let error = layout.resolve("v1").await.unwrap_err();
        assert!(error.message.contains(words), "{error}");
    }
}

#[test]
fn only_layouts_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(Layout::open(folder.path()).unwrap_err().class, Class::NotFound);
    std::fs::write(folder.path().join("precious"), "x").unwrap();
    assert!(Layout::create(folder.path()).is_err());
    assert!(!folder.path().join("oci-layout").exists());
    std::fs::write(folder.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert_eq!(Layout::open(folder.path()).unwrap_err().class, Class::Protocol);
}

#[tokio::test]
async fn writers_at_the_same_time_lose_no_tag() {
    let folder = tempfile::tempdir().unwrap();
    Layout::create(folder.path()).unwrap();
    let writers = (0..16).map(|n| {
        let path = folder.path().to_owned();
        tokio::spawn(async move {
            let layout = Layout::open(&path).unwrap();
            layout.put_manifest(TYPE, MANIFEST.into(), Some(&format!("v{n}"))).await.unwrap();
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(Layout::open(folder.path()).unwrap().tags().unwrap().len(), 16);
}

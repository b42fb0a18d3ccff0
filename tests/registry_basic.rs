//! Reading and writing against a real registry that does nothing unusual.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use addonfs::fetch::credentials::{Credential, Credentials, Secret};
use addonfs::fetch::error::Class;
use addonfs::fetch::layout::Layout;
use addonfs::fetch::push::{CopyProgress, push_image};
use addonfs::fetch::registry::RegistryOptions;
use addonfs::fetch::sink::{BlobContent, BlobSink as _};
use addonfs::fetch::source::BlobSource;
use addonfs::policy::digest::Digest;
use common::image::{self, noise};
use common::registry::{BASIC, DockerRegistry, Login, quick, repository};
use futures_util::StreamExt as _;

#[tokio::test]
async fn an_image_goes_from_a_layout_to_a_registry_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start();
    let big = noise(1, 3 << 20);
    let (layout, digest, layers) =
        image::write(folder.path(), "v1", &[big.clone(), vec![], noise(2, 10)]).await;
    let from: Arc<dyn BlobSource> = layout;
    let to = registry.repository("org/tools");

    let progress = CopyProgress::default();
    let pushed = push_image(&from, &digest, &*to, Some("v1"), &progress).await.unwrap();
    assert_eq!(pushed, digest);
    assert_eq!(progress.copied.load(Ordering::Relaxed), 4);
    assert_eq!(progress.done.load(Ordering::Relaxed), progress.total.load(Ordering::Relaxed));

    // the second time nothing is copied
    let progress = CopyProgress::default();
    push_image(&from, &digest, &*to, Some("v2"), &progress).await.unwrap();
    assert_eq!(progress.copied.load(Ordering::Relaxed), 0);
    assert_eq!(progress.done.load(Ordering::Relaxed), progress.total.load(Ordering::Relaxed));

    assert_eq!(to.resolve("v1").await.unwrap(), Some(digest));
    assert_eq!(to.resolve("v2").await.unwrap(), Some(digest));
    assert_eq!(to.resolve("absent").await.unwrap(), None);
    let (media_type, manifest) = to.manifest(&digest).await.unwrap();
    assert_eq!(media_type, image::MANIFEST);
    assert_eq!(Digest::of(&manifest), digest);
    assert_eq!(to.manifest(&Digest::of(b"absent")).await.unwrap_err().class, Class::NotFound);

    let layer = &layers[0];
    assert_eq!(to.blob(layer, 4 << 20).await.unwrap().as_bytes(), &big);
    assert_eq!(to.range(layer, 1000..2000).await.unwrap(), &big[1000..2000]);
    assert_eq!(to.range(layer, 5..5).await.unwrap().len(), 0);
    let streamed: Vec<u8> = to.stream(layer, 77).await.unwrap().map(|p| p.unwrap().to_vec()).concat().await;
    assert!(streamed == big[77..]);
    assert_eq!(to.blob(layer, 100).await.unwrap_err().class, Class::Protocol);
    assert!(to.range(layer, 0..layer.size + 1).await.is_err());
    assert_eq!(to.blob(&layers[1], 0).await.unwrap().len(), 0);

    // and back into another layout
    let back = Layout::create(&folder.path().join("back")).unwrap();
    let from: Arc<dyn BlobSource> = to;
    push_image(&from, &digest, &*back, Some("v1"), &CopyProgress::default()).await.unwrap();
    assert_eq!(back.resolve("v1").await.unwrap(), Some(digest));
    assert_eq!(back.blob(layer, 4 << 20).await.unwrap().as_bytes(), &big);
}

#[tokio::test]
async fn a_password_is_sent_when_asked_for() {
    let registry = DockerRegistry::start_with(&Login::Basic);
    let with = |credential| RegistryOptions { credentials: Credentials::fixed(credential), ..quick() };
    let login =
        |password: &str| Credential::Basic { username: BASIC.0.to_owned(), password: Secret::new(password) };
    let content = noise(3, 1000);
    let blob = image::descriptor(image::LAYER, &content);

    let good = repository(&registry.host(), "a/b", &with(login(BASIC.1)));
    good.put_blob(&blob, BlobContent::bytes(content.clone())).await.unwrap();
    assert_eq!(good.range(&blob, 10..20).await.unwrap(), &content[10..20]);

    let wrong = repository(&registry.host(), "a/b", &with(login("wrong")));
    assert_eq!(wrong.range(&blob, 10..20).await.unwrap_err().class, Class::Unauthorized);
    let anonymous = repository(&registry.host(), "a/b", &quick());
    let error = anonymous.range(&blob, 10..20).await.unwrap_err();
    assert_eq!(error.class, Class::Unauthorized);
    assert!(error.message.contains("docker login"), "{error}");
    for shown in [format!("{good:?}"), format!("{wrong:?}"), error.to_string()] {
        assert!(!shown.contains(BASIC.1) && !shown.contains("wrong"), "{shown}");
    }
}

#[tokio::test]
async fn an_unknown_certificate_is_accepted_only_on_request() {
    let registry = DockerRegistry::start_with(&Login::UnknownCertificate);
    let content = noise(4, 1000);
    let blob = image::descriptor(image::LAYER, &content);
    let insecure = RegistryOptions { insecure: true, ..quick() };
    let trusting = repository(&registry.host(), "a/b", &insecure);
    trusting.put_blob(&blob, BlobContent::bytes(content.clone())).await.unwrap();
    assert_eq!(trusting.range(&blob, 10..20).await.unwrap(), &content[10..20]);

    let error = registry.repository("a/b").range(&blob, 10..20).await.unwrap_err();
    assert!(error.message.contains("certificate") && error.message.contains("insecure: true"), "{error}");
    assert!(!error.retryable);
}

fn skopeo(arguments: &[&str]) {
    let output = std::process::Command::new("skopeo").args(arguments).output().expect("skopeo");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn others_read_what_we_write_and_the_reverse() {
    let folder = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start();
    let path = |name: &str| folder.path().join(name);
    // a layer that is a tar: skopeo computes nothing from it, and refuses media types that it does not know
    let mut tar = tar::Builder::new(vec![]);
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    tar.append_data(&mut header, "addon/hello", &b"hello"[..]).unwrap();
    let layer = tar.into_inner().unwrap();
    let (layout, digest, layers) = image::write(&path("ours"), "v1", std::slice::from_ref(&layer)).await;

    let ours = format!("oci:{}:v1", path("ours").display());
    let theirs = format!("oci:{}:v1", path("theirs").display());
    skopeo(&["copy", "-q", "--preserve-digests", &ours, &theirs]);
    let copy = Layout::open(&path("theirs")).unwrap();
    assert_eq!(copy.resolve("v1").await.unwrap(), Some(digest));
    assert_eq!(copy.only_image().unwrap(), digest);
    assert_eq!(copy.blob(&layers[0], 1 << 20).await.unwrap().as_bytes(), &layer);

    let from: Arc<dyn BlobSource> = layout;
    let to = registry.repository("a/b");
    push_image(&from, &digest, &*to, Some("v1"), &CopyProgress::default()).await.unwrap();
    let remote = format!("docker://{}/a/b:v1", registry.host());
    let docker = format!("docker://{}/a/docker:v1", registry.host());
    skopeo(&[
        "copy",
        "-q",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        "--format",
        "v2s2",
        &remote,
        &docker,
    ]);
    let docker = registry.repository("a/docker");
    let converted = docker.resolve("v1").await.unwrap().unwrap();
    let (media_type, _) = docker.manifest(&converted).await.unwrap();
    assert_eq!(media_type, "application/vnd.docker.distribution.manifest.v2+json");

    // and a Docker manifest goes into a layout and out again under its own media type
    let from: Arc<dyn BlobSource> = docker;
    let back = Layout::create(&path("docker")).unwrap();
    push_image(&from, &converted, &*back, Some("v1"), &CopyProgress::default()).await.unwrap();
    assert_eq!(back.manifest(&converted).await.unwrap().0, media_type);
}

#[tokio::test]
async fn an_index_is_copied_with_everything_below_it() {
    let folder = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start();
    let (layout, first, _) = image::write(folder.path(), "one", &[noise(5, 100)]).await;
    let (_, second, layers) = image::write(folder.path(), "two", &[noise(6, 100)]).await;
    let entry = async |digest: &Digest| {
        let size = layout.manifest(digest).await.unwrap().1.len();
        serde_json::json!({"mediaType": image::MANIFEST, "digest": digest, "size": size})
    };
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = |entries: Vec<serde_json::Value>| {
        serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).to_string()
    };
    let index = index(vec![entry(&first).await, entry(&second).await]);
    let digest = layout.put_manifest(kind, index.into(), Some("all")).await.unwrap();

    let from: Arc<dyn BlobSource> = layout;
    let to = registry.repository("a/index");
    push_image(&from, &digest, &*to, Some("all"), &CopyProgress::default()).await.unwrap();
    assert_eq!(to.resolve("all").await.unwrap(), Some(digest));
    assert_eq!(to.manifest(&digest).await.unwrap().0, kind);
    to.manifest(&first).await.unwrap();
    to.manifest(&second).await.unwrap();
    assert_eq!(to.blob(&layers[0], 100).await.unwrap().len(), 100);
}

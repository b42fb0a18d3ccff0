//! Reading and writing against a real registry that does nothing unusual.

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

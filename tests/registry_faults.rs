//! Registries that misbehave: what may pass is not seen by the caller, what lasts is told by its class, and no
//! secret goes where it does not belong.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use addonfs::fetch::error::{Class, FetchError};
use addonfs::fetch::push::{CopyProgress, push_image};
use addonfs::fetch::registry::{Registry, RegistryOptions, Windows};
use addonfs::fetch::signatures;
use addonfs::fetch::sink::{BlobContent, BlobSink as _};
use addonfs::fetch::source::BlobSource;
use addonfs::policy::digest::Digest;
use addonfs::policy::image::Descriptor;
use bytes::Bytes;
use common::fault_proxy::{ALWAYS, Fault, FaultProxy};
use common::image::{self, noise};
use common::registry::{DockerRegistry, hasty, quick, repository};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;

/// A registry with one image, and the proxy before it.
struct Scene {
    registry: DockerRegistry,
    proxy: FaultProxy,
    content: Vec<u8>,
    layer: Descriptor,
    manifest: Digest,
}

/// Larger than what counts as progress (64 KiB), so that a body can break more often than there are attempts.
const SIZE: usize = 400_000;

impl Scene {
    async fn set() -> Self {
        let registry = DockerRegistry::start();
        let content = noise(11, SIZE);
        let (manifest, layer) = fill(&registry.repository("org/tools"), &content).await;
        let proxy = FaultProxy::start(registry.port()).await;
        Self { registry, proxy, content, layer, manifest }
    }

    /// A reader that remembers nothing of former requests.
    fn reader(&self) -> Arc<Registry> {
        repository(&self.proxy.host(), "org/tools", &narrow(quick()))
    }

    /// A reader for this fault: only of a stalled registry it must lose patience.
    fn reader_for(&self, fault: &Fault) -> Arc<Registry> {
        let options = if matches!(fault, Fault::Stall(_) | Fault::Drip(_)) { hasty() } else { quick() };
        repository(&self.proxy.host(), "org/tools", &narrow(options))
    }

    async fn read(&self, way: Way, reader: &Registry) -> Result<bool, FetchError> {
        Ok(match way {
            Way::Range => {
                reader.range(&self.layer, 100_000..300_000).await? == self.content[100_000..300_000]
            }
            Way::Blob => reader.blob(&self.layer, SIZE as u64).await?.as_bytes() == &self.content,
            Way::Stream => streamed(reader, &self.layer, 1000).await? == self.content[1000..],
            Way::Whole => collected(reader.whole(&self.layer).await?).await? == self.content,
        })
    }
}

/// Windows that make a dozen of the blob.
fn narrow(options: RegistryOptions) -> RegistryOptions {
    RegistryOptions { windows: Windows { connections: 4, least: 30_000, most: 40_000 }, ..options }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Range,
    Blob,
    Stream,
    Whole,
}

async fn streamed(reader: &Registry, blob: &Descriptor, from: u64) -> Result<Vec<u8>, FetchError> {
    collected(reader.stream(blob, from).await?).await
}

async fn collected(mut parts: BoxStream<'static, Result<Bytes, FetchError>>) -> Result<Vec<u8>, FetchError> {
    let mut all = vec![];
    while let Some(part) = parts.next().await {
        all.extend_from_slice(&part?);
    }
    Ok(all)
}

/// Pushes an image of one layer.
async fn fill(to: &Registry, content: &[u8]) -> (Digest, Descriptor) {
    let folder = tempfile::tempdir().unwrap();
    let (layout, digest, mut layers) = image::write(folder.path(), "v1", &[content.to_vec()]).await;
    let from: Arc<dyn BlobSource> = layout;
    push_image(&from, &digest, to, Some("v1"), &CopyProgress::default()).await.unwrap();
    (digest, layers.remove(0))
}

fn busy(status: u16, retry_after: u32) -> Fault {
    let headers = vec![("Retry-After", retry_after.to_string())];
    Fault::Answer { status, headers, body: String::new() }
}

#[tokio::test]
async fn trouble_that_passes_is_not_seen() {
    use Way::{Blob, Range, Stream, Whole};
    let scene = Scene::set().await;
    let all = &[Range, Blob, Stream, Whole][..];
    let table = [
        (Fault::IgnoreRange, all),
        (Fault::Truncate(1000), all),
        (Fault::Truncate(0), all),
        (Fault::TruncateUnannounced(1000), all),
        (busy(429, 0), all),
        (busy(503, 0), all),
        (Fault::status(500), all),
        (Fault::status(502), all),
        (Fault::status(504), all),
        (Fault::status(408), all),
        (Fault::Reset(None), all),
        (Fault::Reset(Some(1000)), all),
        (Fault::Stall(None), all),
        (Fault::Stall(Some(1000)), all),
        (Fault::Drip(1000), all),
        (Fault::OverLong(10), all),
        (Fault::html(), all),
        (Fault::ContentRange(None), &[Range, Stream]),
        (Fault::ContentRange(Some("bytes 0-199999/400000".into())), &[Range]),
        (Fault::ContentRange(Some("bytes 100000-299999/5".into())), &[Range]),
        (Fault::ContentRange(Some("pages 1-2/3".into())), &[Range]),
        (Fault::OtherRange("bytes=0-199999"), &[Range]),
        (Fault::OtherRange("bytes=100001-299999"), &[Range]),
        // less than was asked for, and honestly so: the rest is asked for
        (Fault::OtherRange("bytes=100000-100999"), &[Range]),
        (Fault::status(400), &[Range, Stream, Whole]),
        (Fault::status(416), &[Range, Stream, Whole]),
        (Fault::status(501), &[Range, Stream, Whole]),
        // raw bytes are proven by whoever asked for them; a whole blob is proven here
        (Fault::Flip(5), &[Blob]),
    ];
    for (fault, ways) in table {
        for way in ways {
            scene.proxy.heal();
            scene.proxy.fail("GET", "/blobs/", 1, fault.clone());
            let outcome = scene.read(*way, &scene.reader_for(&fault)).await;
            assert!(matches!(outcome, Ok(true)), "{fault:?} {way:?}: {outcome:?}");
            assert!(scene.proxy.all_happened(), "{fault:?} {way:?}");
        }
    }
}

#[tokio::test]
async fn a_registry_without_ranges_serves_them_all_the_same() {
    let scene = Scene::set().await;
    let faults =
        [Fault::IgnoreRange, Fault::ContentRange(None), Fault::ContentRange(Some("bytes 7-8/9".into()))];
    for fault in faults {
        scene.proxy.heal();
        scene.proxy.fail("GET", "/blobs/", ALWAYS, fault.clone());
        for way in [Way::Range, Way::Stream] {
            let outcome = scene.read(way, &scene.reader()).await;
            assert!(matches!(outcome, Ok(true)), "{fault:?} {way:?}: {outcome:?}");
        }
    }
    // but not when it would have to throw away too much for it
    let options = RegistryOptions { max_skip: 99_999, ..quick() };
    let reader = repository(&scene.proxy.host(), "org/tools", &options);
    let error = reader.range(&scene.layer, 100_000..100_001).await.unwrap_err();
    assert_eq!(error.class, Class::Protocol);
    assert!(error.message.contains("does not serve ranges"), "{error}");
    assert_eq!(reader.range(&scene.layer, 99_999..100_001).await.unwrap(), &scene.content[99_999..100_001]);
}

#[tokio::test]
async fn bodies_may_break_as_often_as_they_make_progress() {
    let scene = Scene::set().await;
    scene.proxy.fail("GET", "/blobs/", ALWAYS, Fault::Truncate(70_000));
    for way in [Way::Blob, Way::Stream] {
        assert!(scene.read(way, &scene.reader()).await.unwrap());
        assert_eq!(scene.proxy.take_seen("/blobs/").len(), 6, "{way:?}");
    }
}

#[tokio::test]
async fn trouble_that_lasts_is_told_by_its_class() {
    let scene = Scene::set().await;
    // fault, way, class, requests made
    let table = [
        (Fault::Truncate(1000), Way::Stream, Class::Unavailable, 4),
        (Fault::status(503), Way::Range, Class::Unavailable, 4),
        (busy(429, 100), Way::Range, Class::Unavailable, 1),
        (Fault::Reset(None), Way::Blob, Class::Unavailable, 4),
        (Fault::Stall(None), Way::Range, Class::Unavailable, 4),
        (Fault::Stall(Some(10)), Way::Range, Class::Unavailable, 4),
        (Fault::Drip(10), Way::Stream, Class::Unavailable, 4),
        (Fault::status(404), Way::Range, Class::NotFound, 1),
        (Fault::status(403), Way::Range, Class::Unauthorized, 1),
        (Fault::status(401), Way::Range, Class::Unauthorized, 1),
        (Fault::Flip(5), Way::Blob, Class::Corrupt, 2),
        (Fault::OverLong(10), Way::Range, Class::Protocol, 2),
        (Fault::OverLong(10), Way::Blob, Class::Protocol, 2),
        (Fault::html(), Way::Blob, Class::Protocol, 2),
        // once with the range and once without
        (Fault::status(501), Way::Range, Class::Protocol, 2),
        (Fault::status(400), Way::Range, Class::Protocol, 2),
        (Fault::status(416), Way::Range, Class::Protocol, 2),
    ];
    for (fault, way, class, requests) in table {
        scene.proxy.heal();
        scene.proxy.take_seen("");
        scene.proxy.fail("GET", "/blobs/", ALWAYS, fault.clone());
        let error = scene.read(way, &scene.reader_for(&fault)).await.unwrap_err();
        assert_eq!(error.class, class, "{fault:?} {way:?}: {error}");
        assert_eq!(scene.proxy.take_seen("/blobs/").len(), requests, "{fault:?} {way:?}: {error}");
        assert!(error.message.contains(&scene.layer.digest.to_string()), "{error}");
    }
    scene.proxy.heal();
    scene.proxy.fail("GET", "/blobs/", ALWAYS, busy(429, 100));
    let error = scene.read(Way::Range, &scene.reader()).await.unwrap_err();
    assert_eq!(error.retry_after, Some(Duration::from_secs(100)));
    assert!(error.retryable);
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let scene = Scene::set().await;
    scene.proxy.fail("GET", "/blobs/", 1, busy(429, 1));
    let start = std::time::Instant::now();
    assert!(scene.read(Way::Range, &scene.reader()).await.unwrap());
    // a lower bound is no matter of speed: coming back sooner is what the registry forbade
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_registry_that_is_down_is_unavailable() {
    let mut scene = Scene::set().await;
    let reader = scene.registry.repository("org/tools");
    assert!(scene.read(Way::Range, &reader).await.unwrap());
    scene.registry.stop();
    let error = scene.read(Way::Range, &reader).await.unwrap_err();
    assert_eq!((error.class, error.retryable), (Class::Unavailable, true), "{error}");
    let fresh = scene.registry.repository("org/tools");
    assert_eq!(fresh.resolve("v1").await.unwrap_err().class, Class::Unavailable);
}

#[tokio::test]
async fn redirects_are_kept_until_they_fail_and_get_no_credentials() {
    let scene = Scene::set().await;
    // where the presigned addresses lead: another host (port), with the same content
    let elsewhere = FaultProxy::start(scene.registry.port()).await;
    let redirect = Fault::Redirect { to: elsewhere.host() };
    let challenge = Fault::Answer {
        status: 401,
        headers: vec![("WWW-Authenticate", "Basic realm=\"x\"".to_owned())],
        body: String::new(),
    };
    scene.proxy.fail("GET", "/blobs/", 1, challenge);
    scene.proxy.fail("GET", "/blobs/", ALWAYS, redirect);
    let options = RegistryOptions {
        credentials: addonfs::fetch::credentials::Credentials::fixed(
            addonfs::fetch::credentials::Credential::Basic {
                username: "robot".into(),
                password: addonfs::fetch::credentials::Secret::new("s3cret"),
            },
        ),
        ..quick()
    };
    let reader = repository(&scene.proxy.host(), "org/tools", &options);
    for _ in 0..3 {
        assert!(scene.read(Way::Range, &reader).await.unwrap());
    }
    let asked = scene.proxy.take_seen("/blobs/");
    let sent: Vec<_> = asked.iter().map(|request| request.authorization.is_some()).collect();
    assert_eq!(sent, [false, true], "the registry is asked once, with a login");
    let followed = elsewhere.take_seen("/presigned/");
    assert_eq!(followed.len(), 3);
    assert!(followed.iter().all(|request| request.authorization.is_none() && request.range.is_some()));

    // an address that expired in any of the known ways: the registry is asked for another
    for status in [400, 401, 403, 404, 410] {
        elsewhere.heal();
        elsewhere.fail("GET", "/presigned/", 1, Fault::status(status));
        assert!(scene.read(Way::Range, &reader).await.unwrap(), "{status}");
        assert_eq!(scene.proxy.take_seen("/blobs/").len(), 1, "{status}");
        assert_eq!(elsewhere.take_seen("/presigned/").len(), 2, "{status}");
    }
    // other trouble there is trouble like at the registry
    for fault in
        [Fault::status(503), Fault::Truncate(5), Fault::Reset(None), Fault::IgnoreRange, Fault::status(501)]
    {
        elsewhere.heal();
        elsewhere.fail("GET", "/presigned/", 1, fault.clone());
        assert!(scene.read(Way::Range, &reader).await.unwrap(), "{fault:?}");
        assert!(elsewhere.all_happened());
    }
    // what lasts is told without the signed address
    elsewhere.heal();
    elsewhere.fail("GET", "/presigned/", ALWAYS, Fault::status(403));
    let refused = scene.read(Way::Range, &reader).await.unwrap_err();
    assert_eq!(refused.class, Class::Unauthorized);
    drop(elsewhere);
    let gone = scene.read(Way::Range, &reader).await.unwrap_err();
    assert_eq!(gone.class, Class::Unavailable);
    for shown in [format!("{refused:?}"), format!("{gone:?}"), format!("{reader:?}")] {
        assert!(!shown.contains("secretsignature") && !shown.contains("s3cret"), "{shown}");
    }
}

#[tokio::test]
async fn a_push_survives_trouble() {
    let registry = DockerRegistry::start();
    let proxy = FaultProxy::start(registry.port()).await;
    let table = [
        ("POST", "/uploads/", Fault::status(503)),
        ("POST", "/uploads/", Fault::Reset(None)),
        ("PUT", "/uploads/", Fault::status(500)),
        ("PUT", "/uploads/", Fault::Reset(None)),
        ("PUT", "/uploads/", Fault::Stall(None)),
        ("PUT", "/manifests/", busy(429, 0)),
        ("HEAD", "/blobs/", Fault::status(502)),
    ];
    for (n, (method, path, fault)) in table.into_iter().enumerate() {
        proxy.heal();
        proxy.fail(method, path, 1, fault.clone());
        let name = format!("push/{n}");
        let content = noise(n as u64 + 100, 100_000);
        let options = if matches!(fault, Fault::Stall(_) | Fault::Drip(_)) { hasty() } else { quick() };
        let (digest, layer) = fill(&repository(&proxy.host(), &name, &options), &content).await;
        assert!(proxy.all_happened(), "{fault:?}");
        let direct = registry.repository(&name);
        assert_eq!(direct.resolve("v1").await.unwrap(), Some(digest), "{fault:?}");
        assert_eq!(direct.blob(&layer, 1 << 20).await.unwrap().as_bytes(), &content, "{fault:?}");
    }
    // what the registry refuses is told at once, and a broken source in its own words
    proxy.heal();
    proxy.take_seen("");
    proxy.fail("POST", "/uploads/", ALWAYS, Fault::status(403));
    let to = repository(&proxy.host(), "push/x", &quick());
    let blob = image::descriptor(image::LAYER, b"content");
    let error = to.put_blob(&blob, BlobContent::bytes(&b"content"[..])).await.unwrap_err();
    assert_eq!(error.class, Class::Unauthorized);
    assert_eq!(proxy.take_seen("/uploads/").len(), 1);
    proxy.heal();
    let error = to.put_blob(&blob, BlobContent::file("/nope/layer")).await.unwrap_err();
    assert_eq!(error.class, Class::Storage);
    let error = to.put_blob(&blob, BlobContent::bytes(&b"CONTENT"[..])).await.unwrap_err();
    assert_eq!(error.class, Class::Protocol, "the registry checks the digest: {error}");
    assert!(!to.has_blob(&blob).await.unwrap());
}

#[tokio::test]
async fn a_hostile_registry_gets_nowhere() {
    let scene = Scene::set().await;
    let answer = |kind: &str, body: &str| Fault::Answer {
        status: 200,
        headers: vec![("Content-Type", kind.to_owned())],
        body: body.to_owned(),
    };
    let redirect = |to: &str| Fault::Answer {
        status: 302,
        headers: vec![("Location", to.to_owned())],
        body: String::new(),
    };
    let loops = redirect(&format!("/v2/org/tools/manifests/{}", scene.manifest));
    let challenge = |value: &str| Fault::Answer {
        status: 401,
        headers: vec![("WWW-Authenticate", value.to_owned())],
        body: String::new(),
    };
    let table = [
        ("another manifest", answer(image::MANIFEST, r#"{"layers":[]}"#), Class::Corrupt),
        ("one flipped byte", Fault::Flip(30), Class::Corrupt),
        ("more than 4 MiB", Fault::OverLong(5 << 20), Class::Protocol),
        ("more than 4 MiB, announced", answer(image::MANIFEST, &" ".repeat(5 << 20)), Class::Protocol),
        ("a login page", Fault::html(), Class::Protocol),
        (
            "a manifest called an index",
            Fault::Header("Content-Type", "application/vnd.oci.image.index.v1+json".into()),
            Class::Protocol,
        ),
        ("a loop", loops, Class::Protocol),
        ("a file", redirect("file:///etc/passwd"), Class::Protocol),
        ("no address", redirect("http://"), Class::Protocol),
        ("a token service that is a file", challenge("Bearer realm=\"file:///etc/passwd\""), Class::Protocol),
        (
            "a token service with a login",
            challenge("Bearer realm=\"http://a:b@127.0.0.1/\""),
            Class::Protocol,
        ),
        ("a challenge that is none", challenge("Bearer realm=\", ,=,\"\""), Class::Protocol),
        ("a long challenge", challenge(&"Basic ".repeat(3000)), Class::Unauthorized),
        ("a password wanted of nobody", challenge("Basic"), Class::Unauthorized),
    ];
    for (name, fault, class) in table {
        scene.proxy.heal();
        scene.proxy.fail("GET", "/manifests/", ALWAYS, fault);
        let error = scene.reader().manifest(&scene.manifest).await.unwrap_err();
        assert_eq!(error.class, class, "{name}: {error}");
    }
    // a size that is not the blob's: no more is read than was said
    for size in [1, SIZE as u64 - 1, SIZE as u64 + 1, 1 << 40] {
        scene.proxy.heal();
        let lying = Descriptor { size, ..scene.layer.clone() };
        let error = scene.reader().blob(&lying, u64::MAX).await.unwrap_err();
        assert_eq!(error.class, Class::Protocol, "{size}: {error}");
        scene.proxy.fail("GET", "/blobs/", ALWAYS, Fault::OverLong(0));
        let error = scene.reader().blob(&lying, u64::MAX).await.unwrap_err();
        let class = if size < SIZE as u64 { Class::Protocol } else { Class::Unavailable };
        assert_eq!(error.class, class, "{size}, not announced: {error}");
    }
}

#[tokio::test]
async fn tags_are_resolved_without_head_too() {
    let scene = Scene::set().await;
    let table =
        [Fault::status(405), Fault::status(400), Fault::Header("Docker-Content-Digest", "md5:junk".into())];
    for fault in table {
        scene.proxy.heal();
        scene.proxy.fail("HEAD", "/manifests/", ALWAYS, fault.clone());
        assert_eq!(scene.reader().resolve("v1").await.unwrap(), Some(scene.manifest), "{fault:?}");
        assert_eq!(scene.reader().resolve("v9").await.unwrap(), None, "{fault:?}");
    }
    scene.proxy.fail("GET", "/manifests/", ALWAYS, Fault::html());
    assert_eq!(scene.reader().resolve("v1").await.unwrap_err().class, Class::Protocol);
    assert_eq!(scene.reader().resolve("../../x").await.unwrap_err().class, Class::NotFound);
}

#[tokio::test]
async fn no_request_is_made_that_is_not_needed() {
    let scene = Scene::set().await;
    let payload = br#"{"critical":{}}"#;
    let signature = Descriptor {
        annotations: vec![("dev.cosignproject.cosign/signature".into(), "c2ln".into())],
        ..image::descriptor(addonfs::policy::trust::SIMPLE_SIGNING, payload)
    };
    let to = scene.registry.repository("org/tools");
    to.put_blob(&signature, BlobContent::bytes(&payload[..])).await.unwrap();
    let layer = serde_json::json!({
        "mediaType": signature.media_type, "digest": signature.digest, "size": signature.size,
        "annotations": {"dev.cosignproject.cosign/signature": "c2ln"},
    });
    let config = serde_json::json!({
        "mediaType": "application/json", "digest": signature.digest, "size": signature.size,
    });
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": image::MANIFEST, "config": config, "layers": [layer],
    });
    let tag = addonfs::policy::trust::signature_tag(&scene.manifest);
    to.put_manifest(image::MANIFEST, manifest.to_string().into(), Some(&tag)).await.unwrap();

    // the scheme is found by the first request, and a tag is one question
    let reader = scene.reader();
    let enough = |found: &[_]| !found.is_empty();
    assert_eq!(signatures::find(&*reader, &scene.manifest, &enough).await.unwrap().len(), 1);
    reader.manifest(&scene.manifest).await.unwrap();
    reader.range(&scene.layer, 0..1).await.unwrap();
    let seen: Vec<_> = scene.proxy.take_seen("").into_iter().map(|s| (s.method, s.path)).collect();
    let repository = "/v2/org/tools";
    // Referrers are asked for meanwhile, and nobody waits for the answer: by the API, and then perhaps by the tag.
    let list = format!("{repository}/referrers/{}", scene.manifest);
    let list_tag = format!("{repository}/manifests/{}", scene.manifest.dashed());
    let (lists, seen): (Vec<_>, Vec<_>) =
        seen.into_iter().partition(|(_, path)| *path == list || *path == list_tag);
    assert_eq!(lists.iter().filter(|(_, path)| *path == list).count(), 1, "{lists:?}");
    assert!(lists.len() <= 2, "{lists:?}");
    let expected = [
        format!("{repository}/manifests/{tag}"),
        format!("{repository}/blobs/{}", signature.digest),
        format!("{repository}/manifests/{}", scene.manifest),
        format!("{repository}/blobs/{}", scene.layer.digest),
    ];
    assert_eq!(seen, expected.map(|path| ("GET".to_owned(), path)));

    // an answer that does not tell which scheme it is costs one more question, once
    let reader = scene.reader();
    scene.proxy.fail("GET", "/manifests/", 1, Fault::status(400));
    assert_eq!(reader.manifest(&scene.manifest).await.unwrap_err().class, Class::Protocol);
    reader.manifest(&scene.manifest).await.unwrap();
    let seen: Vec<_> = scene.proxy.take_seen("").into_iter().map(|s| s.path).collect();
    let manifest = format!("{repository}/manifests/{}", scene.manifest);
    assert_eq!(seen, [manifest.clone(), "/v2/".to_owned(), manifest]);
    // first requests at the same time do not wait for one another
    let reader = scene.reader();
    let both = futures_util::future::join(reader.manifest(&scene.manifest), reader.range(&scene.layer, 0..1));
    let (manifest, range) = both.await;
    manifest.unwrap();
    range.unwrap();
    assert_eq!(scene.proxy.take_seen("").len(), 2);
}

#[tokio::test]
async fn a_whole_blob_is_fetched_by_windows_where_there_are_ranges() {
    let scene = Scene::set().await;
    assert!(scene.read(Way::Whole, &scene.reader()).await.unwrap());
    let ranges: Vec<_> = scene.proxy.take_seen("/blobs/").into_iter().map(|seen| seen.range).collect();
    assert_eq!(ranges[0].as_deref(), Some("bytes=0-29999"));
    assert!((10..=14).contains(&ranges.len()) && ranges.iter().all(Option::is_some), "{ranges:?}");

    // one stream where everything comes anyway, and for what is small
    scene.proxy.fail("GET", "/blobs/", ALWAYS, Fault::IgnoreRange);
    assert!(scene.read(Way::Whole, &scene.reader()).await.unwrap());
    assert_eq!(scene.proxy.take_seen("/blobs/").len(), 1);
    scene.proxy.heal();
    let usual = repository(&scene.proxy.host(), "org/tools", &quick());
    assert!(scene.read(Way::Whole, &usual).await.unwrap());
    let seen = scene.proxy.take_seen("/blobs/");
    assert!(seen.len() == 1 && seen[0].range.is_none(), "{seen:?}");

    // trouble with a later window: as with the first one
    let good = || Fault::Header("X-Good", "yes".into());
    let table = [
        busy(429, 0),
        busy(503, 0),
        Fault::Reset(None),
        Fault::Truncate(1000),
        Fault::Stall(Some(1000)),
        Fault::status(501),
        Fault::status(416),
        Fault::IgnoreRange,
        Fault::OtherRange("bytes=0-5"),
        Fault::ContentRange(None),
        Fault::OverLong(10),
    ];
    for fault in table {
        for times in [1, ALWAYS] {
            scene.proxy.heal();
            scene.proxy.take_seen("");
            scene.proxy.fail("GET", "/blobs/", 2, good());
            scene.proxy.fail("GET", "/blobs/", times, fault.clone());
            let outcome = scene.read(Way::Whole, &scene.reader_for(&fault)).await;
            let wholesome = matches!(fault, Fault::IgnoreRange | Fault::ContentRange(_));
            let expected = times == 1 || wholesome;
            assert_eq!(matches!(outcome, Ok(true)), expected, "{fault:?} {times}: {outcome:?}");
            assert!(expected || outcome.is_err(), "{fault:?}");
            let asked = scene.proxy.take_seen("/blobs/").len();
            assert!(asked < 40, "{fault:?} {times}: {asked} requests");
        }
    }
    // who is asked too much is asked by one connection from then on
    scene.proxy.heal();
    scene.proxy.fail("GET", "/blobs/", 1, busy(429, 0));
    assert!(scene.read(Way::Whole, &scene.reader()).await.unwrap());
    assert_eq!(scene.proxy.take_seen("/blobs/").len(), 3, "refused, the first window, the rest");
}

#[tokio::test]
async fn addresses_of_redirects_are_used_as_long_as_they_say() {
    let scene = Scene::set().await;
    let elsewhere = FaultProxy::start(scene.registry.port()).await;
    let path = format!("/v2/org/tools/blobs/{}", scene.layer.digest);
    let address = |query: &str| format!("http://{}/presigned{path}?{query}", elsewhere.host());
    // query, Cache-Control, how often the registry is asked for three ranges
    let table = [
        ("sig=s", None, 1),
        ("Expires=32503680000", None, 1),
        ("Expires=1000000000", None, 3),
        ("X-Amz-Date=20200101T000000Z&X-Amz-Expires=600", None, 1),
        ("X-Amz-Date=20200101T000000Z&X-Amz-Expires=3", None, 3),
        ("sig=s", Some("max-age=600"), 1),
        ("sig=s", Some("max-age=0"), 3),
        ("Expires=32503680000", Some("no-store"), 3),
    ];
    for (query, cache_control, asked) in table {
        scene.proxy.heal();
        let mut headers = vec![("Location", address(query))];
        headers.extend(cache_control.map(|value| ("Cache-Control", value.to_owned())));
        scene.proxy.fail(
            "GET",
            "/blobs/",
            ALWAYS,
            Fault::Answer { status: 307, headers, body: String::new() },
        );
        let reader = scene.reader();
        for _ in 0..3 {
            assert!(scene.read(Way::Range, &reader).await.unwrap());
        }
        assert_eq!(scene.proxy.take_seen("/blobs/").len(), asked, "{query} {cache_control:?}");
        assert_eq!(elsewhere.take_seen("/presigned/").len(), 3);
    }
}

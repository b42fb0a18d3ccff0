//! Mirrors: asked in their order, never believed, left alone when they fail, and given no credentials but their own.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use addonfs::fetch::credentials::{Credential, Credentials, Secret};
use addonfs::fetch::error::Class;
use addonfs::fetch::layer::{Layer, Opening, Progress, Read};
use addonfs::fetch::push::{CopyProgress, push_image};
use addonfs::fetch::registry::{self, Mirror, Registries, RegistryHosts, RegistryOptions};
use addonfs::fetch::source::BlobSource;
use addonfs::fetch::store::{Store, StoreOptions};
use addonfs::policy::digest::Digest;
use addonfs::policy::image::Descriptor;
use common::fault_proxy::{ALWAYS, Fault, FaultProxy};
use common::image::{self, noise};
use common::registry::{DockerRegistry, hasty, quick};
use futures_util::StreamExt as _;

const SIZE: usize = 300_000;

/// A registry with one image behind three proxies: two mirrors, and the registry itself.
struct Scene {
    _registry: DockerRegistry,
    near: FaultProxy,
    far: FaultProxy,
    own: FaultProxy,
    content: Vec<u8>,
    layer: Descriptor,
    manifest: Digest,
}

/// A tar of one file.
fn tar(content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(vec![]);
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, "file", content).unwrap();
    tar.into_inner().unwrap()
}

impl Scene {
    async fn set() -> Self {
        let registry = DockerRegistry::start();
        let content = tar(&noise(31, SIZE));
        let folder = tempfile::tempdir().unwrap();
        let (layout, manifest, mut layers) =
            image::write(folder.path(), "v1", std::slice::from_ref(&content)).await;
        let (from, to) = (layout as Arc<dyn BlobSource>, registry.repository("org/tools"));
        push_image(&from, &manifest, &*to, Some("v1"), &CopyProgress::default()).await.unwrap();
        let proxy = async || FaultProxy::start(registry.port()).await;
        let (near, far, own) = (proxy().await, proxy().await, proxy().await);
        Self { _registry: registry, near, far, own, content, layer: layers.remove(0), manifest }
    }

    fn heal(&self) {
        for proxy in [&self.near, &self.far, &self.own] {
            proxy.heal();
            proxy.take_seen("");
        }
    }

    /// How often each place was asked for something below `path`.
    fn asked(&self, path: &str) -> [usize; 3] {
        [&self.near, &self.far, &self.own].map(|proxy| proxy.take_seen(path).len())
    }

    /// What the configuration says, new each time: nothing is known of the mirrors yet.
    fn options(&self, resolve: bool, mirrors_only: bool, with: RegistryOptions) -> RegistryOptions {
        let mirror = |proxy: &FaultProxy| {
            let mut mirror = Mirror::new(&format!("http://{}", proxy.host()), false).unwrap();
            mirror.resolve = resolve;
            mirror
        };
        let hosts = RegistryHosts {
            mirrors: vec![mirror(&self.near), mirror(&self.far)],
            mirrors_only,
            authority: None,
        };
        RegistryOptions { registries: Registries::new(BTreeMap::from([(self.own.host(), hosts)])), ..with }
    }

    fn open(&self, options: &RegistryOptions) -> Arc<dyn BlobSource> {
        registry::source(&self.own.host(), "org/tools", options)
    }

    fn source(&self) -> Arc<dyn BlobSource> {
        self.open(&self.options(false, false, quick()))
    }

    async fn streamed(&self, source: &dyn BlobSource) -> Vec<u8> {
        source.stream(&self.layer, 10).await.unwrap().map(|part| part.unwrap().to_vec()).concat().await
    }

    async fn range(&self, source: &dyn BlobSource) {
        assert_eq!(source.range(&self.layer, 100..200).await.unwrap(), &self.content[100..200]);
    }
}

#[tokio::test]
async fn the_first_mirror_serves_everything_but_tags() {
    let scene = Scene::set().await;
    let source = scene.source();
    source.manifest(&scene.manifest).await.unwrap();
    assert_eq!(source.blob(&scene.layer, 1 << 20).await.unwrap().as_bytes(), &scene.content);
    scene.range(&*source).await;
    assert_eq!(scene.streamed(&*source).await, scene.content[10..]);
    let seen = scene.near.take_seen("/org/tools/");
    assert_eq!(seen.len(), 4);
    let namespace = format!("?ns={}", scene.own.host().replace(':', "%3A"));
    assert!(seen.iter().all(|request| request.path.ends_with(&namespace)), "{seen:?}");
    assert_eq!(scene.asked(""), [0, 0, 0]);

    assert_eq!(source.resolve("v1").await.unwrap(), Some(scene.manifest));
    let [near, far, own] = scene.asked("/manifests/");
    assert!(near == 0 && far == 0 && own > 0, "tags are the registry's");
    let source = scene.open(&scene.options(true, false, quick()));
    assert_eq!(source.resolve("v1").await.unwrap(), Some(scene.manifest));
    let [near, far, own] = scene.asked("/manifests/");
    assert!(near > 0 && far == 0 && own == 0, "or those of a mirror that may say");
    assert_eq!(source.resolve("absent").await.unwrap(), None);
    assert!(scene.asked("/manifests/").iter().all(|asked| *asked > 0), "absence is asked of all");
}

#[tokio::test]
async fn what_a_mirror_cannot_give_comes_from_the_next() {
    let scene = Scene::set().await;
    let table = [
        Fault::status(404),
        Fault::status(401),
        Fault::status(403),
        Fault::status(400),
        Fault::status(429),
        Fault::status(500),
        Fault::html(),
        Fault::Reset(None),
        Fault::Reset(Some(100)),
        Fault::Truncate(100),
        Fault::Stall(None),
        Fault::Stall(Some(100)),
        Fault::Flip(50),
        Fault::OverLong(5 << 20),
    ];
    for fault in table {
        scene.heal();
        scene.near.fail("GET", "/org/tools/", ALWAYS, fault.clone());
        let with = if matches!(fault, Fault::Stall(_)) { hasty() } else { quick() };
        let source = scene.open(&scene.options(false, false, with.clone()));
        source.manifest(&scene.manifest).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        let source = scene.open(&scene.options(false, false, with.clone()));
        let blob = source.blob(&scene.layer, 1 << 20).await;
        let blob = blob.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert_eq!(blob.as_bytes(), &scene.content, "{fault:?}");
        if !matches!(fault, Fault::Flip(_)) {
            let source = scene.open(&scene.options(false, false, with));
            assert_eq!(scene.streamed(&*source).await, scene.content[10..], "{fault:?}");
        }
        let [near, far, own] = scene.asked("/org/tools/");
        assert!(near > 0 && far > 0 && own == 0, "{fault:?}: {near} {far} {own}");
    }
}

#[tokio::test]
async fn a_mirror_that_failed_is_left_alone() {
    let scene = Scene::set().await;
    scene.near.fail("GET", "/blobs/", ALWAYS, Fault::status(503));
    let options = scene.options(false, false, quick());
    let source = scene.open(&options);
    scene.range(&*source).await;
    assert_eq!(scene.asked("/blobs/"), [1, 1, 0]);
    scene.range(&*source).await;
    source.manifest(&scene.manifest).await.unwrap();
    // by other repositories, too
    scene.range(&*scene.open(&options)).await;
    let [near, far, own] = scene.asked("/org/tools/");
    assert_eq!([near, own], [0, 0]);
    assert!(far >= 3);
    // unless everything else fails as well
    scene.near.heal();
    scene.far.fail("GET", "/blobs/", ALWAYS, Fault::status(503));
    scene.own.fail("GET", "/blobs/", ALWAYS, Fault::status(503));
    scene.range(&*source).await;
    assert_eq!(scene.asked("/blobs/"), [1, 1, 4]);
}

#[tokio::test]
async fn a_mirror_without_the_blob_is_passed_for_that_blob_only() {
    let scene = Scene::set().await;
    scene.near.fail("GET", "/blobs/", ALWAYS, Fault::status(404));
    let source = scene.source();
    scene.range(&*source).await;
    scene.range(&*source).await;
    source.manifest(&scene.manifest).await.unwrap();
    assert_eq!(scene.near.take_seen("/org/").len(), 2, "one blob, one manifest");
    assert_eq!(scene.far.take_seen("/org/").len(), 2);
    // and that it is nowhere is told as such
    let nowhere = image::descriptor(image::LAYER, b"nowhere");
    assert_eq!(source.range(&nowhere, 0..1).await.unwrap_err().class, Class::NotFound);
    assert_eq!(source.range(&scene.layer, 0..1 << 40).await.unwrap_err().class, Class::Protocol);
}

#[tokio::test]
async fn without_fallback_the_registry_is_not_asked() {
    let scene = Scene::set().await;
    let source = scene.open(&scene.options(false, true, quick()));
    scene.near.fail("GET", "", ALWAYS, Fault::status(404));
    scene.range(&*source).await;
    let error = source.resolve("v1").await.unwrap_err();
    assert!(error.message.contains("resolve: true"), "{error}");
    scene.far.fail("GET", "", ALWAYS, Fault::status(500));
    let error = source.range(&scene.layer, 5..6).await.unwrap_err();
    assert_eq!(error.class, Class::Unavailable, "what is worst is told: {error}");
    assert_eq!(scene.asked("")[2], 0);
}

#[tokio::test]
async fn wrong_bytes_of_a_mirror_are_never_served() {
    let scene = Scene::set().await;
    scene.near.fail("GET", "/blobs/", ALWAYS, Fault::Flip(100));
    scene.far.fail("GET", "/blobs/", ALWAYS, Fault::Flip(0));
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
    let source = scene.source();
    let progress = Progress::new(scene.layer.size);
    let layer = Layer::open(&store, Arc::clone(&source), &scene.layer, Opening::default(), &progress);
    let layer = layer.await.unwrap();
    assert_eq!(scene.asked("/blobs/"), [1, 1, 1], "fetched whole from one place after the other");
    let bytes = match layer.read(0, 0, SIZE as u32) {
        Read::Ready(bytes) => bytes,
        Read::Pending(bytes) => bytes.await.unwrap(),
    };
    assert_eq!(&bytes[..], &noise(31, SIZE)[..]);
    // ranges are proven by those who read them
    let source = scene.source();
    assert_ne!(source.range(&scene.layer, 0..200).await.unwrap(), &scene.content[..200]);
    assert!(source.distrust(&scene.layer.digest));
    assert_ne!(source.range(&scene.layer, 0..200).await.unwrap(), &scene.content[..200]);
    assert!(source.distrust(&scene.layer.digest));
    scene.range(&*source).await;
    assert!(!source.distrust(&scene.layer.digest), "there is no other place");
}

#[tokio::test]
async fn a_stream_goes_on_at_the_next_place() {
    let scene = Scene::set().await;
    scene.near.fail("GET", "/blobs/", ALWAYS, Fault::Truncate(100_000));
    scene.far.fail("GET", "/blobs/", ALWAYS, Fault::Reset(Some(50_000)));
    assert_eq!(scene.streamed(&*scene.source()).await, scene.content[10..]);
    let ranges: Vec<_> = scene.own.take_seen("/blobs/").into_iter().filter_map(|seen| seen.range).collect();
    assert_eq!(ranges, [format!("bytes=150010-{}", scene.layer.size - 1)], "what came is not fetched twice");
}

#[tokio::test]
async fn credentials_stay_with_their_host() {
    let scene = Scene::set().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    let entry = |name: &str| serde_json::json!({"username": name, "password": "secret"});
    let auths = BTreeMap::from([(scene.own.host(), entry("own")), (scene.near.host(), entry("near"))]);
    std::fs::write(&file, serde_json::json!({ "auths": auths }).to_string()).unwrap();
    let helper = Arc::new(|_: &str, _: &str| Err("no helpers here".to_owned()));
    let from_file = Credentials::from_docker_config(Some(file), |_| None, helper);
    let given =
        Credentials::fixed(Credential::Basic { username: "own".into(), password: Secret::new("secret") });
    // bm9uZQ is nobody's: what each place was sent, mirrors first
    for (credentials, near) in [(from_file, Some("Basic bmVhcjpzZWNyZXQ=")), (given, None)] {
        scene.heal();
        let challenge = Fault::Answer {
            status: 401,
            headers: vec![("WWW-Authenticate", "Basic realm=\"x\"".to_owned())],
            body: String::new(),
        };
        for proxy in [&scene.near, &scene.far] {
            proxy.fail("GET", "/blobs/", 1, challenge.clone());
            proxy.fail("GET", "/blobs/", 1, Fault::status(500));
        }
        scene.own.fail("GET", "/blobs/", 1, challenge.clone());
        let source = scene.open(&scene.options(false, false, RegistryOptions { credentials, ..quick() }));
        scene.range(&*source).await;
        let sent = |proxy: &FaultProxy| -> Vec<String> {
            proxy.take_seen("").into_iter().filter_map(|seen| seen.authorization).collect()
        };
        assert_eq!(sent(&scene.near), near.map(str::to_owned).into_iter().collect::<Vec<_>>());
        assert!(sent(&scene.far).is_empty(), "nothing is known for it");
        assert_eq!(sent(&scene.own), ["Basic b3duOnNlY3JldA=="]);
    }
}

//! Registries with a token service: one token for many requests, renewed when it must be, never asked for more
//! than needed.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use addonfs::fetch::credentials::{Credential, Credentials, Secret};
use addonfs::fetch::error::Class;
use addonfs::fetch::registry::{Registry, RegistryOptions};
use addonfs::fetch::sink::{BlobContent, BlobSink as _};
use addonfs::fetch::source::BlobSource as _;
use addonfs::policy::image::Descriptor;
use common::fault_proxy::{ALWAYS, Fault, FaultProxy};
use common::image::{self, noise};
use common::registry::{DockerRegistry, quick, repository};
use common::token_service::{Behaviour, TokenService};

struct Scene {
    _registry: DockerRegistry,
    proxy: FaultProxy,
    service: TokenService,
    content: Vec<u8>,
    blob: Descriptor,
}

impl Scene {
    async fn set() -> Self {
        let service = TokenService::start(Behaviour::default()).await;
        let registry = DockerRegistry::start_with(&service.login());
        let content = noise(21, 10_000);
        let blob = image::descriptor(image::LAYER, &content);
        let to = registry.repository("a/b");
        to.put_blob(&blob, BlobContent::bytes(content.clone())).await.unwrap();
        let asked = service.take_asked();
        assert_eq!(asked.len(), 1, "POST and PUT use one token");
        assert_eq!(asked[0].scopes, ["repository:a/b:pull,push"]);
        let proxy = FaultProxy::start(registry.port()).await;
        Self { _registry: registry, proxy, service, content, blob }
    }

    fn reader(&self, credential: Credential) -> Arc<Registry> {
        let options = RegistryOptions { credentials: Credentials::fixed(credential), ..quick() };
        repository(&self.proxy.host(), "a/b", &options)
    }

    async fn read(&self, reader: &Registry) -> Result<(), addonfs::fetch::error::FetchError> {
        let got = reader.range(&self.blob, 100..200).await?;
        assert_eq!(got, self.content[100..200]);
        Ok(())
    }
}

fn refused(status: u16) -> Fault {
    Fault::status(status)
}

#[tokio::test]
async fn one_token_serves_many_requests_and_is_renewed_once() {
    let scene = Scene::set().await;
    let reader = scene.reader(Credential::Anonymous);
    for _ in 0..3 {
        scene.read(&reader).await.unwrap();
    }
    let asked = scene.service.take_asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].scopes, ["repository:a/b:pull"]);
    assert_eq!(asked[0].authorization, None);

    // refused in the middle: 401, and what ECR says instead
    for status in [401, 403, 400] {
        scene.proxy.fail("GET", "/blobs/", 1, refused(status));
        scene.read(&reader).await.unwrap();
        assert_eq!(scene.service.take_asked().len(), 1, "{status}");
    }
    // refused for good
    scene.proxy.fail("GET", "/blobs/", ALWAYS, refused(401));
    assert_eq!(scene.read(&reader).await.unwrap_err().class, Class::Unauthorized);
    assert_eq!(scene.service.take_asked().len(), 1);
}

#[tokio::test]
async fn many_callers_ask_for_one_token() {
    let scene = Scene::set().await;
    let reader = scene.reader(Credential::Anonymous);
    let (a, b) = (&scene, &reader);
    futures_util::future::join_all((0..20).map(|_| async move { a.read(b).await.unwrap() })).await;
    assert_eq!(scene.service.take_asked().len(), 1);
    // and when it is refused to all of them at once, for one other
    scene.proxy.fail("GET", "/blobs/", 20, refused(401));
    futures_util::future::join_all((0..20).map(|_| async move { a.read(b).await.unwrap() })).await;
    assert_eq!(scene.service.take_asked().len(), 1);
}

#[tokio::test]
async fn tokens_end() {
    let scene = Scene::set().await;
    // a life of 0 s is over at once; without a life it is 60 s
    for (life, asked) in [(Some(0), true), (None, false), (Some(300), false)] {
        scene.service.behave(|b| b.expires_in = life);
        let reader = scene.reader(Credential::Anonymous);
        scene.read(&reader).await.unwrap();
        scene.service.take_asked();
        scene.read(&reader).await.unwrap();
        assert_eq!(!scene.service.take_asked().is_empty(), asked, "{life:?}");
    }
    scene.service.behave(|b| b.field = "access_token");
    scene.read(&scene.reader(Credential::Anonymous)).await.unwrap();
}

#[tokio::test]
async fn credentials_go_to_the_token_service_only() {
    let scene = Scene::set().await;
    scene.service.behave(|b| b.basic = Some(("robot", "s3cret")));
    let login =
        |password: &str| Credential::Basic { username: "robot".into(), password: Secret::new(password) };
    scene.read(&scene.reader(login("s3cret"))).await.unwrap();
    let sent: Vec<_> = scene.proxy.take_seen("").into_iter().filter_map(|seen| seen.authorization).collect();
    assert!(!sent.is_empty() && sent.iter().all(|value| value.starts_with("Bearer ")), "{sent:?}");

    scene.service.take_asked();
    let wrong = scene.read(&scene.reader(login("hunter2"))).await.unwrap_err();
    assert_eq!(wrong.class, Class::Unauthorized);
    assert!(!format!("{wrong:?}").contains("hunter2"));
    assert_eq!(scene.service.take_asked().len(), 1, "wrong credentials are not tried again");
    let none = scene.read(&scene.reader(Credential::Anonymous)).await.unwrap_err();
    assert!(none.message.contains("docker login"), "{none}");
}

#[tokio::test]
async fn identity_tokens_are_posted() {
    let scene = Scene::set().await;
    scene.service.behave(|b| {
        b.refresh_token = Some("refresh");
        b.basic = Some(("nobody", "x"));
        b.field = "access_token";
    });
    scene.read(&scene.reader(Credential::Identity(Secret::new("refresh")))).await.unwrap();
    let asked = scene.service.take_asked();
    assert_eq!((asked.len(), asked[0].method.as_str()), (1, "POST"));
    let form = |name: &str| asked[0].form.iter().find(|(key, _)| key == name).map(|(_, v)| v.as_str());
    assert_eq!(form("grant_type"), Some("refresh_token"));
    assert_eq!(form("service"), Some("test-registry"));
    assert_eq!(form("scope"), Some("repository:a/b:pull"));
    let wrong = scene.reader(Credential::Identity(Secret::new("other")));
    assert_eq!(scene.read(&wrong).await.unwrap_err().class, Class::Unauthorized);
}

#[tokio::test]
async fn a_token_service_may_be_slow_to_wake() {
    let scene = Scene::set().await;
    scene.service.behave(|b| b.unavailable = 2);
    scene.read(&scene.reader(Credential::Anonymous)).await.unwrap();
    assert_eq!(scene.service.take_asked().len(), 3);
}

#[tokio::test]
async fn the_scope_is_ours_whatever_the_registry_names() {
    let scene = Scene::set().await;
    let value = format!(
        "Bearer realm=\"{}\",service=\"test-registry\",scope=\"repository:victim/secret:pull,push\"",
        scene.service.realm()
    );
    let headers = vec![("WWW-Authenticate", value)];
    scene.proxy.fail("GET", "/blobs/", 1, Fault::Answer { status: 401, headers, body: String::new() });
    scene.read(&scene.reader(Credential::Anonymous)).await.unwrap();
    assert!(scene.service.take_asked().iter().all(|asked| asked.scopes == ["repository:a/b:pull"]));
}

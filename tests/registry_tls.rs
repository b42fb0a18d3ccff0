//! Registries over TLS: whose certificates count, and HTTP/2 where it is offered.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use addonfs::fetch::registry::{Authority, Mirror, Registries, RegistryHosts, RegistryOptions};
use addonfs::fetch::sink::{BlobContent, BlobSink as _};
use addonfs::fetch::source::BlobSource as _;
use common::image::{self, noise};
use common::registry::{DockerRegistry, Login, quick, repository};
use tokio::net::{TcpListener, TcpStream};

fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").current_dir(folder).args(arguments).output().expect("openssl");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An authority, and a certificate of it for 127.0.0.1. Returns the authority's certificate.
fn certificates(folder: &Path) -> Vec<u8> {
    let new = ["req", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
    let with = |more: &[&str]| openssl(folder, &[&new[..], more].concat());
    with(&["-x509", "-subj", "/CN=test CA", "-keyout", "ca.key", "-out", "ca.pem"]);
    with(&[
        "-x509",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-subj",
        "/CN=test",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-keyout",
        "key.pem",
        "-out",
        "certificate.pem",
    ]);
    std::fs::read(folder.join("ca.pem")).unwrap()
}

/// Passes connections on to a port of this machine and counts them.
async fn counted(port: u16) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    (host, count)
}

#[tokio::test]
async fn the_named_authority_counts_and_one_connection_carries_many_requests() {
    let folder = tempfile::tempdir().unwrap();
    let pem = certificates(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let login = Login::Certificate { certificate: path("certificate.pem"), key: path("key.pem") };
    let registry = DockerRegistry::start_with(&login);
    let (host, connections) = counted(registry.port()).await;
    let authority = Authority::from_pem(&pem).unwrap();
    let named = |hosts: RegistryHosts| RegistryOptions {
        registries: Registries::new(BTreeMap::from([(host.clone(), hosts)])),
        ..quick()
    };
    let options = named(RegistryHosts { authority: Some(authority.clone()), ..RegistryHosts::default() });
    let content = noise(41, 200_000);
    let blob = image::descriptor(image::LAYER, &content);
    let to = repository(&host, "a/b", &options);
    to.put_blob(&blob, BlobContent::bytes(content.clone())).await.unwrap();

    // HTTP/1.1 would need one for each answer that is under way
    connections.store(0, Ordering::Relaxed);
    let read = async |n: usize| {
        let range = (n * 1000) as u64..(n * 1000 + 900) as u64;
        assert_eq!(to.range(&blob, range).await.unwrap(), &content[n * 1000..n * 1000 + 900]);
    };
    read(0).await;
    futures_util::future::join_all((0..50).map(read)).await;
    assert!(connections.load(Ordering::Relaxed) <= 1, "{connections:?}: HTTP/2, and reused");

    // without the authority nobody believes it, with one of its own a mirror is believed
    let error = repository(&host, "a/b", &quick()).range(&blob, 0..1).await.unwrap_err();
    assert!(error.message.contains("certificate") && error.message.contains("ca"), "{error}");
    let mut mirror = Mirror::new(&format!("https://{host}"), false).unwrap();
    mirror.authority = Some(authority);
    let hosts = RegistryHosts { mirrors: vec![mirror], mirrors_only: true, ..RegistryHosts::default() };
    let source = addonfs::fetch::registry::source(&host, "a/b", &named(hosts));
    assert_eq!(source.blob(&blob, 1 << 20).await.unwrap().as_bytes(), &content);
}

//! How commands that end soon reach registries: credentials of the docker config file, helpers run as children.
//! (The daemon runs helpers through its spawner instead.)

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::Context as _;

use super::config::Config;
use super::dirs::Dirs;
use crate::fetch::credentials::{Credentials, HelperRunner};
use crate::fetch::layout::Layout;
use crate::fetch::push::resolve_tag;
use crate::fetch::registry::{Registries, RegistryOptions};
use crate::fetch::source::{self, BlobSource};
use crate::policy::digest::Digest;
use crate::policy::image::{Descriptor, Document, ImageManifest, Platform, parse_document};
use crate::policy::reference::{ImageRef, Location};

/// Options for registries that a command line names. `config` is the configuration whose `registries` hold; without
/// one, the standard one if there is one.
pub(crate) fn options(insecure: bool, config: Option<&Path>) -> anyhow::Result<RegistryOptions> {
    let standard = Dirs::standard_config();
    let registries = match config {
        Some(path) => Config::registries(path)?,
        None if standard.exists() => Config::registries(&standard)?,
        None => Registries::default(),
    };
    let credentials = Credentials::from_docker_config(None, |name| std::env::var_os(name), helper_runner());
    Ok(RegistryOptions { insecure, registries, credentials, ..RegistryOptions::default() })
}

/// Options for the registries of a configuration that was read.
pub(crate) fn options_of(config: &Config, insecure: bool) -> RegistryOptions {
    let credentials = Credentials::from_docker_config(
        config.docker_config.clone(),
        |name| std::env::var_os(name),
        helper_runner(),
    );
    let registries = config.registries.clone();
    RegistryOptions { insecure, registries, credentials, ..RegistryOptions::default() }
}

/// Opens where `image` is, and finds its digest: the one it is pinned to, what its tag names, or the only image of
/// a layout.
pub(crate) async fn open_image(
    image: &ImageRef,
    options: &RegistryOptions,
) -> anyhow::Result<(Arc<dyn BlobSource>, Digest)> {
    let source = source::open(&image.location, options).with_context(|| format!("cannot open {image}"))?;
    let digest = match (&image.digest, &image.tag, &image.location) {
        (Some(digest), _, _) => *digest,
        (None, Some(tag), _) => resolve_tag(source.as_ref(), tag).await?,
        (None, None, Location::Layout { path }) => Layout::open(path)?.only_image()?,
        (None, None, Location::Registry { .. }) => resolve_tag(source.as_ref(), "latest").await?,
    };
    Ok((source, digest))
}

/// An index may hold indexes; three levels are more than anybody builds.
const MAX_INDEX_DEPTH: usize = 3;

/// The manifest of the image `digest` for this platform, and its descriptor.
pub(crate) async fn platform_manifest(
    source: &dyn BlobSource,
    digest: &Digest,
) -> anyhow::Result<(Descriptor, ImageManifest)> {
    let mut digest = *digest;
    for _ in 0..MAX_INDEX_DEPTH {
        let (media_type, bytes) = source.manifest(&digest).await?;
        match parse_document(&media_type, &bytes)? {
            Document::Index(index) => {
                digest = index.select(&Platform::host())?.digest;
            }
            Document::Manifest(manifest) => {
                let size = bytes.len() as u64;
                let subject = Descriptor { media_type, digest, size, annotations: Vec::new() };
                return Ok((subject, manifest));
            }
        }
    }
    anyhow::bail!("indexes within indexes, more than {MAX_INDEX_DEPTH} deep")
}

/// `docker-credential-NAME get`, the server on its standard input (docker's credential helper protocol).
fn helper_runner() -> HelperRunner {
    Arc::new(|program: &str, server: &str| {
        let failed = |error: std::io::Error| format!("cannot run {program}: {error}");
        let mut child = Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that does not read is judged by its answer.
            let _ = stdin.write_all(server.as_bytes());
        }
        let output = child.wait_with_output().map_err(failed)?;
        let answer =
            String::from_utf8(output.stdout).map_err(|_| format!("{program} did not answer in text"))?;
        if output.status.success() { Ok(answer) } else { Err(format!("{program}: {}", answer.trim())) }
    })
}

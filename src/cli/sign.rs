//! `addonfs sign`: signs an image in a registry or a layout, as `cosign sign --key` does without a log, in either layout.

pub(super) mod bundle;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::{password, registry_access};
use crate::fetch::sink::{self, BlobContent, BlobSink};
use crate::fetch::source::BlobSource;
use crate::policy::digest::Digest;
use crate::policy::image::{Descriptor, ImageManifest, MAX_LAYERS, OCI_CONFIG, OCI_MANIFEST};
use crate::policy::reference::{ImageRef, Location, PinnedRef};
use crate::policy::trust::evidence::{Evidence, SimpleSigning, Subject};
use crate::policy::trust::keys::PrivateKey;
use crate::policy::trust::signature::verify;
use crate::policy::trust::simple_signing::{self, Payload};
use crate::policy::trust::{SIGNATURE_ANNOTATION, SIMPLE_SIGNING, Trust, TrustedKey, signature_tag};

/// Sign an image with a key.
#[derive(Debug, clap::Args)]
#[command(after_help = "The signature is kept beside the image, where cosign looks for it: under the tag
sha256-<hex>.sig, or as a bundle that refers to the image. Signatures of others stay. The key's
password comes from COSIGN_PASSWORD or the terminal.

Examples:
  addonfs sign --key cosign.key localhost:5000/org/backup-tools@sha256:…
  addonfs sign --key cosign.key --layout bundle ghcr.io/org/tools@sha256:…
  addonfs sign --key cosign.key oci:./sample.oci:v1.0.0@sha256:…")]
pub(crate) struct SignArgs {
    /// The private key, as `addonfs keygen` or `cosign generate-key-pair` makes it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// How the signature is kept: a tag, as every cosign knows it, or a bundle, as cosign 3 makes them
    #[arg(long, value_name = "LAYOUT", value_enum, default_value_t = Layout::Tag)]
    layout: Layout,
    /// The image with its digest
    #[arg(value_name = "REF@DIGEST")]
    image: String,
    /// Use plain http, or do not check the registry's certificate (loopback needs it not)
    #[arg(long)]
    insecure: bool,
    /// The configuration whose `registries` hold [default: /etc/addonfs/addonfs.yaml, for users
    /// $XDG_CONFIG_HOME/addonfs/addonfs.yaml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print what was signed as JSON
    #[arg(short = 'o', long, value_name = "FORMAT", value_parser = ["json"])]
    output: Option<String>,
}

/// How a signature is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Layout {
    Tag,
    Bundle,
}

/// What there was before.
pub(super) enum Outcome {
    Added(Digest),
    Present,
}

/// Runs the command.
pub(crate) async fn run(args: SignArgs) -> anyhow::Result<ExitCode> {
    // A tag may move between looking at an image and signing it: only a digest says what is signed.
    let image = args.image.parse::<ImageRef>()?.pinned()?;
    let key = private_key(&args.key)?;
    // A mirror that is behind would lose signatures: they are read where they are written.
    let options = registry_access::options(args.insecure, args.config.as_deref())?.without_mirrors();
    let (source, digest) = registry_access::open_image(&image.clone().into(), &options).await?;
    source.manifest(&digest).await.with_context(|| format!("there is nothing to sign at {image}"))?;
    let sink = sink::open(&image.location, &options)?;
    let outcome = match args.layout {
        Layout::Tag => sign(source.as_ref(), sink.as_ref(), &image, &key).await?,
        Layout::Bundle => bundle::sign(source.as_ref(), sink.as_ref(), &image, &key).await?,
    };

    let tag = (args.layout == Layout::Tag).then(|| signature_tag(&digest));
    let fingerprint = key.public().map_err(anyhow::Error::msg)?.fingerprint();
    if args.output.is_some() {
        let added = matches!(outcome, Outcome::Added(_));
        let mut json = json!({"image": image, "digest": digest, "key": fingerprint, "added": added});
        if let Some(tag) = tag {
            json["signature_tag"] = tag.into();
        }
        if let Outcome::Added(manifest) = outcome {
            json["signature"] = manifest.to_string().into();
        }
        println!("{json}");
    } else {
        match outcome {
            Outcome::Added(manifest) => {
                let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
                println!("{}{tag}@{manifest}", image.location);
            }
            Outcome::Present => eprintln!("{image} has a signature by this key already"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The key in a file, with the password from the environment or the terminal.
pub(super) fn private_key(path: &Path) -> anyhow::Result<PrivateKey> {
    let name = path.display().to_string();
    let sealed = std::fs::read(path).with_context(|| format!("cannot read the key {name}"))?;
    let password = password::existing(&name)?;
    PrivateKey::from_encrypted_pem(&sealed, password.as_bytes())
        .map_err(|reason| anyhow::anyhow!("the key file {name} {reason}"))
}

/// Adds a signature to those that are there, unless one of them is by this key.
pub(super) async fn sign(
    source: &dyn BlobSource,
    sink: &dyn BlobSink,
    image: &PinnedRef,
    key: &PrivateKey,
) -> anyhow::Result<Outcome> {
    let tag = signature_tag(&image.digest);
    let before = match source.resolve(&tag).await? {
        Some(digest) => Some(source.manifest(&digest).await?.1.to_vec()),
        None => None,
    };
    let mut layers = Vec::new();
    if let Some(bytes) = &before {
        let manifest =
            ImageManifest::parse(bytes).with_context(|| format!("the tag {tag} holds no signatures"))?;
        layers = manifest.layers;
        anyhow::ensure!(layers.len() < MAX_LAYERS, "{tag} has {} signatures already", layers.len());
        if signed_by(&evidence(source, &layers).await, image, key)? {
            return Ok(Outcome::Present);
        }
    }
    let payload =
        Payload { docker_reference: docker_reference(image), digest: image.digest, optional: Map::new() };
    let payload = payload.to_bytes();
    let signature = STANDARD.encode(key.sign(&payload).map_err(anyhow::Error::msg)?);
    let layer = Descriptor {
        media_type: SIMPLE_SIGNING.to_owned(),
        digest: Digest::of(&payload),
        size: payload.len() as u64,
        annotations: vec![(SIGNATURE_ANNOTATION.to_owned(), signature)],
    };
    sink.put_blob(&layer, BlobContent::bytes(payload)).await?;
    layers.push(layer.clone());
    let config = config(&layers);
    let config_descriptor = Descriptor {
        media_type: OCI_CONFIG.to_owned(),
        digest: Digest::of(&config),
        size: config.len() as u64,
        annotations: Vec::new(),
    };
    sink.put_blob(&config_descriptor, BlobContent::bytes(config)).await?;
    let manifest = with_layer(before.as_deref(), &layer, &config_descriptor)?;
    let digest = sink.put_manifest(OCI_MANIFEST, manifest.into(), Some(&tag)).await?;
    Ok(Outcome::Added(digest))
}

/// The manifest as it was, with whatever else is in it, one layer longer.
fn with_layer(before: Option<&[u8]>, layer: &Descriptor, config: &Descriptor) -> anyhow::Result<Vec<u8>> {
    let empty = || json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": []});
    let mut manifest: Value = before.map_or_else(|| Ok(empty()), serde_json::from_slice)?;
    manifest["config"] = serde_json::to_value(config)?;
    manifest["mediaType"] = json!(OCI_MANIFEST);
    let layers = manifest.get_mut("layers").and_then(Value::as_array_mut).context("no layers")?;
    layers.push(serde_json::to_value(layer)?);
    Ok(serde_json::to_vec(&manifest)?)
}

/// A config like the one cosign writes: an image of no platform whose diff_ids are the payloads.
fn config(layers: &[Descriptor]) -> Vec<u8> {
    let diff_ids: Vec<&Digest> = layers.iter().map(|layer| &layer.digest).collect();
    json!({
        "architecture": "", "created": "0001-01-01T00:00:00Z", "os": "", "config": {},
        "history": vec![json!({"created": "0001-01-01T00:00:00Z"}); layers.len()],
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

/// Those of these layers that can be had.
async fn evidence(source: &dyn BlobSource, layers: &[Descriptor]) -> Vec<Evidence> {
    let mut evidence = Vec::new();
    for layer in layers.iter().filter(|layer| layer.media_type == SIMPLE_SIGNING) {
        let Ok(payload) = source.blob(layer, simple_signing::MAX_BYTES as u64).await else { continue };
        let annotations = layer.annotations.clone();
        evidence.push(SimpleSigning { payload: payload.to_vec(), annotations }.into());
    }
    evidence
}

/// Whether one of these is by this key.
fn signed_by(evidence: &[Evidence], image: &PinnedRef, key: &PrivateKey) -> anyhow::Result<bool> {
    let own = TrustedKey { name: String::new(), key: key.public().map_err(anyhow::Error::msg)? };
    let trust = Trust { keys: vec![own], ..Trust::default() };
    // One at a time: so many others may be beside it that not all would be looked at.
    Ok(evidence.iter().any(|one| verify(&trust, &subject(image), std::slice::from_ref(one)).is_ok()))
}

/// A key's word does not depend on when it is asked.
fn subject(image: &PinnedRef) -> Subject<'_> {
    Subject { digest: &image.digest, location: Some(&image.location), now: 0 }
}

/// What cosign writes: the repository. A layout has no name that means anything elsewhere but its folder's.
fn docker_reference(image: &PinnedRef) -> String {
    match &image.location {
        Location::Registry { .. } => image.location.to_string(),
        Location::Layout { .. } => image.location.last_element().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::layout::Layout;
    use crate::fetch::signatures;

    /// What is beside the image, as the daemon would collect it.
    async fn found(layout: &dyn BlobSource, image: &PinnedRef) -> Vec<Evidence> {
        let digest = layout.resolve(&signature_tag(&image.digest)).await.unwrap().unwrap();
        let (media_type, bytes) = layout.manifest(&digest).await.unwrap();
        assert_eq!(media_type, OCI_MANIFEST);
        let manifest = ImageManifest::parse(&bytes).unwrap();
        let config = layout.blob(&manifest.config, 1 << 20).await.unwrap();
        let config = crate::policy::image::ImageConfig::parse(&config).unwrap();
        config.check_layers(&manifest).unwrap();
        let mut evidence = Vec::new();
        for layer in &manifest.layers {
            assert_eq!(layer.media_type, SIMPLE_SIGNING);
            let payload = layout.blob(layer, 1 << 20).await.unwrap();
            let annotations = layer.annotations.clone();
            evidence.push(SimpleSigning { payload: payload.to_vec(), annotations }.into());
        }
        evidence
    }

    fn trusting(key: &PrivateKey) -> Trust {
        let trusted = TrustedKey { name: "k".to_owned(), key: key.public().unwrap() };
        Trust { keys: vec![trusted], ..Trust::default() }
    }

    #[tokio::test]
    async fn signatures_are_added_to_those_that_are_there() {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::create(temp.path()).unwrap();
        let image: ImageRef =
            format!("oci:{}:v1@{}", temp.path().display(), Digest::of(b"image")).parse().unwrap();
        let image = image.pinned().unwrap();
        let (one, two) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        for (key, expected) in [(&one, 1), (&one, 1), (&two, 2), (&two, 2)] {
            sign(layout.as_ref(), layout.as_ref(), &image, key).await.unwrap();
            let found = found(layout.as_ref(), &image).await;
            assert_eq!(found.len(), expected, "a key signs once");
            verify(&trusting(key), &subject(&image), &found).unwrap();
        }
        let found = found(layout.as_ref(), &image).await;
        verify(&trusting(&one), &subject(&image), &found).unwrap();
        assert!(verify(&trusting(&PrivateKey::generate().unwrap()), &subject(&image), &found).is_err());
    }

    #[tokio::test]
    async fn a_bundle_refers_to_its_image_once_a_key() {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::create(temp.path()).unwrap();
        let empty = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
            "config": {"mediaType": OCI_CONFIG, "digest": Digest::of(b"{}"), "size": 2}});
        let digest = layout.put_manifest(OCI_MANIFEST, empty.to_string().into(), Some("v1")).await.unwrap();
        let image: ImageRef = format!("oci:{}:v1@{digest}", temp.path().display()).parse().unwrap();
        let image = image.pinned().unwrap();
        let (one, two) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        sign(layout.as_ref(), layout.as_ref(), &image, &one).await.unwrap();
        for (key, expected) in [(&one, 2), (&one, 2), (&two, 3), (&two, 3)] {
            bundle::sign(layout.as_ref(), layout.as_ref(), &image, key).await.unwrap();
            let found = signatures::fetch(layout.as_ref(), &digest).await.unwrap();
            assert_eq!(found.len(), expected, "a key signs once in each layout");
            verify(&trusting(key), &subject(&image), &found[1..]).unwrap();
        }
        let found = signatures::fetch(layout.as_ref(), &digest).await.unwrap();
        assert!(verify(&trusting(&PrivateKey::generate().unwrap()), &subject(&image), &found).is_err());
    }
}

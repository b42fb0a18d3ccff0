//! `addonfs push`: copies an image from a layout to a registry.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::registry_access;
use crate::fetch::error::FetchError;
use crate::fetch::push::{CopyProgress, push_image};
use crate::fetch::{referrers, signatures, sink, source};
use crate::policy::image::ImageManifest;
use crate::policy::reference::{ImageRef, Location, PinnedRef};
use crate::policy::trust::signature_tag;

/// Copy an image from a layout on disk to a registry and print its digest.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Signatures that the layout holds for the image go with it. Credentials come from the docker
config file ($DOCKER_CONFIG/config.json, ~/.docker/config.json) and its helpers.

Examples:
  addonfs push oci:./sample.oci:v1.0.0 localhost:5000/org/backup-tools:v1.0.0
  digest=$(addonfs push oci:./sample.oci:v1.0.0 ghcr.io/org/backup-tools:v1.0.0)
  addonfs push -o json oci:./sample.oci:v1.0.0 ghcr.io/org/backup-tools | jq -r .image"
)]
pub(crate) struct PushArgs {
    /// The image in a layout: oci:PATH:TAG
    #[arg(value_name = "FROM")]
    from: String,
    /// Where to: host/repository[:tag]; without a tag, the tag it has in the layout
    #[arg(value_name = "TO")]
    to: String,
    /// Use plain http, or do not check the registry's certificate (loopback needs it not)
    #[arg(long)]
    insecure: bool,
    /// The configuration whose `registries` hold [default: /etc/addonfs/addonfs.yaml, for users
    /// $XDG_CONFIG_HOME/addonfs/addonfs.yaml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the digest and what was sent as JSON
    #[arg(short = 'o', long, value_name = "FORMAT", value_parser = ["json"])]
    output: Option<String>,
}

/// Between two looks at how far the copy is.
const LOOK: Duration = Duration::from_millis(100);

/// Runs the command.
pub(crate) async fn run(args: PushArgs) -> anyhow::Result<ExitCode> {
    let (from, to): (ImageRef, ImageRef) = (args.from.parse()?, args.to.parse()?);
    let options = registry_access::options(args.insecure, args.config.as_deref())?;
    let (source, digest) = registry_access::open_image(&from, &options).await?;
    if let Some(asked) = to.digest.filter(|asked| *asked != digest) {
        anyhow::bail!("{from} is {digest}, and {to} asks for {asked}");
    }
    let tag = to.tag.clone().or_else(|| from.tag.clone().filter(|_| to.digest.is_none()));
    anyhow::ensure!(
        tag.is_some() || to.digest.is_some() || matches!(to.location, Location::Layout { .. }),
        "under which tag? write {to}:TAG"
    );
    let sink = sink::open(&to.location, &options)?;
    // Lists of referrers are read where they are written.
    let there = source::open(&to.location, &options.without_mirrors())?;

    let progress = CopyProgress::default();
    let copy = async {
        push_image(&source, &digest, sink.as_ref(), tag.as_deref(), &progress).await?;
        let tag = signature_tag(&digest);
        let signed = source.resolve(&tag).await?;
        if let Some(signed) = &signed {
            push_image(&source, signed, sink.as_ref(), Some(&tag), &progress).await?;
        }
        let listed = signatures::listed(source.as_ref(), &digest).await?;
        for referrer in &listed {
            push_image(&source, &referrer.digest, sink.as_ref(), None, &progress).await?;
            let (_, manifest) = source.manifest(&referrer.digest).await?;
            let kind = artifact_type(&manifest);
            referrers::attach(there.as_ref(), sink.as_ref(), &digest, &kind, manifest.to_vec()).await?;
        }
        Ok::<_, FetchError>(signed.is_some() || !listed.is_empty())
    };
    let signatures = watched(copy, &progress).await.with_context(|| format!("cannot push {from} to {to}"))?;

    let image = PinnedRef { location: to.location, tag, digest };
    if args.output.is_some() {
        let json = json!({
            "digest": digest,
            "image": image,
            "blobs_copied": progress.copied.load(Ordering::Relaxed),
            "blobs_present": progress.present.load(Ordering::Relaxed),
            "bytes": progress.done.load(Ordering::Relaxed),
            "signatures": signatures,
        });
        println!("{json}");
    } else {
        println!("{digest}");
    }
    Ok(ExitCode::SUCCESS)
}

/// What an artifact is listed as: its own type, else its config's (distribution-spec, "Listing Referrers").
fn artifact_type(manifest: &[u8]) -> String {
    ImageManifest::parse(manifest).map_or_else(
        |_| String::new(),
        |manifest| manifest.artifact_type.unwrap_or(manifest.config.media_type),
    )
}

/// Waits for the copy and draws how far it is, on a terminal.
async fn watched<T>(copy: impl Future<Output = T>, progress: &CopyProgress) -> T {
    if !std::io::stderr().is_terminal() {
        return copy.await;
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    let mut copy = std::pin::pin!(copy);
    loop {
        tokio::select! {
            done = &mut copy => {
                bar.finish_and_clear();
                return done;
            }
            () = tokio::time::sleep(LOOK) => {
                bar.set_length(progress.total.load(Ordering::Relaxed));
                bar.set_position(progress.done.load(Ordering::Relaxed));
            }
        }
    }
}

//! `addonfs index`: makes, signs and pushes SOCI zTOCs for an image that cannot change, so that others read it lazily.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;

use super::{registry_access, sign};
use crate::fetch::referrers;
use crate::fetch::sink::{self, BlobContent, BlobSink};
use crate::fetch::soci;
use crate::fetch::source::BlobSource;
use crate::policy::digest::Digest;
use crate::policy::image::Descriptor;
use crate::policy::quantity::parse_memory;
use crate::policy::reference::{ImageRef, PinnedRef};
use crate::policy::soci as format;

/// Make an image readable on demand without changing it: index its layers, sign the index, keep it beside the image.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The index is a SOCI index (version 1): zTOCs of the layers that are worth it, in a manifest that refers to
the image, signed under the tag sha256-<hex of the index>.sig. Machines whose trust.index_keys hold the key read
the image by ranges from the first byte on. Layers are fetched once to be indexed; those in zstd, and those that
bring a table of contents of their own, get none. The key's password comes from COSIGN_PASSWORD or the terminal.

Examples:
  addonfs index --key cosign.key localhost:5000/org/backup-tools:v1.0.0
  addonfs index --key cosign.key --min-layer-size 1Mi oci:./sample.oci:v1.0.0"
)]
pub(crate) struct IndexArgs {
    /// The private key, as `addonfs keygen` or `cosign generate-key-pair` makes it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The image; of an image index the one for this machine's platform
    #[arg(value_name = "REF")]
    image: String,
    /// Decoded bytes between two places where reading can begin
    #[arg(long, value_name = "SIZE", default_value = "4Mi", value_parser = size)]
    span_size: u64,
    /// Layers smaller than this are left to be fetched whole
    #[arg(long, value_name = "SIZE", default_value = "10Mi", value_parser = size)]
    min_layer_size: u64,
    /// Use plain http, or do not check the registry's certificate (loopback needs it not)
    #[arg(long)]
    insecure: bool,
    /// The configuration whose `registries` hold [default: /etc/addonfs/addonfs.yaml, for users
    /// $XDG_CONFIG_HOME/addonfs/addonfs.yaml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print what was made as JSON
    #[arg(short = 'o', long, value_name = "FORMAT", value_parser = ["json"])]
    output: Option<String>,
}

/// Smallest and largest spans: a window of 32 KiB for each, and what readers decode in memory.
const SPANS: std::ops::RangeInclusive<u64> = 64 << 10..=32 << 20;

fn size(text: &str) -> Result<u64, String> {
    parse_memory(text).map_err(|error| error.to_string())
}

/// Runs the command.
pub(crate) async fn run(args: IndexArgs) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(SPANS.contains(&args.span_size), "--span-size is between 64Ki and 32Mi");
    let image: ImageRef = args.image.parse()?;
    let key = sign::private_key(&args.key)?;
    // A mirror that is behind would lose referrers and signatures: they are read where they are written.
    let options = registry_access::options(args.insecure, args.config.as_deref())?.without_mirrors();
    let (source, pinned) = registry_access::open_image(&image, &options).await?;
    let (subject, manifest) = registry_access::platform_manifest(source.as_ref(), &pinned).await?;
    let sink = sink::open(&image.location, &options)?;

    let mut ztocs = Vec::new();
    for layer in unique(&manifest.layers) {
        match ztoc(source.as_ref(), layer, &args).await? {
            Ok(bytes) => {
                let descriptor = format::ztoc_descriptor(layer, &bytes, args.span_size);
                eprintln!("layer {}: {} bytes of zTOC for {}", layer.digest, bytes.len(), layer.size);
                sink.put_blob(&descriptor, BlobContent::bytes(bytes)).await?;
                ztocs.push(descriptor);
            }
            Err(unfit) => eprintln!("layer {}: no zTOC, it is {unfit}", layer.digest),
        }
    }
    anyhow::ensure!(!ztocs.is_empty(), "{image} has no layer that could use a zTOC: nothing was pushed");
    let index = push(source.as_ref(), sink.as_ref(), &subject, &ztocs).await?;
    let index = PinnedRef { location: image.location, tag: None, digest: index };
    sign::sign(source.as_ref(), sink.as_ref(), &index, &key).await?;

    if args.output.is_some() {
        let json = json!({
            "index": index,
            "digest": index.digest,
            "image": subject.digest,
            "layers": ztocs.len(),
            "bytes": ztocs.iter().map(|ztoc| ztoc.size).sum::<u64>(),
            "key": key.public().map_err(anyhow::Error::msg)?.fingerprint(),
        });
        println!("{json}");
    } else {
        println!("{index}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The zTOC of a layer, or why it has none, in words that end "it is …".
async fn ztoc(
    source: &dyn BlobSource,
    layer: &Descriptor,
    args: &IndexArgs,
) -> anyhow::Result<Result<Vec<u8>, soci::Unfit>> {
    if layer.size < args.min_layer_size {
        return Ok(Err("smaller than --min-layer-size"));
    }
    if soci::is_bound(layer) {
        return Ok(Err("read by the table of contents that it brings"));
    }
    Ok(soci::make(source, layer, args.span_size).await?)
}

/// Writes the index manifest beside the image.
async fn push(
    source: &dyn BlobSource,
    sink: &dyn BlobSink,
    subject: &Descriptor,
    ztocs: &[Descriptor],
) -> anyhow::Result<Digest> {
    sink.put_blob(&format::config_descriptor(), BlobContent::bytes(format::EMPTY_CONFIG)).await?;
    let tool = concat!("addonfs ", env!("CARGO_PKG_VERSION"));
    let manifest = format::manifest(subject, ztocs, tool).to_string().into_bytes();
    let attached = referrers::attach(source, sink, &subject.digest, format::INDEX_V1, manifest).await;
    Ok(attached.context("cannot push the index")?.digest)
}

/// One of each digest: a layer may occur twice in a manifest.
fn unique(layers: &[Descriptor]) -> Vec<&Descriptor> {
    let mut seen = std::collections::HashSet::new();
    layers.iter().filter(|layer| seen.insert(layer.digest)).collect()
}

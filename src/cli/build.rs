//! `addonfs build`: makes an add-on image from a folder, in an OCI image layout.
//!
//! In: a folder with manifest.yaml, perhaps a base image and a folder of files for `/`. Out: layers, config and
//! manifest in the layout, named by a tag. The same input gives the same digest: entries are sorted, owners are
//! root, times are `SOURCE_DATE_EPOCH` or 0 (in `--rootfs` their own, up to `SOURCE_DATE_EPOCH`), and nothing of the
//! host gets in but its platform where none is given.

mod archive;
mod compress;
mod estargz;
mod first;
mod format;
mod hashing;
mod image;
mod layer;
mod pieces;
mod programs;
mod python;
mod tar_split;
mod toc;
mod tree;
mod zstd_chunked;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;

use super::registry_access;
use crate::fetch::sink::{self, BlobContent};
use crate::policy::addon::{self, AddonManifest};
use crate::policy::image::{ImageConfig, OCI_MANIFEST, Platform};
use crate::policy::reference::{ImageRef, Location, PinnedRef};
use format::LayerFormat;
use image::{Draft, Settings};
use layer::BuiltLayer;
use programs::Starts;
use tree::{Times, Tree};

/// What an add-on's folder is put on, and how its jobs start.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BaseArgs {
    /// An image to put below: REF or oci:PATH[:TAG]
    #[arg(long, value_name = "REF")]
    base: Option<String>,
    /// A folder whose files go to /, below /addon
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// Who runs the jobs: a name or uid[:gid]
    #[arg(long)]
    user: Option<String>,
    /// The working directory of the jobs
    #[arg(long, value_name = "PATH")]
    workdir: Option<String>,
    /// The image's ENTRYPOINT, one word each time: what jobs of a flwd.addon/v1 manifest start, with their id as first
    /// argument
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// A variable for the jobs; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Use plain http for the base's registry, or do not check its certificate
    #[arg(long)]
    insecure: bool,
    /// The configuration whose `registries` hold [default: /etc/addonfs/addonfs.yaml, for users
    /// $XDG_CONFIG_HOME/addonfs/addonfs.yaml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Build an add-on image from a folder.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "DIR holds manifest.yaml; everything in it goes under /addon, with its modes. Owners become
root and times SOURCE_DATE_EPOCH (or 1970), so that the same input gives the same digest. Files of
--rootfs keep their times, but none later than SOURCE_DATE_EPOCH where it is set.

Examples:
  addonfs build ./sample --tag v1.0.0 --output oci:./sample.oci
  addonfs build ./sample --output oci:./sample.oci:v1.0.0 --base docker.io/library/alpine:3.20
  addonfs build ./sample --tag v1 --output oci:./out --rootfs ./rootfs --user 1000 --workdir /work --env LANG=C"
)]
pub(crate) struct BuildArgs {
    /// The folder with manifest.yaml
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The tag in the layout [default: latest]
    #[arg(long)]
    tag: Option<String>,
    /// The layout to write to, made if there is none: oci:PATH[:TAG]
    #[arg(long, value_name = "oci:PATH")]
    output: String,
    #[command(flatten)]
    on: BaseArgs,
    /// An annotation of the manifest, such as org.opencontainers.image.revision; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    annotation: Vec<String>,
    /// What the new layers are written as
    #[arg(long = "format", value_name = "FORMAT", value_enum, default_value_t = LayerFormat::Estargz)]
    layer_format: LayerFormat,
    /// Paths of files that jobs read at their start, one a line: they come first in the layers, in this order, and
    /// then, in formats with a table of contents, the programs of the jobs, their libraries, and what Python imports
    #[arg(long, value_name = "FILE")]
    first: Option<PathBuf>,
    /// The platform [default: this host's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Print the digest and the layers as JSON
    #[arg(short = 'o', value_name = "FORMAT", value_parser = ["json"])]
    output_format: Option<String>,
}

impl BaseArgs {
    /// Whether anything is said of an image to be built.
    pub(crate) fn changes_images(&self) -> bool {
        let lists = [&self.entrypoint, &self.env];
        let words = [&self.base, &self.user, &self.workdir];
        self.rootfs.is_some()
            || lists.iter().any(|list| !list.is_empty())
            || words.iter().any(|word| word.is_some())
    }

    /// The files for `/` are those of an unpacked image.
    pub(crate) fn unpacked_at(&mut self, folder: &Path) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.base.is_none() && self.rootfs.is_none(),
            "{} is an unpacked image: --base and --rootfs are for folders of an add-on alone",
            folder.display()
        );
        self.rootfs = Some(folder.to_owned());
        Ok(())
    }

    pub(crate) fn insecure(&self) -> bool {
        self.insecure
    }

    pub(crate) fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }
}

/// Runs the command.
pub(crate) async fn run(args: BuildArgs) -> anyhow::Result<ExitCode> {
    let Some((image, layers)) = build(&args).await? else { return Ok(ExitCode::FAILURE) };
    report(&args, image, &layers);
    Ok(ExitCode::SUCCESS)
}

/// Builds the folder `dir` on `on`, as the only image of a new layout; nothing if the manifest is not valid, with its
/// problems on stderr.
pub(crate) async fn to_layout(
    dir: PathBuf,
    on: BaseArgs,
    layout: &Path,
) -> anyhow::Result<Option<PinnedRef>> {
    let args = BuildArgs {
        dir,
        tag: None,
        output: format!("oci:{}", layout.display()),
        on,
        annotation: Vec::new(),
        layer_format: LayerFormat::Estargz,
        first: None,
        platform: None,
        output_format: None,
    };
    Ok(build(&args).await?.map(|(image, _)| image))
}

/// The image and its new layers, each with what it is.
type Built = (PinnedRef, Vec<(BuiltLayer, &'static str)>);

/// Builds; nothing if the manifest is not valid, with its problems on stderr.
async fn build(args: &BuildArgs) -> anyhow::Result<Option<Built>> {
    let Some(manifest) = checked_manifest(&args.dir)? else { return Ok(None) };
    let target = target(args)?;
    let (settings, mut annotations) = (Settings::from_args(args)?, annotations(args, &manifest)?);
    for folder in [Some(&args.dir), args.on.rootfs.as_ref()].into_iter().flatten() {
        stays_outside(&target.location, folder)?;
    }
    let epoch = source_date_epoch()?;
    let created = epoch.unwrap_or(0);
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let options = registry_access::options(args.on.insecure, args.on.config.as_deref())?;
    let sink = sink::open(&target.location, &options)?;

    let mut draft = match &args.on.base {
        None => Draft::scratch(&platform),
        Some(base) => {
            let base: ImageRef = base.parse()?;
            let (source, digest) = registry_access::open_image(&base, &options).await?;
            annotations.push(("org.opencontainers.image.base.digest".to_owned(), digest.to_string()));
            image::from_base(&source, &digest, &platform, sink.as_ref())
                .await
                .with_context(|| format!("cannot build on {base}"))?
        }
    };
    draft.apply(&settings, created)?;
    let config = ImageConfig::parse(&draft.config()?.1)?;
    manifest.check_image(&config)?;
    let commands: Vec<_> = manifest.entrypoints.iter().map(|entry| entry.argv(&config)).collect();
    let layers = layers(args, &commands, &settings, epoch)?;
    for (built, what) in &layers {
        sink.put_blob(&built.descriptor, BlobContent::file(built.file.path())).await?;
        draft.add_layer(built, &format!("addonfs build: {what}"), created)?;
    }
    draft.annotate(annotations);
    let (config, config_bytes) = draft.config()?;
    sink.put_blob(&config, BlobContent::bytes(config_bytes)).await?;
    let bytes = draft.manifest(&config)?;
    let digest = sink.put_manifest(OCI_MANIFEST, bytes.into(), target.tag.as_deref()).await?;
    Ok(Some((PinnedRef { location: target.location, tag: target.tag, digest }, layers)))
}

/// The new layers, the lower one first, and what they are.
fn layers(
    args: &BuildArgs,
    commands: &[Vec<String>],
    settings: &Settings,
    epoch: Option<u64>,
) -> anyhow::Result<Vec<(BuiltLayer, &'static str)>> {
    let created = epoch.unwrap_or(0);
    let reserved: &[&str] = if args.layer_format == LayerFormat::Estargz { &estargz::OWN_NAMES } else { &[] };
    let mut trees = Vec::new();
    let mut names = Vec::new();
    if let Some(rootfs) = &args.on.rootfs {
        trees.push(Tree::walk(rootfs, "", reserved, Times::Own { latest: epoch })?);
        names.push("rootfs");
    }
    trees.push(Tree::walk(&args.dir, "addon", reserved, Times::All(created))?);
    names.push("addon");
    let said = args.first.as_deref().map_or(Ok(Vec::new()), first::read_list)?;
    let missing = first::missing(&trees, &said);
    if let (Some(file), [one, ..]) = (&args.first, missing.as_slice()) {
        eprintln!(
            "addonfs: {} of the paths in {} are in none of the new layers, such as {}",
            missing.len(),
            file.display(),
            one.display()
        );
    }
    // Only readers with a table of contents gain by it.
    let starts = match args.layer_format {
        LayerFormat::Estargz | LayerFormat::ZstdChunked => {
            programs::of(commands, &trees, settings.surroundings())
        }
        LayerFormat::Gzip | LayerFormat::Zstd | LayerFormat::Tar => Starts::default(),
    };
    let orders = first::order(&trees, said.iter().chain(&starts.ahead), &starts.together);
    let pairs = trees.iter().zip(&orders).zip(names);
    pairs
        .map(|((tree, order), name)| Ok((layer::pack(tree, order, created, args.layer_format)?, name)))
        .collect()
}

/// The add-on's manifest, if it is valid; all its problems on stderr otherwise.
fn checked_manifest(dir: &Path) -> anyhow::Result<Option<AddonManifest>> {
    let path = dir.join("manifest.yaml");
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    match AddonManifest::parse(&bytes) {
        Ok(manifest) => {
            for warning in &manifest.warnings {
                eprintln!("{}: warning: {warning}", path.display());
            }
            Ok(Some(manifest))
        }
        Err(problems) => {
            for problem in &problems {
                eprintln!("{}: {problem}", path.display());
            }
            eprintln!(
                "addonfs: {}: {} problems, nothing was built",
                addon::denied(&problems).code,
                problems.len()
            );
            Ok(None)
        }
    }
}

/// Where the image goes; the tag may stand in either place.
fn target(args: &BuildArgs) -> anyhow::Result<ImageRef> {
    let mut target: ImageRef = args.output.parse()?;
    anyhow::ensure!(
        matches!(target.location, Location::Layout { .. }) && target.digest.is_none(),
        "--output must be a layout on disk, oci:PATH; `addonfs push` takes it to a registry from there"
    );
    if let Some(tag) = &args.tag {
        anyhow::ensure!(
            target.tag.as_ref().is_none_or(|other| other == tag),
            "--tag and --output name different tags"
        );
        target = format!("{}:{tag}", target.location).parse()?;
    }
    target.tag.get_or_insert_with(|| "latest".to_owned());
    Ok(target)
}

/// A layout within a folder that is packed would be part of the next build of it.
fn stays_outside(target: &Location, folder: &Path) -> anyhow::Result<()> {
    let Location::Layout { path } = target else { return Ok(()) };
    let folder = folder.canonicalize().with_context(|| format!("cannot read {}", folder.display()))?;
    let path = std::path::absolute(path)?;
    let real = path.ancestors().find_map(|p| p.canonicalize().ok()).unwrap_or_default();
    anyhow::ensure!(
        !real.starts_with(&folder),
        "--output {target} lies in {}, which is packed: put it elsewhere",
        folder.display()
    );
    Ok(())
}

/// <https://reproducible-builds.org/specs/source-date-epoch/>
fn source_date_epoch() -> anyhow::Result<Option<u64>> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => {
            let seconds = text.parse();
            seconds
                .map(Some)
                .with_context(|| format!("SOURCE_DATE_EPOCH={text:?} is not a number of seconds"))
        }
        Err(_) => Ok(None),
    }
}

fn annotations(args: &BuildArgs, manifest: &AddonManifest) -> anyhow::Result<Vec<(String, String)>> {
    let mut all = vec![
        ("org.opencontainers.image.title".to_owned(), manifest.name.clone()),
        ("org.opencontainers.image.version".to_owned(), manifest.version.clone()),
    ];
    for pair in &args.annotation {
        let (name, value) =
            pair.split_once('=').with_context(|| format!("--annotation {pair:?} has no '='"))?;
        all.retain(|(known, _)| known != name);
        all.push((name.to_owned(), value.to_owned()));
    }
    Ok(all)
}

fn report(args: &BuildArgs, image: PinnedRef, layers: &[(BuiltLayer, &str)]) {
    if args.output_format.is_some() {
        let layers: Vec<_> = layers
            .iter()
            .map(|(layer, what)| {
                json!({"what": what, "digest": layer.descriptor.digest, "size": layer.descriptor.size, "diff_id": layer.diff_id})
            })
            .collect();
        println!("{}", json!({"digest": image.digest, "image": image, "layers": layers}));
    } else {
        println!("{}", image.digest);
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod toc_tests;

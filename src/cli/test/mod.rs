//! `addonfs test`: an add-on as a host would have it, before anybody has it.
//!
//! The image (or the folder, built into one) goes into a layout of its own and is mounted by a daemon of its own, with
//! the container rules of profile secure and without asking for signatures. What is then looked at, planned and run is
//! what users would look at, plan and run. Everything is taken down at the end, also after Ctrl-C.
//!
//! [`mount`] the private mount; [`look`] programs and folders in the image; [`report`] the words.

mod look;
mod mount;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Map, Value};
use tokio::signal::unix::{SignalKind, signal};

use super::build::{self, BaseArgs};
use super::exit::FAILURE;
use super::registry_access;
use crate::fetch::push::{CopyProgress, push_image};
use crate::fetch::sink;
use crate::policy::arguments::{ArgSpec, ArgumentProblem};
use crate::policy::digest::Digest;
use crate::policy::reference::ImageRef;
use look::Image;
use mount::Mount;
use report::{JobReport, Report};

/// Test an add-on: its programs are there and executable for its user, each job can be planned, and runs.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "What is tested is mounted privately, under profile secure and without asking for signatures;
that needs what `addonfs mount` needs. Of a folder an image is built first, on --base or --rootfs; the folder
may also be an unpacked image that has /addon/manifest.yaml. Arguments are made up from the argspec: as few
as it takes.

Exit codes: 0 everything is well; 1 something is not; 2 it could not be found out.

Examples:
  addonfs test ./sample --base docker.io/library/busybox:1.37
  addonfs test --run oci:./sample.oci:v1.0.0
  addonfs test --run --args 'backup={\"database\":\"app\"}' localhost:5000/org/backup-tools:v1.0.0
  addonfs test -o json ./sample --rootfs ./rootfs | jq '.jobs[] | select(.problems != [])'"
)]
pub(crate) struct TestArgs {
    /// An image (REF or oci:PATH[:TAG]), a folder with manifest.yaml, or an unpacked image
    #[arg(value_name = "IMAGE|DIR")]
    what: String,
    /// Run each job, too
    #[arg(long)]
    run: bool,
    /// Only these entrypoints; may be repeated
    #[arg(long, value_name = "ID")]
    only: Vec<String>,
    /// The arguments of an entrypoint, instead of made up ones; may be repeated
    #[arg(long, value_name = "ID=JSON", value_parser = given)]
    args: Vec<(String, Map<String, Value>)>,
    #[command(flatten)]
    on: BaseArgs,
    /// Print what was found as JSON
    #[arg(long, short, value_name = "FORMAT", value_parser = ["json"])]
    output: Option<String>,
}

fn given(text: &str) -> Result<(String, Map<String, Value>), String> {
    let (id, json) = text.split_once('=').ok_or("write ID={\"name\": \"value\"}")?;
    let values = serde_json::from_str(json).map_err(|error| format!("the arguments of {id}: {error}"))?;
    Ok((id.to_owned(), values))
}

/// Runs the command.
pub(crate) async fn run(args: TestArgs) -> anyhow::Result<ExitCode> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut mount = Mount::new()?;
    let outcome = tokio::select! {
        outcome = test(&args, &mut mount) => outcome,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    };
    // Also after a failure: a daemon must not be left behind.
    let cleared = mount.take_down().await;
    let Some(report) = outcome? else { return Ok(ExitCode::from(FAILURE)) };
    cleared?;
    report.print(args.output.is_some())?;
    Ok(if report.is_well() { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) })
}

/// Nothing if the manifest of a folder is not valid, which was said.
async fn test(args: &TestArgs, mount: &mut Mount) -> anyhow::Result<Option<Report>> {
    let Some(digest) = layout(args, &mount.layout()).await? else { return Ok(None) };
    mount.up(&digest).await?;
    let image = Image::open(&mount.source())?;
    let mut report = Report::new(&args.what, digest, &image);
    for id in mount.jobs()? {
        if args.only.is_empty() || args.only.contains(&id) {
            report.jobs.push(job(args, mount, &image, &id).await?);
        }
    }
    for id in args.only.iter().chain(args.args.iter().map(|(id, _)| id)) {
        anyhow::ensure!(report.jobs.iter().any(|job| &job.id == id), "the add-on has no entrypoint {id}");
    }
    Ok(Some(report))
}

/// Puts what is to be tested into a layout of its own.
async fn layout(args: &TestArgs, layout: &Path) -> anyhow::Result<Option<Digest>> {
    let folder = PathBuf::from(&args.what);
    if folder.is_dir() {
        let (dir, mut on) = (addon_folder(&folder)?, args.on.clone());
        if dir != folder {
            on.unpacked_at(&folder)?;
        }
        return Ok(build::to_layout(dir, on, layout).await?.map(|image| image.digest));
    }
    anyhow::ensure!(!args.on.changes_images(), "--base, --rootfs, --user, … are for folders, not for images");
    let image: ImageRef =
        args.what.parse().with_context(|| format!("{:?} is neither a folder nor an image", args.what))?;
    let options = registry_access::options(args.on.insecure(), args.on.config())?;
    let (source, digest) = registry_access::open_image(&image, &options).await?;
    let sink = sink::open(&format!("oci:{}", layout.display()).parse::<ImageRef>()?.location, &options)?;
    let copied = push_image(&source, &digest, sink.as_ref(), Some("test"), &CopyProgress::default()).await;
    copied.with_context(|| format!("cannot fetch {image}"))?;
    Ok(Some(digest))
}

/// Where in a folder the add-on is.
fn addon_folder(folder: &Path) -> anyhow::Result<PathBuf> {
    let places = [folder.to_owned(), folder.join("addon"), folder.join("flwd-addon")];
    let found = places.into_iter().find(|place| place.join("manifest.yaml").is_file());
    found.with_context(|| {
        format!(
            "{0} has no manifest.yaml, nor addon/manifest.yaml: `addonfs init` makes one",
            folder.display()
        )
    })
}

async fn job(args: &TestArgs, mount: &Mount, image: &Image, id: &str) -> anyhow::Result<JobReport> {
    let folder = mount.source().join(id);
    let descriptor: Value = serde_json::from_slice(&std::fs::read(folder.join("job.json"))?)?;
    let command: Vec<String> = serde_json::from_value(descriptor["command"].clone())?;
    let mut report = JobReport::new(id, &command);
    report.problems.extend(image.check_program(&command, descriptor["env"]["PATH"].as_str()));
    let spec = ArgSpec::compile(descriptor["argspec"].clone())
        .map_err(|problems| anyhow::anyhow!("{id}: the argspec does not compile again: {problems:?}"))?;
    let own = args.args.iter().find(|(own, _)| own == id).map(|(_, values)| values.clone());
    let values = match own.map_or_else(|| spec.minimal(), Ok) {
        Ok(values) => values,
        Err(problems) => {
            report.problems.push(format!(
                "no arguments could be made up ({}): give them with --args '{id}={{…}}'",
                in_words(&problems)
            ));
            return Ok(report);
        }
    };
    let arguments = mount.arguments(&values)?;
    report.planned(mount.planned(id, &arguments).await?);
    if args.run && report.problems.is_empty() {
        report.ran(mount.ran(id, &arguments).await?);
    }
    Ok(report)
}

fn in_words(problems: &[ArgumentProblem]) -> String {
    let words: Vec<String> =
        problems.iter().map(|problem| format!("{} {}", problem.arg, problem.message)).collect();
    words.join("; ")
}

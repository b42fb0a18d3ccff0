//! `addonfs profile`: what the starts of an image's jobs read, shown or pushed beside the image for other machines.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use super::dirs::Dirs;
use super::registry_access;
use crate::fetch::profile::Profile;
use crate::fetch::sink;
use crate::policy::digest::Digest;
use crate::policy::reference::{ImageRef, PinnedRef};

/// What the starts of an image's jobs read: show it, or push it so that other machines fetch it ahead.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A daemon records what a job reads in its first seconds, once, when it runs it (`prefetch.profiles`), and
fetches that ahead at the next cold start. Pushed, the profile is an artifact that refers to the image; daemons that have none
of their own take it from there. It says only what to fetch first: what is fetched is verified as always.

Examples:
  addonfs profile show localhost:5000/org/backup-tools:v1.0.0
  addonfs profile push localhost:5000/org/backup-tools:v1.0.0"
)]
pub(crate) struct ProfileArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print it, JSON
    Show(Which),
    /// Push it beside the image
    Push(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The image; of an image index the one for this machine's platform
    #[arg(value_name = "REF")]
    image: String,
    /// The daemon's state directory [default: /var/lib/addonfs, for users $XDG_STATE_HOME/addonfs]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Use plain http, or do not check the registry's certificate (loopback needs it not)
    #[arg(long)]
    insecure: bool,
    /// The configuration whose `registries` hold [default: the standard one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Where the profile of an image is kept in the state directory `state`.
pub(crate) fn path(state: &std::path::Path, image: &Digest) -> PathBuf {
    state.join("profiles").join(format!("{}.json", image.hex()))
}

/// Runs the command.
pub(crate) async fn run(args: ProfileArgs) -> anyhow::Result<ExitCode> {
    let (Action::Show(which) | Action::Push(which)) = &args.action;
    let image: ImageRef = which.image.parse()?;
    // A mirror that is behind would lose referrers: they are read where they are written.
    let options = registry_access::options(which.insecure, which.config.as_deref())?.without_mirrors();
    let (source, pinned) = registry_access::open_image(&image, &options).await?;
    let (subject, _) = registry_access::platform_manifest(source.as_ref(), &pinned).await?;
    let profile = recorded(which, &subject.digest)?;
    match &args.action {
        Action::Show(_) => println!("{}", String::from_utf8_lossy(&profile.to_json())),
        Action::Push(_) => {
            let sink = sink::open(&image.location, &options)?;
            let digest = profile.publish(source.as_ref(), sink.as_ref(), &subject).await?;
            println!("{}", PinnedRef { location: image.location, tag: None, digest });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The profile that a daemon of this machine recorded.
fn recorded(which: &Which, image: &Digest) -> anyhow::Result<Profile> {
    let state = which.state_dir.clone().unwrap_or_else(|| Dirs::standard().state);
    let path = path(&state, image);
    let json = std::fs::read(&path).with_context(|| {
        format!(
            "no start of a job of {image} was recorded ({}): run one with prefetch.profiles on",
            path.display()
        )
    })?;
    Ok(Profile::parse(&json, image)?)
}

//! `addonfs pull`: fetches a source's image now, and waits with progress.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::exit::FAILURE;
use super::progress::Bars;
use super::{daemon_status, mounted};

/// Fetch, check and index sources now; wait until they are ready.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  addonfs pull backup
  addonfs pull --all")]
pub(crate) struct PullArgs {
    /// The sources to fetch
    #[arg(required_unless_present = "all")]
    sources: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with = "sources")]
    all: bool,
    /// Print the status of the sources as JSON at the end
    #[arg(long, short, value_parser = ["json"])]
    output: Option<String>,
    /// The mount point [default: the only one there is]
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
}

/// Between two looks at the status.
const LOOK: Duration = Duration::from_millis(100);

/// Runs the command.
pub(crate) fn run(args: PullArgs) -> anyhow::Result<ExitCode> {
    let mount = mounted::chosen(args.mount.as_deref())?;
    let (status, _) = daemon_status::read(&mount)?;
    let wanted: Vec<String> = match args.all {
        true => status.sources.iter().map(|s| s.name.clone()).collect(),
        false => args.sources.clone(),
    };
    for name in &wanted {
        anyhow::ensure!(
            status.sources.iter().any(|s| &s.name == name),
            "there is no source {name:?}: `addonfs status` lists them"
        );
        daemon_status::command(&mount.join(".addonfs/sources").join(name).join("ctl"), "pull")?;
    }
    let mut bars = Bars::new();
    let (status, raw) = loop {
        let (status, raw) = daemon_status::read(&mount)?;
        bars.show(&status);
        let busy = |s: &&daemon_status::SourceLine| wanted.contains(&s.name) && !s.ready && !s.refused();
        if status.sources.iter().find(busy).is_none() {
            break (status, raw);
        }
        std::thread::sleep(LOOK);
    };
    bars.clear();
    let mut code = ExitCode::SUCCESS;
    for source in status.sources.iter().filter(|s| wanted.contains(&s.name) && s.refused()) {
        eprintln!("addonfs: {}", source.why());
        code = ExitCode::from(FAILURE);
    }
    if args.output.is_some() {
        let chosen: Vec<&serde_json::Value> = raw["sources"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|s| s["name"].as_str().is_some_and(|name| wanted.iter().any(|w| w == name)))
            .collect();
        println!("{}", serde_json::to_string(&chosen)?);
    }
    Ok(code)
}

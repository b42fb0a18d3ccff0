//! `addonfs cache`: what lies in the cache, whether it is sound, and what of it goes or stays.
//!
//! Looking needs nobody: `ls` and `verify` read the directory as it is. What changes something is done by the daemon
//! that uses the cache, through `.addonfs/ctl`, or by this process where there is none.

use std::path::PathBuf;
use std::process::ExitCode;

mod inventory;
mod ls;
pub(crate) mod pins;
mod place;
mod prune;
mod verify;

use place::Place;

/// Look at the cache, check it, make room in it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  addonfs cache ls
  addonfs cache verify                   # exit 1 if anything was damaged; it is fetched again when it is needed
  addonfs cache prune                    # what no configured source uses
  addonfs cache prune --to 5GiB
  addonfs cache pin backup               # all of it is fetched, and never evicted")]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
    /// The mount whose cache it is [default: the only one there is]
    #[arg(long, value_name = "DIR", global = true, conflicts_with_all = ["config", "cache_dir"])]
    mount: Option<PathBuf>,
    /// The configuration whose cache it is, mounted or not
    #[arg(long, short, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Where layers are kept, if not where the configuration says
    #[arg(long, value_name = "DIR", global = true)]
    cache_dir: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum CacheCommand {
    /// List the images of the configured sources, and what else lies there
    Ls {
        /// Print the list as JSON
        #[arg(long, short, value_name = "FORMAT", value_parser = ["json"])]
        output: Option<String>,
    },
    /// Hash everything on disk; report and remove what is damaged
    Verify,
    /// Remove what no configured source uses
    Prune {
        /// Then also what was used least recently, until at most so much is left (bytes, or as in 5GiB); pins stay
        #[arg(long, value_name = "SIZE", value_parser = crate::policy::quantity::parse_memory)]
        to: Option<u64>,
        /// All content but what is pinned: of the configured sources only their indexes stay
        #[arg(long, conflicts_with = "to")]
        all: bool,
    },
    /// Fetch all of an image in the background and never evict it
    Pin {
        /// A source's name, or the digest of an image or layer
        what: String,
    },
    /// Take a pin back
    Unpin {
        /// A source's name, or the digest of an image or layer
        what: String,
    },
}

/// Runs the command.
pub(crate) fn run(args: CacheArgs) -> anyhow::Result<ExitCode> {
    super::logging::start(super::logging::Target::Terminal);
    let place = Place::find(args.mount.as_deref(), args.config.as_deref(), args.cache_dir.as_deref())?;
    match args.command {
        CacheCommand::Ls { output } => ls::run(&place, output.is_some()),
        CacheCommand::Verify => verify::run(&place),
        CacheCommand::Prune { to, all } => prune::run(&place, if all { Some(0) } else { to }),
        CacheCommand::Pin { what } => say(&place.hands()?.pin(&place, &what, true)?),
        CacheCommand::Unpin { what } => say(&place.hands()?.pin(&place, &what, false)?),
    }
}

fn say(words: &str) -> anyhow::Result<ExitCode> {
    println!("{}", words.trim_end());
    Ok(ExitCode::SUCCESS)
}

/// Bytes for people: `1.5 GiB`.
fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut scale = 1_u64;
    while unit + 1 < UNITS.len() && bytes / scale >= 1024 {
        scale *= 1024;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        // Tenths, rounded down: what is there is never said to be more.
        _ => format!("{}.{} {}", bytes / scale, bytes % scale * 10 / scale, UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_for_people() {
        for (bytes, words) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(super::human(bytes), words);
        }
    }
}

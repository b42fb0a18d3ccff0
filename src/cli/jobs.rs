//! `addonfs jobs`: the jobs of a mount.

use std::io::Write as _;
use std::process::ExitCode;

use super::job_files::{MountArg, text};
use super::table;

/// List the jobs of a mount.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  addonfs jobs
  addonfs jobs -o json | jq -r '.[] | select(.network == \"all\") | .id'
  addonfs run \"$(addonfs jobs -o json | jq -r '.[0].id')\" --help")]
pub(crate) struct JobsArgs {
    #[command(flatten)]
    mount: MountArg,
    /// Print the descriptors as JSON
    #[arg(long, short, value_name = "FORMAT", value_parser = ["json"])]
    output: Option<String>,
}

/// Prints them.
pub(crate) fn run(args: JobsArgs) -> anyhow::Result<ExitCode> {
    let jobs = args.mount.tree()?.jobs()?;
    let mut out = std::io::stdout().lock();
    if args.output.is_some() {
        writeln!(out, "{}", serde_json::to_string_pretty(&jobs)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<[String; 4]> = jobs
        .iter()
        .map(|job| {
            let addon = format!("{} {}", text(job, "/addon/name"), text(job, "/addon/version"));
            let about =
                [text(job, "/description"), text(job, "/name")].into_iter().find(|words| !words.is_empty());
            [text(job, "/id"), addon, text(job, "/network"), about.unwrap_or_default()]
        })
        .collect();
    out.write_all(table::layout(["JOB", "ADD-ON", "NETWORK", "DESCRIPTION"], &rows).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

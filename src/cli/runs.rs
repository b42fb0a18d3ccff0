//! `addonfs runs`: the runs that the caller may see.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::job_files::{MountArg, Record};
use super::table;

/// List runs, the oldest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  addonfs runs
  addonfs runs tools/backup/backup
  addonfs runs -o json | jq -r '.[] | select(.state == \"failed\") | [.id, .error] | @tsv'")]
pub(crate) struct RunsArgs {
    #[command(flatten)]
    mount: MountArg,
    /// Only the runs of this job
    #[arg(value_name = "JOB")]
    job: Option<String>,
    /// Print the records as JSON
    #[arg(long, short, value_name = "FORMAT", value_parser = ["json"])]
    output: Option<String>,
}

/// Prints them.
pub(crate) fn run(args: RunsArgs) -> anyhow::Result<ExitCode> {
    let runs = args.mount.tree()?.runs(args.job.as_deref())?;
    let mut out = std::io::stdout().lock();
    if args.output.is_some() {
        let records: Vec<Value> = runs.into_iter().map(|run| run.record).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&records)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<[String; 7]> = runs.iter().map(row).collect();
    let header = ["RUN", "JOB", "NAME", "STATE", "EXIT", "STARTED", "TOOK"];
    out.write_all(table::layout(header, &rows).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn row(run: &Record) -> [String; 7] {
    // To the second: 2026-01-02T03:04:05Z.
    let started = run.text("/started_at");
    let started = started.split_once('.').map_or(started.clone(), |(second, _)| format!("{second}Z"));
    let took =
        run.record["duration_ms"].as_u64().map(Duration::from_millis).map(crate::policy::duration::render);
    let [id, job, name, state, exit] =
        ["/id", "/job", "/name", "/state", "/exit_code"].map(|pointer| run.text(pointer));
    [id, job, name, state, exit, started, took.unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_what_there_is() {
        let record = |value: Value| Record { folder: "x".into(), record: value };
        let ended = serde_json::json!({"id": "r1", "job": "a/b", "name": "n", "state": "failed", "exit_code": 3,
            "started_at": "2026-01-02T03:04:05.25Z", "duration_ms": 61_500});
        assert_eq!(row(&record(ended)), ["r1", "a/b", "n", "failed", "3", "2026-01-02T03:04:05Z", "1m1.5s"]);
        let created =
            serde_json::json!({"id": "r1", "job": "a/b", "name": "n", "state": "created", "exit_code": null});
        assert_eq!(row(&record(created)), ["r1", "a/b", "n", "created", "", "", ""]);
    }
}

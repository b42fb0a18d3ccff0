//! `addonfs runs`: the runs that the caller may see.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::job_files::{MountArg, Record};
use super::table;
use crate::jobs::RunState;

/// List runs, the oldest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  addonfs runs
  addonfs runs tools/backup/backup
  addonfs runs --state queued,running     # what is going on
  addonfs runs --since 24h --state failed,timeout,lost
  addonfs runs --source backup --last 10
  addonfs runs -o json | jq -r '.[] | select(.state == \"failed\") | [.id, .error] | @tsv'")]
pub(crate) struct RunsArgs {
    #[command(flatten)]
    mount: MountArg,
    /// Only the runs of this job
    #[arg(value_name = "JOB")]
    job: Option<String>,
    /// Only runs in these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = state)]
    state: Vec<RunState>,
    /// Only runs of jobs of this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only runs made so long ago at most: 90s, 24h
    #[arg(long, value_name = "DURATION", value_parser = crate::policy::duration::parse)]
    since: Option<Duration>,
    /// Only the newest so many of them
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// Print the records as JSON
    #[arg(long, short, value_name = "FORMAT", value_parser = ["json"])]
    output: Option<String>,
}

/// Prints them.
pub(crate) fn run(args: RunsArgs) -> anyhow::Result<ExitCode> {
    let mut runs = args.mount.tree()?.runs(args.job.as_deref())?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = args.since.map(|long| since.saturating_sub(long));
    runs.retain(|run| is_meant(&args, since, &run.record));
    let surplus = args.last.map_or(0, |last| runs.len().saturating_sub(last));
    runs.drain(..surplus);
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

/// Whether the filters let a record pass; `since` is the earliest moment since 1970.
fn is_meant(args: &RunsArgs, since: Option<Duration>, record: &Value) -> bool {
    let state = || args.state.iter().any(|state| record["state"] == state.as_str());
    let source = |name: &String| record["origin"]["source_name"] == name.as_str();
    let made = record["created_ms"].as_u64().map(Duration::from_millis);
    (args.state.is_empty() || state())
        && args.source.as_ref().is_none_or(source)
        && since.is_none_or(|since| made.is_some_and(|made| made >= since))
}

fn state(word: &str) -> Result<RunState, String> {
    let known = RunState::ALL.into_iter().find(|state| state.as_str() == word);
    known.ok_or_else(|| {
        let words: Vec<&str> = RunState::ALL.iter().map(|state| state.as_str()).collect();
        format!("a run is {}", words.join(", "))
    })
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
    fn filters_are_all_meant() {
        use clap::Parser;
        #[derive(Debug, Parser)]
        struct Program {
            #[command(flatten)]
            args: RunsArgs,
        }
        let record =
            serde_json::json!({"state": "failed", "created_ms": 5_000, "origin": {"source_name": "s"}});
        let cases = [
            ("", true),
            ("--state failed", true),
            ("--state running,failed", true),
            ("--state running", false),
            ("--source s", true),
            ("--source t", false),
            ("--state failed --source t", false),
        ];
        for (words, meant) in cases {
            let words = ["runs"].into_iter().chain(words.split_whitespace());
            let args = Program::try_parse_from(words.clone()).unwrap().args;
            assert_eq!(is_meant(&args, None, &record), meant, "{:?}", words.collect::<Vec<_>>());
            assert!(!is_meant(&args, Some(Duration::from_secs(6)), &record));
        }
        assert!(Program::try_parse_from(["runs", "--state", "dead"]).is_err());
        assert!(Program::try_parse_from(["runs", "--since", "yesterday"]).is_err());
    }

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

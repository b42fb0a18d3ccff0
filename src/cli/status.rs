//! `addonfs status`: how the daemon and its sources are.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{daemon_status, mounted};

/// Show how a mount and its sources are.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  addonfs status
  addonfs status -o json | jq '.sources[] | select(.ready | not)'")]
pub(crate) struct StatusArgs {
    /// Print the whole status as JSON
    #[arg(long, short, value_parser = ["json"])]
    output: Option<String>,
    /// The mount point [default: the only one there is]
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let mount = mounted::chosen(args.mount.as_deref())?;
    let (status, raw) = daemon_status::read(&mount)?;
    if args.output.is_some() {
        println!("{}", serde_json::to_string_pretty(&raw)?);
        return Ok(ExitCode::SUCCESS);
    }
    let word = |pointer: &str| raw.pointer(pointer).and_then(|v| v.as_str()).unwrap_or("-").to_owned();
    println!("mount     {}   (addonfs {}, pid {})", mount.display(), word("/version"), status.pid);
    println!("profile   {} (by {})", word("/policy/profile"), word("/policy/profile_from"));
    println!("reading   {}", word("/reading/how"));
    println!("survival  {}", word("/survival/how"));
    println!("runtime   {}", word("/runtime/how"));
    let count = |pointer: &str| raw.pointer(pointer).and_then(serde_json::Value::as_u64).unwrap_or(0);
    println!("runs      {} running, {} queued", count("/runs/running"), count("/runs/queued"));
    println!("cache     {} of {} bytes", count("/store/bytes"), count("/store/quota_bytes"));
    if let Some(warning) = raw.pointer("/store/warning").and_then(|v| v.as_str()) {
        println!("warning   {warning}");
    }
    println!();
    println!("{:<20} {:<24} {:<10} MESSAGE", "SOURCE", "MOUNT PATH", "STATE");
    for source in &status.sources {
        let message = match (&source.code, &source.message, source.progress) {
            (Some(code), Some(message), _) => format!("{code}: {message}"),
            (_, _, Some(p)) if !source.ready => format!("{} of {} bytes", p.done, p.total),
            (_, Some(message), _) => message.clone(),
            _ => String::new(),
        };
        println!("{:<20} {:<24} {:<10} {message}", source.name, source.mount_path, source.phase);
    }
    Ok(ExitCode::SUCCESS)
}

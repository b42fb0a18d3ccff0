//! `addonfs sources`: add-ons that come and go while the daemon runs.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::api_client::{ApiClient, ServerArgs};
use super::job_files::text;
use super::table;
use crate::policy::rules::Profile;

/// Add, list and remove sources without touching the configuration.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Sources that are added this way are there again after a restart, behind those of the configuration.

Examples:
  addonfs sources add ghcr.io/org/backup-tools:v1 --trusted --mount-path tools/backup
  addonfs sources list
  addonfs sources reload backup-tools       # what does the tag name now?
  addonfs sources remove backup-tools"
)]
pub(crate) struct SourcesArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: SourcesCommand,
}

#[derive(Debug, Subcommand)]
enum SourcesCommand {
    /// Add a source, or replace the one that was added under its name
    Add(Box<AddArgs>),
    /// List all sources, those of the configuration, too
    List(OutputArg),
    /// Show one source, as JSON
    Get(NameArg),
    /// Remove a source that was added
    Remove(NameArg),
    /// Ask again what a source's tag names, and take that
    Reload(NameArg),
}

#[derive(Debug, clap::Args)]
struct OutputArg {
    /// Print JSON
    #[arg(long, short, value_name = "FORMAT", value_parser = ["json"])]
    output: Option<String>,
}

#[derive(Debug, clap::Args)]
struct NameArg {
    /// The source's name
    #[arg(value_name = "NAME", value_parser = plain_name)]
    name: String,
}

#[derive(Debug, clap::Args)]
struct AddArgs {
    /// The image: host/repository:tag or host/repository@sha256:…; what a tag names now is pinned
    #[arg(value_name = "REF")]
    reference: String,
    /// Consent to showing it and running its jobs; its signature is checked all the same
    #[arg(long)]
    trusted: bool,
    /// Its name [default: the last element of REF]
    #[arg(long, value_parser = plain_name)]
    name: Option<String>,
    /// Where it is shown [default: its name]
    #[arg(long, value_name = "PATH")]
    mount_path: Option<String>,
    /// When layers are fetched: on-add, on-run, on-startup, never
    #[arg(long, value_name = "WHEN")]
    pull_policy: Option<String>,
    /// Whether other jobs may mount it: none, read, readwrite
    #[arg(long, value_name = "HOW")]
    expose: Option<String>,
    /// Demand a valid signature whatever the profile says
    #[arg(long)]
    verify_signatures: bool,
    /// Judge it under this profile
    #[arg(long)]
    profile: Option<Profile>,
    /// Keep all of its content in the cache
    #[arg(long)]
    pin: bool,
    /// Only this key counts: its name in the policy, or a file that holds it; again for more
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    #[command(flatten)]
    output: OutputArg,
}

/// Names stand in paths of requests.
fn plain_name(name: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match !name.is_empty() && name.chars().all(plain) {
        true => Ok(name.to_owned()),
        false => Err("a name is letters, digits, '.', '_' and '-'".to_owned()),
    }
}

/// Runs the command.
pub(crate) async fn run(args: SourcesArgs) -> anyhow::Result<ExitCode> {
    let client = args.server.client()?;
    let mut out = std::io::stdout().lock();
    match args.command {
        SourcesCommand::Add(args) => {
            let (status, source) = client.ask(Method::POST, "/sources", Some(&args.body()?)).await?;
            match args.output.output {
                Some(_) => writeln!(out, "{source:#}")?,
                None => {
                    let verb = if status == StatusCode::CREATED { "added" } else { "replaced" };
                    tell(&mut out, verb, &source)?;
                }
            }
        }
        SourcesCommand::List(output) => list(&client, &output, &mut out).await?,
        SourcesCommand::Get(args) => {
            let (_, source) = client.ask(Method::GET, &format!("/sources/{}", args.name), None).await?;
            writeln!(out, "{source:#}")?;
        }
        SourcesCommand::Remove(args) => {
            client.ask(Method::DELETE, &format!("/sources/{}", args.name), None).await?;
            writeln!(out, "removed {}", args.name)?;
        }
        SourcesCommand::Reload(args) => {
            let path = format!("/sources/{}:reload", args.name);
            let (_, source) = client.ask(Method::POST, &path, None).await?;
            tell(&mut out, "reloaded", &source)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(out: &mut impl std::io::Write, verb: &str, source: &Value) -> anyhow::Result<()> {
    let [name, image, phase] = ["/name", "/resolved_ref", "/status/phase"].map(|at| text(source, at));
    writeln!(out, "{verb} {name}: {image} ({phase})")?;
    for finding in source["findings"].as_array().into_iter().flatten() {
        eprintln!("addonfs: {}: {}", text(finding, "/code"), text(finding, "/message"));
    }
    Ok(())
}

async fn list(client: &ApiClient, output: &OutputArg, out: &mut impl std::io::Write) -> anyhow::Result<()> {
    let (_, answer) = client.ask(Method::GET, "/sources", None).await?;
    let sources = answer["sources"].as_array().context("the daemon's answer has no sources")?;
    if output.output.is_some() {
        return Ok(writeln!(out, "{:#}", answer["sources"])?);
    }
    let row = |source: &Value| {
        ["/name", "/origin", "/status/phase", "/pull_policy", "/mountPath", "/resolved_ref"]
            .map(|at| text(source, at))
    };
    let rows: Vec<[String; 6]> = sources.iter().map(row).collect();
    let header = ["NAME", "FROM", "PHASE", "PULL", "MOUNTPATH", "IMAGE"];
    Ok(out.write_all(table::layout(header, &rows).as_bytes())?)
}

impl AddArgs {
    fn body(&self) -> anyhow::Result<Value> {
        let mut body = Map::new();
        let mut set = |key: &str, value: Value| body.insert(key.to_owned(), value);
        set("type", "oci".into());
        set("ref", self.reference.as_str().into());
        set("trusted", self.trusted.into());
        set("verify_signatures", self.verify_signatures.into());
        set("pin", self.pin.into());
        let profile = self.profile.map(|profile| profile.to_string());
        for (key, value) in [
            ("name", &self.name),
            ("mountPath", &self.mount_path),
            ("pull_policy", &self.pull_policy),
            ("expose", &self.expose),
            ("profile", &profile),
        ] {
            if let Some(value) = value {
                set(key, value.as_str().into());
            }
        }
        if !self.keys.is_empty() {
            let keys = self.keys.iter().map(|key| key_of(key)).collect::<anyhow::Result<Vec<String>>>()?;
            set("trust", json!({"keys": keys}));
        }
        Ok(Value::Object(body))
    }
}

/// A file's content, or a name that the daemon's policy knows.
fn key_of(key: &str) -> anyhow::Result<String> {
    match Path::new(key).is_file() {
        true => std::fs::read_to_string(key).with_context(|| format!("cannot read the key {key}")),
        false => Ok(key.to_owned()),
    }
}

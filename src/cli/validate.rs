//! `addonfs validate`: what is wrong with manifests, all of it, before anything is built.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::exit::FAILURE;
use crate::policy::addon::{self, AddonManifest, Problem};
use crate::policy::yaml::MAX_BYTES;

/// Check add-on manifests: every problem with its line, column, JSON pointer and a hint.
#[derive(Debug, clap::Args)]
#[command(after_help = "Both dialects are read: entrypoints, and apiVersion: flwd.addon/v1. Problems come as
FILE:LINE:COLUMN: error: …, which editors and CI systems understand. `addonfs schema` prints a JSON Schema.

Exit codes: 0 all are valid; 1 one is not (with --strict also: one has warnings); 2 one could not be read.

Examples:
  addonfs validate ./sample/manifest.yaml
  addonfs validate ./sample                          # the folder that `addonfs build` takes
  git show HEAD:addon/manifest.yaml | addonfs validate -
  addonfs validate -o json */manifest.yaml | jq -r '.[].problems[].pointer'")]
pub(crate) struct ValidateArgs {
    /// Manifests, folders with a manifest.yaml, or - for stdin
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Let warnings fail, too
    #[arg(long)]
    strict: bool,
    /// Print what was found as JSON
    #[arg(long, short, value_name = "FORMAT", value_parser = ["json"])]
    output: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: ValidateArgs) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    let mut found = Vec::new();
    let mut out = std::io::stdout().lock();
    for file in &args.files {
        let (name, bytes) = read(file)?;
        let parsed = AddonManifest::parse(&bytes);
        if !parsed.as_ref().is_ok_and(|manifest| !args.strict || manifest.warnings.is_empty()) {
            code = ExitCode::from(FAILURE);
        }
        if args.output.is_some() {
            found.push(as_json(&name, &parsed));
        } else {
            out.write_all(in_words(&name, &parsed).as_bytes())?;
        }
    }
    if args.output.is_some() {
        writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
    }
    Ok(code)
}

/// The manifest's bytes and what it is called in messages.
fn read(file: &Path) -> anyhow::Result<(String, Vec<u8>)> {
    // One byte more than the parser takes, so that it says itself that there are too many.
    let most = MAX_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin().take(most).read_to_end(&mut bytes).context("cannot read stdin")?;
        return Ok(("<stdin>".to_owned(), bytes));
    }
    let path = if file.is_dir() { file.join("manifest.yaml") } else { file.to_owned() };
    std::fs::File::open(&path)
        .and_then(|file| file.take(most).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok((path.display().to_string(), bytes))
}

fn in_words(name: &str, parsed: &Result<AddonManifest, Vec<Problem>>) -> String {
    match parsed {
        Ok(manifest) => {
            let warnings: String = manifest.warnings.iter().map(|one| line(name, "warning", one)).collect();
            let ids: Vec<&str> = manifest.entrypoints.iter().map(|entry| entry.id.as_str()).collect();
            format!("{warnings}{name}: {} {}: {}\n", manifest.name, manifest.version, ids.join(", "))
        }
        Err(problems) => {
            let lines: String = problems.iter().map(|one| line(name, "error", one)).collect();
            format!("{lines}{name}: {}: {} problems\n", addon::denied(problems).code, problems.len())
        }
    }
}

/// One problem as compilers write it.
fn line(name: &str, kind: &str, problem: &Problem) -> String {
    let place = match problem.line {
        0 => name.to_owned(),
        line => format!("{name}:{line}:{}", problem.column),
    };
    let placeless = Problem { line: 0, ..problem.clone() };
    format!("{place}: {kind}: {}\n", placeless.to_string().replace('\n', " "))
}

fn as_json(name: &str, parsed: &Result<AddonManifest, Vec<Problem>>) -> Value {
    match parsed {
        Ok(manifest) => json!({
            "file": name,
            "valid": true,
            "dialect": manifest.dialect,
            "name": manifest.name,
            "version": manifest.version,
            "entrypoints": manifest.entrypoints.iter().map(|entry| &entry.id).collect::<Vec<_>>(),
            "problems": [],
            "warnings": manifest.warnings,
        }),
        Err(problems) => json!({
            "file": name,
            "valid": false,
            "code": addon::denied(problems).code.as_str(),
            "problems": problems,
            "warnings": [],
        }),
    }
}

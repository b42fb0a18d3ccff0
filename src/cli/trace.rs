//! `addonfs trace`: where a run, a job or a file comes from, down to the signature.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::job_files::{MountArg, Tree, text};

/// Trace a run, a job, a source or a file of the mount back to its image, its signature and its revision.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  addonfs trace r17-3f9a2c41                                # a run: what it ran, for whom, under which policy
  addonfs trace tools/backup/backup                         # a job
  addonfs trace /mnt/addons/tools/backup/rootfs/bin/tool    # a file
  addonfs trace -o json nightly | jq -r .origin.addon_image_digest")]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    mount: MountArg,
    /// A run (id, JOB/NAME or a name), a job, a source, or a path below the mount
    #[arg(value_name = "WHAT")]
    what: String,
    /// Print all that is known as JSON
    #[arg(long, short, value_name = "FORMAT", value_parser = ["json"])]
    output: Option<String>,
}

/// Prints it.
pub(crate) fn run(args: TraceArgs) -> anyhow::Result<ExitCode> {
    let tree = args.mount.tree()?;
    let traced = trace(&tree, &args.what)?;
    let mut out = std::io::stdout().lock();
    match args.output {
        Some(_) => writeln!(out, "{}", serde_json::to_string_pretty(&traced)?)?,
        None => out.write_all(words(&traced).as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Everything known of `what`; every field is there always.
fn trace(tree: &Tree, what: &str) -> anyhow::Result<Value> {
    let status = tree.status()?;
    if let Ok(folder) = tree.run(what) {
        let run = tree.record(&folder)?;
        let job = text(&run, "/job");
        let source = source_named(&status, &text(&run, "/origin/source_name"));
        return Ok(json!({
            "kind": "run", "run": run, "job": job, "path": null, "origin": run["origin"], "image": run["image"],
            "trust": run["trust"], "source": source,
        }));
    }
    if let Ok(folder) = tree.job(what) {
        let job = tree.descriptor(&folder)?;
        let source = source_named(&status, &text(&job, "/source"));
        return Ok(json!({
            "kind": "job", "run": null, "job": what, "path": null, "origin": job["origin"], "image": job["image"],
            "trust": job["trust"], "source": source,
        }));
    }
    let (kind, path, source) = match source_named(&status, what) {
        Value::Null => ("file", json!(what), source_of(tree, &status, what)?),
        source => ("source", Value::Null, source),
    };
    let addon = tree.addon(&text(&source, "/mount_path")).unwrap_or_default();
    Ok(json!({
        "kind": kind, "run": null, "job": null, "path": path, "origin": addon["origin"], "image": source["image"],
        "trust": source["verification"], "source": source,
    }))
}

fn source_named(status: &Value, name: &str) -> Value {
    let sources = status["sources"].as_array().into_iter().flatten();
    sources.into_iter().find(|source| source["name"] == name).cloned().unwrap_or_default()
}

/// The source whose mount path the path is below.
fn source_of(tree: &Tree, status: &Value, what: &str) -> anyhow::Result<Value> {
    let below = tree.path_below(Path::new(what)).with_context(|| {
        format!("{what}: no run, no job, no source, and no path below {}", tree.place().display())
    })?;
    let sources = status["sources"].as_array().into_iter().flatten();
    let holds = |source: &&Value| match text(source, "/mount_path").as_str() {
        "" => false,
        "." => true,
        at => below.starts_with(at),
    };
    match sources.filter(holds).max_by_key(|source| text(source, "/mount_path").len()) {
        Some(source) => Ok(source.clone()),
        None => bail!("{what} belongs to no source"),
    }
}

/// One line a link of the chain.
fn words(traced: &Value) -> String {
    let mut out = String::new();
    let mut line = |name: &str, words: String| {
        // Annotations are strangers' text.
        let words: String = words.chars().filter(|c| !c.is_control()).collect();
        if !words.trim().is_empty() {
            let _ = writeln!(out, "{name:<9} {words}");
        }
    };
    let at = |pointer: &str| text(traced, pointer);
    if traced["run"].is_object() {
        let exit = at("/run/exit_code");
        let exit = if exit.is_empty() { exit } else { format!(", exit code {exit}") };
        line(
            "run",
            format!("{} ({}/{}): {}{exit}", at("/run/id"), at("/job"), at("/run/name"), at("/run/state")),
        );
        line("by", format!("uid {}, at {}", at("/run/who/uid"), at("/run/created_at")));
        let policy = &traced["run"]["policy"];
        if policy.is_object() {
            let findings = policy["findings"].as_array().map_or(0, Vec::len);
            line("policy", format!("profile {}, {findings} findings", text(policy, "/profile")));
        }
    } else {
        line("job", at("/job"));
        line("path", at("/path"));
    }
    line("add-on", format!("{} {}", at("/origin/addon_name"), at("/origin/addon_version")));
    line("source", format!("{} at {}", at("/source/name"), at("/source/mount_path")));
    line("image", at("/image"));
    line("digest", at("/origin/addon_image_digest"));
    line("verified", verified(&traced["trust"]));
    let revision = [at("/origin/origin_revision"), at("/origin/origin_source")];
    line("revision", revision.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" of "));
    let (ran, now) = (at("/origin/addon_image_digest"), at("/source/digest"));
    if traced["run"].is_object() && !now.is_empty() && now != ran {
        line("now", format!("the source is at {now}"));
    }
    out
}

/// Who vouches for the image.
fn verified(trust: &Value) -> String {
    let by = &trust["by"];
    let who = ["name", "subject", "statement"].map(|key| text(&by[key], ""));
    let who = who.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
    match (text(trust, "/state"), text(by, "/kind")) {
        (state, kind) if kind.is_empty() => state,
        (state, kind) => format!("{state} by {kind} {who}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_told_from_its_caller_to_its_revision() {
        let digest = "sha256:aa";
        let traced = json!({
            "kind": "run", "job": "a/b", "path": null, "image": "localhost/x",
            "run": {"id": "r1", "name": "n", "state": "failed", "exit_code": 3, "who": {"uid": 7}, "created_at": "then",
                "policy": {"profile": "secure", "findings": []}},
            "origin": {"addon_name": "tools", "addon_version": "1.0.0", "addon_image_digest": digest,
                "origin_revision": "main@sha1:1", "origin_source": "https://x"},
            "trust": {"state": "verified", "by": {"kind": "key", "name": "release"}},
            "source": {"name": "s", "mount_path": "a", "digest": "sha256:bb"},
        });
        let expected = "run       r1 (a/b/n): failed, exit code 3\nby        uid 7, at then\n\
            policy    profile secure, 0 findings\nadd-on    tools 1.0.0\nsource    s at a\nimage     localhost/x\n\
            digest    sha256:aa\nverified  verified by key release\nrevision  main@sha1:1 of https://x\n\
            now       the source is at sha256:bb\n";
        assert_eq!(words(&traced), expected);
    }
}

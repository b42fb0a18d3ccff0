//! A job: what `job.json` and `argspec.json` say of an entrypoint, and the listings of all jobs.
//!
//! `job.json` (every field is there always; the names are API):
//!
//! | field | what |
//! |---|---|
//! | `schema` | `addonfs.job/v1` |
//! | `id`, `entrypoint` | the job's path below the mount point; its last element |
//! | `name`, `description` | of the entrypoint (`description` may be `null`) |
//! | `source`, `mount_path` | where it comes from, where the add-on is shown |
//! | `addon` | `name`, `version`, `description`, `metadata` |
//! | `executor` | always `container` |
//! | `command` | exec form; of a v1 manifest the image's ENTRYPOINT and the job's id |
//! | `argspec` | the JSON Schema of the arguments |
//! | `secrets` | names of the arguments that are secrets |
//! | `limits` | effective: `cpu_millis`, `memory_bytes`, `timeout_ms` (`null` is unlimited), `pids`, `tmp_bytes`, `out_bytes`, `log_bytes` |
//! | `resources` | the manifest's hints: `cpu_millis`, `memory_bytes`, `timeout_ms` |
//! | `findings` | `[{code, message}]`: hints that were clamped |
//! | `env` | the manifest's variables |
//! | `network` | `none` or `all`, as the manifest asks |
//! | `annotations` | passed through |
//! | `image`, `trust` | the reference in words; what was verified and by which key |
//! | `origin` | see `record.json` |

use std::sync::Arc;

use serde_json::{Value, json};

use super::AddonJobs;
use super::options::RunLimits;
use super::record::pretty;
use crate::policy::addon::{Entrypoint, Resources};

/// A job that is installed.
#[derive(Debug)]
pub struct Job {
    id: String,
    pub(super) addon: Arc<AddonJobs>,
    pub(super) entry: Entrypoint,
    descriptor_json: Arc<[u8]>,
    /// The same on one line, for listings: rendering ten thousand of them at every look took half a second.
    descriptor_line: Box<[u8]>,
    argspec_json: Arc<[u8]>,
}

/// Something worth knowing that is no refusal.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// A word for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl Finding {
    /// A hint was cut to its ceiling.
    pub(super) fn clamped(message: String) -> Self {
        Self { code: "resources.clamped", message }
    }
}

impl Job {
    pub(super) fn new(
        addon: &Arc<AddonJobs>,
        entry: &Entrypoint,
        ceilings: Resources,
        limits: RunLimits,
    ) -> Self {
        let id = if addon.mount_path.is_empty() {
            entry.id.clone()
        } else {
            format!("{}/{}", addon.mount_path, entry.id)
        };
        let (effective, cuts) = entry.resources.clamped(ceilings);
        let findings: Vec<Finding> = cuts.into_iter().map(Finding::clamped).collect();
        let descriptor = describe(&id, addon, entry, effective, &findings, limits);
        Self {
            descriptor_json: pretty(&descriptor).into(),
            descriptor_line: descriptor.to_string().into_bytes().into(),
            argspec_json: pretty(&entry.argspec.schema).into(),
            id,
            addon: Arc::clone(addon),
            entry: entry.clone(),
        }
    }

    /// Its path below the mount point.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The name of its folder: the entrypoint's id.
    pub fn entrypoint(&self) -> &str {
        &self.entry.id
    }

    /// The name of its source.
    pub fn source(&self) -> &str {
        &self.addon.source
    }

    /// The add-on's path below the mount point; empty for `.`.
    pub fn mount_path(&self) -> &str {
        &self.addon.mount_path
    }

    /// The add-on that it belongs to.
    pub fn addon(&self) -> &Arc<AddonJobs> {
        &self.addon
    }

    /// Content of `job.json`.
    pub fn descriptor_json(&self) -> Arc<[u8]> {
        Arc::clone(&self.descriptor_json)
    }

    /// `job.json` as a value.
    pub fn descriptor(&self) -> Value {
        serde_json::from_slice(&self.descriptor_line).unwrap_or_default()
    }

    /// `job.json` on one line, without a newline.
    pub fn descriptor_line(&self) -> &[u8] {
        &self.descriptor_line
    }

    /// Content of `argspec.json`.
    pub fn argspec_json(&self) -> Arc<[u8]> {
        Arc::clone(&self.argspec_json)
    }

    /// How it is called, for people.
    pub fn help(&self) -> String {
        let mut text = self.entry.argspec.help(&format!("{}/run", self.id));
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }
}

fn describe(
    id: &str,
    addon: &AddonJobs,
    entry: &Entrypoint,
    effective: Resources,
    findings: &[Finding],
    limits: RunLimits,
) -> Value {
    json!({
        "schema": "addonfs.job/v1",
        "id": id,
        "entrypoint": entry.id,
        "name": entry.name,
        "description": entry.description,
        "source": addon.source,
        "mount_path": addon.mount_path,
        "addon": {
            "name": addon.manifest.name,
            "version": addon.manifest.version,
            "description": addon.manifest.description,
            "metadata": addon.manifest.metadata,
        },
        "executor": "container",
        "command": entry.argv(&addon.image_config),
        "argspec": entry.argspec.schema,
        "secrets": entry.argspec.secrets,
        "limits": limits_json(effective, limits),
        "resources": resources_json(entry.resources),
        "findings": findings,
        "env": entry.env,
        "network": entry.network,
        "annotations": entry.annotations,
        "image": addon.image,
        "trust": addon.trust,
        "origin": addon.origin,
    })
}

/// The `limits` object of descriptors, plans and records.
pub(super) fn limits_json(effective: Resources, limits: RunLimits) -> Value {
    json!({
        "cpu_millis": effective.cpu_millis,
        "memory_bytes": effective.memory_bytes,
        "timeout_ms": effective.timeout.map(millis),
        "pids": limits.pids,
        "tmp_bytes": limits.tmp_bytes,
        "out_bytes": limits.out_bytes,
        "log_bytes": limits.log_bytes,
    })
}

fn resources_json(resources: Resources) -> Value {
    json!({
        "cpu_millis": resources.cpu_millis,
        "memory_bytes": resources.memory_bytes,
        "timeout_ms": resources.timeout.map(millis),
    })
}

/// A duration in milliseconds; what is longer than 2^64 of them is as good as that.
pub(super) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Content of `jobs.json`: an array of descriptors, one a line, in the order of job ids.
pub(super) fn list_json<'a>(jobs: impl Iterator<Item = &'a Arc<Job>> + Clone) -> Vec<u8> {
    if jobs.clone().next().is_none() {
        return b"[]\n".to_vec();
    }
    join(jobs, b"[\n", b",\n", b"\n]\n")
}

/// Content of `jobs.jsonl`: one descriptor a line.
pub(super) fn list_jsonl<'a>(jobs: impl Iterator<Item = &'a Arc<Job>> + Clone) -> Vec<u8> {
    if jobs.clone().next().is_none() {
        return Vec::new();
    }
    join(jobs, b"", b"\n", b"\n")
}

/// In one piece of memory of the right size: a list may be of tens of megabytes.
fn join<'a>(
    jobs: impl Iterator<Item = &'a Arc<Job>> + Clone,
    before: &[u8],
    between: &[u8],
    after: &[u8],
) -> Vec<u8> {
    let lines = jobs.clone().map(|job| job.descriptor_line.len() + between.len()).sum::<usize>();
    let mut text = Vec::with_capacity(before.len() + lines + after.len());
    text.extend_from_slice(before);
    for (number, job) in jobs.enumerate() {
        if number > 0 {
            text.extend_from_slice(between);
        }
        text.extend_from_slice(&job.descriptor_line);
    }
    text.extend_from_slice(after);
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::addon::{AddonManifest, Origin};
    use crate::policy::digest::Digest;
    use crate::policy::image::ImageConfig;

    fn jobs(mount_path: &str) -> Vec<Arc<Job>> {
        let yaml = "name: tools\nversion: 1.0.0\nentrypoints:\n  - id: b\n    command: [/b]\n    annotations: {flowd.db.required: \"yes\"}\n    resources: {cpu: \"4\", timeout: 1m}\n  - id: a\n    command: [/a]\n    argspec: {type: object, properties: {token: {type: string, format: secret}}}\n";
        let manifest = Arc::new(AddonManifest::parse(yaml.as_bytes()).unwrap());
        let addon = Arc::new(AddonJobs {
            source: "tools".into(),
            mount_path: mount_path.into(),
            origin: Origin {
                source_kind: "oci".into(),
                source_name: "tools".into(),
                addon_name: "tools".into(),
                addon_version: "1.0.0".into(),
                addon_image_digest: Digest::of(b"x"),
                origin_revision: None,
                origin_source: None,
            },
            manifest: Arc::clone(&manifest),
            image_config: Arc::new(ImageConfig::default()),
            tree: Digest::of(b"x"),
            image: "x".into(),
            trust: Value::Null,
            refused_under: Vec::new(),
        });
        let ceilings = Resources { cpu_millis: Some(500), ..Resources::default() };
        let job = |entry| Arc::new(Job::new(&addon, entry, ceilings, RunLimits::default()));
        manifest.entrypoints.iter().map(job).collect()
    }

    #[test]
    fn fields_are_those_of_the_table() {
        let jobs = jobs("t/x");
        let job: Value = serde_json::from_slice(&jobs[0].descriptor_json()).unwrap();
        let keys: Vec<&str> = job.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = [
            "schema",
            "id",
            "entrypoint",
            "name",
            "description",
            "source",
            "mount_path",
            "addon",
            "executor",
            "command",
            "argspec",
            "secrets",
            "limits",
            "resources",
            "findings",
            "env",
            "network",
            "annotations",
            "image",
            "trust",
            "origin",
        ];
        assert_eq!(keys, expected);
        assert_eq!((&job["id"], &job["network"]), (&"t/x/b".into(), &"none".into()));
        assert_eq!(
            (&job["limits"]["cpu_millis"], &job["resources"]["cpu_millis"]),
            (&500.into(), &4000.into())
        );
        assert_eq!(job["limits"]["timeout_ms"], millis(Duration::from_secs(60)));
        assert_eq!(job["findings"][0]["code"], "resources.clamped");
        assert_eq!(job["annotations"]["flowd.db.required"], "yes");
        let other = jobs[1].descriptor();
        assert_eq!(other["secrets"], json!(["token"]));
        let argspec: Value = serde_json::from_slice(&jobs[1].argspec_json()).unwrap();
        assert_eq!(argspec, other["argspec"]);
    }

    #[test]
    fn a_mount_path_of_dot_has_ids_without_a_slash() {
        assert_eq!(jobs("")[0].id(), "b");
    }

    #[test]
    fn listings_hold_every_job_once() {
        let jobs = jobs("t");
        let array: Vec<Value> = serde_json::from_slice(&list_json(jobs.iter())).unwrap();
        let text = list_jsonl(jobs.iter());
        let lines: Vec<Value> =
            text.split_inclusive(|b| *b == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect();
        assert_eq!((array.len(), &array), (2, &lines));
        assert!(text.ends_with(b"\n"));
        assert_eq!(list_json([].iter()), b"[]\n");
    }
}

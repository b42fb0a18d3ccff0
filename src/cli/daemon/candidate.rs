//! An admitted add-on that wants to be shown: what the tree shows of it and what becomes its jobs.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::fs::facts::{Rootfs, ShownSource};
use crate::jobs::AddonJobs;
use crate::policy::addon::Origin;
use crate::policy::admit::AdmittedAddon;
use crate::policy::code::Denied;
use crate::policy::digest::Digest;
use crate::policy::image::ImageConfig;
use crate::policy::rules::Profile;
use crate::policy::source::spec::SourceSpec;

/// An admitted add-on that wants to be shown.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    /// What the control tree shows.
    pub shown: Arc<ShownSource>,
    /// What becomes its jobs.
    pub jobs: AddonJobs,
    /// Entrypoint ids, for collisions.
    pub job_names: Vec<String>,
}

impl Candidate {
    /// What an admitted add-on of `spec` shows. `tree` is the digest its image tree will have.
    pub(crate) fn new(
        spec: &SourceSpec,
        addon: &AdmittedAddon,
        config: Arc<ImageConfig>,
        tree: Digest,
        folder: &'static str,
        annotations: &[(String, String)],
        refused_under: Vec<(Profile, Denied)>,
    ) -> Self {
        let manifest = addon.manifest();
        let annotation = |key| annotations.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
        let origin = Origin {
            source_kind: "oci".to_owned(),
            source_name: spec.name.clone(),
            addon_name: manifest.name.clone(),
            addon_version: manifest.version.clone(),
            addon_image_digest: spec.image.digest,
            origin_revision: annotation("org.opencontainers.image.revision"),
            origin_source: annotation("org.opencontainers.image.source"),
        };
        let mut trust = json!(addon.image().verification());
        trust["verified"] = addon.image().is_signed().into();
        let addon_json = json!({
            "name": manifest.name,
            "version": manifest.version,
            "description": manifest.description,
            "metadata": manifest.metadata,
            "image": spec.image.to_string(),
            "digest": spec.image.digest,
            "manifest_digest": tree,
            "verification": addon.image().verification(),
            "origin": origin,
        });
        let job_names: Vec<String> = manifest.entrypoints.iter().map(|e| e.id.clone()).collect();
        Self {
            shown: Arc::new(ShownSource {
                name: spec.name.clone(),
                mount_path: spec.mount_path.clone(),
                manifest: Arc::clone(addon.manifest_bytes()),
                addon_json: json_file(&addon_json),
                rootfs: None,
                addon_dir: folder,
            }),
            jobs: AddonJobs {
                source: spec.name.clone(),
                mount_path: spec.mount_path.clone(),
                origin,
                manifest: Arc::new(manifest.clone()),
                image_config: config,
                tree,
                image: spec.image.to_string(),
                trust,
                refused_under,
            },
            job_names,
        }
    }

    /// Where `rootfs` leads from now on.
    pub(crate) fn set_rootfs(&mut self, rootfs: Option<Rootfs>) {
        self.shown = Arc::new(ShownSource { rootfs, ..ShownSource::clone(&self.shown) });
    }
}

/// What is shown of a source before its add-on's manifest is known: what has arrived of the image.
pub(super) fn forerunner(spec: &SourceSpec, tree: Digest) -> ShownSource {
    ShownSource {
        name: spec.name.clone(),
        mount_path: spec.mount_path.clone(),
        manifest: Arc::from([]),
        addon_json: Arc::from([]),
        rootfs: Some(Rootfs::Streaming(tree)),
        addon_dir: "",
    }
}

/// The spec as a configuration entry, in the order people write it.
pub(super) fn spec_yaml(spec: &SourceSpec) -> String {
    let text = |value: &str| json!(value).to_string();
    let word = |value: Value| value.as_str().unwrap_or_default().to_owned();
    let mount_path = if spec.mount_path.is_empty() { "." } else { &spec.mount_path };
    format!(
        "name: {}\ntype: oci\nimage: {}\nmountPath: {}\ntrusted: {}\npull_policy: {}\nexpose: {}\n\
         verify_signatures: {}\ninsecure: {}\npin: {}\nstream: {}\n",
        text(&spec.name),
        text(&spec.image.to_string()),
        text(mount_path),
        spec.trusted,
        word(json!(spec.pull_policy)),
        word(json!(spec.expose)),
        spec.verify_signatures,
        spec.insecure,
        spec.pin,
        spec.stream
    )
}

/// JSON as a file shows it: indented, newline at end.
pub(crate) fn json_file(value: &Value) -> Arc<[u8]> {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text.into_bytes().into()
}

//! Config and manifest of an image being built, from nothing or from a base.
//!
//! A base's config is kept as it is, keys that addonfs does not know included; its layers come first, under their
//! OCI names.

use std::sync::Arc;

use anyhow::Context as _;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::BuildArgs;
use super::layer::BuiltLayer;
use super::python::Surroundings;
use crate::fetch::sink::{BlobContent, BlobSink};
use crate::fetch::source::BlobSource;
use crate::policy::digest::Digest;
use crate::policy::image::{
    Descriptor, Document, ImageConfig, ImageManifest, LayerKind, MAX_CONFIG, OCI_CONFIG, OCI_LAYER,
    OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST, Platform, parse_document,
};
use crate::policy::image_config::DEFAULT_PATH;

/// What the command line says about the config.
#[derive(Debug)]
pub(super) struct Settings {
    user: Option<String>,
    workdir: Option<String>,
    entrypoint: Vec<String>,
    env: Vec<(String, String)>,
}

impl Settings {
    /// What jobs find when they start, as far as it is said here and not by a base image.
    pub(super) fn surroundings(&self) -> Surroundings<'_> {
        let own = |wanted| {
            let found = self.env.iter().rev().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.as_str())
        };
        Surroundings {
            path: own("PATH").unwrap_or(DEFAULT_PATH),
            python_path: own("PYTHONPATH"),
            workdir: self.workdir.as_deref().unwrap_or("/"),
        }
    }

    /// Checks the words.
    pub(super) fn from_args(args: &BuildArgs) -> anyhow::Result<Self> {
        if let Some(workdir) = &args.on.workdir {
            anyhow::ensure!(
                workdir.starts_with('/'),
                "--workdir {workdir:?} must be an absolute path in the image"
            );
        }
        let mut env = Vec::new();
        for pair in &args.on.env {
            let (name, value) = pair.split_once('=').with_context(|| format!("--env {pair:?} has no '='"))?;
            anyhow::ensure!(!name.is_empty(), "--env {pair:?} has no name");
            env.push((name.to_owned(), value.to_owned()));
        }
        let (user, workdir) = (args.on.user.clone(), args.on.workdir.clone());
        Ok(Self { user, workdir, entrypoint: args.on.entrypoint.clone(), env })
    }
}

/// An image that grows.
#[derive(Debug)]
pub(super) struct Draft {
    config: Value,
    layers: Vec<Descriptor>,
    annotations: Vec<(String, String)>,
}

impl Draft {
    /// An image of nothing.
    pub(super) fn scratch(platform: &Platform) -> Self {
        let mut config = json!({
            "architecture": platform.architecture,
            "os": platform.os,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": []},
            "history": [],
        });
        if let Some(variant) = &platform.variant {
            config["variant"] = json!(variant);
        }
        Self { config, layers: Vec::new(), annotations: Vec::new() }
    }

    /// Puts a layer on top.
    pub(super) fn add_layer(&mut self, layer: &BuiltLayer, by: &str, created: u64) -> anyhow::Result<()> {
        let history = json!({"created": rfc3339(created)?, "created_by": by});
        self.list("/rootfs/diff_ids")?.push(json!(layer.diff_id));
        if !self.config.get("history").is_some_and(Value::is_array) {
            self.config["history"] = json!([]);
        }
        self.list("/history")?.push(history);
        self.layers.push(layer.descriptor.clone());
        Ok(())
    }

    fn list(&mut self, pointer: &str) -> anyhow::Result<&mut Vec<Value>> {
        let list = self.config.pointer_mut(pointer).and_then(Value::as_array_mut);
        list.with_context(|| format!("the base's config has no list {pointer}"))
    }

    /// User, working directory and variables; a variable of the base with the same name is replaced in its place.
    pub(super) fn apply(&mut self, settings: &Settings, created: u64) -> anyhow::Result<()> {
        self.config["created"] = json!(rfc3339(created)?);
        if !self.config.get("config").is_some_and(Value::is_object) {
            self.config["config"] = json!({});
        }
        let run = &mut self.config["config"];
        if let Some(user) = &settings.user {
            run["User"] = json!(user);
        }
        if let Some(workdir) = &settings.workdir {
            run["WorkingDir"] = json!(workdir);
        }
        if !settings.entrypoint.is_empty() {
            run["Entrypoint"] = json!(settings.entrypoint);
            // It was made for another program.
            if let Some(run) = run.as_object_mut() {
                run.remove("Cmd");
            }
        }
        for (name, value) in &settings.env {
            if !run.get("Env").is_some_and(Value::is_array) {
                run["Env"] = json!([]);
            }
            let Some(env) = run["Env"].as_array_mut() else { continue };
            let line = json!(format!("{name}={value}"));
            let same =
                |old: &&mut Value| old.as_str().and_then(|o| o.split_once('=')).is_some_and(|o| o.0 == name);
            match env.iter_mut().find(same) {
                Some(old) => *old = line,
                None => env.push(line),
            }
        }
        Ok(())
    }

    /// The manifest's annotations; those of a base speak of the base and are not taken over.
    pub(super) fn annotate(&mut self, annotations: Vec<(String, String)>) {
        self.annotations = annotations;
        self.annotations.sort();
    }

    /// The config blob.
    pub(super) fn config(&self) -> anyhow::Result<(Descriptor, Vec<u8>)> {
        let bytes = serde_json::to_vec(&self.config)?;
        // What we write must be what we read.
        ImageConfig::parse(&bytes)?;
        let descriptor = Descriptor {
            media_type: OCI_CONFIG.to_owned(),
            digest: Digest::of(&bytes),
            size: bytes.len() as u64,
            annotations: Vec::new(),
        };
        Ok((descriptor, bytes))
    }

    /// The manifest.
    pub(super) fn manifest(&self, config: &Descriptor) -> anyhow::Result<Vec<u8>> {
        let annotations: serde_json::Map<String, Value> =
            self.annotations.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let bytes = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config,
            "layers": self.layers,
            "annotations": annotations,
        }))?;
        ImageManifest::parse(&bytes)?;
        Ok(bytes)
    }
}

/// Starts from the image `digest` for `platform`: its layers are copied to `sink`.
pub(super) async fn from_base(
    source: &Arc<dyn BlobSource>,
    digest: &Digest,
    platform: &Platform,
    sink: &dyn BlobSink,
) -> anyhow::Result<Draft> {
    let (media_type, bytes) = source.manifest(digest).await?;
    let manifest = match parse_document(&media_type, &bytes)? {
        Document::Manifest(manifest) => manifest,
        Document::Index(index) => {
            let chosen = index.select(platform)?;
            ImageManifest::parse(&source.manifest(&chosen.digest).await?.1)?
        }
    };
    let config_bytes = source.blob(&manifest.config, MAX_CONFIG as u64).await?;
    let config = ImageConfig::parse(&config_bytes)?;
    config.check_layers(&manifest)?;
    if let Some(own) = &config.platform {
        anyhow::ensure!(
            own.os == platform.os && own.architecture == platform.architecture,
            "it is for {own}, not for {platform}: say --platform {own}, or name another base"
        );
    }
    let mut layers = Vec::new();
    for layer in &manifest.layers {
        if !sink.has_blob(layer).await? {
            sink.put_blob(layer, BlobContent::source(Arc::clone(source))).await?;
        }
        let media_type = match layer.layer_kind() {
            LayerKind::Tar => OCI_LAYER.to_owned(),
            LayerKind::TarGzip => OCI_LAYER_GZIP.to_owned(),
            LayerKind::TarZstd => OCI_LAYER_ZSTD.to_owned(),
            LayerKind::Other => layer.media_type.clone(),
        };
        layers.push(Descriptor { media_type, ..layer.clone() });
    }
    Ok(Draft { config: serde_json::from_slice(&config_bytes)?, layers, annotations: Vec::new() })
}

fn rfc3339(seconds: u64) -> anyhow::Result<String> {
    let time = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds)?)?;
    Ok(time.format(&Rfc3339)?)
}

//! What `verify` and `policy explain` are asked about: a source of the configuration, or any image.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;

use super::config::{Beside, Config, Files};
use super::dirs::Dirs;
use super::registry_access;
use crate::fetch::source::BlobSource;
use crate::fetch::{signatures, source};
use crate::policy::reference::{ImageRef, PinnedRef, strip_scheme};
use crate::policy::source::spec::SourceSpec;
use crate::policy::trust::evidence::Evidence;

/// What is asked about, and by which rules.
#[derive(Debug, clap::Args)]
pub(crate) struct SubjectArgs {
    /// The name of a source, or an image: host/repository:tag, host/repository@sha256:…, oci:PATH:tag
    #[arg(value_name = "REF")]
    reference: String,
    /// The configuration whose policy holds [default: /etc/addonfs/addonfs.yaml, for users
    /// $XDG_CONFIG_HOME/addonfs/addonfs.yaml]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Use plain http, or do not check the registry's certificate (loopback needs it not)
    #[arg(long)]
    insecure: bool,
    /// Print JSON
    #[arg(short = 'o', long, value_name = "FORMAT", value_parser = ["json"])]
    output: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Subject {
    /// The configuration, with its policy.
    pub config: Config,
    /// As the configuration has it, or an image of which it says nothing.
    pub spec: SourceSpec,
    /// The configuration lists it.
    pub configured: bool,
    insecure: bool,
}

/// What is beside the image.
#[derive(Debug)]
pub(crate) struct Found {
    /// The signatures.
    pub evidence: Vec<Evidence>,
    /// Media type and size of what the pinned digest names.
    pub manifest: (String, u64),
}

impl SubjectArgs {
    /// Whether the answer is to be JSON.
    pub(crate) fn json(&self) -> bool {
        self.output.is_some()
    }

    /// Reads the configuration and finds out what is meant. A tag is asked of its registry if `may_ask` says so.
    pub(crate) async fn subject(
        &self,
        may_ask: impl Fn(&Config, &ImageRef) -> anyhow::Result<()>,
    ) -> anyhow::Result<Subject> {
        let path = self.config.clone().unwrap_or_else(Dirs::standard_config);
        let config = Config::load(&path, &Beside::of_environment()?, &Files::default())?;
        for warning in &config.warnings {
            eprintln!("addonfs: warning: {warning}");
        }
        if let Some(spec) = config.sources.iter().find(|spec| spec.name == self.reference).cloned() {
            let insecure = self.insecure || spec.insecure;
            return Ok(Subject { config, spec, configured: true, insecure });
        }
        let (bare, _) = strip_scheme(&self.reference);
        let image: ImageRef = bare.parse().with_context(|| {
            format!("{:?} is neither a source of {} nor an image", self.reference, path.display())
        })?;
        let pinned = match image.digest {
            Some(_) => image.pinned()?,
            None => {
                may_ask(&config, &image)?;
                let options = registry_access::options_of(&config, self.insecure);
                let (_, digest) = registry_access::open_image(&image, &options).await?;
                PinnedRef { location: image.location.clone(), tag: image.tag.clone(), digest }
            }
        };
        let same =
            |spec: &&SourceSpec| spec.image.digest == pinned.digest && spec.image.location == pinned.location;
        let known = config.sources.iter().find(same).cloned();
        let configured = known.is_some();
        let spec = known.unwrap_or_else(|| SourceSpec::of_image(&self.reference, pinned));
        let insecure = self.insecure || spec.insecure;
        Ok(Subject { config, spec, configured, insecure })
    }
}

impl Subject {
    /// The source's name, where the configuration lists it.
    pub(crate) fn source(&self) -> Option<&str> {
        self.configured.then_some(self.spec.name.as_str())
    }

    /// Asks for everything that is beside the image.
    pub(crate) async fn found(&self) -> anyhow::Result<Found> {
        let options = registry_access::options_of(&self.config, self.insecure);
        let (image, digest) = (&self.spec.image, &self.spec.image.digest);
        let source: Arc<dyn BlobSource> =
            source::open(&image.location, &options).with_context(|| format!("cannot open {image}"))?;
        let (media_type, bytes) = source.manifest(digest).await?;
        let evidence = signatures::fetch(source.as_ref(), digest).await?;
        Ok(Found { evidence, manifest: (media_type, bytes.len() as u64) })
    }
}

//! Which cache is meant, whose images are configured, and who may change it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::Value;

use super::pins;
use crate::cli::config::{Beside, Config, Files};
use crate::cli::daemon::added::AddedSources;
use crate::cli::dirs::Dirs;
use crate::cli::{daemon_status, mounted};
use crate::fetch::documents::Documents;
use crate::fetch::store::{Kind, Store, StoreOptions};
use crate::policy::digest::Digest;

/// A configured source, as far as the cache is concerned.
#[derive(Debug, Clone)]
pub(super) struct Configured {
    pub name: String,
    /// The pinned digest of its image.
    pub image: Digest,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Place {
    /// The cache directory: the store, documents and trees lie in it.
    pub cache: PathBuf,
    pub sources: Vec<Configured>,
    /// The daemon's `ctl`, if one uses the cache.
    ctl: Option<PathBuf>,
    options: StoreOptions,
}

/// Bytes of one command; a `ctl` refuses a page.
const LINE: usize = 3500;

/// Who changes the cache.
#[derive(Debug)]
pub(super) enum Hands {
    Daemon(PathBuf),
    Own(Arc<Store>),
}

impl Place {
    /// The cache of a mount, or of a configuration whether mounted or not.
    pub(super) fn find(
        mount: Option<&Path>,
        config: Option<&Path>,
        cache_dir: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let mounted = mount.is_some() || std::env::var_os("ADDONFS_MOUNT").is_some();
        if config.is_none() && cache_dir.is_none() && (mounted || !mounted::all().is_empty()) {
            let mount = mounted::chosen(mount)?;
            let (_, status) = daemon_status::read(&mount)?;
            return Self::of_mount(&mount, &status);
        }
        let path = config.map_or_else(Dirs::standard_config, Path::to_owned);
        // A cache directory alone is enough to look into it.
        let read = config.is_some() || cache_dir.is_none() || path.exists();
        let config = read.then(|| Config::load(&path, &Beside::default(), &Files::default())).transpose()?;
        let kept = config.as_ref().and_then(|config| config.cache_dir.clone());
        let cache = cache_dir.map(Path::to_owned).or(kept).unwrap_or_else(|| Dirs::standard().cache);
        let cache =
            cache.canonicalize().with_context(|| format!("there is no cache in {}", cache.display()))?;
        for mount in mounted::all() {
            match daemon_status::read(&mount) {
                Ok((_, status)) if is_cache_of(&status, &cache) => return Self::of_mount(&mount, &status),
                _ => {}
            }
        }
        let sources = config.iter().flat_map(|config| {
            let state = config.state_dir.clone().unwrap_or_else(|| Dirs::standard().state);
            AddedSources::load(&state).together(config).specs
        });
        let sources = sources.map(|spec| Configured { image: spec.image.digest, name: spec.name }).collect();
        let options = config.map(|config| config.cache).unwrap_or_default().store_options(&cache)?;
        Ok(Self { cache, sources, ctl: None, options })
    }

    fn of_mount(mount: &Path, status: &Value) -> anyhow::Result<Self> {
        let cache = status["cache_dir"].as_str().context("the daemon is of another version of addonfs")?;
        let sources = status["sources"].as_array().into_iter().flatten();
        let sources = sources.filter_map(|source| {
            Some(Configured {
                name: source["name"].as_str()?.to_owned(),
                image: source["digest"].as_str()?.parse().ok()?,
            })
        });
        let options = StoreOptions {
            quota_bytes: status["store"]["quota_bytes"].as_u64().unwrap_or_default(),
            ..StoreOptions::default()
        };
        Ok(Self {
            cache: cache.into(),
            sources: sources.collect(),
            ctl: Some(mount.join(".addonfs/ctl")),
            options,
        })
    }

    pub(super) fn quota(&self) -> u64 {
        self.options.quota_bytes
    }

    pub(super) fn documents(&self) -> anyhow::Result<Documents> {
        Ok(Documents::open(&self.cache)?)
    }

    /// The store as it is now.
    pub(super) fn look(&self) -> anyhow::Result<Arc<Store>> {
        Ok(Store::look(&self.cache.join("store"))?)
    }

    /// Image trees that are built from layers, by the digest of the manifest.
    pub(super) fn trees(&self) -> Vec<(Digest, PathBuf)> {
        let entries = std::fs::read_dir(self.cache.join("trees")).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        paths.filter_map(|path| Some((Digest::from_hex(path.file_name()?.to_str()?)?, path))).collect()
    }

    /// Who may change it.
    pub(super) fn hands(&self) -> anyhow::Result<Hands> {
        Ok(match &self.ctl {
            Some(ctl) => Hands::Daemon(ctl.clone()),
            None => Hands::Own(Store::open(&self.cache.join("store"), self.options.clone())?),
        })
    }
}

fn is_cache_of(status: &Value, cache: &Path) -> bool {
    status["cache_dir"].as_str().and_then(|dir| Path::new(dir).canonicalize().ok()).as_deref() == Some(cache)
}

impl Hands {
    /// Removes items. What is gone already is no error.
    pub(super) fn drop_items(&self, items: &[(Kind, Digest)]) -> anyhow::Result<()> {
        match self {
            Self::Own(store) => items.iter().for_each(|(kind, digest)| store.discard(*kind, digest)),
            Self::Daemon(ctl) => {
                let mut line = String::new();
                for (kind, digest) in items {
                    line = if line.is_empty() { "cache drop".to_owned() } else { line };
                    line.push_str(&format!(" {} {}", kind.name(), digest.hex()));
                    if line.len() > LINE {
                        daemon_status::command(ctl, &std::mem::take(&mut line))?;
                    }
                }
                if !line.is_empty() {
                    daemon_status::command(ctl, &line)?;
                }
            }
        }
        Ok(())
    }

    /// Pins or unpins; what to say about it.
    pub(super) fn pin(&self, place: &Place, what: &str, pin: bool) -> anyhow::Result<String> {
        match self {
            Self::Daemon(ctl) => {
                daemon_status::command(ctl, &format!("cache {} {what}", if pin { "pin" } else { "unpin" }))
            }
            Self::Own(store) => {
                let source = place.sources.iter().find(|source| source.name == what);
                let image = source.map(|source| source.image);
                pins::change(store, &place.documents()?, what, image, pin).map_err(anyhow::Error::msg)
            }
        }
    }
}

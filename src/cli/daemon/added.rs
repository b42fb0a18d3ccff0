//! The sources that somebody added at run time, on disk.
//!
//! ```text
//! <state>/sources.json    {"version":1,"sources":[{"request":{…},"digest":"sha256:…","created":ms,"updated":ms}]}
//! ```
//! `request` is what was sent (`policy::source::request`), `digest` what its tag named then. The file is replaced as a
//! whole: a temporary one, fsync, rename. Sources of the configuration win: one that is added under the name of such
//! is left out and told of, as is one that policy does not let be any more; both stay in the file.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::cli::config::Config;
use crate::policy::digest::Digest;
use crate::policy::source::parse::MAX_SOURCES;
use crate::policy::source::request::SourceRequest;
use crate::policy::source::spec::{PullPolicy, SourceSpec};

/// Of the file's layout.
const VERSION: u32 = 1;
/// Largest file: all sources that there may be, each with a key or two.
const MAX_FILE: u64 = 16 << 20;

/// One source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Added {
    /// As it was asked for.
    pub request: SourceRequest,
    /// Its name, derived or said.
    pub name: String,
    /// What its reference named when it was added.
    pub digest: Digest,
    /// When it was added first, milliseconds since 1970.
    pub created: u64,
    /// When it was added last.
    pub updated: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    sources: Vec<Added>,
}

/// All of them, in the order in which they were added.
#[derive(Debug, Clone)]
pub(crate) struct AddedSources {
    path: PathBuf,
    sources: Vec<Added>,
    /// Why the file is not understood; it is not overwritten then.
    broken: Option<String>,
}

/// What the daemon shows.
#[derive(Debug)]
pub(crate) struct Together {
    /// The sources of the configuration, then those that were added.
    pub specs: Vec<SourceSpec>,
    /// Those that are left out, a line each.
    pub left_out: Vec<String>,
}

impl AddedSources {
    /// Reads the file of a state directory. One that is not understood is told of, and costs nobody else anything.
    pub(crate) fn load(state: &Path) -> Self {
        let path = state.join("sources.json");
        let (sources, broken) = match read(&path) {
            Ok(sources) => (sources, None),
            Err(error) => (Vec::new(), Some(format!("{}: {error:#}", path.display()))),
        };
        Self { path, sources, broken }
    }

    /// The one of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Added> {
        self.sources.iter().find(|added| added.name == name)
    }

    /// Those whose tags are asked for at every start.
    pub(crate) fn to_be_asked_at_startup(&self) -> Vec<String> {
        let asks = |added: &&Added| {
            let policy = added.request.pull_policy.as_deref().and_then(PullPolicy::from_name);
            policy == Some(PullPolicy::OnStartup)
        };
        self.sources.iter().filter(asks).map(|added| added.name.clone()).collect()
    }

    /// The same with this one, in place of the one that had its name.
    pub(crate) fn with(&self, added: Added) -> anyhow::Result<Self> {
        let mut all = self.clone();
        match all.sources.iter_mut().find(|other| other.name == added.name) {
            Some(place) => *place = added,
            None => all.sources.push(added),
        }
        anyhow::ensure!(all.sources.len() <= MAX_SOURCES, "more than {MAX_SOURCES} sources were added");
        Ok(all)
    }

    /// The same without this one.
    pub(crate) fn without(&self, name: &str) -> Self {
        let mut all = self.clone();
        all.sources.retain(|added| added.name != name);
        all
    }

    /// Replaces the file.
    pub(crate) fn save(&self) -> anyhow::Result<()> {
        if let Some(why) = &self.broken {
            anyhow::bail!(
                "the sources that were added before are not readable, and are not overwritten: {why}"
            );
        }
        let bytes = serde_json::to_vec(&OnDisk { version: VERSION, sources: self.sources.clone() })?;
        let folder = self.path.parent().context("the state directory has no parent")?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&bytes)?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(File::open(folder)?.sync_all()?)
    }

    /// With those of the configuration, as its policy lets them be.
    pub(crate) fn together(&self, config: &Config) -> Together {
        let mut specs = config.sources.clone();
        let mut left_out: Vec<String> = self.broken.clone().into_iter().collect();
        for added in &self.sources {
            if let Some(ours) = specs.iter().find(|spec| spec.name == added.name) {
                left_out.push(clash(&added.name, &ours.image.to_string(), &added.digest));
                continue;
            }
            let spec =
                added.request.check().map_err(|refusal| format!("{}: {}", refusal.title, refusal.detail));
            let spec = spec.and_then(|wanted| {
                wanted.spec(added.digest, &config.policy).map_err(|denied| denied.to_string())
            });
            match spec {
                Ok(spec) => specs.push(spec),
                Err(why) => left_out.push(format!("{}: {why}", added.name)),
            }
        }
        Together { specs, left_out }
    }
}

/// A name that the configuration has, too.
fn clash(name: &str, configured: &str, added: &Digest) -> String {
    format!(
        "{name}: E_CONFIG: two sources are called {name}: {configured} of the configuration, which is shown, and {added}, \
         which was added at run time; remove one of them (addonfs sources remove {name})"
    )
}

fn read(path: &Path) -> anyhow::Result<Vec<Added>> {
    let size = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        metadata => metadata?.len(),
    };
    anyhow::ensure!(size <= MAX_FILE, "it has {size} bytes, more than {MAX_FILE}");
    let on_disk: OnDisk = serde_json::from_slice(&std::fs::read(path)?)?;
    anyhow::ensure!(on_disk.version == VERSION, "version {} is not known", on_disk.version);
    Ok(on_disk.sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(name: &str, more: &str) -> Added {
        let body = format!("{{\"type\":\"oci\",\"trusted\":true,\"ref\":\"ghcr.io/o/{name}:1\"{more}}}");
        let request = SourceRequest::parse(body.as_bytes()).unwrap();
        Added { request, name: name.to_owned(), digest: Digest::of(name.as_bytes()), created: 1, updated: 2 }
    }

    fn names(together: &Together) -> Vec<&str> {
        together.specs.iter().map(|spec| spec.name.as_str()).collect()
    }

    #[test]
    fn they_are_there_again_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let none = AddedSources::load(dir.path());
        let two = none.with(added("a", "")).unwrap().with(added("b", ",\"pin\":true")).unwrap();
        two.save().unwrap();
        let again = AddedSources::load(dir.path());
        let together = again.together(&Config::default());
        assert_eq!(names(&together), ["a", "b"]);
        assert!(together.left_out.is_empty() && together.specs[1].pin);
        assert_eq!(together.specs[0].image.to_string(), format!("ghcr.io/o/a:1@{}", Digest::of(b"a")));
        again.without("a").save().unwrap();
        assert_eq!(names(&AddedSources::load(dir.path()).together(&Config::default())), ["b"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn the_configuration_wins_and_policy_is_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let all = AddedSources::load(dir.path()).with(added("a", "")).unwrap();
        let all = all.with(added("b", ",\"trust\":{\"keys\":[\"gone.pub\"]}")).unwrap();
        let spec = all.together(&Config::default()).specs.remove(0);
        let mut config = Config { sources: vec![spec], ..Config::default() };
        config.sources[0].image.digest = Digest::of(b"configured");
        let together = all.together(&config);
        assert_eq!(together.specs.len(), 1);
        assert_eq!(together.specs[0].image.digest, Digest::of(b"configured"));
        let [clash, stranger] = together.left_out.as_slice() else { panic!("{together:?}") };
        for part in ["a: E_CONFIG", &Digest::of(b"configured").to_string(), &Digest::of(b"a").to_string()] {
            assert!(clash.contains(part), "{clash}");
        }
        assert!(stranger.contains("b: policy.denied") && stranger.contains("gone.pub"), "{stranger}");
    }

    #[test]
    fn what_is_not_understood_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["{\"version\":2,\"sources\":[]}", "half", "{\"version\":1,\"sources\":[{}]}"] {
            std::fs::write(dir.path().join("sources.json"), text).unwrap();
            let all = AddedSources::load(dir.path());
            assert_eq!(all.together(&Config::default()).left_out.len(), 1, "{text}");
            assert!(all.with(added("a", "")).unwrap().save().is_err(), "{text}");
            assert_eq!(std::fs::read_to_string(dir.path().join("sources.json")).unwrap(), text);
        }
    }
}

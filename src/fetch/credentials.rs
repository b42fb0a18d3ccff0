//! Who we are to a registry: the docker config file and credential helpers.
//!
//! In: the registry and repository, files, a [`HelperRunner`] that runs `docker-credential-*` programs for us
//! (starting processes is the spawner's work, not this room's). Out: a [`Credential`]. Files are read again at
//! every question, so that credentials can be rotated under a running daemon.
//!
//! Which entry wins, in each file in turn: `credHelpers` for the host, then the `auths` entry with the longest
//! matching key that holds something (`host/namespace/repository` down to `host`; keys as docker, podman and
//! skopeo write them), then `credsStore`. Docker prefers `credsStore` to `auths`; it also empties `auths` entries
//! when it uses a store, so the order differs only for entries that somebody wrote by hand, and those are meant.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::error::{Class, FetchError, Side};

/// Runs a credential helper: program name and server in, the helper's JSON out; the error text is what it printed.
pub type HelperRunner = Arc<dyn Fn(&str, &str) -> Result<String, String> + Send + Sync>;

/// A config file is a few KiB; more than this is something else.
const MAX_FILE: u64 = 1 << 20;

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Keeps `text` secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// What a registry accepts as proof of who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// None.
    Anonymous,
    /// Name and password (or an access token used as one).
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token for the registry's token service (`identitytoken`).
    Identity(Secret),
    /// A bearer token for the registry itself (`registrytoken`).
    Bearer(Secret),
}

/// Where credentials come from. Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    origin: Origin,
    helper: Option<HelperRunner>,
}

#[derive(Clone)]
enum Origin {
    Fixed(Credential),
    Files { files: Vec<PathBuf>, required: bool },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Fixed(Credential::Anonymous) => f.write_str("Credentials(anonymous)"),
            Origin::Fixed(_) => f.write_str("Credentials(given)"),
            Origin::Files { files, .. } => write!(f, "Credentials({files:?})"),
        }
    }
}

impl Credentials {
    /// None at all.
    pub fn anonymous() -> Self {
        Self::fixed(Credential::Anonymous)
    }

    /// One credential for whatever registry is asked (a command's `--creds`).
    pub fn fixed(credential: Credential) -> Self {
        Self { origin: Origin::Fixed(credential), helper: None }
    }

    /// The config file at `file`, which must exist; without one, the usual places: `$DOCKER_CONFIG/config.json`
    /// or `~/.docker/config.json`, then podman's `${XDG_RUNTIME_DIR}/containers/auth.json`. `env` is asked for the
    /// variables. The first file that has something for the registry decides.
    pub fn from_docker_config(
        file: Option<PathBuf>,
        env: impl Fn(&str) -> Option<OsString>,
        helper: HelperRunner,
    ) -> Self {
        let required = file.is_some();
        let files = file.map_or_else(|| usual_places(env), |file| vec![file]);
        Self { origin: Origin::Files { files, required }, helper: Some(helper) }
    }

    /// The same for a host that nobody named: a credential that was given for one registry is not for others.
    pub(super) fn of_others(&self) -> Self {
        match self.origin {
            Origin::Fixed(_) => Self::anonymous(),
            Origin::Files { .. } => self.clone(),
        }
    }

    /// The credential for a repository. Reads files and may run a helper: not for an async thread.
    pub fn find(&self, registry: &str, repository: &str) -> Result<Credential, FetchError> {
        let (files, required) = match &self.origin {
            Origin::Fixed(credential) => return Ok(credential.clone()),
            Origin::Files { files, required } => (files, *required),
        };
        for path in files {
            let Some(file) = read(path, required)? else { continue };
            match file.find(registry, repository, self.helper.as_ref()) {
                Ok(Credential::Anonymous) => {}
                Ok(found) => return Ok(found),
                Err(error) => return Err(error.context(path.display())),
            }
        }
        Ok(Credential::Anonymous)
    }

    /// Where was looked, for the message that says that nothing was found.
    pub(super) fn places(&self) -> String {
        match &self.origin {
            Origin::Fixed(_) => "the given credentials".to_owned(),
            Origin::Files { files, .. } if files.is_empty() => "no config file".to_owned(),
            Origin::Files { files, .. } => {
                files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ")
            }
        }
    }
}

fn usual_places(env: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let folder = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let docker = folder("DOCKER_CONFIG").or_else(|| folder("HOME").map(|home| home.join(".docker")));
    let podman = folder("XDG_RUNTIME_DIR").map(|run| run.join("containers/auth.json"));
    docker.map(|folder| folder.join("config.json")).into_iter().chain(podman).collect()
}

/// A file that is missing says nothing, unless it was named.
fn read(path: &Path, required: bool) -> Result<Option<ConfigFile>, FetchError> {
    let text = match bounded(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return Ok(None),
        Err(error) => {
            // the file may be written a moment later (a mounted secret): worth another try
            let mut failed = FetchError::storage(&format!("credentials file {}", path.display()), &error);
            failed.retryable = true;
            return Err(failed);
        }
    };
    // serde's words may quote the file: only the position is told
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        let message = format!(
            "credentials file {} is not a docker config file (line {}, column {})",
            path.display(),
            error.line(),
            error.column()
        );
        FetchError::new(Class::Unauthorized, Side::Local, message)
    })
}

fn bounded(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    use std::io::Read as _;
    let mut text = Zeroizing::new(Vec::new());
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other("larger than 1 MiB"));
    }
    Ok(text)
}

/// The parts of `config.json` that concern us; `username` and `password` at the top are the one-credential form.
#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: std::collections::BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: String,
    #[serde(flatten)]
    single: Entry,
}

#[derive(Deserialize, Default)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    identitytoken: Option<String>,
    #[serde(default)]
    registrytoken: Option<String>,
}

impl ConfigFile {
    fn find(
        &self,
        registry: &str,
        repository: &str,
        helper: Option<&HelperRunner>,
    ) -> Result<Credential, FetchError> {
        let own = |key: &String| bare(key) == canonical(registry);
        if let Some((key, name)) = self.helpers.iter().find(|(key, _)| own(key)) {
            return ask_helper(helper, name, server_name(key));
        }
        if let Some(found) = self.entry(registry, repository) {
            return Ok(found);
        }
        if self.auths.is_empty()
            && let Some(found) = self.single.credential("the credentials")
        {
            return Ok(found);
        }
        if self.store.is_empty() {
            return Ok(Credential::Anonymous);
        }
        ask_helper(helper, &self.store, server_name(registry))
    }

    /// The entry with the longest key that is the repository or above it.
    fn entry(&self, registry: &str, repository: &str) -> Option<Credential> {
        let full = format!("{}/{repository}", canonical(registry));
        let mut matching: Vec<_> = self
            .auths
            .iter()
            .filter_map(|(key, entry)| {
                let key = bare(key);
                let rest = full.strip_prefix(key.as_str())?;
                (rest.is_empty() || rest.starts_with('/')).then_some((key.len(), key, entry))
            })
            .collect();
        matching.sort_by_key(|(length, ..)| std::cmp::Reverse(*length));
        matching.into_iter().find_map(|(_, key, entry)| entry.credential(&key))
    }
}

impl Entry {
    fn credential(&self, key: &str) -> Option<Credential> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.identitytoken) {
            return Some(Credential::Identity(Secret::new(token)));
        }
        if let Some(token) = given(&self.registrytoken) {
            return Some(Credential::Bearer(Secret::new(token)));
        }
        if let Some(auth) = given(&self.auth) {
            match decode(&auth) {
                Some((username, password)) => return Some(basic(username, password)),
                None => tracing::warn!(key, "ignored: `auth` is not base64 of name:password"),
            }
        }
        Some(basic(given(&self.username)?, given(&self.password)?))
    }
}

/// An empty user name with a secret, and the name `<token>`, both mean an identity token.
fn basic(username: String, password: String) -> Credential {
    if username == "<token>" {
        return Credential::Identity(Secret::new(password));
    }
    Credential::Basic { username, password: Secret::new(password) }
}

/// base64 of `name:password`, cut at the first colon; docker pads some old files with NUL.
fn decode(auth: &str) -> Option<(String, String)> {
    let auth = auth.trim();
    let bytes = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth)).ok()?;
    let text = Zeroizing::new(String::from_utf8(bytes).ok()?);
    let (username, password) = text.split_once(':')?;
    let password = password.trim_end_matches('\0');
    (!username.is_empty() || !password.is_empty()).then(|| (username.to_owned(), password.to_owned()))
}

/// A key without scheme and the `/v1/`, `/v2/` that old docker versions wrote.
fn bare(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    match key.split_once('/') {
        Some((host, path)) => format!("{}/{path}", canonical(host)),
        None => canonical(key).to_owned(),
    }
}

/// Docker Hub's names are one registry.
fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// Helpers know Docker Hub under its old address.
fn server_name(registry: &str) -> &str {
    match registry {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => "https://index.docker.io/v1/",
        registry => registry,
    }
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// Runs `docker-credential-NAME get` (docker-credential-helpers, `credentials/helper.go`).
fn ask_helper(helper: Option<&HelperRunner>, name: &str, server: &str) -> Result<Credential, FetchError> {
    let refuse = |why: &str| {
        let message = format!("credential helper docker-credential-{name}: {why}");
        FetchError::new(Class::Unauthorized, Side::Local, message)
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || !name.chars().all(plain) {
        return Err(refuse("not the name of a helper"));
    }
    let run = helper.ok_or_else(|| refuse("cannot be run here"))?;
    let output = match run(&format!("docker-credential-{name}"), server) {
        Ok(output) => Zeroizing::new(output),
        // the fixed words of docker-credential-helpers (`credentials/error.go`)
        Err(words) if words.contains("credentials not found") => return Ok(Credential::Anonymous),
        Err(words) => return Err(refuse(words.lines().next().unwrap_or("failed").trim())),
    };
    let answer: HelperAnswer =
        serde_json::from_str(&output).map_err(|_| refuse("did not answer with JSON; run it by hand"))?;
    if answer.secret.is_empty() {
        return Ok(Credential::Anonymous);
    }
    Ok(basic(answer.username, answer.secret))
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;

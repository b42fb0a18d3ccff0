//! Image configs (image-spec `config.md`; Docker's are the same where it matters here).

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::code::{Code, Denied};
use super::digest::Digest;
use super::image::{ImageManifest, MAX_CONFIG, MAX_LAYERS};
use super::platform::Platform;

/// `PATH` where neither image nor manifest set one: what runc and docker use.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What addonfs needs of an image config.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ImageConfig {
    /// `config.User`, as written (`""` is root).
    pub user: String,
    /// `config.Env`, as `NAME=value` lines.
    pub env: Vec<String>,
    /// `config.WorkingDir`, `/` when absent.
    pub working_dir: String,
    /// `config.Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `config.Cmd`.
    pub cmd: Vec<String>,
    /// `created` as seconds since 1970, if it parses: the time of directories that no layer names.
    pub created: Option<i64>,
    /// `rootfs.diff_ids`, lowest layer first.
    pub diff_ids: Vec<Digest>,
    /// Platform of the config.
    pub platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Raw {
    created: Option<String>,
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
    config: Option<RawRun>,
    rootfs: RawRootfs,
}

/// Docker writes `null` for what is empty.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Option<Vec<Digest>>,
}

impl ImageConfig {
    /// Parses a config blob.
    pub fn parse(bytes: &[u8]) -> Result<Self, Denied> {
        if bytes.len() > MAX_CONFIG {
            return Err(bad(format!("the image config has {} bytes, more than {MAX_CONFIG}", bytes.len())));
        }
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|e| bad(format!("the image config is not valid: {e}")))?;
        if raw.rootfs.kind != "layers" {
            return Err(bad(format!(
                "the image config's rootfs.type is {:?}, expected layers",
                raw.rootfs.kind
            )));
        }
        let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() > MAX_LAYERS {
            return Err(bad(format!(
                "the image config has {} diff_ids, more than {MAX_LAYERS}",
                diff_ids.len()
            )));
        }
        let run = raw.config.unwrap_or_default();
        let working_dir = run.working_dir.filter(|d| !d.is_empty()).unwrap_or_else(|| "/".to_owned());
        let env = run.env.unwrap_or_default();
        let entrypoint = run.entrypoint.unwrap_or_default();
        let cmd = run.cmd.unwrap_or_default();
        let user = run.user.unwrap_or_default();
        // These become C strings of a process.
        let words = env.iter().chain(&entrypoint).chain(&cmd).chain([&working_dir, &user]);
        if words.into_iter().any(|w| w.contains('\0')) {
            return Err(bad("the image config has a NUL byte in a word of its process"));
        }
        Ok(Self {
            user,
            env,
            working_dir,
            entrypoint,
            cmd,
            created: raw
                .created
                .and_then(|c| OffsetDateTime::parse(&c, &Rfc3339).ok())
                .map(OffsetDateTime::unix_timestamp),
            diff_ids,
            platform: raw
                .os
                .filter(|o| !o.is_empty())
                .zip(raw.architecture.filter(|a| !a.is_empty()))
                .map(|(os, architecture)| Platform { os, architecture, variant: raw.variant }),
        })
    }

    /// Each layer must have its diff_id: a config and a manifest that count differently are two images.
    pub fn check_layers(&self, manifest: &ImageManifest) -> Result<(), Denied> {
        if self.diff_ids.len() == manifest.layers.len() {
            return Ok(());
        }
        Err(bad(format!(
            "the image has {} layers and its config {} diff_ids: it was built wrongly, build it again",
            manifest.layers.len(),
            self.diff_ids.len()
        )))
    }
}

fn bad(message: impl Into<String>) -> Denied {
    Denied::new(Code::Oci, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_oci_and_docker_configs() {
        let id = Digest::of(b"layer");
        let text = format!(
            r#"{{"created":"2024-05-01T10:00:00.5+02:00","architecture":"arm64","os":"linux","variant":"v8",
               "config":{{"User":"1000:1000","Env":["A=b"],"Cmd":null,"WorkingDir":"","Volumes":{{}}}},
               "rootfs":{{"type":"layers","diff_ids":["{id}"]}},"history":[{{}}]}}"#
        );
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.created, Some(1_714_550_400));
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("1000:1000", "/"));
        assert_eq!(config.env, ["A=b"]);
        assert_eq!(config.diff_ids, [id]);
        assert_eq!(config.platform.unwrap().to_string(), "linux/arm64/v8");
        let bare = ImageConfig::parse(br#"{"rootfs":{"type":"layers","diff_ids":null}}"#).unwrap();
        assert_eq!(bare.working_dir, "/");
    }

    #[test]
    fn refuses_what_is_no_config() {
        for bad in [
            "{}",
            "[]",
            r#"{"rootfs":{"type":"tree"}}"#,
            r#"{"rootfs":{"type":"layers","diff_ids":["x"]}}"#,
            "{\"rootfs\":{\"type\":\"layers\"},\"config\":{\"Env\":[\"A=\\u0000\"]}}",
        ] {
            assert_eq!(ImageConfig::parse(bad.as_bytes()).unwrap_err().code, Code::Oci, "{bad}");
        }
    }
}

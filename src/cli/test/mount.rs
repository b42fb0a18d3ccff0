//! A mount for one test: its own layout, configuration, state, cache and daemon, all in one temporary folder.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Map, Value};
use tokio::process::Command;

use crate::cli::mounted;
use crate::policy::digest::Digest;

/// The name of the only source, and where it is shown.
const SOURCE: &str = "test";

/// See the module.
#[derive(Debug)]
pub(super) struct Mount {
    dir: tempfile::TempDir,
    /// `addonfs mount` was started and has not ended: it may come up still.
    starting: bool,
}

/// How long a mount that was interrupted while it started may take to appear.
const APPEARS: Duration = Duration::from_secs(3);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

impl Mount {
    /// The folder; nothing is mounted yet.
    pub(super) fn new() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("addonfs-test-").tempdir()?;
        // A job of another user must reach its root file system.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
        Ok(Self { dir, starting: false })
    }

    /// Where the image belongs.
    pub(super) fn layout(&self) -> PathBuf {
        self.dir.path().join("layout")
    }

    /// The add-on's folder.
    pub(super) fn source(&self) -> PathBuf {
        self.at().join(SOURCE)
    }

    fn at(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    /// Mounts the image of the layout.
    pub(super) async fn up(&mut self, image: &Digest) -> anyhow::Result<()> {
        let config = self.dir.path().join("addonfs.yaml");
        let text = serde_json::json!({
            "cache": {"keep_free": 0},
            "http": {"socket": "none"},
            "policy": {"profile": "secure", "verify_signatures": "disabled", "allowed_registries": ["oci-layout"]},
            "sources": [{
                "name": SOURCE,
                "type": "oci",
                "image": format!("oci:{}@{image}", self.layout().display()),
                "mountPath": SOURCE,
            }],
        });
        // JSON is YAML.
        std::fs::write(&config, text.to_string())?;
        let mut mount = self.addonfs();
        mount.args(["mount", "--strict", "--config"]).arg(&config);
        mount.arg("--state-dir").arg(self.dir.path().join("state"));
        mount.arg("--cache-dir").arg(self.dir.path().join("cache")).arg(self.at());
        self.starting = true;
        let output = mount.output().await?;
        self.starting = false;
        let words = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("the add-on cannot be mounted: {}", words.trim());
        }
        Ok(())
    }

    /// This program, in an environment that says nothing of other mounts and policies.
    fn addonfs(&self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        for (name, _) in std::env::vars_os() {
            let ours = |prefix: &str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
            if (ours("ADDONFS_") && name != "ADDONFS_LOG") || ours("FLWD_") {
                command.env_remove(&name);
            }
        }
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// The ids of the jobs, in their order.
    pub(super) fn jobs(&self) -> anyhow::Result<Vec<String>> {
        let path = self.at().join(".addonfs/jobs.json");
        let jobs: Vec<Value> = serde_json::from_slice(&std::fs::read(&path)?)?;
        Ok(jobs.iter().filter_map(|job| job["entrypoint"].as_str()).map(str::to_owned).collect())
    }

    /// A file with arguments. They may be secrets of the person who tests.
    pub(super) fn arguments(&self, values: &Map<String, Value>) -> anyhow::Result<PathBuf> {
        let path = self.dir.path().join("args.json");
        let _ = std::fs::remove_file(&path);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        serde_json::to_writer(&mut file, values)?;
        file.flush()?;
        Ok(path)
    }

    /// The plan of a job, or why there is none.
    pub(super) async fn planned(&self, id: &str, arguments: &Path) -> anyhow::Result<Result<Value, String>> {
        let output = self.program(id, "plan", arguments).output().await?;
        if !output.status.success() {
            return Ok(Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        serde_json::from_slice(&output.stdout)
            .map(Ok)
            .with_context(|| format!("the plan of {id} is not JSON"))
    }

    /// Runs a job, its output on our stderr; its exit code.
    pub(super) async fn ran(&self, id: &str, arguments: &Path) -> anyhow::Result<i32> {
        let mut run = self.program(id, "run", arguments);
        run.stdout(std::io::stderr().as_fd().try_clone_to_owned()?);
        let status = run.status().await.with_context(|| format!("cannot execute the run of {id}"))?;
        Ok(status.code().unwrap_or(-1))
    }

    fn program(&self, id: &str, name: &str, arguments: &Path) -> Command {
        let mut command = Command::new(self.source().join(id).join(name));
        let mut file = std::ffi::OsString::from("@");
        file.push(arguments);
        command.arg("--args-json").arg(file).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Cancels what runs, unmounts, and removes everything.
    pub(super) async fn take_down(self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.starting && !mounted::is_mounted(&self.at()) && begun.elapsed() < APPEARS {
            tokio::time::sleep(LOOK).await;
        }
        if mounted::is_mounted(&self.at()) {
            let output = self.addonfs().arg("umount").arg("--cancel").arg(self.at()).output().await?;
            if !output.status.success() {
                let (why, dir) = (String::from_utf8_lossy(&output.stderr).trim().to_owned(), self.dir.keep());
                bail!("{} could not be taken down and is left: {why}", dir.display());
            }
        }
        self.dir.close().context("cannot remove the temporary folder")
    }
}

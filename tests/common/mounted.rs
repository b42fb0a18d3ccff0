//! A control tree on a real mount, unmounted when dropped, also by a failing test.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub, missing_debug_implementations)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use addonfs::fs::kernel::control::{ControlConnection, forget_name};
use addonfs::fs::kernel::mount::{mount_control, open_device, unmount};
use addonfs::fs::kernel::session::Serving;

use crate::control::Stage;

pub struct Mount {
    pub stage: Stage,
    path: PathBuf,
    nested: Option<PathBuf>,
    serving: Option<Serving>,
    _dir: tempfile::TempDir,
}

impl Mount {
    pub fn new() -> Self {
        Self::of(Stage::new())
    }

    pub fn of(stage: Stage) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // ordinary users must reach the mount point
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let path = dir.path().join("M");
        std::fs::create_dir(&path).unwrap();
        let mounted = mount_control(open_device().unwrap(), &path).unwrap();
        let connection = ControlConnection::new(stage.tree.clone(), stage.runtime.handle().clone());
        let mut mount = Self { stage, path, nested: None, serving: None, _dir: dir };
        let (serving, _) = Serving::start(connection, mounted.device, None).unwrap();
        mount.stage.tree.on_forget_name(forget_name(serving.notifier()));
        mount.serving = Some(serving);
        mount
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn job(&self, name: &str) -> PathBuf {
        self.path.join("tools/postgres").join(name)
    }

    /// Mounts a directory with one file over `.addonfs/images`, in the place of the image connection.
    pub fn nest_images(&mut self) -> PathBuf {
        let at = self.path.join(".addonfs/images");
        let from = self.stage.dir.path().join("images");
        std::fs::create_dir_all(&from).unwrap();
        std::fs::write(from.join("there"), "yes\n").unwrap();
        nix::mount::mount(Some(&from), &at, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)
            .unwrap();
        self.nested = Some(at.clone());
        at
    }

    /// Runs a script in the mount point with `M` set, and gives up on it after 20 seconds.
    pub fn shell(&self, shell: &str, script: &str) -> Output {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "20", shell, "-c", script]).env("M", &self.path).current_dir(&self.path);
        command.output().unwrap()
    }

    /// The same; it must succeed and say nothing on stderr.
    pub fn sh(&self, script: &str) -> String {
        let output = self.shell("bash", script);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success() && err.is_empty(), "{script}\n{:?}\n{out}\n{err}", output.status);
        out
    }

    /// The same; it must fail, and its stderr is returned.
    pub fn refused(&self, script: &str) -> String {
        let output = self.shell("bash", script);
        assert!(!output.status.success(), "{script} succeeded: {}", text(&output.stdout));
        assert_ne!(output.status.code(), Some(124), "{script} hung");
        text(&output.stderr)
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(nested) = &self.nested {
            let _ = nix::mount::umount2(nested, nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = unmount(&self.path);
        if let Some(serving) = self.serving.take() {
            let _ = serving.stop(Duration::from_secs(5));
        }
    }
}

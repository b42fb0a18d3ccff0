//! The run's private mounts: made in the shim's own mount namespace, so they are nobody else's business and are gone
//! with the last process of the run, however it ends.
//!
//! ```text
//! box/            tmpfs, 0700, not swapped where the kernel can do that: config.json, runtime state, secrets
//! ├── bundle/     config.json
//! ├── rootfs/     overlay, nosuid,nodev: the image below, top/upper above
//! ├── top/        read-only root: a directory that takes mount points only; else a tmpfs of its own, limited
//! ├── folder/     becomes /run/addonfs: args.json, mount points out/ and data/
//! ├── out/        tmpfs, limited: becomes RUN_DIR
//! ├── secrets/    becomes /run/secrets
//! ├── network     the network namespace, bound here
//! ├── program     the embedded runtime, bound here read-only
//! └── state/      the runtime's own records
//! ```

use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};
use zeroize::Zeroizing;

use crate::jobs::executor::LaunchSpec;
use crate::jobs::oci::launch::BOX;
use crate::jobs::oci::user::JobUser;

/// Holds config.json, a few small files and the secrets; secrets are bounded with the arguments, far below.
const BOX_OPTIONS: &str = "mode=0700,size=32m,nr_inodes=16k";
/// The largest writable layer. It is memory: a job that needs more disk has its RUN_DIR and DATA_DIR. With a memory limit
/// it is half of that at most, because it counts as the job's memory: a full layer is an error that the job can
/// read, an exhausted limit kills it.
const UPPER_BYTES_MAX: u64 = 1 << 30;
/// Most files of RUN_DIR and of a writable layer.
const INODES: &str = "nr_inodes=128k";

/// The mounted room of one run.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) dir: PathBuf,
    pub(super) has_secrets: bool,
}

impl Room {
    /// Enters a private mount namespace and mounts the box.
    pub(super) fn enter(run_dir: &Path, hybrid: Option<&Path>) -> Result<Self, String> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .map_err(|e| format!("cannot make a mount namespace: {e}"))?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(|e| format!("cannot make mounts private: {e}"))?;
        if let Some(unified) = hybrid {
            // crun refuses to run where it sees a v2 hierarchy beside v1 controllers; hide it from this run only.
            tmpfs(unified, "mode=0755,size=4k")?;
        }
        let dir = run_dir.join(BOX);
        make_dir(&dir, 0o700)?;
        let room = Self { dir, has_secrets: false };
        room.mount_box()?;
        Ok(room)
    }

    fn mount_box(&self) -> Result<(), String> {
        // noswap is of Linux 6.4 and not for user namespaces.
        tmpfs(&self.dir, &format!("{BOX_OPTIONS},noswap")).or_else(|_| tmpfs(&self.dir, BOX_OPTIONS))?;
        for name in ["bundle", "rootfs", "state", "top"] {
            make_dir(&self.path(name), 0o700)?;
        }
        Ok(())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Opens the image's tree; in this mount namespace, overlayfs takes no other.
    pub(super) fn open_image(spec: &LaunchSpec) -> Result<OwnedFd, String> {
        open(&spec.rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| format!("cannot open the image at {}: {e}", spec.rootfs.display()))
    }

    /// Mounts the root: the image below, a throw-away layer above. A read-only root gets a layer too, because the
    /// image may lack the mount points; the runtime then makes the whole read-only.
    pub(super) fn mount_root(
        &self,
        spec: &LaunchSpec,
        image: &OwnedFd,
        rootless: bool,
    ) -> Result<(), String> {
        let top = self.path("top");
        if !spec.read_only_root {
            let size = spec.memory_bytes.map_or(UPPER_BYTES_MAX, |m| (m / 2).clamp(1, UPPER_BYTES_MAX));
            tmpfs(&top, &format!("mode=0700,size={size},{INODES}"))?;
        }
        make_dir(&top.join("work"), 0o700)?;
        // The merged root shows the attributes of the upper directory: they must be the image's.
        let stat = fstat(image).map_err(|e| format!("cannot stat the image: {e}"))?;
        make_dir(&top.join("upper"), stat.st_mode & 0o7777)?;
        if !rootless {
            chown(top.join("upper"), Some(stat.st_uid), Some(stat.st_gid))
                .map_err(|e| format!("upper: {e}"))?;
        }
        // Names of our own choice and a number: no path with a comma or colon can break the option string.
        let user = if rootless { ",userxattr" } else { "" };
        let options =
            format!("lowerdir=/proc/self/fd/{},upperdir=top/upper,workdir=top/work{user}", image.as_raw_fd());
        let options = CString::new(options).map_err(|e| e.to_string())?;
        std::env::set_current_dir(&self.dir).map_err(|e| format!("cannot enter the box: {e}"))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let mounted = mount("overlay", "rootfs", "overlay", flags, Some(options.as_c_str()));
        let _ = std::env::set_current_dir("/");
        mounted
            .map_err(|e| format!("cannot mount an overlay over the image at {}: {e}", spec.rootfs.display()))
    }

    /// The places a job finds its arguments, secrets and `RUN_DIR` at.
    pub(super) fn furnish(
        &mut self,
        spec: &LaunchSpec,
        user: &JobUser,
        secrets: &[(String, Zeroizing<String>)],
    ) -> Result<(), String> {
        let folder = self.path("folder");
        make_dir(&folder, 0o755)?;
        make_dir(&folder.join("out"), 0o755)?;
        make_dir(&folder.join("data"), 0o755)?;
        write_file(&folder.join("args.json"), spec.args_json.as_bytes(), 0o444)?;

        let out = self.path("out");
        make_dir(&out, 0o700)?;
        let (uid, gid) = (user.uid, user.gid);
        tmpfs(&out, &format!("mode=0755,uid={uid},gid={gid},size={},{INODES}", spec.out_bytes.max(1)))?;

        if secrets.is_empty() {
            return Ok(());
        }
        let dir = self.path("secrets");
        make_dir(&dir, 0o700)?;
        for (name, value) in secrets {
            if name.is_empty() || name.contains('/') || name.starts_with('.') {
                return Err(format!("secret name {name:?} cannot be a file name"));
            }
            let path = dir.join(name);
            write_file(&path, value.as_bytes(), 0o600)?;
            chown(&path, Some(uid), Some(gid))
                .map_err(|e| format!("cannot give secret {name} to its user: {e}"))?;
        }
        chown(&dir, Some(uid), Some(gid))
            .map_err(|e| format!("cannot give the secrets to their user: {e}"))?;
        self.has_secrets = true;
        Ok(())
    }

    /// Binds a network namespace to a name that the runtime can open.
    pub(super) fn hold_network(&self, namespace: &OwnedFd) -> Result<PathBuf, String> {
        let path = self.path("network");
        write_file(&path, b"", 0o400)?;
        mount_bind(format!("/proc/self/fd/{}", namespace.as_fd().as_raw_fd()), &path)
            .map_err(|e| format!("cannot hold the network namespace: {e}"))?;
        Ok(path)
    }

    /// Where the embedded runtime is to be executed.
    #[cfg(feature = "embedded-runtime")]
    pub(super) fn hold_program(&self) -> Result<PathBuf, String> {
        let path = self.path("program");
        write_file(&path, b"", 0o500)?;
        crate::jobs::oci::embedded::hold_program(&path)
    }

    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf, String> {
        let path = self.path(name);
        write_file(&path, content, 0o444)?;
        Ok(path)
    }
}

impl Drop for Room {
    /// Its mounts would go with us anyway; the directory below them would not.
    fn drop(&mut self) {
        let _ = unmount(&self.dir, UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.dir);
    }
}

fn tmpfs(at: &Path, options: &str) -> Result<(), String> {
    let data = CString::new(options).map_err(|e| e.to_string())?;
    mount("tmpfs", at, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(data.as_c_str()))
        .map_err(|e| format!("cannot mount a tmpfs at {}: {e}", at.display()))
}

/// Makes a directory with exactly these mode bits, or takes the one that is there.
fn make_dir(path: &Path, mode: u32) -> Result<(), String> {
    let made = match fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(|e| format!("cannot make {}: {e}", path.display()))
}

fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), String> {
    let open = || fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    open()
        .and_then(|mut file| {
            file.write_all(content)?;
            file.set_permissions(fs::Permissions::from_mode(mode))
        })
        .map_err(|e| format!("cannot write {}: {e}", path.display()))
}

//! The holder: the tiny parent that opens the `/dev/fuse` of all three connections, mounts, and keeps the descriptors while daemons come and go.
//!
//! The kernel keeps a FUSE connection as long as any process holds its descriptor. The holder therefore does nothing
//! that could fail: one thread, no network, no parsing; it starts a daemon with the descriptors and starts the next
//! one when that dies. The image connections are mounted below the control tree, so their mount(2) need a daemon that
//! answers lookups: a short child of the holder makes those mounts, the holder itself never touches the tree.
//!
//! The second image connection, for trees with extended attributes, is mounted always, though few images need it: a
//! mount made when the first such image appears would have to be asked for by a daemon that may die while it waits.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::inherit::Descriptors;
use super::lock::StateLock;
use crate::cli::config::Beside;
use crate::cli::dirs::Dirs;
use crate::fs::kernel::mount::{self, Tree};

/// What a holder and its daemons need to know; travels as one JSON argument.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HoldOptions {
    /// The mount point, absolute.
    pub mount_point: PathBuf,
    /// Where the usual image connection is mounted: below the mount point, or elsewhere for an ordinary user.
    pub images_dir: PathBuf,
    /// The configuration file, absolute.
    pub config: PathBuf,
    /// Where things are kept.
    pub dirs: Dirs,
    /// Stay attached to the terminal.
    pub foreground: bool,
    /// What was said beside the configuration.
    pub beside: Beside,
}

impl HoldOptions {
    /// Where the image connection with extended attributes is mounted: beside the usual one.
    pub(crate) fn xattr_images_dir(&self) -> PathBuf {
        self.images_dir.with_file_name(self.xattr_images_name())
    }

    /// The way from the one to the other.
    pub(crate) fn other_side(&self) -> String {
        format!("../{}", self.xattr_images_name())
    }

    fn xattr_images_name(&self) -> String {
        let name = self.images_dir.file_name().unwrap_or_default();
        format!("xattr-{}", name.to_string_lossy())
    }

    /// Whether the image connections are mounted below the control tree.
    pub(crate) fn nested(&self) -> bool {
        self.images_dir.starts_with(&self.mount_point)
    }
}

/// What the holder or the daemon says once on the ready pipe.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ready {
    /// The tree answers.
    Mounted,
    /// It does not, and will not.
    Failed(String),
}

impl Ready {
    /// Says it; the reader may be gone already, which is its own business.
    pub(crate) fn say(&self, pipe: impl AsFd) {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        let _ = rustix::io::write(pipe, &line);
    }
}

/// A daemon that exits with this number will fail again the same way: it is not started anew.
pub(crate) const HOPELESS: u8 = 3;

/// Deaths within [`QUICK`] of a start before the holder gives up.
const QUICK_DEATHS: u32 = 5;
/// A daemon that lived this long started properly.
const QUICK: Duration = Duration::from_secs(2);
/// Between a death and the next start after a quick death; callers wait meanwhile.
const BACKOFF: Duration = Duration::from_millis(200);

/// Runs as the holder until the mount is taken down. `ready` is the pipe to the waiting `addonfs mount`.
pub(crate) fn hold(options: &HoldOptions, ready: OwnedFd) -> ExitCode {
    let report = ready.try_clone();
    match hold_until_ended(options, ready) {
        Ok(code) => code,
        Err(error) => {
            if let Ok(report) = report {
                Ready::Failed(format!("{error:#}")).say(report);
            }
            tracing::error!("holder: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whatever goes wrong after the mount, the mount does not stay behind: without us it is dead.
fn hold_until_ended(options: &HoldOptions, ready: OwnedFd) -> anyhow::Result<ExitCode> {
    // Before the mount: a signal that comes in between must not end us beside it. It is kept for `attend`.
    watched_signals().thread_block()?;
    let mut holder = Holder::open(options, ready)?;
    let ended = holder.run();
    if ended.is_err() {
        holder.take_down();
    }
    ended
}

struct Holder<'a> {
    options: &'a HoldOptions,
    descriptors: Descriptors,
    mounted: File,
    images_mounted: bool,
    /// There is a controlling terminal, whose hang-up is an end.
    terminal: bool,
    /// Somebody told us to end: a daemon that dies of that is not started again.
    stopping: bool,
}

impl<'a> Holder<'a> {
    fn open(options: &'a HoldOptions, ready: OwnedFd) -> anyhow::Result<Self> {
        if !options.foreground {
            nix::unistd::setsid().context("cannot leave the terminal's session")?;
        }
        let lock = StateLock::take(&options.dirs.state)?;
        clear_dead(&options.mount_point)?;
        let control = mount::mount(Tree::Control, &options.mount_point)?.device;
        let opened = Self::with_control(options, lock, control, ready);
        if opened.is_err() {
            let _ = mount::unmount(&options.mount_point);
        }
        opened
    }

    fn with_control(
        options: &'a HoldOptions,
        lock: StateLock,
        control: OwnedFd,
        ready: OwnedFd,
    ) -> anyhow::Result<Self> {
        let (images, xattr_images, images_mounted) = if options.nested() {
            (mount::open_device()?, mount::open_device()?, false)
        } else {
            let images = mount_beside(&options.images_dir)?;
            let xattr_images = mount_beside(&options.xattr_images_dir());
            if xattr_images.is_err() {
                let _ = mount::unmount(&options.images_dir);
            }
            (images, xattr_images?, true)
        };
        let (mounted_reader, mounted) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let descriptors = Descriptors {
            control,
            images,
            xattr_images,
            control_init: memfd_create("addonfs-control-init", MemfdFlags::CLOEXEC)?,
            images_init: memfd_create("addonfs-images-init", MemfdFlags::CLOEXEC)?,
            xattr_images_init: memfd_create("addonfs-xattr-images-init", MemfdFlags::CLOEXEC)?,
            config: memfd_create("addonfs-config", MemfdFlags::CLOEXEC)?,
            lock: lock.into_fd(),
            ready,
            mounted: mounted_reader,
        };
        let terminal = options.foreground && File::open("/dev/tty").is_ok();
        Ok(Self {
            options,
            descriptors,
            mounted: File::from(mounted),
            images_mounted,
            terminal,
            stopping: false,
        })
    }

    fn run(&mut self) -> anyhow::Result<ExitCode> {
        let signals = watched_signals();
        let mut quick_deaths = 0;
        loop {
            let started = Instant::now();
            let mut daemon = self.start_daemon()?;
            let status = match self.attend(&daemon, &signals) {
                Ok(status) => status,
                Err(error) => {
                    let _ = daemon.kill();
                    return Err(error);
                }
            };
            match status {
                WaitStatus::Exited(_, 0) => return Ok(ExitCode::SUCCESS),
                WaitStatus::Exited(_, code) if code == i32::from(HOPELESS) => {
                    self.take_down();
                    return Ok(ExitCode::from(HOPELESS));
                }
                other if self.stopping => {
                    tracing::warn!("the daemon ended ({other:?}) while it was being stopped");
                    self.take_down();
                    return Ok(ExitCode::SUCCESS);
                }
                other => tracing::warn!("the daemon ended ({other:?}); starting it again"),
            }
            if started.elapsed() < QUICK {
                quick_deaths += 1;
                if quick_deaths >= QUICK_DEATHS {
                    anyhow::bail!("the daemon died {quick_deaths} times right after its start; see its log");
                }
                std::thread::sleep(BACKOFF);
            } else {
                quick_deaths = 0;
            }
        }
    }

    fn start_daemon(&mut self) -> anyhow::Result<Child> {
        if self.images_mounted {
            self.tell_mounted()?;
        }
        let mut command = Command::new("/proc/self/exe");
        command.arg("__daemon").arg(serde_json::to_string(self.options)?);
        self.descriptors.spawn_with(&mut command)
    }

    /// One byte for each daemon that is told; a daemon reads exactly one.
    fn tell_mounted(&mut self) -> anyhow::Result<()> {
        self.mounted.write_all(b"m").context("cannot tell the daemon that its images are mounted")
    }

    /// Waits for the daemon's end; meanwhile mounts the images and passes signals on.
    fn attend(&mut self, daemon: &Child, signals: &SigSet) -> anyhow::Result<WaitStatus> {
        let daemon = Pid::from_raw(i32::try_from(daemon.id())?);
        let mut helper = if self.images_mounted { None } else { Some(self.start_image_mount()?) };
        loop {
            match signals.wait()? {
                Signal::SIGCHLD => {}
                // Without a terminal there is nothing that could hang up: whoever asks means the configuration.
                // A daemon that only starts reads it anyway.
                Signal::SIGHUP if !self.terminal && !self.images_mounted => continue,
                Signal::SIGHUP if !self.terminal => {
                    let _ = nix::sys::signal::kill(daemon, Signal::SIGHUP);
                    continue;
                }
                _ => {
                    self.stopping = true;
                    let _ = nix::sys::signal::kill(daemon, Signal::SIGTERM);
                    continue;
                }
            }
            if let Some(pid) = helper
                && let Some(status) = reaped(pid)?
            {
                helper = None;
                self.image_mount_ended(status)?;
            }
            if let Some(status) = reaped(daemon)? {
                if let Some(pid) = helper {
                    // It waits in mount(2) for a lookup that the next daemon will answer, or was never asked.
                    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
                }
                return Ok(status);
            }
        }
    }

    fn start_image_mount(&self) -> anyhow::Result<Pid> {
        use std::os::fd::AsRawFd as _;
        let devices = [
            (&self.descriptors.images, self.options.images_dir.clone()),
            (&self.descriptors.xattr_images, self.options.xattr_images_dir()),
        ];
        let mut command = Command::new("/proc/self/exe");
        command.arg("__mount-images");
        for (device, path) in &devices {
            command.arg(device.as_raw_fd().to_string()).arg(path);
            rustix::io::fcntl_setfd(device, rustix::io::FdFlags::empty())?;
        }
        let child = command.spawn();
        for (device, _) in &devices {
            rustix::io::fcntl_setfd(device, rustix::io::FdFlags::CLOEXEC)?;
        }
        Ok(Pid::from_raw(i32::try_from(child?.id())?))
    }

    fn image_mount_ended(&mut self, status: WaitStatus) -> anyhow::Result<()> {
        match status {
            WaitStatus::Exited(_, 0) => {
                self.images_mounted = true;
                self.tell_mounted()
            }
            other => {
                let dir = self.options.images_dir.display();
                anyhow::bail!("cannot mount the image trees at {dir} ({other:?}); see the log")
            }
        }
    }

    /// Detaching the mount point detaches what is mounted below it too.
    fn take_down(&self) {
        if self.images_mounted && !self.options.nested() {
            let _ = mount::unmount(&self.options.images_dir);
            let _ = mount::unmount(&self.options.xattr_images_dir());
        }
        if let Err(error) = mount::unmount(&self.options.mount_point) {
            tracing::error!("cannot unmount {}: {error}", self.options.mount_point.display());
        }
    }
}

/// SIGCHLD wakes the holder; SIGTERM, SIGINT and a terminal's SIGHUP all tell the daemon to stop.
fn watched_signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}

fn reaped(pid: Pid) -> anyhow::Result<Option<WaitStatus>> {
    match waitpid(pid, Some(WaitPidFlag::WNOHANG))? {
        WaitStatus::StillAlive => Ok(None),
        status => Ok(Some(status)),
    }
}

/// Detaches what an earlier holder and daemon left behind when both were killed.
fn clear_dead(path: &Path) -> anyhow::Result<()> {
    while let Some(connection) = mount::connection_of(path) {
        match mount::state(path, connection) {
            mount::State::Dead => mount::unmount(path)?,
            _ => anyhow::bail!("{} is mounted already: `addonfs umount` takes it down", path.display()),
        }
    }
    Ok(())
}

/// Mounts an ordinary user's image connection, outside of the control tree.
fn mount_beside(path: &Path) -> anyhow::Result<OwnedFd> {
    clear_dead(path)?;
    std::fs::create_dir_all(path)?;
    Ok(mount::mount(Tree::Images, path)?.device)
}

/// The child that mounts the image connections: `addonfs __mount-images FD PATH FD PATH`.
pub(crate) fn mount_images(mounts: &[(String, PathBuf); 2]) -> anyhow::Result<()> {
    for (descriptor, path) in mounts {
        let number: i32 = descriptor.parse().context("not a descriptor number")?;
        let device = super::inherit::adopt(number)?;
        // an earlier child may have come this far before it was killed with the daemon that it waited for
        if mount::connection_of(path).is_none() {
            mount::mount_images(device, path)?;
        }
    }
    Ok(())
}

/// Where the usual image connection of a mount is mounted.
///
/// Root nests it below the control tree, so that one bind of the mount point carries all. An ordinary user's
/// fusermount3 gives each descriptor to whoever called it, which for a nested mount would not be the holder: there
/// the images lie in the runtime directory and `rootfs` is an absolute link.
pub(crate) fn images_dir(mount_point: &Path, runtime: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    if nix::unistd::geteuid().is_root() {
        return mount_point.join(".addonfs/images");
    }
    let id = crate::policy::digest::Digest::of(mount_point.as_os_str().as_bytes()).hex();
    runtime.join(format!("images-{}", &id[..16]))
}

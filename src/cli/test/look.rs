//! Programs and folders of an image, as the image's user would meet them. Nothing is executed, and no path leads out of
//! the image (`RESOLVE_IN_ROOT`).

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use elf::ElfStream;
use elf::abi::{EM_AARCH64, EM_X86_64, PT_INTERP};
use elf::endian::AnyEndian;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2};

use crate::jobs::oci::{JobUser, resolve_user};
use crate::policy::image::ImageConfig;
use crate::policy::image_config::DEFAULT_PATH;

/// Longest `#!` line, as the kernel reads it (BINPRM_BUF_SIZE).
const HEAD: u64 = 256;
/// Longest path of a loader.
const MAX_PATH: usize = 4096;

/// A mounted image.
#[derive(Debug)]
pub(super) struct Image {
    root: OwnedFd,
    /// Where `root` is on the host.
    at: PathBuf,
    config: ImageConfig,
    user: JobUser,
    /// What is wrong with the image itself.
    pub(super) problems: Vec<String>,
}

/// A file of the image.
struct Found {
    fd: OwnedFd,
    stat: Stat,
    /// Below the image's root, links resolved.
    path: PathBuf,
}

impl Image {
    /// The image of the add-on at `source`.
    pub(super) fn open(source: &Path) -> anyhow::Result<Self> {
        let at = source.join("rootfs").canonicalize().context("the image's root file system is not there")?;
        let config = at.parent().map(|image| image.join("config.json")).unwrap_or_default();
        let config = std::fs::read(&config).with_context(|| format!("cannot read {}", config.display()))?;
        let config = ImageConfig::parse(&config)?;
        let root = OwnedFd::from(File::open(&at).with_context(|| format!("cannot open {}", at.display()))?);
        let mut problems = Vec::new();
        let mut user = resolve_user(root.as_fd(), &config.user).unwrap_or_else(|why| {
            problems.push(why);
            JobUser { uid: 0, gid: 0, groups: Vec::new(), home: None }
        });
        let own = nix::unistd::geteuid();
        if !own.is_root() {
            // An ordinary user's daemon shows images as his own and runs their jobs as him.
            (user.uid, user.gid) = (own.as_raw(), nix::unistd::getegid().as_raw());
        }
        let mut image = Self { root, at, config, user, problems };
        if let Some(problem) = image.check_workdir() {
            image.problems.push(problem);
        }
        Ok(image)
    }

    /// `USER` as it is written, and what it is.
    pub(super) fn user(&self) -> (String, u32, u32) {
        (self.config.user.clone(), self.user.uid, self.user.gid)
    }

    /// `WORKDIR`.
    pub(super) fn workdir(&self) -> &str {
        &self.config.working_dir
    }

    fn check_workdir(&self) -> Option<String> {
        let dir = self.workdir();
        let found = match self.find(dir) {
            Ok(found) => found,
            Err(error) => return Some(format!("WORKDIR {dir} cannot be entered: {error}")),
        };
        if FileType::from_raw_mode(found.stat.st_mode) != FileType::Directory {
            return Some(format!("WORKDIR {dir} is not a folder"));
        }
        let closed = !self.may(&found.stat, X) || self.closed_folder(&found.path).is_some();
        closed.then(|| format!("WORKDIR {dir} cannot be entered by {}", self.who()))
    }

    /// What keeps `command` from being started.
    pub(super) fn check_program(&self, command: &[String], path: Option<&str>) -> Option<String> {
        let program = command.first()?;
        let own = self.config.env.iter().find_map(|line| line.strip_prefix("PATH="));
        let path = path.or(own).unwrap_or(DEFAULT_PATH);
        self.check(program, path, true).err()
    }

    /// Whether a program can be started; its interpreter too, which cannot have one itself.
    fn check(&self, program: &str, path: &str, may_be_script: bool) -> Result<(), String> {
        let found = self.search(program, path)?;
        if FileType::from_raw_mode(found.stat.st_mode) != FileType::RegularFile {
            return Err(format!("{program} is not a file"));
        }
        if let Some(folder) = self.closed_folder(&found.path) {
            return Err(format!("{program} is out of reach of {}: {} lacks x", self.who(), folder.display()));
        }
        if !self.may(&found.stat, X) {
            let mode = found.stat.st_mode & 0o7777;
            return Err(format!(
                "{program} is not executable for {} (mode {mode:04o}): chmod +x before the image is built",
                self.who()
            ));
        }
        let head = head(&found).map_err(|error| format!("{program} cannot be read: {error}"))?;
        if let Some(line) = head.strip_prefix(b"#!") {
            if !self.may(&found.stat, R) {
                return Err(format!("{program} is a script that {} may not read", self.who()));
            }
            let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
            return self.check_script(program, &String::from_utf8_lossy(line), path, may_be_script);
        }
        let file = reopened(&found).map_err(|error| format!("{program} cannot be read: {error}"))?;
        let Ok(elf) = ElfStream::<AnyEndian, _>::open_stream(file) else {
            return Err(format!("{program} is neither a program nor a script that begins with #!"));
        };
        let ours = if cfg!(target_arch = "aarch64") { EM_AARCH64 } else { EM_X86_64 };
        if elf.ehdr.e_machine != ours {
            return Err(format!("{program} is built for another processor"));
        }
        let interpreter = elf.segments().iter().find(|part| part.p_type == PT_INTERP).and_then(|part| {
            let mut path = vec![0; usize::try_from(part.p_filesz).ok().filter(|len| *len <= MAX_PATH)?];
            reopened(&found).ok()?.read_exact_at(&mut path, part.p_offset).ok()?;
            Some(String::from_utf8_lossy(&path).trim_end_matches('\0').to_owned())
        });
        match interpreter {
            Some(loader) if self.find(&loader).is_err() => {
                Err(format!("{program} needs the loader {loader}, which is not in the image"))
            }
            _ => Ok(()),
        }
    }

    fn check_script(&self, program: &str, line: &str, path: &str, may_be_script: bool) -> Result<(), String> {
        if line.ends_with('\r') {
            return Err(format!("{program} has lines that end with \\r\\n: no interpreter is called so"));
        }
        let mut words = line.split_whitespace();
        let Some(interpreter) = words.next().filter(|_| may_be_script) else {
            return Err(format!("{program} names no interpreter that is a program"));
        };
        let of = |why: String| format!("{program} is a script, and {why}");
        self.check(interpreter, path, false).map_err(of)?;
        // `env` looks for the program that it is given.
        match words.find(|word| !word.starts_with('-') && !word.contains('=')) {
            Some(name) if interpreter.ends_with("/env") => self.check(name, path, false).map_err(of),
            _ => Ok(()),
        }
    }

    /// Where the runtime finds a program.
    fn search(&self, program: &str, path: &str) -> Result<Found, String> {
        if program.contains('/') {
            let full = match program.starts_with('/') {
                true => program.to_owned(),
                false => format!("{}/{program}", self.workdir()),
            };
            return self.find(&full).map_err(|error| match error {
                rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR => {
                    format!("{program} is not in the image")
                }
                error => format!("{program} cannot be reached: {error}"),
            });
        }
        let found = path.split(':').find_map(|dir| {
            let found = self.find(&format!("{dir}/{program}")).ok()?;
            (FileType::from_raw_mode(found.stat.st_mode) == FileType::RegularFile).then_some(found)
        });
        found.ok_or_else(|| format!("{program} is in no folder of PATH ({path})"))
    }

    fn find(&self, path: &str) -> rustix::io::Result<Found> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let fd = openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        let stat = fstat(&fd)?;
        let real = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
        let path = real.strip_prefix(&self.at).map(Path::to_owned).unwrap_or_default();
        Ok(Found { fd, stat, path })
    }

    /// The first folder on the way to `path` that the user may not pass.
    fn closed_folder(&self, path: &Path) -> Option<PathBuf> {
        let mut folders: Vec<&Path> = path.ancestors().skip(1).collect();
        folders.reverse();
        let folder = folders.into_iter().find(|folder| {
            let folder = format!("/{}", folder.display());
            self.find(&folder).is_ok_and(|found| !self.may(&found.stat, X))
        })?;
        Some(Path::new("/").join(folder))
    }

    /// Whether the user has a right by the file's mode. Jobs have no capabilities: for root, too, the mode counts.
    fn may(&self, stat: &Stat, right: u32) -> bool {
        let shift = if stat.st_uid == self.user.uid {
            6
        } else if stat.st_gid == self.user.gid || self.user.groups.contains(&stat.st_gid) {
            3
        } else {
            0
        };
        (stat.st_mode >> shift) & right != 0
    }

    fn who(&self) -> String {
        match self.config.user.as_str() {
            "" => "root".to_owned(),
            user => format!("USER {user}"),
        }
    }
}

const R: u32 = 4;
const X: u32 = 1;

fn reopened(found: &Found) -> std::io::Result<File> {
    File::open(format!("/proc/self/fd/{}", found.fd.as_raw_fd()))
}

fn head(found: &Found) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reopened(found)?.take(HEAD).read_to_end(&mut bytes)?;
    Ok(bytes)
}

//! Jobs and runs as files of a mount: what the commands `run`, `plan`, `jobs`, `runs`, `logs` and `cancel` work
//! with. They read and write what anybody may read and write; nothing here talks to the daemon in another way.

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::config::beside::profile_of_environment;
use super::mounted;
use crate::policy::addon::Resources;
use crate::policy::ceiling::LimitsError;
use crate::policy::rules::Profile;

/// Largest record.json or jobs.json that is read.
const MAX_JSON: u64 = 64 << 20;

/// addonfs refuses: no job has this code of its own by convention.
const REFUSED: u8 = 125;

/// The mount that a command of this family means.
#[derive(Debug, clap::Args)]
pub(crate) struct MountArg {
    /// The mount point [default: $ADDONFS_MOUNT, else the only one there is]
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
}

/// What `run` and `plan` ask for beside the job's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct WishArgs {
    /// Ask for this security profile: a stricter one is granted, a looser one where the host's policy names it
    /// [default: $ADDONFS_PROFILE, $FLWD_PROFILE, else the host's]
    #[arg(long, value_name = "PROFILE")]
    profile: Option<Profile>,
    /// Ask for these limits in place of the add-on's own; above the host's ceilings they are refused
    #[arg(long, value_name = "cpu=N,memory=N,timeout=D", value_parser = limits)]
    limits: Option<String>,
}

/// Read here for its words; the daemon reads it again.
fn limits(text: &str) -> Result<String, LimitsError> {
    Resources::parse_request(text).map(|_| text.replace(' ', ""))
}

impl WishArgs {
    /// The options of the job's own programs that ask for it.
    pub(crate) fn options(&self) -> anyhow::Result<Vec<OsString>> {
        let profile = match self.profile {
            Some(profile) => Some(profile),
            None => profile_of_environment()?.map(|(profile, _)| profile),
        };
        let profile = profile.map(|profile| ["-p".into(), profile.to_string().into()]);
        let limits = self.limits.as_ref().map(|limits| ["-l".into(), limits.into()]);
        Ok([profile, limits].into_iter().flatten().flatten().collect())
    }
}

/// A mounted tree.
#[derive(Debug)]
pub(crate) struct Tree(PathBuf);

impl MountArg {
    /// As if it had been typed.
    pub(crate) fn at(mount: Option<PathBuf>) -> Self {
        Self { mount }
    }

    /// Becomes a program of the job that is the first of `words`; the result is why that was not possible.
    pub(crate) fn become_job(
        &self,
        program: &str,
        options: Vec<OsString>,
        words: Vec<OsString>,
    ) -> anyhow::Error {
        let mut words = words.into_iter();
        let job = words.next().unwrap_or_default();
        match self.tree().and_then(|tree| tree.job(&job.to_string_lossy())) {
            Ok(folder) => become_program(&folder.join(program), options.into_iter().chain(words)),
            Err(error) => error,
        }
    }

    /// Finds it.
    pub(crate) fn tree(&self) -> anyhow::Result<Tree> {
        mounted::chosen(self.mount.as_deref()).map(Tree)
    }
}

impl Tree {
    /// The folder of a job, by its id (`tools/backup/backup`).
    pub(crate) fn job(&self, id: &str) -> anyhow::Result<PathBuf> {
        let folder = self.below(id)?;
        match folder.join("job.json").try_exists() {
            Ok(true) => Ok(folder),
            Ok(false) => bail!("no job {id} on {}: `addonfs jobs` lists them", self.0.display()),
            Err(error) => Err(error).with_context(|| format!("cannot look at {}", folder.display())),
        }
    }

    /// The folder of a run: by its id, by `JOB/NAME`, or by its name where only one job has such a run.
    pub(crate) fn run(&self, word: &str) -> anyhow::Result<PathBuf> {
        if let Some((job, name)) = word.rsplit_once('/') {
            // `JOB/runs/NAME` is what a shell completes.
            let job = job.strip_suffix("/runs").unwrap_or(job);
            let folder = self.below(job)?.join("runs").join(name);
            return match folder.join("state").try_exists() {
                Ok(true) => Ok(folder),
                _ => bail!("job {job} has no run {name}: `addonfs runs {job}` lists them"),
            };
        }
        let by_id = self.below(word).map(|_| self.room("runs").join(word))?;
        if by_id.join("state").try_exists().unwrap_or(false) {
            return Ok(by_id);
        }
        let named: Vec<Record> =
            self.runs(None)?.into_iter().filter(|run| run.text("/name") == word).collect();
        match named.as_slice() {
            [only] => Ok(only.folder.clone()),
            [] => bail!("no run {word}: `addonfs runs` lists them"),
            several => {
                let jobs: Vec<String> =
                    several.iter().map(|run| format!("{}/{word}", run.text("/job"))).collect();
                bail!("several runs are called {word}: say which, {}", jobs.join(" or "))
            }
        }
    }

    /// All job descriptors.
    pub(crate) fn jobs(&self) -> anyhow::Result<Vec<Value>> {
        match read_json(&self.room("jobs.json"))? {
            Value::Array(jobs) => Ok(jobs),
            _ => bail!("{} is not a list", self.room("jobs.json").display()),
        }
    }

    /// The names of the sources.
    pub(crate) fn sources(&self) -> anyhow::Result<Vec<String>> {
        let folder = self.room("sources");
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    }

    /// The runs of a job or of all jobs, as far as the caller may see them, the oldest first.
    pub(crate) fn runs(&self, job: Option<&str>) -> anyhow::Result<Vec<Record>> {
        let folder = match job {
            Some(job) => self.job(job)?.join("runs"),
            None => self.room("runs"),
        };
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                bail!("you may not see the runs of this job: {} belongs to a group", folder.display())
            }
            entries => entries.with_context(|| format!("cannot list {}", folder.display()))?,
        };
        let mut runs = Vec::new();
        for entry in entries {
            let folder = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
            // Somebody else's run, or one that was removed meanwhile: not ours to list.
            if let Ok(record) = read_json(&folder.join("record.json")) {
                runs.push(Record { folder, record });
            }
        }
        runs.sort_by_key(|run| run.record["number"].as_u64());
        Ok(runs)
    }

    /// `record.json` of a run.
    pub(crate) fn record(&self, run: &Path) -> anyhow::Result<Value> {
        read_json(&run.join("record.json"))
    }

    /// `job.json` of a job.
    pub(crate) fn descriptor(&self, job: &Path) -> anyhow::Result<Value> {
        read_json(&job.join("job.json"))
    }

    /// `addon.json` of what is shown at a mount path.
    pub(crate) fn addon(&self, mount_path: &str) -> anyhow::Result<Value> {
        read_json(&self.0.join(mount_path).join("addon.json"))
    }

    /// `status.json`.
    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        read_json(&self.room("status.json"))
    }

    /// The mount point.
    pub(crate) fn place(&self) -> &Path {
        &self.0
    }

    /// A path as seen from the mount point: absolute, relative to here, or relative to the mount already.
    pub(crate) fn path_below(&self, path: &Path) -> Option<PathBuf> {
        // Not resolved: the links of an add-on lead to its image, and the image is not where it is shown.
        let absolute = std::path::absolute(path).ok()?;
        if let Ok(below) = absolute.strip_prefix(&self.0) {
            return Some(below.to_owned());
        }
        let here = self.below(path.to_str()?).ok()?;
        here.symlink_metadata().is_ok().then(|| path.to_owned())
    }

    /// The daemon's `ctl`.
    pub(crate) fn ctl(&self) -> PathBuf {
        self.room("ctl")
    }

    fn room(&self, name: &str) -> PathBuf {
        self.0.join(".addonfs").join(name)
    }

    /// A path below the mount that stays there.
    fn below(&self, id: &str) -> anyhow::Result<PathBuf> {
        let stays = Path::new(id).components().all(|part| matches!(part, Component::Normal(_)));
        if id.is_empty() || !stays {
            bail!("{id:?} is not the id of a job or run: it is a path below {}", self.0.display());
        }
        Ok(self.0.join(id))
    }
}

/// A run's record and folder.
#[derive(Debug)]
pub(crate) struct Record {
    /// Its folder on the mount.
    pub(crate) folder: PathBuf,
    /// `record.json`.
    pub(crate) record: Value,
}

impl Record {
    /// A field as text; empty where there is none.
    pub(crate) fn text(&self, pointer: &str) -> String {
        text(&self.record, pointer)
    }
}

/// A field of a JSON value as text; empty where there is none.
pub(crate) fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

fn read_json(path: &Path) -> anyhow::Result<Value> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_JSON).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", path.display()))
}

/// Prints why a job was not run; the exit code of a refusal, as the mount's own programs have it.
pub(crate) fn refused(error: &anyhow::Error) -> ExitCode {
    eprintln!("addonfs: {error:#}");
    ExitCode::from(REFUSED)
}

/// Becomes one of the mount's own programs; returns only if that is not possible.
pub(crate) fn become_program(program: &Path, words: impl IntoIterator<Item = OsString>) -> anyhow::Error {
    let error = Command::new(program).args(words).exec();
    anyhow::Error::new(error).context(format!("cannot execute {}", program.display()))
}

/// Says one line to a `ctl` and returns the reply; a refusal is an error with the reply's words.
pub(crate) fn say(ctl: &Path, line: &str) -> anyhow::Result<String> {
    let mut file = match fs::OpenOptions::new().read(true).write(true).open(ctl) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            bail!("you may not command this run: {} belongs to its owner and a group", ctl.display())
        }
        file => file.with_context(|| format!("cannot open {}", ctl.display()))?,
    };
    let written = file.write(line.as_bytes());
    let mut reply = String::new();
    let read = file.read_to_string(&mut reply);
    match written {
        Ok(_) => read.map(|_| reply).with_context(|| format!("cannot read the reply of {}", ctl.display())),
        Err(_) if !reply.trim().is_empty() => bail!("{}", reply.trim()),
        Err(error) => Err(error).with_context(|| format!("{} refused", ctl.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with the files of two jobs and three runs.
    fn tree() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let room = dir.path().join(".addonfs/runs");
        fs::create_dir_all(&room).unwrap();
        fs::write(dir.path().join(".addonfs/jobs.json"), "[{\"id\": \"a/one\"}, {\"id\": \"a/two\"}]\n")
            .unwrap();
        for (number, job, name) in [(2, "a/one", "nightly"), (1, "a/two", "nightly"), (3, "a/two", "once")] {
            let folder = dir.path().join(job);
            let run = folder.join("runs").join(name);
            fs::create_dir_all(&run).unwrap();
            fs::write(folder.join("job.json"), "{}").unwrap();
            fs::write(run.join("state"), "running\n").unwrap();
            let record = serde_json::json!({"number": number, "job": job, "name": name});
            fs::write(run.join("record.json"), record.to_string()).unwrap();
            std::os::unix::fs::symlink(&run, room.join(format!("r{number}"))).unwrap();
        }
        let tree = Tree(dir.path().to_owned());
        (dir, tree)
    }

    #[test]
    fn runs_are_found_by_id_path_and_unique_name() {
        let (dir, tree) = tree();
        let place = |job: &str, name: &str| dir.path().join(job).join("runs").join(name);
        assert_eq!(tree.run("a/one/nightly").unwrap(), place("a/one", "nightly"));
        assert_eq!(tree.run("a/one/runs/nightly").unwrap(), place("a/one", "nightly"));
        assert_eq!(
            tree.run("r2").unwrap().canonicalize().unwrap(),
            place("a/one", "nightly").canonicalize().unwrap()
        );
        assert_eq!(
            tree.run("once").unwrap().canonicalize().unwrap(),
            place("a/two", "once").canonicalize().unwrap()
        );
        let two = tree.run("nightly").unwrap_err().to_string();
        assert!(
            two.contains("a/one/nightly or a/two/nightly") || two.contains("a/two/nightly or a/one/nightly"),
            "{two}"
        );
        assert!(tree.run("gone").is_err() && tree.run("a/one/gone").is_err());
        for outside in ["../x", "/etc/x", "a/../../x", "", ".."] {
            assert!(tree.run(outside).is_err() && tree.job(outside).is_err(), "{outside}");
        }
    }

    #[test]
    fn listings() {
        let (_dir, tree) = tree();
        assert_eq!(tree.jobs().unwrap().len(), 2);
        let names: Vec<String> = tree.runs(None).unwrap().iter().map(|run| run.text("/number")).collect();
        assert_eq!(names, ["1", "2", "3"]);
        assert_eq!(tree.runs(Some("a/two")).unwrap().len(), 2);
        assert!(tree.runs(Some("a/none")).unwrap_err().to_string().contains("addonfs jobs"));
    }
}

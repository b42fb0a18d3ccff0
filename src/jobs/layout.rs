//! What this room keeps on disk, and the only place that knows the names.
//!
//! ```text
//! <state_dir>/
//! ├── jobs.journal            the log of all runs (its version is in its first line, see `journal`)
//! ├── jobs.new  jobs.damaged  a journal that is being rewritten; one that had damaged lines, kept for people
//! ├── jobs.lock               held by the daemon that has the directory open
//! ├── runs/                   0700
//! │   ├── r17-3f9a2c41/       one run; the name is the run id: number, `-`, this directory's random mark
//! │   │   ├── args.raw        before start: args.json as written, only if the job takes no secrets
//! │   │   ├── args.json       from start on: normalised, secrets as "[secret]"
//! │   │   ├── plan.json       what was decided at start
//! │   │   ├── stdin           FIFO, when started with stdin
//! │   │   ├── launch.json  shim.json  exit.json  stdout  stderr  out/     the executor's
//! │   │   ├── events.jsonl  events.1.jsonl    once somebody followed it over HTTP (cli::http::feed)
//! │   └── .gone-r9-3f9a2c41/  a removed run on its way out; swept at open
//! └── data/<job>/             DATA_DIR of a job, where policy grants it (`/` of the id is `%2F`, `%` is `%25`)
//! ```
//! The two texts of the arguments have names of their own because ext4 flushes a file that a rename or truncation
//! replaces at once (auto_da_alloc), which costs a start milliseconds.
//!
//! Everything about a run is in the journal; the files hold what is too large for it. `args.json` and `plan.json`
//! are not synced: the journal has the masked arguments and the plan's digest.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The arguments before start, in a run's folder.
pub(super) const ARGS_RAW: &str = "args.raw";
/// The arguments from start on.
pub(super) const ARGS: &str = "args.json";
/// The plan.
pub(super) const PLAN: &str = "plan.json";
/// Prefix of the folder of a removed run.
const GONE: &str = ".gone-";

/// The paths below one state directory.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    state_dir: PathBuf,
}

impl Layout {
    /// Makes the folders that are missing.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let layout = Self { state_dir: state_dir.to_owned() };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(layout.runs())?;
        Ok(layout)
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.state_dir.join("jobs.journal")
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.state_dir.join("jobs.lock")
    }

    pub(super) fn run_dir(&self, run_id: &str) -> PathBuf {
        self.runs().join(run_id)
    }

    pub(super) fn data_dir(&self, job_id: &str) -> PathBuf {
        self.state_dir.join("data").join(job_id.replace('%', "%25").replace('/', "%2F"))
    }

    /// Makes a run's folder: private, because `out/` and the logs are shown through the mount with its own modes.
    pub(super) fn make_run_dir(&self, run_id: &str) -> io::Result<PathBuf> {
        let dir = self.run_dir(run_id);
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(dir)
    }

    /// Takes a run's folder out of sight at once; [`Layout::sweep`] deletes it.
    pub(super) fn retire(&self, run_id: &str) -> io::Result<()> {
        match std::fs::rename(self.run_dir(run_id), self.runs().join(format!("{GONE}{run_id}"))) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Deletes retired folders, and folders of runs that `known` does not know (a crash between making the folder
    /// and writing the journal). Slow: not for a thread that serves anybody.
    pub(super) fn sweep(&self, known: impl Fn(&str) -> bool) {
        let Ok(entries) = std::fs::read_dir(self.runs()) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let stray = is_run_id(name) && !known(name);
            if (name.starts_with(GONE) || stray)
                && let Err(e) = std::fs::remove_dir_all(entry.path())
                && e.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %entry.path().display(), error = %e, "a removed run's folder stays");
            }
        }
    }

    fn runs(&self) -> PathBuf {
        self.state_dir.join("runs")
    }
}

/// Whether a file name has the shape of a run id; anything else in `runs/` is not ours to delete.
fn is_run_id(name: &str) -> bool {
    let Some((number, mark)) = name.strip_prefix('r').and_then(|rest| rest.split_once('-')) else {
        return false;
    };
    number.parse::<u64>().is_ok() && mark.len() == 8 && mark.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The id of a run: unique on this host for ever, because the number is never used again and the mark is random.
pub(super) fn run_id(number: u64, mark: &str) -> String {
    format!("r{number}-{mark}")
}

/// Makes a job's `DATA_DIR`. It is bound into containers whose users are not known here, so everybody may write in it;
/// the folder above it keeps everybody of the host out.
pub(super) fn make_data_dir(dir: &Path) -> io::Result<()> {
    if let Some(above) = dir.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(above)?;
    }
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
        // Not by the mode of mkdir: a umask would cut it.
        Ok(()) => std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o1777)),
    }
}

/// Writes a file under a temporary name and renames it, so that nobody sees half of it. Not synced.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, content)?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_only_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        for id in ["r1-00000001", "r2-00000001", "r3-00000001"] {
            layout.make_run_dir(id).unwrap();
        }
        std::fs::create_dir(dir.path().join("runs/notes")).unwrap();
        layout.retire("r2-00000001").unwrap();
        layout.retire("r9-00000001").unwrap();
        layout.sweep(|id| id == "r1-00000001");
        let mut left: Vec<_> =
            std::fs::read_dir(dir.path().join("runs")).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["notes", "r1-00000001"]);
    }

    #[test]
    fn a_data_folder_is_open_inside_a_closed_one_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let data = layout.data_dir("a/b");
        make_data_dir(&data).unwrap();
        std::fs::write(data.join("kept"), "x").unwrap();
        make_data_dir(&data).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&data), mode(&dir.path().join("data"))), (0o1777, 0o700));
        assert!(data.join("kept").exists());
    }

    #[test]
    fn job_ids_become_one_file_name_each() {
        let layout = Layout { state_dir: "/s".into() };
        assert_eq!(layout.data_dir("a/b"), Path::new("/s/data/a%2Fb"));
        assert_ne!(layout.data_dir("a%2Fb"), layout.data_dir("a/b"));
    }
}

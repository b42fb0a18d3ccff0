//! The files by which daemon and shim speak about a run, all in the run's folder on disk.
//!
//! ```text
//! launch-X.json the launch, no secrets: LaunchSpec and what the daemon chose for it; is    daemon -> shim
//!               launch.json from the moment in which a shim has taken it
//! control       named pipe, commands for a live shim, one a line                          daemon -> shim
//! stdin         named pipe, the job's standard input, where the launch asks for one       anybody -> job
//! shim.json     who the shim is and what must be cleaned if it is killed                  shim -> daemon
//! stdout stderr what the job said, secrets masked, bounded                                shim -> daemon
//! out/          what the job left in RUN_DIR                                              shim -> daemon
//! exit.json     the outcome, appears whole                                                shim -> daemon
//! shim.log      complaints of the shim; absent or empty when all is well
//! box/          where the shim mounts, in its own mount namespace; gone afterwards
//! ```

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroups;
use super::network::Tool;
use crate::jobs::executor::{LaunchSpec, ShimId};

pub(super) const LAUNCH: &str = "launch.json";
pub(super) const CONTROL: &str = "control";
pub(super) const STDIN: &str = "stdin";
pub(super) const STDOUT: &str = "stdout";
pub(super) const STDERR: &str = "stderr";
pub(super) const OUT: &str = "out";
pub(super) const SHIM: &str = "shim.json";
pub(super) const EXIT: &str = "exit.json";
pub(super) const LOG: &str = "shim.log";
pub(super) const BOX: &str = "box";

/// What stands for the embedded runtime where others have a path: in the configuration and in launch.json.
pub(super) const EMBEDDED: &str = "embedded";
/// Version of launch.json and shim.json; another one is refused.
const VERSION: u32 = 2;
/// Largest of these files. Arguments are bounded far below.
const FILE_MAX: u64 = 8 << 20;

/// `launch.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ShimLaunch {
    pub(super) version: u32,
    #[serde(flatten)]
    pub(super) spec: LaunchSpec,
    /// The runtime's program, or `embedded`.
    pub(super) runtime: PathBuf,
    /// The tool for `NetworkSpec::User`.
    pub(super) network_tool: Option<Tool>,
}

impl ShimLaunch {
    /// Whether the runtime is our own.
    pub(super) fn is_embedded(&self) -> bool {
        cfg!(feature = "embedded-runtime") && self.runtime == Path::new(EMBEDDED)
    }

    pub(super) fn new(spec: LaunchSpec, runtime: PathBuf, network_tool: Option<Tool>) -> Self {
        Self { version: VERSION, spec, runtime, network_tool }
    }

    pub(super) fn read(run_dir: &Path) -> Result<Self, String> {
        let launch: Self = read_json(&run_dir.join(LAUNCH)).map_err(|e| format!("{LAUNCH}: {e}"))?;
        match launch.version {
            VERSION => Ok(launch),
            other => Err(format!("{LAUNCH} has version {other}, this program knows {VERSION}")),
        }
    }
}

/// `shim.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ShimFile {
    pub(super) version: u32,
    #[serde(flatten)]
    pub(super) shim: ShimId,
    pub(super) run_id: String,
    /// The control group to be emptied and removed.
    pub(super) cgroup: Option<String>,
    /// Where it is.
    pub(super) cgroups: Cgroups,
    /// Processes that must not outlive the shim: the network tool, process 1 of the container.
    pub(super) helpers: Vec<ShimId>,
    /// Limits asked for that this host cannot keep.
    pub(super) limits_unavailable: Vec<String>,
}

impl ShimFile {
    pub(super) fn new(shim: ShimId, run_id: &str) -> Self {
        let run_id = run_id.to_owned();
        let cgroups = Cgroups::default();
        Self {
            version: VERSION,
            shim,
            run_id,
            cgroup: None,
            cgroups,
            helpers: vec![],
            limits_unavailable: vec![],
        }
    }

    pub(super) fn read(run_dir: &Path) -> io::Result<Self> {
        read_json(&run_dir.join(SHIM))
    }
}

/// Reads one of these files.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(FILE_MAX).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(io::Error::other)
}

/// Writes a file that appears whole or not at all. It is not synced: what must survive a crash of the machine is
/// the daemon's journal, and a run whose outcome is unreadable after one is lost in any case.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(value).map_err(io::Error::other)?)?;
    fs::rename(&temporary, path)
}

//! Where addonfs keeps its things (docs/configuration.md, "Directories").

use std::path::PathBuf;

/// The directories of one daemon.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Dirs {
    /// Runs, journal, events, the lock: must survive a reboot.
    pub state: PathBuf,
    /// Layers and documents: may be deleted while no daemon runs.
    pub cache: PathBuf,
    /// Sockets and what belongs to one boot.
    pub runtime: PathBuf,
}

impl Dirs {
    /// The system's directories for root, the XDG ones for everybody else.
    pub(crate) fn standard() -> Self {
        if nix::unistd::geteuid().is_root() {
            return Self {
                state: "/var/lib/addonfs".into(),
                cache: "/var/cache/addonfs".into(),
                runtime: "/run/addonfs".into(),
            };
        }
        let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into()));
        let xdg = |name: &str, fallback: PathBuf| {
            std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute()).unwrap_or(fallback)
        };
        let uid = nix::unistd::geteuid();
        Self {
            state: xdg("XDG_STATE_HOME", home.join(".local/state")).join("addonfs"),
            cache: xdg("XDG_CACHE_HOME", home.join(".cache")).join("addonfs"),
            runtime: xdg("XDG_RUNTIME_DIR", PathBuf::from(format!("/tmp/addonfs-{uid}"))).join("addonfs"),
        }
    }

    /// The configuration file that is read when none is named.
    pub(crate) fn standard_config() -> PathBuf {
        if nix::unistd::geteuid().is_root() {
            return "/etc/addonfs/addonfs.yaml".into();
        }
        let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into()));
        std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
            .unwrap_or_else(|| home.join(".config"))
            .join("addonfs/addonfs.yaml")
    }
}

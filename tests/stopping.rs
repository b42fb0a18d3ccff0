//! What is taken down, and what must not be.
#![allow(clippy::unwrap_used)]

#[path = "common/control.rs"]
mod control;
#[path = "common/mounted.rs"]
mod mounted;

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use addonfs::fs::kernel::mount;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

const ADDONFS: &str = env!("CARGO_BIN_EXE_addonfs");
/// Long enough for a loaded machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// The scripted daemon lives and has a status that this program does not know, as a daemon of another version would.
#[test]
fn a_live_mount_is_not_cut_off_because_its_status_is_not_understood() {
    let mount = mounted::Mount::new();
    let output = Command::new(ADDONFS).arg("umount").arg(mount.path()).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("nothing was taken down"), "{words}");
    assert!(mount::connection_of(mount.path()).is_some(), "still mounted");
    assert_eq!(mount.sh("ls"), "tools\n");
}

/// A daemon in the foreground with its holder; both are gone when dropped, also by a failing test.
struct Foreground {
    holder: Child,
    point: PathBuf,
}

impl Foreground {
    fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    fn start_with(dir: &Path, environment: &[(&str, &Path)]) -> Self {
        let (config, point) = (dir.join("addonfs.yaml"), dir.join("M"));
        std::fs::write(&config, "sources: []\n").unwrap();
        std::fs::create_dir_all(&point).unwrap();
        let holder = Command::new(ADDONFS)
            .args(["mount", "--foreground", "--config"])
            .arg(config)
            .arg("--state-dir")
            .arg(dir.join("state"))
            .arg("--cache-dir")
            .arg(dir.join("cache"))
            .arg(&point)
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        Self { holder, point }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.holder.id() as i32)
    }

    fn is_mounted(&self) -> bool {
        mount::connection_of(&self.point).is_some()
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let _ = self.holder.wait();
        if self.is_mounted() {
            let _ = mount::unmount(&self.point);
        }
    }
}

/// The end of systemd that services talk to.
struct Systemd {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Systemd {
    fn listen(dir: &Path) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path }
    }

    fn heard(&self) -> String {
        let mut words = [0; 256];
        let length = self.socket.recv(&mut words).expect("nothing was said");
        String::from_utf8_lossy(&words[..length]).trim_end().to_owned()
    }
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The moment after mount(2) the daemon is not there yet: nobody may answer the signal by starting one.
#[test]
fn a_stop_during_the_start_takes_the_mount_down() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = Foreground::start(dir.path());
        until("no mount appeared", || daemon.is_mounted());
        kill(daemon.pid(), signal).unwrap();
        until(&format!("{signal} did not end it"), || daemon.holder.try_wait().unwrap().is_some());
        assert!(!daemon.is_mounted(), "{signal}: a mount without a daemon stays behind");
    }
}

/// A service manager terminates everything of the control group, and the spawner may hear of it first.
#[test]
fn a_stop_that_every_process_hears_takes_the_mount_down() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Foreground::start(dir.path());
    let images = daemon.point.join(".addonfs/xattr-images");
    until("no daemon answered", || mount::connection_of(&images).is_some());
    let mut all = descendants(daemon.pid().as_raw());
    let spawner = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "addonfs-spawner\n")
    };
    all.sort_by_key(|pid| !spawner(pid));
    assert!(all.first().is_some_and(spawner), "no spawner among {all:?}");
    for pid in all {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    until("it did not end", || daemon.holder.try_wait().unwrap().is_some());
    assert!(!daemon.is_mounted(), "a mount without a daemon stays behind");
}

/// `umount` and not `addonfs umount`: nobody is left to answer, so nobody may keep the state directory either.
#[test]
fn a_mount_that_somebody_else_takes_down_ends_its_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let systemd = Systemd::listen(dir.path());
    let mut daemon = Foreground::start_with(dir.path(), &[("NOTIFY_SOCKET", &systemd.path)]);
    assert_eq!(systemd.heard(), "READY=1");
    mount::unmount(&daemon.point).unwrap();
    until("it did not end", || daemon.holder.try_wait().unwrap().is_some());
    assert!(daemon.holder.wait().unwrap().success());
    let mut again = Foreground::start(dir.path());
    until("the next one did not mount", || again.is_mounted());
    assert!(again.holder.try_wait().unwrap().is_none());
}

/// Units of `Type=notify` wait for the first of these words; a successor says it again.
#[test]
fn systemd_is_told_that_the_tree_answers_and_that_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let systemd = Systemd::listen(dir.path());
    let mut daemon = Foreground::start_with(dir.path(), &[("NOTIFY_SOCKET", &systemd.path)]);
    assert_eq!(systemd.heard(), "READY=1");
    let status = std::fs::read(daemon.point.join(".addonfs/status.json")).unwrap();
    let pid = serde_json::from_slice::<serde_json::Value>(&status).unwrap()["pid"].as_i64().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(systemd.heard(), "READY=1");
    kill(daemon.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(systemd.heard(), "STOPPING=1");
    until("it did not end", || daemon.holder.try_wait().unwrap().is_some());
}

/// A process and all below it.
fn descendants(of: i32) -> Vec<i32> {
    let children = std::fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten().flatten();
    let children = children.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
    let children: Vec<i32> = children
        .flat_map(|c| c.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>())
        .collect();
    std::iter::once(of).chain(children.into_iter().flat_map(descendants)).collect()
}

/// A service manager's HUP, with no terminal that could hang up, means the configuration.
#[test]
fn a_hangup_without_a_terminal_reads_the_configuration_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Foreground::start(dir.path());
    let generation = |daemon: &Foreground| -> Option<u64> {
        let text = std::fs::read(daemon.point.join(".addonfs/status.json")).ok()?;
        serde_json::from_slice::<serde_json::Value>(&text).ok()?["configuration"]["generation"].as_u64()
    };
    // the images are mounted when a read of their folder is answered
    let images = daemon.point.join(".addonfs/xattr-images");
    until("no daemon answered", || generation(&daemon) == Some(1) && mount::connection_of(&images).is_some());
    until("it was not read again", || {
        kill(daemon.pid(), Signal::SIGHUP).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        generation(&daemon).is_some_and(|now| now > 1)
    });
    assert!(daemon.holder.try_wait().unwrap().is_none() && daemon.is_mounted());
}

/// Somebody is editing the file when the daemon dies: the next one goes on with what the mount was made with.
#[test]
fn a_successor_does_not_stumble_over_a_half_edited_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Foreground::start(dir.path());
    let pid = |daemon: &Foreground| -> Option<i32> {
        let text = std::fs::read(daemon.point.join(".addonfs/status.json")).ok()?;
        serde_json::from_slice::<serde_json::Value>(&text).ok()?["pid"].as_i64()?.try_into().ok()
    };
    until("no daemon answered", || daemon.is_mounted() && pid(&daemon).is_some());
    let first = pid(&daemon).unwrap();
    std::fs::write(dir.path().join("addonfs.yaml"), "sources: [\n  - na").unwrap();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    until("no successor answered", || pid(&daemon).is_some_and(|now| now != first));
    assert!(daemon.is_mounted());
}

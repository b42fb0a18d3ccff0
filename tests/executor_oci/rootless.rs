//! A shim of an ordinary user: the same run in a user namespace, without control groups.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use addonfs::jobs::oci::sweep;

use crate::ends::wait_for;
use crate::host::{Host, with_each_runtime};

/// nobody's number on every distribution.
const NOBODY: u32 = 65534;

fn start_as_nobody(host: &Host, script: &str) -> (PathBuf, Child) {
    let mut spec = host.sh(script);
    spec.user = "worker".to_owned();
    let launch = host.launch(spec, &[]);
    let dir = launch.run_dir;
    let mut json = serde_json::to_value(&launch.spec).expect("spec");
    json["version"] = 2.into();
    json["runtime"] = which(host.runtime).into();
    json["network_tool"] = serde_json::Value::Null;
    fs::write(dir.join("launch.json"), json.to_string()).expect("launch.json");
    nix::unistd::mkfifo(&dir.join("control"), nix::sys::stat::Mode::S_IRWXU).expect("control");
    for path in [dir.clone(), dir.join("launch.json"), dir.join("control")] {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
    }
    // The build's own folder may be closed to nobody.
    let program = host.dir.path().join("addonfs");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_addonfs"), &program).expect("copy");
    }
    let child = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--", "sh", "-c"])
        .arg("exec 5<>\"$1/control\" 2>\"$1/shim.log\"; exec \"$0\" __shim \"$1\" control=5")
        .args([&program, &dir])
        .stdin(Stdio::null())
        .current_dir("/")
        .spawn()
        .expect("setpriv");
    (dir, child)
}

fn which(name: &str) -> String {
    if name == "embedded" {
        return name.to_owned();
    }
    let found =
        ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"].map(|d| Path::new(d).join(name));
    found.iter().find(|p| p.exists()).expect("runtime").to_string_lossy().into_owned()
}

#[test]
fn an_ordinary_user_gets_a_container_too() {
    with_each_runtime(|host| {
        let script =
            "id -u; grep CapEff /proc/self/status; grep -c : /proc/net/dev; echo kept > $RUN_DIR/f; exit 4";
        let (dir, mut child) = start_as_nobody(host, script);
        assert!(child.wait().expect("wait").success());
        let outcome = fs::read_to_string(dir.join("exit.json")).expect("exit.json");
        let stdout = fs::read_to_string(dir.join("stdout")).expect("stdout");
        assert!(outcome.contains("\"exit_code\":4"), "{outcome}");
        assert_eq!(stdout, "0\nCapEff:\t0000000000000000\n1\n");
        assert_eq!(fs::read_to_string(dir.join("out/f")).expect("out"), "kept\n");
        let shim = fs::read_to_string(dir.join("shim.json")).expect("shim.json");
        assert!(shim.contains("pids: no writable control group"), "{shim}");
    });
}

#[test]
fn a_killed_shim_without_control_groups_is_swept() {
    with_each_runtime(|host| {
        let (dir, mut child) = start_as_nobody(host, "echo ready; exec sleep 87654");
        wait_for(|| fs::read_to_string(dir.join("stdout")).is_ok_and(|s| s.contains("ready")));
        wait_for(|| {
            fs::read_to_string(dir.join("shim.json"))
                .is_ok_and(|s| s.contains("start_ticks\":") && helpers(&s))
        });
        child.kill().expect("kill");
        child.wait().expect("wait");
        sweep::run(&dir).expect("sweep");
        wait_for(|| !running("sleep\x0087654"));
    });
}

fn helpers(shim: &str) -> bool {
    let shim: serde_json::Value = serde_json::from_str(shim).unwrap_or_default();
    shim["helpers"].as_array().is_some_and(|h| !h.is_empty())
}

fn running(command: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("proc").flatten();
    processes.into_iter().any(|p| {
        fs::read(p.path().join("cmdline")).is_ok_and(|c| String::from_utf8_lossy(&c).contains(command))
    })
}

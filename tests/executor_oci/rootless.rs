//! Shims of an ordinary user, and of hosts with other control groups: the same run in a user namespace, with the ids
//! and the limits that the host gives.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use addonfs::jobs::executor::{LaunchSpec, NetworkSpec, Outcome};
use addonfs::jobs::oci::sweep;

use crate::ends::wait_for;
use crate::host::{Host, running, with_each_runtime};

/// nobody's number on every distribution.
const NOBODY: u32 = 65534;
const AS_NOBODY: &str = "exec setpriv --reuid 65534 --regid 65534 --clear-groups --";
const AS_ROOT: &str = "exec";
/// A host with cgroup v2 only, as far as one can be had beside v1: the hierarchy without the controllers that v1 has.
const V2_ONLY: &str = "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup";

/// Starts a shim by hand, after `prelude` in a mount namespace of its own.
fn start(host: &Host, spec: LaunchSpec, prelude: &str, who: &str) -> (PathBuf, Child) {
    start_with(host, spec, None, prelude, who)
}

fn start_with(
    host: &Host,
    spec: LaunchSpec,
    tool: Option<&str>,
    prelude: &str,
    who: &str,
) -> (PathBuf, Child) {
    let tool = tool.map(|name| serde_json::json!({"kind": name, "path": which(name)}));
    let launch = host.launch(spec, &[]);
    let dir = launch.run_dir;
    let mut json = serde_json::to_value(&launch.spec).expect("spec");
    json["version"] = 2.into();
    json["runtime"] = which(host.runtime).into();
    json["network_tool"] = tool.into();
    let offer = dir.join("launch-1.json");
    fs::write(&offer, json.to_string()).expect("launch.json");
    nix::unistd::mkfifo(&dir.join("control"), nix::sys::stat::Mode::S_IRWXU).expect("control");
    if who == AS_NOBODY {
        for path in [dir.clone(), offer.clone(), dir.join("control")] {
            chown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
        }
    }
    // The build's own folder may be closed to nobody.
    let program = host.dir.path().join("addonfs");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_addonfs"), &program).expect("copy");
    }
    let shim = "sh -c 'exec 5<>\"$1/control\" 2>\"$1/shim.log\"; exec \"$0\" __shim \"$2\" control=5' \"$0\" \"$1\" \"$2\"";
    let child = Command::new("unshare")
        .args(["--mount", "sh", "-ec", &format!("{prelude}\n{who} {shim}")])
        .args([&program, &dir, &offer])
        .stdin(Stdio::null())
        .current_dir("/")
        .spawn()
        .expect("unshare");
    (dir, child)
}

fn start_as_nobody(host: &Host, script: &str) -> (PathBuf, Child) {
    let mut spec = host.sh(script);
    spec.user = "worker".to_owned();
    start(host, spec, "", AS_NOBODY)
}

/// What came of it: the outcome, standard output, what the shim wrote down about itself.
struct Ended {
    outcome: Outcome,
    stdout: String,
    shim: String,
    words: String,
}

fn end(dir: &Path, mut child: Child) -> Ended {
    child.wait().expect("wait");
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let words = format!("{} {}", read("stderr"), read("shim.log"));
    let outcome =
        serde_json::from_str(&read("exit.json")).unwrap_or_else(|e| panic!("exit.json: {e}; {words}"));
    Ended { outcome, stdout: read("stdout"), shim: read("shim.json"), words }
}

fn which(name: &str) -> String {
    if name == "embedded" {
        return name.to_owned();
    }
    let found =
        ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"].map(|d| Path::new(d).join(name));
    found.iter().find(|p| p.exists()).expect("program").to_string_lossy().into_owned()
}

#[test]
fn an_ordinary_user_gets_a_container_too() {
    with_each_runtime(|host| {
        let script =
            "id -u; grep CapEff /proc/self/status; grep -c : /proc/net/dev; echo kept > $RUN_DIR/f; exit 4";
        let (dir, child) = start_as_nobody(host, script);
        let ended = end(&dir, child);
        assert_eq!(ended.outcome.exit_code, Some(4), "{:?} {}", ended.outcome, ended.words);
        assert_eq!(ended.stdout, "0\nCapEff:\t0000000000000000\n1\n");
        assert_eq!(fs::read_to_string(dir.join("out/f")).expect("out"), "kept\n");
        assert!(ended.shim.contains("pids: no writable control group"), "{}", ended.shim);
    });
}

#[test]
fn a_range_of_ids_makes_the_images_user_himself() {
    with_each_runtime(|host| {
        let ranges = host.dir.path().join("ranges");
        fs::write(&ranges, "nobody:1500000:65536\n").expect("ranges");
        let given = format!("for f in subuid subgid; do mount --bind {} /etc/$f; done", ranges.display());
        let mut spec =
            host.sh("id -u; id -G; echo mine > $RUN_DIR/f; stat -c %u $RUN_DIR/f; touch /tmp/x && echo tmp");
        spec.user = "worker".to_owned();
        let (dir, child) = start(host, spec, &given, AS_NOBODY);
        let ended = end(&dir, child);
        assert_eq!(ended.stdout, "1234\n1235 77\n1234\ntmp\n", "{:?} {}", ended.outcome, ended.words);
        assert_eq!(fs::read_to_string(dir.join("out/f")).expect("out"), "mine\n");

        let mut spec = host.sh("true");
        spec.user = "70000".to_owned();
        let (dir, child) = start(host, spec, &given, AS_NOBODY);
        let words = end(&dir, child).outcome.message.unwrap_or_default();
        assert!(words.contains("/etc/subuid"), "{words}");
    });
}

#[test]
fn a_network_of_an_ordinary_user_has_a_way_out() {
    with_each_runtime(|host| {
        // An ordinary user's daemon shows image trees as that user's own: a folder of somebody else takes no new file.
        chown(host.dir.path().join("rootfs/etc"), Some(NOBODY), Some(NOBODY)).expect("chown");
        // As distributions have it; not every machine for tests does.
        let node = host.dir.path().join("tun");
        let for_all =
            format!("rm -f {0}; mknod -m 666 {0} c 10 200; mount --bind {0} /dev/net/tun", node.display());
        for (tool, servers) in [("slirp4netns", "nameserver 10.0.2.3\n"), ("pasta", "")] {
            let mut spec =
                host.sh("ip -o link | grep -vc ' lo: '; ip route | grep -c default; cat /etc/resolv.conf");
            spec.network = NetworkSpec::User;
            let (dir, child) = start_with(host, spec, Some(tool), &for_all, AS_NOBODY);
            let ended = end(&dir, child);
            let up = format!("1\n1\n{servers}");
            assert!(
                ended.stdout.starts_with(&up),
                "{tool}: {:?} {} {}",
                ended.outcome,
                ended.stdout,
                ended.words
            );
        }
        let mut spec = host.sh("true");
        spec.network = NetworkSpec::User;
        let for_root = for_all.replace("666", "600");
        let (dir, child) = start_with(host, spec, Some("slirp4netns"), &for_root, AS_NOBODY);
        let words = end(&dir, child).outcome.message.unwrap_or_default();
        assert!(words.contains("/dev/net/tun"), "the tool's own words: {words}");
    });
}

/// A group in each v1 hierarchy that belongs to nobody; removed also after a failure.
struct Delegated(Vec<PathBuf>);

impl Delegated {
    fn new(hierarchies: &[&str]) -> Self {
        let name = format!("addonfs-delegated-{}", std::process::id());
        let dirs: Vec<PathBuf> =
            hierarchies.iter().map(|h| Path::new("/sys/fs/cgroup").join(h).join(&name)).collect();
        for dir in &dirs {
            fs::create_dir(dir).expect("control group");
            for path in [dir.clone(), dir.join("cgroup.procs"), dir.join("cgroup.subtree_control")] {
                if path.exists() {
                    chown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
                }
            }
        }
        Self(dirs)
    }

    /// Shell words that move the shell in.
    fn enter(&self) -> String {
        self.0.iter().map(|dir| format!("echo $$ > {}/cgroup.procs\n", dir.display())).collect()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for dir in &self.0 {
            let _ = fs::remove_dir(dir);
        }
    }
}

#[test]
fn an_ordinary_user_has_the_limits_that_the_host_delegates() {
    let host = Host::new("embedded");
    let delegated = Delegated::new(&["pids", "memory", "cpu", "cpuacct"]);
    let mut spec = host.sh("x=$(yes 0123456789abcdef | head -c 200000000); echo survived");
    (spec.memory_bytes, spec.cpu_millis) = (Some(32 << 20), Some(500));
    let (dir, child) = start(&host, spec, &delegated.enter(), AS_NOBODY);
    let ended = end(&dir, child);
    assert!(ended.outcome.oom_killed, "{:?} {}", ended.outcome, ended.words);
    assert!(ended.shim.contains("\"limits_unavailable\":[]"), "{}", ended.shim);
    let mut spec = host.sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; echo all");
    spec.pids = 8;
    let (dir, child) = start(&host, spec, &delegated.enter(), AS_NOBODY);
    let ended = end(&dir, child);
    assert!(ended.words.contains("fork") && ended.stdout.is_empty(), "{} {}", ended.words, ended.stdout);
    for dir in &delegated.0 {
        assert!(fs::read_dir(dir).expect("group").flatten().all(|e| !e.path().is_dir()), "a group was left");
    }
    drop(delegated);
    host.assert_clean();
}

/// Of the embedded runtime only: runtimes of the host load a device program on v2, which takes CAP_SYS_RESOURCE or a
/// newer kernel, and machines for tests have neither.
#[test]
fn v2_alone_counts_kills_and_is_left_clean() {
    let host = Host::new("embedded");
    let spec = host
        .sh("i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; sleep 81234 & cat /proc/self/cgroup; exit 6");
    let (dir, child) = start(&host, spec, V2_ONLY, AS_ROOT);
    let ended = end(&dir, child);
    assert_eq!(ended.outcome.exit_code, Some(6), "{:?} {}", ended.outcome, ended.words);
    assert!(ended.stdout.contains("0::/\n"), "the job sees its own group as the root: {}", ended.stdout);
    assert!(ended.outcome.cpu_usec.is_some_and(|used| used > 0), "{:?}", ended.outcome);
    assert!(!running("sleep\x0081234"));

    // Delegated to an ordinary user; a shim that is killed is swept by whoever comes, wherever he is.
    let delegated = Delegated::new(&["unified"]);
    let name = delegated.0[0].file_name().expect("name").to_string_lossy().into_owned();
    let enter = format!("{V2_ONLY}\necho $$ > /sys/fs/cgroup/{name}/cgroup.procs");
    let spec = host.sh("echo ready; exec sleep 81235");
    let (dir, mut child) = start(&host, spec, &enter, AS_NOBODY);
    wait_for(|| fs::read_to_string(dir.join("stdout")).is_ok_and(|s| s.contains("ready")));
    wait_for(|| fs::read_to_string(dir.join("shim.json")).is_ok_and(|s| helpers(&s)));
    let shim = fs::read_to_string(dir.join("shim.json")).expect("shim.json");
    assert!(shim.contains(&format!("/sys/fs/cgroup/{name}")) && shim.contains("pids: no writable"), "{shim}");
    child.kill().expect("kill");
    child.wait().expect("wait");
    // What the shim saw at /sys/fs/cgroup is `unified` here.
    let seen_here = shim.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified");
    fs::write(dir.join("shim.json"), seen_here).expect("shim.json");
    sweep::run(&dir).expect("sweep");
    assert!(
        fs::read_dir(&delegated.0[0]).expect("group").flatten().all(|e| !e.path().is_dir()),
        "a group was left"
    );
    wait_for(|| !running("sleep\x0081235"));
    drop(delegated);
    host.assert_clean();
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

//! What we add to the bare runtime, in numbers for people: `cargo test --release --test executor_oci -- --ignored
//! --nocapture measure`. Nothing is asserted about time.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use addonfs::jobs::executor::Executor;

use crate::host::{Host, RUNTIMES};

const ROUNDS: usize = 30;

#[test]
#[ignore = "a measurement"]
fn measure_what_a_run_costs_beside_the_bare_runtime() {
    for runtime in RUNTIMES {
        let host = Host::new(runtime);
        host.executor.proven().expect("runtime");
        // The embedded one has no program of its own to be measured beside.
        let bundle = (runtime != "embedded").then(|| bare_bundle(&host));
        let mut rows: [Vec<Duration>; 3] = Default::default();
        for _ in 0..ROUNDS {
            rows[0].extend(bundle.as_ref().map(|bundle| bare(&host, bundle)));
            std::thread::sleep(Duration::from_millis(60)); // the namespace pool fills up again
            let (first, end) = ours(&host);
            rows[1].push(first);
            rows[2].push(end);
            std::thread::sleep(Duration::from_millis(60));
        }
        for (name, row) in ["bare, to exit", "ours, to first output", "ours, to exit"].iter().zip(&mut rows) {
            row.sort();
            if row.is_empty() {
                continue;
            }
            let at = |percent: usize| row[ROUNDS * percent / 100].as_secs_f64() * 1000.0;
            println!(
                "{runtime:5} {name:22} least {:6.1} ms, median {:6.1} ms, p90 {:6.1} ms",
                at(0),
                at(50),
                at(90)
            );
        }
        host.assert_clean();
    }
}

fn ours(host: &Host) -> (Duration, Duration) {
    let launch = host.launch(host.sh("echo 1"), &[]);
    let dir = launch.run_dir.clone();
    let output = dir.join("stdout");
    let begin = Instant::now();
    let watcher = std::thread::spawn(move || {
        while !fs::metadata(&output).is_ok_and(|m| m.len() > 0) {
            std::thread::sleep(Duration::from_micros(200));
        }
        begin.elapsed()
    });
    let end = host.tokio.block_on(async {
        let shim = host.executor.start(launch).await.expect("start");
        host.executor.wait(&dir, &shim).await;
        begin.elapsed()
    });
    (watcher.join().expect("watcher"), end)
}

/// A bundle as ours would be: the runtime's own default with our filter is not at hand here, so the config.json of a
/// run of ours is caught by a runtime that copies it.
fn bare_bundle(host: &Host) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let catcher = host.dir.path().join("catcher");
    let caught = host.dir.path().join("bare");
    fs::create_dir_all(caught.join("folder/out")).expect("folder");
    let script = format!(
        "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ \"$1\" = --bundle ] && cp \"$2/config.json\" {}; shift; done; exit 1\n",
        caught.display()
    );
    fs::write(&catcher, script).expect("catcher");
    fs::set_permissions(&catcher, fs::Permissions::from_mode(0o755)).expect("mode");
    let mut options = addonfs::jobs::oci::OciOptions::new(host.dir.path().join("scratch"));
    options.runtime = Some(catcher);
    let _ = addonfs::jobs::oci::OciExecutor::new(crate::host::spawner(), options).proven();

    let text = fs::read(caught.join("config.json")).expect("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&text).expect("json");
    config["root"]["path"] = host.dir.path().join("rootfs").to_string_lossy().into();
    config["root"]["readonly"] = false.into();
    config["process"]["args"] = serde_json::json!(["/bin/sh", "-c", "echo 1"]);
    config["linux"]["cgroupsPath"] = format!("/addonfs-bare-{}", std::process::id()).into();
    for namespace in config["linux"]["namespaces"].as_array_mut().expect("namespaces") {
        namespace.as_object_mut().expect("object").remove("path");
    }
    for mount in config["mounts"].as_array_mut().expect("mounts") {
        let to = match mount["destination"].as_str() {
            Some("/run/addonfs") => "folder",
            Some("/run/addonfs/out") => "folder/out",
            _ => continue,
        };
        mount["source"] = caught.join(to).to_string_lossy().into();
    }
    fs::write(caught.join("config.json"), config.to_string()).expect("write");
    caught
}

/// In a mount namespace entered before the clock starts; the rootfs is writable, as the runtime makes mount points.
fn bare(host: &Host, bundle: &std::path::Path) -> Duration {
    use std::io::{BufRead, BufReader, Write};
    let script = format!(
        "mount -t tmpfs none /sys/fs/cgroup/unified 2>/dev/null; mount --bind {root} {root}; echo ready; read go; \
         exec {runtime} --root {bundle}/state run --bundle {bundle} bare-{id}",
        root = host.dir.path().join("rootfs").display(),
        runtime = host.runtime,
        bundle = bundle.display(),
        id = std::process::id(),
    );
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("ready");
    let begin = Instant::now();
    writeln!(child.stdin.take().expect("stdin"), "go").expect("go");
    line.clear();
    lines.read_line(&mut line).expect("output");
    assert_eq!(line, "1\n");
    assert!(child.wait().expect("wait").success());
    begin.elapsed()
}

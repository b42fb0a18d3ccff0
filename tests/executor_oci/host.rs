//! A root file system of busybox, an executor over a real runtime, and a check that a run leaves nothing behind.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use addonfs::jobs::executor::{Executor, Launch, LaunchSpec, NetworkSpec, Outcome, ShimId};
use addonfs::jobs::oci::{OciExecutor, OciOptions};
use addonfs::jobs::spawner::Spawner;
use zeroize::Zeroizing;

pub(crate) const RUNTIMES: [&str; 3] = ["crun", "runc", "embedded"];

static NEXT_RUN: AtomicU32 = AtomicU32::new(0);

/// One runtime with everything a test needs; cleans up also after a failure.
pub(crate) struct Host {
    pub(crate) runtime: &'static str,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) executor: OciExecutor,
    pub(crate) tokio: tokio::runtime::Runtime,
}

/// A run that has ended.
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) dir: PathBuf,
}

impl Done {
    pub(crate) fn code(&self) -> Option<i32> {
        self.outcome.exit_code
    }
}

/// Runs `test` with each runtime, and looks afterwards whether anything is left.
pub(crate) fn with_each_runtime(test: impl Fn(&Host)) {
    for runtime in RUNTIMES {
        let host = Host::new(runtime);
        test(&host);
        host.assert_clean();
    }
}

pub(crate) fn spawner() -> Spawner {
    Spawner::start_program(Path::new(env!("CARGO_BIN_EXE_addonfs"))).expect("spawner")
}

impl Host {
    pub(crate) fn new(runtime: &'static str) -> Self {
        let dir = tempfile::Builder::new().prefix("addonfs-oci-").tempdir().expect("temporary folder");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("mode");
        make_rootfs(&dir.path().join("rootfs"));
        fs::create_dir(dir.path().join("runs")).expect("runs");
        let mut options = OciOptions::new(dir.path().join("scratch"));
        options.runtime = Some(runtime.into());
        let executor = OciExecutor::new(spawner(), options);
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("tokio");
        Self { runtime, dir, executor, tokio }
    }

    pub(crate) fn spec(&self, argv: &[&str]) -> LaunchSpec {
        let number = NEXT_RUN.fetch_add(1, Ordering::Relaxed);
        LaunchSpec {
            run_id: format!("test-{}-{number}", std::process::id()),
            rootfs: self.dir.path().join("rootfs"),
            argv: argv.iter().map(|&a| a.to_owned()).collect(),
            env: vec![("PATH".to_owned(), "/bin".to_owned())],
            cwd: "/".to_owned(),
            user: String::new(),
            read_only_root: true,
            network: NetworkSpec::None,
            cpu_millis: None,
            memory_bytes: None,
            pids: 100,
            timeout_ms: Some(30_000),
            grace_ms: 500,
            tmp_bytes: 1 << 20,
            out_bytes: 1 << 20,
            log_bytes: 1 << 20,
            data_dir: None,
            args_json: "{\"a\":1}".to_owned(),
            stdin: false,
            secret_names: Vec::new(),
        }
    }

    pub(crate) fn sh(&self, script: &str) -> LaunchSpec {
        self.spec(&["/bin/sh", "-c", script])
    }

    pub(crate) fn launch(&self, spec: LaunchSpec, secrets: &[(&str, &str)]) -> Launch {
        let run_dir = self.dir.path().join("runs").join(&spec.run_id);
        fs::create_dir(&run_dir).expect("run folder");
        let secrets =
            secrets.iter().map(|(n, v)| ((*n).to_owned(), Zeroizing::new((*v).to_owned()))).collect();
        Launch { spec, secrets, run_dir }
    }

    pub(crate) fn start(&self, spec: LaunchSpec) -> (PathBuf, ShimId) {
        let launch = self.launch(spec, &[]);
        let run_dir = launch.run_dir.clone();
        let shim = self.tokio.block_on(self.executor.start(launch)).expect("start");
        (run_dir, shim)
    }

    pub(crate) fn wait(&self, run_dir: &Path, shim: &ShimId) -> Done {
        let limit = Duration::from_secs(60);
        let outcome = self.tokio.block_on(async {
            tokio::time::timeout(limit, self.executor.wait(run_dir, shim)).await.expect("the run hangs")
        });
        let read = |name: &str| {
            String::from_utf8_lossy(&fs::read(run_dir.join(name)).unwrap_or_default()).into_owned()
        };
        Done { outcome, stdout: read("stdout"), stderr: read("stderr"), dir: run_dir.to_owned() }
    }

    pub(crate) fn run(&self, spec: LaunchSpec) -> Done {
        self.run_with(spec, &[])
    }

    pub(crate) fn run_with(&self, spec: LaunchSpec, secrets: &[(&str, &str)]) -> Done {
        let launch = self.launch(spec, secrets);
        let run_dir = launch.run_dir.clone();
        let shim = self.tokio.block_on(self.executor.start(launch)).expect("start");
        self.wait(&run_dir, &shim)
    }

    /// No control group, mount, process or pipe of any run of this host.
    pub(crate) fn assert_clean(&self) {
        let place = self.dir.path().to_string_lossy().into_owned();
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let left = self.left_behind(&place);
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "{}: left behind: {left:#?}", self.runtime);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn left_behind(&self, place: &str) -> Vec<String> {
        let mut left = Vec::new();
        for run in fs::read_dir(self.dir.path().join("runs")).expect("runs").flatten() {
            let id = run.file_name().to_string_lossy().into_owned();
            for name in ["box", "control", "stdin"] {
                if fs::symlink_metadata(run.path().join(name)).is_ok() {
                    left.push(format!("{id}/{name}"));
                }
            }
            left.extend(control_groups(&format!("addonfs-{id}")));
            let log = fs::read_to_string(run.path().join("shim.log")).unwrap_or_default();
            left.extend(log.lines().filter(|line| line.contains("cannot remove")).map(str::to_owned));
        }
        left.extend(
            fs::read_dir(self.dir.path().join("scratch"))
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| format!("scratch/{}", e.file_name().to_string_lossy())),
        );
        for process in fs::read_dir("/proc").expect("proc").flatten() {
            let path = process.path();
            if !process.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            let command = fs::read(path.join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(place) {
                left.push(format!("process {command}"));
            }
            if fs::read_to_string(path.join("mountinfo")).is_ok_and(|m| m.contains(&format!("{place}/runs")))
            {
                left.push(format!("a mount in {} ({command})", path.display()));
            }
        }
        left
    }
}

/// Whether a process lives whose command line has these words, each ended by NUL but the last.
pub(crate) fn running(command: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("proc").flatten();
    processes.into_iter().any(|p| {
        fs::read(p.path().join("cmdline")).is_ok_and(|c| String::from_utf8_lossy(&c).contains(command))
    })
}

/// Existing control groups of this name.
pub(crate) fn control_groups(name: &str) -> Vec<String> {
    let tops = fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten().map(|e| e.path());
    let places = tops.chain([PathBuf::from("/sys/fs/cgroup")]).map(|top| top.join(name));
    places.filter(|p| p.is_dir()).map(|p| p.display().to_string()).collect()
}

fn make_rootfs(root: &Path) {
    let bin = root.join("bin");
    fs::create_dir_all(&bin).expect("bin");
    fs::create_dir(root.join("etc")).expect("etc");
    for dir in [root, &bin, &root.join("etc")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("mode");
    }
    fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is needed");
    for applet in [
        "sh", "cat", "echo", "sleep", "id", "grep", "ls", "env", "pwd", "dd", "stat", "touch", "ln", "mkdir",
        "mkfifo", "head", "yes", "wc", "mount", "unshare", "sed", "true", "tail", "seq", "nc", "ip",
    ] {
        symlink("busybox", bin.join(applet)).expect("applet");
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nworker:x:1234:1235::/home/worker:/bin/sh\n",
    )
    .expect("passwd");
    fs::write(root.join("etc/group"), "root:x:0:\nworker:x:1235:\nextra:x:77:worker\n").expect("group");
    fs::write(root.join("not-executable"), "text").expect("file");
}

//! A session as a user has it: the real program, a registry, signed add-ons, a configuration and a mount of its own.
//!
//! Whatever a test does, its mount, daemon, holder, spawner, shims and jobs are gone with the guard, also after a
//! panic. Nothing here touches the mount from the test's own process: a file system that hangs must fail a test, not
//! hang it, so everything is read by children under a deadline.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::fault_proxy::FaultProxy;
use super::registry::DockerRegistry;

/// The program under test.
pub const ADDONFS: &str = env!("CARGO_BIN_EXE_addonfs");

/// When a child counts as hung. Nothing waits for it but what hangs.
const HUNG: Duration = Duration::from_secs(150);

/// How long [`eventually`] is patient.
const PATIENCE: Duration = Duration::from_secs(120);

/// An add-on whose job does what its argument says.
pub const TOOLS: &str = r#"name: test-tools
version: 1.0.0
description: an add-on for tests
entrypoints:
  - id: sh
    description: runs a script
    command: [/bin/sh, /addon/job.sh]
    argspec:
      type: object
      required: [script]
      properties:
        script: {type: string, description: what to do}
        token: {type: string, format: secret}
        number: {type: integer, minimum: 1, default: 7}
  - id: brief
    command: [/bin/sh, -c, 'echo begun; exec sleep 600']
    resources: {timeout: 1s}
  - id: missing
    command: [/no/such/program]
  - id: locked
    command: [/addon/data.txt]
"#;

/// How a child ended.
#[derive(Debug)]
pub struct Done {
    /// Its exit code, 128+n for signal n.
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Done {
    /// Its output; it must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "out: {}\nerr: {}", self.out, self.err);
        self.out
    }

    /// What it said on stderr; it must have failed, and not by hanging.
    #[track_caller]
    pub fn refused(self) -> String {
        assert!(self.code != 0 && self.code != 137, "{self:?}");
        self.err
    }

    #[track_caller]
    pub fn says(self, word: &str) -> Self {
        assert!(self.out.contains(word) || self.err.contains(word), "{word:?} is not in {self:?}");
        self
    }
}

/// See the module.
pub struct Session {
    pub dir: tempfile::TempDir,
    pub registry: Option<DockerRegistry>,
    pub proxy: Option<FaultProxy>,
    runtime: Option<tokio::runtime::Runtime>,
    /// Words before every command: who runs it.
    pub as_user: Vec<String>,
}

impl Session {
    /// Without a registry.
    pub fn bare() -> Self {
        let dir = tempfile::tempdir().expect("temp folder");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("mode");
        for name in ["home", "rootfs/bin", "rootfs/etc", "rootfs/tmp", "rootfs/data"] {
            fs::create_dir_all(dir.path().join(name)).expect("folder");
        }
        let rootfs = dir.path().join("rootfs");
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox-static");
        for applet in ["sh", "ls", "cat", "echo", "sleep", "wc", "head", "yes", "env", "id", "kill", "seq"] {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).expect("applet");
        }
        fs::copy("/etc/os-release", rootfs.join("etc/os-release")).expect("os-release");
        fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").expect("passwd");
        Self { dir, registry: None, proxy: None, runtime: None, as_user: vec![] }
    }

    /// With a registry, and a key pair `cosign.key`, `cosign.pub`.
    pub fn new() -> Self {
        let mut session = Self::bare();
        session.registry = Some(DockerRegistry::start());
        session.addonfs(["keygen", "--output", "cosign"]).ok();
        session
    }

    /// With a registry behind a proxy that does wrong what it is told to, and counts.
    pub fn proxied() -> Self {
        let mut session = Self::new();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("runtime");
        let port = session.registry.as_ref().expect("registry").port();
        session.proxy = Some(runtime.block_on(FaultProxy::start(port)));
        session.runtime = Some(runtime);
        session
    }

    pub fn proxy(&self) -> &FaultProxy {
        self.proxy.as_ref().expect("a session with a proxy")
    }

    /// Where the configuration finds its images.
    pub fn host(&self) -> String {
        match (&self.proxy, &self.registry) {
            (Some(proxy), _) => proxy.host(),
            (None, Some(registry)) => registry.host(),
            (None, None) => panic!("a session without a registry"),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The mount point.
    pub fn mount_point(&self) -> PathBuf {
        self.path("M")
    }

    /// Writes a file below the session's folder.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(&path, content).expect("file");
        path
    }

    /// A command with the session's environment, and given up when it hangs.
    pub fn command(&self, program: &str) -> Command {
        let hung = HUNG.as_secs().to_string();
        self.plain_command(&["timeout", "-k", "5", &hung, program])
    }

    fn plain_command(&self, program: &[&str]) -> Command {
        let mut words = self.as_user.clone();
        words.extend(program.iter().map(|&word| word.to_owned()));
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .current_dir(self.dir.path())
            .env("HOME", self.path("home"))
            .env("COSIGN_PASSWORD", "secret of the test")
            .env("ADDONFS_LOG", "addonfs=debug")
            .env("ADDONFS_MOUNT", self.mount_point())
            .env("ADDONFS", ADDONFS)
            .env("M", self.mount_point())
            .env_remove("DOCKER_CONFIG")
            .env_remove("XDG_RUNTIME_DIR")
            .stdin(Stdio::null());
        command
    }

    /// Runs the program.
    pub fn addonfs<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Done {
        let mut command = self.command(ADDONFS);
        command.args(words);
        finish(command)
    }

    /// Runs a script of bash, with `M` and `ADDONFS` set.
    pub fn sh(&self, script: &str) -> Done {
        self.shell("bash", script)
    }

    pub fn shell(&self, shell: &str, script: &str) -> Done {
        let mut command = self.command(shell);
        command.args(["-c", script]);
        finish(command)
    }

    /// Starts a script in a process group of its own. (`timeout` would pass signals on that the group got already.)
    pub fn start(&self, script: &str) -> Started {
        use std::os::unix::process::CommandExt as _;
        let mut command = self.plain_command(&["bash", "-c", script]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        Started { child: Some(command.spawn().expect("timeout of coreutils")) }
    }

    /// The content of a file below the mount point.
    #[track_caller]
    pub fn cat(&self, path: &str) -> String {
        self.sh(&format!("cat \"$M/{path}\"")).ok()
    }

    #[track_caller]
    pub fn json(&self, path: &str) -> Value {
        let text = self.cat(path);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    #[track_caller]
    pub fn status(&self) -> Value {
        self.json(".addonfs/status.json")
    }

    /// The status of one source.
    #[track_caller]
    pub fn source(&self, name: &str) -> Value {
        self.json(&format!(".addonfs/sources/{name}/status.json"))
    }

    /// Writes the folder of an add-on.
    pub fn addon(&self, name: &str, manifest: &str) -> PathBuf {
        self.write(&format!("{name}/manifest.yaml"), manifest);
        self.write(&format!("{name}/job.sh"), "eval \"$ARG_SCRIPT\"\n");
        self.write(&format!("{name}/data.txt"), "data of the add-on\n");
        self.path(name)
    }

    /// Builds an add-on on `rootfs`, into the layout `NAME.oci`; the digest.
    #[track_caller]
    pub fn build(&self, name: &str, manifest: &str) -> String {
        self.addon(name, manifest);
        let output = format!("oci:{name}.oci");
        let words = ["build", name, "--rootfs", "rootfs", "--tag", "v1", "--output", &output, "-o", "json"];
        let built: Value = serde_json::from_str(&self.addonfs(words).ok()).expect("JSON");
        built["digest"].as_str().expect("digest").to_owned()
    }

    /// Pushes the image `v1` of a layout; its repository in the registry, without the host, and its digest.
    #[track_caller]
    pub fn push(&self, name: &str) -> String {
        let to = format!("{}/org/{name}:v1", self.registry.as_ref().expect("registry").host());
        let digest = self.addonfs(["push", &format!("oci:{name}.oci:v1"), &to]).ok();
        digest.trim().to_owned()
    }

    #[track_caller]
    pub fn sign(&self, name: &str, digest: &str) {
        let image = format!("{}/org/{name}@{digest}", self.registry.as_ref().expect("registry").host());
        self.addonfs(["sign", "--key", "cosign.key", &image]).ok();
    }

    /// Builds, pushes and signs an add-on; the reference for a configuration.
    #[track_caller]
    pub fn publish(&self, name: &str, manifest: &str) -> String {
        self.build(name, manifest);
        let digest = self.push(name);
        self.sign(name, &digest);
        self.reference(name, &digest)
    }

    pub fn reference(&self, name: &str, digest: &str) -> String {
        format!("{}/org/{name}:v1@{digest}", self.host())
    }

    /// Writes addonfs.yaml: the usual policy, `more` at the top level, and these sources with their further lines.
    pub fn configure(&self, more: &str, sources: &[(&str, &str, &str)]) {
        let host = if self.registry.is_some() { self.host() } else { "oci-layout".to_owned() };
        // How full the disk of a test is says nothing.
        let cache = if more.contains("cache:") { "" } else { "cache: {keep_free: 0}\n" };
        let mut text = format!(
            "{cache}policy:\n  profile: secure\n  allowed_registries: ['{host}', oci-layout]\n  \
             trust: {{keys: [cosign.pub]}}\n{more}\nsources:\n"
        );
        for (name, image, lines) in sources {
            let _ = write!(text, "  - name: {name}\n    type: oci\n    image: {image}\n");
            for line in lines.lines() {
                let _ = writeln!(text, "    {line}");
            }
        }
        self.write("addonfs.yaml", text);
    }

    /// Mounts what the configuration says.
    pub fn mount(&self) -> Done {
        self.mount_with(&[])
    }

    pub fn mount_with(&self, words: &[&str]) -> Done {
        let (state, cache, at) = (self.path("state"), self.path("cache"), self.mount_point());
        let mut command = self.command(ADDONFS);
        command.args(["mount", "--config", "addonfs.yaml", "--state-dir"]).arg(state);
        command.arg("--cache-dir").arg(cache).args(words).arg(at);
        finish(command)
    }

    /// One source, ready: [`TOOLS`] at `tools`.
    pub fn with_tools(mut self) -> Self {
        let image = self.publish("tools", TOOLS);
        self.configure("read: {deadline: 3s}", &[("tools", &image, "mountPath: tools")]);
        self.ready();
        self.as_user.clear();
        self
    }

    /// Mounts; every source must be ready.
    #[track_caller]
    pub fn ready(&self) {
        let done = self.mount_with(&["--strict"]);
        assert_eq!((done.code, done.err.as_str()), (0, ""), "{}", self.log());
    }

    #[track_caller]
    pub fn umount(&self) {
        self.addonfs(["umount"]).ok();
    }

    /// The daemon's log, for messages.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("state/addonfs.log")).unwrap_or_default()
    }

    /// Process id of the daemon.
    #[track_caller]
    pub fn daemon(&self) -> i32 {
        self.status()["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("pid")
    }

    /// Our processes: whoever has this session's folder in its words, and all below them.
    pub fn processes(&self) -> Vec<i32> {
        let needle = self.dir.path().as_os_str().as_encoded_bytes();
        let all = processes();
        let mut ours: Vec<i32> = vec![];
        for (pid, _) in &all {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if words.windows(needle.len()).any(|window| window == needle) {
                ours.push(*pid);
            }
        }
        let mut at = 0;
        while let Some(parent) = ours.get(at).copied() {
            for (pid, of) in &all {
                if *of == parent && !ours.contains(pid) {
                    ours.push(*pid);
                }
            }
            at += 1;
        }
        ours.retain(|pid| *pid != i32::try_from(std::process::id()).unwrap_or(0));
        ours
    }

    /// The mounts below the session's folder, the innermost first.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let mut found: Vec<PathBuf> =
            table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect();
        found.retain(|path| path.starts_with(self.dir.path()));
        found.reverse();
        found
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's log\n{}\n---", self.log());
        }
        if !self.mounts().is_empty() {
            let mut command = self.command(ADDONFS);
            command.args(["umount", "--cancel"]);
            let _ = finish(command);
        }
        for pid in self.processes() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        for path in self.mounts() {
            let _ = Command::new("umount").arg("-l").arg(path).status();
        }
    }
}

/// A child that goes on; killed with its group when dropped.
pub struct Started {
    child: Option<Child>,
}

impl Started {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().expect("started").id()).expect("pid")
    }

    /// Sends a signal to the whole group, as a terminal does.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(self.pid()), signal).expect("kill");
    }

    pub fn running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Kills it; that it does not end would mean that it hangs in the kernel.
    pub fn kill(mut self) {
        self.signal(nix::sys::signal::Signal::SIGKILL);
        eventually("a killed process ends", || (!self.running()).then_some(()));
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Done {
        let (ended, end) = std::sync::mpsc::channel::<()>();
        let group = nix::unistd::Pid::from_raw(self.pid());
        let watchdog = std::thread::spawn(move || {
            if end.recv_timeout(HUNG) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            }
        });
        let output = self.child.take().expect("started").wait_with_output().expect("output");
        drop(ended);
        watchdog.join().expect("watchdog");
        done(output)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let group = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}

fn finish(mut command: Command) -> Done {
    done(command.output().expect("timeout of coreutils"))
}

fn done(output: std::process::Output) -> Done {
    use std::os::unix::process::ExitStatusExt as _;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    let done = Done { code, out: text(&output.stdout), err: text(&output.stderr) };
    assert_ne!(code, 137, "hung and was killed: {done:?}");
    done
}

/// Every process and its parent.
fn processes() -> Vec<(i32, i32)> {
    let entries = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, parent(pid)?))).collect()
}

/// The parent of a process.
pub fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// The fields after the name: state, parent, …
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

pub fn kill9(pid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
}

/// Asks again and again until there is an answer.
#[track_caller]
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "not in {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// All regular files below a folder of the host.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

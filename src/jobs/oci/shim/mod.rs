//! The process that owns one run: `addonfs __shim RUN_DIR/launch-X.json control=N [stdin=N] [secrets=N] [network=N]`.
//!
//! In: the launch, which it makes its own by the name `launch.json` before anything else; the secrets by a descriptor. Out: the files named in `launch`. It is started by the spawner and
//! is nobody's child, so daemons come and go while it works. It mounts in a namespace of its own, has the runtime
//! start the container and exit, becomes the reaper of the job's process, copies output, enforces the timeout, obeys
//! `control`, and in the end takes everything down, writes `exit.json` and is gone. It is single-threaded.
//!
//! The runtime is asked for one thing only, `run --detach`: its records lie in the run's own tmpfs and vanish with
//! it, and the control group is removed by us, so no `delete` (another start of the runtime) is needed.

mod copy_out;
mod inherited;
mod job;
mod outcome;
mod output;
mod room;
mod supervise;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};

use self::inherited::Inherited;
use self::outcome::{outcome, refused, why_refused};
use self::output::Output;
use self::room::Room;
use self::supervise::Supervisor;
pub(super) use self::supervise::now_ms;
use super::cgroup::{self, Cgroups};
#[cfg(feature = "embedded-runtime")]
use super::embedded;
use super::launch::{self, ShimFile, ShimLaunch};
use super::mask::Masker;
use super::network::{self, UserNetwork};
use super::user::{self, JobUser};
use super::{bundle, userns};
use crate::jobs::executor::{NetworkSpec, Outcome, ShimId, take_offer};
use crate::jobs::spawner;

/// The first argument of the re-executed program.
pub const ENTRY: &str = "__shim";

/// The shim process.
pub fn main(args: &[OsString]) -> ExitCode {
    let _ = nix::unistd::setsid();
    let _ = rustix::thread::set_name(c"addonfs-shim");
    // Mount points that the runtime makes in the root are for the job's user too; what must be private says so.
    umask(Mode::from_bits_truncate(0o022));
    let Some((offer, fds)) = args.split_first() else { return ExitCode::FAILURE };
    let offer = PathBuf::from(offer);
    let Some(run_dir) = offer.parent().map(Path::to_owned) else { return ExitCode::FAILURE };
    match take_offer(&offer) {
        Ok(true) => {}
        // A daemon came between and took the launch back: the run is not ours.
        Ok(false) => return ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("addonfs shim: {}: {e}", offer.display());
            return ExitCode::FAILURE;
        }
    }
    let outcome = match Inherited::take(fds) {
        Ok(inherited) => run(&run_dir, inherited),
        Err(words) => refused(words),
    };
    if let Some(words) = &outcome.message {
        eprintln!("addonfs shim: {words}");
    }
    // Last of all: whoever sees this file finds everything cleaned.
    for pipe in [launch::CONTROL, launch::STDIN] {
        let _ = fs::remove_file(run_dir.join(pipe));
    }
    match launch::write_json(&run_dir.join(launch::EXIT), &outcome) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("addonfs shim: cannot write {}: {e}", launch::EXIT);
            ExitCode::FAILURE
        }
    }
}

fn run(run_dir: &Path, inherited: Inherited) -> Outcome {
    let launch = match ShimLaunch::read(run_dir) {
        Ok(launch) => launch,
        Err(words) => return refused(words),
    };
    let cgroups = cgroup::for_runtime(launch.is_embedded());
    carry_out(run_dir, &launch, inherited, &cgroups).unwrap_or_else(refused)
}

/// Everything between launch and outcome. An error is a refusal: the job never ran.
fn carry_out(
    run_dir: &Path,
    launch: &ShimLaunch,
    mut inherited: Inherited,
    cgroups: &Cgroups,
) -> Result<Outcome, String> {
    let spec = &launch.spec;
    let us = spawner::identity_of(std::process::id().cast_signed()).map_err(|e| format!("/proc: {e}"))?;
    let mut file = ShimFile::new(ShimId { pid: us.pid, start_ticks: us.start_ticks }, &spec.run_id);
    let (limits, limits_unavailable) = cgroups.limits(spec);
    let group = cgroups.usable().then(|| cgroup::path_of(&spec.run_id));
    (file.cgroup, file.cgroups, file.limits_unavailable) =
        (group.clone(), cgroups.clone(), limits_unavailable);
    write_shim_file(run_dir, &file)?;
    let mut left_over = LeftOver { cgroups, group: group.as_deref() };

    let mapped = userns::enter_if_needed()?;
    let rootless = mapped.is_some();
    if rootless && spec.network == NetworkSpec::User {
        inherited.network = Some(userns::network_namespace()?);
    }
    // No core file with secrets. Not before the user namespace: its maps belong to a dumpable process only.
    nix::sys::prctl::set_dumpable(false).map_err(|e| format!("core files: {e}"))?;
    let mut room = Room::enter(run_dir, cgroups.hybrid_mount())?;
    let image = Room::open_image(spec)?;
    let user = match mapped {
        None => user::resolve(image.as_fd(), &spec.user)?,
        Some(mapped) if mapped.has_users() => mapped.admit(user::resolve(image.as_fd(), &spec.user)?)?,
        Some(_) => JobUser::root(),
    };
    room.mount_root(spec, &image, rootless)?;
    room.furnish(spec, &user, &inherited.secrets)?;
    drop(image);

    let namespace = match &inherited.network {
        Some(fd) if spec.network != NetworkSpec::Host => Some(room.hold_network(fd)?),
        _ => None,
    };
    let connection = connect(launch, namespace.as_deref(), &room)?;
    if let Some(connection) = &connection {
        let helper = spawner::identity_of(connection.pid()).map_err(|e| format!("network tool: {e}"))?;
        file.helpers.push(ShimId { pid: helper.pid, start_ticks: helper.start_ticks });
        write_shim_file(run_dir, &file)?;
    }
    let resolv_conf = match spec.network {
        NetworkSpec::None => None,
        NetworkSpec::Host => Some(network::resolv_conf(None)),
        NetworkSpec::User => Some(network::resolv_conf(launch.network_tool.as_ref())),
    };
    let facts = bundle::HostFacts {
        rootfs: room.path("rootfs"),
        folder: room.path("folder"),
        out: room.path("out"),
        secrets: room.has_secrets.then(|| room.path("secrets")),
        resolv_conf: resolv_conf.map(|text| room.write("resolv.conf", text.as_bytes())).transpose()?,
        network_namespace: namespace,
        cgroups_path: group.clone(),
        limits,
        unified_cgroups: cgroups.is_unified(),
        rootless,
    };
    let config = bundle::config(spec, &user, &facts).map_err(|e| format!("config.json: {e}"))?;
    let config = serde_json::to_vec(&config).map_err(|e| format!("config.json: {e}"))?;
    room.write("bundle/config.json", &config)?;

    // Process 1 of the container: where there is no control group, a sweep finds it by this.
    let mut on_start = |pid| {
        if let Ok(job) = spawner::identity_of(pid) {
            file.helpers.push(ShimId { pid: job.pid, start_ticks: job.start_ticks });
            let _ = write_shim_file(run_dir, &file);
        }
    };
    let outcome = execute(run_dir, launch, inherited, &room, &user, &left_over, &mut on_start);
    drop(connection);
    if outcome.as_ref().is_ok_and(|o| o.started_ms.is_some()) {
        bring_out(run_dir, &room, spec.out_bytes);
    }
    left_over.remove();
    outcome
}

fn write_shim_file(run_dir: &Path, file: &ShimFile) -> Result<(), String> {
    launch::write_json(&run_dir.join(launch::SHIM), file).map_err(|e| format!("{}: {e}", launch::SHIM))
}

fn connect(
    launch: &ShimLaunch,
    namespace: Option<&Path>,
    room: &Room,
) -> Result<Option<UserNetwork>, String> {
    if launch.spec.network != NetworkSpec::User {
        return Ok(None);
    }
    let tool = launch.network_tool.as_ref().ok_or("no pasta and no slirp4netns for the job's network")?;
    let namespace = namespace.ok_or("no network namespace could be made for the job")?;
    UserNetwork::start(tool, namespace, &room.dir).map(Some)
}

/// The run's control group; removed also when we leave by an error.
struct LeftOver<'a> {
    cgroups: &'a Cgroups,
    group: Option<&'a str>,
}

impl LeftOver<'_> {
    fn remove(&mut self) {
        if let Some(group) = self.group.take()
            && let Err(e) = self.cgroups.remove(group)
        {
            eprintln!("addonfs shim: cannot remove the control group {group}: {e}");
        }
    }
}

impl Drop for LeftOver<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Starts the container and stays until the job has ended.
fn execute(
    run_dir: &Path,
    launch: &ShimLaunch,
    inherited: Inherited,
    room: &Room,
    user: &JobUser,
    left_over: &LeftOver<'_>,
    on_start: &mut dyn FnMut(i32),
) -> Result<Outcome, String> {
    let spec = &launch.spec;
    let io = |what: &str, e: &dyn std::fmt::Display| format!("{what}: {e}");
    let masker = || Masker::new(inherited.secrets.iter().map(|(_, value)| value.as_str()));
    let stream = |name: &str| {
        let made = Output::new(&run_dir.join(name), spec.log_bytes, masker());
        let (output, theirs) = made.map_err(|e| io(name, &e))?;
        // So that a job that is not root can open /dev/stdout again.
        let _ = std::os::unix::fs::fchown(&theirs, Some(user.uid), Some(user.gid));
        Ok::<_, String>((output, theirs))
    };
    let (stdout, job_stdout) = stream(launch::STDOUT)?;
    let (stderr, job_stderr) = stream(launch::STDERR)?;
    let (stdin, job_stdin) =
        if spec.stdin { open_stdin(run_dir, inherited.stdin)? } else { (None, Stdio::null()) };

    nix::sys::prctl::set_child_subreaper(true).map_err(|e| io("subreaper", &e))?;
    let signals = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
    let signals: SigSet = signals.into_iter().collect();
    signals.thread_block().map_err(|e| io("signals", &e))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&signals, flags).map_err(|e| io("signals", &e))?;

    let (pid_file, log) = (room.path("pid"), room.path("runtime.log"));
    let mut command = runtime(launch, room, left_over.group)?;
    command.stdin(job_stdin).stdout(job_stdout).stderr(job_stderr).current_dir("/");
    let runtime = command.spawn().map_err(|e| format!("cannot start {}: {e}", launch.runtime.display()))?;
    drop(command); // our copies of the job's streams: their end must be its end

    let mut supervisor = Supervisor {
        spec,
        cgroups: left_over.cgroups,
        group: left_over.group,
        signals,
        control: inherited.control,
        stdin,
        stdout,
        stderr,
        runtime: runtime.id().cast_signed(),
        pid_file,
        on_start,
    };
    let ended = supervisor.run();
    let usage = left_over.group.map(|group| left_over.cgroups.usage(group)).unwrap_or_default();
    let why = ended.refused.then(|| why_refused(spec, room, &log));
    if let Some((_, Some(words))) = &why {
        supervisor.stderr.say(&format!("addonfs: {words}\n"));
    }
    let dropped = supervisor.stdout.dropped() + supervisor.stderr.dropped();
    Ok(outcome(spec, ended, usage, why, dropped))
}

/// The runtime's command, which starts the container and ends.
fn runtime(launch: &ShimLaunch, room: &Room, group: Option<&str>) -> Result<Command, String> {
    let (pid_file, log, bundle) = (room.path("pid"), room.path("runtime.log"), room.path("bundle"));
    #[cfg(feature = "embedded-runtime")]
    if launch.is_embedded() {
        let mut command = Command::new(room.hold_program()?);
        command.arg(embedded::ENTRY).arg("--bundle").arg(bundle);
        command.arg("--pid-file").arg(pid_file).arg("--log").arg(log);
        return Ok(command);
    }
    let mut command = Command::new(&launch.runtime);
    command.arg("--root").arg(room.path("state")).arg("--log").arg(log).args(["--log-format", "json"]);
    if group.is_none() && is_crun(&launch.runtime) {
        command.arg("--cgroup-manager=disabled");
    }
    command.args(["run", "--detach", "--bundle"]).arg(bundle);
    command.arg("--pid-file").arg(pid_file).arg(&launch.spec.run_id);
    Ok(command)
}

fn is_crun(runtime: &Path) -> bool {
    runtime.file_name().is_some_and(|name| name.to_string_lossy().contains("crun"))
}

/// Our writing end and the job's reading end of the run's `stdin`.
fn open_stdin(run_dir: &Path, both: Option<File>) -> Result<(Option<File>, Stdio), String> {
    let path = run_dir.join(launch::STDIN);
    let open = |options: &OpenOptions| options.open(&path).map_err(|e| format!("{}: {e}", path.display()));
    // While it is open both ways, opening one way does not wait for a counterpart.
    let reading = open(OpenOptions::new().read(true))?;
    let writing = open(OpenOptions::new().write(true))?;
    drop(both);
    Ok((Some(writing), Stdio::from(reading)))
}

fn bring_out(run_dir: &Path, room: &Room, limit: u64) {
    let to = run_dir.join(launch::OUT);
    let made = match fs::create_dir(&to) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    match made.and_then(|()| copy_out::copy(&room.path("out"), &to, limit)) {
        Ok(copied) if copied.skipped > 0 => {
            eprintln!(
                "addonfs shim: {} entries of RUN_DIR were not kept (links, special files, limits)",
                copied.skipped
            );
        }
        Ok(_) => {}
        Err(e) => eprintln!("addonfs shim: cannot keep RUN_DIR: {e}"),
    }
}

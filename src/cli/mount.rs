//! `addonfs mount`: starts a holder and its daemon, waits until every source is settled.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::config::{Beside, Config, Files};
use super::daemon::holder::{self, HoldOptions, Ready};
use super::daemon::lock::StateLock;
use super::dirs::Dirs;
use super::exit::FAILURE;
use super::progress::Bars;
use super::{daemon_status, mounted};

/// How long `mount` waits for sources to settle; they go on settling afterwards.
const SETTLE: Duration = Duration::from_secs(60);
/// Between two looks at the status: a part of the time that it took so far, which is then the most that is lost.
const LOOK_SHARE: u32 = 32;
/// … within these limits: a look costs 0.3 ms.
const LOOK: std::ops::RangeInclusive<Duration> = Duration::from_millis(2)..=Duration::from_millis(100);
/// How long a holder that failed may take until everything is unmounted again.
const CLEARED: Duration = Duration::from_secs(10);
/// How long a daemon may take until the tree answers: it opens its store and journal before.
const ANSWER: Duration = Duration::from_secs(30);

/// Mount the configured add-ons.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  addonfs mount --config addonfs.yaml /mnt/addons
  addonfs mount --strict /mnt/addons            # exit 1 if a source is refused
  addonfs mount --foreground /mnt/addons        # log to the terminal; Ctrl-C takes it down")]
pub(crate) struct MountArgs {
    /// The configuration [default: /etc/addonfs/addonfs.yaml, for users $XDG_CONFIG_HOME/addonfs/addonfs.yaml]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where runs, journal and events are kept
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where layers are kept
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Stay in the foreground and log to the terminal
    #[arg(long, short)]
    foreground: bool,
    /// Fail if any source is refused or not settled in time
    #[arg(long, conflicts_with = "foreground")]
    strict: bool,
    /// Print the status as JSON once settled
    #[arg(long, short, value_name = "FORMAT", value_parser = ["json"], conflicts_with = "foreground")]
    output: Option<String>,
    /// Let the configuration say `profile: disabled`, under which next to nothing is checked; for development
    #[arg(long)]
    allow_disabled_policy: bool,
    /// The mount point [default: `mount_point` of the configuration]
    dir: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: MountArgs) -> anyhow::Result<ExitCode> {
    let options = resolve(&args)?;
    if mounted::is_mounted(&options.mount_point) && daemon_status::read(&options.mount_point).is_ok() {
        anyhow::bail!("{} is mounted already: see `addonfs status`", options.mount_point.display());
    }
    drop(StateLock::take(&options.dirs.state)?);
    if args.foreground {
        let (_reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        super::logging::start(super::logging::Target::Terminal);
        return Ok(holder::hold(&options, writer));
    }
    let ready = start_holder(&options)?;
    wait_ready(ready, &options)?;
    settled(&options.mount_point, args.strict, args.output.is_some())
}

/// Reads the configuration once, so that its errors come before anything is mounted.
fn resolve(args: &MountArgs) -> anyhow::Result<HoldOptions> {
    let config_path = args.config.clone().unwrap_or_else(Dirs::standard_config);
    let beside = Beside::of_environment()?.allowing_disabled(args.allow_disabled_policy);
    let mut config = Config::load(&config_path, &beside, &Files::default())?;
    let of_policy = beside.admit(&mut config.policy)?;
    for warning in config.warnings.iter().chain(&of_policy) {
        eprintln!("addonfs: warning: {warning}");
    }
    let dir = args.dir.clone().or_else(|| config.mount_point.clone()).with_context(|| {
        format!("no mount point: name one, or set `mount_point` in {}", config_path.display())
    })?;
    if !dir.exists() && !mounted::is_mounted(&dir) {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let mount_point = dir.canonicalize().or_else(|error| match error.raw_os_error() {
        Some(nix::libc::ENOTCONN) => std::path::absolute(&dir),
        _ => Err(error),
    })?;
    let standard = Dirs::standard();
    let pick = |word: &Option<PathBuf>, file: &Option<PathBuf>, or: PathBuf| {
        std::path::absolute(word.clone().or_else(|| file.clone()).unwrap_or(or))
    };
    let dirs = Dirs {
        state: pick(&args.state_dir, &config.state_dir, standard.state)?,
        cache: pick(&args.cache_dir, &config.cache_dir, standard.cache)?,
        runtime: standard.runtime,
    };
    let images_dir = holder::images_dir(&mount_point, &dirs.runtime);
    Ok(HoldOptions {
        mount_point,
        images_dir,
        config: config_path.canonicalize()?,
        dirs,
        foreground: args.foreground,
        beside,
    })
}

/// Starts the holder detached from this terminal; returns the pipe on which it reports.
fn start_holder(options: &HoldOptions) -> anyhow::Result<OwnedFd> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(options.dirs.state.join("addonfs.log"))
        .context("cannot open the log in the state directory")?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("__hold")
        .arg(writer.as_raw_fd().to_string())
        .arg(serde_json::to_string(options)?)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    rustix::io::fcntl_setfd(&writer, rustix::io::FdFlags::empty())?;
    command.spawn().context("cannot start the holder process")?;
    Ok(reader)
}

fn wait_ready(pipe: OwnedFd, options: &HoldOptions) -> anyhow::Result<()> {
    let log = options.dirs.state.join("addonfs.log");
    if !readable(&pipe, ANSWER)? {
        anyhow::bail!("the tree does not answer after {} s: see {}", ANSWER.as_secs(), log.display());
    }
    let mut line = String::new();
    let mut pipe = BufReader::new(std::fs::File::from(pipe));
    pipe.read_line(&mut line)?;
    let ready = serde_json::from_str(&line);
    if matches!(ready, Ok(Ready::Mounted)) {
        return Ok(());
    }
    // The holder has the other end as long as anything of it is mounted: only then is it as if nothing had been.
    let pipe = pipe.into_inner();
    let end = Instant::now() + CLEARED;
    while readable(&pipe, end.saturating_duration_since(Instant::now()))? && (&pipe).read(&mut [0; 512])? > 0
    {
    }
    match ready {
        Ok(Ready::Failed(why)) => anyhow::bail!("{why}"),
        _ => anyhow::bail!("the daemon ended before the tree answered: see {}", log.display()),
    }
}

/// Waits until the pipe has something to read, or its end.
fn readable(pipe: impl AsFd, timeout: Duration) -> anyhow::Result<bool> {
    let mut fds = [nix::poll::PollFd::new(pipe.as_fd(), nix::poll::PollFlags::POLLIN)];
    Ok(nix::poll::poll(&mut fds, nix::poll::PollTimeout::try_from(timeout)?)? > 0)
}

/// Waits until every source is settled, then says which were refused; prints the status if it is wanted.
pub(super) fn settled(mount: &Path, strict: bool, print: bool) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let mut bars = Bars::new();
    let (status, raw) = loop {
        let (status, raw) = daemon_status::read(mount)?;
        bars.show(&status);
        if status.settled || began.elapsed() > SETTLE {
            break (status, raw);
        }
        std::thread::sleep((began.elapsed() / LOOK_SHARE).clamp(*LOOK.start(), *LOOK.end()));
    };
    bars.clear();
    let mut complete = true;
    for source in &status.sources {
        if source.refused() {
            eprintln!("addonfs: warning: {}", source.why());
            complete = false;
        } else if !status.settled && !source.ready {
            eprintln!(
                "addonfs: warning: {}: still {}; `addonfs status` shows how far it is",
                source.name, source.phase
            );
            complete = false;
        }
    }
    if print {
        println!("{}", serde_json::to_string(&raw)?);
    }
    Ok(if strict && !complete { ExitCode::from(FAILURE) } else { ExitCode::SUCCESS })
}

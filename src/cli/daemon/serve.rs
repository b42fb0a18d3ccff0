//! Start of a daemon, in order, and its life until it is told to stop.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::SigSet;
use sd_notify::NotifyState;
use tokio::runtime::Handle;

use super::acquire::Rooms;
use super::added::AddedSources;
use super::board::Board;
use super::clock;
use super::drive::Sources;
use super::enlist;
use super::events::EventLog;
use super::facts::DaemonFacts;
use super::holder::{HOPELESS, HoldOptions, Ready};
use super::inherit::Descriptors;
use super::kept::{self, KeptTree};
use super::reload::{Reloader, Reloads};
use super::shutdown::{self, Stop, StopRequests};
use super::starts::Starts;
use super::upkeep;
use super::wiring;
use crate::cli::config::Config;
use crate::cli::http::{self, HttpState};
use crate::cli::logging;
use crate::fetch::documents::Documents;
use crate::fetch::store::{Items, OpenItems};
use crate::fs::control::ControlTree;
use crate::fs::image::{Images, Side};
use crate::fs::kernel::backing::Backings;
use crate::fs::kernel::control::{ControlConnection, forget_name};
use crate::fs::kernel::images::{ImageFs, ReadLimits, forget_content};
use crate::fs::kernel::mount;
use crate::fs::kernel::session::{SavedInit, Serving};
use crate::jobs::Jobs;
use crate::jobs::spawner::Spawner;
use crate::policy::event::EventSink;
use crate::policy::platform::Platform;

/// How long a successor waits for what its predecessor showed; all of it comes from the disk.
const LOCAL: Duration = Duration::from_secs(20);
/// How long open files keep an unmounted connection served. Their readers get ENOTCONN afterwards.
const DRAIN: Duration = Duration::from_secs(2);

/// Between two looks whether the mount is still there; who mounts anew right after umount(8) waits that long.
const GONE_LOOK: Duration = Duration::from_millis(500);

/// Runs as the daemon: `addonfs __daemon OPTIONS`.
pub(crate) fn main(options: &str) -> ExitCode {
    let descriptors = match Descriptors::take() {
        Ok(descriptors) => descriptors,
        Err(error) => {
            eprintln!("addonfs: {error:#}");
            return ExitCode::from(HOPELESS);
        }
    };
    // The holder waits for its signals with all of them blocked, and a child inherits that.
    let _ = SigSet::all().thread_unblock();
    let ready = descriptors.ready.try_clone();
    match serve(options, descriptors) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("daemon: {error:#}");
            if let Ok(ready) = ready {
                Ready::Failed(format!("{error:#}")).say(ready);
            }
            ExitCode::from(HOPELESS)
        }
    }
}

fn serve(options: &str, descriptors: Descriptors) -> anyhow::Result<()> {
    let options: HoldOptions =
        serde_json::from_str(options).context("the holder's options are not readable")?;
    // First of all: what the spawner starts must be bound by nothing that this process opens or gives up later.
    let spawner = Spawner::start().context("cannot start the spawner process")?;
    // Secrets of jobs and registries are in this memory: no core file, and no other process of this user reads it.
    // (After the spawner: what it starts is its own business, and an exec sets this back anyway.)
    nix::sys::prctl::set_dumpable(false).context("cannot keep core files from being written")?;
    logging::start(if options.foreground { logging::Target::Terminal } else { logging::Target::File });
    upkeep::abort_on_lost_thread();
    upkeep::keep_large_buffers_apart();
    let (config, trees) = config(&options, &descriptors.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("addonfs-rt")
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let result = runtime.block_on(live(options, config, trees, spawner, descriptors));
    // Work that nobody waits for any more must not keep an ended daemon alive.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// The configuration that the mount was made with, or that was loaded since. A successor must not read the files anew:
/// half edited, they would end the mount and every run; edited, they would take effect at the moment of a crash.
fn config(options: &HoldOptions, memory: &OwnedFd) -> anyhow::Result<(Config, Vec<KeptTree>)> {
    let (files, trees) = kept::read(memory)?.unwrap_or_default();
    let mut config = Config::load(&options.config, &options.beside, &files)?;
    config.warnings.extend(options.beside.admit(&mut config.policy)?);
    kept::write(memory, &files, &trees)?;
    Ok((config, trees))
}

/// Everything between the start of the runtime and its end.
async fn live(
    options: HoldOptions,
    config: Config,
    trees: Vec<KeptTree>,
    spawner: Spawner,
    mut descriptors: Descriptors,
) -> anyhow::Result<()> {
    let memory = descriptors.config.try_clone()?;
    let (http, group) = (config.http.clone(), wiring::group(&config)?);
    let opened = Opened::open(options, config, trees.clone(), &spawner, memory)?;
    let resumed = saved(&mut descriptors.control_init)?.is_some();
    if resumed {
        opened.wait_local(&trees).await;
    }
    let control = opened.serve_control(&mut descriptors)?;
    wait_mounted(&descriptors).await?;
    let xattr_images = opened.serve_images(Side::Xattrs, &mut descriptors)?;
    let images = opened.serve_images(Side::Plain, &mut descriptors)?;
    http::start(Arc::clone(&opened.facts), &http, group).await;
    Ready::Mounted.say(&descriptors.ready);
    tell_systemd(NotifyState::Ready);
    tracing::info!(mount_point = %opened.facts.options.mount_point.display(), resumed, "the tree answers");
    // Everything else has its own copies by now. The lock stays: a holder may be killed, and then it is ours alone.
    let Descriptors { lock: _lock, .. } = descriptors;

    let Opened { facts, mut stops, .. } = opened;
    tokio::select! {
        () = stops.wait(&facts.jobs) => {}
        () = gone(&control) => {
            tracing::warn!("the mount was taken down by somebody else: ending when no run is live");
            facts.stops.ask(Stop::Wait);
            stops.wait(&facts.jobs).await;
        }
        ended = spawner.ended() => die_without_spawner(&ended),
    }
    tell_systemd(NotifyState::Stopping);
    take_down(&facts.options, &spawner).await?;
    http::stop(&facts);
    tokio::task::spawn_blocking(move || {
        let end = Instant::now() + DRAIN;
        for serving in [images, xattr_images, control] {
            if let Err(error) = serving.stop(end.saturating_duration_since(Instant::now())) {
                tracing::debug!("a connection ended with {error}");
            }
        }
    })
    .await?;
    Ok(())
}

/// Says it to systemd where that listens (`Type=notify`). Each daemon says that it is ready: the first may have died
/// before, and once more does no harm.
fn tell_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot tell systemd: {error}");
    }
}

/// The rooms of a daemon, open and connected, with the drivers under way.
struct Opened {
    facts: Arc<DaemonFacts>,
    control: Arc<ControlTree>,
    images: Arc<Images>,
    limits: ReadLimits,
    stops: StopRequests,
}

impl Opened {
    fn open(
        options: HoldOptions,
        config: Config,
        trees: Vec<KeptTree>,
        spawner: &Spawner,
        memory: OwnedFd,
    ) -> anyhow::Result<Self> {
        let started_ms = clock::now_ms();
        wiring::private_dirs(&options)?;
        let events = Arc::new(EventLog::open(&options.dirs.state)?);
        let sink = {
            let events = Arc::clone(&events);
            EventSink::new(move |event| events.write(&event))
        };
        let added = AddedSources::load(&options.dirs.state);
        let together = added.together(&config);
        let store = wiring::store(&options, &config, &together.specs)?;
        let documents = Documents::open(&options.dirs.cache)?;
        let board = Arc::new(Board::new(&together.specs, sink.clone()));
        together.left_out.iter().for_each(|line| tracing::warn!("{line}"));
        let mut warnings = config.warnings.clone();
        warnings.extend(together.left_out.iter().cloned());
        board.leave_out(together.left_out);
        let (reloads, changes) = Reloads::new(warnings);
        let sources = Sources::new(Arc::clone(&board));
        let jobs = Jobs::open(
            wiring::jobs_options(&options, &config, sources.ensure_image())?,
            wiring::executor(&options, &config, spawner)?,
            sink,
            Handle::current(),
        )?;
        jobs.keep_sources(&config.sources.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>());
        let images = Arc::new(Images::new(wiring::owner(), &options.other_side()));
        let (stopper, stops) = shutdown::channel()?;
        let facts = Arc::new(DaemonFacts {
            board: Arc::clone(&board),
            sources: Arc::clone(&sources),
            jobs: jobs.clone(),
            events,
            store: Arc::clone(&store),
            documents: documents.clone(),
            stops: stopper,
            reloads,
            added: Mutex::new(Arc::new(added)),
            http: HttpState::new(&config.http),
            policy: Mutex::new(wiring::policy_json(&options, &config)),
            started_ms,
            reading: OnceLock::new(),
            survives: OnceLock::new(),
            last_error: Mutex::new(Arc::from([])),
            options,
        });
        let control = Arc::new(ControlTree::new(
            Arc::clone(&facts) as _,
            jobs.clone(),
            wiring::control_options(&facts.options, &config)?,
        ));
        {
            let control = Arc::clone(&control);
            board.connect(jobs, move || control.changed());
        }
        let starts = match config.prefetch.profiles {
            true => Some(Starts::open(&facts.options.dirs.state, Arc::clone(&images))?),
            false => None,
        };
        if let Some(starts) = &starts {
            sources.tell(Arc::clone(starts));
        }
        let filling = wiring::filling(&store, &config);
        let pinned_filling = wiring::pinned_filling(&store, &config);
        upkeep::save_uses(Arc::downgrade(&store));
        sources.start(Rooms {
            documents,
            store,
            images: Arc::clone(&images),
            trees: wiring::trees_dir(&facts.options)?,
            registry: wiring::registry_options(&config, spawner),
            platform: Platform::host(),
            filling,
            pinned_filling,
            starts,
            policy: config.policy.clone(),
        });
        let limits = ReadLimits { deadline: config.read.deadline, ..ReadLimits::default() };
        let reloader = Reloader {
            facts: Arc::clone(&facts),
            images: Arc::clone(&images),
            spawner: spawner.clone(),
            memory,
            config,
            trees,
            changes,
        };
        reloader.start()?;
        enlist::at_startup(Arc::clone(&facts));
        Ok(Self { facts, control, images, limits, stops })
    }

    /// Waits until everything that an earlier daemon showed is shown again: the kernel remembers it, and an inode
    /// that nobody knows would be an error for whoever has it open.
    async fn wait_local(&self, trees: &[KeptTree]) {
        if let Some(rooms) = self.facts.sources.rooms() {
            kept::reopen(&rooms, trees, &self.facts.jobs).await;
        }
        let mut changes = self.facts.board.watch();
        let all = async {
            while !self.facts.board.all_local_done() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(LOCAL, all).await.is_err() {
            tracing::warn!("not everything that was shown before could be shown again in time");
        }
    }

    fn serve_control(&self, descriptors: &mut Descriptors) -> anyhow::Result<Serving> {
        let connection = ControlConnection::new(Arc::clone(&self.control), Handle::current());
        let device = descriptors.control.try_clone()?;
        let init = init(&device, &mut descriptors.control_init)?;
        let (serving, init) =
            Serving::start(connection, device, Some(init)).context("cannot serve the control tree")?;
        let _ = self.facts.survives.set(init.survives());
        self.control.on_forget_name(forget_name(serving.notifier()));
        Ok(serving)
    }

    fn serve_images(&self, side: Side, descriptors: &mut Descriptors) -> anyhow::Result<Serving> {
        let (device, memory) = match side {
            Side::Plain => (&descriptors.images, &mut descriptors.images_init),
            Side::Xattrs => (&descriptors.xattr_images, &mut descriptors.xattr_images_init),
        };
        let device = device.try_clone()?;
        let journal = wiring::backing_journal(&self.facts.options, side);
        let resumed = saved(memory)?.is_some();
        let backings = match resumed {
            true => Backings::resume(&journal),
            false => Backings::create(&journal),
        }
        .with_context(|| format!("cannot open {}", journal.display()))?;
        let (images, board) = (Arc::clone(&self.images), Arc::clone(&self.facts.board));
        let connection =
            ImageFs::new(side, Arc::clone(&self.images), backings.clone(), Handle::current(), self.limits)
                .on_refused(Arc::new(move |ino, words| {
                    if let Some(tree) = images.digest_of(ino) {
                        board.read_refused(&tree, words);
                    }
                }));
        let jobs = self.facts.jobs.clone();
        let connection = connection.on_fetched(Arc::new(move |process| {
            let (jobs, run) = (jobs.clone(), jobs.run_of_process(process)?);
            Some(Arc::new(move |bytes| jobs.count_fetched(&run, bytes)))
        }));
        let init = init(&device, memory)?;
        let (serving, _) =
            Serving::start(connection, device, Some(init)).context("cannot serve the image trees")?;
        if let Ok(probe) = tempfile::tempfile_in(&self.facts.options.dirs.cache) {
            backings.probe(serving.device().as_fd(), &probe);
        }
        let (opened, images) = (backings.clone(), Arc::downgrade(&self.images));
        // Weakly: the images hold layers, and these the store.
        self.facts.store.ask_what_is_open(OpenItems(Box::new(move || {
            let Some(images) = images.upgrade() else { return Items::new() };
            opened.open_inodes().into_iter().filter_map(|ino| images.item_of(ino)).collect()
        })));
        upkeep::close_idle_backings(backings.clone(), serving.device().try_clone_to_owned()?);
        if side == Side::Plain {
            let forget = forget_content(serving.notifier(), Handle::current());
            self.images.streams().connect(forget, &journal.with_extension("streams"), resumed)?;
            let _ = self.facts.reading.set(backings);
        }
        Ok(serving)
    }
}

/// Waits for the holder's word: both image connections are mounted.
async fn wait_mounted(descriptors: &Descriptors) -> anyhow::Result<()> {
    let mut mounted = File::from(descriptors.mounted.try_clone()?);
    tokio::task::spawn_blocking(move || mounted.read_exact(&mut [0]))
        .await?
        .context("the holder ended before the images were mounted")
}

/// The connection's INIT: kept by an earlier daemon, or read from the device now and kept before it is answered.
fn init(device: &OwnedFd, memory: &mut OwnedFd) -> anyhow::Result<SavedInit> {
    if let Some(init) = saved(memory)? {
        return Ok(init);
    }
    let init = SavedInit::receive(device.as_fd()).context("the kernel sent no first request")?;
    File::from(memory.try_clone()?).write_all(init.as_bytes())?;
    Ok(init)
}

fn saved(memory: &mut OwnedFd) -> anyhow::Result<Option<SavedInit>> {
    let mut file = File::from(memory.try_clone()?);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some(SavedInit::from_bytes(&bytes)?))
}

/// A spawner can be started only by a process without threads and mounts, so it takes a new daemon: the holder starts
/// one for every death that is no exit.
fn die_without_spawner(ended: &std::io::Result<()>) -> ! {
    match ended {
        Ok(()) => tracing::error!("the spawner process ended; this daemon makes room for a new one"),
        Err(error) => tracing::error!(%error, "the spawner process cannot be watched; this daemon ends"),
    }
    std::process::abort()
}

/// Detaches the mounts. The spawner does it: this process must not touch what it serves.
async fn take_down(options: &HoldOptions, spawner: &Spawner) -> anyhow::Result<()> {
    let mut paths = vec![options.mount_point.clone()];
    if !options.nested() {
        paths.extend([options.images_dir.clone(), options.xattr_images_dir()]);
    }
    // Somebody else may have been there before: umount(8), or whoever aborted the connection and cleared up.
    for path in paths.iter().rev().filter(|path| mount::connection_of(path).is_some()) {
        wiring::unmount(spawner, path).await?;
    }
    Ok(())
}

/// Waits until the kernel has no use for the connection any more: unmounted by umount(8) and no file of it open, or
/// aborted. A daemon that went on would answer nobody, and keep the state directory from the next mount.
async fn gone(connection: &Serving) {
    while !connection.finished() {
        tokio::time::sleep(GONE_LOOK).await;
    }
}

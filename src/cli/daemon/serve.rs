//! Start of a daemon, in order, and its life until it is told to stop.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use nix::sys::signal::SigSet;

use super::drive::Sources;
use super::events::EventLog;
use super::facts::DaemonFacts;
use super::holder::{HOPELESS, HoldOptions, Ready};
use super::inherit::Descriptors;
use super::shutdown::Stops;
use crate::cli::config::Config;
use crate::cli::logging;
use crate::fs::kernel::session::{SavedInit, Serving};
use crate::jobs::spawner::Spawner;

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
    let options: HoldOptions = serde_json::from_str(options).context("the holder's options are not readable")?;
    // First of all: what the spawner starts must be bound by nothing that this process opens or gives up later.
    let spawner = Spawner::start().context("cannot start the spawner process")?;
    logging::start(if options.foreground { logging::Target::Terminal } else { logging::Target::File });
    let config = Config::read(&options.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("addonfs-rt")
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let served = runtime.block_on(Daemon::start(options, config, spawner, descriptors));
    let result = match served {
        Ok(daemon) => runtime.block_on(daemon.run()),
        Err(error) => Err(error),
    };
    // Work that nobody waits for any more must not keep an ended daemon alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

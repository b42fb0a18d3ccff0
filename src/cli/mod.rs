//! Words to wiring: arguments, configuration, daemon start and stop, one file a command. Imports every room; no
//! room imports it.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command, Role};

mod api_client;
mod args;
mod build;
mod cache;
mod cancel;
mod completion;
mod config;
mod daemon;
mod daemon_status;
mod dirs;
mod exit;
mod explain;
mod http;
mod index;
mod init;
mod job_files;
mod jobs;
mod keygen;
mod logging;
mod logs;
mod man;
mod mount;
mod mounted;
mod password;
mod plan;
mod profile;
mod progress;
mod pull;
mod push;
mod registry_access;
mod reload;
mod run;
mod runs;
mod schema;
mod sign;
mod sources;
mod status;
mod subject;
mod table;
mod test;
mod trace;
mod umount;
mod validate;
mod verify;
mod wait;

/// Runs the program: a command, or one of the roles in which it starts itself again.
pub fn run(words: impl Iterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = words.collect();
    let texts: Vec<String> = words.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    match texts.first().map(String::as_str) {
        Some(crate::jobs::spawner::ENTRY) => {
            return crate::jobs::spawner::main(words.get(2..).unwrap_or_default());
        }
        Some(crate::jobs::oci::shim::ENTRY) => {
            return crate::jobs::oci::shim::main(words.get(2..).unwrap_or_default());
        }
        _ => {}
    }
    if let Some(role) = Role::from_words(&texts) {
        return play(role);
    }
    completion::answer();
    exit::finish(command(Cli::parse_from(words).command))
}

fn command(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Mount(args) => mount::run(args),
        Command::Umount(args) => umount::run(args),
        Command::Reload(args) => reload::run(args),
        Command::Status(args) => status::run(args),
        Command::Sources(args) => asynchronous(sources::run(args)),
        Command::Pull(args) => pull::run(args),
        Command::Cache(args) => cache::run(args),
        Command::Init(args) => init::run(args),
        Command::Validate(args) => exit::answered(validate::run(args)),
        Command::Schema(args) => schema::run(args),
        Command::Test(args) => exit::answered(asynchronous(test::run(*args))),
        Command::Build(args) => asynchronous(build::run(*args)),
        Command::Push(args) => asynchronous(push::run(args)),
        Command::Keygen(args) => asynchronous(keygen::run(args)),
        Command::Sign(args) => asynchronous(sign::run(args)),
        Command::Verify(args) => exit::answered(asynchronous(verify::run(args))),
        Command::Policy(args) => exit::answered(asynchronous(explain::run(args))),
        Command::Index(args) => asynchronous(index::run(args)),
        Command::Profile(args) => asynchronous(profile::run(args)),
        Command::Run(args) => run::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Jobs(args) => jobs::run(args),
        Command::Runs(args) => runs::run(args),
        Command::Logs(args) => logs::run(args),
        Command::Cancel(args) => cancel::run(args),
        Command::Completion(args) => completion::run(args),
        Command::Man(args) => man::run(args),
        Command::Wait(args) => wait::run(args),
        Command::Trace(args) => trace::run(args),
    }
}

fn play(role: Role) -> ExitCode {
    match role {
        Role::Daemon(options) => daemon::serve::main(&options),
        Role::Hold { ready, options } => exit::finish(hold(&ready, &options)),
        Role::MountImages(mounts) => {
            exit::finish(daemon::holder::mount_images(&mounts).map(|()| ExitCode::SUCCESS))
        }
    }
}

fn hold(ready: &str, options: &str) -> anyhow::Result<ExitCode> {
    logging::start(logging::Target::File);
    let ready = daemon::inherit::adopt(ready.parse()?)?;
    Ok(daemon::holder::hold(&serde_json::from_str(options)?, ready))
}

/// A runtime for a command that talks to registries.
fn asynchronous<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work)
}

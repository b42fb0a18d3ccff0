//! The words of the command line, as typed. What they mean is each command's own business.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::build::BuildArgs;
use super::cache::CacheArgs;
use super::cancel::CancelArgs;
use super::completion::CompletionArgs;
use super::explain::PolicyArgs;
use super::index::IndexArgs;
use super::init::InitArgs;
use super::jobs::JobsArgs;
use super::keygen::KeygenArgs;
use super::logs::LogsArgs;
use super::man::ManArgs;
use super::mount::MountArgs;
use super::plan::PlanArgs;
use super::profile::ProfileArgs;
use super::pull::PullArgs;
use super::push::PushArgs;
use super::reload::ReloadArgs;
use super::run::RunArgs;
use super::runs::RunsArgs;
use super::schema::SchemaArgs;
use super::sign::SignArgs;
use super::sources::SourcesArgs;
use super::status::StatusArgs;
use super::test::TestArgs;
use super::trace::TraceArgs;
use super::umount::UmountArgs;
use super::validate::ValidateArgs;
use super::verify::VerifyArgs;
use super::wait::WaitArgs;

/// Add-ons from container registries, mounted as files.
#[derive(Debug, Parser)]
#[command(name = "addonfs", version, max_term_width = 100)]
#[command(after_help = "Examples:
  addonfs mount --config addonfs.yaml /mnt/addons     # mount what the configuration lists
  ls /mnt/addons/tools/backup                          # look around
  /mnt/addons/tools/backup/backup/run --help           # a job is a program
  addonfs status                                       # how everything is
  addonfs umount /mnt/addons")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Mount(MountArgs),
    Umount(UmountArgs),
    Reload(ReloadArgs),
    Status(StatusArgs),
    Sources(SourcesArgs),
    Pull(PullArgs),
    Cache(CacheArgs),
    Init(InitArgs),
    Validate(ValidateArgs),
    Schema(SchemaArgs),
    Test(Box<TestArgs>),
    Build(Box<BuildArgs>),
    Push(PushArgs),
    Keygen(KeygenArgs),
    Sign(SignArgs),
    Verify(VerifyArgs),
    Policy(PolicyArgs),
    Index(IndexArgs),
    Profile(ProfileArgs),
    Run(RunArgs),
    Plan(PlanArgs),
    Jobs(JobsArgs),
    Runs(RunsArgs),
    Logs(LogsArgs),
    Cancel(CancelArgs),
    Completion(CompletionArgs),
    Man(ManArgs),
    Wait(WaitArgs),
    Trace(TraceArgs),
}

/// Our own program started again in another role; never typed by hand.
#[derive(Debug)]
pub(crate) enum Role {
    /// `__hold READY-FD OPTIONS`.
    Hold {
        /// Number of the ready pipe.
        ready: String,
        /// The holder's options, JSON.
        options: String,
    },
    /// `__daemon OPTIONS`.
    Daemon(String),
    /// `__mount-images FD PATH FD PATH`.
    MountImages([(String, PathBuf); 2]),
}

impl Role {
    /// The role that the words name, if they name one.
    pub(crate) fn from_words(words: &[String]) -> Option<Self> {
        match words {
            [role, ready, options] if role == "__hold" => {
                Some(Self::Hold { ready: ready.clone(), options: options.clone() })
            }
            [role, options] if role == "__daemon" => Some(Self::Daemon(options.clone())),
            [role, a, path_a, b, path_b] if role == "__mount-images" => {
                Some(Self::MountImages([(a.clone(), path_a.into()), (b.clone(), path_b.into())]))
            }
            _ => None,
        }
    }
}

//! mkdir claims a run, rmdir takes it away; unlink is there so that `rm -r` of a finished run works.

use std::ffi::OsStr;
use std::path::Path;

use super::attr::Attr;
use super::find::Found;
use super::out::OutFolder;
use super::run_files::{NAMES, Slot};
use super::tree::Node;
use super::{ControlTree, Request, inode};
use crate::fs::error::FsError;
use crate::jobs::Run;

impl ControlTree {
    /// Makes a run. Exactly one of many callers with the same name wins; a request that the kernel sends again finds
    /// the directory that it made.
    pub fn mkdir(&self, request: &Request, parent: u64, name: &OsStr) -> Result<Attr, FsError> {
        let found = self.find(parent)?;
        let Some(Node::RunsOf(job)) = found.node() else { return Err(FsError::NotOffered) };
        let Some(name) = name.to_str() else {
            let words = "the name of a run is [a-z0-9][a-z0-9._-]{0,62}";
            self.refused(words);
            return Err(FsError::Invalid(words.to_owned()));
        };
        let (jobs, caller) = (self.runs.handle(), request.caller());
        let made = match request.resent {
            false => jobs.create_run(job, name, &caller),
            true => jobs.create_run_resent(job, name, &caller),
        };
        match made {
            Ok(run) => self.attr(&Found::Run(run, Slot::Dir)),
            Err(refused) => {
                self.refused(&refused.to_string());
                Err(refused.into())
            }
        }
    }

    /// Removes a finished run whole, or an empty directory of its `out/`. A request that the kernel sends again finds
    /// its work done.
    pub fn rmdir(&self, request: &Request, parent: u64, name: &OsStr) -> Result<(), FsError> {
        match self.rmdir_once(request, parent, name) {
            Err(FsError::NotFound) if request.resent => Ok(()),
            result => result,
        }
    }

    fn rmdir_once(&self, request: &Request, parent: u64, name: &OsStr) -> Result<(), FsError> {
        match self.find(parent)? {
            Found::Run(run, Slot::Dir) if name == "out" => {
                idle(&run)?;
                match OutFolder::open(run.dir()).and_then(|out| out.list(Path::new(""))) {
                    Ok(left) if !left.is_empty() => Err(FsError::NotEmpty),
                    _ => {
                        self.runs.hide(&run, Slot::Out);
                        Ok(())
                    }
                }
            }
            Found::Run(..) => Err(FsError::NotDirectory),
            Found::Out(run, path) => {
                idle(&run)?;
                OutFolder::open(run.dir())?.remove(&path, name, true)
            }
            found => match found.node() {
                Some(Node::RunsOf(job)) => self.remove_run(request, job, name),
                _ => Err(FsError::NotOffered),
            },
        }
    }

    /// Takes a file of a finished run out of sight; below `out/` it is removed for good.
    pub fn unlink(&self, parent: u64, name: &OsStr) -> Result<(), FsError> {
        match self.find(parent)? {
            Found::Run(run, Slot::Dir) => {
                let slot = name.to_str().and_then(Slot::of_name).ok_or(FsError::NotFound)?;
                if slot == Slot::Out {
                    return Err(FsError::IsDirectory);
                }
                idle(&run)?;
                self.runs.hide(&run, slot);
                Ok(())
            }
            Found::Out(run, path) => {
                idle(&run)?;
                OutFolder::open(run.dir())?.remove(&path, name, false)
            }
            _ => Err(FsError::NotOffered),
        }
    }

    fn remove_run(&self, request: &Request, job: &str, name: &OsStr) -> Result<(), FsError> {
        let run = name.to_str().and_then(|name| self.runs.of_job_by_name(job, name));
        let run = run.ok_or(FsError::NotFound)?;
        if let Err(refused) = self.runs.handle().remove_run(job, run.name(), &request.caller()) {
            self.refused(&refused.to_string());
            return Err(refused.into());
        }
        let number = run.number();
        self.contents.forget(NAMES.iter().map(|(_, slot)| inode::of_run(number, *slot as u8)));
        self.runs.forget(number);
        Ok(())
    }
}

/// Nothing is taken from a run that lives.
fn idle(run: &Run) -> Result<(), FsError> {
    if run.state().is_live() {
        return Err(FsError::Busy(format!("run {} is {}: cancel it first", run.id(), run.state().as_str())));
    }
    Ok(())
}

//! What `stat` says of each node: modes, owners, sizes, times.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::attr::{Attr, Kind, TTL_NONE, TTL_STATIC};
use super::find::Found;
use super::out::OutFolder;
use super::run_files::Slot;
use super::tree::{Fact, Node};
use super::{ControlTree, inode};
use crate::fs::error::FsError;
use crate::jobs::Run;

impl ControlTree {
    pub(super) fn attr(&self, found: &Found) -> Result<Attr, FsError> {
        match found {
            Found::Static(_, ino) => self.static_attr(*ino, found.node().ok_or(FsError::Gone)?),
            Found::Run(run, slot) => Ok(self.run_attr(run, *slot)),
            Found::Out(run, path) => self.out_attr(run, path),
        }
    }

    fn static_attr(&self, ino: u64, node: &Node) -> Result<Attr, FsError> {
        let fixed = |kind, perm, size| Attr {
            ino,
            kind,
            perm,
            size,
            nlink: 1,
            uid: self.options.uid,
            gid: self.group(),
            mtime: self.started,
            ttl: TTL_STATIC,
        };
        Ok(match node {
            Node::Dir(_) | Node::RunLinks => fixed(Kind::Dir, 0o555, 0),
            Node::RunsOf(_) => fixed(Kind::Dir, 0o775, 0),
            Node::Symlink(target) => fixed(Kind::Symlink, 0o777, target.len() as u64),
            Node::Program => {
                let names = 2 * (self.runs.jobs().len() + self.runs.count());
                let nlink = u32::try_from(names).unwrap_or(u32::MAX).max(1);
                Attr { nlink, ..fixed(Kind::File, 0o555, self.options.runner.len() as u64) }
            }
            Node::Ctl(_) => Attr { ttl: TTL_NONE, ..fixed(Kind::File, 0o660, 0) },
            Node::Events(source) => {
                let on_disk = self.events_path(source.as_deref()).and_then(|path| path.metadata().ok());
                let size = on_disk.as_ref().map_or(0, std::fs::Metadata::len);
                let mtime = on_disk.and_then(|found| found.modified().ok()).unwrap_or(self.started);
                Attr { ttl: TTL_NONE, mtime, ..fixed(Kind::File, 0o444, size) }
            }
            Node::Fact(fact) => {
                let view = self.view_fact(ino, fact);
                // what was refused may quote what somebody asked for
                let perm = if matches!(fact, Fact::LastError) { 0o440 } else { 0o444 };
                let size = view.bytes.len() as u64;
                Attr { ttl: TTL_NONE, mtime: view.changed, ..fixed(Kind::File, perm, size) }
            }
        })
    }

    fn run_attr(&self, run: &Run, slot: Slot) -> Attr {
        let ino = inode::of_run(run.number(), slot as u8);
        let (uid, gid) = self.run_owner(run);
        let born = self.run_born(run);
        let (kind, size, mtime) = match slot {
            Slot::Dir | Slot::Out => (Kind::Dir, 0, born),
            Slot::Link => (Kind::Symlink, link_target(run).len() as u64, born),
            Slot::Stdout | Slot::Stderr => {
                let (size, written) = run_log(slot).and_then(|name| run.stat_log(name)).unwrap_or((0, born));
                (Kind::File, size, written)
            }
            slot if slot.is_rendered() => {
                let view = self.view_run(run, slot);
                (Kind::File, view.bytes.len() as u64, view.changed)
            }
            _ => (Kind::File, 0, born),
        };
        Attr { ino, kind, perm: slot.perm(), size, nlink: 1, uid, gid, mtime, ttl: TTL_NONE }
    }

    fn out_attr(&self, run: &Run, path: &Path) -> Result<Attr, FsError> {
        if path.as_os_str().is_empty() {
            return Ok(self.run_attr(run, Slot::Out));
        }
        let stat = OutFolder::open(run.dir())?.stat(path)?;
        let (uid, gid) = self.run_owner(run);
        Ok(Attr {
            ino: inode::of_out(run.number(), stat.real),
            kind: stat.kind,
            perm: stat.perm,
            size: stat.size,
            nlink: stat.nlink,
            uid,
            gid,
            mtime: stat.mtime,
            ttl: TTL_NONE,
        })
    }

    /// The caller who made the run and the configured group; without one, the caller's own.
    fn run_owner(&self, run: &Run) -> (u32, u32) {
        let (uid, gid) = run.owner();
        (uid, self.options.group.unwrap_or(gid))
    }

    /// Last change of the run, for files that were never seen to change.
    pub(super) fn run_born(&self, run: &Run) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(run.changed_ms())
    }

    pub(super) fn events_path(&self, source: Option<&str>) -> Option<PathBuf> {
        match source {
            None => Some(self.facts.events_file()),
            Some(source) => self.facts.source_events_file(source),
        }
    }
}

/// The log that is `stdout` or `stderr`.
pub(super) const fn run_log(slot: Slot) -> Option<&'static str> {
    match slot {
        Slot::Stdout => Some("stdout"),
        Slot::Stderr => Some("stderr"),
        _ => None,
    }
}

/// Where `.addonfs/runs/<run id>` points.
pub(super) fn link_target(run: &Run) -> String {
    format!("../../{}/runs/{}", run.job_id(), run.name())
}

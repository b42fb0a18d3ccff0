//! What each rendered file shows. Every one ends with a newline or is empty, except what callers wrote themselves.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::content::{Source, View};
use super::run_files::Slot;
use super::tree::Fact;
use super::{ControlTree, inode};
use crate::fs::facts::SourceFiles;
use crate::jobs::Run;

impl ControlTree {
    pub(super) fn view_fact(&self, ino: u64, fact: &Fact) -> View {
        let render = || self.render_fact(fact);
        self.contents.view(ino, &self.fact_source(fact, &render))
    }

    pub(super) fn open_fact(&self, ino: u64, handle: u64, fact: &Fact) -> Arc<[u8]> {
        let render = || self.render_fact(fact);
        self.contents.open(ino, handle, &self.fact_source(fact, &render))
    }

    pub(super) fn view_run(&self, run: &Run, slot: Slot) -> View {
        let render = || render_run(run, slot);
        let ino = inode::of_run(run.number(), slot as u8);
        self.contents.view(ino, &self.run_source(run, &render))
    }

    pub(super) fn open_run(&self, run: &Run, slot: Slot, handle: u64) -> Arc<[u8]> {
        let render = || render_run(run, slot);
        let ino = inode::of_run(run.number(), slot as u8);
        self.contents.open(ino, handle, &self.run_source(run, &render))
    }

    fn fact_source<'a>(&self, fact: &Fact, render: &'a dyn Fn() -> Arc<[u8]>) -> Source<'a> {
        // a sum of counters that only rise moves whenever one of them does
        let more = match fact {
            Fact::Metrics => self.looks.fetch_add(1, Ordering::Relaxed),
            Fact::LastError => self.refusal.count(),
            // jobs come and go with the facts and by themselves
            Fact::JobsJson | Fact::JobsJsonl => self.runs.handle().generation(),
            _ => 0,
        };
        let snapshots = self.snapshots.load(Ordering::Relaxed);
        let stamp = self.facts.generation().wrapping_add(snapshots).wrapping_add(more);
        Source { stamp, born: self.started, render }
    }

    fn run_source<'a>(&self, run: &Run, render: &'a dyn Fn() -> Arc<[u8]>) -> Source<'a> {
        // the state too: it moves a moment after the generation
        let stamp = run.generation() ^ (run.state() as u64) << 56;
        Source { stamp, born: self.run_born(run), render }
    }

    fn render_fact(&self, fact: &Fact) -> Arc<[u8]> {
        let jobs = self.runs.handle();
        let bytes = match fact {
            Fact::Manifest(source) => return Arc::clone(&source.manifest), // byte for byte
            Fact::AddonJson(source) => Arc::clone(&source.addon_json),
            Fact::JobJson(job) => job.descriptor_json(),
            Fact::ArgSpec(job) => job.argspec_json(),
            Fact::Status => self.facts.status_json(),
            Fact::JobsJson => jobs.list_json().into(),
            Fact::JobsJsonl => jobs.list_jsonl().into(),
            Fact::Metrics => self.facts.metrics(),
            Fact::Version => concat!(env!("CARGO_PKG_VERSION"), "\n").as_bytes().into(),
            Fact::LastError => self.refusal.show(self.facts.last_error()),
            Fact::DiscoveryErrors => self.facts.discovery_errors(),
            Fact::SourceSpec(name) => self.of_source(name, |files| &files.spec_yaml),
            Fact::SourceStatus(name) => self.of_source(name, |files| &files.status_json),
            Fact::SourceConditions(name) => self.of_source(name, |files| &files.conditions),
            Fact::SourceLastError(name) => self.of_source(name, |files| &files.last_error),
        };
        ended(bytes)
    }

    fn of_source(&self, name: &str, file: impl Fn(&SourceFiles) -> &Arc<[u8]>) -> Arc<[u8]> {
        let sources = self.facts.sources();
        let found = sources.iter().find(|source| source.name == name);
        found.map_or_else(|| Arc::from([]), |source| Arc::clone(file(source)))
    }
}

fn render_run(run: &Run, slot: Slot) -> Arc<[u8]> {
    let bytes: Arc<[u8]> = match slot {
        // as it was written, to the byte: `>>` goes on from its size
        Slot::Args => return run.args_json().into(),
        Slot::State => run.state().as_str().as_bytes().into(),
        Slot::Record => run.record_json().into(),
        Slot::Plan => run.plan_json(),
        Slot::ExitCode => run.exit_code_text().into_bytes().into(),
        Slot::LastError => run.last_error().into_bytes().into(),
        _ => Arc::from([]),
    };
    ended(bytes)
}

/// The bytes with a newline at the end, unless there are none.
fn ended(bytes: Arc<[u8]>) -> Arc<[u8]> {
    match bytes.last() {
        None | Some(b'\n') => bytes,
        Some(_) => bytes.iter().copied().chain([b'\n']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_ends_with_a_newline_or_is_empty() {
        assert_eq!(&*ended(Arc::from(*b"a")), b"a\n");
        assert_eq!(&*ended(Arc::from(*b"a\n")), b"a\n");
        assert_eq!(&*ended(Arc::from([])), b"");
    }
}

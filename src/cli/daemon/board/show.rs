//! Who is shown: add-ons that want to be, trees that arrive, places that two want.

use std::sync::{Arc, PoisonError};

use super::super::candidate::{Candidate, forerunner};
use super::{Board, Entry, Seat, at};
use crate::fs::facts::{Rootfs, ShownSource};
use crate::policy::code::Denied;
use crate::policy::digest::Digest;
use crate::policy::event::Event;
use crate::policy::mount_path::{self, Claim, Holds};
use crate::policy::source::status::Transition;

impl Board {
    /// An add-on wants to be shown. The answer is why it must not. Where an earlier one with a tree is shown it waits for
    /// its own tree ([`Board::set_rootfs`], [`Board::show_without_rootfs`]).
    pub(crate) fn propose(&self, seat: Seat, mut candidate: Candidate) -> Result<(), Denied> {
        let (addon, version) = (&candidate.jobs.manifest.name, &candidate.jobs.manifest.version);
        let prefix = match candidate.shown.mount_path.as_str() {
            "" => String::new(),
            path => format!("{path}/"),
        };
        let transition = Transition::Shown {
            addon: addon.clone(),
            version: version.clone(),
            jobs: candidate.job_names.iter().map(|name| format!("{prefix}{name}")).collect(),
        };
        let now = {
            let mut entries = self.lock();
            let Some(entry) = at(&mut entries, seat) else { return Ok(()) };
            let before = entry.candidate.as_ref().map(|candidate| &candidate.shown);
            match before.or(entry.forerunner.as_ref()).and_then(|shown| shown.rootfs) {
                Some(Rootfs::Complete(_)) => {
                    entry.next = Some((candidate, transition));
                    None
                }
                streaming => {
                    candidate.set_rootfs(streaming);
                    entry.forerunner = None;
                    entry.show(candidate);
                    Some(transition)
                }
            }
        };
        let refused = self.settle();
        if let Some((_, denied)) = refused.into_iter().find(|(lost, _)| *lost == seat) {
            return Err(denied);
        }
        if let Some(transition) = now {
            self.apply(seat, transition);
        }
        Ok(())
    }

    /// The image tree of the source is there: `rootfs` appears, or leads to the new tree from now on.
    pub(crate) fn set_rootfs(&self, seat: Seat, tree: Digest) {
        self.flip(seat, Some(tree));
    }

    /// The tree of the source comes later: what is known of it takes the place of what is shown.
    pub(crate) fn show_without_rootfs(&self, seat: Seat) {
        self.flip(seat, None);
    }

    fn flip(&self, seat: Seat, tree: Option<Digest>) {
        let transition = {
            let mut entries = self.lock();
            let Some(entry) = at(&mut entries, seat) else { return };
            let transition = entry.next.take().map(|(next, transition)| {
                entry.show(next);
                transition
            });
            if let (Some(candidate), Some(tree)) = (&mut entry.candidate, tree) {
                candidate.set_rootfs(Some(Rootfs::Complete(tree)));
            }
            transition
        };
        if let Some(transition) = transition {
            self.settle();
            self.apply(seat, transition);
        } else {
            self.changed();
            self.tell_tree();
        }
    }

    /// The image tree that is shown of a source, once it is there.
    pub(crate) fn rootfs(&self, source: &str) -> Option<Digest> {
        let entries = self.lock();
        let entry = entries.iter().find(|entry| entry.spec.name == source)?;
        match entry.candidate.as_ref()?.shown.rootfs {
            Some(Rootfs::Complete(tree)) => Some(tree),
            _ => None,
        }
    }

    /// Something of the source's image arrives: `rootfs` leads to what has, unless all of it is there, or all of what was
    /// shown before a reload.
    pub(crate) fn stream(&self, seat: Seat, tree: Digest) {
        if let Some(entry) = at(&mut self.lock(), seat) {
            match &mut entry.candidate {
                Some(candidate) if candidate.shown.rootfs.is_none() && !entry.outdated => {
                    candidate.set_rootfs(Some(Rootfs::Streaming(tree)));
                }
                Some(_) => {}
                None => entry.forerunner = Some(Arc::new(forerunner(&entry.spec, tree))),
            }
        }
        self.settle();
    }

    /// What has arrived counts for nothing.
    pub(crate) fn revoke_stream(&self, seat: Seat, reason: &str) {
        let event = {
            let mut entries = self.lock();
            let Some(entry) = at(&mut entries, seat) else { return };
            entry.end_stream();
            let event = Event::of_source("stream.revoked", &entry.spec.name);
            event.with("digest", entry.spec.image.digest.to_string()).with("message", reason)
        };
        tracing::warn!(
            source = event.source,
            reason,
            "what was shown of an image while it arrived is taken back"
        );
        self.events.tell(event);
        self.settle();
    }

    /// Whether any source shows this tree, or will.
    pub(crate) fn shows(&self, tree: &Digest) -> bool {
        self.lock().iter().any(|entry| {
            if entry.tree() == Some(*tree) {
                return true;
            }
            let next = entry.next.as_ref().map(|(next, _)| next);
            next.is_some_and(|next| next.jobs.tree == *tree)
        })
    }

    /// Why `candidate` could not be shown beside those that are on the board, its own source left aside.
    pub(crate) fn refuses(&self, candidate: &Candidate) -> Option<Denied> {
        let entries = self.lock();
        let others = entries.iter().filter(|entry| entry.spec.name != candidate.shown.name);
        let mut claims: Vec<Claim<'_>> = others.filter_map(Entry::wanted).map(claim).collect();
        claims.push(claim(candidate));
        mount_path::settle(&claims).pop().flatten()
    }

    /// What was proposed at `seat`.
    pub(crate) fn proposed(&self, seat: Seat) -> Option<Candidate> {
        at(&mut self.lock(), seat)?.wanted().cloned()
    }

    /// Takes the source out of the tree.
    pub(crate) fn withdraw(&self, seat: Seat) {
        if let Some(entry) = at(&mut self.lock(), seat) {
            entry.hide();
        }
        self.settle();
        self.apply(seat, Transition::Hidden);
    }

    /// Decides anew who is shown; installs and removes jobs accordingly. Returns who lost and why.
    pub(super) fn settle(&self) -> Vec<(Seat, Denied)> {
        let settling = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        let mut install = Vec::new();
        let mut uninstall = Vec::new();
        let mut lost = Vec::new();
        {
            let mut entries = self.lock();
            for (index, denied) in collisions(&entries) {
                entries[index].hide();
                lost.push((entries[index].seat, denied));
            }
            for index in give_way(&entries) {
                entries[index].candidate = None;
            }
            let leading = leading(&entries);
            for (index, entry) in entries.iter_mut().enumerate() {
                entry.leads = leading.contains(&index);
                match (&entry.candidate, entry.visible) {
                    (Some(candidate), false) => install.push(candidate.jobs.clone()),
                    (Some(candidate), true) if entry.changed => install.push(candidate.jobs.clone()),
                    (None, true) => uninstall.push(entry.spec.name.clone()),
                    _ => {}
                }
                entry.visible = entry.candidate.is_some();
                entry.changed = false;
            }
        }
        if let Some(jobs) = self.jobs.get() {
            uninstall.iter().for_each(|source| jobs.uninstall(source));
            install.into_iter().for_each(|addon| jobs.install(addon));
        }
        drop(settling);
        for (seat, denied) in &lost {
            self.apply(*seat, Transition::Hidden);
            self.apply(*seat, Transition::Refuse(denied.clone()));
        }
        self.changed();
        self.tell_tree();
        lost
    }
}

fn claim(candidate: &Candidate) -> Claim<'_> {
    claim_of(&candidate.shown, &candidate.job_names)
}

fn claim_of<'a>(shown: &'a ShownSource, jobs: &'a [String]) -> Claim<'a> {
    Claim { source: &shown.name, mount_path: &shown.mount_path, holds: Holds::Jobs(jobs) }
}

/// The forerunners that are shown: they give way to whatever is an add-on already.
fn leading(entries: &[Entry]) -> Vec<usize> {
    let mut claims: Vec<Claim<'_>> =
        entries.iter().filter_map(|entry| entry.candidate.as_ref()).map(claim).collect();
    let first = claims.len();
    let mut leading = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if let (Some(forerunner), None) = (&entry.forerunner, &entry.candidate) {
            claims.push(claim_of(forerunner, &[]));
            leading.push(index);
        }
    }
    let verdicts = mount_path::settle(&claims);
    let shown = leading.into_iter().zip(verdicts.into_iter().skip(first));
    shown.filter(|(_, verdict)| verdict.is_none()).map(|(index, _)| index).collect()
}

/// Who must not be shown because somebody who comes earlier has the place.
fn collisions(entries: &[Entry]) -> Vec<(usize, Denied)> {
    let wanting: Vec<(usize, &Candidate)> =
        entries.iter().enumerate().filter_map(|(index, entry)| Some((index, entry.wanted()?))).collect();
    let claims: Vec<Claim<'_>> = wanting.iter().map(|(_, candidate)| claim(candidate)).collect();
    let verdicts = mount_path::settle(&claims);
    wanting.iter().zip(verdicts).filter_map(|((index, _), verdict)| Some((*index, verdict?))).collect()
}

/// Who is only still shown and stands in somebody's way.
fn give_way(entries: &[Entry]) -> Vec<usize> {
    let mut stays = Vec::new();
    let mut goes = Vec::new();
    for (index, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.outdated) {
        let Some(shown) = &entry.candidate else { continue };
        let others = entries.iter().enumerate().filter(|(other, _)| *other != index);
        let mut claims: Vec<Claim<'_>> =
            others.filter_map(|(_, other)| other.wanted()).chain(stays.iter().copied()).map(claim).collect();
        claims.push(claim(shown));
        match mount_path::settle(&claims).pop().flatten() {
            Some(_) => goes.push(index),
            None => stays.push(shown),
        }
    }
    goes
}

//! A reload: the board gets another list of sources and another policy's verdicts on what it shows.

use std::collections::HashMap;
use std::sync::PoisonError;

use super::super::clock;
use super::super::kept::KeptTree;
use super::{Board, Entry, Seat, new_seat};
use crate::fs::facts::Rootfs;
use crate::policy::admit::{NotAdmitted, Verification};
use crate::policy::code::Denied;
use crate::policy::digest::Digest;
use crate::policy::rules::Profile;
use crate::policy::source::spec::SourceSpec;
use crate::policy::source::status::{Phase, Transition};

/// What the new policy says of the image that a source shows.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// The pinned digest that was judged.
    pub image: Digest,
    /// What is known of its signature and under which profiles nothing of it runs; or the refusal.
    pub outcome: Result<(Verification, Vec<(Profile, Denied)>), NotAdmitted>,
}

/// A source whose image was shown and is not trusted any more.
#[derive(Debug)]
pub(crate) struct Lost {
    /// The source's name.
    pub source: String,
    /// The image's tree.
    pub tree: Digest,
    /// The refusal.
    pub denied: Denied,
}

/// What became of the sources.
#[derive(Debug, Default)]
pub(crate) struct Rearranged {
    /// Seats that are given up.
    pub ended: Vec<Seat>,
    /// Sources that need a driver.
    pub started: Vec<(Seat, SourceSpec)>,
    /// Sources that are shown no more because policy says so.
    pub lost: Vec<Lost>,
    /// Names of sources that were not there before.
    pub added: Vec<String>,
    /// Names of sources that are there no more.
    pub removed: Vec<String>,
    /// Names of sources whose spec is another one.
    pub changed: Vec<String>,
}

impl Board {
    /// The sources that show something, each with the pinned digest of that.
    pub(crate) fn shown_images(&self) -> Vec<(String, Digest)> {
        let shown = |entry: &Entry| {
            let candidate = entry.candidate.as_ref()?;
            Some((entry.spec.name.clone(), candidate.jobs.origin.addon_image_digest))
        };
        self.lock().iter().filter_map(shown).collect()
    }

    /// When the first of the signatures by which something is shown ceases to hold, seconds since 1970, of those that held
    /// at `after`.
    pub(crate) fn next_expiry(&self, after: i64) -> Option<i64> {
        let until = |entry: &Entry| match entry.status.verification() {
            Some(Verification::Verified(verified)) => verified.valid_until(),
            _ => None,
        };
        self.lock().iter().filter_map(until).filter(|until| *until > after).min()
    }

    /// The complete trees that are shown.
    pub(crate) fn shown_trees(&self) -> Vec<KeptTree> {
        let shown = |entry: &Entry| {
            let candidate = entry.candidate.as_ref()?;
            let Some(Rootfs::Complete(tree)) = candidate.shown.rootfs else { return None };
            let (image, insecure) = (candidate.jobs.image.clone(), entry.spec.insecure);
            Some(KeptTree { tree, image, insecure, distrusted: false })
        };
        self.lock().iter().filter_map(shown).collect()
    }

    /// Takes over `specs`. A source that is ready, wants the same and is let in for the same reason is left alone; every
    /// other one is acquired anew, and meanwhile goes on showing what it showed if `verdicts` let that in. What nobody
    /// judged is not shown. With `reinstall` all jobs are installed again. Where `only` names a source the others are
    /// left as they are.
    pub(crate) fn rearrange(
        &self,
        specs: &[SourceSpec],
        verdicts: &HashMap<String, Verdict>,
        reinstall: bool,
        only: Option<&str>,
    ) -> Rearranged {
        let mut done = Rearranged::default();
        let mut gone = Vec::new();
        {
            let _settling = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
            let mut entries = self.lock();
            let mut before: HashMap<String, Entry> =
                entries.drain(..).map(|entry| (entry.spec.name.clone(), entry)).collect();
            for spec in specs {
                let entry = match before.remove(&spec.name) {
                    None => {
                        let entry = Entry::new(spec, new_seat(&self.seats));
                        done.started.push((entry.seat, spec.clone()));
                        done.added.push(spec.name.clone());
                        entry
                    }
                    Some(entry) if only.is_some_and(|only| only != spec.name) => entry,
                    Some(entry) => self.judged(entry, spec, verdicts.get(&spec.name), reinstall, &mut done),
                };
                entries.push(entry);
            }
            for entry in before.into_values() {
                done.ended.push(entry.seat);
                gone.push((entry.spec.name.clone(), entry.visible));
            }
            drop(entries);
            if let Some(jobs) = self.jobs.get() {
                gone.iter().filter(|(_, visible)| *visible).for_each(|(name, _)| jobs.uninstall(name));
                jobs.keep_sources(&specs.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>());
            }
        }
        done.removed = gone.into_iter().map(|(name, _)| name).collect();
        done.removed.sort();
        self.settle();
        done
    }

    fn judged(
        &self,
        mut entry: Entry,
        spec: &SourceSpec,
        verdict: Option<&Verdict>,
        reinstall: bool,
        done: &mut Rearranged,
    ) -> Entry {
        let changed = entry.spec.to_yaml() != spec.to_yaml();
        let shown =
            entry.candidate.as_ref().map(|shown| (shown.jobs.origin.addon_image_digest, shown.jobs.tree));
        let outcome = shown.and_then(|(image, _)| Some(&verdict.filter(|v| v.image == image)?.outcome));
        if let (false, Phase::Ready, Some(Ok((verification, refused_under)))) =
            (changed, entry.status.phase(), outcome)
            && entry.status.verification() == Some(verification)
        {
            entry.spec = spec.clone();
            if let Some(candidate) = &mut entry.candidate {
                entry.changed |= reinstall || candidate.jobs.refused_under != *refused_under;
                candidate.jobs.refused_under.clone_from(refused_under);
            }
            return entry;
        }
        done.ended.push(entry.seat);
        entry.seat = new_seat(&self.seats);
        done.started.push((entry.seat, spec.clone()));
        entry.spec = spec.clone();
        (entry.next, entry.fetching) = (None, None);
        // The stream ends with its driver, and nobody hears that driver any more.
        entry.end_stream();
        let now = clock::now_ms();
        if changed {
            done.changed.push(spec.name.clone());
            entry.status.respecify(spec, now);
        } else {
            entry.status.apply(Transition::Resolve, now);
        }
        match (shown, outcome) {
            (None, _) => {}
            (Some(_), Some(Ok(_))) => (entry.outdated, entry.changed) = (true, entry.changed || reinstall),
            (Some((_, tree)), refused) => {
                entry.hide();
                entry.status.apply(Transition::Hidden, now);
                if let Some(Err(NotAdmitted { denied, refusals })) = refused {
                    entry.status.apply(Transition::Unverified(refusals.clone()), now);
                    entry.status.apply(Transition::Refuse(denied.clone()), now);
                    entry.last_error = format!("{denied}\n").into_bytes().into();
                    done.lost.push(Lost { source: spec.name.clone(), tree, denied: denied.clone() });
                }
            }
        }
        entry
    }
}

//! The variables of a job's process.

use super::Surroundings;
use crate::jobs::descriptor::Job;
use crate::jobs::executor::{DATA_DIR_INSIDE, RUN_DIR_INSIDE};
use crate::policy::arguments::{Arguments, is_reserved};
use crate::policy::image_config::DEFAULT_PATH;

/// One variable.
#[derive(Debug, Clone)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: String,
    /// Inherited from the daemon: what is in it nobody here knows, so nobody is shown.
    pub(super) hidden: bool,
}

/// The image's variables, then the manifest's, then ours; a later one takes the place of an earlier one. Nothing of
/// the daemon's own environment unless policy says so. Names that are ours mean nothing when an image sets them.
pub(super) fn variables(job: &Job, args: &Arguments, around: &Surroundings<'_>) -> Vec<Variable> {
    let mut env: Vec<Variable> = Vec::new();
    let mut set = |name: &str, value: &str, hidden| match env.iter_mut().find(|known| known.name == name) {
        Some(variable) => (variable.value, variable.hidden) = (value.to_owned(), hidden),
        None => env.push(Variable { name: name.to_owned(), value: value.to_owned(), hidden }),
    };
    set("PATH", DEFAULT_PATH, false);
    let usable = |name: &str| !name.is_empty() && !is_reserved(name);
    for (name, value) in around.inherited.iter().filter(|(name, _)| usable(name)) {
        set(name, value, true);
    }
    let image = job.addon.image_config.env.iter().filter_map(|line| line.split_once('='));
    for (name, value) in image.filter(|(name, _)| usable(name)) {
        set(name, value, false);
    }
    for (name, value) in &job.entry.env {
        set(name, value, false);
    }
    for (name, value) in job.entry.argspec.env(args) {
        set(&name, &value, false);
    }
    set("RUN_DIR", RUN_DIR_INSIDE, false);
    if around.overrides.data_dir {
        set("DATA_DIR", DATA_DIR_INSIDE, false);
    }
    env
}

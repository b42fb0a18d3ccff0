//! Which run a process belongs to.

use std::sync::Arc;

use super::handle::Jobs;
use super::oci;
use super::run::Run;
use super::spawner::parent_of;
use super::state::RunState;

/// How far up parents are looked at: the runtime that makes a container is two or three below its shim.
const MAX_PARENTS: usize = 16;

impl Jobs {
    /// The run of a process of this host: that of its control group, or (before it has one, and on hosts without) that
    /// of the shim among its parents. Looks into /proc.
    pub fn run_of_process(&self, pid: u32) -> Option<Arc<Run>> {
        if let Some(run) = oci::run_id_of_process(pid) {
            return self.run_by_id(&run);
        }
        let shims: Vec<(i32, Arc<Run>)> = self
            .live_runs()
            .into_iter()
            .filter(|run| run.state() == RunState::Running)
            .filter_map(|run| Some((run.lock().record.shim.as_ref()?.pid, run.clone())))
            .collect();
        if shims.is_empty() {
            return None;
        }
        let mut pid = i32::try_from(pid).ok().filter(|pid| *pid > 0)?;
        for _ in 0..MAX_PARENTS {
            if let Some((_, run)) = shims.iter().find(|(shim, _)| *shim == pid) {
                return Some(Arc::clone(run));
            }
            pid = parent_of(pid).ok().filter(|pid| *pid > 1)?;
        }
        None
    }
}

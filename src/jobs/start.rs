//! `start`: arguments judged, plan made, run queued. All of it before the caller's write returns, nothing of it slow.

use std::sync::Arc;

use super::args::ArgsText;
use super::control::Asked;
use super::descriptor::Job;
use super::error::JobError;
use super::handle::{Jobs, Rules, Shared};
use super::layout::{ARGS, ARGS_RAW, PLAN, write_whole};
use super::options::Caller;
use super::plan::document::PlanDocument;
use super::plan::{Plan, Surroundings, Wishes};
use super::queue::NoPlace;
use super::record::{ArgsAt, now_ms, pretty};
use super::run::{Inner, Pending, Run, WRITE_AGAIN};
use super::state::{RunState, Verb};
use super::stdin::Stdin;
use crate::policy::arguments::Arguments;
use crate::policy::code::Denied;
use crate::policy::event::Event;

/// What was decided about arguments: they fit, and policy allows what they lead to.
pub(super) struct Decision {
    pub(super) job: Arc<Job>,
    pub(super) args: Arguments,
    pub(super) plan: Plan,
}

impl Jobs {
    /// What would run with these arguments. Runs nothing.
    pub fn plan(&self, job_id: &str, asked: Asked, _caller: &Caller) -> Result<PlanDocument, JobError> {
        self.0.decide(job_id, asked).map(|decision| decision.plan.document)
    }
}

impl Shared {
    /// Judges arguments and makes the plan.
    pub(super) fn decide(&self, job_id: &str, asked: Asked) -> Result<Decision, JobError> {
        let job = self.jobs().get(job_id).cloned();
        let job = job.ok_or_else(|| JobError::NotFound(format!("job {job_id}")))?;
        let args = job.entry.argspec.resolve(asked.given).map_err(JobError::Arguments)?;
        let rules = self.rules();
        let plan = Plan::make(&job, &args, asked.wishes, &self.surroundings(&job, &rules))?;
        Ok(Decision { job, args, plan })
    }

    /// The same for a run that is to start: tells what policy said, and refuses without a runtime.
    pub(super) fn decide_start(&self, job_id: &str, asked: Asked) -> Result<Decision, JobError> {
        let decided = self.decide(job_id, asked).and_then(|decision| match &decision.plan.no_runtime {
            Some(denied) => Err(JobError::Denied(denied.clone())),
            None => Ok(decision),
        });
        match &decided {
            Ok(_) => self.events.tell(policy_decision(job_id, None)),
            Err(JobError::Denied(denied)) => self.events.tell(policy_decision(job_id, Some(denied))),
            Err(_) => {}
        }
        decided
    }

    /// Starts a run: queued when this returns.
    pub(super) fn start(
        self: &Arc<Self>,
        run: &Arc<Run>,
        token: Option<&str>,
        stdin: bool,
        wishes: Wishes,
    ) -> Result<RunState, JobError> {
        {
            let mut inner = run.lock();
            let same = token.is_some() && inner.record.token.as_deref() == token;
            if !run.judge(&inner, inner.record.state, Verb::Start, same)? {
                return Ok(inner.record.state);
            }
            if inner.text_lost {
                return Err(JobError::Invalid(WRITE_AGAIN.into()));
            }
            let decision = self.decide_start(run.job_id(), Asked { given: inner.text.given()?, wishes })?;
            let mut places = self.places(1)?;
            self.commit_start(run, &mut inner, decision, token, stdin, &mut places)?;
        }
        self.ensure_image(run);
        Ok(RunState::Queued)
    }

    /// Makes the start true: files, journal, queue, then memory. The caller asks for the image when it has let go of
    /// the run.
    pub(super) fn commit_start(
        &self,
        run: &Arc<Run>,
        inner: &mut Inner,
        decision: Decision,
        token: Option<&str>,
        stdin: bool,
        places: &mut Places<'_>,
    ) -> Result<(), JobError> {
        let Decision { job, args, plan } = decision;
        let spec = plan.launch(run.id(), stdin);
        let mut record = inner.record.clone();
        record.state = RunState::Queued;
        record.queued_ms = Some(now_ms());
        record.args_at = ArgsAt::Disk;
        record.args = Some(args.masked);
        record.held_secrets = !args.secrets.is_empty();
        record.token = token.map(str::to_owned);
        record.stdin = stdin;
        record.limits = plan.limits().clone();
        record.policy = plan.policy;
        record.plan_digest = Some(plan.digest);
        // The add-on may have changed since mkdir: the record tells what runs.
        (record.origin, record.image) = (job.addon.origin.clone(), job.addon.image.clone());
        (record.tree, record.trust) = (job.addon.tree, job.addon.trust.clone());
        let trouble = |e| JobError::Internal(format!("run {} cannot be started: {e}", run.name()));
        let shown = record.args.clone().map(serde_json::Value::Object).unwrap_or_default();
        write_whole(&run.dir().join(ARGS), &pretty(&shown)).map_err(trouble)?;
        write_whole(&run.dir().join(PLAN), &plan.json).map_err(trouble)?;
        if stdin {
            Stdin::make(run.dir())?;
        }
        self.journal.append(&record).map_err(trouble)?;
        // Only a copy by now; the run's folder goes as a whole in the end.
        let _ = std::fs::remove_file(run.dir().join(ARGS_RAW));
        inner.record = record;
        inner.text = ArgsText::default();
        inner.plan = Some(plan.json.into());
        inner.pending = Some(Pending { spec, secrets: args.secrets });
        inner.refusal = None;
        places.take(run);
        run.publish(inner);
        Ok(())
    }

    fn surroundings<'r>(&self, job: &Job, rules: &'r Rules) -> Surroundings<'r> {
        Surroundings {
            profile: rules.policy.profile,
            overrides: &rules.policy.overrides,
            inherited: &rules.inherited,
            limits: self.options.limits,
            ceilings: rules.policy.ceilings,
            images_dir: self.options.images_dir.clone(),
            data_dir: self.layout.data_dir(job.id()),
            runtime: self.executor.runtime(),
            network: self.executor.can_network(job.entry.network),
            unavailable: self.executor.limits_unavailable(),
        }
    }
}

/// Places in the queue that are promised and not taken yet; given back when dropped.
pub(super) struct Places<'a> {
    shared: &'a Shared,
    left: usize,
}

impl Places<'_> {
    fn take(&mut self, run: &Arc<Run>) {
        self.left = self.left.saturating_sub(1);
        self.shared.queue().push(Arc::clone(run));
    }
}

impl Drop for Places<'_> {
    fn drop(&mut self) {
        self.shared.queue().forgo(self.left);
    }
}

impl Shared {
    /// Places for so many runs, or a refusal.
    pub(super) fn places(&self, count: usize) -> Result<Places<'_>, JobError> {
        self.queue().promise(count).map_err(|why| match why {
            NoPlace::Full(limit) => {
                JobError::Again(format!("{limit} runs are waiting already; try again when some have started"))
            }
            NoPlace::Closed => JobError::Busy(
                "the daemon is being stopped and starts no more runs; start it after the next mount".into(),
            ),
        })?;
        Ok(Places { shared: self, left: count })
    }

    /// Places above the limit if need be.
    pub(super) fn places_at_any_rate(&self, count: usize) -> Places<'_> {
        self.queue().promise_at_any_rate(count);
        Places { shared: self, left: count }
    }
}

fn policy_decision(job_id: &str, denied: Option<&Denied>) -> Event {
    Event { kind: "policy.decision", source: None, run: None, data: serde_json::Map::new() }
        .with("subject", job_id)
        .with("decision", if denied.is_some() { "denied" } else { "allowed" })
        .with("code", denied.map(|d| d.code.as_str()))
        .with("reason", denied.map(|d| d.message.clone()))
}

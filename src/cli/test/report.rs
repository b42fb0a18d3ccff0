//! What a test found, in words and as JSON.

use std::io::Write as _;

use serde::Serialize;
use serde_json::Value;

use super::look::Image;
use crate::policy::digest::Digest;

/// Of an add-on.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    image: String,
    digest: Digest,
    user: String,
    uid: u32,
    gid: u32,
    workdir: String,
    /// Of the image as a whole.
    problems: Vec<String>,
    pub(super) jobs: Vec<JobReport>,
}

/// Of one entrypoint.
#[derive(Debug, Serialize)]
pub(super) struct JobReport {
    pub(super) id: String,
    command: Vec<String>,
    /// What it was planned and run with; secrets are made up or as given, and not shown.
    args: Option<Value>,
    /// Findings of the plan.
    findings: Vec<String>,
    /// Exit code of its run, if it was run.
    exit_code: Option<i32>,
    pub(super) problems: Vec<String>,
}

impl Report {
    pub(super) fn new(image: &str, digest: Digest, looked: &Image) -> Self {
        let (user, uid, gid) = looked.user();
        Self {
            image: image.to_owned(),
            digest,
            user,
            uid,
            gid,
            workdir: looked.workdir().to_owned(),
            problems: looked.problems.clone(),
            jobs: Vec::new(),
        }
    }

    pub(super) fn is_well(&self) -> bool {
        self.problems.is_empty() && self.jobs.iter().all(|job| job.problems.is_empty())
    }

    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if json {
            writeln!(out, "{}", serde_json::to_string_pretty(self)?)?;
            return Ok(());
        }
        for problem in &self.problems {
            writeln!(out, "FAIL  {}: {problem}", self.image)?;
        }
        for job in &self.jobs {
            job.print(&mut out)?;
        }
        Ok(())
    }
}

impl JobReport {
    pub(super) fn new(id: &str, command: &[String]) -> Self {
        Self {
            id: id.to_owned(),
            command: command.to_vec(),
            args: None,
            findings: Vec::new(),
            exit_code: None,
            problems: Vec::new(),
        }
    }

    /// What became of its plan.
    pub(super) fn planned(&mut self, planned: Result<Value, String>) {
        match planned {
            Ok(plan) => {
                let findings = plan["policy_findings"].as_array().into_iter().flatten();
                self.findings =
                    findings.filter_map(|finding| finding["message"].as_str()).map(str::to_owned).collect();
                self.args = Some(plan["args"].clone());
            }
            Err(why) => self.problems.push(format!("it cannot be planned: {why}")),
        }
    }

    pub(super) fn ran(&mut self, code: i32) {
        self.exit_code = Some(code);
        if code != 0 {
            self.problems.push(format!("its run ended with {code}"));
        }
    }

    fn print(&self, out: &mut impl std::io::Write) -> std::io::Result<()> {
        let args = self.args.as_ref().map(|args| format!(" {args}")).unwrap_or_default();
        if self.problems.is_empty() {
            let did = if self.exit_code.is_some() { "ran with" } else { "planned with" };
            writeln!(out, "ok    {}: {}; {did}{args}", self.id, self.command.join(" "))?;
        }
        for problem in &self.problems {
            writeln!(out, "FAIL  {}: {problem}", self.id)?;
        }
        for finding in &self.findings {
            writeln!(out, "note  {}: {finding}", self.id)?;
        }
        Ok(())
    }
}

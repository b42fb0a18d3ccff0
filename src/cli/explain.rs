//! `addonfs policy explain`: the decision about an image, step by step.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::config::Config;
use super::daemon::clock;
use super::exit::FAILURE;
use super::subject::SubjectArgs;
use crate::policy::admit;
use crate::policy::code::{Code, Denied};
use crate::policy::explain::{self, Found, Outcome, Step};
use crate::policy::reference::ImageRef;

/// What policy says, and why.
#[derive(Debug, clap::Args)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    Explain(ExplainArgs),
}

/// Walk through the decision about an image: profile, registry, trust, signature, and what it means for running.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The configuration and its policy file are read as the daemon reads them; no daemon is asked. A
registry that policy does not allow is not asked either.

Exit codes: 0 the image is let in; 1 it is refused; 2 it could not be found out.

Examples:
  addonfs policy explain backup
  FLWD_PROFILE=secure addonfs policy explain ghcr.io/acme/backup-tools:v1.0.0
  addonfs policy explain -o json backup | jq -r '.code'"
)]
struct ExplainArgs {
    #[command(flatten)]
    subject: SubjectArgs,
}

/// Runs the command.
pub(crate) async fn run(args: PolicyArgs) -> anyhow::Result<ExitCode> {
    let PolicyCommand::Explain(args) = args.command;
    let may_ask = |config: &Config, image: &ImageRef| {
        Ok(config.policy.check_registry(&image.location).map(|_covered| ())?)
    };
    let subject = match args.subject.subject(may_ask).await {
        Err(error) if is_refusal(&error) => {
            eprintln!("addonfs: {error:#}");
            return Ok(ExitCode::from(FAILURE));
        }
        subject => subject?,
    };
    let (policy, spec) = (&subject.config.policy, &subject.spec);
    let found = match admit::source(policy, spec) {
        Ok(()) => Some(subject.found().await),
        Err(_) => None,
    };
    let why = found.as_ref().and_then(|found| found.as_ref().err()).map(|error| format!("{error:#}"));
    let given = match (&found, &why) {
        (Some(Ok(found)), _) => Found::Evidence(&found.evidence, (&found.manifest.0, found.manifest.1)),
        (_, Some(why)) => Found::Unknown(why),
        (_, None) => Found::Unasked,
    };
    let steps = explain::steps(policy, spec, given, clock::now_s());
    let denied = explain::denied(&steps);
    if args.subject.json() {
        let shown = json!({
            "image": spec.image.to_string(),
            "digest": spec.image.digest,
            "source": subject.source(),
            "decision": match (denied, &why) {
                (Some(_), _) => "denied",
                (None, Some(_)) => "unknown",
                (None, None) => "allowed",
            },
            "code": denied.map(|(code, _)| code),
            "reason": denied.map(|(_, words)| words),
            "steps": steps,
        });
        println!("{}", serde_json::to_string_pretty(&shown)?);
    } else {
        println!("image       {}", spec.image);
        steps.iter().for_each(|step| print!("{}", in_words(step)));
        match denied {
            Some((code, _)) => println!("decision    refused: {code}"),
            None if why.is_none() => println!("decision    let in"),
            None => {}
        }
    }
    match (denied, why) {
        (Some(_), _) => Ok(ExitCode::from(FAILURE)),
        (None, Some(why)) => anyhow::bail!("what is beside the image could not be had: {why}"),
        (None, None) => Ok(ExitCode::SUCCESS),
    }
}

/// A tag is not even asked for at a registry that policy does not allow.
fn is_refusal(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Denied>().is_some_and(|denied| denied.code == Code::ImageRegistryNotAllowed)
}

/// `label  word: text`, further lines below the first.
fn in_words(step: &Step) -> String {
    let outcome = match step.outcome {
        Outcome::Holds => "",
        Outcome::Passed => "ok: ",
        Outcome::LetPass => "let pass: ",
        Outcome::Refused => "refused: ",
        Outcome::NotMade => "not made: ",
    };
    let code = step.code.map(|code| format!("{code}: ")).unwrap_or_default();
    format!("{:<11} {outcome}{code}{}\n", step.step, step.words.replace('\n', "\n            "))
}

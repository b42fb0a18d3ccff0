//! `addonfs verify`: who vouches for an image, or every reason why nobody does.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::daemon::clock;
use super::exit::FAILURE;
use super::subject::{Found, Subject, SubjectArgs};
use crate::policy::admit;
use crate::policy::trust::verdict::{Refusal, Verified, Voucher};
use crate::policy::trust::{evidence, signature};

/// Say whether somebody trusted vouches for an image, and how that was checked.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The keys, identities and trust policies are those of the configuration; no daemon is asked.
Whether the image may be used besides is what `addonfs policy explain` tells.

Exit codes: 0 verified; 1 not verified; 2 it could not be found out.

Examples:
  addonfs verify backup
  addonfs verify ghcr.io/acme/backup-tools:v1.0.0
  addonfs verify -o json oci:./sample.oci:v1.0.0 | jq .by"
)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    subject: SubjectArgs,
}

/// Runs the command.
pub(crate) async fn run(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let subject = args.subject.subject(|_, _| Ok(())).await?;
    let found = subject.found().await?;
    let outcome = judge(&subject, &found);
    if args.subject.json() {
        println!("{}", serde_json::to_string_pretty(&as_json(&subject, &found, &outcome))?);
    } else {
        print!("{}", in_words(&subject, &found, &outcome));
    }
    Ok(if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) })
}

/// Why nobody vouches for it.
#[derive(Debug)]
enum Unverified {
    /// No signature counts.
    Signatures(Vec<Refusal>),
    /// One does, and says something else of the manifest than what it is.
    Manifest(String),
}

fn judge(subject: &Subject, found: &Found) -> Result<Verified, Unverified> {
    let spec = &subject.spec;
    let trust = admit::trust_for(&subject.config.policy, spec);
    let about = evidence::Subject {
        digest: &spec.image.digest,
        location: Some(&spec.image.location),
        now: clock::now_s(),
    };
    let verified = signature::verify(&trust, &about, &found.evidence).map_err(Unverified::Signatures)?;
    let (media_type, size) = (&found.manifest.0, found.manifest.1);
    verified.check_manifest(media_type, size).map_err(Unverified::Manifest)?;
    Ok(verified)
}

fn as_json(subject: &Subject, found: &Found, outcome: &Result<Verified, Unverified>) -> Value {
    let image = &subject.spec.image;
    let (verification, refusals) = match outcome {
        Ok(verified) => (json!(verified), json!([])),
        Err(Unverified::Signatures(refusals)) => (Value::Null, json!(refusals)),
        Err(Unverified::Manifest(why)) => (Value::Null, json!([{"code": "manifest", "reason": why}])),
    };
    json!({
        "image": image.to_string(),
        "digest": image.digest,
        "source": subject.source(),
        "verified": outcome.is_ok(),
        "by": verification["by"],
        "verification": verification,
        "refusals": refusals,
        "signatures_found": found.evidence.len(),
        "verify_signatures": admit::verify_mode(&subject.config.policy, &subject.spec),
    })
}

fn in_words(subject: &Subject, found: &Found, outcome: &Result<Verified, Unverified>) -> String {
    let mut lines = vec![("image", subject.spec.image.to_string())];
    lines.extend(subject.source().map(|source| ("source", source.to_owned())));
    match outcome {
        Ok(verified) => {
            lines.push(("verified", format!("yes, by {}", voucher(verified.by()))));
            lines.push(("evidence", verified.evidence().to_string()));
            let checks: Vec<String> = verified.checked().iter().map(|check| name(&json!(check))).collect();
            if !checks.is_empty() {
                lines.push(("checked", checks.join(", ")));
            }
            if let Voucher::Notation(signer) = verified.by() {
                lines.extend(signer.findings().iter().map(|finding| ("finding", finding.to_string())));
                lines.extend(signer.skipped().iter().map(|check| ("skipped", check.to_string())));
            }
            lines.extend(verified.signed_reference().map(|signed| ("signed as", signed.to_owned())));
            lines.extend(verified.signed_at().map(|at| ("signed at", time(at))));
            lines.push(("until", verified.valid_until().map_or("without end".to_owned(), time)));
        }
        Err(unverified) => {
            lines.push(("verified", format!("no: {} signatures were found", found.evidence.len())));
            match unverified {
                Unverified::Signatures(refusals) => {
                    lines.extend(refusals.iter().map(|refusal| ("why", refusal.to_string())));
                }
                Unverified::Manifest(why) => lines.push(("why", why.clone())),
            }
        }
    }
    lines.into_iter().map(|(label, words)| format!("{label:<10} {words}\n")).collect()
}

fn voucher(by: &Voucher) -> String {
    match by {
        Voucher::Key { name, fingerprint } => format!("the key {name} ({fingerprint})"),
        Voucher::Identity { .. } => format!("the identity {by}"),
        Voucher::Notation(signer) => {
            format!(
                "the certificate of {by} ({}), by the statement {}",
                signer.thumbprint(),
                signer.statement()
            )
        }
    }
}

fn name(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn time(seconds: i64) -> String {
    clock::text(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000))
}

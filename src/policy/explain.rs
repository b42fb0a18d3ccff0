//! The decision about an image, step by step, in the order in which the daemon makes it.
//!
//! In: policy, the source's spec and the evidence, if anybody could look for it. Out: one [`Step`] a check, with its code
//! where it refuses. The same functions decide here and in [`admit`]; what an earlier refusal makes pointless is told as
//! not made.

use serde::Serialize;

use super::admit::{self, AdmittedImage, NotAdmitted, Verification};
use super::code::Denied;
use super::rules::{Policy, Profile, VerifyMode};
use super::source::spec::SourceSpec;
use super::trust::Trust;
use super::trust::evidence::Evidence;
use super::trust::verdict::{Refusal, Verified};

/// What became of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is a fact that later steps rest on.
    Holds,
    /// The check was passed.
    Passed,
    /// It failed, and policy lets that pass.
    LetPass,
    /// It failed: the image is refused.
    Refused,
    /// It was not made.
    NotMade,
}

/// One step of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What was looked at: `profile`, `signatures`, `trusted`, `registry`, `trust`, `signature`, `manifest`, `running`.
    pub step: &'static str,
    /// What became of it.
    pub outcome: Outcome,
    /// The code of a refusal, or of what was let pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// In words.
    pub words: String,
}

/// What was found beside the image.
#[derive(Debug, Clone, Copy)]
pub enum Found<'a> {
    /// Nobody looked, because what comes before refuses it.
    Unasked,
    /// It could not be had, for this reason.
    Unknown(&'a str),
    /// This, and media type and size of what the pinned digest names.
    Evidence(&'a [Evidence], (&'a str, u64)),
}

/// The steps, in their order. `now` is seconds since 1970.
pub fn steps(policy: &Policy, spec: &SourceSpec, found: Found<'_>, now: i64) -> Vec<Step> {
    let mut steps = vec![profile(policy), signatures(policy, spec), trusted(spec), registry(policy, spec)];
    let trust = admit::trust_for(policy, spec);
    steps.push(step("trust", Outcome::Holds, whom(&trust, spec)));
    let refused = steps.iter().any(|step| step.outcome == Outcome::Refused);
    let (evidence, manifest) = match found {
        _ if refused => return without_signature(steps, "an earlier step refuses the image"),
        Found::Unasked => return without_signature(steps, "nobody looked for it"),
        Found::Unknown(why) => return without_signature(steps, why),
        Found::Evidence(evidence, manifest) => (evidence, manifest),
    };
    let outcome = admit::image(policy, spec, evidence, now);
    steps.push(signature(&outcome));
    let Ok(admitted) = outcome else { return steps };
    match admit::manifest(spec, &admitted, manifest.0, manifest.1) {
        Ok(()) => steps.push(step("manifest", Outcome::Passed, "it is what was signed")),
        Err(denied) => {
            steps.push(refusal("manifest", &denied));
            return steps;
        }
    }
    steps.push(step("running", Outcome::Holds, running(policy, spec, &admitted)));
    steps
}

/// The refusal that the steps end with, if they do: its code and its words.
pub fn denied(steps: &[Step]) -> Option<(&'static str, &str)> {
    let refused = steps.iter().find(|step| step.outcome == Outcome::Refused)?;
    Some((refused.code.unwrap_or_default(), &refused.words))
}

fn step(step: &'static str, outcome: Outcome, words: impl Into<String>) -> Step {
    Step { step, outcome, code: None, words: words.into() }
}

fn refusal(name: &'static str, denied: &Denied) -> Step {
    Step { code: Some(denied.code.as_str()), ..step(name, Outcome::Refused, &*denied.message) }
}

fn without_signature(mut steps: Vec<Step>, why: &str) -> Vec<Step> {
    steps.push(step("signature", Outcome::NotMade, why));
    steps
}

fn profile(policy: &Policy) -> Step {
    let mut words = format!("{} (by {})", policy.profile, policy.profile_from);
    if policy.profile == Profile::Disabled {
        words.push_str(": no daemon works under it unless mounted with --allow-disabled-policy");
    }
    step("profile", Outcome::Holds, words)
}

fn signatures(policy: &Policy, spec: &SourceSpec) -> Step {
    let mode = admit::verify_mode(policy, spec);
    let by = match policy.verify_signatures {
        _ if spec.verify_signatures => "the source's verify_signatures",
        Some(_) => "policy.verify_signatures",
        None => "the profile",
    };
    let means = match mode {
        VerifyMode::Required => "an image without a valid one is refused",
        VerifyMode::Permissive => "an image without a valid one is let pass, with a finding",
        VerifyMode::Disabled => "nobody looks at them",
    };
    step("signatures", Outcome::Holds, format!("{} (by {by}): {means}", mode.name()))
}

fn trusted(spec: &SourceSpec) -> Step {
    match admit::consent(spec) {
        Ok(()) => step("trusted", Outcome::Passed, "the configuration consents to it"),
        Err(denied) => refusal("trusted", &denied),
    }
}

fn registry(policy: &Policy, spec: &SourceSpec) -> Step {
    match policy.check_registry(&spec.image.location) {
        Ok(why) => step("registry", Outcome::Passed, format!("{} is allowed: {why}", spec.image.location)),
        Err(denied) => refusal("registry", &denied),
    }
}

fn whom(trust: &Trust, spec: &SourceSpec) -> String {
    let mut signers: Vec<String> = trust.keys.iter().map(|key| format!("key {}", key.name)).collect();
    signers
        .extend(trust.identities.iter().map(|identity| format!("identity {}", serde_json::json!(identity))));
    signers.extend(trust.notation.iter().map(|_| "whom the Notary trust policy trusts".to_owned()));
    let whose =
        if spec.trust.is_some() { "the source's own trust, over policy.trust" } else { "policy.trust" };
    let log = if trust.require_log { "; keys need an entry of the transparency log, too" } else { "" };
    match signers.is_empty() {
        true => format!("nobody is trusted (by {whose})"),
        false => format!("any of {} (by {whose}){log}", signers.join(", ")),
    }
}

fn signature(outcome: &Result<AdmittedImage, NotAdmitted>) -> Step {
    match outcome {
        Ok(admitted) => match admitted.verification() {
            Verification::Verified(verified) => step("signature", Outcome::Passed, vouched(verified)),
            Verification::Unsigned { refusals } => Step {
                code: Some("image.signature.permissive"),
                ..step("signature", Outcome::LetPass, reasons(refusals))
            },
            Verification::NotChecked => step("signature", Outcome::NotMade, "nobody looks at signatures"),
        },
        Err(refused) if refused.refusals.is_empty() => refusal("signature", &refused.denied),
        Err(refused) => Step {
            code: Some(refused.denied.code.as_str()),
            ..step("signature", Outcome::Refused, reasons(&refused.refusals))
        },
    }
}

fn vouched(verified: &Verified) -> String {
    format!("{}: by {}", verified.evidence(), verified.by())
}

fn reasons(refusals: &[Refusal]) -> String {
    refusals.iter().map(Refusal::to_string).collect::<Vec<_>>().join("\n")
}

fn running(policy: &Policy, spec: &SourceSpec, admitted: &AdmittedImage) -> String {
    let refused = admit::refused_under(policy, spec, admitted);
    let under = |profile: Profile| {
        if let Some((_, denied)) = refused.iter().find(|(refusing, _)| *refusing == profile) {
            return format!("{profile}: nothing of it runs ({})", denied.code);
        }
        let asked = policy.profile.asked(profile, &policy.overrides.profile, "a request");
        match asked {
            _ if profile == policy.profile => format!("{profile}: jobs run, with a runtime on the host"),
            Ok(granted) if granted.loosened => format!("{profile}: granted to who asks (overrides.profile)"),
            Ok(_) => format!("{profile}: granted to who asks"),
            Err(denied) => format!("{profile}: not granted ({})", denied.code),
        }
    };
    Profile::ALL.map(under).join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::digest::Digest;
    use crate::policy::reference::ImageRef;
    use crate::policy::rules::AllowedRegistries;
    use crate::policy::trust::keys::PrivateKey;
    use crate::policy::trust::signature::tests::{material, trusting};

    const MANIFEST: (&str, u64) = ("application/vnd.oci.image.manifest.v1+json", 100);

    fn spec() -> SourceSpec {
        let image: ImageRef = format!("ghcr.io/acme/x@{}", Digest::of(b"image")).parse().unwrap();
        SourceSpec::of_image("x", image.pinned().unwrap())
    }

    fn outline(steps: &[Step]) -> Vec<(&'static str, Outcome, Option<&'static str>)> {
        steps.iter().map(|step| (step.step, step.outcome, step.code)).collect()
    }

    /// The order is that of 1A-14, and each step says what the daemon would.
    #[test]
    fn the_walk_ends_where_the_image_is_refused() {
        use Outcome::{Holds, LetPass, NotMade, Passed, Refused};
        let (key, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let allowed_registries = AllowedRegistries::parse(Some(&["ghcr.io/acme/*".to_owned()])).unwrap();
        let policy = Policy { allowed_registries, trust: trusting(&[("k.pub", &key)]), ..Policy::default() };
        let (good, bad) = ([material(&key, &spec().image.digest)], [material(&other, &spec().image.digest)]);
        let before = |trusted, registry| {
            [
                ("profile", Holds, None),
                ("signatures", Holds, None),
                ("trusted", trusted, (trusted == Refused).then_some("source.trust.required")),
                ("registry", registry, (registry == Refused).then_some("image.registry.not.allowed")),
                ("trust", Holds, None),
            ]
        };
        let walk = |policy: &Policy, spec: &SourceSpec, found| outline(&steps(policy, spec, found, 0));

        let all = walk(&policy, &spec(), Found::Evidence(&good, MANIFEST));
        let rest = [("signature", Passed, None), ("manifest", Passed, None), ("running", Holds, None)];
        assert_eq!(all, [&before(Passed, Passed)[..], &rest].concat());

        let refused = [("signature", Refused, Some("image.signature.required"))];
        let evidence = Found::Evidence(&bad, MANIFEST);
        assert_eq!(walk(&policy, &spec(), evidence), [&before(Passed, Passed)[..], &refused].concat());
        let let_pass = ("signature", LetPass, Some("image.signature.permissive"));
        assert!(walk(&policy.under(Profile::Permissive), &spec(), evidence).contains(&let_pass));

        let not_made = [("signature", NotMade, None)];
        let elsewhere = Policy { allowed_registries: AllowedRegistries::default(), ..policy.clone() };
        assert_eq!(walk(&elsewhere, &spec(), evidence), [&before(Passed, Refused)[..], &not_made].concat());
        let distrusted = SourceSpec { trusted: false, ..spec() };
        assert_eq!(walk(&policy, &distrusted, evidence), [&before(Refused, Passed)[..], &not_made].concat());
        assert!(walk(&policy, &spec(), Found::Unknown("no route")).ends_with(&not_made));

        let own = SourceSpec { verify_signatures: true, ..spec() };
        let found = steps(&policy, &own, evidence, 0);
        assert_eq!(denied(&found).unwrap().0, "source-signature-invalid");
        assert!(found.last().unwrap().words.contains("k.pub"), "{found:?}");
    }

    #[test]
    fn what_it_means_for_running() {
        let allowed_registries = AllowedRegistries::parse(Some(&["*".to_owned()])).unwrap();
        let mut policy = Policy { profile: Profile::Permissive, allowed_registries, ..Policy::default() };
        policy.overrides.profile = vec![Profile::Disabled];
        let found = steps(&policy, &spec(), Found::Evidence(&[], MANIFEST), 0);
        let running = &found.last().unwrap().words;
        let lines: Vec<&str> = running.lines().collect();
        assert!(lines[0].starts_with("secure: nothing of it runs (image.signature.required)"), "{running}");
        assert!(lines[1].starts_with("permissive: jobs run"), "{running}");
        assert!(lines[2].contains("overrides.profile"), "{running}");
    }
}

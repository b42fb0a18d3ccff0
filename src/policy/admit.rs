//! Admission: the only place where an image becomes an [`AdmittedImage`] and an add-on an [`AdmittedAddon`].
//!
//! In: policy, a source's spec, and bytes that `fetch` verified. Out: a value that proves that every check was
//! made, or the refusal. The order of the checks decides which refusal a user sees, and is pinned by tests:
//! trusted -> registry allowed -> signature -> (layers are read) -> manifest. [`source`] makes the first two before
//! anything is asked of the registry; [`image`] makes them again.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;

use super::addon::{self, AddonManifest};
use super::code::{Code, Denied};
use super::event::Event;
use super::image_config::ImageConfig;
use super::reference::PinnedRef;
use super::rules::{Policy, Profile, VerifyMode};
use super::source::spec::SourceSpec;
use super::trust::Trust;
use super::trust::evidence::{Evidence, Subject};
use super::trust::signature;
use super::trust::verdict::{Refusal, Verified, in_words};

/// An image that policy lets in.
#[derive(Debug, Clone)]
pub struct AdmittedImage {
    image: PinnedRef,
    verification: Verification,
}

/// What is known of an image's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Verification {
    /// Somebody trusted vouches for the pinned digest.
    Verified(Verified),
    /// There is no valid signature, and policy lets that pass (`image.signature.permissive`).
    Unsigned {
        /// Why no signature counted, each by itself.
        refusals: Vec<Refusal>,
    },
    /// Policy does not ask for signatures.
    NotChecked,
}

/// An add-on that policy lets in: its image and its valid manifest.
#[derive(Debug, Clone)]
pub struct AdmittedAddon {
    image: AdmittedImage,
    manifest: AddonManifest,
    manifest_bytes: Arc<[u8]>,
}

/// Why an image is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{denied}")]
pub struct NotAdmitted {
    /// The refusal.
    pub denied: Denied,
    /// Where it is about signatures: why none of them counted.
    pub refusals: Vec<Refusal>,
}

impl From<Denied> for NotAdmitted {
    fn from(denied: Denied) -> Self {
        Self { denied, refusals: Vec::new() }
    }
}

impl AdmittedImage {
    /// The image.
    pub fn image(&self) -> &PinnedRef {
        &self.image
    }

    /// What is known of its signature.
    pub fn verification(&self) -> &Verification {
        &self.verification
    }

    /// Whether somebody trusted vouches for it.
    pub fn is_signed(&self) -> bool {
        matches!(self.verification, Verification::Verified(_))
    }
}

impl AdmittedAddon {
    /// The image it came in.
    pub fn image(&self) -> &AdmittedImage {
        &self.image
    }

    /// Its manifest.
    pub fn manifest(&self) -> &AddonManifest {
        &self.manifest
    }

    /// The manifest, byte for byte.
    pub fn manifest_bytes(&self) -> &Arc<[u8]> {
        &self.manifest_bytes
    }
}

/// The rules that hold for a source: the host's, under the profile that was granted to it.
fn rules<'p>(policy: &'p Policy, spec: &SourceSpec) -> Cow<'p, Policy> {
    match spec.profile {
        Some(profile) if profile != policy.profile => Cow::Owned(policy.under(profile)),
        _ => Cow::Borrowed(policy),
    }
}

/// The checks that need nothing from the registry; to be made before it is asked for anything.
pub fn source(policy: &Policy, spec: &SourceSpec) -> Result<(), Denied> {
    source_under(&rules(policy, spec), spec)
}

fn source_under(policy: &Policy, spec: &SourceSpec) -> Result<(), Denied> {
    consent(spec)?;
    policy.check_registry(&spec.image.location).map(|_covered| ())
}

/// Whether the configuration consents to the source.
pub fn consent(spec: &SourceSpec) -> Result<(), Denied> {
    if !spec.trusted {
        return Err(Denied::new(
            Code::SourceTrustRequired,
            format!(
                "source {} says trusted: false: remove the line, or write trusted: true, to consent to showing it \
                 and running its jobs",
                spec.name
            ),
        ));
    }
    Ok(())
}

/// What this source's signatures are for: the policy's mode, or `Required` where the source demands it.
pub fn verify_mode(policy: &Policy, spec: &SourceSpec) -> VerifyMode {
    mode_under(&rules(policy, spec), spec)
}

fn mode_under(policy: &Policy, spec: &SourceSpec) -> VerifyMode {
    if spec.verify_signatures { VerifyMode::Required } else { policy.verify_mode() }
}

/// Admits an image at the time `now`, seconds since 1970. `evidence` is what was found beside it; where
/// [`verify_mode`] is `Disabled` nobody need look.
pub fn image(
    policy: &Policy,
    spec: &SourceSpec,
    evidence: &[Evidence],
    now: i64,
) -> Result<AdmittedImage, NotAdmitted> {
    source(policy, spec)?;
    let mode = verify_mode(policy, spec);
    let verification = if mode == VerifyMode::Disabled {
        Verification::NotChecked
    } else {
        let subject = Subject { digest: &spec.image.digest, location: Some(&spec.image.location), now };
        match signature::verify(&trust_for(policy, spec), &subject, evidence) {
            Ok(verified) => Verification::Verified(verified),
            Err(refusals) if mode == VerifyMode::Permissive => Verification::Unsigned { refusals },
            Err(refusals) => {
                let denied = unsigned(spec, &in_words(&refusals));
                return Err(NotAdmitted { denied, refusals });
            }
        }
    };
    Ok(AdmittedImage { image: spec.image.clone(), verification })
}

/// Whether what the pinned digest names is what was signed, in more than its digest: made as soon as it is there.
pub fn manifest(
    spec: &SourceSpec,
    admitted: &AdmittedImage,
    media_type: &str,
    size: u64,
) -> Result<(), Denied> {
    match &admitted.verification {
        Verification::Verified(verified) => {
            verified.check_manifest(media_type, size).map_err(|why| unsigned(spec, &why))
        }
        Verification::Unsigned { .. } | Verification::NotChecked => Ok(()),
    }
}

/// Admits an add-on by the manifest found in an admitted image, whose config is `config`.
pub fn addon(
    image: AdmittedImage,
    config: &ImageConfig,
    manifest_bytes: &[u8],
) -> Result<AdmittedAddon, Denied> {
    let manifest = AddonManifest::parse(manifest_bytes).map_err(|problems| addon::denied(&problems))?;
    manifest.check_image(config)?;
    Ok(AdmittedAddon { image, manifest, manifest_bytes: manifest_bytes.into() })
}

/// The event that tells of a decision: `policy.decision` with subject, decision, code and reason.
pub fn decision(spec: &SourceSpec, outcome: Result<&AdmittedImage, &Denied>) -> Event {
    let event = Event::of_source("policy.decision", &spec.name).with("subject", spec.image.to_string());
    match outcome {
        Ok(admitted) => match &admitted.verification {
            Verification::Verified(verified) => {
                event.with("decision", "allowed").with("reason", format!("signed by {}", verified.by()))
            }
            Verification::Unsigned { refusals } => event
                .with("decision", "allowed")
                .with("code", "image.signature.permissive")
                .with("reason", in_words(refusals)),
            Verification::NotChecked => {
                event.with("decision", "allowed").with("reason", "signatures are not checked")
            }
        },
        Err(denied) => event
            .with("decision", "denied")
            .with("code", denied.code.as_str())
            .with("reason", denied.message.as_str()),
    }
}

/// Whose signatures count for the source.
pub fn trust_for(policy: &Policy, spec: &SourceSpec) -> Trust {
    policy.trust.for_source(spec.trust.as_ref())
}

/// The stricter profiles under which an image that was admitted under the host's would not have been, each with its
/// refusal: whoever asks for such a profile must not get it in name only.
pub fn refused_under(policy: &Policy, spec: &SourceSpec, admitted: &AdmittedImage) -> Vec<(Profile, Denied)> {
    let profile = rules(policy, spec).profile;
    let stricter = Profile::ALL.into_iter().filter(|stricter| *stricter > profile);
    let refusal = |profile| {
        let policy = policy.under(profile);
        let checked = source_under(&policy, spec).and_then(|()| match &admitted.verification {
            _ if mode_under(&policy, spec) != VerifyMode::Required => Ok(()),
            Verification::Verified(_) => Ok(()),
            Verification::Unsigned { refusals } => Err(unsigned(spec, &in_words(refusals))),
            Verification::NotChecked => Err(unsigned(spec, "its signatures were not looked at")),
        });
        Some((profile, checked.err()?))
    };
    stricter.filter_map(refusal).collect()
}

/// Whose signatures on indexes of an image's layers count; nobody's without `trust.index_keys`.
pub fn index_trust(policy: &Policy, spec: &SourceSpec) -> Trust {
    trust_for(policy, spec).for_indexes()
}

fn unsigned(spec: &SourceSpec, why: &str) -> Denied {
    let (code, who) = if spec.verify_signatures {
        (Code::SourceSignatureInvalid, "source")
    } else {
        (Code::ImageSignatureRequired, "policy")
    };
    let words = format!("{} has no valid signature and the {who} demands one: {why}", spec.image);
    Denied::new(code, words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::digest::Digest;
    use crate::policy::rules::AllowedRegistries;
    use crate::policy::source::spec::{Expose, PullPolicy};
    use crate::policy::trust::keys::PrivateKey;
    use crate::policy::trust::signature::tests::{material, trusting};

    fn spec(image: &str) -> SourceSpec {
        let digest = Digest::of(b"image");
        SourceSpec {
            name: "x".to_owned(),
            image: format!("{image}@{digest}")
                .parse::<crate::policy::reference::ImageRef>()
                .unwrap()
                .pinned()
                .unwrap(),
            mount_path: "x".to_owned(),
            trusted: true,
            pull_policy: PullPolicy::OnAdd,
            expose: Expose::Read,
            verify_signatures: false,
            trust: None,
            insecure: false,
            pin: false,
            stream: false,
            profile: None,
        }
    }

    fn policy(profile: Profile, key: &PrivateKey) -> Policy {
        Policy {
            profile,
            allowed_registries: AllowedRegistries::parse(Some(&["ghcr.io".to_owned()])).unwrap(),
            trust: trusting(&[("cosign.pub", key)]),
            ..Policy::default()
        }
    }

    /// Each step is refused before the next one is looked at.
    #[test]
    fn the_order_of_the_checks() {
        let key = PrivateKey::generate().unwrap();
        let policy = policy(Profile::Secure, &key);
        let mut source = spec("quay.io/o/x");
        source.trusted = false;
        let code = |source: &SourceSpec, evidence: &[Evidence]| {
            image(&policy, source, evidence, 0).map(|_| ()).map_err(|refused| refused.denied.code)
        };
        assert_eq!(code(&source, &[]), Err(Code::SourceTrustRequired));
        source.trusted = true;
        assert_eq!(code(&source, &[]), Err(Code::ImageRegistryNotAllowed));
        let source = spec("ghcr.io/o/x");
        assert_eq!(code(&source, &[]), Err(Code::ImageSignatureRequired));
        let signed = [material(&key, &source.image.digest)];
        assert_eq!(code(&source, &signed), Ok(()));
        let admitted = image(&policy, &source, &signed, 0).unwrap();
        let shown = serde_json::to_value(admitted.verification()).unwrap();
        assert_eq!((&shown["state"], &shown["by"]["name"]), (&"verified".into(), &"cosign.pub".into()));
        let refused = addon(admitted, &ImageConfig::default(), b"name: [\n").unwrap_err();
        assert_eq!(refused.code, Code::AddonManifest);
        let event = decision(&source, Err(&refused));
        assert_eq!(event.data["code"], "E_ADDON_MANIFEST");
    }

    #[test]
    fn profiles_and_the_demand_of_a_source() {
        let key = PrivateKey::generate().unwrap();
        let mut source = spec("ghcr.io/o/x");
        let permissive = policy(Profile::Permissive, &key);
        let admitted = image(&permissive, &source, &[], 0).unwrap();
        assert!(matches!(admitted.verification(), Verification::Unsigned { .. }));
        assert_eq!(decision(&source, Ok(&admitted)).data["code"], "image.signature.permissive");
        let disabled = policy(Profile::Disabled, &key);
        assert_eq!(*image(&disabled, &source, &[], 0).unwrap().verification(), Verification::NotChecked);
        source.verify_signatures = true;
        for policy in [&permissive, &disabled] {
            assert_eq!(image(policy, &source, &[], 0).unwrap_err().denied.code, Code::SourceSignatureInvalid);
        }
    }

    #[test]
    fn a_stricter_profile_is_not_granted_in_name_only() {
        let key = PrivateKey::generate().unwrap();
        let source = spec("ghcr.io/o/x");
        let codes = |policy: &Policy, evidence: &[Evidence]| -> Vec<(Profile, Code)> {
            let admitted = image(policy, &source, evidence, 0).unwrap();
            refused_under(policy, &source, &admitted).into_iter().map(|(p, d)| (p, d.code)).collect()
        };
        let signed = [material(&key, &source.image.digest)];
        let unsigned = [(Profile::Secure, Code::ImageSignatureRequired)];
        assert_eq!(codes(&policy(Profile::Permissive, &key), &[]), unsigned);
        assert_eq!(codes(&policy(Profile::Permissive, &key), &signed), []);
        assert_eq!(codes(&policy(Profile::Disabled, &key), &signed), unsigned);
        let mut anywhere = policy(Profile::Permissive, &key);
        anywhere.allowed_registries = AllowedRegistries::default();
        assert_eq!(codes(&anywhere, &signed), [(Profile::Secure, Code::ImageRegistryNotAllowed)]);
        anywhere.verify_signatures = Some(VerifyMode::Permissive);
        anywhere.allowed_registries = AllowedRegistries::parse(Some(&["*".to_owned()])).unwrap();
        assert_eq!(codes(&anywhere, &[]), [], "what policy says of signatures holds under every profile");
    }

    #[test]
    fn a_sources_own_keys_stand_instead() {
        let (host, own) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let policy = policy(Profile::Secure, &host);
        let mut source = spec("ghcr.io/o/x");
        source.trust = Some(trusting(&[("own.pub", &own)]));
        let digest = source.image.digest;
        assert!(image(&policy, &source, &[material(&host, &digest)], 0).is_err());
        assert!(image(&policy, &source, &[material(&own, &digest)], 0).is_ok());
        source.trust = Some(Trust { require_log: true, ..Trust::default() });
        let refused = image(&policy, &source, &[material(&host, &digest)], 0).unwrap_err();
        assert!(refused.denied.message.contains("log"), "{refused}");
    }
}

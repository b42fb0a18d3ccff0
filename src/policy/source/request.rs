//! A source that is asked for at run time: the body of `POST /sources`, and what is kept of it.
//!
//! In: a JSON object of somebody who may add sources. Out: [`Wanted`], or the first refusal in the order that clients
//! rely on: body, type, name, ref, trusted, pull policy, expose, profile. What needs the policy comes after
//! ([`Wanted::spec`]). Such a source may tighten what policy says and never loosen it: it names signers only that
//! policy trusts, and no plain http.

use serde::{Deserialize, Serialize};

use super::spec::{Expose, PullPolicy, SourceSpec};
use crate::policy::code::{Code, Denied};
use crate::policy::digest::Digest;
use crate::policy::mount_path;
use crate::policy::reference::{ImageRef, Location, PinnedRef};
use crate::policy::rules::{Policy, Profile};
use crate::policy::trust::keys::PublicKey;
use crate::policy::trust::sigstore::identity::Identity;
use crate::policy::trust::{Trust, TrustedKey};

use super::parse::good_name;

/// Most keys, and most identities, of one request.
const MAX_SIGNERS: usize = 32;

/// The object as sent. Keys that are not known are refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRequest {
    /// `oci`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// The source's name; without one the last element of the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The image, by tag or digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#ref: Option<String>,
    /// The same under another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The same under another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Where it is shown; without one its name.
    #[serde(rename = "mountPath", alias = "mount_path", skip_serializing_if = "Option::is_none")]
    pub mount_path: Option<String>,
    /// Consent; without it nothing is added.
    #[serde(default)]
    pub trusted: bool,
    /// When layers are fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<String>,
    /// Whether other jobs may mount it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expose: Option<String>,
    /// Demand a valid signature whatever the profile says.
    #[serde(default)]
    pub verify_signatures: bool,
    /// The profile under which it is judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Keep all of its content.
    #[serde(default)]
    pub pin: bool,
    /// Whose signatures count, of those whom policy trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<SignersRequest>,
}

/// The signers that a request names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignersRequest {
    /// Names of keys of the policy, or keys in PEM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Identities, as the policy has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<IdentityRequest>,
}

/// An identity, letter for letter as the policy has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityRequest {
    /// Expression for the issuer.
    pub issuer: String,
    /// Expression for the subject.
    pub subject: String,
}

/// A refusal of a request: a short title that never changes, the words, and a code where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of mistake it is.
    pub title: &'static str,
    /// Under which code it is known.
    pub code: Option<Code>,
    /// What is wrong and what to do.
    pub detail: String,
}

/// A request that makes sense by itself.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The source's name.
    pub name: String,
    /// The reference as it was sent.
    pub asked: String,
    /// The reference, understood; perhaps without a digest.
    pub image: ImageRef,
    /// When layers are fetched.
    pub pull_policy: PullPolicy,
    /// The profile it asks for.
    pub profile: Option<Profile>,
    mount_path: String,
    expose: Expose,
    verify_signatures: bool,
    pin: bool,
    trust: Option<SignersRequest>,
}

fn refuse(title: &'static str, code: Option<Code>, detail: impl Into<String>) -> Refusal {
    Refusal { title, code, detail: detail.into() }
}

impl SourceRequest {
    /// Reads a body.
    pub fn parse(body: &[u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(body).map_err(|error| refuse("invalid request body", None, error.to_string()))
    }

    /// Judges it as far as that needs no policy.
    pub fn check(&self) -> Result<Wanted, Refusal> {
        match self.r#type.as_deref() {
            Some("oci") => {}
            Some(other) => {
                let detail = format!("{other:?} is no type of source that is shown here: write oci");
                return Err(refuse("unsupported source type", None, detail));
            }
            None => return Err(refuse("unsupported source type", None, "there is no type: write oci")),
        }
        let reference = self.reference();
        let name = match (&self.name, &reference) {
            (Some(name), _) => name.clone(),
            (None, Ok((_, image))) => image.location.last_element().to_ascii_lowercase(),
            (None, Err(refused)) => return Err(refused.clone()),
        };
        if !good_name(&name) {
            let detail = format!("{name:?}: letters, digits, '.', '_' and '-', a letter or digit first");
            return Err(refuse("invalid name", None, detail));
        }
        let (asked, image) = reference?;
        if !self.trusted {
            let detail = format!("{asked} is shown, and its jobs can be run, only with trusted: true");
            return Err(refuse("source trust required", Some(Code::SourceTrustRequired), detail));
        }
        let pull_policy = self.pull_policy.as_deref().unwrap_or_default();
        let pull_policy = PullPolicy::from_name(pull_policy).ok_or_else(|| {
            let detail = format!("{pull_policy:?}: expected on-add, on-run, on-startup or never");
            refuse("invalid pull policy", None, detail)
        })?;
        let expose = self.expose.as_deref().map_or(Some(Expose::default()), Expose::from_name);
        let expose =
            expose.ok_or_else(|| refuse("invalid expose", None, "expected none, read or readwrite"))?;
        let profile = self.profile.as_deref().map(str::parse).transpose();
        let profile =
            profile.map_err(|denied: Denied| refuse("invalid profile", Some(denied.code), denied.message))?;
        let mount_path = mount_path::clean(self.mount_path.as_deref().unwrap_or(&name))
            .map_err(|denied| refuse("invalid mountPath", None, denied.message))?;
        let trust = self.trust.clone();
        if trust.as_ref().is_some_and(|t| t.keys.len() > MAX_SIGNERS || t.identities.len() > MAX_SIGNERS) {
            return Err(refuse("invalid trust", None, format!("at most {MAX_SIGNERS} keys and identities")));
        }
        let (verify_signatures, pin) = (self.verify_signatures, self.pin);
        Ok(Wanted {
            name,
            asked,
            image,
            pull_policy,
            profile,
            mount_path,
            expose,
            verify_signatures,
            pin,
            trust,
        })
    }

    /// The one image that `ref`, `image` and `url` name.
    fn reference(&self) -> Result<(String, ImageRef), Refusal> {
        let mut found: Option<(String, ImageRef)> = None;
        for written in [&self.r#ref, &self.image, &self.url].into_iter().flatten() {
            if written.contains("://") {
                let detail = format!("{written:?}: write host/repository:tag, without a scheme");
                return Err(refuse("invalid ref", None, detail));
            }
            let image: ImageRef =
                written.parse().map_err(|denied: Denied| refuse("invalid ref", None, denied.message))?;
            if matches!(&image.location, Location::Layout { path } if !path.is_absolute()) {
                return Err(refuse("invalid ref", None, "the path of an image layout must be absolute"));
            }
            match &found {
                Some((_, other)) if *other != image => {
                    let detail = "ref, image and url are one field, and name different images";
                    return Err(refuse("invalid ref", None, detail));
                }
                Some(_) => {}
                None => found = Some((written.clone(), image)),
            }
        }
        found.ok_or_else(|| refuse("source ref required", None, "there is no ref: write host/repository:tag"))
    }
}

impl Wanted {
    /// What holds for it under `policy`: a looser profile needs policy's consent.
    pub fn policy(&self, policy: &Policy) -> Result<Policy, Denied> {
        let Some(wanted) = self.profile else { return Ok(policy.clone()) };
        let granted = policy.profile.asked(wanted, &policy.overrides.profile, "the request")?;
        Ok(policy.under(granted.profile))
    }

    /// The source, at this digest. Refused where it asks for more than `policy` gives.
    pub fn spec(&self, digest: Digest, policy: &Policy) -> Result<SourceSpec, Denied> {
        self.policy(policy)?;
        let image = PinnedRef { location: self.image.location.clone(), tag: self.image.tag.clone(), digest };
        Ok(SourceSpec {
            mount_path: self.mount_path.clone(),
            pull_policy: self.pull_policy,
            expose: self.expose,
            verify_signatures: self.verify_signatures,
            trust: self.trust.as_ref().map(|signers| signers.among(&policy.trust)).transpose()?,
            pin: self.pin,
            profile: self.profile,
            ..SourceSpec::of_image(&self.name, image)
        })
    }
}

impl SignersRequest {
    /// These signers, of those whom `policy` trusts.
    fn among(&self, policy: &Trust) -> Result<Trust, Denied> {
        let stranger = |what: &str| {
            let words = format!(
                "a source that is added at run time may name only signers whom policy.trust has, and {what} is not \
                 among them"
            );
            Denied::new(Code::PolicyDenied, words)
        };
        let key = |written: &String| -> Result<TrustedKey, Denied> {
            let pem = PublicKey::from_pem(written.as_bytes()).ok().map(|key| key.to_pem());
            let same =
                |known: &&TrustedKey| known.name == *written || pem.as_deref() == Some(&known.key.to_pem());
            let what = if pem.is_some() { "a key in PEM" } else { written.as_str() };
            policy.keys.iter().find(same).cloned().ok_or_else(|| stranger(what))
        };
        let identity = |wanted: &IdentityRequest| -> Result<Identity, Denied> {
            let same = |known: &&Identity| known.is(&wanted.issuer, &wanted.subject);
            policy.identities.iter().find(same).cloned().ok_or_else(|| stranger(&wanted.subject))
        };
        if self.keys.is_empty() && self.identities.is_empty() {
            return Err(Denied::new(
                Code::PolicyDenied,
                "trust names nobody: leave it out, or name keys or identities",
            ));
        }
        Ok(Trust {
            keys: self.keys.iter().map(key).collect::<Result<_, _>>()?,
            identities: self.identities.iter().map(identity).collect::<Result<_, _>>()?,
            ..Trust::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::trust::keys::PrivateKey;

    fn refused(body: &str) -> (&'static str, Option<&'static str>) {
        let refusal = SourceRequest::parse(body.as_bytes()).and_then(|r| r.check().map(|_| r)).unwrap_err();
        (refusal.title, refusal.code.map(Code::as_str))
    }

    /// 1A-14: of several mistakes the first in this order is told of.
    #[test]
    fn the_order_of_the_checks() {
        let mut body = serde_json::json!({"nam": 1, "type": "git", "name": "a/b", "ref": "https://x", "pull_policy": "now",
            "expose": "all", "profile": "strict", "mountPath": "/abs"});
        let steps = [
            ("nam", None, "invalid request body", None),
            ("type", Some("oci"), "unsupported source type", None),
            ("name", Some("good"), "invalid name", None),
            ("ref", Some("ghcr.io/o/x:1"), "invalid ref", None),
            ("trusted", Some("true"), "source trust required", Some("source.trust.required")),
            ("pull_policy", Some("on-add"), "invalid pull policy", None),
            ("expose", Some("read"), "invalid expose", None),
            ("profile", Some("secure"), "invalid profile", Some("E_POLICY")),
            ("mountPath", Some("a/b"), "invalid mountPath", None),
        ];
        for (key, good, title, code) in steps {
            assert_eq!(refused(&body.to_string()), (title, code), "{key}");
            let object = body.as_object_mut().unwrap();
            match good {
                Some("true") => object.insert(key.to_owned(), true.into()),
                Some(good) => object.insert(key.to_owned(), good.into()),
                None => object.remove(key),
            };
        }
        let wanted = SourceRequest::parse(body.to_string().as_bytes()).unwrap().check().unwrap();
        assert_eq!((wanted.name.as_str(), wanted.mount_path.as_str()), ("good", "a/b"));
    }

    #[test]
    fn one_image_under_three_names() {
        let of = |rest: &str| {
            SourceRequest::parse(format!("{{\"type\":\"oci\",\"trusted\":true,{rest}}}").as_bytes())
        };
        for key in ["ref", "image", "url"] {
            let wanted = of(&format!("\"{key}\":\"ghcr.io/o/Tool:1\"")).and_then(|r| r.check());
            // The reference is judged by its own rules; a name that is derived is in lower case.
            assert_eq!(wanted.map_or_else(|r| r.title.to_owned(), |w| w.name), "invalid ref");
            let wanted = of(&format!("\"{key}\":\"ghcr.io/o/tool:1\"")).unwrap().check().unwrap();
            assert_eq!((wanted.name.as_str(), wanted.asked.as_str()), ("tool", "ghcr.io/o/tool:1"));
        }
        assert!(of("\"ref\":\"ghcr.io/o/a:1\",\"image\":\"ghcr.io/o/a:1\"").unwrap().check().is_ok());
        let different = of("\"ref\":\"ghcr.io/o/a:1\",\"image\":\"ghcr.io/o/b:1\"").unwrap().check();
        assert_eq!(different.unwrap_err().title, "invalid ref");
        assert_eq!(of("\"pin\":false").unwrap().check().unwrap_err().title, "source ref required");
        for bad in ["oci://ghcr.io/o/a:1", "https://ghcr.io/o/a:1", "oci:relative:v1"] {
            assert_eq!(of(&format!("\"ref\":\"{bad}\"")).unwrap().check().unwrap_err().title, "invalid ref");
        }
        assert_eq!(of("\"ref\":\"a/b\"}{").unwrap_err().title, "invalid request body");
    }

    /// A request tightens and never loosens.
    #[test]
    fn only_what_policy_has() {
        let key = |name: &str| TrustedKey {
            name: name.to_owned(),
            key: PrivateKey::generate().unwrap().public().unwrap(),
        };
        let (ours, other) = (key("ours.pub"), key("other.pub"));
        let policy = Policy {
            trust: Trust { keys: vec![ours.clone(), key("third.pub")], ..Trust::default() },
            ..Policy::default()
        };
        let spec = |trust: serde_json::Value, profile: &str| {
            let body = serde_json::json!({"type": "oci", "ref": "ghcr.io/o/x:1", "trusted": true, "trust": trust,
                "profile": profile});
            let wanted = SourceRequest::parse(body.to_string().as_bytes()).unwrap().check().unwrap();
            wanted.spec(Digest::of(b"x"), &policy)
        };
        for named in ["ours.pub".to_owned(), ours.key.to_pem()] {
            let spec = spec(serde_json::json!({"keys": [named]}), "secure").unwrap();
            let names: Vec<String> = spec.trust.unwrap().keys.into_iter().map(|key| key.name).collect();
            assert_eq!(names, ["ours.pub"]);
        }
        for stranger in [
            serde_json::json!({"keys": [other.key.to_pem()]}),
            serde_json::json!({"keys": ["other.pub"]}),
            serde_json::json!({"identities": [{"issuer": "^a$", "subject": "^b$"}]}),
            serde_json::json!({}),
        ] {
            assert_eq!(spec(stranger, "secure").unwrap_err().code, Code::PolicyDenied);
        }
        let looser = spec(serde_json::json!({"keys": ["ours.pub"]}), "permissive");
        assert_eq!(looser.unwrap_err().code, Code::PolicyDenied);
    }
}

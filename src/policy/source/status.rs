//! How far a source is: a pure state machine with conditions that any kstatus reader understands.
//!
//! In: transitions with their time. Out: [`SourceStatus::to_json`], which is API (docs list the fields).
//!
//! ```text
//! pending -> resolving -> verifying -> fetching -> indexing -> ready
//!                              |           `-> waiting (pull_policy on-run or never) -> fetching
//!                              `-> refused                 any -> failed (retried at a time) -> resolving
//! ```
//!
//! A refusal is final until the configuration changes or somebody asks again; a failure is tried again by itself.
//! The tree shows the add-on (`shown`) as soon as its manifest is admitted, before `rootfs` is ready.

use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::spec::SourceSpec;
use crate::policy::admit::Verification;
use crate::policy::code::Denied;
use crate::policy::digest::Digest;
use crate::policy::trust::verdict::{Cause, Refusal, in_words};

/// Where a source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Nothing happened yet.
    Pending,
    /// The manifest of the pinned digest is asked for.
    Resolving,
    /// The signature is looked for and checked.
    Verifying,
    /// Layers arrive.
    Fetching {
        /// Bytes fetched.
        done: u64,
        /// Bytes in all; 0 while unknown.
        total: u64,
    },
    /// Layers are here and the tree is built.
    Indexing,
    /// The manifest is admitted; layers come at the first run, or never by themselves.
    Waiting,
    /// `rootfs` is there.
    Ready,
    /// Policy or the image's content forbids it.
    Refused(Denied),
    /// Something did not work.
    Failed {
        /// Why.
        message: String,
        /// When it is tried again, milliseconds since 1970.
        retry_at_ms: u64,
    },
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Transition {
    /// The driver starts (again).
    Resolve,
    /// The manifest is here.
    Resolved {
        /// Digest of the platform's manifest (the pinned one, unless that names an index).
        manifest: Digest,
    },
    /// The signature is judged.
    Admitted(Verification),
    /// No signature counted, and policy demands one. The refusal follows.
    Unverified(Vec<Refusal>),
    /// The add-on's manifest is valid: the tree shows the add-on and its jobs.
    Shown {
        /// The add-on's `name`.
        addon: String,
        /// Its `version`.
        version: String,
        /// The ids of its jobs, as paths below the mount point.
        jobs: Vec<String>,
    },
    /// The tree does not show the add-on any more.
    Hidden,
    /// Layers wait for the first run.
    Wait,
    /// Bytes arrived.
    Fetch {
        /// Bytes fetched.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// All bytes are here.
    Index,
    /// `rootfs` is there.
    Ready,
    /// It is forbidden.
    Refuse(Denied),
    /// It did not work and is tried again.
    Fail {
        /// Why.
        message: String,
        /// When it is tried again, milliseconds since 1970.
        retry_at_ms: u64,
    },
}

/// One condition, in the shape of Kubernetes'.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `Ready`, `Reconciling`, `Stalled`, `SourceVerified`, `ArtifactInStorage`, `FetchFailed`.
    pub r#type: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// One word.
    pub reason: String,
    /// Words.
    pub message: String,
    /// When `status` last changed, RFC 3339.
    pub last_transition_time: String,
    /// The generation it speaks of.
    pub observed_generation: u64,
}

/// The newest refusal of a read of the source's image.
#[derive(Debug, Clone)]
struct ReadError {
    message: String,
    at_ms: u64,
    told_ms: u64,
}

/// Refused reads are told as events this often at most: there may be thousands of readers.
const TELL_READS_MS: u64 = 60_000;

/// The status of one source.
#[derive(Debug, Clone)]
pub struct SourceStatus {
    name: String,
    image: String,
    /// Repository and digest, without a tag.
    pinned: String,
    digest: Digest,
    mount_path: String,
    generation: u64,
    phase: Phase,
    since_ms: u64,
    failures: u32,
    manifest: Option<Digest>,
    verification: Option<Verification>,
    /// Why no signature counted, where one was demanded.
    refusals: Vec<Refusal>,
    shown: Option<(String, String, Vec<String>)>,
    read_error: Option<ReadError>,
    conditions: Vec<Condition>,
}

/// First and longest wait between tries, milliseconds: soon enough for a registry that restarts, rare enough for
/// one that is down for a night.
const BACKOFF_MS: (u64, u64) = (2_000, 300_000);

impl SourceStatus {
    /// The status of a source that nothing happened to yet.
    pub fn new(spec: &SourceSpec, generation: u64, now_ms: u64) -> Self {
        let mut status = Self {
            name: spec.name.clone(),
            image: spec.image.to_string(),
            pinned: format!("{}@{}", spec.image.location, spec.image.digest),
            digest: spec.image.digest,
            mount_path: spec.mount_path.clone(),
            generation,
            phase: Phase::Pending,
            since_ms: now_ms,
            failures: 0,
            manifest: None,
            verification: None,
            refusals: Vec::new(),
            shown: None,
            read_error: None,
            conditions: Vec::new(),
        };
        status.update_conditions(now_ms);
        status
    }

    /// The configuration says something else of it: another generation. What is shown is still shown.
    pub fn respecify(&mut self, spec: &SourceSpec, now_ms: u64) {
        let fresh = Self::new(spec, self.generation + 1, now_ms);
        let shown = self.shown.take();
        *self = Self { shown, conditions: std::mem::take(&mut self.conditions), ..fresh };
        self.update_conditions(now_ms);
    }

    /// What is known of its signature.
    pub fn verification(&self) -> Option<&Verification> {
        self.verification.as_ref()
    }

    /// Where it is.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Whether nothing more happens to it soon: it is ready, waits for a run, is refused, or failed at least once.
    pub fn settled(&self) -> bool {
        matches!(self.phase, Phase::Ready | Phase::Waiting | Phase::Refused(_) | Phase::Failed { .. })
    }

    /// How long to wait before the next try, milliseconds: doubling, and at least what the registry asked for.
    /// `jitter` from 0 to 1 takes away up to a quarter, so that sources do not come back all at once.
    pub fn backoff_ms(&self, jitter: f64, retry_after_ms: Option<u64>) -> u64 {
        let doubled = BACKOFF_MS.0.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MS.1);
        // At most 300 000: exact in f64.
        let wait = doubled - (doubled as f64 / 4.0 * jitter.clamp(0.0, 1.0)) as u64;
        wait.max(retry_after_ms.unwrap_or(0).min(BACKOFF_MS.1))
    }

    /// A read was refused: the words behind its errno. Whether that is to be told as an event.
    pub fn read_refused(&mut self, message: &str, now_ms: u64) -> bool {
        let before = self.read_error.as_ref().map(|error| error.told_ms);
        let tell = before.is_none_or(|told_ms| now_ms.saturating_sub(told_ms) >= TELL_READS_MS);
        let told_ms = before.filter(|_| !tell).unwrap_or(now_ms);
        self.read_error = Some(ReadError { message: message.to_owned(), at_ms: now_ms, told_ms });
        tell
    }

    /// Applies what happened. `false` if it changes nothing: a late word of a try that was given up must not
    /// bring back a source that is refused, nor take back one that is ready.
    pub fn apply(&mut self, transition: Transition, now_ms: u64) -> bool {
        let before = (self.phase.clone(), self.manifest, self.verification.clone(), self.shown.clone());
        let over = matches!(self.phase, Phase::Refused(_));
        match transition {
            Transition::Resolve => {
                self.verification = None;
                self.refusals.clear();
                self.phase = Phase::Resolving;
            }
            Transition::Hidden => self.shown = None,
            _ if over => {}
            Transition::Resolved { manifest } => {
                self.manifest = Some(manifest);
                self.phase = Phase::Verifying;
            }
            Transition::Admitted(verification) => self.verification = Some(verification),
            Transition::Unverified(refusals) => self.refusals = refusals,
            Transition::Shown { addon, version, jobs } => self.shown = Some((addon, version, jobs)),
            Transition::Wait => self.phase = Phase::Waiting,
            Transition::Fetch { .. } | Transition::Index if self.phase == Phase::Ready => {}
            Transition::Fetch { done, total } => self.phase = Phase::Fetching { done, total },
            Transition::Index => self.phase = Phase::Indexing,
            Transition::Ready => {
                self.failures = 0;
                self.phase = Phase::Ready;
            }
            Transition::Refuse(denied) => {
                self.shown = None;
                self.phase = Phase::Refused(denied);
            }
            Transition::Fail { message, retry_at_ms } => {
                self.failures = self.failures.saturating_add(1);
                self.phase = Phase::Failed { message, retry_at_ms };
            }
        }
        if before == (self.phase.clone(), self.manifest, self.verification.clone(), self.shown.clone()) {
            return false;
        }
        if std::mem::discriminant(&before.0) != std::mem::discriminant(&self.phase) {
            self.since_ms = now_ms;
        }
        self.update_conditions(now_ms);
        true
    }

    /// The conditions.
    pub fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    /// `conditions`: one line a condition, `type status reason message`.
    pub fn conditions_text(&self) -> String {
        let line = |c: &Condition| {
            format!("{} {} {} {}\n", c.r#type, c.status, c.reason, c.message.replace('\n', " "))
        };
        self.conditions.iter().map(line).collect()
    }

    /// The word for the phase.
    pub fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::Pending => "pending",
            Phase::Resolving => "resolving",
            Phase::Verifying => "verifying",
            Phase::Fetching { .. } => "fetching",
            Phase::Indexing => "indexing",
            Phase::Waiting => "waiting",
            Phase::Ready => "ready",
            Phase::Refused(_) => "refused",
            Phase::Failed { .. } => "failed",
        }
    }

    /// The published code of a refusal.
    pub fn code(&self) -> Option<&'static str> {
        match &self.phase {
            Phase::Refused(denied) => Some(denied.code.as_str()),
            Phase::Failed { .. } => Some("E_OCI"),
            _ => None,
        }
    }

    /// Why it is refused or failed.
    pub fn message(&self) -> Option<&str> {
        match &self.phase {
            Phase::Refused(denied) => Some(&denied.message),
            Phase::Failed { message, .. } => Some(message),
            _ => None,
        }
    }

    /// The fields of `status.json`. Absent things are null, so that every field is always there.
    pub fn to_json(&self) -> Value {
        let progress = match self.phase {
            Phase::Fetching { done, total } => json!({"done": done, "total": total}),
            _ => Value::Null,
        };
        let retry_at = match self.phase {
            Phase::Failed { retry_at_ms, .. } => json!(rfc3339(retry_at_ms)),
            _ => Value::Null,
        };
        let addon = self
            .shown
            .as_ref()
            .map(|(name, version, jobs)| json!({"name": name, "version": version, "jobs": jobs}));
        let read_error = self
            .read_error
            .as_ref()
            .map(|error| json!({"message": error.message, "at": rfc3339(error.at_ms)}));
        json!({
            "name": self.name,
            "type": "oci",
            "image": self.image,
            "digest": self.digest,
            "manifest_digest": self.manifest,
            "mount_path": if self.mount_path.is_empty() { "." } else { &self.mount_path },
            "phase": self.phase_name(),
            "since": rfc3339(self.since_ms),
            "shown": self.shown.is_some(),
            "ready": self.phase == Phase::Ready,
            "code": self.code(),
            "message": self.message(),
            "retry_at": retry_at,
            "failures": self.failures,
            "progress": progress,
            "read_error": read_error,
            "addon": addon,
            "verification": self.verification_json(),
            "generation": self.generation,
            "observed_generation": self.observed_generation(),
            "conditions": self.conditions,
        })
    }

    fn verification_json(&self) -> Value {
        match &self.verification {
            None if !self.refusals.is_empty() => json!({"state": "refused", "refusals": self.refusals}),
            verification => json!(verification),
        }
    }

    /// Why no signature counted, in the words of Flux's source-controller.
    fn unverified(&self, refusals: &[Refusal]) -> String {
        let kinds = || refusals.iter().filter_map(|refusal| Some(refusal.evidence.as_ref()?.kind));
        let notation = kinds().next().is_some() && kinds().all(|kind| kind == "notation");
        let keyless = refusals.iter().any(|refusal| refusal.reason.code == Cause::Identity);
        let provider = match (notation, keyless) {
            (true, _) => "notation",
            (_, true) => "cosign keyless",
            _ => "cosign",
        };
        let why = match refusals {
            [only] if only.reason.code == Cause::NoSignature => {
                format!(" were found for '{}'", self.pinned)
            }
            _ if provider == "cosign keyless" => format!(
                ": none of the expected identities matched what was in the certificate: {}",
                in_words(refusals)
            ),
            _ => format!(": {}", in_words(refusals)),
        };
        format!("failed to verify the signature using provider '{provider}': no matching signatures{why}")
    }

    /// A failure that is tried again does not count as having dealt with the generation; a refusal does.
    fn observed_generation(&self) -> i64 {
        let done = matches!(self.phase, Phase::Ready | Phase::Waiting | Phase::Refused(_));
        if done { i64::try_from(self.generation).unwrap_or(i64::MAX) } else { -1 }
    }

    /// Conditions of negative polarity (Reconciling, Stalled, FetchFailed) exist only while they are true.
    fn update_conditions(&mut self, now_ms: u64) {
        let mut wanted: Vec<(&'static str, &'static str, String, String)> = Vec::new();
        let mut want = |kind, status, reason: &str, message: String| {
            wanted.push((kind, status, reason.to_owned(), message));
        };
        let busy = |what: &str| format!("{what} {}", self.image);
        match &self.phase {
            Phase::Ready => {
                want("Ready", "True", "Succeeded", format!("image {} is here and verified", self.digest))
            }
            Phase::Waiting => {
                want(
                    "Ready",
                    "True",
                    "Waiting",
                    "jobs are shown; layers are fetched at the first run".to_owned(),
                );
            }
            Phase::Refused(denied) => {
                want("Ready", "False", denied.code.as_str(), denied.message.clone());
                want("Stalled", "True", denied.code.as_str(), denied.message.clone());
            }
            Phase::Failed { message, .. } => {
                want("Ready", "False", "FetchFailed", message.clone());
                want("Reconciling", "True", "ProgressingWithRetry", busy("trying again:"));
                want("FetchFailed", "True", "FetchFailed", message.clone());
            }
            _ => {
                want("Ready", "Unknown", "Progressing", busy(self.phase_name()));
                want("Reconciling", "True", "Progressing", busy(self.phase_name()));
            }
        }
        match (&self.verification, &self.phase) {
            (Some(Verification::Verified(_)), _) => {
                let words = format!("verified signature of revision {}", self.digest);
                want("SourceVerified", "True", "Succeeded", words);
            }
            (Some(Verification::Unsigned { refusals }), _) => {
                want("SourceVerified", "False", "VerificationError", self.unverified(refusals));
            }
            (None, Phase::Refused(denied)) if is_about_signatures(denied) => {
                want("SourceVerified", "False", "VerificationError", self.unverified(&self.refusals));
            }
            _ => {}
        }
        if self.phase == Phase::Ready {
            want("ArtifactInStorage", "True", "Succeeded", format!("stored image {}", self.digest));
        }
        let observed_generation = self.generation;
        self.conditions = wanted
            .into_iter()
            .map(|(kind, status, reason, message)| {
                let same = self.conditions.iter().find(|c| c.r#type == kind && c.status == status);
                let since = same.map_or_else(|| rfc3339(now_ms), |c| c.last_transition_time.clone());
                Condition {
                    r#type: kind,
                    status,
                    reason,
                    message,
                    last_transition_time: since,
                    observed_generation,
                }
            })
            .collect();
    }
}

fn is_about_signatures(denied: &Denied) -> bool {
    use crate::policy::code::Code;
    matches!(denied.code, Code::ImageSignatureRequired | Code::SourceSignatureInvalid)
}

/// RFC 3339 in UTC to the second, as Kubernetes writes times.
fn rfc3339(ms: u64) -> String {
    i64::try_from(ms / 1000)
        .ok()
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
        .and_then(|t| t.format(&Rfc3339).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_reads_are_shown_each_and_told_once_a_minute() {
        let mut status = status();
        assert_eq!(status.to_json()["read_error"], Value::Null);
        let told: Vec<bool> =
            [0, 59_999, 60_000, 119_999].map(|ms| status.read_refused(&format!("at {ms}"), ms)).into();
        assert_eq!(told, [true, false, true, false]);
        assert_eq!(status.to_json()["read_error"], json!({"message": "at 119999", "at": rfc3339(119_999)}));
    }
    use crate::policy::code::Code;
    use crate::policy::reference::ImageRef;
    use crate::policy::source::spec::{Expose, PullPolicy};

    fn status() -> SourceStatus {
        SourceStatus::new(&spec(), 1, 0)
    }

    fn spec() -> SourceSpec {
        let image: ImageRef = format!("ghcr.io/o/x:v1@{}", Digest::of(b"i")).parse().unwrap();
        SourceSpec {
            name: "x".to_owned(),
            image: image.pinned().unwrap(),
            mount_path: String::new(),
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

    fn condition<'s>(status: &'s SourceStatus, kind: &str) -> Option<&'s Condition> {
        status.conditions().iter().find(|c| c.r#type == kind)
    }

    /// Cases CO-01, CO-07, CO-08 and CO-10, without what follows tags.
    #[test]
    fn from_pending_to_ready_with_a_failure_between() {
        let mut s = status();
        assert_eq!(condition(&s, "Ready").unwrap().status, "Unknown");
        assert_eq!(condition(&s, "Reconciling").unwrap().reason, "Progressing");
        assert!(s.apply(Transition::Resolve, 1000));
        assert!(s.apply(Transition::Fail { message: "no route".to_owned(), retry_at_ms: 9000 }, 2000));
        assert_eq!(condition(&s, "Reconciling").unwrap().reason, "ProgressingWithRetry");
        assert_eq!(condition(&s, "FetchFailed").unwrap().status, "True");
        let json = s.to_json();
        assert_eq!(json["observed_generation"], -1);
        assert_eq!((&json["phase"], &json["retry_at"]), (&json!("failed"), &json!("1970-01-01T00:00:09Z")));
        s.apply(Transition::Resolve, 9000);
        s.apply(Transition::Resolved { manifest: Digest::of(b"m") }, 9000);
        s.apply(Transition::Admitted(Verification::NotChecked), 9000);
        assert!(condition(&s, "FetchFailed").is_none());
        s.apply(
            Transition::Shown { addon: "a".into(), version: "1.0.0".into(), jobs: vec!["b".into()] },
            9000,
        );
        s.apply(Transition::Fetch { done: 1, total: 10 }, 10_000);
        assert!(s.apply(Transition::Fetch { done: 2, total: 10 }, 11_000));
        assert!(!s.apply(Transition::Fetch { done: 2, total: 10 }, 12_000));
        let json = s.to_json();
        assert_eq!(json["progress"], json!({"done": 2, "total": 10}));
        assert_eq!((&json["since"], &json["shown"]), (&json!("1970-01-01T00:00:10Z"), &json!(true)));
        s.apply(Transition::Index, 12_000);
        assert!(!s.settled());
        s.apply(Transition::Ready, 13_000);
        assert!(s.settled() && condition(&s, "Reconciling").is_none() && condition(&s, "Stalled").is_none());
        let json = s.to_json();
        assert_eq!(
            (&json["ready"], &json["observed_generation"], &json["mount_path"]),
            (&json!(true), &json!(1), &json!("."))
        );
        assert_eq!(condition(&s, "Ready").unwrap().last_transition_time, "1970-01-01T00:00:13Z");
        assert!(!s.apply(Transition::Fetch { done: 3, total: 10 }, 14_000), "a late word changes nothing");
    }

    #[test]
    fn a_refusal_stands_until_somebody_asks_again() {
        let mut s = status();
        s.apply(Transition::Resolve, 0);
        let denied = Denied::new(Code::ImageSignatureRequired, "sign it");
        assert!(s.apply(Transition::Refuse(denied), 0));
        assert_eq!(condition(&s, "Stalled").unwrap().reason, "image.signature.required");
        assert_eq!(condition(&s, "SourceVerified").unwrap().status, "False");
        assert!(
            condition(&s, "SourceVerified").unwrap().message.starts_with("failed to verify the signature")
        );
        assert!(!s.apply(Transition::Ready, 1) && !s.apply(Transition::Fetch { done: 0, total: 1 }, 1));
        assert_eq!(s.to_json()["code"], "image.signature.required");
        assert!(s.apply(Transition::Resolve, 2));
        assert!(condition(&s, "Stalled").is_none());
    }

    /// Case VF-04.
    #[test]
    fn words_about_identities() {
        use crate::policy::trust::verdict::Reason;
        let reason = Reason { code: Cause::Identity, words: "it is by me".to_owned() };
        let message = status().unverified(&[Refusal { evidence: None, reason }]);
        let expected = "failed to verify the signature using provider 'cosign keyless': no matching signatures: \
                        none of the expected identities matched what was in the certificate: it is by me";
        assert_eq!(message, expected);
    }

    /// Cases VF-01, VF-02 and 1C-41: the words of the condition are Flux's.
    #[test]
    fn words_about_signatures() {
        use crate::policy::admit;
        use crate::policy::rules::{AllowedRegistries, Policy};
        use crate::policy::trust::keys::PrivateKey;
        use crate::policy::trust::signature::tests::{material, trusting};

        let (key, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let allowed_registries = AllowedRegistries::parse(Some(&["*".to_owned()])).unwrap();
        let policy = Policy { allowed_registries, trust: trusting(&[("k.pub", &key)]), ..Policy::default() };
        let digest = Digest::of(b"i");
        let shown = |evidence: &[crate::policy::trust::evidence::Evidence]| {
            let mut s = status();
            s.apply(Transition::Resolve, 0);
            match admit::image(&policy, &spec(), evidence, 0) {
                Ok(admitted) => s.apply(Transition::Admitted(admitted.verification().clone()), 0),
                Err(refused) => {
                    s.apply(Transition::Unverified(refused.refusals), 0);
                    s.apply(Transition::Refuse(refused.denied), 0)
                }
            };
            let found = condition(&s, "SourceVerified").unwrap();
            (
                found.status,
                found.reason.clone(),
                found.message.clone(),
                s.to_json()["verification"]["state"].clone(),
            )
        };
        let expected = format!("verified signature of revision {digest}");
        assert_eq!(
            shown(&[material(&key, &digest)]),
            ("True", "Succeeded".into(), expected, "verified".into())
        );
        let expected = format!(
            "failed to verify the signature using provider 'cosign': no matching signatures were found for \
             'ghcr.io/o/x@{digest}'"
        );
        assert_eq!(shown(&[]), ("False", "VerificationError".into(), expected, "refused".into()));
        let (status, _, message, _) = shown(&[material(&other, &digest)]);
        let start =
            "failed to verify the signature using provider 'cosign': no matching signatures: signature 1";
        assert!(status == "False" && message.starts_with(start), "{message}");
    }

    #[test]
    fn backoff_doubles_to_a_bound() {
        let mut s = status();
        assert_eq!(s.backoff_ms(0.0, None), 2_000);
        for _ in 0..40 {
            s.apply(Transition::Fail { message: String::new(), retry_at_ms: 0 }, 0);
        }
        assert_eq!(s.backoff_ms(0.0, None), 300_000);
        assert_eq!(s.backoff_ms(1.0, None), 225_000);
        assert_eq!(s.backoff_ms(1.0, Some(250_000)), 250_000);
    }
}

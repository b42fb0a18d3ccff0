//! The judgement itself: which checks are made, in which order, and what a failure of each means.

use time::OffsetDateTime;

use super::certificate::{Certificate, shown};
use super::envelope::Envelope;
use super::policy::{Action, Identities, Statement, VerifyTimestamp};
use super::signer::{Check, Failure, Scheme, SignedManifest, Signer};
use super::store::StoreKind;
use super::{NotationTrust, Target, timestamp};

/// Judges one envelope. The signer, with what the policy's level only tells of; or all failures that count.
pub fn verify(
    trust: &NotationTrust,
    target: &Target<'_>,
    media_type: &str,
    envelope: &[u8],
    now: OffsetDateTime,
) -> Result<Signer, Vec<Failure>> {
    let statement = trust.statement(target.location).map_err(|failure| vec![failure])?;
    if statement.level.skips() {
        let reason = format!("statement {:?} skips verification, so no signature counts", statement.name);
        return Err(vec![Failure { check: Check::TrustPolicy, reason }]);
    }
    let opened = Envelope::open(media_type, envelope)
        .and_then(|envelope| envelope.signed_manifest(target.digest).map(|manifest| (envelope, manifest)));
    let (envelope, manifest) = opened.map_err(|reason| vec![Failure { check: Check::Integrity, reason }])?;
    Judgement {
        trust,
        statement,
        envelope: &envelope,
        manifest,
        now,
        failures: Vec::new(),
        findings: Vec::new(),
        until: None,
    }
    .make()
}

/// A judgement in the making: all checks are made, so that all reasons are told.
struct Judgement<'a> {
    trust: &'a NotationTrust,
    statement: &'a Statement,
    envelope: &'a Envelope,
    manifest: SignedManifest,
    now: OffsetDateTime,
    failures: Vec<Failure>,
    findings: Vec<Failure>,
    until: Option<OffsetDateTime>,
}

impl Judgement<'_> {
    fn make(mut self) -> Result<Signer, Vec<Failure>> {
        let envelope = self.envelope;
        let skips_revocation = self.statement.level.action(Check::Revocation) == Action::Skip;
        let authentic = self.authenticity();
        self.note(Check::Authenticity, authentic);
        let expiry = self.expiry();
        self.note(Check::Expiry, expiry);
        let stamped = match self.authentic_timestamp(skips_revocation) {
            Ok(stamped) => stamped,
            Err(reason) => {
                self.note(Check::AuthenticTimestamp, Err(reason));
                None
            }
        };
        if !skips_revocation {
            let status = self.trust.lists.check(&envelope.chain, stamped, self.now);
            let status = status.map(|until| self.ends(Check::Revocation, until));
            self.note(Check::Revocation, status);
        }
        if !self.failures.is_empty() {
            // What is only told stands behind what counts.
            self.failures.append(&mut self.findings);
            return Err(self.failures);
        }
        let leaf = envelope.chain.first().map(|leaf| (leaf.name.to_string(), leaf.thumbprint()));
        let (subject, thumbprint) = leaf.ok_or_else(Vec::new)?;
        Ok(Signer {
            statement: self.statement.name.clone(),
            level: self.statement.level.name(),
            subject,
            thumbprint,
            scheme: envelope.scheme,
            manifest: self.manifest,
            signed: envelope.signing_time,
            proven: match envelope.scheme {
                Scheme::X509 => stamped,
                Scheme::SigningAuthority => Some(envelope.signing_time),
            },
            until: self.until,
            findings: self.findings,
            skipped: if skips_revocation { vec![Check::Revocation] } else { Vec::new() },
        })
    }

    fn note(&mut self, check: Check, outcome: Result<(), String>) {
        let Err(reason) = outcome else { return };
        let failure = Failure { check, reason };
        match self.statement.level.action(check) {
            Action::Enforce => self.failures.push(failure),
            Action::Log | Action::Skip => self.findings.push(failure),
        }
    }

    /// The judgement holds no longer than this, if the check counts.
    fn ends(&mut self, check: Check, at: Option<OffsetDateTime>) {
        if self.statement.level.action(check) == Action::Enforce {
            self.until = self.until.into_iter().chain(at).min();
        }
    }

    fn authenticity(&self) -> Result<(), String> {
        let (chain, statement) = (&self.envelope.chain, self.statement);
        let kind = match self.envelope.scheme {
            Scheme::X509 => StoreKind::Ca,
            Scheme::SigningAuthority => StoreKind::SigningAuthority,
        };
        let trusted = self.trust.store.certificates(&statement.stores, kind)?;
        let known = |certificate: &Certificate| trusted.iter().any(|known| known.der() == certificate.der());
        let Some(leaf) = chain.first() else { return Err("the certificate chain is empty".to_owned()) };
        if !chain.iter().any(known) {
            return Err(format!(
                "no certificate of the chain of {leaf} is in the {} trust stores of statement {:?}",
                kind.name(),
                statement.name
            ));
        }
        match &statement.identities {
            Identities::Any => Ok(()),
            Identities::Of(identities) if identities.iter().any(|identity| identity.matches(&leaf.name)) => {
                Ok(())
            }
            Identities::Of(identities) => {
                let identities: Vec<String> = identities.iter().map(ToString::to_string).collect();
                Err(format!(
                    "the signing {leaf} does not match the X.509 trusted identities {} of statement {:?}",
                    identities.join(", "),
                    statement.name
                ))
            }
        }
    }

    fn expiry(&mut self) -> Result<(), String> {
        let Some(expiry) = self.envelope.expiry else { return Ok(()) };
        if self.now >= expiry {
            return Err(format!("the signature expired at {}", shown(expiry)));
        }
        self.ends(Check::Expiry, Some(expiry));
        Ok(())
    }

    /// That the chain was valid when it signed: now, if nobody else says when that was. Returns what a timestamp proves.
    fn authentic_timestamp(&mut self, skips_revocation: bool) -> Result<Option<OffsetDateTime>, String> {
        let (envelope, statement, now) = (self.envelope, self.statement, self.now);
        if envelope.scheme == Scheme::SigningAuthority {
            let time = envelope.signing_time;
            for certificate in &envelope.chain {
                certificate.check_valid(time, time, "when the signing authority signed")?;
            }
            // What the authority says of the time is signed with the key whose revocation may be in question.
            return Ok(None);
        }
        let expired = envelope.chain.iter().any(|certificate| now > certificate.not_after);
        let has_authority = statement.stores.iter().any(|(kind, _)| *kind == StoreKind::Tsa);
        let asks = match statement.timestamp {
            VerifyTimestamp::Always => has_authority,
            VerifyTimestamp::AfterCertExpiry => has_authority && expired,
        };
        if !asks {
            for certificate in &envelope.chain {
                certificate.check_valid(now, now, "now, and no timestamp is looked at")?;
            }
            if !has_authority {
                self.ends(Check::AuthenticTimestamp, envelope.chain.iter().map(|c| c.not_after).min());
            }
            return Ok(None);
        }
        let token = envelope.timestamp.as_deref().ok_or("the envelope has no timestamp")?;
        let roots = self.trust.store.certificates(&statement.stores, StoreKind::Tsa)?;
        let stamp = timestamp::verify(token, &envelope.signature, &roots)?;
        for certificate in &envelope.chain {
            certificate.check_valid(stamp.from, stamp.to, "at the time of the timestamp")?;
        }
        if !skips_revocation {
            let until = self.trust.lists.check(&stamp.chain, None, now)?;
            self.ends(Check::AuthenticTimestamp, until);
        }
        Ok(Some(stamp.to))
    }
}

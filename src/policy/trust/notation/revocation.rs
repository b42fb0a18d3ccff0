//! Revocation, by lists on disk ("Certificate Revocation Evaluation" in Notary's `trust-store-trust-policy.md`; RFC 5280,
//! section 5).
//!
//! Nobody is asked over the network, so OCSP answers nothing here. A certificate that says how its revocation is published,
//! by lists or by OCSP, needs a list of its issuer that is in force and covers it; without one its status is not known, which
//! fails the check. One that says nothing of the kind cannot be asked about and passes, unless a list names it all the same.

use std::sync::OnceLock;

use time::OffsetDateTime;

use super::MAX_CRL;
use super::certificate::{Certificate, shown};
use super::crl::{Entry, List};
use crate::policy::trust::pem;

/// A file with a revocation list, PEM or DER.
#[derive(Debug, Clone)]
pub struct CrlFile {
    /// Its name, for messages.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// The revocation lists at hand.
#[derive(Debug, Default)]
pub(super) struct RevocationLists {
    files: Vec<CrlFile>,
    /// What PEM files hold; nothing for those that are DER as they are.
    decoded: OnceLock<Vec<Result<Option<Vec<u8>>, String>>>,
}

/// What is known of a certificate.
#[derive(Debug, PartialEq, Eq)]
enum Status {
    Good { until: OffsetDateTime },
    Revoked(String),
    Unknown(String),
}

impl RevocationLists {
    pub(super) fn new(files: Vec<CrlFile>) -> Self {
        Self { files, decoded: OnceLock::new() }
    }

    /// Whether nobody in the chain is revoked; the root has nobody above that could. `signed` is when a timestamp proves the
    /// signature was there: what became invalid later does not touch it. Returns until when the lists say so, if one was
    /// needed.
    pub(super) fn check(
        &self,
        chain: &[Certificate],
        signed: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<Option<OffsetDateTime>, String> {
        let (mut until, mut unknown) = (None::<OffsetDateTime>, None);
        for pair in chain.windows(2) {
            let [certificate, issuer] = pair else { continue };
            match self.status(certificate, issuer, signed, now) {
                Status::Good { until: next } => until = Some(until.map_or(next, |until| until.min(next))),
                Status::Revoked(reason) => return Err(reason),
                Status::Unknown(reason) if certificate.has_crl || certificate.has_ocsp => {
                    unknown.get_or_insert(reason);
                }
                Status::Unknown(_) => {}
            }
        }
        unknown.map_or(Ok(until), Err)
    }

    fn status(
        &self,
        certificate: &Certificate,
        issuer: &Certificate,
        signed: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Status {
        let decoded =
            self.decoded.get_or_init(|| self.files.iter().map(|file| decode(&file.bytes)).collect());
        let (mut lists, mut why) = (Vec::new(), None);
        for (file, der) in self.files.iter().zip(decoded) {
            let der = der.as_ref().map_err(Clone::clone);
            let list = der.and_then(|der| List::parse(der.as_ref().unwrap_or(&file.bytes)));
            match list {
                Ok(list) if list.issuer != certificate.issuer => {}
                Ok(list) => match list.check_usable(certificate, issuer) {
                    Ok(()) => lists.push((file.name.as_str(), list)),
                    Err(reason) => why = Some(format!("revocation list {}: {reason}", file.name)),
                },
                // Whose it would be is not known, so it may be the one that is missed.
                Err(reason) => why = Some(format!("revocation list {}: {reason}", file.name)),
            }
        }
        match judge(&lists, certificate, signed, now) {
            Ok(status) => match (status, why) {
                (Status::Unknown(reason), Some(why)) => Status::Unknown(format!("{reason} ({why})")),
                (status, _) => status,
            },
            Err(reason) => Status::Unknown(reason),
        }
    }
}

/// What usable lists of its issuer say of a certificate: a full one and, where there are, those of changes to it.
fn judge(
    lists: &[(&str, List<'_>)],
    certificate: &Certificate,
    signed: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> Result<Status, String> {
    let entry = |list: &List<'_>| list.entry(&certificate.serial, signed);
    // A revocation for good holds whatever the age of the list.
    for (name, list) in lists {
        if let Some(Entry::Revoked { since }) = entry(list)? {
            let since = shown(since);
            return Ok(Status::Revoked(format!("{certificate} is revoked since {since} by the list {name}")));
        }
    }
    let (mut good, mut why) = (None::<OffsetDateTime>, None);
    for (name, full) in lists.iter().filter(|(_, list)| list.base.is_none()) {
        let changes = lists.iter().filter(|(_, list)| list.changes(full) && list.check_in_force(now).is_ok());
        let changes = changes.map(|(_, list)| list).max_by(|a, b| a.number.cmp(&b.number));
        if let Err(reason) = full.check_in_force(now) {
            why = Some(format!("the list {name} {reason}"));
            continue;
        }
        if full.partial {
            why = Some(format!("the list {name} is for some reasons of revocation only"));
            continue;
        }
        if changes.is_none() && (full.has_changes || certificate.has_delta_crl) {
            why = Some(format!("the list {name} has changes (a delta list), and they are not at hand"));
            continue;
        }
        let latest = changes.map(&entry).transpose()?.flatten();
        match latest.map_or_else(|| entry(full), |latest| Ok(Some(latest)))? {
            Some(Entry::Held { since }) => {
                let since = shown(since);
                return Ok(Status::Revoked(format!(
                    "{certificate} is on hold since {since} by the list {name}"
                )));
            }
            Some(Entry::Revoked { .. } | Entry::Removed) | None => {
                let until =
                    changes.and_then(|changes| changes.next_update).into_iter().chain(full.next_update).min();
                good = good.max(until);
            }
        }
    }
    Ok(match (good, why) {
        (Some(until), _) => Status::Good { until },
        (None, Some(why)) => Status::Unknown(format!("whether {certificate} is revoked is not known: {why}")),
        (None, None) => Status::Unknown(format!(
            "whether {certificate} is revoked is not known: there is no revocation list of its issuer"
        )),
    })
}

/// What a PEM file holds; nothing if it is DER.
fn decode(bytes: &[u8]) -> Result<Option<Vec<u8>>, String> {
    if bytes.len() > MAX_CRL {
        return Err(format!("it has {} bytes: at most {MAX_CRL} are read", bytes.len()));
    }
    if bytes.first() == Some(&0x30) {
        return Ok(None);
    }
    match pem::decode_any(bytes)? {
        (label, der) if label == "X509 CRL" => Ok(Some(der)),
        (label, _) => Err(format!("it holds a {label:?} block, expected X509 CRL")),
    }
}

//! Notary Project signatures, as notation makes them: whether one vouches for a manifest, offline.
//!
//! In: a trust policy document with its stores and revocation lists, and envelopes that somebody fetched. Out: a [`Signer`],
//! or every reason why not. The specifications are Notary's `signature-specification.md`, `signature-envelope-jws.md`,
//! `signature-envelope-cose.md`, `trust-store-trust-policy.md` and `signing-scheme.md`; where notation is stricter, this is.
//!
//! | step | where |
//! |---|---|
//! | which statement holds for the repository | [`policy`] |
//! | integrity: the envelope, its attributes, its chain, its payload | `envelope`, `jws`, `cose`, `chain` |
//! | authenticity: a certificate of the chain is in a trust store, the subject is a trusted identity | `store`, `identity` |
//! | authentic timestamp: the chain was valid when it signed | `timestamp`, `token` |
//! | expiry | `judge` |
//! | revocation, by lists on disk | `revocation`, `crl` |
//!
//! Verification plugins are not run: an envelope that asks for one is refused.

mod algorithm;
mod asn1;
mod ber;
mod certificate;
mod chain;
mod cose;
mod crl;
mod envelope;
pub(super) mod evidence;
mod identity;
mod json;
mod judge;
mod jws;
pub mod load;
pub mod policy;
mod revocation;
mod signer;
mod store;
mod timestamp;
mod token;

use crate::policy::digest::Digest;
use crate::policy::reference::Location;
use load::NotationPaths;
use policy::{Statement, TrustPolicy};
use revocation::RevocationLists;
use store::TrustStore;

pub use judge::verify;
pub use revocation::CrlFile;
pub use signer::{Check, Failure, Scheme, SignedManifest, Signer};
pub use store::{StoreFile, StoreKind};

/// `artifactType`, or the media type of the config, of manifests that hold a signature.
pub const ARTIFACT_TYPE: &str = "application/vnd.cncf.notary.signature";
/// Media type of a JWS envelope.
pub const MEDIA_TYPE_JWS: &str = "application/jose+json";
/// Media type of a COSE envelope.
pub const MEDIA_TYPE_COSE: &str = "application/cose";

/// Largest envelope in bytes: ten certificates and a timestamp fit, in base64, too.
pub const MAX_ENVELOPE: usize = 128 << 10;
/// Longest chain of certificates. Public authorities have three or four.
pub const MAX_CHAIN: usize = 10;
/// Largest timestamp in bytes; real ones have some 6 KiB.
pub const MAX_TIMESTAMP: usize = 64 << 10;
/// Largest trust policy document in bytes.
pub const MAX_POLICY: usize = 1 << 20;
/// Largest file of a trust store in bytes.
pub const MAX_STORE_FILE: usize = 4 << 20;
/// Largest revocation list in bytes: some 100,000 entries.
pub const MAX_CRL: usize = 4 << 20;

/// Whom the trust policy trusts. Making one is cheap: certificates and revocation lists are parsed when a signature is judged.
#[derive(Debug)]
pub struct NotationTrust {
    policy: TrustPolicy,
    store: TrustStore,
    lists: RevocationLists,
    paths: Option<NotationPaths>,
}

/// The manifest that a signature must be over.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Where it is: decides which statement of the policy holds.
    pub location: &'a Location,
    /// Its digest.
    pub digest: &'a Digest,
}

impl NotationTrust {
    /// Trust by a policy, with the files of the stores that it names and all revocation lists.
    pub fn new(policy: TrustPolicy, store: Vec<StoreFile>, lists: Vec<CrlFile>) -> Self {
        Self { policy, store: TrustStore::new(store), lists: RevocationLists::new(lists), paths: None }
    }

    /// The files that it was read from.
    pub fn paths(&self) -> Option<&NotationPaths> {
        self.paths.as_ref()
    }

    /// The statement for a repository. Where its level skips, no signature need be fetched, and none can vouch.
    pub fn statement(&self, location: &Location) -> Result<&Statement, Failure> {
        self.policy.statement(location).map_err(|reason| Failure { check: Check::TrustPolicy, reason })
    }
}

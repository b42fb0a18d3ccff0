//! Who is trusted to vouch for an image, and whether somebody did.
//!
//! In: whom the configuration names, evidence that somebody fetched. Out: who of them vouches for the pinned digest
//! ([`verdict::Verified`]), or why nobody does. Pure: what the network has is in the evidence, nothing is asked for.
//!
//! ```text
//! registry/repository:sha256-<hex of the pinned digest>.sig      an image manifest
//!   layers[i]   application/vnd.dev.cosign.simplesigning.v1+json   what is signed ([`simple_signing`])
//!   layers[i].annotations["dev.cosignproject.cosign/signature"]   base64 of the signature over that blob
//! a manifest that refers to the pinned digest
//!   layers[0]   application/vnd.dev.sigstore.bundle.v0.3+json     signature, certificate or key, proofs ([`sigstore`])
//! ```

mod ed25519ph;
pub mod evidence;
pub mod keys;
pub mod notation;
pub mod pem;
pub mod private_key;
pub mod signature;
pub mod sigstore;
pub mod simple_signing;
pub mod verdict;

use std::sync::Arc;

use super::digest::Digest;
use keys::PublicKey;
use notation::NotationTrust;
use sigstore::identity::Identity;
use sigstore::root::TrustedRoot;

/// Media type of a signed payload.
pub const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// The annotation that holds the base64 signature.
pub const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";

/// Whom policy trusts.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Any one of these suffices.
    pub keys: Vec<TrustedKey>,
    /// Any one of these suffices for an index of an image's layers, and for nothing else.
    pub index_keys: Vec<TrustedKey>,
    /// Whose certificates suffice: any one of these.
    pub identities: Vec<Identity>,
    /// Where certificates, logs and timestamps are traced back to.
    pub root: TrustedRoot,
    /// Demand an entry of the transparency log of a key's signature, too.
    pub require_log: bool,
    /// Whose Notary Project signatures suffice.
    pub notation: Option<Arc<NotationTrust>>,
}

impl Trust {
    /// What counts for a source that says `own`: its signers, if it names any, stand instead of all of these, a root of
    /// its own does, and a demand for the log holds wherever it stands.
    pub fn for_source(&self, own: Option<&Self>) -> Self {
        let Some(own) = own else { return self.clone() };
        let none = own.keys.is_empty() && own.identities.is_empty() && own.notation.is_none();
        let signers = if none { self } else { own };
        let indexers = if own.index_keys.is_empty() { self } else { own };
        let root = if own.root.is_public() { self } else { own };
        Self {
            keys: signers.keys.clone(),
            identities: signers.identities.clone(),
            notation: signers.notation.clone(),
            index_keys: indexers.index_keys.clone(),
            root: root.root.clone(),
            require_log: own.require_log || self.require_log,
        }
    }

    /// What counts for indexes of an image's layers: nobody's word without `index_keys`.
    pub fn for_indexes(self) -> Self {
        Self { keys: self.index_keys, root: self.root, require_log: self.require_log, ..Self::default() }
    }
}

/// A key and where it came from, for messages.
#[derive(Debug, Clone)]
pub struct TrustedKey {
    /// The file's name as the configuration has it.
    pub name: String,
    /// The key.
    pub key: PublicKey,
}

/// The tag under which cosign keeps the signatures of an image.
pub fn signature_tag(image: &Digest) -> String {
    format!("{}.sig", image.dashed())
}

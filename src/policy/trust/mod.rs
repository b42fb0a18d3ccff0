//! Who is trusted to vouch for an image, and whether somebody did.
//!
//! In: keys from the configuration, signature material that somebody fetched. Out: which key signed the pinned
//! digest, or why none did. First part: cosign's public keys over the `.sig` tag layout. With a key the
//! transparency log is not consulted, unless [`Trust::require_log`]; as logs are not read yet, that refuses.
//!
//! ```text
//! registry/repository:sha256-<hex of the pinned digest>.sig      an image manifest
//!   layers[i]   application/vnd.dev.cosign.simplesigning.v1+json   what is signed ([`simple_signing`])
//!   layers[i].annotations["dev.cosignproject.cosign/signature"]   base64 of the signature over that blob
//! ```

pub mod evidence;
pub mod keys;
pub mod notation;
pub mod pem;
pub mod private_key;
pub mod signature;
pub mod simple_signing;
pub mod verdict;

use std::sync::Arc;

use super::digest::Digest;
use keys::PublicKey;
use notation::NotationTrust;

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
    /// Demand an entry of the transparency log as well. Not supported yet, hence refused.
    pub require_log: bool,
    /// Whose Notary Project signatures suffice.
    pub notation: Option<Arc<NotationTrust>>,
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

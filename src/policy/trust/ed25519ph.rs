//! Ed25519ph (RFC 8032, section 5.1): what cosign signs with an Ed25519 key, a signature over the SHA-512 of the message.

use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha512};

/// The SubjectPublicKeyInfo of an Ed25519 key up to the key itself (RFC 8410, section 4).
const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Whether `signature` is that of the key in `spki` over `message`; never, if it is a key of another kind.
pub(super) fn verifies(spki: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let key = spki.strip_prefix(&PREFIX).and_then(|key| VerifyingKey::from_bytes(key.try_into().ok()?).ok());
    let signature = Signature::from_slice(signature).ok();
    key.zip(signature).is_some_and(|(key, signature)| {
        key.verify_prehashed_strict(Sha512::new().chain_update(message), None, &signature).is_ok()
    })
}

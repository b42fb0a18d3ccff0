//! Public keys that verify cosign signatures.
//!
//! What cosign can sign with, and the hash it takes: ECDSA P-256 (its default), P-384 and P-521, RSA 2048 to 8192
//! bits with PKCS#1 v1.5, Ed25519. Older cosign hashes with SHA-256 whatever the curve, newer takes the hash
//! of the curve's size: each key tries both, which weakens nothing. With Ed25519 keys it signs what is hashed before
//! ([`super::ed25519ph`]), which aws-lc-rs does not offer: for that alone there is ed25519-dalek.

use std::fmt;

use aws_lc_rs::digest as lc_digest;
use aws_lc_rs::signature as lc;
use aws_lc_rs::signature::{ParsedPublicKey, VerificationAlgorithm};

use super::{ed25519ph, pem};
use crate::policy::digest::Digest;

pub use super::private_key::PrivateKey;

/// A public key in its SubjectPublicKeyInfo form.
#[derive(Clone)]
pub struct PublicKey {
    kind: &'static Kind,
    der: Vec<u8>,
}

struct Kind {
    name: &'static str,
    /// The first decides whether a key is of this kind.
    algorithms: &'static [&'static dyn VerificationAlgorithm],
}

static KINDS: [Kind; 5] = [
    Kind { name: "ECDSA P-256", algorithms: &[&lc::ECDSA_P256_SHA256_ASN1, &lc::ECDSA_P256_SHA384_ASN1] },
    Kind { name: "ECDSA P-384", algorithms: &[&lc::ECDSA_P384_SHA384_ASN1, &lc::ECDSA_P384_SHA256_ASN1] },
    Kind {
        name: "ECDSA P-521",
        algorithms: &[&lc::ECDSA_P521_SHA512_ASN1, &lc::ECDSA_P521_SHA384_ASN1, &lc::ECDSA_P521_SHA256_ASN1],
    },
    Kind { name: "Ed25519", algorithms: &[&lc::ED25519] },
    Kind {
        name: "RSA",
        algorithms: &[
            &lc::RSA_PKCS1_2048_8192_SHA256,
            &lc::RSA_PKCS1_2048_8192_SHA384,
            &lc::RSA_PKCS1_2048_8192_SHA512,
        ],
    },
];

impl PublicKey {
    /// Reads a `PUBLIC KEY` block, as in cosign.pub. The reason completes "the key file … ".
    pub fn from_pem(text: &[u8]) -> Result<Self, String> {
        let (label, der) = pem::decode(text)?;
        match label.as_str() {
            "PUBLIC KEY" => Self::from_der(&der),
            label if label.contains("PRIVATE KEY") => {
                Err("holds a private key: name the .pub file beside it, and keep this one secret".to_owned())
            }
            label => Err(format!("holds a {label:?} block, expected PUBLIC KEY")),
        }
    }

    /// Reads a DER-encoded SubjectPublicKeyInfo (RFC 5280, section 4.1).
    pub fn from_der(der: &[u8]) -> Result<Self, String> {
        // The library also takes bare points and bare RSA keys; only a SubjectPublicKeyInfo says what it is: a
        // SEQUENCE whose first element is a SEQUENCE.
        if !is_nested_sequence(der) {
            return Err("holds no SubjectPublicKeyInfo".to_owned());
        }
        let suits =
            |kind: &&Kind| kind.algorithms.first().is_some_and(|a| ParsedPublicKey::new(*a, der).is_ok());
        let kind = KINDS.iter().find(suits).ok_or(
            "holds a key of a kind that is not supported: use ECDSA P-256, P-384 or P-521, Ed25519, or RSA from 2048 bits",
        )?;
        Ok(Self { kind, der: der.to_vec() })
    }

    /// The same key as a `PUBLIC KEY` block.
    pub fn to_pem(&self) -> String {
        pem::encode("PUBLIC KEY", &self.der)
    }

    /// SHA-256 of the SubjectPublicKeyInfo: the name of a key that no file name can fake.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.der)
    }

    /// The kind of key, in words.
    pub fn kind(&self) -> &'static str {
        self.kind.name
    }

    /// The SubjectPublicKeyInfo.
    pub fn to_der(&self) -> &[u8] {
        &self.der
    }

    /// Whether `signature` is this key's over the message whose SHA-256 is `digest`. An Ed25519 key signs messages, no
    /// digests: never by one.
    pub fn verifies_sha256(&self, digest: &[u8; 32], signature: &[u8]) -> bool {
        let Ok(digest) = lc_digest::Digest::import_less_safe(digest, &lc_digest::SHA256) else {
            return false;
        };
        self.kind.algorithms.iter().any(|algorithm| {
            ParsedPublicKey::new(*algorithm, &self.der)
                .is_ok_and(|key| key.verify_digest_sig(&digest, signature).is_ok())
        })
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let plain = self.kind.algorithms.iter().any(|algorithm| {
            ParsedPublicKey::new(*algorithm, &self.der)
                .is_ok_and(|key| key.verify_sig(message, signature).is_ok())
        });
        plain || ed25519ph::verifies(&self.der, message, signature)
    }
}

/// DER: tag 0x30, its length, tag 0x30.
fn is_nested_sequence(der: &[u8]) -> bool {
    let [0x30, length, rest @ ..] = der else { return false };
    let long_form = if *length & 0x80 == 0 { 0 } else { usize::from(length & 0x7f) };
    rest.get(long_form) == Some(&0x30)
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({}, {})", self.kind.name, self.fingerprint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::trust::evidence::SimpleSigning;
    use crate::policy::trust::signature::tests::subject;
    use crate::policy::trust::signature::verify;
    use crate::policy::trust::{SIGNATURE_ANNOTATION, Trust, TrustedKey};
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};

    /// Every kind of key with a signature over `message` by it.
    fn signed(message: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let random = SystemRandom::new();
        let mut all = Vec::new();
        for algorithm in [
            &lc::ECDSA_P256_SHA256_ASN1_SIGNING,
            &lc::ECDSA_P384_SHA384_ASN1_SIGNING,
            &lc::ECDSA_P521_SHA512_ASN1_SIGNING,
            &lc::ECDSA_P521_SHA256_ASN1_SIGNING,
        ] {
            let pair = EcdsaKeyPair::generate(algorithm).unwrap();
            let der = pair.public_key().as_der().unwrap().as_ref().to_vec();
            all.push((der, pair.sign(&random, message).unwrap().as_ref().to_vec()));
        }
        let pair = Ed25519KeyPair::generate().unwrap();
        let der = pair.public_key().as_der().unwrap().as_ref().to_vec();
        all.push((der, pair.sign(message).as_ref().to_vec()));
        let pair = RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        for padding in [&lc::RSA_PKCS1_SHA256 as &dyn lc::RsaEncoding, &lc::RSA_PKCS1_SHA512] {
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(padding, &random, message, &mut signature).unwrap();
            let der = AsDer::<aws_lc_rs::encoding::PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
            all.push((der.as_ref().to_vec(), signature));
        }
        all
    }

    #[test]
    fn every_kind_verifies_its_own_only() {
        let all = signed(b"message");
        assert_eq!(all.len(), 7);
        for (at, (der, signature)) in all.iter().enumerate() {
            let key = PublicKey::from_der(der).unwrap();
            let key = PublicKey::from_pem(key.to_pem().as_bytes()).unwrap();
            assert!(key.verifies(b"message", signature), "{key:?}");
            assert!(!key.verifies(b"massage", signature), "{key:?}");
            assert!(!key.verifies(b"message", &[]), "{key:?}");
            for (other, (_, signature)) in all.iter().enumerate() {
                let same_key = all[other].0 == *der;
                assert_eq!(key.verifies(b"message", signature), other == at || same_key);
            }
        }
    }

    #[test]
    fn refuses_what_is_no_public_key() {
        let pair = EcdsaKeyPair::generate(&lc::ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let point = pair.public_key().as_ref();
        for bad in [&[][..], b"x", &[0x30], &[0x30, 0x82, 1, 1, 0x30], point] {
            assert!(PublicKey::from_der(bad).is_err());
        }
        let private = pem::encode("ENCRYPTED SIGSTORE PRIVATE KEY", b"{}");
        assert!(PublicKey::from_pem(private.as_bytes()).unwrap_err().contains("private"));
        assert!(PublicKey::from_pem(pem::encode("CERTIFICATE", b"x").as_bytes()).is_err());
    }

    /// Signatures made by Go's libraries, as cosign makes them.
    #[test]
    fn verifies_what_others_signed() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/cosign");
        let read = |name: &str| std::fs::read(format!("{dir}/{name}")).unwrap();
        let payload = read("payload.json");
        for (key, signature, holds) in [
            ("p256.pub", "p256.sig", true),
            ("p384.pub", "p384.sig", true),
            ("p384.pub", "p384-sha256.sig", true),
            ("p521.pub", "p521.sig", true),
            ("p521.pub", "p521-sha256.sig", true),
            ("rsa.pub", "rsa.sig", true),
            ("ed25519.pub", "ed25519.sig", true),
            ("ed25519.pub", "ed25519ph.sig", true),
            ("p256.pub", "ed25519ph.sig", false),
            ("p384.pub", "p256.sig", false),
        ] {
            let public = PublicKey::from_pem(&read(key)).unwrap();
            let trust =
                Trust { keys: vec![TrustedKey { name: key.to_owned(), key: public }], ..Trust::default() };
            let signature_b64 = String::from_utf8(read(signature)).unwrap();
            let annotations = vec![(SIGNATURE_ANNOTATION.to_owned(), signature_b64)];
            let layer = SimpleSigning { payload: payload.clone(), annotations };
            let image = Digest::of(b"hello");
            assert_eq!(verify(&trust, &subject(&image), &[layer.into()]).is_ok(), holds, "{key} {signature}");
        }
    }
}

//! Private keys as cosign keeps them: PKCS#8 of a P-256 key, sealed with a password.
//!
//! The file is a PEM block `ENCRYPTED SIGSTORE PRIVATE KEY` (older: `ENCRYPTED COSIGN PRIVATE KEY`) around JSON:
//!
//! ```text
//! {"kdf":    {"name":"scrypt", "params":{"N":65536,"r":8,"p":1}, "salt": base64 of 32 bytes},
//!  "cipher": {"name":"nacl/secretbox", "nonce": base64 of 24 bytes},
//!  "ciphertext": base64 of the sealed PKCS#8}
//! ```
//!
//! (go-securesystemslib, package `encrypted`.) An empty password is allowed there, and here.

use std::fmt;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crypto_secretbox::aead::{Aead, KeyInit};
use crypto_secretbox::{Nonce, XSalsa20Poly1305};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::keys::PublicKey;
use super::pem;

const LABEL: &str = "ENCRYPTED SIGSTORE PRIVATE KEY";
const OLD_LABEL: &str = "ENCRYPTED COSIGN PRIVATE KEY";

/// log2 of scrypt's N for new keys: what cosign writes since go-securesystemslib 0.6 (about 100 ms).
const LOG_N: u8 = 16;

/// The N that are read: those cosign itself reads. A bound, because N decides time and memory (128 MiB at most).
const READABLE_LOG_N: std::ops::RangeInclusive<u8> = 15..=17;

#[derive(Serialize, Deserialize)]
struct Sealed {
    kdf: Kdf,
    cipher: Cipher,
    ciphertext: String,
}

#[derive(Serialize, Deserialize)]
struct Kdf {
    name: String,
    params: Params,
    salt: String,
}

#[derive(Serialize, Deserialize)]
struct Params {
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
}

#[derive(Serialize, Deserialize)]
struct Cipher {
    name: String,
    nonce: String,
}

/// An ECDSA P-256 key that signs.
pub struct PrivateKey(EcdsaKeyPair);

impl PrivateKey {
    /// A new key.
    pub fn generate() -> Result<Self, String> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map(Self)
            .map_err(|_| "the crypto library could not make a key".to_owned())
    }

    /// The key's public half.
    pub fn public(&self) -> Result<PublicKey, String> {
        let der = self.0.public_key().as_der().map_err(|_| "the key has no public half")?;
        PublicKey::from_der(der.as_ref())
    }

    /// An ECDSA signature (ASN.1) over the SHA-256 of `message`.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let signature = self.0.sign(&SystemRandom::new(), message);
        Ok(signature.map_err(|_| "the crypto library could not sign")?.as_ref().to_vec())
    }

    /// The key sealed with `password`, as cosign reads it.
    pub fn to_encrypted_pem(&self, password: &[u8]) -> Result<String, String> {
        let pkcs8 = self.0.to_pkcs8v1().map_err(|_| "the key cannot be written as PKCS#8")?;
        let salt: [u8; 32] = random()?;
        let nonce: [u8; 24] = random()?;
        let params = Params { n: 1 << LOG_N, r: 8, p: 1 };
        let ciphertext = secretbox(password, &salt, LOG_N)?
            .encrypt(Nonce::from_slice(&nonce), pkcs8.as_ref())
            .map_err(|_| "the key cannot be sealed")?;
        let sealed = Sealed {
            kdf: Kdf { name: "scrypt".to_owned(), params, salt: STANDARD.encode(salt) },
            cipher: Cipher { name: "nacl/secretbox".to_owned(), nonce: STANDARD.encode(nonce) },
            ciphertext: STANDARD.encode(ciphertext),
        };
        let json = serde_json::to_vec(&sealed).map_err(|e| e.to_string())?;
        Ok(pem::encode(LABEL, &json))
    }

    /// Reads a sealed key. The reason completes "the key file … ".
    pub fn from_encrypted_pem(text: &[u8], password: &[u8]) -> Result<Self, String> {
        let (label, json) = pem::decode(text)?;
        if label != LABEL && label != OLD_LABEL {
            return Err(format!(
                "holds a {label:?} block, expected {LABEL}: make one with `addonfs keygen` or `cosign import-key-pair`"
            ));
        }
        let sealed: Sealed =
            serde_json::from_slice(&json).map_err(|e| format!("is not a sealed key: {e}"))?;
        if sealed.kdf.name != "scrypt" || sealed.cipher.name != "nacl/secretbox" {
            return Err(format!(
                "is sealed with {} and {}, expected scrypt and nacl/secretbox",
                sealed.kdf.name, sealed.cipher.name
            ));
        }
        let log_n = READABLE_LOG_N.into_iter().find(|log_n| 1 << log_n == sealed.kdf.params.n);
        let (Some(log_n), 8, 1) = (log_n, sealed.kdf.params.r, sealed.kdf.params.p) else {
            return Err("has scrypt parameters that cosign does not use".to_owned());
        };
        let decode = |what: &str, text: &str| {
            STANDARD.decode(text).map_err(|e| format!("has a {what} that is not base64: {e}"))
        };
        let salt = decode("salt", &sealed.kdf.salt)?;
        let nonce: [u8; 24] = decode("nonce", &sealed.cipher.nonce)?
            .try_into()
            .map_err(|_| "has a nonce of the wrong length".to_owned())?;
        let ciphertext = decode("ciphertext", &sealed.ciphertext)?;
        let pkcs8 = secretbox(password, &salt, log_n)?
            .decrypt(Nonce::from_slice(&nonce), ciphertext.as_slice())
            .map(Zeroizing::new)
            .map_err(|_| "cannot be opened: the password is wrong, or the file is damaged".to_owned())?;
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8)
            .map(Self)
            .map_err(|e| format!("does not hold an ECDSA P-256 key, the only kind that signs here: {e}"))
    }
}

fn secretbox(password: &[u8], salt: &[u8], log_n: u8) -> Result<XSalsa20Poly1305, String> {
    let params = scrypt::Params::new(log_n, 8, 1, 32).map_err(|e| e.to_string())?;
    let mut key = Zeroizing::new([0; 32]);
    scrypt::scrypt(password, salt, &params, key.as_mut_slice()).map_err(|e| e.to_string())?;
    XSalsa20Poly1305::new_from_slice(key.as_slice()).map_err(|e| e.to_string())
}

fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "there are no random numbers")?;
    Ok(bytes)
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_round_and_signs() {
        let key = PrivateKey::generate().unwrap();
        for password in [&b""[..], b"secret"] {
            let pem = key.to_encrypted_pem(password).unwrap();
            assert!(pem.starts_with("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n"));
            let again = PrivateKey::from_encrypted_pem(pem.as_bytes(), password).unwrap();
            let signature = again.sign(b"message").unwrap();
            assert!(key.public().unwrap().verifies(b"message", &signature));
            assert!(
                PrivateKey::from_encrypted_pem(pem.as_bytes(), b"wrong").unwrap_err().contains("password")
            );
        }
    }

    #[test]
    fn refuses_costly_parameters() {
        let json = br#"{"kdf":{"name":"scrypt","params":{"N":1073741824,"r":8,"p":1},"salt":""},
            "cipher":{"name":"nacl/secretbox","nonce":""},"ciphertext":""}"#;
        let pem = pem::encode(LABEL, json);
        assert!(PrivateKey::from_encrypted_pem(pem.as_bytes(), b"").unwrap_err().contains("parameters"));
    }

    /// Keys sealed by the library that cosign seals them with, under both of its labels and costs.
    #[test]
    fn opens_what_cosign_sealed() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/cosign");
        let read = |name: &str| std::fs::read(format!("{dir}/{name}")).unwrap();
        let public = PublicKey::from_pem(&read("p256.pub")).unwrap();
        for file in ["p256-sigstore.key", "p256-cosign.key"] {
            let key = PrivateKey::from_encrypted_pem(&read(file), b"fixture").unwrap();
            assert!(public.verifies(b"message", &key.sign(b"message").unwrap()), "{file}");
        }
    }
}

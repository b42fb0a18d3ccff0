//! Signature algorithms: the six that envelopes may have, and those under certificates, revocation lists and timestamps.
//!
//! The key decides ("Algorithm Selection" in Notary's `signature-specification.md`): what an envelope says of its algorithm
//! must be what its signing key implies. SHA-1 counts nowhere.

use aws_lc_rs::signature as lc;
use aws_lc_rs::signature::{ParsedPublicKey, VerificationAlgorithm};
use der::Decode as _;
use der::asn1::ObjectIdentifier;
use sha2::Digest as _;

use super::asn1::Element;

/// An algorithm of an envelope's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
}

impl Algorithm {
    /// The `alg` header of JWS (RFC 7518, section 3.1).
    pub(super) fn from_jws(name: &str) -> Option<Self> {
        Some(match name {
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            _ => return None,
        })
    }

    /// The `alg` parameter of COSE (RFC 9053, section 2.1, and RFC 8230, section 2).
    pub(super) fn from_cose(number: i64) -> Option<Self> {
        Some(match number {
            -37 => Self::Ps256,
            -38 => Self::Ps384,
            -39 => Self::Ps512,
            -7 => Self::Es256,
            -35 => Self::Es384,
            -36 => Self::Es512,
            _ => return None,
        })
    }

    /// Its name in JWS, for messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
        }
    }

    /// ECDSA signatures are r and s side by side, in JWS and in COSE; the salt of PSS is as long as the hash.
    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Ps256 => &lc::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &lc::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &lc::RSA_PSS_2048_8192_SHA512,
            Self::Es256 => &lc::ECDSA_P256_SHA256_FIXED,
            Self::Es384 => &lc::ECDSA_P384_SHA384_FIXED,
            Self::Es512 => &lc::ECDSA_P521_SHA512_FIXED,
        }
    }

    /// Whether `signature` over `message` is by the key in `spki`.
    pub(super) fn verifies(self, spki: &[u8], message: &[u8], signature: &[u8]) -> bool {
        holds(self.verification(), spki, message, signature)
    }
}

fn holds(
    algorithm: &'static dyn VerificationAlgorithm,
    spki: &[u8],
    message: &[u8],
    signature: &[u8],
) -> bool {
    ParsedPublicKey::new(algorithm, spki).is_ok_and(|key| key.verify_sig(message, signature).is_ok())
}

/// A public key, as far as it decides about algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeySpec {
    /// With the bits of its modulus.
    Rsa(usize),
    P256,
    P384,
    P521,
    Other,
}

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");

impl KeySpec {
    /// Of a SubjectPublicKeyInfo.
    pub(super) fn of(spki: &[u8]) -> Result<Self, String> {
        let parts = Element::only(spki)?.sequence()?;
        let [algorithm, key] = parts.as_slice() else {
            return Err("a public key without its parts".to_owned());
        };
        let algorithm = algorithm.sequence()?;
        let kind = algorithm.first().map(Element::oid).transpose()?;
        if kind == Some(RSA) {
            let numbers = Element::only(key.bits()?)?.sequence()?;
            let modulus = numbers.first().ok_or("an RSA key without modulus")?;
            let modulus = der::asn1::UintRef::from_der(modulus.bytes).map_err(|e| e.to_string())?;
            let bytes = modulus.as_bytes();
            let unused = bytes.first().map_or(0, |byte| byte.leading_zeros() as usize);
            return Ok(Self::Rsa(bytes.len() * 8 - unused));
        }
        if kind != Some(EC) {
            return Ok(Self::Other);
        }
        let curve = algorithm.get(1).ok_or("an elliptic key without curve")?.oid()?;
        Ok(match curve.to_string().as_str() {
            "1.2.840.10045.3.1.7" => Self::P256,
            "1.3.132.0.34" => Self::P384,
            "1.3.132.0.35" => Self::P521,
            _ => Self::Other,
        })
    }

    /// What such a key signs envelopes with; none if no envelope may be signed with it.
    pub(super) fn algorithm(self) -> Option<Algorithm> {
        Some(match self {
            Self::Rsa(2048) => Algorithm::Ps256,
            Self::Rsa(3072) => Algorithm::Ps384,
            Self::Rsa(4096) => Algorithm::Ps512,
            Self::P256 => Algorithm::Es256,
            Self::P384 => Algorithm::Es384,
            Self::P521 => Algorithm::Es512,
            Self::Rsa(_) | Self::Other => return None,
        })
    }
}

impl std::fmt::Display for KeySpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rsa(bits) => write!(f, "RSA of {bits} bits"),
            Self::P256 => f.write_str("ECDSA P-256"),
            Self::P384 => f.write_str("ECDSA P-384"),
            Self::P521 => f.write_str("ECDSA P-521"),
            Self::Other => f.write_str("neither RSA nor ECDSA on a NIST curve"),
        }
    }
}

/// A hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    /// By its object identifier.
    pub(super) fn from_oid(oid: &ObjectIdentifier) -> Result<Self, String> {
        match oid.to_string().as_str() {
            "2.16.840.1.101.3.4.2.1" => Ok(Self::Sha256),
            "2.16.840.1.101.3.4.2.2" => Ok(Self::Sha384),
            "2.16.840.1.101.3.4.2.3" => Ok(Self::Sha512),
            "1.3.14.3.2.26" => Err("SHA-1 is not accepted".to_owned()),
            other => Err(format!("hash function {other} is not supported")),
        }
    }

    /// By an AlgorithmIdentifier.
    pub(super) fn from_identifier(identifier: &Element<'_>) -> Result<Self, String> {
        let parts = identifier.sequence()?;
        Self::from_oid(&parts.first().ok_or("an algorithm without name")?.oid()?)
    }

    /// The hash of `bytes`.
    pub(super) fn of(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => sha2::Sha256::digest(bytes).to_vec(),
            Self::Sha384 => sha2::Sha384::digest(bytes).to_vec(),
            Self::Sha512 => sha2::Sha512::digest(bytes).to_vec(),
        }
    }
}

/// The kinds of signature below certificates.
enum Scheme {
    Pkcs1(Hash),
    Pss(Hash),
    Ecdsa(Hash),
}

/// Checks a signature that names its algorithm by `identifier`, an AlgorithmIdentifier. `digest` is the hash that CMS names
/// beside it, where there is one: RSA signatures there may be called plain `rsaEncryption`.
pub(super) fn check(
    identifier: &Element<'_>,
    digest: Option<Hash>,
    spki: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), String> {
    let scheme = scheme(identifier, digest)?;
    let key = KeySpec::of(spki)?;
    let algorithm: &'static dyn VerificationAlgorithm = match (scheme, key) {
        (Scheme::Pkcs1(Hash::Sha256), KeySpec::Rsa(_)) => &lc::RSA_PKCS1_2048_8192_SHA256,
        (Scheme::Pkcs1(Hash::Sha384), KeySpec::Rsa(_)) => &lc::RSA_PKCS1_2048_8192_SHA384,
        (Scheme::Pkcs1(Hash::Sha512), KeySpec::Rsa(_)) => &lc::RSA_PKCS1_2048_8192_SHA512,
        (Scheme::Pss(Hash::Sha256), KeySpec::Rsa(_)) => &lc::RSA_PSS_2048_8192_SHA256,
        (Scheme::Pss(Hash::Sha384), KeySpec::Rsa(_)) => &lc::RSA_PSS_2048_8192_SHA384,
        (Scheme::Pss(Hash::Sha512), KeySpec::Rsa(_)) => &lc::RSA_PSS_2048_8192_SHA512,
        (Scheme::Ecdsa(Hash::Sha256), KeySpec::P256) => &lc::ECDSA_P256_SHA256_ASN1,
        (Scheme::Ecdsa(Hash::Sha384), KeySpec::P256) => &lc::ECDSA_P256_SHA384_ASN1,
        (Scheme::Ecdsa(Hash::Sha512), KeySpec::P256) => &lc::ECDSA_P256_SHA512_ASN1,
        (Scheme::Ecdsa(Hash::Sha256), KeySpec::P384) => &lc::ECDSA_P384_SHA256_ASN1,
        (Scheme::Ecdsa(Hash::Sha384), KeySpec::P384) => &lc::ECDSA_P384_SHA384_ASN1,
        (Scheme::Ecdsa(Hash::Sha512), KeySpec::P384) => &lc::ECDSA_P384_SHA512_ASN1,
        (Scheme::Ecdsa(Hash::Sha256), KeySpec::P521) => &lc::ECDSA_P521_SHA256_ASN1,
        (Scheme::Ecdsa(Hash::Sha384), KeySpec::P521) => &lc::ECDSA_P521_SHA384_ASN1,
        (Scheme::Ecdsa(Hash::Sha512), KeySpec::P521) => &lc::ECDSA_P521_SHA512_ASN1,
        (_, key) => return Err(format!("its algorithm does not fit the issuer's key, which is {key}")),
    };
    if holds(algorithm, spki, message, signature) { Ok(()) } else { Err("its signature is wrong".to_owned()) }
}

fn scheme(identifier: &Element<'_>, digest: Option<Hash>) -> Result<Scheme, String> {
    let parts = identifier.sequence()?;
    let oid = parts.first().ok_or("a signature algorithm without name")?.oid()?;
    let scheme = match oid.to_string().as_str() {
        "1.2.840.113549.1.1.1" => Scheme::Pkcs1(digest.ok_or("rsaEncryption names no hash")?),
        "1.2.840.113549.1.1.11" => Scheme::Pkcs1(Hash::Sha256),
        "1.2.840.113549.1.1.12" => Scheme::Pkcs1(Hash::Sha384),
        "1.2.840.113549.1.1.13" => Scheme::Pkcs1(Hash::Sha512),
        "1.2.840.113549.1.1.10" => Scheme::Pss(pss_hash(parts.get(1))?),
        "1.2.840.10045.4.3.2" => Scheme::Ecdsa(Hash::Sha256),
        "1.2.840.10045.4.3.3" => Scheme::Ecdsa(Hash::Sha384),
        "1.2.840.10045.4.3.4" => Scheme::Ecdsa(Hash::Sha512),
        "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" => return Err("it is signed with SHA-1".to_owned()),
        other => return Err(format!("signature algorithm {other} is not supported")),
    };
    let hash = match &scheme {
        Scheme::Pkcs1(hash) | Scheme::Pss(hash) | Scheme::Ecdsa(hash) => *hash,
    };
    match digest {
        Some(digest) if digest != hash => Err("two hash functions are named for one signature".to_owned()),
        _ => Ok(scheme),
    }
}

/// RSASSA-PSS-params (RFC 8017, appendix A.2.3): the defaults are SHA-1, so the hash must be there. That mask and salt fit is
/// what the check of the signature shows: ours has one form only.
fn pss_hash(parameters: Option<&Element<'_>>) -> Result<Hash, String> {
    let parameters = parameters.ok_or("it is signed with SHA-1")?.sequence()?;
    let hash = parameters.iter().find(|part| part.is_context(0)).ok_or("it is signed with SHA-1")?;
    Hash::from_identifier(&Element::only(hash.content())?)
}

//! Trust stores: named sets of certificates from which trust comes ("Trust Store" in Notary's
//! `trust-store-trust-policy.md`), in notation's folders:
//!
//! ```text
//! <trust store>/x509/{ca,signingAuthority,tsa}/<name>/*.{pem,crt,cer,der}
//! ```
//! In: the files that somebody else read. They are parsed when a signature is judged for the first time.

use std::sync::OnceLock;

use super::MAX_STORE_FILE;
use super::certificate::Certificate;
use crate::policy::trust::pem;

/// Most certificates of one file.
const MAX_CERTIFICATES: usize = 1000;

/// What the certificates of a store are trusted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// Authorities that say who signs.
    Ca,
    /// Services that sign for others, and say when.
    SigningAuthority,
    /// Authorities that say when.
    Tsa,
}

impl StoreKind {
    /// The kind as policies and folders name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ca => "ca",
            Self::SigningAuthority => "signingAuthority",
            Self::Tsa => "tsa",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::Ca, Self::SigningAuthority, Self::Tsa].into_iter().find(|kind| kind.name() == name)
    }
}

/// A file of a trust store.
#[derive(Debug, Clone)]
pub struct StoreFile {
    /// What its store is for.
    pub kind: StoreKind,
    /// The name of its store.
    pub store: String,
    /// Its own name, for messages.
    pub file: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

impl StoreFile {
    /// Whether a file of a store's folder holds certificates, by its name.
    pub fn is_certificate(name: &str) -> bool {
        let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
        extension.is_some_and(|extension| ["pem", "crt", "cer", "der"].contains(&extension.as_str()))
    }

    fn certificates(&self) -> Result<Vec<Certificate>, String> {
        let named = |reason: String| {
            format!("trust store {}:{}: file {}: {reason}", self.kind.name(), self.store, self.file)
        };
        let found = parse(&self.bytes).map_err(named)?;
        for certificate in &found {
            if self.kind == StoreKind::Tsa && !certificate.is_self_signed() {
                return Err(named(format!("{certificate} is no root, and stores of kind tsa hold roots")));
            }
            if !certificate.is_ca() && !certificate.is_self_signed() {
                return Err(named(format!("{certificate} is neither an authority's nor self-signed")));
            }
        }
        Ok(found)
    }
}

/// The stores.
#[derive(Debug, Default)]
pub(super) struct TrustStore {
    files: Vec<StoreFile>,
    /// In the order of the files.
    parsed: OnceLock<Vec<Result<Vec<Certificate>, String>>>,
}

impl TrustStore {
    pub(super) fn new(files: Vec<StoreFile>) -> Self {
        Self { files, parsed: OnceLock::new() }
    }

    /// The certificates of the stores of one kind among `named`; at least one.
    pub(super) fn certificates(
        &self,
        named: &[(StoreKind, String)],
        kind: StoreKind,
    ) -> Result<Vec<&Certificate>, String> {
        let parsed = self.parsed.get_or_init(|| self.files.iter().map(StoreFile::certificates).collect());
        let mut found = Vec::new();
        for (_, name) in named.iter().filter(|(of, _)| *of == kind) {
            let before = found.len();
            for (file, certificates) in self.files.iter().zip(parsed) {
                if file.kind == kind && file.store == *name {
                    found.extend(certificates.as_ref().map_err(Clone::clone)?);
                }
            }
            if found.len() == before {
                return Err(format!("trust store {}:{name} holds no certificate", kind.name()));
            }
        }
        if found.is_empty() {
            return Err(format!("the trust policy names no trust store of kind {}", kind.name()));
        }
        Ok(found)
    }
}

/// One certificate in DER, or any number in PEM.
fn parse(bytes: &[u8]) -> Result<Vec<Certificate>, String> {
    if bytes.len() > MAX_STORE_FILE {
        return Err(format!("it has {} bytes: at most {MAX_STORE_FILE} are read", bytes.len()));
    }
    if bytes.first() == Some(&0x30) {
        return Ok(vec![Certificate::from_der(bytes)?]);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is neither PEM nor DER".to_owned())?;
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, block)) = rest.split_once("-----BEGIN ") {
        let end = block.find("-----END ").and_then(|end| {
            let label = block.get(end + 9..)?.find("-----")?;
            Some(end + 9 + label + 5)
        });
        let (block, after) =
            end.and_then(|end| block.split_at_checked(end)).ok_or("a PEM block has no end")?;
        let (label, der) = pem::decode(format!("-----BEGIN {block}").as_bytes())?;
        if label != "CERTIFICATE" {
            return Err(format!("it holds a {label:?} block, expected CERTIFICATE"));
        }
        if found.len() == MAX_CERTIFICATES {
            return Err(format!("it holds more than {MAX_CERTIFICATES} certificates"));
        }
        found.push(Certificate::from_der(&der)?);
        rest = after;
    }
    if found.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(found) }
}

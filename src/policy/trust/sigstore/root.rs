//! Whom keyless signatures are traced back to: authorities and logs, as `trusted_root.json` lists them
//! (sigstore `protobuf-specs`, `sigstore_trustroot.proto`).
//!
//! Without a file of one's own it is Sigstore's public instance, as it was when this program was built. It is read when
//! the first keyless signature is, not before.

use std::fmt;
use std::sync::{Arc, OnceLock};

use sigstore_verify::Verifier;
use sigstore_verify::trust_root::{SIGSTORE_PRODUCTION_TRUSTED_ROOT, TrustedRoot as Material};

/// Largest file in bytes; the public instance's has 7 KiB.
pub const MAX_BYTES: usize = 1 << 20;
/// Most authorities, and most logs, of one kind: each of them is tried for a timestamp.
const MAX_OF_A_KIND: usize = 32;
/// Most certificates of one chain.
pub(super) const MAX_CHAIN: usize = 8;

/// A trusted root. Clones share what was read.
#[derive(Clone, Default)]
pub struct TrustedRoot {
    /// `None` for the public instance.
    own: Option<Arc<Ready>>,
    name: Option<Arc<str>>,
    public: Arc<OnceLock<Result<Ready, String>>>,
}

/// A root in the form that signatures are checked with.
pub(super) struct Ready {
    pub(super) verifier: Verifier,
    pub(super) material: Material,
    /// Whether an entry of a transparency log is demanded: of a root of one's own, if it has such a log.
    pub(super) needs_log: bool,
    /// Whether certificates must be in a certificate transparency log: likewise.
    pub(super) needs_sct: bool,
}

impl TrustedRoot {
    /// Reads a `trusted_root.json`. The reason completes "the file … ".
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_BYTES {
            return Err(format!("has {} bytes, more than {MAX_BYTES}", bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| "is no trusted_root.json: not UTF-8".to_owned())?;
        let ready = Ready::new(text).map_err(|why| format!("is no usable trusted_root.json: {why}"))?;
        if ready.material.certificate_authorities.is_empty() {
            return Err("names no certificate authority: no keyless signature could hold".to_owned());
        }
        if !ready.needs_log && ready.material.timestamp_authorities.is_empty() {
            return Err(
                "names neither a log nor a timestamp authority: nothing says when was signed".to_owned()
            );
        }
        Ok(Self { own: Some(Arc::new(ready)), ..Self::default() })
    }

    /// The same under the name of its file.
    pub fn named(self, name: &str) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// The name of its file; `None` for the public instance.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether it is the public instance.
    pub fn is_public(&self) -> bool {
        self.own.is_none()
    }

    pub(super) fn ready(&self) -> Result<&Ready, String> {
        let Some(own) = &self.own else {
            let read = || {
                let public = Ready::new(SIGSTORE_PRODUCTION_TRUSTED_ROOT)?;
                Ok(Ready { needs_log: true, needs_sct: true, ..public })
            };
            return self.public.get_or_init(read).as_ref().map_err(Clone::clone);
        };
        Ok(own)
    }
}

impl Ready {
    fn new(json: &str) -> Result<Self, String> {
        let material = Material::from_json(json).map_err(|e| e.to_string())?;
        if !material.media_type.starts_with("application/vnd.dev.sigstore.trustedroot") {
            return Err(format!("its mediaType is {:.80?}", material.media_type));
        }
        let chains = material.certificate_authorities.iter().map(|authority| &authority.cert_chain);
        let chains =
            chains.chain(material.timestamp_authorities.iter().map(|authority| &authority.cert_chain));
        if let Some(long) = chains.map(|chain| chain.certificates.len()).find(|length| *length > MAX_CHAIN) {
            return Err(format!("a chain of {long} certificates, and at most {MAX_CHAIN} are read"));
        }
        let kinds = [
            ("certificate authorities", material.certificate_authorities.len()),
            ("timestamp authorities", material.timestamp_authorities.len()),
            ("transparency logs", material.tlogs.len()),
            ("certificate transparency logs", material.ctlogs.len()),
        ];
        if let Some((kind, count)) = kinds.into_iter().find(|(_, count)| *count > MAX_OF_A_KIND) {
            return Err(format!("{count} {kind}, and at most {MAX_OF_A_KIND} are read"));
        }
        let verifier = Verifier::new(&material).map_err(|e| e.to_string())?;
        let (needs_log, needs_sct) = (!material.tlogs.is_empty(), !material.ctlogs.is_empty());
        Ok(Self { verifier, material, needs_log, needs_sct })
    }
}

impl fmt::Debug for TrustedRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_public() { "TrustedRoot(public)" } else { "TrustedRoot(own)" })
    }
}

//! Envelopes, chains and trust for the tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use addonfs::policy::digest::Digest;
use addonfs::policy::reference::{ImageRef, Location};
use addonfs::policy::trust::notation::policy::TrustPolicy;
use addonfs::policy::trust::notation::{
    Check, CrlFile, Failure, MEDIA_TYPE_COSE, MEDIA_TYPE_JWS, NotationTrust, Signer, StoreFile, StoreKind,
    Target, verify,
};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use coset::cbor::value::Value as Cbor;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::macros::datetime;

pub(crate) const NOW: OffsetDateTime = datetime!(2030-01-01 0:00 UTC);
pub(crate) const SCHEME: &str = "io.cncf.notary.signingScheme";
pub(crate) const SIGNED: &str = "io.cncf.notary.signingTime";
pub(crate) const AUTHENTIC: &str = "io.cncf.notary.authenticSigningTime";
pub(crate) const EXPIRY: &str = "io.cncf.notary.expiry";
pub(crate) const TIMESTAMP: &str = "io.cncf.notary.timestampSignature";
pub(crate) const PAYLOAD: &str = "application/vnd.cncf.notary.payload.v1+json";

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/notation")
}

pub(crate) fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub(crate) fn manifest() -> Vec<u8> {
    fixture("manifest.json")
}

pub(crate) fn media_type(name: &str) -> &'static str {
    if name.ends_with("jws") { MEDIA_TYPE_JWS } else { MEDIA_TYPE_COSE }
}

/// Chains by their names.
pub(crate) fn chains(file: &str) -> BTreeMap<String, Vec<Vec<u8>>> {
    let read: Value = serde_json::from_slice(&fixture(file)).unwrap();
    let der = |at: &Value| {
        let text = read["certificates"][usize::try_from(at.as_u64().unwrap()).unwrap()].as_str().unwrap();
        STANDARD.decode(text).unwrap()
    };
    let chains = read["chains"].as_object().unwrap().iter();
    chains.map(|(name, list)| (name.clone(), list.as_array().unwrap().iter().map(der).collect())).collect()
}

pub(crate) fn chain(name: &str) -> Vec<Vec<u8>> {
    chains("chains.json")
        .remove(name)
        .or_else(|| chains("revocable.json").remove(name))
        .unwrap_or_else(|| panic!("{name}"))
}

/// A trust policy of one statement for everything, to be changed.
pub(crate) fn statement() -> Value {
    json!({
        "name": "all", "registryScopes": ["*"], "signatureVerification": {"level": "strict"},
        "trustStores": ["ca:acme"], "trustedIdentities": ["x509.subject: C=US, ST=WA, O=acme"],
    })
}

pub(crate) fn with(key: &str, value: Value) -> Value {
    let mut statement = statement();
    statement[key] = value;
    statement
}

pub(crate) fn at_level(level: &str) -> Value {
    with("signatureVerification", json!({"level": level}))
}

pub(crate) fn store_files() -> Vec<StoreFile> {
    let mut files = Vec::new();
    for kind in [StoreKind::Ca, StoreKind::SigningAuthority, StoreKind::Tsa] {
        for store in std::fs::read_dir(fixtures().join("trust-store/x509").join(kind.name())).unwrap() {
            let store = store.unwrap();
            for file in std::fs::read_dir(store.path()).unwrap() {
                let file = file.unwrap();
                let name = |entry: &std::fs::DirEntry| entry.file_name().into_string().unwrap();
                let bytes = std::fs::read(file.path()).unwrap();
                files.push(StoreFile { kind, store: name(&store), file: name(&file), bytes });
            }
        }
    }
    files
}

pub(crate) fn trust_with(statements: &[Value], lists: &[&str]) -> NotationTrust {
    let document = json!({"version": "1.0", "trustPolicies": statements});
    let policy = TrustPolicy::parse(document.to_string().as_bytes()).unwrap();
    let list = |name: &&str| CrlFile { name: (*name).to_owned(), bytes: fixture(&format!("crls/{name}")) };
    NotationTrust::new(policy, store_files(), lists.iter().map(list).collect())
}

pub(crate) fn trust(statement: Value) -> NotationTrust {
    trust_with(&[statement], &[])
}

pub(crate) fn location() -> Location {
    "registry.example.com/acme/tools:v1".parse::<ImageRef>().unwrap().location
}

pub(crate) fn judge_at(
    trust: &NotationTrust,
    media_type: &str,
    envelope: &[u8],
    now: OffsetDateTime,
) -> Result<Signer, Vec<Failure>> {
    let (location, digest) = (location(), Digest::of(&manifest()));
    verify(trust, &Target { location: &location, digest: &digest }, media_type, envelope, now)
}

pub(crate) fn judge(
    trust: &NotationTrust,
    media_type: &str,
    envelope: &[u8],
) -> Result<Signer, Vec<Failure>> {
    judge_at(trust, media_type, envelope, NOW)
}

/// Refused, by this check first, for a reason with these words.
#[track_caller]
pub(crate) fn refused(what: &str, outcome: Result<Signer, Vec<Failure>>, check: Check, words: &str) {
    let failures = outcome.map(|signer| panic!("{what} is accepted: {signer:?}")).unwrap_err();
    let first = failures.first().unwrap_or_else(|| panic!("{what} is refused without a reason"));
    assert!(
        first.check == check && first.reason.contains(words),
        "{what}: expected {words:?}, got {failures:?}"
    );
}

/// An envelope in the making: what is signed as JSON, whatever the format.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) header: Map<String, Value>,
    pub(crate) payload: Vec<u8>,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) timestamp: Option<Vec<u8>>,
}

pub(crate) fn target() -> Value {
    let manifest = manifest();
    json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": Digest::of(&manifest), "size": manifest.len(),
    })
}

impl Draft {
    /// One with which nothing is wrong.
    pub(crate) fn good() -> Self {
        let header = json!({
            "alg": "ES256", "cty": PAYLOAD, "crit": [SCHEME], SCHEME: "notary.x509", SIGNED: "2026-11-21T10:00:00Z",
        });
        Self {
            header: header.as_object().unwrap().clone(),
            payload: json!({"targetArtifact": target()}).to_string().into_bytes(),
            chain: chain("good"),
            timestamp: None,
        }
    }

    pub(crate) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.header.insert(name.to_owned(), value.into());
    }

    pub(crate) fn drop(&mut self, name: &str) {
        self.header.shift_remove(name);
    }

    pub(crate) fn critical(&mut self, names: &[&str]) {
        self.set("crit", json!(names));
    }

    pub(crate) fn target(&mut self, name: &str, value: Value) {
        let mut target = target();
        target[name] = value;
        self.payload = json!({"targetArtifact": target}).to_string().into_bytes();
    }

    pub(crate) fn jws(&self) -> Value {
        let protected = URL_SAFE_NO_PAD.encode(Value::from(self.header.clone()).to_string());
        let payload = URL_SAFE_NO_PAD.encode(&self.payload);
        let signature = sign(format!("{protected}.{payload}").as_bytes());
        let x5c: Vec<String> = self.chain.iter().map(|der| STANDARD.encode(der)).collect();
        let mut header = json!({"x5c": x5c});
        if let Some(timestamp) = &self.timestamp {
            header[TIMESTAMP] = STANDARD.encode(timestamp).into();
        }
        json!({
            "payload": payload, "protected": protected, "header": header, "signature": URL_SAFE_NO_PAD.encode(signature),
        })
    }

    pub(crate) fn cose(&self) -> Sign1 {
        let parameter = |(name, value): (&String, &Value)| match (name.as_str(), value) {
            ("alg", Value::String(alg)) => (
                1.into(),
                ["ES256", "PS256", "ES384"]
                    .iter()
                    .position(|a| a == alg)
                    .map_or(5, |at| [-7, -37, -35][at])
                    .into(),
            ),
            ("crit", list) => (2.into(), cbor(list)),
            ("cty", text) => (3.into(), cbor(text)),
            (SIGNED | AUTHENTIC | EXPIRY, Value::String(text)) => {
                let time = OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
                let time =
                    time.map_or_else(|_| Cbor::Text(text.clone()), |time| time.unix_timestamp().into());
                (Cbor::Text(name.clone()), Cbor::Tag(1, Box::new(time)))
            }
            (_, value) => (Cbor::Text(name.clone()), cbor(value)),
        };
        let chain = Cbor::Array(self.chain.iter().cloned().map(Cbor::Bytes).collect());
        let mut unprotected = vec![(33.into(), chain)];
        if let Some(timestamp) = &self.timestamp {
            unprotected.push((Cbor::Text(TIMESTAMP.to_owned()), Cbor::Bytes(timestamp.clone())));
        }
        Sign1 {
            protected: self.header.iter().map(parameter).collect(),
            unprotected,
            payload: Some(self.payload.clone()),
        }
    }

    pub(crate) fn both(&self) -> [(&'static str, Vec<u8>); 2] {
        [(MEDIA_TYPE_JWS, self.jws().to_string().into_bytes()), (MEDIA_TYPE_COSE, self.cose().tagged(18))]
    }
}

pub(crate) fn cbor(value: &Value) -> Cbor {
    match value {
        Value::String(text) => Cbor::Text(text.clone()),
        Value::Number(number) => number.as_i64().unwrap().into(),
        Value::Array(list) => Cbor::Array(list.iter().map(cbor).collect()),
        Value::Bool(value) => Cbor::Bool(*value),
        _ => Cbor::Null,
    }
}

pub(crate) fn bytes_of(value: &Cbor) -> Vec<u8> {
    let mut bytes = Vec::new();
    coset::cbor::ser::into_writer(value, &mut bytes).unwrap();
    bytes
}

/// A COSE_Sign1 before it is signed.
pub(crate) struct Sign1 {
    pub(crate) protected: Vec<(Cbor, Cbor)>,
    pub(crate) unprotected: Vec<(Cbor, Cbor)>,
    pub(crate) payload: Option<Vec<u8>>,
}

impl Sign1 {
    pub(crate) fn signed(&self) -> Cbor {
        let protected = bytes_of(&Cbor::Map(self.protected.clone()));
        let payload = self.payload.clone().map_or(Cbor::Null, Cbor::Bytes);
        let structure = Cbor::Array(vec![
            Cbor::Text("Signature1".to_owned()),
            Cbor::Bytes(protected.clone()),
            Cbor::Bytes(Vec::new()),
            Cbor::Bytes(self.payload.clone().unwrap_or_default()),
        ]);
        let signature = sign(&bytes_of(&structure));
        Cbor::Array(vec![
            Cbor::Bytes(protected),
            Cbor::Map(self.unprotected.clone()),
            payload,
            Cbor::Bytes(signature),
        ])
    }

    pub(crate) fn tagged(&self, tag: u64) -> Vec<u8> {
        bytes_of(&Cbor::Tag(tag, Box::new(self.signed())))
    }
}

pub(crate) fn sign(message: &[u8]) -> Vec<u8> {
    let pem = String::from_utf8(fixture("leaf.key")).unwrap();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let key =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &STANDARD.decode(body).unwrap()).unwrap();
    key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
}

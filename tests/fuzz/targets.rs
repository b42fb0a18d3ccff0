//! One function a parser of foreign bytes: it must return, and what it accepts must hold together.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use addonfs::fetch::index::LayerIndex;
use addonfs::fetch::index::build::index_tar;
use addonfs::fetch::index::file::Format;
use addonfs::fetch::index::toc::index_table;
use addonfs::fetch::index::ztoc::index_ztoc;
use addonfs::fs::image::merge::Merge;
use addonfs::policy::addon::AddonManifest;
use addonfs::policy::digest::Digest;
use addonfs::policy::image::{Descriptor, ImageConfig, OCI_INDEX, OCI_MANIFEST, parse_document};
use addonfs::policy::reference::ImageRef;
use addonfs::policy::rules::Policy;
use addonfs::policy::soci::{Binding, SociIndex};
use addonfs::policy::source::request::SourceRequest;
use addonfs::policy::trust::evidence::{Bundle, Evidence, SimpleSigning, Subject};
use addonfs::policy::trust::keys::PublicKey;
use addonfs::policy::trust::notation::policy::TrustPolicy;
use addonfs::policy::trust::notation::{
    self, CrlFile, MEDIA_TYPE_COSE, MEDIA_TYPE_JWS, NotationTrust, StoreFile, StoreKind, verify,
};
use addonfs::policy::trust::sigstore::identity::Identity;
use addonfs::policy::trust::sigstore::root::TrustedRoot;
use addonfs::policy::trust::simple_signing::Payload;
use addonfs::policy::trust::verdict::Voucher;
use addonfs::policy::trust::{Trust, TrustedKey, signature};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// A parser under its name; the corpus lies in a folder of that name.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    ("tar", tar),
    ("layer_index", layer_index),
    ("table_of_contents", table_of_contents),
    ("ztoc", ztoc),
    ("soci_index", soci_index),
    ("addon_manifest", addon_manifest),
    ("yaml", yaml),
    ("image_document", image_document),
    ("image_config", image_config),
    ("signature_payload", signature_payload),
    ("reference", reference),
    ("sigstore_bundle", sigstore_bundle),
    ("sigstore_layer", sigstore_layer),
    ("trusted_root", trusted_root),
    ("notation_jws", notation_jws),
    ("notation_cose", notation_cose),
    ("notation_timestamp", notation_timestamp),
    ("notation_revocation_list", notation_revocation_list),
    ("notation_trust_store", notation_trust_store),
    ("notation_trust_policy", notation_trust_policy),
    ("source_request", source_request),
];

fn tar(bytes: &[u8]) {
    if let Ok(index) = index_tar(bytes) {
        walk(&index);
    }
}

/// The checksum is made right: it is the records behind it that a reader follows.
fn layer_index(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    sealed.extend(Digest::of(bytes).as_bytes());
    if let Ok(index) = LayerIndex::from_bytes(sealed) {
        walk(&index);
    }
}

fn table_of_contents(bytes: &[u8]) {
    let blob = Descriptor {
        media_type: String::new(),
        digest: Digest::of(b""),
        size: 1 << 20,
        annotations: Vec::new(),
    };
    for format in [Format::EStargz, Format::ZstdChunked] {
        if let Ok(index) = index_table(bytes, &blob, format) {
            walk(&index);
        }
    }
}

/// The size of the layer is made right, wherever the zTOC has it.
fn ztoc(bytes: &[u8]) {
    for size in [57_527, 121_856] {
        let blob =
            Descriptor { media_type: String::new(), digest: Digest::of(b""), size, annotations: Vec::new() };
        if let Ok(index) = index_ztoc(bytes, &blob) {
            walk(&index);
        }
    }
}

fn soci_index(bytes: &[u8]) {
    for binding in [Binding::ByImage, Binding::ToImage(&Digest::of(b"image"))] {
        if let Ok(index) = SociIndex::parse(bytes, binding) {
            let _ = index.ztoc(&Digest::of(b"layer"));
        }
    }
}

fn walk(index: &LayerIndex) {
    for entry in (0..index.len()).filter_map(|at| index.entry(at)) {
        assert!(entry.mtime_nsec < 1_000_000_000);
        assert_eq!(entry.xattrs.iter().count(), entry.xattrs.len());
    }
    // whiteouts, links, extended attributes: what the merged tree makes of them
    let _ = Merge::new(0).apply(index.entries());
}

fn addon_manifest(bytes: &[u8]) {
    if let Err(problems) = AddonManifest::parse(bytes) {
        assert!(!problems.is_empty(), "refused without a reason");
    }
}

fn yaml(bytes: &[u8]) {
    let _ = addonfs::policy::yaml::parse(bytes);
}

fn image_document(bytes: &[u8]) {
    for media_type in [OCI_MANIFEST, OCI_INDEX, ""] {
        let _ = parse_document(media_type, bytes);
    }
}

fn image_config(bytes: &[u8]) {
    let _ = ImageConfig::parse(bytes);
}

fn signature_payload(bytes: &[u8]) {
    let _ = Payload::parse(bytes);
}

/// What is printed is what was meant.
fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(reference) = text.parse::<ImageRef>() {
        let printed = reference.to_string();
        let again = printed.parse::<ImageRef>();
        assert_eq!(again.ok().as_ref(), Some(&reference), "{text:?} prints as {printed:?}");
    }
}

const SIGSTORE_ROOT: &[u8] = include_bytes!("../fixtures/sigstore/trusted_root.json");

fn sigstore_bundle(bytes: &[u8]) {
    sigstore(bundle(bytes));
}

fn bundle(bytes: &[u8]) -> Evidence {
    Evidence::Bundle(Bundle { manifest: Digest::of(b"referrer"), bytes: bytes.to_vec() })
}

/// `{"payload", "annotations"}`, which a registry keeps apart.
fn sigstore_layer(bytes: &[u8]) {
    let Ok(layer) = serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(bytes) else { return };
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let payload = layer.get("payload").map(text).unwrap_or_default().into_bytes();
    let annotations = layer.get("annotations").and_then(|all| all.as_object()).into_iter().flatten();
    let annotations = annotations.map(|(key, value)| (key.clone(), text(value))).collect();
    sigstore(SimpleSigning { payload, annotations }.into());
}

/// Refused for a reason, or by who is trusted: a key with the log, or an identity.
fn sigstore(evidence: Evidence) {
    static TRUST: OnceLock<[Trust; 2]> = OnceLock::new();
    let trust = TRUST.get_or_init(|| {
        let key = PublicKey::from_pem(include_bytes!("../fixtures/sigstore/p256.pub")).unwrap();
        let keys = vec![TrustedKey { name: "p256.pub".to_owned(), key }];
        let root = TrustedRoot::from_json(SIGSTORE_ROOT).unwrap();
        let logged = Trust { keys, root: root.clone(), require_log: true, ..Trust::default() };
        let identities = vec![Identity::new("^https://token[.]fixture[.]test$", "org/tools").unwrap()];
        [logged, Trust { identities, root, ..Trust::default() }]
    });
    let digest = Digest::of(include_bytes!("../fixtures/sigstore/manifest.json"));
    let subject = Subject { digest: &digest, location: None, now: 0 };
    let evidence = [evidence];
    for trust in trust {
        match signature::verify(trust, &subject, &evidence) {
            Ok(verified) => match verified.by() {
                Voucher::Key { name, .. } => assert!(name == "p256.pub" && !trust.keys.is_empty()),
                Voucher::Identity { subject, .. } => assert!(subject.contains("org/tools")),
                other => panic!("{other:?}"),
            },
            Err(refusals) => assert!(refusals.iter().all(|refusal| !refusal.reason.words.is_empty())),
        }
    }
}

/// What is read as a root can be asked.
fn trusted_root(bytes: &[u8]) {
    let Ok(root) = TrustedRoot::from_json(bytes) else { return };
    let identities = vec![Identity::new(".", ".").unwrap()];
    let trust = Trust { identities, root, ..Trust::default() };
    let digest = Digest::of(include_bytes!("../fixtures/sigstore/manifest.json"));
    let subject = Subject { digest: &digest, location: None, now: 0 };
    let good = bundle(include_bytes!("../fixtures/sigstore/cosign3-keyless-log2.bundle.json"));
    let _ = signature::verify(&trust, &subject, &[good]);
}

fn notation_jws(bytes: &[u8]) {
    envelope(MEDIA_TYPE_JWS, bytes, Vec::new());
}

fn notation_cose(bytes: &[u8]) {
    envelope(MEDIA_TYPE_COSE, bytes, Vec::new());
}

/// In an envelope whose signature holds: what is not signed can be put beside any.
fn notation_timestamp(bytes: &[u8]) {
    let mut stamped: Value =
        serde_json::from_slice(include_bytes!("../fixtures/notation/envelopes/full.jws")).unwrap();
    stamped["header"]["io.cncf.notary.timestampSignature"] = STANDARD.encode(bytes).into();
    envelope(MEDIA_TYPE_JWS, stamped.to_string().as_bytes(), Vec::new());
}

fn notation_revocation_list(bytes: &[u8]) {
    let list = CrlFile { name: "list.crl".to_owned(), bytes: bytes.to_vec() };
    envelope(MEDIA_TYPE_JWS, include_bytes!("../fixtures/notation/envelopes/revocable.jws"), vec![list]);
}

fn notation_trust_store(bytes: &[u8]) {
    judge(MEDIA_TYPE_JWS, include_bytes!("../fixtures/notation/envelopes/p256.jws"), bytes, Vec::new());
}

fn notation_trust_policy(bytes: &[u8]) {
    let Ok(policy) = TrustPolicy::parse(bytes) else { return };
    for image in ["registry.example.com/acme/tools", "oci:layout"] {
        let location = image.parse::<ImageRef>().unwrap().location;
        if let Ok(statement) = policy.statement(&location) {
            assert!(!statement.name.is_empty());
        }
    }
}

fn source_request(bytes: &[u8]) {
    let Ok(request) = SourceRequest::parse(bytes) else { return };
    // What was kept is understood again, as the same.
    let kept = SourceRequest::parse(&serde_json::to_vec(&request).unwrap());
    assert_eq!(kept.as_ref(), Ok(&request));
    let Ok(wanted) = request.check() else { return };
    if let Ok(spec) = wanted.spec(Digest::of(bytes), &Policy::default()) {
        assert!(spec.trusted && !spec.insecure && !spec.stream && !spec.name.contains('/'));
        assert!(spec.profile.is_none_or(|profile| profile >= Policy::default().profile));
        assert!(spec.trust.is_none(), "a policy that trusts nobody has no signers to name");
    }
}

fn envelope(media_type: &str, bytes: &[u8], lists: Vec<CrlFile>) {
    judge(media_type, bytes, include_bytes!("../fixtures/notation/trust-store/x509/ca/acme/root.pem"), lists);
}

/// Refused for a reason, or by somebody who is trusted and over this very manifest.
fn judge(media_type: &str, envelope: &[u8], store: &[u8], lists: Vec<CrlFile>) {
    let policy = br#"{"version": "1.0", "trustPolicies": [{"name": "all", "registryScopes": ["*"],
        "signatureVerification": {"level": "strict"}, "trustStores": ["ca:acme", "tsa:time"],
        "trustedIdentities": ["x509.subject: C=US, ST=WA, O=acme"]}]}"#;
    let file = |kind, store: &str, bytes: &[u8]| StoreFile {
        kind,
        store: store.to_owned(),
        file: "root.pem".to_owned(),
        bytes: bytes.to_vec(),
    };
    let time = include_bytes!("../fixtures/notation/trust-store/x509/tsa/acme-time/root.pem");
    let store = vec![file(StoreKind::Ca, "acme", store), file(StoreKind::Tsa, "time", time)];
    let trust = NotationTrust::new(TrustPolicy::parse(policy).unwrap(), store, lists);
    let location = "registry.example.com/acme/tools".parse::<ImageRef>().unwrap().location;
    let digest = Digest::of(include_bytes!("../fixtures/notation/manifest.json"));
    let now = time::macros::datetime!(2030-01-01 0:00 UTC);
    match verify(
        &trust,
        &notation::Target { location: &location, digest: &digest },
        media_type,
        envelope,
        now,
    ) {
        Ok(signer) => assert!(signer.is_trusted() && signer.subject().contains("O=acme")),
        Err(failures) => {
            assert!(failures.iter().all(|failure| !failure.reason.is_empty()) && !failures.is_empty())
        }
    }
}

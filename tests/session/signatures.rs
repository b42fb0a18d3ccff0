//! Bundles, from where cosign leaves them to the tree.

use std::path::Path;

use addonfs::fetch::layout::Layout;
use addonfs::fetch::referrers;
use addonfs::fetch::sink::{BlobContent, BlobSink as _};
use addonfs::policy::digest::Digest;
use addonfs::policy::image::{Descriptor, OCI_MANIFEST};
use addonfs::policy::trust::sigstore::BUNDLE;
use serde_json::{Value, json};

use crate::common::session::{Session, TOOLS};

/// A bundle is found without a tag, by a registry that keeps no list of referrers, and kept for the next start.
#[test]
fn a_bundle_alone_suffices() {
    let s = Session::proxied();
    s.build("tools", TOOLS);
    let digest = s.push("tools");
    let image = s.reference("tools", &digest);
    s.configure("", &[("tools", &image, "")]);
    let refused = s.mount_with(&["--strict"]);
    assert!(refused.err.contains("image.signature.required"), "{refused:?}");
    s.umount();
    let pinned = format!("{}/org/tools@{digest}", s.host());
    s.addonfs(["sign", "--key", "cosign.key", "--layout", "bundle", &pinned]).ok();
    s.ready();
    let verified = s.addonfs(["verify", "--config", "addonfs.yaml", "tools"]).ok();
    assert!(verified.contains("sigstore bundle"), "{verified}");
    s.umount();
    s.proxy().take_seen("");
    s.ready();
    assert_eq!(s.proxy().take_seen("").len(), 0, "a known image asks nobody");
}

/// Copies of an image keep it.
#[test]
fn a_bundle_goes_with_its_image() {
    let s = Session::new();
    let digest = s.build("tools", TOOLS);
    let local = format!("oci:./tools.oci@{digest}");
    s.addonfs(["sign", "--key", "cosign.key", "--layout", "bundle", &local]).ok();
    s.push("tools");
    s.configure("", &[("tools", &s.reference("tools", &digest), "")]);
    s.ready();
}

/// What cosign signed without a key, in a layout, by the identities and the root of the configuration.
#[test]
fn an_identity_vouches_for_an_image() {
    let s = Session::bare();
    let fixture = |name: &str| {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sigstore").join(name))
            .unwrap()
    };
    let manifest = fixture("manifest.json");
    let digest = Digest::of(&manifest);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let layout = Layout::create(&s.path("signed.oci")).unwrap();
        layout.put_manifest(OCI_MANIFEST, manifest.into(), Some("v1")).await.unwrap();
        let bundle = fixture("cosign3-keyless-log2.bundle.json");
        let blob = |media_type: &str, content: &[u8]| Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(content),
            size: content.len() as u64,
            annotations: Vec::new(),
        };
        let (layer, config) = (blob(BUNDLE, &bundle), blob("application/vnd.oci.empty.v1+json", b"{}"));
        layout.put_blob(&layer, BlobContent::bytes(bundle)).await.unwrap();
        layout.put_blob(&config, BlobContent::bytes(b"{}".to_vec())).await.unwrap();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": BUNDLE, "config": config, "layers": [layer],
        });
        let manifest = manifest.to_string().into_bytes();
        referrers::attach(&*layout, &*layout, &digest, BUNDLE, manifest).await.unwrap();
    });
    std::fs::write(s.path("trusted_root.json"), fixture("trusted_root.json")).unwrap();
    let configure = |subject: &str| {
        let text = format!(
            "policy:\n  allowed_registries: [oci-layout]\n  trust:\n    trusted_root: trusted_root.json\n    identities:\n    \
             - {{issuer: '^https://token[.]fixture[.]test$', subject: '{subject}'}}\n"
        );
        std::fs::write(s.path("addonfs.yaml"), text).unwrap();
    };
    let image = format!("oci:./signed.oci:v1@{digest}");
    let verify = || s.addonfs(["verify", "--config", "addonfs.yaml", "-o", "json", &image]);
    configure("^https://github[.]com/org/tools/.*$");
    let found: Value = serde_json::from_str(&verify().ok()).unwrap();
    assert_eq!((&found["verified"], &found["by"]["kind"]), (&json!(true), &json!("identity")), "{found}");
    configure("^https://github[.]com/org/other/.*$");
    let refused = verify();
    assert_eq!(refused.code, 1, "{refused:?}");
    let found: Value = serde_json::from_str(&refused.out).unwrap();
    assert_eq!(found["refusals"][0]["code"], "identity", "{found}");
}

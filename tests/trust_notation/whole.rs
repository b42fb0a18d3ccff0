//! From a registry to the tree: signatures are found among the referrers, judged, and decide what is shown.

use std::path::Path;
use std::time::Duration;

use addonfs::fetch::referrers::attach;
use addonfs::fetch::signatures;
use addonfs::fetch::sink::{BlobContent, BlobSink as _};
use addonfs::fetch::source::BlobSource as _;
use addonfs::policy::digest::Digest;
use addonfs::policy::image::Descriptor;
use addonfs::policy::trust::Trust;
use addonfs::policy::trust::evidence::{Evidence, Subject};
use addonfs::policy::trust::notation::ARTIFACT_TYPE;
use addonfs::policy::trust::signature;
use addonfs::policy::trust::verdict::{Cause, Voucher, in_words};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::make::{Draft, EXPIRY, SCHEME, chain, fixture, location, manifest, statement, trust, with};
use crate::common::registry::{DockerRegistry, quick, repository};
use crate::common::session::{Session, TOOLS, eventually};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn described(media_type: &str, content: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(content),
        size: content.len() as u64,
        annotations: Vec::new(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The image layout that the command itself signed, in a registry that keeps no list of referrers.
#[test]
fn what_the_command_attached_is_found_and_vouches() {
    let registry = DockerRegistry::start();
    runtime().block_on(async {
        let place = registry.repository("acme/tools");
        let blob = |digest: &str| {
            fixture(&format!("layout/blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap()))
        };
        let put = async |described: &Value| {
            let content = blob(described["digest"].as_str().unwrap());
            let described = self::described(described["mediaType"].as_str().unwrap(), &content);
            place.put_blob(&described, BlobContent::bytes(content)).await.unwrap();
        };
        let image = manifest();
        let digest = Digest::of(&image);
        put(&serde_json::from_slice::<Value>(&image).unwrap()["config"]).await;
        place.put_manifest(MANIFEST, image.into(), Some("v1")).await.unwrap();
        let index: Value = serde_json::from_slice(&fixture("layout/index.json")).unwrap();
        for entry in index["manifests"].as_array().unwrap() {
            let content = blob(entry["digest"].as_str().unwrap());
            let manifest: Value = serde_json::from_slice(&content).unwrap();
            if manifest["subject"]["digest"] == digest.to_string() {
                put(&manifest["config"]).await;
                put(&manifest["layers"][0]).await;
                attach(&*place, &*place, &digest, ARTIFACT_TYPE, content).await.unwrap();
            }
        }
        let found = signatures::fetch(&*place, &digest).await.unwrap();
        assert!(matches!(found.as_slice(), [Evidence::Notation(_), Evidence::Notation(_)]), "{found:?}");
        let (location, now) = (location(), 1_900_000_000);
        let subject = Subject { digest: &digest, location: Some(&location), now };
        let trusting = |statement| Trust { notation: Some(trust(statement).into()), ..Trust::default() };
        for one in &found {
            let verified =
                signature::verify(&trusting(statement()), &subject, std::slice::from_ref(one)).unwrap();
            let Voucher::Notation(signer) = verified.by() else { panic!("{verified:?}") };
            assert!(signer.subject().contains("CN=acme builder"), "{verified:?}");
            verified.check_manifest(MANIFEST, manifest().len() as u64).unwrap();
            assert!(verified.check_manifest(MANIFEST, 1).is_err());
        }
        let refused = |trust: &Trust, subject: &Subject<'_>, cause: Cause, words: &str| {
            let refusals = signature::verify(trust, subject, &found).unwrap_err();
            assert_eq!(refusals[0].reason.code, cause, "{refusals:?}");
            assert!(in_words(&refusals).contains(words), "{refusals:?}");
        };
        let strict = trusting(statement());
        refused(&strict, &Subject { location: None, ..subject }, Cause::Unsupported, "in a repository");
        refused(&strict, &Subject { digest: &Digest::of(b"x"), ..subject }, Cause::Integrity, "not over");
        refused(&strict, &Subject { now: 0, ..subject }, Cause::AuthenticTimestamp, "not yet valid");
        refused(
            &trusting(with("registryScopes", json!(["a.b/c"]))),
            &subject,
            Cause::NobodyTrusted,
            "registryScopes",
        );
        let mut audit = with("trustStores", json!(["ca:other"]));
        audit["signatureVerification"]["level"] = "audit".into();
        refused(&trusting(audit), &subject, Cause::Authenticity, "only logs that (level audit)");
        let named = std::fs::read_to_string(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cosign/p256.pub"),
        );
        let key = addonfs::policy::trust::keys::PublicKey::from_pem(named.unwrap().as_bytes()).unwrap();
        let keys = vec![addonfs::policy::trust::TrustedKey { name: "p256.pub".into(), key }];
        refused(
            &Trust { keys, ..Trust::default() },
            &subject,
            Cause::NobodyTrusted,
            "trust.notation.trust_policy",
        );
    });
}

/// Signs an image in the session's registry as `change` says, and lists the signature.
fn sign(s: &Session, name: &str, digest: &str, change: impl Fn(&mut Value)) {
    sign_as(s, name, digest, change, Draft::good());
}

fn sign_as(s: &Session, name: &str, digest: &str, change: impl Fn(&mut Value), draft: Draft) {
    let (digest, place): (Digest, _) =
        (digest.parse().unwrap(), repository(&s.host(), &format!("org/{name}"), &quick()));
    runtime().block_on(async {
        let (media_type, image) = place.manifest(&digest).await.unwrap();
        let mut target = json!({"mediaType": media_type, "digest": digest, "size": image.len()});
        change(&mut target);
        let mut draft = Draft { chain: chain("crl"), ..draft };
        draft.payload = json!({"targetArtifact": target}).to_string().into_bytes();
        let envelope = draft.jws().to_string().into_bytes();
        let (config, layer) = (
            described("application/vnd.oci.empty.v1+json", b"{}"),
            described("application/jose+json", &envelope),
        );
        place.put_blob(&config, BlobContent::bytes(&b"{}"[..])).await.unwrap();
        place.put_blob(&layer, BlobContent::bytes(envelope)).await.unwrap();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": ARTIFACT_TYPE,
            "config": config, "layers": [layer], "subject": target,
        });
        attach(&*place, &*place, &digest, ARTIFACT_TYPE, manifest.to_string().into_bytes()).await.unwrap();
    });
}

/// notation's files, with a statement for the session's images.
fn files(s: &Session, level: &str) {
    let mut one = with("registryScopes", json!([format!("{}/org/tools", s.host())]));
    one["signatureVerification"]["level"] = level.into();
    s.write("notation/trustpolicy.json", json!({"version": "1.0", "trustPolicies": [one]}).to_string());
    s.write("notation/truststore/x509/ca/acme/root.pem", fixture("trust-store/x509/ca/acme/root.pem"));
    s.write("notation/crls/signing.crl", fixture("crls/good.crl"));
}

fn configure(s: &Session, image: &str) {
    s.write(
        "addonfs.yaml",
        format!(
            "cache: {{keep_free: 0}}\npolicy:\n  allowed_registries: ['{}']\n  trust:\n    notation: {{trust_policy: \
             notation/trustpolicy.json, trust_store: notation/truststore, crls: notation/crls}}\n\
             sources: [{{name: tools, type: oci, image: '{image}'}}]\n",
            s.host()
        ),
    );
}

#[test]
fn an_image_is_shown_by_its_notary_signature() {
    let s = Session::new();
    s.build("tools", TOOLS);
    let digest = s.push("tools");
    files(&s, "strict");
    configure(&s, &s.reference("tools", &digest));
    assert!(s.mount_with(&["--strict"]).refused().contains("image.signature.required"));
    s.umount();
    sign(&s, "tools", &digest, |_| {});
    s.ready();
    let verification = &s.source("tools")["verification"];
    assert_eq!(
        (&verification["state"], &verification["by"]["kind"]),
        (&"verified".into(), &"notation".into())
    );
    assert_eq!(verification["by"]["statement"], "all");
    assert_eq!(s.json("tools/addon.json")["verification"]["by"]["scheme"], "notary.x509");
    let image = s.reference("tools", &digest);
    let said = s.addonfs(["verify", "--config", "addonfs.yaml", &image]).ok();
    assert!(said.contains("CN=acme revocable") && said.contains("by the statement all"), "{said}");
    // A newer revocation list takes it away at the next reload, and another one gives it back.
    s.write("notation/crls/signing.crl", fixture("crls/revoked.crl"));
    let refused = s.addonfs(["reload", "--strict"]).refused();
    assert!(refused.contains("is revoked since 2021-01-01"), "{refused}");
    s.sh("! test -e $M/tools/addon.json").ok();
    s.write("notation/crls/signing.crl", fixture("crls/good.pem"));
    s.addonfs(["reload", "--strict"]).ok();
    s.cat("tools/addon.json");
    std::fs::remove_file(s.path("notation/crls/signing.crl")).unwrap();
    let refused = s.addonfs(["reload", "--strict"]).refused();
    assert!(refused.contains("there is no revocation list of its issuer"), "{refused}");
    files(&s, "permissive");
    std::fs::remove_file(s.path("notation/crls/signing.crl")).unwrap();
    s.addonfs(["reload", "--strict"]).ok();
    assert_eq!(s.source("tools")["verification"]["by"]["findings"][0]["check"], "revocation");
    let said = s.addonfs(["verify", "--config", "addonfs.yaml", &image]).ok();
    assert!(said.contains("finding    revocation: whether"), "{said}");
    s.umount();
    // Known from disk, and judged again: the certificate's authority is no longer trusted.
    std::fs::remove_file(s.path("notation/truststore/x509/ca/acme/root.pem")).unwrap();
    let refused = s.mount_with(&["--strict"]).refused();
    assert!(refused.contains("trust store ca:acme holds no certificate"), "{refused}");
    s.umount();
}

/// What is signed beside the digest is compared with the manifest once that is there.
#[test]
fn an_image_that_was_signed_as_something_else_is_refused() {
    let s = Session::new();
    s.build("tools", TOOLS);
    let digest = s.push("tools");
    files(&s, "strict");
    configure(&s, &s.reference("tools", &digest));
    sign(&s, "tools", &digest, |target| {
        target["mediaType"] = "application/vnd.oci.image.index.v1+json".into()
    });
    let refused = s.mount_with(&["--strict"]).refused();
    assert!(refused.contains("image.signature.required") && refused.contains("image.index"), "{refused}");
    s.umount();
}

/// A signature that expires while its image is shown takes it out of the tree, without anybody asking.
#[test]
fn an_image_goes_when_its_signature_expires() {
    let s = Session::new();
    s.build("tools", TOOLS);
    let digest = s.push("tools");
    files(&s, "strict");
    configure(&s, &s.reference("tools", &digest));
    // Long enough for a slow machine to mount.
    let expiry = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap() + Duration::from_secs(15);
    let mut draft = Draft::good();
    draft.set(EXPIRY, expiry.format(&Rfc3339).unwrap());
    draft.critical(&[SCHEME, EXPIRY]);
    sign_as(&s, "tools", &digest, |_| {}, draft);
    s.ready();
    s.cat("tools/addon.json");
    eventually("the image goes", || (!s.mount_point().join("tools/addon.json").exists()).then_some(()));
    assert!(OffsetDateTime::now_utc() >= expiry, "not before its time");
    let source = s.source("tools");
    assert_eq!(source["verification"]["refusals"][0]["code"], "expiry", "{source}");
    s.umount();
}

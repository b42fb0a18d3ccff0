//! Certificate chains.

use addonfs::policy::trust::notation::Check;

use super::make::{Draft, chains, judge, refused, statement, trust};

#[test]
fn chains_must_be_what_the_specification_demands() {
    let accepted = [
        "good",
        "for nothing said",
        "leaf is no CA, said",
        "unknown critical",
        "CA critical by hand",
        "two organizations",
    ];
    let rows = [
        ("good, no middle", "names another issuer"),
        ("good, no root", "self-signed root"),
        ("good, no leaf", "not by the signing certificate"),
        ("swapped", "not by the signing certificate"),
        ("reordered above", "names another issuer"),
        ("one more", "not the last of its chain"),
        ("root twice", "not the last of its chain"),
        ("another root", "names another issuer"),
        ("sha1", "signed with SHA-1"),
        ("path length", "more than its path length"),
        ("other key", "not by the signing certificate"),
        ("key P-384", "implies ES384"),
        ("key P-224", "neither RSA nor ECDSA"),
        ("key RSA 1024", "RSA of 1024 bits"),
        ("key RSA 2560", "RSA of 2560 bits"),
        ("for serverAuth", "serverAuth"),
        ("for clientAuth", "clientAuth"),
        ("for emailProtection", "emailProtection"),
        ("for anything", "anyExtendedKeyUsage"),
        ("for timestamps", "timeStamping"),
        ("for OCSP", "OCSPSigning"),
        ("no key usage", "has no key usage"),
        ("key usage not critical", "is not critical"),
        ("key usage cRLSign", "cRLSign"),
        ("key usage keyAgreement", "keyAgreement"),
        ("key usage no signature", "must not sign"),
        ("leaf is CA", "certificate authority's"),
        ("CA not said", "no basic constraints"),
        ("CA false", "not marked (critical) as a certificate authority's"),
        ("CA not critical", "not marked (critical) as a certificate authority's"),
        ("CA no key usage", "has no key usage"),
        ("CA no keyCertSign", "must not sign certificates"),
    ];
    let elsewhere = ["foreign", "pss", "expired", "not yet valid", "CA expired", "other country"];
    let trust = trust(statement());
    let all = chains("chains.json");
    assert_eq!(all.len(), accepted.len() + rows.len() + elsewhere.len());
    for name in accepted {
        let draft = Draft { chain: all[name].clone(), ..Draft::good() };
        for (media_type, envelope) in draft.both() {
            match judge(&trust, media_type, &envelope) {
                Ok(_) => assert_ne!(name, "two organizations"),
                // Whose it is cannot be told: two values for one attribute.
                Err(failures) => assert!(name == "two organizations", "{name}: {failures:?}"),
            }
        }
    }
    for (name, words) in rows {
        let draft = Draft { chain: all[name].clone(), ..Draft::good() };
        for (media_type, envelope) in draft.both() {
            refused(name, judge(&trust, media_type, &envelope), Check::Integrity, words);
        }
    }
    // What is outside of the signed part of a certificate must not say another algorithm than inside.
    let mut chain = all["good"].clone();
    let name = [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let at = chain[0].windows(name.len()).rposition(|window| window == name).unwrap();
    chain[0][at + 7] = 3;
    for (media_type, envelope) in (Draft { chain, ..Draft::good() }).both() {
        refused(
            "two algorithms",
            judge(&trust, media_type, &envelope),
            Check::Integrity,
            "two signature algorithms",
        );
    }
    let hundred = Draft { chain: vec![all["good"][0].clone(); 100], ..Draft::good() };
    for (media_type, envelope) in hundred.both() {
        refused("a hundred", judge(&trust, media_type, &envelope), Check::Integrity, "at most 10");
    }
    let broken = Draft { chain: vec![vec![0x30, 3, 1, 2, 3]], ..Draft::good() };
    for (media_type, envelope) in broken.both() {
        refused("no certificate", judge(&trust, media_type, &envelope), Check::Integrity, "malformed");
    }
    let large = Draft { chain: vec![vec![0; 10_000]], ..Draft::good() };
    for (media_type, envelope) in large.both() {
        refused(
            "a large certificate",
            judge(&trust, media_type, &envelope),
            Check::Integrity,
            "at most 8192",
        );
    }
}

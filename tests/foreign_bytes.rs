//! Parsers of foreign bytes against a corpus and its mutations: the same every time, and quick. What breaks one is
//! added to `tests/fuzz/corpus`.
#![allow(clippy::unwrap_used)]

#[path = "fuzz/targets.rs"]
mod targets;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use addonfs::fetch::index::build::index_tar;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use targets::TARGETS;

/// Mutations of each seed.
const ROUNDS: u64 = 1_500;

/// Inputs that are files have their folder; archives and indexes are made, so that no binary has to be kept.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "tar" => vec![archive("gnu"), archive("pax"), labelled()],
        "layer_index" => {
            let mut index = indexed(&archive("gnu"));
            index.truncate(index.len() - 32);
            let mut with_xattrs = indexed(&labelled());
            with_xattrs.truncate(with_xattrs.len() - 32);
            vec![index, with_xattrs]
        }
        _ => {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
            let kept = fs::read_dir(&folder).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
            kept.chain(by_notation(target)).chain(by_cosign(target)).collect()
        }
    }
}

/// What cosign made: kept once, as fixtures of other tests.
fn by_cosign(target: &str) -> Vec<Vec<u8>> {
    let names: &[&str] = match target {
        "sigstore_bundle" => &["cosign3-keyless-log1.bundle.json", "cosign3-keyless-log2.bundle.json"],
        "sigstore_layer" => &["cosign2-keyless-stamped.layer.json"],
        "trusted_root" => &["trusted_root.json"],
        _ => &[],
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sigstore");
    names.iter().map(|name| fs::read(folder.join(name)).unwrap()).collect()
}

/// What notation, openssl and Go made: kept once, as fixtures of other tests.
fn by_notation(target: &str) -> Vec<Vec<u8>> {
    let names: &[&str] = match target {
        "notation_jws" => &["envelopes/full.jws", "envelopes/authority.jws"],
        "notation_cose" => &["envelopes/full.cose", "envelopes/rsa2048.cose"],
        "notation_timestamp" => {
            let read = fs::read(fixture("tokens.json")).unwrap();
            let tokens: BTreeMap<String, String> = serde_json::from_slice(&read).unwrap();
            return ["good", "below"].map(|name| STANDARD.decode(&tokens[name]).unwrap()).to_vec();
        }
        "notation_revocation_list" => {
            &["crls/held.crl", "crls/here.crl", "crls/changes-removed.crl", "crls/good.pem"]
        }
        "notation_trust_store" => {
            &["trust-store/x509/ca/acme/root.pem", "trust-store/x509/ca/alone/alone.crt"]
        }
        _ => &[],
    };
    names.iter().map(|name| fs::read(fixture(name)).unwrap()).collect()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/notation").join(name)
}

/// Long names, a hole, links and a fifo, as GNU tar writes them.
fn archive(format: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let long = "n".repeat(140);
    let script = format!(
        "mkdir -p d && echo content > d/f && ln d/f d/hard && ln -s ../{long} d/soft && touch d/{long} && \
         truncate -s 100000 d/hole && echo end >> d/hole && mkfifo d/fifo && tar -cS --format={format} --owner=1 --group=2 d"
    );
    let output =
        std::process::Command::new("sh").args(["-c", &script]).current_dir(dir.path()).output().unwrap();
    assert!(output.stdout.len() > 5000, "{format}: {}", String::from_utf8_lossy(&output.stderr));
    // two blocks of zeros end an archive; the rest only dilutes the mutations
    let end = output.stdout.iter().rposition(|&byte| byte != 0).unwrap();
    output.stdout[..(end / 512 + 3) * 512].to_vec()
}

/// A file with capabilities, an access control list and a note, as GNU tar writes them.
fn labelled() -> Vec<u8> {
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions) in [(1_u16, 6_u16), (2, 4), (4, 0), (16, 4), (32, 0)] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(1000_u32.to_le_bytes());
    }
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions([
        ("SCHILY.xattr.user.note", &b"of a file"[..]),
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.system.posix_acl_access", &list),
    ])
    .unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    tar.append_data(&mut header, "a", &b"x"[..]).unwrap();
    let tar = tar.into_inner().unwrap();
    assert!(addonfs::fs::image::merge::Merge::new(0).apply(index_tar(&tar).unwrap().entries()).is_ok());
    tar
}

fn indexed(tar: &[u8]) -> Vec<u8> {
    index_tar(tar).unwrap().as_bytes().to_vec()
}

/// xorshift64: the same run every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).unwrap()
    }
}

fn mutated(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let (at, len) = (random.below(bytes.len()), random.below(64));
        let end = bytes.len().min(at + len);
        match random.below(6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            3 => bytes[at..end].fill([0, 0xff, b'9', b'['][random.below(4)]),
            _ if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            _ => {}
        }
    }
    bytes
}

#[test]
fn parsers_bear_mutations_of_what_they_accept() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no corpus");
        for (number, seed) in seeds.iter().enumerate() {
            target(seed);
            let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ number as u64);
            for round in 0..ROUNDS {
                let bytes = mutated(seed, &mut random);
                let borne = std::panic::catch_unwind(|| target(&bytes));
                assert!(
                    borne.is_ok(),
                    "{name}, seed {number}, round {round}: {:?}",
                    bytes.escape_ascii().to_string()
                );
            }
        }
    }
}

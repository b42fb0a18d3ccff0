//! `trust:` of the policy and of sources: whom it names, and which files hold the rest.
//!
//! In: the section. Out: [`TrustDraft`], whose files somebody else reads ([`TrustDraft::resolve`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::parse::ReadFile;
use crate::policy::code::{Code, Denied};
use crate::policy::fields::{Field, Fields, Report};
use crate::policy::trust::keys::PublicKey;
use crate::policy::trust::notation::NotationTrust;
use crate::policy::trust::notation::load::{self, NotationPaths};
use crate::policy::trust::sigstore::identity::Identity;
use crate::policy::trust::sigstore::root::TrustedRoot;
use crate::policy::trust::{Trust, TrustedKey};

/// Most keys of one list, those of folders counted: each signature is tried with all of them.
const MAX_KEYS: usize = 100;
/// Most identities of one list.
const MAX_IDENTITIES: usize = 100;

/// The section before its files are read.
#[derive(Debug, Default)]
pub(super) struct TrustDraft {
    /// As written, and where the file or folder is.
    keys: Vec<(String, PathBuf)>,
    index_keys: Vec<(String, PathBuf)>,
    identities: Vec<Identity>,
    trusted_root: Option<(String, PathBuf)>,
    require_log: bool,
    notation: Option<NotationPaths>,
}

/// Takes the section.
pub(super) fn section(field: &Field<'_>, base: &Path, report: &mut Report) -> Option<TrustDraft> {
    let mut fields = field.fields(report)?;
    let mut trust = TrustDraft::default();
    let mut files = |key| -> Vec<(String, PathBuf)> {
        let names = fields.take(key).and_then(|f| f.texts(report)).unwrap_or_default();
        names.into_iter().map(|name| (name.clone(), base.join(name))).collect()
    };
    (trust.keys, trust.index_keys) = (files("keys"), files("index_keys"));
    if let Some(field) = fields.take("identities") {
        trust.identities = identities(&field, report);
    }
    trust.trusted_root = path(&mut fields, "trusted_root", base, report);
    trust.require_log = fields.take("require_log").and_then(|f| f.flag(report)).unwrap_or(false);
    trust.notation = fields.take("notation").and_then(|f| notation(&f, base, report));
    fields.finish(report);
    Some(trust)
}

fn path(
    fields: &mut Fields<'_>,
    key: &'static str,
    base: &Path,
    report: &mut Report,
) -> Option<(String, PathBuf)> {
    let name = fields.take(key)?.text(report)?;
    let path = base.join(&name);
    Some((name, path))
}

/// A list without an entry would be a mistake that lets nobody in; each entry has both expressions.
fn identities(field: &Field<'_>, report: &mut Report) -> Vec<Identity> {
    let items = field.items(report).unwrap_or_default();
    if items.is_empty() || items.len() > MAX_IDENTITIES {
        let words = format!("{} identities, expected 1 to {MAX_IDENTITIES}", items.len());
        report.problem(field, words, "write [{issuer: ^…$, subject: ^…$}]");
    }
    items.iter().take(MAX_IDENTITIES).filter_map(|item| identity(item, report)).collect()
}

fn identity(item: &Field<'_>, report: &mut Report) -> Option<Identity> {
    let mut fields = item.fields(report)?;
    let mut text = |key| fields.take(key).and_then(|f| f.text(report)).unwrap_or_default();
    let (issuer, subject) = (text("issuer"), text("subject"));
    fields.finish(report);
    let identity = match Identity::new(&issuer, &subject) {
        Ok(identity) => identity,
        Err(reason) => {
            report.problem(item, format!("trust.identities {reason}"), "");
            return None;
        }
    };
    if let Some(loose) = identity.loose() {
        let words = format!("{loose} also matches where the expression stands in the middle");
        report.warn(item, words, "write ^ before and $ behind it, and \\. for a dot");
    }
    Some(identity)
}

fn notation(field: &Field<'_>, base: &Path, report: &mut Report) -> Option<NotationPaths> {
    let mut fields = field.fields(report)?;
    let mut file = |key| path(&mut fields, key, base, report).map(|(_, path)| path);
    let (trust_policy, trust_store, crls) = (file("trust_policy"), file("trust_store"), file("crls"));
    fields.finish(report);
    if trust_policy.is_none() {
        report.problem(field, "trust.notation names no trust policy", "write trust_policy: trustpolicy.json");
    }
    Some(NotationPaths { trust_policy: trust_policy?, trust_store, crls })
}

impl TrustDraft {
    /// Reads the files.
    pub(super) fn resolve(self, read: ReadFile<'_>) -> Result<Trust, Denied> {
        let root = self.trusted_root.map(|(name, path)| load_root(&name, &path, read)).transpose()?;
        Ok(Trust {
            keys: load_keys("trust.keys", self.keys, read)?,
            index_keys: load_keys("trust.index_keys", self.index_keys, read)?,
            identities: self.identities,
            root: root.unwrap_or_default(),
            require_log: self.require_log,
            notation: self.notation.map(|paths| load_notation(&paths, read)).transpose()?,
        })
    }
}

fn load_keys(
    list: &str,
    named: Vec<(String, PathBuf)>,
    read: ReadFile<'_>,
) -> Result<Vec<TrustedKey>, Denied> {
    let mut keys = Vec::new();
    for (name, path) in named {
        if name.ends_with('/') {
            for file in public_keys_of(list, &path, read)? {
                keys.push(load_key(list, format!("{name}{file}"), &path.join(&file), read)?);
            }
        } else {
            keys.push(load_key(list, name, &path, read)?);
        }
    }
    if keys.len() > MAX_KEYS {
        let words = format!("{list} has {} keys, and at most {MAX_KEYS} are tried", keys.len());
        return Err(Denied::new(Code::Config, words));
    }
    Ok(keys)
}

fn load_key(list: &str, name: String, path: &Path, read: ReadFile<'_>) -> Result<TrustedKey, Denied> {
    let refuse = |reason: String| {
        Denied::new(Code::Config, format!("the key file {} of {list} {reason}", path.display()))
    };
    let text = read(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let key = PublicKey::from_pem(&text)
        .map_err(|reason| refuse(format!("{reason} (the name of a folder of keys ends in /)")))?;
    Ok(TrustedKey { name, key })
}

/// The names of the `*.pub` files of a folder. Others beside them, private keys and notes, are not looked at.
fn public_keys_of(list: &str, folder: &Path, read: ReadFile<'_>) -> Result<Vec<String>, Denied> {
    let refuse = |reason: String| {
        Denied::new(Code::Config, format!("the folder {} of {list} {reason}", folder.display()))
    };
    let listing = read(folder).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let listing =
        String::from_utf8(listing).map_err(|_| refuse("holds names that are not UTF-8".to_owned()))?;
    // A mounted secret of Kubernetes is a folder of links.
    let names = listing.lines().map(|line| line.strip_suffix('@').unwrap_or(line));
    let names: Vec<String> = names.filter(|name| name.ends_with(".pub")).map(str::to_owned).collect();
    if names.is_empty() {
        return Err(refuse("holds no *.pub".to_owned()));
    }
    Ok(names)
}

fn load_root(name: &str, path: &Path, read: ReadFile<'_>) -> Result<TrustedRoot, Denied> {
    let refuse = |reason: String| {
        Denied::new(Code::Config, format!("the file {} of trust.trusted_root {reason}", path.display()))
    };
    let bytes = read(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    TrustedRoot::from_json(&bytes).map(|root| root.named(name)).map_err(refuse)
}

fn load_notation(paths: &NotationPaths, read: ReadFile<'_>) -> Result<Arc<NotationTrust>, Denied> {
    match load::load(paths, read) {
        Ok(trust) => Ok(Arc::new(trust)),
        Err(reason) => Err(Denied::new(Code::Config, format!("trust.notation: {reason}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::parse::load;
    use super::*;
    use crate::policy::fields::Dialect;
    use crate::policy::rules::Policy;
    use crate::policy::trust::keys::PrivateKey;
    use crate::policy::yaml::Problem;

    fn fixture(name: &str) -> Vec<u8> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/sigstore");
        std::fs::read(format!("{folder}/{name}")).unwrap()
    }

    /// Loads a policy's `trust:`, with files that are there by these names.
    fn trust(
        section: &str,
        files: &dyn Fn(&str) -> Option<Vec<u8>>,
    ) -> Result<(Policy, Vec<Problem>), Denied> {
        let read = |path: &Path| {
            let name = path.strip_prefix("/etc/addonfs").unwrap().to_str().unwrap();
            files(name).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        let text = format!("policy: {{trust: {section}}}");
        let loaded = load("f", text.as_bytes(), Dialect::Addonfs, Path::new("/etc/addonfs"), &read)?;
        Ok((loaded.policy, loaded.warnings))
    }

    /// Case VF-07: of a folder the public keys, and nothing else that lies in it.
    #[test]
    fn every_public_key_of_a_folder() {
        let files = |name: &str| match name {
            "keys/" | "keys" => Some(b"a.pub\nb.key\nc.pub@\nnotes.txt\nold.pub/\n".to_vec()),
            "keys/a.pub" => Some(fixture("p256.pub")),
            "keys/c.pub" => Some(fixture("ed25519.pub")),
            "rsa.pub" => Some(fixture("rsa.pub")),
            "none/" | "none" => Some(b"b.key\n".to_vec()),
            "bad/" | "bad" => Some(b"x.pub\n".to_vec()),
            "bad/x.pub" => Some(b"x".to_vec()),
            _ => None,
        };
        let (policy, _) = trust("{keys: [rsa.pub, keys/]}", &files).unwrap();
        let named = |trust: &Trust| trust.keys.iter().map(|key| key.name.clone()).collect::<Vec<_>>();
        assert_eq!(named(&policy.trust), ["rsa.pub", "keys/a.pub", "keys/c.pub"]);
        assert_eq!(policy.trust.keys[2].key.kind(), "Ed25519");
        for (section, word) in [
            ("{keys: [none/]}", "no *.pub"),
            ("{keys: [bad/]}", "bad/x.pub"),
            ("{keys: [keys]}", "ends in /"),
            ("{index_keys: [gone/]}", "trust.index_keys"),
        ] {
            let refused = trust(section, &files).unwrap_err();
            assert!(refused.message.contains(word), "{section}: {refused}");
        }
    }

    #[test]
    fn identities_and_a_root() {
        let files = |name: &str| match name {
            "root.json" => Some(fixture("trusted_root.json")),
            "bad.json" => Some(b"{}".to_vec()),
            "long.json" => Some(vec![b' '; (1 << 20) + 1]),
            _ => None,
        };
        let (policy, warnings) = trust(
            "{identities: [{issuer: ^a$, subject: ^b$}, {issuer: c, subject: ^d$}], trusted_root: root.json}",
            &files,
        )
        .unwrap();
        assert!(
            policy.trust.identities[0].matches("a", "b") && policy.trust.identities[1].matches("xcx", "d")
        );
        assert_eq!(policy.trust.root.name(), Some("root.json"));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].message.contains("issuer"), "{warnings:?}");
        for name in ["bad.json", "long.json"] {
            let refused = trust(&format!("{{trusted_root: {name}}}"), &files).unwrap_err();
            assert!(refused.message.contains(name) && refused.message.contains("trusted_root"), "{refused}");
        }
    }

    /// A source's own signers stand instead of all of the policy's, its root and its demand beside them.
    #[test]
    fn what_a_source_says_itself() {
        let files = |name: &str| (name == "root.json").then(|| fixture("trusted_root.json"));
        let (own, _) =
            trust("{identities: [{issuer: ^a$, subject: ^b$}], trusted_root: root.json}", &files).unwrap();
        let key = PrivateKey::generate().unwrap().public().unwrap();
        let keys = vec![TrustedKey { name: "k".to_owned(), key }];
        let host = Trust { keys: keys.clone(), index_keys: keys, ..Trust::default() };
        let both = host.for_source(Some(&own.trust));
        assert!(both.keys.is_empty() && both.identities.len() == 1 && both.index_keys.len() == 1);
        assert!(!both.root.is_public());
        let log = host.for_source(Some(&Trust { require_log: true, ..Trust::default() }));
        assert!(log.require_log && log.keys.len() == 1 && log.root.is_public());
        let indexes = both.for_indexes();
        assert!(indexes.keys.len() == 1 && indexes.identities.is_empty() && indexes.notation.is_none());
    }
}

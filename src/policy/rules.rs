//! The rules of this host: profile, registries, trust, ceilings and what jobs may have beyond the strict defaults.
//!
//! In: the `policy:` section, parsed. Out: [`Policy`], which answers one question a method and knows no source.
//! Fails closed: what is not said is refused under `secure`.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::addon::Resources;
use super::code::{Code, Denied};
use super::reference::{self, Location};
use super::trust::Trust;

/// How strict the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Allowed registries only, a valid signature, read-only root, no network, no capabilities.
    #[default]
    Secure,
    /// A missing signature is a finding, not a refusal.
    Permissive,
    /// Few checks; for development.
    Disabled,
}

/// What becomes of an image without a valid signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyMode {
    /// Refused.
    Required,
    /// Shown with a finding.
    Permissive,
    /// Not looked at.
    Disabled,
}

/// Which registries may be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedRegistries(Option<Vec<Allowed>>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Allowed {
    /// `*`.
    All,
    /// A host, with all that is on it or what is below a namespace.
    Host { host: String, namespace: Option<String> },
}

/// What policy grants to jobs beyond the strict defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Overrides {
    /// Networks a job may be given, such as `host`.
    pub network: Vec<String>,
    /// Capabilities a job may be given, such as `CAP_NET_BIND_SERVICE`.
    pub caps: Vec<String>,
    /// A writable root file system under `secure`.
    pub rootfs_writable: bool,
    /// Jobs inherit the daemon's environment.
    pub env_inheritance: bool,
    /// Jobs get a `DATA_DIR` that outlives the run.
    pub data_dir: bool,
}

/// The rules of this host.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// How strict it is.
    pub profile: Profile,
    /// `policy.verify_signatures`, which overrides what the profile says.
    pub verify_signatures: Option<VerifyMode>,
    /// Which registries may be used.
    pub allowed_registries: AllowedRegistries,
    /// Whose signatures count.
    pub trust: Trust,
    /// Limits that no job exceeds.
    pub ceilings: Resources,
    /// What jobs may have beyond the defaults.
    pub overrides: Overrides,
}

impl Policy {
    /// What becomes of an image without a valid signature.
    pub fn verify_mode(&self) -> VerifyMode {
        self.verify_signatures.unwrap_or(match self.profile {
            Profile::Secure => VerifyMode::Required,
            Profile::Permissive => VerifyMode::Permissive,
            Profile::Disabled => VerifyMode::Disabled,
        })
    }

    /// Whether images from this place may be used at all.
    pub fn check_registry(&self, location: &Location) -> Result<(), Denied> {
        let (allowed, why) = match &self.allowed_registries.0 {
            None => (self.profile != Profile::Secure, "under profile secure, no list means none"),
            // The bundles of flowd write an empty list for "every registry"; under secure that must be said.
            Some(list) if list.is_empty() => (self.profile != Profile::Secure, "the list is empty"),
            Some(list) => (list.iter().any(|entry| entry.covers(location)), "it is not in the list"),
        };
        if allowed {
            return Ok(());
        }
        let name = location.registry_name();
        Err(Denied::new(
            Code::ImageRegistryNotAllowed,
            format!(
                "registry {name} of {location} is not allowed ({why}): add {name:?} to policy.allowed_registries"
            ),
        ))
    }
}

impl AllowedRegistries {
    /// The list as configured. `None` (not said) and an empty list mean none under `secure`, all otherwise.
    pub fn parse(entries: Option<&[String]>) -> Result<Self, Denied> {
        let parsed =
            entries.map(|list| list.iter().map(|entry| Allowed::parse(entry)).collect::<Result<_, _>>());
        Ok(Self(parsed.transpose()?))
    }
}

impl Allowed {
    /// `*`, `oci-layout`, a host, or a host and a namespace; Docker Hub's short names are understood.
    fn parse(entry: &str) -> Result<Self, Denied> {
        let bad = |reason: &str| {
            let words = format!(
                "allowed registry {entry:?}: {reason}; expected a host, host/namespace, oci-layout or '*'"
            );
            Denied::new(Code::Config, words)
        };
        if entry == "*" {
            return Ok(Self::All);
        }
        if entry.contains("://") {
            return Err(bad("it must not have a scheme"));
        }
        if entry.contains('*') {
            return Err(bad("a pattern is not understood, only '*' alone"));
        }
        let entry = entry.trim_end_matches('/');
        let (host, namespace) = match entry.split_once('/') {
            // `org/team` is a namespace of Docker Hub, as it is in a reference.
            Some(_) => {
                let (host, namespace) = reference::split_host(entry);
                (host, Some(namespace.to_owned()))
            }
            None => (reference::normal_host(entry), None),
        };
        reference::check_host(&host).map_err(|reason| bad(&reason))?;
        if let Some(namespace) = &namespace {
            reference::check_repository(namespace).map_err(|reason| bad(&reason))?;
        }
        Ok(Self::Host { host, namespace })
    }

    fn covers(&self, location: &Location) -> bool {
        match (self, location) {
            (Self::All, _) => true,
            (Self::Host { host, namespace: None }, _) => host == location.registry_name(),
            (
                Self::Host { host, namespace: Some(namespace) },
                Location::Registry { host: its, repository },
            ) => host == its && below(repository, namespace),
            (Self::Host { namespace: Some(_), .. }, Location::Layout { .. }) => false,
        }
    }
}

/// Whether `repository` is `namespace` or lies under it, by whole elements.
fn below(repository: &str, namespace: &str) -> bool {
    repository.strip_prefix(namespace).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl FromStr for Profile {
    type Err = Denied;

    fn from_str(text: &str) -> Result<Self, Denied> {
        match text {
            "secure" => Ok(Self::Secure),
            "permissive" => Ok(Self::Permissive),
            "disabled" => Ok(Self::Disabled),
            _ => {
                let words = format!("profile {text:?} is unknown: use secure, permissive or disabled");
                Err(Denied::new(Code::Policy, words))
            }
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secure => "secure",
            Self::Permissive => "permissive",
            Self::Disabled => "disabled",
        })
    }
}

impl fmt::Display for AllowedRegistries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(list) = &self.0 else { return f.write_str("(not said)") };
        for (at, entry) in list.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            match entry {
                Allowed::All => write!(f, "{comma}*")?,
                Allowed::Host { host, namespace: None } => write!(f, "{comma}{host}")?,
                Allowed::Host { host, namespace: Some(namespace) } => write!(f, "{comma}{host}/{namespace}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::reference::ImageRef;

    fn allowed(profile: Profile, list: Option<&[&str]>, image: &str) -> bool {
        let list: Option<Vec<String>> = list.map(|l| l.iter().map(|e| (*e).to_owned()).collect());
        let allowed_registries = AllowedRegistries::parse(list.as_deref()).unwrap();
        let policy = Policy { profile, allowed_registries, ..Policy::default() };
        let checked = policy.check_registry(&image.parse::<ImageRef>().unwrap().location);
        if let Err(denied) = &checked {
            assert_eq!(denied.code, Code::ImageRegistryNotAllowed);
        }
        checked.is_ok()
    }

    /// Case RP-07 (the registry of a short name) and the rule for what is not said.
    #[test]
    fn registries() {
        use Profile::{Disabled, Permissive, Secure};
        for (profile, list, image, expected) in [
            (Secure, None, "ghcr.io/a", false),
            (Permissive, None, "ghcr.io/a", true),
            (Disabled, None, "ghcr.io/a", true),
            (Secure, Some(&[][..]), "ghcr.io/a", false),
            (Permissive, Some(&[][..]), "ghcr.io/a", true),
            (Permissive, Some(&["quay.io"][..]), "ghcr.io/a", false),
            (Secure, Some(&["*"][..]), "ghcr.io/a", true),
            (Secure, Some(&["*"][..]), "oci:a", true),
            (Secure, Some(&["GHCR.io"][..]), "ghcr.io/a", true),
            (Secure, Some(&["localhost"][..]), "localhost:5000/a", false),
            (Secure, Some(&["localhost:5000"][..]), "localhost:5000/a", true),
            (Secure, Some(&["docker.io"][..]), "alpine:3.20", true),
            (Secure, Some(&["index.docker.io"][..]), "docker.io/library/alpine", true),
            (Secure, Some(&["library/alpine"][..]), "alpine:3.20", true),
            (Secure, Some(&["ghcr.io/org"][..]), "ghcr.io/org/a/b", true),
            (Secure, Some(&["ghcr.io/org/"][..]), "ghcr.io/org", true),
            (Secure, Some(&["ghcr.io/org"][..]), "ghcr.io/organ/a", false),
            (Secure, Some(&["ghcr.io"][..]), "ghcr.io.evil.com/a", false),
            (Secure, Some(&["oci-layout"][..]), "oci:/srv/x:v1", true),
            (Secure, Some(&["ghcr.io"][..]), "oci:/srv/x:v1", false),
        ] {
            assert_eq!(allowed(profile, list, image), expected, "{profile} {list:?} {image}");
        }
        for bad in ["https://ghcr.io", "*.io", "", "a b", "ghcr.io/Org", "ghcr.io/../x"] {
            assert!(AllowedRegistries::parse(Some(&[bad.to_owned()])).is_err(), "{bad}");
        }
    }

    /// Case RP-10.
    #[test]
    fn verify_mode_by_profile() {
        for (profile, mode) in [
            ("secure", VerifyMode::Required),
            ("permissive", VerifyMode::Permissive),
            ("disabled", VerifyMode::Disabled),
        ] {
            let profile: Profile = profile.parse().unwrap();
            let policy = Policy { profile, ..Policy::default() };
            assert_eq!(policy.verify_mode(), mode);
            let overridden = Policy { verify_signatures: Some(VerifyMode::Required), ..policy };
            assert_eq!(overridden.verify_mode(), VerifyMode::Required);
        }
        assert_eq!("strict".parse::<Profile>().unwrap_err().code, Code::Policy);
    }
}

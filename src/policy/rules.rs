//! The rules of this host: profile, registries, trust, ceilings and what jobs may have beyond the strict defaults.
//!
//! In: the `policy:` section and the policy file, parsed. Out: [`Policy`], which answers one question a method and
//! knows no source. Fails closed: what is not said is refused under `secure`.

pub mod profile;
pub mod registries;

use serde::Serialize;

use super::addon::Resources;
use super::code::{Code, Denied};
use super::reference::Location;
use super::trust::Trust;
pub use profile::{Profile, ProfileFrom};
pub use registries::AllowedRegistries;
use registries::Match;

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

/// What becomes of runs under way when policy stops trusting their image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUntrusted {
    /// They go on to their end; those that have not begun are canceled.
    #[default]
    Finish,
    /// They are canceled: TERM, their grace, KILL.
    Kill,
}

/// What policy grants beyond the strict defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Overrides {
    /// Profiles that somebody other than the policy may ask for although they are looser.
    pub profile: Vec<Profile>,
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
    /// Where that was said.
    pub profile_from: ProfileFrom,
    /// `policy.verify_signatures`, which overrides what the profile says.
    pub verify_signatures: Option<VerifyMode>,
    /// Which registries may be used.
    pub allowed_registries: AllowedRegistries,
    /// Whose signatures count.
    pub trust: Trust,
    /// What becomes of runs whose image is no longer trusted.
    pub on_untrusted: OnUntrusted,
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

    /// The same rules under another profile.
    #[must_use]
    pub fn under(&self, profile: Profile) -> Self {
        Self { profile, ..self.clone() }
    }

    /// An environment variable asks for a profile.
    pub fn ask_by_environment(&mut self, variable: &str, wanted: Profile) -> Result<(), Denied> {
        if wanted == self.profile {
            return Ok(());
        }
        let who = format!("the environment variable {variable}");
        self.profile = self.profile.asked(wanted, &self.overrides.profile, &who)?.profile;
        self.profile_from = ProfileFrom::Environment(variable.to_owned());
        Ok(())
    }

    /// Whether images from this place may be used at all; the words say which entry of the list covers it, or why
    /// none is needed.
    pub fn check_registry(&self, location: &Location) -> Result<String, Denied> {
        let strict = self.profile == Profile::Secure;
        let why_not = match self.allowed_registries.look(location) {
            Match::Entry(entry) => return Ok(format!("the entry {entry} covers it")),
            // The bundles of flowd write an empty list for "every registry"; under secure that must be said.
            Match::Empty if !strict => {
                return Ok(format!("the list is empty, which under profile {} means all", self.profile));
            }
            Match::Unsaid if !strict => {
                return Ok(format!("there is no list, which under profile {} means all", self.profile));
            }
            Match::Empty => "the list is empty",
            Match::Unsaid => "under profile secure, no list means none",
            Match::NoEntry => "it is not in the list",
        };
        let name = location.registry_name();
        Err(Denied::new(
            Code::ImageRegistryNotAllowed,
            format!(
                "registry {name} of {location} is not allowed ({why_not}): add {name:?} to policy.allowed_registries"
            ),
        ))
    }
}

impl VerifyMode {
    /// The word of the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Permissive => "permissive",
            Self::Disabled => "disabled",
        }
    }
}

impl OnUntrusted {
    /// The word of the configuration.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "finish" => Some(Self::Finish),
            "kill" => Some(Self::Kill),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::reference::ImageRef;

    /// What is not said, by profile.
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
            (Disabled, Some(&["quay.io"][..]), "ghcr.io/a", false),
            (Secure, Some(&["*"][..]), "ghcr.io/a", true),
        ] {
            let list: Option<Vec<String>> = list.map(|l| l.iter().map(|e| (*e).to_owned()).collect());
            let allowed_registries = AllowedRegistries::parse(list.as_deref()).unwrap();
            let policy = Policy { profile, allowed_registries, ..Policy::default() };
            let checked = policy.check_registry(&image.parse::<ImageRef>().unwrap().location);
            assert_eq!(checked.is_ok(), expected, "{profile} {list:?} {image}");
            if let Err(denied) = &checked {
                assert_eq!(denied.code, Code::ImageRegistryNotAllowed);
            }
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
            assert_eq!(mode.name(), profile_name_of(mode));
            let overridden = Policy { verify_signatures: Some(VerifyMode::Required), ..policy };
            assert_eq!(overridden.verify_mode(), VerifyMode::Required);
        }
    }

    fn profile_name_of(mode: VerifyMode) -> String {
        serde_json::to_value(mode).unwrap().as_str().unwrap().to_owned()
    }

    #[test]
    fn the_environment_tightens() {
        let mut policy = Policy { profile: Profile::Permissive, ..Policy::default() };
        assert!(policy.ask_by_environment("FLWD_PROFILE", Profile::Disabled).is_err());
        assert_eq!((policy.profile, &policy.profile_from), (Profile::Permissive, &ProfileFrom::Default));
        policy.ask_by_environment("FLWD_PROFILE", Profile::Secure).unwrap();
        assert_eq!(policy.profile, Profile::Secure);
        assert_eq!(policy.profile_from.to_string(), "$FLWD_PROFILE");
        policy.overrides.profile = vec![Profile::Disabled];
        assert!(policy.ask_by_environment("ADDONFS_PROFILE", Profile::Disabled).is_ok());
    }
}

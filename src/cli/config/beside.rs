//! What is said beside the configuration file: environment variables, and words of `addonfs mount`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::policy::code::{Code, Denied};
use crate::policy::rules::{Policy, Profile};

/// The variables that may hold a profile: our own, and flowd's.
const PROFILE: [&str; 2] = ["ADDONFS_PROFILE", "FLWD_PROFILE"];
/// The variable that names a policy file, as flowd has it.
pub(super) const POLICY_FILE: &str = "FLWD_POLICY_FILE";
/// The word without which no daemon works under profile disabled.
pub(crate) const ALLOW_DISABLED: &str = "--allow-disabled-policy";

/// What is said beside the file. A daemon that takes another's place gets the same.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Beside {
    /// A profile and the variable that asks for it.
    profile: Option<(Profile, String)>,
    /// The policy file that the environment names, absolute.
    pub(super) policy_file: Option<PathBuf>,
    /// Profile disabled may be in force.
    allow_disabled: bool,
}

impl Beside {
    /// What the environment says.
    pub(crate) fn of_environment() -> anyhow::Result<Self> {
        let policy_file = std::env::var_os(POLICY_FILE).filter(|name| !name.is_empty());
        Ok(Self {
            profile: profile_of_environment()?,
            policy_file: policy_file.map(std::path::absolute).transpose()?,
            allow_disabled: false,
        })
    }

    /// The same where profile disabled may be in force.
    pub(crate) fn allowing_disabled(self, allow_disabled: bool) -> Self {
        Self { allow_disabled, ..self }
    }

    /// Whether profile disabled may be in force.
    pub(crate) fn allows_disabled(&self) -> bool {
        self.allow_disabled
    }

    /// Applies the environment's profile.
    pub(super) fn apply(&self, policy: &mut Policy) -> Result<(), Denied> {
        match &self.profile {
            Some((profile, variable)) => policy.ask_by_environment(variable, *profile),
            None => Ok(()),
        }
    }

    /// Whether a daemon may work under this policy: `disabled` needs its own word at the start, and is otherwise no
    /// level that anybody may ask for. Returns what is worth saying.
    pub(crate) fn admit(&self, policy: &mut Policy) -> Result<Vec<String>, Denied> {
        let disabled = policy.profile == Profile::Disabled;
        if disabled && !self.allow_disabled {
            return Err(Denied::new(
                Code::Policy,
                format!(
                    "profile disabled (by {}) checks next to nothing and is for development: `addonfs mount \
                     {ALLOW_DISABLED}` lets it be, or choose secure or permissive",
                    policy.profile_from
                ),
            ));
        }
        let mut warnings = Vec::new();
        if disabled {
            warnings.push(format!("profile disabled (by {}): images are not checked", policy.profile_from));
        }
        let named = policy.overrides.profile.len();
        policy.overrides.profile.retain(|profile| self.allow_disabled || *profile != Profile::Disabled);
        if policy.overrides.profile.len() < named {
            warnings.push(format!(
                "overrides.profile names disabled, which nobody may ask for without `addonfs mount {ALLOW_DISABLED}`"
            ));
        }
        Ok(warnings)
    }
}

/// The profile that the environment asks for, and the variable that says so.
pub(crate) fn profile_of_environment() -> anyhow::Result<Option<(Profile, String)>> {
    profile_of(|name| std::env::var_os(name))
}

fn profile_of(get: impl Fn(&str) -> Option<std::ffi::OsString>) -> anyhow::Result<Option<(Profile, String)>> {
    let mut found: Option<(Profile, String)> = None;
    for name in PROFILE {
        let Some(text) = get(name).filter(|text| !text.is_empty()) else { continue };
        let profile: Profile = text
            .to_string_lossy()
            .parse()
            .map_err(|denied: Denied| Denied::new(denied.code, format!("{name}: {}", denied.message)))?;
        match &found {
            Some((other, first)) if *other != profile => {
                let words = format!("{first} says {other} and {name} says {profile}: keep one of them");
                return Err(Denied::new(Code::Policy, words).into());
            }
            Some(_) => {}
            None => found = Some((profile, name.to_owned())),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ours: &str, flowds: &str) -> Result<Option<Profile>, String> {
        let get = |name: &str| Some(if name == "FLWD_PROFILE" { flowds } else { ours }.into());
        profile_of(get).map(|found| found.map(|(profile, _)| profile)).map_err(|error| error.to_string())
    }

    /// 1A-25.
    #[test]
    fn the_environment_says_one_thing() {
        assert_eq!(of("", ""), Ok(None));
        assert_eq!(of("", "permissive"), Ok(Some(Profile::Permissive)));
        assert_eq!(of("secure", "secure"), Ok(Some(Profile::Secure)));
        assert!(of("secure", "permissive").unwrap_err().contains("keep one"));
        assert!(of("", "strict").unwrap_err().starts_with("E_POLICY: FLWD_PROFILE"));
    }

    /// 1A-24.
    #[test]
    fn disabled_needs_its_own_word() {
        let policy = |profile, grants: &[Profile]| {
            let mut policy = Policy { profile, ..Policy::default() };
            policy.overrides.profile = grants.to_vec();
            policy
        };
        let (plain, allowing) = (Beside::default(), Beside::default().allowing_disabled(true));
        let mut disabled = policy(Profile::Disabled, &[]);
        let denied = plain.admit(&mut disabled).unwrap_err();
        assert_eq!(denied.code, Code::Policy);
        assert!(denied.message.contains(ALLOW_DISABLED), "{denied}");
        assert_eq!(allowing.admit(&mut disabled).unwrap().len(), 1);
        let mut granting = policy(Profile::Secure, &[Profile::Permissive, Profile::Disabled]);
        assert!(allowing.admit(&mut granting).unwrap().is_empty());
        assert_eq!(plain.admit(&mut granting).unwrap().len(), 1);
        assert_eq!(granting.overrides.profile, [Profile::Permissive]);
        let asking = Beside { profile: Some((Profile::Disabled, "FLWD_PROFILE".into())), ..allowing };
        assert_eq!(asking.apply(&mut policy(Profile::Secure, &[])).unwrap_err().code, Code::PolicyDenied);
    }
}

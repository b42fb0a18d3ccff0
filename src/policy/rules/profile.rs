//! How strict the host is, and who may change that.
//!
//! The policy of the host says a profile. An environment variable, a manifest and a request may each ask for another
//! one, in this order; what is stricter is granted, what is looser only where `policy.overrides.profile` names
//! exactly that level.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::policy::code::{Code, Denied};

/// How strict the host is. Ordered: the stricter one is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Few checks; for development.
    Disabled,
    /// A missing signature is a finding, not a refusal.
    Permissive,
    /// Allowed registries only, a valid signature, read-only root, no network, no capabilities.
    #[default]
    Secure,
}

/// Where the profile in force was said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ProfileFrom {
    /// Nowhere: it is the default.
    #[default]
    Default,
    /// `policy.profile` of the configuration.
    Configuration,
    /// This environment variable of whoever mounted.
    Environment(String),
}

/// What became of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// The profile in force.
    pub profile: Profile,
    /// It is looser than what held before, which policy allows.
    pub loosened: bool,
}

impl Profile {
    /// All of them, the strictest first.
    pub const ALL: [Self; 3] = [Self::Secure, Self::Permissive, Self::Disabled];

    /// The profile when `who` asks for `wanted` and `self` holds. `grants` is `policy.overrides.profile`.
    pub fn asked(self, wanted: Self, grants: &[Self], who: &str) -> Result<Granted, Denied> {
        let loosened = wanted < self;
        if loosened && !grants.contains(&wanted) {
            return Err(Denied::new(
                Code::PolicyDenied,
                format!(
                    "{who} asks for profile {wanted}, which is looser than {self}, and policy.overrides.profile does \
                     not name {wanted}: leave it out, or let the host's configuration say overrides: {{profile: [{wanted}]}}"
                ),
            ));
        }
        Ok(Granted { profile: wanted, loosened })
    }
}

impl FromStr for Profile {
    type Err = Denied;

    fn from_str(text: &str) -> Result<Self, Denied> {
        match text {
            "secure" => Ok(Self::Secure),
            "permissive" => Ok(Self::Permissive),
            "disabled" => Ok(Self::Disabled),
            _ => {
                let shown: String = text.chars().take(40).collect();
                let words = format!("profile {shown:?} is unknown: use secure, permissive or disabled");
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

impl fmt::Display for ProfileFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::Configuration => f.write_str("policy.profile"),
            Self::Environment(variable) => write!(f, "${variable}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Profile::{Disabled, Permissive, Secure};
    use super::*;

    #[test]
    fn tightening_is_free_and_loosening_must_be_named() {
        for (holds, wanted, grants, expected) in [
            (Secure, Secure, &[][..], Some(false)),
            (Permissive, Secure, &[], Some(false)),
            (Disabled, Permissive, &[], Some(false)),
            (Secure, Permissive, &[], None),
            (Secure, Permissive, &[Permissive], Some(true)),
            (Secure, Permissive, &[Disabled], None),
            (Secure, Disabled, &[Permissive], None),
            (Permissive, Disabled, &[Disabled], Some(true)),
        ] {
            let asked = holds.asked(wanted, grants, "the request");
            match expected {
                Some(loosened) => {
                    assert_eq!(asked, Ok(Granted { profile: wanted, loosened }), "{holds} {wanted}")
                }
                None => assert_eq!(asked.unwrap_err().code, Code::PolicyDenied, "{holds} {wanted}"),
            }
        }
    }

    #[test]
    fn an_unknown_word_is_a_wrong_policy() {
        for bad in ["strict", "", "Secure", " secure"] {
            assert_eq!(bad.parse::<Profile>().unwrap_err().code, Code::Policy, "{bad}");
        }
        for profile in Profile::ALL {
            assert_eq!(profile.to_string().parse(), Ok(profile));
        }
    }
}

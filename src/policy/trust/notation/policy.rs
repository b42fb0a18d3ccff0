//! The trust policy document, `trustpolicy.json`: whose signatures count for which repositories, and what becomes of a check
//! that fails ("Trust Policy" in Notary's `trust-store-trust-policy.md`).
//!
//! Members that are not known are read over, as notation does; none that is left out makes a policy wider.

use serde::{Deserialize, Serialize};

use super::identity::Identity;
use super::store::StoreKind;
use super::{Check, MAX_POLICY};
use crate::policy::reference::{Location, check_host, check_repository, normal_host};

/// The only version there is.
const VERSION: &str = "1.0";

/// Most statements, and most entries of a list in one.
const MAX_ENTRIES: usize = 1000;

/// The scope of all repositories, and the identity of all signers.
const WILDCARD: &str = "*";

/// A trust policy document.
#[derive(Debug, Clone)]
pub struct TrustPolicy {
    statements: Vec<Statement>,
}

/// What holds for some repositories.
#[derive(Debug, Clone)]
pub struct Statement {
    /// Its name.
    pub name: String,
    /// How strictly signatures are verified.
    pub level: Level,
    pub(super) timestamp: VerifyTimestamp,
    pub(super) stores: Vec<(StoreKind, String)>,
    pub(super) identities: Identities,
    scopes: Option<Vec<String>>,
}

/// The checks of a level, and what becomes of one that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    name: &'static str,
    authenticity: Action,
    authentic_timestamp: Action,
    expiry: Action,
    revocation: Action,
}

/// What becomes of a check that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The signature does not count.
    Enforce,
    /// It is a finding.
    Log,
    /// The check is not made.
    Skip,
}

/// When a timestamp is asked for, where the policy has a store of timestamping authorities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum VerifyTimestamp {
    #[default]
    Always,
    AfterCertExpiry,
}

/// Whom a statement trusts.
#[derive(Debug, Clone)]
pub(super) enum Identities {
    /// Whoever has a certificate of an authority in the stores.
    Any,
    /// These; with none of them nobody.
    Of(Vec<Identity>),
}

const LEVELS: [Level; 4] = [
    Level::new("strict", Action::Enforce, Action::Enforce),
    Level::new("permissive", Action::Enforce, Action::Log),
    Level::new("audit", Action::Log, Action::Log),
    Level::new("skip", Action::Skip, Action::Skip),
];

impl Level {
    const fn new(name: &'static str, authenticity: Action, others: Action) -> Self {
        Self { name, authenticity, authentic_timestamp: others, expiry: others, revocation: others }
    }

    /// `strict`, `permissive`, `audit` or `skip`; one that was changed by `override` keeps the name it began with.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What becomes of this check.
    pub fn action(&self, check: Check) -> Action {
        match check {
            Check::TrustPolicy | Check::Integrity => Action::Enforce,
            Check::Authenticity => self.authenticity,
            Check::AuthenticTimestamp => self.authentic_timestamp,
            Check::Expiry => self.expiry,
            Check::Revocation => self.revocation,
        }
    }

    /// Whether signatures are not looked at at all.
    pub fn skips(&self) -> bool {
        self.name == "skip"
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    version: String,
    #[serde(default)]
    trust_policies: Vec<Draft>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Draft {
    #[serde(default)]
    name: String,
    #[serde(default)]
    registry_scopes: Vec<String>,
    #[serde(default)]
    signature_verification: Verification,
    #[serde(default)]
    trust_stores: Vec<String>,
    #[serde(default)]
    trusted_identities: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Verification {
    #[serde(default)]
    level: String,
    #[serde(default, rename = "override")]
    overrides: Overrides,
    #[serde(default)]
    verify_timestamp: Option<String>,
}

/// A mistyped check must not leave its default in force unseen.
#[derive(Deserialize, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Overrides {
    authenticity: Option<Action>,
    authentic_timestamp: Option<Action>,
    expiry: Option<Action>,
    revocation: Option<Action>,
}

impl TrustPolicy {
    /// Reads the document. The reason says what to change.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_POLICY {
            return Err(format!("it has {} bytes: at most {MAX_POLICY} are read", bytes.len()));
        }
        let document: Document = serde_json::from_slice(bytes).map_err(|error| {
            let why =
                if error.is_eof() { "unexpected end of JSON input".to_owned() } else { error.to_string() };
            format!("error occurred while parsing trustpolicy.json: {why}")
        })?;
        match document.version.as_str() {
            VERSION => {}
            "" => return Err("trust policy document has empty version, version must be specified".to_owned()),
            other => {
                return Err(format!(
                    "trust policy document uses unsupported version {other:?}: expected {VERSION:?}"
                ));
            }
        }
        if document.trust_policies.is_empty() {
            return Err("trust policy document has no statement in trustPolicies".to_owned());
        }
        bounded(document.trust_policies.len(), "statements")?;
        let mut statements: Vec<Statement> = Vec::new();
        for draft in document.trust_policies {
            let name = draft.name.clone();
            if name.is_empty() {
                return Err("a trust policy statement has no name".to_owned());
            }
            if statements.iter().any(|other| other.name == name) {
                return Err(format!("two trust policy statements are named {name:?}"));
            }
            let statement =
                draft.judge().map_err(|reason| format!("trust policy statement {name:?} {reason}"))?;
            if let Some(scope) = statements.iter().find_map(|other| statement.shares(other)) {
                return Err(format!(
                    "registry scope {scope:?} stands in more than one trust policy statement"
                ));
            }
            statements.push(statement);
        }
        Ok(Self { statements })
    }

    /// The statement for a repository: the one that names it, else the one for all.
    pub fn statement(&self, location: &Location) -> Result<&Statement, String> {
        let scope = match location {
            Location::Registry { host, repository } => Some(format!("{host}/{repository}")),
            Location::Layout { .. } => None,
        };
        let names = |statement: &&Statement| {
            statement
                .scopes
                .as_ref()
                .zip(scope.as_ref())
                .is_some_and(|(scopes, scope)| scopes.contains(scope))
        };
        let exact = self.statements.iter().find(names);
        exact.or_else(|| self.statements.iter().find(|statement| statement.scopes.is_none())).ok_or_else(|| {
            match scope {
                Some(scope) => format!("no statement of the trust policy has {scope:?} or \"*\" in its registryScopes"),
                None => "no statement of the trust policy has \"*\" in its registryScopes, the only scope of image layouts".to_owned(),
            }
        })
    }

    /// The stores that some statement names, each once.
    pub fn stores(&self) -> Vec<(StoreKind, &str)> {
        let mut stores: Vec<(StoreKind, &str)> = Vec::new();
        for (kind, name) in self.statements.iter().flat_map(|statement| &statement.stores) {
            if !stores.contains(&(*kind, name)) {
                stores.push((*kind, name));
            }
        }
        stores
    }
}

impl Statement {
    /// A scope that both have.
    fn shares<'s>(&'s self, other: &Self) -> Option<&'s str> {
        match (&self.scopes, &other.scopes) {
            (None, None) => Some(WILDCARD),
            (Some(ours), Some(theirs)) => {
                ours.iter().find(|scope| theirs.contains(scope)).map(String::as_str)
            }
            _ => None,
        }
    }
}

impl Draft {
    /// The reasons complete "trust policy statement … ".
    fn judge(self) -> Result<Statement, String> {
        let level = self.signature_verification.level()?;
        let timestamp = match self.signature_verification.verify_timestamp.as_deref() {
            None | Some("" | "always") => VerifyTimestamp::Always,
            Some("afterCertExpiry") => VerifyTimestamp::AfterCertExpiry,
            Some(other) => {
                return Err(format!(
                    "has verifyTimestamp {other:?}: expected \"always\" or \"afterCertExpiry\""
                ));
            }
        };
        let scopes = scopes(&self.registry_scopes)?;
        if level.skips() {
            if scopes.is_none() {
                return Err("skips verification for all repositories: name them in registryScopes".to_owned());
            }
            if !self.trust_stores.is_empty() || !self.trusted_identities.is_empty() {
                return Err(
                    "skips verification but has trustStores or trustedIdentities: remove them".to_owned()
                );
            }
        } else if self.trust_stores.is_empty() || self.trusted_identities.is_empty() {
            return Err("must have both trustStores and trustedIdentities".to_owned());
        }
        Ok(Statement {
            name: self.name,
            level,
            timestamp,
            stores: stores(&self.trust_stores)?,
            identities: identities(&self.trusted_identities)?,
            scopes,
        })
    }
}

impl Verification {
    fn level(&self) -> Result<Level, String> {
        let found = LEVELS.iter().find(|level| level.name == self.level);
        let mut level = *found.ok_or_else(|| {
            format!(
                "has signatureVerification.level {:?}: expected strict, permissive, audit or skip",
                self.level
            )
        })?;
        if level.skips() && self.overrides != Overrides::default() {
            return Err("overrides checks of level skip, which makes none".to_owned());
        }
        let changes = [
            (&mut level.authenticity, self.overrides.authenticity, "authenticity"),
            (&mut level.authentic_timestamp, self.overrides.authentic_timestamp, "authenticTimestamp"),
            (&mut level.expiry, self.overrides.expiry, "expiry"),
            (&mut level.revocation, self.overrides.revocation, "revocation"),
        ];
        for (action, change, name) in changes {
            match change {
                Some(Action::Skip) if name != "revocation" => {
                    return Err(format!("skips {name}: only revocation can be skipped"));
                }
                Some(change) => *action = change,
                None => {}
            }
        }
        Ok(level)
    }
}

fn bounded(count: usize, what: &str) -> Result<(), String> {
    if count > MAX_ENTRIES { Err(format!("has more than {MAX_ENTRIES} {what}")) } else { Ok(()) }
}

/// Fully qualified repositories, hosts in lower case; `None` is the scope of all.
fn scopes(written: &[String]) -> Result<Option<Vec<String>>, String> {
    bounded(written.len(), "registryScopes")?;
    match written {
        [] => return Err("has no registryScopes".to_owned()),
        [only] if only == WILDCARD => return Ok(None),
        _ => {}
    }
    let mut scopes: Vec<String> = Vec::new();
    for scope in written {
        let (host, repository) = scope.split_once('/').unwrap_or((scope, ""));
        let host = normal_host(host);
        if scope.contains('*') || check_host(&host).and(check_repository(repository)).is_err() {
            return Err(format!(
                "has registry scope {scope:?}: expected host/repository in full, without tag, or \"*\" alone"
            ));
        }
        let scope = format!("{host}/{repository}");
        if scopes.contains(&scope) {
            return Err(format!("names registry scope {scope:?} twice"));
        }
        scopes.push(scope);
    }
    Ok(Some(scopes))
}

fn stores(written: &[String]) -> Result<Vec<(StoreKind, String)>, String> {
    bounded(written.len(), "trustStores")?;
    let store = |text: &String| {
        let (kind, name) = text.split_once(':').unwrap_or((text, ""));
        let kind = StoreKind::from_name(kind).filter(|_| is_file_name(name)).ok_or_else(|| {
            format!("has trust store {text:?}: expected ca:NAME, signingAuthority:NAME or tsa:NAME, the name of letters, digits, '_', '.' and '-'")
        })?;
        Ok((kind, name.to_owned()))
    };
    written.iter().map(store).collect()
}

/// A name that is one folder's, and no way up.
fn is_file_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    !name.is_empty() && name.chars().all(word) && name != "." && name != ".."
}

fn identities(written: &[String]) -> Result<Identities, String> {
    bounded(written.len(), "trustedIdentities")?;
    if written.iter().any(|identity| identity == WILDCARD) {
        return match written {
            [_] => Ok(Identities::Any),
            _ => Err("trusts the identity \"*\" beside others".to_owned()),
        };
    }
    let mut identities: Vec<Identity> = Vec::new();
    for text in written {
        let (kind, value) = text
            .split_once(':')
            .ok_or_else(|| format!("has trusted identity {text:?}: expected \"x509.subject: …\" or \"*\""))?;
        // Others are for plugins, which are not run: they match nobody.
        if kind != "x509.subject" {
            continue;
        }
        let identity = Identity::parse(value)
            .map_err(|reason| format!("has a trusted identity {text:?} that {reason}"))?;
        if let Some(other) = identities.iter().find(|other| other.covers(&identity) || identity.covers(other))
        {
            return Err(format!("has trusted identities that overlap: {identity} and {other}"));
        }
        identities.push(identity);
    }
    Ok(Identities::Of(identities))
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;

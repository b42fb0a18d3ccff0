//! Authorization of one repository: what the registry asked for, and the grants we hold.
//!
//! In: challenges, credentials. Out: a header value to send, or nothing. A grant is fetched by one caller while
//! the others wait for it (single flight), kept until shortly before it expires, and thrown away once when the
//! registry refuses it early, because registries expire tokens whose hour has not come.
//!
//! Scopes are our own, never those of the challenge: a hostile registry must not be able to have a token for
//! somebody else's repository made and sent to it.

use std::sync::Mutex as StdMutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;
use tokio::sync::Mutex;
use url::Url;

use super::challenge::Challenge;
use super::connections::Connections;
use super::endpoint::Endpoint;
use super::token::{self, Question};
use crate::fetch::credentials::{Credential, Credentials};
use crate::fetch::error::{Class, FetchError, Side};

/// What a request wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Read.
    Pull,
    /// Read and write.
    Push,
}

impl Access {
    fn scope(self, repository: &str) -> String {
        let actions = if self == Self::Pull { "pull" } else { "pull,push" };
        format!("repository:{repository}:{actions}")
    }
}

/// A header value to send, until it expires or is refused.
#[derive(Clone)]
pub(super) struct Grant {
    /// The `Authorization` header, marked sensitive.
    pub(super) header: HeaderValue,
    /// Tells one grant from the next.
    pub(super) serial: u64,
    until: Option<Instant>,
}

/// How the registry wants to be talked to, once it has said so.
#[derive(Clone)]
enum Scheme {
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

/// Whether it is worth sending the request again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    /// There is a grant that was not tried yet.
    Again,
    /// There is nothing else to offer.
    Refused,
}

/// Used up this much before its end, because the clock of the registry and the way there cost time.
const SKEW: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Slot {
    grant: Option<Grant>,
    serial: u64,
}

/// The authorization state of one repository.
pub(super) struct Auth {
    credentials: Credentials,
    connections: Connections,
    stall: Duration,
    scheme: StdMutex<Option<Scheme>>,
    pull: Mutex<Slot>,
    push: Mutex<Slot>,
}

impl Auth {
    pub(super) fn new(credentials: Credentials, connections: Connections, stall: Duration) -> Self {
        Self {
            credentials,
            connections,
            stall,
            scheme: StdMutex::default(),
            pull: Mutex::default(),
            push: Mutex::default(),
        }
    }

    /// The grant to send now; none before the registry has asked for one.
    pub(super) async fn current(
        &self,
        endpoint: &Endpoint,
        access: Access,
    ) -> Result<Option<Grant>, FetchError> {
        let Some(scheme) = self.scheme() else { return Ok(None) };
        let mut slot = self.slot(access).lock().await;
        let usable = |grant: &Grant| grant.until.is_none_or(|until| Instant::now() < until);
        if let Some(grant) = slot.grant.as_ref().filter(|grant| usable(grant)) {
            return Ok(Some(grant.clone()));
        }
        let fresh = self.obtain(endpoint, access, &scheme, slot.serial + 1).await?;
        Ok(Some(slot.keep(fresh)))
    }

    /// After a refusal of the grant `used`: learns the challenges and obtains a new grant, unless somebody else
    /// already has.
    pub(super) async fn renew(
        &self,
        endpoint: &Endpoint,
        base: &Url,
        access: Access,
        challenges: &[Challenge],
        used: Option<&Grant>,
    ) -> Result<Renewal, FetchError> {
        let mut slot = self.slot(access).lock().await;
        if slot.grant.as_ref().is_some_and(|grant| used.is_none_or(|used| used.serial < grant.serial)) {
            return Ok(Renewal::Again);
        }
        if let Some(scheme) = choose(challenges, base)? {
            self.learn(Some(scheme));
        }
        let Some(scheme) = self.scheme() else { return Ok(Renewal::Refused) };
        slot.grant = None;
        let fresh = self.obtain(endpoint, access, &scheme, slot.serial + 1).await?;
        if used.is_some_and(|used| used.header == fresh.header) {
            return Ok(Renewal::Refused);
        }
        slot.keep(fresh);
        Ok(Renewal::Again)
    }

    async fn obtain(
        &self,
        endpoint: &Endpoint,
        access: Access,
        scheme: &Scheme,
        serial: u64,
    ) -> Result<Grant, FetchError> {
        let issued = self.ask(endpoint, access, scheme, serial).await;
        if issued.as_ref().is_err_and(|error| error.class == Class::Unauthorized) {
            // The registry may want no login any more by the next request; if it does, it says so again.
            self.learn(None);
        }
        issued
    }

    async fn ask(
        &self,
        endpoint: &Endpoint,
        access: Access,
        scheme: &Scheme,
        serial: u64,
    ) -> Result<Grant, FetchError> {
        let credential = self.credential(endpoint).await?;
        let (realm, service) = match (scheme, &credential) {
            (_, Credential::Bearer(token)) => return grant("Bearer", token.expose(), None, serial),
            (Scheme::Basic, Credential::Basic { username, password }) => {
                let pair = STANDARD.encode(format!("{username}:{}", password.expose()));
                return grant("Basic", &pair, None, serial);
            }
            (Scheme::Basic, _) => return Err(self.nothing_to_offer(endpoint)),
            (Scheme::Bearer { realm, service }, _) => (realm, service),
        };
        let question = Question {
            realm,
            service: service.as_deref(),
            scope: access.scope(&endpoint.repository),
            credential: &credential,
        };
        let trust = endpoint.trust(realm);
        let issued =
            token::fetch(&self.connections, trust, self.stall, &question).await.map_err(|mut error| {
                if error.class == Class::Unauthorized && credential == Credential::Anonymous {
                    error = self.nothing_to_offer(endpoint);
                }
                error.context(format_args!("token for {}", endpoint.display()))
            })?;
        // of a short life, half is kept: a token that is expired on arrival would never be used
        let margin = SKEW.min(issued.life / 2);
        grant("Bearer", issued.token.expose(), Some(issued.received + issued.life - margin), serial)
    }

    async fn credential(&self, endpoint: &Endpoint) -> Result<Credential, FetchError> {
        let credentials = self.credentials.clone();
        let (name, repository) = (endpoint.name.clone(), endpoint.repository.clone());
        let found = tokio::task::spawn_blocking(move || credentials.find(&name, &repository)).await;
        found.unwrap_or_else(|_| {
            Err(FetchError::new(Class::Unauthorized, Side::Local, "looking up credentials failed"))
        })
    }

    /// Where credentials are looked for.
    pub(super) fn places(&self) -> String {
        self.credentials.places()
    }

    fn nothing_to_offer(&self, endpoint: &Endpoint) -> FetchError {
        let message = format!(
            "{} asks for a login and there are no credentials for it in {}: run `docker login {}`",
            endpoint.display(),
            self.places(),
            endpoint.name
        );
        FetchError::new(Class::Unauthorized, Side::Remote, message)
    }

    fn slot(&self, access: Access) -> &Mutex<Slot> {
        match access {
            Access::Pull => &self.pull,
            Access::Push => &self.push,
        }
    }

    fn scheme(&self) -> Option<Scheme> {
        self.scheme.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn learn(&self, scheme: Option<Scheme>) {
        *self.scheme.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = scheme;
    }
}

impl Slot {
    fn keep(&mut self, grant: Grant) -> Grant {
        self.serial = grant.serial;
        self.grant = Some(grant.clone());
        grant
    }
}

fn grant(kind: &str, value: &str, until: Option<Instant>, serial: u64) -> Result<Grant, FetchError> {
    let mut header = HeaderValue::from_str(&format!("{kind} {value}")).map_err(|_| {
        FetchError::new(Class::Unauthorized, Side::Remote, "the token cannot be sent: it is not plain text")
    })?;
    header.set_sensitive(true);
    Ok(Grant { header, serial, until })
}

/// The challenge that we answer: a token service before plain passwords.
fn choose(challenges: &[Challenge], base: &Url) -> Result<Option<Scheme>, FetchError> {
    let bearer = challenges.iter().find_map(|challenge| match challenge {
        Challenge::Bearer { realm, service } => Some((realm, service)),
        Challenge::Basic => None,
    });
    if let Some((realm, service)) = bearer {
        let realm = realm_url(realm, base)?;
        return Ok(Some(Scheme::Bearer { realm, service: service.clone() }));
    }
    Ok(challenges.contains(&Challenge::Basic).then_some(Scheme::Basic))
}

/// Credentials go to this address: it must be as well protected as the registry itself.
fn realm_url(realm: &str, base: &Url) -> Result<Url, FetchError> {
    let refuse = |why: &str| {
        let message = format!("the registry names a token service that is not used: {why}");
        FetchError::new(Class::Protocol, Side::Remote, message)
    };
    let url = Url::parse(realm).map_err(|_| refuse("not an address"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("its address carries a name or password"));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if base.scheme() == "http" => Ok(url),
        "http" => Err(refuse("plain http, while the registry speaks https")),
        _ => Err(refuse("neither http nor https")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn realms_are_at_least_as_safe_as_the_registry() {
        let table = [
            ("https://auth.example/token", "https://r/", true),
            ("https://auth.example/token", "http://r/", true),
            ("http://auth.example/token", "http://r/", true),
            ("http://auth.example/token", "https://r/", false),
            ("https://u:p@auth.example/token", "https://r/", false),
            ("file:///etc/passwd", "http://r/", false),
            ("/token", "https://r/", false),
        ];
        for (realm, base, allowed) in table {
            assert_eq!(realm_url(realm, &Url::parse(base).unwrap()).is_ok(), allowed, "{realm} {base}");
        }
    }

    #[test]
    fn a_token_service_comes_before_passwords() {
        let base = Url::parse("https://r/").unwrap();
        let bearer = Challenge::Bearer { realm: "https://a/t".into(), service: None };
        let chosen = choose(&[Challenge::Basic, bearer], &base).unwrap();
        assert!(matches!(chosen, Some(Scheme::Bearer { .. })));
        assert!(matches!(choose(&[Challenge::Basic], &base).unwrap(), Some(Scheme::Basic)));
        assert!(choose(&[], &base).unwrap().is_none());
    }
}

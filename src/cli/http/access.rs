//! Who asks, and whether he may.
//!
//! On the unix socket the kernel says who it is: root and the daemon's user may do everything. Others reach the socket
//! only as members of the configured group, and may do what its members may on the mount: everything but adding and
//! removing sources. A bearer token, which TCP demands, counts instead of that, on both.

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;

use super::Api;
use super::listen::Peer;
use super::problem::Problem;
use super::tokens::Scope;
use crate::jobs::{Caller, Via};

/// What members of the group may do.
const OF_GROUP: [Scope; 5] =
    [Scope::JobsRead, Scope::RunsRead, Scope::RunsWrite, Scope::EventsRead, Scope::SourcesRead];

/// Who may ask for something.
#[derive(Debug, Clone, Copy)]
pub(super) enum Access {
    /// Anybody who can connect.
    Public,
    /// Whoever is known.
    Known,
    /// Whoever has all of these.
    Scopes(&'static [Scope]),
}

/// Whoever asks, known.
#[derive(Debug, Clone)]
pub(super) struct Principal {
    /// `uid:0`, `token:ci`.
    pub name: String,
    /// What he may.
    scopes: Vec<Scope>,
    /// As files of runs know him.
    pub caller: Caller,
}

impl Principal {
    /// Whether he may do this.
    pub(super) fn may(&self, scope: Scope) -> Result<(), Problem> {
        if self.scopes.contains(&scope) {
            return Ok(());
        }
        Err(Problem::new(403, "forbidden", format!("{} has not the scope {scope}", self.name)))
    }

    /// For the record of a run.
    pub(super) fn via(&self) -> Via {
        Via { interface: "http".to_owned(), caller: self.name.clone() }
    }
}

/// Lets pass who may, and tells the handler who it is.
pub(super) async fn check(
    State((api, access)): State<(Api, Access)>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if let Access::Public = access {
        return Ok(next.run(request).await);
    }
    let principal = principal(&api, &request).ok_or_else(Problem::unauthorized)?;
    if let Access::Scopes(scopes) = access {
        scopes.iter().try_for_each(|scope| principal.may(*scope))?;
    }
    request.extensions_mut().insert(principal);
    Ok(next.run(request).await)
}

fn principal(api: &Api, request: &Request) -> Option<Principal> {
    let daemon = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if let Some(header) = request.headers().get(AUTHORIZATION) {
        let (scheme, presented) = header.to_str().ok()?.split_once(' ')?;
        let tokens = api.facts.http.tokens();
        let token = tokens.find(presented.trim()).filter(|_| scheme.eq_ignore_ascii_case("bearer"))?;
        let caller = Caller { uid: daemon.0, gid: daemon.1, pid: 0 };
        return Some(Principal {
            name: format!("token:{}", token.name),
            scopes: token.scopes.clone(),
            caller,
        });
    }
    match *request.extensions().get::<Peer>()? {
        Peer::Unix { uid, gid, pid } => {
            let all = uid == 0 || uid == daemon.0;
            let scopes = if all { Scope::ALL.to_vec() } else { OF_GROUP.to_vec() };
            Some(Principal { name: format!("uid:{uid}"), scopes, caller: Caller { uid, gid, pid } })
        }
        Peer::Tcp => None,
    }
}

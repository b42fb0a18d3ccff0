//! Bodies: read whole within a bound, understood strictly, and their canonical form.

use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::problem::Problem;

/// Largest body: arguments of a job have the same bound as `args.json`.
const MAX_BODY: usize = crate::jobs::MAX_ARGS_BYTES as usize;
/// For all of it.
const BODY_TIME: Duration = Duration::from_secs(30);

/// All of a body.
pub(super) async fn read(body: Body) -> Result<Vec<u8>, Problem> {
    match tokio::time::timeout(BODY_TIME, collect(body)).await {
        Ok(collected) => collected,
        Err(_) => {
            let words = format!("it did not arrive within {} s", BODY_TIME.as_secs());
            Err(Problem::new(408, "request timeout", words))
        }
    }
}

async fn collect(body: Body) -> Result<Vec<u8>, Problem> {
    let mut pieces = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| Problem::body(error.to_string()))?;
        if bytes.len() + piece.len() > MAX_BODY {
            let words = format!("at most {MAX_BODY} bytes are taken");
            return Err(Problem::new(413, "request body too large", words));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// A body that is one JSON object of a known form, and nothing behind it.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| Problem::body(error.to_string()))
}

/// JSON with sorted keys and no white space: bodies that say the same are the same.
pub(super) fn canonical(body: &[u8]) -> Result<Vec<u8>, Problem> {
    let mut value: Value = parse(body)?;
    value.sort_all_objects();
    Ok(value.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::digest::Digest;

    /// Case HA-32.
    #[test]
    fn the_same_said_otherwise_is_the_same() {
        let ha_32 = br#"{"job_id":"demo","args":{"name":"Alice"}}"#;
        assert_eq!(canonical(ha_32).unwrap(), br#"{"args":{"name":"Alice"},"job_id":"demo"}"#);
        let expected = "043b75f827ff8933d17d67023924d77b73c62fa6509753e7fcd0bc287a3d053b";
        let digest = |body: &[u8]| Digest::of(&canonical(body).unwrap()).hex();
        assert_eq!(digest(ha_32), expected);
        let spaced = b" { \"args\" : {\"name\": \"\\u0041lice\"}, \"job_id\":\"demo\"}\n";
        assert_eq!(digest(spaced), expected);
        assert_ne!(digest(br#"{"job_id":"demo","args":{"name":"alice"}}"#), expected);
        assert!(canonical(b"{}{}").is_err());
    }
}

//! What a new policy says of images that are shown: from evidence that is here, where that does, in no time.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;

use super::acquire::Rooms;
use super::board::Verdict;
use super::clock;
use crate::fetch::registry::RegistryOptions;
use crate::fetch::{signatures, source};
use crate::policy::admit::{self, AdmittedImage, NotAdmitted};
use crate::policy::digest::Digest;
use crate::policy::source::spec::SourceSpec;

/// How long registries may take to show newer signatures, all of them together: until then the old configuration holds.
const NEWER: Duration = Duration::from_secs(5);

/// Judges by `rooms.policy` what is shown of `specs`: by source, the pinned digest that its present spec need not name.
pub(crate) async fn all(
    rooms: &Rooms,
    specs: &[SourceSpec],
    shown: &[(String, Digest)],
) -> HashMap<String, Verdict> {
    let judged = shown.iter().filter_map(|(name, image)| {
        let mut spec = specs.iter().find(|spec| spec.name == *name)?.clone();
        spec.image.digest = *image;
        Some(async move {
            let outcome = one(rooms, &spec).await.and_then(|admitted| {
                // What is shown was fetched: its document is here, or it is not shown for long.
                if let Some((media_type, bytes)) = rooms.documents.get(image) {
                    admit::manifest(&spec, &admitted, &media_type, bytes.len() as u64)?;
                }
                Ok(admitted)
            });
            let outcome = outcome.map(|admitted| {
                (admitted.verification().clone(), admit::refused_under(&rooms.policy, &spec, &admitted))
            });
            (spec.name.clone(), Verdict { image: *image, outcome })
        })
    });
    join_all(judged).await.into_iter().collect()
}

/// Whoever signs anew with another key first and changes the policy then takes nothing from the tree: signatures that
/// are newer than those here are asked for, within a bound.
async fn one(rooms: &Rooms, spec: &SourceSpec) -> Result<AdmittedImage, NotAdmitted> {
    let kept = rooms.documents.signatures(&spec.image.digest).unwrap_or_default();
    let refused = match admit::image(&rooms.policy, spec, &kept, clock::now_s()) {
        Err(refused) if admit::source(&rooms.policy, spec).is_ok() => refused,
        decided => return decided,
    };
    let options = RegistryOptions { insecure: spec.insecure, ..rooms.registry.clone() };
    let newer = async {
        let source = source::open(&spec.image.location, &options)?;
        signatures::fetch(source.as_ref(), &spec.image.digest).await
    };
    match tokio::time::timeout(NEWER, newer).await {
        Ok(Ok(found)) if !found.is_empty() && found != kept => {
            let outcome = admit::image(&rooms.policy, spec, &found, clock::now_s());
            if let Err(error) = rooms.documents.put_signatures(&spec.image.digest, &found) {
                tracing::warn!(source = spec.name, %error, "newer signatures are not kept");
            }
            outcome
        }
        Ok(Err(error)) => {
            tracing::info!(source = spec.name, %error, "newer signatures could not be had");
            Err(refused)
        }
        _ => Err(refused),
    }
}

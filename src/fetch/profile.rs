//! What the start of a job reads of its image, remembered: the next cold start asks for it before the job does.
//!
//! ```json
//! {"version": 1, "image": "sha256:…", "jobs": {"backup": [{"layer": "sha256:…", "ranges": [[0, 40960], …]}]}}
//! ```
//! `image` is the digest of the platform's manifest, a job is an entrypoint's id, a range is bytes of the layer's blob
//! (first, and one past the last), in the order in which the job first wanted them. Everything that a profile brings is
//! proven like everything else: the worst that a wrong one can do is to fetch what nobody needs.
//!
//! Beside the image in its registry a profile is an artifact that refers to the manifest (distribution-spec, "Listing
//! Referrers"), of type [`ARTIFACT`], with the JSON as its only layer. It is used if its own digests hold and it says that it
//! is of this manifest.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::error::{Class, FetchError, Side};
use super::layer::Layer;
use super::referrers;
use super::sink::{BlobContent, BlobSink};
use super::source::BlobSource;
use crate::policy::digest::Digest;
use crate::policy::image::{Descriptor, Document, OCI_MANIFEST, parse_document};

/// Largest profile: 30,000 ranges. The start of a heavy job touches a few hundred.
pub const MAX_PROFILE: usize = 1 << 20;
const VERSION: u32 = 1;
/// Ranges nearer to each other than this are one: the bytes between them cost less than a request.
const GAP: u64 = 64 << 10;
/// Requests of a replay at a time: enough to fill a line, and the first is not held up by the last.
const PARALLEL: usize = 4;

/// The artifact's type, of its config, too: registries before OCI 1.1 know no other.
pub const ARTIFACT: &str = "application/vnd.addonfs.profile.v1+json";
const EMPTY: &[u8] = b"{}";
/// Referrers of the type that are looked at: who may push may add any number.
const MAX_PUBLISHED: usize = 4;

/// The starts of an image's jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    version: u32,
    /// The image: digest of its platform's manifest.
    pub image: Digest,
    /// By entrypoint id.
    pub jobs: BTreeMap<String, Vec<LayerRanges>>,
}

/// What a start reads of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRanges {
    /// The layer's blob.
    pub layer: Digest,
    /// Bytes of the blob, in the order of need.
    pub ranges: Vec<(u64, u64)>,
}

impl Profile {
    /// The profile of an image of which nothing is known.
    pub fn new(image: Digest) -> Self {
        Self { version: VERSION, image, jobs: BTreeMap::new() }
    }

    /// Reads a profile of `image`.
    pub fn parse(json: &[u8], image: &Digest) -> Result<Self, FetchError> {
        let bad = |what: &str| {
            let message = format!("profile of {image}: {what}");
            FetchError::new(Class::Protocol, Side::Remote, message)
        };
        if json.len() > MAX_PROFILE {
            return Err(bad(&format!("{} bytes, and at most {MAX_PROFILE} are read", json.len())));
        }
        let profile: Self = serde_json::from_slice(json).map_err(|error| bad(&error.to_string()))?;
        let ranges = || profile.jobs.values().flatten().flat_map(|layer| &layer.ranges);
        match () {
            () if profile.version != VERSION => Err(bad("it is of an unknown version")),
            () if profile.image != *image => Err(bad(&format!("it says that it is of {}", profile.image))),
            () if ranges().any(|(start, end)| start >= end) => Err(bad("a range holds nothing")),
            () => Ok(profile),
        }
    }

    /// As it is kept and pushed: the same profile gives the same bytes.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Pushes the profile beside its image, whose manifest is `subject`. Returns the artifact's digest.
    pub async fn publish(
        &self,
        source: &dyn BlobSource,
        sink: &dyn BlobSink,
        subject: &Descriptor,
    ) -> Result<Digest, FetchError> {
        let blob = |bytes: &[u8]| Descriptor {
            media_type: ARTIFACT.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            annotations: Vec::new(),
        };
        let (json, config) = (self.to_json(), blob(EMPTY));
        let layer = blob(&json);
        sink.put_blob(&config, BlobContent::bytes(EMPTY)).await?;
        sink.put_blob(&layer, BlobContent::bytes(json)).await?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": ARTIFACT,
            "config": config,
            "layers": [layer],
            "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size},
        });
        let manifest = manifest.to_string().into_bytes();
        Ok(referrers::attach(source, sink, &subject.digest, ARTIFACT, manifest).await?.digest)
    }

    /// The profile that was published beside `image`, if there is one that can be used.
    pub async fn published(source: &dyn BlobSource, image: &Digest) -> Result<Option<Self>, FetchError> {
        for referrer in source.referrers(image, &[ARTIFACT]).await?.iter().take(MAX_PUBLISHED) {
            match Self::from_referrer(source, &referrer.digest, image).await {
                Ok(profile) => return Ok(Some(profile)),
                Err(error) => tracing::info!(%image, %error, "a published profile is of no use"),
            }
        }
        Ok(None)
    }

    async fn from_referrer(
        source: &dyn BlobSource,
        referrer: &Digest,
        image: &Digest,
    ) -> Result<Self, FetchError> {
        let (media_type, bytes) = source.manifest(referrer).await?;
        let layer = match parse_document(&media_type, &bytes) {
            Ok(Document::Manifest(manifest)) => manifest.layers.into_iter().next(),
            _ => None,
        };
        let none = || FetchError::new(Class::Protocol, Side::Remote, format!("{referrer} holds no profile"));
        let layer = layer.filter(|layer| layer.media_type == ARTIFACT).ok_or_else(none)?;
        Self::parse(&source.blob(&layer, MAX_PROFILE as u64).await?, image)
    }

    /// Fetches what the start of `job` reads of `layers` and what is not here, in the order of need. Returns when all of it
    /// is here; dropping the future leaves what is under way to those who wait for it.
    pub async fn replay(&self, job: &str, layers: &[Layer]) -> Result<(), FetchError> {
        fetch(self.jobs.get(job).map_or(&[], Vec::as_slice), layers).await
    }

    /// Fetches what the starts of all jobs that are known read, likewise.
    pub async fn replay_common(&self, layers: &[Layer]) -> Result<(), FetchError> {
        fetch(&self.common(), layers).await
    }

    fn common(&self) -> Vec<LayerRanges> {
        let mut jobs = self.jobs.values();
        let mut common = jobs.next().cloned().unwrap_or_default();
        for other in jobs {
            for layer in &mut common {
                let others = other.iter().find(|other| other.layer == layer.layer);
                layer.ranges = others.map_or_else(Vec::new, |other| both(&layer.ranges, &other.ranges));
            }
        }
        common
    }
}

async fn fetch(starts: &[LayerRanges], layers: &[Layer]) -> Result<(), FetchError> {
    for start in starts {
        if let Some(layer) = layers.iter().find(|layer| layer.descriptor().digest == start.layer) {
            let ranges = start.ranges.iter().map(|&(start, end)| start..end);
            layer.fetch_ranges(ranges, PARALLEL).await?;
        }
    }
    Ok(())
}

/// What is in ranges of both, in the order of the first.
fn both(one: &[(u64, u64)], other: &[(u64, u64)]) -> Vec<(u64, u64)> {
    // Disjoint and sorted, so that a profile of any shape takes no longer than it has ranges.
    let mut sorted: Vec<(u64, u64)> = other.to_vec();
    sorted.sort_unstable();
    let mut disjoint: Vec<(u64, u64)> = Vec::with_capacity(sorted.len());
    for (start, end) in sorted {
        match disjoint.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => disjoint.push((start, end)),
        }
    }
    let overlaps = |&(start, end): &(u64, u64)| {
        let first = disjoint.partition_point(|other| other.1 <= start);
        let rest = disjoint.iter().skip(first).take_while(move |other| other.0 < end);
        rest.map(move |other| (start.max(other.0), end.min(other.1)))
    };
    one.iter().flat_map(overlaps).collect()
}

/// Ranges in the order of need as few requests: what lies close together is one, as early as its first part.
pub(super) fn coalesce(needed: &[Range<u64>]) -> Vec<(u64, u64)> {
    let mut sorted: Vec<(usize, &Range<u64>)> = needed.iter().enumerate().collect();
    sorted.sort_by_key(|(_, range)| range.start);
    let mut merged: Vec<(usize, Range<u64>)> = Vec::new();
    for (order, range) in sorted {
        match merged.last_mut() {
            Some((first, last)) if range.start <= last.end.saturating_add(GAP) => {
                *first = order.min(*first);
                last.end = last.end.max(range.end);
            }
            _ => merged.push((order, range.clone())),
        }
    }
    merged.sort_by_key(|(order, _)| *order);
    merged.into_iter().map(|(_, range)| (range.start, range.end)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_one_range_in_the_order_of_need() {
        const FAR: u64 = 10 << 20;
        let needed = [FAR..FAR + 100, 5000..6000, 0..100, 200_000..200_010, FAR + 1000..FAR + 2000, 100..200];
        assert_eq!(coalesce(&needed), [(FAR, FAR + 2000), (0, 6000), (200_000, 200_010)]);
        assert_eq!(coalesce(&[]), []);
    }

    #[test]
    fn what_all_starts_read_is_common() {
        let ranges = |layer: &[u8], ranges: &[(u64, u64)]| LayerRanges {
            layer: Digest::of(layer),
            ranges: ranges.to_vec(),
        };
        let mut profile = Profile::new(Digest::of(b"image"));
        assert_eq!(profile.common(), []);
        let first = vec![ranges(b"a", &[(50, 90), (0, 10)]), ranges(b"b", &[(0, 5)])];
        profile.jobs.insert("one".into(), first.clone());
        assert_eq!(profile.common(), first);
        profile.jobs.insert("two".into(), vec![ranges(b"a", &[(5, 60), (80, 100)])]);
        assert_eq!(profile.common(), [ranges(b"a", &[(50, 60), (80, 90), (5, 10)]), ranges(b"b", &[])]);
    }

    #[tokio::test]
    async fn a_published_profile_is_found_beside_its_image_only() {
        let folder = tempfile::tempdir().unwrap();
        let layout = crate::fetch::layout::Layout::create(folder.path()).unwrap();
        let subject = Descriptor {
            media_type: OCI_MANIFEST.to_owned(),
            digest: Digest::of(b"image"),
            size: 5,
            annotations: Vec::new(),
        };
        assert_eq!(Profile::published(&*layout, &subject.digest).await.unwrap(), None);
        // A profile of another image that says it is of this one is of no use, and hides no other.
        Profile::new(Digest::of(b"other")).publish(&*layout, &*layout, &subject).await.unwrap();
        assert_eq!(Profile::published(&*layout, &subject.digest).await.unwrap(), None);
        let mut profile = Profile::new(subject.digest);
        profile.jobs.insert("job".into(), Vec::new());
        profile.publish(&*layout, &*layout, &subject).await.unwrap();
        assert_eq!(Profile::published(&*layout, &subject.digest).await.unwrap(), Some(profile));
    }

    #[test]
    fn only_what_was_written_is_read() {
        let image = Digest::of(b"image");
        let mut profile = Profile::new(image);
        let ranges = vec![LayerRanges { layer: Digest::of(b"layer"), ranges: vec![(5, 10), (0, 2)] }];
        profile.jobs.insert("job".into(), ranges);
        let json = profile.to_json();
        assert_eq!(Profile::parse(&json, &image).unwrap(), profile);
        let text = String::from_utf8(json).unwrap();
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("[5,10]", "[10,10]"),
            ("[5,10]", "[5,-1]"),
            ("\"jobs\"", "\"works\""),
            ("}", "} "),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            assert_eq!(Profile::parse(changed.as_bytes(), &image).is_err(), to != "} ", "{changed}");
        }
        assert!(Profile::parse(text.as_bytes(), &Digest::of(b"other")).is_err());
        assert!(Profile::parse(&vec![b' '; MAX_PROFILE + 1], &image).is_err());
    }
}

//! From a source's pinned reference to its image tree: the steps, in the order that policy demands.
//!
//! registry allowed -> signature of the pinned digest -> documents -> add-on manifest (from the top layer down) ->
//! shown with its jobs -> the other layers -> tree -> `rootfs`. Whatever is on disk already is taken from there, so
//! that a known image needs no network; the signature is proven again each time, from kept material if need be.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{OnceCell, watch};

use super::board::{Board, Seat};
use super::candidate::Candidate;
use super::clock;
use super::starts::Starts;
use super::streaming::Streaming;
use super::upkeep;
use super::ztocs::Ztocs;
use crate::fetch::addon_manifest::{self, Place, Search};
use crate::fetch::documents::Documents;
use crate::fetch::error::FetchError;
use crate::fetch::image::{self, ImageDocuments};
use crate::fetch::layer::{Filling, Layer, Opening, Progress, Read};
use crate::fetch::registry::RegistryOptions;
use crate::fetch::source::BlobSource;
use crate::fetch::store::Store;
use crate::fetch::verified::VerifiedBytes;
use crate::fetch::{signatures, source};
use crate::fs::image::{Image, ImageTree, Images, TreeError};
use crate::policy::admit::{self, AdmittedImage};
use crate::policy::code::{Code, Denied};
use crate::policy::image::{Descriptor, Platform};
use crate::policy::rules::{Policy, VerifyMode};
use crate::policy::source::spec::{PullPolicy, SourceSpec};
use crate::policy::source::status::Transition;
use crate::policy::trust::evidence::Evidence;

/// Largest add-on manifest; the parser's own limit is the same.
const MAX_ADDON_MANIFEST: u64 = 1 << 20;
/// Layers that are fetched at the same time: decoding one fills a core, and two hide the pauses of the network.
const PARALLEL_LAYERS: usize = 2;

/// What a driver needs of the other rooms; the same for all sources.
#[derive(Debug, Clone)]
pub(crate) struct Rooms {
    /// The rules.
    pub policy: Policy,
    /// Small documents on disk.
    pub documents: Documents,
    /// Layers on disk.
    pub store: Arc<Store>,
    /// The image trees that the kernel sees.
    pub images: Arc<Images>,
    /// Where tree files are kept: `<cache>/trees/<manifest hex>`.
    pub trees: PathBuf,
    /// How to talk to registries.
    pub registry: RegistryOptions,
    /// Which image of an index is ours.
    pub platform: Platform,
    /// How layers are filled in the background, if they are.
    pub filling: Option<Filling>,
    /// How pinned images are.
    pub pinned_filling: Filling,
    /// What is known of the starts of jobs, if anybody wants to know.
    pub starts: Option<Arc<Starts>>,
}

/// Why a source is not ready.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Until something changes.
    Refused(Denied),
    /// For now.
    Failed(FetchError),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(denied) => denied.fmt(f),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl From<Denied> for Trouble {
    fn from(denied: Denied) -> Self {
        Self::Refused(denied)
    }
}

impl From<TreeError> for Trouble {
    fn from(error: TreeError) -> Self {
        match &error {
            TreeError::Disk { source, .. } => {
                Self::Failed(FetchError::storage("cannot keep the tree", source))
            }
            _ => Self::Refused(Denied::new(Code::Oci, format!("the layers do not make a tree: {error}"))),
        }
    }
}

impl From<FetchError> for Trouble {
    fn from(error: FetchError) -> Self {
        Self::Failed(error)
    }
}

/// What the steps after the decision have in common.
struct Way<'a> {
    documents: &'a ImageDocuments,
    ztocs: &'a Ztocs<'a>,
    streaming: Option<&'a Streaming<'a>>,
}

/// One try at one source.
pub(crate) struct Acquisition<'a> {
    /// The rooms.
    pub rooms: &'a Rooms,
    /// Where progress is written down.
    pub board: &'a Board,
    /// Which source.
    pub seat: Seat,
    /// What it asks for.
    pub spec: &'a SourceSpec,
    /// Above zero once somebody wants the layers.
    pub demand: watch::Receiver<u64>,
}

impl Acquisition<'_> {
    /// Runs until `rootfs` is there or something stands in the way. Returns the layers, lowest first.
    pub(crate) async fn run(mut self) -> Result<Vec<Layer>, Trouble> {
        let source = self.begin()?;
        let (admitted, documents) = self.admitted(source.as_ref()).await?;
        self.board.apply(self.seat, Transition::Admitted(admitted.verification().clone()));
        let layers = self.known_layers(&documents, &source)?;
        // Only of what is new here: a known image asks nobody.
        if let Some(starts) = self.rooms.starts.as_ref().filter(|_| layers.iter().any(Option::is_none)) {
            starts.look(documents.digest, &source);
        }
        let ztocs = self.ztocs(&documents, &source);
        let (rooms, spec) = (self.rooms, self.spec);
        let streaming = Streaming::new(
            (self.board, self.seat),
            &rooms.images,
            (spec, rooms.policy.profile),
            &documents,
            &layers,
        );
        let way = Way { documents: &documents, ztocs: &ztocs, streaming: streaming.as_ref() };
        let Some(streaming) = &streaming else { return self.complete(admitted, &way, layers).await };
        let demand = self.waits_for_demand().then(|| self.demand.clone());
        let outcome = tokio::select! {
            outcome = self.complete(admitted, &way, layers) => outcome,
            never = streaming.feed(demand) => match never {},
        };
        match &outcome {
            Ok(_) => streaming.settle(),
            Err(trouble) => streaming.revoke(&trouble.to_string()),
        }
        outcome
    }

    /// Everything up to the add-on's manifest, and no further: whether it could be shown at all.
    pub(crate) async fn examine(self) -> Result<(), Trouble> {
        let source = self.begin()?;
        let (admitted, documents) = self.admitted(source.as_ref()).await?;
        let mut layers = self.known_layers(&documents, &source)?;
        let ztocs = self.ztocs(&documents, &source);
        let way = Way { documents: &documents, ztocs: &ztocs, streaming: None };
        self.show(admitted, &way, &mut layers).await
    }

    /// What is decided before the registry is asked for anything.
    fn begin(&self) -> Result<Arc<dyn BlobSource>, Trouble> {
        admit::source(&self.rooms.policy, self.spec)
            .inspect_err(|denied| self.board.decided(admit::decision(self.spec, Err(denied))))?;
        self.board.apply(self.seat, Transition::Resolve);
        let options = RegistryOptions { insecure: self.spec.insecure, ..self.rooms.registry.clone() };
        Ok(source::open(&self.spec.image.location, &options)?)
    }

    /// The image's layers, those that are here.
    fn known_layers(
        &self,
        documents: &ImageDocuments,
        source: &Arc<dyn BlobSource>,
    ) -> Result<Vec<Option<Layer>>, FetchError> {
        let known = |descriptor| Layer::known(&self.rooms.store, Arc::clone(source), descriptor);
        documents.manifest.layers.iter().map(known).collect()
    }

    fn ztocs<'z>(&self, documents: &'z ImageDocuments, source: &'z Arc<dyn BlobSource>) -> Ztocs<'z> {
        Ztocs {
            source,
            digest: documents.digest,
            manifest: &documents.manifest,
            trust: admit::index_trust(&self.rooms.policy, self.spec),
            found: OnceCell::new(),
        }
    }

    /// The steps after the decision.
    async fn complete(
        &mut self,
        admitted: AdmittedImage,
        way: &Way<'_>,
        mut layers: Vec<Option<Layer>>,
    ) -> Result<Vec<Layer>, Trouble> {
        self.show(admitted, way, &mut layers).await?;
        self.wait_for_demand(&layers).await?;
        self.fetch_missing(way, &mut layers).await?;
        self.board.apply(self.seat, Transition::Index);
        let layers: Vec<Layer> = layers.into_iter().flatten().collect();
        self.publish(way.documents, layers.clone()).await?;
        if let Some(starts) = &self.rooms.starts {
            starts.shown(way.documents.digest, layers.clone());
        }
        Ok(layers)
    }

    /// The decision, and the documents of what was let in. Their bytes are fetched while the signature still is, which
    /// saves its round trips; what became of them counts only after the decision.
    async fn admitted(&self, source: &dyn BlobSource) -> Result<(AdmittedImage, ImageDocuments), Trouble> {
        let mut documents = pin!(self.documents(source));
        let mut fetched = None;
        let mut admit = pin!(self.admit(source));
        let admitted = loop {
            tokio::select! {
                biased;
                outcome = &mut admit => break outcome?,
                outcome = &mut documents, if fetched.is_none() => fetched = Some(outcome),
            }
        };
        let documents = match fetched {
            Some(outcome) => outcome,
            None => documents.await,
        }?;
        admit::manifest(self.spec, &admitted, &documents.pinned_media_type, documents.pinned_size)
            .inspect_err(|denied| self.board.decided(admit::decision(self.spec, Err(denied))))?;
        self.board.apply(self.seat, Transition::Resolved { manifest: documents.digest });
        Ok((admitted, documents))
    }

    /// Signature of the pinned digest. Kept material is tried first; only if it does not do is the source asked.
    async fn admit(&self, source: &dyn BlobSource) -> Result<AdmittedImage, Trouble> {
        let (policy, documents) = (&self.rooms.policy, &self.rooms.documents);
        let (pinned, now) = (&self.spec.image.digest, clock::now_s());
        let outcome = if admit::verify_mode(policy, self.spec) == VerifyMode::Disabled {
            admit::image(policy, self.spec, &[], now)
        } else {
            let kept = documents.signatures(pinned).unwrap_or_default();
            match (kept.is_empty(), admit::image(policy, self.spec, &kept, now)) {
                (false, Ok(admitted)) => Ok(admitted),
                _ => {
                    self.board.local_done(self.seat);
                    let holds = |found: &[Evidence]| {
                        admit::image(policy, self.spec, found, now).is_ok_and(|image| image.is_signed())
                    };
                    let found = signatures::find(source, pinned, &holds).await?;
                    if !found.is_empty() {
                        documents.put_signatures(pinned, &found)?;
                    }
                    admit::image(policy, self.spec, &found, now)
                }
            }
        };
        self.board.decided(admit::decision(self.spec, outcome.as_ref().map_err(|refused| &refused.denied)));
        outcome.map_err(|refused| {
            self.board.apply(self.seat, Transition::Unverified(refused.refusals));
            Trouble::Refused(refused.denied)
        })
    }

    async fn documents(&self, source: &dyn BlobSource) -> Result<ImageDocuments, Trouble> {
        if self.rooms.documents.get(&self.spec.image.digest).is_none() {
            self.board.local_done(self.seat);
        }
        let rooms = self.rooms;
        Ok(image::documents(&rooms.documents, source, &self.spec.image.digest, &rooms.platform).await?)
    }

    /// Finds the add-on's manifest, fetching from the top only as deep as need be, and shows the add-on.
    async fn show(
        &self,
        admitted: AdmittedImage,
        way: &Way<'_>,
        layers: &mut [Option<Layer>],
    ) -> Result<(), Trouble> {
        let documents = way.documents;
        let mut search = Search::default();
        for (index, layer) in layers.iter_mut().enumerate().rev() {
            if layer.is_none() {
                *layer = Some(self.fetch_one(way, index).await?);
            }
            let Some(found) = layer else { continue };
            if let Some(place) = search.look(found.index())? {
                let bytes = read_manifest(found, &place).await?;
                let refused_under = admit::refused_under(&self.rooms.policy, self.spec, &admitted);
                let addon = admit::addon(admitted, &documents.config, &bytes)?;
                let config = Arc::new(documents.config.clone());
                let annotations = &documents.manifest.annotations;
                let candidate = Candidate::new(
                    self.spec,
                    &addon,
                    config,
                    documents.digest,
                    place.folder,
                    annotations,
                    refused_under,
                );
                self.board.propose(self.seat, candidate)?;
                return Ok(());
            }
            if !search.may_go_on() {
                break;
            }
        }
        Err(addon_manifest::missing().into())
    }

    async fn fetch_one(&self, way: &Way<'_>, index: usize) -> Result<Layer, Trouble> {
        let descriptor = &way.documents.manifest.layers[index];
        self.forbid_if_never(descriptor)?;
        self.board.local_done(self.seat);
        let progress = Arc::new(Progress::new(descriptor.size));
        self.board.fetching(self.seat, &progress);
        Ok(self.open(way, index, &progress).await?)
    }

    async fn open(&self, way: &Way<'_>, index: usize, progress: &Progress) -> Result<Layer, FetchError> {
        let (store, ztocs) = (&self.rooms.store, way.ztocs);
        let descriptor = &way.documents.manifest.layers[index];
        let arriving = way.streaming.and_then(|streaming| streaming.layer(index));
        let (tag, head) = (self.spec.image.tag.as_deref(), self.rooms.starts.is_some());
        let opening = Opening { tag, arriving, head, ..Opening::default() };
        let opening = ztocs.opening(store, descriptor, opening).await;
        Layer::open(store, Arc::clone(ztocs.source), descriptor, opening, progress).await
    }

    /// `pull_policy: never` takes what is in the store; `addonfs pull` is a person's word against it.
    fn forbid_if_never(&self, descriptor: &Descriptor) -> Result<(), Denied> {
        if self.spec.pull_policy != PullPolicy::Never || *self.demand.borrow() > 0 {
            return Ok(());
        }
        Err(Denied::new(
            Code::Oci,
            format!(
                "layer {} is not in the store and pull_policy is never: `addonfs pull {}` fetches it",
                descriptor.digest, self.spec.name
            ),
        ))
    }

    fn waits_for_demand(&self) -> bool {
        self.spec.pull_policy == PullPolicy::OnRun && !self.spec.pin
    }

    /// With `pull_policy: on-run` the layers below the manifest's wait until a run or a person wants them.
    async fn wait_for_demand(&mut self, layers: &[Option<Layer>]) -> Result<(), Trouble> {
        if !self.waits_for_demand() || layers.iter().all(Option::is_some) || *self.demand.borrow() > 0 {
            return Ok(());
        }
        self.board.show_without_rootfs(self.seat);
        self.board.apply(self.seat, Transition::Wait);
        self.board.local_done(self.seat);
        // The sender lives as long as the daemon: an error means that it stops.
        let _ = self.demand.wait_for(|count| *count > 0).await;
        Ok(())
    }

    async fn fetch_missing(&self, way: &Way<'_>, layers: &mut [Option<Layer>]) -> Result<(), Trouble> {
        let missing: Vec<usize> = (0..layers.len()).rev().filter(|i| layers[*i].is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let descriptors = &way.documents.manifest.layers;
        for index in &missing {
            self.forbid_if_never(&descriptors[*index])?;
        }
        self.board.local_done(self.seat);
        let progress = Arc::new(Progress::new(missing.iter().map(|index| descriptors[*index].size).sum()));
        self.board.fetching(self.seat, &progress);
        let fetched: Vec<(usize, Layer)> = stream::iter(missing)
            .map(|index| {
                let progress = Arc::clone(&progress);
                async move {
                    let layer = self.open(way, index, &progress).await?;
                    Ok::<_, FetchError>((index, layer))
                }
            })
            .buffer_unordered(PARALLEL_LAYERS)
            .try_collect()
            .await?;
        for (index, layer) in fetched {
            layers[index] = Some(layer);
        }
        Ok(())
    }

    /// Opens the merged tree, making it if it is not there or not whole, and gives it to the kernel's side.
    async fn publish(&self, documents: &ImageDocuments, layers: Vec<Layer>) -> Result<(), Trouble> {
        let digest = documents.digest;
        let path = self.rooms.trees.join(digest.hex());
        let created = documents.config.created.unwrap_or(0);
        let (tree, layers) = tokio::task::spawn_blocking(move || -> Result<_, TreeError> {
            let indexes: Vec<_> = layers.iter().map(Layer::index).collect();
            let tree = match ImageTree::open(&path, &indexes) {
                Ok(tree) => tree,
                Err(_) => {
                    ImageTree::build(&path, &indexes, created)?;
                    upkeep::give_memory_back();
                    ImageTree::open(&path, &indexes)?
                }
            };
            Ok((tree, layers))
        })
        .await
        .map_err(|e| FetchError::storage("building the tree", &std::io::Error::other(e)))??;
        let (manifest_json, config_json) = (documents.manifest_json.clone(), documents.config_json.clone());
        let image = Image { tree, layers, manifest_json, config_json };
        self.rooms
            .images
            .insert(digest, Arc::new(image))
            .map_err(|error| Denied::new(Code::Oci, error.to_string()))?;
        self.board.set_rootfs(self.seat, digest);
        self.board.apply(self.seat, Transition::Ready);
        self.board.local_done(self.seat);
        Ok(())
    }
}

async fn read_manifest(layer: &Layer, place: &Place) -> Result<VerifiedBytes, Trouble> {
    if place.size > MAX_ADDON_MANIFEST {
        return Err(Denied::new(
            Code::AddonManifest,
            format!(
                "/{}/manifest.yaml has {} bytes: at most {MAX_ADDON_MANIFEST} are read",
                place.folder, place.size
            ),
        )
        .into());
    }
    let length = u32::try_from(place.size).unwrap_or(u32::MAX);
    Ok(match layer.read(place.file, 0, length) {
        Read::Ready(bytes) => bytes,
        Read::Pending(bytes) => bytes.await?,
    })
}

//! Images served on a real mount, which is gone when the guard is dropped, after a panic too.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use addonfs::fetch::layer::{Layer, Opening, Progress};
use addonfs::fetch::layout::Layout;
use addonfs::fetch::source::BlobSource;
use addonfs::fetch::store::{Store, StoreOptions};
use addonfs::fs::image::{Image, ImageTree, Images, Side};
use addonfs::fs::kernel::backing::Backings;
use addonfs::fs::kernel::images::{ImageFs, ReadLimits};
use addonfs::fs::kernel::mount::{self, Mounted};
use addonfs::fs::kernel::session::Serving;
use addonfs::policy::digest::Digest;
use addonfs::policy::image::{Document, ImageConfig, parse_document};
use tokio::runtime::{Handle, Runtime};

/// Unmounts when dropped, and frees whoever hangs in a connection that nobody serves.
pub struct Unmount {
    pub path: PathBuf,
    pub connection: u32,
}

impl Unmount {
    pub fn of(mounted: &Mounted) -> Self {
        Self { path: mounted.path.clone(), connection: mounted.connection }
    }
}

impl Drop for Unmount {
    fn drop(&mut self) {
        // its number is certainly its own only while it is mounted
        if mount::connection_of(&self.path) == Some(self.connection) {
            let _ = mount::abort(self.connection);
            let _ = mount::unmount(&self.path);
        }
    }
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime")
}

/// The only image of a layout, ingested into `store`, with its tree at `tree`.
pub async fn open(layout: &Path, store: &Arc<Store>, tree: &Path) -> (Digest, Arc<Image>) {
    let layout = Layout::open(layout).expect("layout");
    let digest = layout.only_image().expect("one image");
    open_from(layout, &digest, store, tree).await
}

pub async fn open_from(
    source: Arc<dyn BlobSource>,
    digest: &Digest,
    store: &Arc<Store>,
    tree: &Path,
) -> (Digest, Arc<Image>) {
    let (kind, manifest_json) = source.manifest(digest).await.expect("manifest");
    let Document::Manifest(manifest) = parse_document(&kind, &manifest_json).expect("image manifest") else {
        panic!("an index")
    };
    let config_json = source.blob(&manifest.config, 8 << 20).await.expect("config");
    let config = ImageConfig::parse(&config_json).expect("config");
    let progress = Progress::new(0);
    let mut layers = Vec::new();
    for layer in &manifest.layers {
        layers.push(
            Layer::open(store, Arc::clone(&source), layer, Opening::default(), &progress)
                .await
                .expect("layer"),
        );
    }
    let indexes: Vec<_> = layers.iter().map(Layer::index).collect();
    if !tree.exists() {
        ImageTree::build(tree, &indexes, config.created.unwrap_or(0)).expect("tree");
    }
    let tree = ImageTree::open(tree, &indexes).expect("tree");
    (*digest, Arc::new(Image { tree, layers, manifest_json, config_json }))
}

/// One connection, mounted and served.
struct Connection {
    guard: Unmount,
    serving: Option<Serving>,
    backings: Backings,
}

impl Connection {
    fn new(side: Side, at: &Path, images: &Arc<Images>, runtime: &Runtime, limits: ReadLimits) -> Self {
        std::fs::create_dir(at).expect("mount point");
        let mounted = mount::mount_images(mount::open_device().expect("/dev/fuse"), at).expect("mount");
        let guard = Unmount::of(&mounted);
        let backings = Backings::create(&at.with_extension("backing")).expect("journal");
        let runtime = runtime.handle().clone();
        let fs = ImageFs::new(side, Arc::clone(images), backings.clone(), runtime, limits);
        let (serving, _) = Serving::start(fs, mounted.device, None).expect("session");
        Self { guard, serving: Some(serving), backings }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = mount::unmount(&self.guard.path);
        let Some(serving) = self.serving.take() else { return };
        if !serving.stop(Duration::from_secs(5)).unwrap_or(false) {
            let _ = mount::abort(self.guard.connection);
        }
    }
}

/// A directory for stores, trees and two mount points; and images shown in it, `mnt` and `xattr-mnt`.
pub struct Shown {
    // first, so that the mounts are gone before the folder is removed
    plain: Connection,
    xattrs: Connection,
    pub images: Arc<Images>,
    pub backings: Backings,
    pub runtime: Runtime,
    pub dir: tempfile::TempDir,
}

impl Shown {
    pub fn new() -> Self {
        Self::with_limits(ReadLimits::default())
    }

    pub fn with_limits(limits: ReadLimits) -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let runtime = runtime();
        let images = Arc::new(Images::new(None, "../xattr-mnt"));
        let connect = |side, name| Connection::new(side, &dir.path().join(name), &images, &runtime, limits);
        let (plain, xattrs) = (connect(Side::Plain, "mnt"), connect(Side::Xattrs, "xattr-mnt"));
        let backings = plain.backings.clone();
        Self { plain, xattrs, images, backings, runtime, dir }
    }

    pub fn handle(&self) -> &Handle {
        self.runtime.handle()
    }

    pub fn store(&self) -> Arc<Store> {
        Store::open(&self.dir.path().join("store"), StoreOptions::default()).expect("store")
    }

    /// Shows the only image of a layout; the path of its digest directory.
    pub fn show(&self, layout: &Path, store: &Arc<Store>) -> PathBuf {
        let name = layout.file_name().expect("a layout's folder").display();
        let tree = self.dir.path().join(format!("tree-{name}"));
        let (digest, image) = self.runtime.block_on(open(layout, store, &tree));
        self.images.insert(digest, image).expect("insert");
        self.plain.guard.path.join(digest.dashed())
    }

    /// Number of the usual connection.
    pub fn connection(&self) -> u32 {
        self.plain.guard.connection
    }

    /// The backing ids of the connection with extended attributes.
    pub fn xattr_backings(&self) -> &Backings {
        &self.xattrs.backings
    }

    pub fn device(&self) -> std::os::fd::BorrowedFd<'_> {
        self.plain.serving.as_ref().expect("served").device()
    }
}

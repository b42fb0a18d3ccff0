//! An OCI image layout on disk (image-spec `image-layout.md`), as a source and as a sink.
//!
//! ```text
//! PATH/oci-layout             {"imageLayoutVersion":"1.0.0"}
//! PATH/index.json             descriptors; a tag is the annotation org.opencontainers.image.ref.name
//! PATH/blobs/sha256/<hex>     manifests, indexes, configs, layers
//! ```
//!
//! In: a folder that somebody else may have made. Out: manifests and blobs, checked as those of a registry are.
//! Every file is written beside its place, synced and renamed; `index.json` is rewritten under an exclusive lock
//! (flock) on the folder, so that two writers lose no tag. Readers take no lock: they see the old file or the new.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use serde_json::{Value, json};

use super::document::{self, MAX_DOCUMENT};
use super::error::{Class, FetchError, Side};
use super::sink::{BlobContent, BlobSink, READ_SIZE};
use super::source::BlobSource;
use super::verified::VerifiedBytes;
use crate::policy::digest::{Digest, Hasher};
use crate::policy::image::Descriptor;

/// The annotation by which `index.json` names a tag (image-spec `annotations.md`).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The only version there is (image-spec `image-layout.md`).
const LAYOUT_VERSION: &str = "1.0.0";
/// Another writer holds the lock for one rewrite of a small file; longer means that it hangs.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// A layout.
pub struct Layout {
    path: PathBuf,
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layout({})", self.path.display())
    }
}

impl Layout {
    /// The layout at `path`, which must exist.
    pub fn open(path: &Path) -> Result<Arc<Self>, FetchError> {
        let layout = Self { path: path.to_owned() };
        let marker = layout.read_small("oci-layout")?;
        let version = serde_json::from_slice::<Value>(&marker).ok();
        let version = version.as_ref().and_then(|v| v.get("imageLayoutVersion")).and_then(Value::as_str);
        if version != Some(LAYOUT_VERSION) {
            let message = format!("{}: not an image layout of version {LAYOUT_VERSION}", path.display());
            return Err(FetchError::new(Class::Protocol, Side::Local, message));
        }
        Ok(Arc::new(layout))
    }

    /// The layout at `path`, made if there is none. A folder that holds other things is refused.
    pub fn create(path: &Path) -> Result<Arc<Self>, FetchError> {
        if path.join("oci-layout").exists() {
            return Self::open(path);
        }
        let name = path.display().to_string();
        let storage = |error: io::Error| FetchError::storage(&name, &error);
        std::fs::create_dir_all(path.join("blobs/sha256")).map_err(storage)?;
        let foreign = std::fs::read_dir(path).map_err(storage)?.filter_map(Result::ok);
        let known = ["blobs", "index.json", "oci-layout"];
        if foreign.map(|entry| entry.file_name()).any(|n| {
            let n = n.to_string_lossy();
            !known.contains(&n.as_ref()) && !n.starts_with(TEMPORARY)
        }) {
            let message = format!("{name}: not empty and not an image layout: name another folder");
            return Err(FetchError::new(Class::Storage, Side::Local, message));
        }
        let layout = Self { path: path.to_owned() };
        let _lock = layout.lock()?;
        if !path.join("index.json").exists() {
            layout.replace("index.json", empty_index().to_string().as_bytes())?;
        }
        // last, because it is what makes the folder a layout
        layout.replace("oci-layout", json!({"imageLayoutVersion": LAYOUT_VERSION}).to_string().as_bytes())?;
        Ok(Arc::new(layout))
    }

    /// The digest of the only image, for references that name neither tag nor digest.
    pub fn only_image(&self) -> Result<Digest, FetchError> {
        let mut digests: Vec<_> = self.entries()?.into_iter().map(|(d, _)| d.digest).collect();
        digests.sort();
        digests.dedup();
        match digests.as_slice() {
            [one] => Ok(*one),
            [] => Err(self.trouble(Class::NotFound, "holds no image".to_owned())),
            many => Err(self.trouble(
                Class::NotFound,
                format!("holds {} images: say which, as oci:PATH:TAG or oci:PATH@DIGEST", many.len()),
            )),
        }
    }

    /// Tags and what they name, in the order of `index.json`.
    pub fn tags(&self) -> Result<Vec<(String, Digest)>, FetchError> {
        let entries = self.entries()?;
        Ok(entries.into_iter().filter_map(|(d, tag)| Some((tag?, d.digest))).collect())
    }

    /// The descriptors of `index.json` with their tags.
    fn entries(&self) -> Result<Vec<(Descriptor, Option<String>)>, FetchError> {
        let content = self.read_small("index.json")?;
        let children =
            document::children(&content).map_err(|e| e.context(self.path.join("index.json").display()))?;
        let tagged = |d: Descriptor| {
            let tag = d.annotations.iter().find(|(key, _)| key == REF_NAME).map(|(_, value)| value.clone());
            (d, tag)
        };
        Ok(children.manifests.into_iter().map(tagged).collect())
    }

    fn find_tag(&self, tag: &str) -> Result<Option<Digest>, FetchError> {
        let mut found = self.tags()?.into_iter().filter(|(name, _)| name == tag).map(|(_, digest)| digest);
        let Some(first) = found.next() else { return Ok(None) };
        match found.find(|other| *other != first) {
            None => Ok(Some(first)),
            Some(other) => Err(self.trouble(
                Class::Protocol,
                format!("index.json names two images {tag:?}: {first} and {other}; say which by its digest"),
            )),
        }
    }

    fn read_manifest(&self, digest: &Digest) -> Result<(String, VerifiedBytes), FetchError> {
        let content = self.read_small(&blob_name(digest))?;
        let content = VerifiedBytes::check(content.into(), digest)
            .map_err(|error| FetchError { side: Side::Local, ..error }.context(self.path.display()))?;
        let entries = self.entries()?;
        let entry = entries.iter().find(|(d, _)| d.digest == *digest);
        let hint = entry.map_or("", |(d, _)| d.media_type.as_str());
        let media_type = document::media_type(&content, hint).map_err(|error| error.context(digest))?;
        Ok((media_type, content))
    }

    /// A blob's file, if it is as long as the descriptor says.
    fn open_blob(&self, blob: &Descriptor) -> Result<File, FetchError> {
        let (file, length) = self.open_file(&blob_name(&blob.digest))?;
        if length != blob.size {
            let why = format!("blob {} has {length} bytes, and the manifest says {}", blob.digest, blob.size);
            return Err(self.trouble(Class::Corrupt, why));
        }
        Ok(file)
    }

    /// A regular file below the layout and its length. Others are refused without waiting for them (a FIFO would
    /// block its opener).
    fn open_file(&self, name: &str) -> Result<(File, u64), FetchError> {
        let path = self.path.join(name);
        let failed = |error: io::Error| {
            let mut failed = FetchError::storage(&path.display().to_string(), &error);
            if error.kind() == io::ErrorKind::NotFound {
                failed.class = Class::NotFound;
            }
            failed
        };
        let nonblocking = nix::fcntl::OFlag::O_NONBLOCK.bits();
        let file = File::options().read(true).custom_flags(nonblocking).open(&path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(self.trouble(Class::Protocol, format!("{name} is not a regular file")));
        }
        Ok((file, metadata.len()))
    }

    fn read_small(&self, name: &str) -> Result<Vec<u8>, FetchError> {
        let (file, length) = self.open_file(name)?;
        if length > MAX_DOCUMENT {
            return Err(self.trouble(Class::Protocol, format!("{name} is larger than {MAX_DOCUMENT} bytes")));
        }
        let mut content = Vec::new();
        let read = file.take(MAX_DOCUMENT).read_to_end(&mut content);
        read.map_err(|e| FetchError::storage(&self.path.join(name).display().to_string(), &e))?;
        Ok(content)
    }

    /// Names `digest` by `tag` in `index.json`, and no longer what had the tag before.
    fn tag(&self, media_type: &str, digest: &Digest, size: usize, tag: &str) -> Result<(), FetchError> {
        let _lock = self.lock()?;
        let mut index: Value = match self.read_small("index.json") {
            Ok(content) => serde_json::from_slice(&content)
                .map_err(|e| self.trouble(Class::Protocol, format!("index.json is not JSON: {e}")))?,
            Err(error) if error.class == Class::NotFound => empty_index(),
            Err(error) => return Err(error),
        };
        let Some(manifests) = index.get_mut("manifests").and_then(Value::as_array_mut) else {
            return Err(self.trouble(Class::Protocol, "index.json has no list of manifests".to_owned()));
        };
        manifests.retain(|d| d.pointer("/annotations").and_then(|a| a.get(REF_NAME)) != Some(&json!(tag)));
        manifests.push(json!({
            "mediaType": media_type,
            "digest": digest,
            "size": size,
            "annotations": {REF_NAME: tag},
        }));
        self.replace("index.json", index.to_string().as_bytes())
    }

    /// Held until dropped.
    fn lock(&self) -> Result<File, FetchError> {
        let name = self.path.display().to_string();
        let folder = File::open(&self.path).map_err(|e| FetchError::storage(&name, &e))?;
        let start = Instant::now();
        loop {
            match folder.try_lock() {
                Ok(()) => return Ok(folder),
                Err(std::fs::TryLockError::WouldBlock) if start.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(std::fs::TryLockError::WouldBlock) => {
                    return Err(self.trouble(Class::Storage, "another program keeps it locked".to_owned()));
                }
                Err(std::fs::TryLockError::Error(error)) => return Err(FetchError::storage(&name, &error)),
            }
        }
    }

    fn temporary(&self) -> Result<tempfile::NamedTempFile, FetchError> {
        use std::os::unix::fs::PermissionsExt as _;
        tempfile::Builder::new()
            .prefix(TEMPORARY)
            .permissions(std::fs::Permissions::from_mode(0o644))
            .tempfile_in(&self.path)
            .map_err(|e| FetchError::storage(&self.path.display().to_string(), &e))
    }

    /// Puts a complete temporary file into its place, durably.
    fn install(&self, temporary: tempfile::NamedTempFile, name: &str) -> Result<(), FetchError> {
        let place = self.path.join(name);
        let failed = |error: io::Error| FetchError::storage(&place.display().to_string(), &error);
        temporary.as_file().sync_all().map_err(failed)?;
        temporary.persist(&place).map_err(|error| failed(error.error))?;
        let folder = place.parent().unwrap_or(&self.path);
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<(), FetchError> {
        use std::io::Write as _;
        let mut temporary = self.temporary()?;
        temporary
            .write_all(content)
            .map_err(|e| FetchError::storage(&self.path.join(name).display().to_string(), &e))?;
        self.install(temporary, name)
    }

    fn trouble(&self, class: Class, why: String) -> FetchError {
        FetchError::new(class, Side::Local, format!("{}: {why}", self.path.display()))
    }
}

/// How unfinished files begin; whatever is left of them after a crash may be removed.
const TEMPORARY: &str = ".addonfs-";

fn empty_index() -> Value {
    json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []})
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Runs disk work on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    let failed = |_| FetchError::new(Class::Storage, Side::Local, "reading the image layout was interrupted");
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

impl Layout {
    fn handle(&self) -> Self {
        Self { path: self.path.clone() }
    }
}

#[async_trait]
impl BlobSource for Layout {
    async fn manifest(&self, digest: &Digest) -> Result<(String, VerifiedBytes), FetchError> {
        let (layout, digest) = (self.handle(), *digest);
        blocking(move || layout.read_manifest(&digest)).await
    }

    async fn resolve(&self, tag: &str) -> Result<Option<Digest>, FetchError> {
        let (layout, tag) = (self.handle(), tag.to_owned());
        blocking(move || layout.find_tag(&tag)).await
    }

    async fn blob(&self, blob: &Descriptor, limit: u64) -> Result<VerifiedBytes, FetchError> {
        if blob.size > limit {
            let why = format!("blob {}: {} bytes, over the limit of {limit}", blob.digest, blob.size);
            return Err(self.trouble(Class::Protocol, why));
        }
        let content = self.range(blob, 0..blob.size).await?;
        VerifiedBytes::check(content, &blob.digest)
            .map_err(|error| FetchError { side: Side::Local, ..error }.context(self.path.display()))
    }

    async fn stream(
        &self,
        blob: &Descriptor,
        from: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, FetchError>>, FetchError> {
        let (layout, wanted) = (self.handle(), blob.clone());
        let file = Arc::new(blocking(move || layout.open_blob(&wanted)).await?);
        let (end, name) = (blob.size, blob.digest.to_string());
        let parts = stream::try_unfold(from, move |at| {
            let (file, name) = (Arc::clone(&file), name.clone());
            async move {
                if at >= end {
                    return Ok(None);
                }
                let until = end.min(at + READ_SIZE as u64);
                let part = blocking(move || read_range(&file, at..until, &name)).await?;
                Ok(Some((part, until)))
            }
        });
        Ok(parts.boxed())
    }

    async fn range(&self, blob: &Descriptor, range: Range<u64>) -> Result<Bytes, FetchError> {
        if range.start > range.end || range.end > blob.size {
            let why = format!("{range:?} is not within the {} bytes of {}", blob.size, blob.digest);
            return Err(self.trouble(Class::Protocol, why));
        }
        let (layout, blob) = (self.handle(), blob.clone());
        blocking(move || read_range(&layout.open_blob(&blob)?, range, &blob.digest.to_string())).await
    }
}

/// The range lies within a file that was just seen to be that long, so the allocation is bounded by the disk.
fn read_range(file: &File, range: Range<u64>, name: &str) -> Result<Bytes, FetchError> {
    let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let mut content = vec![0; length];
    file.read_exact_at(&mut content, range.start).map_err(|e| FetchError::storage(name, &e))?;
    Ok(content.into())
}

#[async_trait]
impl BlobSink for Layout {
    async fn has_blob(&self, blob: &Descriptor) -> Result<bool, FetchError> {
        let (layout, blob) = (self.handle(), blob.clone());
        blocking(move || match layout.open_blob(&blob) {
            Ok(_) => Ok(true),
            // a file of the wrong length is written anew
            Err(error) if matches!(error.class, Class::NotFound | Class::Corrupt) => Ok(false),
            Err(error) => Err(error),
        })
        .await
    }

    async fn put_blob(&self, blob: &Descriptor, content: BlobContent) -> Result<(), FetchError> {
        use std::io::Write as _;
        let (mut parts, sent) = content.open(blob).await?;
        let layout = self.handle();
        let mut temporary = blocking(move || layout.temporary()).await?;
        let (mut hasher, mut size) = (Hasher::new(), 0);
        while let Some(part) = parts.next().await {
            let part = part.inspect_err(|_| sent.undo())?;
            size += part.len() as u64;
            if size > blob.size {
                break;
            }
            (temporary, hasher) = blocking(move || {
                hasher.update(&part);
                temporary.write_all(&part).map_err(|e| FetchError::storage("image layout", &e))?;
                Ok((temporary, hasher))
            })
            .await?;
        }
        if size != blob.size || hasher.finish() != blob.digest {
            sent.undo();
            let message =
                format!("content to be stored as {} ({} bytes) is not that", blob.digest, blob.size);
            return Err(FetchError::corrupt(Side::Remote, message));
        }
        let (layout, name) = (self.handle(), blob_name(&blob.digest));
        blocking(move || layout.install(temporary, &name)).await
    }

    async fn put_manifest(
        &self,
        media_type: &str,
        content: Bytes,
        tag: Option<&str>,
    ) -> Result<Digest, FetchError> {
        let digest = Digest::of(&content);
        if let Some(tag) = tag.filter(|tag| !document::is_tag(tag)) {
            return Err(self.trouble(Class::Protocol, format!("{tag:?} is not a tag")));
        }
        let (layout, media_type, tag) = (self.handle(), media_type.to_owned(), tag.map(str::to_owned));
        blocking(move || {
            layout.replace(&blob_name(&digest), &content)?;
            match tag {
                Some(tag) => layout.tag(&media_type, &digest, content.len(), &tag),
                None => Ok(()),
            }
        })
        .await?;
        Ok(digest)
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;

//! Pinning by command; the daemon's `ctl` and a process without a daemon do it the same way.

use crate::fetch::documents::Documents;
use crate::fetch::image;
use crate::fetch::store::{By, Kind, Pin, Store};
use crate::policy::digest::Digest;
use crate::policy::platform::Platform;

/// Pins or unpins what a person named `what`: a source, whose image is then `image`, or a digest. The answer or the
/// refusal in words.
pub(crate) fn change(
    store: &Store,
    documents: &Documents,
    what: &str,
    image: Option<Digest>,
    pin: bool,
) -> Result<String, String> {
    let named = image.or_else(|| what.parse().ok());
    let digest = named.ok_or_else(|| format!("{what:?} is neither a source nor a digest (sha256:…)"))?;
    if pin { add(store, documents, what, digest) } else { remove(store, what, &digest) }
}

fn add(store: &Store, documents: &Documents, what: &str, image: Digest) -> Result<String, String> {
    let layers = match image::known(documents, &image, &Platform::host()) {
        Some((_, manifest)) => manifest.layers.iter().map(|layer| layer.digest).collect(),
        None if store.has(Kind::Index, &image) => vec![image],
        None => {
            return Err(format!("nothing is known of {what} yet: `addonfs pull` fetches a source's image"));
        }
    };
    store.pin(Pin { image, by: By::Command, layers }).map_err(|error| error.to_string())?;
    Ok(match store.pin_trouble() {
        Some(trouble) => {
            tracing::warn!("{trouble}");
            format!("pinned; but {trouble}\n")
        }
        None => "pinned\n".to_owned(),
    })
}

fn remove(store: &Store, what: &str, image: &Digest) -> Result<String, String> {
    if store.unpin(image, By::Command).map_err(|error| error.to_string())? {
        return Ok(match store.is_pinned(image) {
            true => "unpinned here; the configuration goes on pinning it\n".to_owned(),
            false => "unpinned\n".to_owned(),
        });
    }
    Err(match store.pins().iter().any(|pin| pin.image == *image) {
        true => format!("{what} is pinned by the configuration: remove `pin: true` there and mount again"),
        false => format!("{what} is not pinned"),
    })
}

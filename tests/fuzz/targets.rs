//! One function a parser of foreign bytes: it must return, and what it accepts must hold together.

use addonfs::fetch::index::LayerIndex;
use addonfs::fetch::index::build::index_tar;
use addonfs::fetch::index::file::Format;
use addonfs::fetch::index::toc::index_table;
use addonfs::fetch::index::ztoc::index_ztoc;
use addonfs::fs::image::merge::Merge;
use addonfs::policy::addon::AddonManifest;
use addonfs::policy::digest::Digest;
use addonfs::policy::image::{Descriptor, ImageConfig, OCI_INDEX, OCI_MANIFEST, parse_document};
use addonfs::policy::reference::ImageRef;
use addonfs::policy::soci::{Binding, SociIndex};
use addonfs::policy::trust::simple_signing::Payload;

/// A parser under its name; the corpus lies in a folder of that name.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    ("tar", tar),
    ("layer_index", layer_index),
    ("table_of_contents", table_of_contents),
    ("ztoc", ztoc),
    ("soci_index", soci_index),
    ("addon_manifest", addon_manifest),
    ("yaml", yaml),
    ("image_document", image_document),
    ("image_config", image_config),
    ("signature_payload", signature_payload),
    ("reference", reference),
];

fn tar(bytes: &[u8]) {
    if let Ok(index) = index_tar(bytes) {
        walk(&index);
    }
}

/// The checksum is made right: it is the records behind it that a reader follows.
fn layer_index(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    sealed.extend(Digest::of(bytes).as_bytes());
    if let Ok(index) = LayerIndex::from_bytes(sealed) {
        walk(&index);
    }
}

fn table_of_contents(bytes: &[u8]) {
    let blob = Descriptor {
        media_type: String::new(),
        digest: Digest::of(b""),
        size: 1 << 20,
        annotations: Vec::new(),
    };
    for format in [Format::EStargz, Format::ZstdChunked] {
        if let Ok(index) = index_table(bytes, &blob, format) {
            walk(&index);
        }
    }
}

/// The size of the layer is made right, wherever the zTOC has it.
fn ztoc(bytes: &[u8]) {
    for size in [57_527, 121_856] {
        let blob =
            Descriptor { media_type: String::new(), digest: Digest::of(b""), size, annotations: Vec::new() };
        if let Ok(index) = index_ztoc(bytes, &blob) {
            walk(&index);
        }
    }
}

fn soci_index(bytes: &[u8]) {
    for binding in [Binding::ByImage, Binding::ToImage(&Digest::of(b"image"))] {
        if let Ok(index) = SociIndex::parse(bytes, binding) {
            let _ = index.ztoc(&Digest::of(b"layer"));
        }
    }
}

fn walk(index: &LayerIndex) {
    for entry in (0..index.len()).filter_map(|at| index.entry(at)) {
        assert!(entry.mtime_nsec < 1_000_000_000);
        assert_eq!(entry.xattrs.iter().count(), entry.xattrs.len());
    }
    // whiteouts, links, extended attributes: what the merged tree makes of them
    let _ = Merge::new(0).apply(index.entries());
}

fn addon_manifest(bytes: &[u8]) {
    if let Err(problems) = AddonManifest::parse(bytes) {
        assert!(!problems.is_empty(), "refused without a reason");
    }
}

fn yaml(bytes: &[u8]) {
    let _ = addonfs::policy::yaml::parse(bytes);
}

fn image_document(bytes: &[u8]) {
    for media_type in [OCI_MANIFEST, OCI_INDEX, ""] {
        let _ = parse_document(media_type, bytes);
    }
}

fn image_config(bytes: &[u8]) {
    let _ = ImageConfig::parse(bytes);
}

fn signature_payload(bytes: &[u8]) {
    let _ = Payload::parse(bytes);
}

/// What is printed is what was meant.
fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(reference) = text.parse::<ImageRef>() {
        let printed = reference.to_string();
        let again = printed.parse::<ImageRef>();
        assert_eq!(again.ok().as_ref(), Some(&reference), "{text:?} prints as {printed:?}");
    }
}

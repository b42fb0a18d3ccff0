//! A program's file, loader and libraries are read before anybody asks for them.
#![allow(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use addonfs::fetch::layer::{Layer, Opening, Progress};
use addonfs::fetch::source;
use addonfs::fetch::store::{Store, StoreOptions};
use addonfs::fs::image::file::NodeBody;
use addonfs::fs::image::{Image, ImageTree, program};
use addonfs::policy::image::{Document, parse_document};
use addonfs::policy::reference::ImageRef;

/// A root with the host's shell under two names, what it needs, a script, and files that nobody needs.
fn rootfs(dir: &Path) -> Vec<PathBuf> {
    let listing = Command::new("ldd").arg("/bin/sh").output().unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    let libraries: Vec<PathBuf> =
        listing.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect();
    assert!(libraries.len() >= 2, "{listing}");
    for path in libraries.iter().map(PathBuf::as_path).chain([Path::new("/bin/sh")]) {
        let to = dir.join(path.strip_prefix("/").unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(path, to).unwrap();
    }
    std::os::unix::fs::symlink("../bin/sh", dir.join("bin/shell")).unwrap();
    for (name, content) in [("script", "#!/usr/bin/env shell\necho 1\n"), ("data", "not a program")] {
        std::fs::write(dir.join(name), content).unwrap();
    }
    std::fs::create_dir_all(dir.join("usr/bin")).unwrap();
    std::fs::copy("/usr/bin/env", dir.join("usr/bin/env")).unwrap();
    // Large and of no use: read-ahead of neighbours does not reach over it.
    let mut state = 1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    let noise: Vec<u8> = (0..3_000_000).map(|_| next()).collect();
    std::fs::write(dir.join("zzz"), noise).unwrap();
    libraries
}

async fn image(dir: &Path) -> (Image, Vec<PathBuf>) {
    let (root, addon, layout) = (dir.join("root"), dir.join("addon"), dir.join("layout"));
    std::fs::create_dir_all(&root).unwrap();
    std::fs::create_dir_all(&addon).unwrap();
    let libraries = rootfs(&root);
    let manifest = "name: a\nversion: 1.0.0\nentrypoints: [{id: a, command: [/bin/sh]}]\n";
    std::fs::write(addon.join("manifest.yaml"), manifest).unwrap();
    let built = Command::new(env!("CARGO_BIN_EXE_addonfs"))
        .args([
            "build".as_ref(),
            addon.as_os_str(),
            "--rootfs".as_ref(),
            root.as_os_str(),
            "--output".as_ref(),
        ])
        .arg(format!("oci:{}", layout.display()))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let reference: ImageRef = format!("oci:{}:latest", layout.display()).parse().unwrap();
    let source = source::open(&reference.location, &Default::default()).unwrap();
    let digest = source.resolve("latest").await.unwrap().unwrap();
    let (media_type, bytes) = source.manifest(&digest).await.unwrap();
    let Ok(Document::Manifest(manifest)) = parse_document(&media_type, &bytes) else { panic!("no manifest") };
    let store = Store::open(&dir.join("store"), StoreOptions::default()).unwrap();
    let opening = Opening { whole_up_to: 0, ..Opening::default() };
    let mut layers = Vec::new();
    for descriptor in &manifest.layers {
        let progress = Progress::new(0);
        layers.push(Layer::open(&store, Arc::clone(&source), descriptor, opening, &progress).await.unwrap());
    }
    let indexes: Vec<_> = layers.iter().map(Layer::index).collect();
    ImageTree::build(&dir.join("tree"), &indexes, 0).unwrap();
    let tree = ImageTree::open(&dir.join("tree"), &indexes).unwrap();
    (Image { tree, layers, manifest_json: bytes.clone(), config_json: bytes }, libraries)
}

fn is_here(image: &Image, path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    let path = path.strip_prefix("/").unwrap_or(path);
    let node = image.tree.find(path.as_os_str().as_bytes()).unwrap_or_else(|| panic!("{}", path.display()));
    match image.tree.node(node).unwrap().body {
        NodeBody::File { layer, file, .. } => image.layers[layer as usize].has_file(file),
        body => panic!("{body:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_brings_its_libraries() {
    for argv in [["/bin/sh", "/data"], ["shell", "/data"], ["/script", "/data"]] {
        let dir = tempfile::tempdir().unwrap();
        let (image, libraries) = image(dir.path()).await;
        assert!(!is_here(&image, Path::new("/bin/sh")), "nothing is here yet");
        program::read_ahead(&image, &argv.map(str::to_owned), "/usr/bin:/bin").await;
        for path in libraries.iter().map(PathBuf::as_path).chain([Path::new("bin/sh"), Path::new("data")]) {
            assert!(is_here(&image, path), "{argv:?}: {}", path.display());
        }
        assert!(!is_here(&image, Path::new("zzz")));
    }
}

//! `addonfs index`: an image that cannot change, read by ranges on machines that trust the key of its index.

use serde_json::Value;

use crate::common::image::noise;
use crate::common::session::{Session, TOOLS};

/// An ordinary tar+gzip image, signed, with a layer of some megabytes; its reference and its layers' digests.
fn ordinary(s: &Session) -> (String, Vec<String>) {
    s.addon("tools", TOOLS);
    for number in 0..3 {
        s.write(&format!("tools/large-{number}.bin"), noise(number + 1, 1 << 20));
    }
    s.write("tools/small.txt", "a small file\n");
    // Both layers are larger than what is fetched whole anyway.
    s.write("rootfs/data.bin", noise(9, 1 << 20));
    let words = "build tools --rootfs rootfs --format gzip --tag v1 --output oci:tools.oci";
    s.addonfs(words.split(' ')).ok();
    let digest = s.push("tools");
    s.sign("tools", &digest);
    let manifest = format!("cat tools.oci/blobs/sha256/{}", digest.trim_start_matches("sha256:"));
    let manifest: Value = serde_json::from_str(&s.sh(&manifest).ok()).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter();
    let layers = layers.map(|layer| {
        assert!(layer["annotations"].is_null(), "an ordinary layer: {layer}");
        layer["digest"].as_str().unwrap().to_owned()
    });
    (s.reference("tools", &digest), layers.collect())
}

/// Makes the index of `image`, which is named as the configuration does.
fn index(s: &Session, image: &str, key: &str) -> Value {
    let words =
        ["index", "--key", key, "--min-layer-size", "1Mi", "--span-size", "256Ki", "-o", "json", image];
    serde_json::from_str(&s.addonfs(words).ok()).unwrap()
}

fn configure(s: &Session, image: &str, index_keys: &str) {
    s.configure("prefetch: {fill: false, profiles: false}", &[("tools", image, "")]);
    let keys = format!("s/keys: .cosign.pub./&, index_keys: [{index_keys}]/");
    s.sh(&format!("sed -i '{keys}' addonfs.yaml && grep -q 'index_keys: .{index_keys}' addonfs.yaml")).ok();
}

/// Whether any of the layers was asked for whole.
fn any_whole(s: &Session, layers: &[String]) -> bool {
    let seen = s.proxy().take_seen("/blobs/");
    let of_layers = seen.iter().filter(|seen| layers.iter().any(|layer| seen.path.contains(layer)));
    let mut gets = of_layers.filter(|seen| seen.method == "GET").peekable();
    assert!(gets.peek().is_some(), "nothing was asked for: {seen:?}");
    // A whole layer is asked for without a range, or from its beginning to its end.
    gets.any(|get| get.range.as_deref().is_none_or(|range| range == "bytes=0-"))
}

const READ: &str = "cmp $M/tools/addon/small.txt tools/small.txt && \
     cmp <(tail -c 5000 $M/tools/addon/large-1.bin) <(tail -c 5000 tools/large-1.bin) && \
     cmp $M/tools/rootfs/bin/busybox rootfs/bin/busybox && $M/tools/sh/run --script 'echo job'";

#[test]
fn an_indexed_image_is_read_by_ranges() {
    let s = Session::proxied();
    s.addonfs(["keygen", "--output", "index"]).ok();
    s.addonfs(["keygen", "--output", "other"]).ok();
    let (image, layers) = ordinary(&s);

    // Nobody's index, and that of a key that is not trusted for indexes: the layer is fetched whole.
    index(&s, &image, "other.key");
    for keys in ["index.pub", "cosign.pub"] {
        configure(&s, &image, keys);
        s.proxy().take_seen("");
        s.ready();
        assert_eq!(s.sh(READ).ok(), "job\n");
        assert!(any_whole(&s, &layers), "{keys}");
        s.umount();
        s.sh("rm -rf cache").ok();
    }

    let made = index(&s, &image, "index.key");
    assert_eq!(made["layers"], layers.len(), "{made}");
    configure(&s, &image, "index.pub");
    s.proxy().take_seen("");
    s.ready();
    assert_eq!(s.sh(READ).ok(), "job\n");
    assert!(!any_whole(&s, &layers), "{}", s.log());

    // The next start asks for nothing: index and content are here.
    s.umount();
    s.proxy().take_seen("");
    s.ready();
    assert_eq!(s.sh(READ).ok(), "job\n");
    assert_eq!(s.proxy().take_seen("").len(), 0, "{}", s.log());
    s.umount();

    // Without keys for indexes nobody is asked for any: the one list of referrers is for signatures.
    s.sh("rm -rf cache; sed -i 's/, index_keys: .index.pub.//' addonfs.yaml").ok();
    s.ready();
    let asked = s.proxy().take_seen("");
    assert!(asked.iter().filter(|seen| seen.path.contains("referrers")).count() <= 1, "{asked:?}");
}

#[test]
fn an_index_of_a_layout_is_found_in_it() {
    let s = Session::new();
    s.addonfs(["keygen", "--output", "index"]).ok();
    let (image, _) = ordinary(&s);
    let digest = image.split_once('@').unwrap().1;
    let local = format!("oci:./tools.oci:v1@{digest}");
    s.addonfs(["sign", "--key", "cosign.key", &local]).ok();
    let made = index(&s, &local, "index.key");
    assert_eq!(made["image"], digest);
    configure(&s, &local, "index.pub");
    s.ready();
    assert_eq!(s.sh(READ).ok(), "job\n");
    // Only a layer that is read by a zTOC leaves something to be learned.
    let learned = s.sh("ls cache/store/layers/*/learned").ok();
    assert_eq!(made["layers"], learned.lines().count(), "{learned}");
}

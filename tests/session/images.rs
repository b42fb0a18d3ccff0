//! Images of other makes and from other places: a layout, an index, Docker's media types, buildah, gzip members.

use serde_json::{Value, json};

use crate::common::image;
use crate::common::session::{Session, TOOLS};

/// An image layout on disk needs no registry; its signatures are tags in its index.
#[test]
fn a_layout_is_a_source() {
    let s = Session::bare();
    s.addonfs(["keygen", "--output", "cosign"]).ok();
    let digest = s.build("tools", TOOLS);
    let image = format!("oci:./tools.oci:v1@{digest}");
    s.configure("", &[("tools", &image, "")]);
    let refused = s.mount_with(&["--strict"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("image.signature.required"), "{refused:?}");
    s.umount();
    s.addonfs(["sign", "--key", "cosign.key", &format!("oci:./tools.oci@{digest}")]).ok();
    let index: Value = serde_json::from_str(&s.sh("cat tools.oci/index.json").ok()).unwrap();
    let tag = format!("{}.sig", digest.replace(':', "-"));
    let tags: Vec<&Value> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["annotations"]["org.opencontainers.image.ref.name"])
        .collect();
    assert!(tags.contains(&&json!(tag)), "{index}");
    s.ready();
    assert_eq!(s.sh("$M/tools/sh/run --script 'cat /addon/data.txt'").ok(), "data of the add-on\n");
    s.umount();
    // policy knows it as a registry of its own
    let config = s.sh("sed -i 's/, oci-layout//' addonfs.yaml; sed -i \"s/'oci-layout'/ghcr.io/\" addonfs.yaml; cat addonfs.yaml").ok();
    assert!(config.contains("allowed_registries: [ghcr.io]"), "{config}");
    let refused = s.mount();
    assert!(
        refused.err.contains("image.registry.not.allowed") && refused.err.contains("oci-layout"),
        "{refused:?}"
    );
}

/// skopeo's Docker schema 2, buildah's image and buildah's index of several platforms, all in one mount.
#[test]
fn images_of_other_makes() {
    let s = Session::new();
    s.build("tools", TOOLS);
    let host = s.host();
    let copy = format!(
        "skopeo copy -q --dest-tls-verify=false --digestfile d --format v2s2 oci:tools.oci:v1 docker://{host}/org/docker:v1"
    );
    let docker = s.sh(&format!("{copy} && cat d")).ok();
    let kind = s.sh(&format!("curl -s -H 'Accept: application/vnd.docker.distribution.manifest.v2+json' http://{host}/v2/org/docker/manifests/v1 | jq -r .mediaType,.layers[0].mediaType")).ok();
    assert!(
        kind.contains("docker.distribution.manifest.v2") && kind.contains("docker.image.rootfs.diff"),
        "{kind}"
    );

    s.addon("made", TOOLS);
    let buildah = "buildah --root $PWD/bs --runroot $PWD/br --storage-driver vfs";
    let made = s.sh(&format!(
        "set -e; b='{buildah}'; c=$($b from scratch); $b copy -q $c rootfs / >&2; $b copy -q $c made /addon >&2; \
         $b config --env MADE_BY=buildah --workingdir /data $c; $b commit -q $c made >&2; $b push -q --tls-verify=false --digestfile d2 made docker://{host}/org/made:v1 >&2; \
         cat d2"
    ));
    let made = made.ok();

    let other = if cfg!(target_arch = "x86_64") { "arm64" } else { "amd64" };
    let foreign = format!("linux/{other}");
    s.addon("foreign", &TOOLS.replace("test-tools", "of-another-platform"));
    s.addonfs(["build", "foreign", "--platform", &foreign, "--output", "oci:foreign.oci:v1"]).ok();
    let index = s.sh(&format!(
        "set -e; b='{buildah}'; $b manifest create many >&2; $b manifest add --arch {other} many oci:foreign.oci:v1 >&2; \
         $b manifest add many oci:tools.oci:v1 >&2; \
         $b manifest push -q --all --tls-verify=false --digestfile d3 many docker://{host}/org/many:v1 >&2; cat d3"
    ));
    let index = index.ok().trim().to_owned();

    for (name, digest) in [("docker", &docker), ("made", &made), ("many", &index)] {
        s.sign(name, digest.trim());
    }
    let reference = |name: &str, digest: &str| s.reference(name, digest.trim());
    s.configure(
        "",
        &[
            ("docker", &reference("docker", &docker), ""),
            ("made", &reference("made", &made), ""),
            ("many", &reference("many", &index), ""),
        ],
    );
    s.ready();
    for name in ["docker", "made", "many"] {
        s.sh(&format!("cmp $M/{name}/rootfs/etc/os-release /etc/os-release && cmp $M/{name}/manifest.yaml tools/manifest.yaml")).ok();
        assert_eq!(
            s.sh(&format!("$M/{name}/sh/run --script 'cat /addon/data.txt'")).ok(),
            "data of the add-on\n"
        );
    }
    assert_eq!(s.sh("$M/made/sh/run --script 'echo $MADE_BY; pwd'").ok(), "buildah\n/data\n");
    // the index is what is pinned, the manifest of our platform is what is shown
    let addon = s.json("many/addon.json");
    assert_eq!(addon["digest"], json!(index.trim()));
    assert_ne!(addon["manifest_digest"], addon["digest"]);
    assert_eq!(
        s.sh("mkdir $M/many/sh/runs/o && jq -r .origin.addon_image_digest $M/many/sh/runs/o/record.json")
            .ok(),
        format!("{index}\n")
    );
}

/// A gzip layer of several members, and one that pigz made.
#[test]
fn gzip_of_several_members() {
    let s = Session::bare();
    s.addonfs(["keygen", "--output", "cosign"]).ok();
    s.addon("add", TOOLS);
    s.write("add/large.bin", image::noise(7, 3 << 20));
    s.sh(
        "set -e; mkdir both; cp -r rootfs/. both/; cp -r add both/addon; tar c -C both . > all.tar; \
         split -b 700000 all.tar part.; for p in part.*; do gzip -c $p; done > members.gz; pigz -c -b 128 all.tar > pigz.gz; \
         test $(gzip -dc members.gz | cmp - all.tar && echo same) = same",
    )
    .ok();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut sources = vec![];
    for name in ["members", "pigz"] {
        let layer = std::fs::read(s.path(&format!("{name}.gz"))).unwrap();
        let (layout, tar) = (s.path(&format!("{name}.oci")), std::fs::read(s.path("all.tar")).unwrap());
        let digest = runtime.block_on(image::write_gzip(&layout, "v1", layer, &tar));
        s.addonfs(["sign", "--key", "cosign.key", &format!("oci:{name}.oci@{digest}")]).ok();
        sources.push((name, format!("oci:{name}.oci@{digest}")));
    }
    let sources: Vec<_> = sources.iter().map(|(name, image)| (*name, image.as_str(), "")).collect();
    s.configure("", &sources);
    s.ready();
    s.sh("cmp $M/members/addon/large.bin add/large.bin && cmp $M/pigz/addon/large.bin add/large.bin").ok();
    assert_eq!(s.sh("$M/members/sh/run --script 'wc -c < /addon/large.bin'").ok(), format!("{}\n", 3 << 20));
    s.umount();
    // the content is lost, the indexes are not: single members are decoded again from their checkpoints
    s.sh("rm -rf cache/store/files/* cache/store/packs/* cache/store/chunks/*").ok();
    s.ready();
    s.sh("cmp $M/members/addon/large.bin add/large.bin && cmp $M/pigz/addon/large.bin add/large.bin").ok();
    s.sh("cmp $M/members/rootfs/bin/busybox rootfs/bin/busybox").ok();
}

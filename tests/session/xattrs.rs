//! An add-on whose files have extended attributes beside one whose files have none: two connections, one mount.

use std::fs;

use crate::common::image::{self, noise};
use crate::common::session::{Session, Started, TOOLS, eventually, kill9};

/// `plain` as `addonfs build` makes it, and `labelled`, whose layer is what GNU tar makes of a tree with attributes.
fn session() -> Session {
    let s = Session::bare();
    s.addonfs(["keygen", "--output", "cosign"]).ok();
    s.addon("tools", TOOLS);
    s.write("tools/large.bin", noise(3, 3 << 20));
    let plain = s.build("tools", TOOLS);
    s.sh(
        "set -e; mkdir both; cp -a rootfs/. both/; cp -a tools both/addon; setcap cap_net_raw=ep both/bin/busybox; \
         mknod -m 666 both/zero c 1 5; setfattr -n user.note -v of-the-file both/addon/data.txt; setfattr -n user.note -v of-the-folder both/addon; \
         tar c --xattrs --xattrs-include='*' -C both . > labelled.tar; gzip -k labelled.tar",
    )
    .ok();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (layer, tar) =
        (fs::read(s.path("labelled.tar.gz")).unwrap(), fs::read(s.path("labelled.tar")).unwrap());
    let labelled = runtime.block_on(image::write_gzip(&s.path("labelled.oci"), "v1", layer, &tar));
    for image in [format!("oci:tools.oci@{plain}"), format!("oci:labelled.oci@{labelled}")] {
        s.addonfs(["sign", "--key", "cosign.key", &image]).ok();
    }
    s.configure(
        "",
        &[
            ("plain", &format!("oci:tools.oci@{plain}"), ""),
            ("labelled", &format!("oci:labelled.oci@{labelled}"), "mountPath: deep/labelled"),
        ],
    );
    s
}

/// Everything about the attributes that a caller sees.
const LOOK: &str = "cd $M/deep/labelled && getcap rootfs/bin/busybox && \
    getfattr -d -m - addon/data.txt addon/. && stat -c '%F' $M/.addonfs/xattr-images";

#[test]
fn both_kinds_in_one_mount() {
    let s = session();
    s.ready();
    assert_eq!(s.mounts().len(), 3);
    let seen = s.sh(LOOK).ok();
    for part in ["cap_net_raw=ep", "user.note=\"of-the-file\"", "user.note=\"of-the-folder\"", "directory"] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    // the same names as ever lead there, from anywhere, and walkers still go nowhere
    assert!(s.sh("readlink $M/deep/labelled/rootfs").ok().starts_with("../../.addonfs/images/sha256-"));
    assert!(s.sh("realpath $M/deep/labelled/rootfs").ok().contains("/.addonfs/xattr-images/sha256-"));
    assert!(s.sh("realpath $M/plain/rootfs").ok().contains("/.addonfs/images/sha256-"));
    assert!(!s.sh("find $M").ok().contains("images"));
    let refused = s.sh("getfattr -n user.note $M/plain/addon/data.txt").refused();
    assert!(refused.contains("not supported"), "{refused}");

    // a job runs on each, its shell with capabilities that no container can have; and no device is the image's
    for source in ["plain", "deep/labelled"] {
        let said = s.sh(&format!("$M/{source}/sh/run --script 'cat /addon/data.txt'"));
        assert_eq!(said.ok(), "data of the add-on\n", "{source}");
    }
    assert!(
        s.sh("test -c $M/deep/labelled/rootfs/zero && test -x $M/deep/labelled/rootfs/bin/busybox")
            .ok()
            .is_empty()
    );
    assert_eq!(
        s.sh("$M/deep/labelled/sh/run --script 'ls -d /zero /bin/busybox 2>/dev/null'").out,
        "/bin/busybox\n"
    );
    // a bind of the whole mount carries all three
    let bound = "mkdir B && mount --rbind $M B && cd B/deep/labelled && getcap rootfs/bin/busybox; umount -l $OLDPWD/B";
    let bound = s.sh(&format!("cd {} && {bound}", s.dir.path().display()));
    assert!(bound.out.contains("cap_net_raw=ep"), "{bound:?}");

    let others = s.addonfs(["status"]).ok();
    assert!(others.contains("labelled"), "one mount, found without its name: {others}");
    s.umount();
    assert!(s.mounts().is_empty() && s.processes().is_empty());
}

/// Holds files of both connections open and asks for attributes all the time, until `stop` exists.
const READER: &str = r#"
import os, time
m = os.environ["M"]
both = [(open(f"{m}/{source}/addon/{name}", "rb", 0), open(f"tools/{name}", "rb").read())
    for source in ["plain", "deep/labelled"] for name in ["large.bin", "data.txt"]]
labelled = f"{m}/deep/labelled/addon/data.txt"
rounds = 0
while not os.path.exists("stop"):
    for file, content in both:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        read = b""
        while piece := file.read(1 << 16): read += piece
        assert read == content, (file.name, len(read))
    for path in [labelled, both[3][0].fileno()]:
        assert os.getxattr(path, "user.note") == b"of-the-file"
        assert os.listxattr(path) == ["user.note"]
    try:
        os.getxattr(labelled, "user.none")
        assert False
    except OSError as error:
        assert error.errno == 61, error
    try:
        os.getxattr(f"{m}/plain/addon/data.txt", "user.none")
        assert False
    except OSError as error:
        assert error.errno == 95, error
    rounds += 1
    open("rounds", "w").write(str(rounds))
"#;

fn more_rounds(s: &Session, reader: &mut Started) {
    let rounds = || fs::read_to_string(s.path("rounds")).ok().and_then(|text| text.parse::<u64>().ok());
    let before = rounds().unwrap_or(0);
    eventually("two more rounds", || {
        assert!(reader.running(), "the reader ended: {}", s.log());
        (rounds() > Some(before + 1)).then_some(())
    });
}

#[test]
fn open_files_of_both_outlive_several_daemons() {
    let s = session();
    s.ready();
    s.write("reader.py", READER);
    let mut reader = s.start("python3 reader.py");
    more_rounds(&s, &mut reader);
    for _ in 0..4 {
        let killed = s.daemon();
        kill9(killed);
        eventually("the next daemon", || (s.daemon() != killed).then_some(()));
        more_rounds(&s, &mut reader);
    }
    s.write("stop", "");
    let done = reader.finish();
    assert_eq!((done.code, done.err.as_str()), (0, ""), "no error, no wrong byte");
    assert_eq!(s.mounts().len(), 3);
    s.sh(LOOK).ok();
    s.umount();
    assert!(s.mounts().is_empty() && s.processes().is_empty());
}

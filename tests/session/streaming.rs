//! `stream: true`: an image is read while its layers arrive, by a registry that sends the rest only when it is told to.

use std::io::Write as _;

use addonfs::policy::digest::Digest;

use crate::common::fault_proxy::{ALWAYS, Fault, Gate};
use crate::common::image::{self, noise};
use crate::common::session::{Session, Started, TOOLS, eventually};

/// What has arrived of every layer that is held back.
const ARRIVED: usize = 400_000;

/// Members of a tar: a name that ends with `/` is a directory, one with ` -> ` a symlink.
fn tar(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(if name.ends_with('/') { 0o755 } else { 0o644 });
        header.set_size(content.len() as u64);
        if let Some((name, target)) = name.split_once(" -> ") {
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, name, target).unwrap();
            continue;
        }
        let kind = if name.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular };
        header.set_entry_type(kind);
        tar.append_data(&mut header, name, &content[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(tar: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    gzip.write_all(tar).unwrap();
    gzip.finish().unwrap()
}

/// One layer: `early/` arrives, of `large.bin` the first half does, `late.txt` and the add-on do not.
fn one_layer() -> Vec<u8> {
    tar(&[
        ("early/", vec![]),
        ("early/small.txt", b"a small file\n".to_vec()),
        ("early/link -> small.txt", vec![]),
        ("early/large.bin", noise(3, 600_000)),
        ("early/late.txt", b"late\n".to_vec()),
        ("addon/", vec![]),
        ("addon/manifest.yaml", TOOLS.into()),
    ])
}

/// A session whose image `tools` has these layers, lowest first; of the blobs whose number is in `held` only so much
/// arrives. With `lie` a byte that has not arrived is another one.
fn session(layers: Vec<(&'static str, Vec<u8>, Digest)>, held: &[usize], lie: bool) -> (Session, Gate) {
    let s = Session::proxied();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (digest, blobs) = runtime.block_on(image::write_encoded(&s.path("tools.oci"), "v1", layers));
    s.push("tools");
    let gate = Gate::new();
    for at in held {
        let flip = lie.then_some(ARRIVED + 1000);
        let hold = Fault::Hold { after: ARRIVED, flip, gate: gate.clone() };
        s.proxy().fail("GET", format!("/blobs/{}", blobs[*at]), ALWAYS, hold);
    }
    let image = s.reference("tools", &digest.to_string());
    let more = "read: {deadline: 60s, stall_timeout: 120s}";
    s.configure(more, &[("tools", &image, "stream: true")]);
    s.sh("sed -i 's/profile: secure/profile: permissive/' addonfs.yaml").ok();
    (s, gate)
}

/// Mounts, which goes on until the source is ready.
fn mount(s: &Session) -> Started {
    s.start("$ADDONFS mount --strict --config addonfs.yaml --state-dir state --cache-dir cache $M")
}

fn rootfs(s: &Session) -> String {
    s.sh("readlink $M/tools/rootfs").out
}

fn arrives(s: &Session, file: &str) {
    eventually(file, || (s.sh(&format!("test -e $M/tools/rootfs/{file}")).code == 0).then_some(()));
}

/// A program that holds files of the tree open, maps one, and reads them when told to by a file's name.
const HOLDER: &str = r#"
import mmap, os, signal, time
root = os.environ["M"] + "/tools/rootfs/early/"
small, large = open(root + "small.txt", "rb", 0), open(root + "large.bin", "rb", 0)
mapped = mmap.mmap(small.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
assert mapped[:7] == b"a small"
open("holding", "w").close()
while not os.path.exists("go"): time.sleep(0.02)
def outcome(read):
    try: return str(len(read()))
    except OSError as error: return os.strerror(error.errno)
print(outcome(lambda: os.pread(small.fileno(), 100, 0)))
print(outcome(lambda: b"".join(iter(lambda: large.read(1 << 16), b""))))
def touch():
    if os.fork() == 0: os._exit(0 if mapped[:7] == b"a small" else 1)
    return os.wait()[1]
patience = time.monotonic() + 60
while os.path.exists("revoked") and touch() == 0 and time.monotonic() < patience: time.sleep(0.02)
print(signal.strsignal(touch()) if touch() else "mapped")
"#;

fn holder(s: &Session) -> Started {
    s.write("holder.py", HOLDER);
    let mut holder = s.start("python3 holder.py");
    eventually("the holder's files", || {
        assert!(holder.running(), "the holder ended");
        s.path("holding").exists().then_some(())
    });
    holder
}

fn reads_while_arriving(suffix: &'static str, encode: fn(&[u8]) -> Vec<u8>) {
    let layer = one_layer();
    let (s, gate) = session(vec![(suffix, encode(&layer), Digest::of(&layer))], &[0], false);
    s.write("large.bin", noise(3, 600_000));
    let mounting = mount(&s);
    arrives(&s, "early/large.bin");

    let streaming = rootfs(&s);
    assert!(streaming.ends_with(".stream/rootfs\n"), "{streaming}");
    assert_eq!(s.sh("ls -A $M/tools").ok(), "rootfs\n", "what the image is for is not known yet");
    assert_eq!(
        s.sh("ls -A $M/tools/rootfs $M/tools/rootfs/early")
            .ok()
            .replace(s.mount_point().to_str().unwrap(), "M"),
        "M/tools/rootfs:\nearly\n\nM/tools/rootfs/early:\nlarge.bin\nlink\nsmall.txt\n"
    );
    assert_eq!(s.cat("tools/rootfs/early/link"), "a small file\n");
    assert_eq!(s.sh("stat -c '%s %a' $M/tools/rootfs/early/large.bin").ok(), "600000 644\n");
    s.sh("cmp -n 300000 $M/tools/rootfs/early/large.bin large.bin").ok();
    // what has not arrived is not there, and is not remembered as missing
    assert!(s.sh("cat $M/tools/rootfs/early/late.txt").refused().contains("No such file"));
    let phase = s.source("tools")["phase"].clone();
    assert_eq!(phase, "fetching");

    let mut waiting = s.start("cmp $M/tools/rootfs/early/large.bin large.bin && echo same");
    let holder = holder(&s);
    assert!(waiting.running(), "half of it has not arrived");
    gate.open();
    assert_eq!(waiting.finish().ok(), "same\n");
    mounting.finish().ok();
    let complete = rootfs(&s);
    assert!(complete.ends_with("/rootfs\n") && !complete.contains("stream"), "{complete}");
    assert_eq!(s.cat("tools/rootfs/early/late.txt"), "late\n");
    s.write("go", "");
    assert_eq!(holder.finish().ok(), "13\n600000\nmapped\n", "open files go on");
    // who was in the streaming tree finds the rest there, also in a listing that the kernel had kept
    let there = format!("$M/tools/{}/early", streaming.trim());
    assert_eq!(
        s.sh(&format!("ls {there}; cat {there}/late.txt")).ok(),
        "large.bin\nlate.txt\nlink\nsmall.txt\nlate\n"
    );
    assert_eq!(s.sh("$M/tools/sh/plan --script x > /dev/null && ls $M/tools").ok().lines().count(), 8);
    s.umount();
}

#[test]
fn a_tar_is_read_while_it_arrives() {
    reads_while_arriving("", <[u8]>::to_vec);
}

#[test]
fn a_gzip_layer_is_read_while_it_arrives() {
    reads_while_arriving("+gzip", gzip);
}

/// The rest is another one than the digest says: names are gone, open files answer EIO, nothing stays.
#[test]
fn a_lie_is_taken_back() {
    let layer = one_layer();
    let digest = Digest::of(&layer);
    let (s, gate) = session(vec![("", layer, digest)], &[0], true);
    let mounting = mount(&s);
    arrives(&s, "early/large.bin");
    let streaming = rootfs(&s);
    assert_eq!(s.cat("tools/rootfs/early/small.txt"), "a small file\n");
    let holder = holder(&s);
    // the next try comes to nothing, too
    s.proxy().heal();
    s.proxy().fail("GET", "/blobs/", ALWAYS, Fault::status(503));
    gate.open();
    let mounted = mounting.finish();
    assert!(mounted.code == 1 && mounted.err.contains("the registry sent something else"), "{mounted:?}");
    s.write("revoked", "");
    s.write("go", "");
    assert_eq!(holder.finish().ok(), "Input/output error\nInput/output error\nBus error\n");
    let there = format!("$M/tools/{}", streaming.trim());
    assert!(s.sh(&format!("cat {there}/early/small.txt")).code != 0);
    let told = s.cat(".addonfs/sources/tools/events.jsonl");
    let revoked = told.lines().find(|line| line.contains("stream.revoked")).unwrap_or_default();
    assert!(revoked.contains("the registry sent something else"), "{told}");
    let kept = s.sh("find cache/store/files cache/store/packs cache/store/layers -type f | wc -l").ok();
    assert_eq!(kept, "0\n", "nothing of it stays");
    s.proxy().heal();
    s.addonfs(["pull", "tools"]).ok();
    assert_eq!(s.cat("tools/rootfs/early/late.txt"), "late\n");
    assert!(!rootfs(&s).contains("stream"));
}

/// The upper layer hides and replaces what the lower one brings, also before that is complete.
#[test]
fn what_upper_layers_hide_is_never_shown() {
    let lower = tar(&[
        ("d/", vec![]),
        ("d/gone", b"x".to_vec()),
        ("d/stays", b"stays\n".to_vec()),
        ("opaque/", vec![]),
        ("opaque/old", b"x".to_vec()),
        ("replaced", b"old\n".to_vec()),
        ("large.bin", noise(5, 600_000)),
        ("late", b"late\n".to_vec()),
    ]);
    let upper = tar(&[
        ("d/", vec![]),
        ("d/.wh.gone", vec![]),
        ("opaque/", vec![]),
        ("opaque/.wh..wh..opq", vec![]),
        ("opaque/new", b"new\n".to_vec()),
        ("replaced", b"new\n".to_vec()),
        ("addon/", vec![]),
        ("addon/manifest.yaml", TOOLS.into()),
    ]);
    let layers = [lower, upper].map(|layer| ("", layer.clone(), Digest::of(&layer)));
    let (s, gate) = session(layers.into(), &[0], false);
    let mounting = mount(&s);
    arrives(&s, "large.bin");
    assert!(rootfs(&s).ends_with(".stream/rootfs\n"));
    let list = "cd $M/tools/rootfs/ && find . ! -name 'large.bin' | sort";
    let early = "./addon\n./addon/manifest.yaml\n./d\n./d/stays\n./opaque\n./opaque/new\n./replaced\n";
    assert_eq!(s.sh(list).ok(), format!(".\n{early}"));
    assert_eq!(s.sh("cd $M/tools/rootfs; cat replaced d/stays opaque/new").ok(), "new\nstays\nnew\n");
    // the add-on's own layer is proven: its jobs are there, and wait for the image
    let job = s.start("$M/tools/brief/plan | head -n 1");
    job.finish().ok();
    gate.open();
    mounting.finish().ok();
    assert!(!rootfs(&s).contains("stream"));
    assert_eq!(
        s.sh(list).ok(),
        ".\n./addon\n./addon/manifest.yaml\n./d\n./d/stays\n./late\n./opaque\n./opaque/new\n./replaced\n"
    );
}

#[test]
fn profile_secure_refuses_it() {
    let layer = one_layer();
    let digest = Digest::of(&layer);
    let (s, _gate) = session(vec![("", layer, digest)], &[], false);
    s.sh("sed -i 's/profile: permissive/profile: secure/' addonfs.yaml").ok();
    let refused = s.mount().refused();
    assert!(refused.contains("E_CONFIG") && refused.contains("stream: true of source tools"), "{refused}");
}

/// The daemon dies while an image arrives: what was open is no more, nobody hangs, and the next daemon goes on.
#[test]
fn a_daemons_death_ends_what_arrives() {
    let layer = one_layer();
    let digest = Digest::of(&layer);
    let (s, gate) = session(vec![("", layer, digest)], &[0], false);
    let mounting = mount(&s);
    arrives(&s, "early/large.bin");
    let streaming = rootfs(&s);
    let holder = holder(&s);
    let mut waiting = s.start("cat $M/tools/rootfs/early/large.bin > /dev/null");
    eventually("it waits for what has not arrived", || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        waiting.running().then_some(())
    });
    crate::crash::next_daemon(&s);
    let broken = waiting.finish();
    assert!(broken.err.contains("Stale file handle"), "{broken:?}");
    s.write("revoked", "");
    s.write("go", "");
    assert_eq!(holder.finish().ok(), "Stale file handle\nStale file handle\nBus error\n");
    arrives(&s, "early/large.bin");
    assert_eq!(rootfs(&s), streaming);
    assert_eq!(s.cat("tools/rootfs/early/small.txt"), "a small file\n");
    gate.open();
    drop(mounting.finish());
    eventually("the image", || (!rootfs(&s).contains("stream")).then_some(()));
    assert_eq!(s.cat("tools/rootfs/early/late.txt"), "late\n");
}

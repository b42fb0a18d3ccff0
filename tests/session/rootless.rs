//! An ordinary user with fusermount3: slower, and everything is there.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::common::session::{Session, TOOLS};

const DEVICE: &str = "/dev/fuse";

/// udev gives `/dev/fuse` to everybody; where there is no udev, this does for a while.
struct EverybodysFuse(Permissions);

impl EverybodysFuse {
    fn new() -> Self {
        let before = std::fs::metadata(DEVICE).expect("/dev/fuse").permissions();
        std::fs::set_permissions(DEVICE, Permissions::from_mode(0o666)).unwrap();
        Self(before)
    }
}

impl Drop for EverybodysFuse {
    fn drop(&mut self) {
        let _ = std::fs::set_permissions(DEVICE, self.0.clone());
    }
}

#[test]
fn an_ordinary_user() {
    let _everybodys = EverybodysFuse::new();
    let mut s = Session::new();
    let image = s.publish("tools", TOOLS);
    s.configure("", &[("tools", &image, "mountPath: tools")]);
    for name in ["run", "M"] {
        std::fs::create_dir(s.path(name)).unwrap();
    }
    let chown = Command::new("chown").args(["-R", "65534:65534"]).arg(s.dir.path()).status().unwrap();
    assert!(chown.success());
    s.as_user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "env"]
        .map(str::to_owned)
        .to_vec();
    s.as_user.push(format!("XDG_RUNTIME_DIR={}", s.path("run").display()));
    s.ready();
    assert_eq!(s.mounts().len(), 3);
    s.sh("cmp $M/tools/rootfs/etc/os-release /etc/os-release && cmp $M/tools/rootfs/bin/busybox rootfs/bin/busybox").ok();
    s.sh("cmp $M/tools/manifest.yaml tools/manifest.yaml; cmp $M/tools/addon/data.txt tools/data.txt").ok();
    let link = s.sh("readlink $M/tools/rootfs").ok();
    assert!(link.starts_with(s.path("run").to_str().unwrap()), "{link}");
    assert_eq!(s.sh("stat -L -c '%u %g %a' $M/tools/rootfs/bin/busybox").ok(), "65534 65534 755\n");
    let status = s.addonfs(["status"]).ok();
    assert!(status.contains("passthrough is off"), "{status}");
    let status = s.status();
    assert_eq!(status["reading"]["passthrough"], false);
    s.sh("find $M > /dev/null; grep -r test-tools $M > /dev/null").ok();
    s.umount();
    assert!(s.mounts().is_empty() && s.processes().is_empty());
    s.ready();
    assert_eq!(s.source("tools")["ready"], true);
}

"""One tree of 69,000 entries in many forms, each mounted at will: plain, ours, images of the kernel, peers' daemons."""

import json
import os
import subprocess
import time

from machine import run
from services import Daemon
from start import ALONE
from systems import Stargz, clear, nydus_config, nydusd

IMAGE = "science"


class Form:
    """A way to see the tree at `root`. This one: the plain file system."""

    name = "ext4"

    def __init__(self, bench):
        self.bench, self.root = bench, bench.unpacked(IMAGE)

    def up(self):
        """Mounts it anew."""

    def down(self):
        """Takes it away."""

    def pid(self):
        """The daemon that serves it."""
        return None


class KernelImage(Form):
    """One file that the kernel mounts."""

    def __init__(self, bench, kind):
        super().__init__(bench)
        self.name, self.kind = kind, kind
        self.root = bench.work / "mounts" / kind

    def up(self):
        self.root.mkdir(parents=True, exist_ok=True)
        options = "loop,ro" if self.kind == "squashfs" else "ro"
        run("mount", "-t", self.kind, "-o", options, self.bench.work / f"forms/science.{self.kind}", self.root)

    def down(self):
        run("umount", self.root)


class UserImage(Form):
    """A FUSE daemon in the foreground."""

    def __init__(self, bench, name, command):
        super().__init__(bench)
        self.name, self.command, self.process = name, command, None
        self.root = bench.work / "mounts" / name

    def up(self):
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.bench.work / f"log/{self.name}.log", "w", encoding="utf-8") as log:
            self.process = subprocess.Popen([str(w) for w in self.command(self.root)], stdout=log, stderr=log)
        for _ in range(2000):
            if os.path.ismount(self.root):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise RuntimeError(f"{self.name} does not mount: see its log")

    def down(self):
        run("umount", self.root)
        self.process.terminate()
        self.process.wait()

    def pid(self):
        return self.process.pid


class Ours(Form):
    """addonfs, content complete in the store."""

    name, remote = "addonfs", False

    def __init__(self, bench):
        super().__init__(bench)
        self.daemon = None
        self.begin()

    def begin(self):
        """Fetches all of it once."""
        self.daemon = Daemon(self.bench.registry, f"forms-{int(self.remote)}", [f"estargz/{IMAGE}"], extra=ALONE)
        self.root = self.daemon.mount_point / IMAGE / "rootfs"
        if not self.remote:
            self.daemon.mount()
            read_all(self.root)
            self.daemon.unmount()

    def up(self):
        if self.remote:
            self.begin()
        self.daemon.mount()

    def down(self):
        self.daemon.unmount()

    def pid(self):
        return self.daemon.pid()


class OursRemote(Ours):
    """addonfs with empty state and cache."""

    name, remote = "addonfs, from the registry", True


class StargzForm(Form):
    """A view of the snapshot that stargz serves; its disk cache is complete, or empty."""

    def __init__(self, bench, remote):
        super().__init__(bench)
        self.remote = remote
        self.name = "stargz, from the registry" if remote else "stargz"
        self.peer = Stargz(bench, f"forms-stargz-{int(remote)}", "estargz")
        self.root = self.peer.folder / "view"
        if not remote:
            self._begin()
            self._view()
            read_all(self.root)
            run("umount", self.root)

    def _begin(self):
        self.peer.start()
        run("sh", "-ec", f"{self.peer.pull.format(socket=self.peer.socket)} {self.peer.reference(IMAGE, False)}")

    def _view(self):
        self.root.mkdir(exist_ok=True)
        snapshots = [*self.peer.ctr("snapshots"), "--snapshotter", "stargz"]
        rows = [line.split() for line in run(*snapshots, "ls").splitlines()[1:]]
        committed = [row for row in rows if row[-1] == "Committed"]
        below = {row[1] for row in committed if len(row) == 3}
        top = next(row[0] for row in committed if row[0] not in below)
        for _ in range(8):  # nothing holds a view against containerd's collector before it is mounted
            key = f"view-{time.monotonic_ns()}"
            run(*snapshots, "view", key, top)
            mounting = subprocess.run([*snapshots, "mounts", self.root, key], stdout=subprocess.PIPE, check=False)
            if mounting.returncode == 0 and subprocess.run(mounting.stdout, shell=True, check=False).returncode == 0:
                return
            time.sleep(0.3)
        raise RuntimeError("stargz: no view of the image can be mounted")

    def up(self):
        if self.remote:
            self._begin()
        self._view()

    def down(self):
        run("umount", self.root)
        if self.remote:
            self.peer.end()

    def pid(self):
        return self.peer.daemon()

    def close(self):
        """Ends what stays between operations."""
        self.peer.end()


def all_forms(bench):
    """Those whose content is on disk, and those that begin with nothing."""
    work = bench.work
    squashfuse = ["squashfuse_ll", "-f", work / "forms/science.squashfs"]
    index = work / "forms/science.tar.gz.index"
    ratarmount = [work / "venv/bin/ratarmount", "-f", "--index-file", index, work / "forms/science.tar.gz"]
    if not index.exists():
        made = UserImage(bench, "ratarmount", lambda root: [*ratarmount, root])
        made.up(), made.down()
    forms = [
        Form(bench), Ours(bench), KernelImage(bench, "squashfs"), KernelImage(bench, "erofs"),
        UserImage(bench, "squashfuse", lambda root: [*squashfuse, root]),
        UserImage(bench, "ratarmount", lambda root: [*ratarmount, root]),
        StargzForm(bench, False),
    ]  # fmt: skip
    if nydusd(bench).exists() and (work / "forms/nydus-science/boot").exists():
        forms.append(UserImage(bench, "nydus", lambda root: _nydus(bench, root)))
    return forms, [OursRemote(bench), StargzForm(bench, True)]


def _nydus(bench, root):
    folder = bench.work / "systems/forms-nydus"
    clear(folder)
    (folder / "cache").mkdir(parents=True)
    local = {"type": "localfs", "config": {"dir": str(bench.work / "forms/nydus-science")}}
    (folder / "nydusd.json").write_text(json.dumps(nydus_config(local, folder / "cache")))
    return [nydusd(bench), "--config", folder / "nydusd.json", "--mountpoint", root, "--bootstrap",
            bench.work / "forms/nydus-science/boot", "--apisock", folder / "api.sock", "--rlimit-nofile", "0",
            "--log-level", "warn"]  # fmt: skip


def read_all(root):
    """Brings everything of a tree that is fetched when it is read."""
    run("sh", "-ec", f"tar -C {root}/ -cf - . | cat >/dev/null")

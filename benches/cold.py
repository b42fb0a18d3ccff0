"""From nothing to the first byte of a job's output: everything of a container that a user waits for the first time.

Inside our clock: `addonfs mount` with the source in the configuration (start of holder and daemon, proof of the runtime,
signature, documents, all layers fetched, verified, decoded and indexed, the tree made), then the job's `run`. Inside
podman's: `podman pull` into a fresh storage, then `podman run`. Outside of both: the registry, which runs. All page
caches are dropped before.
"""

import shutil
import subprocess

from figures import Pairs, median
from machine import drop_caches, first_output
from report import Row, milliseconds, ratio
from services import Daemon

ARGV = ["/usr/bin/python3", "/addon/bin/probe.py"]


def cold(bench):
    """First output of `probe`."""
    pairs = Pairs()
    podman = Podman(bench)
    for number in range(bench.rounds(9)):
        pairs.round(number, lambda: _ours(bench), podman.once)
    return [
        Row("first output of a job from an 87 MB image, nothing cached", milliseconds(pairs.ours),
            f"podman {milliseconds(pairs.peer)}", ratio(pairs.ratios()), "at most 1×", median(pairs.ratios()) <= 1,
            len(pairs.ours))
    ]  # fmt: skip


def _ours(bench):
    daemon = Daemon(bench.registry, "cold", ["tools"])
    drop_caches()
    mount = " ".join(f"'{word}'" for word in daemon.command())
    try:
        return first_output("/bin/sh", "-ec", f"{mount} >&2; '{daemon.mount_point}/tools/probe/run'")[0]
    finally:
        daemon.__exit__()


class Podman:
    """podman with a storage of its own. No raised limits, no event log, no CNI: what it needs least."""

    def __init__(self, bench):
        self.folder = bench.work / "podman"
        self.image = bench.registry.reference("tools")
        self.command = (
            f"podman --root {self.folder}/root --runroot {self.folder}/run --storage-driver overlay "
            "--cgroup-manager cgroupfs --events-backend none --runtime crun"
        )

    def once(self):
        """Pulls and runs; seconds to the first byte."""
        self.folder.mkdir(exist_ok=True)
        limits = "--ulimit nofile=1024:1024 --ulimit nproc=1000:1000"
        script = (
            f"{self.command} pull -q --tls-verify=false {self.image} >&2; "
            f"{self.command} run {limits} --rm --network none {self.image} {' '.join(ARGV)}"
        )
        drop_caches()
        try:
            return first_output("/bin/sh", "-ec", script)[0]
        finally:
            self.clear()

    def clear(self):
        """Takes its mounts and files away."""
        for path in ("root/overlay", "root"):
            subprocess.run(["umount", "-R", self.folder / path], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.folder)

"""tar+gzip layers without any index: fetched, verified, indexed and stored, against decompressing alone."""

import json
import subprocess
import time

from figures import Pairs, median
from machine import drop_caches
from process import Watch
from report import Row, mebibytes, milliseconds, ratio
from services import Daemon
from start import ALONE

IMAGE = "science"
SPEED_TARGET = 0.8
MEMORY_TARGET = 100 << 20


def layers(bench):
    """The image of 517 MB, from the loopback registry until its source is ready."""
    blobs = _blobs(bench.work / "images", IMAGE)
    pairs, peaks, work = Pairs(), [], []

    def ours():
        daemon = Daemon(bench.registry, "layers", [IMAGE], extra=ALONE)
        drop_caches()
        watch = Watch(daemon)
        begun = time.monotonic()
        try:
            with daemon:
                return time.monotonic() - begun
        finally:
            peaks.append(watch.stop())

    def gzip():
        drop_caches()
        begun = time.monotonic()
        subprocess.run(["gzip", "-dc", *blobs], stdout=subprocess.DEVNULL, check=True)
        work.append(time.monotonic() - begun)
        return work[-1]

    for number in range(bench.rounds(5)):
        pairs.round(number, ours, gzip)
    speeds = [1 / times for times in pairs.ratios()]
    return [
        Row("tar+gzip image of 517 MB: fetched over the loopback, verified, indexed, stored", milliseconds(pairs.ours),
            f"`gzip -dc` of its layers {milliseconds(pairs.peer)}", f"speed {ratio(speeds)}",
            f"speed at least {SPEED_TARGET}×", median(speeds) >= SPEED_TARGET, len(speeds)),
        Row("… largest RssAnon meanwhile", mebibytes(peaks), "–", "–", "under 100 MiB", max(peaks) < MEMORY_TARGET,
            len(peaks)),
    ]  # fmt: skip


def _blobs(layout, image):
    """Files of an image's layers in a layout."""
    index = json.loads((layout / "index.json").read_text())
    named = "org.opencontainers.image.ref.name"
    digest = next(each["digest"] for each in index["manifests"] if each["annotations"][named] == image)
    manifest = json.loads((layout / "blobs" / digest.replace(":", "/")).read_text())
    return [layout / "blobs" / layer["digest"].replace(":", "/") for layer in manifest["layers"]]

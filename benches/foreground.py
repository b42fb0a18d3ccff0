"""Cold reads of small files over the slow link, while the background fetches the image at full rate and while it does not."""

import os
import random
import statistics
import time

from figures import Pairs
from machine import drop_caches
from report import Row, milliseconds, ratio
from services import Daemon
from start import ALONE

IMAGE = "estargz/science"
READS = 100
# Nothing but the rate of the link holds it up.
FULL = "prefetch: {fill: true, bandwidth: 1Gi}"


def foreground(bench):
    """p50 and p99 of open, read and close of files nobody read before, as a reader sees them."""
    middle, late = Pairs(), Pairs()
    for number in range(bench.rounds(5)):
        taken = {}

        def side(name, extra, number=number, taken=taken):
            taken[name] = _reads(bench, f"foreground-{name}", extra, number)
            return taken[name][0]

        middle.round(number, lambda: side("filling", FULL), lambda: side("alone", ALONE))
        late.ours.append(taken["filling"][1])
        late.peer.append(taken["alone"][1])
    return [
        Row(f"{words} of a cold read of a small file, 100 Mbit/s, 20 ms, background fetching at full rate",
            milliseconds(pairs.ours), f"no background {milliseconds(pairs.peer)}", ratio(pairs.ratios()), "", True,
            len(pairs.ours))
        for words, pairs in (("p50", middle), ("p99", late))
    ]  # fmt: skip


def _reads(bench, name, extra, seed):
    """p50 and p99 of one daemon's reads, in seconds."""
    daemon = Daemon(bench.registry, name, [IMAGE], slow=True, extra=extra)
    drop_caches()
    with daemon:
        root = daemon.mount_point / "science/rootfs"
        known = bench.unpacked("science")
        small = sorted(
            os.path.relpath(os.path.join(folder, file), known)
            for folder, _, files in os.walk(known / "usr/lib")
            for file in files
            if not os.path.islink(os.path.join(folder, file))
            and 0 < os.path.getsize(os.path.join(folder, file)) <= 16 << 10
        )
        taken = []
        for path in random.Random(seed).sample(small, READS):
            begun = time.monotonic()
            (root / path).read_bytes()
            taken.append(time.monotonic() - begun)
    return statistics.median(taken), statistics.quantiles(taken, n=100, method="inclusive")[98]

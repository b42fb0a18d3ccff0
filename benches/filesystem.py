"""Walking and reading, against the same image unpacked by umoci on ext4."""

from figures import Pairs, median
from machine import drop_caches, run, timed
from report import Row, milliseconds, ratio
from services import Daemon

FIND_TARGET = 1.3
READ_TARGET = 0.9
RANDOM_WARM, RANDOM_COLD = 50_000, 2_000


def walk(bench):
    """Warm `find -ls` over 30,000 files."""
    pairs = Pairs()
    with Daemon(bench.registry, "walk", ["tree"]) as daemon:
        ours, peer = daemon.mount_point / "tree/rootfs/tree", bench.unpacked("tree") / "tree"
        entries = [len(run("find", path).splitlines()) for path in (ours, peer)]
        if entries[0] != entries[1] or entries[0] < 30_000:
            raise RuntimeError(f"the trees differ: {entries} entries")
        for path in (ours, peer):
            timed("find", path, "-ls")
        for number in range(bench.rounds(21)):
            pairs.round(number, lambda: timed("find", ours, "-ls"), lambda: timed("find", peer, "-ls"))
    times = median(pairs.ratios())
    what = f"`find -ls`, {entries[0]:,} entries, warm"
    target = f"at most {FIND_TARGET}×"
    return [
        Row(what, milliseconds(pairs.ours), milliseconds(pairs.peer), ratio(pairs.ratios()), target,
            times <= FIND_TARGET, len(pairs.ours))
    ]  # fmt: skip


def read(bench):
    """Sequential and random reads of one complete large file, with a warm and with an empty page cache."""
    reader = bench.work / "reader"
    run("cc", "-O2", "-o", reader, bench.here / "reader.c")
    rows = []
    with Daemon(bench.registry, "read", ["tree"]) as daemon:
        ours, peer = daemon.mount_point / "tree/rootfs/large/content", bench.unpacked("tree") / "large/content"
        for words, cold in (("sequential", False), ("random", False), ("sequential", True), ("random", True)):
            rows.append(_reads(bench, reader, ours, peer, words, cold))
    return rows


def _reads(bench, reader, ours, peer, kind, cold):
    pairs = Pairs()

    def once(path, number):
        if cold:
            drop_caches()
        count = RANDOM_COLD if cold else RANDOM_WARM
        words = [count, number] if kind == "random" else []
        return float(run(reader, kind, path, *words))

    if not cold:
        drop_caches()  # both are then filled by reading; what writing leaves there lies in other sizes of pages
        for path in (ours, peer):
            run(reader, "sequential", path)
    for number in range(bench.rounds(9 if cold else 15)):
        pairs.round(number, lambda: once(ours, number), lambda: once(peer, number))
    speeds = [1 / times for times in pairs.ratios()]
    count = RANDOM_COLD if cold else RANDOM_WARM
    what = "192 MiB in steps of 1 MiB" if kind == "sequential" else f"{count:,} reads of 4 KiB at random"
    return Row(
        f"{what}, {'cold' if cold else 'warm'}", milliseconds(pairs.ours), milliseconds(pairs.peer),
        f"speed {ratio(speeds)}", f"speed at least {READ_TARGET}×", median(speeds) >= READ_TARGET, len(speeds),
    )  # fmt: skip

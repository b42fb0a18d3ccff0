"""Many at once: the list of ten thousand jobs, two hundred short runs, and what a thousand runs leave in memory."""

import json
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from figures import Pairs, median
from job import Bundle, generated
from machine import memory, run
from report import Row, mebibytes, milliseconds, ratio
from services import Daemon

ADDONS, JOBS = 1000, 10
LIST_TARGET = 0.050
RUNS, TOGETHER, RUNS_TARGET = 200, 8, 1.3
ROUNDS_OF_GROWTH = 5
# As large as a thread's arena or two of the allocator; a leak of a kilobyte a run would show.
GROWTH_TARGET = 1 << 20


def many(bench):
    """All of it."""
    return [_listing(bench), *_runs(bench)]


def _listing(bench):
    """`jobs.json` of a thousand add-ons of ten jobs each."""
    folder = bench.work / "daemons/listing"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "addon").mkdir(parents=True)
    jobs = "".join(f"  - {{id: job{number}, command: [/bin/true]}}\n" for number in range(JOBS))
    (folder / "addon/manifest.yaml").write_text(f"name: many\nversion: 1.0.0\nentrypoints:\n{jobs}")
    run(bench.registry.addonfs, "build", folder / "addon", "--output", f"oci:{folder}/image", "--tag", "v1")
    index = json.loads((folder / "image/index.json").read_text())
    digest = index["manifests"][0]["digest"]
    sources = "".join(
        f"  - {{name: a{number}, type: oci, image: 'oci:{folder}/image:v1@{digest}', mountPath: a{number}}}\n"
        for number in range(ADDONS)
    )
    (folder / "addonfs.yaml").write_text(
        f"policy: {{profile: permissive, allowed_registries: [oci-layout]}}\nsources:\n{sources}"
    )
    mount_point = folder / "mnt"
    mount_point.mkdir()
    command = [bench.registry.addonfs, "mount", "--strict", "--config", folder / "addonfs.yaml",
               "--state-dir", folder / "state", "--cache-dir", folder / "cache", mount_point]  # fmt: skip
    taken = []
    run(*command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(bench.rounds(15)):
            begun = time.monotonic()
            listed = (mount_point / ".addonfs/jobs.json").read_bytes()
            taken.append(time.monotonic() - begun)
        if len(json.loads(listed)) != ADDONS * JOBS:
            raise RuntimeError("jobs.json does not list all jobs")
    finally:
        run(bench.registry.addonfs, "umount", "--cancel", mount_point)
        shutil.rmtree(folder, ignore_errors=True)
    what = f"`.addonfs/jobs.json` of {ADDONS:,} add-ons with {JOBS} jobs each, {len(listed) >> 10:,} KiB"
    return Row(what, milliseconds(taken), "–", "–", "under 50 ms", median(taken) < LIST_TARGET, len(taken))


def _runs(bench):
    """Runs of `echo`, eight at a time, beside the runtime alone; then how the daemon's memory grows."""
    with Daemon(bench.registry, "many", ["tools"]) as daemon:
        program = daemon.mount_point / "tools/hello/run"
        config = generated(daemon)
        argv = ["/bin/echo", "1"]
        bundles = [Bundle(bench, "crun", config, argv, True, number) for number in range(TOGETHER)]
        pairs = Pairs()
        for bundle in bundles:
            bundle.__enter__()
        try:
            for number in range(bench.rounds(5)):
                pairs.round(number, lambda: _together(lambda _: [program]),
                            lambda: _together(lambda worker: bundles[worker].command()))  # fmt: skip
        finally:
            for bundle in bundles:
                bundle.__exit__()
        before = memory(daemon.pid())["RssAnon"]
        for _ in range(ROUNDS_OF_GROWTH):
            _together(lambda _: [program])
        after = memory(daemon.pid())["RssAnon"]
    ratios = pairs.ratios()
    grown = after - before
    return [
        Row(f"{RUNS} runs of `echo`, {TOGETHER} at a time, crun", milliseconds(pairs.ours), milliseconds(pairs.peer),
            ratio(ratios), f"at most {RUNS_TARGET}×", median(ratios) <= RUNS_TARGET, len(ratios)),
        Row(f"RssAnon of the daemon after these and {RUNS * ROUNDS_OF_GROWTH:,} more", mebibytes([after]),
            f"before these {mebibytes([before])}", f"{grown / 2**20:+.2f} MiB", "at most +1 MiB",
            grown <= GROWTH_TARGET, 1),
    ]  # fmt: skip


def _together(command):
    """Seconds for all runs; each worker starts its next when its last has ended."""

    def work(worker):
        for _ in range(RUNS // TOGETHER):
            subprocess.run([str(word) for word in command(worker)], stdout=subprocess.DEVNULL, check=True)

    begun = time.monotonic()
    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(work, range(TOGETHER)))
    return time.monotonic() - begun
